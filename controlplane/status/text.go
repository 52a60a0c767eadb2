// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Sizes above which the text shows only what is not up; everything is in the JSON form.
const (
	manyPaths = 64
	manyPeers = 32
	maxRows   = 100 // of any table
)

// WriteJSON writes the snapshot as one indented JSON object.
func (s *Status) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(s)
}

// WriteText writes the snapshot for a person: what is wrong first, then uplinks, peers, paths and
// the counters that are not zero. On large hosts peers and paths that are up are only counted.
func (s *Status) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w) // keeps the first error
	fmt.Fprintln(b, s.Headline.Text)
	if len(s.Problems) > 1 {
		for _, p := range s.Problems {
			fmt.Fprintf(b, "  - %s\n", p)
		}
	}
	s.writeHost(b)
	s.writeUplinks(b)
	s.writePeers(b)
	s.writePaths(b)
	s.writeCounters(b)
	return b.Flush()
}

// table writes rows under a header, aligned.
func table(w io.Writer, header string, rows [][]string) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(strings.Fields(header), "\t"))
	for _, r := range rows[:min(len(rows), maxRows)] {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // the writer below keeps its error
	if n := len(rows) - maxRows; n > 0 {
		fmt.Fprintf(w, "... and %d more; all of them: plait status -o json\n", n)
	}
}

// worstFirst moves rows up whose given column has one of the words, since a table may be cut short.
func worstFirst(rows [][]string, column int, words ...string) {
	rank := func(row []string) int {
		if i := slices.Index(words, row[column]); i >= 0 {
			return i
		}
		return len(words)
	}
	slices.SortStableFunc(rows, func(a, b []string) int { return rank(a) - rank(b) })
}

func (s *Status) writeHost(w io.Writer) {
	fmt.Fprintf(w, "\nhost %s", s.Host)
	for _, a := range s.Identities {
		fmt.Fprintf(w, "  %s", a)
	}
	if s.Agent.Running {
		fmt.Fprintf(w, "\nagent runs, process %d", s.Agent.PID)
	} else {
		fmt.Fprint(w, "\nagent does not run; the last one was started")
	}
	if t := s.Agent.Started; !t.IsZero() {
		if s.Agent.Running {
			fmt.Fprint(w, ", started")
		}
		fmt.Fprintf(w, " %s ago", age(s.Time.Sub(t)))
	}
	fmt.Fprintf(w, ", version %s", s.Version)
	if s.Agent.Config != "" {
		fmt.Fprintf(w, ", %s", s.Agent.Config)
	}
	fmt.Fprintln(w)
}

func (s *Status) writeUplinks(w io.Writer) {
	var rows [][]string
	why := map[string][]string{} // reasons for tc, and whose
	var reasons []string
	for i := range s.Uplinks {
		u := &s.Uplinks[i]
		var locators []string
		for _, a := range u.Locators {
			locators = append(locators, a.String())
		}
		mtu := "-"
		if u.Ifindex != 0 {
			mtu = fmt.Sprint(u.MTU)
		}
		rows = append(rows, []string{
			u.Name, string(u.State), mtu, orDash(u.Hook), orDash(strings.Join(locators, " ")),
			bytesOf(u.TxBytes), bytesOf(u.RxBytes),
		})
		if u.HookWhy != "" {
			if why[u.HookWhy] == nil {
				reasons = append(reasons, u.HookWhy)
			}
			why[u.HookWhy] = append(why[u.HookWhy], u.Name)
		}
	}
	table(w, "UPLINK STATE MTU HOOK LOCATORS SENT RECEIVED", rows)
	for _, r := range reasons {
		fmt.Fprintf(w, "hook tc, not xdp, on %s: %s\n", strings.Join(why[r], ", "), r)
	}
}

func (s *Status) writePeers(w io.Writer) {
	var rows [][]string
	for i := range s.Peers {
		p := &s.Peers[i]
		if len(s.Peers) > manyPeers && p.State == PeerUp {
			continue
		}
		up := 0
		for j := range p.Paths {
			if p.Paths[j].State == PathUp {
				up++
			}
		}
		identity := "-"
		if p.Identity.IsValid() {
			identity = p.Identity.String()
		}
		rows = append(rows, []string{
			p.Name, orDash(family(p.Family)), string(p.State), s.short(p.Since),
			fmt.Sprintf("%d/%d", up, len(p.Paths)), identity,
		})
	}
	if len(s.Peers) > manyPeers {
		worstFirst(rows, 2, string(PeerUnreachable), string(PeerUnreached))
		fmt.Fprintf(w, "\n%d of %d peers and families are up.", len(s.Peers)-len(rows), len(s.Peers))
		if len(rows) == 0 {
			fmt.Fprintln(w)
			return
		}
		fmt.Fprint(w, " The others:")
	}
	if len(rows) > 0 {
		table(w, "PEER FAMILY STATE FOR UP IDENTITY", rows)
	}
}

func (s *Status) writePaths(w io.Writer) {
	total, count := 0, map[PathState]int{}
	for i := range s.Peers {
		for j := range s.Peers[i].Paths {
			total++
			count[s.Peers[i].Paths[j].State]++
		}
	}
	if total == 0 {
		return
	}
	many := total > manyPaths
	var rows [][]string
	for i := range s.Peers {
		for j := range s.Peers[i].Paths {
			p := &s.Peers[i].Paths[j]
			if many && (p.State == PathUp || p.State == PathUnreached) {
				continue
			}
			rows = append(rows, s.pathRow(s.Peers[i].Name, p))
		}
	}
	if many {
		fmt.Fprintf(w, "\n%d paths: %d up, %d in hold-down, %d down, %d never answered.", total,
			count[PathUp], count[PathFresh], count[PathDown], count[PathUnreached])
		if len(rows) == 0 {
			fmt.Fprintln(w)
			return
		}
		worstFirst(rows, 4, string(PathDown))
		fmt.Fprint(w, " Those in hold-down or down:")
	}
	table(w, "PEER UPLINK LOCAL REMOTE STATE FOR RTT LOSS SHARE MULT LOST", rows)
}

func (s *Status) pathRow(peer string, p *Path) []string {
	// What a path that is down measured before it fell would only mislead.
	rtt, loss, share, multiplier, lost := "-", "-", "-", "-", "-"
	if p.State == PathUp || p.State == PathFresh {
		loss, share = percent(p.Loss), percent(p.Share)
		if p.RTT > 0 {
			rtt = milliseconds(p.RTT)
		}
	}
	if p.State != PathUnreached {
		multiplier, lost = fmt.Sprint(p.Multiplier), fmt.Sprint(p.Transitions)
	}
	row := []string{
		peer, p.Uplink, p.Local.String(), p.Remote.String(), string(p.State), s.short(p.Since),
		rtt, loss, share, multiplier, lost,
	}
	if !p.NextHop.IsValid() {
		row = append(row, "no route")
	}
	return row
}

func (s *Status) writeCounters(w io.Writer) {
	type counter struct {
		name string
		n    uint64
	}
	var list []counter
	for _, m := range []map[string]uint64{s.Drops, s.Counted} {
		for name, n := range m {
			if n > 0 {
				list = append(list, counter{name, n})
			}
		}
	}
	slices.SortFunc(list, func(a, b counter) int { return strings.Compare(a.name, b.name) })
	if len(list) > 0 {
		var rows [][]string
		for _, c := range list {
			rows = append(rows, []string{fmt.Sprint(c.n), c.name, Meaning(c.name)})
		}
		table(w, "PACKETS REASON", rows)
	}
	if s.EventsLost > 0 {
		fmt.Fprintf(w, "\n%d events lost: the agent did not read them in time; the paths' state is right all the same\n", s.EventsLost)
	}
	var fills []string
	for _, name := range []string{MapGroups, MapPaths, MapIdentities, MapPairs} {
		if f := s.Maps[name]; f.Used*10 >= f.Size*9 && f.Size > 0 {
			fills = append(fills, fmt.Sprintf("%s %d of %d", name, f.Used, f.Size))
		}
	}
	if len(fills) > 0 {
		fmt.Fprintf(w, "\nalmost full maps: %s\n", strings.Join(fills, ", "))
	}
}

// short writes how long ago t was in one unit; "-" if t is not known.
func (s *Status) short(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := s.Time.Sub(t); {
	case d < time.Second:
		return "0s"
	case d < 100*time.Second:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 100*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 100*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// percent writes 0..1 with as much precision as tells it from 0 and 1.
func percent(x float64) string {
	switch {
	case x <= 0:
		return "0%"
	case x < 0.001:
		return "<.1%"
	case x < 0.1:
		return fmt.Sprintf("%.1f%%", 100*x)
	case x < 1:
		return fmt.Sprintf("%d%%", min(99, int(100*x+0.5)))
	}
	return "100%"
}

// milliseconds writes µs as ms, in seven columns at most.
func milliseconds(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.3fms", us/1000)
	case us < 10_000:
		return fmt.Sprintf("%.2fms", us/1000)
	case us < 100_000:
		return fmt.Sprintf("%.1fms", us/1000)
	}
	return fmt.Sprintf("%.0fms", us/1000)
}

// bytesOf writes a number of bytes with a decimal prefix.
func bytesOf(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	x := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB"} {
		x /= 1000
		if x < 9.95 {
			return fmt.Sprintf("%.1f%s", x, unit)
		}
		if x < 999.5 {
			return fmt.Sprintf("%.0f%s", x, unit)
		}
	}
	return fmt.Sprintf("%.0fEB", x/1000)
}
