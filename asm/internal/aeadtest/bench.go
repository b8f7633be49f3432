package aeadtest

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// benchSizes includes the text of a sealed segment, 65520 bytes.
var benchSizes = []int{0, 64, 1 << 10, 4 << 10, 16 << 10, 65520, 1 << 20}

const benchAAD = 45 // of a sealed segment

// measured are the reference, first, and the kernels that run here.
func (s *Suite) measured() []Kernel {
	l := []Kernel{{Name: s.ReferenceName, New: s.Reference}}
	for _, k := range s.Kernels {
		if k.Skip == "" && !k.Slow {
			l = append(l, k)
		}
	}
	return l
}

// operation returns what seals or opens a message of n bytes once.
func (s *Suite) operation(b *testing.B, k Kernel, op string, n int) func() {
	r := NewRandom(1)
	a := k.aead(b, s.key(r, 1))
	nonce, plain, aad := r.Read(s.NonceSize), r.Read(n), r.Read(benchAAD)
	out := make([]byte, 0, s.sealed(n))
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

// Benchmark measures sealing, opening, and new keys.
func (s *Suite) Benchmark(b *testing.B) {
	for _, op := range []string{"Seal", "Open"} {
		for _, k := range s.measured() {
			for _, n := range benchSizes {
				b.Run(fmt.Sprintf("%s/%s/%d", op, k.Name, n), func(b *testing.B) {
					f := s.operation(b, k, op, n)
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for b.Loop() {
						f()
					}
				})
			}
		}
	}
	for _, k := range s.measured() {
		b.Run("New/"+k.Name, func(b *testing.B) {
			key := make([]byte, s.KeySizes[len(s.KeySizes)-1])
			b.ReportAllocs()
			for b.Loop() {
				k.New(key)
			}
		})
	}
}

// Ratio measures in one run how many times as fast as the reference the kernels are: they take turns in short
// slices, so that a busy machine slows down both, and medians are compared. NewSeal has a new key for each message, and shares
// the cost of collecting what that leaves.
func (s *Suite) Ratio(b *testing.B) {
	all := s.measured()
	for _, op := range []string{"Seal", "Open", "NewSeal"} {
		for _, k := range all[1:] {
			for _, n := range benchSizes {
				b.Run(fmt.Sprintf("%s/%s/%d", op, k.Name, n), func(b *testing.B) {
					work := [2]func(){}
					for j, x := range []Kernel{all[0], k} {
						work[j] = s.operation(b, x, op, n)
						if op == "NewSeal" {
							r := NewRandom(2)
							key, nonce, plain, aad := s.key(r, 1), r.Read(s.NonceSize), r.Read(n), r.Read(benchAAD)
							out := make([]byte, 0, s.sealed(n))
							work[j] = func() {
								a, err := x.New(key)
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
					b.ReportMetric(slow/fast, "times-"+s.ReferenceName)
					b.ReportMetric(slow, s.ReferenceName+"-ns")
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

// Cold opens and seals segments that are in no cache, as they come from disks and go there, in turns with copies of the same
// bytes.
// copy-share is the time of the copy as a share of the kernel's: at 1 the cipher is free.
func (s *Suite) Cold(b *testing.B) {
	const size, text = 64 << 10, 65520
	for _, k := range s.measured()[1:] {
		for _, op := range []string{"Seal", "Open"} {
			b.Run(op+"/"+k.Name, func(b *testing.B) {
				r := NewRandom(1)
				a := k.aead(b, s.key(r, 1))
				nonce, aad := r.Read(s.NonceSize), r.Read(benchAAD)
				cold := make([]byte, 512<<20)
				hot := r.Read(size)
				for at := 0; at < len(cold); at += size {
					a.Seal(cold[at:at], nonce, hot[:text], aad)
				}
				work := func(at int) {
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
					for j, f := range []func(int){work, copies} {
						start := time.Now()
						for range 16 {
							f(at)
							at = (at + 17*size) % len(cold)
						}
						taken[j] = append(taken[j], float64(time.Since(start))/16)
					}
				}
				kernel, c := median(taken[0]), median(taken[1])
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(c/kernel, "copy-share")
				b.ReportMetric(text/kernel, "kernel-GB/s")
				b.ReportMetric(text/c, "copy-GB/s")
			})
		}
	}
}
