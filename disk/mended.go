package disk

import (
	"bytes"
	"fmt"
	"maps"
)

// mendedCell is a bad cell, or copy of a superblock, that was rewritten while the array was opened.
type mendedCell struct {
	slot      int
	found     Verdict
	unwritten bool   // it may be what a power cut left, if its stripe was on its way then
	kept      bool   // the disk took it
	what      string // for the report
	stripe    uint64 // the number of its stripe
}

// mend rewrites the bad cells of a stripe that can be decoded, and says what they were. It returns the disks that refused. Of a bulk stripe
// that may have been on its way when the power failed, cells that were not written are left out: the state cannot be asked yet whether a
// record names it.
func (a *Array) mend(w *wholeStripe) (cells []mendedCell, failed []*disk, err error) {
	var found [MaxWidth][]byte
	for r := range w.width() {
		if w.bad[r] && !w.dark[r] {
			found[r] = bytes.Clone(w.cells[r]) // what is rebuilt takes its place
		}
	}
	if failed, err = w.rewrite(); err != nil {
		return nil, nil, err
	}
	refused := map[*disk]bool{}
	for _, d := range failed {
		refused[d] = true
	}
	for r := range w.width() {
		if !w.bad[r] {
			continue
		}
		d := a.slots()[w.band.members[w.head.member(r)].slot]
		c := mendedCell{slot: d.slot, found: a.judgeCell(w, r, found[r], true), kept: !refused[d], stripe: w.head.stripe,
			what: fmt.Sprintf("band %x block %d: cell %d of %d", w.band.num, w.head.off, r, w.width())}
		if c.unwritten = unwritten(c.found, found[r], w.cells[r]); c.unwritten && a.wasAway(d, w.band) {
			c.found, c.unwritten = CellMissing, false
		}
		if c.unwritten && w.band.kind == kindBulk && !a.super.closed(w.band.epoch) {
			continue
		}
		cells = append(cells, c)
	}
	return cells, failed, nil
}

// wasAway reports whether a disk was out of the array while stripes of a band may have been written, up to the present opening.
func (a *Array) wasAway(d *disk, b *band) bool {
	return d.super.epoch() != a.super.epoch() && b.revision()>>32 >= d.super.epoch().num
}

// noteMended counts cells as bad, and as put right.
func (a *Array) noteMended(cells ...mendedCell) {
	r := &a.mended
	for _, c := range cells {
		r.count(c.slot, c.found, 1)
		if c.kept {
			r.count(c.slot, CellRepaired, 1)
		}
		r.fault("%s: %s was %s when the array was opened", a.slots()[c.slot].path, c.what, c.found)
	}
}

// logMended says disk by disk what opening the array has mended.
func (a *Array) logMended() {
	for _, d := range a.mended.Disks {
		facts := []any{"path", d.Path, "slot", d.Slot}
		for _, v := range Verdicts() {
			if n := d.Found[v]; n > 0 {
				facts = append(facts, string(v), n)
			}
		}
		if len(d.Found) > 0 {
			a.logger.Warn("start rewrote what was bad", facts...)
		}
	}
}

// tellMended adds to the report what opening the array has mended, unless another pass that repairs has told of it.
func (p *pass) tellMended() {
	if !p.opt.Repair || p.a.told.Swap(true) {
		return
	}
	p.note(func(r *CheckReport) {
		m := p.a.mended.clone()
		for _, d := range m.Disks {
			for v, n := range maps.All(d.Found) {
				r.count(d.Slot, v, n)
			}
		}
		for _, f := range m.Faults {
			r.fault("%s", f)
		}
	})
}
