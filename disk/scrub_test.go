package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// stray is a valid cell that belongs to another write.
func stray(a *Array, p []byte, change func(h *header)) []byte {
	h, err := a.codec.peek(p)
	if err != nil {
		panic(err)
	}
	p = bytes.Clone(p)
	change(&h)
	h.crc = a.codec.checksum(&h, a.opt.Crypto.CRC64NVME(0, p[h.start():]))
	a.codec.put(p, &h)
	return p
}

// TestVerdicts: each kind of damage is called by its name, on the right disk, and put right to the bit.
func TestVerdicts(t *testing.T) {
	x := newTampered(t)
	size := int64(x.stripe.cellBytes())
	data, parity, small, band := x.bulk[0], x.bulk[len(x.bulk)-1], x.packed[1], x.bandHeaders[2]
	n := int64(len(x.packedCell))
	super := cellPlace{3, 2 * superStride}
	at := func(p cellPlace, n int64) []byte {
		b := make([]byte, n)
		x.disks[p.slot].Peek(b, p.at)
		return b
	}
	over := func(p cellPlace, b []byte) { x.disks[p.slot].Overwrite(p.at, b) }
	for name, tt := range map[string]struct {
		want   Verdict
		where  cellPlace
		damage func(a *Array)
	}{
		"bits of a segment":      {CellRot, data, func(*Array) { x.disks[data.slot].FlipBits(data.at+BlockSize, size-BlockSize, 3) }},
		"bits of parity":         {CellRot, parity, func(*Array) { x.disks[parity.slot].FlipBits(parity.at+BlockSize, size-BlockSize, 3) }},
		"bits of a bulk header":  {CellRot, data, func(*Array) { x.disks[data.slot].FlipBits(data.at, headerSize, 1) }},
		"bits of a packed cell":  {CellRot, small, func(*Array) { x.disks[small.slot].FlipBits(small.at+headerSize, n-headerSize, 1) }},
		"bits of a band header":  {CellRot, band, func(*Array) { x.disks[band.slot].FlipBits(band.at, headerSize, 1) }},
		"bits of a superblock":   {CellRot, super, func(*Array) { x.disks[super.slot].FlipBits(super.at+16, 32, 1) }},
		"tail never written":     {CellTorn, data, func(*Array) { over(cellPlace{data.slot, data.at + size/2&^4095}, make([]byte, 2*BlockSize)) }},
		"head never written":     {CellTorn, data, func(*Array) { over(data, make([]byte, BlockSize)) }},
		"middle of another":      {CellTorn, data, func(*Array) { over(cellPlace{data.slot, data.at + 8*BlockSize}, at(x.bulk[1], 2*BlockSize)) }},
		"bulk never written":     {CellStale, data, func(*Array) { over(data, make([]byte, size)) }},
		"packed never written":   {CellStale, small, func(*Array) { over(small, make([]byte, n)) }},
		"band header lost":       {CellStale, band, func(*Array) { over(band, make([]byte, BlockSize)) }},
		"superblock lost":        {CellStale, super, func(*Array) { over(super, make([]byte, superSize)) }},
		"bulk unreadable":        {CellUnreadable, data, func(*Array) { x.disks[data.slot].BadRange(data.at+BlockSize, BlockSize) }},
		"packed unreadable":      {CellUnreadable, small, func(*Array) { x.disks[small.slot].BadRange(small.at, BlockSize) }},
		"band header unreadable": {CellUnreadable, band, func(*Array) { x.disks[band.slot].BadRange(band.at, BlockSize) }},
		"superblock unreadable":  {CellUnreadable, super, func(*Array) { x.disks[super.slot].BadRange(super.at, BlockSize) }},
		"cell of another disk":   {CellMisdirected, data, func(*Array) { over(data, at(x.bulk[1], size)) }},
		"cell of another offset": {CellMisdirected, small, func(a *Array) {
			over(small, stray(a, at(small, n), func(h *header) { h.off++ }))
		}},
		"cell of a later band": {CellMisdirected, data, func(a *Array) {
			over(data, stray(a, at(data, size), func(h *header) { h.band++; h.stripe++ }))
		}},
		"cell of an older band": {CellStale, data, func(a *Array) {
			p := stray(a, at(data, size), func(h *header) { h.band -= 1 << 33; h.nonce[0]++ })
			for i := BlockSize; i < len(p); i++ {
				p[i] ^= byte(i*7 + 1)
			}
			over(data, p)
		}},
		"another attempt": {CellStale, small, func(a *Array) {
			p := at(small, n)
			for i := headerSize; i < len(p); i++ {
				p[i] ^= byte(i*7 + 1)
			}
			over(small, stray(a, p, func(h *header) { h.nonce[3]++ }))
		}},
		"extent freed of an older band": {CellStale, band, func(a *Array) {
			over(band, stray(a, at(band, BlockSize), func(h *header) {
				h.kind, h.band, h.stripe, h.width, h.role, h.parity, h.rot = kindFree, h.band-1<<33, uint64((band.at-superArea)>>20), 1, 0, 0, 0
			}))
		}},
		"band header of another extent": {CellMisdirected, band, func(*Array) { over(band, at(x.bandHeaders[3], BlockSize)) }},
		"another superblock copy":       {CellMisdirected, super, func(*Array) { over(super, at(cellPlace{super.slot, 0}, superSize)) }},
		"another disk's superblock":     {CellMisdirected, super, func(*Array) { over(super, at(cellPlace{0, super.at}, superSize)) }},
		"an older superblock": {CellStale, super, func(*Array) {
			now := x.disks[super.slot].Snapshot()
			x.disks[super.slot].Restore(x.good[super.slot])
			old := at(super, superSize)
			x.disks[super.slot].Restore(now)
			over(super, old)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			x.restore(x.good)
			x.state = &testState{}
			a := x.open()
			defer a.Close()
			whole := x.snapshot()
			tt.damage(a)
			found := map[Verdict]int{tt.want: 1, CellRepaired: 1}
			rep, err := a.Check(t.Context(), CheckOptions{Repair: true, Sample: 1})
			if err != nil || rep.Bad != 1 || rep.Repaired != 1 || rep.Lost > 0 || len(rep.Faults) != 1 {
				t.Fatalf("%+v, %v", rep, err)
			}
			for _, d := range rep.Disks {
				got := maps.Clone(d.Found)
				delete(got, CellGood)
				want := map[Verdict]int{}
				if d.Slot == tt.where.slot {
					want = found
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("disk %d: %s %v", d.Slot, diff, rep.Faults)
				}
			}
			if !strings.Contains(rep.Faults[0], string(tt.want)) || !strings.Contains(rep.Faults[0], x.disks[tt.where.slot].Path()) {
				t.Errorf("fault %q", rep.Faults[0])
			}
			if rep, err = a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
				t.Errorf("after repair: %+v, %v", rep, err)
			}
			d := x.disks[tt.where.slot]
			got := at(tt.where, BlockSize)
			d.Restore(whole[tt.where.slot])
			if !bytes.Equal(got, at(tt.where, BlockSize)) {
				t.Error("repaired with other bytes")
			}
		})
	}
}

// TestWritesGoneAstray: what a disk does to a write is named at both of its ends.
func TestWritesGoneAstray(t *testing.T) {
	x := newTampered(t)
	a := x.open()
	defer a.Close()
	w := newWritten()
	if err := w.put(a, 900, 500); err != nil { // the bands are open
		t.Fatal(err)
	}
	victim := x.bulk[1]
	x.disks[victim.slot].MisdirectWrite(1, victim.at)
	if err := w.putBulk(a, 1<<30, 12); err != nil {
		t.Fatal(err)
	}
	rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
	if err != nil || rep.Lost > 0 || rep.Repaired != rep.Bad {
		t.Fatalf("%+v, %v", rep, err)
	}
	if f := rep.Disks[victim.slot].Found; f[CellMisdirected] != 1 || f[CellStale] != 1 || rep.Bad != 2 {
		t.Errorf("a misdirected write: %v, %v", f, rep.Faults)
	}
	x.disks[2].LoseWrite(1)
	if err := w.putBulk(a, 1<<31, 12); err != nil {
		t.Fatal(err)
	}
	if rep, err = a.Check(t.Context(), CheckOptions{Repair: true}); err != nil || rep.Bad != 1 || rep.Disks[2].Found[CellStale] != 1 || rep.Repaired != 1 {
		t.Errorf("a lost write: %+v, %v", rep, err)
	}
	if rep, err = a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("after repair: %+v, %v", rep, err)
	}
}

// TestMissingCells: those of a disk that is not there are counted, and nothing else is wrong.
func TestMissingCells(t *testing.T) {
	x := newTampered(t)
	a := x.open(x.disks[1:]...)
	defer a.Close()
	rep, err := a.Check(t.Context(), CheckOptions{Repair: true, Sample: 1})
	if err != nil || rep.Bad > 0 || rep.Lost > 0 || rep.Records == 0 || rep.Missing == 0 || rep.Missing != rep.Disks[0].Found[CellMissing] || rep.OK() {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestParityContradicts: cells that pass their checks and do not belong together are reported and left alone.
func TestParityContradicts(t *testing.T) {
	x := newTampered(t)
	for _, places := range [][]cellPlace{x.bulk, x.packed} {
		x.restore(x.good)
		x.state = &testState{}
		a := x.open()
		p := places[len(places)-1]
		size := int64(x.stripe.cellBytes())
		if &places[0] == &x.packed[0] {
			size = int64(len(x.packedCell))
		}
		cell := make([]byte, size)
		x.disks[p.slot].Peek(cell, p.at)
		cell[size-1] ^= 1
		cell = stray(a, cell, func(*header) {})
		x.disks[p.slot].Overwrite(p.at, cell)
		rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
		if err != nil || rep.Mismatched != 1 || rep.Bad != 0 || rep.Repaired != 0 || rep.OK() || len(rep.Faults) != 1 {
			t.Errorf("%+v, %v", rep, err)
		}
		// With one more cell bad there is still one to contradict: nothing is rebuilt from what is not to be believed.
		x.disks[places[0].slot].FlipBits(places[0].at+size-512, 512, 1)
		if rep, err = a.Check(t.Context(), CheckOptions{Repair: true}); err != nil || rep.Mismatched != 1 || rep.Bad != 1 || rep.Repaired != 0 {
			t.Errorf("with a bad cell: %+v, %v", rep, err)
		}
		got := make([]byte, size)
		if x.disks[p.slot].Peek(got, p.at); !bytes.Equal(got, cell) {
			t.Error("the cell was rewritten")
		}
		a.Close()
	}
}

// TestRecordsDoNotOpen: a stripe whose checksums and parity hold and whose records are not sealed by the array's key is a loss.
func TestRecordsDoNotOpen(t *testing.T) {
	x := newTampered(t)
	a := x.open()
	defer a.Close()
	forged := make([][]byte, len(x.packed))
	h, err := a.anyHeader(t.Context(), a.bands[x.loc.Band], x.loc.Off)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range x.packed {
		forged[i] = make([]byte, len(x.packedCell))
		x.disks[p.slot].Peek(forged[i], p.at)
	}
	forged[0][headerSize+packedHead+3] ^= 1
	if err := a.protect(forged, int(h.data), headerSize); err != nil {
		t.Fatal(err)
	}
	a.seal(forged, &h, a.bands[x.loc.Band])
	for i, p := range x.packed {
		x.disks[p.slot].Overwrite(p.at, forged[i])
	}
	for range 2 {
		rep, err := a.Check(t.Context(), CheckOptions{Repair: true, Sample: 1})
		loss := []Loss{{Band: h.band, From: h.stripe, To: h.stripe}}
		if err != nil || rep.Unopened != 1 || rep.Bad > 0 || rep.Mismatched > 0 || rep.OK() || !cmp.Equal(rep.Losses, loss) {
			t.Errorf("%+v, %v", rep, err)
		}
		if s := a.Status(); !cmp.Equal(s.Losses, loss) || s.State != "degraded" {
			t.Errorf("status %s: %+v", s.State, s.Losses)
		}
	}
	if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || rep.Records > 0 {
		t.Errorf("no sample: %+v, %v", rep, err)
	}
}

// TestRepairNotKept: what is not there after it was rewritten does not count as repaired; what a disk refuses gets it fenced.
func TestRepairNotKept(t *testing.T) {
	x := newTampered(t)
	a := x.open()
	defer a.Close()
	for _, p := range []cellPlace{x.bulk[0], x.packed[0], x.bandHeaders[0], {3, superStride}} {
		d := x.disks[p.slot]
		d.FlipBits(p.at, headerSize, 2)
		d.LoseWrite(1)
		rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
		if err != nil || rep.Bad != 1 || rep.Repaired != 0 || !strings.Contains(fmt.Sprint(rep.Faults), "not there after it was rewritten") {
			t.Errorf("%+v: %+v, %v", p, rep, err)
		}
		if rep, err = a.Check(t.Context(), CheckOptions{Repair: true}); err != nil || rep.Bad != 1 || rep.Repaired != 1 {
			t.Errorf("%+v again: %+v, %v", p, rep, err)
		}
	}
	for i, p := range []cellPlace{x.bulk[0], x.bandHeaders[4]} {
		d := x.disks[p.slot]
		d.FlipBits(p.at, headerSize, 2)
		d.FailWrite(1, unix.EIO)
		rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
		if err != nil || rep.Bad != 1 || rep.Repaired != 0 || a.Status().Disks[p.slot].State != DiskFenced {
			t.Errorf("%d: %+v, %v: disk %d is %s", i, rep, err, p.slot, a.Status().Disks[p.slot].State)
		}
	}
	if _, err := a.Append(t.Context(), Record{Body: []byte("still here")}); err != nil {
		t.Error(err)
	}
}

// TestScrubBesideWriters: sweeps beside writers, and beside bands that are freed under them, find nothing wrong.
func TestScrubBesideWriters(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 60)
	a := s.open()
	defer a.Close()
	w := newWritten()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for id := uint64(1); ctx.Err() == nil; id++ {
			if err := w.put(a, id, 3000); err != nil && !errors.Is(err, ErrFull) {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	var freed atomic.Int32
	wg.Go(func() {
		for id := uint64(1); ctx.Err() == nil; id++ {
			st, err := writeStripe(a, id<<32, 1+int(id%8))
			if err == nil {
				a.Unpin(st.Band)
			} else if !errors.Is(err, ErrFull) {
				t.Error(err)
			}
			for _, b := range a.Bands() {
				if b.Bulk && b.Closed {
					if err := a.Free(t.Context(), b.Num); err == nil {
						freed.Add(1)
					} else if !errors.Is(err, ErrBusy) {
						t.Error(err)
					}
				}
			}
		}
	})
	deadline := time.Now().Add(20 * time.Second)
	for sweeps := 0; (sweeps < 12 || freed.Load() < 10) && time.Now().Before(deadline); sweeps++ {
		rep, err := a.Check(t.Context(), CheckOptions{Repair: true, Sample: 1})
		if err != nil || !rep.OK() {
			t.Errorf("%+v, %v", rep, err)
			break
		}
	}
	stop()
	wg.Wait()
	if freed.Load() < 10 {
		t.Errorf("%d bands were freed meanwhile", freed.Load())
	}
}

// scrubbed is an array with a scrub in a bubble of simulated time.
func scrubbed(t *testing.T, f func(t *testing.T, x *tampered, start func(ScrubOptions) (*Array, *Scrub))) {
	x := newTampered(t)
	x.opt.HealthEvery = 1000 * time.Hour // the clock runs through months
	synctest.Test(t, func(t *testing.T) {
		f(t, x, func(opt ScrubOptions) (*Array, *Scrub) {
			a := x.open()
			return a, a.StartScrub(opt)
		})
	})
}

// TestScrubRate: a sweep takes the time that its rate says, which can change meanwhile, and stands still while it is paused.
func TestScrubRate(t *testing.T) {
	scrubbed(t, func(t *testing.T, x *tampered, start func(ScrubOptions) (*Array, *Scrub)) {
		const rate = 64 << 10
		a, s := start(ScrubOptions{Rate: rate})
		defer a.Close()
		time.Sleep(1000 * time.Hour)
		if st := s.Status(); st.State != "idle" || st.Last != nil || !st.Next.IsZero() {
			t.Errorf("without being asked: %+v", st)
		}
		ended := func() time.Duration {
			t.Helper()
			s.Now()
			for range 100000 {
				time.Sleep(100 * time.Millisecond)
				if st := s.Status(); st.State == "idle" && st.Last != nil {
					return st.Last.Ended.Sub(st.Last.Started)
				}
			}
			t.Fatal("never ended")
			return 0
		}
		took := ended()
		all := s.Status().Read
		want := time.Duration(float64(all) / rate * float64(time.Second))
		if took < want || took > want+time.Second {
			t.Errorf("%d bytes at %d per second took %v, want %v", all, rate, took, want)
		}
		s.SetRate(0)
		if took := ended(); took > time.Second {
			t.Errorf("without a rate: %v", took)
		}

		s.SetRate(rate)
		s.Now()
		time.Sleep(want / 4)
		st := s.Status()
		if st.State != "running" || st.Speed <= 0 || st.Done == 0 || st.Done >= st.Total || st.ETASeconds <= 0 || st.Current == nil {
			t.Errorf("running: %+v", st)
		}
		s.Pause()
		time.Sleep(time.Minute)
		before := s.Status()
		for _, b := range a.Bands() {
			if a.Pinned(b.Num) {
				t.Errorf("band %x is pinned by a paused sweep", b.Num)
			}
		}
		time.Sleep(100 * time.Hour)
		if after := s.Status(); after.State != "paused" || after.Read != before.Read {
			t.Errorf("paused: read %d, then %d, %s", before.Read, after.Read, after.State)
		}
		s.SetRate(1 << 40)
		s.Resume()
		time.Sleep(time.Second)
		if st := s.Status(); st.State != "idle" || st.Last.Report.Bands != len(a.sortedBands()) || !st.Last.Report.OK() {
			t.Errorf("resumed: %+v", st)
		}
	})
}

// TestScrubSchedule: sweeps begin a tenth more or less than a period apart, and what was repaired is told.
func TestScrubSchedule(t *testing.T) {
	scrubbed(t, func(t *testing.T, x *tampered, start func(ScrubOptions) (*Array, *Scrub)) {
		const day = 24 * time.Hour
		began := time.Now()
		a, s := start(ScrubOptions{Every: 30 * day})
		defer a.Close()
		x.flip(region{from: BlockSize, to: 2 * BlockSize}, x.bulk[:1])
		var starts []time.Time
		for range 8 {
			for last := len(starts); len(starts) == last; time.Sleep(time.Hour) {
				if st := s.Status(); st.Last != nil && (last == 0 || st.Last.Started.After(starts[last-1])) {
					starts = append(starts, st.Last.Started)
				}
				if time.Since(began) > 400*day {
					t.Fatal("not swept")
				}
			}
		}
		seen := map[time.Duration]bool{}
		for i, at := range starts {
			gap := at.Sub(began)
			if began = at; gap < 27*day || gap > 33*day+time.Hour {
				t.Errorf("sweep %d after %v", i, gap)
			}
			seen[gap.Round(time.Minute)] = true
		}
		if len(seen) < 2 {
			t.Errorf("always %v apart", seen)
		}
		st := a.Status().Scrub
		if st.Found[CellRot] != 1 || st.Found[CellRepaired] != 1 || st.Found[CellGood] == 0 || !st.Last.Report.OK() {
			t.Errorf("%+v", st)
		}
	})
}

// TestScrubAcrossRestarts: a sweep that was cut short goes on with the band where it was, a pause holds, and the last result is kept.
func TestScrubAcrossRestarts(t *testing.T) {
	scrubbed(t, func(t *testing.T, x *tampered, start func(ScrubOptions) (*Array, *Scrub)) {
		var kept atomic.Pointer[ScrubPast]
		opt := ScrubOptions{Every: time.Hour, Rate: 256 << 10, Keep: func(p ScrubPast) error { kept.Store(&p); return nil }}
		a, s := start(opt)
		total := len(a.sortedBands())
		s.Now()
		for st := s.Status(); st.Current == nil || st.Current.Band == 0; st = s.Status() {
			time.Sleep(time.Second)
			if st.Last != nil {
				t.Fatal("it ended before it could be interrupted")
			}
		}
		s.Pause()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		past := *kept.Load()
		if past.Last != nil || !past.Paused || past.Current.Report.Bands < 1 || past.Current.Report.Bands >= total {
			t.Fatalf("kept: %+v", past)
		}
		visited := past.Current.Report.Bands

		opt.Past = past
		a, s = start(opt)
		time.Sleep(10 * time.Hour)
		if st := s.Status(); st.State != "paused" || st.Current == nil {
			t.Errorf("not paused: %+v", st)
		}
		s.SetRate(0)
		s.Resume()
		time.Sleep(time.Second)
		st := s.Status()
		if st.State != "idle" || st.Current != nil || st.Last == nil || !st.Last.Report.OK() || !st.Last.Started.Equal(past.Current.Started) {
			t.Fatalf("did not go on: %+v", st)
		}
		if r := st.Last.Report; r.Bands < total || r.Superblocks != 4*6 || r.Stripes == 0 {
			t.Errorf("%d of %d bands visited, %d before the restart: %+v", r.Bands, total, visited, r)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		opt.Past = *kept.Load()
		a, s = start(opt)
		if diff := cmp.Diff(st.Last, s.Status().Last); diff != "" {
			t.Errorf("the last result: %s", diff)
		}
		a.Close()
	})
}

// TestCheckAfterCut: what was on its way to the superblocks when the power failed is no damage.
func TestCheckAfterCut(t *testing.T) {
	x := newTampered(t)
	unfinished := 0
	for n := 1; ; n++ {
		x.restore(x.good)
		x.state = &testState{}
		x.opt = Options{}
		x.world.CutAfter(n)
		a, err := x.tryOpen()
		if err == nil {
			x.world.CutAfter(0)
			a.Close()
			break
		}
		x.state = &testState{}
		x.opt = Options{ReadOnly: true}
		ro := x.open()
		rep, err := ro.Check(t.Context(), CheckOptions{})
		if err != nil || !rep.OK() {
			t.Errorf("cut at change %d: %+v, %v", n, rep, err)
		}
		unfinished += rep.Unfinished
		ro.Close()
	}
	if unfinished == 0 {
		t.Error("no cut left anything unfinished")
	}
}
