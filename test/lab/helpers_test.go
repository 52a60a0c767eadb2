// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab"
)

// deadline is how long a test waits for a state before it gives up.
const deadline = 30 * time.Second

// relayArg makes the test binary the relay of a lab, see TestMain.
const relayArg = "relay"

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == relayArg {
		if err := runRelay(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests of the lab make network namespaces: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runRelay(name, fabric, delay string) error {
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(delay)
	if err != nil {
		return err
	}
	return l.RunRelay(context.Background(), fabric, d)
}

// up builds a lab that goes down with the test.
func up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// forms are all the kinds of labs, to run a test on each.
var forms = []struct {
	name string
	o    lab.Options
}{
	{"virtual", lab.Options{}},
	{"virtual flat", lab.Options{Flat: true}},
	{"wire", lab.Options{Form: lab.Wire}},
	{"wire flat", lab.Options{Form: lab.Wire, Flat: true, TxChecksum: true}},
	{"wire free", lab.Options{Form: lab.Wire, FreeUplinks: true, TxChecksum: true}},
}

func eachForm(t *testing.T, test func(t *testing.T, l *lab.Lab)) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) { test(t, up(t, f.o)) })
	}
}

// eventually waits until state returns nil.
func eventually(t *testing.T, state func() error) {
	t.Helper()
	end := time.Now().Add(deadline)
	for {
		err := state()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %v", deadline, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// output runs a program in a host and returns what it prints; its failure fails the test.
func output(t *testing.T, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Command(t.Context(), argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", h.Name, strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// locators returns the host's addresses on a fabric, of both families.
func locators(h *lab.Host, fabric string) []netip.Addr {
	u := h.Uplink(fabric)
	return []netip.Addr{u.Addr4, u.Addr6}
}

// reach pings every locator of to on the fabric from from, until it answers.
func reach(t *testing.T, from, to *lab.Host, fabric string) {
	t.Helper()
	for _, a := range locators(to, fabric) {
		output(t, from, "ping", "-q", "-c1", "-w30", "-i0.2", a.String())
	}
}

// sink is a UDP socket in a host that counts what it gets.
type sink struct {
	conn *net.UDPConn
	to   netip.AddrPort
}

// listen opens a sink on a locator of a host.
func listen(t *testing.T, h *lab.Host, a netip.Addr) *sink {
	t.Helper()
	s := &sink{}
	err := h.Do(func() (err error) {
		s.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	if err := s.conn.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	s.to = s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return s
}

// drain returns how many datagrams have arrived so far since it was last called.
func (s *sink) drain(t *testing.T) (n int) {
	t.Helper()
	raw, err := s.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			_, _, readErr = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if readErr != nil {
				return true
			}
			n++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(readErr, syscall.EAGAIN) {
		t.Fatal(readErr)
	}
	return n
}

// send sends n datagrams of size bytes from a host to a sink.
func send(t *testing.T, from *lab.Host, to *sink, n, size int) {
	t.Helper()
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to.to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	payload := make([]byte, size)
	for range n {
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
	}
}

func counters(t *testing.T, l *lab.Lab, fabric, host string) lab.Counters {
	t.Helper()
	c, err := l.Counters(fabric, host)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
