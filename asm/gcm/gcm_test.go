package gcm

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"coffer/asm/internal/aeadtest"
)

// suite is the kernels of this build against the standard library.
func suite() *aeadtest.Suite {
	s := &aeadtest.Suite{
		Package: "gcm", KeySizes: []int{16, 32}, NonceSize: NonceSize, Overhead: Overhead, TagSize: Overhead, Group: group, Chunk: chunk, ErrOpen: ErrOpen, Reference: stdlib, ReferenceName: "stdlib",
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

func stdlib(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func mustStdlib(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	a, err := stdlib(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// group is what the kernels do at a time.
const group = 512

func TestSuite(t *testing.T) { suite().Run(t) }

func TestVectors(t *testing.T) {
	suite().Vectors(t, map[string]int{"testdata/nist.json": 35, "testdata/wycheproof.json": 133})
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

// TestCounterCarries starts calls in the middle of messages too long for a test.
func TestCounterCarries(t *testing.T) {
	r := aeadtest.NewRandom(4)
	each(t, func(t *testing.T, k Kernel) {
		for _, keySize := range []int{16, 32} {
			key := r.Read(keySize)
			a, ref := mustNew(t, k, key), mustNew(t, Portable, key)
			for _, done := range []uint32{1<<8 - 32, 1<<16 - 32, 1<<24 - 64, 1<<31 - 32, -1 << 7 & (1<<32 - 1)} {
				// The last one ends with the last block that a message can have.
				for _, n := range []int{15, 16, 31 * 16, 32*16 - 1, group, group + 1, 2*group - 16, 3*group + 77, 126 * 16} {
					in := r.Read(n)
					var s state
					s.counter = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, byte(done >> 24), byte(done >> 16), byte(done >> 8), byte(done)}
					s.lengths, s.last = [2]uint64{uint64(n) * 8}, 1
					copy(s.mask[:], r.Read(16))
					want, got := s, s
					wantOut, gotOut := make([]byte, n), make([]byte, n)
					ref.run(false, &want, wantOut, in)
					a.run(false, &got, gotOut, in)
					if err := aeadtest.Differ(gotOut, wantOut); err != nil || got.tag != want.tag {
						t.Fatalf("AES-%d seal, %d bytes after %d blocks: %v, tags equal %v", 8*keySize, n, done, err, got.tag == want.tag)
					}
					back := s
					a.run(true, &back, gotOut, gotOut)
					if err := aeadtest.Differ(gotOut, in); err != nil || back.tag != want.tag {
						t.Fatalf("AES-%d open, %d bytes after %d blocks: %v, tags equal %v", 8*keySize, n, done, err, back.tag == want.tag)
					}
				}
			}
		}
	})
}

func TestMisuse(t *testing.T) {
	var bad aes.KeySizeError
	if _, err := New(Portable, make([]byte, 24)); !errors.As(err, &bad) {
		t.Errorf("key of 24 bytes: %v", err)
	}
	if _, err := New(kernelCount, make([]byte, 32)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown kernel: %v", err)
	}
	each(t, func(t *testing.T, k Kernel) {
		a := mustNew(t, k, make([]byte, 32))
		a.Wipe()
		if *a != (AEAD{}) {
			t.Error("keys left after Wipe")
		}
	})
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
	var k AEAD
	var s state
	aeadtest.Layout(t, "_asm/layout.go", map[string]uintptr{
		"keysRound": unsafe.Offsetof(k.round), "keysSums": unsafe.Offsetof(k.sums), "keysPowers": unsafe.Offsetof(k.powers), "powers": uintptr(len(k.powers)),
		"stateCounter": unsafe.Offsetof(s.counter), "stateAcc": unsafe.Offsetof(s.acc), "stateMask": unsafe.Offsetof(s.mask),
		"stateLengths": unsafe.Offsetof(s.lengths), "stateTag": unsafe.Offsetof(s.tag), "stateAAD": unsafe.Offsetof(s.aad),
		"stateAADLen": unsafe.Offsetof(s.aadLen), "stateFirst": unsafe.Offsetof(s.first), "stateLast": unsafe.Offsetof(s.last),
	})
	if size := unsafe.Sizeof(k); size != 11*128 {
		t.Errorf("an AEAD of %d bytes is not aligned to cache lines by the heap", size)
	}
	// What reads past the powers stays inside.
	if pad := unsafe.Offsetof(k.sums) - unsafe.Offsetof(k.powers) - unsafe.Sizeof(k.powers); pad < 48 {
		t.Errorf("%d bytes after the powers", pad)
	}
}
