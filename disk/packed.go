package disk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"coffer/disk/internal/blockdev"
	"coffer/hw"
)

// Loc says where packed bytes lie: in which cell, and where in it. It is comparable; the zero Loc is nowhere.
type Loc struct {
	Band  uint64
	Off   uint32 // of the stripe in its extents, blocks
	Role  uint8  // data cell
	Start uint32 // in the cell, bytes
	Len   uint32
}

// IsZero reports whether l is nowhere.
func (l Loc) IsZero() bool { return l == Loc{} }

// AppendBinary appends the wire form: five uvarints.
func (l Loc) AppendBinary(b []byte) []byte {
	b = binary.AppendUvarint(b, l.Band)
	b = binary.AppendUvarint(b, uint64(l.Off))
	b = binary.AppendUvarint(b, uint64(l.Role))
	b = binary.AppendUvarint(b, uint64(l.Start))
	return binary.AppendUvarint(b, uint64(l.Len))
}

// DecodeLoc reads what AppendBinary wrote and returns the rest.
func DecodeLoc(b []byte) (l Loc, rest []byte, err error) {
	var v [5]uint64
	const u32 = 1<<32 - 1
	rest, ok := uvarints(b, v[:])
	if !ok || v[1] > u32 || v[2] >= MaxWidth || v[3] > u32 || v[4] > u32 {
		return Loc{}, nil, fmt.Errorf("decode location: %w", ErrCorrupt)
	}
	return Loc{Band: v[0], Off: uint32(v[1]), Role: uint8(v[2]), Start: uint32(v[3]), Len: uint32(v[4])}, rest, nil
}

// uvarints decodes as many numbers as v has room for and returns what follows them.
func uvarints(b []byte, v []uint64) (rest []byte, ok bool) {
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(b); n <= 0 {
			return nil, false
		}
		b = b[n:]
	}
	return b, true
}

// The sealed record block of a packed cell holds, per record, a fixed head and the body; the data blobs follow the block in
// the same order.
const (
	recordHead = 24 // seq 8, body length 4, data offset in the cell 4, data length 4, flags 4
	blockHead  = 8  // record count 4, zero 4
	packedHead = 16 // in front of the sealed block: its length 4, zero 12
	gcmTag     = 16
)

// recordAEAD makes the cipher that seals the record blocks of one attempt at one stripe: no two attempts share a key.
func recordAEAD(metadataKey []byte, h *header) (cipher.AEAD, error) {
	info := make([]byte, 0, 64)
	info = append(info, "coffer record block v1"...)
	info = append(info, byte(h.kind))
	info = binary.LittleEndian.AppendUint64(info, h.band)
	key, err := hkdf.Key(sha256.New, metadataKey, h.nonce[:], string(info), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	clear(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// recordNonce and recordAAD bind a record block to its cell.
func recordNonce(h *header) (n [12]byte) {
	n[11] = h.role
	return n
}

func (c *codec) recordAAD(h *header) []byte {
	b := make([]byte, 0, 48)
	b = append(b, c.array[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.band)
	b = binary.LittleEndian.AppendUint64(b, h.stripe)
	b = binary.LittleEndian.AppendUint64(b, h.epoch)
	return binary.LittleEndian.AppendUint32(b, h.off)
}

// openRecords decrypts the record block of a verified or freshly read packed data cell and calls fn for each record. The body
// passed to fn is not used again.
func (c *codec) openRecords(aead cipher.AEAD, cell []byte, h *header, fn func(Entry) error) error {
	sealed, err := sealedBlock(cell)
	if err != nil {
		return err
	}
	n := recordNonce(h)
	p, err := aead.Open(nil, n[:], sealed, c.recordAAD(h))
	if err != nil {
		return fmt.Errorf("open record block: %w", ErrCorrupt)
	}
	return parseRecords(p, h, fn)
}

// sealedBlock is the sealed record block of a packed data cell.
func sealedBlock(cell []byte) ([]byte, error) {
	n := uint64(binary.LittleEndian.Uint32(cell[headerSize:]))
	if n < blockHead+gcmTag || headerSize+packedHead+n > uint64(len(cell)) {
		return nil, fmt.Errorf("record block of %d bytes: %w", n, ErrCorrupt)
	}
	return cell[headerSize+packedHead:][:n], nil
}

// parseRecords walks the plaintext of a record block.
func parseRecords(p []byte, h *header, fn func(Entry) error) error {
	bad := func(what string) error { return fmt.Errorf("record block: %s: %w", what, ErrCorrupt) }
	if len(p) < blockHead {
		return bad("short")
	}
	le := binary.LittleEndian
	count := int(le.Uint32(p))
	p = p[blockHead:]
	limit := uint64(h.blocks) * BlockSize
	for range count {
		if len(p) < recordHead {
			return bad("truncated head")
		}
		e := Entry{Seq: le.Uint64(p)}
		bodyLen, off, dataLen := le.Uint32(p[8:]), le.Uint32(p[12:]), le.Uint32(p[16:])
		p = p[recordHead:]
		if uint64(bodyLen) > uint64(len(p)) {
			return bad("truncated body")
		}
		e.Body, p = p[:bodyLen], p[bodyLen:]
		if dataLen > 0 {
			if uint64(off)+uint64(dataLen) > limit || off < headerSize+packedHead {
				return bad("data outside the cell")
			}
			e.Data = Loc{Band: h.band, Off: h.off, Role: h.role, Start: off, Len: dataLen}
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	if len(p) != 0 {
		return bad("trailing bytes")
	}
	return nil
}

// request is a record on its way into the log.
type request struct {
	rec  Record
	seq  uint64
	data Loc
	err  error
	done chan struct{} // capacity 1
}

// cost is the space that a record takes in a cell.
func (r *request) cost() int { return recordHead + len(r.rec.Body) + len(r.rec.Data) }

// cellOverhead is what a packed cell needs besides its records.
const cellOverhead = headerSize + packedHead + blockHead + gcmTag

func alignUp(n int) int { return (n + BlockSize - 1) &^ (BlockSize - 1) }

// layout is how the records of a stripe are spread over its data cells: cell i takes the requests up to ends[i].
type layout struct {
	ends   []int
	blocks int // of each cell
}

// plan spreads reqs over at most maxData cells of at most maxBlocks blocks so that the fewest blocks are written, parity
// included. It may take only a prefix of reqs; the last element of ends says how many.
func plan(reqs []*request, maxData, parity, maxBlocks int) layout {
	total, largest := 0, 0
	for _, r := range reqs {
		total += r.cost()
		largest = max(largest, r.cost())
	}
	best, bestCost := layout{}, 0
	for d := 1; d <= maxData; d++ {
		l := pack(reqs, d, max(alignUp(largest+cellOverhead), alignUp(total/d+cellOverhead))/BlockSize, maxBlocks)
		n := l.ends[len(l.ends)-1]
		cost := (len(l.ends) + parity) * l.blocks
		taken := best.ends != nil && n < best.ends[len(best.ends)-1]
		more := best.ends == nil || n > best.ends[len(best.ends)-1]
		if more || (!taken && cost < bestCost) {
			best, bestCost = l, cost
		}
		if d >= len(reqs) {
			break
		}
	}
	return best
}

// layOut spreads what waits over the cells of the next stripe of a band, of which left of all its blocks are not used yet. What is left is
// used to the end, by those in front that fit. It reports false when the first does not: then another band is needed.
func layOut(reqs []*request, maxData, parity, all, left int, scarce bool) (layout, bool) {
	maxBlocks := min(maxCellBlocks, all)
	if left < maxBlocks {
		fit := slices.IndexFunc(reqs, func(r *request) bool { return alignUp(r.cost()+cellOverhead)/BlockSize > left })
		if fit == 0 {
			return layout{}, false
		}
		if fit > 0 {
			reqs = reqs[:fit]
		}
		maxBlocks = left
	}
	lay := plan(reqs, maxData, parity, maxBlocks)
	if scarce {
		lay = densest(reqs, lay, maxData, parity, maxBlocks)
	}
	return lay, true
}

// manyRecords in each cell fill it well.
const manyRecords = 32

// densest returns a layout of a few records less than lay takes, if it wastes less of the space of all cells: as many as there are cells, or
// a multiple, where they are of one size. Those that it leaves out are for the next stripe.
func densest(reqs []*request, lay layout, maxData, parity, maxBlocks int) layout {
	density := func(l layout) float64 {
		bytes := 0
		for _, r := range reqs[:l.ends[len(l.ends)-1]] {
			bytes += r.cost()
		}
		return float64(bytes) / float64(l.blocks*maxData*BlockSize)
	}
	best, most := lay, density(lay)
	n := lay.ends[len(lay.ends)-1]
	if n > manyRecords*maxData {
		return lay
	}
	for _, less := range []int{n - 1, n - 2, n - n%maxData} {
		if less < 1 || less == n || less <= n/2 {
			continue
		}
		if l := plan(reqs[:less], maxData, parity, maxBlocks); density(l) > most {
			best, most = l, density(l)
		}
	}
	return best
}

// pack fills d cells in order with cells of the smallest size, from blocks upwards, that takes everything; at maxBlocks it
// takes what fits.
func pack(reqs []*request, d, blocks, maxBlocks int) layout {
	blocks = min(blocks, maxBlocks)
	for ; ; blocks++ {
		l := layout{blocks: blocks}
		room := 0
		for i, r := range reqs {
			c := r.cost()
			if i == 0 || c > room {
				if i > 0 {
					l.ends = append(l.ends, i)
				}
				if len(l.ends) == d {
					break
				}
				room = blocks*BlockSize - cellOverhead
			}
			room -= c
			if i == len(reqs)-1 {
				l.ends = append(l.ends, len(reqs))
			}
		}
		if l.ends[len(l.ends)-1] == len(reqs) || blocks >= maxBlocks {
			return l
		}
	}
}

// encodePacked lays the stripe out in memory: records sealed, data packed, parity, checksums, headers; and makes the writes.
func (a *Array) encodePacked(s *packedStripe, mark uint64) error {
	b, lay := s.band, s.lay
	d, n := len(lay.ends), len(lay.ends)+b.parity
	size := lay.blocks * BlockSize
	buf, err := a.meta.Get(a.ctx, n*size)
	if err != nil {
		return err
	}
	s.buf = buf
	mem := buf.Bytes()[:n*size]
	h := header{
		kind: kindPacked, data: uint8(d), parity: uint8(b.parity), width: uint8(len(b.members)),
		rot: uint8(rotation(b.num, s.off, len(b.members))), band: b.num, stripe: s.num, epoch: b.epoch, mark: mark,
		off: s.off, blocks: uint32(lay.blocks), keyEpoch: a.opt.Keys.CurrentEpoch(), writtenMS: a.now().UnixMilli(),
	}
	if !a.opt.faults.noNonce {
		a.random(h.nonce[:])
	}
	metadataKey, err := a.opt.Keys.RecordKey(h.keyEpoch)
	if err != nil {
		return err
	}
	aead, err := recordAEAD(metadataKey, &h)
	if err != nil {
		return err
	}
	cells := make([][]byte, n)
	first := 0
	for i := range n {
		cells[i] = mem[i*size:][:size:size]
		if i < d {
			h.role = uint8(i)
			a.codec.fillPacked(aead, cells[i], &h, s.reqs[first:lay.ends[i]])
			first = lay.ends[i]
		}
	}
	s.pos = Position{Stripe: s.num, Band: b.num, Off: s.off, Nonce: h.nonce}
	if err := a.protect(cells, d, headerSize); err != nil {
		return err
	}
	s.ops = a.seal(cells, &h, b)
	return nil
}

// fillPacked writes the payload of a data cell: the sealed record block, then the data, then zeros. It notes in each request
// where its data went.
func (c *codec) fillPacked(aead cipher.AEAD, cell []byte, h *header, reqs []*request) {
	n := blockHead
	for _, r := range reqs {
		n += recordHead + len(r.rec.Body)
	}
	le := binary.LittleEndian
	clear(cell[headerSize:][:packedHead])
	le.PutUint32(cell[headerSize:], uint32(n+gcmTag))
	p := cell[headerSize+packedHead:]
	le.PutUint32(p, uint32(len(reqs)))
	le.PutUint32(p[4:], 0)
	at, data := blockHead, headerSize+packedHead+n+gcmTag
	for _, r := range reqs {
		le.PutUint64(p[at:], r.seq)
		le.PutUint32(p[at+8:], uint32(len(r.rec.Body)))
		le.PutUint32(p[at+12:], uint32(data))
		le.PutUint32(p[at+16:], uint32(len(r.rec.Data)))
		le.PutUint32(p[at+20:], 0)
		at += recordHead
		at += copy(p[at:], r.rec.Body)
		if len(r.rec.Data) > 0 {
			r.data = Loc{Band: h.band, Off: h.off, Role: h.role, Start: uint32(data), Len: uint32(len(r.rec.Data))}
			data += copy(cell[data:], r.rec.Data)
		}
	}
	clear(cell[data:])
	nonce := recordNonce(h)
	aead.Seal(p[:0], nonce[:], p[:n], c.recordAAD(h))
}

// protect computes the parity cells of equally long cells, whose payloads start at start. The first data cells hold data.
func (a *Array) protect(cells [][]byte, data, start int) error {
	return a.protectRange(cells, data, start, len(cells[0]), nil)
}

// tileBytes bounds what one pass over a stripe touches, data and parity together: a part of the second-level cache.
const tileBytes = 512 << 10

// protectRange computes parity of the bytes from..to of the cells in tiles and, when crcs is not nil, carries each cell's
// checksum over the same bytes while they are in the cache. The time of both counts as encoding.
func (a *Array) protectRange(cells [][]byte, data, from, to int, crcs []uint64) error {
	n := len(cells)
	t := time.Now()
	tile := max(BlockSize, tileBytes/n&^(BlockSize-1))
	var shards [MaxWidth][]byte
	var coder hw.Coder
	if n > data {
		var err error
		if coder, err = a.opt.Crypto.Coder(data, n-data); err != nil {
			return err
		}
	}
	for at := from; at < to; at += tile {
		end := min(at+tile, to)
		for i, c := range cells {
			shards[i] = c[at:end]
		}
		if coder != nil {
			if err := coder.Encode(shards[:data], shards[data:n]); err != nil {
				return err
			}
		}
		for i := range crcs {
			crcs[i] = a.opt.Crypto.CRC64NVME(crcs[i], shards[i])
		}
	}
	a.encoded.Add(data*(to-from), time.Since(t))
	return nil
}

// seal computes the payloads' checksums, writes the cells' headers and returns the durable writes that put the stripe on the
// members of its band.
func (a *Array) seal(cells [][]byte, h *header, b *band) []blockdev.Op {
	crcs := make([]uint64, len(cells))
	for i, c := range cells {
		crcs[i] = a.opt.Crypto.CRC64NVME(0, c[h.start():])
	}
	return a.sealWith(cells, h, crcs, b)
}

// sealWith is seal with the payloads' checksums known.
func (a *Array) sealWith(cells [][]byte, h *header, crcs []uint64, b *band) []blockdev.Op {
	ops := make([]blockdev.Op, len(cells))
	for i, c := range cells {
		m := b.members[h.member(i)]
		d := a.slots()[m.slot]
		h.role, h.disk = uint8(i), d.id
		h.crc = a.codec.checksum(h, crcs[i])
		a.codec.put(c, h)
		ops[i] = blockdev.Op{
			Dev: d.gi, Write: true, Durable: !a.opt.faults.noFlush,
			Off: a.geo.extentOffset(m.extent) + int64(h.off)*BlockSize, Buf: c,
		}
	}
	return ops
}
