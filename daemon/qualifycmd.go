package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"coffer/disk"
)

const qualifyHelp = `Qualify measures the disk DEV as fio and Aerospike's ACT do: sequential bandwidth in blocks of 1 MiB, random
I/O of 4 KiB at several depths with its latencies, and how many small reads take more than 1, 8 and 64 ms
beside a stream of large blocks. It only reads, unless --write is given.

With --write it measures writes and flushes too, and says whether the write cache tells the truth: a disk
that rewrites one place durably faster than its medium can has acknowledged what a power cut would lose.
The verdict is "plausible", "too fast to be true" or "write-through", when the disk claims to have no
volatile cache. A file is judged by the disk that it lies on.

--write destroys what DEV holds. A member of an array, and a disk with a filesystem or partition table, is
refused; wipe it first (wipefs -a) if it is really to go. A disk in use is refused in any case: stop the
daemon to measure a member.

The result is noted in the data directory. From its next start on, or when the disk is added, the daemon holds
background work to a share of what the disk was measured to do while it serves requests: rebuilding to a
quarter, compaction to an eighth, scrubbing to a sixteenth. On disks that were not measured it goes by the
time that the work takes. Leave files that share a disk unmeasured: each would be taken for all of it.

Exit code 3 if the write cache is too fast to be true.`

func newQualifyCommand(e env) *cobra.Command {
	var f arrayFlags
	var opt disk.QualifyOptions
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:   "qualify DEV",
		Short: "Measure a disk, and whether its write cache lies",
		Long:  qualifyHelp,
		Example: `  coffer array qualify /dev/sdb
  coffer array qualify /dev/sdb --write --dry-run
  coffer array qualify /dev/sdb --write --yes --json | jq .write_cache`,
		Args: cobra.MatchAll(func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("one argument wanted: the path of the disk")}
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if opt.Span <= 0 {
				return usageError{errors.New("--duration must be more than nothing")}
			}
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			holds, err := disk.Inspect(path)
			if err != nil {
				return err
			}
			if opt.Write && holds != "" {
				return fmt.Errorf("%s holds %s: --write would destroy it; leave --write out, or wipe the disk first", path, holds)
			}
			if dryRun {
				what := "would be read, and nothing written"
				if opt.Write {
					what = "would be overwritten"
				}
				fmt.Fprintf(e.stdout, "%s %s\n", path, what)
				return nil
			}
			if opt.Write && !yes {
				fmt.Fprintf(e.stderr, "%s will be overwritten. ", path)
				if !confirm(e) {
					return errors.New("nothing was written")
				}
			}
			opt.Progress = func(what string) { fmt.Fprintf(e.stderr, "measuring %s\n", what) }
			q, err := disk.Qualify(cmd.Context(), path, opt)
			if err != nil {
				return err
			}
			if err := show(e.stdout, f.json, q, func(w io.Writer) { printQualification(w, q) }); err != nil {
				return err
			}
			if err := noteFor(e, &f, q); err != nil {
				return err
			}
			if q.Cache == disk.CacheTooFast {
				return fmt.Errorf("%w: the write cache of %s is too fast to be true", errUnhealthy, path)
			}
			return nil
		},
	}
	f.bind(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&opt.Write, "write", false, "measure writes and the write cache too: destroys what the disk holds")
	fl.DurationVar(&opt.Span, "duration", 3*time.Second, "length of each of the measurements: six, or a dozen and more with --write")
	fl.BoolVar(&dryRun, "dry-run", false, "say what would be done and do nothing")
	fl.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// mostBlank is the share of reads of unwritten blocks above which a measurement does not tell what the disk can do.
const mostBlank = 0.1

// noteFor keeps a measurement for the daemon, if there is a data directory.
func noteFor(e env, f *arrayFlags, q *disk.Qualification) error {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	dir := dataDir(cfg.Data)
	if _, err := os.Stat(string(dir)); err != nil {
		fmt.Fprintf(e.stderr, "not noted: there is no data directory %s (--data, --config)\n", dir)
		return nil
	}
	if q.Blank > mostBlank {
		fmt.Fprintf(e.stderr, "not noted: %.0f %% of the reads met blocks that were never written, which is faster than the disk: "+
			"measure it with --write before it joins, or when it is full\n", q.Blank*100)
		return nil
	}
	if err := dir.noteQualified(q); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "noted in %s\n", dir.qualified())
	return nil
}

func printQualification(w io.Writer, q *disk.Qualification) {
	kind, cache := "solid state or virtual", "no volatile cache"
	if q.Rotational {
		kind = "rotational"
	}
	if q.WriteBack {
		cache = "volatile cache"
	}
	fmt.Fprintf(w, "%s: %v, %s, %s", q.Path, Size(q.Size), kind, cache)
	if q.Model != "" {
		fmt.Fprintf(w, ", %s %s", q.Model, q.Serial)
	}
	fmt.Fprintf(w, "\nsequential read %.0f MB/s", q.SeqRead/1e6)
	if q.SeqWrite > 0 {
		fmt.Fprintf(w, ", write %.0f MB/s", q.SeqWrite/1e6)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "4 KiB\tunder way\tper second\tp50\tp99\tp99.9\tmax")
	row := func(what string, p disk.DepthPoint) {
		r := func(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
		fmt.Fprintf(tw, "%s\t%d\t%.0f\t%v\t%v\t%v\t%v\n", what, p.Depth, p.Rate, r(p.P50), r(p.P99), r(p.P999), r(p.Max))
	}
	for _, p := range q.RandRead {
		row("random read", p)
	}
	for _, p := range q.RandWrite {
		row("random write", p)
	}
	for _, x := range []struct {
		what string
		p    *disk.DepthPoint
	}{{"durable write, one place", q.Durable}, {"cached write, one place", q.Cached}, {"flush after 1 MiB", q.FlushDirty}, {"flush of nothing", q.FlushClean}} {
		if x.p != nil {
			row(x.what, *x.p)
		}
	}
	row("read beside large blocks", q.Mix.DepthPoint)
	tw.Flush()
	fmt.Fprintf(w, "beside %.0f MB/s of large blocks %.2f %% of small reads take over 1 ms, %.2f %% over 8 ms, %.2f %% over 64 ms\n",
		q.Mix.Large/1e6, q.Mix.Over1ms, q.Mix.Over8ms, q.Mix.Over64ms)
	if q.Cache != "" {
		fmt.Fprintf(w, "write cache: %s (%s)\n", q.Cache, q.CacheWhy)
	}
}
