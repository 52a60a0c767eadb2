// SPDX-License-Identifier: Apache-2.0

package traffic_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// TestStreamsAcrossACut holds a stream over a fabric that is cut against one over a fabric that is not, on plain routing.
func TestStreamsAcrossACut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and has to run as root")
	}
	for _, tt := range []struct {
		name   string
		form   lab.Form
		family int
	}{
		{"virtual, IPv4", lab.Virtual, 4},
		{"virtual, IPv6", lab.Virtual, 6},
		{"wire, IPv4", lab.Wire, 4},
		{"wire, IPv6", lab.Wire, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := lab.Up(t.Context(), lab.Options{Form: tt.form})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := l.Down(); err != nil {
					t.Error(err)
				}
			})
			a, b := l.Host("a"), l.Host("b")
			locator := func(h *lab.Host, fabric string) netip.AddrPort {
				u := h.Uplink(fabric)
				if tt.family == 6 {
					return netip.AddrPortFrom(u.Addr6, 0)
				}
				return netip.AddrPortFrom(u.Addr4, 0)
			}
			newUDP := func(fabric string) *traffic.UDP {
				u, err := traffic.NewUDP(traffic.UDPConfig{
					From: a.Do, To: b.Do, Src: locator(a, fabric), Dst: locator(b, fabric), For: time.Minute, Answer: true,
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(u.Close)
				return u
			}
			newTCP := func(fabric string) *traffic.TCP {
				s, err := traffic.NewTCP(traffic.TCPConfig{
					From: a.Do, To: b.Do, Src: locator(a, fabric), Dst: locator(b, fabric), Every: time.Millisecond, For: time.Minute,
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(s.Close)
				return s
			}
			cut, control := newUDP("f1"), newUDP("f2")
			tcp, tcpControl := newTCP("f1"), newTCP("f2")

			// Each takes the uplink it was bound to.
			uplinks := []string{"up1", "up2"}
			const n, size = 64, 1200
			for _, p := range []struct {
				name, want string
				size       int
				send       func() error
			}{
				{"UDP over f1", "up1", n * size, func() error { return cut.Burst(n, size) }},
				{"UDP over f2", "up2", n * size, func() error { return control.Burst(n, size) }},
				{"TCP over f1", "up1", n * 1000, func() error { return tcp.Burst(n) }},
				{"TCP over f2", "up2", n * 1000, func() error { return tcpControl.Burst(n) }},
			} {
				if got, err := traffic.Taken(a.Do, uplinks, p.size, p.send); err != nil || got != p.want {
					t.Errorf("%s left through %q (%v), want %s", p.name, got, err, p.want)
				}
			}

			g, err := traffic.StartUDP(cut, control)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []*traffic.TCP{tcp, tcpControl} {
				if err := s.Start(); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "packets arrive on both", func() bool {
				return cut.Result().Received > 200 && control.Result().Received > 200 && tcp.Result().Received > n+50
			})
			at, err := l.Cut("f1", lab.Silent, "", "")
			if err != nil {
				t.Fatal(err)
			}
			after := control.Result().Received
			until(t, "packets are lost", func() bool { return control.Result().Received > after+500 })
			g.Stop()
			tcpControl.Stop(30 * time.Second)

			r, c := cut.Result(), control.Result()
			if c.Lost != 0 || c.Received != c.Sent || c.Duplicates+c.Corrupted+c.Reordered+c.Foreign+c.SendErrors != 0 || c.Answers != c.Received {
				t.Errorf("stream over the fabric that was not cut: %+v", c)
			}
			if r.Duplicates+r.Corrupted+r.Reordered+r.Foreign != 0 {
				t.Errorf("stream over the fabric that was cut: %+v", r)
			}
			// What was sent before the cut may still have been on its way, what was sent after it cannot have arrived.
			lost := cut.LostBetween(at, r.End)
			if _, _, through := cut.FirstThrough(at); through || lost < 500 {
				t.Errorf("cut at %v, %d packets lost after it, first one through: %v; %+v", at, lost, through, r)
			}
			if gap := cut.Gap(at, at+time.Millisecond); !gap.Open || gap.To != r.End {
				t.Errorf("gap at the cut %+v, want an open one until %v", gap, r.End)
			}
			if c := tcpControl.Result(); !c.Survived || c.Bytes != c.Sent*1000 {
				t.Errorf("TCP over the fabric that was not cut: %+v", c)
			}

			// TCP is patient: all that was held up arrives once the fabric is back.
			if err := l.Heal("f1"); err != nil {
				t.Fatal(err)
			}
			tcp.Stop(30 * time.Second)
			s := tcp.Result()
			if !s.Survived || s.Bytes != s.Sent*1000 || s.Retransmissions == 0 {
				t.Errorf("TCP over the fabric that was cut and healed: %+v", s)
			}
			if gap := tcp.Gap(at, at+time.Millisecond); gap.Length() < 90*time.Millisecond {
				t.Errorf("TCP saw a gap of %v in a cut of at least 100 ms", gap.Length())
			}
		})
	}
}
