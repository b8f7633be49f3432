package kms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sampleArea has three epochs, with a gap, and two slots, one of a kind that this release does not know.
func sampleArea() *area {
	a := &area{arrayID: testArray}
	for i := range a.cell {
		a.cell[i] = byte(i)
	}
	for i, n := range []uint32{1, 2, 7} {
		e := epochRecord{number: n, created: int64(1000 + i)}
		e.wrapped[0] = byte(n)
		a.epochs = append(a.epochs, e)
	}
	a.slots = []slotRecord{{0, "file", 5, []byte("blob of a file slot")}, {3, "kms:some-vault_2.x", 6, []byte{1}}}
	return a
}

var sampleMACKey = bytes.Repeat([]byte{9}, KeySize)

func TestAreaRoundTrip(t *testing.T) {
	want := sampleArea()
	p := want.encode(sampleMACKey)
	got, err := decodeArea(p)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(area{}, epochRecord{}, slotRecord{})); diff != "" {
		t.Error(diff)
	}
	if err := checkMAC(p, sampleMACKey); err != nil {
		t.Error(err)
	}
	if err := checkMAC(p, make([]byte, KeySize)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("MAC under another key: %v", err)
	}
}

func TestLargestAreaFits(t *testing.T) {
	a := &area{}
	for n := range uint32(MaxEpochs) {
		a.epochs = append(a.epochs, epochRecord{number: n + 1})
	}
	for n := range uint8(MaxSlots) {
		a.slots = append(a.slots, slotRecord{n, strings.Repeat("k", MaxKindLen), 0, make([]byte, MaxBlobSize)})
	}
	p := a.encode(sampleMACKey)
	if len(p) != largestArea || len(p) > MaxAreaSize {
		t.Errorf("largest area has %d bytes", len(p))
	}
	if _, err := decodeArea(p); err != nil {
		t.Error(err)
	}
}

// TestBadAreas: what a writer never makes is refused before any key is tried.
func TestBadAreas(t *testing.T) {
	const epochAt = areaHeader + WrappedSize
	slotAt := epochAt + 3*areaEpoch
	edit := func(f func(a *area)) func([]byte) []byte {
		return func([]byte) []byte { a := sampleArea(); f(a); return a.encode(sampleMACKey) }
	}
	poke := func(at int, v byte) func([]byte) []byte {
		return func(p []byte) []byte { p[at] = v; return p }
	}
	for name, c := range map[string]struct {
		make func(p []byte) []byte
		want error
	}{
		"empty":              {func(p []byte) []byte { return nil }, ErrCorrupt},
		"magic":              {poke(0, 'X'), ErrCorrupt},
		"version 0":          {poke(7, 0), ErrVersion},
		"version 2":          {poke(7, 2), ErrVersion},
		"trailing byte":      {func(p []byte) []byte { return append(p, 0) }, ErrCorrupt},
		"trailing, length":   {func(p []byte) []byte { p = append(p, 0); binary.BigEndian.PutUint32(p[8:], uint32(len(p))); return p }, ErrCorrupt},
		"reserved 12":        {poke(12, 1), ErrCorrupt},
		"reserved 34":        {poke(34, 1), ErrCorrupt},
		"reserved 35":        {poke(35, 1), ErrCorrupt},
		"no epochs":          {poke(32, 0), ErrCorrupt},
		"too many epochs":    {poke(32, MaxEpochs+1), ErrCorrupt},
		"epochs beyond end":  {poke(32, MaxEpochs), ErrCorrupt},
		"no slots":           {poke(33, 0), ErrCorrupt},
		"too many slots":     {poke(33, MaxSlots+1), ErrCorrupt},
		"slots beyond end":   {poke(33, 3), ErrCorrupt},
		"fewer slots":        {poke(33, 1), ErrCorrupt},
		"epoch 0":            {edit(func(a *area) { a.epochs[0].number = 0 }), ErrCorrupt},
		"epoch twice":        {edit(func(a *area) { a.epochs[1].number = 1 }), ErrCorrupt},
		"epochs descend":     {edit(func(a *area) { a.epochs[2].number = 1 }), ErrCorrupt},
		"reserved of epoch":  {poke(epochAt+4, 1), ErrCorrupt},
		"slot twice":         {edit(func(a *area) { a.slots[1].number = 0 }), ErrCorrupt},
		"slots descend":      {edit(func(a *area) { a.slots[0].number = 4 }), ErrCorrupt},
		"slot number":        {edit(func(a *area) { a.slots[1].number = MaxSlots }), ErrCorrupt},
		"empty kind":         {edit(func(a *area) { a.slots[0].kind = "" }), ErrCorrupt},
		"long kind":          {edit(func(a *area) { a.slots[0].kind = strings.Repeat("k", MaxKindLen+1) }), ErrCorrupt},
		"kind with newline":  {edit(func(a *area) { a.slots[0].kind = "fi\nle" }), ErrCorrupt},
		"kind in upper case": {edit(func(a *area) { a.slots[0].kind = "File" }), ErrCorrupt},
		"empty blob":         {edit(func(a *area) { a.slots[0].blob = nil }), ErrCorrupt},
		"long blob":          {edit(func(a *area) { a.slots[0].blob = make([]byte, MaxBlobSize+1) }), ErrCorrupt},
		"blob beyond end":    {poke(slotAt+2, 7), ErrCorrupt},
		"huge":               {func(p []byte) []byte { return make([]byte, MaxAreaSize+1) }, ErrCorrupt},
	} {
		if _, err := decodeArea(c.make(sampleArea().encode(sampleMACKey))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	p := sampleArea().encode(sampleMACKey)
	for n := range p {
		if _, err := decodeArea(p[:n]); err == nil {
			t.Errorf("area cut to %d bytes was read", n)
		}
	}
}

// TestTamperedArea flips each bit of each byte of a real area: none opens.
func TestTamperedArea(t *testing.T) {
	file := testFileSlot(t)
	good := testKeyring(t, file, plainSlot("other")).Area()
	for i := range good {
		for bit := range 8 {
			p := bytes.Clone(good)
			p[i] ^= 1 << bit
			k, _, err := Unlock(t.Context(), testArray, p, []Slot{file, plainSlot("other")})
			if err == nil {
				k.Close()
				t.Fatalf("area with bit %d of byte %d flipped was opened", bit, i)
			}
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
	mustUnlock(t, good, file)
}

// TestUnknownSlotKindSurvives: a release that does not know a kind keeps its slot through changes.
func TestUnknownSlotKindSurvives(t *testing.T) {
	file := testFileSlot(t)
	future := plainSlot("quantum:2031")
	old := mustUnlock(t, testKeyring(t, file, future).Area(), file)
	if _, err := old.AddEpoch(); err != nil {
		t.Fatal(err)
	}
	if err := old.RemoveSlot(0); err != nil {
		t.Fatal(err)
	}
	mustUnlock(t, old.Area(), future)
}

func FuzzDecodeArea(f *testing.F) {
	f.Add(sampleArea().encode(sampleMACKey))
	f.Add([]byte(areaMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		a, err := decodeArea(p)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		body := len(p) - areaMACSize
		if again := a.encode(sampleMACKey); !bytes.Equal(again[:body], p[:body]) {
			t.Fatal("decoding is not the inverse of encoding")
		}
		for i := range a.slots {
			_ = fmt.Sprint(a.slots[i].info())
		}
		for i := range a.epochs {
			_ = fmt.Sprint(a.epochs[i].info())
		}
	})
}
