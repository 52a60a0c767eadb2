// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/controlplane/keys"
)

// places are where an instance keeps its pins and files; the lab gives each host its own.
type places struct {
	bpffs, runDir string
}

func newRootCommand(e env) *cobra.Command {
	p := &places{}
	root := &cobra.Command{
		Use:   "plait",
		Short: "Use all uplinks of a host at once and keep its sessions when one dies",
		Long: `plait makes a host with several uplinks, each with its own address in its own subnet, use all of
them at once and lose no session when one dies. Programs talk between identities, stable addresses
on the interface plait0; kernel programs carry each flow over an uplink that works.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&p.bpffs, "bpffs", cmp.Or(e.getenv("PLAIT_BPFFS"), "/sys/fs/bpf"),
		"BPF file system that holds the pins (or PLAIT_BPFFS)")
	root.PersistentFlags().StringVar(&p.runDir, "run-dir", cmp.Or(e.getenv("PLAIT_RUN_DIR"), "/run/plait"),
		"directory of lock and state (or PLAIT_RUN_DIR)")
	root.AddCommand(
		newRunCommand(e, p), newCheckCommand(e, p), newStatusCommand(e, p), newDownCommand(e, p),
		newGenkeyCommand(e), newVersionCommand(e),
	)
	return root
}

func newVersionCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(e.stdout, "plait %s (%s, %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

func newGenkeyCommand(e env) *cobra.Command {
	var id uint8
	cmd := &cobra.Command{
		Use:   "genkey [FILE]",
		Short: "Make a key file",
		Long: `Makes a secret key and writes it to FILE, readable by its owner only, or to standard output. Both
hosts of a pair need the same file; copy it over a channel that keeps it secret.`,
		Example: "  plait genkey /etc/plait/site.key\n  scp -p /etc/plait/site.key root@b:/etc/plait/",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if id == 0 {
				return errors.New("--id is 0: a key id is 1 to 255")
			}
			key, err := keys.Generate(id)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				_, err := fmt.Fprintln(e.stdout, key.Line())
				return err
			}
			err = keys.Create(args[0], keys.Ring{key})
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists and is left as it is; name another file or remove it", args[0])
			}
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w; make its directory first", err)
			}
			return err
		},
	}
	cmd.Flags().Uint8Var(&id, "id", 1, "number that names the key in probes, 1 to 255")
	return cmd
}

// needRoot returns an error that says how, unless we are root.
func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root: sudo plait %s", what, what)
	}
	return nil
}
