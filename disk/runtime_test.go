package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// TestReadOnly: an array opened for reading answers reads and writes nothing, whatever is asked of it.
func TestReadOnly(t *testing.T) {
	x := newTampered(t)
	x.flip(region{"", int(x.loc.Start), int(x.loc.Start + x.loc.Len)}, x.packed[:1]) // something to repair
	x.flip(region{"", 0, 8}, x.bandHeaders[:1])
	xor(x.disks[0], 100, 1) // and a superblock copy
	before := x.contents()
	x.opt.ReadOnly = true
	a := x.open(x.disks[:5]...)
	if err := x.w.verify(a, x.state); err != nil {
		t.Error(err)
	}
	if _, err := a.Append(t.Context(), Record{Body: []byte("rec 1"), Essential: true}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("append: %v", err)
	}
	if _, err := writeStripe(a, 1, 1); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write stripe: %v", err)
	}
	if err := a.WriteKeyArea(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write key area: %v", err)
	}
	if rep, err := a.Check(t.Context(), CheckOptions{Repair: true}); err != nil || rep.Bad == 0 || rep.Repaired != 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if s := a.Status(); s.State != "read-only" {
		t.Errorf("state %s", s.State)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for i, b := range x.contents() {
		if !bytes.Equal(b, before[i]) {
			t.Errorf("disk %d was written", i)
		}
	}
}

// contents are all bytes of all disks.
func (s *simArray) contents() (all [][]byte) {
	for _, d := range s.disks {
		b := make([]byte, d.Limits().Size)
		d.Peek(b, 0)
		all = append(all, b)
	}
	return all
}

// areaKeys have a key area that changes.
type areaKeys struct {
	testKeys
	area []byte
}

func (k *areaKeys) Area() []byte { return k.area }

func TestWriteKeyArea(t *testing.T) {
	s := newSimArray(t, 4, 2, 2, 12)
	k := &areaKeys{area: []byte("first")}
	s.opt.Keys = k
	a := s.open()
	k.area = bytes.Repeat([]byte("second"), 8000)
	if err := a.WriteKeyArea(); err != nil {
		t.Fatal(err)
	}
	if err := newWritten().put(a, 1, 100); err != nil {
		t.Error(err)
	}
	s.world.Cut()
	a.Close() // the power is gone: nothing of this reaches the disks
	s.world.Restart()
	for i := range s.disks {
		set, err := discover([]blockdev.Device{s.disks[i]}, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(set.KeyArea(), k.area) {
			t.Errorf("disk %d: key area of %d bytes, want %d", i, len(set.KeyArea()), len(k.area))
		}
		set.Close()
	}
}

// TestConcurrent: all calls at once on real files, by io_uring and by the pool.
func TestConcurrent(t *testing.T) {
	for _, pool := range []bool{false, true} {
		name := "best"
		if pool {
			name = "pool"
		}
		t.Run(name, func(t *testing.T) {
			f := newFileArray(t, 6, 4, 2, 40<<20)
			f.opt.PreferPool = pool
			a := f.open()
			t.Logf("%s: %s", a.Status().IO, a.Status().IOReason)
			w := newWritten()
			stop := make(chan struct{})
			time.AfterFunc(250*time.Millisecond, func() { close(stop) })
			var others sync.WaitGroup
			during := func(f func() error) {
				others.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							if err := f(); err != nil {
								t.Error(err)
								return
							}
						}
					}
				})
			}
			var bad atomic.Value
			during(func() error {
				rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
				if !rep.OK() {
					bad.Store(rep)
				}
				return err
			})
			during(func() error { time.Sleep(30 * time.Millisecond); return a.WriteKeyArea() })
			during(func() error { a.Status(); time.Sleep(time.Millisecond); return nil })
			during(func() error {
				w.mu.Lock()
				now := newWritten()
				for id, s := range w.bulk {
					now.bulk[id] = s
					break
				}
				w.mu.Unlock()
				return now.verify(a, f.state)
			})
			for _, err := range load(a, w, stop, a.MaxStripeSegments()) {
				if !errors.Is(err, ErrFull) {
					t.Error(err)
				}
			}
			others.Wait()
			if r := bad.Load(); r != nil {
				t.Errorf("check of a healthy array under load: %+v", r)
			}
			if err := w.verify(a, f.state); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			for _, p := range f.paths[:2] {
				os.Remove(p)
			}
			f.state = &testState{}
			a = f.open()
			if err := w.verify(a, f.state); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// hanging is a device whose reads hang while gate is not nil, and then write noise into the memory they were given.
type hanging struct {
	blockdev.Device
	gate atomic.Pointer[chan struct{}]
}

func (d *hanging) ReadAt(p []byte, off int64) error {
	if g := d.gate.Load(); g != nil {
		<-*g
		for i := range p {
			p[i] = 0xee
		}
		return nil
	}
	return d.Device.ReadAt(p, off)
}

// TestHungReads: a disk that hangs is read around, and what it does to its memory later reaches nobody.
func TestHungReads(t *testing.T) {
	f := newFlakyArray(t, 4, 2, 2, 12)
	var devs []blockdev.Device
	var hung []*hanging
	for _, d := range f.disks {
		h := &hanging{Device: d}
		hung, devs = append(hung, h), append(devs, h)
	}
	set, err := discover(devs, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := set.Open(t.Context(), Options{
		Keys: testKeys{}, Crypto: crypto(), State: f.state, PreferPool: true, ReadTimeout: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := newWritten()
	if err := w.put(a, 1, 9000); err != nil {
		t.Fatal(err)
	}
	s, err := writeStripe(a, 100, 6)
	if err != nil {
		t.Fatal(err)
	}
	l := f.state.entries[0].data
	for _, disk := range []int{cell(a, s.Band, s.Off, 1).slot, cell(a, l.Band, l.Off, int(l.Role)).slot} {
		gate := make(chan struct{})
		hung[disk].gate.Store(&gate)
		bulk, err := a.ReadStripe(t.Context(), s, 0, 6)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := a.ReadPacked(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		repaired, err := a.ReadStripe(t.Context(), s, 0, 6)
		if err != nil {
			t.Fatal(err)
		}
		if err := repaired.Repair(context.Background(), 1, checkPayload(101)); err != nil {
			t.Error(err)
		}
		hung[disk].gate.Store(nil)
		close(gate)
		time.Sleep(20 * time.Millisecond) // the noise is written
		for i := range 6 {
			if err := checkPayload(100 + uint64(i))(bulk.Bytes(i)); err != nil {
				t.Errorf("segment %d: %v", i, err)
			}
		}
		if err := checkPayload(101)(repaired.Bytes(1)); err != nil {
			t.Errorf("repaired segment: %v", err)
		}
		if err := checkPayload(1)(packed.Bytes(0)); err != nil {
			t.Errorf("packed: %v", err)
		}
		bulk.Release()
		packed.Release()
		repaired.Release()
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
