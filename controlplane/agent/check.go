// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/maps"
)

// CheckHost returns what about the host keeps plait from running at all.
func CheckHost(h *hostnet.Host) error {
	if os.Geteuid() != 0 {
		return errors.New("plait must run as root: sudo plait run")
	}
	limits, err := h.HopLimits()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range []struct {
		name  string
		value int
	}{
		{"net.ipv4.ip_default_ttl", limits.V4},
		{"net.ipv6.conf.default.hop_limit", limits.V6Default},
		{"net.ipv6.conf.all.hop_limit", limits.V6All},
		{"net.ipv6.conf.plait0.hop_limit", limits.V6Plait0},
	} {
		if l.value >= maps.Mark {
			errs = append(errs, fmt.Errorf("%s is %d: a hop limit above 127 marks plait's own packets; "+
				"set it to 64: sysctl -w %s=64", l.name, l.value, l.name))
		}
	}
	return errors.Join(errs...)
}

// HostWarnings returns what the world has not brought yet: nothing that stops run, but uplinks and
// paths that will be down until it comes.
func HostWarnings(cfg *config.Config, h *hostnet.Host) (config.Problems, error) {
	names := make([]string, len(cfg.Uplinks))
	for i := range cfg.Uplinks {
		names[i] = cfg.Uplinks[i].Name
	}
	ups, err := h.Uplinks(names)
	if err != nil {
		return nil, err
	}
	var out config.Problems
	locs := map[string][]netip.Addr{}
	var indices []int
	for i := range cfg.Uplinks {
		u := &cfg.Uplinks[i]
		live, ok := ups[u.Name]
		warn := func(what, right string) { out = append(out, cfg.Problem(u.Pos, what, right)) }
		switch {
		case !ok:
			warn("interface "+u.Name+" does not exist", "the uplink is down until it appears")
			continue
		case unsupported(live) != "":
			warn(u.Name+": "+unsupported(live), "the uplink stays down")
		case !live.AdminUp:
			warn("interface "+u.Name+" is set down", "ip link set "+u.Name+" up")
		case !live.Carrier:
			warn("interface "+u.Name+" has no carrier", "the uplink is down until it has")
		}
		indices = append(indices, live.Index)
		l, problem := locators(u, live, nil)
		if problem != "" {
			warn(u.Name+": "+problem, "its paths are down until it is there")
		}
		locs[u.Name] = l
	}
	routes, err := h.Routes(indices...)
	if err != nil {
		return nil, err
	}
	for _, g := range desired(cfg, numberUplinks(cfg, nil), ups, locs, routes) {
		for _, p := range g.paths {
			if p.ifindex != 0 && !p.nextHop.IsValid() {
				out = append(out, cfg.Problem(cfg.Peers[g.peer].Pos,
					fmt.Sprintf("no route from %s to %s through its uplink", p.local, p.remote),
					"add a route or the uplink's gateway"))
			}
		}
	}
	return out, nil
}
