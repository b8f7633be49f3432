package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// Errors of space.
var (
	// ErrBusy: a band cannot be freed now: it is being written or read, or too few of its disks are there to remember it.
	ErrBusy = errors.New("band busy")
	// ErrGone: what was asked for lies in a band that was freed. Its owner has moved it, or has none.
	ErrGone = errors.New("band gone")
)

// Band describes a band for compaction.
type Band struct {
	Num    uint64
	Bulk   bool // stripes; else records and small data
	Closed bool // nothing more will be written to it
	Opened time.Time
	Size   int64 // bytes of data that fit into it
	// Thin bands were written while fewer than 1+parity disks were there, with less parity than what is written now has.
	Thin bool
}

// StripeRange is a run of numbers of packed stripes, both ends included.
type StripeRange struct{ From, To uint64 }

// Discard says which freed extents are given back to their devices.
type Discard uint8

const (
	// DiscardAuto is for block devices; a file would have to be filled with zeros again before the extent's next use.
	DiscardAuto Discard = iota
	DiscardAlways
	DiscardNever
)

// Bands lists the bands in the order in which they were opened.
func (a *Array) Bands() []Band {
	bands := a.sortedBands()
	a.mu.RLock()
	defer a.mu.RUnlock()
	now := a.super.epoch().num
	parity := min(a.geo.Parity, max(a.liveLocked()-1, 0))
	list := make([]Band, 0, len(bands))
	for _, b := range bands {
		// One whose freeing was cut short may be back at the next opening: until then it counts among the bands that are there.
		list = append(list, Band{Num: b.num, Bulk: b.kind == kindBulk, Closed: b.closed(now) && !b.dying, Opened: time.UnixMilli(b.opened),
			Size: int64(len(b.members)-b.parity) * (a.geo.ExtentSize - BlockSize), Thin: b.parity < parity})
	}
	return list
}

// closed reports whether nothing more will be written to the band.
func (b *band) closed(epoch uint64) bool { return !b.open.Load() || b.epoch != epoch }

// pinBand keeps a band from being freed until unpin.
func (a *Array) pinBand(num uint64) (*band, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := a.bands[num]
	if b == nil || b.dying {
		return nil, fmt.Errorf("band %x: %w", num, ErrGone)
	}
	b.pins.Add(1)
	return b, nil
}

func (b *band) unpin() {
	if b.pins.Add(-1) < 0 {
		panic("disk: band unpinned more often than pinned")
	}
}

// Pin keeps a band from being freed until Unpin, as often as it is called. It is false when the band is gone.
func (a *Array) Pin(num uint64) bool {
	_, err := a.pinBand(num)
	return err == nil
}

// Unpin takes back one Pin, or that of a StripeWriter's Commit.
func (a *Array) Unpin(num uint64) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	a.bands[num].unpin()
}

// Horizon returns a sequence number below which no record lies in the log, but for copies of such that were live when they were
// moved. So whatever older records a record with a lower number shadows are gone.
func (a *Array) Horizon() uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	first := a.log.acked.Load() + 1
	for _, b := range a.bands {
		if b.kind != kindPacked || b.unused() {
			continue
		}
		first = min(first, b.first.Load()) // 0 where the first stripe cannot be read: nothing is known then
	}
	return first << seqBits
}

// unused reports whether no packed stripe was ever placed in the band.
func (b *band) unused() bool { return b.fresh && b.first.Load() == 0 }

// Free gives the extents of a band back, for ever: from the moment it returns, no opening of the array finds the band again. The
// caller vouches that nothing in it is needed, by an index that is durable as well. It fails with ErrBusy when the band is not
// closed or pinned, or when so many of its disks are missing that those left could be lost together.
func (a *Array) Free(ctx context.Context, num uint64) error {
	if err := errors.Join(ctx.Err(), a.log.stopped()); err != nil {
		return fmt.Errorf("free band %x: %w", num, err)
	}
	b, err := a.retire(num)
	if err != nil {
		return fmt.Errorf("free band %x: %w", num, err)
	}
	if err := a.bury(context.WithoutCancel(ctx), b); err != nil {
		return fmt.Errorf("free band %x: %w", num, err)
	}
	a.dropBand(num, a.discard(b)...)
	a.stats.freed.Add(1)
	a.logger.Debug("band freed", "band", fmt.Sprintf("%x", num))
	return nil
}

// retire takes a band out of use.
func (a *Array) retire(num uint64) (*band, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.bands[num]
	if b == nil {
		return nil, ErrGone
	}
	if b.dying {
		return nil, ErrBusy
	}
	if b.pins.Load() > 0 && !a.opt.faults.noPin || !b.closed(a.super.epoch().num) || !a.canBury(b, a.usableIn(b)) {
		return nil, ErrBusy
	}
	b.dying = true
	return b, nil
}

// usableIn counts the disks of a band that can be written; a.mu is held.
func (a *Array) usableIn(b *band) (n int) {
	for _, m := range b.members {
		if a.slots()[m.slot].usable() {
			n++
		}
	}
	return n
}

// canBury reports whether marks on n of a band's disks are enough. A disk that is away comes back with the band's header: then one
// that has the mark must be there. More than parity of them are enough always; and if the band is on every disk of the array,
// any are, since more than parity disks are needed to open it, and no more than those were away.
func (a *Array) canBury(b *band, n int) bool {
	// A disk that comes back with a header from before a move knows nothing of the extent that was moved to: one mark more is needed for each.
	moved := 0
	for pos := range b.members {
		if b.placedAt(pos) != b.num && a.mayRecall(b) {
			moved++
		}
	}
	return a.opt.faults.fewMarks || n == len(b.members) || n > a.geo.Parity+moved || n > 0 && moved == 0 && len(b.members) == a.counted()
}

// mayRecall reports whether a disk that is away may carry a header of a band from before its last move: not one that took part in a later epoch,
// as the header was put right, or cleared, before that began. a.mu is held.
func (a *Array) mayRecall(b *band) bool {
	for _, d := range a.slots() {
		if !d.counts() || d.usable() {
			continue
		}
		m := a.super.members[d.slot]
		if out := m.state == memberOut || m.state == memberOutHollow; !out || m.since <= b.revision()>>32+1 {
			return true
		}
	}
	return false
}

// bury overwrites the headers of a band with marks that it is free. One of them found later makes the band void.
func (a *Array) bury(ctx context.Context, b *band) error {
	if a.opt.faults.noMark {
		return nil
	}
	failed, err := a.writeFree(ctx, b, b.members)
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		if err := a.log.fail(failed); err != nil {
			return err
		}
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if !a.canBury(b, a.usableIn(b)) {
		return ErrBusy // void when the array is opened again; its extents stay taken until then
	}
	return nil
}

// writeFree marks extents as free of a band, durably, on those of the disks that are there, and says when the band had taken them. It
// returns the disks that failed.
func (a *Array) writeFree(ctx context.Context, b *band, extents []bandMember) ([]*disk, error) {
	buf, err := a.meta.Get(ctx, len(extents)*BlockSize)
	if err != nil {
		return nil, err
	}
	var ops []blockdev.Op
	epoch := a.epochNow()
	a.mu.RLock()
	for i, m := range extents {
		d := a.slots()[m.slot]
		if !d.usable() && !(a.opening && d.present()) {
			continue
		}
		block := buf.Bytes()[i*BlockSize:][:BlockSize]
		clear(block)
		h := header{kind: kindFree, width: 1, disk: d.id, band: b.num, stripe: uint64(m.extent), epoch: epoch, blocks: 1, writtenMS: a.now().UnixMilli()}
		if pos := slices.Index(b.members, m); pos >= 0 {
			binary.LittleEndian.PutUint64(block[placedTable:], b.placedAt(pos))
		}
		a.random(h.nonce[:])
		h.crc = a.codec.checksum(&h, a.opt.Crypto.CRC64NVME(0, block[headerSize:]))
		a.codec.put(block, &h)
		ops = append(ops, blockdev.Op{Dev: d.gi, Write: true, Durable: true, Off: a.geo.extentOffset(m.extent), Buf: block})
	}
	a.mu.RUnlock()
	return a.runWrites(ops, &buf)
}

// parseFree reads a mark of writeFree and returns the band that the extent is free of, and when that had taken it.
func (c *codec) parseFree(block []byte, disk diskID, extent uint32) (num, placed uint64, ok bool) {
	h, err := c.parse(block, place{disk: disk})
	if err != nil || h.kind != kindFree || h.off != 0 || h.blocks != 1 || h.stripe != uint64(extent) ||
		c.checksum(&h, c.crypto.CRC64NVME(0, block[headerSize:])) != h.crc {
		return 0, 0, false
	}
	return h.band, max(h.band, binary.LittleEndian.Uint64(block[placedTable:])), true
}

// discard gives the extents of a dead band back to their devices, all but the marks. A device that fails here loses nothing. Extents
// that a device is still discarding when its deadline has passed are returned: they stay taken until it has ended.
func (a *Array) discard(b *band) (hang []bandMember) {
	var wg sync.WaitGroup
	var mu sync.Mutex // guards hang
	for _, m := range b.members {
		d := a.slots()[m.slot]
		a.mu.RLock()
		usable := d.usable()
		a.mu.RUnlock()
		if !usable || a.opt.Discard == DiscardNever || a.opt.Discard == DiscardAuto && d.dev.Limits().Kind != "block" {
			continue
		}
		punch := func() {
			end, err := a.boundedUntil(func() error { return d.dev.Discard(a.geo.extentOffset(m.extent)+BlockSize, a.geo.ExtentSize-BlockSize) })
			if err != nil {
				a.logger.Warn("extent not discarded", "path", d.path, "extent", m.extent, "err", err)
			}
			if end != nil {
				mu.Lock()
				defer mu.Unlock()
				hang = append(hang, m)
				go func() { // not waited for by Close: the kernel may hold it for ever
					<-end
					a.giveBackOf(d, m.extent)
				}()
			}
		}
		if a.opt.manual != nil {
			punch()
		} else {
			wg.Go(punch)
		}
	}
	wg.Wait()
	return hang
}

// EachRecord calls fn for the records of a packed band in the order of the log. They come from cells that passed their checks,
// completed where some are missing; e and data are valid during the call. It returns the numbers of the stripes in the band, those
// that cannot be read included: they are stepped over, and the error wraps ErrCorrupt when all others were visited. Of a band in which no stripe
// is found there are none.
func (a *Array) EachRecord(ctx context.Context, num uint64, fn func(e Entry, data []byte) error) (StripeRange, error) {
	b, err := a.pinBand(num)
	if err != nil {
		return StripeRange{}, err
	}
	defer b.unpin()
	if b.kind != kindPacked {
		return StripeRange{}, fmt.Errorf("read records of band %x: it has none: %w", num, ErrCorrupt)
	}
	limit := a.newRecovery().limit[num]
	r := StripeRange{From: b.first.Load()}
	var faults error
	next := r.From
	err = a.eachStripe(ctx, b, func(w *wholeStripe) error {
		if w.head.stripe > limit {
			return nil
		}
		if next > 0 && w.head.stripe > next {
			faults = errors.Join(faults, fmt.Errorf("stripes %d to %d: not found: %w", next, w.head.stripe-1, ErrCorrupt))
		}
		next = w.head.stripe + 1
		if r.To = w.head.stripe; r.From == 0 {
			r.From = r.To
		}
		entries, err := a.readRecords(w)
		if err != nil {
			faults = errors.Join(faults, err)
			return nil
		}
		for _, e := range entries {
			var data []byte
			if l := e.Data; !l.IsZero() {
				data = w.cells[l.Role][l.Start:][:l.Len]
			}
			if err := fn(e, data); err != nil {
				return err
			}
		}
		return nil
	})
	// Where no stripe was found at all the band may be empty: then the last one before the next band is another's.
	if end := a.lastStripe(num, limit); err == nil && r.From > 0 && end > r.To {
		faults = errors.Join(faults, fmt.Errorf("stripes %d to %d: not found: %w", next, end, ErrCorrupt))
		r.To = end
	}
	return r, errors.Join(err, faults)
}

// lastStripe is the number of the last stripe that was acknowledged in a packed band, whether it can be read or not: the next band begins
// behind it. 0: that cannot be told, as the first stripe of the next band cannot be read.
func (a *Array) lastStripe(num, limit uint64) uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var next *band
	for _, b := range a.bands {
		if b.kind == kindPacked && b.num > num && !b.unused() && (next == nil || b.num < next.num) {
			next = b
		}
	}
	last := a.log.acked.Load()
	if next != nil {
		last = next.first.Load() - 1
		if last == ^uint64(0) {
			return 0
		}
	}
	return min(last, limit)
}

// readRecords decodes a stripe after completing it.
func (a *Array) readRecords(w *wholeStripe) ([]Entry, error) {
	if err := w.complete(); err != nil {
		return nil, err
	}
	return a.decodeEntries(w)
}

// ReadVerified reads all segments of a stripe from cells that pass their checks, reconstructing what does not: for those who have no
// key to check the bytes by. A caller that needs memory of NewStripe as well gets that first.
func (a *Array) ReadVerified(ctx context.Context, s Stripe) (*View, error) {
	b, err := a.bulkBand(s)
	if err != nil {
		return nil, err
	}
	v, err := a.readVerified(ctx, s, b)
	if err != nil {
		b.unpin()
		return nil, err
	}
	return v, nil
}

// readVerified is ReadVerified of a band that the view is to unpin.
func (a *Array) readVerified(ctx context.Context, s Stripe, b *band) (*View, error) {
	h, err := a.anyHeader(ctx, b, s.Off)
	if err != nil {
		return nil, err
	}
	if h.data != s.Data || int(h.blocks)*BlockSize != s.cellBytes() {
		return nil, fmt.Errorf("stripe %x/%d: not of the shape that its record says: %w", s.Band, s.Off, ErrCorrupt)
	}
	w, err := a.readWholeBy(ctx, hedger{a, ctx, int(h.data)}, b, h)
	if err != nil {
		return nil, err
	}
	if err := w.complete(); err != nil { // perhaps a late cell is needed, where another is bad
		w.release()
		if w, err = a.readWhole(ctx, b, h); err != nil {
			return nil, err
		}
		if err := w.complete(); err != nil {
			w.release()
			return nil, err
		}
	}
	v := views.Get().(*View)
	*v = View{a: a, buf: w.buf, ops: append(v.ops[:0], w.ops...), band: b, stripe: s, n: int(s.Segments)}
	for j := range int(s.Data) {
		v.cells[j] = readCell{mem: w.cells[j][BlockSize:], rows: s.rows(), ok: true}
	}
	return v, nil
}

// room is where callers wait for space.
type room struct {
	pressure chan struct{} // capacity 1

	mu       sync.Mutex // guards all below
	attended bool       // someone makes room
	asked    uint64     // tickets of those who wait
	answered uint64     // those up to here know that nothing more can be had
	changed  chan struct{}
}

// change returns a channel that is closed at the next change; mu is held.
func (r *room) change() <-chan struct{} {
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

// wake tells all who wait to look again; mu is held.
func (r *room) wake() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// spareBands is how many bands new data leaves free while compaction can make room, so that it need not wait for each. More would be of
// no use: what lies idle is missing where dead bytes gather.
func (a *Array) spareBands() int { return spareOf(a.totalBands()) }

func spareOf(bands int) int { return reserveBands + max(3, bands/64) }

// slackBands is how much of the array its capacity leaves out: bands over which dead bytes spread, so that those that are emptied hold
// little that is live. With 85 % of the capacity in use a band is emptied that is two thirds live at worst (see docs/benchmarks.md).
func (a *Array) slackBands() int { return slackOf(a.totalBands()) }

func slackOf(bands int) int { return spareOf(bands) + bands/9 }

// capacity is how many bytes of data so many bands of full width take.
func (g Geometry) capacity(bands int) int64 {
	return int64(max(bands-slackOf(bands), 0)) * int64(g.Data) * (g.ExtentSize - BlockSize)
}

// Capacity is how many bytes of data an array of disks of these sizes takes.
func (g Geometry) Capacity(sizes []int64) int64 {
	var extents []int
	for _, s := range sizes {
		extents = append(extents, int(g.extents(s)))
	}
	return g.capacity(g.bandsOf(extents))
}

// totalBands is how many bands of full width the array holds; a.mu is held.
func (a *Array) totalBands() int {
	var extents []int
	for _, d := range a.slots() {
		if d.counts() && !d.draining {
			extents = append(extents, int(d.extents))
		}
	}
	return a.geo.bandsOf(extents)
}

// noteSpace looks whether space has become short or plentiful; a.mu is held.
func (a *Array) noteSpace() {
	left := a.bandsLeft()
	a.tight.Store(left <= a.spareBands())
	a.slack.Store(left <= a.slackBands())
	a.full.Store(left <= reserveBands)
	a.low.Store(left <= reserveBands/2)
	a.room.mu.Lock()
	a.room.wake()
	a.room.mu.Unlock()
}

// Admit waits until there is room for new data. It fails with ErrFull when there is none and none can be made. It is called before
// any lock or memory is taken that those who make room may need.
func (a *Array) Admit(ctx context.Context) error {
	err := a.awaitRoom(ctx, &a.tight)
	if err == nil && a.tight.Load() && a.full.Load() {
		err = ErrFull
	}
	if err != nil {
		return fmt.Errorf("admit: %w", err)
	}
	return nil
}

// AdmitEssential is Admit for essential records, which give space back in the end: it waits only when half of the reserve is gone, so that
// those who make room do not run out of it, and never fails for want of room.
func (a *Array) AdmitEssential(ctx context.Context) error {
	if err := a.awaitRoom(ctx, &a.low); err != nil {
		return fmt.Errorf("admit: %w", err)
	}
	return nil
}

// awaitRoom waits while space is short until those who make room have done what they can.
func (a *Array) awaitRoom(ctx context.Context, short *atomic.Bool) error {
	if !short.Load() {
		return nil
	}
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	r := &a.room
	r.mu.Lock()
	r.asked++
	ticket := r.asked
	r.mu.Unlock()
	select {
	case r.pressure <- struct{}{}:
	default:
	}
	for {
		r.mu.Lock()
		answered, changed := r.answered >= ticket || !r.attended, r.change()
		r.mu.Unlock()
		if !short.Load() || answered {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ctx.Done():
			return ErrClosed
		}
	}
}

// SetDear is told by those who make room whether it costs more than it gives: that what they would empty next is more than half live. Then records
// may wait for others for a moment, so that stripes hold many and waste little.
func (a *Array) SetDear(dear bool) { a.dear.Store(dear) }

// scarce reports whether space is worth a moment of waiting.
func (a *Array) scarce() bool { return a.slack.Load() && a.dear.Load() }

// Waiting counts the callers in Admit.
func (a *Array) Waiting() int { return int(a.waiting.Load()) }

// Pressure signals that callers wait in Admit. Whoever takes the channel promises to call Relieve.
func (a *Array) Pressure() <-chan struct{} {
	a.room.mu.Lock()
	defer a.room.mu.Unlock()
	a.room.attended = true
	return a.room.pressure
}

// Unattended ends the promise of Pressure: nobody waits for room that nobody makes.
func (a *Array) Unattended() {
	a.room.mu.Lock()
	defer a.room.mu.Unlock()
	a.room.attended = false
	a.room.wake()
}

// Relieve calls try, which frees bands, while space is short and try says that it freed some. Then those who wait know.
func (a *Array) Relieve(try func() bool) {
	r := &a.room
	r.mu.Lock()
	until := r.asked
	r.mu.Unlock()
	for a.tight.Load() && try() {
	}
	r.mu.Lock()
	r.answered = max(r.answered, until)
	r.wake()
	r.mu.Unlock()
}

// without takes away from a run what lies in other ranges, and returns what is left of it.
func (s StripeRange) without(ranges []StripeRange) (left []StripeRange) {
	sorted := slices.SortedFunc(slices.Values(ranges), func(x, y StripeRange) int {
		if x.From < y.From {
			return -1
		}
		return 1
	})
	for _, r := range sorted {
		if r.To < s.From || r.From > s.To {
			continue
		}
		if r.From > s.From {
			left = append(left, StripeRange{s.From, r.From - 1})
		}
		if r.To >= s.To {
			return left
		}
		s.From = r.To + 1
	}
	return append(left, s)
}

// Footprint is how many bytes of each of its band's extents a stripe takes.
func (s Stripe) Footprint() int64 { return int64(s.cellBytes()) }

// ExtentSpace is how many bytes of an extent stripes can take.
func (a *Array) ExtentSpace() int64 { return a.geo.ExtentSize - BlockSize }

// Pinned reports whether a band is pinned. Once a closed band was seen unpinned, nothing that is not yet in the index can come to
// refer to it.
func (a *Array) Pinned(num uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := a.bands[num]
	return b != nil && b.pins.Load() > 0
}

// CanFree reports whether enough of a band's disks are there to remember that it was freed.
func (a *Array) CanFree(num uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := a.bands[num]
	return b != nil && a.canBury(b, a.usableIn(b))
}
