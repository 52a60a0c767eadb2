// SPDX-License-Identifier: Apache-2.0

// Command report reads the output of go test -json on standard input and prints what go test
// prints without -v: a line per package, and the output of the tests that failed. It adds which
// tests were skipped and why, and closes with how many passed, failed and were skipped. It exits
// with 1 if anything failed or nothing passed.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	r := newReporter(os.Stdout)
	err := r.copy(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	fmt.Println(r)
	if err != nil || r.failed > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

// event is a line of go test -json; see go doc test2json and go help buildjson.
type event struct {
	Action  string
	Package string
	Test    string // empty: about the package
	Output  string
}

// test is what is known of a test, or of a package, that has not finished.
type test struct {
	output   strings.Builder
	children int // subtests, or tests of the package, that have finished
	failures int // of those, failed
}

// reporter turns events into text and counts. A test that has subtests counts only if it fails by
// itself; a package that fails without a failed test, because it does not build, exits or times
// out, counts as one that failed.
type reporter struct {
	passed, failed, skipped int

	out     io.Writer
	tests   map[string]map[string]*test // by package and name, "" the package itself
	started map[string][]string         // the names in order
}

func newReporter(out io.Writer) *reporter {
	return &reporter{out: out, tests: map[string]map[string]*test{}, started: map[string][]string{}}
}

// String returns the closing line.
func (r *reporter) String() string {
	s := fmt.Sprintf("%d passed, %d failed", r.passed, r.failed)
	if r.skipped > 0 {
		s += fmt.Sprintf(", %d skipped", r.skipped)
	}
	return s
}

// copy reads events until the end of in. What is no event, such as a complaint of the go command,
// is copied as it is. It returns the error of reading or writing.
func (r *reporter) copy(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if err := r.line(line); err != nil {
				return fmt.Errorf("writing the report: %w", err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
	}
}

func (r *reporter) line(line []byte) error {
	var e event
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		_, err := r.out.Write(line)
		return err
	}
	switch e.Action {
	case "build-output":
		return r.print(e.Output)
	case "output":
		// "=== RUN" and the like say what runs, not how it went; PASS and FAIL alone close
		// the output of the test binary, go test's own line follows.
		if !strings.HasPrefix(e.Output, "=== ") && e.Output != "PASS\n" && e.Output != "FAIL\n" {
			r.test(e.Package, e.Test).output.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			return r.packageDone(e)
		}
		return r.testDone(e)
	}
	return nil
}

func (r *reporter) testDone(e event) error {
	t := r.test(e.Package, e.Test)
	delete(r.tests[e.Package], e.Test)
	parent := r.test(e.Package, e.Test[:max(strings.LastIndexByte(e.Test, '/'), 0)])
	parent.children++
	switch e.Action {
	case "pass":
		if t.children == 0 {
			r.passed++
		}
		return nil
	case "fail":
		parent.failures++
		if t.failures == 0 {
			r.failed++
		}
	case "skip":
		r.skipped++
	}
	return r.print(t.output.String())
}

func (r *reporter) packageDone(e event) error {
	t := r.test(e.Package, "")
	names := r.started[e.Package]
	tests := r.tests[e.Package]
	delete(r.tests, e.Package)
	delete(r.started, e.Package)

	text := t.output.String()
	if e.Action != "fail" {
		// Only the line that closes it. A package without tests needs none.
		for l := range strings.Lines(text) {
			if strings.HasPrefix(l, "ok ") {
				return r.print(l)
			}
		}
		return nil
	}
	if t.failures == 0 {
		r.failed++
	}
	for _, name := range names { // a panic or time limit leaves tests unfinished
		if u := tests[name]; u != nil && name != "" {
			if err := r.print(u.output.String()); err != nil {
				return err
			}
		}
	}
	return r.print(text)
}

// test returns the state of a test, which starts with its first event.
func (r *reporter) test(pkg, name string) *test {
	if r.tests[pkg] == nil {
		r.tests[pkg] = map[string]*test{}
	}
	t := r.tests[pkg][name]
	if t == nil {
		t = &test{}
		r.tests[pkg][name] = t
		r.started[pkg] = append(r.started[pkg], name)
	}
	return t
}

func (r *reporter) print(s string) error {
	_, err := io.WriteString(r.out, s)
	return err
}
