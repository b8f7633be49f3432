package object

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCopyMatrix copies between all protections, over the borders of what travels with a record.
func TestCopyMatrix(t *testing.T) {
	f := newFixture(t, testOptions(t))
	modes := []SSE{{}, customer(1), customer(2)}
	meta := Meta{ContentType: "a/b", User: map[string]string{"u": "1"}, Tags: map[string]string{"t": "1"}}
	for i, from := range modes {
		for j, to := range modes {
			for _, n := range []int{0, 10, 2*65520 + 1, 15 * 65520} {
				body := pattern(n, byte(i))
				src := f.put("src", body, PutOptions{SSE: from, Meta: meta, Checksum: AlgoSHA256})
				obj, err := f.Copy(t.Context(), CopySource{Bucket: "b", Key: "src", SSE: from}, "b", "dst", CopyOptions{SSE: to})
				if err != nil {
					t.Fatalf("copy %d to %d: %v", i, j, err)
				}
				f.want("dst", body, GetOptions{SSE: to})
				if d := cmp.Diff(meta, obj.Meta); d != "" || !cmp.Equal(src.Checksum, obj.Checksum) {
					t.Errorf("copied meta:\n%s checksum %+v", d, obj.Checksum)
				}
				if from.Mode == to.Mode && from.Mode != ModeCustomer && src.ETag != obj.ETag {
					t.Errorf("etag %s became %s", src.ETag, obj.ETag)
				}
			}
		}
	}
}

func TestCopyOptions(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.put("k", []byte("body"), PutOptions{Meta: Meta{ContentType: "a/b", Tags: map[string]string{"old": "1"}}})
	boom := errors.New("boom")
	for _, c := range []struct {
		name string
		src  CopySource
		o    CopyOptions
		want error
		meta Meta
	}{
		{name: "replace meta", o: CopyOptions{ReplaceMeta: true, Meta: Meta{ContentType: "c/d", Tags: map[string]string{"new": "1"}}},
			meta: Meta{ContentType: "c/d", Tags: map[string]string{"old": "1"}}},
		{name: "replace tags", o: CopyOptions{ReplaceTags: true, Meta: Meta{ContentType: "x", Tags: map[string]string{"new": "2"}}},
			meta: Meta{ContentType: "c/d", Tags: map[string]string{"new": "2"}}},
		{name: "storage class of the copy", o: CopyOptions{Meta: Meta{StorageClass: "STANDARD_IA"}},
			meta: Meta{ContentType: "c/d", Tags: map[string]string{"new": "2"}, StorageClass: "STANDARD_IA"}},
		{name: "storage class is not carried over", meta: Meta{ContentType: "c/d", Tags: map[string]string{"new": "2"}}},
		{name: "check", src: CopySource{Check: func(Object) error { return boom }}, want: boom},
		{name: "condition", o: CopyOptions{Conditions: Conditions{IfNoneMatch: "*"}}, want: ErrPreconditionFailed},
		{name: "key for plain source", src: CopySource{SSE: customer(1)}, want: ErrKeyNotApplicable},
	} {
		c.src.Bucket, c.src.Key = "b", "k"
		obj, err := f.Copy(t.Context(), c.src, "b", "k", c.o) // onto itself
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		} else if d := cmp.Diff(c.meta, obj.Meta); err == nil && d != "" {
			t.Errorf("%s:\n%s", c.name, d)
		}
		f.want("k", []byte("body"), GetOptions{})
	}
	if _, err := f.Copy(t.Context(), CopySource{Bucket: "b", Key: "absent"}, "b", "x", CopyOptions{}); !errors.Is(err, ErrNoSuchKey) {
		t.Errorf("absent source: %v", err)
	}
	if n := f.log.views.Load(); n != 0 {
		t.Errorf("%d views not released", n)
	}
}

// TestCopyParts makes an object of parts that are copied from ranges of others, in all protections.
func TestCopyParts(t *testing.T) {
	f := newFixture(t, testOptions(t))
	body := pattern(MinPartSize+300000, 4)
	for i, from := range []SSE{{}, customer(1)} {
		for j, to := range []SSE{{}, customer(2)} {
			key := fmt.Sprint("dst", i, j)
			f.put("src", body, PutOptions{SSE: from})
			u := f.upload(key, UploadOptions{SSE: to})
			copyPart := func(n int, g *Range) Part {
				p, err := f.CopyPart(t.Context(), CopySource{Bucket: "b", Key: "src", SSE: from, Range: g}, "b", key, u.ID, n, PartOptions{SSE: to})
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			p1, p2 := copyPart(1, nil), copyPart(2, &Range{100, 200099})
			obj, err := f.CompleteUpload(t.Context(), "b", key, u.ID, claim(p1, p2))
			if err != nil {
				t.Fatal(err)
			}
			whole := append(bytes.Clone(body), body[100:200100]...)
			if !bytes.Equal(obj.Checksum.Sum, sumOf(t, AlgoCRC64NVME, whole)) {
				t.Errorf("checksum %x", obj.Checksum.Sum)
			}
			f.want(key, whole, GetOptions{SSE: to})
			// A multipart source becomes a plain object.
			one, err := f.Copy(t.Context(), CopySource{Bucket: "b", Key: key, SSE: to}, "b", "one", CopyOptions{})
			if err != nil || len(one.Parts) != 0 || len(one.ETag) != 32 {
				t.Errorf("copy of a multipart object: %+v, %v", one, err)
			}
			f.want("one", whole, GetOptions{})
		}
	}
	f.checkLive()
}
