// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestNextHopChoice(t *testing.T) {
	type route struct {
		dst    string
		gw     string // "" for on-link
		dev    int    // 1 if 0
		table  uint32 // main if 0
		metric uint32
		change func(*kernelRoute)
	}
	typ := func(n uint8) func(*kernelRoute) { return func(k *kernelRoute) { k.typ = n } }
	pref := func(n int8) func(*kernelRoute) { return func(k *kernelRoute) { k.pref = n } }
	cases := []struct {
		name     string
		routes   []route
		remote   string
		override string
		want     string // "" for ErrNoRoute
	}{
		{name: "nothing", remote: "10.1.2.2"},
		{name: "override without a route", remote: "10.1.2.2", override: "10.1.1.9", want: "10.1.1.9"},
		{name: "override over a route", routes: []route{{dst: "10.1.2.0/24"}}, remote: "10.1.2.2", override: "10.1.1.9", want: "10.1.1.9"},
		{name: "on-link", routes: []route{{dst: "10.1.2.0/24"}}, remote: "10.1.2.2", want: "10.1.2.2"},
		{name: "on-link IPv6", routes: []route{{dst: "fd00:1::/64"}}, remote: "fd00:1::2", want: "fd00:1::2"},
		{name: "gateway", routes: []route{{dst: "0.0.0.0/0", gw: "10.1.1.1"}}, remote: "10.1.2.2", want: "10.1.1.1"},
		{name: "default IPv6", routes: []route{{dst: "::/0", gw: "fe80::1"}}, remote: "fd00:1::2", want: "fe80::1"},
		{name: "no family mixes", routes: []route{{dst: "0.0.0.0/0", gw: "10.1.1.1"}}, remote: "fd00:1::2"},
		{name: "IPv4 by an IPv6 gateway", routes: []route{{dst: "0.0.0.0/0", gw: "fe80::1"}}, remote: "10.1.2.2", want: "fe80::1"},
		{name: "other interface", routes: []route{{dst: "0.0.0.0/0", gw: "10.1.1.1", dev: 2}}, remote: "10.1.2.2"},
		{name: "unknown interface", routes: []route{{dst: "0.0.0.0/0", gw: "10.1.1.1", dev: 9}}, remote: "10.1.2.2"},
		{name: "longest prefix", routes: []route{
			{dst: "0.0.0.0/0", gw: "10.1.1.1"}, {dst: "10.1.0.0/16", gw: "10.1.1.2"}, {dst: "10.1.2.0/24", gw: "10.1.1.3"}, {dst: "10.1.3.0/24"},
		}, remote: "10.1.2.2", want: "10.1.1.3"},
		{name: "longest prefix, the middle one", routes: []route{
			{dst: "0.0.0.0/0", gw: "10.1.1.1"}, {dst: "10.1.0.0/16", gw: "10.1.1.2"}, {dst: "10.1.2.0/24", gw: "10.1.1.3"},
		}, remote: "10.1.9.2", want: "10.1.1.2"},
		{name: "host route", routes: []route{{dst: "10.1.2.0/24"}, {dst: "10.1.2.2/32", gw: "10.1.1.7"}}, remote: "10.1.2.2", want: "10.1.1.7"},
		{name: "longer in another table wins", routes: []route{{dst: "0.0.0.0/0", gw: "10.1.1.1"}, {dst: "10.1.0.0/16", gw: "10.1.1.2", table: 77}},
			remote: "10.1.2.2", want: "10.1.1.2"},
		{name: "main wins at equal length", routes: []route{
			{dst: "0.0.0.0/0", gw: "10.1.1.2", table: 77}, {dst: "0.0.0.0/0", gw: "10.1.1.1", metric: 500}, {dst: "0.0.0.0/0", gw: "10.1.1.3", table: 78},
		}, remote: "10.1.2.2", want: "10.1.1.1"},
		{name: "only in another table", routes: []route{{dst: "0.0.0.0/0", gw: "10.1.1.2", table: 77}}, remote: "10.1.2.2", want: "10.1.1.2"},
		{name: "lowest metric", routes: []route{
			{dst: "0.0.0.0/0", gw: "10.1.1.1", metric: 100}, {dst: "0.0.0.0/0", gw: "10.1.1.2", metric: 50}, {dst: "0.0.0.0/0", gw: "10.1.1.3", metric: 100},
		}, remote: "10.1.2.2", want: "10.1.1.2"},
		{name: "lowest metric in other tables, then lowest table", routes: []route{
			{dst: "0.0.0.0/0", gw: "10.1.1.1", metric: 9, table: 70}, {dst: "0.0.0.0/0", gw: "10.1.1.2", metric: 5, table: 79}, {dst: "0.0.0.0/0", gw: "10.1.1.3", metric: 5, table: 78},
		}, remote: "10.1.2.2", want: "10.1.1.3"},
		{name: "router preference", routes: []route{
			{dst: "::/0", gw: "fe80::1", metric: 1024, change: pref(-1)}, {dst: "::/0", gw: "fe80::2", metric: 1024, change: pref(1)}, {dst: "::/0", gw: "fe80::3", metric: 1024},
		}, remote: "fd00:1::2", want: "fe80::2"},
		{name: "unreachable and local do not count", routes: []route{
			{dst: "10.1.2.2/32", change: typ(unix.RTN_UNREACHABLE)}, {dst: "10.1.2.0/25", change: typ(unix.RTN_LOCAL)}, {dst: "10.1.2.0/24", gw: "10.1.1.1"},
		}, remote: "10.1.2.2", want: "10.1.1.1"},
		{name: "other type of service", routes: []route{{dst: "10.1.2.0/24", gw: "10.1.1.1", change: func(k *kernelRoute) { k.tos = 8 }}}, remote: "10.1.2.2"},
		{name: "cloned", routes: []route{{dst: "10.1.2.0/24", gw: "10.1.1.1", change: func(k *kernelRoute) { k.cloned = true }}}, remote: "10.1.2.2"},
		{name: "encapsulated", routes: []route{{dst: "10.1.2.0/24", gw: "10.1.1.1", change: func(k *kernelRoute) { k.hops[0].encap = true }}}, remote: "10.1.2.2"},
		{name: "dead", routes: []route{{dst: "10.1.2.0/24", gw: "10.1.1.1", change: func(k *kernelRoute) { k.hops[0].flags = unix.RTNH_F_DEAD }}}, remote: "10.1.2.2"},
		{name: "no carrier is no reason", routes: []route{{dst: "10.1.2.0/24", gw: "10.1.1.1", change: func(k *kernelRoute) { k.hops[0].flags = unix.RTNH_F_LINKDOWN }}},
			remote: "10.1.2.2", want: "10.1.1.1"},
		{name: "multipath", routes: []route{{dst: "10.1.2.0/24", gw: "10.2.1.1", dev: 2, change: func(k *kernelRoute) {
			k.hops = append(k.hops, kernelHop{ifindex: 1, gateway: netip.MustParseAddr("10.1.1.1")}, kernelHop{ifindex: 1, gateway: netip.MustParseAddr("10.1.1.5")})
		}}}, remote: "10.1.2.2", want: "10.1.1.1"},
		{name: "IPv4 in IPv6 form", routes: []route{{dst: "10.1.2.0/24", gw: "10.1.1.1"}}, remote: "::ffff:10.1.2.2", want: "10.1.1.1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRoutes([]int{1, 2})
			for _, in := range c.routes {
				k := kernelRoute{dst: netip.MustParsePrefix(in.dst), table: in.table, metric: in.metric, typ: unix.RTN_UNICAST}
				hop := kernelHop{ifindex: max(in.dev, 1)}
				if in.gw != "" {
					hop.gateway = netip.MustParseAddr(in.gw)
				}
				k.hops = []kernelHop{hop}
				if k.table == 0 {
					k.table = unix.RT_TABLE_MAIN
				}
				if in.change != nil {
					in.change(&k)
				}
				r.add(k)
			}
			r.finish()
			var override netip.Addr
			if c.override != "" {
				override = netip.MustParseAddr(c.override)
			}
			expect(t, r, 1, c.remote, override, c.want)
		})
	}
}

// expect checks one answer; want is empty for ErrNoRoute.
func expect(t *testing.T, r *Routes, ifindex int, remote string, override netip.Addr, want string) {
	t.Helper()
	got, err := r.NextHop(ifindex, netip.MustParseAddr(remote), override)
	switch {
	case want == "" && !errors.Is(err, ErrNoRoute):
		t.Errorf("%s: got %v, %v, want ErrNoRoute", remote, got, err)
	case want != "" && (err != nil || got != netip.MustParseAddr(want)):
		t.Errorf("%s: got %v, %v, want %s", remote, got, err, want)
	}
}

func TestKernelRoutes(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	up2 := th.uplink("up2", "10.2.1.2/24", "fd00:2:1::2/64")
	gw := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	for _, r := range []netlink.Route{
		{LinkIndex: up1, Dst: ipnet("10.1.0.0/16"), Gw: gw("10.1.1.1")},
		{LinkIndex: up1, Dst: ipnet("fd00:1::/32"), Gw: gw("fd00:1:1::1")},
		{LinkIndex: up1, Dst: ipnet("0.0.0.0/0"), Gw: gw("10.1.1.9"), Priority: 100},
		{LinkIndex: up1, Dst: ipnet("0.0.0.0/0"), Gw: gw("10.1.1.8"), Priority: 50},
		{LinkIndex: up1, Dst: ipnet("0.0.0.0/0"), Gw: gw("10.1.1.7"), Table: 7000},
		{LinkIndex: up2, Dst: ipnet("0.0.0.0/0"), Gw: gw("10.2.1.7"), Table: 7000, Priority: 9},
		{LinkIndex: up2, Dst: ipnet("::/0"), Gw: gw("fd00:2:1::7"), Table: 7000},
		{LinkIndex: up2, Dst: ipnet("10.77.0.0/16"), Scope: netlink.SCOPE_LINK},
		{Dst: ipnet("10.88.0.0/16"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: up1, Gw: gw("10.1.1.5")}, {LinkIndex: up2, Gw: gw("10.2.1.5")},
		}},
		{Dst: ipnet("fd00:88::/32"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: up1, Gw: gw("fd00:1:1::5")}, {LinkIndex: up2, Gw: gw("fd00:2:1::5")},
		}},
		{LinkIndex: up1, Dst: ipnet("10.99.0.0/16"), Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: gw("fe80::99")}},
		{Dst: ipnet("10.66.0.0/16"), Type: unix.RTN_UNREACHABLE},
	} {
		must(t, th.nl.RouteAdd(&r))
	}

	r, err := th.Routes(up1, up2)
	must(t, err)
	for _, c := range []struct {
		ifindex      int
		remote, want string
	}{
		{up1, "10.1.1.77", "10.1.1.77"},
		{up1, "10.1.2.2", "10.1.1.1"},
		{up1, "fd00:1:1::77", "fd00:1:1::77"},
		{up1, "fd00:1:2::2", "fd00:1:1::1"},
		{up1, "10.2.1.77", "10.1.1.8"}, // on-link on the other uplink only
		{up1, "10.66.0.1", "10.1.1.8"}, // unreachable does not lead through any interface
		{up1, "10.88.0.1", "10.1.1.5"},
		{up2, "10.88.0.1", "10.2.1.5"},
		{up1, "fd00:88::1", "fd00:1:1::5"},
		{up2, "fd00:88::1", "fd00:2:1::5"},
		{up1, "10.99.0.1", "fe80::99"},
		{up2, "10.99.0.1", "10.2.1.7"},
		{up2, "10.77.1.1", "10.77.1.1"},
		{up2, "10.1.2.2", "10.2.1.7"},
		{up2, "2001:db8::1", "fd00:2:1::7"},
		{up1, "2001:db8::1", ""},
		{1, "10.1.1.77", ""}, // not asked for
	} {
		expect(t, r, c.ifindex, c.remote, netip.Addr{}, c.want)
	}

	// The snapshot stays, a new one sees the change.
	must(t, th.nl.RouteDel(&netlink.Route{LinkIndex: up1, Dst: ipnet("10.1.0.0/16"), Gw: gw("10.1.1.1")}))
	expect(t, r, up1, "10.1.2.2", netip.Addr{}, "10.1.1.1")
	r, err = th.Routes(up1, up2)
	must(t, err)
	expect(t, r, up1, "10.1.2.2", netip.Addr{}, "10.1.1.8")
}

// Nexthop objects, with their hops listed in the route and without.
func TestNexthopObjects(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	up2 := th.uplink("up2", "10.2.1.2/24", "fd00:2:1::2/64")
	object := func(id uint32, family uint8, oif int, gateway string, group ...uint32) {
		t.Helper()
		head := rawData{family, 0, unix.RTPROT_STATIC, 0, 0, 0, 0, 0}
		data := []nl.NetlinkRequestData{head, nl.NewRtAttr(nhaID, nl.Uint32Attr(id))}
		if group == nil {
			data = append(data, nl.NewRtAttr(nhaOIF, nl.Uint32Attr(uint32(oif))),
				nl.NewRtAttr(nhaGateway, netip.MustParseAddr(gateway).AsSlice()))
		} else {
			var members []byte
			for _, m := range group {
				members = append(append(members, nl.Uint32Attr(m)...), 0, 0, 0, 0)
			}
			data = append(data, nl.NewRtAttr(nhaGroup, members))
		}
		must(t, th.request(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, nil, data...))
	}
	route := func(dst string, id uint32) {
		t.Helper()
		p := netip.MustParsePrefix(dst)
		m := nl.NewRtMsg()
		m.Family, m.Dst_len = unix.AF_INET6, uint8(p.Bits())
		if p.Addr().Is4() {
			m.Family = unix.AF_INET
		}
		must(t, th.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, nil,
			m, nl.NewRtAttr(unix.RTA_DST, p.Addr().AsSlice()), nl.NewRtAttr(rtaNHID, nl.Uint32Attr(id))))
	}
	object(1, unix.AF_INET, up1, "10.1.1.1")
	object(2, unix.AF_INET, up2, "10.2.1.1")
	object(3, unix.AF_UNSPEC, 0, "", 1, 2)
	object(4, unix.AF_INET6, up1, "fd00:1:1::1")
	route("10.5.0.0/16", 1)
	route("10.6.0.0/16", 3)
	route("fd00:5::/32", 4)

	for _, mode := range []string{"1", "0"} {
		th.sysctl("net/ipv4/nexthop_compat_mode", mode)
		r, err := th.Routes(up1, up2)
		must(t, err)
		for _, c := range []struct {
			ifindex      int
			remote, want string
		}{
			{up1, "10.5.0.1", "10.1.1.1"},
			{up2, "10.5.0.1", ""},
			{up1, "10.6.0.1", "10.1.1.1"},
			{up2, "10.6.0.1", "10.2.1.1"},
			{up1, "fd00:5::1", "fd00:1:1::1"},
		} {
			t.Run("compat mode "+mode, func(t *testing.T) { expect(t, r, c.ifindex, c.remote, netip.Addr{}, c.want) })
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Add(append(make([]byte, unix.SizeofRtMsg), 5, 0, unix.RTA_DST, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, ok := parseRoute(b); ok {
			if !k.dst.IsValid() || k.dst != k.dst.Masked() {
				t.Errorf("route to %v", k.dst)
			}
			r := newRoutes([]int{1})
			r.add(k)
			r.finish()
		}
		if n, ok := parseNeighbour(b); ok && !n.IP.IsValid() {
			t.Error("neighbour without an address")
		}
		make(nexthops).parse(b)
		parseLink(b)
	})
}
