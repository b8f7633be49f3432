package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
)

// sweep is one run of a scenario on simulated disks, some of which fail one operation.
type sweep struct {
	*simArray
	w     *written
	fresh *blockdev.SimDisk
}

const (
	sweepExtents = 20
	sweepDisks   = 5 // 3+2
)

// newSweep makes an array that holds something and was closed, or has lost its power.
func newSweep(t *testing.T, cut bool) *sweep {
	s := &sweep{simArray: newSimArray(t, sweepDisks, 3, 2, sweepExtents), w: newWritten()}
	s.fresh = blockdev.NewSimDisk(s.world, superArea+sweepExtents<<20, blockdev.SimOptions{})
	s.opt.Discard = DiscardAlways
	a := s.open()
	if err := errors.Join(s.w.put(a, 1, 3000), s.w.putBulk(a, 1<<20, 5)); err != nil {
		t.Fatal(err)
	}
	if cut {
		s.world.Cut()
	}
	if err := a.Close(); err != nil && !cut {
		t.Fatal(err)
	}
	s.state = &testState{}
	return s
}

// scenario opens the array and does all that writes: records and stripes through several bands, a freed band, a check, the key
// area, a replaced disk. It returns the errors by what met them.
func (s *sweep) scenario() (errs map[string]error) {
	errs = map[string]error{}
	a, err := s.tryOpen()
	if err != nil {
		errs["open"] = err
		return errs
	}
	try := func(what string, err error) {
		if err != nil && errs[what] == nil {
			errs[what] = err
		}
	}
	for i := range uint64(6) {
		try("put", s.w.put(a, 100+i, []int{40, 700, 9000, 120 << 10}[i%4]))
	}
	for i := range uint64(3) {
		try("bulk", s.w.putBulk(a, (2+i)<<20, a.MaxStripeSegments()/2+1))
	}
	st, err := writeStripe(a, 9<<20, a.MaxStripeSegments())
	try("bulk", err)
	for err == nil { // nothing of this lives; a band is full of it at some time, and freed
		a.Unpin(st.Band)
		st, err = writeStripe(a, 9<<20, a.MaxStripeSegments())
		free := false
		for _, b := range a.Bands() {
			if b.Bulk && b.Closed && !s.holds(b.Num) {
				free = true
				try("free", a.Free(context.Background(), b.Num))
			}
		}
		if free {
			break
		}
	}
	try("bulk", err)
	try("read", s.w.verify(a, s.state))
	rep, err := a.Check(context.Background(), CheckOptions{Repair: true, Sample: 1})
	try("check", err)
	if rep.Lost > 0 || rep.Mismatched > 0 || rep.Unopened > 0 {
		try("check", fmt.Errorf("%+v", rep))
	}
	try("key area", a.WriteKeyArea())
	err = a.replace(context.Background(), sweepDisks-1, s.fresh)
	try("replace", err)
	for i := 0; err == nil && i < 2000; i++ {
		if d := a.Status().Disks[sweepDisks-1]; d.State != DiskRebuilding || d.Rebuild != nil && d.Rebuild.Failed > 0 {
			break
		}
		time.Sleep(200 * time.Microsecond)
	}
	try("put", s.w.put(a, 200, 5000))
	try("read", s.w.verify(a, s.state))
	try("close", a.Close())
	return errs
}

// holds reports whether a band has a stripe that must stay.
func (s *sweep) holds(band uint64) bool {
	for _, st := range s.w.bulk {
		if st.Band == band {
			return true
		}
	}
	return false
}

// settled opens the array without faults: everything that was acknowledged is there, it becomes healthy, and a check finds nothing
// after one that repaired.
func (s *sweep) settled() error {
	for _, d := range append(s.disks, s.fresh) {
		d.Disarm()
	}
	s.state = &testState{}
	disks := append(s.disks[:len(s.disks):len(s.disks)], s.fresh)
	a, err := s.tryOpen(disks...)
	if err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	defer a.Close()
	if err := s.w.verify(a, s.state); err != nil {
		return fmt.Errorf("after it: %w", err)
	}
	for i := 0; a.Status().State != "healthy"; i++ {
		if i > 10000 {
			return fmt.Errorf("not healthy: %+v", a.Status())
		}
		time.Sleep(200 * time.Microsecond)
	}
	if _, err := a.Check(context.Background(), CheckOptions{Repair: true, Sample: 1}); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if rep, err := a.Check(context.Background(), CheckOptions{Sample: 1}); err != nil || !rep.OK() {
		return fmt.Errorf("check after repair: %+v, %w", rep, err)
	}
	if err := s.w.put(a, 300, 5000); err != nil {
		return fmt.Errorf("put after it: %w", err)
	}
	return s.w.verify(a, s.state)
}

// TestSweep fails the n-th operation of a kind, on one disk, on as many as parity bears, and on one more, for n from 1 until the whole
// scenario passes without meeting the fault. Up to parity nobody who reads or writes notices; beyond it writes end with an error that
// says so. Always, what was acknowledged is there, at once and after the next start.
func TestSweep(t *testing.T) {
	kinds := []struct {
		name string
		arm  func(d *blockdev.SimDisk, n int)
		dear bool // many operations: the short forms take every few of them
	}{
		{"read EIO", func(d *blockdev.SimDisk, n int) { d.FailRead(n, unix.EIO) }, true},
		{"write EIO", func(d *blockdev.SimDisk, n int) { d.FailWrite(n, unix.EIO) }, true},
		{"write ENOSPC", func(d *blockdev.SimDisk, n int) { d.FailWrite(n, unix.ENOSPC) }, true},
		{"write EIO, persisted", func(d *blockdev.SimDisk, n int) { d.FailWritePersisted(n, unix.EIO) }, true},
		{"flush EIO", func(d *blockdev.SimDisk, n int) { d.FailFlush(n, unix.EIO) }, false},
		{"flush EIO, persisted", func(d *blockdev.SimDisk, n int) { d.FailFlushPersisted(n, unix.EIO) }, false},
		{"prepare ENOSPC", func(d *blockdev.SimDisk, n int) { d.FailPrepare(n, unix.ENOSPC) }, false},
		{"prepare EIO", func(d *blockdev.SimDisk, n int) { d.FailPrepare(n, unix.EIO) }, false},
		{"discard EIO", func(d *blockdev.SimDisk, n int) { d.FailDiscard(n, unix.EIO) }, false},
	}
	for _, k := range kinds {
		for _, hurt := range [][]int{{1}, {0, 3}, {1, 2, 4}, {5}} {
			t.Run(fmt.Sprintf("%s on %v", k.name, hurt), func(t *testing.T) {
				t.Parallel()
				step, runs := 1, 0
				switch {
				case os.Getenv("COFFER_SOAK") != "":
				case k.dear && testing.Short():
					step = 41
				case k.dear:
					step = 11
				}
				for n, unmet := 1, 0; unmet < 2; n += step {
					s := newSweep(t, runs%2 == 1)
					all := append(s.disks[:len(s.disks):len(s.disks)], s.fresh)
					for _, i := range hurt {
						k.arm(all[i], n)
					}
					runs++
					errs := s.scenario()
					met := 0
					for _, i := range hurt {
						met += 1 - all[i].Armed()
					}
					for what, err := range errs {
						if !excused(what, err, hurt) {
							t.Errorf("n %d: %s: %v", n, what, err)
						}
					}
					if err := s.settled(); err != nil {
						t.Errorf("n %d: errors %v: %v", n, errs, err)
					}
					if t.Failed() {
						break
					}
					if unmet++; met > 0 {
						unmet = 0
					}
				}
				t.Logf("%d runs", runs)
			})
		}
	}
}

// excused reports whether an error is the one that a caller should see of a fault on those disks.
func excused(what string, err error, hurt []int) bool {
	switch {
	case what == "replace" && errors.Is(err, ErrReplace):
		return len(hurt) == 2 || slices.Contains(hurt, 5) // the two that failed are all that parity bears; the new one did not prove itself
	case errors.Is(err, ErrReadOnly):
		return len(hurt) > 2 && what != "open" && what != "read" && what != "check" && what != "close"
	}
	return false
}

// TestSweepCreate fails the n-th write or flush of the creation of an array. Either enough copies of the superblocks are there and the
// array is good, or the creation fails; the next one succeeds.
func TestSweepCreate(t *testing.T) {
	failures := 0
	for _, arm := range []func(d *blockdev.SimDisk, n int){
		func(d *blockdev.SimDisk, n int) { d.FailWrite(n, unix.EIO) },
		func(d *blockdev.SimDisk, n int) { d.FailWritePersisted(n, unix.ENOSPC) },
		func(d *blockdev.SimDisk, n int) { d.FailWrite(n, unix.EIO); d.FailWrite(n+1, unix.EIO) },
		func(d *blockdev.SimDisk, n int) { d.FailFlush(n, unix.EIO) },
	} {
		for n, met := 1, true; met; n++ {
			s := &simArray{t: t, world: blockdev.NewWorld(rand.New(rand.NewPCG(1, 2))), state: &testState{}}
			opt := CreateOptions{ArrayID: [16]byte{9}, Geometry: Geometry{Data: 2, Parity: 1, ExtentSize: 1 << 20}, Keys: testKeys{}, group: simGroup}
			for range 3 {
				d := blockdev.NewSimDisk(s.world, superArea+9<<20, blockdev.SimOptions{})
				s.disks, opt.devices = append(s.disks, d), append(opt.devices, d)
			}
			arm(s.disks[1], n)
			err := Create(t.Context(), opt)
			if met = s.disks[1].Armed() == 0; err != nil && !met {
				t.Fatal(err)
			}
			s.disks[1].Disarm()
			s.world.Restart()
			if err != nil {
				failures++
				opt.ArrayID, opt.Force = [16]byte{10}, true
				if err := Create(t.Context(), opt); err != nil {
					t.Fatalf("n %d: created again: %v", n, err)
				}
			}
			a, w := s.open(), newWritten()
			if err := errors.Join(w.put(a, 1, 5000), w.verify(a, s.state), a.Close()); err != nil {
				t.Fatalf("n %d: %v", n, err)
			}
		}
	}
	if failures == 0 {
		t.Error("no fault made a creation fail")
	}
}
