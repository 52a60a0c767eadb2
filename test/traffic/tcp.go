// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TCPConfig describes a stream of records over one TCP connection.
type TCPConfig struct {
	// From and To are where the connecting, sending socket and the listening, receiving one are made.
	From, To Place
	// Src is the sender's address; port 0 lets the kernel choose.
	Src netip.AddrPort
	// Dst is the receiver's address; port 0 lets the kernel choose.
	Dst netip.AddrPort
	// Via is where the sender connects to, if that is not Dst: a relay.
	Via netip.AddrPort
	// Size is that of a record in bytes, at least MinSize. Default 1000.
	Size int
	// Every is the time from record to record. 0 sends as fast as the connection takes it.
	Every time.Duration
	// For is how long the stream may run at most; it also bounds the memory that holds its times. Default 10 s.
	For time.Duration
	// MPTCP opens a Multipath TCP connection (RFC 8684); its subflows are the business of the hosts' path managers. The
	// receiver listens on every address of its host, or further subflows could not reach it.
	MPTCP bool
	// Background makes the stream load, not a measurement: its threads are ordinary ones.
	Background bool
	// Timeout is how long connecting may take at most. Default 10 s.
	Timeout time.Duration
}

// maxRecords bounds the times kept of a stream that is not paced; it goes on beyond.
const maxRecords = 1 << 17

// TCP is a stream of numbered, checked records over a connection, which exists from NewTCP on and is read from then on.
type TCP struct {
	cfg      TCPConfig
	id       uint32
	tx, rx   int
	listener int // stays open: subflows of MPTCP are accepted through it
	src, dst netip.AddrPort

	// Times of the stream proper, made when it starts.
	start, end     atomic.Int64 // CLOCK_MONOTONIC, ns; end is 0 while it sends
	sent, arrivals *timeLog

	// Written by whoever sends: first the caller (bursts), then the sending thread.
	records  atomic.Int64 // records handed to the kernel in full
	buf      []byte
	pending  []byte // what the kernel has not taken yet of the record in buf
	late     atomic.Int64
	slipped  atomic.Int64
	realtime atomic.Bool
	sendErr  atomic.Int64

	// Written by the receiving thread.
	received, corrupted, bytes atomic.Int64
	receiveErr                 atomic.Int64
	eof                        atomic.Bool

	first    atomic.Int64 // records before this one were bursts: not timed
	stop     atomic.Bool  // the sender shall end
	abandon  atomic.Bool  // the receiver shall end
	sender   sync.WaitGroup
	receiver sync.WaitGroup
	running  bool
	stopped  bool
	closed   bool
	retrans  int64 // read by Stop
}

// NewTCP connects and begins to receive.
func NewTCP(cfg TCPConfig) (*TCP, error) {
	if cfg.Size == 0 {
		cfg.Size = 1000
	}
	if cfg.For == 0 {
		cfg.For = 10 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Size < MinSize {
		return nil, fmt.Errorf("record size %d is below %d bytes", cfg.Size, MinSize)
	}
	if cfg.Every < 0 || cfg.For < 0 {
		return nil, errors.New("times of a stream cannot be negative")
	}
	t := &TCP{cfg: cfg, id: rand.Uint32(), tx: -1, rx: -1, listener: -1, buf: make([]byte, cfg.Size)}
	proto := unix.IPPROTO_TCP
	if cfg.MPTCP {
		proto = unix.IPPROTO_MPTCP
	}
	if err := t.open(proto); err != nil {
		t.Close()
		return nil, err
	}
	n := maxRecords
	if cfg.Every > 0 {
		n = int(cfg.For/cfg.Every) + 1
	}
	t.sent, t.arrivals = newTimeLog(n), newTimeLog(n)
	t.first.Store(-1)
	t.receiver.Add(1)
	go func() {
		defer t.receiver.Done()
		t.receive()
	}()
	return t, nil
}

// open makes the connection.
func (t *TCP) open(proto int) error {
	at := t.cfg.Dst
	if t.cfg.MPTCP {
		if at.Addr().Is4() {
			at = netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())
		} else {
			at = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
		}
	}
	err := t.cfg.To.do(func() (err error) {
		if t.listener, err = newSocket(at, unix.SOCK_STREAM, proto); err != nil {
			return err
		}
		return os.NewSyscallError("listen", unix.Listen(t.listener, 1))
	})
	if err != nil {
		return fmt.Errorf("receiver: %w", err)
	}
	if at, err = localAddr(t.listener); err != nil {
		return err
	}
	t.dst = netip.AddrPortFrom(t.cfg.Dst.Addr(), at.Port())
	to := t.cfg.Via
	if !to.IsValid() {
		to = t.dst
	}
	err = t.cfg.From.do(func() (err error) {
		if t.tx, err = newSocket(t.cfg.Src, unix.SOCK_STREAM, proto); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(t.tx, unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		return connect(t.tx, to, t.cfg.Timeout)
	})
	if err != nil {
		return fmt.Errorf("sender: %w", err)
	}
	if t.src, err = localAddr(t.tx); err != nil {
		return err
	}
	if err := wait(t.listener, unix.POLLIN, t.cfg.Timeout); err != nil {
		return fmt.Errorf("accepting: %w", err)
	}
	if t.rx, _, err = unix.Accept4(t.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err != nil {
		return os.NewSyscallError("accept", err)
	}
	return nil
}

// Addrs returns the addresses of the sending and the receiving socket.
func (t *TCP) Addrs() (src, dst netip.AddrPort) { return t.src, t.dst }

// Burst sends n records at once and waits, at most the connect timeout, until they have arrived: to see by counters which
// path the connection takes. They are part of the checked bytes, but not of the timed stream. It must not be called once the
// stream is started.
func (t *TCP) Burst(n int) error {
	if t.running {
		return errors.New("stream runs already")
	}
	deadline := Now() + t.cfg.Timeout
	for range n {
		t.next(Now())
		for len(t.pending) > 0 {
			if e := t.push(); e != 0 {
				return fmt.Errorf("sending from %s: %w", t.src, e)
			}
			if len(t.pending) > 0 {
				if err := wait(t.tx, unix.POLLOUT, deadline-Now()); err != nil {
					return fmt.Errorf("sending from %s: %w", t.src, err)
				}
			}
		}
	}
	for t.received.Load()+t.corrupted.Load() < t.records.Load() {
		if e := t.receiveErr.Load(); e != 0 {
			return fmt.Errorf("receiving at %s: %w", t.dst, unix.Errno(e))
		}
		if Now() > deadline {
			return fmt.Errorf("receiving at %s: %w", t.dst, os.ErrDeadlineExceeded)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// next makes the next record the pending one.
func (t *TCP) next(now time.Duration) {
	fill(t.buf, header{magic: magicData, stream: t.id, seq: uint64(t.records.Load()), sent: now})
	t.pending = t.buf
}

// push gives the kernel what it takes of the pending record. It returns an error only if the connection is broken.
func (t *TCP) push() unix.Errno {
	for len(t.pending) > 0 {
		n, e := sendNow(t.tx, t.pending)
		switch e {
		case 0:
			t.pending = t.pending[n:]
			if len(t.pending) == 0 {
				t.records.Add(1)
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return 0
		default:
			return e
		}
	}
	return 0
}

// Start starts the timed stream, once.
func (t *TCP) Start() error {
	if t.running || t.closed {
		return errors.New("stream was started before")
	}
	t.running = true
	t.first.Store(t.records.Load())
	start := Now() + time.Millisecond
	t.start.Store(int64(start))
	t.sender.Add(1)
	go func() {
		defer t.sender.Done()
		if t.cfg.Every > 0 {
			t.sendPaced(start)
		} else {
			t.sendAll(start)
		}
		t.end.Store(int64(Now()))
	}()
	return nil
}

// sendPaced is the sending thread of a paced stream.
func (t *TCP) sendPaced(start time.Duration) {
	if !t.cfg.Background {
		t.realtime.Store(realtime())
	}
	every := t.cfg.Every
	for k := 0; k < len(t.sent.at) && !t.stop.Load(); k++ {
		due := start + time.Duration(k)*every
		SleepUntil(due)
		now := Now()
		late := now - due
		if int64(late) > t.late.Load() {
			t.late.Store(int64(late))
		}
		if late > maxBatch*every {
			t.slipped.Add(int64(late / every))
			start += late
		}
		if len(t.pending) == 0 {
			t.sent.add(now)
			t.next(now)
		} else {
			// The connection took less than what was due. What is left of the record goes first, this one never.
			t.slipped.Add(1)
		}
		if e := t.push(); e != 0 {
			t.sendErr.Store(int64(e))
			return
		}
	}
}

// sendAll is the sending thread of a stream that is not paced.
func (t *TCP) sendAll(start time.Duration) {
	if !t.cfg.Background {
		t.realtime.Store(realtime())
	}
	SleepUntil(start)
	fds := []unix.PollFd{{Fd: int32(t.tx), Events: unix.POLLOUT}}
	var timeout unix.Timespec
	until := start + t.cfg.For
	for !t.stop.Load() {
		now := Now()
		if now > until {
			return
		}
		if len(t.pending) == 0 {
			t.sent.add(now)
			t.next(now)
		}
		if e := t.push(); e != 0 {
			t.sendErr.Store(int64(e))
			return
		}
		if len(t.pending) > 0 {
			timeout = unix.NsecToTimespec(int64(pollEvery))
			_, _ = unix.Ppoll(fds, &timeout, nil)
		}
	}
}

// receive is the receiving thread.
func (t *TCP) receive() {
	if !t.cfg.Background {
		realtime()
	}
	b := make([]byte, max(256<<10, 4*t.cfg.Size))
	have := 0
	fds := []unix.PollFd{{Fd: int32(t.rx), Events: unix.POLLIN}}
	var timeout unix.Timespec
	var from unix.RawSockaddrAny
	var size uint32
	for !t.abandon.Load() {
		n, e := receiveNow(t.rx, b[have:], 0, &from, &size)
		switch {
		case e == unix.EAGAIN:
			timeout = unix.NsecToTimespec(int64(pollEvery))
			_, _ = unix.Ppoll(fds, &timeout, nil)
			continue
		case e == unix.EINTR:
			continue
		case e != 0:
			t.receiveErr.Store(int64(e))
			return
		case n == 0:
			if have > 0 {
				// The connection ended within a record.
				t.corrupted.Add(1)
			}
			t.eof.Store(true)
			return
		}
		have += n
		now := Now()
		off := 0
		for ; have-off >= t.cfg.Size; off += t.cfg.Size {
			t.take(b[off:off+t.cfg.Size], now)
		}
		if off > 0 {
			have = copy(b, b[off:have])
		}
	}
}

// take accounts for one record.
func (t *TCP) take(b []byte, now time.Duration) {
	seq := t.received.Load() + t.corrupted.Load()
	h, ok := check(b)
	if !ok || h.magic != magicData || h.stream != t.id || int64(h.seq) != seq {
		t.corrupted.Add(1)
		return
	}
	if first := t.first.Load(); first >= 0 && seq >= first {
		t.arrivals.add(now)
	}
	t.received.Add(1)
	t.bytes.Add(int64(len(b)))
}

// Subflows returns how many subflows an MPTCP connection has now; 1 for one that fell back to TCP.
func (t *TCP) Subflows() (int, error) {
	info, err := t.mptcpInfo()
	if err != nil {
		return 0, err
	}
	// mptcpi_subflows does not count the first.
	return int(info.Subflows) + 1, nil
}

// mptcpInfo is the beginning of the kernel's struct mptcp_info (include/uapi/linux/mptcp.h).
type mptcpInfo struct {
	Subflows, AddAddrSignal, AddAddrAccepted, SubflowsMax, AddAddrSignalMax, AddAddrAcceptedMax uint8
	_                                                                                           [2]byte
	Flags, Token                                                                                uint32
	WriteSeq, SndUna, RcvNxt                                                                    uint64
	LocalAddrUsed, LocalAddrMax, CsumEnabled                                                    uint8
	_                                                                                           byte
	Retransmits                                                                                 uint32
}

// optMPTCPInfo is MPTCP_INFO of include/uapi/linux/mptcp.h.
const optMPTCPInfo = 1

func (t *TCP) mptcpInfo() (info mptcpInfo, err error) {
	size := uint32(unsafe.Sizeof(info))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(t.tx), unix.SOL_MPTCP, optMPTCPInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return info, os.NewSyscallError("getsockopt", e)
	}
	return info, nil
}

// retransmissions reads the kernel's count, -1 if it has none.
func (t *TCP) retransmissions() int64 {
	if t.cfg.MPTCP {
		if info, err := t.mptcpInfo(); err == nil {
			return int64(info.Retransmits)
		}
	}
	info, err := unix.GetsockoptTCPInfo(t.tx, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return -1
	}
	return int64(info.Total_retrans)
}

// Stop ends the stream, closes the sending direction and waits, at most drain, until every byte has arrived and the
// connection has ended. The result is final then. With a drain of 0 the connection is given up as it is.
func (t *TCP) Stop(drain time.Duration) {
	t.stop.Store(true)
	t.sender.Wait()
	deadline := Now() + drain
	for len(t.pending) > 0 && t.sendErr.Load() == 0 {
		// A record sent in part would look like a wrong one.
		if e := t.push(); e != 0 {
			t.sendErr.Store(int64(e))
		}
		if len(t.pending) > 0 && wait(t.tx, unix.POLLOUT, deadline-Now()) != nil {
			break
		}
	}
	t.retrans = t.retransmissions()
	t.stopped = true
	if drain > 0 && len(t.pending) == 0 && t.sendErr.Load() == 0 {
		_ = unix.Shutdown(t.tx, unix.SHUT_WR)
		for !t.eof.Load() && t.receiveErr.Load() == 0 && Now() < deadline {
			time.Sleep(time.Millisecond)
		}
	}
	t.abandon.Store(true)
	t.receiver.Wait()
	if t.sendErr.Load() == 0 {
		var e unix.Errno
		if errors.As(pendingError(t.tx), &e) {
			t.sendErr.Store(int64(e))
		}
	}
}

// Close stops the stream, if that was not done, and closes the sockets. It may be called twice.
func (t *TCP) Close() {
	if t.closed {
		return
	}
	t.closed = true
	t.stop.Store(true)
	t.sender.Wait()
	t.abandon.Store(true)
	t.receiver.Wait()
	for _, fd := range []int{t.tx, t.rx, t.listener} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// TCPResult counts what a stream did; while it runs, what it did so far.
type TCPResult struct {
	// Sent and Received count records, bursts included.
	Sent, Received int64
	// Corrupted counts records with a wrong byte.
	Corrupted int64
	// Bytes were verified.
	Bytes int64
	// Survived says, once the stream is stopped, that every byte sent arrived and the connection ended without an error.
	Survived bool
	// Err is what broke the connection, nil if nothing did.
	Err error
	// Retransmissions counts segments, -1 if unknown.
	Retransmissions int64
	// Slipped counts records that were due but not sent, because the connection took no more or the sender was too late.
	Slipped int64
	// MaxLate is the longest time between when a record was due and when the sender ran.
	MaxLate time.Duration
	// Realtime says that the sending thread had a real-time priority.
	Realtime bool
	// Start and End are when the first record was due and when the sender ended; End is 0 while it runs.
	Start, End time.Duration
}

// Result returns the counts so far. It must not be called at the same time as Stop or Close.
func (t *TCP) Result() TCPResult {
	r := TCPResult{
		Received:        t.received.Load(),
		Sent:            t.records.Load(),
		Corrupted:       t.corrupted.Load(),
		Bytes:           t.bytes.Load(),
		Slipped:         t.slipped.Load(),
		MaxLate:         time.Duration(t.late.Load()),
		Realtime:        t.realtime.Load(),
		Start:           time.Duration(t.start.Load()),
		End:             time.Duration(t.end.Load()),
		Retransmissions: t.retrans,
	}
	if !t.stopped {
		r.Retransmissions = t.retransmissions()
	}
	if e := t.sendErr.Load(); e != 0 {
		r.Err = fmt.Errorf("sending from %s: %w", t.src, unix.Errno(e))
	} else if e := t.receiveErr.Load(); e != 0 {
		r.Err = fmt.Errorf("receiving at %s: %w", t.dst, unix.Errno(e))
	} else if t.eof.Load() && !t.stop.Load() {
		r.Err = fmt.Errorf("receiving at %s: %w", t.dst, io.ErrUnexpectedEOF)
	}
	r.Survived = r.Err == nil && t.eof.Load() && r.Corrupted == 0 && r.Received == r.Sent
	return r
}

func (t *TCP) span() (start, end time.Duration) {
	start, end = time.Duration(t.start.Load()), time.Duration(t.end.Load())
	if end == 0 {
		end = Now()
	}
	return start, end
}

// Gap returns the largest gap between arrivals of records of which any part lies in [from, to]: the stall a reader sees. It
// may be called while the stream runs.
func (t *TCP) Gap(from, to time.Duration) Gap {
	start, end := t.span()
	return largestGap(t.arrivals.times(), start, end, from, to)
}

// GapAfter returns the largest gap between arrivals of records that begins after from.
func (t *TCP) GapAfter(from time.Duration) Gap {
	start, end := t.span()
	return largestGapAfter(t.arrivals.times(), start, end, from)
}

// Gaps lists the gaps of at least min, in their order.
func (t *TCP) Gaps(min time.Duration) []Gap {
	start, end := t.span()
	return gapsOver(t.arrivals.times(), start, end, min)
}

// SendGap returns the largest time in which no record was given to the kernel of which any part lies in [from, to].
func (t *TCP) SendGap(from, to time.Duration) Gap {
	start, end := t.span()
	return largestGap(t.sent.times(), start, end, from, to)
}

// FirstArrivalAfter returns when the first record after from arrived; ok is false if none has.
func (t *TCP) FirstArrivalAfter(from time.Duration) (at time.Duration, ok bool) {
	for _, a := range t.arrivals.times() {
		if time.Duration(a) >= from {
			return time.Duration(a), true
		}
	}
	return 0, false
}
