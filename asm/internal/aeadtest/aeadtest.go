// Package aeadtest tests kernels of an AEAD against a reference, and measures them: lengths, alignments, overlaps, forgeries, memory
// that faults next to a message, published vectors. The packages beside it share it.
package aeadtest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// Kernel is an implementation under test.
type Kernel struct {
	Name string
	Skip string // why it cannot run here
	Slow bool   // a twin in Go: it is tested with fewer and shorter messages, and not measured
	New  func(key []byte) (cipher.AEAD, error)
}

// Suite is the kernels of a package.
type Suite struct {
	Package       string // prefix of panics
	KeySizes      []int  // in bytes
	NonceSize     int    // in bytes
	Overhead      int    // the most that Seal adds, in bytes
	TagSize       int    // in bytes
	BlockSize     int    // texts are padded to the next multiple of it, by at least a byte; 0: not
	ProvesFirst   bool   // an Open that fails leaves its output alone, where others clear it
	Group         int    // bytes that a kernel works on at a time
	Chunk         int    // bytes of a call
	ErrOpen       error
	Kernels       []Kernel
	Reference     func(key []byte) (cipher.AEAD, error)
	ReferenceName string
}

// sealed is how many bytes a text of n becomes.
func (s *Suite) sealed(n int) int {
	if s.BlockSize > 0 {
		n += s.BlockSize - n%s.BlockSize
	}
	return n + s.TagSize
}

// each runs f for all kernels that run here, and says which are skipped.
func (s *Suite) each(t *testing.T, f func(t *testing.T, k Kernel)) {
	t.Helper()
	for _, k := range s.Kernels {
		t.Run(k.Name, func(t *testing.T) {
			if k.Skip != "" {
				t.Skip(k.Skip)
			}
			f(t, k)
		})
	}
}

func (k Kernel) aead(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	a, err := k.New(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// reference is what answers must be equal to.
func (s *Suite) reference(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	return Kernel{New: s.Reference}.aead(t, key)
}

// key is of the i-th size, going round.
func (s *Suite) key(r Random, i int) []byte { return r.Read(s.KeySizes[i%len(s.KeySizes)]) }

// Random is a repeatable source.
type Random struct {
	*rand.Rand
	bytes *rand.ChaCha8
}

// NewRandom returns the source of that seed.
func NewRandom(seed byte) Random {
	c := rand.NewChaCha8([32]byte{seed})
	return Random{rand.New(c), c}
}

// Read returns n bytes.
func (r Random) Read(n int) []byte {
	p := make([]byte, n)
	r.bytes.Read(p)
	return p
}

// field is n bytes at some alignment, between bytes that nothing may change.
type field struct {
	whole []byte
	at, n int
}

const moat = 64

func (r Random) field(n int) field {
	return field{bytes.Repeat([]byte{0xa5}, n+3*moat), moat + r.IntN(moat), n}
}

// bytes has the field's capacity.
func (f field) bytes() []byte { return f.whole[f.at : f.at+f.n : f.at+f.n] }

func (f field) intact() bool {
	around := append(bytes.Clone(f.whole[:f.at]), f.whole[f.at+f.n:]...)
	return bytes.Equal(around, bytes.Repeat([]byte{0xa5}, 3*moat))
}

// copied is p in a field of cap(p) = n bytes.
func (r Random) copied(p []byte, n int) field {
	f := r.field(n)
	copy(f.bytes(), p)
	return f
}

// Message is sealed and opened.
type Message struct {
	Nonce, Plain, AAD, Sealed []byte
}

// Check seals and opens m with a, apart and in place.
func (m Message) Check(a cipher.AEAD, r Random) error {
	n := len(m.Plain)
	plain, aad := r.copied(m.Plain, n), r.copied(m.AAD, len(m.AAD))
	sealed := r.copied(m.Sealed, len(m.Sealed))
	for _, inPlace := range []bool{false, true} {
		in, out := plain, r.field(len(m.Sealed))
		if inPlace {
			in = r.copied(m.Plain, len(m.Sealed))
			out = in
		}
		got := a.Seal(out.bytes()[:0], m.Nonce, in.bytes()[:n], aad.bytes())
		if &got[0] != &out.bytes()[0] {
			return fmt.Errorf("seal, in place %v: another buffer", inPlace)
		}
		if err := Differ(got, m.Sealed); err != nil {
			return fmt.Errorf("seal, in place %v: %w", inPlace, err)
		}
		if !out.intact() {
			return fmt.Errorf("seal, in place %v: wrote beyond its output", inPlace)
		}

		in, out = sealed, r.field(n)
		if inPlace {
			in = r.copied(m.Sealed, len(m.Sealed))
			out = in
		}
		got, err := a.Open(out.bytes()[:0], m.Nonce, in.bytes(), aad.bytes())
		if err != nil {
			return fmt.Errorf("open, in place %v: %w", inPlace, err)
		}
		if err := Differ(got, m.Plain); err != nil {
			return fmt.Errorf("open, in place %v: %w", inPlace, err)
		}
		if !out.intact() || inPlace && !bytes.Equal(out.bytes()[n:], m.Sealed[n:]) {
			return fmt.Errorf("open, in place %v: wrote beyond its output", inPlace)
		}
	}
	if !bytes.Equal(plain.bytes(), m.Plain) || !bytes.Equal(aad.bytes(), m.AAD) || !bytes.Equal(sealed.bytes(), m.Sealed) {
		return errors.New("input changed")
	}
	return nil
}

// Differ says where got differs from want, nil if nowhere.
func Differ(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	return fmt.Errorf("differs at byte %d of %d", at, len(got))
}

// lengths are all up to and beyond several groups, and those around the sizes where calls are split. With -short, which the race
// detector needs, they are fewer.
func (s *Suite) lengths() (l []int) {
	step := 1
	if testing.Short() {
		step = 5
	}
	for n := 0; n <= 8*max(s.Group, 525); n += step {
		l = append(l, n)
	}
	for _, n := range []int{8 << 10, 16 << 10, 65520, 64 << 10, s.Chunk, 2 * s.Chunk, 1 << 20} {
		for _, d := range []int{-s.Group, -17, -16, -1, 0, 1, 15, 16, 33, s.Group - 1, s.Group, s.Group + 1} {
			l = append(l, n+d)
		}
	}
	return l
}

// Run runs all tests.
func (s *Suite) Run(t *testing.T) {
	t.Run("Reference", s.testReference)
	t.Run("AdditionalDataLengths", s.testAdditionalData)
	t.Run("Appends", s.testAppends)
	t.Run("Overlap", s.testOverlap)
	t.Run("Misuse", s.testMisuse)
	t.Run("KeyIsCopied", s.testKeyIsCopied)
	t.Run("Forgeries", s.testForgeries)
	t.Run("GuardPages", s.testGuardPages)
}

func (s *Suite) testReference(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		for _, keySize := range s.KeySizes {
			r := NewRandom(byte(keySize))
			for i, n := range s.lengths() {
				if k.Slow && n > 1000 && i%16 != 0 {
					continue // it is slow, and has no groups
				}
				key := r.Read(keySize)
				m := Message{Nonce: r.Read(s.NonceSize), Plain: r.Read(n), AAD: r.Read(r.IntN(201))}
				m.Sealed = s.reference(t, key).Seal(nil, m.Nonce, m.Plain, m.AAD)
				if err := m.Check(k.aead(t, key), r); err != nil {
					t.Fatalf("key of %d, %d bytes, additional %d: %v", keySize, n, len(m.AAD), err)
				}
			}
		}
	})
}

func (s *Suite) testAdditionalData(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		r := NewRandom(3)
		key := s.key(r, 1)
		a, std := k.aead(t, key), s.reference(t, key)
		for _, n := range s.lengths() {
			if k.Slow && n > 1000 {
				break
			}
			m := Message{Nonce: r.Read(s.NonceSize), Plain: r.Read(n % 37), AAD: r.Read(n)}
			m.Sealed = std.Seal(nil, m.Nonce, m.Plain, m.AAD)
			if err := m.Check(a, r); err != nil {
				t.Fatalf("additional data of %d bytes: %v", n, err)
			}
		}
	})
}

func (s *Suite) testAppends(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		r := NewRandom(5)
		key := s.key(r, 1)
		a, std := k.aead(t, key), s.reference(t, key)
		nonce, aad := r.Read(s.NonceSize), r.Read(20)
		for _, n := range []int{0, 1, 16, 100, 1000} {
			plain, prefix := r.Read(n), r.Read(7)
			sealed := std.Seal(nil, nonce, plain, aad)
			for _, room := range []int{0, n, s.sealed(n) - 1, s.sealed(n), n + 100} {
				dst := append(make([]byte, 0, len(prefix)+room), prefix...)
				got := a.Seal(dst, nonce, plain, aad)
				if !bytes.Equal(got, slices.Concat(prefix, sealed)) {
					t.Errorf("seal %d bytes with room for %d: wrong answer", n, room)
				}
				if same := &got[0] == &dst[0]; same != (room >= s.sealed(n)) {
					t.Errorf("seal %d bytes with room for %d: same buffer %v", n, room, same)
				}
				got, err := a.Open(dst, nonce, sealed, aad)
				if err != nil || !bytes.Equal(got, slices.Concat(prefix, plain)) {
					t.Errorf("open %d bytes with room for %d: wrong answer, %v", n, room, err)
				}
				if same := &got[0] == &dst[0]; same != (room >= n) {
					t.Errorf("open %d bytes with room for %d: same buffer %v", n, room, same)
				}
			}
		}
		if got, err := a.Open(nil, nonce, std.Seal(nil, nonce, nil, nil), nil); got != nil || err != nil {
			t.Errorf("open nothing into nothing: %v, %v", got, err)
		}
	})
}

// Panics reports what f panics with, "" if it does not.
func Panics(f func()) (with string) {
	defer func() {
		if r := recover(); r != nil {
			with = fmt.Sprint(r)
		}
	}()
	f()
	return ""
}

// testOverlap compares with the standard library's GCM which ways buffers may lie to each other, and the answers with the reference's.
func (s *Suite) testOverlap(t *testing.T) {
	if s.BlockSize > 0 {
		t.Skip("its output is longer than that of GCM")
	}
	s.each(t, func(t *testing.T, k Kernel) {
		r := NewRandom(6)
		key, nonce := s.key(r, 1), r.Read(s.NonceSize)
		a, ref := k.aead(t, key), s.reference(t, key)
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		var refused, allowed int
		for range 20000 {
			n, m := r.IntN(20), r.IntN(20)
			in, out, extra := r.IntN(60), r.IntN(60), r.IntN(60)
			if r.IntN(2) == 0 {
				out = in
			}
			seal := func(a cipher.AEAD, b []byte) func() {
				return func() { a.Seal(b[out:out], nonce, b[in:in+n], b[extra:extra+m]) }
			}
			open := func(a cipher.AEAD, b []byte) func() {
				return func() { a.Open(b[out:out], nonce, b[in:in+s.sealed(n)], b[extra:extra+m]) }
			}
			for i, f := range []func(cipher.AEAD, []byte) func(){seal, open} {
				b := r.Read(128)
				c := bytes.Clone(b)
				got, want := Panics(f(a, b)), Panics(f(rules, bytes.Clone(b)))
				if after(got) != after(want) {
					t.Fatalf("operation %d, input %d+%d, output %d, additional %d+%d: panic %q, want %q", i, in, n, out, extra, m, got, want)
				}
				if want == "" {
					allowed++
				} else {
					refused++
				}
				if i > 0 || want != "" {
					continue
				}
				if f(ref, c)(); !bytes.Equal(b, c) {
					t.Fatalf("seal input %d+%d, output %d, additional %d+%d: wrong answer", in, n, out, extra, m)
				}
			}
		}
		if refused < 1000 || allowed < 1000 {
			t.Errorf("%d refused, %d allowed: not a test", refused, allowed)
		}
	})
}

// testKeyIsCopied: callers wipe their key as soon as they have the AEAD.
func (s *Suite) testKeyIsCopied(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		key, nonce := s.key(NewRandom(7), 1), make([]byte, s.NonceSize)
		want := s.reference(t, key).Seal(nil, nonce, nil, nil)
		a := k.aead(t, key)
		clear(key)
		if !bytes.Equal(a.Seal(nil, nonce, nil, nil), want) {
			t.Error("key is not copied")
		}
	})
}

// testForgeries alters every bit of tags, nonces and additional data, and bits all over texts.
func (s *Suite) testForgeries(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		r := NewRandom(8)
		for _, n := range []int{0, 1, 16, 100, 511, 1200, 5000} {
			if k.Slow && n > 1000 {
				continue
			}
			key := s.key(r, n)
			a := k.aead(t, key)
			nonce, aad, plain := r.Read(s.NonceSize), r.Read(1+n%90), r.Read(n)
			sealed := a.Seal(nil, nonce, plain, aad)
			var buffer []byte
			refused := func(what string, nonce, sealed, aad []byte) {
				t.Helper()
				for _, inPlace := range []bool{false, true} {
					// Text that is not to be seen may be in the memory already.
					buffer = append(append(append(buffer[:0], "prefix"...), plain...), make([]byte, s.sealed(n)-n)...)
					in := sealed
					if inPlace {
						in = append(buffer[:6], sealed...)[6:]
					}
					out := max(len(sealed)-s.TagSize, 0)
					got, err := a.Open(buffer[:6], nonce, in, aad)
					if got != nil || !errors.Is(err, s.ErrOpen) {
						t.Fatalf("%d bytes, %s altered, in place %v: accepted, %v", n, what, inPlace, err)
					}
					if s.ProvesFirst {
						if !inPlace && !bytes.Equal(buffer[6:6+n], plain) || inPlace && !bytes.Equal(in, sealed) {
							t.Fatalf("%d bytes, %s altered, in place %v: output touched", n, what, inPlace)
						}
						continue
					}
					if string(buffer[:6]) != "prefix" || !bytes.Equal(buffer[6:6+out], make([]byte, out)) {
						t.Fatalf("%d bytes, %s altered, in place %v: output not cleared", n, what, inPlace)
					}
				}
			}
			flips := func(what string, p []byte, bits []int) {
				for _, bit := range bits {
					p[bit/8] ^= 1 << (bit % 8)
					refused(fmt.Sprintf("bit %d of %s", bit, what), nonce, sealed, aad)
					p[bit/8] ^= 1 << (bit % 8)
				}
			}
			flips("tag", sealed[len(sealed)-s.TagSize:], all(8*s.TagSize))
			flips("nonce", nonce, all(8*s.NonceSize))
			flips("additional data", aad, all(8*len(aad)))
			if n > 0 {
				flips("text", sealed[:n], []int{0, 8*n - 1})
				for range 200 {
					flips("text", sealed[:n], []int{r.IntN(8 * n)})
				}
				refused("first byte of text", nonce, sealed[1:], aad)
			}
			refused("length", nonce, append(bytes.Clone(sealed), 0), aad)
			refused("length", nonce, append([]byte{0}, sealed...), aad)
			refused("length of additional data", nonce, sealed, aad[:len(aad)-1])
			refused("length of additional data", nonce, sealed, append(bytes.Clone(aad), 0))
			refused("order", nonce, append(bytes.Clone(sealed[n:]), sealed[:n]...), append(aad[:len(aad)-1:len(aad)-1], ^aad[len(aad)-1]))
			if _, err := a.Open(nil, nonce, sealed, aad); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func all(n int) (l []int) {
	for i := range n {
		l = append(l, i)
	}
	return l
}

// after is a panic's text without the name of the package.
func after(text string) string {
	_, text, _ = strings.Cut(text, ": ")
	return text
}

// testMisuse: nonces and messages of a wrong length, and keys.
func (s *Suite) testMisuse(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		for size := range 81 {
			if _, err := k.New(make([]byte, size)); (err == nil) != slices.Contains(s.KeySizes, size) {
				t.Errorf("key of %d bytes: %v", size, err)
			}
		}
		a := k.aead(t, make([]byte, s.KeySizes[0]))
		if a.NonceSize() != s.NonceSize || a.Overhead() != s.Overhead {
			t.Errorf("nonce of %d bytes, overhead of %d", a.NonceSize(), a.Overhead())
		}
		for _, size := range []int{0, s.NonceSize - 1, s.NonceSize + 1, 24} {
			for _, f := range []func(){
				func() { a.Seal(nil, make([]byte, size), nil, nil) },
				func() { a.Open(nil, make([]byte, size), make([]byte, s.sealed(0)), nil) },
			} {
				if p := Panics(f); p != s.Package+": incorrect nonce length" {
					t.Errorf("nonce of %d bytes: panic %q", size, p)
				}
			}
		}
		for n := range s.sealed(0) {
			if _, err := a.Open(nil, make([]byte, s.NonceSize), make([]byte, n), nil); !errors.Is(err, s.ErrOpen) {
				t.Errorf("open %d bytes: %v", n, err)
			}
		}
		a.(interface{ Wipe() }).Wipe()
		if p := Panics(func() { a.Seal(nil, make([]byte, s.NonceSize), nil, nil) }); p != s.Package+": key was wiped" {
			t.Errorf("after Wipe: panic %q", p)
		}
	})
}

// Allocations: none where there is room, one for a key.
func (s *Suite) Allocations(t *testing.T) {
	s.each(t, func(t *testing.T, k Kernel) {
		if k.Slow {
			t.Skip("it makes no such promise")
		}
		r := NewRandom(9)
		key := s.key(r, 1)
		a := k.aead(t, key)
		nonce := r.Read(s.NonceSize)
		buffer, aad := make([]byte, 70000, 70000+s.Overhead), r.Read(100)
		for _, n := range []int{0, 100, 70000} {
			for _, m := range []int{0, 45, 100} {
				sealed := a.Seal(nil, nonce, buffer[:n], aad[:m])
				out := make([]byte, 0, n)
				if c := testing.AllocsPerRun(20, func() { a.Seal(buffer[:0], nonce, buffer[:n], aad[:m]) }); c != 0 {
					t.Errorf("seal %d bytes, additional %d: %v allocations", n, m, c)
				}
				if c := testing.AllocsPerRun(20, func() {
					if _, err := a.Open(out, nonce, sealed, aad[:m]); err != nil {
						t.Fatal(err)
					}
				}); c != 0 {
					t.Errorf("open %d bytes, additional %d: %v allocations", n, m, c)
				}
			}
		}
		if c := testing.AllocsPerRun(20, func() { k.New(key) }); c != 1 {
			t.Errorf("New: %v allocations, want 1", c)
		}
	})
}
