// SPDX-License-Identifier: Apache-2.0

package cost

import "testing"

// TestRun: every program does its work in every run. How long it takes is not for a test to say.
func TestRun(t *testing.T) {
	n := 0
	if err := Run(t.Context(), 3, 1, func(r Result) {
		n++
		if r.Name == "" || r.Gross <= 0 || r.Empty <= 0 || r.Net != r.Gross-r.Empty {
			t.Errorf("%+v", r)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(cases()); n != want {
		t.Errorf("%d results, want %d", n, want)
	}
}
