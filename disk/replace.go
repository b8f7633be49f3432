package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/disk/internal/blockdev"
)

// ErrReplace: a disk cannot take the place of another.
var ErrReplace = errors.New("disk cannot be replaced")

// rebuildWorkers is how many bands are rebuilt at once, so that one begins while another ends.
const rebuildWorkers = 2

// Rebuild is how far the rebuilding of a disk has come.
type Rebuild struct {
	Bands int           `json:"bands"` // with a cell on the disk that have to be written
	Left  int           `json:"bands_left"`
	Bytes int64         `json:"bytes"` // written since the rebuild began, or went on after a start
	Rate  float64       `json:"bytes_per_second"`
	ETA   time.Duration `json:"eta_ns"` // at the rate so far; 0: not known
	// Failed bands could not be rebuilt: too little of them is left or could be read, or the disk did not take it. They are tried again.
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
	if force {
		a.mu.RLock()
		err := a.canReplace(slot)
		a.mu.RUnlock()
		if err != nil {
			return fmt.Errorf("replace disk: %w", err)
		}
		a.dismissPath(path)
	}
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
	a.mu.RLock()
	err := a.canReplaceBy(slot, dev)
	a.mu.RUnlock()
	if err != nil {
		return err
	}
	gi, err := a.prove(ctx, dev)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReplace, err)
	}
	d := &disk{dev: dev, gi: gi, path: dev.Path(), model: a.opt.model(dev)}
	a.random(d.id[:])
	return a.exchange(slot, d, nil)
}

// exchange lets the disk d take the place of the one in a slot, and rebuilds it. A spare leaves its own slot empty.
func (a *Array) exchange(slot int, d, spare *disk) error {
	// The new disk takes part in everything from an epoch of its own on.
	if err := a.log.change(func() error { return a.swap(slot, d, spare) }); err != nil {
		return err
	}
	a.startRebuilds()
	a.startDrains()
	return nil
}

// dismiss closes the disks whose place another one has taken.
func (a *Array) dismiss(olds []*disk) {
	for _, d := range olds {
		if err := d.dev.Close(); err != nil && !errors.Is(err, blockdev.ErrClosed) {
			a.logger.Warn("old disk not closed", "path", d.path, "err", err)
		}
	}
}

// dismissPath lets go of a disk that is to have its place again: one that was fenced, or helps to rebuild the one that has taken it.
func (a *Array) dismissPath(path string) {
	same := func(o *disk) bool {
		x, err1 := os.Stat(o.path)
		y, err2 := os.Stat(path)
		return err1 == nil && err2 == nil && os.SameFile(x, y)
	}
	a.mu.Lock()
	var olds []*disk
	for _, d := range a.slots() {
		if d.state == DiskFenced && d.dev != nil && same(d) {
			olds = append(olds, d)
		}
		for _, o := range d.olds {
			if same(o) {
				olds = append(olds, o)
			}
		}
		d.olds = slices.DeleteFunc(slices.Clone(d.olds), same)
	}
	a.mu.Unlock()
	a.dismiss(olds)
}

// recallStripe adds to a stripe with too few good cells what disks have whose place others have taken.
func (a *Array) recallStripe(w *wholeStripe) error {
	for role := 0; role < w.width() && w.goodCells() < int(w.head.data); role++ {
		pos := w.head.member(role)
		a.mu.RLock()
		olds := a.slots()[w.band.members[pos].slot].olds
		a.mu.RUnlock()
		if w.good[role] {
			continue
		}
		ok, err := a.recallCell(w, pos, role, olds)
		if err != nil {
			return err
		}
		if ok {
			w.good[role], w.bad[role], w.dark[role] = true, false, false
		}
	}
	return nil
}

// recallCell fills the cell of a role with what a disk has that had this place before, of which too few others are left to compute it. It reports
// whether there was one.
func (a *Array) recallCell(w *wholeStripe, pos, role int, olds []*disk) (bool, error) {
	for _, old := range slices.Backward(olds) {
		op := blockdev.Op{Dev: old.gi, Off: a.geo.extentOffset(w.band.members[pos].extent) + int64(w.head.off)*BlockSize, Buf: w.cells[role]}
		ops := []blockdev.Op{op}
		err := a.run(ops)
		w.ops = append(w.ops, ops...)
		if err != nil {
			return false, err
		}
		if ops[0].Stuck {
			w.cells[role] = make([]byte, len(op.Buf))
			continue
		}
		h, err := a.codec.parse(w.cells[role], place{disk: old.id, band: w.band.num, off: w.head.off})
		if ops[0].Err == nil && err == nil && int(h.role) == role && h.sameStripe(&w.head) && a.codec.verify(w.cells[role], &h) {
			return true, nil
		}
	}
	return false, nil
}

// canReplaceBy reports why a device cannot take the place of the disk in a slot; a.mu is held.
func (a *Array) canReplaceBy(slot int, dev blockdev.Device) error {
	if err := a.canReplace(slot); err != nil {
		return err
	}
	if have, old := a.geo.extents(dev.Limits().Size), a.slots()[slot]; have < old.extents {
		return fmt.Errorf("%w: %s has room for %d extents, the old one had %d", ErrReplace, dev.Path(), have, old.extents)
	}
	return nil
}

// canReplace reports why no disk can take the place of the one in a slot; a.mu is held.
func (a *Array) canReplace(slot int) error {
	if slot < 0 || slot >= len(a.slots()) {
		return fmt.Errorf("%w: no slot %d: there are %d", ErrReplace, slot, len(a.slots()))
	}
	if !a.slots()[slot].counts() {
		return fmt.Errorf("%w: the disk in slot %d holds no data: remove it, and add another", ErrReplace, slot)
	}
	out := 0
	for _, d := range a.slots() {
		if d.slot != slot && d.counts() && !d.whole() {
			out++
		}
	}
	if out+1 > a.geo.Parity {
		return fmt.Errorf("%w: %d other disks are not whole, and parity bears %d", ErrReplace, out, a.geo.Parity)
	}
	return nil
}

// swap puts a new disk into a slot and begins an epoch with it. Nothing is being written.
func (a *Array) swap(slot int, d, spare *disk) error {
	a.mu.Lock()
	if err := a.canReplaceBy(slot, d.dev); err != nil {
		a.mu.Unlock()
		return err
	}
	old := a.slots()[slot]
	if spare != nil && (a.slots()[spare.slot] != spare || spare.state != DiskSpare || old.usable()) {
		a.mu.Unlock()
		return fmt.Errorf("%w: the spare or the disk in slot %d is another meanwhile", ErrReplace, slot)
	}
	d.slot, d.state, d.reason, d.hollow, d.fresh = slot, DiskRebuilding, "being rebuilt", true, true
	if d.olds, old.olds = old.olds, nil; old.dev != nil {
		d.olds = append(d.olds, old)
	}
	old.uncramp() // the new one has room
	d.extents, d.used, d.free, d.next = old.extents, old.used, old.free, old.next
	if old.drain != nil {
		old.drain.cancel()
	}
	d.draining = spare != nil && old.draining // who replaces a disk that is to leave wants one to be there
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

func (a *Array) newRebuilding(cancel context.CancelFunc) *rebuilding {
	return &rebuilding{cancel: cancel, started: a.now()}
}

// startRebuilds goes on with disks that are not whole.
func (a *Array) startRebuilds() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.slots() {
		if d.state != DiskRebuilding || d.rebuild != nil || a.ctx.Err() != nil {
			continue
		}
		ctx, cancel := context.WithCancel(a.ctx)
		r := a.newRebuilding(cancel)
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
		if n := r.failed.Load(); n > 0 && ctx.Err() == nil {
			a.mu.Lock()
			d.reason = fmt.Sprintf("%d bands could not be rebuilt", n)
			a.mu.Unlock()
			a.logger.Error("disk not rebuilt", "path", d.path, "slot", d.slot, "bands_failed", n, "retry_in", a.bandRetry())
			if a.opt.manual != nil {
				return
			}
			sleep(ctx, a.bandRetry(), nil)
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
				a.logger.Error("band not "+done, "band", fmt.Sprintf("%x", bands[i].num), "slot", slot, "err", err)
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
	if err := a.prepareOrFence(d, b.members[pos].extent); err != nil {
		return err
	}
	c := &cellRebuild{d: d, r: r, b: b, pos: pos, limit: a.newRecovery().limit[b.num]}
	if err := a.rebuildCells(ctx, c); err != nil {
		return err
	}
	if n := c.lost.Load(); n > 0 {
		return fmt.Errorf("%d stripes of band %x: %w", n, b.num, ErrCorrupt)
	}
	// The cells are durable before the header says that they are all there.
	if !a.opt.faults.noFlush {
		if err := a.bounded(d.dev.Flush); err != nil {
			return errors.Join(fmt.Errorf("flush %s: %w", d.path, err), a.log.fail([]*disk{d}))
		}
	}
	if err := a.rewriteBandHeader(ctx, b, pos, d); err != nil {
		return err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.slots()[d.slot] == d { // else its successor has nothing yet
		b.hollow.And(^(uint32(1) << pos))
	}
	return nil
}

// cellRebuild is the rebuilding of a disk's cells of one band.
type cellRebuild struct {
	d     *disk
	r     *rebuilding
	b     *band
	pos   int    // of the disk in the band
	limit uint64 // last packed stripe that stands
	lost  atomic.Int64
}

// role is that of the disk's cell of a stripe; false where nothing of it belongs there, or the stripe is void.
func (c *cellRebuild) role(h *header) (int, bool) {
	width := len(c.b.members)
	role := (c.pos - int(h.rot) + width) % width
	return role, role < int(h.data)+int(h.parity) && (c.b.kind != kindPacked || h.stripe <= c.limit)
}

// rebuildCells walks over the stripes of a band and writes the cells, several at once.
func (a *Array) rebuildCells(ctx context.Context, c *cellRebuild) error {
	var g errgroup.Group
	g.SetLimit(max(a.lanes/rebuildWorkers, 1))
	for off := uint32(1); off < a.geo.extentBlocks() && ctx.Err() == nil; {
		heads, err := a.headsAt(ctx, strictly{a}, c.b, off)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if len(heads) == 1 {
			h := heads[0]
			off += h.blocks
			one := func() error { return a.rebuildCell(ctx, c, h) }
			if a.opt.manual == nil {
				g.Go(one)
			} else if err := one(); err != nil {
				return err
			}
			continue
		}
		w, next, err := a.nextStripe(ctx, strictly{a}, c.b, off)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if off = next; w != nil {
			h := w.head
			w.release()
			if err := a.rebuildCell(ctx, c, h); err != nil {
				return errors.Join(err, g.Wait())
			}
		}
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// rebuildCell computes the disk's cell of a stripe and writes it.
func (a *Array) rebuildCell(ctx context.Context, c *cellRebuild, h header) error {
	role, ours := c.role(&h)
	if !ours {
		return nil
	}
	cell := int(h.blocks) * BlockSize
	loads := []usage{{d: c.d, write: cell}}
	for i := 0; len(loads) <= int(h.data) && i < len(c.b.members); i++ {
		if pos := (int(h.rot) + i) % len(c.b.members); pos != c.pos {
			loads = append(loads, usage{d: a.slots()[c.b.members[pos].slot], read: cell})
		}
	}
	return a.schedule.piece(ctx, ClassRepair, &a.rebuildRate, loads, func() error {
		w, err := a.readEnough(ctx, c.b, h, role)
		if err == nil && w.goodCells() < int(h.data) {
			w.release()
			w, err = a.readWhole(ctx, c.b, h)
		}
		if err != nil {
			return err
		}
		defer w.release()
		if w.goodCells() < int(h.data) {
			err := a.missed(w)
			if errors.Is(err, ErrCorrupt) {
				c.lost.Add(1)
				return nil
			}
			return err
		}
		if !w.good[role] { // else it was recalled
			if err := w.reconstructOnly(role, func(r int) bool { return w.good[r] }); err != nil {
				return err
			}
		}
		op := a.cellWrite(w, role, c.d)
		op.Durable = false // rebuildBand flushes
		ops := []blockdev.Op{op}
		err = a.group.Run(ops)
		w.ops = append(w.ops, ops...)
		if err == nil && ops[0].Err != nil {
			if err = a.log.fail([]*disk{c.d}); err == nil {
				err = ops[0].Err
			}
		}
		c.r.bytes.Add(int64(len(op.Buf)))
		return err
	})
}

// finishRebuild makes a disk count as whole, once those that helped are let go: who sees it healthy may use the old one for something else.
func (a *Array) finishRebuild(d *disk) {
	err := a.log.change(func() error {
		a.mu.Lock()
		if d.state != DiskRebuilding { // it failed in the last moment
			a.mu.Unlock()
			return nil
		}
		olds := d.olds
		d.olds = nil
		a.mu.Unlock()
		a.dismiss(olds)
		a.mu.Lock()
		if d.state != DiskRebuilding {
			a.mu.Unlock()
			return nil
		}
		d.state, d.reason, d.hollow, d.rebuild = DiskHealthy, "", false, nil
		a.mu.Unlock()
		return a.membersChanged()
	})
	if err != nil {
		a.logger.Error("rebuilt disk not taken in", "path", d.path, "slot", d.slot, "err", err)
		return
	}
	a.logger.Info("disk rebuilt", "path", d.path, "slot", d.slot)
}
