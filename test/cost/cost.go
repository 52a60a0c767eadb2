// SPDX-License-Identifier: Apache-2.0

package cost

import (
	"context"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/cost/bpf"
	"github.com/plait-net/plait/test/plane"
)

// Many is the number of peers of the second run of each measurement.
const Many = 10000

// ManyBar is what 10,000 peers may cost more than one, in nanoseconds.
const ManyBar = 20

// Result is one measurement, in nanoseconds a packet.
type Result struct {
	Name  string  `json:"name"`
	Peers uint32  `json:"peers"`
	Gross float64 `json:"gross_ns"`
	Empty float64 `json:"empty_ns"` // an empty program, in the same surroundings
	Net   float64 `json:"net_ns"`
	Bar   float64 `json:"bar_ns"` // of Net
	OK    bool    `json:"ok"`
}

// kase is one thing to measure, given a world and the peer in its middle.
type kase struct {
	name string
	bar  float64
	make func(*plane.Plane, peer) (*bench, error)
	ipv6 bool
}

// Run measures everything with one peer and with `many` (Many, but in tests), and hands over each
// result as it comes. It returns an error if a program did anything but its work.
func Run(ctx context.Context, many uint32, samples int, each func(Result)) error {
	one := map[string]float64{}
	for _, peers := range []uint32{1, many} {
		p, err := world(peers)
		if err != nil {
			return fmt.Errorf("filling the maps with %d peers: %w", peers, err)
		}
		for _, k := range cases() {
			r, err := k.measure(ctx, p, peers, samples)
			if err != nil {
				p.Close()
				return fmt.Errorf("measuring %s with %d peers: %w", k.name, peers, err)
			}
			if peers == 1 {
				one[k.name] = r.Net
			} else {
				r.Bar = one[k.name] + ManyBar
			}
			r.OK = r.Net <= r.Bar
			each(r)
		}
		if err := p.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (k kase) measure(ctx context.Context, p *plane.Plane, peers uint32, samples int) (Result, error) {
	f := maps.IPv4
	if k.ipv6 {
		f = maps.IPv6
	}
	b, err := k.make(p, newPeer(f, peers/2))
	if err != nil {
		return Result{}, err
	}
	b.ipv6 = k.ipv6
	before, err := p.Set.Reasons()
	if err != nil {
		return Result{}, err
	}
	r := Result{Name: k.name, Peers: peers, Bar: k.bar}
	if r.Gross, r.Empty, err = b.run(ctx, p, samples); err != nil {
		return Result{}, err
	}
	after, err := p.Set.Reasons()
	if err != nil {
		return Result{}, err
	}
	for reason, n := range after {
		if n != before[reason] {
			return Result{}, fmt.Errorf("%d packets were refused: %s", n-before[reason], reason)
		}
	}
	r.Net = r.Gross - r.Empty
	return r, nil
}

// frameMaker is udpFrame or tcpFrame.
type frameMaker func(end, uint8) ([]byte, error)

func cases() []kase {
	var out []kase
	add := func(name string, bar float64, ipv6 bool, make func(*plane.Plane, peer) (*bench, error)) {
		out = append(out, kase{name: name, bar: bar, ipv6: ipv6, make: make})
	}
	for _, ipv6 := range []bool{false, true} {
		family, egressBar := "IPv4", 45.0
		if ipv6 {
			family, egressBar = "IPv6", 55
		}
		for _, l4 := range []struct {
			name string
			make frameMaker
		}{{"UDP", udpFrame}, {"TCP", tcpFrame}} {
			add("egress translate "+family+" "+l4.name, egressBar, ipv6, func(p *plane.Plane, to peer) (*bench, error) {
				return egress(p, to, l4.make)
			})
		}
		for _, hook := range []string{"tc", "xdp"} {
			for _, l4 := range []struct {
				name string
				make frameMaker
			}{{"UDP", udpFrame}, {"TCP", tcpFrame}} {
				add("ingress restore "+hook+" "+family+" "+l4.name, 30, ipv6, func(p *plane.Plane, from peer) (*bench, error) {
					return restore(program(p, hook), p, from, l4.make)
				})
			}
			add("not plait's "+hook+" "+family+" TCP", 10, ipv6, func(p *plane.Plane, from peer) (*bench, error) {
				f, err := tcpFrame(end{from.addresses.remote, from.addresses.local}, 64)
				return &bench{prog: program(p, hook), frame: f, want: pass(hook)}, err
			})
			add("record a reply "+hook+" "+family, 80, ipv6, func(p *plane.Plane, from peer) (*bench, error) {
				return probes(program(p, hook), p, from, true)
			})
			add("reflect a request "+hook+" "+family, 120, ipv6, func(p *plane.Plane, from peer) (*bench, error) {
				return probes(program(p, hook), p, from, false)
			})
		}
	}
	return out
}

func program(p *plane.Plane, hook string) *ebpf.Program {
	if hook == "xdp" {
		return p.IngressXDP
	}
	return p.IngressTC
}

func pass(hook string) uint32 {
	if hook == "xdp" {
		return plane.XDPPass
	}
	return plane.TCNext
}

// egress repeats as it is: locators are identities, and a marked hop limit stays as it is.
func egress(p *plane.Plane, to peer, make frameMaker) (*bench, error) {
	f, err := make(to.addresses, 64)
	count := sent(p, to)
	return &bench{prog: p.Egress, frame: f, want: plane.TCRedirect, check: func() error {
		return grew(count, "translated")
	}}, err
}

// restore needs the hop limit's mark back after each run.
func restore(prog *ebpf.Program, p *plane.Plane, from peer, make frameMaker) (*bench, error) {
	f, err := make(end{from.addresses.remote, from.addresses.local}, 254)
	if err != nil {
		return nil, err
	}
	want := plane.TCNext
	if prog.Type() == ebpf.XDP {
		want = plane.XDPPass
	}
	count := received(p, from)
	return &bench{
		prog: prog, frame: f, want: want, what: refillHop,
		refills: []bpf.RefillTCRefill{refill(f, from.family, from.first)},
		check:   func() error { return grew(count, "restored") },
	}, nil
}

// probes needs a new round with a new tag for each run; the rounds alternate between the paths.
func probes(prog *ebpf.Program, p *plane.Plane, from peer, reply bool) (*bench, error) {
	b := &bench{prog: prog, what: refillAddresses | refillProbe}
	xdp := prog.Type() == ebpf.XDP
	switch {
	case reply && xdp:
		b.want = plane.XDPDrop
	case reply:
		b.want = plane.TCDrop
	case xdp:
		b.want = plane.XDPTx
	default:
		b.want = plane.TCRedirect
	}
	if !reply {
		b.what |= refillHop | refillReflected
	}
	for i := range repeat {
		n := i % pathsPerPeer
		f, err := probeFrame(from, reply, byte(n), uint64(i/pathsPerPeer)+1)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			b.frame = f
		}
		b.refills = append(b.refills, refill(f, from.family, from.first+uint32(n)))
	}
	b.reset = func() { from.reset(p.Set, repeat) }
	b.check = func() error {
		for i := range pathsPerPeer {
			ps := p.Set.PathStates.At(from.first + uint32(i))
			got := ps.ReqNewest
			if reply {
				got = ps.Newest
			}
			if got != repeat/pathsPerPeer {
				return fmt.Errorf("path %d is at round %d, want %d", i, got, repeat/pathsPerPeer)
			}
		}
		return nil
	}
	return b, nil
}

// sent and received return functions that say by how much a path's counter grew since last asked.
func sent(p *plane.Plane, of peer) func() (uint64, error) {
	return counter(p, of.first, func(s maps.PathStats) uint64 { return s.TxPackets })
}

func received(p *plane.Plane, of peer) func() (uint64, error) {
	return counter(p, of.first, func(s maps.PathStats) uint64 { return s.RxPackets })
}

func counter(p *plane.Plane, path uint32, field func(maps.PathStats) uint64) func() (uint64, error) {
	read := func() (uint64, error) {
		var perCPU []maps.PathStats
		if err := p.Set.Maps["path_traffic"].Lookup(path, &perCPU); err != nil {
			return 0, err
		}
		var n uint64
		for _, s := range slices.All(perCPU) {
			n += field(s)
		}
		return n, nil
	}
	last, _ := read()
	return func() (uint64, error) {
		now, err := read()
		n := now - last
		last = now
		return n, err
	}
}

// grew checks that every run of a sample was counted; an interrupted sample is run again.
func grew(count func() (uint64, error), what string) error {
	n, err := count()
	if err != nil {
		return err
	}
	if n < repeat {
		return fmt.Errorf("%d of %d packets were %s", n, repeat, what)
	}
	return nil
}
