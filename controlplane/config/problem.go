// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in the file. Lines and columns count from 1, columns in characters.
type Pos struct {
	Line, Column int

	// Field is the path of keys to the place, for example "uplinks[0].weight". Indices count from 0. It is empty for
	// the file as a whole.
	Field string
}

// Problem is one thing that is wrong with a file. It is an error.
type Problem struct { //nolint:errname // it is a value first, and what the documentation calls it
	File string
	Pos
	What  string // what is wrong
	Right string // what would be right
}

// Error returns "file:line:column: field: what; right".
func (p Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.What)
	if p.Right != "" {
		b.WriteString("; " + p.Right)
	}
	return b.String()
}

// Problems are all the problems of a file, in its order. They are an error if there is at least one.
type Problems []Problem //nolint:errname // as Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns each problem as an error of its own.
func (p Problems) Unwrap() []error {
	out := make([]error, len(p))
	for i := range p {
		out[i] = p[i]
	}
	return out
}

// Sort puts the problems into the order of the file.
func (p Problems) Sort() {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// Problem makes a problem at a place of c's file, for checks that need more than the file.
func (c *Config) Problem(at Pos, what, right string) Problem {
	return Problem{File: c.File, Pos: at, What: what, Right: right}
}
