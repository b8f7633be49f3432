package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coffer/disk"
	"coffer/object/internal/index"
)

// dump is everything in the index but the position and what the next pass of compaction drops.
func (f *fixture) dump() map[string]string {
	f.t.Helper()
	log, err := f.disk()
	if err == nil {
		err = f.tidy(log)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	all := map[string]string{}
	it := f.idx.Iter(nil, nil)
	for ok := it.Seek(nil); ok; ok = it.Next() {
		k, v := string(it.Key()), string(it.Value())
		if k[0] != 'm' && (k[0] != 'L' || v != "\x00\x00\x00\x00\x00\x00\x00\x00") {
			all[k] = v
		}
	}
	if err := it.Close(); err != nil {
		f.t.Fatal(err)
	}
	return all
}

// isRecord reports whether an index key is that of a record, not of what is derived from records.
func isRecord(key string) bool { return strings.IndexByte("boupc", key[0]) >= 0 }

// records lists the keys of the records in a dump.
func records(dump map[string]string) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for k := range dump {
			if isRecord(k) && !yield(k) {
				return
			}
		}
	})
}

// checkLive recomputes the live bytes of every band, and the references to bulk bands, from the entries.
func (f *fixture) checkLive() {
	f.t.Helper()
	want, got := map[uint64]int64{}, map[uint64]int64{}
	wantRefs, gotRefs := map[string]bool{}, map[string]bool{}
	for k, v := range f.dump() {
		if k[0] == 'r' {
			gotRefs[k] = true
		}
		if !isRecord(k) && k[0] != 't' {
			continue
		}
		p, body, err := splitValue([]byte(v))
		if err != nil {
			f.t.Fatal(err)
		}
		c, err := contentOf(body)
		if err != nil {
			f.t.Fatal(err)
		}
		p.forBands(body, c, func(band uint64, n int64) { want[band] += n })
		if k[0] == 't' {
			want[shadowBand] += int64(len(body))
		}
		if c != nil {
			c.forBands(func(band uint64, n int64) { wantRefs[string(index.RefKey(nil, band, []byte(k)))] = true })
		}
	}
	f.idx.Live(func(band uint64, n int64) {
		if n != 0 {
			got[band] = n
		}
	})
	if d := cmp.Diff(want, got); d != "" {
		f.t.Fatalf("live bytes:\n%s", d)
	}
	if d := cmp.Diff(wantRefs, gotRefs); d != "" {
		f.t.Fatalf("references:\n%s", d)
	}
}

// model is what the store should hold.
type model struct {
	objects map[string]modelObject
	uploads map[string]*modelUpload // by id
}

type modelObject struct {
	body []byte
	sse  SSE
	etag string
}

type modelUpload struct {
	Upload
	sse   SSE
	parts map[int]modelPart
}

type modelPart struct {
	Part
	body []byte
}

// seeds is how many of n runs are made: a quarter in the short form, which the race detector runs.
func seeds(n uint64) uint64 {
	if testing.Short() {
		return max(1, n/4)
	}
	return n
}

// TestModel runs random operations against the store and a map, with compaction in between, and now and then opens the store again:
// with its index, with a new one, and with every record applied twice.
func TestModel(t *testing.T) {
	for seed := range seeds(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			opt := testOptions(t)
			if seed%2 == 1 {
				opt.inlineBody = 600 // so that objects of a few parts have manifests
			}
			f := newFixture(t, opt)
			f.log.bandSize = 128 << 10
			m := &model{map[string]modelObject{}, map[string]*modelUpload{}}
			r := rand.New(rand.NewPCG(seed, 1))
			freed := 0
			for step := range 300 {
				m.step(f, r)
				switch r.IntN(30) {
				case 0:
					freed += f.compact(true).Bands
				case 1:
					freed += f.compact(false).Bands
				case 2:
					f.compactRandom(r, 4)
				case 3:
					live := f.dump()
					f.crash()
					f.same(live, "after a crash")
				case 4, 5:
					if err := f.Checkpoint(); err != nil {
						t.Fatal(err)
					}
				}
				if step%60 == 59 {
					m.check(f, r)
					f.checkReplay()
					m.check(f, r)
				}
			}
			t.Logf("%d bands freed", freed)
		})
	}
}

func (m *model) key(r *rand.Rand) string {
	return []string{"a", "a/b", "a/c", "b\x00", "b/", "b//x", "ü", "z"}[r.IntN(8)]
}

func (m *model) body(r *rand.Rand) []byte {
	n := []int{0, r.IntN(100), r.IntN(70000), r.IntN(140000), r.IntN(1 << 20)}[r.IntN(5)]
	return pattern(n, byte(r.Uint32()))
}

func randomSSE(r *rand.Rand) SSE {
	if r.IntN(4) == 0 {
		return customer(byte(1 + r.IntN(3)))
	}
	return SSE{}
}

func (m *model) step(f *fixture, r *rand.Rand) {
	f.t.Helper()
	ctx, key := f.t.Context(), m.key(r)
	switch op := r.IntN(10); op {
	case 0, 1, 2:
		body, sse := m.body(r), randomSSE(r)
		var cond Conditions
		old, exists := m.objects[key]
		switch r.IntN(4) {
		case 0:
			cond.IfNoneMatch = "*"
		case 1:
			cond.IfMatch = old.etag
		}
		o, err := f.Put(ctx, "b", key, bytes.NewReader(body), PutOptions{Size: int64(len(body)), SSE: sse, Conditions: cond})
		if wantErr := cond.IfNoneMatch == "*" && exists; wantErr != (err != nil) {
			f.t.Fatalf("put %q: %v", key, err)
		}
		if err == nil {
			m.objects[key] = modelObject{body, sse, o.ETag}
		}
	case 3:
		if err := f.Delete(ctx, "b", key, Conditions{}); err != nil {
			f.t.Fatal(err)
		}
		delete(m.objects, key)
	case 4:
		src, ok := m.objects[key]
		to, sse := m.key(r), randomSSE(r)
		o, err := f.Copy(ctx, CopySource{Bucket: "b", Key: key, SSE: src.sse}, "b", to, CopyOptions{SSE: sse})
		if ok != (err == nil) {
			f.t.Fatalf("copy %q: %v", key, err)
		}
		if ok {
			m.objects[to] = modelObject{src.body, sse, o.ETag}
		}
	case 5:
		sse := randomSSE(r)
		u := f.upload(key, UploadOptions{SSE: sse})
		m.uploads[u.ID] = &modelUpload{u, sse, map[int]modelPart{}}
	default:
		if u := m.anyUpload(r); u != nil {
			m.stepUpload(f, r, u, op)
		}
	}
}

func (m *model) anyUpload(r *rand.Rand) *modelUpload {
	var ids []string
	for id := range m.uploads {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	sort.Strings(ids)
	return m.uploads[ids[r.IntN(len(ids))]]
}

func (m *model) stepUpload(f *fixture, r *rand.Rand, u *modelUpload, op int) {
	f.t.Helper()
	ctx, n := f.t.Context(), 1+r.IntN(3)
	switch op {
	case 6:
		body := m.body(r)
		if r.IntN(3) > 0 {
			body = pattern(MinPartSize+r.IntN(1000), byte(n))
		}
		u.parts[n] = modelPart{f.part(u.Upload, n, body, PartOptions{SSE: u.sse}), body}
	case 7:
		src, ok := m.objects[m.key(r)]
		for k, o := range m.objects {
			if ok && o.etag == src.etag {
				g := &Range{0, int64(r.IntN(len(src.body) + 1))}
				p, err := f.CopyPart(ctx, CopySource{Bucket: "b", Key: k, SSE: o.sse, Range: g}, "b", u.Key, u.ID, n, PartOptions{SSE: u.sse})
				if (err != nil) != (len(o.body) == 0) {
					f.t.Fatalf("copy part: %v", err)
				}
				if err == nil {
					u.parts[n] = modelPart{p, o.body[:min(int64(len(o.body)), g.Last+1)]}
				}
				break
			}
		}
	case 8:
		var parts []Part
		var body []byte
		ok := true
		for n := 1; n <= 3; n++ {
			if p, has := u.parts[n]; has {
				ok = ok && (len(parts) == 0 || parts[len(parts)-1].Size >= MinPartSize)
				parts, body = append(parts, p.Part), append(body, p.body...)
			}
		}
		o, err := f.CompleteUpload(ctx, "b", u.Key, u.ID, claim(parts...))
		if (err == nil) != (ok && len(parts) > 0) {
			f.t.Fatalf("complete %d parts: %v", len(parts), err)
		}
		if err == nil {
			m.objects[u.Key] = modelObject{body, u.sse, o.ETag}
			delete(m.uploads, u.ID)
		}
	case 9:
		if r.IntN(3) == 0 {
			if err := f.AbortUpload(ctx, "b", u.Key, u.ID); err != nil {
				f.t.Fatal(err)
			}
			delete(m.uploads, u.ID)
		}
	}
}

// check compares everything.
func (m *model) check(f *fixture, r *rand.Rand) {
	f.t.Helper()
	var want []string
	for k, o := range m.objects {
		want = append(want, k)
		f.want(k, o.body, GetOptions{SSE: o.sse})
		if n := len(o.body); n > 0 {
			a := r.IntN(n)
			b := a + r.IntN(n-a)
			f.want(k, o.body[a:b+1], GetOptions{SSE: o.sse, Range: &Range{int64(a), int64(b)}})
		}
	}
	sort.Strings(want)
	var got []string
	for o := (ListOptions{Max: 3}); ; {
		p, err := f.List(f.t.Context(), "b", o)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, x := range p.Objects {
			got = append(got, x.Key)
		}
		if o.After = p.Next; !p.Truncated {
			break
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		f.t.Fatalf("list:\n%s", d)
	}
	page, err := f.ListUploads(f.t.Context(), "b", ListUploadsOptions{Max: MaxListKeys})
	if err != nil || len(page.Uploads) != len(m.uploads) {
		f.t.Fatalf("%d uploads, want %d: %v", len(page.Uploads), len(m.uploads), err)
	}
	f.checkLive()
	if views, pins := f.log.views.Load(), f.log.pins(); views != 0 || pins != 0 {
		f.t.Fatalf("%d views not released, %d pins left", views, pins)
	}
}

// checkReplay holds that the index comes out the same however the records reach it.
func (f *fixture) checkReplay() {
	f.t.Helper()
	live := f.dump()
	same := func(how string) {
		f.t.Helper()
		f.same(live, how)
	}
	f.reopen(false)
	same("after a restart")
	f.reopen(true)
	same("after a rebuild")
	for _, st := range f.log.history {
		if err := f.Apply(st.pos, st.entries); err != nil {
			f.t.Fatal(err)
		}
	}
	same("after all records came twice")
	tail := f.log.history[len(f.log.history)/2:]
	for _, st := range tail {
		if err := f.Apply(st.pos, st.entries); err != nil {
			f.t.Fatal(err)
		}
	}
	same("after the last records came again")
	// All at once: records of one stripe that concern the same key.
	if err := f.Reset(); err != nil {
		f.t.Fatal(err)
	}
	var all []disk.Entry
	for _, st := range f.log.history {
		all = append(all, st.entries...)
	}
	if err := f.Apply(f.log.history[0].pos, all); err != nil {
		f.t.Fatal(err)
	}
	if got, want := records(f.dump()), records(live); !slices.Equal(got, want) {
		f.t.Fatalf("from one stripe:\n%s", cmp.Diff(want, got))
	}
	f.checkLive()
	f.reopen(true)
}

// TestConcurrent races writers, readers, multipart and bucket deletion on a few keys. What a reader sees must be one of the
// bodies that were written under that key, whole.
func TestConcurrent(t *testing.T) {
	f := newFixture(t, testOptions(t))
	race(t, f, 60)
	f.checkLive()
	f.checkReplay()
}

// race has workers do as many operations each, and holds that what they did can be put in an order.
func race(t *testing.T, f *fixture, ops int) {
	const keys = 4
	ctx := t.Context()
	var wg sync.WaitGroup
	body := func(k, salt int) []byte { return pattern(1000+k*90000, byte(salt)) }
	seen := &accesses{byKey: map[string][]access{}}
	read := func(k int) {
		key, began := fmt.Sprint("k", k), seen.now()
		got, err := f.read(key, GetOptions{})
		switch {
		case errors.Is(err, ErrNoSuchKey):
			seen.note(key, began, false, absent)
		case err != nil || !bytes.Equal(got, body(k, int(got[0]))):
			t.Errorf("read %d bytes: %v", len(got), err)
		default:
			seen.note(key, began, false, int(got[0]))
		}
	}
	for k := range keys {
		read(k)
	}
	for w := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for range ops {
				k, salt := r.IntN(keys), r.IntN(256)
				key := fmt.Sprint("k", k)
				began := seen.now()
				switch r.IntN(6) {
				case 0, 1:
					b := body(k, salt)
					if _, err := f.Put(ctx, "b", key, bytes.NewReader(b), PutOptions{Size: int64(len(b))}); err != nil {
						t.Error(err)
					}
					seen.note(key, began, true, salt)
				case 2:
					if err := f.Delete(ctx, "b", key, Conditions{}); err != nil {
						t.Error(err)
					}
					seen.note(key, began, true, absent)
				case 3:
					completed, err := raceUpload(ctx, f, key, body(k, salt))
					if err != nil {
						t.Error(err)
					}
					if completed {
						seen.note(key, began, true, salt)
					}
				default:
					read(k)
				}
			}
		})
	}
	wg.Wait()
	for k := range keys {
		read(k)
	}
	if !t.Failed() {
		seen.check(t)
	}
}

// raceUpload completes an upload twice and aborts it at the same time, and reports whether it was completed.
func raceUpload(ctx context.Context, f *fixture, key string, b []byte) (completed bool, err error) {
	u, err := f.CreateUpload(ctx, "b", key, UploadOptions{})
	if err != nil {
		return false, err
	}
	p, err := f.PutPart(ctx, "b", key, u.ID, 1, bytes.NewReader(b), PartOptions{Size: int64(len(b))})
	if err != nil {
		return false, err
	}
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() {
			if i == 2 {
				errs[i] = f.AbortUpload(ctx, "b", key, u.ID)
			} else {
				_, errs[i] = f.CompleteUpload(ctx, "b", key, u.ID, claim(p))
			}
		})
	}
	wg.Wait()
	completed = errs[0] == nil || errs[1] == nil
	for i, err := range errs {
		if errors.Is(err, ErrNoSuchUpload) {
			errs[i] = nil // another one ended it, and perhaps another object has taken its place
		}
	}
	return completed, errors.Join(errs...)
}

// TestDeleteBucketRace holds that a bucket is never deleted with an object in it.
func TestDeleteBucketRace(t *testing.T) {
	f := newFixture(t, testOptions(t))
	for i := range 60 {
		name := fmt.Sprint("race", i)
		if _, err := f.CreateBucket(t.Context(), name, Bucket{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var put, del error
		wg.Go(func() { _, put = f.Put(t.Context(), name, "k", strings.NewReader("x"), PutOptions{Size: 1}) })
		wg.Go(func() { del = f.DeleteBucket(t.Context(), name) })
		wg.Wait()
		switch {
		case put == nil && errors.Is(del, ErrBucketNotEmpty):
		case del == nil && errors.Is(put, ErrNoSuchBucket):
		default:
			t.Fatalf("put %v, delete %v", put, del)
		}
	}
}

// TestOneWinner holds that of many conditional creations of a key exactly one succeeds.
func TestOneWinner(t *testing.T) {
	f := newFixture(t, testOptions(t))
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = f.Put(t.Context(), "b", "k", strings.NewReader("x"), PutOptions{Size: 1, Conditions: Conditions{IfNoneMatch: "*"}})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, ErrPreconditionFailed) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d writers won", won)
	}
}

// TestForeignIndex holds that an index of another array, or a damaged one, is replaced.
func TestForeignIndex(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.put("k", []byte("v"), PutOptions{})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	idx, err := index.Open(index.Options{Dir: f.opt.IndexDir, Keys: f.keys, FormatKey: [16]byte{9}})
	if !errors.Is(err, index.ErrForeign) {
		t.Fatalf("open as another array: %v, %v", idx, err)
	}
	other := testOptions(t)
	other.IndexDir = f.opt.IndexDir
	s, err := New(other)
	if err != nil {
		t.Fatalf("foreign index: %v", err)
	}
	if p, err := s.Position(); err != nil || p != (disk.Position{}) {
		t.Errorf("position %+v, %v", p, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
