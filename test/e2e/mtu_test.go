// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/traffic"
)

// TestPathMTU narrows the fabrics behind the routers and asserts that senders between identities learn
// of it from the routers' errors, which quote translated packets.
func TestPathMTU(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat {
			continue // no router, no error
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, f.options, f.change)
			before := p.a.status(t)
			for _, family := range families {
				t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
					setMTU(t, p, 1500)
					testUDPPathMTU(t, p, family)
					testTCPPathMTU(t, p, family)
				})
			}
			if d := counts(before, p.a.status(t)); d != "" {
				t.Errorf("host a counted: %s", d)
			}
		})
	}
}

// setMTU sets that of every fabric's port to host b.
func setMTU(t *testing.T, p *pair, mtu int) {
	t.Helper()
	for _, f := range p.Fabrics {
		output(t, f.Command(t.Context(), "ip", "link", "set", "dev", "b", "mtu", fmt.Sprint(mtu)))
	}
}

// testUDPPathMTU: a socket that forbids fragmentation is told the size that would fit.
func testUDPPathMTU(t *testing.T, p *pair, family int) {
	t.Helper()
	const mtu = 1400
	header := 28
	level, discover, do, option, queue := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU, unix.IP_RECVERR
	if family == 6 {
		header = 48
		level, discover, do, option, queue = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU, unix.IPV6_RECVERR
	}
	l, port := listenUDP(t, p.b, family)
	conn := dialUDP(t, p.a, p.b, family, port)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = control(raw, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, level, discover, do), unix.SetsockoptInt(fd, level, queue, 1))
	})
	if err != nil {
		t.Fatal(err)
	}
	arrives := func(size int) {
		t.Helper()
		want, buf := pattern(size, size), make([]byte, 2000)
		if _, err := conn.Write(want); err != nil {
			t.Fatalf("sending %d bytes: %v", size, err)
		}
		if n, err := l.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("of %d bytes %d arrived, or others: %v", size, n, err)
		}
	}
	arrives(1500 - header)
	setMTU(t, p, mtu)
	eventually(t, func() error { // the error comes after the packet that it is about
		if _, err := conn.Write(pattern(0, 1500-header)); !errors.Is(err, syscall.EMSGSIZE) {
			return fmt.Errorf("sending %d bytes: %w, want message too long", 1500-header, err)
		}
		return nil
	})
	var router netip.Addr
	learned := 0
	err = control(raw, func(fd int) (err error) {
		if learned, err = unix.GetsockoptInt(fd, level, option); err != nil {
			return err
		}
		buf, oob := make([]byte, 2000), make([]byte, 2000)
		_, n, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return err
		}
		router, err = offender(oob[:n], syscall.EMSGSIZE)
		return err
	})
	if err != nil || learned != mtu {
		t.Errorf("the socket's path MTU is %d, want %d (%v)", learned, mtu, err)
	}
	isRouter := false
	for _, u := range p.a.Uplinks {
		isRouter = isRouter || router == u.Gateway4 || router == u.Gateway6
	}
	if !isRouter {
		t.Errorf("the error is from %s, want a router of host a", router)
	}
	arrives(mtu - header)
	// Without the prohibition, the same socket sends in fragments that fit.
	if family == 4 {
		err = control(raw, func(fd int) error { return unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_WANT) })
	} else {
		err = control(raw, func(fd int) error { return unix.SetsockoptInt(fd, level, discover, unix.IPV6_PMTUDISC_WANT) })
	}
	if err != nil {
		t.Fatal(err)
	}
	arrives(1500 - header)
}

// testTCPPathMTU: a connection goes on over fabrics that become narrower.
func testTCPPathMTU(t *testing.T, p *pair, family int) {
	t.Helper()
	const mtu = 1350
	s := tcpStream(t, p.a, p.b, family, traffic.TCPConfig{Size: 60000, For: time.Minute, Background: true})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	arrived := func(more int64) {
		t.Helper()
		from := s.Result().Bytes
		eventually(t, func() error {
			if n := s.Result().Bytes - from; n < more {
				return fmt.Errorf("%d bytes arrived, want %d", n, more)
			}
			return nil
		})
	}
	arrived(5 << 20)
	setMTU(t, p, mtu)
	arrived(20 << 20)
	finishTCP(t, s)
	if route := p.a.output(t, "ip", "route", "get", p.b.identity(family).String()); !strings.Contains(route, fmt.Sprintf(" mtu %d ", mtu)) {
		t.Errorf("the route has not learned a path MTU of %d: %s", mtu, route)
	}
	for _, f := range []string{"f1", "f2"} {
		out := output(t, p.Fabric(f).Command(t.Context(), "ip", "-json", "link", "show", "dev", "b"))
		if !strings.Contains(out, fmt.Sprintf(`"mtu":%d,`, mtu)) {
			t.Errorf("fabric %s is not narrow: %s", f, out)
		}
	}
}
