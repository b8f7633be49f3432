package disk

import (
	"errors"
	"sync"
	"testing"
)

// awayAtCut lets the power fail in the middle of writing, starts without a disk, lets it come back, and then lets another one go. It returns what is
// wrong then.
func awayAtCut(t *testing.T, cut int, f faults) error {
	s := newSimArray(t, 3, 2, 1, 14)
	s.opt.faults = f
	w := newWritten()
	a := s.open()
	s.world.CutAfter(cut)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(20) {
				if w.put(a, 100*g+i+1, 3000) != nil {
					break
				}
			}
		})
	}
	wg.Wait()
	s.world.Cut()
	a.Close()
	s.state = &testState{}
	a = s.open(s.disks[0], s.disks[1])
	for i := range uint64(3) {
		if err := w.put(a, 500+i, 3000); err != nil {
			t.Fatal(err)
		}
	}
	seen := len(s.state.entries)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = s.open()
	rep, err := a.Check(t.Context(), CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if a.Status().State == "healthy" && !rep.OK() {
		err = errors.New("the array is healthy, and a check finds " + rep.Faults[0])
	}
	a.Close()
	s.state = &testState{}
	a, openErr := s.tryOpen(s.disks[1], s.disks[2])
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	defer a.Close()
	if len(a.losses) > 0 || len(s.state.entries) < seen {
		err = errors.Join(err, errors.New("acknowledged records are lost"))
	}
	return err
}

// TestResync: what a power cut left unwritten on a disk that then was away is written when it comes back, before it counts as whole.
func TestResync(t *testing.T) {
	caught, step := 0, 1
	if testing.Short() {
		step = 4
	}
	for cut := 1; cut < 60; cut += step {
		if err := awayAtCut(t, cut, faults{}); err != nil {
			t.Errorf("cut %d: %v", cut, err)
		}
		if awayAtCut(t, cut, faults{noResync: true}) != nil {
			caught++
		}
	}
	if caught == 0 && step == 1 {
		t.Error("nothing is missed when a disk that comes back counts as it is")
	}
}

// TestMarkTellsOfLoss: an acknowledged stripe of which nothing is left is reported, and those behind it are there: later stripes say how far
// acknowledgement had come.
func TestMarkTellsOfLoss(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 14)
	w := newWritten()
	a := s.open()
	for i := range uint64(10) {
		if err := w.put(a, i+1, 3000); err != nil {
			t.Fatal(err)
		}
	}
	at := s.state.entries[5].data
	s.world.Cut()
	a.Close()
	zero := make([]byte, BlockSize)
	for _, m := range a.bands[at.Band].members {
		s.disks[m.slot].Overwrite(a.geo.extentOffset(m.extent)+int64(at.Off)*BlockSize, zero)
	}
	s.state = &testState{gaps: true}
	a = s.open()
	defer a.Close()
	if len(s.state.entries) != 9 || len(a.losses) != 1 || a.losses[0].From != 6 || a.losses[0].To != 6 || a.Status().State != "degraded" {
		t.Errorf("%d of 10 records, losses %v, array %s", len(s.state.entries), a.losses, a.Status().State)
	}
}
