// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/plait-net/plait/test/lab"
)

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func impair(t *testing.T, l *lab.Lab, fabric string, i lab.Impairment) {
	t.Helper()
	if err := l.Impair(fabric, i); err != nil {
		t.Fatal(err)
	}
}

func TestLoss(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		s := newStream(t, l, "f1", "a", "b", l.Host("b").Uplink("f1").Addr4)
		for _, p := range []float64{0.1, 0.5, 1, 0} {
			const n = 20000
			impair(t, l, "f1", lab.Impairment{Loss: p})
			before := counters(t, l, "f1", "a")
			var c lab.Counters
			got := 0
			for range n / 1000 {
				// In parts, so that no buffer overflows.
				send(t, s.from, s.sink, 1000, 10)
				got += s.sink.drain(t)
			}
			// Neighbour discovery may add a packet or two, to be lost or not.
			eventually(t, func() error {
				c = counters(t, l, "f1", "a")
				c.Lost -= before.Lost
				c.Packets -= before.Packets
				got += s.sink.drain(t)
				if sum := c.Lost + c.Packets; sum < n || uint64(got)+c.Lost < n {
					return fmt.Errorf("%+v and %d arrived: want %d", c, got, n)
				}
				return nil
			})
			sigma := math.Sqrt(n * p * (1 - p))
			if d := math.Abs(float64(c.Lost) - n*p); d > 6*sigma+5 {
				t.Errorf("loss %v: %d of %d lost, arrived %d, want within %.0f", p, c.Lost, n, got, 6*sigma)
			}
		}
	})
}

func TestRate(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		s := newStream(t, l, "f1", "a", "b", l.Host("b").Uplink("f1").Addr6)
		// 4,000 packets are 45 Mbit, several seconds' worth: however this machine stalls, most are dropped.
		const n, size = 4000, 1400
		impair(t, l, "f1", lab.Impairment{Rate: "10mbit", Queue: 50 * time.Millisecond})
		for _, port := range []string{"a", "b"} {
			q := shaper(t, l, "f1", port)
			if q == nil || q.Rate != 10e6/8 || int(q.Limit) < 62500 || int(q.Limit) > 75000 {
				t.Errorf("port %s: %+v, want 1,250,000 bytes/s with 50 ms of queue", port, q)
			}
		}
		if q := shaper(t, l, "f2", "a"); q != nil {
			t.Errorf("fabric f2: %+v, want no limit", q)
		}
		dropped := func() uint32 { return shaper(t, l, "f1", "b").Statistics.Queue.Drops }
		send(t, s.from, s.sink, n, size)
		got := 0
		eventually(t, func() error {
			got += s.sink.drain(t)
			if sum := got + int(dropped()); sum < n {
				return fmt.Errorf("%d of %d packets arrived or dropped", sum, n)
			}
			return nil
		})
		if got < 40 || got > n/2 {
			t.Errorf("%d of %d packets arrived, want a queue's worth and some more", got, n)
		}

		// A cut and its healing leave it alone.
		cut(t, l, "f1", lab.Carrier, "", "")
		heal(t, l, "f1")
		if q := shaper(t, l, "f1", "b"); q == nil || q.Rate != 10e6/8 {
			t.Errorf("after heal: %+v, want the same limit", q)
		}
		impair(t, l, "f1", lab.Impairment{Rate: "1gbit"})
		if q := shaper(t, l, "f1", "b"); q == nil || q.Rate != 1e9/8 {
			t.Errorf("after a change: %+v, want 125,000,000 bytes/s", q)
		}
		for range 2 {
			impair(t, l, "f1", lab.Impairment{})
			if q := shaper(t, l, "f1", "b"); q != nil {
				t.Errorf("after removal: %+v", q)
			}
		}
	})
}

// shaper returns the rate limit at a port, or nil.
func shaper(t *testing.T, l *lab.Lab, fabric, port string) (found *netlink.Tbf) {
	t.Helper()
	err := l.Fabric(fabric).Do(func() error {
		ln, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		all, err := netlink.QdiscList(ln)
		for _, q := range all {
			if tbf, ok := q.(*netlink.Tbf); ok {
				found = tbf
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const testDelay = 20 * time.Millisecond

func TestDelay(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		a, b := l.Host("a"), l.Host("b")
		reach(t, a, b, "f1")
		impair(t, l, "f1", lab.Impairment{Delay: testDelay})
		for _, to := range locators(b, "f1") {
			if rtt := fastest(t, a, to); rtt < 2*testDelay {
				t.Errorf("ping of %v took %v, want at least %v", to, rtt, 2*testDelay)
			}
			transfer(t, a, b, to)
		}
		quick(t, a, b.Uplink("f2").Addr4)
		// Cuts work on what is delayed.
		s := newStream(t, l, "f1", "a", "b", b.Uplink("f1").Addr4)
		cut(t, l, "f1", lab.Silent, "", "")
		s.isCut(t)
		heal(t, l, "f1")
		s.passes(t)
		cut(t, l, "f1", lab.Carrier, "", "")
		heal(t, l, "f1")
		if rtt := fastest(t, a, b.Uplink("f1").Addr4); rtt < 2*testDelay {
			t.Errorf("after the carrier came back: %v, want at least %v", rtt, 2*testDelay)
		}
		// With a rate limit behind it.
		impair(t, l, "f1", lab.Impairment{Delay: testDelay, Rate: "100mbit"})
		transfer(t, a, b, b.Uplink("f1").Addr6)
		if q := shaper(t, l, "f1", "b"); q == nil || q.Statistics.Basic.Bytes < transferBytes {
			t.Errorf("rate limit saw %+v, want all", q)
		}
		impair(t, l, "f1", lab.Impairment{})
		undelayed(t, l)
	})
}

// undelayed waits until pings are fast again and no relay has left a device behind.
func undelayed(t *testing.T, l *lab.Lab) {
	t.Helper()
	quick(t, l.Host("a"), l.Host("b").Uplink("f1").Addr4)
	eventually(t, func() error {
		out, err := l.Fabric("f1").Command(t.Context(), "ip", "-brief", "link").Output()
		if err != nil || strings.Contains(string(out), "rly") {
			return fmt.Errorf("a tap is left: %w %s", err, out)
		}
		return nil
	})
}

// quick waits until a ping comes back sooner than a delayed one could.
func quick(t *testing.T, from *lab.Host, to netip.Addr) {
	t.Helper()
	eventually(t, func() error {
		if rtt := fastest(t, from, to); rtt >= 2*testDelay {
			return fmt.Errorf("ping of %v from %s takes %v", to, from.Name, rtt)
		}
		return nil
	})
}

// fastest is the shortest round trip of some.
func fastest(t *testing.T, from *lab.Host, to netip.Addr) time.Duration {
	t.Helper()
	out := output(t, from, "ping", "-q", "-c3", "-w30", "-i0.1", to.String())
	i := strings.Index(out, "mdev = ")
	if i < 0 {
		t.Fatalf("ping: %s", out)
	}
	ms, err := strconv.ParseFloat(strings.Split(out[i+len("mdev = "):], "/")[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ms * float64(time.Millisecond))
}

const transferBytes = 3 << 20

// transfer sends bytes over TCP and compares what arrives.
func transfer(t *testing.T, from, to *lab.Host, address netip.Addr) {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	data := make([]byte, transferBytes)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(in, data, 0o600); err != nil {
		t.Fatal(err)
	}
	bracketed, family := address.String(), "TCP4"
	if address.Is6() {
		bracketed, family = "["+bracketed+"]", "TCP6"
	}
	server := to.Command(t.Context(), "socat", "-u", family+"-LISTEN:5001,reuseaddr,bind="+bracketed, "CREATE:"+out)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		msg, err := from.Command(t.Context(), "socat", "-u", "OPEN:"+in, family+":"+bracketed+":5001").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, msg)
		}
		return nil
	})
	if err := server.Wait(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if g, w := sha256.Sum256(got), sha256.Sum256(data); g != w {
		t.Errorf("%d bytes of %d arrived, or others: %s", len(got), len(data), hex.EncodeToString(g[:4]))
	}
}

func TestDetachedRelay(t *testing.T) {
	l := up(t, lab.Options{})
	a, to := l.Host("a"), l.Host("b").Uplink("f1").Addr4
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func() int {
		t.Helper()
		o, err := lab.Open(l.Name) // as another process would
		if err != nil {
			t.Fatal(err)
		}
		o.DetachRelays(self, relayArg)
		impair(t, o, "f1", lab.Impairment{Delay: testDelay})
		b, err := os.ReadFile(filepath.Join(l.Dir(), "relay.f1"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if rtt := fastest(t, a, to); rtt < 2*testDelay {
			t.Errorf("ping took %v, want at least %v", rtt, 2*testDelay)
		}
		return pid
	}
	ended := func(pid int) {
		t.Helper()
		eventually(t, func() error {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("relay %d is still there: %w", pid, err)
			}
			return nil
		})
	}

	first := start()
	second := start()
	ended(first)
	impair(t, l, "f1", lab.Impairment{Loss: 0.01})
	ended(second)
	impair(t, l, "f1", lab.Impairment{})
	undelayed(t, l)

	// Its death leaves a fabric that works.
	third := start()
	if err := syscall.Kill(third, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended(third)
	undelayed(t, l)
	fourth := start()

	// A relay inside this process takes over, and gives way.
	impair(t, l, "f1", lab.Impairment{Delay: testDelay})
	ended(fourth)
	if rtt := fastest(t, a, to); rtt < 2*testDelay {
		t.Errorf("ping took %v, want at least %v", rtt, 2*testDelay)
	}
	o, err := lab.Open(l.Name)
	if err != nil {
		t.Fatal(err)
	}
	impair(t, o, "f1", lab.Impairment{})
	quick(t, a, to)
	fifth := start()
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	ended(fifth)

	o.DetachRelays("false")
	if err := o.Impair("f1", lab.Impairment{Delay: testDelay}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("impairing a lab that is down: %v", err)
	}
}

func TestRelayThatDoesNotStart(t *testing.T) {
	l := up(t, lab.Options{})
	l.DetachRelays("sh", "-c", "echo no such thing >&2; exit 3")
	err := l.Impair("f1", lab.Impairment{Delay: testDelay})
	if err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("error %v, want what the program said", err)
	}
	reach(t, l.Host("a"), l.Host("b"), "f1")
}

func TestImpairRefuses(t *testing.T) {
	l := up(t, lab.Options{})
	for _, i := range []lab.Impairment{
		{Loss: -0.1}, {Loss: 1.1}, {Loss: math.NaN()},
		{Rate: "fast"}, {Queue: time.Second}, {Rate: "1mbit", Queue: -1}, {Rate: "1mbit", Queue: time.Minute},
		{Delay: -1}, {Delay: time.Minute},
	} {
		if err := l.Impair("f1", i); err == nil {
			t.Errorf("%+v is no error", i)
		}
	}
	if err := l.Impair("f3", lab.Impairment{}); err == nil {
		t.Error("impairing f3 is no error")
	}
}
