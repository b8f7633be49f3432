package disk

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"coffer/disk/internal/blockdev"
)

// CheckReport is what a check found. Counts are of cells unless they say otherwise.
type CheckReport struct {
	Bands    int `json:"bands"`
	Stripes  int `json:"stripes"`
	Cells    int `json:"cells"`    // that should be there, the headers of bands among them
	Bad      int `json:"bad"`      // on a disk that is there, failing their checks
	Missing  int `json:"missing"`  // on disks that are not there
	Lost     int `json:"lost"`     // stripes with fewer good cells than data cells, or packed ones without a trace
	Repaired int `json:"repaired"` // cells rewritten
	Degraded int `json:"degraded"` // stripes with fewer good cells than they were written with
	// Unfinished stripes were on their way when the power failed: nothing acknowledged is in them. Opening the array for writing
	// completes them.
	Unfinished int      `json:"unfinished"`
	Faults     []string `json:"faults,omitempty"`
	Losses     []Loss   `json:"losses,omitempty"`
}

// OK reports whether everything that was written is there.
func (r CheckReport) OK() bool {
	return r.Bad == 0 && r.Missing == 0 && r.Lost == 0 && len(r.Losses) == 0
}

// maxFaults bounds the list of faults in a report.
const maxFaults = 100

// CheckOptions configure Check.
type CheckOptions struct {
	Repair   bool                  // rewrite bad cells
	Progress func(done, total int) // bands; may be nil
}

// Check reads every stripe of every band past all caches and verifies each cell, parity included.
func (a *Array) Check(ctx context.Context, opt CheckOptions) (CheckReport, error) {
	opt.Repair = opt.Repair && !a.opt.ReadOnly
	// What is on its way now, and what comes later, is none of this check's. The bands listed below have all stripes up to here.
	until, bulkUntil, epoch := a.log.acked.Load(), a.bulk.oldest(), a.epochNow()
	bands := a.sortedBands()
	a.mu.RLock()
	rep := CheckReport{Bands: len(bands), Losses: append([]Loss(nil), a.losses...)}
	a.mu.RUnlock()
	r := a.newRecovery()
	c, err := a.numbering(until)
	if err != nil {
		return rep, err
	}
	last, unclean := a.lastBulk(), a.opt.ReadOnly && !a.super.clean
	for i, b := range bands {
		if _, err := a.pinBand(b.num); err != nil {
			if c.freed, err = a.opt.State.Freed(); err != nil { // it was freed since the list was made
				return rep, err
			}
			continue
		}
		err := a.checkBand(ctx, b, &rep, opt, func(w *wholeStripe) error {
			void := b.kind == kindPacked && w.head.stripe > min(r.limit[b.num], until) ||
				b.kind == kindBulk && b.epoch >= epoch && w.head.stripe >= bulkUntil
			if void || (b.kind == kindBulk && b.epoch != epoch && w.goodCells() < int(w.head.data)) {
				return nil // never acknowledged, not yet, or a torn stripe that no record names
			}
			if b.kind == kindPacked {
				c.seen(b.num, w.head.stripe, &rep)
			}
			if unclean && slices.Contains(w.bad[:w.width()], true) && (w.head.stripe > a.mark && b.kind == kindPacked || slices.Contains(last, b)) {
				rep.Unfinished++
				return nil
			}
			return a.checkStripe(w, &rep, opt)
		})
		b.unpin()
		if err != nil {
			return rep, err
		}
		if opt.Progress != nil {
			opt.Progress(i+1, len(bands))
		}
	}
	c.seen(0, until+1, &rep)
	return rep, nil
}

// checkBand verifies the headers of a band and calls fn for its stripes.
func (a *Array) checkBand(ctx context.Context, b *band, rep *CheckReport, opt CheckOptions, fn func(*wholeStripe) error) error {
	if err := a.checkBandHeaders(ctx, b, rep, opt); err != nil {
		return err
	}
	return a.eachStripe(ctx, b, fn)
}

// numbering finds holes in the packed stream: a stripe of which no header is left cannot be seen otherwise.
type numbering struct {
	next, until uint64
	band        uint64        // of the stripe before next
	freed       []StripeRange // holes that are none
	unknown     bool          // what was freed is not known: only holes within a band count
}

func (a *Array) numbering(until uint64) (numbering, error) {
	c := numbering{next: 1, until: until, unknown: a.opt.State == nil}
	var err error
	if !c.unknown {
		c.freed, err = a.opt.State.Freed()
	}
	return c, err
}

// seen counts what is missing in front of the stripe num of a band.
func (c *numbering) seen(band, num uint64, rep *CheckReport) {
	if end := min(num, c.until+1); c.next < end && (!c.unknown || band == c.band) {
		for _, r := range (StripeRange{c.next, end - 1}).without(c.freed) {
			rep.Lost += int(r.To - r.From + 1)
			rep.fault("packed stripes %d to %d: not found", r.From, r.To)
		}
	}
	c.next, c.band = max(c.next, num+1), band
}

func (r *CheckReport) fault(format string, args ...any) {
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
}

// checkBandHeaders verifies the header blocks of a band, one a member. Any one of them would do to find the band.
func (a *Array) checkBandHeaders(ctx context.Context, b *band, rep *CheckReport, opt CheckOptions) error {
	buf, err := a.meta.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	for pos, m := range b.members {
		rep.Cells++
		op, ok := a.op(b, pos, 0, 0, buf.Bytes()[:BlockSize])
		if !ok {
			rep.Missing++
			continue
		}
		ops = append(ops[:0], op)
		if err := a.run(ops); err != nil {
			return err
		}
		if ops[0].Stuck {
			return ops[0].Err
		}
		d := a.slots()[m.slot]
		got, at, err := a.codec.parseBand(op.Buf, d.id)
		if ops[0].Err == nil && err == nil && at == pos && got.num == b.num && got.nonce == b.nonce && slices.Equal(got.members, b.members) {
			continue
		}
		rep.Bad++
		rep.fault("%s: band %x: its header fails its checks", d.path, b.num)
		if opt.Repair {
			if err := a.rewriteBandHeader(ctx, b, pos, d); err == nil {
				rep.Repaired++
			} else if err := a.log.fail([]*disk{d}); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkStripe counts one stripe into the report.
func (a *Array) checkStripe(w *wholeStripe, rep *CheckReport, opt CheckOptions) error {
	rep.Stripes++
	n := w.width()
	rep.Cells += n
	bad, missing := 0, 0
	for role := range n {
		switch {
		case w.bad[role]:
			bad++
			d := a.slots()[w.band.members[w.head.member(role)].slot]
			rep.fault("%s: band %x block %d: cell %d of %d fails its checks", d.path, w.band.num, w.head.off, role, n)
		case !w.good[role]:
			missing++
		}
	}
	rep.Bad += bad
	rep.Missing += missing
	if bad+missing > 0 {
		rep.Degraded++
	}
	if w.goodCells() < int(w.head.data) {
		rep.Lost++
		return nil
	}
	if opt.Repair && slices.Contains(w.bad[:n], true) {
		failed, err := w.rewrite()
		if err != nil {
			return err
		}
		rep.Repaired += bad - len(failed)
		if len(failed) > 0 {
			return a.log.fail(failed)
		}
	}
	return nil
}

// sortedBands lists the bands in the order in which they were opened.
func (a *Array) sortedBands() []*band {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.SortedFunc(maps.Values(a.bands), func(x, y *band) int { return cmp.Compare(x.num, y.num) })
}
