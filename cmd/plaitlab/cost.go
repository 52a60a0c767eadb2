// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plait-net/plait/test/cost"
)

// newCostCommand returns "plaitlab bench cost".
func newCostCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "cost",
		Short: "Measure what the kernel programs cost a packet",
		Long: `Run the kernel programs through the kernel's test-run, with one peer and with 10,000,
and print nanoseconds a packet: of the program, of an empty one in its place, and the
difference, which has a bar. Fails if a bar is missed.

Where a program undoes what the next run needs (the mark in the hop limit, a probe's
round and tag), a small program puts it back before each run; it runs before the empty
program too, so that it is not part of the difference.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("output format %q is unknown; json is the only one beside the table", output)
			}
			results, missed := []cost.Result{}, 0
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', tabwriter.AlignRight)
			fmt.Fprintln(table, "thing\tpeers\tgross ns\tempty ns\tnet ns\tbar ns\tok\t")
			err := cost.Run(cmd.Context(), cost.Many, cost.Samples, func(r cost.Result) {
				results = append(results, r)
				ok := "yes"
				if !r.OK {
					ok = "no"
					missed++
				}
				fmt.Fprintf(table, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t\n",
					r.Name, r.Peers, r.Gross, r.Empty, r.Net, r.Bar, ok)
			})
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(results)
			} else {
				err = table.Flush()
			}
			if err == nil && missed > 0 {
				err = errors.New("missed bars: " + fmt.Sprint(missed) + " of " + fmt.Sprint(len(results)))
			}
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", `output format: "json" (default a table)`)
	return c
}
