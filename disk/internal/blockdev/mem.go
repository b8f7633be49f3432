package blockdev

import (
	"fmt"
	"time"
)

// memDevice is a Device on plain memory: the cost of a disk without the disk, for benchmarks.
type memDevice struct {
	path     string
	mem      []byte
	refs     refs
	counters counters
}

// NewMemDisk makes a device of size bytes of huge-page memory. Nothing of it outlives Close.
func NewMemDisk(size int64) (Device, error) {
	if size <= 0 || size%Align != 0 {
		return nil, fmt.Errorf("create memory disk of %d bytes: %w", size, ErrInvalid)
	}
	mem, err := mapHuge(int(size))
	if err != nil {
		return nil, fmt.Errorf("create memory disk of %d bytes: %w", size, err)
	}
	d := &memDevice{path: fmt.Sprintf("mem:%p", &mem[0]), mem: mem}
	d.refs.init()
	return d, nil
}

func (d *memDevice) Path() string    { return d.path }
func (d *memDevice) Stats() Stats    { return d.counters.snapshot() }
func (d *memDevice) stat() *counters { return &d.counters }

func (d *memDevice) Limits() Limits {
	return Limits{Size: int64(len(d.mem)), LogicalBlock: Align, MemAlign: Align, OffAlign: Align, Kind: "mem"}
}

func (d *memDevice) ReadAt(p []byte, off int64) error { return d.transfer(p, off, false, false) }

func (d *memDevice) WriteAt(p []byte, off int64, durable bool) error {
	return d.transfer(p, off, true, durable)
}

func (d *memDevice) transfer(p []byte, off int64, write, durable bool) error {
	if err := checkRange(d.path, p, off, int64(len(d.mem))); err != nil {
		return err
	}
	return d.with(func() {
		start := time.Now()
		if write {
			copy(d.mem[off:], p)
		} else {
			copy(p, d.mem[off:])
		}
		d.counters.done(write, durable, len(p), time.Since(start), nil)
	})
}

// with runs f while the memory is mapped.
func (d *memDevice) with(f func()) error {
	if !d.refs.acquire() {
		return fmt.Errorf("access %s: %w", d.path, ErrClosed)
	}
	f()
	if d.refs.release() {
		return unmap(d.mem)
	}
	return nil
}

func (d *memDevice) Flush() error {
	return d.with(func() { d.counters.flushed(nil) })
}

func (d *memDevice) Discard(off, n int64) error {
	if err := checkSpan(d.path, off, n, int64(len(d.mem))); err != nil {
		return err
	}
	return d.with(func() { clear(d.mem[off : off+n]) })
}

func (d *memDevice) Prepare(off, n int64) error {
	if err := checkSpan(d.path, off, n, int64(len(d.mem))); err != nil {
		return err
	}
	return d.with(func() {})
}

func (d *memDevice) Reserve(off, n int64) error { return d.Prepare(off, n) }

func (d *memDevice) Close() error {
	first, last := d.refs.close()
	if !first {
		return fmt.Errorf("close %s: %w", d.path, ErrClosed)
	}
	if last {
		return unmap(d.mem)
	}
	return nil
}
