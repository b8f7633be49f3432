package disk

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// modelDev is a disk in memory that takes its time, by the clock of a synctest bubble: 0.2 to 1 ms and 1 ns a byte, now and then 5 ms
// more, and 1 s more for each operation while it is slow, or hangs on for as long as it is told.
type modelDev struct {
	blockdev.Device
	slow  *atomic.Bool
	hangs *atomic.Int64 // nanoseconds

	mu    *sync.Mutex // guards all below
	rng   *rand.Rand
	stats *blockdev.Stats
}

func newModelDev(d blockdev.Device, seed uint64) modelDev {
	return modelDev{d, new(atomic.Bool), new(atomic.Int64), new(sync.Mutex), rand.New(rand.NewPCG(seed, 1)), new(blockdev.Stats)}
}

func (d modelDev) serve(n int) time.Duration {
	d.mu.Lock()
	t := 200*time.Microsecond + time.Duration(d.rng.IntN(800))*time.Microsecond + time.Duration(n)
	if d.rng.IntN(2000) == 0 {
		t += 5 * time.Millisecond
	}
	d.mu.Unlock()
	if d.slow.Load() {
		t += time.Second
	}
	t += time.Duration(d.hangs.Load())
	time.Sleep(t)
	return t
}

func note(l *blockdev.Latency, t time.Duration) {
	l.Count++
	l.Sum += t
	l.Buckets[min(bits.Len64(uint64(t/time.Microsecond)), blockdev.LatencyBuckets-1)]++
}

func (d modelDev) ReadAt(p []byte, off int64) error {
	t := d.serve(len(p))
	d.mu.Lock()
	note(&d.stats.ReadLatency, t)
	note(&d.stats.ReadSizes[blockdev.SizeClass(len(p))], t)
	d.mu.Unlock()
	return d.Device.ReadAt(p, off)
}

func (d modelDev) WriteAt(p []byte, off int64, durable bool) error {
	t := d.serve(len(p))
	d.mu.Lock()
	note(&d.stats.DurableLatency, t)
	d.mu.Unlock()
	return d.Device.WriteAt(p, off, durable)
}

func (d modelDev) Stats() blockdev.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *d.stats
}

// foreground is what callers do, and how long it took them.
type foreground struct {
	a      *Array
	locs   []Loc
	whole  []Stripe
	t      *testing.T
	mu     sync.Mutex // guards all below
	reads  []time.Duration
	writes []time.Duration
}

// load fills the array.
func (f *foreground) load(state *testState) {
	w := newWritten()
	for i := range uint64(200) {
		if err := w.put(f.a, i+1, 4096); err != nil {
			f.t.Fatal(err)
		}
	}
	for i := range uint64(30) {
		if err := w.putBulk(f.a, (i+1)<<20, f.a.MaxStripeSegments()); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, e := range state.entries {
		f.locs = append(f.locs, e.data)
	}
	for _, s := range w.bulk {
		f.whole = append(f.whole, s)
	}
	slices.SortFunc(f.whole, func(x, y Stripe) int { return int(x.Band)<<20 + int(x.Off) - int(y.Band)<<20 - int(y.Off) })
}

func (f *foreground) read(rng *rand.Rand) error {
	ctx := context.Background()
	s := f.whole[rng.IntN(len(f.whole))]
	var v *View
	var err error
	switch k := rng.IntN(20); {
	case k < 12:
		v, err = f.a.ReadPacked(ctx, f.locs[rng.IntN(len(f.locs))])
	case k < 17:
		v, err = f.a.ReadStripe(ctx, s, rng.IntN(int(s.Segments)), 1)
	case k < 19:
		v, err = f.a.ReadStripe(ctx, s, 0, int(s.Segments))
	default:
		v, err = f.a.ReadVerified(ctx, s)
	}
	if err != nil {
		return err
	}
	for i := range v.Len() {
		p := v.Bytes(i)
		id := uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16 | uint64(p[3])<<24
		if checkPayload(id)(p) != nil {
			err = errors.New("wrong bytes")
		}
	}
	v.Release()
	return err
}

// run has callers at work for a while, and returns the 99th percentiles of reads and writes, and how many reads there were.
func (f *foreground) run(d time.Duration, seed uint64) (read, write time.Duration, n int) {
	f.reads, f.writes = nil, nil
	start := time.Now()
	var wg sync.WaitGroup
	work := func(seed uint64, think time.Duration, do func(*rand.Rand) error, took *[]time.Duration) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 2))
			for time.Since(start) < d {
				t := time.Now()
				if err := do(rng); err != nil {
					f.t.Error(err)
					return
				}
				f.mu.Lock()
				*took = append(*took, time.Since(t))
				f.mu.Unlock()
				time.Sleep(time.Duration(rng.Int64N(int64(2 * think))))
			}
		})
	}
	for i := range uint64(8) {
		work(seed+i, 8*time.Millisecond, f.read, &f.reads)
	}
	for i := range uint64(4) {
		work(seed+100+i, 20*time.Millisecond, func(rng *rand.Rand) error {
			_, err := f.a.Append(context.Background(), Record{Body: []byte("more"), Data: payload(1, 4096)})
			return err
		}, &f.writes)
	}
	wg.Wait()
	return percentile(f.reads, 99), percentile(f.writes, 99), len(f.reads)
}

func percentile(d []time.Duration, p int) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)*p/100]
}

// TestFlappingDisk: a disk that is slow half of the time, and works in between, is fenced all the same, and soon: from then on nobody waits for it.
func TestFlappingDisk(t *testing.T) {
	inBubble(t, 96, func(t *testing.T, m *Memory) {
		devs, f := slowArray(t, m, -1)
		defer f.a.Close()
		healthyRead, healthyWrite, _ := f.run(4*time.Second, 1000)
		stop := make(chan bool)
		defer close(stop)
		go func() {
			for {
				devs[2].(modelDev).slow.Store(!devs[2].(modelDev).slow.Load())
				select {
				case <-stop:
					return
				case <-time.After(1500 * time.Millisecond):
				}
			}
		}()
		f.run(8*time.Second, 2000)
		read, write, _ := f.run(10*time.Second, 3000)
		if d := f.a.Status().Disks[2]; d.State != DiskFenced || d.Reason != tooSlow || read > 3*healthyRead || write > 3*healthyWrite {
			t.Errorf("the disk is %s (%s); 99th percentiles: reads %v, healthy %v; writes %v, healthy %v", d.State, d.Reason, read, healthyRead, write, healthyWrite)
		}
	})
}

// TestSlowStart: a start does not wait for a disk that takes 1 s for each operation again and again, and not where it must not do without it.
func TestSlowStart(t *testing.T) {
	inBubble(t, 96, func(t *testing.T, m *Memory) {
		_, f := slowArray(t, m, -1)
		f.a.Close()
		began := time.Now()
		_, f = slowArray(t, m, 2)
		if d, took := f.a.Status().Disks[2], time.Since(began); d.State != DiskFenced || took > 20*time.Second {
			t.Errorf("the disk is %s (%s), after %v", d.State, d.Reason, took)
		}
		f.a.Close()
		_, f = slowArray(t, m, -1)
		if d := f.a.Status().Disks[2]; d.State != DiskHealthy {
			t.Errorf("fast again the disk is %s (%s)", d.State, d.Reason)
		}
		f.a.Close()
	})
}

// slowArray opens an array of disks that take their time, one of them far too much if it is not -1, fills it, and lets it measure them.
func slowArray(t *testing.T, m *Memory, slow int) ([]blockdev.Device, *foreground) {
	var devs []blockdev.Device
	for i, d := range m.devs {
		dev := newModelDev(d, uint64(i))
		dev.slow.Store(i == slow)
		devs = append(devs, dev)
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	state := &testState{}
	a, err := set.Open(context.Background(), Options{Keys: testKeys{}, Crypto: crypto(), State: state, PreferPool: true})
	if err != nil {
		t.Fatal(err)
	}
	f := &foreground{a: a, t: t}
	f.load(state)
	f.run(2*time.Second, 1)
	return devs, f
}

// TestSilentDisk: a disk that does not answer for long, or ever, is fenced long before the deadline of what it was asked; those who wait for
// it go on then. One that answers in time, as after looking for a bad sector, stays, and so do all when they are silent together.
func TestSilentDisk(t *testing.T) {
	for _, c := range []struct {
		hangs time.Duration
		disks []int
		fence bool
	}{{7 * time.Second, []int{2}, false}, {12 * time.Second, []int{2}, true}, {time.Hour, []int{4}, true}, {12 * time.Second, []int{0, 1, 2, 3, 4, 5}, false}} {
		t.Run(fmt.Sprint(c.hangs, len(c.disks)), func(t *testing.T) {
			inBubble(t, 96, func(t *testing.T, m *Memory) {
				devs, f := slowArray(t, m, -1)
				defer time.Sleep(c.hangs)
				defer f.a.Close()
				for _, i := range c.disks {
					devs[i].(modelDev).hangs.Store(int64(c.hangs))
				}
				time.AfterFunc(100*time.Millisecond, func() { // only what is asked at first hangs
					for _, i := range c.disks {
						devs[i].(modelDev).hangs.Store(0)
					}
				})
				began := time.Now()
				const long = 3 * time.Second
				f.run(long, 1000) // all of it is acknowledged, or the test fails
				took := time.Since(began)
				for _, i := range c.disks {
					d := f.a.Status().Disks[i]
					if fenced := d.State == DiskFenced; fenced != c.fence || fenced && d.Reason != noAnswer {
						t.Errorf("disk %d is %s (%s)", i, d.State, d.Reason)
					}
				}
				// It may have answered something else until the end.
				if most := long + (silentAfter+2)*healthEvery; c.fence && took > most {
					t.Errorf("callers waited %v, more than %v", took, most)
				}
			})
		})
	}
}

// TestSlowDiskTail: with one disk that takes 1 s for each operation, whichever it is, the 99th percentile of foreground reads and writes
// stays within three times that of healthy disks over half a minute, in which the disk is fenced (puts under way wait for it until then); and healthy disks get hardly any reads that hedging adds. Time is simulated.
func TestSlowDiskTail(t *testing.T) {
	slots := []int{2, 5}
	switch {
	case testing.Short():
		slots = slots[:1]
	case os.Getenv("COFFER_SOAK") != "":
		slots = []int{0, 1, 2, 3, 4, 5}
	}
	for _, slot := range slots {
		t.Run(fmt.Sprint(slot), func(t *testing.T) {
			inBubble(t, 96, func(t *testing.T, m *Memory) { slowTail(t, m, slot) })
		})
	}
}

func slowTail(t *testing.T, m *Memory, slot int) {
	devs, f := slowArray(t, m, -1)
	a := f.a
	defer a.Close()
	before := a.Status().Hedges
	healthyRead, healthyWrite, n := f.run(4*time.Second, 1000)
	hedged := a.Status().Hedges - before
	if share := float64(hedged) / float64(n); share > 0.02 {
		t.Errorf("%d of %d reads of healthy disks were hedged", hedged, n)
	}
	devs[slot].(modelDev).slow.Store(true)
	read, write, _ := f.run(30*time.Second, 2000)
	s := a.Status()
	t.Logf("healthy: p99 of reads %v, of writes %v, %d of %d hedged; one disk slow: %v, %v, %d hedged, %d won; the disk is %s",
		healthyRead, healthyWrite, hedged, n, read, write, s.Hedges-before-hedged, s.HedgesWon, s.Disks[slot].State)
	if read > 3*healthyRead || write > 3*healthyWrite {
		t.Errorf("99th percentiles: reads %v, healthy %v; writes %v, healthy %v", read, healthyRead, write, healthyWrite)
	}
	if longest := slices.Max(f.reads); longest > 100*time.Millisecond {
		t.Errorf("a read took %v", longest) // without hedging 1 s, before the disk is known to be slow
	}
	if s.HedgesWon == 0 || s.Disks[slot].State != DiskFenced {
		t.Errorf("%d hedged reads won, the slow disk is %s", s.HedgesWon, s.Disks[slot].State)
	}
}
