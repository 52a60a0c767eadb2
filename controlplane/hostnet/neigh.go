// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Neighbour is a next hop on an uplink.
type Neighbour struct {
	Index int // of the interface
	IP    netip.Addr
}

// SyncNeighbours has the kernel keep the given next hops resolved, by ARP or neighbour discovery,
// whether there is traffic or not and whether plait runs or not (NTF_EXT_MANAGED). The entries also
// carry NTF_EXT_LEARNED, without which the kernel would collect one that does not answer and so stop
// asking, and protocol [Protocol], by which plait finds its own: those not in want are removed.
//
// An entry that somebody else takes care of (permanent, NOARP, managed or learnt from elsewhere) is
// left alone, wanted or not. A next hop whose interface is gone or down is left out without an error;
// it is the next call's.
func (h *Host) SyncNeighbours(want []Neighbour) error {
	have, err := h.neighbours()
	if err != nil {
		return err
	}
	missing := make(map[Neighbour]bool, len(want))
	for _, n := range want {
		missing[n] = true
	}
	var errs []error
	for _, e := range have {
		wanted := missing[e.Neighbour]
		switch {
		case e.ours() && wanted, e.others():
			delete(missing, e.Neighbour)
		case e.ours():
			errs = append(errs, h.deleteNeighbour(e.Neighbour))
		}
	}
	for n := range missing {
		if err := h.manageNeighbour(n); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// DropNeighbours forgets the given next hops on an interface that lost its carrier, and with them the
// packets that wait for their resolution: TCP does not send again what it believes to be queued in
// its own host, and the kernel would keep such a packet for three seconds. Entries that somebody
// else looks after are left alone. The next SyncNeighbours makes ours anew.
func (h *Host) DropNeighbours(index int, ips []netip.Addr) error {
	have, err := h.neighbours()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range have {
		if n.Index == index && slices.Contains(ips, n.IP) && !n.others() {
			errs = append(errs, h.deleteNeighbour(n.Neighbour))
		}
	}
	return errors.Join(errs...)
}

// neighbour is what plait needs of an RTM_NEWNEIGH message.
type neighbour struct {
	Neighbour
	state    uint16 // NUD_*
	flags    uint8  // NTF_*
	extFlags uint32 // NTF_EXT_*
	protocol uint8
}

// ours tells whether plait made the entry. The kernel keeps the protocol when it takes the other
// marks off an entry that is in use and cannot go at once.
func (n neighbour) ours() bool {
	return n.protocol == Protocol && n.extFlags&netlink.NTF_EXT_MANAGED != 0
}

// others tells whether somebody else looks after the entry.
func (n neighbour) others() bool {
	return !n.ours() && (n.state&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 ||
		n.flags&netlink.NTF_EXT_LEARNED != 0 || n.extFlags&netlink.NTF_EXT_MANAGED != 0)
}

// sizeofNdMsg is that of struct ndmsg: family, 3 bytes of padding, ifindex, state, flags, type.
const sizeofNdMsg = 12

// parseNeighbour reads the payload of an RTM_NEWNEIGH or RTM_DELNEIGH message. It is false for what
// is no entry of IPv4 or IPv6.
func parseNeighbour(m []byte) (neighbour, bool) {
	if len(m) < sizeofNdMsg || m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return neighbour{}, false
	}
	n := neighbour{state: binary.NativeEndian.Uint16(m[8:]), flags: m[10]}
	n.Index = int(binary.NativeEndian.Uint32(m[4:]))
	attrs(m[sizeofNdMsg:], func(typ uint16, v []byte) {
		switch typ {
		case netlink.NDA_DST:
			n.IP = attrAddr(v)
		case netlink.NDA_FLAGS_EXT:
			n.extFlags = attrUint32(v)
		case netlink.NDA_PROTOCOL:
			if len(v) > 0 {
				n.protocol = v[0]
			}
		}
	})
	return n, n.IP.IsValid()
}

func (h *Host) neighbours() ([]neighbour, error) {
	return dump("neighbours", func() ([]neighbour, error) {
		var all []neighbour
		err := h.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, unix.RTM_NEWNEIGH, func(m []byte) {
			if n, ok := parseNeighbour(m); ok {
				all = append(all, n)
			}
		}, rawData(make([]byte, sizeofNdMsg)))
		return all, err
	})
}

func (h *Host) manageNeighbour(n Neighbour) error {
	// The library's call cannot write the protocol.
	err := h.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_ACK, 0, nil,
		ndmsg(n, netlink.NTF_EXT_LEARNED),
		nl.NewRtAttr(netlink.NDA_DST, n.IP.AsSlice()),
		nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{Protocol}),
		nl.NewRtAttr(netlink.NDA_FLAGS_EXT, nl.Uint32Attr(netlink.NTF_EXT_MANAGED)))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENETDOWN) {
		h.log.Debug("no neighbour on an interface that is gone or down", "index", n.Index, "ip", n.IP)
		return nil
	}
	if err != nil {
		return fmt.Errorf("resolving neighbour %s on interface %d: %w", n.IP, n.Index, err)
	}
	return nil
}

func (h *Host) deleteNeighbour(n Neighbour) error {
	err := h.request(unix.RTM_DELNEIGH, unix.NLM_F_ACK, 0, nil,
		ndmsg(n, 0), nl.NewRtAttr(netlink.NDA_DST, n.IP.AsSlice()))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing neighbour %s on interface %d: %w", n.IP, n.Index, err)
	}
	return nil
}

// ndmsg returns the header of a neighbour message. State NONE leaves an entry's state as it is.
func ndmsg(n Neighbour, flags uint8) *netlink.Ndmsg {
	family := uint8(unix.AF_INET6)
	if n.IP.Is4() {
		family = unix.AF_INET
	}
	return &netlink.Ndmsg{Family: family, Index: uint32(n.Index), Flags: flags, Type: unix.RTN_UNICAST}
}
