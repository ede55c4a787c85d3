#!/bin/bash
# Builds the virtual machine's kernel and root disk from Debian 12's packages: build-image.sh FOLDER [PACKAGE...]
#
# Makes FOLDER/vmlinuz, FOLDER/root.img and FOLDER/image.key, a hash of all that goes into them; does nothing when
# that is unchanged. Needs no loop device, no mount and no initramfs: Debian's cloud kernel has NVMe and ext4 built in.
# Nothing of the project is inside; that comes on a disk of its own with every run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift

# The packages of lab/deps.sh, for the demo, and what the tests call beside them.
packages=$(sed -n 's/^packages="\(.*\)"$/\1/p' "$here/../deps.sh")
packages="$packages ethtool kmod wireguard-tools"
# Who wants further ones wants room as well.
packages="$packages${*:+ $*}" size=1500M
[ $# = 0 ] || size=4G
key=$( (cat "$0" "$here/init"; echo "$packages") | sha256sum | cut -c1-32)
if [ -f "$folder/vmlinuz" ] && [ -f "$folder/root.img" ] && [ "$(cat "$folder/image.key" 2>/dev/null)" = "$key" ]; then
	exit 0
fi
echo "build-image.sh: building $folder/root.img"
rm -f "$folder/image.key"
work=$(mktemp -d "$folder/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# The machine's own sources are used, so a mirror that is set up there serves here too.
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
	if grep -qs bookworm "$file"; then sources+=("$file"); fi
done
mmdebstrap --quiet --variant=essential --mode=root --include="${packages// /,}" \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='force-unsafe-io' --aptopt='Apt::Install-Recommends "false"' \
	bookworm "$root" "${sources[@]}"

# The kernel is unpacked, not installed: its installation would build an initramfs.
(
	cd "$work"
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
	apt-get download -qq "$package" 2>/dev/null
	dpkg-deb -x "$package"_*.deb kernel
)
version=$(basename "$work"/kernel/lib/modules/*)
cp "$work"/kernel/boot/vmlinuz-* "$folder/vmlinuz"
from=$work/kernel/lib/modules/$version to=$root/usr/lib/modules/$version
mkdir -p "$to/kernel"
cp "$from"/modules.{order,builtin,builtin.modinfo} "$to/"
for part in net crypto arch lib drivers/net fs/overlayfs; do
	mkdir -p "$to/kernel/$(dirname "$part")"
	cp -a "$from/kernel/$part" "$to/kernel/$(dirname "$part")/"
done
rm -rf "$to"/kernel/drivers/net/{ethernet,hyperv,wwan,xen-*,vmxnet3} "$to"/kernel/net/{ceph,rxrpc,sunrpc,rds,tipc,smc,nfc,can,9p}
chroot "$root" depmod "$version"

install -m 755 "$here/init" "$root/fabric-init"
mkdir -p "$root/payload"
rm -f "$folder/root.img"
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -m 0 -d "$root" "$folder/root.img" "$size" >/dev/null
echo "$key" >"$folder/image.key"
echo "build-image.sh: built, kernel $version, $(du -h "$folder/root.img" | cut -f1) on disk"
