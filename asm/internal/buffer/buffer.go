// Package buffer holds the rules of crypto/cipher's AEAD for output buffers: what is appended to dst, and what may overlap.
package buffer

import "unsafe"

// Extend returns dst with n more bytes, in its own memory if that has room, and those bytes alone.
func Extend(dst []byte, n int) (whole, tail []byte) {
	if total := len(dst) + n; cap(dst) >= total {
		whole = dst[:total]
	} else {
		whole = make([]byte, total)
		copy(whole, dst)
	}
	return whole, whole[len(dst):]
}

// CheckOverlap panics as crypto/cipher does, with name in front: output may be the input exactly or share nothing with it, and may
// share nothing with the additional data.
func CheckOverlap(name string, out, in, additional []byte) {
	if overlap(out, in) && &out[0] != &in[0] {
		panic(name + ": invalid buffer overlap of output and input")
	}
	if overlap(out, additional) {
		panic(name + ": invalid buffer overlap of output and additional data")
	}
}

// overlap reports whether a and b share memory.
func overlap(a, b []byte) bool {
	return len(a) > 0 && len(b) > 0 &&
		uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1]))
}
