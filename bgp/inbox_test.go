package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

func unicast(t *testing.T, neighbour, p string, med uint32, withdraw bool) *apiutil.Path {
	t.Helper()
	nlri, err := gobgp.NewIPAddrPrefix(netip.MustParsePrefix(p))
	if err != nil {
		t.Fatal(err)
	}
	nh, err := gobgp.NewPathAttributeNextHop(netip.MustParseAddr("10.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	return &apiutil.Path{Family: gobgp.RF_IPv4_UC, Nlri: nlri, Withdrawal: withdraw, PeerAddress: netip.MustParseAddr(neighbour),
		Attrs: []gobgp.PathAttributeInterface{gobgp.NewPathAttributeOrigin(0), nh, gobgp.NewPathAttributeMultiExitDisc(med)}}
}

func texts(evs []event) (out []string) {
	for _, ev := range evs {
		switch {
		case ev.session != nil:
			out = append(out, ev.neighbour.String()+" "+states[ev.session.state])
		case ev.endOfRIB != "":
			out = append(out, ev.neighbour.String()+" end of "+ev.endOfRIB)
		case ev.path.withdraw:
			out = append(out, fmt.Sprintf("%s - %s", ev.neighbour, ev.path.path.Key.Prefix))
		default:
			out = append(out, fmt.Sprintf("%s + %s med %d", ev.neighbour, ev.path.path.Key.Prefix, ev.path.path.Attrs.MED))
		}
	}
	return out
}

// Nobody empties the inbox while neighbours flap: it holds one slot per neighbour and prefix, with the newest word, and
// paths do not move across a session's events.
func TestInboxCoalesces(t *testing.T) {
	wake := make(chan struct{}, 1)
	b := newInbox(wake)
	for i := range uint32(1000) {
		b.paths([]*apiutil.Path{unicast(t, "10.0.0.1", "10.1.0.0/16", i, false), unicast(t, "10.0.0.2", "10.1.0.0/16", i, i%2 == 1)})
	}
	b.paths([]*apiutil.Path{unicast(t, "10.0.0.1", "10.2.0.0/16", 7, true)})
	b.barrier(event{neighbour: netip.MustParseAddr("10.0.0.1"), endOfRIB: IPv4})
	b.paths([]*apiutil.Path{unicast(t, "10.0.0.1", "10.1.0.0/16", 5000, false), unicast(t, "10.0.0.1", "10.1.0.0/16", 5001, false)})
	b.barrier(event{neighbour: netip.MustParseAddr("10.0.0.2"), session: &session{state: gobgp.BGP_FSM_IDLE}})
	want := []string{
		"10.0.0.1 + 10.1.0.0/16 med 999", "10.0.0.2 - 10.1.0.0/16", "10.0.0.1 - 10.2.0.0/16", "10.0.0.1 end of ipv4",
		"10.0.0.1 + 10.1.0.0/16 med 5001", "10.0.0.2 idle",
	}
	if len(wake) != 1 {
		t.Error("nobody was woken")
	}
	if got := texts(b.take()); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := b.take(); len(got) != 0 {
		t.Errorf("%d events are left", len(got))
	}
	b.paths([]*apiutil.Path{unicast(t, "10.0.0.1", "10.1.0.0/16", 1, false)})
	if got := texts(b.take()); !slices.Equal(got, []string{"10.0.0.1 + 10.1.0.0/16 med 1"}) {
		t.Errorf("after taking: %q", got)
	}
}
