package object

import (
	"strings"
	"testing"

	"coffer/disk"
	"coffer/object/internal/index"
)

// TestDeepCheck makes log, index and accounts disagree in one way after the other: each is found and named, and alone.
func TestDeepCheck(t *testing.T) {
	r := newRig(t, testOptions(t), 64<<20)
	ctx := t.Context()
	for _, k := range []string{"one", "two"} {
		r.put(k, pattern(400_000, 1), PutOptions{})
		r.put("small "+k, pattern(100, 1), PutOptions{})
	}
	r.put("customer", pattern(70_000, 2), PutOptions{SSE: customer(1)})
	u := r.upload("running", UploadOptions{})
	r.part(u, 1, pattern(200_000, 3), PartOptions{})
	id := r.buckets.get("b").id

	// expected is a store that the whole log is replayed into; the rig's own plays the index on disk.
	expected := func() *Store {
		t.Helper()
		opt := r.opt
		opt.IndexDir = t.TempDir()
		s, err := New(opt)
		if err != nil {
			t.Fatal(err)
		}
		s.PauseCompaction()
		s.Start(OnArray(r.array))
		t.Cleanup(func() { s.Close() })
		for _, b := range r.array.Bands() {
			if b.Bulk {
				continue
			}
			if _, err := r.array.EachRecord(ctx, b.Num, func(e disk.Entry, _ []byte) error {
				return s.Apply(disk.Position{Stripe: e.Seq >> 16, Band: b.Num}, []disk.Entry{e})
			}); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	check := func(sample int) DeepReport {
		t.Helper()
		rep, err := DeepCheck(ctx, expected(), r.Store, r.array, DeepOptions{Sample: sample})
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	if rep := check(1); !rep.OK() || rep.Objects != 5 || rep.Opened != 4 || rep.Skipped != 1 || rep.Stripes == 0 || rep.Garbage != 0 || rep.Entries < 7 {
		t.Fatalf("whole: %+v", rep)
	}
	change := func(f func(b *index.Batch)) {
		t.Helper()
		r.writing.Lock()
		defer r.writing.Unlock()
		b := r.idx.NewBatch()
		f(b)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	value := func(key []byte) []byte {
		t.Helper()
		v, ok, err := r.idx.Get(key, nil)
		if err != nil || !ok {
			t.Fatalf("no entry: %v", err)
		}
		return v
	}
	one, small := index.ObjectKey(nil, id, "one"), index.ObjectKey(nil, id, "small one")
	wasOne, wasSmall := value(one), value(small)
	p, body, err := splitValue(wasOne)
	if err != nil {
		t.Fatal(err)
	}
	c, err := contentOf(body)
	if err != nil {
		t.Fatal(err)
	}
	ref := index.RefKey(nil, c.single.stripes[0].Band, one)
	extra := index.ConfigKey(nil, "nobody wrote this")
	for _, x := range []struct {
		what      string
		harm, fix func(b *index.Batch)
		faults    []string // each is named, and every fault is one of them
	}{
		{"an entry is missing", func(b *index.Batch) { b.Delete(small) }, func(b *index.Batch) { b.Set(small, wasSmall) },
			[]string{`no entry for object "small one" in bucket b`, "live bytes"}},
		{"an entry is too many", func(b *index.Batch) { b.Set(extra, value(index.BucketKey(nil, "b"))) }, func(b *index.Batch) { b.Delete(extra) },
			[]string{`an entry for system record "nobody wrote this"`, "live bytes"}},
		{"an entry is another", func(b *index.Batch) { b.Set(small, value(index.ObjectKey(nil, id, "small two"))) }, func(b *index.Batch) { b.Set(small, wasSmall) },
			[]string{`the entry for object "small one" in bucket b is not what the log makes of it`}},
		{"a reference is missing", func(b *index.Batch) { b.Delete(ref) }, func(b *index.Batch) { b.Set(ref, nil) },
			[]string{`no entry for the reference to band`, `compaction would lose it`}},
		{"live bytes are wrong", func(b *index.Batch) { b.AddLive(p.band, 7) }, func(b *index.Batch) { b.AddLive(p.band, -7) },
			[]string{"live bytes, and"}},
	} {
		change(x.harm)
		rep := check(0)
		text := strings.Join(rep.Faults, "\n")
		for _, want := range x.faults {
			if !strings.Contains(text, want) {
				t.Errorf("%s: not told %q: %s", x.what, want, text)
			}
		}
		for _, f := range rep.Faults {
			if !containsAny(f, x.faults) {
				t.Errorf("%s: told %q", x.what, f)
			}
		}
		if rep.OK() || rep.FaultCount == 0 {
			t.Errorf("%s: not found", x.what)
		}
		change(x.fix)
	}
	if rep := check(0); !rep.OK() {
		t.Fatalf("afterwards: %v", rep.Faults)
	}

	// A stripe that no record names is garbage.
	n := int(c.single.stripes[0].Segments)
	w, err := r.array.NewStripe(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	copy(w.Slot(0), "not sealed")
	if err := w.Sealed(n); err != nil {
		t.Fatal(err)
	}
	st, err := w.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer r.array.Unpin(st.Band)
	if rep := check(0); !rep.OK() || rep.Garbage != 1 || rep.GarbageBytes != st.Footprint() {
		t.Errorf("garbage: %+v", rep)
	}

	// A record that names what is not its own: every cell is good, and no tag holds.
	rec, err := decodeObject(body, depthAll)
	if err != nil {
		t.Fatal(err)
	}
	rec.content.single.stripes[0] = st
	if _, err := r.array.Append(ctx, disk.Record{Seq: p.seq, Body: rec.appendTo(nil)}); err != nil {
		t.Fatal(err)
	}
	rep := check(1)
	if text := strings.Join(rep.Faults, "\n"); rep.Unopened != 1 || !strings.Contains(text, `object "one" in bucket b cannot be read`) || !rep.Cells.OK() {
		t.Errorf("a foreign stripe: %+v", rep)
	}

	// Stripes that never were are listed as freed.
	if err := r.recordFreed(ctx, []disk.StripeRange{{From: 1 << 40, To: 1<<40 + 5}}); err != nil {
		t.Fatal(err)
	}
	if rep := check(0); !strings.Contains(strings.Join(rep.Faults, "\n"), "freed stripes: 1099511627776 to 1099511627781 are listed") {
		t.Errorf("freed: %+v", rep.Faults)
	}
}

func containsAny(s string, list []string) bool {
	for _, x := range list {
		if strings.Contains(s, x) {
			return true
		}
	}
	return false
}
