package disk

import (
	"bytes"
	"slices"

	"coffer/disk/internal/blockdev"
)

// Verdict is what a check says of a cell, of the header of a band, or of a copy of a superblock.
type Verdict string

// The verdicts. docs/operations.md says what each means for a disk.
const (
	CellGood        Verdict = "good"
	CellRot         Verdict = "rot"         // written right, and changed since
	CellTorn        Verdict = "torn"        // a part of it was not written, or was overwritten
	CellStale       Verdict = "stale"       // never written: what was there before is still there
	CellMisdirected Verdict = "misdirected" // overwritten by what belongs elsewhere
	CellUnreadable  Verdict = "unreadable"  // the disk says so
	CellMissing     Verdict = "missing"     // the disk is not there, or hangs
	CellRepaired    Verdict = "repaired"    // one of the bad ones above, rewritten and read back
)

// Verdicts lists all of them.
func Verdicts() []Verdict {
	return []Verdict{CellGood, CellRot, CellTorn, CellStale, CellMisdirected, CellUnreadable, CellMissing, CellRepaired}
}

// judge names what befell the bytes found where a cell, or a band's header, with the header like should be. want is what should be
// there, nil when too little is left to tell. The rules:
//
//   - only zeros: stale, nothing was ever written there;
//   - a header that verifies and names another disk, offset or extent: misdirected;
//   - a header that verifies, of another write to this very place: stale; torn if all behind the first block is as it should be;
//   - its own header: torn if whole sectors are another's, rot if bits of them changed; rot if want is not known;
//   - no header that verifies: the same, but rot if no sector is as it should be; torn if want is not known.
func (a *Array) judge(found, want []byte, like *header, at bandMember) Verdict {
	if isZero(found) {
		return CellStale
	}
	h, err := a.codec.peek(found)
	switch {
	case err != nil && want == nil:
		return CellTorn
	case err != nil:
		return compareSectors(found, want)
	case h.disk != like.disk || h.off != like.off || a.liesElsewhere(&h, like.band, at):
		return CellMisdirected
	case h.sameStripe(like) && h.role == like.role && want == nil:
		return CellRot
	case h.sameStripe(like) && h.role == like.role:
		return compareSectors(found, want)
	case want != nil && len(found) > BlockSize && bytes.Equal(found[BlockSize:], want[BlockSize:]):
		return CellTorn
	}
	return CellStale
}

// liesElsewhere reports whether a header found in an extent of a band belongs to another extent of the disk: its band is younger
// than the one that owns this extent, or still has an extent of its own.
func (a *Array) liesElsewhere(h *header, band uint64, at bandMember) bool {
	if h.kind == kindFree && h.stripe != uint64(at.extent) {
		return true
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	return h.band != band && (h.band > band || a.bands[h.band] != nil)
}

// sectorSize is what a disk writes whole or not at all, at least.
const sectorSize = 512

// compareSectors tells bits that changed from sectors that were replaced. Sealed bytes of two writes agree in one of 256, so a sector
// of which more than an eighth differs is another's; and one of zeros was never written.
func compareSectors(found, want []byte) Verdict {
	if kept, replaced := sectors(found, want); kept && replaced {
		return CellTorn
	}
	return CellRot
}

// sectors reports whether any sector is as it should be, bits that changed apart, and whether any is another's.
func sectors(found, want []byte) (kept, replaced bool) {
	size := min(len(found), len(want))
	for at := 0; at < size; at += sectorSize {
		end := min(at+sectorSize, size)
		f, w := found[at:end], want[at:end]
		if bytes.Equal(f, w) {
			kept = kept || !isZero(f)
			continue
		}
		n := 0
		for i := range f {
			if f[i] != w[i] {
				n++
			}
		}
		replaced = replaced || n > sectorSize/8 || isZero(f)
	}
	return kept, replaced
}

// unwritten reports whether a bad cell can be what is left where a write was cut short: whole sectors of it hold what was there before, such
// as a cell of a band that was moved away. Bits that changed in what was written are no such thing.
func unwritten(v Verdict, found, want []byte) bool {
	if v == CellRot {
		_, replaced := sectors(found, want)
		return replaced
	}
	return v == CellStale || v == CellTorn || v == CellMisdirected
}

var zeros [BlockSize]byte

func isZero(p []byte) bool {
	for ; len(p) > BlockSize; p = p[BlockSize:] {
		if !bytes.Equal(p[:BlockSize], zeros[:]) {
			return false
		}
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// judgeSuper is judge for a copy of a superblock; raw is nil where it cannot be read.
func judgeSuper(raw []byte, want *superblock, copyNo int, key []byte) Verdict {
	if raw == nil {
		return CellUnreadable
	}
	if got, err := decodeSuperblock(raw, copyNo); err == nil && checkMAC(raw, key) == nil {
		switch {
		case got.sameState(want):
			return CellGood
		case got.array != want.array || got.disk != want.disk:
			return CellMisdirected
		}
		return CellStale
	}
	if isZero(raw) {
		return CellStale
	}
	if len(raw) > 10 && int(raw[10]) != copyNo {
		if _, err := decodeSuperblock(raw, int(raw[10])); err == nil {
			return CellMisdirected // another copy
		}
	}
	return compareSectors(raw, want.encode(copyNo, key))
}

// copyVerdict is what is said of a copy of a superblock before the array is opened for writing.
type copyVerdict struct {
	Verdict
	unfinished bool // it may be what is left of a change that the power cut short
}

// heldSuper is what a disk has in the places of its superblock copies. Two of them agree on want at least.
type heldSuper struct {
	raw    rawSuper
	want   *superblock
	found  [superCopies]Verdict
	states [superCopies]*superblock // nil where none of this disk verifies
	joined bool                     // it alone tells of its epoch, in which it joined: only its own copies had been begun
}

// judgeSupers judges the copies of disks to which nothing was written yet. Copies are written one after the other, each on all disks at once:
// when the power failed, at most those of one number were on their way, on the disks that are at the same epoch. That number is taken which
// explains all that is found on most disks. Of several starts that were cut short one after the other, while disks came and went, what is left
// can be more than one number explains: then a copy is called bad that was only on its way, and rewritten like one that was.
func judgeSupers(raws []rawSuper, wants []*superblock, key []byte) [][superCopies]copyVerdict {
	verdicts := make([][superCopies]copyVerdict, len(raws))
	held, byEpoch := make([]heldSuper, len(raws)), map[epoch][]int{}
	for i, raw := range raws {
		h := &held[i]
		h.raw, h.want = raw, wants[i]
		for c, b := range raw {
			h.found[c] = judgeSuper(b, h.want, c, key)
			if s, err := decodeSuperblock(b, c); err == nil && checkMAC(b, key) == nil && s.array == h.want.array && s.disk == h.want.disk {
				h.states[c] = s
			}
			verdicts[i][c].Verdict = h.found[c]
		}
		byEpoch[h.want.epoch()] = append(byEpoch[h.want.epoch()], i)
	}
	for e, disks := range byEpoch {
		most := -1
		for number := range superCopies {
			explained, whole := map[[2]int]bool{}, 0
			for _, i := range disks {
				h := &held[i]
				h.joined = len(disks) == 1 && len(raws) > 1 && h.want.members[h.want.slot].since == e.num
				all := true
				for c, v := range h.found {
					explained[[2]int{i, c}] = v != CellGood && h.cutShort(c, number, key)
					all = all && (v == CellGood || explained[[2]int{i, c}])
				}
				if all {
					whole++
				}
			}
			if whole <= most {
				continue
			}
			most = whole
			for at, unfinished := range explained {
				verdicts[at[0]][at[1]].unfinished = unfinished || held[at[0]].ahead(at[1])
			}
		}
	}
	return verdicts
}

// ahead reports whether copy c is of a later moment than two copies lived to see.
func (h *heldSuper) ahead(c int) bool {
	s := h.states[c]
	return s != nil && (s.epoch().num > h.want.epoch().num || s.epoch() == h.want.epoch() && s.clean && !h.want.clean)
}

// cutShort reports whether copy c, which is not as it should be, can be so because the power failed while the copies of a number were written.
func (h *heldSuper) cutShort(c, number int, key []byte) bool {
	switch {
	case h.found[c] == CellUnreadable:
		return false
	case c < number: // of the next moment, like all in front of the number
		return !slices.Contains(h.states[:number], nil) && !slices.Contains(h.found[:number], CellGood)
	case h.joined && number > 1:
		return true // what was there before can be anything
	case h.found[c] == CellMisdirected:
		return false
	case c > number: // not reached, like all behind the number
		return !slices.Contains(h.states[number+1:], nil) && !slices.Contains(h.found[number+1:], CellGood)
	case number == 0:
		return true // nothing else tells of what had just begun
	case number < superCopies-1:
		before, after := h.states[number-1], h.states[number+1]
		return before != nil && after != nil && !before.sameState(after)
	case !h.want.clean:
		return true
	}
	after, open := h.want.encode(c, key), *h.want // it was being closed: what was there before is known
	open.clean, open.last = false, 0
	before := open.encode(c, key)
	for at := 0; at < len(h.raw[c]); at += sectorSize {
		end := min(at+sectorSize, len(h.raw[c]))
		if got := h.raw[c][at:end]; !bytes.Equal(got, after[at:end]) && !bytes.Equal(got, before[at:end]) {
			return false
		}
	}
	return true
}

// readBack reads cells that were just written and reports which of the writes are there: the disk's word is not enough. The reads
// pass all caches of this machine. Memory of writes that failed is left alone.
func (a *Array) readBack(run runner, ops []blockdev.Op, good func(op *blockdev.Op) bool) ([]bool, []blockdev.Op, error) {
	kept := make([]bool, len(ops))
	var reads []blockdev.Op
	var which []int
	for i := range ops {
		if ops[i].Err == nil {
			clear(ops[i].Buf[:min(len(ops[i].Buf), sectorSize)]) // a read that does nothing must not pass
			reads, which = append(reads, blockdev.Op{Dev: ops[i].Dev, Off: ops[i].Off, Buf: ops[i].Buf}), append(which, i)
		}
	}
	if len(reads) == 0 {
		return kept, nil, nil
	}
	err := run.run(reads)
	for i := range reads {
		kept[which[i]] = err == nil && reads[i].Err == nil && good(&reads[i])
	}
	return kept, reads, err
}
