// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReport runs the real go command over packages that pass, fail in every way, and are skipped.
func TestReport(t *testing.T) {
	files := map[string]string{
		"go.mod":         "module example\n\ngo 1.24\n",
		"good/x_test.go": "package good\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Log(\"quiet\"); t.Run(\"x\", func(*testing.T) {}); t.Run(\"y/z\", func(*testing.T) {}) }\nfunc TestB(t *testing.T) { print(\"\\\"Action\\\":\\\"fail\\\"\") }\n",
		"skip/x_test.go": "package skip\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Skip(\"no such device\") }\n",
		"bad/x_test.go":  "package bad\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"good\", func(*testing.T) {}); t.Run(\"bad\", func(t *testing.T) { t.Error(\"wrong byte\") }) }\n",
		"exit/x_test.go": "package exit\nimport (\"os\"; \"testing\")\nfunc TestMain(m *testing.M) { m.Run(); println(\"left a link\"); os.Exit(3) }\nfunc TestA(t *testing.T) {}\n",
		"boom/x_test.go": "package boom\nimport \"testing\"\nfunc TestA(t *testing.T) { panic(\"nil peer\") }\n",
		"syn/x_test.go":  "package syn\nimport \"testing\"\nfunc TestA(t *testing.T) { undefined1() }\n",
		"hang/x_test.go": "package hang\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Log(\"waiting for b\"); select {} }\n",
		"none/x.go":      "package none\n",
	}
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	tests := []struct {
		pkg     string
		closing string
		want    []string // regular expressions
		not     []string
	}{
		{"good", "3 passed, 0 failed", []string{`(?m)^ok +\texample/good\t`}, []string{"quiet", "=== RUN", "(?m)^PASS"}},
		{"skip", "0 passed, 0 failed, 1 skipped", []string{"SKIP: TestA", "no such device", `(?m)^ok `}, nil},
		{"bad", "1 passed, 1 failed", []string{"wrong byte", "FAIL: TestA/bad", `(?m)^FAIL\texample/bad`}, nil},
		{"exit", "1 passed, 1 failed", []string{"left a link", `(?m)^FAIL\texample/exit`}, nil},
		{"boom", "0 passed, 1 failed", []string{"panic: nil peer", `(?m)^FAIL\texample/boom`}, nil},
		{"syn", "0 passed, 1 failed", []string{"undefined: undefined1", `(?m)^FAIL\texample/syn \[build failed\]`}, nil},
		{"hang", "0 passed, 1 failed", []string{"waiting for b", "test timed out", `(?m)^FAIL\texample/hang`}, nil},
		{"none", "0 passed, 0 failed", nil, []string{"."}},
		{"nowhere", "0 passed, 1 failed", []string{"nowhere"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.pkg, func(t *testing.T) {
			timeout := "10m"
			if tt.pkg == "hang" {
				timeout = "1s"
			}
			cmd := exec.Command("go", "test", "-json", "-timeout", timeout, "./"+tt.pkg)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
			events, _ := cmd.CombinedOutput() // fails where the tests do
			var out strings.Builder
			r := newReporter(&out)
			if err := r.copy(strings.NewReader(string(events))); err != nil {
				t.Fatal(err)
			}
			if got := r.String(); got != tt.closing {
				t.Errorf("closing line: %q, want %q\n%s\n%s", got, tt.closing, events, out.String())
			}
			for _, want := range tt.want {
				if !regexp.MustCompile(want).MatchString(out.String()) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
			for _, not := range tt.not {
				if regexp.MustCompile(not).MatchString(out.String()) {
					t.Errorf("%q in\n%s", not, out.String())
				}
			}
		})
	}
}
