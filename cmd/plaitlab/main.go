// SPDX-License-Identifier: Apache-2.0

// Plaitlab builds networks out of namespaces, breaks them on purpose, and shows and measures what
// plait makes of it. Everything needs root. See plaitlab --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(exitStatus(err, os.Stderr))
}

// run does what main is for: data goes to stdout, diagnostics to stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

// exitStatus reports err and returns the status to exit with: that of the program that plaitlab exec
// ran, else 0 or 1.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode()
	}
	_, _ = fmt.Fprintln(stderr, "plaitlab:", err)
	return 1
}

// newRootCommand returns the command that all others belong to.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "plaitlab",
		Short: "Build a network out of namespaces and break it on purpose",
		Long: `Plaitlab builds hosts and fabrics out of network namespaces, joined by veth pairs,
and makes the fabrics fail: at once, in one direction, in part. It needs root.

A host is the namespace pl-LAB-HOST and reaches fabric f1 over its interface up1,
f2 over up2, and so on. A fabric is the namespace pl-LAB-FABRIC, in which a port is
named after the host behind it.`,
		Example: `  plaitlab up                             # hosts a and b, fabrics f1 and f2
  plaitlab exec a -- ping -c1 10.1.2.2    # from a to b over f1
  plaitlab cut f1                         # nothing crosses f1 any more
  plaitlab heal f1
  plaitlab down`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: groupLab, Title: "A lab:"},
		&cobra.Group{ID: groupFaults, Title: "What goes wrong in it:"},
		&cobra.Group{ID: groupRuns, Title: "Runs that build a lab of their own:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
		}
		root.AddCommand(commands...)
	}
	add(groupLab, newUpCommand(), newDownCommand(), newListCommand(), newExecCommand())
	add(groupFaults, newCutCommand(), newHealCommand(), newImpairCommand())
	add(groupRuns, newDemoCommand(), newFailoverCommand(), newSoakIdleCommand(), newBenchCommand()) // what brings up its own lab belongs here
	root.AddCommand(newRelayCommand(), newSpinCommand(), newBareLoopCommand())
	return root
}

// newBenchCommand returns the parent of all benchmarks.
func newBenchCommand() *cobra.Command {
	bench := &cobra.Command{
		Use:   "bench",
		Short: "Measure plait against its bars",
	}
	bench.AddCommand(newThroughputCommand(), newCostCommand(), newAgentCostCommand())
	return bench
}

const (
	groupLab    = "lab"
	groupFaults = "faults"
	groupRuns   = "runs"
)
