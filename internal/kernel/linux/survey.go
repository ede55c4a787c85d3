package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// Survey lists what stands on the host, ours or not. It changes nothing. Parts that cannot be read are named in the result.
func (h *Host) Survey(ctx context.Context) kernel.Survey {
	var s kernel.Survey
	unread := func(part string, err error) {
		if err != nil {
			s.Unread = append(s.Unread, kernel.Unread{Part: part, Err: err})
		}
	}
	n, err := h.names(ctx)
	unread("devices", err)
	if err == nil {
		for _, l := range n.links {
			s.Devices = append(s.Devices, kernel.Device{
				Name: l.name, Alias: l.alias, Kind: kernel.LinkKind(l.kind), Master: n.name[l.master], MTU: int(l.mtu), Up: l.up,
				Table: l.table, VXLAN: l.vxlan,
			})
		}
		slices.SortFunc(s.Devices, func(a, b kernel.Device) int { return cmp.Compare(a.Name, b.Name) })
		all, err := h.addresses(ctx, n)
		unread("addresses", err)
		for k := range all {
			s.Addresses = append(s.Addresses, k)
		}
		slices.SortFunc(s.Addresses, kernel.AddressKey.Compare)
		if h.features.NextHops {
			s.NextHops, err = h.nextHops(ctx, n)
			unread("next hops", err)
		}
	}
	rules, err := h.rules(ctx)
	unread("rules", err)
	for _, r := range rules {
		s.Rules = append(s.Rules, kernel.FoundRule{Key: r.key, Rule: r.rule, Protocol: r.protocol, Odd: r.odd})
	}
	s.VXLAN = h.knowsKind("vxlan")
	unread("nftables", h.within(func() error { return surveyFilters(&s) }))
	return s
}

// families are nft's, by name.
var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	nftables.TableFamilyARP: "arp", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyNetdev: "netdev",
}

// hooks are those of the families ip, ip6 and inet.
var hooks = []string{"prerouting", "input", "forward", "output", "postrouting"}

func surveyFilters(s *kernel.Survey) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return explain(err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return explain(err)
	}
	for _, t := range tables {
		found := kernel.FilterTable{Family: families[t.Family], Name: t.Name}
		for _, ch := range chains {
			if ch.Table.Name != t.Name || ch.Table.Family != t.Family {
				continue
			}
			rules, err := c.GetRules(t, ch)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, os.ErrNotExist) {
				continue // gone meanwhile
			}
			if err != nil {
				return fmt.Errorf("chain %s of table %s: %w", ch.Name, t.Name, explain(err))
			}
			if ch.Name == ownerChain && len(rules) > 0 && found.Comment == "" {
				found.Comment, _ = userdata.GetString(rules[0].UserData, userdata.TypeComment)
			}
			for _, r := range rules {
				if packets, ok := clamped(r.Exprs); ok {
					found.Clamps++
					found.Clamped += packets
				}
			}
			if ch.Type != nftables.ChainTypeFilter || ch.Hooknum == nil || int(*ch.Hooknum) >= len(hooks) {
				continue
			}
			drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop ||
				len(rules) > 0 && dropsAll(rules[len(rules)-1].Exprs)
			s.Chains = append(s.Chains, kernel.FilterChain{
				Family: found.Family, Table: t.Name, Name: ch.Name, Hook: hooks[*ch.Hooknum], Drops: drops,
			})
		}
		s.Tables = append(s.Tables, found)
	}
	return nil
}

// clamped reports whether a rule sets the MSS of TCP, and how many packets came so far.
func clamped(rule []expr.Any) (packets uint64, ok bool) {
	const maxseg = 2
	for _, e := range rule {
		switch x := e.(type) {
		case *expr.Counter:
			packets = x.Packets
		case *expr.Exthdr:
			ok = ok || x.Op == expr.ExthdrOpTcpopt && x.Type == maxseg && x.SourceRegister != 0
		}
	}
	return packets, ok
}

// dropsAll reports whether a rule drops or rejects whatever reaches it.
func dropsAll(rule []expr.Any) bool {
	drops := false
	for _, e := range rule {
		switch x := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Verdict:
			drops = x.Kind == expr.VerdictDrop
		case *expr.Reject:
			drops = true
		default:
			return false
		}
	}
	return drops
}
