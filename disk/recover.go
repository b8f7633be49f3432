package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

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
	doubt []mendedCell          // of stripes behind the mark, as far as that was known
	limit map[uint64]uint64
	gaps  []gap
	// replay takes what the walk finds; nil in a recovery that only looks.
	replay *replay
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
	for _, c := range r.doubt {
		if c.stripe <= r.mark || !c.unwritten {
			a.noteMended(c)
		}
	}
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
	return w.head.stripe == p.Stripe && w.head.nonce == p.Nonce, nil
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
	first, told := i, -1
	for i < len(r.order) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if i != told && a.opt.Replaying != nil {
			told = i
			a.opt.Replaying(i-first, len(r.order)-first)
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
	if slices.Contains(w.bad[:w.width()], true) && !a.opt.ReadOnly && !a.opt.faults.noRepair {
		cells, failed, err := a.mend(w)
		if err != nil {
			return err
		}
		if w.head.stripe > r.mark {
			r.doubt = append(r.doubt, cells...)
		} else {
			a.noteMended(cells...)
		}
		if err := a.lose(failed, failedRewrite); err != nil {
			return err
		}
	} else if err := w.complete(); err != nil {
		return err
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

// Missing notes the loss of a band that is needed and not there.
func (a *Array) Missing(num uint64) { a.noteLoss(Loss{Band: num}) }

// noteLoss reports a loss, once.
func (a *Array) noteLoss(l Loss) {
	a.mu.Lock()
	known := slices.Contains(a.losses, l)
	if !known {
		a.losses = append(a.losses, l)
	}
	a.mu.Unlock()
	if known {
		return
	}
	a.logger.Error("acknowledged data lost", "what", l.String())
	if s := a.scrub.Load(); s != nil {
		s.change(func() {}) // keeps it
	}
}

// hopeless reports whether a stripe that cannot be decoded never will be: those of its cells that may still come, from disks that are away or
// do not answer, are too few.
func (w *wholeStripe) hopeless() bool {
	n := w.goodCells()
	for r := range w.width() {
		away := !w.bad[r] && !w.good[r] && !w.band.isHollow(w.head.member(r))
		if away || w.dark[r] {
			n++
		}
	}
	return n < int(w.head.data)
}

// named asks the state whether a record names a bulk stripe; it is not known without a state that can tell.
func (a *Array) named(w *wholeStripe) (named, known bool, err error) {
	n, ok := a.opt.State.(Namer)
	if !ok {
		return false, false, nil
	}
	named, err = n.Names(a.ctx, w.band.num, w.head.off)
	if err != nil {
		err = fmt.Errorf("ask who needs stripe %x/%d: %w", w.band.num, w.head.off, err)
	}
	return named, true, err
}

// noteLostStripe reports the loss of a stripe that cannot be decoded, if that is final and a record needs it, or might.
func (a *Array) noteLostStripe(w *wholeStripe) (l Loss, lost bool, err error) {
	l = Loss{Band: w.band.num, From: w.head.stripe, To: w.head.stripe}
	if !w.hopeless() {
		return l, false, nil
	}
	if w.band.kind == kindBulk {
		l = Loss{Band: w.band.num, Block: w.head.off}
		if named, known, err := a.named(w); err != nil || known && !named {
			return l, false, err
		}
	}
	a.noteLoss(l)
	return l, true, nil
}

// missed decides what becomes of a cell that cannot be computed when its disk is filled: an error says that it is to be tried again.
func (a *Array) missed(w *wholeStripe) error {
	if err := w.mayBeWhole(); err != nil {
		return err
	}
	if w.band.kind == kindBulk {
		if named, _, err := a.named(w); err != nil || !named {
			return err // no record names it, or nobody knows: a check tells
		}
	} else if a.isLost(w.band.num, w.head.stripe) {
		return nil
	}
	if _, lost, err := a.noteLostStripe(w); err != nil || !lost {
		return errors.Join(err, fmt.Errorf("stripe %x/%d: %d cells good, %d needed: %w", w.band.num, w.head.off, w.goodCells(), w.head.data, ErrCorrupt))
	}
	return nil
}

// lastBulk returns the bulk bands that could have had stripes on their way when the last epoch ended, if that was not in order: the newest
// ones, as many as those stripes fill, and one more as the first need not be new.
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
			cells, failed, err := a.mend(w)
			if err != nil {
				return err
			}
			a.noteMended(cells...)
			return a.lose(failed, failedRewrite)
		})
		if err != nil {
			return fmt.Errorf("complete bulk stripes: %w", err)
		}
	}
	return nil
}

// isLost reports whether a packed stripe is known to be lost.
func (a *Array) isLost(band, stripe uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.ContainsFunc(a.losses, func(l Loss) bool { return l.Band == band && l.From <= stripe && stripe <= l.To })
}
