package kms

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
)

// Bounds of the key area. They keep it within MaxAreaSize, which is what a superblock copy reserves.
const (
	MaxAreaSize = 48 << 10 // bytes
	MaxSlots    = 16
	MaxEpochs   = 64
	MaxBlobSize = 2048 // bytes of one sealed root key
	MaxKindLen  = 32   // bytes of a slot's kind
)

// Layout of the key area, big-endian; docs/keys-format.md has the table.
const (
	areaMagic    = "CFKEYS"
	areaVersion  = 1
	areaHeader   = 36
	areaEpoch    = 4 + 4 + 8 + WrappedSize
	areaSlot     = 12 // before kind and blob
	areaMACSize  = sha256.Size
	minAreaSize  = areaHeader + WrappedSize + areaEpoch + areaSlot + 2 + areaMACSize
	largestArea  = areaHeader + WrappedSize + MaxEpochs*areaEpoch + MaxSlots*(areaSlot+MaxKindLen+MaxBlobSize) + areaMACSize
	_            = uint(MaxAreaSize - largestArea) // does not compile if it does not fit
	versionStart = len(areaMagic)
)

// area is the decoded key area. What it holds is hostile until its MAC has been checked with a root key.
type area struct {
	arrayID [16]byte
	cell    [WrappedSize]byte // the cell key under the root's wrap key
	epochs  []epochRecord     // ascending, 1..MaxEpochs
	slots   []slotRecord      // ascending by number, 1..MaxSlots
}

type epochRecord struct {
	number  uint32
	created int64 // seconds since 1970
	wrapped [WrappedSize]byte
}

// slotRecord is the root key as one slot sealed it. Blob and unknown kinds are kept verbatim.
type slotRecord struct {
	number  uint8 // 0..MaxSlots-1, stable while the slot exists
	kind    string
	created int64 // seconds since 1970
	blob    []byte
}

// encode returns the area with its MAC under macKey.
func (a *area) encode(macKey []byte) []byte {
	b := make([]byte, areaHeader, 2048)
	copy(b, areaMagic)
	binary.BigEndian.PutUint16(b[versionStart:], areaVersion)
	copy(b[16:], a.arrayID[:])
	b[32], b[33] = uint8(len(a.epochs)), uint8(len(a.slots))
	b = append(b, a.cell[:]...)
	for i := range a.epochs {
		e := &a.epochs[i]
		b = binary.BigEndian.AppendUint32(b, e.number)
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint64(b, uint64(e.created))
		b = append(b, e.wrapped[:]...)
	}
	for _, s := range a.slots {
		b = append(b, s.number, uint8(len(s.kind)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.blob)))
		b = binary.BigEndian.AppendUint64(b, uint64(s.created))
		b = append(b, s.kind...)
		b = append(b, s.blob...)
	}
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)+areaMACSize))
	return append(b, areaMAC(macKey, b)...)
}

func areaMAC(key, p []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(p)
	return h.Sum(nil)
}

// checkMAC tells whether the encoded area p, which decodeArea accepted, is as a holder of macKey wrote it.
func checkMAC(p, macKey []byte) error {
	n := len(p) - areaMACSize
	if !hmac.Equal(areaMAC(macKey, p[:n]), p[n:]) {
		return fmt.Errorf("check key area: MAC differs: %w", ErrCorrupt)
	}
	return nil
}

// decodeArea reads hostile bytes. It accepts exactly what encode writes: a decoded area encodes to the same bytes. The MAC is
// not checked: that takes the root key.
func decodeArea(p []byte) (*area, error) {
	if len(p) < minAreaSize || len(p) > MaxAreaSize {
		return nil, areaError("%d bytes", len(p))
	}
	if string(p[:versionStart]) != areaMagic {
		return nil, areaError("bad magic")
	}
	if v := binary.BigEndian.Uint16(p[versionStart:]); v != areaVersion {
		return nil, fmt.Errorf("decode key area: version %d: %w", v, ErrVersion)
	}
	if n := binary.BigEndian.Uint32(p[8:]); n != uint32(len(p)) {
		return nil, areaError("%d bytes, its header says %d", len(p), n)
	}
	if binary.BigEndian.Uint32(p[12:]) != 0 || p[34] != 0 || p[35] != 0 {
		return nil, areaError("reserved bytes are not zero")
	}
	epochs, slots := int(p[32]), int(p[33])
	if epochs < 1 || epochs > MaxEpochs || slots < 1 || slots > MaxSlots {
		return nil, areaError("%d epochs and %d slots", epochs, slots)
	}
	a := &area{arrayID: [16]byte(p[16:])}
	r := p[areaHeader : len(p)-areaMACSize]
	a.cell = [WrappedSize]byte(r)
	r, err := a.decodeEpochs(r[WrappedSize:], epochs)
	if err != nil {
		return nil, err
	}
	r, err = a.decodeSlots(r, slots)
	if err != nil {
		return nil, err
	}
	if len(r) != 0 {
		return nil, areaError("%d trailing bytes", len(r))
	}
	return a, nil
}

// decodeEpochs reads n epochs and returns what follows them.
func (a *area) decodeEpochs(r []byte, n int) ([]byte, error) {
	if len(r) < n*areaEpoch {
		return nil, areaError("cut in its epochs")
	}
	a.epochs = make([]epochRecord, 0, n)
	last := uint32(0)
	for ; n > 0; n-- {
		number := binary.BigEndian.Uint32(r)
		if number <= last {
			return nil, areaError("epoch %d after %d", number, last)
		}
		if binary.BigEndian.Uint32(r[4:]) != 0 {
			return nil, areaError("reserved bytes of epoch %d are not zero", number)
		}
		last = number
		a.epochs = append(a.epochs, epochRecord{number, int64(binary.BigEndian.Uint64(r[8:])), [WrappedSize]byte(r[16:])})
		r = r[areaEpoch:]
	}
	return r, nil
}

// decodeSlots reads n slots and returns what follows them.
func (a *area) decodeSlots(r []byte, n int) ([]byte, error) {
	a.slots = make([]slotRecord, 0, n)
	last := -1
	for ; n > 0; n-- {
		if len(r) < areaSlot {
			return nil, areaError("cut in its slots")
		}
		number, kindLen, blobLen := r[0], int(r[1]), int(binary.BigEndian.Uint16(r[2:]))
		if int(number) <= last || number >= MaxSlots {
			return nil, areaError("slot %d after %d", number, last)
		}
		last = int(number)
		if blobLen < 1 || blobLen > MaxBlobSize || kindLen > MaxKindLen || len(r) < areaSlot+kindLen+blobLen {
			return nil, areaError("slot %d has a kind of %d bytes and a blob of %d", number, kindLen, blobLen)
		}
		created := int64(binary.BigEndian.Uint64(r[4:]))
		kind, blob := string(r[areaSlot:areaSlot+kindLen]), r[areaSlot+kindLen:areaSlot+kindLen+blobLen]
		if !validKind(kind) {
			return nil, areaError("slot %d has kind %q", number, kind)
		}
		a.slots = append(a.slots, slotRecord{number, kind, created, append([]byte(nil), blob...)})
		r = r[areaSlot+kindLen+blobLen:]
	}
	return r, nil
}

// validKind tells whether kind is 1 to MaxKindLen of a-z, 0-9 and "-._:", so that it can stand in logs and metrics.
func validKind(kind string) bool {
	if len(kind) == 0 || len(kind) > MaxKindLen {
		return false
	}
	for _, c := range []byte(kind) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' && c != ':' {
			return false
		}
	}
	return true
}

func areaError(format string, args ...any) error {
	return fmt.Errorf("decode key area: "+format+": %w", append(args, ErrCorrupt)...)
}

func (e *epochRecord) info() EpochInfo { return EpochInfo{e.number, time.Unix(e.created, 0).UTC()} }

func (s *slotRecord) info() SlotInfo {
	return SlotInfo{int(s.number), s.kind, time.Unix(s.created, 0).UTC()}
}
