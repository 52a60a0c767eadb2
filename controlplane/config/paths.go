// SPDX-License-Identifier: Apache-2.0

package config

import "net/netip"

// Locator is an end of a path: an address of an uplink, and the label of the fabric it is on ("" is none).
type Locator struct {
	Addr   netip.Addr
	Fabric string
}

// Pair is a path: indices into the local and the remote locators that Pairs was given.
type Pair struct {
	Local, Remote int
}

// Pairs decides which pairs of a local and a remote locator are paths: all pairs of one family or, where both sides carry
// a label, only those of equal labels. The order is that of the local locators, then of the remote ones.
//
// This is the only place that knows the rule. Both ends come to the same pairs, because it is symmetric.
func Pairs(local, remote []Locator) []Pair {
	var out []Pair
	for i, l := range local {
		for j, r := range remote {
			if FamilyOf(l.Addr) == FamilyOf(r.Addr) && joined(l.Fabric, r.Fabric) {
				out = append(out, Pair{Local: i, Remote: j})
			}
		}
	}
	return out
}

// joined reports whether locators with these labels reach each other.
func joined(a, b string) bool {
	return a == "" || b == "" || a == b
}

// Pairs returns the paths from the local locators, as found on the uplinks, to the peer.
func (p *Peer) Pairs(local []Locator) []Pair {
	return Pairs(local, p.Locators)
}

// MaxPaths returns how many paths of family f this host can have to the peer: an uplink without listed addresses counts
// as one locator of each family.
func (c *Config) MaxPaths(p *Peer, f Family) int {
	n := 0
	for i := range c.Uplinks {
		for _, r := range p.Locators {
			if FamilyOf(r.Addr) == f && joined(c.Uplinks[i].Fabric, r.Fabric) {
				n += c.Uplinks[i].slots(f)
			}
		}
	}
	return n
}
