// Package interop runs the real daemons beside real neighbours, in network namespaces of its own, and looks at what each side then
// has: other programs' BGP and BFD (interop_test.go), IPv4 over a link of IPv6 (nexthop_test.go), FRR as a gateway (member_test.go), a
// hostile neighbour (hostile_test.go), many VRFs that have everything in common (vrfs_test.go).
//
// A short part runs in every `go test`; INTEROP=full runs all of it and writes the tables of docs/interop.md (`make interop`), those of
// the virtual machine with INTEROP_PLACE=vm (`make interop-vm`). The programs are built with go, unless INTEROP_BIN names a folder
// that has them: so the test binary also runs where no go is.
package interop
