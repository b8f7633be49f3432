package index

import (
	"bytes"
	"cmp"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// randKey draws short keys over few bytes, so that prefixes, 0x00, 0x01 and 0xff meet often.
func randKey(rng *rand.Rand, maxLen int) string {
	const alphabet = "\x00\x01ab/\xfe\xff"
	var sb strings.Builder
	for range rng.IntN(maxLen + 1) {
		sb.WriteByte(alphabet[rng.IntN(len(alphabet))])
	}
	return sb.String()
}

func TestKeyRoundTripAndOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20_000 {
		a, b := randKey(rng, 6), randKey(rng, 6)
		x, y := rng.Uint64N(3), rng.Uint64N(3)
		idA, idB := UploadID{byte(x)}, UploadID{byte(y)}
		order := cmp.Compare(a, b)
		if got := bytes.Compare(ObjectKey(nil, 7, a), ObjectKey(nil, 7, b)); got != order {
			t.Fatalf("objects %q %q: order %d", a, b, got)
		}
		if got := bytes.Compare(UploadKey(nil, 7, a, idA), UploadKey(nil, 7, b, idB)); got != cmp.Or(order, cmp.Compare(x, y)) {
			t.Fatalf("uploads %q %q: order %d", a, b, got)
		}
		if got := bytes.Compare(VersionKey(nil, 7, a, x), VersionKey(nil, 7, b, y)); got != cmp.Or(order, cmp.Compare(y, x)) {
			t.Fatalf("versions %q %q: order %d", a, b, got)
		}
		if got := bytes.HasPrefix(escape(nil, a), escape(nil, b)); got != strings.HasPrefix(a, b) {
			t.Fatalf("escaped %q has prefix %q: %v", a, b, got)
		}
		if bucket, key, err := ParseObjectKey(ObjectKey(nil, x, a)); bucket != x || key != a || err != nil {
			t.Fatalf("object %q: %d %q %v", a, bucket, key, err)
		}
		if bucket, key, id, err := ParseUploadKey(UploadKey(nil, x, a, idB)); bucket != x || key != a || id != idB || err != nil {
			t.Fatalf("upload %q: %d %q %v", a, bucket, key, err)
		}
		if bucket, key, seq, err := ParseVersionKey(VersionKey(nil, x, a, y)); bucket != x || key != a || seq != y || err != nil {
			t.Fatalf("version %q: %d %q %d %v", a, bucket, key, seq, err)
		}
		if id, part, err := ParsePartKey(PartKey(nil, idA, uint16(y))); id != idA || part != uint16(y) || err != nil {
			t.Fatalf("part: %v", err)
		}
		if name, err := ParseBucketKey(BucketKey(nil, a)); name != a || err != nil {
			t.Fatalf("bucket %q: %v", a, err)
		}
		if name, err := ParseConfigKey(ConfigKey(nil, a)); name != a || err != nil {
			t.Fatalf("config %q: %v", a, err)
		}
		if s := Successor([]byte(a)); s != nil && (string(s) <= a || strings.HasPrefix(string(s), a)) ||
			s == nil && strings.Count(a, "\xff") != len(a) || s != nil && b > a && !strings.HasPrefix(b, a) && b < string(s) {
			t.Fatalf("successor of %q is %q", a, s)
		}
	}
}

func TestRanges(t *testing.T) {
	id := UploadID{0xff, 0xff}
	for _, c := range []struct {
		name         string
		in           [][]byte
		out          [][]byte
		lower, upper []byte
	}{
		{name: "buckets", in: [][]byte{BucketKey(nil, ""), BucketKey(nil, "\xff\xff")}, out: [][]byte{ConfigKey(nil, ""), liveKey(nil, 0)}},
		{name: "config", in: [][]byte{ConfigKey(nil, ""), ConfigKey(nil, "\xff")}, out: [][]byte{BucketKey(nil, "\xff"), positionKey}},
		{name: "objects", in: [][]byte{ObjectKey(nil, 5, ""), ObjectKey(nil, 5, "\xff\xff")}, out: [][]byte{ObjectKey(nil, 4, "\xff"), ObjectKey(nil, 6, "")}},
		{name: "uploads", in: [][]byte{UploadKey(nil, 5, "", UploadID{}), UploadKey(nil, 5, "\xff", id)},
			out: [][]byte{UploadKey(nil, 4, "\xff", id), UploadKey(nil, 6, "", UploadID{})}},
		{name: "parts", in: [][]byte{PartKey(nil, id, 0), PartKey(nil, id, 0xffff)}, out: [][]byte{PartKey(nil, UploadID{0xff, 0xfe}, 0xffff), PartKey(nil, UploadID{0xff, 0xff, 1}, 0)}},
	} {
		switch c.name {
		case "buckets":
			c.lower, c.upper = BucketRange()
		case "config":
			c.lower, c.upper = ConfigRange()
		case "objects":
			c.lower, c.upper = ObjectRange(5)
		case "uploads":
			c.lower, c.upper = UploadRange(5)
		case "parts":
			c.lower, c.upper = PartRange(id)
		}
		within := func(k []byte) bool { return bytes.Compare(k, c.lower) >= 0 && bytes.Compare(k, c.upper) < 0 }
		for _, k := range c.in {
			if !within(k) {
				t.Errorf("%s: %q is outside", c.name, k)
			}
		}
		for _, k := range c.out {
			if within(k) {
				t.Errorf("%s: %q is inside", c.name, k)
			}
		}
	}
}

func FuzzKeys(f *testing.F) {
	for _, k := range [][]byte{BucketKey(nil, "bucket"), ConfigKey(nil, "root"), ObjectKey(nil, 1, "a\x00b"), UploadKey(nil, 1, "a\x00b", UploadID{1}),
		VersionKey(nil, 1, "a\x00", 2), PartKey(nil, UploadID{1}, 2), liveKey(nil, 3), []byte("u\x00\x00\x00\x00\x00\x00\x00\x01a\x00"), nil} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, k []byte) {
		var again []byte
		parsed := 0
		accept := func(err error, make func() []byte) {
			if err == nil {
				parsed++
				again = make()
			} else if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
		name, err := ParseBucketKey(k)
		accept(err, func() []byte { return BucketKey(nil, name) })
		config, err := ParseConfigKey(k)
		accept(err, func() []byte { return ConfigKey(nil, config) })
		bucket, key, err := ParseObjectKey(k)
		accept(err, func() []byte { return ObjectKey(nil, bucket, key) })
		ubucket, ukey, id, err := ParseUploadKey(k)
		accept(err, func() []byte { return UploadKey(nil, ubucket, ukey, id) })
		vbucket, vkey, seq, err := ParseVersionKey(k)
		accept(err, func() []byte { return VersionKey(nil, vbucket, vkey, seq) })
		pid, part, err := ParsePartKey(k)
		accept(err, func() []byte { return PartKey(nil, pid, part) })
		band, err := parseLiveKey(k)
		accept(err, func() []byte { return liveKey(nil, band) })
		if parsed > 1 || parsed == 1 && !bytes.Equal(again, k) {
			t.Fatalf("%q: %d readings, back to %q", k, parsed, again)
		}
	})
}
