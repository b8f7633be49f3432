package object

import (
	"context"
	"errors"
	"fmt"
	"io"

	"coffer/disk"
)

// maxManifest bounds what is read into memory to find the parts of one object: enough for 10,000 parts of 5 GiB.
const maxManifest = 256 << 20

// maxLookups bounds how often an object is looked up again because compaction moved it before its bands were pinned.
const maxLookups = 100

// found is a stored object and where its record says its data is.
type found struct {
	b   *bucketRecord
	rec *objectRecord
	loc disk.Loc

	log  Log
	pins []bandBytes // bands that the data lies in: they stay until unpin
}

// find looks an object up and pins its data.
func (s *Store) find(bucket, key string) (f found, err error) {
	if f.b, err = s.lookup(bucket); err != nil {
		return f, err
	}
	if f.log, err = s.disk(); err != nil {
		return f, err
	}
	var lost uint64
	for range maxLookups {
		if f.rec, f.loc, err = s.loadObject(f.b.id, key, depthAll); err != nil {
			return f, fmt.Errorf("object %q in bucket %q: %w", key, bucket, orNoSuchKey(err))
		}
		var ok bool
		if lost, ok = f.pin(); ok {
			return f, nil
		}
	}
	return f, fmt.Errorf("object %q in bucket %q: lies in band %x, which is gone: %w", key, bucket, lost, ErrCorrupt)
}

// pin keeps the bands from being freed that the object's data lies in. It is false, and names the band, when one is gone: then the
// data was moved since the record was looked up, or deleted.
func (f *found) pin() (gone uint64, ok bool) {
	var bands []bandBytes
	if f.loc.IsZero() {
		bands = f.rec.content.bands()
	} else {
		bands = []bandBytes{{band: f.loc.Band}}
	}
	for i, b := range bands {
		if !f.log.Pin(b.band) {
			f.pins = bands[:i]
			f.unpin()
			return b.band, false
		}
	}
	f.pins = bands
	return 0, true
}

func (f *found) unpin() {
	for _, b := range f.pins {
		f.log.Unpin(b.band)
	}
	f.pins = nil
}

// object is the record as callers see it.
func (r *objectRecord) object(bucket string) Object {
	o := Object{Bucket: bucket, Key: r.key, Size: r.size, ETag: r.etag.String(), Modified: fromMillis(r.modified), Meta: r.meta,
		Checksum: r.checksum, SSE: r.sse.sse()}
	if n := len(r.content.parts); n > 0 {
		o.Parts = make([]Part, n)
		for i := range r.content.parts {
			o.Parts[i] = r.content.parts[i].public()
		}
	}
	return o
}

func (p *partRecord) public() Part {
	return Part{Number: p.number, Size: p.size, ETag: p.etag.String(), Modified: fromMillis(p.modified), Checksum: p.checksum}
}

func (r *sseRecord) sse() SSE {
	return SSE{Mode: r.mode, CustomerMD5: r.customerMD5, KMSKeyID: r.kmsKeyID, BucketKey: r.bucketKey}
}

// Head describes an object. For one sealed with a customer key it demands that key, but the answer is there with ErrKeyRequired as
// well, for calls that ask for what the key does not protect, such as the tags.
func (s *Store) Head(ctx context.Context, bucket, key string, o GetOptions) (Object, error) {
	f, err := s.find(bucket, key)
	if err != nil {
		return Object{}, err
	}
	defer f.unpin()
	dataKey, err := s.objectKey(f.b, f.rec, o.SSE)
	clear(dataKey[:])
	if err != nil && !errors.Is(err, ErrKeyRequired) {
		return Object{}, fmt.Errorf("head object %q: %w", key, err)
	}
	if err := s.loadManifest(ctx, f); err != nil {
		return Object{}, err
	}
	if err != nil {
		return f.rec.object(bucket), fmt.Errorf("head object %q: %w", key, err)
	}
	return f.rec.object(bucket), nil
}

// Get opens an object for reading. The customer key, the part number and the range are checked here; ctx governs the reads.
func (s *Store) Get(ctx context.Context, bucket, key string, o GetOptions) (Reader, error) {
	f, err := s.find(bucket, key)
	if err != nil {
		return nil, err
	}
	r, err := s.newReader(ctx, f, o)
	if err != nil {
		f.unpin()
		return nil, fmt.Errorf("get object %q: %w", key, err)
	}
	s.stats.gets.Add(1)
	return r, nil
}

// newReader returns a reader that takes the pins over, unless it fails.
func (s *Store) newReader(ctx context.Context, f found, o GetOptions) (_ *reader, err error) {
	r := &reader{s: s, ctx: ctx, found: f}
	if r.key, err = s.objectKey(f.b, f.rec, o.SSE); err != nil {
		return nil, err
	}
	if err := s.loadManifest(ctx, f); err != nil {
		return nil, err
	}
	base, size, err := f.rec.window(o.Part)
	if err != nil {
		return nil, err
	}
	off, n, err := o.Range.resolve(size)
	if err != nil {
		return nil, err
	}
	r.off, r.n = base+off, n
	r.obj = f.rec.object(f.b.name)
	r.plan = plan{spans: f.rec.content.spans(r.one[:0], r.off, n), next: -1}
	return r, nil
}

// window is where a part lies in the object; part 0 is the whole. A plain object has one part, number 1.
func (r *objectRecord) window(part int) (base, size int64, err error) {
	if part == 0 || (part == 1 && r.content.parts == nil) {
		return 0, r.size, nil
	}
	for i := range r.content.parts {
		p := &r.content.parts[i]
		if p.number == part {
			return base, p.size, nil
		}
		base += p.size
	}
	return 0, 0, fmt.Errorf("part %d: %w", part, ErrRange)
}

// spans appends what bytes off..off+n-1 touch.
func (c *content) spans(to []span, off, n int64) []span {
	if n == 0 {
		return nil
	}
	if c.parts == nil {
		return append(to, span{stream: &c.single, from: off, to: off + n})
	}
	for i := range c.parts {
		p := &c.parts[i]
		if n > 0 && off < p.size {
			m := min(n, p.size-off)
			to = append(to, span{stream: &p.stream, part: p, from: off, to: off + m})
			off, n = off+m, n-m
		}
		off -= p.size
		if n == 0 {
			break
		}
	}
	return to
}

// loadManifest replaces a content that lies in bulk by what it says.
func (s *Store) loadManifest(ctx context.Context, f found) error {
	m := f.rec.content.manifest
	if m == nil {
		return nil
	}
	wrap := func(err error) error { return fmt.Errorf("read manifest of %q: %w", f.rec.key, err) }
	if m.size > maxManifest {
		return wrap(fmt.Errorf("%d bytes: %w", m.size, ErrCorrupt))
	}
	var buf aadBuf
	key, err := s.unwrapByBucket(f.b, m.epoch, m.wrapped, identityAAD(buf[:0], labelManifest, f.rec.bucket, f.rec.version, f.rec.key))
	if err != nil {
		return wrap(corrupt(err))
	}
	f.pins = nil // this reader leaves them to the caller
	r := &reader{s: s, ctx: ctx, found: f, key: key, obj: Object{Key: f.rec.key}, n: m.size}
	clear(key[:])
	r.plan = plan{spans: append(r.one[:0], span{stream: &m.stream, to: m.size}), next: -1}
	defer r.Close()
	enc := make([]byte, m.size)
	if _, err := io.ReadFull(r, enc); err != nil {
		return wrap(err)
	}
	d := decoder{s: string(enc)}
	c := d.content()
	if d.end() != nil || c.manifest != nil || !c.fits(f.rec.size) {
		return wrap(errRecord)
	}
	f.rec.content = c
	return nil
}

// sealManifest moves a content that is too large for a record into bulk, or into space kept for compaction. What it returns is
// released when the record was appended.
func (s *Store) sealManifest(ctx context.Context, b *bucketRecord, r *objectRecord, reserved bool) (body sealedBody, err error) {
	enc := appendContent(nil, &r.content)
	if len(enc) > maxManifest {
		return body, fmt.Errorf("manifest of %d bytes: %w", len(enc), ErrTooLarge)
	}
	var key [32]byte
	randomKey(&key)
	defer clear(key[:])
	spec := bodySpec{size: int64(len(enc)), limit: maxManifest, key: &key, reserved: reserved}
	if body, err = s.sealBody(ctx, newBytesReader(enc), &spec); err != nil {
		return body, fmt.Errorf("write manifest: %w", err)
	}
	m := &manifest{stream: body.stream}
	var buf aadBuf
	if m.epoch, m.wrapped, err = s.wrapByBucket(b, &key, identityAAD(buf[:0], labelManifest, r.bucket, r.version, r.key)); err != nil {
		body.release()
		return body, err
	}
	m.bands = r.content.bands()
	m.stream.forBands(func(band uint64, n int64) { m.bands = addBand(m.bands, band, n) })
	r.content = content{manifest: m}
	return body, nil
}
