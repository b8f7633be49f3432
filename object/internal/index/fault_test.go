package index

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
)

// state is everything an index holds.
type state struct {
	Records map[string]string
	Live    map[uint64]int64
}

func read(x *Index) (pos int, s state, err error) {
	p, err := x.Position()
	if err != nil {
		return 0, s, err
	}
	pos, _ = strconv.Atoi(string(p))
	s = state{Records: make(map[string]string), Live: live(x)}
	it := x.Iter([]byte("o"), []byte("p"))
	for ok := it.Seek(nil); ok; ok = it.Next() {
		s.Records[string(it.Key())] = string(it.Value())
	}
	return pos, s, it.Close()
}

// step applies batch number n, which depends on n and seed only, to an index and, if it is not nil, to a model.
func step(x *Index, seed uint64, n int, model *state) error {
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	b := x.NewBatch()
	for range rng.IntN(30) {
		k := ObjectKey(nil, 1, fmt.Sprintf("key%d", rng.IntN(200)))
		if rng.IntN(4) == 0 {
			b.Delete(k)
			if model != nil {
				delete(model.Records, string(k))
			}
			continue
		}
		v := bytes.Repeat([]byte{byte(n)}, rng.IntN(2000))
		b.Set(k, v)
		b.AddLive(uint64(rng.IntN(5)), 0)
		if model != nil {
			model.Records[string(k)] = string(v)
		}
	}
	band := uint64(rng.IntN(5))
	b.AddLive(band, int64(n))
	b.SetPosition(strconv.AppendInt(nil, int64(n), 10))
	return b.Commit()
}

// history computes the state after each batch of a seed.
type history struct {
	seed   uint64
	x      *Index
	states []state
}

func (h *history) at(tb testing.TB, n int) state {
	if h.x == nil {
		h.x = open(tb, vfs.NewMem(), testKeys{})
		h.states = []state{{Records: make(map[string]string), Live: make(map[uint64]int64)}}
	}
	for i := len(h.states); i <= n; i++ {
		s := state{Records: maps.Clone(h.states[i-1].Records)}
		check(tb, step(h.x, h.seed, i, &s))
		s.Live = live(h.x)
		h.states = append(h.states, s)
	}
	return h.states[n]
}

// TestCrash cuts the power at random points, also while the index is opened again. After each, it is exactly at the position
// it reports, and not before the last checkpoint.
func TestCrash(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		base, want := newMem(), history{seed: seed}
		next, durable := 1, 0
		for range 3 {
			x, err := Open(Options{Dir: "index", FS: base, Keys: testKeys{}})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			pos, got, err := read(x)
			if err != nil || pos < durable || pos >= next {
				t.Fatalf("seed %d: position %d, not in %d..%d: %v", seed, pos, durable, next-1, err)
			}
			if d := cmp.Diff(want.at(t, pos), got); d != "" {
				t.Fatalf("seed %d, position %d: %s", seed, pos, d)
			}
			clone := make(chan *vfs.MemFS)
			var begun atomic.Bool
			go func(delay time.Duration, percent int, rng *rand.Rand) {
				time.Sleep(delay)
				begun.Store(true)
				clone <- base.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
			}(time.Duration(rng.IntN(8000))*time.Microsecond, rng.IntN(101), rand.New(rand.NewPCG(seed, 2)))
			var crashed *vfs.MemFS
			// What was durable before the crash began must survive it, what is committed after may.
			for next = pos + 1; crashed == nil; next++ {
				check(t, step(x, seed, next, nil))
				select {
				case crashed = <-clone:
					continue
				default:
				}
				if rng.IntN(20) == 0 {
					check(t, x.Checkpoint())
				}
				p, err := x.DurablePosition()
				check(t, err)
				if !begun.Load() {
					durable, _ = strconv.Atoi(string(p))
				}
			}
			check(t, x.Close())
			base = crashed
		}
	}
}

// TestFaults fails the n-th writing operation of the base, and all after it every other time, for growing n. The process
// survives, no call hangs or lies, and after closing the index opens again in the same process with a true prefix.
func TestFaults(t *testing.T) {
	before := runtime.NumGoroutine()
	faults, quarantined, want := 0, 0, history{seed: 9}
	for n := int64(0); ; n++ {
		var count atomic.Int64
		count.Store(n)
		inj := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			if left := count.Add(-1); left == -1 || left < -1 && n%2 == 0 {
				return errorfs.ErrInjected
			}
			return nil
		})
		mem := vfs.NewMem()
		durable := 0
		faults++
		x, err := Open(Options{Dir: "index", FS: errorfs.Wrap(mem, inj), Keys: testKeys{}})
		if err == nil {
			durable = faultRun(t, x)
			if x.Healthy() != nil {
				quarantined++
				if !errors.Is(x.Healthy(), ErrQuarantined) || errors.Is(x.Healthy(), ErrCorrupt) {
					t.Fatalf("fault %d: %v", n, x.Healthy())
				}
				if _, _, err := x.Get([]byte("o"), nil); !errors.Is(err, ErrQuarantined) {
					t.Fatalf("fault %d: read of a quarantined index: %v", n, err)
				}
			}
			if err := x.Close(); err != nil && count.Load() >= 0 {
				t.Fatalf("fault %d: close without a fault: %v", n, err)
			}
		}
		x, err = Open(Options{Dir: "index", FS: mem, Keys: testKeys{}})
		if err != nil {
			t.Fatalf("fault %d: reopen: %v", n, err)
		}
		pos, got, err := read(x)
		if err != nil || pos < durable {
			t.Fatalf("fault %d: position %d, %d was durable: %v", n, pos, durable, err)
		}
		if d := cmp.Diff(want.at(t, pos), got); d != "" {
			t.Fatalf("fault %d, position %d: %s", n, pos, d)
		}
		check(t, x.Close())
		if count.Load() >= 0 {
			break
		}
	}
	if quarantined == 0 {
		t.Fatal("no fault led to a quarantine")
	}
	t.Logf("%d operations, %d quarantines left %d goroutines", faults, quarantined, runtime.NumGoroutine()-before)
}

// faultRun commits and checkpoints until an error, and returns the last position known to be durable.
func faultRun(t *testing.T, x *Index) (durable int) {
	done := make(chan int)
	go func() {
		durable := 0
		defer func() { done <- durable }()
		for i := 1; i <= 40; i++ {
			if step(x, 9, i, nil) != nil {
				return
			}
			if i%5 == 0 {
				if x.Checkpoint() != nil {
					return
				}
				durable = i
			}
		}
	}()
	select {
	case durable = <-done:
		return durable
	case <-time.After(30 * time.Second):
		t.Fatal("a call hangs")
		return 0
	}
}

// TestTamper changes one byte of any file. The index fails to open or to read, as corrupt, or is what it was at its position.
func TestTamper(t *testing.T) {
	base := newMem()
	x := open(t, base, testKeys{})
	const steps = 20
	for i := 1; i <= steps; i++ {
		check(t, step(x, 3, i, nil))
		if i%4 == 0 {
			check(t, x.Checkpoint())
		}
	}
	check(t, x.Close())
	names, err := base.List("index")
	check(t, err)
	rng := rand.New(rand.NewPCG(3, 3))
	outcomes, want := make(map[string]int), history{seed: 3}
	for i := range 250 {
		name := names[i%len(names)]
		raw := readRaw(t, base, "index/"+name)
		if len(raw) == 0 {
			continue
		}
		raw[rng.IntN(len(raw))] ^= 1 << rng.IntN(8)
		fs := base.CrashClone(vfs.CrashCloneCfg{})
		f, err := fs.Create("index/"+name, vfs.WriteCategoryUnspecified)
		check(t, err)
		_, err = f.Write(raw)
		check(t, errors.Join(err, f.Close()))

		x, err := Open(Options{Dir: "index", FS: fs, Keys: testKeys{}})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s: %v", name, err)
			}
			outcomes["open"]++
			continue
		}
		pos, got, err := read(x)
		switch {
		case err == nil:
			if d := cmp.Diff(want.at(t, pos), got); d != "" {
				t.Fatalf("%s: wrong state at %d: %s", name, pos, d)
			}
			outcomes["position "+strconv.Itoa(pos)]++
		case errors.Is(err, ErrCorrupt) && errors.Is(x.Healthy(), ErrCorrupt):
			outcomes["read"]++
		default:
			t.Fatalf("%s: %v, healthy: %v", name, err, x.Healthy())
		}
		check(t, x.Close())
	}
	t.Log(outcomes)
}

// TestDamagedTable: damage found by a read quarantines the index, and it can be wiped and made anew.
func TestDamagedTable(t *testing.T) {
	base := newMem()
	x := open(t, base, testKeys{})
	const records = 5000
	key := func(i int) []byte { return ObjectKey(nil, 1, fmt.Sprintf("key%d", i)) }
	b := x.NewBatch()
	for i := range records {
		b.Set(key(i), fmt.Appendf(nil, "%0200d", i))
	}
	check(t, b.Commit())
	check(t, x.Close())
	names, err := base.List("index")
	check(t, err)
	for _, name := range names {
		raw := readRaw(t, base, "index/"+name)
		if len(raw) < 50_000 {
			continue
		}
		raw[len(raw)/2] ^= 1
		f, err := base.Create("index/"+name, vfs.WriteCategoryUnspecified)
		check(t, err)
		_, err = f.Write(raw)
		check(t, errors.Join(err, f.Sync(), f.Close()))
	}
	for name, find := range map[string]func(x *Index) error{
		"get": func(x *Index) error {
			for i := range records {
				v, ok, err := x.Get(key(i), nil)
				if err != nil {
					return err
				}
				if !ok || string(v) != fmt.Sprintf("%0200d", i) {
					t.Fatalf("wrong value %q of record %d", v, i)
				}
			}
			return nil
		},
		"list": func(x *Index) error {
			_, err := x.List(1, ListOptions{Max: records})
			return err
		},
		"batch": func(x *Index) error {
			b := x.NewBatch()
			defer b.Discard()
			for i := range records {
				if _, _, err := b.Get(key(i), nil); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		fs := base.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		x := open(t, fs, testKeys{})
		if err := find(x); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := x.Healthy(); !errors.Is(err, ErrCorrupt) || !errors.Is(err, ErrQuarantined) {
			t.Fatalf("%s: healthy: %v", name, err)
		}
		b := x.NewBatch()
		b.Set(key(0), nil)
		if err := b.Commit(); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: commit: %v", name, err)
		}
		check(t, x.Close())
		check(t, Wipe(fs, "index"))
		x = open(t, fs, testKeys{})
		if p, err := x.Position(); p != nil || err != nil {
			t.Fatalf("%s: position after wiping: %q, %v", name, p, err)
		}
		check(t, x.Close())
	}
}

// TestMark: an index that proved corrupt is not believed again, even after a power cut in the moment in which that is known, until it
// was wiped.
func TestMark(t *testing.T) {
	base := newMem()
	x := open(t, base, testKeys{})
	b := x.NewBatch()
	b.Set(ObjectKey(nil, 1, "key"), []byte("value"))
	check(t, b.Commit())
	check(t, x.Checkpoint())
	select {
	case <-x.Failed():
		t.Fatal("a sound index has failed")
	default:
	}
	x.Fail(fmt.Errorf("decode value: %w", ErrCorrupt))
	<-x.Failed()
	crashed := base.CrashClone(vfs.CrashCloneCfg{})
	check(t, x.Close())
	for _, fs := range []*vfs.MemFS{base, crashed} {
		for range 2 {
			if _, err := Open(Options{Dir: "index", FS: fs, Keys: testKeys{}}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("open of a marked index: %v", err)
			}
		}
		check(t, Wipe(fs, "index"))
		x := open(t, fs, testKeys{})
		if v := get(t, x, string(ObjectKey(nil, 1, "key"))); v != "" {
			t.Errorf("wiped index holds %q", v)
		}
		check(t, x.Close())
		check(t, open(t, fs, testKeys{}).Close())
	}
}

// TestUnmarked: a fault that is not corruption leaves the index to be opened again as it is.
func TestUnmarked(t *testing.T) {
	base := newMem()
	x := open(t, base, testKeys{})
	x.Fail(errors.New("no space"))
	if err := x.Healthy(); !errors.Is(err, ErrQuarantined) || errors.Is(err, ErrCorrupt) {
		t.Errorf("healthy: %v", err)
	}
	check(t, x.Close())
	check(t, open(t, base, testKeys{}).Close())
}
