#!/bin/bash
# Makes the payload that proves the project on the virtual machine's kernel: payload.sh FOLDER [SUITE...]
#
# Each SUITE is a package whose tests run there, PACKAGE:TESTS for those alone whose names match, "demo", or "topologies" for all of
# lab/topologies, "topologies/NAME" for one; packages and the demo by default; "containerlab/NAME" for a topology by the program
# $CONTAINERLAB. The payload has the packages' folders as the project has them, each with its test binary. Of lab/interop all tests run
# that take long, and write their tables.
# The suite "boot" is a payload of its own, for a machine with systemd: lab/boot, and two builds of the Debian package.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
shift
suites=${*:-internal/kernel/linux vrf cmd/fabric-links lab/interop:TestMember demo}
export CGO_ENABLED=0

# The programs and the topologies, for the demo and for labs.
programs() {
	[ ! -e "$folder/bin/fabric-site" ] || return 0
	go build -ldflags '-s -w' -o "$folder/bin/" ./cmd/fabric-site ./cmd/fabric-links ./cmd/fabricctl ./lab/cloudemu/cmd/cloudemu
	mkdir -p "$folder/lab"
	tar -C lab --exclude=.run -cf - topologies | tar -C "$folder/lab" -xf -
}

rm -rf "$folder"
mkdir -p "$folder"
if [ "$suites" = boot ]; then
	go build -ldflags '-s -w' -o "$folder/bin/" ./lab/boot
	cp -r lab/boot/host lab/boot/prepare "$folder/"
	echo "${BOOTS:-2}" >"$folder/boots"
	echo "${ONLY:-}" >"$folder/parts"
	for build in 1 2; do
		VERSION=1.$build sh systemd/packaging/build.sh "$folder/deb" amd64 >/dev/null
		mv "$folder/deb/fabric_1.$build-1_amd64.deb" "$folder/fabric_$build.deb"
	done
	rmdir "$folder/deb"
	exit 0
fi
cp lab/vm/run "$folder/run"
echo "${LIMIT:-1200}" >"$folder/limit"
for suite in $suites; do
	if [ "$suite" = demo ]; then
		programs
		go build -ldflags '-s -w' -o "$folder/bin/" ./lab/demo
	elif [ "${suite%%/*}" = topologies ] || [ "${suite%%/*}" = containerlab ]; then
		programs
		go build -ldflags '-s -w' -o "$folder/bin/" ./lab
		if [ "${suite%%/*}" = containerlab ]; then install -m 755 "$CONTAINERLAB" "$folder/bin/containerlab"; fi
	else
		package=${suite%%:*}
		mkdir -p "$folder/$package"
		if [ -d "$package/testdata" ]; then cp -r "$package/testdata" "$folder/$package/"; fi
		go test -c -ldflags '-s -w' -o "$folder/$package/tests" "./$package"
		if [ "$package" = lab/interop ]; then
			programs
			mkdir -p "$folder/docs"
			cp docs/interop.md "$folder/docs/"
		fi
	fi
	echo "$suite" >>"$folder/suites"
done
