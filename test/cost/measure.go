// SPDX-License-Identifier: Apache-2.0

// Package cost measures what the kernel programs cost a packet, in the kernel's test-run, net of an
// empty program that is run in the same way.
package cost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/cost/bpf"
	"github.com/plait-net/plait/test/plane"
)

// Samples is how many samples Run takes of each program and of the empty one, alternating; the medians
// are compared. They are few and long, because each costs XDP a switch of the kernel's dispatcher (tens
// of milliseconds), and a cold start.
const (
	Samples = 21
	repeat  = 16384 // runs a sample
)

// What the refill program puts back; test/cost/bpf/refill.h.
const (
	refillHop       = 1
	refillAddresses = 2
	refillProbe     = 4
	refillReflected = 8
)

// bench is one program on one packet.
type bench struct {
	prog  *ebpf.Program
	frame []byte
	want  uint32 // verdict of every run

	// Set for programs that would find their own work undone on the next run.
	what    uint32
	ipv6    bool
	refills []bpf.RefillTCRefill
	reset   func()       // before each sample
	check   func() error // after each sample of the program: did every run do the work?
}

// runners are a program and the empty one, in the same surroundings.
type runners struct {
	measured, empty *ebpf.Program
	rewind          func()
	close           func()
}

// run returns the medians, in nanoseconds a run, of the program and of the empty one.
func (b *bench) run(ctx context.Context, p *plane.Plane, samples int) (gross, empty float64, err error) {
	r, err := b.runners(p)
	if err != nil {
		return 0, 0, err
	}
	defer r.close()
	defer alone()()
	var of [2][]float64
	for i := range 2 * (samples + 1) {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		// A B B A, so that a drift falls on both alike.
		which := (i + i/2) & 1
		prog := []*ebpf.Program{r.measured, r.empty}[which]
		prepare := func() {
			r.rewind()
			if b.reset != nil {
				b.reset()
			}
		}
		prepare()
		verdict, took, err := prog.Benchmark(b.frame, repeat, prepare)
		if err != nil {
			return 0, 0, err
		}
		if which == 0 {
			if verdict != b.want {
				return 0, 0, fmt.Errorf("verdict %d, want %d", int32(verdict), int32(b.want))
			}
			if b.check != nil {
				if err := b.check(); err != nil {
					return 0, 0, err
				}
			}
		}
		if i >= 2 { // the first pair warms up
			of[which] = append(of[which], float64(took.Nanoseconds()))
		}
	}
	return median(of[0]), median(of[1]), nil
}

// alone keeps the calling goroutine on one CPU and, where allowed, other programs off it while a
// sample runs; the returned function ends that.
func alone() (undo func()) {
	runtime.LockOSThread()
	undo = runtime.UnlockOSThread
	var all unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil {
		return undo
	}
	for cpu := range len(all) * bits.UintSize {
		if !all.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if unix.SchedSetaffinity(0, &one) != nil {
			return undo
		}
		break
	}
	normal, err := unix.SchedGetAttr(0, 0)
	if err != nil || unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1,
	}, 0) != nil {
		normal = nil
	}
	return func() {
		back := unix.SchedSetaffinity(0, &all)
		if normal != nil {
			back = errors.Join(back, unix.SchedSetAttr(0, normal, 0))
		}
		if back == nil {
			runtime.UnlockOSThread() // else the thread dies with its goroutine
		}
	}
}

func median(v []float64) float64 {
	slices.SortFunc(v, cmp.Compare[float64])
	return v[len(v)/2]
}

// runners loads what surrounds the program.
func (b *bench) runners(p *plane.Plane) (_ *runners, err error) {
	xdp := b.prog.Type() == ebpf.XDP
	load, refillName, emptyName := bpf.LoadRefillTC, "refill_tc", "empty_tc"
	if xdp {
		load, refillName, emptyName = bpf.LoadRefillXDP, "refill_xdp", "empty_xdp"
	}
	spec, err := load()
	if err != nil {
		return nil, err
	}
	shared := p.Set.Maps[pathStates]
	spec.Maps[pathStates].MaxEntries = shared.MaxEntries()
	for name, value := range map[string]any{"refill_what": b.what, "refill_ipv6": b.ipv6Word()} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, err
		}
	}
	if err := spec.Variables["refill_count"].Set(uint32(max(1, len(b.refills)))); err != nil {
		return nil, err
	}
	opts := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{pathStates: shared}}
	var cs [2]*ebpf.Collection
	closeAll := func() {
		for _, c := range cs {
			if c != nil {
				c.Close()
			}
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	for i := range cs {
		if cs[i], err = ebpf.NewCollectionWithOptions(spec.Copy(), opts); err != nil {
			return nil, fmt.Errorf("loading the programs around: %w", err)
		}
	}
	r := &runners{close: closeAll}
	if b.what == 0 {
		r.measured, r.empty, r.rewind = b.prog, cs[0].Programs[emptyName], func() {}
		return r, nil
	}
	if len(b.refills) > int(cs[0].Maps["frames"].MaxEntries()) {
		return nil, errors.New("more frames than the map holds")
	}
	for i, inner := range []*ebpf.Program{b.prog, cs[1].Programs[emptyName]} {
		if err := cs[i].Maps["measured"].Put(uint32(0), inner); err != nil {
			return nil, fmt.Errorf("setting the tail call: %w", err)
		}
		for k := range b.refills {
			if err := cs[i].Maps["frames"].Put(uint32(k), &b.refills[k]); err != nil {
				return nil, fmt.Errorf("storing a frame: %w", err)
			}
		}
	}
	r.measured, r.empty = cs[0].Programs[refillName], cs[1].Programs[refillName]
	r.rewind = func() {
		for _, c := range cs {
			// The next frame is the first one.
			if err := c.Variables["refill_next"].Set(uint32(0)); err != nil {
				panic(err) // a variable of ours, in memory
			}
		}
	}
	return r, nil
}

const pathStates = "path_states"

func (b *bench) ipv6Word() uint32 {
	if b.ipv6 {
		return 1
	}
	return 0
}
