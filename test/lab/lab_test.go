// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plait-net/plait/test/lab"
)

func TestTraffic(t *testing.T) {
	eachForm(t, func(t *testing.T, l *lab.Lab) {
		a, b := l.Host("a"), l.Host("b")
		for _, f := range l.Fabrics {
			for i, to := range locators(b, f.Name) {
				reach(t, a, b, f.Name)
				output(t, a, "ping", "-q", "-c1", "-w30", "-I", locators(a, f.Name)[i].String(), to.String())
				iperf(t, a, b, to.String())
			}
		}
		const frame = 1500 + 14
		for _, f := range l.Fabrics {
			longest := counters(t, l, f.Name, "a").Longest
			if l.Form == lab.Virtual {
				if longest <= 2*frame {
					t.Errorf("longest frame into %s: %d bytes, want a super-packet", f.Name, longest)
				}
				continue
			}
			if longest != frame {
				t.Errorf("longest frame into %s: %d bytes, want %d", f.Name, longest, frame)
			}
			if l.FreeUplinks {
				continue
			}
			c, err := l.UplinkCounters(f.Name, "b")
			if err != nil {
				t.Fatal(err)
			}
			if c.Longest != frame {
				t.Errorf("longest frame out of %s: %d bytes, want %d", f.Name, c.Longest, frame)
			}
			if in := counters(t, l, f.Name, "a"); c.Packets < in.Packets/2 {
				t.Errorf("%d packets into %s, %d out of it", in.Packets, f.Name, c.Packets)
			}
		}
		if _, err := l.UplinkCounters("f1", "b"); (err == nil) != (l.Form == lab.Wire && !l.FreeUplinks) {
			t.Errorf("counters of an uplink: %v", err)
		}
	})
}

// iperf moves some megabytes from one host to another's address.
func iperf(t *testing.T, from, to *lab.Host, address string) {
	t.Helper()
	server := to.Command(t.Context(), "iperf3", "--server", "--one-off", "--bind", address)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		out, err := from.Command(t.Context(), "iperf3", "--client", address, "--bytes", "20M").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
}

// What leaves a free uplink's fabric must be packets too. The host's own programs see them after GRO,
// so they are captured where they leave.
func TestWireSegmentsAndChecksums(t *testing.T) {
	for _, test := range []struct {
		o       lab.Options
		correct bool
	}{
		{lab.Options{Form: lab.Wire, TxChecksum: true, FreeUplinks: true}, true},
		{lab.Options{Form: lab.Wire, TxChecksum: true}, true},
		{lab.Options{Form: lab.Wire, FreeUplinks: true}, false},
	} {
		l := up(t, test.o)
		a, b := l.Host("a"), l.Host("b")
		for _, at := range []struct {
			ns    lab.Namespace
			iface string
		}{{a.Namespace, "up1"}, {l.Fabric("f1").Namespace, "b"}} {
			for _, to := range locators(b, "f1") {
				text := capture(t, at.ns, at.iface, func() { iperf(t, a, b, to.String()) })
				var right, wrong, long int
				for line := range strings.Lines(text) {
					switch {
					case strings.Contains(line, "(correct)"):
						right++
					case strings.Contains(line, "(incorrect"):
						wrong++
					}
					var n int
					if i := strings.LastIndex(line, "length "); i >= 0 {
						if _, err := fmt.Sscanf(line[i:], "length %d", &n); err == nil && n > 1500 {
							long++
						}
					}
				}
				what := fmt.Sprintf("free %t, at %s towards %v", test.o.FreeUplinks, at.iface, to)
				if long > 0 {
					t.Errorf("%s: %d packets above the MTU", what, long)
				}
				if right+wrong < 1000 {
					t.Errorf("%s: %d packets captured", what, right+wrong)
				}
				if test.correct && wrong > 0 {
					t.Errorf("%s: %d wrong checksums, %d right", what, wrong, right)
				}
				// Without the option they are left to the receiver, or the option would be for nothing.
				if !test.correct && wrong == 0 {
					t.Errorf("%s: all %d checksums right", what, right)
				}
			}
		}
	}
}

// capture returns tcpdump's description of the first TCP packets out of an interface during traffic.
func capture(t *testing.T, ns lab.Namespace, iface string, traffic func()) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "pcap")
	dump := ns.Command(t.Context(), "tcpdump", "-Q", "out", "-ni", iface, "-c2000", "-w", file, "--", "tcp")
	stderr, err := dump.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	var said string
	for !strings.Contains(said, "listening on") {
		n, err := stderr.Read(buf)
		said += string(buf[:n])
		if err != nil {
			t.Fatalf("tcpdump: %v: %s", err, said)
		}
	}
	traffic()
	if err := dump.Wait(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "tcpdump", "-nvvr", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestTwoLabsSideBySide(t *testing.T) {
	first, second := up(t, lab.Options{}), up(t, lab.Options{})
	for _, l := range []*lab.Lab{first, second} {
		reach(t, l.Host("a"), l.Host("b"), "f1")
	}
	if _, err := first.Cut("f1", lab.Silent, "", ""); err != nil {
		t.Fatal(err)
	}
	reach(t, second.Host("a"), second.Host("b"), "f1")

	names, err := lab.List()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names, first.Name) || !slices.Contains(names, second.Name) {
		t.Errorf("labs %q, want %s and %s among them", names, first.Name, second.Name)
	}
	_, err = lab.Up(t.Context(), lab.Options{Name: second.Name})
	if !errors.Is(err, lab.ErrExists) {
		t.Errorf("a second lab of that name: %v, want %v", err, lab.ErrExists)
	}
	t.Setenv(lab.DirEnv, t.TempDir()) // where the name is free, but namespaces of that name are not
	_, err = lab.Up(t.Context(), lab.Options{Name: second.Name})
	if !errors.Is(err, lab.ErrExists) {
		t.Errorf("a second lab of that name elsewhere: %v, want %v", err, lab.ErrExists)
	}
	for range 2 {
		if err := first.Down(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := lab.Open(first.Name); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("opening a lab that is down: %v, want %v", err, lab.ErrNotFound)
	}
	reach(t, second.Host("a"), second.Host("b"), "f1")
}

func TestHostEnvironment(t *testing.T) {
	l := up(t, lab.Options{})
	for _, h := range l.Hosts {
		got := output(t, h, "sh", "-c", `echo $PLAIT_BPFFS $PLAIT_RUN_DIR $PLAITLAB_LAB $PLAITLAB_HOST
stat -fc %T $PLAIT_BPFFS; stat -c %a $PLAIT_RUN_DIR; cat /proc/sys/net/ipv4/tcp_congestion_control`)
		want := fmt.Sprintf("%s %s %s %s\nbpf_fs\n700\nreno\n", h.BPFFS, h.RunDir, l.Name, h.Name)
		if got != want {
			t.Errorf("host %s: %q, want %q", h.Name, got, want)
		}
	}
	if l.Host("a").BPFFS == l.Host("b").BPFFS {
		t.Error("hosts share a file system")
	}
	if err := os.WriteFile(filepath.Join(l.Host("a").RunDir, "file"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestOpenIsTheSameLab(t *testing.T) {
	l := up(t, lab.Options{Form: lab.Wire, Hosts: []string{"a", "b", "c"}, Fabrics: 3, Flat: true, MTU: 9000})
	o, err := lab.Open(l.Name)
	if err != nil {
		t.Fatal(err)
	}
	if o.Form != lab.Wire || !o.Flat || o.MTU != 9000 || len(o.Hosts) != 3 || len(o.Fabrics) != 3 {
		t.Errorf("opened %+v, want %+v", o, l)
	}
	for i := range l.Hosts {
		if x, y := l.Hosts[i], o.Hosts[i]; x.Name != y.Name || !slices.Equal(x.Uplinks, y.Uplinks) || x.Identity6 != y.Identity6 {
			t.Errorf("opened %+v, want %+v", y, x)
		}
	}
	reach(t, o.Host("a"), o.Host("c"), "f3")
	output(t, o.Host("a"), "ping", "-q", "-c1", "-w30", "-Mdo", "-s8000", o.Host("b").Uplinks[1].Addr6.String())
}

func TestDo(t *testing.T) {
	l := up(t, lab.Options{})
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var there string
	for range 100 {
		err = l.Host("a").Do(func() (err error) {
			there, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil || there == here {
			t.Fatalf("namespace %s, outside %s, error %v", there, here, err)
		}
	}
	want := errors.New("want")
	if err := l.Host("a").Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v, want that of the function", err)
	}
	if err := l.Host("a").Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ended its goroutine is no error")
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns == there {
			t.Errorf("thread %s stayed in the namespace", task)
		}
	}
}

func TestDownEndsProcesses(t *testing.T) {
	l := up(t, lab.Options{})
	polite := l.Host("a").Command(t.Context(), "sleep", "1000")
	stubborn := l.Host("b").Command(t.Context(), "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
	stopped := l.Fabric("f1").Command(t.Context(), "sh", "-c", "kill -STOP $$; sleep 1000")
	out, err := stubborn.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*exec.Cmd{polite, stubborn, stopped} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", polite.Process.Pid))
		if string(comm) != "sleep\n" {
			return fmt.Errorf("program %q: %w", comm, err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stopped.Process.Pid))
		if !strings.Contains(string(stat), ") T ") {
			return fmt.Errorf("not stopped: %q: %w", stat, err)
		}
		return nil
	})
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	for c, want := range map[*exec.Cmd]syscall.Signal{polite: syscall.SIGTERM, stubborn: syscall.SIGKILL, stopped: syscall.SIGTERM} {
		err := c.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != want {
			t.Errorf("%v ended with %v, want %v", c.Args, err, want)
		}
	}
}

func TestDownTwiceAtOnce(t *testing.T) {
	l := up(t, lab.Options{})
	o, err := lab.Open(l.Name)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	for _, x := range []*lab.Lab{l, o} {
		go func() { done <- x.Down() }()
	}
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(deadline):
			t.Fatal("two at once wait for each other")
		}
	}
}
