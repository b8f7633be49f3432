package cbc

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"coffer/asm/internal/aeadtest"
)

// draft is the draft's section 2.1 written down step by step, with the IV apart.
type draft struct{ key []byte }

func (d draft) NonceSize() int { return NonceSize }
func (d draft) Overhead() int  { return Overhead }

func (d draft) Seal(dst, iv, plain, additional []byte) []byte {
	n := 16 - len(plain)%16
	padded := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(n)}, n)...)
	block, err := aes.NewCipher(d.key[32:])
	if err != nil {
		panic(err)
	}
	e := make([]byte, len(padded))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(e, padded)
	return append(append(dst, e...), d.tag(iv, e, additional)...)
}

func (d draft) tag(iv, e, additional []byte) []byte {
	mac := hmac.New(sha512.New, d.key[:32])
	mac.Write(additional)
	mac.Write(iv)
	mac.Write(e)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(additional))*8))
	return mac.Sum(nil)[:32]
}

func (d draft) Open([]byte, []byte, []byte, []byte) ([]byte, error) { panic("not asked for") }

// suite is the kernels of this build against the draft.
func suite() *aeadtest.Suite {
	s := &aeadtest.Suite{
		Package: "cbc", KeySizes: []int{KeySize}, NonceSize: NonceSize, Overhead: Overhead, TagSize: TagSize, BlockSize: blockSize, ProvesFirst: true,
		Group: 512, Chunk: 256 << 10, ErrOpen: ErrOpen, ReferenceName: "stdlib",
		Reference: func(key []byte) (cipher.AEAD, error) { return draft{bytes.Clone(key)}, nil },
	}
	for _, k := range Kernels() {
		x := aeadtest.Kernel{Name: k.String(), New: func(key []byte) (cipher.AEAD, error) { return New(k, key) }}
		if !k.Supported() {
			x.Skip = fmt.Sprintf("this processor lacks one of %v", k.Needs())
		}
		s.Kernels = append(s.Kernels, x)
	}
	return s
}

func TestSuite(t *testing.T) { suite().Run(t) }

func TestVectors(t *testing.T) {
	suite().Vectors(t, map[string]int{"testdata/wycheproof.json": 94})
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	key := make([]byte, KeySize)
	each(t, func(t *testing.T, k Kernel) {
		if k == Portable {
			t.Skip("it makes no such promise")
		}
		a := mustNew(t, k, key)
		for _, count := range []int{1, 16} {
			sealed, opened := make([]Segment, count), make([]Segment, count)
			seal := func() {
				for i := range sealed {
					sealed[i].Dst = sealed[i].Dst[:0]
				}
				a.SealAll(sealed)
			}
			for i := range sealed {
				sealed[i] = Segment{Nonce: key[:NonceSize], Text: make([]byte, 5000), Additional: key[:45]}
			}
			seal()
			for i := range opened {
				opened[i] = Segment{Nonce: key[:NonceSize], Text: sealed[i].Dst, Additional: key[:45]}
			}
			open := func() {
				for i := range opened {
					opened[i].Dst = opened[i].Dst[:0]
				}
				a.OpenAll(opened)
			}
			open()
			if opened[0].Err != nil {
				t.Fatal(opened[0].Err)
			}
			for name, f := range map[string]func(){"seal": seal, "open": open} {
				if n := testing.AllocsPerRun(100, f); n > 0.1 { // the collector may empty pools
					t.Errorf("%s %d: %v allocations", name, count, n)
				}
			}
		}
	})
}

// each runs f for all kernels of this build that the processor supports, and says which are skipped.
func each(t *testing.T, f func(t *testing.T, k Kernel)) {
	t.Helper()
	for _, k := range Kernels() {
		t.Run(k.String(), func(t *testing.T) {
			if !k.Supported() {
				t.Skipf("this processor lacks one of %v", k.Needs())
			}
			f(t, k)
		})
	}
}

func mustNew(t testing.TB, k Kernel, key []byte) *AEAD {
	t.Helper()
	a, err := New(k, key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestMany seals and opens any number of messages of any lengths at once, apart and in place.
func TestMany(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := aeadtest.NewRandom(1)
		rounds := 120
		if testing.Short() {
			rounds = 20
		}
		for round := range rounds {
			key := r.Read(KeySize)
			a, ref := mustNew(t, k, key), draft{key}
			segments, want := make([]Segment, r.IntN(40)), make([][]byte, 40)
			plain := make([][]byte, len(segments))
			longest := []int{40, 700, 5000, 70000}[round%4]
			for i := range segments {
				n := r.IntN(longest)
				if round%3 == 0 {
					n = longest
				}
				plain[i] = r.Read(n)
				s := &segments[i]
				s.Nonce, s.Additional, s.Text = r.Read(NonceSize), r.Read(r.IntN(300)), bytes.Clone(plain[i])
				want[i] = ref.Seal(nil, s.Nonce, plain[i], s.Additional)
				if round%2 == 0 {
					s.Text = append(make([]byte, 0, n+Overhead), plain[i]...)
					s.Dst = s.Text[:0]
				}
			}
			a.SealAll(segments)
			bad := -1
			if round%5 == 0 && len(segments) > 0 {
				bad = r.IntN(len(segments))
			}
			for i := range segments {
				s := &segments[i]
				if err := aeadtest.Differ(s.Dst, want[i]); err != nil {
					t.Fatalf("round %d, message %d of %d: seal: %v", round, i, len(segments), err)
				}
				if i == bad {
					s.Dst[r.IntN(len(s.Dst))] ^= 1 << r.IntN(8)
				}
				s.Text, s.Dst = s.Dst, nil
				if round%2 == 0 {
					s.Dst = s.Text[:0]
				}
			}
			a.OpenAll(segments)
			for i, s := range segments {
				switch {
				case i == bad && (!errors.Is(s.Err, ErrOpen) || s.Dst != nil):
					t.Fatalf("round %d, message %d of %d: forgery: %v", round, i, len(segments), s.Err)
				case i == bad:
				case s.Err != nil || !bytes.Equal(s.Dst, plain[i]):
					t.Fatalf("round %d, message %d of %d: open: %v", round, i, len(segments), s.Err)
				}
			}
		}
	})
}

// TestPadding: padding that only the holder of the key can have made wrong.
func TestPadding(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		key, iv := aeadtest.NewRandom(2).Read(KeySize), make([]byte, NonceSize)
		a, ref := mustNew(t, k, key), draft{key}
		block, err := aes.NewCipher(key[32:])
		if err != nil {
			t.Fatal(err)
		}
		for _, last := range [][]byte{make([]byte, 16), append(make([]byte, 15), 17), append(make([]byte, 15), 2), append(make([]byte, 15), 255)} {
			body := make([]byte, 16)
			cipher.NewCBCEncrypter(block, iv).CryptBlocks(body, last)
			if _, err := a.Open(nil, iv, append(body, ref.tag(iv, body, nil)...), nil); !errors.Is(err, ErrOpen) {
				t.Errorf("padding % x: %v", last, err)
			}
		}
	})
}

func TestBuffers(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := aeadtest.NewRandom(3)
		a := mustNew(t, k, r.Read(KeySize))
		iv, buf := r.Read(NonceSize), make([]byte, 256)
		const inOut, inAdd = "cbc: invalid buffer overlap of output and input", "cbc: invalid buffer overlap of output and additional data"
		panics := func(want string, f func()) {
			t.Helper()
			if got := aeadtest.Panics(f); got != want {
				t.Errorf("panic %q, want %q", got, want)
			}
		}
		panics(inOut, func() { a.Seal(buf[1:1], iv, buf[:64], nil) })
		panics(inOut, func() { a.Seal(buf[:0], iv, buf[1:65], nil) })
		panics(inOut, func() { a.Seal(buf[:0], iv, buf[40:60], nil) }) // under the tag
		panics(inAdd, func() { a.Seal(buf[:0], iv, buf[:64], buf[70:80]) })
		sealed := a.Seal(nil, iv, r.Read(64), nil)
		copy(buf[8:], sealed)
		panics(inOut, func() { a.Open(buf[:0], iv, buf[8:8+len(sealed)], nil) })
		panics(inAdd, func() {
			with := a.Seal(nil, iv, make([]byte, 64), buf[8:16])
			a.Open(buf[:0], iv, with, buf[8:16])
		})
		// Neighbours that only touch are no overlap.
		a.Seal(buf[64:64], iv, buf[:64], buf[64+64+16+32:])
	})
}

func TestMisuse(t *testing.T) {
	if _, err := New(kernelCount, make([]byte, KeySize)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown kernel: %v", err)
	}
	each(t, func(t *testing.T, k Kernel) {
		a := mustNew(t, k, bytes.Repeat([]byte{1}, KeySize))
		a.Wipe()
		if *a != (AEAD{}) {
			t.Error("key left after Wipe")
		}
	})
}

// BenchmarkMany seals and opens sixteen full segments at once, and one at a time.
func BenchmarkMany(b *testing.B) {
	const n, count = 65487, 16
	r := aeadtest.NewRandom(1)
	key := r.Read(KeySize)
	for _, k := range Kernels() {
		if !k.Supported() {
			continue
		}
		a := mustNew(b, k, key)
		for _, batch := range []int{1, 4, 8, 16} {
			segments, sealed := make([]Segment, batch), make([]Segment, batch)
			for i := range segments {
				segments[i] = Segment{Nonce: r.Read(NonceSize), Text: r.Read(n), Additional: r.Read(45), Dst: make([]byte, 0, n+Overhead)}
				sealed[i] = segments[i]
			}
			a.SealAll(sealed)
			for i := range sealed {
				sealed[i].Text, sealed[i].Dst = sealed[i].Dst, make([]byte, 0, n)
			}
			b.Run(fmt.Sprintf("Seal/%s/%d", k, batch), func(b *testing.B) {
				b.SetBytes(int64(n * batch))
				b.ReportAllocs()
				for b.Loop() {
					for i := range segments {
						segments[i].Dst = segments[i].Dst[:0]
					}
					a.SealAll(segments)
				}
			})
			b.Run(fmt.Sprintf("Open/%s/%d", k, batch), func(b *testing.B) {
				b.SetBytes(int64(n * batch))
				b.ReportAllocs()
				for b.Loop() {
					for i := range sealed {
						sealed[i].Dst = sealed[i].Dst[:0]
					}
					a.OpenAll(sealed)
				}
			})
		}
	}
}

func TestUnderCollection(t *testing.T) {
	suite().UnderCollection(t, func(a cipher.AEAD, m aeadtest.Message) error { return onStack(a.(*AEAD), m) })
}

// onStack has buffers on the stack as far as the compiler lets it, and new ones on the heap.
func onStack(a *AEAD, m aeadtest.Message) error {
	var buffer [3000 + Overhead]byte
	var additional [300]byte
	n, aad := len(m.Plain), additional[:copy(additional[:], m.AAD)]
	copy(buffer[:], m.Plain)
	if err := aeadtest.Differ(a.Seal(buffer[:0], m.Nonce, buffer[:n], aad), m.Sealed); err != nil {
		return err
	}
	got, err := a.Open(nil, m.Nonce, buffer[:len(m.Sealed)], append([]byte(nil), m.AAD...))
	if err != nil {
		return err
	}
	return aeadtest.Differ(got, m.Plain)
}
