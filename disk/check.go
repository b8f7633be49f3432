package disk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// CheckReport is what a check found. Counts are of cells unless they say otherwise.
type CheckReport struct {
	Bands       int `json:"bands"`
	Stripes     int `json:"stripes"`
	Cells       int `json:"cells"`       // that should be there, the headers of bands among them
	Superblocks int `json:"superblocks"` // copies of superblocks that should be there
	Bad         int `json:"bad"`         // of both: on a disk that is there, failing their checks
	Missing     int `json:"missing"`     // of both: on disks that are not there
	Lost        int `json:"lost"`        // stripes with fewer good cells than data cells, or packed ones without a trace
	Repaired    int `json:"repaired"`    // cells and copies rewritten, and read back; those that a start rewrote are read by the pass that tells of them
	Degraded    int `json:"degraded"`    // stripes with fewer good cells than they were written with
	// Mismatched stripes have parity that is not that of their data, though no cell fails its checks: which of them is wrong cannot be
	// told, and none is rewritten.
	Mismatched int `json:"mismatched"`
	Records    int `json:"records"`  // packed stripes whose records were opened, as a sample
	Unopened   int `json:"unopened"` // and those that did not open: losses
	// Unfinished stripes and superblock copies were on their way when the power failed: nothing acknowledged is in them. Opening the
	// array for writing completes them.
	Unfinished int `json:"unfinished"`
	Torn       int `json:"torn_stripes,omitempty"` // bulk stripes that cannot be decoded and that no record names: never committed
	// Undecided stripes are like these, but nobody was there to say whether a record names them.
	Undecided int             `json:"undecided_stripes,omitempty"`
	Found     map[Verdict]int `json:"found"` // cells and copies by verdict
	Disks     []DiskReport    `json:"disks"` // by slot
	Faults    []string        `json:"faults,omitempty"`
	Losses    []Loss          `json:"losses,omitempty"`
}

// DiskReport is the part of a CheckReport about one disk.
type DiskReport struct {
	Slot  int             `json:"slot"`
	Path  string          `json:"path,omitempty"`
	Found map[Verdict]int `json:"found"`
}

// OK reports whether everything that was written is there.
func (r *CheckReport) OK() bool {
	return r.Bad == 0 && r.Missing == 0 && r.Lost == 0 && r.Mismatched == 0 && r.Unopened == 0 && len(r.Losses) == 0
}

// clone is a copy that shares nothing.
func (r *CheckReport) clone() CheckReport {
	c := *r
	c.Found, c.Faults, c.Losses, c.Disks = maps.Clone(r.Found), slices.Clone(r.Faults), slices.Clone(r.Losses), slices.Clone(r.Disks)
	for i := range c.Disks {
		c.Disks[i].Found = maps.Clone(c.Disks[i].Found)
	}
	return c
}

// maxFaults bounds the list of faults in a report.
const maxFaults = 100

func (r *CheckReport) fault(format string, args ...any) {
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
}

// Decide says of a stripe that was told to CheckOptions.Undecided whether a record names it.
func (r *CheckReport) Decide(s FoundStripe, named bool) {
	r.Undecided--
	if !named {
		r.Torn++
		return
	}
	r.Lost++
	r.fault("band %x block %d: cannot be decoded, and a record names it", s.Band, s.Off)
	r.Losses = append(r.Losses, Loss{Band: s.Band, Block: s.Off})
}

// CheckOptions configure Check.
type CheckOptions struct {
	Repair   bool                  // rewrite bad cells
	Sample   int                   // open the records of one packed stripe in so many; 0: of none
	Progress func(done, total int) // bands; may be nil
	// Named is told of each bulk stripe that is found, and says whether a record names it: one that cannot be decoded is lost if so, and
	// was never committed if not. nil: not known, and judged by the circumstances.
	Named func(s FoundStripe) bool
	// Undecided is told of the stripes counted so. May be nil.
	Undecided func(s FoundStripe)
	// Bytes is told how much of the extents in use is behind the check. May be nil.
	Bytes func(done, total int64)
}

// FoundStripe is a bulk stripe that lies on the disks.
type FoundStripe struct {
	Band      uint64
	Off       uint32 // blocks
	Data      uint8  // data cells
	Bytes     int64  // of each extent
	Decodable bool   // enough cells are good
}

// Check reads every superblock copy and every stripe of every band past all caches and verifies each cell, and parity against data. The
// first one that repairs, or the first scrub, tells what opening the array has mended, too.
func (a *Array) Check(ctx context.Context, opt CheckOptions) (CheckReport, error) {
	p, err := a.newPass(opt)
	if err != nil {
		return CheckReport{}, err
	}
	p.tellMended()
	err = p.sweep(ctx)
	return p.report(), err
}

// pass is one walk over all that an array holds: a check, or a scrub. It judges what was there when it began.
type pass struct {
	a     *Array
	opt   CheckOptions
	bands []*band
	from  uint64 // bands below were visited by an earlier process

	// What is on its way when the pass begins, and what comes later, is none of its. The bands listed have all stripes up to here.
	until, bulkUntil, epoch uint64

	limit   map[uint64]uint64 // last packed stripe that stands, by band
	numbers numbering
	last    []*band // if the array is read only: bulk bands that could have unfinished stripes
	packed  int     // stripes seen, for the sample

	stripes func() int // how many stripes a step may verify; nil: as many as go
	// pace is called behind each step, when the pass holds nothing; may be nil.
	pace   func(ctx context.Context, band *band, began time.Time) error
	passed func(*band) // called behind each band; may be nil

	read  atomic.Int64 // bytes
	done  atomic.Int64 // bytes of extents that are behind the pass
	total int64        // bytes of the extents of all bands

	mu    sync.Mutex // guards all below
	rep   CheckReport
	found map[Verdict]int // as in rep, but of this process alone
}

func (a *Array) newPass(opt CheckOptions) (*pass, error) {
	opt.Repair = opt.Repair && !a.opt.ReadOnly
	p := &pass{a: a, opt: opt, until: a.log.acked.Load(), bulkUntil: a.bulk.oldest(), epoch: a.epochNow(), found: map[Verdict]int{}}
	if a.opt.ReadOnly {
		p.bulkUntil = ^uint64(0) // nothing is on its way
	}
	p.bands = a.sortedBands()
	for _, b := range p.bands {
		p.total += int64(len(b.members)) * a.geo.ExtentSize
	}
	a.mu.RLock()
	p.rep = a.newReport()
	p.rep.Losses = slices.Clone(a.losses)
	a.mu.RUnlock()
	p.limit = a.newRecovery().limit
	if a.opt.ReadOnly {
		p.last = slices.DeleteFunc(a.lastBulk(), func(b *band) bool { return a.super.closed(b.epoch) })
	}
	var err error
	p.numbers, err = a.numbering(p.until)
	return p, err
}

// newReport is a report of nothing yet; a.mu is held.
func (a *Array) newReport() CheckReport {
	r := CheckReport{Found: map[Verdict]int{}}
	for _, d := range a.slots() {
		if d.role != roleNone {
			r.Disks = append(r.Disks, DiskReport{Slot: d.slot, Path: d.path, Found: map[Verdict]int{}})
		}
	}
	return r
}

// run implements runner and counts what is read.
func (p *pass) run(ops []blockdev.Op) error {
	for i := range ops {
		p.read.Add(int64(len(ops[i].Buf)))
	}
	return p.a.run(ops)
}

// report is what was found so far.
func (p *pass) report() CheckReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rep.clone()
}

// note changes the report.
func (p *pass) note(f func(r *CheckReport)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.rep)
}

// count adds the verdict on a cell of a disk.
func (p *pass) count(slot int, v Verdict) {
	p.note(func(r *CheckReport) {
		r.count(slot, v, 1)
		p.found[v]++
	})
}

// count adds the same verdict on n cells of a disk.
func (r *CheckReport) count(slot int, v Verdict, n int) {
	r.Found[v] += n
	if i := slices.IndexFunc(r.Disks, func(d DiskReport) bool { return d.Slot == slot }); i >= 0 { // else it joined or left meanwhile
		r.Disks[i].Found[v] += n
	}
	switch v {
	case CellGood:
	case CellMissing:
		r.Missing += n
	case CellRepaired:
		r.Repaired += n
	default:
		r.Bad += n
	}
}

// rewritten counts a cell that was written again.
func (p *pass) rewritten(slot int, kept bool, what string) {
	if kept {
		p.count(slot, CellRepaired)
		return
	}
	p.note(func(r *CheckReport) {
		r.fault("%s: %s: not there after it was rewritten", p.a.slots()[slot].path, what)
	})
}

// sweep verifies the superblocks, then band after band.
func (p *pass) sweep(ctx context.Context) error {
	if p.from == 0 {
		if err := p.superblocks(); err != nil {
			return err
		}
	}
	behind := int64(0)
	for i, b := range p.bands {
		size := int64(len(b.members)) * p.a.geo.ExtentSize
		if b.num >= p.from {
			if err := p.band(ctx, b, behind); err != nil {
				return err
			}
		}
		behind += size
		p.done.Store(behind)
		if p.passed != nil {
			p.passed(b)
		}
		if p.opt.Progress != nil {
			p.opt.Progress(i+1, len(p.bands))
		}
	}
	p.note(func(r *CheckReport) { p.numbers.seen(0, p.until+1, r) })
	return nil
}

// band verifies a band step by step. Between steps it is not pinned: who wants to free it need not wait for a pass that is held to a
// rate, or paused.
func (p *pass) band(ctx context.Context, b *band, behind int64) error {
	for off := uint32(0); off < p.a.geo.extentBlocks(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		began := time.Now()
		next, err := p.step(ctx, b, off)
		if errors.Is(err, ErrGone) && !p.numbers.unknown {
			p.numbers.freed, err = p.a.opt.State.Freed() // it was freed since the pass began
			return err
		}
		if err != nil {
			return err
		}
		off = next
		p.done.Store(behind + int64(off)*BlockSize*int64(len(b.members)))
		if p.opt.Bytes != nil {
			p.opt.Bytes(p.done.Load(), p.total)
		}
		if p.pace != nil {
			if err := p.pace(ctx, b, began); err != nil {
				return err
			}
		}
	}
	p.note(func(r *CheckReport) { r.Bands++ })
	return nil
}

// step verifies what is at block off of a band: its headers at 0, else the next stripe. It returns where the next step begins.
func (p *pass) step(ctx context.Context, b *band, off uint32) (uint32, error) {
	b, err := p.a.pinBand(b.num)
	if err != nil {
		return 0, err
	}
	defer b.unpin()
	if off == 0 {
		for pos := range b.members {
			if err := p.bandHeader(ctx, b, pos); err != nil {
				return 0, err
			}
		}
		return 1, nil
	}
	if next, err := p.batch(ctx, b, off); err != nil || next > off {
		return next, err
	}
	w, next, err := p.a.nextStripe(ctx, p, b, off)
	if err != nil || w == nil {
		return p.a.geo.extentBlocks(), err
	}
	defer w.release()
	if !p.a.current(b) {
		return off, nil // a member has moved to another disk: what it left may be gone
	}
	return next, p.stripe(w)
}

// maxLanes is how many stripes of a band are read at once, at most; maxBatch how many are read before what comes next is thought over.
const (
	maxLanes = 8
	maxBatch = 4 * maxLanes
)

// batch verifies stripes of a band that follow each other from block off on. While one is judged the next ones are read, so that disks
// and processors work at the same time. It returns where they end: off where a stripe needs a closer look.
func (p *pass) batch(ctx context.Context, b *band, off uint32) (uint32, error) {
	stripes := maxBatch
	if p.stripes != nil {
		stripes = p.stripes()
	}
	lanes := min(p.a.lanes, stripes)
	if lanes < 2 {
		return off, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reads := make(chan chan *wholeStripe, lanes-1) // one more is being judged
	go func() {
		defer close(reads)
		p.walk(ctx, b, off, stripes, lanes, func(h header) {
			read := make(chan *wholeStripe, 1)
			reads <- read
			go func() { read <- p.readJudged(ctx, b, h) }()
		})
	}()
	var err error
	good := true
	for read := range reads {
		w := <-read
		if good = good && w != nil && p.a.current(b); good {
			err = p.stripe(w)
			off += w.head.blocks
		}
		if w != nil {
			w.release()
		}
		if good = good && err == nil; !good {
			cancel() // what is behind it is not wanted
		}
	}
	return off, err
}

// walk visits the headers of stripes that follow each other from block off on, until there are enough, or one needs a closer look. It
// reads several at once where stripes of the same size seem to follow: one at a time, each would wait behind the reads of whole stripes.
func (p *pass) walk(ctx context.Context, b *band, off uint32, stripes, lanes int, visit func(header)) {
	size := uint32(0) // of the last stripe
	for stripes > 0 && ctx.Err() == nil {
		offs := []uint32{off}
		for size > 0 && len(offs) < min(lanes, stripes) {
			offs = append(offs, offs[len(offs)-1]+size)
		}
		all, err := p.a.headsAtAll(ctx, p, b, offs)
		if err != nil || len(all) == 0 {
			return
		}
		for i, heads := range all {
			if off != offs[i] {
				break // there was another size
			}
			if len(heads) != 1 {
				return
			}
			visit(heads[0])
			size = heads[0].blocks
			off += size
			stripes--
		}
	}
}

// readJudged reads a stripe and compares parity and data if all cells are good; nil where that fails.
func (p *pass) readJudged(ctx context.Context, b *band, h header) *wholeStripe {
	w, err := p.a.readWholeBy(ctx, p, b, h)
	if err != nil {
		return nil
	}
	if w.goodCells() == w.width() {
		if w.mismatched, err = p.contradicts(w); err != nil {
			w.release()
			return nil
		}
		w.judged = true
	}
	return w
}

// stripe verifies one that stands.
func (p *pass) stripe(w *wholeStripe) error {
	b, h := w.band, &w.head
	void := b.kind == kindPacked && h.stripe > min(p.limit[b.num], p.until) || b.kind == kindBulk && b.epoch >= p.epoch && h.stripe >= p.bulkUntil
	torn := b.kind == kindBulk && w.goodCells() < int(h.data) && (b.epoch != p.epoch || p.a.opt.ReadOnly || p.a.bulk.isSpoilt(b))
	found := FoundStripe{Band: b.num, Off: h.off, Data: h.data, Bytes: int64(h.blocks) * BlockSize, Decodable: w.goodCells() >= int(h.data)}
	w.inFlight = b.kind == kindPacked && p.a.opt.ReadOnly && h.stripe > p.a.mark || slices.Contains(p.last, b)
	known := true
	if p.opt.Named != nil && b.kind == kindBulk {
		named := p.opt.Named(found)
		void, torn, w.inFlight = false, !named && !found.Decodable, w.inFlight && !named
	} else if torn {
		var named bool
		var err error
		if named, known, err = p.a.named(w); err != nil {
			return err
		}
		torn, w.inFlight = !named, w.inFlight && !named
	}
	if torn {
		p.note(func(r *CheckReport) {
			if known {
				r.Torn++
			} else {
				r.Undecided++
			}
		})
		if !known && p.opt.Undecided != nil {
			p.opt.Undecided(found)
		}
	}
	if void && !p.a.opt.faults.noInFlight || torn {
		return nil // never acknowledged, not yet, or a torn stripe that no record names
	}
	if b.kind == kindPacked {
		p.note(func(r *CheckReport) { p.numbers.seen(b.num, h.stripe, r) })
	}
	if w.inFlight && !found.Decodable {
		p.note(func(r *CheckReport) { r.Unfinished++ })
		return nil
	}
	return p.cells(w)
}

// cells judges the cells of a stripe, and rewrites those that are bad.
func (p *pass) cells(w *wholeStripe) error {
	n := w.width()
	decodable := w.goodCells() >= int(w.head.data)
	var found [MaxWidth][]byte
	for r := range n {
		if w.bad[r] && !w.dark[r] {
			found[r] = bytes.Clone(w.cells[r]) // what is rebuilt takes its place
		}
	}
	var ops []blockdev.Op
	contradiction := false
	if decodable {
		var err error
		if p.a.opt.faults.trustData {
			w.believeData()
		}
		if ops, err = w.restore(); err != nil {
			return err
		}
		if contradiction, err = p.contradicts(w); err != nil {
			return err
		}
	}
	loss, final := Loss{}, false
	if !decodable {
		var err error
		if loss, final, err = p.a.noteLostStripe(w); err != nil {
			return err
		}
	}
	worse, unfinished := false, false
	for r := range n {
		v := p.a.judgeCell(w, r, found[r], decodable)
		if w.inFlight && unwritten(v, found[r], w.cells[r]) {
			unfinished = true
			continue
		}
		worse = worse || v != CellGood
		pos := w.head.member(r)
		p.count(w.band.members[pos].slot, v)
		if w.bad[r] {
			path := p.a.slots()[w.band.members[pos].slot].path
			p.note(func(rep *CheckReport) {
				rep.fault("%s: band %x block %d: cell %d of %d is %s", path, w.band.num, w.head.off, r, n, v)
			})
		}
	}
	p.note(func(r *CheckReport) {
		r.Stripes++
		r.Cells += n
		if worse {
			r.Degraded++
		}
		if unfinished {
			r.Unfinished++
		}
		switch {
		case !decodable:
			r.Lost++
			r.fault("band %x block %d: cannot be decoded: of %d cells %d are needed", w.band.num, w.head.off, n, w.head.data)
			if final && !slices.Contains(r.Losses, loss) {
				r.Losses = append(r.Losses, loss)
			}
		case contradiction:
			r.Mismatched++
			r.fault("band %x block %d: parity is not that of the data, and no cell fails its checks", w.band.num, w.head.off)
		}
	})
	if !decodable || contradiction {
		return nil
	}
	if err := p.openRecords(w); err != nil || !p.opt.Repair || len(ops) == 0 {
		return err
	}
	return p.repair(w, ops)
}

// judgeCell is the verdict on a cell of a stripe, of which found was there if it is bad; if the stripe is decodable, what should be
// there has taken its place.
func (a *Array) judgeCell(w *wholeStripe, role int, found []byte, decodable bool) Verdict {
	switch {
	case w.good[role]:
		return CellGood
	case !w.bad[role]:
		return CellMissing
	case w.dark[role]:
		return CellUnreadable
	}
	at := w.band.members[w.head.member(role)]
	like := w.head
	like.role, like.disk = uint8(role), a.slots()[at.slot].id
	var want []byte
	if decodable {
		want = w.cells[role]
	}
	return a.judge(found, want, &like, at)
}

// paritySlice is how much parity is recomputed at a time, bytes of each cell.
const paritySlice = 64 << 10

// parityScratch holds memory for recomputed parity.
var parityScratch = sync.Pool{New: func() any { return new([]byte) }}

// contradicts reports whether the parity cells that are good are not those of the data cells of a complete stripe. A checksum proves that
// a cell is as it was written, not that it was written right.
func (p *pass) contradicts(w *wholeStripe) (bool, error) {
	if w.judged {
		return w.mismatched, nil
	}
	d, n := int(w.head.data), w.width()
	if n == d {
		return false, nil
	}
	coder, err := p.a.opt.Crypto.Coder(d, n-d)
	if err != nil {
		return false, err
	}
	mem := parityScratch.Get().(*[]byte)
	defer parityScratch.Put(mem)
	if need := (n - d) * paritySlice; len(*mem) < need {
		*mem = make([]byte, need)
	}
	scratch := *mem
	var shards [MaxWidth][]byte
	for at := w.head.start(); at < len(w.cells[0]); at += paritySlice {
		end := min(at+paritySlice, len(w.cells[0]))
		for r := range n {
			if shards[r] = scratch[max(r-d, 0)*paritySlice:][:end-at]; r < d {
				shards[r] = w.cells[r][at:end]
			}
		}
		if err := coder.Encode(shards[:d], shards[d:n]); err != nil {
			return false, err
		}
		for r := d; r < n; r++ {
			if w.good[r] && !bytes.Equal(shards[r], w.cells[r][at:end]) {
				return true, nil
			}
		}
	}
	return false, nil
}

// openRecords opens the records of one packed stripe in so many. A checksum that holds around a seal that does not is a loss.
func (p *pass) openRecords(w *wholeStripe) error {
	if w.head.kind != kindPacked || p.opt.Sample == 0 {
		return nil
	}
	if p.packed++; p.packed%p.opt.Sample != 0 {
		return nil
	}
	_, err := p.a.decodeEntries(w)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("open records of stripe %d: %w", w.head.stripe, err) // keys are missing: nothing is wrong with the records
	}
	loss := Loss{Band: w.band.num, From: w.head.stripe, To: w.head.stripe}
	if err != nil {
		p.a.noteLoss(loss)
	}
	p.note(func(r *CheckReport) {
		r.Records++
		if err == nil {
			return
		}
		r.Unopened++
		r.fault("band %x block %d: the records of stripe %d do not open: %v", w.band.num, w.head.off, w.head.stripe, err)
		if !slices.Contains(r.Losses, loss) {
			r.Losses = append(r.Losses, loss)
		}
	})
	return nil
}

// repair rewrites the bad cells of a stripe and reads them back. A disk that refuses is fenced.
func (p *pass) repair(w *wholeStripe, ops []blockdev.Op) error {
	a := p.a
	failed, err := w.write(ops)
	if err != nil {
		return err
	}
	kept, reads, err := a.readBack(p, ops, func(op *blockdev.Op) bool {
		at := place{disk: a.diskOf[op.Dev].Load().id, band: w.band.num, off: w.head.off}
		h, err := a.codec.parse(op.Buf, at)
		return err == nil && h.sameStripe(&w.head) && a.codec.verify(op.Buf, &h)
	})
	w.ops = append(w.ops, reads...)
	if err != nil {
		return err
	}
	for i := range ops {
		p.rewritten(a.diskOf[ops[i].Dev].Load().slot, kept[i], fmt.Sprintf("band %x block %d", w.band.num, w.head.off))
	}
	if len(failed) > 0 {
		return a.log.fail(failed)
	}
	return nil
}

// Accounts compares the books of the disks' extents with the bands that lie on them, and returns what differs.
func (a *Array) Accounts() (faults []string) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	owner := map[bandMember]uint64{}
	for _, b := range a.bands {
		for _, m := range b.members {
			if other, taken := owner[m]; taken {
				faults = append(faults, fmt.Sprintf("disk %d extent %d: belongs to bands %x and %x", m.slot, m.extent, other, b.num))
			}
			owner[m] = b.num
			if d := a.slots()[m.slot]; m.extent >= d.extents {
				faults = append(faults, fmt.Sprintf("disk %d extent %d: belongs to band %x, and the disk has %d", m.slot, m.extent, b.num, d.extents))
			}
		}
	}
	for _, d := range a.slots() {
		free := 0
		for e := range d.extents {
			band, taken := owner[bandMember{slot: d.slot, extent: e}]
			switch used := d.used[e]; {
			case taken && !used:
				faults = append(faults, fmt.Sprintf("disk %d extent %d: belongs to band %x and counts as free", d.slot, e, band))
			case used && !taken && !d.draining && d.role != roleNone && !slices.Contains(d.cramped, e): // what a leaving disk has given up stays as it is
				faults = append(faults, fmt.Sprintf("disk %d extent %d: counts as used and belongs to no band", d.slot, e))
			}
			if !d.used[e] {
				free++
			}
		}
		if free != d.free {
			faults = append(faults, fmt.Sprintf("disk %d: %d extents are free, and %d are counted", d.slot, free, d.free))
		}
	}
	slices.Sort(faults)
	return faults
}

// LastStripe is the number of the last packed stripe that is acknowledged.
func (a *Array) LastStripe() uint64 { return a.log.acked.Load() }

// numbering finds holes in the packed stream: a stripe of which no header is left cannot be seen otherwise.
type numbering struct {
	next, until uint64        // next is 0 in a pass that goes on where an earlier one ended: it begins with what it sees first
	band        uint64        // of the stripe before next
	freed       []StripeRange // holes that are none
	unknown     bool          // what was freed is not known: only holes within a band count
}

func (a *Array) numbering(until uint64) (numbering, error) {
	c := numbering{next: 1, until: until, unknown: a.opt.State == nil}
	var err error
	if !c.unknown {
		c.freed, err = a.opt.State.Freed()
	}
	return c, err
}

// seen counts what is missing in front of the stripe num of a band.
func (c *numbering) seen(band, num uint64, rep *CheckReport) {
	if end := min(num, c.until+1); c.next > 0 && c.next < end && (!c.unknown || band == c.band) {
		for _, r := range (StripeRange{c.next, end - 1}).without(c.freed) {
			rep.Lost += int(r.To - r.From + 1)
			rep.fault("packed stripes %d to %d: not found", r.From, r.To)
		}
	}
	c.next, c.band = max(c.next, num+1), band
}

// sortedBands lists the bands in the order in which they were opened.
func (a *Array) sortedBands() []*band {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.SortedFunc(maps.Values(a.bands), func(x, y *band) int { return cmp.Compare(x.num, y.num) })
}
