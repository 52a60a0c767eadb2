// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// What a run is made of.
const (
	udpRate   = 5000 // packets/s
	udpSize   = 256  // bytes of payload
	tcpRecord = 1000 // bytes
	tcpEvery  = time.Millisecond

	warmUp       = 300 * time.Millisecond // of traffic before a cut
	shareTime    = 100 * time.Millisecond // at the end of which it is seen which way the traffic goes
	windowBefore = 5 * time.Millisecond
	windowAfter  = 100 * time.Millisecond
	observeFor   = 1500 * time.Millisecond // of traffic after a cut
	settled      = 200 * time.Millisecond  // of arrivals after which a stream has recovered
	recoverLimit = 10 * time.Second        // given up after that
	idleFor      = 12 * time.Second        // agents probe slowly after 10 s without traffic
	drainFor     = 10 * time.Second        // for the last bytes of a TCP stream
	noisyAbove   = 5.0                     // ms of control gap that make a run worthless
	noisyShare   = 0.3                     // of all runs that may be repeated for it

	// Two of three streams cross the fabric that is cut, with 63 % of all bytes. With one fewer it is 37 % or less.
	strayedBelow = 0.5
	strayedMost  = 3 // repetitions of a run for it
)

// means is a way to survive a cut.
type means string

const (
	meansPlait  means = "plait"
	meansMPTCP  means = "mptcp"  // the kernel's Multipath TCP, two subflows
	meansKernel means = "kernel" // plain routing by source address
)

// failoverOptions are the command's flags.
type failoverOptions struct {
	runs      int
	cut       lab.CutMode
	family    int
	idleFirst bool
	vs        []means
	form      lab.Form
	plait     string
	without   bool
	json      bool
}

// failoverRun is one cut and what it did to the streams. Times are in milliseconds; a field that the means has no stream for
// is null.
type failoverRun struct {
	Run    int    `json:"run"`
	Means  means  `json:"means"`
	Fabric string `json:"fabric"` // that was cut

	// The largest gap between arrivals of which any part lies in the window.
	GapMS        *float64 `json:"gap_ms"`
	ControlGapMS float64  `json:"control_gap_ms"`
	TCPStallMS   float64  `json:"tcp_stall_ms"`

	// The largest gap that begins after the window.
	LaterGapMS        *float64 `json:"later_gap_ms"`
	LaterControlGapMS float64  `json:"later_control_gap_ms"`
	LaterTCPStallMS   float64  `json:"later_tcp_stall_ms"`

	// Of the whole run.
	Sent        *int64 `json:"sent"`
	Lost        *int64 `json:"lost"`
	Duplicates  *int64 `json:"duplicates"`
	Reordered   *int64 `json:"reordered"`
	Corrupted   int64  `json:"corrupted"` // packets and records, control included
	ControlLost int64  `json:"control_lost"`

	TCPSurvived        bool   `json:"tcp_survived"`
	TCPBytes           int64  `json:"tcp_bytes"` // verified
	TCPRetransmissions int64  `json:"tcp_retransmissions"`
	TCPError           string `json:"tcp_error,omitempty"`

	// Recovered says that everything flowed again within 10 s.
	Recovered bool `json:"recovered"`

	// From the first packet due to the first answer; null if the run did not begin idle, or no answer came.
	FirstAnswerMS        *float64 `json:"first_answer_ms,omitempty"`
	ControlFirstAnswerMS *float64 `json:"control_first_answer_ms,omitempty"`
	CutBeforeStartMS     *float64 `json:"cut_before_start_ms,omitempty"`

	// The largest gap between packets that left the sender, in the window: the machine's part.
	SendGapMS float64 `json:"send_gap_ms"`
	// CutShare is the part of the sender's bytes, of all streams, that went over the fabric in the 100 ms before it was cut;
	// 0 if the run began idle.
	CutShare float64 `json:"cut_share"`
	// Strayed says that by this share not every stream was where it had been found to be when it was opened.
	Strayed bool `json:"strayed"`
	// Multiplier is how many rounds the path over the fabric might miss at either end before the cut: congestion, or a machine
	// that stalls, raises it. 0 without plait.
	Multiplier int `json:"multiplier"`
	// Noisy says that the control gap exceeds 5 ms.
	Noisy bool `json:"noisy"`
}

// distribution describes a list of numbers.
type distribution struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P95    float64 `json:"p95"` // nearest rank
	Max    float64 `json:"max"`
}

// failoverSummary describes all runs of one means. A field that the means has no stream for is null.
type failoverSummary struct {
	Runs               int           `json:"runs"`
	GapMS              *distribution `json:"gap_ms"`
	ControlGapMS       *distribution `json:"control_gap_ms"`
	GapMinusControlMS  *distribution `json:"gap_minus_control_ms"`
	LaterGapMS         *distribution `json:"later_gap_ms"`
	LaterControlGapMS  *distribution `json:"later_control_gap_ms"`
	Lost               *distribution `json:"lost"`
	TCPStallMS         *distribution `json:"tcp_stall_ms"`
	LaterTCPStallMS    *distribution `json:"later_tcp_stall_ms"`
	FirstAnswerMS      *distribution `json:"first_answer_ms,omitempty"`
	TCPConnectionsLost int           `json:"tcp_connections_lost"` // repeated runs included
	Corrupted          int64         `json:"corrupted"`            // repeated runs included
	NotRecovered       int           `json:"not_recovered"`        // repeated runs included
	RepeatedRuns       int           `json:"repeated_runs"`
	NoisyRuns          int           `json:"noisy_runs"`   // counted although noisy: no repetition was left
	StrayedRuns        int           `json:"strayed_runs"` // repeated because a stream was not on its path any more at the cut
}

// bar is what a figure is to reach.
type bar struct {
	Name  string  `json:"name"`
	Most  float64 `json:"most"`
	Value float64 `json:"value"`
	Met   bool    `json:"met"`
}

func newBar(name string, most, value float64) bar {
	return bar{Name: name, Most: most, Value: value, Met: value <= most}
}

// String is a line of a table, with its columns ended by tabs.
func (b bar) String() string {
	verdict := "MISSED"
	if b.Met {
		verdict = "met"
	}
	return fmt.Sprintf("%s\t%.1f\tat most %.0f\t%s\t", b.Name, b.Value, b.Most, verdict)
}

// failoverReport is what the command prints.
type failoverReport struct {
	Kernel    string  `json:"kernel"`
	Form      string  `json:"form"`
	Cut       string  `json:"cut"`
	Family    int     `json:"family"`
	IdleFirst bool    `json:"idle_first"`
	WindowMS  [2]int  `json:"window_ms"` // around the cut
	Means     []means `json:"means"`

	// Of plait, or with --without-plait of the first of --vs.
	Runs     []failoverRun   `json:"runs"`
	Repeated []failoverRun   `json:"repeated"`
	Summary  failoverSummary `json:"summary"`
	Bars     []bar           `json:"bars"` // what plait is to reach; empty for other means

	// Of the other means.
	Vs map[means]*meansReport `json:"vs,omitempty"`
}

// meansReport is the part of a report about one means.
type meansReport struct {
	Runs     []failoverRun   `json:"runs"`
	Repeated []failoverRun   `json:"repeated"`
	Summary  failoverSummary `json:"summary"`
}

// noisy counts the runs repeated for noise.
func (r *meansReport) noisy() int {
	n := 0
	for _, run := range r.Repeated {
		if !run.Strayed {
			n++
		}
	}
	return n
}

// newFailoverCommand returns `plaitlab failover`.
func newFailoverCommand() *cobra.Command {
	var (
		cut, output string
		vs          []string
		wire        bool
		o           failoverOptions
	)
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Cut a fabric again and again and say what streams across it noticed",
		Long: `Brings up two hosts on two fabrics with an agent on each. In each run a UDP stream of 5000 packets/s and a TCP
stream of 1 kB each millisecond cross one fabric, and an identical UDP control stream the other. The first
fabric is cut. Counted is the largest gap between arrivals of which any part lies within 5 ms before and 100 ms
after the cut; a later one is reported by itself. A run in which the control stream's gap exceeds 5 ms says
more about this machine than about the network: it is repeated and counted, up to 30 % of all runs.

--vs runs the same with other means, in turn: mptcp is the kernel's Multipath TCP with two subflows between
locators (TCP only), kernel is plain routing between locators, which is given up after 10 s.

It fails if plait lost a TCP connection or any stream a byte. Its times are figures, not verdicts.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.cut, err = lab.ParseCutMode(cut); err != nil {
				return err
			}
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
			if o.runs < 1 {
				return fmt.Errorf("%d runs: want at least 1", o.runs)
			}
			for _, v := range vs {
				m := means(v)
				if m != meansMPTCP && m != meansKernel {
					return fmt.Errorf("--vs %s: want mptcp or kernel", v)
				}
				if !slices.Contains(o.vs, m) {
					o.vs = append(o.vs, m)
				}
			}
			if o.without && len(o.vs) == 0 {
				return errors.New("--without-plait leaves nothing to run: name other means with --vs")
			}
			if o.idleFirst && slices.Contains(o.vs, meansMPTCP) {
				return errors.New("--idle-first measures the answer to a UDP packet: --vs mptcp has none")
			}
			if wire {
				o.form = lab.Wire
			}
			return failover(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.runs, "runs", 10, "runs that count, of each means")
	f.StringVar(&cut, "cut", "silent", "how the fabric fails: silent, carrier or oneway (from sender to receiver)")
	f.IntVar(&o.family, "family", 4, "IP version, 4 or 6")
	f.BoolVar(&o.idleFirst, "idle-first", false, "cut after more than 10 s in which nothing was sent, then begin to send")
	f.StringSliceVar(&vs, "vs", nil, "run the same with other means too: mptcp, kernel")
	f.BoolVar(&o.without, "without-plait", false, "run only what --vs names")
	f.BoolVar(&wire, "wire", false, "lab whose packets are as on a wire (default: virtual, super-packets)")
	f.StringVar(&o.plait, "plait", "", "plait program (default: the one next to this program)")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// failover runs the command.
func failover(ctx context.Context, out, diag io.Writer, o failoverOptions) (err error) {
	list := o.vs
	if !o.without {
		list = append([]means{meansPlait}, list...)
		if o.plait, err = plaitProgram(o.plait); err != nil {
			return err
		}
	}
	l, err := lab.Up(ctx, lab.Options{Form: o.form})
	if err != nil {
		return fmt.Errorf("bringing the lab up: %w", err)
	}
	defer func() { err = errors.Join(err, l.Down()) }()

	f := &failoverBench{o: o, lab: l, a: l.Host("a"), b: l.Host("b"), diag: diag}
	if !o.without {
		configs, err := pairConfigs(l)
		if err != nil {
			return err
		}
		if f.pair, err = startPair(ctx, l, o.plait, configs); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.pair.stop()) }()
	}
	if slices.Contains(list, meansMPTCP) {
		if err := f.setUpMPTCP(ctx); err != nil {
			return err
		}
	}

	reports := make(map[means]*meansReport)
	for _, m := range list {
		reports[m] = &meansReport{Repeated: []failoverRun{}}
	}
	for n := 1; n <= o.runs; n++ {
		for _, m := range list {
			if err := f.counted(ctx, n, m, reports[m]); err != nil {
				return err
			}
		}
	}

	report := failoverReport{
		Kernel: kernelRelease(), Form: o.form.String(), Cut: o.cut.String(), Family: o.family, IdleFirst: o.idleFirst,
		WindowMS: [2]int{-int(windowBefore.Milliseconds()), int(windowAfter.Milliseconds())},
		Means:    list,
	}
	for i, m := range list {
		r := reports[m]
		r.Summary = summarize(r.Runs, r.Repeated)
		if i == 0 {
			report.Runs, report.Repeated, report.Summary = r.Runs, r.Repeated, r.Summary
			report.Bars = []bar{}
			if m == meansPlait {
				report.Bars = r.Summary.bars()
			}
			continue
		}
		if report.Vs == nil {
			report.Vs = make(map[means]*meansReport)
		}
		report.Vs[m] = r
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

// verdict is an error if plait lost a connection, or anything a byte.
func (r failoverReport) verdict() error {
	corrupted := r.Summary.Corrupted
	for _, v := range r.Vs {
		corrupted += v.Summary.Corrupted
	}
	var errs []error
	if r.Means[0] == meansPlait && r.Summary.TCPConnectionsLost > 0 {
		errs = append(errs, fmt.Errorf("%d TCP connections were lost", r.Summary.TCPConnectionsLost))
	}
	if corrupted > 0 {
		errs = append(errs, fmt.Errorf("%d packets or records arrived with a wrong byte", corrupted))
	}
	return errors.Join(errs...)
}

// failoverBench is what all runs share.
type failoverBench struct {
	o    failoverOptions
	lab  *lab.Lab
	pair *pair // nil without plait
	a, b *lab.Host
	diag io.Writer
}

// counted makes run n of a means, repeated if it is noisy and repetitions are left, and adds it to r.
func (f *failoverBench) counted(ctx context.Context, n int, m means, r *meansReport) error {
	for strayed := 0; ; {
		// The fabrics take turns, and repetitions do not change whose turn it is.
		fabric := f.lab.Fabrics[(n-1)%len(f.lab.Fabrics)].Name
		run, err := f.run(ctx, n, m, fabric)
		if err != nil {
			return fmt.Errorf("run %d, %s: %w", n, m, err)
		}
		_, _ = fmt.Fprintln(f.diag, run.line())
		if run.Strayed {
			r.Repeated = append(r.Repeated, run)
			if strayed++; strayed > strayedMost {
				return fmt.Errorf("run %d, %s: %d times a stream left its path before the cut: paths are not stable", n, m, strayed)
			}
			continue
		}
		if run.Noisy && float64(r.noisy()+1) <= noisyShare*float64(f.o.runs) {
			r.Repeated = append(r.Repeated, run)
			continue
		}
		r.Runs = append(r.Runs, run)
		return nil
	}
}

// line is one line about a run, as it ends.
func (r failoverRun) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "run %d, %s, cut of %s: ", r.Run, r.Means, r.Fabric)
	if r.FirstAnswerMS != nil {
		fmt.Fprintf(&b, "first answer after %.1f ms, ", *r.FirstAnswerMS)
	}
	if r.GapMS != nil {
		fmt.Fprintf(&b, "gap %.1f ms, lost %d, ", *r.GapMS, *r.Lost)
	}
	fmt.Fprintf(&b, "control gap %.1f ms, TCP stall %.1f ms", r.ControlGapMS, r.TCPStallMS)
	if !r.Recovered {
		b.WriteString(", not recovered")
	}
	if !r.TCPSurvived && r.Recovered {
		b.WriteString(", TCP connection lost " + r.TCPError)
	}
	if r.Multiplier != 0 {
		fmt.Fprintf(&b, ", multiplier %d", r.Multiplier)
	}
	if r.Noisy {
		b.WriteString(" (noisy)")
	}
	if r.Strayed {
		b.WriteString(" (strayed)")
	}
	return b.String()
}

// streams are those of one run. udp is nil for a means that has none.
type streams struct {
	udp      *traffic.UDP
	controls map[string]*traffic.UDP // by the fabric they cross
	tcp      *traffic.TCP
}

func (s *streams) close() {
	if s.udp != nil {
		s.udp.Close()
	}
	for _, c := range s.controls {
		c.Close()
	}
	if s.tcp != nil {
		s.tcp.Close()
	}
}

// longest is how long a stream may last.
const longest = warmUp + shareTime + recoverLimit + observeFor + 5*time.Second

// run makes one run.
func (f *failoverBench) run(ctx context.Context, n int, m means, fabric string) (r failoverRun, err error) {
	if f.pair != nil {
		if err := f.pair.waitUp(ctx); err != nil {
			return r, err
		}
	}
	s, err := f.open(ctx, m, fabric)
	if err != nil {
		return r, err
	}
	defer s.close()
	var all []*traffic.UDP
	if s.udp != nil {
		all = append(all, s.udp)
	}
	for _, fab := range f.lab.Fabrics {
		if c := s.controls[fab.Name]; c != nil {
			all = append(all, c)
		}
	}
	r = failoverRun{Run: n, Means: m}

	if m == meansPlait {
		if r.Multiplier, err = f.multiplier(ctx, fabric); err != nil {
			return r, err
		}
	}
	defer traffic.Quiet()()
	var g *traffic.Group
	start := func() error {
		if g, err = traffic.StartUDP(all...); err != nil {
			return err
		}
		return s.tcp.Start()
	}
	stopped := false
	stop := func() {
		if g != nil && !stopped {
			g.Stop()
			stopped = true
		}
	}
	defer stop()
	defer func() { err = errors.Join(err, f.lab.Heal(fabric)) }()

	// from is what the window lies around: the cut, or after an idle time the start.
	var from time.Duration
	if f.o.idleFirst {
		// Idle hosts probe once a second: the time left to find out by that differs from run to run.
		ahead := time.Duration((n*137)%1000+1) * time.Millisecond
		if err := sleep(ctx, idleFor-ahead); err != nil {
			return r, err
		}
		cutAt, err := f.cut(fabric)
		if err != nil {
			return r, err
		}
		if err := sleep(ctx, cutAt+ahead-traffic.Now()); err != nil {
			return r, err
		}
		if err := start(); err != nil {
			return r, err
		}
		from = g.Start()
		r.CutBeforeStartMS = ms(from - cutAt)
	} else {
		if err := start(); err != nil {
			return r, err
		}
		if err := sleep(ctx, warmUp); err != nil {
			return r, err
		}
		if m == meansMPTCP {
			// The scheduler of MPTCP, not we, chooses the path.
			if fabric, _, err = f.busier(ctx); err != nil {
				return r, err
			}
		}
		_, shares, err := f.busier(ctx)
		if err != nil {
			return r, err
		}
		r.CutShare = shares[fabric]
		r.Strayed = m == meansPlait && r.CutShare < strayedBelow
		if from, err = f.cut(fabric); err != nil {
			return r, err
		}
	}
	r.Fabric = fabric
	if r.Recovered, err = f.observe(ctx, from, s); err != nil {
		return r, err
	}
	control := f.control(s, fabric)

	// All that is read from times, before healing adds arrivals of what was on its way.
	lo, hi := from-windowBefore, from+windowAfter
	if f.o.idleFirst {
		lo = from
	}
	r.ControlGapMS = *ms(control.Gap(lo, hi).Length())
	r.LaterControlGapMS = *ms(control.GapAfter(hi).Length())
	r.SendGapMS = *ms(control.SendGap(lo, hi).Length())
	r.Noisy = r.ControlGapMS > noisyAbove
	r.TCPStallMS = *ms(s.tcp.Gap(lo, hi).Length())
	r.LaterTCPStallMS = *ms(s.tcp.GapAfter(hi).Length())
	if s.udp != nil {
		r.GapMS = ms(s.udp.Gap(lo, hi).Length())
		r.LaterGapMS = ms(s.udp.GapAfter(hi).Length())
		if f.o.idleFirst {
			if at, ok := s.udp.FirstAnswer(); ok {
				r.FirstAnswerMS = ms(at - from)
			}
			if at, ok := control.FirstAnswer(); ok {
				r.ControlFirstAnswerMS = ms(at - from)
			}
		}
	}

	// What has not recovered is given up: healing first would let it.
	drain := drainFor
	if !r.Recovered {
		drain = 0
	}
	s.tcp.Stop(drain)
	stop()
	f.count(&r, s, control)
	return r, nil
}

// count takes over what was counted.
func (f *failoverBench) count(r *failoverRun, s *streams, control *traffic.UDP) {
	t := s.tcp.Result()
	r.TCPSurvived, r.TCPBytes, r.TCPRetransmissions = t.Survived, t.Bytes, t.Retransmissions
	if t.Err != nil {
		r.TCPError = t.Err.Error()
	}
	c := control.Result()
	r.ControlLost = c.Lost
	r.Corrupted = t.Corrupted + c.Corrupted
	if s.udp != nil {
		u := s.udp.Result()
		r.Sent, r.Lost, r.Duplicates, r.Reordered = &u.Sent, &u.Lost, &u.Duplicates, &u.Reordered
		r.Corrupted += u.Corrupted
	}
}

// cut cuts the fabric as the options say. Data flows from a to b.
func (f *failoverBench) cut(fabric string) (time.Duration, error) {
	from, to := "", ""
	if f.o.cut == lab.OneWay {
		from, to = "a", "b"
	}
	return f.lab.Cut(fabric, f.o.cut, from, to)
}

// control is the stream that crosses a fabric that was not cut.
func (f *failoverBench) control(s *streams, cut string) *traffic.UDP {
	for fabric, c := range s.controls {
		if fabric != cut {
			return c
		}
	}
	return nil
}

// observe watches the streams for observeFor after from, and longer if they have not recovered, at most recoverLimit. It
// reports whether all of them have.
func (f *failoverBench) observe(ctx context.Context, from time.Duration, s *streams) (bool, error) {
	if err := sleep(ctx, from+observeFor-traffic.Now()); err != nil {
		return false, err
	}
	for {
		now := traffic.Now()
		if s.flows(now) {
			return true, nil
		}
		if s.tcp.Result().Err != nil || now > from+recoverLimit {
			return false, nil
		}
		if err := sleep(ctx, settled/4); err != nil {
			return false, err
		}
	}
}

// flows says whether everything has arrived without a longer pause for a while now.
func (s *streams) flows(now time.Duration) bool {
	since := now - settled
	pauses := func(at time.Duration, ok bool) bool { return !ok || at > since+settled/2 }
	if pauses(s.tcp.FirstArrivalAfter(since)) {
		return false
	}
	if s.udp != nil && pauses(s.udp.FirstArrivalAfter(since)) {
		return false
	}
	return true
}

// multiplier is the greater of the two that the hosts have for their path over the fabric.
func (f *failoverBench) multiplier(ctx context.Context, fabric string) (int, error) {
	paths, err := f.pair.paths(ctx)
	if err != nil {
		return 0, err
	}
	a, b := f.locator(f.a, fabric).Addr(), f.locator(f.b, fabric).Addr()
	return max(paths[fmt.Sprintf("a %s>%s", a, b)].Multiplier, paths[fmt.Sprintf("b %s>%s", b, a)].Multiplier), nil
}

// busier returns the fabric that host a sends most to, and each fabric's share of the bytes, in the next shareTime.
func (f *failoverBench) busier(ctx context.Context) (string, map[string]float64, error) {
	names := uplinkNames(f.a)
	before, err := traffic.TxBytes(f.a.Do, names)
	if err != nil {
		return "", nil, err
	}
	if err := sleep(ctx, shareTime); err != nil {
		return "", nil, err
	}
	after, err := traffic.TxBytes(f.a.Do, names)
	if err != nil {
		return "", nil, err
	}
	shares := make(map[string]float64)
	var total float64
	for _, u := range f.a.Uplinks {
		shares[u.Fabric] = float64(after[u.Name] - before[u.Name])
		total += shares[u.Fabric]
	}
	most := f.a.Uplinks[0].Fabric
	for fabric := range shares {
		shares[fabric] /= max(total, 1)
		if shares[fabric] > shares[most] {
			most = fabric
		}
	}
	return most, shares, nil
}

// open opens the streams of one run of a means, so that they cross the fabric that is to be cut, and the control another.
func (f *failoverBench) open(ctx context.Context, m means, fabric string) (*streams, error) {
	s := &streams{controls: make(map[string]*traffic.UDP)}
	var err error
	switch m {
	case meansPlait:
		err = f.openPlait(ctx, s, fabric)
	case meansMPTCP:
		err = f.openMPTCP(ctx, s, fabric)
	case meansKernel:
		err = f.openKernel(s, fabric)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (f *failoverBench) openPlait(ctx context.Context, s *streams, fabric string) error {
	src, dst := f.identity(f.a), f.identity(f.b)
	cut := f.a.Uplink(fabric).Name
	other := f.a.Uplinks[0]
	if other.Name == cut {
		other = f.a.Uplinks[1]
	}
	udps, err := onUplinks(ctx, f.a, map[string]int{cut: 1, other.Name: 1}, burst*burstSize,
		func() (*traffic.UDP, error) { return f.newUDP(src, dst) },
		func(u *traffic.UDP) error { return u.Burst(burst, burstSize) })
	if err != nil {
		return err
	}
	s.udp, s.controls[other.Fabric] = udps[cut][0], udps[other.Name][0]
	tcps, err := onUplinks(ctx, f.a, map[string]int{cut: 1}, burst*tcpRecord,
		func() (*traffic.TCP, error) { return f.newTCP(src, dst, false) },
		func(t *traffic.TCP) error { return t.Burst(burst) })
	if err != nil {
		return err
	}
	s.tcp = tcps[cut][0]
	return nil
}

func (f *failoverBench) openKernel(s *streams, fabric string) (err error) {
	if s.udp, err = f.newUDP(f.locators(fabric)); err != nil {
		return err
	}
	if s.tcp, err = f.newTCP(f.locator(f.a, fabric), f.locator(f.b, fabric), false); err != nil {
		return err
	}
	for _, other := range f.lab.Fabrics {
		if other.Name != fabric {
			s.controls[other.Name], err = f.newUDP(f.locators(other.Name))
			return err
		}
	}
	return errors.New("no other fabric for a control stream")
}

func (f *failoverBench) openMPTCP(ctx context.Context, s *streams, fabric string) (err error) {
	// Which fabric is cut is decided later, so each has a control stream.
	for _, fab := range f.lab.Fabrics {
		if s.controls[fab.Name], err = f.newUDP(f.locators(fab.Name)); err != nil {
			return err
		}
	}
	if s.tcp, err = f.newTCP(f.locator(f.a, fabric), f.locator(f.b, fabric), true); err != nil {
		return err
	}
	// The peer announces its other address once the connection carries data.
	if err := s.tcp.Burst(1); err != nil {
		return err
	}
	deadline := traffic.Now() + 5*time.Second
	for {
		n, err := s.tcp.Subflows()
		if err != nil {
			return err
		}
		if n >= 2 {
			return nil
		}
		if traffic.Now() > deadline {
			return fmt.Errorf("the MPTCP connection has %d subflow, want 2", n)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// setUpMPTCP tells the path managers of both hosts about the second path: b announces its locators, a connects to them.
func (f *failoverBench) setUpMPTCP(ctx context.Context) error {
	commands := []struct {
		host *lab.Host
		args []string
	}{
		{f.a, []string{"limits", "set", "subflows", "2", "add_addr_accepted", "2"}},
		{f.b, []string{"limits", "set", "subflows", "2", "add_addr_accepted", "2"}},
	}
	for _, u := range f.b.Uplinks {
		addr := u.Addr4
		if f.o.family == 6 {
			addr = u.Addr6
		}
		commands = append(commands, struct {
			host *lab.Host
			args []string
		}{f.b, []string{"endpoint", "add", addr.String(), "dev", u.Name, "signal"}})
	}
	for _, c := range commands {
		argv := append([]string{"ip", "mptcp"}, c.args...)
		if out, err := c.host.Command(ctx, argv...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s on host %s: %s: %s", strings.Join(argv, " "), c.host.Name, outcome(err), strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func (f *failoverBench) newUDP(src, dst netip.AddrPort) (*traffic.UDP, error) {
	return traffic.NewUDP(traffic.UDPConfig{
		From: f.a.Do, To: f.b.Do, Src: src, Dst: dst, Size: udpSize, Rate: udpRate, For: longest, Answer: f.o.idleFirst,
	})
}

func (f *failoverBench) newTCP(src, dst netip.AddrPort, mptcp bool) (*traffic.TCP, error) {
	return traffic.NewTCP(traffic.TCPConfig{
		From: f.a.Do, To: f.b.Do, Src: src, Dst: dst, Size: tcpRecord, Every: tcpEvery, For: longest, MPTCP: mptcp,
	})
}

// identity is the identity of h in the family of the command, with port 0.
func (f *failoverBench) identity(h *lab.Host) netip.AddrPort {
	if f.o.family == 6 {
		return netip.AddrPortFrom(h.Identity6, 0)
	}
	return netip.AddrPortFrom(h.Identity4, 0)
}

// locator is the locator of h on a fabric, with port 0.
func (f *failoverBench) locator(h *lab.Host, fabric string) netip.AddrPort {
	u := h.Uplink(fabric)
	if f.o.family == 6 {
		return netip.AddrPortFrom(u.Addr6, 0)
	}
	return netip.AddrPortFrom(u.Addr4, 0)
}

func (f *failoverBench) locators(fabric string) (src, dst netip.AddrPort) {
	return f.locator(f.a, fabric), f.locator(f.b, fabric)
}

func uplinkNames(h *lab.Host) []string {
	var names []string
	for _, u := range h.Uplinks {
		names = append(names, u.Name)
	}
	return names
}

// sleep sleeps for d, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ms is d in milliseconds, to the microsecond.
func ms(d time.Duration) *float64 {
	v := float64(d.Microseconds()) / 1000
	return &v
}

// kernelRelease is what `uname -r` says.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// distributionOf returns the distribution of values, nil if there are none.
func distributionOf(values []float64) *distribution {
	if len(values) == 0 {
		return nil
	}
	v := slices.Clone(values)
	slices.Sort(v)
	n := len(v)
	median := v[n/2]
	if n%2 == 0 {
		median = (v[n/2-1] + v[n/2]) / 2
	}
	round := func(x float64) float64 { return math.Round(x*1000) / 1000 }
	return &distribution{
		Min: round(v[0]), Median: round(median), P95: round(v[int(math.Ceil(0.95*float64(n)))-1]), Max: round(v[n-1]),
	}
}

// summarize describes runs. What was lost for good counts in repeated runs too.
func summarize(runs, repeated []failoverRun) failoverSummary {
	s := failoverSummary{Runs: len(runs)}
	for _, r := range repeated {
		if r.Strayed {
			s.StrayedRuns++
		} else {
			s.RepeatedRuns++
		}
	}
	var gap, control, minus, later, laterControl, lost, stall, laterStall, answer []float64
	for _, r := range runs {
		control = append(control, r.ControlGapMS)
		laterControl = append(laterControl, r.LaterControlGapMS)
		stall = append(stall, r.TCPStallMS)
		laterStall = append(laterStall, r.LaterTCPStallMS)
		if r.GapMS != nil {
			gap = append(gap, *r.GapMS)
			minus = append(minus, *r.GapMS-r.ControlGapMS)
			later = append(later, *r.LaterGapMS)
		}
		if r.Lost != nil {
			lost = append(lost, float64(*r.Lost))
		}
		if r.FirstAnswerMS != nil {
			answer = append(answer, *r.FirstAnswerMS)
		}
		if r.Noisy {
			s.NoisyRuns++
		}
	}
	for _, r := range slices.Concat(runs, repeated) {
		if !r.TCPSurvived {
			s.TCPConnectionsLost++
		}
		if !r.Recovered {
			s.NotRecovered++
		}
		s.Corrupted += r.Corrupted
	}
	s.GapMS, s.ControlGapMS, s.GapMinusControlMS = distributionOf(gap), distributionOf(control), distributionOf(minus)
	s.LaterGapMS, s.LaterControlGapMS, s.Lost = distributionOf(later), distributionOf(laterControl), distributionOf(lost)
	s.TCPStallMS, s.LaterTCPStallMS, s.FirstAnswerMS = distributionOf(stall), distributionOf(laterStall), distributionOf(answer)
	return s
}

// bars holds a summary of plait against what it is to reach.
func (s failoverSummary) bars() []bar {
	list := []bar{}
	add := func(name string, most, value float64) {
		list = append(list, newBar(name, most, value))
	}
	if d := s.FirstAnswerMS; d != nil {
		add("first answer after idleness, max, ms", 50, d.Max)
	} else if s.GapMinusControlMS != nil {
		add("gap minus control, median, ms", 4, s.GapMinusControlMS.Median)
		add("gap minus control, p95, ms", 8, s.GapMinusControlMS.P95)
		add("lost, median, packets", 15, s.Lost.Median)
	}
	add("TCP connections lost", 0, float64(s.TCPConnectionsLost))
	return list
}

// table writes the report for a person.
func (r failoverReport) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	idle := ""
	if r.IdleFirst {
		idle = ", after more than 10 s without traffic"
	}
	p("%s cut, IPv%d, %s lab, kernel %s%s; gaps in [cut %d ms, cut +%d ms]\n\n", r.Cut, r.Family, r.Form, r.Kernel, idle, r.WindowMS[0], r.WindowMS[1])
	for i, m := range r.Means {
		s := r.Summary
		if i > 0 {
			s = r.Vs[m].Summary
		}
		p("%s, %d runs\tmin\tmedian\tp95\tmax\t\n", m, s.Runs)
		row := func(name string, d *distribution) {
			if d != nil {
				p("%s\t%.1f\t%.1f\t%.1f\t%.1f\t\n", name, d.Min, d.Median, d.P95, d.Max)
			}
		}
		row("first answer, ms", s.FirstAnswerMS)
		row("gap, ms", s.GapMS)
		row("control gap, ms", s.ControlGapMS)
		row("gap minus control, ms", s.GapMinusControlMS)
		row("lost packets", s.Lost)
		row("TCP stall, ms", s.TCPStallMS)
		row("later gap, ms", s.LaterGapMS)
		row("later control gap, ms", s.LaterControlGapMS)
		row("later TCP stall, ms", s.LaterTCPStallMS)
		p("TCP connections lost or stuck\t%d\t\n", s.TCPConnectionsLost)
		p("wrong packets or records\t%d\t\n", s.Corrupted)
		p("not recovered in 10 s\t%d\t\n", s.NotRecovered)
		p("repeated for noise\t%d\t\n", s.RepeatedRuns)
		p("noisy, yet counted\t%d\t\n", s.NoisyRuns)
		p("repeated for strayed streams\t%d\t\n\n", s.StrayedRuns)
	}
	for _, b := range r.Bars {
		p("%s\n", b)
	}
	return w.Flush()
}
