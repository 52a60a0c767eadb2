// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document is a YAML file while it is read: it collects problems and hands out values with their positions. The syntax
// tree is walked, not decoded into structs, since a decoder stops at the first problem.
type document struct {
	file     string
	problems Problems
	warnings Problems

	// used has every key the schema offered, without indices ("uplinks.weight"), and whether the file had it.
	used map[string]bool
}

// value is a node of the syntax tree. A zero node is a value that is missing or was refused already.
type value struct {
	node ast.Node
	Pos
}

func (d *document) problem(at Pos, right, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.file, Pos: at, What: fmt.Sprintf(format, args...), Right: right})
}

func (d *document) warning(at Pos, right, format string, args ...any) {
	d.warnings = append(d.warnings, Problem{File: d.file, Pos: at, What: fmt.Sprintf(format, args...), Right: right})
}

const (
	maxLine  = 4096 // bytes; bounds how deep a line can nest
	maxDepth = 16   // of brackets; the schema needs four
	maxKeys  = 100  // of one mapping; the schema needs eight
)

// open parses the text. ok is false if there is no mapping to walk; the reasons are among the problems.
func (d *document) open(text []byte) (root value, ok bool) {
	start := Pos{Line: 1, Column: 1}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if len(text) > MaxFileSize {
		d.problem(start, fmt.Sprintf("at most %d bytes are read", MaxFileSize), "the file is too long")
		return value{}, false
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if len(line) > maxLine {
			d.problem(Pos{Line: n, Column: maxLine}, "break it into several lines", "the line is longer than %d bytes", maxLine)
			return value{}, false
		}
		if i := badCharacter(line); i >= 0 {
			at := Pos{Line: n, Column: utf8.RuneCount(line[:i]) + 1}
			d.problem(at, "write plain UTF-8 text", "a byte or character that no YAML file may have")
			return value{}, false
		}
	}

	file, err := d.syntax(string(text))
	if err != nil {
		at := start
		what := err.Error()
		var e yaml.Error
		if errors.As(err, &e) {
			what = e.GetMessage()
			at = tokenPos(e.GetToken(), "")
		}
		d.problem(at, syntaxHint(text, at.Line), "not valid YAML: %s", what)
		return value{}, false
	}
	if file == nil {
		return value{}, false
	}

	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil {
			bodies = append(bodies, doc.Body)
		}
	}
	if len(bodies) == 0 {
		d.problem(start, "start from the reference file, packaging/plait.yaml", "the file is empty")
		return value{}, false
	}
	if len(bodies) > 1 {
		at := nodePos(bodies[1], "")
		d.problem(at, "remove the line --- and what follows it", "a second YAML document")
	}
	return value{node: bodies[0], Pos: nodePos(bodies[0], "")}, true
}

// syntax turns text into a tree. It returns nil and no error if it has reported a problem itself.
func (d *document) syntax(text string) (f *ast.File, err error) {
	// A panic of the parser must not take the agent's reload down.
	defer func() {
		if r := recover(); r != nil {
			f, err = nil, fmt.Errorf("the parser failed: %v", r)
		}
	}()
	tokens := lexer.Tokenize(text)
	if d.refuse(tokens) {
		return nil, nil
	}
	// Duplicate keys are reported by mapping, along with everything else.
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// refuse reports syntax that plait does not use, and what could take the parser too much stack (nesting) or time (its
// time for a mapping in lines is quadratic).
func (d *document) refuse(tokens token.Tokens) bool {
	before := len(d.problems)
	depth := 0
	var keys []int // of the mappings in lines that are open here, by column
	for _, tk := range tokens {
		what := ""
		if tk.Type == token.MappingValueType && tk.Prev != nil && depth == 0 {
			column := max(tk.Prev.Position.Column, 1)
			for len(keys) <= column {
				keys = append(keys, 0)
			}
			keys = keys[:column+1]
			if keys[column]++; keys[column] > maxKeys {
				d.problem(tokenPos(tk.Prev, ""), "start from the reference file, packaging/plait.yaml",
					"more than %d keys: this is no configuration", maxKeys)
				return true
			}
		}
		switch tk.Type {
		case token.AnchorType:
			what = "anchors (&) are not used here"
		case token.AliasType:
			what = "aliases (*) are not used here"
		case token.TagType:
			what = "tags (!) are not used here"
		case token.MergeKeyType:
			what = "merge keys (<<) are not used here"
		case token.DirectiveType:
			what = "directives (%) are not used here"
		case token.MappingKeyType:
			what = "complex keys (?) are not used here"
		case token.SequenceEntryType:
			keys = keys[:min(len(keys), max(tk.Position.Column, 0)+1)]
		case token.SequenceStartType, token.MappingStartType:
			if depth++; depth == maxDepth+1 {
				what = "brackets are nested too deep"
			}
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		if what != "" {
			d.problem(tokenPos(tk, ""), "write the value out, or put it in quotes", "%s", what)
		}
	}
	return len(d.problems) > before
}

// badCharacter returns the index of the first byte of line that is not UTF-8 or is a control character, or -1.
func badCharacter(line []byte) int {
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRune(line[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r >= 0x7f && r < 0xa0 {
			return i
		}
		i += n
	}
	return -1
}

// syntaxHint says what is the matter more often than not.
func syntaxHint(text []byte, line int) string {
	n := 0
	for l := range bytes.Lines(text) {
		if n++; n != line {
			continue
		}
		if bytes.Contains(l, []byte("::")) {
			return `put IPv6 addresses in quotes, for example "fd00::1"`
		}
		if bytes.ContainsRune(l, '\t') {
			return "indent with spaces, not with tabs"
		}
	}
	return "check the indentation, the brackets and the quotes"
}

func tokenPos(tk *token.Token, field string) Pos {
	if tk == nil || tk.Position == nil {
		return Pos{Line: 1, Column: 1, Field: field}
	}
	return Pos{Line: max(tk.Position.Line, 1), Column: max(tk.Position.Column, 1), Field: field}
}

// nodePos is where a node begins. A block mapping's own token is the colon after its first key.
func nodePos(n ast.Node, field string) Pos {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return nodePos(n.Values[0].Key, field)
		}
	case *ast.MappingValueNode:
		if !n.IsFlowStyle {
			return nodePos(n.Key, field)
		}
	}
	return tokenPos(n.GetToken(), field)
}

// field is a key that a mapping may have. read is called with its value, in the order of the file.
type field struct {
	name string
	read func(value)
}

// mapping reads a mapping that may have the given fields and no others. It returns the names of those it has, and of
// those that an unknown key was probably meant to be.
func (d *document) mapping(v value, example string, fields ...field) map[string]bool {
	has := make(map[string]bool)
	section := v.Field
	prefix := ""
	if section != "" {
		prefix = section + "."
	}
	for _, f := range fields {
		if k := plainField(prefix + f.name); !d.used[k] {
			d.used[k] = false
		}
	}
	var entries []*ast.MappingValueNode
	switch n := v.node.(type) {
	case *ast.MappingNode:
		entries = n.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{n}
	default:
		d.problem(v.Pos, "write keys and values, for example "+example, "%s where keys are expected", kind(v.node))
		// Do not ask for required keys as well.
		for _, f := range fields {
			has[f.name] = true
		}
		return has
	}
	lines := make(map[string]int)
	for _, e := range entries {
		name, ok := text(e.Key)
		if !ok {
			d.problem(nodePos(e.Key, section), "write a plain key", "%s where a key is expected", kind(e.Key))
			continue
		}
		at := nodePos(e.Key, prefix+name)
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			at.Field = section
			near := nearest(name, fields)
			right := "known here: " + names(fields)
			if near != "" {
				right = "did you mean " + near + "?"
				has[near] = true
			}
			d.problem(at, right, "unknown key %q", name)
			continue
		}
		if line, dup := lines[name]; dup {
			d.problem(at, "keep one of them", "the key is given twice, first in line %d", line)
			continue
		}
		lines[name] = at.Line
		has[name] = true
		d.used[plainField(at.Field)] = true
		if _, empty := e.Value.(*ast.NullNode); empty || e.Value == nil {
			d.problem(at, "give it a value or remove the key", "the key has no value")
			continue
		}
		fields[i].read(value{node: e.Value, Pos: nodePos(e.Value, at.Field)})
	}
	return has
}

// list reads a sequence, calling read for each element. A single value counts as a list of one.
func (d *document) list(v value, example string, read func(value)) {
	switch n := v.node.(type) {
	case *ast.SequenceNode:
		for i, e := range n.Values {
			at := nodePos(e, fmt.Sprintf("%s[%d]", v.Field, i))
			if _, empty := e.(*ast.NullNode); empty {
				d.problem(at, "give it a value or remove it", "the list entry is empty")
				continue
			}
			read(value{node: e, Pos: at})
		}
	case *ast.MappingNode, *ast.MappingValueNode:
		d.problem(v.Pos, "write a list, for example "+example, "%s where a list is expected", kind(v.node))
	default:
		read(v)
	}
}

func emptyList(v value) bool {
	n, ok := v.node.(*ast.SequenceNode)
	return ok && len(n.Values) == 0
}

// text reads a scalar as it is written.
func (d *document) text(v value, example string) (string, bool) {
	s, ok := text(v.node)
	if !ok {
		right := "write one value, for example " + example
		d.problem(v.Pos, right, "%s where a single value is expected", kind(v.node))
	}
	return s, ok
}

// number reads a decimal number in [low, high].
func (d *document) number(v value, low, high int) (int, bool) {
	right := fmt.Sprintf("write a whole number from %d to %d", low, high)
	s, ok := text(v.node)
	if !ok {
		d.problem(v.Pos, right, "%s where a number is expected", kind(v.node))
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if errors.Is(err, strconv.ErrRange) {
		n, err = math.MaxInt, nil
		if s[0] == '-' {
			n = math.MinInt
		}
	}
	// A leading zero means octal to some and nothing to others.
	if err != nil || s[0] == '+' || len(s) > 1 && s[0] == '0' {
		d.problem(v.Pos, right, "%q is not a whole number", s)
		return 0, false
	}
	if n < low || n > high {
		d.problem(v.Pos, right, "%s is out of range", s)
		return 0, false
	}
	return n, true
}

// duration reads a duration with a unit in [low, high].
func (d *document) duration(v value, low, high time.Duration) (time.Duration, bool) {
	right := fmt.Sprintf("write a duration from %s to %s", short(low), short(high))
	s, ok := text(v.node)
	if !ok {
		d.problem(v.Pos, right, "%s where a duration is expected", kind(v.node))
		return 0, false
	}
	t, err := time.ParseDuration(s)
	if _, e := strconv.ParseFloat(s, 64); err != nil && e == nil {
		d.problem(v.Pos, right, "%s has no unit", s)
		return 0, false
	}
	if err != nil {
		d.problem(v.Pos, right, "%q is not a duration", s)
		return 0, false
	}
	if t < low || t > high {
		d.problem(v.Pos, right, "%s is out of range", s)
		return 0, false
	}
	return t, true
}

// short writes a duration without trailing zero units: 10m, not 10m0s.
func short(t time.Duration) string {
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	return s
}

// text returns a scalar as it is written, without quotes. ok is false for anything else, null included.
func text(n ast.Node) (s string, ok bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// kind names a node for messages.
func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case nil, *ast.NullNode:
		return "nothing"
	}
	if s, ok := text(n); ok {
		return strconv.Quote(s)
	}
	return "unexpected YAML"
}

// plainField removes the indices of a field's path.
func plainField(s string) string {
	for {
		i := strings.IndexByte(s, '[')
		if i < 0 {
			return s
		}
		j := strings.IndexByte(s[i:], ']')
		if j < 0 {
			return s
		}
		s = s[:i] + s[i+j+1:]
	}
}

func names(fields []field) string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = f.name
	}
	return strings.Join(out, ", ")
}

// nearest returns the field that name is probably a misspelling of, or "".
func nearest(name string, fields []field) string {
	best, least := "", 3
	if len(name) > 2*maxName {
		return ""
	}
	for _, f := range fields {
		// A third of the letters may be wrong, two at most.
		if n := distance(strings.ToLower(name), f.name); n < least && 3*n <= max(len(f.name), 3) {
			best, least = f.name, n
		}
	}
	return best
}

// distance is how many bytes must be inserted, removed, replaced or swapped with their neighbour to get from a to b (the
// optimal string alignment distance).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			n := min(replace, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, rows[i-2][j-2]+1)
			}
			rows[i][j] = n
		}
	}
	return rows[len(a)][len(b)]
}
