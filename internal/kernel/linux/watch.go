package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// watchGroups are the multicast groups of the event socket.
var watchGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_NEXTHOP,
}

// Watch calls wake whenever somebody else changed the kernel, until ctx ends; it returns nil then. Our own changes are told
// by the sending socket (nft tables: by the name of the process) and stay silent; so do foreign routes and
// unreachable-state noise of neighbours. When events were lost (ENOBUFS) it wakes all.
func (h *Host) Watch(ctx context.Context, wake func(kernel.Changed)) error {
	return h.watch(ctx, receiveBuffer, wake)
}

func (h *Host) watch(ctx context.Context, buffer int, wake func(kernel.Changed)) error {
	fd, err := h.listen(unix.NETLINK_ROUTE, buffer, watchGroups...)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	nft, err := h.listen(unix.NETLINK_NETFILTER, buffer, unix.NFNLGRP_NFTABLES)
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT):
		nft = -1 // a kernel without nftables; poll passes it over
	case err != nil:
		return err
	default:
		defer unix.Close(nft)
	}
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return fmt.Errorf("name of this process: %w", err)
	}
	filters := func(hd header, body []byte) kernel.Changed {
		return filterMeaning(hd.typ, body, strings.TrimSpace(string(self)))
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(stop)
	// The function runs at most once, and is waited for, so it never writes to a descriptor closed and reused.
	ended := make(chan struct{})
	unregister := context.AfterFunc(ctx, func() {
		defer close(ended)
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !unregister() {
			<-ended
		}
	}()
	// Everything may have changed before the groups were joined.
	wake(kernel.ChangedAll)
	buf := make([]byte, 64<<10)
	for {
		fds := []unix.PollFd{
			{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(nft), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for events: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		var changed kernel.Changed
		if nft >= 0 {
			if changed, err = drain(nft, buf, kernel.ChangedFilters, filters); err != nil {
				return err
			}
		}
		more, err := drain(fd, buf, kernel.ChangedAll, h.foreignMeaning)
		if err != nil {
			return err
		}
		if changed |= more; changed != 0 {
			wake(changed)
		}
	}
}

// listen opens a socket that hears the groups of a netlink protocol.
func (h *Host) listen(protocol, buffer int, groups ...int) (fd int, err error) {
	err = h.within(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open event socket: %w", err)
	}
	growReceiveBuffer(fd, buffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind event socket: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("join event group %d of netlink protocol %d: %w", g, protocol, explain(err))
		}
	}
	return fd, nil
}

// drain reads all events that are there; lost is what to look at when some were lost.
func drain(fd int, buf []byte, lost kernel.Changed, meaning func(header, []byte) kernel.Changed) (changed kernel.Changed, err error) {
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return changed, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			changed |= lost
			continue
		case err != nil:
			return changed, fmt.Errorf("read events: %w", err)
		}
		err = parse(buf[:n], func(hd header, body []byte) error {
			changed |= meaning(hd, body)
			return nil
		})
		if err != nil { // a datagram cut short says nothing reliable
			changed |= lost
		}
	}
}

// foreignMeaning says what an event asks to look at; nothing when one of our own sockets caused it.
func (h *Host) foreignMeaning(hd header, body []byte) kernel.Changed {
	h.mu.Lock()
	own := h.ports[hd.port]
	h.mu.Unlock()
	if own {
		return 0
	}
	return meaning(hd.typ, body)
}

// Of netfilter events (linux/netfilter/nfnetlink.h, nf_tables.h): bytes of struct nfgenmsg, and NFTA_GEN_PROC_NAME.
const (
	nfgenmsgLen = 4
	genProcName = 3
)

// filterMeaning reads the event that ends each nft transaction, which names the process that made it. Process ids are those of
// threads in another namespace; the name is enough: nobody else is called so.
func filterMeaning(typ uint16, body []byte, self string) kernel.Changed {
	if typ != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(body) < nfgenmsgLen {
		return 0
	}
	changed := kernel.ChangedFilters
	attrs(body[nfgenmsgLen:], func(t uint16, d []byte) {
		if t == genProcName && cstring(d) == self {
			changed = 0
		}
	})
	return changed
}

// meaning says what an event of somebody else asks to look at. A link event is about everything that stands on links: the
// kernel deletes routes and next hops of a link that goes down without saying so.
func meaning(typ uint16, body []byte) kernel.Changed {
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return kernel.ChangedLinks | kernel.ChangedAddresses | kernel.ChangedRoutes | kernel.ChangedNextHops | kernel.ChangedNeighbours
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return kernel.ChangedAddresses | kernel.ChangedRoutes
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(body) > 5 && (body[5] == kernel.Protocol || body[5] == kernel.ProtocolLinks) {
			return kernel.ChangedRoutes
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return kernel.ChangedRules
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return kernel.ChangedNextHops | kernel.ChangedRoutes
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(body) >= ndmsgLen && native.Uint16(body[8:])&unix.NUD_PERMANENT != 0 {
			return kernel.ChangedNeighbours
		}
	}
	return 0
}
