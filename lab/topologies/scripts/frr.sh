# Runs Debian's FRR, without its service manager: frr.sh up
set -eu
[ "${1-}" = up ] || { echo "usage: frr.sh up" >&2; exit 2; }
install -d -o frr -g frr -m 750 /var/log/frr
install -d -o frr -g frrvty -m 755 /run/frr
/usr/lib/frr/zebra -d -u frr -g frr -A 127.0.0.1
/usr/lib/frr/bgpd -d -u frr -g frr -A 127.0.0.1
vtysh -b
