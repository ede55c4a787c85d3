# Runs the cloud of one site in its VPC router: vpc.sh up
#
# Metadata service http://100.100.100.200, API http:// and https://100.100.100.201 (its CA is
# /etc/fabric/cloud-ca.pem in the gateway), control API on the unix socket /run/cloudemu.sock. The routes of
# this node follow the emulator's route table. Output in /var/log/cloudemu.log, process id in /run/cloudemu.pid.
set -eu
[ "${1-}" = up ] || { echo "usage: vpc.sh up" >&2; exit 2; }
setsid /opt/fabric/bin/cloudemu --seed /etc/cloudemu/seed.json \
	--metadata 100.100.100.200:80 \
	--api 100.100.100.201:80 --api-tls 100.100.100.201:443 --ca-out /etc/cloudemu/ca/ca.pem \
	--control /run/cloudemu.sock --dataplane kernel --ready-file /run/cloudemu.ready \
	</dev/null >>/var/log/cloudemu.log 2>&1 &
pid=$!
echo "$pid" >/run/cloudemu.pid
for _ in $(seq 100); do
	[ ! -e /run/cloudemu.ready ] || exit 0
	[ -d "/proc/$pid" ] || break
	sleep 0.1
done
echo "cloudemu did not come up:" >&2
tail -n 15 /var/log/cloudemu.log >&2
exit 1
