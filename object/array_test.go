package object

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"coffer/disk"
	"coffer/object/internal/index"
)

// openArray opens the array on the disks that exist, replaying it into a new Store.
func openArray(t *testing.T, opt Options, paths []string) (*Store, *disk.Array) {
	t.Helper()
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	set, err := disk.Discover(paths, false)
	if err != nil {
		t.Fatal(err)
	}
	a, err := set.Open(t.Context(), disk.Options{Keys: opt.Keys, State: s, Crypto: opt.Crypto, ArenaBytes: 64 << 20, Degraded: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start(OnArray(a))
	return s, a
}

// TestOnDisks runs the store on the disk engine: objects of all kinds survive a restart, the loss of the index, and the loss of as
// many disks as there is parity.
func TestOnDisks(t *testing.T) {
	opt := testOptions(t)
	dir := t.TempDir()
	var paths []string
	for i := range 4 {
		p := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := disk.CreateFile(p, 48<<20); err != nil {
			t.Skipf("no file that serves as a disk: %v", err)
		}
		paths = append(paths, p)
	}
	err := disk.Create(t.Context(), disk.CreateOptions{ArrayID: opt.Keys.ArrayID(), Paths: paths, Keys: opt.Keys,
		Geometry: disk.Geometry{Data: 2, Parity: 2, ExtentSize: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	s, a := openArray(t, opt, paths)
	f := &fixture{Store: s, t: t}
	if _, err := f.CreateBucket(t.Context(), "b", Bucket{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	bodies := map[string][]byte{}
	for i, n := range []int{0, 1, 4096, 131040, 131041, 1 << 20, 3<<20 + 7} {
		key := fmt.Sprint("k", n)
		body := pattern(n, byte(i))
		bodies[key] = body
		wg.Go(func() { f.put(key, body, PutOptions{}) })
	}
	wg.Wait()
	u := f.upload("multi", UploadOptions{})
	p1, p2 := f.part(u, 1, pattern(MinPartSize, 1), PartOptions{}), f.part(u, 2, []byte("end"), PartOptions{})
	if _, err := f.CompleteUpload(t.Context(), "b", "multi", u.ID, claim(p1, p2)); err != nil {
		t.Fatal(err)
	}
	bodies["multi"] = append(pattern(MinPartSize, 1), "end"...)
	check := func() {
		t.Helper()
		for k, b := range bodies {
			f.want(k, b, GetOptions{})
		}
		f.want("k131041", bodies["k131041"][65519:65522], GetOptions{Range: &Range{65519, 65521}})
	}
	check()
	shut := func() {
		t.Helper()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, ruin := range []func(){
		func() {},
		func() { opt.Rebuild = true },
		func() { damage(t, paths[0], pattern(32<<20, 3)) },
		func() { paths = paths[2:] },
	} {
		shut()
		ruin()
		s, a = openArray(t, opt, paths)
		f.Store, opt.Rebuild = s, false
		check()
		f.checkLive()
	}
	shut()
}

// damage overwrites the middle of a disk.
func damage(t *testing.T, path string, with []byte) {
	t.Helper()
	d, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(with, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// memArray makes an array in memory and opens it.
func memArray(t *testing.T, opt Options, diskSize int64, geo disk.Geometry) (*disk.Memory, *Store, *disk.Array) {
	t.Helper()
	m, err := disk.NewMemory(geo.Data+geo.Parity, diskSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Create(t.Context(), disk.CreateOptions{ArrayID: opt.Keys.ArrayID(), Keys: opt.Keys, Geometry: geo}); err != nil {
		t.Fatal(err)
	}
	s, a, err := openMemory(t, opt, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m, s, a
}

// openMemory opens the array again. wrap may put something between the array and the store that is replayed into.
func openMemory(t *testing.T, opt Options, m *disk.Memory, wrap func(*Store) disk.State) (*Store, *disk.Array, error) {
	t.Helper()
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	set, err := m.Discover()
	if err != nil {
		t.Fatal(err)
	}
	state := disk.State(s)
	if wrap != nil {
		state = wrap(s)
	}
	a, err := set.Open(t.Context(), disk.Options{Keys: opt.Keys, State: state, Crypto: opt.Crypto, ArenaBytes: 64 << 20})
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	s.Start(OnArray(a))
	t.Cleanup(func() {
		a.Close() // closed before, in most tests
		s.Close()
	})
	return s, a, nil
}

// oneBit is the step of flipTables that makes it flip one bit alone.
const oneBit = 1 << 40

// flipTables flips a bit in each of the index's tables, in place, and then one every step bytes.
func flipTables(t *testing.T, dir string, step int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatalf("tables: %q, %v", files, err)
	}
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		for at := st.Size() / 3; at < st.Size(); at += step {
			var b [1]byte
			if _, err := f.ReadAt(b[:], at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b[:], at); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// kill returns the directory of the index as a process leaves it that is killed now.
func kill(t *testing.T, opt *Options) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "index")
	if err := os.CopyFS(dir, os.DirFS(opt.IndexDir)); err != nil {
		t.Fatal(err)
	}
	switch mark, err := os.ReadFile(opt.IndexDir + ".corrupt"); {
	case err == nil:
		if err := os.WriteFile(dir+".corrupt", mark, 0o600); err != nil {
			t.Fatal(err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	}
	opt.IndexDir = dir
}

// rotten is an array with objects, whose index on disk has flipped bits in each table.
type rotten struct {
	opt   Options
	disks *disk.Memory
	store *Store
	array *disk.Array
	n     int // objects, of 1000 bytes each
}

func newRotten(t *testing.T, step int64) *rotten {
	t.Helper()
	r := &rotten{opt: testOptions(t), n: 300}
	r.disks, r.store, r.array = memArray(t, r.opt, 64<<20, disk.Geometry{Data: 2, Parity: 1, ExtentSize: 2 << 20})
	f := &fixture{Store: r.store, t: t}
	if _, err := f.CreateBucket(t.Context(), "b", Bucket{}); err != nil {
		t.Fatal(err)
	}
	for i := range r.n {
		f.put(fmt.Sprint("k", i), pattern(1000, byte(i)), PutOptions{})
	}
	if err := f.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	flipTables(t, r.opt.IndexDir, step)
	return r
}

// reopen opens the array again and reads all objects.
func (r *rotten) reopen(t *testing.T) {
	t.Helper()
	s, _, err := openMemory(t, r.opt, r.disks, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, t: t}
	for i := range r.n {
		f.want(fmt.Sprint("k", i), pattern(1000, byte(i)), GetOptions{})
	}
	f.checkLive()
	if err := s.Healthy(); err != nil || s.Stats().Buckets != 1 {
		t.Errorf("healthy: %v, %d buckets", err, s.Stats().Buckets)
	}
}

// TestRotAtRunTime flips a bit under a running store: the call that meets it, and all after it, say that the index failed. The process
// is then killed, and the next start rebuilds without having met the damage itself.
func TestRotAtRunTime(t *testing.T) {
	r := newRotten(t, oneBit)
	f := &fixture{Store: r.store, t: t}
	bad := 0
	for i := range r.n {
		if _, err := f.read(fmt.Sprint("k", i), GetOptions{}); err != nil {
			if !errors.Is(err, ErrIndex) {
				t.Fatal(err)
			}
			bad++
		}
	}
	if bad == 0 {
		t.Fatal("no read met the damage")
	}
	<-f.Failed()
	if err := f.Healthy(); !errors.Is(err, ErrIndex) {
		t.Errorf("healthy: %v", err)
	}
	if _, err := f.Put(t.Context(), "b", "new", strings.NewReader("x"), PutOptions{Size: 1}); !errors.Is(err, ErrIndex) {
		t.Errorf("put: %v", err)
	}
	kill(t, &r.opt)
	if _, err := os.Stat(r.opt.IndexDir + ".corrupt"); err != nil {
		t.Errorf("nothing on disk says that the index is corrupt: %v", err)
	}
	r.reopen(t)
	if _, err := os.Stat(r.opt.IndexDir + ".corrupt"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mark outlives the rebuild: %v", err)
	}
}

// TestRotAtStart: the scan for keys meets a flipped bit before the index is asked for its position, during the replay, or after it.
func TestRotAtStart(t *testing.T) {
	r := newRotten(t, oneBit)
	r.array.Close()
	r.store.Close()
	s, a, err := openMemory(t, r.opt, r.disks, nil)
	if err == nil {
		f := &fixture{Store: s, t: t}
		for i := range r.n {
			if got, err := f.read(fmt.Sprint("k", i), GetOptions{}); err == nil && !bytes.Equal(got, pattern(1000, byte(i))) {
				t.Fatalf("k%d differs", i)
			} else if err != nil && !errors.Is(err, ErrIndex) {
				t.Fatal(err)
			}
		}
		a.Close()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	} else if !errors.Is(err, ErrIndex) {
		t.Fatal(err)
	}
	r.reopen(t)
}

// TestRuinedAtStart: an index that is damaged all over does not open, and is rebuilt at once.
func TestRuinedAtStart(t *testing.T) {
	r := newRotten(t, 997)
	r.array.Close()
	r.store.Close()
	r.reopen(t)
}

// corruptAt makes the index corrupt in the course of a start.
type corruptAt struct {
	*Store
	position bool // before the position is read; else in the first Apply of the replay
}

func (c *corruptAt) Position() (disk.Position, error) {
	if c.position {
		c.idx.Fail(index.ErrCorrupt)
	}
	return c.Store.Position()
}

func (c *corruptAt) Apply(p disk.Position, e []disk.Entry) error {
	if !c.position {
		c.idx.Fail(index.ErrCorrupt)
	}
	return c.Store.Apply(p, e)
}

// TestCorruptPosition: an index that proves corrupt before its position is read is dropped, and the start goes on.
func TestCorruptPosition(t *testing.T) {
	r := newRotten(t, oneBit)
	r.array.Close()
	r.store.Close()
	s, a, err := openMemory(t, r.opt, r.disks, func(s *Store) disk.State { return &corruptAt{s, true} })
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, t: t}
	f.want("k7", pattern(1000, 7), GetOptions{})
	a.Close()
	s.Close()
	r.reopen(t)
}

// TestCorruptReplay: an index that proves corrupt during the replay ends the start with ErrIndex, and the next attempt succeeds.
func TestCorruptReplay(t *testing.T) {
	r := newRotten(t, oneBit)
	r.array.Close()
	r.store.Close()
	if err := RebuildIndex(r.opt.IndexDir); err != nil { // so that there is something to replay
		t.Fatal(err)
	}
	if _, _, err := openMemory(t, r.opt, r.disks, func(s *Store) disk.State { return &corruptAt{s, false} }); !errors.Is(err, ErrIndex) {
		t.Fatalf("open: %v", err)
	}
	r.reopen(t)
}
