#!/bin/sh
# check.sh [ROOT.tar]: builds the packages twice and compares them, runs lintian (errors fail), checks modes and the maintainer scripts; with the tar
# of a minimal Debian (mmdebstrap --variant=minbase bookworm ROOT.tar) also installs, upgrades, removes and purges in a chroot of it.
# Needs lintian and shellcheck. From the module's root.
set -eu
export LC_ALL=C
here=$(dirname "$0")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
fail() {
	echo "check: $*" >&2
	exit 1
}

# said EXPECTED DESCRIBED: what version.sh makes of a description.
said() {
	got=$(sh "$here/version.sh" "$2" 20261121141655)
	[ "$got" = "$1" ] || fail "version.sh $2: $got, want $1"
}
said '0~git20261121141655.a1b2c3d' a1b2c3d
said '0~git20261121141655.a1b2c3d+dirty' a1b2c3d-dirty
said 1.2.0 v1.2.0-0-ga1b2c3d
said '1.2.0~rc1' v1.2.0-rc1-0-ga1b2c3d
said 1.2.0+7.ga1b2c3d v1.2.0-7-ga1b2c3d
before=
for v in '0~git20261121141655.a1b2c3d' '1.2.0~rc1' 1.2.0 1.2.0+7.ga1b2c3d 1.2.1; do
	[ -z "$before" ] || dpkg --compare-versions "$before" lt "$v" || fail "$before is not before $v"
	before=$v
done
shellcheck "$here"/*.sh "$here/preinst" "$here/postinst" "$here/prerm" "$here/postrm"

sh "$here/build.sh" "$tmp/a" >/dev/null
sh "$here/build.sh" "$tmp/b" >/dev/null
for deb in "$tmp"/a/*.deb; do
	cmp "$deb" "$tmp/b/$(basename "$deb")" || fail "two builds differ"
	lintian --allow-root --fail-on error "$deb" || fail "lintian"
	dpkg-deb -c "$deb" >"$tmp/list"
	# mode, owner, name
	for want in '-rwxr-xr-x root/root ./usr/bin/fabric-site' '-rwxr-xr-x root/root ./usr/bin/fabric-links' \
		'-rwxr-xr-x root/root ./usr/bin/fabricctl' 'drwx------ root/root ./etc/fabric/keys/' \
		'-rw-r--r-- root/root ./lib/systemd/system/fabric-tunnel@.service' '-rw-r--r-- root/root ./usr/lib/sysctl.d/60-fabric.conf' \
		'-rw-r--r-- root/root ./usr/share/man/man1/fabricctl-peer-add.1.gz' '-rw-r--r-- root/root ./usr/share/doc/fabric/copyright'; do
		awk '{print $1, $2, $6}' "$tmp/list" | grep -qxF -- "$want" || fail "$(basename "$deb"): no $want"
	done
	echo "$(basename "$deb"): equal twice, $(wc -l <"$tmp/list") entries, $(sha256sum <"$deb" | cut -c1-16)"
done
# An upgrade must not touch a tunnel.
if grep -v '^[[:space:]]*#' "$here/postinst" | grep fabric-tunnel; then
	fail "postinst speaks of fabric-tunnel@"
fi

if [ $# = 1 ]; then
	unshare -m sh "$here/lifecycle.sh" "$1" "$tmp"/a/*"_$(dpkg --print-architecture).deb"
fi
echo 'check: ok'
