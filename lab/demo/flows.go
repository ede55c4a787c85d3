package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"fabric/lab/clab"
	"fabric/lab/packets"
)

// flows are numbered UDP packets from each host to each host it should reach, at a steady pace.
type flows struct {
	all  []flow
	ends map[string]*packets.End
	// counted is the last number of each flow that an earlier count has seen.
	counted []uint64
	// dropped is softnetDrops at the last count.
	dropped uint64
}

// flow is one direction between two hosts; id is its place among those of the sender.
type flow struct {
	from, to string
	address  netip.Addr // the sender's
	id       int
}

// debt is how much a sender makes up for at once after the machine has kept it from sending: less than the queues on the way hold.
const debt = 20 * time.Millisecond

// startFlows starts them with perSecond packets a second each.
func (d *demo) startFlows(perSecond int) (*flows, error) {
	pairs, _ := d.expectations(clab.LabelTTLPrefix)
	f := &flows{ends: map[string]*packets.End{}, counted: make([]uint64, len(pairs)), dropped: softnetDrops()}
	targets := map[string][]netip.Addr{}
	for _, pair := range pairs {
		var both [2]netip.Addr
		for i, node := range pair {
			var err error
			if both[i], err = netip.ParseAddr(d.label(node, clab.LabelAddress)); err != nil {
				return nil, errors.Join(err, f.close())
			}
			if f.ends[node] != nil {
				continue
			}
			if err := d.lab.Node(node).Within(func() (err error) { f.ends[node], err = packets.Listen(both[i]); return err }); err != nil {
				delete(f.ends, node)
				return nil, errors.Join(fmt.Errorf("%s: %w", node, err), f.close())
			}
		}
		f.all = append(f.all, flow{from: pair[0], to: pair[1], address: both[0], id: len(targets[pair[0]])})
		targets[pair[0]] = append(targets[pair[0]], both[1])
	}
	// All listen by now: the first packets count too.
	for node, to := range targets {
		f.ends[node].Send(time.Second/time.Duration(perSecond*len(to)), debt, to...)
	}
	return f, nil
}

// count is what became of the packets of some time.
type count struct {
	sent, lost int
	// late is how late a sender was, at most: a loss beside a stall says more of the machine than of the fabric.
	late time.Duration
	// dropped packets are those that found a processor's queue of received packets full: the machine was too slow, whatever the fabric did.
	// The kernel counts them for all namespaces together.
	dropped uint64
	detail  []string
}

// count looks at what was sent since the last count, once it has had its time to arrive.
func (f *flows) count() (c count) {
	last := make([]uint64, len(f.all))
	for i, one := range f.all {
		last[i] = f.ends[one.from].Sent()[one.id]
	}
	for _, e := range f.ends {
		c.late = max(c.late, e.Late())
	}
	time.Sleep(onTheWay)
	for i, one := range f.all {
		sent := int(last[i] - f.counted[i])
		lost := f.ends[one.to].Missing(one.address, one.id, f.counted[i]+1, last[i])
		if sent == 0 {
			lost = 1
		}
		if lost > 0 {
			c.detail = append(c.detail, fmt.Sprintf("%s > %s: %d of %d", one.from, one.to, lost, sent))
		}
		c.sent += sent
		c.lost += lost
		f.counted[i] = last[i]
	}
	before := f.dropped
	f.dropped = softnetDrops()
	c.dropped = f.dropped - before
	return c
}

// softnetDrops is how many packets the kernel has dropped because net.core.netdev_max_backlog was reached; 0 if it does not say.
func softnetDrops() (sum uint64) {
	text, _ := os.ReadFile("/proc/net/softnet_stat")
	for line := range strings.Lines(string(text)) {
		// One line per processor, in hexadecimal: processed, dropped, ...
		if fields := strings.Fields(line); len(fields) > 1 {
			n, _ := strconv.ParseUint(fields[1], 16, 64)
			sum += n
		}
	}
	return sum
}

// close ends them.
func (f *flows) close() error {
	var errs []error
	for _, e := range f.ends {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}

func (c count) String() string {
	text := fmt.Sprintf("%d packets sent, %d lost", c.sent, c.lost)
	if c.lost > 0 {
		text += fmt.Sprintf(" (%s; the senders were late by up to %v; full queues dropped %d)", strings.Join(c.detail, ", "), c.late.Round(time.Millisecond), c.dropped)
	}
	return text
}
