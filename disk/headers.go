package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

// window is how far behind a missing stripe others of the same moment can begin, in blocks: all that can be in flight.
func (b *band) window() int {
	if b.kind == kindBulk {
		return (maxBulkAhead + 1) * maxCellBlocks
	}
	return (maxInflight + 1) * maxCellBlocks
}

// errUnread: disks that are there did not answer, so that what is on them may be whole all the same.
var errUnread = errors.New("cells could not be read now")

// strictly is a runner for walks that leave behind what they do not find: where too few disks answer to know that nothing is there, such a
// walk fails.
type strictly struct{ *Array }

// unseen returns an error if a walk must not take it for granted that reads of all readable members of a band showed everything: a
// stripe has cells on 1+parity members at least.
func unseen(run runner, b *band, ops []blockdev.Op) error {
	if _, strict := run.(strictly); !strict {
		return nil
	}
	failed := failedReads(ops)
	if out := len(b.members) - len(ops); failed > 0 && failed+out > b.parity {
		return fmt.Errorf("band %x: %d disks did not answer, %d are not there: %w", b.num, failed, out, errUnread)
	}
	return nil
}

func failedReads(ops []blockdev.Op) (n int) {
	for i := range ops {
		if ops[i].Err != nil {
			n++
		}
	}
	return n
}

// headerChunk is how many blocks of each disk are searched for headers at once.
const headerChunk = 64

// headersBehind yields the valid cell headers at blocks off..off+n of a band, in order of offset.
func (a *Array) headersBehind(b *band, off uint32, n int) func(func(header) bool) {
	return func(yield func(header) bool) {
		end := min(off+uint32(n), a.geo.extentBlocks())
		for ; off < end; off += headerChunk {
			found, err := a.headersIn(a, b, off, int(min(headerChunk, end-off)))
			if err != nil {
				return
			}
			for _, h := range found {
				if !yield(h) {
					return
				}
			}
		}
	}
}

// nextHeader returns where the first valid cell header at blocks off..off+n of a band is; false if there is none.
func (a *Array) nextHeader(run runner, b *band, off uint32, n int) (uint32, bool, error) {
	end := min(off+uint32(n), a.geo.extentBlocks())
	for ; off < end; off += headerChunk {
		found, err := a.headersIn(run, b, off, int(min(headerChunk, end-off)))
		if errors.Is(err, errUnread) {
			return 0, false, err
		}
		if err != nil || len(found) > 0 {
			return append(found, header{})[0].off, err == nil, nil
		}
	}
	return 0, false, nil
}

// headersIn returns the valid cell headers in n blocks of a band.
func (a *Array) headersIn(run runner, b *band, off uint32, n int) (found []header, err error) {
	buf, err := a.meta.Get(a.ctx, n*BlockSize*len(b.members))
	if err != nil {
		return nil, err
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	var slots []int
	for pos, m := range b.members {
		if op, ok := a.op(b, pos, off, 0, buf.Bytes()[pos*n*BlockSize:][:n*BlockSize]); ok {
			ops, slots = append(ops, op), append(slots, m.slot)
		}
	}
	if len(ops) == 0 {
		return nil, fmt.Errorf("search band %x: no disk left: %w", b.num, ErrCorrupt)
	}
	if err := run.run(ops); err != nil {
		return nil, err
	}
	if err := unseen(run, b, ops); err != nil {
		return nil, err
	}
	for blk := range n {
		for i := range ops {
			if ops[i].Err != nil {
				continue
			}
			at := place{disk: a.slots()[slots[i]].id, band: b.num, off: off + uint32(blk)}
			if h, err := a.codec.parse(ops[i].Buf[blk*BlockSize:], at); err == nil && a.fits(&h, b) {
				found = append(found, h)
			}
		}
	}
	return found, nil
}

// probe reads the stripe that begins at block off of a band: nil when no valid header is there. Cells are verified.
func (a *Array) probe(ctx context.Context, b *band, off uint32) (*wholeStripe, error) {
	return a.probeBy(ctx, a, b, off)
}

// probeBy is probe with reads by run.
func (a *Array) probeBy(ctx context.Context, run runner, b *band, off uint32) (*wholeStripe, error) {
	heads, err := a.headsAt(ctx, run, b, off)
	if err != nil {
		return nil, err
	}
	var best *wholeStripe
	for _, h := range heads {
		w, err := a.readWholeBy(ctx, run, b, h)
		if err != nil {
			continue
		}
		if _, strict := run.(strictly); strict && w.failed > 0 && len(heads) > 1 { // the other one may be that which counts
			w.release()
			if best != nil {
				best.release()
			}
			return nil, fmt.Errorf("stripe %x/%d: %d cells: %w", b.num, off, w.failed, errUnread)
		}
		if best == nil || w.goodCells()-int(w.head.data) > best.goodCells()-int(best.head.data) {
			best, w = w, best
		}
		if w != nil {
			w.release()
		}
	}
	return best, nil
}

// headsAt returns a valid header of each stripe that seems to begin at block off of a band: more than one where a cell is stale.
func (a *Array) headsAt(ctx context.Context, run runner, b *band, off uint32) ([]header, error) {
	heads, err := a.headsAtAll(ctx, run, b, []uint32{off})
	if err != nil || len(heads) == 0 {
		return nil, err
	}
	return heads[0], nil
}

// headsAtAll is headsAt for each of several blocks, which are read at once. Those behind the end of the band are left out.
func (a *Array) headsAtAll(ctx context.Context, run runner, b *band, offs []uint32) (heads [][]header, err error) {
	if i := slices.IndexFunc(offs, func(off uint32) bool { return off >= a.geo.extentBlocks() }); i >= 0 {
		offs = offs[:i]
	}
	if len(offs) == 0 {
		return nil, nil
	}
	width := len(b.members) * BlockSize
	buf, err := a.meta.Get(ctx, len(offs)*width)
	if err != nil {
		return nil, err
	}
	var ops []blockdev.Op
	var slots []int
	ends := make([]int, len(offs)) // of each block's operations
	for i, off := range offs {
		for pos, m := range b.members {
			if op, ok := a.op(b, pos, off, 0, buf.Bytes()[i*width+pos*BlockSize:][:BlockSize]); ok {
				ops, slots = append(ops, op), append(slots, m.slot)
			}
		}
		ends[i] = len(ops)
	}
	defer func() { release(&buf, ops) }()
	if len(ops) == 0 {
		return nil, nil
	}
	if err := run.run(ops); err != nil {
		return nil, err
	}
	first := 0
	for i, off := range offs {
		var seen []header
		for k := first; k < ends[i]; k++ {
			if ops[k].Err != nil {
				continue
			}
			h, err := a.codec.parse(ops[k].Buf, place{disk: a.slots()[slots[k]].id, band: b.num, off: off})
			if err != nil || !a.fits(&h, b) || slices.ContainsFunc(seen, func(o header) bool { return o.sameStripe(&h) }) {
				continue
			}
			seen = append(seen, h)
		}
		if len(seen) == 0 {
			if err := unseen(run, b, ops[first:ends[i]]); err != nil {
				return nil, err
			}
		}
		heads, first = append(heads, seen), ends[i]
	}
	return heads, nil
}

// eachStripe visits the stripes of a band from front to back, stepping over holes.
func (a *Array) eachStripe(ctx context.Context, b *band, fn func(*wholeStripe) error) error {
	return a.eachStripeBy(ctx, a, b, fn)
}

// eachStripeBy is eachStripe with reads by run.
func (a *Array) eachStripeBy(ctx context.Context, run runner, b *band, fn func(*wholeStripe) error) error {
	for off := uint32(1); ; {
		w, next, err := a.nextStripe(ctx, run, b, off)
		if err != nil || w == nil {
			return err
		}
		off = next
		if err := w.use(fn); err != nil {
			return err
		}
	}
}

// nextStripe reads by run the stripe of a band that begins at block off, or the first one behind it, and returns where that ends;
// nil when there is none.
func (a *Array) nextStripe(ctx context.Context, run runner, b *band, off uint32) (*wholeStripe, uint32, error) {
	for off < a.geo.extentBlocks() {
		w, err := a.probeBy(ctx, run, b, off)
		if err != nil {
			return nil, 0, err
		}
		if w != nil {
			return w, off + w.head.blocks, nil
		}
		at, found, err := a.nextHeader(run, b, off+1, b.window())
		if err != nil {
			return nil, 0, err
		}
		if !found || at <= off {
			break
		}
		off = at
	}
	return nil, a.geo.extentBlocks(), nil
}
