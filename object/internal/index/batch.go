package index

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Batch collects what one step of the log changes, and applies it at once. It is not safe for concurrent use. It ends with Commit or
// Discard and must not be used after either.
type Batch struct {
	x    *Index
	b    *pebble.Batch
	live map[uint64]int64 // change per band; dropBand: forget it
	err  error            // the first of Set or Delete
}

// dropBand marks a band in Batch.live that DropLive was called for.
const dropBand = -1 << 63

// NewBatch returns an empty batch. The one before has ended.
func (x *Index) NewBatch() *Batch {
	b := x.pool.Get().(*Batch)
	b.err = x.usable()
	if b.err == nil {
		x.renewKeys()
		b.b = x.db.NewIndexedBatch()
	}
	return b
}

// Set puts a record. An error is kept for Commit.
func (b *Batch) Set(key, value []byte) {
	if key[0] == kindObject {
		b.x.addKey(key)
	}
	if b.err == nil {
		b.err = b.b.Set(key, value, nil)
	}
}

// Delete removes a record, which need not exist. An error is kept for Commit.
func (b *Batch) Delete(key []byte) {
	if key[0] == kindObject {
		b.x.dropKey()
	}
	if b.err == nil {
		b.err = b.b.Delete(key, nil)
	}
}

// Get is Index.Get as it will be after this batch.
func (b *Batch) Get(key, dst []byte) (val []byte, ok bool, err error) {
	if b.err != nil {
		return dst, false, b.err
	}
	if key[0] == kindObject && !b.x.keys.Load().mayHave(key) {
		return dst, false, nil
	}
	v, closer, err := b.b.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, false, nil
	}
	if err != nil {
		return dst, false, b.x.readFailed(err)
	}
	dst = append(dst, v...)
	return dst, true, closer.Close()
}

// Iter is Index.Iter over what will be there after this batch. It does not see changes made after the call, and is closed before
// the batch ends.
func (b *Batch) Iter(lower, upper []byte) *Iter {
	if b.err != nil {
		return &Iter{x: b.x, err: b.err}
	}
	it, err := b.b.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	return newIter(b.x, it, err)
}

// AddLive changes the count of live bytes of a band.
func (b *Batch) AddLive(band uint64, delta int64) { b.live[band] += delta }

// DropLive forgets the count of a band that was freed.
func (b *Batch) DropLive(band uint64) { b.live[band] = dropBand }

// SetPosition puts the position of the log that the index has after this batch.
func (b *Batch) SetPosition(p []byte) { b.Set(positionKey, p) }

// Discard ends the batch without effect.
func (b *Batch) Discard() {
	if b.b != nil {
		b.b.Close() // returns no error for a batch that was not committed
	}
	b.release()
}

func (b *Batch) release() {
	b.b, b.err = nil, nil
	clear(b.live)
	b.x.pool.Put(b)
}

// Commit applies the batch: readers see all of it when Commit returns. It is not durable before the next Checkpoint. A count of live
// bytes that would fall below zero shows that the index does not match the log; it is quarantined as corrupt. After an error
// nothing of the batch is visible, except when the index was quarantined meanwhile.
func (b *Batch) Commit() error {
	x := b.x
	x.commitMu.Lock()
	defer x.commitMu.Unlock()
	if b.err == nil {
		b.err = x.usable()
	}
	if b.err == nil {
		b.err = b.setLive()
	}
	if err := b.err; err != nil {
		b.Discard()
		return fmt.Errorf("commit batch: %w", err)
	}
	size := int64(b.b.Len())
	if err := x.guard(func() error { return x.db.Apply(b.b, pebble.NoSync) }); err != nil {
		// Pebble may still use the batch: it is left to the collector.
		return fmt.Errorf("commit batch: %w", classify(err))
	}
	x.dirty.Add(size)
	x.mu.Lock()
	for band, v := range b.live {
		if v == dropBand {
			delete(x.live, band)
		} else {
			x.live[band] = v
		}
	}
	x.mu.Unlock()
	err := b.b.Close()
	b.release()
	return err
}

// setLive turns the changes of the batch into new counts and puts their records. Only Commit changes x.live, under commitMu.
func (b *Batch) setLive() error {
	var key [9]byte
	var value [8]byte
	for band, delta := range b.live {
		k := liveKey(key[:0], band)
		if delta == dropBand {
			b.Delete(k)
			continue
		}
		v := b.x.live[band] + delta
		if v < 0 {
			err := fmt.Errorf("count live bytes: band %d falls to %d: %w", band, v, ErrCorrupt)
			b.x.fail(err)
			return err
		}
		b.live[band] = v
		binary.BigEndian.PutUint64(value[:], uint64(v))
		b.Set(k, value[:])
	}
	return b.err
}
