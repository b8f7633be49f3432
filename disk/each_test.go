package disk

import (
	"errors"
	"slices"
	"testing"

	"coffer/disk/internal/blockdev"
)

// TestEachRecordTail: a band whose last stripe cannot be read still says which stripes it had, or they would be taken for lost once it is
// freed; and the error says that some are missing.
func TestEachRecordTail(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 30)
	a := s.open()
	defer a.Close()
	w := newWritten()
	packed := func() (list []Band) {
		for _, b := range a.Bands() {
			if !b.Bulk {
				list = append(list, b)
			}
		}
		return list
	}
	for id := uint64(1); len(packed()) < 2 || a.bands[packed()[1].Num].first.Load() == 0; id++ { // the second has begun
		if err := w.put(a, id, 100_000); err != nil {
			t.Fatal(err)
		}
	}
	num := packed()[0].Num
	walk := func() (StripeRange, int, error) {
		n := 0
		r, err := a.EachRecord(t.Context(), num, func(Entry, []byte) error { n++; return nil })
		return r, n, err
	}
	whole, records, err := walk()
	if err != nil || whole.From != 1 || whole.To != a.bands[packed()[1].Num].first.Load()-1 {
		t.Fatalf("whole: %+v, %v", whole, err)
	}
	last := uint32(0)
	err = a.eachStripe(t.Context(), a.bands[num], func(w *wholeStripe) error { last = w.head.off; return nil })
	if err != nil {
		t.Fatal(err)
	}
	for role := range 6 {
		c := cell(a, num, last, role)
		xor(s.disks[c.slot], c.at, 1)
	}
	got, left, err := walk()
	if got != whole || left >= records || !errors.Is(err, ErrCorrupt) {
		t.Errorf("with the last stripe unreadable: %+v, %d of %d records, %v; want %+v", got, left, records, err, whole)
	}
}

// TestReplayTells: who opens an array whose state is behind hears how far the replay is.
func TestReplayTells(t *testing.T) {
	f := newMemArray(t, 3, 2, 1, func(_ int, d blockdev.Device) blockdev.Device { return d })
	var told []int
	f.opt.Replaying = func(done, total int) {
		if done < 0 || done >= total {
			t.Errorf("%d of %d bands", done, total)
		}
		told = append(told, done)
	}
	a := f.open(0, 1, 2)
	for i := range uint64(400) {
		if err := f.w.put(a, i+1, 4096); err != nil {
			t.Fatal(err)
		}
	}
	bands := 0
	for _, b := range a.sortedBands() {
		if b.kind == kindPacked {
			bands++
		}
	}
	told = nil
	f.reopen(a, 0, 1, 2)
	if bands < 3 || len(told) != bands || !slices.IsSorted(told) {
		t.Errorf("%d bands, told %v", bands, told)
	}
}
