package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"coffer/disk/internal/blockdev"
)

// HeaderInfo is a cell header whose MAC verifies. Ids are hex.
type HeaderInfo struct {
	Kind     string    `json:"kind"`
	Role     int       `json:"role"`
	Data     int       `json:"data"`
	Parity   int       `json:"parity"`
	Width    int       `json:"width"`
	Rot      int       `json:"rot"`
	Disk     string    `json:"disk"`
	Band     string    `json:"band"`
	Stripe   uint64    `json:"stripe"`
	Epoch    uint64    `json:"epoch"`
	Nonce    string    `json:"nonce"`
	Mark     uint64    `json:"mark"`
	Block    uint32    `json:"block"`
	Blocks   uint32    `json:"blocks"`
	KeyEpoch uint32    `json:"key_epoch,omitempty"`
	Checksum string    `json:"checksum"`
	Written  time.Time `json:"written"`
}

// CellInfo is what lies at a place of a disk. Verdict is one of good, empty (zeros), torn (sectors of another write), rot (altered since),
// damaged (one of the two, and nothing left to tell which), inside (no cell begins there), stale (of a band that no longer has the extent), misdirected (belongs
// elsewhere in this array), foreign (of another array), unreadable and missing (no disk).
type CellInfo struct {
	Slot       int         `json:"slot"`
	Path       string      `json:"path"`
	Extent     uint32      `json:"extent"`
	Block      uint32      `json:"block"`
	Offset     int64       `json:"offset"` // on the device, bytes
	Owner      string      `json:"owner"`  // band that has the extent, "" for none
	Verdict    string      `json:"verdict"`
	Reason     string      `json:"reason,omitempty"`
	MACOK      bool        `json:"mac_ok"`
	ChecksumOK bool        `json:"checksum_ok"`
	Header     *HeaderInfo `json:"header,omitempty"`
}

// StripeInfo is what lies at a place of a band. Without any valid header there Data is 0 and the cells are those of all positions.
type StripeInfo struct {
	Band      string     `json:"band"`
	Kind      string     `json:"kind"`
	Block     uint32     `json:"block"`
	Blocks    uint32     `json:"blocks"`
	Stripe    uint64     `json:"stripe"`
	Data      int        `json:"data"`
	Parity    int        `json:"parity"`
	Good      int        `json:"good"`
	Decodable bool       `json:"decodable"`
	Cells     []CellInfo `json:"cells"` // by role
}

func (k kind) String() string {
	names := []string{kindPacked: "packed", kindBulk: "bulk", kindPackedBand: "packed band", kindBulkBand: "bulk band", kindFree: "freed extent"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (h *header) info() *HeaderInfo {
	return &HeaderInfo{Kind: h.kind.String(), Role: int(h.role), Data: int(h.data), Parity: int(h.parity), Width: int(h.width), Rot: int(h.rot),
		Disk: hex.EncodeToString(h.disk[:]), Band: bandName(h.band), Stripe: h.stripe, Epoch: h.epoch, Nonce: hex.EncodeToString(h.nonce[:]),
		Mark: h.mark, Block: h.off, Blocks: h.blocks, KeyEpoch: h.keyEpoch, Checksum: fmt.Sprintf("%016x", h.crc), Written: time.UnixMilli(h.writtenMS).UTC()}
}

func bandName(num uint64) string { return fmt.Sprintf("%x", num) }

// InspectCell tells what lies at a block of an extent of the disk at path. It changes nothing, and what is bad is no error.
func (a *Array) InspectCell(ctx context.Context, path string, extent, block uint32) (CellInfo, error) {
	for _, d := range a.slots() {
		if d.dev == nil || d.path != path {
			continue
		}
		if extent >= a.geo.extents(d.dev.Limits().Size) || block >= a.geo.extentBlocks() {
			return CellInfo{}, fmt.Errorf("inspect %s: it has %d extents of %d blocks", path, a.geo.extents(d.dev.Limits().Size), a.geo.extentBlocks())
		}
		return a.inspect(ctx, bandMember{slot: d.slot, extent: extent}, block)
	}
	return CellInfo{}, fmt.Errorf("inspect %s: %w", path, ErrNotMember)
}

// InspectStripe tells what lies at a block of a band: the cells of a stripe, or, at block 0, the headers of the band.
func (a *Array) InspectStripe(ctx context.Context, num uint64, block uint32) (StripeInfo, error) {
	s, w, err := a.inspectStripe(ctx, num, block)
	if w != nil {
		w.release()
	}
	return s, err
}

// InspectRecords tells what lies at a block of a packed band and opens the records there, of which it returns copies.
func (a *Array) InspectRecords(ctx context.Context, num uint64, block uint32) (StripeInfo, []Entry, error) {
	s, w, err := a.inspectStripe(ctx, num, block)
	if err != nil {
		return s, nil, err
	}
	if w == nil || w.head.kind != kindPacked {
		if w != nil {
			w.release()
		}
		return s, nil, fmt.Errorf("inspect records of band %x block %d: no packed stripe begins there: %w", num, block, ErrCorrupt)
	}
	defer w.release()
	if err := w.complete(); err != nil {
		return s, nil, err
	}
	entries, err := a.decodeEntries(w)
	for i := range entries {
		entries[i].Body = bytes.Clone(entries[i].Body)
	}
	return s, entries, err
}

func (a *Array) inspectStripe(ctx context.Context, num uint64, block uint32) (StripeInfo, *wholeStripe, error) {
	a.mu.RLock()
	b := a.bands[num]
	a.mu.RUnlock()
	s := StripeInfo{Band: bandName(num), Block: block}
	switch {
	case b == nil:
		return s, nil, fmt.Errorf("inspect band %x: %w", num, ErrGone)
	case block >= a.geo.extentBlocks():
		return s, nil, fmt.Errorf("inspect band %x: its extents have %d blocks", num, a.geo.extentBlocks())
	}
	positions := make([]int, len(b.members))
	for i := range positions {
		positions[i] = i
	}
	var w *wholeStripe
	if block == 0 {
		s.Kind = b.kind.band().String()
	} else {
		s.Kind = b.kind.String()
		var err error
		if w, err = a.probe(ctx, b, block); err != nil {
			return s, nil, err
		}
	}
	if w != nil {
		s.Blocks, s.Stripe, s.Data, s.Parity = w.head.blocks, w.head.stripe, int(w.head.data), int(w.head.parity)
		positions = positions[:0]
		for r := range w.width() {
			positions = append(positions, w.head.member(r))
		}
	}
	for _, pos := range positions {
		c, err := a.inspect(ctx, b.members[pos], block)
		if err != nil {
			return s, w, err
		}
		if c.Verdict == "good" {
			s.Good++
		}
		s.Cells = append(s.Cells, c)
	}
	s.Decodable = w != nil && s.Good >= s.Data || block == 0 && s.Good > 0
	return s, w, nil
}

// owner is the band that has an extent, and its position there.
func (a *Array) owner(m bandMember) (*band, int) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, b := range a.bands {
		if pos := slices.Index(b.members, m); pos >= 0 {
			return b, pos
		}
	}
	return nil, 0
}

// inspect looks at one place. Every field of a header whose MAC fails is hostile: none is shown.
func (a *Array) inspect(ctx context.Context, m bandMember, block uint32) (CellInfo, error) {
	d := a.slots()[m.slot]
	c := CellInfo{Slot: m.slot, Path: d.path, Extent: m.extent, Block: block, Offset: a.geo.extentOffset(m.extent) + int64(block)*BlockSize}
	b, pos := a.owner(m)
	if b != nil {
		c.Owner = bandName(b.num)
	}
	if d.dev == nil {
		c.Verdict, c.Reason = "missing", d.reason
		return c, nil
	}
	first, err := a.inspectRead(ctx, d, c.Offset, BlockSize)
	if err != nil {
		c.Verdict, c.Reason = "unreadable", err.Error()
		return c, nil
	}
	h, err := a.codec.parse(first, place{disk: diskID(first[32:48]), off: binary.LittleEndian.Uint32(first[96:])}) // wherever it belongs
	switch {
	case err == nil:
		c.Header, c.MACOK = h.info(), true
	case slices.Max(first) == 0:
		c.Verdict = "empty"
		return c, nil
	case string(first[:8]) == cellMagic && diskID(first[16:32]) != a.codec.array:
		c.Verdict, c.Reason = "foreign", fmt.Sprintf("a cell of array %x", first[16:32])
		return c, nil
	default:
		return c, a.judgeHeaderless(ctx, &c, b, pos)
	}
	if c.Verdict, c.Reason = a.belongs(&h, d, b, pos, m, block); c.Verdict != "" {
		return c, nil
	}
	whole, err := a.inspectRead(ctx, d, c.Offset, int(h.blocks)*BlockSize)
	if err != nil {
		c.Verdict, c.Reason = "unreadable", err.Error()
		return c, nil
	}
	crc := whole[h.start():]
	if h.kind > kindBulk {
		crc = whole[headerSize:]
	}
	if c.ChecksumOK = a.codec.checksum(&h, a.opt.Crypto.CRC64NVME(0, crc)) == h.crc; c.ChecksumOK {
		c.Verdict = "good"
		return c, nil
	}
	return c, a.judgePayload(ctx, &c, b, &h, whole)
}

// belongs says what is wrong with a header that verifies in the place where it was found, "" if nothing is.
func (a *Array) belongs(h *header, d *disk, b *band, pos int, m bandMember, block uint32) (verdict, reason string) {
	switch {
	case h.disk != d.id:
		slot := slices.IndexFunc(a.slots(), func(o *disk) bool { return o.id == h.disk })
		return "misdirected", fmt.Sprintf("it belongs to disk %x in slot %d", h.disk, slot)
	case h.off != block:
		return "misdirected", fmt.Sprintf("it belongs to block %d", h.off)
	case uint64(h.off)+uint64(h.blocks) > uint64(a.geo.extentBlocks()):
		return "damaged", "it is longer than its extent"
	case h.kind == kindFree && h.stripe != uint64(m.extent):
		return "misdirected", fmt.Sprintf("it marks extent %d", h.stripe)
	case h.kind == kindFree && b == nil:
		return "", ""
	case b == nil:
		return "stale", "no band has this extent"
	case h.band != b.num:
		return "stale", "another band has this extent now"
	case block == 0 && (h.kind != b.kind.band() || int(h.role) != pos), block > 0 && (!a.fits(h, b) || h.member(int(h.role)) != pos):
		return "misdirected", "it belongs to another position of its band"
	}
	return "", ""
}

// judgeHeaderless tells torn from rot where no header verifies, by what the other cells say should be there.
func (a *Array) judgeHeaderless(ctx context.Context, c *CellInfo, b *band, pos int) error {
	c.Verdict, c.Reason = "damaged", "no header that verifies"
	if b == nil || c.Block == 0 {
		return nil
	}
	w, err := a.probe(ctx, b, c.Block)
	if err != nil || w == nil {
		c.Verdict, c.Reason = "inside", "no cell begins here: it is inside of one, or what an earlier use left"
		return err
	}
	defer w.release()
	for role := range w.width() {
		if w.head.member(role) == pos {
			head, found := w.head, bytes.Clone(w.cells[role])
			return a.judgePayload(ctx, c, b, &head, found)
		}
	}
	c.Reason = "the stripe that begins here has no cell on this disk"
	return nil
}

// judgePayload compares a bad cell with what the others of its stripe say should be there. Sealed bytes of two writes agree in one of
// 256, so a sector of which more than an eighth differs was replaced, and one with less altered.
func (a *Array) judgePayload(ctx context.Context, c *CellInfo, b *band, h *header, found []byte) error {
	const sector = 512
	if c.Verdict, c.Reason = "damaged", "its checksum fails"; !c.MACOK {
		c.Reason = "its header fails its MAC"
	}
	if b == nil || h.kind > kindBulk {
		return nil
	}
	w, err := a.readWhole(ctx, b, *h)
	if err != nil {
		return err
	}
	defer w.release()
	role := int(h.role)
	for r := range w.width() {
		if b.members[w.head.member(r)].slot == c.Slot {
			role = r
		}
	}
	if w.complete() != nil {
		c.Reason += ", and too few cells are left to tell what should be here"
		return nil
	}
	want, replaced, altered := w.cells[role], 0, 0
	for at := h.start(); at < len(want); at += sector {
		end, n := min(at+sector, len(want)), 0
		for i := at; i < end; i++ {
			if found[i] != want[i] {
				n++
			}
		}
		if n > (end-at)/8 {
			replaced++
		} else if n > 0 {
			altered++
		}
	}
	if c.Verdict = "rot"; replaced > 0 {
		c.Verdict = "torn"
	}
	c.Reason += fmt.Sprintf("; of its sectors %d are of another write, %d altered", replaced, altered)
	return nil
}

// inspectRead reads bytes of a device into memory of its own.
func (a *Array) inspectRead(ctx context.Context, d *disk, off int64, n int) ([]byte, error) {
	buf, err := a.rebuild.Get(ctx, n)
	if err != nil {
		return nil, err
	}
	ops := []blockdev.Op{{Dev: d.gi, Off: off, Buf: buf.Bytes()[:n]}}
	defer func() { release(&buf, ops) }()
	if err := a.group.Run(ops); err != nil {
		return nil, err
	}
	if ops[0].Err != nil {
		return nil, ops[0].Err
	}
	return bytes.Clone(ops[0].Buf), nil
}
