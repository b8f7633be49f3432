package object

import (
	"maps"
	"slices"
	"testing"
)

// TestMissingBands: what a start finds gone though entries refer to it is reported, and nothing else is.
func TestMissingBands(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.put("small", pattern(100, 1), PutOptions{})
	f.put("large", pattern(1<<20, 2), PutOptions{})
	f.put("gone", pattern(100, 3), PutOptions{})
	if err := f.Delete(t.Context(), "b", "gone", Conditions{}); err != nil {
		t.Fatal(err)
	}
	f.reopen(false)
	all := slices.Sorted(maps.Keys(f.log.bands))
	for _, band := range all {
		bulk := f.log.bands[band].Bulk
		kept := f.log.bands
		f.log.bands = maps.Clone(kept)
		delete(f.log.bands, band)
		f.log.missing, f.log.damaged = nil, true
		f.reopen(false)
		if !slices.Equal(f.log.missing, []uint64{band}) {
			t.Errorf("band %x (bulk %t) was taken away; reported: %x", band, bulk, f.log.missing)
		}
		f.log.bands = kept
	}
	f.log.missing = nil
	f.reopen(false)
	if len(f.log.missing) > 0 {
		t.Errorf("reported: %x", f.log.missing)
	}
}

// TestMissingBandOfShadows: a band that held nothing but records whose effect is over is no loss when it is gone: a crash may come between
// its end and that of its shadows in the index.
func TestMissingBandOfShadows(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.log.bandSize = 1
	before := slices.Collect(maps.Keys(f.log.bands))
	f.put("passing", pattern(100, 1), PutOptions{})
	if err := f.Delete(t.Context(), "b", "passing", Conditions{}); err != nil {
		t.Fatal(err)
	}
	f.put("stays", pattern(100, 2), PutOptions{})
	gone := 0
	for band := range f.log.bands {
		if slices.Contains(before, band) || f.idx.LiveOf(band) == 0 {
			continue
		}
		if f.idx.LiveOf(band) == f.idx.LiveOf(shadowBand) {
			delete(f.log.bands, band)
			gone++
		}
	}
	if gone != 1 {
		t.Fatalf("%d bands hold a shadow alone", gone)
	}
	f.reopen(false)
	if len(f.log.missing) > 0 {
		t.Errorf("reported: %x", f.log.missing)
	}
}
