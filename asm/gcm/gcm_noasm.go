//go:build !amd64 || purego

package gcm

import (
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable} }

func needs(Kernel) []cpuid.FeatureID { return nil }

func (a *AEAD) setup([]byte) {}

func (a *AEAD) hash(s *state, p []byte) { a.twin().hash(s, p) }

func (a *AEAD) run(open bool, s *state, out, in []byte) {
	a.twin().run(open, s, out, in, unsafe.Slice(s.aad, s.aadLen))
}
