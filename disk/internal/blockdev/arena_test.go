package blockdev

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestArenaSizes(t *testing.T) {
	a := NewArena(ArenaOptions{Limit: 4 * MaxBuf})
	for _, c := range []struct{ n, size int }{
		{1, 4 << 10}, {4096, 4 << 10}, {4097, 8 << 10}, {20000, 32 << 10}, {64 << 10, 64 << 10}, {64<<10 + 1, 68 << 10},
		{6 * (1<<20 + 4<<10), 6 * (1<<20 + 4<<10)}, {32 * (1<<20 + 4<<10), 32 * (1<<20 + 4<<10)}, {MaxBuf, MaxBuf},
	} {
		b, err := a.Get(t.Context(), c.n)
		if err != nil {
			t.Fatal(err)
		}
		if inUse, _ := a.Stats(); inUse != int64(c.size) {
			t.Errorf("%d bytes take %d, want %d", c.n, inUse, c.size)
		}
		p := b.Bytes()
		if len(p) != c.n || cap(p) != c.n || uintptr(unsafe.Pointer(&p[0]))%Align != 0 {
			t.Errorf("%d bytes: length %d, capacity %d, at %p", c.n, len(p), cap(p), &p[0])
		}
		p[0], p[c.n-1] = 1, 2
		b.Release()
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Get(t.Context(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Get after Close: %v", err)
	}
}

func TestArenaLimits(t *testing.T) {
	a := NewArena(ArenaOptions{Limit: 1 << 20})
	for _, n := range []int{1<<20 + 1, MaxBuf + 1} {
		if _, err := a.Get(t.Context(), n); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Get %d: %v", n, err)
		}
	}
	if _, limit := NewArena(ArenaOptions{}).Stats(); limit != DefaultArena {
		t.Errorf("default limit %d", limit)
	}
	b, err := a.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err == nil {
		t.Error("Close with a buffer out succeeded")
	}
	b.Release()
	var zero Buf
	zero.Release()
	for name, f := range map[string]func(){
		"second Release": b.Release,
		"Abandon after":  func() { b.Abandon([]Op{{Stuck: true, hold: &hold{}}}) },
		"empty Get":      func() { a.Get(t.Context(), 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			f()
		}()
	}
}

// TestArenaFair: those who wait are served in order; one who leaves does not hold up the rest.
func TestArenaFair(t *testing.T) {
	a := NewArena(ArenaOptions{Limit: 1 << 20})
	whole, err := a.Get(t.Context(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		order []int
		wg    sync.WaitGroup
	)
	waiting := func() (n int) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for w := a.first; w != nil; w = w.next {
			n++
		}
		return n
	}
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 6 {
		size, c := 300<<10, t.Context()
		if i == 2 {
			size, c = 1<<20, ctx // leaves before its turn
		}
		wg.Go(func() {
			b, err := a.Get(c, size)
			if i == 2 {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled Get: %v", err)
				}
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			time.Sleep(5 * time.Millisecond)
			b.Release()
		})
		waitFor(t, "waiter", func() bool { return waiting() == i+1 })
	}
	cancel()
	waitFor(t, "cancelled waiter", func() bool { return waiting() == 5 })
	whole.Release()
	wg.Wait()
	if len(order) != 5 || !slices.Contains(order[:3], 0) || !slices.Contains(order[2:], 5) {
		t.Errorf("served in order %v", order)
	}
	if inUse, _ := a.Stats(); inUse != 0 {
		t.Errorf("%d bytes leaked", inUse)
	}
	// Close wakes those who wait.
	whole, _ = a.Get(t.Context(), 1<<20)
	wg.Go(func() {
		if _, err := a.Get(t.Context(), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("waiting Get at Close: %v", err)
		}
	})
	waitFor(t, "waiter", func() bool { return waiting() == 1 })
	a.Close()
	wg.Wait()
	whole.Release()
}

// TestArenaRandom: buffers of many sizes and goroutines never overlap, and all memory comes together again.
func TestArenaRandom(t *testing.T) {
	a := NewArena(ArenaOptions{Limit: 48 << 20})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			type held struct {
				b    Buf
				mark byte
			}
			var all []held
			for i := range 1500 {
				if len(all) > 0 && (rng.IntN(2) == 0 || len(all) > 20) {
					k := rng.IntN(len(all))
					h := all[k]
					all[k] = all[len(all)-1]
					all = all[:len(all)-1]
					p := h.b.Bytes()
					for j := 0; j < len(p); j += 512 {
						if p[j] != h.mark {
							t.Errorf("byte %d of a buffer of %d changed", j, len(p))
							break
						}
					}
					h.b.Release()
					continue
				}
				n := 1 + rng.IntN(128<<10)
				if rng.IntN(4) == 0 {
					n = 1 + rng.IntN(1<<20)
				}
				// Bounded, as goroutines that wait for each other's memory while holding some may all wait.
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
				b, err := a.Get(ctx, n)
				cancel()
				if err != nil {
					continue
				}
				mark := byte(g*50 + i)
				p := b.Bytes()
				for j := 0; j < len(p); j += 512 {
					p[j] = mark
				}
				all = append(all, held{b, mark})
			}
			for _, h := range all {
				h.b.Release()
			}
		})
	}
	wg.Wait()
	if a.inUse != 0 {
		t.Errorf("%d bytes leaked", a.inUse)
	}
	if a.mapped > 2*a.limit+regionSize {
		t.Errorf("%d bytes mapped", a.mapped)
	}
	free, slabs := 0, 0
	for _, r := range a.regions {
		for i, s := range r.free {
			free += s.n
			if i > 0 && r.free[i-1].off+r.free[i-1].n >= s.off {
				t.Errorf("free spans %v touch", r.free)
			}
		}
	}
	for _, p := range a.partial {
		slabs += len(p)
	}
	if free+slabs*slabSize != int(a.mapped) || slabs > smallClasses {
		t.Errorf("%d free bytes and %d slabs of %d mapped", free, slabs, a.mapped)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestArenaMemory(t *testing.T) {
	a := NewArena(ArenaOptions{})
	b, err := a.Get(t.Context(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if base := uintptr(unsafe.Pointer(&a.regions[0].mem[0])); base%hugePage != 0 {
		t.Errorf("region at %#x", base)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	// Every mapping that is left out of core dumps carries "dd" (proc_pid_smaps(5)).
	if !bytes.Contains(smaps, []byte(" dd ")) {
		t.Error("no mapping is left out of core dumps")
	}
}

func TestArenaAllocs(t *testing.T) {
	a := NewArena(ArenaOptions{})
	for _, n := range []int{4 << 10, 64 << 10, 6 * (1<<20 + 4<<10)} {
		if got := testing.AllocsPerRun(100, func() {
			b, err := a.Get(context.Background(), n)
			if err != nil {
				t.Fatal(err)
			}
			b.Release()
		}); got > 0 {
			t.Errorf("%d bytes: %v allocations", n, got)
		}
	}
}
