// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for a state before it fails.
const patience = 30 * time.Second

// testHost is a Host in a network namespace of the test's own, and a peer namespace.
type testHost struct {
	*Host
	t    *testing.T
	nl   *netlink.Handle // in the host's namespace
	far  *netlink.Handle // in the peer namespace
	near netns.NsHandle
	rest netns.NsHandle // the peer namespace
	logs *testLog
}

// newTestHost puts the calling test into a new network namespace without a name, for good: its thread
// ends with the test, and with the thread and the handles the namespace. A subtest (t.Run) of it is
// another goroutine, in the namespace of the machine, and must make a Host of its own.
func newTestHost(t *testing.T) *testHost {
	t.Helper()
	t.Parallel()
	return newSerialTestHost(t)
}

// newSerialTestHost is newTestHost for a test that looks at the whole process.
func newSerialTestHost(t *testing.T) *testHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and has to run as root")
	}
	runtime.LockOSThread() // and never unlocked

	th := &testHost{t: t, logs: &testLog{t: t}}
	var err error
	if th.rest, err = netns.New(); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = th.rest.Close() })
	if th.near, err = netns.New(); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = th.near.Close() })

	th.nl = handleAt(t, th.near)
	th.far = handleAt(t, th.rest)
	if th.Host, err = New(slog.New(slog.NewTextHandler(th.logs, nil))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(th.Close)
	up(t, th.nl, "lo")
	// One interface more on one side, so that the ends of a veth pair never have the same index: the
	// kernel takes such an interface for a physical one, whose carrier it reports once a second.
	a := netlink.NewLinkAttrs()
	a.Name = "spacer"
	must(t, th.far.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	return th
}

// testLog keeps what is logged, and shows it if the test fails.
type testLog struct {
	t    *testing.T
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Log(strings.TrimSpace(string(b)))
	return l.text.Write(b)
}

func (l *testLog) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), s)
}

func handleAt(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// uplink makes a veth pair: name in the host's namespace, "far-"+name in the peer namespace, both up.
// addrs go on the host's end. It returns the index of the host's end.
func (th *testHost) uplink(name string, addrs ...string) int {
	th.t.Helper()
	a := netlink.NewLinkAttrs()
	a.Name = name
	veth := &netlink.Veth{LinkAttrs: a, PeerName: "far-" + name, PeerNamespace: netlink.NsFd(th.rest)}
	must(th.t, th.nl.LinkAdd(veth))
	up(th.t, th.far, "far-"+name)
	index := up(th.t, th.nl, name)
	for _, s := range addrs {
		th.addr(th.nl, name, s)
	}
	return index
}

// addr adds an address without duplicate address detection.
func (th *testHost) addr(h *netlink.Handle, link, s string) {
	th.t.Helper()
	a, err := netlink.ParseAddr(s)
	must(th.t, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	must(th.t, h.AddrAdd(linkOf(th.t, h, link), a))
}

// routeList returns a description of each route of the host, in all tables, that keep accepts.
func (th *testHost) routeList(keep func(netlink.Route) bool) []string {
	th.t.Helper()
	rs, err := th.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	must(th.t, err)
	var out []string
	for _, r := range rs {
		if keep(r) {
			out = append(out, fmt.Sprintf("%s dev %d src %s gw %s proto %d metric %d table %d scope %d",
				r.Dst, r.LinkIndex, r.Src, r.Gw, r.Protocol, r.Priority, r.Table, r.Scope))
		}
	}
	slices.Sort(out)
	return out
}

// addrList returns the addresses of a link, with their flags except "permanent".
func (th *testHost) addrList(link string) []string {
	th.t.Helper()
	as, err := th.nl.AddrList(linkOf(th.t, th.nl, link), netlink.FAMILY_ALL)
	must(th.t, err)
	var out []string
	for _, a := range as {
		out = append(out, fmt.Sprintf("%s scope %d flags %#x", a.IPNet, a.Scope, a.Flags&^unix.IFA_F_PERMANENT))
	}
	slices.Sort(out)
	return out
}

// sysctl reads or, with a value, writes a file under /proc/sys in the host's namespace.
func (th *testHost) sysctl(path string, value ...string) string {
	th.t.Helper()
	if len(value) > 0 {
		must(th.t, os.WriteFile("/proc/sys/"+path, []byte(value[0]), 0o644))
	}
	b, err := os.ReadFile("/proc/sys/" + path)
	must(th.t, err)
	return strings.TrimSpace(string(b))
}

func linkOf(t *testing.T, h *netlink.Handle, name string) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	return l
}

func up(t *testing.T, h *netlink.Handle, name string) int {
	t.Helper()
	l := linkOf(t, h, name)
	must(t, h.LinkSetUp(l))
	return l.Attrs().Index
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok says yes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("still not after %s: %s", patience, what)
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func ips(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func ipnet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
