package disk

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"coffer/disk/internal/blockdev"
)

// View is what a read returned: bytes in the engine's memory until Release. It is used by one goroutine at a time.
type View struct {
	a      *Array
	buf    blockdev.Buf
	ops    []blockdev.Op
	band   *band
	stripe Stripe // bulk only
	first  int    // bulk: first segment
	n      int
	loc    Loc // packed only
	start  int // of the first byte wanted in the buffer, packed
	cells  [MaxWidth]readCell
	fixed  map[int][]byte // segments that are not in buf, by index
}

// readCell is the part of a cell that a view holds.
type readCell struct {
	mem        []byte
	row0, rows int
	ok, stuck  bool // read; or the kernel still holds mem
}

var views = sync.Pool{New: func() any { return new(View) }}

// bulkBand pins the band of a stripe, if the stripe can lie in it.
func (a *Array) bulkBand(s Stripe) (*band, error) {
	b, err := a.pinBand(s.Band)
	if err != nil {
		return nil, err
	}
	if b.kind != kindBulk || int(s.Data)+b.parity > len(b.members) || s.Off < 1 || int64(s.Off)*BlockSize+int64(s.cellBytes()) > a.geo.ExtentSize {
		b.unpin()
		return nil, fmt.Errorf("read stripe %x/%d: outside its band: %w", s.Band, s.Off, ErrCorrupt)
	}
	return b, nil
}

// readable returns the disk that holds a member of the band, or nil when it cannot be read.
func (a *Array) readable(b *band, pos int) *disk {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if d := a.slots()[b.members[pos].slot]; d.present() && !b.isHollow(pos) {
		return d
	}
	return nil
}

// op is a read of n bytes at byte offset at of the stripe at block off on the band's member pos. It reports false when the disk
// is gone.
func (a *Array) op(b *band, pos int, off uint32, at int, mem []byte) (blockdev.Op, bool) {
	d := a.readable(b, pos)
	if d == nil {
		return blockdev.Op{}, false
	}
	o := a.geo.extentOffset(b.members[pos].extent) + int64(off)*BlockSize + int64(at)
	return blockdev.Op{Dev: d.gi, Off: o, Buf: mem}, true
}

// ReadStripe reads segments first..first+n-1 of a bulk stripe: one read for each cell that they touch. Cells that cannot be read
// are reconstructed from the others, unverified: the caller's AEAD decides, and Repair looks closer.
func (a *Array) ReadStripe(ctx context.Context, s Stripe, first, n int) (*View, error) {
	if s.Data < 1 || first < 0 || n < 1 || first+n > int(s.Segments) {
		return nil, fmt.Errorf("read segments %d+%d of %d: %w", first, n, s.Segments, ErrCorrupt)
	}
	b, err := a.bulkBand(s)
	if err != nil {
		return nil, err
	}
	v := views.Get().(*View)
	*v = View{a: a, band: b, stripe: s, first: first, n: n, ops: v.ops[:0]}
	a.stats.views.Add(1)
	if err := v.readRows(ctx); err != nil {
		v.Release()
		return nil, err
	}
	return v, nil
}

// rowsOf returns which rows of data cell j the view wants.
func (v *View) rowsOf(j int) (row0, rows int) {
	d := int(v.stripe.Data)
	last := v.first + v.n - 1
	row0 = v.first / d
	if j < v.first%d {
		row0++
	}
	end := last / d
	if j > last%d {
		end--
	}
	return row0, max(end-row0+1, 0)
}

func (v *View) member(role int) int {
	w := len(v.band.members)
	return (rotation(v.band.num, v.off(), w) + role) % w
}

func (v *View) off() uint32 {
	if v.loc.IsZero() {
		return v.stripe.Off
	}
	return v.loc.Off
}

// readRows reads what is wanted of each data cell and falls back to reconstruction.
func (v *View) readRows(ctx context.Context) error {
	d := int(v.stripe.Data)
	total := 0
	for j := range d {
		c := &v.cells[j]
		c.row0, c.rows = v.rowsOf(j)
		total += c.rows
	}
	buf, err := v.a.reads.Get(ctx, total*SegmentSize)
	if err != nil {
		return err
	}
	v.buf = buf
	mem := buf.Bytes()
	var roles [MaxWidth]int
	missing := false
	for j := range d {
		c := &v.cells[j]
		c.mem, mem = mem[:c.rows*SegmentSize], mem[c.rows*SegmentSize:]
		if c.rows == 0 {
			continue
		}
		op, ok := v.a.op(v.band, v.member(j), v.stripe.Off, slotOffset(c.row0), c.mem)
		if !ok || v.a.avoid(v.band, v.member(j)) {
			missing = true
			continue
		}
		roles[len(v.ops)] = j
		v.ops = append(v.ops, op)
	}
	if len(v.ops) > 0 {
		if err := v.a.run(v.ops); err != nil {
			return err
		}
	}
	for i := range v.ops {
		c := &v.cells[roles[i]]
		c.ok, c.stuck = v.ops[i].Err == nil, v.ops[i].Stuck
		missing = missing || v.ops[i].Err != nil
		v.a.queueLatent(v.band, v.stripe.Off, v.ops[i].Err)
	}
	if missing {
		return v.degraded(ctx)
	}
	return nil
}

// degraded reconstructs the cells that could not be read, row range by row range, from any others.
func (v *View) degraded(ctx context.Context) error {
	d := int(v.stripe.Data)
	row0, row1 := v.stripe.rows(), 0
	for j := range d {
		if c := &v.cells[j]; c.rows > 0 && !c.ok {
			row0, row1 = min(row0, c.row0), max(row1, c.row0+c.rows)
		}
	}
	v.a.stats.reconstructions.Add(1)
	// What was read already is not read again.
	known := func(role int) []byte {
		if c := &v.cells[role]; role < d && c.ok && c.row0 <= row0 && c.row0+c.rows >= row1 {
			return c.mem[(row0-c.row0)*SegmentSize:][:(row1-row0)*SegmentSize]
		}
		return nil
	}
	got, done, err := v.a.rebuildRange(ctx, v.band, v.stripe.Off, d, slotOffset(row0), (row1-row0)*SegmentSize, known, func(role int) bool {
		c := &v.cells[role]
		return role >= d || c.ok || c.rows == 0
	})
	if err != nil {
		return err
	}
	defer done()
	for j := range d {
		c := &v.cells[j]
		if c.rows == 0 || c.ok {
			continue
		}
		p := got[j][(c.row0-row0)*SegmentSize:]
		if !c.stuck {
			copy(c.mem, p)
			continue
		}
		for i := range c.rows { // the late read would spoil what is put into c.mem
			v.fix((c.row0+i)*d+j-v.first, p[i*SegmentSize:][:SegmentSize])
		}
	}
	return nil
}

// fix keeps a copy of p as what Bytes(i) returns.
func (v *View) fix(i int, p []byte) {
	if v.fixed == nil {
		v.fixed = make(map[int][]byte)
	}
	v.fixed[i] = bytes.Clone(p)
}

// rebuildRange reads n bytes at byte offset at of enough cells of a stripe and reconstructs the data cells for which use says
// false, or whose read fails. Bytes of a cell that are known are taken as they are. The result is by role; done gives the memory back.
func (a *Array) rebuildRange(ctx context.Context, b *band, off uint32, data, at, n int, known func(role int) []byte, use func(role int) bool) ([][]byte, func(), error) {
	width := data + b.parity
	buf, err := a.rebuild.Get(ctx, width*n)
	if err != nil {
		return nil, nil, err
	}
	var ops []blockdev.Op
	done := func() { release(&buf, ops) }
	mem := buf.Bytes()
	shards := make([][]byte, width)
	want := make([]bool, width)
	rot := rotation(b.num, off, len(b.members))
	have, role := 0, 0
	for r := 0; r < data && known != nil; r++ {
		if p := known(r); p != nil {
			shards[r] = p
			have++
		}
	}
	for have < data && role < width {
		batch := len(ops)
		var roles []int
		for ; role < width && have+len(roles) < data; role++ {
			if shards[role] != nil || !use(role) {
				continue
			}
			op, ok := a.op(b, (rot+role)%len(b.members), off, at, mem[role*n:][:n:n])
			if ok {
				ops = append(ops, op)
				roles = append(roles, role)
			}
		}
		if len(roles) == 0 {
			break
		}
		if err := a.run(ops[batch:]); err != nil {
			done()
			return nil, nil, err
		}
		for i, r := range roles {
			if ops[batch+i].Err == nil {
				shards[r] = ops[batch+i].Buf
				have++
			}
		}
	}
	if have < data {
		done()
		return nil, nil, fmt.Errorf("stripe %x/%d: %d of %d cells readable: %w", b.num, off, have, data, ErrCorrupt)
	}
	for r := range data {
		if shards[r] == nil {
			want[r], shards[r] = true, mem[r*n:][:0:n]
		}
	}
	for r := data; r < width; r++ {
		if shards[r] == nil {
			shards[r] = mem[r*n:][:0:n]
		}
	}
	if slices.Contains(want, true) {
		t := time.Now()
		coder, err := a.opt.Crypto.Coder(data, b.parity)
		if err == nil {
			err = coder.Reconstruct(shards, want)
		}
		a.rebuilt.Add(data*n, time.Since(t))
		if err != nil {
			done()
			return nil, nil, err
		}
	}
	return shards, done, nil
}

// ReadPacked reads packed bytes: one read of one disk when all is well.
func (a *Array) ReadPacked(ctx context.Context, l Loc) (*View, error) {
	b, err := a.pinBand(l.Band)
	if err != nil {
		return nil, err
	}
	end := int64(l.Start) + int64(l.Len)
	if l.Len == 0 || l.Off < 1 || int64(l.Off)*BlockSize+end > a.geo.ExtentSize || int(l.Role) >= len(b.members)-b.parity {
		b.unpin()
		return nil, fmt.Errorf("read %x/%d: outside its band: %w", l.Band, l.Off, ErrCorrupt)
	}
	from := int(l.Start) &^ (BlockSize - 1)
	n := alignUp(int(end)) - from
	a.stats.views.Add(1)
	v := views.Get().(*View)
	*v = View{a: a, band: b, loc: l, n: 1, start: int(l.Start) - from, ops: v.ops[:0]}
	if v.buf, err = a.reads.Get(ctx, n); err != nil {
		v.Release()
		return nil, err
	}
	mem := v.buf.Bytes()[:n]
	op, ok := a.op(b, v.member(int(l.Role)), l.Off, from, mem)
	if ok = ok && !a.avoid(b, v.member(int(l.Role))); ok {
		v.ops = append(v.ops, op)
		if err := a.run(v.ops); err != nil {
			v.Release()
			return nil, err
		}
		ok = v.ops[0].Err == nil
		a.queueLatent(b, l.Off, v.ops[0].Err)
	}
	if !ok {
		if err := v.degradedPacked(ctx, from, n, mem); err != nil {
			v.Release()
			return nil, err
		}
	}
	return v, nil
}

// degradedPacked reconstructs the wanted range of a packed cell. How many data cells the stripe has is in the others' headers.
func (v *View) degradedPacked(ctx context.Context, from, n int, mem []byte) error {
	a := v.a
	a.stats.reconstructions.Add(1)
	h, err := a.anyHeader(ctx, v.band, v.loc.Off)
	if err != nil {
		return err
	}
	if from+n > int(h.blocks)*BlockSize || v.loc.Role >= h.data {
		return fmt.Errorf("read %x/%d: outside its cell: %w", v.loc.Band, v.loc.Off, ErrCorrupt)
	}
	got, done, err := a.rebuildRange(ctx, v.band, v.loc.Off, int(h.data), from, n, nil, func(r int) bool { return r != int(v.loc.Role) })
	if err != nil {
		return err
	}
	defer done()
	if len(v.ops) > 0 && v.ops[0].Stuck {
		v.fix(0, got[v.loc.Role][v.start:][:v.loc.Len])
		return nil
	}
	copy(mem, got[v.loc.Role])
	// Parity covers payloads, not headers: a range that begins in the header block has no header now, which nobody reads.
	return nil
}

// anyHeader reads headers at a stripe's offset until one is valid.
func (a *Array) anyHeader(ctx context.Context, b *band, off uint32) (header, error) {
	buf, err := a.rebuild.Get(ctx, len(b.members)*BlockSize) // a block each: a disk that hangs keeps its own
	if err != nil {
		return header{}, err
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	for pos := range b.members {
		op, ok := a.op(b, pos, off, 0, buf.Bytes()[pos*BlockSize:][:BlockSize])
		if !ok {
			continue
		}
		ops = append(ops, op)
		last := ops[len(ops)-1:]
		if err := a.run(last); err != nil {
			return header{}, err
		}
		if last[0].Err != nil {
			continue
		}
		h, err := a.codec.parse(op.Buf, place{disk: a.slots()[b.members[pos].slot].id, band: b.num, off: off})
		if err == nil && h.kind == b.kind && a.fits(&h, b) {
			return h, nil
		}
	}
	return header{}, fmt.Errorf("stripe %x/%d: no valid header: %w", b.num, off, ErrCorrupt)
}

// fits reports whether a header is one that the band can hold.
func (a *Array) fits(h *header, b *band) bool {
	return h.kind == b.kind && int(h.width) == len(b.members) && int(h.parity) == b.parity && h.data >= 1 && h.role < h.data+h.parity &&
		int(h.data)+b.parity <= len(b.members) && h.epoch == b.epoch && int(h.rot) == rotation(b.num, h.off, len(b.members)) &&
		uint64(h.off)+uint64(h.blocks) <= uint64(a.geo.extentBlocks())
}

// Bytes is segment first+i of a bulk view, or the bytes of a packed one for i 0. It is read-only and valid until Release.
func (v *View) Bytes(i int) []byte {
	if p, ok := v.fixed[i]; ok {
		return p
	}
	if !v.loc.IsZero() {
		return v.buf.Bytes()[v.start:][:v.loc.Len:v.loc.Len]
	}
	d := int(v.stripe.Data)
	seg := v.first + i
	c := &v.cells[seg%d]
	return c.mem[(seg/d-c.row0)*SegmentSize:][:SegmentSize:SegmentSize]
}

// Len is the number of segments in the view.
func (v *View) Len() int { return v.n }

// Release gives the memory back.
func (v *View) Release() {
	if v.buf.Bytes() != nil {
		release(&v.buf, v.ops)
	}
	v.band.unpin()
	ops := v.ops[:0]
	*v = View{ops: ops}
	views.Put(v)
}
