// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	bulkBuffer  = 256 << 10 // bytes a call reads or writes
	bulkConnect = 5 * time.Second

	bulkPatience = 30 * time.Second // for the first byte of a run
)

// flow is a TCP connection to be made.
type flow struct {
	from, to *lab.Host
	src, dst netip.Addr
}

// twoCPUs returns the first two that this process may use.
func twoCPUs() (cpus [2]int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return cpus, os.NewSyscallError("sched_getaffinity", err)
	}
	n := 0
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) && n < len(cpus) {
			cpus[n] = cpu
			n++
		}
	}
	if n < len(cpus) {
		return cpus, errors.New("client and server need a CPU each, and there is one")
	}
	return cpus, nil
}

// pin binds the calling goroutine to a CPU. It must end without unlocking its thread.
func pin(cpu int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &set))
}

// bulkRun is what a run came to.
type bulkRun struct {
	mbit float64 // Mbit/s that the servers received
	// busy is the CPU time that a byte took, in ns, at the end that took more: the client's or the server's threads', with
	// what the kernel did on their behalf.
	busy float64
}

// threadClock returns the CPU time that a thread of this process has had.
func threadClock(tid int) (time.Duration, error) {
	// The clock of a thread (include/linux/posix-timers_types.h: CPUCLOCK_PERTHREAD_MASK, CPUCLOCK_SCHED).
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^tid<<3|4|2), &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}

// busyTime adds up the CPU time of threads.
func busyTime(tids []int) (sum time.Duration, err error) {
	for _, tid := range tids {
		t, err := threadClock(tid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// bulk sends as fast as it can over new connections, clients on one CPU and servers on the other, and measures length after
// warmUp.
func (b *throughputBench) bulk(ctx context.Context, flows []flow, warmUp, length time.Duration) (r bulkRun, err error) {
	var clients, servers []int
	defer func() {
		for _, fd := range append(clients, servers...) {
			_ = unix.Close(fd)
		}
	}()
	for _, f := range flows {
		client, server, err := f.connect()
		if err != nil {
			return r, err
		}
		clients, servers = append(clients, client), append(servers, server)
	}

	var (
		received  atomic.Int64
		stop      atomic.Bool
		threads   sync.WaitGroup
		mu        sync.Mutex
		threadErr error
	)
	start := func(cpu int, loop func() error) (tid int) {
		threads.Add(1)
		started := make(chan int)
		go func() {
			defer threads.Done()
			err := pin(cpu)
			started <- unix.Gettid()
			if err == nil {
				err = loop()
			}
			if err != nil {
				mu.Lock()
				threadErr = errors.Join(threadErr, err)
				mu.Unlock()
			}
		}()
		return <-started
	}
	var clientThreads, serverThreads []int
	for _, fd := range servers {
		tid := start(b.cpus[1], func() error {
			buf := make([]byte, bulkBuffer)
			for {
				n, err := unix.Read(fd, buf)
				switch {
				case errors.Is(err, unix.EINTR):
				case err != nil:
					return fmt.Errorf("receiving: %w", err)
				case n == 0:
					return nil
				}
				received.Add(int64(max(n, 0)))
			}
		})
		serverThreads = append(serverThreads, tid)
	}
	for _, fd := range clients {
		tid := start(b.cpus[0], func() error {
			buf := make([]byte, bulkBuffer)
			for !stop.Load() {
				if _, err := unix.Write(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
					return fmt.Errorf("sending: %w", err)
				}
			}
			// The server ends with what is on its way.
			return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR))
		})
		clientThreads = append(clientThreads, tid)
	}

	type moment struct {
		at, client, server time.Duration
		bytes              int64
	}
	look := func() (m moment, err error) {
		m.at, m.bytes = traffic.Now(), received.Load()
		if m.client, err = busyTime(clientThreads); err != nil {
			return m, err
		}
		m.server, err = busyTime(serverThreads)
		return m, err
	}
	from, to := moment{}, moment{}
	err = func() (err error) {
		// However it ends, the clients end and the servers with them.
		defer stop.Store(true)
		if err := sleep(ctx, warmUp); err != nil {
			return err
		}
		if from, err = look(); err != nil {
			return err
		}
		to = from
		// Where the machine stands still for longer than a run, the run is longer.
		for to.bytes == from.bytes {
			if err := sleep(ctx, length); err != nil {
				return err
			}
			if to, err = look(); err != nil {
				return err
			}
			if to.bytes == from.bytes && to.at-from.at > bulkPatience {
				return fmt.Errorf("nothing arrived for %v", bulkPatience)
			}
		}
		return nil
	}()
	threads.Wait()
	if err := errors.Join(err, threadErr); err != nil {
		return r, err
	}
	bytes := float64(to.bytes - from.bytes)
	r.mbit = bytes * 8 / 1e6 / (to.at - from.at).Seconds()
	r.busy = float64(max(to.client-from.client, to.server-from.server)) / bytes
	return r, nil
}

// connect makes the connection, of blocking sockets.
func (f flow) connect() (client, server int, err error) {
	listener := -1
	err = f.to.Do(func() (err error) {
		listener, err = boundSocket(f.dst, unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		return os.NewSyscallError("listen", unix.Listen(listener, 1))
	})
	if listener >= 0 {
		defer func() { _ = unix.Close(listener) }()
	}
	if err != nil {
		return -1, -1, fmt.Errorf("server on host %s: %w", f.to.Name, err)
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		return -1, -1, os.NewSyscallError("getsockname", err)
	}
	client = -1
	err = f.from.Do(func() (err error) {
		if client, err = boundSocket(f.src, unix.SOCK_STREAM); err != nil {
			return err
		}
		// It bounds connect too.
		limit := unix.NsecToTimeval(bulkConnect.Nanoseconds())
		if err := unix.SetsockoptTimeval(client, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		return os.NewSyscallError("connect", unix.Connect(client, at))
	})
	if err != nil {
		if client >= 0 {
			_ = unix.Close(client)
		}
		return -1, -1, fmt.Errorf("client on host %s: %w", f.from.Name, err)
	}
	// It is connected, so it waits here already.
	if server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
		_ = unix.Close(client)
		return -1, -1, os.NewSyscallError("accept", err)
	}
	return client, server, nil
}

// boundSocket makes a socket bound to addr and a port of the kernel's choice.
func boundSocket(addr netip.Addr, kind int) (fd int, err error) {
	domain := unix.AF_INET
	if addr.Is6() {
		domain = unix.AF_INET6
	}
	if fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, socketAddress(addr, 0)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("binding to %s: %w", addr, err)
	}
	return fd, nil
}

func socketAddress(addr netip.Addr, port int) unix.Sockaddr {
	if addr.Is6() {
		return &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
	}
	return &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
}
