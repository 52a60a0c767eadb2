// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a named network namespace.
type Namespace struct {
	Netns string `json:"netns"` // its name, as `ip netns` lists it
}

// Path returns the file that stands for the namespace.
func (n Namespace) Path() string { return filepath.Join(netnsDir, n.Netns) }

// Command returns a command that runs inside the namespace once it is started, in whatever way: it
// is wrapped in nsenter(1), which enters only the network namespace and then becomes the program, so
// that process id, signals, standard streams and exit status are the program's own. (Starting it on a
// thread that is in the namespace would do too, but only for callers that know of it.) Mounts are those
// of the caller; `ip netns exec` would hide bpffs. As with exec.CommandContext the process is killed
// when ctx ends.
func (n Namespace) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := append([]string{"--net=" + n.Path(), "--"}, argv...)
	return exec.CommandContext(ctx, "nsenter", args...)
}

// Command returns a command that runs inside the host, as Namespace.Command says, with PLAIT_BPFFS,
// PLAIT_RUN_DIR, PLAITLAB_DIR, PLAITLAB_LAB and PLAITLAB_HOST set in its environment.
func (h *Host) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := h.Namespace.Command(ctx, argv...)
	cmd.Env = append(os.Environ(),
		"PLAIT_BPFFS="+h.BPFFS, "PLAIT_RUN_DIR="+h.RunDir,
		DirEnv+"="+h.lab.base, NameEnv+"="+h.lab.Name, HostEnv+"="+h.Name)
	return cmd
}

// Do runs fn on a thread inside the namespace. A socket that fn opens stays there, whoever uses it
// afterwards; a goroutine that fn starts does not. fn runs in a goroutine of its own.
func (n Namespace) Do(fn func() error) error {
	ns, err := os.Open(n.Path())
	if err != nil {
		return fmt.Errorf("opening network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	return onThread(func() error {
		old, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("opening network namespace: %w", err)
		}
		defer func() { _ = old.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", n.Netns, err)
		}
		defer func() {
			if unix.Setns(int(old.Fd()), unix.CLONE_NEWNET) != nil {
				// One lock more than onThread undoes: the thread dies with its goroutine.
				runtime.LockOSThread()
			}
		}()
		return fn()
	})
}

// onThread runs fn in a goroutine that is locked to a thread other than the process's first: the
// first thread's namespaces are what /proc shows for the process, and what Down goes by.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function ended its goroutine (runtime.Goexit, or FailNow of a test)")
		runtime.LockOSThread()
		defer func() {
			runtime.UnlockOSThread()
			done <- err
		}()
		if unix.Gettid() == unix.Getpid() {
			err = onThread(fn) // we hold the first thread, so it gets another
			return
		}
		err = fn()
	}()
	return <-done
}

// create makes the namespace and its name.
func (n Namespace) create() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("naming network namespace: %w", err)
	}
	_ = f.Close()
	return onThread(func() error {
		runtime.LockOSThread() // never undone: the thread ends with its goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("creating network namespace %s: %w", n.Netns, err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", n.Path(), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("naming network namespace %s: %w", n.Netns, err)
		}
		return nil
	})
}

// remove takes the name away; the kernel removes the namespace when nothing is left in it.
func (n Namespace) remove() error {
	if err := unmountAll(n.Path()); err != nil {
		return err
	}
	if err := os.Remove(n.Path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing network namespace: %w", err)
	}
	return nil
}

// unmountAll removes every mount at path. None is not an error.
func unmountAll(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT: // not, or no longer, a mount point
			return nil
		default:
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
}

// writeSysctl sets a sysctl of the namespace the thread is in; name is a path below /proc/sys.
func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("setting sysctl %s to %s: %w", name, value, err)
	}
	return nil
}
