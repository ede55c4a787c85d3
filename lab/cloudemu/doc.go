// Package cloudemu is an emulator of the Alibaba Cloud calls a route
// synchroniser makes: the VPC and ECS RPC APIs, the instance metadata service,
// and a data plane that turns the active entries of a route table into kernel
// routes.
//
// It is built to hurt as the real service does. Every write is an asynchronous
// task, one VPC runs one task at a time, a second write meanwhile is refused,
// reads may lag behind writes, calls are throttled, and faults can be ordered
// through the control API ([Server.Control]). It shares no code with the
// vendor's SDK, so that it cannot share its mistakes.
//
// # Listeners
//
// [Server.API] answers the RPC calls (any path, parameters in query and form)
// and, to loopback peers only, the control API below /_emu/.
// [Server.Control] is the control API alone, for a unix socket.
// [Server.Metadata] answers as 100.100.100.200 does. It recognises the asking
// instance by its source address, as the cloud does by its port.
//
// # Seed
//
// The world is given as one JSON document, see [Seed]; unknown keys are
// refused. Only "regions", "vpcs" and a key or a role are needed. Example:
//
//	{
//	  "account": "1234567890123456",
//	  "randSeed": 1,
//	  "regions": [{"id": "cn-shenzhen", "name": "China (Shenzhen)"}],
//	  "keys": [{
//	    "id": "LTAIexample", "secret": "example-secret",
//	    "policy": [{"actions": ["vpc:*", "ecs:Describe*"]},
//	               {"actions": ["vpc:*RouteEntry"], "resources": ["acs:vpc:*:*:routetable/vtb-sz1"]}]
//	  }],
//	  "roles": [{"name": "fabric", "ttlSeconds": 3600, "policy": [{"actions": ["*"]}]}],
//	  "vpcs": [{
//	    "id": "vpc-sz1", "region": "cn-shenzhen", "cidr": "172.18.0.0/16",
//	    "vrouterId": "vrt-sz1",
//	    "vswitches": [{"id": "vsw-sz1", "cidr": "172.18.171.0/24", "zone": "cn-shenzhen-a"}],
//	    "routeTables": [{
//	      "id": "vtb-sz1", "type": "System",
//	      "entries": [
//	        {"cidr": "192.0.2.0/24", "nextHopType": "Instance", "nextHopId": "i-host", "name": "somebody-else"},
//	        {"cidr": "10.9.0.0/16", "type": "CEN", "nextHopType": "Attachment", "nextHopId": "tr-attach-1"},
//	        {"cidr": "10.8.0.0/16", "serviceType": "TR", "nextHopType": "Attachment", "nextHopId": "tr-attach-1"}
//	      ]
//	    }],
//	    "instances": [
//	      {"id": "i-gw", "vswitch": "vsw-sz1", "privateIp": "172.18.171.245", "eip": "203.0.113.10",
//	       "role": "fabric", "httpTokens": "required"},
//	      {"id": "i-host", "vswitch": "vsw-sz1", "privateIp": "172.18.171.247"}
//	    ],
//	    "haVips": [{"id": "havip-1", "vswitch": "vsw-sz1", "ip": "172.18.171.250", "master": "i-gw"}]
//	  }],
//	  "quotas": {"routeEntries": 200, "haVipRouteEntries": 5},
//	  "rates": {"write": 60, "modify": 300, "describeRouteTables": 120, "read": 600}
//	}
//
// Entries of the seed without a type are custom entries of another user; CEN,
// BGP and ECR entries are dynamic ones; serviceType TR is a managed one. System
// entries (one per vSwitch and 100.64.0.0/10) are added by themselves.
//
// # Control API
//
// JSON below /_emu/:
//
//	POST seed      the whole world anew (a Seed)
//	GET  state     the world as it is, without secrets
//	POST tick      {"ms": 500}: move the clock; ends tasks of the profile "stuck"
//	POST profile   {"name": "slow"}, or any field of Profile on top of a name
//	POST fault     a Fault; DELETE fault removes them all, GET fault lists them
//	GET  requests  the recorded calls and what can be concluded from them; DELETE forgets them
//	POST external  an External: another user's change of a route entry, at once
//	POST instance  {"id": "i-gw", "op": "start|stop|release|moveEni", "eni": "eni-1", "to": "i-b"}
//	POST quota     {"table": "vtb-1", "routeEntries": 10, "haVipRouteEntries": 5}
//	POST vpc       {"id": "vpc-1 or vsw-1", "status": "Pending"}
//	POST metadata  {"delayMs": 100, "outage": true, "rotate": "role"}
//	GET  fib       ?table=vtb-1&dst=10.0.0.1: the hop that is active now, and the history
package cloudemu
