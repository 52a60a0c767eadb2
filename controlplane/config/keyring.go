// SPDX-License-Identifier: Apache-2.0

package config

import (
	"github.com/plait-net/plait/controlplane/keys"
)

// LoadKeys reads the key files of all peers, each file once, and returns the keys in the order of the peers. The error is
// a Problems, with one problem for each file that cannot be used, at the place where the configuration names it.
func (c *Config) LoadKeys() ([]keys.Ring, error) {
	files := make(map[string]keys.Ring)
	rings := make([]keys.Ring, len(c.Peers))
	var problems Problems
	for i, p := range c.Peers {
		ring, known := files[p.KeyFile]
		if !known {
			var err error
			if ring, err = keys.Load(p.KeyFile); err != nil {
				problems = append(problems, c.Problem(p.KeyPos, err.Error(), ""))
			}
			files[p.KeyFile] = ring
		}
		rings[i] = ring
	}
	if len(problems) > 0 {
		problems.Sort()
		return nil, problems
	}
	return rings, nil
}
