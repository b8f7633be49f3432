package object

import (
	"context"
	"errors"
	"sync"
	"time"

	"coffer/disk"
)

// errPaused ends a pass of the background: what it has moved so far stays moved.
var errPaused = errors.New("compaction is paused")

// CompactionStatus describes compaction in the background. Sizes are bytes; counts are since the store was made.
type CompactionStatus struct {
	State    string      `json:"state"`            // "idle", "running", "paused"
	Rate     int64       `json:"bytes_per_second"` // bound on what is moved while no writer waits for space; 0: none
	Next     time.Time   `json:"next,omitzero"`    // pass of the background
	Current  *CompactRun `json:"current,omitempty"`
	Last     *CompactRun `json:"last,omitempty"`  // the last pass that was asked for or freed a band
	Error    string      `json:"error,omitempty"` // why the last pass did not come to its end
	Hurry    bool        `json:"hurry"`           // space is short: bands are freed for writers that wait, whatever pause and rate say
	Freed    int64       `json:"bands_freed"`
	Moved    int64       `json:"moved_bytes"` // written again
	Reclaim  int64       `json:"reclaimed_bytes"`
	Live     int64       `json:"live_bytes"`   // of the bands' space
	Shadows  int64       `json:"shadow_bytes"` // of them, records kept only because of what they hide
	Waiting  int         `json:"waiting_writers"`
	Accepted int64       `json:"accepted_bytes"` // plaintext from clients
}

// CompactRun is one pass.
type CompactRun struct {
	Started time.Time     `json:"started"`
	Ended   time.Time     `json:"ended,omitzero"`
	All     bool          `json:"all"`     // every band that gains by it, not just those below half live
	Bands   int           `json:"bands"`   // chosen
	Visited int           `json:"visited"` // of them
	Report  CompactReport `json:"report"`
}

// compactControl is how the background's compaction is steered.
type compactControl struct {
	mu      sync.Mutex // guards all below
	changed chan struct{}
	rate    int64
	paused  bool
	asked   bool
	all     bool // with asked
	next    time.Time
	current *CompactRun
	last    *CompactRun
	err     error
}

// change applies f and wakes who waits.
func (c *compactControl) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// CompactNow starts a pass unless one like it is under way, and ends a pause. With all, every band is compacted that gains something by
// it, not just those below half live.
func (s *Store) CompactNow(o CompactOptions) {
	c := &s.control
	c.change(func() {
		c.paused = false
		if c.current == nil || o.All && !c.current.All {
			c.asked, c.all = true, c.all || o.All
		}
	})
}

// PauseCompaction stops compaction until ResumeCompaction, CompactNow or the end of the store. Writers that wait for space have bands
// freed all the same.
func (s *Store) PauseCompaction() { s.control.change(func() { s.control.paused = true }) }

// ResumeCompaction ends a pause.
func (s *Store) ResumeCompaction() { s.control.change(func() { s.control.paused = false }) }

// SetCompactRate changes how many bytes a second are moved while no writer waits for space; 0: no bound.
func (s *Store) SetCompactRate(bytesPerSecond int64) {
	s.control.change(func() { s.control.rate = bytesPerSecond })
}

// Compaction reports what compaction does and did.
func (s *Store) Compaction() CompactionStatus {
	stats := s.Stats()
	c := &s.control
	c.mu.Lock()
	defer c.mu.Unlock()
	st := CompactionStatus{State: "idle", Rate: c.rate, Next: c.next, Hurry: s.hurry.Load(), Freed: stats.BandsFreed, Moved: stats.MovedBytes,
		Reclaim: stats.ReclaimedBytes, Live: stats.LiveBytes, Shadows: stats.ShadowBytes, Waiting: stats.WaitingWriters, Accepted: stats.SealedBytes}
	for to, from := range map[**CompactRun]*CompactRun{&st.Current: c.current, &st.Last: c.last} {
		if from != nil {
			run := *from
			*to = &run
		}
	}
	if c.err != nil {
		st.Error = c.err.Error()
	}
	switch {
	case c.paused:
		st.State, st.Next = "paused", time.Time{}
	case c.current != nil || c.asked:
		st.State = "running"
	}
	return st
}

// await waits until a pass is due, and is false when ctx ends.
func (c *compactControl) await(ctx context.Context) bool {
	for {
		c.mu.Lock()
		wait, changed := time.Until(c.next), c.changed
		paused := c.paused
		if c.asked {
			wait = 0
		}
		c.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return false
		case paused:
			wait = time.Hour
		case wait <= 0:
			return true
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// compactor works in the background until ctx ends: now and then at its leisure, and at once for writers that wait for space.
func (s *Store) compactor(ctx context.Context, log Log) {
	var wg sync.WaitGroup
	defer wg.Wait()
	pressure := log.Pressure()
	defer log.Unattended()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-pressure:
				s.hurry.Store(true)
				log.Relieve(func() bool { return s.relieve(ctx, log) })
				s.hurry.Store(false)
			}
		}
	})
	for s.control.await(ctx) {
		s.background(ctx, log)
	}
}

// background makes a pass that is due.
func (s *Store) background(ctx context.Context, log Log) {
	c := &s.control
	run := &CompactRun{Started: time.Now()}
	c.mu.Lock()
	asked := c.asked
	run.All = asked && c.all
	c.asked, c.all, c.err, c.current = false, false, nil, run
	c.mu.Unlock()
	pass := &compaction{s: s, log: log, pace: s.newPacer(log), run: run}
	pass.pace.pausable = true
	var err error
	if asked {
		err = pass.inTurn(ctx, func() error { clear(s.damaged); return nil })
	}
	if err == nil {
		err = pass.pass(ctx, gainOf(run.All))
	}
	paused := errors.Is(err, errPaused)
	if paused {
		err = nil
	}
	pass.finish(ctx, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.err = nil, err
	c.next = time.Now().Add(s.opt.CompactEvery)
	run.Ended, run.Report = time.Now(), pass.report
	switch {
	case paused:
		c.asked, c.all = c.asked || asked, c.all || run.All // goes on with what is left
	case err == nil && (asked || pass.report.Bands > 0):
		c.last = run
	}
}

// gainOf is how much of a band must be gained for it to be compacted.
func gainOf(all bool) float64 {
	if all {
		return minGainTight
	}
	return minGain
}

// CompactPlan is what a pass would do.
type CompactPlan struct {
	All     bool            `json:"all"`
	Bands   []CompactChoice `json:"bands"`           // in the order of the pass
	Move    int64           `json:"move_bytes"`      // to be written again at most
	Reclaim int64           `json:"reclaimed_bytes"` // space of the bands
}

// CompactChoice is a band that a pass would empty and free. Sizes are bytes.
type CompactChoice struct {
	Band   uint64    `json:"band"`
	Bulk   bool      `json:"bulk"`
	Opened time.Time `json:"opened"`
	Size   int64     `json:"size"`
	Live   int64     `json:"live"`
}

// PlanCompaction says what a pass would do now. It moves nothing.
func (s *Store) PlanCompaction(ctx context.Context, all bool) (CompactPlan, error) {
	p := CompactPlan{All: all, Bands: []CompactChoice{}}
	log, err := s.disk()
	if err != nil {
		return p, err
	}
	c := &compaction{s: s, log: log}
	err = c.inTurn(ctx, func() error {
		dead, list, err := c.choose(gainOf(all))
		for _, b := range append(dead, list...) {
			x := CompactChoice{Band: b.Num, Bulk: b.Bulk, Opened: b.Opened, Size: b.Size, Live: bandLive(log, b.Band, b.live)}
			p.Bands = append(p.Bands, x)
			p.Move += x.Live
			p.Reclaim += x.Size
		}
		return err
	})
	return p, err
}

// bandLive turns the live bytes that the index counts of a band into bytes of its space.
func bandLive(log Log, b disk.Band, counted int64) int64 {
	if b.Bulk {
		return int64(float64(counted) / float64(log.ExtentSpace()) * float64(b.Size))
	}
	return counted
}

// pacer spreads the bytes that are moved over time.
type pacer struct {
	s        *Store
	log      Log
	pausable bool       // a pause ends the pass
	mu       sync.Mutex // guards next
	// next is when what was moved so far is paid for.
	next time.Time
}

func (s *Store) newPacer(log Log) *pacer { return &pacer{s: s, log: log} }

// wait returns when the rate and other callers let n more bytes be moved: at once while writers wait for space.
func (p *pacer) wait(ctx context.Context, n int) error {
	var until time.Time
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.s.hurry.Load() {
			return nil
		}
		c := &p.s.control
		c.mu.Lock()
		rate, paused, changed := c.rate, c.paused && p.pausable, c.changed
		c.mu.Unlock()
		if paused {
			return errPaused
		}
		if first {
			until = p.charge(n, rate)
			if err := p.log.Yield(ctx, disk.ClassCompaction, n); err != nil {
				return err
			}
		}
		left := time.Until(until)
		if left <= 0 || rate == 0 {
			return nil
		}
		t := time.NewTimer(min(left, paceSlice))
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// charge returns when n more bytes may be moved at a rate.
func (p *pacer) charge(n int, rate int64) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.next.Before(now) || rate == 0 {
		p.next = now
	}
	until := p.next
	if rate > 0 {
		p.next = until.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	}
	return until
}
