package sealfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

// testKeys derives a key per epoch; epochs above current do not exist.
type testKeys struct {
	seed    string
	current uint32
}

func (k testKeys) CurrentEpoch() uint32 { return k.current }

func (k testKeys) IndexKey(epoch uint32) ([]byte, error) {
	if epoch == 0 || epoch > k.current {
		return nil, fmt.Errorf("no epoch %d", epoch)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", k.seed, epoch))
	return sum[:], nil
}

var keys = testKeys{"seed", 3}

const noCategory = vfs.WriteCategoryUnspecified

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// write makes a file of the given chunks, each followed by a sync.
func write(tb testing.TB, fs vfs.FS, name string, chunks ...[]byte) {
	tb.Helper()
	f, err := fs.Create(name, noCategory)
	check(tb, err)
	for _, c := range chunks {
		if _, err := f.Write(bytes.Clone(c)); err != nil {
			tb.Fatal(err)
		}
		check(tb, f.Sync())
	}
	check(tb, f.Close())
}

func readAll(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// rawWrite replaces a file of the base.
func rawWrite(tb testing.TB, base vfs.FS, name string, b []byte) {
	tb.Helper()
	f, err := base.Create(name, noCategory)
	check(tb, err)
	if _, err := f.Write(bytes.Clone(b)); err != nil {
		tb.Fatal(err)
	}
	check(tb, f.Close())
}

func randBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], rng.Uint64())
		copy(b[i:], w[:])
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range []string{"000001.sst", "MANIFEST-000001"} {
		for _, size := range []int{0, 1, plainBlock - 1, plainBlock, plainBlock + 1, 3 * plainBlock, runBlocks * plainBlock,
			runBlocks*plainBlock + 1, maxFrame, maxFrame + 1, 300_000} {
			base := vfs.NewMem()
			fs := New(base, keys)
			want := randBytes(rng, size)
			f, err := fs.Create(name, noCategory)
			check(t, err)
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+rng.IntN(10_000))
				must(f.Write(bytes.Clone(rest[:n])))
				rest = rest[n:]
				if size := must(f.Stat()).Size(); size != int64(len(want)-len(rest)) {
					t.Fatalf("%s: size while writing %d", name, size)
				}
			}
			check(t, f.Sync())
			check(t, f.Close())
			got, err := readAll(fs, name)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s of %d bytes: read %d bytes, %v", name, size, len(got), err)
			}
			if n := must(fs.Stat(name)).Size(); n != int64(size) {
				t.Fatalf("%s of %d bytes: Stat says %d", name, size, n)
			}
			r := must(fs.Open(name))
			for range 50 {
				off, n := rng.IntN(size+10), rng.IntN(100_000)
				p := make([]byte, n)
				got, err := r.ReadAt(p, int64(off))
				exp := want[min(off, size):min(off+n, size)]
				if got != len(exp) || !bytes.Equal(p[:got], exp) || (got < n) != (err == io.EOF) || err != nil && err != io.EOF {
					t.Fatalf("%s of %d bytes: ReadAt(%d, %d) = %d, %v", name, size, n, off, got, err)
				}
			}
			check(t, r.Close())
		}
	}
}

// mutations yields each way in which a stored file is altered, with what is expected of reads: flip of each byte (of a sample in
// long files), and each cut.
func mutations(raw []byte, yield func(what string, b []byte)) {
	step := 1 + len(raw)/1500
	for i := 0; i < len(raw); i += step {
		b := bytes.Clone(raw)
		b[i] ^= 1 << (i % 8)
		yield(fmt.Sprintf("flip byte %d", i), b)
	}
	for i := 1; i < len(raw); i += step {
		yield(fmt.Sprintf("cut to %d", i), raw[:i])
	}
	yield("extend", append(bytes.Clone(raw), 0))
	yield("extend by a block", append(bytes.Clone(raw), raw[headerSize:min(len(raw), headerSize+sealedBlock)]...))
}

func TestBlockTamper(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	for _, size := range []int{0, 100, plainBlock, 3*plainBlock + 50} {
		base := vfs.NewMem()
		fs := New(base, keys)
		want := randBytes(rng, size)
		write(t, fs, "1.sst", want)
		mutations(must(readAll(base, "1.sst")), func(what string, b []byte) {
			rawWrite(t, base, "1.sst", b)
			got, err := readAll(fs, "1.sst")
			if len(b) < headerSize {
				// As after a power cut before the first sync. Pebble finds no table in an empty file.
				if err != nil || len(got) > 0 {
					t.Fatalf("%s: %d bytes, %v", what, len(got), err)
				}
				return
			}
			if !errors.Is(err, ErrCorrupt) || !errors.Is(err, pebble.ErrCorruption) {
				t.Fatalf("%d bytes, %s: error %v", size, what, err)
			}
			if !bytes.HasPrefix(want, got) {
				t.Fatalf("%d bytes, %s: wrong bytes", size, what)
			}
		})
	}
}

func TestBlockSplice(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	base := vfs.NewMem()
	fs := New(base, keys)
	write(t, fs, "1.sst", randBytes(rng, 4*plainBlock))
	write(t, fs, "2.sst", randBytes(rng, 4*plainBlock))
	a, b := must(readAll(base, "1.sst")), must(readAll(base, "2.sst"))
	block := func(raw []byte, i int) []byte { return raw[headerSize+i*sealedBlock : headerSize+(i+1)*sealedBlock] }
	for what, edit := range map[string]func(raw []byte) []byte{
		"block of the same place of another file": func(raw []byte) []byte { copy(block(raw, 1), block(b, 1)); return raw },
		"block of another place":                  func(raw []byte) []byte { copy(block(raw, 1), block(raw, 2)); return raw },
		"header of another file":                  func(raw []byte) []byte { copy(raw[:headerSize], b); return raw },
		"wrapped key of another file":             func(raw []byte) []byte { copy(raw[clearSize:headerSize], b[clearSize:]); return raw },
		"final block twice":                       func(raw []byte) []byte { return append(raw, block(raw, 3)...) },
		"block missing": func(raw []byte) []byte {
			return append(raw[:headerSize+sealedBlock], raw[headerSize+2*sealedBlock:]...)
		},
		"kind changed":  func(raw []byte) []byte { raw[9] = byte(kindFrames); return raw },
		"epoch changed": func(raw []byte) []byte { raw[15] = 1; return raw },
	} {
		rawWrite(t, base, "3.sst", edit(bytes.Clone(a)))
		if _, err := readAll(fs, "3.sst"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", what, err)
		}
	}
}

func TestFrameTamper(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	var chunks [][]byte
	prefixes := map[string]bool{"": true}
	var all []byte
	for i := range 6 {
		chunks = append(chunks, randBytes(rng, 40+i))
		all = append(all, chunks[i]...)
		prefixes[string(all)] = true
	}
	base := vfs.NewMem()
	fs := New(base, keys)
	write(t, fs, "MANIFEST-000001", chunks...)
	raw := must(readAll(base, "MANIFEST-000001"))
	last := len(raw) - len(chunks[5]) - frameHeader - tagSize
	mutations(raw, func(what string, b []byte) {
		rawWrite(t, base, "MANIFEST-000001", b)
		got, err := readAll(fs, "MANIFEST-000001")
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: error %v", what, err)
		}
		if !prefixes[string(got)] {
			t.Fatalf("%s: wrong bytes", what)
		}
		// Only the last frame has no later one to prove that it was there.
		if len(b) == len(raw) && !bytes.Equal(b[:last], raw[:last]) && err == nil {
			t.Fatalf("%s: damage taken for the end of the file", what)
		}
	})
	frame := func(i int) []byte {
		at := headerSize
		for _, c := range chunks[:i] {
			at += frameHeader + len(c) + tagSize
		}
		return raw[at : at+frameHeader+len(chunks[i])+tagSize]
	}
	for what, order := range map[string][]int{"reorder": {0, 2, 1, 3, 4, 5}, "missing": {0, 1, 3, 4, 5}, "twice": {0, 1, 1, 2, 3, 4, 5}} {
		b := bytes.Clone(raw[:headerSize])
		for _, i := range order {
			b = append(b, frame(i)...)
		}
		rawWrite(t, base, "MANIFEST-000001", b)
		if _, err := readAll(fs, "MANIFEST-000001"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", what, err)
		}
	}
}

// TestFrameTail: whatever a power cut leaves of unsynced frames, the synced ones are read and no error is reported.
func TestFrameTail(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 5))
		mem := vfs.NewCrashableMem()
		fs := New(mem, keys)
		dir := must(mem.OpenDir(""))
		f := must(fs.Create("MANIFEST-000001", noCategory))
		check(t, dir.Sync())
		var all, synced []byte
		for range rng.IntN(20) {
			p := randBytes(rng, 1+rng.IntN(6000))
			all = append(all, p...)
			must(f.Write(p))
			if rng.IntN(3) == 0 {
				check(t, f.Sync())
				synced = bytes.Clone(all)
			}
		}
		crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		check(t, f.Close())
		got, err := readAll(New(crashed, keys), "MANIFEST-000001")
		if err != nil || !bytes.HasPrefix(got, synced) || !bytes.HasPrefix(all, got) {
			t.Fatalf("seed %d: read %d bytes of %d synced, %d written: %v", seed, len(got), len(synced), len(all), err)
		}
	}
}

func TestEpochs(t *testing.T) {
	base := vfs.NewMem()
	check(t, base.MkdirAll("d/sub", 0o700))
	for i, epoch := range []uint32{1, 1, 2, 3} {
		write(t, New(base, testKeys{"seed", epoch}), fmt.Sprintf("d/%d.sst", i), []byte("x"))
	}
	rawWrite(t, base, "d/LOCK", nil)
	got, err := Epochs(base, "d")
	check(t, err)
	if d := cmp.Diff(map[uint32]int{1: 2, 2: 1, 3: 1}, got); d != "" {
		t.Fatal(d)
	}
	// Old epochs stay readable; unknown ones and other roots do not open.
	if _, err := readAll(New(base, keys), "d/0.sst"); err != nil {
		t.Fatal(err)
	}
	for _, k := range []testKeys{{"seed", 2}, {"other", 3}} {
		if _, err := readAll(New(base, k), "d/3.sst"); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error %v", err)
		}
	}
}

func TestFreeze(t *testing.T) {
	base := vfs.NewMem()
	fs := New(base, keys)
	write(t, fs, "1.sst", []byte("x"))
	sst, other := must(fs.Create("2.sst", noCategory)), must(fs.Create("OPTIONS-000003", noCategory))
	before := must(base.List(""))
	heard := 0
	fs.OnError = func(error) { heard++ }
	if err := fs.Remove("absent"); err == nil || heard != 0 {
		t.Fatalf("remove of nothing: %v, OnError called %d times", err, heard)
	}
	fs.Freeze()
	_, createErr := fs.Create("4.sst", noCategory)
	_, reuseErr := fs.ReuseForWrite("1.sst", "4.sst", noCategory)
	_, writeErr := other.Write([]byte("x"))
	_, toErr := must(fs.Open("1.sst")).SyncTo(1)
	check(t, toErr)
	for what, err := range map[string]error{
		"create": createErr, "reuse": reuseErr, "write": writeErr, "close": sst.Close(), "sync": other.Sync(),
		"link": fs.Link("1.sst", "4.sst"), "rename": fs.Rename("1.sst", "4.sst"), "remove": fs.Remove("1.sst"),
		"remove all": fs.RemoveAll("1.sst"), "mkdir": fs.MkdirAll("d", 0o700),
	} {
		if !errors.Is(err, ErrFrozen) {
			t.Errorf("%s: error %v", what, err)
		}
	}
	if heard != 9 { // the sync is refused by the file, which had failed
		t.Fatalf("OnError called %d times", heard)
	}
	if d := cmp.Diff(slices.Sorted(slices.Values(before)), slices.Sorted(slices.Values(must(base.List(""))))); d != "" {
		t.Fatal(d)
	}
	if got, err := readAll(fs, "1.sst"); err != nil || string(got) != "x" {
		t.Fatalf("read after freeze: %q, %v", got, err)
	}
}

func TestNamespace(t *testing.T) {
	base := vfs.NewMem()
	fs := New(base, keys)
	write(t, fs, "1.log", []byte("old"))
	f := must(fs.ReuseForWrite("1.log", "2.log", noCategory))
	must(f.Write([]byte("new")))
	check(t, f.Close())
	check(t, fs.Link("2.log", "3.log"))
	check(t, fs.Rename("2.log", "4.log"))
	for _, name := range []string{"3.log", "4.log"} {
		if got, err := readAll(fs, name); err != nil || string(got) != "new" {
			t.Fatalf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"1.log", "2.log"} {
		if _, err := fs.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if _, err := fs.OpenReadWrite("4.log", noCategory); !errors.Is(err, vfs.ErrUnsupported) {
		t.Fatal(err)
	}
	if vfs.Root(fs) != vfs.FS(base) {
		t.Fatal("root is not the base")
	}
}

func TestConcurrentReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	fs := New(vfs.NewMem(), keys)
	want := randBytes(rng, 1<<20)
	write(t, fs, "1.sst", want)
	f := must(fs.Open("1.sst"))
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 7))
			p := make([]byte, 9000)
			for range 200 {
				off := rng.IntN(len(want) - len(p))
				if n, err := f.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p[:n], want[off:off+n]) {
					t.Errorf("read at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	check(t, f.Close())
}

func TestReadAllocs(t *testing.T) {
	fs := New(vfs.NewMem(), keys)
	write(t, fs, "1.sst", make([]byte, 1<<20))
	f := must(fs.Open("1.sst"))
	defer f.Close()
	p := make([]byte, 5000)
	off := int64(0)
	// The pool may be emptied by a collection during the run, hence not exactly zero.
	if n := testing.AllocsPerRun(1000, func() {
		must(f.ReadAt(p, off))
		off = (off + 77_777) % (1<<20 - 5000)
	}); n >= 1 && !raceEnabled {
		t.Fatalf("%v allocations per read", n)
	}
}

func FuzzHeader(f *testing.F) {
	base := vfs.NewMem()
	for _, name := range []string{"1.sst", "MANIFEST-000001"} {
		write(f, New(base, keys), name, []byte("contents"))
		f.Add(must(readAll(base, name)))
	}
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err == nil {
			if !bytes.Equal(h.clear[:], b[:clearSize]) || !bytes.Equal(h.wrapped[:], b[clearSize:headerSize]) {
				t.Fatal("header parsed to other bytes")
			}
			_, err = openHeader(keys, h)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		base := vfs.NewMem()
		rawWrite(t, base, "f", b)
		if _, err := readAll(New(base, keys), "f"); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	// A fixed key, so that the corpus holds frames that open.
	k := must(newFileKey(make([]byte, fileKeySize), make([]byte, clearSize), kindFrames, 1))
	plain := [][]byte{[]byte("one"), []byte("two"), bytes.Repeat([]byte("three"), 100)}
	var body, all []byte
	prefixes := map[string]bool{"": true}
	for i, p := range plain {
		body = k.seal(body, frameHead{uint32(len(p)), uint32(i), uint32(i)}, p)
		all = append(all, p...)
		prefixes[string(all)] = true
		f.Add(bytes.Clone(body))
	}
	f.Add(body[20:])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := k.openAll(b)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if !prefixes[string(got)] {
			t.Fatalf("opened %q", got)
		}
	})
}

// TestVectors reads the files of testdata, which docs/index-format.md describes: the format must not change under its version.
func TestVectors(t *testing.T) {
	block := make([]byte, 5000)
	for i := range block {
		block[i] = byte(i % 251)
	}
	for name, want := range map[string][]byte{"blocks.sst": block, "frames": []byte("first second third ")} {
		got, err := readAll(New(vfs.Default, keys), filepath.Join("testdata", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}
