// Package bgp holds the speakers of a gateway: what the intent says of BGP compiled to values (Compile), and the Speaker
// that makes embedded GoBGP servers equal to them. GoBGP's types stop at this package.
//
// # Servers
//
// There is one GoBGP server for the fabric, whose neighbours are the other gateways and whose only family is L2VPN EVPN
// (IP prefix routes, type 5, RFC 9136), and one for each VRF with third-party peers, because a GoBGP server knows its
// neighbours by address alone. They start one after the other with the same selection options, since GoBGP keeps those
// in package variables.
//
//	neighbour ─► Adj-RIB-In ─► inbox ─► guard, own AS, import policy, max-prefix ─► rib.Table
//	                                                                                    │ feed
//	neighbour ◄─ Adj-RIB-Out ◄─ Loc-RIB ◄─ guard, export policy, next hop, per peer ◄────┘
//
// # Choosing is the RIB's business
//
// GoBGP is used as a speaker only. Each server's import policy rejects whatever comes from a neighbour, so that its
// Loc-RIB holds nothing but what this package puts there. What neighbours send is read from the Adj-RIB-In, before that
// policy. Three things follow. A path put there for announcement never competes with a neighbour's, so the RIB never
// chases its own output. GoBGP passes nothing on by itself: neither fabric paths from gateway to gateway, with its own
// next hop but another's VNI, nor a peer's transfer networks or default route to the next peer, past our guard. And a
// frozen table (max-prefix) is frozen for the other peers too.
//
// # One result per peer
//
// An ordinary GoBGP neighbour has no export policy of its own. Each third-party peer therefore gets a GoBGP VRF of its
// own, with a route target that only it imports; what the peer shall hear is computed here, with our policy language, and
// injected as a path of that VRF. That costs one path per peer and prefix and needs no translation of policies.
//
// # Concurrency
//
// Run owns the servers, the neighbours and all that is kept about them, in one goroutine. GoBGP's callbacks convert
// and put what they got in an inbox with one slot per prefix, and return; GoBGP's own queues are unbounded, so a
// callback must never wait. The RIB's feed has one slot per key likewise. Configure leaves the wanted state and a wake;
// Peers and Rejected read what Run last published.
//
// # Restart
//
// When the context of Run ends, nothing is said to the neighbours: SIGTERM means restart, and a CEASE would make them drop
// our routes. The sockets close with the process, which starts graceful restart (RFC 4724) at the neighbours. Close is
// for tests and for leaving for good.
package bgp
