// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// recorder collects what Watch reports.
type recorder struct {
	mu       sync.Mutex
	changed  int
	carriers map[int][]bool
	hold     chan struct{} // while not nil and open, Carrier does not return
}

func (r *recorder) events() Events {
	return Events{
		Changed: func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.changed++
		},
		Carrier: func(index int, up bool) {
			r.mu.Lock()
			r.carriers[index] = append(r.carriers[index], up)
			hold := r.hold
			r.mu.Unlock()
			if hold != nil {
				<-hold
			}
		},
	}
}

func (r *recorder) changes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *recorder) seen(index int) []bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]bool(nil), r.carriers[index]...)
}

func (r *recorder) last(index int, up bool) func() bool {
	return func() bool {
		s := r.seen(index)
		return len(s) > 0 && s[len(s)-1] == up
	}
}

// watch runs Watch in another thread, which is not in the host's namespace, until the test ends.
func (th *testHost) watch() *recorder {
	th.t.Helper()
	r := &recorder{carriers: make(map[int][]bool)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- th.Watch(ctx, r.events()) }()
	th.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			th.t.Errorf("Watch: %v", err)
		}
	})
	return r
}

func TestWatch(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	up2 := th.uplink("up2", "10.2.1.2/24")
	far := linkOf(t, th.far, "far-up1")
	r := th.watch()
	eventually(t, "the first report", func() bool { return r.changes() > 0 })
	eventually(t, "the first state", r.last(up1, true))
	eventually(t, "the first state", r.last(up2, true))

	must(t, th.far.LinkSetDown(far))
	eventually(t, "carrier lost", r.last(up1, false))
	must(t, th.far.LinkSetUp(far))
	eventually(t, "carrier back", r.last(up1, true))
	must(t, th.nl.LinkSetDown(linkOf(t, th.nl, "up1")))
	eventually(t, "no carrier while down", r.last(up1, false))
	up(t, th.nl, "up1")
	eventually(t, "up again", r.last(up1, true))
	equal(t, "carrier of up1", r.seen(up1), []bool{true, false, true, false, true})
	equal(t, "carrier of up2", r.seen(up2), []bool{true})

	// A port that leaves its bridge is told in a message that looks like a deletion.
	ba := netlink.NewLinkAttrs()
	ba.Name = "br1"
	must(t, th.nl.LinkAdd(&netlink.Bridge{LinkAttrs: ba}))
	l2 := linkOf(t, th.nl, "up2")
	must(t, th.nl.LinkSetMaster(l2, linkOf(t, th.nl, "br1")))
	must(t, th.nl.LinkSetNoMaster(l2))
	th.uplink("up3")
	up3 := linkOf(t, th.nl, "up3")
	eventually(t, "a new interface", r.last(up3.Attrs().Index, true))
	equal(t, "carrier of a former port", r.seen(up2), []bool{true})

	must(t, th.nl.LinkDel(up3))
	eventually(t, "the interface is gone", r.last(up3.Attrs().Index, false))
}

// Each kind of change is reported.
func TestWatchChanges(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1", "10.1.1.2/24", "fd00:1:1::2/64")
	link := linkOf(t, th.nl, "up1")
	n := Neighbour{Index: up1, IP: ips("10.1.1.1")[0]}
	must(t, th.SyncNeighbours([]Neighbour{n}))
	eventually(t, "the link-local address is settled", func() bool {
		as, err := th.nl.AddrList(link, netlink.FAMILY_V6)
		must(t, err)
		return len(as) == 2 && as[0].Flags&unix.IFA_F_TENTATIVE == 0 && as[1].Flags&unix.IFA_F_TENTATIVE == 0
	})
	r := th.watch()
	eventually(t, "the first report", func() bool { return r.changes() > 0 })
	addr4, addr6 := &netlink.Addr{IPNet: ipnet("10.1.1.9/24")}, &netlink.Addr{IPNet: ipnet("fd00:1:1::9/64"), Flags: unix.IFA_F_NODAD}
	route4 := &netlink.Route{LinkIndex: up1, Dst: ipnet("10.9.0.0/16"), Gw: ips("10.1.1.1")[0].AsSlice()}
	route6 := &netlink.Route{LinkIndex: up1, Dst: ipnet("fd00:9::/32"), Gw: ips("fd00:1:1::1")[0].AsSlice()}
	for name, change := range map[string]func() error{
		"link":       func() error { return th.nl.LinkSetMTU(link, 1400) },
		"address v4": func() error { return th.nl.AddrAdd(link, addr4) },
		"address v6": func() error { return th.nl.AddrAdd(link, addr6) },
		"route v4":   func() error { return th.nl.RouteAdd(route4) },
		"route v6":   func() error { return th.nl.RouteAdd(route6) },
		"neighbour":  func() error { return th.deleteNeighbour(n) },
	} {
		before := r.changes()
		must(t, change())
		eventually(t, name+" is reported", func() bool { return r.changes() > before })
	}
}

// The kernel has no room for more messages: they are lost, the truth is not.
func TestWatchOverrun(t *testing.T) {
	th := newTestHost(t)
	th.watchBuffer = 1 // the kernel makes it its minimum, a few messages
	up1 := th.uplink("up1")
	far := linkOf(t, th.far, "far-up1")
	r := th.watch()
	eventually(t, "the first state", r.last(up1, true))
	eventually(t, "the first report", func() bool { return r.changes() > 0 })

	hold := make(chan struct{})
	r.mu.Lock()
	r.hold = hold
	r.mu.Unlock()
	must(t, th.far.LinkSetDown(far))
	eventually(t, "the receiver is held", r.last(up1, false))
	// Fill its socket, and then lose what matters: the carrier comes back, an interface comes and
	// another goes.
	lo := linkOf(t, th.nl, "lo")
	for i := range 200 {
		must(t, th.nl.LinkSetMTU(lo, 50000+i))
	}
	must(t, th.far.LinkSetUp(far))
	up2 := th.uplink("up2")
	eventually(t, "both carriers", func() bool {
		ups, err := th.Uplinks([]string{"up1", "up2"})
		must(t, err)
		return ups["up1"].Carrier && ups["up2"].Carrier
	})
	before := r.changes()
	r.mu.Lock()
	r.hold = nil
	r.mu.Unlock()
	close(hold)
	eventually(t, "up1 after the overrun", r.last(up1, true))
	eventually(t, "up2 after the overrun", r.last(up2, true))
	eventually(t, "a full report", func() bool { return r.changes() > before })
	if overrun := unix.ENOBUFS.Error(); !th.logs.contains(overrun) {
		t.Errorf("nothing was lost, so nothing was tested: no %q in the log", overrun)
	}

	// And it goes on.
	must(t, th.far.LinkSetDown(far))
	eventually(t, "carrier lost", r.last(up1, false))
}

// Everything is reported again from time to time, though nothing happened.
func TestWatchResync(t *testing.T) {
	th := newTestHost(t)
	up1 := th.uplink("up1")
	th.resync = 20 * time.Millisecond
	r := th.watch()
	eventually(t, "the first state", r.last(up1, true))
	before, states := r.changes(), r.seen(up1)
	eventually(t, "five more reports", func() bool { return r.changes() >= before+5 })
	equal(t, "carrier", r.seen(up1), states)
}

func TestDumpIsRepeated(t *testing.T) {
	for _, c := range []struct {
		interrupted int
		last        error
		wantCalls   int
		wantErr     error
	}{
		{0, nil, 1, nil},
		{29, nil, 30, nil},
		{1000, nil, 30, netlink.ErrDumpInterrupted},
		{3, unix.EPERM, 4, unix.EPERM},
	} {
		calls := 0
		v, err := dump("things", func() (int, error) {
			calls++
			if calls <= c.interrupted {
				return 0, fmt.Errorf("wrapped: %w", netlink.ErrDumpInterrupted)
			}
			return 7, c.last
		})
		if calls != c.wantCalls || !errors.Is(err, c.wantErr) || err == nil && v != 7 {
			t.Errorf("%+v: %d calls, %d, %v", c, calls, v, err)
		}
	}
}

// A Host and a Watch that ended leave no descriptor.
func TestClose(t *testing.T) {
	th := newSerialTestHost(t)
	count := func() int {
		ds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(ds)
	}
	once := func() {
		h, err := New(th.log)
		must(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		must(t, h.Watch(ctx, Events{Changed: cancel, Carrier: func(int, bool) {}}))
		_, err = h.HopLimits()
		must(t, err)
		h.Close()
	}
	once() // the runtime opens some of its own
	before := count()
	for range 10 {
		once()
	}
	eventually(t, "all descriptors are closed", func() bool { return count() <= before })
}
