// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab"
)

const datagrams = 20

// stream is one direction of a fabric in one family, ready to be sent on: the neighbours are known.
type stream struct {
	l        *lab.Lab
	fabric   string
	from, to *lab.Host
	sink     *sink
}

func newStream(t *testing.T, l *lab.Lab, fabric, from, to string, a netip.Addr) *stream {
	t.Helper()
	s := &stream{l: l, fabric: fabric, from: l.Host(from), to: l.Host(to)}
	s.sink = listen(t, s.to, a)
	reach(t, s.from, s.to, fabric)
	return s
}

func (s *stream) String() string {
	return fmt.Sprintf("%s to %v over %s", s.from.Name, s.sink.to, s.fabric)
}

// passes sends datagrams and waits for all of them.
func (s *stream) passes(t *testing.T) {
	t.Helper()
	send(t, s.from, s.sink, datagrams, 100)
	got := 0
	eventually(t, func() error {
		if got += s.sink.drain(t); got != datagrams {
			return fmt.Errorf("%v: %d of %d datagrams arrived", s, got, datagrams)
		}
		return nil
	})
}

// isCut sends datagrams, waits until the fabric has dropped them all, and finds that none arrived.
func (s *stream) isCut(t *testing.T) {
	t.Helper()
	before := counters(t, s.l, s.fabric, s.from.Name)
	send(t, s.from, s.sink, datagrams, 100)
	eventually(t, func() error {
		after := counters(t, s.l, s.fabric, s.from.Name)
		if n := after.Cut - before.Cut; n < datagrams {
			return fmt.Errorf("%v: %d datagrams of %d dropped", s, n, datagrams)
		}
		return nil
	})
	if n := s.sink.drain(t); n != 0 {
		t.Errorf("%v: %d datagrams arrived", s, n)
	}
}

// both returns streams in both families.
func both(t *testing.T, l *lab.Lab, fabric, from, to string) []*stream {
	t.Helper()
	var all []*stream
	for _, a := range locators(l.Host(to), fabric) {
		all = append(all, newStream(t, l, fabric, from, to, a))
	}
	return all
}

func cut(t *testing.T, l *lab.Lab, fabric string, m lab.CutMode, from, to string) {
	t.Helper()
	before := lab.Monotonic()
	at, err := l.Cut(fabric, m, from, to)
	if err != nil {
		t.Fatal(err)
	}
	if after := lab.Monotonic(); at < before || at > after {
		t.Errorf("cut at %v, asked for at %v, done at %v", at, before, after)
	}
}

func heal(t *testing.T, l *lab.Lab, fabric string) {
	t.Helper()
	if err := l.Heal(fabric); err != nil {
		t.Fatal(err)
	}
}

func TestSilentCut(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		streams := append(both(t, l, "f1", "a", "b"), both(t, l, "f1", "b", "a")...)
		control := append(both(t, l, "f2", "a", "b"), both(t, l, "f2", "b", "a")...)
		for range 2 {
			cut(t, l, "f1", lab.Silent, "", "")
			for _, s := range streams {
				s.isCut(t)
			}
			for _, s := range control {
				s.passes(t)
			}
			for _, h := range l.Hosts {
				if !carrier(t, h.Namespace, "up1") {
					t.Errorf("host %s lost its carrier", h.Name)
				}
			}
			// Another process heals.
			o, err := lab.Open(l.Name)
			if err != nil {
				t.Fatal(err)
			}
			heal(t, o, "f1")
			for _, s := range append(streams, control...) {
				s.passes(t)
			}
		}
	})
}

func TestOneWayCut(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		forth, back := both(t, l, "f2", "a", "b"), both(t, l, "f2", "b", "a")
		for _, to := range []string{"b", ""} {
			cut(t, l, "f2", lab.OneWay, "a", to)
			for i := range forth {
				forth[i].isCut(t)
				back[i].passes(t)
			}
			heal(t, l, "f2")
			for i := range forth {
				forth[i].passes(t)
			}
		}
		cut(t, l, "f2", lab.OneWay, "a", "b")
		cut(t, l, "f2", lab.OneWay, "b", "a")
		for i := range forth {
			forth[i].isCut(t)
			back[i].isCut(t)
		}
	})
}

func TestOneWayCutWithThreeHosts(t *testing.T) {
	for _, o := range []lab.Options{{}, {Flat: true}, {Form: lab.Wire}} {
		o.Hosts = []string{"a", "b", "c"}
		l := up(t, o)
		toB, toC := both(t, l, "f1", "a", "b"), both(t, l, "f1", "a", "c")
		back := both(t, l, "f1", "b", "a")
		cut(t, l, "f1", lab.OneWay, "a", "b")
		for i := range toB {
			toB[i].isCut(t)
			toC[i].passes(t)
			back[i].passes(t)
		}
		cut(t, l, "f1", lab.OneWay, "a", "c")
		for i := range toB {
			toB[i].isCut(t)
			toC[i].isCut(t)
			back[i].passes(t)
		}
		heal(t, l, "f1")
		for i := range toB {
			toB[i].passes(t)
			toC[i].passes(t)
		}
	}
}

func TestCarrierCut(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		streams := append(both(t, l, "f1", "a", "b"), both(t, l, "f1", "b", "a")...)
		control := both(t, l, "f2", "a", "b")
		state := func() string {
			var b strings.Builder
			for _, ns := range []lab.Namespace{l.Fabric("f1").Namespace, l.Host("a").Namespace, l.Host("b").Namespace} {
				b.WriteString(addressesAndRoutes(t, ns))
			}
			return b.String()
		}
		before := state()
		for _, hosts := range [][]string{{"a", "b"}, {"a"}} {
			whose := ""
			if len(hosts) == 1 {
				whose = hosts[0]
			}
			cut(t, l, "f1", lab.Carrier, whose, "")
			for _, h := range l.Hosts {
				want := len(hosts) == 1 && h.Name != hosts[0]
				if got := carrier(t, h.Namespace, "up1"); got != want {
					t.Errorf("cut of %v: carrier of host %s is %t", hosts, h.Name, got)
				}
				if !carrier(t, h.Namespace, "up2") {
					t.Errorf("cut of %v: host %s lost the carrier of up2", hosts, h.Name)
				}
			}
			for _, s := range streams {
				send(t, s.from, s.sink, datagrams, 100)
			}
			for _, s := range control {
				s.passes(t)
			}
			for _, s := range streams {
				if n := s.sink.drain(t); n != 0 {
					t.Errorf("cut of %v: %v: %d datagrams arrived", hosts, s, n)
				}
			}
			heal(t, l, "f1")
			for _, h := range l.Hosts {
				if !carrier(t, h.Namespace, "up1") {
					t.Errorf("host %s has no carrier after heal", h.Name)
				}
			}
			eventually(t, func() error {
				if after := state(); after != before {
					return fmt.Errorf("before the cut:\n%safter heal:\n%s", before, after)
				}
				return nil
			})
			for _, s := range streams {
				reach(t, s.from, s.to, s.fabric) // neighbours have to be found again
				s.sink.drain(t)
				s.passes(t)
			}
		}
	})
}

func TestCutsAddUp(t *testing.T) {
	l := up(t, lab.Options{})
	for _, m := range []lab.CutMode{lab.Silent, lab.Carrier} {
		cut(t, l, "f1", m, "", "")
	}
	cut(t, l, "f1", lab.OneWay, "a", "b")
	for range 2 {
		heal(t, l, "f1")
		reach(t, l.Host("a"), l.Host("b"), "f1")
	}
}

func TestCutRefuses(t *testing.T) {
	l := up(t, lab.Options{})
	for _, c := range []struct {
		fabric   string
		m        lab.CutMode
		from, to string
	}{
		{"f3", lab.Silent, "", ""},
		{"f1", lab.Silent, "a", ""},
		{"f1", lab.Silent, "", "b"},
		{"f1", lab.Carrier, "a", "b"},
		{"f1", lab.Carrier, "x", ""},
		{"f1", lab.OneWay, "", "b"},
		{"f1", lab.OneWay, "a", "a"},
		{"f1", lab.OneWay, "a", "x"},
		{"f1", lab.CutMode(7), "", ""},
	} {
		if _, err := l.Cut(c.fabric, c.m, c.from, c.to); err == nil {
			t.Errorf("%+v is no error", c)
		}
	}
	if err := l.Heal("f3"); err == nil {
		t.Error("healing f3 is no error")
	}
	reach(t, l.Host("a"), l.Host("b"), "f1")
}

func TestParseCutMode(t *testing.T) {
	for _, m := range []lab.CutMode{lab.Silent, lab.Carrier, lab.OneWay} {
		if got, err := lab.ParseCutMode(m.String()); got != m || err != nil {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := lab.ParseCutMode("loud"); err == nil {
		t.Error("loud is no error")
	}
}

// carrier returns whether an interface that is up has a carrier.
func carrier(t *testing.T, ns lab.Namespace, name string) (has bool) {
	t.Helper()
	err := ns.Do(func() error {
		ln, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if ln.Attrs().RawFlags&unix.IFF_UP == 0 {
			return fmt.Errorf("%s is down", name)
		}
		has = ln.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return has
}

// addressesAndRoutes describes the addresses and main routes of a namespace.
func addressesAndRoutes(t *testing.T, ns lab.Namespace) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{
		{"ip", "-brief", "address"}, {"ip", "route"}, {"ip", "-6", "route", "show", "proto", "kernel"}, {"ip", "-6", "route", "show", "proto", "static"}, {"ip", "-6", "route", "show", "proto", "boot"},
	} {
		out, err := ns.Command(t.Context(), argv...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", argv, err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		// The order of routes of equal metric is that in which they were added.
		fmt.Fprintf(&b, "%s %q:\n", ns.Netns, argv)
		for _, line := range sorted(lines) {
			fmt.Fprintln(&b, " ", strings.TrimSpace(line))
		}
	}
	return b.String()
}
