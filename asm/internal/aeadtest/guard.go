package aeadtest

import (
	"bytes"
	"crypto/cipher"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"testing"
)

// guarded is memory between two pages that cannot be touched.
type guarded []byte

func newGuarded(t *testing.T, n int) guarded {
	t.Helper()
	page := os.Getpagesize()
	n = (n + page - 1) / page * page
	whole, err := syscall.Mmap(-1, 0, n+2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(whole) })
	for _, p := range [][]byte{whole[:page], whole[page+n:]} {
		if err := syscall.Mprotect(p, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return guarded(whole[page : page+n])
}

// edge is n bytes at the start or the end.
func (g guarded) edge(n int, end bool) []byte {
	if end {
		return g[len(g)-n:]
	}
	return g[:n:n]
}

// testGuardPages has all buffers end, and then begin, where the next byte faults.
func (s *Suite) testGuardPages(t *testing.T) {
	largest := 2*s.Chunk + 100
	in, out, aad := newGuarded(t, largest+s.Overhead), newGuarded(t, largest+s.Overhead), newGuarded(t, largest)
	s.each(t, func(t *testing.T, k Kernel) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		r := NewRandom(11)
		for _, keySize := range s.KeySizes {
			key := r.Read(keySize)
			a, std := k.aead(t, key), s.reference(t, key)
			try := func(n, m int, end bool) {
				x := Message{Nonce: r.Read(s.NonceSize), Plain: r.Read(n), AAD: r.Read(m)}
				x.Sealed = std.Seal(nil, x.Nonce, x.Plain, x.AAD)
				var err error
				if p := Panics(func() { err = x.atEdges(a, in, out, aad, end) }); p != "" || err != nil {
					t.Fatalf("key of %d, %d bytes, additional %d, at the end %v: %v %v", keySize, n, m, end, p, err)
				}
			}
			for _, end := range []bool{true, false} {
				for n := range 301 {
					try(n, n*7%301, end)
					try(n*11%301, n, end)
				}
				for _, n := range []int{511, 512, 513, 1023, 1025, 4095, 4096, 4097, 65520, 65535, s.Chunk - 1, s.Chunk, s.Chunk + 1, largest} {
					if k.Slow && n > 10000 {
						continue
					}
					try(n, n%65, end)
					try(n%130, n, end)
				}
			}
		}
	})
}

func (m Message) atEdges(a cipher.AEAD, in, out, aad guarded, end bool) error {
	n, extra := len(m.Plain), aad.edge(len(m.AAD), end)
	copy(extra, m.AAD)
	plain, dst := in.edge(n, end), out.edge(len(m.Sealed), end)
	copy(plain, m.Plain)
	if got := a.Seal(dst[:0], m.Nonce, plain, extra); !bytes.Equal(got, m.Sealed) {
		return fmt.Errorf("seal: %w", Differ(got, m.Sealed))
	}
	sealed, dst := in.edge(len(m.Sealed), end), out.edge(n, end)
	copy(sealed, m.Sealed)
	got, err := a.Open(dst[:0], m.Nonce, sealed, extra)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return Differ(got, m.Plain)
}
