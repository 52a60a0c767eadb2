// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/controlplane/state"
)

const twoUplinks = `
host: a
identity: [10.255.0.1, "fd00:255::1"]
key: /etc/plait/site.key
uplinks:
  - {name: up1, fabric: red}
  - {name: up2, weight: 3}
peers:
  - name: b
    identity: [10.255.0.2, "fd00:255::2"]
    locators:
      - {address: 10.1.2.2, fabric: red}
      - {address: 10.2.2.2, fabric: blue}
      - fd00:1:2::2
`

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse(strings.NewReader(text), "plait.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func TestNumbersStayWithNames(t *testing.T) {
	cfg := parse(t, twoUplinks)
	if got := numberUplinks(cfg, nil); got["up1"] != 0 || got["up2"] != 1 {
		t.Errorf("numbers of a new host are %v", got)
	}
	old := &state.State{Uplinks: []state.Uplink{{Name: "gone", Number: 0}, {Name: "up2", Number: 5}}}
	if got := numberUplinks(cfg, old); got["up1"] != 0 || got["up2"] != 5 {
		t.Errorf("numbers are %v; want up2 to keep 5 and up1 the first free one, 0", got)
	}
}

func TestLocators(t *testing.T) {
	for _, c := range []struct {
		name    string
		listed  []netip.Addr
		live    hostnet.Uplink
		last    []netip.Addr
		want    []netip.Addr
		problem string
	}{
		{
			name: "first of each family",
			live: hostnet.Uplink{Index: 2, Addrs: addrs("10.1.1.2", "10.1.1.3", "fd00:1:1::2", "fd00:1:1::3")},
			want: addrs("10.1.1.2", "fd00:1:1::2"),
		},
		{
			name: "missing interface keeps the last known", last: addrs("10.1.1.2", "fd00:1:1::2"),
			want: addrs("10.1.1.2", "fd00:1:1::2"),
		},
		{
			name: "a lost family keeps the last known",
			live: hostnet.Uplink{Index: 2, Addrs: addrs("10.1.1.9")}, last: addrs("10.1.1.2", "fd00:1:1::2"),
			want: addrs("10.1.1.9", "fd00:1:1::2"),
		},
		{
			name: "listed, one not there", listed: addrs("10.1.1.3", "10.1.1.4"),
			live: hostnet.Uplink{Index: 2, Addrs: addrs("10.1.1.2", "10.1.1.3")},
			want: addrs("10.1.1.3", "10.1.1.4"), problem: "address 10.1.1.4 is not on the interface",
		},
		{name: "no address", live: hostnet.Uplink{Index: 2}, problem: "interface has no global address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, problem := locators(&config.Uplink{Addresses: c.listed}, c.live, c.last)
			if !slices.Equal(got, c.want) || problem != c.problem {
				t.Errorf("got %v, %q; want %v, %q", got, problem, c.want, c.problem)
			}
		})
	}
}

func TestDesired(t *testing.T) {
	cfg := parse(t, twoUplinks)
	numbers := numberUplinks(cfg, nil)
	ups := map[string]hostnet.Uplink{"up1": {Index: 2}} // up2 is missing
	locs := map[string][]netip.Addr{"up1": addrs("10.1.1.2"), "up2": addrs("10.2.1.2", "fd00:2:1::2")}
	groups := desired(cfg, numbers, ups, locs, &hostnet.Routes{})
	var got []string
	for _, g := range groups {
		for _, p := range g.paths {
			got = append(got, p.local.String()+" > "+p.remote.String())
			if p.identity != cfg.Identity.Of(config.FamilyOf(p.local)) || p.peerIdentity != g.identity {
				t.Errorf("path %s > %s carries %s > %s", p.local, p.remote, p.identity, p.peerIdentity)
			}
			if wantIndex := map[uint8]int{0: 2, 1: 0}[p.uplink]; p.ifindex != wantIndex || p.sendable() {
				t.Errorf("path over uplink %d has interface %d, sendable %v; there are no routes", p.uplink, p.ifindex, p.sendable())
			}
			if want := map[uint8]uint32{0: 1, 1: 3}[p.uplink]; p.weight != want {
				t.Errorf("path over uplink %d has weight %d, want %d", p.uplink, p.weight, want)
			}
		}
	}
	want := []string{ // red joins red and unlabelled; up2 has no label
		"10.1.1.2 > 10.1.2.2", "10.2.1.2 > 10.1.2.2", "10.2.1.2 > 10.2.2.2", "fd00:2:1::2 > fd00:1:2::2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("paths are %q, want %q", got, want)
	}
}
