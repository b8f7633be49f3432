package gcm

import (
	"bytes"
	"testing"

	"coffer/asm/internal/aeadtest"
)

// FuzzGCM compares all kernels with the standard library. The text is repeated to n bytes.
func FuzzGCM(f *testing.F) {
	f.Add(false, []byte("key"), []byte("nonce"), []byte(nil), []byte(nil), uint32(0), byte(0))
	f.Add(true, []byte("key"), []byte("nonce"), []byte("text"), []byte("additional"), uint32(77), byte(1))
	f.Add(true, []byte{0xff}, []byte{0xff}, []byte{0}, bytes.Repeat([]byte{1}, 64), uint32(group+1), byte(2))
	f.Add(false, []byte{1}, []byte{2}, []byte("0123456789"), bytes.Repeat([]byte{1}, 65), uint32(4*group+63), byte(3))
	f.Add(true, []byte{3}, []byte{4}, []byte("ab"), bytes.Repeat([]byte{5}, 600), uint32(65520), byte(4))
	f.Add(true, []byte{5}, []byte{6}, []byte("abc"), []byte{7}, uint32(chunk+1), byte(5))
	f.Fuzz(func(t *testing.T, long bool, keyText, nonceText, text, aad []byte, n uint32, seed byte) {
		key := make([]byte, 16)
		if long {
			key = make([]byte, 32)
		}
		copy(key, keyText)
		m := aeadtest.Message{Nonce: make([]byte, NonceSize), AAD: aad}
		copy(m.Nonce, nonceText)
		if len(text) > 0 {
			size := int(n % (chunk + 4*group))
			m.Plain = bytes.Repeat(text, size/len(text)+1)[:size]
		}
		m.Sealed = mustStdlib(t, key).Seal(nil, m.Nonce, m.Plain, m.AAD)
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
