package disk

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/minio/crc64nvme"
)

var updateFormat = flag.Bool("update-format", false, "write testdata/format.json anew")

// formatVector is an array of 2+1 disks with the keys of testKeys: what lies on its disks after one packed stripe with the records
// "first" (with data) and "second", and one bulk stripe of three segments. Blobs are hex with trailing zeros cut.
type formatVector struct {
	Superblock string    // copy 1 of slot 0
	Band       string    // first block of the packed band's extent on its position 0
	Packed     []vecCell // the packed stripe, by role
	Bulk       []vecCell // the bulk stripe, by role; segment i is 65,536 times the byte i+1
}

type vecCell struct {
	Disk   string // disk id
	Blocks int
	Head   string // header and, in packed cells, payload
}

const formatFile = "testdata/format.json"

// TestFormat reads the committed vector by the rules of docs/format.md, with none of the engine's code.
func TestFormat(t *testing.T) {
	if *updateFormat {
		writeFormat(t)
	}
	raw, err := os.ReadFile(formatFile)
	if err != nil {
		t.Fatal(err)
	}
	var v formatVector
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	checkSuperVector(t, unhex(t, v.Superblock, 64<<10))
	checkBandVector(t, unhex(t, v.Band, BlockSize))
	payloads := make([][]byte, len(v.Packed))
	for role, c := range v.Packed {
		cell := unhex(t, c.Head, c.Blocks*BlockSize)
		payloads[role] = checkCellVector(t, cell, c.Disk, 1, role, 192)
	}
	if !bytes.Equal(payloads[0], payloads[1]) {
		t.Error("the parity of a single data cell is not that cell's payload")
	}
	checkRecordsVector(t, unhex(t, v.Packed[0].Head, v.Packed[0].Blocks*BlockSize))
	// With d = 2 the parity row of V·T⁻¹ is (3, 2): 3·1 + 2·2 = 7 in the first row of segments, 3·3 + 2·0 = 5 in the second.
	rows := [3][2]byte{{1, 3}, {2, 0}, {7, 5}}
	for role, c := range v.Bulk {
		cell := unhex(t, c.Head, c.Blocks*BlockSize)
		for row, fill := range rows[role] {
			copy(cell[BlockSize+row*SegmentSize:], bytes.Repeat([]byte{fill}, SegmentSize))
		}
		checkCellVector(t, cell, c.Disk, 2, role, BlockSize)
	}
}

func unhex(t *testing.T, s string, n int) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) > n {
		t.Fatalf("bad vector: %d bytes, %v", len(b), err)
	}
	return append(b, make([]byte, n-len(b))...)
}

func checkSuperVector(t *testing.T, b []byte) {
	t.Helper()
	le := binary.LittleEndian
	n := le.Uint32(b[12:])
	mac := hmac.New(sha256.New, testKeys{}.SuperblockKey())
	mac.Write(b[:n])
	sum := sha256.Sum256(b[:n+32])
	switch {
	case string(b[:8]) != "COFFERSB" || le.Uint16(b[8:]) != 1 || b[10] != 1 || b[11] != 0:
		t.Error("superblock: magic, version, copy or slot")
	case !bytes.Equal(mac.Sum(nil), b[n:n+32]) || !bytes.Equal(sum[:], b[n+32:n+64]):
		t.Error("superblock: MAC or checksum")
	case b[16] != 9 || b[48] != 2 || b[49] != 1 || b[50] != 3 || le.Uint64(b[56:]) != 1<<20:
		t.Error("superblock: array id, geometry or extent size")
	}
	history := 144 + 40*int(b[50])
	if e := le.Uint64(b[history:]); e != 2 || le.Uint64(b[history+32:]) != 1 {
		t.Errorf("superblock: current epoch %d, want 2 behind 1", e)
	}
	area := history + 32*int(b[51])
	if string(b[area:n]) != string(testKeys{}.Area()) {
		t.Error("superblock: key area")
	}
}

// checkHeaderVector checks what all headers have, the MAC included.
func checkHeaderVector(t *testing.T, b []byte, disk string, kind byte, role int) {
	t.Helper()
	mac := hmac.New(sha256.New, testKeys{}.CellKey())
	mac.Write(b[:176])
	switch {
	case string(b[:8]) != "COFFCELL" || b[8] != 1 || b[9] != kind || int(b[10]) != role:
		t.Errorf("cell %d: magic, version, kind or role", role)
	case !bytes.Equal(mac.Sum(nil)[:16], b[176:192]):
		t.Errorf("cell %d: MAC", role)
	case b[16] != 9 || hex.EncodeToString(b[32:48]) != disk:
		t.Errorf("cell %d: array or disk id", role)
	}
}

func vectorChecksum(b, payload []byte) uint64 {
	id := make([]byte, 48)
	copy(id, b[32:48])
	copy(id[16:], b[48:56])
	copy(id[24:], b[96:100])
	id[28], id[29] = b[9], b[10]
	copy(id[32:], b[72:88])
	return crc64nvme.Update(crc64nvme.Update(0, payload), id)
}

func checkBandVector(t *testing.T, b []byte) {
	t.Helper()
	le := binary.LittleEndian
	checkHeaderVector(t, b, hex.EncodeToString(b[32:48]), 3, 0)
	if vectorChecksum(b, b[192:]) != le.Uint64(b[112:]) {
		t.Error("band header: checksum")
	}
	slots := map[byte]bool{b[192]: true, b[200]: true, b[208]: true}
	if b[13] != 3 || len(slots) != 3 || le.Uint64(b[48:]) != 2<<32|1 {
		t.Errorf("band header: width %d, slots %v, band %x", b[13], slots, le.Uint64(b[48:]))
	}
}

func checkCellVector(t *testing.T, b []byte, disk string, kind byte, role, start int) []byte {
	t.Helper()
	le := binary.LittleEndian
	checkHeaderVector(t, b, disk, kind, role)
	if got := vectorChecksum(b, b[start:]); got != le.Uint64(b[112:]) {
		t.Errorf("cell %d: checksum %x, want %x", role, got, le.Uint64(b[112:]))
	}
	band, off := le.Uint64(b[48:]), uint64(le.Uint32(b[96:]))
	if rot := ((band ^ off*0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9) >> 33 % 3; uint64(b[14]) != rot {
		t.Errorf("cell %d: rotation %d, want %d", role, b[14], rot)
	}
	return b[start:]
}

func checkRecordsVector(t *testing.T, b []byte) {
	t.Helper()
	le := binary.LittleEndian
	metadata, _ := testKeys{}.RecordKey(le.Uint32(b[104:]))
	key, err := hkdf.Key(sha256.New, metadata, b[72:88], "coffer record block v1\x01"+string(b[48:56]), 32)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := aes.NewCipher(key)
	gcm, _ := cipher.NewGCM(block)
	aad := bytes.Join([][]byte{b[16:32], b[48:56], b[56:64], b[64:72], b[96:100]}, nil)
	nonce := make([]byte, 12)
	nonce[11] = b[10]
	n := le.Uint32(b[192:])
	p, err := gcm.Open(nil, nonce, b[208:208+n], aad)
	if err != nil {
		t.Fatal(err)
	}
	if le.Uint32(p) != 2 {
		t.Fatalf("%d records, want 2", le.Uint32(p))
	}
	p = p[8:]
	for i, want := range []string{"first", "second"} {
		seq, size, off, data := le.Uint64(p), le.Uint32(p[8:]), le.Uint32(p[12:]), le.Uint32(p[16:])
		if body := string(p[24:][:size]); body != want || seq != 1<<16|uint64(i) {
			t.Errorf("record %d: %q, sequence number %x", i, body, seq)
		}
		if i == 0 && string(b[off:off+data]) != "data of the first" {
			t.Errorf("data %q", b[off:off+data])
		}
		p = p[24+size:]
	}
}

// TestFormatBad flips each byte of the vector's headers and the superblock: the engine refuses every one.
func TestFormatBad(t *testing.T) {
	raw, err := os.ReadFile(formatFile)
	if err != nil {
		t.Fatal(err)
	}
	var v formatVector
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	super := unhex(t, v.Superblock, 64<<10)
	for i := range int(binary.LittleEndian.Uint32(super[12:])) + superTrailer {
		bad := bytes.Clone(super)
		bad[i] ^= 0x40
		if _, err := decodeSuperblock(bad, 1); err == nil {
			t.Fatalf("superblock with byte %d flipped is accepted", i)
		}
	}
	if _, err := decodeSuperblock(super, 2); !errors.Is(err, errSuperblock) {
		t.Errorf("copy 1 read as copy 2: %v", err)
	}
	for _, st := range []memberState{0, memberRetired + 1} {
		s := sampleSuper()
		s.members[2].state = st
		if _, err := decodeSuperblock(s.encode(0, testKeys{}.SuperblockKey()), 0); !errors.Is(err, errSuperblock) {
			t.Errorf("member in state %d: %v", st, err)
		}
	}
	c := v.Packed[0]
	cell := unhex(t, c.Head, c.Blocks*BlockSize)
	cd := newCodec([16]byte{9}, testKeys{}.CellKey(), crypto(), faults{})
	at := place{disk: diskID(cell[32:48]), off: 1}
	for i := range cell {
		bad := bytes.Clone(cell)
		bad[i] ^= 1
		if h, err := cd.parse(bad, at); err == nil && cd.verify(bad, &h) {
			t.Fatalf("cell with byte %d flipped is accepted", i)
		}
	}
	if _, err := cd.parse(cell, place{disk: at.disk, off: 2}); err == nil {
		t.Error("a cell read from another place is accepted")
	}
}

// writeFormat makes the vector with the engine.
func writeFormat(t *testing.T) {
	f := newFileArray(t, 3, 2, 1, 24<<20)
	a := f.open()
	p := a.log
	p.mu.Lock() // both records go into one stripe
	r := [2]*request{}
	for i, rec := range []Record{{Body: []byte("first"), Data: []byte("data of the first")}, {Body: []byte("second")}} {
		r[i] = &request{rec: rec, done: make(chan struct{}, 1)}
		p.queue = append(p.queue, r[i])
	}
	p.wake.Broadcast()
	p.mu.Unlock()
	<-r[0].done
	<-r[1].done
	w, err := a.NewStripe(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		copy(w.Slot(i), bytes.Repeat([]byte{byte(i + 1)}, SegmentSize))
	}
	w.Sealed(3)
	st, err := w.Commit(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var v formatVector
	trim := func(b []byte) string { return hex.EncodeToString(bytes.TrimRight(b, "\x00")) }
	raws, _, err := readSupers(a.group, a.meta, []int{a.slots()[0].gi})
	if err != nil {
		t.Fatal(err)
	}
	v.Superblock = trim(raws[0][1])
	b := a.bands[2<<32|1]
	block := make([]byte, BlockSize)
	a.codec.putBand(block, b, 0, a.slots()[b.members[0].slot].id)
	v.Band = trim(block)
	v.Packed = vectorCells(t, a, b, 1, true)
	v.Bulk = vectorCells(t, a, a.bands[st.Band], st.Off, false)
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(formatFile), 0o755), os.WriteFile(formatFile, append(out, '\n'), 0o644), a.Close()); err != nil {
		t.Fatal(err)
	}
}

func vectorCells(t *testing.T, a *Array, b *band, off uint32, payload bool) (cells []vecCell) {
	w, err := a.probe(t.Context(), b, off)
	if err != nil || w == nil {
		t.Fatalf("no stripe at %d: %v", off, err)
	}
	defer w.release()
	for role := range w.width() {
		c := w.cells[role]
		if !payload {
			c = c[:headerSize]
		}
		cells = append(cells, vecCell{
			Disk: hex.EncodeToString(c[32:48]), Blocks: int(w.head.blocks), Head: hex.EncodeToString(bytes.TrimRight(c, "\x00")),
		})
	}
	return cells
}
