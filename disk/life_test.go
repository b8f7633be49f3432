package disk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
)

// until waits for a condition on the status.
func until(t *testing.T, a *Array, what string, ok func(Status) bool) {
	t.Helper()
	for range 6000 {
		if ok(a.Status()) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: does not come about: %+v", what, a.Status())
}

// has reports whether a slot is among the disks of a status.
func (s Status) has(slot int) bool {
	return slices.ContainsFunc(s.Disks, func(d DiskStatus) bool { return d.Slot == slot })
}

// state is the state of a slot's disk, retired for none.
func (s Status) state(slot int) DiskState {
	for _, d := range s.Disks {
		if d.Slot == slot {
			return d.State
		}
	}
	return DiskRetired
}

// TestAddAndRemove grows an array, drains a disk while others write, interrupted by a restart, and loses any two disks afterwards.
func TestAddAndRemove(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	for i := range uint64(8) { // several stripes to a band
		if err := w.putBulk(a, 1<<30+i<<12, a.MaxStripeSegments()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.PlanRemoval(0); !errors.Is(err, ErrRemove) || !strings.Contains(err.Error(), "need 6 disks") {
		t.Errorf("removal of one of as many disks as stripes are wide: %v", err)
	}
	fresh := f.newDiskFile("fresh", replaceSize)
	slot, err := a.Add(t.Context(), fresh, AddOptions{})
	if err != nil || slot != 6 {
		t.Fatalf("add: slot %d, %v", slot, err)
	}
	f.paths = append(f.paths, fresh)
	before := a.Status()
	w.fill(t, a, 1000)
	if s := a.Status(); s.State != "healthy" || s.Disks[6].Free == s.Disks[6].Extents {
		t.Errorf("the new disk is not used: %s %+v", s.State, s.Disks[6])
	}
	a.SetRebuildRate(1) // it does not come far
	if err := a.Remove(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if s := a.Status(); s.State != "healthy" || s.state(2) != DiskDraining || s.Disks[2].Drain == nil || s.Capacity >= before.Capacity {
		t.Errorf("while it is drained: %s, capacity %d of %d, %+v", s.State, s.Capacity, before.Capacity, s.Disks[2])
	}
	if err := a.Remove(t.Context(), 3); !errors.Is(err, ErrRemove) {
		t.Errorf("two at once: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.state = &testState{}
	a = f.open()
	w.fill(t, a, 2000)
	until(t, a, "drained", func(s Status) bool { return !s.has(2) })
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
	w.fill(t, a, 3000)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if s := Look(f.paths, ""); s.Disks[2].State != SurveyRetired {
		t.Errorf("what the disk says: %+v", s.Disks[2])
	}
	// With the retired disk in its place or not, any two others may go.
	f.survives(w, 0, 1)
	f.survives(w, 2, 5, 6)
	f.survives(w, 3, 6)
}

// TestRemoveFailed: a disk that is not there is drained from parity, and its old self is not believed when it is back.
func TestRemoveFailed(t *testing.T) {
	f := newFileArray(t, 7, 4, 2, replaceSize)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	gone := f.paths[1]
	f.paths = slices.Delete(f.paths, 1, 2)
	f.state = &testState{}
	a = f.open()
	if err := a.Remove(t.Context(), 0); !errors.Is(err, ErrRemove) || !strings.Contains(err.Error(), "slot 1 is missing") {
		t.Errorf("removal of another: %v", err)
	}
	if _, err := a.Add(t.Context(), f.newDiskFile("more", replaceSize), AddOptions{}); !errors.Is(err, ErrAdd) {
		t.Errorf("add while a disk is missing: %v", err)
	}
	w.fill(t, a, 1000)
	if err := a.Remove(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	until(t, a, "drained", func(s Status) bool { return !s.has(1) && s.State == "healthy" })
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths = append(f.paths, gone)
	f.survives(w, 0, 1)
	f.survives(w, 2, 3)
}

// TestKeep: a drain is ended half-way, and the disk is used again.
func TestKeep(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, replaceSize)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	a.SetRebuildRate(1)
	if err := a.Remove(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := a.Keep(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := a.Keep(t.Context(), 3); !errors.Is(err, ErrRemove) {
		t.Errorf("kept twice: %v", err)
	}
	w.fill(t, a, 1000)
	if s := a.Status(); s.State != "healthy" || s.state(3) != DiskHealthy {
		t.Errorf("%+v", s)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.survives(w, 3)
	f.survives(w, 0)
}

// TestRemoveFull: a disk whose data finds no room elsewhere stays.
func TestRemoveFull(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, superArea+20<<20)
	w := newWritten()
	a := f.open()
	defer a.Close()
	for i := uint64(0); ; i++ {
		if err := w.putBulk(a, i<<12, a.MaxStripeSegments()); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Remove(t.Context(), 0); !errors.Is(err, ErrRemove) || !strings.Contains(err.Error(), "add a disk first") {
		t.Errorf("removal from a full array: %v", err)
	}
	if s := a.Status(); s.state(0) != DiskHealthy {
		t.Errorf("after the refusal: %+v", s.Disks[0])
	}
}

// TestSpare: a spare holds nothing, takes the place of a disk that is gone, and can be taken away.
func TestSpare(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, replaceSize)
	f.opt.SpareGrace = 300 * time.Millisecond
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	large, spare := f.newDiskFile("large", replaceSize+20<<20), f.newDiskFile("spare", replaceSize) // the smaller one is used
	for _, p := range []string{large, spare} {
		if _, err := a.Add(t.Context(), p, AddOptions{Spare: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.fill(t, a, 1000)
	if s := a.Status(); s.State != "healthy" || s.state(7) != DiskSpare || s.Disks[7].Free != 0 {
		t.Errorf("%s %+v", s.State, s.Disks[7])
	}
	if err := a.Replace(t.Context(), 7, f.newDiskFile("other", replaceSize), false); !errors.Is(err, ErrReplace) {
		t.Errorf("a spare was replaced: %v", err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	old := f.paths[3]
	f.paths = append(slices.Delete(f.paths, 3, 4), large, spare)
	f.state = &testState{}
	a = f.open()
	until(t, a, "spare used", func(s Status) bool { return s.State == "healthy" && !s.has(7) })
	s := a.Status()
	if i := slices.IndexFunc(s.Disks, func(d DiskStatus) bool { return d.Slot == 3 }); s.Disks[i].Path != spare {
		t.Errorf("slot 3: %+v", s.Disks[i])
	}
	if err := w.verify(a, f.state); err != nil {
		t.Error(err)
	}
	if err := a.Remove(t.Context(), 6); err != nil || a.Status().has(6) {
		t.Errorf("spare not removed: %v", err)
	}
	w.fill(t, a, 2000)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths = append(f.paths, old)
	f.survives(w, 0, 1)
	f.survives(w, 2, 4)
}

// TestSpareOfLeaving: a disk that fails while it is being drained is made whole on a spare, which then leaves in its stead.
func TestSpareOfLeaving(t *testing.T) {
	s := newSimArray(t, 7, 4, 2, 30)
	s.opt.retry, s.opt.RebuildRate = 20*time.Millisecond, 1
	w := newWritten()
	a := s.open()
	w.fill(t, a, 1)
	a.Close()
	s.state = &testState{}
	a = s.open()
	defer a.Close()
	fresh := blockdev.NewSimDisk(s.world, superArea+30<<20, blockdev.SimOptions{Name: "spare"})
	if _, err := a.add(t.Context(), fresh, true); err != nil {
		t.Fatal(err)
	}
	const slot = 3
	if err := a.Remove(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	d := a.slots()[slot]
	if err := errors.Join(a.log.fail([]*disk{d}), a.promote(d)); err != nil {
		t.Fatal(err)
	}
	if st := a.Status().Disks[slot]; st.Path != "spare" || st.Drain == nil {
		t.Errorf("slot %d: %+v", slot, st)
	}
	a.SetRebuildRate(0)
	until(t, a, "drained", func(s Status) bool { return !s.has(slot) && s.State == "healthy" })
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
}

// TestSpareOfFenced: a disk that refuses writes is replaced without a restart, though it is still there.
func TestSpareOfFenced(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, replaceSize)
	f.opt.SpareGrace = time.Second
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	spare := f.newDiskFile("spare", replaceSize)
	if _, err := a.Add(t.Context(), spare, AddOptions{Spare: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.log.fail(a.slots()[1:2]); err != nil {
		t.Fatal(err)
	}
	if s := a.Status(); s.State != "degraded" || s.state(1) != DiskFenced || s.state(4) != DiskSpare {
		t.Errorf("within the grace: %s %+v", s.State, s.Disks)
	}
	w.fill(t, a, 1000)
	until(t, a, "spare used", func(s Status) bool { return s.State == "healthy" && s.Disks[1].Path == spare })
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f.paths = append(f.paths, spare) // the old one is there, too
	f.survives(w, 0)
	f.survives(w, 2)
}

// TestAddRefused: what must not become a member does not.
func TestAddRefused(t *testing.T) {
	f := newFileArray(t, 3, 2, 1, replaceSize)
	other := newFileArray(t, 3, 2, 1, replaceSize)
	a := f.open()
	defer a.Close()
	for _, c := range []struct {
		what, path, text string
		want             error
	}{
		{"of another array", other.paths[0], "member of array", ErrInUse},
		{"of the array itself", f.paths[1], "in use", blockdev.ErrInUse},
		{"too small", f.newDiskFile("small", superArea+2<<20), "extents", ErrAdd},
		{"not there", filepath.Join(t.TempDir(), "none"), "no such file", os.ErrNotExist},
	} {
		for _, spare := range []bool{false, true} {
			_, err := a.Add(t.Context(), c.path, AddOptions{Spare: spare})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s, as spare %t: %v", c.what, spare, err)
			}
		}
	}
	if s := a.Status(); s.State != "healthy" || len(s.Disks) != 3 {
		t.Errorf("after refusals: %+v", s)
	}
}

// newKeys are keys whose area has changed.
type newKeys struct{ testKeys }

func (newKeys) Area() []byte { return []byte("a later key epoch") }

// TestRetiredDiskKeepsOldKeys: a disk that was removed and is still listed does not say what the keys are: they may have changed since.
func TestRetiredDiskKeepsOldKeys(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, replaceSize)
	a := f.open()
	if err := a.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	until(t, a, "drained", func(s Status) bool { return !s.has(0) })
	a.opt.Keys = newKeys{}
	if err := errors.Join(a.WriteKeyArea(), a.Close()); err != nil {
		t.Fatal(err)
	}
	set, err := Discover(f.paths, true)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	if got := string(set.KeyArea()); got != "a later key epoch" {
		t.Errorf("key area %q", got)
	}
}

// keyAreaOf is what a start finds on the disks, in that order.
func keyAreaOf(t *testing.T, disks ...*flaky) string {
	t.Helper()
	var devs []blockdev.Device
	for _, d := range disks {
		devs = append(devs, d)
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(set.KeyArea())
}

// TestSpareKeepsOldKeys: a spare that did not take the new key area does not say what the keys are, though it is listed first.
func TestSpareKeepsOldKeys(t *testing.T) {
	f := newFlakyArray(t, 4, 2, 1, 40)
	a := f.open(Options{})
	spare := newFlakyDisk(t, 40)
	slot, err := a.add(t.Context(), spare, true)
	if err != nil {
		t.Fatal(err)
	}
	spare.failWrites(unix.EIO)
	a.opt.Keys = newKeys{}
	if err := a.WriteKeyArea(); err != nil {
		t.Fatal(err)
	}
	if got := a.Status().state(slot); got != DiskFenced {
		t.Errorf("the spare is %s", got)
	}
	spare.writeErr.Store(nil)
	if got := keyAreaOf(t, append([]*flaky{spare}, f.disks...)...); got != "a later key epoch" {
		t.Errorf("key area %q", got)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got := keyAreaOf(t, append([]*flaky{spare}, f.disks...)...); got != "a later key epoch" {
		t.Errorf("once closed: key area %q", got)
	}
}

// TestStrayKeepsOldKeys: a disk that alone knows that it was added does not say what the keys are, though its epoch has the number of the
// array's and it is listed first.
func TestStrayKeepsOldKeys(t *testing.T) {
	for _, spare := range []bool{false, true} {
		f := newFlakyArray(t, 4, 2, 1, 40)
		a := f.open(Options{})
		for _, d := range f.disks {
			d.failWrites(unix.EIO)
		}
		stray := newFlakyDisk(t, 40)
		if _, err := a.add(t.Context(), stray, spare); !errors.Is(err, ErrReadOnly) {
			t.Fatal(err)
		}
		a.Close() // its log has stopped
		for _, d := range f.disks {
			d.writeErr.Store(nil)
		}
		a = f.open(Options{Keys: newKeys{}})
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if got := keyAreaOf(t, append([]*flaky{stray}, f.disks...)...); got != "a later key epoch" {
			t.Errorf("spare %t: key area %q", spare, got)
		}
	}
}

// TestSmallSpare: a spare that could take no disk's place is refused, and one that could not take some says so.
func TestSmallSpare(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, replaceSize)
	a := f.open()
	defer a.Close()
	tiny := f.newDiskFile("tiny", replaceSize-4<<20)
	if err := a.CanAdd(replaceSize-4<<20, true); !errors.Is(err, ErrAdd) || !strings.Contains(err.Error(), "smaller than every disk") {
		t.Errorf("plan: %v", err)
	}
	if _, err := a.Add(t.Context(), tiny, AddOptions{Spare: true}); !errors.Is(err, ErrAdd) {
		t.Errorf("a spare smaller than every disk: %v", err)
	}
	if _, err := a.Add(t.Context(), f.newDiskFile("large", replaceSize+8<<20), AddOptions{}); err != nil {
		t.Fatal(err)
	}
	slot, err := a.Add(t.Context(), f.newDiskFile("small", replaceSize), AddOptions{Spare: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := a.Status().Disks[slot]; d.State != DiskSpare || !strings.Contains(d.Reason, "place of 1 of") {
		t.Errorf("spare is %s: %q", d.State, d.Reason)
	}
	if err := a.promote(a.slots()[4]); !errors.Is(err, errSmallSpare) {
		t.Errorf("promote: %v", err)
	}
}

// TestFreeAfterRemoval: what was moved from a disk that was removed can be freed while another disk is missing, before and after a restart; and
// does not come back with that.
func TestFreeAfterRemoval(t *testing.T) {
	for _, restart := range []bool{false, true} {
		f := newFileArray(t, 4, 2, 1, replaceSize)
		a := f.open()
		var bands []uint64
		for i := uint64(1); i < 40; i++ {
			s, err := writeStripe(a, i<<20, a.MaxStripeSegments())
			if err != nil {
				t.Fatal(err)
			}
			a.Unpin(s.Band)
			if !slices.Contains(bands, s.Band) {
				bands = append(bands, s.Band)
			}
		}
		if err := a.Remove(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		until(t, a, "drained", func(s Status) bool { return !s.has(0) })
		all := f.paths
		if restart {
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			f.paths = slices.Delete(slices.Clone(all), 1, 2)
			a = f.open()
		} else if err := a.log.fail(a.slots()[1:2]); err != nil {
			t.Fatal(err)
		}
		freed := 0
		for _, b := range bands {
			if a.CanFree(b) {
				if err := a.Free(t.Context(), b); err != nil {
					t.Error(err)
				}
				freed++
			}
		}
		if freed < len(bands)-1 { // the last one is not closed
			t.Errorf("restart %t: %d of %d bands freed", restart, freed, len(bands))
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		f.paths = all
		a = f.open()
		if n := len(a.Bands()); n > len(bands)-freed+1 {
			t.Errorf("restart %t: %d bands are there again", restart, n)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}
