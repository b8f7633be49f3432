package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"coffer/disk"
)

// engineStreams is how many stripes are under way, on both sides: 48 cells written or 32 read at once.
const engineStreams = 8

// stripesPerTurn is how many stripes are moved before the other side has its turn.
const stripesPerTurn = 32

// series is what one side gave, by turn: bytes per second and CPU seconds per GB.
type series struct{ rate, cpu []float64 }

func (s *series) add(took sample, n float64) {
	s.rate = append(s.rate, took.perSecond(n))
	s.cpu = append(s.cpu, took.cpu.Seconds()/n*1e9)
}

// engineSeries are the sides of the comparison: writes count cells with parity, reads data alone.
type engineSeries struct{ write, plainFlushed, plainWrite, plainDurable, read, plainRead series }

// engine compares bulk stripes, parity and checksums and durability and all, with plain loops that move the same number of bytes
// in pieces of the same size, as many at once, on files like theirs.
func (b *bench) engine(ctx context.Context) error {
	if !b.opt.wants("engine") {
		return nil
	}
	var r engineSeries
	for round := range b.opt.rounds {
		if err := b.engineRound(ctx, round, &r); err != nil {
			return err
		}
	}
	line := func(what string, x, y *series, target float64, note string) {
		b.add(result{What: what, A: gbps(median(x.rate)), B: gbps(median(y.rate)), Ratio: median(ratios(x.rate, y.rate)), Target: target, Note: note})
	}
	line("stripe writes : plain writes and a flush, raw bytes", &r.write, &r.plainFlushed, 0.8,
		fmt.Sprintf("%s of data; CPU %.2f against %.2f s/GB", gbps(median(r.write.rate)*dataCells/disks),
			median(r.write.cpu), median(r.plainFlushed.cpu)))
	line("stripe writes : plain writes never flushed", &r.write, &r.plainWrite, 0, "")
	line("stripe writes : plain durable writes", &r.write, &r.plainDurable, 0, "")
	line("stripe reads : plain reads, data bytes", &r.read, &r.plainRead, 0.8,
		fmt.Sprintf("CPU %.2f against %.2f s/GB", median(r.read.cpu), median(r.plainRead.cpu)))
	return nil
}

// engineRound has an array and the plain loops write, then read, by turns, each on files of its own that change hands from round to
// round.
func (b *bench) engineRound(ctx context.Context, round int, r *engineSeries) (err error) {
	bed, err := b.rig.open(ctx, bedOptions{bare: true, set: round % sets})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	p, err := openPlain(b.rig.paths[(round+1)%sets])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	const raw, data = stripesPerTurn * disks * cellBytes, stripesPerTurn * stripeData
	plainly := func(s *series, files, n int, total int64, io func(int, []byte, int64) error) func() error {
		return func() error {
			took, err := timed(func() error { return p.stream(files, engineStreams, n, total, io) })
			s.add(took, float64(total))
			return err
		}
	}
	where, err := writeStripes(ctx, bed.array, 2*engineStreams) // maps the buffers
	if err != nil {
		return err
	}
	turns := pick(b, 5, 1)
	flushed := func() error {
		took, err := timed(func() error {
			return errors.Join(p.stream(disks, engineStreams, cellBytes, raw, p.write), p.flush())
		})
		r.plainFlushed.add(took, float64(raw))
		return err
	}
	err = byTurns(turns, func() error {
		took, err := timed(func() (err error) {
			where, err = writeStripes(ctx, bed.array, stripesPerTurn)
			return err
		})
		r.write.add(took, raw)
		return err
	}, flushed, plainly(&r.plainWrite, disks, cellBytes, raw, p.write), plainly(&r.plainDurable, disks, cellBytes, raw, p.writeDurably))
	if err != nil {
		return err
	}
	if err := readStripes(ctx, bed.array, where[:2*engineStreams]); err != nil {
		return err
	}
	return byTurns(turns, func() error {
		took, err := timed(func() error { return readStripes(ctx, bed.array, where) })
		r.read.add(took, data)
		return err
	}, plainly(&r.plainRead, dataCells, 1<<20, data, p.read))
}

// writeStripes writes n full stripes, engineStreams at once. What the slots hold does not matter.
func writeStripes(ctx context.Context, a *disk.Array, n int) ([]disk.Stripe, error) {
	where := make([]disk.Stripe, n)
	var g errgroup.Group
	for l := range engineStreams {
		g.Go(func() error {
			for i := l; i < n; i += engineStreams {
				w, err := a.NewStripe(ctx, a.MaxStripeSegments())
				if err != nil {
					return err
				}
				for s := dataCells; s <= w.Segments(); s += dataCells { // row by row, as segments come
					if err := w.Sealed(s); err != nil {
						w.Discard()
						return err
					}
				}
				if where[i], err = w.Commit(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return where, g.Wait()
}

func readStripes(ctx context.Context, a *disk.Array, where []disk.Stripe) error {
	var g errgroup.Group
	for l := range engineStreams {
		g.Go(func() error {
			for i := l; i < len(where); i += engineStreams {
				v, err := a.ReadStripe(ctx, where[i], 0, int(where[i].Segments))
				if err != nil {
					return err
				}
				v.Release()
			}
			return nil
		})
	}
	return g.Wait()
}
