// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The names of the pair. The first is the one that programs and administrators see.
const (
	Plait0Name = "plait0"
	FarName    = "plait0-far"
)

// ErrForeignLink says that an interface has one of plait's names and is not plait's pair. plait
// neither uses nor deletes it.
var ErrForeignLink = errors.New("interface exists and was not made by plait")

// Plait0 is the veth pair whose near end holds the identities. Each field is an interface index.
type Plait0 struct {
	Near int // plait0
	Far  int // plait0-far
}

// CreatePlait0 makes the pair, or adopts the one that exists without taking it down, and gives both
// ends mtu (bytes), NOARP, no IPv6 link-local address (addr_gen_mode none) and no ear for router
// advertisements. A new pair is left down and without addresses: nothing may pass it before the
// programs are attached, because the far end re-enters the stack. BringUpPlait0 does the rest. The
// error is ErrForeignLink if the name belongs to something else.
func (h *Host) CreatePlait0(mtu int) (Plait0, error) {
	near, far, err := h.findPlait0()
	if err != nil {
		return Plait0{}, err
	}
	if near == nil {
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU = Plait0Name, mtu
		veth := &netlink.Veth{LinkAttrs: a, PeerName: FarName}
		if err := h.nl.LinkAdd(veth); err != nil {
			return Plait0{}, fmt.Errorf("creating link %s: %w", Plait0Name, err)
		}
		if near, far, err = h.findPlait0(); err != nil {
			return Plait0{}, err
		}
		if near == nil {
			return Plait0{}, fmt.Errorf("creating link %s: it vanished", Plait0Name)
		}
		h.log.Info("created the identity interface", "interface", Plait0Name, "index", near.Attrs().Index)
	}
	for _, l := range []netlink.Link{near, far} {
		if err := h.preparePlait0(l, mtu); err != nil {
			return Plait0{}, err
		}
	}
	return Plait0{Near: near.Attrs().Index, Far: far.Attrs().Index}, nil
}

func (h *Host) preparePlait0(l netlink.Link, mtu int) error {
	a := l.Attrs()
	if a.MTU != mtu {
		if err := h.nl.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("setting the MTU of %s to %d: %w", a.Name, mtu, err)
		}
	}
	if a.RawFlags&unix.IFF_NOARP == 0 {
		if err := h.nl.LinkSetARPOff(l); err != nil {
			return fmt.Errorf("switching ARP off on %s: %w", a.Name, err)
		}
	}
	for _, s := range []struct{ name, value string }{
		{"addr_gen_mode", "1"}, // IN6_ADDR_GEN_MODE_NONE
		{"accept_ra", "0"},
	} {
		err := h.setSysctl("net/ipv6/conf/"+a.Name+"/"+s.name, s.value)
		// A kernel without IPv6 has no such file, and nothing to switch off.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// BringUpPlait0 brings both ends up and makes ids the addresses of plait0: IPv4 as /32, IPv6 as /128
// without duplicate address detection, which would keep programs from binding for a second. Other
// addresses are removed from both ends; those that are there already are not touched.
func (h *Host) BringUpPlait0(p Plait0, ids []netip.Addr) error {
	if slices.ContainsFunc(ids, netip.Addr.Is6) {
		// A host can have IPv6 off by default and on where it is used.
		if err := h.setSysctl("net/ipv6/conf/"+Plait0Name+"/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	// The far end first, so that plait0 never is up without carrier.
	for _, index := range []int{p.Far, p.Near} {
		l, err := h.nl.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("looking up link %d: %w", index, err)
		}
		if l.Attrs().Flags&net.FlagUp == 0 {
			if err := h.nl.LinkSetUp(l); err != nil {
				return fmt.Errorf("bringing up %s: %w", l.Attrs().Name, err)
			}
		}
		var want []netip.Addr
		if index == p.Near {
			want = ids
		}
		if err := h.syncAddrs(l, want); err != nil {
			return err
		}
	}
	return nil
}

// syncAddrs makes want, as host prefixes, the addresses of l.
func (h *Host) syncAddrs(l netlink.Link, want []netip.Addr) error {
	name := l.Attrs().Name
	have, err := dump("addresses", func() ([]netlink.Addr, error) {
		return h.nl.AddrList(l, netlink.FAMILY_ALL)
	})
	if err != nil {
		return err
	}
	there := make(map[netip.Addr]bool)
	for _, a := range have {
		p := toPrefix(a.IPNet)
		if p.IsSingleIP() && slices.Contains(want, p.Addr()) {
			there[p.Addr()] = true
			continue
		}
		if err := h.nl.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %s from %s: %w", p, name, err)
		}
	}
	for _, ip := range want {
		if there[ip] {
			continue
		}
		a := &netlink.Addr{IPNet: hostNet(ip)}
		if ip.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.nl.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding %s to %s: %w", ip, name, err)
		}
	}
	return nil
}

// findPlait0 returns both ends of the pair, or nil for both if plait0 does not exist.
func (h *Host) findPlait0() (near, far netlink.Link, err error) {
	near, err = h.nl.LinkByName(Plait0Name)
	if isNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("looking up link %s: %w", Plait0Name, err)
	}
	if near.Type() != "veth" {
		return nil, nil, fmt.Errorf("link %s of type %s: %w", Plait0Name, near.Type(), ErrForeignLink)
	}
	far, err = h.nl.LinkByName(FarName)
	if err != nil && !isNotFound(err) {
		return nil, nil, fmt.Errorf("looking up link %s: %w", FarName, err)
	}
	if err != nil || far.Attrs().ParentIndex != near.Attrs().Index || near.Attrs().ParentIndex != far.Attrs().Index {
		return nil, nil, fmt.Errorf("link %s is not the other end of %s: %w", FarName, Plait0Name, ErrForeignLink)
	}
	return near, far, nil
}

// removePlait0 deletes the pair, and with it its addresses, routes and attached programs.
func (h *Host) removePlait0() error {
	near, _, err := h.findPlait0()
	if err != nil || near == nil {
		return err
	}
	err = h.nl.LinkDel(near)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting link %s: %w", Plait0Name, err)
	}
	return nil
}

func isNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

// hostNet returns ip as the one address of a prefix.
func hostNet(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}

// toPrefix returns n without masking it, the zero Prefix for nil.
func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}
