// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab/bpf"
)

const (
	relayMark  = 0x1ab    // RELAY_MARK of port.bpf.c
	relayHeld  = 64 << 20 // bytes that one port may hold; more are dropped
	relayQueue = 1 << 16  // frames
	tapQueue   = 8192     // frames between the kernel and the relay
	vnetHeader = 10       // bytes of struct virtio_net_hdr before each frame
	maxFrame   = vnetHeader + 14 + 65536
)

// relay delays what leaves a fabric towards its hosts. At each port a program on tcx egress redirects
// frames into a tap device, from which the relay reads them; after the delay it sends them out of the
// port through a packet socket, whose mark tells the program to let them pass. Offloads survive: the
// header in front of each frame, which tap and packet socket both speak, describes super-packets and
// checksums that are still to be computed. All of it belongs to descriptors of the relay's process, so
// that its end, however it comes, leaves an undelayed fabric.
type relay struct {
	ports []*relayPort
}

type relayPort struct {
	tap   *os.File
	sock  int
	link  link.Link
	queue chan heldFrame
	held  atomic.Int64
	word  *uint64 // the port's Relay in the shared configuration
	own   uint64  // what we wrote there
	delay time.Duration
	done  sync.WaitGroup
}

type heldFrame struct {
	data []byte
	due  time.Duration // CLOCK_MONOTONIC
}

func (l *Lab) newRelay(f *Fabric, c *maps, delay time.Duration) (_ *relay, err error) {
	r := &relay{}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	err = f.Do(func() error {
		for _, h := range l.Hosts {
			index := l.portIndex(f, h)
			prog, err := l.loadProgram(bpf.PortProgLabRelay, f, index, c)
			if err != nil {
				return err
			}
			p, err := newRelayPort(h.Name, prog, &c.ports[index].Relay, delay)
			_ = prog.Close()
			if err != nil {
				return fmt.Errorf("delaying port %s of fabric %s: %w", h.Name, f.Name, err)
			}
			r.ports = append(r.ports, p)
		}
		return nil
	})
	return r, err
}

// newRelayPort runs inside the fabric.
func newRelayPort(port string, prog *ebpf.Program, word *uint64, delay time.Duration) (_ *relayPort, err error) {
	p := &relayPort{sock: -1, word: word, delay: delay, queue: make(chan heldFrame, relayQueue)}
	defer func() {
		if err != nil {
			p.closeFiles()
		}
	}()
	ln, err := netlink.LinkByName(port)
	if err != nil {
		return nil, err
	}
	var tapIndex int
	if p.tap, tapIndex, err = openTap(ln.Attrs().MTU); err != nil {
		return nil, err
	}
	if p.sock, err = openPacketSocket(ln.Attrs().Index); err != nil {
		return nil, err
	}
	p.link, err = link.AttachTCX(link.TCXOptions{Program: prog, Interface: ln.Attrs().Index, Attach: ebpf.AttachTCXEgress})
	if err != nil {
		return nil, fmt.Errorf("attaching relay: %w", err)
	}
	p.own = uint64(tapIndex)
	store(word, p.own)
	p.done.Add(2)
	go p.read()
	go p.write()
	return p, nil
}

// openTap makes a tap device that goes away with its file.
func openTap(mtu int) (_ *os.File, index int, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the tun device: %w", err)
	}
	// The kernel numbers them: a relay inside another process may not have removed its own yet.
	req, err := unix.NewIfreq("rly%d")
	if err != nil {
		_ = unix.Close(fd)
		return nil, 0, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, 0, fmt.Errorf("creating tap: %w", err)
	}
	name := req.Name()
	// Only now: a poller that is told of the descriptor before it has a device never hears of frames.
	f := os.NewFile(uintptr(fd), "tap "+name)
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	// Take super-packets and unfinished checksums as they come.
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN |
		unix.TUN_F_USO4 | unix.TUN_F_USO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		return nil, 0, fmt.Errorf("setting offloads of tap %s: %w", name, err)
	}
	if err := writeSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return nil, 0, err
	}
	ln, err := netlink.LinkByName(name)
	if err != nil {
		return nil, 0, err
	}
	for _, set := range []func() error{
		func() error { return netlink.LinkSetMTU(ln, mtu) },
		func() error { return netlink.LinkSetTxQLen(ln, tapQueue) },
		func() error { return netlink.LinkSetUp(ln) },
	} {
		if err := set(); err != nil {
			return nil, 0, fmt.Errorf("setting up tap %s: %w", name, err)
		}
	}
	return f, ln.Attrs().Index, nil
}

// openPacketSocket opens a socket that sends frames out of an interface and receives none.
func openPacketSocket(ifindex int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, relayMark),
		// What waits in a rate limit's queue counts as ours: never block on it.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, relayHeld),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("setting up packet socket: %w", err)
	}
	return fd, nil
}

// read queues what the kernel hands over, until the tap is closed.
func (p *relayPort) read() {
	defer p.done.Done()
	defer close(p.queue)
	buf := make([]byte, maxFrame)
	for {
		n, err := p.tap.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || n <= vnetHeader {
			continue // a frame that the device could not describe; the next one may be fine
		}
		due := Monotonic() + p.delay
		if p.held.Load()+int64(n) > relayHeld {
			continue
		}
		select {
		case p.queue <- heldFrame{data: append([]byte(nil), buf[:n]...), due: due}:
			p.held.Add(int64(n))
		default:
		}
	}
}

// write sends each frame when it is due. All are held for the same time, so their order stays.
func (p *relayPort) write() {
	defer p.done.Done()
	for f := range p.queue {
		sleepUntil(f.due)
		// Like a cable, it does not report what it could not carry: interface down, queue full.
		_ = unix.Send(p.sock, f.data, unix.MSG_DONTWAIT)
		p.held.Add(-int64(len(f.data)))
	}
}

// sleepUntil sleeps until a time of CLOCK_MONOTONIC; the runtime's own timers are coarser.
func sleepUntil(t time.Duration) {
	ts := unix.NsecToTimespec(t.Nanoseconds())
	for Monotonic() < t {
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
	}
}

// close ends the delay. Frames that are held then are still sent, at their time.
func (r *relay) close() {
	for _, p := range r.ports {
		// Another process may have put a relay of its own there.
		atomic.CompareAndSwapUint64(p.word, p.own, 0)
	}
	for _, p := range r.ports {
		p.closeFiles()
	}
}

func (p *relayPort) closeFiles() {
	if p.link != nil {
		_ = p.link.Close()
	}
	if p.tap != nil {
		_ = p.tap.Close()
	}
	p.done.Wait()
	if p.sock >= 0 {
		_ = unix.Close(p.sock)
	}
}
