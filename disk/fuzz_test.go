package disk

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"testing"
)

// The decoders of this package meet bytes from disks. Where a MAC or checksum stands before a decoder, the fuzz target computes
// it anew, so that the fuzzer gets past it: what is found then is what an adversary with the keys, or a bug in a writer, can do.

// signSuper makes b a superblock copy with a valid length, MAC and checksum.
func signSuper(b []byte, copyNo int) []byte {
	b = append(bytes.Clone(b), make([]byte, max(superFixed-len(b), 0))...)
	b = b[:min(len(b), superSize-superTrailer)]
	copy(b, superMagic)
	binary.LittleEndian.PutUint16(b[8:], superVersion)
	b[10] = byte(copyNo)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)))
	mac := hmac.New(sha256.New, testKeys{}.SuperblockKey())
	mac.Write(b)
	b = mac.Sum(b)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func sampleSuper() *superblock {
	s := &superblock{
		array: diskID{9}, disk: diskID{1}, slot: 1, geo: Geometry{Data: 2, Parity: 1, ExtentSize: 1 << 20}, diskSize: 9 << 20, created: 1,
		history: []epoch{{num: 2, id: [8]byte{2}, cut: 7}, {num: 1, id: [8]byte{1}}}, keyArea: []byte("key area"),
	}
	for i := range 3 {
		s.members = append(s.members, memberEntry{id: diskID{byte(i)}, state: memberActive, extents: 8, since: 1})
	}
	return s
}

func FuzzSuperblock(f *testing.F) {
	key := testKeys{}.SuperblockKey()
	good := sampleSuper()
	f.Add(trimSuper(good.encode(0, key))[:superFixed+3*memberSize+2*epochSize+8], true)
	f.Add(trimSuper(good.encode(0, key)), false)
	big := sampleSuper()
	big.keyArea = make([]byte, maxKeyArea)
	f.Add(trimSuper(big.encode(0, key)), false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		if sign {
			b = signSuper(b, 0)
		}
		s, err := decodeSuperblock(b, 0)
		if err != nil {
			return
		}
		if len(s.members) > MaxDisks || s.slot >= len(s.members) || s.geo.Validate(len(s.members)) != nil || len(s.history) > maxHistory || len(s.keyArea) > maxKeyArea {
			t.Fatalf("accepted %+v", s)
		}
		if sign && checkMAC(b, key) != nil {
			t.Fatal("MAC does not verify")
		}
		again, err := decodeSuperblock(trimSuper(s.encode(0, key)), 0)
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("encoded and decoded: %+v, %v; was %+v", again, err, s)
		}
	})
}

func FuzzChooseCopy(f *testing.F) {
	key := testKeys{}.SuperblockKey()
	body := func(s *superblock) []byte {
		b := trimSuper(s.encode(0, key))
		return b[:len(b)-superTrailer]
	}
	old, now := sampleSuper(), sampleSuper()
	now.history = append([]epoch{{num: 3, id: [8]byte{3}, cut: 9}}, now.history...)
	f.Add(body(old), body(now), uint8(0b0011), uint8(0))
	f.Add(body(old), body(now), uint8(0b0111), uint8(0b1000))
	f.Add(body(old), body(now), uint8(0), uint8(0b1110))
	f.Fuzz(func(t *testing.T, x, y []byte, which, bad uint8) {
		var raw rawSuper
		for i := range raw {
			if raw[i] = signSuper(x, i); which>>i&1 != 0 {
				raw[i] = signSuper(y, i)
			}
			if bad>>i&1 != 0 {
				raw[i][len(raw[i])-40] ^= 1 // in the MAC
			}
			if bad>>(i+4)&1 != 0 {
				raw[i] = nil
			}
		}
		for _, k := range [][]byte{nil, key} {
			s, n, err := chooseCopy(raw, k)
			if err != nil {
				continue
			}
			same := 0
			for i, b := range raw {
				if b == nil {
					continue
				}
				if c, err := decodeSuperblock(b, i); err == nil && (k == nil || checkMAC(b, k) == nil) {
					if c.sameState(s) {
						same++
					} else if c.disk != s.disk {
						t.Fatal("chosen among the copies of two disks")
					}
				}
			}
			if n < 2 || n != same {
				t.Fatalf("%d copies said to agree, %d do", n, same)
			}
		}
	})
}

func testCodec() *codec { return newCodec(diskID{9}, testKeys{}.CellKey(), crypto(), faults{}) }

// signCell gives a cell header of the test's array a valid MAC.
func signCell(c *codec, cell []byte) {
	copy(cell, cellMagic)
	cell[8] = cellVersion
	copy(cell[16:], c.array[:])
	var sum [sha256.Size]byte
	c.mac(&sum, cell[:macOffset])
	copy(cell[macOffset:headerSize], sum[:macSize])
}

func sampleHeader() header {
	return header{
		kind: kindPacked, role: 1, data: 2, parity: 1, width: 3, rot: uint8(rotation(1<<32|1, 1, 3)), disk: diskID{1}, band: 1<<32 | 1,
		stripe: 5, epoch: 1, nonce: [16]byte{4}, mark: 4, off: 1, blocks: 1, keyEpoch: 1, crc: 77, writtenMS: 88,
	}
}

func FuzzCell(f *testing.F) {
	c := testCodec()
	cell := make([]byte, BlockSize)
	for _, k := range []kind{kindPacked, kindBulk, kindPackedBand, 9} {
		h := sampleHeader()
		h.kind = k
		c.put(cell, &h)
		f.Add(bytes.Clone(cell[:headerSize+64]), true)
		f.Add(bytes.Clone(cell[:headerSize]), false)
	}
	a := &Array{geo: Geometry{Data: 2, Parity: 1, ExtentSize: 1 << 20}}
	b := &band{num: 1<<32 | 1, kind: kindPacked, epoch: 1, parity: 1, members: make([]bandMember, 3), bandUse: &bandUse{}}
	f.Fuzz(func(t *testing.T, p []byte, sign bool) {
		if sign {
			cell := make([]byte, (max(len(p), 1)+BlockSize-1)&^(BlockSize-1))
			copy(cell, p)
			signCell(c, cell)
			p = cell
		}
		var at place
		if len(p) >= headerSize {
			at = place{disk: diskID(p[32:48]), band: binary.LittleEndian.Uint64(p[48:]), off: binary.LittleEndian.Uint32(p[96:])}
		}
		h, err := c.parse(p, at)
		if err != nil {
			return
		}
		if _, err := c.parse(p, place{disk: at.disk, band: at.band, off: at.off + 1}); err == nil {
			t.Fatal("accepted in another place")
		}
		c.verify(p, &h)
		if a.fits(&h, b) && (h.data < 1 || int(h.data+h.parity) > len(b.members) || h.off+h.blocks > a.geo.extentBlocks() || h.role >= h.data+h.parity ||
			h.member(int(h.role)) >= len(b.members)) {
			t.Fatalf("fits: %+v", h)
		}
		out := make([]byte, headerSize)
		c.put(out, &h)
		if again, err := c.parse(out, at); err != nil || again != h {
			t.Fatalf("encoded and decoded: %+v, %v; was %+v", again, err, h)
		}
	})
}

func FuzzBand(f *testing.F) {
	c := testCodec()
	a := &Array{geo: Geometry{Data: 2, Parity: 1, ExtentSize: 1 << 20}, super: *sampleSuper()}
	a.table.Store(&[]*disk{{extents: 8}, {extents: 8}, {extents: 8}})
	block := make([]byte, BlockSize)
	for _, k := range []kind{kindPacked, kindBulk} {
		b := &band{num: 2<<32 | 3, kind: k, epoch: 2, parity: 1, nonce: [16]byte{8}, opened: 9, members: []bandMember{{0, 1}, {2, 7}, {1, 3}}, bandUse: &bandUse{}}
		c.putBand(block, b, 1, diskID{1})
		f.Add(bytes.Clone(block[:headerSize+24]), true)
		f.Add(bytes.Clone(block), false)
	}
	f.Fuzz(func(t *testing.T, p []byte, sign bool) {
		block := make([]byte, BlockSize)
		copy(block, p)
		id := diskID(block[32:48])
		if sign {
			signCell(c, block)
			if h, err := c.parse(block, place{disk: id, off: binary.LittleEndian.Uint32(block[96:])}); err == nil {
				binary.LittleEndian.PutUint64(block[112:], c.checksum(&h, crypto().CRC64NVME(0, block[headerSize:])))
				signCell(c, block)
			}
		}
		b, pos, err := c.parseBand(block, id)
		if err != nil {
			return
		}
		if len(b.members) < 1 || len(b.members) > MaxWidth || pos >= len(b.members) || b.parity >= len(b.members) {
			t.Fatalf("accepted %+v", b)
		}
		if a.plausible(b) {
			for _, m := range b.members {
				if m.slot >= len(a.slots()) {
					t.Fatalf("plausible: %+v", b)
				}
			}
		}
		c.putBand(block, b, pos, id)
		again, at, err := c.parseBand(block, id)
		if err != nil || at != pos || !reflect.DeepEqual(again, b) {
			t.Fatalf("encoded and decoded: %+v, %v; was %+v", again, err, b)
		}
	})
}

// sampleRecords is the plaintext of a record block.
func sampleRecords(h *header, recs ...Record) []byte {
	var reqs []*request
	for i, r := range recs {
		reqs = append(reqs, &request{rec: r, seq: uint64(i + 1)})
	}
	cell := make([]byte, int(h.blocks)*BlockSize)
	aead, err := recordAEAD(make([]byte, 32), h)
	if err != nil {
		panic(err)
	}
	c := testCodec()
	c.fillPacked(aead, cell, h, reqs)
	block, err := sealedBlock(cell)
	if err != nil {
		panic(err)
	}
	n := recordNonce(h)
	p, err := aead.Open(nil, n[:], block, c.recordAAD(h))
	if err != nil {
		panic(err)
	}
	return p
}

func FuzzRecords(f *testing.F) {
	h := sampleHeader()
	h.blocks = 4
	f.Add(sampleRecords(&h))
	f.Add(sampleRecords(&h, Record{Body: []byte("a")}, Record{Body: []byte("bc"), Data: make([]byte, 100)}, Record{Data: make([]byte, 9000)}))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<32-1))
	f.Fuzz(func(t *testing.T, p []byte) {
		again := []byte{}
		n := uint32(0)
		err := parseRecords(bytes.Clone(p), &h, func(e Entry) error {
			if l := e.Data; !l.IsZero() && (l.Band != h.band || l.Off != h.off || l.Role != h.role || l.Len == 0 ||
				uint64(l.Start)+uint64(l.Len) > uint64(h.blocks)*BlockSize || l.Start < headerSize) {
				t.Fatalf("data at %+v", l)
			}
			at := blockHead + len(again)
			again = binary.LittleEndian.AppendUint64(again, e.Seq)
			again = binary.LittleEndian.AppendUint32(again, uint32(len(e.Body)))
			again = append(again, p[at+12:at+recordHead]...) // where the data is, and what is reserved
			if !e.Data.IsZero() && (binary.LittleEndian.Uint32(p[at+12:]) != e.Data.Start || binary.LittleEndian.Uint32(p[at+16:]) != e.Data.Len) {
				t.Fatalf("data at %+v", e.Data)
			}
			again = append(again, e.Body...)
			n++
			return nil
		})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(again, p[blockHead:]) || n != binary.LittleEndian.Uint32(p) {
			t.Fatalf("%d records encode to %x, was %x", n, again, p)
		}
	})
}

func FuzzSealedBlock(f *testing.F) {
	f.Add(uint32(blockHead+gcmTag), 1)
	f.Add(uint32(BlockSize-headerSize-packedHead), 1)
	f.Add(uint32(1<<32-1), 3)
	f.Fuzz(func(t *testing.T, n uint32, blocks int) {
		cell := make([]byte, (1+uint(blocks)%maxCellBlocks)*BlockSize)
		binary.LittleEndian.PutUint32(cell[headerSize:], n)
		p, err := sealedBlock(cell)
		fits := n >= blockHead+gcmTag && uint64(n)+headerSize+packedHead <= uint64(len(cell))
		if fits != (err == nil) || err == nil && len(p) != int(n) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %d, %v", n, len(cell), len(p), err)
		}
	})
}

// FuzzLoc decodes locations as the index keeps them, and reads whatever they name: bytes of the right number, or an error.
func FuzzLoc(f *testing.F) {
	a, l, s := fuzzArray(f)
	f.Add(l.AppendBinary([]byte{}))
	f.Add(slices.Concat(Loc{Band: l.Band, Off: 1, Start: 100, Len: 1<<20 - 4096 - 100}.AppendBinary(nil), []byte("rest")))
	f.Add(Loc{Band: s.Band, Off: 1<<32 - 1, Role: 31, Start: 1<<32 - 1, Len: 1<<32 - 1}.AppendBinary(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, rest, err := DecodeLoc(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, r, err := DecodeLoc(append(l.AppendBinary(nil), rest...)); err != nil || again != l || !bytes.Equal(r, rest) {
			t.Fatalf("%+v, %v; was %+v", again, err, l)
		}
		v, err := a.ReadPacked(t.Context(), l)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if len(v.Bytes(0)) != int(l.Len) {
			t.Fatalf("%d bytes, want %d", len(v.Bytes(0)), l.Len)
		}
		if err := v.Repair(t.Context(), 0, func([]byte) error { return errPayload }); !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		v.Release()
	})
}

// FuzzStripe is FuzzLoc for bulk stripes.
func FuzzStripe(f *testing.F) {
	a, l, s := fuzzArray(f)
	f.Add(s.AppendBinary([]byte{}), 0, 3)
	f.Add(Stripe{Band: l.Band, Off: 1, Data: 2, Segments: 4}.AppendBinary(nil), 1, 2)
	f.Add(append(Stripe{Band: s.Band, Off: 1<<32 - 1, Data: MaxWidth, Segments: MaxWidth * maxRows}.AppendBinary(nil), 1, 2), -1, 1<<62)
	f.Fuzz(func(t *testing.T, b []byte, first, n int) {
		s, rest, err := DecodeStripe(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, r, err := DecodeStripe(append(s.AppendBinary(nil), rest...)); err != nil || again != s || !bytes.Equal(r, rest) {
			t.Fatalf("%+v, %v; was %+v", again, err, s)
		}
		v, err := a.ReadStripe(t.Context(), s, first, n)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		for i := range v.Len() {
			if len(v.Bytes(i)) != SegmentSize {
				t.Fatalf("segment of %d bytes", len(v.Bytes(i)))
			}
		}
		if err := v.Repair(t.Context(), n-1, func([]byte) error { return errPayload }); !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		v.Release()
	})
}

// fuzzArray is an open array with a record and a stripe in it.
func fuzzArray(f *testing.F) (*Array, Loc, Stripe) {
	s := newSimArray(f, 3, 2, 1, 9)
	a := s.open()
	f.Cleanup(func() { a.Close() })
	if err := newWritten().put(a, 1, 5000); err != nil {
		f.Fatal(err)
	}
	st, err := writeStripe(a, 1, 3)
	if err != nil {
		f.Fatal(err)
	}
	return a, s.state.entries[0].data, st
}
