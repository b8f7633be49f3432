//go:build !amd64 || purego

package cbc

import "github.com/klauspost/cpuid/v2"

// chains and hashes are how many messages are worked on at once.
const (
	chains = 1
	hashes = 1
)

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable} }

func needs(Kernel) []cpuid.FeatureID { return nil }

func (a *AEAD) setup([]byte) {}

func (a *AEAD) seal([]Segment) {}

func (a *AEAD) decrypt(out, in, iv []byte) { a.std.decrypt(out, in, iv) }

func (a *AEAD) tags(tags [][TagSize]byte, segments []Segment, bodies [][]byte) {
	for i, s := range segments {
		a.std.tag(tags[i][:], s.Nonce, bodies[i], s.Additional)
	}
}

func (a *AEAD) decryptBlock(in, iv []byte) [blockSize]byte { return a.std.decryptBlock(in, iv) }
