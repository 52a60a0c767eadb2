// SPDX-License-Identifier: Apache-2.0

package buckets_test

import (
	"math/big"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/plait-net/plait/controlplane/buckets"
)

func counts(table [buckets.Count]uint8) (n [buckets.Count]int) {
	for _, path := range table {
		n[path]++
	}
	return n
}

func moves(old, table [buckets.Count]uint8) (n int) {
	for b := range old {
		if old[b] != table[b] {
			n++
		}
	}
	return n
}

// allShares lists every apportionment of the buckets by largest remainder: more than one where
// fractions are equal. It counts with exact rationals and tries every set of paths that are rounded
// up.
func allShares(weights []uint32) [][]int {
	sum := new(big.Rat)
	for _, w := range weights {
		sum.Add(sum, new(big.Rat).SetUint64(uint64(w)))
	}
	exact := make([]*big.Rat, len(weights))
	floor := make([]int, len(weights))
	left := buckets.Count
	for i, w := range weights {
		if sum.Sign() == 0 {
			exact[i] = big.NewRat(buckets.Count, int64(len(weights)))
		} else {
			exact[i] = new(big.Rat).SetUint64(uint64(w))
			exact[i].Mul(exact[i], big.NewRat(buckets.Count, 1)).Quo(exact[i], sum)
		}
		floor[i] = int(new(big.Int).Quo(exact[i].Num(), exact[i].Denom()).Int64())
		exact[i].Sub(exact[i], big.NewRat(int64(floor[i]), 1))
		left -= floor[i]
	}
	var all [][]int
	for set := range 1 << len(weights) {
		up, ok := slices.Clone(floor), true
		n := 0
		for i := range weights {
			if set>>i&1 == 0 {
				continue
			}
			n++
			up[i]++
			ok = ok && exact[i].Sign() > 0
			for j := range weights { // nobody with a larger fraction stays behind
				ok = ok && (set>>j&1 == 1 || exact[j].Cmp(exact[i]) <= 0)
			}
		}
		if ok && n == left {
			all = append(all, up)
		}
	}
	return all
}

// fewest is the least number of buckets that must change for the given shares: each path keeps at
// most what it has and at most what it gets.
func fewest(old [buckets.Count]uint8, share []int) int {
	have, kept := counts(old), 0
	for i, n := range share {
		kept += min(n, have[i])
	}
	return buckets.Count - kept
}

func TestAssignAgainstOracle(t *testing.T) {
	weight := rapid.OneOf(rapid.Uint32Range(0, 3), rapid.Uint32Range(0, 255), rapid.Uint32())
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(weight, 1, 10).Draw(t, "weights")
		var old [buckets.Count]uint8
		switch rapid.IntRange(0, 2).Draw(t, "old") {
		case 0: // anything, also numbers of paths that are gone
			for b := range old {
				old[b] = rapid.Uint8Range(0, 12).Draw(t, "number")
			}
		case 1: // what other weights gave
			old = buckets.Assign(old, rapid.SliceOfN(weight, 1, 12).Draw(t, "earlier"))
		}

		table := buckets.Assign(old, weights)
		got := counts(table)
		if i := slices.IndexFunc(got[len(weights):], func(n int) bool { return n > 0 }); i >= 0 {
			t.Fatalf("path %d of %d holds buckets", len(weights)+i, len(weights))
		}
		all := allShares(weights)
		if !slices.ContainsFunc(all, func(s []int) bool {
			return slices.Equal(s, got[:len(weights)])
		}) {
			t.Fatalf("weights %v: counts %v, want one of %v", weights, got[:len(weights)], all)
		}
		least := buckets.Count
		for _, s := range all {
			least = min(least, fewest(old, s))
		}
		if n := moves(old, table); n != least {
			t.Fatalf("weights %v: %d buckets moved, %d would do", weights, n, least)
		}
		if buckets.Assign(old, weights) != table {
			t.Fatal("the same arguments gave another table")
		}
		if buckets.Assign(table, weights) != table {
			t.Fatal("the same weights moved buckets")
		}
	})
}

func TestAssignExamples(t *testing.T) {
	var zero [buckets.Count]uint8
	for _, test := range []struct {
		weights []uint32
		want    []int
	}{
		{[]uint32{1}, []int{256}},
		{[]uint32{0}, []int{256}},
		{[]uint32{0, 0}, []int{128, 128}},
		{[]uint32{0, 7}, []int{0, 256}},
		{[]uint32{1, 1}, []int{128, 128}},
		{[]uint32{1, 1, 1}, []int{86, 85, 85}},
		{[]uint32{3, 1}, []int{192, 64}},
		{[]uint32{1, 255}, []int{1, 255}},
		{[]uint32{1, 1000}, []int{0, 256}},
		{[]uint32{1<<32 - 1, 1<<32 - 1}, []int{128, 128}},
	} {
		got := counts(buckets.Assign(zero, test.weights))
		if !slices.Equal(got[:len(test.want)], test.want) {
			t.Errorf("weights %v: %v, want %v", test.weights, got[:len(test.want)], test.want)
		}
	}
}

func TestAssignRefusesNoWeights(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	buckets.Assign([buckets.Count]uint8{}, nil)
}
