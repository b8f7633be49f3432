package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash/crc64"
	"slices"
)

// This file is sections Bands, and Stripes and cells, of docs/format.md.

var nvme = crc64.MakeTable(0x9a6c9329ac4bc9b5) // CRC-64/NVME

const (
	kindPacked     = 1
	kindBulk       = 2
	kindPackedBand = 3
	kindBulkBand   = 4
	kindFreed      = 5
)

// cell is a cell header that counts, and the payload behind it.
type cell struct {
	kind, role     uint8
	d, m, w, rot   int
	disk           id
	band           uint64
	stripe         uint64
	epoch          uint64
	nonce          id
	mark           uint64
	offset, blocks uint32
	keyEpoch       uint32
	payload        []byte
	payloadAt      int // in the cell
}

// same says whether two cells are of one attempt at one stripe.
func (c *cell) same(o *cell) bool {
	return c.kind == o.kind && c.d == o.d && c.m == o.m && c.w == o.w && c.rot == o.rot && c.band == o.band && c.stripe == o.stripe &&
		c.epoch == o.epoch && c.nonce == o.nonce && c.offset == o.offset && c.blocks == o.blocks
}

// cellAt reads the cell at an offset of an extent of the disk in a slot; nil if none counts there.
func (a *array) cellAt(slot int, extent, offset uint32) *cell {
	d := a.slots[slot]
	if d == nil {
		return nil
	}
	at := 1<<20 + int64(extent)*a.head.extent + int64(offset)*block
	b := make([]byte, block)
	if _, err := d.f.ReadAt(b, at); err != nil || string(b[:8]) != "COFFCELL" || b[8] != 1 {
		return nil
	}
	h := hmac.New(sha256.New, a.mac)
	h.Write(b[:176])
	if !hmac.Equal(h.Sum(nil)[:16], b[176:192]) {
		return nil
	}
	c := &cell{kind: b[9], role: b[10], d: int(b[11]), m: int(b[12]), w: int(b[13]), rot: int(b[14]), disk: id(b[32:]), band: le.Uint64(b[48:]),
		stripe: le.Uint64(b[56:]), epoch: le.Uint64(b[64:]), nonce: id(b[72:]), mark: le.Uint64(b[88:]), offset: le.Uint32(b[96:]),
		blocks: le.Uint32(b[100:]), keyEpoch: le.Uint32(b[104:]), payloadAt: 192}
	if id(b[16:32]) != a.head.array || c.disk != a.head.members[slot].disk || c.offset != offset || c.blocks < 1 ||
		int64(c.offset)+int64(c.blocks) > a.head.extent/block {
		return nil
	}
	a.mark = max(a.mark, c.mark)
	if c.kind == kindBulk {
		c.payloadAt = block
	}
	whole := make([]byte, int(c.blocks)*block)
	if _, err := d.f.ReadAt(whole, at); err != nil || len(whole) < c.payloadAt {
		return nil
	}
	c.payload = whole[c.payloadAt:]
	sum := crc64.Update(crc64.Checksum(c.payload, nvme), nvme,
		join(c.disk[:], le64(c.band), le32(c.offset), []byte{c.kind, c.role, 0, 0}, c.nonce[:]))
	if sum != le.Uint64(b[112:]) {
		return nil
	}
	return c
}

// place is an extent of a disk.
type place struct {
	slot   int
	extent uint32
}

type band struct {
	num    uint64
	epoch  uint64
	packed bool
	at     []place  // by position
	since  []uint64 // by position: the number of the band or of the move that took the extent
}

// rot is where role 0 of a stripe lies.
func (b *band) rot(offset uint32) int {
	return int((((b.num ^ uint64(offset)*0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9) >> 33) % uint64(len(b.at)))
}

// scan reads the first block of all extents and keeps the bands that are not void.
func (a *array) scan() error {
	found, freed, taken := map[uint64]*band{}, map[uint64]bool{}, map[place]uint64{}
	out := func(slot int) bool { return a.head.members[slot].state == 2 || a.head.members[slot].state == 4 }
	vouched := map[uint64]bool{} // by a disk that was never out
	for slot, m := range a.head.members {
		if a.slots[slot] == nil {
			continue
		}
		for e := range min(m.extents, uint32((a.slots[slot].size-1<<20)/a.head.extent)) {
			c := a.cellAt(slot, e, 0)
			switch {
			case c == nil || c.blocks != 1:
			case c.kind == kindFreed && c.stripe == uint64(e):
				freed[c.band] = true
				taken[place{slot, e}] = max(taken[place{slot, e}], c.band, le.Uint64(c.payload[256:]))
			case c.kind == kindPackedBand || c.kind == kindBulkBand:
				if b := a.parseBand(c); b != nil && b.at[c.role] == (place{slot, e}) {
					for i, p := range b.at {
						taken[p] = max(taken[p], b.since[i])
					}
					vouched[b.num] = vouched[b.num] || !out(slot)
					if o := found[b.num]; o == nil || slices.Max(b.since) > slices.Max(o.since) {
						found[b.num] = b
					}
				}
			}
		}
	}
	// An extent belongs to whoever took it last. A band that only disks which were out still have was freed meanwhile, if others would know.
	for _, b := range found {
		void := freed[b.num]
		for i, p := range b.at {
			void = void || taken[p] > b.since[i] || !vouched[b.num] && a.head.members[p.slot].state == 1 && a.slots[p.slot] != nil
		}
		if !void {
			a.bands = append(a.bands, b)
		}
	}
	slices.SortFunc(a.bands, func(x, y *band) int { return int(int64(x.num - y.num)) }) // in the order in which they were opened
	return nil
}

func (a *array) parseBand(c *cell) *band {
	b := &band{num: c.band, epoch: c.epoch, packed: c.kind == kindPackedBand}
	if c.w < 1 || c.w > a.head.k+a.head.m || int(c.role) >= c.w || c.band>>32 != c.epoch {
		return nil
	}
	for i := range c.w {
		p := place{int(c.payload[8*i]), le.Uint32(c.payload[8*i+4:])}
		if p.slot >= len(a.head.members) {
			return nil
		}
		b.at = append(b.at, p)
		b.since = append(b.since, max(b.num, le.Uint64(c.payload[256+8*i:])))
	}
	return b
}

// stripe is a place in a band: the cells of one stripe that count, by role, and its data if they are enough.
type stripe struct {
	cell
	band  *band
	cells []*cell
	data  [][]byte // payloads of the data cells; nil if too few cells count
}

// stripeAt reads the stripe at an offset of a band, nil if no cell there counts.
func (a *array) stripeAt(b *band, offset uint32) *stripe {
	var best *stripe
	w, parity := len(b.at), min(a.head.m, len(b.at)-1)
	var cells []*cell
	for pos, p := range b.at {
		c := a.cellAt(p.slot, p.extent, offset)
		if c == nil || c.band != b.num || c.w != w || c.m != parity || c.d < 1 || c.d > w-parity || int(c.role) >= c.d+c.m ||
			c.kind != kindPacked && c.kind != kindBulk || (c.kind == kindPacked) != b.packed ||
			c.rot != b.rot(offset) || (c.rot+int(c.role))%w != pos {
			continue
		}
		cells = append(cells, c)
	}
	for _, c := range cells {
		s := &stripe{cell: *c, band: b, cells: make([]*cell, c.d+c.m)}
		for _, o := range cells {
			if c.same(o) {
				s.cells[o.role] = o
			}
		}
		if s.decode(); best == nil || best.data == nil && s.data != nil {
			best = s
		}
	}
	return best
}

// decode fills data from any d cells.
func (s *stripe) decode() {
	rows, have := generator(s.d, s.m), [][]byte(nil)
	var use [][]byte
	for r, c := range s.cells {
		if c != nil && len(have) < s.d {
			have, use = append(have, c.payload), append(use, rows[r])
		}
	}
	if len(have) < s.d {
		return
	}
	inverse := invert(use)
	for r, c := range s.cells[:s.d] {
		if c != nil {
			s.data = append(s.data, c.payload)
		} else {
			s.data = append(s.data, multiply(inverse[r:r+1], have)[0])
		}
	}
}
