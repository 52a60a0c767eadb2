// SPDX-License-Identifier: Apache-2.0

package cost

import (
	"encoding/binary"
	"net/netip"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/plane"
)

// Numbers of the one path configuration that every peer has.
const (
	pathsPerPeer = 2 // of each family
	keyID        = 1
	ifindex      = 1 // of the redirect that test-run leaves out
)

// Boot epochs, as they lie in memory.
const (
	ourEpoch  = 0x1111111111111111
	peerEpoch = 0x2222222222222222
)

// Keys of every path: in the order of struct sip_key.
var (
	txKey = [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	rxKey = [2]uint64{0x1716151413121110, 0x1f1e1d1c1b1a1918}
)

// end is one end of a path.
type end struct{ local, remote netip.Addr }

// peer is where a peer's things lie in the maps.
type peer struct {
	family    maps.Family
	group     uint32
	first     uint32
	addresses end               // identities
	paths     [pathsPerPeer]end // locators
}

// address returns an address of peer number n; the kinds do not overlap.
func address(f maps.Family, kind byte, n uint32) netip.Addr {
	if f == maps.IPv4 {
		b := [4]byte{10, kind}
		binary.BigEndian.PutUint16(b[2:], uint16(n))
		return netip.AddrFrom4(b)
	}
	b := [16]byte{0xfd, kind}
	binary.BigEndian.PutUint32(b[12:], n)
	return netip.AddrFrom16(b)
}

// Kinds of addresses. The first path's locators are the identities: a packet that was translated is
// then again one to translate, and test-run can repeat on it.
const (
	kindOurs  = 1
	kindPeer  = 2
	kindOurs2 = 3
	kindPeer2 = 4
)

func newPeer(f maps.Family, n uint32) peer {
	index := 2 * n
	if f == maps.IPv6 {
		index++
	}
	id := end{address(f, kindOurs, 1), address(f, kindPeer, n)}
	return peer{
		family: f, group: index, first: index * pathsPerPeer, addresses: id,
		paths: [pathsPerPeer]end{id, {address(f, kindOurs2, 1), address(f, kindPeer2, n)}},
	}
}

// world fills a plane with peers of both families, all of whose paths are up.
func world(peers uint32) (*plane.Plane, error) {
	p, err := plane.New(maps.Sizes{Groups: 2 * peers, Paths: 2 * peers * pathsPerPeer})
	if err != nil {
		return nil, err
	}
	p.Set.Settings.Epoch = ourEpoch
	p.Set.Settings.Uplinks = 1<<pathsPerPeer - 1
	for _, port := range []uint16{179} {
		maps.SetPort(&p.Set.Native.Tcp, port, true)
	}
	for _, port := range []uint16{3784, 3785, 4784} {
		maps.SetPort(&p.Set.Native.Udp, port, true)
	}
	for n := range peers {
		for _, f := range []maps.Family{maps.IPv4, maps.IPv6} {
			if err := addPeer(p.Set, newPeer(f, n)); err != nil {
				p.Close()
				return nil, err
			}
		}
	}
	return p, nil
}

func addPeer(s *maps.Set, p peer) error {
	g := s.Groups.At(p.group)
	g.FirstPath, g.PathCount, g.Peer, g.Family = p.first, pathsPerPeer, p.group/2, uint32(p.family)
	// All buckets name the path whose locators are the identities.
	gs := s.GroupStates.At(p.group)
	gs.Fresh, gs.Up, gs.Caps = 1<<pathsPerPeer-1, 1<<pathsPerPeer-1, maps.CapMark
	gs.PeerEpoch = peerEpoch
	for i, l := range p.paths {
		index := p.first + uint32(i)
		s.SetPath(index, maps.Path{
			Local: l.local, Remote: l.remote,
			Identity: p.addresses.local, PeerIdentity: p.addresses.remote,
			NextHop: l.remote, Ifindex: ifindex, Group: p.group, Uplink: uint8(i), Number: uint8(i),
		})
		ps := s.PathStates.At(index)
		ps.Multiplier, ps.MinMultiplier, ps.PeerPair = 3, 3, uint32(i)
		ps.ClearedAt = 1
		if err := s.SetPair(l.local, l.remote, index); err != nil {
			return err
		}
		var k maps.PathKeys
		k.Id[0] = keyID
		k.Tx[0].K0, k.Tx[0].K1 = txKey[0], txKey[1]
		k.Rx[0].K0, k.Rx[0].K1 = rxKey[0], rxKey[1]
		if err := s.SetKeys(index, k); err != nil {
			return err
		}
	}
	return s.SetIdentity(p.addresses.remote, p.group)
}

// reset puts the liveness of a peer back to before its first round, all paths fresh.
func (p peer) reset(s *maps.Set, sent uint64) {
	gs := s.GroupStates.At(p.group)
	gs.Sent, gs.Newest, gs.PeerNewest = sent, 0, 0
	gs.Fresh, gs.Up = 1<<pathsPerPeer-1, 1<<pathsPerPeer-1
	for i := range pathsPerPeer {
		ps := s.PathStates.At(p.first + uint32(i))
		ps.Newest, ps.ReqNewest, ps.Heard, ps.HeardPeer = 0, 0, 0, 0
		ps.Multiplier = 3
	}
}
