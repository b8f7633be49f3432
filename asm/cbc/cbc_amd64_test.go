//go:build !purego

package cbc

import (
	"fmt"
	"testing"
	"unsafe"

	"coffer/asm/internal/aeadtest"
)

func TestNeeds(t *testing.T) {
	aeadtest.Needs(t, "cbc_amd64.s", func(string) bool { return true }, VAES512.Needs())
}

func TestReturns(t *testing.T) { aeadtest.Returns(t, "cbc_amd64.s", 4) }

// TestLayout holds the generator's constants against the compiler's layout.
func TestLayout(t *testing.T) {
	var k schedule
	var l lanes
	aeadtest.Layout(t, "_asm/layout.go", map[string]uintptr{
		"keysEncrypt": unsafe.Offsetof(k.encrypt), "keysDecrypt": unsafe.Offsetof(k.decrypt),
		"lanesSrc": unsafe.Offsetof(l.src), "lanesDst": unsafe.Offsetof(l.dst), "lanesIV": unsafe.Offsetof(l.iv),
	})
}

// BenchmarkParts measures what SealAll and OpenAll are made of, sixteen segments at a time.
func BenchmarkParts(b *testing.B) {
	if !VAES512.Supported() {
		b.Skip("not supported")
	}
	const n = 65472
	r := aeadtest.NewRandom(1)
	a := mustNew(b, VAES512, r.Read(KeySize))
	for _, count := range []int{1, 4, 8, 16} {
		segments := make([]Segment, count)
		for i := range segments {
			segments[i] = Segment{Nonce: r.Read(NonceSize), Text: r.Read(n), out: make([]byte, n+Overhead)}
		}
		bodies, tags := make([][]byte, count), make([][TagSize]byte, count)
		for i, s := range segments {
			bodies[i] = s.Text
		}
		for name, f := range map[string]func(){
			"encrypt": func() { a.encrypt(segments) },
			"decrypt": func() {
				for _, s := range segments {
					a.decrypt(s.out[:n], s.Text, s.Nonce)
				}
			},
			"tags": func() {
				for i := 0; i < count; i += hashes {
					j := min(i+hashes, count)
					a.tags(tags[i:j], segments[i:j], bodies[i:j])
				}
			},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, count), func(b *testing.B) {
				b.SetBytes(int64(n * count))
				for b.Loop() {
					f()
				}
			})
		}
	}
}
