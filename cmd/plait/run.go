// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/agent"
	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/controlplane/metrics"
	"github.com/plait-net/plait/controlplane/state"
	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/loader"
)

const defaultConfig = "/etc/plait/plait.yaml"

func newRunCommand(e env, p *places) *cobra.Command {
	var file, level string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Bring the data plane up, or take over the one that runs, and keep it",
		Long: `Brings up plait0 and the kernel programs, or takes over those that an earlier agent left, and keeps
them: probes paths, follows the host's network, serves metrics. Ends on SIGTERM or SIGINT; the data
plane then goes on as it is. plait down takes it off.`,
		Example: "  plait run --config /etc/plait/plait.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot("run"); err != nil {
				return err
			}
			var lv slog.Level
			if err := lv.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level is %q: debug, info, warn or error", level)
			}
			logs := metrics.CountLogs(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: lv}))
			log := slog.New(logs)
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			for _, w := range cfg.Warnings {
				log.Warn(w.Error())
			}
			var server *metrics.Server
			a, err := agent.Start(agent.Options{
				Config: cfg, BPFFS: p.bpffs, RunDir: p.runDir, Version: buildVersion(), Log: log,
				Before: func() (err error) {
					if cfg.MetricsListen == "" {
						return nil
					}
					if server, err = metrics.Listen(cfg.MetricsListen); err != nil {
						return cfg.Problem(cfg.MetricsPos, err.Error(), `choose another address, or "" for none`)
					}
					return nil
				},
			})
			if err != nil {
				return err
			}
			defer a.Close()
			log.Info("running", "host", cfg.Host, "version", buildVersion())
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return a.Run(ctx) })
			if server != nil {
				group.Go(func() error {
					return server.Run(ctx, metrics.Source{
						Status:  func() (*status.Status, error) { return status.Take(a.Set(), a.State(), true) },
						Sender:  a.Sender(),
						Logs:    logs,
						Version: buildVersion(),
					}, log)
				})
			}
			err = group.Wait()
			log.Info("stopped; the data plane goes on as it is")
			return err
		},
	}
	cmd.Flags().StringVar(&file, "config", defaultConfig, "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func newCheckCommand(e env, p *places) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration file and the host, and change nothing",
		Long: `Prints every error of the file with its line, and warns of what the host lacks now. Exits with 1 if
plait run would refuse.`,
		Example: "  plait check --config /etc/plait/plait.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			_, keyErr := cfg.LoadKeys()
			host, err := hostnet.New(slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			defer host.Close()
			hostErr := agent.CheckHost(host)
			if hostErr == nil {
				hostErr = errors.Join(loader.CheckKernel(), loader.CheckBPFFS(p.bpffs))
			}
			warnings, err := agent.HostWarnings(cfg, host)
			for _, w := range append(cfg.Warnings, warnings...) {
				fmt.Fprintln(e.stderr, "warning:", w)
			}
			if err := errors.Join(keyErr, hostErr, err); err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.stdout, "%s: ok, %d warnings\n", file, len(cfg.Warnings)+len(warnings))
			return err
		},
	}
	cmd.Flags().StringVar(&file, "config", defaultConfig, "configuration file")
	return cmd
}

func newStatusCommand(e env, p *places) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show uplinks, peers and paths",
		Long: `Shows what the data plane does now, read from the pinned maps: also when no agent runs. The first
line answers whether anything is wrong.`,
		Example: "  plait status\n  plait status -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("-o is %q: text or json", output)
			}
			if err := needRoot("status"); err != nil {
				return err
			}
			st, err := state.Read(p.runDir)
			if err != nil {
				return err
			}
			set, err := loader.Maps(p.bpffs, false)
			if err != nil {
				return err
			}
			defer set.Close()
			pid, err := state.Running(p.runDir)
			if err != nil {
				return err
			}
			s, err := status.Take(set, st, pid != 0)
			if err != nil {
				return err
			}
			if output == "json" {
				return s.WriteJSON(e.stdout)
			}
			return s.WriteText(e.stdout)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func newDownCommand(e env, p *places) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the agent and take plait off this host",
		Long: `Stops a running agent, detaches the kernel programs, and removes plait0 with its addresses and
routes, pins and state; settings that plait changed are put back. Sessions between identities end.
It can be repeated.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) (err error) {
			if err := needRoot("down"); err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(e.stderr, nil))
			if err := stopAgent(p.runDir); err != nil {
				return err
			}
			lock, err := state.Acquire(p.runDir)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, lock.Release()) }()
			var undo hostnet.Undo
			st, err := state.Read(p.runDir)
			switch {
			case err == nil:
				undo = st.Undo
			case !errors.Is(err, state.ErrNone):
				log.Warn("the state cannot be read; settings of the host are left as they are", "error", err)
			}
			host, err := hostnet.New(log)
			if err != nil {
				return err
			}
			defer host.Close()
			// Routes and addresses first: traffic must not meet a plait0 without programs.
			if err := errors.Join(host.Remove(undo), loader.Remove(p.bpffs)); err != nil {
				return err
			}
			return state.Remove(p.runDir)
		},
	}
}

// stopAgent ends the running agent, if there is one, and waits for it.
func stopAgent(runDir string) error {
	const patience = 10 * time.Second
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		pid, err := state.Running(runDir)
		if err != nil || pid == 0 {
			return err
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stopping the agent (process %d): %w", pid, err)
		}
		if time.Since(start) > patience {
			return fmt.Errorf("the agent (process %d) does not stop; end it and repeat: kill -KILL %d", pid, pid)
		}
	}
}
