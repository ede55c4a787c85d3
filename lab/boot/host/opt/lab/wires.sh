#!/bin/sh
# The machine's network cards, and the namespaces at their other ends:
#
#   a-host eth1 --- eth1 [this machine, a-gw] eth0 === eth0 [b-gw] eth1 --- eth1 b-host
#
# eth0 has no address here: that is systemd-networkd's business. eth1's addresses are fabric-site's.
set -eu
for node in b-gw a-host b-host; do
	ip netns add $node
	ip -n $node link set lo up
done
ip link add eth0 type veth peer name eth0 netns b-gw
ip link add eth1 type veth peer name eth1 netns a-host
ip -n b-gw link add eth1 type veth peer name eth1 netns b-host
ip link set eth1 up

ip netns exec b-gw sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
ip -n b-gw address add 203.0.113.2/24 dev eth0
ip -n b-gw link set eth0 up
ip -n b-gw link set eth1 up
n=0
for host in a-host b-host; do
	n=$((n + 1))
	ip -n $host link set eth1 up
	ip -n $host address add 10.$n.0.10/24 dev eth1
	ip -n $host address add fd0$n::10/64 dev eth1 nodad
	ip -n $host route add default via 10.$n.0.1
	ip -n $host -6 route add default via fd0$n::1
done
