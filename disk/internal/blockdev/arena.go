package blockdev

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
)

// Sizes of the arena.
const (
	// MaxBuf is the largest buffer: a stripe of 32 cells of 1 MiB and a header block each, with room to spare.
	MaxBuf = 40 << 20
	// DefaultArena is the limit of an arena that is given none.
	DefaultArena = 256 << 20
	// smallMax is the largest buffer cut from a slab; larger ones are whole numbers of Align, so they waste less than that.
	smallMax = 64 << 10
	// slabSize is one huge page.
	slabSize = hugePage
	// regionSize is what is mapped at a time, unless one buffer needs more.
	regionSize   = 32 << 20
	smallClasses = 5 // 4, 8, 16, 32 and 64 KiB
)

// ArenaOptions configures NewArena.
type ArenaOptions struct {
	Limit int64 // bytes handed out at any time; 0: DefaultArena
}

// Arena hands out buffers for direct I/O from memory that is aligned to huge pages, outside of the Go heap and left out of
// core dumps. Buffers up to 64 KiB are rounded up to a power of two and cut from slabs; larger ones to a multiple of Align.
//
// Memory is mapped on demand and kept. Fragmentation may map more than Limit, never more than twice Limit plus one region.
// Contents are those of the buffer's last user. Safe for concurrent use.
type Arena struct {
	mu      sync.Mutex // guards everything below
	limit   int64
	inUse   int64
	mapped  int64
	regions []*region
	partial [smallClasses][]*slab // slabs with free pieces
	first   *waiter               // those that wait for memory, in order of arrival
	last    *waiter
	closed  bool
}

// region is one mapping. Its free spans are sorted by offset, and no two of them touch.
type region struct {
	mem  []byte
	free []span
}

type span struct{ off, n int }

// slab is a huge page cut into pieces of one size.
type slab struct {
	mem   []byte
	reg   *region
	off   int
	class int
	free  []uint16 // numbers of the free pieces
	at    int      // index in Arena.partial, -1 when full
}

type waiter struct {
	n          int
	prev, next *waiter
	ready      chan struct{} // closed once buf is set or the arena closed
	buf        Buf
}

// Buf is a buffer of an Arena. Its holder calls Release or Abandon once; copies of a Buf are the same buffer.
type Buf struct {
	mem   []byte // as asked for
	size  int    // as accounted
	arena *Arena
	slab  *slab
	reg   *region
	off   int
}

// NewArena makes an arena. It maps nothing yet.
func NewArena(opt ArenaOptions) *Arena {
	limit := opt.Limit
	if limit == 0 {
		limit = DefaultArena
	}
	return &Arena{limit: max(limit, Align)}
}

// Get returns a buffer of n bytes. While the limit does not allow it, Get waits its turn, first come first served, until
// buffers are released or ctx is done. It fails at once with ErrTooLarge when n exceeds MaxBuf or the limit.
func (a *Arena) Get(ctx context.Context, n int) (Buf, error) {
	if n <= 0 {
		panic(fmt.Sprintf("blockdev: buffer of %d bytes", n))
	}
	size := roundSize(n)
	a.mu.Lock()
	if n > MaxBuf || int64(size) > a.limit {
		limit := a.limit
		a.mu.Unlock()
		return Buf{}, fmt.Errorf("get buffer of %d bytes: %w: limit %d", n, ErrTooLarge, limit)
	}
	if a.closed {
		a.mu.Unlock()
		return Buf{}, fmt.Errorf("get buffer: arena %w", ErrClosed)
	}
	if a.first == nil {
		b, ok, err := a.take(n, size)
		if ok || err != nil {
			a.mu.Unlock()
			return b, err
		}
	}
	w := &waiter{n: n, ready: make(chan struct{}), prev: a.last}
	if a.last == nil {
		a.first = w
	} else {
		a.last.next = w
	}
	a.last = w
	a.mu.Unlock()

	select {
	case <-w.ready:
	case <-ctx.Done():
		a.mu.Lock()
		defer a.mu.Unlock()
		select {
		case <-w.ready: // served in the meantime: keep it, and let the caller see its ctx
		default:
			a.unlink(w)
			a.serve() // a large request may have held up smaller ones
			return Buf{}, fmt.Errorf("get buffer of %d bytes: %w", n, context.Cause(ctx))
		}
	}
	if w.buf.arena == nil {
		return Buf{}, fmt.Errorf("get buffer: arena %w", ErrClosed)
	}
	return w.buf, nil
}

// roundSize is what a buffer of n bytes takes.
func roundSize(n int) int {
	if n <= smallMax {
		return Align << classOf(n)
	}
	return (n + Align - 1) &^ (Align - 1)
}

// classOf is the class of small buffers for n bytes.
func classOf(n int) int { return bits.Len(uint(n-1) / Align) }

// take cuts a buffer, if limit and mapping allow it now.
func (a *Arena) take(n, size int) (Buf, bool, error) {
	if a.inUse+int64(size) > a.limit {
		return Buf{}, false, nil
	}
	b := Buf{size: size, arena: a}
	if size > smallMax {
		reg, off, err := a.cut(size)
		if reg == nil {
			return Buf{}, false, err
		}
		b.reg, b.off, b.mem = reg, off, reg.mem[off:off+n:off+n]
	} else {
		s, err := a.slabFor(classOf(n))
		if s == nil {
			return Buf{}, false, err
		}
		i := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		if len(s.free) == 0 {
			a.dropPartial(s)
		}
		b.slab, b.off = s, int(i)
		b.mem = s.mem[int(i)*size:][:n:n]
	}
	a.inUse += int64(size)
	return b, true, nil
}

// slabFor is a slab of the class with a free piece; nil when no memory may be mapped for one.
func (a *Arena) slabFor(class int) (*slab, error) {
	if p := a.partial[class]; len(p) > 0 {
		return p[len(p)-1], nil
	}
	reg, off, err := a.cut(slabSize)
	if reg == nil {
		return nil, err
	}
	s := &slab{mem: reg.mem[off : off+slabSize], reg: reg, off: off, class: class}
	s.free = make([]uint16, slabSize/(Align<<class))
	for i := range s.free {
		s.free[i] = uint16(len(s.free) - 1 - i)
	}
	a.addPartial(s)
	return s, nil
}

func (a *Arena) addPartial(s *slab) {
	s.at = len(a.partial[s.class])
	a.partial[s.class] = append(a.partial[s.class], s)
}

func (a *Arena) dropPartial(s *slab) {
	p := a.partial[s.class]
	last := p[len(p)-1]
	p[s.at], last.at = last, s.at
	a.partial[s.class] = p[:len(p)-1]
	s.at = -1
}

// cut takes the smallest free span that holds n bytes, mapping a region when there is none; nil when it may not.
func (a *Arena) cut(n int) (*region, int, error) {
	var best *region
	at := 0
	for _, r := range a.regions {
		for i, s := range r.free {
			if s.n >= n && (best == nil || s.n < best.free[at].n) {
				best, at = r, i
			}
		}
	}
	if best == nil {
		size := max(regionSize, (n+hugePage-1)&^(hugePage-1))
		if a.mapped > 0 && a.mapped+int64(size) > 2*a.limit+regionSize {
			return nil, 0, nil
		}
		mem, err := mapHuge(size)
		if err != nil {
			return nil, 0, fmt.Errorf("get buffer: %w", err)
		}
		best, at = &region{mem: mem, free: []span{{0, size}}}, 0
		a.regions = append(a.regions, best)
		a.mapped += int64(size)
	}
	s := &best.free[at]
	off := s.off
	s.off += n
	s.n -= n
	if s.n == 0 {
		best.free = append(best.free[:at], best.free[at+1:]...)
	}
	return best, off, nil
}

// join gives a span back to its region.
func (r *region) join(off, n int) {
	i := 0
	for i < len(r.free) && r.free[i].off < off {
		i++
	}
	touchesPrev := i > 0 && r.free[i-1].off+r.free[i-1].n == off
	touchesNext := i < len(r.free) && off+n == r.free[i].off
	switch {
	case touchesPrev && touchesNext:
		r.free[i-1].n += n + r.free[i].n
		r.free = append(r.free[:i], r.free[i+1:]...)
	case touchesPrev:
		r.free[i-1].n += n
	case touchesNext:
		r.free[i].off = off
		r.free[i].n += n
	default:
		r.free = append(r.free, span{})
		copy(r.free[i+1:], r.free[i:])
		r.free[i] = span{off, n}
	}
}

// Bytes is the memory of the buffer, nil after Release or Abandon.
func (b *Buf) Bytes() []byte { return b.mem }

// Release gives the buffer back. Nothing may use its memory afterwards. Releasing twice panics; the zero Buf is ignored.
func (b *Buf) Release() {
	if b.arena == nil {
		return
	}
	if b.mem == nil {
		panic("blockdev: buffer released twice")
	}
	b.mem = nil
	b.arena.put(b)
}

// Abandon gives up the buffer of a batch in which operations are Stuck: the memory goes back when the kernel has let go of
// all of them, and counts against the limit until then. Without stuck operations it is Release.
func (b *Buf) Abandon(ops []Op) {
	held := 0
	for i := range ops {
		if ops[i].Stuck && ops[i].hold != nil {
			held++
		}
	}
	if held == 0 {
		b.Release()
		return
	}
	if b.mem == nil {
		panic("blockdev: buffer released twice")
	}
	c := &abandoned{buf: *b, held: held}
	b.mem = nil
	for i := range ops {
		if ops[i].Stuck && ops[i].hold != nil {
			ops[i].hold.whenReleased(c.released)
		}
	}
}

// abandoned counts the holds on a buffer down.
type abandoned struct {
	mu   sync.Mutex
	buf  Buf
	held int
}

func (c *abandoned) released() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held--; c.held == 0 {
		c.buf.Release()
	}
}

func (a *Arena) put(b *Buf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inUse -= int64(b.size)
	if b.slab == nil {
		b.reg.join(b.off, b.size)
	} else {
		a.putPiece(b.slab, uint16(b.off))
	}
	if a.first != nil {
		a.serve()
	}
}

// putPiece gives a piece back to its slab, and an empty slab back to its region unless it is the last of its class.
func (a *Arena) putPiece(s *slab, i uint16) {
	s.free = append(s.free, i)
	if s.at < 0 {
		a.addPartial(s)
	}
	if len(s.free) == cap(s.free) && len(a.partial[s.class]) > 1 {
		a.dropPartial(s)
		s.reg.join(s.off, slabSize)
	}
}

// serve hands memory to those who wait, in order, until one must go on waiting.
func (a *Arena) serve() {
	for a.first != nil {
		w := a.first
		// A failed mapping is not this waiter's end: the next release tries again.
		b, ok, _ := a.take(w.n, roundSize(w.n))
		if !ok {
			return
		}
		w.buf = b
		a.unlink(w)
		close(w.ready)
	}
}

func (a *Arena) unlink(w *waiter) {
	if w.prev == nil {
		a.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		a.last = w.prev
	} else {
		w.next.prev = w.prev
	}
}

// Stats returns the bytes handed out, rounding and abandoned buffers included, and the limit.
func (a *Arena) Stats() (inUse, limit int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inUse, a.limit
}

// Close ends all waiting Gets with ErrClosed and unmaps the memory. With buffers still out it unmaps nothing and says so:
// the kernel may be writing into them.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for a.first != nil {
		w := a.first
		a.unlink(w)
		close(w.ready)
	}
	if a.inUse > 0 {
		return fmt.Errorf("close arena: %d bytes in use", a.inUse)
	}
	for _, r := range a.regions {
		if err := unmap(r.mem); err != nil {
			return fmt.Errorf("close arena: %w", err)
		}
	}
	a.regions, a.partial, a.mapped = nil, [smallClasses][]*slab{}, 0
	return nil
}
