// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/plait-net/plait/test/lab"
)

// testTimeline has every kind of line.
func testTimeline(s *screen) *timeline {
	g := s.glyphs
	paths, gaps := &lane{name: "over f1"}, &lane{name: "UDP gap"}
	for range 3 {
		paths.add(1, span{g.level(5, 10), green}, "%.0f %%", 50.0)
		gaps.add(1, g.pause(300*time.Microsecond), "0.3 ms")
	}
	paths.add(2, span{g.down, red}, "0 %%")
	gaps.add(1, g.pause(2900*time.Microsecond), "2.9 ms")
	gaps.add(1, g.pause(12*time.Millisecond), "12.0 ms")
	return &timeline{
		title: "1. Something is cut",
		marks: []mark{{3, "cut"}, {20, "healed"}},
		lanes: []*lane{paths, gaps},
		close: &span{"it was", red},
	}
}

func TestTimeline(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, glyphs: asciiGlyphs}
	tl := testTimeline(s)
	s.begin(tl)
	s.grow(tl)
	if got, want := out.String(), "\n1. Something is cut\n"; got != want {
		t.Errorf("while it grows, where it cannot be redrawn: %q, want %q", got, want)
	}
	s.end(tl)
	want := `
1. Something is cut
             v cut            v healed
over f1   ===xx                                                             0 %
UDP gap      3+                                                         12.0 ms
          0 s       1 s       2 s       3 s       4 s       5 s
          it was
`
	if out.String() != want {
		t.Errorf("timeline:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestTimelineIsRedrawnInPlace(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, glyphs: unicodeGlyphs, live: true}
	tl := testTimeline(s)
	last := tl.close
	tl.close = nil
	s.begin(tl)
	first := out.String()
	out.Reset()
	s.grow(tl)
	// As many lines up as were drawn below the title.
	drawn := strings.Count(first, "\n") - 2
	if want := "\x1b[" + string(rune('0'+drawn)) + "A\r"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("redrawing begins with %q, want %q", out.String()[:8], want)
	}
	if n := strings.Count(out.String(), "\x1b[K\n"); n != drawn {
		t.Errorf("%d lines are cleared to their ends, want %d", n, drawn)
	}
	tl.close = last
	out.Reset()
	s.end(tl)
	if n := strings.Count(out.String(), "\n"); n != drawn+1 {
		t.Errorf("%d lines at the end, want %d", n, drawn+1)
	}
	if n := drawn + 1 + 2; n > timelineLines {
		t.Errorf("%d lines are more than a terminal is asked to have", n)
	}
}

func TestColoursOnlyOnATerminal(t *testing.T) {
	var out bytes.Buffer
	env := func(string) string { return "xterm" }
	if s := newScreen(&out, false, env); s.colour || s.live {
		t.Errorf("a buffer is taken for a terminal: %+v", s)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if s := newScreen(null, false, env); s.colour || s.live {
		t.Errorf("a file is taken for a terminal: %+v", s)
	}
	s := &screen{out: &out, glyphs: unicodeGlyphs}
	s.say(span{"a", red}, span{"b ", plain}, span{"  ", green})
	s.colour = true
	s.say(span{"a", red}, span{"b", plain}, span{"c", bold})
	if got, want := out.String(), "ab\n\x1b[31ma\x1b[0mb\x1b[1mc\x1b[0m\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestGlyphsByLocale(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want string
	}{
		{nil, unicodeGlyphs.mark},
		{map[string]string{"LANG": "C"}, unicodeGlyphs.mark},
		{map[string]string{"LANG": "en_US.UTF-8"}, unicodeGlyphs.mark},
		{map[string]string{"LC_ALL": "en_US.utf8@euro", "LANG": "de_DE.ISO-8859-1"}, unicodeGlyphs.mark},
		{map[string]string{"LANG": "de_DE.ISO-8859-1"}, asciiGlyphs.mark},
		{map[string]string{"TERM": "linux", "LANG": "en_US.UTF-8"}, asciiGlyphs.mark},
	}
	for _, tt := range tests {
		s := newScreen(&bytes.Buffer{}, false, func(name string) string { return tt.env[name] })
		if s.glyphs.mark != tt.want {
			t.Errorf("%v: mark %q, want %q", tt.env, s.glyphs.mark, tt.want)
		}
	}
}

func TestLevels(t *testing.T) {
	g := asciiGlyphs
	tests := []struct {
		x, full float64
		want    string
	}{
		{0, 10, " "}, {0.1, 10, " "}, {1, 10, "."}, {5, 10, "="}, {9.6, 10, "#"}, {25, 10, "#"}, {1, 0, " "}, {-1, 10, " "},
	}
	for _, tt := range tests {
		if got := g.level(tt.x, tt.full); got != tt.want {
			t.Errorf("level of %g of %g: %q, want %q", tt.x, tt.full, got, tt.want)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -12345: "-12,345", 1000001: "1,000,001"} {
		if got := grouped(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestDemoReportsWhatBroke(t *testing.T) {
	for _, tt := range []struct {
		end  tally
		want string
	}{
		{tally{}, ""},
		{tally{broken: 1}, "TCP connections broke"},
		{tally{corrupted: 2}, "2 packets or records arrived with a wrong byte"},
	} {
		var out bytes.Buffer
		d := &demonstration{s: &screen{out: &out, glyphs: asciiGlyphs}, streams: &demoStreams{}}
		d.events = []demoEvent{{name: "cut"}, {at: tt.end}}
		err := d.report()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want %q", tt.end, err, tt.want)
		}
		if strings.Contains(out.String(), "No connection broke") != (tt.want == "") {
			t.Errorf("%+v: %s", tt.end, out.String())
		}
	}
}

// builtPlait is the program that make build made, or the one that PLAIT_BIN names.
func builtPlait(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PLAIT_BIN")
	if path == "" {
		path = filepath.Join("..", "..", "bin", "plait")
	}
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run make build, or name the program with PLAIT_BIN", err)
	}
	return path
}

func TestDemo(t *testing.T) {
	ownLabs(t)
	plait := builtPlait(t)
	start := time.Now()
	out := works(t, "demo", "--keep", "--plait", plait)
	t.Logf("%v\n%s", time.Since(start), out)
	for _, want := range []string{
		"f1 cut silently", "f1 healed", "f2 carrier pulled", "f2 plugged in", "agents killed", "agents restarted",
		"longest pause", "No connection broke", "exec a -- plait status", "curl -s", "ping 10.255.0.2", "tcpdump",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("escape sequences are written, and this is no terminal")
	}
	before, _, _ := strings.Cut(out, "The lab stays up")
	for _, line := range strings.Split(before, "\n") {
		if n := utf8.RuneCountInString(line); n > lineWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}

	// It stays up and works.
	works(t, "exec", "a", "--", "ping", "-q", "-c1", "-w30", "10.255.0.2")
	works(t, "exec", "a", "--", plait, "status")
	works(t, "exec", "b", "--", "curl", "-sf", "http://127.0.0.1:9555/metrics")
	works(t, "down")
}

func TestDemoCleansUpWhenInterrupted(t *testing.T) {
	ownLabs(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"signal", "pipe"} {
		cmd := exec.Command(self, "demo", "--keep", "--plait", builtPlait(t))
		cmd.Env = append(os.Environ(), programEnv+"=1")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var diag bytes.Buffer
		cmd.Stdout, cmd.Stderr = w, &diag
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		lines := bufio.NewScanner(r)
		for lines.Scan() && !strings.HasPrefix(lines.Text(), "1. ") {
		}
		if how == "signal" {
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		} else {
			r.Close()
		}
		_ = cmd.Wait()
		r.Close()
		if status := cmd.ProcessState.ExitCode(); status != 1 || !strings.Contains(diag.String(), "interrupted") {
			t.Errorf("%s: status %d: %s", how, status, diag.String())
		}
		if names, err := lab.List(); err != nil || len(names) != 0 {
			t.Errorf("%s: left behind: %v, %v", how, names, err)
		}
	}
}
