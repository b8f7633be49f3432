package disk

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// scheduled is a schedule over three disks, and callers that do something every 5 ms until stop.
func scheduled(model *Model, callers bool) (s *schedule, stop func()) {
	a := &Array{geo: Geometry{Data: 2, Parity: 1, ExtentSize: 1 << 20}}
	table := []*disk{{model: model}, {model: model}, {model: model}}
	a.table.Store(&table)
	a.schedule = newSchedule(a)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	if callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				a.schedule.calls.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return a.schedule, func() { cancel(); wg.Wait() }
}

// near reports whether a share is within a tenth of what it should be.
func near(got, want float64) bool { return got > want*0.9 && got < want*1.1 }

// TestScheduleShares: while callers are served a class has its share of each disk's time, by the model of the disk if it has one; else by
// what the work took. Time is simulated.
func TestScheduleShares(t *testing.T) {
	const span = 20 * time.Second
	fast := &Model{ReadBandwidth: 1 << 30, WriteBandwidth: 1 << 30, ReadRate: 1e6, WriteRate: 1e6} // 1 MiB in about 1 ms
	slow := &Model{ReadBandwidth: 128 << 20, WriteBandwidth: 128 << 20, ReadRate: 1e6, WriteRate: 1e6}
	for _, c := range []struct {
		name    string
		model   *Model
		callers bool
		read    int           // of each piece, bytes
		took    time.Duration // each piece
		workers int
		share   float64 // of the time in which a piece is under way, or the sum of several
	}{
		{"no model: the time it took", nil, true, laneBytes, 4 * time.Millisecond, 1, 0.25},
		{"no model, busy disks: less is done", nil, true, laneBytes, 40 * time.Millisecond, 1, 0.25},
		{"one large piece at a time", nil, true, laneBytes, 4 * time.Millisecond, 4, 0.25},
		{"eight small pieces at a time", nil, true, 4096, 4 * time.Millisecond, 16, 8 * 0.25},
		{"model: disks that answer at once are not used more", slow, true, 1 << 20, time.Millisecond, 1, 0.25 / 8},
		{"model: busy disks do not take the share away", fast, true, 1 << 20, 8 * time.Millisecond, 1, 1},
		{"no callers: no bound", slow, false, 1 << 20, time.Millisecond, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, stop := scheduled(c.model, c.callers)
				defer stop()
				time.Sleep(time.Millisecond)
				loads := []usage{{d: s.a.slots()[0], read: c.read}, {d: s.a.slots()[1], read: c.read}}
				start := time.Now()
				var wg sync.WaitGroup
				var mu sync.Mutex
				var worked time.Duration
				for range c.workers {
					wg.Go(func() {
						for time.Since(start) < span {
							err := s.piece(t.Context(), ClassRepair, new(atomic.Int64), loads, func() error {
								time.Sleep(c.took)
								mu.Lock()
								defer mu.Unlock()
								worked += c.took
								return nil
							})
							if err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				if got := float64(worked) / float64(time.Since(start)); !near(got, c.share) {
					t.Errorf("the work took %.3f of the time, want %.3f", got, c.share)
				}
			})
		})
	}
}

// TestScheduleRate: a rate holds whether callers are there or not.
func TestScheduleRate(t *testing.T) {
	for _, callers := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, stop := scheduled(nil, callers)
			defer stop()
			loads := []usage{{d: s.a.slots()[0], read: 1 << 20}, {d: s.a.slots()[1], read: 1 << 20}, {d: s.a.slots()[2], write: 1 << 20}}
			var rate atomic.Int64
			rate.Store(20 << 20)
			start := time.Now()
			for range 50 {
				if err := s.piece(t.Context(), ClassRepair, &rate, loads, func() error { return nil }); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(start); !near(took.Seconds(), 5) {
				t.Errorf("callers %v: 100 MiB at 20 MiB/s took %v", callers, took)
			}
			rate.Store(1)
			time.AfterFunc(time.Second, func() { rate.Store(0) })
			start = time.Now()
			if err := s.piece(t.Context(), ClassRepair, &rate, loads, func() error { return nil }); err != nil || time.Since(start) > 2*time.Second {
				t.Errorf("callers %v: %v; a rate of 1 B/s that was taken back held for %v", callers, err, time.Since(start))
			}
		})
	}
}

// TestScheduleEnds: a rest is bounded, ends with its context, and an error of the work is returned without one.
func TestScheduleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := scheduled(&Model{ReadBandwidth: 1, WriteBandwidth: 1, ReadRate: 1, WriteRate: 1}, true)
		defer stop()
		time.Sleep(time.Millisecond)
		loads := []usage{{d: s.a.slots()[0], read: 1 << 20}}
		start := time.Now()
		for range 4 {
			if err := s.piece(t.Context(), ClassRepair, new(atomic.Int64), loads, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 4*maxRest {
			t.Errorf("four rests took %v", took)
		}
		start = time.Now()
		broken := errors.New("broken")
		if err := s.piece(t.Context(), ClassRepair, new(atomic.Int64), loads, func() error { return broken }); err != broken || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(10 * time.Millisecond); cancel() }()
		if err := s.piece(ctx, ClassRepair, new(atomic.Int64), loads, func() error { return nil }); err != nil || time.Since(start) != 10*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := s.piece(ctx, ClassRepair, new(atomic.Int64), loads, func() error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("a piece was begun after the end: %v", err)
		}
	})
}

// TestYield: what compaction moves is charged to disks that were qualified, reads and writes with parity.
func TestYield(t *testing.T) {
	model := &Model{ReadBandwidth: 64 << 20, WriteBandwidth: 32 << 20, ReadRate: 1e9, WriteRate: 1e9}
	for _, c := range []struct {
		model   *Model
		callers bool
		want    float64 // seconds
	}{
		// 32 MiB read and 48 written, spread over three disks: 1/6 s of reads and 1/2 s of writes on each, at an eighth of the time.
		{model, true, 8 * (1./6 + 1./2)},
		{model, false, 0},
		{nil, true, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, stop := scheduled(c.model, c.callers)
			defer stop()
			time.Sleep(time.Millisecond)
			start := time.Now()
			for range 32 << 20 / 4096 {
				if err := s.a.Yield(t.Context(), ClassCompaction, 4096); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(start).Seconds(); took != c.want && !near(took, c.want) {
				t.Errorf("took %.3f s, want %.3f", took, c.want)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := s.a.Yield(ctx, ClassCompaction, 4096); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}
