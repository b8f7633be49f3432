package chacha

import (
	"bytes"
	"crypto/cipher"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"unsafe"

	"golang.org/x/crypto/chacha20poly1305"

	"coffer/asm/internal/aeadtest"
)

// suite is the kernels of this build against x/crypto.
func suite() *aeadtest.Suite {
	s := &aeadtest.Suite{
		Package: "chacha", KeySizes: []int{KeySize}, NonceSize: NonceSize, Overhead: Overhead, TagSize: Overhead, Group: group, Chunk: chunk, ErrOpen: ErrOpen,
		Reference: chacha20poly1305.New, ReferenceName: "x-crypto",
	}
	for _, k := range Kernels() {
		x := aeadtest.Kernel{Name: k.String(), Slow: k == Portable, New: func(key []byte) (cipher.AEAD, error) { return New(k, key) }}
		if !k.Supported() {
			x.Skip = fmt.Sprintf("this processor lacks one of %v", k.Needs())
		}
		s.Kernels = append(s.Kernels, x)
	}
	return s
}

func TestSuite(t *testing.T) { suite().Run(t) }

func TestVectors(t *testing.T) {
	suite().Vectors(t, map[string]int{"testdata/wycheproof.json": 316})
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	suite().Allocations(t)
}

func BenchmarkAll(b *testing.B)   { suite().Benchmark(b) }
func BenchmarkRatio(b *testing.B) { suite().Ratio(b) }
func BenchmarkCold(b *testing.B)  { suite().Cold(b) }

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

// TestCounter encrypts in the middle of messages too long for a test, up to the last block that there can be.
func TestCounter(t *testing.T) {
	r := aeadtest.NewRandom(1)
	each(t, func(t *testing.T, k Kernel) {
		for _, last := range []uint32{1<<8 + 8, 1<<16 + 8, 1<<31 + 8, 1<<32 - 1} {
			for _, n := range []int{1, 63, 64, 65, group - 1, group, 3*group + 100, 5 * group} {
				in := r.Read(n)
				start := last - uint32((n+blockSize-1)/blockSize) + 1
				want, got := message{kernel: Portable}, message{kernel: k}
				for _, m := range []*message{&want, &got} {
					m.key, m.nonce, m.counter = [8]uint32{1, 2, 3, 4, 5, 6, 7, 8}, [3]uint32{9, 10, 11}, start
				}
				a, b := make([]byte, n), make([]byte, n)
				want.rest(a, in)
				if k != Portable && n > group {
					got.makePowers()
					got.cryptGroups(b, in, n/group, in)
					got.rest(b[n/group*group:], in[n/group*group:])
				} else {
					got.rest(b, in)
				}
				if err := aeadtest.Differ(b, a); err != nil {
					t.Errorf("%d bytes up to block %d: %v", n, last, err)
				}
			}
		}
	})
}

var prime = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 130), big.NewInt(5))

func (e element) big() *big.Int {
	z := new(big.Int)
	for i, v := range []uint64{e.l0, e.l1, e.l2} {
		z.Add(z, new(big.Int).Lsh(new(big.Int).SetUint64(v), uint(44*i)))
	}
	return z.Mod(z, prime)
}

// TestHash compares hashes with arithmetic on whole numbers. All that may be as large as can be is.
func TestHash(t *testing.T) {
	const clamp = 0x0ffffffc0ffffffc
	r := aeadtest.NewRandom(2)
	each(t, func(t *testing.T, k Kernel) {
		for i := range 400 {
			m := message{kernel: k, r: limbs(r.Uint64()&(clamp|3), r.Uint64()&clamp, 0)}
			m.hash = limbs(r.Uint64(), r.Uint64(), r.Uint64()&3)
			p := r.Read(r.IntN(3000))
			if i%2 == 0 {
				m.r = limbs(clamp|3, clamp, 0)
			}
			if i%3 == 0 {
				p = bytes.Repeat([]byte{0xff}, len(p))
			}
			if i%5 == 0 {
				m.hash = element{1<<48 - 1, 1<<48 - 1, 1<<48 - 1} // the most that a kernel leaves
			}
			want, factor := m.hash.big(), m.r.big()
			for q := p; len(q) > 0; {
				b := make([]byte, 17) // the lowest byte last
				n := copy(b[1:], q)
				q = q[n:]
				clear(b[1+n:])
				x := make([]byte, 17)
				for j := range 16 {
					x[16-j] = b[1+j]
				}
				x[0] = 1
				want.Add(want, new(big.Int).SetBytes(x)).Mul(want, factor).Mod(want, prime)
			}
			m.update(p)
			if got := m.hash.big(); got.Cmp(want) != 0 {
				t.Fatalf("%d bytes, round %d: %x, want %x", len(p), i, got, want)
			}
			for limb, v := range []uint64{m.hash.l0, m.hash.l1, m.hash.l2} {
				if v >= 1<<48 {
					t.Fatalf("limb %d is %x", limb, v)
				}
			}
		}
	})
}

// TestTag: hashes about 2^130 - 5 are reduced.
func TestTag(t *testing.T) {
	for _, v := range []int64{-7, -1, 0, 1, 4, 5, 6} {
		for _, extra := range []uint64{0, 1 << 44, 1 << 47} {
			h := new(big.Int).Add(prime, big.NewInt(v))
			limb := func(shift uint, mask int64) uint64 {
				z := new(big.Int).Rsh(h, shift)
				return z.And(z, big.NewInt(mask)).Uint64()
			}
			e := element{limb(0, mask44), limb(44, mask44), limb(88, 1<<62-1)}
			if e.l1 > extra>>44 { // the same number in other limbs
				e.l0, e.l1 = e.l0+extra, e.l1-extra>>44
			}
			want := new(big.Int).Mod(h, prime)
			want.And(want, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(1)))
			lo, hi := e.reduced()
			got := new(big.Int).Add(new(big.Int).Lsh(new(big.Int).SetUint64(hi), 64), new(big.Int).SetUint64(lo))
			if got.Cmp(want) != 0 {
				t.Errorf("2^130 - 5 + %d, limbs %x: %x, want %x", v, e, got, want)
			}
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
	got, err := a.Open(nil, m.Nonce, buffer[:n+Overhead], append([]byte(nil), m.AAD...))
	if err != nil {
		return err
	}
	return aeadtest.Differ(got, m.Plain)
}

// TestLayout holds the generator's constants against the compiler's layout.
func TestLayout(t *testing.T) {
	var s state
	var p powers
	aeadtest.Layout(t, "_asm/layout.go", map[string]uintptr{
		"stateKey": unsafe.Offsetof(s.key), "stateCounter": unsafe.Offsetof(s.counter), "stateNonce": unsafe.Offsetof(s.nonce),
		"stateHash": unsafe.Offsetof(s.hash), "powersSixteenth": unsafe.Offsetof(p.sixteenth), "powersEighth": unsafe.Offsetof(p.eighth),
		"powersLanes": unsafe.Offsetof(p.lanes),
	})
}
