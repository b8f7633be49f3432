package disk

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// hangingDev is a device whose calls never come back while it hangs, as those of a real disk do; the simulated one answers at once.
type hangingDev struct {
	blockdev.Device
	hangs *atomic.Bool
}

func (d hangingDev) wait() {
	if d.hangs.Load() {
		select {}
	}
}

func (d hangingDev) ReadAt(p []byte, off int64) error { d.wait(); return d.Device.ReadAt(p, off) }
func (d hangingDev) WriteAt(p []byte, off int64, durable bool) error {
	d.wait()
	return d.Device.WriteAt(p, off, durable)
}
func (d hangingDev) Flush() error               { d.wait(); return d.Device.Flush() }
func (d hangingDev) Prepare(off, n int64) error { d.wait(); return d.Device.Prepare(off, n) }

// hangTimeout is the deadline in these tests; hangPatience is far more than a few of them.
const (
	hangTimeout  = 200 * time.Millisecond
	hangPatience = 20 * time.Second
)

// newHanging makes an array in memory of which one disk can hang.
func newHanging(t *testing.T) (devs []blockdev.Device, hangs *atomic.Bool) {
	t.Helper()
	m, err := NewMemory(6, superArea+24<<20)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Create(t.Context(), CreateOptions{ArrayID: [16]byte{3}, Geometry: Geometry{Data: 4, Parity: 2, ExtentSize: 1 << 20}, Keys: testKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	hangs = new(atomic.Bool)
	devs = append(devs, m.devs...)
	devs[2] = hangingDev{devs[2], hangs}
	return devs, hangs
}

func openHanging(devs []blockdev.Device, state State) (*Array, error) {
	set, err := discover(devs, nil, hangTimeout)
	if err != nil {
		return nil, err
	}
	return set.Open(context.Background(), Options{Keys: testKeys{}, Crypto: crypto(), State: state, PreferPool: true,
		WriteTimeout: hangTimeout, ReadTimeout: hangTimeout})
}

// patiently fails the test when f does not come back.
func patiently(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(hangPatience):
		t.Fatalf("%s never ends: one disk of six hangs", what)
	}
}

// TestHungDiskWhileBandOpens: extents are made real by calls that block for as long as the disk does.
func TestHungDiskWhileBandOpens(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		devs, hangs := newHanging(t)
		state := &testState{}
		a, err := openHanging(devs, state)
		if err != nil {
			t.Fatal(err)
		}
		hangs.Store(true)
		w := newWritten()
		patiently(t, "the first write", func() {
			if bulk {
				err = w.putBulk(a, 1<<20, 4)
			} else {
				err = w.put(a, 1, 4096)
			}
		})
		if err != nil {
			t.Fatalf("bulk %v: %v", bulk, err)
		}
		if s := a.Status(); s.Disks[2].State != DiskFenced || s.State != "degraded" {
			t.Errorf("bulk %v: the hung disk is %s, the array %s", bulk, s.Disks[2].State, s.State)
		}
		if err := w.verify(a, state); err != nil {
			t.Errorf("bulk %v: %v", bulk, err)
		}
	}
}

// TestHungDiskAtOpen: an array opens without a disk that does not answer.
func TestHungDiskAtOpen(t *testing.T) {
	devs, hangs := newHanging(t)
	state := &testState{}
	a, err := openHanging(devs, state)
	if err != nil {
		t.Fatal(err)
	}
	w := newWritten()
	w.fill(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	hangs.Store(true)
	state = &testState{}
	patiently(t, "opening", func() { a, err = openHanging(devs, state) })
	if err != nil {
		t.Fatal(err)
	}
	if s := a.Status(); s.Disks[2].State != DiskMissing {
		t.Errorf("the hung disk is %s", s.Disks[2].State)
	}
	if err := w.verify(a, state); err != nil {
		t.Error(err)
	}
}

// lateReads is a group in which the reads of one device miss their deadline.
type lateReads struct {
	blockdev.Group
	dev  int
	late *atomic.Bool
}

func (g lateReads) Run(ops []blockdev.Op) error {
	var rest []blockdev.Op
	var at []int
	for i := range ops {
		if ops[i].Dev == g.dev && !ops[i].Write && g.late.Load() {
			ops[i].Err, ops[i].Stuck = blockdev.ErrTimeout, true
			continue
		}
		rest, at = append(rest, ops[i]), append(at, i)
	}
	if len(rest) == 0 {
		return nil
	}
	err := g.Group.Run(rest)
	for i, k := range at {
		ops[k] = rest[i]
	}
	return err
}

// TestTailWithLateReads: a stripe of the tail is not shown with a disk counted as healthy that recovery could neither read nor
// complete.
func TestTailWithLateReads(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 24)
	a := s.open()
	w := newWritten()
	if err := w.put(a, 1, 3000); err != nil {
		t.Fatal(err)
	}
	l := s.state.entries[0].data
	torn, others := cell(a, l.Band, l.Off, 1), []cellPlace{cell(a, l.Band, l.Off, 0), cell(a, l.Band, l.Off, 2)}
	s.world.Cut()
	a.cancel()
	xor(s.disks[torn.slot], torn.at+20, 1) // the power cut kept this cell from arriving
	s.state = &testState{}
	late := new(atomic.Bool)
	late.Store(true)
	s.opt.group = func(d []blockdev.Device) (blockdev.Group, error) {
		g, err := simGroup(d)
		return lateReads{g, torn.slot, late}, err
	}
	a = s.open()
	late.Store(false)
	if st := a.Status().Disks[torn.slot].State; st != DiskFenced {
		t.Errorf("the disk that could not be read is %s", st)
	}
	a.Close()
	s.opt.group = nil
	// It is not believed later either: any two others may go.
	s.state = &testState{}
	a = s.open()
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
	a.Close()
	var rest []*blockdev.SimDisk
	for i, d := range s.disks {
		if i != others[0].slot && i != others[1].slot {
			rest = append(rest, d)
		}
	}
	s.state = &testState{}
	a = s.open(rest...)
	if err := w.verify(a, s.state); err != nil {
		t.Errorf("two other disks gone: %v", err)
	}
	a.Close()
}

// reserveUnwritten takes places for n bulk stripes of which no cell will ever be written, as a power cut leaves them.
func reserveUnwritten(t *testing.T, a *Array, n int, blocks uint32) {
	t.Helper()
	for range n {
		_, err := a.bulk.reserve(t.Context(), a, false, func(int, int) (uint32, error) { return blocks, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestBulkHoles: stripes that were acknowledged behind as many missing ones as can be on their way are found, kept, checked and
// resynchronised, at the head of a band and within.
func TestBulkHoles(t *testing.T) {
	for _, head := range []int{0, 1} {
		s := &simArray{t: t, world: newSimArray(t, 1, 1, 0, 12).world, state: &testState{}}
		for range 6 {
			s.disks = append(s.disks, blockdev.NewSimDisk(s.world, superArea+12*(64<<20), blockdev.SimOptions{}))
		}
		s.create(CreateOptions{ArrayID: [16]byte{9}, Geometry: Geometry{Data: 4, Parity: 2, ExtentSize: 64 << 20}, Keys: testKeys{}})
		a := s.open()
		w := newWritten()
		for i := range head {
			if err := w.putBulk(a, uint64(i+1)<<20, 4); err != nil {
				t.Fatal(err)
			}
		}
		reserveUnwritten(t, a, maxBulkAhead-2, maxCellBlocks)
		if err := w.putBulk(a, 9<<20, 4); err != nil {
			t.Fatal(err)
		}
		if err := w.put(a, 1, 4096); err != nil {
			t.Fatal(err)
		}
		s.world.Cut()
		a.cancel()
		s.state = &testState{}
		a = s.open(s.disks[1:]...)
		if err := w.verify(a, s.state); err != nil {
			t.Errorf("%d stripes in front of the hole: %v", head, err)
		}
		st := w.bulk[9<<20]
		var damaged cellPlace
		for role := range 6 {
			if damaged = cell(a, st.Band, st.Off, role); damaged.slot == 0 {
				break
			}
		}
		a.Close()
		xor(s.disks[0], damaged.at+20, 0x55)
		s.state = &testState{}
		a = s.open()
		if err := w.verify(a, s.state); err != nil {
			t.Error(err)
		}
		if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() || rep.Stripes != head+2 {
			t.Errorf("check after resynchronisation: %+v, %v", rep, err)
		}
		a.Close()
	}
}

// TestBulkWindow: no place is handed out further than maxBulkAhead from the oldest that is still being written.
func TestBulkWindow(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 60)
	a := s.open()
	defer a.Close()
	reserveUnwritten(t, a, maxBulkAhead, 17)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	one := func(int, int) (uint32, error) { return 17, nil }
	if p, err := a.bulk.reserve(ctx, a, false, one); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("place %+v, %v", p, err)
	}
	failed := a.bulk.band
	a.bulk.landed(bulkPlace{band: failed, num: a.bulk.oldest()}, false)
	p, err := a.bulk.reserve(t.Context(), a, false, one)
	if err != nil || p.band == failed {
		t.Errorf("place in a band in which a stripe failed: %v", err)
	}
}

// TestCheckBesideStripesUnderWay: what is on its way is not damaged.
func TestCheckBesideStripesUnderWay(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 24)
	a := s.open()
	defer a.Close()
	w := newWritten()
	if err := w.putBulk(a, 1<<20, 4); err != nil {
		t.Fatal(err)
	}
	sw, err := a.NewStripe(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	defer sw.Discard()
	for i := range 4 {
		clear(sw.Slot(i))
		if err := sw.Sealed(i + 1); err != nil {
			t.Fatal(err)
		}
	}
	b, err := a.bulk.reserve(t.Context(), a, false, func(int, int) (uint32, error) { return uint32(sw.cellBytes() / BlockSize), nil })
	if err != nil {
		t.Fatal(err)
	}
	h := header{kind: kindBulk, data: uint8(sw.data), parity: uint8(sw.parity), width: uint8(len(b.band.members)),
		rot: uint8(rotation(b.band.num, b.off, len(b.band.members))), band: b.band.num, stripe: b.num, epoch: b.band.epoch,
		off: b.off, blocks: uint32(sw.cellBytes() / BlockSize)}
	n := sw.data + sw.parity
	ops := a.sealWith(sw.cells[:n], &h, sw.crcs[:n], b.band)
	if err := a.group.Run(ops[:2]); err != nil { // two of six have arrived
		t.Fatal(err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if err := a.group.Run(ops[2:]); err != nil {
		t.Fatal(err)
	}
	a.bulk.landed(b, true)
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() || rep.Stripes != 2 {
		t.Errorf("check afterwards: %+v, %v", rep, err)
	}
}
