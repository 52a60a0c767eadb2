// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// UDPConfig describes a stream of packets.
type UDPConfig struct {
	// From and To are where the sending and the receiving socket are made.
	From, To Place
	// Src is the sender's address; port 0 lets the kernel choose.
	Src netip.AddrPort
	// Dst is the receiver's address; port 0 lets the kernel choose.
	Dst netip.AddrPort
	// Via is where the sender sends to, if that is not Dst: a relay.
	Via netip.AddrPort
	// Size is the payload of a packet in bytes, MinSize to 65507. Default 256.
	Size int
	// Rate is in packets per second. Default 5000.
	Rate int
	// For is how long the stream may run at most; it also bounds the memory that holds its times. Default 10 s.
	For time.Duration
	// Answer makes the receiver answer every packet.
	Answer bool
}

const (
	// maxBatch is how many packets a sender that is late sends at once to catch up. What a longer stall left unsent is
	// never sent: a burst would overflow queues and be lost for a reason that is not the network's.
	maxBatch = 64
	// quiet is how long after the last packet sent and the last one received a receiver still waits.
	quiet = 500 * time.Millisecond
	// pollEvery bounds how long a receiver sleeps before it looks whether it shall end.
	pollEvery = 20 * time.Millisecond
	// maxDatagram is the largest UDP payload.
	maxDatagram = 65507
)

// UDP is a stream of numbered, checked packets. Its connected sending socket exists from NewUDP on, so that the path it
// takes can be found (see [Taken]) before the stream is started with [StartUDP].
type UDP struct {
	cfg      UDPConfig
	id       uint32
	tx, rx   int
	src, dst netip.AddrPort

	closed bool

	// Times, made when the stream starts.
	start, end atomic.Int64 // CLOCK_MONOTONIC, ns; end is 0 while it sends
	sent       *timeLog     // by sequence number
	arrivals   *timeLog     // in order of arrival
	answers    *timeLog     // in order of arrival
	first      []int64      // first arrival by sequence number, 0 if none; atomic

	// Written by the sending thread.
	sendErrors, slipped, late atomic.Int64
	lastError                 atomic.Int64
	realtime                  atomic.Bool

	// Written by the receiving thread.
	received, duplicates, corrupted, reordered, foreign, bytes atomic.Int64
	highest                                                    int64

	buf []byte
}

// NewUDP makes the two sockets of a stream and connects the sending one.
func NewUDP(cfg UDPConfig) (*UDP, error) {
	if cfg.Size == 0 {
		cfg.Size = 256
	}
	if cfg.Rate == 0 {
		cfg.Rate = 5000
	}
	if cfg.For == 0 {
		cfg.For = 10 * time.Second
	}
	if cfg.Size < MinSize || cfg.Size > maxDatagram {
		return nil, fmt.Errorf("packet size %d is not within %d and %d bytes", cfg.Size, MinSize, maxDatagram)
	}
	if cfg.Rate < 0 || cfg.For < 0 {
		return nil, errors.New("rate and duration of a stream cannot be negative")
	}
	u := &UDP{cfg: cfg, id: rand.Uint32(), tx: -1, rx: -1, highest: -1, buf: make([]byte, cfg.Size)}
	err := cfg.To.do(func() (err error) {
		u.rx, err = newSocket(cfg.Dst, unix.SOCK_DGRAM, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("receiver: %w", err)
	}
	growReceiveBuffer(u.rx)
	if u.dst, err = localAddr(u.rx); err != nil {
		u.Close()
		return nil, err
	}
	to := cfg.Via
	if !to.IsValid() {
		to = u.dst
	}
	err = cfg.From.do(func() (err error) {
		if u.tx, err = newSocket(cfg.Src, unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		// Connected, so that the kernel gives the flow a hash of its own and its packets stay on one path.
		return connect(u.tx, to, time.Second)
	})
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("sender: %w", err)
	}
	if u.src, err = localAddr(u.tx); err != nil {
		u.Close()
		return nil, err
	}
	growReceiveBuffer(u.tx)
	return u, nil
}

// Addrs returns the addresses of the sending and the receiving socket.
func (u *UDP) Addrs() (src, dst netip.AddrPort) { return u.src, u.dst }

// Burst sends n packets of size bytes at once, which the receiver ignores: to see by counters which path the stream takes.
func (u *UDP) Burst(n, size int) error {
	if size < MinSize || size > maxDatagram {
		return fmt.Errorf("packet size %d is not within %d and %d bytes", size, MinSize, maxDatagram)
	}
	b := make([]byte, size)
	for i := range n {
		fill(b, header{magic: magicBurst, stream: u.id, seq: uint64(i), sent: Now()})
		if _, e := sendNow(u.tx, b); e != 0 {
			return fmt.Errorf("sending from %s: %w", u.src, e)
		}
	}
	return nil
}

// Close closes the sockets. It must not be called while the stream runs; it may be called twice.
func (u *UDP) Close() {
	if u.closed {
		return
	}
	u.closed = true
	for _, fd := range []int{u.tx, u.rx} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Group is a number of streams that run at once, on one sending and one receiving thread: whatever keeps a thread from
// running shows in all of them alike.
type Group struct {
	streams []*UDP
	stop    atomic.Bool // the sender shall end
	ended   atomic.Bool // the sender has ended
	threads sync.WaitGroup
}

// StartUDP starts streams, which must share one rate and have not been started before. Packet n of each is sent at the same
// moment. The group must be stopped.
func StartUDP(streams ...*UDP) (*Group, error) {
	if len(streams) == 0 {
		return nil, errors.New("no stream to start")
	}
	g := &Group{streams: streams}
	rate, most := streams[0].cfg.Rate, 0
	for _, u := range streams {
		if u.cfg.Rate != rate {
			return nil, fmt.Errorf("streams of one group have different rates, %d and %d packets/s", rate, u.cfg.Rate)
		}
		if u.start.Load() != 0 || u.closed {
			return nil, errors.New("stream was started before")
		}
		n := int(int64(u.cfg.Rate)*int64(u.cfg.For)/int64(time.Second)) + 1
		u.sent, u.arrivals = newTimeLog(n), newTimeLog(2*n)
		u.answers = newTimeLog(0)
		if u.cfg.Answer {
			u.answers = newTimeLog(2 * n)
		}
		u.first = make([]int64, n)
		touch(u.first)
		most = max(most, n)
	}
	period := time.Second / time.Duration(rate)
	// Long enough for both threads to be there.
	start := Now() + 2*time.Millisecond
	for _, u := range streams {
		u.start.Store(int64(start))
	}
	g.threads.Add(2)
	go func() {
		defer g.threads.Done()
		g.receive()
	}()
	go func() {
		defer g.threads.Done()
		g.send(start, period, most)
	}()
	return g, nil
}

// Start is when the first packet of the group was due.
func (g *Group) Start() time.Duration { return time.Duration(g.streams[0].start.Load()) }

// Stop ends the streams and waits for packets still on their way: until all have arrived, or none for half a second. The
// streams' results are final then; their sockets are still open.
func (g *Group) Stop() {
	g.stop.Store(true)
	g.threads.Wait()
}

// send is the sending thread.
func (g *Group) send(start, period time.Duration, most int) {
	rt := realtime()
	for _, u := range g.streams {
		u.realtime.Store(rt)
	}
	for k := 0; k < most && !g.stop.Load(); k++ {
		due := start + time.Duration(k)*period
		SleepUntil(due)
		now := Now()
		late := now - due
		slip := late > maxBatch*period
		if slip {
			start += late
		}
		for _, u := range g.streams {
			if int64(late) > u.late.Load() {
				u.late.Store(int64(late))
			}
			if slip {
				u.slipped.Add(int64(late / period))
			}
			if k < len(u.first) {
				u.send(uint64(k), Now())
			}
		}
	}
	end := Now()
	for _, u := range g.streams {
		u.end.Store(int64(end))
	}
	g.ended.Store(true)
}

// send sends one packet.
func (u *UDP) send(seq uint64, now time.Duration) {
	fill(u.buf, header{magic: magicData, stream: u.id, seq: seq, sent: now})
	u.sent.add(now)
	_, e := sendNow(u.tx, u.buf)
	if e != 0 {
		// The first error may be an old one, about an earlier packet (an ICMP error), which sending reports and clears
		// without sending.
		u.lastError.Store(int64(e))
		u.sendErrors.Add(1)
		if _, e = sendNow(u.tx, u.buf); e != 0 {
			u.lastError.Store(int64(e))
		}
	}
}

// receive is the receiving thread.
func (g *Group) receive() {
	realtime()
	fds := make([]unix.PollFd, 0, 2*len(g.streams))
	for _, u := range g.streams {
		fds = append(fds, unix.PollFd{Fd: int32(u.rx), Events: unix.POLLIN})
	}
	for _, u := range g.streams {
		if u.cfg.Answer {
			fds = append(fds, unix.PollFd{Fd: int32(u.tx), Events: unix.POLLIN})
		} else {
			fds = append(fds, unix.PollFd{Fd: -1})
		}
	}
	n := len(g.streams)
	b := make([]byte, maxDatagram)
	answer := make([]byte, MinSize)
	var timeout unix.Timespec
	var from unix.RawSockaddrAny
	var last time.Duration
	for {
		// The kernel writes the time that was left into it.
		timeout = unix.NsecToTimespec(int64(pollEvery))
		ready, err := unix.Ppoll(fds, &timeout, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			// Only a programming error can bring this about; the streams then show as lost.
			return
		}
		if ready <= 0 {
			if g.finished(last) {
				return
			}
			continue
		}
		for i := range fds {
			if fds[i].Revents == 0 {
				continue
			}
			if i < n {
				g.streams[i].takeAll(b, answer, &from)
			} else {
				g.streams[i-n].takeAnswers(b, &from)
			}
			fds[i].Revents = 0
		}
		last = Now()
		if g.ended.Load() && g.finished(last) {
			return
		}
	}
}

// finished says whether nothing more can be expected to arrive.
func (g *Group) finished(last time.Duration) bool {
	if !g.ended.Load() {
		return false
	}
	if Now()-max(last, time.Duration(g.streams[0].end.Load())) > quiet {
		return true
	}
	for _, u := range g.streams {
		if u.received.Load() < u.sent.n.Load() || u.cfg.Answer && u.answers.n.Load() < u.received.Load() {
			return false
		}
	}
	return true
}

// takeAll takes every packet that waits.
func (u *UDP) takeAll(b, answer []byte, from *unix.RawSockaddrAny) {
	var size uint32
	for range maxBatch {
		n, e := receiveNow(u.rx, b, 0, from, &size)
		if e != 0 {
			return
		}
		u.take(b[:n], Now(), answer, from, size)
	}
}

// take accounts for one packet.
func (u *UDP) take(b []byte, now time.Duration, answer []byte, from *unix.RawSockaddrAny, size uint32) {
	h, ok := check(b)
	if ok && h.magic == magicBurst && h.stream == u.id {
		return
	}
	if !ok || h.magic != magicData || h.stream != u.id || len(b) != u.cfg.Size || int64(h.seq) >= u.sent.n.Load() {
		// A packet that is not whole cannot be trusted to say whose it is: only one of another stream that is, is foreign.
		if ok && (h.stream != u.id || h.magic != magicData) {
			u.foreign.Add(1)
		} else {
			u.corrupted.Add(1)
		}
		return
	}
	u.arrivals.add(now)
	if u.cfg.Answer {
		fill(answer, header{magic: magicAnswer, stream: u.id, seq: h.seq, sent: now})
		_ = sendToNow(u.rx, answer, from, size)
	}
	if atomic.LoadInt64(&u.first[h.seq]) != 0 {
		u.duplicates.Add(1)
		return
	}
	atomic.StoreInt64(&u.first[h.seq], int64(now))
	if int64(h.seq) < u.highest {
		u.reordered.Add(1)
	} else {
		u.highest = int64(h.seq)
	}
	u.received.Add(1)
	u.bytes.Add(int64(len(b)))
}

// takeAnswers takes every answer that waits.
func (u *UDP) takeAnswers(b []byte, from *unix.RawSockaddrAny) {
	var size uint32
	for range maxBatch {
		n, e := receiveNow(u.tx, b, 0, from, &size)
		if e != 0 {
			return
		}
		h, ok := check(b[:n])
		switch {
		case ok && h.magic == magicAnswer && h.stream == u.id:
			u.answers.add(Now())
		case ok:
			u.foreign.Add(1)
		default:
			u.corrupted.Add(1)
		}
	}
}

// UDPResult counts what a stream did; while it runs, what it did so far.
type UDPResult struct {
	// Sent counts packets given to the kernel, also where it refused them.
	Sent int64
	// Received counts those that arrived, each once.
	Received int64
	// Lost is the difference; while the stream runs it includes what is on its way.
	Lost int64
	// Duplicates counts further arrivals of a packet.
	Duplicates int64
	// Corrupted counts packets with a wrong byte or length.
	Corrupted int64
	// Reordered counts packets that arrived after one sent later (RFC 4737, 3.3).
	Reordered int64
	// Foreign counts whole packets of another stream.
	Foreign int64
	// Bytes is the payload that was verified.
	Bytes int64
	// Answers counts the answers that came back.
	Answers int64
	// SendErrors counts errors at sending, LastError is the newest, nil if none.
	SendErrors int64
	LastError  error
	// Slipped counts packets never sent because the sender was too late; they are not in Sent.
	Slipped int64
	// MaxLate is the longest time between when a packet was due and when the sender ran.
	MaxLate time.Duration
	// Realtime says that the sending thread had a real-time priority.
	Realtime bool
	// Start and End are when the first packet was due and when the sender ended; End is 0 while it runs.
	Start, End time.Duration
}

// Result returns the counts so far.
func (u *UDP) Result() UDPResult {
	r := UDPResult{
		Received:   u.received.Load(),
		Duplicates: u.duplicates.Load(),
		Corrupted:  u.corrupted.Load(),
		Reordered:  u.reordered.Load(),
		Foreign:    u.foreign.Load(),
		Bytes:      u.bytes.Load(),
		SendErrors: u.sendErrors.Load(),
		Slipped:    u.slipped.Load(),
		MaxLate:    time.Duration(u.late.Load()),
		Realtime:   u.realtime.Load(),
		Start:      time.Duration(u.start.Load()),
		End:        time.Duration(u.end.Load()),
	}
	if e := u.lastError.Load(); e != 0 {
		r.LastError = os.NewSyscallError("sendto", unix.Errno(e))
	}
	if r.Start != 0 {
		r.Sent = u.sent.n.Load()
		r.Answers = u.answers.n.Load()
	}
	r.Lost = r.Sent - r.Received
	return r
}

// span is from when to when the stream sent: so far, if it still does.
func (u *UDP) span() (start, end time.Duration) {
	start, end = time.Duration(u.start.Load()), time.Duration(u.end.Load())
	if end == 0 {
		end = Now()
	}
	return start, end
}

// Gap returns the largest gap between arrivals of which any part lies in [from, to]. It may be called while the stream runs.
func (u *UDP) Gap(from, to time.Duration) Gap {
	start, end := u.span()
	return largestGap(u.arrivals.times(), start, end, from, to)
}

// GapAfter returns the largest gap between arrivals that begins after from.
func (u *UDP) GapAfter(from time.Duration) Gap {
	start, end := u.span()
	return largestGapAfter(u.arrivals.times(), start, end, from)
}

// Gaps lists the gaps of at least min, in their order.
func (u *UDP) Gaps(min time.Duration) []Gap {
	start, end := u.span()
	return gapsOver(u.arrivals.times(), start, end, min)
}

// SendGap returns the largest time without sending of which any part lies in [from, to]: what the machine, not the network,
// adds to a gap.
func (u *UDP) SendGap(from, to time.Duration) Gap {
	start, end := u.span()
	return largestGap(u.sent.times(), start, end, from, to)
}

// LostBetween counts the packets sent in [from, to] that have not arrived.
func (u *UDP) LostBetween(from, to time.Duration) int {
	lost := 0
	for seq, at := range u.sent.times() {
		if at := time.Duration(at); at >= from && at <= to && atomic.LoadInt64(&u.first[seq]) == 0 {
			lost++
		}
	}
	return lost
}

// FirstAnswer returns when the first answer arrived; ok is false if none has.
func (u *UDP) FirstAnswer() (at time.Duration, ok bool) {
	if t := u.answers.times(); len(t) > 0 {
		return time.Duration(t[0]), true
	}
	return 0, false
}

// FirstArrivalAfter returns when the first packet after from arrived; ok is false if none has.
func (u *UDP) FirstArrivalAfter(from time.Duration) (at time.Duration, ok bool) {
	for _, t := range u.arrivals.times() {
		if time.Duration(t) >= from {
			return time.Duration(t), true
		}
	}
	return 0, false
}

// FirstThrough returns when the first packet that was sent after from, and has arrived, was sent and when it arrived; ok is
// false if there is none.
func (u *UDP) FirstThrough(from time.Duration) (sent, arrived time.Duration, ok bool) {
	for seq, at := range u.sent.times() {
		if time.Duration(at) < from {
			continue
		}
		if a := atomic.LoadInt64(&u.first[seq]); a != 0 {
			return time.Duration(at), time.Duration(a), true
		}
	}
	return 0, 0, false
}
