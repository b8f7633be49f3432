package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/object"
)

// getReaders is how many small reads are under way.
const getReaders = 32

// small measures 4 KiB objects.
func (b *bench) small(ctx context.Context) error {
	if b.opt.wants("small/get") {
		if err := b.smallGets(ctx); err != nil {
			return err
		}
	}
	if b.opt.wants("small/allocs") {
		return b.allocations(ctx)
	}
	return nil
}

// smallGets compares reads per second with plain random reads of the same size, as many at once.
func (b *bench) smallGets(ctx context.Context) (err error) {
	objects := pick(b, 20000, 1000)
	var get, plain, perGet []float64
	var cpu []time.Duration
	bed, err := b.rig.open(ctx, bedOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	name := func(i int) string { return fmt.Sprintf("some/folder/object-%08d", i) }
	body := make([]byte, smallObject)
	err = parallel(64, objects, func(i int) error {
		_, err := bed.store.Put(ctx, bucket, name(i), bytes.NewReader(body), object.PutOptions{Size: smallObject})
		return err
	})
	if err != nil {
		return err
	}
	gets := func() error {
		reads, _ := bed.moved()
		var n atomic.Int64
		s, err := timed(func() error {
			return b.readFor(func() error {
				n.Add(1)
				return readObject(ctx, bed.store, name(rand.IntN(objects)), object.SSE{})
			})
		})
		after, _ := bed.moved()
		get = append(get, s.perSecond(float64(n.Load())))
		perGet = append(perGet, float64(after-reads)/float64(n.Load()))
		cpu = append(cpu, s.cpu/time.Duration(n.Load()))
		return err
	}
	plainly := func() (err error) {
		p, err := openPlain(b.rig.paths[0])
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.close()) }()
		d := b.span(800 * time.Millisecond)
		n, err := p.readRandomly(getReaders, d, b.rig.size)
		plain = append(plain, float64(n)/d.Seconds())
		return err
	}
	if err := byTurns(b.opt.rounds, gets, plainly); err != nil {
		return err
	}
	b.add(result{What: fmt.Sprintf("4 KiB get, %d readers : plain 4 KiB reads", getReaders), A: rate(median(get)), B: rate(median(plain)),
		Ratio: median(ratios(get, plain)),
		Note:  fmt.Sprintf("%.2f disk reads a get; CPU %v a get", median(perGet), median(cpu).Round(100*time.Nanosecond))})
	return nil
}

// readFor has readers call f for a slice of time.
func (b *bench) readFor(f func() error) error {
	d := b.span(800 * time.Millisecond)
	var g errgroup.Group
	for range getReaders {
		g.Go(func() error {
			for start := time.Now(); time.Since(start) < d; {
				if err := f(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// allocations counts what one caller's puts and gets leave to the collector, the index's share included.
func (b *bench) allocations(ctx context.Context) (err error) {
	bed, err := b.rig.open(ctx, bedOptions{memory: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	n := pick(b, 4000, 200)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("some/folder/object-%08d", i)
	}
	data := make([]byte, smallObject)
	body := bytes.NewReader(nil)
	ops := []struct {
		name string
		op   func(i int) error
	}{
		{"put", func(i int) error {
			body.Reset(data)
			_, err := bed.store.Put(ctx, bucket, names[i], body, object.PutOptions{Size: smallObject})
			return err
		}},
		{"get", func(i int) error { return readObject(ctx, bed.store, names[i], object.SSE{}) }},
	}
	for _, o := range ops {
		all := func() (allocs, size uint64, err error) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for i := range n {
				if err := o.op(i); err != nil {
					return 0, 0, err
				}
			}
			runtime.ReadMemStats(&after)
			return (after.Mallocs - before.Mallocs) / uint64(n), (after.TotalAlloc - before.TotalAlloc) / uint64(n), nil
		}
		if _, _, err := all(); err != nil { // fills pools
			return err
		}
		allocs, size, err := all()
		if err != nil {
			return err
		}
		b.add(result{What: fmt.Sprintf("4 KiB %s, allocations, bytes allocated", o.name), A: fmt.Sprint(allocs), B: fmt.Sprint(size)})
	}
	return nil
}
