// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestRPFilter(t *testing.T) {
	cases := []struct {
		name     string
		all, own string
		set      string // what we make of it
		meddle   string // what somebody sets meanwhile, if not empty
		after    string
	}{
		{name: "off", all: "0", own: "0", set: "0", after: "0"},
		{name: "strict", all: "0", own: "1", set: "2", after: "1"},
		{name: "strict by all", all: "1", own: "0", set: "2", after: "0"},
		{name: "strict by both", all: "1", own: "1", set: "2", after: "1"},
		{name: "loose", all: "0", own: "2", set: "2", after: "2"},
		{name: "loose by all", all: "2", own: "1", set: "1", after: "1"},
		{name: "changed meanwhile", all: "1", own: "1", set: "2", meddle: "0", after: "0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			th := newTestHost(t)
			th.uplink("up1")
			th.sysctl("net/ipv4/conf/all/rp_filter", c.all)
			const path = "net/ipv4/conf/up1/rp_filter"
			th.sysctl(path, c.own)

			ups, err := th.Uplinks([]string{"up1"})
			must(t, err)
			undo, err := th.PlanSysctls(ups, Undo{})
			must(t, err)
			if got := th.sysctl(path); got != c.own {
				t.Errorf("planning alone made it %s", got)
			}
			must(t, th.ApplySysctls(undo))
			if got := th.sysctl(path); got != c.set {
				t.Errorf("applied: %s, want %s", got, c.set)
			}

			// The next process reads the record and must not take our value for the original.
			stored, err := json.Marshal(undo)
			must(t, err)
			var read Undo
			must(t, json.Unmarshal(stored, &read))
			undo, err = th.PlanSysctls(ups, read)
			must(t, err)
			if fmt.Sprint(undo) != fmt.Sprint(read) {
				t.Errorf("second plan: %v, want %v", undo, read)
			}
			must(t, th.ApplySysctls(undo))

			if c.meddle != "" {
				th.sysctl(path, c.meddle)
			}
			for range 2 {
				must(t, th.Remove(undo))
				if got := th.sysctl(path); got != c.after {
					t.Errorf("put back: %s, want %s", got, c.after)
				}
			}
		})
	}
}

func TestRPFilterSetStrictAgain(t *testing.T) {
	th := newTestHost(t)
	th.uplink("up1")
	const path = "net/ipv4/conf/up1/rp_filter"
	th.sysctl("net/ipv4/conf/all/rp_filter", "1")
	ups, err := th.Uplinks([]string{"up1"})
	must(t, err)
	undo, err := th.PlanSysctls(ups, Undo{})
	must(t, err)
	must(t, th.ApplySysctls(undo))

	// Somebody makes it strict once more: changed again, and that is the original now.
	th.sysctl(path, "1")
	undo, err = th.PlanSysctls(ups, undo)
	must(t, err)
	must(t, th.ApplySysctls(undo))
	equal(t, "record", undo.RPFilter, []RPFilterChange{{Interface: "up1", Index: ups["up1"].Index, Was: 1, Set: 2}})
	if got := th.sysctl(path); got != "2" {
		t.Errorf("got %s", got)
	}

	// Somebody makes it harmless in another way: no business of ours any more.
	th.sysctl("net/ipv4/conf/all/rp_filter", "0")
	th.sysctl(path, "0")
	undo, err = th.PlanSysctls(ups, undo)
	must(t, err)
	must(t, th.ApplySysctls(undo))
	equal(t, "record", undo.RPFilter, nil)
	if got := th.sysctl(path); got != "0" {
		t.Errorf("got %s", got)
	}
}

// An interface that went, or went and came again, has nothing to be put back.
func TestRPFilterOfAnotherInterface(t *testing.T) {
	th := newTestHost(t)
	th.uplink("up1")
	th.sysctl("net/ipv4/conf/all/rp_filter", "1")
	ups, err := th.Uplinks([]string{"up1"})
	must(t, err)
	undo, err := th.PlanSysctls(ups, Undo{})
	must(t, err)
	must(t, th.nl.LinkDel(linkOf(t, th.nl, "up1")))
	must(t, th.ApplySysctls(undo))
	must(t, th.Remove(undo))
	if _, err := th.PlanSysctls(ups, Undo{}); err != nil {
		t.Errorf("planning for a missing interface: %v", err)
	}

	th.uplink("up1")
	th.sysctl("net/ipv4/conf/up1/rp_filter", "2")
	must(t, th.Remove(undo))
	if got := th.sysctl("net/ipv4/conf/up1/rp_filter"); got != "2" {
		t.Errorf("got %s", got)
	}
}

func TestHopLimits(t *testing.T) {
	th := newTestHost(t)
	th.sysctl("net/ipv4/ip_default_ttl", "100")
	th.sysctl("net/ipv6/conf/default/hop_limit", "101")
	th.sysctl("net/ipv6/conf/all/hop_limit", "102")
	th.hopLimits(HopLimits{V4: 100, V6Default: 101, V6All: 102})
	_, err := th.CreatePlait0(1500)
	must(t, err)
	th.hopLimits(HopLimits{V4: 100, V6Default: 101, V6All: 102, V6Plait0: th.number("net/ipv6/conf/plait0/hop_limit")})
}

func (th *testHost) hopLimits(want HopLimits) {
	th.t.Helper()
	// From a thread elsewhere, which has to come here to read.
	type result struct {
		l   HopLimits
		err error
	}
	c := make(chan result)
	go func() {
		l, err := th.HopLimits()
		c <- result{l, err}
	}()
	r := <-c
	must(th.t, r.err)
	if r.l != want {
		th.t.Errorf("got %+v, want %+v", r.l, want)
	}
}

func (th *testHost) number(path string) int {
	th.t.Helper()
	n, err := th.readInt(path)
	must(th.t, err)
	return n
}

// After everything and Remove, the host is as it was.
func TestRemove(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	th.addr(th.far, "far-up1", "10.1.1.1/24")
	th.sysctl("net/ipv4/conf/all/rp_filter", "1")
	must(t, th.nl.RouteAdd(&netlink.Route{LinkIndex: up1, Dst: ipnet("10.255.0.0/16"), Gw: ips("10.1.1.1")[0].AsSlice(), Protocol: Protocol}))
	state := func() []string {
		var s []string
		links, err := th.nl.LinkList()
		must(t, err)
		for _, l := range links {
			s = append(s, l.Attrs().Name)
		}
		s = append(s, th.addrList("up1")...)
		s = append(s, th.routeList(func(netlink.Route) bool { return true })...)
		return append(s, th.sysctl("net/ipv4/conf/up1/rp_filter"), th.sysctl("net/ipv4/conf/all/rp_filter"))
	}
	eventually(t, "the link-local address is settled", func() bool {
		as, err := th.nl.AddrList(linkOf(t, th.nl, "up1"), netlink.FAMILY_V6)
		must(t, err)
		return len(as) == 2 && as[0].Flags&0x40 == 0 && as[1].Flags&0x40 == 0
	})
	before := state()
	must(t, th.Remove(Undo{})) // nothing there yet

	var undo Undo
	for range 2 { // a second round finds what the first left
		p, err := th.CreatePlait0(1500)
		must(t, err)
		src := ips("10.255.0.1", "fd00:255::1")
		must(t, th.BringUpPlait0(p, src))
		must(t, th.SyncPeerRoutes(p, ips("10.255.0.2", "fd00:255::2"), src))
		ups, err := th.Uplinks([]string{"up1"})
		must(t, err)
		undo, err = th.PlanSysctls(ups, undo)
		must(t, err)
		must(t, th.ApplySysctls(undo))
		must(t, th.SyncNeighbours([]Neighbour{{Index: up1, IP: ips("10.1.1.1")[0]}}))
	}
	another, err := New(th.log) // as `plait down` would
	must(t, err)
	defer another.Close()
	for range 2 {
		must(t, another.Remove(undo))
		equal(t, "state", state(), before)
		if n := th.entry(up1, "10.1.1.1"); n != nil && n.FlagsExt != 0 {
			t.Errorf("left behind: %+v", n)
		}
	}
}
