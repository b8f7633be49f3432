package blockdev

import (
	"cmp"
	"fmt"
	"io"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// ringEntries is how many operations of one Run are in flight; a stripe of 32 cells fits twice.
	ringEntries = 64
	// A Run waits for all its operations at once for patience and as long as the batch takes at patienceRate bytes per second.
	// After that each completion wakes it, so that one slow disk does not stretch the measured latency of its peers beyond this.
	patience     = time.Millisecond
	patienceRate = 1e9
	// maxAgain bounds the resubmissions of an operation for which the kernel lacks memory.
	maxAgain = 100
)

// uringGroup runs each batch through a ring of its own, for as long as the batch lasts: one system call submits all operations
// and waits for them.
type uringGroup struct {
	base
	life  lifetime
	turns chan struct{} // one token per Run in flight

	mu     sync.Mutex
	idle   []*ring // guarded by mu; at most opt.Rings
	broken []*ring // guarded by mu; the kernel may still use what their slots refer to
}

// ring is a queue pair and the operations in flight on it.
type ring struct {
	*queuePair
	slots []slot
	free  []uint8       // numbers of the free slots
	stuck int           // slots whose caller has left
	open  int           // slots whose caller waits
	first time.Duration // the earliest deadline of these, or an earlier time, from the batch's start; 0: none
}

// slot is one operation in flight. It keeps what the kernel uses alive.
type slot struct {
	op    *Op   // nil when the caller has left
	hold  *hold // then set
	debt  *debt
	file  *fileDevice
	buf   []byte // what remains to be moved
	off   int64
	whole int
	write bool
	dsync bool
	again int
	start time.Time
}

// newUring makes a uring group if a ring can be set up and answers a no-op.
func newUring(b base) (*uringGroup, error) {
	g := &uringGroup{base: b, turns: make(chan struct{}, b.opt.Rings)}
	r, err := newRing()
	if err != nil {
		return nil, err
	}
	if err := r.probe(); err != nil {
		r.close()
		return nil, err
	}
	g.idle = append(g.idle, r)
	g.reason = "a ring was set up and answered"
	return g, nil
}

func newRing() (*ring, error) {
	q, err := newQueuePair(ringEntries)
	if err != nil {
		return nil, err
	}
	r := &ring{queuePair: q, slots: make([]slot, q.entries), free: make([]uint8, q.entries)}
	for i := range r.free {
		r.free[i] = uint8(i)
	}
	return r, nil
}

// probe sends a no-op through the ring.
func (r *ring) probe() error {
	r.next(1).op = opNop
	if err := r.enter(1, time.Second); err != nil {
		return err
	}
	if c, ok := r.pop(); !ok || c.userData != 1 || c.res != 0 {
		return fmt.Errorf("io_uring: no-op answered %+v", c)
	}
	return nil
}

func (g *uringGroup) Kind() string { return "uring" }

// Close ends the group's rings. Rings with operations that the kernel still holds stay.
func (g *uringGroup) Close() error {
	err := g.life.close()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.idle {
		r.close()
	}
	g.idle = nil
	return err
}

func (g *uringGroup) Run(ops []Op) error {
	if err := g.reset(ops); err != nil || len(ops) == 0 {
		return err
	}
	if err := g.life.enter(); err != nil {
		return err
	}
	defer g.life.leave()
	if len(ops) == 1 && g.timeout(&ops[0]) == 0 {
		g.perform(&ops[0])
		return nil
	}
	g.turns <- struct{}{}
	defer func() { <-g.turns }()
	r, err := g.take()
	if err != nil {
		err = fmt.Errorf("run batch: %w", err)
		for i := range ops {
			ops[i].Err = err
		}
		return err
	}
	return g.drive(r, ops)
}

func (g *uringGroup) take() (*ring, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.idle); n > 0 {
		r := g.idle[n-1]
		g.idle = g.idle[:n-1]
		return r, nil
	}
	return newRing()
}

// give takes a ring without operations in flight back.
func (g *uringGroup) give(r *ring) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.idle) < g.opt.Rings && !g.life.isClosed() {
		g.idle = append(g.idle, r)
		return
	}
	r.close()
}

// drive runs ops on r and disposes of r.
func (g *uringGroup) drive(r *ring, ops []Op) error {
	start := time.Now()
	r.first = 0
	next, all := 0, len(ops) > 1 // a batch of one is woken by its completion anyway
	for {
		for ; next < len(ops) && len(r.free) > 0; next++ {
			g.submit(r, &ops[next], start)
		}
		if r.open == 0 {
			break
		}
		wait, timeout := uint32(1), cmp.Or(min(r.remaining(time.Since(start)), lookEvery), lookEvery)
		if all && next == len(ops) {
			wait = uint32(r.open)
			timeout = min(timeout, patienceFor(ops))
		}
		all = false
		if err := r.enter(wait, timeout); err != nil {
			err = fmt.Errorf("run batch: %w", err)
			g.fault(r, ops[next:], err)
			return err
		}
		now := time.Now()
		for c, ok := r.pop(); ok; c, ok = r.pop() {
			r.complete(c, now)
		}
		next += g.expireLate(r, ops[next:], start, now.Sub(start))
	}
	if r.stuck > 0 {
		g.life.wg.Add(1) // under the count of this Run
		go g.reap(r)
	} else {
		g.give(r)
	}
	return nil
}

// patienceFor is how long to wait for all of ops at once.
func patienceFor(ops []Op) time.Duration {
	n := 0
	for i := range ops {
		n += len(ops[i].Buf)
	}
	return patience + time.Duration(n)*(time.Second/patienceRate)
}

// submit puts op on the ring, or gives it its error.
func (g *uringGroup) submit(r *ring, op *Op, start time.Time) {
	f := g.devs[op.Dev].file
	if op.Write && f.readOnly {
		op.Err = fmt.Errorf("write %s: %w", f.path, ErrReadOnly)
		return
	}
	if g.hung(op) {
		return
	}
	if op.Err = f.use(); op.Err != nil {
		return
	}
	n := len(r.free) - 1
	i := r.free[n]
	r.free = r.free[:n]
	debt := g.devs[op.Dev].debt
	debt.begin(start)
	r.slots[i] = slot{op: op, debt: debt, file: f, buf: op.Buf, off: op.Off, whole: len(op.Buf), write: op.Write, dsync: op.Durable, start: start}
	r.open++
	r.due(g.timeout(op))
	r.push(i)
}

// push submits what remains of slot i. There is room: no more than ringEntries slots exist, and each has one entry.
func (r *ring) push(i uint8) {
	s := &r.slots[i]
	e := r.next(uint64(i))
	e.op = opRead
	if s.write {
		e.op = opWrite
		if s.dsync {
			e.rwFlags = unix.RWF_DSYNC
		}
	}
	e.fd = int32(s.file.fd)
	e.off = uint64(s.off)
	e.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(s.buf))))
	e.len = uint32(len(s.buf))
}

// complete takes the kernel's answer for a slot: the operation ends, or its rest is submitted again.
func (r *ring) complete(c cqe, now time.Time) {
	i := uint8(c.userData)
	s := &r.slots[i]
	if s.hold == nil {
		switch errno := unix.Errno(-c.res); {
		case c.res < 0 && (errno == unix.EINTR || errno == unix.EAGAIN) && s.again < maxAgain:
			s.again++
			r.push(i)
			return
		case c.res > 0 && int(c.res) < len(s.buf):
			if n := wholeBlocks(int(c.res), len(s.buf)); n > 0 {
				s.buf, s.off = s.buf[n:], s.off+int64(n)
				r.push(i)
				return
			}
			c.res = 0
		}
	}
	var err error
	switch {
	case c.res < 0:
		err = s.file.fault(s.write, s.off, s.whole, unix.Errno(-c.res))
	case int(c.res) < len(s.buf):
		err = s.file.fault(s.write, s.off, s.whole, io.ErrUnexpectedEOF)
	}
	s.file.counters.done(s.write, s.dsync, s.whole, now.Sub(s.start), err)
	s.debt.end(now)
	s.file.unuse()
	if s.hold != nil {
		r.stuck--
		s.file.counters.letGo(s.hold, err)
	} else {
		s.op.Err = err
		r.open--
	}
	*s = slot{}
	r.free = append(r.free, i)
}

// remaining is the time from now to the earliest deadline of operations in flight, both counted from the batch's start; 0 when
// they have none. It may be too early: then all are looked at again.
func (r *ring) remaining(now time.Duration) time.Duration {
	if r.first == 0 {
		return 0
	}
	return max(r.first-now, time.Microsecond)
}

// due takes the deadline of an operation in flight into account; 0 is none.
func (r *ring) due(t time.Duration) {
	if t > 0 && (r.first == 0 || t < r.first) {
		r.first = t
	}
}

// expireLate gives up on the operations past their deadline: those in flight, and of waiting the leading ones, whose number it
// returns.
func (g *uringGroup) expireLate(r *ring, waiting []Op, start time.Time, now time.Duration) (skipped int) {
	late := func(op *Op) bool { return g.overdue(op, start, now) }
	if r.first > 0 && now >= r.first || now >= lookEvery {
		r.first = 0
		for i := range r.slots {
			s := &r.slots[i]
			switch {
			case s.op == nil:
			case late(s.op):
				h := &hold{}
				g.expire(s.op, h, now)
				r.abandon(s, h)
			default:
				r.due(g.timeout(s.op))
			}
		}
	}
	for skipped < len(waiting) && late(&waiting[skipped]) {
		g.expire(&waiting[skipped], nil, now)
		skipped++
	}
	return skipped
}

// abandon leaves a slot to the kernel.
func (r *ring) abandon(s *slot, h *hold) {
	s.op, s.hold = nil, h
	r.open--
	r.stuck++
}

// reap waits for the operations on r whose callers have left, and takes r back.
func (g *uringGroup) reap(r *ring) {
	defer g.life.leave()
	for r.stuck > 0 {
		if err := r.enter(1, time.Minute); err != nil {
			g.fault(r, nil, err)
			return
		}
		now := time.Now()
		for c, ok := r.pop(); ok; c, ok = r.pop() {
			r.complete(c, now)
		}
	}
	g.give(r)
}

// fault gives up on a ring that does not work: what is in flight on it may or may not happen, at any time.
func (g *uringGroup) fault(r *ring, waiting []Op, err error) {
	for i := range r.slots {
		if s := &r.slots[i]; s.op != nil {
			h := &hold{} // never released
			s.op.Err, s.op.Stuck, s.op.hold = err, true, h
			s.file.counters.done(s.write, s.dsync, s.whole, 0, err)
			s.file.counters.stuck.Add(1)
			r.abandon(s, h)
		}
	}
	for i := range waiting {
		waiting[i].Err = err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.broken = append(g.broken, r)
}
