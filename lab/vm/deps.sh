#!/bin/sh
# Installs what the lab's virtual machine needs on a Debian 12, as root: lab/vm/deps.sh
#
# Does nothing, and needs no network, when all is there.
set -eu

packages="e2fsprogs mmdebstrap qemu-system-x86"

missing() {
	for package in $packages; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
	done
}

need=$(missing)
[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "deps.sh: missing: $need: run it as root" >&2
	exit 1
fi
echo "deps.sh: installing $need"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $need
