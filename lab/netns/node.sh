# Makes the private file system of one node, then becomes the node's main process.
# Runs in the node's network, mount and UTS namespaces, mounts private.
#
#   node.sh FOLDER NAME {SOURCE TARGET rw|ro}... -- COMMAND...
#
# The root is the host's, with everything the node writes kept in memory: bind targets that
# the host does not have are made there and never on the host. Writes the line "ready" to
# file descriptor 3 once all is in place.
set -eu
folder=$1 name=$2
shift 2
echo "$name" >/proc/sys/kernel/hostname

mount -t tmpfs -o mode=755 lab "$folder/root"
cd "$folder/root"
mkdir upper work root
# Relative names: overlay options cannot hold every character that a path can.
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work lab root
cd root
mount -t sysfs sysfs sys # shows the network namespace it was mounted in
mount --rbind /proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 lab run
mount -t tmpfs -o mode=1777 lab tmp
mkdir .host
pivot_root . .host
cd /

# After the pivot, so that links like /var/run are followed inside the node.
while [ "$1" != -- ]; do
	source=/.host$1 target=$2 mode=$3
	shift 3
	if [ -d "$source" ]; then
		mkdir -p "$target"
	else
		mkdir -p "${target%/*}"
		[ -e "$target" ] || : >"$target"
	fi
	mount --bind "$source" "$target"
	[ "$mode" = rw ] || mount -o remount,bind,ro "$target"
done
shift
mkdir -p /run/lock
umount -l /.host
rmdir /.host
echo ready >&3
exec 3>&-
exec "$@"
