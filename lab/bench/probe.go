package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"fabric/lab/packets"
)

// probe is an end of flows of numbered packets, in a process of its own in a node: it sends to some addresses and notes what it
// receives from other probes.
type probe struct {
	*process
	in      io.Writer
	answers *json.Decoder
	name    string
}

// probeCommand is the hidden command that sends and receives numbered packets as a process of its own.
const probeCommand = "probe-end"

// startProbe starts a probe in a node that sends that many packets per second, all in all, to each of some addresses in turn.
func startProbe(n *node, local netip.Addr, perSecond int, to ...netip.Addr) (*probe, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = inRead.Close() }()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		_ = inWrite.Close()
		return nil, err
	}
	defer func() { _ = outWrite.Close() }()
	words := make([]string, len(to))
	for i, a := range to {
		words[i] = a.String()
	}
	p, err := n.startWith(probeCommand, inRead, outWrite,
		self, probeCommand, "-local", local.String(), "-to", strings.Join(words, ","), "-pps", fmt.Sprint(perSecond))
	if err != nil {
		_, _ = inWrite.Close(), outRead.Close()
		return nil, err
	}
	return &probe{process: p, in: inWrite, answers: json.NewDecoder(outRead), name: n.name}, nil
}

func (p *probe) ask(q packets.Query) (r packets.Report, err error) {
	if err = json.NewEncoder(p.in).Encode(q); err == nil {
		err = p.answers.Decode(&r)
	}
	if err != nil {
		return r, fmt.Errorf("probe in %s: %w: %s", p.name, err, p.lastWords())
	}
	return r, nil
}

// mark starts counting anew.
func (p *probe) mark() error { _, err := p.ask(packets.Query{Mark: true}); return err }

// report is what was received since the mark.
func (p *probe) report() (packets.Report, error) { return p.ask(packets.Query{}) }

// markAll and reportAll are for several probes; the latter adds up what was lost and takes the longest gap.
func markAll(probes ...*probe) error {
	for _, p := range probes {
		if err := p.mark(); err != nil {
			return err
		}
	}
	return nil
}

func reportAll(probes ...*probe) (all packets.Report, err error) {
	for _, p := range probes {
		r, err := p.report()
		if err != nil {
			return all, err
		}
		all.Flows += r.Flows
		all.Received += r.Received
		all.Lost += r.Lost
		all.GapMs = max(all.GapMs, r.GapMs)
		all.SenderLateMs = max(all.SenderLateMs, r.SenderLateMs)
	}
	return all, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// spread is count indexes over the whole range of n, the first and the last among them.
func spread(n, count int) []int {
	count = min(n, count)
	out := make([]int, 0, count)
	for i := range count {
		out = append(out, i*(n-1)/max(count-1, 1))
	}
	return slices.Compact(out)
}
