package bgp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/internal/config"
)

// raw is a neighbour that says just what it is told, byte for byte.
type raw struct {
	t    *testing.T
	conn net.Conn
}

func (n *network) raw(asn uint16, local, remote int) *raw {
	n.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: n.addr(local).AsSlice()}}
	r := &raw{t: n.t}
	// A neighbour that has just been down refuses for a few seconds.
	wait(n.t, "a session", patience, func() (string, bool) {
		conn, err := d.Dial("tcp", net.JoinHostPort(n.addr(remote).String(), strconv.Itoa(n.port)))
		if err != nil {
			return err.Error(), false
		}
		r.conn = conn
		open := []byte{4, byte(asn >> 8), byte(asn), 0, 90, 10, 1, 0, byte(local), 0}
		if !r.write(1, open) || r.read() != 1 || !r.write(4, nil) || r.read() != 4 {
			conn.Close()
			return "closed", false
		}
		return "", true
	})
	n.t.Cleanup(func() { r.conn.Close() })
	return r
}

func (r *raw) write(kind byte, body []byte) bool {
	m := bytes.Repeat([]byte{0xff}, 16)
	m = binary.BigEndian.AppendUint16(m, uint16(19+len(body)))
	m = append(append(m, kind), body...)
	_, err := r.conn.Write(m)
	return err == nil
}

// read returns the type of the next message, 0 at the end.
func (r *raw) read() byte {
	r.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	h := make([]byte, 19)
	if _, err := io.ReadFull(r.conn, h); err != nil {
		return 0
	}
	if _, err := io.CopyN(io.Discard, r.conn, int64(binary.BigEndian.Uint16(h[16:]))-19); err != nil {
		return 0
	}
	return h[18]
}

// update sends path attributes and NLRI of IPv4.
func (r *raw) update(attrs []byte, nlri ...byte) {
	body := []byte{0, 0}
	body = binary.BigEndian.AppendUint16(body, uint16(len(attrs)))
	r.write(gobgp.BGP_MSG_UPDATE, append(append(body, attrs...), nlri...))
}

// fate is what becomes of a good path when a malformed one for its prefix follows.
type fate int

const (
	withdrawn fate = iota // and the session goes on: treat-as-withdraw
	ends                  // with its session
	stays                 // and the session goes on: attribute discard
)

// A neighbour sends a good path, then the same prefix with malformed attributes. Where RFC 7606 calls for a withdrawal or the end of
// the session, the prefix goes; where it has the attribute discarded, the path stays. The process lives on, and another
// neighbour's session is not touched. Each case is a neighbour of its own, since a session that was lost rests for 5 seconds.
func TestMalformedUpdates(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	origin := []byte{0x40, 1, 1, 0}
	asPath := []byte{0x40, 2, 4, 2, 1, 0xfe, 0x4c} // 65100, two octets: the session has no four-octet capability
	nextHop := append([]byte{0x40, 3, 4}, n.addr(11).AsSlice()...)
	nextHop[6] = 99
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	net10 := []byte{16, 10, 1}
	cases := []struct {
		name  string
		attrs []byte
		nlri  []byte
		fate  fate
	}{
		{"origin 9", join([]byte{0x40, 1, 1, 9}, asPath, nextHop), net10, withdrawn},
		{"origin of two octets", join([]byte{0x40, 1, 2, 0, 0}, asPath, nextHop), net10, withdrawn},
		{"AS_PATH segment longer than the attribute", join(origin, []byte{0x40, 2, 4, 2, 9, 0xfe, 0x4c}, nextHop), net10, withdrawn},
		{"AS_PATH segment of an unknown type", join(origin, []byte{0x40, 2, 4, 7, 1, 0xfe, 0x4c}, nextHop), net10, withdrawn},
		{"next hop of three octets", join(origin, asPath, []byte{0x40, 3, 3, 10, 0, 0}), net10, withdrawn},
		{"next hop of none", join(origin, asPath, []byte{0x40, 3, 0}), net10, withdrawn},
		{"no next hop", join(origin, asPath), net10, withdrawn},
		{"no AS_PATH", join(origin, nextHop), net10, withdrawn},
		{"unknown well-known attribute", join(origin, asPath, nextHop, []byte{0x40, 99, 1, 0}), net10, ends},
		{"communities of three octets", join(origin, asPath, nextHop, []byte{0xc0, 8, 3, 1, 2, 3}), net10, withdrawn},
		{"AS4_PATH cut off", join(origin, asPath, nextHop, []byte{0xc0, 17, 3, 2, 1, 0}), net10, withdrawn}, // stricter than RFC 6793
		{"aggregator of three octets", join(origin, asPath, nextHop, []byte{0xc0, 7, 3, 1, 2, 3}), net10, stays},
		// GoBGP keeps what comes before such an attribute.
		{"attribute longer than the message", join(origin, asPath, nextHop, []byte{0x80, 4, 200, 0}), net10, stays},
		{"prefix of 33 bits", join(origin, asPath, nextHop), append([]byte{33, 10, 1, 0, 0, 0}, net10...), ends},
		{"EVPN on a session without it", join(origin, asPath, []byte{0x80, 14, 11, 0, 25, 70, 4, 10, 0, 0, 1, 0, 5, 34}), nil, ends},
		{"MP_REACH of one octet", join(origin, asPath, nextHop, []byte{0x80, 14, 1, 0}), net10, ends},
	}
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ok", ASN: 65101, Families: []string{IPv4}}, 11, 99)
	for i := range cases {
		n.addPeer(doc, "gw1", "CORE", config.Peer{Name: fmt.Sprintf("raw%d", i), ASN: 65100, Passive: true, Families: []string{IPv4}}, 11, 101+i)
	}
	_, gw, _ := doc.Find("gw1")
	for i := range gw.VRFs[0].Peers {
		gw.VRFs[0].Peers[i].Hold = config.Duration(90 * time.Second)
	}
	r := n.router(65101, 99, 11, 65001, ceOptions{})
	g := n.start(doc, "gw1")
	r.announce(route{prefix: "192.168.0.0/16"})
	ok := "192.168.0.0/16 peer ok [65101]"
	g.wantRoutes("CORE", ok)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x := n.raw(65100, 101+i, 11)
			name := fmt.Sprintf("raw%d", i)
			good := "10.1.0.0/16 peer " + name + " [65100]"
			x.update(join(origin, asPath, nextHop), net10...)
			g.wantRoutes("CORE", good, ok)
			x.update(c.attrs, c.nlri...)
			after := []string{"10.2.0.0/16 peer " + name + " [65100]", ok}
			switch c.fate {
			case stays:
				after = append([]string{good}, after...)
				fallthrough
			case withdrawn:
				x.update(join(origin, asPath, nextHop), 16, 10, 2) // comes after it
				g.wantRoutes("CORE", after...)
				x.write(gobgp.BGP_MSG_NOTIFICATION, []byte{6, 2})
			case ends:
				g.wantPeer("CORE", name, "closed by us", func(p PeerState) bool {
					return p.Flaps == 1 && strings.HasPrefix(p.LastError, "notification-sent")
				})
			}
			g.wantRoutes("CORE", ok)
			x.conn.Close()
		})
	}
	if p := g.peer("CORE", "ok"); p.Flaps != 0 || p.State != "established" {
		t.Errorf("the other neighbour was touched: %+v", p)
	}
}
