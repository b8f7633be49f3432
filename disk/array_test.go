package disk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
)

func TestAppendReadReopen(t *testing.T) {
	f := newFileArray(t, 6, 4, 2, 24<<20)
	a := f.open()
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			for i := range 20 {
				id := uint64(c*1000 + i)
				if _, err := a.Append(t.Context(), Record{Body: fmt.Appendf(nil, "rec %d", id), Data: payload(id, 100+i*400)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var stripes []Stripe
	for i := range 3 {
		s, err := writeStripe(a, uint64(i)<<32, 1+i*5)
		if err != nil {
			t.Fatal(err)
		}
		stripes = append(stripes, s)
	}
	check := func(a *Array) {
		t.Helper()
		if len(f.state.entries) != 160 {
			t.Fatalf("%d entries, want 160", len(f.state.entries))
		}
		for _, e := range f.state.entries {
			var id uint64
			fmt.Sscanf(e.body, "rec %d", &id)
			p, err := readLoc(a, e.data, id)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, payload(id, len(p))) {
				t.Fatalf("record %d: wrong bytes", id)
			}
		}
		for i, s := range stripes {
			got, err := readSegments(a, s, 0, int(s.Segments), uint64(i)<<32)
			if err != nil {
				t.Fatal(err)
			}
			for j, p := range got {
				if !bytes.Equal(p, payload(uint64(i)<<32+uint64(j), SegmentSize)) {
					t.Fatalf("stripe %d segment %d: wrong bytes", i, j)
				}
			}
		}
	}
	check(a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = f.open() // from the position
	check(a)
	a.Close()
	f.state = &testState{}
	a = f.open() // from nothing
	check(a)
	rep, err := a.Check(context.Background(), CheckOptions{})
	if err != nil || !rep.OK() || rep.Stripes == 0 {
		t.Fatalf("check: %+v, %v", rep, err)
	}
	a.Close()
	for i := range 2 { // two disks lost
		os.Rename(f.paths[i], f.paths[i]+".gone")
	}
	f.state = &testState{}
	a = f.open()
	check(a)
	if s := a.Status(); s.State != "degraded" {
		t.Fatalf("state %s", s.State)
	}
	if _, err := a.Append(t.Context(), Record{Body: []byte("rec 7"), Data: payload(7, 500)}); err != nil {
		t.Fatal(err)
	}
	if _, err := writeStripe(a, 5, 9); err != nil {
		t.Fatal(err)
	}
	a.Close()
	for i := range 2 { // they come back: stale, made whole
		os.Rename(f.paths[i]+".gone", f.paths[i])
	}
	a = f.open()
	if s := a.Status(); s.State != "healthy" {
		t.Fatalf("after return: %+v", s)
	}
	if rep, err = a.Check(context.Background(), CheckOptions{}); err != nil || !rep.OK() {
		t.Fatalf("check after return: %+v, %v", rep, err)
	}
	a.Close()
}
