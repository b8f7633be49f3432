package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"coffer/disk"
)

// loadScrub reads what an earlier process noted of its sweeps.
func loadScrub(dir dataDir) (past disk.ScrubPast, err error) {
	b, err := os.ReadFile(dir.scrub())
	if errors.Is(err, fs.ErrNotExist) {
		return past, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &past)
	}
	if err != nil {
		return disk.ScrubPast{}, fmt.Errorf("read %s: %w", dir.scrub(), err)
	}
	return past, nil
}

// startScrub has the array looked after. A note that cannot be read costs a sweep, not the start.
func startScrub(array *disk.Array, dir dataDir, cfg *ScrubConfig, log *slog.Logger) *disk.Scrub {
	past, err := loadScrub(dir)
	if err != nil {
		log.Warn("earlier scrubs forgotten", "cause", err)
	}
	opt := disk.ScrubOptions{Rate: int64(cfg.Rate), Past: past, Keep: func(p disk.ScrubPast) error {
		b, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return err
		}
		return writeFile(dir.scrub(), append(b, '\n'), 0o600)
	}}
	if *cfg.Enabled {
		opt.Every = time.Duration(cfg.Every)
	}
	return array.StartScrub(opt)
}

// controlScrub does what the query of a POST to /array/scrub says.
func controlScrub(s *disk.Scrub, q url.Values) error {
	return steer(q, s.SetRate, map[string]func(){"now": s.Now, "pause": s.Pause, "resume": s.Resume})
}

// handleScrub serves GET and POST /array/scrub.
func handleScrub(w http.ResponseWriter, r *http.Request, app *appliance) {
	if r.Method == http.MethodPost {
		if err := controlScrub(app.scrub, r.URL.Query()); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	answerJSON(w, app.scrub.Status())
}

// scrubFlags are those of `coffer array scrub`.
type scrubFlags struct{ steerFlags }

const scrubHelp = `Scrub reads everything that the array holds, parity and superblock copies included, past all caches, and
verifies it: each cell against its checksum and its place, parity against the data, and of every 16th
small stripe the sealed records. What is bad is rewritten from what is good, and read back. What the start
of the array has rewritten already is told with the first sweep behind it.

The running daemon sweeps by itself every 30 days, at 64 MiB per second over all disks (scrub.every and
scrub.rate of the configuration). The command asks it to begin now, to pause, to go on, or to change its
speed until it ends, and shows how far it is. A pause outlasts restarts. A sweep that a restart cuts short
goes on with the band where it was. Without an option a sweep begins now.

When no daemon runs, the command sweeps itself, with progress on standard error and as fast as the disks
allow unless --rate says otherwise; --status shows what was noted last.

What is bad is called by what happened to it:

    rot          written right, and changed since: the medium
    torn         a part of the cell is not of this write: a write was cut short, or another hit it
    stale        what was there before is still there: the disk acknowledged a write and lost it
    misdirected  what belongs elsewhere is there: the disk wrote to a wrong place
    unreadable   the disk says that it cannot read it
    missing      the disk is not there

Rot and unreadable sectors come with age; torn, stale and misdirected cells say that a disk, its controller
or its firmware lies: replace it. A stripe is mismatched if no cell is bad and parity still is not that of
the data; it is left as it is.

Exit code of --status and of a sweep that was waited for: 0 if everything that was written is there, 3 if
something was bad, even if it was repaired, or is missing or lost. Otherwise 0 if the daemon was told.`

func newScrubCommand(e env) *cobra.Command {
	var f scrubFlags
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Verify everything in the array and repair what is bad",
		Long:  scrubHelp,
		Example: `  coffer array scrub --follow
  coffer array scrub --now --rate 400MiB
  coffer array scrub --status --json | jq .last.report.found`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.rateGiven = cmd.Flags().Changed("rate")
			if err := f.validate(); err != nil {
				return usageError{err}
			}
			return f.run(cmd.Context(), e)
		},
	}
	f.bindSteering(cmd, "begin a sweep now, unless one is under way; ends a pause", "stop until --resume or --now",
		"bytes per second to read at most, over all disks together; 0 for no bound", "show what the scrub does and what it found",
		"wait for the end of the sweep, with progress on standard error")
	return cmd
}

func (f *scrubFlags) validate() error {
	switch {
	case f.pause && (f.now || f.resume || f.follow):
		return errors.New("--pause goes with none of --now, --resume and --follow")
	case f.status && (f.now || f.pause || f.resume || f.rateGiven):
		return errors.New("--status changes nothing: leave the other options out")
	}
	f.now = f.now || !f.pause && !f.resume && !f.status && (!f.rateGiven || f.follow)
	return nil
}

// ask is the request to a daemon.
func (f *scrubFlags) ask() (method, target string) {
	return f.request("/array/scrub", map[string]bool{"now": f.now, "pause": f.pause, "resume": f.resume})
}

// run asks the daemon, or does what can be done without one.
func (f *scrubFlags) run(ctx context.Context, e env) error {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	dir := dataDir(cfg.Data)
	st := new(disk.ScrubStatus)
	waited := f.status
	if !f.now {
		err = f.withoutArray(ctx, &cfg, dir, st)
	} else {
		ran := false
		method, target := f.ask()
		err = f.withArray(ctx, e, method, target, st, true, func(ctx context.Context, app *appliance) (err error) {
			ran, waited = true, true
			*st, err = f.sweepAlone(ctx, e, &cfg, app)
			return err
		})
		f.follow = f.follow && !ran
	}
	if err == nil && f.follow {
		waited = true
		err = followScrub(ctx, e.stderr, st.Last, func() (*disk.ScrubStatus, error) {
			next := new(disk.ScrubStatus)
			err := askDaemon(ctx, dir, http.MethodGet, "/array/scrub", next)
			*st = *next
			return next, err
		})
	}
	if err != nil {
		return err
	}
	if err := show(e.stdout, f.json, st, func(w io.Writer) { printScrub(w, st) }); err != nil {
		return err
	}
	return scrubVerdict(st, waited)
}

// scrubVerdict is the outcome of a sweep as an error.
func scrubVerdict(st *disk.ScrubStatus, waited bool) error {
	if !waited {
		return nil
	}
	for _, run := range []*disk.ScrubRun{st.Current, st.Last} {
		if run != nil && !run.Report.OK() {
			r := &run.Report
			return fmt.Errorf("%w: %d cells bad, %d of them repaired, %d missing, %d stripes lost, %d mismatched",
				errUnhealthy, r.Bad, r.Repaired, r.Missing, r.Lost+r.Unopened, r.Mismatched)
		}
	}
	return nil
}

// withoutArray does what needs no open array: it asks the daemon, or shows what was noted last.
func (f *scrubFlags) withoutArray(ctx context.Context, cfg *Config, dir dataDir, st *disk.ScrubStatus) error {
	method, target := f.ask()
	if asked, err := f.askRunning(ctx, cfg, method, target, st); err != nil || asked {
		return err
	}
	if !f.status {
		return errors.New("no daemon runs that could be told: begin a sweep with --now, or show the last one with --status")
	}
	past, err := loadScrub(dir)
	*st = disk.ScrubStatus{State: "not running", Next: past.Next, Current: past.Current, Last: past.Last}
	if past.Paused {
		st.State = "paused"
	}
	return err
}

// sweepAlone sweeps an array that no daemon serves.
func (f *scrubFlags) sweepAlone(ctx context.Context, e env, cfg *Config, app *appliance) (disk.ScrubStatus, error) {
	own := cfg.Scrub
	own.Rate = f.rate
	s := startScrub(app.array, dataDir(cfg.Data), &own, newLogger(e.stderr, cfg.Log.Format, slog.LevelWarn))
	before := s.Status().Last
	s.Now()
	err := followScrub(ctx, e.stderr, before, func() (*disk.ScrubStatus, error) {
		st := s.Status()
		return &st, nil
	})
	return s.Status(), err
}

// followEvery is how often progress is looked at; a line is written only when a percent was made.
const followEvery = 500 * time.Millisecond

// followScrub waits until a later sweep than before has ended, or none is under way.
func followScrub(ctx context.Context, w io.Writer, before *disk.ScrubRun, status func() (*disk.ScrubStatus, error)) error {
	shown := -1
	for {
		st, err := status()
		switch {
		case err != nil:
			return err
		case st.Last != nil && (before == nil || st.Last.Ended.After(before.Ended)):
			return nil
		case st.Error != "":
			return fmt.Errorf("scrub: %s", st.Error)
		case st.State == "idle":
			return nil
		case st.Total > 0:
			if percent := int(st.Done * 100 / st.Total); percent != shown {
				shown = percent
				fmt.Fprintln(w, scrubProgress(st))
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// scrubProgress is a line about a sweep under way.
func scrubProgress(st *disk.ScrubStatus) string {
	const gib = 1 << 30
	line := fmt.Sprintf("scrub %s: %d %%, %.1f of %.1f GiB", st.State, st.Done*100/max(st.Total, 1), float64(st.Done)/gib, float64(st.Total)/gib)
	if st.Speed > 0 {
		line += fmt.Sprintf(", %.1f MiB/s", float64(st.Speed)/(1<<20))
	}
	if st.Current != nil && st.Current.Report.Bad > 0 {
		line += fmt.Sprintf(", %d bad, %d repaired", st.Current.Report.Bad, st.Current.Report.Repaired)
	}
	if st.ETASeconds > 0 {
		line += fmt.Sprintf(", %v left", time.Duration(st.ETASeconds*float64(time.Second)).Round(time.Second))
	}
	return line
}

func printScrub(w io.Writer, st *disk.ScrubStatus) {
	switch {
	case st.Total > 0:
		fmt.Fprintln(w, scrubProgress(st))
	case st.Current != nil:
		fmt.Fprintf(w, "scrub %s: interrupted, goes on where it was\n", st.State)
	default:
		fmt.Fprintf(w, "scrub %s\n", st.State)
	}
	if st.Rate > 0 {
		fmt.Fprintf(w, "at most %v per second\n", Size(st.Rate))
	}
	if st.Error != "" {
		fmt.Fprintf(w, "last attempt: %s\n", st.Error)
	}
	if c := st.Current; c != nil {
		fmt.Fprintf(w, "begun %s\n", c.Started.Local().Format(time.DateTime))
		printCheck(w, &c.Report)
	}
	if l := st.Last; l != nil {
		fmt.Fprintf(w, "last ended %s, took %v\n", l.Ended.Local().Format(time.DateTime), l.Ended.Sub(l.Started).Round(time.Second))
		printCheck(w, &l.Report)
	} else {
		fmt.Fprintln(w, "never ended yet")
	}
	if !st.Next.IsZero() {
		fmt.Fprintf(w, "next %s\n", st.Next.Local().Format(time.DateTime))
	}
}

func printCheck(w io.Writer, r *disk.CheckReport) {
	fmt.Fprintf(w, "  %d bands, %d stripes, %d cells, %d superblock copies; %d records opened\n", r.Bands, r.Stripes, r.Cells, r.Superblocks, r.Records)
	fmt.Fprintf(w, "  bad %d, missing %d, repaired %d cells; degraded %d, mismatched %d, lost %d stripes\n",
		r.Bad, r.Missing, r.Repaired, r.Degraded, r.Mismatched, r.Lost+r.Unopened)
	if r.Bad > 0 {
		printFound(w, r)
	}
	if r.Unfinished > 0 {
		fmt.Fprintf(w, "  %d stripes and superblock copies may have been on their way when the power failed: a start completes them\n", r.Unfinished)
	}
	if r.Torn > 0 {
		fmt.Fprintf(w, "  %d bulk stripes were never committed: no record names them\n", r.Torn)
	}
	if r.Undecided > 0 {
		fmt.Fprintf(w, "  %d bulk stripes cannot be decoded, and only check --deep can tell whether a record names them\n", r.Undecided)
	}
	for _, f := range r.Faults {
		fmt.Fprintf(w, "  %s\n", f)
	}
}

// printFound is the table of bad cells by disk and kind.
func printFound(w io.Writer, r *disk.CheckReport) {
	var kinds []disk.Verdict
	for _, v := range disk.Verdicts() {
		if r.Found[v] > 0 && v != disk.CellGood {
			kinds = append(kinds, v)
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "  slot")
	for _, v := range kinds {
		fmt.Fprintf(tw, "\t%s", v)
	}
	fmt.Fprintln(tw, "\tpath")
	for _, d := range r.Disks {
		if !slices.ContainsFunc(kinds, func(v disk.Verdict) bool { return d.Found[v] > 0 }) {
			continue
		}
		fmt.Fprintf(tw, "  %d", d.Slot)
		for _, v := range kinds {
			fmt.Fprintf(tw, "\t%d", d.Found[v])
		}
		fmt.Fprintf(tw, "\t%s\n", d.Path)
	}
	tw.Flush()
}
