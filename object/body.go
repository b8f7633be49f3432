package object

import (
	"context"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk"
	"coffer/object/internal/seal"
)

const (
	// maxInlineSegments is how large an object may be, in sealed segments, to travel whole with its record: 128 KiB.
	maxInlineSegments = 2
	// hashAhead is how many segments the MD5 goroutine may be behind.
	hashAhead = 8
	// maxEmptyReads bounds reads that return nothing.
	maxEmptyReads = 100
)

// segment is a buffer for the plaintext of one segment.
type segment struct {
	mem [seal.SegmentSize]byte
	n   int
}

// slab holds the sealed form of a small object.
type slab [maxInlineSegments * seal.SegmentSize]byte

var (
	segments = sync.Pool{New: func() any { return new(segment) }}
	slabs    = sync.Pool{New: func() any { return new(slab) }}
)

// freeSegment gives a buffer back. Plaintext does not outlive its use by more than the pool's reuse; it is not wiped, as the
// same bytes pass through socket buffers anyway.
func freeSegment(b *segment) { segments.Put(b) }

// source cuts a body into segments and checks its length.
type source struct {
	r     io.Reader
	plain int   // bytes in a full segment
	size  int64 // -1: unknown
	limit int64
	read  int64
	eof   bool
	queue [maxInlineSegments + 1]*segment // read and not yet taken
	n     int
}

// fill reads ahead until n segments wait or the body ends.
func (s *source) fill(n int) error {
	for s.n < n && !s.eof {
		b := segments.Get().(*segment)
		if err := s.readSegment(b); err != nil {
			freeSegment(b)
			return err
		}
		if b.n == 0 {
			freeSegment(b)
			break
		}
		s.queue[s.n] = b
		s.n++
	}
	return nil
}

// readSegment fills b. It does not use io.ReadFull, which gives a body's own io.ErrUnexpectedEOF and a clean end the same name.
func (s *source) readSegment(b *segment) error {
	b.n = 0
	for empty := 0; b.n < s.plain; {
		m, err := s.r.Read(b.mem[b.n:s.plain])
		b.n += m
		if err == io.EOF {
			s.eof = true
			break
		}
		if err != nil {
			return fmt.Errorf("read body: %w", err)
		}
		if m > 0 {
			empty = 0
		} else if empty++; empty > maxEmptyReads {
			return fmt.Errorf("read body: %w", io.ErrNoProgress)
		}
	}
	s.read += int64(b.n)
	switch {
	case s.read > s.limit, s.size >= 0 && s.read > s.size:
		return fmt.Errorf("read body: %d bytes: %w", s.read, ErrTooLarge)
	case s.eof && s.size >= 0 && s.read < s.size:
		return fmt.Errorf("read body: %d of %d bytes: %w", s.read, s.size, ErrShortBody)
	}
	return nil
}

// take returns the next segment and whether it is the last. fill(2) must have come before; nil when there is none.
func (s *source) take() (b *segment, final bool) {
	if s.n == 0 {
		return nil, true
	}
	b = s.queue[0]
	copy(s.queue[:], s.queue[1:s.n])
	s.n--
	return b, s.n == 0
}

func (s *source) close() {
	for _, b := range s.queue[:s.n] {
		freeSegment(b)
	}
	s.n = 0
}

// bodySpec says how a body is to be stored.
type bodySpec struct {
	size   int64 // -1: unknown
	limit  int64
	inline bool // small bodies may travel with the record
	md5    bool
	algo   Algo // checksum that is stored
	claim  Algo // another checksum that the client wants checked, or AlgoNone
	key    *[32]byte
	// reserved bodies may take space that is kept for compaction.
	reserved bool
}

// sealedBody is a body that is durable, or lies in data to become durable with its record.
type sealedBody struct {
	stream stream
	slab   *slab // of data; given back by release
	data   []byte
	sums   Sums     // with the checksum that the client wants checked
	stored Checksum // the one that is stored
	pinned stripeSet
}

// release gives up memory and pins, once the record that names the body was appended or never will be.
func (b *sealedBody) release() {
	b.pinned.unpin()
	if b.slab != nil {
		slabs.Put(b.slab)
		b.slab, b.data = nil, nil
	}
}

// sealer takes one body from the client to the disks.
type sealer struct {
	s      *Store
	spec   *bodySpec
	src    source
	stream *seal.Stream
	meters sealMeters
	sum    checksummer
	claim  checksummer
	md5    hash.Hash // nil: not wanted
}

// sealBody reads a body to its end, seals it under spec.key and a fresh data id, and computes its digests. Bulk stripes are
// durable when it returns. On error nothing is kept.
func (s *Store) sealBody(ctx context.Context, body io.Reader, spec *bodySpec) (out sealedBody, err error) {
	w := sealer{s: s, spec: spec, meters: s.meters[s.alg]}
	out.stream = stream{alg: s.alg, id: newID()}
	if w.stream, err = s.openStream(&out.stream, spec.key); err != nil {
		return out, err
	}
	w.src = source{r: body, plain: w.stream.PlainSize(), size: spec.size, limit: spec.limit}
	defer w.src.close()
	w.sum, w.claim = s.digests.checksum(spec.algo), s.digests.checksum(spec.claim)
	defer w.sum.close()
	defer w.claim.close()
	if spec.md5 {
		w.md5 = s.digests.md5.Get().(hash.Hash)
		defer s.digests.md5.Put(w.md5)
		w.md5.Reset()
	}
	if err = w.run(ctx, &out); err != nil {
		return out, err
	}
	out.stream.size = w.src.read
	out.stored = w.sum.sum()
	out.sums = Sums{Size: w.src.read, Checksum: out.stored}
	if spec.claim != AlgoNone {
		out.sums.Checksum = w.claim.sum()
	}
	if w.md5 != nil {
		out.sums.MD5 = w.md5.Sum(make([]byte, 0, 16))
	}
	s.stats.sealed.Add(w.src.read)
	return out, nil
}

func (w *sealer) run(ctx context.Context, out *sealedBody) error {
	if w.spec.inline && w.spec.size <= maxInlineSegments*int64(w.src.plain) {
		if err := w.src.fill(maxInlineSegments + 1); err != nil {
			return err
		}
		if w.src.n <= maxInlineSegments {
			return w.inline(out)
		}
	}
	return w.bulk(ctx, out)
}

// inline seals what the source holds, which is all of it, into a slab.
func (w *sealer) inline(out *sealedBody) error {
	if w.src.n == 0 {
		return nil
	}
	out.slab = slabs.Get().(*slab)
	n := 0
	for i := uint64(0); ; i++ {
		b, final := w.src.take()
		if b == nil {
			break
		}
		w.digest(b)
		if w.md5 != nil {
			w.hashMD5(b)
		}
		m, err := w.seal(out.slab[n:], i, final, b)
		freeSegment(b)
		if err != nil {
			out.release()
			return err
		}
		n += m
	}
	out.data = out.slab[:n]
	return nil
}

func (w *sealer) seal(dst []byte, i uint64, final bool, b *segment) (int, error) {
	t := time.Now()
	n, err := w.stream.Seal(dst, i, final, b.mem[:b.n])
	w.meters.seal.Add(b.n, time.Since(t))
	return n, err
}

func (w *sealer) digest(b *segment) {
	w.sum.update(b.mem[:b.n])
	w.claim.update(b.mem[:b.n])
}

func (w *sealer) hashMD5(b *segment) {
	t := time.Now()
	w.md5.Write(b.mem[:b.n])
	w.s.digests.mMD5.Add(b.n, time.Since(t))
}

// bulk seals the source into stripes. MD5, several times slower than all else together, runs in a goroutine of its own that
// gives the buffers back.
func (w *sealer) bulk(ctx context.Context, out *sealedBody) (err error) {
	log, err := w.s.disk()
	if err != nil {
		return err
	}
	free := freeSegment
	if w.md5 != nil {
		queue := make(chan *segment, hashAhead)
		var wg sync.WaitGroup
		wg.Go(func() {
			for b := range queue {
				w.hashMD5(b)
				freeSegment(b)
			}
		})
		free = func(b *segment) { queue <- b }
		defer wg.Wait()
		defer close(queue)
	}
	sw := stripes{ctx: ctx, log: log, hold: w.s.opt.stripeHold, reserved: w.spec.reserved,
		written: &w.s.written, waiting: &w.s.waiting, done: stripeSet{log: log}}
	defer sw.abort()
	for i := int64(0); ; i++ {
		if err := w.src.fill(2); err != nil {
			return err
		}
		b, final := w.src.take()
		if b == nil {
			break
		}
		left := int64(-1)
		if w.spec.size >= 0 {
			left = out.stream.alg.Segments(w.spec.size) - i
		}
		slot, err := sw.slot(left)
		if err != nil {
			freeSegment(b)
			return err
		}
		w.digest(b)
		n, err := w.seal(slot, uint64(i), final, b)
		free(b)
		if err != nil {
			return err
		}
		clear(slot[n:]) // the slot holds bytes of an earlier use
		if err := sw.filled(); err != nil {
			return err
		}
	}
	if out.pinned, err = sw.finish(); err != nil {
		return err
	}
	out.stream.stripes = out.pinned.stripes
	return nil
}

// stripeSet is stripes that no record names yet. Each pins its band.
type stripeSet struct {
	log     Log
	stripes []disk.Stripe
}

func (s *stripeSet) unpin() {
	for _, st := range s.stripes {
		s.log.Unpin(st.Band)
	}
	s.stripes = nil
}

// maxFlying is how many stripes of one stream may be on their way to the disks while the next is filled: with two, the disks
// need not wait for the processor nor the processor for the disks.
const maxFlying = 2

// stripeHold is how long a stripe may be filled. Its memory is one of a few dozen pieces that all uploads share: a client that sends
// slowly, or not at all, must not keep it from the others. While others wait for such a piece it is a tenth of that.
const stripeHold = 10 * time.Second

// stripeWait is how long a client's stream waits for memory.
const stripeWait = 30 * time.Second

// stripes writes the slots of one stream to bulk stripes: one is filled while at most maxFlying are on their way to the disks. A stripe
// that is not full after the hold time is committed as it is, also while its stream waits for the client.
type stripes struct {
	ctx      context.Context
	log      Log
	hold     time.Duration
	reserved bool // may take space that is kept for compaction
	written  *tally
	waiting  *atomic.Int32 // how many streams wait for memory

	// mu guards all below. The stream's goroutine holds it for whole calls, and the timer of a stripe while it launches it: neither has
	// anything else to do meanwhile. It is not held while the stream waits for its client.
	mu      sync.Mutex
	w       StripeWriter // being filled; nil: none
	filling bool         // a slot of w is in the stream's hands
	late    bool         // w was held for too long
	begun   time.Time    // when w was taken
	slots   int          // in w
	used    int          // of them
	most    int          // slots that the next stripe may have; 0: all
	timer   *time.Timer  // of w
	timers  sync.WaitGroup
	err     error // of a launch by the timer
	done    stripeSet
	flying  []chan committed // oldest first
}

type committed struct {
	stripe disk.Stripe
	err    error
}

// slot returns the memory of the next segment, which is there to be put in. left is how many segments are to come, this one
// included, -1 when unknown. A stream of known length is cut into stripes of equal size, so that none is a costly small one.
func (s *stripes) slot(left int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	for len(s.flying) > 0 && len(s.flying[0]) > 0 { // a stripe that failed ends the stream now and not when the client is done
		if err := s.land(); err != nil {
			return nil, err
		}
	}
	if s.w == nil {
		if err := s.begin(left); err != nil {
			return nil, err
		}
	}
	s.filling = true
	return s.w.Slot(s.used), nil
}

// begin takes memory for a stripe; mu is held.
func (s *stripes) begin(left int64) error {
	n := int64(s.log.MaxStripeSegments())
	if s.most > 0 {
		n = min(n, int64(s.most))
	}
	if left >= 0 {
		full := (left + n - 1) / n
		n = (left + full - 1) / full
	}
	ctx, newStripe := s.ctx, s.log.NewReservedStripe
	if !s.reserved {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, stripeWait, ErrOverloaded)
		defer cancel()
		newStripe = s.log.NewStripe
	}
	s.waiting.Add(1)
	w, err := newStripe(ctx, int(n))
	s.waiting.Add(-1)
	if err != nil {
		return err
	}
	s.w, s.begun, s.slots, s.used, s.late = w, time.Now(), int(n), 0, false
	s.timers.Add(1)
	s.timer = time.AfterFunc(s.hold/10, func() {
		defer s.timers.Done()
		s.expire(w)
	})
	return nil
}

// expire launches a stripe that was held for too long, or leaves that to filled while the stream works on it. It looks ten times in the
// hold time whether others wait.
func (s *stripes) expire(w StripeWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w != w || s.timer == nil { // it is being launched, or could not be
		return
	}
	if left := s.hold - time.Since(s.begun); left > 0 && s.waiting.Load() == 0 {
		s.timers.Add(1)
		s.timer.Reset(min(left, s.hold/10))
		return
	}
	if s.late = true; !s.filling {
		s.err = s.launch()
	}
}

// filled says that the slot holds its segment.
func (s *stripes) filled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used++
	if err := s.w.Sealed(s.used); err != nil {
		return err
	}
	s.filling = false
	if s.used < s.slots && !s.late {
		return nil
	}
	return s.launch()
}

// launch commits the stripe in the background; mu is held. A stream that did not fill it in time is given twice the room that it used
// the next time, and so on until its stripes are full again.
func (s *stripes) launch() error {
	s.stopTimer()
	s.most = 2 * s.used
	for len(s.flying) >= maxFlying {
		if err := s.land(); err != nil {
			return err
		}
	}
	w, landed := s.w, make(chan committed, 1)
	s.w, s.flying = nil, append(s.flying, landed)
	go func() {
		st, err := w.Commit(s.ctx)
		if err == nil {
			s.written.add(st.Band, st.Footprint(), false, nil)
		}
		landed <- committed{st, err}
	}()
	return nil
}

// stopTimer ends the timer of the stripe being filled, unless it runs already; mu is held.
func (s *stripes) stopTimer() {
	if s.timer != nil && s.timer.Stop() {
		s.timers.Done()
	}
	s.timer = nil
}

// land waits for the oldest stripe in flight; mu is held.
func (s *stripes) land() error {
	c := <-s.flying[0]
	s.flying = s.flying[1:]
	if c.err != nil {
		return fmt.Errorf("write stripe: %w", c.err)
	}
	s.done.stripes = append(s.done.stripes, c.stripe)
	return nil
}

// finish makes all segments durable and returns where they are.
func (s *stripes) finish() (stripeSet, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return stripeSet{}, s.err
	}
	if s.w != nil {
		if err := s.launch(); err != nil {
			return stripeSet{}, err
		}
	}
	for len(s.flying) > 0 {
		if err := s.land(); err != nil {
			return stripeSet{}, err
		}
	}
	done := s.done
	s.done.stripes = nil
	return done, nil
}

// abort ends what finish did not: it gives memory and pins back. Stripes already committed are garbage that no record names. It comes
// last, after finish as well, and waits for a timer that may still run.
func (s *stripes) abort() {
	s.mu.Lock()
	s.stopTimer()
	if s.w != nil {
		s.w.Discard()
		s.w = nil
	}
	for _, landed := range s.flying {
		if c := <-landed; c.err == nil {
			s.done.stripes = append(s.done.stripes, c.stripe)
		}
	}
	s.flying = nil
	s.done.unpin()
	s.mu.Unlock()
	s.timers.Wait()
}

// randomETag stands for the MD5 where S3 does not show it: with customer keys.
func randomETag() etag { return etag{sum: newID()} }
