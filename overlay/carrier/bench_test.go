package carrier

import (
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// BenchmarkCarry sends full packets from a Dialer through TLS, Listener and unix socket to an Acceptor, all in this process: both
// ends' work in one figure, WireGuard's own left out. The sender waits for room, so that nothing is dropped.
func BenchmarkCarry(b *testing.B) {
	for _, name := range []string{"up", "down"} {
		b.Run(name, func(b *testing.B) {
			n := newNear(b)
			d := newDialer(b, DialerConfig{URL: n.url(), Pin: n.pin})
			var from, to conn.Bind = d, n.acceptor
			sender, receiver := &d.bind, &n.acceptor.bind
			if name == "down" {
				from, to, sender, receiver = to, from, receiver, sender
			}
			fns, _, err := to.Open(0)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { to.Close() })
			open(b, from)
			eventually(b, "connection", func() bool { return d.Status().Connected && n.acceptor.Status().Connected })
			const burst = 16
			datagrams := make([][]byte, burst)
			for i := range datagrams {
				datagrams[i] = make([]byte, 1400)
			}
			bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
			for i := range bufs {
				bufs[i] = make([]byte, 2048)
			}
			room := make(chan struct{}, queueLength/burst/2)
			b.SetBytes(1400)
			b.ReportAllocs()
			b.ResetTimer()
			packets := (b.N + burst - 1) / burst * burst
			go func() {
				for range packets / burst {
					room <- struct{}{}
					_ = from.Send(datagrams, sender.far)
				}
			}()
			for got := 0; got < packets; {
				k, err := fns[0](bufs, sizes, eps)
				if err != nil {
					b.Fatal(err)
				}
				for i := got / burst; i < (got+k)/burst; i++ {
					<-room
				}
				got += k
			}
			b.StopTimer()
			if sender.txDropped.Load()+receiver.rxDropped.Load() > 0 {
				b.Errorf("dropped %d and %d", sender.txDropped.Load(), receiver.rxDropped.Load())
			}
		})
	}
}
