// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	namedPeers = 3  // a problem names at most so many peers
	namedPaths = 16 // at most so many paths have a problem of their own
)

// assess finds what is wrong, sums it up, and says nothing twice: what a dead peer or uplink
// explains is not told again for each of its paths.
func (s *Status) assess() {
	s.Problems = []string{}
	health := OK
	add := func(h Health, texts ...string) {
		if len(texts) == 0 {
			return
		}
		s.Problems = append(s.Problems, texts...)
		if h == Broken || health == OK {
			health = h
		}
	}
	add(Broken, s.peerProblems()...)
	add(Degraded, s.uplinkProblems()...)
	add(Degraded, s.pathProblems()...)

	if !s.Agent.Running {
		text := "agent is not running: paths are frozen as it left them"
		s.Headline = Headline{health, text}
		if health == OK {
			s.Headline.State = Degraded
		} else {
			s.Headline.Text += "; then: " + s.Problems[0] + more(len(s.Problems)-1)
		}
		s.Problems = slices.Insert(s.Problems, 0, text)
		return
	}
	s.Headline = Headline{health, "ok: " + s.census()}
	if health != OK {
		s.Headline.Text = string(health) + ": " + s.Problems[0] + more(len(s.Problems)-1)
	}
}

func more(n int) string {
	switch {
	case n <= 0:
		return ""
	case n == 1:
		return " (and 1 more problem)"
	}
	return fmt.Sprintf(" (and %d more problems)", n)
}

// census counts peers and paths.
func (s *Status) census() string {
	names := map[string]bool{}
	var up, all, unreached int
	for i := range s.Peers {
		names[s.Peers[i].Name] = true
		for j := range s.Peers[i].Paths {
			all++
			switch s.Peers[i].Paths[j].State {
			case PathUp:
				up++
			case PathUnreached:
				unreached++
			}
		}
	}
	if len(names) == 0 {
		return "no peers"
	}
	text := fmt.Sprintf("%s, %d of %s up", plural(len(names), "peer"), up, plural(all, "path"))
	if unreached > 0 {
		text += fmt.Sprintf(", %d never answered", unreached)
	}
	return text
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// peerProblems tells of the peers that cannot be reached, together where it is the same for many.
func (s *Status) peerProblems() []string {
	families := map[string]int{} // of each peer
	for i := range s.Peers {
		families[s.Peers[i].Name]++
	}
	type kind struct {
		state   PeerState
		problem string
	}
	type affected struct {
		name, family string
		families     int
		since        time.Time // the latest
	}
	var kinds []kind
	of := map[kind][]affected{}
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.Reachable() {
			continue
		}
		k := kind{p.State, p.Problem}
		if of[k] == nil {
			kinds = append(kinds, k)
		}
		list := of[k]
		if n := len(list); n > 0 && list[n-1].name == p.Name {
			list[n-1].families++
			if p.Since.After(list[n-1].since) {
				list[n-1].since = p.Since
			}
			continue
		}
		of[k] = append(list, affected{p.Name, family(p.Family), 1, p.Since})
	}
	// What answered and does no longer is worse than what never did.
	slices.SortStableFunc(kinds, func(a, b kind) int { return strings.Compare(string(a.state), string(b.state)) })
	var out []string
	for _, k := range kinds {
		list := of[k]
		var names []string
		var since time.Time
		for _, a := range list {
			name := a.name
			if a.families < families[a.name] {
				name += " (" + a.family + ")"
			}
			names = append(names, name)
			if a.since.After(since) {
				since = a.since
			}
		}
		text := "peer " + names[0]
		switch n := len(names); {
		case n == len(families) && n > 1:
			text = fmt.Sprintf("all %d peers", n)
		case n > namedPeers:
			text = fmt.Sprintf("%d peers (%s, ...)", n, strings.Join(names[:namedPeers], ", "))
		case n > 1:
			text = "peers " + strings.Join(names, ", ")
		}
		out = append(out, text+" "+s.unreachableText(k.state, k.problem, since))
	}
	return out
}

func (s *Status) unreachableText(st PeerState, problem string, since time.Time) string {
	if st == PeerUnreached && problem == neverSpoke {
		if s.Drops["probe_tag"] > 0 || s.Drops["probe_key"] > 0 {
			return neverSpoke + "; probes that do not verify arrive: is the key the same on both sides?"
		}
		return neverSpoke
	}
	text := string(st)
	if !since.IsZero() {
		text += " for " + age(s.Time.Sub(since))
	}
	if problem != noAnswer {
		text += ": " + problem
	}
	return text
}

// uplinkStats counts an uplink's paths towards peers that can be reached: the others' say nothing
// about the uplink.
type uplinkStats struct {
	all                        int // towards any peer
	answering, down, unreached int
	since                      time.Time // latest of those down
}

func (s *Status) uplinkStats() map[string]*uplinkStats {
	stats := map[string]*uplinkStats{}
	for i := range s.Uplinks {
		stats[s.Uplinks[i].Name] = &uplinkStats{}
	}
	for i := range s.Peers {
		for j := range s.Peers[i].Paths {
			p := &s.Peers[i].Paths[j]
			u := stats[p.Uplink]
			if u == nil {
				continue
			}
			u.all++
			if !s.Peers[i].Reachable() {
				continue
			}
			switch p.State {
			case PathUp, PathFresh:
				u.answering++
			case PathDown:
				u.down++
				if p.Since.After(u.since) {
					u.since = p.Since
				}
			case PathUnreached:
				u.unreached++
			}
		}
	}
	return stats
}

// silent says that nothing answers through the uplink any more, though it is up.
func (u *uplinkStats) silent() bool { return u.answering == 0 && u.down > 1 }

func (s *Status) uplinkProblems() []string {
	stats := s.uplinkStats()
	var out []string
	for i := range s.Uplinks {
		u, n := &s.Uplinks[i], stats[s.Uplinks[i].Name]
		name := "uplink " + u.Name
		switch {
		case u.State == UplinkDown:
			out = append(out, name+" down: "+u.Problem)
		case u.Problem != "":
			out = append(out, name+": "+u.Problem)
		case n.all == 0 && len(s.Peers) > 0:
			out = append(out, name+" has no path to any peer")
		case n.silent():
			text := fmt.Sprintf("%s: no answer on any of %s", name, plural(n.down, "path"))
			if !n.since.IsZero() {
				text += " for " + age(s.Time.Sub(n.since))
			}
			out = append(out, text)
		case n.answering == 0 && n.down == 0 && n.unreached > 0:
			out = append(out, name+": none of its paths ever answered ("+s.whyUnreached(u.Name)+")")
		}
	}
	return out
}

// whyUnreached tells an uplink without routes from one without answers.
func (s *Status) whyUnreached(uplink string) string {
	for i := range s.Peers {
		for j := range s.Peers[i].Paths {
			if p := &s.Peers[i].Paths[j]; p.Uplink == uplink && p.NextHop.IsValid() {
				return noAnswer
			}
		}
	}
	return "no route to any peer"
}

// pathProblems tells of single paths, of those first that are down.
func (s *Status) pathProblems() []string {
	stats := s.uplinkStats()
	explained := map[string]bool{}
	for i := range s.Uplinks {
		u := &s.Uplinks[i]
		explained[u.Name] = u.State == UplinkDown || stats[u.Name].silent() && u.Problem == ""
	}
	var out []string
	total := 0
	for _, want := range []PathState{PathDown, PathFresh} {
		for i := range s.Peers {
			for j := range s.Peers[i].Paths {
				p := &s.Peers[i].Paths[j]
				if p.State != want || !s.Peers[i].Reachable() || explained[p.Uplink] {
					continue
				}
				if total++; total > namedPaths {
					continue
				}
				text := fmt.Sprintf("peer %s: path %s ", s.Peers[i].Name, p)
				if want == PathDown {
					text += "down" + s.forSince(p.Since) + " (" + p.Problem + ")"
				} else {
					text += "answers again, in hold-down" + s.forSince(p.Since)
				}
				out = append(out, text)
			}
		}
	}
	if total > namedPaths {
		out = append(out, fmt.Sprintf("%d more paths down or in hold-down", total-namedPaths))
	}
	return out
}

func (s *Status) forSince(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " for " + age(s.Time.Sub(t))
}

// age writes a duration with two units at most.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", max(0, d.Milliseconds()))
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
