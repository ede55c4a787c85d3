#!/bin/sh
# lifecycle.sh ROOT.tar DEB: install, upgrade, remove and purge in a chroot, with a systemctl that only writes down what it is told; in its own
# mount namespace (unshare -m), so that nothing of it is seen outside.
set -eu
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
fail() {
	echo "lifecycle: $*" >&2
	exit 1
}
tar -C "$root" -xf "$1" --exclude='./dev/*'
: >"$root/dev/null"
chmod 666 "$root/dev/null"
cp "$2" "$root/fabric.deb"
in_root() { chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin DPKG_MAINTSCRIPT_DEBUG= DEBIAN_FRONTEND=noninteractive "$@"; }
fake() {
	# deb-systemd-invoke asks systemctl; every call is written down. The programs' cleanup must not reach this machine's kernel.
	printf '#!/bin/sh\necho "%s $*" >>/calls\n' "$2" >"$root$1"
	chmod 755 "$root$1"
}
calls() { grep -c -- "$1" "$root/calls" || true; }

in_root dpkg -i /fabric.deb >/dev/null
[ -L "$root/etc/systemd/system/multi-user.target.wants/fabric-site.service" ] || fail "not enabled at installation"
[ ! -e "$root/calls" ] || fail "something was started where systemd does not run"

mkdir -p "$root/run/systemd/system"
fake /usr/bin/systemctl systemctl
fake /usr/bin/deb-systemd-invoke invoke
in_root dpkg -i /fabric.deb >/dev/null
[ "$(calls 'invoke try-restart fabric-site')$(calls 'invoke try-restart fabric-links')" = 11 ] || fail "an upgrade does not restart both daemons once"
[ "$(calls fabric-tunnel)$(calls ' start ')$(calls ' stop ')" = 000 ] || fail "an upgrade starts or stops: $(cat "$root/calls")"

fake /usr/bin/fabric-site fabric-site
fake /usr/bin/fabric-links fabric-links
echo key >"$root/etc/fabric/keys/gw.key"
mkdir -p "$root/var/lib/fabric-site"
: >"$root/calls"
in_root dpkg -r fabric >/dev/null 2>&1
printf '%s\n' 'invoke stop fabric-ready.target fabric-site.service' 'fabric-site cleanup' 'invoke stop fabric-links.service' \
	'fabric-links --tunnel-manager=systemd cleanup' 'systemctl stop fabric-tunnel@*.service' 'systemctl --system daemon-reload' >"$root/want"
diff "$root/want" "$root/calls" || fail "removal does other things"
[ -e "$root/etc/fabric/keys/gw.key" ] || fail "removal took the keys"
[ -d "$root/var/lib/fabric-site" ] || fail "removal took the state"

# The scripts end with the package's own programs again, so the document has to be there for a start.
: >"$root/etc/fabric/fabric.yaml"
: >"$root/calls"
in_root dpkg -i /fabric.deb >/dev/null
[ "$(calls 'invoke start fabric-')$(calls 'invoke try-restart fabric-')" = 30 ] || fail "an installation after a removal starts nothing: $(cat "$root/calls")"
fake /usr/bin/fabric-site fabric-site
fake /usr/bin/fabric-links fabric-links

in_root dpkg -P fabric >/dev/null 2>&1
left=$(find "$root/etc" "$root/usr" "$root/lib/systemd" "$root/var/lib" -iname '*fabric*' ! -path '*/systemd/deb-systemd-helper*')
[ -z "$left" ] || fail "left after purge: $left"
echo 'lifecycle: install, upgrade, remove, purge: ok'
