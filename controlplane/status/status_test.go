// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/world"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	both  = []maps.Family{maps.IPv4, maps.IPv6}
	only4 = []maps.Family{maps.IPv4}
)

func snapshot(t testing.TB, w *world.World, running bool) *Status {
	t.Helper()
	s, err := take(w.Set, w.State, running, clock{world.Wall, world.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", file, got, want)
	}
}

// Each case is one thing that can be wrong; goldens show what the operator sees.
var cases = []struct {
	name     string
	options  world.Options
	stopped  bool // the agent
	change   func(t *testing.T, w *world.World)
	state    Health
	headline string
	problems int
}{
	{
		name: "ok", options: world.Options{Uplinks: 2, Peers: 2, Families: both},
		change: func(t *testing.T, w *world.World) {
			w.SetTraffic(t, 0, 0, maps.PathStats{TxPackets: 1_000_000, TxBytes: 1_400_000_000, RxPackets: 500_000, RxBytes: 33_000_000})
			w.SetTraffic(t, 0, 1, maps.PathStats{TxPackets: 10, TxBytes: 840, RxPackets: 11, RxBytes: 924, TxMoved: 3})
			w.SetReason(t, "probe_foreign", 12)
			w.SetReason(t, "egress_unknown_peer", 3)
		},
		state: OK, headline: "ok: 2 peers, 8 of 8 paths up",
	},
	{
		name: "alone", options: world.Options{Uplinks: 2, Families: both},
		state: OK, headline: "ok: no peers",
	},
	{
		name: "mesh", options: world.Options{Uplinks: 2, Peers: 1, Families: only4, Mesh: true},
		state: OK, headline: "ok: 1 peer, 2 of 4 paths up, 2 never answered",
	},
	{
		name: "path-down", options: world.Options{Uplinks: 2, Peers: 2, Families: only4},
		change: func(_ *testing.T, w *world.World) { w.Lose(0, 0, 12*time.Second) },
		state:  Degraded, headline: "degraded: peer b: path up1 10.1.1.2 > 10.1.2.2 down for 12s (no answer)", problems: 1,
	},
	{
		name: "one-way", options: world.Options{Uplinks: 2, Peers: 2, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			w.Lose(0, 0, 12*time.Second)
			w.PathState(0, 0).Heard = world.Round - 1
		},
		state: Degraded, problems: 1,
		headline: "degraded: peer b: path up1 10.1.1.2 > 10.1.2.2 down for 12s " +
			"(no answer, though the peer's packets arrive: lost on the way there)",
	},
	{
		name: "hold-down", options: world.Options{Uplinks: 2, Peers: 1, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			w.Set.GroupStates.At(0).Up &^= 1
			w.PathState(0, 0).Since = world.Now - uint64(700*time.Millisecond)
			w.PathState(0, 0).Multiplier = 46
		},
		state: Degraded, problems: 1,
		headline: "degraded: peer b: path up1 10.1.1.2 > 10.1.2.2 answers again, in hold-down for 700ms",
	},
	{
		name: "fabric-cut", options: world.Options{Uplinks: 2, Peers: 2, Families: both},
		change: func(_ *testing.T, w *world.World) {
			for g := range uint32(4) {
				w.Lose(g, 1, 75*time.Second)
			}
		},
		state: Degraded, headline: "degraded: uplink up2: no answer on any of 4 paths for 1m15s", problems: 1,
	},
	{
		name: "no-carrier", options: world.Options{Uplinks: 2, Peers: 2, Families: both},
		change: func(_ *testing.T, w *world.World) { w.Unplug(0) },
		state:  Degraded, headline: "degraded: uplink up1 down: no carrier", problems: 1,
	},
	{
		name: "carrier-just-lost", options: world.Options{Uplinks: 2, Peers: 1, Families: only4},
		change: func(_ *testing.T, w *world.World) { w.Set.Settings.Uplinks = 2 }, // the state follows later
		state:  Degraded, headline: "degraded: uplink up1 down: not usable", problems: 1,
	},
	{
		name: "no-hook", options: world.Options{Uplinks: 2, Peers: 1, Families: only4},
		change: func(_ *testing.T, w *world.World) { w.State.Uplinks[1].Hook, w.State.Uplinks[1].HookWhy = "", "" },
		state:  Degraded, headline: "degraded: uplink up2: no ingress program is attached: nothing is received", problems: 1,
	},
	{
		name: "missing-interface", options: world.Options{Uplinks: 2, Peers: 1, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			u := &w.State.Uplinks[1]
			u.Ifindex, u.MTU, u.Carrier, u.Hook, u.HookWhy = 0, 0, false, "", ""
			w.Set.Settings.Uplinks = 1
			w.Set.SetPathLink(1, 0, world.Gateway(maps.IPv4, 2))
		},
		state: Degraded, headline: "degraded: uplink up2 down: no such interface", problems: 1,
	},
	{
		name: "useless-uplink", options: world.Options{Uplinks: 2, Peers: 2, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			w.Forget(0, 1)
			w.Forget(1, 1)
		},
		state: Degraded, headline: "degraded: uplink up2: none of its paths ever answered (no answer)", problems: 1,
	},
	{
		name: "route-lost", options: world.Options{Uplinks: 2, Peers: 1, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			p := w.Set.Path(1)
			w.Set.SetPathLink(1, p.Ifindex, maps.Path{}.NextHop)
		},
		state: Degraded, problems: 1,
		headline: "degraded: peer b: path up2 10.2.1.2 > 10.2.2.2 down (no route to 10.2.2.2 through up2)",
	},
	{
		name: "unreachable", options: world.Options{Uplinks: 2, Peers: 2, Families: both},
		change: func(_ *testing.T, w *world.World) {
			w.Silence(0, 3100*time.Millisecond)
			w.Silence(1, 3*time.Second)
			w.Lose(1, 0, time.Minute)
		},
		state: Broken, headline: "broken: peer b unreachable for 3s", problems: 1,
	},
	{
		name: "unreachable-in-one-family", options: world.Options{Uplinks: 2, Peers: 2, Families: both},
		change: func(_ *testing.T, w *world.World) { w.Silence(1, 3*time.Second) },
		state:  Broken, headline: "broken: peer b (IPv6) unreachable for 3s", problems: 1,
	},
	{
		name: "nobody", options: world.Options{Uplinks: 2, Peers: 5, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			w.Unplug(0)
			for g := range uint32(5) {
				w.Silence(g, time.Duration(10-g)*time.Second)
			}
		},
		state: Broken, headline: "broken: all 5 peers unreachable for 6s (and 1 more problem)", problems: 2,
	},
	{
		name: "no-uplink", options: world.Options{Uplinks: 2, Peers: 1, Families: only4},
		change: func(_ *testing.T, w *world.World) {
			w.Unplug(0)
			w.Unplug(1)
			w.Silence(0, time.Second)
		},
		state: Broken, problems: 3,
		headline: "broken: peer b unreachable for 1s: no path can be sent on: uplinks down or no route (and 2 more problems)",
	},
	{
		name: "unreached", options: world.Options{Uplinks: 2, Peers: 2, Families: both},
		change: func(t *testing.T, w *world.World) {
			for g := range uint32(2) {
				w.Forget(g, 0)
				w.Forget(g, 1)
			}
			w.SetReason(t, "probe_tag", 20)
		},
		state: Broken, problems: 1,
		headline: "broken: peer b never answered; probes that do not verify arrive: is the key the same on both sides?",
	},
	{
		name: "not-announced", options: world.Options{Uplinks: 2, Peers: 2, Families: only4},
		change: func(_ *testing.T, w *world.World) { w.Set.GroupStates.At(0).Caps = 0 },
		state:  Broken, problems: 1,
		headline: "broken: peer b unreachable: it answers probes but does not announce that it restores translated packets: none are sent",
	},
	{
		name: "no-common-family", options: world.Options{Uplinks: 1, Peers: 2, Families: only4},
		change: func(_ *testing.T, w *world.World) { w.State.Peers[1].Groups = nil },
		state:  Broken, headline: "broken: peer c unreached: no path: no uplink has an address of a family that the peer has", problems: 1,
	},
	{
		name: "agent-stopped", options: world.Options{Uplinks: 2, Peers: 2, Families: only4}, stopped: true,
		state: Degraded, headline: "agent is not running: paths are frozen as it left them", problems: 1,
	},
	{
		name: "agent-stopped-in-trouble", options: world.Options{Uplinks: 2, Peers: 2, Families: only4}, stopped: true,
		change: func(_ *testing.T, w *world.World) { w.Silence(0, 3*time.Minute) },
		state:  Broken, problems: 2,
		headline: "agent is not running: paths are frozen as it left them; then: peer b unreachable for 3m0s",
	},
	{
		name: "large-ok", options: world.Options{Uplinks: 4, Peers: 500, Families: both},
		state: OK, headline: "ok: 500 peers, 4000 of 4000 paths up",
	},
	{
		name: "large", options: world.Options{Uplinks: 4, Peers: 500, Families: both},
		change: func(_ *testing.T, w *world.World) {
			for g := range uint32(500) {
				w.Lose(2*g, g%4, time.Duration(g)*time.Second)
			}
			w.Silence(7, time.Second)
			w.Set.Settings.EventsLost = 17
		},
		state: Broken, headline: "broken: peer p4 (IPv6) unreachable for 1s (and 17 more problems)", problems: 18,
	},
}

func TestCases(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := world.New(t, c.options)
			if c.change != nil {
				c.change(t, w)
			}
			s := snapshot(t, w, !c.stopped)
			if s.Headline != (Headline{c.state, c.headline}) {
				t.Errorf("headline is %q, want %q", s.Headline, Headline{c.state, c.headline})
			}
			if len(s.Problems) != c.problems {
				t.Errorf("%d problems, want %d: %q", len(s.Problems), c.problems, s.Problems)
			}
			var text bytes.Buffer
			if err := s.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+".txt", text.Bytes())
			checkText(t, text.String(), len(c.options.Families) == 1)
		})
	}
}

// checkText holds for every text: nothing trails, and tables of IPv4 fit a terminal of 100 columns.
// Sentences may be longer.
func checkText(t *testing.T, text string, narrow bool) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.TrimRight(line, " \t") != line {
			t.Errorf("line ends in blanks: %q", line)
		}
		if cells := strings.Count(line, "  "); narrow && cells > 4 && utf8.RuneCountInString(line) > 100 {
			t.Errorf("line has %d columns: %q", utf8.RuneCountInString(line), line)
		}
	}
}

// Long but usual names: the table of paths has 100 columns.
func TestTextWidth(t *testing.T) {
	w := world.New(t, world.Options{Uplinks: 2, Peers: 1, Families: only4})
	w.State.Peers[0].Name = "storage7"
	for i, name := range []string{"enp65s0f0", "enp65s0f1"} {
		w.State.Uplinks[i].Name = name
		w.State.Uplinks[i].MTU = 9000
	}
	p := w.Set.Path(0)
	p.Local, p.Remote = netip.MustParseAddr("10.101.102.103"), netip.MustParseAddr("10.101.203.104")
	w.Set.SetPath(0, p)
	*w.PathState(0, 0) = maps.PathState{Newest: 1, Losses: 1234, Multiplier: 50, LossPpm: 500, RttNs: 12_345_678, Since: 1}
	var text bytes.Buffer
	if err := snapshot(t, w, true).WriteText(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "width.txt", text.Bytes())
	checkText(t, text.String(), true)
}

func TestJSON(t *testing.T) {
	w := world.New(t, world.Options{Uplinks: 2, Peers: 1, Families: both, Mesh: true})
	w.Lose(0, 3, 12*time.Second)
	w.SetTraffic(t, 0, 0, maps.PathStats{TxPackets: 100, TxBytes: 140_000, RxPackets: 50, RxBytes: 3_300, TxMoved: 7})
	w.SetTraffic(t, 1, 0, maps.PathStats{TxPackets: 5, TxBytes: 600, RxPackets: 4, RxBytes: 480})
	w.SetReason(t, "egress_no_path", 9)
	w.SetReason(t, "probe_unconfirmed", 2)
	w.PathState(0, 0).Congested, w.PathState(0, 0).LossPpm = 4, 125_000
	w.Set.Settings.EventsLost = 1
	s := snapshot(t, w, true)
	var b bytes.Buffer
	if err := s.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", b.Bytes())
	d := json.NewDecoder(&b)
	d.DisallowUnknownFields()
	var back Status
	if err := d.Decode(&back); err != nil {
		t.Fatal(err)
	}
	if u := back.Uplinks[0]; u.TxPackets != 105 || u.TxBytes != 140_600 || u.RxPackets != 54 || u.RxBytes != 3_780 {
		t.Errorf("sums of up1 are %+v", u)
	}
	if f := back.Maps; f[MapPaths] != (Fill{8, 64}) || f[MapGroups] != (Fill{2, 8}) ||
		f[MapIdentities] != (Fill{2, 8}) || f[MapPairs] != (Fill{8, 128}) {
		t.Errorf("maps are %+v", f)
	}
}

// State and maps are not written in one step: names without numbers and numbers without names are
// passed over.
func TestTornState(t *testing.T) {
	w := world.New(t, world.Options{Uplinks: 2, Peers: 2, Families: only4})
	w.State.Peers[0].Groups[0].Index = 1 << 20
	w.State.Uplinks = w.State.Uplinks[:1]
	s := snapshot(t, w, true)
	if len(s.Peers) != 2 || len(s.Peers[0].Paths) != 0 || len(s.Peers[1].Paths) != 2 {
		t.Fatalf("peers are %+v", s.Peers)
	}
	if p := s.Peers[1].Paths[1]; p.Uplink != "#1" || p.State != PathDown {
		t.Errorf("path of an unknown uplink is %+v", p)
	}
	for _, bad := range []maps.Group{{PathCount: maps.MaxPaths + 1}, {PathCount: 2, FirstPath: 63}, {PathCount: 1, FirstPath: 1 << 31}} {
		*w.Set.Groups.At(1) = bad
		if s := snapshot(t, w, true); len(s.Peers[1].Paths) != 0 {
			t.Errorf("group %+v has paths", bad)
		}
	}
}

func TestTakeClosed(t *testing.T) {
	for _, name := range []string{"path_traffic", "reasons", "identities", "pairs6"} {
		w := world.New(t, world.Options{Uplinks: 2, Peers: 1, Families: both})
		w.Set.Maps[name].Close()
		if _, err := Take(w.Set, w.State, true); err == nil {
			t.Errorf("no error though %s is closed", name)
		}
	}
}

// The clock of Take itself is the maps' clock.
func TestTakeClock(t *testing.T) {
	w := world.New(t, world.Options{Uplinks: 1, Peers: 1, Families: only4})
	w.PathState(0, 0).Since = 1 // when the machine started
	s, err := Take(w.Set, w.State, true)
	if err != nil {
		t.Fatal(err)
	}
	if since := s.Peers[0].Paths[0].Since; since.IsZero() || since.After(s.Time) {
		t.Errorf("machine started at %v, now is %v", since, s.Time)
	}
	w.PathState(0, 0).Since = ^uint64(0) // a future that cannot be
	if s, err = Take(w.Set, w.State, true); err != nil || !s.Peers[0].Paths[0].Since.IsZero() {
		t.Errorf("since is %v, error %v", s.Peers[0].Paths[0].Since, err)
	}
}

func TestMeanings(t *testing.T) {
	w := world.New(t, world.Options{})
	reasons, err := w.Set.Reasons()
	if err != nil {
		t.Fatal(err)
	}
	for r := range reasons {
		if m := Meaning(r.String()); m == "" || len(m) > 60 {
			t.Errorf("reason %s means %q", r, m)
		}
	}
	if len(meanings) != len(reasons) {
		t.Errorf("%d meanings for %d reasons", len(meanings), len(reasons))
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{bytesOf(0), "0B"}, {bytesOf(999), "999B"}, {bytesOf(1000), "1.0kB"}, {bytesOf(9949), "9.9kB"}, {bytesOf(9950), "10kB"},
		{bytesOf(999_499), "999kB"}, {bytesOf(999_500), "1.0MB"}, {bytesOf(1 << 63), "9EB"},
		{percent(0), "0%"}, {percent(1e-6), "<.1%"}, {percent(0.0123), "1.2%"}, {percent(0.5), "50%"}, {percent(0.9999), "99%"}, {percent(1), "100%"},
		{milliseconds(42), "0.042ms"}, {milliseconds(1234), "1.23ms"}, {milliseconds(12_345), "12.3ms"}, {milliseconds(234_567), "235ms"},
		{age(-time.Second), "0ms"}, {age(999 * time.Millisecond), "999ms"}, {age(59 * time.Second), "59s"}, {age(61 * time.Second), "1m1s"},
		{age(3*time.Hour + 12*time.Minute), "3h12m"}, {age(50 * time.Hour), "2d2h"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func BenchmarkTake4000Paths(b *testing.B) {
	w := world.New(b, world.Options{Uplinks: 4, Peers: 500, Families: both})
	for b.Loop() {
		snapshot(b, w, true)
	}
}
