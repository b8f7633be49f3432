package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"coffer/hw"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

var algorithms = []Algorithm{AES256GCM, ChaCha20Poly1305, AES256CBCHMACSHA512}

var probe = sync.OnceValues(func() (*hw.Engine, error) { return hw.Probe(hw.Options{SkipBench: true}) })

func engine(t testing.TB) *hw.Engine {
	t.Helper()
	e, err := probe()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// engines has one engine for each path of an AEAD that works here, by the path's name. Which of them seals is decided by speed, so
// each is tested under its user.
func engines(t *testing.T) map[string]*hw.Engine {
	t.Helper()
	es := map[string]*hw.Engine{}
	for _, p := range engine(t).Report().Paths {
		if _, aead := ByPrimitive(p.Primitive); !aead || p.SelfTest != "pass" {
			continue
		}
		e, err := hw.Probe(hw.Options{SkipBench: true, Pin: map[hw.Primitive]string{p.Primitive: p.Path}})
		if err != nil {
			t.Fatal(err)
		}
		es[string(p.Primitive)+" "+p.Path] = e
	}
	return es
}

// recipe is the plaintext of the vectors: byte i is (7 i + i/251) mod 256.
func recipe(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(7*i + i/251)
	}
	return p
}

func params(a Algorithm) Params {
	p := Params{Algorithm: a, DataKey: new([32]byte)}
	for i := range p.DataKey {
		p.DataKey[i] = byte(i)
	}
	for i := range 16 {
		p.Array[i], p.DataID[i] = byte(0xa0+i), byte(0xd0+i)
	}
	return p
}

func newStream(t testing.TB, p Params) *Stream {
	t.Helper()
	return newStreamOn(t, engine(t), p)
}

func newStreamOn(t testing.TB, e *hw.Engine, p Params) *Stream {
	t.Helper()
	s, err := NewStream(e, p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sealAll seals a whole stream, each segment in a slot of its own.
func sealAll(t testing.TB, s *Stream, a Algorithm, plain []byte) []byte {
	t.Helper()
	var out []byte
	size := int64(len(plain))
	for i := range a.Segments(size) {
		n, sealed := a.SegmentLens(size, i)
		slot := make([]byte, SegmentSize)
		got, err := s.Seal(slot, uint64(i), i == a.Segments(size)-1, plain[:n])
		if err != nil || got != sealed {
			t.Fatalf("Seal(%d) = %d, %v; want %d", i, got, err, sealed)
		}
		out, plain = append(out, slot[:got]...), plain[n:]
	}
	return out
}

func openAll(s *Stream, sealed []byte) ([]byte, error) {
	var out []byte
	buf := make([]byte, SegmentSize)
	for i := uint64(0); len(sealed) > 0; i++ {
		n := min(len(sealed), SegmentSize)
		p, err := s.Open(buf, i, n == len(sealed), sealed[:n])
		if err != nil {
			return out, err
		}
		out, sealed = append(out, p...), sealed[n:]
	}
	return out, nil
}

func sizes(a Algorithm) []int {
	p := a.PlainSize()
	return []int{0, 1, 15, 16, 17, 4096, p - 1, p, p + 1, 2*p - 1, 2 * p, 2*p + 1, 5*p + 12345}
}

func TestRoundTrip(t *testing.T) {
	for _, a := range algorithms {
		for _, n := range sizes(a) {
			plain := recipe(n)
			s := newStream(t, params(a))
			sealed := sealAll(t, s, a, plain)
			if int64(len(sealed)) != a.SealedSize(int64(n)) {
				t.Errorf("%d: SealedSize(%d) = %d, sealed %d", a, n, a.SealedSize(int64(n)), len(sealed))
			}
			got, err := openAll(newStream(t, params(a)), sealed)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d: open %d bytes: %v", a, n, err)
			}
		}
	}
}

func TestFullSegmentFillsSlot(t *testing.T) {
	for _, a := range algorithms {
		if got := a.sealedLen(a.PlainSize()); got != SegmentSize {
			t.Errorf("%d: full segment seals to %d", a, got)
		}
	}
	if got := AES256GCM.PlainSize(); got != 65520 {
		t.Errorf("GCM PlainSize = %d", got)
	}
}

func TestNonceLayout(t *testing.T) {
	var s Stream
	for _, i := range []uint64{0, 1, 255, 256, 65535, 1<<32 - 1, 1 << 32, 1<<40 + 77, 1<<64 - 1} {
		for _, final := range []bool{false, true} {
			s.setNonce(i, final)
			if s.nonce[0] != 0 || s.nonce[5] != 0 || s.nonce[10] != 0 {
				t.Errorf("segment %d: nonce %x changes bytes 0, 5 or 10", i, s.nonce)
			}
		}
	}
	s.setNonce(0x0102030405060708, true)
	if got := hex.EncodeToString(s.nonce[:]); got != "000102030400050607080001" {
		t.Errorf("nonce = %s", got)
	}
}

// vector is a known answer. Sealed is given in full when short; with CBC it is one of many possible, as the IV is random.
type vector struct {
	Algorithm Algorithm `json:"algorithm"`
	DataKey   string    `json:"data_key"`
	DataID    string    `json:"data_id"`
	ArrayID   string    `json:"array_id"`
	PlainLen  int       `json:"plain_len"` // byte i of the plaintext is (7 i + i/251) mod 256
	SealedLen int       `json:"sealed_len"`
	SHA256    string    `json:"sealed_sha256,omitempty"`
	Sealed    string    `json:"sealed,omitempty"`
}

func (v vector) params(t *testing.T) Params {
	p := Params{Algorithm: v.Algorithm, DataKey: new([32]byte)}
	for _, f := range []struct {
		to   []byte
		from string
	}{{p.DataKey[:], v.DataKey}, {p.DataID[:], v.DataID}, {p.Array[:], v.ArrayID}} {
		b, err := hex.DecodeString(f.from)
		if err != nil || len(b) != len(f.to) {
			t.Fatalf("bad vector field %q", f.from)
		}
		copy(f.to, b)
	}
	return p
}

func makeVectors(t *testing.T) []vector {
	var vs []vector
	for _, a := range algorithms {
		for _, n := range []int{1, 100, 65520, 65521, 131040, 200000} {
			p := params(a)
			if a == AES256CBCHMACSHA512 && n > 100 {
				continue
			}
			sealed := sealAll(t, newStream(t, p), a, recipe(n))
			v := vector{Algorithm: a, DataKey: hex.EncodeToString(p.DataKey[:]), DataID: hex.EncodeToString(p.DataID[:]),
				ArrayID: hex.EncodeToString(p.Array[:]), PlainLen: n, SealedLen: len(sealed)}
			sum := sha256.Sum256(sealed)
			v.SHA256 = hex.EncodeToString(sum[:])
			if n <= 100 {
				v.Sealed = hex.EncodeToString(sealed)
			}
			vs = append(vs, v)
		}
	}
	return vs
}

func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	if *update {
		b, err := json.MarshalIndent(makeVectors(t), "", "  ")
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
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	for path, e := range engines(t) {
		for _, v := range vs {
			t.Run(fmt.Sprintf("%s/%d/%d", path, v.Algorithm, v.PlainLen), func(t *testing.T) { testVector(t, e, v) })
		}
	}
}

func testVector(t *testing.T, e *hw.Engine, v vector) {
	plain := recipe(v.PlainLen)
	sealed := sealAll(t, newStreamOn(t, e, v.params(t)), v.Algorithm, plain)
	if v.Algorithm != AES256CBCHMACSHA512 {
		sum := sha256.Sum256(sealed)
		if got := hex.EncodeToString(sum[:]); got != v.SHA256 {
			t.Errorf("sealed hash %s, want %s", got, v.SHA256)
		}
	}
	if v.Sealed != "" {
		var err error
		if sealed, err = hex.DecodeString(v.Sealed); err != nil || len(sealed) != v.SealedLen {
			t.Fatalf("bad vector: %v", err)
		}
	}
	got, err := openAll(newStreamOn(t, e, v.params(t)), sealed)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("open: %v", err)
	}
}

// TestForgeries takes a good stream apart in every way a disk or an adversary could, and expects each to be refused.
func TestForgeries(t *testing.T) {
	for _, a := range algorithms {
		p := a.PlainSize()
		plain := recipe(3*p + 100)
		sealed := sealAll(t, newStream(t, params(a)), a, plain)
		seg := func(i int) []byte { return sealed[i*SegmentSize : min(len(sealed), (i+1)*SegmentSize)] }
		s := newStream(t, params(a))
		buf := make([]byte, SegmentSize)
		refuse := func(what string, s *Stream, i uint64, final bool, b []byte) {
			t.Helper()
			clear(buf)
			if _, err := s.Open(buf, i, final, b); !errors.Is(err, ErrOpen) {
				t.Errorf("%d: %s: err = %v", a, what, err)
			}
		}
		refuse("truncated stream", s, 2, true, seg(2))
		refuse("extended stream", s, 3, false, seg(3))
		refuse("reordered", s, 1, false, seg(2))
		refuse("final at another index", s, 4, true, seg(3))
		refuse("counter high word", s, 1<<32, false, seg(0))
		refuse("cut segment", s, 3, true, seg(3)[:len(seg(3))-16])
		refuse("empty", s, 3, true, nil)
		refuse("tag only", s, 3, true, seg(3)[:16])
		refuse("too long", s, 0, true, make([]byte, SegmentSize+1))

		other := func(change func(*Params)) *Stream {
			q := params(a)
			change(&q)
			return newStream(t, q)
		}
		refuse("spliced from another stream", other(func(q *Params) { q.DataID[3] ^= 1 }), 0, false, seg(0))
		refuse("spliced from another array", other(func(q *Params) { q.Array[3] ^= 1 }), 0, false, seg(0))
		refuse("another key", other(func(q *Params) { q.DataKey[3] ^= 1 }), 0, false, seg(0))
		for _, b := range algorithms {
			if b != a {
				refuse("another algorithm", other(func(q *Params) { q.Algorithm = b }), 3, true, seg(3))
			}
		}
		for range 50 {
			bad := bytes.Clone(seg(3))
			bad[rand.IntN(len(bad))] ^= 1 << rand.IntN(8)
			refuse("flipped bit", s, 3, true, bad)
		}
	}
}

func TestUnknownAlgorithm(t *testing.T) {
	for _, a := range []Algorithm{0, 4, 255} {
		if a.Valid() {
			continue // 255 is the null cipher of benchmark builds
		}
		p := params(AES256GCM)
		p.Algorithm = a
		if _, err := NewStream(engine(t), p); err == nil {
			t.Errorf("algorithm %d accepted", a)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for _, a := range algorithms[:2] {
		s := newStream(t, params(a))
		plain, slot, buf := recipe(a.PlainSize()), make([]byte, SegmentSize), make([]byte, SegmentSize)
		i := uint64(0)
		n := testing.AllocsPerRun(20, func() {
			if _, err := s.Seal(slot, i, false, plain); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(buf, i, false, slot); err != nil {
				t.Fatal(err)
			}
			i++
		})
		if n != 0 {
			t.Errorf("%d: %v allocations per segment", a, n)
		}
	}
}

// FuzzOpen holds that Open accepts exactly what Seal made.
func FuzzOpen(f *testing.F) {
	for _, a := range algorithms {
		p := params(a)
		s := newStream(f, p)
		f.Add(byte(a), uint64(0), true, sealAll(f, s, a, recipe(100)))
		f.Add(byte(a), uint64(1), false, make([]byte, SegmentSize))
	}
	f.Add(byte(3), uint64(0), true, make([]byte, 64))
	e := engine(f)
	f.Fuzz(func(t *testing.T, alg byte, i uint64, final bool, sealed []byte) {
		p := params(Algorithm(alg))
		s, err := NewStream(e, p)
		if err != nil || p.Algorithm.Primitive() == "null" {
			return
		}
		buf := make([]byte, max(len(sealed), 1))
		plain, err := s.Open(buf, i, final, sealed)
		if err != nil {
			return
		}
		if p.Algorithm == AES256CBCHMACSHA512 {
			return // another IV is as good; the tag has been checked
		}
		again := make([]byte, SegmentSize)
		n, err := s.Seal(again, i, final, plain)
		if err != nil || !bytes.Equal(again[:n], sealed) {
			t.Errorf("opened a segment that was not sealed")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, a := range algorithms {
		b.Run(string(a.Primitive()), func(b *testing.B) {
			s := newStream(b, params(a))
			plain, slot := recipe(a.PlainSize()), make([]byte, SegmentSize)
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				if _, err := s.Seal(slot, i, false, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, a := range algorithms {
		b.Run(string(a.Primitive()), func(b *testing.B) {
			s := newStream(b, params(a))
			slot, buf := make([]byte, SegmentSize), make([]byte, SegmentSize)
			if _, err := s.Seal(slot, 7, false, recipe(a.PlainSize())); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(a.PlainSize()))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Open(buf, 7, false, slot); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpenCold opens segments that lie in no cache near the processor, as after a read from disk.
func BenchmarkOpenCold(b *testing.B) {
	for _, a := range algorithms {
		b.Run(string(a.Primitive()), func(b *testing.B) {
			const slots = 1024
			s := newStream(b, params(a))
			mem, buf := make([]byte, slots*SegmentSize), make([]byte, SegmentSize)
			if _, err := s.Seal(mem, 7, false, recipe(a.PlainSize())); err != nil {
				b.Fatal(err)
			}
			for i := 1; i < slots; i++ {
				copy(mem[i*SegmentSize:], mem[:SegmentSize])
			}
			b.SetBytes(int64(a.PlainSize()))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := s.Open(buf, 7, false, mem[i%slots*SegmentSize:][:SegmentSize]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSealCold seals into slots that lie in no cache near the processor, as those of a stripe do.
func BenchmarkSealCold(b *testing.B) {
	for _, a := range algorithms {
		b.Run(string(a.Primitive()), func(b *testing.B) {
			const slots = 1024
			s := newStream(b, params(a))
			mem, plain := make([]byte, slots*SegmentSize), recipe(a.PlainSize())
			b.SetBytes(int64(a.PlainSize()))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := s.Seal(mem[i%slots*SegmentSize:][:SegmentSize], uint64(i), false, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
