package main

import (
	"errors"
	"fmt"
	"slices"
)

// This file is sections Packed payload, and Reading the packed stream, of docs/format.md.

// stripes walks a band and returns the stripes that stand.
func (a *array) stripes(b *band) (out []*stripe) {
	bound := 8481 // how many blocks behind a hole something can still lie
	if b.packed {
		bound = 1028
	}
	for off, hole := uint32(1), 0; off < uint32(a.head.extent/block) && hole <= bound; {
		s := a.stripeAt(b, off)
		if s == nil || s.data == nil {
			off, hole = off+1, hole+1
			continue
		}
		out, off, hole = append(out, s), off+s.blocks, 0
	}
	return out
}

// packedStream returns the stripes of the packed stream in order, and the runs that are missing although they were acknowledged.
func (a *array) packedStream() (stand []*stripe, lost [][2]uint64, err error) {
	var all []*stripe
	firsts := map[uint64]uint64{} // by epoch: the number its packed bands begin with
	for _, b := range a.bands {
		if !b.packed {
			continue
		}
		s := a.stripes(b)
		if len(s) > 0 && (firsts[b.epoch] == 0 || s[0].stripe < firsts[b.epoch]) {
			firsts[b.epoch] = s[0].stripe
		}
		all = append(all, s...)
	}
	mark := a.mark
	for _, h := range a.head.history {
		mark = max(mark, h.cut)
	}
	if a.head.clean {
		mark = max(mark, a.head.last)
	}
	all = slices.DeleteFunc(all, func(s *stripe) bool {
		for _, h := range a.head.history {
			if h.num > s.epoch && s.stripe > h.cut {
				return true
			}
		}
		for e, first := range firsts {
			if e > s.epoch && s.stripe >= first {
				return true
			}
		}
		return false
	})
	slices.SortStableFunc(all, func(x, y *stripe) int { return int(int64(x.stripe - y.stripe)) })
	next := uint64(1)
	for _, s := range all {
		if s.stripe < next {
			return nil, nil, fmt.Errorf("packed stripe %d stands twice", s.stripe)
		}
		if s.stripe > next {
			if next > mark {
				return stand, lost, nil // the stream ended: what lies behind was never acknowledged
			}
			lost = append(lost, [2]uint64{next, s.stripe - 1})
		}
		stand, next = append(stand, s), s.stripe+1
	}
	if next <= mark {
		lost = append(lost, [2]uint64{next, mark})
	}
	return stand, lost, nil
}

// entry is a record and where its data lies.
type entry struct {
	seq  uint64
	body []byte
	at   location
}

type location struct {
	stripe *stripe
	role   int
	data   []byte // nil: the record has none
}

// records opens the record blocks of a packed stripe.
func (a *array) records(s *stripe) (out []entry, err error) {
	key, err := a.keys.ofEpoch(s.keyEpoch, "coffer record key v1")
	if err != nil {
		return nil, err
	}
	aead := gcm(derive(key, s.nonce[:], "coffer record block v1"+string(rune(kindPacked))+string(le64(s.band.num))))
	aad := join(a.head.array[:], le64(s.band.num), le64(s.stripe), le64(s.epoch), le32(s.offset))
	bad := fmt.Errorf("packed stripe %d: record block is malformed", s.stripe)
	for role, p := range s.data {
		n := uint64(le.Uint32(p))
		if len(p) < 16 || n < 16+8 || 16+n > uint64(len(p)) {
			return nil, bad
		}
		nonce := make([]byte, 12)
		nonce[11] = byte(role)
		r, err := aead.Open(nil, nonce, p[16:16+n], aad)
		if err != nil {
			return nil, fmt.Errorf("packed stripe %d: record block does not open", s.stripe)
		}
		count := le.Uint32(r)
		r = r[8:]
		for range count {
			if len(r) < 24 || uint64(len(r)-24) < uint64(le.Uint32(r[8:])) {
				return nil, bad
			}
			e := entry{seq: le.Uint64(r), at: location{stripe: s, role: role}}
			length, off, size := le.Uint32(r[8:]), le.Uint32(r[12:]), le.Uint32(r[16:])
			e.body, r = r[24:24+length], r[24+length:]
			if size > 0 {
				cell := uint64(len(p) + s.payloadAt) // offsets count from the cell's first byte
				if uint64(off) < uint64(s.payloadAt) || uint64(off)+uint64(size) > cell {
					return nil, bad
				}
				e.at.data = p[int(off)-s.payloadAt:][:size]
			}
			out = append(out, e)
		}
		if len(r) != 0 {
			return nil, bad
		}
	}
	return out, nil
}

// state is what the records add up to.
type state struct {
	buckets map[uint64]*bucket
	objects map[string]*object // by bucket id and key
	uploads map[string]*upload // by upload id
	seqs    map[string]uint64  // of the record that decided last on a name
	lost    [][2]uint64        // but for what compaction freed
	freed   [][2]uint64
	kinds   map[byte]int // how many records of each kind were read
}

// replay applies all records in log order.
func (a *array) replay() (*state, error) {
	stand, lost, err := a.packedStream()
	if err != nil {
		return nil, err
	}
	x := &state{map[uint64]*bucket{}, map[string]*object{}, map[string]*upload{}, map[string]uint64{}, lost, nil, map[byte]int{}}
	for _, s := range stand {
		entries, err := a.records(s)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if err := x.apply(e); err != nil {
				return nil, fmt.Errorf("record %d: %w", e.seq, err)
			}
		}
	}
	x.lost = without(x.lost, x.freed)
	return x, nil
}

// without takes ascending runs away from others.
func without(runs, gone [][2]uint64) (left [][2]uint64) {
	for _, r := range runs {
		for _, g := range gone {
			if g[1] < r[0] || g[0] > r[1] {
				continue
			}
			if g[0] > r[0] {
				left = append(left, [2]uint64{r[0], g[0] - 1})
			}
			r[0] = g[1] + 1
		}
		if r[0] <= r[1] {
			left = append(left, r)
		}
	}
	return left
}

// parseFreed reads the value of the record disk/freed.
func parseFreed(value []byte) (runs [][2]uint64, err error) {
	f := &fields{p: value}
	for len(f.p) > 0 && !f.bad {
		runs = append(runs, [2]uint64{f.uint(), f.uint()})
	}
	if f.bad {
		return nil, errRecord
	}
	return runs, nil
}

// decides reports whether a record with this number has a say over the name.
func (x *state) decides(name string, seq uint64) bool {
	if seq < x.seqs[name] {
		return false
	}
	x.seqs[name] = seq
	return true
}

func (x *state) apply(e entry) error {
	rec, err := parseRecord(e.body)
	if err != nil {
		return err
	}
	x.kinds[e.body[1]]++
	switch r := rec.(type) {
	case *bucket:
		if x.decides("b"+r.name, e.seq) {
			x.buckets[r.id] = r
		}
	case *gone:
		switch {
		case r.kind == recBucketDelete && x.decides("b"+r.key, e.seq):
			delete(x.buckets, r.bucket)
		case r.kind == recTombstone && x.decides(objectName(r.bucket, r.key), e.seq):
			delete(x.objects, objectName(r.bucket, r.key))
		case r.kind == recAbort && x.decides("u"+string(r.version[:]), e.seq):
			delete(x.uploads, string(r.version[:]))
		}
	case *object:
		r.inline = e.at.data
		if r.kind == recComplete {
			x.decides("u"+string(r.version[:]), e.seq)
			delete(x.uploads, string(r.version[:]))
		}
		if x.decides(objectName(r.bucket, r.key), e.seq) {
			x.objects[objectName(r.bucket, r.key)] = r
		}
	case *upload:
		if x.decides("u"+string(r.id[:]), e.seq) {
			x.uploads[string(r.id[:])] = r
		}
	case *uploadPart:
		u := x.uploads[string(r.upload[:])]
		if u != nil && x.decides(fmt.Sprintf("p%s%d", r.upload, r.part.number), e.seq) {
			u.parts[r.part.number] = r.part
		}
	case *config:
		if r.name == "disk/freed" && x.decides("c"+r.name, e.seq) {
			if x.freed, err = parseFreed(r.value); err != nil {
				return err
			}
		}
	default:
		return errors.New("unknown record")
	}
	return nil
}

func objectName(bucket uint64, key string) string { return "o" + string(num64(bucket)) + key }

// list returns the objects in order of bucket and key.
func (x *state) list() []*object {
	var out []*object
	for _, o := range x.objects {
		if x.buckets[o.bucket] != nil {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(p, q *object) int {
		if b := x.buckets; b[p.bucket].name != b[q.bucket].name {
			return cmpString(b[p.bucket].name, b[q.bucket].name)
		}
		return cmpString(p.key, q.key)
	})
	return out
}
