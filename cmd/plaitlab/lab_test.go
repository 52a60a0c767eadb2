// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plait-net/plait/test/lab"
)

// programEnv makes the test binary plaitlab itself, so that exec can replace its process and impair
// can start it again.
const programEnv = "PLAITLAB_TEST_PROGRAM"

func init() {
	if os.Getenv(programEnv) != "" {
		main() // which exits
	}
}

// plaitlab runs the program and returns what it writes and its exit status.
func plaitlab(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...) // not bound to the test's context: cleaning up comes after its end
	cmd.Env = append(os.Environ(), programEnv+"=1")
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), diag.String(), cmd.ProcessState.ExitCode()
}

// works runs the program, which must succeed, and returns its standard output.
func works(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, status := plaitlab(t, args...)
	if status != 0 {
		t.Fatalf("plaitlab %s: status %d: %s", strings.Join(args, " "), status, stderr)
	}
	return stdout
}

// fails runs the program, which must fail and say why, and with that not write any data.
func fails(t *testing.T, why string, args ...string) {
	t.Helper()
	stdout, stderr, status := plaitlab(t, args...)
	if status != 1 || !strings.Contains(stderr, why) || stdout != "" {
		t.Errorf("plaitlab %s: status %d, output %q, error %q, want status 1 and %q", strings.Join(args, " "), status, stdout, stderr, why)
	}
}

// ownLabs gives the test a directory of labs to itself, and removes what is left in it.
func ownLabs(t *testing.T) {
	t.Helper()
	t.Setenv(lab.DirEnv, t.TempDir())
	t.Setenv(lab.NameEnv, "")
	t.Cleanup(func() { works(t, "down", "--all") })
}

func TestLabCommands(t *testing.T) {
	ownLabs(t)
	fails(t, "there is no lab", "exec", "a", "--", "true")
	if out := works(t, "down"); out != "" {
		t.Errorf("down without a lab: %q", out)
	}
	works(t, "down", "--lab", "nosuchlab")

	first := strings.TrimSpace(works(t, "up", "--wire", "--tx-checksum", "--hosts", "a,b,c", "--fabrics", "3"))
	l, err := lab.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	if l.Form != lab.Wire || !l.TxChecksum || len(l.Hosts) != 3 || len(l.Fabrics) != 3 {
		t.Errorf("lab %+v is not what was asked for", l)
	}

	// The only lab needs no name.
	out := works(t, "exec", "b", "--", "sh", "-c", "echo $PLAITLAB_LAB $PLAITLAB_HOST $PLAIT_BPFFS; ip -o -4 address show up3")
	if want := first + " b " + l.Host("b").BPFFS + "\n"; !strings.HasPrefix(out, want) || !strings.Contains(out, "10.3.2.2/24") {
		t.Errorf("exec in host b: %q", out)
	}
	if out := works(t, "exec", "f2", "ip", "-o", "-4", "address", "show", "c"); !strings.Contains(out, "10.2.3.1/24") {
		t.Errorf("exec in fabric f2: %q", out)
	}
	if _, _, status := plaitlab(t, "exec", "a", "--", "sh", "-c", "exit 42"); status != 42 {
		t.Errorf("exec: status %d, want that of the program", status)
	}
	fails(t, "neither host nor fabric", "exec", "d", "--", "true")
	fails(t, "no command", "exec", "a", "--")
	works(t, "exec", "a", "--", "ping", "-q", "-c1", "-w30", "fd00:3:3::2")

	second := strings.TrimSpace(works(t, "up", "--flat", "--virtual"))
	fails(t, "several labs", "exec", "a", "--", "true")
	works(t, "exec", "--lab", second, "a", "--", "ping", "-q", "-c1", "-w30", "10.2.0.2")
	fails(t, "exists", "up", "--name", second)
	fails(t, "no such lab", "cut", "--lab", "nosuchlab", "f1")

	var listed []*lab.Lab
	if err := json.Unmarshal([]byte(works(t, "list", "-o", "json")), &listed); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range listed {
		names = append(names, l.Name)
	}
	want := []string{first, second}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
	if table := works(t, "list"); !strings.Contains(table, first) || !strings.Contains(table, "wire") {
		t.Errorf("list: %s", table)
	}
	fails(t, "want table or json", "list", "-o", "xml")

	works(t, "down", "--lab", first)
	works(t, "down")
	if out := works(t, "list", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("after down: %s", out)
	}
}

func TestFaultCommands(t *testing.T) {
	ownLabs(t)
	name := strings.TrimSpace(works(t, "up"))
	ping := func(address string) bool {
		t.Helper()
		_, _, status := plaitlab(t, "exec", "a", "--", "ping", "-q", "-c2", "-i0.1", "-W1", address)
		return status == 0
	}
	answers := func(address string) {
		t.Helper()
		works(t, "exec", "a", "--", "ping", "-q", "-c1", "-w30", "-i0.2", address)
	}
	const f1, f2 = "10.1.2.2", "fd00:2:2::2"
	for _, flags := range [][]string{
		nil, {"--silent"}, {"--carrier"}, {"--carrier", "--host", "b"}, {"--oneway", "a-to-b"}, {"--oneway", "b-to-a"},
	} {
		answers(f1)
		before := lab.Monotonic()
		at, err := strconv.ParseInt(strings.TrimSpace(works(t, append([]string{"cut", "f1"}, flags...)...)), 10, 64)
		if err != nil || at < int64(before) || at > int64(lab.Monotonic()) {
			t.Errorf("cut %q printed %d, %v, want the time", flags, at, err)
		}
		if ping(f1) {
			t.Errorf("cut %q: f1 still works", flags)
		}
		answers(f2)
		works(t, "heal", "f1")
		answers(f1)
	}
	fails(t, "--host belongs to", "cut", "f1", "--host", "a")
	fails(t, "FROM-to-TO", "cut", "f1", "--oneway", "ab")
	fails(t, "none of the others can be", "cut", "f1", "--silent", "--carrier")
	fails(t, "has no fabric", "cut", "f3")

	works(t, "impair", "f2", "--loss", "1", "--rate", "500mbit", "--queue", "20ms")
	if ping(f2) {
		t.Error("nothing is lost")
	}
	if out := works(t, "exec", "f2", "--", "tc", "qdisc", "show", "dev", "a"); !strings.Contains(out, "rate 500Mbit") {
		t.Errorf("no limit: %s", out)
	}
	works(t, "heal", "f2", "--keep-impairments")
	if ping(f2) {
		t.Error("healing the cuts only took the loss away")
	}
	works(t, "heal", "f2")
	answers(f2)
	if out := works(t, "exec", "f2", "--", "tc", "qdisc", "show", "dev", "a"); strings.Contains(out, "tbf") {
		t.Errorf("the limit stayed: %s", out)
	}

	// The relay outlives the command that started it, and not the lab.
	works(t, "impair", "f2", "--delay", "30ms")
	l, err := lab.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(l.Dir() + "/relay.f2")
	if err != nil {
		t.Fatal(err)
	}
	relay := "/proc/" + string(text)
	if _, err := os.Stat(relay); err != nil {
		t.Errorf("relay: %v", err)
	}
	out := works(t, "exec", "a", "--", "ping", "-c1", "-w30", f2)
	var ms float64
	if i := strings.Index(out, "time="); i < 0 {
		t.Errorf("ping: %s", out)
	} else if _, err := fmt.Sscanf(out[i:], "time=%f", &ms); err != nil || ms < 60 {
		t.Errorf("round trip %v ms, %v, want at least 60", ms, err)
	}
	fails(t, "loss", "impair", "f2", "--loss", "2")
	works(t, "down")
	// It has ended by now, but whoever adopted it may take a while to notice.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(relay); errors.Is(err, os.ErrNotExist) {
			break
		} else if time.Now().After(end) {
			t.Fatalf("relay after down: %v", err)
		}
	}
}

func TestHelpNamesEveryCommand(t *testing.T) {
	out := works(t, "--help")
	for _, c := range []string{"up", "down", "list", "exec", "cut", "heal", "impair"} {
		if !strings.Contains(out, "\n  "+c+" ") {
			t.Errorf("--help does not name %s:\n%s", c, out)
		}
		if help := works(t, c, "--help"); !strings.Contains(help, "Examples:\n  plaitlab "+c) {
			t.Errorf("%s --help shows no example:\n%s", c, help)
		}
	}
}
