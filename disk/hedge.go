package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// A read that is late is hedged: other cells are read, and whichever answers first counts. Late is what takes hedgeFactor times as
// long as 99 of 100 reads of its size on the median disk of late: so a disk is judged by its peers, and when all are slow together none is late.
const (
	hedgeFactor  = 2
	hedgeFloor   = 2 * time.Millisecond   // what the scheduler alone can cost
	hedgeCeiling = 500 * time.Millisecond // the bound until enough reads were measured, too
	hedgeSamples = 64                     // reads of a size on a disk before its measure counts
	// lagAt is how many late reads in flight make a disk one that is read only where others cannot answer. Healthy disks have one at a time.
	lagAt = 2
)

// hedging keeps the bounds of reads, and counts.
type hedging struct {
	after       [blockdev.SizeClasses]atomic.Int64 // nanoseconds; 0: not measured yet
	issued, won atomic.Uint64
}

// lateAfter is how long a read of n bytes is waited for before others are asked.
func (a *Array) lateAfter(n int) time.Duration {
	if d := a.hedges.after[blockdev.SizeClass(n)].Load(); d > 0 {
		return time.Duration(d)
	}
	return hedgeCeiling
}

// measure sets the bounds by what live disks did lately.
func (h *hedging) measure(live []*disk, stats []blockdev.Stats, pulses map[*disk]*pulse) {
	for class := range h.after {
		var tails []time.Duration
		for i, d := range live {
			before, now := &pulses[d].sizes[class], &stats[i].ReadSizes[class]
			if t, ok := tail(before, now); ok {
				tails = append(tails, t)
				*before = *now
			}
		}
		if len(tails) > 0 {
			slices.Sort(tails)
			h.after[class].Store(int64(min(max(hedgeFactor*tails[(len(tails)-1)/2], hedgeFloor), hedgeCeiling)))
		}
	}
}

// tail is what 99 of 100 operations since before stayed below, rounded up to a power of two microseconds; false if there were too few.
func tail(before, now *blockdev.Latency) (time.Duration, bool) {
	n := now.Count - before.Count
	if now.Count < before.Count || n < hedgeSamples {
		return 0, false
	}
	var seen uint64
	for i := range now.Buckets {
		if seen += now.Buckets[i] - before.Buckets[i]; seen*100 >= n*99 {
			return time.Duration(1) << i * time.Microsecond, true
		}
	}
	return time.Duration(1) << len(now.Buckets) * time.Microsecond, true
}

// lags reports whether a disk is better not read.
func (d *disk) lags() bool { return d.suspect.Load() || d.late.Load() >= lagAt }

// lagging tells of each member of a band whether its disk lags now: it may be otherwise a moment later.
func (a *Array) lagging(b *band) (lag [MaxWidth]bool) {
	slots := a.slots()
	for pos, m := range b.members {
		lag[pos] = slots[m.slot].lags()
	}
	return lag
}

// errAvoided is the result of a read that was not begun, as its disk lags and others can answer. It is late in all that matters.
var errAvoided = fmt.Errorf("disk lags: %w", blockdev.ErrLate)

// runWilling runs those reads of cells of a band that need not be avoided; pos gives the member of each.
func (a *Array) runWilling(b *band, ops []blockdev.Op, pos func(i int) int) error {
	lag := a.lagging(b)
	switch {
	case len(ops) == 0:
		return nil
	case !slices.Contains(lag[:len(b.members)], true):
		return a.run(ops)
	}
	var willing []blockdev.Op
	var at []int
	for i := range ops {
		if a.avoid(b, pos(i)) {
			ops[i].Err = errAvoided
			continue
		}
		willing, at = append(willing, ops[i]), append(at, i)
	}
	if len(willing) == 0 {
		return nil
	}
	err := a.run(willing)
	for k, i := range at {
		ops[i] = willing[k]
	}
	return err
}

func isLate(op *blockdev.Op) bool { return errors.Is(op.Err, blockdev.ErrLate) }

// noteLate counts the late reads of a batch with their disks for as long as they go on.
func (a *Array) noteLate(ops []blockdev.Op) {
	for i := range ops {
		if ops[i].LateAfter == 0 || ops[i].Err == nil || !ops[i].Stuck || !isLate(&ops[i]) {
			continue
		}
		if d := a.diskOf[ops[i].Dev].Load(); d != nil {
			d.late.Add(1)
			ops[i].Landed(func() { d.late.Add(-1) })
		}
	}
}

// landed returns a channel that is closed when the kernel has let go of n of ops.
func landed(ops []*blockdev.Op, n int) <-chan struct{} {
	c := make(chan struct{})
	var left atomic.Int32
	left.Store(int32(n))
	for _, op := range ops {
		op.Landed(func() {
			if left.Add(-1) == 0 {
				close(c)
			}
		})
	}
	return c
}

// waiting lists the late reads of a batch that go on.
func waiting(ops []blockdev.Op) (late []*blockdev.Op) {
	for i := range ops {
		if ops[i].Stuck && isLate(&ops[i]) && !ops[i].Settle() {
			late = append(late, &ops[i])
		}
	}
	return late
}

// runOut gives late reads of a batch their results after all, until they are enough, when nobody else has the bytes. What the disk does not
// answer at its deadline stays late.
func (a *Array) runOut(ctx context.Context, ops []blockdev.Op, enough func() bool) error {
	for one := true; one && !enough(); {
		var err error
		if one, err = a.waitLate(ctx, ops); err != nil {
			return err
		}
	}
	if enough() {
		return nil
	}
	return a.runAvoided(ops)
}

// runAvoided begins those reads of a batch that were left out, as others seemed to do.
func (a *Array) runAvoided(ops []blockdev.Op) error {
	var again []blockdev.Op
	var at []int
	for i := range ops {
		if isLate(&ops[i]) && !ops[i].Stuck { // it was never begun
			again, at = append(again, ops[i]), append(at, i)
			again[len(again)-1].LateAfter = 0
		}
	}
	if len(again) == 0 {
		return nil
	}
	err := a.run(again)
	for k, i := range at {
		ops[i] = again[k]
	}
	return err
}

// waitLate waits until one of the late reads of a batch has ended, and gives it its result. It reports false when none has by the deadline, or
// none goes on.
func (a *Array) waitLate(ctx context.Context, ops []blockdev.Op) (bool, error) {
	stuck := 0
	for i := range ops {
		if ops[i].Stuck && isLate(&ops[i]) {
			stuck++
		}
	}
	late := waiting(ops)
	if len(late) < stuck || stuck == 0 {
		return stuck > 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.readTimeout)
	defer cancel()
	if err := a.await(ctx, landed(late, 1)); errors.Is(err, context.DeadlineExceeded) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	waiting(ops) // takes the result
	return true, nil
}

// hedger runs batches of reads of which need are enough.
type hedger struct {
	a    *Array
	ctx  context.Context
	need int
}

func (h hedger) run(ops []blockdev.Op) error {
	if len(ops) <= h.need {
		return h.a.run(ops)
	}
	for i := range ops {
		ops[i].LateAfter = h.a.lateAfter(len(ops[i].Buf))
	}
	if err := h.a.run(ops); err != nil {
		return err
	}
	good := func() (n int) {
		for i := range ops {
			if ops[i].Err == nil {
				n++
			}
		}
		return n
	}
	switch {
	case !slices.ContainsFunc(ops, func(o blockdev.Op) bool { return isLate(&o) }):
	case good() < h.need:
		return h.a.runOut(h.ctx, ops, func() bool { return good() >= h.need })
	default:
		h.a.hedges.issued.Add(1)
		h.a.hedges.won.Add(1)
	}
	return nil
}

// rebuilt is what other cells yield: bytes by role, until done.
type rebuilt struct {
	cells [][]byte
	done  func()
}

// race answers late reads from other cells by fetch, or by themselves, whichever comes first: then cells is nil. fetch must
// not use what its caller may give up meanwhile.
func (a *Array) race(ctx context.Context, b *band, late []*blockdev.Op, fetch func(context.Context) (rebuilt, error)) (rebuilt, error) {
	type answer struct {
		rebuilt
		err error
	}
	answers := make(chan answer, 1)
	var decided atomic.Bool
	b.pins.Add(1) // the caller's pin may end before
	a.tasks.Go(func() {
		defer b.unpin()
		r, err := fetch(ctx)
		if decided.CompareAndSwap(false, true) {
			answers <- answer{r, err}
		} else if err == nil {
			r.done()
		}
	})
	select {
	case x := <-answers:
		return x.rebuilt, x.err
	case <-landed(late, len(late)):
		if decided.CompareAndSwap(false, true) {
			return rebuilt{}, nil
		}
		x := <-answers
		return x.rebuilt, x.err
	}
}

// answer brings what the reads of a view did not: from other cells by fetch, which take puts in place, or from late reads
// that end after all. lacks tells whether something is still missing, and whether late reads alone would bring it.
func (v *View) answer(ctx context.Context, lacks func() (some, late bool), fetch func(racing bool) func(context.Context) (rebuilt, error), take func(rebuilt)) error {
	a := v.a
	hedged := false
	for {
		late := waiting(v.ops) // takes the results of the others first: what has landed is not to be answered by anyone else
		some, byLate := lacks()
		if !some {
			return nil
		}
		if !hedged && slices.ContainsFunc(v.ops, func(o blockdev.Op) bool { return isLate(&o) && o.Err != errAvoided }) {
			hedged = true
			a.hedges.issued.Add(1)
		}
		var r rebuilt
		var err error
		if byLate && len(late) > 0 && a.opt.manual == nil {
			r, err = a.race(ctx, v.band, late, fetch(true))
		} else {
			r, err = fetch(false)(ctx)
		}
		switch {
		case err == nil && r.cells == nil:
			waiting(v.ops) // takes the results
		case err == nil:
			if hedged {
				a.hedges.won.Add(1)
			}
			a.stats.reconstructions.Add(1)
			take(r)
			r.done()
			return nil
		case slices.ContainsFunc(v.ops, func(o blockdev.Op) bool { return isLate(&o) }):
			// The others cannot answer: perhaps they can with a late one; else those that were left out have to.
			if one, e := a.waitLate(ctx, v.ops); e != nil {
				return e
			} else if one {
				continue
			}
			if e := a.runAvoided(v.ops); e != nil {
				return e
			}
			if slices.ContainsFunc(v.ops, func(o blockdev.Op) bool { return isLate(&o) }) {
				return err
			}
		default:
			return err
		}
	}
}
