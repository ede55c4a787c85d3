package carrier

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Status is what a Dialer or an Acceptor says of itself.
type Status struct {
	Connected bool `json:"connected"`
	// Since is when Connected took this value; zero before the first connection.
	Since time.Time `json:"since,omitzero"`
	// Remote is the TCP address that packets come from: the far gateway's or the proxy's.
	Remote string `json:"remote,omitempty"`
	// Connections counts those that came about; the first is one of them.
	Connections uint64 `json:"connections"`
	// LastError says why the last connection ended or did not come about, at LastErrorAt.
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	// RTT is the time of the last ping over this connection, queues included; zero when none was answered yet, and on an Acceptor.
	RTT time.Duration `json:"rtt_ns,omitempty"`
	// Bytes and packets of WireGuard, without the framing below.
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	// Packets that found a queue full, or no connection.
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
}

// packet is a datagram in a queue.
type packet struct{ b []byte }

var packets = sync.Pool{New: func() any { return &packet{b: make([]byte, 0, 2048)} }}

// link is one connection that messages go over. read and write are each called by one goroutine; close ends both.
type link interface {
	// read appends the next message to buf[:0].
	read(buf []byte) ([]byte, error)
	// write sends one message; it may keep it back until one comes with more == false.
	write(message []byte, more bool) error
	// watch returns when ctx ends. It ends ctx, with the reason, when it finds the far end dead, before anything else can
	// fail for it; rtt is told of answered pings.
	watch(ctx context.Context, end context.CancelCauseFunc, rtt func(time.Duration))
	close()
	remote() string
}

// bind is what Dialer and Acceptor share: all of conn.Bind but the connection.
type bind struct {
	far *endpoint
	// run keeps a connection, and calls carry with each, until ctx ends. prepare may refuse an Open.
	prepare func() (run func(ctx context.Context, o *opening), err error)

	mu      sync.Mutex // Open, Close
	current atomic.Pointer[opening]

	rxPackets, rxBytes, rxDropped, txPackets, txBytes, txDropped atomic.Uint64
	rtt                                                          atomic.Int64

	stateMu sync.Mutex
	state   Status // all but the counters
}

// opening is what lives from Open to Close.
type opening struct {
	in, out chan *packet
	up      atomic.Bool
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}

	// waiting is the handshake initiation that was sent last while there was no connection. WireGuard would repeat it only after
	// five seconds.
	waitingMu sync.Mutex
	waiting   *packet
	waitingAt time.Time
}

// Open implements conn.Bind. There is no port to listen on: port is handed back as it came.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	run, err := b.prepare()
	if err != nil {
		return nil, 0, err
	}
	o := &opening{in: make(chan *packet, queueLength), out: make(chan *packet, queueLength), done: make(chan struct{})}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	b.current.Store(o)
	go func() {
		defer close(o.done)
		run(o.ctx, o)
	}()
	receiveCarrier := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		return b.receive(o, bufs, sizes, eps)
	}
	return []conn.ReceiveFunc{receiveCarrier}, port, nil
}

// Close implements conn.Bind. When it returns, nothing of this opening runs any more.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.current.Swap(nil); o != nil {
		o.cancel()
		<-o.done
	}
	return nil
}

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint implements conn.Bind. A carrier has one far end: any address stands for it, and is answered by Endpoint's.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if _, err := netip.ParseAddrPort(s); err != nil {
		return nil, err
	}
	return b.far, nil
}

// Send implements conn.Bind. It queues copies and returns at once.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if _, ok := ep.(*endpoint); !ok {
		return conn.ErrWrongEndpointType
	}
	o := b.current.Load()
	if o == nil {
		return net.ErrClosed
	}
	for _, datagram := range bufs {
		if len(datagram) == 0 || len(datagram) > MaxMessage {
			b.txDropped.Add(1)
			continue
		}
		p := packets.Get().(*packet)
		p.b = append(p.b[:0], datagram...)
		if !o.up.Load() {
			b.keepOrDrop(o, p)
			continue
		}
		select {
		case o.out <- p:
		default:
			b.txDropped.Add(1)
			packets.Put(p)
		}
	}
	return nil
}

// keepOrDrop drops a packet for which there is no connection, unless it begins a handshake.
func (b *bind) keepOrDrop(o *opening, p *packet) {
	if len(p.b) == device.MessageInitiationSize && p.b[0] == device.MessageInitiationType {
		o.waitingMu.Lock()
		p, o.waiting, o.waitingAt = o.waiting, p, time.Now()
		o.waitingMu.Unlock()
		if p == nil {
			return
		}
	}
	b.txDropped.Add(1)
	packets.Put(p)
}

// receive is the conn.ReceiveFunc.
func (b *bind) receive(o *opening, bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int, err error) {
	take := func(p *packet) {
		sizes[n] = copy(bufs[n], p.b)
		eps[n] = b.far
		packets.Put(p)
		n++
	}
	select {
	case <-o.ctx.Done():
		return 0, net.ErrClosed
	case p := <-o.in:
		take(p)
	}
	for n < len(bufs) {
		select {
		case p := <-o.in:
			take(p)
		default:
			return n, nil
		}
	}
	return n, nil
}

// carry moves packets over l until it fails, the far end dies or ctx ends, says why, and leaves l closed.
func (b *bind) carry(ctx context.Context, o *opening, l link) error {
	b.connected(o, l)
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(b.fromLink(o, l)) })
	wg.Go(func() { cancel(b.toLink(ctx, o, l)) })
	wg.Go(func() { l.watch(ctx, cancel, func(d time.Duration) { b.rtt.Store(int64(d)) }) })
	<-ctx.Done()
	o.up.Store(false)
	l.close()
	wg.Wait()
	cancel(nil)
	return context.Cause(ctx)
}

// fromLink reads messages. It never waits for WireGuard: a full queue drops.
func (b *bind) fromLink(o *opening, l link) error {
	for {
		p := packets.Get().(*packet)
		var err error
		if p.b, err = l.read(p.b[:0]); err != nil {
			packets.Put(p)
			return err
		}
		b.rxPackets.Add(1)
		b.rxBytes.Add(uint64(len(p.b)))
		select {
		case o.in <- p:
		default:
			b.rxDropped.Add(1)
			packets.Put(p)
		}
	}
}

// toLink writes what is queued, as one burst as long as more is waiting.
func (b *bind) toLink(ctx context.Context, o *opening, l link) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-o.out:
			more := len(o.out) > 0
			err := l.write(p.b, more)
			if err == nil {
				b.txPackets.Add(1)
				b.txBytes.Add(uint64(len(p.b)))
			}
			packets.Put(p)
			if err != nil {
				return err
			}
		}
	}
}

// connected starts a connection's life: nothing that was queued for another one goes over it but a fresh handshake.
func (b *bind) connected(o *opening, l link) {
	for {
		select {
		case p := <-o.out:
			b.txDropped.Add(1)
			packets.Put(p)
			continue
		default:
		}
		break
	}
	o.waitingMu.Lock()
	if p := o.waiting; p != nil {
		o.waiting = nil
		if time.Since(o.waitingAt) < device.RekeyTimeout {
			o.out <- p // it is empty
		} else {
			b.txDropped.Add(1)
			packets.Put(p)
		}
	}
	o.up.Store(true)
	o.waitingMu.Unlock()
	b.rtt.Store(0)
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.state.Connected, b.state.Since, b.state.Remote = true, time.Now(), l.remote()
	b.state.Connections++
}

// ended notes why there is no connection; nil when it was closed here.
func (b *bind) ended(err error) {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	now := time.Now()
	if b.state.Connected {
		b.state.Connected, b.state.Since, b.state.Remote = false, now, ""
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		b.state.LastError, b.state.LastErrorAt = err.Error(), now
	}
}

// Status says how it stands.
func (b *bind) Status() Status {
	b.stateMu.Lock()
	s := b.state
	b.stateMu.Unlock()
	s.RTT = time.Duration(b.rtt.Load())
	s.RxPackets, s.RxBytes, s.RxDropped = b.rxPackets.Load(), b.rxBytes.Load(), b.rxDropped.Load()
	s.TxPackets, s.TxBytes, s.TxDropped = b.txPackets.Load(), b.txBytes.Load(), b.txDropped.Load()
	return s
}
