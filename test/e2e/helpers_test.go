// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
	"github.com/plait-net/plait/test/traffic"
)

// deadline is how long a test waits for a state before it gives up.
const deadline = 30 * time.Second

// plait is the program under test: a copy of this run's own, so that a build meanwhile is none of our
// business and any user may execute it.
var plait string

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("end-to-end tests make network namespaces: run them as root")
	}
	source := os.Getenv("PLAIT_BIN")
	if source == "" {
		source = filepath.Join("..", "..", "bin", "plait")
	}
	program, err := os.ReadFile(source)
	if err != nil {
		return 1, fmt.Errorf("%w: run make build, or name the program with PLAIT_BIN", err)
	}
	dir, err := os.MkdirTemp("", "plait-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 1, err
	}
	plait = filepath.Join(dir, "plait")
	if err := os.WriteFile(plait, program, 0o755); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// families are both address families, to run a test in each.
var families = []int{4, 6}

// eventually waits until state returns nil.
func eventually(t *testing.T, state func() error) {
	t.Helper()
	end := time.Now().Add(deadline)
	for {
		err := state()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %v", deadline, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// node is a host of a lab with plait on it.
type node struct {
	*lab.Host
	config string
	agent  *process // the newest
	agents int      // how many there were
}

// pair is a lab with the two hosts that most tests are about.
type pair struct {
	*lab.Lab
	a, b *node
}

// newPair builds a lab and writes configurations, which the functions may change. Nothing runs yet.
func newPair(t *testing.T, o lab.Options, change ...func(*lab.Config)) *pair {
	t.Helper()
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	p := &pair{Lab: l, a: &node{Host: l.Host("a")}, b: &node{Host: l.Host("b")}}
	for _, n := range p.nodes() {
		n.configure(t, change...)
	}
	return p
}

// upPair is newPair with both agents running and all paths up.
func upPair(t *testing.T, o lab.Options, change ...func(*lab.Config)) *pair {
	t.Helper()
	p := newPair(t, o, change...)
	p.a.run(t)
	p.b.run(t)
	p.waitUp(t)
	return p
}

func (p *pair) nodes() []*node { return []*node{p.a, p.b} }

// waitUp waits until both hosts say that all is well, with every path up.
func (p *pair) waitUp(t *testing.T) {
	t.Helper()
	for _, n := range p.nodes() {
		n.waitFor(t, func(s *status.Status) error { return allUp(s, len(n.Uplinks)) })
	}
}

// allUp returns nil if the host has n paths up in each family to each peer, and no others.
func allUp(s *status.Status, n int) error {
	if s.Headline.State != status.OK {
		return errors.New(s.Headline.Text)
	}
	for _, p := range s.Peers {
		if len(p.Paths) != n {
			return fmt.Errorf("%d paths to %s over IPv%d, want %d", len(p.Paths), p.Name, p.Family, n)
		}
		for _, path := range p.Paths {
			if path.State != status.PathUp || !path.Fresh || !path.Up {
				return fmt.Errorf("path %s is %s", path.String(), path.State)
			}
		}
	}
	return nil
}

// configure writes the host's configuration.
func (n *node) configure(t *testing.T, change ...func(*lab.Config)) {
	t.Helper()
	var err error
	if n.config, err = n.WriteConfig(change...); err != nil {
		t.Fatal(err)
	}
}

// identity is the host's of a family.
func (n *node) identity(family int) netip.Addr {
	if family == 6 {
		return n.Identity6
	}
	return n.Identity4
}

// locator is the host's on a fabric.
func (n *node) locator(fabric string, family int) netip.Addr {
	u := n.Uplink(fabric)
	if family == 6 {
		return u.Addr6
	}
	return u.Addr4
}

// uplinks are the names of the host's uplinks.
func (n *node) uplinks() (names []string) {
	for _, u := range n.Uplinks {
		names = append(names, u.Name)
	}
	return names
}

// run starts an agent. It is ended with the test.
func (n *node) run(t *testing.T) {
	t.Helper()
	n.agents++
	n.agent = start(t, fmt.Sprintf("agent %d of host %s", n.agents, n.Name), n.Command(t.Context(), plait, "run", "--config", n.config))
}

// kill ends the agent with SIGKILL.
func (n *node) kill(t *testing.T) {
	t.Helper()
	n.agent.signal(t, syscall.SIGKILL)
	n.agent.wait(t)
}

// status is what plait status says.
func (n *node) status(t *testing.T) *status.Status {
	t.Helper()
	s, err := n.readStatus(t)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) readStatus(t *testing.T) (*status.Status, error) {
	t.Helper()
	out, diag, code := n.plait(t, "status", "-o", "json")
	if code != 0 {
		return nil, fmt.Errorf("plait status of host %s ends with %d: %s", n.Name, code, diag)
	}
	s := &status.Status{}
	if err := json.Unmarshal([]byte(out), s); err != nil {
		return nil, fmt.Errorf("plait status of host %s: %w", n.Name, err)
	}
	return s, nil
}

// waitFor waits until plait status shows a state.
func (n *node) waitFor(t *testing.T, state func(*status.Status) error) *status.Status {
	t.Helper()
	var s *status.Status
	eventually(t, func() (err error) {
		if n.agent != nil && n.agent.ended() && n.agent.err != nil && n.agent.cmd.ProcessState.ExitCode() > 0 {
			t.Fatalf("%s ended: %v", n.agent.name, n.agent.err)
		}
		if s, err = n.readStatus(t); err != nil {
			return err
		}
		if err := state(s); err != nil {
			return fmt.Errorf("host %s: %w", n.Name, err)
		}
		return nil
	})
	return s
}

// plait runs a command of plait to its end and returns its output and exit status.
func (n *node) plait(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return finish(t, n.Command(t.Context(), append([]string{plait}, args...)...))
}

// output runs a program to its end and returns what it prints; its failure fails the test.
func (n *node) output(t *testing.T, argv ...string) string {
	t.Helper()
	return output(t, n.Command(t.Context(), argv...))
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	stdout, stderr, code := finish(t, cmd)
	if code != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", strings.Join(cmd.Args, " "), code, stdout, stderr)
	}
	return stdout
}

// finish runs a program to its end.
func finish(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return out.String(), diag.String(), cmd.ProcessState.ExitCode()
}

// process is a program that runs beside the test.
type process struct {
	name string
	cmd  *exec.Cmd
	out  *buffer // both streams, unless the caller took one
	done chan struct{}
	err  error // once done is closed
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts a program, which is killed at the end of the test if it still runs. What it printed
// shows if the test failed.
func start(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, out: &buffer{}, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.out
	}
	cmd.WaitDelay = 5 * time.Second // a child of it may keep a stream open
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s (%v) printed:\n%s", name, p.err, p.out)
		}
	})
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait waits for the end of the program and returns its exit status, -1 for a signal.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(deadline):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // a Go program says what it waits for
		time.Sleep(time.Second)
		t.Fatalf("%s does not end", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// path finds the path over a fabric to a peer.
func path(t *testing.T, s *status.Status, family int, uplink string) *status.Path {
	t.Helper()
	for i := range s.Peers {
		for j := range s.Peers[i].Paths {
			if p := &s.Peers[i].Paths[j]; s.Peers[i].Family == family && p.Uplink == uplink {
				return p
			}
		}
	}
	t.Fatalf("host %s has no IPv%d path over %s", s.Host, family, uplink)
	return nil
}

// sent and received are the translated packets of a family over all paths.
func sent(s *status.Status, family int) (n uint64) {
	for _, p := range s.Peers {
		for _, path := range p.Paths {
			if p.Family == family {
				n += path.TxPackets
			}
		}
	}
	return n
}

func received(s *status.Status, family int) (n uint64) {
	for _, p := range s.Peers {
		for _, path := range p.Paths {
			if p.Family == family {
				n += path.RxPackets
			}
		}
	}
	return n
}

// losses is how often any path was given up.
func losses(s *status.Status) (n uint64) {
	for _, p := range s.Peers {
		for _, path := range p.Paths {
			n += path.Transitions
		}
	}
	return n
}

// counted are the reasons, of drops and others, whose counters differ from an earlier status.
func counted(before, after *status.Status) map[string]uint64 {
	moved := map[string]uint64{}
	for _, m := range []struct{ b, a map[string]uint64 }{{before.Drops, after.Drops}, {before.Counted, after.Counted}} {
		for reason, n := range m.a {
			if d := n - m.b[reason]; d != 0 {
				moved[reason] = d
			}
		}
	}
	return moved
}

// counts returns those of counted that are not to be ignored, as text; "" if there are none.
func counts(before, after *status.Status, ignore ...string) string {
	var lines []string
	for reason, n := range counted(before, after) {
		if !slices.Contains(ignore, reason) {
			lines = append(lines, fmt.Sprintf("%s %d", reason, n))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

// udpStream makes a checked UDP stream between identities.
func udpStream(t *testing.T, from, to *node, family int, cfg traffic.UDPConfig) *traffic.UDP {
	t.Helper()
	cfg.From, cfg.To = from.Do, to.Do
	if !cfg.Src.IsValid() {
		cfg.Src, cfg.Dst = netip.AddrPortFrom(from.identity(family), 0), netip.AddrPortFrom(to.identity(family), 0)
	}
	u, err := traffic.NewUDP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// startUDP starts streams of one rate; stop with the returned function, which may be called twice.
func startUDP(t *testing.T, streams ...*traffic.UDP) (stop func()) {
	t.Helper()
	g, err := traffic.StartUDP(streams...)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(g.Stop)
	t.Cleanup(stop)
	return stop
}

// tcpStream makes a checked TCP stream between identities.
func tcpStream(t *testing.T, from, to *node, family int, cfg traffic.TCPConfig) *traffic.TCP {
	t.Helper()
	cfg.From, cfg.To = from.Do, to.Do
	if !cfg.Src.IsValid() {
		cfg.Src, cfg.Dst = netip.AddrPortFrom(from.identity(family), 0), netip.AddrPortFrom(to.identity(family), 0)
	}
	cfg.Timeout = deadline
	s, err := traffic.NewTCP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// intact returns what is wrong with the bytes of a UDP stream that was stopped, loss aside.
func intact(r traffic.UDPResult) error {
	if r.Corrupted+r.Duplicates+r.Foreign+r.SendErrors != 0 || r.Received == 0 {
		return fmt.Errorf("UDP stream: %+v", r)
	}
	return nil
}

// whole returns what is wrong with a UDP stream that was stopped: any loss, duplicate or wrong byte.
func whole(r traffic.UDPResult) error {
	if err := intact(r); err != nil {
		return err
	}
	if r.Lost != 0 {
		return fmt.Errorf("UDP stream lost %d of %d packets", r.Lost, r.Sent)
	}
	return nil
}

// finishTCP stops a stream and checks that all of it arrived over one connection.
func finishTCP(t *testing.T, s *traffic.TCP) traffic.TCPResult {
	t.Helper()
	s.Stop(deadline)
	r := s.Result()
	if !r.Survived || r.Bytes == 0 {
		t.Errorf("TCP stream: %+v", r)
	}
	return r
}

// lines hands the lines of a reader to fn, until its end or the first error of fn, which it returns.
func lines(r io.Reader, fn func(string) error) error {
	var pending []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		pending = append(pending, buf[:n]...)
		for {
			i := bytes.IndexByte(pending, '\n')
			if i < 0 {
				break
			}
			if e := fn(string(pending[:i])); e != nil {
				return e
			}
			pending = pending[i+1:]
		}
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
