package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"coffer/hw"
)

const hwHelp = `Hw tests every code path that this processor supports against known answers, measures those that pass, and shows
which one coffer serve would use for each primitive. Speeds are in GB/s (10^9 bytes) of one core, by message size.

Exit code 1 if a primitive has no working path: Coffer cannot run on this machine.`

func newHWCommand(e env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "hw",
		Short:   "Prove and measure this machine's crypto hardware",
		Long:    hwHelp,
		Example: "  coffer hw\n  coffer hw --json | jq '.paths[] | select(.chosen)'",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			engine, err := hw.Probe(hw.Options{Logger: newLogger(e.stderr, "text", slog.LevelError)})
			if err != nil {
				return err
			}
			r := engine.Report()
			return show(e.stdout, asJSON, r, func(w io.Writer) { printHardware(w, &r) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printHardware(w io.Writer, r *hw.Report) {
	fmt.Fprintf(w, "%s\nfeatures: %s\n\n", r.CPU, strings.Join(r.Features, " "))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "primitive\tpath\t4 KiB\t64 KiB\t1 MiB\tself-test\tchosen")
	shape := ""
	for _, p := range r.Paths {
		fmt.Fprintf(tw, "%s\t%s", p.Primitive, p.Path)
		for _, size := range [...]string{"4096", "65536", "1048576"} {
			if v, ok := p.GBps[size]; ok {
				fmt.Fprintf(tw, "\t%.2f", v)
			} else {
				fmt.Fprint(tw, "\t-")
			}
		}
		chosen := ""
		if p.Chosen {
			chosen = "yes"
		}
		fmt.Fprintf(tw, "\t%s\t%s\n", p.SelfTest, chosen)
		if p.Shape != "" {
			shape = p.Shape
		}
	}
	tw.Flush()
	fmt.Fprintf(w, "\nGB/s on one core. AEADs: sealing. Reed-Solomon: encoding %s, data bytes, by shard size.\n", shape)
}
