// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// skBuff is struct __sk_buff, the context of a tc program, as test-run takes it: all fields but these
// must be zero.
type skBuff struct {
	_       [12]uint32
	CB      [5]uint32
	_       [18]uint32
	_       uint32 // padding
	_       [2]uint64
	WireLen uint32
	GSOSegs uint32
	_       uint64
	GSOSize uint32
	_       uint32
	_       uint64
}

// shortened returns a hook whose program sees the frame cut to the length in the context's CB[0]:
// test-run itself refuses IP frames for tc that are shorter than their IP header.
func shortened(t testing.TB, w *world, h hook) hook {
	t.Helper()
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { calls.Close() })
	if err := calls.Put(uint32(0), h.prog(w)); err != nil {
		t.Fatal(err)
	}
	const cb0, failed = 48, 99
	cut, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R1, cb0, asm.Word),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnSkbChangeTail.Call(),
			asm.JNE.Imm(asm.R0, 0, "fail"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, calls.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, failed).WithSymbol("fail"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cut.Close() })
	h.prog = func(*world) *ebpf.Program { return cut }
	h.flags = 0
	return h
}

// TestTruncatedIPHeader cuts within the IP header; what the programs of tc see there they see for
// every protocol.
func TestTruncatedIPHeader(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	shortEgress, shortIngress := shortened(t, w, egress), shortened(t, w, ingressTC)
	for _, f := range families {
		p := packet{body: tcp(40000, 80, nil, pattern(10))}
		out, in := p.frame(identities(f, hostA, hostB), 64), p.frame(locators(f, hostB, hostA, 0), 255)
		path := int(w.path(hostB, f, 0))
		for n := ethLen; n <= len(in); n++ {
			context := &skBuff{CB: [5]uint32{uint32(n)}}
			egressWant := want{verdict: drop, reason: rTruncated, frame: out[:n]}
			ingressWant := want{verdict: drop, reason: rInTruncated, frame: in[:n]}
			switch {
			case n >= p.l4(f)+18:
				egressWant = want{verdict: redirect, frame: p.frame(locators(f, hostA, hostB, 0), 192)[:n], tx: 1, path: path}
				ingressWant = want{frame: p.frame(identities(f, hostB, hostA), 127)[:n], rx: 1, path: path}
			case n < p.l4(f):
				ingressWant = want{frame: in[:n]}
			}
			egressWant.bytes, ingressWant.bytes = n, n
			egressWant.note = fmt.Sprint("length ", n)
			ingressWant.note = egressWant.note
			w.checkWith(t, shortEgress, out, context, egressWant)
			w.checkWith(t, shortIngress, in, context, ingressWant)
		}
	}
}

// TestFarEnd: whatever reaches the far end of plait0 is dropped and counted.
func TestFarEnd(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	far := egress
	far.prog = func(w *world) *ebpf.Program { return w.FarEnd }
	for _, f := range families {
		p := packet{body: tcp(40000, 80, nil, nil)}
		w.check(t, far, p.frame(identities(f, hostA, hostB), 64), want{verdict: drop, reason: rFarEnd})
	}
	w.check(t, far, ethernet(0x0806, pattern(28)), want{verdict: drop, reason: rFarEnd})
}

// TestSuperPackets: GSO stays as it is, and counts as the packets it will become.
func TestSuperPackets(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		p := packet{body: tcp(40000, 80, nil, pattern(3000))}
		path := int(w.path(hostB, f, 0))
		context := func() *skBuff { return &skBuff{GSOSegs: 3, GSOSize: 1000} }
		w.checkWith(t, egress, p.frame(identities(f, hostA, hostB), 64), context(), want{
			verdict: redirect, frame: p.frame(locators(f, hostA, hostB, 0), 192), tx: 1, segments: 3, path: path,
		})
		w.checkWith(t, ingressTC, p.frame(locators(f, hostB, hostA, 0), 255), context(), want{
			frame: p.frame(identities(f, hostB, hostA), 127), rx: 1, segments: 3, path: path,
		})
		out := &skBuff{}
		if _, err := w.Egress.Run(&ebpf.RunOptions{
			Data: p.frame(identities(f, hostA, hostB), 64), Context: context(), ContextOut: out,
		}); err != nil {
			t.Fatal(err)
		}
		if out.GSOSegs != 3 || out.GSOSize != 1000 {
			t.Errorf("IPv%s: %d segments of %d bytes after egress, want 3 of 1000", f, out.GSOSegs, out.GSOSize)
		}
	}
}
