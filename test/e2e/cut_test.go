// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// over is the translated packets that a host sent over an uplink, in both families.
func over(t *testing.T, n *node, uplink string) (packets uint64) {
	t.Helper()
	s := n.status(t)
	for _, family := range families {
		packets += path(t, s, family, uplink).TxPackets
	}
	return packets
}

// TestCuts cuts one of two fabrics in every way and heals it: flows move to the other one, and back
// once the path has been up for long enough.
func TestCuts(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat && f.options.Form == lab.Virtual || f.options.TxChecksum && !f.options.FreeUplinks && !f.options.Flat {
			continue // virtual routed, wire flat, wire routed with XDP
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, f.options, f.change)
			l := startLoad(t, p)
			cuts := []struct {
				name     string
				mode     lab.CutMode
				from, to string
			}{
				{"silent", lab.Silent, "", ""},
				{"carrier", lab.Carrier, "", ""},
				{"one way, a to b", lab.OneWay, "a", "b"},
				{"one way, b to a", lab.OneWay, "b", "a"},
			}
			for i, c := range cuts {
				ok := t.Run(c.name, func(t *testing.T) {
					before := []*status.Status{p.a.status(t), p.b.status(t)}
					if _, err := p.Cut("f1", c.mode, c.from, c.to); err != nil {
						t.Fatal(err)
					}
					for _, n := range p.nodes() {
						n.waitFor(t, func(s *status.Status) error {
							if err := down(s, "up1"); err != nil {
								return err
							}
							return cutStatus(s, n.Name, c.mode, c.from)
						})
					}
					// All that is sent from now on takes the other way.
					from := map[*node]uint64{p.a: over(t, p.a, "up1"), p.b: over(t, p.b, "up1")}
					l.goesOn(t)
					for _, n := range p.nodes() {
						if sent := over(t, n, "up1") - from[n]; sent != 0 {
							t.Errorf("host %s sent %d packets over the uplink that is down", n.Name, sent)
						}
					}
					if err := p.Heal("f1"); err != nil {
						t.Fatal(err)
					}
					p.waitUp(t)
					used := over(t, p.a, "up1") + over(t, p.b, "up1")
					l.goesOn(t)
					if over(t, p.a, "up1")+over(t, p.b, "up1") == used {
						t.Error("nothing is sent over the uplink that is up again")
					}
					for j, n := range p.nodes() {
						s := n.status(t)
						moved := uint64(0)
						for _, family := range families {
							is, was := path(t, s, family, "up1"), path(t, before[j], family, "up1")
							if c.mode != lab.Carrier && is.Transitions == was.Transitions {
								t.Errorf("host %s counts no transition of IPv%d over up1", n.Name, family)
							}
							moved += path(t, s, family, "up2").TxMoved - path(t, before[j], family, "up2").TxMoved
						}
						if i == 0 && moved == 0 {
							t.Logf("host %s moved nothing: all its flows were on up2", n.Name)
						}
						ignore := []string{"probe_replayed", "probe_rate"}
						if c.mode == lab.Carrier {
							// Probes that were on their way out when the uplink went; data takes the other.
							ignore = append(ignore, "egress_no_path")
						}
						if d := counts(before[j], s, ignore...); d != "" {
							t.Errorf("host %s counted: %s", n.Name, d)
						}
					}
				})
				if !ok {
					break // whatever follows would fail too
				}
			}
			l.finish(t, true)
		})
	}
}

// cutStatus returns what status does not say of a cut beside the states of paths. What the agent writes
// down may come some milliseconds after what the kernel does.
func cutStatus(s *status.Status, host string, mode lab.CutMode, from string) error {
	if s.Headline.State != status.Degraded || !strings.Contains(s.Headline.Text, "up1") {
		return fmt.Errorf("headline %+v, want one that is degraded and names up1", s.Headline)
	}
	for _, u := range s.Uplinks {
		want := status.UplinkUp
		if mode == lab.Carrier && u.Name == "up1" {
			want = status.UplinkDown
			if u.Problem != "no carrier" || u.Carrier {
				return fmt.Errorf("uplink %+v, want one without carrier", u)
			}
		}
		if u.State != want {
			return fmt.Errorf("uplink %s is %s, want %s", u.Name, u.State, want)
		}
	}
	for i := range s.Peers {
		for j := range s.Peers[i].Paths {
			p := &s.Peers[i].Paths[j]
			if p.Uplink == "up1" && p.Problem == "" {
				return fmt.Errorf("path %s has no problem", p)
			}
			if p.Uplink == "up1" && mode == lab.OneWay && host == from && !strings.Contains(p.Problem, "lost on the way there") {
				return fmt.Errorf("path %s: %q, want that it says which way packets are lost", p, p.Problem)
			}
		}
	}
	return nil
}

// TestAllCut cuts both fabrics: the last good path is kept in use, status says that the peer is
// unreachable, and whichever fabric heals first carries everything again.
func TestAllCut(t *testing.T) {
	for _, c := range []struct {
		name        string
		cut, heal   [2]string // in this order
		atOnce      bool
		kept, other string // uplinks
	}{
		{"the first one heals first", [2]string{"f1", "f2"}, [2]string{"f1", "f2"}, false, "up2", "up1"},
		{"the last one heals first", [2]string{"f1", "f2"}, [2]string{"f2", "f1"}, false, "up2", "up1"},
		{"both at once", [2]string{"f1", "f2"}, [2]string{"f1", "f2"}, true, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, forms[0].options)
			l := startLoad(t, p)
			for i, fabric := range c.cut {
				if _, err := p.Cut(fabric, lab.Silent, "", ""); err != nil {
					t.Fatal(err)
				}
				if i == 0 && !c.atOnce {
					for _, n := range p.nodes() {
						n.waitFor(t, func(s *status.Status) error { return down(s, "up1") })
					}
					l.goesOn(t)
				}
			}
			for _, n := range p.nodes() {
				s := n.waitFor(t, func(s *status.Status) error {
					for _, peer := range s.Peers {
						if peer.State != status.PeerUnreachable {
							return fmt.Errorf("peer %s over IPv%d is %s", peer.Name, peer.Family, peer.State)
						}
					}
					return nil
				})
				if s.Headline.State != status.Broken || !strings.Contains(s.Headline.Text, "unreachable") {
					t.Errorf("host %s: headline %+v, want one that is broken and says unreachable", n.Name, s.Headline)
				}
				fresh := 0
				for _, family := range families {
					for _, uplink := range n.uplinks() {
						q := path(t, s, family, uplink)
						if q.Fresh {
							fresh++
						}
						if uplink == c.kept && (!q.Fresh || !q.Up) {
							t.Errorf("host %s: the last good path %s is not kept: %+v", n.Name, q, q)
						}
						if uplink == c.other && (q.Fresh || q.Up) {
							t.Errorf("host %s: path %s is kept, though another fell later: %+v", n.Name, q, q)
						}
					}
				}
				if fresh < len(families) {
					t.Errorf("host %s keeps %d paths: %+v", n.Name, fresh, s.Peers)
				}
			}
			// Egress goes on sending, over what was good last.
			for _, n := range p.nodes() {
				from := n.status(t)
				eventually(t, func() error {
					s := n.status(t)
					for _, family := range families {
						if sent(s, family) < sent(from, family)+100 {
							return fmt.Errorf("host %s does not send over IPv%d any more", n.Name, family)
						}
					}
					if d := counts(from, s); d != "" {
						t.Fatalf("host %s counted: %s", n.Name, d)
					}
					return nil
				})
				if n.agent.ended() {
					t.Fatalf("the agent of host %s ended: %v", n.Name, n.agent.err)
				}
			}
			if err := p.Heal(c.heal[0]); err != nil {
				t.Fatal(err)
			}
			l.goesOn(t)
			for _, n := range p.nodes() {
				n.waitFor(t, func(s *status.Status) error { return down(s, "up"+strings.TrimPrefix(c.heal[1], "f")) })
			}
			if err := p.Heal(c.heal[1]); err != nil {
				t.Fatal(err)
			}
			p.waitUp(t)
			l.goesOn(t)
			l.finish(t, true)
		})
	}
}

// TestGrayFailure: a path that answers probes and loses one flow's packets. After a retransmission
// timeout the kernel gives the flow another hash, and plait with it another path.
func TestGrayFailure(t *testing.T) {
	t.Parallel()
	// With four paths a new hash keeps the bad one in one of four cases.
	p := newPair(t, lab.Options{Fabrics: 4})
	p.a.run(t)
	p.b.run(t)
	p.waitUp(t)
	for _, family := range families {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			s := tcpStream(t, p.a, p.b, family, traffic.TCPConfig{Every: time.Millisecond, For: 3 * time.Minute})
			var uplink string
			eventually(t, func() (err error) {
				if uplink, err = traffic.Taken(p.a.Do, p.a.uplinks(), 200*1000, func() error { return s.Burst(200) }); err == nil && uplink == "" {
					return fmt.Errorf("the flow's path is not seen")
				}
				return err
			})
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			arrived := func(more int64) {
				t.Helper()
				from := s.Result().Received
				eventually(t, func() error {
					if n := s.Result().Received - from; n < more {
						return fmt.Errorf("%d records arrived", n)
					}
					return nil
				})
			}
			arrived(100)
			before := p.a.status(t)
			src, _ := s.Addrs()
			fabric := p.Fabric("f" + strings.TrimPrefix(uplink, "up"))
			nft := func(args ...string) string {
				t.Helper()
				return output(t, fabric.Command(t.Context(), append([]string{"nft"}, args...)...))
			}
			nft("add table inet gray; add chain inet gray forward { type filter hook forward priority 0; }; " +
				fmt.Sprintf("add rule inet gray forward tcp sport %d counter drop", src.Port()))
			// It goes on elsewhere: what was under way before the rule does not count.
			eventually(t, func() error {
				from := p.a.status(t)
				arrived(100)
				to := p.a.status(t)
				if n := path(t, to, family, uplink).TxPackets - path(t, from, family, uplink).TxPackets; n != 0 {
					return fmt.Errorf("%d packets still take %s", n, uplink)
				}
				if n := sent(to, family) - sent(from, family); n < 50 {
					return fmt.Errorf("%d packets were sent", n)
				}
				return nil
			})
			after := p.a.status(t)
			if err := allUp(after, 4); err != nil {
				t.Errorf("the path was not only gray: %v", err)
			}
			if losses(after) != losses(before) {
				t.Errorf("paths were given up: %+v", after.Peers)
			}
			if out := nft("list", "chain", "inet", "gray", "forward"); dropped(out) == 0 {
				t.Errorf("the fabric dropped nothing: %s", out)
			}
			nft("delete", "table", "inet", "gray")
			r := finishTCP(t, s)
			if r.Retransmissions < 1 {
				t.Errorf("%d segments were retransmitted: %+v", r.Retransmissions, r)
			}
		})
	}
}

// dropped reads the packets of a counter that nft prints.
func dropped(chain string) int {
	_, rest, _ := strings.Cut(chain, "counter packets ")
	number, _, _ := strings.Cut(rest, " ")
	n, _ := strconv.Atoi(number)
	return n
}

// TestHoldDown: a path that answers again carries nothing until it has done so for long enough, also
// when an agent is started meanwhile.
func TestHoldDown(t *testing.T) {
	t.Parallel()
	hold := func(d time.Duration) func(*lab.Config) {
		return func(c *lab.Config) { c.Liveness = &lab.ConfigLiveness{HoldDown: &d} }
	}
	p := upPair(t, forms[0].options, hold(10*time.Minute))
	l := startLoad(t, p)
	if _, err := p.Cut("f1", lab.Silent, "", ""); err != nil {
		t.Fatal(err)
	}
	for _, n := range p.nodes() {
		n.waitFor(t, func(s *status.Status) error { return down(s, "up1") })
	}
	for range 3 { // a path that is back within 100 ms was congested, not cut
		l.goesOn(t)
	}
	if err := p.Heal("f1"); err != nil {
		t.Fatal(err)
	}
	held := func(s *status.Status) error {
		for _, family := range families {
			for i := range s.Peers {
				for j := range s.Peers[i].Paths {
					q := &s.Peers[i].Paths[j]
					if s.Peers[i].Family != family || q.Uplink != "up1" {
						continue
					}
					if q.State != status.PathFresh || !q.Fresh || q.Up || s.Peers[i].State != status.PeerDegraded {
						return fmt.Errorf("path %s is %s, the peer %s; want it in hold-down", q, q.State, s.Peers[i].State)
					}
				}
			}
		}
		return nil
	}
	for _, n := range p.nodes() {
		n.waitFor(t, held)
	}
	from := over(t, p.a, "up1") + over(t, p.b, "up1")
	l.goesOn(t)
	p.a.kill(t)
	l.goesOn(t)
	p.a.run(t)
	l.goesOn(t)
	p.a.waitFor(t, held)
	if n := over(t, p.a, "up1") + over(t, p.b, "up1") - from; n != 0 {
		t.Errorf("%d packets took paths in hold-down", n)
	}
	for _, n := range p.nodes() {
		n.kill(t)
		n.configure(t, hold(0))
		n.run(t)
	}
	p.waitUp(t)
	l.goesOn(t)
	if over(t, p.a, "up1")+over(t, p.b, "up1") == from {
		t.Error("nothing is sent over the paths that are up again")
	}
	l.finish(t, true)
}
