// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	termTimeout = 3 * time.Second // for a process to end on SIGTERM
	killTimeout = 5 * time.Second // and on SIGKILL
)

type nsID struct{ dev, ino uint64 }

func namespaceID(path string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, err
	}
	return nsID{st.Dev, st.Ino}, nil
}

// process is a process held by a descriptor, so that its number cannot come to mean another.
type process struct {
	pid int
	fd  int
}

func (p process) close() { _ = unix.Close(p.fd) }

// signal sends sig; a process that has ended already is not an error.
func (p process) signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(p.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait returns whether the process ended within d.
func (p process) wait(d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		left := max(time.Until(deadline), 0)
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) || left == 0 {
			return false
		}
	}
}

// inside returns the processes whose first thread is in one of the namespaces, except this process
// and those it descends from.
func inside(namespaces []Namespace) ([]process, error) {
	ids := make(map[nsID]bool)
	for _, n := range namespaces {
		if id, err := namespaceID(n.Path()); err == nil {
			ids[id] = true
		}
	}
	if own, err := namespaceID("/proc/1/ns/net"); err == nil {
		delete(ids, own) // the name was made but no namespace mounted there: never end the machine
	}
	if len(ids) == 0 {
		return nil, nil
	}
	spare := ancestors()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || spare[pid] {
			continue
		}
		nsPath := fmt.Sprintf("/proc/%d/ns/net", pid)
		if id, err := namespaceID(nsPath); err != nil || !ids[id] {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // ended meanwhile
		}
		p := process{pid: pid, fd: fd}
		// Look again now that the number is ours to keep.
		if id, err := namespaceID(nsPath); err != nil || !ids[id] {
			p.close()
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

func ancestors() map[int]bool {
	all := make(map[int]bool)
	for pid := os.Getpid(); pid > 0 && !all[pid]; {
		all[pid] = true
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		// pid (comm) state ppid; comm may contain anything.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) < 2 {
			break
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			break
		}
	}
	return all
}

// endProcesses ends every process in the namespaces, politely first. It looks again until it finds
// none, for one of them may have started another meanwhile.
func endProcesses(namespaces []Namespace) error {
	for range 10 {
		found, err := inside(namespaces)
		if err != nil || len(found) == 0 {
			return err
		}
		if err := end(found); err != nil {
			return err
		}
	}
	return errors.New("processes inside the lab keep starting others")
}

func end(all []process) error {
	var errs []error
	for _, p := range all {
		if err := p.signal(unix.SIGTERM); err != nil {
			errs = append(errs, fmt.Errorf("ending process %d: %w", p.pid, err))
		}
		_ = p.signal(unix.SIGCONT) // a stopped one would never see it
	}
	deadline := time.Now().Add(termTimeout)
	for _, p := range all {
		if !p.wait(time.Until(deadline)) {
			_ = p.signal(unix.SIGKILL)
			if !p.wait(killTimeout) {
				errs = append(errs, fmt.Errorf("process %d does not end", p.pid))
			}
		}
		p.close()
	}
	return errors.Join(errs...)
}
