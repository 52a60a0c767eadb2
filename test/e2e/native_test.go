// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/traffic"
)

// TestNative has programs talk between locators while plait runs: plait must neither change nor count
// any of it, and neighbours must be found again after they were forgotten.
func TestNative(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, f.options, f.change)
			server := startSSH(t, p.b)
			before := make(map[*node]*status.Status)
			for _, n := range p.nodes() {
				before[n] = n.status(t)
			}
			hops := 64
			if !f.options.Flat {
				hops--
			}
			for _, family := range families {
				for i, fabric := range []string{"f1", "f2"} {
					to := p.b.locator(fabric, family)
					testNativePing(t, p, to, hops)
					testHopLimits(t, p, fabric, family, f.options.Flat)
					if family == 4+2*i { // once a fabric, once a family
						iperf(t, p, p.a.locator(fabric, family), to)
					}
					testNativeStreams(t, p, fabric, family)
					if out := output(t, server.command(t, p.a, to, "echo $SSH_CONNECTION")); !strings.HasPrefix(out, p.a.locator(fabric, family).String()+" ") {
						t.Errorf("ssh to %s came from %s", to, out)
					}
				}
			}
			testNeighbours(t, p)
			for _, n := range p.nodes() {
				after := n.status(t)
				for _, family := range families {
					if tx, rx := sent(after, family)-sent(before[n], family), received(after, family)-received(before[n], family); tx+rx != 0 {
						t.Errorf("host %s translated %d packets of IPv%d out and %d in", n.Name, tx, family, rx)
					}
				}
				if d := counts(before[n], after); d != "" {
					t.Errorf("host %s counted: %s", n.Name, d)
				}
			}
		})
	}
}

func testNativePing(t *testing.T, p *pair, to netip.Addr, hops int) {
	t.Helper()
	out := p.a.output(t, "ping", "-n", "-c3", "-i0.02", "-w30", to.String())
	from, ttl := fmt.Sprintf("64 bytes from %s: icmp_seq=", to), fmt.Sprintf(" ttl=%d ", hops)
	if strings.Count(out, from) != 3 || strings.Count(out, ttl) != 3 || !strings.Contains(out, "3 packets transmitted, 3 received, 0% packet loss") {
		t.Errorf("want 3 lines with %q and %q:\n%s", from, ttl, out)
	}
}

// testHopLimits sends datagrams between locators and reads with which hop limit they arrive: the
// default, a low one, and, on a native port, the highest.
func testHopLimits(t *testing.T, p *pair, fabric string, family int, flat bool) {
	t.Helper()
	const singleHopBFD = 3784
	src, dst := p.a.locator(fabric, family), p.b.locator(fabric, family)
	level, set, recv := unix.SOL_IP, unix.IP_TTL, unix.IP_RECVTTL
	if family == 6 {
		level, set, recv = unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVHOPLIMIT
	}
	for _, c := range []struct{ port, limit int }{{0, 64}, {0, 5}, {0, 127}, {singleHopBFD, 255}} {
		in := bindUDP(t, p.b, netip.AddrPortFrom(dst, uint16(c.port)))
		out := bindUDP(t, p.a, netip.AddrPortFrom(src, 0))
		for conn, option := range map[*net.UDPConn][2]int{in: {recv, 1}, out: {set, c.limit}} {
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := control(raw, func(fd int) error { return unix.SetsockoptInt(fd, level, option[0], option[1]) }); err != nil {
				t.Fatal(err)
			}
		}
		want := pattern(c.limit, 100)
		if _, err := out.WriteToUDPAddrPort(want, in.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		buf, oob := make([]byte, 200), make([]byte, 200)
		n, oobn, _, from, err := in.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			t.Fatalf("hop limit %d: %v", c.limit, err)
		}
		if !bytes.Equal(buf[:n], want) || from.Addr() != src {
			t.Errorf("hop limit %d: %d bytes from %s, want the %d sent from %s", c.limit, n, from, len(want), src)
		}
		arrives := c.limit
		if !flat {
			arrives--
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 || len(messages[0].Data) < 4 || int(messages[0].Data[0]) != arrives {
			t.Errorf("sent with hop limit %d: arrived with %v (%v), want %d", c.limit, messages, err, arrives)
		}
		in.Close()
		out.Close()
	}
}

// bindUDP opens an unconnected UDP socket in a host.
func bindUDP(t *testing.T, on *node, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := on.Do(func() (err error) {
		network := "udp4" // a socket of both families has the options of one only
		if at.Addr().Is6() {
			network = "udp6"
		}
		conn, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// testNativeStreams sends checked streams between locators.
func testNativeStreams(t *testing.T, p *pair, fabric string, family int) {
	t.Helper()
	src, dst := netip.AddrPortFrom(p.a.locator(fabric, family), 0), netip.AddrPortFrom(p.b.locator(fabric, family), 0)
	u := udpStream(t, p.a, p.b, family, traffic.UDPConfig{Src: src, Dst: dst, Rate: 2000, Answer: true})
	// Not at full speed: a veth's ring would overflow and lose datagrams, with plait or without.
	s := tcpStream(t, p.a, p.b, family, traffic.TCPConfig{Src: src, Dst: dst, Size: 6000, Every: time.Millisecond, For: time.Minute})
	stop := startUDP(t, u)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n, m := u.Result().Received, s.Result().Bytes; n < 200 || m < 5<<20 {
			return fmt.Errorf("%d packets and %d bytes arrived", n, m)
		}
		return nil
	})
	stop()
	r := u.Result()
	if err := whole(r); err != nil || r.Answers != r.Received {
		t.Errorf("stream between locators: %v, %d answers", err, r.Answers)
	}
	finishTCP(t, s)
}

// neighbour is what is read of `ip -json neighbour`.
type neighbour struct {
	Dst      string   `json:"dst"`
	Dev      string   `json:"dev"`
	MAC      string   `json:"lladdr"`
	State    []string `json:"state"`
	Protocol string   `json:"protocol"`
}

func neighbours(t *testing.T, n *node) (all []neighbour) {
	t.Helper()
	out := n.output(t, "ip", "-json", "neighbour", "show")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return all
}

// testNeighbours empties the neighbour tables; programs find their neighbours again, and so does plait.
func testNeighbours(t *testing.T, p *pair) {
	t.Helper()
	nextHops := func(n, other *node) (all []netip.Addr) {
		for _, u := range n.Uplinks {
			if u.Gateway4.IsValid() {
				all = append(all, u.Gateway4, u.Gateway6)
			} else {
				all = append(all, other.locator(u.Fabric, 4), other.locator(u.Fabric, 6))
			}
		}
		return all
	}
	for i, n := range p.nodes() {
		n.output(t, "ip", "neighbour", "flush", "all")
		other := p.nodes()[1-i]
		for _, family := range families {
			for _, u := range n.Uplinks {
				n.output(t, "ping", "-n", "-q", "-c1", "-w30", other.locator(u.Fabric, family).String())
			}
		}
		eventually(t, func() error {
			known := map[string]neighbour{}
			for _, e := range neighbours(t, n) {
				known[e.Dst] = e
			}
			for _, hop := range nextHops(n, other) {
				e := known[hop.String()]
				if e.MAC == "" || strings.Contains(strings.Join(e.State, " "), "FAILED") {
					return fmt.Errorf("host %s does not know its neighbour %s: %+v", n.Name, hop, e)
				}
			}
			return managed(t, n, nextHops(n, other))
		})
	}
}

// managed returns an error unless plait keeps all these neighbours resolved.
func managed(t *testing.T, n *node, hops []netip.Addr) error {
	t.Helper()
	out := n.output(t, "ip", "neighbour", "show")
	var missing []error
	for _, hop := range hops {
		found := false
		_ = lines(strings.NewReader(out), func(l string) error {
			found = found || strings.HasPrefix(l, hop.String()+" ") && strings.Contains(l, " managed ")
			return nil
		})
		if !found {
			missing = append(missing, fmt.Errorf("host %s does not keep %s:\n%s", n.Name, hop, out))
		}
	}
	return errors.Join(missing...)
}
