package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
)

// The embedded array: a first start without disks makes its own, as files.
const (
	embeddedDisks     = 6 // 4+2
	maxEmbeddedDisk   = 8 << 30
	embeddedShareTen  = 6 // tenths of the free space that all disk files together take at most
	embeddedSizeGrain = 1 << 20
)

// createOptions describe an array to be made.
type createOptions struct {
	disks          []string
	geometry       disk.Geometry // zero fields are chosen
	diskSize       Size          // of disk files that do not exist yet
	passphraseFile string        // seals the root key instead of a key file
	force          bool          // overwrite disks that hold something
}

// created is what an operator must be told about a new array. The secrets are shown once and kept nowhere else.
type created struct {
	arrayPlan
	RecoveryKey string `json:"recovery_key"`
	AccessKey   string `json:"access_key,omitempty"` // "": given from outside
	SecretKey   string `json:"secret_key,omitempty"`
}

// arrayPlan is what would be made. Sizes are bytes.
type arrayPlan struct {
	ArrayID    string     `json:"array_id,omitempty"`
	Data       int        `json:"data"`
	Parity     int        `json:"parity"`
	ExtentSize int64      `json:"extent_size"`
	Usable     int64      `json:"usable"` // capacity of the array
	Disks      []planDisk `json:"disks"`
}

type planDisk struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`
	New   bool   `json:"new"`             // a file to be made
	Holds string `json:"holds,omitempty"` // what would be overwritten
}

// planArray inspects the disks and chooses what is left open, without writing anything.
func planArray(opt *createOptions) (*arrayPlan, error) {
	p := &arrayPlan{}
	var sizes []int64
	given := map[string]string{}
	for _, path := range opt.disks {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("plan array: %w", err)
		}
		id, err := diskIdentity(abs)
		if err != nil {
			return nil, fmt.Errorf("plan array: %w", err)
		}
		if other, ok := given[id]; ok {
			return nil, usageError{fmt.Errorf("%s and %s are the same disk", other, path)}
		}
		given[id] = path
		d, err := inspectDisk(abs, opt.diskSize)
		if err != nil {
			return nil, err
		}
		p.Disks = append(p.Disks, d)
		sizes = append(sizes, d.Size)
	}
	geo, err := disk.Plan(opt.geometry, sizes)
	if err != nil {
		return nil, usageError{fmt.Errorf("plan array: %w", err)}
	}
	p.Data, p.Parity, p.ExtentSize = geo.Data, geo.Parity, geo.ExtentSize
	p.Usable = geo.Capacity(sizes)
	return p, nil
}

// inspectDisk describes the disk at path. One that does not exist is a file to be made, if newSize says how large.
func inspectDisk(path string, newSize Size) (d planDisk, err error) {
	d.Path = path
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && newSize > 0:
		d.New, d.Size = true, int64(newSize)
		return d, nil
	case errors.Is(err, fs.ErrNotExist):
		return d, usageError{fmt.Errorf("%s does not exist; --disk-size would make it a file of that size", path)}
	case err != nil:
		return d, fmt.Errorf("plan array: %w", err)
	}
	d.Size, err = f.Seek(0, io.SeekEnd)
	if err = errors.Join(err, f.Close()); err != nil {
		return d, fmt.Errorf("plan array: size of %s: %w", path, err)
	}
	if d.Holds, err = disk.Inspect(path); err != nil {
		return d, fmt.Errorf("plan array: %w", err)
	}
	return d, nil
}

// diskIdentity tells disks apart, whatever the path that leads to them: a block device by its number, a file by its inode, one that
// is yet to be made by its name in its directory.
func diskIdentity(path string) (string, error) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK:
		return fmt.Sprintf("device %d", st.Rdev), nil
	case err == nil:
		return fmt.Sprintf("file %d on %d", st.Ino, st.Dev), nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("inspect %s: %w", path, err)
	}
	dir, name := filepath.Split(path)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // else creation makes the directory
	}
	return "new " + filepath.Join(dir, name), nil
}

// refuse says why the plan must not be carried out, nil if it may.
func (p *arrayPlan) refuse(force bool) error {
	var errs []error
	for _, d := range p.Disks {
		if d.Holds != "" && !force {
			errs = append(errs, fmt.Errorf("%s holds %s: %w; --force overwrites it", d.Path, d.Holds, disk.ErrInUse))
		}
	}
	return errors.Join(errs...)
}

// createArray makes the disk files that are missing, the keys and the array, and notes where the disks are. The data directory is
// locked. The root credentials are made by the first use of the array.
func createArray(ctx context.Context, dir dataDir, p *arrayPlan, opt *createOptions) (_ *created, err error) {
	if err := p.refuse(opt.force); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir.arrayFile()); err == nil && !opt.force {
		return nil, fmt.Errorf("%s already tells of an array; --force forgets it", dir.arrayFile())
	}
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				os.Remove(path)
			}
		}
	}()
	var paths []string
	for _, d := range p.Disks {
		paths = append(paths, d.Path)
		if !d.New {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(d.Path), 0o700); err != nil {
			return nil, fmt.Errorf("create disk file: %w", err)
		}
		made = append(made, d.Path)
		if err := disk.CreateFile(d.Path, d.Size); err != nil {
			return nil, fmt.Errorf("create disk file: %w", err)
		}
	}
	var id [16]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	slot, forget, err := newArraySlot(dir, opt.passphraseFile)
	if err != nil {
		return nil, err
	}
	defer forget()
	recovery, text, err := kms.NewRecoverySlot()
	if err != nil {
		return nil, err
	}
	keys, err := kms.Create(ctx, id, slot, recovery)
	if err != nil {
		return nil, err
	}
	defer keys.Close()
	err = disk.Create(ctx, disk.CreateOptions{ArrayID: id, Paths: paths, Keys: keys, Force: opt.force,
		Geometry: disk.Geometry{Data: p.Data, Parity: p.Parity, ExtentSize: p.ExtentSize}})
	if err != nil {
		return nil, fmt.Errorf("create array: %w", err)
	}
	// An index that an earlier array left here would only be found out and replayed anew.
	if err := errors.Join(dir.noteDisks(id, paths, nil), os.RemoveAll(dir.index())); err != nil {
		return nil, fmt.Errorf("note the array: %w", err)
	}
	p.ArrayID = hex.EncodeToString(id[:])
	return &created{arrayPlan: *p, RecoveryKey: text}, nil
}

// newArraySlot is what opens a new array at each start: a passphrase, or a key file in the data directory. The slot serves until forget.
func newArraySlot(dir dataDir, passphraseFile string) (slot kms.Slot, forget func(), err error) {
	if passphraseFile != "" {
		pass, err := readSecret(passphraseFile) // once, as it may be a pipe
		if err != nil {
			return nil, nil, err
		}
		if len(pass) < kms.MinPassphrase || len(pass) > kms.MaxPassphrase {
			clear(pass)
			return nil, nil, fmt.Errorf("the passphrase in %s is not of %d to %d bytes", passphraseFile, kms.MinPassphrase, kms.MaxPassphrase)
		}
		ask := func(context.Context) ([]byte, error) { return bytes.Clone(pass), nil }
		return kms.NewPassphraseSlot(ask, kms.Argon2{}), func() { clear(pass) }, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir.rootKey()), 0o700); err != nil {
		return nil, nil, fmt.Errorf("make key directory: %w", err)
	}
	return kms.NewFileSlot(dir.rootKey()), func() {}, nil
}

// embeddedArray plans the array of a first start without disks.
func embeddedArray(dir dataDir, size Size) (*arrayPlan, *createOptions, error) {
	if size == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(string(dir), &st); err != nil {
			return nil, nil, fmt.Errorf("ask for free space in %s: %w", dir, err)
		}
		free := st.Bavail * uint64(st.Bsize)
		size = Size(min(free/10*embeddedShareTen/embeddedDisks, maxEmbeddedDisk) / embeddedSizeGrain * embeddedSizeGrain)
		if size < minEmbeddedDisk {
			return nil, nil, fmt.Errorf("%v free in %s: too little for %d disk files of %v", Size(free), dir, embeddedDisks, Size(minEmbeddedDisk))
		}
	}
	opt := &createOptions{diskSize: size}
	for i := range embeddedDisks {
		opt.disks = append(opt.disks, filepath.Join(dir.disks(), fmt.Sprintf("disk%d.img", i)))
	}
	p, err := planArray(opt)
	return p, opt, err
}

// probeHardware is replaced in tests, which share one engine among hundreds of commands.
var probeHardware = hw.Probe

// probe starts the crypto engine for a command other than serve: no benchmark, and no log but for faults.
func probe(cfg *Config, log *slog.Logger) (*hw.Engine, error) {
	return probeHardware(hw.Options{Pin: pins(cfg), SkipBench: true, Logger: log})
}

// pins are the configured paths.
func pins(cfg *Config) map[hw.Primitive]string {
	m := make(map[hw.Primitive]string, len(cfg.Hardware.Pin))
	for p, path := range cfg.Hardware.Pin {
		m[hw.Primitive(p)] = path
	}
	return m
}
