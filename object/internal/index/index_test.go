package index

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

// testKeys derives its only key from a seed.
type testKeys struct{ seed string }

func (k testKeys) CurrentEpoch() uint32 { return 1 }

func (k testKeys) IndexKey(epoch uint32) ([]byte, error) {
	if epoch != 1 {
		return nil, errors.New("no such epoch")
	}
	sum := sha256.Sum256([]byte(k.seed))
	return sum[:], nil
}

func newMem() *vfs.MemFS { return vfs.NewCrashableMem() }

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func open(tb testing.TB, base vfs.FS, keys testKeys) *Index {
	tb.Helper()
	x, err := Open(Options{Dir: "index", FS: base, Keys: keys})
	check(tb, err)
	return x
}

func get(tb testing.TB, x *Index, key string) string {
	tb.Helper()
	v, ok, err := x.Get([]byte(key), []byte(":"))
	check(tb, err)
	if !ok {
		return ""
	}
	return string(v)
}

func live(x *Index) map[uint64]int64 {
	m := make(map[uint64]int64)
	x.Live(func(band uint64, bytes int64) { m[band] = bytes })
	return m
}

func TestBatch(t *testing.T) {
	base := newMem()
	x := open(t, base, testKeys{})
	if p, err := x.Position(); p != nil || err != nil {
		t.Fatalf("position of a new index %q, %v", p, err)
	}
	b := x.NewBatch()
	b.Set([]byte("oa"), []byte("1"))
	b.Set([]byte("ob"), []byte("2"))
	b.Set([]byte("ob"), []byte("3"))
	b.Delete([]byte("oa"))
	b.SetPosition([]byte("p1"))
	b.AddLive(7, 100)
	b.AddLive(7, -40)
	b.AddLive(8, 5)
	if v, ok, err := b.Get([]byte("ob"), nil); string(v) != "3" || !ok || err != nil {
		t.Fatalf("own write: %q %v %v", v, ok, err)
	}
	if _, ok, _ := b.Get([]byte("oa"), nil); ok {
		t.Fatal("own delete not seen")
	}
	it := b.Iter([]byte("o"), []byte("p"))
	if !it.Seek(nil) || string(it.Key()) != "ob" || string(it.Value()) != "3" || it.Next() {
		t.Fatal("iteration does not show the batch's own writes")
	}
	check(t, it.Close())
	if get(t, x, "ob") != "" {
		t.Fatal("uncommitted write visible")
	}
	check(t, b.Commit())
	if get(t, x, "ob") != ":3" || get(t, x, "oa") != "" {
		t.Fatal("commit not visible")
	}
	b = x.NewBatch()
	b.Set([]byte("oc"), []byte("x"))
	b.AddLive(9, 1)
	b.Discard()
	b = x.NewBatch()
	b.AddLive(8, -5)
	b.AddLive(7, 1)
	b.SetPosition([]byte("p2"))
	check(t, b.Commit())
	want := map[uint64]int64{7: 61, 8: 0}
	if d := cmp.Diff(want, live(x)); d != "" {
		t.Fatal(d)
	}
	check(t, x.Close())
	if err := x.Checkpoint(); !errors.Is(err, ErrClosed) {
		t.Fatalf("use after close: %v", err)
	}

	x = open(t, base, testKeys{})
	if d := cmp.Diff(want, live(x)); d != "" {
		t.Fatal(d)
	}
	if p, err := x.Position(); string(p) != "p2" || err != nil {
		t.Fatalf("position %q, %v", p, err)
	}
	if get(t, x, "ob") != ":3" || get(t, x, "oc") != "" {
		t.Fatal("wrong records after reopening")
	}
	b = x.NewBatch()
	b.DropLive(8)
	check(t, b.Commit())
	check(t, x.Close())
	x = open(t, base, testKeys{})
	if d := cmp.Diff(map[uint64]int64{7: 61}, live(x)); d != "" {
		t.Fatal(d)
	}
	check(t, x.Close())
}

func TestNegativeLive(t *testing.T) {
	x := open(t, newMem(), testKeys{})
	b := x.NewBatch()
	b.Set([]byte("oa"), []byte("1"))
	b.AddLive(1, -1)
	if err := b.Commit(); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if err := x.Healthy(); !errors.Is(err, ErrCorrupt) || !errors.Is(err, ErrQuarantined) {
		t.Fatal(err)
	}
	check(t, x.Close())
}

func TestPositions(t *testing.T) {
	x := open(t, newMem(), testKeys{})
	positions := func() string {
		p, err := x.Position()
		check(t, err)
		d, err := x.DurablePosition()
		check(t, err)
		return fmt.Sprintf("%s %s", p, d)
	}
	commit := func(p string) {
		b := x.NewBatch()
		b.SetPosition([]byte(p))
		check(t, b.Commit())
	}
	commit("1")
	if got := positions(); got != "1 " {
		t.Fatal(got)
	}
	if x.BytesSinceCheckpoint() == 0 {
		t.Fatal("nothing to checkpoint")
	}
	check(t, x.Checkpoint())
	if got := positions(); got != "1 1" || x.BytesSinceCheckpoint() != 0 {
		t.Fatal(got)
	}
	commit("2")
	if got := positions(); got != "2 1" {
		t.Fatal(got)
	}
	check(t, x.Checkpoint())
	check(t, x.Checkpoint())
	if got := positions(); got != "2 2" {
		t.Fatal(got)
	}
	check(t, x.Close())
}

func TestIterIsSnapshot(t *testing.T) {
	x := open(t, newMem(), testKeys{})
	put := func(k string) {
		b := x.NewBatch()
		b.Set([]byte(k), []byte(k))
		check(t, b.Commit())
	}
	put("oa")
	put("oc")
	it := x.Iter([]byte("o"), []byte("p"))
	put("ob")
	var got []string
	for ok := it.Seek([]byte("oa")); ok; ok = it.Next() {
		got = append(got, string(it.Key())+string(it.Value()))
	}
	check(t, it.Close())
	if d := cmp.Diff([]string{"oaoa", "ococ"}, got); d != "" {
		t.Fatal(d)
	}
	if it.Seek(nil) || it.Next() {
		t.Fatal("closed iterator moves")
	}
	check(t, x.Close())
}

func TestOpenRefuses(t *testing.T) {
	base := newMem()
	x := open(t, base, testKeys{})
	b := x.NewBatch()
	b.Set(ObjectKey(nil, 1, "secret-name"), []byte("secret-value"))
	check(t, b.Commit())
	if _, err := Open(Options{Dir: "index", FS: base}); err == nil || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrForeign) {
		t.Fatalf("opened twice: %v", err)
	}
	check(t, x.Close())
	if _, err := Open(Options{Dir: "index", FS: base, Keys: testKeys{"other"}}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("other key: %v", err)
	}
	if _, err := Open(Options{Dir: "index", FS: base, Keys: testKeys{}, FormatKey: [16]byte{1}}); !errors.Is(err, ErrForeign) {
		t.Fatalf("other array: %v", err)
	}
	names, err := base.List("index")
	check(t, err)
	for _, name := range names {
		b := readRaw(t, base, "index/"+name)
		if bytes.Contains(b, []byte("secret")) || bytes.Contains(b, []byte("pebble")) {
			t.Fatalf("%s is readable", name)
		}
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			damaged := base.CrashClone(vfs.CrashCloneCfg{})
			check(t, damaged.Remove("index/"+name))
			x, err := Open(Options{Dir: "index", FS: damaged, Keys: testKeys{}})
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s missing: %v, %v", name, x, err)
			}
			check(t, Wipe(damaged, "index"))
			check(t, open(t, damaged, testKeys{}).Close())
		}
	}
}

func readRaw(tb testing.TB, fs vfs.FS, name string) []byte {
	f, err := fs.Open(name)
	check(tb, err)
	b, err := io.ReadAll(f)
	check(tb, errors.Join(err, f.Close()))
	return b
}

func TestConcurrent(t *testing.T) {
	x := open(t, newMem(), testKeys{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	reader := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	reader(func() error { _, _, err := x.Get(ObjectKey(nil, 1, "k7"), nil); return err })
	reader(func() error { _, err := x.List(1, ListOptions{Delimiter: "7", Max: 20}); return err })
	reader(func() error { x.Live(func(uint64, int64) {}); _, err := x.DurablePosition(); return err })
	reader(x.Checkpoint)
	rng := rand.New(rand.NewPCG(1, 5))
	for i := range 300 {
		b := x.NewBatch()
		for range 20 {
			b.Set(ObjectKey(nil, 1, fmt.Sprintf("k%d", rng.IntN(1000))), make([]byte, 200))
		}
		b.AddLive(uint64(i%5), 10)
		b.SetPosition(fmt.Appendf(nil, "%d", i))
		check(t, b.Commit())
	}
	close(stop)
	wg.Wait()
	check(t, x.Close())
}

func TestCommitAllocs(t *testing.T) {
	x := open(t, newMem(), testKeys{})
	const records = 200
	var key, value []byte
	value = make([]byte, 200)
	perCommit := testing.AllocsPerRun(20, func() {
		b := x.NewBatch()
		for i := range records {
			key = ObjectKey(key[:0], 1, "some/object/key")
			b.Set(append(key, byte(i)), value)
			b.AddLive(1, 10)
		}
		b.SetPosition(value[:24])
		check(t, b.Commit())
	})
	if perCommit/records > 0.5 {
		t.Fatalf("%.1f allocations for %d records", perCommit, records)
	}
	check(t, x.Close())
}

// TestCheckpointsTogether: two checkpoints at once cover what was committed, and no more.
func TestCheckpointsTogether(t *testing.T) {
	x := open(t, newMem(), testKeys{})
	for i := range 200 {
		put := func(position string) {
			t.Helper()
			b := x.NewBatch()
			b.SetPosition([]byte(position))
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		put("together")
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if err := x.Checkpoint(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := x.BytesSinceCheckpoint(); n != 0 {
			t.Fatalf("round %d: %d bytes are not covered", i, n)
		}
	}
}
