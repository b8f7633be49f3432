package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"coffer/disk/internal/blockdev"
)

// promptDev is a disk in memory whose reads take as long as a test says, by the clock of a synctest bubble, and may fail.
type promptDev struct {
	blockdev.Device
	takes *atomic.Int64 // nanoseconds
	fails *atomic.Bool
}

func (d promptDev) ReadAt(p []byte, off int64) error {
	time.Sleep(time.Duration(d.takes.Load()))
	if d.fails.Load() {
		return errors.New("input/output error")
	}
	return d.Device.ReadAt(p, off)
}

// openPrompt opens an array of six such disks, and writes a stripe over all of them and a packed record.
func openPrompt(t *testing.T, m *Memory) (*Array, []promptDev, Stripe, Loc) {
	var devs []blockdev.Device
	var prompt []promptDev
	for _, d := range m.devs {
		p := promptDev{d, new(atomic.Int64), new(atomic.Bool)}
		devs, prompt = append(devs, p), append(prompt, p)
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	state := &testState{}
	a, err := set.Open(t.Context(), Options{Keys: testKeys{}, Crypto: crypto(), State: state, PreferPool: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := writeStripe(a, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := newWritten().put(a, 77, 4096); err != nil {
		t.Fatal(err)
	}
	return a, prompt, s, state.entries[len(state.entries)-1].data
}

// diskOfRole is the slot of the disk that holds a data cell.
func diskOfRole(a *Array, band uint64, off uint32, role int) int {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := a.bands[band]
	w := len(b.members)
	return b.members[(rotation(b.num, off, w)+role)%w].slot
}

// inBubble runs f by simulated time on an array in memory whose disks have so many extents.
func inBubble(t *testing.T, extents int64, f func(*testing.T, *Memory)) {
	m, err := NewMemory(6, superArea+extents<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	err = m.Create(t.Context(), CreateOptions{ArrayID: [16]byte{3}, Geometry: Geometry{Data: 4, Parity: 2, ExtentSize: 1 << 20}, Keys: testKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { f(t, m) })
}

// TestLateTogether: reads of more cells than parity bears are late together, and come while the others are asked. That is no corruption,
// whenever they come.
func TestLateTogether(t *testing.T) {
	inBubble(t, 24, func(t *testing.T, m *Memory) {
		a, devs, s, _ := openPrompt(t, m)
		defer a.Close()
		for i := range devs {
			devs[i].takes.Store(int64(time.Millisecond))
		}
		for after := -time.Millisecond; after < 4*time.Millisecond; after += 50 * time.Microsecond {
			for role := range 3 {
				devs[diskOfRole(a, s.Band, s.Off, role)].takes.Store(int64(hedgeCeiling + after + time.Duration(role)*10*time.Microsecond))
			}
			got, err := readSegments(a, s, 0, 8, 1)
			if err != nil {
				t.Errorf("cells that come %v after they are late: %v", after, err)
			}
			for i, p := range got {
				if err := checkPayload(1 + uint64(i))(p); err != nil {
					t.Errorf("cells that come %v after they are late: segment %d: %v", after, i, err)
				}
			}
		}
		if h := a.Status().Hedges; h == 0 {
			t.Error("no read was hedged")
		}
	})
}

// TestLateComesWhenMissed: a late read comes just after it was found missing, and the others cannot answer for it.
func TestLateComesWhenMissed(t *testing.T) {
	inBubble(t, 24, func(t *testing.T, m *Memory) {
		a, devs, s, _ := openPrompt(t, m)
		defer a.Close()
		b, err := a.bulkBand(s)
		if err != nil {
			t.Fatal(err)
		}
		defer b.unpin()
		buf, err := a.reads.Get(t.Context(), SegmentSize)
		if err != nil {
			t.Fatal(err)
		}
		op, ok := a.op(b, 0, s.Off, 0, buf.Bytes())
		if !ok {
			t.Fatal("no disk")
		}
		op.LateAfter = time.Millisecond
		for i := range devs {
			devs[i].takes.Store(int64(2 * time.Millisecond))
		}
		v := &View{a: a, band: b, ops: []blockdev.Op{op}}
		if err := a.run(v.ops); err != nil || !isLate(&v.ops[0]) {
			t.Fatal(err, v.ops[0].Err)
		}
		lacks := func() (some, late bool) {
			some, late = v.ops[0].Err != nil, isLate(&v.ops[0])
			time.Sleep(time.Second)
			return some, late
		}
		others := errors.New("too few others")
		fetch := func(bool) func(context.Context) (rebuilt, error) {
			return func(context.Context) (rebuilt, error) { return rebuilt{}, others }
		}
		if err := v.answer(t.Context(), lacks, fetch, func(rebuilt) { t.Error("nothing was fetched") }); err != nil {
			t.Errorf("the read is there, and the answer is %v", err)
		}
		release(&buf, v.ops)
	})
}

// TestAvoidedIsLastResort: a disk that lags is not asked, but when others that were asked instead cannot answer.
func TestAvoidedIsLastResort(t *testing.T) {
	inBubble(t, 24, func(t *testing.T, m *Memory) {
		a, devs, s, loc := openPrompt(t, m)
		defer a.Close()
		check := func(what string, lagging int, failing ...int) {
			t.Helper()
			table := a.slots()
			before := devs[lagging].Stats().ReadLatency.Count
			table[lagging].late.Add(lagAt)
			for _, i := range failing {
				devs[i].fails.Store(true)
			}
			got, err := readSegments(a, s, 0, 8, 1)
			if err != nil {
				t.Errorf("%s: stripe: %v", what, err)
			}
			for i, p := range got {
				if err := checkPayload(1 + uint64(i))(p); err != nil {
					t.Errorf("%s: segment %d: %v", what, i, err)
				}
			}
			if p, err := readLoc(a, loc, 77); err != nil {
				t.Errorf("%s: record: %v", what, err)
			} else if err := checkPayload(77)(p); err != nil {
				t.Errorf("%s: record: %v", what, err)
			}
			asked := devs[lagging].Stats().ReadLatency.Count != before
			if want := len(failing) == 2; asked != want {
				t.Errorf("%s: the disk that lags was asked: %v", what, asked)
			}
			table[lagging].late.Add(-lagAt)
			for _, i := range failing {
				devs[i].fails.Store(false)
			}
			time.Sleep(time.Second) // what failed is repaired meanwhile
		}
		for lagging := range devs {
			check(fmt.Sprintf("disk %d lags", lagging), lagging)
			for i := range devs {
				for j := range i {
					if fails := []int{i, j}; !slices.Contains(fails, lagging) {
						check(fmt.Sprintf("disk %d lags, disks %v fail", lagging, fails), lagging, fails...)
					}
				}
			}
		}
	})
}
