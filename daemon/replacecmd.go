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
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"coffer/disk"
)

const replaceHelp = `Replace puts the disk NEW into the place of OLD and rebuilds on it what OLD held. OLD is the slot of the
disk or its path, as coffer array status shows them; it may be missing, failed or healthy. NEW must be at
least as large. The array serves meanwhile, beside a running daemon; without one the command opens the
array and stays until the disk is rebuilt.

From the moment the command says so OLD belongs to the array no more, and is ignored should it come back.
Leave it where it is until NEW is rebuilt, if it works: what cannot be computed from the other disks is then
read from OLD. NEW is written, and of a sparse file the room is reserved, before OLD is given up.
With --force NEW may be OLD itself, or a disk that was fenced or given up and is well again: it is rebuilt whole.
Until the rebuild has ended its slot counts as lost: coffer array status shows how far it is. A rebuild
that is interrupted goes on at the next start. It reads the most endangered data first.

Disks that hold an array, a filesystem or a partition table are refused, unless --force overwrites them.`

// replacement is what a replace request did, and with what.
type replacement struct {
	Slot int    `json:"slot"`
	Old  string `json:"old"`
	New  string `json:"new"`
	// Noted says that the data directory remembers the new path; otherwise the configuration's list of disks has to be changed.
	Noted bool `json:"noted"`
}

func newReplaceCommand(e env) *cobra.Command {
	var f arrayFlags
	var force, yes, dryRun, wait bool
	cmd := &cobra.Command{
		Use:   "replace OLD NEW",
		Short: "Replace a disk and rebuild what it held",
		Long:  replaceHelp,
		Example: `  coffer array replace 3 /dev/disk/by-id/nvme-new --dry-run
  coffer array replace /dev/sdd /dev/sdh --wait
  truncate -s 10G /srv/new.img && coffer array replace ./data/disks/disk2.img /srv/new.img --yes`,
		Args: cobra.MatchAll(func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("two arguments wanted: the slot or path of the old disk, and the path of the new one")}
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := newDisk(args[1], force)
			if err != nil {
				return err
			}
			old, err := diskName(args[0])
			if err != nil {
				return err
			}
			if dryRun {
				fmt.Fprintf(e.stdout, "would replace disk %s by %s, and rebuild it; nothing was changed\n", old, path)
				return nil
			}
			if !yes && !f.json {
				fmt.Fprintf(e.stderr, "%s takes the place of disk %s. ", path, old)
				if !confirm(e) {
					return errors.New("nothing was written")
				}
			}
			q := url.Values{"old": {old}, "new": {path}, "force": {strconv.FormatBool(force)}}
			rep := new(replacement)
			err = f.withArray(cmd.Context(), e, http.MethodPost, "/array/replace?"+q.Encode(), rep, true, func(ctx context.Context, app *appliance) (err error) {
				if rep, err = app.replace(ctx, old, path, force); err != nil {
					return err
				}
				return waitRebuilt(ctx, e.stderr, rep.Slot, func() (*arrayStatus, error) { return app.status(false), nil })
			})
			if err != nil {
				return err
			}
			if err := show(e.stdout, f.json, rep, rep.print); err != nil || !wait {
				return err
			}
			return waitRebuilt(cmd.Context(), e.stderr, rep.Slot, f.poll(cmd.Context(), e))
		},
	}
	f.bindOpen(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&force, "force", false, "overwrite what NEW holds")
	fl.BoolVar(&dryRun, "dry-run", false, "check NEW and change nothing")
	fl.BoolVar(&yes, "yes", false, "do not ask")
	fl.BoolVar(&wait, "wait", false, "stay until the disk is rebuilt, showing how far it is")
	return cmd
}

func (r *replacement) print(w io.Writer) {
	fmt.Fprintf(w, "slot %d: %s takes the place of %s and is being rebuilt\n", r.Slot, r.New, r.Old)
	if !r.Noted {
		fmt.Fprintf(w, "put %s into the configuration's list of disks, and take the old one out when it is rebuilt\n", r.New)
	}
}

// replace lets a disk take the place of another, named by slot or path, and notes it in the data directory.
func (a *appliance) replace(ctx context.Context, old, path string, force bool) (*replacement, error) {
	d, err := a.slotOf(old)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", disk.ErrReplace, err)
	}
	if err := a.joining(path, func() error { return a.array.Replace(ctx, d.Slot, path, force) }); err != nil {
		return nil, err
	}
	return &replacement{Slot: d.Slot, Old: d.Path, New: path, Noted: a.notes()}, nil
}

// noted reports whether the data directory says where the disks are.
func (d dataDir) noted() bool {
	_, err := os.Stat(d.arrayFile())
	return err == nil
}

// noteDisks writes array.yaml.
func (d dataDir) noteDisks(id [16]byte, paths, maybe []string) error {
	note, err := yaml.Marshal(arrayNote{ArrayID: hex.EncodeToString(id[:]), Disks: paths, Maybe: maybe})
	if err != nil {
		return fmt.Errorf("note disks: %w", err)
	}
	return writeFile(d.arrayFile(), note, 0o600)
}

// rebuildPoll is how often the progress of a rebuild is looked at.
const rebuildPoll = 500 * time.Millisecond

// watchSlot looks at a slot until say, which is given the disk in it, nil if it is empty, reports the end or an error. What say returns to
// be shown is shown when it changes.
func watchSlot(ctx context.Context, w io.Writer, slot int, status func() (*arrayStatus, error), say func(d *disk.DiskStatus) (line string, done bool, err error)) error {
	tick := time.NewTicker(rebuildPoll)
	defer tick.Stop()
	for shown := ""; ; {
		st, err := status()
		if err != nil {
			return err
		}
		var d *disk.DiskStatus
		if i := slices.IndexFunc(st.Disks, func(d disk.DiskStatus) bool { return d.Slot == slot }); i >= 0 {
			d = &st.Disks[i]
		}
		line, done, err := say(d)
		if err != nil {
			return fmt.Errorf("%w: slot %d %w", errUnhealthy, slot, err)
		}
		if st.State == "stopped" {
			return fmt.Errorf("%w: the array has stopped: %s", errUnhealthy, st.Reason)
		}
		if line != "" && line != shown {
			fmt.Fprintf(w, "slot %d%s\n", slot, line)
			shown = line
		}
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitRebuilt shows how far the rebuild of a slot is until it has ended.
func waitRebuilt(ctx context.Context, w io.Writer, slot int, status func() (*arrayStatus, error)) error {
	return watchSlot(ctx, w, slot, status, func(d *disk.DiskStatus) (line string, done bool, err error) {
		switch {
		case d == nil:
			return "", false, errors.New("is empty")
		case d.State == disk.DiskHealthy:
			return " is rebuilt", true, nil
		case d.State != disk.DiskRebuilding, d.Rebuild != nil && d.Rebuild.Failed > 0 && d.Rebuild.Left == 0:
			return "", false, fmt.Errorf("is %s: %s", d.State, d.Reason)
		case d.Rebuild != nil:
			line = ": " + rebuildLine(d.Rebuild)
		}
		return line, false, nil
	})
}

// waitDrained shows how far the drain of a slot is until the slot is empty.
func waitDrained(ctx context.Context, w io.Writer, slot int, status func() (*arrayStatus, error)) error {
	return watchSlot(ctx, w, slot, status, func(d *disk.DiskStatus) (line string, done bool, err error) {
		switch {
		case d == nil:
			return " is empty", true, nil
		case d.Drain == nil:
			return "", false, fmt.Errorf("is not drained any more: it is %s", d.State)
		}
		return ": " + rebuildLine(d.Drain), false, nil
	})
}
