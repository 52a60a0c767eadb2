// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestUplinks(t *testing.T) {
	th := newTestHost(t)
	index := th.uplink("up1", "10.1.1.2/24", "10.1.1.3/24", "fd00:1:1::2/64")
	link := linkOf(t, th.nl, "up1")
	must(t, th.nl.LinkSetMTU(link, 1450))

	// Everything that is no locator: link scope, deprecated (both families), temporary, duplicate.
	for _, a := range []*netlink.Addr{
		{IPNet: ipnet("169.254.7.7/16"), Scope: unix.RT_SCOPE_LINK},
		{IPNet: ipnet("10.1.9.9/24"), ValidLft: 3600},
		{IPNet: ipnet("fd00:1:9::9/64"), Flags: unix.IFA_F_NODAD, ValidLft: 3600},
	} {
		must(t, th.nl.AddrAdd(link, a))
	}
	th.addr(th.far, "far-up1", "fd00:1:1::dd/64")
	must(t, th.nl.AddrAdd(link, &netlink.Addr{IPNet: ipnet("fd00:1:1::dd/64")}))
	th.sysctl("net/ipv6/conf/up1/use_tempaddr", "2")
	must(t, th.nl.AddrAdd(link, &netlink.Addr{
		IPNet: ipnet("fd00:1:2::2/64"), Flags: unix.IFA_F_NODAD | unix.IFA_F_MANAGETEMPADDR,
		ValidLft: 36000, PreferedLft: 36000,
	}))
	flagged := func(flag int) bool {
		as, err := th.nl.AddrList(link, netlink.FAMILY_V6)
		must(t, err)
		return slices.ContainsFunc(as, func(a netlink.Addr) bool { return a.Flags&flag != 0 })
	}
	eventually(t, "a duplicate address", func() bool { return flagged(unix.IFA_F_DADFAILED) })
	eventually(t, "a temporary address", func() bool { return flagged(unix.IFA_F_TEMPORARY) })

	get := func() map[string]Uplink {
		t.Helper()
		ups, err := th.Uplinks([]string{"up1", "nosuch", "up2"})
		must(t, err)
		return ups
	}
	ups := get()
	if len(ups) != 1 {
		t.Fatalf("got %v", ups)
	}
	u := ups["up1"]
	equal(t, "locators", u.Addrs, ips("10.1.1.2", "10.1.1.3", "fd00:1:2::2", "fd00:1:1::2"))
	u.Addrs = nil
	if want := (Uplink{Name: "up1", Index: index, MTU: 1450, Driver: "veth", AdminUp: true, Carrier: true}); !same(u, want) {
		t.Errorf("got %+v, want %+v", u, want)
	}

	// An address that is being checked is none yet; without carrier the check cannot end.
	far := linkOf(t, th.far, "far-up1")
	must(t, th.far.LinkSetDown(far))
	eventually(t, "no carrier", func() bool { u := get()["up1"]; return u.AdminUp && !u.Carrier })
	must(t, th.nl.AddrAdd(link, &netlink.Addr{IPNet: ipnet("fd00:1:3::2/64")}))
	if !flagged(unix.IFA_F_TENTATIVE) {
		t.Error("the address is not tentative, the test is wrong")
	}
	if got := get()["up1"].Addrs; slices.Contains(got, netip.MustParseAddr("fd00:1:3::2")) {
		t.Errorf("tentative address among %v", got)
	}
	must(t, th.nl.LinkSetDown(link))
	if u := get()["up1"]; u.AdminUp || u.Carrier {
		t.Errorf("down: %+v", u)
	}

	// A master, and a name that is not the kernel's.
	ba := netlink.NewLinkAttrs()
	ba.Name = "br1"
	must(t, th.nl.LinkAdd(&netlink.Bridge{LinkAttrs: ba}))
	bridge := linkOf(t, th.nl, "br1")
	must(t, th.nl.LinkSetMaster(link, bridge))
	must(t, th.nl.LinkAddAltName(link, "up2"))
	ups = get()
	if u := ups["up2"]; u.Name != "up1" || u.Index != index || u.Master != bridge.Attrs().Index || u.VRF != 0 {
		t.Errorf("got %+v", u)
	}
}

func same(a, b Uplink) bool {
	return a.Name == b.Name && a.Index == b.Index && a.MTU == b.MTU && a.Driver == b.Driver &&
		a.AdminUp == b.AdminUp && a.Carrier == b.Carrier && a.Master == b.Master && a.VRF == b.VRF
}
