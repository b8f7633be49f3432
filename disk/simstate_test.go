package disk

import (
	"encoding/binary"
	"maps"
	"slices"
)

// simState is what a simulated caller knows of its records: those that are visible, and those that made others vanish.
type simState struct {
	pos   Position
	recs  map[uint64]simRecord // by sequence number
	freed []StripeRange
}

type simRecord struct {
	seq  uint64
	kind simKind
	id   uint64
	of   uint64 // simKill: sequence number of the record that vanishes
	body string
	band uint64 // of the record itself
	data Loc
	bulk Stripe
}

// simKind is the first byte of a record's body.
type simKind byte

const (
	simPut   simKind = 'p' // with packed data
	simBulk  simKind = 'b' // names a bulk stripe
	simKill  simKind = 'k'
	simFreed simKind = 'f' // lists the packed stripes freed so far
)

func newSimState() *simState { return &simState{recs: map[uint64]simRecord{}} }

// clone is what a checkpoint keeps.
func (s *simState) clone() *simState {
	return &simState{pos: s.pos, recs: maps.Clone(s.recs), freed: slices.Clone(s.freed)}
}

func (s *simState) Position() (Position, error)   { return s.pos, nil }
func (s *simState) Freed() ([]StripeRange, error) { return s.freed, nil }

func (s *simState) Reset() error {
	*s = *newSimState()
	return nil
}

// simBody encodes a record.
func simBody(k simKind, id uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{byte(k)}, id)
}

func parseSimRecord(e Entry, band uint64) simRecord {
	r := simRecord{seq: e.Seq, kind: simKind(e.Body[0]), id: binary.LittleEndian.Uint64(e.Body[1:]), body: string(e.Body), band: band, data: e.Data}
	switch r.kind {
	case simBulk:
		r.bulk, _, _ = DecodeStripe(e.Body[9:])
	case simKill:
		r.of = binary.LittleEndian.Uint64(e.Body[9:])
	}
	return r
}

// Apply is that of the object store in small: the later of equal numbers wins, and a kill outlives what it kills.
func (s *simState) Apply(p Position, entries []Entry) error {
	s.pos = p
	for _, e := range entries {
		r := parseSimRecord(e, p.Band)
		switch r.kind {
		case simKill:
			delete(s.recs, r.of)
		case simFreed:
			s.freed = decodeRanges(e.Body[9:])
			for seq, o := range s.recs {
				if o.kind == simFreed && seq < r.seq {
					delete(s.recs, seq)
				}
			}
		}
		s.recs[r.seq] = r
	}
	return nil
}

func encodeRanges(b []byte, ranges []StripeRange) []byte {
	for _, r := range ranges {
		b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, r.From), r.To)
	}
	return b
}

func decodeRanges(b []byte) (ranges []StripeRange) {
	for ; len(b) >= 16; b = b[16:] {
		ranges = append(ranges, StripeRange{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return ranges
}

// sorted lists the records by number.
func (s *simState) sorted() []simRecord {
	return slices.SortedFunc(maps.Values(s.recs), func(x, y simRecord) int {
		if x.seq < y.seq {
			return -1
		}
		return 1
	})
}

// byID finds records by what they were given, whatever their numbers.
func (s *simState) byID() map[uint64]simRecord {
	m := map[uint64]simRecord{}
	for _, r := range s.recs {
		if r.kind != simFreed {
			m[r.id] = r
		}
	}
	return m
}

// in reports whether the record keeps the band alive.
func (r *simRecord) in(band uint64) bool {
	return r.band == band || r.data.Band == band || r.kind == simBulk && r.bulk.Band == band
}

// dropShadows forgets kills whose victims can no longer come back.
func (s *simState) dropShadows(horizon uint64) {
	for seq, r := range s.recs {
		if r.kind == simKill && seq < horizon {
			delete(s.recs, seq)
		}
	}
}
