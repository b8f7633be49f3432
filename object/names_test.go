package object

import (
	"testing"

	"coffer/disk"
	"coffer/object/internal/index"
)

// TestNames: of each bulk stripe it is known whether a record names it, also where only an object's list of parts does.
func TestNames(t *testing.T) {
	opt := testOptions(t)
	opt.inlineBody = 600
	f := newFixture(t, opt)
	f.put("one", pattern(3<<20, 1), PutOptions{})
	f.put("gone", pattern(3<<20, 2), PutOptions{})
	u := f.upload("many", UploadOptions{})
	var parts []Part
	for i := range 12 {
		parts = append(parts, f.part(u, i+1, pattern(MinPartSize, byte(i)), PartOptions{}))
	}
	if _, err := f.CompleteUpload(t.Context(), "b", "many", u.ID, claim(parts...)); err != nil {
		t.Fatal(err)
	}
	f.part(f.upload("open", UploadOptions{}), 1, pattern(MinPartSize, 9), PartOptions{})

	manifests := 0
	named := func() map[bulkPlace]bool {
		all := map[bulkPlace]bool{}
		err := each(t.Context(), f.Store, func(key, value []byte) error {
			if kind := index.KindOf(key); kind != index.KindObject && kind != index.KindPart {
				return nil
			}
			_, body, err := splitValue(value)
			if err != nil {
				return err
			}
			c, err := contentOf(body)
			if err != nil {
				return err
			}
			if c.manifest != nil {
				manifests++
			}
			return f.stripesOf(t.Context(), f.log, value, func(s disk.Stripe) { all[bulkPlace{s.Band, s.Off}] = true })
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := named()
	if err := f.Delete(t.Context(), "b", "gone", Conditions{}); err != nil {
		t.Fatal(err)
	}
	after := named()
	if manifests != 2 || len(after) == 0 || len(after) == len(before) {
		t.Fatalf("%d manifests; %d, then %d stripes are named", manifests, len(before), len(after))
	}
	for at := range before {
		if got, err := f.Names(t.Context(), at.band, at.off); err != nil || got != after[at] {
			t.Errorf("stripe %x/%d: named %t, want %t: %v", at.band, at.off, got, after[at], err)
		}
		if got, err := f.Names(t.Context(), at.band, at.off+1<<20); err != nil || got {
			t.Errorf("no stripe begins at %x/%d: named %t: %v", at.band, at.off+1<<20, got, err)
		}
	}
}
