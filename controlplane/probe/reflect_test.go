// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/plane"
)

// side is one host's programs and maps, with one path to the other host.
type side struct {
	*plane.Plane
	t *testing.T
}

// newSide makes the end of path p that is at p.Local: it signs with tx and verifies with rx.
func newSide(t *testing.T, p Path, tx, rx Key, epoch uint64) *side {
	t.Helper()
	pl, err := plane.New(maps.Sizes{Groups: 2, Paths: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pl.Close(); err != nil {
			t.Error(err)
		}
	})
	id, peer := netip.MustParseAddr("10.255.0.1"), netip.MustParseAddr("10.255.0.2")
	if p.Local.Is6() {
		id, peer = netip.MustParseAddr("fd00:255::1"), netip.MustParseAddr("fd00:255::2")
	}
	s := pl.Set
	s.Settings.Epoch, s.Settings.Uplinks = epoch, 1
	*s.Groups.At(0) = maps.Group{FirstPath: 0, PathCount: 1, Family: uint32(maps.FamilyOf(p.Local))}
	*s.PathStates.At(0) = maps.PathState{Multiplier: 3, MinMultiplier: 3}
	s.SetPath(0, maps.Path{
		Local: p.Local, Remote: p.Remote, Identity: id, PeerIdentity: peer, NextHop: p.Remote, Ifindex: 1,
	})
	var k maps.PathKeys
	k.Id[0] = uint32(p.KeyID)
	k.Tx[0].K0, k.Tx[0].K1, k.Rx[0].K0, k.Rx[0].K1 = tx.K0, tx.K1, rx.K0, rx.K1
	if err := s.SetKeys(0, k); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPair(p.Local, p.Remote, 0); err != nil {
		t.Fatal(err)
	}
	return &side{pl, t}
}

// receive gives a frame to an ingress program of the host and returns verdict and frame.
func (s *side) receive(prog *ebpf.Program, frame []byte) (uint32, []byte) {
	s.t.Helper()
	out := make([]byte, len(frame)+256)
	opt := ebpf.RunOptions{Data: frame, DataOut: out, Repeat: 1}
	verdict, err := prog.Run(&opt)
	if err != nil {
		s.t.Fatal(err)
	}
	return verdict, opt.DataOut
}

// counted returns the reasons that have been counted.
func (s *side) counted() map[string]uint64 {
	s.t.Helper()
	all, err := s.Set.Reasons()
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]uint64{}
	for r, n := range all {
		if n != 0 {
			out[r.String()] = n
		}
	}
	return out
}

// TestKernelReflects: the request that this package builds is what the peer's kernel program takes for one, and its reply
// is recorded here; a changed byte makes it nothing.
func TestKernelReflects(t *testing.T) {
	for _, c := range []struct {
		name          string
		local, remote string
	}{{"IPv4", "10.1.1.2", "10.1.2.2"}, {"IPv6", "fd00:1:1::2", "fd00:1:2::2"}} {
		for _, hook := range []string{"tc", "xdp"} {
			t.Run(c.name+" "+hook, func(t *testing.T) { testKernelReflects(t, c.local, c.remote, hook) })
		}
	}
}

func testKernelReflects(t *testing.T, local, remote, hook string) {
	const round = 1000
	epochA, epochB := wireEpoch([8]byte{0x18, 1}), wireEpoch([8]byte{0x18, 2})
	toB, toA := Key{1, 2}, Key{3, 4}
	p := Path{
		KeyID: 9, Key: toB, Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(remote),
	}
	back := p
	back.Local, back.Remote = p.Remote, p.Local
	a, b := newSide(t, p, toB, toA, epochA), newSide(t, back, toA, toB, epochB)
	a.Set.GroupStates.At(0).Sent = round
	prog := func(s *side) *ebpf.Program {
		if hook == "xdp" {
			return s.IngressXDP
		}
		return s.IngressTC
	}
	reflects, drops := uint32(plane.TCRedirect), uint32(plane.TCDrop)
	if hook == "xdp" {
		reflects, drops = plane.XDPTx, plane.XDPDrop
	}
	request := AppendRequest(nil, p, epochA, time.Millisecond, Round{Number: round, Window: 3, Fresh: true, Sample: true})

	payload := len(request) - 64
	for i := range 64 {
		if i >= 12 && i < 24 {
			continue // the intervals say nothing
		}
		bad := bytes.Clone(request)
		bad[payload+i] ^= 0x01
		if verdict, _ := b.receive(prog(b), bad); verdict != drops {
			t.Fatalf("with byte %d of the payload changed the verdict is %d, want %d", i, verdict, drops)
		}
	}
	before := b.counted()

	// Before b knows a's epoch from a reply to itself it answers, and believes nothing.
	verdict, _ := b.receive(prog(b), request)
	if verdict != reflects {
		t.Fatalf("verdict %d, want %d; counted %v", verdict, reflects, b.counted())
	}
	if n := b.counted()["probe_unconfirmed"]; n != before["probe_unconfirmed"]+1 {
		t.Errorf("counted %v, want one unconfirmed request more than %v", b.counted(), before)
	}
	if n := b.Set.PathStates.At(0).ReqNewest; n != 0 {
		t.Errorf("round %d of an unconfirmed epoch was believed", n)
	}
	// Once it does, it believes too, and counts.
	b.Set.GroupStates.At(0).PeerEpoch = epochA
	verdict, reply := b.receive(prog(b), request)
	if verdict != reflects {
		t.Fatalf("verdict %d, want %d; counted %v", verdict, reflects, b.counted())
	}
	if n := b.Set.PathStates.At(0).ReqNewest; n != round {
		t.Errorf("newest request is of round %d, want %d", n, round)
	}
	traffic, err := b.Set.Traffic(1)
	if err != nil {
		t.Fatal(err)
	}
	if traffic[0].Requests != 2 {
		t.Errorf("%d requests counted, want 2", traffic[0].Requests)
	}
	if caps := b.Set.GroupStates.At(0).Caps; caps != maps.CapMark {
		t.Errorf("capabilities %#x: the request did not announce the mark", caps)
	}

	// The reply is as docs/wire.md says, signed with b's key, and a records it.
	bfd := reply[len(reply)-64:]
	if flags := bfd[27]; flags != 0xc7 {
		t.Errorf("flags %#x of the reply, want UP, sample, mark, reply", flags)
	}
	if !bytes.Equal(bfd[56:], wantTag(toA, bfd)) {
		t.Errorf("tag %x of the reply, want %x", bfd[56:], wantTag(toA, bfd))
	}
	if e := binary.NativeEndian.Uint64(bfd[48:]); e != epochB {
		t.Errorf("reflector's epoch %#x, want %#x", e, epochB)
	}
	if verdict, _ = a.receive(prog(a), reply); verdict != drops {
		t.Fatalf("verdict %d about the reply, want %d: it is consumed", verdict, drops)
	}
	if c := a.counted(); len(c) != 0 {
		t.Errorf("counted %v", c)
	}
	ps, gs := a.Set.PathStates.At(0), a.Set.GroupStates.At(0)
	if ps.Newest != round || ps.Replies != 1 || gs.Fresh != 1 || gs.PeerEpoch != epochB || ps.SampleRound != round {
		t.Errorf("the reply is not recorded: path %+v, group %+v", ps, gs)
	}
	// The same again is a replay on both sides.
	b.receive(prog(b), request)
	a.receive(prog(a), reply)
	if n := b.counted()["probe_replayed"]; n != 1 {
		t.Errorf("the peer counted %v", b.counted())
	}
	if n := a.counted()["probe_replayed"]; n != 1 {
		t.Errorf("counted %v", a.counted())
	}
}
