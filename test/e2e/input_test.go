// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab"
)

// goodFile is the configuration that TestBadFile breaks; KEY stands for a key file.
const goodFile = `host: a
identity: [10.255.0.1, "fd00:255::1"]
key: KEY
uplinks:
  - name: up1
  - name: up2
peers:
  - name: b
    identity: [10.255.0.2, "fd00:255::2"]
    locators: [10.1.2.2, 10.2.2.2, "fd00:1:2::2", "fd00:2:2::2"]
metrics: {listen: "127.0.0.1:9555"}
`

// keyFile writes a key file for a test. Text "" is a good key.
func keyFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if text == "" {
		text = "plait-key-1:1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestBadFile: what is wrong with the configuration stops run and check with exit status 1 before
// anything is changed, and is told with its line, its field, what it is and what would be right.
func TestBadFile(t *testing.T) {
	t.Parallel()
	p := newPair(t, forms[0].options)
	n := p.a
	remove(t, n.RunDir)
	before := n.snap(t)
	good := keyFile(t, "", 0o600)
	replace := func(old, new string) func(string) string {
		return func(text string) string {
			if !strings.Contains(text, old) {
				t.Fatalf("%q is not in the file", old)
			}
			return strings.Replace(text, old, new, 1)
		}
	}
	readable, broken, short := keyFile(t, "", 0o644), keyFile(t, "plait-key-1:1:not base64\n", 0o600), keyFile(t, "plait-key-1:0:MDEy\n", 0o600)
	missing := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		name string
		edit func(string) string
		want []string // parts of the message, each on one line; FILE stands for the file
	}{
		{"unknown key", replace("peers:", "colour: red\npeers:"), []string{`FILE:7:1: unknown key "colour"; known here: host, identity`}},
		{"unknown key of an uplink", replace("- name: up2", "- {name: up2, wieght: 2}"), []string{`FILE:6:17: uplinks[1]: unknown key "wieght"; did you mean weight?`}},
		{"overlapping identities", replace("10.255.0.2", "10.255.0.1"), []string{
			"FILE:9:16: peers[0].identity[0]: 10.255.0.1 cannot be the identity of peer b: it is this host's identity, in line 2; give every host its own identity"}},
		{"two uplinks on one interface", replace("up2", "up1"), []string{"FILE:6:5: uplinks[1]: interface up1 is an uplink already, in line 5; keep one"}},
		{"an identity that is a locator", replace(`"fd00:255::2"`, `"fd00:1:2::2"`), []string{
			"FILE:10:36: peers[0].locators[2]: fd00:1:2::2 cannot be a locator of peer b: it is the identity of peer b, in line 9; choose an identity that is no address of an interface"}},
		{"no locator of a family that we have", func(s string) string {
			return replace(`10.1.2.2, 10.2.2.2, `, "")(replace(`, "fd00:255::1"`, "")(s))
		}, []string{"FILE:8:5: peers[0]: there is no path to peer b: IPv4: the peer has no IPv4 locator, IPv6: this host has no IPv6 identity; one family needs"}},
		{"a key that others can read", replace(good, readable), []string{
			"FILE:3:6: key: " + readable + ": the key file is readable or writable by others than its owner (mode 0644); run: chmod 600 " + readable}},
		{"a broken key", replace(good, broken), []string{"FILE:3:6: key: " + broken + ": not a key file: line 1: ", "plait genkey"}},
		{"a bad key id", replace(good, short), []string{"FILE:3:6: key: " + short + ": not a key file: line 1: the id is not a number from 1 to 255"}},
		{"a missing key", replace(good, missing), []string{"FILE:3:6: key: " + missing + ": the key file does not exist; make it with: plait genkey " + missing}},
		{"a value out of range", replace("- name: up2", "- {name: up2, weight: 256}"), []string{"FILE:6:25: uplinks[1].weight: 256 is out of range; write a whole number from 1 to 255"}},
		{"several at once", func(s string) string {
			return replace("host: a", "host: a/b")(replace("up2", "up1")(replace("10.2.2.2", "10.2.2.256")(s)))
		}, []string{"FILE:1:7: host: ", "FILE:6:5: uplinks[1]: interface up1", `FILE:10:26: peers[0].locators[1]: "10.2.2.256"`}},
		{"no YAML", func(string) string { return "host: [a\n" }, []string{"FILE:1:"}},
		{"an empty file", func(string) string { return "" }, []string{"FILE:1:1: the file is empty; start from the reference file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "plait.yaml")
			if err := os.WriteFile(file, []byte(c.edit(strings.Replace(goodFile, "KEY", good, 1))), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"check", "run"} {
				out, diag, code := n.plait(t, command, "--config", file)
				if code != 1 || out != "" {
					t.Errorf("%s ends with %d and prints %q", command, code, out)
				}
				for _, want := range c.want {
					if want = strings.ReplaceAll(want, "FILE", file); !strings.Contains(diag, want) {
						t.Errorf("%s says\n%swithout\n%s", command, diag, want)
					}
				}
			}
			if d := n.snap(t).diff(before); d != "" {
				t.Errorf("the host is changed:\n%s", d)
			}
		})
	}
	for _, c := range []struct{ args, want string }{
		{"run --config /nowhere/plait.yaml", "/nowhere/plait.yaml: no such file or directory"},
		{"run --confg x", "unknown flag: --confg"},
		{"run x", `unknown command "x" for "plait run"`},
		{"run --log-level loud", `--log-level is "loud": debug, info, warn or error`},
		{"status -o xml", `-o is "xml": text or json`},
		{"status", "no agent has run here"},
		{"genkey --id 0", "--id is 0: a key id is 1 to 255"},
		{"genkey " + good, good + " exists and is left as it is"},
	} {
		out, diag, code := n.plait(t, strings.Fields(c.args)...)
		if code != 1 || out != "" || !strings.Contains(diag, c.want) {
			t.Errorf("plait %s ends with %d, prints %q and says %q, want 1, nothing and %q", c.args, code, out, diag, c.want)
		}
	}
	if d := n.snap(t).diff(before); d != "" {
		t.Errorf("the host is changed:\n%s", d)
	}
}

// obstacle is something about a host that keeps plait from running.
type obstacle struct {
	name  string
	put   func(t *testing.T, n *node)
	clear func(t *testing.T, n *node)
	args  []string // beside run --config
	want  string
}

// obstacles are those that can be put up and taken away.
func obstacles(t *testing.T) []obstacle {
	sysctl := func(name, value string) func(*testing.T, *node) {
		return func(t *testing.T, n *node) { n.sysctl(t, name, value) }
	}
	remount := func(flags uintptr) func(*testing.T, *node) {
		return func(t *testing.T, n *node) {
			t.Helper()
			if err := unix.Mount("", n.BPFFS, "", unix.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	nothing := func(*testing.T, *node) {}
	elsewhere := t.TempDir()
	return []obstacle{
		{"a BPF file system that is read-only", remount(unix.MS_RDONLY), remount(0), nil, "it is mounted read-only; mount -o remount,rw "},
		{"no BPF file system", nothing, nothing, []string{"--bpffs", elsewhere}, "no BPF file system at " + elsewhere + "; mount one: mount -t bpf bpf " + elsewhere},
		{
			"no directory for one", nothing, nothing,
			[]string{"--bpffs", elsewhere + "/none"}, "no BPF file system at " + elsewhere + "/none: ",
		},
		{
			"a high TTL", sysctl("net/ipv4/ip_default_ttl", "200"), sysctl("net/ipv4/ip_default_ttl", "64"), nil,
			"net.ipv4.ip_default_ttl is 200: a hop limit above 127 marks plait's own packets; set it to 64: sysctl -w net.ipv4.ip_default_ttl=64",
		},
		{
			"a high hop limit", sysctl("net/ipv6/conf/default/hop_limit", "128"), sysctl("net/ipv6/conf/default/hop_limit", "64"), nil,
			"net.ipv6.conf.default.hop_limit is 128: ",
		},
	}
}

// refused runs plait run, which must end with 1, say so and print nothing.
func (n *node) refused(t *testing.T, want string, args ...string) {
	t.Helper()
	out, diag, code := n.plait(t, append([]string{"run", "--config", n.config}, args...)...)
	if code != 1 || out != "" || !strings.Contains(diag, want) {
		t.Errorf("plait run ends with %d, prints %q and says\n%swant 1, nothing and\n%s", code, out, diag, want)
	}
}

// TestRefusals: a host on which plait cannot run is left as it is, whether nothing of plait is on it
// or a data plane whose agent has died.
func TestRefusals(t *testing.T) {
	t.Parallel()
	p := newPair(t, forms[0].options)
	n := p.a
	remove(t, n.RunDir)
	before := n.snap(t)
	unchanged := func(t *testing.T) {
		t.Helper()
		if d := n.snap(t).diff(before); d != "" {
			t.Errorf("the host is changed:\n%s", d)
		}
	}
	for _, o := range obstacles(t) {
		t.Run(o.name, func(t *testing.T) {
			o.put(t, n)
			defer o.clear(t, n)
			n.refused(t, o.want, o.args...)
			o.clear(t, n)
			unchanged(t)
		})
	}
	t.Run("not root", func(t *testing.T) {
		for _, command := range []string{"run --config " + n.config, "status", "down"} {
			argv := append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", plait}, strings.Fields(command)...)
			_, diag, code := finish(t, n.Command(t.Context(), argv...))
			if verb, _, _ := strings.Cut(command, " "); code != 1 || !strings.Contains(diag, verb+" needs root: sudo plait "+verb) {
				t.Errorf("plait %s ends with %d: %s", command, code, diag)
			}
		}
		unchanged(t)
	})
	t.Run("an interface of our name", func(t *testing.T) {
		n.output(t, "ip", "link", "add", "plait0", "type", "veth", "peer", "name", "other")
		with := n.snap(t)
		n.refused(t, "interface exists and was not made by plait")
		if d := n.snap(t).diff(with); d != "" {
			t.Errorf("the host is changed:\n%s", d)
		}
		n.output(t, "ip", "link", "delete", "plait0")
		// A new interface has left its name in no other place.
		unchanged(t)
	})
	t.Run("an address for metrics that is taken", func(t *testing.T) {
		var l net.Listener
		if err := n.Do(func() (err error) {
			l, err = net.Listen("tcp", "127.0.0.1:9555")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		n.refused(t, `metrics.listen: listening for metrics on "127.0.0.1:9555": `)
		l.Close()
		unchanged(t)
	})

	n.run(t)
	p.b.run(t)
	p.waitUp(t)
	t.Run("a second agent", func(t *testing.T) {
		n.refused(t, fmt.Sprintf("another agent is running with process id %d (lock ", n.agent.cmd.Process.Pid))
		p.waitUp(t)
	})
	n.kill(t)
	held := pins(t, n)
	with := n.snap(t)
	for _, o := range obstacles(t) {
		t.Run("running, "+o.name, func(t *testing.T) {
			o.put(t, n)
			defer o.clear(t, n)
			n.refused(t, o.want, o.args...)
			testPing(t, p, 4, 63)
			testPing(t, p, 6, 63)
			o.clear(t, n)
			if d := n.snap(t).diff(with); d != "" {
				t.Errorf("the host is changed:\n%s", d)
			}
		})
	}
	t.Run("running, a bad file", func(t *testing.T) {
		n.configure(t, func(c *lab.Config) { c.Uplinks[1].Name = "up1" })
		n.refused(t, "interface up1 is an uplink already")
		testPing(t, p, 4, 63)
		n.configure(t)
		if d := n.snap(t).diff(with); d != "" {
			t.Errorf("the host is changed:\n%s", d)
		}
	})
	n.run(t)
	p.waitUp(t)
	if now := pins(t, n); fmt.Sprint(now) != fmt.Sprint(held) {
		t.Errorf("pinned %v, before %v", now, held)
	}
}
