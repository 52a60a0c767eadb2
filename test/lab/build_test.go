// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
)

// traces returns everything on the machine that has the lab's name on it.
func traces(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{
		filepath.Join(netnsDir, "pl-"+name+"-*"),
		filepath.Join(baseDir(), name),
		filepath.Join(baseDir(), ".up-*"),
	} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, m...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "pl-"+name+"-") || strings.Contains(line, filepath.Join(baseDir(), name)) {
			found = append(found, line)
		}
	}
	return found
}

// ownDir gives the test a directory of labs to itself.
func ownDir(t *testing.T) { t.Setenv(DirEnv, t.TempDir()) }

func TestUpFailsAtEachStep(t *testing.T) {
	ownDir(t)
	o := Options{Form: Wire, Flat: true, Fabrics: 1, TxChecksum: true}
	var steps []string
	l, err := up(t.Context(), o, func(step string) error {
		steps = append(steps, step)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, l.Name); len(left) > 0 {
		t.Fatalf("left behind by a lab that came up: %q", left)
	}

	for i, at := range steps {
		for _, injected := range []error{errors.New("injected"), errCrash} {
			t.Run(fmt.Sprintf("%s/%v", at, injected), func(t *testing.T) {
				o.Name = fmt.Sprintf("f%dx%d", os.Getpid(), i)
				l, err := up(t.Context(), o, func(step string) error {
					if step == at {
						return injected
					}
					return nil
				})
				if !errors.Is(err, injected) || l != nil {
					t.Fatalf("lab %v, error %v, want the injected one", l, err)
				}
				if errors.Is(injected, errCrash) {
					l, err := Open(o.Name)
					if err != nil {
						t.Fatal(err)
					}
					for range 2 {
						if err := l.Down(); err != nil {
							t.Fatal(err)
						}
					}
				}
				if left := traces(t, o.Name); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
}

func TestUpIsCancelled(t *testing.T) {
	ownDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{Name: fmt.Sprintf("c%d", os.Getpid())}
	_, err := up(ctx, o, func(step string) error {
		if step == "maps" {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	if left := traces(t, o.Name); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestDownRemovesPrograms(t *testing.T) {
	ownDir(t)
	for _, form := range []Form{Virtual, Wire} {
		l, err := Up(t.Context(), Options{Form: form})
		if err != nil {
			t.Fatal(err)
		}
		pins, err := filepath.Glob(filepath.Join(l.bpffs(), "link_*"))
		if err != nil {
			t.Fatal(err)
		}
		ends := 4 // ports
		if form == Wire {
			ends += 4 // uplinks
		}
		if len(pins) != ends {
			t.Errorf("%v: links %q, want %d", form, pins, ends)
		}
		var ids []link.ID
		for _, p := range pins {
			ln, err := link.LoadPinnedLink(p, nil)
			if err != nil {
				t.Fatal(err)
			}
			info, err := ln.Info()
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, info.ID)
			_ = ln.Close()
		}
		if err := l.Down(); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if ln, err := link.NewFromID(id); err == nil {
				t.Errorf("%v: link %d is still there", form, id)
				_ = ln.Close()
			}
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	many := make([]string, maxHosts+1)
	for i := range many {
		many[i] = fmt.Sprintf("h%d", i)
	}
	for want, o := range map[string]Options{
		"lab name":      {Name: "a-b"},
		"host name":     {Hosts: []string{"a", "B"}},
		"reserved":      {Hosts: []string{"a", "f1"}},
		"is reserved":   {Hosts: []string{"lo"}},
		"twice":         {Hosts: []string{"a", "a"}},
		"hosts":         {Hosts: many},
		"fabrics":       {Fabrics: maxFabrics + 1},
		"mtu":           {MTU: 1279},
		"form":          {Form: 7},
		"checksums":     {TxChecksum: true},
		"no uplink has": {FreeUplinks: true},
	} {
		if l, err := plan(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: lab %v, error %v, want one about %q", o, l, err, want)
		}
	}
}

func TestParseRate(t *testing.T) {
	for s, want := range map[string]uint64{
		"500mbit": 500e6, "1gbit": 1e9, "1.5Gbit": 1.5e9, "8kbit": 8e3, "9000bit": 9000, "1000gbit": 1e12,
		"": 0, "5": 0, "mbit": 0, "-1mbit": 0, "7kbit": 0, "1001gbit": 0, "nanmbit": 0, "infbit": 0, "5mbps": 0, "5 mbit": 0,
	} {
		got, err := ParseRate(s)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
}
