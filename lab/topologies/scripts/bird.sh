# Runs Debian's BIRD, without its service manager: bird.sh up
set -eu
[ "${1-}" = up ] || { echo "usage: bird.sh up" >&2; exit 2; }
mkdir -p /run/bird
# It goes to the background by itself, once its configuration is read.
bird -c /etc/bird/bird.conf -D /var/log/bird.log
