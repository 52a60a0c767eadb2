// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
)

// CheckKernel asks the kernel for what the programs need, and names what is missing. It needs the
// privileges to load programs, and changes nothing.
func CheckKernel() error {
	var errs []error
	for _, f := range []struct {
		name  string
		probe func() error
	}{
		{"BPF programs on traffic control", func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
		{"BPF ring buffers", func() error { return features.HaveMapType(ebpf.RingBuf) }},
		{"the BPF instructions of version 3", features.HaveV3ISA},
		{"bpf_redirect_neigh", func() error { return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh) }},
		{"bpf_jiffies64", func() error { return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnJiffies64) }},
		{"tcx links", haveTCX},
	} {
		err := f.probe()
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			errs = append(errs, fmt.Errorf("this kernel lacks %s; plait needs Linux 6.6 or newer", f.name))
		case err != nil:
			errs = append(errs, fmt.Errorf("asking the kernel for %s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}

// haveTCX attaches to an interface that does not exist: a kernel with tcx says so, one without says
// that it does not know how.
func haveTCX() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil
}
