package hw

import (
	"fmt"
	"testing"
)

func BenchmarkAEAD(b *testing.B) {
	e := unbenched(b)
	for p, key := range map[Primitive]int{AES256GCM: 32, ChaCha20Poly1305: 32, AES256CBCHMACSHA512: 64} {
		a, err := e.AEAD(p, pattern(key, 0))
		if err != nil {
			b.Fatal(err)
		}
		nonce := pattern(a.NonceSize(), 1)
		for _, size := range benchSizes {
			plain, out := pattern(size, 2), make([]byte, 0, size+64)
			sealed := a.Seal(nil, nonce, plain, nonce)
			b.Run(fmt.Sprintf("%s/seal/%d", p, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					a.Seal(out, nonce, plain, nonce)
				}
			})
			b.Run(fmt.Sprintf("%s/open/%d", p, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := a.Open(out, nonce, sealed, nonce); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
