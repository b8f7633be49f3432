package blockdev

import (
	"sync"
	"time"
)

// poolGroup runs operations as blocking calls on a bounded number of goroutines per device. It is the fallback where io_uring
// is forbidden, as under the default seccomp profiles of Docker and containerd.
type poolGroup struct {
	base
	life    lifetime
	queues  []queue
	batches sync.Pool // of *batch without results in waiting
}

// queue is what waits for one device. Workers start when there is work and end when there is none. A device that hangs
// occupies its own workers only.
type queue struct {
	mu          sync.Mutex // guards the fields below and job.next; no other lock is taken under it
	first, last *job       // bounded by the callers of Run, each of which waits for its own
	workers     int
}

// batch is one Run in flight.
type batch struct {
	mu      sync.Mutex // guards left, expired, and state, hold and results of the jobs
	left    int        // jobs neither done nor expired
	expired int
	done    chan struct{} // gets a value when a job that is done makes left 0
	jobs    []job
	timer   *time.Timer
}

// job is one operation of a batch. It has its own copy of the Op, as it may outlast the caller's.
type job struct {
	op    Op
	batch *batch
	state jobState
	next  *job // in its queue
}

type jobState uint8

const (
	jobQueued jobState = iota
	jobRunning
	jobDone
	jobExpired // its caller has left
)

func newPool(b base, reason string) *poolGroup {
	b.reason = reason
	g := &poolGroup{base: b, queues: make([]queue, MaxGroup)}
	g.batches.New = func() any {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return &batch{done: make(chan struct{}, 1), timer: t}
	}
	return g
}

func (g *poolGroup) Kind() string { return "pool" }
func (g *poolGroup) Close() error { return g.life.close() }

func (g *poolGroup) Run(ops []Op) error {
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
	b := g.batches.Get().(*batch)
	b.jobs = append(b.jobs[:0], make([]job, len(ops))...)
	b.left = len(ops)
	start := time.Now()
	for i := range ops {
		b.jobs[i] = job{op: ops[i], batch: b}
	}
	for i := range ops {
		g.enqueue(&b.jobs[i])
	}
	clean := g.await(b, start)
	b.mu.Lock()
	for i := range ops {
		ops[i] = b.jobs[i].op
	}
	b.mu.Unlock()
	if clean { // otherwise workers still use it
		clear(b.jobs)
		g.batches.Put(b)
	}
	return nil
}

// enqueue hands j to a worker of its device.
func (g *poolGroup) enqueue(j *job) {
	if g.hung(&j.op) {
		j.complete(jobQueued, j.op.Err)
		return
	}
	g.devs[j.op.Dev].debt.begin(time.Now())
	q := &g.queues[j.op.Dev]
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first == nil {
		q.first = j
	} else {
		q.last.next = j
	}
	q.last = j
	if q.workers < g.opt.Workers {
		q.workers++
		g.life.wg.Add(1) // under the count of the Run that enqueues
		go g.work(q, g.devs[j.op.Dev].debt)
	}
}

// work performs jobs of q until there are none.
func (g *poolGroup) work(q *queue, debt *debt) {
	defer g.life.leave()
	for {
		q.mu.Lock()
		j := q.first
		if j == nil {
			q.workers--
			q.mu.Unlock()
			return
		}
		q.first = j.next
		q.mu.Unlock()
		op, ok := j.claim()
		if ok {
			g.perform(&op)
		}
		debt.end(time.Now())
		if ok {
			if h := j.complete(jobRunning, op.Err); h != nil {
				g.devs[op.Dev].counters.letGo(h, op.Err)
			}
		}
	}
}

// claim starts j for a worker; false when its caller has left and its buffer with it.
func (j *job) claim() (Op, bool) {
	j.batch.mu.Lock()
	defer j.batch.mu.Unlock()
	if j.state != jobQueued {
		return Op{}, false
	}
	j.state = jobRunning
	return j.op, true
}

// complete ends j with its result, or returns the hold to release when it comes too late.
func (j *job) complete(from jobState, err error) *hold {
	b := j.batch
	b.mu.Lock()
	defer b.mu.Unlock()
	if j.state != from {
		return j.op.hold
	}
	j.state, j.op.Err = jobDone, err
	if b.left--; b.left == 0 {
		b.done <- struct{}{}
	}
	return nil
}

// await waits until all jobs of b are done or past their deadlines, and reports whether all are done.
func (g *poolGroup) await(b *batch, start time.Time) bool {
	for {
		wait := lookEvery
		if deadline := g.nextDeadline(b); deadline > 0 {
			wait = min(wait, deadline-time.Since(start))
		}
		b.timer.Reset(wait)
		select {
		case <-b.done:
			b.timer.Stop()
			return b.expired == 0
		case <-b.timer.C:
		}
		if g.expireJobs(b, start) {
			return false
		}
	}
}

// nextDeadline is the earliest deadline of the open jobs, counted from the start of b; 0 when none has one.
func (g *poolGroup) nextDeadline(b *batch) (first time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.jobs {
		j := &b.jobs[i]
		if t := g.timeout(&j.op); j.state <= jobRunning && t > 0 && (first == 0 || t < first) {
			first = t
		}
	}
	return first
}

// expireJobs gives up on the open jobs whose deadline has passed, and reports whether that leaves none open.
func (g *poolGroup) expireJobs(b *batch, start time.Time) bool {
	now := time.Since(start)
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.left
	for i := range b.jobs {
		j := &b.jobs[i]
		if j.state > jobRunning || !g.overdue(&j.op, start, now) {
			continue
		}
		var h *hold
		if j.state == jobRunning {
			h = &hold{}
		}
		g.expire(&j.op, h, now)
		j.state = jobExpired
		b.left--
		b.expired++
	}
	return before > 0 && b.left == 0
}
