package index

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"
)

// Iter walks records in byte order. It sees the index as it was when the iterator was made. It is not safe for concurrent use, and
// must be closed.
type Iter struct {
	x   *Index
	it  *pebble.Iterator
	err error
}

// Iter returns an iterator over keys from lower on and below upper; nil means no bound. It begins with Seek.
func (x *Index) Iter(lower, upper []byte) *Iter {
	if err := x.usable(); err != nil {
		return &Iter{x: x, err: err}
	}
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	return newIter(x, it, err)
}

func newIter(x *Index, it *pebble.Iterator, err error) *Iter {
	if err != nil {
		return &Iter{x: x, err: x.readFailed(err)}
	}
	return &Iter{x: x, it: it}
}

// Seek moves to the first record at or after key and reports whether there is one.
func (i *Iter) Seek(key []byte) bool { return i.err == nil && i.it.SeekGE(key) }

// Next moves to the next record and reports whether there is one.
func (i *Iter) Next() bool { return i.err == nil && i.it.Next() }

// Key returns the key, valid until the iterator moves.
func (i *Iter) Key() []byte { return i.it.Key() }

// Value returns the value, valid until the iterator moves. After a fault it is nil and Error says why.
func (i *Iter) Value() []byte {
	v, err := i.it.ValueAndErr()
	if err != nil && i.err == nil {
		i.err = i.x.readFailed(err)
	}
	return v
}

// Error returns what ended the iteration, nil if it was the end of the range.
func (i *Iter) Error() error {
	if i.err == nil && i.it != nil {
		if err := i.it.Error(); err != nil {
			i.err = i.x.readFailed(err)
		}
	}
	return i.err
}

// Close releases the iterator and returns its Error.
func (i *Iter) Close() error {
	err := i.Error()
	if i.it != nil {
		cerr := i.it.Close()
		if err == nil {
			err = cerr
		}
		i.it, i.err = nil, errors.Join(err, ErrClosed)
	}
	return err
}
