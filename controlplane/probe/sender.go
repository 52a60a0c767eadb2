// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/maps"
)

const (
	scanInterval = 20 * time.Millisecond // how soon an idle peer's first packet is noticed
	sampleEvery  = 16                    // rounds between RTT samples of an active group
	sampleSlots  = 64                    // samples remembered: an RTT of up to 1024 rounds can be measured
	idleAfter    = 10 * time.Second      // without traffic
	firstLook    = time.Second           // fast rounds towards a new peer without traffic
	batch        = 64                    // frames in one sendmmsg
	priority     = 50                    // SCHED_FIFO
	nice         = -20                   // of the other threads
	skbPriority  = 7                     // TC_PRIO_CONTROL, the first band of pfifo_fast
)

// LatenessBounds are the upper bounds in seconds of the buckets of Sender.Lateness.
var LatenessBounds = []float64{50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3}

// Path is one path to probe: one with an interface and a next hop.
type Path struct {
	Index         uint32 // in maps.Set.PathStates
	Number        uint8
	Uplink        uint8
	Local, Remote netip.Addr
	KeyID         uint8
	Key           Key
}

// Group is a peer in one family: all its paths get the same rounds.
type Group struct {
	Index uint32 // in maps.Set.GroupStates
	Paths []Path
}

// Config of a Sender.
type Config struct {
	Set    *maps.Set
	Plait0 int           // interface index
	Fast   time.Duration // between rounds towards peers with traffic
	Idle   time.Duration // towards the others
	Budget int           // probes a second, whole host
	Log    *slog.Logger
}

// Sender sends the rounds. It is one locked thread that does not allocate while it runs.
type Sender struct {
	cfg  Config
	fd   int
	plan atomic.Pointer[plan]

	lateness    []atomic.Uint64
	latenessSum atomic.Uint64 // ns
	sendErrors  atomic.Uint64
	interval    atomic.Int64 // ns, as stretched by the budget
	active      atomic.Int64 // groups

	idle time.Duration // between idle rounds, as stretched; the sending thread's own
}

// plan is what is sent, made by Update and used by the sending thread alone afterwards.
type plan struct {
	groups []group
	active []*group           // those with traffic, as of the last scan
	rhythm map[uint32]*rhythm // by group index, not changed any more
	msgs   [batch]mmsghdr
	iovs   [batch]unix.Iovec
}

type group struct {
	*rhythm
	state *maps.GroupState
	paths []path
}

// rhythm is what a group keeps from one plan to the next. Only the sending thread touches it, and SentAt the samples.
type rhythm struct {
	active      bool
	idleAt      time.Duration // next idle round; 0 not known yet
	lastActive  uint64        // value of state.Active when traffic was last seen
	lastTraffic time.Duration
	sentOn      uint64 // paths that the last round was sent on
	samples     [sampleSlots]sample
}

// sample is a round that asked for an RTT sample.
type sample struct {
	round atomic.Uint64 // 0 while at is written
	at    atomic.Int64
}

// slot is the place of a round's sample.
func (r *rhythm) slot(round uint64) *sample { return &r.samples[round/sampleEvery%sampleSlots] }

type path struct {
	frame  frame
	state  *maps.PathState
	uplink uint8
	bit    uint64
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// New opens the socket. It needs CAP_NET_RAW.
func New(cfg Config) (*Sender, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the probe socket: %w", err)
	}
	s := newSender(cfg, fd)
	if err := s.setUp(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("preparing the probe socket: %w", err)
	}
	return s, nil
}

func newSender(cfg Config, fd int) *Sender {
	s := &Sender{cfg: cfg, fd: fd, lateness: make([]atomic.Uint64, len(LatenessBounds)+1), idle: cfg.Idle}
	s.plan.Store(&plan{})
	s.interval.Store(int64(cfg.Fast))
	return s
}

func (s *Sender) setUp() error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PRIORITY, skbPriority); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20); err != nil {
		return err
	}
	return s.Rebind(s.cfg.Plait0)
}

// Rebind has the Sender use another plait0, the interface of that index, also while it runs.
func (s *Sender) Rebind(plait0 int) error {
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: plait0}); err != nil {
		return fmt.Errorf("binding the probe socket to plait0: %w", err)
	}
	return nil
}

// Close releases the socket; Run must have returned.
func (s *Sender) Close() error { return unix.Close(s.fd) }

// Update replaces what is probed. Groups that stay keep their rhythm.
func (s *Sender) Update(groups []Group) {
	old := s.plan.Load().rhythm
	p := &plan{
		groups: make([]group, len(groups)), active: make([]*group, 0, len(groups)),
		rhythm: make(map[uint32]*rhythm, len(groups)),
	}
	for i, in := range groups {
		g := &p.groups[i]
		g.state = s.cfg.Set.GroupStates.At(in.Index)
		if g.rhythm = old[in.Index]; g.rhythm == nil {
			// Active at first, so that a new peer's paths are known after a few milliseconds.
			g.rhythm = &rhythm{
				active: true, lastTraffic: monotonic() - idleAfter + firstLook,
				lastActive: atomic.LoadUint64(&g.state.Active), sentOn: ^uint64(0),
			}
		}
		p.rhythm[in.Index] = g.rhythm
		for _, ip := range in.Paths {
			g.paths = append(g.paths, path{
				frame: newFrame(ip.Local, ip.Remote, ip.Number, ip.KeyID, ip.Key,
					s.cfg.Set.Settings.Epoch, uint32(s.cfg.Fast.Microseconds())),
				state:  s.cfg.Set.PathStates.At(ip.Index),
				uplink: ip.Uplink,
				bit:    1 << ip.Number,
			})
		}
	}
	s.plan.Store(p)
}

// Lateness returns how many rounds started how late: cumulative counts for LatenessBounds, the total
// and the sum in seconds.
func (s *Sender) Lateness() (buckets map[float64]uint64, count uint64, sum float64) {
	buckets = make(map[float64]uint64, len(LatenessBounds))
	for i, b := range LatenessBounds {
		count += s.lateness[i].Load()
		buckets[b] = count
	}
	count += s.lateness[len(LatenessBounds)].Load()
	return buckets, count, time.Duration(s.latenessSum.Load()).Seconds()
}

// SendErrors is the number of frames that the kernel refused.
func (s *Sender) SendErrors() uint64 { return s.sendErrors.Load() }

// Interval is the time between rounds towards active peers, stretched if the budget asks for it.
func (s *Sender) Interval() time.Duration { return time.Duration(s.interval.Load()) }

// Active is the number of groups that get fast rounds.
func (s *Sender) Active() int { return int(s.active.Load()) }

// SentAt returns when a round of a group that asked for an RTT sample was sent (CLOCK_MONOTONIC), and whether that is still
// known.
func (s *Sender) SentAt(group uint32, round uint64) (at time.Duration, ok bool) {
	r := s.plan.Load().rhythm[group]
	if r == nil || round == 0 {
		return 0, false
	}
	slot := r.slot(round)
	at = time.Duration(slot.at.Load())
	if slot.round.Load() != round { // read last: it is 0 while at is written
		return 0, false
	}
	return at, true
}

// String names the task.
func (s *Sender) String() string { return "probe sender" }

// Run sends until ctx ends.
func (s *Sender) Run(ctx context.Context) error {
	// One more than the others need: the sending thread keeps its own.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	defer func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - 1) }()
	done := make(chan struct{})
	var stop atomic.Bool
	unhook := context.AfterFunc(ctx, func() { stop.Store(true) })
	defer unhook()
	go func() {
		defer close(done)
		// Never unlocked: the thread carries its scheduling class to its end.
		runtime.LockOSThread()
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
		err := unix.SchedSetAttr(0, &attr, 0)
		if err == nil {
			err = raiseOthers()
		}
		if err != nil {
			s.cfg.Log.Warn("probes are sent without real-time priority", "error", err)
		}
		s.loop(&stop)
	}()
	<-done
	return nil
}

// raiseOthers lets no busy program come before the other threads of this process: every 10 ms the Go scheduler takes the
// sending thread off its processor, and another thread has to put it back.
func raiseOthers() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		// A thread that is started later inherits it.
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func (s *Sender) loop(stop *atomic.Bool) {
	next := monotonic()
	nextScan := next
	var last *plan
	for !stop.Load() {
		now := monotonic()
		s.noteLateness(now - next)
		p := s.plan.Load()
		if now >= nextScan || p != last {
			last = p
			s.scan(p, now)
			s.send(p, now, true)
			nextScan = now + s.scanStep()
		} else {
			s.send(p, now, false)
		}
		step := s.Interval()
		if s.active.Load() == 0 {
			step = s.scanStep()
		}
		next += step
		if next <= now { // rounds that were missed are not made up for
			next = now + step
		}
		sleepUntil(next)
	}
}

// scanStep is the time between two looks at idle groups.
func (s *Sender) scanStep() time.Duration { return min(scanInterval, s.cfg.Idle) }

func (s *Sender) noteLateness(late time.Duration) {
	if late < 0 {
		late = 0
	}
	i := 0
	for i < len(LatenessBounds) && late.Seconds() > LatenessBounds[i] {
		i++
	}
	s.lateness[i].Add(1)
	s.latenessSum.Add(uint64(late))
}

// scan tells active groups from idle ones by the round that egress left in their state, and applies
// the budget: it stretches intervals, the idle one only where that alone would use nine tenths.
func (s *Sender) scan(p *plan, now time.Duration) {
	fast, slow := 0, 0
	p.active = p.active[:0]
	for i := range p.groups {
		g := &p.groups[i]
		seen := atomic.LoadUint64(&g.state.Active)
		switch {
		case seen != g.lastActive:
			g.lastActive, g.lastTraffic, g.active = seen, now, true
		case now-g.lastTraffic > idleAfter:
			g.active = false
		}
		if g.active {
			p.active = append(p.active, g)
			g.idleAt = 0
			fast += len(g.paths)
		} else {
			slow += len(g.paths)
		}
	}
	s.active.Store(int64(len(p.active)))
	budget := float64(s.cfg.Budget)
	idle := max(s.cfg.Idle, seconds(float64(slow)/(0.9*budget)))
	left := budget - float64(slow)/idle.Seconds()
	s.idle = idle
	s.interval.Store(int64(max(s.cfg.Fast, seconds(float64(fast)/left))))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// send sends what is due: one round on all paths of each active group and, if asked to look at them, of each idle group
// whose time has come.
func (s *Sender) send(p *plan, now time.Duration, idleToo bool) {
	n := 0
	uplinks := atomic.LoadUint64(&s.cfg.Set.Settings.Uplinks)
	for _, g := range p.active {
		n = s.round(p, g, uplinks, n)
	}
	for i := range p.groups {
		if !idleToo {
			break
		}
		g := &p.groups[i]
		if g.active {
			continue
		}
		if g.idleAt == 0 { // spread the idle groups over the interval
			g.idleAt = now + s.idle*time.Duration(i)/time.Duration(len(p.groups))
		}
		if now < g.idleAt {
			continue
		}
		g.idleAt += s.idle
		if g.idleAt <= now {
			g.idleAt = now + s.idle
		}
		n = s.round(p, g, uplinks, n)
	}
	s.flush(p, n)
}

// round adds the next round of g to the n frames that wait to be sent, and returns their new number.
func (s *Sender) round(p *plan, g *group, uplinks uint64, n int) int {
	round := atomic.LoadUint64(&g.state.Sent) + 1
	fresh := atomic.LoadUint64(&g.state.Fresh)
	window := uint32(0)
	for i := range g.paths {
		state := g.paths[i].state
		patience := max(atomic.LoadUint32(&state.Multiplier),
			atomic.LoadUint32(&state.MinMultiplier)+atomic.LoadUint32(&state.BaseLag))
		window = max(window, oneway(patience))
	}
	wanted := !g.active || round%sampleEvery == 0
	if wanted {
		slot := g.slot(round)
		slot.round.Store(0)
		slot.at.Store(int64(monotonic()))
		slot.round.Store(round)
	}
	// Before the first frame leaves: a reply is accepted up to the last round sent.
	atomic.StoreUint64(&g.state.Sent, round)
	sentOn := uint64(0)
	for i := range g.paths {
		path := &g.paths[i]
		if uplinks>>path.uplink&1 == 0 {
			continue
		}
		sentOn |= path.bit
		if g.sentOn&path.bit == 0 {
			path.forgive(round - 1)
		}
		if n == batch {
			s.flush(p, n)
			n = 0
		}
		path.frame.patch(round, uint8(min(window, 255)), fresh&path.bit != 0, wanted)
		p.iovs[n].Base = &path.frame.buf[0]
		p.iovs[n].SetLen(len(path.frame.buf))
		p.msgs[n].hdr.Iov = &p.iovs[n]
		p.msgs[n].hdr.SetIovlen(1)
		n++
		atomic.AddUint64(&path.state.Probes, 1)
	}
	g.sentOn = sentOn
	return n
}

// oneway is live_oneway of headers/liveness.h: for so many rounds the peer's report must be silent on
// a path before its silence counts.
func oneway(threshold uint32) uint32 { return threshold + threshold/2 + 1 }

// forgive makes the rounds up to the given one count as answered on a path that has ever answered:
// they were not sent there, so their lack is no evidence.
func (p *path) forgive(round uint64) {
	for {
		newest := atomic.LoadUint64(&p.state.Newest)
		if newest == 0 || newest >= round || atomic.CompareAndSwapUint64(&p.state.Newest, newest, round) {
			return
		}
	}
}

func (s *Sender) flush(p *plan, n int) {
	for sent := 0; sent < n; {
		got, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd),
			uintptr(unsafe.Pointer(&p.msgs[sent])), uintptr(n-sent), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			// This one frame; the peer's other paths must not suffer for it.
			s.sendErrors.Add(1)
			sent++
		default:
			sent += int(got)
		}
	}
}

// The sending thread makes raw system calls only: the Go scheduler does not hear of them, leaves the thread its processor
// while it sleeps, and does not look for work at every round. What the runtime wants of the thread it says with a signal,
// which ends the sleep.

func monotonic() time.Duration {
	var ts unix.Timespec
	// Cannot fail with a valid clock and pointer.
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}

func sleepUntil(at time.Duration) {
	for !sleptUntil(at) {
	}
}

// sleptUntil sleeps until at and reports whether it got there. After a signal the runtime stops the thread where a
// function is called: at the next call of this one.
//
//go:noinline
func sleptUntil(at time.Duration) bool {
	ts := unix.NsecToTimespec(int64(at))
	_, _, errno := unix.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME,
		uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	return errno != unix.EINTR
}
