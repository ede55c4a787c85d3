package main

import (
	"math"
	"slices"
)

// percentile is the smallest of the values that at least that share of them, 0 to 1, does not exceed (nearest rank); 0 of none.
func percentile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	i := int(math.Ceil(share*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// within is how many of the values are at most limit.
func within(values []float64, limit float64) (n int) {
	for _, v := range values {
		if v <= limit {
			n++
		}
	}
	return n
}

// most is the largest of the values, 0 of none.
func most(values []float64) float64 { return percentile(values, 1) }

// sum of the values.
func sum(values []float64) (s float64) {
	for _, v := range values {
		s += v
	}
	return s
}
