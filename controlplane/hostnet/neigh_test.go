// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// entry returns the neighbour entry for ip, nil if there is none.
func (th *testHost) entry(index int, ip string) *netlink.Neigh {
	th.t.Helper()
	ns, err := th.nl.NeighList(index, netlink.FAMILY_ALL)
	must(th.t, err)
	for _, n := range ns {
		if n.IP.String() == ip {
			return &n
		}
	}
	return nil
}

// reachable waits until the kernel has an answer for ip.
func (th *testHost) reachable(index int, ip string, mac net.HardwareAddr) {
	th.t.Helper()
	eventually(th.t, ip+" is reachable", func() bool {
		n := th.entry(index, ip)
		return n != nil && n.State == netlink.NUD_REACHABLE && slices.Equal(n.HardwareAddr, mac)
	})
}

func TestSyncNeighbours(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	for _, s := range []string{"10.1.1.1/24", "10.1.1.3/24", "fd00:1:1::1/64"} {
		th.addr(th.far, "far-up1", s)
	}
	mac := linkOf(t, th.far, "far-up1").Attrs().HardwareAddr
	elsewhere, _ := net.ParseMAC("02:00:00:00:00:09")
	// Other people's: a permanent one that we want, a permanent one that we do not, one that somebody
	// else has learnt, one that somebody else has managed.
	for _, n := range []netlink.Neigh{
		{LinkIndex: up1, IP: net.ParseIP("10.1.1.9"), State: netlink.NUD_PERMANENT, HardwareAddr: elsewhere},
		{LinkIndex: up1, IP: net.ParseIP("10.1.1.10"), State: netlink.NUD_PERMANENT, HardwareAddr: elsewhere},
		{LinkIndex: up1, IP: net.ParseIP("10.1.1.11"), State: netlink.NUD_REACHABLE, Flags: netlink.NTF_EXT_LEARNED, HardwareAddr: elsewhere},
		{LinkIndex: up1, IP: net.ParseIP("10.1.1.12"), FlagsExt: netlink.NTF_EXT_MANAGED},
	} {
		must(t, th.nl.NeighSet(&n))
	}
	foreign := []string{"10.1.1.9", "10.1.1.10", "10.1.1.11", "10.1.1.12"}
	var before []netlink.Neigh
	for _, ip := range foreign {
		before = append(before, *th.entry(up1, ip))
	}
	checkForeign := func() {
		t.Helper()
		for i, ip := range foreign {
			b, n := before[i], th.entry(up1, ip)
			if n == nil || n.Flags != b.Flags || n.FlagsExt != b.FlagsExt || !slices.Equal(n.HardwareAddr, b.HardwareAddr) ||
				b.State == netlink.NUD_PERMANENT && n.State != b.State {
				t.Errorf("entry of somebody else: got %+v, want %+v", n, b)
			}
		}
	}

	// Confirmation after milliseconds rather than after half a minute, so that the test sees it.
	for _, f := range []string{"ipv4", "ipv6"} {
		th.sysctl("net/"+f+"/neigh/up1/base_reachable_time_ms", "200")
		th.sysctl("net/"+f+"/neigh/up1/interval_probe_time_ms", "100")
		th.sysctl("net/"+f+"/neigh/up1/delay_first_probe_time", "0")
		th.sysctl("net/"+f+"/neigh/up1/retrans_time_ms", "50")
	}

	index := func(ss ...string) (ns []Neighbour) {
		for _, ip := range ips(ss...) {
			ns = append(ns, Neighbour{Index: up1, IP: ip})
		}
		return ns
	}
	want := index("10.1.1.1", "10.1.1.3", "fd00:1:1::1", "10.1.1.9", "10.1.1.77")
	// An interface that is gone is no error.
	want = append(want, Neighbour{Index: 9999, IP: ips("10.1.1.1")[0]})
	must(t, th.SyncNeighbours(want))
	for _, ip := range []string{"10.1.1.1", "10.1.1.3", "fd00:1:1::1"} {
		th.reachable(up1, ip, mac)
	}
	if n := th.entry(up1, "10.1.1.77"); n == nil || n.FlagsExt&netlink.NTF_EXT_MANAGED == 0 {
		t.Errorf("unanswered neighbour: %+v", n)
	}
	checkForeign()

	// Nothing changes the second time.
	w := th.neighbourMessages()
	must(t, th.SyncNeighbours(want))
	w(func(n neighbour) bool { return n.IP.String() == "10.1.1.9" })
	checkForeign()

	// Without any traffic the kernel goes on asking: a gateway that answers with another MAC is
	// learnt, one that was silent for a while comes back.
	other, _ := net.ParseMAC("02:00:00:00:aa:01")
	must(t, th.far.LinkSetHardwareAddr(linkOf(t, th.far, "far-up1"), other))
	th.reachable(up1, "10.1.1.1", other)
	th.reachable(up1, "fd00:1:1::1", other)
	th.addr(th.far, "far-up1", "10.1.1.77/24")
	th.reachable(up1, "10.1.1.77", other)

	must(t, th.SyncNeighbours(index("10.1.1.1", "10.1.1.9")))
	eventually(t, "unwanted entries are gone", func() bool {
		for _, ip := range []string{"10.1.1.3", "10.1.1.77", "fd00:1:1::1"} {
			if n := th.entry(up1, ip); n != nil && n.FlagsExt&netlink.NTF_EXT_MANAGED != 0 {
				return false
			}
		}
		return true
	})
	th.reachable(up1, "10.1.1.1", other)
	checkForeign()

	// An interface that is down is no error; when it is back, so are the entries.
	must(t, th.nl.LinkSetDown(linkOf(t, th.nl, "up1")))
	must(t, th.SyncNeighbours(index("10.1.1.1")))
	up(t, th.nl, "up1")
	eventually(t, "the neighbour is back", func() bool {
		must(t, th.SyncNeighbours(index("10.1.1.1")))
		n := th.entry(up1, "10.1.1.1")
		return n != nil && n.State == netlink.NUD_REACHABLE
	})
	must(t, th.SyncNeighbours(nil))
	if n := th.entry(up1, "10.1.1.1"); n != nil && n.FlagsExt != 0 {
		t.Errorf("left behind: %+v", n)
	}
}

// neighbourMessages starts to listen. The function it returns fails the test unless the first message
// that is not about a change of state, which the kernel makes by itself, is the one that accept takes,
// about an entry of another one's that it provokes.
func (th *testHost) neighbourMessages() func(accept func(neighbour) bool) {
	th.t.Helper()
	s, err := th.subscribe(unix.RTNLGRP_NEIGH)
	must(th.t, err)
	return func(accept func(neighbour) bool) {
		th.t.Helper()
		defer s.Close()
		mac, _ := net.ParseMAC("02:00:00:00:00:08")
		old := th.entry(linkOf(th.t, th.nl, "up1").Attrs().Index, "10.1.1.9")
		changed := *old
		changed.HardwareAddr = mac
		must(th.t, th.nl.NeighSet(&changed))
		must(th.t, th.nl.NeighSet(old))
		for {
			msgs, _, err := s.Receive()
			must(th.t, err)
			for _, m := range msgs {
				n, _ := parseNeighbour(m.Data)
				if accept(n) {
					return
				}
				if m.Header.Type == unix.RTM_DELNEIGH || !n.ours() {
					th.t.Errorf("a message about %+v", n)
				}
			}
		}
	}
}
