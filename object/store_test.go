package object

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"coffer/disk"
	"coffer/hw"
	"coffer/object/internal/seal"
)

// edgeSizes are around the borders of segments, of what travels with the record, and of stripes of six segments.
func edgeSizes(plain int) []int {
	return []int{0, 1, 100, 4096, plain - 1, plain, plain + 1, 2*plain - 1, 2 * plain, 2*plain + 1, 3 * plain, 6 * plain, 6*plain + 1,
		13*plain + 777}
}

func TestPutGet(t *testing.T) {
	for _, cipher := range []hw.Primitive{"aes-256-gcm", "chacha20-poly1305", "aes-256-cbc-hmac-sha-512"} {
		t.Run(string(cipher), func(t *testing.T) {
			opt := testOptions(t)
			opt.Cipher = cipher
			f := newFixture(t, opt)
			alg, _ := seal.ByPrimitive(cipher)
			for _, n := range edgeSizes(alg.PlainSize()) {
				for _, size := range []int64{int64(n), -1} {
					body := pattern(n, byte(n))
					obj, err := f.Put(t.Context(), "b", "k", iotest.HalfReader(bytes.NewReader(body)), PutOptions{Size: size})
					if err != nil {
						t.Fatalf("put %d bytes: %v", n, err)
					}
					sum := md5.Sum(body)
					if obj.ETag != hex.EncodeToString(sum[:]) || obj.Size != int64(n) || obj.Checksum.Algo != AlgoCRC64NVME {
						t.Errorf("put %d bytes: %+v", n, obj)
					}
					f.want("k", body, GetOptions{})
					r, err := f.Get(t.Context(), "b", "k", GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if err := iotest.TestReader(r, body); err != nil && n < 5000 {
						t.Error(err)
					}
					r.Close()
				}
			}
			if n := f.log.views.Load(); n != 0 {
				t.Errorf("%d views not released", n)
			}
		})
	}
}

func TestMetaAndTimes(t *testing.T) {
	f := newFixture(t, testOptions(t))
	meta := Meta{ContentType: "text/plain", ContentEncoding: "gzip", ContentDisposition: "inline", ContentLanguage: "en",
		CacheControl: "no-cache", Expires: "never", WebsiteRedirect: "/x", StorageClass: "STANDARD",
		User: map[string]string{"a": "1", "b": "zwei"}, Tags: map[string]string{"t": "v"}}
	before := time.Now().Truncate(time.Millisecond)
	put := f.put("k", []byte("hello"), PutOptions{Meta: meta})
	got, err := f.Head(t.Context(), "b", "k", GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(put, got); d != "" {
		t.Errorf("head differs from put:\n%s", d)
	}
	if d := cmp.Diff(meta, got.Meta); d != "" {
		t.Error(d)
	}
	if got.Modified.Before(before) || got.Modified.Location() != time.UTC || got.Modified.Nanosecond()%1e6 != 0 {
		t.Errorf("modified %v", got.Modified)
	}
}

func TestDurableAcrossReopen(t *testing.T) {
	f := newFixture(t, testOptions(t))
	big := pattern(20*65520+5, 9)
	f.put("small", []byte("x"), PutOptions{})
	f.put("big", big, PutOptions{SSE: customer(3)})
	if err := f.SetConfig(t.Context(), "root", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	for _, rebuild := range []bool{false, true} {
		f.reopen(rebuild)
		f.want("small", []byte("x"), GetOptions{})
		f.want("big", big, GetOptions{SSE: customer(3)})
		if v, err := f.Config(t.Context(), "root"); err != nil || string(v) != "secret" {
			t.Errorf("config = %q, %v", v, err)
		}
	}
	if v, err := f.Config(t.Context(), "other"); v != nil || err != nil {
		t.Errorf("absent config = %q, %v", v, err)
	}
	if err := f.SetConfig(t.Context(), "root", nil); err != nil {
		t.Fatal(err)
	}
	if v, err := f.Config(t.Context(), "root"); v != nil || err != nil {
		t.Errorf("deleted config = %q, %v", v, err)
	}
}

// failAfter gives n bytes and then an error.
type failAfter struct {
	n   int
	err error
}

func (r *failAfter) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, r.err
	}
	n := min(len(p), r.n)
	r.n -= n
	return n, nil
}

// TestFailedPutLeavesNothing makes puts fail in every way and looks for traces.
func TestFailedPutLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	long := int64(MaxPutSize + 1)
	for _, n := range []int{0, 100, 70000, 2 * 65520, 40 * 65520} {
		for _, c := range []struct {
			name string
			body io.Reader
			opt  PutOptions
			log  func(*memLog)
			want error
		}{
			{name: "body error", body: &failAfter{n, boom}, opt: PutOptions{Size: -1}, want: boom},
			{name: "cut body", body: &failAfter{n, io.ErrUnexpectedEOF}, opt: PutOptions{Size: int64(n) + 1}, want: io.ErrUnexpectedEOF},
			{name: "short body", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: int64(n) + 1}, want: ErrShortBody},
			{name: "long body", body: bytes.NewReader(make([]byte, n+1)), opt: PutOptions{Size: int64(n)}, want: ErrTooLarge},
			{name: "too large", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: long}, want: ErrTooLarge},
			{name: "check", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: int64(n), Check: func(s Sums) error {
				if s.Size != int64(n) || len(s.MD5) != 16 || len(s.Checksum.Sum) != 8 {
					t.Errorf("sums %+v", s)
				}
				return boom
			}}, want: boom},
			{name: "empty reads", body: &failAfter{n, nil}, opt: PutOptions{Size: int64(n) + 5}, want: io.ErrNoProgress},
			{name: "append", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: int64(n)},
				log: func(l *memLog) { l.failAppend.Store(&boom) }, want: boom},
			{name: "kms", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: int64(n), SSE: SSE{Mode: ModeKMS}}, want: ErrNotSupported},
			{name: "dsse", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: int64(n), SSE: SSE{Mode: ModeDSSE}}, want: ErrNotSupported},
			{name: "no customer key", body: bytes.NewReader(make([]byte, n)), opt: PutOptions{Size: int64(n), SSE: SSE{Mode: ModeCustomer}}, want: ErrKeyRequired},
		} {
			t.Run(fmt.Sprintf("%s/%d", c.name, n), func(t *testing.T) {
				f := newFixture(t, testOptions(t))
				if c.log != nil {
					c.log(f.log)
				}
				if _, err := f.Put(t.Context(), "b", "k", c.body, c.opt); !errors.Is(err, c.want) {
					t.Errorf("put: %v, want %v", err, c.want)
				}
				f.log.failAppend.Store(nil)
				if _, err := f.Head(t.Context(), "b", "k", GetOptions{}); !errors.Is(err, ErrNoSuchKey) {
					t.Errorf("head: %v", err)
				}
				if p, err := f.List(t.Context(), "b", ListOptions{Max: 10}); err != nil || len(p.Objects) != 0 {
					t.Errorf("list: %+v, %v", p, err)
				}
				if err := f.DeleteBucket(t.Context(), "b"); err != nil {
					t.Errorf("bucket is not empty: %v", err)
				}
			})
		}
	}
}

func TestStripeErrors(t *testing.T) {
	for _, fail := range []func(*memLog) *error{
		func(l *memLog) *error { e := disk.ErrFull; l.failStripe.Store(&e); return &e },
		func(l *memLog) *error { e := disk.ErrFull; l.failCommit.Store(&e); return &e },
	} {
		f := newFixture(t, testOptions(t))
		fail(f.log)
		body := bytes.NewReader(make([]byte, 50*65520))
		if _, err := f.Put(t.Context(), "b", "k", body, PutOptions{Size: body.Size()}); !errors.Is(err, ErrFull) {
			t.Errorf("put: %v", err)
		}
		if _, err := f.Head(t.Context(), "b", "k", GetOptions{}); !errors.Is(err, ErrNoSuchKey) {
			t.Errorf("head: %v", err)
		}
	}
}

func TestRanges(t *testing.T) {
	f := newFixture(t, testOptions(t))
	const p = 65520
	for _, size := range []int{1, 1000, p + 10, 2 * p, 14*p + 99} {
		body := pattern(size, 1)
		f.put("k", body, PutOptions{})
		marks := []int64{0, 1, p - 1, p, p + 1, 2*p - 1, 2 * p, 6*p - 1, 6 * p, 6*p + 1, 12 * p, 14 * p, int64(size) - 1, int64(size)}
		for _, a := range marks {
			for _, b := range append(marks, -1, 1<<62) {
				g := &Range{First: a, Last: b}
				r, err := f.Get(t.Context(), "b", "k", GetOptions{Range: g})
				bad := a >= int64(size) || (b >= 0 && b < a)
				if bad != errors.Is(err, ErrRange) {
					t.Fatalf("range %+v of %d: %v", g, size, err)
				}
				if bad {
					continue
				}
				end := int64(size)
				if b >= 0 {
					end = min(end, b+1)
				}
				before := f.log.segmentsRead.Load()
				var got bytes.Buffer
				if _, err := r.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), body[a:end]) {
					t.Fatalf("range %+v of %d: %d bytes, %v", g, size, got.Len(), err)
				}
				off, n := r.Range()
				if off != a || n != end-a {
					t.Errorf("Range() = %d, %d", off, n)
				}
				r.Close()
				touched := (end-1)/p - a/p + 1
				if read := f.log.segmentsRead.Load() - before; size > 2*p && read != touched {
					t.Errorf("range %+v of %d: %d segments read, %d touched", g, size, read, touched)
				}
			}
		}
		for _, n := range []int64{1, 100, int64(size), int64(size) + 1} {
			got, err := f.read("k", GetOptions{Range: &Range{First: -1, Last: n}})
			if err != nil || !bytes.Equal(got, body[max(0, int64(size)-n):]) {
				t.Errorf("suffix %d of %d: %d bytes, %v", n, size, len(got), err)
			}
		}
	}
	if _, err := f.Get(t.Context(), "b", "k", GetOptions{Range: &Range{First: -1, Last: 0}}); !errors.Is(err, ErrRange) {
		t.Errorf("empty suffix: %v", err)
	}
	f.put("empty", nil, PutOptions{})
	if _, err := f.Get(t.Context(), "b", "empty", GetOptions{Range: &Range{First: 0, Last: -1}}); !errors.Is(err, ErrRange) {
		t.Errorf("range of empty object: %v", err)
	}
}

func TestCustomerKeys(t *testing.T) {
	f := newFixture(t, testOptions(t))
	body := pattern(100, 0)
	obj := f.put("c", body, PutOptions{SSE: customer(1)})
	sum := md5.Sum(body)
	if obj.ETag == hex.EncodeToString(sum[:]) || len(obj.ETag) != 32 || obj.SSE.CustomerMD5 != "md5-1" || obj.SSE.CustomerKey != nil {
		t.Errorf("object %+v", obj)
	}
	f.put("s", body, PutOptions{})
	// What the key does not protect comes with the refusal.
	if o, err := f.Head(t.Context(), "b", "c", GetOptions{}); !errors.Is(err, ErrKeyRequired) || o.Key != "c" {
		t.Errorf("head without a key: %+v, %v", o, err)
	}
	for _, c := range []struct {
		key  string
		sse  SSE
		want error
	}{
		{"c", SSE{}, ErrKeyRequired},
		{"c", customer(2), ErrWrongKey},
		{"c", customer(1), nil},
		{"s", customer(1), ErrKeyNotApplicable},
		{"s", SSE{}, nil},
	} {
		if _, err := f.Head(t.Context(), "b", c.key, GetOptions{SSE: c.sse}); !errors.Is(err, c.want) {
			t.Errorf("head %s: %v, want %v", c.key, err, c.want)
		}
		if _, err := f.read(c.key, GetOptions{SSE: c.sse}); !errors.Is(err, c.want) {
			t.Errorf("get %s: %v, want %v", c.key, err, c.want)
		}
	}
}

func TestRepairAndCorruption(t *testing.T) {
	f := newFixture(t, testOptions(t))
	body := pattern(9*65520, 5)
	f.put("k", body, PutOptions{})
	var first disk.Stripe
	for s := range f.log.bulk {
		if s.Segments == 5 {
			first = s
		}
	}
	f.log.rotten[first] = map[int]bool{0: true, 3: true}
	f.want("k", body, GetOptions{})
	if n := f.log.repairs.Load(); n != 2 {
		t.Errorf("%d repairs", n)
	}
	f.log.lost[first] = map[int]bool{4: true}
	got, err := f.read("k", GetOptions{})
	if !errors.Is(err, ErrCorrupt) || !bytes.Equal(got, body[:4*65520]) {
		t.Errorf("lost segment: %d bytes, %v", len(got), err)
	}
	r, err := f.Get(t.Context(), "b", "k", GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); !errors.Is(err, ErrCorrupt) || len(got) != 4*65520 {
		t.Errorf("ReadAll: %d bytes, %v", len(got), err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error does not stick: %v", err)
	}
	r.Close()
	f.put("p", body[:100000], PutOptions{})
	f.log.badLoc = true
	f.want("p", body[:100000], GetOptions{})
	f.want("p", body[70000:70010], GetOptions{Range: &Range{70000, 70009}})
	if n := f.log.views.Load(); n != 0 {
		t.Errorf("%d views not released", n)
	}
}

func TestConditions(t *testing.T) {
	f := newFixture(t, testOptions(t))
	try := func(key string, c Conditions) error {
		_, err := f.Put(t.Context(), "b", key, strings.NewReader("x"), PutOptions{Size: 1, Conditions: c})
		return err
	}
	etag := f.put("k", []byte("v"), PutOptions{}).ETag
	for _, c := range []struct {
		key  string
		cond Conditions
		want error
	}{
		{"k", Conditions{IfNoneMatch: "*"}, ErrPreconditionFailed},
		{"new", Conditions{IfMatch: "*"}, ErrNoSuchKey},
		{"new", Conditions{IfNoneMatch: "*"}, nil},
		{"k", Conditions{IfMatch: "0123"}, ErrPreconditionFailed},
		{"k", Conditions{IfMatch: etag}, nil},
		{"k", Conditions{IfMatch: etag}, ErrPreconditionFailed},
		{"k", Conditions{IfMatch: "*"}, nil},
	} {
		if err := try(c.key, c.cond); !errors.Is(err, c.want) {
			t.Errorf("put %s %+v: %v, want %v", c.key, c.cond, err, c.want)
		}
	}
	// The object vanishes while the body comes.
	vanish := readerFunc(func(p []byte) (int, error) {
		return 0, errors.Join(f.Delete(t.Context(), "b", "k", Conditions{}), io.EOF)
	})
	_, err := f.Put(t.Context(), "b", "k", io.MultiReader(strings.NewReader("x"), eofOf(vanish)), PutOptions{Size: 1, Conditions: Conditions{IfMatch: "*"}})
	if !errors.Is(err, ErrConflict) {
		t.Errorf("vanished object: %v", err)
	}
	if err := f.Delete(t.Context(), "b", "absent", Conditions{}); err != nil {
		t.Errorf("delete absent: %v", err)
	}
	for _, etag := range []string{"x", "*"} {
		if err := f.Delete(t.Context(), "b", "absent", Conditions{IfMatch: etag}); !errors.Is(err, ErrNoSuchKey) {
			t.Errorf("conditional delete of absent: %v", err)
		}
	}
	if err := f.Delete(t.Context(), "b", "new", Conditions{IfMatch: "x"}); !errors.Is(err, ErrPreconditionFailed) {
		t.Errorf("conditional delete: %v", err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// eofOf gives a plain io.EOF where r joins it with others.
func eofOf(r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		if errors.Is(err, io.EOF) {
			err = io.EOF
		}
		return n, err
	})
}

func TestBuckets(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, testOptions(t))
	made, err := f.CreateBucket(ctx, "a", Bucket{Owner: "o", Region: "r", Encryption: &BucketEncryption{Mode: ModeS3}})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.CreateBucket(ctx, "a", Bucket{Owner: "other"}); !errors.Is(err, ErrBucketExists) || again.Owner != "o" {
		t.Errorf("create twice: %+v, %v", again, err)
	}
	got, err := f.Bucket(ctx, "a")
	if d := cmp.Diff(made, got); d != "" || err != nil {
		t.Errorf("bucket: %v\n%s", err, d)
	}
	for _, n := range []string{"c", "d", "dx"} {
		if _, err := f.CreateBucket(ctx, n, Bucket{}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(o ListBucketsOptions) (names string, more bool) {
		bs, more, err := f.ListBuckets(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bs {
			names += b.Name + " "
		}
		return names, more
	}
	for _, c := range []struct {
		o    ListBucketsOptions
		want string
		more bool
	}{
		{ListBucketsOptions{}, "a b c d dx ", false},
		{ListBucketsOptions{Max: 2}, "a b ", true},
		{ListBucketsOptions{Max: 3, After: "b"}, "c d dx ", false},
		{ListBucketsOptions{Prefix: "d"}, "d dx ", false},
	} {
		if names, more := list(c.o); names != c.want || more != c.more {
			t.Errorf("%+v: %q %v", c.o, names, more)
		}
	}
	if err := f.SetBucketEncryption(ctx, "a", &BucketEncryption{Mode: ModeKMS, KMSKeyID: "k"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(ctx, "a", "k", strings.NewReader(""), PutOptions{}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("put by a KMS default: %v", err)
	}
	if _, err := f.Put(ctx, "a", "k", strings.NewReader(""), PutOptions{SSE: SSE{Mode: ModeS3}}); err != nil {
		t.Errorf("request overrides default: %v", err)
	}
	if err := f.SetBucketEncryption(ctx, "a", nil); err != nil {
		t.Fatal(err)
	}
	if err := f.DeleteBucket(ctx, "a"); !errors.Is(err, ErrBucketNotEmpty) {
		t.Errorf("delete full bucket: %v", err)
	}
	if err := f.Delete(ctx, "a", "k", Conditions{}); err != nil {
		t.Fatal(err)
	}
	u, err := f.CreateUpload(ctx, "a", "k", UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.DeleteBucket(ctx, "a"); !errors.Is(err, ErrBucketNotEmpty) {
		t.Errorf("delete bucket with upload: %v", err)
	}
	if err := f.AbortUpload(ctx, "a", "k", u.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.DeleteBucket(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	f.reopen(true)
	for _, err := range []error{f.DeleteBucket(ctx, "a"), f.SetBucketEncryption(ctx, "a", nil), f.Delete(ctx, "a", "k", Conditions{}),
		errOf(f.Bucket(ctx, "a")), errOf(f.List(ctx, "a", ListOptions{})), errOf(f.Head(ctx, "a", "k", GetOptions{})),
		errOf(f.Put(ctx, "a", "k", strings.NewReader(""), PutOptions{})), errOf(f.CreateUpload(ctx, "a", "k", UploadOptions{}))} {
		if !errors.Is(err, ErrNoSuchBucket) {
			t.Errorf("deleted bucket: %v", err)
		}
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestKeyEpochs(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.put("old", []byte("1"), PutOptions{})
	epoch, err := f.keys.AddEpoch()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.keys.UseEpoch(epoch); err != nil {
		t.Fatal(err)
	}
	f.put("new", []byte("2"), PutOptions{})
	if b := f.buckets.get("b"); len(b.keys) != 2 || b.keys[1].Epoch != epoch {
		t.Errorf("bucket keys %+v", b.keys)
	}
	f.reopen(true)
	f.want("old", []byte("1"), GetOptions{})
	f.want("new", []byte("2"), GetOptions{})
}

func TestClosed(t *testing.T) {
	f := newFixture(t, testOptions(t))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), "b", "k", strings.NewReader(""), PutOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("put: %v", err)
	}
	if _, err := f.Get(t.Context(), "b", "k", GetOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("get: %v", err)
	}
}

func TestDeleteMany(t *testing.T) {
	f := newFixture(t, testOptions(t))
	var all []Deletion
	for i := range 200 {
		d := Deletion{Key: fmt.Sprintf("k%03d", i)}
		o := f.put(d.Key, []byte{1}, PutOptions{})
		switch {
		case i == 7:
			d.Conditions.IfMatch = "another"
		case i%2 == 0:
			d.Conditions.IfMatch = o.ETag
		}
		all = append(all, d)
	}
	stripes := len(f.log.history)
	for i, err := range f.DeleteMany(t.Context(), "b", append(all, Deletion{Key: "absent"}, Deletion{})) {
		if (err != nil) != (i == 201 || i == 7) || i == 7 && !errors.Is(err, ErrPreconditionFailed) {
			t.Errorf("key %d: %v", i, err)
		}
	}
	if p, err := f.List(t.Context(), "b", ListOptions{Max: 10}); err != nil || len(p.Objects) != 1 || p.Objects[0].Key != "k007" {
		t.Errorf("left: %+v, %v", p, err)
	}
	t.Logf("200 deletes in %d stripes", len(f.log.history)-stripes)
}
