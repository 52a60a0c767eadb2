// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultQueue is the queue of a rate limit that names none.
const DefaultQueue = 20 * time.Millisecond

// relayTimeout is how long a relay of its own process may take to start.
const relayTimeout = 10 * time.Second

// Impairment is what makes a fabric worse than a cable. The zero value is a good fabric.
type Impairment struct {
	// Loss is the probability, 0..1, with which a packet that enters the fabric is dropped at random;
	// in the virtual form super-packets are lost as a whole.
	Loss float64

	// Rate limits what leaves the fabric towards each host, in tc's notation: a number and bit, kbit,
	// mbit or gbit (powers of 1000) a second. "" for no limit.
	Rate string

	// Queue is how long a packet may wait for a rate limit, after which packets are dropped at the
	// tail; 0 means DefaultQueue. Without Rate it is an error.
	Queue time.Duration

	// Delay is added to every packet's way through the fabric, in each direction, so that the round
	// trip gains twice as much. A user-space relay does it (there is no netem here): it costs CPU,
	// adds jitter of some 0.1 ms and more under load, and holds at most 64 MiB for each port.
	Delay time.Duration
}

// ParseRate returns a rate in bit/s, 8 kbit/s to 1 Tbit/s, from tc's notation; see Impairment.Rate.
func ParseRate(s string) (uint64, error) {
	units := []struct {
		name   string
		factor float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}}
	for _, u := range units {
		number, ok := strings.CutSuffix(strings.ToLower(s), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil {
			break
		}
		if rate := n * u.factor; rate >= 8e3 && rate <= 1e12 {
			return uint64(rate), nil
		}
		return 0, fmt.Errorf("rate %q: want 8kbit to 1000gbit", s)
	}
	return 0, fmt.Errorf("rate %q: want a number with bit, kbit, mbit or gbit, as in 500mbit", s)
}

// DetachRelays makes Impair start its relays as processes of their own, which live on when this one
// ends: argv, with the names of the lab and of the fabric and the delay as further arguments, must call
// RunRelay. Without it a relay is part of this process.
func (l *Lab) DetachRelays(argv ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.relayArgv = argv
}

// Impair replaces the fabric's impairments by i; the zero value removes them. It applies to cut
// fabrics too, and a cut leaves it as it is.
func (l *Lab) Impair(fabric string, i Impairment) error {
	f := l.Fabric(fabric)
	if f == nil {
		return fmt.Errorf("lab %s has no fabric %q: want f1 to f%d", l.Name, fabric, len(l.Fabrics))
	}
	var rate uint64
	if i.Rate != "" {
		var err error
		if rate, err = ParseRate(i.Rate); err != nil {
			return err
		}
	}
	switch {
	case math.IsNaN(i.Loss) || i.Loss < 0 || i.Loss > 1:
		return fmt.Errorf("loss %v: want 0 to 1", i.Loss)
	case i.Queue != 0 && rate == 0:
		return errors.New("a queue without a rate limit would never fill: want both")
	case i.Queue < 0 || i.Queue > 10*time.Second:
		return fmt.Errorf("queue %v: want 0 to 10s", i.Queue)
	case i.Delay < 0 || i.Delay > 10*time.Second:
		return fmt.Errorf("delay %v: want 0 to 10s", i.Delay)
	}
	if i.Queue == 0 {
		i.Queue = DefaultQueue
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	c, err := l.config()
	if err != nil {
		return err
	}
	for _, h := range l.Hosts {
		store(&c.ports[l.portIndex(f, h)].Loss, uint64(math.Round(i.Loss*(1<<32))))
	}
	err = f.Do(func() error {
		for _, h := range l.Hosts {
			if err := limitRate(h.Name, rate, i.Queue); err != nil {
				return fmt.Errorf("port %s of fabric %s: %w", h.Name, f.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.stopRelay(f, c); err != nil {
		return err
	}
	if i.Delay > 0 {
		return l.startRelay(f, c, i.Delay)
	}
	return nil
}

// limitRate shapes what leaves a port of the fabric the thread is in; rate is in bit/s, 0 for no limit.
func limitRate(port string, rate uint64, queue time.Duration) error {
	ln, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	attrs := netlink.QdiscAttrs{LinkIndex: ln.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if rate == 0 {
		err := netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "tbf"})
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // none there
			return fmt.Errorf("removing rate limit: %w", err)
		}
		return nil
	}
	bytes := rate / 8
	// A millisecond's worth, but some packets at least: tbf segments super-packets that exceed it.
	burst := uint32(max(bytes/1000, 4*uint64(ln.Attrs().MTU+14)))
	limit := uint64(float64(bytes)*queue.Seconds()) + uint64(burst)
	qdisc := &netlink.Tbf{
		QdiscAttrs: attrs,
		Rate:       bytes,
		Limit:      uint32(min(limit, math.MaxUint32)),
		Buffer:     netlink.Xmittime(bytes, burst),
	}
	if err := netlink.QdiscReplace(qdisc); err != nil {
		return fmt.Errorf("limiting rate: %w", err)
	}
	return nil
}

func (l *Lab) relayFile(f *Fabric) string { return filepath.Join(l.Dir(), "relay."+f.Name) }

// startRelay starts a relay, here or in a process of its own. The caller holds the locks.
func (l *Lab) startRelay(f *Fabric, c *maps, delay time.Duration) error {
	if l.relayArgv == nil {
		r, err := l.newRelay(f, c, delay)
		if err != nil {
			return err
		}
		if l.relays == nil {
			l.relays = make(map[string]*relay)
		}
		l.relays[f.Name] = r
		return nil
	}

	argv := append(l.relayArgv[:len(l.relayArgv):len(l.relayArgv)], l.Name, f.Name, delay.String())
	cmd := f.Command(context.Background(), argv...)
	cmd.Env = append(os.Environ(), DirEnv+"="+l.base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr strings.Builder
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	errPipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting relay of fabric %s: %w", f.Name, err)
	}
	// It says "ready" and closes both streams, or it complains and ends.
	timer := time.AfterFunc(relayTimeout, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != relayReady {
		_, _ = bufio.NewReader(errPipe).WriteTo(&stderr)
		err := cmd.Wait()
		return fmt.Errorf("starting relay of fabric %s: %w: %s", f.Name, errors.Join(err), strings.TrimSpace(stderr.String()))
	}
	pid := []byte(strconv.Itoa(cmd.Process.Pid))
	if err := os.WriteFile(l.relayFile(f), pid, 0o644); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("recording relay of fabric %s: %w", f.Name, err)
	}
	go func() { _ = cmd.Wait() }() // reap it, should it end before we do
	return nil
}

// stopRelay ends the fabric's delay, whichever process the relay is in. The caller holds the locks.
func (l *Lab) stopRelay(f *Fabric, c *maps) error {
	// From here on the ports pass by any relay, also one inside another process.
	for _, h := range l.Hosts {
		store(&c.ports[l.portIndex(f, h)].Relay, 0)
	}
	if r := l.relays[f.Name]; r != nil {
		r.close()
		delete(l.relays, f.Name)
	}
	b, err := os.ReadFile(l.relayFile(f))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return fmt.Errorf("reading %s: %w", l.relayFile(f), err)
	}
	// Only a process in the fabric's namespace can be the relay; the number may mean another by now.
	found, err := inside([]Namespace{f.Namespace})
	if err != nil {
		return err
	}
	var ours []process
	for _, p := range found {
		if p.pid == pid {
			ours = append(ours, p)
		} else {
			p.close()
		}
	}
	if err := end(ours); err != nil {
		return err
	}
	return os.Remove(l.relayFile(f))
}

// RunRelay delays a fabric until ctx ends. It is what DetachRelays' argv must call, in a process that
// is inside the fabric's namespace already. It writes "ready" to standard output once it works, and
// closes the standard streams, for whoever started it does not stay.
func (l *Lab) RunRelay(ctx context.Context, fabric string, delay time.Duration) error {
	f := l.Fabric(fabric)
	if f == nil {
		return fmt.Errorf("lab %s has no fabric %q", l.Name, fabric)
	}
	c, err := l.openMaps()
	if err != nil {
		return err
	}
	defer c.close()
	r, err := l.newRelay(f, c, delay)
	if err != nil {
		return err
	}
	defer r.close()
	if _, err := os.Stdout.WriteString(relayReady); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

const relayReady = "ready\n"
