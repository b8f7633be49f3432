package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"coffer/disk"
	"coffer/object/internal/seal"
)

// maxReadSegments is how many segments are read from the disks at once: 2 MiB. With one more read under way, a reader has up to
// 4 MiB of the engine's buffers.
const maxReadSegments = 32

// readHold is how long a client may take over one read. All readers share the engine's buffers: a client that takes its bytes slowly,
// or not at all, must not keep them from the others.
const readHold = time.Second

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

// chunk returns the next read, of at most that many segments.
func (p *plan) chunk(most int) (c chunk, ok bool) {
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
			c.packed, c.n = true, min(int(last-p.next)+1, most)
		} else {
			for p.next >= p.base+int64(sp.stream.stripes[p.stripe].Segments) {
				p.base += int64(sp.stream.stripes[p.stripe].Segments)
				p.stripe++
			}
			c.stripe = sp.stream.stripes[p.stripe]
			c.at = int(p.next - p.base)
			c.n = min(int(c.stripe.Segments)-c.at, int(last-p.next)+1, most)
		}
		p.next += int64(c.n)
		return c, true
	}
	return chunk{}, false
}

// rewind makes segment i of c the next one.
func (p *plan) rewind(c *chunk, i int) {
	p.span, p.next, p.stripe, p.base = c.span, c.index+int64(i), 0, 0
}

// fetched is a read that has ended.
type fetched struct {
	view View
	err  error
}

// reader implements Reader. It keeps the context of the Get that made it, because io.Reader has no place for one.
//
// A reader is slow when its client has not taken a read within the hold time. It gives its buffers back then, and from there on reads
// one segment at a time, which it opens at once: so it has buffers during I/O alone. It is fast again when its client takes as many
// segments as a full read has in half the hold time.
type reader struct {
	found
	s      *Store
	ctx    context.Context
	obj    Object
	key    [32]byte // the object's
	off, n int64
	one    [1]span // spans, when there is just one

	stream   *seal.Stream // of span streamOf
	streamOf int
	buf      *segment
	plain    []byte // opened and not yet taken
	err      error

	// mu guards all below. The reader's goroutine holds it for whole calls, also across I/O, but not while its client takes a segment.
	mu      sync.Mutex
	plan    plan
	cur     chunk
	view    View // of cur; nil: none
	i       int  // next segment of cur
	ahead   chunk
	flying  bool         // ahead is being read
	landed  chan fetched // takes its result
	got     time.Time    // when cur was read
	timer   *time.Timer  // nil: never needed
	armed   bool         // timer runs
	shed    sync.WaitGroup
	slow    bool
	taken   int           // segments, of maxReadSegments that the pace of a slow client is judged by
	waiting time.Duration // for the client, over these
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
	r.mu.Lock()
	if r.err == nil {
		r.err = ErrClosed
	}
	if r.timer != nil {
		r.timer.Stop() // if it runs already it finds nothing
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
	r.mu.Unlock()
	r.shed.Wait()
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
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	if r.slow {
		r.pace()
	}
	if r.view == nil {
		if r.err = r.nextChunk(); r.err != nil {
			return r.err
		}
	}
	if r.err = r.openSegment(); r.err != nil {
		r.plain = nil
		return r.err
	}
	if r.i++; r.i == r.cur.n {
		r.view.Release()
		r.view = nil
	}
	return nil
}

// nextChunk waits for the read that is under way, or starts one, and has the one after it begin; mu is held.
func (r *reader) nextChunk() error {
	var f fetched
	if r.flying {
		f, r.flying = <-r.landed, false
		r.cur = r.ahead
	} else {
		most := maxReadSegments
		if r.slow {
			most = 1
		}
		c, ok := r.plan.chunk(most)
		if !ok {
			return io.EOF
		}
		r.cur = c
		f = r.fetch(c)
	}
	if f.err != nil {
		return fmt.Errorf("read object %q: %w", r.obj.Key, f.err)
	}
	r.view, r.i, r.got = f.view, 0, time.Now()
	if r.slow {
		return nil
	}
	if c, ok := r.plan.chunk(maxReadSegments); ok {
		if r.landed == nil {
			r.landed = make(chan fetched, 1)
		}
		r.ahead, r.flying = c, true
		landed := r.landed
		go func() { landed <- r.fetch(c) }()
	}
	if !r.armed && (r.flying || r.cur.n > 1) {
		r.armed = true
		if r.timer == nil {
			r.timer = time.AfterFunc(r.s.opt.readHold, r.expire)
		} else {
			r.timer.Reset(r.s.opt.readHold)
		}
	}
	return nil
}

// expire gives the buffers back if the client has had them for too long, those of the read ahead as soon as it lands, and has the timer
// come again if not.
func (r *reader) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.armed = false
	if r.view == nil && !r.flying {
		return
	}
	if left := r.s.opt.readHold - time.Since(r.got); left > 0 {
		r.armed = true
		r.timer.Reset(left)
		return
	}
	r.slow, r.taken, r.waiting = true, 0, 0
	if r.flying {
		r.plan.rewind(&r.ahead, 0)
		landed := r.landed
		r.flying, r.landed = false, nil
		r.shed.Go(func() {
			if f := <-landed; f.err == nil {
				f.view.Release()
			}
		})
	}
	if r.view != nil {
		r.plan.rewind(&r.cur, r.i)
		r.view.Release()
		r.view = nil
	}
}

// pace decides whether a slow reader is fast again; mu is held.
func (r *reader) pace() {
	r.waiting += time.Since(r.got)
	if r.taken++; r.taken == maxReadSegments {
		r.slow = r.waiting > r.s.opt.readHold/2
		r.taken, r.waiting = 0, 0
	}
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
