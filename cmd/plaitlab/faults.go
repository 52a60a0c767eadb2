// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/test/lab"
)

const relayCommand = "relay"

func newCutCommand() *cobra.Command {
	var silent, carrier bool
	var oneway, host string
	cmd := &cobra.Command{
		Use:   "cut FABRIC",
		Short: "Cut a fabric",
		Long: `Cut a fabric, and print when: nanoseconds on CLOCK_MONOTONIC.

--silent (the default) drops every packet that enters the fabric, from one instant on;
all interfaces stay up. --carrier pulls the cables out: hosts see no carrier. --oneway
a-to-b drops what host a sends to host b; b's packets still reach a. Cuts add up until
plaitlab heal.`,
		Example: `  plaitlab cut f1
  plaitlab cut f2 --carrier
  plaitlab cut f2 --carrier --host a
  plaitlab cut f1 --oneway a-to-b`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, from, to := lab.Silent, "", ""
			switch {
			case carrier:
				mode, from = lab.Carrier, host
			case host != "":
				return errors.New("--host belongs to --carrier")
			case oneway != "":
				var ok bool
				mode = lab.OneWay
				if from, to, ok = strings.Cut(oneway, "-to-"); !ok || from == "" || to == "" {
					return fmt.Errorf("--oneway %s: want FROM-to-TO, as in a-to-b", oneway)
				}
			}
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			at, err := l.Cut(args[0], mode, from, to)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), at.Nanoseconds())
			return err
		},
	}
	addLabFlag(cmd)
	f := cmd.Flags()
	f.BoolVar(&silent, "silent", false, "drop everything, interfaces stay up (default)")
	f.BoolVar(&carrier, "carrier", false, "take the carrier from the hosts")
	f.StringVar(&oneway, "oneway", "", "drop one direction: FROM-to-TO")
	f.StringVar(&host, "host", "", "with --carrier: only this host's (default: all)")
	cmd.MarkFlagsMutuallyExclusive("silent", "carrier", "oneway")
	return cmd
}

func newHealCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "heal FABRIC",
		Short: "Undo what cut and impair did to a fabric",
		Long: `Undo every cut of a fabric and remove its impairments. It returns once all carriers
are back.`,
		Example: `  plaitlab heal f1
  plaitlab heal f1 --keep-impairments`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			if err := l.Heal(args[0]); err != nil || keep {
				return err
			}
			return l.Impair(args[0], lab.Impairment{})
		},
	}
	addLabFlag(cmd)
	cmd.Flags().BoolVar(&keep, "keep-impairments", false, "undo cuts only")
	return cmd
}

func newImpairCommand() *cobra.Command {
	var i lab.Impairment
	cmd := &cobra.Command{
		Use:   "impair FABRIC",
		Short: "Make a fabric lossy, slow or far",
		Long: `Replace the impairments of a fabric; without a flag, remove them.

--loss drops packets that enter the fabric at random. --rate and --queue shape what
leaves it towards each host (tbf). --delay holds every packet back, in each direction:
a background process does it, which plaitlab heal and down end. It costs CPU, and adds
jitter under load.`,
		Example: `  plaitlab impair f1 --loss 0.1
  plaitlab impair f1 --rate 500mbit --queue 20ms
  plaitlab impair f2 --delay 5ms
  plaitlab impair f1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			l.DetachRelays(self, relayCommand)
			return l.Impair(args[0], i)
		},
	}
	addLabFlag(cmd)
	f := cmd.Flags()
	f.Float64Var(&i.Loss, "loss", 0, "probability of losing a packet, 0 to 1")
	f.StringVar(&i.Rate, "rate", "", "limit towards each host, as in 500mbit")
	f.DurationVar(&i.Queue, "queue", 0, fmt.Sprintf("with --rate: how long a packet may wait (default %v)", lab.DefaultQueue))
	f.DurationVar(&i.Delay, "delay", 0, "added to the way through the fabric, as in 5ms")
	return cmd
}

// newRelayCommand returns the process that delays a fabric for impair.
func newRelayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    relayCommand + " LAB FABRIC DELAY",
		Short:  "Delay a fabric until ended (what impair --delay starts, inside the fabric)",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			delay, err := time.ParseDuration(args[2])
			if err != nil {
				return err
			}
			return l.RunRelay(cmd.Context(), args[1], delay)
		},
	}
}
