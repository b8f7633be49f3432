package object

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coffer/disk"
	"coffer/kms"
)

var update = flag.Bool("update", false, "rewrite testdata/records.json")

// sampleRecords is one of each kind and form, with fixed values.
func sampleRecords() map[string]interface{ appendTo([]byte) []byte } {
	id := func(b byte) id16 { return id16{b, 15: b} }
	sum := Checksum{Algo: AlgoCRC64NVME, Sum: []byte{1, 2, 3, 4, 5, 6, 7, 8}}
	sse := sseRecord{mode: ModeS3, epoch: 3, wrapped: bytes.Repeat([]byte{0xee}, 112)}
	meta := Meta{ContentType: "text/plain", CacheControl: "no-cache", StorageClass: "STANDARD",
		User: map[string]string{"a": "1", "b": ""}, Tags: map[string]string{"t": "v"}}
	stripes := []disk.Stripe{{Band: 1<<32 | 7, Off: 300, Data: 4, Segments: 64}, {Band: 1<<32 | 7, Off: 900, Data: 2, Segments: 3}}
	bulk := stream{alg: 1, id: id(5), size: 66*65520 + 10, stripes: stripes}
	part := func(n int) partRecord {
		return partRecord{number: n, modified: 1700000000001, etag: etag{sum: id(6)}, checksum: sum, wrapped: []byte("wrapped"), stream: bulk}
	}
	claimed := func(p partRecord) partRecord {
		p.claimed = Checksum{Algo: AlgoCRC32, Sum: []byte{1, 2, 3, 4}}
		return p
	}
	obj := objectRecord{kind: kindObject, bucket: 0x0102030405060708, key: "dir/ké", version: id(1), modified: 1700000000000,
		size: 5, etag: etag{sum: id(2)}, checksum: sum, sse: sse, content: content{single: stream{alg: 1, id: id(3), size: 5}}, meta: meta}
	customer, large, multi, overflow := obj, obj, obj, obj
	customer.sse = sseRecord{mode: ModeCustomer, customerMD5: "bWQ1", wrapped: sse.wrapped}
	large.size, large.content = bulk.size, content{single: bulk}
	multi.kind, multi.size, multi.etag = kindComplete, 2*bulk.size, etag{id(2), 2}
	multi.content = content{parts: []partRecord{part(1), part(9)}}
	overflow.content = content{manifest: &manifest{epoch: 3, wrapped: sse.wrapped, stream: bulk, bands: []bandBytes{{7, 65536}, {9, 1}}}}
	return map[string]interface{ appendTo([]byte) []byte }{
		"object": &obj, "object customer key": &customer, "object in stripes": &large, "complete": &multi, "manifest": &overflow,
		"tombstone": &keyRecord{kind: kindTombstone, bucket: 8, key: "k", at: 1700000000000},
		"abort":     &keyRecord{kind: kindAbort, bucket: 8, key: "k", version: id(4), at: 1700000000000},
		"upload": &uploadRecord{bucket: 8, key: "k", id: id(4), at: 1700000000000, algo: AlgoSHA256, composite: true, sse: sse,
			meta: meta},
		"part":              &uploadPart{bucket: 8, key: "k", upload: id(4), part: part(7)},
		"part with a claim": &uploadPart{bucket: 8, key: "k", upload: id(4), part: claimed(part(7))},
		"bucket": &bucketRecord{id: 8, name: "photos", created: 1700000000000, owner: "AKIA", region: "eu",
			encryption: &BucketEncryption{Mode: ModeKMS, KMSKeyID: "key", BucketKey: true},
			keys:       []kms.BucketKey{{Epoch: 1, Wrapped: []byte("w1")}, {Epoch: 2, Wrapped: []byte("w2")}}},
		"bucket delete": &bucketDelete{id: 8, name: "photos", at: 1700000000000},
		"config":        &configRecord{name: "root", value: []byte("v")},
		"config delete": &configRecord{name: "root"},
	}
}

// decodeAny decodes a body of any kind.
func decodeAny(body []byte) (interface{ appendTo([]byte) []byte }, error) {
	k, err := kindOf(body)
	if err != nil {
		return nil, err
	}
	switch k {
	case kindObject, kindComplete:
		return decodeObject(body, depthAll)
	case kindTombstone, kindAbort:
		r, err := decodeKey(body)
		return &r, err
	case kindUpload:
		return decodeUpload(body)
	case kindPart:
		return decodeUploadPart(body)
	case kindBucket:
		return decodeBucket(body)
	case kindBucketDelete:
		r, err := decodeBucketDelete(body)
		return &r, err
	}
	r, err := decodeConfig(body)
	return &r, err
}

// exportAll lets cmp look into this package's records.
var exportAll = cmp.Exporter(func(reflect.Type) bool { return true })

func TestRecordRoundTrip(t *testing.T) {
	for name, r := range sampleRecords() {
		body := r.appendTo(nil)
		got, err := decodeAny(body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again := got.appendTo(nil); !bytes.Equal(again, body) {
			t.Errorf("%s: encodes to other bytes:\n%x\n%x", name, again, body)
		}
		if d := cmp.Diff(r, got, exportAll); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
		for n := range len(body) {
			if name == "part with a claim" && n == len(sampleRecords()["part"].appendTo(nil)) {
				continue // that is all of a part without one
			}
			if _, err := decodeAny(body[:n]); !errors.Is(err, disk.ErrCorrupt) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(body), err)
			}
		}
		if _, err := decodeAny(append(body, 0)); !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s with a byte behind it: %v", name, err)
		}
	}
}

// TestRecordVectors pins the wire form, which other releases and implementations read.
func TestRecordVectors(t *testing.T) {
	const file = "testdata/records.json"
	have := map[string]string{}
	for name, r := range sampleRecords() {
		have[name] = hex.EncodeToString(r.appendTo(nil))
	}
	if *update {
		b, err := json.MarshalIndent(have, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]string
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Error(d)
	}
}

func TestLaterVersionIsRefused(t *testing.T) {
	for _, b := range [][]byte{{bodyVersion + 1, 3, 0}, {bodyVersion, byte(kindMax), 0}} {
		if _, err := decodeAny(b); !errors.Is(err, errVersion) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// TestHostileRecords are bodies that claim what they must not.
func TestHostileRecords(t *testing.T) {
	mutate := func(change func(*objectRecord)) []byte {
		r := *sampleRecords()["complete"].(*objectRecord)
		r.content.parts = append([]partRecord(nil), r.content.parts...)
		change(&r)
		return r.appendTo(nil)
	}
	for name, body := range map[string][]byte{
		"sizes do not add up":   mutate(func(r *objectRecord) { r.size++ }),
		"parts out of order":    mutate(func(r *objectRecord) { r.content.parts[1].number = 1 }),
		"part without stripes":  mutate(func(r *objectRecord) { r.content.parts[0].stripes = nil }),
		"unknown algorithm":     mutate(func(r *objectRecord) { r.content.parts[0].alg = 77 }),
		"segments do not match": mutate(func(r *objectRecord) { r.content.parts[0].stripes = r.content.parts[0].stripes[:1] }),
		"no data cells":         mutate(func(r *objectRecord) { r.content.parts[0].stripes = []disk.Stripe{{Segments: 67}} }),
		"unknown mode":          mutate(func(r *objectRecord) { r.sse.mode = 9 }),
		"unknown checksum":      mutate(func(r *objectRecord) { r.checksum.Algo = 9 }),
		"huge count":            append(appendHead(nil, kindConfig), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f),
		"padded varint":         append(appendHead(nil, kindConfig), 0x81, 0x00, 'x', 0, 0),
	} {
		if _, err := decodeAny(body); !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzRecord holds that whatever decodes is what the encoder writes for it, byte for byte.
func FuzzRecord(f *testing.F) {
	for _, r := range sampleRecords() {
		f.Add(r.appendTo(nil))
	}
	f.Add([]byte{bodyVersion, byte(kindObject)})
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeAny(body)
		if err != nil {
			return
		}
		if again := r.appendTo(nil); !bytes.Equal(again, body) {
			t.Errorf("%x\nencodes to\n%x", body, again)
		}
		if o, ok := r.(*objectRecord); ok {
			if _, err := decodeObject(body, depthList); err != nil {
				t.Errorf("list depth: %v", err)
			}
			o.content.bands()
			o.object("b")
		}
	})
}

// FuzzIndexValue holds that splitting survives any bytes.
func FuzzIndexValue(f *testing.F) {
	p := place{seq: 300, band: 1<<32 | 5, data: disk.Loc{Band: 7, Off: 9, Role: 1, Start: 128, Len: 4112}}
	for _, r := range sampleRecords() {
		f.Add(append(p.appendTo(nil), r.appendTo(nil)...))
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		if p, body, err := splitValue(v); err == nil {
			if c, err := contentOf(body); err == nil {
				p.forBands(body, c, func(uint64, int64) {})
			}
		}
		if pos, err := decodePosition(v); err == nil && !bytes.Equal(appendPosition(nil, &pos), v) {
			t.Error("position")
		}
	})
}

// FuzzUploadID: what is taken for an id is its own text form.
func FuzzUploadID(f *testing.F) {
	f.Add(uploadID(newID()))
	f.Add("")
	f.Add("AAAAAAAAAAAAAAAAAAAAAB")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := parseUploadID(s); ok && uploadID(id) != s {
			t.Fatalf("%q is taken for %q", s, uploadID(id))
		}
	})
}
