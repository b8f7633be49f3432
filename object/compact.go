package object

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"coffer/disk"
	"coffer/object/internal/index"
)

// Compaction gives space back: it moves what is live out of a band and frees the band. Nothing live is lost, because a band is freed
// only when no entry of the index refers to it and the index is durable. Nothing dead comes back when the index is rebuilt, because the
// records that made others vanish (shadows) are moved as well, as long as what they hide may lie in the log.

// Defaults of Options, and the policy.
const (
	DefaultCompactEvery = time.Minute
	DefaultCompactRate  = 64 << 20

	minGain      = 0.5  // of a band, for it to be compacted in the background
	minGainTight = 0.05 // when space is short, or all is to be compacted
	maxShadows   = 0.05 // of the packed bands' bytes: beyond it the oldest is compacted, whose shadows need not be moved
	shadowBatch  = 4096 // are dropped at once
	paceSlice    = 100 * time.Millisecond
)

// CompactOptions say what Compact does.
type CompactOptions struct {
	// All has every band compacted that gains something by it, not just those below half live.
	All bool
	// Progress is called after each band. May be nil.
	Progress func(CompactReport)
}

// CompactReport says what compaction did.
type CompactReport struct {
	Bands     int   `json:"bands_freed"`
	Left      int   `json:"bands_left"`      // bands that stay: in use, or damaged
	Moved     int64 `json:"moved_bytes"`     // records and stripes written again
	Reclaimed int64 `json:"reclaimed_bytes"` // of the bands freed
}

// compaction is one pass over the bands.
type compaction struct {
	s        *Store
	log      Log
	pace     *pacer
	report   CompactReport
	progress func(CompactReport)
	run      *CompactRun // what the status shows of the pass; nil: nothing
}

// bandName is how bands are called where people read of them.
func bandName(num uint64) string { return strconv.FormatUint(num, 16) }

// candidate is a band that may be compacted.
type candidate struct {
	disk.Band
	live  int64
	share float64 // of what a band like it can hold, live
	score float64
	gains bool // space; else its data is to have more parity
}

// emptied is a band out of which everything was moved.
type emptied struct {
	candidate
	stripes disk.StripeRange // of a packed band
	rest    int64            // live bytes that go with it
}

// Compact makes one pass now, at the rate of the background's. Passes may run beside each other and take turns.
func (s *Store) Compact(ctx context.Context, o CompactOptions) (CompactReport, error) {
	log, err := s.disk()
	if err != nil {
		return CompactReport{}, err
	}
	c := &compaction{s: s, log: log, pace: s.newPacer(log), progress: o.Progress}
	if err := c.inTurn(ctx, func() error { clear(s.damaged); return nil }); err != nil {
		return c.report, err
	}
	if err := c.pass(ctx, gainOf(o.All)); err != nil {
		return c.report, fmt.Errorf("compact: %w", err)
	}
	return c.report, nil
}

// relieve frees the band that costs least for what it gives, and reports whether it freed any.
func (s *Store) relieve(ctx context.Context, log Log) bool {
	c := &compaction{s: s, log: log, pace: s.newPacer(log)}
	err := c.inTurn(ctx, func() error {
		dead, list, err := c.candidates(minGainTight)
		if err != nil {
			return err
		}
		if err := c.reclaim(ctx, dead...); err != nil {
			return err
		}
		for _, b := range list {
			if c.report.Bands > 0 {
				break
			}
			if !b.gains {
				continue
			}
			if log.Pinned(b.Num) {
				continue // what is moved out of it would take space and give none for now
			}
			if err := c.reclaim(ctx, b); err != nil {
				return err
			}
		}
		return nil
	})
	c.finish(ctx, err)
	return c.report.Bands > 0
}

// finish logs what a pass of the background did.
func (c *compaction) finish(ctx context.Context, err error) {
	c.s.lastCompaction.Store(time.Now().UnixMilli())
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.s.logger.Error("compaction failed", "err", err)
	case c.report.Bands > 0:
		c.s.logger.Info("compacted", "bands", c.report.Bands, "moved_bytes", c.report.Moved, "reclaimed_bytes", c.report.Reclaimed)
	}
}

// inTurn runs f while no other pass works on bands.
func (c *compaction) inTurn(ctx context.Context, f func() error) error {
	select {
	case c.s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.s.turn }()
	return f()
}

// pass compacts the bands that gain as much of themselves by it. It gives others a turn after each.
func (c *compaction) pass(ctx context.Context, gain float64) error {
	var list []candidate
	err := c.inTurn(ctx, func() error {
		dead, rest, err := c.candidates(gain)
		if err != nil {
			return err
		}
		list = rest
		c.note(func(r *CompactRun) { r.Bands = len(dead) + len(list) })
		return c.reclaim(ctx, dead...)
	})
	if err != nil {
		return err
	}
	for _, b := range list {
		if err := c.pace.wait(ctx, 0); err != nil {
			return err
		}
		if err := c.inTurn(ctx, func() error { return c.reclaim(ctx, b) }); err != nil {
			return err
		}
	}
	return nil
}

// note changes what the status shows of the pass.
func (c *compaction) note(f func(*CompactRun)) {
	if c.run == nil {
		return
	}
	c.s.control.mu.Lock()
	defer c.s.control.mu.Unlock()
	f(c.run)
}

// candidates returns the bands without anything live and those worth moving out of, best first: by cost and benefit, as in Rosenblum and
// Ousterhout 1992, "The Design and Implementation of a Log-Structured File System". It drops what the index need not know any more.
func (c *compaction) candidates(gain float64) (dead, list []candidate, err error) {
	if err := c.s.tidy(c.log); err != nil {
		return nil, nil, err
	}
	dead, list, err = c.choose(gain)
	c.log.SetDear(len(dead) == 0 && (len(list) == 0 || list[0].share > 1-minGain))
	return dead, list, err
}

// choose is candidates without a change.
func (c *compaction) choose(gain float64) (dead, list []candidate, err error) {
	var packed int64
	var oldest candidate
	now := time.Now()
	for _, b := range c.log.Bands() {
		x := candidate{Band: b, live: c.s.idx.LiveOf(b.Num)}
		x.share = min(float64(x.live)/float64(max(c.s.filled(c.log, b), 1)), 1)
		usable := b.Closed && !c.s.damaged[b.Num] && c.log.CanFree(b.Num)
		if !b.Bulk {
			if packed == 0 && usable {
				oldest = x
			}
			packed += b.Size
		}
		switch u := x.share; {
		case !usable:
		case x.live == 0:
			if !c.log.Pinned(b.Num) {
				dead = append(dead, x)
			}
		case 1-u >= gain:
			x.score, x.gains = (1-u)*(now.Sub(b.Opened).Seconds()+1)/(1+u), true
			list = append(list, x)
		case b.Thin:
			x.score = math.Inf(1)
			list = append(list, x)
		}
	}
	slices.SortStableFunc(list, func(x, y candidate) int { return cmp.Compare(y.score, x.score) })
	if shadows := c.s.idx.LiveOf(shadowBand); oldest.live > 0 && float64(shadows) > maxShadows*float64(packed) {
		list = slices.DeleteFunc(list, func(x candidate) bool { return x.Num == oldest.Num })
		list = slices.Insert(list, 0, oldest)
	}
	return dead, list, nil
}

// filled estimates what a full band of what lies in b would keep alive. Stripes do not fit into bands without waste, nor records into
// cells, which compaction cannot cure: of bands that were written since the start it is known how much went in. Were it not, a full array
// without garbage would be moved around for ever. Few records that were written together waste most of their stripe, which moving
// them together with many others does cure: so the space of such stripes counts as if it were full of data, until their records
// have been moved once.
func (s *Store) filled(log Log, b disk.Band) int64 {
	size := b.Size
	if b.Bulk {
		size = log.ExtentSpace()
	}
	w, known := s.written.in(b.Num)
	switch {
	case !known:
		return size
	case b.Bulk:
		return w.bytes
	}
	return w.moved + max(w.bytes-w.moved, int64(float64(w.sparse)*float64(b.Size)/float64(log.ExtentSpace())*packedDense))
}

// packedDense is the share of cells that records fill when many are moved together.
const packedDense = 0.9

// tally counts what was written to bands since the store was started. What no record came to name counts as well.
type tally struct {
	mu    sync.Mutex // guards all below
	older uint64     // bands up to here were there before
	bands map[uint64]written
}

// written is what went into a band, bytes.
type written struct {
	bytes  int64
	moved  int64 // of them, in stripes of compaction: records lie there as close together as they go
	sparse int64 // of each extent, what other stripes take of a packed band
	// The last stripe, whose length the next one tells.
	off  uint32
	last bool // was of compaction
}

// begin is called before anything is written.
func (t *tally) begin(bands []disk.Band) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bands = make(map[uint64]written)
	if len(bands) > 0 {
		t.older = bands[len(bands)-1].Num
	}
}

// stripe counts the records of a packed stripe at block off.
func (t *tally) stripe(band uint64, off uint32, bytes int64, moved bool) {
	t.add(band, bytes, moved, func(w *written) {
		if w.off > 0 && off > w.off && !w.last {
			w.sparse += int64(off-w.off) * disk.BlockSize
		}
		w.off, w.last = off, moved
	})
}

// add counts bytes; more may be nil.
func (t *tally) add(band uint64, bytes int64, moved bool, more func(w *written)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bands == nil || band <= t.older {
		return
	}
	w := t.bands[band]
	w.bytes += bytes
	if moved {
		w.moved += bytes
	}
	if more != nil {
		more(&w)
	}
	t.bands[band] = w
}

// in returns what was written to a band, and whether that is all there is.
func (t *tally) in(band uint64) (w written, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bands[band], band > t.older
}

func (t *tally) drop(band uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.bands, band)
}

// reclaim empties bands and frees them. An error ends the pass; bands that stay for now are counted.
func (c *compaction) reclaim(ctx context.Context, bands ...candidate) error {
	var list []emptied
	for _, b := range bands {
		e, err := c.empty(ctx, b)
		switch {
		case err == nil:
			list = append(list, e)
		case errors.Is(err, ErrCorrupt):
			c.s.damaged[b.Num] = true
			c.s.logger.Error("band not compacted", "band", bandName(b.Num), "err", err)
			c.report.Left++
		case errors.Is(err, disk.ErrGone):
		default:
			return err
		}
	}
	err := c.free(ctx, list)
	c.note(func(r *CompactRun) { r.Visited, r.Report = r.Visited+len(bands), c.report })
	if c.progress != nil {
		c.progress(c.report)
	}
	return err
}

// empty moves what is live out of a band.
func (c *compaction) empty(ctx context.Context, b candidate) (e emptied, err error) {
	e.candidate = b
	m := &mover{s: c.s, log: c.log, pace: c.pace, band: b.Num}
	if b.Bulk {
		err = m.bulk(ctx)
	} else {
		bands := c.log.Bands()
		i := slices.IndexFunc(bands, func(x disk.Band) bool { return !x.Bulk })
		m.oldest = i >= 0 && bands[i].Num == b.Num
		e.stripes, err = m.packed(ctx)
		e.rest = m.rest
	}
	c.report.Moved += m.moved.Load()
	return e, err
}

// free frees the bands that are empty.
func (c *compaction) free(ctx context.Context, list []emptied) error {
	var gone []disk.StripeRange
	ready := list[:0]
	for _, b := range list {
		// In this order: once a closed band was seen without pins, no record can come that names it.
		if c.log.Pinned(b.Num) || !c.log.CanFree(b.Num) {
			c.report.Left++
			continue
		}
		if n := c.s.idx.LiveOf(b.Num); n != b.rest {
			c.s.logger.Debug("band not empty after compaction: it stays for now", "band", bandName(b.Num), "live_bytes", n)
			c.report.Left++
			continue
		}
		if b.Bulk {
			// Counts and references are kept together: a band that has one without the other is kept, and told of.
			named, err := c.s.referenced(b.Num)
			if err != nil {
				return err
			}
			if named {
				c.s.logger.Error("band counts as empty, and entries refer to it: it stays", "band", bandName(b.Num))
				c.report.Left++
				continue
			}
		}
		ready = append(ready, b)
		if b.stripes.From > 0 && b.stripes.To >= b.stripes.From {
			gone = append(gone, b.stripes)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	if err := c.s.recordFreed(ctx, gone); err != nil {
		return err
	}
	// An index that is lost up to here in a crash must not need what is freed now.
	if err := c.s.Checkpoint(); err != nil {
		return err
	}
	for _, b := range ready {
		switch err := c.log.Free(ctx, b.Num); {
		case errors.Is(err, disk.ErrBusy):
			c.report.Left++
			continue
		case err != nil:
			return err
		}
		c.s.written.drop(b.Num)
		c.report.Bands++
		c.report.Reclaimed += b.Size
		c.s.stats.bandsFreed.Add(1)
		c.s.stats.reclaimed.Add(b.Size)
	}
	return c.s.tidy(c.log)
}

// referenced reports whether any entry refers to a bulk band.
func (s *Store) referenced(band uint64) (yes bool, err error) {
	it := s.idx.Iter(index.RefRange(band))
	defer func() { err = s.checkIndex(errors.Join(err, it.Close())) }()
	return it.Seek(nil), nil
}

// tidy drops what the index holds about bands that are gone: shadows of records that lay in none but them, and their counts of live
// bytes. A rebuild may bring it back, and drops it again.
func (s *Store) tidy(log Log) error {
	if err := s.dropShadows(log.Horizon()); err != nil {
		return err
	}
	gone := make(map[uint64]bool)
	s.idx.Live(func(band uint64, n int64) {
		if n == 0 && band != shadowBand {
			gone[band] = true
		}
	})
	for _, b := range log.Bands() { // asked for after the counts: those have none of a band that is opened now
		delete(gone, b.Num)
	}
	if len(gone) == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	batch := s.idx.NewBatch()
	for band := range gone {
		batch.DropLive(band)
	}
	return s.checkIndex(batch.Commit())
}

// dropShadows forgets the shadows with numbers below a limit.
func (s *Store) dropShadows(below uint64) (err error) {
	it := s.idx.Iter(index.ShadowRange(0, below))
	defer func() { err = s.checkIndex(errors.Join(err, it.Close())) }()
	for ok := it.Seek(nil); ok && err == nil; {
		ok, err = s.dropSome(it)
	}
	return err
}

// dropSome forgets the shadows from where it stands on, at most shadowBatch of them, and reports whether there are more. A shadow that
// was moved meanwhile is left to the next time.
func (s *Store) dropSome(it *index.Iter) (more bool, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	batch := s.idx.NewBatch()
	more = true
	for n := 0; more && n < shadowBatch; n++ {
		now, ok, err := batch.Get(it.Key(), nil)
		if err != nil {
			batch.Discard()
			return false, err
		}
		if ok && bytes.Equal(now, it.Value()) {
			if err := account(batch, it.Key(), it.Value(), -1); err != nil {
				batch.Discard()
				return false, err
			}
			batch.Delete(it.Key())
		}
		more = it.Next()
	}
	return more, batch.Commit()
}
