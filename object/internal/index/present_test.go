package index

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
)

func filterKey(i int) []byte {
	return binary.BigEndian.AppendUint64([]byte("obucket-"), uint64(i)*0x9e3779b97f4a7c15)
}

func TestPresent(t *testing.T) {
	p := newPresent()
	if !p.mayHave(filterKey(0)) {
		t.Error("a filter that is not ready excludes a key")
	}
	p.ready.Store(true)
	const n = 1 << 20
	var wg sync.WaitGroup
	for w := range 2 { // the writer and the scan
		wg.Go(func() {
			for i := w; i < n; i += 2 {
				p.add(filterKey(i))
			}
		})
	}
	wg.Wait()
	for i := range n {
		if !p.mayHave(filterKey(i)) {
			t.Fatalf("key %d was added and is excluded", i)
		}
	}
	wrong := 0
	for i := range n {
		if p.mayHave(filterKey(n + i)) {
			wrong++
		}
	}
	rate, perKey := float64(wrong)/n, float64(p.bytes())*8/n
	t.Logf("%.2f %% false positives, %.1f bits a key, %d segments", 100*rate, perKey, len(*p.segments.Load()))
	if rate > 0.03 {
		t.Errorf("%.2f %% false positives", 100*rate)
	}
	if perKey > 3*keyBits {
		t.Errorf("%.1f bits a key", perKey)
	}
}

// TestPresentScan opens an index with objects and looks up those it has and others, before and after the scan.
func TestPresentScan(t *testing.T) {
	fs, keys := newMem(), testKeys{"k"}
	x := open(t, fs, keys)
	b := x.NewBatch()
	const n = 5000
	for i := range n {
		b.Set(ObjectKey(nil, 1, fmt.Sprint("key", i)), []byte("value"))
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = open(t, fs, keys)
	look := func() {
		t.Helper()
		b := x.NewBatch()
		defer b.Discard()
		for i := range 2 * n {
			_, ok, err := b.Get(ObjectKey(nil, 1, fmt.Sprint("key", i)), nil)
			if err != nil || ok != (i < n) {
				t.Fatalf("key %d: %v, %v", i, ok, err)
			}
		}
	}
	look()
	x.calls.Wait()
	if !x.keys.Load().ready.Load() {
		t.Fatal("the scan ended and the filter is not ready")
	}
	look()
	if x.keys.Load().mayHave(ObjectKey(nil, 1, "no such key")) && x.keys.Load().mayHave(ObjectKey(nil, 1, "nor this one")) &&
		x.keys.Load().mayHave(ObjectKey(nil, 2, "key1")) {
		t.Error("the filter excludes nothing")
	}
	b = x.NewBatch()
	b.Set(ObjectKey(nil, 1, "late"), []byte("value"))
	if _, ok, err := b.Get(ObjectKey(nil, 1, "late"), nil); !ok || err != nil {
		t.Errorf("a key of the same batch: %v, %v", ok, err)
	}
	b.Discard()
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPresentShrinks puts and removes many names: the filter keeps room for those that are there, and none of them is ever
// said to be absent, also while another filter is being made.
func TestPresentShrinks(t *testing.T) {
	if testing.Short() {
		t.Skip("half a million names")
	}
	x := open(t, newMem(), testKeys{})
	const names, perBatch, kept = 500_000, 20_000, 1000
	key := func(i int) []byte { return ObjectKey(nil, 1, fmt.Sprint("key", i)) }
	for i := 0; i < names; i += perBatch {
		b := x.NewBatch()
		for j := range perBatch {
			b.Set(key(i+j), []byte("v"))
		}
		check(t, b.Commit())
		b = x.NewBatch()
		for j := range perBatch {
			if _, ok, err := b.Get(key(i+j), nil); !ok || err != nil {
				t.Fatalf("key %d: %t, %v", i+j, ok, err)
			}
			if i+j >= kept {
				b.Delete(key(i + j))
			}
		}
		check(t, b.Commit())
	}
	x.calls.Wait()
	b := x.NewBatch() // takes a filter into use that has become ready
	for i := range kept {
		if _, ok, err := b.Get(key(i), nil); !ok || err != nil {
			t.Fatalf("key %d: %t, %v", i, ok, err)
		}
	}
	b.Discard()
	grown := newPresent()
	for i := range names {
		grown.add(key(i))
	}
	t.Logf("%d KiB, without renewal %d KiB", x.KeyMemory()>>10, grown.bytes()>>10)
	if n := x.KeyMemory(); n > grown.bytes()/2 {
		t.Errorf("%d KiB for %d keys", n>>10, kept)
	}
	check(t, x.Close())
}

func BenchmarkPresent(b *testing.B) {
	p := newPresent()
	p.ready.Store(true)
	for i := range 1 << 20 {
		p.add(filterKey(i))
	}
	key := filterKey(0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		binary.BigEndian.PutUint64(key[8:], uint64(i)*0x9e3779b97f4a7c17)
		p.mayHave(key)
	}
}
