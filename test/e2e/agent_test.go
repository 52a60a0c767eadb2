// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// pins returns what is pinned in the host's BPF file system: by path, the kernel's number of it.
func pins(t *testing.T, n *node) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(filepath.Join(n.BPFFS, "plait"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, n.BPFFS)
		if strings.Contains(path, "/links/") {
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			defer l.Close()
			info, err := l.Info()
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			found[name] = fmt.Sprint("link ", info.ID)
			return nil
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		id, ok := info.ID()
		if !ok {
			return fmt.Errorf("%s: no number", path)
		}
		found[name] = fmt.Sprint("map ", id)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// load is checked traffic in both directions and families, UDP and TCP.
type load struct {
	udp  []*traffic.UDP
	tcp  []*traffic.TCP
	stop func()
}

// startLoad starts 1,000 packets/s and 500 records/s in each direction and family.
func startLoad(t *testing.T, p *pair) *load {
	t.Helper()
	l := &load{}
	for _, family := range families {
		for _, way := range [][2]*node{{p.a, p.b}, {p.b, p.a}} {
			l.udp = append(l.udp, udpStream(t, way[0], way[1], family, traffic.UDPConfig{Rate: 1000, For: 3 * time.Minute}))
			s := tcpStream(t, way[0], way[1], family, traffic.TCPConfig{Every: 2 * time.Millisecond, For: 3 * time.Minute, Background: true})
			l.tcp = append(l.tcp, s)
		}
	}
	for _, s := range l.tcp {
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	l.stop = startUDP(t, l.udp...)
	l.goesOn(t)
	return l
}

// goesOn waits until every stream has moved on.
func (l *load) goesOn(t *testing.T) {
	t.Helper()
	var udp, tcp []int64
	for _, u := range l.udp {
		udp = append(udp, u.Result().Received)
	}
	for _, s := range l.tcp {
		tcp = append(tcp, s.Result().Received)
	}
	eventually(t, func() error {
		for i, u := range l.udp {
			if n := u.Result().Received - udp[i]; n < 100 {
				return fmt.Errorf("UDP stream %d: %d packets arrived", i, n)
			}
		}
		for i, s := range l.tcp {
			if n := s.Result().Received - tcp[i]; n < 50 {
				return fmt.Errorf("TCP stream %d: %d records arrived", i, n)
			}
		}
		return nil
	})
}

// finish stops all and checks every byte. Packets may be lost only where lossy.
func (l *load) finish(t *testing.T, lossy bool) {
	t.Helper()
	l.stop()
	for i, u := range l.udp {
		check := whole
		if lossy {
			check = intact
		}
		if err := check(u.Result()); err != nil {
			t.Errorf("UDP stream %d: %v", i, err)
		}
	}
	for _, s := range l.tcp {
		finishTCP(t, s)
	}
}

// TestRestart kills and restarts agents under load: not a packet is lost, and what the kernel holds
// stays what it is.
func TestRestart(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, f.options, f.change)
			l := startLoad(t, p)
			before, beforeB := pins(t, p.a), pins(t, p.b)
			if len(before) < 13+4 { // 13 maps; plait0, its far end, two uplinks
				t.Errorf("pinned: %v", before)
			}
			for i := range 5 {
				p.a.kill(t)
				l.goesOn(t)
				p.a.run(t)
				pid := p.a.agent.cmd.Process.Pid
				s := p.a.waitFor(t, func(s *status.Status) error {
					if !s.Agent.Running || s.Agent.PID != pid {
						return fmt.Errorf("agent %d of host a does not run: %+v", i+2, s.Agent)
					}
					return allUp(s, 2)
				})
				if losses(s) != 0 {
					t.Errorf("restart %d: paths were given up: %+v", i+1, s.Peers)
				}
				l.goesOn(t)
				if after := pins(t, p.a); !maps.Equal(before, after) {
					t.Errorf("restart %d: pinned %v, before %v", i+1, after, before)
				}
			}
			// An end by SIGTERM is no different.
			p.b.agent.signal(t, syscall.SIGTERM)
			if code := p.b.agent.wait(t); code != 0 {
				t.Errorf("SIGTERM ended the agent of host b with %d", code)
			}
			l.goesOn(t)
			p.b.run(t)
			p.waitUp(t)
			l.goesOn(t)
			if after := pins(t, p.b); !maps.Equal(beforeB, after) {
				t.Errorf("host b: pinned %v, before %v", after, beforeB)
			}
			l.finish(t, false)
		})
	}
}

// TestStopped stops an agent for ten seconds under load, as a debugger or a paused machine would.
// Nobody answers rounds that were not sent: no path falls, and nothing is lost.
func TestStopped(t *testing.T) {
	t.Parallel()
	p := upPair(t, forms[0].options)
	l := startLoad(t, p)
	before := p.a.status(t)
	p.a.agent.signal(t, syscall.SIGSTOP)
	time.Sleep(10 * time.Second)
	l.goesOn(t)
	stopped := p.a.status(t)
	if err := allUp(stopped, 2); err != nil {
		t.Errorf("while the agent was stopped: %v", err)
	}
	for _, family := range families {
		for _, uplink := range []string{"up1", "up2"} {
			was, is := path(t, before, family, uplink), path(t, stopped, family, uplink)
			if is.Requests < was.Requests+1000 {
				t.Errorf("IPv%d over %s: the peer's probes were answered %d times in 10 s", family, uplink, is.Requests-was.Requests)
			}
		}
	}
	p.a.agent.signal(t, syscall.SIGCONT)
	// It sends again, and is answered.
	p.a.waitFor(t, func(s *status.Status) error {
		for _, family := range families {
			for _, uplink := range []string{"up1", "up2"} {
				if n := path(t, s, family, uplink).Replies - path(t, stopped, family, uplink).Replies; n < 500 {
					return fmt.Errorf("IPv%d over %s: %d answers since it was continued", family, uplink, n)
				}
			}
		}
		return allUp(s, 2)
	})
	l.goesOn(t)
	after := p.a.status(t)
	if losses(after) != losses(before) {
		t.Errorf("host a gave paths up: %+v", after.Peers)
	}
	if d := counts(before, after); d != "" {
		t.Errorf("host a counted: %s", d)
	}
	l.finish(t, false)
}

// TestPlait0Restored: what others take from plait's own interface comes back by itself.
func TestPlait0Restored(t *testing.T) {
	t.Parallel()
	p := upPair(t, lab.Options{})
	n := p.a
	kept := func() []string {
		return []string{
			n.output(t, "ip", "-brief", "address", "show", "dev", "plait0"),
			n.output(t, "ip", "-4", "route", "show", "dev", "plait0"), n.output(t, "ip", "-6", "route", "show", "dev", "plait0"),
		}
	}
	before, pinned := kept(), slices.Sorted(maps.Keys(pins(t, n)))
	for _, argv := range [][]string{
		{"ip", "route", "flush", "proto", "112"},
		{"ip", "-6", "route", "flush", "proto", "112"},
		{"ip", "address", "flush", "dev", "plait0"},
		{"ip", "link", "set", "dev", "plait0", "down"},
		{"ip", "link", "set", "dev", "plait0-far", "down"},
		{"ip", "link", "delete", "dev", "plait0"},
	} {
		n.output(t, argv...)
		eventually(t, func() error {
			if now := kept(); !slices.Equal(now, before) {
				return fmt.Errorf("after %v there is %q, before %q", argv, now, before)
			}
			return nil
		})
		p.waitUp(t)
		from := n.status(t)
		for _, family := range families {
			testPing(t, p, family, 63)
		}
		if d := counts(from, n.status(t)); d != "" {
			t.Errorf("after %v host a counted: %s", argv, d)
		}
	}
	if now := slices.Sorted(maps.Keys(pins(t, n))); !slices.Equal(now, pinned) {
		t.Errorf("pinned: %v, before %v", now, pinned)
	}
	n.takeDown(t)
}
