package disk

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"sync"

	"coffer/hw"
)

// A cell is what a stripe puts on one disk: a header, then the payload. Packed cells have their payload right behind the
// header; bulk cells a block later, so that every segment is aligned.
const (
	cellMagic   = "COFFCELL"
	cellVersion = 1
	headerSize  = 192
	macSize     = 16
	macOffset   = headerSize - macSize
)

// kind is what a cell belongs to.
type kind uint8

const (
	kindPacked     kind = 1 // records and small data
	kindBulk       kind = 2 // segments of large objects
	kindPackedBand kind = 3 // the first block of an extent of a packed band
	kindBulkBand   kind = 4 // the first block of an extent of a bulk band
	kindFree       kind = 5 // the first block of an extent whose band was freed
)

func (k kind) band() kind { return k + 2 }

// header describes a cell: which stripe of which array it is part of, and what the payload must hash to.
type header struct {
	kind      kind
	role      uint8 // 0..data-1 data, then parity
	data      uint8 // data cells of the stripe
	parity    uint8
	width     uint8 // members of the band
	rot       uint8 // the member that holds role 0
	disk      diskID
	band      uint64
	stripe    uint64
	epoch     uint64
	nonce     [16]byte // of this attempt at the stripe
	mark      uint64   // highest packed stripe acknowledged when it was written
	off       uint32   // of the cell in its extent, blocks
	blocks    uint32   // length of the cell
	keyEpoch  uint32   // of the records' key
	crc       uint64   // CRC-64/NVME of payload and identity
	writtenMS int64
}

// start is the offset of the payload in the cell, bytes.
func (h *header) start() int {
	if h.kind == kindPacked {
		return headerSize
	}
	return BlockSize
}

// sameStripe reports whether two cells were written by the same attempt at the same stripe.
func (h *header) sameStripe(o *header) bool {
	return h.kind == o.kind && h.data == o.data && h.parity == o.parity && h.width == o.width && h.rot == o.rot &&
		h.band == o.band && h.stripe == o.stripe && h.epoch == o.epoch && h.nonce == o.nonce && h.off == o.off && h.blocks == o.blocks
}

// member returns the position in the band that holds the given role.
func (h *header) member(role int) int { return (int(h.rot) + role) % int(h.width) }

// rotation spreads roles over the members of a band by where the stripe lies.
func rotation(band uint64, off uint32, width int) int {
	x := (band ^ uint64(off)*0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	return int((x >> 33) % uint64(width))
}

var errCell = errors.New("not a valid cell")

// codec writes and checks cells under the array's cell key.
type codec struct {
	array  diskID
	macs   sync.Pool // of hash.Hash
	crypto *hw.Engine
	faults faults
}

func newCodec(array diskID, key []byte, crypto *hw.Engine, f faults) *codec {
	c := &codec{array: array, crypto: crypto, faults: f}
	c.macs.New = func() any { return hmac.New(sha256.New, key) }
	return c
}

func (c *codec) mac(out *[sha256.Size]byte, b []byte) {
	m := c.macs.Get().(hash.Hash)
	m.Reset()
	m.Write(b)
	m.Sum(out[:0])
	c.macs.Put(m)
}

// identity is the part of the header that seeds the checksum, so that a payload found in another place does not match.
func (c *codec) identity(h *header) (b [48]byte) {
	le := binary.LittleEndian
	copy(b[:], h.disk[:])
	le.PutUint64(b[16:], h.band)
	le.PutUint32(b[24:], h.off)
	b[28], b[29] = byte(h.kind), h.role
	copy(b[32:], h.nonce[:])
	return b
}

// checksum finishes the checksum of a cell whose payload hashes to payloadCRC.
func (c *codec) checksum(h *header, payloadCRC uint64) uint64 {
	id := c.identity(h)
	return c.crypto.CRC64NVME(payloadCRC, id[:])
}

// put writes the header into the first headerSize bytes of cell.
func (c *codec) put(cell []byte, h *header) {
	le := binary.LittleEndian
	b := cell[:headerSize]
	clear(b)
	copy(b, cellMagic)
	b[8], b[9], b[10], b[11] = cellVersion, byte(h.kind), h.role, h.data
	b[12], b[13], b[14] = h.parity, h.width, h.rot
	copy(b[16:], c.array[:])
	copy(b[32:], h.disk[:])
	le.PutUint64(b[48:], h.band)
	le.PutUint64(b[56:], h.stripe)
	le.PutUint64(b[64:], h.epoch)
	copy(b[72:], h.nonce[:])
	le.PutUint64(b[88:], h.mark)
	le.PutUint32(b[96:], h.off)
	le.PutUint32(b[100:], h.blocks)
	le.PutUint32(b[104:], h.keyEpoch)
	le.PutUint64(b[112:], h.crc)
	le.PutUint64(b[120:], uint64(h.writtenMS))
	var sum [sha256.Size]byte
	c.mac(&sum, b[:macOffset])
	copy(b[macOffset:], sum[:macSize])
}

// place is where a cell was read from; a header that says otherwise was misdirected.
type place struct {
	disk diskID
	band uint64 // 0: not known
	off  uint32 // blocks in the extent
}

// peek checks the MAC and returns the header, wherever it says that it belongs.
func (c *codec) peek(cell []byte) (h header, err error) {
	if len(cell) < headerSize || string(cell[:8]) != cellMagic || cell[8] != cellVersion {
		return h, errCell
	}
	var sum [sha256.Size]byte
	c.mac(&sum, cell[:macOffset])
	if !hmac.Equal(sum[:macSize], cell[macOffset:headerSize]) {
		return h, errCell
	}
	le := binary.LittleEndian
	b := cell
	h = header{
		kind: kind(b[9]), role: b[10], data: b[11], parity: b[12], width: b[13], rot: b[14],
		disk: diskID(b[32:48]), band: le.Uint64(b[48:]), stripe: le.Uint64(b[56:]), epoch: le.Uint64(b[64:]),
		nonce: [16]byte(b[72:88]), mark: le.Uint64(b[88:]), off: le.Uint32(b[96:]), blocks: le.Uint32(b[100:]),
		keyEpoch: le.Uint32(b[104:]), crc: le.Uint64(b[112:]), writtenMS: int64(le.Uint64(b[120:])),
	}
	if diskID(b[16:32]) != c.array || h.width == 0 || h.rot >= h.width || h.blocks == 0 {
		return h, errCell
	}
	return h, nil
}

// parse checks the MAC and the place and returns the header.
func (c *codec) parse(cell []byte, at place) (h header, err error) {
	if h, err = c.peek(cell); err != nil || c.faults.noLocation {
		return h, err
	}
	if h.disk != at.disk || h.off != at.off || (at.band != 0 && h.band != at.band) {
		return h, errCell
	}
	return h, nil
}

// verify recomputes the checksum of a whole cell.
func (c *codec) verify(cell []byte, h *header) bool {
	if c.faults.noVerify {
		return true
	}
	return len(cell) == int(h.blocks)*BlockSize && h.start() <= len(cell) &&
		c.checksum(h, c.crypto.CRC64NVME(0, cell[h.start():])) == h.crc
}

// placedTable is where a band header says when extents were taken, if not all when the band was opened.
const placedTable = headerSize + 8*MaxWidth

// putBand fills the first block of an extent: a cell header of a band kind, then the members' table and a checksum of it.
func (c *codec) putBand(block []byte, b *band, pos int, disk diskID) {
	clear(block)
	le := binary.LittleEndian
	p := headerSize
	for _, m := range b.members {
		block[p] = byte(m.slot)
		le.PutUint32(block[p+4:], m.extent)
		p += 8
	}
	for i, placed := range b.placed {
		le.PutUint64(block[placedTable+8*i:], placed)
	}
	h := header{
		kind: b.kind.band(), role: uint8(pos), parity: uint8(b.parity), width: uint8(len(b.members)), disk: disk,
		band: b.num, epoch: b.epoch, blocks: 1, nonce: b.nonce, writtenMS: b.opened,
	}
	h.crc = c.checksum(&h, c.crypto.CRC64NVME(0, block[headerSize:]))
	c.put(block, &h)
}

// parseBand reads a block written by putBand on the given disk.
func (c *codec) parseBand(block []byte, disk diskID) (*band, int, error) {
	h, err := c.parse(block, place{disk: disk})
	if err != nil {
		return nil, 0, err
	}
	if h.kind != kindPackedBand && h.kind != kindBulkBand || h.blocks != 1 || h.off != 0 ||
		int(h.width) > MaxWidth || h.role >= h.width || h.parity >= h.width || h.band == 0 ||
		c.checksum(&h, c.crypto.CRC64NVME(0, block[headerSize:])) != h.crc {
		return nil, 0, errCell
	}
	b := &band{
		num: h.band, kind: h.kind - 2, epoch: h.epoch, parity: int(h.parity), nonce: h.nonce, opened: h.writtenMS, bandUse: &bandUse{},
	}
	if binary.LittleEndian.Uint64(block[placedTable:]) != 0 {
		b.placed = make([]uint64, h.width)
	}
	for i := range int(h.width) {
		p := headerSize + 8*i
		b.members = append(b.members, bandMember{slot: int(block[p]), extent: binary.LittleEndian.Uint32(block[p+4:])})
		if b.placed != nil {
			b.placed[i] = max(b.num, binary.LittleEndian.Uint64(block[placedTable+8*i:]))
		}
	}
	return b, int(h.role), nil
}
