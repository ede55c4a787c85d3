package site

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/overlay/links"
)

// fakeLinks is fabric-links: it makes next-hop objects on the model kernel, as the real one does.
type fakeLinks struct {
	kernel  *kerneltest.Kernel
	applies atomic.Int32

	mu sync.Mutex
	// away is why it cannot be spoken to, nil when it can.
	away  error
	plan  overlay.Plan
	state links.State
	told  chan struct{} // closed and made anew when state or away change
	// sessions are what the state of a new plan begins with.
	sessions []links.SessionState
	// sets: it makes next-hop sets; onLeg is the leg that one is on, by id, if not the first; held are those that wait for the plan.
	sets  bool
	onLeg map[uint32]int
	held  map[uint32]bool
	// last is called once, at the end of the next Apply, and may change the answer.
	last func(*links.Result)
	// unready: it has lost all sets.
	unready bool
	// older makes digests as a fabric-links of another version does, which sees less of a plan.
	older bool
}

func newFakeLinks(k *kerneltest.Kernel) *fakeLinks {
	return &fakeLinks{kernel: k, told: make(chan struct{}), onLeg: map[uint32]int{}, held: map[uint32]bool{}}
}

// change does something to the fake and tells the watcher.
func (f *fakeLinks) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.told)
	f.told = make(chan struct{})
}

// ready says whether it has the next-hop sets of its plan, in the state that it tells now and in later ones.
func (f *fakeLinks) ready(is bool) {
	f.change(func() {
		f.unready = !is
		f.state.Sets = slices.Clone(f.state.Sets)
		for i := range f.state.Sets {
			f.state.Sets[i].Ready = is
		}
	})
}

func (f *fakeLinks) digest(p overlay.Plan) string {
	if f.older {
		return "older " + p.Digest()
	}
	return p.Digest()
}

func (f *fakeLinks) Apply(ctx context.Context, p overlay.Plan) (links.Result, error) {
	f.applies.Add(1)
	f.mu.Lock()
	away := f.away
	f.mu.Unlock()
	if away != nil {
		return links.Result{}, away
	}
	edge := f.kernel.NextHops(kernel.ProtocolLinks)
	have, err := edge.Observe(ctx)
	if err != nil {
		return links.Result{}, err
	}
	want := map[uint32]kernel.NextHop{}
	for _, n := range p.NextHops {
		want[n.ID] = kernel.NextHop{Device: n.Device, Gateway: n.Gateway, Protocol: kernel.ProtocolLinks}
	}
	var sets []links.SetState
	if f.sets {
		f.mu.Lock()
		if !p.SetsWhole {
			p.Keep(f.plan.AllSets()...)
		}
		for _, s := range p.AllSets() {
			if !s.Stay {
				delete(f.held, s.ID)
				delete(f.onLeg, s.ID)
			}
			if s.Equal > 0 {
				st := links.SetState{ID: s.ID, VRF: s.VRF, Ready: true}
				var ids, words []string
				legs := slices.Clone(s.Legs[:s.Equal])
				slices.SortFunc(legs, func(a, b overlay.Leg) int { return cmp.Compare(overlay.LegNextHopID(a), overlay.LegNextHopID(b)) })
				for i, l := range legs {
					id := overlay.LegNextHopID(l)
					want[id] = kernel.NextHop{Device: l.Device, Gateway: l.Gateway, OnLink: true, Protocol: kernel.ProtocolLinks}
					ids, words, st.InUse = append(ids, fmt.Sprint(id)), append(words, l.String()), append(st.InUse, i)
				}
				want[s.ID] = kernel.NextHop{Group: strings.Join(ids, ","), Protocol: kernel.ProtocolLinks}
				st.Current = strings.Join(words, " and ")
				sets = append(sets, st)
				continue
			}
			l := s.Legs[min(f.onLeg[s.ID], len(s.Legs)-1)]
			want[s.ID] = kernel.NextHop{Device: l.Device, Gateway: l.Gateway, OnLink: true, Protocol: kernel.ProtocolLinks}
			sets = append(sets, links.SetState{ID: s.ID, VRF: s.VRF, Ready: true, Current: l.String(), Rank: f.onLeg[s.ID]})
		}
		f.mu.Unlock()
	}
	if err := errors.Join(edge.Apply(ctx, reconcile.Diff(want, have, nil))...); err != nil {
		return links.Result{}, err
	}
	f.change(func() {
		if f.state.Sessions != nil && slices.Equal(f.plan.Sessions, p.Sessions) {
			f.sessions = f.state.Sessions
		}
		for i := range sets {
			sets[i].Ready = !f.unready
		}
		f.plan, f.state = p, links.State{Gateway: p.Gateway, Digest: f.digest(p), Sessions: f.sessions, Sets: sets}
		for _, v := range p.VTEPs {
			f.state.VTEPs = append(f.state.VTEPs, links.VTEPState{Gateway: v.Gateway, Addr: v.Addr, Device: "fxw"})
		}
		for _, t := range p.Tunnels {
			f.state.Tunnels = append(f.state.Tunnels, links.TunnelState{Device: t.Device, Name: t.Name, Remote: t.Remote, State: links.Up, Active: true})
		}
	})
	r := links.Result{Digest: f.digest(p), Sets: slices.Clone(sets)}
	f.mu.Lock()
	last := f.last
	f.last = nil
	f.mu.Unlock()
	if last != nil {
		last(&r)
	}
	return r, nil
}

func (f *fakeLinks) Watch(ctx context.Context, fn func(links.State, error)) error {
	for ctx.Err() == nil {
		f.mu.Lock()
		state, away, told := f.state, f.away, f.told
		f.mu.Unlock()
		if away != nil {
			fn(links.State{}, away)
		} else {
			fn(state, nil)
		}
		select {
		case <-ctx.Done():
		case <-told:
		}
	}
	return nil
}

func (f *fakeLinks) Drain(_ context.Context, device string, drained bool) (err error) {
	f.change(func() {
		i := slices.IndexFunc(f.state.Tunnels, func(t links.TunnelState) bool { return t.Device == device })
		if err = f.away; err == nil && i < 0 {
			err = fmt.Errorf("no tunnel has the device %q", device)
		}
		if err == nil {
			f.state.Tunnels = slices.Clone(f.state.Tunnels)
			f.state.Tunnels[i].Drained = drained
		}
	})
	return err
}

func (f *fakeLinks) Rotate(_ context.Context, device string) (generation int, err error) {
	f.change(func() {
		i := slices.IndexFunc(f.state.Tunnels, func(t links.TunnelState) bool { return t.Device == device })
		if err = f.away; err == nil && i < 0 {
			err = fmt.Errorf("no tunnel has the device %q", device)
		}
		if err == nil {
			f.state.Tunnels = slices.Clone(f.state.Tunnels)
			generation = f.state.Tunnels[i].KeyGeneration
			f.state.Tunnels[i].KeyGeneration++
		}
	})
	return generation, err
}

// setVTEP says over which device far is reached; "" is not at all.
func (f *fakeLinks) setVTEP(device string) {
	f.change(func() {
		f.state.VTEPs = []links.VTEPState{{Gateway: "far", Addr: far.Addr, Device: device}}
	})
}
