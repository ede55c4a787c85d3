#!/bin/bash
# Proves the project on Debian's kernel, with VRF devices and WireGuard in the kernel: lab/vm/test.sh [SUITE...]
#
# SUITES are those of payload.sh. One line "SUITE: N passed, N failed, N skipped" each; exit code 0 only if all passed and none
# was skipped. Logs are left in .cache/vm/results. "boot" is run alone, see lab/boot/README.md; its image and logs are in .cache/vm-boot.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=.cache/vm mode='' packages='' limit=1200
if [ "$*" = boot ]; then
	# An image of its own, with what a host has that boots with systemd.
	cache=.cache/vm-boot mode=-s packages="dbus network-manager openssh-server systemd-sysv udev" limit=2400
fi
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || { echo "test.sh: another run goes on in this checkout" >&2; exit 1; }
sh lab/vm/deps.sh
# shellcheck disable=SC2086 # words, or none
lab/vm/build-image.sh "$cache" $packages
lab/vm/payload.sh "$cache/payload" "$@"
code=0
# shellcheck disable=SC2086 # an option, or none
lab/vm/vmrun.sh $mode -t "${LIMIT:-$limit}" -o "$cache/results" "$cache" "$cache/payload" || code=$?
if [ "$code" = 0 ]; then
	echo "test-vm: ok"
else
	echo "test-vm: FAILED (exit code $code), logs in $cache/results" >&2
fi
exit "$code"
