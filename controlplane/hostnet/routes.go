// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoRoute says that no route leads to an address through the interface asked for.
var ErrNoRoute = errors.New("no route through this uplink")

// Routes is what the kernel's routing tables held at one moment, for some interfaces. It never
// changes and may be used by several goroutines.
//
// It answers another question than the kernel does: not which interface a packet should leave by, but
// which next hop it has if it leaves by this one. (`ip route get ... oif` does not answer it either:
// the kernel takes every destination for on-link if no route through that interface matches.)
type Routes struct {
	byIndex map[int]*table
}

// table holds the best route to each prefix through one interface.
type table struct {
	best map[netip.Prefix]candidate
	// Lengths that occur, longest first: what a look-up has to try.
	len4, len6 []int
}

// candidate is one way to reach a prefix. The first fields, in their order, say which is better.
type candidate struct {
	notMain bool   // in a table other than main
	metric  uint32 // the kernel's priority, lower is better
	pref    int8   // router preference (RFC 4191), higher is better
	table   uint32 // only to make the choice among other tables the same every time

	gateway netip.Addr // the zero Addr for on-link
}

func (c candidate) better(than candidate) bool {
	switch {
	case c.notMain != than.notMain:
		return !c.notMain
	case c.metric != than.metric:
		return c.metric < than.metric
	case c.pref != than.pref:
		return c.pref > than.pref
	default:
		return c.table < than.table
	}
}

// NextHop returns where a packet to remote has to be sent on the interface ifindex: override if it is
// valid; else what the longest matching prefix through that interface says, in any table (of equal
// lengths the one in main, then the one with the lowest metric): its gateway, or remote itself where
// it is on-link. For an IPv4 remote the gateway can be an IPv6 address (RFC 8950), for an IPv6 remote
// a link-local one. The error is ErrNoRoute if nothing matches.
func (r *Routes) NextHop(ifindex int, remote, override netip.Addr) (netip.Addr, error) {
	if override.IsValid() {
		return override, nil
	}
	remote = remote.Unmap()
	if t := r.byIndex[ifindex]; t != nil {
		lens := t.len6
		if remote.Is4() {
			lens = t.len4
		}
		for _, n := range lens {
			p, _ := remote.Prefix(n)
			c, ok := t.best[p]
			switch {
			case !ok:
				continue
			case c.gateway.IsValid():
				return c.gateway, nil
			default:
				return remote, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("%s through interface %d: %w", remote, ifindex, ErrNoRoute)
}

func newRoutes(ifindexes []int) *Routes {
	r := &Routes{byIndex: make(map[int]*table, len(ifindexes))}
	for _, i := range ifindexes {
		r.byIndex[i] = &table{best: make(map[netip.Prefix]candidate)}
	}
	return r
}

// add takes in a route as the kernel describes it.
func (r *Routes) add(k kernelRoute) {
	// Only what an ordinary packet would take: no other type of service, no encapsulation, nothing
	// that rejects.
	if k.typ != unix.RTN_UNICAST || k.tos != 0 || k.cloned {
		return
	}
	for _, hop := range k.hops {
		t := r.byIndex[hop.ifindex]
		if t == nil || hop.encap || hop.flags&unix.RTNH_F_DEAD != 0 {
			continue
		}
		c := candidate{
			notMain: k.table != unix.RT_TABLE_MAIN,
			metric:  k.metric,
			pref:    k.pref,
			table:   k.table,
			gateway: hop.gateway,
		}
		if have, ok := t.best[k.dst]; !ok || c.better(have) {
			t.best[k.dst] = c
		}
	}
}

// finish prepares the look-ups, after the last add.
func (r *Routes) finish() {
	for _, t := range r.byIndex {
		for p := range t.best {
			lens := &t.len6
			if p.Addr().Is4() {
				lens = &t.len4
			}
			*lens = append(*lens, p.Bits())
		}
		for _, lens := range []*[]int{&t.len4, &t.len6} {
			slices.SortFunc(*lens, func(a, b int) int { return b - a })
			*lens = slices.Compact(*lens)
		}
	}
}

// Routes reads the routing tables once, both families, and keeps what leads through the given
// interfaces. Its memory grows with those routes, about 150 bytes each.
func (h *Host) Routes(ifindexes ...int) (*Routes, error) {
	return dump("routes", func() (*Routes, error) {
		r := newRoutes(ifindexes)
		var unresolved []kernelRoute
		err := h.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.RTM_NEWROUTE, func(m []byte) {
			k, ok := parseRoute(m)
			if ok && len(k.hops) == 0 && k.nexthop != 0 {
				unresolved = append(unresolved, k)
			} else if ok {
				r.add(k)
			}
		}, &nl.RtMsg{})
		if err != nil {
			return nil, err
		}
		if len(unresolved) > 0 {
			objects, err := h.nexthops()
			if err != nil {
				return nil, err
			}
			for _, k := range unresolved {
				k.hops = objects.resolve(k.nexthop)
				r.add(k)
			}
		}
		r.finish()
		return r, nil
	})
}

// kernelRoute is what plait needs of an RTM_NEWROUTE message.
type kernelRoute struct {
	dst     netip.Prefix
	table   uint32
	metric  uint32
	pref    int8
	typ     uint8
	tos     uint8
	cloned  bool
	nexthop uint32 // id of a nexthop object; its hops are usually listed too
	hops    []kernelHop
}

// kernelHop is one way a route leads.
type kernelHop struct {
	ifindex int
	gateway netip.Addr // the zero Addr for on-link
	flags   uint32     // RTNH_F_*
	encap   bool
}

// The attributes of a route that x/sys/unix does not name.
const (
	rtaPref      = 20
	rtaEncapType = 21
	rtaNHID      = 30
)

// parseRoute reads the payload of an RTM_NEWROUTE message. It is false for what is no route of IPv4
// or IPv6, or malformed.
func parseRoute(m []byte) (kernelRoute, bool) {
	if len(m) < unix.SizeofRtMsg {
		return kernelRoute{}, false
	}
	// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
	family, dstLen, srcLen := m[0], int(m[1]), m[2]
	flags := binary.NativeEndian.Uint32(m[8:])
	k := kernelRoute{tos: m[3], table: uint32(m[4]), typ: m[7], cloned: flags&unix.RTM_F_CLONED != 0}
	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return kernelRoute{}, false
	}
	if srcLen != 0 { // routes by source as well (IPv6 subtrees) bind only some packets
		return kernelRoute{}, false
	}

	single := kernelHop{flags: flags}
	attrs(m[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.RTA_DST:
			dst = attrAddr(v)
		case unix.RTA_TABLE:
			k.table = attrUint32(v)
		case unix.RTA_PRIORITY:
			k.metric = attrUint32(v)
		case unix.RTA_OIF:
			single.ifindex = int(attrUint32(v))
		case unix.RTA_MULTIPATH:
			k.hops = append(k.hops, parseHops(v)...)
		case rtaNHID:
			k.nexthop = attrUint32(v)
		case rtaPref:
			if len(v) > 0 {
				k.pref = routerPreference(v[0])
			}
		default:
			single.attr(typ, v)
		}
	})
	if single.ifindex != 0 {
		k.hops = append(k.hops, single)
	}
	if dst.Is4() != (family == unix.AF_INET) || !dst.IsValid() {
		return kernelRoute{}, false
	}
	var err error
	k.dst, err = dst.Prefix(dstLen)
	return k, err == nil
}

// attr reads an attribute that routes and the members of a multipath route share.
func (h *kernelHop) attr(typ uint16, v []byte) {
	switch typ {
	case unix.RTA_GATEWAY:
		h.gateway = attrAddr(v)
	case unix.RTA_VIA: // struct rtvia: family (2 bytes), address
		if len(v) > 2 {
			h.gateway = attrAddr(v[2:])
		}
	case rtaEncapType:
		h.encap = true
	}
}

// parseHops reads the array of struct rtnexthop in RTA_MULTIPATH.
func parseHops(b []byte) []kernelHop {
	var hops []kernelHop
	for len(b) >= unix.SizeofRtNexthop {
		// struct rtnexthop: len (2 bytes), flags, hops, ifindex.
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		h := kernelHop{flags: uint32(b[2]), ifindex: int(attrUint32(b[4:]))}
		attrs(b[unix.SizeofRtNexthop:n], h.attr)
		hops = append(hops, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return hops
}

// routerPreference turns the two bits of RFC 4191 section 2.1, a signed number, into one.
func routerPreference(b uint8) int8 {
	switch b & 3 {
	case 1:
		return 1
	case 3:
		return -1
	default:
		return 0
	}
}

// nexthops are the kernel's nexthop objects by id. Routes that use one list its hops themselves,
// unless net.ipv4.nexthop_compat_mode is 0, as routing daemons on large tables recommend.
type nexthops map[uint32]nexthop

type nexthop struct {
	hop   kernelHop
	group []uint32 // ids of the members, if it is a group
}

// The attributes of a nexthop object (linux/nexthop.h), and the sizes of its structures.
const (
	nhaID        = 1
	nhaGroup     = 2
	nhaOIF       = 5
	nhaGateway   = 6
	nhaEncapType = 7

	sizeofNhMsg        = 8
	sizeofNexthopGroup = 8
)

func (h *Host) nexthops() (nexthops, error) {
	n := make(nexthops)
	err := h.request(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP, unix.RTM_NEWNEXTHOP, n.parse, rawData(make([]byte, sizeofNhMsg)))
	return n, err
}

// parse takes in the payload of an RTM_NEWNEXTHOP message.
func (n nexthops) parse(m []byte) {
	if len(m) < sizeofNhMsg {
		return
	}
	var (
		id uint32
		o  nexthop
	)
	o.hop.flags = binary.NativeEndian.Uint32(m[4:]) // struct nhmsg: family, scope, protocol, pad, flags
	attrs(m[sizeofNhMsg:], func(typ uint16, v []byte) {
		switch typ {
		case nhaID:
			id = attrUint32(v)
		case nhaGroup:
			for ; len(v) >= sizeofNexthopGroup; v = v[sizeofNexthopGroup:] {
				o.group = append(o.group, attrUint32(v))
			}
		case nhaOIF:
			o.hop.ifindex = int(attrUint32(v))
		case nhaGateway:
			o.hop.gateway = attrAddr(v)
		case nhaEncapType:
			o.hop.encap = true
		}
	})
	n[id] = o
}

// resolve returns the hops of an object, which for a group are those of its members; groups do not
// nest.
func (n nexthops) resolve(id uint32) []kernelHop {
	o, ok := n[id]
	if !ok {
		return nil
	}
	if o.group == nil {
		return []kernelHop{o.hop}
	}
	var hops []kernelHop
	for _, id := range o.group {
		if m, ok := n[id]; ok {
			hops = append(hops, m.hop)
		}
	}
	return hops
}

// rawData is a ready-made part of a netlink request.
type rawData []byte

func (d rawData) Len() int          { return len(d) }
func (d rawData) Serialize() []byte { return d }
