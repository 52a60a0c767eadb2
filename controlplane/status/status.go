// SPDX-License-Identifier: Apache-2.0

// Package status takes snapshots of the data plane from its pinned maps and the state file. No agent
// is needed for it. One struct is behind `plait status`, `plait status -o json` and the metrics.
package status

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/state"
	"github.com/plait-net/plait/maps"
)

// Status is one snapshot. Its JSON form is an interface for others: fields are added, never renamed.
type Status struct {
	Time     time.Time `json:"time"` // when it was taken
	Host     string    `json:"host"`
	Version  string    `json:"version"` // of the agent that runs, or ran last
	Headline Headline  `json:"headline"`
	Problems []string  `json:"problems"` // everything that is wrong, worst first; empty if all is well

	Agent      Agent        `json:"agent"`
	Identities []netip.Addr `json:"identities"` // this host's
	Uplinks    []Uplink     `json:"uplinks"`
	Peers      []Peer       `json:"peers"` // one for each peer and family

	Drops      map[string]uint64 `json:"drops"`   // packets dropped and probes refused, every maps.Reason that does so
	Counted    map[string]uint64 `json:"counted"` // packets of the other reasons, which were only counted
	Maps       map[string]Fill   `json:"maps"`    // by MapGroups, MapPaths, MapIdentities, MapPairs
	EventsLost uint64            `json:"events_lost"`
}

// Headline answers in one line whether anything is wrong.
type Headline struct {
	State Health `json:"state"`
	Text  string `json:"text"`
}

// Health is the state of the whole host.
type Health string

// How a host can be.
const (
	OK       Health = "ok"
	Degraded Health = "degraded" // every peer can be reached, but something is missing
	Broken   Health = "broken"   // a peer cannot be reached
)

// Agent is the user-space process.
type Agent struct {
	Running bool      `json:"running"`
	PID     int       `json:"pid,omitempty"` // 0 if it does not run
	Started time.Time `json:"started,omitzero"`
	Config  string    `json:"config,omitempty"` // path of its configuration file
}

// Uplink is a local interface.
type Uplink struct {
	Name     string       `json:"name"`
	State    UplinkState  `json:"state"`
	Problem  string       `json:"problem,omitempty"`
	Ifindex  int          `json:"ifindex"` // 0: the interface does not exist
	MTU      int          `json:"mtu"`
	Carrier  bool         `json:"carrier"`
	Locators []netip.Addr `json:"locators"`
	Hook     string       `json:"hook"`               // "xdp" or "tc"; empty: no ingress program is attached
	HookWhy  string       `json:"hook_why,omitempty"` // why it is not native XDP

	// Translated traffic of all its paths.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
}

// UplinkState says whether the kernel programs send through an uplink.
type UplinkState string

// States of an uplink.
const (
	UplinkUp   UplinkState = "up"
	UplinkDown UplinkState = "down"
)

// Peer is a peer in one address family.
type Peer struct {
	Name     string     `json:"name"`
	Family   int        `json:"family,omitempty"` // 4 or 6; 0: the peer has no path in any family
	Identity netip.Addr `json:"identity,omitzero"`
	State    PeerState  `json:"state"`
	Since    time.Time  `json:"since,omitzero"` // when an unreachable peer last answered, to about one round
	Problem  string     `json:"problem,omitempty"`
	Paths    []Path     `json:"paths"`
}

// PeerState is the state of a peer in one family.
type PeerState string

// States of a peer.
const (
	PeerUp          PeerState = "up"          // every path that ever answered is up
	PeerDegraded    PeerState = "degraded"    // it is reachable, and a path is down or in hold-down
	PeerUnreachable PeerState = "unreachable" // nothing of it answers, or nothing may be sent to it
	PeerUnreached   PeerState = "unreached"   // it never answered
)

// Reachable says whether packets to the peer arrive, as far as can be known here.
func (p *Peer) Reachable() bool { return p.State == PeerUp || p.State == PeerDegraded }

// Path is a pair of locators.
type Path struct {
	Local   netip.Addr `json:"local"`
	Remote  netip.Addr `json:"remote"`
	Uplink  string     `json:"uplink"`
	NextHop netip.Addr `json:"next_hop,omitzero"` // none: no route
	State   PathState  `json:"state"`
	Problem string     `json:"problem,omitempty"`
	Since   time.Time  `json:"since,omitzero"` // of the state; none if unknown

	Fresh bool `json:"fresh"` // the kernel programs' view; the last path that answered stays fresh
	Up    bool `json:"up"`    // the same, past the hold-down

	RTT         float64 `json:"rtt_us"`      // µs, smoothed; 0 unknown
	Loss        float64 `json:"loss"`        // 0..1, of the probes of the last ten seconds
	Multiplier  uint32  `json:"multiplier"`  // rounds, as congestion raised it
	BaseLag     uint32  `json:"base_lag"`    // rounds
	Share       float64 `json:"share"`       // 0..1 of the group's buckets
	Transitions uint64  `json:"transitions"` // times it stopped answering
	Congested   uint64  `json:"congested"`   // of those, how often it answered again within 100 ms
	Flaps       uint64  `json:"flaps"`       // of those, how many count as flaps: congestion does not
	ProbesSent  uint64  `json:"probes_sent"`
	Replies     uint64  `json:"replies"`  // to our probes
	Requests    uint64  `json:"requests"` // the peer's probes that were answered here

	// Translated traffic; bytes with Ethernet headers, those of a GSO super-packet once.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxMoved   uint64 `json:"tx_moved"` // of TxPackets, those that came from a path that was not usable
}

// PathState is the state of a path.
type PathState string

// States of a path.
const (
	PathUp        PathState = "up"        // carries traffic
	PathFresh     PathState = "fresh"     // answers again, in hold-down
	PathDown      PathState = "down"      // answered before and does not now, or cannot be sent on
	PathUnreached PathState = "unreached" // never answered
)

// Fill says how full a map is.
type Fill struct {
	Used uint32 `json:"used"`
	Size uint32 `json:"size"`
}

// Keys of Status.Maps.
const (
	MapGroups     = "groups" // peers times families
	MapPaths      = "paths"
	MapIdentities = "identities"
	MapPairs      = "pairs" // of locators, both families together
)

// Texts of problems that more than one place speaks of.
const (
	noAnswer   = "no answer"
	neverSpoke = "never answered"
)

// Take returns a snapshot of set, with the names that st gives to its numbers. running says whether
// an agent runs; if none does, the paths are as the last one left them.
func Take(set *maps.Set, st *state.State, running bool) (*Status, error) {
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return nil, fmt.Errorf("reading the clock: %w", err)
	}
	return take(set, st, running, clock{time.Now(), uint64(mono.Nano())})
}

// clock is one instant on both clocks: the maps hold CLOCK_MONOTONIC.
type clock struct {
	wall time.Time
	mono uint64
}

// at returns the wall clock's time of a monotonic one, zero for 0.
func (c clock) at(ns uint64) time.Time {
	if ns == 0 || ns > c.mono {
		return time.Time{}
	}
	return c.wall.Add(-time.Duration(c.mono - ns)).Truncate(time.Millisecond)
}

// taker holds what one Take needs throughout.
type taker struct {
	set     *maps.Set
	now     clock
	running bool
	traffic []maps.PathStats
	usable  uint64            // uplinks
	uplinks map[uint8]*Uplink // by number
}

func take(set *maps.Set, st *state.State, running bool, now clock) (*Status, error) {
	s := &Status{
		Time: now.wall, Host: st.Host, Version: st.Version,
		Agent:      Agent{Running: running, Started: st.Started, Config: st.Config},
		Identities: slices.Clone(st.Identities),
		Uplinks:    make([]Uplink, 0, len(st.Uplinks)),
		Peers:      make([]Peer, 0, 2*len(st.Peers)),
		EventsLost: atomic.LoadUint64(&set.Settings.EventsLost),
	}
	if running {
		s.Agent.PID = st.PID
	}
	if s.Identities == nil {
		s.Identities = []netip.Addr{}
	}
	t := &taker{
		set: set, now: now, running: running,
		usable: atomic.LoadUint64(&set.Settings.Uplinks), uplinks: map[uint8]*Uplink{},
	}
	for _, u := range st.Uplinks {
		s.Uplinks = append(s.Uplinks, t.uplink(u))
		t.uplinks[u.Number] = &s.Uplinks[len(s.Uplinks)-1] // the slice has room for all: it never moves
	}
	groups := t.groups(st)
	var last uint32 // path in use, plus one
	for _, g := range groups {
		last = max(last, g.FirstPath+g.PathCount)
	}
	var err error
	if t.traffic, err = set.Traffic(last); err != nil {
		return nil, err
	}
	for _, p := range st.Peers {
		before := len(s.Peers)
		for _, sg := range p.Groups {
			if g, ok := groups[sg.Index]; ok {
				s.Peers = append(s.Peers, t.peer(p.Name, sg, g))
			}
		}
		if len(s.Peers) == before {
			s.Peers = append(s.Peers, Peer{
				Name: p.Name, State: PeerUnreached, Paths: []Path{},
				Problem: "no path: no uplink has an address of a family that the peer has",
			})
		}
	}
	if err := t.counters(s); err != nil {
		return nil, err
	}
	if err := t.fill(s, groups); err != nil {
		return nil, err
	}
	s.assess()
	return s, nil
}

// groups copies what the state names of the map, without what cannot be: state and map are not
// written in one step.
func (t *taker) groups(st *state.State) map[uint32]maps.Group {
	out := map[uint32]maps.Group{}
	for _, p := range st.Peers {
		for _, sg := range p.Groups {
			if sg.Index >= t.set.Groups.Len() {
				continue
			}
			g := *t.set.Groups.At(sg.Index)
			if g.PathCount > maps.MaxPaths || g.FirstPath > t.set.Sizes().Paths-min(g.PathCount, t.set.Sizes().Paths) {
				continue
			}
			out[sg.Index] = g
		}
	}
	return out
}

func (t *taker) uplink(u state.Uplink) Uplink {
	out := Uplink{
		Name: u.Name, State: UplinkUp, Problem: u.Problem, Ifindex: u.Ifindex, MTU: u.MTU, Carrier: u.Carrier,
		Locators: slices.Clone(u.Locators), Hook: u.Hook, HookWhy: u.HookWhy,
	}
	if out.Locators == nil {
		out.Locators = []netip.Addr{}
	}
	if t.usable>>(u.Number&63)&1 == 0 {
		out.State = UplinkDown
	}
	switch {
	case out.Problem != "":
	case out.State == UplinkDown && u.Ifindex == 0:
		out.Problem = "no such interface"
	case out.State == UplinkDown && !u.Carrier:
		out.Problem = "no carrier"
	case out.State == UplinkDown:
		out.Problem = "not usable"
	case u.Hook == "":
		out.Problem = "no ingress program is attached: nothing is received"
	}
	return out
}

func (t *taker) peer(name string, sg state.Group, g maps.Group) Peer {
	gs := t.set.GroupStates.At(sg.Index)
	p := Peer{Name: name, Family: 4, Identity: sg.Identity, Paths: make([]Path, 0, g.PathCount)}
	if sg.Family == maps.IPv6 {
		p.Family = 6
	}
	var buckets [256]int
	for _, n := range g.Bucket {
		buckets[n]++
	}
	unreachable := atomic.LoadUint32(&gs.Unreachable) != 0
	var answering, falling int
	var all evidence
	for n := range g.PathCount {
		path, seen := t.path(g.FirstPath+n, n, gs, unreachable)
		path.Share = float64(buckets[n]) / maps.Buckets
		switch path.State {
		case PathUp:
			answering++
		case PathFresh:
			answering++
			falling++
		case PathDown:
			falling++
		}
		all.answered = all.answered || seen.answered
		all.sendable = all.sendable || seen.sendable
		all.sampled = max(all.sampled, seen.sampled)
		p.Paths = append(p.Paths, path)
	}
	switch {
	case !all.sendable:
		p.State, p.Problem = PeerUnreachable, "no path can be sent on: uplinks down or no route"
	case !all.answered:
		p.State, p.Problem = PeerUnreached, neverSpoke
	case answering == 0:
		p.State, p.Problem = PeerUnreachable, noAnswer
	case atomic.LoadUint32(&gs.Caps)&maps.CapMark == 0:
		p.State = PeerUnreachable
		p.Problem = "it answers probes but does not announce that it restores translated packets: none are sent"
	case falling > 0:
		p.State = PeerDegraded
	default:
		p.State = PeerUp
	}
	if p.State == PeerUnreachable && answering == 0 {
		p.Since = t.now.at(all.sampled)
	}
	return p
}

// evidence is what a path tells about its peer.
type evidence struct {
	sendable bool   // its uplink is usable and it has a next hop
	answered bool   // once
	sampled  uint64 // when it last answered a probe that asked for an RTT sample, CLOCK_MONOTONIC ns
}

// path returns path i, number n of its group.
func (t *taker) path(i, n uint32, gs *maps.GroupState, unreachable bool) (Path, evidence) {
	m, ps := t.set.Path(i), t.set.PathStates.At(i)
	p := Path{
		Local: m.Local, Remote: m.Remote, NextHop: m.NextHop,
		Fresh:       atomic.LoadUint64(&gs.Fresh)>>n&1 != 0,
		Up:          atomic.LoadUint64(&gs.Up)>>n&1 != 0,
		RTT:         float64(atomic.LoadUint64(&ps.RttNs)) / 1e3,
		Loss:        float64(atomic.LoadUint32(&ps.LossPpm)) / 1e6,
		Multiplier:  atomic.LoadUint32(&ps.Multiplier),
		BaseLag:     atomic.LoadUint32(&ps.BaseLag),
		Transitions: atomic.LoadUint64(&ps.Losses),
		Congested:   atomic.LoadUint64(&ps.Congested),
		Flaps:       atomic.LoadUint64(&ps.Flaps),
		ProbesSent:  atomic.LoadUint64(&ps.Probes),
		Replies:     atomic.LoadUint64(&ps.Replies),
	}
	u := t.uplinks[m.Uplink]
	if u == nil { // of an uplink that the state does not have yet
		u = &Uplink{Name: fmt.Sprintf("#%d", m.Uplink), State: UplinkDown, Problem: "unknown"}
	}
	p.Uplink = u.Name
	if i < uint32(len(t.traffic)) {
		tr := t.traffic[i]
		p.TxPackets, p.TxBytes, p.RxPackets, p.RxBytes, p.TxMoved, p.Requests =
			tr.TxPackets, tr.TxBytes, tr.RxPackets, tr.RxBytes, tr.TxMoved, tr.Requests
		u.TxPackets += tr.TxPackets
		u.TxBytes += tr.TxBytes
		u.RxPackets += tr.RxPackets
		u.RxBytes += tr.RxBytes
	}
	seen := evidence{
		sendable: u.State == UplinkUp && m.Ifindex != 0 && m.NextHop.IsValid(),
		answered: atomic.LoadUint64(&ps.Newest) != 0,
		sampled:  atomic.LoadUint64(&ps.SampleAt),
	}
	since := atomic.LoadUint64(&ps.Since)
	switch {
	case u.State == UplinkDown:
		p.State, p.Problem = PathDown, "uplink "+u.Name+": "+u.Problem
		since = 0 // nobody noted when
	case !seen.sendable:
		p.State, p.Problem = PathUnreached, fmt.Sprintf("no route to %s through %s", m.Remote, u.Name)
		if seen.answered {
			p.State = PathDown
		}
		since = 0
	case !seen.answered:
		p.State, p.Problem = PathUnreached, neverSpoke
		since = 0
	case !p.Fresh:
		p.State, p.Problem = PathDown, t.silence(gs, ps)
		if c := atomic.LoadUint64(&ps.ClearedAt); c != 0 {
			since = c
		}
	case unreachable:
		p.State, p.Problem = PathDown, noAnswer+"; kept in use because no other path answers"
		since = seen.sampled
	case !p.Up:
		p.State, p.Problem = PathFresh, "answers again, in hold-down"
	default:
		p.State = PathUp
	}
	p.Since = t.now.at(since)
	return p, seen
}

// silence says what is known of a path that answered before: the programs note our round when
// anything of the peer arrives.
func (t *taker) silence(gs *maps.GroupState, ps *maps.PathState) string {
	sent, heard := atomic.LoadUint64(&gs.Sent), atomic.LoadUint64(&ps.Heard)
	if t.running && heard != 0 && sent < heard+uint64(atomic.LoadUint32(&ps.MinMultiplier)) {
		return noAnswer + ", though the peer's packets arrive: lost on the way there"
	}
	return noAnswer
}

func (t *taker) counters(s *Status) error {
	reasons, err := t.set.Reasons()
	if err != nil {
		return err
	}
	s.Drops, s.Counted = map[string]uint64{}, map[string]uint64{}
	for r, n := range reasons {
		if r.Dropped() {
			s.Drops[r.String()] = n
		} else {
			s.Counted[r.String()] = n
		}
	}
	return nil
}

func (t *taker) fill(s *Status, groups map[uint32]maps.Group) error {
	identities, err := t.set.Identities()
	if err != nil {
		return fmt.Errorf("reading identities: %w", err)
	}
	pairs, err := t.set.Pairs()
	if err != nil {
		return fmt.Errorf("reading locator pairs: %w", err)
	}
	size := t.set.Sizes()
	var paths uint32
	for _, g := range groups {
		paths += g.PathCount
	}
	s.Maps = map[string]Fill{
		MapGroups:     {uint32(len(groups)), size.Groups},
		MapPaths:      {paths, size.Paths},
		MapIdentities: {uint32(len(identities)), size.Groups},
		MapPairs:      {uint32(len(pairs)), 2 * size.Paths},
	}
	return nil
}

// family names the address family of a peer for a person.
func family(f int) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf("IPv%d", f)
}

// String names the path for a person.
func (p *Path) String() string {
	return strings.Join([]string{p.Uplink, p.Local.String(), ">", p.Remote.String()}, " ")
}
