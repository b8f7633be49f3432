package blockdev

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// TestLate: who does not wait for a late read gets its bytes, or its memory back, when it has ended; and only so many go on at once.
func TestLate(t *testing.T) {
	for _, h := range hangs {
		t.Run(h.name, func(t *testing.T) {
			g, release := h.open(t, GroupOptions{ReadTimeout: time.Minute, Workers: maxLate})
			arena := NewArena(ArenaOptions{})
			var kept [maxLate][]Op
			var landed atomic.Int32
			for i := range kept {
				b, err := arena.Get(t.Context(), 2*Align)
				if err != nil {
					t.Fatal(err)
				}
				ops := []Op{{Dev: 0, Buf: b.Bytes()[:Align]}, {Dev: 1, Buf: b.Bytes()[Align : 2*Align], LateAfter: 10 * time.Millisecond}}
				if err := g.Run(ops); err != nil {
					t.Fatal(err)
				}
				if ops[0].Err != nil || !errors.Is(ops[1].Err, ErrLate) || !ops[1].Stuck || ops[1].Settle() {
					t.Fatalf("read %d: %+v", i, ops)
				}
				ops[1].Landed(func() { landed.Add(1) })
				if i%2 == 0 {
					b.Abandon(ops)
				}
				kept[i] = ops
			}
			if s := memberOf(g, 1).counters.snapshot(); s.Late != maxLate || s.Lates != maxLate || s.Stuck != 0 || s.Timeouts != 0 {
				t.Errorf("counted %+v", s)
			}
			more := []Op{{Dev: 1, Buf: buffer(t, Align, 1), LateAfter: time.Minute / 2}}
			if err := g.Run(more); err != nil || !errors.Is(more[0].Err, ErrLate) || more[0].Stuck {
				t.Errorf("one too many: %v, %+v", err, more)
			}
			release(maxLate)
			waitFor(t, "all reads land", func() bool { return landed.Load() == maxLate })
			for i, ops := range kept {
				if !ops[1].Settle() || ops[1].Err != nil || ops[1].Stuck {
					t.Errorf("read %d landed: %+v", i, ops[1])
				}
			}
			if s := memberOf(g, 1).counters.snapshot(); s.Late != 0 {
				t.Errorf("counted at the end %+v", s)
			}
			waitFor(t, "abandoned memory comes back", func() bool { n, _ := arena.Stats(); return n == maxLate/2*2*Align })
		})
	}
}

// TestSimLate: the bytes of a late read come into its buffer later.
func TestSimLate(t *testing.T) {
	w, disks, g := newSim(3, 2)
	run(t, g, []Op{{Dev: 1, Write: true, Durable: true, Buf: buffer(t, Align, 7)}})
	disks[1].Slow()
	ops := []Op{{Dev: 1, Buf: buffer(t, Align, 0), LateAfter: 1}}
	if err := g.Run(ops); err != nil || !errors.Is(ops[0].Err, ErrLate) || !ops[0].Stuck || ops[0].Buf[0] != 0 {
		t.Fatalf("%v, %+v", err, ops)
	}
	for w.Step() {
	}
	if !ops[0].Settle() || ops[0].Err != nil || ops[0].Buf[0] != 7 {
		t.Errorf("landed: %v, %d", ops[0].Err, ops[0].Buf[0])
	}
	ops[0] = Op{Dev: 1, Buf: ops[0].Buf} // who waits gets the bytes
	if err := g.Run(ops); err != nil || ops[0].Err != nil {
		t.Errorf("%v, %+v", err, ops)
	}
}
