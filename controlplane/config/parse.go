// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	maxName          = 64 // characters of a host's name, as in Linux (HOST_NAME_MAX), or of a label
	maxInterfaceName = 15 // bytes of an interface's name, IFNAMSIZ without the terminating zero
)

// Examples in messages.
const (
	exampleFile     = "host: a"
	exampleIdentity = `identity: [10.255.0.1, "fd00:255::1"]`
	exampleUplinks  = "uplinks: [{name: eth1}, {name: eth2}]"
	examplePeers    = `peers: [{name: b, identity: [10.255.0.2], locators: [10.1.2.2, 10.2.2.2]}]`
	exampleKey      = "key: /etc/plait/site.key"
	exampleAddress  = `10.1.2.2 or "fd00:1:2::2"`
)

// Parse reads a configuration. The name of the file is for messages only.
//
// The error is a Problems with everything that is wrong, in the order of the file, or one from r. Nothing else is opened
// or asked: the result depends on the text alone.
func Parse(r io.Reader, file string) (*Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration %s: %w", file, err)
	}
	c, d := parse(text, file)
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	return c, nil
}

// parse is Parse with the document, which has the problems.
func parse(text []byte, file string) (*Config, *document) {
	d := &document{file: file, used: make(map[string]bool)}
	root, ok := d.open(text)
	if !ok {
		return nil, d
	}
	p := reader{document: d, config: &Config{
		File:          file,
		Liveness:      DefaultLiveness(),
		NativePorts:   DefaultNativePorts(),
		MetricsListen: DefaultMetricsListen,
	}}
	p.file(root)
	p.validate()
	d.problems.Sort()
	d.warnings.Sort()
	p.config.Warnings = d.warnings
	return p.config, d
}

// reader turns values into a Config and collects what must be checked across them.
type reader struct {
	*document
	config *Config
	key    string // the key for all peers
	keyPos Pos
	claims []claim

	// incomplete says that an address or label of this host was refused: what seems to be missing may not be.
	incomplete bool
	// incompletePeer says the same of peers, by their index.
	incompletePeer map[int]bool
}

// claim is an address and what the file wants it to be.
type claim struct {
	addr  netip.Addr
	role  role
	owner string // name of the peer or uplink; "" is this host
	Pos
}

type role int

const (
	identity role = iota
	address       // a locator of this host
	gateway
	locator // of a peer
)

// String says what the address is, in a sentence.
func (c claim) String() string {
	switch {
	case c.role == identity && c.owner == "":
		return "this host's identity"
	case c.role == identity:
		return "the identity of peer " + c.owner
	case c.role == address:
		return "an address of uplink " + c.owner
	case c.role == gateway:
		return "the gateway of uplink " + c.owner
	}
	return "a locator of peer " + c.owner
}

func (p *reader) file(root value) {
	c := p.config
	p.incompletePeer = make(map[int]bool)
	has := p.mapping(root, exampleFile,
		field{"host", func(v value) { c.Host, _ = p.name(v, "a") }},
		field{"identity", func(v value) {
			c.IdentityPos = v.Pos
			var ok bool
			if c.Identity, ok = p.identity(v, ""); !ok {
				p.incomplete = true
			}
		}},
		field{"key", func(v value) { p.key, p.keyPos = p.path(v), v.Pos }},
		field{"uplinks", p.uplinks},
		field{"peers", p.peers},
		field{"liveness", p.liveness},
		field{"native_ports", p.nativePorts},
		field{"metrics", func(v value) {
			p.mapping(v, `listen: "127.0.0.1:9555"`,
				field{"listen", func(v value) { c.MetricsListen, c.MetricsPos = p.listen(v), v.Pos }})
		}},
	)
	for _, r := range [...]struct{ key, example string }{
		{"host", exampleFile},
		{"identity", exampleIdentity},
		{"uplinks", exampleUplinks},
		{"peers", examplePeers},
	} {
		if !has[r.key] {
			p.missing(root.Pos, r.key, r.example)
		}
	}
	for i := range c.Peers {
		peer := &c.Peers[i]
		if peer.KeyPos.Line != 0 {
			continue
		}
		peer.KeyFile, peer.KeyPos = p.key, p.keyPos
		if !has["key"] {
			p.problem(peer.Pos, "add at the top level, for all peers: "+exampleKey+
				"; or one in this peer", "peer %s has no key", nameOr(peer.Name, i))
		}
	}
}

func (p *reader) missing(at Pos, key, example string) {
	p.problem(at, "add for example: "+example, "the key %q is missing", key)
}

func (p *reader) uplinks(v value) {
	c := p.config
	p.list(v, exampleUplinks, func(v value) {
		c.Uplinks = append(c.Uplinks, p.uplink(v, len(c.Uplinks)))
	})
	if n := len(c.Uplinks); n == 0 {
		p.problem(v.Pos, "write for example: "+exampleUplinks, "there is no uplink")
	} else if n > MaxUplinks {
		p.problem(v.Pos, fmt.Sprintf("list at most %d", MaxUplinks), "there are %d uplinks", n)
	}
}

func (p *reader) uplink(v value, index int) Uplink {
	u := Uplink{Pos: v.Pos, Weight: 1, Ingress: IngressAuto}
	first := len(p.claims)
	has := p.mapping(v, "name: eth1",
		field{"name", func(v value) { u.Name = p.interfaceName(v) }},
		field{"addresses", func(v value) {
			u.AddressesPos = v.Pos
			p.list(v, "[10.1.1.2]", func(v value) {
				a, ok := p.address(v, unicast)
				if !ok {
					p.incomplete = true
					return
				}
				u.Addresses = append(u.Addresses, a)
				p.claims = append(p.claims, claim{a, address, "", v.Pos})
			})
			if emptyList(v) {
				p.problem(v.Pos, "list at least one address or remove the key, then the interface's own are used",
					"the list is empty")
			}
		}},
		field{"gateway", func(v value) {
			u.GatewaysPos = v.Pos
			u.Gateways, _ = p.family(v, "gateway", "[10.1.1.1]", linkLocalToo, func(a netip.Addr, at Pos) {
				p.claims = append(p.claims, claim{a, gateway, "", at})
			})
		}},
		field{"weight", func(v value) {
			if n, ok := p.number(v, 1, 255); ok {
				u.Weight = uint8(n)
			}
		}},
		field{"ingress", func(v value) { u.Ingress = p.ingress(v) }},
		field{"fabric", func(v value) {
			var ok bool
			if u.Fabric, ok = p.name(v, "red"); !ok {
				p.incomplete = true
			}
		}},
	)
	if !has["name"] {
		p.missing(v.Pos, "name", "name: eth1")
	}
	for i := first; i < len(p.claims); i++ {
		p.claims[i].owner = nameOr(u.Name, index)
	}
	return u
}

func (p *reader) peers(v value) {
	c := p.config
	p.list(v, examplePeers, func(v value) {
		c.Peers = append(c.Peers, p.peer(v, len(c.Peers)))
	})
	if n := len(c.Peers); n > MaxPeers {
		p.problem(v.Pos, fmt.Sprintf("list at most %d", MaxPeers), "there are %d peers", n)
	}
}

func (p *reader) peer(v value, index int) Peer {
	peer := Peer{Pos: v.Pos}
	first := len(p.claims)
	has := p.mapping(v, "name: b",
		field{"name", func(v value) { peer.Name, _ = p.name(v, "b") }},
		field{"identity", func(v value) {
			var ok bool
			if peer.Identity, ok = p.identity(v, "peer"); !ok {
				p.incompletePeer[index] = true
			}
		}},
		field{"locators", func(v value) {
			p.list(v, "[10.1.2.2, 10.2.2.2]", func(v value) {
				l, at, ok := p.locator(v)
				if !ok {
					p.incompletePeer[index] = true
					return
				}
				peer.Locators = append(peer.Locators, l)
				p.claims = append(p.claims, claim{l.Addr, locator, "", at})
			})
			if emptyList(v) {
				p.problem(v.Pos, "list at least one address of the peer's uplinks", "the list is empty")
			}
		}},
		field{"key", func(v value) { peer.KeyFile, peer.KeyPos = p.path(v), v.Pos }},
	)
	for _, r := range [...]struct{ key, example string }{
		{"name", "name: b"},
		{"identity", "identity: [10.255.0.2]"},
		{"locators", "locators: [10.1.2.2, 10.2.2.2]"},
	} {
		if !has[r.key] {
			p.missing(v.Pos, r.key, r.example)
		}
	}
	for i := first; i < len(p.claims); i++ {
		p.claims[i].owner = nameOr(peer.Name, index)
	}
	return peer
}

// nameOr is how messages call an entry: by its name or, if that was refused, by its number in the list.
func nameOr(name string, index int) string {
	if name != "" {
		return name
	}
	return fmt.Sprintf("number %d", index+1)
}

// locator reads an address, or a mapping of an address and a label.
func (p *reader) locator(v value) (l Locator, at Pos, ok bool) {
	if _, scalar := text(v.node); scalar {
		l.Addr, ok = p.address(v, unicast)
		return l, v.Pos, ok
	}
	at, labelled := v.Pos, true
	has := p.mapping(v, "{address: 10.1.2.2, fabric: red}",
		field{"address", func(v value) { at = v.Pos; l.Addr, ok = p.address(v, unicast) }},
		field{"fabric", func(v value) { l.Fabric, labelled = p.name(v, "red") }},
	)
	if !has["address"] {
		p.missing(v.Pos, "address", "address: 10.1.2.2")
	}
	return l, at, ok && labelled
}

// identity reads one or two addresses of different families. owner is "" for this host.
func (p *reader) identity(v value, owner string) (Addrs, bool) {
	a, ok := p.family(v, "identity", `[10.255.0.1, "fd00:255::1"]`, unicast, func(a netip.Addr, at Pos) {
		p.claims = append(p.claims, claim{a, identity, owner, at})
	})
	if emptyList(v) {
		p.problem(v.Pos, "list an IPv4 address, an IPv6 address, or one of each", "the list is empty")
	}
	return a, ok
}

// family reads a list of at most one address of each family.
func (p *reader) family(v value, what, example string, scope scope, claim func(netip.Addr, Pos)) (out Addrs, ok bool) {
	ok = true
	p.list(v, example, func(v value) {
		a, valid := p.address(v, scope)
		if !valid {
			ok = false
			return
		}
		f := FamilyOf(a)
		if first := out.Of(f); first.IsValid() {
			p.problem(v.Pos, "keep one of each family", "%s is a second %s %s, after %s", a, f, what, first)
			return
		}
		out.set(a)
		claim(a, v.Pos)
	})
	return out, ok
}

// scope says which addresses are allowed.
type scope bool

const (
	unicast      scope = false // global unicast, private and unique local ones included
	linkLocalToo scope = true  // also link-local ones: gateways often have no other
)

func (p *reader) address(v value, allowed scope) (netip.Addr, bool) {
	s, ok := p.document.text(v, exampleAddress)
	if !ok {
		return netip.Addr{}, false
	}
	const right = "write a global unicast address, for example " + exampleAddress
	if prefix, err := netip.ParsePrefix(s); err == nil {
		p.problem(v.Pos, "write "+prefix.Addr().String(), "%s has a prefix length", s)
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		p.problem(v.Pos, "write for example "+exampleAddress, "%q is not an IP address", s)
		return netip.Addr{}, false
	}
	what := ""
	switch {
	case a.Zone() != "":
		p.problem(v.Pos, "write "+a.WithZone("").String(), "%s has a zone", s)
		return netip.Addr{}, false
	case a.Is4In6():
		p.problem(v.Pos, "write "+a.Unmap().String(), "%s is an IPv4-mapped IPv6 address", s)
		return netip.Addr{}, false
	case a.IsUnspecified():
		what = "the unspecified address"
	case a.IsLoopback():
		what = "a loopback address"
	case a.IsMulticast():
		what = "a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		what = "the broadcast address"
	case a.Is4() && a.As4()[0] == 0:
		what = "an address of \"this network\" (RFC 1122)"
	case a.IsLinkLocalUnicast() && allowed != linkLocalToo:
		what = "a link-local address"
	}
	if what != "" {
		p.problem(v.Pos, right, "%s is %s", s, what)
		return netip.Addr{}, false
	}
	return a, true
}

// name reads a host's name or a label. Only lower case, since names that differ in case only would derive different keys.
func (p *reader) name(v value, example string) (string, bool) {
	s, ok := p.document.text(v, example)
	if !ok {
		return "", false
	}
	if !validName(s) {
		right := fmt.Sprintf("write 1 to %d of a-z, 0-9, '-', '_' and '.', with a letter or digit first and last", maxName)
		if l := strings.ToLower(s); validName(l) {
			right = "write " + l
		}
		p.problem(v.Pos, right, "%q is not a valid name", s)
		return "", false
	}
	return s, true
}

func validName(s string) bool {
	alphanumeric := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	if s == "" || len(s) > maxName || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !alphanumeric(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return false
		}
	}
	return true
}

func (p *reader) interfaceName(v value) string {
	s, ok := p.document.text(v, "eth1")
	if !ok {
		return ""
	}
	switch {
	// As the kernel's dev_valid_name does, and without what no one can type.
	case s == "" || len(s) > maxInterfaceName || s == "." || s == ".." ||
		strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }):
		right := fmt.Sprintf("write 1 to %d characters without spaces, '/' and ':', as ip link shows it", maxInterfaceName)
		p.problem(v.Pos, right, "%q is not an interface name", s)
		return ""
	case s == "lo" || s == "plait0":
		p.problem(v.Pos, "name the interface that leads to a fabric", "%s cannot be an uplink", s)
		return ""
	}
	return s
}

func (p *reader) ingress(v value) IngressHook {
	s, ok := p.document.text(v, "auto")
	if !ok {
		return IngressAuto
	}
	h := IngressHook(s)
	if h != IngressAuto && h != IngressXDP && h != IngressTC {
		p.problem(v.Pos, "write auto, xdp or tc", "%q is not an ingress hook", s)
		return IngressAuto
	}
	return h
}

// path reads the absolute path of a key file.
func (p *reader) path(v value) string {
	s, ok := p.document.text(v, "/etc/plait/site.key")
	if !ok {
		return ""
	}
	if !filepath.IsAbs(s) {
		p.problem(v.Pos, "write the path from the root, for example /etc/plait/site.key", "%q is not an absolute path", s)
	}
	return filepath.Clean(s)
}

func (p *reader) liveness(v value) {
	l := &p.config.Liveness
	var idle Pos
	p.mapping(v, "interval: 1ms",
		field{"interval", func(v value) {
			if t, ok := p.duration(v, MinInterval, MaxInterval); ok {
				l.Interval = t
			}
		}},
		field{"idle_interval", func(v value) {
			idle = v.Pos
			if t, ok := p.duration(v, MinInterval, MaxIdleInterval); ok {
				l.IdleInterval = t
			}
		}},
		field{"hold_down", func(v value) {
			if t, ok := p.duration(v, 0, MaxHoldDown); ok {
				l.HoldDown = t
			}
		}},
		field{"multiplier", func(v value) {
			if n, ok := p.number(v, MinMultiplier, MaxMultiplier); ok {
				l.Multiplier = n
			}
		}},
		field{"budget", func(v value) {
			if n, ok := p.number(v, MinBudget, MaxBudget); ok {
				l.Budget = n
			}
		}},
	)
	if l.IdleInterval < l.Interval {
		p.problem(idle, fmt.Sprintf("write a duration from %s to %s", short(l.Interval), short(MaxIdleInterval)),
			"%s is shorter than the interval of %s", short(l.IdleInterval), short(l.Interval))
	}
}

func (p *reader) nativePorts(v value) {
	n := &p.config.NativePorts
	p.mapping(v, "tcp: [179]",
		field{"tcp", func(v value) { n.TCP = p.ports(v, "[179]") }},
		field{"udp", func(v value) { n.UDP = p.ports(v, "[3784, 3785, 4784]") }},
	)
}

func (p *reader) ports(v value, example string) []uint16 {
	var out []uint16
	p.list(v, example, func(v value) {
		n, ok := p.number(v, 1, 65535)
		if !ok {
			return
		}
		if slices.Contains(out, uint16(n)) {
			p.problem(v.Pos, "remove it", "port %d is listed twice", n)
			return
		}
		out = append(out, uint16(n))
	})
	return out
}

// listen reads an address and port, or nothing.
func (p *reader) listen(v value) string {
	const right = `write address:port, for example "127.0.0.1:9555" or "[::1]:9555", or "" for no metrics`
	s, ok := text(v.node)
	if !ok {
		p.problem(v.Pos, right, "%s where an address and port are expected", kind(v.node))
		return ""
	}
	if s == "" {
		return ""
	}
	host := s
	// net.Listen takes ":9555" for every address of the host.
	if strings.HasPrefix(s, ":") {
		host = "0.0.0.0" + s
	}
	a, err := netip.ParseAddrPort(host)
	if err != nil || a.Port() == 0 || !strings.HasSuffix(s, ":"+strconv.Itoa(int(a.Port()))) {
		p.problem(v.Pos, right, "%q is not an address and port", s)
		return ""
	}
	return s
}
