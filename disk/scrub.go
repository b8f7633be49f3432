package disk

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Constants of scrubs.
const (
	scrubSample = 16               // of so many packed stripes the records of one are opened
	scrubRetry  = time.Hour        // after a sweep that could not be ended
	scrubKeep   = time.Minute      // how often the place of a sweep is kept, at most
	speedSpan   = 10 * time.Second // over which the speed is measured
)

// ScrubOptions say when an array is swept, and how fast.
type ScrubOptions struct {
	// Every is the time from the start of a sweep to that of the next, a tenth more or less by chance, so that machines which were
	// started together do not sweep together. 0: sweeps start only when asked for.
	Every time.Duration
	// Rate bounds what a sweep reads, bytes per second over all disks; 0: no bound.
	Rate int64
	// Past is what Keep was given last, the zero value if that is lost.
	Past ScrubPast
	// Keep makes durable what the next process should know. Its errors are logged: the worst that follows is another sweep.
	Keep func(ScrubPast) error
}

// ScrubPast is what survives the process.
type ScrubPast struct {
	Next    time.Time `json:"next,omitzero"` // start of the next sweep
	Paused  bool      `json:"paused,omitempty"`
	Current *ScrubRun `json:"current,omitempty"` // begun and not ended
	Last    *ScrubRun `json:"last,omitempty"`    // the last one that ended
	Losses  []Loss    `json:"losses,omitempty"`  // what the array has lost, by whomever it was found
}

// ScrubRun is a sweep.
type ScrubRun struct {
	Started time.Time   `json:"started"`
	Ended   time.Time   `json:"ended,omitzero"`
	Band    uint64      `json:"band,omitempty"` // the last one that was visited; later ones have higher numbers
	Report  CheckReport `json:"report"`
}

// ScrubStatus describes the scrub of an array. Sizes are bytes.
type ScrubStatus struct {
	State      string    `json:"state"`            // "idle", "running", "paused"
	Rate       int64     `json:"rate"`             // bound, per second; 0: none
	Speed      int64     `json:"bytes_per_second"` // read lately
	Done       int64     `json:"done"`             // of the extents in use, behind the sweep
	Total      int64     `json:"total"`
	ETASeconds float64   `json:"eta_seconds,omitempty"` // 0: not known
	Next       time.Time `json:"next,omitzero"`
	Current    *ScrubRun `json:"current,omitempty"`
	Last       *ScrubRun `json:"last,omitempty"`
	Error      string    `json:"error,omitempty"` // why the last attempt did not come to its end

	Read  int64           `json:"-"` // since the array was opened
	Found map[Verdict]int `json:"-"` // likewise, with what opening it mended
}

// Scrub sweeps an array in the background: it reads everything, and rewrites what is bad from what is good. Its goroutine ends with
// the array. All methods are safe for concurrent use.
type Scrub struct {
	a   *Array
	opt ScrubOptions

	keeping sync.Mutex // held while Keep runs; taken before mu

	mu      sync.Mutex    // guards all below; that of a pass is taken after it
	changed chan struct{} // closed and replaced at each change that a waiting sweep should see
	past    ScrubPast
	rate    int64
	asked   bool
	retry   time.Time // no attempt before
	err     error     // of the last attempt
	kept    time.Time // when Keep last ran
	pass    *pass     // the sweep under way; nil: none

	free    time.Time // when the rate allows the next step
	charged int64     // bytes of the pass that free takes into account
	mark    speedMark // where the speed is measured from
	speed   int64
	began   time.Time     // the pass, in this process
	idle    time.Duration // paused since
	base    int64         // bytes that were behind the pass when it began

	read  int64           // by passes that ended
	found map[Verdict]int // likewise, and when the array was opened
}

type speedMark struct {
	at   time.Time
	read int64
}

// StartScrub begins to look after what the array holds. It is called once.
func (a *Array) StartScrub(opt ScrubOptions) *Scrub {
	s := &Scrub{a: a, opt: opt, past: opt.Past.clone(), rate: opt.Rate, changed: make(chan struct{}), found: maps.Clone(a.mended.Found)}
	if !a.scrub.CompareAndSwap(nil, s) {
		panic("disk: scrub started twice")
	}
	switch latest := time.Now().Add(opt.Every + opt.Every/10); {
	case opt.Every == 0:
		s.past.Next = time.Time{}
	case s.past.Next.IsZero() || s.past.Next.After(latest):
		s.past.Next = s.nextAfter(time.Now())
	}
	a.recall(s.past.Losses)
	a.tasks.Go(func() {
		s.keep()
		for s.await() {
			s.sweep()
		}
	})
	return s
}

// recall notes what an earlier process found to be lost, unless it was given up since.
func (a *Array) recall(losses []Loss) {
	for _, l := range losses {
		a.mu.RLock()
		there := a.bands[l.Band] != nil
		a.mu.RUnlock()
		if there {
			a.noteLoss(l)
		}
	}
}

// nextAfter is when the sweep after one that started then is due.
func (s *Scrub) nextAfter(start time.Time) time.Time {
	if s.opt.Every == 0 {
		return time.Time{}
	}
	return start.Add(s.opt.Every + time.Duration((2*rand.Float64()-1)*float64(s.opt.Every)/10))
}

// never is a wait that only a change ends.
const never = time.Duration(math.MaxInt64)

// untilDue is how long to wait for the next sweep; mu is held.
func (s *Scrub) untilDue() time.Duration {
	now := time.Now()
	switch {
	case s.past.Paused:
		return never
	case s.asked:
		return 0
	case now.Before(s.retry):
		return s.retry.Sub(now)
	case s.past.Current != nil:
		return 0 // interrupted
	case s.past.Next.IsZero():
		return never
	}
	return s.past.Next.Sub(now)
}

// await waits until a sweep is due, and is false when the array closes.
func (s *Scrub) await() bool {
	for {
		s.mu.Lock()
		wait, changed, kept := s.untilDue(), s.changed, s.past.Losses
		s.mu.Unlock()
		if !slices.Equal(kept, s.a.Status().Losses) {
			s.keep()
		}
		if s.a.ctx.Err() != nil {
			return false
		}
		if wait <= 0 {
			return true
		}
		if !sleep(s.a.ctx, wait, changed) {
			return false
		}
	}
}

// sleep waits for d or a change, and is false when ctx ends.
func sleep(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-ctx.Done():
		return false
	}
	return true
}

// sweep walks over the array once, or over the rest that an earlier process left.
func (s *Scrub) sweep() {
	p, err := s.begin()
	if err == nil {
		s.keep()
		err = p.sweep(s.a.ctx)
	}
	s.end(p, err)
	s.keep()
}

func (s *Scrub) begin() (*pass, error) {
	p, err := s.a.newPass(CheckOptions{Repair: true, Sample: scrubSample})
	if err != nil {
		return nil, err
	}
	p.pace = func(ctx context.Context, b *band, began time.Time) error { return s.pace(ctx, p, b, began) }
	p.stripes = s.stripes
	p.passed = func(b *band) { s.passed(p, b) }
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.past.Current == nil {
		s.past.Current = &ScrubRun{Started: now, Report: p.report()}
	} else {
		p.goOn(s.past.Current)
	}
	p.tellMended()
	s.asked, s.err, s.pass = false, nil, p
	s.began, s.idle, s.base = now, 0, p.done.Load()
	s.free, s.charged, s.speed, s.mark = now, 0, 0, speedMark{at: now}
	return p, nil
}

// goOn has the pass begin behind what an earlier one has visited, and take over what that found.
func (p *pass) goOn(r *ScrubRun) {
	if r.Band == 0 {
		return
	}
	p.from, p.numbers.next = r.Band+1, 0
	for _, b := range p.bands {
		if b.num < p.from {
			p.done.Add(int64(len(b.members)) * p.a.geo.ExtentSize)
		}
	}
	losses, disks := p.rep.Losses, p.rep.Disks
	p.rep = r.Report.clone()
	for _, l := range losses {
		if !slices.Contains(p.rep.Losses, l) {
			p.rep.Losses = append(p.rep.Losses, l)
		}
	}
	if p.rep.Found == nil || len(p.rep.Disks) != len(disks) {
		p.rep.Found, p.rep.Disks = map[Verdict]int{}, disks
	}
}

// end takes the result of a pass; nil if it never began.
func (s *Scrub) end(p *pass, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p != nil {
		s.read += p.read.Load()
		for v, n := range p.found {
			s.found[v] += n
		}
	}
	s.pass = nil
	if err != nil && s.a.ctx.Err() != nil {
		return // the next process goes on
	}
	now := time.Now()
	if err != nil {
		s.a.logger.Error("scrub not ended", "retry_in", scrubRetry, "err", err)
		s.asked, s.err, s.retry = false, err, now.Add(scrubRetry)
		return
	}
	run := s.past.Current
	run.Ended, run.Band, run.Report = now, 0, p.report()
	s.past.Current, s.past.Last = nil, run
	if s.past.Next = s.nextAfter(run.Started); s.opt.Every > 0 && s.past.Next.Before(now) { // it was paused, or is slower than its schedule
		s.past.Next = s.nextAfter(now)
	}
	s.retry = time.Time{}
	r := &run.Report
	s.a.logger.Info("scrub ended", "took", now.Sub(run.Started).Round(time.Second), "stripes", r.Stripes, "cells", r.Cells, "bad", r.Bad,
		"repaired", r.Repaired, "missing", r.Missing, "lost", r.Lost)
}

// pace waits until callers, the rate, and who has paused the scrub allow the next step of a pass.
func (s *Scrub) pace(ctx context.Context, p *pass, b *band, began time.Time) error {
	read, rate := s.charge(p.read.Load())
	if sched := s.a.schedule; sched.callers() {
		var loads []usage
		for _, m := range b.members {
			loads = append(loads, usage{d: s.a.slots()[m.slot], read: int(read) / len(b.members)})
		}
		took := time.Since(began)
		unmeasured := took
		if rate > 0 { // it is held to that
			unmeasured = 0
		}
		sched.rest(ctx, ClassScrub, loads, took, unmeasured)
	}
	for {
		s.mu.Lock()
		now := time.Now()
		wait, paused, changed := s.free.Sub(now), s.past.Paused, s.changed
		if wait <= 0 && !paused {
			s.free = now // what was not used is not saved up
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if paused {
			wait = never
		}
		if !sleep(ctx, wait, changed) {
			return ctx.Err()
		}
		if paused {
			s.mu.Lock()
			s.idle += time.Since(now)
			s.mark = speedMark{time.Now(), p.read.Load()}
			s.mu.Unlock()
		}
	}
}

// stepSpan is what a scrub that is held to a rate reads in a step, in time.
const stepSpan = 50 * time.Millisecond

// stripes is how many stripes a step may verify.
func (s *Scrub) stripes() int {
	if s.a.schedule.callers() {
		return 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rate == 0 {
		return maxBatch
	}
	stripe := int64(s.a.geo.width()) * maxCellBlocks * BlockSize
	return int(max(s.rate*int64(stepSpan)/int64(time.Second)/stripe, 1))
}

// charge takes into account what a pass has read, and returns how much that is since the last time, and the rate: the time that it should have taken counts from where the last step began.
func (s *Scrub) charge(read int64) (since, rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rate > 0 {
		s.free = s.free.Add(time.Duration(float64(read-s.charged) / float64(s.rate) * float64(time.Second)))
	}
	since, s.charged = read-s.charged, read
	now := time.Now()
	if span := now.Sub(s.mark.at); span >= speedSpan || s.speed == 0 && span >= speedSpan/10 {
		s.speed = int64(float64(read-s.mark.read) / span.Seconds())
		s.mark = speedMark{now, read}
	}
	return since, s.rate
}

// passed notes that a band is behind the pass.
func (s *Scrub) passed(p *pass, b *band) {
	s.mu.Lock()
	if b.num > s.past.Current.Band {
		s.past.Current.Band, s.past.Current.Report = b.num, p.report()
	}
	due := time.Since(s.kept) >= scrubKeep
	s.mu.Unlock()
	if due {
		s.keep()
	}
}

// keep has the caller's Keep make the state durable.
func (s *Scrub) keep() {
	if s.opt.Keep == nil {
		return
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	losses := s.a.Status().Losses
	s.mu.Lock()
	s.past.Losses = losses
	past := s.past.clone()
	s.kept = time.Now()
	s.mu.Unlock()
	if err := s.opt.Keep(past); err != nil {
		s.a.logger.Error("state of the scrub not kept", "err", err)
	}
}

func (p ScrubPast) clone() ScrubPast {
	p.Current, p.Last, p.Losses = p.Current.clone(), p.Last.clone(), slices.Clone(p.Losses)
	return p
}

func (r *ScrubRun) clone() *ScrubRun {
	if r == nil {
		return nil
	}
	c := *r
	c.Report = r.Report.clone()
	return &c
}

// change applies f and wakes the sweep.
func (s *Scrub) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Now starts a sweep unless one is under way, and ends a pause.
func (s *Scrub) Now() {
	s.change(func() { s.asked, s.past.Paused = s.pass == nil, false })
	s.keep()
}

// Pause stops sweeping until Resume or Now, across restarts too.
func (s *Scrub) Pause() {
	s.change(func() { s.past.Paused = true })
	s.keep()
}

// Resume ends a pause.
func (s *Scrub) Resume() {
	s.change(func() { s.past.Paused = false })
	s.keep()
}

// SetRate changes the bound on what is read, bytes per second over all disks; 0: none. It holds until the array closes.
func (s *Scrub) SetRate(rate int64) {
	s.change(func() { s.rate, s.free = rate, time.Now() })
}

// Status reports what the scrub does and did.
func (s *Scrub) Status() ScrubStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ScrubStatus{State: "idle", Rate: s.rate, Next: s.past.Next, Current: s.past.Current.clone(), Last: s.past.Last.clone(),
		Read: s.read, Found: maps.Clone(s.found)}
	if s.err != nil {
		st.Error = s.err.Error()
	}
	if s.asked {
		st.State = "running" // any moment
	}
	if p := s.pass; p != nil {
		st.State, st.Speed, st.Done, st.Total = "running", s.speed, p.done.Load(), p.total
		st.Current.Report = p.report()
		st.Read += p.read.Load()
		p.mu.Lock()
		for v, n := range p.found {
			st.Found[v] += n
		}
		p.mu.Unlock()
		if done := st.Done - s.base; done > 0 {
			took := time.Since(s.began) - s.idle
			st.ETASeconds = took.Seconds() / float64(done) * float64(st.Total-st.Done)
		}
	}
	if s.past.Paused {
		st.State, st.ETASeconds, st.Speed = "paused", 0, 0
	}
	return st
}
