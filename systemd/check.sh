# check.sh BIN: the units as systemd reads them, with the programs of the folder BIN in place of /usr/bin's: no complaint by
# `verify`, and an exposure of at most 4.0 by `security`.
set -eu
bin=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for unit in "$here"/*.service "$here"/*.target "$here"/*.timer; do
	sed "s,/usr/bin/fabric,$bin/fabric,g" "$unit" >"$tmp/$(basename "$unit")"
done
# A template is verified as an instance.
mv "$tmp/fabric-tunnel@.service" "$tmp/fabric-tunnel@fxwexample.service"
mv "$tmp/fabric-retry@.service" "$tmp/fabric-retry@fabric-site.service"
mv "$tmp/fabric-retry@.timer" "$tmp/fabric-retry@fabric-site.timer"
# All that is ordered after the fabric is started with it, where it is installed: that shows cycles.
printf '[Unit]\nWants=%s\n' "fabric-links.service fabric-site.service fabric-ready.target frr.service bird.service network.target" >"$tmp/boot.target"
said=$(systemd-analyze verify "$tmp"/*.service "$tmp"/*.target "$tmp"/*.timer 2>&1 | grep -E 'fabric|cycle' || true)
if [ -n "$said" ]; then
	echo "$said" >&2
	exit 1
fi
for unit in "$tmp"/*.service; do
	line=$(systemd-analyze security --offline=true --threshold=40 "$unit" | tail -n 1) || {
		echo "$line" >&2
		exit 1
	}
	echo "$line"
done
