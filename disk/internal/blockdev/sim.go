package blockdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// simPage is a block of a simulated disk. A stored page is never changed, so images share them.
type simPage [Align]byte

// simWrite is one page on its way to the medium; nil data is a discarded page.
type simWrite struct {
	no   int
	data *simPage
}

// SimDisk is a Device in a World: a medium, and before it a volatile cache from which it reads. A durable write is on the medium
// when it completes, any other after a Flush. Nil pages were never written, and read as zeros.
type SimDisk struct {
	world  *World
	name   string
	cache  []*simPage
	medium []*simPage
	prior  []*simPage // what each page held before its last write
	dirty  []simWrite // in the cache only, in order of writing
	closed bool

	short            int // pages that were cut off at its end
	dead, hung, full bool
	reserved         []bool // pages that have room when the disk is full
	slow             bool
	late             []simWrite // accepted by a hung disk
	bad              map[int]bool
	rules            []simRule
	counters         counters
}

// SimOptions configures NewSimDisk.
type SimOptions struct {
	Name string // the Path; empty: "sim0", "sim1" by order of creation
}

// NewSimDisk adds a disk of size bytes, a multiple of Align, to w.
func NewSimDisk(w *World, size int64, opt SimOptions) *SimDisk {
	if size <= 0 || size%Align != 0 {
		panic(fmt.Sprintf("blockdev: simulated disk of %d bytes", size))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := int(size / Align)
	d := &SimDisk{world: w, name: opt.Name, bad: map[int]bool{},
		cache: make([]*simPage, n), medium: make([]*simPage, n), prior: make([]*simPage, n), reserved: make([]bool, n)}
	if d.name == "" {
		d.name = fmt.Sprintf("sim%d", len(w.disks))
	}
	w.disks = append(w.disks, d)
	return d
}

func (d *SimDisk) Path() string    { return d.name }
func (d *SimDisk) stat() *counters { return &d.counters }
func (d *SimDisk) Stats() Stats    { return d.counters.snapshot() }
func (d *SimDisk) size() int64     { return int64(len(d.medium)-d.short) * Align }

func (d *SimDisk) Limits() Limits {
	return Limits{Size: d.size(), LogicalBlock: SectorSize, MemAlign: Align, OffAlign: Align, WriteBack: true, Kind: "sim", Serial: d.name}
}

func (d *SimDisk) ReadAt(p []byte, off int64) error {
	return d.single(Op{Off: off, Buf: p})
}

func (d *SimDisk) WriteAt(p []byte, off int64, durable bool) error {
	return d.single(Op{Write: true, Durable: durable, Off: off, Buf: p})
}

// single starts op and completes it at once, while others stay in flight.
func (d *SimDisk) single(op Op) error {
	if err := checkRange(d.name, op.Buf, op.Off, d.size()); err != nil {
		return err
	}
	w := d.world
	w.mu.Lock()
	defer w.mu.Unlock()
	ops := []Op{op}
	if t := w.start([]member{{Device: d}}, ops); t.left > 0 {
		w.complete(len(w.flight) - 1)
	}
	return ops[0].Err
}

// usable tells why the disk cannot serve at all.
func (d *SimDisk) usable() error {
	switch {
	case d.world.off:
		return ErrPowerCut
	case d.closed:
		return ErrClosed
	case d.dead:
		return unix.EIO
	case d.hung:
		return ErrTimeout
	}
	return nil
}

// perform completes op on the disk as its faults allow.
func (d *SimDisk) perform(op *Op) {
	err := d.usable()
	if err == ErrTimeout {
		// The real kernel would hold the buffer; here its bytes are copied, and it may be reused at once.
		op.Stuck, op.hold = true, &hold{released: true, err: err}
		d.counters.timeouts.Add(1)
		if op.Write {
			d.late = append(d.late, cutPages(op.Buf, op.Off)...)
		}
	}
	switch {
	case err != nil:
	case op.Write:
		err = d.write(op)
	default:
		err = d.read(op)
	}
	verb := "read"
	if op.Write {
		verb = "write"
		d.world.note("%s: write %d at %d, durable %v: %v", d.name, len(op.Buf), op.Off, op.Durable, err)
	}
	d.counters.done(op.Write, op.Durable, len(op.Buf), 0, err)
	if err != nil {
		op.Err = fmt.Errorf("%s %s: %d bytes at %d: %w", verb, d.name, len(op.Buf), op.Off, err)
	}
}

func (d *SimDisk) read(op *Op) error {
	if r := d.fire(onRead); r != nil {
		return r.err
	}
	first := int(op.Off / Align)
	for i := range len(op.Buf) / Align {
		if d.bad[first+i] {
			return unix.EIO
		}
		dst := op.Buf[i*Align : (i+1)*Align]
		if p := d.cache[first+i]; p != nil {
			copy(dst, p[:])
		} else {
			clear(dst)
		}
	}
	return nil
}

func (d *SimDisk) write(op *Op) error {
	to, off := d, op.Off
	r := d.fire(onWrite)
	switch {
	case r == nil:
	case r.lost, r.err != nil && !r.persist:
		return r.err
	case r.to != nil:
		to, off = r.to, r.off
		if off < 0 {
			off = op.Off
		}
		if checkSpan(to.name, off, int64(len(op.Buf)), to.size()) != nil {
			return nil // it went beyond the end: lost
		}
	}
	pages := cutPages(op.Buf, off)
	for _, p := range pages {
		if to.full && to.cache[p.no] == nil {
			return unix.ENOSPC
		}
	}
	to.store(pages, op.Durable)
	if r != nil {
		return r.err
	}
	return nil
}

// cutPages copies a buffer into pages for the blocks at off.
func cutPages(buf []byte, off int64) []simWrite {
	n := len(buf) / Align
	pages, ws := make([]simPage, n), make([]simWrite, n)
	for i := range n {
		copy(pages[i][:], buf[i*Align:])
		ws[i] = simWrite{int(off/Align) + i, &pages[i]}
	}
	return ws
}

// store writes pages to the cache and, when durable, through to the medium. Writing a block makes it readable again.
func (d *SimDisk) store(ws []simWrite, durable bool) {
	for _, w := range ws {
		delete(d.bad, w.no)
		d.prior[w.no], d.cache[w.no] = d.cache[w.no], w.data
		if durable {
			d.medium[w.no] = w.data
			d.forget(w.no)
		} else {
			d.dirty = append(d.dirty, w)
		}
	}
}

// forget drops older writes of a page from the cache's list, lest they overwrite a durable one.
func (d *SimDisk) forget(no int) {
	kept := d.dirty[:0]
	for _, w := range d.dirty {
		if w.no != no {
			kept = append(kept, w)
		}
	}
	d.dirty = kept
}

// Sector survival at a power cut, in tenths.
var survival = [...]int{0, 10, 5, 9}

// powerOff settles what the medium holds after a power cut that met the writes torn in flight, and empties the cache.
func (d *SimDisk) powerOff(torn []simWrite) {
	rng := d.world.rng
	ws := append(append(d.dirty, d.late...), torn...)
	d.dirty, d.late = nil, nil
	tenths := survival[rng.IntN(len(survival))]
	if d.dead {
		tenths = 0
	}
	rng.Shuffle(len(ws), func(i, j int) { ws[i], ws[j] = ws[j], ws[i] })
	for _, w := range ws {
		d.tear(w, tenths)
	}
	copy(d.cache, d.medium)
}

// tear writes each sector of a page to the medium with the given probability.
func (d *SimDisk) tear(w simWrite, tenths int) {
	if tenths == 0 {
		return
	}
	var p simPage
	if old := d.medium[w.no]; old != nil {
		p = *old
	}
	for s := 0; s < Align; s += SectorSize {
		if d.world.rng.IntN(10) >= tenths {
			continue
		}
		if w.data == nil {
			clear(p[s : s+SectorSize])
		} else {
			copy(p[s:s+SectorSize], w.data[s:])
		}
	}
	d.medium[w.no] = &p
	delete(d.bad, w.no)
}

// change runs f as a change of the disk.
func (d *SimDisk) change(verb string, f func() error) error {
	w := d.world
	w.mu.Lock()
	defer w.mu.Unlock()
	err := d.usable()
	if err == nil {
		err = w.tick()
	}
	if err == nil {
		err = f()
	}
	w.note("%s: %s: %v", d.name, verb, err)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, d.name, err)
	}
	return nil
}

func (d *SimDisk) Flush() error {
	return d.change("flush", func() error {
		r := d.fire(onFlush)
		for _, w := range d.dirty {
			// A failed flush writes some pages and calls all of them clean: what Linux does (Rebello, ATC 2020).
			if r == nil || r.persist || d.world.rng.IntN(2) == 0 {
				d.medium[w.no] = w.data
			}
		}
		d.dirty = nil
		if r != nil {
			d.counters.flushed(r.err)
			return r.err
		}
		d.counters.flushed(nil)
		return nil
	})
}

// Discard leaves each page as it is or empties it, at random.
func (d *SimDisk) Discard(off, n int64) error {
	if err := checkSpan(d.name, off, n, d.size()); err != nil {
		return err
	}
	return d.change("discard", func() error {
		if r := d.fire(onDiscard); r != nil {
			return r.err
		}
		for i := off / Align; i < (off+n)/Align; i++ {
			if d.world.rng.IntN(2) == 0 {
				d.store([]simWrite{{int(i), nil}}, false)
			}
		}
		return nil
	})
}

// Prepare makes pages that were never written zeros on the medium.
func (d *SimDisk) Prepare(off, n int64) error {
	if err := checkSpan(d.name, off, n, d.size()); err != nil {
		return err
	}
	return d.change("prepare", func() error {
		if r := d.fire(onPrepare); r != nil {
			return r.err
		}
		zero := new(simPage)
		for i := off / Align; i < (off+n)/Align; i++ {
			if d.cache[i] != nil {
				continue
			}
			if d.full && !d.reserved[i] {
				return unix.ENOSPC
			}
			d.store([]simWrite{{int(i), zero}}, true)
		}
		return nil
	})
}

// Reserve lets Prepare have room even when the disk is full.
func (d *SimDisk) Reserve(off, n int64) error {
	if err := checkSpan(d.name, off, n, d.size()); err != nil {
		return err
	}
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	for i := off / Align; i < (off+n)/Align; i++ {
		if d.full && d.cache[i] == nil && !d.reserved[i] {
			return unix.ENOSPC
		}
		d.reserved[i] = true
	}
	return nil
}

// Close ends the use of the disk until World.Restart.
func (d *SimDisk) Close() error {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	if d.closed {
		return fmt.Errorf("close %s: %w", d.name, ErrClosed)
	}
	d.closed = true
	return nil
}
