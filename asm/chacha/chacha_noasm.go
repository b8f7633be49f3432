//go:build !amd64 || purego

package chacha

import "github.com/klauspost/cpuid/v2"

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable} }

func needs(Kernel) []cpuid.FeatureID { return nil }

func (m *message) cryptFirst(out, in []byte) { m.genericFirst(out, in) }

func (m *message) cryptRest(out, in []byte) { m.genericRest(out, in) }

func (m *message) cryptGroups([]byte, []byte, int, []byte) { panic("chacha: no kernel") }

func (m *message) steps([]byte, int) { panic("chacha: no kernel") }
