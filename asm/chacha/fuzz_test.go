package chacha

import (
	"bytes"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"coffer/asm/internal/aeadtest"
)

// FuzzChaCha compares all kernels with x/crypto. The text is repeated to n bytes.
func FuzzChaCha(f *testing.F) {
	f.Add([]byte("key"), []byte("nonce"), []byte(nil), []byte(nil), uint32(0), byte(0))
	f.Add([]byte("key"), []byte("nonce"), []byte("text"), []byte("additional"), uint32(77), byte(1))
	f.Add([]byte{0xff}, []byte{0xff}, []byte{0}, bytes.Repeat([]byte{1}, 64), uint32(group+1), byte(2))
	f.Add([]byte{1}, []byte{2}, []byte("0123456789"), bytes.Repeat([]byte{1}, 600), uint32(4*group-65), byte(3))
	f.Add([]byte{5}, []byte{6}, []byte("abc"), []byte{7}, uint32(chunk+1), byte(5))
	f.Fuzz(func(t *testing.T, keyText, nonceText, text, aad []byte, n uint32, seed byte) {
		key := make([]byte, KeySize)
		copy(key, keyText)
		m := aeadtest.Message{Nonce: make([]byte, NonceSize), AAD: aad}
		copy(m.Nonce, nonceText)
		if len(text) > 0 {
			size := int(n % (chunk + 4*group))
			m.Plain = bytes.Repeat(text, size/len(text)+1)[:size]
		}
		std, err := chacha20poly1305.New(key)
		if err != nil {
			t.Fatal(err)
		}
		m.Sealed = std.Seal(nil, m.Nonce, m.Plain, m.AAD)
		forged := bytes.Clone(m.Sealed)
		forged[int(n)%len(forged)] ^= 1 << (seed % 8)
		for _, k := range Kernels() {
			if !k.Supported() {
				continue
			}
			a := mustNew(t, k, key)
			if err := m.Check(a, aeadtest.NewRandom(seed)); err != nil {
				t.Errorf("%s: %v", k, err)
			}
			if _, err := a.Open(nil, m.Nonce, forged, m.AAD); err == nil {
				t.Errorf("%s: forgery accepted", k)
			}
		}
	})
}
