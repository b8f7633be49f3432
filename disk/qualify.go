package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// ErrHolds: a disk that would be overwritten holds something.
var ErrHolds = errors.New("disk is not empty")

// QualifyOptions say how a disk is measured.
type QualifyOptions struct {
	// Span is the length of each measurement; 0 means 3 s. There are about a dozen, half as many without Write.
	Span time.Duration
	// Write measures writes and the write cache as well, which destroys what the disk holds.
	Write bool
	// Streams measures sequential bandwidth only.
	Streams bool
	// Progress is told what is measured next; may be nil.
	Progress func(what string)
}

// Qualification is what a disk can do. Rates are per second, sizes and bandwidths bytes.
type Qualification struct {
	Path       string    `json:"path"`
	Model      string    `json:"model,omitempty"`
	Serial     string    `json:"serial,omitempty"`
	Size       int64     `json:"size"`
	Rotational bool      `json:"rotational"`
	WriteBack  bool      `json:"volatile_cache"` // as the kernel says; assumed when it does not know
	FUA        bool      `json:"fua"`
	Measured   time.Time `json:"measured"`
	// Blank is the share of reads that met zeros: of holes and trimmed blocks, which disks and file systems answer without looking.
	Blank float64 `json:"blank_reads,omitempty"`

	SeqRead    float64      `json:"sequential_read"`
	SeqWrite   float64      `json:"sequential_write,omitempty"`
	RandRead   []DepthPoint `json:"random_read"`
	RandWrite  []DepthPoint `json:"random_write,omitempty"` // not durable
	Mix        MixPoint     `json:"mix"`
	Durable    *DepthPoint  `json:"durable_write,omitempty"` // 4 KiB again and again in one place, each durable
	Cached     *DepthPoint  `json:"cached_write,omitempty"`  // the same, none durable
	FlushClean *DepthPoint  `json:"flush_clean,omitempty"`   // with nothing to flush
	FlushDirty *DepthPoint  `json:"flush_dirty,omitempty"`   // after a write of 1 MiB
	Cache      string       `json:"write_cache,omitempty"`   // see CacheVerdict
	CacheWhy   string       `json:"write_cache_reason,omitempty"`
}

// DiskModel is what background work is scheduled by. Without a measurement of writes they are taken to be as fast as reads.
func (q *Qualification) DiskModel() *Model {
	best := func(points []DepthPoint) (rate float64) {
		for _, p := range points {
			rate = max(rate, p.Rate)
		}
		return rate
	}
	m := &Model{ReadBandwidth: q.SeqRead, WriteBandwidth: q.SeqWrite, ReadRate: best(q.RandRead), WriteRate: best(q.RandWrite)}
	if m.WriteBandwidth == 0 {
		m.WriteBandwidth, m.WriteRate = m.ReadBandwidth, m.ReadRate
	}
	return m
}

// DepthPoint is a measurement with as many operations under way.
type DepthPoint struct {
	Depth int           `json:"depth"`
	Rate  float64       `json:"rate"`
	P50   time.Duration `json:"p50_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`
}

// MixPoint tells how small reads fare beside large blocks, as Aerospike's certification tool asks: shares of the reads in percent.
type MixPoint struct {
	DepthPoint
	Large       float64 `json:"large_block_bandwidth"`
	LargeWrites bool    `json:"large_writes"` // half of the large blocks are writes
	Over1ms     float64 `json:"over_1ms_percent"`
	Over8ms     float64 `json:"over_8ms_percent"`
	Over64ms    float64 `json:"over_64ms_percent"`
}

// Verdicts on a write cache.
const (
	CacheWriteThrough = "write-through"       // the disk says that it has none that a power cut empties
	CachePlausible    = "plausible"           // durable writes take as long as the medium needs
	CacheTooFast      = "too fast to be true" // they do not: a power cut would lose acknowledged writes
)

// Fastest durable rewrites of one place that a medium allows.
const (
	fastestRotation = 3 * time.Millisecond  // of a disk of 20,000 turns a minute, faster than any
	fastestFlash    = 40 * time.Microsecond // to program a page of the fastest cells
	fastestSeek     = time.Millisecond      // median random read: a disk that is faster does not turn, whatever it says, as virtual ones do
)

// CacheVerdict compares durable writes to one place, of which each has to wait for the medium, with what the medium can do. read is
// the median of random reads, one at a time.
func CacheVerdict(rotational, writeBack bool, read, durable time.Duration) (verdict, why string) {
	rotational = rotational && read > fastestSeek
	switch {
	case rotational && durable < fastestRotation:
		return CacheTooFast, fmt.Sprintf("one place is rewritten durably in %v, and a turn of a disk takes longer: turn the cache off (hdparm -W 0), "+
			"unless a controller with a battery keeps it", durable)
	case !writeBack:
		return CacheWriteThrough, "the disk says that no volatile cache lies before the medium: it keeps what it acknowledges, or lies about it where no test can see"
	case !rotational && durable < fastestFlash:
		return CacheTooFast, fmt.Sprintf("one place is rewritten durably in %v, faster than flash is programmed, though the disk has a volatile cache: "+
			"flushes are ignored", durable)
	}
	return CachePlausible, fmt.Sprintf("one place is rewritten durably in %v", durable)
}

// Sizes of the measurements.
const (
	qualifySmall  = 4096
	qualifyLarge  = 1 << 20
	qualifyStream = 4         // large blocks under way
	qualifyMix    = 128 << 10 // ACT's large block
	qualifySpan   = 3 * time.Second
)

var qualifyDepths = []int{1, 4, 16, 32}

// Qualify measures the disk at path as fio and ACT do, through the engine's own I/O. Nobody else may use the disk; with Write it must
// hold nothing, else the error wraps ErrHolds. Every I/O has the usual deadline, and an I/O error ends the measurement.
func Qualify(ctx context.Context, path string, opt QualifyOptions) (_ *Qualification, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("qualify %s: %w", path, err)
		}
	}()
	if opt.Write {
		holds, err := Inspect(path)
		if err != nil {
			return nil, err
		}
		if holds != "" {
			return nil, fmt.Errorf("it holds %s: %w", holds, ErrHolds)
		}
	}
	dev, err := blockdev.OpenFile(path, blockdev.OpenOptions{ReadOnly: !opt.Write})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	g, err := blockdev.NewGroup([]blockdev.Device{dev}, blockdev.GroupOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	q := &qualifier{g: g, dev: dev, size: dev.Limits().Size &^ (qualifyLarge - 1), span: opt.Span, streams: opt.Streams, arena: newArena(128 << 20), progress: opt.Progress}
	defer q.arena.Close()
	if q.span == 0 {
		q.span = qualifySpan
	}
	if q.size < 16*qualifyLarge {
		return nil, fmt.Errorf("%d bytes are too few to measure", q.size)
	}
	l := dev.Limits()
	r := &Qualification{Path: path, Model: l.Model, Serial: l.Serial, Size: l.Size, Rotational: l.Rotational, WriteBack: l.WriteBack, FUA: l.FUA,
		Measured: time.Now()}
	if opt.Write { // first, so that reads meet written blocks
		if err := q.writes(ctx, r); err != nil {
			return nil, err
		}
	}
	if err := q.reads(ctx, r); err != nil {
		return nil, err
	}
	r.Blank = float64(q.blank.Load()) / float64(max(q.done.Load(), 1))
	if opt.Write && !opt.Streams {
		r.Cache, r.CacheWhy = CacheVerdict(r.Rotational, r.WriteBack, r.RandRead[0].P50, r.Durable.P50)
	}
	return r, nil
}

// qualifier measures one disk.
type qualifier struct {
	g        blockdev.Group
	dev      blockdev.Device
	size     int64
	span     time.Duration
	arena    *blockdev.Arena
	streams  bool
	progress func(string)

	done, blank atomic.Int64 // reads, and those of zeros
}

func (q *qualifier) say(what string) {
	if q.progress != nil {
		q.progress(what)
	}
}

// work is a kind of I/O that lanes goroutines do again and again.
type work struct {
	lanes, size    int
	write, durable bool
	random         bool
	still          bool // always in one place
}

// done is what came of a work.
type done struct {
	took []time.Duration // each operation
	wall time.Duration   // all of them
}

// run does the works side by side for the span. Each lane does at least one operation.
func (q *qualifier) run(ctx context.Context, works ...work) ([]done, error) {
	type lane struct {
		work int
		lane int
		buf  blockdev.Buf
	}
	var lanes []lane
	for i, w := range works {
		for n := range w.lanes {
			buf, err := q.arena.Get(ctx, w.size)
			if err != nil {
				return nil, err
			}
			for k := 0; w.write && k < w.size; k++ {
				buf.Bytes()[k] = byte(rand.Uint32()) // nothing that a disk could compress
			}
			lanes = append(lanes, lane{i, n, buf})
		}
	}
	results := make([]done, len(works))
	var mu sync.Mutex // guards results and first
	var first error
	var wg sync.WaitGroup
	start := time.Now()
	for _, l := range lanes {
		wg.Go(func() {
			t, err := q.lane(ctx, start, works[l.work], l.lane, l.buf)
			mu.Lock()
			defer mu.Unlock()
			r := &results[l.work]
			r.took, r.wall = append(r.took, t...), time.Since(start)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	return results, first
}

// lane does one operation of a work after the other. Sequential lanes go on by turns.
func (q *qualifier) lane(ctx context.Context, start time.Time, w work, lane int, buf blockdev.Buf) (took []time.Duration, err error) {
	ops := []blockdev.Op{{Write: w.write, Durable: w.durable, Buf: buf.Bytes()}}
	defer func() { release(&buf, ops) }()
	blocks := q.size / int64(w.size)
	for i := int64(0); i == 0 || time.Since(start) < q.span && ctx.Err() == nil; i++ {
		at := (i*int64(w.lanes) + int64(lane)) % blocks
		switch {
		case w.still:
			at = 1
		case w.random:
			at = rand.Int64N(blocks)
		}
		ops[0].Off = at * int64(w.size)
		t := time.Now()
		if err := q.g.Run(ops); err != nil {
			return nil, err
		}
		if ops[0].Err != nil {
			return nil, ops[0].Err
		}
		took = append(took, time.Since(t))
		if !w.write {
			q.done.Add(1)
			if isZero(ops[0].Buf[:BlockSize]) {
				q.blank.Add(1)
			}
		}
	}
	return took, ctx.Err()
}

// point sums up what operations took.
func point(depth int, d done) DepthPoint {
	took := d.took
	if len(took) == 0 {
		return DepthPoint{Depth: depth}
	}
	slices.Sort(took)
	at := func(permille int) time.Duration { return took[len(took)*permille/1000] }
	return DepthPoint{Depth: depth, Rate: float64(len(took)) / d.wall.Seconds(), P50: at(500), P99: at(990), P999: at(999), Max: took[len(took)-1]}
}

// stream measures sequential bandwidth, bytes per second.
func (q *qualifier) stream(ctx context.Context, write bool) (float64, error) {
	did, err := q.run(ctx, work{lanes: qualifyStream, size: qualifyLarge, write: write})
	if err != nil {
		return 0, err
	}
	wall := did[0].wall
	if write {
		t := time.Now()
		if err := q.dev.Flush(); err != nil {
			return 0, err
		}
		wall += time.Since(t)
	}
	return float64(len(did[0].took)) * qualifyLarge / wall.Seconds(), nil
}

// random measures small random I/O at several depths.
func (q *qualifier) random(ctx context.Context, write bool) (points []DepthPoint, err error) {
	for _, depth := range qualifyDepths {
		did, err := q.run(ctx, work{lanes: depth, size: qualifySmall, write: write, random: true})
		if err != nil {
			return nil, err
		}
		points = append(points, point(depth, did[0]))
	}
	return points, nil
}

// reads measures all that needs no writing, and the mix.
func (q *qualifier) reads(ctx context.Context, r *Qualification) (err error) {
	q.say("sequential reads of 1 MiB")
	if r.SeqRead, err = q.stream(ctx, false); err != nil {
		return err
	}
	if q.streams {
		return nil
	}
	q.say("random reads of 4 KiB")
	if r.RandRead, err = q.random(ctx, false); err != nil {
		return err
	}
	q.say("random reads of 4 KiB beside large blocks")
	works := []work{{lanes: 8, size: qualifySmall, random: true}, {lanes: 1, size: qualifyMix}}
	if r.Mix.LargeWrites = r.SeqWrite > 0; r.Mix.LargeWrites {
		works = append(works, work{lanes: 1, size: qualifyMix, write: true})
	}
	did, err := q.run(ctx, works...)
	if err != nil {
		return err
	}
	for _, d := range did[1:] {
		r.Mix.Large += float64(len(d.took)) * qualifyMix / d.wall.Seconds()
	}
	r.Mix.DepthPoint = point(works[0].lanes, did[0])
	took := did[0].took // sorted by point
	over := func(d time.Duration) float64 {
		i, _ := slices.BinarySearch(took, d)
		return float64(len(took)-i) / float64(len(took)) * 100
	}
	r.Mix.Over1ms, r.Mix.Over8ms, r.Mix.Over64ms = over(time.Millisecond), over(8*time.Millisecond), over(64*time.Millisecond)
	return nil
}

// writes measures all that destroys.
func (q *qualifier) writes(ctx context.Context, r *Qualification) (err error) {
	q.say("sequential writes of 1 MiB")
	if r.SeqWrite, err = q.stream(ctx, true); err != nil {
		return err
	}
	if q.streams {
		return nil
	}
	q.say("random writes of 4 KiB")
	if r.RandWrite, err = q.random(ctx, true); err != nil {
		return err
	}
	q.say("writes to one place, durable or not")
	for _, x := range []struct {
		to      **DepthPoint
		durable bool
	}{{&r.Durable, true}, {&r.Cached, false}} {
		did, err := q.run(ctx, work{lanes: 1, size: qualifySmall, write: true, durable: x.durable, still: true})
		if err != nil {
			return err
		}
		p := point(1, did[0])
		*x.to = &p
	}
	q.say("flushes")
	if r.FlushDirty, err = q.flushes(ctx, true); err != nil {
		return err
	}
	if r.FlushClean, err = q.flushes(ctx, false); err != nil {
		return err
	}
	return nil
}

// flushes measures flushes, each after a write if dirty.
func (q *qualifier) flushes(ctx context.Context, dirty bool) (*DepthPoint, error) {
	buf, err := q.arena.Get(ctx, qualifyLarge)
	if err != nil {
		return nil, err
	}
	ops := []blockdev.Op{{Write: true, Buf: buf.Bytes()}}
	defer func() { release(&buf, ops) }()
	var took []time.Duration
	start := time.Now()
	for len(took) == 0 || time.Since(start) < q.span && ctx.Err() == nil {
		if dirty {
			ops[0].Off = rand.Int64N(q.size/qualifyLarge) * qualifyLarge
			if err := errors.Join(q.g.Run(ops), ops[0].Err); err != nil {
				return nil, err
			}
		}
		t := time.Now()
		if err := q.dev.Flush(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(t))
	}
	p := point(1, done{took, time.Since(start)})
	return &p, ctx.Err()
}
