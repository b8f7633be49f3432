//go:build !purego

package gcm

import (
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable, VAES512, VAES256} }

func needs(k Kernel) []cpuid.FeatureID {
	// CLMUL is PCLMULQDQ.
	both := []cpuid.FeatureID{cpuid.AESNI, cpuid.CLMUL, cpuid.AVX, cpuid.AVX2, cpuid.VAES, cpuid.VPCLMULQDQ}
	switch k {
	case VAES512:
		return append(both, cpuid.BMI2, cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512VL)
	case VAES256:
		return both
	}
	return nil
}

//go:noescape
func expandKey128(k *AEAD, key *byte)

//go:noescape
func expandKey256(k *AEAD, key *byte)

//go:noescape
func setup512(k *AEAD, rounds int)

//go:noescape
func setup256(k *AEAD, rounds int)

//go:noescape
func ghash512(k *AEAD, acc *[blockSize]byte, p *byte, n int)

//go:noescape
func ghash256(k *AEAD, acc *[blockSize]byte, p *byte, n int)

//go:noescape
func seal512AES128(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func open512AES128(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func seal512AES256(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func open512AES256(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func seal256AES128(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func open256AES128(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func seal256AES256(k *AEAD, s *state, dst, src *byte, n int)

//go:noescape
func open256AES256(k *AEAD, s *state, dst, src *byte, n int)

// setup derives what the kernel needs from a key of 16 or 32 bytes.
func (a *AEAD) setup(key []byte) {
	if len(key) == 16 {
		expandKey128(a, &key[0])
	} else {
		expandKey256(a, &key[0])
	}
	if a.kernel == VAES512 {
		setup512(a, int(a.rounds))
	} else {
		setup256(a, int(a.rounds))
	}
}

// hash adds p, zero padded to whole blocks, to the hash in s.
func (a *AEAD) hash(s *state, p []byte) {
	switch a.kernel {
	case Portable:
		a.twin().hash(s, p)
	case VAES512:
		ghash512(a, &s.acc, &p[0], len(p))
	default:
		ghash256(a, &s.acc, &p[0], len(p))
	}
}

// run works on a piece of a message. Calls are direct, so that s need not be on the heap.
func (a *AEAD) run(open bool, s *state, out, in []byte) {
	d, p, n := unsafe.SliceData(out), unsafe.SliceData(in), len(in)
	switch a.kernel {
	case Portable:
		a.twin().run(open, s, out, in, unsafe.Slice(s.aad, s.aadLen))
	case VAES512:
		switch {
		case a.rounds == 14 && open:
			open512AES256(a, s, d, p, n)
		case a.rounds == 14:
			seal512AES256(a, s, d, p, n)
		case open:
			open512AES128(a, s, d, p, n)
		default:
			seal512AES128(a, s, d, p, n)
		}
	default:
		switch {
		case a.rounds == 14 && open:
			open256AES256(a, s, d, p, n)
		case a.rounds == 14:
			seal256AES256(a, s, d, p, n)
		case open:
			open256AES128(a, s, d, p, n)
		default:
			seal256AES128(a, s, d, p, n)
		}
	}
}
