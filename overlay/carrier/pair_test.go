package carrier

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// TestWireGuard: two devices, one dials. Packets pass both ways; the TCP connection is cut: they pass again over a new one; down and up
// again; the tunnel's process starts anew.
func TestWireGuard(t *testing.T) {
	for _, name := range []string{"direct", "proxy", "direct v6", "proxy v6"} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			host := "127.0.0.1"
			if strings.HasSuffix(name, "v6") {
				host = "::1"
			}
			n := newNearOn(t, host)
			config := DialerConfig{URL: n.url(), CAFile: filepath.Join(n.dir, "cert.pem"), Pin: n.pin}
			var p *proxy
			if strings.HasPrefix(name, "proxy") {
				p = newProxy(t, &proxy{want: "user:pass-word"})
				config.Proxy, config.ProxyCredentialsFile = p.url(), credentials(t, "user:pass-word\n", 0o600)
			}
			d := newDialer(t, config)
			a, b := newNodes(t, d, n.acceptor)
			a.ping(t, b)
			b.drain()
			b.ping(t, a)
			a.drain()
			if p != nil {
				if _, ok := p.connects.Load(n.Addr().String()); !ok {
					t.Error("the proxy was not asked")
				}
			}
			before := d.Status()
			if !before.Connected || before.Connections != 1 || before.RxPackets == 0 || before.TxBytes == 0 || before.Remote == "" {
				t.Errorf("status %+v", before)
			}

			if p != nil {
				p.cut()
			} else {
				d.live().Close()
			}
			eventually(t, "a second connection", func() bool { s := d.Status(); return s.Connected && s.Connections == 2 })
			a.ping(t, b)
			b.drain()
			b.ping(t, a)
			a.drain()
			s := d.Status()
			if s.LastError == "" || s.LastErrorAt.IsZero() {
				t.Errorf("status %+v does not say why the connection ended", s)
			}
			safe(t, s.LastError)

			// Down and up: the bind is closed and opened again.
			for _, pair := range [][2]*node{{a, b}, {b, a}} {
				x, y := pair[0], pair[1]
				if err := x.dev.Down(); err != nil {
					t.Fatal(err)
				}
				if err := x.dev.Up(); err != nil {
					t.Fatal(err)
				}
				x.ping(t, y) // this one first: the other learns only after 15 s that its session is gone
				y.drain()
				y.ping(t, x)
				x.drain()
			}
			eventually(t, "one tunnel", func() bool { return n.Status().Tunnels == 1 })
		})
	}
}

// TestFirstHandshake: the initiation that was sent before there was a connection goes over it, so that the first packet need not wait
// five seconds for WireGuard to repeat it.
func TestFirstHandshake(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	d := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin})
	receive := open(t, n.acceptor)
	initiation := make([]byte, 148)
	initiation[0] = 1
	open(t, d)
	old := append([]byte(nil), initiation...)
	old[9] = 1
	ep, err := d.ParseEndpoint("192.0.2.1:443")
	if err != nil {
		t.Fatal(err)
	}
	// Whether the connection is there already does not matter: the newer one arrives.
	if err := d.Send([][]byte{old, initiation}, ep); err != nil {
		t.Fatal(err)
	}
	got, from, err := receive()
	if err == nil && len(got) > 9 && got[9] == 1 {
		got, from, err = receive()
	}
	if err != nil || string(got) != string(initiation) {
		t.Fatalf("%x, %v", got, err)
	}
	if from.DstToString() != Endpoint(token).String() || ep.DstToString() != from.DstToString() {
		t.Errorf("endpoints %s and %s, want %s", from.DstToString(), ep.DstToString(), Endpoint(token))
	}
}

// TestBurst: all of a burst arrives, in order, each way, though nothing comes after it.
func TestBurst(t *testing.T) {
	n := newNear(t)
	d := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin})
	up, down := open(t, n.acceptor), open(t, d)
	eventually(t, "connection", func() bool { return d.Status().Connected && n.acceptor.Status().Connected })
	var burst [][]byte
	for i := range 100 {
		burst = append(burst, bytes.Repeat([]byte{byte(i)}, 1400))
	}
	for _, way := range []struct {
		from, to *bind
		receive  func() ([]byte, conn.Endpoint, error)
	}{{&d.bind, &n.acceptor.bind, up}, {&n.acceptor.bind, &d.bind, down}} {
		if err := way.from.Send(burst, way.from.far); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the whole burst", func() bool { return way.to.Status().RxPackets == uint64(len(burst)) })
		for i := range burst {
			if got, _, err := way.receive(); err != nil || !bytes.Equal(got, burst[i]) {
				t.Fatalf("packet %d: %d bytes, %v", i, len(got), err)
			}
		}
	}
}
