package object

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"

	"coffer/disk"
)

// nowhere is a log that applies records and forgets bulk stripes, so that benchmarks see the store alone.
type nowhere struct {
	*memLog
	seq uint64
}

type nowhereWriter struct {
	mem []byte
	n   int
}

func (w *nowhereWriter) Slot(i int) []byte  { return w.mem[i<<16 : (i+1)<<16 : (i+1)<<16] }
func (w *nowhereWriter) Sealed(n int) error { w.n = n; return nil }
func (w *nowhereWriter) Discard()           {}
func (w *nowhereWriter) Commit(context.Context) (disk.Stripe, error) {
	return disk.Stripe{Band: 1, Off: 1, Data: 4, Segments: uint16(w.n)}, nil
}

var arena = make([]byte, 64<<16)

func (l *nowhere) MaxStripeSegments() int { return 64 }

func (l *nowhere) NewStripe(context.Context, int) (StripeWriter, error) {
	return &nowhereWriter{mem: arena}, nil
}

func (l *nowhere) Pin(uint64) bool { return true }
func (l *nowhere) Unpin(uint64)    {}

func (l *nowhere) Append(_ context.Context, r disk.Record) (uint64, error) {
	l.seq++
	e := disk.Entry{Seq: l.seq, Body: r.Body}
	if len(r.Data) > 0 {
		e.Data = disk.Loc{Band: 1, Off: uint32(l.seq), Len: uint32(len(r.Data))}
	}
	return l.seq, l.state.Apply(disk.Position{Stripe: l.seq, Band: 1}, []disk.Entry{e})
}

// benchSizes are a small object, the largest that travels with its record, and one in stripes.
var benchSizes = []int{4096, 2 * 65520, 16 << 20}

func BenchmarkPut(b *testing.B) {
	for _, sse := range []SSE{{}, customer(1)} {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("mode%d/%d", sse.Mode, n), func(b *testing.B) {
				f := newFixture(b, testOptions(b))
				f.Store.log.Store(&logRef{&nowhere{memLog: f.log, seq: 1000}})
				body := bytes.NewReader(pattern(n, 0))
				b.SetBytes(int64(n))
				b.ReportAllocs()
				keys := make([]string, 1000)
				for i := range keys {
					keys[i] = fmt.Sprintf("some/folder/object-%06d", i)
				}
				for i := 0; b.Loop(); i++ {
					body.Seek(0, io.SeekStart)
					if _, err := f.Put(b.Context(), "b", keys[i%len(keys)], body, PutOptions{Size: int64(n), SSE: sse}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkGet(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f := newFixture(b, testOptions(b))
			f.log.segments = 64
			f.put("k", pattern(n, 0), PutOptions{})
			f.Store.log.Store(&logRef{&uncopied{f.log}})
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				r, err := f.Get(b.Context(), "b", "k", GetOptions{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}

// uncopied reads without copying.
type uncopied struct{ *memLog }

type rawView struct{ mem []byte }

func (v *rawView) Bytes(i int) []byte {
	return v.mem[min(len(v.mem), i<<16):min(len(v.mem), (i+2)<<16)]
}
func (v *rawView) Repair(context.Context, int, func([]byte) error) error { return disk.ErrCorrupt }
func (v *rawView) Release()                                              {}

func (l *uncopied) ReadStripe(_ context.Context, s disk.Stripe, first, n int) (View, error) {
	return &rawView{l.bulk[s][first<<16 : (first+n)<<16]}, nil
}

func (l *uncopied) ReadPacked(_ context.Context, loc disk.Loc) (View, error) {
	return &rawView{l.packed[loc]}, nil
}

// TestAllocations bounds what a small object costs the collector.
func TestAllocations(t *testing.T) {
	f := newFixture(t, testOptions(t))
	body := bytes.NewReader(pattern(4096, 0))
	put := testing.AllocsPerRun(200, func() {
		body.Seek(0, io.SeekStart)
		if _, err := f.Put(t.Context(), "b", "k", body, PutOptions{Size: 4096}); err != nil {
			t.Fatal(err)
		}
	})
	get := testing.AllocsPerRun(200, func() { f.want("k", pattern(4096, 0), GetOptions{}) })
	t.Logf("4 KiB: put %v, get %v allocations with the test's own", put, get)
	// Twice what was measured: the race detector empties pools at random.
	if put > 64 || get > 40 {
		t.Errorf("4 KiB: put %v, get %v allocations", put, get)
	}
}
