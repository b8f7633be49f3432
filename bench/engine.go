package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"coffer/disk"
)

// engineStreams is how many stripes are under way: 24 cells written or 16 read at once.
const engineStreams = 4

// engineRound is what one round gave, in bytes per second.
type engineRound struct {
	write, read                             []float64 // of cells with parity; of data
	plainWrite, plainDurable, plainRead     []float64
	writeCPU, readCPU, plainWCPU, plainRCPU []float64 // seconds per GB
}

// engine compares bulk stripes, parity and checksums and durability and all, with plain loops that move the same number of bytes
// in pieces of the same size, as many at once, on the same files.
func (b *bench) engine(ctx context.Context) error {
	if !b.opt.wants("engine") {
		return nil
	}
	stripes := pick(b, 192, 24)
	var r engineRound
	err := byTurns(b.opt.rounds,
		func() error { return b.engineSlice(ctx, stripes, &r) },
		func() error { return b.plainSlice(stripes, &r) })
	if err != nil {
		return err
	}
	line := func(what string, x, y []float64, target float64, note string) {
		b.add(result{What: what, A: gbps(median(x)), B: gbps(median(y)), Ratio: median(ratios(x, y)), Target: target, Note: note})
	}
	line("stripe writes : plain writes, raw bytes", r.write, r.plainWrite, 0.8,
		fmt.Sprintf("durable against not durable; %s of data; CPU %.2f against %.2f s/GB", gbps(median(r.write)*dataCells/disks),
			median(r.writeCPU), median(r.plainWCPU)))
	line("stripe writes : plain durable writes", r.write, r.plainDurable, 0, "")
	line("stripe reads : plain reads, data bytes", r.read, r.plainRead, 0.8,
		fmt.Sprintf("CPU %.2f against %.2f s/GB", median(r.readCPU), median(r.plainRCPU)))
	return nil
}

// engineSlice writes stripes on a fresh array and reads them back.
func (b *bench) engineSlice(ctx context.Context, stripes int, r *engineRound) (err error) {
	bed, err := b.rig.open(ctx, bedOptions{bare: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	if _, err := writeStripes(ctx, bed.array, 2*engineStreams); err != nil { // maps the buffers
		return err
	}
	var where []disk.Stripe
	s, err := timed(func() (err error) {
		where, err = writeStripes(ctx, bed.array, stripes)
		return err
	})
	if err != nil {
		return err
	}
	raw := float64(stripes) * disks * cellBytes
	r.write = append(r.write, s.perSecond(raw))
	r.writeCPU = append(r.writeCPU, s.cpu.Seconds()/raw*1e9)
	if err := readStripes(ctx, bed.array, where[:2*engineStreams]); err != nil {
		return err
	}
	if s, err = timed(func() error { return readStripes(ctx, bed.array, where) }); err != nil {
		return err
	}
	data := float64(stripes) * stripeData
	r.read = append(r.read, s.perSecond(data))
	r.readCPU = append(r.readCPU, s.cpu.Seconds()/data*1e9)
	return nil
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

// plainSlice moves what engineSlice does.
func (b *bench) plainSlice(stripes int, r *engineRound) (err error) {
	p, err := openPlain(b.rig.paths[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	raw, data := int64(stripes)*disks*cellBytes, int64(stripes)*stripeData
	for _, m := range []struct {
		files, n  int
		total     int64
		io        func(int, []byte, int64) error
		rate, cpu *[]float64
	}{
		{disks, cellBytes, raw, p.write, &r.plainWrite, &r.plainWCPU},
		{disks, cellBytes, raw, p.writeDurably, &r.plainDurable, nil},
		{dataCells, 1 << 20, data, p.read, &r.plainRead, &r.plainRCPU},
	} {
		warm := func(total int64) error { return p.stream(m.files, engineStreams, m.n, total, m.io) }
		if err := warm(int64(2 * engineStreams * m.files * m.n)); err != nil {
			return err
		}
		s, err := timed(func() error { return warm(m.total) })
		if err != nil {
			return err
		}
		*m.rate = append(*m.rate, s.perSecond(float64(m.total)))
		if m.cpu != nil {
			*m.cpu = append(*m.cpu, s.cpu.Seconds()/float64(m.total)*1e9)
		}
	}
	return nil
}
