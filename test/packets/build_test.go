// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/plait-net/plait/maps"
)

// ends are the addresses of a packet.
type ends struct{ src, dst netip.Addr }

func (e ends) reversed() ends { return ends{e.dst, e.src} }

func (e ends) family() maps.Family { return maps.FamilyOf(e.src) }

// identities and locators of a packet from one host to another.
func identities(f maps.Family, from, to host) ends { return ends{from.identity[f], to.identity[f]} }

func locators(f maps.Family, from, to host, number int) ends {
	return ends{from.locator[f][number], to.locator[f][number]}
}

// body is what lies behind the IP header (and, for IPv6, the extension headers), for given
// addresses: its checksum may cover them.
type body struct {
	proto uint8
	build func(ends) []byte
}

// packet is an IP packet but for its addresses and hop limit.
type packet struct {
	body
	options  []byte // IPv4, a multiple of 4 bytes
	exts     []ext  // IPv6
	flow     uint32 // IPv6: flow label
	tos      uint8  // traffic class
	more     bool   // IPv4: more fragments
	offset   uint16 // IPv4: of this fragment, in 8 bytes
	from, to int    // part of the body that this fragment carries; 0, 0: all
}

// ext is an IPv6 extension header: protocol number, and its bytes, of which the first (next header)
// is filled in.
type ext struct {
	proto uint8
	bytes []byte
}

const (
	ethLen        = 14
	ip4Len        = 20
	ip6Len        = 40
	tcpLen        = 20
	udpLen        = 8
	protoHopOpts  = 0
	protoRouting  = 43
	protoFragment = 44
	protoESP      = 50
	protoAH       = 51
	protoNoNext   = 59
	protoDstOpts  = 60
	protoDCCP     = 33
	protoICMP6    = 58
	protoSCTP     = 132
	protoUDPLite  = 136
)

// serialize puts layers together with right lengths and checksums.
func serialize(ls ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ls...); err != nil {
		panic(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

// network is the IP header as gopacket wants it for pseudo-headers.
func network(e ends, proto uint8) gopacket.NetworkLayer {
	if e.family() == v4 {
		return &layers.IPv4{SrcIP: e.src.AsSlice(), DstIP: e.dst.AsSlice(), Protocol: layers.IPProtocol(proto)}
	}
	return &layers.IPv6{SrcIP: e.src.AsSlice(), DstIP: e.dst.AsSlice(), NextHeader: layers.IPProtocol(proto)}
}

// ip builds the IP packet.
func (p packet) ip(e ends, hop uint8) []byte {
	payload := p.build(e)
	if p.to > 0 {
		payload = payload[p.from:min(p.to, len(payload))]
	}
	if e.family() == v4 {
		h := &layers.IPv4{
			Version: 4, TOS: p.tos, Id: 0x1234, TTL: hop, FragOffset: p.offset,
			Protocol: layers.IPProtocol(p.proto), SrcIP: e.src.AsSlice(), DstIP: e.dst.AsSlice(),
		}
		if p.more {
			h.Flags = layers.IPv4MoreFragments
		}
		for o := p.options; len(o) > 0; {
			if o[0] <= 1 {
				h.Options = append(h.Options, layers.IPv4Option{OptionType: o[0], OptionLength: 1})
				o = o[1:]
				continue
			}
			h.Options = append(h.Options, layers.IPv4Option{OptionType: o[0], OptionLength: o[1], OptionData: o[2:o[1]]})
			o = o[o[1]:]
		}
		return serialize(h, gopacket.Payload(payload))
	}
	next := p.proto
	var chain []byte
	for i := len(p.exts) - 1; i >= 0; i-- {
		h := append([]byte{next}, p.exts[i].bytes[1:]...)
		chain, next = append(h, chain...), p.exts[i].proto
	}
	h := &layers.IPv6{
		Version: 6, TrafficClass: p.tos, FlowLabel: 0x12345 ^ p.flow, HopLimit: hop,
		NextHeader: layers.IPProtocol(next), SrcIP: e.src.AsSlice(), DstIP: e.dst.AsSlice(),
	}
	out := serialize(h, gopacket.Payload(append(chain, payload...)))
	// gopacket folds a hop-by-hop header into its IPv6 layer only when told to; the field is ours.
	out[6] = next
	return out
}

var macs = [12]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}

// frame builds the Ethernet frame.
func (p packet) frame(e ends, hop uint8) []byte {
	return ethernet(etherType(e.family()), p.ip(e, hop))
}

func etherType(f maps.Family) uint16 {
	if f == v4 {
		return 0x0800
	}
	return 0x86dd
}

func ethernet(etherType uint16, payload []byte) []byte {
	out := append([]byte(nil), macs[:]...)
	out = binary.BigEndian.AppendUint16(out, etherType)
	return append(out, payload...)
}

// l4 is where the transport header begins in the frame.
func (p packet) l4(f maps.Family) int {
	if f == v4 {
		return ethLen + ip4Len + len(p.options)
	}
	off := ethLen + ip6Len
	for _, x := range p.exts {
		off += len(x.bytes)
	}
	return off
}

// checksum is RFC 1071's over the pseudo-header and data, for protocols that gopacket cannot write.
func checksum(e ends, proto uint8, length int, data []byte) uint16 {
	var pseudo []byte
	pseudo = append(pseudo, e.src.AsSlice()...)
	pseudo = append(pseudo, e.dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(length))
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(proto))
	sum := uint64(0)
	for _, part := range [][]byte{pseudo, data} {
		for i, b := range part {
			if i%2 == 0 {
				sum += uint64(b) << 8
			} else {
				sum += uint64(b)
			}
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func pattern(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(i*7 + 3)
	}
	return out
}

func tcp(sport, dport uint16, options []layers.TCPOption, data []byte) body {
	return body{6, func(e ends) []byte {
		h := &layers.TCP{
			SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Seq: 0x01020304, Ack: 0x0a0b0c0d,
			ACK: true, PSH: true, Window: 0x7210, Options: options,
		}
		if err := h.SetNetworkLayerForChecksum(network(e, 6)); err != nil {
			panic(err)
		}
		return serialize(h, gopacket.Payload(data))
	}}
}

func udp(sport, dport uint16, data []byte) body {
	return body{17, func(e ends) []byte {
		h := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
		if err := h.SetNetworkLayerForChecksum(network(e, 17)); err != nil {
			panic(err)
		}
		out := serialize(h, gopacket.Payload(data))
		if binary.BigEndian.Uint16(out[6:]) == 0 { // RFC 768: no checksum, so never a computed one
			out[6], out[7] = 0xff, 0xff
		}
		return out
	}}
}

// udpUnsummed is UDP without a checksum: RFC 768, RFC 6936.
func udpUnsummed(sport, dport uint16, data []byte) body {
	return body{17, func(e ends) []byte {
		out := udp(sport, dport, data).build(e)
		out[6], out[7] = 0, 0
		return out
	}}
}

// udpLite covers the first `coverage` bytes (0: all) of the datagram (RFC 3828).
func udpLite(sport, dport uint16, coverage uint16, data []byte) body {
	return body{protoUDPLite, func(e ends) []byte {
		out := binary.BigEndian.AppendUint16(nil, sport)
		out = binary.BigEndian.AppendUint16(out, dport)
		out = binary.BigEndian.AppendUint16(out, coverage)
		out = append(append(out, 0, 0), data...)
		covered := out
		if coverage > 0 {
			covered = out[:coverage]
		}
		sum := checksum(e, protoUDPLite, len(out), covered)
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(out[6:], sum)
		return out
	}}
}

// dccp is a DCCP packet of type data with a short sequence number (RFC 4340).
func dccp(sport, dport uint16, data []byte) body {
	return body{protoDCCP, func(e ends) []byte {
		out := binary.BigEndian.AppendUint16(nil, sport)
		out = binary.BigEndian.AppendUint16(out, dport)
		out = append(out, 3, 0, 0, 0, 2<<1, 1, 2, 3)
		out = append(out, data...)
		binary.BigEndian.PutUint16(out[6:], checksum(e, protoDCCP, len(out), out))
		return out
	}}
}

func sctp(sport, dport uint16, data []byte) body {
	return body{protoSCTP, func(ends) []byte {
		return serialize(
			&layers.SCTP{SrcPort: layers.SCTPPort(sport), DstPort: layers.SCTPPort(dport), VerificationTag: 77},
			&layers.SCTPData{
				SCTPChunk:     layers.SCTPChunk{Type: layers.SCTPChunkTypeData, Length: uint16(16 + len(data))},
				BeginFragment: true, EndFragment: true, TSN: 9, StreamId: 1,
			},
			gopacket.Payload(data),
		)
	}}
}

// raw is a protocol that nobody translates but for the addresses.
func raw(proto uint8, data []byte) body {
	return body{proto, func(ends) []byte { return data }}
}

// icmp4 is an ICMP message: the rest of the header and what follows.
func icmp4(typ, code uint8, rest uint32, data []byte) body {
	return body{1, func(ends) []byte {
		return serialize(&layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(typ, code), Id: uint16(rest >> 16), Seq: uint16(rest),
		}, gopacket.Payload(data))
	}}
}

// icmp6 is an ICMPv6 message, likewise.
func icmp6(typ, code uint8, rest uint32, data []byte) body {
	return body{protoICMP6, func(e ends) []byte {
		h := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, code)}
		if err := h.SetNetworkLayerForChecksum(network(e, protoICMP6)); err != nil {
			panic(err)
		}
		return serialize(h, gopacket.Payload(append(binary.BigEndian.AppendUint32(nil, rest), data...)))
	}}
}

// options6 is a hop-by-hop or destination options header of 8*n bytes, filled by PadN.
func options6(proto uint8, n int) ext {
	h := make([]byte, 8*n)
	h[1] = byte(n - 1)
	h[2], h[3] = 1, byte(8*n-4)
	for rest := h[2:]; len(rest) > 257; { // a PadN holds at most 255 bytes
		rest[1] = 255
		rest = rest[257:]
		rest[0], rest[1] = 1, byte(len(rest)-2)
	}
	return ext{proto, h}
}

// routing6 is a routing header (type 4: RFC 8754) with so many segments left.
func routing6(left uint8) ext {
	h := make([]byte, 24)
	h[1], h[2], h[3] = 2, 4, left
	copy(h[8:], netip.MustParseAddr("fd00::77").AsSlice())
	return ext{protoRouting, h}
}

// fragment6 is a fragment header; offset in 8 bytes.
func fragment6(offset uint16, more bool) ext {
	h := []byte{0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef}
	binary.BigEndian.PutUint16(h[2:], offset<<3)
	if more {
		h[3] |= 1
	}
	return ext{protoFragment, h}
}
