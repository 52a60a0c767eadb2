// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peerMetric6 is the metric of the IPv6 routes to peers: the best there is, as 0 is for IPv4, where
// no metric means 0. For IPv6 no metric means 1024, and a routing daemon's host route would win.
const peerMetric6 = 1

// SyncPeerRoutes makes peers (identities of other hosts) reachable through plait0, each with the own
// identity of its family as the source that programs get which bind to none. src holds at most one
// address of each family; peers of a family without one are left out. The routes are host routes in
// the main table with protocol [Protocol]; those of that protocol on plait0 that are not in peers
// are removed, no other route is touched.
//
// Where another route to exactly the same address with the same metric exists, plait's cannot be
// added: the error names each such address and wraps EEXIST, and all other routes are in place.
func (h *Host) SyncPeerRoutes(p Plait0, peers, src []netip.Addr) error {
	var src4, src6 netip.Addr
	for _, s := range src {
		if s.Is4() {
			src4 = s
		} else {
			src6 = s
		}
	}
	want := make(map[netip.Addr]bool, len(peers))
	for _, ip := range peers {
		if ip.Is4() && src4.IsValid() || ip.Is6() && src6.IsValid() {
			want[ip] = true
		}
	}

	have, err := h.peerRoutes(p)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		dst := toPrefix(r.Dst)
		s := src4
		if dst.Addr().Is6() {
			s = src6
		}
		if got, _ := netip.AddrFromSlice(r.Src); dst.IsSingleIP() && want[dst.Addr()] &&
			got.Unmap() == s && r.Priority == peerMetric(dst.Addr()) && r.Type == unix.RTN_UNICAST {
			delete(want, dst.Addr())
			continue
		}
		// Never replaced in place: NLM_F_REPLACE takes the first route to that destination, whoever's
		// it is. A deletion matches protocol and interface too.
		r.Flags = 0 // states like linkdown, which are no part of a request
		if err := h.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("removing the route to %s: %w", dst, err))
		}
	}
	for _, ip := range peers {
		if !want[ip] {
			continue
		}
		delete(want, ip) // once, even if it is listed twice
		r := &netlink.Route{
			LinkIndex: p.Near,
			Dst:       hostNet(ip),
			Protocol:  Protocol,
			Table:     unix.RT_TABLE_MAIN,
			Type:      unix.RTN_UNICAST,
			Priority:  peerMetric(ip),
		}
		if ip.Is4() {
			r.Scope, r.Src = netlink.SCOPE_LINK, src4.AsSlice()
		} else {
			r.Src = src6.AsSlice()
		}
		if err := h.nl.RouteAdd(r); err != nil {
			errs = append(errs, fmt.Errorf("adding the route to %s: %w", ip, err))
		}
	}
	return errors.Join(errs...)
}

// peerRoutes returns the routes that SyncPeerRoutes made.
func (h *Host) peerRoutes(p Plait0) ([]netlink.Route, error) {
	filter := &netlink.Route{LinkIndex: p.Near, Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	mask := netlink.RT_FILTER_OIF | netlink.RT_FILTER_PROTOCOL | netlink.RT_FILTER_TABLE
	return dump("routes", func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(netlink.FAMILY_ALL, filter, mask)
	})
}

func peerMetric(ip netip.Addr) int {
	if ip.Is4() {
		return 0
	}
	return peerMetric6
}
