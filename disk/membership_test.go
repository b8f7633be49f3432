package disk

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// otherKeys are the secrets of another array.
type otherKeys struct{ testKeys }

func (otherKeys) SuperblockKey() []byte { return bytes.Repeat([]byte{0x77}, 32) }
func (otherKeys) CellKey() []byte       { return bytes.Repeat([]byte{0x78}, 32) }

// filled is an array of six disks, 4+2, with contents, closed.
func filled(t *testing.T) (*simArray, *written) {
	t.Helper()
	s := newSimArray(t, 6, 4, 2, 16)
	w := newWritten()
	a := s.open()
	w.fill(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	s.state = &testState{}
	return s, w
}

// states opens the array with the given disks, verifies its contents, and returns the state of each slot.
func (s *simArray) states(w *written, disks ...*blockdev.SimDisk) (st []DiskState) {
	s.t.Helper()
	a := s.open(disks...)
	defer func() {
		if err := a.Close(); err != nil {
			s.t.Error(err)
		}
	}()
	for _, d := range a.Status().Disks {
		st = append(st, d.State)
	}
	if err := w.verify(a, s.state); err != nil {
		s.t.Error(err)
	}
	return st
}

// refused opens the array and wants an error that wraps target and says all of words.
func (s *simArray) refused(disks []*blockdev.SimDisk, target error, words ...string) {
	s.t.Helper()
	a, err := s.tryOpen(disks...)
	if err == nil {
		a.Close()
		s.t.Fatal("opened")
	}
	if !errors.Is(err, target) {
		s.t.Errorf("%v, want %v", err, target)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			s.t.Errorf("%q does not say %q", err, word)
		}
	}
}

func count(states []DiskState, want DiskState) (n int) {
	for _, s := range states {
		if s == want {
			n++
		}
	}
	return n
}

func TestAnyOrder(t *testing.T) {
	s, w := filled(t)
	disks := slices.Clone(s.disks)
	for i := range uint64(5) {
		rand.New(rand.NewPCG(i, 0)).Shuffle(len(disks), func(i, j int) { disks[i], disks[j] = disks[j], disks[i] })
		if st := s.states(w, disks...); count(st, DiskHealthy) != 6 {
			t.Errorf("%v", st)
		}
	}
}

func TestMissingDisks(t *testing.T) {
	s, w := filled(t)
	if st := s.states(w, s.disks[:4]...); count(st, DiskMissing) != 2 {
		t.Errorf("%v", st)
	}
	s.refused(s.disks[:3], ErrMembership, "3 of 6", "need 4")
	s.state = &testState{}
	if st := s.states(w); count(st, DiskHealthy) != 6 { // the two were stale and are made whole
		t.Errorf("%v", st)
	}
	s.state = &testState{}
	if st := s.states(w, s.disks[2:]...); count(st, DiskMissing) != 2 { // others take their turn
		t.Errorf("%v", st)
	}
}

func TestForeignDisk(t *testing.T) {
	s, _ := filled(t)
	for _, keys := range []Keys{testKeys{}, otherKeys{}} {
		other := newSimArray(t, 3, 2, 1, 12)
		other.world.Restart()
		other.create(CreateOptions{ArrayID: [16]byte{0xab, 0xcd}, Geometry: Geometry{Data: 2, Parity: 1, ExtentSize: 1 << 20}, Keys: keys})
		alien := blockdev.NewSimDisk(s.world, superArea+12<<20, blockdev.SimOptions{Name: "alien"})
		alien.Restore(other.disks[0].Snapshot())
		s.refused(append(slices.Clone(s.disks), alien), ErrMembership, "alien", "belongs to array abcd")
		s.refused(append(slices.Clone(s.disks[:5]), alien), ErrMembership, "alien", "belongs to array abcd")
	}
}

func TestCopiedDisk(t *testing.T) {
	s, _ := filled(t)
	twin := blockdev.NewSimDisk(s.world, superArea+16<<20, blockdev.SimOptions{Name: "twin"})
	twin.Restore(s.disks[2].Snapshot())
	s.refused(append(slices.Clone(s.disks), twin), ErrMembership, "twin", "sim2", "copy")
}

func TestWrongKeys(t *testing.T) {
	s, _ := filled(t)
	s.opt.Keys = otherKeys{}
	s.refused(nil, ErrKeys)
}

func TestNoSuperblocks(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 12)
	for _, d := range s.disks {
		d.Overwrite(0, make([]byte, superArea))
	}
	s.refused(nil, ErrMembership, "none of 3 devices")
}

// TestNeedsDegraded: as many disks as parity alone could be the half that was left behind.
func TestNeedsDegraded(t *testing.T) {
	s := newSimArray(t, 4, 2, 2, 12)
	w := newWritten()
	a := s.open()
	w.fill(t, a, 1)
	a.Close()
	s.state = &testState{}
	s.refused(s.disks[:2], ErrMembership, "--degraded")
	s.state = &testState{}
	if st := s.states(w, s.disks[:3]...); count(st, DiskHealthy) != 3 {
		t.Errorf("%v", st)
	}
	// Disk 3 alone is stale now; with disk 2 beside it, which is not, nothing is forgotten.
	s.opt.Degraded = true
	s.state = &testState{}
	if st := s.states(w, s.disks[2:]...); count(st, DiskHealthy) != 2 {
		t.Errorf("%v", st)
	}
}

func TestDivergedHalves(t *testing.T) {
	s := newSimArray(t, 4, 2, 2, 16)
	a := s.open()
	a.Close()
	s.opt.Degraded = true
	wa, wb := newWritten(), newWritten()
	start := s.state.clone()
	for half, w := range []*written{wa, wb} {
		s.state = start.clone()
		a := s.open(s.disks[2*half : 2*half+2]...)
		w.fill(t, a, uint64(half)*10000+1)
		a.Close()
	}
	s.refused(nil, ErrMembership, "diverged")
	s.state = &testState{}
	if st := s.states(wa, s.disks[:2]...); count(st, DiskHealthy) != 2 {
		t.Errorf("%v", st)
	}
	s.refused(append(slices.Clone(s.disks[:1]), s.disks[2]), ErrMembership)
}

// TestMinorityElsewhere: disks that were written as part of another history than that of the others do not count.
func TestMinorityElsewhere(t *testing.T) {
	s, w := filled(t)
	before := s.snapshot()
	a := s.open(s.disks[:4]...)
	strange := newWritten()
	strange.fill(t, a, 50000)
	a.Close()
	for i := 2; i < 6; i++ {
		s.disks[i].Restore(before[i])
	}
	s.state = &testState{}
	a = s.open(s.disks[2:]...)
	w.fill(t, a, 70000)
	a.Close()
	s.state = &testState{}
	a = s.open()
	defer a.Close()
	for i, d := range a.Status().Disks {
		if want := i < 2; want != (d.State == DiskForeign) || want != strings.Contains(d.Reason, "elsewhere") {
			t.Errorf("disk %d: %s, %s", i, d.State, d.Reason)
		}
	}
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
	if len(s.state.entries) != len(w.records) {
		t.Errorf("%d records, want %d: some of the other history?", len(s.state.entries), len(w.records))
	}
}

// TestStaleDisk: an old image of a disk is resynchronised before it counts.
func TestStaleDisk(t *testing.T) {
	s, w := filled(t)
	old := s.disks[3].Snapshot()
	for i := range uint64(3) {
		s.state = &testState{}
		a := s.open()
		w.fill(t, a, 20000+i*1000)
		a.Close()
	}
	s.disks[3].Restore(old)
	s.state = &testState{}
	if st := s.states(w); count(st, DiskHealthy) != 6 {
		t.Errorf("%v", st)
	}
	s.state = &testState{}
	a := s.open(s.disks[2:]...) // all of it must be there now
	defer a.Close()
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
	rep, err := a.Check(t.Context(), CheckOptions{})
	if err != nil || rep.Bad > 0 || rep.Lost > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestOverwrittenDisks: blank and random disks are missing ones.
func TestOverwrittenDisks(t *testing.T) {
	s, w := filled(t)
	size := int(s.disks[0].Limits().Size)
	s.disks[1].Overwrite(0, make([]byte, size))
	noise := make([]byte, size)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	s.disks[4].Overwrite(0, noise)
	st := s.states(w)
	if st[1] != DiskMissing || st[4] != DiskMissing || count(st, DiskHealthy) != 4 {
		t.Errorf("%v", st)
	}
}

// TestDamagedInMiddle: everything of two disks but their superblocks is noise: each cell tells.
func TestDamagedInMiddle(t *testing.T) {
	s, w := filled(t)
	noise := make([]byte, 16<<20)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	s.disks[1].Overwrite(superArea, noise)
	s.disks[4].Overwrite(superArea, noise)
	a := s.open()
	defer a.Close()
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{Repair: true}); err != nil || rep.Lost > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("after repair: %+v, %v", rep, err)
	}
}

// TestFilesAsDisks: what only files can suffer.
func TestFilesAsDisks(t *testing.T) {
	f := newFileArray(t, 4, 2, 2, 10<<20)
	w := newWritten()
	a := f.open()
	w.fill(t, a, 1)
	if _, err := discoverFiles(f.paths, false, 0); !errors.Is(err, blockdev.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	// A holder that lets go soon, as the kernel does with the disks of a killed process, is waited for.
	time.AfterFunc(100*time.Millisecond, func() { a.Close() })
	set, err := Discover(f.paths, true)
	if err != nil {
		t.Fatalf("opened while the disks were given back: %v", err)
	}
	set.Close()
	if what, err := Inspect(f.paths[0]); err != nil || !strings.Contains(what, "member of array 09") {
		t.Errorf("inspect: %q, %v", what, err)
	}
	err = Create(t.Context(), CreateOptions{ArrayID: [16]byte{8}, Paths: f.paths, Keys: testKeys{}})
	if !errors.Is(err, ErrInUse) {
		t.Errorf("created over an array: %v", err)
	}
	reopen := func(i int, want DiskState, reason string) {
		t.Helper()
		f.state = &testState{}
		a := f.open()
		defer a.Close()
		if d := a.Status().Disks[i]; d.State != want || !strings.Contains(d.Reason, reason) {
			t.Errorf("disk %d: %s, %s", i, d.State, d.Reason)
		}
		if err := w.verify(a, f.state); err != nil {
			t.Error(err)
		}
	}
	moved := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Rename(f.paths[2], moved); err != nil {
		t.Fatal(err)
	}
	f.paths[2] = moved
	reopen(2, DiskHealthy, "")
	if err := os.Truncate(f.paths[1], 8<<20); err != nil {
		t.Fatal(err)
	}
	reopen(1, DiskForeign, "shorter")
	if err := os.Truncate(f.paths[1], 64<<10); err != nil {
		t.Fatal(err)
	}
	reopen(1, DiskMissing, "")
	if err := os.Remove(f.paths[1]); err != nil {
		t.Fatal(err)
	}
	reopen(1, DiskMissing, "")
}

// TestLongAbsence: a disk that was away for more epochs than the history holds is still known, by the member table.
func TestLongAbsence(t *testing.T) {
	s := newSimArray(t, 4, 2, 2, 16)
	c := newWritten()
	a := s.open()
	if err := c.put(a, 1, 5000); err != nil {
		t.Fatal(err)
	}
	a.Close()
	for range maxHistory + 5 {
		a = s.open(s.disks[1:]...)
		a.Close()
	}
	a = s.open()
	defer a.Close()
	if st := a.Status(); st.State != "healthy" {
		t.Errorf("state %s (%s) after %d epochs without a disk", st.State, st.Reason, maxHistory+5)
	}
	if err := c.verify(a, s.state); err != nil {
		t.Error(err)
	}
}

// TestVoidForEver: what was never acknowledged stays void when the epoch that cut it off is older than the history, and the bands that
// used its numbers again are freed; also when there are packed bands of all epochs of the history.
func TestVoidForEver(t *testing.T) {
	for _, tt := range []struct {
		epochs int
		full   bool // each has a record
	}{{3, false}, {maxHistory + 3, false}, {maxHistory + 3, true}} {
		if tt.full && testing.Short() {
			continue
		}
		s := newSimArray(t, 6, 4, 2, 20)
		if tt.full {
			s = newSimArray(t, 6, 4, 2, maxHistory+20)
		}
		a := s.open()
		w := newWritten()
		for id := uint64(1); id <= 3; id++ {
			if err := w.put(a, id, 100); err != nil {
				t.Fatal(err)
			}
		}
		// A power cut while stripes 2 and 3 were on their way: 3 arrived, 2 did not, and neither was acknowledged.
		e2, e3 := s.state.entries[1].data, s.state.entries[2].data
		h, err := a.anyHeader(t.Context(), a.bands[e3.Band], e3.Off)
		if err != nil {
			t.Fatal(err)
		}
		cells2, cells3 := cells(a, e2.Band, e2.Off, 3), cells(a, e3.Band, e3.Off, int(h.data+h.parity))
		power := s.snapshot()
		a.Close()
		s.restore(power)
		for _, c := range cells2 {
			xor(s.disks[c.slot], c.at+20, 1)
		}
		for _, c := range cells3 {
			b := make([]byte, BlockSize)
			s.disks[c.slot].Peek(b, c.at)
			h, err := a.codec.parse(b, place{disk: a.slots()[c.slot].id, band: e3.Band, off: e3.Off})
			if err != nil {
				t.Fatal(err)
			}
			h.mark = 1
			a.codec.put(b, &h)
			s.disks[c.slot].Overwrite(c.at, b)
		}
		delete(w.records, 2)
		delete(w.records, 3)

		s.state = &testState{}
		a = s.open()
		if n := len(s.state.entries); n != 1 || len(a.Status().Losses) > 0 {
			t.Fatalf("%d entries, losses %v", n, a.Status().Losses)
		}
		for id := uint64(4); id <= 5; id++ {
			if err := w.put(a, id, 100); err != nil {
				t.Fatal(err)
			}
		}
		again := s.state.entries[1].data.Band
		if s.state.entries[1].seq>>seqBits != 2 || again == e3.Band {
			t.Fatalf("entries %+v", s.state.entries)
		}
		a.Close()
		for i := range tt.epochs {
			a = s.open()
			if tt.full {
				if err := w.put(a, uint64(100+i), 100); err != nil {
					t.Fatal(err)
				}
			}
			a.Close()
		}
		a = s.open()
		if err := w.put(a, 6, 100); err != nil {
			t.Fatal(err)
		}
		if err := a.Free(t.Context(), again); err != nil { // what was in it was deleted, or moved
			t.Fatal(err)
		}
		a.Close()
		s.state = &testState{gaps: true} // the index is lost
		a = s.open()
		for _, e := range s.state.entries {
			if e.body == "rec 2" || e.body == "rec 3" {
				t.Errorf("%+v: %s is there, which was never acknowledged", tt, e.body)
			}
		}
		a.Close()
	}
}

// TestFreedWhileAway: a disk that was away when a band was freed does not bring it back, whatever became of the marks.
func TestFreedWhileAway(t *testing.T) {
	const away = 3
	for name, lose := range map[string]func(*simArray, *Array, []bandMember){
		"kept": func(*simArray, *Array, []bandMember) {},
		"under the headers of a band that was never written": func(_ *simArray, a *Array, _ []bandMember) {
			if _, err := a.openBand(t.Context(), kindPacked, false); err != nil {
				t.Fatal(err)
			}
		},
		"gone with disks that were replaced": func(s *simArray, a *Array, members []bandMember) {
			for _, m := range members {
				if m.slot != away {
					s.disks[m.slot].Overwrite(a.geo.extentOffset(m.extent), make([]byte, BlockSize))
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSimArray(t, 6, 4, 2, 12)
			w := newWritten()
			a := s.open()
			if err := w.put(a, 1, 100); err != nil {
				t.Fatal(err)
			}
			num := s.state.entries[0].data.Band
			a.Close()
			rest := slices.Delete(slices.Clone(s.disks), away, away+1)
			a = s.open(rest...)
			members := a.bands[num].members
			if err := a.Free(t.Context(), num); err != nil {
				t.Fatal(err)
			}
			a.Close()
			a = s.open(rest...)
			lose(s, a, members)
			a.Close()
			s.state = &testState{gaps: true} // the index is lost, and knows nothing either
			a = s.open()
			defer a.Close()
			if a.bands[num] != nil || len(s.state.entries) > 0 {
				t.Errorf("band %x is back, with %d records", num, len(s.state.entries))
			}
		})
	}
}

// TestEmptyBandUnseen: power went while the headers of a band were on their way, and of its disks too few answer to tell whether something
// was written behind them. The band is taken up, and is whole.
func TestEmptyBandUnseen(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	b, err := a.openBand(t.Context(), kindPacked, false)
	if err != nil {
		t.Fatal(err)
	}
	at := func(slot int) int64 {
		i := slices.IndexFunc(b.members, func(m bandMember) bool { return m.slot == slot })
		return a.geo.extentOffset(b.members[i].extent)
	}
	power := s.snapshot()
	a.Close()
	s.restore(power)
	s.disks[3].Overwrite(at(3), make([]byte, BlockSize)) // had not arrived
	s.disks[2].BadRange(at(2)+BlockSize, BlockSize)

	a = s.open(s.disks[:4]...)
	defer a.Close()
	if a.bands[b.num] == nil {
		t.Fatal("the band was not taken up")
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || rep.Bad > 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

// TestInspectFindsOthers: what others have written to a disk is known by its first and its last blocks.
func TestInspectFindsOthers(t *testing.T) {
	const size = 8<<20 + 24<<10 // no whole number of 64 KiB
	for _, tt := range []struct {
		off         int64
		magic, want string
	}{
		{0x438, "\x53\xef", "an ext2/3/4 filesystem"},
		{4096, mdMagic, "a RAID member (md)"},
		{0, mdMagic, "a RAID member (md)"},
		{size&^(64<<10-1) - 64<<10, mdMagic, "a RAID member (md)"},
		{size - 8<<10, mdMagic, "a RAID member (md)"},
		{512, "EFI PART", "a partition table (GPT)"},
		{size - 512, "EFI PART", "a partition table (GPT)"},
		{0, "bluestore block device", "a Ceph OSD"},
		{1 << 20, mdMagic, ""},
		{0, "nothing that is known", ""},
	} {
		p := filepath.Join(t.TempDir(), "disk")
		if err := CreateFile(p, size); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte(tt.magic), tt.off)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if got, err := Inspect(p); err != nil || got != tt.want {
			t.Errorf("%q at %d: %q, %v, want %q", tt.magic, tt.off, got, err, tt.want)
		}
	}
}

// TestEmptyBandHasNoStripes: a band in which nothing was written is not said to hold what lies in the band before.
func TestEmptyBandHasNoStripes(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 24)
	a := s.open()
	defer a.Close()
	w := newWritten()
	if err := w.put(a, 1, 4096); err != nil {
		t.Fatal(err)
	}
	b, err := a.openBand(t.Context(), kindPacked, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.log.fail(a.slots()[5:6]), w.put(a, 2, 4096)); err != nil { // another epoch, and another band
		t.Fatal(err)
	}
	for _, fresh := range []bool{true, false} { // as opened, and as found when the array is opened
		b.fresh = fresh
		if r, err := a.EachRecord(t.Context(), b.num, nil); err != nil || r != (StripeRange{}) {
			t.Errorf("stripes %+v, %v", r, err)
		}
	}
}

// TestMarksThatCanBeLost: a band is not freed while so few of its disks take the mark that these can be lost together, and others come back. The
// control frees it all the same.
func TestMarksThatCanBeLost(t *testing.T) {
	for _, few := range []bool{false, true} {
		s := newSimArray(t, 5, 2, 2, 12)
		s.opt.faults.fewMarks = few
		w := newWritten()
		a := s.open()
		if err := w.put(a, 1, 100); err != nil {
			t.Fatal(err)
		}
		band := a.bands[s.state.entries[0].data.Band]
		a.Close()
		away := []int{band.members[0].slot, band.members[1].slot}
		without := func(slots ...int) (disks []*blockdev.SimDisk) {
			for i, d := range s.disks {
				if !slices.Contains(slots, i) {
					disks = append(disks, d)
				}
			}
			return disks
		}
		a = s.open(without(away...)...)
		err := a.Free(t.Context(), band.num)
		a.Close()
		if !few {
			if !errors.Is(err, ErrBusy) {
				t.Errorf("freed with two of four disks: %v", err)
			}
			a = s.open()
			if err := a.Free(t.Context(), band.num); err != nil {
				t.Errorf("with all: %v", err)
			}
			a.Close()
			continue
		}
		s.state = &testState{gaps: true}
		a = s.open(without(band.members[2].slot, band.members[3].slot)...)
		if err != nil || a.bands[band.num] == nil {
			t.Errorf("control: %v, and it is not back", err)
		}
		a.Close()
	}
}

// TestAheadBandFreed: a band that was opened ahead, and freed when an epoch had begun without its use, is nobody's any more: not even of the
// stream that it was opened for.
func TestAheadBandFreed(t *testing.T) {
	f := newFlakyArray(t, 3, 2, 1, 24)
	a := f.open(Options{PreferPool: true})
	defer a.Close()
	w := newWritten()
	var ahead *aheadBand
	for id := uint64(1); ahead == nil; id++ {
		if err := w.putBulk(a, id<<20, 4); err != nil {
			t.Fatal(err)
		}
		a.mu.RLock()
		ahead = a.ahead[kindBulk]
		a.mu.RUnlock()
	}
	<-ahead.done
	if err := a.log.change(func() error { return a.beginEpoch(a.log.acked.Load()) }); err != nil {
		t.Fatal(err)
	}
	if err := a.Free(t.Context(), ahead.band.num); err != nil {
		t.Fatal(err)
	}
	taken := func() bool {
		a.mu.RLock()
		defer a.mu.RUnlock()
		d := a.slots()[ahead.band.members[0].slot]
		return d.used[ahead.band.members[0].extent]
	}
	for !taken() { // by what stays
		b, err := a.openBand(t.Context(), kindPacked, false)
		if err != nil {
			t.Fatal(err)
		}
		b.open.Store(false)
		if !taken() {
			if err := a.Free(t.Context(), b.num); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.putBulk(a, 1<<40, 4); err != nil {
		t.Fatal(err)
	}
	if faults := a.Accounts(); len(faults) > 0 || !taken() {
		t.Errorf("after a large object: %v", faults)
	}
}

// TestUnusedDiskIsNamed: of a disk that is there and cannot be used it is said why, whether the array opens or not.
func TestUnusedDiskIsNamed(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, superArea+24<<20)
	a := f.open()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	spoil := func(i int) {
		t.Helper()
		w, err := os.OpenFile(f.paths[i], os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.WriteAt(bytes.Repeat([]byte("nonsense"), superArea/8), 0)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	spoil(2)
	var log bytes.Buffer
	f.opt.Logger = slog.New(slog.NewTextHandler(&log, nil))
	a = f.open()
	st := a.Status()
	if d := st.Disks[2]; d.State != DiskMissing || !strings.Contains(d.Reason, f.paths[2]) || !strings.Contains(d.Reason, "superblock") {
		t.Errorf("slot 2 is %s: %s", d.State, d.Reason)
	}
	if !strings.Contains(log.String(), f.paths[2]) {
		t.Errorf("the log does not name it: %s", log.String())
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	spoil(3)
	spoil(4)
	if _, err := f.tryOpen(); !errors.Is(err, ErrMembership) || !strings.Contains(err.Error(), f.paths[2]) || !strings.Contains(err.Error(), f.paths[4]) {
		t.Errorf("three of six spoilt: %v", err)
	}
}

// TestFreeWhenDegraded: what is said to be free is what can be written, with disks missing too.
func TestFreeWhenDegraded(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, superArea+64<<20)
	for range 2 {
		a := f.open()
		free, wrote := a.Status().Free, int64(0)
		for {
			s, err := writeStripe(a, 1, a.MaxStripeSegments()/2)
			if errors.Is(err, ErrFull) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			wrote += int64(s.Segments) * SegmentSize
		}
		if float64(wrote) < 0.7*float64(free) || float64(wrote) > 1.5*float64(free)+float64(a.geo.ExtentSize*4) {
			t.Errorf("%d disks: %d bytes were free and %d could be written", len(a.Status().Disks), free, wrote)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		f = newFileArray(t, 6, 4, 2, superArea+64<<20)
		for _, p := range f.paths[:2] {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
	}
}
