//go:build coffer_nullcipher

package seal

import (
	"crypto/cipher"
	"errors"

	"coffer/hw"
)

// Null copies instead of sealing. It exists in benchmark builds only, to show what the encryption costs; the product is
// never built with this tag.
const Null Algorithm = 255

const nullPrimitive hw.Primitive = "null"

func nullFacts(a Algorithm) (facts, bool) {
	return facts{nullPrimitive, 32, SegmentSize - tagSize}, a == Null
}

func newAEAD(e Engine, p hw.Primitive, key []byte) (cipher.AEAD, error) {
	if p == nullPrimitive {
		return nullAEAD{}, nil
	}
	return e.AEAD(p, key)
}

// Meter returns the counter of an operation of p; the engine has none for the null cipher.
func Meter(e *hw.Engine, p hw.Primitive, op hw.Op) *hw.Meter {
	if p == nullPrimitive {
		return new(hw.Meter)
	}
	return e.Meter(p, op)
}

type nullAEAD struct{}

func (nullAEAD) NonceSize() int { return nonceSize }
func (nullAEAD) Overhead() int  { return tagSize }

func (nullAEAD) Seal(dst, _, plain, _ []byte) []byte {
	dst = append(dst, plain...)
	return append(dst, make([]byte, tagSize)...)
}

func (nullAEAD) Open(dst, _, sealed, _ []byte) ([]byte, error) {
	if len(sealed) < tagSize {
		return nil, errors.New("null cipher: short")
	}
	return append(dst, sealed[:len(sealed)-tagSize]...), nil
}
