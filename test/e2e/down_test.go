// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/plait-net/plait/controlplane/status"
)

// snapshot is everything of a host that plait could change: by what it is, its text.
type snapshot map[string]string

// timers are what changes by itself in the output of ip.
var timers = regexp.MustCompile(`(_timer) +[0-9.]+`)

var neighbourStates = regexp.MustCompile(`(INCOMPLETE|REACHABLE|STALE|DELAY|PROBE|FAILED)`)

// programs says how many programs are attached with tcx to which interfaces. Those of XDP show at the
// links.
func programs(t *testing.T, n *node) string {
	t.Helper()
	var out strings.Builder
	err := n.Do(func() error {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range all {
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				r, err := link.QueryPrograms(link.QueryOptions{Target: i.Index, Attach: at})
				if err != nil {
					return err
				}
				if len(r.Programs) > 0 {
					fmt.Fprintf(&out, "%s: %d at %s\n", i.Name, len(r.Programs), at)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// snap looks at a host.
func (n *node) snap(t *testing.T) snapshot {
	t.Helper()
	s := snapshot{}
	for _, argv := range [][]string{
		{"ip", "-details", "link", "show"},
		{"ip", "-details", "address", "show"},
		{"ip", "-details", "-4", "route", "show", "table", "all"},
		{"ip", "-details", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule", "show"},
		{"ip", "-6", "rule", "show"},
		{"ip", "nexthop", "show"},
		{"tc", "qdisc", "show"},
		{"nft", "list", "ruleset"},
	} {
		s[strings.Join(argv, " ")] = timers.ReplaceAllString(n.output(t, argv...), "$1")
	}
	s["tcx programs"] = programs(t, n)
	// Neighbours come and go, and from state to state; none of them may be plait's.
	var kept []string
	_ = lines(strings.NewReader(n.output(t, "ip", "neighbour", "show", "nud", "all")), func(l string) error {
		if strings.Contains(l, "managed") || strings.Contains(l, "extern_learn") || strings.Contains(l, "proto") || strings.Contains(l, "PERMANENT") {
			kept = append(kept, neighbourStates.ReplaceAllString(l, ""))
		}
		return nil
	})
	slices.Sort(kept)
	s["neighbours that are looked after"] = strings.Join(kept, "\n")
	err := n.Do(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil //nolint:nilerr // interfaces of other threads' making may vanish; a lost one shows
			}
			if b, err := os.ReadFile(path); err == nil && !strings.HasSuffix(path, "/nf_conntrack_count") {
				s[path] = string(b)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{n.BPFFS, n.RunDir} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			text := info.Mode().String()
			// Whose number the lock holds means nothing unless it is locked.
			if info.Mode().IsRegular() && dir == n.RunDir && d.Name() != "plait.lock" {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text += "\n" + string(b)
			}
			s[path] = text
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// diff says how a snapshot differs from an earlier one; "" if it does not.
func (s snapshot) diff(before snapshot) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if now, ok := s[key]; !ok {
			out = append(out, key+" is gone")
		} else if now != before[key] {
			out = append(out, fmt.Sprintf("%s was\n%s\nand is\n%s", key, before[key], now))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if _, ok := before[key]; !ok {
			out = append(out, fmt.Sprintf("%s is new:\n%s", key, s[key]))
		}
	}
	return strings.Join(out, "\n")
}

// takeDown runs plait down and asserts that it succeeds.
func (n *node) takeDown(t *testing.T) {
	t.Helper()
	if out, diag, code := n.plait(t, "down"); code != 0 || out != "" {
		t.Errorf("host %s: plait down ends with %d\n%s%s", n.Name, code, out, diag)
	}
}

// TestDown: down leaves nothing behind, whatever state it meets, and can be repeated.
func TestDown(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, f.options, f.change)
			remove(t, p.a.RunDir) // as on a host where plait never ran
			// What plait has to change is there to be put back.
			for _, u := range p.a.Uplinks {
				p.a.sysctl(t, "net/ipv4/conf/"+u.Name+"/rp_filter", "1")
			}
			before := p.a.snap(t)

			p.a.takeDown(t) // without anything
			if d := p.a.snap(t).diff(before); d != "" {
				t.Errorf("down on a host without plait changed it:\n%s", d)
			}

			for _, c := range []struct {
				name string
				meet func()
			}{
				{"a running agent", func() {}},
				{"a dead agent", func() { p.a.kill(t) }},
				{"missing uplinks", func() { p.a.output(t, "ip", "link", "set", "dev", "up2", "down") }},
			} {
				p.a.run(t)
				p.b.run(t)
				p.waitUp(t)
				if d := p.a.snap(t).diff(before); !strings.Contains(d, "plait0") || !strings.Contains(d, "rp_filter") {
					t.Errorf("%s: plait shows nowhere:\n%s", c.name, d)
				}
				for _, u := range p.a.Uplinks {
					if v := p.a.readSysctl(t, "net/ipv4/conf/"+u.Name+"/rp_filter"); v != "2" {
						t.Errorf("%s: rp_filter of %s is %s while plait runs, want 2", c.name, u.Name, v)
					}
				}
				testPing(t, p, 4, 63)
				c.meet()
				p.a.takeDown(t)
				p.a.agent.wait(t) // stopped by down, if not dead before
				if c.name == "missing uplinks" {
					restoreUplink(t, p.a, "f2")
				}
				if d := p.a.snap(t).diff(before); d != "" {
					t.Errorf("%s: down left behind:\n%s", c.name, d)
				}
				p.a.takeDown(t)
				if d := p.a.snap(t).diff(before); d != "" {
					t.Errorf("%s: the second down changed something:\n%s", c.name, d)
				}
				_, diag, code := p.a.plait(t, "status")
				if code != 1 || diag == "" {
					t.Errorf("%s: status after down ends with %d and says %q", c.name, code, diag)
				}
				// The other host notices and stays as it is.
				p.b.waitFor(t, func(s *status.Status) error {
					if s.Headline.State != status.Broken {
						return fmt.Errorf("its peer is gone and it says: %s", s.Headline.Text)
					}
					return nil
				})
				p.b.kill(t)
			}
		})
	}
}

// restoreUplink sets an uplink up again that was set down, and its routes.
func restoreUplink(t *testing.T, n *node, fabric string) {
	t.Helper()
	u := n.Uplink(fabric)
	number := strings.TrimPrefix(fabric, "f")
	n.output(t, "ip", "link", "set", "dev", u.Name, "up")
	n.output(t, "ip", "route", "add", "10."+number+".0.0/16", "via", u.Gateway4.String(), "dev", u.Name)
	n.output(t, "ip", "route", "add", "fd00:"+number+"::/32", "via", u.Gateway6.String(), "dev", u.Name)
	eventually(t, func() error {
		if out := n.output(t, "ip", "-brief", "link", "show", "dev", u.Name); !strings.Contains(out, " UP ") {
			return fmt.Errorf("not up yet: %s", out)
		}
		return nil
	})
}

// remove deletes an empty directory or a file.
func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// sysctl sets one of the host's.
func (n *node) sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := n.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

func (n *node) readSysctl(t *testing.T, name string) string {
	t.Helper()
	var b []byte
	if err := n.Do(func() (err error) {
		b, err = os.ReadFile("/proc/sys/" + name)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
