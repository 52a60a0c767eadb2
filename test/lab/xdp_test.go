// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/plait-net/plait/test/lab"
)

// A program under test must be able to attach to a free uplink and to send from there with XDP_TX,
// which veth does only towards an end that polls.
func TestFreeUplinkTakesXDP(t *testing.T) {
	const xdpTX = 3
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpTX), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	attach := func(h *lab.Host) (ln link.Link, err error) {
		err = h.Do(func() error {
			iface, err := net.InterfaceByName("up1")
			if err != nil {
				return err
			}
			ln, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: iface.Index, Flags: link.XDPDriverMode})
			return err
		})
		return ln, err
	}

	taken := up(t, lab.Options{Form: lab.Wire})
	if ln, err := attach(taken.Host("b")); err == nil {
		ln.Close()
		t.Error("a second program attaches where the lab's own is")
	}

	for _, flat := range []bool{false, true} {
		l := up(t, lab.Options{Form: lab.Wire, FreeUplinks: true, Flat: flat})
		a, b := l.Host("a"), l.Host("b")
		s := newStream(t, l, "f1", "a", "b", b.Uplink("f1").Addr4)
		ln, err := attach(b)
		if err != nil {
			t.Fatal(err)
		}
		before := counters(t, l, "f1", "b")
		send(t, a, s.sink, datagrams, 100)
		eventually(t, func() error {
			if n := counters(t, l, "f1", "b").Packets - before.Packets; n < datagrams {
				return fmt.Errorf("flat %t: %d of %d frames came back into the fabric", flat, n, datagrams)
			}
			return nil
		})
		if n := s.sink.drain(t); n != 0 {
			t.Errorf("flat %t: %d datagrams passed a program that reflects all", flat, n)
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		s.passes(t)
	}
}
