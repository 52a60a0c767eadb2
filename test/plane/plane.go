// SPDX-License-Identifier: Apache-2.0

// Package plane loads the committed kernel programs onto maps of its own, with nothing pinned and
// nothing attached, to run them through the kernel's test-run.
package plane

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/plait-net/plait/bpf"
	"github.com/plait-net/plait/maps"
)

// Verdicts of the programs: enum tcx_action_base, enum xdp_action, and TC_ACT_REDIRECT, which
// bpf_redirect and bpf_redirect_neigh return. Test-run reports it and does not redirect.
const (
	TCNext     = ^uint32(0) // TCX_NEXT, -1
	TCDrop     = 2
	TCRedirect = 7
	XDPDrop    = 1
	XDPPass    = 2
	XDPTx      = 3
)

// Plane is one host's kernel programs on one set of maps.
type Plane struct {
	Set        *maps.Set
	Egress     *ebpf.Program // tc, egress of plait0
	FarEnd     *ebpf.Program // tc, ingress of plait0's far end
	IngressTC  *ebpf.Program // tc, ingress of an uplink
	IngressXDP *ebpf.Program // XDP of an uplink
}

// New creates maps of the given sizes and loads all programs onto them.
func New(sizes maps.Sizes) (_ *Plane, err error) {
	p := &Plane{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	shared := map[string]*ebpf.Map{}
	for _, o := range []struct {
		load     func() (*ebpf.CollectionSpec, error)
		programs map[string]**ebpf.Program
	}{
		{bpf.LoadEgress, map[string]**ebpf.Program{"plait_egress": &p.Egress, "plait_far_end": &p.FarEnd}},
		{bpf.LoadIngressTC, map[string]**ebpf.Program{"plait_ingress_tc": &p.IngressTC}},
		{bpf.LoadIngressXDP, map[string]**ebpf.Program{"plait_ingress_xdp": &p.IngressXDP}},
	} {
		if err := loadObject(o.load, sizes, shared, o.programs); err != nil {
			for _, m := range shared {
				m.Close()
			}
			return nil, err
		}
	}
	p.Set, err = maps.New(shared, true)
	return p, err
}

// loadObject loads one object onto the shared maps and adds those that it is the first to have.
func loadObject(load func() (*ebpf.CollectionSpec, error), sizes maps.Sizes, shared map[string]*ebpf.Map,
	programs map[string]**ebpf.Program,
) error {
	spec, err := load()
	if err != nil {
		return err
	}
	sizes.Apply(spec)
	use := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := shared[name]; m != nil {
			use[name] = m
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: use})
	if err != nil {
		return fmt.Errorf("loading kernel programs: %w", err)
	}
	defer c.Close()
	for name, to := range programs {
		if *to = c.DetachProgram(name); *to == nil {
			return fmt.Errorf("object has no program %s", name)
		}
	}
	for _, name := range maps.Names() {
		if m := c.DetachMap(name); m != nil && shared[name] == nil {
			shared[name] = m
		} else if m != nil {
			m.Close() // the collection's own handle of a map that we hold
		}
	}
	return nil
}

// Close unloads programs and maps.
func (p *Plane) Close() error {
	var errs []error
	for _, prog := range []*ebpf.Program{p.Egress, p.FarEnd, p.IngressTC, p.IngressXDP} {
		errs = append(errs, prog.Close())
	}
	if p.Set != nil {
		errs = append(errs, p.Set.Close())
	}
	return errors.Join(errs...)
}
