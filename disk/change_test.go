package disk

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// behind has calls, each of which changes the set of disks, wait behind a change that is under way, in their order, and lets them go on
// together. It returns what they returned.
func behind(t *testing.T, a *Array, calls ...func() error) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- a.log.change(func() error {
			close(held)
			<-release
			return nil
		})
	}()
	<-held
	waiting := func() int {
		a.log.mu.Lock()
		defer a.log.mu.Unlock()
		return len(a.log.changes) + len(a.log.failed)
	}
	ended := make([]chan error, len(calls))
	for i, call := range calls {
		ended[i] = make(chan error, 1)
		before := waiting()
		go func() { ended[i] <- call() }()
		for waiting() == before {
			time.Sleep(time.Millisecond)
		}
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the change under way: %v", err)
	}
	errs := make([]error, len(calls))
	for i := range calls {
		errs[i] = <-ended[i]
	}
	return errs
}

// TestChangeNotMade: a change that could not be made any more, because too many disks failed or another change stopped the log, says so.
func TestChangeNotMade(t *testing.T) {
	for _, c := range []struct {
		what  string
		cause func(a *Array) error
	}{
		{"disks failed", func(a *Array) error { return a.log.fail(a.slots()[:3]) }},
		{"a change failed", func(a *Array) error { return a.log.change(func() error { return unix.EIO }) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			a := newFlakyArray(t, 7, 4, 2, 40).open(Options{})
			defer a.Close()
			slots := slices.Clone(a.slots())
			errs := behind(t, a,
				func() error { return c.cause(a) },
				func() error { return a.replace(t.Context(), 4, newFlakyDisk(t, 40)) },
				func() error { _, err := a.add(t.Context(), newFlakyDisk(t, 40), true); return err },
				func() error { return a.Remove(t.Context(), 5) })
			for i, err := range errs {
				if err == nil || i > 0 && (errors.Is(err, ErrReplace) || errors.Is(err, ErrAdd) || errors.Is(err, ErrRemove)) {
					t.Errorf("call %d: %v", i, err)
				}
			}
			if !slices.Equal(a.slots(), slots) || a.slots()[5].draining {
				t.Error("a change was made")
			}
			if err := a.log.change(func() error { t.Error("it runs"); return nil }); !errors.Is(err, a.log.stopped()) || err == nil {
				t.Errorf("a change of a log that has stopped: %v", err)
			}
		})
	}
}

// TestChangeRefused: a change that is refused does not keep those behind it from being made.
func TestChangeRefused(t *testing.T) {
	a := newFlakyArray(t, 6, 4, 2, 40).open(Options{})
	defer a.Close()
	made := 0
	do := func(err error) func() error {
		return func() error { return a.log.change(func() error { made++; return err }) }
	}
	errs := behind(t, a, do(ErrRemove), do(nil), do(ErrAdd), do(ErrReplace), do(nil))
	if want := []error{ErrRemove, nil, ErrAdd, ErrReplace, nil}; !slices.Equal(errs, want) || made != len(want) || a.log.stopped() != nil {
		t.Errorf("%v, want %v; %d made; the log: %v", errs, want, made, a.log.stopped())
	}
}

// TestChangeIsWaitedFor: whoever wants a change is not told of the log's end while the change is being made, on another one's behalf: he would
// close the disk that it uses. What the change says counts; one that has not begun is not made.
func TestChangeIsWaitedFor(t *testing.T) {
	a := newFlakyArray(t, 6, 4, 2, 40).open(Options{})
	defer a.Close()
	var made atomic.Bool
	later := make(chan error, 1)
	errs := behind(t, a, func() error {
		err := a.log.change(func() error {
			go func() { later <- a.log.change(func() error { t.Error("made though the log has stopped"); return nil }) }()
			for queued := 0; queued == 0; time.Sleep(time.Millisecond) {
				a.log.mu.Lock()
				queued = len(a.log.changes)
				a.log.mu.Unlock()
			}
			a.log.stop(unix.EIO) // as a stripe does that cannot be applied
			time.Sleep(50 * time.Millisecond)
			made.Store(true)
			return nil
		})
		if !made.Load() {
			t.Error("told before it was made")
		}
		return err
	})
	if errs[0] != nil {
		t.Errorf("it was made, and says: %v", errs[0])
	}
	if err := <-later; !errors.Is(err, unix.EIO) {
		t.Errorf("not made: %v", err)
	}
}
