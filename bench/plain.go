package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// plain is what the engine is measured against: the same files opened with O_DIRECT, and loops of pread and pwrite on buffers of
// huge pages, which double large I/O and which the engine has as well. It knows nothing of records, parity or recovery.
type plain struct {
	fds []int
	mem []byte
}

// plainBuffers bounds the I/O in flight.
const plainBuffers = 64

// plainBuffer is the room for one I/O.
const plainBuffer = cellBytes

func openPlain(paths []string) (p *plain, err error) {
	p = &plain{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		p.fds = append(p.fds, fd)
	}
	if p.mem, err = unix.Mmap(-1, 0, plainBuffers*plainBuffer, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		return nil, fmt.Errorf("map buffers: %w", err)
	}
	if err := unix.Madvise(p.mem, unix.MADV_HUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) { // not configured: as for the engine
		return nil, fmt.Errorf("ask for huge pages: %w", err)
	}
	for i := 0; i < len(p.mem); i += 8 { // incompressible, and not all zeros
		p.mem[i] = byte(rand.Uint32())
	}
	return p, nil
}

func (p *plain) close() error {
	var err error
	for _, fd := range p.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	if p.mem != nil {
		err = errors.Join(err, unix.Munmap(p.mem))
	}
	return err
}

func (p *plain) buffer(i, n int) []byte { return p.mem[i*plainBuffer:][:n:n] }

func whole(what string, n, want int, err error) error {
	if err == nil && n != want {
		err = fmt.Errorf("%d of %d bytes", n, want)
	}
	if err != nil {
		return fmt.Errorf("plain %s: %w", what, err)
	}
	return nil
}

func (p *plain) write(file int, buf []byte, off int64) error {
	n, err := unix.Pwrite(p.fds[file], buf, off)
	return whole("write", n, len(buf), err)
}

func (p *plain) writeDurably(file int, buf []byte, off int64) error {
	n, err := unix.Pwritev2(p.fds[file], [][]byte{buf}, off, unix.RWF_DSYNC)
	return whole("durable write", n, len(buf), err)
}

func (p *plain) read(file int, buf []byte, off int64) error {
	n, err := unix.Pread(p.fds[file], buf, off)
	return whole("read", n, len(buf), err)
}

// fill writes all of the files.
func (p *plain) fill(size int64) error {
	var g errgroup.Group
	for f := range p.fds {
		g.Go(func() error {
			buf := p.buffer(f, 1<<20)
			for off := int64(0); off < size; off += int64(len(buf)) {
				if err := p.write(f, buf, off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), p.flush())
}

// flush makes durable what was written.
func (p *plain) flush() error {
	var g errgroup.Group
	for _, fd := range p.fds {
		g.Go(func() error { return unix.Fdatasync(fd) })
	}
	return g.Wait()
}

// stream moves total bytes in pieces of n, sequentially in each file, with lanes pieces of each of the first files under way.
func (p *plain) stream(files, lanes, n int, total int64, io func(file int, buf []byte, off int64) error) error {
	var g errgroup.Group
	count := int(total / int64(n) / int64(files*lanes))
	for f := range files {
		for l := range lanes {
			g.Go(func() error {
				buf := p.buffer(f*lanes+l, n)
				for i := range count {
					if err := io(f, buf, 1<<20+int64(i*lanes+l)*int64(n)); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// append writes 4 KiB after 4 KiB durably to one file, alone, for d. It returns how long each took.
func (p *plain) append(d time.Duration, size int64) (took []time.Duration, err error) {
	buf := p.buffer(0, 4096)
	for start, off := time.Now(), int64(1<<20); time.Since(start) < d; off += 4096 {
		if off >= size {
			off = 1 << 20
		}
		t := time.Now()
		if err := p.writeDurably(0, buf, off); err != nil {
			return nil, err
		}
		took = append(took, time.Since(t))
	}
	return took, nil
}

// readRandomly reads 4 KiB at a time anywhere with the given number of readers for d, and returns how many.
func (p *plain) readRandomly(readers int, d time.Duration, size int64) (int, error) {
	var g errgroup.Group
	counts := make([]int, readers)
	for r := range readers {
		g.Go(func() error {
			buf := p.buffer(r, 4096)
			for start := time.Now(); time.Since(start) < d; counts[r]++ {
				if err := p.read(rand.IntN(len(p.fds)), buf, rand.Int64N(size/4096)*4096); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	n := 0
	for _, c := range counts {
		n += c
	}
	return n, err
}

// copyStripes does what a rebuild cannot do without: it reads pieces of 1 MiB of k disks for each one that it writes to another,
// n bytes of that, with the given number of pieces under way.
func (p *plain) copyStripes(lanes int, n int64) error {
	var g errgroup.Group
	count := int(n / (1 << 20) / int64(lanes))
	for l := range lanes {
		g.Go(func() error {
			for i := range count {
				off := 1<<20 + int64(i*lanes+l)<<20
				var reads errgroup.Group
				for f := range dataCells {
					reads.Go(func() error { return p.read(f, p.buffer(l*dataCells+f, 1<<20), off) })
				}
				if err := reads.Wait(); err != nil {
					return err
				}
				if err := p.write(dataCells, p.buffer(l*dataCells, 1<<20), off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
