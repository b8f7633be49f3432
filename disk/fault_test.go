package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
)

// flaky is a device whose writes, and reads, begin to fail when told to.
type flaky struct {
	blockdev.Device
	writeErr, readErr atomic.Pointer[error]
	delay             time.Duration // before a failed write returns, as a timeout takes
}

func (d *flaky) failWrites(err error) { d.writeErr.Store(&err) }

func (d *flaky) WriteAt(p []byte, off int64, durable bool) error {
	if err := d.writeErr.Load(); err != nil {
		time.Sleep(d.delay)
		return *err
	}
	return d.Device.WriteAt(p, off, durable)
}

func (d *flaky) ReadAt(p []byte, off int64) error {
	if err := d.readErr.Load(); err != nil {
		return *err
	}
	return d.Device.ReadAt(p, off)
}

// newFlakyDisk is one that is not in an array yet.
func newFlakyDisk(t testing.TB, extents int) *flaky {
	t.Helper()
	m, err := blockdev.NewMemDisk(superArea + int64(extents)<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return &flaky{Device: unclosed{m}}
}

// flakyArray is an array of memory disks that can be made to fail.
type flakyArray struct {
	t     testing.TB
	disks []*flaky
	state *testState
}

func newFlakyArray(t testing.TB, n, data, parity, extents int) *flakyArray {
	t.Helper()
	f := &flakyArray{t: t, state: &testState{}}
	var devs []blockdev.Device
	for range n {
		d := newFlakyDisk(t, extents)
		f.disks = append(f.disks, d)
		devs = append(devs, d)
	}
	err := Create(t.Context(), CreateOptions{
		ArrayID: [16]byte{9}, Keys: testKeys{}, devices: devs, Geometry: Geometry{Data: data, Parity: parity, ExtentSize: 1 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// unclosed keeps memory alive when an array closes its devices.
type unclosed struct{ blockdev.Device }

func (unclosed) Close() error { return nil }

func (f *flakyArray) open(opt Options) *Array {
	f.t.Helper()
	var devs []blockdev.Device
	for _, d := range f.disks {
		devs = append(devs, d)
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	opt.Crypto, opt.State = crypto(), f.state
	if opt.Keys == nil {
		opt.Keys = testKeys{}
	}
	a, err := set.Open(context.Background(), opt)
	if err != nil {
		f.t.Fatal(err)
	}
	return a
}

// load runs writers of records and of bulk stripes until stop is closed or they meet an error, and returns what they met.
func load(a *Array, w *written, stop <-chan struct{}, maxSegments int) (errs []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	for g := range uint64(6) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			for i := uint64(0); running(); i++ {
				id := (g+1)<<32 + i<<10
				var err error
				if g < 4 {
					err = w.put(a, id, 40+rng.IntN(6000))
				} else {
					err = w.putBulk(a, id, 1+rng.IntN(maxSegments))
				}
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// TestDiskFailsUnderLoad: a disk that fails a write is left behind in a new epoch, what was acknowledged stays readable, and
// those who write notice nothing.
func TestDiskFailsUnderLoad(t *testing.T) {
	for _, test := range []struct {
		name            string
		n, data, parity int
		err             error
		delay           time.Duration
	}{
		{"error, spare disk", 7, 4, 2, unix.EIO, 0},
		{"error, narrower stripes", 6, 4, 2, unix.EIO, 0},
		{"error, mirror", 2, 1, 1, unix.EIO, 0},
		{"deadline", 6, 4, 2, blockdev.ErrTimeout, 20 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFlakyArray(t, test.n, test.data, test.parity, 160)
			a := f.open(Options{})
			before := a.Status().Epoch
			w := newWritten()
			stop := make(chan struct{})
			time.AfterFunc(40*time.Millisecond, func() {
				f.disks[1].delay = test.delay
				f.disks[1].failWrites(test.err)
				time.AfterFunc(60*time.Millisecond, func() { close(stop) })
			})
			for _, err := range load(a, w, stop, min(6, a.MaxStripeSegments())) {
				if !errors.Is(err, ErrFull) {
					t.Error(err)
				}
			}
			s := a.Status()
			if s.Disks[1].State != DiskFenced || s.Epoch <= before || s.State != "degraded" {
				t.Errorf("epoch %d, was %d; %s; %+v", s.Epoch, before, s.State, s.Disks[1])
			}
			if err := w.put(a, 1, 500); err != nil {
				t.Error(err)
			}
			if err := w.verify(a, f.state); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			f.state = &testState{}
			f.disks[1].writeErr.Store(nil) // it comes back, stale
			a = f.open(Options{})
			// A mirror had one disk left: what was written to that alone is thin.
			if s := a.Status(); s.State != "healthy" && s.Thin == 0 || s.Thin > 0 && a.geo.Data > 1 {
				t.Errorf("after return: %s: %s", s.State, s.Reason)
			}
			if err := w.verify(a, f.state); err != nil {
				t.Error(err)
			}
			if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
				t.Errorf("check: %+v, %v", rep, err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTooManyDisksFail: with more than parity disks gone nothing is acknowledged, and nothing that was is lost once they return.
func TestTooManyDisksFail(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 80)
	a := f.open(Options{})
	w := newWritten()
	stop := make(chan struct{})
	time.AfterFunc(30*time.Millisecond, func() {
		for _, d := range f.disks[:3] {
			d.failWrites(unix.EIO)
		}
	})
	time.AfterFunc(5*time.Second, func() { close(stop) })
	errs := load(a, w, stop, 6)
	if len(errs) != 6 {
		t.Errorf("%d of 6 writers ended by an error", len(errs))
	}
	for _, err := range errs {
		if !errors.Is(err, ErrReadOnly) {
			t.Error(err)
		}
	}
	if _, err := a.Append(t.Context(), Record{Body: []byte("rec 5"), Essential: true}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("append: %v", err)
	}
	if _, err := writeStripe(a, 1, 3); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write stripe: %v", err)
	}
	if s := a.Status(); s.State == "healthy" {
		t.Errorf("state %s", s.State)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for _, d := range f.disks[:3] {
		d.writeErr.Store(nil)
	}
	f.state = &testState{}
	a = f.open(Options{})
	defer a.Close()
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	if s := a.Status(); s.State != "healthy" {
		t.Errorf("after return: %+v", s)
	}
}

// TestFailureWithFewBuffers: stripes that must be laid out anew wait for each other's memory without end only if they hold on
// to their own.
func TestFailureWithFewBuffers(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 160)
	a := f.open(Options{ArenaBytes: 4 << 20})
	w := newWritten()
	stop := make(chan struct{})
	time.AfterFunc(30*time.Millisecond, func() {
		f.disks[2].failWrites(unix.EIO)
		time.AfterFunc(100*time.Millisecond, func() { close(stop) })
	})
	done := make(chan []error)
	go func() { done <- load(a, w, stop, 8) }()
	select {
	case errs := <-done:
		for _, err := range errs {
			if !errors.Is(err, ErrFull) {
				t.Error(err)
			}
		}
	case <-time.After(8 * time.Second):
		t.Fatal("writers wait for each other's buffers")
	}
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// TestDegradedReadsWithFewBuffers: many degraded reads at once with memory for few of them.
func TestDegradedReadsWithFewBuffers(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 40)
	a := f.open(Options{ArenaBytes: 6 << 20})
	defer a.Close()
	s, err := writeStripe(a, 1, 12)
	if err != nil {
		t.Fatal(err)
	}
	eio := error(unix.EIO)
	f.disks[0].readErr.Store(&eio)
	f.disks[3].readErr.Store(&eio)
	done := make(chan struct{})
	go func() {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 8 {
					if _, err := readSegments(a, s, 0, 8, 1); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(8 * time.Second):
		t.Fatal("readers wait for each other's buffers")
	}
}

// TestFull: new data is refused, essential records still go, and nothing that was acknowledged suffers.
func TestFull(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 9)
	a := s.open()
	w := newWritten()
	var full error
	for i := uint64(1); full == nil; i++ {
		if i%2 == 0 {
			full = w.put(a, i, 150<<10)
		} else {
			full = w.putBulk(a, i<<20, a.MaxStripeSegments())
		}
		if i > 10000 {
			t.Fatal("never full")
		}
	}
	if !errors.Is(full, ErrFull) {
		t.Fatal(full)
	}
	for i := uint64(1); ; i++ { // the band that is open still has room
		if err := w.put(a, 1<<30+i, 150<<10); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := writeStripe(a, 1<<40, 1); !errors.Is(err, ErrFull) {
		for err == nil {
			_, err = writeStripe(a, 1<<40, 1)
		}
		if !errors.Is(err, ErrFull) {
			t.Errorf("bulk: %v", err)
		}
	}
	for i := range 200 {
		if _, err := a.Append(t.Context(), Record{Body: fmt.Appendf(nil, "rec %d", 1<<50+i), Essential: true}); err != nil {
			t.Fatalf("essential record %d: %v", i, err)
		}
	}
	if _, err := a.Append(t.Context(), Record{Body: []byte("rec 3"), Data: payload(3, 150<<10)}); !errors.Is(err, ErrFull) {
		t.Errorf("data beside essential records: %v", err)
	}
	if st := a.Status(); st.Free != 0 {
		t.Errorf("free %d", st.Free)
	}
	check := func() {
		t.Helper()
		n := 0
		for _, e := range s.state.entries {
			if strings.HasPrefix(e.body, "rec 1125899906842") {
				n++
			}
		}
		if n != 200 {
			t.Errorf("%d of 200 essential records", n)
		}
		if err := w.verify(a, s.state); err != nil {
			t.Error(err)
		}
	}
	w.records[1<<50] = 0
	delete(w.records, 1<<50)
	check()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	s.state = &testState{}
	a = s.open()
	check()
	a.Close()
}

func TestTooLarge(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 9)
	a := s.open()
	defer a.Close()
	for _, r := range []Record{{Body: make([]byte, MaxBody+1)}, {Data: make([]byte, MaxPacked+1)}} {
		if _, err := a.Append(t.Context(), r); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d+%d bytes: %v", len(r.Body), len(r.Data), err)
		}
	}
	if _, err := a.Append(t.Context(), Record{Body: make([]byte, a.MaxBody()), Data: make([]byte, MaxPacked)}); err != nil {
		t.Errorf("largest record: %v", err)
	}
	if e := s.state.entries; len(e) != 1 || len(e[0].body) != a.MaxBody() || e[0].data.Len != MaxPacked {
		t.Errorf("%d entries", len(e))
	}
}

// TestCloseUnderLoad: writers learn that the array has closed, and what was acknowledged before is there.
func TestCloseUnderLoad(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 160)
	a := f.open(Options{})
	w := newWritten()
	done := make(chan []error)
	go func() { done <- load(a, w, nil, 4) }()
	time.Sleep(50 * time.Millisecond)
	closed := make(chan error)
	go func() { closed <- a.Close() }()
	select {
	case err := <-closed:
		if err != nil && !strings.Contains(err.Error(), "in use") { // a stripe was being filled: its memory is out
			t.Error(err)
		}
	case <-time.After(8 * time.Second):
		t.Fatal("close does not return under load")
	}
	for _, err := range <-done {
		if !errors.Is(err, ErrClosed) && !errors.Is(err, blockdev.ErrClosed) && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	f.state = &testState{}
	a = f.open(Options{})
	defer a.Close()
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
}
