// SPDX-License-Identifier: Apache-2.0

// Package packets holds the packet tables: each kernel program is given packets through the
// kernel's test-run, and verdict, every byte, the path's counters, the reasons' counters and all
// liveness are held against what they should be. The expected packet is built anew by another
// implementation of every protocol (gopacket), never by changing the first.
//
// Test-run does not redirect: that a packet leaves by the right uplink to the right neighbour is
// what the end-to-end tests see. Nor can it set the VLAN tag that a NIC has stripped, or the state
// CHECKSUM_PARTIAL; those are tested there as well.
package packets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"pgregory.net/rapid"

	"github.com/plait-net/plait/bpf"
	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/plane"
)

const (
	v4 = maps.IPv4
	v6 = maps.IPv6
)

var families = []maps.Family{v4, v6}

// host is the addresses of one host, by family.
type host struct {
	name     string
	identity map[maps.Family]netip.Addr
	locator  map[maps.Family][numPaths]netip.Addr
}

const numPaths = 2 // of each peer and family

func newHost(name string, n int) host {
	addr := func(format string, args ...any) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, args...)) }
	return host{
		name:     name,
		identity: map[maps.Family]netip.Addr{v4: addr("10.255.0.%d", n), v6: addr("fd00:255::%d", n)},
		locator: map[maps.Family][numPaths]netip.Addr{
			v4: {addr("10.1.%d.2", n), addr("10.2.%d.2", n)},
			v6: {addr("fd00:1:%d::2", n), addr("fd00:2:%d::2", n)},
		},
	}
}

// The hosts of the tables. Nobody knows s.
var (
	hostA = newHost("a", 1)
	hostB = newHost("b", 2)
	hostC = newHost("c", 3)
	hostS = newHost("s", 9)
)

// Boot epochs, in wire bytes as the maps hold them.
func epochOf(h host) uint64 {
	return binary.LittleEndian.Uint64([]byte{0x18, 0, 0, 0, 0, 0, 1, h.name[0]})
}

// What every path's liveness is at the start of a case. Data has already arrived this round, so
// that more of it changes nothing.
const (
	sentRound   = 1000
	newestRound = 990
	peerRound   = 500
	numGroups   = 8
	maxPaths    = 32
)

// world is the kernel programs of one host whose peers are all up.
type world struct {
	*plane.Plane
	me     host
	peers  []host
	events *ringbuf.Reader
	states []maps.GroupState // at the start of a case
	paths  []maps.PathState
}

// native ports of every world, besides probes.
var (
	nativeTCP = []uint16{179}
	nativeUDP = []uint16{3784, 3785, 4784, maps.SBFDPort}
)

func newWorld(t testing.TB, me host, peers ...host) *world {
	t.Helper()
	p, err := plane.New(maps.Sizes{Groups: numGroups, Paths: maxPaths})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Plane: p, me: me, peers: peers}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.events, err = ringbuf.NewReader(p.Set.EventMap()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.events.Close() })
	s := p.Set
	s.Settings.Epoch = epochOf(me)
	s.Settings.Uplinks = 1<<numPaths - 1
	for _, port := range nativeTCP {
		maps.SetPort(&s.Native.Tcp, port, true)
	}
	for _, port := range nativeUDP {
		maps.SetPort(&s.Native.Udp, port, true)
	}
	for _, peer := range peers {
		for _, f := range families {
			w.addPeer(t, peer, f)
			for n := range numPaths {
				arrived := packet{body: raw(253, nil)}.frame(locators(f, peer, me, n), 255)
				w.run(t, ingressTC, arrived, nil)
			}
		}
	}
	for i := range uint32(numGroups) {
		w.states = append(w.states, *s.GroupStates.At(i))
	}
	for i := range uint32(maxPaths) {
		w.paths = append(w.paths, *s.PathStates.At(i))
	}
	return w
}

// group and path say where a peer's things lie.
func (w *world) group(peer host, f maps.Family) uint32 {
	i := slices.IndexFunc(w.peers, func(h host) bool { return h.name == peer.name })
	g := 2 * uint32(i)
	if f == v6 {
		g++
	}
	return g
}

func (w *world) path(peer host, f maps.Family, number int) uint32 {
	return 4*w.group(peer, f) + uint32(number)
}

func (w *world) addPeer(t rapid.TB, peer host, f maps.Family) {
	t.Helper()
	s, group := w.Set, w.group(peer, f)
	g := s.Groups.At(group)
	g.FirstPath, g.PathCount, g.Peer, g.Family = w.path(peer, f, 0), numPaths, group/2, uint32(f)
	gs := s.GroupStates.At(group)
	*gs = maps.GroupState{
		Sent: sentRound, Newest: newestRound, Fresh: 1<<numPaths - 1, Up: 1<<numPaths - 1,
		Active: sentRound, PeerEpoch: epochOf(peer), PeerNewest: peerRound, Caps: maps.CapMark,
	}
	for n := range numPaths {
		i := w.path(peer, f, n)
		local, remote := w.me.locator[f][n], peer.locator[f][n]
		s.SetPath(i, maps.Path{
			Local: local, Remote: remote, Identity: w.me.identity[f], PeerIdentity: peer.identity[f],
			NextHop: remote, Ifindex: 1, Group: group, Uplink: uint8(n), Number: uint8(n),
		})
		*s.PathStates.At(i) = maps.PathState{
			Newest: newestRound, Heard: sentRound, HeardPeer: peerRound, ReqNewest: peerRound,
			Multiplier: 3, MinMultiplier: 3, PeerPair: peersNumber(n), ClearedAt: 1,
		}
		if err := s.SetPair(local, remote, i); err != nil {
			t.Fatal(err)
		}
		if err := s.SetKeys(i, w.keys(peer, f, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetIdentity(peer.identity[f], group); err != nil {
		t.Fatal(err)
	}
}

// peersNumber is the number that a peer gives our path n: the numbers of the two ends may differ.
func peersNumber(n int) uint32 { return numPaths - 1 - uint32(n) }

// allOn directs every bucket of a group to one path.
func (w *world) allOn(peer host, f maps.Family, number uint8) {
	g := w.Set.Groups.At(w.group(peer, f))
	for i := range g.Bucket {
		g.Bucket[i] = number
	}
}

// restore puts liveness back to the start of a case.
func (w *world) restore(t rapid.TB) {
	t.Helper()
	for i := range w.states {
		*w.Set.GroupStates.At(uint32(i)) = w.states[i]
	}
	for i := range w.paths {
		*w.Set.PathStates.At(uint32(i)) = w.paths[i]
	}
	w.drain(t)
}

// drain returns the events that the programs published.
func (w *world) drain(t rapid.TB) []maps.Event {
	t.Helper()
	var out []maps.Event
	w.events.SetDeadline(time.Unix(1, 0)) // only what is there
	for {
		r, err := w.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var ev maps.Event
		if _, err := binary.Decode(r.RawSample, binary.NativeEndian, &ev); err != nil {
			t.Fatal(err)
		}
		out = append(out, ev)
	}
}

// counters is everything that programs only count.
type counters struct {
	reasons map[maps.Reason]uint64
	traffic map[uint32]maps.PathStats
}

func (w *world) counters(t rapid.TB) counters {
	t.Helper()
	c := counters{map[maps.Reason]uint64{}, map[uint32]maps.PathStats{}}
	m := w.Set.Maps["reasons"]
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, m.MaxEntries()), make([]uint64, int(m.MaxEntries())*cpus)
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	for i := range n {
		for _, v := range values[i*cpus : (i+1)*cpus] {
			if v != 0 {
				c.reasons[maps.Reason(keys[i])] += v
			}
		}
	}
	stats, err := w.Set.Traffic(maxPaths)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range stats {
		if s != (maps.PathStats{}) {
			c.traffic[uint32(i)] = s
		}
	}
	return c
}

// since returns by how much each counter grew.
func (c counters) since(old counters) counters {
	d := counters{map[maps.Reason]uint64{}, map[uint32]maps.PathStats{}}
	for r, n := range c.reasons {
		if n != old.reasons[r] {
			d.reasons[r] = n - old.reasons[r]
		}
	}
	for i, s := range c.traffic {
		o := old.traffic[i]
		g := maps.PathStats{
			TxPackets: s.TxPackets - o.TxPackets, TxBytes: s.TxBytes - o.TxBytes,
			RxPackets: s.RxPackets - o.RxPackets, RxBytes: s.RxBytes - o.RxBytes, TxMoved: s.TxMoved - o.TxMoved,
			Requests: s.Requests - o.Requests,
		}
		if g != (maps.PathStats{}) {
			d.traffic[i] = g
		}
	}
	return d
}

// memory is every map that is neither a counter nor a cache, as bytes by map and key.
type memory map[string]string

func (w *world) memory(t rapid.TB) memory {
	t.Helper()
	out := memory{}
	for name, m := range w.Set.Maps {
		switch name {
		case "reasons", "path_traffic", "events", "tag_prefixes":
			continue
		}
		var k, v []byte
		it := m.Iterate()
		for it.Next(&k, &v) {
			out[fmt.Sprintf("%s[%x]", name, k)] = string(v)
		}
		if err := it.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// changes lists the entries that differ.
func (m memory) changes(old memory) (out []string) {
	for k, v := range m {
		if o, ok := old[k]; !ok || o != v {
			out = append(out, k)
		}
	}
	for k := range old {
		if _, ok := m[k]; !ok {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// liveness is the part of the memory that programs write, cheap enough for every packet.
type liveness struct {
	groups [numGroups]maps.GroupState
	paths  [maxPaths]maps.PathState
}

func (w *world) liveness() (l liveness) {
	for i := range l.groups {
		l.groups[i] = *w.Set.GroupStates.At(uint32(i))
	}
	for i := range l.paths {
		l.paths[i] = *w.Set.PathStates.At(uint32(i))
	}
	return l
}

// hook is one of the programs with its way to say things.
type hook struct {
	name                 string
	prog                 func(*world) *ebpf.Program
	pass, drop, redirect uint32
	flags                uint32
	egress               bool
}

// sumComplete makes the kernel give the program a packet whose checksum the NIC has summed up, and
// fail if that sum is wrong afterwards (BPF_F_TEST_SKB_CHECKSUM_COMPLETE).
const sumComplete = 1 << 2

var (
	egress = hook{
		"egress", func(w *world) *ebpf.Program { return w.Egress },
		plane.TCNext, plane.TCDrop, plane.TCRedirect, 0, true,
	}
	ingressTC = hook{
		"ingress-tc", func(w *world) *ebpf.Program { return w.IngressTC },
		plane.TCNext, plane.TCDrop, plane.TCRedirect, sumComplete, false,
	}
	ingressXDP = hook{
		"ingress-xdp", func(w *world) *ebpf.Program { return w.IngressXDP },
		plane.XDPPass, plane.XDPDrop, plane.XDPTx, 0, false,
	}
	ingresses = []hook{ingressTC, ingressXDP}
)

// want is what a program must do with a packet. The zero value: pass it on, untouched, uncounted.
type want struct {
	verdict  verdict
	frame    []byte      // nil: as it was
	reason   maps.Reason // 0: none
	path     int         // of the traffic below; ignored if there is none
	tx, rx   int         // packets; their bytes are the frame's
	moved    int
	requests int             // reflected
	live     func(*liveness) // changes to liveness; nil: none
	segments int             // 0: 1
	bytes    int             // of the traffic; 0: the frame's
	events   []maps.Event    // time excepted
	note     string          // says where in a loop we are
	ignore   int             // where 2 bytes of the frame are not compared; 0: nowhere
}

type verdict int

const (
	pass verdict = iota
	drop
	redirect // or XDP_TX
)

func (h hook) verdict(v verdict) uint32 {
	return []uint32{h.pass, h.drop, h.redirect}[v]
}

// run gives a frame to a program.
func (w *world) run(t rapid.TB, h hook, frame []byte, context any) (verdict uint32, out []byte) {
	t.Helper()
	opts := ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+256), Context: context, Flags: h.flags,
	}
	verdict, err := h.prog(w).Run(&opts)
	if err != nil {
		t.Fatalf("%s: test-run: %v", h.name, err)
	}
	return verdict, opts.DataOut
}

// check runs a frame and holds everything against what is wanted.
func (w *world) check(t rapid.TB, h hook, frame []byte, want want) {
	t.Helper()
	w.checkWith(t, h, frame, nil, want)
}

func (w *world) checkWith(t rapid.TB, h hook, frame []byte, context any, want want) {
	t.Helper()
	bad := false
	errorf := func(format string, args ...any) {
		t.Helper()
		bad = true
		t.Errorf("%s %s: "+format, append([]any{h.name, want.note}, args...)...)
	}
	w.restore(t)
	before, live := w.counters(t), w.liveness()
	verdict, out := w.run(t, h, frame, context)
	d := w.counters(t).since(before)

	if v := h.verdict(want.verdict); verdict != v {
		errorf("verdict %d, want %d; counted %v", int32(verdict), int32(v), d.reasons)
	}
	expect := want.frame
	if expect == nil {
		expect = frame
	}
	if want.ignore > 0 && len(out) == len(expect) {
		expect = slices.Clone(expect)
		copy(expect[min(want.ignore, len(out)):], out[min(want.ignore, len(out)):min(want.ignore+2, len(out))])
	}
	if !bytes.Equal(out, expect) {
		errorf("wrong bytes out:\n%s", compare(frame, out, expect))
	}
	reasons := map[maps.Reason]uint64{}
	if want.reason != 0 {
		reasons[want.reason] = 1
	}
	if fmt.Sprint(d.reasons) != fmt.Sprint(reasons) {
		errorf("counted %v, want %v", d.reasons, reasons)
	}
	segments := uint64(max(1, want.segments))
	size := len(frame)
	if want.bytes > 0 {
		size = want.bytes
	}
	traffic := map[uint32]maps.PathStats{}
	if want.tx+want.rx+want.requests > 0 {
		traffic[uint32(want.path)] = maps.PathStats{
			TxPackets: uint64(want.tx) * segments, TxBytes: uint64(want.tx * size),
			RxPackets: uint64(want.rx) * segments, RxBytes: uint64(want.rx * size),
			TxMoved: uint64(want.moved) * segments, Requests: uint64(want.requests),
		}
	}
	if fmt.Sprint(d.traffic) != fmt.Sprint(traffic) {
		errorf("traffic %+v, want %+v", d.traffic, traffic)
	}
	if want.live != nil {
		want.live(&live)
	}
	if got := w.liveness(); got != live {
		errorf("liveness changed:\n%s", live.diff(got))
	}
	events := w.drain(t)
	for i := range events {
		events[i].TimeNs = 0
	}
	if !slices.Equal(events, want.events) {
		errorf("published %+v, want %+v", events, want.events)
	}
	if bad {
		t.FailNow()
	}
}

func (l liveness) diff(got liveness) string {
	var b strings.Builder
	for i := range l.groups {
		if l.groups[i] != got.groups[i] {
			fmt.Fprintf(&b, "group %d: %+v\nwant     %+v\n", i, got.groups[i], l.groups[i])
		}
	}
	for i := range l.paths {
		if l.paths[i] != got.paths[i] {
			fmt.Fprintf(&b, "path %d: %+v\nwant    %+v\n", i, got.paths[i], l.paths[i])
		}
	}
	return b.String()
}

// compare shows three frames with the bytes marked that differ.
func compare(in, got, want []byte) string {
	mark := func(f []byte) string {
		var b strings.Builder
		for i, x := range f {
			format := " %02x"
			if i >= len(want) || i >= len(got) || got[i] != want[i] {
				format = "*%02x"
			}
			fmt.Fprintf(&b, format, x)
		}
		return b.String()
	}
	return fmt.Sprintf("in  %s\ngot %s\nwant%s", mark(in), mark(got), mark(want))
}

// Reasons by short names.
const (
	rNotIP        = maps.Reason(bpf.EgressReasonR_EGRESS_NOT_IP)
	rTruncated    = maps.Reason(bpf.EgressReasonR_EGRESS_TRUNCATED)
	rUnknownPeer  = maps.Reason(bpf.EgressReasonR_EGRESS_UNKNOWN_PEER)
	rBadSource    = maps.Reason(bpf.EgressReasonR_EGRESS_BAD_SOURCE)
	rNotAnnounced = maps.Reason(bpf.EgressReasonR_EGRESS_NOT_ANNOUNCED)
	rUnsupported  = maps.Reason(bpf.EgressReasonR_EGRESS_UNSUPPORTED)
	rNativePort   = maps.Reason(bpf.EgressReasonR_EGRESS_NATIVE_PORT)
	rNoPath       = maps.Reason(bpf.EgressReasonR_EGRESS_NO_PATH)
	rFarEnd       = maps.Reason(bpf.EgressReasonR_EGRESS_FAR_END)

	rInTruncated   = maps.Reason(bpf.EgressReasonR_INGRESS_TRUNCATED)
	rInUnsupported = maps.Reason(bpf.EgressReasonR_INGRESS_UNSUPPORTED)
	rShortLinear   = maps.Reason(bpf.EgressReasonR_INGRESS_SHORT_LINEAR)

	rProbeTruncated   = maps.Reason(bpf.EgressReasonR_PROBE_TRUNCATED)
	rProbeFormat      = maps.Reason(bpf.EgressReasonR_PROBE_FORMAT)
	rProbeForeign     = maps.Reason(bpf.EgressReasonR_PROBE_FOREIGN)
	rProbeKey         = maps.Reason(bpf.EgressReasonR_PROBE_KEY)
	rProbeTag         = maps.Reason(bpf.EgressReasonR_PROBE_TAG)
	rProbeEpoch       = maps.Reason(bpf.EgressReasonR_PROBE_EPOCH)
	rProbeReplayed    = maps.Reason(bpf.EgressReasonR_PROBE_REPLAYED)
	rProbeFuture      = maps.Reason(bpf.EgressReasonR_PROBE_FUTURE)
	rProbeRate        = maps.Reason(bpf.EgressReasonR_PROBE_RATE)
	rProbeUnconfirmed = maps.Reason(bpf.EgressReasonR_PROBE_UNCONFIRMED)
)
