package disk

import (
	"context"
	"slices"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// namer is a state whose records name these bulk stripes.
type namer struct {
	*testState
	stripes []Stripe
}

func (n *namer) Names(_ context.Context, band uint64, off uint32) (bool, error) {
	return slices.ContainsFunc(n.stripes, func(s Stripe) bool { return s.Band == band && s.Off == off }), nil
}

// openNaming opens a tampered array with a state that names its bulk stripe, or none.
func (x *tampered) openNaming(named bool) *Array {
	x.t.Helper()
	a := x.open()
	n := &namer{testState: x.state}
	if named {
		n.stripes = []Stripe{x.stripe}
	}
	a.opt.State = n
	return a
}

// spoil makes the cells in these places rot.
func (x *tampered) spoil(cells []cellPlace) {
	for _, p := range cells {
		if slices.Contains(x.bulk, p) {
			x.disks[p.slot].FlipBits(p.at+BlockSize, 4096, 5)
		} else { // it may be one block
			x.disks[p.slot].FlipBits(p.at+headerSize, 1000, 5)
		}
	}
}

func (x *tampered) check(a *Array) CheckReport {
	x.t.Helper()
	rep, err := a.Check(x.t.Context(), CheckOptions{Repair: true, Sample: 1})
	if err != nil {
		x.t.Fatal(err)
	}
	return rep
}

// TestLostStripes: a stripe with too few good cells is a loss if a record needs it, named by check and status until its band is given up; and the
// cells are counted, so that it shows which disks they are on.
func TestLostStripes(t *testing.T) {
	x := newTampered(t)
	packed := Loss{Band: x.loc.Band, From: 1, To: 1}
	bulk := Loss{Band: x.stripe.Band, Block: x.stripe.Off}
	for _, c := range []struct {
		name             string
		spoilt           []cellPlace
		named            bool
		lost, torn, dark int
		loss             []Loss
	}{
		{"bulk, named", x.bulk[:3], true, 1, 0, 0, []Loss{bulk}},
		{"bulk, not named", x.bulk[:3], false, 0, 1, 0, nil},
		{"bulk, within parity", x.bulk[:2], true, 0, 0, 0, nil},
		{"packed", x.packed[:3], true, 1, 0, 0, []Loss{packed}},
		{"bulk, one of too many is away", x.bulk[:2], true, 1, 0, 1, nil}, // it may come back
	} {
		x.restore(x.good)
		a := x.openNaming(c.named)
		x.spoil(c.spoilt)
		if c.dark > 0 {
			if err := a.log.fail(a.slots()[x.bulk[2].slot : x.bulk[2].slot+1]); err != nil {
				t.Fatal(err)
			}
		}
		rep := x.check(a)
		if rep.Lost != c.lost || rep.Torn != c.torn || rep.OK() != (c.lost == 0 && len(c.spoilt) > 2) {
			t.Errorf("%s: OK %t, %d lost, %d torn: %v", c.name, rep.OK(), rep.Lost, rep.Torn, rep.Faults)
		}
		if c.lost > 0 && rep.Bad != len(c.spoilt) {
			t.Errorf("%s: %d cells are bad, %d counted", c.name, len(c.spoilt), rep.Bad)
		}
		if got := a.Status().Losses; !slices.EqualFunc(got, c.loss, func(x, y Loss) bool { return x.Band == y.Band && x.Block == y.Block }) {
			t.Errorf("%s: losses %v, want %v", c.name, got, c.loss)
		}
		if c.loss != nil && c.loss[0] == bulk {
			if err := a.Free(t.Context(), x.stripe.Band); err != nil {
				t.Fatal(err)
			}
			if st := a.Status(); st.State != "healthy" || len(st.Losses) > 0 {
				t.Errorf("%s, given up: %s, losses %v", c.name, st.State, st.Losses)
			}
		}
		a.Close()
	}

	// Without a state that knows, a stripe of an earlier epoch may have been cut short.
	x.restore(x.good)
	a := x.open()
	x.spoil(x.bulk[:3])
	var told []FoundStripe
	rep, err := a.Check(t.Context(), CheckOptions{Undecided: func(s FoundStripe) { told = append(told, s) }})
	if err != nil || rep.Undecided != 1 || len(told) != 1 || told[0].Band != x.stripe.Band || told[0].Off != x.stripe.Off {
		t.Errorf("%v; %d undecided: %v", err, rep.Undecided, told)
	}
	a.Close()
}

// TestRebuildPastLoss: a stripe that is lost keeps no rebuild from its end, and is reported, after a restart too.
func TestRebuildPastLoss(t *testing.T) {
	x := newTampered(t)
	for name, cells := range map[string][]cellPlace{"packed": x.packed, "bulk": x.bulk} {
		x.restore(x.good)
		x.opt.retry = 20 * time.Millisecond
		a := x.openNaming(true)
		kept := make(chan ScrubPast, 100)
		a.StartScrub(ScrubOptions{Keep: func(p ScrubPast) error {
			kept <- p
			return nil
		}})
		x.spoil(cells[:3]) // the old disk cannot help
		slot := cells[2].slot
		fresh := blockdev.NewSimDisk(x.world, superArea+12<<20, blockdev.SimOptions{Name: "new"})
		if err := a.replace(t.Context(), slot, fresh); err != nil {
			t.Fatal(err)
		}
		until(t, a, "rebuilt", func(s Status) bool { return s.Disks[slot].State == DiskHealthy })
		losses := a.Status().Losses
		if len(losses) != 1 {
			t.Errorf("%s: losses %v", name, losses)
		}
		var past ScrubPast
		for len(past.Losses) == 0 {
			select {
			case past = <-kept:
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: the loss is not kept", name)
			}
		}
		a.Close()
		old := x.disks[slot]
		x.disks[slot] = fresh
		a = x.openNaming(true)
		a.StartScrub(ScrubOptions{Past: past})
		if got := a.Status().Losses; !slices.Equal(got, losses) {
			t.Errorf("%s: losses after a restart: %v, before: %v", name, got, losses)
		}
		a.Close()
		x.disks[slot] = old
	}
}

// TestReplacedDiskHelps: what cannot be computed from the others while a disk is rebuilt comes from the one that it replaces, if that is there;
// also after a restart in the middle.
func TestReplacedDiskHelps(t *testing.T) {
	x := newTampered(t)
	for name, cells := range map[string][]cellPlace{"packed": x.packed, "bulk": x.bulk} {
		for _, restart := range []bool{false, true} {
			x.restore(x.good)
			a := x.openNaming(true)
			x.spoil(cells[:2])
			slot, members := cells[2].slot, x.disks
			a.SetRebuildRate(1)
			for _, n := range []string{"new", "newer"} { // the second one takes the place of the first before that is rebuilt
				fresh := blockdev.NewSimDisk(x.world, superArea+12<<20, blockdev.SimOptions{Name: n})
				if err := a.replace(t.Context(), slot, fresh); err != nil {
					t.Fatal(err)
				}
				x.disks = append(slices.Clone(x.disks), x.disks[slot])
				x.disks[slot] = fresh
			}
			if restart {
				x.opt.RebuildRate = 1
				a.Close()
				a = x.openNaming(true)
			}
			if st := a.Status().Disks[slot]; st.State != DiskRebuilding || len(st.Olds) != 2 {
				t.Errorf("%s: %s, helped by %v", name, st.State, st.Olds)
			}
			a.SetRebuildRate(0)
			until(t, a, "rebuilt", func(s Status) bool { return s.Disks[slot].State == DiskHealthy })
			if rep := x.check(a); !rep.OK() && rep.Bad != rep.Repaired || rep.Lost > 0 {
				t.Errorf("%s: %d bad, %d repaired, %d lost: %v", name, rep.Bad, rep.Repaired, rep.Lost, rep.Faults)
			}
			if st := a.Status(); len(st.Losses) > 0 {
				t.Errorf("%s: losses %v", name, st.Losses)
			}
			a.Close()
			x.disks = members
		}
	}
}
