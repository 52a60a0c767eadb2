// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CutMode says how a fabric fails.
type CutMode int

const (
	// Silent drops everything that enters the fabric, from all hosts at once. Interfaces stay up.
	Silent CutMode = iota
	// Carrier takes the fabric's end of the cables down, so that hosts see no carrier.
	Carrier
	// OneWay drops what enters the fabric at one host. The other direction works on.
	OneWay
)

// String returns "silent", "carrier" or "oneway".
func (m CutMode) String() string {
	switch m {
	case Silent:
		return "silent"
	case Carrier:
		return "carrier"
	case OneWay:
		return "oneway"
	}
	return fmt.Sprintf("CutMode(%d)", int(m))
}

// ParseCutMode is the inverse of String.
func ParseCutMode(s string) (CutMode, error) {
	for _, m := range []CutMode{Silent, Carrier, OneWay} {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("cut %q: want silent, carrier or oneway", s)
}

// Cut makes a fabric fail and returns when, on CLOCK_MONOTONIC.
//
// Silent: from and to are empty. One word is written, which all programs of the fabric read at their
// next packet; the time is that of the write. Packets that are past the port by then still arrive.
//
// OneWay: from is the host whose packets are dropped; to is the host they are for, or empty for any.
// With two hosts, or for any, everything that enters at from is dropped, neighbour discovery included.
// With more hosts only packets to a locator of to are, ARP for one included; in a flat lab multicast
// neighbour solicitations pass. The time is that of the write, as with Silent.
//
// Carrier: from is the host that loses its carrier, or empty for all; to is empty. The time is that
// before the first interface is taken down; the kernel takes some milliseconds for each.
//
// Cuts add up until Heal.
func (l *Lab) Cut(fabric string, m CutMode, from, to string) (at time.Duration, err error) {
	f := l.Fabric(fabric)
	if f == nil {
		return 0, fmt.Errorf("lab %s has no fabric %q: want f1 to f%d", l.Name, fabric, len(l.Fabrics))
	}
	for _, name := range []string{from, to} {
		if name != "" && l.Host(name) == nil {
			return 0, fmt.Errorf("lab %s has no host %q", l.Name, name)
		}
	}
	switch m {
	case Silent:
		if from != "" || to != "" {
			return 0, errors.New("a silent cut concerns all hosts: want none named")
		}
	case Carrier:
		if to != "" {
			return 0, errors.New("carrier is lost at one end: want no second host")
		}
		return l.cutCarrier(f, from)
	case OneWay:
		if from == "" || from == to {
			return 0, errors.New("a one-way cut needs the host it starts at, and another one or none it ends at")
		}
	default:
		return 0, fmt.Errorf("%v: want Silent, Carrier or OneWay", m)
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := l.config()
	if err != nil {
		return 0, err
	}
	word, value := &c.fabrics[f.Number-1].Cut, uint64(math.MaxUint64)
	if m == OneWay {
		word = &c.ports[l.portIndex(f, l.Host(from))].Cut
		if to != "" && len(l.Hosts) > 2 {
			value = *word | 1<<(l.Host(to).Number-1)
		}
	}
	at = Monotonic()
	store(word, value)
	return at, nil
}

func (l *Lab) cutCarrier(f *Fabric, host string) (at time.Duration, err error) {
	err = f.Do(func() error {
		var ports []netlink.Link
		for _, h := range l.Hosts {
			if host != "" && h.Name != host {
				continue
			}
			p, err := netlink.LinkByName(h.Name)
			if err != nil {
				return fmt.Errorf("finding port %s of fabric %s: %w", h.Name, f.Name, err)
			}
			ports = append(ports, p)
		}
		at = Monotonic()
		for _, p := range ports {
			if err := netlink.LinkSetDown(p); err != nil {
				return fmt.Errorf("taking port %s of fabric %s down: %w", p.Attrs().Name, f.Name, err)
			}
		}
		return nil
	})
	return at, err
}

// Heal undoes every cut of the fabric and returns once all carriers are back. Impairments stay. A
// fabric that is not cut is not an error.
func (l *Lab) Heal(fabric string) error {
	f := l.Fabric(fabric)
	if f == nil {
		return fmt.Errorf("lab %s has no fabric %q: want f1 to f%d", l.Name, fabric, len(l.Fabrics))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := l.config()
	if err != nil {
		return err
	}
	store(&c.fabrics[f.Number-1].Cut, 0)
	for _, h := range l.Hosts {
		store(&c.ports[l.portIndex(f, h)].Cut, 0)
	}
	return f.Do(func() error {
		for _, h := range l.Hosts {
			p, err := netlink.LinkByName(h.Name)
			if err != nil {
				return fmt.Errorf("finding port %s of fabric %s: %w", h.Name, f.Name, err)
			}
			if err := netlink.LinkSetUp(p); err != nil {
				return fmt.Errorf("taking port %s of fabric %s up: %w", h.Name, f.Name, err)
			}
		}
		for _, h := range l.Hosts {
			if err := waitUp(context.Background(), h.Name); err != nil {
				return fmt.Errorf("healing fabric %s: %w", f.Name, err)
			}
		}
		return nil
	})
}

// Monotonic returns CLOCK_MONOTONIC, as the kernel programs and Cut see it.
func Monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // never fails
	return time.Duration(ts.Nano())
}
