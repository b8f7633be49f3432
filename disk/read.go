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

// hedgedOp is op of a read that others can answer when it is late.
func (a *Array) hedgedOp(b *band, pos int, off uint32, at int, mem []byte) (blockdev.Op, bool) {
	op, ok := a.op(b, pos, off, at, mem)
	if ok && b.parity > 0 && !a.opening {
		op.LateAfter = a.lateAfter(len(mem))
	}
	return op, ok
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
	a.schedule.calls.Add(1)
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
		op, ok := v.a.hedgedOp(v.band, v.member(j), v.stripe.Off, slotOffset(c.row0), c.mem)
		if !ok {
			missing = true
			continue
		}
		roles[len(v.ops)] = j
		v.ops = append(v.ops, op)
	}
	if err := v.a.runWilling(v.band, v.ops, func(i int) int { return v.member(roles[i]) }); err != nil {
		return err
	}
	for i := range v.ops {
		v.cells[roles[i]].ok = v.ops[i].Err == nil
		missing = missing || v.ops[i].Err != nil
		v.a.queueLatent(v.band, v.stripe.Off, v.ops[i].Err)
	}
	if !missing {
		return nil
	}
	return v.answer(ctx, func() (some, late bool) {
		n := 0
		for i := range v.ops {
			v.cells[roles[i]].ok = v.ops[i].Err == nil
			if isLate(&v.ops[i]) {
				n++
			}
		}
		for j := range d {
			if c := &v.cells[j]; c.rows > 0 && !c.ok {
				some = true
				n--
			}
		}
		return some, n == 0
	}, v.fetchRows, func(r rebuilt) {
		for i := range v.ops {
			v.cells[roles[i]].stuck = v.ops[i].Stuck
		}
		v.takeRows(r)
	})
}

// fetchRows returns what reconstructs the cells that could not be read, row range by row range, from any others. What was read already
// is not read again, but for a race, which may outlive the view's memory.
func (v *View) fetchRows(racing bool) func(context.Context) (rebuilt, error) {
	a, b, off, d := v.a, v.band, v.stripe.Off, int(v.stripe.Data)
	row0, row1 := v.lostRows()
	var lost [MaxWidth]bool
	var known [MaxWidth][]byte
	for j := range d {
		c := &v.cells[j]
		lost[j] = c.rows > 0 && !c.ok
		if c.ok && !racing && c.row0 <= row0 && c.row0+c.rows >= row1 {
			known[j] = c.mem[(row0-c.row0)*SegmentSize:][:(row1-row0)*SegmentSize]
		}
	}
	return func(ctx context.Context) (rebuilt, error) {
		return a.rebuildRange(ctx, b, off, d, slotOffset(row0), (row1-row0)*SegmentSize, known[:d], func(role int) bool { return !lost[role] })
	}
}

// lostRows is the range of rows that are wanted of cells that could not be read.
func (v *View) lostRows() (row0, row1 int) {
	row0 = v.stripe.rows()
	for j := range int(v.stripe.Data) {
		if c := &v.cells[j]; c.rows > 0 && !c.ok {
			row0, row1 = min(row0, c.row0), max(row1, c.row0+c.rows)
		}
	}
	return row0, row1
}

// takeRows puts reconstructed cells in place.
func (v *View) takeRows(r rebuilt) {
	d := int(v.stripe.Data)
	row0, _ := v.lostRows()
	for j := range d {
		c := &v.cells[j]
		if c.rows == 0 || c.ok {
			continue
		}
		p := r.cells[j][(c.row0-row0)*SegmentSize:]
		if !c.stuck {
			copy(c.mem, p)
			continue
		}
		for i := range c.rows { // the late read would spoil what is put into c.mem
			v.fix((c.row0+i)*d+j-v.first, p[i*SegmentSize:][:SegmentSize])
		}
	}
}

// fix keeps a copy of p as what Bytes(i) returns.
func (v *View) fix(i int, p []byte) {
	if v.fixed == nil {
		v.fixed = make(map[int][]byte)
	}
	v.fixed[i] = bytes.Clone(p)
}

// rebuildRange reads n bytes at byte offset at of enough cells of a stripe and reconstructs the data cells for which use says
// false. The first cells may be known already. The result is by role, and holds what was reconstructed.
func (a *Array) rebuildRange(ctx context.Context, b *band, off uint32, data, at, n int, known [][]byte, use func(role int) bool) (rebuilt, error) {
	width := data + b.parity
	buf, err := a.rebuild.Get(ctx, width*n)
	if err != nil {
		return rebuilt{}, err
	}
	mem := buf.Bytes()
	var roles []int
	ops := make([]blockdev.Op, 0, width)
	lag := a.lagging(b)
	for _, last := range []bool{false, true} { // those that lag
		for role := range width {
			pos := (rotation(b.num, off, len(b.members)) + role) % len(b.members)
			if !use(role) || role < len(known) && known[role] != nil || lag[pos] != last {
				continue
			}
			if op, ok := a.hedgedOp(b, pos, off, at, mem[role*n:][:n:n]); ok {
				ops, roles = append(ops, op), append(roles, role)
			}
		}
	}
	begun := 0 // of ops
	done := func() { release(&buf, ops[:begun]) }
	have := 0
	count := func() {
		have = 0
		for _, p := range known {
			if p != nil {
				have++
			}
		}
		for i := range begun {
			if ops[i].Err == nil {
				have++
			}
		}
	}
	count()
	for have < data && begun < len(ops) && err == nil {
		batch := ops[begun:min(begun+data-have, len(ops))]
		begun += len(batch)
		err = a.run(batch)
		count()
	}
	if have < data && err == nil {
		err = a.runOut(ctx, ops[:begun], func() bool { count(); return have >= data })
		count()
	}
	if have < data && err == nil {
		err = fmt.Errorf("stripe %x/%d: %d of %d cells readable: %w", b.num, off, have, data, ErrCorrupt)
	}
	if err != nil {
		done()
		return rebuilt{}, err
	}
	shards := make([][]byte, width)
	want := make([]bool, width)
	for r := range width {
		shards[r] = mem[r*n:][:0:n]
		want[r] = r < data && !use(r)
	}
	for i := range begun {
		if ops[i].Err == nil {
			shards[roles[i]] = ops[i].Buf
		}
	}
	for r, p := range known {
		if p != nil {
			shards[r] = p
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
			return rebuilt{}, err
		}
	}
	return rebuilt{cells: shards, done: done}, nil
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
	a.schedule.calls.Add(1)
	v := views.Get().(*View)
	*v = View{a: a, band: b, loc: l, n: 1, start: int(l.Start) - from, ops: v.ops[:0]}
	if v.buf, err = a.reads.Get(ctx, n); err != nil {
		v.Release()
		return nil, err
	}
	mem := v.buf.Bytes()[:n]
	op, ok := a.hedgedOp(b, v.member(int(l.Role)), l.Off, from, mem)
	if ok {
		v.ops = append(v.ops, op)
		if err := a.runWilling(b, v.ops, func(int) int { return v.member(int(l.Role)) }); err != nil {
			v.Release()
			return nil, err
		}
		ok = v.ops[0].Err == nil
		a.queueLatent(b, l.Off, v.ops[0].Err)
	}
	if !ok {
		if err := v.answerPacked(ctx, from, n, mem); err != nil {
			v.Release()
			return nil, err
		}
	}
	return v, nil
}

// answerPacked brings the wanted range of a packed cell after its read did not.
func (v *View) answerPacked(ctx context.Context, from, n int, mem []byte) error {
	lacks := func() (some, late bool) {
		if len(v.ops) == 0 {
			return true, false
		}
		return v.ops[0].Err != nil, isLate(&v.ops[0])
	}
	take := func(r rebuilt) {
		if p := r.cells[v.loc.Role]; len(v.ops) > 0 && v.ops[0].Stuck {
			v.fix(0, p[v.start:][:v.loc.Len])
		} else {
			// Parity covers payloads, not headers: a range that begins in the header block has no header now, which nobody reads.
			copy(mem, p)
		}
	}
	a, b, loc := v.a, v.band, v.loc
	return v.answer(ctx, lacks, func(bool) func(context.Context) (rebuilt, error) {
		return func(ctx context.Context) (rebuilt, error) { return a.rebuildPacked(ctx, b, loc, from, n) }
	}, take)
}

// rebuildPacked reconstructs a range of a packed cell. How many data cells the stripe has is in the others' headers.
func (a *Array) rebuildPacked(ctx context.Context, b *band, l Loc, from, n int) (rebuilt, error) {
	h, err := a.anyHeader(ctx, b, l.Off)
	if err != nil {
		return rebuilt{}, err
	}
	if from+n > int(h.blocks)*BlockSize || l.Role >= h.data {
		return rebuilt{}, fmt.Errorf("read %x/%d: outside its cell: %w", l.Band, l.Off, ErrCorrupt)
	}
	return a.rebuildRange(ctx, b, l.Off, int(h.data), from, n, nil, func(r int) bool { return r != int(l.Role) })
}

// anyHeader reads headers at a stripe's offset until one is valid.
func (a *Array) anyHeader(ctx context.Context, b *band, off uint32) (header, error) {
	buf, err := a.rebuild.Get(ctx, len(b.members)*BlockSize) // a block each: a disk that hangs keeps its own
	if err != nil {
		return header{}, err
	}
	var at []int
	var ops []blockdev.Op
	begun := 0
	defer func() { release(&buf, ops[:begun]) }()
	lag := a.lagging(b)
	for _, last := range []bool{false, true} { // those that lag
		for pos := range b.members {
			if lag[pos] != last {
				continue
			}
			if op, ok := a.hedgedOp(b, pos, off, 0, buf.Bytes()[pos*BlockSize:][:BlockSize]); ok {
				ops, at = append(ops, op), append(at, pos)
			}
		}
	}
	valid := func(i int) (header, bool) {
		if ops[i].Err != nil {
			return header{}, false
		}
		h, err := a.codec.parse(ops[i].Buf, place{disk: a.slots()[b.members[at[i]].slot].id, band: b.num, off: off})
		return h, err == nil && h.kind == b.kind && a.fits(&h, b)
	}
	for i := range ops {
		begun++
		if err := a.run(ops[i : i+1]); err != nil {
			return header{}, err
		}
		if h, ok := valid(i); ok {
			return h, nil
		}
	}
	var h header
	found := func() (ok bool) {
		for i := 0; i < len(ops) && !ok; i++ {
			h, ok = valid(i)
		}
		return ok
	}
	if slices.ContainsFunc(ops, func(o blockdev.Op) bool { return isLate(&o) }) {
		if err := a.runOut(ctx, ops, found); err != nil {
			return header{}, err
		}
		if found() {
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
	switch {
	case v.buf.Bytes() == nil:
	case v.a.opt.faults.noHold:
		v.buf.Release()
	default:
		release(&v.buf, v.ops)
	}
	v.band.unpin()
	ops := v.ops[:0]
	*v = View{ops: ops}
	views.Put(v)
}
