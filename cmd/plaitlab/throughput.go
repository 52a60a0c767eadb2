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
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	bulkWarmUp   = 200 * time.Millisecond // of a run that is not counted
	fewestPairs  = 10                     // before it may be enough
	narrowEnough = 0.02                   // width of the interval with which it is
	tailShare    = 0.05                   // of the interval at each end: it covers 90 %
	manyFlows    = 8

	shapedRate   = "500mbit"
	shapedPairs  = 6
	shapedWarmUp = 1500 * time.Millisecond
	shapedLength = 3 * time.Second
)

// Bars of throughput.
const (
	leastWire       = 0.93
	goalWire        = 0.97
	leastVirtual    = 0.94
	goalVirtual     = 0.98
	leastTwoUplinks = 1.9
	mostOfNAT       = 1.0 / 3
)

// Parts of the benchmark.
const (
	partTCP    = "tcp"
	partShaped = "shaped"
	partUDP    = "udp"
)

// throughputOptions are the command's flags.
type throughputOptions struct {
	pairs  int
	length time.Duration
	forms  []lab.Form
	parts  []string
	family int
	plait  string
	json   bool
}

// throughputBar is what a figure is to reach: at least or at most so much.
type throughputBar struct {
	Name  string   `json:"name"`
	Least *float64 `json:"least,omitempty"`
	Most  *float64 `json:"most,omitempty"`
	Goal  *float64 `json:"goal,omitempty"` // what it is hoped to reach
	Value float64  `json:"value"`
	Met   bool     `json:"met"`
}

func atLeast(name string, least, value float64) throughputBar {
	return throughputBar{Name: name, Least: &least, Value: value, Met: value >= least}
}

func atMost(name string, most, value float64) throughputBar {
	return throughputBar{Name: name, Most: &most, Value: value, Met: value <= most}
}

// String is a line of a table, with its columns ended by tabs.
func (b throughputBar) String() string {
	verdict := "MISSED"
	if b.Met {
		verdict = "met"
	}
	var want string
	if b.Least != nil {
		want = fmt.Sprintf("at least %.3g", *b.Least)
	} else {
		want = fmt.Sprintf("at most %.3g", *b.Most)
	}
	if b.Goal != nil {
		want += fmt.Sprintf(" (goal %.3g)", *b.Goal)
	}
	return fmt.Sprintf("%s\t%.3f\t%s\t%s\t", b.Name, b.Value, want, verdict)
}

// throughputReport is what the command prints.
type throughputReport struct {
	Kernel string `json:"kernel"`
	Family int    `json:"family"`
	CPUs   [2]int `json:"cpus"` // of clients and servers

	TCP    []*tcpRatio     `json:"tcp"`
	Shaped *tcpRatio       `json:"shaped,omitempty"`
	UDP    []*udpCost      `json:"udp"`
	Bars   []throughputBar `json:"bars"`
}

// tcpRatio compares TCP throughput, in pairs of runs.
type tcpRatio struct {
	Form  string    `json:"form"`
	Flows int       `json:"flows"`
	Pairs []tcpPair `json:"pairs"`
	Ratio interval  `json:"ratio"` // of plait to plain
	// Busy is the ratio of plain to plait of the CPU time a byte takes at the busier end: what the ratio of throughput would be
	// if nothing else ran on this machine.
	Busy interval `json:"cpu_ratio"`
}

// tcpPair is one run of each, in Mbit/s of payload.
type tcpPair struct {
	Plain     float64 `json:"plain_mbit"`
	Plait     float64 `json:"plait_mbit"`
	Ratio     float64 `json:"ratio"`
	PlainBusy float64 `json:"plain_cpu_ns_per_byte"` // at the end, client or server, that is busier
	PlaitBusy float64 `json:"plait_cpu_ns_per_byte"`
}

// interval is a median with the interval that holds the true one with a probability of 90 %: between two order statistics,
// whatever the distribution (the sign test inverted).
type interval struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// medianInterval returns that of values, of which there must be at least one. With fewer than five it ends where they do,
// and covers less than 90 %.
func medianInterval(values []float64) interval {
	v := slices.Clone(values)
	slices.Sort(v)
	n := len(v)
	// Below the k-th smallest the true median lies if fewer than k values are below it: binomial with p = 1/2.
	k, below := 0, 0.0
	p := math.Pow(0.5, float64(n)) // of exactly k values below
	for below+p <= tailShare {
		below += p
		k++
		p *= float64(n-k+1) / float64(k)
	}
	k = max(k, 1)
	i := interval{Median: v[n/2], Low: v[k-1], High: v[n-k]}
	if n%2 == 0 {
		i.Median = (v[n/2-1] + v[n/2]) / 2
	}
	return i
}

// newThroughputCommand returns `plaitlab bench throughput`.
func newThroughputCommand() *cobra.Command {
	var (
		o            throughputOptions
		form, output string
	)
	cmd := &cobra.Command{
		Use:   "throughput",
		Short: "Measure throughput between identities against plain kernel routing",
		Long: `Brings up hosts a and b with an agent each, and hosts c and d without, on the same two fabrics, and compares:

tcp     one TCP flow, and eight, between the identities of a and b against the same between locators of c
        and d, which the kernel routes. Reno; clients have one CPU, servers another. Runs alternate A B B A;
        the bar is on the lower bound of the 90 % interval of the median ratio. It ends after --pairs pairs,
        or when that interval is narrow enough. In a wire-like lab and in a virtual one. "By CPU time" is the
        ratio of the CPU time a byte takes at the busier end, which other load on this machine disturbs less.
shaped  both fabrics at 500 Mbit/s: eight flows between identities against eight over one uplink.
udp     frames of 64 bytes (IPv4) at a fixed rate: CPU time that a packet costs more, on its way out and in,
        than one that the kernel routes, against what nftables source NAT with connection tracking costs more. A
        batch is sent and has arrived before the call returns, so its time is all of its way through both hosts
        and the fabric, on one CPU. Packets that are sent with a marked hop limit, and so are translated on
        their way in only, tell the way in from the way out. In the virtual lab plait's hook is tcx; in the
        wire-like one it is XDP, and the uplinks of the hosts without plait have an empty XDP program.

The machine should have nothing else to do. It fails if a bar is missed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch output {
			case "table":
			case "json":
				o.json = true
			default:
				return fmt.Errorf("output %q: want table or json", output)
			}
			switch form {
			case "both":
				o.forms = []lab.Form{lab.Wire, lab.Virtual}
			case "wire":
				o.forms = []lab.Form{lab.Wire}
			case "virtual":
				o.forms = []lab.Form{lab.Virtual}
			default:
				return fmt.Errorf("form %q: want wire, virtual or both", form)
			}
			if o.family != 4 && o.family != 6 {
				return fmt.Errorf("family %d: want 4 or 6", o.family)
			}
			if o.pairs < 5 {
				return fmt.Errorf("%d pairs: want at least 5, or there is no interval", o.pairs)
			}
			if o.length < 100*time.Millisecond {
				return fmt.Errorf("runs of %v: want at least 100ms", o.length)
			}
			for _, p := range o.parts {
				if !slices.Contains([]string{partTCP, partShaped, partUDP}, p) {
					return fmt.Errorf("part %q: want tcp, shaped or udp", p)
				}
			}
			return throughput(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.pairs, "pairs", 40, "pairs of runs at most, of each comparison")
	f.DurationVar(&o.length, "length", time.Second, "of one run with TCP")
	f.StringVar(&form, "form", "both", "of the lab: wire, virtual or both (shaped is always virtual)")
	f.StringSliceVar(&o.parts, "part", []string{partTCP, partShaped, partUDP}, "what to measure")
	f.IntVar(&o.family, "family", 4, "IP version, 4 or 6")
	f.StringVar(&o.plait, "plait", "", "plait program (default: the one next to this program)")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// throughputBench is what all parts share.
type throughputBench struct {
	o    throughputOptions
	cpus [2]int // of clients and servers
	diag io.Writer
}

// throughput runs the command.
func throughput(ctx context.Context, out, diag io.Writer, o throughputOptions) (err error) {
	if o.plait, err = plaitProgram(o.plait); err != nil {
		return err
	}
	b := &throughputBench{o: o, diag: diag}
	if b.cpus, err = twoCPUs(); err != nil {
		return err
	}
	report := throughputReport{Kernel: kernelRelease(), Family: o.family, CPUs: b.cpus, TCP: []*tcpRatio{}, UDP: []*udpCost{}, Bars: []throughputBar{}}
	if slices.Contains(o.parts, partTCP) {
		for _, form := range o.forms {
			err := b.inLab(ctx, lab.Options{Form: form}, func(w *throughputWorld) error { return b.tcp(ctx, w, &report) })
			if err != nil {
				return err
			}
		}
	}
	if slices.Contains(o.parts, partShaped) {
		err := b.inLab(ctx, lab.Options{}, func(w *throughputWorld) error { return b.shaped(ctx, w, &report) })
		if err != nil {
			return err
		}
	}
	if slices.Contains(o.parts, partUDP) {
		for _, form := range o.forms {
			// Of the wire form a NIC's hook is wanted, which the lab leaves to plait.
			options := lab.Options{Form: form, FreeUplinks: form == lab.Wire}
			err := b.inLab(ctx, options, func(w *throughputWorld) error { return b.udp(ctx, w, &report) })
			if err != nil {
				return err
			}
		}
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

// verdict is an error if a bar was missed.
func (r throughputReport) verdict() error {
	var errs []error
	for _, b := range r.Bars {
		switch {
		case b.Met:
		case b.Least != nil:
			errs = append(errs, fmt.Errorf("%s: %.3f, want at least %.3g", b.Name, b.Value, *b.Least))
		default:
			errs = append(errs, fmt.Errorf("%s: %.3f, want at most %.3g", b.Name, b.Value, *b.Most))
		}
	}
	return errors.Join(errs...)
}

// throughputWorld is a lab with agents on hosts a and b, none on c, d and e.
type throughputWorld struct {
	lab           *lab.Lab
	a, b, c, d, e *lab.Host
}

// inLab runs measure in a lab of its own.
func (b *throughputBench) inLab(ctx context.Context, o lab.Options, measure func(*throughputWorld) error) (err error) {
	o.Hosts = []string{"a", "b", "c", "d", "e"}
	l, err := lab.Up(ctx, o)
	if err != nil {
		return fmt.Errorf("bringing the lab up: %w", err)
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	w := &throughputWorld{l, l.Host("a"), l.Host("b"), l.Host("c"), l.Host("d"), l.Host("e")}
	var configs [2]string
	for i, h := range []*lab.Host{w.a, w.b} {
		peer := []*lab.Host{w.b, w.a}[i]
		configs[i], err = h.WriteConfig(func(c *lab.Config) {
			c.Peers = slices.DeleteFunc(c.Peers, func(p lab.ConfigPeer) bool { return p.Name != peer.Name })
			if o.FreeUplinks {
				c.SetIngress("xdp")
			}
		})
		if err != nil {
			return err
		}
	}
	p, err := startPair(ctx, l, b.o.plait, configs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	defer traffic.Quiet()()
	return measure(w)
}

// identities are those of a and b, n times.
func (b *throughputBench) identities(w *throughputWorld, n int) []flow {
	f := flow{w.a, w.b, b.identity(w.a), b.identity(w.b)}
	return slices.Repeat([]flow{f}, n)
}

// locators are n flows between those of c and d, spread over the fabrics named.
func (b *throughputBench) locators(w *throughputWorld, n int, fabrics ...string) (flows []flow) {
	for i := range n {
		fabric := fabrics[i%len(fabrics)]
		flows = append(flows, flow{w.c, w.d, b.locator(w.c, fabric), b.locator(w.d, fabric)})
	}
	return flows
}

func (b *throughputBench) identity(h *lab.Host) netip.Addr {
	if b.o.family == 6 {
		return h.Identity6
	}
	return h.Identity4
}

func (b *throughputBench) locator(h *lab.Host, fabric string) netip.Addr {
	if b.o.family == 6 {
		return h.Uplink(fabric).Addr6
	}
	return h.Uplink(fabric).Addr4
}

func fabricNames(l *lab.Lab) (names []string) {
	for _, f := range l.Fabrics {
		names = append(names, f.Name)
	}
	return names
}

// tcp compares one flow, and many.
func (b *throughputBench) tcp(ctx context.Context, w *throughputWorld, report *throughputReport) error {
	least, goal := leastWire, goalWire
	if w.lab.Form == lab.Virtual {
		least, goal = leastVirtual, goalVirtual
	}
	for _, n := range []int{1, manyFlows} {
		r := &tcpRatio{Form: w.lab.Form.String(), Flows: n}
		err := b.compare(ctx, r, comparison{
			plain: b.locators(w, n, fabricNames(w.lab)...), plait: b.identities(w, n),
			warmUp: bulkWarmUp, length: b.o.length, pairs: b.o.pairs, narrow: narrowEnough,
		})
		if err != nil {
			return err
		}
		report.TCP = append(report.TCP, r)
		bar := atLeast(fmt.Sprintf("TCP, %s, %s: lower bound of the ratio", plural(n, "flow"), r.Form), least, r.Ratio.Low)
		bar.Goal = &goal
		report.Bars = append(report.Bars, bar)
	}
	return nil
}

// shaped compares both uplinks with one.
func (b *throughputBench) shaped(ctx context.Context, w *throughputWorld, report *throughputReport) error {
	for _, f := range w.lab.Fabrics {
		if err := w.lab.Impair(f.Name, lab.Impairment{Rate: shapedRate}); err != nil {
			return err
		}
	}
	r := &tcpRatio{Form: w.lab.Form.String(), Flows: manyFlows}
	err := b.compare(ctx, r, comparison{
		plain: b.locators(w, manyFlows, w.lab.Fabrics[0].Name), plait: b.identities(w, manyFlows),
		warmUp: shapedWarmUp, length: shapedLength, pairs: min(shapedPairs, b.o.pairs),
	})
	if err != nil {
		return err
	}
	report.Shaped = r
	report.Bars = append(report.Bars, atLeast("two uplinks of 500 Mbit/s against one, median", leastTwoUplinks, r.Ratio.Median))
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// comparison is what pairs of runs are made of.
type comparison struct {
	plain, plait   []flow
	warmUp, length time.Duration
	pairs          int
	narrow         float64 // width of the interval that is enough; 0: make all pairs
}

// compare makes pairs of runs.
func (b *throughputBench) compare(ctx context.Context, r *tcpRatio, c comparison) error {
	var ratios, busy []float64
	for n := 1; n <= c.pairs; n++ {
		var plain, plait bulkRun
		runs := []struct {
			flows []flow
			to    *bulkRun
		}{{c.plain, &plain}, {c.plait, &plait}}
		if n%2 == 0 { // A B, B A
			slices.Reverse(runs)
		}
		for _, run := range runs {
			var err error
			if *run.to, err = b.bulk(ctx, run.flows, c.warmUp, c.length); err != nil {
				return err
			}
		}
		p := tcpPair{plain.mbit, plait.mbit, plait.mbit / plain.mbit, plain.busy, plait.busy}
		r.Pairs = append(r.Pairs, p)
		ratios = append(ratios, p.Ratio)
		busy = append(busy, p.PlainBusy/p.PlaitBusy)
		r.Ratio, r.Busy = medianInterval(ratios), medianInterval(busy)
		_, _ = fmt.Fprintf(b.diag, "%s, %s, pair %d: plain %.0f, plait %.0f Mbit/s, ratio %.3f; median %.3f (%.3f-%.3f); by CPU time %.3f (%.3f-%.3f)\n",
			r.Form, plural(r.Flows, "flow"), n, p.Plain, p.Plait, p.Ratio, r.Ratio.Median, r.Ratio.Low, r.Ratio.High,
			r.Busy.Median, r.Busy.Low, r.Busy.High)
		if n >= fewestPairs && r.Ratio.High-r.Ratio.Low <= c.narrow {
			break
		}
	}
	return nil
}

// table writes the report for a person.
func (r throughputReport) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("IPv%d, kernel %s, clients on CPU %d, servers on CPU %d\n\n", r.Family, r.Kernel, r.CPUs[0], r.CPUs[1])
	list := slices.Clone(r.TCP)
	if r.Shaped != nil {
		list = append(list, r.Shaped)
	}
	if len(list) > 0 {
		p("TCP, median Mbit/s\tplain\tplait\tratio\t90 %% interval\tby CPU time\t90 %% interval\tpairs\n")
	}
	for _, t := range list {
		name := t.Form + " lab, " + plural(t.Flows, "flow")
		if t == r.Shaped {
			name += ", 500 Mbit/s: one uplink, two"
		}
		var plain, plait []float64
		for _, pair := range t.Pairs {
			plain, plait = append(plain, pair.Plain), append(plait, pair.Plait)
		}
		p("%s\t%.0f\t%.0f\t%.3f\t%.3f-%.3f\t%.3f\t%.3f-%.3f\t%d\n", name, medianInterval(plain).Median, medianInterval(plait).Median,
			t.Ratio.Median, t.Ratio.Low, t.Ratio.High, t.Busy.Median, t.Busy.Low, t.Busy.High, len(t.Pairs))
	}
	for _, u := range r.UDP {
		p("\nUDP, 18 bytes, %d packets/s, %s lab\tns a packet\t90 %% interval\n", u.Rate, u.Form)
		row := func(name string, i interval) { p("%s\t%.0f\t%.0f-%.0f\n", name, i.Median, i.Low, i.High) }
		row("plain, all of its way", u.Plain)
		row("plait adds on the way out", u.PlaitOut)
		row("plait adds on the way in", u.PlaitIn)
		row("source NAT adds on the way out", u.NATOut)
		row("source NAT adds on the way in", u.NATIn)
		if u.Discarded > 0 {
			p("batches discarded, of %d\t%d\n", u.Batches+u.Discarded, u.Discarded)
		}
	}
	p("\n")
	for _, b := range r.Bars {
		p("%s\n", b)
	}
	return w.Flush()
}
