package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

// region is a class of bytes of a cell or a header block.
type region struct {
	name     string
	from, to int
}

// tampered is an array with known contents and the places of the cells of one packed and one bulk stripe.
type tampered struct {
	*simArray
	w            *written
	packed, bulk []cellPlace // by role, data cells before parity
	packedCell   []byte      // data cell 0
	loc          Loc         // of data in packed cell 0
	stripe       Stripe
	bandHeaders  []cellPlace // of the packed stripe's band
	good         []blockdev.SimImage
}

func newTampered(t testing.TB) *tampered {
	t.Helper()
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	x := &tampered{simArray: s, w: newWritten()}
	x.w.fill(t, a, 1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	s.state = &testState{}
	a = s.open() // nothing is in flight any more, and every cell is where it belongs
	defer func() {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		s.state = &testState{}
		x.good = s.snapshot()
	}()
	best := uint8(0)
	for _, e := range s.state.entries {
		h, err := a.anyHeader(t.Context(), a.bands[e.data.Band], e.data.Off)
		if err != nil {
			t.Fatal(err)
		}
		if e.data.Role == 0 && h.data > best {
			best, x.loc = h.data, e.data
			x.packed = cells(a, e.data.Band, e.data.Off, int(h.data+h.parity))
			x.packedCell = make([]byte, int(h.blocks)*BlockSize)
		}
	}
	s.disks[x.packed[0].slot].Peek(x.packedCell, x.packed[0].at)
	for _, st := range x.w.bulk {
		if st.Segments > x.stripe.Segments {
			x.stripe = st
		}
	}
	x.bulk = cells(a, x.stripe.Band, x.stripe.Off, int(x.stripe.Data)+a.bands[x.stripe.Band].parity)
	for _, m := range a.bands[x.loc.Band].members {
		x.bandHeaders = append(x.bandHeaders, cellPlace{m.slot, a.geo.extentOffset(m.extent)})
	}
	return x
}

// cells are the places of the first n roles of a stripe.
func cells(a *Array, band uint64, off uint32, n int) (ps []cellPlace) {
	for role := range n {
		ps = append(ps, cell(a, band, off, role))
	}
	return ps
}

// flip damages one byte of the region in each of the given cells.
func (x *tampered) flip(r region, places []cellPlace) {
	for i, p := range places {
		xor(x.disks[p.slot], p.at+int64(r.from+(i*131)%(r.to-r.from)), 0x41)
	}
}

var headerRegions = []region{
	{"magic", 0, 8}, {"version", 8, 9}, {"kind", 9, 10}, {"role", 10, 11}, {"data", 11, 12}, {"parity", 12, 13}, {"width", 13, 14},
	{"rotation", 14, 15}, {"reserved", 15, 16}, {"array", 16, 32}, {"disk", 32, 48}, {"band", 48, 56}, {"stripe", 56, 64}, {"epoch", 64, 72},
	{"nonce", 72, 88}, {"mark", 88, 96}, {"offset", 96, 100}, {"length", 100, 104}, {"key epoch", 104, 108}, {"checksum", 112, 120},
	{"time", 120, 128}, {"zeros", 128, 176}, {"mac", 176, 192},
}

// targets are the byte classes of a packed and of a bulk stripe, with cells of that class.
func (x *tampered) targets() (ts []struct {
	region
	cells []cellPlace
}) {
	add := func(kind string, r region, cells []cellPlace) {
		r.name = kind + " " + r.name
		ts = append(ts, struct {
			region
			cells []cellPlace
		}{r, cells})
	}
	data := len(x.packed) - 2
	block, err := sealedBlock(x.packedCell)
	if err != nil {
		x.t.Fatal(err)
	}
	sealed := headerSize + packedHead
	for _, r := range headerRegions {
		add("packed header", r, x.packed)
	}
	for _, r := range headerRegions[:1] {
		add("bulk header", r, x.bulk)
	}
	add("packed", region{"length word", headerSize, headerSize + 4}, x.packed[:data])
	add("packed", region{"zeros", headerSize + 4, sealed}, x.packed[:data])
	add("packed", region{"sealed records", sealed, sealed + len(block) - gcmTag}, x.packed[:1])
	add("packed", region{"tag of records", sealed + len(block) - gcmTag, sealed + len(block)}, x.packed[:1])
	add("packed", region{"data", int(x.loc.Start), int(x.loc.Start + x.loc.Len)}, x.packed[:1])
	add("packed", region{"anything", headerSize, len(x.packedCell)}, x.packed)
	add("packed", region{"parity", headerSize, len(x.packedCell)}, x.packed[data:])
	add("bulk", region{"segment", BlockSize, BlockSize + SegmentSize}, x.bulk[:x.stripe.Data])
	add("bulk", region{"last row", x.stripe.cellBytes() - SegmentSize, x.stripe.cellBytes()}, x.bulk)
	add("bulk", region{"parity", BlockSize, x.stripe.cellBytes()}, x.bulk[x.stripe.Data:])
	return ts
}

// TestTamperRepaired: damage to up to parity cells of a stripe is found, read around, and put right to the bit.
func TestTamperRepaired(t *testing.T) {
	x := newTampered(t)
	for _, target := range x.targets() {
		for n := 1; n <= min(2, len(target.cells)); n++ {
			x.restore(x.good)
			x.state = &testState{}
			hit := target.cells[len(target.cells)-n:]
			x.flip(target.region, hit)
			a := x.open()
			if err := x.w.verify(a, x.state); err != nil {
				t.Fatalf("%s of %d cells: %v", target.name, n, err)
			}
			if len(a.losses) > 0 {
				t.Fatalf("%s of %d cells: losses %+v", target.name, n, a.losses)
			}
			rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
			if err != nil || rep.Lost > 0 {
				t.Fatalf("%s of %d cells: check %+v, %v", target.name, n, rep, err)
			}
			if rep, err = a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
				t.Fatalf("%s of %d cells: check after repair %+v, %v", target.name, n, rep, err)
			}
			x.same(target.name, target.cells)
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// same compares the cells with what they held before the damage.
func (x *tampered) same(what string, places []cellPlace) {
	x.t.Helper()
	n := len(x.packedCell)
	got, want := make([]byte, n), make([]byte, n)
	for _, p := range places {
		d := x.disks[p.slot]
		d.Peek(got, p.at)
		now := d.Snapshot()
		d.Restore(x.good[p.slot])
		d.Peek(want, p.at)
		d.Restore(now)
		// The time and the mark are those of the stripe, so that even the headers are the same.
		if !bytes.Equal(got, want) {
			x.t.Fatalf("%s: repair wrote other bytes to disk %d", what, p.slot)
		}
	}
}

// TestTamperTooMuch: damage to more than parity cells of a stripe is an error for what is in it, and nothing else.
func TestTamperTooMuch(t *testing.T) {
	x := newTampered(t)
	inPacked, inBulk := map[uint64]bool{}, map[uint64]bool{}
	alone := true // the packed stripe is all that its band holds: without its headers the band is empty, and given back
	a := x.open()
	for _, e := range x.state.entries {
		switch {
		case e.data.Band != x.loc.Band:
		case e.data.Off == x.loc.Off:
			inPacked[e.seq] = true
		default:
			alone = false
		}
	}
	entries := slices.Clone(x.state.entries)
	for id, st := range x.w.bulk {
		if st == x.stripe {
			inBulk[id] = true
		}
	}
	a.Close()
	for _, test := range []struct {
		name  string
		cells []cellPlace
		r     region
		saved bool // with a state that knows the records, so that they are read by their location
		bulk  bool // records are above this package: it cannot tell a lost bulk stripe from one that never was committed
	}{
		{"packed headers", x.packed, headerRegions[0], true, false},
		{"packed payloads", x.packed, region{"", int(x.loc.Start), int(x.loc.Start + x.loc.Len)}, true, false},
		{"packed headers, replayed", x.packed, headerRegions[4], false, false},
		{"packed payloads, replayed", x.packed, region{"", headerSize, headerSize + 200}, false, false},
		{"bulk headers", x.bulk, headerRegions[22], true, true},
		{"bulk segments", x.bulk, region{"", BlockSize, BlockSize + SegmentSize}, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			x.restore(x.good)
			x.state = &testState{}
			if test.saved {
				a := x.open()
				a.Close()
			}
			x.flip(test.r, test.cells)
			if !test.saved {
				x.state = &testState{gaps: true}
			}
			a := x.open()
			defer a.Close()
			for _, e := range entries {
				var id uint64
				fmt.Sscanf(e.body, "rec %d", &id)
				p, err := readLoc(a, e.data, id)
				switch {
				case err == nil && !bytes.Equal(p, payload(id, x.w.records[id])):
					t.Fatalf("record %d: wrong bytes", id)
				case inPacked[e.seq] && (errors.Is(err, ErrCorrupt) || alone && errors.Is(err, ErrGone)):
				case err != nil:
					t.Errorf("record %d: %v", id, err)
				}
			}
			for id, st := range x.w.bulk {
				got, err := readSegments(a, st, 0, int(st.Segments), id)
				if err != nil && (!inBulk[id] || !errors.Is(err, ErrCorrupt)) {
					t.Errorf("stripe %d: %v", id, err)
				}
				for i := range got {
					if !bytes.Equal(got[i], payload(id+uint64(i), SegmentSize)) {
						t.Fatalf("stripe %d: wrong bytes", id)
					}
				}
			}
			rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
			if err != nil || rep.OK() != test.bulk {
				t.Errorf("check: %+v, %v", rep, err)
			}
			if !test.saved && len(a.Status().Losses) == 0 {
				t.Errorf("lost stripe not reported")
			}
			if !test.saved && len(x.state.entries) != len(entries)-len(inPacked) {
				t.Errorf("%d entries replayed of %d, %d of them in the lost stripe; %+v", len(x.state.entries), len(entries), len(inPacked), a.Status().Losses)
			}
		})
	}
}

// TestTamperBandHeader: one header names a band, and a check puts the others back.
func TestTamperBandHeader(t *testing.T) {
	x := newTampered(t)
	for n := 1; n <= len(x.bandHeaders); n++ {
		x.restore(x.good)
		x.state = &testState{gaps: true}
		x.flip(region{"band header", 20, 230}, x.bandHeaders[:n])
		a := x.open()
		if n == len(x.bandHeaders) {
			if len(a.Status().Losses) == 0 {
				t.Error("lost band not reported")
			}
			a.Close()
			continue
		}
		if err := x.w.verify(a, x.state); err != nil {
			t.Fatalf("%d band headers: %v", n, err)
		}
		rep, err := a.Check(t.Context(), CheckOptions{Repair: true})
		if err != nil || rep.Bad != n || rep.Repaired != n {
			t.Errorf("%d band headers: check %+v, %v", n, rep, err)
		}
		if rep, err = a.Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
			t.Errorf("%d band headers: check after repair %+v, %v", n, rep, err)
		}
		a.Close()
		x.state = &testState{gaps: true}
		x.flip(region{"band header", 20, 230}, x.bandHeaders[n:]) // those that were put back must do
		a = x.open()
		if err := x.w.verify(a, x.state); err != nil {
			t.Errorf("after repair of %d band headers: %v", n, err)
		}
		a.Close()
	}
}

// TestFirstStripeElsewhere: the first stripe of a band may lie only on disks whose band headers are damaged.
func TestFirstStripeElsewhere(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	w := newWritten()
	put := func() uint64 { // one record to a stripe: three cells
		if err := w.put(a, uint64(len(w.records)+1), 3000); err != nil {
			t.Fatal(err)
		}
		return s.state.entries[len(s.state.entries)-1].data.Band
	}
	first := put()
	second := put()
	for second == first {
		second = put()
	}
	for range 3 {
		put()
	}
	band := a.bands[second]
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for role := range 3 {
		m := band.members[(rotation(band.num, 1, len(band.members))+role)%len(band.members)]
		xor(s.disks[m.slot], a.geo.extentOffset(m.extent)+20, 0x41)
	}
	s.state = &testState{gaps: true}
	a = s.open()
	defer a.Close()
	if err := w.verify(a, s.state); err != nil || len(a.Status().Losses) > 0 {
		t.Errorf("%v; losses %+v", err, a.Status().Losses)
	}
}

// TestTamperWhileOpen: a read that meets damage repairs it in the background.
func TestTamperWhileOpen(t *testing.T) {
	x := newTampered(t)
	a := x.open()
	defer a.Close()
	if err := x.w.verify(a, x.state); err != nil {
		t.Fatal(err)
	}
	x.flip(region{"", int(x.loc.Start), int(x.loc.Start + x.loc.Len)}, x.packed[:1])
	x.flip(region{"", BlockSize, BlockSize + SegmentSize}, []cellPlace{x.bulk[0], x.bulk[x.stripe.Data]})
	if err := x.w.verify(a, x.state); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		rep, err := a.Check(context.Background(), CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if rep.OK() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not repaired: %+v", rep)
		}
	}
	if n := a.Status().Repairs; n != 3 {
		t.Errorf("%d cells rewritten, want 3", n)
	}
}

// TestTamperSuperblock: two good copies speak for a disk; with fewer it is missing, and the array bears that of parity disks.
func TestTamperSuperblock(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	w := newWritten()
	a := s.open()
	w.fill(t, a, 1)
	a.Close()
	good := s.snapshot()
	n := len(encodedSuper(s.disks[0]))
	area := len(testKeys{}.Area())
	regions := []region{
		{"magic", 0, 8}, {"version", 8, 10}, {"copy number", 10, 11}, {"slot", 11, 12}, {"length", 12, 16}, {"array", 16, 32}, {"disk", 32, 48},
		{"data", 48, 49}, {"parity", 49, 50}, {"members", 50, 51}, {"epochs", 51, 52}, {"area length", 52, 56}, {"extent size", 56, 64},
		{"disk size", 64, 72}, {"created", 72, 80}, {"reserved", 80, superFixed}, {"member table", superFixed, superFixed + 6*memberSize},
		{"history", superFixed + 6*memberSize, n - superTrailer - area}, {"key area", n - superTrailer - area, n - superTrailer},
		{"mac", n - superTrailer, n - 32}, {"checksum", n - 32, n},
	}
	for _, r := range regions {
		for copies := 1; copies <= superCopies; copies++ {
			for _, disks := range []int{2, 3} {
				if disks == 3 && copies < 3 {
					continue
				}
				s.restore(good)
				s.state = &testState{}
				for d := range disks {
					for c := range copies {
						xor(s.disks[d], int64(c)*superStride+int64(r.from+(7*c)%(r.to-r.from)), 0x10)
					}
				}
				s.checkSuper(w, r.name, copies, disks)
			}
		}
	}
}

// checkSuper opens an array whose first disks have so many damaged copies of the superblock.
func (s *simArray) checkSuper(w *written, what string, copies, disks int) {
	s.t.Helper()
	a, err := s.tryOpen()
	if disks > 2 {
		if !errors.Is(err, ErrMembership) {
			s.t.Errorf("%s of %d copies on %d disks: %v", what, copies, disks, err)
		}
		return
	}
	if err != nil {
		s.t.Fatalf("%s of %d copies: %v", what, copies, err)
	}
	defer a.Close()
	want := DiskHealthy
	if copies > 2 {
		want = DiskMissing
	}
	if d := a.Status().Disks; d[0].State != want || d[1].State != want || d[2].State != DiskHealthy {
		s.t.Errorf("%s of %d copies: %s, %s, %s", what, copies, d[0].State, d[1].State, d[2].State)
	}
	if err := w.verify(a, s.state); err != nil {
		s.t.Errorf("%s of %d copies: %v", what, copies, err)
	}
	if copies > 2 {
		return
	}
	for c := range superCopies {
		b := make([]byte, superSize)
		s.disks[0].Peek(b, int64(c)*superStride)
		if _, err := decodeSuperblock(b, c); err != nil {
			s.t.Errorf("%s of %d copies: copy %d not healed: %v", what, copies, c, err)
		}
	}
}

// encodedSuper is the first copy of a disk's superblock.
func encodedSuper(d *blockdev.SimDisk) []byte {
	b := make([]byte, superSize)
	d.Peek(b, 0)
	return trimSuper(b)
}

// TestTamperForgedSuperblock: copies with a right checksum and a wrong MAC count for nothing.
func TestTamperForgedSuperblock(t *testing.T) {
	s := newSimArray(t, 4, 2, 2, 12)
	w := newWritten()
	a := s.open()
	w.fill(t, a, 1)
	a.Close()
	s.state = &testState{}
	for c := range superCopies {
		b := make([]byte, superSize)
		s.disks[0].Peek(b, int64(c)*superStride)
		sb, err := decodeSuperblock(b, c)
		if err != nil {
			t.Fatal(err)
		}
		sb.history[0].num += 1000
		s.disks[0].Overwrite(int64(c)*superStride, sb.encode(c, bytes.Repeat([]byte{0x66}, 32)))
	}
	a = s.open()
	defer a.Close()
	if d := a.Status().Disks[0]; d.State != DiskMissing {
		t.Errorf("forged disk is %s", d.State)
	}
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
}

// TestTamperFirstOfBand: a band whose first stripe is lost keeps the others.
func TestTamperFirstOfBand(t *testing.T) {
	s := newSimArray(t, 3, 2, 1, 12)
	a := s.open()
	w := newWritten()
	var lost testEntry
	for id := uint64(1); id <= 12; id++ {
		if err := w.put(a, id, 150<<10); err != nil {
			t.Fatal(err)
		}
		e := s.state.entries[id-1]
		if e.data.Off == 1 && id > 1 {
			lost = e
		}
	}
	if lost.seq == 0 {
		t.Fatal("the second band was not reached")
	}
	hit := cells(a, lost.data.Band, lost.data.Off, 2)
	a.Close()
	s.state = &testState{gaps: true}
	for _, c := range hit {
		xor(s.disks[c.slot], c.at+20, 1)
	}
	a = s.open()
	defer a.Close()
	n := lost.seq >> seqBits
	if l := a.Status().Losses; len(l) != 1 || l[0].From != n || l[0].To != n {
		t.Errorf("losses %+v, want stripe %d", l, n)
	}
	var id uint64
	fmt.Sscanf(lost.body, "rec %d", &id)
	delete(w.records, id)
	if err := w.verify(a, s.state); err != nil {
		t.Error(err)
	}
}

// TestTamperLastStripe: after a clean close even the very last stripe, which no later cell speaks of, is known to have been
// acknowledged, so that its loss is reported and not taken for the end of the log.
func TestTamperLastStripe(t *testing.T) {
	s := newSimArray(t, 4, 2, 2, 16)
	a := s.open()
	c := newWritten()
	for id := range uint64(3) {
		if err := c.put(a, id+1, 100); err != nil {
			t.Fatal(err)
		}
	}
	last := s.state.entries[2].data
	var places []cellPlace
	for role := range 3 { // one data cell and two parity cells
		places = append(places, cell(a, last.Band, last.Off, role))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range places {
		xor(s.disks[p.slot], p.at+headerSize+1, 1)
	}
	s.state = &testState{}
	a = s.open()
	defer a.Close()
	if l := a.Status().Losses; len(l) != 1 || l[0].From != 3 || l[0].To != 3 {
		t.Errorf("losses %+v, want stripe 3", l)
	}
	if len(s.state.entries) != 2 {
		t.Errorf("%d records, want the 2 that are whole", len(s.state.entries))
	}
}
