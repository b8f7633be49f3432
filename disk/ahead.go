package disk

import (
	"context"
	"slices"

	"coffer/disk/internal/blockdev"
)

// runner performs a batch of operations: the array, or a readAhead over it.
type runner interface {
	run(ops []blockdev.Op) error
}

// run performs reads. While the array is being opened a disk that misses a deadline is lost: what recovery could not read there it
// cannot make whole either, and it must not count as if it were.
func (a *Array) run(ops []blockdev.Op) error {
	err := a.group.Run(ops)
	a.noteLate(ops)
	if !a.opening || err != nil {
		return err
	}
	var late []*disk
	for i := range ops {
		if d := a.diskOf[ops[i].Dev].Load(); ops[i].Stuck && d != nil && !slices.Contains(late, d) {
			late = append(late, d)
		}
	}
	return a.lose(late, "a read timed out during recovery")
}

// aheadBytes is how much of an extent readAhead reads at once.
const aheadBytes = 512 << 10

// readAhead serves reads that go forward through extents from larger reads: a walk over stripes of a few blocks would otherwise wait
// for every one of them. It is used by one goroutine, for reads of what nobody writes meanwhile.
type readAhead struct {
	a    *Array
	ctx  context.Context
	held map[int]*window // by device
}

// window is what was read of one extent.
type window struct {
	buf blockdev.Buf
	off int64 // on the device, bytes
	n   int   // 0: nothing
}

func newReadAhead(ctx context.Context, a *Array) *readAhead {
	return &readAhead{a: a, ctx: ctx, held: map[int]*window{}}
}

// close gives the memory back.
func (r *readAhead) close() {
	for _, w := range r.held {
		w.buf.Release()
	}
	r.held = nil
}

// run implements runner. What cannot be read in a large piece is read by itself.
func (r *readAhead) run(ops []blockdev.Op) error {
	if err := r.fill(ops); err != nil {
		return err
	}
	var rest []blockdev.Op
	var at []int
	for i := range ops {
		op := &ops[i]
		if w := r.held[op.Dev]; w.holds(op) {
			copy(op.Buf, w.buf.Bytes()[op.Off-w.off:])
			continue
		}
		rest, at = append(rest, *op), append(at, i)
	}
	if len(rest) == 0 {
		return nil
	}
	err := r.a.run(rest)
	for i, k := range at {
		ops[k] = rest[i]
	}
	return err
}

func (w *window) holds(op *blockdev.Op) bool {
	return w != nil && op.Off >= w.off && op.Off+int64(len(op.Buf)) <= w.off+int64(w.n)
}

// fill reads the windows from the operations on, where they do not hold them already.
func (r *readAhead) fill(ops []blockdev.Op) error {
	var reads []blockdev.Op
	var windows []*window
	for i := range ops {
		op := &ops[i]
		w := r.held[op.Dev]
		if w.holds(op) || len(op.Buf) > aheadBytes/2 {
			continue
		}
		n := int(min(aheadBytes, r.a.extentEnd(op.Off)-op.Off))
		if n < len(op.Buf) {
			continue
		}
		if w == nil {
			buf, err := r.a.arena.Get(r.ctx, aheadBytes)
			if err != nil {
				return err
			}
			w = &window{buf: buf}
			r.held[op.Dev] = w
		}
		w.off, w.n = op.Off, n
		reads = append(reads, blockdev.Op{Dev: op.Dev, Off: op.Off, Buf: w.buf.Bytes()[:n]})
		windows = append(windows, w)
	}
	if len(reads) == 0 {
		return nil
	}
	err := r.a.run(reads)
	for i, w := range windows {
		if reads[i].Err == nil && err == nil {
			continue
		}
		w.n = 0
		if reads[i].Stuck { // the kernel keeps the memory
			w.buf.Abandon(reads[i : i+1])
			delete(r.held, reads[i].Dev)
		}
	}
	return err
}

// extentEnd is where the extent ends that holds byte off of a disk.
func (a *Array) extentEnd(off int64) int64 {
	return superArea + (off-superArea+a.geo.ExtentSize)/a.geo.ExtentSize*a.geo.ExtentSize
}
