#!/bin/bash
# Proves topologies by the real containerlab, with Debian's docker, in the virtual machine: lab/vm/clab.sh [NAME...]
#
# two-site by default. containerlab is $CONTAINERLAB, else the one on PATH, else the version below, built from its Go module once and kept in
# .cache. Its nodes are made of the virtual machine's own files. The rest is as in test.sh; logs are left in .cache/vm-docker/results.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=v0.60.0
cache=$PWD/.cache/vm-docker
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || { echo "clab.sh: another run goes on in this checkout" >&2; exit 1; }

build() { # FILE
	local told folder
	# Outside of the project: its go.mod and go.sum have nothing to do with it. The module's own go.sum says what goes in.
	told=$(cd / && go mod download -json "github.com/srl-labs/containerlab@$version") || { echo "$told" >&2; return 1; }
	folder=$(sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' <<<"$told")
	CGO_ENABLED=0 go build -C "$folder" -trimpath -ldflags '-s -w' -o "$1.new" . && mv "$1.new" "$1"
}

export CONTAINERLAB=${CONTAINERLAB:-$(command -v containerlab || true)}
if [ -z "$CONTAINERLAB" ]; then
	CONTAINERLAB=$cache/containerlab-$version
	if [ ! -x "$CONTAINERLAB" ] && ! build "$CONTAINERLAB"; then
		echo "clab.sh: there is no containerlab on this host, and $version could not be built from its module:" \
			"install it (https://containerlab.dev/install/), or name the program: CONTAINERLAB=FILE make lab-clab" >&2
		exit 1
	fi
fi
[ -f "$CONTAINERLAB" ] && [ -x "$CONTAINERLAB" ] || { echo "clab.sh: CONTAINERLAB=$CONTAINERLAB is no program" >&2; exit 1; }

[ $# != 0 ] || set -- two-site
sh lab/vm/deps.sh
lab/vm/build-image.sh "$cache" docker.io iptables
lab/vm/payload.sh "$cache/payload" "${@/#/containerlab/}"
code=0
lab/vm/vmrun.sh -t "${LIMIT:-1200}" -o "$cache/results" "$cache" "$cache/payload" || code=$?
if [ "$code" = 0 ]; then
	echo "lab-clab: ok"
else
	echo "lab-clab: FAILED (exit code $code), logs in $cache/results" >&2
fi
exit "$code"
