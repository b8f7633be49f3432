package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

// wholeStripe is a stripe with all its cells in memory and a verdict on each.
type wholeStripe struct {
	a     *Array
	band  *band
	head  header // of any valid cell
	buf   blockdev.Buf
	ops   []blockdev.Op
	cells [MaxWidth][]byte
	good  [MaxWidth]bool // header and checksum hold
	bad   [MaxWidth]bool // the disk is there, its cell is not good
	dark  [MaxWidth]bool // bad because the disk failed the read
	// unread counts the cells of which the disk said nothing: it is gone, or failed the read.
	unread int
	failed int // of the unread cells: those that a disk which is there did not yield
	// judged: whether parity is that of the data was found out already, and mismatched is the answer.
	judged, mismatched bool
	// inFlight: it may have been on its way when the power failed, so that cells which were not written are no damage.
	inFlight bool
}

func (w *wholeStripe) width() int { return int(w.head.data) + int(w.head.parity) }
func (w *wholeStripe) release()   { release(&w.buf, w.ops) }

// use calls fn and releases the stripe.
func (w *wholeStripe) use(fn func(*wholeStripe) error) error {
	defer w.release()
	return fn(w)
}

// goodCells counts the cells that can be trusted.
func (w *wholeStripe) goodCells() (n int) {
	for i := range w.width() {
		if w.good[i] {
			n++
		}
	}
	return n
}

// mayBeWhole returns an error if the stripe could be completed when disks that did not answer just now do.
func (w *wholeStripe) mayBeWhole() error {
	if w.failed > 0 && w.goodCells()+w.failed >= int(w.head.data) {
		return fmt.Errorf("stripe %x/%d: %d cells: %w", w.band.num, w.head.off, w.failed, errUnread)
	}
	return nil
}

// readWhole reads and verifies all cells of the stripe that like describes.
func (a *Array) readWhole(ctx context.Context, b *band, like header) (*wholeStripe, error) {
	return a.readWholeBy(ctx, a, b, like)
}

// readWholeBy is readWhole with reads by run.
func (a *Array) readWholeBy(ctx context.Context, run runner, b *band, like header) (*wholeStripe, error) {
	w, err := a.readCells(ctx, run, b, like, func(int) bool { return true })
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			w.release()
		}
	}()
	if err := a.recallStripe(w); err != nil {
		return nil, err
	}
	done = true
	return w, nil
}

// readEnough reads as many cells of a stripe as the one of a role can be computed from. They may prove bad.
func (a *Array) readEnough(ctx context.Context, b *band, like header, role int) (*wholeStripe, error) {
	left := int(like.data)
	return a.readCells(ctx, a, b, like, func(r int) bool {
		if r == role || left == 0 || a.readable(b, like.member(r)) == nil {
			return false
		}
		left--
		return true
	})
}

// readCells reads and verifies the cells of a stripe that are wanted; the others count as missing.
func (a *Array) readCells(ctx context.Context, run runner, b *band, like header, wanted func(role int) bool) (_ *wholeStripe, err error) {
	w := &wholeStripe{a: a, band: b, head: like}
	read := false
	defer func() {
		if !read {
			w.release()
		}
	}()
	n, size := w.width(), int(like.blocks)*BlockSize
	buf, err := a.rebuild.Get(ctx, n*size)
	if err != nil {
		return nil, err
	}
	w.buf = buf
	var roles []int
	for r := range n {
		w.cells[r] = buf.Bytes()[r*size:][:size:size]
		if !wanted(r) {
			continue
		}
		if op, ok := a.op(b, like.member(r), like.off, 0, w.cells[r]); ok {
			w.ops = append(w.ops, op)
			roles = append(roles, r)
		}
	}
	if len(w.ops) == 0 {
		return nil, fmt.Errorf("stripe %x/%d: no disk left: %w", b.num, like.off, ErrCorrupt)
	}
	if err := run.run(w.ops); err != nil {
		return nil, err
	}
	w.unread, w.failed = n-len(roles), failedReads(w.ops)
	for i, r := range roles {
		if w.ops[i].Err != nil {
			w.unread++
		}
		if w.ops[i].Stuck { // the disk hangs: no better than a missing one, and the kernel holds the memory
			w.cells[r] = make([]byte, size)
			continue
		}
		w.bad[r] = true
		if w.dark[r] = w.ops[i].Err != nil; w.dark[r] {
			continue
		}
		id := a.slots()[b.members[like.member(r)].slot].id
		h, err := a.codec.parse(w.cells[r], place{disk: id, band: b.num, off: like.off})
		if err == nil && (int(h.role) == r || a.opt.faults.noLocation) && h.sameStripe(&like) && a.codec.verify(w.cells[r], &h) {
			w.good[r], w.bad[r] = true, false
		}
	}
	read = true
	return w, nil
}

// complete reconstructs every cell that is not good, headers included, from the good ones.
func (w *wholeStripe) complete() error {
	d, n := int(w.head.data), w.width()
	if w.goodCells() < d {
		return fmt.Errorf("stripe %x/%d: %d of %d cells good: %w", w.band.num, w.head.off, w.goodCells(), d, ErrCorrupt)
	}
	return w.reconstruct(func(r int) bool { return w.good[r] }, n)
}

// reconstruct fills the payloads of the first n cells for which use says false.
func (w *wholeStripe) reconstruct(use func(role int) bool, n int) error {
	start := w.head.start()
	shards := make([][]byte, w.width())
	want := make([]bool, w.width())
	missing := false
	for r := range shards {
		p := w.cells[r][start:]
		if use(r) {
			shards[r] = p
			continue
		}
		shards[r] = p[:0:len(p)]
		want[r] = r < n
		missing = missing || want[r]
	}
	if !missing {
		return nil
	}
	coder, err := w.a.opt.Crypto.Coder(int(w.head.data), int(w.head.parity))
	if err != nil {
		return err
	}
	return coder.Reconstruct(shards, want)
}

// restore completes the stripe and returns the writes that put back what is bad on live disks: the very bytes that were there.
func (w *wholeStripe) restore() ([]blockdev.Op, error) {
	if err := w.complete(); err != nil {
		return nil, err
	}
	a := w.a
	var ops []blockdev.Op
	for r := range w.width() {
		if !w.bad[r] {
			continue
		}
		pos := w.head.member(r)
		d := a.readable(w.band, pos)
		if d == nil {
			continue
		}
		ops = append(ops, a.cellWrite(w, r, d))
	}
	return ops, nil
}

// believeData is a seeded bug: whatever a disk returned as data is right, and parity is wrong.
func (w *wholeStripe) believeData() {
	d := int(w.head.data)
	for r := range d {
		if w.dark[r] || !w.good[r] && !w.bad[r] {
			return // nothing was returned
		}
	}
	if !slices.Contains(w.bad[:d], true) {
		return
	}
	for r := range w.width() {
		w.good[r], w.bad[r] = r < d, true
	}
}

// rewrite writes the cells that are bad on live disks. It returns the disks that refused.
func (w *wholeStripe) rewrite() ([]*disk, error) {
	ops, err := w.restore()
	if err != nil || len(ops) == 0 {
		return nil, err
	}
	return w.write(ops)
}

// write runs the writes of restore.
func (w *wholeStripe) write(ops []blockdev.Op) ([]*disk, error) {
	err := w.a.group.Run(ops)
	w.a.stats.repairs.Add(uint64(len(ops)))
	w.ops = append(w.ops, ops...) // should one be stuck, the buffer is not released
	return w.a.failedDisks(ops), err
}

// cellWrite makes a cell of a complete stripe again, as it was or would have been on d, and returns the write that puts it there.
func (a *Array) cellWrite(w *wholeStripe, role int, d *disk) blockdev.Op {
	h := w.head
	cell := w.cells[role]
	h.role, h.disk = uint8(role), d.id
	if h.kind == kindBulk {
		clear(cell[:BlockSize])
	}
	h.crc = a.codec.checksum(&h, a.opt.Crypto.CRC64NVME(0, cell[h.start():]))
	a.codec.put(cell, &h)
	at := a.geo.extentOffset(w.band.members[h.member(role)].extent) + int64(h.off)*BlockSize
	return blockdev.Op{Dev: d.gi, Write: true, Durable: true, Off: at, Buf: cell}
}

// repairTask names a stripe with something to rewrite.
type repairTask struct {
	band *band
	off  uint32
}

// queueRepair has a stripe rewritten in the background. When the queue is full the next reader or a scrub will find it.
func (a *Array) queueRepair(b *band, off uint32) {
	if a.opt.ReadOnly {
		return
	}
	select {
	case a.repair <- repairTask{b, off}:
	default:
	}
}

// queueLatent has a stripe rewritten of which a read met an error other than a missed deadline: sectors that cannot be read can
// mostly be written, and a disk that refuses that too is fenced.
func (a *Array) queueLatent(b *band, off uint32, err error) {
	if err != nil && !errors.Is(err, blockdev.ErrTimeout) && !errors.Is(err, blockdev.ErrLate) {
		a.queueRepair(b, off)
	}
}

// runRepairs rewrites what reads found bad until the array closes.
func (a *Array) runRepairs() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case t := <-a.repair:
			if err := a.repairStripe(a.ctx, t.band, t.off); err != nil && a.ctx.Err() == nil {
				a.logger.Warn("repair stripe", "band", fmt.Sprintf("%x", t.band.num), "off", t.off, "err", err)
			}
		}
	}
}

// repairStripe verifies a stripe and rewrites its bad cells.
func (a *Array) repairStripe(ctx context.Context, b *band, off uint32) error {
	b, err := a.pinBand(b.num)
	if err != nil {
		return nil // freed meanwhile
	}
	defer b.unpin()
	h, err := a.anyHeader(ctx, b, off)
	if err != nil {
		return err
	}
	w, err := a.readWhole(ctx, b, h)
	if err != nil {
		return err
	}
	defer w.release()
	failed, err := w.rewrite()
	if err == nil && len(failed) > 0 {
		err = a.log.fail(failed)
	}
	return err
}

// Repair is for bytes that the caller's check refused, or that it distrusts: it reads the whole stripe, verifies every cell, and
// tries what the good ones yield, leaving out cells in turn, until check accepts segment i (or the packed bytes). Bytes(i)
// returns the accepted bytes afterwards. Bad cells are rewritten in the background.
func (v *View) Repair(ctx context.Context, i int, check func(p []byte) error) error {
	a := v.a
	like, err := a.anyHeader(ctx, v.band, v.off())
	if err != nil {
		return err
	}
	role, at, n := int(v.loc.Role), int(v.loc.Start), int(v.loc.Len)
	if v.loc.IsZero() {
		seg := v.first + i
		role, at, n = seg%int(v.stripe.Data), slotOffset(seg/int(v.stripe.Data)), SegmentSize
	}
	if role >= int(like.data) || at+n > int(like.blocks)*BlockSize {
		return fmt.Errorf("stripe %x/%d: shorter than its record says: %w", v.band.num, v.off(), ErrCorrupt)
	}
	w, err := a.readWhole(ctx, v.band, like)
	if err != nil {
		return err
	}
	defer w.release()
	accept := func() bool {
		p := w.cells[role][at:][:n]
		if check(p) != nil {
			return false
		}
		v.fix(i, p)
		return true
	}
	if w.good[role] && accept() {
		a.queueRepair(v.band, v.off())
		return nil
	}
	a.stats.reconstructions.Add(1)
	if w.tryLeavingOut(role, accept) {
		a.queueRepair(v.band, v.off())
		return nil
	}
	return fmt.Errorf("stripe %x/%d: no combination of %d good cells of %d yields the data: %w",
		v.band.num, v.off(), w.goodCells(), w.width(), ErrCorrupt)
}

// maxAttempts bounds the combinations of cells that one repair tries.
const maxAttempts = 600

// tryLeavingOut reconstructs the wanted cell from the good cells without it: from all, then leaving out one of the others, then
// two, and so on while enough remain.
func (w *wholeStripe) tryLeavingOut(role int, accept func() bool) bool {
	var pool []int
	for r := range w.width() {
		if w.good[r] && r != role {
			pool = append(pool, r)
		}
	}
	spare := len(pool) - int(w.head.data)
	attempts := 0
	var out [MaxWidth]bool
	var try func(from, left int) bool
	try = func(from, left int) bool {
		if left == 0 {
			attempts++
			use := func(r int) bool { return w.good[r] && r != role && !out[r] }
			return w.reconstructOnly(role, use) == nil && accept()
		}
		for i := from; i < len(pool) && attempts < maxAttempts; i++ {
			out[pool[i]] = true
			if try(i+1, left-1) {
				return true
			}
			out[pool[i]] = false
		}
		return false
	}
	for left := 0; left <= spare; left++ {
		if try(0, left) {
			return true
		}
	}
	return false
}

// reconstructOnly fills the payload of one cell from the cells that use allows.
func (w *wholeStripe) reconstructOnly(role int, use func(int) bool) error {
	start := w.head.start()
	shards := make([][]byte, w.width())
	want := make([]bool, w.width())
	for r := range shards {
		p := w.cells[r][start:]
		if shards[r] = p[:0:len(p)]; use(r) {
			shards[r] = p
		}
	}
	want[role] = true
	coder, err := w.a.opt.Crypto.Coder(int(w.head.data), int(w.head.parity))
	if err != nil {
		return err
	}
	return coder.Reconstruct(shards, want)
}
