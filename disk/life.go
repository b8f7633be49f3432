package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
)

// Errors of changes to the set of disks. The text behind them says why, and what to do.
var (
	// ErrAdd: a disk cannot become a member of the array.
	ErrAdd = errors.New("disk cannot be added")
	// ErrRemove: a disk cannot leave the array.
	ErrRemove = errors.New("disk cannot be removed")
)

// AddOptions say how a disk joins.
type AddOptions struct {
	Force bool // overwrite what it holds
	Spare bool // it takes no data until it takes the place of a disk that failed
}

// Add makes the device at path a member of the array and returns its slot. What it holds is lost. New bands use it from then on; a spare
// holds nothing until it is needed.
func (a *Array) Add(ctx context.Context, path string, opt AddOptions) (int, error) {
	devs, err := openAll([]string{path}, opt.Force)
	if err != nil {
		return 0, fmt.Errorf("add disk: %w", err)
	}
	slot, err := a.add(ctx, devs[0], opt.Spare)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("add disk: %w", err), devs[0].Close())
	}
	return slot, nil
}

func (a *Array) add(ctx context.Context, dev blockdev.Device, spare bool) (int, error) {
	if err := errors.Join(ctx.Err(), a.log.stopped()); err != nil {
		return 0, err
	}
	if err := a.CanAdd(dev.Limits().Size, spare); err != nil {
		return 0, err
	}
	gi, err := a.prove(ctx, dev)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrAdd, err)
	}
	d := &disk{dev: dev, gi: gi, path: dev.Path(), state: DiskHealthy, extents: a.geo.extents(dev.Limits().Size), fresh: true,
		model: a.opt.model(dev)}
	if spare {
		d.role, d.state = roleSpare, DiskSpare
	}
	d.used, d.free = make([]bool, d.extents), int(d.extents)
	a.random(d.id[:])
	if err := a.log.change(func() error { return a.join(d) }); err != nil {
		return 0, err
	}
	return d.slot, nil
}

// CanAdd reports why a disk of the given size in bytes could not join now: nil, or an error that wraps ErrAdd.
func (a *Array) CanAdd(size int64, spare bool) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, err := a.emptySlot(size, spare)
	return err
}

// emptySlot returns where a new disk could go; a.mu is held.
func (a *Array) emptySlot(size int64, spare bool) (int, error) {
	if n := a.geo.extents(size); n < minExtents {
		return 0, fmt.Errorf("%w: it has room for %d extents of %d bytes, and needs %d", ErrAdd, n, a.geo.ExtentSize, minExtents)
	}
	if large := a.largerThan(a.geo.extents(size)); spare && len(large) > 0 && len(large) == a.counted() {
		return 0, fmt.Errorf("%w: as a spare it is smaller than every disk: %d extents of %d bytes, and %s has %d", ErrAdd, a.geo.extents(size),
			a.geo.ExtentSize, large[0].path, large[0].extents)
	}
	for _, d := range a.slots() {
		if !spare && d.counts() && !d.whole() {
			return 0, fmt.Errorf("%w: the disk in slot %d is %s: replace it first, or add the new disk as a spare that takes its place", ErrAdd, d.slot, d.state)
		}
	}
	if n := len(a.slots()); n < MaxDisks {
		return n, nil
	}
	for _, d := range a.slots() {
		used := d.role != roleNone
		for _, b := range a.bands {
			used = used || b.position(d.slot) >= 0
		}
		if !used {
			return d.slot, nil
		}
	}
	return 0, fmt.Errorf("%w: the array has %d disks, and no more are possible", ErrAdd, MaxDisks)
}

// prove makes a new disk one of the group, once it has shown that it can be written and has room for all that it says.
func (a *Array) prove(ctx context.Context, dev blockdev.Device) (gi int, err error) {
	n := dev.Limits().Size &^ (BlockSize - 1)
	err = hasRoom(dev.Path(), n) // to find it out by Reserve alone would fill the file system
	if err == nil {
		err = a.bounded(func() error { return dev.Reserve(0, n) })
	}
	if errors.Is(err, unix.ENOSPC) {
		return 0, fmt.Errorf("its file system has no room for its %d bytes: %w", n, err)
	} else if err != nil {
		return 0, err
	}
	if gi, err = a.group.Add(dev); err != nil {
		return 0, err
	}
	return gi, a.blank(ctx, gi)
}

// hasRoom returns ENOSPC if path is a file of n bytes, and its file system too full for those of them that it has not got yet.
func hasRoom(path string, n int64) error {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Statfs(path, &fs) != nil {
		return nil // whatever it is shows when it is used
	}
	if lacks := n - st.Blocks*512; lacks > 0 && uint64(lacks) > fs.Bavail*uint64(fs.Bsize) {
		return unix.ENOSPC
	}
	return nil
}

// blank overwrites the places of the superblock copies of a new disk, so that nothing of what it was can be mixed with what it becomes,
// and finds out whether it can be written.
func (a *Array) blank(ctx context.Context, gi int) error {
	buf, err := a.meta.Get(ctx, superSize)
	if err != nil {
		return err
	}
	clear(buf.Bytes()[:superSize])
	ops := make([]blockdev.Op, superCopies)
	for c := range ops {
		ops[c] = blockdev.Op{Dev: gi, Write: true, Durable: true, Off: int64(c) * superStride, Buf: buf.Bytes()[:superSize]}
	}
	defer func() { release(&buf, ops) }()
	if err := a.group.Run(ops); err != nil {
		return err
	}
	return firstError(ops)
}

// join gives a new disk a slot and begins an epoch with it. Nothing is being written.
func (a *Array) join(d *disk) error {
	a.mu.Lock()
	slot, err := a.emptySlot(d.dev.Limits().Size, d.role == roleSpare)
	if err != nil {
		a.mu.Unlock()
		return err
	}
	d.slot = slot
	table, members := slices.Clone(a.slots()), slices.Clone(a.super.members)
	if slot == len(table) {
		table, members = append(table, nil), append(members, memberEntry{})
	}
	table[slot], members[slot] = d, memberEntry{id: d.id, extents: d.extents} // beginEpoch fills in the rest
	a.diskOf[d.gi].Store(d)
	a.table.Store(&table)
	a.super.members, a.super.version = members, superVersion
	a.noteSpace()
	a.mu.Unlock()
	a.logger.Info("disk added", "slot", slot, "path", d.path, "state", string(d.state))
	return a.membersChanged()
}

// membersChanged begins an epoch with another set of disks and tells who wants to know.
func (a *Array) membersChanged() error {
	err := a.beginEpoch(a.log.acked.Load())
	if err == nil && a.opt.Changed != nil {
		a.opt.Changed()
	}
	return err
}

// Removal is what it takes to remove a disk. Sizes are bytes.
type Removal struct {
	Slot     int       `json:"slot"`
	Path     string    `json:"path"`
	State    DiskState `json:"state"`
	Extents  int       `json:"extents"` // to be moved to other disks
	Bytes    int64     `json:"bytes"`   // at most, in them
	Capacity int64     `json:"capacity"`
	After    int64     `json:"capacity_after"`
	Free     int64     `json:"free_after"` // of data, when all is moved
	Disks    int       `json:"disks_after"`
}

// PlanRemoval says what removing the disk in a slot takes. It fails with ErrRemove when the array cannot do without it.
func (a *Array) PlanRemoval(slot int) (*Removal, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.planRemoval(slot)
}

// planRemoval is PlanRemoval with a.mu held.
func (a *Array) planRemoval(slot int) (*Removal, error) {
	if slot < 0 || slot >= len(a.slots()) || a.slots()[slot].role == roleNone {
		return nil, fmt.Errorf("%w: no disk in slot %d", ErrRemove, slot)
	}
	d := a.slots()[slot]
	p := &Removal{Slot: slot, Path: d.path, State: d.state}
	usable := (a.geo.ExtentSize - BlockSize) * int64(a.geo.Data)
	if d.role == roleSpare {
		p.Capacity = int64(a.totalBands()) * usable
		p.After, p.Free, p.Disks = p.Capacity, a.freeSpace(), a.counted()
		return p, nil
	}
	if d.draining {
		return nil, fmt.Errorf("%w: slot %d is being drained already", ErrRemove, slot)
	}
	free := map[int]int{}
	var rest []int // extents of the others
	for _, o := range a.slots() {
		if !o.counts() || o.draining {
			continue
		}
		if o == d {
			continue
		}
		if !o.whole() {
			return nil, fmt.Errorf("%w: the disk in slot %d is %s: replace it or wait until it is rebuilt, then remove slot %d", ErrRemove, o.slot, o.state, slot)
		}
		rest = append(rest, int(o.extents))
		free[o.slot] = o.free
	}
	if d.hollow {
		return nil, fmt.Errorf("%w: slot %d is being rebuilt: wait until it is whole", ErrRemove, slot)
	}
	if len(free) < a.geo.width() {
		return nil, fmt.Errorf("%w: stripes of %d+%d need %d disks, and %d would be left: add a disk first, or replace this one",
			ErrRemove, a.geo.Data, a.geo.Parity, a.geo.width(), len(free))
	}
	bands := a.bandsOn(slot)
	for i, b := range bands {
		best := -1
		for s, n := range free {
			if b.position(s) < 0 && (best < 0 || n > free[best] || n == free[best] && s < best) {
				best = s
			}
		}
		if best < 0 || free[best] == 0 {
			return nil, fmt.Errorf("%w: it holds %d extents, and the other disks have room for %d of them: add a disk first, or delete data", ErrRemove, len(bands), i)
		}
		free[best]--
	}
	var left []int
	for _, n := range free {
		left = append(left, n)
	}
	if n := a.geo.bandsOf(left); n <= reserveBands {
		return nil, fmt.Errorf("%w: the other disks would be full: room for %d bands would be left, and %d are kept in reserve: add a disk first, or delete data",
			ErrRemove, n, reserveBands)
	} else {
		p.Free = int64(n-reserveBands) * usable
	}
	p.Extents, p.Bytes, p.Disks = len(bands), int64(len(bands))*a.geo.ExtentSize, len(free)
	p.Capacity, p.After = int64(a.totalBands())*usable, int64(a.geo.bandsOf(rest))*usable
	return p, nil
}

// bandsOn lists the bands with an extent on the disk in a slot that are still needed, in order of danger; a.mu is held.
func (a *Array) bandsOn(slot int) (bands []*band) {
	for _, b := range a.bands {
		if b.position(slot) >= 0 && !b.dying {
			bands = append(bands, b)
		}
	}
	slices.SortFunc(bands, func(x, y *band) int {
		if c := a.spareCells(x) - a.spareCells(y); c != 0 {
			return c
		}
		if x.num < y.num {
			return -1
		}
		return 1
	})
	return bands
}

// Remove lets a disk leave the array. A spare leaves at once. Of any other what it holds is moved to other disks in the background,
// which goes on after a restart; then its superblock says that it is retired, and its slot is empty. It fails with ErrRemove when the
// array cannot do without the disk.
func (a *Array) Remove(ctx context.Context, slot int) error {
	if err := errors.Join(ctx.Err(), a.log.stopped()); err != nil {
		return fmt.Errorf("remove disk: %w", err)
	}
	if _, err := a.PlanRemoval(slot); err != nil {
		return fmt.Errorf("remove disk: %w", err)
	}
	d := a.slots()[slot]
	err := a.log.change(func() error {
		a.mu.Lock()
		if _, err := a.planRemoval(slot); err != nil || a.slots()[slot] != d {
			a.mu.Unlock()
			return errors.Join(err, ErrRemove)
		}
		a.super.version = superVersion
		if d.role == roleSpare {
			a.mu.Unlock()
			return a.leave(d)
		}
		d.draining = true
		a.noteSpace()
		a.mu.Unlock()
		a.logger.Info("disk is being drained", "slot", slot, "path", d.path)
		return a.beginEpoch(a.log.acked.Load()) // no band of this epoch or a later one lies on the disk
	})
	if err != nil {
		return fmt.Errorf("remove disk: %w", err)
	}
	if d.role == roleNone {
		a.letGo(d)
	}
	a.startDrains()
	return nil
}

// Keep ends the removal of a disk: it takes new bands again. What was moved stays where it is; the extents that it left are free from
// the next start on.
func (a *Array) Keep(ctx context.Context, slot int) error {
	if err := errors.Join(ctx.Err(), a.log.stopped()); err != nil {
		return fmt.Errorf("keep disk: %w", err)
	}
	err := a.log.change(func() error {
		a.mu.Lock()
		if slot < 0 || slot >= len(a.slots()) || !a.slots()[slot].draining {
			a.mu.Unlock()
			return fmt.Errorf("%w: slot %d is not being drained", ErrRemove, slot)
		}
		d := a.slots()[slot]
		d.draining = false
		if d.drain != nil {
			d.drain.cancel()
			d.drain = nil
		}
		a.noteSpace()
		a.mu.Unlock()
		a.logger.Info("disk is kept", "slot", slot, "path", d.path)
		return a.beginEpoch(a.log.acked.Load())
	})
	if err != nil {
		return fmt.Errorf("keep disk: %w", err)
	}
	return nil
}

// leave empties the slot of a disk that holds nothing and begins an epoch without it. The disk, if it is there, is told. Nothing is
// being written.
func (a *Array) leave(d *disk) error {
	a.mu.Lock()
	d.leaving = d.usable() || d.state == DiskSpare
	d.role, d.state, d.reason, d.draining = roleNone, DiskRetired, "", false
	a.noteSpace()
	a.mu.Unlock()
	err := a.membersChanged()
	d.leaving = false
	if err == nil {
		a.logger.Info("disk retired", "slot", d.slot, "path", d.path)
	}
	return err
}

// letGo closes the device of a disk that has left. Those who still read from it find that it is closed, and read from the others.
func (a *Array) letGo(d *disk) {
	if d.dev == nil {
		return
	}
	if err := d.dev.Close(); err != nil {
		a.logger.Warn("retired disk not closed", "path", d.path, "err", err)
	}
}

// startDrains goes on with disks that are to leave.
func (a *Array) startDrains() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.slots() {
		if !d.draining || d.drain != nil || a.ctx.Err() != nil {
			continue
		}
		ctx, cancel := context.WithCancel(a.ctx)
		r := a.newRebuilding(cancel)
		d.drain = r
		if a.opt.manual == nil {
			a.tasks.Go(func() { a.drainDisk(ctx, d, r) })
		}
	}
}

// bandRetry is how long a drain or a rebuild rests when it could not do some bands: space may be made, or a disk answer again meanwhile.
const bandRetry = 10 * time.Second

func (a *Array) bandRetry() time.Duration { return cmp.Or(a.opt.retry, bandRetry) }

// drainDisk moves what is on a disk to others, band by band, and lets it leave at the end.
func (a *Array) drainDisk(ctx context.Context, d *disk, r *rebuilding) {
	for ctx.Err() == nil {
		a.mu.RLock()
		bands := a.bandsOn(d.slot)
		a.mu.RUnlock()
		r.bands.Store(max(r.bands.Load(), int64(len(bands))))
		r.left.Store(int64(len(bands)))
		if len(bands) == 0 {
			left, err := a.finishDrain(d)
			if err != nil && a.ctx.Err() == nil {
				a.logger.Error("drained disk not retired", "path", d.path, "slot", d.slot, "err", err)
			}
			if left || err != nil || a.opt.manual != nil {
				return
			}
			sleep(ctx, healthEvery, nil) // it has got something again, or stays, and then ctx ends
			continue
		}
		r.failed.Store(0)
		a.eachBand(ctx, d.slot, r, bands, "moved", func(b *band) error { return a.moveBand(ctx, d, r, b) })
		if r.failed.Load() == 0 {
			continue
		}
		if a.opt.manual != nil {
			return
		}
		sleep(ctx, a.bandRetry(), nil)
	}
}

// finishDrain lets a disk leave that holds nothing any more, and reports whether it did.
func (a *Array) finishDrain(d *disk) (left bool, err error) {
	err = a.log.change(func() error {
		a.mu.Lock()
		if !d.draining || d.hollow || a.slots()[d.slot] != d || len(a.bandsOn(d.slot)) > 0 { // kept, replaced in the last moment, or still being rebuilt
			a.mu.Unlock()
			return nil
		}
		left = true
		a.mu.Unlock()
		return a.leave(d)
	})
	if err == nil && left {
		a.letGo(d)
		a.mu.Lock()
		d.drain = nil // from now on the slot is empty for everybody
		a.mu.Unlock()
	}
	return left, err
}

// moveBand gives a band an extent on another disk instead of the one on d. The cells are written there first, then the band's
// headers, that on the new disk before the others: from the first other one on, the band has moved, whatever happens.
func (a *Array) moveBand(ctx context.Context, d *disk, r *rebuilding, b *band) error {
	b, err := a.pinBand(b.num)
	if err != nil {
		return nil // freed meanwhile
	}
	defer b.unpin()
	pos := b.position(d.slot)
	if pos < 0 {
		return nil
	}
	to, moved, err := a.placeFor(b, pos)
	if err != nil {
		return err
	}
	if a.opt.faults.moveEarly {
		return errors.Join(a.switchBand(ctx, b, moved, pos, to), a.copyMember(ctx, r, b, moved, pos, to))
	}
	if err := a.copyMember(ctx, r, b, moved, pos, to); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			a.cramp(moved.members[pos])
		} else {
			a.giveBack(moved.members[pos])
		}
		return err
	}
	return a.switchBand(ctx, b, moved, pos, to)
}

// placeFor takes an extent for a member of a band on the emptiest disk that has none of the band's.
func (a *Array) placeFor(b *band, pos int) (*disk, *band, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.canMove(b); err != nil {
		return nil, nil, err
	}
	var to *disk
	for _, d := range a.slots() {
		if d.open() && d.whole() && b.position(d.slot) < 0 && d.free > 0 && (to == nil || d.free > to.free) {
			to = d
		}
	}
	if to == nil || a.bandsLeft() <= reserveBands/2 {
		return nil, nil, fmt.Errorf("no disk has room for band %x: %w", b.num, ErrFull)
	}
	e, _ := to.takeExtent()
	a.bandSeq++
	a.noteSpace()
	return to, b.moved(pos, bandMember{slot: to.slot, extent: e}, a.super.epoch().num<<32|a.bandSeq), nil
}

// canMove reports why a band must stay as it is for now; a.mu is held.
func (a *Array) canMove(b *band) error {
	switch {
	case a.bands[b.num] != b:
		return fmt.Errorf("band %x was moved meanwhile: %w", b.num, ErrBusy)
	case !b.closed(a.super.epoch().num) || b.epoch == a.super.epoch().num:
		return fmt.Errorf("band %x is being written: %w", b.num, ErrBusy)
	case b.hollow.Load() != 0:
		return fmt.Errorf("band %x is being rebuilt: %w", b.num, ErrBusy)
	}
	n := 0
	for _, m := range b.members {
		if a.slots()[m.slot].whole() {
			n++
		}
	}
	// Those that are away come back with the old header. So many must have the new one that not all of these can be lost.
	if n < len(b.members)-1 && n <= a.geo.Parity+1 {
		return fmt.Errorf("band %x has too few disks to remember a move: %w", b.num, ErrBusy)
	}
	return nil
}

// giveBackOf is giveBack, unless another disk has the slot by now.
func (a *Array) giveBackOf(d *disk, extent uint32) {
	if a.slots()[d.slot] == d {
		a.giveBack(bandMember{d.slot, extent})
	}
}

// copyMember writes the cells of one position of a band to another disk: as they are where they are good, else computed from the others.
func (a *Array) copyMember(ctx context.Context, r *rebuilding, b, moved *band, pos int, to *disk) error {
	if err := a.prepareOrFence(to, moved.members[pos].extent); err != nil {
		return err
	}
	limit := a.newRecovery().limit[b.num]
	return a.eachStripeBy(ctx, strictly{a}, b, func(w *wholeStripe) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		role := (pos - int(w.head.rot) + len(b.members)) % len(b.members)
		if b.kind == kindPacked && w.head.stripe > limit || role >= w.width() {
			return nil // void, or it has no cell here
		}
		if !w.good[role] {
			if w.goodCells() < int(w.head.data) {
				return a.missed(w)
			}
			if err := w.complete(); err != nil {
				return err
			}
		}
		w.band = moved
		cell := len(w.cells[role])
		loads := []usage{{d: a.slots()[b.members[pos].slot], read: cell}, {d: to, write: cell}}
		return a.schedule.piece(ctx, ClassRepair, &a.rebuildRate, loads, func() error {
			ops := []blockdev.Op{a.cellWrite(w, role, to)}
			err := a.group.Run(ops)
			w.ops = append(w.ops, ops...)
			if err == nil && ops[0].Err != nil {
				if err = a.log.fail([]*disk{to}); err == nil {
					err = ops[0].Err
				}
			}
			r.bytes.Add(int64(len(w.cells[role])))
			return err
		})
	})
}

// switchBand makes a moved band take the place of the old one, on the disks and here.
func (a *Array) switchBand(ctx context.Context, b, moved *band, pos int, to *disk) error {
	failed, err := a.writeMove(ctx, b, moved, pos, to)
	if len(failed) > 0 {
		if e := a.log.fail(failed); e != nil {
			err = e
		}
	}
	return err
}

// writeMove writes the headers of a moved band. No epoch begins meanwhile, so the disks stay what they are; and no other move is between its
// first header and the table of bands, so that both say the same.
func (a *Array) writeMove(ctx context.Context, b, moved *band, pos int, to *disk) ([]*disk, error) {
	if err := a.acquire(ctx, a.moving); err != nil {
		a.giveBack(moved.members[pos])
		return nil, err
	}
	defer func() { <-a.moving }()
	a.rlockGate()
	defer a.gate.RUnlock()
	a.mu.RLock()
	err := a.canMove(b)
	if err == nil && (!to.open() || !to.whole() || a.slots()[to.slot] != to) {
		err = fmt.Errorf("move band %x to slot %d: %s: %w", b.num, to.slot, to.state, ErrBusy)
	}
	a.mu.RUnlock()
	if err == nil {
		if err = a.rewriteBandHeader(ctx, moved, pos, to); err != nil {
			a.giveBack(moved.members[pos])
			return []*disk{to}, err
		}
	}
	if err != nil {
		a.giveBack(moved.members[pos])
		return nil, err
	}
	var failed []*disk
	for i, m := range moved.members {
		a.mu.RLock()
		o := a.slots()[m.slot]
		skip := i == pos || !o.usable()
		a.mu.RUnlock()
		if skip {
			continue
		}
		if e := a.rewriteBandHeader(context.WithoutCancel(ctx), moved, i, o); e != nil {
			failed, err = append(failed, o), e
		}
	}
	a.mu.Lock()
	a.bands[b.num] = moved
	from := a.slots()[b.members[pos].slot]
	usable := from.usable()
	a.mu.Unlock()
	if usable {
		// Should the disk stay, it must not recall what was.
		if e := a.writeHeader(context.WithoutCancel(ctx), moved, -1, b.members[pos], from); e != nil {
			failed, err = append(failed, from), e
		}
	}
	return failed, err
}
