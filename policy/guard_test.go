package policy

import (
	"net/netip"
	"testing"

	"fabric/bgp/rib"
)

func TestGuard(t *testing.T) {
	mapped := func(bits int) string {
		return netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), bits).Masked().String()
	}
	tests := []struct {
		term     string // "" passes
		prefixes []string
	}{
		{"", []string{
			"10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24", "fd00::/8", "fd12:3456::/48", "10.1.1.1/32", "fd00::1/128",
			"203.0.113.0/24", "2001:db8::/32", "8.8.8.8/32", "10.0.0.0/29", "2001:db8::/125", "2001:db8::/64",
			// Around and above what is refused.
			"0.0.0.0/1", "0.0.0.0/7", "1.0.0.0/8", "126.0.0.0/8", "128.0.0.0/8", "126.0.0.0/7", "169.253.0.0/16", "169.255.0.0/16", "169.254.0.0/15",
			"100.0.0.0/8", "100.128.0.0/10", "100.0.0.0/10", "100.63.255.0/24", "192.0.0.0/3", "223.255.255.0/24", "128.0.0.0/1",
			"::2/128", "::/1", "::/96", "::1:0/112", "fe00::/9", "fe80::/9", "fec0::/10", "fe00::/8", "fc00::/7", "::fffe:0:0/96", "::fffe:0:0/95",
		}},
		{"default-v4", []string{"0.0.0.0/0"}},
		{"default-v6", []string{"::/0"}},
		{"point-to-point-v4", []string{"10.0.0.0/30", "10.0.0.0/31", "127.0.0.0/31"}},
		{"point-to-point-v6", []string{"2001:db8::/126", "2001:db8::/127", "fe80::/127"}},
		{"this-network", []string{"0.0.0.0/8", "0.0.0.0/32", "0.1.0.0/16"}},
		{"loopback-v4", []string{"127.0.0.0/8", "127.0.0.1/32", "127.255.0.0/16"}},
		{"link-local-v4", []string{"169.254.0.0/16", "169.254.169.254/32"}},
		{"shared-address", []string{"100.64.0.0/10", "100.100.100.200/32", "100.127.255.0/24"}},
		{"multicast-v4", []string{"224.0.0.0/4", "239.1.1.1/32", "224.0.0.0/24"}},
		{"reserved-v4", []string{"240.0.0.0/4", "255.255.255.255/32"}},
		{"unspecified-v6", []string{"::/128"}},
		{"loopback-v6", []string{"::1/128"}},
		{"link-local-v6", []string{"fe80::/10", "fe80::/64", "fe80::1/128", "febf::/16"}},
		{"multicast-v6", []string{"ff00::/8", "ff02::1/128"}},
		{"v4-mapped", []string{mapped(96), mapped(104), mapped(128)}},
	}
	for _, tt := range tests {
		for _, s := range tt.prefixes {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				t.Fatal(err)
			}
			_, v, term := Guard(false).Eval(rib.Path{Key: rib.PathKey{Prefix: p}})
			want, wantV := Term{"guard", tt.term}, Reject
			if tt.term == "" {
				want, wantV = Term{"guard", "default"}, Accept
			}
			if v != wantV || term != want {
				t.Errorf("%s: %v by %v, want %v by %v", s, v, term, wantV, want)
			}
			if p.Bits() == 0 {
				want, wantV = Term{"guard", "default"}, Accept
			}
			if _, v, term := Guard(true).Eval(rib.Path{Key: rib.PathKey{Prefix: p}}); v != wantV || term != want {
				t.Errorf("%s with defaults allowed: %v by %v, want %v by %v", s, v, term, wantV, want)
			}
		}
	}
}

func TestOwnAS(t *testing.T) {
	path := received("10.0.0.0/8")
	path.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{1, 7, 2}}, {Set: true, ASNs: []uint32{7}}}
	for _, tt := range []struct {
		asn   uint32
		allow int
		want  Verdict
	}{
		{3, 0, Accept}, {1, 0, Reject}, {1, 1, Accept}, {7, 1, Reject}, {7, 2, Accept},
	} {
		_, v, term := OwnAS(tt.asn, tt.allow).Eval(path)
		want := Term{"own-as", "default"}
		if tt.want == Reject {
			want.Name = "loop"
		}
		if v != tt.want || term != want {
			t.Errorf("AS %d allowed %d times: %v by %v, want %v", tt.asn, tt.allow, v, term, tt.want)
		}
	}
}
