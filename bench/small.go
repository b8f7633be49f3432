package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/disk"
	"coffer/object"
)

// getReaders is how many small reads are under way.
const getReaders = 32

// small measures 4 KiB objects.
func (b *bench) small(ctx context.Context) error {
	if b.opt.wants("small/read") {
		if err := b.smallReads(ctx); err != nil {
			return err
		}
	}
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

// records is the state of an array of which only the places of records matter.
type records struct {
	forget
	mu   sync.Mutex
	locs []disk.Loc
}

func (r *records) Apply(_ disk.Position, entries []disk.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		r.locs = append(r.locs, e.Data)
	}
	return nil
}

// plainReads reads 4 KiB here and there from the plain files, and returns the reads per second and the processor's time for one.
func (b *bench) plainReads() (perSecond float64, cpu time.Duration, err error) {
	p, err := openPlain(b.rig.paths[0])
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	n := 0
	s, err := timed(func() (err error) {
		n, err = p.readRandomly(getReaders, b.span(800*time.Millisecond), b.rig.size)
		return err
	})
	return s.perSecond(float64(n)), s.cpu / time.Duration(max(n, 1)), err
}

// smallReads compares reads of 4 KiB through the engine alone with plain ones and, where it is installed, with fio.
func (b *bench) smallReads(ctx context.Context) (err error) {
	state := &records{}
	bed, err := b.rig.open(ctx, bedOptions{state: state})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.close()) }()
	data := make([]byte, smallObject)
	err = parallel(64, pick(b, 40000, 1000), func(int) error {
		_, err := bed.array.Append(ctx, disk.Record{Body: []byte("a record"), Data: data})
		return err
	})
	if err != nil {
		return err
	}
	var read, plain, fio []float64
	var cpu, plainCPU []time.Duration
	reads := func() error {
		var n atomic.Int64
		s, err := timed(func() error {
			return b.readFor(func() error {
				n.Add(1)
				v, err := bed.array.ReadPacked(ctx, state.locs[rand.IntN(len(state.locs))])
				if err == nil {
					v.Release()
				}
				return err
			})
		})
		read = append(read, s.perSecond(float64(n.Load())))
		cpu = append(cpu, s.cpu/time.Duration(n.Load()))
		return err
	}
	plainly := func() error {
		perSecond, cpu, err := b.plainReads()
		plain, plainCPU = append(plain, perSecond), append(plainCPU, cpu)
		return err
	}
	tools := []func() error{reads, plainly}
	if _, err := exec.LookPath("fio"); err == nil {
		tools = append(tools, func() error {
			n, err := fioReads(ctx, b.rig.paths[0], b.span(800*time.Millisecond))
			fio = append(fio, n)
			return err
		})
	}
	if err := byTurns(b.opt.rounds, tools...); err != nil {
		return err
	}
	b.add(result{What: fmt.Sprintf("4 KiB reads, %d readers : plain 4 KiB reads", getReaders), A: rate(median(read)), B: rate(median(plain)),
		Ratio: median(ratios(read, plain)),
		Note:  fmt.Sprintf("CPU %v against %v a read", median(cpu).Round(100*time.Nanosecond), median(plainCPU).Round(100*time.Nanosecond))})
	if len(fio) > 0 {
		b.add(result{What: fmt.Sprintf("4 KiB reads, %d readers : fio, depth %[1]d", getReaders), A: rate(median(read)), B: rate(median(fio)),
			Ratio: median(ratios(read, fio)), Target: 0.8})
	}
	return nil
}

// fioReads is how many random reads of 4 KiB fio does a second, with io_uring and huge pages as the engine.
func fioReads(ctx context.Context, paths []string, d time.Duration) (float64, error) {
	job, err := runFio(ctx, paths, d, "--rw=randread", "--bs=4k", fmt.Sprintf("--iodepth=%d", getReaders), "--mem=mmap")
	return job.Read.IOPS, err
}

// fioJob is what fio says of a job: operations and KiB per second.
type fioJob struct {
	Read, Write struct {
		IOPS float64
		BW   int64
	}
}

// runFio has fio work on files for a while, with O_DIRECT and io_uring.
func runFio(ctx context.Context, paths []string, d time.Duration, args ...string) (fioJob, error) {
	args = append([]string{"--name=job", "--filename=" + strings.Join(paths, ":"), "--direct=1", "--ioengine=io_uring", "--thread", "--time_based",
		fmt.Sprintf("--runtime=%dms", d.Milliseconds()), "--output-format=json"}, args...)
	out, err := exec.CommandContext(ctx, "fio", args...).Output()
	if err != nil {
		return fioJob{}, fmt.Errorf("run fio: %w", err)
	}
	var doc struct{ Jobs []fioJob }
	if err := json.Unmarshal(out, &doc); err != nil || len(doc.Jobs) != 1 {
		return fioJob{}, fmt.Errorf("read fio's answer: %d jobs: %w", len(doc.Jobs), err)
	}
	return doc.Jobs[0], nil
}

// hugePages is how many huge pages are kept for those who ask (Linux: Documentation/admin-guide/mm/hugetlbpage.rst).
func hugePages() (n int) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	if _, free, ok := strings.Cut(string(info), "HugePages_Free:"); ok {
		fmt.Sscan(free, &n)
	}
	return n
}

// streams compares sequential reads and writes by the engine's I/O, four of 1 MiB under way, with fio on the same file.
func (b *bench) streams(ctx context.Context) error {
	if !b.opt.wants("streams") {
		return nil
	}
	if _, err := exec.LookPath("fio"); err != nil {
		fmt.Fprintln(b.out, "    fio is not installed")
		return nil
	}
	if err := b.rig.makeSpare(); err != nil {
		return err
	}
	// Pages are what counts in large I/O: without huge ones fio is no peer, and gets no target.
	mem, target, note := "--mem=mmap", 0.0, "fio without huge pages: sysctl vm.nr_hugepages=64 gives it some"
	if hugePages() >= 16 {
		mem, target, note = "--mem=shmhuge", 0.95, "both in huge pages"
	}
	span := b.span(1500 * time.Millisecond)
	var read, write, fioRead, fioWrite []float64
	engine := func() error {
		q, err := disk.Qualify(ctx, b.rig.spare, disk.QualifyOptions{Span: span, Write: true, Streams: true})
		if err == nil {
			read, write = append(read, q.SeqRead), append(write, q.SeqWrite)
		}
		return err
	}
	fio := func(rw string, to *[]float64) error {
		io, err := runFio(ctx, []string{b.rig.spare}, span, "--rw="+rw, "--bs=1m", "--iodepth=4", mem, "--end_fsync=1")
		*to = append(*to, float64(max(io.Read.BW, io.Write.BW)*1024))
		return err
	}
	err := byTurns(b.opt.rounds, engine, func() error { return errors.Join(fio("write", &fioWrite), fio("read", &fioRead)) })
	if err != nil {
		return err
	}
	b.add(result{What: "reads of 1 MiB, 4 under way : fio", A: gbps(median(read)), B: gbps(median(fioRead)), Ratio: median(ratios(read, fioRead)), Target: target, Note: note})
	b.add(result{What: "writes of 1 MiB, 4 under way, and a flush : fio", A: gbps(median(write)), B: gbps(median(fioWrite)),
		Ratio: median(ratios(write, fioWrite)), Target: target, Note: note})
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
	plainly := func() error {
		perSecond, _, err := b.plainReads()
		plain = append(plain, perSecond)
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
