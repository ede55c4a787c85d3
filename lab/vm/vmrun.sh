#!/bin/bash
# Boots the virtual machine once and runs a payload in it:
#
#   vmrun.sh [-s] [-t SECONDS] [-m MIB] [-o RESULTS] IMAGES PAYLOAD
#
# IMAGES is the folder build-image.sh made; PAYLOAD a folder, of which ./run is run, as root, with its copy in
# /payload. With -s systemd is process 1, after ./prepare, at each boot: the machine may reboot, and its disks stay as they are. Prints the console; the exit code is the payload's, 124 when it ran longer than -t, 125 when the machine ended
# without a verdict. What the payload leaves in $RESULTS comes back in the folder of -o. Every run starts from the same root disk.
# No KVM is needed, and there is no network device: nothing leaves the machine.
set -euo pipefail
limit=600 memory=3072 results=
# A reboot is the end, unless systemd may do so.
mode=-no-reboot words=''
while getopts st:m:o: option; do
	case $option in
	s) mode='' words='vm.systemd systemd.show_status=0 loglevel=3' ;;
	t) limit=$OPTARG ;;
	m) memory=$OPTARG ;;
	o) results=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# = 2 ] || { echo "usage: vmrun.sh [-s] [-t SECONDS] [-m MIB] [-o RESULTS] IMAGES PAYLOAD" >&2; exit 2; }
images=$1 payload=$2

work=$(mktemp -d)
machine=
trap 'if [ -n "$machine" ]; then kill "$machine" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$payload" "$work/payload.img" "$(($(du -sk "$payload" | cut -f1) * 5 / 4 + 65536))k" >/dev/null
truncate -s 256M "$work/results.img"

# One controller with three namespaces: the names of the disks do not depend on the order in which they are probed.
disk() { # NUMBER NAME FILE OPTION
	echo "-drive if=none,id=$2,file=$3,format=raw,cache=unsafe,$4 -device nvme-ns,bus=nvme,drive=$2,nsid=$1"
}
# shellcheck disable=SC2046,SC2086 # words of options, or none
timeout -k 5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -M q35 -cpu max -smp 2 -m "$memory" \
	-nodefaults -no-user-config -display none $mode -serial "file:$work/console" -kernel "$images/vmlinuz" \
	-device nvme,id=nvme,serial=fabric \
	$(disk 1 root "$images/root.img" snapshot=on) \
	$(disk 2 payload "$work/payload.img" discard=ignore) \
	$(disk 3 results "$work/results.img" discard=ignore) \
	-append "console=ttyS0 root=/dev/nvme0n1 rw init=/fabric-init quiet mitigations=off $words" </dev/null &
machine=$!
touch "$work/console"
tail -n +1 -f --pid=$machine -s 0.2 "$work/console" | sed -u 's/\r//g' | grep --line-buffered -v '^VM-EXIT ' &
console=$!
code=0
wait "$machine" || code=$?
machine=
wait "$console" || true
if [ -n "$results" ]; then
	rm -rf "$results"
	mkdir -p "$results"
	tar -C "$results" -xf "$work/results.img" 2>/dev/null || true # empty after a run that was broken off
	tr -d '\r' <"$work/console" >"$results/console.log"
fi
if [ "$code" = 124 ]; then
	echo "vmrun.sh: still running after $limit seconds" >&2
	exit 124
fi
verdict=$(tr -d '\r' <"$work/console" | sed -n 's/^VM-EXIT \([0-9]*\)$/\1/p' | tail -n 1)
if [ -z "$verdict" ]; then
	echo "vmrun.sh: the machine ended without a verdict (qemu: $code)" >&2
	exit 125
fi
exit "$verdict"
