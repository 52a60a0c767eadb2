// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
)

const sshPort = 2222

// sshServer is an sshd on all addresses of a host, with keys of its own.
type sshServer struct {
	key string
}

// startSSH starts an sshd in a host.
func startSSH(t *testing.T, on *node) *sshServer {
	t.Helper()
	dir := t.TempDir()
	s := &sshServer{key: filepath.Join(dir, "user")}
	hostKey := filepath.Join(dir, "host")
	for _, k := range []string{s.key, hostKey} {
		output(t, exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", k))
	}
	config := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf(`Port %d
ListenAddress 0.0.0.0
ListenAddress ::
HostKey %s
AuthorizedKeysFile %s.pub
PidFile none
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UseDNS no
`, sshPort, hostKey, s.key)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal(err)
	}
	// sshd wants a directory below /run that a service manager makes; it gets one in a mount namespace.
	start(t, "sshd", on.Command(t.Context(), "unshare", "--mount", "sh", "-c",
		`mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$@"`, "sh", sshd, "-D", "-e", "-f", config))
	eventually(t, func() error {
		if n := strings.Count(on.output(t, "ss", "-Hltn", fmt.Sprintf("sport = :%d", sshPort)), "\n"); n != 2 {
			return fmt.Errorf("sshd listens on %d addresses", n)
		}
		return nil
	})
	return s
}

// command returns an ssh from a host to an address of the server's, without a terminal.
func (s *sshServer) command(t *testing.T, from *node, to netip.Addr, remote string) *exec.Cmd {
	return from.Command(t.Context(), "ssh", "-F", "/dev/null", "-i", s.key, "-p", fmt.Sprint(sshPort),
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=30", "root@"+to.String(), remote)
}

// session is an ssh session whose remote end counts aloud, and of which every line is checked.
type session struct {
	name  string
	p     *process
	lines atomic.Int64
	wrong atomic.Pointer[string]
}

// open starts a session and waits until it talks.
func (s *sshServer) open(t *testing.T, from *node, to netip.Addr) *session {
	t.Helper()
	v := &session{name: "ssh to " + to.String()}
	cmd := s.command(t, from, to, `i=0; while echo "line $i"; do i=$((i+1)); sleep 0.02; done`)
	r, w := io.Pipe()
	cmd.Stdout = w
	v.p = start(t, v.name, cmd)
	go func() {
		_ = lines(r, func(line string) error {
			if want := fmt.Sprintf("line %d", v.lines.Load()); line != want {
				text := fmt.Sprintf("%q instead of %q", line, want)
				v.wrong.CompareAndSwap(nil, &text)
			}
			v.lines.Add(1)
			return nil
		})
	}()
	t.Cleanup(func() { w.Close() })
	v.goesOn(t, "at its start")
	return v
}

// goesOn waits until the session has said something new, and checks all that it said.
func (v *session) goesOn(t *testing.T, when string) {
	t.Helper()
	from := v.lines.Load()
	eventually(t, func() error {
		if v.p.ended() {
			t.Fatalf("%s ended %s, after %d lines: %v", v.name, when, v.lines.Load(), v.p.err)
		}
		if v.lines.Load() < from+3 {
			return fmt.Errorf("%s is silent %s, after %d lines", v.name, when, v.lines.Load())
		}
		return nil
	})
	if wrong := v.wrong.Load(); wrong != nil {
		t.Fatalf("%s said %s", v.name, *wrong)
	}
}

// close ends a session from this side.
func (v *session) close(t *testing.T) {
	t.Helper()
	v.p.signal(t, syscall.SIGKILL)
	v.p.wait(t)
}

// TestSSH keeps sessions open while everything around them happens: between locators from before the
// first run until after down, between identities over a cut, a heal and the death of both agents.
func TestSSH(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat != (f.options.Form == lab.Virtual) {
			continue // virtual flat, wire routed with both hooks
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, f.options, f.change)
			server := startSSH(t, p.b)
			var native, between []*session
			all := func(when string, sessions []*session) {
				t.Helper()
				for _, v := range sessions {
					v.goesOn(t, when)
				}
			}
			for _, family := range families {
				for _, fabric := range []string{"f1", "f2"} {
					native = append(native, server.open(t, p.a, p.b.locator(fabric, family)))
				}
			}
			p.a.run(t)
			all("after the first agent started", native)
			p.b.run(t)
			p.waitUp(t)
			all("after both agents started", native)
			for _, family := range families {
				between = append(between, server.open(t, p.a, p.b.identity(family)))
			}

			if _, err := p.Cut("f1", lab.Silent, "", ""); err != nil {
				t.Fatal(err)
			}
			for _, n := range p.nodes() {
				n.waitFor(t, func(s *status.Status) error { return down(s, "up1") })
			}
			all("with fabric f1 cut", between)
			if err := p.Heal("f1"); err != nil {
				t.Fatal(err)
			}
			p.waitUp(t)
			all("after fabric f1 healed", append(between, native...))

			for _, n := range p.nodes() {
				n.kill(t)
			}
			all("with both agents dead", append(between, native...))
			for _, n := range p.nodes() {
				n.run(t)
			}
			p.waitUp(t)
			all("after both agents started again", append(between, native...))

			// Sessions between identities end with them.
			for _, v := range between {
				v.close(t)
			}
			for _, n := range p.nodes() {
				if out, diag, code := n.plait(t, "down"); code != 0 {
					t.Errorf("plait down in host %s: %d\n%s%s", n.Name, code, out, diag)
				}
				all("after down in host "+n.Name, native)
			}
		})
	}
}

// down returns nil if all paths over one uplink are down and those over the others up.
func down(s *status.Status, uplink string) error {
	if len(s.Peers) == 0 {
		return errors.New("no peers")
	}
	for _, p := range s.Peers {
		for _, path := range p.Paths {
			want := status.PathUp
			if path.Uplink == uplink {
				want = status.PathDown
			}
			if path.State != want {
				return fmt.Errorf("path %s is %s, want %s", path.String(), path.State, want)
			}
		}
	}
	return nil
}
