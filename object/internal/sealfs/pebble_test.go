package sealfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// panicLogger turns Pebble's fatal errors into panics.
type panicLogger struct{}

func (panicLogger) Infof(string, ...any)      {}
func (panicLogger) Errorf(string, ...any)     {}
func (panicLogger) Fatalf(f string, a ...any) { panic(fatalError(fmt.Sprintf(f, a...))) }

type fatalError string

func options(fs vfs.FS) *pebble.Options {
	return &pebble.Options{
		FS: fs, Logger: panicLogger{}, DisableWAL: true, MemTableSize: 64 << 10,
		FormatMajorVersion: pebble.FormatNewest,
		EventListener:      &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}},
	}
}

// dump returns all pairs of a database.
func dump(db *pebble.DB) (map[string]string, error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for it.First(); it.Valid(); it.Next() {
		all[string(it.Key())] = string(it.Value())
	}
	return all, errors.Join(it.Error(), it.Close())
}

// workload applies one random step to every database alike.
func workload(rng *rand.Rand, dbs ...*pebble.DB) error {
	key := func() []byte { return fmt.Appendf(nil, "key-%05d", rng.IntN(3000)) }
	do := func(f func(db *pebble.DB) error) error {
		for _, db := range dbs {
			if err := f(db); err != nil {
				return err
			}
		}
		return nil
	}
	switch rng.IntN(20) {
	case 0:
		return do((*pebble.DB).Flush)
	case 1:
		return do(func(db *pebble.DB) error {
			return db.Compact(context.Background(), []byte("key"), []byte("kez"), false)
		})
	case 2:
		a, b := key(), key()
		if bytes.Compare(a, b) > 0 {
			a, b = b, a
		}
		return do(func(db *pebble.DB) error { return db.DeleteRange(a, b, pebble.NoSync) })
	case 3, 4, 5:
		k := key()
		return do(func(db *pebble.DB) error { return db.Delete(k, pebble.NoSync) })
	default:
		k, v := key(), bytes.Repeat(fmt.Appendf(nil, "value-%d ", rng.IntN(1e6)), 1+rng.IntN(80))
		return do(func(db *pebble.DB) error {
			for i := range 10 {
				if err := db.Set(fmt.Appendf(k, "/%d", i), v, pebble.NoSync); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func TestPebbleDifferential(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 10))
		plain, sealed := vfs.NewMem(), vfs.NewMem()
		a, b := must(pebble.Open("d", options(plain))), must(pebble.Open("d", options(New(sealed, keys))))
		for range 400 {
			check(t, workload(rng, a, b))
			if rng.IntN(100) == 0 {
				check(t, errors.Join(a.Flush(), b.Flush(), a.Close(), b.Close()))
				a, b = must(pebble.Open("d", options(plain))), must(pebble.Open("d", options(New(sealed, keys))))
			}
		}
		x, y := must(dump(a)), must(dump(b))
		if len(x) != len(y) {
			t.Fatalf("seed %d: %d pairs, want %d", seed, len(y), len(x))
		}
		for k, v := range x {
			if y[k] != v {
				t.Fatalf("seed %d: %s differs", seed, k)
			}
		}
		check(t, errors.Join(b.Flush(), a.Close(), b.Close()))
		grep(t, sealed, "d", "key-0", "value-", "leveldb", "pebble", "bytewise", "rocksdb.")
	}
}

// grep fails when a file of dir holds one of the words.
func grep(t *testing.T, fs vfs.FS, dir string, words ...string) {
	t.Helper()
	for _, name := range must(fs.List(dir)) {
		b := must(readAll(fs, fs.PathJoin(dir, name)))
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) {
				t.Fatalf("%s holds %q", name, w)
			}
		}
	}
}

// TestPebbleCrash: after a power cut the database opens, and holds what was flushed before.
func TestPebbleCrash(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 11))
		mem := vfs.NewCrashableMem()
		db := must(pebble.Open("d", options(New(mem, keys))))
		steps := rng.IntN(120)
		flushed := 0
		for i := range steps {
			check(t, db.Set([]byte("step"), fmt.Appendf(nil, "%d", i), pebble.NoSync))
			check(t, workload(rng, db))
			if rng.IntN(30) == 0 {
				check(t, db.Flush())
				flushed = i
			}
		}
		crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		check(t, db.Close())
		db, err := pebble.Open("d", options(New(crashed, keys)))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		all, err := dump(db)
		check(t, err)
		if step, _ := strconv.Atoi(all["step"]); step < flushed {
			t.Fatalf("seed %d: step %d is the last, %d was flushed", seed, step, flushed)
		}
		check(t, db.Close())
	}
}

// TestPebbleTamper: with any one byte of any file changed, a database fails to open, or fails to read, or reads a state that it
// had at some sync.
func TestPebbleTamper(t *testing.T) {
	base := vfs.NewMem()
	db := must(pebble.Open("d", options(New(base, keys))))
	states := map[string]bool{fmt.Sprint(map[string]string{}): true}
	for i := range 5 {
		for j := range 100 {
			check(t, db.Set(fmt.Appendf(nil, "k%03d", j*7%100), fmt.Appendf(nil, "v%d", i*1000+j), pebble.NoSync))
		}
		check(t, db.Flush())
		states[fmt.Sprint(must(dump(db)))] = true
	}
	check(t, db.Close())
	names := must(base.List("d"))
	files := make(map[string][]byte)
	for _, name := range names {
		files[name] = must(readAll(base, "d/"+name))
	}
	rng := rand.New(rand.NewPCG(1, 12))
	outcomes := make(map[string]int)
	for range 400 {
		name := names[rng.IntN(len(names))]
		if len(files[name]) == 0 {
			continue
		}
		dir := vfs.NewMem()
		check(t, dir.MkdirAll("d", 0o700))
		at := rng.IntN(len(files[name]))
		for n, b := range files {
			b = bytes.Clone(b)
			if n == name {
				b[at] ^= 1 << rng.IntN(8)
			}
			rawWrite(t, dir, "d/"+n, b)
		}
		db, err := pebble.Open("d", options(New(dir, keys)))
		if err != nil {
			outcomes["open"]++
			continue
		}
		all, err := dump(db)
		switch {
		case err != nil:
			outcomes["read"]++
		case states[fmt.Sprint(all)]:
			outcomes["a state"]++
		default:
			t.Fatalf("%s: byte %d changed: wrong data", name, at)
		}
		check(t, db.Close())
	}
	t.Log(outcomes)
}

// TestFileErrors fails the n-th operation of the base for every n: the file's user hears of it, at the latest from Close, the
// file takes no more writes after it, and what was synced before reads back.
func TestFileErrors(t *testing.T) {
	for _, name := range []string{"1.sst", "MANIFEST-000001"} {
		for n := 0; ; n++ {
			left := n
			inj := errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
					if left--; left == -1 {
						return errorfs.ErrInjected
					}
				}
				return nil
			})
			mem := vfs.NewMem()
			written, synced, err := writeUntilError(New(errorfs.Wrap(mem, inj), keys), name)
			if err == nil && left < 0 {
				t.Fatalf("%s: operation %d failed unnoticed", name, n)
			}
			got, rerr := readAll(New(mem, keys), name)
			if err == nil && rerr != nil || rerr != nil && !errors.Is(rerr, ErrCorrupt) && !errors.Is(rerr, os.ErrNotExist) {
				t.Fatalf("%s: operation %d: %v, read: %v", name, n, err, rerr)
			}
			if !bytes.HasPrefix(written, got) || kindOf(name) == kindFrames && !bytes.HasPrefix(got, synced) {
				t.Fatalf("%s: operation %d: read %d bytes of %d, %d synced", name, n, len(got), len(written), len(synced))
			}
			if err == nil {
				break
			}
		}
	}
}

// writeUntilError writes and syncs a file to its end or to the first error, after which further writes must fail.
func writeUntilError(fs vfs.FS, name string) (written, synced []byte, err error) {
	f, err := fs.Create(name, noCategory)
	if err != nil {
		return nil, nil, err
	}
	rng := rand.New(rand.NewPCG(1, 13))
	for range 8 {
		p := randBytes(rng, 30_000)
		written = append(written, p...)
		_, err := f.Write(p)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			if _, again := f.Write([]byte("x")); again == nil {
				return nil, nil, errors.New("write after an error succeeded")
			}
			return written, synced, errors.Join(err, f.Close())
		}
		synced = bytes.Clone(written)
	}
	return written, synced, f.Close()
}

func BenchmarkPebble(b *testing.B) {
	const n = 200_000
	for _, name := range []string{"plain", "sealed"} {
		wrap := func(fs vfs.FS) vfs.FS { return fs }
		if name == "sealed" {
			wrap = func(fs vfs.FS) vfs.FS { return New(fs, keys) }
		}
		dir := filepath.Join(b.TempDir(), name)
		opt := func() *pebble.Options {
			o := options(wrap(vfs.Default))
			o.MemTableSize = 16 << 20
			return o
		}
		value := func(i int) []byte { return randBytes(rand.New(rand.NewPCG(uint64(i), 0)), 200) }
		key := func(i int) []byte { return fmt.Appendf(nil, "bucket/object-%020d", uint64(i)*0x9E3779B97F4A7C15) }
		b.Run("load/"+name, func(b *testing.B) {
			for b.Loop() {
				check(b, os.RemoveAll(dir))
				db := must(pebble.Open(dir, opt()))
				for i := range n {
					check(b, db.Set(key(i), value(i), pebble.NoSync))
				}
				check(b, db.Flush())
				check(b, db.Compact(context.Background(), []byte("a"), []byte("z"), false))
				check(b, db.Close())
			}
			b.SetBytes(n * 240)
		})
		db := must(pebble.Open(dir, opt()))
		b.Run("get/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				_, c, err := db.Get(key(i * 7919 % n))
				check(b, err)
				check(b, c.Close())
			}
		})
		b.Run("scan/"+name, func(b *testing.B) {
			for b.Loop() {
				it := must(db.NewIter(nil))
				for it.First(); it.Valid(); it.Next() {
				}
				check(b, errors.Join(it.Error(), it.Close()))
			}
			b.SetBytes(n * 240)
		})
		check(b, db.Close())
	}
}

func BenchmarkReadAt(b *testing.B) {
	for _, name := range []string{"plain", "sealed"} {
		for _, size := range []int{512, 4096, 32 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				var fs vfs.FS = vfs.Default
				if name == "sealed" {
					fs = New(fs, keys)
				}
				path := filepath.Join(b.TempDir(), "1.sst")
				const length = 32 << 20
				f := must(fs.Create(path, noCategory))
				must(io.Copy(f, strings.NewReader(strings.Repeat("0123456789abcdef", length/16))))
				check(b, f.Close())
				r := must(fs.Open(path))
				defer r.Close()
				p := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					must(r.ReadAt(p, int64(i*1_234_577%(length-size))))
				}
			})
		}
	}
}
