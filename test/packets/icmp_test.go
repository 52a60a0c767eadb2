// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/plait-net/plait/maps"
)

// icmpError is an error about a packet.
func icmpError(f maps.Family, typ, code uint8, rest uint32, quote []byte) packet {
	if f == v4 {
		return packet{body: icmp4(typ, code, rest, quote), tos: 0xc0}
	}
	return packet{body: icmp6(typ, code, rest, quote)}
}

// errorTypes are those that quote a packet: type and code, and the rest of the header (an MTU, a
// pointer).
func errorTypes(f maps.Family) [][3]uint32 {
	if f == v4 {
		return [][3]uint32{{3, 1, 0}, {3, 3, 0}, {3, 4, 1400}, {4, 0, 0}, {11, 0, 0}, {11, 1, 0}, {12, 0, 0x14000000}}
	}
	return [][3]uint32{{1, 0, 0}, {1, 4, 0}, {2, 0, 1400}, {3, 0, 0}, {3, 1, 0}, {4, 1, 40}, {100, 0, 0}, {127, 0, 0}}
}

// router is an address in the middle.
func router(f maps.Family) netip.Addr { return other(f) }

// quoted is how a packet looks when quoted with other addresses: a checksum behind IPv6 extension
// headers is not looked for, and nobody verifies it there.
func (p packet) quoted(was, now ends, hop uint8) []byte {
	if len(p.exts) > 0 {
		p.body = raw(p.proto, p.build(was))
	}
	return p.ip(now, hop)
}

// cutQuote is the first n bytes of the quote that is wanted. Half a checksum cannot be corrected: it
// stays as it was.
func (s sample) cutQuote(was, now []byte, n int) []byte {
	out := append([]byte(nil), now[:n]...)
	field, ok := map[uint8]int{6: 16, 17: 6, protoUDPLite: 6, protoDCCP: 6, protoICMP6: 2}[s.proto]
	if half := s.l4(s.family) - ethLen + field; ok && n == half+1 {
		out[half] = was[half]
	}
	return out
}

// quotable is a sample that is not an oddity at the IP level.
func quotable() (out []sample) {
	for _, s := range samples() {
		if s.proto != protoICMP6 || s.family == v6 {
			out = append(out, s)
		}
	}
	return out
}

// quoteNeeded is how much of a quoted packet must be there: 8 bytes behind the IP header always do.
func (s sample) quoteNeeded() int {
	switch {
	case s.family == v4 && s.offset == 0:
		return ip4Len + len(s.options) + 4
	case s.family == v4:
		return ip4Len
	case len(s.exts) == 0 && (s.proto == 6 || s.proto == 17):
		return ip6Len + 4
	}
	return ip6Len
}

// quoteLengths are the lengths to quote: every one up to a little beyond the transport header, the
// usual limits, and the whole.
func (s sample) quoteLengths(whole int) (out []int) {
	least := ip4Len
	if s.family == v6 {
		least = ip6Len
	}
	for n := least; n <= min(whole, s.l4(s.family)-ethLen+24); n++ {
		out = append(out, n)
	}
	limit := 548 // RFC 1812, section 4.3.2.3: 576 bytes in all
	if s.family == v6 {
		limit = 1232 // RFC 4443: 1280 bytes in all
	}
	return append(out, min(whole, limit))
}

// TestErrorFromRouter: an error about a translated packet, from somewhere on the way. It becomes one
// about the packet that the program sent; the router's address stays.
func TestErrorFromRouter(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, s := range quotable() {
		t.Run(fmt.Sprintf("%s %s", s.family, s.name), func(t *testing.T) {
			f := s.family
			path := w.path(hostB, f, 1)
			wire, inner := locators(f, hostA, hostB, 1), identities(f, hostA, hostB)
			quote, quoteWant := s.quoted(wire, wire, 187), s.quoted(wire, inner, 59)
			// What a router says is no evidence that the peer is there.
			w.paths[path].Heard, w.paths[path].HeardPeer = 5, 7
			outer := ends{router(f), wire.src}
			for i, n := range s.quoteLengths(len(quote)) {
				typ := errorTypes(f)[i%len(errorTypes(f))]
				in := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], quote[:n])
				out := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.cutQuote(quote, quoteWant, n))
				for _, hop := range []uint8{1, 63, 252} {
					result := want{frame: out.frame(ends{outer.src, inner.src}, hop), rx: 1, path: int(path)}
					if n < s.quoteNeeded() {
						result = want{}
					}
					result.note = fmt.Sprintf("quoting %d bytes, needed %d", n, s.quoteNeeded())
					for _, h := range ingresses {
						w.check(t, h, in.frame(outer, hop), result)
					}
				}
			}
		})
	}
}

// TestErrorFromPeer: an error that the peer's host itself sends: marked if it went through plait
// there, from its locator in any case.
func TestErrorFromPeer(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, s := range quotable() {
		t.Run(fmt.Sprintf("%s %s", s.family, s.name), func(t *testing.T) {
			f := s.family
			path := w.path(hostB, f, 0)
			wire, inner := locators(f, hostA, hostB, 0), identities(f, hostA, hostB)
			quote, quoteWant := s.quoted(wire, wire, 128), s.quoted(wire, inner, 0)
			w.paths[path].Heard, w.paths[path].HeardPeer = 5, 7
			for _, typ := range errorTypes(f) {
				n := min(len(quote), s.l4(f)-ethLen+8)
				if n < s.quoteNeeded() {
					t.Skip("nothing to quote behind the header")
				}
				in := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], quote[:n])
				out := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.cutQuote(quote, quoteWant, n))
				for hop, hopWant := range map[uint8]uint8{64: 64, 127: 127, 128: 0, 255: 127} {
					for _, h := range ingresses {
						w.check(t, h, in.frame(wire.reversed(), hop), want{
							frame: out.frame(inner.reversed(), hopWant), rx: 1, path: int(path),
							live: func(l *liveness) { l.paths[path].Heard, l.paths[path].HeardPeer = sentRound, peerRound },
						})
					}
				}
			}
		})
	}
}

// TestErrorSent: an error of ours about a packet that plait delivered. The peer's stack must find in
// the quote what is on the wire, on whichever path the error goes.
func TestErrorSent(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, s := range quotable() {
		for number := range numPaths {
			t.Run(fmt.Sprintf("%s %s path %d", s.family, s.name, number), func(t *testing.T) {
				f := s.family
				w.allOn(hostB, f, uint8(number))
				inner, wire := identities(f, hostB, hostA), locators(f, hostB, hostA, number)
				quote, quoteWant := s.quoted(inner, inner, 59), s.quoted(inner, wire, 187)
				for i, n := range s.quoteLengths(len(quote)) {
					typ := errorTypes(f)[i%len(errorTypes(f))]
					in := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], quote[:n])
					out := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.cutQuote(quote, quoteWant, n))
					w.check(t, egress, in.frame(inner.reversed(), 64), want{
						verdict: redirect, frame: out.frame(wire.reversed(), 192),
						tx: 1, path: int(w.path(hostB, f, number)), note: fmt.Sprintf("quoting %d bytes", n),
					})
				}
			})
		}
	}
}

// notAbout are quotes of packets that plait did not translate, as an error to our first locator
// carries them.
func notAbout(f maps.Family) map[string][]byte {
	p := packet{body: tcp(40000, 80, nil, pattern(20))}
	wire := locators(f, hostA, hostB, 0)
	out := map[string][]byte{
		"the host's own packet":            p.ip(wire, 127),
		"the host's own, at its end":       p.ip(wire, 1),
		"a stranger's packet":              p.ip(ends{wire.src, other(f)}, 255),
		"a pair of two paths":              p.ip(ends{wire.src, hostB.locator[f][1]}, 255),
		"a packet of another of our paths": p.ip(locators(f, hostA, hostB, 1), 255),
		"a packet to us":                   p.ip(wire.reversed(), 255),
		"a packet between identities":      p.ip(identities(f, hostA, hostB), 255),
		"a packet of the other IP version": p.ip(locators(v4+v6-f, hostA, hostB, 0), 255),
		"a probe":                          packet{body: udp(maps.ProbePort, maps.SBFDPort, pattern(64))}.ip(wire, 255),
		"a reflected probe":                packet{body: udp(maps.SBFDPort, maps.ProbePort, pattern(64))}.ip(wire, 255),
		"zeros":                            make([]byte, 60),
	}
	for _, port := range nativeTCP {
		out[fmt.Sprintf("TCP to native port %d", port)] = packet{body: tcp(40000, port, nil, nil)}.ip(wire, 255)
		out[fmt.Sprintf("TCP from native port %d", port)] = packet{body: tcp(port, 40000, nil, nil)}.ip(wire, 255)
	}
	for _, port := range nativeUDP {
		out[fmt.Sprintf("UDP to native port %d", port)] = packet{body: udp(40000, port, nil)}.ip(wire, 255)
		out[fmt.Sprintf("UDP from native port %d", port)] = packet{body: udp(port, 40000, nil)}.ip(wire, 255)
	}
	if f == v4 {
		bad := p.ip(wire, 255)
		bad[0] = 0x44
		out["a header of 4 words"] = bad
	}
	return out
}

// TestErrorAboutOthers: other errors pass untouched. One that the peer's plait marked is translated
// as any packet, and its quote left alone.
func TestErrorAboutOthers(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		typ := errorTypes(f)[0]
		wire := locators(f, hostB, hostA, 0)
		for name, quote := range notAbout(f) {
			t.Run(fmt.Sprintf("%s %s", f, name), func(t *testing.T) {
				for _, n := range []int{len(quote), min(len(quote), ip6Len+8)} {
					p := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], quote[:n])
					for _, h := range ingresses {
						for _, from := range []netip.Addr{router(f), wire.src} {
							w.check(t, h, p.frame(ends{from, wire.dst}, 64), want{})
						}
						w.check(t, h, p.frame(ends{router(f), wire.dst}, 255), want{})
						w.check(t, h, p.frame(wire, 255), want{
							frame: p.frame(identities(f, hostB, hostA), 127), rx: 1, path: int(w.path(hostB, f, 0)),
						})
					}
				}
			})
		}
	}
}

// TestErrorSentAboutOthers: an error of ours about a packet that is not one between our identity and
// that peer's goes out with its quote as it is.
func TestErrorSentAboutOthers(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		typ := errorTypes(f)[0]
		p := packet{body: tcp(40000, 80, nil, pattern(20))}
		for name, quote := range map[string][]byte{
			"a packet of ours":      p.ip(identities(f, hostA, hostB), 64),
			"another peer's packet": p.ip(identities(f, hostC, hostA), 64),
			"a stranger's packet":   p.ip(ends{other(f), hostA.identity[f]}, 64),
			"forwarded":             p.ip(identities(f, hostB, hostC), 64),
		} {
			t.Run(fmt.Sprintf("%s %s", f, name), func(t *testing.T) {
				p := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], quote)
				w.check(t, egress, p.frame(identities(f, hostA, hostB), 64), want{
					verdict: redirect, frame: p.frame(locators(f, hostA, hostB, 0), 192), tx: 1, path: int(w.path(hostB, f, 0)),
				})
			})
		}
	}
}

// TestErrorCut cuts errors as no sender does: the IP header promises more than arrives. The program
// must write nothing that is not there.
func TestErrorCut(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		typ := errorTypes(f)[0]
		s := sample{family: f, packet: packet{body: tcp(40000, 80, nil, pattern(8))}}
		wire, inner := locators(f, hostA, hostB, 0), identities(f, hostA, hostB)
		sent := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.ip(wire, 187))
		in := sent.frame(wire.reversed(), 255)
		out := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.ip(inner, 59)).frame(inner.reversed(), 127)
		egressIn := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.ip(inner.reversed(), 59)).frame(inner, 64)
		egressOut := icmpError(f, uint8(typ[0]), uint8(typ[1]), typ[2], s.ip(wire.reversed(), 187)).frame(wire, 192)
		icmp := s.l4(f)
		quote := icmp + 8
		for n := icmp; n < len(in); n++ {
			if n == quote+s.l4(f)-ethLen+17 {
				continue // half a checksum: TestErrorFromRouter
			}
			result := want{frame: out[:n], rx: 1, path: int(w.path(hostB, f, 0))}
			switch {
			case n < quote+s.quoteNeeded():
				result = want{}
			case n < quote+s.l4(f)-ethLen+18:
				// The quoted checksum is cut off, so what the error's own is to become is not defined.
				result.ignore = icmp + 2
			}
			result.note = fmt.Sprintf("IPv%s length %d", f, n)
			for _, h := range ingresses {
				w.check(t, h, in[:n], result)
			}
			// The same, of ours.
			result = want{frame: egressOut[:n], verdict: redirect, tx: 1, path: int(w.path(hostB, f, 0)), ignore: result.ignore}
			if n < quote+s.l4(f)-ethLen { // the quoted IP header
				result = want{verdict: drop, reason: rTruncated}
			} else if n < quote+s.l4(f)-ethLen+18 {
				result.ignore = icmp + 2
			}
			result.note = fmt.Sprintf("IPv%s length %d", f, n)
			w.check(t, egress, egressIn[:n], result)
		}
	}
}
