//go:build !purego

package chacha

import (
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable, IFMA512} }

func needs(k Kernel) []cpuid.FeatureID {
	if k == Portable {
		return nil
	}
	return []cpuid.FeatureID{cpuid.AVX, cpuid.AVX2, cpuid.BMI2, cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512IFMA, cpuid.AVX512VL}
}

//go:noescape
func first512(s *state, head *[blockSize]byte, dst, src *byte, n int)

//go:noescape
func xor512(s *state, dst, src *byte, n int)

//go:noescape
func crypt512(s *state, p *powers, dst, src *byte, groups int, text *byte)

//go:noescape
func hash512(s *state, p *powers, text *byte, steps int)

// cryptFirst makes block 0 and encrypts up to 960 bytes.
func (m *message) cryptFirst(out, in []byte) {
	if m.kernel == Portable {
		m.genericFirst(out, in)
		return
	}
	first512(&m.state, &m.head, unsafe.SliceData(out), unsafe.SliceData(in), len(in))
}

// cryptRest encrypts up to a group; if less, the message ends there.
func (m *message) cryptRest(out, in []byte) {
	if m.kernel == Portable {
		m.genericRest(out, in)
		return
	}
	xor512(&m.state, unsafe.SliceData(out), unsafe.SliceData(in), len(in))
}

// cryptGroups encrypts groups of in to out, and hashes as many of text. It reads each group of text before it writes the same group of
// out.
func (m *message) cryptGroups(out, in []byte, groups int, text []byte) {
	_, _, _ = out[groups*group-1], in[groups*group-1], text[groups*group-1]
	crypt512(&m.state, &m.powers, unsafe.SliceData(out), unsafe.SliceData(in), groups, unsafe.SliceData(text))
}

// steps hashes n steps of p.
func (m *message) steps(p []byte, n int) {
	_ = p[n*step-1]
	hash512(&m.state, &m.powers, unsafe.SliceData(p), n)
}
