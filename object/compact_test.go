package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"coffer/disk"
	"coffer/object/internal/index"
)

// compact makes a pass, over all bands or just those that are mostly dead.
func (f *fixture) compact(all bool) CompactReport {
	f.t.Helper()
	if all {
		f.log.roll()
	}
	rep, err := f.Compact(f.t.Context(), CompactOptions{All: all})
	if err != nil {
		f.t.Fatalf("compact: %v", err)
	}
	if n := f.log.pins(); n != 0 || rep.Left != 0 {
		f.t.Fatalf("%d pins left, %+v", n, rep)
	}
	return rep
}

// compactBand compacts one band, whatever it gains.
func (f *fixture) compactBand(b disk.Band) error {
	c := &compaction{s: f.Store, log: f.log, pace: f.newPacer(f.log)}
	return c.inTurn(f.t.Context(), func() error { return c.reclaim(f.t.Context(), candidate{Band: b}) })
}

// compactRandom compacts a few bands in random order.
func (f *fixture) compactRandom(r *rand.Rand, n int) {
	f.t.Helper()
	f.log.roll()
	for range n {
		bands := f.log.Bands()
		if b := bands[r.IntN(len(bands))]; b.Closed {
			if err := f.compactBand(b); err != nil {
				f.t.Fatalf("compact band %d: %v", b.Num, err)
			}
		}
	}
}

// crash opens the store again with the index as it lies on disk now.
func (f *fixture) crash() {
	f.t.Helper()
	kept := f.t.TempDir()
	for {
		err := os.CopyFS(kept, os.DirFS(f.opt.IndexDir))
		if err == nil {
			break
		}
		if kept = f.t.TempDir(); !errors.Is(err, fs.ErrNotExist) { // Pebble removed a file on its own
			f.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		f.t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(f.opt.IndexDir), os.CopyFS(f.opt.IndexDir, os.DirFS(kept))); err != nil {
		f.t.Fatal(err)
	}
	f.reopen(false)
}

// same fails the test unless the index is what it was.
func (f *fixture) same(want map[string]string, how string) {
	f.t.Helper()
	if d := cmp.Diff(want, f.dump()); d != "" {
		f.t.Fatalf("index differs %s:\n%.3000s", how, d)
	}
}

// deadThings makes one of each thing that ends, each step in a band of its own, and returns what must be left.
func deadThings(f *fixture) map[string][]byte {
	f.t.Helper()
	ctx := f.t.Context()
	ok := func(errs ...error) {
		f.t.Helper()
		if err := errors.Join(errs...); err != nil {
			f.t.Fatal(err)
		}
		f.log.roll()
	}
	put := func(key string, n int) {
		f.put(key, pattern(n, byte(n)), PutOptions{})
		f.log.roll()
	}
	parts := func(key string) (Upload, []Part) {
		u := f.upload(key, UploadOptions{SSE: customer(1)})
		f.log.roll()
		p := []Part{f.part(u, 1, pattern(MinPartSize, 1), PartOptions{SSE: customer(1)})}
		f.log.roll()
		p = append(p, f.part(u, 2, pattern(100, 2), PartOptions{SSE: customer(1)}))
		f.log.roll()
		return u, p
	}
	complete := func(key string) {
		u, p := parts(key)
		ok(errOf(f.CompleteUpload(ctx, "b", key, u.ID, claim(p...))))
	}
	for i, n := range []int{10, 400000} {
		key := fmt.Sprint("deleted", i)
		put(key, n)
		ok(f.Delete(ctx, "b", key, Conditions{}))
		key = fmt.Sprint("overwritten", i)
		put(key, n)
		put(key, n+1)
	}
	u, _ := parts("aborted")
	ok(f.AbortUpload(ctx, "b", "aborted", u.ID))
	complete("completed and deleted")
	ok(f.Delete(ctx, "b", "completed and deleted", Conditions{}))
	complete("completed and overwritten")
	put("completed and overwritten", 50)
	complete("completed")
	ok(errOf(f.CreateBucket(ctx, "gone", Bucket{})))
	ok(f.DeleteBucket(ctx, "gone"))
	ok(errOf(f.CreateBucket(ctx, "again", Bucket{Owner: "first"})))
	ok(f.DeleteBucket(ctx, "again"))
	ok(errOf(f.CreateBucket(ctx, "again", Bucket{Owner: "second"})))
	ok(f.SetConfig(ctx, "gone", []byte("x")))
	ok(f.SetConfig(ctx, "gone", nil))
	ok(f.SetConfig(ctx, "there", []byte("x")))
	parts("open")
	return map[string][]byte{"overwritten0": pattern(11, 11), "overwritten1": pattern(400001, 0x81), "completed and overwritten": pattern(50, 50)}
}

// checkDead holds that what ended is gone, and only that.
func checkDead(f *fixture, left map[string][]byte) {
	f.t.Helper()
	ctx := f.t.Context()
	want := []string{"completed"}
	for k, body := range left {
		f.want(k, body, GetOptions{})
		want = append(want, k)
	}
	f.want("completed", append(pattern(MinPartSize, 1), pattern(100, 2)...), GetOptions{SSE: customer(1)})
	page, err := f.List(ctx, "b", ListOptions{Max: 100})
	if err != nil || len(page.Objects) != len(want) {
		f.t.Fatalf("%d objects, want %d: %v", len(page.Objects), len(want), err)
	}
	up, err := f.ListUploads(ctx, "b", ListUploadsOptions{Max: 100})
	if err != nil || len(up.Uploads) != 1 || up.Uploads[0].Key != "open" {
		f.t.Fatalf("uploads: %+v, %v", up.Uploads, err)
	}
	p, err := f.ListParts(ctx, "b", "open", up.Uploads[0].ID, 0, 10)
	if err != nil || len(p.Parts) != 2 {
		f.t.Fatalf("parts: %+v, %v", p.Parts, err)
	}
	if _, err := f.Bucket(ctx, "gone"); !errors.Is(err, ErrNoSuchBucket) {
		f.t.Fatalf("bucket gone: %v", err)
	}
	if b, err := f.Bucket(ctx, "again"); err != nil || b.Owner != "second" {
		f.t.Fatalf("bucket again: %+v, %v", b, err)
	}
	if v, err := f.Config(ctx, "gone"); v != nil || err != nil {
		f.t.Fatalf("config gone: %q, %v", v, err)
	}
	if v, err := f.Config(ctx, "there"); string(v) != "x" || err != nil {
		f.t.Fatalf("config there: %q, %v", v, err)
	}
	f.checkLive()
}

// TestNoResurrection compacts bands in all kinds of orders and rebuilds the index in between from what is left of the log.
func TestNoResurrection(t *testing.T) {
	for seed := range seeds(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := newFixture(t, testOptions(t))
			r := rand.New(rand.NewPCG(seed, 3))
			left := deadThings(f)
			for range seeds(12) {
				f.compactRandom(r, 1+r.IntN(12))
				live := f.dump()
				if r.IntN(2) == 0 {
					f.crash()
					f.same(live, "after a crash")
				}
				f.reopen(true)
				f.same(live, "after a rebuild")
				checkDead(f, left)
			}
			// With all bands gone through, nothing but the live is left.
			for range 4 {
				f.compact(true)
			}
			if n := f.Stats().ShadowBytes; n != 0 {
				t.Errorf("%d bytes of shadows left", n)
			}
			f.reopen(true)
			checkDead(f, left)
		})
	}
}

// TestInterruptedCompaction has compaction fail at each of its appends, and at the freeing.
func TestInterruptedCompaction(t *testing.T) {
	boom := errors.New("boom")
	for n := 0; ; n++ {
		f := newFixture(t, testOptions(t))
		left := deadThings(f)
		f.log.appends.Store(int64(n))
		f.log.failAppend.Store(&boom)
		if n%2 == 1 {
			f.log.failFree.Store(&disk.ErrBusy)
		}
		f.log.roll()
		_, err := f.Compact(t.Context(), CompactOptions{All: true})
		f.log.failAppend.Store(nil)
		f.log.failFree.Store(nil)
		live := f.dump()
		f.reopen(true)
		f.same(live, fmt.Sprintf("after compaction failed at append %d", n))
		f.compact(true)
		f.reopen(true)
		checkDead(f, left)
		if err == nil && n%2 == 0 {
			t.Logf("%d appends", n)
			break
		} else if err != nil && !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if n += n / 8; testing.Short() {
			n += n / 2
		}
	}
}

// TestCompactionFrees holds that space comes back, that of what is live too once it is moved, and that a second pass has nothing to do.
func TestCompactionFrees(t *testing.T) {
	f := newFixture(t, testOptions(t))
	bodies := map[string][]byte{}
	for i := range 60 {
		key := fmt.Sprint("k", i)
		bodies[key] = pattern(1+i*9000, byte(i))
		f.put(key, bodies[key], PutOptions{})
	}
	for i := range 60 {
		if key := fmt.Sprint("k", i); i%4 != 0 {
			if err := f.Delete(t.Context(), "b", key, Conditions{}); err != nil {
				t.Fatal(err)
			}
			delete(bodies, key)
		}
	}
	f.log.roll()
	before := f.log.size()
	var calls []CompactReport
	rep, err := f.Compact(t.Context(), CompactOptions{All: true, Progress: func(r CompactReport) { calls = append(calls, r) }})
	if err != nil {
		t.Fatal(err)
	}
	after := f.log.size()
	var want int64
	for _, b := range bodies {
		want += int64(len(b))
	}
	if rep.Bands == 0 || rep.Left != 0 || after > want+want/4+100<<10 || after >= before/2 {
		t.Errorf("%+v: %d bytes became %d, of which %d are bodies", rep, before, after, want)
	}
	if len(calls) < 2 || calls[len(calls)-1] != rep {
		t.Errorf("progress %+v", calls)
	}
	if s := f.Stats(); s.BandsFreed != int64(rep.Bands) || s.MovedBytes != rep.Moved || s.ReclaimedBytes != rep.Reclaimed || s.LiveBytes < want {
		t.Errorf("stats %+v, report %+v", s, rep)
	}
	for range 2 {
		for k, b := range bodies {
			f.want(k, b, GetOptions{})
		}
		f.reopen(true)
	}
	if rep := f.compact(false); rep.Moved != 0 {
		t.Errorf("second pass: %+v", rep)
	}
}

// TestCompactionSparesWriters holds that stripes stay whose record is still to come, even if it comes at the last moment.
// TestCompactionOfThinBands: what was written with less parity is written again, though it gives no space.
func TestCompactionOfThinBands(t *testing.T) {
	f := newFixture(t, testOptions(t))
	bodies := map[string][]byte{}
	for i := range 12 {
		key := fmt.Sprint("key", i)
		bodies[key] = bytes.Repeat([]byte(key), 1+i*20_000)
		f.put(key, bodies[key], PutOptions{})
	}
	f.log.roll()
	thin := map[uint64]bool{}
	f.log.mu.Lock()
	for num, b := range f.log.bands {
		b.Thin = true
		thin[num] = true
	}
	f.log.mu.Unlock()
	c := &compaction{s: f.Store, log: f.log, pace: f.newPacer(f.log)}
	_, list, err := c.choose(minGain)
	if err != nil || !slices.ContainsFunc(list, func(x candidate) bool { return !x.gains }) {
		t.Fatalf("%v; no candidate that gives no space: %+v", err, list)
	}
	if rep := f.compact(false); rep.Bands != len(thin) {
		t.Errorf("%d of %d bands were freed: %+v", rep.Bands, len(thin), rep)
	}
	for _, b := range f.log.Bands() {
		if thin[b.Num] {
			t.Errorf("band %d is still there", b.Num)
		}
	}
	for key, body := range bodies {
		f.want(key, body, GetOptions{})
	}
}

func TestCompactionSparesWriters(t *testing.T) {
	f := newFixture(t, testOptions(t))
	other := pattern(3*65520, 2)
	f.put("other", other, PutOptions{})
	body := pattern(40*65520, 1)
	pr, pw := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := f.Put(t.Context(), "b", "k", pr, PutOptions{Size: int64(len(body))})
		done <- err
	}()
	if _, err := pw.Write(body[:30*65520]); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_, err := pw.Write(body[30*65520:])
		if err := errors.Join(err, pw.Close(), <-done); err != nil {
			t.Fatal(err)
		}
	})
	f.log.roll()
	f.log.beforeFree = func(b disk.Band) {
		if b.Bulk {
			end()
		}
	}
	rep, err := f.Compact(t.Context(), CompactOptions{All: true})
	if err != nil || rep.Left == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	end()
	f.want("k", body, GetOptions{})
	f.want("other", other, GetOptions{})
	f.compact(true)
	f.want("k", body, GetOptions{})
}

// TestCompactionSparesReaders holds that a reader ends well though its object was deleted and all is compacted.
func TestCompactionSparesReaders(t *testing.T) {
	f := newFixture(t, testOptions(t))
	for _, n := range []int{100, 50 * 65520} {
		body := pattern(n, 1)
		f.put("k", body, PutOptions{})
		rd, err := f.Get(t.Context(), "b", "k", GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Delete(t.Context(), "b", "k", Conditions{}); err != nil {
			t.Fatal(err)
		}
		f.log.roll()
		if _, err := f.Compact(t.Context(), CompactOptions{All: true}); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rd)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d of %d bytes, %v", len(got), n, err)
		}
		rd.Close()
		f.compact(true)
	}
	if n := len(f.log.bulk); n != 0 {
		t.Errorf("%d bulk stripes left", n)
	}
}

// TestCompactionOfDamage: bands with what cannot be read stay, and all else is moved out of them.
func TestCompactionOfDamage(t *testing.T) {
	f := newFixture(t, testOptions(t))
	big := pattern(9*65520, 1)
	f.put("lost", big, PutOptions{})
	var lost disk.Stripe
	for lost = range f.log.bulk {
		break
	}
	f.put("dead", big, PutOptions{})
	if err := f.Delete(t.Context(), "b", "dead", Conditions{}); err != nil {
		t.Fatal(err)
	}
	f.put("small", []byte("x"), PutOptions{})
	f.put("empty", nil, PutOptions{})
	f.put("fine", []byte("y"), PutOptions{})
	f.log.lost[lost] = map[int]bool{0: true}
	for _, st := range f.log.history[len(f.log.history)-3:][:2] { // of small and empty
		f.log.torn[st.pos.Stripe] = true
	}
	f.log.roll()
	rep, err := f.Compact(t.Context(), CompactOptions{All: true})
	if err != nil || rep.Left != 2 {
		t.Errorf("%+v, %v", rep, err)
	}
	f.want("small", []byte("x"), GetOptions{})
	_, loc, err := f.loadObject(f.buckets.get("b").id, "small", depthList)
	if err != nil || f.idx.LiveOf(loc.Band) >= 400 {
		t.Errorf("%d bytes left beside what cannot be read, %v", f.idx.LiveOf(loc.Band), err)
	}
	f.checkLive()
	clear(f.log.lost)
	clear(f.log.torn)
	f.compact(true)
	f.reopen(true)
	f.want("lost", big, GetOptions{})
	f.want("small", []byte("x"), GetOptions{})
	f.want("empty", nil, GetOptions{})
	f.want("fine", []byte("y"), GetOptions{})
}

// TestMoveHoldsLocks has things end while their records are being moved: what ends them must come behind the copy.
func TestMoveHoldsLocks(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		name string
		kind kind
		make func(f *fixture)
		end  func(f *fixture) error
	}{
		{"packed object", kindObject, func(f *fixture) { f.put("k", []byte("x"), PutOptions{}) },
			func(f *fixture) error { return f.Delete(ctx, "b", "k", Conditions{}) }},
		{"bulk object", kindObject, func(f *fixture) { f.put("k", pattern(200000, 1), PutOptions{}) },
			func(f *fixture) error { return f.Delete(ctx, "b", "k", Conditions{}) }},
		{"upload", kindUpload, func(f *fixture) { f.upload("k", UploadOptions{}) }, abortAll},
		{"part", kindPart, func(f *fixture) { f.part(f.upload("k", UploadOptions{}), 1, []byte("x"), PartOptions{}) }, abortAll},
		{"bucket", kindBucket, func(f *fixture) { errOf(f.CreateBucket(ctx, "k", Bucket{})) },
			func(f *fixture) error { return f.DeleteBucket(ctx, "k") }},
		{"config", kindConfig, func(f *fixture) { f.SetConfig(ctx, "k", []byte("x")) },
			func(f *fixture) error { return f.SetConfig(ctx, "k", nil) }},
	} {
		for _, bulk := range []bool{false, true} {
			f := newFixture(t, testOptions(t))
			before := records(f.dump())
			f.log.roll()
			c.make(f)
			f.log.roll()
			ended := make(chan error, 1)
			var once sync.Once
			f.log.beforeMove = func(body []byte) {
				if k, err := kindOf(body); err != nil || k != c.kind || !bytes.Contains(body, []byte("\x01k")) {
					return
				}
				once.Do(func() {
					go func() { ended <- c.end(f) }()
					time.Sleep(20 * time.Millisecond)
				})
			}
			for _, b := range f.log.Bands() {
				if b.Bulk == bulk {
					if err := f.compactBand(b); err != nil {
						t.Fatal(err)
					}
				}
			}
			once.Do(func() { ended <- c.end(f) }) // nothing of it lay in such a band
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for _, rebuild := range []bool{false, true} {
				got := slices.DeleteFunc(records(f.dump()), func(k string) bool { return k == "c"+freedName })
				if d := cmp.Diff(before, got); d != "" {
					t.Errorf("%s, bulk %v: %s", c.name, bulk, d)
				}
				f.reopen(rebuild)
			}
			f.checkLive()
		}
	}
}

// TestRelocateReplaced holds that a record is left alone that came in place of one with stripes.
func TestRelocateReplaced(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.put("k", pattern(200000, 1), PutOptions{})
	band := f.log.bulking
	for _, body := range [][]byte{nil, []byte("packed"), pattern(300000, 2)} {
		f.log.roll()
		f.put("k", body, PutOptions{})
		m := &mover{s: f.Store, log: f.log, pace: f.newPacer(f.log), band: band}
		if err := m.relocate(t.Context(), index.ObjectKey(nil, f.buckets.get("b").id, "k")); err != nil || m.moved.Load() != 0 {
			t.Errorf("%d bytes moved, %v", m.moved.Load(), err)
		}
		f.want("k", body, GetOptions{})
	}
}

func abortAll(f *fixture) error {
	p, err := f.ListUploads(f.t.Context(), "b", ListUploadsOptions{Max: 10})
	for _, u := range p.Uploads {
		err = errors.Join(err, f.AbortUpload(f.t.Context(), "b", u.Key, u.ID))
	}
	return err
}

// TestCompactionOfUnsettled holds that a band whose last records are not applied yet is not taken for damaged.
func TestCompactionOfUnsettled(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.put("a", []byte("x"), PutOptions{})
	band := f.log.Bands()[0]
	f.log.roll()
	f.log.Pin(band.Num)
	last := f.log.stripe
	f.log.torn[last] = true // as if it were not written yet
	c := &compaction{s: f.Store, log: f.log, pace: f.newPacer(f.log)}
	if err := c.reclaim(t.Context(), candidate{Band: band}); err != nil || c.report.Left != 1 || f.damaged[band.Num] {
		t.Errorf("%+v, %v", c.report, err)
	}
	f.log.Unpin(band.Num)
	delete(f.log.torn, last)
	f.compact(true)
	if slices.ContainsFunc(f.log.Bands(), func(b disk.Band) bool { return b.Num == band.Num }) {
		t.Error("the band stays")
	}
	f.want("a", []byte("x"), GetOptions{})
}

// TestConcurrentCompaction races compaction with writers and readers.
func TestConcurrentCompaction(t *testing.T) {
	opt := testOptions(t)
	opt.inlineBody = 500
	f := newFixture(t, opt)
	f.log.bandSize = 64 << 10
	f.log.slowMoves = true
	ctx, stop := context.WithCancel(t.Context())
	var compactor sync.WaitGroup
	compactor.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			f.log.roll()
			c := &compaction{s: f.Store, log: f.log, pace: f.newPacer(f.log)}
			for _, b := range f.log.Bands() {
				if !b.Closed {
					continue
				}
				if _, err := c.empty(ctx, candidate{Band: b}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
			if i%3 > 0 {
				continue // a checkpoint takes long beside all else
			}
			if _, err := f.Compact(ctx, CompactOptions{All: true}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
		t.Logf("%+v", f.Stats())
	})
	var wg sync.WaitGroup
	wg.Go(func() { race(t, f, 60) })
	for w := range 4 {
		wg.Go(func() { ownKeys(t, f, w) })
	}
	wg.Wait()
	stop()
	compactor.Wait()
	if views, pins := f.log.views.Load(), f.log.pins(); views != 0 || pins != 0 {
		t.Errorf("%d views, %d pins left", views, pins)
	}
	f.checkLive()
	f.checkReplay()
}

// ownKeys works on keys of its own and holds that they are what it made them.
func ownKeys(t *testing.T, f *fixture, w int) {
	r := rand.New(rand.NewPCG(uint64(w), 4))
	have := map[string][]byte{}
	for range 500 {
		key := fmt.Sprint("own", w, r.IntN(4))
		switch r.IntN(4) {
		case 0:
			body := pattern([]int{100, 20000, 150000, 200000}[r.IntN(4)], byte(r.Uint32()))
			if _, err := f.Put(t.Context(), "b", key, bytes.NewReader(body), PutOptions{Size: int64(len(body))}); err != nil {
				t.Error(err)
			}
			have[key] = body
		case 1:
			if err := f.Delete(t.Context(), "b", key, Conditions{}); err != nil {
				t.Error(err)
			}
			delete(have, key)
		default:
			got, err := f.read(key, GetOptions{})
			if body, ok := have[key]; ok && (err != nil || !bytes.Equal(got, body)) || !ok && !errors.Is(err, ErrNoSuchKey) {
				t.Errorf("%q: %d of %d bytes, %v", key, len(got), len(body), err)
			}
		}
	}
}

func TestFreedRanges(t *testing.T) {
	r := func(ends ...uint64) (list []disk.StripeRange) {
		for i := 0; i < len(ends); i += 2 {
			list = append(list, disk.StripeRange{From: ends[i], To: ends[i+1]})
		}
		return list
	}
	for _, c := range []struct{ add, want []disk.StripeRange }{
		{r(), r()},
		{r(5, 9), r(5, 9)},
		{r(5, 9, 1, 4, 20, 30, 11, 12, 25, 26, 5, 9), r(1, 9, 11, 12, 20, 30)},
	} {
		got := mergeRanges(c.add)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("merged: %s", d)
		}
		if back, err := decodeFreed(appendFreed(nil, got)); err != nil || !cmp.Equal(back, got) {
			t.Errorf("decoded %v, %v", back, err)
		}
	}
	for _, bad := range []string{"\x05", "\x05\x04", "\x01\x02\x03\x04", "\x05\x06\x01\x02", "\x80\x00\x01"} {
		if list, err := decodeFreed([]byte(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v, %v", bad, list, err)
		}
	}
}

// TestPressure holds that compaction runs at once when the log asks for it.
func TestPressure(t *testing.T) {
	opt := testOptions(t)
	opt.CompactRate = 1 // a byte a second: pressure must override it
	f := newFixture(t, opt)
	f.put("dead", pattern(500000, 1), PutOptions{})
	f.put("live", pattern(300000, 1), PutOptions{})
	f.log.roll()
	if err := f.Delete(t.Context(), "b", "dead", Conditions{}); err != nil {
		t.Fatal(err)
	}
	relieved := make(chan struct{})
	f.log.relieved.Store(&relieved)
	f.log.pressure <- struct{}{}
	<-relieved
	if n := f.Stats().BandsFreed; n == 0 {
		t.Error("nothing freed")
	}
	f.want("live", pattern(300000, 1), GetOptions{})
}

// TestCompactControl holds that a pass that was asked for is ended by a pause, keeps what it moved, and goes on afterwards; and that a
// plan changes nothing.
func TestCompactControl(t *testing.T) {
	opt := testOptions(t)
	opt.CompactRate = 1 // a byte a second: the second piece waits for ever
	opt.CompactEvery = time.Hour
	f := newFixture(t, opt)
	for i := range 4 {
		f.put(fmt.Sprint("k", i), pattern(300000, byte(i)), PutOptions{})
	}
	if err := f.Delete(t.Context(), "b", "k0", Conditions{}); err != nil {
		t.Fatal(err)
	}
	f.log.roll()
	until := func(what string, ok func(CompactionStatus) bool) {
		t.Helper()
		for st := f.Compaction(); !ok(st); st = f.Compaction() {
			if t.Context().Err() != nil {
				t.Fatalf("%s: %+v", what, st)
			}
			time.Sleep(time.Millisecond)
		}
	}
	before := f.dump()
	plan, err := f.PlanCompaction(t.Context(), true)
	if err != nil || len(plan.Bands) == 0 || plan.Reclaim <= plan.Move {
		t.Fatalf("%+v, %v", plan, err)
	}
	if st := f.Compaction(); st.State != "idle" || st.Rate != 1 || st.Current != nil || st.Freed != 0 || st.Next.IsZero() {
		t.Errorf("%+v", st)
	}
	f.same(before, "after a plan")
	f.CompactNow(CompactOptions{All: true})
	until("begun", func(st CompactionStatus) bool { return st.Current != nil && st.Current.Bands > 0 })
	f.PauseCompaction()
	until("paused", func(st CompactionStatus) bool { return st.State == "paused" && st.Current == nil })
	if st := f.Compaction(); st.Last != nil || st.Error != "" || !st.Next.IsZero() {
		t.Errorf("%+v", st)
	}
	f.SetCompactRate(0)
	f.ResumeCompaction()
	until("resumed", func(st CompactionStatus) bool { return st.State == "idle" })
	if st := f.Compaction(); st.Last == nil || !st.Last.All || st.Freed == 0 || st.Last.Visited != st.Last.Bands || st.Last.Report.Bands == 0 {
		t.Errorf("%+v, last %+v", st, st.Last)
	}
	for i := 1; i < 4; i++ {
		f.want(fmt.Sprint("k", i), pattern(300000, byte(i)), GetOptions{})
	}
	f.checkLive()
}
