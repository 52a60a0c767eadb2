// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/probe"
	"github.com/plait-net/plait/maps"
)

// TestBareLoopSends: every round of the loop is the frames that the agent would send, in one call, and noted before.
func TestBareLoopSends(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	const (
		rounds   = 20
		first    = 1000
		epoch    = 77
		interval = time.Millisecond
	)
	paths := func(addrs ...string) (out []probe.Path) {
		for i := 0; i < len(addrs); i += 2 {
			out = append(out, probe.Path{
				Number: uint8(i / 2), KeyID: 1, Key: probe.Key{K0: uint64(i), K1: 9},
				Local: netip.MustParseAddr(addrs[i]), Remote: netip.MustParseAddr(addrs[i+1]),
			})
		}
		return out
	}
	groups := []bareGroup{
		{state: &maps.GroupState{}, first: first, paths: paths("10.1.1.2", "10.1.2.2", "10.2.1.2", "10.2.2.2")},
		{state: &maps.GroupState{}, first: 2 * first, paths: paths("fd00:1:1::2", "fd00:1:2::2", "fd00:2:1::2", "fd00:2:2::2")},
	}
	if err := newBareRounds(groups, epoch, interval, rounds).run(fds[0], interval); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for k := range uint64(rounds) {
		for _, g := range groups {
			for _, p := range g.paths {
				n, _, err := unix.Recvfrom(fds[1], buf, unix.MSG_DONTWAIT)
				if err != nil {
					t.Fatal(err)
				}
				round := g.first + k
				want := probe.AppendRequest(nil, p, epoch, interval,
					probe.Round{Number: round, Window: bareWindow, Fresh: true, Sample: round%sampleRounds == 0})
				if !bytes.Equal(buf[:n], want) {
					t.Fatalf("round %d, path %s\ngot  %x\nwant %x", k, p.Local, buf[:n], want)
				}
				if got := binary.BigEndian.Uint64(buf[n-24:]); got != round {
					t.Fatalf("round %d on the wire, want %d", got, round)
				}
			}
		}
	}
	if n, _, err := unix.Recvfrom(fds[1], buf, unix.MSG_DONTWAIT); err == nil {
		t.Errorf("another frame: %x", buf[:n])
	}
	for _, g := range groups {
		if want := g.first + rounds - 1; g.state.Sent != want {
			t.Errorf("round %d is noted as sent, want %d", g.state.Sent, want)
		}
	}
}

// TestCPUTimes: the clocks of a process and of a thread go on while they work.
func TestCPUTimes(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for name, clock := range map[string]func() (time.Duration, error){
		"process": func() (time.Duration, error) { return processTime(os.Getpid()) },
		"thread":  func() (time.Duration, error) { return taskTime(os.Getpid(), unix.Gettid()) },
	} {
		before, err := clock()
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(30 * time.Second); ; {
			now, err := clock()
			if err != nil {
				t.Fatal(err)
			}
			if now-before > 20*time.Millisecond {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %v of CPU time in 30 s of work", name, now-before)
				break
			}
		}
	}
	if d, err := processTime(1<<22 + 1); err == nil { // above the largest process id
		t.Errorf("a process that does not exist has used %v", d)
	}
}

// TestAddedCPU: what was not sent was not saved.
func TestAddedCPU(t *testing.T) {
	p := agentCostPair{Agent: 4, AgentRounds: 800, Loop: 3, LoopRounds: 1000}
	if got := p.added(); got != 2 {
		t.Errorf("%v %%, want 2", got)
	}
}

// TestAgentCostReport: the table names what was measured, and a missed bar is an error.
func TestAgentCostReport(t *testing.T) {
	r := agentCostReport{
		Pairs:  []agentCostPair{{Order: "agent, loop", Agent: 4.5, AgentRounds: 999.6, Loop: 3.25, LoopRounds: 1000, Added: 1.25}},
		RSSMiB: 24.5, PeakMiB: 26,
		Bars: []bar{newBar("CPU", mostAgentCPU, 1.25), newBar("resident", mostAgentMiB, 24.5)},
	}
	var out strings.Builder
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"agent, loop", "4.50", "1000", "3.25", "1.25", "24.5 MiB", "26.0 MiB", "at most 3", "met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
	if err := r.verdict(); err != nil {
		t.Error(err)
	}
	r.Bars[0] = newBar("CPU", mostAgentCPU, 3.01)
	if err := r.verdict(); err == nil || err.Error() != "CPU: 3.01, want at most 3" {
		t.Errorf("%v", err)
	}
}
