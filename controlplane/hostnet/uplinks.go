// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is the state of an interface that plait sends and receives on.
type Uplink struct {
	Name    string // the kernel's name, also where the configuration uses an alternative one
	Index   int
	MTU     int    // bytes
	Driver  string // what ethtool calls it; empty where the driver does not say
	Type    string // as iproute2 calls it: "ether" is what plait can send on
	AdminUp bool
	Carrier bool // the lower layer is up and so is the interface's operational state (RFC 2863)
	Master  int  // index of the bridge, bond or VRF that the interface belongs to; 0 for none
	VRF     int  // index of the VRF, if Master is one; 0 for none

	// Addrs are the addresses that can be locators: of global scope, neither temporary, deprecated
	// nor tentative, and not found to be a duplicate. They are in the kernel's order, in which a
	// primary IPv4 address precedes its secondaries.
	Addrs []netip.Addr
}

// Uplinks returns the state of the named interfaces. One that does not exist is not in the map; that
// is not an error.
func (h *Host) Uplinks(names []string) (map[string]Uplink, error) {
	ups := make(map[string]Uplink, len(names))
	byIndex := make(map[int]string, len(names))
	for _, name := range names {
		l, err := h.nl.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking up link %s: %w", name, err)
		}
		a := l.Attrs()
		u := Uplink{
			Name:    a.Name,
			Index:   a.Index,
			MTU:     a.MTU,
			Type:    a.EncapType,
			AdminUp: a.Flags&net.FlagUp != 0,
			Carrier: hasCarrier(a.RawFlags),
			Master:  a.MasterIndex,
		}
		if u.VRF, err = h.vrf(a.MasterIndex); err != nil {
			return nil, err
		}
		// Not every driver answers, and no decision needs the answer.
		u.Driver, _ = h.ethtool.DriverName(a.Name)
		ups[name] = u
		byIndex[a.Index] = name
	}
	if len(ups) == 0 {
		return ups, nil
	}

	addrs, err := dump("addresses", func() ([]netlink.Addr, error) {
		return h.nl.AddrList(nil, netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		name, ok := byIndex[a.LinkIndex]
		if !ok || !isLocator(a) {
			continue
		}
		u := ups[name]
		u.Addrs = append(u.Addrs, toPrefix(a.IPNet).Addr())
		ups[name] = u
	}
	return ups, nil
}

// vrf returns index if it is that of a VRF, else 0.
func (h *Host) vrf(index int) (int, error) {
	if index == 0 {
		return 0, nil
	}
	l, err := h.nl.LinkByIndex(index)
	if isNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking up link %d: %w", index, err)
	}
	if l.Type() != "vrf" {
		return 0, nil
	}
	return index, nil
}

// hasCarrier reads an interface's flags. IFF_RUNNING is the operational state, which an
// authenticator (802.1X) can hold back while the lower layer is up.
func hasCarrier(flags uint32) bool {
	const both = unix.IFF_LOWER_UP | unix.IFF_RUNNING
	return flags&both == both
}

// isLocator tells whether an address can stand on the wire as plait's own.
func isLocator(a netlink.Addr) bool {
	unusable := unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	ip := toPrefix(a.IPNet).Addr()
	if ip.Is6() {
		// The same bit means "secondary" for IPv4, which is as good as any.
		unusable |= unix.IFA_F_TEMPORARY
	}
	return ip.IsValid() && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unusable == 0
}
