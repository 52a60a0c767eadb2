// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestPlait0(t *testing.T) {
	th := newTestHost(t)

	p, err := th.CreatePlait0(1400)
	must(t, err)
	for index, name := range map[int]string{p.Near: Plait0Name, p.Far: FarName} {
		a := linkOf(t, th.nl, name).Attrs()
		if a.Index != index || a.MTU != 1400 || a.Flags&net.FlagUp != 0 || a.RawFlags&unix.IFF_NOARP == 0 {
			t.Errorf("%s after creation: %+v", name, a)
		}
		equal(t, name+" after creation", th.addrList(name), nil)
	}

	must(t, th.BringUpPlait0(p, ips("10.255.0.1", "fd00:255::1")))
	want := []string{"10.255.0.1/32 scope 0 flags 0x0", "fd00:255::1/128 scope 0 flags 0x2"}
	equal(t, "addresses", th.addrList(Plait0Name), want)
	equal(t, "addresses of the far end", th.addrList(FarName), nil)
	for _, name := range []string{Plait0Name, FarName} {
		if a := linkOf(t, th.nl, name).Attrs(); a.Flags&net.FlagUp == 0 || !hasCarrier(a.RawFlags) {
			t.Errorf("%s is not up: %+v", name, a)
		}
		if v := th.sysctl("net/ipv6/conf/" + name + "/accept_ra"); v != "0" {
			t.Errorf("%s: accept_ra %s", name, v)
		}
	}

	th.adoptUnchanged(p)

	// A change of identity and MTU keeps the interface and the address that stays. Garbage goes.
	th.addr(th.nl, Plait0Name, "192.0.2.1/24")
	th.addr(th.nl, FarName, "192.0.2.2/24")
	q, err := th.CreatePlait0(1300)
	must(t, err)
	must(t, th.BringUpPlait0(q, ips("10.255.0.9", "fd00:255::1")))
	if q != p {
		t.Errorf("got %+v, want %+v", q, p)
	}
	equal(t, "addresses", th.addrList(Plait0Name),
		[]string{"10.255.0.9/32 scope 0 flags 0x0", "fd00:255::1/128 scope 0 flags 0x2"})
	equal(t, "addresses of the far end", th.addrList(FarName), nil)
	for _, name := range []string{Plait0Name, FarName} {
		if mtu := linkOf(t, th.nl, name).Attrs().MTU; mtu != 1300 {
			t.Errorf("%s: MTU %d", name, mtu)
		}
	}
}

// adoptUnchanged checks that another process that finds the pair changes nothing at all.
func (th *testHost) adoptUnchanged(p Plait0) {
	t := th.t
	t.Helper()
	s, err := th.subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	must(t, err)
	defer s.Close()
	again, err := New(th.log)
	must(t, err)
	defer again.Close()
	q, err := again.CreatePlait0(1400)
	must(t, err)
	must(t, again.BringUpPlait0(q, ips("10.255.0.1", "fd00:255::1")))
	if q != p {
		t.Errorf("got %+v, want %+v", q, p)
	}
	// The kernel tells of every change; the first that it tells of must be this one.
	lo := linkOf(t, th.nl, "lo")
	must(t, th.nl.LinkSetMTU(lo, 60000))
	msgs, _, err := s.Receive()
	must(t, err)
	if i, ok := parseLink(msgs[0].Data); msgs[0].Header.Type != unix.RTM_NEWLINK || !ok || i.index != lo.Attrs().Index {
		t.Errorf("adopting changed something: message type %d, %+v", msgs[0].Header.Type, i)
	}
}

// A crash between any two steps leaves a pair that the next run completes.
func TestPlait0Repair(t *testing.T) {
	th := newTestHost(t)
	a := netlink.NewLinkAttrs()
	a.Name = Plait0Name
	must(t, th.nl.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: FarName}))
	up(t, th.nl, FarName)
	up(t, th.nl, Plait0Name) // gets a link-local address
	eventually(t, "a link-local address on plait0", func() bool { return len(th.addrList(Plait0Name)) > 0 })

	p, err := th.CreatePlait0(1500)
	must(t, err)
	must(t, th.BringUpPlait0(p, ips("10.255.0.1")))
	equal(t, "addresses", th.addrList(Plait0Name), []string{"10.255.0.1/32 scope 0 flags 0x0"})
	for _, name := range []string{Plait0Name, FarName} {
		if linkOf(t, th.nl, name).Attrs().RawFlags&unix.IFF_NOARP == 0 {
			t.Errorf("%s still has ARP", name)
		}
	}
}

func TestPlait0WhereIPv6IsOffByDefault(t *testing.T) {
	th := newTestHost(t)
	th.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	p, err := th.CreatePlait0(1500)
	must(t, err)
	must(t, th.BringUpPlait0(p, ips("fd00:255::1")))
	equal(t, "addresses", th.addrList(Plait0Name), []string{"fd00:255::1/128 scope 0 flags 0x2"})
}

func TestForeignLink(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = Plait0Name
	for name, link := range map[string]netlink.Link{
		"a bridge":          &netlink.Bridge{LinkAttrs: attrs},
		"another veth pair": &netlink.Veth{LinkAttrs: attrs, PeerName: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			th := newTestHost(t)
			must(t, th.nl.LinkAdd(link))
			index := linkOf(t, th.nl, Plait0Name).Attrs().Index
			if _, err := th.CreatePlait0(1500); !errors.Is(err, ErrForeignLink) {
				t.Errorf("CreatePlait0: %v", err)
			}
			if err := th.Remove(Undo{}); !errors.Is(err, ErrForeignLink) {
				t.Errorf("Remove: %v", err)
			}
			if got := linkOf(t, th.nl, Plait0Name).Attrs().Index; got != index {
				t.Errorf("the interface is another one now")
			}
		})
	}
}
