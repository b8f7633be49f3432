package disk

import (
	"errors"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// These tests are of arrays in memory whose disks do not answer for a moment, or late, while others are filled or emptied.

// memArray is an array over devices that lie before disks in memory.
type memArray struct {
	t     *testing.T
	devs  []blockdev.Device
	state *testState
	opt   Options
	w     *written
}

// newMemArray makes an array of data+parity disks, and more disks that do not belong to it.
func newMemArray(t *testing.T, n, data, parity int, before func(i int, d blockdev.Device) blockdev.Device) *memArray {
	t.Helper()
	m, err := NewMemory(n, superArea+24<<20)
	if err != nil {
		t.Fatal(err)
	}
	members := &Memory{devs: m.devs[:min(n, data+parity)]}
	err = members.Create(t.Context(), CreateOptions{ArrayID: [16]byte{3}, Geometry: Geometry{Data: data, Parity: parity, ExtentSize: 1 << 20}, Keys: testKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	f := &memArray{t: t, w: newWritten(), opt: Options{Keys: testKeys{}, Crypto: crypto(), PreferPool: true, retry: 20 * time.Millisecond}}
	for i, d := range m.devs {
		f.devs = append(f.devs, before(i, d))
	}
	return f
}

// open opens the array with some of the disks.
func (f *memArray) open(disks ...int) *Array {
	f.t.Helper()
	var devs []blockdev.Device
	for _, i := range disks {
		devs = append(devs, f.devs[i])
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	f.state = &testState{}
	o := f.opt
	o.State = f.state
	a, err := set.Open(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return a
}

// fill writes stripes and records.
func (f *memArray) fill(a *Array, n int) {
	f.t.Helper()
	for i := range uint64(n) {
		if err := f.w.putBulk(a, 1<<30+i<<12, a.MaxStripeSegments()); err != nil {
			f.t.Fatal(err)
		}
		if err := f.w.put(a, i+1, 4096); err != nil {
			f.t.Fatal(err)
		}
	}
}

// checkWhole fails unless every cell is where it belongs, and closes the array. Then everything must be readable with only these disks.
func (f *memArray) checkWhole(a *Array, disks ...int) {
	f.t.Helper()
	rep, err := a.Check(f.t.Context(), CheckOptions{})
	if err != nil || !rep.OK() {
		f.t.Errorf("%v; %d cells bad, %d missing: %v", err, rep.Bad, rep.Missing, rep.Faults)
	}
	if faults := a.Accounts(); len(faults) > 0 {
		f.t.Error(faults)
	}
	f.reopen(a, disks...)
}

func (f *memArray) reopen(a *Array, disks ...int) {
	f.t.Helper()
	if err := a.Close(); err != nil {
		f.t.Error(err)
	}
	a = f.open(disks...)
	if err := f.w.verify(a, f.state); err != nil {
		f.t.Errorf("with disks %v: %v", disks, err)
	}
	if err := a.Close(); err != nil {
		f.t.Error(err)
	}
}

// unreadable is a disk of which everything but the superblock cannot be read while fails is set.
type unreadable struct {
	blockdev.Device
	fails *atomic.Bool
}

func (d unreadable) ReadAt(p []byte, off int64) error {
	if d.fails.Load() && off >= superArea {
		return errors.New("input/output error")
	}
	return d.Device.ReadAt(p, off)
}

// TestRebuildWaitsForReads: a rebuild does not take cells for lost that another disk does not yield for a moment.
func TestRebuildWaitsForReads(t *testing.T) {
	var fails [5]atomic.Bool
	f := newMemArray(t, 5, 3, 1, func(i int, d blockdev.Device) blockdev.Device { return unreadable{d, &fails[i]} })
	a := f.open(0, 1, 2, 3)
	f.fill(a, 10)
	fails[2].Store(true)
	if err := a.replace(t.Context(), 1, f.devs[4]); err != nil {
		t.Fatal(err)
	}
	until(t, a, "a band fails", func(s Status) bool { return s.Disks[1].Rebuild != nil && s.Disks[1].Rebuild.Failed > 0 })
	fails[2].Store(false)
	until(t, a, "the disk is rebuilt", func(s Status) bool { return s.State == "healthy" })
	f.checkWhole(a, 0, 4, 3)
}

// TestDrainWaitsForReads: a disk does not leave with cells that could not be read for a moment.
func TestDrainWaitsForReads(t *testing.T) {
	var fails [5]atomic.Bool
	f := newMemArray(t, 5, 3, 1, func(i int, d blockdev.Device) blockdev.Device { return unreadable{d, &fails[i]} })
	a := f.open(0, 1, 2, 3)
	if _, err := a.add(t.Context(), f.devs[4], false); err != nil {
		t.Fatal(err)
	}
	f.fill(a, 10)
	fails[1].Store(true)
	fails[2].Store(true)
	if err := a.Remove(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	until(t, a, "a band fails", func(s Status) bool { return !s.has(1) || s.Disks[1].Drain != nil && s.Disks[1].Drain.Failed > 0 })
	fails[1].Store(false)
	fails[2].Store(false)
	until(t, a, "the disk is drained", func(s Status) bool { return !s.has(1) })
	f.checkWhole(a, 2, 3, 4)
}

// gated is a disk whose writes of band headers wait, from the first on, until release is closed.
type gated struct {
	blockdev.Device
	once             *sync.Once
	reached, release chan struct{}
}

func (d gated) WriteAt(p []byte, off int64, durable bool) error {
	if len(p) == BlockSize && off >= superArea && (off-superArea)%(1<<20) == 0 {
		d.once.Do(func() { close(d.reached); <-d.release })
	}
	return d.Device.WriteAt(p, off, durable)
}

// TestReplacedWhileRebuilt: a disk takes the place of one that is just being told that it has all of a band. It has none.
func TestReplacedWhileRebuilt(t *testing.T) {
	g := gated{once: new(sync.Once), reached: make(chan struct{}), release: make(chan struct{})}
	f := newMemArray(t, 6, 3, 1, func(i int, d blockdev.Device) blockdev.Device {
		if i == 4 {
			g.Device = d
			return g
		}
		return d
	})
	a := f.open(0, 1, 2, 3)
	f.fill(a, 10)
	if err := a.replace(t.Context(), 1, f.devs[4]); err != nil {
		t.Fatal(err)
	}
	<-g.reached
	if err := a.replace(t.Context(), 1, f.devs[5]); err != nil {
		t.Fatal(err)
	}
	close(g.release)
	until(t, a, "the disk is rebuilt", func(s Status) bool { return s.State == "healthy" })
	f.checkWhole(a, 0, 5, 3)
}

// slowHeads is a disk that takes its time for blocks.
type slowHeads struct{ blockdev.Device }

func (d slowHeads) WriteAt(p []byte, off int64, durable bool) error {
	if len(p) == BlockSize {
		time.Sleep(3 * time.Millisecond)
	}
	return d.Device.WriteAt(p, off, durable)
}

// TestTwoDrains: two disks leave at the same time, and meet in the same bands.
func TestTwoDrains(t *testing.T) {
	f := newMemArray(t, 8, 4, 2, func(_ int, d blockdev.Device) blockdev.Device { return slowHeads{d} })
	a := f.open(0, 1, 2, 3, 4, 5)
	for _, i := range []int{6, 7} {
		if _, err := a.add(t.Context(), f.devs[i], false); err != nil {
			t.Fatal(err)
		}
	}
	a.SetRebuildRate(1)
	f.fill(a, 10)
	for _, slot := range []int{1, 2} {
		if err := a.Remove(t.Context(), slot); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil { // so that both begin at once
		t.Fatal(err)
	}
	a = f.open(0, 1, 2, 3, 4, 5, 6, 7)
	until(t, a, "both disks are drained", func(s Status) bool { return !s.has(1) && !s.has(2) })
	if faults := a.Accounts(); len(faults) > 0 {
		t.Error(faults)
	}
	inMemory := map[uint64][]bandMember{}
	for _, b := range a.sortedBands() {
		inMemory[b.num] = b.members
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = f.open(0, 3, 4, 5, 6, 7)
	for _, b := range a.sortedBands() {
		if want, ok := inMemory[b.num]; ok && !slices.Equal(want, b.members) {
			t.Errorf("band %x lies at %v by its headers, it was taken to be at %v", b.num, b.members, want)
		}
	}
	f.checkWhole(a, 0, 3, 6, 7)
}

// lateDiscard is a disk whose discards come back when release is closed.
type lateDiscard struct {
	blockdev.Device
	on      *atomic.Bool
	release chan struct{}
	begun   *sync.WaitGroup
	ends    *sync.WaitGroup
}

func (d lateDiscard) Discard(off, n int64) error {
	if d.on.Load() {
		d.begun.Done()
		defer d.ends.Done()
		<-d.release
	}
	return d.Device.Discard(off, n)
}

// TestLateDiscard: an extent that is still being discarded when the deadline has passed is not used again before that has ended.
func TestLateDiscard(t *testing.T) {
	var on atomic.Bool
	var begun, ends sync.WaitGroup
	begun.Add(3) // one on each disk
	ends.Add(3)
	release := make(chan struct{})
	f := newMemArray(t, 3, 2, 1, func(_ int, d blockdev.Device) blockdev.Device { return lateDiscard{d, &on, release, &begun, &ends} })
	f.opt.WriteTimeout, f.opt.Discard = 200*time.Millisecond, DiscardAlways
	a := f.open(0, 1, 2)
	var first uint64
	for i := range uint64(12) {
		s, err := writeStripe(a, i<<12, a.MaxStripeSegments())
		if err != nil {
			t.Fatal(err)
		}
		a.Unpin(s.Band)
		first = min(first-1, s.Band-1) + 1
	}
	free := a.Status().Disks[0].Free
	on.Store(true)
	if err := a.Free(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if n := a.Status().Disks[0].Free; n != free {
		t.Errorf("%d extents are free while one is being discarded, before %d", n, free)
	}
	begun.Wait() // under load later than the deadline
	on.Store(false)
	for i := uint64(0); ; i++ { // all there is
		if err := f.w.putBulk(a, 1<<30+i<<12, a.MaxStripeSegments()); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	ends.Wait()
	if err := f.w.verify(a, f.state); err != nil {
		t.Errorf("after the discard: %v", err)
	}
	until(t, a, "the extent is free", func(s Status) bool { return s.Disks[0].Free > 0 })
	f.reopen(a, 0, 1, 2)
}

// TestSlowDisksDoNotStopTheLog: more disks than parity bears are far slower than the median. They are not all fenced.
func TestSlowDisksDoNotStopTheLog(t *testing.T) {
	var delay [2]atomic.Int64
	f := newMemArray(t, 5, 4, 1, func(i int, d blockdev.Device) blockdev.Device {
		if i < len(delay) {
			d = slowDev{d, &delay[i]}
		}
		return timedDev{Device: d, stats: new(statsOf)}
	})
	f.opt.HealthEvery = 300 * time.Millisecond
	a := f.open(0, 1, 2, 3, 4)
	f.fill(a, 3)
	for i := range delay {
		delay[i].Store(int64(80 * time.Millisecond))
	}
	for start := time.Now(); time.Since(start) < 2*time.Second; {
		if err := f.w.put(a, uint64(time.Since(start)), 4096); err != nil {
			t.Fatalf("%v; the array is %s", err, a.Status().State)
		}
	}
	fenced := 0
	for _, d := range a.Status().Disks {
		if d.State == DiskFenced {
			fenced++
		}
	}
	if fenced != 1 {
		t.Errorf("%d disks are fenced, want 1", fenced)
	}
	for i := range delay {
		delay[i].Store(0)
	}
	f.reopen(a, 0, 1, 2, 3, 4)
}

// lateHead is a disk whose first read of a block, once on, ends when release is closed, with bytes that nobody has written.
type lateHead struct {
	blockdev.Device
	on            *atomic.Bool
	once          *sync.Once
	release, done chan struct{}
}

func (d lateHead) ReadAt(p []byte, off int64) error {
	if d.on.Load() && len(p) == BlockSize && off >= superArea {
		late := false
		d.once.Do(func() { late = true })
		if late {
			<-d.release
			for i := range p {
				p[i] = 0xee
			}
			close(d.done)
			return nil
		}
	}
	return d.Device.ReadAt(p, off)
}

// TestLateHeader: the memory of a header's read that missed its deadline in a check is given to nobody.
func TestLateHeader(t *testing.T) {
	l := lateHead{on: new(atomic.Bool), once: new(sync.Once), release: make(chan struct{}), done: make(chan struct{})}
	f := newMemArray(t, 6, 4, 2, func(i int, d blockdev.Device) blockdev.Device {
		if i == 1 {
			l.Device = d
			return l
		}
		return d
	})
	f.opt.ReadTimeout = 200 * time.Millisecond
	a := f.open(0, 1, 2, 3, 4, 5)
	defer a.Close()
	f.fill(a, 3)
	l.on.Store(true)
	if _, err := a.Check(t.Context(), CheckOptions{}); err != nil {
		t.Fatal(err)
	}
	var bufs []blockdev.Buf
	for range 64 {
		b, err := a.meta.Get(t.Context(), BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		clear(b.Bytes())
		bufs = append(bufs, b)
	}
	close(l.release)
	<-l.done
	for _, b := range bufs {
		if b.Bytes()[0] == 0xee {
			t.Error("memory that was handed out was written by a late read")
		}
		b.Release()
	}
}

// locs are where the records are.
func (f *memArray) locs() iter.Seq[Loc] {
	return func(yield func(Loc) bool) {
		for _, e := range f.state.entries {
			if !yield(e.data) {
				return
			}
		}
	}
}
