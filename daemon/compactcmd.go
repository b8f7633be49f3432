package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"coffer/object"
)

// compactStatus is the document of `coffer array compact --status --json` and of /array/compact.
type compactStatus struct {
	object.CompactionStatus
	// Amplification is bytes written to all disks, parity included, for each byte accepted from clients since the start; 0 before the
	// first.
	Amplification float64 `json:"write_amplification"`
	Capacity      int64   `json:"capacity"`
	Free          int64   `json:"free"` // in extents not yet taken
}

func (a *appliance) compaction() compactStatus {
	st := a.array.Status()
	c := compactStatus{CompactionStatus: a.store.Compaction(), Capacity: st.Capacity, Free: st.Free}
	var written uint64
	for _, d := range st.Disks {
		written += d.Stats.WriteBytes
	}
	if c.Accepted > 0 {
		c.Amplification = float64(written) / float64(c.Accepted)
	}
	return c
}

// controlCompaction does what the query of a POST to /array/compact says.
func controlCompaction(s *object.Store, q url.Values) error {
	return steer(q, s.SetCompactRate, map[string]func(){
		"now":    func() { s.CompactNow(object.CompactOptions{}) },
		"all":    func() { s.CompactNow(object.CompactOptions{All: true}) },
		"pause":  s.PauseCompaction,
		"resume": s.ResumeCompaction,
	})
}

// handleCompact serves GET and POST /array/compact.
func handleCompact(w http.ResponseWriter, r *http.Request, app *appliance) {
	if r.Method == http.MethodPost {
		if err := controlCompaction(app.store, r.URL.Query()); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	answerJSON(w, app.compaction())
}

// handleCompactPlan serves GET /array/compact/plan.
func handleCompactPlan(w http.ResponseWriter, r *http.Request, app *appliance) {
	plan, err := app.store.PlanCompaction(r.Context(), r.URL.Query().Get("all") == "true")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if len(plan.Bands) > maxPlan { // the sums count all
		plan.Bands = plan.Bands[:maxPlan]
	}
	answerJSON(w, plan)
}

// maxPlan bounds the bands that a plan lists, so that it fits into maxAnswer.
const maxPlan = 10_000

// compactFlags are those of `coffer array compact`.
type compactFlags struct {
	steerFlags
	all, dryRun bool
}

const compactHelp = `Compact moves what is live out of bands that are mostly dead and gives their space back. A band is an extent
on each of several disks; deleting and overwriting leaves dead bytes in it, and only a whole band can be used
again.

The running daemon does this by itself: each minute it empties the bands that are less than half live, at
64 MiB per second (compact.every and compact.rate of the configuration), and at once, as fast as it can, while
writers wait for space. The command asks it to make a pass now, to pause, to go on, or to change its speed
until it ends, and shows what it does. A pause ends with the daemon, and does not hold back what is done for
writers that wait. With --all every band is emptied that gains a twentieth of itself by it: this moves much, and
makes room before a large upload. --dry-run shows which bands a pass would empty, and changes nothing.

When no daemon runs, the command makes the pass itself, as fast as the disks allow unless --rate says
otherwise; --dry-run then replays the log into a temporary index, which takes a while.

Without an option a pass begins now. Exit code 0 if the daemon was told, or the pass ended.`

func newCompactCommand(e env) *cobra.Command {
	var f compactFlags
	cmd := &cobra.Command{
		Use:   "compact",
		Short: "Give space of deleted and overwritten objects back",
		Long:  compactHelp,
		Example: `  coffer array compact --dry-run
  coffer array compact --now --all --follow
  coffer array compact --rate 400MiB
  coffer array compact --status --json | jq .write_amplification`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.rateGiven = cmd.Flags().Changed("rate")
			if err := f.validate(); err != nil {
				return usageError{err}
			}
			if f.dryRun {
				return f.plan(cmd.Context(), e)
			}
			return f.run(cmd.Context(), e)
		},
	}
	f.bindSteering(cmd, "make a pass now, unless one is under way; ends a pause", "stop until --resume, --now or the end of the daemon",
		"bytes per second to move at most while no writer waits for space; 0 for no bound", "show what compaction does and did",
		"wait for the end of the pass, with progress on standard error")
	fl := cmd.Flags()
	fl.BoolVar(&f.all, "all", false, "empty every band that gains by it, not just those below half live")
	fl.BoolVar(&f.dryRun, "dry-run", false, "show what a pass would do, and change nothing")
	return cmd
}

func (f *compactFlags) validate() error {
	switch {
	case f.pause && (f.now || f.all || f.resume || f.follow):
		return errors.New("--pause goes with none of --now, --all, --resume and --follow")
	case f.status && (f.now || f.all || f.pause || f.resume || f.follow || f.rateGiven || f.dryRun):
		return errors.New("--status changes nothing: leave the other options out")
	case f.dryRun && (f.pause || f.resume || f.follow || f.rateGiven):
		return errors.New("--dry-run goes with --now and --all only")
	}
	f.now = f.now || f.all || !f.pause && !f.resume && !f.status && (!f.rateGiven || f.follow)
	return nil
}

// ask is the request to a daemon.
func (f *compactFlags) ask() (method, target string) {
	return f.request("/array/compact", map[string]bool{"now": f.now && !f.all, "all": f.all, "pause": f.pause, "resume": f.resume})
}

// plan shows what a pass would do. Without a daemon it needs an index of its own, as nothing may be changed.
func (f *compactFlags) plan(ctx context.Context, e env) error {
	var plan object.CompactPlan
	path := fmt.Sprintf("/array/compact/plan?all=%t", f.all)
	err := f.withReplayed(ctx, e, http.MethodGet, path, &plan, func(ctx context.Context, app *appliance) (err error) {
		plan, err = app.store.PlanCompaction(ctx, f.all)
		return err
	})
	if err != nil {
		return err
	}
	return show(e.stdout, f.json, plan, func(w io.Writer) { printPlan(w, &plan) })
}

// withReplayed is withArray for reading, with a store over a temporary index that the log is replayed into.
func (f *arrayFlags) withReplayed(ctx context.Context, e env, method, path string, doc any, work func(context.Context, *appliance) error) (err error) {
	dir, err := os.MkdirTemp("", "coffer-index-")
	if err != nil {
		return fmt.Errorf("make directory of the index: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return f.withArrayMode(ctx, e, method, path, doc, openMode{readOnly: true, index: dir, replaying: replayLines(e, "compact")}, work)
}

func printPlan(w io.Writer, p *object.CompactPlan) {
	if len(p.Bands) == 0 {
		fmt.Fprintln(w, "nothing to compact")
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "band\tkind\tlive\tof\topened")
	for _, b := range p.Bands {
		kind := "packed"
		if b.Bulk {
			kind = "bulk"
		}
		fmt.Fprintf(tw, "%x\t%s\t%.0f %%\t%v\t%s\n", b.Band, kind, float64(b.Live)*100/float64(max(b.Size, 1)), Size(b.Size),
			b.Opened.Local().Format(time.DateTime))
	}
	tw.Flush()
	fmt.Fprintf(w, "a pass would free %d bands, %s, and move %s at most; nothing was changed\n", len(p.Bands), about(p.Reclaim), about(p.Move))
}

// about is a number of bytes for people.
func about(n int64) string {
	switch {
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n < 1<<40:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.2f TiB", float64(n)/(1<<40))
}

// run asks the daemon, or makes a pass without one.
func (f *compactFlags) run(ctx context.Context, e env) error {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	dir, st := dataDir(cfg.Data), new(compactStatus)
	method, target := f.ask()
	if !f.now {
		asked, err := f.askRunning(ctx, &cfg, method, target, st)
		if err == nil && !asked {
			err = errors.New("no daemon runs that could be asked: --now makes a pass without one, --dry-run shows what it would do")
		}
		if err != nil {
			return err
		}
	} else {
		alone := false
		err := f.withArray(ctx, e, method, target, st, true, func(ctx context.Context, app *appliance) error {
			alone = true
			app.store.SetCompactRate(int64(f.rate))
			_, err := app.store.Compact(ctx, object.CompactOptions{All: f.all, Progress: func(r object.CompactReport) {
				fmt.Fprintf(e.stderr, "compact: %d bands freed, %s moved\n", r.Bands, about(r.Moved))
			}})
			*st = app.compaction()
			return err
		})
		if err == nil && f.follow && !alone {
			err = followCompaction(ctx, e.stderr, func() (*compactStatus, error) {
				next := new(compactStatus)
				err := askDaemon(ctx, dir, http.MethodGet, "/array/compact", next)
				*st = *next
				return next, err
			})
		}
		if err != nil {
			return err
		}
	}
	return show(e.stdout, f.json, st, func(w io.Writer) { printCompaction(w, st) })
}

// followCompaction waits until no pass that was asked for is under way.
func followCompaction(ctx context.Context, w io.Writer, status func() (*compactStatus, error)) error {
	shown := -1
	for {
		st, err := status()
		switch {
		case err != nil:
			return err
		case st.Error != "":
			return fmt.Errorf("compact: %s", st.Error)
		case st.State == "paused":
			return errors.New("compaction was paused: --resume goes on")
		case st.State == "idle":
			return nil
		case st.Current != nil && st.Current.Bands > 0 && st.Current.Visited != shown:
			shown = st.Current.Visited
			fmt.Fprintln(w, compactProgress(st.Current, time.Now()))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// compactProgress is a line about a pass under way.
func compactProgress(r *object.CompactRun, now time.Time) string {
	line := fmt.Sprintf("compact: %d of %d bands, %d freed, %s moved", r.Visited, r.Bands, r.Report.Bands, about(r.Report.Moved))
	if r.Visited > 0 && r.Visited < r.Bands {
		took := now.Sub(r.Started)
		line += fmt.Sprintf(", %v left", (took / time.Duration(r.Visited) * time.Duration(r.Bands-r.Visited)).Round(time.Second))
	}
	return line
}

func printCompaction(w io.Writer, st *compactStatus) {
	fmt.Fprintf(w, "compaction %s", st.State)
	if st.Hurry {
		fmt.Fprintf(w, "; %d writers wait for space", st.Waiting)
	}
	fmt.Fprintln(w)
	if st.Rate > 0 {
		fmt.Fprintf(w, "at most %v per second\n", Size(st.Rate))
	}
	if st.Current != nil {
		fmt.Fprintln(w, compactProgress(st.Current, time.Now()))
	}
	if st.Error != "" {
		fmt.Fprintf(w, "last attempt: %s\n", st.Error)
	}
	fmt.Fprintf(w, "live %s of %s, free %s; shadows %s\n", about(st.Live), about(st.Capacity), about(st.Free), about(st.Shadows))
	fmt.Fprintf(w, "since the start: %d bands freed, %s moved, %s given back; write amplification %.2f\n", st.Freed, about(st.Moved), about(st.Reclaim), st.Amplification)
	if l := st.Last; l != nil {
		fmt.Fprintf(w, "last pass ended %s, took %v: %d bands freed, %d left, %s moved\n", l.Ended.Local().Format(time.DateTime),
			l.Ended.Sub(l.Started).Round(time.Second), l.Report.Bands, l.Report.Left, about(l.Report.Moved))
	}
	if !st.Next.IsZero() {
		fmt.Fprintf(w, "next %s\n", st.Next.Local().Format(time.DateTime))
	}
}
