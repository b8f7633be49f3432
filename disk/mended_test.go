package disk

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unclosed leaves a tampered array as a process does that was killed: nothing is on its way, and nothing says so.
func (x *tampered) unclosed() {
	x.t.Helper()
	x.restore(x.good)
	x.state = &testState{}
	a := x.open()
	if err := x.w.putBulk(a, 1<<40, 10); err != nil {
		x.t.Fatal(err)
	}
	st := x.w.bulk[1<<40]
	x.stripe, x.bulk = st, cells(a, st.Band, st.Off, int(st.Data)+a.bands[st.Band].parity)
	x.kill(a)
}

// kill ends an array as a process that is killed does.
func (x *tampered) kill(a *Array) {
	images := x.snapshot()
	a.Close()
	x.restore(images)
	x.state = &testState{}
}

// TestCheckLastEpoch: a check of an array that no daemon serves judges what its last epoch wrote, whether that was closed or not.
func TestCheckLastEpoch(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed %t", killed), func(t *testing.T) {
			x := newTampered(t)
			x.unclosed()
			if !killed {
				if err := x.open().Close(); err != nil { // the band is of the last epoch but one
					t.Fatal(err)
				}
				a := x.open()
				if err := x.w.putBulk(a, 1<<41, 10); err != nil {
					t.Fatal(err)
				}
				st := x.w.bulk[1<<41]
				x.stripe, x.bulk = st, cells(a, st.Band, st.Off, int(st.Data)+a.bands[st.Band].parity)
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
			}
			x.good = x.snapshot()
			for bad := range 4 {
				x.restore(x.good)
				x.state = &testState{}
				x.opt.ReadOnly = true
				x.spoil(x.bulk[:bad])
				a := x.open()
				var told []FoundStripe
				rep, err := a.Check(t.Context(), CheckOptions{Undecided: func(s FoundStripe) { told = append(told, s) }})
				want := bad
				if bad > 2 { // who knows the records decides
					if want = 0; len(told) != 1 || told[0].Band != x.stripe.Band || told[0].Off != x.stripe.Off {
						t.Errorf("%d bad cells: undecided %+v", bad, told)
					}
				}
				if err != nil || rep.Found[CellRot] != want || rep.Bad != want || rep.Unfinished > 0 {
					t.Errorf("%d bad cells: %+v, %v", bad, rep, err)
				}
				a.opt.State = &namer{testState: x.state, stripes: []Stripe{x.stripe}}
				if rep, err = a.Check(t.Context(), CheckOptions{}); err != nil || rep.Bad != bad || rep.Lost != bad/3 || rep.OK() != (bad == 0) {
					t.Errorf("%d bad cells of a stripe that a record names: %+v, %v", bad, rep, err)
				}
				a.Close()
			}
		})
	}
}

// TestStartTells: what a start mends is named by what befell it and counted by disk: in the log, in what scrubs have found, and in the report
// of the first pass of that process.
func TestStartTells(t *testing.T) {
	x := newTampered(t)
	var log bytes.Buffer
	x.opt.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	super := func(disk, copyNo int) cellPlace { return cellPlace{disk, int64(copyNo) * superStride} }
	for _, killed := range []bool{false, true} {
		for name, tt := range map[string]struct {
			places []cellPlace
			want   Verdict
			damage func(p cellPlace)
		}{
			"nothing":             {},
			"bits of bulk cells":  {x.bulk[:2], CellRot, nil},
			"bits of packed ones": {x.packed[:2], CellRot, nil},
			"packed, not written": {x.packed[:1], CellStale, func(p cellPlace) { x.disks[p.slot].Overwrite(p.at, make([]byte, len(x.packedCell))) }},
			"superblock copies":   {[]cellPlace{super(0, 2), super(0, 3), super(4, 2), super(4, 3)}, CellRot, func(p cellPlace) { xor(x.disks[p.slot], p.at+60, 0x10) }},
		} {
			t.Run(fmt.Sprintf("%s, killed %t", name, killed), func(t *testing.T) {
				if x.restore(x.good); killed {
					x.state = &testState{}
					x.kill(x.open())
				}
				bySlot := map[int]int{}
				for _, p := range tt.places {
					if bySlot[p.slot]++; tt.damage == nil {
						x.spoil([]cellPlace{p})
					} else {
						tt.damage(p)
					}
				}
				log.Reset()
				x.state = &testState{}
				a := x.open()
				defer a.Close()
				s := a.StartScrub(ScrubOptions{})
				if got := s.Status().Found; got[tt.want] != len(tt.places) || got[CellRepaired] != len(tt.places) {
					t.Errorf("status: %v", got)
				}
				if n := strings.Count(log.String(), "start rewrote what was bad"); n != len(bySlot) || strings.Count(log.String(), fmt.Sprintf(" %s=", tt.want)) != n {
					t.Errorf("log: %s", &log)
				}
				if rep, err := a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
					t.Errorf("a check that repairs nothing: %+v, %v", rep, err)
				}
				rep := x.check(a)
				if rep.Bad != len(tt.places) || rep.Repaired != rep.Bad || len(rep.Faults) != rep.Bad {
					t.Errorf("%+v", rep)
				}
				for _, d := range rep.Disks {
					if n := bySlot[d.Slot]; d.Found[tt.want] != n || d.Found[CellRepaired] != n {
						t.Errorf("disk %d: %v", d.Slot, d.Found)
					}
				}
				if rep = x.check(a); !rep.OK() || rep.Repaired > 0 {
					t.Errorf("told twice: %+v", rep)
				}
			})
		}
	}
}

// TestStartTellsOfAbsence: what a disk lacks because it was away is missing, and what rotted on it is not.
func TestStartTellsOfAbsence(t *testing.T) {
	x := newTampered(t)
	x.restore(x.good)
	a := x.open()
	if err := x.w.putBulk(a, 1<<40, 10); err != nil { // the band is open, on all disks
		t.Fatal(err)
	}
	x.disks[0].FailWrite(1, unix.EIO)
	if err := x.w.putBulk(a, 1<<41, 10); err != nil {
		t.Fatal(err)
	}
	if a.Status().Disks[0].State != DiskFenced {
		t.Fatal("the disk is not fenced")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	x.state = &testState{}
	a = x.open()
	defer a.Close()
	rep := x.check(a)
	if rep.Bad > 0 || rep.Missing == 0 || rep.Missing != rep.Repaired || rep.Missing != rep.Disks[0].Found[CellMissing] {
		t.Errorf("%+v", rep)
	}
}

// TestRottenSuperblocks: of the copies of a superblock those of one number can have been on their way when the power failed, and no others.
func TestRottenSuperblocks(t *testing.T) {
	x := newTampered(t)
	closed := x.good
	x.unclosed()
	killed := x.snapshot()
	x.opt = Options{ReadOnly: true}
	for _, tt := range []struct {
		closed  bool
		copies  []int
		disks   int
		bad     int
		pending int
	}{
		{true, []int{2, 3}, 6, 12, 0},
		{true, []int{1}, 6, 6, 0},
		{true, []int{3}, 1, 1, 0}, // bits that no change of that copy leaves
		{true, []int{0}, 6, 0, 6}, // the next epoch may have been beginning
		{false, []int{2, 3}, 6, 12, 0},
		{false, []int{3}, 6, 0, 6},
		{false, []int{1}, 2, 2, 0},
	} {
		images := killed
		if tt.closed {
			images = closed
		}
		x.restore(images)
		x.state = &testState{}
		for _, d := range x.disks[:tt.disks] {
			for _, c := range tt.copies {
				xor(d, int64(c)*superStride+60, 0x10)
			}
		}
		a := x.open()
		rep, err := a.Check(t.Context(), CheckOptions{})
		if err != nil || rep.Bad != tt.bad || rep.Found[CellRot] != tt.bad || rep.Unfinished != tt.pending || rep.OK() != (tt.bad == 0) {
			t.Errorf("copies %v of %d disks, closed %t: %+v, %v", tt.copies, tt.disks, tt.closed, rep, err)
		}
		a.Close()
	}
}
