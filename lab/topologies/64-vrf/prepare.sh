#!/bin/sh
# Keys, passwords and the gateways' folders, below .run/: sh prepare.sh [FABRIC-SITE]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
sh "$here/../scripts/prepare.sh" "$here" "$@"
cd "$here"
umask 077
# A TCP MD5 password per VRF, made once: a file each for the gateway, definitions p1 and so on for the neighbour.
for name in $(sed -n 's/.*password-file: \/etc\/fabric\/keys\/\(V[0-9]*\)\.md5.*/\1/p' fabric.yaml); do
	file=.run/gw/keys/$name.md5
	[ -s "$file" ] || od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$file"
	echo "define p${name#V} = \"$(cat "$file")\";"
done >.run/passwords.conf
