// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/world"
)

// patience is how long a test waits for a state before it fails.
const patience = 30 * time.Second

// newVeth puts the calling test into a network namespace without a name, for good, and makes a veth pair there. It returns
// the index of one end and a packet socket on the other.
func newVeth(t *testing.T) (near, capture int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace and has to run as root")
	}
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	a := netlink.NewLinkAttrs()
	a.Name = "plait0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "plait0-far"}); err != nil {
		t.Fatal(err)
	}
	index := map[string]int{}
	for _, name := range []string{"plait0", "plait0-far"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
		index[name] = l.Attrs().Index
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index["plait0-far"]}); err != nil {
		t.Fatal(err)
	}
	timeout := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return index["plait0"], fd
}

// TestRun: what a running sender puts on plait0 are the rounds, as often as asked for, until it is told to end.
func TestRun(t *testing.T) {
	near, capture := newVeth(t)
	w := world.New(t, world.Options{Uplinks: 2, Peers: 1, Families: []maps.Family{maps.IPv4, maps.IPv6}})
	b := &bench{World: w, t: t}
	for _, g := range w.State.Peers[0].Groups {
		b.groups = append(b.groups, b.group(g.Index))
	}
	s, err := New(Config{
		Set: w.Set, Plait0: near, Fast: 5 * time.Millisecond, Idle: time.Second, Budget: 20000,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	s.Update(b.groups)
	procs := runtime.GOMAXPROCS(0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := runtime.GOMAXPROCS(0); n != procs {
			t.Errorf("GOMAXPROCS is %d after the run, was %d", n, procs)
		}
		if _, count, _ := s.Lateness(); count == 0 {
			t.Error("no round's lateness was noted")
		}
		if n := s.SendErrors(); n != 0 {
			t.Errorf("%d frames were refused", n)
		}
	}()

	const want = 20 // frames on each path
	seen := map[Path][]uint64{}
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(patience); ; {
		n, _, err := unix.Recvfrom(capture, buf, 0)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%v; seen so far: %v", err, seen)
		}
		p, ok := b.find(buf[:n])
		if !ok {
			continue // the kernel's own
		}
		if err := checkFrame(p, buf[:n]); err != nil {
			t.Fatal(err)
		}
		round := binary.BigEndian.Uint64(buf[n-24:])
		if len(seen[p]) > 0 && round != seen[p][len(seen[p])-1]+1 {
			t.Errorf("round %d of path %s follows %v", round, p.Local, seen[p])
		}
		seen[p] = append(seen[p], round)
		done := len(seen) == 4
		for _, rounds := range seen {
			done = done && len(rounds) >= want
		}
		if done {
			break
		}
	}
	for p, rounds := range seen {
		if rounds[0] != world.Round+1 {
			t.Errorf("path %s begins with round %d, want %d", p.Local, rounds[0], world.Round+1)
		}
	}
}

// find returns the path of a captured frame.
func (b *bench) find(f []byte) (Path, bool) {
	for _, g := range b.groups {
		for _, p := range g.Paths {
			n, at := 4, 14+12
			if p.Local.Is6() {
				n, at = 16, 14+8
			}
			if len(f) >= at+2*n && net.IP(f[at:at+n]).Equal(p.Local.AsSlice()) && net.IP(f[at+n:at+2*n]).Equal(p.Remote.AsSlice()) {
				return p, true
			}
		}
	}
	return Path{}, false
}

// TestNewErrors: an interface that does not exist is an error of New, and leaves no descriptor behind.
func TestNewErrors(t *testing.T) {
	count := func() int {
		t.Helper()
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := count()
	if _, err := New(Config{Plait0: 1 << 30}); err == nil {
		t.Error("a sender for no interface")
	}
	if n := count(); n != before {
		t.Errorf("%d descriptors are open, %d were before", n, before)
	}
}
