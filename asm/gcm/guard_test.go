//go:build unix

package gcm

import (
	"bytes"
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

// TestGuardPages has all buffers end, and then begin, where the next byte faults.
func TestGuardPages(t *testing.T) {
	const largest = 2*chunk + 100
	in, out, aad := newGuarded(t, largest+Overhead), newGuarded(t, largest+Overhead), newGuarded(t, largest)
	each(t, func(t *testing.T, k Kernel) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		r := newRandom(11)
		for _, keySize := range []int{16, 32} {
			key := r.read(keySize)
			a, std := mustNew(t, k, key), stdlib(t, key)
			try := func(n, m int, end bool) {
				x := message{nonce: r.read(NonceSize), plain: r.read(n), aad: r.read(m)}
				x.sealed = std.Seal(nil, x.nonce, x.plain, x.aad)
				var err error
				if p := panics(func() { err = x.atEdges(a, in, out, aad, end) }); p != "" || err != nil {
					t.Fatalf("AES-%d, %d bytes, additional %d, at the end %v: %v %v", 8*keySize, n, m, end, p, err)
				}
			}
			for _, end := range []bool{true, false} {
				for n := range 301 {
					try(n, n*7%301, end)
					try(n*11%301, n, end)
				}
				for _, n := range []int{511, 512, 513, 1023, 1025, 4095, 4096, 4097, 65520, 65535, chunk - 1, chunk, chunk + 1, largest} {
					if k == Portable && n > 10000 {
						continue
					}
					try(n, n%65, end)
					try(n%130, n, end)
				}
			}
		}
	})
}

func (m message) atEdges(a *AEAD, in, out, aad guarded, end bool) error {
	n, extra := len(m.plain), aad.edge(len(m.aad), end)
	copy(extra, m.aad)
	plain, dst := in.edge(n, end), out.edge(n+Overhead, end)
	copy(plain, m.plain)
	if got := a.Seal(dst[:0], m.nonce, plain, extra); !bytes.Equal(got, m.sealed) {
		return fmt.Errorf("seal: %w", differ(got, m.sealed))
	}
	sealed, dst := in.edge(n+Overhead, end), out.edge(n, end)
	copy(sealed, m.sealed)
	got, err := a.Open(dst[:0], m.nonce, sealed, extra)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return differ(got, m.plain)
}
