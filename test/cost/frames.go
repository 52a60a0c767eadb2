// SPDX-License-Identifier: Apache-2.0

package cost

import (
	"encoding/binary"
	"slices"

	"github.com/dchest/siphash"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/cost/bpf"
)

// Offsets within a probe, and its bytes; headers/probe.h names them.
const (
	probeLen     = 64
	offDiscr     = 4
	offAuth      = 24
	offKeyFlags  = 26
	offVersion   = 28
	offReport    = 30
	offEpoch     = 32
	offRound     = 40
	offReflector = 48
	offTag       = 56

	flagReply     = 0x01
	flagMark      = 0x02
	stateUp       = 0xc0
	bfdAuth       = 0x04
	bfdDemand     = 0x02
	discriminator = 0x504c4149
)

// probe returns the probe with which the peer asks, or answers ours, on path number n.
func probe(reply bool, n byte, round uint64) []byte {
	p := make([]byte, probeLen)
	p[0], p[1], p[2], p[3] = 0x20, stateUp|bfdAuth, 3, probeLen
	pair := offDiscr
	reflector := offDiscr + 4
	flags := byte(flagMark | stateUp)
	epoch := uint64(peerEpoch)
	if reply {
		pair, reflector = reflector, pair
		flags |= flagReply
		epoch = ourEpoch
		p[offReport+1] = 1<<pathsPerPeer - 1
		binary.LittleEndian.PutUint64(p[offReflector:], peerEpoch)
	} else {
		p[1] |= bfdDemand
	}
	binary.BigEndian.PutUint32(p[pair:], uint32(n)+1)
	binary.BigEndian.PutUint32(p[reflector:], discriminator)
	p[offAuth], p[offAuth+1], p[offKeyFlags], p[offKeyFlags+1] = 250, 40, keyID, flags
	p[offVersion], p[offVersion+1] = 1<<4|n, p[2]
	binary.LittleEndian.PutUint64(p[offEpoch:], epoch)
	binary.BigEndian.PutUint64(p[offRound:], round)
	binary.LittleEndian.PutUint64(p[offTag:], siphash.Hash(rxKey[0], rxKey[1], covered(p)))
	return p
}

// covered is what a probe's tag covers, in the order of docs/wire.md.
func covered(p []byte) []byte {
	return slices.Concat(p[32:40], p[48:56], p[40:48], p[25:32])
}

// frame builds an Ethernet frame with right lengths and checksums, padded to 60 bytes: 64 on a wire.
func frame(e end, hopLimit uint8, protocol layers.IPProtocol, rest ...gopacket.SerializableLayer) ([]byte, error) {
	eth := &layers.Ethernet{
		SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4,
	}
	var network gopacket.NetworkLayer
	all := []gopacket.SerializableLayer{eth}
	if e.local.Is4() {
		ip := &layers.IPv4{
			Version: 4, TTL: hopLimit, Protocol: protocol, SrcIP: e.local.AsSlice(), DstIP: e.remote.AsSlice(),
		}
		network, all = ip, append(all, ip)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{
			Version: 6, HopLimit: hopLimit, NextHeader: protocol, SrcIP: e.local.AsSlice(), DstIP: e.remote.AsSlice(),
		}
		network, all = ip, append(all, ip)
	}
	for _, l := range rest {
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := c.SetNetworkLayerForChecksum(network); err != nil {
				return nil, err
			}
		}
		all = append(all, l)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, all...); err != nil {
		return nil, err
	}
	out := append([]byte(nil), buf.Bytes()...)
	for len(out) < 60 {
		out = append(out, 0)
	}
	return out, nil
}

// udpFrame is the 64-byte UDP datagram of the benchmark.
func udpFrame(e end, hopLimit uint8) ([]byte, error) {
	return frame(e, hopLimit, layers.IPProtocolUDP,
		&layers.UDP{SrcPort: 40000, DstPort: 5001}, gopacket.Payload("payload"))
}

// tcpFrame is a bare acknowledgement.
func tcpFrame(e end, hopLimit uint8) ([]byte, error) {
	return frame(e, hopLimit, layers.IPProtocolTCP,
		&layers.TCP{SrcPort: 40000, DstPort: 5001, Seq: 1, Ack: 1, ACK: true, Window: 1000})
}

// probeFrame is a probe as it arrives here.
func probeFrame(p peer, reply bool, n byte, round uint64) ([]byte, error) {
	wire := end{p.paths[n].remote, p.paths[n].local}
	udp := &layers.UDP{SrcPort: maps.ProbePort, DstPort: maps.SBFDPort}
	if reply {
		udp.SrcPort, udp.DstPort = udp.DstPort, udp.SrcPort
	}
	return frame(wire, 255, layers.IPProtocolUDP, udp, gopacket.Payload(probe(reply, n, round)))
}

// refill reads from a frame what the refill program puts back.
func refill(f []byte, family maps.Family, path uint32) (r bpf.RefillTCRefill) {
	const l3 = 14
	le := binary.LittleEndian
	l4, hop, source, words := l3+20, l3+8, l3+12, 1
	if family == maps.IPv6 {
		l4, hop, source, words = l3+40, l3+6, l3+8, 4
	}
	r.Path = path
	r.Hop = le.Uint16(f[hop:])
	for i := range words {
		r.Source[i] = le.Uint32(f[source+4*i:])
		r.Dest[i] = le.Uint32(f[source+4*(words+i):])
	}
	p := l4 + 8
	if len(f) < p+probeLen {
		return r
	}
	r.UdpSource, r.UdpDest, r.UdpCheck = le.Uint16(f[l4:]), le.Uint16(f[l4+2:]), le.Uint16(f[l4+6:])
	r.Head, r.Auth = le.Uint32(f[p:]), le.Uint64(f[p+offAuth:])
	r.MyDiscr, r.YourDiscr = le.Uint32(f[p+offDiscr:]), le.Uint32(f[p+offDiscr+4:])
	r.Round, r.Tag = le.Uint64(f[p+offRound:]), le.Uint64(f[p+offTag:])
	r.ReflectorEpoch = le.Uint64(f[p+offReflector:])
	return r
}
