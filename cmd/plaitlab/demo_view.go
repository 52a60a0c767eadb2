// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/plait-net/plait/controlplane/state"
	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/loader"
	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/lab"
)

// views are the data planes of all hosts of a lab, as plait status sees them: also while no agent runs.
type views []view

type view struct {
	host *lab.Host
	set  *maps.Set
}

func openViews(l *lab.Lab) (v views, err error) {
	for _, h := range l.Hosts {
		set, err := loader.Maps(h.BPFFS, false)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("data plane of host %s: %w", h.Name, err), v.close())
		}
		v = append(v, view{h, set})
	}
	return v, nil
}

func (v views) close() error {
	var errs []error
	for _, one := range v {
		errs = append(errs, one.set.Close())
	}
	return errors.Join(errs...)
}

// fabricView is what the data planes say of a fabric.
type fabricView struct {
	bytes uint64 // of translated traffic, that all hosts have sent towards it
	up    int    // paths over it, of all hosts and families
	fresh int    // those that answer again, in hold-down
	down  int
}

// fabrics returns a view of each fabric, by name.
func (v views) fabrics() (map[string]*fabricView, error) {
	all := make(map[string]*fabricView)
	for _, one := range v {
		st, err := state.Read(one.host.RunDir)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", one.host.Name, err)
		}
		// Whether an agent runs is told by the lock. It is not asked: an agent that starts must find it free.
		s, err := status.Take(one.set, st, true)
		if err != nil {
			return nil, fmt.Errorf("status of host %s: %w", one.host.Name, err)
		}
		over := make(map[string]*fabricView) // by uplink
		for _, u := range one.host.Uplinks {
			if all[u.Fabric] == nil {
				all[u.Fabric] = &fabricView{}
			}
			over[u.Name] = all[u.Fabric]
		}
		for _, u := range s.Uplinks {
			if f := over[u.Name]; f != nil {
				f.bytes += u.TxBytes
			}
		}
		for _, p := range s.Peers {
			for _, path := range p.Paths {
				f := over[path.Uplink]
				switch {
				case f == nil:
				case path.State == status.PathUp:
					f.up++
				case path.State == status.PathFresh:
					f.fresh++
				default:
					f.down++
				}
			}
		}
	}
	return all, nil
}
