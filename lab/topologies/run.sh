#!/bin/sh
# Brings topologies up, checks them and takes them down, one after the other: lab/topologies/run.sh [NAME...]
#
# All that have an expected.json by default. LAB is the lab's program, built if not given. RUNNER is netns, the default, or containerlab. In
# namespaces each lab's folder is one of its own, so that labs of the same names that are up are left alone. WITHIN is check's --within, for a slow machine. Logs of the nodes are
# copied to the folder LOGS, if that is set.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
current=
runner=${RUNNER:-netns}
where() { # NAME: the options that say which lab is meant
	if [ "$runner" = netns ]; then echo "--dir $work/$1"; else echo "--runner=$runner"; fi
}
fetch() { # NAME: the logs of its containers, to where those of namespaces are
	[ "$runner" = containerlab ] || return 0
	for container in $(docker ps --all --filter "label=containerlab=$1" --format '{{.Names}}'); do
		mkdir -p "$work/$1/$container/log"
		docker exec "$container" tar -C /var/log -cf - . 2>/dev/null | tar -C "$work/$1/$container/log" -xf - || true
	done
}
finish() {
	if [ -n "$current" ]; then $LAB down "$current" $(where "$current") 2>/dev/null || true; fi
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
	if ! { "$LAB" up "$name" $(where "$name") 2>"$work/up" || { cat "$work/up" >&2; false; }; } ||
		! "$LAB" check "$name" $(where "$name") ${WITHIN:+--within "$WITHIN"}; then
		failed="$failed $name"
		fetch "$name"
		for log in "$work/$name"/*/log/fabric-*.log; do
			[ -e "$log" ] || continue
			echo "    $log:" | sed "s,$work/,,"
			tail -n 5 "$log" | sed 's/^/    /'
		done
	fi
	[ -z "${LOGS-}" ] || fetch "$name"
	if [ -n "${LOGS-}" ] && [ -d "$work/$name" ]; then
		tar -C "$work" -cf - $(cd "$work" && ls -d "$name"/*/log) | tar -C "$LOGS" -xf -
	fi
	"$LAB" down "$name" $(where "$name") 2>/dev/null
	current=
done
[ -z "$failed" ] || { echo "topologies: FAILED:$failed" >&2; exit 1; }
echo "topologies: ok, $# of them"
