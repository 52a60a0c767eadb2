// SPDX-License-Identifier: Apache-2.0

// Package world fills maps and state as an agent would leave them, for tests of what reads them. No
// kernel program runs and nothing is attached; tests then change single words.
package world

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/plait-net/plait/bpf"
	"github.com/plait-net/plait/controlplane/state"
	"github.com/plait-net/plait/maps"
)

// Now is the world's CLOCK_MONOTONIC in ns, and Wall its wall clock.
const Now = uint64(1_000_000 * time.Second)

// Wall is the wall clock at Now.
var Wall = time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)

// Round is the newest round that all groups sent and all paths answered.
const Round = 100_000

// Options say how large a world is.
type Options struct {
	Uplinks, Peers int
	Families       []maps.Family
	Mesh           bool // every pair of locators is a path; those across fabrics have no route
}

// World is a host named a with peers b, c, ..., or p1, p2, ... if there are many. On fabric i, host j
// (a is 1) has the locators 10.i.j.2 and fd00:i:j::2; its identities are 10.255.0.j and fd00:255::j.
type World struct {
	Set   *maps.Set
	State *state.State
}

// New makes a world where everything is well. It is gone after the test.
func New(tb testing.TB, o Options) *World {
	tb.Helper()
	perGroup := o.Uplinks
	if o.Mesh {
		perGroup *= o.Uplinks
	}
	groups := o.Peers * len(o.Families)
	set := newSet(tb, maps.Sizes{Groups: uint32(max(groups, 8)), Paths: uint32(max(groups*perGroup, 64))})
	w := &World{set, &state.State{
		Version: "v0.1.0", PID: 4242, Started: Wall.Add(-50 * time.Hour), Config: "/etc/plait/plait.yaml", Host: "a",
	}}
	for _, f := range o.Families {
		w.State.Identities = append(w.State.Identities, Identity(f, 1))
	}
	for i := 1; i <= o.Uplinks; i++ {
		u := state.Uplink{
			Name: fmt.Sprintf("up%d", i), Number: uint8(i - 1), Ifindex: 10 + i, MTU: 1500, Carrier: true,
			Hook: "tc", HookWhy: "driver veth",
		}
		for _, f := range o.Families {
			u.Locators = append(u.Locators, Locator(f, i, 1))
		}
		w.State.Uplinks = append(w.State.Uplinks, u)
		w.Set.Settings.Uplinks |= 1 << u.Number
	}
	next := uint32(0) // path
	for j := 2; j < 2+o.Peers; j++ {
		peer := state.Peer{Name: fmt.Sprintf("p%d", j-1)}
		if o.Peers <= 20 {
			peer.Name = string(rune('a' + j - 1))
		}
		for fi, f := range o.Families {
			g := state.Group{Family: f, Index: uint32((j-2)*len(o.Families) + fi), Identity: Identity(f, j)}
			peer.Groups = append(peer.Groups, g)
			next = w.fillGroup(tb, g, j, next, o)
		}
		w.State.Peers = append(w.State.Peers, peer)
	}
	return w
}

// newSet creates all maps, as the programs declare them, and no program.
func newSet(tb testing.TB, sizes maps.Sizes) *maps.Set {
	tb.Helper()
	all := map[string]*ebpf.Map{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadEgress, bpf.LoadIngressTC, bpf.LoadIngressXDP} {
		spec, err := load()
		must(tb, err)
		sizes.Apply(spec)
		for _, name := range maps.Names() {
			if spec.Maps[name] != nil && all[name] == nil {
				all[name], err = ebpf.NewMap(spec.Maps[name])
				must(tb, err)
			}
		}
	}
	set, err := maps.New(all, true)
	must(tb, err)
	tb.Cleanup(func() {
		if err := set.Close(); err != nil {
			tb.Error(err)
		}
	})
	return set
}

func (w *World) fillGroup(tb testing.TB, sg state.Group, host int, first uint32, o Options) uint32 {
	tb.Helper()
	g, gs := w.Set.Groups.At(sg.Index), w.Set.GroupStates.At(sg.Index)
	g.FirstPath, g.Family = first, uint32(sg.Family)
	gs.Sent, gs.Newest, gs.Caps = Round, Round, maps.CapMark
	add := func(local, remote int) {
		n, i := g.PathCount, first+g.PathCount
		p := maps.Path{
			Local: Locator(sg.Family, local, 1), Remote: Locator(sg.Family, remote, host),
			Identity: Identity(sg.Family, 1), PeerIdentity: sg.Identity,
			Group: sg.Index, Uplink: uint8(local - 1), Number: uint8(n), Ifindex: 10 + local,
		}
		ps := w.Set.PathStates.At(i)
		ps.Multiplier, ps.MinMultiplier = 3, 3
		if local == remote {
			p.NextHop = Gateway(sg.Family, local)
			gs.Fresh |= 1 << n
			gs.Up |= 1 << n
			ps.Newest, ps.Heard = Round, Round
			ps.Since = Now - uint64(3*time.Hour)
			ps.SampleAt = Now - uint64(16*time.Millisecond)
			ps.Probes, ps.Replies = Round, Round-5
			w.putTraffic(tb, i, maps.PathStats{Requests: requests})
			ps.RttNs, ps.BaseLag = uint64(100_000+1000*i), 1
		}
		w.Set.SetPath(i, p)
		must(tb, w.Set.SetPair(p.Local, p.Remote, i))
		g.PathCount++
	}
	for l := 1; l <= o.Uplinks; l++ {
		for r := 1; r <= o.Uplinks; r++ {
			if l == r || o.Mesh {
				add(l, r)
			}
		}
	}
	var usable []uint8
	for n := range g.PathCount {
		if gs.Up>>n&1 != 0 {
			usable = append(usable, uint8(n))
		}
	}
	for b := range g.Bucket {
		g.Bucket[b] = usable[b*len(usable)/len(g.Bucket)]
	}
	must(tb, w.Set.SetIdentity(sg.Identity, sg.Index))
	return first + g.PathCount
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// Identity returns host's identity.
func Identity(f maps.Family, host int) netip.Addr {
	if f == maps.IPv4 {
		return netip.AddrFrom4([4]byte{10, 255, byte(host >> 8), byte(host)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:255::%x", host))
}

// Locator returns host's address on a fabric.
func Locator(f maps.Family, fabric, host int) netip.Addr {
	if f == maps.IPv4 {
		return netip.AddrFrom4([4]byte{10, byte(fabric + 16*(host>>8)), byte(host), 2})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:%x:%x::2", fabric, host))
}

// Gateway returns the router of our uplink on a fabric.
func Gateway(f maps.Family, fabric int) netip.Addr {
	if f == maps.IPv4 {
		return netip.AddrFrom4([4]byte{10, byte(fabric), 1, 1})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:%x:1::1", fabric))
}

// Lose takes fresh and up from path n of a group, ago before Now, as the kernel programs do.
func (w *World) Lose(group, n uint32, ago time.Duration) {
	gs := w.Set.GroupStates.At(group)
	gs.Fresh &^= 1 << n
	gs.Up &^= 1 << n
	ps := w.PathState(group, n)
	ps.ClearedAt = Now - uint64(ago)
	ps.Since = ps.ClearedAt
	ps.SampleAt = ps.ClearedAt
	ps.Newest, ps.Heard = Round-uint64(ago/time.Millisecond), Round-uint64(ago/time.Millisecond)
	ps.Losses++
	ps.Flaps++
	ps.LossPpm = 1_000_000
}

// Silence makes a peer's family unreachable, as the agent does when nothing answers: the masks stay.
func (w *World) Silence(group uint32, ago time.Duration) {
	w.Set.GroupStates.At(group).Unreachable = 1
	for n := range w.Set.Groups.At(group).PathCount {
		w.PathState(group, n).SampleAt = Now - uint64(ago)
	}
}

// Forget makes path n of a group one that never answered.
func (w *World) Forget(group, n uint32) {
	gs := w.Set.GroupStates.At(group)
	gs.Fresh &^= 1 << n
	gs.Up &^= 1 << n
	old := w.PathState(group, n)
	*old = maps.PathState{Probes: old.Probes, Multiplier: 3, MinMultiplier: 3}
}

// Unplug takes the carrier from an uplink, 0 being the first.
func (w *World) Unplug(uplink int) {
	w.State.Uplinks[uplink].Carrier = false
	w.State.Uplinks[uplink].Problem = "no carrier"
	w.Set.Settings.Uplinks &^= 1 << uplink
}

// PathState returns the liveness of path n of a group.
func (w *World) PathState(group, n uint32) *maps.PathState {
	return w.Set.PathStates.At(w.Set.Groups.At(group).FirstPath + n)
}

// requests is how many of the peer's probes a path has answered.
const requests = Round - 7

// SetTraffic stores the traffic of path n of a group, spread over the CPUs.
func (w *World) SetTraffic(tb testing.TB, group, n uint32, sum maps.PathStats) {
	tb.Helper()
	sum.Requests = requests
	w.putTraffic(tb, w.Set.Groups.At(group).FirstPath+n, sum)
}

func (w *World) putTraffic(tb testing.TB, path uint32, sum maps.PathStats) {
	tb.Helper()
	cpus, err := ebpf.PossibleCPU()
	must(tb, err)
	values := make([]maps.PathStats, cpus)
	values[cpus-1] = sum
	if cpus > 1 && sum.TxPackets > 0 {
		values[cpus-1].TxPackets--
		values[0].TxPackets = 1
	}
	must(tb, w.Set.Maps["path_traffic"].Put(path, values))
}

// SetReason stores how many packets a reason has, spread over the CPUs.
func (w *World) SetReason(tb testing.TB, name string, n uint64) {
	tb.Helper()
	cpus, err := ebpf.PossibleCPU()
	must(tb, err)
	values := make([]uint64, cpus)
	values[0] = n / 2
	values[cpus-1] += n - n/2
	reasons, err := w.Set.Reasons()
	must(tb, err)
	for r := range reasons {
		if r.String() == name {
			must(tb, w.Set.Maps["reasons"].Put(uint32(r), values))
			return
		}
	}
	tb.Fatalf("there is no reason %s", name)
}
