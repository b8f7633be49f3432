package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"coffer/disk"
	"coffer/object/internal/seal"
)

// maxReadSegments is how many segments are read from the disks at once: 2 MiB. With one more read under way, a slow client pins
// 4 MiB of the engine's buffers.
const maxReadSegments = 32

// span is a part of the plaintext that is wanted: bytes from..to-1 of one stream.
type span struct {
	stream   *stream
	part     *partRecord // nil: the stream is sealed under the object's key itself
	from, to int64
}

// chunk is one read.
type chunk struct {
	span   int // index of its span
	packed bool
	stripe disk.Stripe
	at     int   // first segment within the stripe, or within the packed bytes
	n      int   // segments
	index  int64 // of the first segment in its stream
}

// plan hands out the reads that cover the spans, in order.
type plan struct {
	spans  []span
	span   int
	next   int64 // next segment of the stream; -1: at the span's first
	stripe int
	base   int64 // first segment of that stripe
}

func (p *plan) chunk() (c chunk, ok bool) {
	for p.span < len(p.spans) {
		sp := &p.spans[p.span]
		first, _ := sp.stream.alg.Locate(sp.from)
		last, _ := sp.stream.alg.Locate(max(sp.to-1, 0))
		if p.next < 0 {
			p.next = first
		}
		if sp.from >= sp.to || p.next > last {
			p.span, p.next, p.stripe, p.base = p.span+1, -1, 0, 0
			continue
		}
		c = chunk{span: p.span, index: p.next, at: int(p.next)}
		if len(sp.stream.stripes) == 0 {
			c.packed, c.n = true, int(last-p.next)+1
		} else {
			for p.next >= p.base+int64(sp.stream.stripes[p.stripe].Segments) {
				p.base += int64(sp.stream.stripes[p.stripe].Segments)
				p.stripe++
			}
			c.stripe = sp.stream.stripes[p.stripe]
			c.at = int(p.next - p.base)
			c.n = min(int(c.stripe.Segments)-c.at, int(last-p.next)+1, maxReadSegments)
		}
		p.next += int64(c.n)
		return c, true
	}
	return chunk{}, false
}

// fetched is a read that has ended.
type fetched struct {
	view View
	err  error
}

// reader implements Reader. It keeps the context of the Get that made it, because io.Reader has no place for one.
type reader struct {
	found
	s      *Store
	ctx    context.Context
	obj    Object
	key    [32]byte // the object's
	off, n int64
	one    [1]span // spans, when there is just one
	plan   plan

	cur      chunk
	view     View
	i        int // next segment of cur
	ahead    chunk
	flying   bool         // ahead is being read
	landed   chan fetched // takes its result
	stream   *seal.Stream // of span streamOf
	streamOf int
	buf      *segment
	plain    []byte // opened and not yet taken
	err      error
}

// Object describes the object.
func (r *reader) Object() Object { return r.obj }

// Range returns the first byte and the length of what will be read.
func (r *reader) Range() (off, n int64) { return r.off, r.n }

// Read reads from the next segment.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.plain) == 0 {
		if err := r.advance(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// WriteTo writes all that is left, a segment at a time.
func (r *reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if len(r.plain) == 0 {
			if err := r.advance(); err == io.EOF {
				return total, nil
			} else if err != nil {
				return total, err
			}
		}
		n, err := w.Write(r.plain)
		total += int64(n)
		r.plain = r.plain[n:]
		if err != nil {
			return total, err
		}
	}
}

// Close gives the buffers back.
func (r *reader) Close() error {
	if r.err == nil {
		r.err = ErrClosed
	}
	if r.view != nil {
		r.view.Release()
		r.view = nil
	}
	if r.flying {
		if f := <-r.landed; f.err == nil {
			f.view.Release()
		}
		r.flying = false
	}
	if r.buf != nil {
		freeSegment(r.buf)
		r.buf, r.plain = nil, nil
	}
	clear(r.key[:])
	r.unpin()
	return nil
}

// advance opens the next segment into plain: io.EOF at the end. Errors stick.
func (r *reader) advance() error {
	if r.err != nil {
		return r.err
	}
	if r.view == nil || r.i == r.cur.n {
		if r.err = r.nextChunk(); r.err != nil {
			return r.err
		}
	}
	if r.err = r.openSegment(); r.err != nil {
		r.plain = nil
		return r.err
	}
	r.i++
	return nil
}

// nextChunk waits for the read that is under way, or starts one, and has the one after it begin.
func (r *reader) nextChunk() error {
	if r.view != nil {
		r.view.Release()
		r.view = nil
	}
	var f fetched
	if r.flying {
		f, r.flying = <-r.landed, false
		r.cur = r.ahead
	} else {
		c, ok := r.plan.chunk()
		if !ok {
			return io.EOF
		}
		r.cur = c
		f = r.fetch(c)
	}
	if f.err != nil {
		return fmt.Errorf("read object %q: %w", r.obj.Key, f.err)
	}
	r.view, r.i = f.view, 0
	if c, ok := r.plan.chunk(); ok {
		if r.landed == nil {
			r.landed = make(chan fetched, 1)
		}
		r.ahead, r.flying = c, true
		go func() { r.landed <- r.fetch(c) }()
	}
	return nil
}

// fetch does one read. It touches nothing of r that changes.
func (r *reader) fetch(c chunk) (f fetched) {
	if c.packed {
		f.view, f.err = r.log.ReadPacked(r.ctx, r.loc)
	} else {
		f.view, f.err = r.log.ReadStripe(r.ctx, c.stripe, c.at, c.n)
	}
	return f
}

// openSegment opens segment r.i of the current chunk and cuts it to what is wanted.
func (r *reader) openSegment() error {
	sp := &r.plan.spans[r.cur.span]
	if r.stream == nil || r.streamOf != r.cur.span {
		if err := r.openStream(sp); err != nil {
			return err
		}
		r.streamOf = r.cur.span
	}
	if r.buf == nil {
		r.buf = segments.Get().(*segment)
	}
	index := r.cur.index + int64(r.i)
	plain, err := r.openAt(sp, index)
	if err != nil {
		return fmt.Errorf("read object %q: segment %d: %w", r.obj.Key, index, err)
	}
	start := index * int64(r.stream.PlainSize())
	lo, hi := max(sp.from-start, 0), min(sp.to-start, int64(len(plain)))
	r.plain = plain[lo:hi]
	r.s.stats.opened.Add(hi - lo)
	return nil
}

// openStream derives the keys of a span.
func (r *reader) openStream(sp *span) (err error) {
	key := r.key
	defer clear(key[:])
	if sp.part != nil {
		if key, err = r.s.partKey(&r.key, r.rec.bucket, r.rec.version, sp.part); err != nil {
			return fmt.Errorf("read part %d of %q: %w", sp.part.number, r.obj.Key, corrupt(err))
		}
	}
	r.stream, err = r.s.openStream(sp.stream, &key)
	return err
}

// openAt opens one segment. If its tag fails the disk engine looks for other combinations of cells, until one opens.
func (r *reader) openAt(sp *span, index int64) ([]byte, error) {
	piece := r.i
	if r.cur.packed {
		piece = 0
	}
	plain, err := r.tryOpen(sp, index, r.view.Bytes(piece))
	if err == nil {
		return plain, nil
	}
	r.s.stats.repairs.Add(1)
	check := func(p []byte) error {
		_, err := r.tryOpen(sp, index, p)
		return err
	}
	if err := r.view.Repair(r.ctx, piece, check); err != nil {
		r.s.stats.corrupt.Add(1)
		return nil, err
	}
	// Opened again from what the view now holds: only bytes that pass here are ever returned.
	if plain, err = r.tryOpen(sp, index, r.view.Bytes(piece)); err != nil {
		return nil, corrupt(err)
	}
	return plain, nil
}

// tryOpen opens a segment from p, its slot or the packed bytes, into r.buf.
func (r *reader) tryOpen(sp *span, index int64, p []byte) ([]byte, error) {
	final := index == sp.stream.alg.Segments(sp.stream.size)-1
	want, sealed := sp.stream.alg.SegmentLens(sp.stream.size, index)
	if r.cur.packed {
		p = p[min(len(p), int(index)*seal.SegmentSize):]
	}
	if len(p) < sealed {
		return nil, errShortData
	}
	t := time.Now()
	plain, err := r.stream.Open(r.buf.mem[:], uint64(index), final, p[:sealed])
	r.s.meters[sp.stream.alg].open.Add(want, time.Since(t))
	if err == nil && len(plain) != want {
		return nil, errShortData
	}
	return plain, err
}

// errShortData: fewer bytes than the record says.
var errShortData = errors.New("stored bytes are shorter than their record says")

// corrupt marks an error as damage to stored bytes.
func corrupt(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// resolve turns a requested range into offset and length within size bytes.
func (g *Range) resolve(size int64) (off, n int64, err error) {
	switch {
	case g == nil:
		return 0, size, nil
	case g.First < 0: // suffix
		if g.Last <= 0 || size == 0 {
			return 0, 0, ErrRange
		}
		n = min(g.Last, size)
		return size - n, n, nil
	case g.First >= size, g.Last >= 0 && g.Last < g.First:
		return 0, 0, ErrRange
	case g.Last < 0 || g.Last >= size:
		return g.First, size - g.First, nil
	}
	return g.First, g.Last - g.First + 1, nil
}
