package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object"
)

// deepFlags are those of `coffer array check`.
type deepFlags struct {
	arrayFlags
	sample int
}

// run makes a deep check of an array that no daemon serves.
func (f *deepFlags) run(ctx context.Context, e env) (err error) {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	dir := dataDir(cfg.Data)
	paths, err := diskPaths(&cfg, dir)
	if err != nil { // found before lock makes a directory
		return err
	}
	unlock, err := dir.lock()
	if err != nil {
		return fmt.Errorf("%w: --deep is for an array that nobody writes to: stop the daemon first", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	tmp, err := os.MkdirTemp("", "coffer-check-")
	if err != nil {
		return fmt.Errorf("make directory of the indexes: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	c := &deepCheck{e: e, cfg: &cfg, dir: dir, tmp: tmp, log: newLogger(e.stderr, cfg.Log.Format, slog.LevelError)}
	rep, err := c.run(ctx, f.sample)
	if err != nil {
		if errors.Is(err, kms.ErrLocked) || errors.Is(err, disk.ErrMembership) || errors.Is(err, disk.ErrKeys) {
			err = fmt.Errorf("%w: %w", errUnhealthy, err)
			return f.explain(e, disk.Look(paths, notedID(&cfg, dir)), false, err)
		}
		return err
	}
	if err := show(e.stdout, f.json, rep, func(w io.Writer) { printDeep(w, rep) }); err != nil {
		return err
	}
	if !rep.OK() {
		return fmt.Errorf("%w: %d faults, %d cells bad, %d missing, %d stripes lost", errUnhealthy, rep.FaultCount, rep.Cells.Bad, rep.Cells.Missing, rep.Cells.Lost)
	}
	return nil
}

// deepCheck is a deep check under way.
type deepCheck struct {
	e      env
	cfg    *Config
	dir    dataDir
	tmp    string
	crypto *hw.Engine
	log    *slog.Logger
}

// run opens the array twice, one after the other: with a copy of its index, to see what a start would make of it, and with an empty one.
func (c *deepCheck) run(ctx context.Context, sample int) (_ *object.DeepReport, err error) {
	if c.crypto, err = probe(c.cfg, c.log); err != nil {
		return nil, err
	}
	have, err := c.present(ctx)
	if have != nil {
		defer func() { err = errors.Join(err, have.Close()) }()
	}
	if err != nil {
		return nil, err
	}
	var store *object.Store
	if have != nil && !have.store.Rebuilt() {
		store = have.store
	}
	fmt.Fprintln(c.e.stderr, "check: replaying the log")
	expected, err := c.open(ctx, filepath.Join(c.tmp, "expected"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, expected.Close()) }()
	rep, err := object.DeepCheck(ctx, expected.store, store, expected.array, object.DeepOptions{Sample: sample, Progress: progressLines(c.e.stderr, "check")})
	return &rep, err
}

func (c *deepCheck) open(ctx context.Context, index string) (*appliance, error) {
	mode := openMode{readOnly: true, index: index, replaying: replayLines(c.e, "check")}
	return openAppliance(ctx, c.cfg, c.e.getenv, c.crypto, mode, c.log)
}

// present opens a copy of the index that is on disk and brings it up to the end of the log; nil if there is none. The array is closed again.
func (c *deepCheck) present(ctx context.Context) (*appliance, error) {
	from, to := c.dir.index(), filepath.Join(c.tmp, "present")
	if _, err := os.Stat(from + ".corrupt"); err == nil {
		return nil, nil // known not to be of use
	}
	if err := os.CopyFS(to, os.DirFS(from)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("copy index: %w", err)
	}
	app, err := c.open(ctx, to)
	if err != nil {
		return nil, err
	}
	app.store.Stop()
	err = app.array.Close()
	app.array = nil
	return app, err
}

// progressLines returns what writes a line about a phase of some work now and then.
func progressLines(w io.Writer, work string) func(phase string, done, total int64) {
	var phase string
	var began, shown time.Time
	return func(now string, done, total int64) {
		t := time.Now()
		if now != phase {
			phase, began, shown = now, t, t
			return
		}
		if t.Sub(shown) < 2*time.Second {
			return
		}
		shown = t
		if total <= 0 || done <= 0 {
			fmt.Fprintf(w, "%s %s: %d\n", work, phase, done)
			return
		}
		left := time.Duration(float64(t.Sub(began)) / float64(done) * float64(max(total-done, 0)))
		fmt.Fprintf(w, "%s %s: %d %%, about %v left\n", work, phase, done*100/total, left.Round(time.Second))
	}
}

// replayLines returns what writes a line about a replay of the log now and then.
func replayLines(e env, work string) func(done, total int64) {
	lines := progressLines(e.stderr, work)
	return func(done, total int64) { lines("replay", done, total) }
}

func printDeep(w io.Writer, r *object.DeepReport) {
	printCheck(w, &r.Cells)
	fmt.Fprintf(w, "  index: %d entries, %d missing, %d too many, %d different\n", r.Entries, r.Missing, r.Extra, r.Different)
	fmt.Fprintf(w, "  bulk stripes: %d named, %d of them lost; %d garbage (%s of each disk), %d never committed; %d packed ones freed\n", r.Stripes,
		r.LostStripes, r.Garbage, about(r.GarbageBytes), r.NotCommitted, r.FreedStripes)
	fmt.Fprintf(w, "  objects: %d, %d opened (%s), %d skipped for want of customer keys, %d cannot be read\n", r.Objects, r.Opened, about(r.OpenedBytes),
		r.Skipped, r.Unopened)
	for _, f := range r.Faults {
		fmt.Fprintf(w, "  %s\n", f)
	}
	if n := r.FaultCount - int64(len(r.Faults)); n > 0 {
		fmt.Fprintf(w, "  and %d more\n", n)
	}
	if r.OK() {
		fmt.Fprintln(w, "  everything agrees")
	}
}
