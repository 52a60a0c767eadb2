// SPDX-License-Identifier: Apache-2.0

// Package buckets fills the table of 256 buckets by which the egress program spreads the flows of a
// peer over its paths (docs/architecture.md, Choosing a path).
package buckets

import (
	"cmp"
	"fmt"
	"slices"
)

// Count is the number of buckets of a group (PLAIT_BUCKETS of headers/types.h).
const Count = 256

// Assign returns the bucket table of a group whose path i has weights[i], changed from old in as
// few buckets as possible: each bucket that changes moves the flows that hash to it.
//
// The paths share the buckets by largest remainder: path i gets its exact share of 256 rounded down,
// and what is left goes, one bucket each, to the paths with the largest fractions. Paths whose
// fractions are equal are served in the order that moves fewer buckets: first those that hold
// more than their rounded-down share in old, then by lower number. A path of weight 0 gets none;
// if all weights are 0 they count as equal. A number in old that weights does not have counts as
// no path. The result depends on nothing but the arguments.
//
// It panics unless there are 1 to 256 weights.
func Assign(old [Count]uint8, weights []uint32) [Count]uint8 {
	if len(weights) == 0 || len(weights) > Count {
		panic(fmt.Sprintf("buckets: %d weights", len(weights)))
	}
	var have [Count]int
	for _, path := range old {
		have[path]++
	}
	missing := shares(weights, have[:len(weights)])
	for i := range missing {
		missing[i] -= have[i]
	}

	// A path that holds too many gives its last buckets to the paths that hold too few.
	table := old
	next := 0
	for b := Count - 1; b >= 0; b-- {
		path := int(table[b])
		if path < len(missing) {
			if missing[path] >= 0 {
				continue
			}
			missing[path]++
		}
		for missing[next] <= 0 {
			next++
		}
		missing[next]--
		table[b] = uint8(next)
	}
	return table
}

// shares is how many buckets each path gets; have is how many it holds now.
func shares(weights []uint32, have []int) []int {
	var sum uint64
	for _, w := range weights {
		sum += uint64(w)
	}
	share := make([]int, len(weights))
	rest := make([]uint64, len(weights)) // fraction, in units of 1/sum
	candidates := make([]int, 0, len(weights))
	left := Count
	for i, w := range weights {
		weight, total := uint64(w), sum
		if sum == 0 {
			weight, total = 1, uint64(len(weights))
		}
		// At most 2^40: the product of a 32-bit weight and 256 does not overflow.
		share[i], rest[i] = int(weight*Count/total), weight*Count%total
		left -= share[i]
		if rest[i] > 0 {
			candidates = append(candidates, i)
		}
	}
	holdsMore := func(i int) int {
		if have[i] > share[i] {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(candidates, func(i, j int) int {
		return cmp.Or(cmp.Compare(rest[j], rest[i]), cmp.Compare(holdsMore(i), holdsMore(j)))
	})
	for _, i := range candidates[:left] {
		share[i]++
	}
	return share
}
