// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
)

// Reverse path filter modes (RFC 3704).
const (
	rpStrict = 1
	rpLoose  = 2
)

// Undo says which settings of the host plait changed, and what they were. It is kept across
// processes as JSON. The zero value is that of a host on which nothing was changed.
type Undo struct {
	RPFilter []RPFilterChange `json:"rp_filter,omitempty"`
}

// RPFilterChange is a change of net.ipv4.conf.INTERFACE.rp_filter.
type RPFilterChange struct {
	Interface string `json:"interface"`
	Index     int    `json:"index"` // so that a new interface of the same name is not mistaken for it
	Was       int    `json:"was"`
	Set       int    `json:"set"`
}

// PlanSysctls returns have with everything added that plait has to change for the given uplinks, and
// changes nothing. The caller stores the result before it calls ApplySysctls, so that the original
// values survive a crash between the two.
//
// What has to change: an uplink must not check sources strictly (rp_filter 1), because the addresses
// of peers, once restored, are not reached through the uplink. The kernel uses the higher one of the
// values of "all" and of the interface, so strict becomes loose by setting the interface's own to 2.
// IPv6 has no such setting; a firewall rule can have the same effect. Interfaces that do not exist
// are left out.
func (h *Host) PlanSysctls(uplinks map[string]Uplink, have Undo) (Undo, error) {
	next := Undo{RPFilter: slices.Clone(have.RPFilter)}
	all, err := h.readRPFilter("all")
	if err != nil {
		return have, err
	}
	for _, u := range uplinks {
		own, err := h.readRPFilter(u.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return have, err
		}
		if max(all, own) != rpStrict {
			// What is written down but no longer in place was changed by somebody else, to something
			// that does not disturb: it is theirs now.
			next.RPFilter = slices.DeleteFunc(next.RPFilter, func(c RPFilterChange) bool {
				return c.Interface == u.Name && c.Set != own
			})
			continue
		}
		c := RPFilterChange{Interface: u.Name, Index: u.Index, Was: own, Set: rpLoose}
		next.RPFilter = slices.DeleteFunc(next.RPFilter, func(c RPFilterChange) bool {
			return c.Interface == u.Name
		})
		next.RPFilter = append(next.RPFilter, c)
	}
	return next, nil
}

// ApplySysctls makes the changes that u lists. It may be repeated; an interface that went away is
// left out.
func (h *Host) ApplySysctls(u Undo) error {
	var errs []error
	for _, c := range u.RPFilter {
		if same, err := h.sameInterface(c); err != nil || !same {
			errs = append(errs, err)
			continue
		}
		err := h.setSysctl(rpFilterPath(c.Interface), strconv.Itoa(c.Set))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// restoreSysctls puts back what u lists, except where the value is no longer the one plait set or
// the interface no longer the same one.
func (h *Host) restoreSysctls(u Undo) error {
	var errs []error
	for _, c := range u.RPFilter {
		if same, err := h.sameInterface(c); err != nil || !same {
			errs = append(errs, err)
			continue
		}
		now, err := h.readRPFilter(c.Interface)
		if err == nil && now == c.Set {
			err = h.setSysctl(rpFilterPath(c.Interface), strconv.Itoa(c.Was))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (h *Host) sameInterface(c RPFilterChange) (bool, error) {
	l, err := h.nl.LinkByName(c.Interface)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking up link %s: %w", c.Interface, err)
	}
	return l.Attrs().Index == c.Index, nil
}

// HopLimits are the initial hop limits of packets that the host sends, 0 where the kernel has no such
// setting (no IPv6, no plait0). plait's mark needs all of them to be at most 127.
type HopLimits struct {
	V4        int // net.ipv4.ip_default_ttl
	V6Default int // net.ipv6.conf.default.hop_limit, which plait0 starts with
	V6All     int // net.ipv6.conf.all.hop_limit, for packets without an interface yet
	V6Plait0  int // net.ipv6.conf.plait0.hop_limit, which counts for packets to peers
}

// HopLimits reads the host's settings.
func (h *Host) HopLimits() (HopLimits, error) {
	var (
		l    HopLimits
		errs []error
	)
	for path, into := range map[string]*int{
		"net/ipv4/ip_default_ttl":                    &l.V4,
		"net/ipv6/conf/default/hop_limit":            &l.V6Default,
		"net/ipv6/conf/all/hop_limit":                &l.V6All,
		"net/ipv6/conf/" + Plait0Name + "/hop_limit": &l.V6Plait0,
	} {
		var err error
		if *into, err = h.readInt(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return l, errors.Join(errs...)
}

// Remove takes back all that plait did to the host, as far as it is still there: the plait0 pair with
// its addresses and routes, the neighbour entries, and the settings in u. It can be repeated, and on a
// host where nothing is left it does nothing. An interface that only has the name of plait's is left
// alone, with ErrForeignLink. All parts are tried, whatever the error of one.
func (h *Host) Remove(u Undo) error {
	return errors.Join(h.removePlait0(), h.SyncNeighbours(nil), h.restoreSysctls(u))
}

func (h *Host) readRPFilter(name string) (int, error) { return h.readInt(rpFilterPath(name)) }

func rpFilterPath(name string) string { return "net/ipv4/conf/" + name + "/rp_filter" }

func (h *Host) readInt(path string) (int, error) {
	s, err := h.readSysctl(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("reading sysctl %s: %w", path, err)
	}
	return n, nil
}
