package disk

import (
	"context"
	"errors"

	"coffer/disk/internal/blockdev"
)

// Memory is a set of disks in memory: the whole engine runs, and only the I/O is missing. It is for benchmarks and for tests of
// the packages above; nothing outlives Close. An array is created on it and opened as on files, one at a time, any number of times.
type Memory struct{ devs []blockdev.Device }

// kept outlives the array that closes it.
type kept struct{ blockdev.Device }

func (kept) Close() error { return nil }

// NewMemory makes n disks of size bytes.
func NewMemory(n int, size int64) (*Memory, error) {
	m := &Memory{}
	for range n {
		d, err := blockdev.NewMemDisk(size)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.devs = append(m.devs, kept{d})
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
