package rib

import (
	"net/netip"
	"slices"
	"sort"
)

// chunkSize bounds what one insertion moves: a neighbour may send as many next hops as prefixes.
const chunkSize = 512

// questions are the addresses that were asked for next hops. The zero value has none.
type questions struct {
	hops map[netip.Addr]map[*hop]struct{}
	// chunks are the addresses in order, in pieces of at most chunkSize; none is empty.
	chunks [][]netip.Addr
}

// seek finds the first address that is not before a: the chunk, len(chunks) where there is none, and the place in it.
func (q *questions) seek(a netip.Addr) (chunk, at int) {
	chunk = sort.Search(len(q.chunks), func(i int) bool {
		c := q.chunks[i]
		return c[len(c)-1].Compare(a) >= 0
	})
	if chunk < len(q.chunks) {
		at, _ = slices.BinarySearchFunc(q.chunks[chunk], a, netip.Addr.Compare)
	}
	return chunk, at
}

// add notes that an address was asked for a next hop.
func (q *questions) add(a netip.Addr, h *hop) {
	if hs := q.hops[a]; hs != nil {
		hs[h] = struct{}{}
		return
	}
	if q.hops == nil {
		q.hops = map[netip.Addr]map[*hop]struct{}{}
	}
	q.hops[a] = map[*hop]struct{}{h: {}}
	i, j := q.seek(a)
	switch {
	case len(q.chunks) == 0:
		q.chunks = [][]netip.Addr{nil}
	case i == len(q.chunks):
		i--
		j = len(q.chunks[i])
	}
	c := slices.Insert(q.chunks[i], j, a)
	q.chunks[i] = c
	if half := len(c) / 2; len(c) > chunkSize {
		q.chunks[i] = c[:half:half]
		q.chunks = slices.Insert(q.chunks, i+1, slices.Clone(c[half:]))
	}
}

// remove takes it back.
func (q *questions) remove(a netip.Addr, h *hop) {
	hs := q.hops[a]
	if _, ok := hs[h]; !ok {
		return
	}
	if delete(hs, h); len(hs) > 0 {
		return
	}
	delete(q.hops, a)
	i, j := q.seek(a)
	if q.chunks[i] = slices.Delete(q.chunks[i], j, j+1); len(q.chunks[i]) == 0 {
		q.chunks = slices.Delete(q.chunks, i, i+1)
	}
}

// within calls fn for the next hops that an address in a masked prefix was asked for; more than once for those that asked for several.
func (q *questions) within(p netip.Prefix, fn func(*hop)) {
	if len(q.chunks) == 0 {
		return
	}
	i, j := q.seek(p.Addr())
	for ; i < len(q.chunks); i, j = i+1, 0 {
		for _, a := range q.chunks[i][j:] {
			if !p.Contains(a) {
				return
			}
			for h := range q.hops[a] {
				fn(h)
			}
		}
	}
}
