// SPDX-License-Identifier: Apache-2.0

package config

import (
	"github.com/plait-net/plait/controlplane/keys"
)

// LoadKeys reads the key files of all peers and returns the keys by the peers' names. Each file is read once. The error is
// a Problems, with one problem for each file that cannot be used, at the place where the configuration names it.
func (c *Config) LoadKeys() (map[string]keys.Ring, error) {
	type result struct {
		ring keys.Ring
		err  error
	}
	files := make(map[string]result)
	rings := make(map[string]keys.Ring, len(c.Peers))
	var problems Problems
	for _, p := range c.Peers {
		r, known := files[p.KeyFile]
		if !known {
			r.ring, r.err = keys.Load(p.KeyFile)
			files[p.KeyFile] = r
			if r.err != nil {
				problems = append(problems, c.Problem(p.KeyPos, r.err.Error(), ""))
			}
		}
		rings[p.Name] = r.ring
	}
	if len(problems) > 0 {
		problems.Sort()
		return nil, problems
	}
	return rings, nil
}
