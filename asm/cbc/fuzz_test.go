package cbc

import (
	"bytes"
	"errors"
	"testing"

	"coffer/asm/internal/aeadtest"
)

// FuzzCBC: every kernel opens exactly what the draft seals, and hostile input leaves no trace.
func FuzzCBC(f *testing.F) {
	key := aeadtest.NewRandom(1).Read(KeySize)
	ref := draft{key}
	iv := make([]byte, NonceSize)
	for _, n := range []int{0, 1, 15, 16, 17, 1000} {
		f.Add(iv, ref.Seal(nil, iv, make([]byte, n), []byte("a")), []byte("a"), false)
		f.Add(iv, ref.Seal(nil, iv, make([]byte, n), nil), []byte{}, true)
	}
	f.Add(iv, []byte{}, []byte{}, false)
	f.Add(iv, make([]byte, 47), []byte{}, true)
	f.Add(iv, make([]byte, 48), []byte{}, true)
	f.Fuzz(func(t *testing.T, iv, sealed, additional []byte, inPlace bool) {
		if len(iv) != NonceSize {
			return
		}
		for _, k := range Kernels() {
			if !k.Supported() {
				continue
			}
			a := mustNew(t, k, key)
			work, dst := bytes.Clone(sealed), []byte(nil)
			if inPlace {
				dst = work[:0]
			}
			plain, err := a.Open(dst, iv, work, additional)
			if err != nil {
				if plain != nil || !errors.Is(err, ErrOpen) || !bytes.Equal(work, sealed) {
					t.Fatalf("%s: refused input left a trace: %v", k, err)
				}
				// Tag it properly, so that what lies behind the tag check meets the input too.
				if n := len(sealed) / blockSize * blockSize; n > 0 {
					work = append(bytes.Clone(sealed[:n]), ref.tag(iv, sealed[:n], additional)...)
					if plain, err = a.Open(nil, iv, work, additional); err == nil && !bytes.Equal(ref.Seal(nil, iv, plain, additional), work) {
						t.Fatalf("%s: opened what Seal does not make", k)
					}
				}
				continue
			}
			if !bytes.Equal(ref.Seal(nil, iv, plain, additional), sealed) {
				t.Fatalf("%s: opened what Seal does not make", k)
			}
			if again := a.Seal(nil, iv, plain, additional); !bytes.Equal(again, sealed) {
				t.Fatalf("%s: seals something else", k)
			}
		}
	})
}
