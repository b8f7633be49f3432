package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/disk"
)

// repairLanes is how many I/Os of each disk the plain loops keep under way.
const repairLanes = 8

// repairSeries is what the rounds gave: bytes per second, and appends per second.
type repairSeries struct {
	scrub, plainRead             series
	rebuild, plainCopy           series
	idle, busy                   [len(callers)]series
	degraded, healthy            series
	rebuiltAlone, rebuiltServing []time.Duration
}

type caller struct {
	name, what string
	show       func(float64) string
}

// callers are what a rebuild shares the disks with, one kind at a time.
var callers = [...]caller{
	{"reads", "stripe reads", gbps},
	{"writes", "stripe writes", gbps},
	{"appends", "4 KiB appends", rate},
}

// repair measures what keeps an array whole against the sequential speed of its disks, and what callers notice of it.
func (b *bench) repair(ctx context.Context) error {
	var r repairSeries
	for _, what := range []string{"scrub", "rebuild", "foreground/reads", "foreground/writes", "foreground/appends"} {
		if b.opt.wants(what) {
			if err := b.repairRounds(ctx, &r, what); err != nil {
				return err
			}
		}
	}
	if b.opt.wants("degraded") {
		if err := b.degradedRounds(ctx, &r); err != nil {
			return err
		}
	}
	line := func(what string, x, y *series, target float64, show func(float64) string, note string) {
		if len(x.rate) > 0 {
			b.add(result{What: what, A: show(median(x.rate)), B: show(median(y.rate)), Ratio: median(ratios(x.rate, y.rate)), Target: target, Note: note})
		}
	}
	line("scrub : plain reads of all disks", &r.scrub, &r.plainRead, 0.7, gbps,
		fmt.Sprintf("CPU %.2f against %.2f s/GB", median(r.scrub.cpu), median(r.plainRead.cpu)))
	line("rebuild, idle : plain reads of k, write of one", &r.rebuild, &r.plainCopy, 0.7, gbps,
		fmt.Sprintf("bytes of the new disk; CPU %.2f against %.2f s/GB; took %v, and %v beside callers", median(r.rebuild.cpu),
			median(r.plainCopy.cpu), median(r.rebuiltAlone).Round(time.Millisecond), median(r.rebuiltServing).Round(time.Millisecond)))
	for i, c := range callers {
		line(c.what+", rebuilding : idle", &r.busy[i], &r.idle[i], 0.6, c.show, "")
	}
	line("stripe reads, a disk gone : healthy", &r.degraded, &r.healthy, 0.6, gbps,
		fmt.Sprintf("CPU %.2f against %.2f s/GB", median(r.degraded.cpu), median(r.healthy.cpu)))
	return nil
}

// readBytes sums up what the disks have read.
func (b *bed) readBytes() (n uint64) {
	for _, d := range b.array.Status().Disks {
		n += d.Stats.ReadBytes
	}
	return n
}

// maxRepairs is how many disks may be replaced before the bands that each epoch begins with have filled the array.
const maxRepairs = 7

// repairRounds measures one thing on an array of its own.
func (b *bench) repairRounds(ctx context.Context, r *repairSeries, what string) (err error) {
	if err := b.rig.makeSpare(); err != nil {
		return err
	}
	bed, err := b.rig.open(ctx, bedOptions{bare: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	p, err := openPlain(b.rig.paths[1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	stripes := pick(b, 384, 48)
	if what == "foreground/writes" || what == "foreground/appends" {
		stripes = pick(b, 128, 24) // what is written meanwhile is to find room
	}
	where, err := writeStripes(ctx, bed.array, stripes)
	if err != nil {
		return err
	}
	total := b.rig.size - 4<<20
	slot := 0
	next := func() int { slot = (slot + 1) % disks; return slot }
	var turns []func() error
	switch what {
	case "scrub":
		turns = append(turns, func() error {
			before := bed.readBytes()
			took, err := timed(func() error {
				rep, err := bed.array.Check(ctx, disk.CheckOptions{Repair: true, Sample: 16})
				if err == nil && !rep.OK() {
					err = fmt.Errorf("scrub found %+v", rep)
				}
				return err
			})
			r.scrub.add(took, float64(bed.readBytes()-before))
			return err
		}, func() error {
			n := disks * total / 2
			took, err := timed(func() error { return p.stream(disks, repairLanes, 1<<20, n, p.read) })
			r.plainRead.add(took, float64(n))
			return err
		})
	case "rebuild":
		turns = append(turns, func() error {
			var n uint64
			took, err := timed(func() (err error) { n, err = b.rebuild(ctx, bed, next(), nil); return err })
			r.rebuild.add(took, float64(n))
			r.rebuiltAlone = append(r.rebuiltAlone, took.wall)
			return err
		}, func() error {
			n := total / 2
			took, err := timed(func() error { return errors.Join(p.copyStripes(repairLanes, n), p.flush()) })
			r.plainCopy.add(took, float64(n))
			return err
		})
	default:
		kind := slices.IndexFunc(callers[:], func(c caller) bool { return what == "foreground/"+c.name })
		work := b.foreground(ctx, bed, where, callers[kind].name)
		turns = append(turns, func() error { return work(nil, &r.idle[kind]) },
			func() error {
				busy := make(chan struct{})
				var g errgroup.Group
				start := time.Now()
				_, err := b.rebuild(ctx, bed, next(), func() {
					g.Go(func() error { return work(busy, &r.busy[kind]) })
				})
				close(busy)
				r.rebuiltServing = append(r.rebuiltServing, time.Since(start))
				return errors.Join(err, g.Wait())
			})
	}
	return byTurns(min(b.opt.rounds, maxRepairs), turns...)
}

// rebuild puts the spare disk in place of another and waits until it is whole. It returns the bytes written to it.
func (b *bench) rebuild(ctx context.Context, bed *bed, slot int, began func()) (uint64, error) {
	if err := bed.array.Replace(ctx, slot, b.rig.spare, true); err != nil {
		return 0, err
	}
	b.rig.spare, b.rig.paths[0][slot] = b.rig.paths[0][slot], b.rig.spare
	if began != nil {
		began()
	}
	for {
		d := bed.array.Status().Disks[slot]
		switch {
		case d.State == disk.DiskHealthy, d.State == disk.DiskSuspect:
			return d.Stats.WriteBytes, nil
		case d.State != disk.DiskRebuilding, d.Rebuild != nil && d.Rebuild.Failed > 0:
			return 0, fmt.Errorf("rebuild of slot %d: %s: %s", slot, d.State, d.Reason)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// writtenAtOnce is how many stripes are written in a turn: all turns must fit on the disks.
const writtenAtOnce = 16

// foreground is callers that read stripes or append small records for a slice of time, or until done is closed, or write some stripes.
func (b *bench) foreground(ctx context.Context, bed *bed, where []disk.Stripe, kind string) func(done <-chan struct{}, s *series) error {
	if kind == "writes" {
		return func(_ <-chan struct{}, s *series) error {
			n := pick(b, writtenAtOnce, writtenAtOnce/10)
			took, err := timed(func() error { _, err := writeStripes(ctx, bed.array, n); return err })
			s.add(took, float64(n*stripeData))
			return err
		}
	}
	workers, each, one := engineStreams, stripeData, func(l int) func(i int) error {
		return func(i int) error { return readStripes(ctx, bed.array, where[(l+i*engineStreams)%len(where):][:1]) }
	}
	if kind == "appends" {
		put := arrayPutter(ctx, bed.array)
		workers, each, one = 16, 1, func(l int) func(int) error {
			f := put(l)
			return func(int) error { return f() }
		}
	}
	return func(done <-chan struct{}, s *series) error {
		var n atomic.Int64
		start := time.Now()
		over := func() bool {
			select {
			case <-done:
				return true
			default:
				return time.Since(start) >= b.span(1500*time.Millisecond)
			}
		}
		took, err := timed(func() error {
			var g errgroup.Group
			for l := range workers {
				g.Go(func() error {
					f := one(l)
					for i := 0; !over(); i++ {
						if err := f(i); err != nil {
							return err
						}
						n.Add(int64(each))
					}
					return nil
				})
			}
			return g.Wait()
		})
		s.add(took, float64(n.Load()))
		return err
	}
}

// degradedRounds reads the same stripes from an array without one of its disks and from a whole one.
func (b *bench) degradedRounds(ctx context.Context, r *repairSeries) (err error) {
	var beds [sets]*bed
	var where [sets][]disk.Stripe
	defer func() {
		for _, bed := range beds {
			if bed != nil {
				err = errors.Join(err, bed.close())
			}
		}
	}()
	for set := range sets {
		if beds[set], err = b.rig.open(ctx, bedOptions{bare: true, set: set}); err != nil {
			return err
		}
		if where[set], err = writeStripes(ctx, beds[set].array, pick(b, 128, 16)); err != nil {
			return err
		}
	}
	if err := beds[1].reopen(ctx, b.rig.crypto, b.rig.paths[1][1:]); err != nil {
		return err
	}
	read := func(set int, s *series) func() error {
		return func() error {
			took, err := timed(func() error { return readStripes(ctx, beds[set].array, where[set]) })
			s.add(took, float64(len(where[set])*stripeData))
			return err
		}
	}
	return byTurns(b.opt.rounds, read(0, &r.healthy), read(1, &r.degraded))
}
