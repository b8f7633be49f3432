package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"coffer/disk"
	"coffer/object/internal/index"
	"coffer/object/internal/seal"
)

const (
	// recordWorkers is how many moved records wait for their commit together: enough to fill stripes even with small ones.
	recordWorkers = 256
	// stripeWorkers is how many entries are moved out of a bulk band at once. Each has the engine's memory for two stripes.
	stripeWorkers = 4
	// maxSweeps bounds how often a bulk band is gone through: parts may become an object's behind the sweep's back.
	maxSweeps = 3
)

// mover takes what is live out of one band: it writes the records again, under the numbers they have. What entry a record makes, and
// what ends it, is decided in the order of the log, so a copy is appended under the locks of its entry, and only while it is what the
// index says.
type mover struct {
	s      *Store
	log    Log
	pace   *pacer
	band   uint64
	oldest bool // of the packed bands

	newest uint64 // highest number of a record in the band
	rest   int64  // live bytes that go with the band: shadows of what lies in it
	moved  atomic.Int64
	stuck  atomic.Int64 // entries whose data cannot be read
}

// packed moves the records of a packed band. It returns the stripes in it.
func (m *mover) packed(ctx context.Context) (disk.StripeRange, error) {
	work, wctx := errgroup.WithContext(ctx)
	work.SetLimit(recordWorkers)
	settled := !m.log.Pinned(m.band) // all its records are applied
	live := m.s.idx.LiveOf(m.band) > 0
	r, err := m.log.EachRecord(ctx, m.band, func(e disk.Entry, data []byte) error {
		if m.newest = max(m.newest, e.Seq); !live {
			return nil
		}
		return m.visit(wctx, work, e, data)
	})
	if werr := work.Wait(); werr != nil {
		return r, werr
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return r, err
	}
	if m.oldest {
		// What the shadows in the oldest band made vanish lies in that band or nowhere.
		if err := m.weighShadows(); err != nil {
			return r, err
		}
	}
	if settled && m.s.idx.LiveOf(m.band) > m.rest {
		m.s.logger.Warn("packed band damaged: its records are taken from the index", "band", bandName(m.band), "err", err)
		return r, m.sweep(ctx)
	}
	return r, nil
}

// weighShadows finds out how much of the band is shadows.
func (m *mover) weighShadows() (err error) {
	it := m.s.idx.Iter(index.ShadowRange(0, m.newest+1))
	defer func() { err = m.s.checkIndex(errors.Join(err, it.Close())) }()
	for ok := it.Seek(nil); ok; ok = it.Next() {
		p, body, err := splitValue(it.Value())
		if err != nil {
			return err
		}
		if p.band == m.band {
			m.rest += int64(len(body))
		}
	}
	return nil
}

// visit has a record moved if it is live.
func (m *mover) visit(ctx context.Context, work *errgroup.Group, e disk.Entry, data []byte) error {
	key, shadow, err := entryOf(e.Body)
	if err != nil {
		return err
	}
	at := place{seq: e.Seq, band: m.band, data: e.Data}
	_, live, err := m.current(key, at)
	if err != nil {
		return err
	}
	shadow = shadow && !m.oldest
	if !live && shadow {
		if _, live, err = m.current(index.ShadowKey(nil, e.Seq), place{seq: e.Seq, band: m.band}); err != nil {
			return err
		}
	}
	if !live {
		return nil
	}
	if err := m.pace.wait(ctx, len(e.Body)+len(data)); err != nil {
		return err
	}
	data = bytes.Clone(data)
	work.Go(func() error {
		done, err := m.move(ctx, key, at, data)
		if err == nil && !done && shadow {
			_, err = m.move(ctx, index.ShadowKey(nil, at.seq), place{seq: at.seq, band: at.band}, nil)
		}
		return err
	})
	return nil
}

// entryOf returns the index key of the entry that a record makes, nil if it makes none, and whether it makes others vanish.
func entryOf(body []byte) (key []byte, shadow bool, err error) {
	k, err := kindOf(body)
	if err != nil {
		return nil, false, err
	}
	switch k {
	case kindObject, kindComplete:
		if r, err := decodeObject(body, depthList); err == nil {
			return index.ObjectKey(nil, r.bucket, r.key), k == kindComplete, nil
		}
	case kindUpload:
		if r, err := decodeUpload(body); err == nil {
			return index.UploadKey(nil, r.bucket, r.key, r.id), false, nil
		}
	case kindPart:
		if r, err := decodeUploadPart(body); err == nil {
			return index.PartKey(nil, r.upload, uint16(r.part.number)), false, nil
		}
	case kindBucket:
		if r, err := decodeBucket(body); err == nil {
			return index.BucketKey(nil, r.name), false, nil
		}
	case kindConfig:
		if r, err := decodeConfig(body); err == nil {
			if r.value == nil {
				return nil, true, nil
			}
			return index.ConfigKey(nil, r.name), false, nil
		}
	default:
		return nil, true, nil
	}
	return nil, false, errRecord
}

// current returns the value under key, if there is one and its record lies at this place.
func (m *mover) current(key []byte, at place) (value []byte, ok bool, err error) {
	if key == nil {
		return nil, false, nil
	}
	if value, ok, err = m.s.idx.Get(key, nil); err != nil || !ok {
		return nil, false, m.s.checkIndex(err)
	}
	p, _, err := splitValue(value)
	return value, p == at, m.s.checkIndex(err)
}

// move writes the record of an entry again, if it is still at this place.
func (m *mover) move(ctx context.Context, key []byte, at place, data []byte) (bool, error) {
	if key == nil {
		return false, nil
	}
	unlock, err := m.s.locks.entry(key)
	if err != nil {
		return false, m.s.checkIndex(err)
	}
	defer unlock()
	value, ok, err := m.current(key, at)
	if err != nil || !ok {
		return false, err
	}
	_, body, err := splitValue(value)
	if err != nil {
		return false, err
	}
	return true, m.append(ctx, disk.Record{Seq: at.seq, Body: body, Data: data, Patient: true}) // there are many
}

func (m *mover) append(ctx context.Context, r disk.Record) error {
	r.Essential = true
	if _, err := m.log.Append(ctx, r); err != nil {
		return fmt.Errorf("move record %d: %w", r.Seq, err)
	}
	n := int64(len(r.Body) + len(r.Data))
	m.moved.Add(n)
	m.s.stats.moved.Add(n)
	return nil
}

// sweep moves what records in unreadable stripes say: the index has their bodies. Data packed beside them is lost to it; then the band
// stays, in case it can be read one day.
func (m *mover) sweep(ctx context.Context) (err error) {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recordWorkers)
	it := m.s.idx.Iter(nil, nil)
	defer func() { err = m.s.checkIndex(errors.Join(err, it.Close())) }()
	for ok := it.Seek(nil); ok && ctx.Err() == nil; ok = it.Next() {
		switch index.KindOf(it.Key()) {
		default:
			continue
		case index.KindBucket, index.KindConfig, index.KindObject, index.KindPart, index.KindShadow, index.KindUpload:
		}
		at, _, err := splitValue(it.Value())
		if err != nil {
			return errors.Join(err, work.Wait())
		}
		if at.band != m.band || (m.oldest && index.KindOf(it.Key()) == index.KindShadow) {
			continue
		}
		if !at.data.IsZero() {
			m.stuck.Add(1)
			continue
		}
		key := bytes.Clone(it.Key())
		work.Go(func() error {
			_, err := m.move(ctx, key, at, nil)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	return m.stuckError()
}

func (m *mover) stuckError() error {
	if n := m.stuck.Load(); n > 0 {
		return fmt.Errorf("compact band %x: data of %d entries cannot be read: %w", m.band, n, ErrCorrupt)
	}
	return nil
}

// bulk copies the live stripes of a bulk band and writes the records that name them again.
func (m *mover) bulk(ctx context.Context) error {
	for i := 0; i < maxSweeps && m.s.idx.LiveOf(m.band) > 0; i++ {
		if err := m.references(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) references(ctx context.Context) (err error) {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(stripeWorkers)
	it := m.s.idx.Iter(index.RefRange(m.band))
	defer func() { err = m.s.checkIndex(errors.Join(err, it.Close())) }()
	for ok := it.Seek(nil); ok && ctx.Err() == nil; ok = it.Next() {
		_, key, err := index.ParseRefKey(it.Key())
		if err != nil {
			return errors.Join(err, work.Wait())
		}
		key = bytes.Clone(key)
		work.Go(func() error { return m.relocate(ctx, key) })
	}
	if err := work.Wait(); err != nil {
		return err
	}
	return m.stuckError()
}

// relocate copies an entry's stripes out of the band and then has its record name the copies. If the entry changed meanwhile they are
// garbage.
func (m *mover) relocate(ctx context.Context, key []byte) error {
	value, ok, err := m.s.idx.Get(key, nil)
	if err != nil || !ok {
		return err
	}
	p, body, err := splitValue(value)
	if err != nil {
		return err
	}
	fresh := stripeSet{log: m.log}
	defer fresh.unpin()
	if body, err = m.restripe(ctx, body, &fresh); err != nil {
		if errors.Is(err, ErrCorrupt) {
			m.stuck.Add(1)
			m.s.logger.Error("stripe cannot be read: its band stays", "band", bandName(m.band), "record", p.seq, "err", err)
			return nil
		}
		return err
	}
	if len(fresh.stripes) == 0 {
		return nil // another record has taken the place of the one that was found, perhaps one with packed data
	}
	unlock, err := m.s.locks.entry(key)
	if err != nil {
		return err
	}
	defer unlock()
	now, ok, err := m.s.idx.Get(key, nil)
	if err != nil || !ok || !bytes.Equal(now, value) {
		return err
	}
	return m.append(ctx, disk.Record{Seq: p.seq, Body: body})
}

// restripe returns the record with copies in place of the stripes that lie in the band.
func (m *mover) restripe(ctx context.Context, body []byte, fresh *stripeSet) ([]byte, error) {
	if k, err := kindOf(body); err != nil {
		return nil, err
	} else if k == kindPart {
		r, err := decodeUploadPart(body)
		if err != nil {
			return nil, err
		}
		if err := m.copyStream(ctx, &r.part.stream, fresh); err != nil {
			return nil, err
		}
		return r.appendTo(nil), nil
	}
	r, err := decodeObject(body, depthAll)
	if err != nil {
		return nil, err
	}
	b := m.s.buckets.byID(r.bucket)
	if b == nil {
		return nil, fmt.Errorf("object in bucket %x that is gone: %w", r.bucket, index.ErrCorrupt)
	}
	large := r.content.manifest != nil
	if err := m.s.loadManifest(ctx, found{b: b, rec: r, log: m.log}); err != nil {
		return nil, err
	}
	if err := m.copyStream(ctx, &r.content.single, fresh); err != nil {
		return nil, err
	}
	for i := range r.content.parts {
		if err := m.copyStream(ctx, &r.content.parts[i].stream, fresh); err != nil {
			return nil, err
		}
	}
	if body = r.appendTo(nil); !large && len(body) <= m.s.opt.inlineBody {
		return body, nil
	}
	sealed, err := m.s.sealManifest(ctx, b, r, true)
	if err != nil {
		return nil, err
	}
	fresh.stripes = append(fresh.stripes, sealed.pinned.stripes...)
	return r.appendTo(nil), nil
}

// copyStream puts copies in place of a stream's stripes that lie in the band.
func (m *mover) copyStream(ctx context.Context, st *stream, fresh *stripeSet) error {
	for i, old := range st.stripes {
		if old.Band != m.band {
			continue
		}
		if err := m.pace.wait(ctx, int(old.Segments)*seal.SegmentSize); err != nil {
			return err
		}
		c, err := m.copyStripe(ctx, old)
		if err != nil {
			return fmt.Errorf("copy stripe %x/%d: %w", old.Band, old.Off, err)
		}
		st.stripes[i] = c
		fresh.stripes = append(fresh.stripes, c)
	}
	return nil
}

// copyStripe copies sealed segments as they are: no key is needed. Memory to write is taken first, as ReadVerified demands.
func (m *mover) copyStripe(ctx context.Context, old disk.Stripe) (disk.Stripe, error) {
	n := int(old.Segments)
	m.s.waiting.Add(1)
	w, err := m.log.NewReservedStripe(ctx, n)
	m.s.waiting.Add(-1)
	if err != nil {
		return disk.Stripe{}, err
	}
	v, err := m.log.ReadVerified(ctx, old)
	if err != nil {
		w.Discard()
		return disk.Stripe{}, err
	}
	for i := 0; i < n && err == nil; i++ {
		copy(w.Slot(i), v.Bytes(i))
		err = w.Sealed(i + 1)
	}
	v.Release()
	if err != nil {
		w.Discard()
		return disk.Stripe{}, err
	}
	m.moved.Add(int64(n) * seal.SegmentSize)
	m.s.stats.moved.Add(int64(n) * seal.SegmentSize)
	c, err := w.Commit(ctx)
	if err == nil {
		m.s.written.add(c.Band, c.Footprint(), true, nil)
	}
	return c, err
}
