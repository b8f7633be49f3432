package disk

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"coffer/disk/internal/blockdev"
)

// Memory is a set of disks in memory: the whole engine runs, and only the I/O is missing. It is for benchmarks and for tests of
// the packages above; nothing outlives Close. An array is created on it and opened as on files, one at a time, any number of times.
type Memory struct {
	devs  []blockdev.Device
	power *power
}

// power is what all disks run on.
type power struct {
	mu    sync.RWMutex // held for reading during each operation; guards armed and off
	armed bool         // it fails when left is used up
	off   bool
	left  atomic.Int64 // writes
}

var errPower = errors.New("power is off")

// kept outlives the array that closes it.
type kept struct {
	blockdev.Device
	power *power
}

func (kept) Close() error { return nil }

func (d kept) ReadAt(p []byte, off int64) error {
	d.power.mu.RLock()
	defer d.power.mu.RUnlock()
	if d.power.off {
		return errPower
	}
	return d.Device.ReadAt(p, off)
}

func (d kept) WriteAt(p []byte, off int64, durable bool) error {
	d.power.mu.RLock()
	defer d.power.mu.RUnlock()
	if d.power.off || d.power.armed && d.power.left.Add(-1) < 0 {
		return errPower
	}
	return d.Device.WriteAt(p, off, durable)
}

// CutAfter fails the power after some more writes, and Cut now: whatever is written then is not, until Restore. An array that is open must be closed
// before, and opened again.
func (m *Memory) CutAfter(writes int64) {
	m.power.mu.Lock()
	defer m.power.mu.Unlock()
	m.power.armed = true
	m.power.left.Store(writes)
}

// Cut is described at CutAfter.
func (m *Memory) Cut() {
	m.power.mu.Lock()
	defer m.power.mu.Unlock()
	m.power.off = true
}

// Restore turns the power on again.
func (m *Memory) Restore() {
	m.power.mu.Lock()
	defer m.power.mu.Unlock()
	m.power.armed, m.power.off = false, false
}

// Wipe empties the disk in a slot, as if another one had been put there.
func (m *Memory) Wipe(slot int) error {
	return m.devs[slot].Discard(0, m.devs[slot].Limits().Size)
}

// NewMemory makes n disks of size bytes.
func NewMemory(n int, size int64) (*Memory, error) {
	m := &Memory{power: new(power)}
	for range n {
		d, err := blockdev.NewMemDisk(size)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.devs = append(m.devs, kept{d, m.power})
		if err := d.Discard(0, size); err != nil { // clears: no page fault falls into what is measured
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// Create makes an array as the function Create does. Paths and Force of opt have no meaning here.
func (m *Memory) Create(ctx context.Context, opt CreateOptions) error {
	opt.devices = m.devs
	return Create(ctx, opt)
}

// Discover reads the superblocks as the function Discover does.
func (m *Memory) Discover() (*Set, error) { return discover(m.devs, nil, 0) }

// Close gives the memory back.
func (m *Memory) Close() error {
	var err error
	for _, d := range m.devs {
		err = errors.Join(err, d.(kept).Device.Close())
	}
	m.devs = nil
	return err
}
