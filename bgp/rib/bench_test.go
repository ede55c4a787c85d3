package rib

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
)

// benchPrefixes and two paths each: a full VPN, with an AS_PATH and a community to every path.
const benchPrefixes = 100_000

func benchPath(s Source, i int) Path {
	return Path{Key: PathKey{Source: s, Prefix: nth(i)}, Attrs: Attrs{
		LocalPref: 100, NextHop: s.Addr, RouterID: s.Addr, RTs: benchRTs, VNI: 1000,
		ASPath: benchASPath, Communities: benchCommunities,
	}}
}

var (
	benchRTs         = []RT{rt1}
	benchASPath      = []ASSegment{{ASNs: []uint32{64512, 64513}}}
	benchCommunities = []Community{64512<<16 | 1}
)

func load(tab *Table, sources ...Source) {
	batch := make([]Path, 0, 256)
	for _, s := range sources {
		for i := range benchPrefixes {
			batch = append(batch, benchPath(s, i))
			if len(batch) == cap(batch) || i == benchPrefixes-1 {
				tab.Update(batch...)
				batch = batch[:0]
			}
		}
	}
}

func benchTable() *Table {
	tab := NewTable()
	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}})
	return tab
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkLoad fills a table with 100,000 prefixes of two sources each; B/path is what the table holds afterwards.
func BenchmarkLoad(b *testing.B) {
	for _, tt := range []struct {
		name    string
		sources []Source
	}{
		{"peers", []Source{peer1, peer2}},
		{"fabric", []Source{gateway1, gateway2}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			before := heap()
			var tab *Table
			for b.Loop() {
				tab = benchTable()
				load(tab, tt.sources...)
			}
			b.ReportMetric(float64(heap()-before)/(2*benchPrefixes), "B/path")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(2*benchPrefixes), "ns/path")
			runtime.KeepAlive(tab)
		})
	}
}

// BenchmarkWithdrawSource takes the better of two sources of 100,000 prefixes away.
func BenchmarkWithdrawSource(b *testing.B) {
	tab := benchTable()
	load(tab, peer1, peer2)
	f := tab.Subscribe()
	f.take()
	for b.Loop() {
		tab.WithdrawSource(peer1)
		b.StopTimer()
		if len(f.pending) != benchPrefixes {
			b.Fatalf("%d keys changed", len(f.pending))
		}
		load(tab, peer1)
		f.take()
		b.StartTimer()
	}
}

// BenchmarkNextHopDown makes a VTEP with 100,000 prefixes unusable and usable.
func BenchmarkNextHopDown(b *testing.B) {
	tab := benchTable()
	load(tab, gateway1, gateway2)
	for b.Loop() {
		tab.SetNextHop(NextHop{Addr: gateway1.Addr}, Unreachable)
		tab.SetNextHop(NextHop{Addr: gateway1.Addr}, Reachable)
	}
}

// BenchmarkUpdate replaces one path of a full table and hands the change to a consumer.
func BenchmarkUpdate(b *testing.B) {
	tab := benchTable()
	load(tab, peer1, peer2)
	f := tab.Subscribe()
	f.take()
	i := 0
	for b.Loop() {
		p := benchPath(peer1, i%benchPrefixes)
		p.Attrs.MED, p.Attrs.HasMED = uint32(i), true
		tab.Update(p)
		f.take()
		i++
	}
}

// BenchmarkLookup asks for the longest match of an address in a full table.
func BenchmarkLookup(b *testing.B) {
	tab := benchTable()
	load(tab, peer1)
	tab.Update(benchPath(peer1, 0), Path{Key: PathKey{Source: peer1, Prefix: netip.MustParsePrefix("0.0.0.0/0")}})
	for _, a := range []string{"1.0.0.77/32", "9.9.9.9/32"} {
		b.Run(fmt.Sprint(a), func(b *testing.B) {
			p := netip.MustParsePrefix(a)
			for b.Loop() {
				if _, ok := tab.Lookup("A", p); !ok {
					b.Fatal("nothing found")
				}
			}
		})
	}
}

// BenchmarkSourceDown makes the better of two peers with 100,000 prefixes unusable, with a consumer that has seen all, and usable
// again; ns/op is for one of the two.
func BenchmarkSourceDown(b *testing.B) {
	tab := benchTable()
	load(tab, peer1, peer2)
	f := tab.Subscribe()
	f.take()
	down := false
	for b.Loop() {
		down = !down
		reach := Reachable
		if down {
			reach = Unreachable
		}
		tab.SetSource(peer1, reach)
		b.StopTimer()
		if batch, ok, _ := f.take(); !ok || len(batch.Choices) != benchPrefixes {
			b.Fatalf("%d keys changed", len(batch.Choices))
		}
		b.StartTimer()
	}
}

// BenchmarkManyNextHops fills a table with 100,000 prefixes that have a next hop each, all of them behind one static route.
func BenchmarkManyNextHops(b *testing.B) {
	var ps []Path
	for i := range benchPrefixes {
		p := benchPath(peer1, i)
		n := i * 7919 % benchPrefixes // in no order
		p.Attrs.NextHop = netip.AddrFrom4([4]byte{11, byte(n >> 16), byte(n >> 8), byte(n)})
		ps = append(ps, p)
	}
	for b.Loop() {
		tab := resolving()
		tab.Update(path(staticA, netip.MustParsePrefix("0.0.0.0/0"), nextHop("172.16.1.2")))
		for c := range slices.Chunk(ps, 1000) {
			tab.Update(c...)
		}
		if n := tab.Len("A"); n != benchPrefixes+1 {
			b.Fatalf("%d prefixes are chosen", n)
		}
	}
}
