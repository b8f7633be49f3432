package object

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coffer/disk"
)

func (f *fixture) upload(key string, o UploadOptions) Upload {
	f.t.Helper()
	u, err := f.CreateUpload(f.t.Context(), "b", key, o)
	if err != nil {
		f.t.Fatal(err)
	}
	return u
}

func (f *fixture) part(u Upload, n int, body []byte, o PartOptions) Part {
	f.t.Helper()
	o.Size = int64(len(body))
	p, err := f.PutPart(f.t.Context(), "b", u.Key, u.ID, n, bytes.NewReader(body), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func claim(parts ...Part) CompleteOptions {
	o := CompleteOptions{Size: -1}
	for _, p := range parts {
		o.Parts = append(o.Parts, CompletePart{Number: p.Number, ETag: p.ETag, Checksum: p.Checksum})
	}
	return o
}

// sumOf computes a checksum in one piece, by other code than the store's where there is some.
func sumOf(t *testing.T, a Algo, p []byte) []byte {
	switch a {
	case AlgoCRC32:
		return binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(p))
	case AlgoCRC32C:
		return binary.BigEndian.AppendUint32(nil, crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	case AlgoSHA1:
		s := sha1.Sum(p)
		return s[:]
	case AlgoSHA256:
		s := sha256.Sum256(p)
		return s[:]
	}
	e, err := testEngine()
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.AppendUint64(nil, e.CRC64NVME(0, p))
}

func TestMultipart(t *testing.T) {
	sizes := []int{MinPartSize, MinPartSize + 65520*3 + 17, 99}
	for _, sse := range []SSE{{}, customer(7)} {
		for algo := AlgoCRC64NVME; algo <= AlgoSHA256; algo++ {
			for _, composite := range []bool{false, true} {
				if composite == false && algo >= AlgoSHA1 || testing.Short() && algo != AlgoCRC64NVME && algo != AlgoSHA256 {
					continue
				}
				t.Run(fmt.Sprintf("mode%d/algo%d/%v", sse.Mode, algo, composite), func(t *testing.T) {
					f := newFixture(t, testOptions(t))
					u := f.upload("k", UploadOptions{SSE: sse, Checksum: algo, Composite: composite, Meta: Meta{ContentType: "x/y"}})
					var parts []Part
					var whole, md5s, sums []byte
					for i, n := range sizes {
						body := pattern(n, byte(i))
						p := f.part(u, 2*i+1, body, PartOptions{SSE: sse})
						parts, whole = append(parts, p), append(whole, body...)
						raw, _ := hex.DecodeString(p.ETag)
						md5s, sums = append(md5s, raw...), append(sums, p.Checksum.Sum...)
						if !bytes.Equal(p.Checksum.Sum, sumOf(t, algo, body)) {
							t.Errorf("part checksum %x", p.Checksum.Sum)
						}
					}
					obj, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, claim(parts...))
					if err != nil {
						t.Fatal(err)
					}
					sum := md5.Sum(md5s)
					if want := hex.EncodeToString(sum[:]) + "-3"; obj.ETag != want {
						t.Errorf("etag %s, want %s", obj.ETag, want)
					}
					want := Checksum{Algo: algo, Composite: composite, Sum: sumOf(t, algo, whole)}
					if composite {
						want.Sum = sumOf(t, algo, sums)
					}
					if d := cmp.Diff(want, obj.Checksum); d != "" {
						t.Errorf("checksum:\n%s", d)
					}
					f.want("k", whole, GetOptions{SSE: sse})
					f.want("k", whole[MinPartSize-10:MinPartSize+10], GetOptions{SSE: sse, Range: &Range{MinPartSize - 10, MinPartSize + 9}})
					f.want("k", whole[sizes[0]:sizes[0]+sizes[1]], GetOptions{SSE: sse, Part: 3})
					f.want("k", whole[len(whole)-99:], GetOptions{SSE: sse, Part: 5})
					if _, err := f.read("k", GetOptions{SSE: sse, Part: 2}); !errors.Is(err, ErrRange) {
						t.Errorf("absent part: %v", err)
					}
					again, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, claim(parts...))
					if d := cmp.Diff(obj, again); d != "" || err != nil {
						t.Errorf("complete again: %v\n%s", err, d)
					}
					if _, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, claim(parts[:2]...)); !errors.Is(err, ErrNoSuchUpload) {
						t.Errorf("complete again with other parts: %v", err)
					}
					f.reopen(true)
					f.want("k", whole, GetOptions{SSE: sse})
					f.checkLive()
				})
			}
		}
	}
}

// TestPartClaims: what complete claims of a part is true, also of a checksum that is not the upload's, before and after a rebuild.
func TestPartClaims(t *testing.T) {
	for _, algo := range []Algo{AlgoCRC64NVME, AlgoCRC32} {
		f := newFixture(t, testOptions(t))
		u := f.upload("k", UploadOptions{Checksum: algo})
		body := []byte("the last part")
		part := f.part(u, 1, body, PartOptions{Checksum: AlgoSHA256})
		f.reopen(true)
		sums := map[Algo][]byte{algo: sumOf(t, algo, body), AlgoSHA256: sumOf(t, AlgoSHA256, body), AlgoSHA1: sumOf(t, AlgoSHA1, body)}
		complete := func(c Checksum) error {
			o := claim(part)
			o.Parts[0].Checksum = c
			_, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, o)
			return err
		}
		for a, sum := range sums {
			if err := complete(Checksum{Algo: a, Sum: append([]byte{^sum[0]}, sum[1:]...)}); !errors.Is(err, ErrBadDigest) && !(a == algo && errors.Is(err, ErrInvalidPart)) {
				t.Errorf("upload of algorithm %d, part with a false sum of %d: %v", algo, a, err)
			}
		}
		if err := complete(Checksum{Algo: AlgoSHA1, Sum: sums[AlgoSHA1]}); !errors.Is(err, ErrBadDigest) { // it may be true, but nobody knows
			t.Errorf("upload of algorithm %d, part with a sum that was not proved: %v", algo, err)
		}
		if err := complete(Checksum{Algo: AlgoSHA256, Sum: sums[AlgoSHA256]}); err != nil {
			t.Errorf("upload of algorithm %d, part with a true sum: %v", algo, err)
		}
		if err := complete(Checksum{Algo: AlgoSHA256, Sum: sums[AlgoSHA256]}); err != nil {
			t.Errorf("again: %v", err)
		}
		again := claim(part)
		again.Size = 99
		if _, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, again); !errors.Is(err, ErrSizeMismatch) {
			t.Errorf("again, of another size: %v", err)
		}
		again.Size, again.Checksum = -1, Checksum{Algo: algo, Sum: make([]byte, len(sums[algo]))}
		if _, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, again); !errors.Is(err, ErrBadDigest) {
			t.Errorf("again, of another checksum: %v", err)
		}
	}
}

func TestCompleteRefuses(t *testing.T) {
	f := newFixture(t, testOptions(t))
	u := f.upload("k", UploadOptions{})
	big := pattern(MinPartSize, 0)
	p1, p2, p3 := f.part(u, 1, big, PartOptions{}), f.part(u, 2, []byte("small"), PartOptions{}), f.part(u, 3, []byte("last"), PartOptions{})
	bad := p1
	bad.ETag = strings.Repeat("0", 32)
	badSum := p1
	badSum.Checksum.Sum = make([]byte, 8)
	size := claim(p1, p2)
	size.Size = 7
	digest := claim(p1, p2)
	digest.Checksum = Checksum{Algo: AlgoCRC64NVME, Sum: make([]byte, 8)}
	other := claim(p1, p2)
	other.Checksum = Checksum{Algo: AlgoCRC32, Sum: make([]byte, 4)}
	cond := claim(p1, p2)
	cond.Conditions.IfMatch = "*"
	for _, c := range []struct {
		name string
		o    CompleteOptions
		want error
	}{
		{"no parts", claim(), ErrInvalidPart},
		{"order", claim(p2, p1), ErrInvalidPartOrder},
		{"twice", claim(p1, p1), ErrInvalidPartOrder},
		{"absent", claim(p1, Part{Number: 9}), ErrInvalidPart},
		{"etag", claim(bad, p2), ErrInvalidPart},
		{"part checksum", claim(badSum, p2), ErrInvalidPart},
		{"small", claim(p1, p2, p3), ErrPartTooSmall},
		{"size", size, ErrSizeMismatch},
		{"digest", digest, ErrBadDigest},
		{"digest of another algorithm", other, ErrBadDigest},
		{"condition", cond, ErrNoSuchKey},
	} {
		if _, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := f.Head(t.Context(), "b", "k", GetOptions{}); !errors.Is(err, ErrNoSuchKey) {
		t.Errorf("head: %v", err)
	}
	if _, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, claim(p1, p2)); err != nil {
		t.Error(err)
	}
	f.checkLive()
}

func TestUploadErrors(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, testOptions(t))
	u, c := f.upload("k", UploadOptions{}), f.upload("c", UploadOptions{SSE: customer(1)})
	put := func(key, id string, n int, o PartOptions) error {
		_, err := f.PutPart(ctx, "b", key, id, n, strings.NewReader("x"), o)
		return err
	}
	one := PartOptions{Size: 1}
	for _, x := range []struct {
		name string
		err  error
		want error
	}{
		{"bad id", put("k", "!", 1, one), ErrNoSuchUpload},
		{"another key's id", put("k", c.ID, 1, one), ErrNoSuchUpload},
		{"number 0", put("k", u.ID, 0, one), ErrInvalidPart},
		{"number 10001", put("k", u.ID, 10001, one), ErrInvalidPart},
		{"too large", put("k", u.ID, 1, PartOptions{Size: MaxPartSize + 1}), ErrTooLarge},
		{"customer key not applicable", put("k", u.ID, 1, PartOptions{Size: 1, SSE: customer(1)}), ErrPartKeyMismatch},
		{"customer key missing", put("c", c.ID, 1, one), ErrPartKeyRequired},
		{"customer key wrong", put("c", c.ID, 1, PartOptions{Size: 1, SSE: customer(2)}), ErrPartKeyMismatch},
		{"abort of unknown", f.AbortUpload(ctx, "b", "k", c.ID), ErrNoSuchUpload},
		{"complete of unknown", errOf(f.CompleteUpload(ctx, "b", "zz", u.ID, claim(Part{Number: 1}))), ErrNoSuchUpload},
		{"list of unknown", errOf(f.ListParts(ctx, "b", "zz", u.ID, 0, 10)), ErrNoSuchUpload},
	} {
		if !errors.Is(x.err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, x.err, x.want)
		}
	}
	boom := errors.New("boom")
	if err := put("k", u.ID, 1, PartOptions{Size: 1, Check: func(Sums) error { return boom }}); !errors.Is(err, boom) {
		t.Errorf("check: %v", err)
	}
	// The client's checksum is of another algorithm than the upload's: both are computed.
	err := put("k", u.ID, 1, PartOptions{Size: 1, Checksum: AlgoSHA1, Check: func(s Sums) error {
		if s.Checksum.Algo != AlgoSHA1 || !bytes.Equal(s.Checksum.Sum, sumOf(t, AlgoSHA1, []byte("x"))) {
			t.Errorf("claimed checksum %+v", s.Checksum)
		}
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
	// An upload that ends while a part comes.
	end := eofOf(readerFunc(func([]byte) (int, error) { return 0, errors.Join(f.AbortUpload(ctx, "b", "k", u.ID), io.EOF) }))
	if _, err := f.PutPart(ctx, "b", "k", u.ID, 2, end, PartOptions{Size: -1}); !errors.Is(err, ErrNoSuchUpload) {
		t.Errorf("part of an aborted upload: %v", err)
	}
	if err := f.AbortUpload(ctx, "b", "c", c.ID); err != nil {
		t.Error(err)
	}
	f.checkLive()
	if err := f.DeleteBucket(ctx, "b"); err != nil {
		t.Error(err)
	}
}

func TestListParts(t *testing.T) {
	f := newFixture(t, testOptions(t))
	u := f.upload("k", UploadOptions{})
	for _, n := range []int{7, 3, 10000, 1, 3} {
		f.part(u, n, []byte{byte(n)}, PartOptions{})
	}
	var got []int
	for after := 0; ; {
		page, err := f.ListParts(t.Context(), "b", "k", u.ID, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Parts {
			got = append(got, p.Number)
		}
		if after = page.Next; !page.Truncated {
			break
		}
	}
	if d := cmp.Diff([]int{1, 3, 7, 10000}, got); d != "" {
		t.Error(d)
	}
	f.checkLive()
}

func TestListUploads(t *testing.T) {
	f := newFixture(t, testOptions(t))
	want := map[string]bool{}
	for _, k := range []string{"a/1", "a/2", "b", "b", "b", "c/1", "b\x00c"} {
		want[k+"|"+f.upload(k, UploadOptions{}).ID] = true
	}
	o := ListUploadsOptions{Max: 2}
	last := ""
	for {
		page, err := f.ListUploads(t.Context(), "b", o)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range page.Uploads {
			if k := u.Key + "|" + u.ID; !want[k] || u.Key < last {
				t.Errorf("unexpected %q", k)
			} else {
				delete(want, k)
			}
			last = u.Key
		}
		if o.KeyMarker, o.IDMarker = page.NextKeyMarker, page.NextID; !page.Truncated {
			break
		}
	}
	if len(want) != 0 {
		t.Errorf("missing %v", want)
	}
	page, err := f.ListUploads(t.Context(), "b", ListUploadsOptions{Delimiter: "/", Max: 10})
	if err != nil || !cmp.Equal(page.Prefixes, []string{"a/", "c/"}) || len(page.Uploads) != 4 {
		t.Errorf("delimited: %+v, %v", page, err)
	}
}

// TestManyParts completes an upload of the most parts there can be: its manifest does not fit into a record.
func TestManyParts(t *testing.T) {
	f := newFixture(t, testOptions(t))
	u := f.upload("k", UploadOptions{})
	rec, err := f.loadUpload(f.buckets.get("b").id, "k", must(parseUploadID(u.ID)))
	if err != nil {
		t.Fatal(err)
	}
	// The parts need not be readable: their records alone make the manifest. The first is, and is what is read below.
	first := f.part(u, 1, pattern(MinPartSize, 1), PartOptions{})
	parts := []Part{first}
	bands := slices.DeleteFunc(f.log.Bands(), func(b disk.Band) bool { return !b.Bulk })
	for n := 2; n <= MaxParts; n++ {
		p := uploadPart{bucket: rec.bucket, key: "k", upload: rec.id, part: partRecord{number: n, wrapped: make([]byte, 112),
			etag: randomETag(), checksum: Checksum{Algo: AlgoCRC64NVME, Sum: make([]byte, 8)}}}
		p.part.stream = stream{alg: 1, id: newID(), size: MinPartSize}
		for range 14 {
			p.part.stripes = append(p.part.stripes, disk.Stripe{Band: bands[rand.IntN(len(bands))].Num, Off: uint32(n), Data: 2, Segments: 6})
		}
		p.part.stripes[13].Segments = 3
		if _, err := f.log.Append(t.Context(), disk.Record{Body: p.appendTo(nil)}); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, p.part.public())
	}
	obj, err := f.CompleteUpload(t.Context(), "b", "k", u.ID, claim(parts...))
	if err != nil {
		t.Fatal(err)
	}
	if len(obj.Parts) != MaxParts || obj.Size != MaxParts*MinPartSize {
		t.Errorf("%d parts, %d bytes", len(obj.Parts), obj.Size)
	}
	f.checkLive()
	f.reopen(true)
	f.checkLive()
	head, err := f.Head(t.Context(), "b", "k", GetOptions{})
	if d := cmp.Diff(obj, head); d != "" || err != nil {
		t.Errorf("head: %v\n%s", err, d[:min(len(d), 500)])
	}
	f.want("k", pattern(MinPartSize, 1), GetOptions{Part: 1})
	if err := f.Delete(t.Context(), "b", "k", Conditions{}); err != nil {
		t.Fatal(err)
	}
	f.checkLive()
}

func must[T any](v T, ok bool) T {
	if !ok {
		panic("not ok")
	}
	return v
}

func TestCRCCombine(t *testing.T) {
	body := pattern(100000, 3)
	for _, a := range []Algo{AlgoCRC64NVME, AlgoCRC32, AlgoCRC32C} {
		for _, cut := range []int{0, 1, 77, 65536, 99999, 100000} {
			var parts []partRecord
			for _, p := range [][]byte{body[:cut], body[cut:]} {
				parts = append(parts, partRecord{checksum: Checksum{Algo: a, Sum: sumOf(t, a, p)}, stream: stream{size: int64(len(p))}})
			}
			if got := fullObject(a, parts); !bytes.Equal(got.Sum, sumOf(t, a, body)) {
				t.Errorf("algorithm %d cut at %d: %x", a, cut, got.Sum)
			}
		}
	}
}
