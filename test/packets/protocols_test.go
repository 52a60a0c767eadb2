// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/plait-net/plait/maps"
)

// sample is a packet that is translated.
type sample struct {
	name   string
	family maps.Family
	packet
	// checked is how many bytes behind the IP headers must be there to translate it; restored those
	// to restore it.
	checked, restored int
	// shortPasses: at ingress a shorter one is passed on, because it could be the host's own.
	shortPasses bool
}

// samples is every protocol in every way it can lie in a packet.
func samples() []sample {
	data := pattern(37)
	timestamps := []layers.TCPOption{
		{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
		{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: pattern(8)},
	}
	var out []sample
	add := func(f maps.Family, name string, checked int, p packet) {
		out = append(out, sample{name: name, family: f, packet: p, checked: checked, restored: checked})
	}
	for _, f := range families {
		add(f, "TCP", 18, packet{body: tcp(40000, 80, nil, data)})
		add(f, "TCP with options", 18, packet{body: tcp(40000, 80, timestamps, data), tos: 0xb9})
		add(f, "TCP bare", 18, packet{body: tcp(1, 65535, nil, nil)})
		add(f, "UDP", 8, packet{body: udp(40000, 53, data)})
		add(f, "UDP empty", 8, packet{body: udp(40000, 53, nil)})
		add(f, "UDP without checksum", 8, packet{body: udpUnsummed(40000, 53, data)})
		add(f, "UDP with probes' ports next to them", 8, packet{body: udp(7783, 7785, data)})
		add(f, "UDP-Lite", 8, packet{body: udpLite(40000, 53, 0, data)})
		add(f, "UDP-Lite partly covered", 8, packet{body: udpLite(40000, 53, 12, data)})
		add(f, "DCCP", 8, packet{body: dccp(40000, 53, data)})
		add(f, "SCTP", 0, packet{body: sctp(40000, 3868, data[:36])})
		add(f, "SCTP with the ports of BGP and probes", 0, packet{body: sctp(179, 7784, data[:36])})
		add(f, "GRE", 0, packet{body: raw(47, data)})
		add(f, "ESP", 0, packet{body: raw(protoESP, data)})
		add(f, "unknown protocol", 0, packet{body: raw(253, data)})
		add(f, "nothing behind the header", 0, packet{body: raw(253, nil)})
	}
	for _, typ := range []uint8{0, 8, 13, 42} {
		add(v4, fmt.Sprintf("ICMP %d", typ), 8, packet{body: icmp4(typ, 0, 0x00070001, data)})
	}
	add(v4, "ICMPv6 in IPv4", 0, packet{body: raw(protoICMP6, data)})
	for _, typ := range []uint8{128, 129, 138, 255} {
		add(v6, fmt.Sprintf("ICMPv6 %d", typ), 8, packet{body: icmp6(typ, 0, 0x00070001, data)})
	}
	for i := range out {
		out[i].shortPasses = out[i].proto == 1 || out[i].proto == protoICMP6 && out[i].family == v6
	}

	// IPv4 options: router alert; all 40 bytes. And an ICMP echo behind options.
	alert := []byte{148, 4, 0, 0}
	full := append(bytes.Repeat(alert, 9), 1, 1, 1, 0)
	for _, o := range []struct {
		name  string
		bytes []byte
	}{{"router alert", alert}, {"40 bytes of options", full}} {
		add(v4, "TCP behind "+o.name, 18, packet{body: tcp(40000, 80, nil, data), options: o.bytes})
		add(v4, "UDP behind "+o.name, 8, packet{body: udp(40000, 53, data), options: o.bytes})
		add(v4, "GRE behind "+o.name, 0, packet{body: raw(47, data), options: o.bytes})
	}
	out = append(out, sample{
		name: "ICMP echo behind router alert", family: v4, checked: 8, restored: 8, shortPasses: true,
		packet: packet{body: icmp4(8, 0, 0x00070001, data), options: alert},
	})

	// Fragments. The checksum in the first covers the whole datagram; what looks like a native port
	// in a later one is data.
	long := udp(40000, 53, pattern(3000))
	echo := icmp4(8, 0, 0x00070001, pattern(2000))
	echo6 := icmp6(128, 0, 0x00070001, pattern(2000))
	looksNative := append([]byte{0, 179, 0, 179, 0x1e, 0x68, 0x1e, 0x68}, data...)
	add(v4, "first fragment of UDP", 8, packet{body: long, more: true, to: 1480})
	add(v4, "middle fragment of UDP", 0, packet{body: long, more: true, offset: 185, from: 1480, to: 2960})
	add(v4, "last fragment of UDP", 0, packet{body: long, offset: 370, from: 2960, to: 3008})
	add(v4, "later fragment of 8 bytes", 0, packet{body: long, more: true, offset: 1, from: 8, to: 16})
	add(v4, "later fragment that looks native", 0, packet{body: raw(6, looksNative), offset: 1, from: 0, to: 45})
	add(v4, "later fragment of TCP", 0, packet{body: tcp(1, 2, nil, pattern(2000)), offset: 3, from: 24, to: 99})
	add(v4, "later fragment of ICMP", 0, packet{body: echo, offset: 185, from: 1480, to: 2008})
	out = append(out, sample{
		name: "first fragment of ICMP echo", family: v4, checked: 8, restored: 8, shortPasses: true,
		packet: packet{body: echo, more: true, to: 1480},
	})
	first, middle, last, atomic := fragment6(0, true), fragment6(181, true), fragment6(362, false), fragment6(0, false)
	add(v6, "first fragment of UDP", 8, packet{body: long, exts: []ext{first}, to: 1448})
	add(v6, "middle fragment of UDP", 0, packet{body: long, exts: []ext{middle}, from: 1448, to: 2896})
	add(v6, "last fragment of UDP", 0, packet{body: long, exts: []ext{last}, from: 2896, to: 3008})
	add(v6, "atomic fragment of UDP", 8, packet{body: udp(40000, 53, data), exts: []ext{atomic}})
	add(v6, "atomic fragment of TCP", 18, packet{body: tcp(40000, 80, nil, data), exts: []ext{atomic}})
	add(v6, "later fragment that looks native", 0, packet{
		body: raw(6, looksNative), exts: []ext{fragment6(1, false)}, from: 0, to: 45,
	})
	add(v6, "later fragment of AH", 0, packet{body: raw(protoAH, data), exts: []ext{fragment6(1, false)}})
	add(v6, "later fragment of destination options", 0, packet{
		body: raw(protoDstOpts, data), exts: []ext{fragment6(9, false)},
	})
	add(v6, "first fragment of ICMPv6 echo", 8, packet{body: echo6, exts: []ext{first}, to: 1448})
	add(v6, "later fragment of ICMPv6 echo", 0, packet{body: echo6, exts: []ext{middle}, from: 1448, to: 2008})

	// IPv6 extension headers.
	hop, dst := options6(protoHopOpts, 1), options6(protoDstOpts, 1)
	spent := routing6(0)
	for _, chain := range []struct {
		name string
		exts []ext
	}{
		{"hop-by-hop", []ext{hop}},
		{"long hop-by-hop", []ext{options6(protoHopOpts, 5)}},
		{"destination options", []ext{dst}},
		{"spent routing", []ext{spent}},
		{"all of them", []ext{hop, dst, spent, atomic, options6(protoDstOpts, 3)}},
		{"six headers", []ext{hop, dst, dst, dst, dst, dst}},
		{"200 bytes of headers", []ext{options6(protoHopOpts, 20), options6(protoDstOpts, 5)}},
	} {
		add(v6, "TCP behind "+chain.name, 18, packet{body: tcp(40000, 80, nil, data), exts: chain.exts})
		add(v6, "UDP behind "+chain.name, 8, packet{body: udp(40000, 53, data), exts: chain.exts})
		add(v6, "ICMPv6 echo behind "+chain.name, 8, packet{body: icmp6(128, 0, 7, data), exts: chain.exts})
		add(v6, "ESP behind "+chain.name, 0, packet{body: raw(protoESP, data), exts: chain.exts})
		add(v6, "nothing behind "+chain.name, 0, packet{body: raw(protoNoNext, nil), exts: chain.exts})
	}
	for i := range out {
		switch {
		case out[i].proto == protoICMP6 && out[i].family == v4:
			out[i].checked = 4 // egress looks for the checksum before it knows that there is none
		case out[i].proto == protoICMP6 && len(out[i].exts) > 0 && out[i].checked > 0:
			out[i].restored = 4 // only the checksum: errors are not looked for behind headers
		}
	}
	return out
}

// needed is the shortest frame of which so many bytes behind the IP headers are there.
func (s sample) needed(checked int) int {
	n := s.l4(s.family) + checked
	if checked == 0 && len(s.exts) > 0 {
		// The last extension header is read, no further than its first 8 bytes.
		n = s.l4(s.family) - len(s.exts[len(s.exts)-1].bytes) + 8
	}
	return n
}

// TestEgressTranslates: identities out of the application, locators on the wire, on every path.
func TestEgressTranslates(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, s := range samples() {
		for number := range numPaths {
			t.Run(fmt.Sprintf("%s %s path %d", s.family, s.name, number), func(t *testing.T) {
				w.allOn(hostB, s.family, uint8(number))
				in := s.frame(identities(s.family, hostA, hostB), 64)
				w.check(t, egress, in, want{
					verdict: redirect, frame: s.frame(locators(s.family, hostA, hostB, number), 192),
					tx: 1, path: int(w.path(hostB, s.family, number)),
				})
			})
		}
	}
}

// TestIngressRestores: the other way.
func TestIngressRestores(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, s := range samples() {
		for number := range numPaths {
			t.Run(fmt.Sprintf("%s %s path %d", s.family, s.name, number), func(t *testing.T) {
				in := s.frame(locators(s.family, hostB, hostA, number), 190)
				for _, h := range ingresses {
					w.check(t, h, in, want{
						frame: s.frame(identities(s.family, hostB, hostA), 62),
						rx:    1, path: int(w.path(hostB, s.family, number)),
					})
				}
			})
		}
	}
}

// TestTruncated cuts every packet at every length: a program translates it exactly as far as it is
// there, or leaves it alone.
func TestTruncated(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, s := range samples() {
		t.Run(fmt.Sprintf("%s %s", s.family, s.name), func(t *testing.T) {
			out := s.frame(identities(s.family, hostA, hostB), 64)
			outWant := s.frame(locators(s.family, hostA, hostB, 0), 192)
			in := s.frame(locators(s.family, hostB, hostA, 0), 255)
			inWant := s.frame(identities(s.family, hostB, hostA), 127)
			path := int(w.path(hostB, s.family, 0))
			header := ethLen + ip4Len
			if s.family == v6 {
				header = ethLen + ip6Len
			}
			for n := ethLen; n < min(len(in), s.needed(s.checked)+70); n++ {
				egressWant := want{verdict: drop, reason: rTruncated}
				ingressWant := want{verdict: drop, reason: rInTruncated}
				if n >= s.needed(s.checked) {
					egressWant = want{verdict: redirect, frame: outWant[:n], tx: 1, path: path}
				}
				switch {
				case n >= s.needed(s.restored):
					ingressWant = want{frame: inWant[:n], rx: 1, path: path}
				case n < header, s.shortPasses && n >= s.l4(s.family):
					ingressWant = want{}
				}
				egressWant.note = fmt.Sprintf("at length %d, needed %d", n, s.needed(s.checked))
				ingressWant.note = fmt.Sprintf("at length %d, needed %d", n, s.needed(s.restored))
				w.check(t, ingressXDP, in[:n], ingressWant)
				if n >= header { // tc's test-run refuses shorter ones: TestTruncatedIPHeader
					w.check(t, egress, out[:n], egressWant)
					w.check(t, ingressTC, in[:n], ingressWant)
				}
			}
		})
	}
}

// TestHopLimits: the mark is one of two bits, and taken off again by one.
func TestHopLimits(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		p := packet{body: tcp(40000, 80, nil, pattern(10))}
		path := int(w.path(hostB, f, 0))
		for hop := range 256 {
			hop := uint8(hop)
			w.check(t, egress, p.frame(identities(f, hostA, hostB), hop), want{
				verdict: redirect, frame: p.frame(locators(f, hostA, hostB, 0), hop|192), tx: 1, path: path,
				note: fmt.Sprint("hop limit ", hop),
			})
			arrives := want{frame: p.frame(identities(f, hostB, hostA), hop-128), rx: 1, path: path}
			if hop < 128 {
				arrives = want{}
			}
			arrives.note = fmt.Sprint("hop limit ", hop)
			for _, h := range ingresses {
				w.check(t, h, p.frame(locators(f, hostB, hostA, 0), hop), arrives)
			}
		}
	}
}
