#!/bin/sh
# Makes the docker image that the topologies name, fabric-lab:latest, from Debian 12's packages: image.sh
#
# For --runner=containerlab alone. Needs mmdebstrap and docker. Nothing of the project is inside; that is bound into the nodes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
packages=$(sed -n 's/^packages="\(.*\)"$/\1/p' "$here/../../deps.sh")
mmdebstrap --quiet --variant=essential --include="$(echo "$packages" | tr ' ' ,)" \
	--aptopt='Apt::Install-Recommends "false"' bookworm - | docker import - fabric-lab:latest
