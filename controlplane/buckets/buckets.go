// SPDX-License-Identifier: Apache-2.0

// Package buckets shares the 256 buckets of a group among its paths by weight.
package buckets

import "slices"

// Count is the number of buckets of a group.
const Count = 256

// Assign returns the path number of each bucket: in proportion to weights (by largest remainder, so
// the counts add up to 256), moving as few buckets from old as possible. A path of weight 0 gets
// none; if all are 0 they count as equal. len(weights) is 1..256; numbers in old that are out of
// range are replaced.
func Assign(old [Count]uint8, weights []uint32) [Count]uint8 {
	left := quotas(weights)
	out := old
	var homeless []int
	for i, n := range old {
		if int(n) < len(left) && left[n] > 0 {
			left[n]--
		} else {
			homeless = append(homeless, i)
		}
	}
	// Round robin, so that the buckets of one path lie apart.
	for len(homeless) > 0 {
		for n := range left {
			if left[n] > 0 && len(homeless) > 0 {
				out[homeless[0]] = uint8(n)
				homeless = homeless[1:]
				left[n]--
			}
		}
	}
	return out
}

// quotas is how many buckets each path gets.
func quotas(weights []uint32) []int {
	var total uint64
	for _, w := range weights {
		total += uint64(w)
	}
	weight := func(n int) uint64 {
		if total == 0 {
			return 1
		}
		return uint64(weights[n])
	}
	sum := total
	if total == 0 {
		sum = uint64(len(weights))
	}
	quota, order := make([]int, len(weights)), make([]int, len(weights))
	given := 0
	for n := range weights {
		quota[n] = int(Count * weight(n) / sum)
		given += quota[n]
		order[n] = n
	}
	slices.SortStableFunc(order, func(a, b int) int {
		ra, rb := Count*weight(a)%sum, Count*weight(b)%sum
		switch {
		case ra > rb:
			return -1
		case ra < rb:
			return 1
		}
		return 0
	})
	for _, n := range order[:Count-given] {
		quota[n]++
	}
	return quota
}
