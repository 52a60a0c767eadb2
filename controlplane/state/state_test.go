// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/maps"
)

// patience is how long a test waits for a state before it fails.
const patience = 30 * time.Second

// holdArg makes the test binary a process that takes the lock of a run directory, see TestMain.
const holdArg = "hold-lock"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == holdArg {
		if _, err := Acquire(os.Args[2]); err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("held\n")
		select {} // until it is killed
	}
	os.Exit(m.Run())
}

func example() *State {
	return &State{
		Version: "v0.1.0", PID: 4242, Started: time.Date(2026, 11, 21, 3, 0, 0, 5, time.UTC), Config: "/etc/plait/plait.yaml",
		Host: "a", Metrics: "127.0.0.1:9555", IdleIntervalMS: 1000, HoldDownMS: 0.5,
		Identities: []netip.Addr{netip.MustParseAddr("10.255.0.1"), netip.MustParseAddr("fd00:255::1")},
		Uplinks: []Uplink{
			{
				Name: "up1", Number: 63, Ifindex: 7, MTU: 9000, Carrier: true, Hook: "tc", HookWhy: "driver veth",
				Locators: []netip.Addr{netip.MustParseAddr("10.1.1.2")},
			},
			{Name: "up.100", Problem: `interface "is" missing`},
		},
		Peers: []Peer{{Name: "b", Groups: []Group{{maps.IPv6, 4095, netip.MustParseAddr("fd00:255::2")}}}},
		Undo:  hostnet.Undo{RPFilter: []hostnet.RPFilterChange{{Interface: "up1", Index: 7, Was: 1, Set: 2}}},
	}
}

// TestWriteRead: what is written is read again, and replaces what was there.
func TestWriteRead(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []*State{{Host: "before"}, example()} {
		if err := want.Write(dir); err != nil {
			t.Fatal(err)
		}
		got, err := Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if names := list(t, dir); !reflect.DeepEqual(names, []string{stateFile}) {
		t.Errorf("the directory holds %v", names)
	}
}

// TestReadNone: no state is an error of its own, which down and run tell from a broken one.
func TestReadNone(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "missing")} {
		if _, err := Read(d); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), d) {
			t.Errorf("%v, want ErrNone that names %s", err, d)
		}
	}
}

// TestReadTorn: every beginning of a state file is an error that names the file, never half a state.
func TestReadTorn(t *testing.T) {
	dir := t.TempDir()
	if err := example().Write(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, stateFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(whole, "\n"))
	for n := range end {
		if err := os.WriteFile(path, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := Read(dir)
		if err == nil || errors.Is(err, ErrNone) || got != nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("the first %d bytes: %+v, %v", n, got, err)
		}
	}
}

// TestWriteInterrupted: a crash while writing leaves the old state, and the next write succeeds.
func TestWriteInterrupted(t *testing.T) {
	dir := t.TempDir()
	if err := example().Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile+".new"), []byte(`{"version": "v0.2`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(dir); err != nil || !reflect.DeepEqual(got, example()) {
		t.Errorf("%+v, %v, want the old state", got, err)
	}
	next := example()
	next.Host = "next"
	if err := next.Write(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(dir); err != nil || got.Host != "next" {
		t.Errorf("%+v, %v, want the next state", got, err)
	}
}

// TestWriteFails: a state that cannot be written leaves the old one.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	if err := example().Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, stateFile+".new"), 0o755); err != nil { // in the way
		t.Fatal(err)
	}
	if err := (&State{}).Write(dir); err == nil {
		t.Error("no error")
	}
	if got, err := Read(dir); err != nil || !reflect.DeepEqual(got, example()) {
		t.Errorf("%+v, %v, want the old state", got, err)
	}
	if err := example().Write(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want that the directory is missing", err)
	}
}

// TestReadWhileWritten: a reader never meets half a state.
func TestReadWhileWritten(t *testing.T) {
	dir := t.TempDir()
	if err := example().Write(dir); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				if _, err := Read(dir); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 300 {
		s := example()
		s.Peers = make([]Peer, i)
		if err := s.Write(dir); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	readers.Wait()
}

// FuzzRead: whatever lies in the file is a state or an error, and a state can be written and read again.
func FuzzRead(f *testing.F) {
	b, err := json.MarshalIndent(example(), "", "  ")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(b), "{}", "null", "", "[]", `{"pid": -1e400}`, `{"identities": ["::ffff:1.2.3.4%eth0"]}`} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, stateFile), b, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := Read(dir)
		if err != nil {
			if s != nil {
				t.Fatalf("an error and a state: %v, %+v", err, s)
			}
			return
		}
		if err := s.Write(dir); err != nil {
			t.Fatalf("%+v was read, but: %v", s, err)
		}
		first, err := os.ReadFile(filepath.Join(dir, stateFile))
		if err != nil {
			t.Fatal(err)
		}
		again, err := Read(dir)
		if err != nil {
			t.Fatalf("%s was written, but: %v", first, err)
		}
		if err := again.Write(dir); err != nil {
			t.Fatal(err)
		}
		second, err := os.ReadFile(filepath.Join(dir, stateFile))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Fatalf("%s\nbecame\n%s", first, second)
		}
	})
}

// TestLock: one at a time; the second is told who holds it.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "plait") // made by the first
	first, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	own := strconv.Itoa(os.Getpid())
	if _, err := Acquire(dir); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "process id "+own+" ") {
		t.Errorf("%v, want ErrLocked that names process %s", err, own)
	}
	if pid, err := Running(dir); err != nil || pid != os.Getpid() {
		t.Errorf("process %d is running (%v), want %s", pid, err, own)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if pid, err := Running(dir); err != nil || pid != 0 {
		t.Errorf("process %d is running (%v) after the lock was given back", pid, err)
	}
	second, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Release(); err != nil {
		t.Fatal(err)
	}
}

// TestLockOfTheDead: the lock of a process that was killed is free at once, whatever its file still says.
func TestLockOfTheDead(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], holdArg, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 5)
	if _, err := out.Read(said); err != nil || string(said) != "held\n" {
		t.Fatalf("%q, %v", said, err)
	}
	if pid, err := Running(dir); err != nil || pid != cmd.Process.Pid {
		t.Errorf("process %d is running (%v), want %d", pid, err, cmd.Process.Pid)
	}
	if _, err := Acquire(dir); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("%v, want ErrLocked that names process %d", err, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if pid, err := Running(dir); err != nil || pid != 0 {
		t.Errorf("process %d is running (%v), want none", pid, err)
	}
	l, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := Running(dir); err != nil || pid != os.Getpid() {
		t.Errorf("process %d is running (%v), want %d", pid, err, os.Getpid())
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
}

// TestLockWhileWatched: those who only look whether an agent runs never keep one from starting.
func TestLockWhileWatched(t *testing.T) {
	dir := t.TempDir()
	var watchers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		watchers.Go(func() {
			for {
				if pid, err := Running(dir); err != nil || pid != 0 && pid != os.Getpid() {
					t.Errorf("process %d is running (%v)", pid, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 200 {
		l, err := Acquire(dir)
		if err != nil {
			t.Error(err)
			break
		}
		if err := l.Release(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	watchers.Wait()
}

// TestLockRemoved: a lock file that is removed while others wait for it never lets two in.
func TestLockRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var inside sync.Mutex
	var agents sync.WaitGroup
	for range 4 {
		agents.Go(func() {
			for n := 0; n < 50; {
				l, err := Acquire(dir)
				if errors.Is(err, ErrLocked) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				n++
				if !inside.TryLock() {
					t.Error("two hold the lock at once")
					return
				}
				inside.Unlock()
				if err := Remove(dir); err != nil { // the last that down does
					t.Error(err)
				}
				if err := l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	agents.Wait()
}

// TestRunningNone: where no agent ever was, none is running, and nothing is made.
func TestRunningNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if pid, err := Running(dir); err != nil || pid != 0 {
		t.Errorf("process %d is running (%v)", pid, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("looking made the directory: %v", err)
	}
}

// TestRemove: everything of ours goes, nothing of others, and it can be repeated.
func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	fill := func() {
		t.Helper()
		l, err := Acquire(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := example().Write(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, stateFile+".new"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := l.Release(); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory is still there: %v", err)
		}
	}
	fill()
	if err := os.WriteFile(filepath.Join(dir, "not-ours"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
		if names := list(t, dir); !reflect.DeepEqual(names, []string{"not-ours"}) {
			t.Errorf("the directory holds %v", names)
		}
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
