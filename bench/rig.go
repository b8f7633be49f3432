package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object"
)

// The array that everything is measured on: the default of the daemon's first start.
const (
	disks       = 6
	dataCells   = 4
	parityCells = 2
	cellBytes   = 1<<20 + disk.BlockSize // of a full bulk cell
	stripeData  = dataCells << 20        // of a full bulk stripe
)

// sets is how many arrays can be open at once, each on disks of its own.
const sets = 2

const bucket = "bench"

// rig owns the files and the memory disks, on which one array after the other is made.
type rig struct {
	dir    string
	paths  [sets][]string
	size   int64 // of a file, bytes
	extent int64
	memory [sets]*disk.Memory // nil until first used
	spare  string             // a disk file beside those of set 0
	crypto *hw.Engine
	io     string // kind of the file group
	beds   int
}

// newRig makes the files and writes them once: the first write into a reserved extent is several times slower, and arrays in
// use are past it.
func newRig(ctx context.Context, o options) (r *rig, err error) {
	r = &rig{size: 1 << 30, extent: 32 << 20} // extents as of disks of 8 GiB, those of the first start
	if o.quick {
		r.size, r.extent = 192<<20, 8<<20
	}
	if r.crypto, err = hw.Probe(hw.Options{}); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp(o.dir, "coffer-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for set := range sets {
		if err := r.makeFiles(set); err != nil {
			return nil, err
		}
	}
	b, err := r.open(ctx, bedOptions{})
	if err != nil {
		return nil, err
	}
	r.io = b.array.Status().IO
	return r, b.close()
}

func (r *rig) makeFiles(set int) error {
	for i := range disks {
		p := filepath.Join(r.dir, fmt.Sprintf("disk%d.%d.img", set, i))
		if err := disk.CreateFile(p, r.size); err != nil {
			return err
		}
		r.paths[set] = append(r.paths[set], p)
	}
	return r.fill(r.paths[set])
}

func (r *rig) fill(paths []string) error {
	p, err := openPlain(paths)
	if err != nil {
		return err
	}
	return errors.Join(p.fill(r.size), p.close())
}

// makeSpare makes one more file, to put in the place of others.
func (r *rig) makeSpare() error {
	if r.spare != "" {
		return nil
	}
	r.spare = filepath.Join(r.dir, "spare.img")
	if err := disk.CreateFile(r.spare, r.size); err != nil {
		return err
	}
	return r.fill([]string{r.spare})
}

func (r *rig) close() error {
	var err error
	for _, m := range r.memory {
		if m != nil {
			err = errors.Join(err, m.Close())
		}
	}
	return errors.Join(err, os.RemoveAll(r.dir))
}

// bedOptions say what array to make.
type bedOptions struct {
	set    int
	memory bool
	cipher hw.Primitive // of the store
	bare   bool         // no store above: records are counted and forgotten
	state  disk.State   // what takes the records instead of a store, if not nil
	own    *disk.Memory // disks in memory instead of the rig's
	extent int64        // 0: the rig's
}

// bed is a fresh array with a store above it.
type bed struct {
	keys  *kms.Keyring
	array *disk.Array
	store *object.Store // nil on a bare array
	dir   string
}

// forget is the state of a bare array.
type forget struct{}

func (forget) Position() (disk.Position, error)        { return disk.Position{}, nil }
func (forget) Apply(disk.Position, []disk.Entry) error { return nil }
func (forget) Reset() error                            { return nil }
func (forget) Freed() ([]disk.StripeRange, error)      { return nil, nil }

// open makes a new array over whatever the disks hold, and opens it.
func (r *rig) open(ctx context.Context, o bedOptions) (_ *bed, err error) {
	r.beds++
	b := &bed{dir: filepath.Join(r.dir, fmt.Sprint("bed", r.beds))}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:])
	if b.keys, err = kms.Create(ctx, id, kms.NewFileSlot(filepath.Join(b.dir, "root.key"))); err != nil {
		return nil, err
	}
	set, err := r.create(ctx, o, disk.CreateOptions{ArrayID: id, Paths: r.paths[o.set], Keys: b.keys, Force: true,
		Geometry: disk.Geometry{Data: dataCells, Parity: parityCells, ExtentSize: cmp.Or(o.extent, r.extent)}})
	if err != nil {
		return nil, err
	}
	state := disk.State(forget{})
	switch {
	case o.state != nil:
		state = o.state
	case !o.bare:
		b.store, err = object.New(object.Options{IndexDir: filepath.Join(b.dir, "index"), Keys: b.keys, Crypto: r.crypto, Cipher: o.cipher})
		if err != nil {
			return nil, errors.Join(err, set.Close())
		}
		state = b.store
	}
	if b.array, err = set.Open(ctx, disk.Options{Keys: b.keys, State: state, Crypto: r.crypto}); err != nil {
		return nil, err
	}
	if b.store != nil {
		b.store.Start(object.OnArray(b.array))
		_, err = b.store.CreateBucket(ctx, bucket, object.Bucket{})
	}
	return b, err
}

// create makes the array on files or in memory.
func (r *rig) create(ctx context.Context, o bedOptions, c disk.CreateOptions) (*disk.Set, error) {
	if o.own != nil {
		if err := o.own.Create(ctx, c); err != nil {
			return nil, err
		}
		return o.own.Discover()
	}
	if !o.memory {
		if err := disk.Create(ctx, c); err != nil {
			return nil, err
		}
		return disk.Discover(c.Paths, false)
	}
	c.Geometry.ExtentSize /= 4 // as the disks are smaller
	if r.memory[o.set] == nil {
		m, err := disk.NewMemory(disks, r.size/4)
		if err != nil {
			return nil, err
		}
		r.memory[o.set] = m
	}
	if err := r.memory[o.set].Create(ctx, c); err != nil {
		return nil, err
	}
	return r.memory[o.set].Discover()
}

// reopen closes a bare array and opens it with the disks at paths alone.
func (b *bed) reopen(ctx context.Context, crypto *hw.Engine, paths []string) error {
	err := b.array.Close()
	b.array = nil
	if err != nil {
		return err
	}
	set, err := disk.Discover(paths, false)
	if err != nil {
		return err
	}
	b.array, err = set.Open(ctx, disk.Options{Keys: b.keys, State: forget{}, Crypto: crypto})
	return err
}

func (b *bed) close() error {
	var err error
	if b.store != nil {
		b.store.Stop()
	}
	if b.array != nil {
		err = b.array.Close()
	}
	if b.store != nil {
		err = errors.Join(err, b.store.Close())
	}
	if b.keys != nil {
		b.keys.Close()
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// moved sums up the disks' counters: reads, and bytes written.
func (b *bed) moved() (reads, written uint64) {
	for _, d := range b.array.Status().Disks {
		reads += d.Stats.Reads
		written += d.Stats.WriteBytes
	}
	return reads, written
}
