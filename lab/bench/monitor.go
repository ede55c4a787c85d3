package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// event is one message of the kernel about a route or a next-hop object.
type event struct {
	at time.Time
	// kind is RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEXTHOP or RTM_DELNEXTHOP.
	kind uint16
	// table, protocol and prefix of a route; the prefix is invalid for a next-hop object.
	table    uint32
	protocol uint8
	prefix   netip.Prefix
}

// monitor notes what the kernel tells of routes and next-hop objects in a node.
type monitor struct {
	socket *nl.NetlinkSocket
	done   chan struct{}

	mu     sync.Mutex
	events []event
	err    error
}

// monitorBuffer is what 100,000 messages of routes that change at once need.
const monitorBuffer = 128 << 20

func newMonitor(n *node) (*monitor, error) {
	m := &monitor{done: make(chan struct{})}
	if err := n.within(func() (err error) {
		m.socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP)
		return err
	}); err != nil {
		return nil, fmt.Errorf("%s: netlink: %w", n.name, err)
	}
	if err := m.socket.SetReceiveBufferSize(monitorBuffer, true); err != nil {
		m.socket.Close()
		return nil, fmt.Errorf("%s: netlink: %w", n.name, err)
	}
	go m.read()
	return m, nil
}

func (m *monitor) read() {
	defer close(m.done)
	for {
		messages, _, err := m.socket.Receive()
		at := time.Now()
		m.mu.Lock()
		if err != nil {
			m.err = err
			m.mu.Unlock()
			return
		}
		for _, msg := range messages {
			if e, ok := parseEvent(msg); ok {
				e.at = at
				m.events = append(m.events, e)
			}
		}
		m.mu.Unlock()
	}
}

// mark forgets what was noted.
func (m *monitor) mark() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = nil
}

// seen is what was noted since the mark that is wanted; an error if the kernel had more to tell than the socket could hold.
func (m *monitor) seen(want func(event) bool) ([]event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, fmt.Errorf("netlink monitor: %w", m.err)
	}
	var out []event
	for _, e := range m.events {
		if want(e) {
			out = append(out, e)
		}
	}
	return out, nil
}

// count is how many messages that are wanted were noted since the mark.
func (m *monitor) count(want func(event) bool) (int, error) {
	events, err := m.seen(want)
	return len(events), err
}

func (m *monitor) close() {
	m.socket.Close()
	<-m.done
}

func every(event) bool { return true }

// parseEvent reads a message (rtnetlink(7)); false for what is neither a route nor a next-hop object, or cannot be read.
func parseEvent(m syscall.NetlinkMessage) (event, bool) {
	e := event{kind: m.Header.Type}
	switch e.kind {
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return e, true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
	default:
		return e, false
	}
	if len(m.Data) < unix.SizeofRtMsg {
		return e, false
	}
	family, bits := m.Data[0], int(m.Data[1])
	e.table, e.protocol = uint32(m.Data[4]), m.Data[5]
	to := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return e, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			if addr, ok := netip.AddrFromSlice(a.Value); ok {
				to = addr
			}
		case unix.RTA_TABLE:
			if len(a.Value) == 4 {
				e.table = binary.NativeEndian.Uint32(a.Value)
			}
		}
	}
	e.prefix = netip.PrefixFrom(to, bits)
	return e, e.prefix.IsValid()
}
