package object

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"coffer/disk"
	"coffer/object/internal/index"
)

// errAbsent: the index has no such entry.
var errAbsent = errors.New("no such entry")

func orNoSuchKey(err error) error {
	if errors.Is(err, errAbsent) {
		return ErrNoSuchKey
	}
	return err
}

// place is where the record behind an index value lies.
type place struct {
	seq  uint64
	band uint64   // that holds the record itself
	data disk.Loc // of its packed data; zero: none
}

// appendTo puts the place in front of an index value; the record's body follows.
func (p *place) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(binary.AppendUvarint(b, p.seq), p.band)
	return p.data.AppendBinary(b)
}

// splitValue takes an index value apart. The body is part of v.
func splitValue(v []byte) (p place, body []byte, err error) {
	for _, f := range []*uint64{&p.seq, &p.band} {
		x, n := binary.Uvarint(v)
		if n <= 0 {
			return p, nil, fmt.Errorf("decode index value: %w", index.ErrCorrupt)
		}
		*f, v = x, v[n:]
	}
	p.data, body, err = disk.DecodeLoc(v)
	return p, body, err
}

// lookupBuf is scratch for one look-up.
type lookupBuf struct{ key, val []byte }

var lookupBufs = sync.Pool{New: func() any { return new(lookupBuf) }}

// loadObject returns the current object of a key, errAbsent if there is none.
func (s *Store) loadObject(bucket uint64, key string, want depth) (*objectRecord, disk.Loc, error) {
	buf := lookupBufs.Get().(*lookupBuf)
	defer lookupBufs.Put(buf)
	buf.key = index.ObjectKey(buf.key[:0], bucket, key)
	p, body, err := s.load(buf)
	if err != nil {
		return nil, disk.Loc{}, err
	}
	r, err := decodeObject(body, want)
	if err == nil && (r.bucket != bucket || r.key != key) {
		err = fmt.Errorf("index entry of another object: %w", index.ErrCorrupt)
	}
	return r, p.data, s.checkIndex(err)
}

// load gets the value of buf.key. The body is valid as long as buf.
func (s *Store) load(buf *lookupBuf) (p place, body []byte, err error) {
	var ok bool
	if buf.val, ok, err = s.idx.Get(buf.key, buf.val[:0]); err != nil {
		return p, nil, s.checkIndex(err)
	}
	if !ok {
		return p, nil, errAbsent
	}
	p, body, err = splitValue(buf.val)
	return p, body, s.checkIndex(err)
}

func (s *Store) loadUpload(bucket uint64, key string, id id16) (*uploadRecord, error) {
	_, body, err := s.load(&lookupBuf{key: index.UploadKey(nil, bucket, key, id)})
	if err != nil {
		return nil, err
	}
	r, err := decodeUpload(body)
	return r, s.checkIndex(err)
}

func (s *Store) loadConfig(name string) (configRecord, error) {
	_, body, err := s.load(&lookupBuf{key: index.ConfigKey(nil, name)})
	if err != nil {
		return configRecord{}, err
	}
	r, err := decodeConfig(body)
	return r, s.checkIndex(err)
}

// scanParts calls f for an upload's parts above number after, in order, until it returns false.
func (s *Store) scanParts(id id16, after int, f func(*partRecord) bool) (err error) {
	it := s.idx.Iter(index.PartRange(id))
	defer func() { err = s.checkIndex(errors.Join(err, it.Close())) }()
	after = min(max(after, 0), MaxParts)
	for ok := it.Seek(index.PartKey(nil, id, uint16(after)+1)); ok; ok = it.Next() {
		_, body, err := splitValue(it.Value())
		if err != nil {
			return err
		}
		r, err := decodeUploadPart(body)
		if err != nil {
			return err
		}
		if !f(&r.part) {
			return nil
		}
	}
	return nil
}

// bucketEmpty reports whether a bucket has neither objects nor uploads.
func (s *Store) bucketEmpty(id uint64) (bool, error) {
	for _, bounds := range []func(uint64) ([]byte, []byte){index.ObjectRange, index.UploadRange} {
		it := s.idx.Iter(bounds(id))
		any := it.Seek(nil)
		if err := it.Close(); err != nil {
			return false, s.checkIndex(err)
		}
		if any {
			return false, nil
		}
	}
	return true, nil
}

// checkIndex makes an error of the index one that wraps ErrIndex. An index that proved corrupt is out of service from here on: one entry
// that is wrong says that others may be.
func (s *Store) checkIndex(err error) error {
	if errors.Is(err, index.ErrCorrupt) {
		s.idx.Fail(err)
	} else if !errors.Is(err, index.ErrQuarantined) {
		return err
	}
	if errors.Is(err, ErrIndex) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrIndex, err)
}

// Failed is closed when the index fails: from then on calls answer ErrIndex. The Store is to be closed and made anew, which rebuilds
// an index that proved corrupt. Failed comes after Start only.
func (s *Store) Failed() <-chan struct{} { return s.idx.Failed() }

// Healthy returns nil while the index works, and why it does not with ErrIndex.
func (s *Store) Healthy() error {
	if err := s.idx.Healthy(); err != nil {
		return s.checkIndex(err)
	}
	return nil
}
