package bgp

import (
	"net/netip"
	"testing"
	"time"
)

// TestDeferral: one dead peer holds up what the others hear after a restart no longer than the neighbours keep our old routes.
func TestDeferral(t *testing.T) {
	for restart, want := range map[time.Duration]uint32{10 * time.Second: 10, 30 * time.Second: 30, 120 * time.Second: 30} {
		n := &neighbour{peer: Peer{Address: netip.MustParseAddr("192.0.2.1"), RestartTime: restart}}
		if got := (&server{}).describe(n).GetGracefulRestart().GetDeferralTime(); got != want {
			t.Errorf("restart time %v: deferral time %d s, want %d", restart, got, want)
		}
	}
}
