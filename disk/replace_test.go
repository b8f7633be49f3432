package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// newDiskFile makes another disk for a fileArray.
func (f *fileArray) newDiskFile(name string, size int64) string {
	f.t.Helper()
	p := filepath.Join(filepath.Dir(f.paths[0]), name)
	if err := CreateFile(p, size); err != nil {
		f.t.Fatal(err)
	}
	return p
}

// whole waits until all disks are healthy.
func whole(t *testing.T, a *Array) {
	t.Helper()
	for range 3000 {
		if a.Status().State == "healthy" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the array does not become healthy: %+v", a.Status())
}

// survives opens the array without two disks and reads all.
func (f *fileArray) survives(w *written, without ...int) {
	f.t.Helper()
	all := f.paths
	defer func() { f.paths = all }()
	f.paths = nil
	for i, p := range all {
		if !slices.Contains(without, i) {
			f.paths = append(f.paths, p)
		}
	}
	f.state = &testState{}
	a := f.open()
	if err := w.verify(a, f.state); err != nil {
		f.t.Errorf("without disks %v: %v", without, err)
	}
	if err := a.Close(); err != nil {
		f.t.Error(err)
	}
}

const replaceSize = superArea + 60<<20

// TestReplace: a disk is replaced and rebuilt while others write; then any two may go.
func TestReplace(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.state = &testState{}
	a = f.open()
	w.fill(t, a, 1000)
	fresh := f.newDiskFile("new", replaceSize)
	var wg sync.WaitGroup
	wg.Go(func() { w.fill(t, a, 2000) })
	if err := a.Replace(t.Context(), 2, fresh, false); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	whole(t, a)
	w.fill(t, a, 3000)
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	old := f.paths[2]
	f.paths[2] = fresh
	f.survives(w, 0, 1)
	// The old disk is there again, and is nobody.
	f.paths = append(f.paths, old)
	f.state = &testState{}
	a = f.open()
	if s := a.Status(); s.State != "healthy" || s.Disks[2].Path != fresh {
		t.Errorf("with the old disk back: %s, slot 2 is %s", s.State, s.Disks[2].Path)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths = f.paths[:6]
	f.survives(w, 4, 5)
}

// newHalfFull makes an array of which half is written, and opens it.
func newHalfFull(t *testing.T) (*fileArray, *written, *Array) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	for id := uint64(0); a.Status().Disks[1].Free > int(a.Status().Disks[1].Extents)/2; id += 1000 {
		w.fill(t, a, id)
	}
	return f, w, a
}

// TestReplaceTruncated: a disk that was cut short is replaced. The new one has as many extents as the old one had, or what lies in the others
// would be lost at the next start.
func TestReplaceTruncated(t *testing.T) {
	f, w, a := newHalfFull(t)
	extents := a.Status().Disks[1].Extents
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f.paths[1], superArea+2<<20); err != nil {
		t.Fatal(err)
	}
	f.state = &testState{}
	a = f.open()
	if d := a.Status().Disks[1]; d.State != DiskForeign || d.Extents != extents {
		t.Errorf("cut short: %s with %d extents, want foreign with %d", d.State, d.Extents, extents)
	}
	short := f.newDiskFile("short", replaceSize/2)
	if err := a.Replace(t.Context(), 1, short, false); !errors.Is(err, ErrReplace) {
		t.Errorf("replaced by a disk that is too small: %v", err)
	}
	fresh := f.newDiskFile("new", replaceSize)
	if err := a.Replace(t.Context(), 1, fresh, false); err != nil {
		t.Fatal(err)
	}
	whole(t, a)
	if faults := a.Accounts(); len(faults) > 0 {
		t.Error(faults)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths[1] = fresh
	f.survives(w)
	f.survives(w, 4, 5)
}

// TestTooFewExtents: a member table that counts too few extents of a disk costs nothing, as the headers of bands prove more.
func TestTooFewExtents(t *testing.T) {
	f, w, a := newHalfFull(t)
	a.mu.Lock()
	a.super.members = slices.Clone(a.super.members)
	a.super.members[1].extents, a.super.members[2].extents = 2, 2
	a.mu.Unlock()
	if err := errors.Join(a.WriteKeyArea(), a.Close()); err != nil {
		t.Fatal(err)
	}
	all := f.paths
	f.paths = slices.Delete(slices.Clone(all), 2, 3) // of one that is away as well
	f.state = &testState{}
	a = f.open()
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	if d := a.Status().Disks; d[1].Extents < 20 || d[2].Extents < 20 {
		t.Errorf("%d and %d extents are known", d[1].Extents, d[2].Extents)
	}
	if faults := a.Accounts(); len(faults) > 0 {
		t.Error(faults)
	}
	w.fill(t, a, 1<<30)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths = all
	f.survives(w)
	f.survives(w, 4, 5)
}

// TestReplaceMissing: the old disk is gone, and the rebuild is interrupted.
func TestReplaceMissing(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := f.newDiskFile("new", replaceSize)
	f.paths = slices.Delete(f.paths, 3, 4)
	f.state = &testState{}
	a = f.open()
	a.SetRebuildRate(1) // it does not come far
	if err := a.Replace(t.Context(), 3, fresh, false); err != nil {
		t.Fatal(err)
	}
	s := a.Status()
	if d := s.Disks[3]; d.State != DiskRebuilding || d.Path != fresh || d.Rebuild == nil || s.State != "degraded" {
		t.Errorf("%s, %+v", s.State, d)
	}
	w.fill(t, a, 1000)
	if err := w.verify(a, f.state); err != nil {
		t.Errorf("while it is rebuilt: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths = slices.Insert(f.paths, 3, fresh)
	f.survives(w, 0) // one is being rebuilt, another gone
	f.state = &testState{}
	a = f.open()
	whole(t, a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.survives(w, 1, 5)
}

// TestReplacedDiskLeaves: a disk that goes away while it is rebuilt still lacks the rest when it is back.
func TestReplacedDiskLeaves(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	fresh := f.newDiskFile("new", replaceSize)
	a.SetRebuildRate(1)
	if err := a.Replace(t.Context(), 0, fresh, false); err != nil {
		t.Fatal(err)
	}
	if err := a.log.fail(a.slots()[:1]); err != nil { // it refuses a write
		t.Fatal(err)
	}
	w.fill(t, a, 1000)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths[0] = fresh
	f.state = &testState{}
	a = f.open()
	if s := a.Status().Disks[0].State; s != DiskRebuilding && s != DiskHealthy {
		t.Errorf("the disk is %s", s)
	}
	whole(t, a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.survives(w, 1, 2)
}

func TestReplaceRefused(t *testing.T) {
	f := newFileArray(t, 4, 2, 2, replaceSize)
	a := f.open()
	defer a.Close()
	small, good := f.newDiskFile("small", replaceSize-1<<20), f.newDiskFile("good", replaceSize)
	for _, c := range []struct {
		what string
		slot int
		path string
		want error
		text string
	}{
		{"no such slot", 4, good, ErrReplace, "slot 4"},
		{"too small", 0, small, ErrReplace, "extents"},
		{"of the array itself", 0, f.paths[1], nil, "in use"},
		{"not there", 0, filepath.Join(t.TempDir(), "none"), nil, "no such file"},
	} {
		err := a.Replace(context.Background(), c.slot, c.path, false)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if s := a.Status(); s.State != "healthy" {
		t.Errorf("after refusals: %s %s", s.State, s.Reason)
	}
	// With two disks out the data is on the other two: neither of these can be given up.
	if err := a.log.fail(a.slots()[2:]); err != nil {
		t.Fatal(err)
	}
	if err := a.Replace(t.Context(), 0, good, false); !errors.Is(err, ErrReplace) {
		t.Errorf("the last but one: %v", err)
	}
	if err := newWritten().put(a, 1, 100); err != nil {
		t.Errorf("the array does not go on: %v", err)
	}
}
