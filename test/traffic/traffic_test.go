// SPDX-License-Identifier: Apache-2.0

package traffic_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/traffic"
)

var (
	loop4 = netip.MustParseAddrPort("127.0.0.1:0")
	loop6 = netip.MustParseAddrPort("[::1]:0")
)

// until waits for a state.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after 30 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// relay passes packets on as change says: each call gets a packet and returns what to send in its stead.
func relay(t *testing.T, change func(b []byte) [][]byte) (via netip.AddrPort, to func(netip.AddrPort)) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(loop4))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	// The relay must not lose a packet of its own accord.
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	})
	if err := errors.Join(err, optErr); err != nil {
		t.Fatal(err)
	}
	var dst atomic.Pointer[netip.AddrPort]
	go func() {
		b := make([]byte, 65536)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			for _, p := range change(append([]byte(nil), b[:n]...)) {
				_, _ = conn.WriteToUDPAddrPort(p, *dst.Load())
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), func(a netip.AddrPort) { dst.Store(&a) }
}

// run sends at least n packets through the stream and stops it.
func run(t *testing.T, cfg traffic.UDPConfig, n int64, to func(netip.AddrPort)) (*traffic.UDP, traffic.UDPResult) {
	t.Helper()
	u, err := traffic.NewUDP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	if to != nil {
		_, dst := u.Addrs()
		to(dst)
	}
	g, err := traffic.StartUDP(u)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "packets are sent", func() bool { return u.Result().Sent >= n })
	g.Stop()
	return u, u.Result()
}

func TestUDPCountsExactly(t *testing.T) {
	for _, addr := range []netip.AddrPort{loop4, loop6} {
		t.Run(addr.Addr().String(), func(t *testing.T) {
			u, r := run(t, traffic.UDPConfig{Src: addr, Dst: addr, Rate: 5000, Size: 333, For: time.Minute, Answer: true}, 500, nil)
			if r.Sent < 500 || r.Received != r.Sent || r.Lost != 0 || r.Duplicates != 0 || r.Corrupted != 0 ||
				r.Reordered != 0 || r.Foreign != 0 || r.SendErrors != 0 {
				t.Errorf("over loopback: %+v", r)
			}
			if want := r.Sent * 333; r.Bytes != want {
				t.Errorf("verified %d bytes, sent %d", r.Bytes, want)
			}
			if r.Answers != r.Received {
				t.Errorf("%d answers to %d packets", r.Answers, r.Received)
			}
			if at, ok := u.FirstAnswer(); !ok || at < r.Start {
				t.Errorf("first answer %v, %v; the stream started at %v", at, ok, r.Start)
			}
			if lost := u.LostBetween(0, r.End); lost != 0 {
				t.Errorf("%d packets lost between start and end, %d in all", lost, r.Lost)
			}
		})
	}
}

func TestUDPEndsByItself(t *testing.T) {
	u, err := traffic.NewUDP(traffic.UDPConfig{Src: loop4, Dst: loop4, Rate: 1000, For: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := u.Burst(10, 1200); err != nil {
		t.Fatal(err)
	}
	g, err := traffic.StartUDP(u)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the stream ends", func() bool { return u.Result().End != 0 })
	g.Stop()
	if r := u.Result(); r.Sent != 101 || r.Received != 101 || r.Corrupted+r.Foreign+r.Duplicates != 0 {
		t.Errorf("stream of 100 ms at 1000 packets/s, after a burst: %+v", r)
	}
	if _, err := traffic.StartUDP(u); err == nil {
		t.Error("a stream could be started twice")
	}
}

func TestUDPSeesEveryFault(t *testing.T) {
	// Every hundredth packet suffers a fault, so that a count can be told from another by its number.
	tests := []struct {
		name   string
		change func(n int64, b []byte, held *[]byte) [][]byte
		check  func(faults int64, r traffic.UDPResult) bool
	}{
		{"lost", func(n int64, b []byte, _ *[]byte) [][]byte {
			if n%100 == 50 {
				return nil
			}
			return [][]byte{b}
		}, func(f int64, r traffic.UDPResult) bool {
			return r.Lost == f && r.Duplicates+r.Corrupted+r.Reordered+r.Foreign == 0
		}},
		{"duplicated", func(n int64, b []byte, _ *[]byte) [][]byte {
			if n%100 == 50 {
				return [][]byte{b, b}
			}
			return [][]byte{b}
		}, func(f int64, r traffic.UDPResult) bool {
			return r.Duplicates == f && r.Lost+r.Corrupted+r.Reordered+r.Foreign == 0
		}},
		{"wrong byte in the pattern", func(n int64, b []byte, _ *[]byte) [][]byte {
			if n%100 == 50 {
				b[len(b)-1-int(n/100)%100] ^= 1 << (n / 100 % 8)
			}
			return [][]byte{b}
		}, func(f int64, r traffic.UDPResult) bool {
			return r.Corrupted == f && r.Lost == f && r.Duplicates+r.Reordered+r.Foreign == 0
		}},
		{"wrong byte in the header", func(n int64, b []byte, _ *[]byte) [][]byte {
			if n%100 == 50 {
				b[int(n/100)%24] ^= 0x80
			}
			return [][]byte{b}
		}, func(f int64, r traffic.UDPResult) bool {
			return r.Corrupted == f && r.Lost == f && r.Duplicates+r.Reordered+r.Foreign == 0
		}},
		{"truncated", func(n int64, b []byte, _ *[]byte) [][]byte {
			if n%100 == 50 {
				return [][]byte{b[:int(n/100)*7%len(b)]}
			}
			return [][]byte{b}
		}, func(f int64, r traffic.UDPResult) bool {
			return r.Corrupted == f && r.Lost == f && r.Duplicates+r.Reordered+r.Foreign == 0
		}},
		{"reordered", func(n int64, b []byte, held *[]byte) [][]byte {
			switch n % 100 {
			case 50:
				*held = b
				return nil
			case 53:
				return [][]byte{b, *held}
			}
			return [][]byte{b}
		}, func(f int64, r traffic.UDPResult) bool {
			return r.Reordered == f && r.Lost+r.Duplicates+r.Corrupted+r.Foreign == 0
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var n int64
			var faults atomic.Int64
			var held []byte
			via, to := relay(t, func(b []byte) [][]byte {
				if n%100 == 50 {
					faults.Add(1)
				}
				out := tt.change(n, b, &held)
				n++
				return out
			})
			// Exactly 880 packets: the last hundred has its fault and, where held, its release.
			cfg := traffic.UDPConfig{Src: loop4, Dst: loop4, Via: via, Rate: 10000, For: 88*time.Millisecond - 100*time.Microsecond}
			u, err := traffic.NewUDP(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			_, dst := u.Addrs()
			to(dst)
			g, err := traffic.StartUDP(u)
			if err != nil {
				t.Fatal(err)
			}
			until(t, "the stream ends", func() bool { return u.Result().End != 0 })
			g.Stop()
			r := u.Result()
			if r.Sent != 880 || faults.Load() != 9 || !tt.check(9, r) {
				t.Errorf("%d faults put in, seen: %+v", faults.Load(), r)
			}
		})
	}
}

func TestUDPForeignPacketsAreNotCounted(t *testing.T) {
	a, err := traffic.NewUDP(traffic.UDPConfig{Src: loop4, Dst: loop4, For: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, dst := a.Addrs()
	b, err := traffic.NewUDP(traffic.UDPConfig{Src: loop4, Dst: loop4, Via: dst, For: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	g, err := traffic.StartUDP(a, b)
	if err != nil {
		t.Fatal(err)
	}
	g.Stop()
	ra, rb := a.Result(), b.Result()
	if ra.Received != ra.Sent || ra.Foreign != rb.Sent || ra.Corrupted != 0 {
		t.Errorf("stream with another one's packets: %+v", ra)
	}
	if rb.Received != 0 || rb.Lost != rb.Sent {
		t.Errorf("stream whose packets go elsewhere: %+v", rb)
	}
}

func TestUDPGapIsWhereNothingArrived(t *testing.T) {
	var drop atomic.Bool
	via, to := relay(t, func(b []byte) [][]byte {
		if drop.Load() {
			return nil
		}
		return [][]byte{b}
	})
	u, err := traffic.NewUDP(traffic.UDPConfig{Src: loop4, Dst: loop4, Via: via, Rate: 2000, For: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_, dst := u.Addrs()
	to(dst)
	g, err := traffic.StartUDP(u)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "packets arrive", func() bool { return u.Result().Received > 100 })
	drop.Store(true)
	from := traffic.Now()
	traffic.SleepUntil(from + 200*time.Millisecond)
	drop.Store(false)
	end := traffic.Now()
	now := u.Result().Received
	until(t, "packets arrive again", func() bool { return u.Result().Received > now+100 })
	g.Stop()

	// The gap that overlaps a window within it is the whole gap. What the machine adds only makes it longer.
	gap := u.Gap(from+50*time.Millisecond, from+60*time.Millisecond)
	if gap.Open || gap.From > from+50*time.Millisecond || gap.To < end || gap.Length() < 140*time.Millisecond {
		t.Errorf("nothing passed in [%v, %v], seen as gap %+v", from, end, gap)
	}
	if all := u.Gaps(gap.Length()); len(all) < 1 {
		t.Error("the gap is not in the list of gaps of its length")
	}
	if later := u.GapAfter(gap.To - 1); later.From < gap.To {
		t.Errorf("gap after %v begins at %v", gap.To, later.From)
	}
	r := u.Result()
	if lost := int64(u.LostBetween(0, r.End)); lost != r.Lost || lost == 0 {
		t.Errorf("lost %d in all, %d by time of sending", r.Lost, lost)
	}
}

func TestTCPEveryByteIsVerified(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  traffic.TCPConfig
	}{
		{"paced", traffic.TCPConfig{Src: loop4, Dst: loop4, Every: time.Millisecond, For: time.Minute}},
		{"paced, IPv6, odd size", traffic.TCPConfig{Src: loop6, Dst: loop6, Size: 777, Every: time.Millisecond, For: time.Minute}},
		{"bulk", traffic.TCPConfig{Src: loop4, Dst: loop4, Size: 65536, Background: true, For: time.Minute}},
		{"mptcp", traffic.TCPConfig{Src: loop4, Dst: loop4, Every: time.Millisecond, MPTCP: true, For: time.Minute}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := traffic.NewTCP(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.Burst(20); err != nil {
				t.Fatal(err)
			}
			if tt.cfg.MPTCP {
				if n, err := s.Subflows(); n != 1 || err != nil {
					t.Errorf("%d subflows, %v", n, err)
				}
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "records arrive", func() bool { return s.Result().Received >= 120 })
			s.Stop(30 * time.Second)
			r := s.Result()
			size := int64(tt.cfg.Size)
			if size == 0 {
				size = 1000
			}
			if !r.Survived || r.Err != nil || r.Corrupted != 0 || r.Received != r.Sent || r.Bytes != r.Sent*size {
				t.Errorf("%+v", r)
			}
			if at, ok := s.FirstArrivalAfter(r.Start); !ok || at < r.Start {
				t.Errorf("first arrival %v, %v; started at %v", at, ok, r.Start)
			}
		})
	}
}

// tcpRelay passes one connection on, through change.
func tcpRelay(t *testing.T, dst func() netip.AddrPort, change func(off int64, b []byte) (pass bool)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", loop4.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		in, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = in.Close() }()
		out, err := net.Dial("tcp", dst().String())
		if err != nil {
			return
		}
		defer func() { _ = out.Close() }()
		b := make([]byte, 4096)
		var off int64
		for {
			n, err := in.Read(b)
			if n > 0 {
				if !change(off, b[:n]) {
					_ = out.(*net.TCPConn).SetLinger(0)
					return
				}
				_, _ = out.Write(b[:n])
				off += int64(n)
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				_ = out.(*net.TCPConn).SetLinger(0)
				return
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// freePort is a loopback address that nobody listens on.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", loop4.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestTCPSeesAWrongByte(t *testing.T) {
	dst := freePort(t)
	via := tcpRelay(t, func() netip.AddrPort { return dst }, func(off int64, b []byte) bool {
		for i := range b {
			if at := off + int64(i); at == 12345 || at == 45678 {
				b[i] ^= 4
			}
		}
		return true
	})
	s, err := traffic.NewTCP(traffic.TCPConfig{Src: loop4, Dst: dst, Via: via, Every: time.Millisecond, For: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "records arrive", func() bool { return s.Result().Received >= 60 })
	s.Stop(30 * time.Second)
	if r := s.Result(); r.Survived || r.Corrupted != 2 || r.Received != r.Sent-2 {
		t.Errorf("two bytes were wrong: %+v", r)
	}
}

func TestTCPSeesALostConnection(t *testing.T) {
	dst := freePort(t)
	via := tcpRelay(t, func() netip.AddrPort { return dst }, func(off int64, _ []byte) bool { return off < 20000 })
	s, err := traffic.NewTCP(traffic.TCPConfig{Src: loop4, Dst: dst, Via: via, Every: time.Millisecond, For: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the connection breaks", func() bool { return s.Result().Err != nil })
	s.Stop(time.Second)
	if r := s.Result(); r.Survived || r.Err == nil {
		t.Errorf("the connection was reset: %+v", r)
	}
}

func TestLoopsDoNotAllocate(t *testing.T) {
	u, err := traffic.NewUDP(traffic.UDPConfig{Src: loop4, Dst: loop4, Rate: 5000, For: time.Minute, Answer: true})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	s, err := traffic.NewTCP(traffic.TCPConfig{Src: loop4, Dst: loop4, Every: time.Millisecond, For: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	g, err := traffic.StartUDP(u)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	// All goroutines' allocations count, so the body only sleeps; it does not call Result, which may.
	until(t, "packets arrive", func() bool { return u.Result().Received > 500 })
	allocs := testing.AllocsPerRun(5, func() { traffic.SleepUntil(traffic.Now() + 50*time.Millisecond) })
	g.Stop()
	s.Stop(30 * time.Second)
	if allocs > 10 {
		t.Errorf("%v allocations in 50 ms of streams", allocs)
	}
	if r := u.Result(); r.Lost != 0 || r.Corrupted != 0 {
		t.Errorf("%+v", r)
	}
}

func TestTakenNamesTheInterface(t *testing.T) {
	u, err := traffic.NewUDP(traffic.UDPConfig{Src: loop4, Dst: loop4})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	const n, size = 200, 8000
	got, err := traffic.Taken(nil, []string{"lo"}, n*size, func() error { return u.Burst(n, size) })
	if err != nil || got != "lo" {
		t.Errorf("burst over loopback left through %q, %v", got, err)
	}
	if _, err := traffic.TxBytes(nil, []string{"nonexistent"}); err == nil {
		t.Error("no error about an interface that does not exist")
	}
}
