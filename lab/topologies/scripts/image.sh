#!/bin/sh
# Makes the docker image that the topologies name, fabric-lab:latest: image.sh [--here]
#
# For --runner=containerlab alone. Needs docker, and mmdebstrap for the image of Debian 12's packages; with --here it is made of this
# host's own files instead, which asks for no network. Nothing of the project is inside; that is bound into the nodes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1-}" = --here ]; then
	# What a node has no use for stays out, docker itself above all.
	cd / # for lib*, of which a host has some
	tar --one-file-system --exclude='./usr/lib/modules' --exclude='./usr/lib/gcc' --exclude='./usr/bin/*docker*' --exclude='./usr/sbin/*docker*' \
		--exclude='./usr/bin/containerd*' --exclude='./var/lib/docker' --exclude='./var/lib/containerd' --exclude='./var/cache' --exclude='./var/lib/apt' \
		-cf - ./bin ./sbin ./lib* ./etc ./usr ./var | docker import - fabric-lab:latest
	exit 0
fi
packages=$(sed -n 's/^packages="\(.*\)"$/\1/p' "$here/../../deps.sh")
mmdebstrap --quiet --variant=essential --include="$(echo "$packages" | tr ' ' ,)" \
	--aptopt='Apt::Install-Recommends "false"' bookworm - | docker import - fabric-lab:latest
