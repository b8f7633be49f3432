package disk

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// discard is a state that counts.
type discard struct{}

func (discard) Position() (Position, error)   { return Position{}, nil }
func (discard) Apply(Position, []Entry) error { return nil }
func (discard) Reset() error                  { return nil }
func (discard) Freed() ([]StripeRange, error) { return nil, nil }

// benchArray is a 4+2 array on files, written before, or in memory. renew makes it anew when it is full.
type benchArray struct {
	*Array
	memory *Memory
	paths  []string
}

const (
	benchDisks = 6
	benchSize  = 128 << 20
)

func newBenchArray(b *testing.B, memory bool) *benchArray {
	b.Helper()
	procs := runtime.GOMAXPROCS(GoProcs(runtime.NumCPU()))
	b.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	x := &benchArray{}
	if memory {
		m, err := NewMemory(benchDisks, benchSize)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Close() })
		x.memory = m
	} else {
		x.paths = newFileArray(b, benchDisks, 4, 2, benchSize).paths
	}
	x.renew(b)
	b.Cleanup(func() { x.Close() })
	return x
}

// renew puts an empty array in place.
func (x *benchArray) renew(b *testing.B) {
	b.Helper()
	if x.Array != nil {
		x.Close()
	}
	opt := CreateOptions{ArrayID: [16]byte{7}, Paths: x.paths, Keys: testKeys{}, Force: true, Geometry: Geometry{Data: 4, Parity: 2, ExtentSize: 8 << 20}}
	var set *Set
	var err error
	if x.memory != nil {
		if err = x.memory.Create(b.Context(), opt); err == nil {
			set, err = x.memory.Discover()
		}
	} else if err = Create(b.Context(), opt); err == nil {
		set, err = Discover(x.paths, false)
	}
	if err == nil {
		x.Array, err = set.Open(b.Context(), Options{Keys: testKeys{}, Crypto: crypto(), State: discard{}})
	}
	if err != nil {
		b.Fatal(err)
	}
}

// room renews the array, off the clock, when less than n bytes of data are left.
func (x *benchArray) room(b *testing.B, n int64) {
	if x.Status().Free < n {
		b.StopTimer()
		x.renew(b)
		b.StartTimer()
	}
}

var benchKinds = []struct {
	name   string
	memory bool
}{{"files", false}, {"memory", true}}

// BenchmarkAppend appends records with 4 KiB of data, durably.
func BenchmarkAppend(b *testing.B) {
	for _, kind := range benchKinds {
		x := newBenchArray(b, kind.memory)
		for _, writers := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, writers), func(b *testing.B) {
				rec := Record{Body: make([]byte, 300), Data: make([]byte, 4112)}
				b.SetBytes(4096)
				b.ReportAllocs()
				const round = 4096
				for done := 0; done < b.N; done += round {
					x.room(b, 128<<20)
					var left atomic.Int64
					left.Store(int64(min(round, b.N-done)))
					var wg sync.WaitGroup
					for range writers {
						wg.Go(func() {
							for left.Add(-1) >= 0 {
								if _, err := x.Append(b.Context(), rec); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
				}
			})
		}
	}
}

// BenchmarkStripe writes and reads full bulk stripes, parity and checksums included.
func BenchmarkStripe(b *testing.B) {
	write := func(b *testing.B, x *benchArray) Stripe {
		w, err := x.NewStripe(b.Context(), x.MaxStripeSegments())
		if err != nil {
			b.Fatal(err)
		}
		for s := 4; s <= w.Segments(); s += 4 {
			if err := w.Sealed(s); err != nil {
				b.Fatal(err)
			}
		}
		s, err := w.Commit(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	for _, kind := range benchKinds {
		x := newBenchArray(b, kind.memory)
		b.Run(kind.name+"/write", func(b *testing.B) {
			b.SetBytes(int64(x.MaxStripeSegments()) * SegmentSize)
			b.ReportAllocs()
			for b.Loop() {
				x.room(b, 64<<20)
				write(b, x)
			}
		})
		b.Run(kind.name+"/read", func(b *testing.B) {
			s := write(b, x)
			b.SetBytes(int64(s.Segments) * SegmentSize)
			b.ReportAllocs()
			for b.Loop() {
				v, err := x.ReadStripe(b.Context(), s, 0, int(s.Segments))
				if err != nil {
					b.Fatal(err)
				}
				v.Release()
			}
		})
	}
}
