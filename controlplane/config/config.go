// SPDX-License-Identifier: Apache-2.0

// Package config reads plait's YAML configuration.
//
// Parsing is strict and pure: it looks at nothing but the text. Unknown keys are errors, every value is checked, and all
// problems of a file are reported at once, each with its line, its field and what would be right. What depends on the
// machine (interfaces, addresses, routes) is for others to check; the Pos fields let them point into the file as well.
//
// docs/configuration.md describes the file for its users.
package config

import (
	"fmt"
	"net/netip"
	"os"
	"time"
)

// Limits of the file. They follow from the tables of the kernel programs.
const (
	MaxUplinks = 64   // uplinks of this host
	MaxPeers   = 2048 // peers
	MaxPaths   = 16   // paths to one peer in one family

	MaxFileSize = 4 << 20 // bytes; 2048 peers of 16 IPv6 locators each need less than 2 MiB
)

// Ranges of the liveness settings, all inclusive. Shorter rounds than 1 ms are refused: a sleeping thread wakes up too
// late, too often, for the rounds to be regular.
const (
	MinInterval     = time.Millisecond
	MaxInterval     = time.Second
	MaxIdleInterval = 10 * time.Second // its minimum is the interval
	MinMultiplier   = 3
	MaxMultiplier   = 50
	MaxHoldDown     = 10 * time.Minute // its minimum is 0
	MinBudget       = 100
	MaxBudget       = 1_000_000
)

// DefaultMetricsListen is where metrics are served if the file does not say: on the loopback address only.
const DefaultMetricsListen = "127.0.0.1:9555"

// Config is a configuration without contradictions in itself: the result of Parse.
type Config struct {
	File string // name of the file, for messages

	// Host is this host's name, as its peers write it. It goes into the derivation of keys.
	Host string

	// Identity has at least one address.
	Identity    Addrs
	IdentityPos Pos

	Uplinks []Uplink // 1..MaxUplinks, names are unique
	Peers   []Peer   // 0..MaxPeers, names are unique and not Host

	Liveness    Liveness
	NativePorts NativePorts

	// MetricsListen is where metrics are served, as net.Listen takes it; "" is nowhere.
	MetricsListen string
	MetricsPos    Pos

	// Warnings are problems that do not stop anything, in the order of the file.
	Warnings Problems
}

// Uplink is a local interface that plait sends and receives on.
type Uplink struct {
	Pos  Pos
	Name string // of the interface

	// Addresses are the uplink's locators, these and no others. Empty: the one global address of each family that the
	// interface has.
	Addresses    []netip.Addr
	AddressesPos Pos

	// Gateways are the next hops for locators that are not on-link. A zero one: from the kernel's routes through the
	// uplink. They may be link-local.
	Gateways    Addrs
	GatewaysPos Pos

	Weight  uint8 // 1..255, its share of buckets relative to the other uplinks
	Ingress IngressHook
	Fabric  string // label; "" is none
}

// Locators returns the listed addresses of family f with the uplink's label. It returns nothing where the file leaves
// the addresses to the interface.
func (u *Uplink) Locators(f Family) []Locator {
	var out []Locator
	for _, a := range u.Addresses {
		if FamilyOf(a) == f {
			out = append(out, Locator{Addr: a, Fabric: u.Fabric})
		}
	}
	return out
}

// slots is how many locators of family f the uplink will have, at most.
func (u *Uplink) slots(f Family) int {
	if len(u.Addresses) == 0 {
		return 1
	}
	return len(u.Locators(f))
}

// IngressHook says where an uplink's ingress program is attached.
type IngressHook string

// The hooks of the ingress program.
const (
	IngressAuto IngressHook = "auto" // native XDP on NICs where driver and MTU allow it, tcx elsewhere
	IngressXDP  IngressHook = "xdp"  // native XDP
	IngressTC   IngressHook = "tc"   // tcx
)

// Peer is a remote host that runs plait.
type Peer struct {
	Pos  Pos
	Name string

	Identity Addrs // at least one address
	Locators []Locator

	// KeyFile is an absolute path: the peer's own key, or the site's. KeyPos is where it was written.
	KeyFile string
	KeyPos  Pos
}

// Liveness says how paths are probed.
type Liveness struct {
	Interval     time.Duration // of rounds to active peers, MinInterval..MaxInterval
	IdleInterval time.Duration // of rounds to all others, Interval..MaxIdleInterval
	HoldDown     time.Duration // that a path must answer before it is up again, 0..MaxHoldDown
	Multiplier   int           // rounds missed until a path is not fresh, MinMultiplier..MaxMultiplier
	Budget       int           // probes/s that the whole host sends at most, MinBudget..MaxBudget
}

// DefaultLiveness is what a file without a liveness section gets.
func DefaultLiveness() Liveness {
	return Liveness{
		Interval:     time.Millisecond,
		IdleInterval: time.Second,
		HoldDown:     time.Second,
		Multiplier:   3,
		Budget:       20000,
	}
}

// NativePorts are TCP and UDP ports, source or destination, whose packets are never translated, because their protocols
// send a hop limit of 255 themselves (GTSM, RFC 5082).
type NativePorts struct {
	TCP, UDP []uint16
}

// DefaultNativePorts are BGP (179), single-hop BFD (3784), BFD echo (3785) and multihop BFD (4784); RFC 5881, RFC 5883.
func DefaultNativePorts() NativePorts {
	return NativePorts{TCP: []uint16{179}, UDP: []uint16{3784, 3785, 4784}}
}

// Family is an address family.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are both families, in the order in which they are reported.
var Families = [...]Family{IPv4, IPv6}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// FamilyOf returns the family of a valid address that is not an IPv4-mapped one.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Addrs is at most one address of each family. A zero netip.Addr means none.
type Addrs struct {
	V4, V6 netip.Addr
}

// Of returns the address of family f, zero if there is none.
func (a Addrs) Of(f Family) netip.Addr {
	if f == IPv4 {
		return a.V4
	}
	return a.V6
}

// All returns the valid addresses, IPv4 first.
func (a Addrs) All() []netip.Addr {
	var out []netip.Addr
	for _, f := range Families {
		if x := a.Of(f); x.IsValid() {
			out = append(out, x)
		}
	}
	return out
}

func (a *Addrs) set(x netip.Addr) {
	if x.Is4() {
		a.V4 = x
	} else {
		a.V6 = x
	}
}

// Load opens and parses the file at path. An error of its content is a Problems, see Parse.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	return Parse(f, path)
}
