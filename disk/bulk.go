package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"coffer/disk/internal/blockdev"
)

// Stripe says where the segments of a bulk stripe lie: segment i is in data cell i mod Data, row i / Data.
type Stripe struct {
	Band     uint64
	Off      uint32 // in its extents, blocks
	Data     uint8  // data cells
	Segments uint16
}

// AppendBinary appends the wire form: four uvarints.
func (s Stripe) AppendBinary(b []byte) []byte {
	b = binary.AppendUvarint(b, s.Band)
	b = binary.AppendUvarint(b, uint64(s.Off))
	b = binary.AppendUvarint(b, uint64(s.Data))
	return binary.AppendUvarint(b, uint64(s.Segments))
}

// DecodeStripe reads what AppendBinary wrote and returns the rest.
func DecodeStripe(b []byte) (s Stripe, rest []byte, err error) {
	var v [4]uint64
	rest, ok := uvarints(b, v[:])
	if !ok || v[1] > 1<<32-1 || v[2] < 1 || v[2] > MaxWidth || v[3] < 1 || v[3] > MaxWidth*maxRows {
		return Stripe{}, nil, fmt.Errorf("decode stripe: %w", ErrCorrupt)
	}
	return Stripe{Band: v[0], Off: uint32(v[1]), Data: uint8(v[2]), Segments: uint16(v[3])}, rest, nil
}

func (s Stripe) rows() int      { return (int(s.Segments) + int(s.Data) - 1) / int(s.Data) }
func (s Stripe) cellBytes() int { return BlockSize + s.rows()*SegmentSize }
func slotOffset(row int) int    { return BlockSize + row*SegmentSize }

// StripeWriter is a bulk stripe being filled. It is used by one goroutine at a time.
type StripeWriter struct {
	a        *Array
	buf      blockdev.Buf
	data     int // data cells
	parity   int
	segments int // slots
	sealed   int // slots 0..sealed-1 are filled
	rowsDone int // rows whose parity and checksums are computed
	reserved bool
	cells    [MaxWidth][]byte
	crcs     [MaxWidth]uint64
}

// MaxStripeSegments is the most slots a stripe has.
func (a *Array) MaxStripeSegments() int { return a.geo.Data * a.geo.rows() }

// NewReservedStripe is NewStripe of one that may take space kept in reserve: for compaction, which gives more back.
func (a *Array) NewReservedStripe(ctx context.Context, segments int) (*StripeWriter, error) {
	w, err := a.NewStripe(ctx, segments)
	if err == nil {
		w.reserved = true
	}
	return w, err
}

// NewStripe returns memory for a stripe of 1 to MaxStripeSegments segments. It waits while all buffers are in use.
func (a *Array) NewStripe(ctx context.Context, segments int) (*StripeWriter, error) {
	if segments < 1 || segments > a.MaxStripeSegments() {
		panic(fmt.Sprintf("disk: stripe of %d segments", segments))
	}
	if err := a.log.stopped(); err != nil {
		return nil, err
	}
	a.mu.RLock()
	live := a.liveLocked()
	a.mu.RUnlock()
	width := min(a.geo.width(), live)
	parity := min(a.geo.Parity, max(width-1, 0))
	w := &StripeWriter{a: a, segments: segments, parity: parity, data: max(1, min(width-parity, segments))}
	buf, err := a.arena.Get(ctx, (w.data+parity)*w.cellBytes())
	if err != nil {
		return nil, fmt.Errorf("get stripe buffers: %w", err)
	}
	w.buf = buf
	w.cut()
	return w, nil
}

func (w *StripeWriter) rows() int      { return (w.segments + w.data - 1) / w.data }
func (w *StripeWriter) cellBytes() int { return BlockSize + w.rows()*SegmentSize }

// cut divides the buffer into cells.
func (w *StripeWriter) cut() {
	size := w.cellBytes()
	mem := w.buf.Bytes()
	for i := range w.data + w.parity {
		w.cells[i] = mem[i*size:][:size:size]
		clear(w.cells[i][:BlockSize])
		w.crcs[i] = 0
	}
	w.rowsDone = 0
}

// Segments is the number of slots.
func (w *StripeWriter) Segments() int { return w.segments }

// Slot returns the memory of segment i: exactly SegmentSize bytes, holding garbage until it is filled. The caller clears what
// it does not fill.
func (w *StripeWriter) Slot(i int) []byte {
	at := slotOffset(i / w.data)
	return w.cells[i%w.data][at:][:SegmentSize:SegmentSize]
}

// Sealed says that slots 0..n-1 are filled. Parity and checksums of the rows that became complete are computed now, while
// they are in the cache.
func (w *StripeWriter) Sealed(n int) error {
	w.sealed = n
	return w.protectRows(n / w.data)
}

func (w *StripeWriter) protectRows(to int) error {
	if to <= w.rowsDone {
		return nil
	}
	n := w.data + w.parity
	err := w.a.protectRange(w.cells[:n], w.data, slotOffset(w.rowsDone), slotOffset(to), w.crcs[:n])
	w.rowsDone = to
	return err
}

// Discard gives the memory back without writing.
func (w *StripeWriter) Discard() { w.buf.Release() }

// Commit writes the slots that were sealed and returns where they are once they are durable on every disk of the stripe. The
// writer is spent afterwards, whatever the outcome. The stripe means nothing until a record names it: its band is pinned, and
// the caller unpins it when the record was appended, or never will be.
func (w *StripeWriter) Commit(ctx context.Context) (Stripe, error) {
	if w.sealed == 0 {
		panic("disk: commit of an empty stripe")
	}
	var ops []blockdev.Op
	defer func() { release(&w.buf, ops) }()
	if err := w.shrink(); err != nil {
		return Stripe{}, err
	}
	for {
		s, err := w.try(ctx, &ops)
		fence, shape := (*fenceError)(nil), (*shapeError)(nil)
		switch {
		case errors.As(err, &fence):
			if err := w.a.log.fail(fence.disks); err != nil {
				return Stripe{}, err
			}
			if slices.ContainsFunc(ops, func(o blockdev.Op) bool { return o.Stuck }) {
				shape = &shapeError{data: w.data, parity: w.parity}
			}
		case !errors.As(err, &shape):
			return s, err
		}
		if shape != nil {
			err := w.reshape(ctx, *shape, ops)
			ops = nil // the memory they named is given up
			if err != nil {
				return Stripe{}, err
			}
		}
	}
}

// shrink drops slots that were not used and completes parity and checksums: missing segments of the last row are zeros.
func (w *StripeWriter) shrink() error {
	if w.sealed < w.segments {
		used := w.sealed
		w.segments = used
		if used < w.data { // fewer segments than cells: the parity of the whole row is not computed yet
			w.cells, w.data = narrow(w.cells, w.data, used, w.parity), used
		}
		size := w.cellBytes()
		for i := range w.data + w.parity {
			w.cells[i] = w.cells[i][:size:size]
		}
	}
	for i := w.segments; i < w.rows()*w.data; i++ {
		clear(w.Slot(i))
	}
	return w.protectRows(w.rows())
}

// narrow keeps the first used data cells and the parity cells behind them.
func narrow(cells [MaxWidth][]byte, data, used, parity int) [MaxWidth][]byte {
	copy(cells[used:], cells[data:data+parity])
	return cells
}

// try writes the stripe once, in a place of its own. Disks that failed come as a fenceError.
func (w *StripeWriter) try(ctx context.Context, ops *[]blockdev.Op) (Stripe, error) {
	a := w.a
	a.rlockGate() // a new epoch waits for writes of the old one to end
	defer a.gate.RUnlock()
	b, err := a.bulk.reserve(ctx, a, w.reserved, func(width, parity int) (uint32, error) {
		if w.data+w.parity > width || w.parity != parity {
			return 0, &shapeError{data: min(width-parity, w.segments), parity: parity}
		}
		return uint32(w.cellBytes() / BlockSize), nil
	})
	if err != nil {
		return Stripe{}, err
	}
	written := false
	defer func() { a.bulk.landed(b, written) }()
	h := header{
		kind: kindBulk, data: uint8(w.data), parity: uint8(w.parity), width: uint8(len(b.band.members)),
		rot: uint8(rotation(b.band.num, b.off, len(b.band.members))), band: b.band.num, stripe: b.num, epoch: b.band.epoch,
		mark: a.log.acked.Load(), off: b.off, blocks: uint32(w.cellBytes() / BlockSize), writtenMS: a.now().UnixMilli(),
	}
	if !a.opt.faults.noNonce {
		a.random(h.nonce[:])
	}
	n := w.data + w.parity
	*ops = a.sealWith(w.cells[:n], &h, w.crcs[:n], b.band)
	if err := a.group.Run(*ops); err != nil {
		return Stripe{}, err
	}
	if failed := a.failedDisks(*ops); len(failed) > 0 {
		return Stripe{}, &fenceError{disks: failed, err: firstError(*ops)}
	}
	written = true
	if !w.reserved {
		a.schedule.calls.Add(1)
	}
	return Stripe{Band: b.band.num, Off: b.off, Data: uint8(w.data), Segments: uint16(w.segments)}, nil
}

// shapeError says that a stripe must be laid out anew, for this number of cells, before it fits the open band.
type shapeError struct{ data, parity int }

func (e *shapeError) Error() string {
	return fmt.Sprintf("stripe must be laid out as %d+%d cells", e.data, e.parity)
}

// reshape lays the segments out anew: disks have left since the stripe was begun, or the kernel still holds its memory. They wait
// outside of all arenas meanwhile, for were every stripe to hold its memory and ask for more, none would get any; and their new
// memory is the kind whose holders never wait for bulk memory, which may all be taken by stripes that are filled behind this one.
func (w *StripeWriter) reshape(ctx context.Context, to shapeError, ops []blockdev.Op) error {
	segs := make([]byte, w.segments*SegmentSize)
	for i := range w.segments {
		copy(segs[i*SegmentSize:], w.Slot(i))
	}
	release(&w.buf, ops)
	w.buf = blockdev.Buf{}
	w.data, w.parity = to.data, to.parity
	if w.cellBytes() > int(w.a.geo.ExtentSize)-BlockSize {
		return fmt.Errorf("lay out %d segments over %d cells: %w", w.segments, w.data, ErrTooLarge)
	}
	buf, err := w.a.rebuild.Get(ctx, (w.data+w.parity)*w.cellBytes())
	if err != nil {
		return fmt.Errorf("get stripe buffers: %w", err)
	}
	w.buf = buf
	w.cut()
	for i := range w.rows() * w.data {
		if i < w.segments {
			copy(w.Slot(i), segs[i*SegmentSize:])
		} else {
			clear(w.Slot(i))
		}
	}
	return w.protectRows(w.rows())
}

// maxBulkAhead bounds how many places are handed out from the oldest one on whose stripe is still on its way. Recovery looks so far
// behind a hole for stripes that landed.
const maxBulkAhead = 32

// bulkStream hands out places in the bulk bands.
type bulkStream struct {
	lock     chan struct{} // capacity 1: held while a place is taken, also across the opening of a band
	band     *band         // guarded by lock
	reserved bool          // band comes from the reserve; guarded by lock
	next     uint64        // number of the last place; written under lock and mu

	mu      sync.Mutex // guards all below, and next
	flying  []uint64   // numbers of places whose stripes are on their way, ascending
	spoilt  *band      // a stripe failed in it: what lies behind must not be handed out
	changed chan struct{}
}

// bulkPlace is where a stripe goes.
type bulkPlace struct {
	band *band
	off  uint32
	num  uint64
}

// reserve takes a place in the open bulk band, or opens the next. blocks is asked for the cell length in a band of the given
// width and parity.
func (s *bulkStream) reserve(ctx context.Context, a *Array, essential bool, blocks func(width, parity int) (uint32, error)) (bulkPlace, error) {
	if err := a.acquire(ctx, s.lock); err != nil {
		return bulkPlace{}, err
	}
	defer func() { <-s.lock }()
	for {
		if wait := s.full(); wait != nil {
			if err := a.await(ctx, wait); err != nil {
				return bulkPlace{}, err
			}
			continue
		}
		if s.band == nil || s.band.epoch != a.epochNow() || s.isSpoilt(s.band) {
			if err := s.openBand(a, essential); err != nil {
				return bulkPlace{}, err
			}
		}
		if s.reserved && a.full.Load() && !essential {
			return bulkPlace{}, fmt.Errorf("reserve stripe: %w", ErrFull)
		}
		n, err := blocks(len(s.band.members), s.band.parity)
		if err != nil {
			return bulkPlace{}, err
		}
		if s.band.end+n > a.geo.extentBlocks() {
			s.leaveBand()
			continue
		}
		p := bulkPlace{band: s.band, off: s.band.end, num: s.launched()}
		s.band.pins.Add(1) // until landed, or what Commit promises
		s.band.end += n
		a.openAhead(s.band)
		return p, nil
	}
}

// openBand goes on in another band; lock is held.
func (s *bulkStream) openBand(a *Array, essential bool) error {
	s.leaveBand()
	b, err := a.nextBand(kindBulk, false)
	reserved := errors.Is(err, ErrFull) && essential
	if reserved {
		b, err = a.nextBand(kindBulk, true)
	}
	if err != nil {
		return err
	}
	s.band, s.reserved = b, reserved
	return nil
}

func (s *bulkStream) leaveBand() {
	if s.band != nil {
		s.band.open.Store(false)
		s.band = nil
	}
}

// full returns what to wait for while no more places may be handed out, nil when one may.
func (s *bulkStream) full() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flying) == 0 || s.next-s.flying[0] < maxBulkAhead-1 {
		return nil
	}
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// isSpoilt reports whether the last stripe that failed lies in the band.
func (s *bulkStream) isSpoilt(b *band) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spoilt != nil && s.spoilt.num == b.num
}

// launched numbers the next place.
func (s *bulkStream) launched() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	s.flying = append(s.flying, s.next)
	return s.next
}

// landed says that the stripe in p is written, or never will be.
func (s *bulkStream) landed(p bulkPlace, written bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := slices.BinarySearch(s.flying, p.num)
	s.flying = slices.Delete(s.flying, i, i+1)
	if !written {
		s.spoilt = p.band
		p.band.unpin()
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// oldest is the first number whose stripe may not be written yet.
func (s *bulkStream) oldest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flying) > 0 {
		return s.flying[0]
	}
	return s.next + 1
}
