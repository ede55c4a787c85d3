package config

import "slices"

// RankAt is the rank of the tunnel in the given place of a link's list: its own, or else the place. 0 is preferred; tunnels of equal
// rank share traffic.
func (t Tunnel) RankAt(place int) int {
	if t.Rank != nil {
		return *t.Rank
	}
	return place
}

// ranks checks that the ranks of a link's tunnels count from 0 without a gap: one that is missing is a slip of the pen.
func (v *validator) ranks(ts []Tunnel, path string) {
	var ranks []int
	for place, t := range ts {
		if t.Rank != nil && (*t.Rank < 0 || *t.Rank >= len(ts)) {
			v.number(index(path, place)+".rank", int64(*t.Rank), 0, int64(len(ts)-1))
			return
		}
		ranks = append(ranks, t.RankAt(place))
	}
	for want := range slices.Max(append(ranks, -1)) + 1 {
		if !slices.Contains(ranks, want) {
			v.add(path, "write rank at each of them, counting from 0; equal ranks share traffic", "no tunnel has rank %d, and one has a higher one", want)
			return
		}
	}
}
