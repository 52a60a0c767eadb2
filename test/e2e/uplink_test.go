// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
)

// removeUplink deletes a host's veth pair to a routed fabric.
func removeUplink(t *testing.T, n *node, fabric string) {
	t.Helper()
	n.output(t, "ip", "link", "delete", "dev", n.Uplink(fabric).Name)
}

// addUplink makes it anew, with its addresses and routes, but none of the lab's programs.
func addUplink(t *testing.T, p *pair, n *node, fabric string) {
	t.Helper()
	f, u := p.Fabric(fabric), n.Uplink(fabric)
	n.output(t, "ip", "link", "add", u.Name, "type", "veth", "peer", "name", n.Name, "netns", f.Netns)
	inFabric := func(argv ...string) {
		t.Helper()
		output(t, f.Command(t.Context(), argv...))
	}
	inFabric("ip", "address", "add", u.Gateway4.String()+"/24", "dev", n.Name)
	inFabric("ip", "address", "add", u.Gateway6.String()+"/64", "dev", n.Name)
	inFabric("ip", "link", "set", "dev", n.Name, "up")
	if p.Form == lab.Wire {
		// Without a program at the other end XDP_TX goes nowhere.
		program, _ := verdict(t, ebpf.XDP, xdpPass)
		attach(t, f.Namespace, n.Name, func(ifindex int) (link.Link, error) {
			return link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: link.XDPDriverMode})
		})
	}
	n.output(t, "ip", "address", "add", u.Addr4.String()+"/24", "dev", u.Name)
	n.output(t, "ip", "address", "add", u.Addr6.String()+"/64", "dev", u.Name)
	restoreUplink(t, n, fabric)
}

// uplink finds one in a status.
func uplink(s *status.Status, name string) (*status.Uplink, error) {
	for i := range s.Uplinks {
		if s.Uplinks[i].Name == name {
			return &s.Uplinks[i], nil
		}
	}
	return nil, fmt.Errorf("host %s has no uplink %s", s.Host, name)
}

// TestUplinkComesAndGoes: an interface that is missing when the agent starts is a warning and an uplink
// that is down; it is taken up when it appears, and again after it was removed.
func TestUplinkComesAndGoes(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat || f.options.Form == lab.Wire && !f.options.FreeUplinks {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, f.options, f.change)
			hook := "tc"
			if f.options.FreeUplinks {
				hook = "xdp"
			}
			removeUplink(t, p.a, "f2")
			out, diag, code := p.a.plait(t, "check", "--config", p.a.config)
			if code != 0 || !strings.Contains(out, p.a.config+": ok, ") ||
				!strings.Contains(diag, "warning: "+p.a.config+":") || !strings.Contains(diag, "interface up2 does not exist; the uplink is down until it appears") {
				t.Errorf("check ends with %d\n%s%s", code, out, diag)
			}
			p.a.run(t)
			p.b.run(t)
			missing := func(s *status.Status) error {
				u, err := uplink(s, "up2")
				if err != nil {
					return err
				}
				if u.State != status.UplinkDown || u.Ifindex != 0 || u.Hook != "" || u.Problem != "interface is missing" {
					return fmt.Errorf("uplink %+v, want one that is down because the interface is missing", *u)
				}
				if s.Headline.State != status.Degraded || !strings.Contains(s.Headline.Text, "uplink up2 down: interface is missing") {
					return fmt.Errorf("headline %+v", s.Headline)
				}
				for _, peer := range s.Peers {
					for _, path := range peer.Paths {
						if path.Uplink == "up1" && path.State != status.PathUp || path.Uplink == "up2" && path.State != status.PathDown {
							return fmt.Errorf("path %s is %s", path.String(), path.State)
						}
					}
				}
				return nil
			}
			p.a.waitFor(t, missing)
			p.b.waitFor(t, func(s *status.Status) error {
				for _, peer := range s.Peers {
					if !peer.Reachable() {
						return fmt.Errorf("peer %s over IPv%d is %s", peer.Name, peer.Family, peer.State)
					}
				}
				return nil
			})
			for _, family := range families {
				testPing(t, p, family, 63)
			}

			addUplink(t, p, p.a, "f2")
			p.waitUp(t)
			l := startLoad(t, p)
			index := 0
			for range 2 {
				s := p.a.status(t)
				u, err := uplink(s, "up2")
				if err != nil || u.Hook != hook || u.State != status.UplinkUp || u.Ifindex == index || u.Problem != "" {
					t.Errorf("uplink %+v, want one with hook %s and another index than %d (%v)", u, hook, index, err)
				} else {
					index = u.Ifindex
				}
				removeUplink(t, p.a, "f2")
				p.a.waitFor(t, missing)
				l.goesOn(t)
				addUplink(t, p, p.a, "f2")
				p.waitUp(t)
				from := over(t, p.a, "up2") + over(t, p.b, "up2")
				l.goesOn(t)
				if over(t, p.a, "up2")+over(t, p.b, "up2") == from {
					t.Error("nothing is sent over the uplink that is back")
				}
			}
			// The addresses alone may go, too.
			p.a.output(t, "ip", "address", "flush", "dev", "up2")
			p.a.waitFor(t, func(s *status.Status) error {
				u, err := uplink(s, "up2")
				if err == nil && u.Problem != "interface has no global address" {
					err = fmt.Errorf("uplink %+v, want one without an address", *u)
				}
				return err
			})
			l.goesOn(t)
			l.finish(t, true)
		})
	}
}

// Verdicts: enum xdp_action, enum tcx_action_base.
const (
	xdpPass = 2
	tcxPass = 0 // as opposed to TCX_NEXT, no program after it runs
)

// verdict loads a program that does nothing but return a verdict, and counts how often, in a map.
func verdict(t *testing.T, kind ebpf.ProgramType, result int32) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, m.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, result),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, m
}

// seen is how often a program of verdict ran.
func seen(t *testing.T, m *ebpf.Map) (n uint64) {
	t.Helper()
	if err := m.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// attach attaches something to an interface for as long as the test runs.
func attach(t *testing.T, ns lab.Namespace, name string, fn func(ifindex int) (link.Link, error)) {
	t.Helper()
	var l link.Link
	err := ns.Do(func() error {
		i, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		l, err = fn(i.Attrs().Index)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// TestForeignPrograms: another XDP program on an uplink is never replaced, whatever is configured; tcx
// is used and said so. Other tcx programs neither hide packets from plait nor lose any to it.
func TestForeignPrograms(t *testing.T) {
	for _, ingress := range []string{"auto", "xdp"} {
		t.Run(ingress, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, lab.Options{Form: lab.Wire, FreeUplinks: true}, func(c *lab.Config) { c.SetIngress(ingress) })
			// On up1 a foreign XDP program and a foreign tcx program that ends the chain, on up2 nothing.
			xdp, xdpSeen := verdict(t, ebpf.XDP, xdpPass)
			tcx, tcxSeen := verdict(t, ebpf.SchedCLS, tcxPass)
			attach(t, p.a.Namespace, "up1", func(ifindex int) (link.Link, error) {
				return link.AttachXDP(link.XDPOptions{Program: xdp, Interface: ifindex, Flags: link.XDPDriverMode})
			})
			attach(t, p.a.Namespace, "up1", func(ifindex int) (link.Link, error) {
				return link.AttachTCX(link.TCXOptions{Program: tcx, Interface: ifindex, Attach: ebpf.AttachTCXIngress})
			})
			p.a.run(t)
			p.b.run(t)
			p.waitUp(t)
			why, other, otherWhy := "driver veth", "tc", "driver veth"
			if ingress == "xdp" {
				why, other, otherWhy = "another XDP program is attached", "xdp", ""
			}
			s := p.a.status(t)
			for name, want := range map[string][2]string{"up1": {"tc", why}, "up2": {other, otherWhy}} {
				if u, err := uplink(s, name); err != nil || u.Hook != want[0] || u.HookWhy != want[1] {
					t.Errorf("uplink %+v, want hook %s because %q (%v)", u, want[0], want[1], err)
				}
			}
			if text, _, code := p.a.plait(t, "status"); code != 0 || !strings.Contains(text, "\nhook tc, not xdp, on up1") || !strings.Contains(text, ": "+why+"\n") {
				t.Errorf("status ends with %d and does not say why:\n%s", code, text)
			}
			before, beforeTCX := seen(t, xdpSeen), seen(t, tcxSeen)
			for _, family := range families {
				testUDP(t, p, family)
				testNativePing(t, p, p.b.locator("f1", family), 63)
			}
			if seen(t, xdpSeen) == before || seen(t, tcxSeen) == beforeTCX {
				t.Error("the other programs do not run any more")
			}
			p.a.takeDown(t)
			before, beforeTCX = seen(t, xdpSeen), seen(t, tcxSeen)
			testNativePing(t, p, p.b.locator("f1", 4), 63)
			if seen(t, xdpSeen) == before || seen(t, tcxSeen) == beforeTCX {
				t.Error("down took other programs off")
			}
		})
	}
}

// TestForcedXDPRefused: where native XDP is asked for and the driver refuses, run says so and ends, and
// nothing of it is left.
func TestForcedXDPRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.Options{})
	n := p.a
	remove(t, n.RunDir)
	// A bridge has no native XDP.
	n.output(t, "ip", "link", "add", "nonative", "type", "bridge")
	n.output(t, "ip", "address", "add", "10.3.1.2/24", "dev", "nonative")
	n.output(t, "ip", "link", "set", "dev", "nonative", "up")
	before := n.snap(t)
	n.configure(t, func(c *lab.Config) {
		c.Uplinks = append(c.Uplinks, lab.ConfigUplink{Name: "nonative", Ingress: "xdp"})
	})
	_, diag, code := n.plait(t, "run", "--config", n.config)
	if code != 1 || !strings.Contains(diag, "attaching native XDP to nonative: ") {
		t.Errorf("run ends with %d: %s", code, diag)
	}
	if d := n.snap(t).diff(before); d != "" {
		t.Errorf("the host is changed:\n%s", d)
	}
}

// TestDrops: every packet that plait0 is given and cannot carry is counted under its reason.
func TestDrops(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.Options{})
	n := p.a
	n.run(t)
	n.waitFor(t, func(s *status.Status) error {
		if len(s.Peers) == 0 || s.Peers[0].State != status.PeerUnreached || !strings.Contains(n.agent.out.String(), "msg=running") {
			return errors.New("it does not run, or does not say that its peer never answered")
		}
		return nil
	})
	// udp sends datagrams to addresses, one each, from a socket bound to src.
	udp := func(src netip.Addr, dst ...netip.AddrPort) {
		t.Helper()
		conn := bindUDP(t, n, netip.AddrPortFrom(src, 0))
		defer conn.Close()
		for _, d := range dst {
			_, _ = conn.WriteToUDPAddrPort([]byte("to be dropped"), d)
		}
	}
	check := func(name string, want map[string]uint64, do func()) {
		t.Helper()
		before := n.status(t)
		do()
		got := counted(before, n.status(t))
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: counted %v, want %v", name, got, want)
		}
	}
	to := func(family int, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(p.b.identity(family), port)
	}
	check("before the peer has announced itself", map[string]uint64{"egress_not_announced": 3}, func() {
		udp(n.Identity4, to(4, 9), to(4, 9))
		udp(n.Identity6, to(6, 9))
	})
	p.b.run(t)
	p.waitUp(t)
	check("to a native port", map[string]uint64{"egress_native_port": 4}, func() {
		udp(n.Identity4, to(4, 3784), to(4, 3785), to(4, 4784))
		udp(n.Identity6, to(6, 7784))
	})
	check("from a locator", map[string]uint64{"egress_bad_source": 2}, func() {
		udp(n.locator("f1", 4), to(4, 9))
		udp(n.locator("f2", 6), to(6, 9))
	})
	n.output(t, "ip", "route", "add", "10.99.0.0/24", "dev", "plait0")
	n.output(t, "ip", "route", "add", "fd99::/64", "dev", "plait0")
	check("to nobody", map[string]uint64{"egress_unknown_peer": 2}, func() {
		udp(n.Identity4, netip.MustParseAddrPort("10.99.0.1:9"))
		udp(n.Identity6, netip.MustParseAddrPort("[fd99::1]:9"))
	})
	check("of a protocol that cannot be translated", map[string]uint64{"egress_unsupported": 2}, func() {
		for _, family := range families {
			const ah = 51
			fd := rawSocket(t, n, n.identity(family), ah)
			// A program may learn that its packet was dropped.
			_ = unix.Sendto(fd, []byte{59, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, sockaddr(p.b.identity(family)))
			unix.Close(fd)
		}
	})
	s := n.status(t)
	if err := allUp(s, 2); err != nil {
		t.Error(err)
	}
	for _, u := range n.uplinks() {
		n.output(t, "ip", "link", "set", "dev", u, "down")
	}
	n.waitFor(t, func(s *status.Status) error {
		for _, u := range s.Uplinks {
			if u.State != status.UplinkDown || u.Problem != "interface is set down" {
				return fmt.Errorf("uplink %+v, want one that is set down", u)
			}
		}
		if s.Headline.State != status.Broken {
			return fmt.Errorf("headline %+v", s.Headline)
		}
		return nil
	})
	check("with no uplink", map[string]uint64{"egress_no_path": 2}, func() {
		udp(n.Identity4, to(4, 9))
		udp(n.Identity6, to(6, 9))
	})
	text := n.output(t, plait, "status")
	for _, want := range []string{"\n3        egress_not_announced  the peer has not said yet that it restores packets", "egress_native_port", "egress_bad_source", "egress_unknown_peer", "egress_unsupported", "egress_no_path"} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}
}
