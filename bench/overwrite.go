package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"coffer/disk"
	"coffer/object"
)

// overwriteFill is how much of the array's capacity is live while objects are overwritten.
const overwriteFill = 0.85

// overwrites are the cases of steady overwriting. Extents are small, so that an array has some bands (127), and objects are small against
// them, so that a band holds many: both as on large disks.
var overwrites = []struct {
	name    string
	size    int     // of an object
	writers int     // packed objects share stripes, if enough come together
	hot     float64 // share of the overwrites that goes to a tenth of the objects
}{
	{"bulk/evenly", 4 * 65520, 8, 0},
	{"bulk/skewed", 4 * 65520, 8, 0.9},
	{"packed/evenly", 32 << 10, 128, 0},
	{"packed/skewed", 32 << 10, 128, 0.9},
}

// overwrite fills an array and then overwrites its objects at random, until what was moved at first no longer counts.
func (b *bench) overwrite(ctx context.Context) error {
	for _, c := range overwrites {
		if !b.opt.wants("overwrite/" + c.name) {
			continue
		}
		if err := b.overwriteCase(ctx, c.name, c.size, c.writers, c.hot); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func (b *bench) overwriteCase(ctx context.Context, name string, size, writers int, hot float64) (err error) {
	mem, err := disk.NewMemory(disks, pick(b, int64(512<<20), 64<<20))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mem.Close()) }()
	bed, err := b.rig.open(ctx, bedOptions{own: mem, extent: pick(b, int64(4<<20), 1<<20)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	put := func(i int) error {
		_, err := bed.store.Put(ctx, bucket, fmt.Sprintf("object-%08d", i), bytes.NewReader(data), object.PutOptions{Size: int64(size)})
		return err
	}
	capacity := bed.array.Status().Capacity
	n := 0
	for float64(bed.store.Stats().LiveBytes) < pick(b, overwriteFill, overwriteFill*0.7)*float64(capacity) { // few bands make a small array
		err := parallel(writers, 2*writers, func(i int) error { return put(n + i) })
		if err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		n += 2 * writers
	}
	overwrite := func(times int) error {
		return parallel(writers, times, func(int) error {
			i := rand.IntN(n)
			if rand.Float64() < hot {
				i = rand.IntN(n/10 + 1)
			}
			return put(i)
		})
	}
	if err := overwrite(pick(b, 2*n, n/4)); err != nil { // until bands are as mixed as they get
		return err
	}
	before := bed.store.Stats()
	_, rawBefore := bed.moved()
	times := pick(b, n, n/4)
	took, err := timed(func() error { return overwrite(times) })
	if err != nil {
		return err
	}
	after := bed.store.Stats()
	_, raw := bed.moved()
	accepted := float64(times * size)
	moved := float64(after.MovedBytes - before.MovedBytes)
	b.add(result{What: "overwrite, " + name + " : written and moved : written", A: fmt.Sprintf("%.0f MB", (accepted+moved)/1e6), B: fmt.Sprintf("%.0f MB", accepted/1e6),
		Ratio: (accepted + moved) / accepted, AtMost: 3,
		Note: fmt.Sprintf("%d objects, %.0f %% of %d MiB live; with parity %.2f bytes a byte; %.2f GB/s accepted; CPU %.2f s/GB; %d bands freed", n,
			float64(after.LiveBytes)/float64(capacity)*100, capacity>>20, float64(raw-rawBefore)/accepted, took.perSecond(accepted)/1e9,
			took.cpu.Seconds()/accepted*1e9, after.BandsFreed-before.BandsFreed)})
	return nil
}
