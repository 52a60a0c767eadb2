// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"log/slog"
	gomaps "maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/world"
)

// bench is a Sender that has no thread of its own and whose frames end up in the test. Time is the test's.
type bench struct {
	*Sender
	*world.World
	t      testing.TB
	far    int // the other end of its socket
	groups []Group
	now    time.Duration
}

// newBench makes a sender for all paths of a world with two uplinks, idle since long ago.
func newBench(t testing.TB, peers int, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, World: world.New(t, world.Options{Uplinks: 2, Peers: peers, Families: []maps.Family{maps.IPv4}})}
	b.Set.Settings.Epoch = 0x1122334455667788
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.far = fds[1]
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	cfg := Config{
		Set: b.Set, Fast: time.Millisecond, Idle: time.Second, Budget: 20000, Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	b.Sender = newSender(cfg, fds[0])
	for _, p := range b.State.Peers {
		for _, g := range p.Groups {
			b.groups = append(b.groups, b.group(g.Index))
		}
	}
	b.now = monotonic()
	b.Update(b.groups)
	b.now += time.Minute // nothing is new any more
	b.scan(b.plan.Load(), b.now)
	return b
}

// group is what an agent would have a group's paths probed with.
func (b *bench) group(index uint32) Group {
	out := Group{Index: index}
	g := b.Set.Groups.At(index)
	for i := range g.PathCount {
		p := b.Set.Path(g.FirstPath + i)
		out.Paths = append(out.Paths, Path{
			Index: g.FirstPath + i, Number: p.Number, Uplink: p.Uplink, Local: p.Local, Remote: p.Remote,
			KeyID: 1, Key: Key{uint64(index), uint64(i)},
		})
	}
	return out
}

// sent is a frame as it was sent.
type sent struct {
	local, remote netip.Addr
	round         uint64
	window        uint8
	fresh, sample bool
}

// frames returns what has been sent since the last call, and checks every byte that the sender does not choose.
func (b *bench) frames() (out []sent) {
	b.t.Helper()
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(b.far, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return out
		}
		if err != nil {
			b.t.Fatal(err)
		}
		out = append(out, b.decode(buf[:n]))
	}
}

func (b *bench) decode(f []byte) sent {
	b.t.Helper()
	if len(f) != 14+20+8+64 {
		b.t.Fatalf("frame of %d bytes", len(f))
	}
	bfd := f[42:]
	s := sent{
		local: netip.AddrFrom4([4]byte(f[26:])), remote: netip.AddrFrom4([4]byte(f[30:])),
		round: binary.BigEndian.Uint64(bfd[40:]), window: bfd[29], fresh: bfd[27]&0xc0 == 0xc0, sample: bfd[27]&4 != 0,
	}
	for _, g := range b.groups {
		for _, p := range g.Paths {
			if p.Local != s.local || p.Remote != s.remote {
				continue
			}
			if err := checkFrame(p, f); err != nil {
				b.t.Fatal(err)
			}
			if e := binary.NativeEndian.Uint64(bfd[32:]); e != b.Set.Settings.Epoch {
				b.t.Fatalf("epoch %#x, want %#x", e, b.Set.Settings.Epoch)
			}
			return s
		}
	}
	b.t.Fatalf("frame of no path: %+v", s)
	return s
}

// tick passes time and does what the sending thread does then.
func (b *bench) tick(d time.Duration) []sent {
	b.t.Helper()
	b.now += d
	p := b.plan.Load()
	b.scan(p, b.now)
	b.send(p, b.now, true)
	return b.frames()
}

// fast is a moment of the sending thread between two scans.
func (b *bench) fast() []sent {
	b.t.Helper()
	b.now += time.Millisecond
	b.send(b.plan.Load(), b.now, false)
	return b.frames()
}

// traffic makes packets leave towards a group, as egress would note them.
func (b *bench) traffic(group uint32) {
	gs := b.Set.GroupStates.At(group)
	atomic.StoreUint64(&gs.Active, atomic.LoadUint64(&gs.Sent))
}

// rounds lists the rounds of frames.
func rounds(frames []sent) (out []uint64) {
	for _, f := range frames {
		out = append(out, f.round)
	}
	return out
}

func wantRounds(t *testing.T, got []sent, want ...uint64) {
	t.Helper()
	if !slices.Equal(rounds(got), want) {
		t.Errorf("rounds %v were sent, want %v", rounds(got), want)
	}
}

// TestRounds: a round goes out on all paths of a peer with one number, and the maps say so.
func TestRounds(t *testing.T) {
	b := newBench(t, 2)
	b.traffic(0)
	b.Set.GroupStates.At(0).Fresh = 1 // the first path alone
	b.PathState(0, 1).Multiplier = 6
	b.tick(0) // the idle group gets its place in the second
	before := b.Set.GroupStates.At(0).Sent
	probes := [2]uint64{b.PathState(0, 0).Probes, b.PathState(0, 1).Probes}
	got := b.fast()
	// The window is the longest of the group, and half as much again: it must cover the patience with a path.
	want := []sent{
		{world.Locator(maps.IPv4, 1, 1), world.Locator(maps.IPv4, 1, 2), before + 1, 10, true, (before+1)%16 == 0},
		{world.Locator(maps.IPv4, 2, 1), world.Locator(maps.IPv4, 2, 2), before + 1, 10, false, (before+1)%16 == 0},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if s := b.Set.GroupStates.At(0).Sent; s != before+1 {
		t.Errorf("round %d is noted as the last one sent, want %d", s, before+1)
	}
	for i, was := range probes {
		if n := b.PathState(0, uint32(i)).Probes; n != was+1 {
			t.Errorf("path %d: %d probes counted, want %d", i, n, was+1)
		}
	}
}

// TestActive: a peer with traffic gets fast rounds, until ten seconds after the last of it.
func TestActive(t *testing.T) {
	b := newBench(t, 2)
	if n := b.Active(); n != 0 {
		t.Fatalf("%d groups are active, want none", n)
	}
	b.tick(0)
	b.traffic(1)
	b.tick(scanInterval)
	if n := b.Active(); n != 1 {
		t.Fatalf("%d groups are active, want 1", n)
	}
	for range 3 {
		last := b.Set.GroupStates.At(1).Sent
		wantRounds(t, b.fast(), last+1, last+1)
	}
	b.tick(idleAfter - 4*time.Millisecond)
	if n := b.Active(); n != 1 {
		t.Errorf("%d groups are active just before ten seconds of silence, want 1", n)
	}
	b.tick(2 * time.Millisecond)
	if n := b.Active(); n != 0 {
		t.Errorf("%d groups are active after ten seconds of silence, want none", n)
	}
	if got := b.fast(); got != nil {
		t.Errorf("an idle peer gets fast rounds: %v", got)
	}
	// It stays so until egress notes another round.
	b.tick(scanInterval)
	if n := b.Active(); n != 0 {
		t.Errorf("%d groups became active without traffic", n)
	}
}

// TestIdle: every idle peer gets one round in each idle interval, not all at one moment, and each asks for a sample.
func TestIdle(t *testing.T) {
	const peers = 10
	b := newBench(t, peers)
	moments := 0
	count := map[netip.Addr]int{}
	for range 3 * 50 { // three seconds
		got := b.tick(scanInterval)
		if len(got) > 0 {
			moments++
		}
		for _, f := range got {
			count[f.remote]++
			if !f.sample {
				t.Errorf("idle round %d asks for no sample", f.round)
			}
		}
	}
	if len(count) != 2*peers {
		t.Errorf("%d paths were probed, want %d", len(count), 2*peers)
	}
	for a, n := range count {
		if n != 3 {
			t.Errorf("%s was probed %d times in three seconds, want 3", a, n)
		}
	}
	if moments != 3*peers {
		t.Errorf("idle rounds left at %d moments, want %d", moments, 3*peers)
	}
}

// TestNewPeer: a peer without traffic gets one second of fast rounds when it is new, and no more.
func TestNewPeer(t *testing.T) {
	b := newBench(t, 2)
	b.Update(b.groups[:1])
	b.Set.GroupStates.At(1).Active = world.Round - 1 // traffic of long ago, when an earlier agent ran
	b.Update(b.groups)
	b.now = monotonic()
	b.tick(0)
	if n := b.Active(); n != 1 {
		t.Errorf("%d groups are active, want the new one", n)
	}
	b.tick(firstLook + time.Second/10)
	if n := b.Active(); n != 0 {
		t.Errorf("%d groups are active after the first look, want none", n)
	}
}

// TestUpdateKeepsRhythm: what changes about other peers moves no round of a peer that stays, idle or not.
func TestUpdateKeepsRhythm(t *testing.T) {
	b := newBench(t, 3)
	b.traffic(0)
	b.tick(0)
	if n := b.Active(); n != 1 {
		t.Fatalf("%d groups are active, want 1", n)
	}
	for b.tick(scanInterval)[0].round%sampleEvery != 0 { // until the active group asked for a sample
	}
	sampled := b.Set.GroupStates.At(0).Sent
	at, ok := b.SentAt(0, sampled)
	if !ok {
		t.Fatal("a sample is not known")
	}
	var due [2]time.Duration
	for i := range due {
		due[i] = b.plan.Load().groups[i+1].idleAt
	}
	reversed := slices.Clone(b.groups)
	slices.Reverse(reversed)
	b.Update(reversed)
	if again, ok := b.SentAt(0, sampled); !ok || again != at {
		t.Errorf("the sample was taken at %v (%v), before the update at %v", again, ok, at)
	}
	b.tick(0)
	if n := b.Active(); n != 1 {
		t.Errorf("%d groups are active after an update, want 1", n)
	}
	for i, want := range due {
		if got := b.plan.Load().rhythm[uint32(i+1)].idleAt; got != want {
			t.Errorf("idle group %d is due at %v after an update, before it at %v", i+1, got, want)
		}
	}
	// An active peer stays so for as long as it would have.
	b.tick(idleAfter - 10*scanInterval)
	b.Update(b.groups)
	b.tick(20 * scanInterval)
	if n := b.Active(); n != 0 {
		t.Errorf("%d groups are active: an update counted as traffic", n)
	}
}

// TestUnusableUplink: nothing is sent on an uplink that cannot be used; the rounds that were not sent there are no evidence
// when it can be used again.
func TestUnusableUplink(t *testing.T) {
	b := newBench(t, 1)
	b.traffic(0)
	b.tick(0)
	one, two := b.PathState(0, 0), b.PathState(0, 1)
	probes := two.Probes
	b.Set.Settings.Uplinks = 1
	for range 5 {
		got := b.fast()
		if len(got) != 1 || got[0].local != world.Locator(maps.IPv4, 1, 1) {
			t.Fatalf("sent %v, want one frame on the first uplink", got)
		}
	}
	if two.Newest != world.Round || two.Probes != probes {
		t.Errorf("newest round %d and %d probes where none was sent, want %d and %d", two.Newest, two.Probes, world.Round, probes)
	}
	b.Set.Settings.Uplinks = 3
	last := b.Set.GroupStates.At(0).Sent
	wantRounds(t, b.fast(), last+1, last+1)
	if two.Newest != last {
		t.Errorf("newest round of the path that is back is %d, want the last that was not sent there, %d", two.Newest, last)
	}
	if one.Newest != world.Round {
		t.Errorf("newest round of the other path is %d, want it untouched at %d", one.Newest, world.Round)
	}
	// Only once: what is not answered from now on is missing.
	b.fast()
	if two.Newest != last {
		t.Errorf("newest round rose to %d without an answer", two.Newest)
	}
}

// TestNeverAnswered: a path that never answered gets no newest round from nowhere.
func TestNeverAnswered(t *testing.T) {
	b := newBench(t, 1)
	b.Forget(0, 1)
	b.traffic(0)
	b.Set.Settings.Uplinks = 1
	b.tick(0)
	b.Set.Settings.Uplinks = 3
	b.fast()
	if n := b.PathState(0, 1).Newest; n != 0 {
		t.Errorf("newest round is %d, want 0", n)
	}
}

// TestNoneUsable: rounds go on where no uplink can be used, so that nothing looks answered.
func TestNoneUsable(t *testing.T) {
	b := newBench(t, 1)
	b.traffic(0)
	b.tick(0)
	last := b.Set.GroupStates.At(0).Sent
	b.Set.Settings.Uplinks = 0
	if got := b.fast(); got != nil {
		t.Errorf("sent %v", got)
	}
	if s := b.Set.GroupStates.At(0).Sent; s != last+1 {
		t.Errorf("last round is %d, want %d", s, last+1)
	}
}

// TestPathWithoutRoute: a path that the agent leaves out and gives back was not sent on meanwhile.
func TestPathWithoutRoute(t *testing.T) {
	b := newBench(t, 1)
	b.traffic(0)
	b.tick(0)
	less := []Group{{Index: 0, Paths: b.groups[0].Paths[:1]}}
	b.Update(less)
	b.tick(0)
	wantRounds(t, b.fast(), b.Set.GroupStates.At(0).Sent)
	last := b.Set.GroupStates.At(0).Sent
	b.Update(b.groups)
	wantRounds(t, b.tick(0), last+1, last+1)
	if n := b.PathState(0, 1).Newest; n != last {
		t.Errorf("newest round is %d, want %d", n, last)
	}
	if n := b.PathState(0, 0).Newest; n != world.Round {
		t.Errorf("newest round of the path that stayed is %d, want %d", n, world.Round)
	}
}

// TestTakenOver: what an earlier agent sent is believed. A new one forgives nothing.
func TestTakenOver(t *testing.T) {
	b := newBench(t, 1)
	gs := b.Set.GroupStates.At(0)
	gs.Sent += 2 // sent and never answered
	last := gs.Sent
	b.Update(nil)
	b.Update(b.groups)
	wantRounds(t, b.tick(0), last+1, last+1)
	if n := b.PathState(0, 0).Newest; n != world.Round {
		t.Errorf("newest round is %d, want %d", n, world.Round)
	}
}

// TestForgive: a reply that arrives meanwhile counts for more.
func TestForgive(t *testing.T) {
	for _, c := range []struct{ newest, round, want uint64 }{
		{0, 100, 0}, {99, 100, 100}, {100, 100, 100}, {101, 100, 101},
	} {
		p := path{state: &maps.PathState{Newest: c.newest}}
		p.forgive(c.round)
		if p.state.Newest != c.want {
			t.Errorf("newest %d, forgiven to %d: %d, want %d", c.newest, c.round, p.state.Newest, c.want)
		}
	}
}

// TestBudget: intervals are stretched rather than the budget exceeded, that of active peers first, and they are never cut
// off.
func TestBudget(t *testing.T) {
	for _, c := range []struct {
		name           string
		peers, active  int
		budget         int
		interval, idle time.Duration
	}{
		{"enough for all", 10, 2, 20000, time.Millisecond, time.Second},
		{"just enough", 4, 4, 8000, time.Millisecond, time.Second},
		{"twice too much", 4, 4, 4000, 2 * time.Millisecond, time.Second},
		{"idle peers take their part", 10, 5, 110, 100 * time.Millisecond, time.Second},
		{"idle peers alone exceed it", 10, 0, 10, time.Millisecond, 20 * time.Second / 9},
		{"both exceed it", 10, 1, 10, 2 * time.Second, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.peers, func(cfg *Config) { cfg.Budget = c.budget })
			for i := range c.active {
				b.traffic(uint32(i))
			}
			b.tick(0)
			near := func(got, want time.Duration) bool { return got >= want && got <= want+time.Microsecond }
			if got := b.Interval(); !near(got, c.interval) {
				t.Errorf("interval %v, want %v", got, c.interval)
			}
			if !near(b.idle, c.idle) {
				t.Errorf("idle interval %v, want %v", b.idle, c.idle)
			}
			rate := float64(2*c.active)/b.Interval().Seconds() + float64(2*(c.peers-c.active))/b.idle.Seconds()
			if rate > float64(c.budget)*1.0001 {
				t.Errorf("%.0f probes a second, the budget is %d", rate, c.budget)
			}
		})
	}
}

// TestIdleFasterThanScans: an idle interval below 20 ms is kept to.
func TestIdleFasterThanScans(t *testing.T) {
	b := newBench(t, 1, func(cfg *Config) { cfg.Idle = 5 * time.Millisecond })
	if s := b.scanStep(); s != 5*time.Millisecond {
		t.Errorf("idle groups are looked at every %v", s)
	}
}

// TestManyPaths: more frames than one system call takes.
func TestManyPaths(t *testing.T) {
	const peers = 40
	b := newBench(t, peers)
	for i := range uint32(peers) {
		b.traffic(i)
	}
	b.tick(0)
	got := b.fast()
	seen := map[netip.Addr]bool{}
	for _, f := range got {
		seen[f.remote] = true
	}
	if len(got) != 2*peers || len(seen) != 2*peers {
		t.Errorf("%d frames on %d paths, want one on each of %d", len(got), len(seen), 2*peers)
	}
}

// TestRefusedFrame: what the kernel refuses is counted, and nothing else suffers.
func TestRefusedFrame(t *testing.T) {
	b := newBench(t, 3)
	for i := range uint32(3) {
		b.traffic(i)
	}
	b.tick(0)
	p := &b.plan.Load().groups[1].paths[0]
	p.frame.buf = make([]byte, 8<<20) // longer than the socket takes
	got := b.fast()
	if len(got) != 5 {
		t.Errorf("%d frames were sent, want the other 5", len(got))
	}
	if n := b.SendErrors(); n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
}

// TestSentAt: samples are remembered for a while, under their rounds.
func TestSentAt(t *testing.T) {
	b := newBench(t, 1)
	b.traffic(0)
	b.tick(0)
	begin := monotonic()
	var sampled []uint64
	for len(sampled) < sampleSlots+1 {
		for _, f := range b.fast()[:1] {
			if f.sample != (f.round%sampleEvery == 0) {
				t.Fatalf("round %d: sample %v", f.round, f.sample)
			}
			if f.sample {
				sampled = append(sampled, f.round)
			}
		}
	}
	if at, ok := b.SentAt(0, sampled[0]); ok {
		t.Errorf("the first sample, long overwritten, was sent at %v", at)
	}
	last := begin
	for _, r := range sampled[1:] {
		at, ok := b.SentAt(0, r)
		if !ok || at < last || at > monotonic() {
			t.Errorf("round %d was sent at %v (%v), want from %v on", r, at, ok, last)
		}
		last = at
	}
	for name, c := range map[string]struct {
		group uint32
		round uint64
	}{
		"no round": {0, 0}, "no sample": {0, sampled[1] + 1}, "not sent yet": {0, sampled[sampleSlots] + sampleEvery}, "no group": {1, sampled[1]},
	} {
		if at, ok := b.SentAt(c.group, c.round); ok {
			t.Errorf("%s: sent at %v", name, at)
		}
	}
}

// TestNoAllocation: neither rounds nor scans allocate, or garbage collection would stop the thread.
func TestNoAllocation(t *testing.T) {
	b := newBench(t, 100)
	for i := range uint32(50) {
		b.traffic(i)
	}
	p := b.plan.Load()
	buf := make([]byte, 2048)
	n := testing.AllocsPerRun(200, func() {
		b.now += scanInterval
		b.noteLateness(time.Millisecond)
		b.scan(p, b.now)
		b.send(p, b.now, true)
		for {
			if _, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(b.far), uintptr(unsafe.Pointer(&buf[0])),
				uintptr(len(buf)), unix.MSG_DONTWAIT, 0, 0); errno != 0 {
				break
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// TestLateness: every round is in one bucket, and buckets are cumulative.
func TestLateness(t *testing.T) {
	b := newBench(t, 1)
	for _, late := range []time.Duration{-1, 0, 50 * time.Microsecond, 51 * time.Microsecond, 3 * time.Millisecond, time.Second} {
		b.noteLateness(late)
	}
	buckets, count, sum := b.Lateness()
	want := map[float64]uint64{
		50e-6: 3, 100e-6: 4, 200e-6: 4, 500e-6: 4, 1e-3: 4, 2e-3: 4, 5e-3: 5, 10e-3: 5, 20e-3: 5, 50e-3: 5, 100e-3: 5,
	}
	if !gomaps.Equal(buckets, want) || count != 6 {
		t.Errorf("%v of %d, want %v of 6", buckets, count, want)
	}
	if total := 1.003101; sum < total-1e-6 || sum > total+1e-6 {
		t.Errorf("sum %v s, want %v", sum, total)
	}
}
