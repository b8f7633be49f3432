package disk

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// add appends records, and awaits each.
func (f *fileArray) add(a *Array, bodies ...string) {
	f.t.Helper()
	for _, b := range bodies {
		if _, err := a.Append(context.Background(), Record{Body: []byte(b)}); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fileArray) close(a *Array) {
	f.t.Helper()
	if err := a.Close(); err != nil {
		f.t.Fatal(err)
	}
}

func (s *testState) bodies() (list []string) {
	for _, e := range s.entries {
		list = append(list, e.body)
	}
	return list
}

// TestOtherHistory: a state does not go on from a log that has other records under the same numbers in the same places.
func TestOtherHistory(t *testing.T) {
	f := newFileArray(t, 3, 2, 1, 16<<20)
	a := f.open()
	f.add(a, "one", "two")
	f.close(a)
	var images [][]byte
	for _, p := range f.paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, b)
	}
	before := f.state.clone()

	a = f.open()
	f.add(a, "three", "four")
	f.close(a)
	first := f.state.clone()

	for i, p := range f.paths { // the disks go back to what they were
		if err := os.WriteFile(p, images[i], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.state = before
	a = f.open()
	f.add(a, "III", "IV")
	f.close(a)
	second := f.state.clone()
	if p, q := first.pos, second.pos; p.Stripe != q.Stripe || p.Band != q.Band || p.Off != q.Off || p.Nonce == q.Nonce {
		t.Fatalf("the histories end at %+v and %+v, not in one place", p, q)
	}

	f.state = first
	f.close(f.open())
	if want := []string{"one", "two", "III", "IV"}; f.state.resets != 1 || !slices.Equal(f.state.bodies(), want) {
		t.Errorf("%d resets, records %q, want %q", f.state.resets, f.state.bodies(), want)
	}
	f.state = second
	f.close(f.open())
	if f.state.resets != 0 {
		t.Error("a state that matches was reset")
	}
}

// TestStateBehindFreed: a state that has not applied a band that was freed, though one in front of it, is replayed from the start.
func TestStateBehindFreed(t *testing.T) {
	f := newFileArray(t, 3, 2, 1, 16<<20)
	f.state.gaps = true
	var old *testState
	var bands []uint64
	for i := range 3 { // a band each
		a := f.open()
		f.add(a, fmt.Sprint("record ", i))
		bands = append(bands, f.state.pos.Band)
		if i == 0 {
			old = f.state.clone()
		}
		f.close(a)
	}
	a := f.open()
	for deadline := time.Now().Add(10 * time.Second); a.Free(t.Context(), bands[1]) != nil; { // it is pinned until the state has it
		if time.Now().After(deadline) {
			t.Fatal("the band cannot be freed")
		}
		time.Sleep(time.Millisecond)
	}
	f.close(a)

	old.gaps = true
	f.state = old
	f.close(f.open())
	if want := []string{"record 0", "record 2"}; f.state.resets != 1 || !slices.Equal(f.state.bodies(), want) {
		t.Errorf("%d resets, records %q, want %q", f.state.resets, f.state.bodies(), want)
	}
}
