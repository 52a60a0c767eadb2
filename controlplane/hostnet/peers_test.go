// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestSyncPeerRoutes(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	p, err := th.CreatePlait0(1500)
	must(t, err)
	src := ips("10.255.0.1", "fd00:255::1")
	must(t, th.BringUpPlait0(p, src))

	// What is not ours: the same protocol elsewhere, another protocol or table on plait0, and a
	// worse route to the same peer.
	for _, r := range []netlink.Route{
		{LinkIndex: up1, Dst: ipnet("192.0.2.0/24"), Gw: ips("10.1.1.1")[0].AsSlice(), Protocol: Protocol},
		{LinkIndex: p.Near, Dst: ipnet("192.0.2.1/32"), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC},
		{LinkIndex: p.Near, Dst: ipnet("192.0.2.2/32"), Scope: netlink.SCOPE_LINK, Protocol: Protocol, Table: 77},
		{LinkIndex: up1, Dst: ipnet("10.255.0.2/32"), Gw: ips("10.1.1.1")[0].AsSlice(), Priority: 20},
		{LinkIndex: up1, Dst: ipnet("fd00:255::2/128"), Gw: ips("fd00:1:1::1")[0].AsSlice(), Priority: 32},
	} {
		must(t, th.nl.RouteAdd(&r))
	}
	ours := func(r netlink.Route) bool {
		return r.LinkIndex == p.Near && r.Protocol == Protocol && r.Table == unix.RT_TABLE_MAIN
	}
	// The kernel's own come a moment after the address they belong to.
	others := func(r netlink.Route) bool { return !ours(r) && r.Protocol != unix.RTPROT_KERNEL }
	before := th.routeList(others)

	line := func(dst, src string, metric, scope int) string {
		return fmt.Sprintf("%s dev %d src %s gw <nil> proto 112 metric %d table 254 scope %d", dst, p.Near, src, metric, scope)
	}
	b4, b6 := line("10.255.0.2/32", "10.255.0.1", 0, 253), line("fd00:255::2/128", "fd00:255::1", 1, 0)
	c4, c6 := line("10.255.0.3/32", "10.255.0.1", 0, 253), line("fd00:255::3/128", "fd00:255::1", 1, 0)
	steps := []struct {
		name       string
		peers, src []string
		want       []string
	}{
		{"two peers, one listed twice", []string{"10.255.0.2", "fd00:255::2", "10.255.0.3", "fd00:255::3", "10.255.0.3"}, nil, []string{b4, c4, b6, c6}},
		{"again", []string{"10.255.0.2", "fd00:255::2", "10.255.0.3", "fd00:255::3"}, nil, []string{b4, c4, b6, c6}},
		{"one less", []string{"10.255.0.3", "fd00:255::3"}, nil, []string{c4, c6}},
		{"no own IPv4 identity", []string{"10.255.0.3", "fd00:255::3"}, []string{"fd00:255::1"}, []string{c6}},
		{"none", nil, nil, nil},
		{"back", []string{"10.255.0.2", "fd00:255::2"}, nil, []string{b4, b6}},
	}
	for _, s := range steps {
		own := src
		if s.src != nil {
			own = ips(s.src...)
		}
		must(t, th.SyncPeerRoutes(p, ips(s.peers...), own))
		equal(t, s.name, th.routeList(ours), s.want)
		equal(t, "other people's routes after: "+s.name, th.routeList(others), before)
	}

	// Another source.
	src = ips("10.255.0.9", "fd00:255::1")
	must(t, th.BringUpPlait0(p, src))
	must(t, th.SyncPeerRoutes(p, ips("10.255.0.2", "fd00:255::2"), src))
	equal(t, "another source", th.routeList(ours), []string{line("10.255.0.2/32", "10.255.0.9", 0, 253), b6})

	// The kernel prefers ours.
	for _, s := range []string{"10.255.0.2", "fd00:255::2"} {
		rs, err := th.nl.RouteGet(ips(s)[0].AsSlice())
		must(t, err)
		if rs[0].LinkIndex != p.Near {
			t.Errorf("%s leaves by interface %d", s, rs[0].LinkIndex)
		}
	}
}

// Somebody has the very route: theirs stays, the error says which, the rest is done.
func TestSyncPeerRoutesConflict(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	p, err := th.CreatePlait0(1500)
	must(t, err)
	src := ips("10.255.0.1", "fd00:255::1")
	must(t, th.BringUpPlait0(p, src))
	must(t, th.nl.RouteAdd(&netlink.Route{LinkIndex: up1, Dst: ipnet("10.255.0.2/32"), Gw: ips("10.1.1.1")[0].AsSlice()}))
	must(t, th.nl.RouteAdd(&netlink.Route{LinkIndex: up1, Dst: ipnet("fd00:255::2/128"), Gw: ips("fd00:1:1::1")[0].AsSlice(), Priority: peerMetric6}))
	foreign := func(r netlink.Route) bool { return r.LinkIndex == up1 }
	before := th.routeList(foreign)

	err = th.SyncPeerRoutes(p, ips("10.255.0.2", "fd00:255::2", "10.255.0.3", "fd00:255::3"), src)
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "10.255.0.2") || !strings.Contains(err.Error(), "fd00:255::2") {
		t.Errorf("error: %v", err)
	}
	equal(t, "other people's routes", th.routeList(foreign), before)
	rs, err := th.peerRoutes(p)
	must(t, err)
	var got []string
	for _, r := range rs {
		got = append(got, r.Dst.String())
	}
	slices.Sort(got)
	equal(t, "our routes", got, []string{"10.255.0.3/32", "fd00:255::3/128"})
}
