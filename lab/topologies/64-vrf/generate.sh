#!/bin/sh
# Writes this topology for N VRFs, 64 if not said: sh generate.sh [N]
#
# Makes 64-vrf.clab.yml, fabric.yaml, bird.conf and expected.json; what is committed is N = 64. Passwords are made by prepare.sh.
set -eu
cd "$(dirname "$0")"
n=${1:-64}
case $n in '' | *[!0-9]*) echo "generate.sh: $n is no number" >&2; exit 2 ;; esac
[ "$n" -ge 1 ] && [ "$n" -le 200 ] || { echo "generate.sh: $n VRFs: want 1 to 200" >&2; exit 2; }
said='Written by generate.sh; change that and run it again.'

each() { # FORMAT: one line per VRF, @ being its number, % its number and 1000, ~ a comma but in the last line
	awk -v n="$n" -v format="$1" 'BEGIN {
		for (i = 1; i <= n; i++) {
			line = format
			gsub("@", i, line)
			gsub("%", i + 1000, line)
			gsub("~", i < n ? "," : "", line)
			print line
		}
	}'
}

gateway() { # NAME SITE ADDRESS
	cat <<END
    $1:
      labels: {fabric.role: gateway, fabric.site: $2}
      binds:
        - ../../../bin:/opt/fabric/bin:ro
        - ../scripts/gateway.sh:/opt/fabric/gateway.sh:ro
        - .run/$1:/etc/fabric:ro
      exec:
        - ip address add $3/24 dev eth0
        - sh /opt/fabric/gateway.sh up $1
END
}

{
	cat <<END
# $n VRFs of one gateway that all look the same to their neighbours, and a site far away that has them too. $said
#
#   ce ==(n times 10.1.0.0/24)== gw === far-gw
#
# The router ce (BIRD) has a table and an interface per VRF. Its address, its AS number and its prefixes are the same in all of
# them; what differs is the interface and the TCP MD5 password. far-gw has a loopback in each VRF, the same in all.
#
# Interfaces of gw: eth0 underlay, eth1 and so on to the VRFs V1 and so on.
name: 64-vrf
topology:
  defaults:
    kind: linux
    image: fabric-lab:latest # see ../scripts/image.sh
    network-mode: none
    cmd: sleep infinity
    sysctls:
      net.ipv4.conf.all.rp_filter: "0"
      net.ipv4.conf.default.rp_filter: "0"
      net.ipv4.conf.all.arp_ignore: "1" # the same address on all interfaces: each answers for itself
      net.ipv4.conf.all.arp_announce: "2"
      net.ipv6.conf.all.disable_ipv6: "0"
      net.ipv6.conf.default.disable_ipv6: "0"
      net.ipv6.conf.default.accept_ra: "0"
      net.ipv6.conf.default.accept_dad: "0"
  nodes:
END
	gateway gw dc 203.0.113.1
	gateway far-gw far 203.0.113.2
	cat <<END
    ce:
      labels: {fabric.role: router, fabric.site: dc}
      binds:
        - ../scripts/bird.sh:/opt/fabric/bird.sh:ro
        - bird.conf:/etc/bird/bird.conf:ro
        - .run/passwords.conf:/etc/bird/passwords.conf:ro
      exec:
END
	each '        - ip address add 10.1.0.2/24 dev eth@'
	echo '        - sh /opt/fabric/bird.sh up'
	echo '  links:'
	echo '    - {endpoints: ["gw:eth0", "far-gw:eth0"], mtu: 1500}'
	each '    - {endpoints: ["gw:eth@", "ce:eth@"], mtu: 1500}'
} >64-vrf.clab.yml

{
	cat <<END
# $said
fabric:
  name: 64-vrf
  bgp: {keepalive: 10s, hold: 30s, connect-retry: 2s}
  bfd: {interval: 1s}         # detected within 3 s: also where the machine is slow

vrfs:
END
	each '  - {name: V@, table: %, vni: %}'
	cat <<END

sites:
  - name: dc
    gateways:
      - name: gw
        asn: 4200000001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "kbtmTZfQF5F5Iz8Y0gX5oxL4MYJb8wK9qXOqCzV0y14="}
        vrfs:
END
	each '          - {vrf: V@, interfaces: [{name: eth@, addresses: [10.1.0.1/24]}], peers: [{name: ce, address: 10.1.0.2, asn: 64930, passive: true, password-file: /etc/fabric/keys/V@.md5}]}'
	cat <<END
  - name: far
    gateways:
      - name: far-gw
        asn: 4200000002
        vtep: 10.255.0.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "0nMfoYz5vh1zRKVpRyEm8hwMfMz3Jm0a9V7q3hX0vXo="}
        vrfs:
END
	each '          - {vrf: V@, loopbacks: [10.30.0.1/32]}'
} >fabric.yaml

{
	cat <<END
# $said
log "/var/log/bird.log" all;
router id 10.1.0.2;
include "/etc/bird/passwords.conf";

protocol device {}
template bgp fabric {
	local 10.1.0.2 as 64930;
	hold time 30;
	connect retry time 2;
	connect delay time 1;
	error wait time 1, 4;
}
END
	each 'ipv4 table t@; protocol static s@ { ipv4 { table t@; }; route 10.20.0.0/24 blackhole; } protocol bgp gw@ from fabric { neighbor 10.1.0.1 as 4200000001; interface "eth@"; password p@; ipv4 { table t@; import all; export where source = RTS_STATIC; }; }'
} >bird.conf

{
	echo '{'
	echo '  "within": "90s",'
	echo '  "nodes": {'
	echo '    "gw": {'
	echo '      "speaks": "fabric",'
	echo '      "tunnels": {"gw/far-gw/0": "up active"},'
	echo '      "peers": {'
	each '        "V@/ce": "established",'
	echo '        "far-gw": "established"'
	echo '      },'
	echo '      "routes": {'
	each '        "V@": {"10.1.0.0/24": "connected gw", "10.20.0.0/24": "peer ce", "10.30.0.1/32": "fabric far-gw"}~'
	echo '      }'
	echo '    },'
	echo '    "far-gw": {'
	echo '      "speaks": "fabric",'
	echo '      "tunnels": {"far-gw/gw/0": "up active"},'
	echo '      "peers": {"gw": "established"},'
	echo '      "routes": {'
	each '        "V@": {"10.20.0.0/24": "fabric gw", "10.30.0.1/32": "connected far-gw"}~'
	echo '      }'
	echo '    },'
	echo '    "ce": {'
	echo '      "speaks": "bird",'
	echo '      "peers": {'
	each '        "gw@": "established"~'
	echo '      },'
	echo '      "routes": {'
	each '        "t@": {"10.20.0.0/24": "s@", "10.30.0.1/32": "gw@"}~'
	echo '      }'
	echo '    }'
	echo '  }'
	echo '}'
} >expected.json
