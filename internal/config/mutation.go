package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
)

// The actions of a Mutation.
const (
	PeerAdd     = "peer add"
	PeerDel     = "peer del"
	PeerEnable  = "peer enable"
	PeerDisable = "peer disable"
	PrefixAdd   = "prefix add"
	PrefixDel   = "prefix del"
	SiteDrain   = "site drain"
	SiteUndrain = "site undrain"
)

// Mutation is one change to one gateway's part of the document, made at run time. It is kept as it was asked for, without
// defaults, and replayed when the file under it changes.
type Mutation struct {
	// Action is one of the actions above.
	Action string `json:"action"`
	// VRF of a peer or prefix. A VRF that the gateway does not have yet is attached to it.
	VRF string `json:"vrf,omitempty"`
	// Peer to add.
	Peer *Peer `json:"peer,omitempty"`
	// Prefix to add; to delete one, its Prefix alone counts.
	Prefix *Prefix `json:"prefix,omitempty"`
	// Name of the peer to delete, enable or disable: its address where it was given no name.
	Name string `json:"name,omitempty"`
}

// String says what the mutation does, in the words of the command line.
func (m Mutation) String() string {
	switch {
	case m.Action == SiteDrain || m.Action == SiteUndrain:
		return m.Action
	case m.Peer != nil && m.Action == PeerAdd:
		return fmt.Sprintf("%s %s in %s (AS %d)", m.Action, m.peerName(), m.VRF, m.Peer.ASN)
	case m.Prefix != nil:
		return fmt.Sprintf("%s %s in %s", m.Action, m.Prefix.Prefix, m.VRF)
	}
	return fmt.Sprintf("%s %s in %s", m.Action, m.Name, m.VRF)
}

// peerName is the name of the peer that the mutation is about.
func (m Mutation) peerName() string {
	if m.Action != PeerAdd {
		return m.Name
	}
	if m.Peer.Name == "" {
		return m.Peer.Address.String()
	}
	return m.Peer.Name
}

// Apply returns the document changed by a mutation at a gateway, with defaults and validated whole; d stays as it is. The
// error is of type Problems where the result is not valid, and wraps os.ErrExist or os.ErrNotExist where
// what is to be added is there already or what is to be changed is not.
func Apply(d *Document, gateway string, m Mutation) (*Document, error) {
	c := d.Clone()
	already, err := m.change(c, gateway)
	if err != nil {
		return nil, err
	}
	if already {
		switch m.Action {
		case PeerAdd, PrefixAdd:
			return nil, fmt.Errorf("%s: %w; nothing to change", m, os.ErrExist)
		case PeerDel, PrefixDel:
			return nil, fmt.Errorf("%s: %w; look at the list of this gateway", m, os.ErrNotExist)
		}
	}
	c.setDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// check says what is wrong with a mutation by itself.
func (m Mutation) check() error {
	needs := func(ok bool, what string) error {
		if !ok {
			return fmt.Errorf("%s: needs %s", m.Action, what)
		}
		return nil
	}
	switch m.Action {
	case PeerAdd:
		return errors.Join(needs(m.VRF != "", "a VRF"), needs(m.Peer != nil, "a peer"))
	case PeerDel, PeerEnable, PeerDisable:
		return errors.Join(needs(m.VRF != "", "a VRF"), needs(m.Name != "", "the name of a peer"))
	case PrefixAdd, PrefixDel:
		return errors.Join(needs(m.VRF != "", "a VRF"), needs(m.Prefix != nil && m.Prefix.Prefix.IsValid(), "a prefix"))
	case SiteDrain, SiteUndrain:
		return nil
	}
	return fmt.Errorf("unknown action %q; use peer add, del, enable, disable, prefix add, del, site drain or undrain", m.Action)
}

// change makes the change in d, without defaults or validation. It returns true if d is already as the mutation wants.
func (m Mutation) change(d *Document, gateway string) (already bool, err error) {
	if err := m.check(); err != nil {
		return false, err
	}
	_, g, ok := d.Find(gateway)
	if !ok {
		return false, fmt.Errorf("%s: gateway %q is not in the document: %w", m, gateway, os.ErrNotExist)
	}
	if m.Action == SiteDrain || m.Action == SiteUndrain {
		drain := m.Action == SiteDrain
		already = g.Drained == drain
		g.Drained = drain
		return already, nil
	}
	if _, ok := d.VRF(m.VRF); !ok {
		return false, fmt.Errorf("%s: VRF %q is not in the document: %w", m, m.VRF, os.ErrNotExist)
	}
	a, ok := g.VRF(m.VRF)
	if !ok {
		if m.Action == PeerDel || m.Action == PrefixDel {
			return true, nil
		}
		if m.Action == PeerAdd || m.Action == PrefixAdd {
			g.VRFs = append(g.VRFs, GatewayVRF{VRF: m.VRF})
			a = &g.VRFs[len(g.VRFs)-1]
		} else {
			a = &GatewayVRF{}
		}
	}
	if m.Action == PrefixAdd || m.Action == PrefixDel {
		return m.changePrefix(a)
	}
	return m.changePeer(d, g, a)
}

// changePeer makes the change to the peers of a VRF.
func (m Mutation) changePeer(d *Document, g *Gateway, a *GatewayVRF) (already bool, err error) {
	name := m.peerName()
	i := slices.IndexFunc(a.Peers, func(p Peer) bool {
		return p.Name == name || p.Name == "" && p.Address.String() == name
	})
	switch m.Action {
	case PeerAdd:
		if i < 0 {
			a.Peers = append(a.Peers, *m.Clone().Peer)
			return false, nil
		}
		had, want := a.Peers[i], *m.Clone().Peer
		had.setDefaults(&d.Fabric, g)
		want.setDefaults(&d.Fabric, g)
		if !reflect.DeepEqual(had, want) {
			return false, fmt.Errorf("%s: the peer exists with other settings: %w; delete it first", m, os.ErrExist)
		}
		return true, nil
	case PeerDel:
		if i < 0 {
			return true, nil
		}
		a.Peers = without(a.Peers, i)
		return false, nil
	}
	if i < 0 {
		return false, fmt.Errorf("%s: %w; look at the list of this gateway's peers", m, os.ErrNotExist)
	}
	disable := m.Action == PeerDisable
	already = a.Peers[i].Disabled == disable
	a.Peers[i].Disabled = disable
	return already, nil
}

// changePrefix makes the change to the prefixes of a VRF.
func (m Mutation) changePrefix(a *GatewayVRF) (already bool, err error) {
	i := slices.IndexFunc(a.Prefixes, func(p Prefix) bool { return p.Prefix == m.Prefix.Prefix })
	switch {
	case m.Action == PrefixDel && i < 0:
		return true, nil
	case m.Action == PrefixDel:
		a.Prefixes = without(a.Prefixes, i)
		return false, nil
	case i < 0:
		a.Prefixes = append(a.Prefixes, *m.Clone().Prefix)
		return false, nil
	}
	had, want := a.Prefixes[i], *m.Prefix
	if had.Announced() == want.Announced() {
		want.Announce = had.Announce
	}
	if !reflect.DeepEqual(had, want) {
		return false, fmt.Errorf("%s: the prefix exists with other settings: %w; delete it first", m, os.ErrExist)
	}
	return true, nil
}

// without removes the i-th element; a list without elements is nil, as Parse leaves it.
func without[T any](list []T, i int) []T {
	if len(list) == 1 {
		return nil
	}
	return slices.Delete(list, i, i+1)
}

// key is what two mutations about the same thing have in common.
func (m Mutation) key() string {
	switch m.Action {
	case PrefixAdd, PrefixDel:
		return "prefix " + m.VRF + " " + m.Prefix.Prefix.String()
	case SiteDrain, SiteUndrain:
		return "site"
	}
	return "peer " + m.VRF + " " + m.peerName()
}

// squash returns the shortest list of mutations that does the same: at most a deletion, an addition and a switch for
// each thing. Without it the list would grow with every change for as long as the fabric lives.
func squash(ms []Mutation) []Mutation {
	var out []Mutation
	for _, m := range ms {
		drop := func(actions ...string) (dropped bool) {
			out = slices.DeleteFunc(out, func(o Mutation) bool {
				hit := o.key() == m.key() && slices.Contains(actions, o.Action)
				dropped = dropped || hit
				return hit
			})
			return dropped
		}
		switch m.Action {
		case PeerDel:
			drop(PeerEnable, PeerDisable)
			if drop(PeerAdd) {
				continue // added and deleted; a deletion before that stays
			}
		case PrefixDel:
			if drop(PrefixAdd) {
				continue
			}
		case PeerEnable, PeerDisable:
			drop(PeerEnable, PeerDisable)
		case SiteDrain, SiteUndrain:
			drop(SiteDrain, SiteUndrain)
		}
		out = append(out, m)
	}
	return out
}

// replay applies mutations to a document without them. It returns the result, the mutations that still say something
// (one that the file says by now is dropped), and a sentence for each that can not be applied; the result leaves those out.
func replay(base *Document, gateway string, ms []Mutation) (d *Document, kept []Mutation, conflicts []string) {
	all := func(d *Document) error {
		for _, m := range ms {
			already, err := m.change(d, gateway)
			if err != nil {
				return err
			}
			if !already {
				kept = append(kept, m)
			}
		}
		d.setDefaults()
		return d.Validate()
	}
	d = base.Clone()
	if all(d) == nil {
		return d, kept, nil
	}
	// Something is wrong: go one by one to tell which.
	d, kept = base.Clone(), nil
	for _, m := range ms {
		next := d.Clone()
		already, err := m.change(next, gateway)
		if err == nil {
			next.setDefaults()
			err = next.Validate()
		}
		if err != nil {
			conflicts = append(conflicts, conflict(m, err))
			continue
		}
		d = next
		if !already {
			kept = append(kept, m)
		}
	}
	if len(conflicts) == 0 && d.Validate() != nil {
		conflicts = append(conflicts, d.Validate().Error())
	}
	return d, kept, conflicts
}

// conflict says in one line why a mutation can not be applied.
func conflict(m Mutation, err error) string {
	var ps Problems
	if errors.As(err, &ps) {
		return fmt.Sprintf("%s: %s", m, ps[0])
	}
	return err.Error()
}
