package blockdev

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchDisks makes n written files of size bytes.
func benchDisks(b *testing.B, n int, size int64) []Device {
	b.Helper()
	devs := make([]Device, n)
	dir := b.TempDir()
	for i := range devs {
		path := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := CreateFile(path, size); err != nil {
			b.Fatal(err)
		}
		devs[i] = openPath(b, path)
		if err := devs[i].Prepare(0, size); err != nil {
			b.Fatal(err)
		}
	}
	return devs
}

// cpuTime is the processor time of the process.
func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkStripe compares the ways to commit a stripe of six durable cells: lone callers and four at once. The kinds run by
// turns within one benchmark, so that load on the machine meets all alike; each reports its own time and CPU per stripe.
func BenchmarkStripe(b *testing.B) {
	const disks, size, slice = 6, 64 << 20, 20
	devs := benchDisks(b, disks, size)
	for _, callers := range []int{1, 4} {
		for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%dKiB/callers-%d", n>>10, callers), func(b *testing.B) {
				kinds := []string{"uring", "pool"}
				var wall, cpu [2]time.Duration
				var groups [2]Group
				for k, kind := range kinds {
					groups[k] = group(b, devs, GroupOptions{Prefer: kind})
				}
				mem := buffer(b, disks*n, 1)
				b.SetBytes(int64(disks * n))
				b.ReportAllocs()
				done := 0
				for ; b.Loop(); done++ {
					k := done / slice % 2
					w, c := time.Now(), cpuTime()
					var wg sync.WaitGroup
					for i := range callers {
						wg.Go(func() {
							off := int64((done*callers+i)*n) % size
							run(b, groups[k], stripe(disks, n, mem, Op{Write: true, Durable: true, Off: off}))
						})
					}
					wg.Wait()
					wall[k] += time.Since(w)
					cpu[k] += cpuTime() - c
				}
				for k, kind := range kinds {
					rounds := done / slice / 2 * slice
					if extra := done % (2 * slice); k == 0 {
						rounds += min(extra, slice)
					} else {
						rounds += max(extra-slice, 0)
					}
					if rounds > 0 {
						stripes := float64(rounds * callers)
						b.ReportMetric(wall[k].Seconds()*1e6/stripes, kind+"-µs/stripe")
						b.ReportMetric(cpu[k].Seconds()*1e6/stripes, kind+"-cpu-µs/stripe")
					}
				}
			})
		}
	}
}

// BenchmarkRead compares single reads: the plain call, and a batch of one with a deadline.
func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	devs := benchDisks(b, 1, size)
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		mem := buffer(b, n, 1)
		bench := func(name string, read func(off int64)) {
			b.Run(fmt.Sprintf("%dKiB/%s", n>>10, name), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				cpu, i := cpuTime(), 0
				for ; b.Loop(); i++ {
					read(int64(i*7919*n) % size)
				}
				b.ReportMetric((cpuTime()-cpu).Seconds()*1e6/float64(i), "cpu-µs/op")
			})
		}
		bench("plain", func(off int64) {
			if err := devs[0].ReadAt(mem, off); err != nil {
				b.Fatal(err)
			}
		})
		for _, kind := range []string{"uring", "pool"} {
			g := group(b, devs, GroupOptions{Prefer: kind})
			ops := make([]Op, 1)
			bench(kind, func(off int64) {
				ops[0] = Op{Buf: mem, Off: off}
				run(b, g, ops)
			})
		}
	}
}

// BenchmarkMem is the cost of a batch on memory: what remains is the caller's.
func BenchmarkMem(b *testing.B) {
	devs := make([]Device, 6)
	for i := range devs {
		d, err := NewMemDisk(64 << 20)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { d.Close() })
		devs[i] = d
	}
	g := group(b, devs, GroupOptions{})
	const n = 64 << 10
	ops := stripe(6, n, buffer(b, 6*n, 1), Op{Write: true, Durable: true})
	b.SetBytes(6 * n)
	b.ReportAllocs()
	for b.Loop() {
		run(b, g, ops)
	}
}

func BenchmarkArena(b *testing.B) {
	a := NewArena(ArenaOptions{})
	for _, n := range []int{4 << 10, 64 << 10, 6 * (1<<20 + 4<<10)} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					buf, err := a.Get(context.Background(), n)
					if err != nil {
						b.Error(err)
						return
					}
					buf.Release()
				}
			})
		})
	}
}

// BenchmarkSim is the simulator's own cost: a durable stripe of six blocks.
func BenchmarkSim(b *testing.B) {
	_, _, g := newSim(1, 6)
	ops := stripe(6, Align, buffer(b, 6*Align, 1), Op{Write: true, Durable: true})
	b.ReportAllocs()
	for b.Loop() {
		run(b, g, ops)
	}
}
