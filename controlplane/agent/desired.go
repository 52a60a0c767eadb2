// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/controlplane/probe"
	"github.com/plait-net/plait/controlplane/state"
	"github.com/plait-net/plait/maps"
)

// pathID is what makes a path itself: as long as it stays, so do its numbers and its liveness.
type pathID struct {
	local, remote, identity, peerIdentity netip.Addr
	uplink                                uint8
}

// wantPath is a path as it shall be in the maps.
type wantPath struct {
	pathID
	weight  uint32
	ifindex int        // 0: the uplink is missing
	nextHop netip.Addr // invalid: no route
}

// sendable says whether the path leads anywhere.
func (p wantPath) sendable() bool { return p.ifindex != 0 && p.nextHop.IsValid() }

// wantGroup is a peer in one family as it shall be in the maps.
type wantGroup struct {
	peer     int // index in config.Peers
	family   maps.Family
	identity netip.Addr // the peer's
	paths    []wantPath
}

// numberUplinks gives every configured uplink its bit in maps.Settings.Uplinks. One that an earlier
// agent knew keeps its number, so that its paths stay what they are.
func numberUplinks(cfg *config.Config, old *state.State) map[string]uint8 {
	numbers := make(map[string]uint8, len(cfg.Uplinks))
	var taken uint64
	if old != nil {
		for _, u := range old.Uplinks {
			if slices.ContainsFunc(cfg.Uplinks, func(c config.Uplink) bool { return c.Name == u.Name }) {
				numbers[u.Name] = u.Number
				taken |= 1 << u.Number
			}
		}
	}
	for _, u := range cfg.Uplinks {
		if _, ok := numbers[u.Name]; ok {
			continue
		}
		for n := range uint8(64) {
			if taken>>n&1 == 0 {
				numbers[u.Name] = n
				taken |= 1 << n
				break
			}
		}
	}
	return numbers
}

// locators returns the uplink's locators, one a family where the file does not list them, and keeps
// the last known ones of an interface that is missing or has lost its address: the paths stay, down.
func locators(u *config.Uplink, live hostnet.Uplink, last []netip.Addr) (out []netip.Addr, problem string) {
	if len(u.Addresses) > 0 {
		for _, a := range u.Addresses {
			if live.Index != 0 && !slices.Contains(live.Addrs, a) {
				problem = fmt.Sprintf("address %s is not on the interface", a)
			}
		}
		return u.Addresses, problem
	}
	for _, f := range config.Families {
		of := func(as []netip.Addr) (netip.Addr, bool) {
			i := slices.IndexFunc(as, func(a netip.Addr) bool { return config.FamilyOf(a) == f })
			if i < 0 {
				return netip.Addr{}, false
			}
			return as[i], true
		}
		if a, ok := of(live.Addrs); ok {
			out = append(out, a)
		} else if a, ok := of(last); ok {
			out = append(out, a)
		}
	}
	if live.Index != 0 && len(live.Addrs) == 0 {
		problem = "interface has no global address"
	}
	return out, problem
}

// desired is the pure function from configuration and host to groups. numbers and last are by uplink
// name; ups holds the interfaces that exist.
func desired(cfg *config.Config, numbers map[string]uint8, ups map[string]hostnet.Uplink,
	locs map[string][]netip.Addr, routes *hostnet.Routes,
) []wantGroup {
	type origin struct {
		uplink *config.Uplink
		live   hostnet.Uplink
	}
	var local []config.Locator
	var from []origin
	for i := range cfg.Uplinks {
		u := &cfg.Uplinks[i]
		for _, a := range locs[u.Name] {
			local = append(local, config.Locator{Addr: a, Fabric: u.Fabric})
			from = append(from, origin{u, ups[u.Name]})
		}
	}
	var groups []wantGroup
	for pi := range cfg.Peers {
		peer := &cfg.Peers[pi]
		pairs := peer.Pairs(local)
		for _, f := range config.Families {
			own, theirs := cfg.Identity.Of(f), peer.Identity.Of(f)
			if !own.IsValid() || !theirs.IsValid() {
				continue
			}
			g := wantGroup{peer: pi, family: maps.FamilyOf(theirs), identity: theirs}
			for _, p := range pairs {
				l, r := local[p.Local].Addr, peer.Locators[p.Remote].Addr
				if config.FamilyOf(l) != f || len(g.paths) == maps.MaxPaths {
					continue
				}
				o := from[p.Local]
				w := wantPath{
					pathID: pathID{l, r, own, theirs, numbers[o.uplink.Name]},
					weight: uint32(o.uplink.Weight), ifindex: o.live.Index,
				}
				if o.live.Index != 0 {
					w.nextHop = nextHop(routes, o.live.Index, r, o.uplink.Gateways.Of(f))
				}
				g.paths = append(g.paths, w)
			}
			if len(g.paths) > 0 {
				groups = append(groups, g)
			}
		}
	}
	return groups
}

// nextHop is the remote locator itself where it is on-link, else the configured gateway, else what
// the kernel's routes say; invalid if they say nothing.
func nextHop(routes *hostnet.Routes, ifindex int, remote, gateway netip.Addr) netip.Addr {
	hop, err := routes.NextHop(ifindex, remote, netip.Addr{})
	if gateway.IsValid() && (err != nil || hop != remote) {
		return gateway
	}
	return hop
}

// probeGroups says what the sender shall probe: the paths that can be sent on, with the keys that
// sign their requests.
func probeGroups(groups []*group, sign func(*group, int) (uint8, probe.Key)) []probe.Group {
	out := make([]probe.Group, 0, len(groups))
	for _, g := range groups {
		pg := probe.Group{Index: g.index}
		for i, p := range g.want.paths {
			if !p.sendable() {
				continue
			}
			id, key := sign(g, i)
			pg.Paths = append(pg.Paths, probe.Path{
				Index: g.first + uint32(i), Number: uint8(i), Uplink: p.uplink,
				Local: p.local, Remote: p.remote, KeyID: id, Key: key,
			})
		}
		out = append(out, pg)
	}
	return out
}
