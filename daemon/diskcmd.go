package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"coffer/disk"
)

const addHelp = `Add makes disks members of the array, one after the other. New data uses them from then on: each band of the
log lies on the emptiest disks, and what is stored already stays where it is. The shape of stripes does not
change. The array serves meanwhile, beside a running daemon or without one.

With --spare the disks hold no data. When another disk has failed or is missing for longer than spare.grace
of the configuration (10 minutes), the smallest spare that is large enough takes its place by itself and is
rebuilt. coffer array remove takes a spare away again.

Disks that hold an array, a filesystem or a partition table are refused, unless --force overwrites them.
While a disk is missing or failed only spares can be added.`

// addition is what an add request did.
type addition struct {
	Slot  int    `json:"slot"`
	Path  string `json:"path"`
	Spare bool   `json:"spare"`
	// Noted says that the data directory remembers the path; otherwise the configuration's list of disks has to be changed.
	Noted bool `json:"noted"`
}

func (r *addition) print(w io.Writer) {
	what := "a member"
	if r.Spare {
		what = "a spare"
	}
	fmt.Fprintf(w, "slot %d: %s is %s of the array\n", r.Slot, r.Path, what)
	if !r.Noted {
		fmt.Fprintf(w, "put %s into the configuration's list of disks\n", r.Path)
	}
}

func newAddCommand(e env) *cobra.Command {
	var f arrayFlags
	var force, yes, dryRun, spare bool
	cmd := &cobra.Command{
		Use:   "add DEV...",
		Short: "Grow the array by disks, or give it spares",
		Long:  addHelp,
		Example: `  coffer array add /dev/disk/by-id/nvme-g /dev/disk/by-id/nvme-h --dry-run
  coffer array add --spare /dev/disk/by-id/nvme-i --yes
  truncate -s 10G /srv/new.img && coffer array add /srv/new.img --yes`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no disks: name those to be added")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var paths []string
			for _, arg := range args {
				path, err := newDisk(arg, force)
				if err != nil {
					return err
				}
				paths = append(paths, path)
			}
			if !dryRun && !yes && !f.json {
				fmt.Fprintf(e.stderr, "%q will become part of the array. ", paths)
				if !confirm(e) {
					return errors.New("nothing was written")
				}
			}
			var done []*addition
			for _, path := range paths {
				q := url.Values{"path": {path}, "force": {strconv.FormatBool(force)}, "spare": {strconv.FormatBool(spare)}, "dry": {strconv.FormatBool(dryRun)}}
				r := new(addition)
				err := f.withArray(cmd.Context(), e, http.MethodPost, "/array/add?"+q.Encode(), r, !dryRun, func(ctx context.Context, app *appliance) (err error) {
					r, err = app.addDisk(ctx, path, disk.AddOptions{Force: force, Spare: spare}, dryRun)
					return err
				})
				if err != nil {
					return err
				}
				done = append(done, r)
				switch {
				case f.json:
				case dryRun:
					fmt.Fprintf(e.stdout, "would add %s; nothing was changed\n", path)
				default:
					r.print(e.stdout)
				}
			}
			if f.json {
				return writeJSON(e.stdout, done)
			}
			return nil
		},
	}
	f.bindOpen(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&spare, "spare", false, "keep the disks free, to take the place of others that fail")
	fl.BoolVar(&force, "force", false, "overwrite what the disks hold")
	fl.BoolVar(&dryRun, "dry-run", false, "check the disks and change nothing")
	fl.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// newDisk is the absolute path of a disk that may be overwritten.
func newDisk(arg string, force bool) (string, error) {
	path, err := filepath.Abs(arg)
	if err != nil {
		return "", err
	}
	if force { // one that was given up may still be in the daemon's hands: whoever opens it says what else is wrong
		_, err := os.Stat(path)
		return path, err
	}
	holds, err := disk.Inspect(path)
	if err != nil {
		return "", err
	}
	if holds != "" {
		return "", fmt.Errorf("%s holds %s: %w; --force overwrites it", path, holds, disk.ErrInUse)
	}
	return path, nil
}

// addDisk adds a disk, or finds out whether it could be.
func (a *appliance) addDisk(ctx context.Context, path string, opt disk.AddOptions, dryRun bool) (*addition, error) {
	r := &addition{Path: path, Spare: opt.Spare, Slot: -1}
	if dryRun {
		d, err := inspectDisk(path, 0)
		if err != nil {
			return nil, err
		}
		return r, a.array.CanAdd(d.Size, opt.Spare)
	}
	err := a.joining(path, func() (err error) {
		r.Slot, err = a.array.Add(ctx, path, opt)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.Noted = a.notes()
	return r, nil
}

const removeHelp = `Remove lets a disk leave the array. DISK is its slot or its path, as coffer array status shows them. What it
holds is moved to other disks in the background, the most endangered first, while the array serves and at
full redundancy; the work gives way to requests and goes on after a restart. When nothing is left, the
superblock of the disk says that it is retired, its slot is empty, and it can be taken out or wiped with
coffer array erase. A spare leaves at once. A disk that is missing or failed is computed from the others.

It is refused when the other disks would be too few for stripes of the array's shape, when they have no room
for what the disk holds, and while another disk is missing, failed or being rebuilt. To exchange a disk for
another use coffer array replace.

With --cancel a disk that is being drained is kept: what was moved stays where it is.`

func newRemoveCommand(e env) *cobra.Command {
	var f arrayFlags
	var yes, dryRun, wait, cancel bool
	cmd := &cobra.Command{
		Use:   "remove DISK",
		Short: "Move everything away from a disk and retire it",
		Long:  removeHelp,
		Example: `  coffer array remove 3 --dry-run
  coffer array remove /dev/sdd --wait
  coffer array remove 3 --cancel`,
		Args: oneDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := diskName(args[0])
			if err != nil {
				return err
			}
			ask := func(what string, write bool, act func(context.Context, *appliance) (*disk.Removal, error)) (*disk.Removal, error) {
				r := new(disk.Removal)
				path := "/array/remove?" + url.Values{"disk": {name}, "do": {what}}.Encode()
				return r, f.withArray(cmd.Context(), e, http.MethodPost, path, r, write, func(ctx context.Context, app *appliance) error {
					got, err := act(ctx, app)
					if err == nil {
						*r = *got
					}
					return err
				})
			}
			if cancel {
				r, err := ask("keep", true, func(ctx context.Context, app *appliance) (*disk.Removal, error) { return app.keepDisk(ctx, name) })
				if err != nil {
					return err
				}
				return show(e.stdout, f.json, r, func(w io.Writer) { fmt.Fprintf(w, "slot %d: %s is kept\n", r.Slot, r.Path) })
			}
			plan, err := ask("plan", false, func(_ context.Context, app *appliance) (*disk.Removal, error) { return app.planRemoval(name) })
			if err != nil {
				return err
			}
			if dryRun || !f.json {
				if err := show(e.stdout, f.json, plan, func(w io.Writer) { printRemoval(w, plan) }); err != nil {
					return err
				}
			}
			if dryRun {
				return nil
			}
			if !yes && !f.json {
				fmt.Fprintf(e.stderr, "Type yes to go on: ")
				if !agreed(e) {
					return errors.New("nothing was changed")
				}
			}
			r, err := ask("remove", true, func(ctx context.Context, app *appliance) (*disk.Removal, error) {
				r, err := app.removeDisk(ctx, name)
				if err != nil {
					return nil, err
				}
				return r, waitDrained(ctx, e.stderr, r.Slot, func() (*arrayStatus, error) { return app.status(false), nil })
			})
			if err != nil {
				return err
			}
			err = show(e.stdout, f.json, r, func(w io.Writer) { fmt.Fprintf(w, "slot %d: %s leaves the array\n", r.Slot, r.Path) })
			if err != nil || !wait {
				return err
			}
			return waitDrained(cmd.Context(), e.stderr, r.Slot, f.poll(cmd.Context(), e))
		},
	}
	f.bindOpen(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&dryRun, "dry-run", false, "show what would be moved, or why it cannot be, and change nothing")
	fl.BoolVar(&yes, "yes", false, "do not ask")
	fl.BoolVar(&wait, "wait", false, "stay until the disk is retired, showing how far it is")
	fl.BoolVar(&cancel, "cancel", false, "keep a disk that is being drained")
	return cmd
}

// oneDisk wants the slot or path of one disk.
func oneDisk(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{errors.New("one argument wanted: the slot or path of a disk")}
	}
	return nil
}

// diskName is a slot as it is, or an absolute path.
func diskName(arg string) (string, error) {
	if _, err := strconv.Atoi(arg); err == nil {
		return arg, nil
	}
	return filepath.Abs(arg)
}

// poll asks for the status of the array again and again, whoever serves it. It prints no document, whatever happens: there was one already.
func (f *arrayFlags) poll(ctx context.Context, e env) func() (*arrayStatus, error) {
	quiet := *f
	quiet.json = false
	return func() (*arrayStatus, error) {
		st := new(arrayStatus)
		return st, quiet.withArray(ctx, e, http.MethodGet, "/array/status", st, false, func(_ context.Context, app *appliance) error {
			*st = *app.status(false)
			return nil
		})
	}
}

func printRemoval(w io.Writer, p *disk.Removal) {
	const gib = 1 << 30
	if p.Extents > 0 {
		fmt.Fprintf(w, "slot %d: %s: %d extents to be moved to %d other disks, %.1f GiB at most\n", p.Slot, p.Path, p.Extents, p.Disks, float64(p.Bytes)/gib)
	} else {
		fmt.Fprintf(w, "slot %d: %s: nothing to be moved\n", p.Slot, p.Path)
	}
	fmt.Fprintf(w, "capacity %.1f GiB, afterwards %.1f GiB, of which %.1f GiB free\n", float64(p.Capacity)/gib, float64(p.After)/gib, float64(p.Free)/gib)
}

// slotOf finds a disk by slot or path.
func (a *appliance) slotOf(name string) (*disk.DiskStatus, error) {
	st := a.status(true)
	for i, d := range st.Disks {
		if d.Path != "" && d.Path == name || strconv.Itoa(d.Slot) == name {
			return &st.Disks[i], nil
		}
	}
	return nil, fmt.Errorf("no disk %s in the array", name)
}

func (a *appliance) planRemoval(name string) (*disk.Removal, error) {
	d, err := a.slotOf(name)
	if err != nil {
		return nil, err
	}
	return a.array.PlanRemoval(d.Slot)
}

// removeDisk begins to drain a disk.
func (a *appliance) removeDisk(ctx context.Context, name string) (*disk.Removal, error) {
	plan, err := a.planRemoval(name)
	if err != nil {
		return nil, err
	}
	return plan, a.array.Remove(ctx, plan.Slot)
}

func (a *appliance) keepDisk(ctx context.Context, name string) (*disk.Removal, error) {
	d, err := a.slotOf(name)
	if err != nil {
		return nil, err
	}
	return &disk.Removal{Slot: d.Slot, Path: d.Path, State: d.State}, a.array.Keep(ctx, d.Slot)
}

// rebuildLine says how far a rebuild or a drain is.
func rebuildLine(r *disk.Rebuild) string {
	line := fmt.Sprintf("%d of %d bands left, %.0f MB/s, about %v to go", r.Left, r.Bands, r.Rate/1e6, r.ETA.Round(time.Second))
	if r.Failed > 0 {
		line += fmt.Sprintf("; %d did not work", r.Failed)
	}
	return line
}

// notes reports whether the data directory, and not the configuration, says where the disks are.
func (a *appliance) notes() bool { return !a.configured && a.dir.noted() }

// joining has do take the disk at path into the array. Where it is is written down before: should the process die in the middle, the next
// start looks there for a member.
func (a *appliance) joining(path string, do func() error) error {
	if !a.notes() {
		return do()
	}
	id := a.array.Status().ArrayID
	if err := a.noteJoining(id, func(joining []string) []string { return append(joining, path) }); err != nil {
		return err
	}
	return errors.Join(do(), a.noteJoining(id, func(joining []string) []string {
		i := slices.Index(joining, path)
		return slices.Delete(joining, i, i+1)
	}))
}

// noteJoining changes the list of disks that are joining, and writes it down.
func (a *appliance) noteJoining(array string, change func([]string) []string) error {
	a.noting.Lock()
	defer a.noting.Unlock()
	a.joins = change(a.joins)
	return a.writeNote(array)
}

// writeNote writes down where the disks of the array are; noting is held.
func (a *appliance) writeNote(array string) error {
	id, err := hex.DecodeString(array)
	if err != nil {
		return err
	}
	return a.dir.noteDisks([16]byte(id), *a.paths.Load(), slices.Concat(a.joins, a.olds))
}

// noteMembers writes down where the disks are, after the set of disks has changed. A disk that is not there is looked for where it was.
func (a *appliance) noteMembers(st disk.Status) error {
	if !a.notes() {
		return nil
	}
	a.noting.Lock()
	defer a.noting.Unlock()
	a.placeMissing(st.Disks)
	var paths, olds []string
	unknown := false
	for _, d := range st.Disks {
		olds = append(olds, d.Olds...)
		switch {
		case d.State == disk.DiskRetired: // about to be closed
		case d.Path != "":
			paths = append(paths, d.Path)
		default:
			unknown = true
		}
	}
	if unknown {
		for _, p := range *a.paths.Load() {
			if !slices.Contains(paths, p) {
				paths = append(paths, p)
			}
		}
	}
	before := slices.Sorted(slices.Values(*a.paths.Load()))
	if slices.Equal(before, slices.Sorted(slices.Values(paths))) && slices.Equal(a.olds, olds) && !a.leftover {
		return nil
	}
	a.olds, a.leftover = olds, false
	a.paths.Store(&paths)
	return a.writeNote(st.ArrayID)
}

// handleAdd serves POST /array/add.
func handleAdd(w http.ResponseWriter, r *http.Request, app *appliance) {
	q := r.URL.Query()
	doc, err := app.addDisk(r.Context(), q.Get("path"), disk.AddOptions{Force: q.Get("force") == "true", Spare: q.Get("spare") == "true"}, q.Get("dry") == "true")
	answerOr409(w, doc, err)
}

// handleRemove serves POST /array/remove.
func handleRemove(w http.ResponseWriter, r *http.Request, app *appliance) {
	name := r.URL.Query().Get("disk")
	var doc *disk.Removal
	var err error
	switch do := r.URL.Query().Get("do"); do {
	case "plan":
		doc, err = app.planRemoval(name)
	case "remove":
		doc, err = app.removeDisk(r.Context(), name)
	case "keep":
		doc, err = app.keepDisk(r.Context(), name)
	default:
		err = fmt.Errorf("do %q: want plan, remove or keep", do)
	}
	answerOr409(w, doc, err)
}

// answerOr409 answers a request that is refused with the reason.
func answerOr409(w http.ResponseWriter, doc any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	answerJSON(w, doc)
}
