package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// ErrReplace: a disk cannot take the place of another.
var ErrReplace = errors.New("disk cannot be replaced")

// rebuildWorkers is how many bands are rebuilt at once, so that reading, computing and writing overlap.
const rebuildWorkers = 4

// Rebuild is how far the rebuilding of a disk has come.
type Rebuild struct {
	Bands int           `json:"bands"` // with a cell on the disk that have to be written
	Left  int           `json:"bands_left"`
	Bytes int64         `json:"bytes"` // written since the rebuild began, or went on after a start
	Rate  float64       `json:"bytes_per_second"`
	ETA   time.Duration `json:"eta_ns"` // at the rate so far; 0: not known
	// Failed bands could not be rebuilt: too little of them is left, or the disk did not take it. They are tried again at the next start.
	Failed int `json:"bands_failed"`
}

// rebuilding is a rebuild under way.
type rebuilding struct {
	cancel  context.CancelFunc
	started time.Time
	bands   atomic.Int64
	left    atomic.Int64
	failed  atomic.Int64
	bytes   atomic.Int64
}

func (r *rebuilding) status() *Rebuild {
	s := &Rebuild{Bands: int(r.bands.Load()), Left: int(r.left.Load()), Failed: int(r.failed.Load()), Bytes: r.bytes.Load()}
	took := time.Since(r.started)
	if done := s.Bands - s.Left; done > 0 && took > 0 {
		s.Rate = float64(s.Bytes) / took.Seconds()
		s.ETA = took / time.Duration(done) * time.Duration(s.Left)
	}
	return s
}

// Replace lets the device at path take the place of the disk in a slot and rebuilds what that one held, in the background. What the
// new disk holds is lost. The old one may be there or not; it belongs to the array no more, whatever becomes of the rebuild.
func (a *Array) Replace(ctx context.Context, slot int, path string, force bool) error {
	devs, err := openAll([]string{path}, force)
	if err != nil {
		return fmt.Errorf("replace disk: %w", err)
	}
	if err := a.replace(ctx, slot, devs[0]); err != nil {
		return errors.Join(fmt.Errorf("replace disk: %w", err), devs[0].Close())
	}
	return nil
}

func (a *Array) replace(ctx context.Context, slot int, dev blockdev.Device) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := a.log.stopped(); err != nil {
		return err
	}
	if slot < 0 || slot >= len(a.slots()) {
		return fmt.Errorf("%w: no slot %d: there are %d", ErrReplace, slot, len(a.slots()))
	}
	gi, err := a.group.Add(dev)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReplace, err)
	}
	d := &disk{dev: dev, gi: gi, path: dev.Path()}
	a.random(d.id[:])
	return a.exchange(slot, d, nil)
}

// exchange lets the disk d take the place of the one in a slot, and rebuilds it. A spare leaves its own slot empty.
func (a *Array) exchange(slot int, d, spare *disk) error {
	old := a.slots()[slot]
	// The new disk takes part in everything from an epoch of its own on.
	if err := a.log.change(func() error { return a.swap(slot, d, spare) }); err != nil {
		return err
	}
	if old.dev != nil {
		if err := old.dev.Close(); err != nil && !errors.Is(err, blockdev.ErrClosed) {
			a.logger.Warn("old disk not closed", "path", old.path, "err", err)
		}
	}
	a.startRebuilds()
	return nil
}

// swap puts a new disk into a slot and begins an epoch with it. Nothing is being written.
func (a *Array) swap(slot int, d, spare *disk) error {
	a.mu.Lock()
	old := a.slots()[slot]
	if have := a.geo.extents(d.dev.Limits().Size); have < old.extents {
		a.mu.Unlock()
		return fmt.Errorf("%w: %s has room for %d extents, the old one had %d", ErrReplace, d.path, have, old.extents)
	}
	if spare != nil && (a.slots()[spare.slot] != spare || spare.state != DiskSpare || old.usable()) {
		a.mu.Unlock()
		return fmt.Errorf("%w: the spare or the disk in slot %d is another meanwhile", ErrReplace, slot)
	}
	if !old.counts() {
		a.mu.Unlock()
		return fmt.Errorf("%w: the disk in slot %d holds no data: remove it, and add another", ErrReplace, slot)
	}
	out := 0
	for _, d := range a.slots() {
		if d.slot != slot && d.counts() && !d.whole() {
			out++
		}
	}
	if out+1 > a.geo.Parity {
		a.mu.Unlock()
		return fmt.Errorf("%w: %d other disks are not whole, and parity bears %d", ErrReplace, out, a.geo.Parity)
	}
	d.slot, d.state, d.reason, d.hollow, d.fresh = slot, DiskRebuilding, "being rebuilt", true, true
	d.extents, d.used, d.free, d.next = old.extents, old.used, old.free, old.next
	if old.drain != nil {
		old.drain.cancel()
	}
	if old.rebuild != nil {
		old.rebuild.cancel()
	}
	old.state, old.reason = DiskMissing, "another disk has taken its place" // for those who still wait for something on it
	a.diskOf[d.gi].Store(d)
	for _, b := range a.bands {
		if pos := b.position(slot); pos >= 0 {
			b.hollow.Or(1 << pos)
		}
	}
	table := slices.Clone(a.slots())
	table[slot] = d
	if spare != nil {
		table[spare.slot] = &disk{slot: spare.slot, role: roleNone, state: DiskRetired}
	}
	a.table.Store(&table)
	a.super.members = slices.Clone(a.super.members)
	a.super.members[slot] = memberEntry{id: d.id, extents: d.extents} // beginEpoch fills in the rest
	if spare != nil {
		a.super.members[spare.slot] = memberEntry{}
	}
	a.mu.Unlock()
	a.logger.Info("disk replaced", "slot", slot, "path", d.path, "old", old.path)
	return a.membersChanged()
}

// position is the place of a disk in the band, -1 if it has none.
func (b *band) position(slot int) int {
	return slices.IndexFunc(b.members, func(m bandMember) bool { return m.slot == slot })
}

// isHollow reports whether the cells of a member are not written yet, as its disk is being rebuilt.
func (b *band) isHollow(pos int) bool { return b.hollow.Load()>>pos&1 != 0 }

// startRebuilds goes on with disks that are not whole.
func (a *Array) startRebuilds() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.slots() {
		if d.state != DiskRebuilding || d.rebuild != nil || a.ctx.Err() != nil {
			continue
		}
		ctx, cancel := context.WithCancel(a.ctx)
		r := &rebuilding{cancel: cancel, started: a.now()}
		d.rebuild = r
		if a.opt.manual == nil {
			a.tasks.Go(func() { a.rebuildDisk(ctx, d, r) })
		}
	}
}

// rebuildDisk writes what is missing on a disk, band by band, those first that the fewest further losses would cost. When nothing is
// missing, the disk is whole from the next epoch on.
func (a *Array) rebuildDisk(ctx context.Context, d *disk, r *rebuilding) {
	for ctx.Err() == nil {
		bands := a.hollowBands(d.slot)
		r.bands.Store(max(r.bands.Load(), int64(len(bands))))
		r.left.Store(int64(len(bands)))
		if len(bands) == 0 {
			a.finishRebuild(d)
			return
		}
		r.failed.Store(0)
		a.eachBand(ctx, d.slot, r, bands, "rebuilt", func(b *band) error { return a.rebuildBand(ctx, d, r, b) })
		if n := r.failed.Load(); n > 0 {
			a.mu.Lock()
			d.reason = fmt.Sprintf("%d bands could not be rebuilt", n)
			a.mu.Unlock()
			a.logger.Error("disk not rebuilt", "path", d.path, "slot", d.slot, "bands_failed", n)
			return
		}
	}
}

// hollowBands lists the bands that lack a disk's cells, in order of danger.
func (a *Array) hollowBands(slot int) []*band {
	var bands []*band
	all := a.sortedBands()
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, b := range all {
		if pos := b.position(slot); pos >= 0 && b.isHollow(pos) && !b.dying { // nothing in a dying one is needed
			bands = append(bands, b)
		}
	}
	slices.SortStableFunc(bands, func(x, y *band) int { return cmp.Compare(a.spareCells(x), a.spareCells(y)) })
	return bands
}

// spareCells is how many more disks of a band may be lost; a.mu is held.
func (a *Array) spareCells(b *band) int {
	n := b.parity - bits.OnesCount32(b.hollow.Load())
	for pos, m := range b.members {
		if !a.slots()[m.slot].present() && !b.isHollow(pos) {
			n--
		}
	}
	return n
}

// eachBand works on bands, several at once. What is done to them is for the log.
func (a *Array) eachBand(ctx context.Context, slot int, r *rebuilding, bands []*band, done string, work func(*band) error) {
	workers := rebuildWorkers
	if a.opt.manual != nil {
		workers = 1
	}
	var mu sync.Mutex // guards next
	next := 0
	loop := func() {
		for ctx.Err() == nil {
			mu.Lock()
			i := next
			next++
			mu.Unlock()
			if i >= len(bands) {
				return
			}
			if err := work(bands[i]); err != nil && ctx.Err() == nil {
				r.failed.Add(1)
				a.logger.Error("band not "+done, "band", bands[i].num, "slot", slot, "err", err)
			}
			r.left.Add(-1)
		}
	}
	if workers == 1 {
		loop()
		return
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(loop)
	}
	wg.Wait()
}

// rebuildBand writes a disk's cells of a band, and last the band's header: a disk that carries it has them all.
func (a *Array) rebuildBand(ctx context.Context, d *disk, r *rebuilding, b *band) error {
	b, err := a.pinBand(b.num)
	if err != nil {
		return nil // freed meanwhile
	}
	defer b.unpin()
	pos := b.position(d.slot)
	if err := a.prepareExtent(d.dev, b.members[pos].extent); err != nil {
		return err
	}
	limit := a.newRecovery().limit[b.num]
	lost := 0
	pace := pace{a: a, last: time.Now(), seen: a.callerOps()}
	err = a.eachStripe(ctx, b, func(w *wholeStripe) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if b.kind == kindPacked && w.head.stripe > limit {
			return nil // void
		}
		if w.goodCells() < int(w.head.data) {
			if b.kind == kindPacked {
				lost++
			}
			return nil // of a bulk stripe that no record names, or lost: a check tells
		}
		n, err := a.rebuildCell(w, d, pos)
		r.bytes.Add(int64(n))
		pace.wait(ctx, n*int(w.head.data))
		return err
	})
	if err != nil {
		return err
	}
	if lost > 0 {
		return fmt.Errorf("%d stripes of band %x: %w", lost, b.num, ErrCorrupt)
	}
	if err := a.rewriteBandHeader(ctx, b, pos, d); err != nil {
		return err
	}
	b.hollow.And(^(uint32(1) << pos))
	return nil
}

// rebuildCell writes the cell of a stripe that belongs on the member pos, if there is one, and returns its length.
func (a *Array) rebuildCell(w *wholeStripe, d *disk, pos int) (int, error) {
	width := len(w.band.members)
	role := (pos - int(w.head.rot) + width) % width
	if role >= w.width() {
		return 0, nil
	}
	if err := w.complete(); err != nil {
		return 0, err
	}
	ops := []blockdev.Op{a.cellWrite(w, role, d)}
	err := a.group.Run(ops)
	w.ops = append(w.ops, ops...)
	if err == nil && ops[0].Err != nil {
		if err = a.log.fail([]*disk{d}); err == nil {
			err = ops[0].Err
		}
	}
	return len(w.cells[role]), err
}

// finishRebuild makes a disk count as whole.
func (a *Array) finishRebuild(d *disk) {
	err := a.log.change(func() error {
		a.mu.Lock()
		if d.state != DiskRebuilding { // it failed in the last moment
			a.mu.Unlock()
			return nil
		}
		d.state, d.reason, d.hollow, d.rebuild = DiskHealthy, "", false, nil
		a.mu.Unlock()
		return a.beginEpoch(a.log.acked.Load())
	})
	if err != nil {
		a.logger.Error("rebuilt disk not taken in", "path", d.path, "slot", d.slot, "err", err)
		return
	}
	a.logger.Info("disk rebuilt", "path", d.path, "slot", d.slot)
}

// pace makes background work give way: to a rate that is set, or else to callers. While these do something, a worker rests twice as
// long as it works.
type pace struct {
	a    *Array
	last time.Time
	seen uint64
}

// maxRest bounds one rest: a disk that was slow once must not stop the work.
const maxRest = 250 * time.Millisecond

// callerOps counts what callers have had done.
func (a *Array) callerOps() uint64 {
	return a.stats.views.Load() + a.stats.stripes.Load() + a.stats.commits.Load()
}

// wait rests after a piece of work that read n bytes.
func (p *pace) wait(ctx context.Context, n int) {
	if p.a.opt.manual != nil {
		return
	}
	rest := time.Duration(0)
	ops := p.a.callerOps()
	if rate := p.a.rebuildRate.Load(); rate > 0 {
		rest = time.Duration(float64(n) / float64(rate) * float64(time.Second))
	} else if ops != p.seen {
		rest = min(2*time.Since(p.last), maxRest)
	}
	p.seen = ops
	if rest > 0 {
		t := time.NewTimer(rest)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	p.last = time.Now()
}

// SetRebuildRate bounds what each of the workers of a rebuild reads, in bytes per second; 0 lets them give way to callers only.
func (a *Array) SetRebuildRate(bytesPerSecond int64) { a.rebuildRate.Store(bytesPerSecond) }
