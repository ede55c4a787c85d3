package netns

import (
	"errors"
	"fmt"

	"fabric/lab/clab"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// connect sets lo up in every node and makes the links.
func (l *Lab) connect() (err error) {
	ends := map[string]*end{}
	defer func() {
		for _, e := range ends {
			err = errors.Join(err, e.close())
		}
	}()
	for _, config := range l.Topology.Nodes {
		e, err := openEnd(l.nodes[config.Name].NetNS())
		if err != nil {
			return fmt.Errorf("node %s: %w", config.Name, err)
		}
		ends[config.Name] = e
		if err := e.up("lo"); err != nil {
			return fmt.Errorf("node %s: %w", config.Name, err)
		}
	}
	for _, link := range l.Topology.Links {
		if err := makeLink(link, ends[link.A.Node], ends[link.B.Node]); err != nil {
			return fmt.Errorf("link %v - %v: %w", link.A, link.B, err)
		}
	}
	return nil
}

// makeLink makes a veth pair from within one end's namespace, the peer straight in the other's: neither
// name ever appears on the host.
func makeLink(link clab.Link, a, b *end) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.NewLinkAttrs(),
		PeerName:      link.B.Interface,
		PeerNamespace: netlink.NsFd(int(b.ns)),
		PeerMTU:       uint32(link.MTU),
	}
	veth.Name = link.A.Interface
	veth.MTU = link.MTU
	if err := a.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := a.up(link.A.Interface); err != nil {
		return err
	}
	return b.up(link.B.Interface)
}

// end is a netlink socket inside a node.
type end struct {
	ns     netns.NsHandle
	handle *netlink.Handle
}

func openEnd(path string) (*end, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &end{ns: ns, handle: handle}, nil
}

func (e *end) close() error {
	e.handle.Close()
	return e.ns.Close()
}

func (e *end) up(name string) error {
	link, err := e.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := e.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s up: %w", name, err)
	}
	return nil
}
