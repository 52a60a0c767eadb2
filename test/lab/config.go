// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/plait-net/plait/controlplane/keys"
)

// keyID is the number of the lab's key in probes.
const keyID = 1

// Config is a configuration file of plait, to be written for a host of the lab. docs/configuration.md
// says what the fields mean. Fields that are zero are left out of the file, so that plait's defaults
// apply.
type Config struct {
	Host        string             `yaml:"host"`
	Identity    []netip.Addr       `yaml:"identity"`
	Key         string             `yaml:"key,omitempty"`
	Uplinks     []ConfigUplink     `yaml:"uplinks"`
	Peers       []ConfigPeer       `yaml:"peers"`
	Liveness    *ConfigLiveness    `yaml:"liveness,omitempty"`
	NativePorts *ConfigNativePorts `yaml:"native_ports,omitempty"`
	Metrics     ConfigMetrics      `yaml:"metrics"`

	uplinks []Uplink // of the host
}

// ConfigUplink is an uplink of a Config.
type ConfigUplink struct {
	Name      string       `yaml:"name"`
	Addresses []netip.Addr `yaml:"addresses,omitempty"`
	Gateway   []netip.Addr `yaml:"gateway,omitempty"`
	Weight    int          `yaml:"weight,omitempty"`
	Ingress   string       `yaml:"ingress,omitempty"` // auto, xdp or tc
	Fabric    string       `yaml:"fabric,omitempty"`
}

// ConfigPeer is a peer of a Config.
type ConfigPeer struct {
	Name     string          `yaml:"name"`
	Identity []netip.Addr    `yaml:"identity"`
	Locators []ConfigLocator `yaml:"locators"`
	Key      string          `yaml:"key,omitempty"`
}

// ConfigLocator is a locator of a ConfigPeer.
type ConfigLocator struct {
	Address netip.Addr `yaml:"address"`
	Fabric  string     `yaml:"fabric,omitempty"`
}

// ConfigLiveness is the liveness section of a Config.
type ConfigLiveness struct {
	Interval     time.Duration  `yaml:"interval,omitempty"`
	Multiplier   int            `yaml:"multiplier,omitempty"`
	IdleInterval time.Duration  `yaml:"idle_interval,omitempty"`
	HoldDown     *time.Duration `yaml:"hold_down,omitempty"` // 0 means something
	Budget       int            `yaml:"budget,omitempty"`
}

// ConfigNativePorts is the native_ports section of a Config.
type ConfigNativePorts struct {
	TCP []uint16 `yaml:"tcp"`
	UDP []uint16 `yaml:"udp"`
}

// ConfigMetrics is the metrics section of a Config.
type ConfigMetrics struct {
	Listen string `yaml:"listen"`
}

// SetIngress sets the ingress hook of every uplink: auto, xdp or tc.
func (c *Config) SetIngress(hook string) {
	for i := range c.Uplinks {
		c.Uplinks[i].Ingress = hook
	}
}

// OnlyFamily leaves out every identity and locator that is not of the family, 4 or 6. Uplinks get their
// addresses listed, for plait would take those of both families.
func (c *Config) OnlyFamily(family int) {
	other := func(a netip.Addr) bool { return a.Is4() != (family == 4) }
	c.Identity = slices.DeleteFunc(c.Identity, other)
	for i := range c.Uplinks {
		for _, u := range c.uplinks {
			if u.Name == c.Uplinks[i].Name {
				c.Uplinks[i].Addresses = slices.DeleteFunc([]netip.Addr{u.Addr4, u.Addr6}, other)
			}
		}
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		p.Identity = slices.DeleteFunc(p.Identity, other)
		p.Locators = slices.DeleteFunc(p.Locators, func(l ConfigLocator) bool { return other(l.Address) })
	}
}

// Unlabel removes all fabric labels, so that paths between different fabrics are tried as well.
func (c *Config) Unlabel() {
	for i := range c.Uplinks {
		c.Uplinks[i].Fabric = ""
	}
	for i := range c.Peers {
		for j := range c.Peers[i].Locators {
			c.Peers[i].Locators[j].Fabric = ""
		}
	}
}

// WriteConfig writes a configuration of plait for the host, which each of the functions may change
// first, and returns its path. It has all other hosts as peers, one key for the lab, labels for the
// fabrics, and metrics at 127.0.0.1:9555, a loopback address of the host alone. A file from an earlier
// call is replaced in one step.
func (h *Host) WriteConfig(change ...func(*Config)) (path string, err error) {
	c := Config{
		Host:     h.Name,
		Identity: []netip.Addr{h.Identity4, h.Identity6},
		Key:      h.lab.keyFile(),
		Metrics:  ConfigMetrics{Listen: "127.0.0.1:9555"},
		Peers:    []ConfigPeer{},
		uplinks:  h.Uplinks,
	}
	for _, u := range h.Uplinks {
		c.Uplinks = append(c.Uplinks, ConfigUplink{Name: u.Name, Fabric: u.Fabric})
	}
	for _, p := range h.lab.Hosts {
		if p == h {
			continue
		}
		peer := ConfigPeer{Name: p.Name, Identity: []netip.Addr{p.Identity4, p.Identity6}}
		for _, u := range p.Uplinks {
			peer.Locators = append(peer.Locators, ConfigLocator{u.Addr4, u.Fabric}, ConfigLocator{u.Addr6, u.Fabric})
		}
		c.Peers = append(c.Peers, peer)
	}
	for _, f := range change {
		f(&c)
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("writing the configuration of host %s: %w", h.Name, err)
	}
	path = filepath.Join(h.lab.Dir(), h.Name, "plait.yaml")
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return "", fmt.Errorf("writing the configuration of host %s: %w", h.Name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("writing the configuration of host %s: %w", h.Name, err)
	}
	return path, nil
}

// keyFile is the key that all hosts of the lab share.
func (l *Lab) keyFile() string { return filepath.Join(l.Dir(), "site.key") }

func (l *Lab) createKey() error {
	k, err := keys.Generate(keyID)
	if err != nil {
		return err
	}
	return keys.Create(l.keyFile(), keys.Ring{k})
}
