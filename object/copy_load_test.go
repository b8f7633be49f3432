package object

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/disk"
)

// TestCopiesShareBuffers: many copies at once, each of which needs buffers to read and buffers to write, with few of both.
func TestCopiesShareBuffers(t *testing.T) {
	opt := testOptions(t)
	opt.Copies = 1
	dir := t.TempDir()
	var paths []string
	for i := range 3 {
		p := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := disk.CreateFile(p, 240<<20); err != nil {
			t.Skipf("no file that serves as a disk: %v", err)
		}
		paths = append(paths, p)
	}
	err := disk.Create(t.Context(), disk.CreateOptions{ArrayID: opt.Keys.ArrayID(), Paths: paths, Keys: opt.Keys,
		Geometry: disk.Geometry{Data: 2, Parity: 1, ExtentSize: 4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	set, err := disk.Discover(paths, false)
	if err != nil {
		t.Fatal(err)
	}
	a, err := set.Open(t.Context(), disk.Options{Keys: opt.Keys, State: s, Crypto: opt.Crypto, ArenaBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	s.Start(OnArray(a))
	f := &fixture{Store: s, t: t}
	if _, err := f.CreateBucket(t.Context(), "b", Bucket{}); err != nil {
		t.Fatal(err)
	}
	body := pattern(5<<20, 1)
	f.put("src", body, PutOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			if _, err := f.Copy(ctx, CopySource{Bucket: "b", Key: "src"}, "b", fmt.Sprint("dst", i), CopyOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !t.Failed() {
		f.want("dst0", body, GetOptions{})
	}
}
