// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/plait-net/plait/bpf"
)

// The Go mirrors of the C structs in headers/types.h, whose comments say who writes what.
type (
	// Group is a peer in one address family: its buckets and its range of paths.
	Group = bpf.EgressGroup
	// GroupState is the liveness of a group.
	GroupState = bpf.EgressGroupState
	// PathState is the liveness of a path.
	PathState = bpf.EgressPathState
	// PathStats is the traffic of a path.
	PathStats = bpf.EgressPathStats
	// PathKeys are the SipHash keys of a path.
	PathKeys = bpf.EgressPathKeys
	// Settings are shared by all programs.
	Settings = bpf.EgressSettings
	// NativePorts never carry translated traffic.
	NativePorts = bpf.EgressNativePorts
	// Event is a transition.
	Event = bpf.EgressEvent
)

// Sizes and constants of headers/types.h.
const (
	MaxPaths  = 16  // paths of one group
	Buckets   = 256 // of one group
	Mark      = 128 // hop limits from here on are translated traffic
	SBFDPort  = 7784
	ProbePort = 61784
	CapMark   = uint32(bpf.EgressGroupCapCAP_MARK)
)

// Kinds of events.
const (
	EventFirst     = uint32(bpf.EgressEventKindEV_FIRST)
	EventLost      = uint32(bpf.EgressEventKindEV_LOST)
	EventCongested = uint32(bpf.EgressEventKindEV_CONGESTED)
	EventBack      = uint32(bpf.EgressEventKindEV_BACK)
	EventPeerEpoch = uint32(bpf.EgressEventKindEV_PEER_EPOCH)
)

// LostReason says why a path lost fresh.
func LostReason(reason uint32) string {
	switch bpf.EgressLostReason(reason) {
	case bpf.EgressLostReasonLOST_SILENT:
		return "no answer"
	case bpf.EgressLostReasonLOST_NOT_HEARD:
		return "peer does not hear us"
	}
	return ""
}

// Family is an address family, AF_INET or AF_INET6.
type Family uint32

// The two families.
const (
	IPv4 Family = 2
	IPv6 Family = 10
)

// FamilyOf returns the family of an address; IPv4-mapped addresses count as IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns "4" or "6".
func (f Family) String() string {
	if f == IPv4 {
		return "4"
	}
	return "6"
}

// Path is what the packet programs need to know of a path.
type Path struct {
	Local, Remote          netip.Addr // locators
	Identity, PeerIdentity netip.Addr
	NextHop                netip.Addr // invalid: no route
	Ifindex                int        // 0: the uplink does not exist now
	Group                  uint32
	Uplink                 uint8 // bit in Settings.Uplinks
	Number                 uint8 // within the group
}

// words returns the address as struct addr holds it: wire order, IPv4 in the first word.
func words(a netip.Addr) (w [4]uint32) {
	if !a.IsValid() {
		return w
	}
	b := a.AsSlice()
	for i := range len(b) / 4 {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func addrOf(w [4]uint32, f Family) netip.Addr {
	var b [16]byte
	for i, x := range w {
		binary.NativeEndian.PutUint32(b[4*i:], x)
	}
	if f == IPv4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

// sum is the one's complement sum (RFC 1071) of 32-bit words.
func sum(parts ...[4]uint32) uint32 {
	var s uint64
	for _, p := range parts {
		for _, w := range p {
			s += uint64(w)
		}
	}
	for s>>32 != 0 {
		s = s&0xffffffff + s>>32
	}
	return uint32(s)
}

func sumSub(a, b uint32) uint32 {
	s := uint64(a) + uint64(^b)
	return uint32(s&0xffffffff + s>>32)
}

func (p Path) encode() bpf.EgressPath {
	local, remote := words(p.Local), words(p.Remote)
	id, peer := words(p.Identity), words(p.PeerIdentity)
	wire, inner := sum(local, remote), sum(id, peer)
	var e bpf.EgressPath
	e.Local.A, e.Remote.A, e.Identity.A, e.PeerIdentity.A = local, remote, id, peer
	e.Nexthop.A = words(p.NextHop)
	e.CsumEgress, e.CsumIngress = sumSub(wire, inner), sumSub(inner, wire)
	e.Ifindex = uint32(p.Ifindex)
	e.Group = p.Group
	e.Family = uint8(FamilyOf(p.Local))
	e.Uplink, e.Number = p.Uplink, p.Number
	if p.NextHop.IsValid() {
		e.NexthopFamily = uint8(FamilyOf(p.NextHop))
	}
	return e
}

func decodePath(e *bpf.EgressPath) Path {
	f := Family(e.Family)
	p := Path{
		Local: addrOf(e.Local.A, f), Remote: addrOf(e.Remote.A, f),
		Identity: addrOf(e.Identity.A, f), PeerIdentity: addrOf(e.PeerIdentity.A, f),
		Ifindex: int(e.Ifindex), Group: e.Group, Uplink: e.Uplink, Number: e.Number,
	}
	if e.NexthopFamily != 0 {
		p.NextHop = addrOf(e.Nexthop.A, Family(e.NexthopFamily))
	}
	return p
}

func identityKey(a netip.Addr) (k bpf.EgressIdentityKey) {
	k.Addr.A = words(netip.AddrFrom16(a.As16()))
	return k
}

func pair4(local, remote netip.Addr) bpf.EgressPair4Key {
	return bpf.EgressPair4Key{Local: words(local)[0], Remote: words(remote)[0]}
}

func pair6(local, remote netip.Addr) (k bpf.EgressPair6Key) {
	k.Local.A, k.Remote.A = words(local), words(remote)
	return k
}

// Reason is why a packet was dropped or refused; the numbers are those of enum reason.
type Reason uint32

// reasonNames are label values of a metric: never renamed.
var reasonNames = map[Reason]string{
	Reason(bpf.EgressReasonR_EGRESS_NOT_IP):        "egress_not_ip",
	Reason(bpf.EgressReasonR_EGRESS_TRUNCATED):     "egress_truncated",
	Reason(bpf.EgressReasonR_EGRESS_UNKNOWN_PEER):  "egress_unknown_peer",
	Reason(bpf.EgressReasonR_EGRESS_BAD_SOURCE):    "egress_bad_source",
	Reason(bpf.EgressReasonR_EGRESS_NOT_ANNOUNCED): "egress_not_announced",
	Reason(bpf.EgressReasonR_EGRESS_UNSUPPORTED):   "egress_unsupported",
	Reason(bpf.EgressReasonR_EGRESS_NATIVE_PORT):   "egress_native_port",
	Reason(bpf.EgressReasonR_EGRESS_NO_PATH):       "egress_no_path",
	Reason(bpf.EgressReasonR_EGRESS_REWRITE):       "egress_rewrite",
	Reason(bpf.EgressReasonR_EGRESS_FAR_END):       "egress_far_end",
	Reason(bpf.EgressReasonR_INGRESS_TRUNCATED):    "ingress_truncated",
	Reason(bpf.EgressReasonR_INGRESS_UNSUPPORTED):  "ingress_unsupported",
	Reason(bpf.EgressReasonR_INGRESS_REWRITE):      "ingress_rewrite",
	Reason(bpf.EgressReasonR_INGRESS_SHORT_LINEAR): "ingress_short_linear",
	Reason(bpf.EgressReasonR_PROBE_TRUNCATED):      "probe_truncated",
	Reason(bpf.EgressReasonR_PROBE_FORMAT):         "probe_format",
	Reason(bpf.EgressReasonR_PROBE_FOREIGN):        "probe_foreign",
	Reason(bpf.EgressReasonR_PROBE_KEY):            "probe_key",
	Reason(bpf.EgressReasonR_PROBE_TAG):            "probe_tag",
	Reason(bpf.EgressReasonR_PROBE_EPOCH):          "probe_epoch",
	Reason(bpf.EgressReasonR_PROBE_REPLAYED):       "probe_replayed",
	Reason(bpf.EgressReasonR_PROBE_FUTURE):         "probe_future",
	Reason(bpf.EgressReasonR_PROBE_RATE):           "probe_rate",
	Reason(bpf.EgressReasonR_PROBE_UNCONFIRMED):    "probe_unconfirmed",
}

// String returns the name under which metrics and status show the reason.
func (r Reason) String() string {
	if n, ok := reasonNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// Dropped says whether packets of this reason were dropped, not only counted.
func (r Reason) Dropped() bool {
	return r != Reason(bpf.EgressReasonR_PROBE_FOREIGN) &&
		r != Reason(bpf.EgressReasonR_PROBE_UNCONFIRMED)
}
