// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	soakRate     = 2000 // packets/s of the stream over each path: enough for fast rounds, and to see 1 ms
	soakBucket   = 10 * time.Second
	soakStop     = 10 * time.Second // that the agent is stopped for
	soakGap      = 20 * time.Millisecond
	bulkFlows    = 8
	bulkRecord   = 64 << 10
	settleAfter  = time.Second     // of saturation, before it is measured
	foundWithin  = 5 * time.Second // after a cut, to look for it
	saturateRate = "500mbit"
	saturateFIFO = 20 * time.Millisecond
)

// Bars of the soak.
const (
	mostFalseSaturated = 5 // in all
	mostFalseAtEnd     = 0 // in the second half
	mostFoundMS        = 50.0
)

// soakOptions are the command's flags.
type soakOptions struct {
	length   time.Duration
	load     bool
	saturate time.Duration
	family   int
	form     lab.Form
	plait    string
	json     bool
}

// soakReport is what the command prints.
type soakReport struct {
	Kernel string `json:"kernel"`
	Form   string `json:"form"`
	Family int    `json:"family"`

	Idle     *soakPhase     `json:"idle,omitempty"`
	Saturate *saturatePhase `json:"saturate,omitempty"`
	Bars     []bar          `json:"bars"`
}

// soakPhase is a time in which nothing was cut.
type soakPhase struct {
	Seconds        float64 `json:"seconds"`
	BusyProcesses  int     `json:"busy_processes"`
	StoppedSeconds float64 `json:"stopped_seconds"` // that the agent of host a was stopped for

	Failovers int64         `json:"failovers"` // false ones: paths of both hosts that lost fresh
	Buckets   []soakSeconds `json:"buckets"`
	Streams   []soakStream  `json:"streams"`
}

// soakSeconds is a part of a phase.
type soakSeconds struct {
	FromS       float64        `json:"from_s"`
	Failovers   int64          `json:"failovers"`
	Multipliers map[string]int `json:"multipliers"` // at its end, of all paths that answer, by "host local>remote"
	Mbit        float64        `json:"mbit,omitempty"`
}

// soakStream is a UDP stream between identities.
type soakStream struct {
	Uplink    string  `json:"uplink"` // of host a, at the start
	Sent      int64   `json:"sent"`
	Lost      int64   `json:"lost"`
	Corrupted int64   `json:"corrupted"`
	MaxGapMS  float64 `json:"max_gap_ms"`
	MaxSendMS float64 `json:"max_send_gap_ms"` // the machine's part of it
	Gaps      int     `json:"gaps"`            // of 20 ms and more
}

// saturatePhase is a time with both uplinks full, and a cut at its end.
type saturatePhase struct {
	Seconds   float64       `json:"seconds"`
	Failovers int64         `json:"failovers"`         // false ones
	AtEnd     int64         `json:"failovers_at_end"`  // those in its second half
	Mbit      float64       `json:"mbit"`              // of verified payload, all flows
	Verified  int64         `json:"verified_bytes"`    // of the TCP flows, in all
	Corrupted int64         `json:"corrupted"`         // records of the TCP flows
	FlowsLost int           `json:"tcp_flows_lost"`    // TCP connections that broke
	FoundMS   *float64      `json:"found_ms"`          // from the cut to the first packet sent that arrived by another path
	ArrivedMS *float64      `json:"first_arrived_ms"`  // from the cut to its arrival, queues included
	Buckets   []soakSeconds `json:"buckets,omitempty"` // of 10 s
}

// newSoakIdleCommand returns `plaitlab soak-idle`.
func newSoakIdleCommand() *cobra.Command {
	var (
		o      soakOptions
		output string
		wire   bool
	)
	cmd := &cobra.Command{
		Use:   "soak-idle",
		Short: "Cut nothing, and count how often a path is given up all the same",
		Long: `Brings up two hosts on two fabrics with an agent on each, and light traffic over each path so that it is watched
closely. Nothing is cut. With --load a busy process runs for each CPU, and in the middle the agent of host a is
stopped for 10 s. Every path that is given up is a false failover.

--saturate then fills both uplinks, shaped to 500 Mbit/s with a queue of 20 ms, with eight TCP flows, counts
again, and at the end cuts one fabric silently: how long until traffic leaves it?

It fails if there was a failover in the first part, more than 5 in the second or one in its last half, or if
the cut took more than 50 ms to be found.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch output {
			case "table":
			case "json":
				o.json = true
			default:
				return fmt.Errorf("output %q: want table or json", output)
			}
			if o.family != 4 && o.family != 6 {
				return fmt.Errorf("family %d: want 4 or 6", o.family)
			}
			if o.length < 0 || o.saturate < 0 || o.length == 0 && o.saturate == 0 {
				return errors.New("want a positive time with --for or --saturate")
			}
			if wire {
				o.form = lab.Wire
			}
			return soak(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.length, "for", 10*time.Minute, "how long; 0 leaves this part out")
	f.BoolVar(&o.load, "load", false, "keep every CPU busy, and stop an agent for 10 s in the middle")
	f.DurationVar(&o.saturate, "saturate", 0, "then fill both uplinks for so long (60s is what the bar is about)")
	f.Lookup("saturate").NoOptDefVal = "60s"
	f.IntVar(&o.family, "family", 4, "IP version of the traffic, 4 or 6")
	f.BoolVar(&wire, "wire", false, "lab whose packets are as on a wire (default: virtual, super-packets)")
	f.StringVar(&o.plait, "plait", "", "plait program (default: the one next to this program)")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// newSpinCommand returns the hidden command that keeps one CPU busy until its standard input ends.
func newSpinCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "spin",
		Short:  "Keep one CPU busy until standard input ends",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			go func() {
				for n := 0; ; n++ { // a busy thread is all that is wanted
					_ = n
				}
			}()
			_, err := io.Copy(io.Discard, cmd.InOrStdin())
			return err
		},
	}
}

// spinners are processes that keep CPUs busy.
type spinners struct {
	cmds  []*exec.Cmd
	pipes []io.Closer
}

// startSpinners starts n of them, of ordinary priority. They end with this process, however that ends.
func startSpinners(n int) (*spinners, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting a busy process: %w", err)
	}
	s := &spinners{}
	for range n {
		cmd := exec.Command(self, "spin")
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			s.stop()
			return nil, fmt.Errorf("starting a busy process: %w", err)
		}
		s.cmds, s.pipes = append(s.cmds, cmd), append(s.pipes, in)
	}
	return s, nil
}

func (s *spinners) stop() {
	for _, p := range s.pipes {
		_ = p.Close()
	}
	for _, c := range s.cmds {
		_ = c.Wait()
	}
	s.pipes, s.cmds = nil, nil
}

// soak runs the command.
func soak(ctx context.Context, out, diag io.Writer, o soakOptions) (err error) {
	if o.plait, err = plaitProgram(o.plait); err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Options{Form: o.form})
	if err != nil {
		return fmt.Errorf("bringing the lab up: %w", err)
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	configs, err := pairConfigs(l)
	if err != nil {
		return err
	}
	p, err := startPair(ctx, l, o.plait, configs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()

	s := &soakBench{o: o, pair: p, diag: diag}
	report := soakReport{Kernel: kernelRelease(), Form: o.form.String(), Family: o.family}
	if o.length > 0 {
		if report.Idle, err = s.idle(ctx); err != nil {
			return err
		}
		report.Bars = append(report.Bars, newBar("failovers, nothing cut", 0, float64(report.Idle.Failovers)))
	}
	if o.saturate > 0 {
		if report.Saturate, err = s.saturated(ctx); err != nil {
			return err
		}
		found := foundWithin.Seconds() * 1000
		if report.Saturate.FoundMS != nil {
			found = *report.Saturate.FoundMS
		}
		report.Bars = append(report.Bars,
			newBar("failovers, uplinks full", mostFalseSaturated, float64(report.Saturate.Failovers)),
			newBar("of those in the last half", mostFalseAtEnd, float64(report.Saturate.AtEnd)),
			newBar("real cut found after, ms", mostFoundMS, found))
	}
	if o.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		if err := e.Encode(report); err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
	} else if err := report.table(out); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return report.verdict()
}

// verdict is an error if a bar was missed, a byte was wrong or a TCP connection broke.
func (r soakReport) verdict() error {
	var errs []error
	for _, b := range r.Bars {
		if !b.Met {
			errs = append(errs, fmt.Errorf("%s: %g, want at most %g", b.Name, b.Value, b.Most))
		}
	}
	if r.Idle != nil {
		for _, s := range r.Idle.Streams {
			if s.Corrupted > 0 {
				errs = append(errs, fmt.Errorf("%d packets over %s arrived with a wrong byte", s.Corrupted, s.Uplink))
			}
		}
	}
	if s := r.Saturate; s != nil {
		if s.Corrupted > 0 {
			errs = append(errs, fmt.Errorf("%d records arrived with a wrong byte", s.Corrupted))
		}
		if s.FlowsLost > 0 {
			errs = append(errs, fmt.Errorf("%d TCP connections were lost", s.FlowsLost))
		}
	}
	return errors.Join(errs...)
}

// soakBench is what both parts share.
type soakBench struct {
	o    soakOptions
	pair *pair
	diag io.Writer
}

// counter takes samples of how often paths were given up.
type counter struct {
	pair   *pair
	before map[string]pathStatus
	start  time.Duration
}

func (s *soakBench) newCounter(ctx context.Context) (*counter, error) {
	paths, err := s.pair.paths(ctx)
	if err != nil {
		return nil, err
	}
	return &counter{pair: s.pair, before: paths, start: traffic.Now()}, nil
}

// take returns what happened since the last call, in a bucket that begins at from.
func (c *counter) take(ctx context.Context, from time.Duration) (soakSeconds, error) {
	paths, err := c.pair.paths(ctx)
	if err != nil {
		return soakSeconds{}, err
	}
	b := soakSeconds{FromS: (from - c.start).Seconds(), Multipliers: make(map[string]int)}
	for name, now := range paths {
		b.Failovers += now.losses() - c.before[name].losses()
		if now.Fresh {
			b.Multipliers[name] = now.Multiplier
		}
	}
	c.before = paths
	return b, nil
}

// streams opens a UDP stream between the identities over each uplink of host a.
func (s *soakBench) streams(ctx context.Context, length time.Duration) (map[string]*traffic.UDP, error) {
	want := make(map[string]int)
	for _, u := range s.pair.a.Uplinks {
		want[u.Name] = 1
	}
	found, err := onUplinks(ctx, s.pair.a, want, burst*burstSize,
		func() (*traffic.UDP, error) {
			return traffic.NewUDP(traffic.UDPConfig{
				From: s.pair.a.Do, To: s.pair.b.Do, Src: s.identity(s.pair.a), Dst: s.identity(s.pair.b),
				Rate: soakRate, For: length,
			})
		},
		func(u *traffic.UDP) error { return u.Burst(burst, burstSize) })
	if err != nil {
		return nil, err
	}
	streams := make(map[string]*traffic.UDP)
	for name, list := range found {
		streams[name] = list[0]
	}
	return streams, nil
}

func (s *soakBench) identity(h *lab.Host) netip.AddrPort {
	if s.o.family == 6 {
		return netip.AddrPortFrom(h.Identity6, 0)
	}
	return netip.AddrPortFrom(h.Identity4, 0)
}

// inOrder lists streams in the order of the uplinks of h.
func inOrder(m map[string]*traffic.UDP, h *lab.Host) []*traffic.UDP {
	var list []*traffic.UDP
	for _, u := range h.Uplinks {
		if s := m[u.Name]; s != nil {
			list = append(list, s)
		}
	}
	return list
}

// idle is the first part.
func (s *soakBench) idle(ctx context.Context) (_ *soakPhase, err error) {
	phase := &soakPhase{}
	streams, err := s.streams(ctx, s.o.length+time.Minute)
	if err != nil {
		return nil, err
	}
	for _, u := range streams {
		defer u.Close()
	}
	g, err := traffic.StartUDP(inOrder(streams, s.pair.a)...)
	if err != nil {
		return nil, err
	}
	stopped := false
	defer func() {
		if !stopped {
			g.Stop()
		}
	}()
	if s.o.load {
		phase.BusyProcesses = runtime.NumCPU()
		busy, err := startSpinners(phase.BusyProcesses)
		if err != nil {
			return nil, err
		}
		defer busy.stop()
	}
	// The first packets of a peer make its rounds fast; that is past when counting starts.
	if err := sleep(ctx, settleAfter); err != nil {
		return nil, err
	}
	count, err := s.newCounter(ctx)
	if err != nil {
		return nil, err
	}

	// A short soak has a short stop.
	stopFor := min(soakStop, s.o.length/3)
	stopAt := count.start + (s.o.length-stopFor)/2
	stop := func() error {
		if err := s.pair.agents[0].signal(syscall.SIGSTOP); err != nil {
			return err
		}
		began := traffic.Now()
		slept := sleep(ctx, stopFor)
		phase.StoppedSeconds = (traffic.Now() - began).Seconds()
		return errors.Join(slept, s.pair.agents[0].signal(syscall.SIGCONT))
	}
	end := count.start + s.o.length
	done := !s.o.load
	for from := count.start; from < end; {
		to := min(from+soakBucket, end)
		if !done && stopAt < to {
			if err := sleep(ctx, stopAt-traffic.Now()); err != nil {
				return nil, err
			}
			if err := stop(); err != nil {
				return nil, err
			}
			done = true
			_, _ = fmt.Fprintf(s.diag, "agent of host a was stopped for %.0f s\n", phase.StoppedSeconds)
		}
		if err := sleep(ctx, to-traffic.Now()); err != nil {
			return nil, err
		}
		for _, a := range s.pair.agents {
			if err := a.alive(); err != nil {
				return nil, err
			}
		}
		b, err := count.take(ctx, from)
		if err != nil {
			return nil, err
		}
		phase.Buckets = append(phase.Buckets, b)
		phase.Failovers += b.Failovers
		if b.Failovers > 0 {
			_, _ = fmt.Fprintf(s.diag, "%.0f s: %d failovers, multipliers %v\n", b.FromS, b.Failovers, b.Multipliers)
		}
		from = to
	}
	phase.Seconds = (traffic.Now() - count.start).Seconds()
	g.Stop()
	stopped = true
	for _, u := range s.pair.a.Uplinks {
		r := streams[u.Name].Result()
		phase.Streams = append(phase.Streams, soakStream{
			Uplink: u.Name, Sent: r.Sent, Lost: r.Lost, Corrupted: r.Corrupted,
			MaxGapMS:  *ms(streams[u.Name].Gap(r.Start, r.End).Length()),
			MaxSendMS: *ms(streams[u.Name].SendGap(r.Start, r.End).Length()),
			Gaps:      len(streams[u.Name].Gaps(soakGap)),
		})
	}
	return phase, nil
}

// saturated is the second part.
func (s *soakBench) saturated(ctx context.Context) (_ *saturatePhase, err error) {
	l := s.pair.lab
	phase := &saturatePhase{}
	if err := s.pair.waitUp(ctx); err != nil {
		return nil, err
	}
	length := s.o.saturate + 30*time.Second
	streams, err := s.streams(ctx, length)
	if err != nil {
		return nil, err
	}
	for _, u := range streams {
		defer u.Close()
	}
	want := make(map[string]int)
	for i, u := range s.pair.a.Uplinks {
		want[u.Name] = bulkFlows / len(s.pair.a.Uplinks)
		if i < bulkFlows%len(s.pair.a.Uplinks) {
			want[u.Name]++
		}
	}
	found, err := onUplinks(ctx, s.pair.a, want, 2*bulkRecord,
		func() (*traffic.TCP, error) {
			return traffic.NewTCP(traffic.TCPConfig{
				From: s.pair.a.Do, To: s.pair.b.Do, Src: s.identity(s.pair.a), Dst: s.identity(s.pair.b),
				Size: bulkRecord, For: length, Background: true,
			})
		},
		func(t *traffic.TCP) error { return t.Burst(2) })
	if err != nil {
		return nil, err
	}
	var flows []*traffic.TCP
	for _, list := range found {
		flows = append(flows, list...)
	}
	defer func() {
		for _, t := range flows {
			t.Close()
		}
	}()
	verified := func() (n int64) {
		for _, t := range flows {
			n += t.Result().Bytes
		}
		return n
	}

	for _, f := range l.Fabrics {
		defer func() { err = errors.Join(err, l.Heal(f.Name), l.Impair(f.Name, lab.Impairment{})) }()
		if err := l.Impair(f.Name, lab.Impairment{Rate: saturateRate, Queue: saturateFIFO}); err != nil {
			return nil, err
		}
	}
	g, err := traffic.StartUDP(inOrder(streams, s.pair.a)...)
	if err != nil {
		return nil, err
	}
	stopped := false
	stop := func() {
		if !stopped {
			g.Stop()
			stopped = true
		}
	}
	defer stop()
	// The first seconds count: that is when the rule has not learnt yet.
	count, err := s.newCounter(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range flows {
		if err := t.Start(); err != nil {
			return nil, err
		}
	}
	began, bytes := traffic.Now(), verified()
	end := count.start + s.o.saturate
	for from, last := count.start, bytes; from < end; {
		to := min(from+soakBucket, end)
		if err := sleep(ctx, to-traffic.Now()); err != nil {
			return nil, err
		}
		b, err := count.take(ctx, from)
		if err != nil {
			return nil, err
		}
		now := verified()
		b.Mbit = float64(now-last) * 8 / 1e6 / (to - from).Seconds()
		last = now
		phase.Buckets = append(phase.Buckets, b)
		phase.Failovers += b.Failovers
		if from-count.start >= s.o.saturate/2 {
			phase.AtEnd += b.Failovers
		}
		_, _ = fmt.Fprintf(s.diag, "full for %.0f s: %d failovers, %.0f Mbit/s, multipliers %v\n", (to - count.start).Seconds(), b.Failovers, b.Mbit, b.Multipliers)
		from = to
	}
	phase.Seconds = (traffic.Now() - began).Seconds()
	phase.Mbit = float64(verified()-bytes) * 8 / 1e6 / phase.Seconds

	// Now a real cut.
	u := s.pair.a.Uplinks[0]
	cutAt, err := l.Cut(u.Fabric, lab.Silent, "", "")
	if err != nil {
		return nil, err
	}
	for traffic.Now() < cutAt+foundWithin {
		if sent, arrived, ok := streams[u.Name].FirstThrough(cutAt); ok {
			phase.FoundMS, phase.ArrivedMS = ms(sent-cutAt), ms(arrived-cutAt)
			break
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
	for _, t := range flows {
		t.Stop(drainFor)
		r := t.Result()
		phase.Verified += r.Bytes
		phase.Corrupted += r.Corrupted
		if !r.Survived {
			phase.FlowsLost++
			_, _ = fmt.Fprintf(s.diag, "TCP flow lost: %+v\n", r)
		}
	}
	stop()
	return phase, nil
}

// table writes the report for a person.
func (r soakReport) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("IPv%d, %s lab, kernel %s\n", r.Family, r.Form, r.Kernel)
	if i := r.Idle; i != nil {
		p("\nnothing cut for %.0f s, %d busy processes, agent stopped for %.0f s\n", i.Seconds, i.BusyProcesses, i.StoppedSeconds)
		p("failovers\t%d\n", i.Failovers)
		for _, s := range i.Streams {
			p("stream over %s\t%d sent, %d lost, %d wrong, largest gap %.1f ms (sender's own %.1f ms), %d of 20 ms or more\n",
				s.Uplink, s.Sent, s.Lost, s.Corrupted, s.MaxGapMS, s.MaxSendMS, s.Gaps)
		}
	}
	if s := r.Saturate; s != nil {
		p("\nboth uplinks full for %.0f s\n", s.Seconds)
		p("failovers\t%d, %d of them in the second half\n", s.Failovers, s.AtEnd)
		for _, b := range s.Buckets {
			p("from %.0f s\t%d failovers, %.0f Mbit/s, multipliers %v\n", b.FromS, b.Failovers, b.Mbit, b.Multipliers)
		}
		p("throughput\t%.0f Mbit/s, %d bytes verified, %d wrong records, %d connections lost\n", s.Mbit, s.Verified, s.Corrupted, s.FlowsLost)
		if s.FoundMS != nil {
			p("real cut\tfound after %.1f ms, first packet arrived after %.1f ms\n", *s.FoundMS, *s.ArrivedMS)
		} else {
			p("real cut\tnot found within %v\n", foundWithin)
		}
	}
	p("\n")
	for _, b := range r.Bars {
		p("%s\n", b)
	}
	return w.Flush()
}
