// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/keys"
	"github.com/plait-net/plait/test/lab"
)

func TestWriteConfig(t *testing.T) {
	l := up(t, lab.Options{Hosts: []string{"a", "b", "c"}})
	path, err := l.Host("b").WriteConfig()
	if err != nil {
		t.Fatal(err)
	}
	c := parseConfig(t, path)
	if len(c.Peers) != 2 || c.Peers[0].Name != "a" || c.Peers[1].Name != "c" || c.Host != "b" {
		t.Errorf("host %s has peers %+v, want a and c", c.Host, c.Peers)
	}
	if got, want := c.Identity.V4, netip.MustParseAddr("10.255.0.2"); got != want {
		t.Errorf("identity %v, want %v", got, want)
	}
	want := config.Locator{Addr: netip.MustParseAddr("fd00:2:3::2"), Fabric: "f2"}
	if got := c.Peers[1].Locators; len(got) != 4 || got[3] != want {
		t.Errorf("locators of c: %v, want 4, the last %v", got, want)
	}
	if c.MetricsListen != "127.0.0.1:9555" || c.Liveness != config.DefaultLiveness() {
		t.Errorf("metrics at %q, liveness %+v, want the defaults", c.MetricsListen, c.Liveness)
	}
	if _, err := keys.Load(c.Peers[0].KeyFile); err != nil {
		t.Error(err)
	}
	if len(c.Warnings) != 0 {
		t.Error(c.Warnings)
	}
}

func TestWriteConfigChanged(t *testing.T) {
	l := up(t, lab.Options{})
	holdDown := time.Duration(0)
	path, err := l.Host("a").WriteConfig(func(c *lab.Config) {
		c.SetIngress("tc")
		c.OnlyFamily(6)
		c.Unlabel()
		c.Liveness = &lab.ConfigLiveness{Interval: 2 * time.Millisecond, Multiplier: 5, HoldDown: &holdDown}
		c.NativePorts = &lab.ConfigNativePorts{TCP: []uint16{1179}}
		c.Metrics.Listen = ""
	})
	if err != nil {
		t.Fatal(err)
	}
	c := parseConfig(t, path)
	live := config.DefaultLiveness()
	live.Interval, live.Multiplier, live.HoldDown = 2*time.Millisecond, 5, 0
	if c.Liveness != live {
		t.Errorf("liveness %+v, want %+v", c.Liveness, live)
	}
	if c.MetricsListen != "" || len(c.NativePorts.UDP) != 0 || len(c.NativePorts.TCP) != 1 {
		t.Errorf("metrics %q, native ports %v", c.MetricsListen, c.NativePorts)
	}
	if c.Identity.V4.IsValid() || !c.Identity.V6.IsValid() {
		t.Errorf("identity %v, want only IPv6", c.Identity)
	}
	for _, u := range c.Uplinks {
		if u.Ingress != config.IngressTC || u.Fabric != "" || len(u.Addresses) != 1 || !u.Addresses[0].Is6() {
			t.Errorf("uplink %+v, want tc, no label, one IPv6 address", u)
		}
	}
	for _, x := range c.Peers[0].Locators {
		if !x.Addr.Is6() || x.Fabric != "" {
			t.Errorf("locator %v, want IPv6 without label", x)
		}
	}
}

func parseConfig(t *testing.T, path string) *config.Config {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(strings.NewReader(string(text)), path)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}
