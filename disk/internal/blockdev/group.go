package blockdev

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// NewGroup makes a group of devices of one kind: simulated disks of one World run in that world, memory disks are copied in
// the caller's goroutine, files and block devices use io_uring where the kernel and the container's seccomp profile allow
// it, and otherwise a pool of blocking calls. Kind and Reason tell the choice.
func NewGroup(devs []Device, opt GroupOptions) (Group, error) {
	if len(devs) == 0 || len(devs) > MaxGroup {
		return nil, fmt.Errorf("group %d devices: %w: 1 to %d are possible", len(devs), ErrInvalid, MaxGroup)
	}
	if opt.Prefer != "" && opt.Prefer != "uring" && opt.Prefer != "pool" {
		return nil, fmt.Errorf("group devices: unknown preference %q", opt.Prefer)
	}
	opt.setDefaults()
	b := base{opt: opt, devs: make([]member, MaxGroup), n: new(atomic.Int32), add: new(sync.Mutex), began: time.Now()}
	counts := map[string]int{}
	for i, d := range devs {
		counts[d.Limits().Kind]++
		b.devs[i] = b.newMember(d)
	}
	b.n.Store(int32(len(devs)))
	switch {
	case counts["sim"] == len(devs):
		return newSimGroup(b)
	case counts["sim"] > 0:
		return nil, fmt.Errorf("group devices: %w: simulated and real ones", ErrInvalid)
	case opt.Prefer == "pool":
		return newPool(b, "preferred by configuration"), nil
	case counts["mem"] == len(devs):
		b.reason = "memory needs no waiting"
		return &memGroup{base: b}, nil
	}
	return newUringOrPool(b), nil
}

func (o *GroupOptions) setDefaults() {
	if o.ReadTimeout == 0 {
		o.ReadTimeout = DefaultTimeout
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = DefaultTimeout
	}
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	if o.Rings <= 0 {
		o.Rings = DefaultRings
	}
}

// newUringOrPool makes a uring group, or a pool that says why not.
func newUringOrPool(b base) Group {
	for _, d := range b.devs[:b.Len()] {
		if d.file == nil {
			return newPool(b, fmt.Sprintf("%s has no file descriptor", d.path))
		}
	}
	g, err := newUring(b)
	if err != nil {
		return newPool(b, fmt.Sprintf("io_uring not usable: %v", err))
	}
	return g
}

// base is what all groups share.
type base struct {
	devs   []member      // of which the first n are there
	n      *atomic.Int32 // raised once the next is complete
	add    *sync.Mutex   // held by Add
	opt    GroupOptions
	reason string
	began  time.Time
}

// member is a device and what every operation asks of it.
type member struct {
	Device
	path     string
	size     int64
	counters *counters   // the device's own, where it has some
	file     *fileDevice // in a uring group
	debt     *debt
}

// debt is what a device owes. Times are of the group, in nanoseconds.
type debt struct {
	began    time.Time    // of the group
	ops      atomic.Int64 // asked for and not answered
	since    atomic.Int64 // when it began to owe, or answered
	answered atomic.Int64
	givenUp  atomic.Int64 // operations that began before have no time left
}

func (d *debt) begin(now time.Time) {
	if d.ops.Add(1) == 1 {
		d.since.Store(int64(now.Sub(d.began)))
	}
}

func (d *debt) end(now time.Time) {
	t := int64(now.Sub(d.began))
	d.since.Store(t)
	d.answered.Store(t)
	d.ops.Add(-1)
}

func (b *base) newMember(d Device) member {
	m := member{Device: d, path: d.Path(), size: d.Limits().Size, counters: &counters{}, debt: &debt{began: b.began}}
	if c, ok := d.(interface{ stat() *counters }); ok {
		m.counters = c.stat()
	}
	m.file, _ = d.(*fileDevice)
	return m
}

func (b *base) Device(i int) Device { return b.devs[i].Device }
func (b *base) Len() int            { return int(b.n.Load()) }

// Add implements Group.
func (b *base) Add(d Device) (int, error) {
	b.add.Lock()
	defer b.add.Unlock()
	n := b.Len()
	if n == MaxGroup {
		return 0, fmt.Errorf("add %s: %d devices are possible: %w", d.Path(), MaxGroup, ErrInvalid)
	}
	m := b.newMember(d)
	if _, file := b.devs[0].Device.(*fileDevice); file != (m.file != nil) {
		return 0, fmt.Errorf("add %s: another kind of device: %w", d.Path(), ErrInvalid)
	}
	b.devs[n] = m
	b.n.Store(int32(n + 1))
	return n, nil
}
func (b *base) Reason() string { return b.reason }

// Silence implements Group.
func (b *base) Silence(i int) (silent, since time.Duration) {
	d, now := b.devs[i].debt, time.Since(b.began)
	if d.ops.Load() > 0 {
		silent = max(now-time.Duration(d.since.Load()), 0)
	}
	return silent, max(now-time.Duration(d.answered.Load()), 0)
}

// GiveUp implements Group.
func (b *base) GiveUp(i int) { b.devs[i].debt.givenUp.Store(int64(time.Since(b.began))) }

// overdue reports whether op, which began at start, has no time left.
func (b *base) overdue(op *Op, start time.Time, now time.Duration) bool {
	t := b.timeout(op)
	return t > 0 && now >= t || start.Sub(b.began) < time.Duration(b.devs[op.Dev].debt.givenUp.Load())
}

// reset clears the results of a batch and finds programmer errors in it.
func (b *base) reset(ops []Op) error {
	for i := range ops {
		op := &ops[i]
		op.Err, op.Stuck, op.hold = nil, false, nil
		if op.Dev < 0 || op.Dev >= b.Len() {
			return fmt.Errorf("run batch: op %d: device %d of %d: %w", i, op.Dev, b.Len(), ErrInvalid)
		}
		if err := checkRange(b.devs[op.Dev].path, op.Buf, op.Off, b.devs[op.Dev].size); err != nil {
			return fmt.Errorf("run batch: op %d: %w", i, err)
		}
	}
	return nil
}

// timeout is how long op may take; 0 is for ever.
func (b *base) timeout(op *Op) time.Duration {
	if op.Write {
		return max(b.opt.WriteTimeout, 0)
	}
	t := max(b.opt.ReadTimeout, 0)
	if op.LateAfter > 0 && (t == 0 || op.LateAfter < t) {
		return op.LateAfter
	}
	return t
}

// perform runs op on its device, waiting for as long as it takes.
func (b *base) perform(op *Op) {
	if op.Write {
		op.Err = b.devs[op.Dev].WriteAt(op.Buf, op.Off, op.Durable)
	} else {
		op.Err = b.devs[op.Dev].ReadAt(op.Buf, op.Off)
	}
}

// memGroup copies in the caller's goroutine: what remains of a batch's cost is the caller's own.
type memGroup struct {
	base
	life lifetime
}

func (g *memGroup) Kind() string { return "mem" }
func (g *memGroup) Close() error { return g.life.close() }

func (g *memGroup) Run(ops []Op) error {
	if err := g.reset(ops); err != nil {
		return err
	}
	if err := g.life.enter(); err != nil {
		return err
	}
	defer g.life.leave()
	for i := range ops {
		g.perform(&ops[i])
	}
	return nil
}

// expire gives op, which has not completed after some time, its result. hold is nil when nothing holds its buffer.
func (b *base) expire(op *Op, h *hold, after time.Duration) {
	m := &b.devs[op.Dev]
	if op.LateAfter > 0 && b.timeout(op) == op.LateAfter {
		m.late(op, h)
		return
	}
	verb := "read"
	if op.Write {
		verb = "write"
	}
	op.Err = fmt.Errorf("%s %s: %d bytes at %d after %v: %w", verb, m.path, len(op.Buf), op.Off, after.Round(time.Millisecond), ErrTimeout)
	m.counters.timeout(op.Write)
	if h != nil {
		op.Stuck, op.hold = true, h
		m.counters.stuck.Add(1)
	}
}

// late gives a read its result that took longer than its caller waits.
func (m *member) late(op *Op, h *hold) {
	op.Err = fmt.Errorf("read %s: %d bytes at %d: %w", m.path, len(op.Buf), op.Off, ErrLate)
	m.counters.lates.Add(1)
	if h != nil {
		h.late = true
		op.Stuck, op.hold = true, h
		m.counters.late.Add(1)
	}
}

// hung gives op its result at once when its device already holds on to too many.
func (b *base) hung(op *Op) bool {
	m := &b.devs[op.Dev]
	if op.LateAfter > 0 && !op.Write && m.counters.late.Load() >= maxLate {
		m.late(op, nil)
		return true
	}
	if m.counters.stuck.Load() < maxStuck {
		return false
	}
	op.Err = fmt.Errorf("access %s: hung, %d operations never completed: %w", m.path, maxStuck, ErrTimeout)
	m.counters.timeout(op.Write)
	return true
}

// lifetime ends a group: it counts what runs, and refuses more after close.
type lifetime struct {
	mu     sync.Mutex
	closed bool // guarded by mu
	wg     sync.WaitGroup
	grace  time.Duration // of close; 0: closeGrace
}

// enter counts one more, until leave.
func (l *lifetime) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("run batch: group %w", ErrClosed)
	}
	l.wg.Add(1)
	return nil
}

func (l *lifetime) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *lifetime) leave() { l.wg.Done() }

// close refuses more and waits for what runs, up to closeGrace. What the kernel holds longer cannot be ended by anyone: the
// goroutine that waits for it stays, and with it the memory the kernel may touch.
func (l *lifetime) close() error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if again {
		return fmt.Errorf("close group: %w", ErrClosed)
	}
	grace := l.grace
	if grace == 0 {
		grace = closeGrace
	}
	idle := make(chan struct{})
	go func() { l.wg.Wait(); close(idle) }()
	select {
	case <-idle:
		return nil
	case <-time.After(grace):
		return fmt.Errorf("close group: operations still in flight: %w", ErrTimeout)
	}
}
