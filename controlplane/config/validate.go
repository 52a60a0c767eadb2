// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// validate checks what no single value can be blamed for.
func (p *reader) validate() {
	p.checkNames()
	p.checkClaims()
	for i := range p.config.Peers {
		p.checkReach(i)
	}
}

// checkNames finds interfaces and peers that are listed twice.
func (p *reader) checkNames() {
	c := p.config
	lines := make(map[string]int)
	for _, u := range c.Uplinks {
		if line, dup := lines[u.Name]; dup && u.Name != "" {
			p.problem(u.Pos, "keep one; several locators of an interface go into its addresses",
				"interface %s is an uplink already, in line %d", u.Name, line)
			continue
		}
		lines[u.Name] = u.Pos.Line
	}
	clear(lines)
	for _, peer := range c.Peers {
		if peer.Name == "" {
			continue
		}
		if peer.Name == c.Host {
			p.problem(peer.Pos, "list the other hosts only", "peer %s is this host itself", peer.Name)
			continue
		}
		if line, dup := lines[peer.Name]; dup {
			p.problem(peer.Pos, "give each peer its own name", "peer %s is listed already, in line %d", peer.Name, line)
			continue
		}
		lines[peer.Name] = peer.Pos.Line
	}
}

// checkClaims finds addresses that are meant to be two things at once.
func (p *reader) checkClaims() {
	earlier := make(map[netip.Addr][]claim)
	for _, c := range p.claims {
		for _, e := range earlier[c.addr] {
			right, clash := conflict(c.role, e.role)
			if clash {
				p.problem(c.Pos, right, "%s cannot be %s: it is %s, in line %d", c.addr, c, e, e.Line)
				break
			}
		}
		earlier[c.addr] = append(earlier[c.addr], c)
	}
}

// conflict reports whether one address cannot have both roles, and what would be right.
func conflict(a, b role) (right string, clash bool) {
	switch {
	case a == identity && b == identity:
		return "give every host its own identity", true
	case a == identity || b == identity:
		return "choose an identity that is no address of an interface", true
	case a == gateway && b == gateway, a == gateway && b == locator, a == locator && b == gateway:
		// A gateway may serve two uplinks, and may be a peer.
		return "", false
	case a == b:
		return "list it once", true
	}
	return "an address belongs to one host: correct one of them", true
}

// checkReach finds out whether there are paths to a peer, and not too many.
func (p *reader) checkReach(index int) {
	c := p.config
	peer := &c.Peers[index]
	if peer.Name == c.Host && c.Host != "" {
		return // reported
	}
	name := nameOr(peer.Name, index)
	var unusable []Family
	var reasons []string
	for _, f := range Families {
		paths := c.MaxPaths(peer, f)
		if paths > MaxPaths {
			p.problem(peer.Pos, fmt.Sprintf("at most %d: list fewer locators, or label them with fabric", MaxPaths),
				"there are %d %s paths to peer %s", paths, f, name)
		}
		why := ""
		switch {
		case !c.Identity.Of(f).IsValid():
			why = "this host has no " + f.String() + " identity"
		case !peer.Identity.Of(f).IsValid():
			why = "the peer has no " + f.String() + " identity"
		case !peer.hasLocator(f):
			why = "the peer has no " + f.String() + " locator"
		case paths == 0 && !c.hasLocator(f):
			why = "the uplinks list no " + f.String() + " address"
		case paths == 0:
			why = "no uplink and locator have the same fabric"
		}
		if why != "" {
			unusable = append(unusable, f)
			reasons = append(reasons, f.String()+": "+why)
		}
	}
	if p.incomplete || p.incompletePeer[index] || len(c.Uplinks) == 0 || len(peer.Locators) == 0 ||
		c.Identity == (Addrs{}) || peer.Identity == (Addrs{}) {
		return // reported; what is missing may be what was refused
	}
	if len(unusable) == len(Families) {
		p.problem(peer.Pos, "one family needs an identity on both sides and locators on both sides",
			"there is no path to peer %s: %s", name, strings.Join(reasons, ", "))
		return
	}
	for i, f := range unusable {
		// Say nothing of a family that this host or the peer leaves out altogether.
		ours, theirs, locators := c.Identity.Of(f).IsValid(), peer.Identity.Of(f).IsValid(), peer.hasLocator(f)
		if ours && (theirs || locators) {
			p.warning(peer.Pos, "complete this family, or remove what is there of it",
				"peer %s is not reachable over %s", name, reasons[i])
		}
	}
}

func (p *Peer) hasLocator(f Family) bool {
	for _, l := range p.Locators {
		if FamilyOf(l.Addr) == f {
			return true
		}
	}
	return false
}

func (c *Config) hasLocator(f Family) bool {
	for i := range c.Uplinks {
		if c.Uplinks[i].slots(f) > 0 {
			return true
		}
	}
	return false
}
