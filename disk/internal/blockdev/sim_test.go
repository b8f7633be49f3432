package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const simTestSize = 64 * Align

func newSim(seed uint64, n int) (*World, []*SimDisk, *SimGroup) {
	w := NewWorld(rand.New(rand.NewPCG(seed, 0)))
	disks, devs := make([]*SimDisk, n), make([]Device, n)
	for i := range disks {
		disks[i] = NewSimDisk(w, simTestSize, SimOptions{})
		devs[i] = disks[i]
	}
	g, err := NewGroup(devs, GroupOptions{})
	if err != nil {
		panic(err)
	}
	return w, disks, g.(*SimGroup)
}

// block is an aligned block filled with v, from p.
func block(p []byte, v byte) []byte {
	b := p[:Align]
	for i := range b {
		b[i] = v
	}
	return b
}

// read returns the first byte of block no of d.
func read(t *testing.T, d Device, no int, p []byte) byte {
	t.Helper()
	if err := d.ReadAt(p[:Align], int64(no)*Align); err != nil {
		t.Fatal(err)
	}
	for _, v := range p[:Align] {
		if v != p[0] {
			t.Fatalf("block %d is torn", no)
		}
	}
	return p[0]
}

// TestSimPowerCut: over many seeds, durable and flushed blocks survive each cut, others are whole, lost or torn by sector; the
// durable writes of blocks with older cached writes win.
func TestSimPowerCut(t *testing.T) {
	p := buffer(t, Align, 0)
	var lost, kept, torn int
	for seed := range uint64(200) {
		w, disks, _ := newSim(seed, 1)
		d := disks[0]
		for _, err := range []error{
			d.WriteAt(block(p, 1), 0, true),
			d.WriteAt(block(p, 2), Align, false), d.Flush(),
			d.WriteAt(block(p, 3), 2*Align, false), d.WriteAt(block(p, 4), 2*Align, true),
			d.WriteAt(block(p, 5), 3*Align, true), d.WriteAt(block(p, 6), 3*Align, false),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := read(t, d, 3, p); got != 6 {
			t.Fatalf("the cache answers %d", got)
		}
		w.CutAfter(1)
		if err := d.WriteAt(block(p, 7), 4*Align, true); !errors.Is(err, ErrPowerCut) {
			t.Fatalf("write at the cut: %v", err)
		}
		if !w.Off() {
			t.Fatal("the power is on")
		}
		for name, err := range map[string]error{"read": d.ReadAt(p, 0), "write": d.WriteAt(p, 0, true), "flush": d.Flush(), "discard": d.Discard(0, Align)} {
			if !errors.Is(err, ErrPowerCut) {
				t.Fatalf("%s without power: %v", name, err)
			}
		}
		w.Restart()
		for no, want := range []byte{1, 2, 4} {
			if got := read(t, d, no, p); got != want {
				t.Fatalf("seed %d: durable block %d holds %d", seed, no, got)
			}
		}
		for no, values := range map[int][2]byte{3: {5, 6}, 4: {0, 7}} {
			if err := d.ReadAt(p, int64(no)*Align); err != nil {
				t.Fatal(err)
			}
			fresh := 0
			for s := 0; s < Align; s += SectorSize {
				sector := p[s : s+SectorSize]
				switch {
				case bytes.Count(sector, values[1:2]) == SectorSize:
					fresh++
				case bytes.Count(sector, values[:1]) != SectorSize:
					t.Fatalf("seed %d: a sector of block %d is torn", seed, no)
				}
			}
			switch fresh {
			case 0:
				lost++
			case Align / SectorSize:
				kept++
			default:
				torn++
			}
		}
	}
	if min(lost, kept, torn) < 20 {
		t.Errorf("%d lost, %d kept, %d torn: not all kinds of survival occur", lost, kept, torn)
	}
}

// TestSimInterleave: operations of several tickets complete mixed; a cut leaves some done, and tells so.
func TestSimInterleave(t *testing.T) {
	const n = 6
	mixed, partial := false, false
	p1, p2 := buffer(t, n*Align, 1), buffer(t, n*Align, 2)
	for seed := range uint64(100) {
		w, disks, g := newSim(seed, n)
		ops1 := stripe(n, Align, p1, Op{Write: true, Durable: true})
		ops2 := stripe(n, Align, p2, Op{Write: true, Durable: true, Off: Align})
		t1, err := g.Start(ops1)
		if err != nil {
			t.Fatal(err)
		}
		t2, err := g.Start(ops2)
		if err != nil {
			t.Fatal(err)
		}
		if w.InFlight() != 2*n {
			t.Fatalf("%d in flight", w.InFlight())
		}
		w.CutAfter(1 + int(seed%(2*n+2)))
		for !t1.Done() || !t2.Done() {
			if t1.Done() != t2.Done() {
				mixed = true
			}
			if !w.Step() {
				t.Fatal("nothing in flight, and not done")
			}
		}
		done := 0
		w.Restart()
		for i, op := range append(ops1, ops2...) {
			if op.Err != nil {
				if !errors.Is(op.Err, ErrPowerCut) {
					t.Fatal(op.Err)
				}
				continue
			}
			done++
			got := make([]byte, Align)
			disks[i%n].Peek(got, op.Off)
			if !bytes.Equal(got, op.Buf) {
				t.Fatalf("seed %d: op %d was acknowledged and is lost", seed, i)
			}
		}
		if want := min(int(seed%(2*n+2)), 2*n); done != want {
			t.Fatalf("seed %d: %d done before a cut at change %d", seed, done, want+1)
		}
		partial = partial || done > 0 && done < 2*n
	}
	if !mixed || !partial {
		t.Errorf("mixed %v, partial %v", mixed, partial)
	}
}

func TestSimBufferInFlight(t *testing.T) {
	w, _, g := newSim(1, 1)
	p := buffer(t, Align, 1)
	if _, err := g.Start([]Op{{Write: true, Buf: p}}); err != nil {
		t.Fatal(err)
	}
	p[17]++
	defer func() {
		if recover() == nil {
			t.Error("a buffer changed in flight went unnoticed")
		}
	}()
	w.Step()
}

// TestSimRepeats: the same seed does the same; another does not.
func TestSimRepeats(t *testing.T) {
	p := buffer(t, 4*Align, 3)
	history := func(seed uint64) string {
		w, disks, g := newSim(seed, 4)
		var b strings.Builder
		w.Trace(func(s string) { b.WriteString(s + "\n") })
		rng := rand.New(rand.NewPCG(seed, 9))
		for range 60 {
			ops := stripe(4, Align, p, Op{Write: rng.IntN(3) > 0, Durable: rng.IntN(2) == 0, Off: rng.Int64N(60) * Align})
			if err := g.Run(ops); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(10) == 0 {
				b.WriteString(w.RandomFault(disks, AllFaults).String() + "\n")
			}
			if rng.IntN(20) == 0 {
				w.Cut()
				w.Restart()
			}
		}
		for _, d := range disks {
			img := make([]byte, simTestSize)
			d.Peek(img, 0)
			fmt.Fprintf(&b, "%x\n", img)
		}
		return b.String()
	}
	if d := cmp.Diff(history(7), history(7)); d != "" {
		t.Errorf("seed 7 twice: %s", d)
	}
	if history(7) == history(8) {
		t.Error("seeds 7 and 8 do the same")
	}
}

func TestSimFaults(t *testing.T) {
	p := buffer(t, Align, 0)
	write := func(d *SimDisk, no int, v byte) error { return d.WriteAt(block(p, v), int64(no)*Align, true) }
	at := func(d *SimDisk, no int) (v byte) {
		one := make([]byte, 1)
		d.Peek(one, int64(no)*Align)
		return one[0]
	}
	for _, c := range []struct {
		name string
		run  func(t *testing.T, w *World, d, e *SimDisk)
	}{
		{"lost write", func(t *testing.T, _ *World, d, _ *SimDisk) {
			d.LoseWrite(2)
			write(d, 0, 1)
			if err := write(d, 0, 2); err != nil || at(d, 0) != 1 {
				t.Errorf("%v, holds %d", err, at(d, 0))
			}
			if write(d, 0, 3); at(d, 0) != 3 {
				t.Error("the fault lasts")
			}
		}},
		{"misdirected on the disk", func(t *testing.T, _ *World, d, _ *SimDisk) {
			d.MisdirectWrite(1, 5*Align)
			if err := write(d, 0, 2); err != nil || at(d, 0) != 0 || at(d, 5) != 2 {
				t.Errorf("%v, holds %d and %d", err, at(d, 0), at(d, 5))
			}
		}},
		{"misdirected across disks", func(t *testing.T, _ *World, d, e *SimDisk) {
			d.MisdirectWriteTo(1, e)
			if err := write(d, 3, 2); err != nil || at(d, 3) != 0 || at(e, 3) != 2 {
				t.Errorf("%v, holds %d and %d", err, at(d, 3), at(e, 3))
			}
		}},
		{"failed write", func(t *testing.T, _ *World, d, _ *SimDisk) {
			d.FailWrite(1, unix.EIO)
			d.FailWritePersisted(2, unix.ENOSPC)
			if err := write(d, 0, 1); !errors.Is(err, unix.EIO) || at(d, 0) != 0 {
				t.Errorf("%v, holds %d", err, at(d, 0))
			}
			if err := write(d, 0, 2); !errors.Is(err, unix.ENOSPC) || at(d, 0) != 2 {
				t.Errorf("%v, holds %d", err, at(d, 0))
			}
			if err := write(d, 0, 3); err != nil {
				t.Error(err)
			}
		}},
		{"failed read", func(t *testing.T, _ *World, d, _ *SimDisk) {
			d.FailRead(1, unix.EIO)
			if err := d.ReadAt(p, 0); !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
			if err := d.ReadAt(p, 0); err != nil {
				t.Error(err)
			}
		}},
		{"failed flush", func(t *testing.T, w *World, d, _ *SimDisk) {
			for no := range 40 {
				d.WriteAt(block(p, 1), int64(no)*Align, false)
			}
			d.FailFlush(1, unix.EIO)
			if err := d.Flush(); !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
			if err := d.Flush(); err != nil {
				t.Errorf("the next flush: %v", err)
			}
			w.Cut()
			w.Restart()
			kept := 0
			for no := range 40 {
				kept += int(at(d, no))
			}
			if kept == 0 || kept == 40 {
				t.Errorf("%d of 40 writes survive a failed flush", kept)
			}
			d.WriteAt(block(p, 9), 0, false)
			d.FailFlushPersisted(1, unix.EIO)
			if err := d.Flush(); !errors.Is(err, unix.EIO) || at(d, 0) != 9 {
				t.Errorf("%v, holds %d", err, at(d, 0))
			}
		}},
		{"rot", func(t *testing.T, _ *World, d, _ *SimDisk) {
			write(d, 1, 0)
			d.FlipBits(Align+100, 1, 1)
			got := make([]byte, Align)
			d.Peek(got, Align)
			if bytes.Count(got, []byte{0}) != Align-1 || got[100] == 0 {
				t.Error("one bit of byte 100 should differ")
			}
			d.Overwrite(Align, block(p, 8))
			if at(d, 1) != 8 || read(t, d, 1, p) != 8 {
				t.Error("not overwritten")
			}
		}},
		{"stale", func(t *testing.T, _ *World, d, _ *SimDisk) {
			write(d, 0, 1)
			write(d, 0, 2)
			write(d, 1, 3)
			d.Regress(0, 2*Align)
			if read(t, d, 0, p) != 1 || read(t, d, 1, p) != 0 {
				t.Error("not stale")
			}
		}},
		{"bad range", func(t *testing.T, _ *World, d, _ *SimDisk) {
			write(d, 2, 1)
			d.BadRange(2*Align, Align)
			if err := d.ReadAt(p, 2*Align); !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
			if err := d.ReadAt(p, 3*Align); err != nil {
				t.Error(err)
			}
			if write(d, 2, 4); read(t, d, 2, p) != 4 {
				t.Error("a rewrite does not heal")
			}
		}},
		{"dead", func(t *testing.T, w *World, d, _ *SimDisk) {
			write(d, 0, 1)
			d.Kill()
			if err := write(d, 0, 2); !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
			if err := d.Flush(); !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
			w.Cut()
			w.Restart()
			if err := d.ReadAt(p, 0); !errors.Is(err, unix.EIO) {
				t.Errorf("revived by a restart: %v", err)
			}
			if d.Revive(); read(t, d, 0, p) != 1 {
				t.Error("changed while dead")
			}
		}},
		{"hung", func(t *testing.T, _ *World, d, _ *SimDisk) {
			g, err := NewGroup([]Device{d}, GroupOptions{})
			if err != nil {
				t.Fatal(err)
			}
			d.Hang()
			landed := 0
			for no := range 40 {
				ops := []Op{{Write: true, Durable: true, Buf: block(p, 1), Off: int64(no) * Align}}
				if err := g.Run(ops); err != nil || !ops[0].Stuck || !errors.Is(ops[0].Err, ErrTimeout) {
					t.Fatalf("%v, %+v", err, ops[0])
				}
			}
			d.Unhang()
			for no := range 40 {
				landed += int(at(d, no))
			}
			if landed == 0 || landed == 40 {
				t.Errorf("%d of 40 writes land late", landed)
			}
		}},
		{"full", func(t *testing.T, _ *World, d, _ *SimDisk) {
			if err := d.Prepare(0, 2*Align); err != nil {
				t.Fatal(err)
			}
			d.Fill()
			if err := write(d, 1, 1); err != nil {
				t.Errorf("a prepared block: %v", err)
			}
			if err := write(d, 2, 1); !errors.Is(err, unix.ENOSPC) {
				t.Error(err)
			}
			if err := d.Prepare(0, 3*Align); !errors.Is(err, unix.ENOSPC) {
				t.Error(err)
			}
			d.Unfill()
			if err := write(d, 2, 1); err != nil {
				t.Error(err)
			}
		}},
		{"old image", func(t *testing.T, _ *World, d, e *SimDisk) {
			write(d, 0, 1)
			img := d.Snapshot()
			write(d, 0, 2)
			d.WriteAt(block(p, 3), Align, false)
			d.Restore(img)
			e.Restore(img)
			if read(t, d, 0, p) != 1 || read(t, d, 1, p) != 0 || read(t, e, 0, p) != 1 {
				t.Error("not the old image")
			}
		}},
		{"killed process", func(t *testing.T, w *World, d, _ *SimDisk) {
			d.WriteAt(block(p, 1), 0, false)
			d.Close()
			w.Restart()
			if read(t, d, 0, p) != 1 {
				t.Error("a restart without a cut emptied the cache")
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, disks, _ := newSim(3, 2)
			c.run(t, w, disks[0], disks[1])
		})
	}
}

// TestSimRandomFault: each kind occurs, says what it did, and stays within the disks it was given.
func TestSimRandomFault(t *testing.T) {
	seen := map[FaultKind]int{}
	p := buffer(t, 4*Align, 1)
	for seed := range uint64(300) {
		w, disks, g := newSim(seed, 4)
		for no := range int64(8) {
			run(t, g, stripe(4, Align, p, Op{Write: true, Durable: true, Off: no * Align}))
		}
		f := w.RandomFault(disks[1:], AllFaults)
		seen[f.Kind]++
		if f.Disk == disks[0] || f.Text == "" || f.Other == f.Disk || !strings.HasPrefix(f.String(), "sim") {
			t.Errorf("%+v", f)
		}
		got := make([]byte, Align)
		if disks[0].Peek(got, 0); !bytes.Equal(got, p[:Align]) {
			t.Error("a disk that was not offered is damaged")
		}
	}
	if len(seen) != 12 {
		t.Errorf("kinds seen: %v", seen)
	}
	w, disks, _ := newSim(1, 1)
	for range 50 {
		if f := w.RandomFault(disks, FaultRot|FaultDead); f.Kind != FaultRot && f.Kind != FaultDead {
			t.Errorf("kind %d was not asked for", f.Kind)
		}
	}
}

func TestSimGroups(t *testing.T) {
	_, one, _ := newSim(1, 1)
	_, two, _ := newSim(1, 1)
	if _, err := NewGroup([]Device{one[0], two[0]}, GroupOptions{}); err == nil {
		t.Error("disks of two worlds make a group")
	}
	if _, err := NewGroup([]Device{one[0], openMem(t, 1)[0]}, GroupOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("simulated and real: %v", err)
	}
	if _, err := NewGroup(nil, GroupOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no disks: %v", err)
	}
	if _, err := NewGroup(make([]Device, MaxGroup+1), GroupOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many disks: %v", err)
	}
	if _, err := NewGroup([]Device{one[0]}, GroupOptions{Prefer: "aio"}); err == nil {
		t.Error("an unknown preference is accepted")
	}
}
