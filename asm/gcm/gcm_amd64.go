//go:build !purego

package gcm

import (
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable, VAES512} }

func needs(k Kernel) []cpuid.FeatureID {
	if k != VAES512 {
		return nil
	}
	// CLMUL is PCLMULQDQ.
	return []cpuid.FeatureID{
		cpuid.AESNI, cpuid.CLMUL, cpuid.AVX, cpuid.AVX2, cpuid.BMI2, cpuid.VAES, cpuid.VPCLMULQDQ,
		cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512VL,
	}
}

//go:noescape
func expandKey128(k *AEAD, key *byte)

//go:noescape
func expandKey256(k *AEAD, key *byte)

//go:noescape
func setup512(k *AEAD, rounds int)

//go:noescape
func ghash512(k *AEAD, acc *[blockSize]byte, p *byte, n int)

//go:noescape
func seal512AES128(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func open512AES128(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func seal512AES256(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func open512AES256(k *AEAD, s *state, dst, src *byte, n int)

// setup derives what the kernel needs from a key of 16 or 32 bytes.
func (a *AEAD) setup(key []byte) {
	if len(key) == 16 {
		expandKey128(a, &key[0])
	} else {
		expandKey256(a, &key[0])
	}
	setup512(a, int(a.rounds))
}

// hash adds p, zero padded to whole blocks, to the hash in s.
func (a *AEAD) hash(s *state, p []byte) {
	if a.kernel == Portable {
		a.twin().hash(s, p)
		return
	}
	ghash512(a, &s.acc, &p[0], len(p))
}

// run works on a piece of a message. Calls are direct, so that s need not be on the heap.
func (a *AEAD) run(open bool, s *state, out, in []byte) {
	d, p, n := unsafe.SliceData(out), unsafe.SliceData(in), len(in)
	switch {
	case a.kernel == Portable:
		a.twin().run(open, s, out, in, unsafe.Slice(s.aad, s.aadLen))
	case a.rounds == 14 && open:
		open512AES256(a, s, d, p, n)
	case a.rounds == 14:
		seal512AES256(a, s, d, p, n)
	case open:
		open512AES128(a, s, d, p, n)
	default:
		seal512AES128(a, s, d, p, n)
	}
}
