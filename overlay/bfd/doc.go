// Package bfd tells within milliseconds that a neighbour can no longer be reached: Bidirectional Forwarding Detection in
// asynchronous mode (RFC 5880) over one hop (RFC 5881) and several (RFC 5883), IPv4, IPv6 and link-local.
//
// Three layers, each usable without the next:
//
//   - [Packet] with [Decode] and [Packet.Encode]: the wire format and every check that needs no session;
//   - [Session]: the protocol as a value stepped with time. It has no clock, socket or goroutine;
//   - [Engine]: sockets, one thread and one timer heap for all sessions of a process.
//
// A session's life (RFC 5880 section 6.2); the words on the arrows are the state in the neighbour's packet, and silence is a detection
// time without one:
//
//	         Down                 Init, Up
//	Down ───────────────► Init ───────────────► Up
//	 │ ▲ ▲                 │                    ▲│
//	 │ │ └─────────────────┘                    ││
//	 │ │     AdminDown, silence                 ││
//	 │ └────────────────────────────────────────┼┘
//	 │         Down, AdminDown, silence         │
//	 └──────────────────────────────────────────┘
//	                    Init
//
// The operator's AdminDown can be entered from every state, and is left to Down.
//
// Echo and demand mode are never asked for; a neighbour that asks for demand mode is honoured.
package bfd
