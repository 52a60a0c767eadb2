// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/controlplane/probe"
	"github.com/plait-net/plait/loader"
	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	agentSettle  = 3 * time.Second // for a process to run steadily before it is measured
	agentRate    = 50              // packets/s of each stream: enough for fast rounds
	agentPaths   = 4               // two fabrics, two families
	agentRounds  = time.Millisecond
	barePriority = 50 // SCHED_FIFO, as the agent's sender
	bareWindow   = 50 // rounds of the peer's receive report: more than any path's patience
	sampleRounds = 16 // every so many rounds the agent asks for an RTT sample
)

// Bars of the agent.
const (
	mostAgentCPU = 3.0  // percent of a core, beyond the bare loop
	mostAgentMiB = 40.0 // resident
)

// agentCostOptions are the command's flags.
type agentCostOptions struct {
	length time.Duration // of one measurement
	pairs  int
	form   lab.Form
	plait  string
	json   bool
}

// agentCostReport is what the command prints.
type agentCostReport struct {
	Kernel   string  `json:"kernel"`
	Form     string  `json:"form"`
	Paths    int     `json:"paths"`
	Seconds  float64 `json:"seconds"` // of one measurement
	RoundsMS float64 `json:"interval_ms"`

	Pairs   []agentCostPair `json:"pairs"`
	CPU     *distribution   `json:"added_cpu_percent"` // of the pairs
	RSSMiB  float64         `json:"rss_mib"`           // largest seen
	PeakMiB float64         `json:"peak_rss_mib"`      // the kernel's high-water mark, start included
	Bars    []bar           `json:"bars"`
}

// agentCostPair is one measurement of each. CPU times are percent of a core.
type agentCostPair struct {
	Order       string  `json:"order"` // "agent, loop" or "loop, agent"
	Agent       float64 `json:"agent_cpu_percent"`
	AgentRounds float64 `json:"agent_rounds_per_s"`
	Loop        float64 `json:"loop_cpu_percent"`
	LoopRounds  float64 `json:"loop_rounds_per_s"`
	Added       float64 `json:"added_cpu_percent"` // at the number of rounds that was due
}

// newAgentCostCommand returns `plaitlab bench agent`.
func newAgentCostCommand() *cobra.Command {
	var (
		o      agentCostOptions
		output string
		wire   bool
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Measure what the agent costs beyond the packets it sends",
		Long: `Brings up two hosts on two fabrics with an agent on each and traffic in both families, so that host a
sends a round on four paths every millisecond. The CPU time of its agent, all threads, is held against that of
a bare loop in its place, which sends the same packets, made and signed beforehand, at the same moments and
priority. Both pay for the way of the packets through kernel and fabrics and back. They are measured in turn,
A B B A; the bar is on the median difference, with the agent's metrics scraped once in each measurement.

It fails if a bar is missed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch output {
			case "table":
			case "json":
				o.json = true
			default:
				return fmt.Errorf("output %q: want table or json", output)
			}
			if o.length < time.Second || o.pairs < 1 {
				return errors.New("want --for of at least 1s and at least one pair")
			}
			if wire {
				o.form = lab.Wire
			}
			return agentCost(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.length, "for", 20*time.Second, "length of one measurement")
	f.IntVar(&o.pairs, "pairs", 4, "measurements of each")
	f.BoolVar(&wire, "wire", false, "lab whose packets are as on a wire (default: virtual, super-packets)")
	f.StringVar(&o.plait, "plait", "", "plait program (default: the one next to this program)")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// agentCost runs the command.
func agentCost(ctx context.Context, out, diag io.Writer, o agentCostOptions) (err error) {
	if o.plait, err = plaitProgram(o.plait); err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Options{Form: o.form})
	if err != nil {
		return fmt.Errorf("bringing the lab up: %w", err)
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	b := &agentBench{o: o, a: l.Host("a"), b: l.Host("b")}
	var configs [2]string
	for i, h := range []*lab.Host{b.a, b.b} {
		// With the fabrics labelled there are two paths a family.
		if configs[i], err = h.WriteConfig(func(c *lab.Config) {
			c.Liveness = &lab.ConfigLiveness{Interval: agentRounds}
		}); err != nil {
			return err
		}
	}
	b.config = configs[0]
	if b.pair, err = startPair(ctx, l, o.plait, configs); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.pair.stop()) }()
	if b.set, err = loader.Maps(b.a.BPFFS, false); err != nil {
		return fmt.Errorf("host a: %w", err)
	}
	defer func() { err = errors.Join(err, b.set.Close()) }()
	stop, err := b.traffic()
	if err != nil {
		return err
	}
	defer stop()

	report := agentCostReport{
		Kernel: kernelRelease(), Form: o.form.String(), Paths: agentPaths, Seconds: o.length.Seconds(),
		RoundsMS: float64(agentRounds) / float64(time.Millisecond),
	}
	var added []float64
	for n := range o.pairs {
		p, err := b.measurePair(ctx, n%2 == 1)
		if err != nil {
			return err
		}
		report.Pairs = append(report.Pairs, p)
		added = append(added, p.Added)
		_, _ = fmt.Fprintf(diag, "pair %d of %d: agent %.2f %%, bare loop %.2f %% of a core\n", n+1, o.pairs, p.Agent, p.Loop)
	}
	report.CPU = distributionOf(added)
	report.RSSMiB, report.PeakMiB = b.rss, b.peak
	report.Bars = []bar{
		newBar("CPU beyond a bare loop, median, % of a core", mostAgentCPU, report.CPU.Median),
		newBar("resident, MiB", mostAgentMiB, report.RSSMiB),
	}
	if o.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(report)
	} else {
		err = report.table(out)
	}
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return report.verdict()
}

// verdict is an error if a bar was missed.
func (r agentCostReport) verdict() error {
	var missed []error
	for _, b := range r.Bars {
		if !b.Met {
			missed = append(missed, fmt.Errorf("%s: %.2f, want at most %g", b.Name, b.Value, b.Most))
		}
	}
	return errors.Join(missed...)
}

func (r agentCostReport) table(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "order\tagent CPU %\trounds/s\tbare loop CPU %\trounds/s\tdifference\t")
	for _, p := range r.Pairs {
		_, _ = fmt.Fprintf(t, "%s\t%.2f\t%.0f\t%.2f\t%.0f\t%.2f\t\n", p.Order, p.Agent, p.AgentRounds, p.Loop, p.LoopRounds, p.Added)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "\nresident %.1f MiB, at most since its start %.1f MiB\n\n", r.RSSMiB, r.PeakMiB)
	t = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, b := range r.Bars {
		verdict := "MISSED"
		if b.Met {
			verdict = "met"
		}
		_, _ = fmt.Fprintf(t, "%s\t%.2f\tat most %g\t%s\t\n", b.Name, b.Value, b.Most, verdict)
	}
	return t.Flush()
}

// agentBench is what the measurements share.
type agentBench struct {
	o      agentCostOptions
	pair   *pair
	a, b   *lab.Host
	config string    // of host a
	set    *maps.Set // of host a
	rss    float64   // MiB, largest of any agent of host a
	peak   float64   // MiB, of the kernel's accounts
}

// traffic starts a light stream in each family. The returned function stops them.
func (b *agentBench) traffic() (stop func(), err error) {
	// Twice as long as it can take, for a slow machine.
	length := time.Duration(b.o.pairs) * 4 * (b.o.length + agentSettle + pathsUpTimeout/6)
	var streams []*traffic.UDP
	closeAll := func() {
		for _, u := range streams {
			u.Close()
		}
	}
	for _, ids := range [][2]netip.Addr{{b.a.Identity4, b.b.Identity4}, {b.a.Identity6, b.b.Identity6}} {
		u, err := traffic.NewUDP(traffic.UDPConfig{
			From: b.a.Do, To: b.b.Do, Src: netip.AddrPortFrom(ids[0], 0), Dst: netip.AddrPortFrom(ids[1], 0),
			Rate: agentRate, For: length, Answer: true,
		})
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("opening a stream: %w", err)
		}
		streams = append(streams, u)
	}
	g, err := traffic.StartUDP(streams...)
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("starting the streams: %w", err)
	}
	return func() {
		g.Stop()
		closeAll()
	}, nil
}

// added is what the agent costs more. On a busy machine both miss some rounds, and not the same number; so both are held to
// the number that was due.
func (p agentCostPair) added() float64 {
	due := float64(time.Second / agentRounds)
	return p.Agent*due/p.AgentRounds - p.Loop*due/p.LoopRounds
}

// measurePair measures both, the bare loop first if loopFirst. The agent runs before and afterwards.
func (b *agentBench) measurePair(ctx context.Context, loopFirst bool) (p agentCostPair, err error) {
	steps := []func() error{
		func() error {
			p.Agent, p.AgentRounds, err = b.measureAgent(ctx)
			return err
		},
		func() error {
			p.Loop, p.LoopRounds, err = b.measureLoop(ctx)
			return err
		},
	}
	p.Order = "agent, loop"
	if loopFirst {
		steps[0], steps[1] = steps[1], steps[0]
		p.Order = "loop, agent"
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return p, err
		}
	}
	p.Added = p.added()
	return p, nil
}

// rounds is how many rounds host a has sent, the mean of its groups.
func (b *agentBench) rounds() (float64, error) {
	groups, err := b.set.Identities()
	if err != nil {
		return 0, fmt.Errorf("host a: %w", err)
	}
	sum, paths := uint64(0), uint32(0)
	for _, i := range groups {
		sum += atomic.LoadUint64(&b.set.GroupStates.At(i).Sent)
		paths += b.set.Groups.At(i).PathCount
	}
	if paths != agentPaths {
		return 0, fmt.Errorf("host a has %d paths, want %d", paths, agentPaths)
	}
	return float64(sum) / float64(len(groups)), nil
}

// measure returns the percentage of a core that cpu says was used, and the rounds sent a second, while during runs.
func (b *agentBench) measure(cpu func() (time.Duration, error), during func() error) (percent, rounds float64, err error) {
	var took [2]time.Duration
	var sent [2]float64
	var at [2]time.Duration
	for i := range 2 {
		if i == 1 {
			if err := during(); err != nil {
				return 0, 0, err
			}
		}
		at[i] = traffic.Now()
		if took[i], err = cpu(); err != nil {
			return 0, 0, fmt.Errorf("reading CPU time: %w", err)
		}
		if sent[i], err = b.rounds(); err != nil {
			return 0, 0, err
		}
	}
	length := at[1] - at[0]
	return 100 * float64(took[1]-took[0]) / float64(length), (sent[1] - sent[0]) / length.Seconds(), nil
}

// measureAgent measures the agent of host a.
func (b *agentBench) measureAgent(ctx context.Context) (percent, rounds float64, err error) {
	if err := sleep(ctx, agentSettle); err != nil {
		return 0, 0, err
	}
	pid := b.pair.agents[0].cmd.Process.Pid
	cpu := func() (time.Duration, error) { return processTime(pid) }
	percent, rounds, err = b.measure(cpu, func() error {
		for i := range 2 {
			if err := sleep(ctx, b.o.length/2); err != nil {
				return err
			}
			if i == 0 {
				if err := b.scrape(ctx); err != nil {
					return err
				}
			}
			if err := b.noteMemory(pid); err != nil {
				return err
			}
		}
		return b.pair.agents[0].alive()
	})
	return percent, rounds, err
}

// scrape reads the metrics of host a's agent, as a monitoring system does every few seconds.
func (b *agentBench) scrape(ctx context.Context) error {
	dial := func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		doErr := b.a.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, doErr
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9555/metrics", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("scraping the agent of host a: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("scraping the agent of host a: %s: %w", res.Status, err)
	}
	return nil
}

// noteMemory remembers the largest memory of a process.
func (b *agentBench) noteMemory(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return fmt.Errorf("reading memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		to := map[string]*float64{"VmRSS": &b.rss, "VmHWM": &b.peak}[name]
		if to == nil {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			return fmt.Errorf("reading memory: %w", err)
		}
		*to = max(*to, kib/1024)
	}
	return nil
}

// measureLoop stops the agent of host a, measures the bare loop in its place, and starts an agent again.
func (b *agentBench) measureLoop(ctx context.Context) (percent, rounds float64, err error) {
	if err := b.pair.agents[0].stop(); err != nil {
		return 0, 0, err
	}
	percent, rounds, err = b.runLoop(ctx)
	if err != nil {
		return 0, 0, err
	}
	if b.pair.agents[0], err = startAgent(ctx, b.o.plait, b.a, b.config); err != nil {
		return 0, 0, err
	}
	return percent, rounds, b.pair.waitUp(ctx)
}

func (b *agentBench) runLoop(ctx context.Context) (percent, rounds float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, fmt.Errorf("starting the bare loop: %w", err)
	}
	// Some seconds more than it is measured for; it is ended before.
	length := b.o.length + 2*agentSettle
	cmd := b.a.Command(ctx, self, "bare-loop", "--config", b.config, "--for", length.String())
	// The runtime's preemption signals would interrupt the loop's sleep.
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	diag := &tail{}
	cmd.Stderr = diag
	said, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, fmt.Errorf("starting the bare loop: %w", err)
	}
	// Pdeathsig is about the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, 0, fmt.Errorf("starting the bare loop: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		var exit *exec.ExitError
		if e := cmd.Wait(); e != nil && !errors.As(e, &exit) {
			err = errors.Join(err, e)
		}
	}()
	line, err := bufio.NewReader(said).ReadString('\n')
	thread, convErr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || convErr != nil {
		return 0, 0, fmt.Errorf("the bare loop did not start: %s", strings.TrimSpace(diag.String()))
	}
	if err := sleep(ctx, agentSettle); err != nil {
		return 0, 0, err
	}
	// Its sending thread alone: what the Go runtime does beside it belongs to no bare loop.
	cpu := func() (time.Duration, error) { return taskTime(cmd.Process.Pid, thread) }
	return b.measure(cpu, func() error { return sleep(ctx, b.o.length) })
}

// processTime is the CPU time of a process, all threads that it has or had.
func processTime(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED: the scheduler's count, ns (clock_getcpuclockid(3))
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// taskTime is the CPU time of one thread, as of when it last gave the CPU up or took a tick.
func taskTime(pid, tid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, tid))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	ns, err := strconv.ParseInt(first, 10, 64)
	return time.Duration(ns), err
}

// newBareLoopCommand returns the hidden command that sends what an agent would and does nothing else.
func newBareLoopCommand() *cobra.Command {
	var file string
	var length time.Duration
	cmd := &cobra.Command{
		Use:    "bare-loop",
		Short:  "Send an agent's probes, signed beforehand, and do nothing else",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bareLoop(cmd.OutOrStdout(), file, os.Getenv("PLAIT_BPFFS"), length)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "plait's configuration of this host")
	cmd.Flags().DurationVar(&length, "for", 10*time.Second, "how long")
	return cmd
}

// bareGroup is a peer in one family, as it is in the maps.
type bareGroup struct {
	state *maps.GroupState
	first uint64 // round
	paths []probe.Path
}

// bareLoop sends a round every millisecond on all paths in the maps of bpffs, in the place of the host's agent. It writes
// its thread's number to out when it begins.
func bareLoop(out io.Writer, file, bpffs string, length time.Duration) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	set, err := loader.Maps(bpffs, true)
	if err != nil {
		return err
	}
	defer func() { _ = set.Close() }()
	groups, err := bareGroups(cfg, set)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	plait0, err := net.InterfaceByName(hostnet.Plait0Name)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: plait0.Index}); err != nil {
		return fmt.Errorf("binding to %s: %w", hostnet.Plait0Name, err)
	}
	b := newBareRounds(groups, set.Settings.Epoch, cfg.Liveness.Interval, int(length/cfg.Liveness.Interval))
	runtime.GC()
	debug.SetGCPercent(-1)

	runtime.LockOSThread() // and never unlocked: the process ends with the loop
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: barePriority}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("asking for real-time priority: %w", err)
	}
	if _, err := fmt.Fprintln(out, unix.Gettid()); err != nil {
		return err
	}
	return b.run(fd, cfg.Liveness.Interval)
}

// bareGroups reads from the maps what an agent would probe.
func bareGroups(cfg *config.Config, set *maps.Set) ([]bareGroup, error) {
	rings, err := cfg.LoadKeys()
	if err != nil {
		return nil, err
	}
	var groups []bareGroup
	for i, peer := range cfg.Peers {
		ids, err := set.Identities()
		if err != nil {
			return nil, err
		}
		for _, id := range peer.Identity.All() {
			index, ok := ids[id]
			if !ok {
				return nil, fmt.Errorf("peer %s has no paths in its family", id)
			}
			g, state := set.Groups.At(index), set.GroupStates.At(index)
			b := bareGroup{state: state, first: atomic.LoadUint64(&state.Sent) + 1}
			for n := range g.PathCount {
				p, key := set.Path(g.FirstPath+n), rings[i][0]
				k := key.Derive(cfg.Host, peer.Name, p.Local, p.Remote)
				b.paths = append(b.paths, probe.Path{
					Index: g.FirstPath + n, Number: p.Number, Uplink: p.Uplink, Local: p.Local, Remote: p.Remote,
					KeyID: key.ID, Key: probe.Key{K0: binary.LittleEndian.Uint64(k[:8]), K1: binary.LittleEndian.Uint64(k[8:])},
				})
			}
			groups = append(groups, b)
		}
	}
	return groups, nil
}

// bareRounds is everything to send, ready.
type bareRounds struct {
	groups []bareGroup
	n      int // rounds
	frames []byte
	sizes  []uint64 // of the frames of one round
	iovs   []unix.Iovec
	msgs   []bareMessage
}

// bareMessage is struct mmsghdr of sendmmsg(2).
type bareMessage struct {
	hdr unix.Msghdr
	_   [8]byte
}

func newBareRounds(groups []bareGroup, epoch uint64, interval time.Duration, n int) *bareRounds {
	b := &bareRounds{groups: groups, n: n}
	for k := range n {
		for _, g := range groups {
			r := probe.Round{Number: g.first + uint64(k), Window: bareWindow, Fresh: true}
			r.Sample = r.Number%sampleRounds == 0
			for _, p := range g.paths {
				before := len(b.frames)
				b.frames = probe.AppendRequest(b.frames, p, epoch, interval, r)
				if k == 0 {
					b.sizes = append(b.sizes, uint64(len(b.frames)-before))
				}
			}
		}
	}
	b.iovs, b.msgs = make([]unix.Iovec, len(b.sizes)), make([]bareMessage, len(b.sizes))
	for i, size := range b.sizes {
		b.iovs[i].Len = size
		b.msgs[i].hdr.Iov, b.msgs[i].hdr.Iovlen = &b.iovs[i], 1
	}
	return b
}

// run sends the rounds. System calls are raw ones: the Go scheduler does not hear of them.
func (b *bareRounds) run(fd int, interval time.Duration) error {
	next, at := traffic.Now(), 0
	for k := range b.n {
		next += interval
		if now := traffic.Now(); next <= now { // as the agent: rounds that were missed are not made up for
			next = now + interval
		}
		ts := unix.NsecToTimespec(int64(next))
		for {
			_, _, e := unix.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME,
				uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
			if e != unix.EINTR {
				break
			}
		}
		for i := range b.groups {
			g := &b.groups[i]
			atomic.StoreUint64(&g.state.Sent, g.first+uint64(k))
		}
		for i, size := range b.sizes {
			b.iovs[i].Base = &b.frames[at]
			at += int(size)
		}
		n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])),
			uintptr(len(b.msgs)), unix.MSG_DONTWAIT, 0, 0)
		if e != 0 || int(n) != len(b.msgs) {
			return fmt.Errorf("sending round %d: %d of %d frames: %w", k, n, len(b.msgs), e)
		}
	}
	return nil
}
