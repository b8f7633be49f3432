package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/disk"
	"coffer/object"
)

const smallObject = 4096

// recordBody is the size of the record that goes with a small object, about that of the store's.
const recordBody = 300

// putSeries is what the rounds of one number of writers gave.
type putSeries struct {
	rate, lone    []float64
	cpu           []time.Duration // per put
	amp, perBatch []float64
	took, alone   []time.Duration
}

// puts compares small durable writes with what a lone writer gets from the bare file: a loop of O_DIRECT|RWF_DSYNC appends.
func (b *bench) puts(ctx context.Context) error {
	targets := map[int]float64{64: 3.5, 256: 5.5}
	for _, bare := range []bool{false, true} {
		name, group := "Store.Put", "store"
		if bare {
			name, group = "Array.Append", "array"
		}
		for _, writers := range []int{1, 64, 256} {
			if !b.opt.wants(fmt.Sprintf("puts/%s/%d", group, writers)) {
				continue
			}
			var s putSeries
			err := byTurns(b.opt.rounds,
				func() error { return b.putSlice(ctx, bare, writers, smallObject, &s) },
				func() error { return b.loneSlice(&s) })
			if err != nil {
				return err
			}
			slices.Sort(s.took)
			slices.Sort(s.alone)
			p := func(v []time.Duration, at float64) string {
				return percentile(v, at).Round(10 * time.Microsecond).String()
			}
			b.add(result{
				What: fmt.Sprintf("%s, %d writers : lone loop", name, writers), A: rate(median(s.rate)), B: rate(median(s.lone)),
				Ratio: median(ratios(s.rate, s.lone)), Target: targets[writers],
				Note: fmt.Sprintf("p50 %s p99 %s (lone: %s, %s); CPU %v a put; %.0f puts a commit; %.2f bytes written a byte put",
					p(s.took, 50), p(s.took, 99), p(s.alone, 50), p(s.alone, 99), median(s.cpu).Round(100*time.Nanosecond),
					median(s.perBatch), median(s.amp)),
			})
			if writers == mostWriters {
				b.add(result{What: fmt.Sprintf("bytes written a byte put, %s, %d writers", name, writers), A: fmt.Sprintf("%.2f bytes", median(s.amp)), B: "1 byte", Ratio: median(s.amp), AtMost: 1.8})
			}
		}
	}
	return b.lonePut(ctx)
}

const mostWriters = 256

// lonePut counts the blocks that a put with no company writes: one for the record and its data, where both fit into it, and one for each
// parity cell. An object of 4 KiB does not fit into a block with its tag and record, and takes twice as many.
func (b *bench) lonePut(ctx context.Context) error {
	if !b.opt.wants("puts/store/1") {
		return nil
	}
	const size = 2048
	var s putSeries
	for range pick(b, 3, 1) {
		if err := b.putSlice(ctx, false, 1, size, &s); err != nil {
			return err
		}
	}
	blocks := median(s.amp) * size / disk.BlockSize
	b.add(result{What: "blocks written by a lone put of 2 KiB", A: fmt.Sprintf("%.2f blocks", blocks), B: "1 block", Ratio: blocks, AtMost: 1 + parityCells})
	return nil
}

// putSlice has writers put small objects, each under a key of its own, into a fresh array.
func (b *bench) putSlice(ctx context.Context, bare bool, writers, size int, out *putSeries) (err error) {
	bed, err := b.rig.open(ctx, bedOptions{bare: bare})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	one := storePutter(ctx, bed.store, size)
	if bare {
		one = arrayPutter(ctx, bed.array)
	}
	if _, err := writeFor(writers, b.span(400*time.Millisecond), one); err != nil { // fills pools and caches
		return err
	}
	_, before := bed.moved()
	commits := bed.array.Status().Commits
	var took []time.Duration
	s, err := timed(func() (err error) {
		took, err = writeFor(writers, b.span(1500*time.Millisecond), one)
		return err
	})
	if err != nil {
		return err
	}
	_, after := bed.moved()
	n := float64(len(took))
	out.rate = append(out.rate, s.perSecond(n))
	out.cpu = append(out.cpu, s.cpu/time.Duration(len(took)))
	out.amp = append(out.amp, float64(after-before)/n/float64(size))
	out.perBatch = append(out.perBatch, n/float64(bed.array.Status().Commits-commits))
	out.took = append(out.took, took...)
	return nil
}

// putter makes what one writer calls again and again.
type putter func(writer int) func() error

func storePutter(ctx context.Context, s *object.Store, size int) putter {
	return func(writer int) func() error {
		data := bytes.Repeat([]byte{byte(writer)}, size)
		body := bytes.NewReader(nil)
		next := time.Now().UnixNano() // no key comes twice, in the warm-up either
		return func() error {
			body.Reset(data)
			next++
			_, err := s.Put(ctx, bucket, fmt.Sprintf("some/folder-%d/object-%d", writer, next), body, object.PutOptions{Size: int64(size)})
			return err
		}
	}
}

func arrayPutter(ctx context.Context, a *disk.Array) putter {
	return func(writer int) func() error {
		rec := disk.Record{Body: make([]byte, recordBody), Data: make([]byte, smallObject+16)}
		return func() error {
			_, err := a.Append(ctx, rec)
			return err
		}
	}
}

// writeFor has writers put for d, and returns how long each put took.
func writeFor(writers int, d time.Duration, p putter) ([]time.Duration, error) {
	var g errgroup.Group
	took := make([][]time.Duration, writers)
	start := time.Now()
	for w := range writers {
		g.Go(func() error {
			put := p(w)
			for {
				t := time.Now()
				if t.Sub(start) >= d {
					return nil
				}
				if err := put(); err != nil {
					return err
				}
				took[w] = append(took[w], time.Since(t))
			}
		})
	}
	err := g.Wait()
	return slices.Concat(took...), err
}

// loneSlice is the loop to compare with.
func (b *bench) loneSlice(out *putSeries) (err error) {
	p, err := openPlain(b.rig.paths[0][:1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	d := b.span(600 * time.Millisecond)
	took, err := p.append(d, b.rig.size)
	if err != nil {
		return err
	}
	out.lone = append(out.lone, float64(len(took))/d.Seconds())
	out.alone = append(out.alone, took...)
	return nil
}
