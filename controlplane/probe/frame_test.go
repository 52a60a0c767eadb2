// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// sipHash is SipHash-2-4 as its paper describes it (Aumasson and Bernstein, 2012, section 2).
func sipHash(k0, k1 uint64, msg []byte) uint64 {
	v := [4]uint64{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	rounds := func(n int) {
		for range n {
			v[0] += v[1]
			v[2] += v[3]
			v[1] = bits.RotateLeft64(v[1], 13) ^ v[0]
			v[3] = bits.RotateLeft64(v[3], 16) ^ v[2]
			v[0] = bits.RotateLeft64(v[0], 32)
			v[2] += v[1]
			v[0] += v[3]
			v[1] = bits.RotateLeft64(v[1], 17) ^ v[2]
			v[3] = bits.RotateLeft64(v[3], 21) ^ v[0]
			v[2] = bits.RotateLeft64(v[2], 32)
		}
	}
	padded := bytes.Clone(msg)
	for len(padded)%8 != 7 {
		padded = append(padded, 0)
	}
	padded = append(padded, byte(len(msg)))
	for ; len(padded) > 0; padded = padded[8:] {
		m := binary.LittleEndian.Uint64(padded)
		v[3] ^= m
		rounds(2)
		v[0] ^= m
	}
	v[2] ^= 0xff
	rounds(4)
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}

// TestSipHash holds the tests' own implementation against the vector of the paper's appendix A.
func TestSipHash(t *testing.T) {
	b := make([]byte, 16)
	for i := range b {
		b[i] = byte(i)
	}
	got := sipHash(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), b[:15])
	if want := uint64(0xa129ca6149be45e5); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}

// wantTag is the tag of a probe by the words of docs/wire.md: "over 31 bytes in this order: 32-39, 48-55, 40-47, 25-31",
// little-endian.
func wantTag(key Key, payload []byte) []byte {
	var m []byte
	for _, r := range [][2]int{{32, 39}, {48, 55}, {40, 47}, {25, 31}} {
		m = append(m, payload[r[0]:r[1]+1]...)
	}
	return binary.LittleEndian.AppendUint64(nil, sipHash(key.K0, key.K1, m))
}

var (
	path4 = Path{
		Number: 3, KeyID: 7, Key: Key{0x0706050403020100, 0x0f0e0d0c0b0a0908},
		Local: netip.MustParseAddr("10.1.1.2"), Remote: netip.MustParseAddr("10.1.2.2"),
	}
	path6 = Path{
		Number: 15, KeyID: 255, Key: Key{1, ^uint64(0)},
		Local: netip.MustParseAddr("fd00:1:1::2"), Remote: netip.MustParseAddr("fd00:1:2::2"),
	}
)

// wireEpoch returns the words that the maps hold for epoch bytes on the wire.
func wireEpoch(b [8]byte) uint64 { return binary.NativeEndian.Uint64(b[:]) }

// unspaced removes the white space from a golden value.
func unspaced(s string) string { return strings.Join(strings.Fields(s), "") }

// TestRequestBytes holds requests against docs/wire.md, byte by byte.
func TestRequestBytes(t *testing.T) {
	epoch := [8]byte{0x18, 0x71, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77}
	for _, c := range []struct {
		name    string
		path    Path
		round   Round
		headers string // IP and UDP, its checksum left out
		payload string // without the tag
	}{
		{
			"IPv4, fresh", path4, Round{Number: 0x0102030405060708, Window: 5, Fresh: true},
			// version, TOS CS6, 92 bytes; no id, DF; hop limit 255, UDP, checksum; addresses; ports 61784 > 7784, 72 bytes
			`45 c0 005c 0000 4000 ff 11 63cb 0a010102 0a010202 f158 1e68 0048`,
			// version, UP and A and D, window, 64; discriminators 4 and "PLAI"; 1000 us; type, length, key, flags
			// UP and mark, version 1 and number 3, window, no report; epoch; round; no reflector
			`20 c6 05 40 00000004 504c4149 000003e8 00000000 00000000
			 fa 28 07 c2 13 05 0000 1871223344556677 0102030405060708 0000000000000000`,
		},
		{
			"IPv6, not fresh, sampled", path6, Round{Number: 1, Window: 255, Sample: true},
			`6c000000 0048 11 ff fd000001000100000000000000000002 fd000001000200000000000000000002 f158 1e68 0048`,
			`20 46 ff 40 00000010 504c4149 000003e8 00000000 00000000
			 fa 28 ff 46 1f ff 0000 1871223344556677 0000000000000001 0000000000000000`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := AppendRequest(nil, c.path, wireEpoch(epoch), time.Millisecond, c.round)
			header := (len(unspaced(c.headers)))/2 + 2
			ip, payload := got[etherLen:], got[etherLen+header:]
			if s := hex.EncodeToString(ip[:header-2]); s != unspaced(c.headers) {
				t.Errorf("headers\ngot  %s\nwant %s", s, unspaced(c.headers))
			}
			want := unspaced(c.payload) + hex.EncodeToString(wantTag(c.path.Key, payload))
			if s := hex.EncodeToString(payload); s != want {
				t.Errorf("payload\ngot  %s\nwant %s", s, want)
			}
		})
	}
}

// TestAppendRequest keeps what is in the buffer.
func TestAppendRequest(t *testing.T) {
	one := AppendRequest(nil, path4, 1, time.Millisecond, Round{Number: 9})
	two := AppendRequest([]byte("kept"), path4, 1, time.Millisecond, Round{Number: 9})
	if !bytes.Equal(two, append([]byte("kept"), one...)) {
		t.Errorf("% x", two)
	}
}

// TestRequestsOnTheWire decodes requests of all kinds with another implementation: addresses, hop limit, class, ports,
// lengths and every checksum are right, and a frame that is used again holds nothing of the round before.
func TestRequestsOnTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := func(name string, is4 bool) netip.Addr {
			if is4 {
				return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
			}
			b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
			b[0] |= 0x20 // not a mapped IPv4 address
			return netip.AddrFrom16(b)
		}
		is4 := rapid.Bool().Draw(t, "IPv4")
		p := Path{
			Number: rapid.Uint8Range(0, 15).Draw(t, "number"), KeyID: rapid.Uint8Min(1).Draw(t, "key id"),
			Key:   Key{rapid.Uint64().Draw(t, "k0"), rapid.Uint64().Draw(t, "k1")},
			Local: addr("local", is4), Remote: addr("remote", is4),
		}
		epoch := rapid.Uint64().Draw(t, "epoch")
		interval := time.Duration(rapid.Uint32Max(1000000).Draw(t, "interval")) * time.Microsecond
		f := newFrame(p.Local, p.Remote, p.Number, p.KeyID, p.Key, epoch, uint32(interval.Microseconds()))
		for i := range 2 {
			r := Round{
				Number: rapid.Uint64().Draw(t, "round"), Window: rapid.Uint8().Draw(t, "window"),
				Fresh: rapid.Bool().Draw(t, "fresh"), Sample: rapid.Bool().Draw(t, "sample"),
			}
			f.patch(r.Number, r.Window, r.Fresh, r.Sample)
			if !bytes.Equal(f.buf, AppendRequest(nil, p, epoch, interval, r)) {
				t.Fatalf("use %d of a frame differs from a new one", i+1)
			}
			if err := checkFrame(p, f.buf); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestChecksumZero: a UDP checksum that comes out as zero is sent as all ones, for zero says that there is none (RFC 768).
func TestChecksumZero(t *testing.T) {
	f := newFrame(path4.Local, path4.Remote, path4.Number, path4.KeyID, path4.Key, 1, 1000)
	for round := range uint64(1 << 22) { // one of 65,536 comes out as zero
		f.patch(round, 3, true, false)
		switch binary.BigEndian.Uint16(f.udp[6:]) {
		case 0:
			t.Fatalf("round %d is sent without a checksum", round)
		case 0xffff:
			if err := checkFrame(path4, f.buf); err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Error("no checksum came out as zero")
}

// checkFrame decodes the frame of a request with gopacket.
func checkFrame(p Path, b []byte) error {
	packet := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	if e := packet.ErrorLayer(); e != nil {
		return e.Error()
	}
	udp, ok := packet.TransportLayer().(*layers.UDP)
	if !ok {
		return fmt.Errorf("no UDP: %v", packet)
	}
	if udp.SrcPort != 61784 || udp.DstPort != 7784 || udp.Checksum == 0 || len(udp.Payload) != 64 || int(udp.Length) != 72 {
		return fmt.Errorf("UDP %+v", udp)
	}
	ether := packet.LinkLayer().(*layers.Ethernet)
	var again gopacket.SerializableLayer
	switch ip := packet.NetworkLayer().(type) {
	case *layers.IPv4:
		if ether.EthernetType != layers.EthernetTypeIPv4 || ip.TTL != 255 || ip.TOS != 48<<2 || ip.IHL != 5 ||
			ip.Flags != layers.IPv4DontFragment || ip.FragOffset != 0 || int(ip.Length) != len(b)-14 ||
			!ip.SrcIP.Equal(p.Local.AsSlice()) || !ip.DstIP.Equal(p.Remote.AsSlice()) {
			return fmt.Errorf("IPv4 %+v", ip)
		}
		again = ip
		_ = udp.SetNetworkLayerForChecksum(ip)
	case *layers.IPv6:
		if ether.EthernetType != layers.EthernetTypeIPv6 || ip.HopLimit != 255 || ip.TrafficClass != 48<<2 || ip.FlowLabel != 0 ||
			int(ip.Length) != len(b)-14-40 || !ip.SrcIP.Equal(p.Local.AsSlice()) || !ip.DstIP.Equal(p.Remote.AsSlice()) {
			return fmt.Errorf("IPv6 %+v", ip)
		}
		again = ip
		_ = udp.SetNetworkLayerForChecksum(ip)
	}
	// Built anew with checksums of its own it is the same.
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true},
		ether, again, udp, gopacket.Payload(udp.Payload))
	if err != nil {
		return err
	}
	if !bytes.Equal(buf.Bytes(), b) {
		return fmt.Errorf("got  %x\nwant %x", b, buf.Bytes())
	}
	if want := wantTag(p.Key, udp.Payload); !bytes.Equal(udp.Payload[56:], want) {
		return fmt.Errorf("tag %x, want %x", udp.Payload[56:], want)
	}
	return nil
}
