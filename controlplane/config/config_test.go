// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// minimal is a file as most are. The tests change it.
const minimal = `host: a
identity: [10.255.0.1, "fd00:255::1"]
key: /etc/plait/site.key
uplinks:
  - name: up1
  - name: up2
peers:
  - name: b
    identity: [10.255.0.2, "fd00:255::2"]
    locators: [10.1.2.2, 10.2.2.2, "fd00:1:2::2", "fd00:2:2::2"]
`

const (
	reference = "../../packaging/plait.yaml"
	manual    = "../../docs/configuration.md"
	readme    = "../../README.md"
)

func parseString(s string) (*Config, error) { return Parse(strings.NewReader(s), "f") }

func mustParse(t *testing.T, s string) *Config {
	t.Helper()
	c, err := parseString(s)
	if err != nil {
		t.Fatalf("%v\n%s", err, s)
	}
	return c
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestMinimal(t *testing.T) {
	got := mustParse(t, minimal)
	want := &Config{
		File:        "f",
		Host:        "a",
		Identity:    Addrs{addr("10.255.0.1"), addr("fd00:255::1")},
		IdentityPos: Pos{2, 11, "identity"},
		Uplinks: []Uplink{
			{Pos: Pos{5, 5, "uplinks[0]"}, Name: "up1", Weight: 1, Ingress: IngressAuto},
			{Pos: Pos{6, 5, "uplinks[1]"}, Name: "up2", Weight: 1, Ingress: IngressAuto},
		},
		Peers: []Peer{{
			Pos:      Pos{8, 5, "peers[0]"},
			Name:     "b",
			Identity: Addrs{addr("10.255.0.2"), addr("fd00:255::2")},
			Locators: []Locator{
				{Addr: addr("10.1.2.2")}, {Addr: addr("10.2.2.2")}, {Addr: addr("fd00:1:2::2")}, {Addr: addr("fd00:2:2::2")},
			},
			KeyFile: "/etc/plait/site.key",
			KeyPos:  Pos{3, 6, "key"},
		}},
		Liveness: Liveness{
			Interval: time.Millisecond, IdleInterval: time.Second, HoldDown: time.Second, Multiplier: 3, Budget: 20000,
		},
		NativePorts:   NativePorts{TCP: []uint16{179}, UDP: []uint16{3784, 3785, 4784}},
		MetricsListen: "127.0.0.1:9555",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryKey(t *testing.T) {
	got := mustParse(t, `
host: db-1.example_x
identity: "fd00:255::1"
uplinks:
  - name: up1
    addresses: ["fd00:1::2", "fd00:1::3"]
    gateway: [169.254.1.1, "fe80::1"]
    weight: 255
    ingress: tc
    fabric: red
  - {name: up2, ingress: xdp}
peers:
  - name: b
    identity: ["fd00:255::2"]
    locators: [{address: "fd00:1::9", fabric: red}, "fd00:2::9"]
    key: /etc/plait/../b.key
liveness: {interval: 2.5ms, multiplier: 50, idle_interval: 10s, hold_down: 0, budget: 100}
native_ports: {tcp: [], udp: 500}
metrics: {listen: ""}
`)
	want := &Config{
		File:        "f",
		Host:        "db-1.example_x",
		Identity:    Addrs{V6: addr("fd00:255::1")},
		IdentityPos: Pos{3, 11, "identity"},
		Uplinks: []Uplink{
			{
				Pos: Pos{5, 5, "uplinks[0]"}, Name: "up1",
				Addresses:    []netip.Addr{addr("fd00:1::2"), addr("fd00:1::3")},
				AddressesPos: Pos{6, 16, "uplinks[0].addresses"},
				Gateways:     Addrs{addr("169.254.1.1"), addr("fe80::1")},
				GatewaysPos:  Pos{7, 14, "uplinks[0].gateway"},
				Weight:       255, Ingress: IngressTC, Fabric: "red",
			},
			{Pos: Pos{11, 5, "uplinks[1]"}, Name: "up2", Weight: 1, Ingress: IngressXDP},
		},
		Peers: []Peer{{
			Pos: Pos{13, 5, "peers[0]"}, Name: "b",
			Identity: Addrs{V6: addr("fd00:255::2")},
			Locators: []Locator{{addr("fd00:1::9"), "red"}, {addr("fd00:2::9"), ""}},
			KeyFile:  "/etc/b.key", KeyPos: Pos{16, 10, "peers[0].key"},
		}},
		Liveness: Liveness{
			Interval: 2500 * time.Microsecond, IdleInterval: 10 * time.Second, Multiplier: 50, Budget: 100,
		},
		NativePorts: NativePorts{UDP: []uint16{500}},
		MetricsPos:  Pos{19, 19, "metrics.listen"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if l := got.Uplinks[0].Locators(IPv6); !reflect.DeepEqual(l, []Locator{
		{addr("fd00:1::2"), "red"}, {addr("fd00:1::3"), "red"},
	}) {
		t.Errorf("Locators(IPv6) = %v", l)
	}
	if l := got.Uplinks[0].Locators(IPv4); l != nil {
		t.Errorf("Locators(IPv4) = %v", l)
	}
	if a := got.Identity.All(); len(a) != 1 || a[0] != got.Identity.V6 {
		t.Errorf("All() = %v", a)
	}
}

func TestAllowed(t *testing.T) {
	for name, s := range map[string]string{
		"no peers yet":              cut(minimal, "peers:", "") + "peers: []\n",
		"no key, no peers":          "host: a\nidentity: [10.0.0.1]\nuplinks: [{name: u}]\npeers: []\n",
		"byte order mark":           "\ufeff" + minimal,
		"carriage returns":          strings.ReplaceAll(minimal, "\n", "\r\n"),
		"document markers":          "---\n" + minimal + "---\n",
		"one gateway of two":        edit(minimal, "up1", "up1\n    gateway: 10.1.1.1", "up2", "up2\n    gateway: 10.1.1.1"),
		"a peer is the gateway":     edit(minimal, "up1", "up1\n    gateway: 10.1.2.2"),
		"a gateway before, a peer":  edit(minimal, "up1", "up1\n    gateway: 10.2.2.2", "up2", "up2\n    gateway: 10.1.2.2"),
		"unquoted IPv6 in brackets": edit(minimal, `"fd00:255::1"`, "fd00:255::1"),
		"interval of idle_interval": minimal + "liveness: {interval: 1s, idle_interval: 1s}\n",
		"listen on every address":   minimal + "metrics: {listen: \":9555\"}\n",
		"listen on IPv6":            minimal + "metrics: {listen: \"[::1]:9555\"}\n",
		"a name like a number":      edit(minimal, "name: b", "name: 1"),
		"a name like a boolean":     edit(minimal, "name: b", "name: true"),
		"16 paths": edit(minimal, "up1", "up1\n    addresses: [10.1.1.2, 10.1.1.3, 10.1.1.4, \"fd00::1\"]",
			`10.1.2.2, 10.2.2.2`, "10.1.2.2, 10.2.2.2, 10.3.2.2, 10.4.2.2"),
		"20 pairs, 10 paths": edit(minimal, "name: up1", "{name: up1, fabric: red, addresses: [10.1.1.2, 10.1.1.3, 10.1.1.4]}",
			"name: up2", "{name: up2, fabric: blue, addresses: [10.2.1.2, 10.2.1.3]}", "locators: [10.1.2.2, 10.2.2.2, ",
			"locators: [{address: 10.1.2.2, fabric: red}, {address: 10.1.2.3, fabric: red}, {address: 10.2.2.2, fabric: blue}, {address: 10.2.2.3, fabric: blue}, "),
	} {
		t.Run(name, func(t *testing.T) { mustParse(t, s) })
	}
}

// edit replaces the first occurrence of each old text by the new text after it.
func edit(s string, oldNew ...string) string {
	for i := 0; i < len(oldNew); i += 2 {
		if !strings.Contains(s, oldNew[i]) {
			panic("nothing to edit: " + oldNew[i])
		}
		s = strings.Replace(s, oldNew[i], oldNew[i+1], 1)
	}
	return s
}

// cut removes from the first occurrence of from to before the first one of to after it, or to the end.
func cut(s, from, to string) string {
	i := strings.Index(s, from)
	if to == "" {
		return s[:i]
	}
	return s[:i] + s[i+strings.Index(s[i:], to):]
}

func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// problemCases are files and exactly what is said about them.
func problemCases() []problemCase {
	const unicastRight = `; write a global unicast address, for example 10.1.2.2 or "fd00:1:2::2"`
	peerWith := func(from, to string) string { return edit(minimal, from, to) }
	up1 := func(s string) string { return edit(minimal, "name: up1", "name: up1\n    "+s) }
	return []problemCase{
		// The text
		{"empty", "", `f:1:1: the file is empty; start from the reference file, packaging/plait.yaml`},
		{"comments only", "# a\n\n", `f:1:1: the file is empty; start from the reference file, packaging/plait.yaml`},
		{"no mapping", "- a\n", `f:1:1: a list where keys are expected; write keys and values, for example host: a`},
		{"scalar", "a\n", `f:1:1: "a" where keys are expected; write keys and values, for example host: a`},
		{"second document", minimal + "---\nhost: b\n", `f:12:1: a second YAML document; remove the line --- and what follows it`},
		{"tab", edit(minimal, "  - name: up2", "\t- name: up2"), `f:6:1: not valid YAML: found character '	' that cannot start any token; indent with spaces, not with tabs`},
		{"open bracket", edit(minimal, `::1"]`, `::1"`), `f:3:1: not valid YAML: ',' or ']' must be specified; check the indentation, the brackets and the quotes`},
		{"unquoted IPv6", edit(minimal, `[10.255.0.1, "fd00:255::1"]`, `fd00::`), `f:2:11: not valid YAML: mapping value is not allowed in this context; put IPv6 addresses in quotes, for example "fd00::1"`},
		{"anchor", edit(minimal, "name: b", "name: &b b"), `f:8:11: anchors (&) are not used here; write the value out, or put it in quotes`},
		{"alias", edit(minimal, "name: b", "name: *b"), `f:8:11: aliases (*) are not used here; write the value out, or put it in quotes`},
		{"tag", edit(minimal, "name: b", "name: !!str b"), `f:8:11: tags (!) are not used here; write the value out, or put it in quotes`},
		{"merge", minimal + "<<: x\n", `f:11:1: merge keys (<<) are not used here; write the value out, or put it in quotes`},
		{"complex key", minimal + "? x\n: y\n", `f:11:1: complex keys (?) are not used here; write the value out, or put it in quotes`},
		{"directive", "%YAML 1.2\n---\n" + minimal, `f:1:1: directives (%) are not used here; write the value out, or put it in quotes`},
		{"deep", minimal + "x: " + strings.Repeat("[", 1000) + "\n", `f:11:20: brackets are nested too deep; write the value out, or put it in quotes`},
		{"many keys", repeat(1<<17, "k%d: 1\n"), `f:101:1: more than 100 keys: this is no configuration; start from the reference file, packaging/plait.yaml`},
		{"many keys below", minimal + "x:\n" + repeat(1<<17, "  k%d: 1\n"), `f:112:3: more than 100 keys: this is no configuration; start from the reference file, packaging/plait.yaml`},
		{"nesting in a line", strings.Repeat("- ", maxLine/2-1) + "a\n", `f:1:1: a list where keys are expected; write keys and values, for example host: a`},
		{"long line", minimal + "#" + strings.Repeat("-", maxLine) + "\n", `f:11:4096: the line is longer than 4096 bytes; break it into several lines`},
		{"not UTF-8", edit(minimal, "name: b", "name: ü\xff"), `f:8:12: a byte or character that no YAML file may have; write plain UTF-8 text`},
		{"control character", edit(minimal, "name: b", "name: b\x00"), `f:8:12: a byte or character that no YAML file may have; write plain UTF-8 text`},
		{"too long", strings.Repeat("#\n", MaxFileSize/2) + "#", `f:1:1: the file is too long; at most 4194304 bytes are read`},

		// Keys
		{"unknown key", minimal + "mtu: 1\n", `f:11:1: unknown key "mtu"; known here: host, identity, key, uplinks, peers, liveness, native_ports, metrics`},
		{"nearest key", minimal + "livenes: {}\n", `f:11:1: unknown key "livenes"; did you mean liveness?`},
		{"swapped letters", edit(minimal, "host", "hots"), `f:1:1: unknown key "hots"; did you mean host?`},
		{"upper case key", edit(minimal, "peers", "Peers"), `f:7:1: unknown key "Peers"; did you mean peers?`},
		{"unknown key of an uplink", up1("wieght: 3"), `f:6:5: uplinks[0]: unknown key "wieght"; did you mean weight?`},
		{"unknown key of a peer", minimal + "    port: 3\n", `f:11:5: peers[0]: unknown key "port"; known here: name, identity, locators, key`},
		{"unknown key of a locator", peerWith("10.1.2.2,", "{address: 10.1.2.2, label: red},"), `f:10:36: peers[0].locators[0]: unknown key "label"; known here: address, fabric`},
		{"twice", minimal + "host: b\n", `f:11:1: host: the key is given twice, first in line 1; keep one of them`},
		{"twice in brackets", minimal + "metrics: {listen: \"\", listen: \"\"}\n", `f:11:23: metrics.listen: the key is given twice, first in line 11; keep one of them`},
		{"no value", minimal + "metrics:\n", `f:11:1: metrics: the key has no value; give it a value or remove the key`},
		{"null", minimal + "metrics: ~\n", `f:11:1: metrics: the key has no value; give it a value or remove the key`},
		{"missing host", cut(minimal, "host", "identity"), `f:1:1: the key "host" is missing; add for example: host: a`},
		{"missing identity", cut(minimal, "identity", "key"), `f:1:1: the key "identity" is missing; add for example: identity: [10.255.0.1, "fd00:255::1"]`},
		{"missing key", cut(minimal, "key", "uplinks"), `f:7:5: peers[0]: peer b has no key; add at the top level, for all peers: key: /etc/plait/site.key; or one in this peer`},
		{"missing uplinks", cut(minimal, "uplinks", "peers"), `f:1:1: the key "uplinks" is missing; add for example: uplinks: [{name: eth1}, {name: eth2}]`},
		{"missing peers", cut(minimal, "peers", ""), `f:1:1: the key "peers" is missing; add for example: peers: [{name: b, identity: [10.255.0.2], locators: [10.1.2.2, 10.2.2.2]}]`},
		{"nothing but one key", "key: /k\n", `f:1:1: the key "host" is missing; add for example: host: a
f:1:1: the key "identity" is missing; add for example: identity: [10.255.0.1, "fd00:255::1"]
f:1:1: the key "uplinks" is missing; add for example: uplinks: [{name: eth1}, {name: eth2}]
f:1:1: the key "peers" is missing; add for example: peers: [{name: b, identity: [10.255.0.2], locators: [10.1.2.2, 10.2.2.2]}]`},
		{"uplink without name", edit(minimal, "name: up2", "weight: 2"), `f:6:5: uplinks[1]: the key "name" is missing; add for example: name: eth1`},
		{"peer without name", cut(minimal, "name: b\n    ", "identity"), `f:8:5: peers[0]: the key "name" is missing; add for example: name: b`},
		{"peer without anything", edit(cut(minimal, "    identity", ""), "name: b", "key: /b"), `f:8:5: peers[0]: the key "name" is missing; add for example: name: b
f:8:5: peers[0]: the key "identity" is missing; add for example: identity: [10.255.0.2]
f:8:5: peers[0]: the key "locators" is missing; add for example: locators: [10.1.2.2, 10.2.2.2]`},
		{"locator without address", peerWith("10.1.2.2,", "{fabric: red},"), `f:10:16: peers[0].locators[0]: the key "address" is missing; add for example: address: 10.1.2.2`},

		// Types
		{"list for a mapping", minimal + "liveness: [1ms]\n", `f:11:11: liveness: a list where keys are expected; write keys and values, for example interval: 1ms`},
		{"mapping for a list", edit(minimal, "  - name: up1\n  - name: up2", "  name: up1"), `f:5:3: uplinks: keys and values where a list is expected; write a list, for example uplinks: [{name: eth1}, {name: eth2}]
f:5:3: uplinks: there is no uplink; write for example: uplinks: [{name: eth1}, {name: eth2}]`},
		{"scalar for a mapping", edit(minimal, "  - name: up2", "  - up2"), `f:6:5: uplinks[1]: "up2" where keys are expected; write keys and values, for example name: eth1`},
		{"list for a scalar", edit(minimal, "host: a", "host: [a]"), `f:1:7: host: a list where a single value is expected; write one value, for example a`},
		{"mapping for an address", edit(minimal, `10.255.0.1, "fd00:255::1"`, "{a: b}"), `f:2:12: identity[0]: keys and values where a single value is expected; write one value, for example 10.1.2.2 or "fd00:1:2::2"`},
		{"list for a number", up1("weight: [1]"), `f:6:13: uplinks[0].weight: a list where a number is expected; write a whole number from 1 to 255`},
		{"list for a duration", minimal + "liveness: {interval: [1ms]}\n", `f:11:22: liveness.interval: a list where a duration is expected; write a duration from 1ms to 1s`},
		{"list for a listener", minimal + "metrics: {listen: []}\n", `f:11:19: metrics.listen: a list where an address and port are expected; write address:port, for example "127.0.0.1:9555" or "[::1]:9555", or "" for no metrics`},
		{"empty entry", edit(minimal, "  - name: up2", "  - ~"), `f:6:5: uplinks[1]: the list entry is empty; give it a value or remove it`},

		// Names
		{"bad host", edit(minimal, "host: a", "host: a b"), `f:1:7: host: "a b" is not a valid name; write 1 to 64 of a-z, 0-9, '-', '_' and '.', with a letter or digit first and last`},
		{"upper-case host", edit(minimal, "host: a", "host: DB1"), `f:1:7: host: "DB1" is not a valid name; write db1`},
		{"empty host", edit(minimal, "host: a", "host: ''"), `f:1:7: host: "" is not a valid name; write 1 to 64 of a-z, 0-9, '-', '_' and '.', with a letter or digit first and last`},
		{"long host", edit(minimal, "host: a", "host: "+strings.Repeat("a", 65)), `f:1:7: host: "` + strings.Repeat("a", 65) + `" is not a valid name; write 1 to 64 of a-z, 0-9, '-', '_' and '.', with a letter or digit first and last`},
		{"bad peer", peerWith("name: b", "name: -b"), `f:8:11: peers[0].name: "-b" is not a valid name; write 1 to 64 of a-z, 0-9, '-', '_' and '.', with a letter or digit first and last`},
		{"bad label", up1("fabric: Red"), `f:6:13: uplinks[0].fabric: "Red" is not a valid name; write red`},
		{"bad interface", edit(minimal, "up1", "a/b"), `f:5:11: uplinks[0].name: "a/b" is not an interface name; write 1 to 15 characters without spaces, '/' and ':', as ip link shows it`},
		{"long interface", edit(minimal, "up1", "up12345678901234"), `f:5:11: uplinks[0].name: "up12345678901234" is not an interface name; write 1 to 15 characters without spaces, '/' and ':', as ip link shows it`},
		{"own interface", edit(minimal, "up1", "plait0"), `f:5:11: uplinks[0].name: plait0 cannot be an uplink; name the interface that leads to a fabric`},
		{"loopback interface", edit(minimal, "up1", "lo"), `f:5:11: uplinks[0].name: lo cannot be an uplink; name the interface that leads to a fabric`},
		{"two uplinks on one interface", edit(minimal, "up2", "up1"), `f:6:5: uplinks[1]: interface up1 is an uplink already, in line 5; keep one; several locators of an interface go into its addresses`},
		{"own host as peer", peerWith("name: b", "name: a"), `f:8:5: peers[0]: peer a is this host itself; list the other hosts only`},
		{"two peers of one name", minimal + "  - {name: b, identity: 10.255.0.3, locators: 10.1.3.2}\n", `f:11:5: peers[1]: peer b is listed already, in line 8; give each peer its own name`},
		{"ingress", up1("ingress: tcx"), `f:6:14: uplinks[0].ingress: "tcx" is not an ingress hook; write auto, xdp or tc`},
		{"relative key", edit(minimal, "/etc/plait/", ""), `f:3:6: key: "site.key" is not an absolute path; write the path from the root, for example /etc/plait/site.key`},
		{"relative key of a peer", minimal + "    key: b.key\n", `f:11:10: peers[0].key: "b.key" is not an absolute path; write the path from the root, for example /etc/plait/site.key`},

		// Addresses
		{"no address", peerWith("10.1.2.2", "10.1.2"), `f:10:16: peers[0].locators[0]: "10.1.2" is not an IP address; write for example 10.1.2.2 or "fd00:1:2::2"`},
		{"leading zero", peerWith("10.1.2.2", "10.01.2.2"), `f:10:16: peers[0].locators[0]: "10.01.2.2" is not an IP address; write for example 10.1.2.2 or "fd00:1:2::2"`},
		{"host name", peerWith("10.1.2.2", "example"), `f:10:16: peers[0].locators[0]: "example" is not an IP address; write for example 10.1.2.2 or "fd00:1:2::2"`},
		{"prefix", peerWith("10.1.2.2", "10.1.2.2/24"), `f:10:16: peers[0].locators[0]: 10.1.2.2/24 has a prefix length; write 10.1.2.2`},
		{"zone", up1("gateway: fe80::1%up1"), `f:6:14: uplinks[0].gateway: fe80::1%up1 has a zone; write fe80::1`},
		{"mapped", peerWith("10.1.2.2", `"::ffff:10.1.2.2"`), `f:10:16: peers[0].locators[0]: ::ffff:10.1.2.2 is an IPv4-mapped IPv6 address; write 10.1.2.2`},
		{"unspecified", peerWith("10.1.2.2", `0.0.0.0`), `f:10:16: peers[0].locators[0]: 0.0.0.0 is the unspecified address` + unicastRight},
		{"unspecified v6", peerWith("10.1.2.2", `"::"`), `f:10:16: peers[0].locators[0]: :: is the unspecified address` + unicastRight},
		{"loopback", edit(minimal, "10.255.0.1", "127.0.0.2"), `f:2:12: identity[0]: 127.0.0.2 is a loopback address` + unicastRight},
		{"loopback v6", edit(minimal, "fd00:255::1", "::1"), `f:2:24: identity[1]: ::1 is a loopback address` + unicastRight},
		{"multicast", up1("addresses: [224.0.0.1]"), `f:6:17: uplinks[0].addresses[0]: 224.0.0.1 is a multicast address` + unicastRight},
		{"multicast v6", up1(`gateway: ["ff02::1"]`), `f:6:15: uplinks[0].gateway[0]: ff02::1 is a multicast address` + unicastRight},
		{"broadcast", up1("addresses: [255.255.255.255]"), `f:6:17: uplinks[0].addresses[0]: 255.255.255.255 is the broadcast address` + unicastRight},
		{"this network", up1("addresses: [0.1.1.1]"), `f:6:17: uplinks[0].addresses[0]: 0.1.1.1 is an address of "this network" (RFC 1122)` + unicastRight},
		{"link-local", edit(minimal, "10.255.0.1", "169.254.0.1"), `f:2:12: identity[0]: 169.254.0.1 is a link-local address` + unicastRight},
		{"link-local v6", peerWith(`"fd00:1:2::2"`, `"fe80::2"`), `f:10:36: peers[0].locators[2]: fe80::2 is a link-local address` + unicastRight},
		{"two identities of a family", edit(minimal, "10.255.0.1,", "10.255.0.1, 10.255.0.9,"), `f:2:24: identity[1]: 10.255.0.9 is a second IPv4 identity, after 10.255.0.1; keep one of each family`},
		{"two gateways of a family", up1(`gateway: ["fe80::1", "fe80::2"]`), `f:6:26: uplinks[0].gateway[1]: fe80::2 is a second IPv6 gateway, after fe80::1; keep one of each family`},
		{"no identity", edit(minimal, `10.255.0.1, "fd00:255::1"`, ""), `f:2:11: identity: the list is empty; list an IPv4 address, an IPv6 address, or one of each`},
		{"no peer identity", peerWith(`10.255.0.2, "fd00:255::2"`, ""), `f:9:15: peers[0].identity: the list is empty; list an IPv4 address, an IPv6 address, or one of each`},
		{"no addresses", up1("addresses: []"), `f:6:16: uplinks[0].addresses: the list is empty; list at least one address or remove the key, then the interface's own are used`},
		{"no locators", peerWith(`10.1.2.2, 10.2.2.2, "fd00:1:2::2", "fd00:2:2::2"`, ""), `f:10:15: peers[0].locators: the list is empty; list at least one address of the peer's uplinks`},

		// Addresses against each other
		{"peer's identity is ours", peerWith("10.255.0.2", "10.255.0.1"), `f:9:16: peers[0].identity[0]: 10.255.0.1 cannot be the identity of peer b: it is this host's identity, in line 2; give every host its own identity`},
		{"two peers' identity", minimal + "  - {name: c, identity: 10.255.0.2, locators: 10.1.3.2}\n", `f:11:25: peers[1].identity: 10.255.0.2 cannot be the identity of peer c: it is the identity of peer b, in line 9; give every host its own identity`},
		{"identity is own address", up1("addresses: [10.255.0.1]"), `f:6:17: uplinks[0].addresses[0]: 10.255.0.1 cannot be an address of uplink up1: it is this host's identity, in line 2; choose an identity that is no address of an interface`},
		{"identity is gateway", up1("gateway: 10.255.0.1"), `f:6:14: uplinks[0].gateway: 10.255.0.1 cannot be the gateway of uplink up1: it is this host's identity, in line 2; choose an identity that is no address of an interface`},
		{"identity is a peer's locator", peerWith("10.1.2.2", "10.255.0.1"), `f:10:16: peers[0].locators[0]: 10.255.0.1 cannot be a locator of peer b: it is this host's identity, in line 2; choose an identity that is no address of an interface`},
		{"peer's identity is its locator", peerWith("10.1.2.2", "10.255.0.2"), `f:10:16: peers[0].locators[0]: 10.255.0.2 cannot be a locator of peer b: it is the identity of peer b, in line 9; choose an identity that is no address of an interface`},
		{"peer's identity is our address", edit(up1("addresses: [10.1.1.2, \"fd00:1:1::2\"]"), "10.255.0.2", "10.1.1.2"), `f:10:16: peers[0].identity[0]: 10.1.1.2 cannot be the identity of peer b: it is an address of uplink up1, in line 6; choose an identity that is no address of an interface`},
		{"peer's identity is a gateway", up1("gateway: 10.255.0.2"), `f:10:16: peers[0].identity[0]: 10.255.0.2 cannot be the identity of peer b: it is the gateway of uplink up1, in line 6; choose an identity that is no address of an interface`},
		{"one address on two uplinks", edit(minimal, "up1", "up1\n    addresses: 10.1.1.2", "up2", "up2\n    addresses: 10.1.1.2"), `f:8:16: uplinks[1].addresses: 10.1.1.2 cannot be an address of uplink up2: it is an address of uplink up1, in line 6; list it once`},
		{"address is gateway", up1("addresses: 10.1.1.2\n    gateway: 10.1.1.2"), `f:7:14: uplinks[0].gateway: 10.1.1.2 cannot be the gateway of uplink up1: it is an address of uplink up1, in line 6; an address belongs to one host: correct one of them`},
		{"address is a peer's", up1("addresses: [10.1.2.2, \"fd00:1:1::2\"]"), `f:11:16: peers[0].locators[0]: 10.1.2.2 cannot be a locator of peer b: it is an address of uplink up1, in line 6; an address belongs to one host: correct one of them`},
		{"locator twice", peerWith("10.2.2.2", "10.1.2.2"), `f:10:26: peers[0].locators[1]: 10.1.2.2 cannot be a locator of peer b: it is a locator of peer b, in line 10; list it once`},
		{"locator of two peers", minimal + "  - {name: c, identity: 10.255.0.3, locators: 10.1.2.2}\n", `f:11:47: peers[1].locators: 10.1.2.2 cannot be a locator of peer c: it is a locator of peer b, in line 10; list it once`},
		{"other spelling", peerWith(`"fd00:2:2::2"`, `"FD00:1:2:0::2"`), `f:10:51: peers[0].locators[3]: fd00:1:2::2 cannot be a locator of peer b: it is a locator of peer b, in line 10; list it once`},
		{"peers without names", minimal + "  - {identity: 10.255.0.3, locators: 10.1.2.2}\n", `f:11:5: peers[1]: the key "name" is missing; add for example: name: b
f:11:38: peers[1].locators: 10.1.2.2 cannot be a locator of peer number 2: it is a locator of peer b, in line 10; list it once`},

		// Reach
		{"no common identity", edit(minimal, `10.255.0.1, "fd00:255::1"`, "10.255.0.1", `10.255.0.2, "fd00:255::2"`, `"fd00:255::2"`), `f:8:5: peers[0]: there is no path to peer b: IPv4: the peer has no IPv4 identity, IPv6: this host has no IPv6 identity; one family needs an identity on both sides and locators on both sides`},
		{"locators of the other family", edit(minimal, `10.255.0.2, "fd00:255::2"`, "10.255.0.2", "10.1.2.2, 10.2.2.2, ", ""), `f:8:5: peers[0]: there is no path to peer b: IPv4: the peer has no IPv4 locator, IPv6: the peer has no IPv6 identity; one family needs an identity on both sides and locators on both sides`},
		{"addresses of the other family", edit(minimal, "name: up1\n", "{name: up1, addresses: \"fd00:1:1::2\"}\n", "name: up2", "{name: up2, addresses: \"fd00:2:1::2\"}", `, "fd00:255::2"`, ""), `f:8:5: peers[0]: there is no path to peer b: IPv4: the uplinks list no IPv4 address, IPv6: the peer has no IPv6 identity; one family needs an identity on both sides and locators on both sides`},
		{"labels that never meet", edit(minimal, "name: up1\n", "{name: up1, fabric: red}\n", "name: up2", "{name: up2, fabric: blue}", `[10.1.2.2, 10.2.2.2, "fd00:1:2::2", "fd00:2:2::2"]`, "[{address: 10.1.2.2, fabric: green}]"), `f:8:5: peers[0]: there is no path to peer b: IPv4: no uplink and locator have the same fabric, IPv6: the peer has no IPv6 locator; one family needs an identity on both sides and locators on both sides`},
		{"too many paths", edit(minimal, "10.1.2.2", strings.TrimSuffix(repeat(8, "10.1.3.%d, "), ", ")), `f:8:5: peers[0]: there are 18 IPv4 paths to peer b; at most 16: list fewer locators, or label them with fabric`},
		{"too many paths, listed", edit(minimal, "up1", "up1\n    addresses: ["+strings.TrimSuffix(repeat(8, "10.1.1.%d, "), ", ")+"]"), `f:9:5: peers[0]: there are 18 IPv4 paths to peer b; at most 16: list fewer locators, or label them with fabric`},
		{"too many uplinks", edit(minimal, "  - name: up1\n", repeat(64, "  - {name: u%d, fabric: red}\n"), `[10.1.2.2, 10.2.2.2, "fd00:1:2::2", "fd00:2:2::2"]`, "[{address: 10.1.2.2, fabric: blue}]"), `f:5:3: uplinks: there are 65 uplinks; list at most 64`},
		{"no uplinks", edit(cut(minimal, "  - name: up1", "peers"), "uplinks:", "uplinks: []"), `f:4:10: uplinks: there is no uplink; write for example: uplinks: [{name: eth1}, {name: eth2}]`},
		{"a refused locator", peerWith(`[10.1.2.2, 10.2.2.2, "fd00:1:2::2", "fd00:2:2::2"]`, "[10.1.2]"), `f:10:16: peers[0].locators[0]: "10.1.2" is not an IP address; write for example 10.1.2.2 or "fd00:1:2::2"`},

		// Numbers
		{"weight 0", up1("weight: 0"), `f:6:13: uplinks[0].weight: 0 is out of range; write a whole number from 1 to 255`},
		{"weight 256", up1("weight: 256"), `f:6:13: uplinks[0].weight: 256 is out of range; write a whole number from 1 to 255`},
		{"weight without sense", up1("weight: 99999999999999999999"), `f:6:13: uplinks[0].weight: 99999999999999999999 is out of range; write a whole number from 1 to 255`},
		{"negative weight", up1("weight: -99999999999999999999"), `f:6:13: uplinks[0].weight: -99999999999999999999 is out of range; write a whole number from 1 to 255`},
		{"fraction", up1("weight: 1.5"), `f:6:13: uplinks[0].weight: "1.5" is not a whole number; write a whole number from 1 to 255`},
		{"octal", up1("weight: 010"), `f:6:13: uplinks[0].weight: "010" is not a whole number; write a whole number from 1 to 255`},
		{"hexadecimal", up1("weight: 0x10"), `f:6:13: uplinks[0].weight: "0x10" is not a whole number; write a whole number from 1 to 255`},
		{"empty number", up1("weight: ''"), `f:6:13: uplinks[0].weight: "" is not a whole number; write a whole number from 1 to 255`},
		{"interval", minimal + "liveness: {interval: 999us}\n", `f:11:22: liveness.interval: 999us is out of range; write a duration from 1ms to 1s`},
		{"long interval", minimal + "liveness: {interval: 1001ms}\n", `f:11:22: liveness.interval: 1001ms is out of range; write a duration from 1ms to 1s`},
		{"no unit", minimal + "liveness: {interval: 1}\n", `f:11:22: liveness.interval: 1 has no unit; write a duration from 1ms to 1s`},
		{"no duration", minimal + "liveness: {interval: fast}\n", `f:11:22: liveness.interval: "fast" is not a duration; write a duration from 1ms to 1s`},
		{"idle interval", minimal + "liveness: {idle_interval: 11s}\n", `f:11:27: liveness.idle_interval: 11s is out of range; write a duration from 1ms to 10s`},
		{"idle below interval", minimal + "liveness:\n  interval: 20ms\n  idle_interval: 10ms\n", `f:13:18: liveness.idle_interval: 10ms is shorter than the interval of 20ms; write a duration from 20ms to 10s`},
		{"hold-down", minimal + "liveness: {hold_down: -1s}\n", `f:11:23: liveness.hold_down: -1s is out of range; write a duration from 0s to 10m`},
		{"long hold-down", minimal + "liveness: {hold_down: 11m}\n", `f:11:23: liveness.hold_down: 11m is out of range; write a duration from 0s to 10m`},
		{"multiplier", minimal + "liveness: {multiplier: 2}\n", `f:11:24: liveness.multiplier: 2 is out of range; write a whole number from 3 to 50`},
		{"large multiplier", minimal + "liveness: {multiplier: 51}\n", `f:11:24: liveness.multiplier: 51 is out of range; write a whole number from 3 to 50`},
		{"budget", minimal + "liveness: {budget: 99}\n", `f:11:20: liveness.budget: 99 is out of range; write a whole number from 100 to 1000000`},
		{"port 0", minimal + "native_ports: {tcp: [0]}\n", `f:11:22: native_ports.tcp[0]: 0 is out of range; write a whole number from 1 to 65535`},
		{"port 65536", minimal + "native_ports: {udp: [1, 65536]}\n", `f:11:25: native_ports.udp[1]: 65536 is out of range; write a whole number from 1 to 65535`},
		{"port twice", minimal + "native_ports: {udp: [1, 1]}\n", `f:11:25: native_ports.udp[1]: port 1 is listed twice; remove it`},
		{"listen without port", minimal + "metrics: {listen: 127.0.0.1}\n", `f:11:19: metrics.listen: "127.0.0.1" is not an address and port; write address:port, for example "127.0.0.1:9555" or "[::1]:9555", or "" for no metrics`},
		{"listen by name", minimal + "metrics: {listen: \"localhost:9555\"}\n", `f:11:19: metrics.listen: "localhost:9555" is not an address and port; write address:port, for example "127.0.0.1:9555" or "[::1]:9555", or "" for no metrics`},
		{"too many peers", minimal + repeat(MaxPeers, onePeer), `f:8:3: peers: there are 2049 peers; list at most 2048`},
		{"listen on port 0", minimal + "metrics: {listen: \":0\"}\n", `f:11:19: metrics.listen: ":0" is not an address and port; write address:port, for example "127.0.0.1:9555" or "[::1]:9555", or "" for no metrics`},
	}
}

type problemCase struct{ name, file, want string }

const onePeer = "  - {name: p%[1]d, identity: \"fd00:256::1:%[1]x\", locators: [\"fd00:1::%[1]x\", \"fd00:2::%[1]x\"]}\n"

func TestProblems(t *testing.T) {
	for _, tt := range problemCases() {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseString(tt.file)
			var p Problems
			if !errors.As(err, &p) || c != nil {
				t.Fatalf("got %v, %v", c, err)
			}
			if err.Error() != tt.want {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
		})
	}
}

func TestManyPeers(t *testing.T) {
	if n := len(mustParse(t, minimal+repeat(MaxPeers-1, onePeer)).Peers); n != MaxPeers {
		t.Errorf("%d peers", n)
	}
}

// TestAllAtOnce shows that a problem hides no other one, and that their order is that of the file.
func TestAllAtOnce(t *testing.T) {
	_, err := parseString(`metrics: {listen: x}
host: A
identity: [10.255.0.1, ::1]
uplinks:
  - {name: up1, weight: 0, mtu: 1500}
  - {name: up1, ingress: x}
peers:
  - name: b
    identity: [10.255.0.1]
    locators: [10.255.0.1, {address: 10.1.2.2, fabric: R}]
  - {name: c, identity: 10.255.0.3, locators: "fd00::3", key: k}
liveness: {multiplier: 1}
native_ports: {tcp: 0}
`)
	var p Problems
	if !errors.As(err, &p) {
		t.Fatal(err)
	}
	var got []string
	for _, x := range p {
		got = append(got, fmt.Sprintf("%d:%d %s", x.Line, x.Column, x.Field))
	}
	want := []string{
		"1:19 metrics.listen", "2:7 host", "3:24 identity[1]", "5:25 uplinks[0].weight", "5:28 uplinks[0]",
		"6:5 uplinks[1]", "6:26 uplinks[1].ingress", "8:5 peers[0]", "9:16 peers[0].identity[0]",
		"10:16 peers[0].locators[0]", "10:56 peers[0].locators[1].fabric", "11:63 peers[1].key",
		"12:24 liveness.multiplier", "13:21 native_ports.tcp",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != len(want) {
		t.Errorf("%d lines", n)
	}
	var one Problem
	if !errors.As(err, &one) || one != p[0] {
		t.Errorf("a Problem is no error of Problems: %v", one)
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"none", minimal, ""},
		{"a family nobody mentions", edit(minimal, `, "fd00:255::2"`, "", `, "fd00:1:2::2", "fd00:2:2::2"`, ""), ""},
		{"a family this host lacks", edit(minimal, `, "fd00:255::1"`, ""), ""},
		{"locators missing", edit(minimal, `, "fd00:1:2::2", "fd00:2:2::2"`, ""),
			"f:8:5: peers[0]: peer b is not reachable over IPv6: the peer has no IPv6 locator; complete this family, or remove what is there of it"},
		{"identity missing", edit(minimal, `, "fd00:255::2"`, ""),
			"f:8:5: peers[0]: peer b is not reachable over IPv6: the peer has no IPv6 identity; complete this family, or remove what is there of it"},
		{"addresses missing", edit(minimal, "name: up1\n", "{name: up1, addresses: 10.1.1.2}\n", "name: up2", "{name: up2, addresses: 10.2.1.2}"),
			"f:8:5: peers[0]: peer b is not reachable over IPv6: the uplinks list no IPv6 address; complete this family, or remove what is there of it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustParse(t, tt.file).Warnings.Error(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Parse(iotest.ErrReader(broken), "f"); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := Load(t.TempDir() + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestProblem(t *testing.T) {
	c := mustParse(t, minimal)
	p := c.Problem(c.Uplinks[1].Pos, "the interface up2 does not exist", "")
	if got, want := p.Error(), "f:6:5: uplinks[1]: the interface up2 does not exist"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPairs(t *testing.T) {
	a1, a2, a6 := Locator{addr("10.1.1.2"), ""}, Locator{addr("10.2.1.2"), ""}, Locator{addr("fd00::2"), ""}
	red := func(l Locator) Locator { l.Fabric = "red"; return l }
	blue := func(l Locator) Locator { l.Fabric = "blue"; return l }
	for _, tt := range []struct {
		name          string
		local, remote []Locator
		want          []Pair
	}{
		{"none", nil, []Locator{a1}, nil},
		{"all of a family", []Locator{a1, a2}, []Locator{a1, a2}, []Pair{{0, 0}, {0, 1}, {1, 0}, {1, 1}}},
		{"never across families", []Locator{a1, a6}, []Locator{a6, a2}, []Pair{{0, 1}, {1, 0}}},
		{"equal labels", []Locator{red(a1), blue(a2)}, []Locator{blue(a1), red(a2)}, []Pair{{0, 1}, {1, 0}}},
		{"a label on one side", []Locator{red(a1), a2}, []Locator{a1, blue(a2)}, []Pair{{0, 0}, {1, 0}, {1, 1}}},
		{"an equal label of another family", []Locator{red(a1)}, []Locator{red(a6)}, nil},
	} {
		got := Pairs(tt.local, tt.remote)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
		if p := (&Peer{Locators: tt.remote}).Pairs(tt.local); !slices.Equal(p, got) {
			t.Errorf("%s: Peer.Pairs: %v", tt.name, p)
		}
		// The other end comes to the same paths.
		var back []Pair
		for _, p := range Pairs(tt.remote, tt.local) {
			back = append(back, Pair{p.Remote, p.Local})
		}
		slices.SortFunc(back, func(a, b Pair) int {
			if a.Local != b.Local {
				return a.Local - b.Local
			}
			return a.Remote - b.Remote
		})
		if !slices.Equal(back, got) {
			t.Errorf("%s: from the other side %v", tt.name, back)
		}
	}
}

func TestMaxPaths(t *testing.T) {
	c := mustParse(t, `host: a
identity: [10.255.0.1, "fd00:255::1"]
key: /k
uplinks:
  - {name: up1, fabric: red}
  - {name: up2, fabric: blue, addresses: [10.2.1.2, 10.2.1.3]}
  - {name: up3}
peers:
  - name: b
    identity: [10.255.0.2, "fd00:255::2"]
    locators: [{address: 10.1.2.2, fabric: red}, {address: 10.2.2.2, fabric: blue}, 10.3.2.2, "fd00:3:2::2"]
`)
	// IPv4: up1 to red and none; up2, twice, to blue and none; up3 to all three. IPv6: up1 and up3; up2 has no address.
	for f, want := range map[Family]int{IPv4: 2 + 4 + 3, IPv6: 2} {
		if got := c.MaxPaths(&c.Peers[0], f); got != want {
			t.Errorf("%v: got %d, want %d", f, got, want)
		}
	}
}

// TestReference parses the reference file and requires every key there is in it, with the default where there is one.
func TestReference(t *testing.T) {
	text := readFile(t, reference)
	c, d := parse(text, reference)
	if len(d.problems) > 0 || len(d.warnings) > 0 {
		t.Fatalf("%v\n%v", d.problems, d.warnings)
	}
	for key, used := range d.used {
		if !used {
			t.Errorf("%s is missing", key)
		}
	}
	if c.Liveness != DefaultLiveness() || !reflect.DeepEqual(c.NativePorts, DefaultNativePorts()) ||
		c.MetricsListen != DefaultMetricsListen {
		t.Errorf("not the defaults: %+v %+v %q", c.Liveness, c.NativePorts, c.MetricsListen)
	}
	if u := c.Uplinks[0]; u.Weight != 1 || u.Ingress != IngressAuto {
		t.Errorf("not the defaults: %+v", u)
	}
	// A comment stands above the first occurrence of every key.
	commented := regexp.MustCompile(`(?m)^ *#.*\n( *(- )?)(\w+):`)
	above := make(map[string]bool)
	for _, m := range commented.FindAllStringSubmatch(string(text), -1) {
		above[m[3]] = true
	}
	for key := range d.used {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if name != "address" && name != "metrics" && !above[name] {
			t.Errorf("no comment above %s", name)
		}
	}
}

// TestManual requires a heading for every key, examples that parse, and messages that are really printed.
func TestManual(t *testing.T) {
	text := string(readFile(t, manual))
	_, d := parse(readFile(t, reference), reference)
	headings := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^#+ `(.*)`$").FindAllStringSubmatch(text, -1) {
		headings[plainField(m[1])] = true
	}
	for key := range d.used {
		if !headings[key] {
			t.Errorf("no heading for %s", key)
		}
		delete(headings, key)
	}
	if len(headings) > 0 {
		t.Errorf("headings of keys that do not exist: %v", headings)
	}
	parsed, wrong := 0, 0
	for _, b := range blocks(text) {
		if !strings.HasPrefix(b.text, "host:") {
			continue
		}
		_, err := Parse(strings.NewReader(b.text), "plait.yaml")
		if strings.HasPrefix(b.next, "plait.yaml:") {
			if err == nil || err.Error()+"\n" != b.next {
				t.Errorf("line %d: got\n%v\nwant\n%s", b.line, err, b.next)
			}
			wrong++
			continue
		}
		if err != nil {
			t.Errorf("line %d: %v", b.line, err)
		}
		parsed++
	}
	if parsed == 0 || wrong == 0 {
		t.Errorf("%d examples and %d wrong ones", parsed, wrong)
	}
	// Every message in the manual is one that TestProblems has seen.
	var seen strings.Builder
	for _, c := range problemCases() {
		seen.WriteString(c.want + "\n")
	}
	messages := regexp.MustCompile("(?m)^- `(.*; .*)`$").FindAllStringSubmatch(text, -1)
	for _, m := range messages {
		if !strings.Contains(seen.String(), ": "+m[1]+"\n") {
			t.Errorf("no such message: %s", m[1])
		}
	}
	if len(messages) < 30 {
		t.Errorf("%d messages only", len(messages))
	}
}

// TestReadme parses every configuration the README shows.
func TestReadme(t *testing.T) {
	if _, err := os.Stat(readme); errors.Is(err, fs.ErrNotExist) {
		t.Log("there is no README.md yet")
		return
	}
	n := 0
	for _, b := range blocks(string(readFile(t, readme))) {
		if !strings.HasPrefix(b.text, "host:") {
			continue
		}
		n++
		if _, err := Parse(strings.NewReader(b.text), fmt.Sprintf("README.md, block in line %d", b.line)); err != nil {
			t.Error(err)
		}
	}
	if n < 2 {
		t.Errorf("%d blocks of yaml that begin with host:, want two at least", n)
	}
}

// block is a block of yaml in a Markdown file, and the block right after it if that is of another language.
type block struct {
	line       int
	text, next string
}

func blocks(markdown string) []block {
	var out []block
	re := regexp.MustCompile("(?ms)^( *)```yaml\n(.*?)^ *```\n(?:\n(?:[^\n`#][^\n]*\n)*\n?```text\n(.*?)^```\n)?")
	for _, m := range re.FindAllStringSubmatchIndex(markdown, -1) {
		// A block within a list is indented as the list is.
		indent := regexp.MustCompile("(?m)^" + markdown[m[2]:m[3]])
		b := block{
			line: strings.Count(markdown[:m[0]], "\n") + 1,
			text: indent.ReplaceAllString(markdown[m[4]:m[5]], ""),
		}
		if m[6] >= 0 {
			b.next = markdown[m[6]:m[7]]
		}
		out = append(out, b)
	}
	return out
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	if b, err := os.ReadFile(reference); err == nil {
		f.Add(b)
	}
	for _, s := range []string{
		"", "a", "- a", "{", "[", "host: [", "host: {a: b", "host:\n  - a\n b: c\n", "? a\n: b\n", "&a b: *a\n", "---\n---\n",
		"host: |\n  a\n", "host: \"\\x\"\n", "host: 'a\n", "a: b: c\n", "#", "\t", "\r", "\ufeff", "peers: [{}, [], ~]\n",
		"liveness: {interval: 1e99s}\n", "identity: [::1, fd00::, 1.2.3.4]\n", "uplinks: {a: {b: {c: d}}}\n", "%a\n", "!a b\n", "> \n",
	} {
		f.Add([]byte(s))
		f.Add([]byte(minimal + s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(strings.NewReader(string(text)), "f")
		if err == nil {
			check(t, c)
			return
		}
		var p Problems
		if !errors.As(err, &p) || len(p) == 0 || c != nil {
			t.Fatalf("%v, %v", c, err)
		}
		lines := strings.Count(strings.ReplaceAll(string(text), "\r", "\n"), "\n") + 1
		for i, x := range p {
			if x.Line < 1 || x.Line > lines || x.Column < 1 || x.File != "f" || x.What == "" {
				t.Errorf("bad problem: %+v", x)
			}
			if i > 0 && x.Line < p[i-1].Line {
				t.Errorf("out of order: %v", p)
			}
		}
	})
}

// check requires of a Config what its documentation says.
func check(t *testing.T, c *Config) {
	t.Helper()
	if !validName(c.Host) || c.Identity == (Addrs{}) || len(c.Uplinks) == 0 || len(c.Uplinks) > MaxUplinks ||
		len(c.Peers) > MaxPeers || c.IdentityPos.Line == 0 {
		t.Fatalf("%+v", c)
	}
	identities := make(map[netip.Addr]bool)
	locators := make(map[netip.Addr]bool)
	for _, a := range c.Identity.All() {
		identities[a] = true
	}
	names := map[string]bool{c.Host: true}
	for _, p := range c.Peers {
		if names[p.Name] || !validName(p.Name) || p.KeyFile == "" || p.KeyPos.Line == 0 || p.Pos.Line == 0 {
			t.Fatalf("%+v", p)
		}
		names[p.Name] = true
		for _, a := range p.Identity.All() {
			if identities[a] {
				t.Fatalf("%s twice", a)
			}
			identities[a] = true
		}
		n := 0
		for _, f := range Families {
			paths := c.MaxPaths(&p, f)
			if paths > MaxPaths {
				t.Fatalf("%d paths: %+v", paths, p)
			}
			if c.Identity.Of(f).IsValid() && p.Identity.Of(f).IsValid() {
				n += paths
			}
		}
		if n == 0 {
			t.Fatalf("no path: %+v", p)
		}
		for _, l := range p.Locators {
			if locators[l.Addr] {
				t.Fatalf("%s twice", l.Addr)
			}
			locators[l.Addr] = true
		}
	}
	uplinks := make(map[string]bool)
	for _, u := range c.Uplinks {
		if uplinks[u.Name] || u.Name == "" || u.Weight == 0 || u.Pos.Line == 0 {
			t.Fatalf("%+v", u)
		}
		uplinks[u.Name] = true
		for _, a := range u.Addresses {
			if locators[a] {
				t.Fatalf("%s twice", a)
			}
			locators[a] = true
		}
		for _, a := range u.Gateways.All() {
			if identities[a] {
				t.Fatalf("%s is a gateway and an identity", a)
			}
		}
	}
	for a := range locators {
		if identities[a] || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.Is4In6() {
			t.Fatalf("locator %s", a)
		}
	}
	l := c.Liveness
	if l.Interval < MinInterval || l.Interval > l.IdleInterval || l.IdleInterval > MaxIdleInterval || l.HoldDown < 0 ||
		l.Multiplier < MinMultiplier || l.Multiplier > MaxMultiplier || l.Budget < MinBudget || l.Budget > MaxBudget {
		t.Fatalf("%+v", l)
	}
}
