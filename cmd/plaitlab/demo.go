// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

const (
	agentLog     = "agent.log"            // in the directory of a host
	demoCell     = 100 * time.Millisecond // of a timeline
	demoUpLimit  = 15 * time.Second       // for all paths to be up
	demoOnTheWay = 50 * time.Millisecond  // a packet sent later than that ago may still arrive
)

// demoOptions are the command's flags.
type demoOptions struct {
	keep  bool
	ascii bool
	form  lab.Form
	plait string
}

// newDemoCommand returns `plaitlab demo`.
func newDemoCommand() *cobra.Command {
	var (
		o    demoOptions
		wire bool
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show what cuts and dying agents do to real traffic between two hosts",
		Long: `Brings up two hosts on two fabrics with an agent on each, and moves checked traffic between their identities:
TCP connections and UDP streams, IPv4 and IPv6, both ways, over both fabrics. Then it cuts one fabric silently
and heals it, pulls the carrier of the other and puts it back, and kills both agents and starts them again.
A timeline shows it as it happens, a table closes it. It takes well under a minute and removes what it made.

It fails if a TCP connection broke or a byte differed.`,
		Example: `  plaitlab demo
  plaitlab demo --keep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wire {
				o.form = lab.Wire
			}
			// Whoever closes the terminal, or the pipe behind us, wants everything removed no less than who interrupts.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP, syscall.SIGPIPE)
			defer stop()
			return demo(ctx, cmd.OutOrStdout(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.keep, "keep", false, "leave the lab and its agents up, to look around in")
	f.BoolVar(&o.ascii, "ascii", false, "draw with ASCII characters only")
	f.BoolVar(&wire, "wire", false, "lab whose packets are as on a wire (default: virtual, super-packets)")
	f.StringVar(&o.plait, "plait", "", "plait program (default: the one next to this program)")
	return cmd
}

// demonstration is a demo that runs.
type demonstration struct {
	o       demoOptions
	s       *screen
	began   time.Duration
	lab     *lab.Lab
	pair    *pair
	configs [2]string
	views   views
	streams *demoStreams
	events  []demoEvent
	killed  bool // the agents were ended on purpose
}

// demoEvent is something that happened to the lab. It lasts until the next one.
type demoEvent struct {
	name   string
	spared []string // fabrics that nothing happened to
	at     tally    // when it happened
}

// demo runs the command.
func demo(ctx context.Context, out io.Writer, o demoOptions) (err error) {
	d := &demonstration{o: o, s: newScreen(out, o.ascii, os.Getenv), began: traffic.Now()}
	if d.o.plait, err = plaitProgram(o.plait); err != nil {
		return err
	}
	if d.lab, err = lab.Up(ctx, lab.Options{Form: o.form}); err != nil {
		return fmt.Errorf("bringing the lab up: %w", err)
	}
	shown, err := d.show(ctx)
	// What is kept is a lab that has shown what it is for, whatever came out.
	if shown && o.keep {
		d.lookAround()
		return errors.Join(err, d.s.err)
	}
	down := d.down()
	switch {
	case shown:
		return errors.Join(err, d.s.err, down)
	case ctx.Err() != nil && down == nil:
		return errors.New("interrupted; all that it made is removed")
	}
	return errors.Join(err, down)
}

// show runs the demo in the lab. Once it has been shown, the error says what traffic lost for good.
func (d *demonstration) show(ctx context.Context) (shown bool, err error) {
	d.greet()
	if err := d.start(ctx); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.views.close()) }()
	defer d.streams.close()
	if err := d.play(ctx); err != nil {
		return false, err
	}
	return true, d.report()
}

// down removes everything.
func (d *demonstration) down() error {
	var errs []error
	if d.pair != nil {
		errs = append(errs, d.pair.stop())
	}
	return errors.Join(append(errs, d.lab.Down())...)
}

// step tells that a step of the preparations is done.
func (d *demonstration) step(format string, args ...any) {
	d.s.sayf("%5.1f s  %s", (traffic.Now() - d.began).Seconds(), fmt.Sprintf(format, args...))
}

// greet draws the lab.
func (d *demonstration) greet() {
	g := d.s.glyphs
	a, b := d.lab.Host("a"), d.lab.Host("b")
	line := strings.Repeat(g.line, 3)
	d.s.say(span{"plait: two hosts, two fabrics, cuts, and no connection lost", bold})
	d.s.sayf("")
	fabric := func(f *lab.Fabric, left, right string) {
		d.s.sayf("%20s%s %s %s fabric %s %s %s %s%s", left, line, a.Uplink(f.Name).Name, line, f.Name, line,
			b.Uplink(f.Name).Name, line, right)
	}
	fabric(d.lab.Fabrics[0], g.tree[0], g.tree[1])
	d.s.sayf("%18s a %33s b %s", a.Identity4, "", b.Identity4)
	d.s.sayf("%18s   %33s   %s", a.Identity6, "", b.Identity6)
	fabric(d.lab.Fabrics[1], g.tree[2], g.tree[3])
	d.s.sayf("")
	d.step("the lab is up: %s, out of network namespaces of this machine", d.lab.Name)
}

// start brings agents and traffic up.
func (d *demonstration) start(ctx context.Context) (err error) {
	d.pair = &pair{lab: d.lab, a: d.lab.Host("a"), b: d.lab.Host("b")}
	for i, h := range d.lab.Hosts {
		if d.configs[i], err = h.WriteConfig(); err != nil {
			return err
		}
	}
	if err := d.startAgents(ctx); err != nil {
		return err
	}
	up, cancel := context.WithTimeout(ctx, demoUpLimit)
	defer cancel()
	if err := d.pair.waitUp(up); err != nil {
		return err
	}
	if d.views, err = openViews(d.lab); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.views.close())
		}
	}()
	d.step("an agent runs on each host, every path is up")
	if d.streams, err = openDemoStreams(ctx, d.pair); err != nil {
		return fmt.Errorf("opening streams: %w", err)
	}
	d.step("%d TCP connections and %d UDP streams of %s packets/s between",
		len(d.streams.tcp), len(d.streams.udp), grouped(udpRate))
	d.s.sayf("%9sidentities, IPv4 and IPv6, both ways, over both fabrics, bytes checked", "")
	g := d.s.glyphs
	d.s.sayf("")
	d.s.sayf("A column is 0.1 s. Over a fabric: its share of the traffic, %s no answer,", g.down)
	d.s.sayf("%s answers again (trusted after 1 s). Gap: longest pause between arrivals, ms.", g.waiting)
	d.s.sayf("Control: the same without plait, over a fabric that is left alone.")
	return nil
}

// startAgents starts an agent on each host.
func (d *demonstration) startAgents(ctx context.Context) error {
	d.pair.agents, d.killed = nil, false
	for i, h := range d.lab.Hosts {
		a, err := startLastingAgent(ctx, d.o.plait, h, d.configs[i], filepath.Join(d.lab.Dir(), h.Name, agentLog))
		if err != nil {
			return err
		}
		d.pair.agents = append(d.pair.agents, a)
	}
	return nil
}

// killAgents ends both agents so that they cannot do anything about it.
func (d *demonstration) killAgents() error {
	d.killed = true
	var errs []error
	for _, a := range d.pair.agents {
		errs = append(errs, a.signal(syscall.SIGKILL))
	}
	for _, a := range d.pair.agents {
		<-a.ended
	}
	return errors.Join(errs...)
}

// alive returns an error if an agent ended that was not killed.
func (d *demonstration) alive() error {
	if d.killed {
		return nil
	}
	var errs []error
	for _, a := range d.pair.agents {
		errs = append(errs, a.alive())
	}
	return errors.Join(errs...)
}

// scene is one timeline: two events.
type scene struct {
	title  string
	agents bool     // they are what it is about
	spared []string // fabrics that nothing happens to
	events [2]sceneEvent
}

type sceneEvent struct {
	after int    // cells since the last event, or the start of the scene
	mark  string // in the timeline
	name  string // in the table
	do    func() (at time.Duration, err error)
}

// Cells from the start of a scene to its first event, and from that to its second. As much as both is left for what follows.
const (
	untilFirst  = 10
	untilSecond = 20
)

func (d *demonstration) scenes(ctx context.Context) []scene {
	f1, f2 := d.lab.Fabrics[0].Name, d.lab.Fabrics[1].Name
	cut := func(fabric string, mode lab.CutMode) func() (time.Duration, error) {
		return func() (time.Duration, error) { return d.lab.Cut(fabric, mode, "", "") }
	}
	now := func(do func() error) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			at := traffic.Now()
			return at, do()
		}
	}
	heal := func(fabric string) func() (time.Duration, error) {
		return now(func() error { return d.lab.Heal(fabric) })
	}
	return []scene{
		{
			title:  fmt.Sprintf("1. Fabric %s is cut silently: what enters it vanishes, every link stays up", f1),
			spared: []string{f2},
			events: [2]sceneEvent{
				{untilFirst, f1 + " cut", f1 + " cut silently", cut(f1, lab.Silent)},
				{untilSecond, f1 + " healed", f1 + " healed", heal(f1)},
			},
		},
		{
			title:  fmt.Sprintf("2. The cables of %s are pulled: no carrier", f2),
			spared: []string{f1},
			events: [2]sceneEvent{
				{untilFirst, f2 + " pulled", f2 + " carrier pulled", cut(f2, lab.Carrier)},
				{untilSecond, f2 + " plugged in", f2 + " plugged in", heal(f2)},
			},
		},
		{
			title:  "3. Both agents are killed (SIGKILL), and started again two seconds later",
			agents: true,
			spared: []string{f1, f2},
			events: [2]sceneEvent{
				{untilFirst, "killed", "agents killed", now(d.killAgents)},
				{untilSecond, "started", "agents restarted", now(func() error { return d.startAgents(ctx) })},
			},
		},
	}
}

// play shows all scenes.
func (d *demonstration) play(ctx context.Context) error {
	defer traffic.Quiet()()
	if err := d.streams.start(); err != nil {
		return err
	}
	scenes := d.scenes(ctx)
	d.events = []demoEvent{{name: "before the cuts", spared: scenes[len(scenes)-1].spared, at: d.streams.tally()}}
	for i := range scenes {
		if err := d.scene(ctx, &scenes[i]); err != nil {
			return err
		}
		// The next scene is about another path: it must find this one's in use again.
		if err := d.waitUp(ctx); err != nil {
			return err
		}
	}
	d.streams.stop()
	d.events = append(d.events, demoEvent{at: d.streams.tally()})
	return nil
}

// waitUp waits until all paths are up again.
func (d *demonstration) waitUp(ctx context.Context) error {
	deadline := traffic.Now() + demoUpLimit
	for {
		fabrics, err := d.views.fabrics()
		if err != nil {
			return err
		}
		missing := ""
		for name, f := range fabrics {
			if f.fresh+f.down > 0 {
				missing = name
			}
		}
		switch {
		case missing == "":
			return nil
		case traffic.Now() > deadline:
			return fmt.Errorf("fabric %s was healed, and %v later its paths are not in use", missing, demoUpLimit)
		}
		if err := sleep(ctx, statusEvery); err != nil {
			return err
		}
	}
}

// sceneLanes are the lanes of a scene's timeline.
type sceneLanes struct {
	fabrics        []*lane // in their order
	agents         *lane   // nil in a scene that is not about them
	tcp, udp       *lane
	udpGap, udpCtl *lane
	tcpGap, tcpCtl *lane
}

func (d *demonstration) newTimeline(sc *scene) (*timeline, *sceneLanes) {
	t := &timeline{title: sc.title}
	add := func(name string) *lane {
		l := &lane{name: name}
		t.lanes = append(t.lanes, l)
		return l
	}
	lanes := &sceneLanes{}
	if sc.agents {
		lanes.agents = add("agents")
	}
	for _, f := range d.lab.Fabrics {
		lanes.fabrics = append(lanes.fabrics, add("over "+f.Name))
	}
	lanes.tcp, lanes.udp = add("TCP"), add("UDP")
	lanes.udpGap, lanes.udpCtl = add("UDP gap"), add(" control")
	lanes.tcpGap, lanes.tcpCtl = add("TCP gap"), add(" control")
	return t, lanes
}

// scene shows one.
func (d *demonstration) scene(ctx context.Context, sc *scene) error {
	t, lanes := d.newTimeline(sc)
	d.s.begin(t)
	fabrics, err := d.views.fabrics()
	if err != nil {
		return err
	}
	first := d.streams.tally()
	last := first
	cell, done, due := 0, 0, sc.events[0].after // done events, and the cell that the next is due at
	for cell < laneCells || done < len(sc.events) {
		if done < len(sc.events) && cell >= due {
			e := sc.events[done]
			then := d.streams.tally()
			if then.at, err = e.do(); err != nil {
				return err
			}
			d.events = append(d.events, demoEvent{e.name, sc.spared, then})
			t.marks = append(t.marks, mark{cell, e.mark})
			if done++; done < len(sc.events) {
				due = cell + sc.events[done].after
			}
		}
		if err := sleep(ctx, first.at+time.Duration(cell+1)*demoCell-traffic.Now()); err != nil {
			return err
		}
		now := d.streams.tally()
		before := fabrics
		if fabrics, err = d.views.fabrics(); err != nil {
			return err
		}
		// Where the machine lets this loop wait for longer than a cell, several look the same.
		next := max(cell+1, int((now.at-first.at)/demoCell))
		d.columns(lanes, min(next, laneCells)-cell, last, now, before, fabrics)
		d.pauses(lanes, min(next, laneCells)-cell, sc, first.at, last.at, now.at)
		last, cell = now, next
		d.s.grow(t)
		if d.s.err != nil {
			return fmt.Errorf("drawing: %w", d.s.err)
		}
		if err := d.alive(); err != nil {
			return err
		}
	}

	from := d.events[len(d.events)-len(sc.events)].at
	until := last.at - demoOnTheWay
	p := d.streams.longest(from.at, until, sc.spared)
	lost := d.streams.lost(from.at, until)
	look := green
	if last.broken > 0 || last.corrupted > 0 {
		look = red
	}
	t.close = &span{fmt.Sprintf("longest pause %s ms; lost %s of %s packets, %d of %d TCP",
		milliseconds(max(p.udp, p.tcp)), grouped(lost), grouped(last.sent-from.sent), last.broken, len(d.streams.tcp)), look}
	d.s.end(t)
	return d.s.err
}

// add adds n equal columns to the lane.
func (l *lane) add(n int, c span, format string, args ...any) {
	for range n {
		l.cells = append(l.cells, c)
	}
	l.figure = fmt.Sprintf(format, args...)
}

// columns adds n to the lanes about what flows: between two moments.
func (d *demonstration) columns(lanes *sceneLanes, n int, last, now tally, before, after map[string]*fabricView) {
	g := d.s.glyphs
	seconds := (now.at - last.at).Seconds()

	var sum float64
	moved := make([]float64, len(lanes.fabrics))
	for i, f := range d.lab.Fabrics {
		moved[i] = float64(after[f.Name].bytes-before[f.Name].bytes) / seconds
		sum += moved[i]
	}
	for i, f := range d.lab.Fabrics {
		v, c := after[f.Name], span{g.level(moved[i], sum), green}
		if c.text == g.nothing {
			switch {
			case v.down > 0:
				c = span{g.down, red}
			case v.fresh > 0:
				c = span{g.waiting, yellow}
			default:
				c.style = dim
			}
		}
		lanes.fabrics[i].add(n, c, "%.0f %%", 100*moved[i]/max(sum, 1))
	}
	if lanes.agents != nil {
		if d.killed {
			lanes.agents.add(n, span{g.dead, plain}, "dead")
		} else {
			lanes.agents.add(n, span{g.running, green}, "running")
		}
	}

	tcp := float64(now.tcpBytes-last.tcpBytes) / seconds
	lanes.tcp.add(n, span{g.level(tcp, float64(len(d.streams.tcp)*tcpRecord)/tcpEvery.Seconds()), cyan}, "%.0f Mb/s", tcp*8/1e6)
	udp := float64(now.received-last.received) / seconds
	lanes.udp.add(n, span{g.level(udp, float64(len(d.streams.udp)*udpRate)), cyan}, "%.1f k/s", udp/1e3)

}

// pauses adds n columns to the lanes about pauses: those of [last, now]. Behind them stands the longest since start.
func (d *demonstration) pauses(lanes *sceneLanes, n int, sc *scene, start, last, now time.Duration) {
	g := d.s.glyphs
	p, worst := d.streams.begun(last, now, sc.spared), d.streams.longest(start, now, sc.spared)
	for _, l := range []struct {
		lane         *lane
		shown, worst time.Duration
	}{
		{lanes.udpGap, p.udp, worst.udp}, {lanes.udpCtl, p.udpControl, worst.udpControl},
		{lanes.tcpGap, p.tcp, worst.tcp}, {lanes.tcpCtl, p.tcpControl, worst.tcpControl},
	} {
		l.lane.add(n, g.pause(l.shown), "%s ms", milliseconds(l.worst))
	}
}

// report writes the table. Its error says that something was lost for good.
func (d *demonstration) report() error {
	columns := []column{
		{"", 17}, {"UDP", -6}, {"(ctl)", -6}, {"TCP", -6}, {"(ctl)", -6}, {"lost", -6}, {"of", -9}, {"lost", -7}, {"verified", -8},
	}
	var rows [][]span
	row := func(name string, p pauses, lost int64, from, to tally, look style) {
		broken := to.broken - from.broken
		bad := plain
		if broken > 0 {
			bad = red
		}
		rows = append(rows, []span{
			{name, look}, {milliseconds(p.udp), look}, {milliseconds(p.udpControl), dim},
			{milliseconds(p.tcp), look}, {milliseconds(p.tcpControl), dim},
			{grouped(lost), look}, {grouped(to.sent - from.sent), look},
			{fmt.Sprintf("%d of %d", broken, len(d.streams.tcp)), bad},
			{fmt.Sprintf("%.1f MB", float64(to.bytes()-from.bytes())/1e6), look},
		})
	}
	var worst pauses
	var lost int64
	for i, e := range d.events[:len(d.events)-1] {
		from, to := e.at, d.events[i+1].at
		p := d.streams.longest(from.at, to.at-windowBefore, e.spared)
		n := d.streams.lost(from.at, to.at)
		worst.add(p)
		lost += n
		row(e.name, p, n, from, to, plain)
	}
	end := d.events[len(d.events)-1].at
	row("all", worst, lost, tally{}, end, bold)

	d.s.sayf("")
	d.s.say(span{fmt.Sprintf("%-17s %27s %16s %7s %8s", "", "longest pause, ms", "UDP packets", "TCP", "bytes"), bold})
	d.s.table(columns, rows)
	d.s.sayf("")
	d.s.sayf("A pause includes what this machine stalls by itself. The control (ctl) is that")
	d.s.sayf("alone: the same traffic without plait, over a fabric that nothing was done to.")
	d.s.sayf("")

	var errs []error
	if end.broken > 0 {
		errs = append(errs, fmt.Errorf("%d of %d TCP connections broke", end.broken, len(d.streams.tcp)))
	}
	if end.corrupted > 0 {
		errs = append(errs, fmt.Errorf("%d packets or records arrived with a wrong byte", end.corrupted))
	}
	err := errors.Join(errs...)
	took := (traffic.Now() - d.began).Seconds()
	if err == nil {
		d.s.say(span{fmt.Sprintf("No connection broke, no byte of %s was wrong. That took %.0f s.",
			grouped(end.bytes()), took), green})
	}
	return err
}

// lookAround says what can be done with a lab that stays up.
func (d *demonstration) lookAround() {
	which := ""
	if names, err := lab.List(); err != nil || len(names) > 1 {
		which = " --lab " + d.lab.Name
	}
	f1 := d.lab.Fabrics[0].Name
	d.s.sayf("")
	d.s.sayf("The lab stays up, and so do its agents. To look around, as root:")
	d.s.sayf("")
	for _, l := range [][3]string{
		{"what host a thinks", "exec", " a -- plait status"},
		{"the same, for Prometheus", "exec", " a -- curl -s 127.0.0.1:9555/metrics"},
		{"through plait", "exec", " a -- ping " + d.pair.b.Identity4.String()},
		{"what is on the wire", "exec", " " + f1 + " -- tcpdump -ni a"},
		{"break it", "cut", " " + f1},
		{"mend it", "heal", " " + f1},
		{"what the agents say", "exec", " a -- tail -f " + filepath.Join(d.lab.Dir(), "a", agentLog)},
		{"remove all of it", "down", ""},
	} {
		d.s.sayf("  %-25s %s %s%s%s", l[0], os.Args[0], l[1], which, l[2])
	}
}
