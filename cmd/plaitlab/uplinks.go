// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	// burst packets of burstSize bytes, or as many bytes of TCP records, tell which uplink a socket's packets take.
	burst     = 64
	burstSize = 1200
	// uplinkTries bounds the sockets that are opened in search of one on an uplink: with two paths of equal weight one of
	// 2^200 searches fails.
	uplinkTries = 200
)

// onUplinks opens streams from host h until want[uplink] of them leave through each uplink, and closes those of which there
// are enough. send sends size bytes through a stream. The kernel draws the hash that decides when a socket is connected, so
// a stream stays where it is found as long as its path is up.
func onUplinks[S interface{ Close() }](ctx context.Context, h *lab.Host, want map[string]int, size int,
	open func() (S, error), send func(S) error) (found map[string][]S, err error) {
	found = make(map[string][]S)
	defer func() {
		if err != nil {
			for _, list := range found {
				for _, s := range list {
					s.Close()
				}
			}
		}
	}()
	var names []string
	for _, u := range h.Uplinks {
		names = append(names, u.Name)
	}
	missing := 0
	for _, n := range want {
		missing += n
	}
	for range uplinkTries {
		if missing == 0 {
			return found, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, err := open()
		if err != nil {
			return nil, err
		}
		uplink, err := traffic.Taken(h.Do, names, size, func() error { return send(s) })
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("finding the uplink that a stream takes: %w", err)
		}
		if len(found[uplink]) >= want[uplink] {
			s.Close()
			continue
		}
		found[uplink] = append(found[uplink], s)
		missing--
	}
	if missing > 0 {
		return nil, fmt.Errorf("of %d sockets of host %s too few took the uplink that was wanted (%v): are all in use?", uplinkTries, h.Name, want)
	}
	return found, nil
}
