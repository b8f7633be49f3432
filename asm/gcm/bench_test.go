package gcm

import (
	"crypto/cipher"
	"fmt"
	"slices"
	"testing"
	"time"
)

// benchSizes includes the text of a sealed segment, 65520 bytes.
var benchSizes = []int{0, 64, 1 << 10, 4 << 10, 16 << 10, 65520, 1 << 20}

const benchAAD = 45 // of a sealed segment

// implementation is a kernel, or the standard library.
type implementation struct {
	name string
	new  func(key []byte) (cipher.AEAD, error)
}

func implementations(b *testing.B) []implementation {
	l := []implementation{{"stdlib", func(key []byte) (cipher.AEAD, error) { return stdlib(b, key), nil }}}
	for _, k := range Kernels() {
		if k.Supported() {
			l = append(l, implementation{k.String(), func(key []byte) (cipher.AEAD, error) { return New(k, key) }})
		}
	}
	return l
}

// operation returns what seals or opens a message of n bytes once.
func operation(b *testing.B, i implementation, op string, n int) func() {
	r := newRandom(1)
	a, err := i.new(r.read(32))
	if err != nil {
		b.Fatal(err)
	}
	nonce, plain, aad := r.read(NonceSize), r.read(n), r.read(benchAAD)
	out := make([]byte, 0, n+Overhead)
	if op == "Seal" {
		return func() { a.Seal(out, nonce, plain, aad) }
	}
	sealed := a.Seal(nil, nonce, plain, aad)
	return func() {
		if _, err := a.Open(out, nonce, sealed, aad); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmark(b *testing.B, op string) {
	for _, i := range implementations(b) {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", i.name, n), func(b *testing.B) {
				f := operation(b, i, op, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
	}
}

func BenchmarkSeal(b *testing.B) { benchmark(b, "Seal") }
func BenchmarkOpen(b *testing.B) { benchmark(b, "Open") }

func BenchmarkNew(b *testing.B) {
	for _, i := range implementations(b) {
		b.Run(i.name, func(b *testing.B) {
			key := make([]byte, 32)
			b.ReportAllocs()
			for b.Loop() {
				i.new(key)
			}
		})
	}
}

// BenchmarkRatio measures in one run how many times as fast as the standard library the kernels are: they take turns in short
// slices, so that a busy machine slows down both, and medians are compared. NewSeal has a new key for each message, and shares
// the cost of collecting what that leaves.
func BenchmarkRatio(b *testing.B) {
	all := implementations(b)
	for _, op := range []string{"Seal", "Open", "NewSeal"} {
		for _, i := range all[1:] {
			if i.name == Portable.String() {
				continue
			}
			for _, n := range benchSizes {
				b.Run(fmt.Sprintf("%s/%s/%d", op, i.name, n), func(b *testing.B) {
					work := [2]func(){}
					for j, x := range []implementation{all[0], i} {
						work[j] = operation(b, x, op, n)
						if op == "NewSeal" {
							r := newRandom(2)
							key, nonce, plain, aad := r.read(32), r.read(NonceSize), r.read(n), r.read(benchAAD)
							out := make([]byte, 0, n+Overhead)
							work[j] = func() {
								a, err := x.new(key)
								if err != nil {
									b.Fatal(err)
								}
								a.Seal(out, nonce, plain, aad)
							}
						}
					}
					times := 1 + (256<<10)/(n+200)
					var taken [2][]float64
					for b.Loop() {
						for j, f := range work {
							start := time.Now()
							for range times {
								f()
							}
							taken[j] = append(taken[j], float64(time.Since(start))/float64(times))
						}
					}
					slow, fast := median(taken[0]), median(taken[1])
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(slow/fast, "times-stdlib")
					b.ReportMetric(slow, "stdlib-ns")
					b.ReportMetric(fast, "kernel-ns")
					b.ReportMetric(float64(n)/fast, "kernel-GB/s")
				})
			}
		}
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkCold opens and seals segments that are in no cache, as they come from disks and go there, in turns with copies of the same
// bytes.
// copy-share is the time of the copy as a share of the kernel's: at 1 the cipher is free.
func BenchmarkCold(b *testing.B) {
	const size, text = 64 << 10, 65520
	for _, i := range implementations(b)[1:] {
		if i.name == Portable.String() {
			continue
		}
		for _, op := range []string{"Seal", "Open"} {
			b.Run(op+"/"+i.name, func(b *testing.B) {
				r := newRandom(1)
				a, err := i.new(r.read(32))
				if err != nil {
					b.Fatal(err)
				}
				nonce, aad := r.read(NonceSize), r.read(benchAAD)
				cold := make([]byte, 512<<20)
				hot := r.read(size)
				for at := 0; at < len(cold); at += size {
					a.Seal(cold[at:at], nonce, hot[:text], aad)
				}
				kernel := func(at int) {
					if op == "Seal" {
						a.Seal(cold[at:at], nonce, hot[:text], aad)
					} else if _, err := a.Open(hot[:0], nonce, cold[at:at+size], aad); err != nil {
						b.Fatal(err)
					}
				}
				copies := func(at int) {
					if op == "Seal" {
						copy(cold[at:at+size], hot)
					} else {
						copy(hot, cold[at:at+size])
					}
				}
				var taken [2][]float64
				at := 0
				for b.Loop() {
					for j, f := range []func(int){kernel, copies} {
						start := time.Now()
						for range 16 {
							f(at)
							at = (at + 17*size) % len(cold)
						}
						taken[j] = append(taken[j], float64(time.Since(start))/16)
					}
				}
				k, c := median(taken[0]), median(taken[1])
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(c/k, "copy-share")
				b.ReportMetric(text/k, "kernel-GB/s")
				b.ReportMetric(text/c, "copy-GB/s")
			})
		}
	}
}
