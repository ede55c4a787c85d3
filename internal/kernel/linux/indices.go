package linux

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// indices knows the devices' indices from the kernel's own news of them, so that writing a route asks the kernel nothing first:
// whoever repairs a way has one message to send.
//
//	turn: read what news there is ── known? ── else list the devices once
//
// News of a change is in the socket's buffer before the change's author goes on, so what was learnt by then is true. The kernel
// gives no index twice: one that is stale after all is refused by it.
type indices struct {
	h *Host

	mu sync.Mutex
	// fd hears of links; 0 before the first turn. conn is for listing them: the others' may be in the middle of a batch.
	fd    int
	conn  *conn
	buf   []byte
	index map[string]uint32
	name  map[uint32]string
}

// newsBuffer holds the news of some hundred changes between two turns. When it overflows the devices are listed again.
const newsBuffer = 1 << 20

// indexer tells the index of a device; an error that is os.ErrNotExist if there is none of that name.
type indexer interface {
	device(name string) (uint32, error)
}

// turn is the devices' indices for one batch of requests.
type turn struct {
	d     *indices
	ctx   context.Context
	fresh bool
}

// begin reads the news.
func (d *indices) begin(ctx context.Context) (*turn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd == 0 {
		fd, err := d.h.listen(unix.NETLINK_ROUTE, newsBuffer, unix.RTNLGRP_LINK)
		if err != nil {
			return nil, err
		}
		c, err := d.h.dial()
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
		d.fd, d.conn, d.buf = fd, c, make([]byte, 64<<10)
	}
	d.follow()
	return &turn{d: d, ctx: ctx}, nil
}

// follow takes what news there is. d.mu is held.
func (d *indices) follow() {
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			d.index = nil
			if !errors.Is(err, unix.ENOBUFS) {
				return
			}
			continue
		}
		if parse(d.buf[:n], d.hear) != nil {
			d.index = nil
		}
	}
}

// hear takes one piece of news.
func (d *indices) hear(h header, body []byte) error {
	// A port that leaves a bridge is told as a deleted link of the bridge's family.
	if d.index == nil || len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
		return nil
	}
	l := decodeLink(body)
	if old, ok := d.name[l.index]; ok && d.index[old] == l.index {
		delete(d.index, old)
	}
	delete(d.name, l.index)
	if h.typ == unix.RTM_NEWLINK && l.name != "" {
		d.index[l.name], d.name[l.index] = l.index, l.name
	}
	return nil
}

// device implements indexer.
func (t *turn) device(name string) (uint32, error) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	if i, ok := t.d.index[name]; ok {
		return i, nil
	}
	if !t.fresh {
		n, err := t.d.h.namesBy(t.ctx, t.d.conn)
		if err != nil {
			return 0, err
		}
		t.d.index, t.d.name, t.fresh = n.index, n.name, true
	}
	return (&names{index: t.d.index}).device(name)
}

// forget makes the next turn list the devices.
func (d *indices) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.index = nil
}

func (d *indices) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd == 0 {
		return nil
	}
	return errors.Join(d.conn.close(), unix.Close(d.fd))
}
