#!/bin/sh
# Installs what the lab needs on a Debian 12, as root: lab/deps.sh
#
# Does nothing, and needs no network, when all is there. Starts no service and changes none: FRR's
# package would start its own daemons on the host, which the lab has no use for.
set -eu

packages="bird2 ca-certificates exabgp frr gcc git gobgpd iperf3 iproute2 iputils-ping jq libc6-dev netcat-openbsd nftables procps systemd tcpdump util-linux"

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

# Debian asks this script before it starts a service; 101 means: do not.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	trap 'exit 1' INT TERM HUP
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $need

need=$(missing)
if [ -n "$need" ]; then
	echo "deps.sh: still missing after the installation: $need" >&2
	exit 1
fi
