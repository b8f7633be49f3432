package disk

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"coffer/disk/internal/blockdev"
)

// simArray is an array on simulated disks, run by the engine's own goroutines.
type simArray struct {
	t     testing.TB
	world *blockdev.World
	disks []*blockdev.SimDisk
	state *testState
	opt   Options
}

// newSimArray makes an array of n disks with the given number of 1 MiB extents each.
func newSimArray(t testing.TB, n, data, parity, extents int) *simArray {
	t.Helper()
	s := &simArray{t: t, world: blockdev.NewWorld(rand.New(rand.NewPCG(1, 2))), state: &testState{}}
	for range n {
		s.disks = append(s.disks, blockdev.NewSimDisk(s.world, superArea+int64(extents)<<20, blockdev.SimOptions{}))
	}
	s.create(CreateOptions{ArrayID: [16]byte{9}, Geometry: Geometry{Data: data, Parity: parity, ExtentSize: 1 << 20}, Keys: testKeys{}})
	return s
}

func (s *simArray) create(opt CreateOptions) {
	s.t.Helper()
	for _, d := range s.disks {
		opt.devices = append(opt.devices, d)
	}
	opt.group = simGroup
	if err := Create(context.Background(), opt); err != nil {
		s.t.Fatal(err)
	}
}

// tryOpen opens the array as a process does that starts now, with the given disks, all when there are none given.
func (s *simArray) tryOpen(disks ...*blockdev.SimDisk) (*Array, error) {
	s.world.Restart()
	if disks == nil {
		disks = s.disks
	}
	var devs []blockdev.Device
	for _, d := range disks {
		devs = append(devs, d)
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		return nil, err
	}
	o := s.opt
	if o.Keys == nil {
		o.Keys = testKeys{}
	}
	o.Crypto, o.State = crypto(), s.state
	if o.group == nil {
		o.group = simGroup
	}
	return set.Open(context.Background(), o)
}

func (s *simArray) open(disks ...*blockdev.SimDisk) *Array {
	s.t.Helper()
	a, err := s.tryOpen(disks...)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// snapshot is what all disks hold.
func (s *simArray) snapshot() (images []blockdev.SimImage) {
	for _, d := range s.disks {
		images = append(images, d.Snapshot())
	}
	return images
}

func (s *simArray) restore(images []blockdev.SimImage) {
	for i, d := range s.disks {
		d.Restore(images[i])
	}
}

// xor changes one byte on a disk.
func xor(d *blockdev.SimDisk, off int64, mask byte) {
	page := make([]byte, BlockSize)
	base := off &^ (BlockSize - 1)
	d.Peek(page, base)
	page[off-base] ^= mask
	d.Overwrite(base, page)
}

// written is what a test has put into an array and must find again.
type written struct {
	mu      sync.Mutex
	records map[uint64]int    // id -> size of the data
	bulk    map[uint64]Stripe // first id -> stripe
}

func newWritten() *written {
	return &written{records: map[uint64]int{}, bulk: map[uint64]Stripe{}}
}

// put appends a record whose body says what its data is.
func (c *written) put(a *Array, id uint64, size int) error {
	_, err := a.Append(context.Background(), Record{Body: fmt.Appendf(nil, "rec %d", id), Data: payload(id, size)})
	if err == nil {
		c.mu.Lock()
		c.records[id] = max(size, 40)
		c.mu.Unlock()
	}
	return err
}

// putBulk writes a bulk stripe of n segments.
func (c *written) putBulk(a *Array, id uint64, n int) error {
	s, err := writeStripe(a, id, n)
	if err == nil {
		c.mu.Lock()
		c.bulk[id] = s
		c.mu.Unlock()
	}
	return err
}

// verify reads everything back: each acknowledged record is in the state once, and has its bytes.
func (c *written) verify(a *Array, s *testState) error {
	s.mu.Lock()
	entries := slices.Clone(s.entries)
	s.mu.Unlock()
	seen := map[uint64]bool{}
	for _, e := range entries {
		var id uint64
		if _, err := fmt.Sscanf(e.body, "rec %d", &id); err != nil {
			return fmt.Errorf("body %q: %w", e.body, err)
		}
		size, known := c.records[id]
		if !known {
			continue // in doubt when a fault met it
		}
		if seen[id] {
			return fmt.Errorf("record %d is there twice", id)
		}
		seen[id] = true
		p, err := readLoc(a, e.data, id)
		if err != nil {
			return fmt.Errorf("record %d: %w", id, err)
		}
		if string(p) != string(payload(id, size)) {
			return fmt.Errorf("record %d: wrong bytes", id)
		}
	}
	for id := range c.records {
		if !seen[id] {
			return fmt.Errorf("record %d was acknowledged and is gone", id)
		}
	}
	for id, st := range c.bulk {
		got, err := readSegments(a, st, 0, int(st.Segments), id)
		if err != nil {
			return fmt.Errorf("stripe %d: %w", id, err)
		}
		for i, p := range got {
			if string(p) != string(payload(id+uint64(i), SegmentSize)) {
				return fmt.Errorf("stripe %d segment %d: wrong bytes", id, i)
			}
		}
	}
	return nil
}

// fill writes records of many sizes from several goroutines and some bulk stripes.
func (c *written) fill(t testing.TB, a *Array, base uint64) {
	t.Helper()
	var wg sync.WaitGroup
	for g := range uint64(6) {
		wg.Go(func() {
			for i, size := range []int{40, 700, 4096, 9000, 60 << 10, 150 << 10} {
				if err := c.put(a, base+g*100+uint64(i), size); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i, n := range []int{1, 3, 4, 10} {
		wg.Go(func() {
			if err := c.putBulk(a, base+1<<20+uint64(i)<<10, n); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// place of a cell: which disk, and where.
type cellPlace struct {
	slot int
	at   int64
}

// cell finds the cell with the given role of the stripe at block off of a band.
func cell(a *Array, band uint64, off uint32, role int) cellPlace {
	b := a.bands[band]
	m := b.members[(rotation(band, off, len(b.members))+role)%len(b.members)]
	return cellPlace{m.slot, a.geo.extentOffset(m.extent) + int64(off)*BlockSize}
}
