package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"coffer/disk"
)

// readQualified returns what was measured of disks; none if nothing was noted.
func (d dataDir) readQualified() (disks []disk.Qualification, err error) {
	b, err := os.ReadFile(d.qualified())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &disks)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.qualified(), err)
	}
	return disks, nil
}

// noteQualified keeps a measurement, in the place of an earlier one of the same disk.
func (d dataDir) noteQualified(q *disk.Qualification) error {
	disks, err := d.readQualified()
	if err != nil {
		return err
	}
	disks = slices.DeleteFunc(disks, func(o disk.Qualification) bool { return isDisk(&o, q.Path, q.Serial, q.Size) })
	b, err := json.MarshalIndent(append(disks, *q), "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.qualified(), append(b, '\n'), 0o600)
}

// isDisk reports whether a measurement is one of this disk. A serial number says so wherever the disk is; without one the path does.
func isDisk(q *disk.Qualification, path, serial string, size int64) bool {
	if q.Serial != "" || serial != "" {
		return q.Serial == serial && q.Size == size
	}
	return q.Path == path && q.Size == size
}

// model looks a disk up among those that were measured, each time anew. A note that cannot be read costs the model, not the start.
func (d dataDir) model(log *slog.Logger) func(path, serial string, size int64) *disk.Model {
	return func(path, serial string, size int64) *disk.Model {
		disks, err := d.readQualified()
		if err != nil {
			log.Warn("measurements of disks not used", "cause", err)
		}
		for i := range disks {
			if m := disks[i].DiskModel(); isDisk(&disks[i], path, serial, size) && m.Valid() {
				return m
			}
		}
		return nil
	}
}
