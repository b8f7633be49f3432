package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
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

// TestReplaceProvesTheNewDisk: a disk that cannot be written, or has no room behind it, takes nobody's place.
func TestReplaceProvesTheNewDisk(t *testing.T) {
	for name, spoil := range map[string]func(*blockdev.SimDisk){
		"writes fail": func(d *blockdev.SimDisk) { d.FailWrite(1, unix.EIO) },
		"no room":     (*blockdev.SimDisk).Fill,
	} {
		s := newSimArray(t, 6, 4, 2, 12)
		a := s.open()
		fresh := blockdev.NewSimDisk(s.world, superArea+12<<20, blockdev.SimOptions{Name: "new"})
		spoil(fresh)
		if err := a.replace(t.Context(), 2, fresh); !errors.Is(err, ErrReplace) {
			t.Errorf("%s: replace: %v", name, err)
		}
		spare := blockdev.NewSimDisk(s.world, superArea+12<<20, blockdev.SimOptions{Name: "newer"})
		spoil(spare)
		if _, err := a.add(t.Context(), spare, false); !errors.Is(err, ErrAdd) {
			t.Errorf("%s: add: %v", name, err)
		}
		if st := a.Status(); st.State != "healthy" || st.Disks[2].Path != s.disks[2].Path() || len(st.Disks) != 6 {
			t.Errorf("%s: %+v", name, st)
		}
		a.Close()
	}
}

// TestReplaceByTheOldDisk: what was given up for a disk that does not do can have its place again, at once.
func TestReplaceByTheOldDisk(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	defer a.Close()
	w.fill(t, a, 1)
	a.SetRebuildRate(1)
	if err := a.Replace(t.Context(), 2, f.newDiskFile("new", replaceSize), false); err != nil {
		t.Fatal(err)
	}
	if err := a.Replace(t.Context(), 2, f.paths[2], false); err == nil {
		t.Error("the old disk was overwritten without being told to")
	}
	if err := a.Replace(t.Context(), 9, f.paths[2], true); err == nil || len(a.Status().Disks[2].Olds) != 1 {
		t.Errorf("replace of no disk: %v; it is helped by %v", err, a.Status().Disks[2].Olds)
	}
	if err := a.Replace(t.Context(), 2, f.paths[2], true); err != nil {
		t.Fatal(err)
	}
	a.SetRebuildRate(0)
	whole(t, a)
	if err := w.verify(a, f.state); err != nil || a.Status().Disks[2].Path != f.paths[2] {
		t.Errorf("%v; slot 2 is %s", err, a.Status().Disks[2].Path)
	}
}

// TestReplaceByItself: a disk that was fenced, or was not there at the start, is taken in again while the array is open.
func TestReplaceByItself(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	away := f.paths[4] + ".away"
	if err := os.Rename(f.paths[4], away); err != nil {
		t.Fatal(err)
	}
	a := f.open()
	defer a.Close()
	w.fill(t, a, 1)
	if err := errors.Join(a.log.fail(a.slots()[2:3]), os.Rename(away, f.paths[4])); err != nil {
		t.Fatal(err)
	}
	w.fill(t, a, 1000)
	for _, slot := range []int{2, 4} {
		if err := a.Replace(t.Context(), slot, f.paths[slot], true); err != nil {
			t.Fatal(err)
		}
		until(t, a, "rebuilt", func(s Status) bool { return s.Disks[slot].State == DiskHealthy })
	}
	whole(t, a)
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
}

// TestCrampedDisk: a disk whose file system is full keeps nobody from writing and deleting, and is named.
func TestCrampedDisk(t *testing.T) {
	for _, n := range []int{6, 7} { // as wide as a stripe, and wider
		t.Run(fmt.Sprint(n), func(t *testing.T) { testCramped(t, n) })
	}
}

func testCramped(t *testing.T, n int) {
	s := newSimArray(t, n, 4, 2, 40)
	s.opt.HealthEvery = 10 * time.Millisecond
	a := s.open()
	defer a.Close()
	w := newWritten()
	w.fill(t, a, 1)
	s.disks[3].Fill()
	tries := a.bandSeq
	for range 2 {
		if _, err := a.openBand(t.Context(), kindBulk, false); err != nil {
			t.Fatal(err)
		}
	}
	if tries = a.bandSeq - tries; tries > 3 { // the others prepare their part for each
		t.Errorf("%d tries for two bands", tries)
	}
	full := uint64(0)
	for id := uint64(1000); full == 0; id++ {
		switch err := w.put(a, id, 150<<10); {
		case errors.Is(err, ErrFull):
			full = id
		case err != nil:
			t.Fatal(err)
		}
	}
	if st := a.Status(); full < 1140 || st.State != "degraded" || !strings.Contains(st.Disks[3].Reason, "file system is full") {
		t.Errorf("full after %d records; %s (%s), disk 3: %s", full-1000, st.State, st.Reason, st.Disks[3].Reason)
	}
	for id := uint64(1 << 30); id < 1<<30+20; id++ { // as deletions are
		if _, err := a.Append(t.Context(), Record{Body: fmt.Appendf(nil, "rec %d", id), Data: payload(id, 40), Essential: true}); err != nil {
			t.Fatal(err)
		}
		w.records[id] = 40
	}
	if faults := a.Accounts(); len(faults) > 0 {
		t.Error(faults)
	}
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
	s.disks[3].Unfill()
	a.mu.Lock()
	a.slots()[3].since = time.Time{}
	a.mu.Unlock()
	until(t, a, "room again", func(s Status) bool { return s.Disks[3].Reason == "" })
	if faults := a.Accounts(); len(faults) > 0 {
		t.Error(faults)
	}
}

// reserveHook is a disk that is asked before it reserves.
type reserveHook struct {
	blockdev.Device
	ask func() error
}

func (d reserveHook) Reserve(off, n int64) error {
	return errors.Join(d.ask(), d.Device.Reserve(off, n))
}

// TestCrampedWhileReplaced: a disk has no room for an extent, and has lost its place when it says so.
func TestCrampedWhileReplaced(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 24)
	a := s.open()
	defer a.Close()
	var err error
	a.slots()[3].dev = reserveHook{a.slots()[3].dev, sync.OnceValue(func() error {
		err = a.replace(context.Background(), 3, blockdev.NewSimDisk(s.world, superArea+24<<20, blockdev.SimOptions{Name: "new"}))
		return unix.ENOSPC
	})}
	if _, e := a.openBand(t.Context(), kindBulk, false); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if faults := a.Accounts(); len(faults) > 0 {
		t.Error(faults)
	}
}

// TestCrampedTogether: where the file system of all disks is full, what deletions and compaction need was reserved before.
func TestCrampedTogether(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 40)
	s.opt.HealthEvery = 10 * time.Millisecond
	a := s.open()
	defer a.Close()
	put := func(size int, essential bool) error {
		_, err := a.Append(t.Context(), Record{Body: []byte("rec"), Data: payload(1, size), Essential: essential})
		return err
	}
	if err := put(150<<10, false); err != nil {
		t.Fatal(err)
	}
	for _, d := range s.disks {
		d.Fill()
	}
	n := 0
	for ; put(150<<10, false) == nil; n++ {
	}
	if n > 100 {
		t.Errorf("%d records after the file system was full", n)
	}
	for range 200 {
		if err := put(4000, true); err != nil {
			t.Fatal(err)
		}
	}
	a.mu.Lock()
	for i, d := range s.disks {
		d.Unfill()
		a.slots()[i].since = time.Time{}
	}
	a.mu.Unlock()
	until(t, a, "room again", func(s Status) bool { return s.State == "healthy" })
	if err := errors.Join(a.Admit(t.Context()), put(150<<10, false)); err != nil {
		t.Error(err)
	}
}

// TestOldDiskIsFree: once a disk is rebuilt the one before it is nobody's, and may be used for something else at once.
func TestOldDiskIsFree(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, replaceSize)
	w := newWritten()
	a := f.open()
	defer a.Close()
	w.fill(t, a, 1)
	old := f.newDiskFile("spare", replaceSize)
	for range 6 {
		if err := a.Replace(t.Context(), 2, old, true); err != nil {
			t.Fatal(err)
		}
		old, f.paths[2] = f.paths[2], old
		for a.Status().state(2) != DiskHealthy {
			time.Sleep(100 * time.Microsecond)
		}
	}
}
