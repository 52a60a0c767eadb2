// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// restart ends the agent and starts another with a changed configuration.
func (n *node) restart(t *testing.T, change ...func(*lab.Config)) {
	t.Helper()
	n.kill(t)
	n.configure(t, change...)
	n.run(t)
	pid := n.agent.cmd.Process.Pid
	n.waitFor(t, func(s *status.Status) error {
		if s.Agent.PID != pid {
			return fmt.Errorf("agent %+v, want process %d", s.Agent, pid)
		}
		return nil
	})
}

// TestChangedConfiguration restarts an agent with another configuration, under load: what stays loses
// nothing, what is new comes up, what is gone leaves nothing.
func TestChangedConfiguration(t *testing.T) {
	t.Parallel()
	p := upPair(t, lab.Options{Form: lab.Wire, FreeUplinks: true})
	n := p.a
	l := startLoad(t, p)
	before := pins(t, n)
	hooks := func(want string) {
		t.Helper()
		s := n.waitFor(t, func(s *status.Status) error { return allUp(s, len(s.Uplinks)) })
		for _, u := range s.Uplinks {
			if u.Hook != want {
				t.Errorf("uplink %s has hook %s, want %s", u.Name, u.Hook, want)
			}
		}
		if losses(s) != 0 {
			t.Errorf("paths were given up: %+v", s.Peers)
		}
		l.goesOn(t)
	}
	// Where the program is attached changes, and changes back.
	n.restart(t, func(c *lab.Config) { c.SetIngress("xdp") })
	hooks("xdp")
	n.restart(t, func(c *lab.Config) { c.SetIngress("tc") })
	hooks("tc")
	// Timing, weights, native ports and metrics are taken over by paths in use.
	n.restart(t, func(c *lab.Config) {
		c.Liveness = &lab.ConfigLiveness{Interval: 2 * time.Millisecond, Multiplier: 7}
		c.Uplinks[0].Weight = 3
		c.NativePorts = &lab.ConfigNativePorts{TCP: []uint16{179}, UDP: []uint16{9, 3784}}
		c.Metrics.Listen = "127.0.0.1:9556"
	})
	hooks("tc")
	s := n.status(t)
	for _, family := range families {
		if q := path(t, s, family, "up1"); q.Share != 0.75 || q.Multiplier < 7 {
			t.Errorf("path %s has share %v and multiplier %d, want 0.75 and at least 7", q, q.Share, q.Multiplier)
		}
	}
	if out := n.output(t, "curl", "--silent", "--show-error", "--fail", "http://127.0.0.1:9556/metrics"); !strings.Contains(out, "\nplait_probe_interval_seconds 0.002\n") {
		t.Error("the interval between rounds is not 2 ms")
	}
	after := pins(t, n)
	for name, id := range before {
		if strings.HasPrefix(id, "map ") && after[name] != id {
			t.Errorf("%s was %s and is %s", name, id, after[name])
		}
	}
	l.finish(t, false)

	// One uplink less: its paths and its program go.
	n.restart(t, func(c *lab.Config) { c.Uplinks = c.Uplinks[:1] })
	n.waitFor(t, func(s *status.Status) error {
		if len(s.Uplinks) != 1 {
			return fmt.Errorf("uplinks %+v", s.Uplinks)
		}
		return allUp(s, 1)
	})
	if out := programs(t, n); strings.Contains(out, "up2") || !strings.Contains(out, "up1: 1 at "+ebpf.AttachTCXIngress.String()+"\n") {
		t.Errorf("programs are attached to: %s", out)
	}
	for _, family := range families {
		testPing(t, p, family, 63)
		testNativePing(t, p, p.b.locator("f2", family), 63)
	}
	// And back again.
	n.restart(t)
	p.waitUp(t)
	for _, family := range families {
		testUDP(t, p, family)
	}
	// Without the peer: its routes, neighbours and entries go.
	n.restart(t, func(c *lab.Config) { c.Peers = []lab.ConfigPeer{} })
	s = n.waitFor(t, func(s *status.Status) error {
		if len(s.Peers) != 0 || s.Headline.Text != "ok: no peers" {
			return fmt.Errorf("%s: %+v", s.Headline.Text, s.Peers)
		}
		return nil
	})
	for name, f := range s.Maps {
		if f.Used != 0 {
			t.Errorf("map %s holds %d entries", name, f.Used)
		}
	}
	if out := n.output(t, "ip", "route", "show", "table", "all", "proto", "112"); out != "" {
		t.Errorf("routes: %s", out)
	}
	if out := n.output(t, "ip", "neighbour", "show", "nud", "all"); strings.Contains(out, "managed") {
		t.Errorf("neighbours: %s", out)
	}
	n.restart(t)
	p.waitUp(t)
	for _, family := range families {
		testUDP(t, p, family)
	}
}

// TestKeys: hosts with different keys do not hear each other, and say why; a new key is taken into use
// without losing a packet as the documentation describes.
func TestKeys(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.Options{})
	key := func(file string) func(*lab.Config) { return func(c *lab.Config) { c.Key = file } }
	const first, second = "plait-key-1:1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n", "plait-key-1:2:ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=\n"
	files := map[*node]string{p.a: keyFile(t, first, 0o600), p.b: keyFile(t, second, 0o600)}
	write := func(n *node, text string) {
		t.Helper()
		if err := os.WriteFile(files[n], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range p.nodes() {
		n.configure(t, key(files[n]))
		n.run(t)
	}
	for _, n := range p.nodes() {
		n.waitFor(t, func(s *status.Status) error {
			if s.Drops["probe_key"] == 0 || s.Headline.State != status.Broken || !strings.Contains(s.Headline.Text, "is the key the same on both sides?") {
				return fmt.Errorf("headline %+v, counted %v; want a hint at the keys", s.Headline, s.Drops)
			}
			return nil
		})
	}
	write(p.b, first)
	p.b.restart(t, key(files[p.b]))
	p.waitUp(t)
	l := startLoad(t, p)
	// The new key is appended everywhere, then put first everywhere, then the old one goes.
	for _, text := range []string{first + second, second + first, second} {
		for _, n := range p.nodes() {
			write(n, text)
			n.restart(t, key(files[n]))
			p.waitUp(t)
			l.goesOn(t)
		}
	}
	for _, n := range p.nodes() {
		s := n.status(t)
		if losses(s) != 0 {
			t.Errorf("host %s gave paths up: %+v", n.Name, s.Peers)
		}
	}
	l.finish(t, false)
}

// TestUnlabelled: without labels every pair of locators is a path; those that no route leads along are
// listed, and are no alarm.
func TestUnlabelled(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.Options{}, (*lab.Config).Unlabel)
	p.a.run(t)
	p.b.run(t)
	for _, n := range p.nodes() {
		n.waitFor(t, func(s *status.Status) error {
			if s.Headline.State != status.OK {
				return fmt.Errorf("headline %+v", s.Headline)
			}
			for _, peer := range s.Peers {
				states := map[status.PathState]int{}
				for _, path := range peer.Paths {
					states[path.State]++
				}
				if peer.State != status.PeerUp || states[status.PathUp] != 2 || states[status.PathUnreached] != 2 {
					return fmt.Errorf("peer %s is %s with paths %v, want two that are up and two that were never reached", peer.Name, peer.State, states)
				}
			}
			return nil
		})
	}
	for _, family := range families {
		testUDP(t, p, family)
		testTCP(t, p, family)
	}
	if _, err := p.Cut("f2", lab.Silent, "", ""); err != nil {
		t.Fatal(err)
	}
	p.a.waitFor(t, func(s *status.Status) error {
		for _, family := range families {
			for _, peer := range s.Peers {
				for _, path := range peer.Paths {
					if peer.Family == family && path.Uplink == "up2" && path.State == status.PathUp {
						return fmt.Errorf("path %s is up", path.String())
					}
				}
			}
		}
		return nil
	})
	for _, family := range families {
		testTCP(t, p, family)
	}
}

// TestThreeHosts: each pair of hosts has its own paths, and what cuts one host off a fabric leaves the
// paths between the others alone.
func TestThreeHosts(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.Options{Hosts: []string{"a", "b", "c"}})
	c := &node{Host: p.Host("c")}
	c.configure(t)
	all := append(p.nodes(), c)
	for _, n := range all {
		n.run(t)
	}
	for _, n := range all {
		n.waitFor(t, func(s *status.Status) error { return allUp(s, 2) })
	}
	l := startLoad(t, p)
	var tcp []*traffic.TCP
	for _, family := range families {
		for _, n := range p.nodes() {
			s := tcpStream(t, c, n, family, traffic.TCPConfig{Every: 2 * time.Millisecond, For: 2 * time.Minute, Background: true})
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			tcp = append(tcp, s)
		}
	}
	if _, err := p.Cut("f1", lab.Carrier, "c", ""); err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		n.waitFor(t, func(s *status.Status) error {
			for _, peer := range s.Peers {
				for _, path := range peer.Paths {
					want := status.PathUp
					if path.Uplink == "up1" && (n == c || peer.Name == "c") {
						want = status.PathDown
					}
					if path.State != want {
						return fmt.Errorf("path %s to %s is %s, want %s", path.String(), peer.Name, path.State, want)
					}
				}
			}
			return nil
		})
	}
	l.goesOn(t)
	if err := p.Heal("f1"); err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		n.waitFor(t, func(s *status.Status) error { return allUp(s, 2) })
	}
	// Nothing ever happened to the paths between a and b.
	for _, n := range p.nodes() {
		for _, peer := range n.status(t).Peers {
			for _, path := range peer.Paths {
				if peer.Name != "c" && path.Transitions != 0 {
					t.Errorf("host %s gave path %s up %d times", n.Name, path.String(), path.Transitions)
				}
			}
		}
	}
	l.finish(t, false)
	for _, s := range tcp {
		finishTCP(t, s)
	}
}

// TestGatewayChangesMAC: a router that is replaced by one of another hardware address, which announces
// itself as routers do, is found again.
func TestGatewayChangesMAC(t *testing.T) {
	t.Parallel()
	p := upPair(t, lab.Options{})
	l := startLoad(t, p)
	const mac = "02:00:00:00:00:77"
	if err := p.Fabric("f1").Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/a/ndisc_notify", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	output(t, p.Fabric("f1").Command(t.Context(), "ip", "link", "set", "dev", "a", "address", mac))
	u := p.a.Uplink("f1")
	eventually(t, func() error {
		found := 0
		for _, e := range neighbours(t, p.a) {
			if (e.Dst == u.Gateway4.String() || e.Dst == u.Gateway6.String()) && e.MAC == mac {
				found++
			}
		}
		if found != len(families) {
			return fmt.Errorf("%d neighbours have the new address: %+v", found, neighbours(t, p.a))
		}
		return nil
	})
	l.goesOn(t)
	p.waitUp(t)
	from := over(t, p.a, "up1") + over(t, p.b, "up1")
	l.goesOn(t)
	if over(t, p.a, "up1")+over(t, p.b, "up1") == from {
		t.Error("nothing is sent by way of the new router")
	}
	l.finish(t, true)
}

// TestFragmentsAcrossACut sends datagrams in fragments while fabrics are cut and healed: each arrives
// whole or not at all.
func TestFragmentsAcrossACut(t *testing.T) {
	for _, family := range families {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			t.Parallel()
			p := upPair(t, lab.Options{Form: lab.Wire, TxChecksum: true})
			const size = 20000
			u := udpStream(t, p.a, p.b, family, traffic.UDPConfig{Rate: 500, Size: size, For: 2 * time.Minute})
			stop := startUDP(t, u)
			arrives := func(more int64) {
				t.Helper()
				from := u.Result().Received
				eventually(t, func() error {
					if n := u.Result().Received - from; n < more {
						return fmt.Errorf("%d datagrams arrived", n)
					}
					return nil
				})
			}
			arrives(100)
			for i := range 2 {
				fabric := fmt.Sprintf("f%d", i+1)
				if _, err := p.Cut(fabric, lab.Silent, "", ""); err != nil {
					t.Fatal(err)
				}
				for _, n := range p.nodes() {
					n.waitFor(t, func(s *status.Status) error { return down(s, fmt.Sprintf("up%d", i+1)) })
				}
				arrives(100)
				if err := p.Heal(fabric); err != nil {
					t.Fatal(err)
				}
				p.waitUp(t)
				arrives(100)
			}
			stop()
			r := u.Result()
			if err := intact(r); err != nil {
				t.Error(err)
			}
			if r.Bytes != r.Received*size {
				t.Errorf("%d bytes in %d datagrams", r.Bytes, r.Received)
			}
		})
	}
}
