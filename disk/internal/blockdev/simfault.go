package blockdev

import (
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

// simRule makes the nth operation of a kind from now go wrong, once.
type simRule struct {
	on      simKind
	nth     int
	err     error
	persist bool     // the operation is done in spite of its error
	lost    bool     // it is acknowledged and not done
	to      *SimDisk // it is done there
	off     int64    // and at this offset; negative: at its own
}

type simKind uint8

const (
	onRead simKind = iota
	onWrite
	onFlush
	onPrepare
	onDiscard
)

// fire counts an operation, and returns the rule that is due.
func (d *SimDisk) fire(kind simKind) (due *simRule) {
	for i := 0; i < len(d.rules); i++ {
		r := &d.rules[i]
		if r.on != kind {
			continue
		}
		if r.nth--; r.nth <= 0 && due == nil {
			rule := *r
			due = &rule
			d.rules = append(d.rules[:i], d.rules[i+1:]...)
			i--
		}
	}
	return due
}

// fault runs f, which damages the disk, under the world's lock.
func (d *SimDisk) fault(f func(), format string, args ...any) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	f()
	d.world.note(d.name+": fault: "+format, args...)
}

func (d *SimDisk) arm(r simRule, format string, args ...any) {
	d.fault(func() { d.rules = append(d.rules, r) }, format, args...)
}

// FailRead lets the nth read from now (1 is the next) fail with err, once.
func (d *SimDisk) FailRead(nth int, err error) {
	d.arm(simRule{on: onRead, nth: nth, err: err}, "read %d fails: %v", nth, err)
}

// FailWrite lets the nth write from now fail with err, once, and leave nothing.
func (d *SimDisk) FailWrite(nth int, err error) {
	d.arm(simRule{on: onWrite, nth: nth, err: err}, "write %d fails: %v", nth, err)
}

// FailWritePersisted lets the nth write from now reach the disk and still fail with err, once.
func (d *SimDisk) FailWritePersisted(nth int, err error) {
	d.arm(simRule{on: onWrite, nth: nth, err: err, persist: true}, "write %d fails, persisted: %v", nth, err)
}

// FailFlush lets the nth flush from now fail with err, once: some cached writes reach the medium, and no later flush will
// bring the others there.
func (d *SimDisk) FailFlush(nth int, err error) {
	d.arm(simRule{on: onFlush, nth: nth, err: err}, "flush %d fails: %v", nth, err)
}

// FailFlushPersisted lets the nth flush from now do its work and still fail with err, once.
func (d *SimDisk) FailFlushPersisted(nth int, err error) {
	d.arm(simRule{on: onFlush, nth: nth, err: err, persist: true}, "flush %d fails, persisted: %v", nth, err)
}

// FailPrepare lets the nth Prepare from now fail with err, once, and leave nothing.
func (d *SimDisk) FailPrepare(nth int, err error) {
	d.arm(simRule{on: onPrepare, nth: nth, err: err}, "prepare %d fails: %v", nth, err)
}

// FailDiscard lets the nth Discard from now fail with err, once, and leave all as it is.
func (d *SimDisk) FailDiscard(nth int, err error) {
	d.arm(simRule{on: onDiscard, nth: nth, err: err}, "discard %d fails: %v", nth, err)
}

// Armed is how many faults of coming operations have not been met.
func (d *SimDisk) Armed() int {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return len(d.rules)
}

// Disarm calls off the faults of coming operations.
func (d *SimDisk) Disarm() { d.fault(func() { d.rules = nil }, "disarmed") }

// LoseWrite lets the nth write from now be acknowledged and never applied.
func (d *SimDisk) LoseWrite(nth int) {
	d.arm(simRule{on: onWrite, nth: nth, lost: true}, "write %d is lost", nth)
}

// MisdirectWrite lets the nth write from now land at off of the same disk, and not where it should.
func (d *SimDisk) MisdirectWrite(nth int, off int64) {
	d.arm(simRule{on: onWrite, nth: nth, to: d, off: off}, "write %d goes to %d", nth, off)
}

// MisdirectWriteTo lets the nth write from now land at its offset of another disk of the world, and not on this one.
func (d *SimDisk) MisdirectWriteTo(nth int, to *SimDisk) {
	d.arm(simRule{on: onWrite, nth: nth, to: to, off: -1}, "write %d goes to %s", nth, to.name)
}

// Overwrite puts p on the medium at off, both multiples of Align, behind everyone's back.
func (d *SimDisk) Overwrite(off int64, p []byte) {
	d.mustSpan(off, int64(len(p)))
	d.fault(func() { d.store(cutPages(p, off), true) }, "%d bytes overwritten at %d", len(p), off)
}

// FlipBits inverts n different, random bits of the length bytes at off, which need no alignment.
func (d *SimDisk) FlipBits(off, length int64, n int) {
	if off < 0 || length <= 0 || off > d.size()-length || int64(n) > length*8 {
		panic(fmt.Sprintf("blockdev: %d bits of %d bytes at %d of %s", n, length, off, d.name))
	}
	d.fault(func() {
		for flipped := map[int64]bool{}; len(flipped) < n; {
			bit := d.world.rng.Int64N(length * 8)
			if flipped[bit] {
				continue // a second flip would undo the first
			}
			flipped[bit] = true
			at := off + bit/8
			no := int(at / Align)
			var p simPage
			if d.cache[no] != nil {
				p = *d.cache[no]
			}
			p[at%Align] ^= 1 << (bit % 8)
			prior := d.prior[no]
			d.store([]simWrite{{no, &p}}, true)
			d.prior[no] = prior
		}
	}, "%d bits flipped in %d bytes at %d", n, length, off)
}

// Regress takes n bytes at off back to what they held before they were last written: writes lost in the past.
func (d *SimDisk) Regress(off, n int64) {
	d.mustSpan(off, n)
	d.fault(func() {
		for i := off / Align; i < (off+n)/Align; i++ {
			d.store([]simWrite{{int(i), d.prior[i]}}, true)
		}
	}, "%d bytes stale at %d", n, off)
}

// BadRange makes n bytes at off unreadable (EIO), until written again.
func (d *SimDisk) BadRange(off, n int64) {
	d.mustSpan(off, n)
	d.fault(func() {
		for i := off / Align; i < (off+n)/Align; i++ {
			d.bad[int(i)] = true
		}
	}, "%d bytes unreadable at %d", n, off)
}

// Kill makes every operation fail with EIO until Revive.
func (d *SimDisk) Kill() { d.fault(func() { d.dead = true }, "dead") }

// Revive ends Kill. The disk holds what it held.
func (d *SimDisk) Revive() { d.fault(func() { d.dead = false }, "revived") }

// Hang makes every operation miss its deadline until Unhang.
func (d *SimDisk) Hang() { d.fault(func() { d.hung = true }, "hung") }

// Unhang ends Hang. Each block of the writes that hung lands late or never.
func (d *SimDisk) Unhang() {
	d.fault(func() {
		rng := d.world.rng
		d.hung = false
		rng.Shuffle(len(d.late), func(i, j int) { d.late[i], d.late[j] = d.late[j], d.late[i] })
		for _, w := range d.late {
			if rng.IntN(2) == 0 {
				d.store([]simWrite{w}, true)
			}
		}
		d.late = nil
	}, "no longer hung")
}

// Slow makes every read late for which the caller does not wait to the end, until Unslow. Its bytes come into the buffer later, at
// any time.
func (d *SimDisk) Slow() { d.fault(func() { d.slow = true }, "slow") }

// Unslow ends Slow.
func (d *SimDisk) Unslow() { d.fault(func() { d.slow = false }, "no longer slow") }

// Fill makes writes to blocks that were never written fail with ENOSPC, until Unfill.
func (d *SimDisk) Fill() { d.fault(func() { d.full = true }, "full") }

// Unfill ends Fill.
func (d *SimDisk) Unfill() { d.fault(func() { d.full = false }, "no longer full") }

// Truncate cuts a disk off at a size, a multiple of Align: what lay behind is lost. A size as large as it had at first makes it whole again,
// with zeros behind. It is for a machine that is off.
func (d *SimDisk) Truncate(size int64) {
	d.fault(func() {
		keep := min(int(size/Align), len(d.medium))
		for i := keep; i < len(d.medium)-d.short; i++ {
			d.medium[i], d.cache[i], d.prior[i] = nil, nil, nil
		}
		d.dirty = slices.DeleteFunc(d.dirty, func(w simWrite) bool { return w.no >= keep })
		d.late = slices.DeleteFunc(d.late, func(w simWrite) bool { return w.no >= keep })
		d.short = len(d.medium) - keep
	}, fmt.Sprintf("cut off at %d", size))
}

// SimImage is the content of a disk's medium at one time.
type SimImage struct{ pages []*simPage }

// Snapshot is what the medium holds now. It is cheap: unchanged blocks are shared.
func (d *SimDisk) Snapshot() SimImage {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return SimImage{append([]*simPage(nil), d.medium...)}
}

// Restore puts an image on the disk, its own or another's of the same size: an old disk comes back, or a copy of another.
func (d *SimDisk) Restore(img SimImage) {
	if len(img.pages) != len(d.medium) {
		panic("blockdev: image of another size")
	}
	d.fault(func() {
		copy(d.medium, img.pages)
		copy(d.cache, img.pages)
		d.dirty, d.late, d.bad = nil, nil, map[int]bool{}
	}, "image restored")
}

// Peek copies what the medium holds at off, without alignment, faults or counting.
func (d *SimDisk) Peek(p []byte, off int64) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	for len(p) > 0 {
		at := int(off % Align)
		n := min(len(p), Align-at)
		if pg := d.medium[off/Align]; pg != nil {
			copy(p[:n], pg[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

func (d *SimDisk) mustSpan(off, n int64) {
	if err := checkSpan(d.name, off, n, d.size()); err != nil {
		panic("blockdev: " + err.Error())
	}
}

// FaultKind is a set of kinds of faults.
type FaultKind uint16

// The kinds that RandomFault chooses from.
const (
	FaultRot       FaultKind = 1 << iota // a few bits flip
	FaultOverwrite                       // blocks become random bytes
	FaultStale                           // blocks go back to what they held before
	FaultMisplaced                       // blocks hold what belongs elsewhere on the disk, or at the same place of another
	FaultBadRange                        // blocks cannot be read
	FaultLostWrite                       // a coming write is lost
	FaultMisdirect                       // a coming write goes elsewhere on the disk, or to another
	FaultFailOnce                        // a coming read, write or flush fails
	FaultDead
	FaultHung
	FaultFull
	FaultSlow

	AllFaults FaultKind = 1<<iota - 1
)

// Fault tells what RandomFault did.
type Fault struct {
	Kind  FaultKind
	Disk  *SimDisk
	Other *SimDisk // a second disk whose content suffers; nil for most
	Text  string
}

// RandomFault does one of the kinds of fault to one of disks, drawn from the world's seed. Damage to blocks prefers written
// ones, up to 64 KiB of them; faults of coming operations hit within the next 20.
func (w *World) RandomFault(disks []*SimDisk, kinds FaultKind) Fault {
	d := disks[w.intN(len(disks))]
	f := Fault{Kind: w.pickKind(kinds & AllFaults), Disk: d}
	off, n := w.pickBlocks(d)
	nth := 1 + w.intN(20)
	other := disks[w.intN(len(disks))]
	switch f.Kind {
	case FaultRot:
		count := 1 + w.intN(8)
		d.FlipBits(off, n, count)
		f.Text = fmt.Sprintf("%d bits flip in %d bytes at %d", count, n, off)
	case FaultOverwrite:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(w.intN(256))
		}
		d.Overwrite(off, p)
		f.Text = fmt.Sprintf("%d random bytes at %d", n, off)
	case FaultStale:
		d.Regress(off, n)
		f.Text = fmt.Sprintf("%d bytes stale at %d", n, off)
	case FaultMisplaced:
		from := min(off, other.size()-Align)
		if other == d {
			from, _ = w.pickBlocks(d)
		}
		n = min(n, other.size()-from)
		p := make([]byte, n)
		other.Peek(p, from)
		d.Overwrite(off, p)
		f.Text = fmt.Sprintf("%d bytes at %d are those of %s at %d", n, off, other.name, from)
	case FaultBadRange:
		d.BadRange(off, n)
		f.Text = fmt.Sprintf("%d bytes unreadable at %d", n, off)
	case FaultLostWrite:
		d.LoseWrite(nth)
		f.Text = fmt.Sprintf("write %d is lost", nth)
	case FaultMisdirect:
		if other == d {
			d.MisdirectWrite(nth, off)
			f.Text = fmt.Sprintf("write %d goes to %d", nth, off)
		} else {
			d.MisdirectWriteTo(nth, other)
			f.Other = other
			f.Text = fmt.Sprintf("write %d goes to %s", nth, other.name)
		}
	case FaultFailOnce:
		f.Text = w.failOnce(d, nth)
	case FaultDead:
		d.Kill()
		f.Text = "dead"
	case FaultHung:
		d.Hang()
		f.Text = "hung"
	case FaultSlow:
		d.Slow()
		f.Text = "slow"
	case FaultFull:
		d.Fill()
		f.Text = "full"
	}
	return f
}

func (w *World) failOnce(d *SimDisk, nth int) string {
	switch w.intN(5) {
	case 0:
		d.FailRead(nth, unix.EIO)
		return fmt.Sprintf("read %d fails", nth)
	case 1:
		d.FailWrite(nth, unix.EIO)
		return fmt.Sprintf("write %d fails", nth)
	case 2:
		d.FailWritePersisted(nth, unix.EIO)
		return fmt.Sprintf("write %d fails, persisted", nth)
	case 3:
		d.FailFlush(nth, unix.EIO)
		return fmt.Sprintf("flush %d fails", nth)
	default:
		d.FailFlushPersisted(nth, unix.EIO)
		return fmt.Sprintf("flush %d fails, persisted", nth)
	}
}

func (w *World) intN(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// pickKind draws one of a set of kinds.
func (w *World) pickKind(kinds FaultKind) FaultKind {
	if kinds == 0 {
		panic("blockdev: no kind of fault to choose from")
	}
	for skip := w.intN(bits.OnesCount16(uint16(kinds))); skip > 0; skip-- {
		kinds &= kinds - 1
	}
	return kinds & -kinds
}

// pickBlocks draws 1 to 16 adjacent blocks of d, nine times in ten from a written one on.
func (w *World) pickBlocks(d *SimDisk) (off, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pages := len(d.medium) - d.short
	no := w.rng.IntN(pages)
	if w.rng.IntN(10) > 0 {
		for i := range d.medium {
			if at := (no + i) % pages; d.medium[at] != nil {
				no = at
				break
			}
		}
	}
	count := min(1<<w.rng.IntN(5), pages-no)
	return int64(no) * Align, int64(count) * Align
}

// String words the fault for a test's log.
func (f Fault) String() string { return f.Disk.name + ": " + f.Text }
