package disk

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Class is what background work is for.
type Class int

const (
	ClassRepair     Class = iota // rebuilding and draining of disks
	ClassCompaction              // moving what is live out of mostly dead bands
	ClassScrub
	classes = iota
)

// shares is the part of each disk's time that background work may take while callers are served: together less than half. Without callers
// there is no bound.
var shares = [classes]float64{ClassRepair: 1. / 4, ClassCompaction: 1. / 8, ClassScrub: 1. / 16}

const (
	// callersLast is for how long callers are taken to be there after something was done for them.
	callersLast = 20 * time.Millisecond
	// maxRest bounds one rest: a disk that was slow once must not stop the work.
	maxRest = 250 * time.Millisecond
	// yieldBytes is how much is moved before it is charged to the disks.
	yieldBytes = 256 << 10
	// laneBytes is how much of a disk the pieces of a class use at once, while callers are served: a large cell, or several small ones.
	laneBytes = maxCellBlocks * BlockSize
	minWeight = laneBytes / 8
)

// Model is what a disk can do, by measurement (Qualify): bandwidths in bytes, rates in operations of 4 KiB, both per second. What keeps a
// disk busy uses up a part of its bandwidth and a part of its rate, as in Seastar's I/O scheduler.
type Model struct {
	ReadBandwidth  float64 `json:"read_bandwidth"`
	WriteBandwidth float64 `json:"write_bandwidth"`
	ReadRate       float64 `json:"read_rate"`
	WriteRate      float64 `json:"write_rate"`
}

// Valid reports whether all of the model was measured.
func (m *Model) Valid() bool {
	return m != nil && m.ReadBandwidth > 0 && m.WriteBandwidth > 0 && m.ReadRate > 0 && m.WriteRate > 0
}

// busy is for how long one read and one write of so many bytes keep the disk; 0 bytes are no operation.
func (m *Model) busy(read, write int) time.Duration {
	var seconds float64
	if read > 0 {
		seconds += float64(read)/m.ReadBandwidth + 1/m.ReadRate
	}
	if write > 0 {
		seconds += float64(write)/m.WriteBandwidth + 1/m.WriteRate
	}
	return time.Duration(seconds * float64(time.Second))
}

// usage is what a piece of work reads from a disk and writes to it, in bytes.
type usage struct {
	d           *disk
	read, write int
}

// weight is how much of a lane a piece of work takes.
func weight(loads []usage) int64 {
	n := minWeight
	for _, l := range loads {
		n = max(n, l.read+l.write)
	}
	return int64(min(n, laneBytes))
}

// schedule lets background work have its share. A piece of work is charged to the disks that it used: on a disk that was qualified what
// the model says, so that the class gets its share however busy callers keep the disk; on others the time that the piece took, which
// grows with the load, so that the work gives way to it. The class rests until what it did is as much as its share of the time since.
type schedule struct {
	a     *Array
	lanes [classes]*semaphore.Weighted // of laneBytes
	calls atomic.Uint64                // of callers, counted where they are served
	seen  atomic.Uint64
	until atomic.Int64 // callers are taken to be there until then, Unix ns

	mu   sync.Mutex     // guards owed and the disks' due
	owed [classes]int64 // bytes moved and not yet charged
}

func newSchedule(a *Array) *schedule {
	s := &schedule{a: a}
	for c := range s.lanes {
		s.lanes[c] = semaphore.NewWeighted(laneBytes)
	}
	return s
}

// callers reports whether callers have had something done lately.
func (s *schedule) callers() bool {
	if s.a.opt.manual != nil {
		return false
	}
	now := time.Now()
	if n := s.calls.Load(); s.seen.Swap(n) != n {
		s.until.Store(now.Add(callersLast).UnixNano())
	}
	return now.UnixNano() < s.until.Load()
}

// piece does a piece of work and rests. A rate, in bytes per second, takes the place of the share if it is not 0; another one counts soon.
func (s *schedule) piece(ctx context.Context, class Class, bound *atomic.Int64, loads []usage, work func() error) error {
	rate := bound.Load()
	if rate == 0 && !s.callers() {
		return work()
	}
	w := weight(loads)
	if err := s.lanes[class].Acquire(ctx, w); err != nil {
		return err
	}
	defer s.lanes[class].Release(w)
	began := time.Now()
	if err := work(); err != nil {
		return err
	}
	if rate == 0 {
		took := time.Since(began)
		s.rest(ctx, class, loads, took, time.Duration(float64(took)*float64(w)/laneBytes))
		return nil
	}
	n := 0
	for _, l := range loads {
		n += l.read
	}
	end := began.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	for left := time.Until(end); left > 0 && ctx.Err() == nil && bound.Load() == rate; left = time.Until(end) {
		sleep(ctx, min(left, rateLook), nil)
	}
	return nil
}

// rateLook is how soon another rate counts.
const rateLook = 100 * time.Millisecond

// rest charges work that has just ended to the disks, and waits until it is paid for or ctx ends. On a disk that was not qualified it
// costs what the caller says.
func (s *schedule) rest(ctx context.Context, class Class, loads []usage, took, unmeasured time.Duration) {
	if t := s.charge(class, time.Now(), loads, took, unmeasured); t > 0 {
		sleep(ctx, t, nil)
	}
}

// charge returns for how long the class has to rest after work that took so long and ended now.
func (s *schedule) charge(class Class, end time.Time, loads []usage, took, unmeasured time.Duration) (rest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := end.Add(-took)
	for _, l := range loads {
		cost := unmeasured
		if l.d.model.Valid() {
			cost = l.d.model.busy(l.read, l.write)
		}
		due := &l.d.due[class]
		if due.Before(began) {
			*due = began
		}
		*due = due.Add(time.Duration(float64(cost) / shares[class]))
		if latest := end.Add(maxRest); due.After(latest) {
			*due = latest
		}
		rest = max(rest, due.Sub(end))
	}
	return rest
}

// even spreads bytes over all disks that hold data.
func (s *schedule) even(read, write int) []usage {
	var loads []usage
	for _, d := range s.a.slots() {
		if d.counts() {
			loads = append(loads, usage{d: d})
		}
	}
	for i := range loads {
		loads[i].read, loads[i].write = read/len(loads), write/len(loads)
	}
	return loads
}

// Yield returns when background work may move n more bytes: at once while no caller has anything done. Disks that were not qualified
// cost nothing: such work is held to a rate as well.
func (a *Array) Yield(ctx context.Context, class Class, n int) error {
	s := a.schedule
	s.mu.Lock()
	s.owed[class] += int64(n)
	moved := s.owed[class]
	if moved >= yieldBytes {
		s.owed[class] = 0
	}
	s.mu.Unlock()
	if moved < yieldBytes || !s.callers() {
		return ctx.Err()
	}
	s.rest(ctx, class, s.even(int(moved), int(moved)*a.geo.width()/a.geo.Data), 0, 0)
	return ctx.Err()
}

// SetRebuildRate bounds what rebuilding and draining read, in bytes per second; 0: they take their share of the disks' time while callers
// are served, and all of it otherwise.
func (a *Array) SetRebuildRate(bytesPerSecond int64) { a.rebuildRate.Store(bytesPerSecond) }
