// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	demoUDPSize     = 256              // bytes of payload
	demoControlSize = 64               // small, so that it hardly shows among what crosses its fabric
	demoLongest     = 80 * time.Second // that a stream may last
	demoTCPSpread   = tcpEvery / 8     // between the starts of two connections, so that they do not all send at one moment
)

// demoStreams is the traffic of the demo.
type demoStreams struct {
	tcp      []*traffic.TCP
	udp      []*traffic.UDP
	controls map[string]*demoControl // by the fabric that they cross
	group    *traffic.Group
	stopped  bool
}

// demoControl is the same traffic from locator to locator of one fabric, from host a to host b, routed by the kernel alone.
type demoControl struct {
	tcp *traffic.TCP
	udp *traffic.UDP
}

// openDemoStreams opens, between the identities: a TCP connection for each family, direction and fabric that its data is to
// cross, and a UDP stream for each fabric and family, of which one goes each way.
func openDemoStreams(ctx context.Context, p *pair) (_ *demoStreams, err error) {
	s := &demoStreams{controls: make(map[string]*demoControl)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for i, family := range []int{4, 6} {
		for j, hosts := range [][2]*lab.Host{{p.a, p.b}, {p.b, p.a}} {
			from, to := hosts[0], hosts[1]
			src, dst := demoIdentity(from, family), demoIdentity(to, family)
			all := make(map[string]int)
			for _, u := range from.Uplinks {
				all[u.Name] = 1
			}
			tcps, err := onUplinks(ctx, from, all, burst*tcpRecord,
				func() (*traffic.TCP, error) { return newDemoTCP(from, to, src, dst) },
				func(t *traffic.TCP) error { return t.Burst(burst) })
			if err != nil {
				return nil, err
			}
			for _, list := range tcps {
				s.tcp = append(s.tcp, list...)
			}
			uplink := from.Uplinks[(i+j)%len(from.Uplinks)].Name
			udps, err := onUplinks(ctx, from, map[string]int{uplink: 1}, burst*burstSize,
				func() (*traffic.UDP, error) { return newDemoUDP(from, to, src, dst, demoUDPSize) },
				func(u *traffic.UDP) error { return u.Burst(burst, burstSize) })
			if err != nil {
				return nil, err
			}
			s.udp = append(s.udp, udps[uplink]...)
		}
	}
	for _, u := range p.a.Uplinks {
		src, dst := netip.AddrPortFrom(u.Addr4, 0), netip.AddrPortFrom(p.b.Uplink(u.Fabric).Addr4, 0)
		c := &demoControl{}
		s.controls[u.Fabric] = c
		if c.udp, err = newDemoUDP(p.a, p.b, src, dst, demoControlSize); err != nil {
			return nil, err
		}
		if c.tcp, err = newDemoTCP(p.a, p.b, src, dst); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newDemoTCP(from, to *lab.Host, src, dst netip.AddrPort) (*traffic.TCP, error) {
	return traffic.NewTCP(traffic.TCPConfig{From: from.Do, To: to.Do, Src: src, Dst: dst, Size: tcpRecord, Every: tcpEvery, For: demoLongest})
}

func newDemoUDP(from, to *lab.Host, src, dst netip.AddrPort, size int) (*traffic.UDP, error) {
	return traffic.NewUDP(traffic.UDPConfig{From: from.Do, To: to.Do, Src: src, Dst: dst, Size: size, Rate: udpRate, For: demoLongest})
}

func demoIdentity(h *lab.Host, family int) netip.AddrPort {
	if family == 6 {
		return netip.AddrPortFrom(h.Identity6, 0)
	}
	return netip.AddrPortFrom(h.Identity4, 0)
}

// start starts all streams. The UDP streams share their threads with the controls: what keeps those from running shows in
// the controls too.
func (s *demoStreams) start() (err error) {
	udp, tcp := slices.Clone(s.udp), slices.Clone(s.tcp)
	for _, c := range s.controls {
		udp, tcp = append(udp, c.udp), append(tcp, c.tcp)
	}
	if s.group, err = traffic.StartUDP(udp...); err != nil {
		return err
	}
	for _, t := range tcp {
		if err := t.Start(); err != nil {
			return err
		}
		time.Sleep(demoTCPSpread)
	}
	return nil
}

// stop ends the streams and waits for what is on its way.
func (s *demoStreams) stop() {
	if s.stopped || s.group == nil {
		return
	}
	s.stopped = true
	deadline := traffic.Now() + drainFor // of all: those that are stuck are given up together
	for _, t := range s.tcp {
		t.Stop(max(0, deadline-traffic.Now()))
	}
	s.group.Stop()
}

// close gives all streams up, also those that run.
func (s *demoStreams) close() {
	if s.group != nil {
		s.group.Stop()
	}
	for _, t := range s.tcp {
		t.Close()
	}
	for _, u := range s.udp {
		u.Close()
	}
	for _, c := range s.controls {
		if c.udp != nil {
			c.udp.Close()
		}
		if c.tcp != nil {
			c.tcp.Close()
		}
	}
}

// tally is what the streams did up to a moment.
type tally struct {
	at        time.Duration
	tcpBytes  int64 // verified
	udpBytes  int64 // verified
	sent      int64 // UDP packets
	received  int64
	corrupted int64 // packets and records, controls included
	broken    int   // TCP connections
}

func (s *demoStreams) tally() tally {
	t := tally{at: traffic.Now()}
	for _, c := range s.tcp {
		r := c.Result()
		t.tcpBytes += r.Bytes
		t.corrupted += r.Corrupted
		// Whether all has arrived is known at the end only.
		if r.Err != nil || r.Corrupted > 0 || s.stopped && !r.Survived {
			t.broken++
		}
	}
	for _, u := range s.udp {
		r := u.Result()
		t.udpBytes += r.Bytes
		t.sent += r.Sent
		t.received += r.Received
		t.corrupted += r.Corrupted
	}
	for _, c := range s.controls {
		t.corrupted += c.udp.Result().Corrupted + c.tcp.Result().Corrupted
	}
	return t
}

// lost counts the UDP packets sent in [from, to] that have not arrived.
func (s *demoStreams) lost(from, to time.Duration) (n int64) {
	for _, u := range s.udp {
		n += int64(u.LostBetween(from, to))
	}
	return n
}

// pauses are the longest pauses between arrivals.
type pauses struct{ udp, udpControl, tcp, tcpControl time.Duration }

// add makes p the longer ones of p and q.
func (p *pauses) add(q pauses) {
	p.udp, p.udpControl = max(p.udp, q.udp), max(p.udpControl, q.udpControl)
	p.tcp, p.tcpControl = max(p.tcp, q.tcp), max(p.tcpControl, q.tcpControl)
}

// longest returns the longest pauses of which any part lies in [from, to]; of the controls, only of those over the fabrics
// named.
func (s *demoStreams) longest(from, to time.Duration, spared []string) (p pauses) {
	for _, u := range s.udp {
		p.udp = max(p.udp, u.Gap(from, to).Length())
	}
	for _, t := range s.tcp {
		p.tcp = max(p.tcp, t.Gap(from, to).Length())
	}
	for _, fabric := range spared {
		p.udpControl = max(p.udpControl, s.controls[fabric].udp.Gap(from, to).Length())
		p.tcpControl = max(p.tcpControl, s.controls[fabric].tcp.Gap(from, to).Length())
	}
	return p
}

// Pauses below these are as they should be: 0.2 ms and 1 ms between packets and between records, and a thread's wake-up.
const (
	udpPause = 500 * time.Microsecond
	tcpPause = 1500 * time.Microsecond
)

// begun returns the longest pauses that begin in [from, to), and those from before that have lasted a tenth of a second
// more: what one column of a timeline shows, so that a pause appears once unless it fills several.
func (s *demoStreams) begun(from, to time.Duration, spared []string) (p pauses) {
	worst := func(gaps []traffic.Gap) (d time.Duration) {
		for _, g := range gaps {
			if g.From >= from && g.From < to || g.From < from && g.To > from+demoCell/2 {
				d = max(d, g.Length())
			}
		}
		return d
	}
	for _, u := range s.udp {
		p.udp = max(p.udp, worst(u.Gaps(udpPause)))
	}
	for _, t := range s.tcp {
		p.tcp = max(p.tcp, worst(t.Gaps(tcpPause)))
	}
	for _, fabric := range spared {
		p.udpControl = max(p.udpControl, worst(s.controls[fabric].udp.Gaps(udpPause)))
		p.tcpControl = max(p.tcpControl, worst(s.controls[fabric].tcp.Gaps(tcpPause)))
	}
	return p
}

// bytes were verified.
func (t tally) bytes() int64 { return t.tcpBytes + t.udpBytes }
