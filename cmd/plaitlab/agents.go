// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/plait-net/plait/test/lab"
)

// Times that the agents of a lab are given.
const (
	agentStopTimeout = 10 * time.Second // to end after SIGTERM
	pathsUpTimeout   = 3 * time.Minute  // to find all paths up, a hold-down that has grown included
	statusTimeout    = 10 * time.Second // to answer `plait status`
	statusEvery      = 50 * time.Millisecond
)

// plaitProgram returns the path of the plait program: given, if not "", else the one that lies next to this program.
func plaitProgram(given string) (string, error) {
	path := given
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("looking for plait: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "plait")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("looking for plait: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("there is no %s: build it next to plaitlab or name it with --plait", path)
	case err != nil:
		return "", fmt.Errorf("looking for plait: %w", err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s is not a program", path)
	}
	return path, nil
}

// pairConfigs writes the configurations of hosts a and b of l, as short as a person would write them, and returns their paths.
func pairConfigs(l *lab.Lab) (paths [2]string, err error) {
	for i, name := range []string{"a", "b"} {
		if paths[i], err = l.Host(name).WriteConfig((*lab.Config).Unlabel); err != nil {
			return paths, err
		}
	}
	return paths, nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// tailBytes is how much of an agent's log is kept for an error message.
const tailBytes = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailBytes; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// agent is a `plait run` in a host of a lab.
type agent struct {
	plait string
	host  *lab.Host
	log   fmt.Stringer // the end of what it wrote
	cmd   *exec.Cmd
	ended chan struct{} // closed once it has ended, after which err holds why
	err   error
}

// startAgent starts `plait run` in host. It outlives ctx: an agent is ended by stop or kill, in an order that the caller
// chooses.
func startAgent(ctx context.Context, plait string, host *lab.Host, config string) (*agent, error) {
	log := &tail{}
	a := &agent{plait: plait, host: host, log: log, ended: make(chan struct{})}
	a.cmd = host.Command(context.WithoutCancel(ctx), plait, "run", "--config", config)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	return a, a.start()
}

// startLastingAgent starts an agent that may outlive this process and its terminal. It appends to the file logFile.
func startLastingAgent(ctx context.Context, plait string, host *lab.Host, config, logFile string) (*agent, error) {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting the agent of host %s: %w", host.Name, err)
	}
	defer func() { _ = f.Close() }()
	a := &agent{plait: plait, host: host, log: fileTail(logFile), ended: make(chan struct{})}
	a.cmd = host.Command(context.WithoutCancel(ctx), plait, "run", "--config", config)
	a.cmd.Stdout, a.cmd.Stderr = f, f
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return a, a.start()
}

// fileTail is the path of a file of which String returns the end.
type fileTail string

func (t fileTail) String() string {
	b, err := os.ReadFile(string(t))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-tailBytes):])
}

func (a *agent) start() error {
	if err := a.cmd.Start(); err != nil {
		return fmt.Errorf("starting the agent of host %s: %w", a.host.Name, err)
	}
	go func() {
		a.err = a.cmd.Wait()
		close(a.ended)
	}()
	return nil
}

// alive returns nil while the agent runs, else an error with the end of its log.
func (a *agent) alive() error {
	select {
	case <-a.ended:
		return fmt.Errorf("agent of host %s ended (%s); its log ends with:\n%s", a.host.Name, outcome(a.err), strings.TrimSpace(a.log.String()))
	default:
		return nil
	}
}

// outcome says how a program ended. Its error is not wrapped anywhere: its exit status is not to become plaitlab's.
func outcome(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// signal sends sig to the agent; one that has ended is no error.
func (a *agent) signal(sig syscall.Signal) error {
	err := a.cmd.Process.Signal(sig)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signalling the agent of host %s: %w", a.host.Name, err)
	}
	return nil
}

// stop ends the agent with SIGTERM and, if that does not help, SIGKILL.
func (a *agent) stop() error {
	if err := a.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-a.ended:
		return nil
	case <-time.After(agentStopTimeout):
	}
	return errors.Join(fmt.Errorf("agent of host %s did not end within %v of SIGTERM", a.host.Name, agentStopTimeout), a.kill())
}

// kill ends the agent with SIGKILL.
func (a *agent) kill() error {
	if err := a.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-a.ended
	return nil
}

// hostStatus is what this program reads of `plait status -o json`.
type hostStatus struct {
	Host  string       `json:"host"`
	Peers []peerStatus `json:"peers"`
}

type peerStatus struct {
	Name   string       `json:"name"`
	Family int          `json:"family"`
	Paths  []pathStatus `json:"paths"`
}

type pathStatus struct {
	Local       string  `json:"local"`
	Remote      string  `json:"remote"`
	Uplink      string  `json:"uplink"`
	Fresh       bool    `json:"fresh"`
	Up          bool    `json:"up"`
	State       string  `json:"state"`
	Multiplier  int     `json:"multiplier"`
	Transitions int64   `json:"transitions"`
	RTT         float64 `json:"rtt_us"`
}

// losses is how often the path was given up.
func (p pathStatus) losses() int64 { return p.Transitions }

// status runs `plait status -o json` in the host of the agent.
func (a *agent) status(ctx context.Context) (hostStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	cmd := a.host.Command(ctx, a.plait, "status", "-o", "json")
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	var s hostStatus
	if err := cmd.Run(); err != nil {
		return s, fmt.Errorf("status of host %s: %s: %s", a.host.Name, outcome(err), strings.TrimSpace(diag.String()))
	}
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		return s, fmt.Errorf("status of host %s: %w", a.host.Name, err)
	}
	return s, nil
}

// paths returns those of one family towards the peer of that name.
func (s hostStatus) paths(name string, family int) []pathStatus {
	for _, p := range s.Peers {
		if p.Name == name && p.Family == family {
			return p.Paths
		}
	}
	return nil
}

// uplinkUp says whether the path to peer over the same fabric at both ends, that of uplink u, is up.
func (s hostStatus) uplinkUp(peer *lab.Host, u lab.Uplink, family int) bool {
	other := peer.Uplink(u.Fabric)
	local, remote := u.Addr4, other.Addr4
	if family == 6 {
		local, remote = u.Addr6, other.Addr6
	}
	for _, p := range s.paths(peer.Name, family) {
		if p.Local == local.String() && p.Remote == remote.String() {
			return p.Up
		}
	}
	return false
}

// pair is two hosts of a lab, each with an agent and the other for a peer.
type pair struct {
	lab    *lab.Lab
	a, b   *lab.Host
	agents []*agent // of a, of b
}

// startPair starts an agent in each of the hosts a and b of l and waits until all paths are up in both families.
func startPair(ctx context.Context, l *lab.Lab, plait string, configs [2]string) (*pair, error) {
	p := &pair{lab: l, a: l.Host("a"), b: l.Host("b")}
	for i, h := range []*lab.Host{p.a, p.b} {
		a, err := startAgent(ctx, plait, h, configs[i])
		if err != nil {
			return nil, errors.Join(err, p.stop())
		}
		p.agents = append(p.agents, a)
	}
	if err := p.waitUp(ctx); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// stop ends the agents.
func (p *pair) stop() error {
	var errs []error
	for _, a := range p.agents {
		errs = append(errs, a.stop())
	}
	return errors.Join(errs...)
}

// waitUp waits until each host finds its path over every fabric up, in both families.
func (p *pair) waitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pathsUpTimeout)
	defer cancel()
	var missing string
	var last error
	for {
		missing, last = "", nil
		for i, a := range p.agents {
			if err := a.alive(); err != nil {
				return err
			}
			peer := []*lab.Host{p.b, p.a}[i]
			s, err := a.status(ctx)
			if err != nil {
				// An agent that has just been started has nothing to show yet.
				last = err
				continue
			}
			for _, u := range a.host.Uplinks {
				for _, family := range []int{4, 6} {
					if !s.uplinkUp(peer, u, family) {
						missing = fmt.Sprintf("path of host %s over %s to %s in IPv%d", a.host.Name, u.Name, peer.Name, family)
					}
				}
			}
		}
		if missing == "" && last == nil {
			return nil
		}
		select {
		case <-time.After(statusEvery):
		case <-ctx.Done():
			if last == nil {
				last = fmt.Errorf("%s is not up", missing)
			}
			return fmt.Errorf("waiting for all paths: %w (%w)", last, ctx.Err())
		}
	}
}

// paths returns the paths of both hosts, by "host local>remote".
func (p *pair) paths(ctx context.Context) (map[string]pathStatus, error) {
	paths := make(map[string]pathStatus)
	for _, a := range p.agents {
		s, err := a.status(ctx)
		if err != nil {
			return nil, err
		}
		for _, peer := range s.Peers {
			for _, path := range peer.Paths {
				paths[a.host.Name+" "+path.Local+">"+path.Remote] = path
			}
		}
	}
	return paths, nil
}
