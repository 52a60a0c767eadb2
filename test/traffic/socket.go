// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Place runs a function where its sockets belong: on a thread inside a host's network namespace. A nil Place is the caller's
// own namespace.
type Place func(func() error) error

func (p Place) do(f func() error) error {
	if p == nil {
		return f()
	}
	return p(f)
}

// sockaddr is a's form for the kernel.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// localAddr is the address that fd is bound to.
func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("socket has an address of an unexpected kind, %T", sa)
}

// newSocket makes a non-blocking socket bound to local.
func newSocket(local netip.AddrPort, kind, proto int) (int, error) {
	fd, err := unix.Socket(family(local.Addr()), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err := unix.Bind(fd, sockaddr(local)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("binding to %s: %w", local, err)
	}
	return fd, nil
}

// connect waits until fd is connected to remote, at most timeout.
func connect(fd int, remote netip.AddrPort, timeout time.Duration) error {
	err := unix.Connect(fd, sockaddr(remote))
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connecting to %s: %w", remote, err)
	}
	if err := wait(fd, unix.POLLOUT, timeout); err != nil {
		return fmt.Errorf("connecting to %s: %w", remote, err)
	}
	if err := pendingError(fd); err != nil {
		return fmt.Errorf("connecting to %s: %w", remote, err)
	}
	return nil
}

// pendingError takes the error that fd holds, nil if none.
func pendingError(fd int) error {
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if e != 0 {
		return unix.Errno(e)
	}
	return nil
}

// wait polls fd for events, at most timeout.
func wait(fd int, events int16, timeout time.Duration) error {
	deadline := Now() + timeout
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		left := deadline - Now()
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		ts := unix.NsecToTimespec(int64(left))
		n, err := unix.Ppoll(fds, &ts, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("ppoll", err)
		}
		if n > 0 {
			return nil
		}
	}
}

// bufferBytes is asked for as the size of UDP receive buffers: a receiver that the machine keeps from running for a second
// must not lose a packet, or that would count as lost in the network.
const bufferBytes = 16 << 20

// growReceiveBuffer makes fd's buffer as large as the kernel lets us.
func growReceiveBuffer(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferBytes)
	}
}

// The three calls below are the ones of the measuring loops. golang.org/x/sys/unix would allocate an address for each packet,
// and none of them ever blocks, so the Go scheduler need not hear of them.

// sendNow sends b on the connected socket fd without waiting.
func sendNow(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

// sendToNow sends b to the address that receiveNow stored, without waiting.
func sendToNow(fd int, b []byte, to *unix.RawSockaddrAny, size uint32) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(to)), uintptr(size))
	return e
}

// receiveNow receives into b without waiting and stores whom from. n is 0 at the end of a TCP stream. With MSG_TRUNC a
// datagram larger than b shows as a larger n.
func receiveNow(fd int, b []byte, flags int, from *unix.RawSockaddrAny, size *uint32) (n int, e unix.Errno) {
	*size = unix.SizeofSockaddrAny
	r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		uintptr(unix.MSG_DONTWAIT|flags), uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(size)))
	return int(r), e
}
