package blockdev

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// LatencyBuckets is the number of buckets of a Latency. Bucket i counts operations of less than 2^i microseconds that no
// lower bucket counts; the last one also takes everything slower (above 4 s).
const LatencyBuckets = 24

// Latency is a snapshot of a latency histogram.
type Latency struct {
	Count   uint64
	Sum     time.Duration
	Buckets [LatencyBuckets]uint64
}

// Stats is a snapshot of one device's counters since it was opened. Failed operations count only as errors.
type Stats struct {
	Reads, Writes, Flushes  uint64
	ReadBytes, WriteBytes   uint64
	ReadErrors, WriteErrors uint64 // flush errors count as write errors; deadlines count
	Timeouts                uint64 // those errors that were missed deadlines
	Stuck                   int64  // operations that the kernel holds past their deadline now
	Lates                   uint64 // reads that took longer than their caller waited
	Late                    int64  // those of them that go on now
	ReadLatency             Latency
	ReadSizes               [SizeClasses]Latency // the same by size: see SizeClass
	DurableLatency          Latency              // of durable writes
}

// SizeClasses is the number of classes into which reads are sorted by size.
const SizeClasses = 3

// SizeClass is the class of a read of n bytes: up to 16 KiB, up to 128 KiB, larger. Within one they take about as long.
func SizeClass(n int) int {
	switch {
	case n <= 16<<10:
		return 0
	case n <= 128<<10:
		return 1
	}
	return 2
}

// counters is the live form of Stats. Each field is right by itself; a snapshot taken during I/O need not add up.
type counters struct {
	reads, writes, flushes  atomic.Uint64
	readBytes, writeBytes   atomic.Uint64
	readErrors, writeErrors atomic.Uint64
	timeouts                atomic.Uint64
	lates                   atomic.Uint64
	stuck, late             atomic.Int64
	readLat                 [SizeClasses]histogram
	durableLat              histogram
}

type histogram struct {
	sum     atomic.Int64 // nanoseconds
	buckets [LatencyBuckets]atomic.Uint64
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.sum.Add(int64(d))
	h.buckets[min(bits.Len64(uint64(d/time.Microsecond)), LatencyBuckets-1)].Add(1)
}

func (h *histogram) snapshot() (l Latency) {
	l.Sum = time.Duration(h.sum.Load())
	for i := range h.buckets {
		l.Buckets[i] = h.buckets[i].Load()
		l.Count += l.Buckets[i]
	}
	return l
}

// done counts one finished transfer of n bytes that took d.
func (c *counters) done(write, durable bool, n int, d time.Duration, err error) {
	switch {
	case err != nil && write:
		c.writeErrors.Add(1)
	case err != nil:
		c.readErrors.Add(1)
	case write:
		c.writes.Add(1)
		c.writeBytes.Add(uint64(n))
		if durable {
			c.durableLat.add(d)
		}
	default:
		c.reads.Add(1)
		c.readBytes.Add(uint64(n))
		c.readLat[SizeClass(n)].add(d)
	}
}

// letGo ends the kernel's hold on an operation that has the result err.
func (c *counters) letGo(h *hold, err error) {
	if h.late {
		c.late.Add(-1)
	} else {
		c.stuck.Add(-1)
	}
	h.release(err)
}

// timeout counts one transfer that missed its deadline.
func (c *counters) timeout(write bool) {
	c.timeouts.Add(1)
	if write {
		c.writeErrors.Add(1)
	} else {
		c.readErrors.Add(1)
	}
}

func (c *counters) flushed(err error) {
	if err != nil {
		c.writeErrors.Add(1)
		return
	}
	c.flushes.Add(1)
}

func (c *counters) snapshot() Stats {
	s := Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(),
		ReadBytes: c.readBytes.Load(), WriteBytes: c.writeBytes.Load(),
		ReadErrors: c.readErrors.Load(), WriteErrors: c.writeErrors.Load(),
		Timeouts: c.timeouts.Load(), Stuck: c.stuck.Load(),
		Lates: c.lates.Load(), Late: c.late.Load(), DurableLatency: c.durableLat.snapshot(),
	}
	for i := range c.readLat {
		l := c.readLat[i].snapshot()
		s.ReadSizes[i] = l
		s.ReadLatency.add(l)
	}
	return s
}

func (l *Latency) add(o Latency) {
	l.Count += o.Count
	l.Sum += o.Sum
	for i := range o.Buckets {
		l.Buckets[i] += o.Buckets[i]
	}
}
