package hw

import (
	"slices"
	"time"
)

// benchSizes are the message sizes measured, in bytes. For Reed-Solomon they are the size of each shard.
var benchSizes = [...]int{4 << 10, 64 << 10, 1 << 20}

// decidingSize is the index in benchSizes of the size that decides between paths: a sealed segment, which is the unit in
// which object bytes are sealed, coded and summed.
const decidingSize = 1

const (
	clearWin     = 1.05 // how much faster than the default a path must be to displace it: less is noise
	defaultSlice = time.Millisecond
	benchRounds  = 9                      // slices per path and size
	benchBudget  = 700 * time.Millisecond // no round starts later than this; a busy machine gets fewer rounds

	benchData, benchParity = 4, 2 // shape of the Reed-Solomon benchmark
	shardStagger           = 320  // equal shard addresses modulo 4096 would contend for the same cache sets
)

// benchBuffers are shared by all benchmarks, which run one after the other.
type benchBuffers struct {
	in, out []byte // of the largest size, and room for a tag
	shards  [benchData + benchParity][]byte
}

func newBenchBuffers() *benchBuffers {
	largest := slices.Max(benchSizes[:])
	b := &benchBuffers{in: pattern(largest, 1), out: make([]byte, 0, largest+64)}
	for i := range b.shards {
		b.shards[i] = append(make([]byte, i*shardStagger, i*shardStagger+largest), b.in...)[i*shardStagger:]
	}
	return b
}

// workload is one path at one size.
type workload struct {
	run   func() // does the work once
	bytes int    // processed by run

	times int // run is called per slice
	rates []float64
}

// measure fills in the medians of all usable candidates. Paths take turns in slices short against the moods of a shared
// machine, so that all meet the same conditions and the median forgets a preempted slice.
func measure(candidates []*candidate, slice time.Duration) {
	if slice <= 0 {
		slice = defaultSlice
	}
	start := time.Now()
	buffers := newBenchBuffers()
	loads := make([][len(benchSizes)]*workload, len(candidates))
	each := func(f func(c *candidate, w **workload, size int) error) {
		for i, size := range benchSizes {
			for j, c := range candidates {
				if c.usable() {
					// A path that panics here has lost the right to be used.
					c.err = guard(func() error { return f(c, &loads[j][i], size) })
				}
			}
		}
	}
	each(func(c *candidate, w **workload, size int) (err error) {
		if *w, err = c.spec.bench(&c.path, buffers, size); err == nil {
			(*w).calibrate(slice)
		}
		return err
	})
	for round := 0; round < benchRounds && (round == 0 || time.Since(start) < benchBudget); round++ {
		each(func(_ *candidate, w **workload, _ int) error {
			(*w).sample()
			return nil
		})
	}
	for i := range benchSizes {
		for j, c := range candidates {
			if c.usable() {
				c.median[i] = median(loads[j][i].rates)
			}
		}
	}
}

// calibrate warms up and finds how many runs fill a slice.
func (w *workload) calibrate(slice time.Duration) {
	w.times = 1
	for {
		d := w.time()
		if d >= slice/4 || w.times > 1<<30 {
			w.times = max(1, int(float64(w.times)*float64(slice)/float64(max(d, 1))))
			return
		}
		w.times *= 2
	}
}

func (w *workload) time() time.Duration {
	start := time.Now()
	for range w.times {
		w.run()
	}
	return time.Since(start)
}

func (w *workload) sample() {
	w.rates = append(w.rates, float64(w.bytes)*float64(w.times)/w.time().Seconds())
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// fastest returns the default, which is the first of the working candidates, unless others clearly win; then the fastest.
func fastest(working []*candidate) *candidate {
	best := working[0]
	bar := best.median[decidingSize] * clearWin
	for _, c := range working[1:] {
		if m := c.median[decidingSize]; m > bar {
			best, bar = c, m
		}
	}
	return best
}

func benchAEAD(keySize int) benchFunc {
	return func(p *path, b *benchBuffers, size int) (*workload, error) {
		a, err := p.newAEAD(pattern(keySize, 0))
		if err != nil {
			return nil, err
		}
		nonce := make([]byte, a.NonceSize())
		return &workload{bytes: size, run: func() { a.Seal(b.out[:0], nonce, b.in[:size], nonce) }}, nil
	}
}

func benchReedSolomon(p *path, b *benchBuffers, size int) (*workload, error) {
	c, err := newCoder(benchData, benchParity, p.newMatrix)
	if err != nil {
		return nil, err
	}
	var shards [benchData + benchParity][]byte
	for i := range shards {
		shards[i] = b.shards[i][:size]
	}
	return &workload{bytes: benchData * size, run: func() {
		if err := c.Encode(shards[:benchData], shards[benchData:]); err != nil {
			panic(err)
		}
	}}, nil
}

func benchCRC64(p *path, b *benchBuffers, size int) (*workload, error) {
	var crc uint64
	return &workload{bytes: size, run: func() { crc = p.crc64(crc, b.in[:size]) }}, nil
}

func benchCRC32(p *path, b *benchBuffers, size int) (*workload, error) {
	var crc uint32
	return &workload{bytes: size, run: func() { crc = p.crc32(crc, b.in[:size]) }}, nil
}

func benchHash(p *path, b *benchBuffers, size int) (*workload, error) {
	h := p.newHash()
	return &workload{bytes: size, run: func() {
		h.Reset()
		h.Write(b.in[:size])
		h.Sum(b.out[:0])
	}}, nil
}
