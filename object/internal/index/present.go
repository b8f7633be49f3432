package index

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// A new object mostly has a new key, and to find that nothing is under it costs Pebble a walk through its memtables, cold in the cache:
// as much as to put the record. present answers from memory for nearly all new keys.

// Shape of the filter: blocks of one cache line, and 12 bits a key, which gives less than 1 % false positives (Putze, Sanders, Singler 2007,
// "Cache-, Hash- and Space-Efficient Bloom Filters").
const (
	blockWords   = 8
	keyBits      = 12
	probes       = 7
	firstSegment = 1 << 17 // keys in the first segment; each further one has room for twice the one before
)

// present is a set of hashes of keys that may be in the index: what it does not hold is not there. It only grows: keys that were
// removed stay, until renewKeys puts another in its place. There is one writer of new keys, and the scan of what was there when the
// set was made; reads are concurrent.
type present struct {
	seed     maphash.Seed
	ready    atomic.Bool // all keys of the index are in it
	segments atomic.Pointer[[]*segment]
	added    atomic.Int64
	removed  int64 // keys removed from the index; of the writer alone
}

// segment is a blocked Bloom filter with room for a number of keys.
type segment struct {
	words []atomic.Uint64
	mask  uint64 // blocks - 1
	room  atomic.Int64
}

func newPresent() *present {
	p := &present{seed: maphash.MakeSeed()}
	p.segments.Store(&[]*segment{newSegment(firstSegment)})
	return p
}

// newSegment returns a segment for a power of two of keys.
func newSegment(keys int) *segment {
	blocks := 1
	for blocks*blockWords*64 < keys*keyBits {
		blocks *= 2
	}
	s := &segment{words: make([]atomic.Uint64, blocks*blockWords), mask: uint64(blocks - 1)}
	s.room.Store(int64(blocks * blockWords * 64 / keyBits))
	return s
}

// bits calls f with word and bit of each probe of a hash, until it returns false.
func (s *segment) bits(h uint64, f func(w *atomic.Uint64, bit uint64) bool) {
	block := s.words[(h>>32&s.mask)*blockWords:][:blockWords]
	x, step := uint32(h), uint32(h>>17)|1
	for range probes {
		if !f(&block[x>>6&7], 1<<(x&63)) {
			return
		}
		x += step
		x ^= x >> 11
	}
}

func (s *segment) add(h uint64) {
	s.bits(h, func(w *atomic.Uint64, bit uint64) bool {
		if w.Load()&bit == 0 {
			w.Or(bit)
		}
		return true
	})
}

func (s *segment) has(h uint64) bool {
	all := true
	s.bits(h, func(w *atomic.Uint64, bit uint64) bool {
		all = w.Load()&bit != 0
		return all
	})
	return all
}

// mayHave reports whether key may be in the index.
func (p *present) mayHave(key []byte) bool {
	if !p.ready.Load() {
		return true
	}
	return p.holds(maphash.Bytes(p.seed, key))
}

// Denied reports whether the filter says that an object key is not in the index. Of a key that is, that is a fault.
func (x *Index) Denied(key []byte) bool { return !x.keys.Load().mayHave(key) }

func (p *present) holds(h uint64) bool {
	for _, s := range *p.segments.Load() {
		if s.has(h) {
			return true
		}
	}
	return false
}

// add notes a key. The writer and the scan may call it at once.
func (p *present) add(key []byte) {
	h := maphash.Bytes(p.seed, key)
	if p.holds(h) {
		return
	}
	list := p.segments.Load()
	last := (*list)[len(*list)-1]
	last.add(h)
	p.added.Add(1)
	if last.room.Add(-1) == 0 {
		grown := append((*list)[:len(*list):len(*list)], newSegment(2*len(last.words)*64/keyBits))
		p.segments.Store(&grown)
	}
}

// stale reports whether more than half of a set that takes more than the least memory are keys that were removed. One that is put and
// removed over and over counts each time, which costs a scan more than it need, but no more than one step of it for each removal.
func (p *present) stale() bool {
	n := p.added.Load()
	return p.ready.Load() && n > firstSegment && p.removed > n/2
}

// renewKeys makes another set in the background when the present one is stale, and takes it into use when it is complete. It is called
// by the writer while no batch is open: then the keys that are not yet in the index, and that the scan does not see, are all to come.
func (x *Index) renewKeys() {
	switch keys := x.keys.Load(); {
	case x.fresh == nil && keys.stale():
		x.fresh = newPresent()
		x.scanKeys(x.fresh)
	case x.fresh != nil && x.fresh.ready.Load():
		x.keys.Store(x.fresh)
		x.fresh = nil
	}
}

// addKey notes an object key that the writer puts.
func (x *Index) addKey(key []byte) {
	x.keys.Load().add(key)
	if x.fresh != nil {
		x.fresh.add(key)
	}
}

// dropKey counts an object key that the writer removes.
func (x *Index) dropKey() {
	x.keys.Load().removed++
	if x.fresh != nil {
		x.fresh.removed++
	}
}

// scanKeys fills a set with the object keys of the index, in the background.
func (x *Index) scanKeys(p *present) {
	x.calls.Go(func() {
		if err := p.scan(x.db, x.quit); err != nil {
			x.readFailed(err)
		}
	})
}

// bytes is the memory of the filter.
func (p *present) bytes() (n int64) {
	for _, s := range *p.segments.Load() {
		n += int64(len(s.words)) * 8
	}
	return n
}

// scan adds the object keys that were there when it was called, and makes the filter ready. It ends early when stop is closed.
func (p *present) scan(db *pebble.DB, stop <-chan struct{}) error {
	lower, upper := []byte{kindObject}, []byte{kindObject + 1}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		p.add(it.Key())
		if n++; n%1024 == 0 {
			select {
			case <-stop:
				return it.Close()
			default:
			}
		}
	}
	if err := it.Error(); err != nil {
		it.Close()
		return err
	}
	p.ready.Store(true)
	return it.Close()
}
