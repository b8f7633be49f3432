package disk

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// A superblock is kept in four copies, written one after the other, so that a power cut leaves at least two of one kind.
const (
	superMagic   = "COFFERSB"
	superVersion = 2 // 1: disks were never added, removed or kept as spares
	superCopies  = 4
	superStride  = 256 << 10 // bytes between copies
	superSize    = 64 << 10  // bytes read and written per copy
	superFixed   = 144       // bytes in front of the tables
	superTrailer = 64        // keyed MAC, then checksum
	memberSize   = 40
	epochSize    = 32
	maxHistory   = 255
	maxKeyArea   = 56 << 10
)

type diskID [16]byte

// memberState is what the member table says of a disk.
type memberState uint8

const (
	memberActive memberState = 1 // takes part in every write of the epoch
	memberOut    memberState = 2 // was missing or fenced when the epoch began
	// takes part like an active one, but lacks cells of bands of epochs before since, namely of those whose header it does not carry
	memberRebuilding memberState = 3
	// out, and was being rebuilt when it left
	memberOutHollow memberState = 4
	// holds nothing, and takes the place of a disk that fails
	memberSpare memberState = 5
	// belongs to the array no more; the slot is empty
	memberRetired memberState = 6
)

// counts reports whether the disk is one of those among which stripes are spread.
func (m memberState) counts() bool { return m != memberSpare && m != memberRetired }

// memberEntry is a row of the member table. The row's number is the disk's slot.
type memberEntry struct {
	id      diskID
	state   memberState
	extents uint32
	since   uint64  // the epoch at which the state last changed
	last    [8]byte // of a disk that is out: id of the epoch before, the last it took part in
	// draining disks take no new bands, and what they hold is moved to others.
	draining bool
}

// retired reports whether the disk was removed from the array: it stays as it was then.
func (s *superblock) retired() bool { return s.members[s.slot].state == memberRetired }

// epoch is a period of writing by one process with one set of disks. Cut is the last packed stripe before it: whatever an
// earlier epoch wrote beyond was never acknowledged and is void.
type epoch struct {
	num   uint64
	id    [8]byte
	cut   uint64
	whole bool // the epoch before was closed in order: it wrote nothing beyond the cut
}

// superblock is the description of an array as one of its disks holds it.
type superblock struct {
	version  uint16 // 0 counts as 1
	array    diskID
	disk     diskID
	slot     int
	geo      Geometry
	diskSize int64
	created  int64   // unix ms
	clean    bool    // nothing was on its way when the array was closed
	last     uint64  // with clean: the last packed stripe
	history  []epoch // newest first; history[0] is the current epoch
	members  []memberEntry
	keyArea  []byte
}

func (s *superblock) epoch() epoch { return s.history[0] }

// counted is how many members the array has whose loss parity has to bear.
func (s *superblock) counted() (n int) {
	for _, m := range s.members {
		if m.state.counts() {
			n++
		}
	}
	return n
}

// confirms reports whether o is of a counted member, at a moment that s knows.
func (s *superblock) confirms(o *superblock) bool {
	return s.array == o.array && o.slot < len(s.members) && s.members[o.slot].id == o.disk && s.members[o.slot].state.counts() &&
		s.knows(o.epoch(), o.slot)
}

// knows reports whether e is the superblock's epoch, one of its ancestors, or the one in which the disk in slot left.
func (s *superblock) knows(e epoch, slot int) bool {
	if slot < len(s.members) {
		if m := s.members[slot]; (m.state == memberOut || m.state == memberOutHollow) && m.since == e.num+1 && m.last == e.id {
			return true
		}
	}
	return slices.ContainsFunc(s.history, func(h epoch) bool { return h.num == e.num && h.id == e.id })
}

// closed reports whether an epoch is known to have been closed in order: nothing that was written in it was on its way at its end.
func (s *superblock) closed(num uint64) bool {
	return s.epoch().num == num && s.clean || slices.ContainsFunc(s.history, func(h epoch) bool { return h.num == num+1 && h.whole })
}

// cutFor returns the last packed stripe that a stripe of epoch num may have: the cut of the epoch that followed it.
func (s *superblock) cutFor(num uint64) uint64 {
	cut := ^uint64(0)
	for _, h := range s.history {
		if h.num > num {
			cut = min(cut, h.cut)
		}
	}
	return cut
}

// encode lays the superblock out as the given copy: superSize bytes, MAC under key.
func (s *superblock) encode(copyNo int, key []byte) []byte {
	b := make([]byte, superSize)
	le := binary.LittleEndian
	copy(b, superMagic)
	le.PutUint16(b[8:], max(s.version, 1))
	b[10] = byte(copyNo)
	b[11] = byte(s.slot)
	copy(b[16:], s.array[:])
	copy(b[32:], s.disk[:])
	b[48], b[49] = byte(s.geo.Data), byte(s.geo.Parity)
	b[50], b[51] = byte(len(s.members)), byte(len(s.history))
	le.PutUint32(b[52:], uint32(len(s.keyArea)))
	le.PutUint64(b[56:], uint64(s.geo.ExtentSize))
	le.PutUint64(b[64:], uint64(s.diskSize))
	le.PutUint64(b[72:], uint64(s.created))
	if s.clean {
		b[80] = 1
		le.PutUint64(b[88:], s.last)
	}
	p := superFixed
	for _, m := range s.members {
		copy(b[p:], m.id[:])
		b[p+16] = byte(m.state)
		if m.draining {
			b[p+17] = 1
		}
		le.PutUint32(b[p+20:], m.extents)
		le.PutUint64(b[p+24:], m.since)
		copy(b[p+32:], m.last[:])
		p += memberSize
	}
	for _, e := range s.history {
		le.PutUint64(b[p:], e.num)
		copy(b[p+8:], e.id[:])
		le.PutUint64(b[p+16:], e.cut)
		if e.whole {
			b[p+24] = 1
		}
		p += epochSize
	}
	p += copy(b[p:], s.keyArea)
	le.PutUint32(b[12:], uint32(p))
	mac := hmac.New(sha256.New, key)
	mac.Write(b[:p])
	p += copy(b[p:], mac.Sum(nil))
	sum := sha256.Sum256(b[:p])
	copy(b[p:], sum[:])
	return b
}

var (
	errSuperblock = errors.New("no valid superblock")
	errSuperMAC   = errors.New("superblock MAC does not verify")
)

// decodeSuperblock parses copy copyNo without a key: b is hostile until checkMAC has passed.
func decodeSuperblock(b []byte, copyNo int) (*superblock, error) {
	if len(b) < superFixed+superTrailer || string(b[:8]) != superMagic {
		return nil, errSuperblock
	}
	le := binary.LittleEndian
	version := le.Uint16(b[8:])
	if version < 1 || version > superVersion {
		return nil, fmt.Errorf("superblock version %d: this program reads up to %d", version, superVersion)
	}
	n := int(le.Uint32(b[12:]))
	if n < superFixed || n > len(b)-superTrailer {
		return nil, errSuperblock
	}
	sum := sha256.Sum256(b[:n+32])
	if !bytes.Equal(sum[:], b[n+32:n+64]) || int(b[10]) != copyNo {
		return nil, errSuperblock
	}
	s := &superblock{version: version, slot: int(b[11])}
	copy(s.array[:], b[16:])
	copy(s.disk[:], b[32:])
	s.geo = Geometry{Data: int(b[48]), Parity: int(b[49]), ExtentSize: int64(le.Uint64(b[56:]))}
	members, history, area := int(b[50]), int(b[51]), int(le.Uint32(b[52:]))
	s.diskSize, s.created, s.clean = int64(le.Uint64(b[64:])), int64(le.Uint64(b[72:])), b[80]&1 != 0
	s.last = le.Uint64(b[88:])
	if history < 1 || history > maxHistory || area > maxKeyArea || s.slot >= members ||
		s.geo.Validate(members) != nil || n != superFixed+members*memberSize+history*epochSize+area {
		return nil, errSuperblock
	}
	p := superFixed
	for range members {
		var m memberEntry
		copy(m.id[:], b[p:])
		m.state, m.draining = memberState(b[p+16]), b[p+17]&1 != 0
		m.extents, m.since, m.last = le.Uint32(b[p+20:]), le.Uint64(b[p+24:]), [8]byte(b[p+32:])
		if m.state < memberActive || m.state > memberRetired {
			return nil, errSuperblock
		}
		s.members = append(s.members, m)
		p += memberSize
	}
	for range history {
		e := epoch{num: le.Uint64(b[p:]), cut: le.Uint64(b[p+16:]), whole: b[p+24]&1 != 0}
		copy(e.id[:], b[p+8:])
		s.history = append(s.history, e)
		p += epochSize
	}
	s.keyArea = bytes.Clone(b[p:n])
	return s, nil
}

// checkMAC verifies the keyed MAC of a copy that decodeSuperblock accepted.
func checkMAC(b, key []byte) error {
	n := int(binary.LittleEndian.Uint32(b[12:]))
	mac := hmac.New(sha256.New, key)
	mac.Write(b[:n])
	if !hmac.Equal(mac.Sum(nil), b[n:n+32]) {
		return errSuperMAC
	}
	return nil
}

// sameState reports whether two copies describe the same moment of the same disk.
func (s *superblock) sameState(o *superblock) bool {
	return s.array == o.array && s.disk == o.disk && s.slot == o.slot && s.geo == o.geo && s.clean == o.clean && s.last == o.last &&
		slices.Equal(s.history, o.history) && slices.Equal(s.members, o.members) && bytes.Equal(s.keyArea, o.keyArea)
}

// chooseCopy picks the newest state held by at least two of the copies (raw, nil where unreadable). With a key, copies whose
// MAC fails do not count. The second result is the number of good copies of that state.
func chooseCopy(raw rawSuper, key []byte) (*superblock, int, error) {
	var found []*superblock
	err := errSuperblock
	for i, b := range raw {
		if b == nil {
			continue
		}
		s, e := decodeSuperblock(b, i)
		if e == nil && key != nil {
			e = checkMAC(b, key)
		}
		if e != nil {
			if !errors.Is(err, errSuperMAC) {
				err = e
			}
			continue
		}
		found = append(found, s)
	}
	var best *superblock
	count := 0
	for _, s := range found {
		if s.disk != found[0].disk {
			return nil, 0, fmt.Errorf("%w: copies of two disks' superblocks", errSuperblock)
		}
		n := 0
		for _, o := range found {
			if s.sameState(o) {
				n++
			}
		}
		if n >= 2 && (best == nil || s.epoch().num > best.epoch().num) {
			best, count = s, n
		}
	}
	if best == nil {
		if len(found) > 0 {
			err = fmt.Errorf("%w: fewer than two of %d copies agree", errSuperblock, superCopies)
		}
		return nil, 0, err
	}
	return best, count, nil
}
