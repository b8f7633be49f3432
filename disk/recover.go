package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

// foundBand is what the scan learnt of a band.
type foundBand struct {
	*band
	first  uint64  // number of the stripe in its first place, 0 when none is readable
	begun  bool    // something was written behind the header
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

// gap is a run of packed stripes that recovery stepped over.
type gap struct {
	band   uint64 // behind whose stripes it lies
	run    StripeRange
	within bool // the band goes on behind it: it was not freed
}

// recovery is the state of one pass over the log.
type recovery struct {
	a     *Array
	found map[uint64]*foundBand
	order []*foundBand // packed bands, ascending
	freed map[uint64]bool
	taken map[bandMember]uint64 // when the extent was taken last, by any header or mark seen
	mark  uint64                // highest stripe known to have been acknowledged
	heads bool                  // the marks of all bands' first stripes are known
	limit map[uint64]uint64
	gaps  []gap
	// replay takes what the walk finds; nil in a recovery that only looks.
	replay *replay
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
	if err != nil || !a.plausible(b) || b.members[pos] != at {
		return
	}
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
		if d := a.slots()[m.slot]; d.dev != nil && d.state != DiskForeign && m.extent >= d.extents {
			return false
		}
		seen[m.slot] = true
	}
	return true
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
		if r.freed[f.num] || outlived || r.forgotten(f) {
			delete(r.found, f.num)
			void = append(void, f)
			continue
		}
		if !f.begun && !r.anythingIn(f) {
			delete(r.found, f.num)
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
		for pos, m := range f.members { // a move was cut short, and tore the header
			d := a.slots()[m.slot]
			if f.revision() == f.num || !d.usable() || d.hollow || slices.Contains(places(f.claims), m) {
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
	for h := range r.a.headersBehind(f.band, 1, f.window()) {
		if h.off == 1 {
			f.first = h.stripe
		}
		return h.blocks > 0
	}
	return false
}

// window is how far behind a missing stripe others of the same moment can begin, in blocks: all that can be in flight.
func (b *band) window() int {
	if b.kind == kindBulk {
		return (maxBulkAhead + 1) * maxCellBlocks
	}
	return (maxInflight + 1) * maxCellBlocks
}

// headersBehind yields the valid cell headers at blocks off..off+n of a band, in order of offset.
func (a *Array) headersBehind(b *band, off uint32, n int) func(func(header) bool) {
	return a.headersBehindBy(a, b, off, n)
}

// headersBehindBy is headersBehind with reads by run.
func (a *Array) headersBehindBy(run runner, b *band, off uint32, n int) func(func(header) bool) {
	return func(yield func(header) bool) {
		const chunk = 64
		end := min(off+uint32(n), a.geo.extentBlocks())
		for ; off < end; off += chunk {
			found, err := a.headersIn(run, b, off, int(min(chunk, end-off)))
			if err != nil {
				return
			}
			for _, h := range found {
				if !yield(h) {
					return
				}
			}
		}
	}
}

// headersIn returns the valid cell headers in n blocks of a band.
func (a *Array) headersIn(run runner, b *band, off uint32, n int) (found []header, err error) {
	buf, err := a.meta.Get(a.ctx, n*BlockSize*len(b.members))
	if err != nil {
		return nil, err
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	var slots []int
	for pos, m := range b.members {
		if op, ok := a.op(b, pos, off, 0, buf.Bytes()[pos*n*BlockSize:][:n*BlockSize]); ok {
			ops, slots = append(ops, op), append(slots, m.slot)
		}
	}
	if len(ops) == 0 {
		return nil, fmt.Errorf("search band %x: no disk left: %w", b.num, ErrCorrupt)
	}
	if err := run.run(ops); err != nil {
		return nil, err
	}
	for blk := range n {
		for i := range ops {
			if ops[i].Err != nil {
				continue
			}
			at := place{disk: a.slots()[slots[i]].id, band: b.num, off: off + uint32(blk)}
			if h, err := a.codec.parse(ops[i].Buf[blk*BlockSize:], at); err == nil && a.fits(&h, b) {
				found = append(found, h)
			}
		}
	}
	return found, nil
}

// probe reads the stripe that begins at block off of a band: nil when no valid header is there. Cells are verified.
func (a *Array) probe(ctx context.Context, b *band, off uint32) (*wholeStripe, error) {
	return a.probeBy(ctx, a, b, off)
}

// probeBy is probe with reads by run.
func (a *Array) probeBy(ctx context.Context, run runner, b *band, off uint32) (*wholeStripe, error) {
	heads, err := a.headsAt(ctx, run, b, off)
	if err != nil {
		return nil, err
	}
	var best *wholeStripe
	for _, h := range heads {
		w, err := a.readWholeBy(ctx, run, b, h)
		if err != nil {
			continue
		}
		if best == nil || w.goodCells()-int(w.head.data) > best.goodCells()-int(best.head.data) {
			best, w = w, best
		}
		if w != nil {
			w.release()
		}
	}
	return best, nil
}

// headsAt returns a valid header of each stripe that seems to begin at block off of a band: more than one where a cell is stale.
func (a *Array) headsAt(ctx context.Context, run runner, b *band, off uint32) (seen []header, err error) {
	if off >= a.geo.extentBlocks() {
		return nil, nil
	}
	buf, err := a.meta.Get(ctx, len(b.members)*BlockSize)
	if err != nil {
		return nil, err
	}
	var ops []blockdev.Op
	var slots []int
	for pos, m := range b.members {
		if op, ok := a.op(b, pos, off, 0, buf.Bytes()[pos*BlockSize:][:BlockSize]); ok {
			ops, slots = append(ops, op), append(slots, m.slot)
		}
	}
	defer func() { release(&buf, ops) }()
	if len(ops) == 0 {
		return nil, nil
	}
	if err := run.run(ops); err != nil {
		return nil, err
	}
	for i := range ops {
		if ops[i].Err != nil {
			continue
		}
		h, err := a.codec.parse(ops[i].Buf, place{disk: a.slots()[slots[i]].id, band: b.num, off: off})
		if err != nil || !a.fits(&h, b) || slices.ContainsFunc(seen, func(o header) bool { return o.sameStripe(&h) }) {
			continue
		}
		seen = append(seen, h)
	}
	return seen, nil
}

// recover brings the state up to the end of the log and returns the number of the last packed stripe that stands. Stripes that
// can be decoded but are not complete are completed before they are shown; stripes that cannot are the tail if nothing says
// that they were acknowledged, and a loss otherwise.
func (a *Array) recover(ctx context.Context) (uint64, error) {
	r := a.newRecovery()
	var from Position
	if a.opt.State != nil && !a.opt.Rebuild {
		var err error
		if from, err = a.opt.State.Position(); err != nil {
			return 0, fmt.Errorf("read the state's position: %w", err)
		}
		if ok, err := r.holds(ctx, from); err != nil {
			return 0, err
		} else if !ok {
			if from != (Position{}) {
				a.logger.Warn("state does not match the log: replaying all of it", "stripe", from.Stripe)
			}
			from = Position{}
		}
		r.mark = max(r.mark, from.Stripe) // what a state has applied was acknowledged
	}
	if from == (Position{}) && a.opt.State != nil && !a.opt.ReadOnly {
		if err := a.opt.State.Reset(); err != nil {
			return 0, fmt.Errorf("reset the state: %w", err)
		}
	}
	cut, err := r.replayFrom(ctx, from)
	if err == nil && from != (Position{}) && len(r.gaps) > 0 && !a.opt.ReadOnly {
		// Bands were freed that this state has not applied: what they held was moved to where it has not looked either.
		a.logger.Warn("state is behind what was freed: replaying all of the log", "stripe", from.Stripe)
		if err := a.opt.State.Reset(); err != nil {
			return 0, fmt.Errorf("reset the state: %w", err)
		}
		r.gaps = nil
		cut, err = r.replayFrom(ctx, Position{})
	}
	if err == nil {
		err = r.judgeGaps()
	}
	a.mark = r.mark
	return cut, err
}

// replayFrom walks the log and hands what it finds to the state.
func (r *recovery) replayFrom(ctx context.Context, from Position) (uint64, error) {
	r.replay = newReplay(r.a)
	cut, err := r.walk(ctx, from)
	return cut, errors.Join(err, r.replay.finish())
}

// judgeGaps reports the stripes as lost that were stepped over and not freed. Without a state nobody knows what was freed: then only
// those within a band count.
func (r *recovery) judgeGaps() error {
	var freed []StripeRange
	if s := r.a.opt.State; s != nil && len(r.gaps) > 0 {
		var err error
		if freed, err = s.Freed(); err != nil {
			return fmt.Errorf("read what was freed: %w", err)
		}
	}
	for _, g := range r.gaps {
		if !g.within && r.a.opt.State == nil {
			continue
		}
		for _, l := range g.run.without(freed) {
			r.lost(g.band, l.From, l.To)
		}
	}
	return nil
}

func (a *Array) newRecovery() *recovery {
	a.mu.RLock()
	defer a.mu.RUnlock()
	r := &recovery{a: a, limit: map[uint64]uint64{}}
	for _, b := range a.bands {
		if b.kind == kindPacked {
			r.order = append(r.order, &foundBand{band: b, first: b.first.Load(), begun: true})
		}
	}
	slices.SortFunc(r.order, func(x, y *foundBand) int {
		if x.num < y.num {
			return -1
		}
		return 1
	})
	for _, e := range a.super.history {
		r.mark = max(r.mark, e.cut)
	}
	if a.super.clean {
		r.mark = max(r.mark, a.super.last)
	}
	// A stripe number that a later epoch used again was void in the earlier one.
	lowest, later := ^uint64(0), ^uint64(0)
	for i := len(r.order) - 1; i >= 0; i-- {
		f := r.order[i]
		if i+1 < len(r.order) && r.order[i+1].epoch != f.epoch {
			later = lowest
		}
		if f.first > 0 {
			lowest = min(lowest, f.first-1)
		}
		r.limit[f.num] = min(later, a.super.cutFor(f.epoch))
	}
	return r
}

// holds reports whether the log has the stripe that a state says it applied last.
func (r *recovery) holds(ctx context.Context, p Position) (bool, error) {
	if p == (Position{}) {
		return len(r.order) == 0, nil
	}
	b := r.a.bands[p.Band]
	if b == nil || b.kind != kindPacked || p.Stripe > r.limit[b.num] {
		return false, nil
	}
	w, err := r.a.probe(ctx, b, p.Off)
	if err != nil || w == nil {
		return false, err
	}
	defer w.release()
	return w.head.stripe == p.Stripe && (w.head.nonce == p.Nonce), nil
}

// walk goes over the packed stream behind from.
func (r *recovery) walk(ctx context.Context, from Position) (uint64, error) {
	a := r.a
	ahead := newReadAhead(ctx, a)
	defer ahead.close()
	next := from.Stripe + 1
	i, off := 0, uint32(1)
	if from.Stripe > 0 {
		i = slices.IndexFunc(r.order, func(f *foundBand) bool { return f.num == from.Band })
		off = from.Off
		next = from.Stripe
	}
	for i < len(r.order) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		f := r.order[i]
		w, err := r.a.probeBy(ctx, ahead, f.band, off)
		if err != nil {
			return 0, err
		}
		usable := w != nil && w.head.stripe == next && next <= r.limit[f.num] && w.goodCells() >= int(w.head.data)
		if usable {
			err = r.take(ctx, w, next == from.Stripe)
			off += w.head.blocks
		}
		blind := w != nil && w.unread > int(w.head.parity)
		if w != nil {
			r.mark = max(r.mark, w.head.mark)
			w.release()
		}
		if err != nil {
			return 0, err
		}
		if usable {
			next++
			continue
		}
		at, num := off, next
		if i, off, next, err = r.skip(ctx, i, off, next); err != nil {
			return 0, err
		}
		if i < len(r.order) || next != num || a.opt.Degraded {
			continue
		}
		// The end, unless the stripe was acknowledged and those who could tell are only out of reach.
		if w == nil {
			if blind, err = a.blind(f.band, at); err != nil {
				return 0, err
			}
		}
		if blind {
			return 0, fmt.Errorf("%w: stripe %d may hold acknowledged records, and too many disks cannot read it: "+
				"repair them, or give it up by opening with --degraded", ErrMembership, num)
		}
	}
	if len(r.order) == 0 && next <= r.mark {
		r.gaps = append(r.gaps, gap{run: StripeRange{next, r.mark}})
		next = r.mark + 1
	}
	return next - 1, nil
}

// blind reports whether a stripe could have been written at block off of a band though no header can be found there: every
// stripe has a cell on the first 1+parity members in its rotation, and none of these can be read.
func (a *Array) blind(b *band, off uint32) (bool, error) {
	if off >= a.geo.extentBlocks() {
		return false, nil
	}
	buf, err := a.meta.Get(a.ctx, BlockSize*len(b.members))
	if err != nil {
		return false, err
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	for role := range 1 + b.parity {
		pos := (rotation(b.num, off, len(b.members)) + role) % len(b.members)
		if op, ok := a.op(b, pos, off, 0, buf.Bytes()[pos*BlockSize:][:BlockSize]); ok {
			ops = append(ops, op)
		}
	}
	if len(ops) == 0 {
		return true, nil
	}
	if err := a.run(ops); err != nil {
		return false, err
	}
	return !slices.ContainsFunc(ops, func(o blockdev.Op) bool { return o.Err == nil }), nil
}

// take completes a stripe and applies its records.
func (r *recovery) take(ctx context.Context, w *wholeStripe, applied bool) error {
	a := r.a
	incomplete := slices.Contains(w.bad[:w.width()], true)
	if err := w.complete(); err != nil {
		return err
	}
	if incomplete && !a.opt.ReadOnly && !a.opt.faults.noRepair {
		failed, err := w.rewrite()
		if err != nil {
			return err
		}
		if err := a.lose(failed, failedRewrite); err != nil {
			return err
		}
	}
	if applied || a.opt.State == nil {
		return nil
	}
	entries, err := a.decodeEntries(w)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("open records of stripe %d: %w", w.head.stripe, err) // keys are missing: nothing is wrong with the records
	}
	if err != nil {
		// Checksums hold and the seal does not: nobody but an adversary or a bug writes that. Set it aside and go on.
		a.logger.Error("stripe not understood", "stripe", w.head.stripe, "err", err)
		r.lost(w.band.num, w.head.stripe, w.head.stripe)
	}
	pos := Position{Stripe: w.head.stripe, Band: w.band.num, Off: w.head.off, Nonce: w.head.nonce}
	return r.replay.add(pos, entries)
}

const failedRewrite = "a write failed during recovery"

// lose marks disks that failed while the array was being opened: the coming epoch goes on without them.
func (a *Array) lose(disks []*disk, reason string) error {
	if len(disks) == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range disks {
		d.state, d.reason = DiskFenced, reason
		a.logger.Error("disk failed", "path", d.path, "slot", d.slot, "reason", reason)
	}
	left := 0
	for _, d := range a.slots() {
		if d.present() {
			left++
		}
	}
	if n := a.counted(); left < n-a.geo.Parity {
		return fmt.Errorf("%d of %d disks left: %w", left, n, ErrReadOnly)
	}
	return nil
}

// decodeEntries opens the record blocks of a complete stripe.
func (a *Array) decodeEntries(w *wholeStripe) ([]Entry, error) {
	key, err := a.opt.Keys.RecordKey(w.head.keyEpoch)
	if err != nil {
		return nil, err
	}
	aead, err := recordAEAD(key, &w.head)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for role := range int(w.head.data) {
		h := w.head
		h.role = uint8(role)
		err := a.codec.openRecords(aead, w.cells[role], &h, func(e Entry) error {
			entries = append(entries, e)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// skip decides what follows when the stripe numbered next is not at block off of band i: the next band, a gap that is a loss,
// or the end of the stream.
func (r *recovery) skip(ctx context.Context, i int, off uint32, next uint64) (int, uint32, uint64, error) {
	for j := i + 1; j < len(r.order); j++ {
		if f := r.order[j]; f.first == next && next <= r.limit[f.num] {
			return j, 1, next, nil
		}
	}
	// What lies behind, in this band and at the heads of the later ones, may say that the stripe was acknowledged.
	f := r.order[i]
	to, toOff, toStripe := -1, uint32(0), ^uint64(0)
	look := func(j int, off uint32, n int) {
		g := r.order[j]
		for h := range r.a.headersBehind(g.band, off, n) {
			r.mark = max(r.mark, h.mark)
			if h.stripe > next && h.stripe <= r.limit[g.num] && h.stripe < toStripe {
				to, toOff, toStripe = j, h.off, h.stripe
			}
		}
	}
	look(i, off, f.window())
	for j := i + 1; j < len(r.order); j++ {
		g := r.order[j]
		if g.first > next && g.first <= r.limit[g.num] && g.first < toStripe {
			to, toOff, toStripe = j, 1, g.first
		}
		if g.first == 0 { // its first stripe is among the lost
			look(j, 1, int(r.a.geo.extentBlocks()))
		}
	}
	if err := r.readMarks(ctx); err != nil {
		return 0, 0, 0, err
	}
	if next > r.mark {
		return len(r.order), 0, next, nil // never acknowledged: the end
	}
	if to < 0 {
		look(i, off, int(r.a.geo.extentBlocks()))
	}
	if to < 0 {
		r.gaps = append(r.gaps, gap{band: f.num, run: StripeRange{next, r.mark}})
		return len(r.order), 0, r.mark + 1, nil
	}
	r.gaps = append(r.gaps, gap{band: f.num, run: StripeRange{next, toStripe - 1}, within: to == i && next != 1})
	return to, toOff, toStripe, nil
}

// readMarks takes the marks of the first stripes of all bands into account, once.
func (r *recovery) readMarks(ctx context.Context) error {
	if r.heads {
		return nil
	}
	r.heads = true
	for _, g := range r.order {
		w, err := r.a.probe(ctx, g.band, 1)
		if err != nil {
			return err
		}
		if w != nil {
			r.mark = max(r.mark, w.head.mark)
			w.release()
		}
	}
	return nil
}

// lost reports stripes that were acknowledged and cannot be read.
func (r *recovery) lost(band, from, to uint64) {
	r.a.noteLoss(Loss{Band: band, From: from, To: to})
}

// noteLoss reports a loss, and that it is a new one.
func (a *Array) noteLoss(l Loss) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.losses, l) {
		return false
	}
	a.logger.Error("acknowledged stripes lost", "band", l.Band, "from", l.From, "to", l.To)
	a.losses = append(a.losses, l)
	return true
}

// lastBulk returns the bulk bands that could have had stripes on their way when the last epoch ended: the newest ones, as many as
// those stripes fill, and one more as the first need not be new.
func (a *Array) lastBulk() (last []*band) {
	most := 2 + maxBulkAhead*maxCellBlocks/int(a.geo.extentBlocks())
	for _, b := range slices.Backward(a.sortedBands()) {
		if b.kind == kindBulk && len(last) < most {
			last = append(last, b)
		}
	}
	return last
}

// completeBulk makes stripes whole that were on their way when the power failed. No record names them if any cell was missing,
// but a check could not tell them from damaged ones.
func (a *Array) completeBulk(ctx context.Context) error {
	for _, b := range a.lastBulk() {
		err := a.eachStripe(ctx, b, func(w *wholeStripe) error {
			if w.goodCells() < int(w.head.data) || !slices.Contains(w.bad[:w.width()], true) {
				return nil
			}
			failed, err := w.rewrite()
			if err != nil {
				return err
			}
			return a.lose(failed, failedRewrite)
		})
		if err != nil {
			return fmt.Errorf("complete bulk stripes: %w", err)
		}
	}
	return nil
}

// resync brings disks that were away up to date: every cell that the bands of their last epoch and later put on them is verified
// and rewritten where it is not there. Older bands were complete when they left.
func (a *Array) resync(ctx context.Context, cut uint64) error {
	var stale []*disk
	a.mu.Lock()
	for _, d := range a.slots() {
		if d.state == DiskStale {
			stale = append(stale, d)
		}
	}
	a.mu.Unlock()
	for _, d := range stale {
		cells, err := a.resyncDisk(ctx, d, cut)
		if err != nil {
			a.logger.Error("disk not resynchronised", "path", d.path, "err", err)
			a.mu.Lock()
			d.state, d.reason = DiskFenced, err.Error()
			a.mu.Unlock()
			continue
		}
		a.logger.Info("disk resynchronised", "path", d.path, "cells", cells)
	}
	return nil
}

// resyncDisk makes one stale disk whole. It counts as healthy meanwhile, as nothing is served yet; resync takes that back on an error.
func (a *Array) resyncDisk(ctx context.Context, d *disk, cut uint64) (int, error) {
	cells := 0
	r := a.newRecovery()
	a.mu.Lock()
	if d.state, d.reason = DiskHealthy, ""; d.hollow {
		d.state, d.reason = DiskRebuilding, "being rebuilt"
	}
	a.mu.Unlock()
	for _, b := range a.sortedBands() {
		pos := slices.IndexFunc(b.members, func(m bandMember) bool { return m.slot == d.slot })
		if pos < 0 || b.revision()>>32 < d.super.epoch().num {
			continue
		}
		if err := a.rewriteBandHeader(ctx, b, pos, d); err != nil {
			return cells, err
		}
		n, err := a.resyncBand(ctx, b, d, func(h *header) bool {
			return b.kind == kindBulk || h.stripe <= min(cut, r.limit[b.num])
		})
		cells += n
		if err != nil {
			return cells, err
		}
	}
	return cells, nil
}

// rewriteBandHeader puts the header block of a band back on a disk.
func (a *Array) rewriteBandHeader(ctx context.Context, b *band, pos int, d *disk) error {
	return a.writeHeader(ctx, b, pos, b.members[pos], d)
}

// writeHeader writes the header of a band at an extent, or zeros if that is not one of the band's, at position -1.
func (a *Array) writeHeader(ctx context.Context, b *band, pos int, at bandMember, d *disk) error {
	buf, err := a.meta.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	clear(buf.Bytes()[:BlockSize])
	if pos >= 0 {
		a.codec.putBand(buf.Bytes()[:BlockSize], b, pos, d.id)
	}
	ops := []blockdev.Op{{Dev: d.gi, Write: true, Durable: true, Off: a.geo.extentOffset(at.extent), Buf: buf.Bytes()[:BlockSize]}}
	failed, err := a.runWrites(ops, &buf)
	if err == nil && len(failed) > 0 {
		err = ops[0].Err
	}
	return err
}

// resyncBand walks the stripes of a band and rewrites the bad cells of those that stand.
func (a *Array) resyncBand(ctx context.Context, b *band, d *disk, stands func(*header) bool) (cells int, err error) {
	err = a.eachStripe(ctx, b, func(w *wholeStripe) error {
		if !stands(&w.head) || w.goodCells() < int(w.head.data) || !slices.Contains(w.bad[:w.width()], true) {
			return nil
		}
		failed, err := w.rewrite()
		if err == nil && slices.Contains(failed, d) {
			return errors.New("a write failed during resynchronisation")
		}
		cells++
		return errors.Join(err, a.lose(failed, failedRewrite))
	})
	if err == nil && !d.usable() {
		err = errors.New(d.reason) // a read timed out
	}
	return cells, err
}

// eachStripe visits the stripes of a band from front to back, stepping over holes.
func (a *Array) eachStripe(ctx context.Context, b *band, fn func(*wholeStripe) error) error {
	for off := uint32(1); ; {
		w, next, err := a.nextStripe(ctx, a, b, off)
		if err != nil || w == nil {
			return err
		}
		off = next
		if err := w.use(fn); err != nil {
			return err
		}
	}
}

// nextStripe reads by run the stripe of a band that begins at block off, or the first one behind it, and returns where that ends;
// nil when there is none.
func (a *Array) nextStripe(ctx context.Context, run runner, b *band, off uint32) (*wholeStripe, uint32, error) {
	for off < a.geo.extentBlocks() {
		w, err := a.probeBy(ctx, run, b, off)
		if err != nil {
			return nil, 0, err
		}
		if w != nil {
			return w, off + w.head.blocks, nil
		}
		at := uint32(0)
		for h := range a.headersBehindBy(run, b, off+1, b.window()) {
			at = h.off
			break
		}
		if at <= off {
			break
		}
		off = at
	}
	return nil, a.geo.extentBlocks(), nil
}
