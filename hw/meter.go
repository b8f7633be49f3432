package hw

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Meter counts the bytes that one operation of one primitive has processed and the time that took.
type Meter struct {
	bytes, nanos atomic.Uint64
	// Meters lie side by side and are written by all processors: give each two cache lines, since prefetchers fetch pairs.
	_ [128 - 16]byte
}

// Add counts n bytes processed in d. It allocates nothing and may be called concurrently. The clock costs as much as sealing
// some hundred bytes: time batches, not blocks.
func (m *Meter) Add(n int, d time.Duration) {
	m.bytes.Add(uint64(max(n, 0)))
	m.nanos.Add(uint64(max(d, 0)))
}

// Meter returns the counter of an operation on the chosen path of p. It panics if p has no such operation.
func (e *Engine) Meter(p Primitive, op Op) *Meter {
	c := e.chosen[p]
	if c == nil || !slices.Contains(c.spec.ops, op) {
		panic(fmt.Sprintf("hw: no operation %d on %q", op, p))
	}
	return &e.meters[p][op]
}

// Totals calls f for every operation with what its meter has counted, in the order of the report.
func (e *Engine) Totals(f func(p Primitive, path string, op Op, bytes uint64, seconds float64)) {
	for _, c := range e.candidates {
		if !c.chosen {
			continue
		}
		for _, op := range c.spec.ops {
			m := &e.meters[c.primitive][op]
			f(c.primitive, c.name, op, m.bytes.Load(), time.Duration(m.nanos.Load()).Seconds())
		}
	}
}
