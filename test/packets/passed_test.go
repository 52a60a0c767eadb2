// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/plait-net/plait/maps"
)

// other is an address of neither host.
func other(f maps.Family) netip.Addr {
	if f == v4 {
		return netip.MustParseAddr("192.0.2.7")
	}
	return netip.MustParseAddr("2001:db8::7")
}

// TestNotPlaits: what is not plait's crosses the uplinks untouched and uncounted.
func TestNotPlaits(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	type entry struct {
		name  string
		frame []byte
	}
	var table []entry
	add := func(name string, frame []byte) { table = append(table, entry{name, frame}) }

	// The hosts' own traffic between their locators, as Linux sends it, and as it arrives at worst.
	for _, s := range samples() {
		for _, hop := range []uint8{1, 64, 127} {
			add(fmt.Sprintf("own %s %s with hop limit %d", s.family, s.name, hop),
				s.frame(locators(s.family, hostB, hostA, 0), hop))
		}
	}
	// Marked as plait marks, but not from a peer's locator to ours.
	for _, s := range samples() {
		f := s.family
		strangers := map[string]ends{
			"from a stranger":               {other(f), hostA.locator[f][0]},
			"from another path's locator":   {hostB.locator[f][1], hostA.locator[f][0]},
			"forwarded":                     {hostB.locator[f][0], other(f)},
			"between other hosts":           locators(f, hostB, hostC, 0),
			"from our locator to the peer":  locators(f, hostA, hostB, 0),
			"between identities":            identities(f, hostB, hostA),
			"from a locator to an identity": {hostB.locator[f][0], hostA.identity[f]},
		}
		for name, e := range strangers {
			add(fmt.Sprintf("%s %s %s", f, s.name, name), s.frame(e, 255))
		}
	}
	// Native ports, on either side, marked or not.
	for _, f := range families {
		for _, port := range nativeTCP {
			add(fmt.Sprintf("%s TCP to %d", f, port), packet{body: tcp(40000, port, nil, nil)}.frame(locators(f, hostB, hostA, 0), 255))
			add(fmt.Sprintf("%s TCP from %d", f, port), packet{body: tcp(port, 40000, nil, nil)}.frame(locators(f, hostB, hostA, 0), 255))
		}
		for _, port := range nativeUDP[:len(nativeUDP)-1] {
			add(fmt.Sprintf("%s UDP to %d", f, port), packet{body: udp(40000, port, nil)}.frame(locators(f, hostB, hostA, 0), 255))
			add(fmt.Sprintf("%s UDP from %d", f, port), packet{body: udp(port, 40000, nil)}.frame(locators(f, hostB, hostA, 0), 255))
		}
	}
	// Neighbour and multicast listener discovery, also between global addresses on a shared subnet.
	for typ := uint8(130); typ <= 137; typ++ {
		p := packet{body: icmp6(typ, 0, 0x60000000, pattern(24))}
		add(fmt.Sprintf("ICMPv6 %d between locators", typ), p.frame(locators(v6, hostB, hostA, 0), 255))
		for _, dst := range []string{"fe80::1", "ff02::1", "ff02::1:ff00:2"} {
			e := ends{netip.MustParseAddr("fe80::2"), netip.MustParseAddr(dst)}
			add(fmt.Sprintf("ICMPv6 %d to %s", typ, dst), p.frame(e, 255))
		}
	}
	for f, dst := range map[maps.Family]string{v4: "224.0.0.5", v6: "ff02::5"} {
		e := ends{hostB.locator[f][0], netip.MustParseAddr(dst)}
		add(dst, packet{body: raw(89, pattern(44))}.frame(e, 255))
		add(dst+" UDP", packet{body: udp(5353, 5353, pattern(44))}.frame(e, 255))
	}
	add("IPv4 broadcast", packet{body: udp(68, 67, pattern(300))}.frame(
		ends{netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255")}, 255))
	// Not IP.
	add("ARP", ethernet(0x0806, pattern(28)))
	add("LLDP", ethernet(0x88cc, pattern(46)))
	add("length instead of a type", ethernet(38, pattern(46)))
	add("empty frame of unknown type", ethernet(0x88cc, pattern(1)))
	// A tag within the frame: tagged traffic belongs to another interface. (One that the NIC has
	// stripped cannot be given to test-run.)
	for _, f := range families {
		inner := packet{body: tcp(40000, 80, nil, nil)}.ip(locators(f, hostB, hostA, 0), 255)
		tag := binary.BigEndian.AppendUint16([]byte{0, 42}, etherType(f))
		add(f.String()+" in 802.1Q", ethernet(0x8100, append(tag, inner...)))
		add(f.String()+" in 802.1ad", ethernet(0x88a8, append(tag, inner...)))
	}

	for _, e := range table {
		for _, h := range ingresses {
			w.check(t, h, e.frame, want{note: e.name})
		}
	}
	t.Logf("%d packets", len(table))
}

// unsupported are IP packets with headers that plait does not translate.
func unsupported() []sample {
	data := pattern(60)
	var out []sample
	add := func(f maps.Family, name string, p packet) {
		out = append(out, sample{name: name, family: f, packet: p})
	}
	add(v4, "AH", packet{body: raw(protoAH, data)})
	add(v4, "AH behind options", packet{body: raw(protoAH, data), options: []byte{148, 4, 0, 0}})
	add(v6, "AH", packet{body: raw(protoAH, data)})
	add(v6, "AH behind hop-by-hop", packet{body: raw(protoAH, data), exts: []ext{options6(protoHopOpts, 1)}})
	add(v6, "first fragment of AH", packet{body: raw(protoAH, data), exts: []ext{fragment6(0, true)}})
	add(v6, "routing in use", packet{body: tcp(1, 2, nil, data), exts: []ext{routing6(1)}})
	dst := options6(protoDstOpts, 1)
	add(v6, "routing in use behind others", packet{body: udp(1, 2, data), exts: []ext{dst, dst, routing6(9)}})
	add(v6, "seven headers", packet{body: tcp(1, 2, nil, data), exts: []ext{dst, dst, dst, dst, dst, dst, dst}})
	add(v6, "208 bytes of headers", packet{body: tcp(1, 2, nil, data), exts: []ext{options6(protoDstOpts, 26)}})
	add(v6, "2048 bytes of headers", packet{body: tcp(1, 2, nil, data), exts: []ext{options6(protoDstOpts, 256)}})
	return out
}

// TestUnsupported: a marked packet of a known pair that cannot be restored is dropped, because the
// host would take it for its own; without the mark it is the host's own.
func TestUnsupported(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, s := range unsupported() {
		t.Run(fmt.Sprintf("%s %s", s.family, s.name), func(t *testing.T) {
			w.check(t, egress, s.frame(identities(s.family, hostA, hostB), 64), want{verdict: drop, reason: rUnsupported})
			for _, h := range ingresses {
				w.check(t, h, s.frame(locators(s.family, hostB, hostA, 0), 255), want{verdict: drop, reason: rInUnsupported})
				w.check(t, h, s.frame(locators(s.family, hostB, hostA, 0), 64), want{})
				w.check(t, h, s.frame(ends{other(s.family), hostA.locator[s.family][0]}, 255), want{})
			}
		})
	}
}

// TestMalformedIPv4: a header length below 5 words.
func TestMalformedIPv4(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	p := packet{body: tcp(1, 2, nil, pattern(10))}
	for ihl := range byte(5) {
		out, in := p.frame(identities(v4, hostA, hostB), 64), p.frame(locators(v4, hostB, hostA, 0), 255)
		out[ethLen], in[ethLen] = 0x40|ihl, 0x40|ihl
		w.check(t, egress, out, want{verdict: drop, reason: rTruncated})
		for _, h := range ingresses {
			w.check(t, h, in, want{verdict: drop, reason: rInTruncated})
		}
	}
}

// TestTinyFragments: a first fragment without the checksum cannot be translated (RFC 1858 has it
// dropped anyway), and so the datagram is lost whole.
func TestTinyFragments(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		p := packet{body: tcp(40000, 80, nil, pattern(30)), more: true, to: 8}
		if f == v6 {
			p.exts = []ext{fragment6(0, true)}
		}
		w.check(t, egress, p.frame(identities(f, hostA, hostB), 64), want{verdict: drop, reason: rTruncated})
		for _, h := range ingresses {
			w.check(t, h, p.frame(locators(f, hostB, hostA, 0), 255), want{verdict: drop, reason: rInTruncated})
		}
	}
}

// TestEgressRefuses: plait0 passes nothing on. What cannot be sent is dropped, and says why.
func TestEgressRefuses(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	type entry struct {
		name   string
		frame  []byte
		reason maps.Reason
	}
	var table []entry
	add := func(reason maps.Reason, name string, frame []byte) { table = append(table, entry{name, frame, reason}) }
	add(rNotIP, "ARP", ethernet(0x0806, pattern(28)))
	add(rNotIP, "LLDP", ethernet(0x88cc, pattern(46)))
	for _, f := range families {
		p := packet{body: tcp(40000, 80, nil, nil)}
		tag := binary.BigEndian.AppendUint16([]byte{0, 42}, etherType(f))
		add(rNotIP, "tagged", ethernet(0x8100, append(tag, p.ip(identities(f, hostA, hostB), 64)...)))
		add(rUnknownPeer, "to a stranger", p.frame(ends{hostA.identity[f], other(f)}, 64))
		add(rUnknownPeer, "to an unknown host", p.frame(identities(f, hostA, hostS), 64))
		add(rUnknownPeer, "to ourselves", p.frame(identities(f, hostA, hostA), 64))
		add(rUnknownPeer, "to a peer's locator", p.frame(ends{hostA.identity[f], hostB.locator[f][0]}, 64))
		add(rUnknownPeer, "between locators", p.frame(locators(f, hostA, hostB, 0), 255))
		add(rBadSource, "from a locator", p.frame(ends{hostA.locator[f][0], hostB.identity[f]}, 64))
		add(rBadSource, "from a stranger", p.frame(ends{other(f), hostB.identity[f]}, 64))
		add(rBadSource, "from another peer", p.frame(identities(f, hostC, hostB), 64))
		for _, port := range nativeTCP {
			for _, b := range []body{tcp(40000, port, nil, nil), tcp(port, 40000, nil, nil)} {
				add(rNativePort, fmt.Sprintf("TCP %d", port), packet{body: b}.frame(identities(f, hostA, hostB), 64))
			}
			// The same numbers elsewhere are nothing special.
			b := udp(port, port, nil)
			w.check(t, egress, packet{body: b}.frame(identities(f, hostA, hostB), 64), want{
				verdict: redirect, frame: packet{body: b}.frame(locators(f, hostA, hostB, 0), 192),
				tx: 1, path: int(w.path(hostB, f, 0)),
			})
		}
		for _, port := range nativeUDP {
			for _, b := range []body{udp(40000, port, nil), udp(port, 40000, nil)} {
				add(rNativePort, fmt.Sprintf("UDP %d", port), packet{body: b}.frame(identities(f, hostA, hostB), 64))
			}
			b := tcp(port, port, nil, nil)
			w.check(t, egress, packet{body: b}.frame(identities(f, hostA, hostB), 64), want{
				verdict: redirect, frame: packet{body: b}.frame(locators(f, hostA, hostB, 0), 192),
				tx: 1, path: int(w.path(hostB, f, 0)),
			})
		}
	}
	for typ := uint8(130); typ <= 137; typ++ {
		add(rUnsupported, fmt.Sprintf("ICMPv6 %d", typ), packet{body: icmp6(typ, 0, 0, pattern(24))}.frame(identities(v6, hostA, hostB), 255))
	}
	for _, dst := range []string{"224.0.0.5", "239.1.2.3", "255.255.255.255"} {
		add(rUnknownPeer, dst, packet{body: udp(1, 2, nil)}.frame(ends{hostA.identity[v4], netip.MustParseAddr(dst)}, 1))
	}
	for _, dst := range []string{"ff02::1", "fe80::1", "ff05::1:3"} {
		add(rUnknownPeer, dst, packet{body: icmp6(133, 0, 0, nil)}.frame(ends{netip.MustParseAddr("fe80::2"), netip.MustParseAddr(dst)}, 255))
	}
	for _, e := range table {
		t.Run(e.name, func(t *testing.T) {
			w.check(t, egress, e.frame, want{verdict: drop, reason: e.reason})
		})
	}
}

// TestNotAnnounced: until the peer has said that it understands the mark nothing is translated for
// it; what it sends itself is restored.
func TestNotAnnounced(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		w.states[w.group(hostB, f)].Caps = 0
		p := packet{body: tcp(40000, 80, nil, nil)}
		w.check(t, egress, p.frame(identities(f, hostA, hostB), 64), want{verdict: drop, reason: rNotAnnounced})
		w.check(t, egress, p.frame(identities(f, hostA, hostC), 64), want{
			verdict: redirect, frame: p.frame(locators(f, hostA, hostC, 0), 192), tx: 1, path: int(w.path(hostC, f, 0)),
		})
		for _, h := range ingresses {
			w.check(t, h, p.frame(locators(f, hostB, hostA, 0), 255), want{
				frame: p.frame(identities(f, hostB, hostA), 127), rx: 1, path: int(w.path(hostB, f, 0)),
			})
		}
	}
}

// TestAnnouncedOtherCapability: bits that are not the mark's change nothing.
func TestAnnouncedOtherCapability(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		w.states[w.group(hostB, f)].Caps = ^maps.CapMark
		p := packet{body: tcp(40000, 80, nil, nil)}
		w.check(t, egress, p.frame(identities(f, hostA, hostB), 64), want{verdict: drop, reason: rNotAnnounced})
	}
}

// TestTrafficIsNoticed: egress notes the round in which traffic last left, ingress the rounds in
// which something arrived on a path.
func TestTrafficIsNoticed(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		group, path := w.group(hostB, f), w.path(hostB, f, 1)
		w.states[group].Active = 3
		w.paths[path].Heard, w.paths[path].HeardPeer = 5, 7
		p := packet{body: tcp(40000, 80, nil, nil)}
		w.check(t, egress, p.frame(identities(f, hostA, hostB), 64), want{
			verdict: redirect, frame: p.frame(locators(f, hostA, hostB, 0), 192), tx: 1, path: int(w.path(hostB, f, 0)),
			live: func(l *liveness) { l.groups[group].Active = sentRound },
		})
		for _, h := range ingresses {
			w.check(t, h, p.frame(locators(f, hostB, hostA, 1), 255), want{
				frame: p.frame(identities(f, hostB, hostA), 127), rx: 1, path: int(path),
				live: func(l *liveness) { l.paths[path].Heard, l.paths[path].HeardPeer = sentRound, peerRound },
			})
			// Neither the host's own traffic nor a stranger's says anything about the path.
			w.check(t, h, p.frame(locators(f, hostB, hostA, 1), 64), want{})
			w.check(t, h, p.frame(ends{other(f), hostA.locator[f][1]}, 255), want{})
		}
	}
}
