// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/plait-net/plait/maps"
)

// thorough checks more cases than rapid does by default; a case takes well under a millisecond.
func thorough(t *testing.T, check func(*rapid.T)) {
	t.Helper()
	for range 10 {
		rapid.Check(t, check)
	}
}

// drawPort draws a port that is not native.
func drawPort(t *rapid.T, label string) uint16 {
	return rapid.Uint16().Filter(func(p uint16) bool {
		return !slices.Contains(nativeTCP, p) && !slices.Contains(nativeUDP, p)
	}).Draw(t, label)
}

// drawBody draws any transport.
func drawBody(t *rapid.T, f maps.Family, size int) body {
	data := rapid.SliceOfN(rapid.Byte(), 0, size).Draw(t, "data")
	sport, dport := drawPort(t, "sport"), drawPort(t, "dport")
	rest := rapid.Uint32().Draw(t, "rest")
	switch rapid.SampledFrom([]string{
		"tcp", "udp", "udp unsummed", "udp-lite", "dccp", "sctp", "icmp", "other",
	}).Draw(t, "protocol") {
	case "tcp":
		return tcp(sport, dport, nil, data)
	case "udp":
		return udp(sport, dport, data)
	case "udp unsummed":
		return udpUnsummed(sport, dport, data)
	case "udp-lite":
		coverage := uint16(rapid.IntRange(8, 8+len(data)).Draw(t, "coverage"))
		return udpLite(sport, dport, coverage, data)
	case "dccp":
		return dccp(sport, dport, data)
	case "sctp":
		return sctp(sport, dport, data[:len(data)&^3])
	case "icmp":
		if f == v4 {
			typ := rapid.SampledFrom([]uint8{0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 40, 255}).Draw(t, "type")
			return icmp4(typ, uint8(rest), rest, data)
		}
		typ := rapid.Uint8Range(138, 255).Draw(t, "type")
		return icmp6(typ, uint8(rest), rest, data)
	}
	known := []uint8{1, 6, 17, protoUDPLite, protoDCCP, protoICMP6, protoAH, protoHopOpts, protoRouting, protoFragment, protoDstOpts}
	proto := rapid.Uint8().Filter(func(p uint8) bool { return !slices.Contains(known, p) }).Draw(t, "number")
	return raw(proto, data)
}

// drawPacket draws any packet that is to be translated.
func drawPacket(t *rapid.T, f maps.Family) packet {
	p := packet{body: drawBody(t, f, 200), tos: rapid.Byte().Draw(t, "tos")}
	length := len(p.build(identities(f, hostA, hostB)))
	fragment := rapid.SampledFrom([]string{"no", "no", "first", "later"}).Draw(t, "fragment")
	if length < 40 {
		fragment = "no"
	}
	var offset uint16
	switch fragment {
	case "first":
		p.to = 8 * rapid.IntRange(5, length/8).Draw(t, "end")
	case "later":
		// Behind TCP's header: one that is itself in two fragments (RFC 1858) is dropped by its first.
		offset = uint16(rapid.IntRange(3, (length-1)/8).Draw(t, "offset"))
		p.from, p.to = 8*int(offset), length
	}
	more := fragment == "first" || fragment == "later" && rapid.Bool().Draw(t, "more")
	if f == v4 {
		p.more, p.offset = more, offset
		for range rapid.IntRange(0, 10).Draw(t, "options") {
			p.options = append(p.options, 148, 4, 0, 0)
		}
		return p
	}
	for range rapid.IntRange(0, 4).Draw(t, "headers") {
		p.exts = append(p.exts, rapid.SampledFrom([]ext{
			options6(protoHopOpts, 1), options6(protoDstOpts, 1), options6(protoDstOpts, 4), routing6(0),
		}).Draw(t, "header"))
	}
	if fragment != "no" || rapid.Bool().Draw(t, "atomic") {
		p.exts = append(p.exts, fragment6(offset, more))
	}
	return p
}

// TestThereAndBack: what host a sends by any path, and loses hops on its way, host b gets as it was
// sent, but for the hop limit as docs/wire.md has it; and on the wire it is a right packet of the
// locators.
func TestThereAndBack(t *testing.T) {
	a, b := newWorld(t, hostA, hostB, hostC), newWorld(t, hostB, hostA, hostC)
	thorough(t, func(rt *rapid.T) {
		f := rapid.SampledFrom(families).Draw(rt, "family")
		number := rapid.IntRange(0, numPaths-1).Draw(rt, "path")
		hop := rapid.Uint8Range(1, 127).Draw(rt, "hop limit")
		hops := rapid.Uint8Range(0, 64).Draw(rt, "hops")
		p := drawPacket(rt, f)

		a.allOn(hostB, f, uint8(number))
		inner, wire := identities(f, hostA, hostB), locators(f, hostA, hostB, number)
		a.check(rt, egress, p.frame(inner, hop), want{
			verdict: redirect, frame: p.frame(wire, hop|192), tx: 1, path: int(a.path(hostB, f, number)),
		})
		for _, h := range ingresses {
			b.check(rt, h, p.frame(wire, hop|192-hops), want{
				frame: p.frame(inner, hop|64-hops), rx: 1, path: int(b.path(hostA, f, number)),
			})
		}
	})
}

// TestErrorThereAndBack: an error of b about what it got from a reaches a as one about what a sent.
func TestErrorThereAndBack(t *testing.T) {
	a, b := newWorld(t, hostA, hostB, hostC), newWorld(t, hostB, hostA, hostC)
	thorough(t, func(rt *rapid.T) {
		f := rapid.SampledFrom(families).Draw(rt, "family")
		number := rapid.IntRange(0, numPaths-1).Draw(rt, "path")
		hop := rapid.Uint8Range(0, 127).Draw(rt, "hop limit")
		s := sample{family: f, packet: drawPacket(rt, f)}
		inner, wire := identities(f, hostA, hostB), locators(f, hostA, hostB, number)
		sent := s.quoted(inner, inner, hop)
		if len(sent) < s.quoteNeeded() {
			rt.Skip("nothing to quote")
		}
		n := rapid.IntRange(s.quoteNeeded(), len(sent)).Draw(rt, "quoted")
		onWire := s.cutQuote(sent, s.quoted(inner, wire, hop|128), n)
		typ := rapid.SampledFrom(errorTypes(f)).Draw(rt, "type")
		b.allOn(hostA, f, uint8(number))
		e := func(quote []byte) packet { return icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], quote) }
		b.check(rt, egress, e(sent[:n]).frame(inner.reversed(), 64), want{
			verdict: redirect, frame: e(onWire).frame(wire.reversed(), 192), tx: 1, path: int(b.path(hostA, f, number)),
		})
		for _, h := range ingresses {
			a.check(rt, h, e(onWire).frame(wire.reversed(), 192), want{
				frame: e(sent[:n]).frame(inner.reversed(), 64), rx: 1, path: int(a.path(hostB, f, number)),
			})
		}
	})
}

// summed are the transports whose checksum covers the addresses, with two bytes of data of choice.
func summed(f maps.Family, data []byte) map[string]body {
	out := map[string]body{
		"TCP":      tcp(40000, 80, nil, data),
		"UDP":      udp(40000, 53, data),
		"UDP-Lite": udpLite(40000, 53, 0, data),
		"DCCP":     dccp(40000, 53, data),
	}
	if f == v6 {
		out["ICMPv6"] = icmp6(128, 0, 7, data)
	}
	return out
}

// checksumAt is where the checksum of a transport lies.
var checksumAt = map[string]int{"TCP": 16, "UDP": 6, "UDP-Lite": 6, "DCCP": 6, "ICMPv6": 2}

// TestChecksumCorners: a checksum that becomes zero, or was, and so is all ones where zero means
// something else.
func TestChecksumCorners(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		inner, wire := identities(f, hostA, hostB), locators(f, hostA, hostB, 0)
		for name := range summed(f, nil) {
			for where, e := range map[string]ends{"on the wire": wire, "between identities": inner} {
				t.Run(fmt.Sprintf("IPv%s %s %s", f, name, where), func(t *testing.T) {
					// The checksum as data makes the sum all ones.
					at := checksumAt[name]
					data := summed(f, []byte{0, 0})[name].build(e)[at : at+2]
					p := packet{body: summed(f, data)[name]}
					sum := binary.BigEndian.Uint16(p.build(e)[at:])
					if sum != 0 && sum != 0xffff {
						t.Fatalf("checksum %#x", sum)
					}
					path := int(w.path(hostB, f, 0))
					w.check(t, egress, p.frame(inner, 64), want{verdict: redirect, frame: p.frame(wire, 192), tx: 1, path: path})
					for _, h := range ingresses {
						w.check(t, h, p.frame(wire.reversed(), 192), want{frame: p.frame(inner.reversed(), 64), rx: 1, path: path})
					}
					// The same, quoted.
					typ := errorTypes(f)[0]
					in := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], p.ip(wire, 192))
					out := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], p.ip(inner, 64))
					for _, h := range ingresses {
						w.check(t, h, in.frame(wire.reversed(), 192), want{frame: out.frame(inner.reversed(), 64), rx: 1, path: path})
					}
				})
			}
		}
	}
}
