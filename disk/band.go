package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coffer/disk/internal/blockdev"
)

// band is one extent on each of several disks: the unit in which space is taken and given back. It is written from front to
// back by one epoch and never again after.
type band struct {
	num     uint64 // epoch<<32 | counter: unique for ever, ascending
	kind    kind   // kindPacked or kindBulk
	epoch   uint64
	parity  int
	nonce   [16]byte
	opened  int64 // unix ms
	members []bandMember
	placed  []uint64 // by position, when the extent was taken, as a band number; nil: all when the band was opened
	*bandUse
}

// bandUse is what becomes of a band. When a member is moved to another disk, a new band takes the place of the old one and shares this;
// those who work with the old one go on.
type bandUse struct {
	end    uint32        // blocks in use, from recovery or from writing; guarded by the stream that appends
	first  atomic.Uint64 // number of its first packed stripe; 0: none yet, or it cannot be read
	fresh  bool          // opened by this process
	open   atomic.Bool   // more will be written to it
	pins   atomic.Int32  // raised under Array.mu only, so that a dying band gets none
	dying  bool          // being freed; guarded by Array.mu
	hollow atomic.Uint32 // by position: the member's disk is being rebuilt and lacks the cells
}

// bandMember is the extent that a band has on one disk.
type bandMember struct {
	slot   int
	extent uint32
}

// extentOffset is where an extent begins on its disk, bytes.
func (g Geometry) extentOffset(extent uint32) int64 { return superArea + int64(extent)*g.ExtentSize }

// extents is how many fit on a disk of the given size.
func (g Geometry) extents(size int64) uint32 {
	if size < superArea+g.ExtentSize {
		return 0
	}
	return uint32((size - superArea) / g.ExtentSize)
}

// placedAt is when the extent of a member was taken, as a band number.
func (b *band) placedAt(pos int) uint64 {
	if b.placed == nil {
		return b.num
	}
	return b.placed[pos]
}

// current reports whether the band is as it was found: not gone, and none of its members moved.
func (a *Array) current(b *band) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.bands[b.num] == b
}

// revision tells which of two members' tables of a band is the newer one.
func (b *band) revision() uint64 {
	if b.placed == nil {
		return b.num
	}
	return slices.Max(b.placed)
}

// moved is the band with another extent in one position.
func (b *band) moved(pos int, to bandMember, placed uint64) *band {
	n := *b
	n.members, n.placed = slices.Clone(b.members), make([]uint64, len(b.members))
	for i := range n.placed {
		n.placed[i] = b.placedAt(i)
	}
	n.members[pos], n.placed[pos] = to, placed
	return &n
}

// disk is a member of the array, present or not.
type disk struct {
	slot    int
	id      diskID
	dev     blockdev.Device // nil when missing
	gi      int             // index in the group
	path    string
	state   DiskState
	reason  string      // why it is not healthy
	super   *superblock // as found when the array was opened
	torn    []int       // copies of it that are not like it
	found   rawSuper    // all copies, likewise
	extents uint32
	used    []bool // by extent
	free    int
	next    uint32       // where the search for a free extent begins
	cramped []uint32     // extents that count as used: the file system behind them had no room; guarded by Array.mu
	since   time.Time    // when the first of them was met
	hollow  bool         // being rebuilt: the member table says so
	rebuild *rebuilding  // guarded by Array.mu
	suspect atomic.Bool  // slower than its peers, or its reads fail
	symptom string       // which of these; guarded by Array.mu
	asked   atomic.Bool  // whether its blocks can be read
	refused bool         // a failed disk that stays, as too many have failed; guarded by Array.mu
	late    atomic.Int32 // late reads in flight

	model *Model             // nil: the disk was not qualified
	due   [classes]time.Time // when what was done on the disk is paid for; guarded by schedule.mu

	role     diskRole    // guarded by Array.mu
	olds     []*disk     // had its place before, and may help until it is rebuilt; guarded by Array.mu
	draining bool        // takes no new bands; guarded by Array.mu
	drain    *rebuilding // guarded by Array.mu
	fresh    bool        // has no superblock yet
	leaving  bool        // its superblock is told that it is retired
}

// diskRole is what a disk is in the array for.
type diskRole uint8

const (
	roleData diskRole = iota
	roleSpare
	roleNone // an empty slot
)

// counts reports whether parity has to bear the loss of the disk.
func (d *disk) counts() bool { return d.role == roleData }

// listed reports whether superblocks are written to the disk.
func (d *disk) listed() bool { return d.usable() || d.state == DiskSpare || d.leaving }

// open reports whether new bands may take extents on the disk.
func (d *disk) open() bool { return d.usable() && !d.draining }

// usable reports whether the disk takes part in new writes.
func (d *disk) usable() bool { return d.state == DiskHealthy || d.state == DiskRebuilding }

// whole reports whether the disk holds all that is its own.
func (d *disk) whole() bool { return d.state == DiskHealthy }

// present reports whether cells are read from the disk. A stale one's are as good as any: each proves itself, and the cuts say
// which stripes are void.
func (d *disk) present() bool { return d.usable() || d.state == DiskStale }

// takeExtent reserves the next free extent.
func (d *disk) takeExtent() (uint32, bool) {
	for range d.extents {
		e := d.next
		d.next = (d.next + 1) % d.extents
		if !d.used[e] {
			d.used[e] = true
			d.free--
			return e, true
		}
	}
	return 0, false
}

// nextFree lists the extents that takeExtent would return, at most n.
func (d *disk) nextFree(n int) (list []uint32) {
	for i := uint32(0); i < d.extents && len(list) < n; i++ {
		if e := (d.next + i) % d.extents; !d.used[e] {
			list = append(list, e)
		}
	}
	return list
}

func (d *disk) markUsed(e uint32) {
	if e < d.extents && !d.used[e] {
		d.used[e] = true
		d.free--
	}
}

// setFree makes an extent free again that is used.
func (d *disk) setFree(e uint32) {
	if e < d.extents && d.used[e] {
		d.used[e] = false
		d.free++
	}
}

// crampedFor is how long extents without room behind them are left alone.
const crampedFor = 10 * time.Minute

// tryCramped lets extents that were without room for a time be tried again.
func (a *Array) tryCramped() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.slots() {
		if len(d.cramped) > 0 && a.now().Sub(d.since) > crampedFor {
			d.uncramp()
			a.noteSpace()
		}
	}
}

// uncramp lets cramped extents be tried again.
func (d *disk) uncramp() {
	for _, e := range d.cramped {
		d.setFree(e)
	}
	d.cramped = nil
}

// reserveBands is how many bands only essential records may open.
const reserveBands = 4

// bandsLeft is how many bands of the widest possible width the free extents still make, or narrower ones without the disks whose file system is
// full; a.mu is held.
func (a *Array) bandsLeft() int {
	var free, roomy []int
	for _, d := range a.slots() {
		if !d.open() {
			continue
		}
		free = append(free, d.free)
		if len(d.cramped) == 0 {
			roomy = append(roomy, d.free)
		}
	}
	if len(roomy) == len(free) || len(roomy) <= a.geo.Parity {
		return a.geo.bandsOf(free)
	}
	return max(a.geo.bandsOf(free), a.geo.bandsOf(roomy))
}

// bandsOf is how many bands of the widest possible width the given numbers of free extents make: the largest n for which the disks have
// room for n times the width, none of them giving more than n. Taking extents on the emptiest disks gets there.
func (g Geometry) bandsOf(free []int) int {
	w := min(g.width(), len(free))
	if w == 0 {
		return 0
	}
	sum := 0
	for _, f := range free {
		sum += f
	}
	return sort.Search(sum/w, func(n int) bool {
		got := 0
		for _, f := range free {
			got += min(f, n+1)
		}
		return got < (n+1)*w
	})
}

// freeSpace is how many bytes of data fit into extents that are not taken, in stripes as wide as the live disks allow; a.mu is held.
func (a *Array) freeSpace() int64 {
	width := min(a.geo.width(), a.liveLocked())
	data := max(width-a.geo.Parity, min(width, 1))
	return int64(max(a.bandsLeft()-reserveBands, 0)) * int64(data) * (a.geo.ExtentSize - BlockSize)
}

// openBand takes extents on the emptiest live disks and writes the band's header on each, durably. Extents that their file system has no room
// for are passed over.
func (a *Array) openBand(ctx context.Context, k kind, essential bool) (*band, error) {
	for {
		a.mu.Lock()
		table := a.slots()
		b, err := a.allocateBand(k, essential)
		a.mu.Unlock()
		if err != nil {
			return nil, err
		}
		var room *roomError
		switch err := a.prepareBand(ctx, b); {
		case errors.As(err, &room):
			a.cramp(room.extents...)
			for _, m := range room.extents { // rather than to meet each by a band of which the other disks prepare their part
				for a.reserveOn(m.slot) {
				}
			}
			b.members = slices.DeleteFunc(b.members, func(m bandMember) bool { return slices.Contains(room.extents, m) })
		case err == nil && !essential:
			a.reserve(b)
			fallthrough
		case err == nil:
			if a.register(b, table) {
				a.logger.Debug("band opened", "band", fmt.Sprintf("%x", b.num), "bulk", k == kindBulk, "members", b.members)
				return b, nil
			}
		default:
			a.giveBack(b.members...)
			return nil, err
		}
		a.giveBack(b.members...)
	}
}

// register makes a band one of the array's, unless one of its disks has left by now, or is another than in the table that it was made by.
func (a *Array) register(b *band, table []*disk) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range b.members {
		if d := a.slots()[m.slot]; d != table[m.slot] || !d.counts() {
			return false
		}
	}
	a.bands[b.num] = b
	return true
}

// allocateBand picks the members; a.mu is held.
func (a *Array) allocateBand(k kind, essential bool) (*band, error) {
	if !essential && a.bandsLeft() <= reserveBands {
		return nil, fmt.Errorf("open band: %w", ErrFull)
	}
	var live []*disk
	for _, d := range a.slots() {
		if d.open() && d.free > 0 {
			live = append(live, d)
		}
	}
	slices.SortStableFunc(live, func(x, y *disk) int { return y.free - x.free })
	width := min(a.geo.width(), len(live))
	if width == 0 || width < min(a.geo.Parity+1, a.liveLocked()) {
		return nil, fmt.Errorf("open band: %w", ErrFull)
	}
	a.bandSeq++
	b := &band{
		num: a.super.epoch().num<<32 | a.bandSeq, kind: k, epoch: a.super.epoch().num,
		parity: min(a.geo.Parity, width-1), opened: a.now().UnixMilli(), bandUse: &bandUse{end: 1, fresh: true},
	}
	b.open.Store(true)
	a.random(b.nonce[:])
	for _, d := range live[:width] {
		e, _ := d.takeExtent()
		b.members = append(b.members, bandMember{slot: d.slot, extent: e})
	}
	a.noteSpace()
	return b, nil
}

// prepareBand makes the extents' blocks real and writes the headers.
func (a *Array) prepareBand(ctx context.Context, b *band) error {
	if err := a.prepareExtents(b); err != nil {
		return err
	}
	buf, err := a.meta.Get(ctx, len(b.members)*BlockSize)
	if err != nil {
		return err
	}
	ops := make([]blockdev.Op, len(b.members))
	for i, m := range b.members {
		d := a.slots()[m.slot]
		block := buf.Bytes()[i*BlockSize:][:BlockSize]
		a.codec.putBand(block, b, i, d.id)
		ops[i] = blockdev.Op{Dev: d.gi, Write: true, Durable: true, Off: a.geo.extentOffset(m.extent), Buf: block}
	}
	failed, err := a.runWrites(ops, &buf)
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		return &fenceError{disks: failed, err: firstError(ops)}
	}
	return nil
}

// prepareExtents has each device make the blocks of its extent real, all at once.
func (a *Array) prepareExtents(b *band) error {
	errs := make([]error, len(b.members))
	var wg sync.WaitGroup
	for i, m := range b.members {
		prepare := func() { errs[i] = a.prepareExtent(a.slots()[m.slot].dev, m.extent) }
		if a.opt.manual != nil {
			prepare()
		} else {
			wg.Go(prepare)
		}
	}
	wg.Wait()
	var failed []*disk
	room := &roomError{err: errors.Join(errs...)}
	for i, err := range errs {
		switch {
		case errors.Is(err, unix.ENOSPC):
			room.extents = append(room.extents, b.members[i])
		case err != nil:
			failed = append(failed, a.slots()[b.members[i].slot])
		}
	}
	switch {
	case len(failed) > 0:
		return &fenceError{disks: failed, err: room.err}
	case len(room.extents) > 0:
		return room
	}
	return nil
}

// reserve makes sure that the extents which essential records may take after those of a band have room behind them too. Those that have none
// are left out, so that the array is full for others first.
func (a *Array) reserve(b *band) {
	for _, m := range b.members {
		for a.reserveOn(m.slot) {
		}
	}
}

// reserveOn reserves the next extents of a disk, and reports whether one was left out.
func (a *Array) reserveOn(slot int) bool {
	a.mu.RLock()
	d := a.slots()[slot]
	next := d.nextFree(reserveBands)
	a.mu.RUnlock()
	for _, e := range next {
		err := a.bounded(func() error { return d.dev.Reserve(a.geo.extentOffset(e), a.geo.ExtentSize) })
		if errors.Is(err, unix.ENOSPC) { // whatever else there is shows when it is used
			a.mu.Lock()
			free := a.slots()[slot] == d && !d.used[e]
			if free {
				d.markUsed(e)
			}
			a.mu.Unlock()
			if free {
				a.cramp(bandMember{slot: slot, extent: e})
			}
			return free
		}
	}
	return false
}

// roomError says that file systems have no room for extents of the disks on them.
type roomError struct {
	extents []bandMember
	err     error
}

func (e *roomError) Error() string { return fmt.Sprintf("prepare extents: %v: %v", ErrFull, e.err) }
func (e *roomError) Unwrap() error { return ErrFull }

// cramp counts extents, which are used by nobody, as used for a time.
func (a *Array) cramp(extents ...bandMember) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range extents {
		d := a.slots()[m.slot]
		if int(m.extent) >= len(d.used) || !d.used[m.extent] {
			continue
		}
		if len(d.cramped) == 0 {
			d.since = a.now()
			a.logger.Error("the file system of a disk is full: extents without room behind them are left out", "path", d.path, "slot", d.slot)
		}
		d.cramped = append(d.cramped, m.extent)
	}
	a.noteSpace()
}

// preparePiece is how much of an extent is prepared under one deadline.
const preparePiece = 8 << 20

// prepareExtent has a device make the blocks of an extent real, in pieces that each have a write's deadline: the calls behind it
// block for as long as the disk does.
func (a *Array) prepareExtent(dev blockdev.Device, extent uint32) error {
	start := a.geo.extentOffset(extent)
	for off := start; off < start+a.geo.ExtentSize; off += preparePiece {
		n := min(preparePiece, start+a.geo.ExtentSize-off)
		if err := a.bounded(func() error { return dev.Prepare(off, n) }); err != nil {
			return fmt.Errorf("prepare %s: %w", dev.Path(), err)
		}
	}
	return nil
}

// prepareOrFence prepares an extent of a disk that is to be filled. A disk that misses the deadline is fenced: the call may go on and write
// zeros, so the extent must not be used, by nobody. So is one that has no room for what is its own.
func (a *Array) prepareOrFence(d *disk, extent uint32) error {
	err := a.prepareExtent(d.dev, extent)
	if errors.Is(err, blockdev.ErrTimeout) || errors.Is(err, unix.ENOSPC) && d.hollow {
		err = errors.Join(err, a.log.fail([]*disk{d}))
	}
	return err
}

// bounded waits for a call into a disk no longer than a write may take. One that misses the deadline is left alone; it must hold no
// memory that is used again.
func (a *Array) bounded(f func() error) error {
	_, err := a.boundedUntil(f)
	return err
}

// boundedUntil is bounded, and returns a channel that yields the error of a call that missed its deadline, if that ends ever.
func (a *Array) boundedUntil(f func() error) (<-chan error, error) {
	if a.opt.manual != nil {
		return nil, f()
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	deadline := time.NewTimer(a.writeTimeout)
	defer deadline.Stop()
	select {
	case err := <-done:
		return nil, err
	case <-deadline.C:
		return done, fmt.Errorf("after %v: %w", a.writeTimeout, blockdev.ErrTimeout)
	}
}

// dropBand forgets a band that is free, and gives its extents back but those in use by calls that hang.
func (a *Array) dropBand(num uint64, hang ...bandMember) {
	a.mu.Lock()
	members := a.bands[num].members // as it is now: one may have been moved
	delete(a.bands, num)
	a.losses = slices.DeleteFunc(a.losses, func(l Loss) bool { return l.Band == num }) // nobody needs them any more
	a.mu.Unlock()
	a.giveBack(slices.DeleteFunc(slices.Clone(members), func(m bandMember) bool { return slices.Contains(hang, m) })...)
}

// giveBack makes extents free that no band has any more, or none came to have.
func (a *Array) giveBack(members ...bandMember) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range members {
		a.slots()[m.slot].setFree(m.extent)
	}
	a.noteSpace()
}

// fenceError says that disks failed a write and must leave the array before it goes on.
type fenceError struct {
	disks []*disk
	err   error
}

func (e *fenceError) Error() string { return fmt.Sprintf("write %d disks: %v", len(e.disks), e.err) }
func (e *fenceError) Unwrap() error { return e.err }

func firstError(ops []blockdev.Op) error {
	for i := range ops {
		if ops[i].Err != nil {
			return ops[i].Err
		}
	}
	return nil
}

// runWrites runs a batch of writes and returns the disks that failed. The buffer is released, or abandoned when
// the kernel still holds it.
func (a *Array) runWrites(ops []blockdev.Op, buf *blockdev.Buf) ([]*disk, error) {
	defer release(buf, ops)
	err := a.group.Run(ops)
	return a.failedDisks(ops), err
}

// failedDisks lists the disks whose operations failed.
func (a *Array) failedDisks(ops []blockdev.Op) []*disk {
	var failed []*disk
	for i := range ops {
		if d := a.diskOf[ops[i].Dev].Load(); ops[i].Err != nil && d != nil && !slices.Contains(failed, d) {
			failed = append(failed, d)
		}
	}
	return failed
}

// release gives back the buffer of a batch, when the kernel has let go of it.
func release(buf *blockdev.Buf, ops []blockdev.Op) {
	if slices.ContainsFunc(ops, func(o blockdev.Op) bool { return o.Stuck }) {
		buf.Abandon(ops)
	} else {
		buf.Release()
	}
}
