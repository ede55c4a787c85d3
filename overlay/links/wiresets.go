package links

import (
	"fabric/overlay"
	linksv1 "fabric/proto/links/v1"
)

func setsToWire(p overlay.Plan, w *linksv1.Plan) {
	w.SetsWhole = p.SetsWhole
	for _, s := range p.Sets {
		x := &linksv1.NextHopSet{Id: s.ID, Vrf: s.VRF, Stay: s.Stay, Equal: int32(s.Equal)}
		for _, l := range s.Legs {
			x.Legs = append(x.Legs, &linksv1.Leg{Gateway: addrText(l.Gateway), Device: l.Device, Session: l.Session, Vtep: addrText(l.VTEP)})
		}
		w.Sets = append(w.Sets, x)
	}
}

func setsFromWire(w *linksv1.Plan, p *overlay.Plan) {
	p.SetsWhole = w.GetSetsWhole()
	for _, s := range w.GetSets() {
		x := overlay.NextHopSet{ID: s.GetId(), VRF: s.GetVrf(), Stay: s.GetStay(), Equal: int(s.GetEqual())}
		for _, l := range s.GetLegs() {
			x.Legs = append(x.Legs, overlay.Leg{Gateway: readAddr(l.GetGateway()), Device: l.GetDevice(), Session: l.GetSession(), VTEP: readAddr(l.GetVtep())})
		}
		p.Sets = append(p.Sets, x)
	}
}

func setStatesToWire(sets []SetState) []*linksv1.SetState {
	var w []*linksv1.SetState
	for _, s := range sets {
		var inUse []int32
		for _, i := range s.InUse {
			inUse = append(inUse, int32(i))
		}
		w = append(w, &linksv1.SetState{InUse: inUse, Id: s.ID, Vrf: s.VRF, Legs: s.Legs, Ready: s.Ready, Current: s.Current, Rank: int32(s.Rank), Held: s.Held, Reason: s.Reason})
	}
	return w
}

func setStatesFromWire(w []*linksv1.SetState) []SetState {
	var sets []SetState
	for _, s := range w {
		var inUse []int
		for _, i := range s.GetInUse() {
			inUse = append(inUse, int(i))
		}
		sets = append(sets, SetState{InUse: inUse, ID: s.GetId(), VRF: s.GetVrf(), Legs: s.GetLegs(), Ready: s.GetReady(), Current: s.GetCurrent(), Rank: int(s.GetRank()), Held: s.GetHeld(), Reason: s.GetReason()})
	}
	return sets
}
