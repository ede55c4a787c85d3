# Runs a gateway's daemons without systemd. Neither waits for the other, nor this script for them.
#
#   gateway.sh up NAME              both
#   gateway.sh start DAEMON NAME    one of fabric-links, fabric-site
#   gateway.sh pid DAEMON           its process id
#
# Their output is in /var/log/DAEMON.log, their process ids in /run/DAEMON.pid.
set -eu

start() { # DAEMON NAME
	set -- "$1" "$2" run
	[ "$1" = fabric-links ] || set -- "$@" --gateway "$2" --config /etc/fabric/fabric.yaml
	daemon=$1
	shift 2
	# What the units' StateDirectory= and RuntimeDirectory= give them.
	install -d -m 700 "/var/lib/$daemon"
	install -d -m 750 "/run/$daemon"
	# A session of its own, so that no signal to the starter reaches it; setsid does not fork here,
	# hence the process id is the daemon's.
	setsid "/opt/fabric/bin/$daemon" "$@" </dev/null >>"/var/log/$daemon.log" 2>&1 &
	echo $! >"/run/$daemon.pid"
}

case "$#${1-}" in
2up)
	start fabric-links "$2"
	start fabric-site "$2"
	;;
3start) start "$2" "$3" ;;
2pid) cat "/run/$2.pid" ;;
*)
	echo "usage: gateway.sh up NAME | start DAEMON NAME | pid DAEMON" >&2
	exit 2
	;;
esac
