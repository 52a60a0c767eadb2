// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Columns of a timeline. With the figure behind it a line has one column less than the narrowest terminal usually has: some
// wrap a line that is full.
const (
	laneName   = 10
	laneFigure = 8
	lineWidth  = 79
	laneCells  = lineWidth - laneName - 1 - laneFigure
)

// style is how a piece of text looks on a terminal that has colours. The zero value is plain.
type style string

// ANSI escape sequences (ECMA-48, SGR).
const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// span is a piece of text in one style.
type span struct {
	text  string
	style style
}

// glyphs are the characters that a timeline is drawn with.
type glyphs struct {
	levels  []string // from little to full
	nothing string   // a path that could carry traffic and carries none; a pause too short to tell
	down    string   // a path that is given up
	waiting string   // a path that answers again, in its hold-down
	mark    string   // where something happens
	running string   // an agent that runs
	dead    string   // one that does not
	ruler   string
	tree    [4]string // top left, top right, bottom left, bottom right
	line    string
}

var (
	unicodeGlyphs = glyphs{
		levels:  []string{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"},
		nothing: "·", down: "×", waiting: "~", mark: "▼", running: "━", dead: " ", ruler: "─",
		tree: [4]string{"┌", "┐", "└", "┘"}, line: "─",
	}
	asciiGlyphs = glyphs{
		levels:  []string{".", ":", "-", "=", "+", "*", "%", "#"},
		nothing: " ", down: "x", waiting: "~", mark: "v", running: "-", dead: " ", ruler: "-",
		tree: [4]string{"/", "\\", "\\", "/"}, line: "-",
	}
)

// level is the glyph for x of full.
func (g glyphs) level(x, full float64) string {
	if x <= 0 || full <= 0 {
		return g.nothing
	}
	n := int(math.Round(x / full * float64(len(g.levels))))
	if n == 0 {
		return g.nothing
	}
	return g.levels[min(n, len(g.levels))-1]
}

// pause is the character for a gap: its milliseconds from one on, rounded, a plus sign for ten and more.
func (g glyphs) pause(d time.Duration) span {
	ms := math.Round(d.Seconds() * 1000)
	switch {
	case d < time.Millisecond:
		return span{g.nothing, dim}
	case ms < 10:
		return span{fmt.Sprintf("%.0f", ms), yellow}
	}
	return span{"+", red}
}

// screen is what the demo writes to.
type screen struct {
	out    io.Writer
	glyphs glyphs
	colour bool
	live   bool // a timeline is redrawn in place as it grows; else it is written once it is full
	drawn  int  // lines of the timeline that stands above the cursor
	err    error
}

// newScreen returns a screen that suits out: colours and redrawing only on a terminal, and neither block characters where
// the environment says that they cannot be shown, nor colours where it asks for none (no-color.org).
func newScreen(out io.Writer, ascii bool, getenv func(string) string) *screen {
	s := &screen{out: out, glyphs: unicodeGlyphs}
	term := getenv("TERM")
	if ascii || term == "linux" || notUTF8(getenv) {
		s.glyphs = asciiGlyphs
	}
	f, ok := out.(*os.File)
	if !ok || term == "dumb" || term == "" {
		return s
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return s
	}
	s.colour = getenv("NO_COLOR") == ""
	// A terminal of size 0 does not know its own; a line that wraps, or has scrolled out, cannot be redrawn.
	s.live = (size.Col == 0 || size.Col > lineWidth) && (size.Row == 0 || size.Row > timelineLines)
	return s
}

// notUTF8 says whether the environment names a locale (POSIX, XBD 8.2) of another character set. One that names none proves
// nothing: sudo and containers lose it.
func notUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(name); v != "" {
			_, charset, ok := strings.Cut(v, ".")
			charset, _, _ = strings.Cut(charset, "@")
			return ok && !strings.EqualFold(strings.ReplaceAll(charset, "-", ""), "utf8")
		}
	}
	return false
}

// join renders spans as one line without trailing blanks.
func (s *screen) join(spans ...span) string {
	var b strings.Builder
	for len(spans) > 0 && strings.TrimSpace(spans[len(spans)-1].text) == "" {
		spans = spans[:len(spans)-1]
	}
	last := plain
	set := func(to style) {
		if s.colour && to != last {
			if last != plain {
				b.WriteString("\x1b[0m")
			}
			if to != plain {
				b.WriteString("\x1b[" + string(to) + "m")
			}
			last = to
		}
	}
	for i, sp := range spans {
		text := sp.text
		if i == len(spans)-1 {
			text = strings.TrimRight(text, " ")
		}
		set(sp.style)
		b.WriteString(text)
	}
	set(plain)
	return b.String()
}

func (s *screen) write(text string) {
	if s.err == nil {
		_, s.err = io.WriteString(s.out, text)
	}
}

// say writes one line.
func (s *screen) say(spans ...span) { s.write(s.join(spans...) + "\n") }

// sayf writes one plain line.
func (s *screen) sayf(format string, args ...any) { s.say(span{fmt.Sprintf(format, args...), plain}) }

// pad fills text up to n columns: on the right, or on the left if n is negative.
func pad(text string, n int) string {
	have := utf8.RuneCountInString(text)
	if n < 0 {
		return strings.Repeat(" ", max(0, -n-have)) + text
	}
	return text + strings.Repeat(" ", max(0, n-have))
}

// lane is one line of a timeline.
type lane struct {
	name   string
	cells  []span // of one column each
	figure string // what stands behind it
}

// mark is where something happened in a timeline.
type mark struct {
	cell int
	text string
}

// timeline is what happened to the streams over a few seconds, one column for each tenth of a second.
type timeline struct {
	title string
	marks []mark
	lanes []*lane
	close *span // said about all of it, once it is over
}

// timelineLines is how many lines a timeline has at most: blank, title, marks, nine lanes, ruler, close.
const timelineLines = 14

// head returns the lines that are known when a timeline begins.
func (t *timeline) head(s *screen) []string {
	return []string{"", s.join(span{t.title, bold})}
}

// body returns the other lines.
func (t *timeline) body(s *screen) []string {
	marks := []span{{strings.Repeat(" ", laneName), plain}}
	at := 0
	for _, m := range t.marks {
		text := s.glyphs.mark + " " + m.text
		marks = append(marks, span{strings.Repeat(" ", max(0, m.cell-at)), plain}, span{text, bold})
		at = max(at, m.cell) + utf8.RuneCountInString(text)
	}
	lines := []string{s.join(marks...)}
	for _, l := range t.lanes {
		spans := append([]span{{pad(l.name, laneName), plain}}, l.cells...)
		if l.figure != "" {
			spans = append(spans,
				span{strings.Repeat(" ", max(0, laneCells-len(l.cells))+1), plain}, span{pad(l.figure, -laneFigure), plain})
		}
		lines = append(lines, s.join(spans...))
	}
	var ruler strings.Builder
	for c := 0; c < laneCells; c += 10 {
		ruler.WriteString(pad(fmt.Sprintf("%d s", c/10), min(10, laneCells-c)))
	}
	lines = append(lines, s.join(span{strings.Repeat(" ", laneName), plain}, span{ruler.String(), dim}))
	if t.close != nil {
		lines = append(lines, s.join(span{strings.Repeat(" ", laneName), plain}, *t.close))
	}
	return lines
}

// begin shows a timeline that is about to grow.
func (s *screen) begin(t *timeline) {
	s.drawn = 0
	s.write(strings.Join(t.head(s), "\n") + "\n")
	s.grow(t)
}

// grow shows what has been added to a timeline.
func (s *screen) grow(t *timeline) {
	if s.live {
		s.redraw(t)
	}
}

// end shows a timeline that is complete.
func (s *screen) end(t *timeline) {
	s.redraw(t)
	s.drawn = 0
}

func (s *screen) redraw(t *timeline) {
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", s.drawn)
	}
	lines := t.body(s)
	for _, l := range lines {
		b.WriteString(l)
		if s.live {
			b.WriteString("\x1b[K")
		}
		b.WriteString("\n")
	}
	s.drawn = len(lines)
	s.write(b.String())
}

// column is one of a table; width is negative to align right.
type column struct {
	heading string
	width   int
}

// table writes rows under headings.
func (s *screen) table(columns []column, rows [][]span) {
	line := func(cell func(i int) span) {
		var spans []span
		for i, c := range columns {
			sp := cell(i)
			sp.text = pad(sp.text, c.width)
			if i > 0 {
				sp.text = " " + sp.text
			}
			spans = append(spans, sp)
		}
		s.say(spans...)
	}
	width := 0
	for _, c := range columns {
		width += max(c.width, -c.width) + 1
	}
	line(func(i int) span { return span{columns[i].heading, bold} })
	s.say(span{strings.Repeat(s.glyphs.ruler, width-1), dim})
	for _, r := range rows {
		line(func(i int) span { return r[i] })
	}
}

// grouped writes n with commas between thousands.
func grouped(n int64) string {
	if n < 0 {
		return "-" + grouped(-n)
	}
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}

// milliseconds writes a gap for a table.
func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) }
