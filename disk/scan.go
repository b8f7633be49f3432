package disk

import (
	"context"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

// foundBand is what the scan learnt of a band.
type foundBand struct {
	*band
	first  uint64  // number of the stripe in its first place, 0 when none is readable
	begun  bool    // something was written behind the header
	unseen bool    // what was written could not be looked for, as when too few of its disks answer
	claims []claim // extents that carry its header
}

// claim is an extent that carries the header of a band.
type claim struct {
	at       bandMember
	revision uint64
}

// places lists the extents of claims.
func places(claims []claim) (at []bandMember) {
	for _, c := range claims {
		at = append(at, c.at)
	}
	return at
}

// scanBatch is how many extents of each disk are looked at in one batch.
const scanBatch = 16

// scanBands reads the first two blocks of every extent and builds the table of bands.
func (a *Array) scanBands(ctx context.Context) error {
	r := &recovery{a: a, found: map[uint64]*foundBand{}, freed: map[uint64]bool{}, taken: map[bandMember]uint64{}}
	most := uint32(0)
	for _, d := range a.slots() {
		if d.present() {
			most = max(most, d.extents)
		}
	}
	for e := uint32(0); e < most; e += scanBatch {
		if err := r.scanExtents(ctx, e, e+scanBatch); err != nil {
			return err
		}
	}
	void := r.dropVoid()
	if !a.opt.ReadOnly {
		if err := r.settleHeaders(ctx, void); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range r.found {
		a.bands[f.num] = f.band
		f.band.first.Store(f.first)
		for pos, m := range f.members {
			d := a.slots()[m.slot]
			d.markUsed(m.extent)
			if d.hollow && f.epoch < a.super.members[m.slot].since && !slices.Contains(places(f.claims), m) {
				f.hollow.Or(1 << pos)
			}
		}
	}
	return nil
}

// scanExtents looks at extents from..to-1 of every disk. What cannot be read is left to the copies on other members.
func (r *recovery) scanExtents(ctx context.Context, from, to uint32) error {
	a := r.a
	const n = 2 * BlockSize
	buf, err := a.meta.Get(ctx, int(to-from)*len(a.slots())*n)
	if err != nil {
		return err
	}
	var ops []blockdev.Op
	var at []bandMember
	defer func() { release(&buf, ops) }()
	for _, d := range a.slots() {
		for e := from; d.present() && e < min(to, d.extents); e++ {
			mem := buf.Bytes()[len(ops)*n:][:n]
			ops = append(ops, blockdev.Op{Dev: d.gi, Off: a.geo.extentOffset(e), Buf: mem})
			at = append(at, bandMember{slot: d.slot, extent: e})
		}
	}
	if err := a.run(ops); err != nil {
		return err
	}
	for i := range ops {
		if ops[i].Err == nil {
			r.claim(at[i], ops[i].Buf)
		}
	}
	return nil
}

// claim notes what the first two blocks of an extent say.
func (r *recovery) claim(at bandMember, blocks []byte) {
	a, id := r.a, r.a.slots()[at.slot].id
	if num, placed, ok := a.codec.parseFree(blocks[:BlockSize], id, at.extent); ok {
		r.freed[num] = true
		r.taken[at] = max(r.taken[at], placed)
		return
	}
	b, pos, err := a.codec.parseBand(blocks[:BlockSize], id)
	if err != nil || b.members[pos] != at {
		return
	}
	if !a.plausible(b) {
		a.logger.Warn("band header ignored: it cannot be of this array as it is now", "band", fmt.Sprintf("%x", b.num), "slot", at.slot, "extent", at.extent)
		return
	}
	a.cover(b)
	for i, m := range b.members {
		r.taken[m] = max(r.taken[m], b.placedAt(i))
	}
	b.end = a.geo.extentBlocks()
	f := r.found[b.num]
	switch {
	case f == nil:
		f = &foundBand{band: b}
		r.found[b.num] = f
	case b.revision() > f.revision():
		f.band = b
	}
	f.claims = append(f.claims, claim{at, b.revision()})
	h, err := a.codec.parse(blocks[BlockSize:], place{disk: id, band: b.num, off: 1})
	if err == nil && a.fits(&h, b) {
		f.begun, f.first = true, h.stripe
	}
}

// plausible reports whether a band read from a disk can exist in this array.
func (a *Array) plausible(b *band) bool {
	if b.epoch > a.super.epoch().num || b.num>>32 != b.epoch || len(b.members) > len(a.slots()) {
		return false
	}
	seen := map[int]bool{}
	for _, m := range b.members {
		if m.slot >= len(a.slots()) || seen[m.slot] {
			return false
		}
		if d := a.slots()[m.slot]; d.present() && m.extent >= a.geo.extents(d.dev.Limits().Size) {
			return false
		}
		seen[m.slot] = true
	}
	return true
}

// cover makes the books of disks as long as what a band says of them: a sealed header is proof of an extent, whatever the member table counts.
func (a *Array) cover(b *band) {
	for _, m := range b.members {
		d := a.slots()[m.slot]
		if m.extent < d.extents || !d.counts() { // an old header may name a slot that is empty by now
			continue
		}
		a.logger.Warn("disk has more extents than the member table says", "slot", d.slot, "table", d.extents, "extent", m.extent)
		extents := m.extent + 1
		if d.present() {
			extents = a.geo.extents(d.dev.Limits().Size)
		}
		more := int(extents - d.extents)
		d.used, d.free, d.extents = append(d.used, make([]bool, more)...), d.free+more, extents
		a.super.members = slices.Clone(a.super.members)
		a.super.members[m.slot].extents = d.extents
	}
}

// dropVoid removes bands that were freed or of which an extent was taken later, and bands in which nothing was ever written. It returns
// the former.
func (r *recovery) dropVoid() (void []*foundBand) {
	var all []*foundBand
	for _, f := range r.found {
		all = append(all, f)
	}
	slices.SortFunc(all, func(x, y *foundBand) int {
		if x.num > y.num {
			return -1
		}
		return 1
	})
	for _, f := range all {
		outlived := false // extents are taken only once they are free
		for i, m := range f.members {
			outlived = outlived || r.taken[m] > f.placedAt(i) || r.a.opt.faults.noPlaced && r.taken[m] > f.num
		}
		forgotten := r.forgotten(f)
		switch {
		case r.freed[f.num] || outlived || forgotten:
			delete(r.found, f.num)
			void = append(void, f)
		case !f.begun && !r.anythingIn(f):
			delete(r.found, f.num)
		default:
			continue
		}
		if r.freed[f.num] {
			r.a.logger.Debug("band not taken up: it was freed", "band", fmt.Sprintf("%x", f.num), "headers", len(f.claims))
		} else {
			r.a.logger.Info("band not taken up", "band", fmt.Sprintf("%x", f.num), "headers", len(f.claims), "extents_taken", outlived, "forgotten", forgotten)
		}
	}
	return void
}

// settleHeaders makes the headers found on the disks say the same as those that are believed. A disk that was away, or missed a write,
// still calls a freed band alive or an extent that was given up part of one: should those that know better go, it would be believed.
func (r *recovery) settleHeaders(ctx context.Context, void []*foundBand) error {
	a := r.a
	for _, f := range void {
		failed, err := a.writeFree(ctx, f.band, places(f.claims))
		if err != nil {
			return err
		}
		if err := a.lose(failed, failedRewrite); err != nil {
			return err
		}
	}
	for _, f := range r.found {
		for pos, m := range f.members { // a move was cut short and tore the header, or power went before all disks had the first one
			d := a.slots()[m.slot]
			if f.revision() == f.num && !f.unseen || !d.usable() || d.hollow || slices.Contains(places(f.claims), m) {
				continue
			}
			if err := a.writeHeader(ctx, f.band, pos, m, d); err != nil {
				if err := a.lose([]*disk{d}, failedRewrite); err != nil {
					return err
				}
			}
		}
		for _, c := range f.claims {
			d, pos := a.slots()[c.at.slot], slices.Index(f.members, c.at)
			if c.revision == f.revision() || !d.present() {
				continue
			}
			if err := a.writeHeader(ctx, f.band, pos, c.at, d); err != nil {
				if err := a.lose([]*disk{d}, failedRewrite); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// forgotten reports whether only disks that were out call a band alive, while others of its disks, which never were, know nothing of it: it was
// freed meanwhile, and the marks are gone with disks that were replaced since. A header that is merely damaged would be one more fault than
// parity bears, as a band has more disks than can be out.
func (r *recovery) forgotten(f *foundBand) bool {
	out := func(m bandMember) bool {
		st := r.a.super.members[m.slot].state
		return st == memberOut || st == memberOutHollow
	}
	if !slices.ContainsFunc(f.claims, func(c claim) bool { return !out(c.at) }) {
		for _, m := range f.members {
			if d := r.a.slots()[m.slot]; d.present() && !d.hollow && !out(m) {
				return true
			}
		}
	}
	return false
}

// anythingIn looks for any valid header in the part of a band that could be in flight while its first stripe is missing. The first
// stripe may well be there: on the other disks of the band, whose own band headers are damaged.
func (r *recovery) anythingIn(f *foundBand) bool {
	end := min(1+uint32(f.window()), r.a.geo.extentBlocks())
	for off := uint32(1); off < end; off += headerChunk {
		found, err := r.a.headersIn(strictly{r.a}, f.band, off, int(min(headerChunk, end-off)))
		if err != nil { // who can tell?
			r.a.logger.Warn("band taken up unseen", "band", fmt.Sprintf("%x", f.num), "err", err)
			f.unseen = true
			return true
		}
		if len(found) > 0 {
			if found[0].off == 1 {
				f.first = found[0].stripe
			}
			return true
		}
	}
	return false
}
