package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// maxInflight is how many packed stripes may be on their way to the disks at once.
const maxInflight = 3

// A record's sequence number is its stripe's number and its place in the stripe, so nothing need be kept to go on counting.
const (
	seqBits      = 16
	maxPerStripe = 1 << 13
)

// maxQueue bounds the records that wait for a stripe.
const maxQueue = 16384

// Patient records wait for others as long as this, or until there are so many. Where space is scarce others wait too, for a moment, until
// there is one for each data cell.
const (
	patience   = 20 * time.Millisecond
	maxPatient = 128
	thrift     = time.Millisecond
)

// packedLog is the packed stream: it gathers records into stripes (group commit), has several stripes in flight, and
// acknowledges them strictly in order.
type packedLog struct {
	a *Array

	// mu guards all below. It is never held across I/O.
	mu       sync.Mutex
	wake     *sync.Cond // a queue, a free place in flight, or a change of state
	queue    []*request
	inflight []*packedStripe // in stripe order
	band     *band           // nil: none open in this epoch
	next     uint64          // number of the next stripe
	opening  bool            // a band is being fetched or an epoch begun: nobody else may
	reserved bool            // the open band comes from the reserve: essential records only
	applying bool            // a writer applies finished stripes
	timing   bool            // patient records have waited long enough when a timer runs out
	thrifty  bool            // and so have others
	due      bool            // one of them has run out
	paused   bool            // a disk failed: nothing new until the next epoch has begun
	closing  bool            // nothing new is taken
	failed   []*disk
	changes  []*change
	err      error // why the log has stopped

	acked atomic.Uint64 // highest stripe that is durable with all before it

	requests sync.Pool // of *request
}

// packedStripe is a stripe in flight.
type packedStripe struct {
	num  uint64
	band *band
	off  uint32
	reqs []*request
	lay  layout
	buf  blockdev.Buf
	ops  []blockdev.Op
	pos  Position
	done bool
	bad  bool // a cell was not written
}

func newPackedLog(a *Array) *packedLog {
	p := &packedLog{a: a, requests: sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// Append adds a record to the log and returns its sequence number once it is durable on every disk of its stripe and applied.
// It does not end early with ctx: every I/O has a deadline, so an answer always comes.
func (a *Array) Append(ctx context.Context, rec Record) (uint64, error) {
	if len(rec.Body) > MaxBody || len(rec.Data) > MaxPacked {
		return 0, fmt.Errorf("append record of %d+%d bytes: %w", len(rec.Body), len(rec.Data), ErrTooLarge)
	}
	r := a.log.requests.Get().(*request)
	r.rec, r.seq, r.err, r.data = rec, 0, nil, Loc{}
	if err := a.log.enqueue(r); err != nil {
		return 0, err
	}
	// The log owns r and the record's memory until done, so there is no early return on ctx: a writer always answers,
	// since every I/O has a deadline.
	<-r.done
	seq, err := r.seq, r.err
	r.rec = Record{}
	a.log.requests.Put(r)
	return seq, err
}

func (p *packedLog) enqueue(r *request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) >= maxQueue && p.err == nil {
		p.wake.Wait()
	}
	if p.err != nil {
		return p.err
	}
	if p.closing {
		return ErrClosed
	}
	if p.reserved && !p.a.full.Load() {
		p.reserved = false // room was made
	}
	if p.reserved && p.band != nil && !r.rec.Essential {
		return fmt.Errorf("append: %w", ErrFull)
	}
	p.queue = append(p.queue, r)
	if !r.rec.Patient {
		p.a.schedule.calls.Add(1)
	}
	p.wake.Broadcast()
	return nil
}

// bePatient bounds how long what waits may wait for more; mu is held.
func (p *packedLog) bePatient(scarce bool) {
	if len(p.queue) == 0 || p.a.opt.manual != nil {
		return
	}
	if p.queue[0].rec.Patient {
		p.dueAfter(patience, &p.timing)
	}
	if scarce && slices.ContainsFunc(p.queue, func(r *request) bool { return !r.rec.Patient }) {
		p.dueAfter(thrift, &p.thrifty)
	}
}

// dueAfter lets what waits become a stripe after a time, unless the timer that running stands for is on its way; mu is held.
func (p *packedLog) dueAfter(d time.Duration, running *bool) {
	if *running {
		return
	}
	*running = true
	time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		*running, p.due = false, len(p.queue) > 0
		p.wake.Broadcast()
	})
}

// worthwhile reports whether what waits may become a stripe; mu is held. Patient records alone wait for more. Where space is scarce all
// wait until the stripes in flight have landed, unless they fill one: stripes of few records waste space.
func (p *packedLog) worthwhile(scarce bool) bool {
	full := p.a.geo.Data * min(maxCellBlocks, int(p.a.geo.extentBlocks())-1) * BlockSize
	bytes, hasty := 0, 0
	for i, r := range p.queue {
		if !r.rec.Patient {
			hasty++
		}
		switch bytes += r.cost(); {
		case bytes >= full:
			return true
		case scarce && len(p.inflight) > 0:
		case i >= maxPatient, hasty > 0 && !scarce, hasty >= p.a.geo.Data:
			return true
		}
	}
	return (!scarce || len(p.inflight) == 0) && (p.due || p.closing || p.a.opt.manual != nil)
}

// run is a writer: it cuts stripes, writes them and finishes them until the log stops.
func (p *packedLog) run() {
	for {
		s := p.wait()
		if s == nil {
			return
		}
		p.write(s)
		p.finish(s)
	}
}

// wait returns the next stripe to write, or nil when the log has stopped.
func (p *packedLog) wait() *packedStripe {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.err != nil {
			return nil
		}
		scarce := p.a.scarce()
		if p.canCut(scarce) {
			if s := p.cut(); s != nil {
				return s
			}
			continue
		}
		p.bePatient(scarce)
		p.wake.Wait()
	}
}

// canCut reports whether a stripe could be formed now; mu is held.
func (p *packedLog) canCut(scarce bool) bool {
	return p.err == nil && !p.paused && !p.opening && len(p.queue) > 0 && len(p.inflight) < maxInflight && p.worthwhile(scarce)
}

// cut forms a stripe of what waits and takes its place in the band; mu is held, and let go while a band is opened. It returns
// nil when the caller must look again.
func (p *packedLog) cut() *packedStripe {
	a := p.a
	if p.band == nil {
		p.openBand()
		return nil
	}
	b := p.band
	reqs := p.queue[:min(len(p.queue), maxPerStripe)]
	lay, fits := layOut(reqs, len(b.members)-b.parity, b.parity, int(a.geo.extentBlocks())-1, int(a.geo.extentBlocks()-b.end), a.scarce())
	if !fits {
		p.openBand()
		return nil
	}
	n := lay.ends[len(lay.ends)-1]
	s := &packedStripe{num: p.next, band: b, off: b.end, lay: lay, reqs: append([]*request(nil), p.queue[:n]...)}
	p.queue, p.due = append(p.queue[:0], p.queue[n:]...), false
	for i, r := range s.reqs {
		if r.seq = r.rec.Seq; r.seq == 0 {
			r.seq = s.num<<seqBits | uint64(i)
		}
	}
	if b.end == 1 {
		b.first.Store(s.num)
	}
	p.next++
	b.end += uint32(lay.blocks)
	b.pins.Add(1) // until its records are applied: before that nobody knows that they are live
	p.inflight = append(p.inflight, s)
	a.openAhead(b)
	p.wake.Broadcast() // room in the queue; another writer may cut the next
	return s
}

// openBand fetches the next band for the stream; mu is held and let go meanwhile. When space runs out what waits is refused,
// but for essential records, which may use the reserve.
func (p *packedLog) openBand() {
	p.opening = true
	var b *band
	var err error
	p.unlocked(func() { b, err = p.a.nextBand(kindPacked, false) })
	reserved := false
	if errors.Is(err, ErrFull) {
		p.refuse(err)
		if len(p.queue) > 0 {
			reserved = true
			p.unlocked(func() { b, err = p.a.nextBand(kindPacked, true) })
		}
	}
	p.opening = false
	switch fence := (*fenceError)(nil); {
	case err == nil:
		p.replaceBand(b)
		p.reserved = reserved
	case errors.As(err, &fence):
		p.failed, p.paused = append(p.failed, fence.disks...), true
	case errors.Is(err, ErrFull):
		if reserved {
			p.answer(p.queue, err)
			p.queue = nil
		}
	default:
		p.stopLocked(err)
	}
	p.settle()
	p.wake.Broadcast()
}

// replaceBand goes on in another band; mu is held.
func (p *packedLog) replaceBand(b *band) {
	if p.band != nil {
		p.band.open.Store(false)
	}
	p.band, p.reserved = b, false
}

// refuse answers what waits with err and keeps only essential records; mu is held.
func (p *packedLog) refuse(err error) {
	var keep, drop []*request
	for _, r := range p.queue {
		if r.rec.Essential {
			keep = append(keep, r)
		} else {
			drop = append(drop, r)
		}
	}
	p.queue = keep
	p.answer(drop, err)
}

// answer ends requests.
func (p *packedLog) answer(reqs []*request, err error) {
	for _, r := range reqs {
		r.err = err
		r.done <- struct{}{}
	}
}

// write seals, encodes and writes the stripe. It is called without mu.
func (p *packedLog) write(s *packedStripe) {
	if err := p.a.encodePacked(s, p.acked.Load()); err != nil {
		p.stop(fmt.Errorf("encode stripe: %w", err))
		s.bad = true
		return
	}
	if err := p.a.group.Run(s.ops); err != nil {
		p.stop(fmt.Errorf("write stripe: %w", err))
		s.bad = true
	}
}

// finish takes a stripe whose writes have ended: acknowledges what is durable in order, or begins the fencing of disks.
func (p *packedLog) finish(s *packedStripe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if failed := p.a.failedDisks(s.ops); len(failed) > 0 {
		p.failed = append(p.failed, failed...)
		s.bad, p.paused = true, true
	}
	if len(s.ops) > 0 {
		release(&s.buf, s.ops)
	}
	s.done = true
	p.advance()
	p.abandon()
	p.settle()
	p.wake.Broadcast()
}

// advance applies and acknowledges finished stripes from the head on; mu is held, and let go while the state is updated.
func (p *packedLog) advance() {
	if p.applying {
		return
	}
	p.applying = true
	for p.err == nil && len(p.inflight) > 0 && p.inflight[0].done && !p.inflight[0].bad {
		s := p.inflight[0]
		p.inflight = p.inflight[1:]
		p.acked.Store(s.num)
		p.mu.Unlock()
		err := p.a.apply(s)
		p.a.stats.commits.Add(1)
		p.a.stats.records.Add(uint64(len(s.reqs)))
		p.a.stats.committed.Add(uint64(s.lay.blocks*(len(s.lay.ends)+s.band.parity)) * BlockSize)
		if err != nil {
			err = fmt.Errorf("apply stripe %d: %w", s.num, err)
			p.stop(err)
		}
		s.band.unpin()
		p.answer(s.reqs, err)
		p.mu.Lock()
		p.wake.Broadcast()
	}
	p.applying = false
}

// settle begins a new epoch without the failed disks once nothing is in flight but stripes that must be written again; mu is
// held, and let go meanwhile.
func (p *packedLog) settle() {
	for p.paused && !p.applying && !p.opening && p.err == nil {
		var again []*request
		for _, s := range p.inflight {
			if !s.done {
				return
			}
			again = append(again, s.reqs...)
		}
		for _, s := range p.inflight {
			s.band.unpin()
		}
		p.inflight = nil
		p.queue = append(again, p.queue...)
		p.replaceBand(nil)
		p.next = p.acked.Load() + 1
		failed, changes := p.failed, p.changes
		p.failed, p.changes = nil, nil
		p.opening = true
		var err error
		p.unlocked(func() { err = p.a.carryOut(changes, p.a.fence(failed)) })
		p.opening = false
		for _, c := range changes {
			c.done = true
		}
		p.paused = len(p.failed) > 0 || len(p.changes) > 0
		if err != nil {
			p.stopLocked(err)
		}
		p.wake.Broadcast()
	}
}

// change is something to be done while nothing is being written.
type change struct {
	do   func() error
	err  error // of do, or why it did not run
	done bool  // do has returned, or will never run
}

// carryOut makes changes, each while no bulk stripe is being written, unless err says that nothing can be changed any more. An error of theirs
// that is not a refusal says so to those behind. It returns what stops the log.
func (a *Array) carryOut(changes []*change, err error) error {
	for _, c := range changes {
		if c.err = err; err != nil {
			continue
		}
		a.lockGate()
		c.err = c.do()
		a.gate.Unlock()
		if !errors.Is(c.err, ErrReplace) && !errors.Is(c.err, ErrAdd) && !errors.Is(c.err, ErrRemove) {
			err = c.err
		}
	}
	return err
}

// change has do run while nothing is being written, and returns its error, or why it did not run. It never returns before do has: a caller
// may close what do uses. What waits goes on afterwards in fresh bands.
func (p *packedLog) change(do func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	c := &change{do: do}
	p.changes = append(p.changes, c)
	p.paused = true
	p.settle()
	for !c.done {
		p.await()
	}
	return c.err
}

// fail has disks fenced on behalf of another stream and returns when the array goes on without them.
func (p *packedLog) fail(disks []*disk) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = append(p.failed, disks...)
	p.paused = true
	p.settle()
	for p.err == nil && p.a.anyUsable(disks) {
		p.await()
	}
	return p.err
}

// stopped returns why nothing can be written any more, nil if it can.
func (p *packedLog) stopped() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// stop ends the log: an outcome is unknown, so nothing more may be promised until the array is opened again.
func (p *packedLog) stop(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopLocked(err)
}

func (p *packedLog) stopLocked(err error) {
	if p.err == nil {
		p.err = err
		if !errors.Is(err, ErrReadOnly) {
			p.err = fmt.Errorf("%w: %w", ErrClosed, err)
		}
	}
	p.answer(p.queue, p.err)
	p.queue = nil
	for _, c := range p.changes {
		c.err, c.done = p.err, true
	}
	p.changes = nil
	p.abandon()
	p.wake.Broadcast()
}

// abandon answers, once the log has stopped, the records of stripes whose writes have ended.
func (p *packedLog) abandon() {
	if p.err == nil {
		return
	}
	for _, s := range p.inflight {
		if s.done {
			p.answer(s.reqs, p.err)
			s.reqs = nil
		}
	}
}

// drain takes nothing new and waits until nothing is queued or in flight.
func (p *packedLog) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closing = true
	p.wake.Broadcast()
	for p.err == nil && (len(p.queue) > 0 || len(p.inflight) > 0 || p.applying || p.opening) {
		p.await()
	}
}

// await waits for another goroutine to change something; in tests without goroutines it lets the driver do it. mu is held.
func (p *packedLog) await() {
	if step := p.a.opt.manual; step != nil {
		p.unlocked(step)
		return
	}
	p.wake.Wait()
}

// unlocked lets go of mu, which is held, while f runs.
func (p *packedLog) unlocked(f func()) {
	p.mu.Unlock()
	defer p.mu.Lock()
	f()
}
