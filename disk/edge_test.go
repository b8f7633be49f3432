package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
)

// within fails the test when f takes longer than any healthy run can.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal(what)
	}
}

// TestFailureWithPipelines: writers that fill one stripe while the one before it is on its way must not wait, with memory that
// a stripe on its way needs to change shape, for that stripe.
func TestFailureWithPipelines(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 160)
	a := f.open(Options{ArenaBytes: 5 << 20})
	defer a.Close()
	stop := make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() {
		f.disks[2].delay = 30 * time.Millisecond
		f.disks[2].failWrites(unix.EIO)
		time.AfterFunc(100*time.Millisecond, func() { close(stop) })
	})
	within(t, "pipelines wait for each other's buffers", func() {
		var wg sync.WaitGroup
		for g := range uint64(8) {
			wg.Go(func() {
				var landed chan error
				for i := uint64(0); ; i++ {
					w, err := a.NewStripe(t.Context(), a.MaxStripeSegments())
					if err != nil {
						t.Error(err)
						break
					}
					for j := range w.Segments() {
						copy(w.Slot(j), payload(g<<32+i<<10+uint64(j), SegmentSize))
						if err := w.Sealed(j + 1); err != nil {
							t.Error(err)
						}
					}
					if landed != nil {
						if err := <-landed; err != nil {
							if !errors.Is(err, ErrFull) {
								t.Error(err)
							}
							landed = nil
							w.Discard()
							break
						}
					}
					landed = make(chan error, 1)
					go func(c chan error) {
						_, err := w.Commit(t.Context())
						c <- err
					}(landed)
					select {
					case <-stop:
						if err := <-landed; err != nil && !errors.Is(err, ErrFull) {
							t.Error(err)
						}
						return
					default:
					}
				}
				if landed != nil {
					<-landed
				}
			})
		}
		wg.Wait()
	})
}

// TestWideParity: the largest stripe can be written with as many disks gone as parity bears, whatever the geometry.
func TestWideParity(t *testing.T) {
	for _, g := range []Geometry{{Data: 8, Parity: 8}, {Data: 16, Parity: 16}, {Data: 6, Parity: 6}, {Data: 4, Parity: 12}, {Data: 1, Parity: 31}, {Data: 16, Parity: 4}} {
		g.ExtentSize = 128 << 20
		for gone := 0; gone <= g.Parity; gone++ {
			live := g.width() - gone
			parity := min(g.Parity, live-1)
			data := live - parity
			w := StripeWriter{segments: g.Data * g.rows(), data: data, parity: parity}
			if n := (data + parity) * w.cellBytes(); n > blockdev.MaxBuf {
				t.Errorf("%d+%d without %d disks: stripe of %d bytes, buffers have at most %d", g.Data, g.Parity, gone, n, blockdev.MaxBuf)
				break
			}
		}
	}
}

// TestReadsOutliveWrites: disks that refuse writes can still be read when there are too many of them to go on without.
func TestReadsOutliveWrites(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 40)
	a := f.open(Options{})
	defer a.Close()
	w := newWritten()
	if err := w.put(a, 1, 500); err != nil {
		t.Fatal(err)
	}
	if err := w.putBulk(a, 1<<20, 8); err != nil {
		t.Fatal(err)
	}
	for _, d := range f.disks[:3] {
		d.failWrites(unix.EIO)
	}
	for i := range 4 { // one after the other: each may meet one failing disk or several
		if _, err := a.Append(t.Context(), Record{Body: fmt.Appendf(nil, "lost %d", i)}); !errors.Is(err, ErrReadOnly) {
			t.Errorf("append: %v", err)
		}
	}
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
}

// TestTailUnreadable: what too many disks cannot read may have been acknowledged: it is not cut off.
func TestTailUnreadable(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	w := newWritten()
	for id := uint64(1); id <= 3; id++ {
		if err := w.put(a, id, 500); err != nil {
			t.Fatal(err)
		}
	}
	last := s.state.entries[2].data
	b := a.bands[last.Band]
	power := s.snapshot() // an orderly end would note what was the last
	a.Close()
	s.restore(power)
	for _, m := range b.members { // a bus reset: nothing is wrong with the medium
		s.disks[m.slot].BadRange(a.geo.extentOffset(m.extent)+int64(last.Off)*BlockSize, BlockSize)
	}
	s.state = &testState{}
	if a, err := s.tryOpen(); !errors.Is(err, ErrMembership) {
		t.Errorf("open: %v", err)
		if err == nil {
			a.Close()
		}
	}
	s.restore(s.snapshot()) // the sectors can be read again
	s.state = &testState{}
	a = s.open()
	defer a.Close()
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
}

// forgetful is a keyring that has lost an epoch.
type forgetful struct{ testKeys }

func (forgetful) RecordKey(uint32) ([]byte, error) { return nil, errors.New("no such epoch") }

// TestRecordKeyMissing: records whose key is not there are not damaged, so the array does not go on without them.
func TestRecordKeyMissing(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 9)
	a := s.open()
	w := newWritten()
	if err := w.put(a, 1, 500); err != nil {
		t.Fatal(err)
	}
	a.Close()
	s.state, s.opt.Keys = &testState{}, forgetful{}
	if a, err := s.tryOpen(); err == nil {
		t.Errorf("opened without the records' key: %+v", a.Status().Losses)
		a.Close()
	}
	s.state, s.opt.Keys = &testState{}, nil
	a = s.open()
	defer a.Close()
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
}

// TestCheckUnderLoad: a check while others write neither disturbs them nor takes what is on its way for damage.
func TestCheckUnderLoad(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 100)
	a := f.open(Options{})
	defer a.Close()
	w := newWritten()
	stop := make(chan struct{})
	done := make(chan []error)
	go func() { done <- load(a, w, stop, 4) }()
	for range 6 {
		rep, err := a.Check(t.Context(), CheckOptions{})
		if err != nil || !rep.OK() {
			t.Errorf("check: %+v, %v", rep, err)
			break
		}
	}
	close(stop)
	for _, err := range <-done {
		if !errors.Is(err, ErrFull) {
			t.Error(err)
		}
	}
}

// TestLatentErrorsRepaired: sectors that cannot be read are written anew once a read has met them.
func TestLatentErrorsRepaired(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	defer a.Close()
	w := newWritten()
	if err := w.put(a, 1, 500); err != nil {
		t.Fatal(err)
	}
	if err := w.putBulk(a, 1<<20, 8); err != nil {
		t.Fatal(err)
	}
	l, st := s.state.entries[0].data, w.bulk[1<<20]
	c := cell(a, l.Band, l.Off, int(l.Role))
	s.disks[c.slot].BadRange(c.at, BlockSize)
	c = cell(a, st.Band, st.Off, 0)
	s.disks[c.slot].BadRange(c.at+BlockSize, BlockSize)
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		rep, err := a.Check(context.Background(), CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if rep.OK() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("never repaired: %+v", rep)
		}
	}
}

// TestKeyAreaNotTaken: a disk that did not take the new key area does not stay in the array with the old one.
func TestKeyAreaNotTaken(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 40)
	a := f.open(Options{})
	f.disks[0].failWrites(unix.EIO)
	err := a.WriteKeyArea()
	f.disks[0].writeErr.Store(nil)
	if s := a.Status(); err == nil && s.Disks[0].State != DiskFenced || err != nil {
		t.Errorf("%v; disk 0 is %s in epoch %d", err, s.Disks[0].State, s.Epoch)
	}
	a.Close()
}

// TestAdmitEssential: what gives space back waits while someone may make room, and is never refused for want of it.
func TestAdmitEssential(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 20)
	a := s.open()
	defer a.Close()
	for _, b := range []*atomic.Bool{&a.tight, &a.full, &a.low} {
		b.Store(true)
	}
	if err := a.AdmitEssential(t.Context()); err != nil {
		t.Errorf("nobody makes room: %v", err)
	}
	pressure := a.Pressure()
	<-pressure // of the call above
	ends := func(how string, end func(), admit func(context.Context) error, want error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- admit(ctx) }()
		<-pressure // it waits, and says so
		if end == nil {
			cancel()
		} else {
			end()
		}
		if err := <-done; !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", how, err, want)
		}
	}
	nothing := func() { a.Relieve(func() bool { return false }) }
	ends("no room can be made", nothing, a.AdmitEssential, nil)
	ends("no room can be made", nothing, a.Admit, ErrFull)
	ends("the caller goes", nil, a.AdmitEssential, context.Canceled)
	ends("room is made", func() {
		a.Relieve(func() bool { a.tight.Store(false); a.low.Store(false); return true })
	}, a.AdmitEssential, nil)
	a.tight.Store(true)
	if err := a.AdmitEssential(t.Context()); err != nil {
		t.Errorf("the reserve is there: %v", err)
	}
	a.low.Store(true)
	ends("who makes room goes", a.Unattended, a.AdmitEssential, nil)
}
