// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/test/lab"
)

var errNoLab = errors.New("there is no lab: plaitlab up makes one")

// addLabFlag adds --lab, which openLab reads.
func addLabFlag(cmd *cobra.Command) {
	cmd.Flags().String("lab", "", "name of the lab (default: $"+lab.NameEnv+", or the only one)")
}

// openLab returns the lab that the command is about.
func openLab(cmd *cobra.Command) (*lab.Lab, error) {
	name, err := cmd.Flags().GetString("lab")
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = os.Getenv(lab.NameEnv)
	}
	if name != "" {
		return lab.Open(name)
	}
	names, err := lab.List()
	switch {
	case err != nil:
		return nil, err
	case len(names) == 0:
		return nil, errNoLab
	case len(names) > 1:
		return nil, fmt.Errorf("there are several labs: choose with --lab %s", strings.Join(names, "|"))
	}
	return lab.Open(names[0])
}

func newUpCommand() *cobra.Command {
	var o lab.Options
	var wire, virtual bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build a lab",
		Long: `Build a lab and print its name.

Host number j (a is 1, b is 2) has on fabric number i the addresses 10.i.j.2/24 and
fd00:i:j::2/64, with the fabric as router at 10.i.j.1 and fd00:i:j::1. With --flat the
fabric is a bridge, and the addresses are 10.i.0.j/24 and fd00:i::j/64. The addresses
10.255.0.j and fd00:255::j are kept for identities.

With --virtual, the default, no XDP program is anywhere and super-packets cross the
fabrics whole, as between virtual machines. With --wire both ends of every cable have
an XDP program, and what crosses the fabrics are packets, as between machines.`,
		Example: `  plaitlab up
  plaitlab up --wire --tx-checksum --hosts a,b,c --fabrics 3
  plaitlab up --name flat --flat`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wire {
				o.Form = lab.Wire
			}
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), l.Name)
			return describeLab(cmd.ErrOrStderr(), l)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "", "name of the lab, lower-case letters and digits (default: random)")
	f.StringSliceVar(&o.Hosts, "hosts", []string{"a", "b"}, "names of the hosts")
	f.IntVar(&o.Fabrics, "fabrics", 2, "number of fabrics")
	f.IntVar(&o.MTU, "mtu", 1500, "MTU of every interface")
	f.BoolVar(&o.Flat, "flat", false, "one subnet for all hosts of a fabric, and no router")
	f.BoolVar(&virtual, "virtual", false, "super-packets all the way, no XDP (default)")
	f.BoolVar(&wire, "wire", false, "packets as on a wire: an XDP program at both ends of every cable")
	f.BoolVar(&o.TxChecksum, "tx-checksum", false, "compute every checksum before the wire (with --wire)")
	f.BoolVar(&o.FreeUplinks, "free-uplinks", false, "leave XDP at the hosts' uplinks to others (with --wire)")
	cmd.MarkFlagsMutuallyExclusive("wire", "virtual")
	return cmd
}

// describeLab tells a person what a lab consists of and what to do with it.
func describeLab(w io.Writer, l *lab.Lab) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "HOST\tUPLINK\tFABRIC\tLOCATORS\t\tIDENTITIES\n")
	for _, h := range l.Hosts {
		for _, u := range h.Uplinks {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s, %s\n", h.Name, u.Name, u.Fabric, u.Addr4, u.Addr6, h.Identity4, h.Identity6)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	first, last := l.Hosts[0], l.Hosts[len(l.Hosts)-1]
	_, err := fmt.Fprintf(w, "\nTry: plaitlab exec --lab %s %s -- ping -c1 %s\nEnd: plaitlab down --lab %s\n",
		l.Name, first.Name, last.Uplinks[0].Addr4, l.Name)
	return err
}

func newDownCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a lab with everything that runs in it",
		Long: `End every process inside a lab and remove the lab. It can be repeated, and removes
what an interrupted up left behind.`,
		Example: `  plaitlab down
  plaitlab down --lab flat
  plaitlab down --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				l, err := openLab(cmd)
				if errors.Is(err, lab.ErrNotFound) || errors.Is(err, errNoLab) {
					_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "nothing to do: %v\n", err)
					return nil
				}
				if err != nil {
					return err
				}
				return l.Down()
			}
			names, err := lab.List()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range names {
				l, err := lab.Open(name)
				if errors.Is(err, lab.ErrNotFound) {
					continue // another one was faster
				}
				if err == nil {
					err = l.Down()
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	addLabFlag(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "remove all labs")
	cmd.MarkFlagsMutuallyExclusive("all", "lab")
	return cmd
}

func newListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the labs",
		Example: `  plaitlab list
  plaitlab list -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("output %q: want table or json", output)
			}
			names, err := lab.List()
			if err != nil {
				return err
			}
			labs := []*lab.Lab{}
			for _, name := range names {
				l, err := lab.Open(name)
				if errors.Is(err, lab.ErrNotFound) {
					continue
				}
				if err != nil {
					return err
				}
				labs = append(labs, l)
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(labs)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(t, "LAB\tFORM\tFLAT\tHOSTS\tFABRICS")
			for _, l := range labs {
				var hosts, fabrics []string
				for _, h := range l.Hosts {
					hosts = append(hosts, h.Name)
				}
				for _, f := range l.Fabrics {
					fabrics = append(fabrics, f.Name)
				}
				_, _ = fmt.Fprintf(t, "%s\t%s\t%t\t%s\t%s\n", l.Name, l.Form, l.Flat, strings.Join(hosts, ","), strings.Join(fabrics, ","))
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func newExecCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec HOST|FABRIC -- COMMAND [ARG]...",
		Short: "Run a program inside a host or a fabric",
		Long: `Run a program inside a host or a fabric, in place of plaitlab.

PLAIT_BPFFS and PLAIT_RUN_DIR name the host's own BPF file system and run directory, so
that plait works as on a machine of its own. The directory of plaitlab is put in front
of PATH: a plait that was built next to it is found first.`,
		Example: `  plaitlab exec a -- ip -brief address
  plaitlab exec b -- iperf3 --server --one-off
  plaitlab exec f1 -- tcpdump -ni a
  plaitlab exec a -- plait status`,
		Args:                  cobra.MinimumNArgs(2),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return errors.New("no command to run inside " + args[0])
			}
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			return replaceProcess(cmd, l, args[0], argv)
		},
	}
	addLabFlag(cmd)
	cmd.Flags().SetInterspersed(false) // flags after HOST are the program's
	return cmd
}

// replaceProcess becomes argv inside the host or fabric of that name. It returns only on error.
func replaceProcess(cmd *cobra.Command, l *lab.Lab, where string, argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", filepath.Dir(self)+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return err
	}
	// The command is not started: it only says which program, with what arguments and environment.
	var c *exec.Cmd
	if h := l.Host(where); h != nil {
		c = h.Command(cmd.Context(), argv...)
	} else if f := l.Fabric(where); f != nil {
		c = f.Command(cmd.Context(), argv...)
	} else {
		return fmt.Errorf("lab %s has neither host nor fabric %q", l.Name, where)
	}
	if c.Err != nil {
		return c.Err
	}
	if err := syscall.Exec(c.Path, c.Args, c.Environ()); err != nil {
		return fmt.Errorf("running %s: %w", c.Path, err)
	}
	return nil
}
