// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// forms are the labs that programs are tried in: super-packets and packets, routed and flat, tcx and
// native XDP. In the wire form all checksums are really computed.
var forms = []struct {
	name    string
	options lab.Options
	change  func(*lab.Config)
}{
	{"virtual routed", lab.Options{}, func(*lab.Config) {}},
	{"virtual flat", lab.Options{Flat: true}, func(*lab.Config) {}},
	{"wire routed", lab.Options{Form: lab.Wire, TxChecksum: true}, func(*lab.Config) {}},
	{"wire flat", lab.Options{Form: lab.Wire, Flat: true, TxChecksum: true}, func(*lab.Config) {}},
	{"wire XDP", lab.Options{Form: lab.Wire, FreeUplinks: true, TxChecksum: true}, func(c *lab.Config) { c.SetIngress("xdp") }},
}

// TestPrograms has programs talk between identities, over every kind of lab and both families.
func TestPrograms(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, f.options, f.change)
			hook := "tc"
			if f.options.FreeUplinks {
				hook = "xdp"
			}
			before := make(map[*node]*status.Status)
			for _, n := range p.nodes() {
				s := n.status(t)
				for _, u := range s.Uplinks {
					if u.Hook != hook || u.State != status.UplinkUp {
						t.Errorf("host %s: uplink %s is %s with hook %s (%s), want %s", n.Name, u.Name, u.State, u.Hook, u.HookWhy, hook)
					}
				}
				before[n] = s
			}
			for _, family := range families {
				t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
					hops := uint8(64) // as they arrive
					if !f.options.Flat {
						hops--
					}
					var wire []*capture
					if f.options.TxChecksum {
						for _, fabric := range p.Fabrics {
							wire = append(wire, startCapture(t, fabric.Namespace, "a", "not udp port 7784", "-c", "2000"))
						}
					}
					testPing(t, p, family, hops)
					testClosedPort(t, p, family)
					testFragments(t, p, family)
					testUDPGSO(t, p, family)
					testRaw(t, p, family)
					testUDP(t, p, family)
					testCurl(t, p, family)
					testTCP(t, p, family)
					testIperf(t, p, family)
					if f.options.TxChecksum {
						checksums(t, family, wire)
					}
				})
			}
			for _, n := range p.nodes() {
				if d := counts(before[n], n.status(t)); d != "" {
					t.Errorf("host %s counted: %s", n.Name, d)
				}
			}
		})
	}
}

// testPing asserts that answers come from the identity, each one, with the hop limit that the program
// at the other end gave them less the routers on the way.
func testPing(t *testing.T, p *pair, family int, hops uint8) {
	t.Helper()
	for _, size := range []int{56, 1400, 5000} { // the last one in fragments
		out := p.a.output(t, "ping", "-n", "-c3", "-i0.02", "-w30", fmt.Sprint("-s", size), p.b.identity(family).String())
		from := fmt.Sprintf("%d bytes from %s: icmp_seq=", size+8, p.b.identity(family))
		ttl := fmt.Sprintf(" ttl=%d ", hops)
		if strings.Count(out, from) != 3 || strings.Count(out, ttl) != 3 || !strings.Contains(out, "3 packets transmitted, 3 received, 0% packet loss") {
			t.Errorf("want 3 lines with %q and %q:\n%s", from, ttl, out)
		}
	}
}

// testUDP sends a checked stream each way and asserts every byte, and every packet in the counters.
func testUDP(t *testing.T, p *pair, family int) {
	t.Helper()
	a, b := p.a.status(t), p.b.status(t)
	forth := udpStream(t, p.a, p.b, family, traffic.UDPConfig{Rate: 2000, Size: 700})
	back := udpStream(t, p.b, p.a, family, traffic.UDPConfig{Rate: 2000, Size: 1200})
	stop := startUDP(t, forth, back)
	eventually(t, func() error {
		if n := back.Result().Received; n < 600 {
			return fmt.Errorf("%d packets arrived", n)
		}
		return nil
	})
	stop()
	var n [2]uint64
	for i, u := range []*traffic.UDP{forth, back} {
		r := u.Result()
		if err := whole(r); err != nil {
			t.Error(err)
		}
		n[i] = uint64(r.Sent)
	}
	a2, b2 := p.a.status(t), p.b.status(t)
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"sent by a", sent(a2, family) - sent(a, family), n[0]},
		{"received by b", received(b2, family) - received(b, family), n[0]},
		{"sent by b", sent(b2, family) - sent(b, family), n[1]},
		{"received by a", received(a2, family) - received(a, family), n[1]},
	} {
		if c.got != c.want {
			t.Errorf("packets %s: %d by the counters, want %d", c.what, c.got, c.want)
		}
	}
}

// testTCP sends checked streams: large writes, which leave as super-packets, and small ones.
func testTCP(t *testing.T, p *pair, family int) {
	t.Helper()
	bulk := tcpStream(t, p.a, p.b, family, traffic.TCPConfig{Size: 60000, For: time.Minute, Background: true})
	small := tcpStream(t, p.b, p.a, family, traffic.TCPConfig{Size: 100, Every: time.Millisecond, For: time.Minute})
	for _, s := range []*traffic.TCP{bulk, small} {
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		if n, m := bulk.Result().Bytes, small.Result().Received; n < 20<<20 || m < 300 {
			return fmt.Errorf("%d bytes and %d records arrived", n, m)
		}
		return nil
	})
	finishTCP(t, bulk)
	finishTCP(t, small)
}

// testIperf runs iperf3 and compares what both ends counted.
func testIperf(t *testing.T, p *pair, family int) {
	t.Helper()
	iperf(t, p, p.a.identity(family), p.b.identity(family))
}

// iperf runs iperf3 from a to b between two addresses, 20 MB in each direction.
func iperf(t *testing.T, p *pair, from, to netip.Addr) {
	t.Helper()
	const size = 20_000_000
	for _, direction := range []string{"", "--reverse"} {
		server := start(t, "iperf3 server", p.b.Command(t.Context(), "iperf3", "--server", "--one-off", "--json", "--bind", to.String()))
		// A client that comes before it is ready can leave it waiting for ever.
		eventually(t, func() error {
			if p.b.output(t, "ss", "-Hltn", "sport = :5201") == "" {
				return errors.New("the server of iperf3 does not listen")
			}
			return nil
		})
		args := []string{"iperf3", "--client", to.String(), "--bind", from.String(), "--bytes", fmt.Sprint(size), "--json"}
		if direction != "" {
			args = append(args, direction)
		}
		out := p.a.output(t, args...)
		if code := server.wait(t); code != 0 {
			t.Errorf("the server of iperf3 ended with %d", code)
		}
		var client, other iperfReport
		for text, r := range map[string]*iperfReport{out: &client, server.out.String(): &other} {
			if err := json.Unmarshal([]byte(text), r); err != nil {
				t.Fatalf("output of iperf3: %v\n%s", err, text)
			}
		}
		sent, received := client.End.Sent.Bytes, other.End.Received.Bytes
		if direction != "" {
			sent, received = other.End.Sent.Bytes, client.End.Received.Bytes
		}
		// The receiver does not count what is on its way when the sender ends.
		if sent < size || received > sent || received < size/2 {
			t.Errorf("iperf3 %s: %d bytes sent, %d received, want about %d", direction, sent, received, size)
		}
		if c := client.Start.Connected; len(c) != 1 || c[0].Remote != to.String() || c[0].Local != from.String() {
			t.Errorf("iperf3 was connected: %+v, want %s to %s", c, from, to)
		}
	}
}

// iperfReport is what is read of iperf3's report.
type iperfReport struct {
	Start struct {
		Connected []struct {
			Local  string `json:"local_host"`
			Remote string `json:"remote_host"`
		} `json:"connected"`
	} `json:"start"`
	End struct {
		Sent     iperfSum `json:"sum_sent"`
		Received iperfSum `json:"sum_received"`
	} `json:"end"`
}

type iperfSum struct {
	Bytes int64 `json:"bytes"`
}

// testCurl fetches random bytes by HTTP and compares them; the server sees the client's identity.
func testCurl(t *testing.T, p *pair, family int) {
	t.Helper()
	content := make([]byte, 3<<20)
	for i := 0; i < len(content); i += 8 {
		binary.NativeEndian.PutUint64(content[i:], rand.Uint64())
	}
	var l net.Listener
	err := p.b.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(p.b.identity(family), 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	clients := make(chan string, 1)
	server := &http.Server{
		ReadHeaderTimeout: deadline,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			clients <- r.RemoteAddr
			_, _ = w.Write(content)
		}),
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	got := p.a.output(t, "curl", "--silent", "--show-error", "--fail", "--globoff", "--max-time", "30", "http://"+l.Addr().String()+"/")
	if !bytes.Equal([]byte(got), content) {
		t.Errorf("curl got %d bytes that are not the %d sent", len(got), len(content))
	}
	if c := netip.MustParseAddrPort(<-clients).Addr(); c != p.a.identity(family) {
		t.Errorf("the server saw %s, want %s", c, p.a.identity(family))
	}
}

// dialUDP opens a connected UDP socket from an identity to a port of the other.
func dialUDP(t *testing.T, from, to *node, family, port int) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.identity(family), uint16(port))))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if local := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); local != from.identity(family) {
		t.Errorf("an unbound socket to %s got source %s, want %s", to.identity(family), local, from.identity(family))
	}
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// listenUDP opens a UDP socket on an identity.
func listenUDP(t *testing.T, on *node, family int) (*net.UDPConn, int) {
	t.Helper()
	var conn *net.UDPConn
	err := on.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(on.identity(family), 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	return conn, conn.LocalAddr().(*net.UDPAddr).Port
}

// testClosedPort asserts that the ICMP error about a datagram to a closed port reaches its sender, and
// who it is from.
func testClosedPort(t *testing.T, p *pair, family int) {
	t.Helper()
	l, port := listenUDP(t, p.b, family)
	l.Close()
	conn := dialUDP(t, p.a, p.b, family, port)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.SOL_IP, unix.IP_RECVERR
	if family == 6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	if err := control(raw, func(fd int) error { return unix.SetsockoptInt(fd, level, option, 1) }); err != nil {
		t.Fatal(err)
	}
	payload := []byte("is anybody there?")
	var quoted []byte
	var from netip.Addr
	eventually(t, func() error { // the kernel limits how many errors it sends
		if _, err := conn.Write(payload); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		return control(raw, func(fd int) error {
			buf, oob := make([]byte, 2000), make([]byte, 2000)
			n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return err
			}
			quoted = buf[:n]
			from, err = offender(oob[:oobn], syscall.ECONNREFUSED)
			return err
		})
	})
	if from != p.b.identity(family) {
		t.Errorf("the error is from %s, want %s", from, p.b.identity(family))
	}
	if !bytes.Equal(quoted, payload) {
		t.Errorf("the error quotes %q, want %q", quoted, payload)
	}
	if _, err := conn.Write(payload); err == nil {
		_, err = conn.Read(make([]byte, 100))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("reading: %v, want connection refused", err)
		}
	}
}

// offender reads who sent the ICMP error in a control message of IP_RECVERR: struct sock_extended_err
// and the address after it.
func offender(oob []byte, want syscall.Errno) (netip.Addr, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, m := range messages {
		if len(m.Data) < 32 || m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR {
			continue
		}
		if errno := syscall.Errno(binary.NativeEndian.Uint32(m.Data)); errno != want {
			return netip.Addr{}, fmt.Errorf("error %w, want %w", errno, want)
		}
		if binary.NativeEndian.Uint16(m.Data[16:]) == unix.AF_INET {
			a, _ := netip.AddrFromSlice(m.Data[20:24])
			return a, nil
		}
		if len(m.Data) >= 40 {
			a, _ := netip.AddrFromSlice(m.Data[24:40])
			return a, nil
		}
	}
	return netip.Addr{}, errors.New("no error in the control messages")
}

// control runs fn on a socket's descriptor and returns its error.
func control(c syscall.RawConn, fn func(fd int) error) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = fn(int(fd)) }); e != nil {
		return e
	}
	return err
}

// pattern is bytes that differ from one number to the next and from one place to the next.
func pattern(number, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(number*31 + i + i>>8*7)
	}
	return b
}

// testFragments sends datagrams that cross the fabrics in pieces, and compares them.
func testFragments(t *testing.T, p *pair, family int) {
	t.Helper()
	l, port := listenUDP(t, p.b, family)
	conn := dialUDP(t, p.a, p.b, family, port)
	for i, size := range []int{6000, 1473, 2953, 30001} {
		want := pattern(i, size)
		if _, err := conn.Write(want); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65536)
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("datagram of %d bytes: %v", size, err)
		}
		if !bytes.Equal(buf[:n], want) {
			t.Errorf("datagram of %d bytes: got %d that differ", size, n)
		}
		if from != conn.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("datagram from %s, want %s", from, conn.LocalAddr())
		}
		// And back, from a socket that is not connected.
		if _, err := l.WriteToUDPAddrPort(want, from); err != nil {
			t.Fatal(err)
		}
		if n, err = conn.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("answer of %d bytes: got %d that differ or an error: %v", size, n, err)
		}
	}
}

// testUDPGSO sends super-packets that the kernel cuts into datagrams, and compares each.
func testUDPGSO(t *testing.T, p *pair, family int) {
	t.Helper()
	const segments, size, last = 40, 1300, 777
	l, port := listenUDP(t, p.b, family)
	conn := dialUDP(t, p.a, p.b, family, port)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, size) }); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		var super []byte
		for i := range segments {
			super = append(super, pattern(round*segments+i, size)...)
		}
		super = super[:len(super)-size+last]
		before := p.a.status(t)
		if _, err := conn.Write(super); err != nil {
			t.Fatal(err)
		}
		for i := range segments {
			want := pattern(round*segments+i, size)
			if i == segments-1 {
				want = want[:last]
			}
			buf := make([]byte, 65536)
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("segment %d: %v", i, err)
			}
			if !bytes.Equal(buf[:n], want) {
				t.Errorf("segment %d: %d bytes that differ from the %d sent", i, n, len(want))
			}
		}
		if n := sent(p.a.status(t), family) - sent(before, family); n != segments {
			t.Errorf("the counters say %d packets, want %d", n, segments)
		}
	}
}

// testRaw sends packets of protocols that plait knows nothing of, or only where their checksum is, and
// compares what arrives.
func testRaw(t *testing.T, p *pair, family int) {
	t.Helper()
	for _, c := range []struct {
		name     string
		protocol int
		checksum int // offset of a checksum that covers the addresses, or -1
	}{
		{"SCTP", 132, -1}, {"GRE", 47, -1}, {"ESP", 50, -1}, {"experimental", 253, -1}, {"DCCP", 33, 6}, {"UDP-Lite", 136, 6},
	} {
		src, dst := p.a.identity(family), p.b.identity(family)
		payload := pattern(c.protocol, 333)
		if c.checksum >= 0 {
			payload[c.checksum], payload[c.checksum+1] = 0, 0
			binary.BigEndian.PutUint16(payload[c.checksum:], ^checksum(src, dst, c.protocol, payload))
		}
		out, in := rawSocket(t, p.a, src, c.protocol), rawSocket(t, p.b, dst, c.protocol)
		if err := unix.Sendto(out, payload, 0, sockaddr(dst)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		packet := make([]byte, 2000)
		n, from, err := unix.Recvfrom(in, packet, 0)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		packet = packet[:n]
		if got := addrOf(from); got != src {
			t.Errorf("%s: from %s, want %s", c.name, got, src)
		}
		if family == 4 {
			if to, _ := netip.AddrFromSlice(packet[16:20]); to != dst || packet[0] != 0x45 || int(packet[9]) != c.protocol ||
				^fold(sum(0, packet[:20])) != 0 {
				t.Errorf("%s: IP header %x, want one to %s", c.name, packet[:20], dst)
			}
			packet = packet[20:]
		}
		if !bytes.Equal(packet, payload) {
			t.Errorf("%s: got %x, want %x", c.name, packet, payload)
		}
		unix.Close(out)
		unix.Close(in)
	}
}

// rawSocket opens a raw socket bound to an address of a host; a receive on it ends at the deadline.
func rawSocket(t *testing.T, on *node, addr netip.Addr, protocol int) (fd int) {
	t.Helper()
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	err := on.Do(func() (err error) {
		if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
			return os.NewSyscallError("socket", err)
		}
		limit := unix.NsecToTimeval(int64(deadline))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr)))
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

func addrOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}

// checksum is the sum (RFC 1071) of a pseudo-header (RFC 768, RFC 8200 section 8.1) and a payload.
func checksum(src, dst netip.Addr, protocol int, payload []byte) uint16 {
	s := uint32(protocol + len(payload))
	s = sum(s, src.AsSlice())
	s = sum(s, dst.AsSlice())
	return fold(sum(s, payload))
}

func sum(s uint32, b []byte) uint32 {
	for i, x := range b {
		if i%2 == 0 {
			s += uint32(x) << 8
		} else {
			s += uint32(x)
		}
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// capture is tcpdump writing to a file.
type capture struct {
	file string
	p    *process
}

// startCapture starts tcpdump in a namespace and waits until it captures.
func startCapture(t *testing.T, ns lab.Namespace, device, filter string, args ...string) *capture {
	t.Helper()
	c := &capture{file: filepath.Join(t.TempDir(), "capture")}
	c.p = start(t, "tcpdump", ns.Command(t.Context(),
		append(append([]string{"tcpdump", "-Z", "root", "-U", "-n", "-i", device, "-w", c.file}, args...), filter)...))
	eventually(t, func() error {
		if !strings.Contains(c.p.out.String(), "listening on") {
			return fmt.Errorf("tcpdump does not listen: %s", c.p.out)
		}
		return nil
	})
	return c
}

// stop ends tcpdump.
func (c *capture) stop(t *testing.T) {
	t.Helper()
	if c.p.ended() {
		return
	}
	c.p.signal(t, syscall.SIGINT)
	c.p.wait(t)
}

// tshark returns the fields of the captured packets that a display filter selects, one packet a line.
func (c *capture) tshark(t *testing.T, args ...string) []string {
	t.Helper()
	c.stop(t)
	out := output(t, exec.CommandContext(t.Context(), "tshark", append([]string{"-n", "-r", c.file}, args...)...))
	var all []string
	_ = lines(strings.NewReader(out), func(l string) error {
		all = append(all, l)
		return nil
	})
	return all
}

// checksums asserts that every captured packet has right checksums, as tshark computes them, and that
// there are translated ones.
func checksums(t *testing.T, family int, captures []*capture) {
	t.Helper()
	const bad, good = "0", "1" // tshark's enum proto_checksum_enum_e; the others were not verified or not there
	translated := 0
	for _, c := range captures {
		for _, line := range c.tshark(t, "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
			"-Y", "ip || ipv6", "-T", "fields", "-E", "separator=;", "-e", "frame.number", "-e", "ip.ttl", "-e", "ipv6.hlim",
			"-e", "ip.checksum.status", "-e", "tcp.checksum.status", "-e", "udp.checksum.status", "-e", "icmp.checksum.status", "-e", "icmpv6.checksum.status") {
			f := strings.Split(line, ";")
			if len(f) != 8 {
				t.Fatalf("tshark printed %q", line)
			}
			// A quoted packet has a second value in each field.
			hops, _, _ := strings.Cut(f[1]+f[2], ",")
			if n, err := strconv.Atoi(hops); err == nil && n >= 128 && strings.Contains(strings.Join(f[4:], ","), good) {
				translated++
			}
			for i, protocol := range []string{"IP", "TCP", "UDP", "ICMP", "ICMPv6"} {
				if slices.Contains(strings.Split(f[3+i], ","), bad) {
					t.Errorf("frame %s of %s: wrong %s checksum", f[0], c.file, protocol)
				}
			}
		}
	}
	if translated < 100 {
		t.Errorf("%d translated packets of IPv%d on the wire, want 100 or more", translated, family)
	}
}
