package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// median of a series; 0 for none.
func median[T cmp.Ordered](v []T) (m T) {
	if len(v) == 0 {
		return m
	}
	v = slices.Sorted(slices.Values(v))
	return v[(len(v)-1)/2]
}

// ratios divides by rounds.
func ratios(a, b []float64) []float64 {
	r := make([]float64, min(len(a), len(b)))
	for i := range r {
		r[i] = a[i] / b[i]
	}
	return r
}

// byTurns runs all of fs in each round, another one first each time.
func byTurns(rounds int, fs ...func() error) error {
	for i := range rounds {
		for k := range fs {
			if err := fs[(i+k)%len(fs)](); err != nil {
				return err
			}
		}
	}
	return nil
}

// percentile p (0..100) of sorted durations, by nearest rank.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(p/100*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// cpuTime is the processor time that the process has used, kernel included.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(fmt.Sprintf("bench: getrusage: %v", err)) // cannot fail with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sample is what one slice took.
type sample struct {
	wall, cpu time.Duration
}

// timed runs f.
func timed(f func() error) (s sample, err error) {
	start, cpu := time.Now(), cpuTime()
	err = f()
	return sample{time.Since(start), cpuTime() - cpu}, err
}

// perSecond is n per second of wall time.
func (s sample) perSecond(n float64) float64 { return n / s.wall.Seconds() }

func gbps(bytesPerSecond float64) string { return fmt.Sprintf("%.2f GB/s", bytesPerSecond/1e9) }
func rate(perSecond float64) string      { return fmt.Sprintf("%.0f/s", perSecond) }
