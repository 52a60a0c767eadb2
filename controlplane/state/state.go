// SPDX-License-Identifier: Apache-2.0

// Package state keeps what the agent must leave behind on disk: names and places that the pinned
// maps hold only as numbers, so that status works with a dead agent, and what down has to put back.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/maps"
)

const (
	stateFile = "state.json"
	lockFile  = "plait.lock"
)

// ErrNone says that there is no state: no agent has run here since the last down.
var ErrNone = errors.New("no agent has run here")

// ErrLocked says that another agent runs on this run directory.
var ErrLocked = errors.New("another agent is running")

// State is the content of the state file.
type State struct {
	Version string    `json:"version"` // of the agent that wrote it
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Config  string    `json:"config"` // path of the configuration file
	Host    string    `json:"host"`
	Metrics string    `json:"metrics,omitempty"` // address of the metrics server

	Identities []netip.Addr `json:"identities"`
	Uplinks    []Uplink     `json:"uplinks"`
	Peers      []Peer       `json:"peers"`

	IdleIntervalMS float64 `json:"idle_interval_ms"`
	HoldDownMS     float64 `json:"hold_down_ms"`

	Undo hostnet.Undo `json:"undo"`
}

// Uplink is an uplink as the agent last saw it.
type Uplink struct {
	Name     string       `json:"name"`
	Number   uint8        `json:"number"`  // bit in maps.Settings.Uplinks
	Ifindex  int          `json:"ifindex"` // 0: missing
	MTU      int          `json:"mtu"`
	Carrier  bool         `json:"carrier"`
	Locators []netip.Addr `json:"locators"`
	Hook     string       `json:"hook"` // "xdp" or "tc", empty if not attached
	HookWhy  string       `json:"hook_why,omitempty"`
	Problem  string       `json:"problem,omitempty"` // why it is down, for a person
}

// Peer is a peer and its groups in the maps, one a family.
type Peer struct {
	Name   string  `json:"name"`
	Groups []Group `json:"groups"`
}

// Group says where a peer's family lies in the maps.
type Group struct {
	Family   maps.Family `json:"family"` // 2 or 10, AF_INET or AF_INET6
	Index    uint32      `json:"index"`
	Identity netip.Addr  `json:"identity"`
}

// Read returns the state of a run directory, or ErrNone.
func Read(runDir string) (*State, error) {
	b, err := os.ReadFile(filepath.Join(runDir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNone, filepath.Join(runDir, stateFile))
	}
	if err != nil {
		return nil, fmt.Errorf("reading state: %w", err)
	}
	s := &State{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("reading state %s: %w", filepath.Join(runDir, stateFile), err)
	}
	return s, nil
}

// Write replaces the state in one step.
func (s *State) Write(runDir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(runDir, stateFile)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing state: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing state: %w", err)
	}
	return nil
}

// Remove deletes what the agent left in a run directory, and the directory if it is empty then.
func Remove(runDir string) error {
	var errs []error
	for _, name := range []string{stateFile, stateFile + ".new", lockFile} {
		if err := os.Remove(filepath.Join(runDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(runDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) &&
		!errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Lock is held by the running agent.
type Lock struct{ f *os.File }

// How long Acquire and Running wait out the moments in which the lock file says nothing: another process looks who holds
// it, or has just taken it.
const (
	retries    = 50
	retryEvery = 2 * time.Millisecond
)

// Acquire makes the run directory if need be and takes its lock; ErrLocked names the holder. The
// kernel releases it when the process ends, however it ends.
func Acquire(runDir string) (*Lock, error) {
	path := filepath.Join(runDir, lockFile)
	for try := 1; ; try++ {
		err := os.MkdirAll(runDir, 0o755)
		if errors.Is(err, fs.ErrExist) && try < retries {
			continue // removed between the attempt to make it and the look at what is there
		}
		if err != nil {
			return nil, fmt.Errorf("creating run directory: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
		if errors.Is(err, fs.ErrNotExist) && try < retries {
			continue // the directory was removed at this moment
		}
		if err != nil {
			return nil, fmt.Errorf("opening lock: %w", err)
		}
		err = take(f, path)
		if err == nil {
			return &Lock{f}, nil
		}
		pid, _ := holder(f)
		_ = f.Close()
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, errRemoved):
			return nil, fmt.Errorf("locking %s: %w", path, err)
		case try == retries:
			return nil, fmt.Errorf("%w with process id %d (lock %s)", ErrLocked, pid, path)
		}
		time.Sleep(retryEvery)
	}
}

// errRemoved says that a lock was taken on a file that is not the lock file any more.
var errRemoved = errors.New("lock file was removed")

// take locks f, which was opened at path, and writes our process id into it.
func take(f *os.File, path string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	// Whoever held the lock may have removed the file meanwhile, and somebody else locked a new one.
	if there, err := os.Stat(path); err != nil || !os.SameFile(mine, there) {
		return errRemoved
	}
	// Of one length always, so that no reader finds half a number.
	if _, err := fmt.Fprintf(f, "%-10d\n", os.Getpid()); err != nil {
		return fmt.Errorf("writing process id: %w", err)
	}
	return nil
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.f.Close() }

func holder(f *os.File) (int, error) {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	return strconv.Atoi(strings.TrimSpace(string(b[:n])))
}

// Running returns the process id of the running agent, 0 if there is none.
func Running(runDir string) (int, error) {
	path := filepath.Join(runDir, lockFile)
	for try := 1; ; try++ {
		pid, err := running(path)
		if err == nil || try == retries {
			return pid, err
		}
		time.Sleep(retryEvery)
	}
}

func running(path string) (int, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("opening lock: %w", err)
	}
	defer func() { _ = f.Close() }()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, nil // closing releases it again
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("looking at lock %s: %w", path, err)
	}
	pid, err := holder(f)
	if err != nil {
		return 0, fmt.Errorf("lock %s is held, but does not say by whom: %w", path, err)
	}
	return pid, nil
}
