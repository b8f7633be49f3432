package kms

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"testing"
)

func testSecret(t testing.TB) *Secret {
	a := &Arena{}
	t.Cleanup(a.Close)
	s, err := a.Random(KeySize)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWrapDataKey(t *testing.T) {
	kek, other := testSecret(t), testSecret(t)
	key := [KeySize]byte{1, 2, 3, 4}
	aad := []byte("bucket name version")
	wrapped := WrapDataKey(kek, &key, aad)
	if len(wrapped) != WrappedSize || WrappedSize != 112 {
		t.Fatalf("%d bytes", len(wrapped))
	}
	if bytes.Equal(wrapped, WrapDataKey(kek, &key, aad)) {
		t.Error("two wraps are equal")
	}
	if got, err := UnwrapDataKey(kek, wrapped, aad); err != nil || got != key {
		t.Fatalf("%x, %v", got, err)
	}
	bad := func(name string, kek *Secret, wrapped, aad []byte) {
		t.Helper()
		got, err := UnwrapDataKey(kek, wrapped, aad)
		if !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrWrongKey) || got != [KeySize]byte{} {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	bad("another bucket key", other, wrapped, aad)
	bad("another name", kek, wrapped, []byte("bucket eman version"))
	bad("no aad", kek, wrapped, nil)
	for i := range wrapped {
		for bit := range 8 {
			p := bytes.Clone(wrapped)
			p[i] ^= 1 << bit
			bad("flipped bit", kek, p, aad)
		}
	}
	for n := range 2 * WrappedSize {
		if n != WrappedSize {
			bad("length", kek, append(bytes.Clone(wrapped), make([]byte, WrappedSize)...)[:n], aad)
		}
	}
}

func TestWrapCustomer(t *testing.T) {
	client, other, key := [KeySize]byte{1}, [KeySize]byte{2}, [KeySize]byte{3}
	aad := []byte("bucket name version")
	wrapped := WrapCustomer(&client, &key, aad)
	if len(wrapped) != WrappedSize {
		t.Fatalf("%d bytes", len(wrapped))
	}
	if got, err := UnwrapCustomer(&client, wrapped, aad); err != nil || got != key {
		t.Fatalf("%x, %v", got, err)
	}
	if _, err := UnwrapCustomer(&other, wrapped, aad); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another client key: %v", err)
	}
	if _, err := UnwrapCustomer(&client, wrapped, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another name: %v", err)
	}
	for i := range wrapped {
		p := bytes.Clone(wrapped)
		p[i] ^= 0x40
		want := ErrWrongKey // salt or verifier
		if i >= saltSize && i < WrappedSize-commitSize {
			want = ErrCorrupt
		}
		if _, err := UnwrapCustomer(&client, p, aad); !errors.Is(err, want) {
			t.Errorf("byte %d: %v, want %v", i, err, want)
		}
	}
	// A bucket key with the bits of a client key opens nothing of the client's, nor the other way round.
	a := &Arena{}
	defer a.Close()
	kek := mustImport(t, a, bytes.Clone(client[:]))
	if _, err := UnwrapDataKey(kek, wrapped, aad); !errors.Is(err, ErrCorrupt) {
		t.Errorf("customer's wrap as the bucket's: %v", err)
	}
	if _, err := UnwrapCustomer(&client, WrapDataKey(kek, &key, aad), aad); !errors.Is(err, ErrWrongKey) {
		t.Errorf("bucket's wrap as the customer's: %v", err)
	}
}

// TestCommitmentComesFirst: a box whose commitment is right and whose tag is wrong fails as corrupt, one whose commitment is wrong
// as sealed with another key, and the commitment does not depend on the sealed bytes.
func TestCommitmentComesFirst(t *testing.T) {
	kek := bytes.Repeat([]byte{5}, KeySize)
	box := appendBox(nil, &wrapLabels, kek, []byte("p"), nil)
	box[saltSize] ^= 1
	if _, err := openBox(nil, &wrapLabels, kek, box, nil); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	box[len(box)-1] ^= 1
	if _, err := openBox(nil, &wrapLabels, kek, box, nil); !errors.Is(err, ErrWrongKey) {
		t.Error(err)
	}
}

func TestBucketKeys(t *testing.T) {
	k := testKeyring(t)
	b, err := k.NewBucketKey(7)
	if err != nil {
		t.Fatal(err)
	}
	first, err := k.OpenBucketKey(7, b)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := k.OpenBucketKey(7, b); err != nil || again != first {
		t.Errorf("not cached: %v", err)
	}
	if _, err := k.OpenBucketKey(8, b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("as another bucket's: %v", err)
	}
	if _, err := k.OpenBucketKey(7, BucketKey{2, b.Wrapped}); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("of a missing epoch: %v", err)
	}
	if _, err := k.AddEpoch(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.OpenBucketKey(7, BucketKey{2, b.Wrapped}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("as another epoch's: %v", err)
	}
	for i := range b.Wrapped {
		p := bytes.Clone(b.Wrapped)
		p[i] ^= 1
		if _, err := k.OpenBucketKey(7, BucketKey{1, p}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
	if _, err := k.OpenBucketKey(7, BucketKey{1, b.Wrapped[1:]}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("short: %v", err)
	}
	enc, err := b.AppendBinary(nil)
	if err != nil || len(enc) != BucketKeySize {
		t.Fatalf("%d bytes, %v", len(enc), err)
	}
	got, err := ParseBucketKey(enc)
	if err != nil || got.Epoch != b.Epoch || !bytes.Equal(got.Wrapped, b.Wrapped) {
		t.Errorf("decoded %+v, %v", got, err)
	}
	if _, err := (BucketKey{}).AppendBinary(nil); err == nil {
		t.Error("empty bucket key encoded")
	}
}

// TestBucketCacheIsBounded fills the cache beyond its bound; a key in use outlives its place in the cache.
func TestBucketCacheIsBounded(t *testing.T) {
	k := testKeyring(t)
	held := testBucketSecret(t, k, 1)
	var before []byte
	held.Use(func(p []byte) { before = bytes.Clone(p) })
	for i := range maxCachedBuckets + 100 {
		ref := bucketRef{bucket: uint64(i) + 2}
		s, err := k.arena.Random(KeySize)
		if err != nil {
			t.Fatal(err)
		}
		k.buckets.put(&ref, s)
	}
	if n := len(k.buckets.m); n != maxCachedBuckets {
		t.Errorf("%d keys cached", n)
	}
	for ref := range k.buckets.m {
		delete(k.buckets.m, ref)
	}
	for range 3 {
		runtime.GC()
	}
	held.Use(func(p []byte) {
		if !bytes.Equal(p, before) {
			t.Error("a key in use was wiped")
		}
	})
}

func testBucketSecret(t testing.TB, k *Keyring, id uint64) *Secret {
	t.Helper()
	b, err := k.NewBucketKey(id)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.OpenBucketKey(id, b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealSecret(t *testing.T) {
	file := testFileSlot(t)
	k := testKeyring(t, file)
	sealed, err := k.SealSecret("credentials", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := k.OpenSecret("credentials", sealed); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := k.OpenSecret("credential", sealed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another label: %v", err)
	}
	for i := range sealed {
		p := bytes.Clone(sealed)
		p[i] ^= 1
		_, err := k.OpenSecret("credentials", p)
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrNoEpoch) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
		if _, err := k.OpenSecret("credentials", sealed[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := k.SealSecret("x", make([]byte, MaxSecretLen+1)); !errors.Is(err, ErrLimit) {
		t.Errorf("long secret: %v", err)
	}
	if _, err := k.SealSecret(strings.Repeat("x", MaxLabelLen+1), nil); !errors.Is(err, ErrLimit) {
		t.Errorf("long label: %v", err)
	}
	big, err := k.SealSecret("x", make([]byte, MaxSecretLen))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := k.OpenSecret("x", big); err != nil || len(p) != MaxSecretLen {
		t.Errorf("largest secret: %d bytes, %v", len(p), err)
	}
	other, err := Create(t.Context(), [16]byte{1}, file)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.OpenSecret("credentials", sealed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("in another array: %v", err)
	}
}

func FuzzParseBucketKey(f *testing.F) {
	b := BucketKey{3, make([]byte, WrappedSize)}
	enc, err := b.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(enc)
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := ParseBucketKey(p)
		if err != nil {
			return
		}
		if again, err := b.AppendBinary(nil); err != nil || !bytes.Equal(again, p) {
			t.Fatal("decoding is not the inverse of encoding", err)
		}
	})
}

// FuzzOpenWrapped: bytes that were not wrapped under a key never open under it.
func FuzzOpenWrapped(f *testing.F) {
	k := testKeyring(f)
	kek := testBucketSecret(f, k, 1)
	client := [KeySize]byte{1}
	f.Add(WrapCustomer(&client, &[KeySize]byte{}, nil))
	f.Add(make([]byte, WrappedSize))
	f.Add(append([]byte{sealedVersion, 0, 0, 0, 1}, make([]byte, boxOverhead)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, err := UnwrapDataKey(kek, p, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("data key: %v", err)
		}
		if _, err := k.OpenBucketKey(1, BucketKey{1, p}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bucket key: %v", err)
		}
		if _, err := k.OpenSecret("x", p); err == nil {
			t.Error("secret opened")
		}
		if _, err := UnwrapCustomer(&client, p, []byte("not what the seeds have")); err == nil {
			t.Error("customer key opened")
		}
	})
}

// TestAllocations holds the path of small objects to what the standard library's cipher costs: the block and the GCM around it.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	k := testKeyring(t)
	b, err := k.NewBucketKey(1)
	if err != nil {
		t.Fatal(err)
	}
	kek, err := k.OpenBucketKey(1, b)
	if err != nil {
		t.Fatal(err)
	}
	key, aad := [KeySize]byte{}, make([]byte, 100)
	wrapped := WrapDataKey(kek, &key, aad)
	customer := WrapCustomer(&key, &key, aad)
	var out [KeySize]byte
	for _, c := range []struct {
		name string
		max  float64
		f    func()
	}{
		{"derive", 0, func() { derive(&out, key[:], aad, "label") }},
		{"WrapDataKey", 3, func() { WrapDataKey(kek, &key, aad) }},
		{"UnwrapDataKey", 3, func() { UnwrapDataKey(kek, wrapped, aad) }},
		{"WrapCustomer", 3, func() { WrapCustomer(&key, &key, aad) }},
		{"UnwrapCustomer", 3, func() { UnwrapCustomer(&key, customer, aad) }},
		{"OpenBucketKey", 0, func() { k.OpenBucketKey(1, b) }},
		{"RecordKey", 0, func() { k.RecordKey(1) }},
	} {
		if n := testing.AllocsPerRun(100, c.f); n > c.max {
			t.Errorf("%s allocates %v times, want %v", c.name, n, c.max)
		}
	}
}

func BenchmarkWrapDataKey(b *testing.B) {
	kek, key, aad := testSecret(b), [KeySize]byte{}, make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		WrapDataKey(kek, &key, aad)
	}
}

func BenchmarkUnwrapDataKey(b *testing.B) {
	kek, key, aad := testSecret(b), [KeySize]byte{}, make([]byte, 100)
	wrapped := WrapDataKey(kek, &key, aad)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := UnwrapDataKey(kek, wrapped, aad); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnwrapDataKeyParallel(b *testing.B) {
	kek, key, aad := testSecret(b), [KeySize]byte{}, make([]byte, 100)
	wrapped := WrapDataKey(kek, &key, aad)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := UnwrapDataKey(kek, wrapped, aad); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkOpenBucketKey(b *testing.B) {
	k := testKeyring(b)
	key, err := k.NewBucketKey(1)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.OpenBucketKey(1, key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDerive(b *testing.B) {
	var out, key [KeySize]byte
	b.ReportAllocs()
	for b.Loop() {
		derive(&out, key[:], testArray[:], labelRecord)
	}
}
