#!/bin/sh
# Makes the folders that the gateways of a topology see as /etc/fabric, below FOLDER/.run/: sh prepare.sh FOLDER [FABRIC-SITE]
#
# Each holds the gateway's own private key, made once and kept, and fabric.yaml with the public keys that
# belong to them in place of the example's. FABRIC-SITE is the program that makes keys, the built one by default.
# The gateways are those nodes of the topology that run gateway.sh.
set -eu
cd "${1:?usage: prepare.sh FOLDER [FABRIC-SITE]}"
site=${2:-../../../bin/fabric-site}
gateways=$(sed -n 's/^ *- sh .*gateway\.sh up \([a-z0-9-]*\).*$/\1/p' ./*.clab.yml)
[ -n "$gateways" ] || { echo "prepare.sh: no node of $(pwd) runs gateway.sh" >&2; exit 1; }

mkdir -p .run
document=.run/fabric.yaml
cp fabric.yaml "$document"
for name in $gateways; do
	mkdir -p ".run/$name/keys" ".run/$name/ca"
	ln -sfn ca/ca.pem ".run/$name/cloud-ca.pem" # comes with the start of the cloud's emulator, where there is one
	key=.run/$name/keys/$name.key
	if [ ! -s "$key" ] || [ ! -s ".run/$name.pub" ]; then
		rm -f "$key"
		"$site" keygen "$key" >".run/$name.pub.new"
		mv ".run/$name.pub.new" ".run/$name.pub"
	fi
	# The first public-key after the gateway's name is the gateway's.
	awk -v name="$name" -v key="$(cat ".run/$name.pub")" '
		$0 ~ "name:[ \t]*\"?" name "\"?[ \t,}]*(#.*)?$" || $0 ~ "name:[ \t]*\"?" name "\"?[ \t]*," { mine = 1 }
		mine && match($0, /public-key:[ \t]*"?[A-Za-z0-9+\/=]+"?/) {
			$0 = substr($0, 1, RSTART - 1) "public-key: \"" key "\"" substr($0, RSTART + RLENGTH)
			mine = 0
			done = 1
		}
		{ print }
		END { if (!done) { print "prepare.sh: fabric.yaml has no public-key for " name > "/dev/stderr"; exit 1 } }
	' "$document" >"$document.new"
	mv "$document.new" "$document"
done
for name in $gateways; do
	cp "$document" ".run/$name/fabric.yaml"
done
