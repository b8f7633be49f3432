package object

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"coffer/disk"
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

// TestDamagedIndex holds that an index whose files are damaged is rebuilt from the log, at the start and at run time.
func TestDamagedIndex(t *testing.T) {
	opt := testOptions(t)
	opt.CheckpointBytes = 1 // checkpoint as soon as anything is applied
	f := newFixture(t, opt)
	body := bytes.Repeat([]byte("v"), 1000)
	for i := range 300 {
		f.put(fmt.Sprint("k", i), body, PutOptions{})
	}
	if err := f.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(opt.IndexDir, "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatalf("tables: %q, %v", files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := 200; i < len(b); i += 997 {
			b[i] ^= 1
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.reopen(false)
	for range 3 { // damage may show at the start, or at a read: then the start after it makes the index anew
		if _, err = f.read("k7", GetOptions{}); err == nil {
			break
		}
		f.reopen(false)
	}
	f.want("k7", body, GetOptions{})
	f.checkLive()
	if f.Stats().Puts != 0 || f.Stats().Buckets != 1 {
		t.Errorf("stats %+v", f.Stats())
	}
}
