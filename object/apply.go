package object

import (
	"encoding/binary"
	"errors"
	"fmt"

	"coffer/disk"
	"coffer/object/internal/index"
)

// Live bytes of a band are what entries of the index refer to in it: of a packed band the records themselves and packed data, of a bulk
// band what its stripes take of each extent. So they are a function of the index's content, whatever the order or number of times
// records were applied. The same holds for the references that tell who needs a bulk band.

// shadowBand is where the live bytes of all shadows are counted once more. No band has this number.
const shadowBand = 1<<64 - 1

// forBands calls f for the bytes that an entry keeps alive.
func (p *place) forBands(body []byte, c *content, f func(band uint64, bytes int64)) {
	f(p.band, int64(len(body)))
	if !p.data.IsZero() {
		f(p.data.Band, int64(p.data.Len))
	}
	if c != nil {
		c.forBands(f)
	}
}

func (c *content) forBands(f func(band uint64, bytes int64)) {
	if c.manifest != nil {
		for _, b := range c.manifest.bands {
			f(b.band, b.bytes)
		}
		return
	}
	c.single.forBands(f)
	for i := range c.parts {
		c.parts[i].forBands(f)
	}
}

func (s *stream) forBands(f func(band uint64, bytes int64)) {
	for _, st := range s.stripes {
		f(st.Band, st.Footprint())
	}
}

// bands sums a content up by band.
func (c *content) bands() (sum []bandBytes) {
	c.forBands(func(band uint64, n int64) { sum = addBand(sum, band, n) })
	return sum
}

// addBand adds to a list in order of first use. Neighbouring stripes mostly share a band, so the search starts at the end.
func addBand(list []bandBytes, band uint64, n int64) []bandBytes {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].band == band {
			list[i].bytes += n
			return list
		}
	}
	return append(list, bandBytes{band, n})
}

// contentOf returns the content of an index value's body, for space accounting.
func contentOf(body []byte) (*content, error) {
	k, err := kindOf(body)
	if err != nil {
		return nil, err
	}
	switch k {
	case kindObject, kindComplete:
		r, err := decodeObject(body, depthContent)
		if err != nil {
			return nil, err
		}
		return &r.content, nil
	case kindPart:
		r, err := decodeUploadPart(body)
		if err != nil {
			return nil, err
		}
		return &content{single: r.part.stream}, nil
	}
	return nil, nil
}

// applier puts the records of one stripe into a batch.
type applier struct {
	batch    *index.Batch
	band     uint64 // of the stripe
	key, val []byte // scratch: of the index entry that a record concerns
	value    []byte // scratch: of the one that takes its place
	body     []byte // scratch: of a shadow
	bytes    int64
	moved    bool // a copy was among the records
	// buckets are changes to the bucket table, made once the batch is in.
	buckets []bucketChange
}

type bucketChange struct {
	put    *bucketRecord // nil: remove
	remove string
}

// Position returns the last stripe whose records the index holds durably. A corrupt index holds none: what opens the array then calls
// Reset and replays the whole log.
func (s *Store) Position() (disk.Position, error) {
	p, err := s.position()
	if errors.Is(err, index.ErrCorrupt) {
		s.logger.Warn("index corrupt: it is rebuilt from the log", "error", err)
		return disk.Position{}, nil
	}
	return p, s.checkIndex(err)
}

func (s *Store) position() (disk.Position, error) {
	b, err := s.idx.DurablePosition()
	if err != nil || len(b) == 0 {
		return disk.Position{}, err
	}
	return decodePosition(b)
}

// positionSize is the size of an encoded position: stripe 8, band 8, offset 4, nonce 16, big-endian.
const positionSize = 36

func appendPosition(b []byte, p *disk.Position) []byte {
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, p.Stripe), p.Band)
	return append(binary.BigEndian.AppendUint32(b, p.Off), p.Nonce[:]...)
}

func decodePosition(b []byte) (disk.Position, error) {
	if len(b) != positionSize {
		return disk.Position{}, fmt.Errorf("decode position of %d bytes: %w", len(b), index.ErrCorrupt)
	}
	return disk.Position{Stripe: binary.BigEndian.Uint64(b), Band: binary.BigEndian.Uint64(b[8:]),
		Off: binary.BigEndian.Uint32(b[16:]), Nonce: [16]byte(b[20:])}, nil
}

// Apply takes the records of one packed stripe into the index. It is the only writer of the index. Records may come live, in a
// replay, or again: the higher sequence number of a key wins. When it fails with ErrIndex, in a replay as well, the Store is to be made
// anew.
func (s *Store) Apply(p disk.Position, entries []disk.Entry) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	a := &s.applier
	a.batch, a.band, a.bytes, a.moved, a.buckets = s.idx.NewBatch(), p.Band, 0, false, a.buckets[:0]
	for i := range entries {
		if err := a.apply(&entries[i]); err != nil {
			a.batch.Discard()
			return fmt.Errorf("apply record %d: %w", entries[i].Seq, s.checkIndex(err))
		}
	}
	a.value = appendPosition(a.value[:0], &p)
	a.batch.SetPosition(a.value)
	if err := a.batch.Commit(); err != nil {
		return fmt.Errorf("apply stripe %d: %w", p.Stripe, s.checkIndex(err))
	}
	s.written.stripe(p.Band, p.Off, a.bytes, a.moved)
	for _, c := range a.buckets {
		if c.put != nil {
			s.buckets.put(c.put)
		} else {
			s.buckets.remove(c.remove)
		}
	}
	if s.idx.BytesSinceCheckpoint() >= s.opt.CheckpointBytes {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// Reset drops the whole index: a replay of the log follows. It comes before Start only.
func (s *Store) Reset() error {
	if err := s.idx.Close(); err != nil {
		s.logger.Warn("index to be dropped does not close", "error", err)
	}
	if err := RebuildIndex(s.opt.IndexDir); err != nil {
		return err
	}
	return s.openIndex()
}

func (a *applier) apply(e *disk.Entry) error {
	a.bytes += int64(len(e.Body)) + int64(e.Data.Len)
	k, err := kindOf(e.Body)
	if err != nil {
		return err
	}
	switch k {
	case kindObject, kindComplete:
		return a.object(e, k)
	case kindTombstone:
		return a.tombstone(e)
	case kindUpload:
		return a.upload(e)
	case kindAbort:
		return a.abort(e)
	case kindPart:
		return a.part(e)
	case kindBucket:
		return a.bucket(e)
	case kindBucketDelete:
		return a.bucketDelete(e)
	case kindConfig:
		return a.config(e)
	}
	return errVersion
}

// account adds or takes away what the value of an index entry keeps alive, and the references that it makes.
func account(b *index.Batch, key, value []byte, sign int64) error {
	p, body, err := splitValue(value)
	if err != nil {
		return err
	}
	var c *content
	if p.data.IsZero() { // what is packed with its record has no stripes
		if c, err = contentOf(body); err != nil {
			return err
		}
	}
	p.forBands(body, c, func(band uint64, n int64) { b.AddLive(band, sign*n) })
	if index.KindOf(key) == index.KindShadow {
		b.AddLive(shadowBand, sign*int64(len(body)))
	}
	if c == nil {
		return nil
	}
	for _, x := range c.bands() {
		if ref := index.RefKey(nil, x.band, key); sign > 0 {
			b.Set(ref, nil)
		} else {
			b.Delete(ref)
		}
	}
	return nil
}

// supersedes looks at the entry under a.key. It reports whether the record e takes its place, and if so takes away what the old
// record kept alive. Of two records of the same number the later one is the copy that compaction made.
func (a *applier) supersedes(e *disk.Entry) (bool, error) {
	v, ok, err := a.batch.Get(a.key, a.val[:0])
	a.val = v
	if err != nil || !ok {
		return err == nil, err
	}
	p, _, err := splitValue(v)
	if err != nil || e.Seq < p.seq {
		return false, err
	}
	a.moved = a.moved || e.Seq == p.seq
	return true, account(a.batch, a.key, v, -1)
}

// put makes the record e the entry under a.key, if it supersedes what is there.
func (a *applier) put(e *disk.Entry) (bool, error) {
	newer, err := a.supersedes(e)
	if err != nil || !newer {
		return false, err
	}
	p := place{seq: e.Seq, band: a.band, data: e.Data}
	a.value = append(p.appendTo(a.value[:0]), e.Body...)
	if err := account(a.batch, a.key, a.value, 1); err != nil {
		return false, err
	}
	a.batch.Set(a.key, a.value)
	return true, nil
}

// drop removes the entry under a.key, if the record e supersedes it.
func (a *applier) drop(e *disk.Entry) (bool, error) {
	newer, err := a.supersedes(e)
	if err != nil || !newer {
		return false, err
	}
	a.batch.Delete(a.key)
	return true, nil
}

// shadow keeps a record that made others vanish, so that compaction writes it again as long as these may lie in the log. body is
// what it writes.
func (a *applier) shadow(e *disk.Entry, body []byte) error {
	a.key = index.ShadowKey(a.key[:0], e.Seq)
	_, err := a.put(&disk.Entry{Seq: e.Seq, Body: body})
	return err
}

func (a *applier) object(e *disk.Entry, k kind) error {
	r, err := decodeObject(e.Body, depthList)
	if err != nil {
		return err
	}
	if k == kindComplete {
		if err := a.endUpload(r.bucket, r.key, r.version); err != nil {
			return err
		}
		// The end of the upload outlives the object. A copy of this record would bring back an object that was deleted since; an abort
		// ends the upload as well.
		end := keyRecord{kind: kindAbort, bucket: r.bucket, key: r.key, version: r.version, at: r.modified}
		a.body = end.appendTo(a.body[:0])
		if err := a.shadow(e, a.body); err != nil {
			return err
		}
	}
	a.key = index.ObjectKey(a.key[:0], r.bucket, r.key)
	_, err = a.put(e)
	return err
}

func (a *applier) tombstone(e *disk.Entry) error {
	r, err := decodeKey(e.Body)
	if err != nil {
		return err
	}
	a.key = index.ObjectKey(a.key[:0], r.bucket, r.key)
	if _, err := a.drop(e); err != nil {
		return err
	}
	return a.shadow(e, e.Body)
}

func (a *applier) upload(e *disk.Entry) error {
	r, err := decodeUpload(e.Body)
	if err != nil {
		return err
	}
	a.key = index.UploadKey(a.key[:0], r.bucket, r.key, r.id)
	_, err = a.put(e)
	return err
}

func (a *applier) abort(e *disk.Entry) error {
	r, err := decodeKey(e.Body)
	if err != nil {
		return err
	}
	if err := a.endUpload(r.bucket, r.key, r.version); err != nil {
		return err
	}
	return a.shadow(e, e.Body)
}

// endUpload drops an upload and its parts. Parts that a completed object uses are counted again as the object's.
func (a *applier) endUpload(bucket uint64, key string, id id16) (err error) {
	a.key = index.UploadKey(a.key[:0], bucket, key, id)
	v, ok, err := a.batch.Get(a.key, a.val[:0])
	a.val = v
	if err != nil {
		return err
	}
	if ok {
		if err := account(a.batch, a.key, v, -1); err != nil {
			return err
		}
		a.batch.Delete(a.key)
	}
	it := a.batch.Iter(index.PartRange(id))
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.Seek(nil); ok; ok = it.Next() {
		if err := account(a.batch, it.Key(), it.Value(), -1); err != nil {
			return err
		}
		a.batch.Delete(it.Key())
	}
	return nil
}

// part puts a part. Its upload may come later in the log, if compaction moved that record and not yet this one. A part whose upload
// has ended does not stay: what ended the upload lies behind all records of its parts.
func (a *applier) part(e *disk.Entry) error {
	r, err := decodeUploadPart(e.Body)
	if err != nil {
		return err
	}
	a.key = index.PartKey(a.key[:0], r.upload, uint16(r.part.number))
	_, err = a.put(e)
	return err
}

func (a *applier) bucket(e *disk.Entry) error {
	r, err := decodeBucket(e.Body)
	if err != nil {
		return err
	}
	if len(r.keys) == 0 {
		return errRecord
	}
	a.key = index.BucketKey(a.key[:0], r.name)
	done, err := a.put(e)
	if done {
		a.buckets = append(a.buckets, bucketChange{put: r})
	}
	return err
}

func (a *applier) bucketDelete(e *disk.Entry) error {
	r, err := decodeBucketDelete(e.Body)
	if err != nil {
		return err
	}
	a.key = index.BucketKey(a.key[:0], r.name)
	done, err := a.drop(e)
	if err != nil {
		return err
	}
	if done {
		a.buckets = append(a.buckets, bucketChange{remove: r.name})
	}
	return a.shadow(e, e.Body)
}

func (a *applier) config(e *disk.Entry) error {
	r, err := decodeConfig(e.Body)
	if err != nil {
		return err
	}
	a.key = index.ConfigKey(a.key[:0], r.name)
	if r.value != nil {
		_, err = a.put(e)
		return err
	}
	if _, err := a.drop(e); err != nil {
		return err
	}
	return a.shadow(e, e.Body)
}
