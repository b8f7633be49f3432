package disk

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// slowDev is a device that can be made slow.
type slowDev struct {
	blockdev.Device
	delay *atomic.Int64
}

func (d slowDev) wait() { time.Sleep(time.Duration(d.delay.Load())) }

func (d slowDev) ReadAt(p []byte, off int64) error { d.wait(); return d.Device.ReadAt(p, off) }
func (d slowDev) WriteAt(p []byte, off int64, durable bool) error {
	d.wait()
	return d.Device.WriteAt(p, off, durable)
}

// TestSlowDisk: a disk that answers, but far too slowly, is avoided by reads, then fenced, and all goes on; whichever disk it is.
func TestSlowDisk(t *testing.T) {
	late := 150 * time.Millisecond
	if os.Getenv("COFFER_SOAK") != "" {
		late = time.Second
	}
	for slot := range 6 {
		if testing.Short() && slot > 0 {
			break
		}
		t.Run(fmt.Sprint(slot), func(t *testing.T) {
			t.Parallel()
			slowDisk(t, slot, late)
		})
	}
}

func slowDisk(t *testing.T, slot int, late time.Duration) {
	f := newFlakyArray(t, 6, 4, 2, 24)
	delay := new(atomic.Int64)
	var devs []blockdev.Device
	for i, d := range f.disks {
		if i == slot {
			devs = append(devs, timedDev{Device: slowDev{d, delay}, stats: new(statsOf)})
		} else {
			devs = append(devs, timedDev{Device: d, stats: new(statsOf)})
		}
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := set.Open(t.Context(), Options{Keys: testKeys{}, Crypto: crypto(), State: f.state, PreferPool: true, HealthEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	w := newWritten()
	w.fill(t, a, 1)
	time.Sleep(300 * time.Millisecond)
	if s := a.Status(); s.State != "healthy" {
		t.Fatalf("before: %s %s", s.State, s.Reason)
	}
	delay.Store(int64(late))
	fenced := false
	for i := uint64(0); i < 200 && !fenced; i++ {
		if err := w.put(a, 1000+i, 4096); err != nil {
			t.Fatal(err)
		}
		fenced = a.Status().Disks[slot].State == DiskFenced
	}
	if !fenced {
		t.Fatalf("the slow disk is %s", a.Status().Disks[slot].State)
	}
	start := time.Now()
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	t.Logf("everything read in %v", time.Since(start))
}

// timedDev has the latencies of a device that keeps none of its own.
type timedDev struct {
	blockdev.Device
	stats *statsOf
}

// statsOf counts by hand: the wrapped device's counters do not see the delay.
type statsOf struct{ reads, readNS, writes, writeNS atomic.Int64 }

func (d timedDev) ReadAt(p []byte, off int64) error {
	start := time.Now()
	err := d.Device.ReadAt(p, off)
	d.stats.reads.Add(1)
	d.stats.readNS.Add(int64(time.Since(start)))
	return err
}

func (d timedDev) WriteAt(p []byte, off int64, durable bool) error {
	start := time.Now()
	err := d.Device.WriteAt(p, off, durable)
	if durable {
		d.stats.writes.Add(1)
		d.stats.writeNS.Add(int64(time.Since(start)))
	}
	return err
}

func (d timedDev) Stats() blockdev.Stats {
	s := d.Device.Stats()
	s.ReadLatency = blockdev.Latency{Count: uint64(d.stats.reads.Load()), Sum: time.Duration(d.stats.readNS.Load())}
	s.DurableLatency = blockdev.Latency{Count: uint64(d.stats.writes.Load()), Sum: time.Duration(d.stats.writeNS.Load())}
	return s
}

func TestSlowest(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		what  string
		means []time.Duration
		want  bool // of the first
	}{
		{"all alike", []time.Duration{2 * ms, 2 * ms, 3 * ms}, false},
		{"far slower", []time.Duration{200 * ms, 2 * ms, 3 * ms}, true},
		{"slower, but not slow", []time.Duration{49 * ms, 1 * ms, 1 * ms}, false},
		{"all are slow", []time.Duration{200 * ms, 150 * ms, 100 * ms}, false},
		{"peers idle", []time.Duration{200 * ms, 0, 0}, false},
		{"alone", []time.Duration{200 * ms}, false},
	} {
		if got := slowest(c.means, 0); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// counting is an unreadable disk that counts its errors, as those below do.
type counting struct {
	unreadable
	errors *atomic.Uint64
}

func (d counting) ReadAt(p []byte, off int64) error {
	err := d.unreadable.ReadAt(p, off)
	if err != nil {
		d.errors.Add(1)
	}
	return err
}

func (d counting) Stats() blockdev.Stats {
	s := d.unreadable.Stats()
	s.ReadErrors += d.errors.Load()
	return s
}

// TestUnreadableDiskIsFenced: disks of which every read fails are suspect, and then fenced, as many as parity bears; one that works again in time
// proves itself.
func TestUnreadableDiskIsFenced(t *testing.T) {
	var fails [6]atomic.Bool
	f := newMemArray(t, 6, 4, 2, func(i int, d blockdev.Device) blockdev.Device {
		return counting{unreadable{d, &fails[i]}, new(atomic.Uint64)}
	})
	f.opt.HealthEvery = 100 * time.Millisecond
	a := f.open(0, 1, 2, 3, 4, 5)
	f.fill(a, 8)
	read := func() {
		if err := f.w.verify(a, f.state); err != nil {
			t.Fatal(err)
		}
	}
	await := func(what string, cond func(Status) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !cond(a.Status()); time.Sleep(10 * time.Millisecond) {
			for loc := range f.locs() {
				if v, err := a.ReadPacked(t.Context(), loc); err == nil {
					v.Release()
				}
			}
			for _, s := range f.w.bulk {
				if v, err := a.ReadStripe(t.Context(), s, 0, int(s.Segments)); err == nil {
					v.Release()
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: does not come about: %+v", what, a.Status().Disks)
			}
		}
	}
	fails[2].Store(true)
	await("suspect", func(s Status) bool { return s.Disks[2].State == DiskSuspect && s.Disks[2].Reason == readsFail })
	fails[2].Store(false)
	await("well again", func(s Status) bool { return s.State == "healthy" })

	for i := range 3 {
		fails[i].Store(true)
	}
	fenced := func(s Status) (n int) {
		for _, d := range s.Disks {
			if d.State == DiskFenced && d.Reason == readsFail {
				n++
			}
		}
		return n
	}
	await("fenced", func(s Status) bool { return fenced(s) == 2 })
	time.Sleep(5 * f.opt.HealthEvery)
	if st := a.Status(); fenced(st) != 2 || st.State != "degraded" {
		t.Errorf("%s, %s: %d fenced", st.State, st.Reason, fenced(st))
	}
	for i := range 3 {
		fails[i].Store(false)
	}
	read()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// TestTooManyFailed: when more disks refuse writes than parity bears, status says which, and what to do.
func TestTooManyFailed(t *testing.T) {
	f := newFlakyArray(t, 6, 4, 2, 24)
	a := f.open(Options{})
	defer a.Close()
	w := newWritten()
	w.fill(t, a, 1)
	for i := range 3 {
		f.disks[i].failWrites(errors.New("input/output error"))
	}
	var err error
	for i := uint64(5000); err == nil && i < 5020; i++ {
		err = w.put(a, i, 4096)
	}
	if !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	st := a.Status()
	for _, d := range st.Disks {
		if failed := d.State == DiskFenced; failed != (d.Slot < 3) || failed && d.Reason == "" {
			t.Errorf("slot %d is %s: %s", d.Slot, d.State, d.Reason)
		}
		if named := strings.Contains(st.Reason, fmt.Sprintf("slot %d %s (", d.Slot, d.Path)); named != (d.Slot < 3) {
			t.Errorf("slot %d named %t in %q", d.Slot, named, st.Reason)
		}
	}
	if st.State != "stopped" || !strings.Contains(st.Reason, "start again") {
		t.Errorf("%s: %s", st.State, st.Reason)
	}
}
