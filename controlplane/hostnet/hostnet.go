// SPDX-License-Identifier: Apache-2.0

// Package hostnet reads and changes the host's network configuration on behalf of plait: the plait0
// pair and the identities on it, the routes to the peers, the uplinks with their locators, next hops
// and neighbours, a few sysctls, and the notifications about all of these. It holds no BPF.
//
// What plait adds can be told from what others added, also by another process and after a crash:
// routes and neighbour entries carry the protocol number [Protocol], addresses live on plait0, and
// changed sysctls are written down in an [Undo]. Everything else is never touched.
//
// Every function states what shall be, and makes only the difference; calling it again changes
// nothing.
package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Protocol is the origin that plait writes into its routes (rtm_protocol) and neighbour entries
// (NDA_PROTOCOL), and by which it finds them again. It is the letter p, a number that neither the
// kernel's rtnetlink.h nor iproute2's rt_protos gives to anybody.
const Protocol = 112

const (
	// requestTimeout bounds the wait for an answer of the kernel. An answer takes microseconds unless
	// somebody holds the kernel's configuration lock; without a bound a lost answer would stop plait.
	requestTimeout = 30 * time.Second

	// dumpTries bounds how often a dump that a concurrent change interrupted is taken again.
	dumpTries = 30
)

// Host is the network configuration of one network namespace. Its methods may be called from any
// goroutine and any thread, and at the same time.
type Host struct {
	log     *slog.Logger
	ns      netns.NsHandle
	nsID    nsID
	nl      *netlink.Handle
	sockets map[int]*nl.SocketHandle // for the requests that the netlink library has no call for
	ethtool *ethtool.Ethtool

	// Tests make these tiny.
	watchBuffer int           // receive buffer of Watch's sockets, bytes
	resync      time.Duration // how often Watch reports everything as changed
}

// nsID tells whether two network namespaces are the same one.
type nsID struct{ dev, ino uint64 }

// New opens the network namespace of the calling thread. Close releases it. A process that is
// started inside a named namespace needs nothing more; a test that entered one on a locked thread
// can use the Host from other threads too, which needs CAP_SYS_ADMIN.
func New(log *slog.Logger) (*Host, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	h := &Host{log: log, ns: netns.None(), watchBuffer: 1 << 20, resync: resync}
	if err := h.open(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Host) open() error {
	var err error
	if h.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("opening the network namespace: %w", err)
	}
	if h.nsID, err = currentNS(); err != nil {
		return err
	}
	if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err = h.nl.SetSocketTimeout(requestTimeout); err != nil {
		return fmt.Errorf("setting the netlink timeout: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	h.sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	tv := unix.NsecToTimeval(int64(requestTimeout))
	if err = s.SetReceiveTimeout(&tv); err != nil {
		return fmt.Errorf("setting the netlink timeout: %w", err)
	}
	if h.ethtool, err = ethtool.NewEthtool(); err != nil {
		return fmt.Errorf("opening an ethtool socket: %w", err)
	}
	return nil
}

// Close releases the sockets. It changes nothing on the host. No other method may run or be called
// any more.
func (h *Host) Close() {
	if h.nl != nil {
		h.nl.Close()
	}
	for _, s := range h.sockets {
		s.Close()
	}
	if h.ethtool != nil {
		h.ethtool.Close()
	}
	if h.ns.IsOpen() {
		_ = h.ns.Close() // nothing was written to it
	}
}

// in runs fn on a thread in the host's namespace, which sockets and /proc/sys take theirs from. In
// the usual case the whole process is there already and nothing needs a privilege.
func (h *Host) in(fn func() error) error {
	runtime.LockOSThread()
	id, err := currentNS()
	if err == nil && id == h.nsID {
		defer runtime.UnlockOSThread()
		return fn()
	}
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}

	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, so that no other goroutine
		// can ever find itself in this namespace.
		runtime.LockOSThread()
		if err := netns.Set(h.ns); err != nil {
			done <- fmt.Errorf("entering the network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

func currentNS() (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return nsID{}, fmt.Errorf("reading the network namespace: %w", err)
	}
	return nsID{dev: st.Dev, ino: st.Ino}, nil
}

// dump calls fn until it returns a table that no concurrent change tore, at most dumpTries times.
func dump[T any](what string, fn func() (T, error)) (T, error) {
	var (
		v   T
		err error
	)
	for range dumpTries {
		if v, err = fn(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return v, fmt.Errorf("listing %s: %w", what, err)
	}
	return v, nil
}

// request sends a netlink message for which the library has no call, and hands each answer of type
// answer to each. An answer is valid only during the call.
func (h *Host) request(typ, flags int, answer uint16, each func([]byte), data ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(typ, flags)
	req.Sockets = h.sockets
	for _, d := range data {
		req.AddData(d)
	}
	return req.ExecuteIter(unix.NETLINK_ROUTE, answer, func(m []byte) bool {
		if each != nil {
			each(m)
		}
		return true
	})
}

// readSysctl reads a file under /proc/sys, without the white space around its value.
func (h *Host) readSysctl(path string) (string, error) {
	var b []byte
	err := h.in(func() (err error) {
		b, err = os.ReadFile("/proc/sys/" + path)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading a sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// setSysctl writes a file under /proc/sys if its value differs.
func (h *Host) setSysctl(path, value string) error {
	have, err := h.readSysctl(path)
	if err != nil || have == value {
		return err
	}
	err = h.in(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("setting a sysctl: %w", err)
	}
	return nil
}
