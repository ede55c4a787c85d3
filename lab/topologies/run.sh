#!/bin/sh
# Brings topologies up, checks them and takes them down, one after the other, in namespaces: lab/topologies/run.sh [NAME...]
#
# All that have an expected.json by default. LAB is the lab's program, built if not given. Each lab's folder is one of its own,
# so that labs of the same names that are up are left alone. WITHIN is check's --within, for a slow machine. Logs of the nodes are
# copied to the folder LOGS, if that is set.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
current=
finish() {
	if [ -n "$current" ]; then $LAB down "$current" --dir "$work/$current" 2>/dev/null || true; fi
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP
if [ -z "${LAB-}" ]; then
	go build -o "$work/lab" ./lab
	LAB=$work/lab
fi
[ $# != 0 ] || set -- $(cd lab/topologies && for f in */expected.json; do echo "${f%/*}"; done)
failed=
for name in "$@"; do
	echo "--- $name"
	current=$name
	if ! { "$LAB" up "$name" --dir "$work/$name" 2>"$work/up" || { cat "$work/up" >&2; false; }; } ||
		! "$LAB" check "$name" --dir "$work/$name" ${WITHIN:+--within "$WITHIN"}; then
		failed="$failed $name"
		for log in "$work/$name"/*/log/fabric-*.log; do
			[ -e "$log" ] || continue
			echo "    $log:" | sed "s,$work/,,"
			tail -n 5 "$log" | sed 's/^/    /'
		done
	fi
	if [ -n "${LOGS-}" ] && [ -d "$work/$name" ]; then
		tar -C "$work" -cf - $(cd "$work" && ls -d "$name"/*/log) | tar -C "$LOGS" -xf -
	fi
	"$LAB" down "$name" --dir "$work/$name" 2>/dev/null
	current=
done
[ -z "$failed" ] || { echo "topologies: FAILED:$failed" >&2; exit 1; }
echo "topologies: ok, $# of them"
