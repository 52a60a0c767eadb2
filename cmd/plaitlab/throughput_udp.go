// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	udpFrame     = 64 // bytes of an Ethernet frame with its checksum, in IPv4; those of IPv6 carry as much
	udpBatch     = 64 // packets of one call
	udpBatchTick = time.Millisecond
	udpSlice     = 40 // batches in a row of one kind
	udpRounds    = 100
	udpMark      = 192 // hop limit of 64, marked (docs/wire.md)
	// udpDiscards is the share of batches that may not have arrived at once, because the kernel put its work off to a
	// thread of its own.
	udpDiscards = 0.2
)

// udpCost is what a packet costs, in ns of CPU time.
type udpCost struct {
	Form      string `json:"form"`
	Rate      int    `json:"packets_per_s"` // while it is measured
	Batches   int    `json:"batches"`
	Discarded int    `json:"batches_discarded"`

	Plain    interval `json:"plain_ns"` // from one program through both hosts to the other
	PlaitOut interval `json:"plait_out_ns"`
	PlaitIn  interval `json:"plait_in_ns"`
	NATOut   interval `json:"nat_out_ns"`
	NATIn    interval `json:"nat_in_ns"`
}

// Kinds of packets.
const (
	udpPlain  = iota // between locators of hosts that know no plait
	udpMarked        // from a locator with a marked hop limit: translated on its way in only
	udpBoth          // between identities: translated on its way out and in
	udpNATOut
	udpNATIn
	udpKinds
)

// udp measures what a small packet costs.
func (b *throughputBench) udp(ctx context.Context, w *throughputWorld, report *throughputReport) (err error) {
	var streams [udpKinds]*udpStream
	defer func() {
		for _, s := range streams {
			if s != nil {
				s.close()
			}
		}
	}()
	f1 := w.lab.Fabrics[0].Name
	if w.lab.Form == lab.Wire {
		for _, h := range []*lab.Host{w.c, w.d, w.e} {
			l, err := attachEmptyXDP(h, h.Uplink(f1).Name)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, l.Close()) }()
		}
	}
	if streams[udpPlain], err = newUDPStream(w.c, w.d, b.locator(w.c, f1), b.locator(w.d, f1), b.locator(w.d, f1)); err != nil {
		return err
	}
	if streams[udpMarked], err = newUDPStream(w.a, w.b, b.locator(w.a, f1), b.locator(w.b, f1), b.identity(w.b)); err != nil {
		return err
	}
	if err := streams[udpMarked].setHopLimit(b.o.family, udpMark); err != nil {
		return err
	}
	if streams[udpBoth], err = newUDPStream(w.a, w.b, b.identity(w.a), b.identity(w.b), b.identity(w.b)); err != nil {
		return err
	}
	if streams[udpNATOut], streams[udpNATIn], err = b.natStreams(ctx, w.e, w.d, f1); err != nil {
		return err
	}

	cost := &udpCost{Form: w.lab.Form.String(), Rate: int(udpBatch * time.Second / udpBatchTick)}
	var plain, plaitOut, plaitIn, natOut, natIn []float64
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			if err := pin(b.cpus[0]); err != nil {
				return err
			}
			for n := range udpRounds {
				if err := ctx.Err(); err != nil {
					return err
				}
				// There and back again, so that a drift of the machine meets all alike.
				var ns [udpKinds]float64
				order := append(sequence(udpKinds), reversed(udpKinds)...)
				for _, kind := range order {
					v, err := streams[kind].measure(cost)
					if err != nil {
						return err
					}
					ns[kind] += v / 2
				}
				plain = append(plain, ns[udpPlain])
				plaitIn = append(plaitIn, ns[udpMarked]-ns[udpPlain])
				plaitOut = append(plaitOut, ns[udpBoth]-ns[udpMarked])
				natOut = append(natOut, ns[udpNATOut]-ns[udpPlain])
				natIn = append(natIn, ns[udpNATIn]-ns[udpPlain])
				if (n+1)%25 == 0 {
					_, _ = fmt.Fprintf(b.diag, "UDP, round %d: plain %.0f ns, plait adds %.0f out, %.0f in, NAT adds %.0f out, %.0f in\n", n+1,
						medianInterval(plain).Median, medianInterval(plaitOut).Median, medianInterval(plaitIn).Median,
						medianInterval(natOut).Median, medianInterval(natIn).Median)
				}
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		return err
	}
	cost.Plain = medianInterval(plain)
	cost.PlaitOut, cost.PlaitIn = medianInterval(plaitOut), medianInterval(plaitIn)
	cost.NATOut, cost.NATIn = medianInterval(natOut), medianInterval(natIn)
	report.UDP = append(report.UDP, cost)
	report.Bars = append(report.Bars,
		atMost("UDP, "+cost.Form+": plait's CPU time against NAT's, out", mostOfNAT, cost.PlaitOut.Median/cost.NATOut.Median),
		atMost("UDP, "+cost.Form+": plait's CPU time against NAT's, in", mostOfNAT, cost.PlaitIn.Median/cost.NATIn.Median))
	return nil
}

// attachEmptyXDP attaches a program that passes everything, until the link is closed.
func attachEmptyXDP(h *lab.Host, uplink string) (l link.Link, err error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "pass", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("loading an empty XDP program: %w", err)
	}
	defer func() { _ = prog.Close() }()
	err = h.Do(func() error {
		ln, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: ln.Attrs().Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attaching an empty XDP program to %s of host %s: %w", uplink, h.Name, err)
	}
	return l, nil
}

func sequence(n int) (s []int) {
	for i := range n {
		s = append(s, i)
	}
	return s
}

func reversed(n int) []int {
	s := sequence(n)
	slices.Reverse(s)
	return s
}

// natStreams makes host e translate, by source NAT with connection tracking, an inner address of its own (its identity,
// which plait does not use there) to its locator, and returns a stream from there to host d and one back.
func (b *throughputBench) natStreams(ctx context.Context, e, d *lab.Host, fabric string) (out, in *udpStream, err error) {
	inner, outer := b.identity(e), b.locator(e, fabric)
	bits, table := 32, "ip"
	if inner.Is6() {
		bits, table = 128, "ip6"
	}
	err = e.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: inner.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Flags: unix.IFA_F_NODAD})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("adding the inner address to host %s: %w", e.Name, err)
	}
	nft := e.Command(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(`table %s plaitlab {
	chain out {
		type nat hook postrouting priority srcnat
		%s saddr %s snat to %s
	}
}
`, table, table, inner, outer))
	if _, err := exec.LookPath("nft"); err != nil {
		return nil, nil, fmt.Errorf("%w: the comparison with source NAT needs it (package nftables); without it: --part tcp,shaped", err)
	}
	if text, err := nft.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("nft on host %s: %s: %s", e.Name, outcome(err), strings.TrimSpace(string(text)))
	}
	if out, err = newUDPStream(e, d, inner, b.locator(d, fabric), b.locator(d, fabric)); err != nil {
		return nil, nil, err
	}
	// The first packet makes the connection that answers belong to, and shows its outer end.
	if err := out.sendBatch(1); err != nil {
		return nil, nil, errors.Join(err, out.closeError())
	}
	from, err := out.receiveFrom()
	if err != nil {
		return nil, nil, errors.Join(err, out.closeError())
	}
	if from.Addr() != outer {
		return nil, nil, errors.Join(fmt.Errorf("a packet from %s arrived from %s, want %s: no source NAT", inner, from, outer), out.closeError())
	}
	// Back between the same sockets.
	in = &udpStream{tx: out.rx, rx: out.tx, shared: true}
	if err := unix.Connect(in.tx, socketAddress(from.Addr(), int(from.Port()))); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("connect", err), out.closeError())
	}
	in.prepare()
	return out, in, nil
}

// udpStream sends batches of packets that are to have arrived when the call returns.
type udpStream struct {
	tx, rx  int
	shared  bool // the sockets are another stream's
	payload []byte
	iov     []unix.Iovec
	out     []mmsghdr
	buffer  []byte
	inIov   []unix.Iovec
	in      []mmsghdr
}

// mmsghdr is the kernel's struct mmsghdr (include/linux/socket.h).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// newUDPStream makes one from src to dst, which arrives at the address at.
func newUDPStream(from, to *lab.Host, src, dst, at netip.Addr) (*udpStream, error) {
	s := &udpStream{tx: -1, rx: -1}
	err := to.Do(func() (err error) {
		s.rx, err = boundSocket(at, unix.SOCK_DGRAM)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("receiver on host %s: %w", to.Name, err)
	}
	port, err := localPort(s.rx)
	if err != nil {
		return nil, errors.Join(err, s.closeError())
	}
	err = from.Do(func() (err error) {
		if s.tx, err = boundSocket(src, unix.SOCK_DGRAM); err != nil {
			return err
		}
		return os.NewSyscallError("connect", unix.Connect(s.tx, socketAddress(dst, port)))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sender on host %s: %w", from.Name, err), s.closeError())
	}
	s.prepare()
	return s, nil
}

// prepare makes what the calls need.
func (s *udpStream) prepare() {
	header := 14 + 20 + 8 + 4 // Ethernet, IPv4, UDP, frame check sequence
	s.payload = make([]byte, udpFrame-header)
	s.iov, s.out = make([]unix.Iovec, udpBatch), make([]mmsghdr, udpBatch)
	s.buffer = make([]byte, 2*udpBatch*udpFrame)
	s.inIov, s.in = make([]unix.Iovec, 2*udpBatch), make([]mmsghdr, 2*udpBatch)
	for i := range s.out {
		s.iov[i].Base = &s.payload[0]
		s.iov[i].SetLen(len(s.payload))
		s.out[i].hdr.Iov = &s.iov[i]
		s.out[i].hdr.SetIovlen(1)
	}
	for i := range s.in {
		s.inIov[i].Base = &s.buffer[i*udpFrame]
		s.inIov[i].SetLen(udpFrame)
		s.in[i].hdr.Iov = &s.inIov[i]
		s.in[i].hdr.SetIovlen(1)
	}
}

func (s *udpStream) close() {
	if s.shared {
		return
	}
	for _, fd := range []int{s.tx, s.rx} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// closeError closes the stream on the way out of a function that failed.
func (s *udpStream) closeError() error {
	s.close()
	return nil
}

func localPort(fd int) (int, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return int(addrPortOf(sa).Port()), nil
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (s *udpStream) setHopLimit(family, limit int) error {
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if family == 6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.tx, level, option, limit))
}

// receiveFrom waits for a packet and returns where it came from.
func (s *udpStream) receiveFrom() (netip.AddrPort, error) {
	limit := unix.NsecToTimeval(bulkConnect.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.rx, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("setsockopt", err)
	}
	_, from, err := unix.Recvfrom(s.rx, make([]byte, udpFrame), 0)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("recvfrom", err)
	}
	return addrPortOf(from), nil
}

// sendBatch sends n packets in one call.
func (s *udpStream) sendBatch(n int) error {
	sent, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.tx), uintptr(unsafe.Pointer(&s.out[0])), uintptr(n), 0, 0, 0)
	if e != 0 {
		return os.NewSyscallError("sendmmsg", e)
	}
	if int(sent) != n {
		return fmt.Errorf("sendmmsg sent %d packets of %d", sent, n)
	}
	return nil
}

// drain takes what has arrived and returns how many packets that are.
func (s *udpStream) drain() int {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.rx), uintptr(unsafe.Pointer(&s.in[0])), uintptr(len(s.in)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

// measure sends a slice of batches and returns the lower quartile of their times, in ns a packet: whatever else the machine
// does only ever adds to some of them.
func (s *udpStream) measure(cost *udpCost) (float64, error) {
	var times []float64
	due := traffic.Now()
	for try := 0; len(times) < udpSlice; try++ {
		if try > udpSlice && float64(try-len(times)) > udpDiscards*float64(try)+udpSlice {
			return 0, fmt.Errorf("of %d batches %d had arrived when they were sent: this machine puts the work off", try, len(times))
		}
		due += udpBatchTick
		traffic.SleepUntil(due)
		from := traffic.Now()
		err := s.sendBatch(udpBatch)
		took := traffic.Now() - from
		if err != nil {
			return 0, err
		}
		if s.drain() != udpBatch {
			// Its time is not all of it. What comes later must not count for the next.
			cost.Discarded++
			traffic.SleepUntil(traffic.Now() + udpBatchTick)
			s.drain()
			continue
		}
		cost.Batches++
		times = append(times, float64(took.Nanoseconds())/udpBatch)
	}
	slices.Sort(times)
	return times[len(times)/4], nil
}
