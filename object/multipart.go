package object

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"

	"coffer/disk"
)

// An upload's id is the internal version of the object that it becomes. So the keys of its parts are bound to their final
// identity from the start, and completing needs neither the data nor, with SSE-C, the customer's key.

// uploadID is the form that clients see.
func uploadID(id id16) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

func parseUploadID(s string) (id id16, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, false
	}
	return id16(b), true
}

func (r *uploadRecord) public(bucket string) Upload {
	return Upload{ID: uploadID(r.id), Bucket: bucket, Key: r.key, Initiated: fromMillis(r.at), SSE: r.sse.sse(), Checksum: r.algo,
		Composite: r.composite, Meta: r.meta}
}

// CreateUpload begins a multipart upload.
func (s *Store) CreateUpload(ctx context.Context, bucket, key string, o UploadOptions) (Upload, error) {
	if err := s.admit(ctx); err != nil {
		return Upload{}, fmt.Errorf("create upload of %q: %w", key, err)
	}
	r, b, err := s.newUpload(ctx, bucket, key, &o)
	if err != nil {
		return Upload{}, fmt.Errorf("create upload of %q: %w", key, err)
	}
	return r.public(b.name), nil
}

func (s *Store) newUpload(ctx context.Context, bucket, key string, o *UploadOptions) (*uploadRecord, *bucketRecord, error) {
	if err := checkKey(key); err != nil {
		return nil, nil, err
	}
	b, err := s.writable(ctx, bucket)
	if err != nil {
		return nil, nil, err
	}
	r := &uploadRecord{bucket: b.id, key: key, id: newID(), at: nowMillis(), algo: orDefault(o.Checksum), composite: o.Composite,
		meta: o.Meta}
	if _, crc := r.algo.ring(); !crc {
		r.composite = true // hashes do not combine
	}
	if r.sse, err = resolveSSE(b, o.SSE); err != nil {
		return nil, nil, err
	}
	var uploadKey [32]byte
	randomKey(&uploadKey)
	defer clear(uploadKey[:])
	var buf aadBuf
	if err := s.wrapKey(b, &r.sse, o.SSE, &uploadKey, identityAAD(buf[:0], labelObject, b.id, r.id, key)); err != nil {
		return nil, nil, err
	}
	bl := s.locks.bucket(b.name)
	bl.RLock()
	defer bl.RUnlock()
	if err := s.stillThere(b); err != nil {
		return nil, nil, err
	}
	return r, b, s.append(ctx, disk.Record{Body: r.appendTo(nil)})
}

// findUpload looks an upload up.
func (s *Store) findUpload(bucket, key, id string) (*bucketRecord, *uploadRecord, error) {
	b, err := s.lookup(bucket)
	if err != nil {
		return nil, nil, err
	}
	raw, ok := parseUploadID(id)
	if !ok {
		return nil, nil, ErrNoSuchUpload
	}
	u, err := s.loadUpload(b.id, key, raw)
	if errors.Is(err, errAbsent) {
		err = ErrNoSuchUpload
	}
	return b, u, err
}

// PutPart stores a part. A later part of the same number replaces it.
func (s *Store) PutPart(ctx context.Context, bucket, key, id string, number int, body io.Reader, o PartOptions) (Part, error) {
	if err := s.admit(ctx); err != nil {
		return Part{}, fmt.Errorf("put part %d of %q: %w", number, key, err)
	}
	p, err := s.putPart(ctx, bucket, key, id, number, body, &o)
	if err != nil {
		return Part{}, fmt.Errorf("put part %d of %q: %w", number, key, err)
	}
	return p.public(), nil
}

func (s *Store) putPart(ctx context.Context, bucket, key, id string, number int, body io.Reader, o *PartOptions) (*partRecord, error) {
	if number < 1 || number > MaxParts {
		return nil, ErrInvalidPart
	}
	if o.Size > MaxPartSize {
		return nil, ErrTooLarge
	}
	b, u, err := s.findUpload(bucket, key, id)
	if err != nil {
		return nil, err
	}
	var uploadKey, dataKey [32]byte
	defer clear(uploadKey[:])
	defer clear(dataKey[:])
	var buf aadBuf
	uploadKey, err = s.unwrapKey(b, &u.sse, o.SSE, identityAAD(buf[:0], labelObject, u.bucket, u.id, u.key))
	if err != nil {
		return nil, partKeyError(err)
	}
	randomKey(&dataKey)
	spec := bodySpec{size: o.Size, limit: MaxPartSize, md5: o.NeedMD5 || u.sse.mode == ModeS3, algo: u.algo, key: &dataKey}
	if o.Checksum != u.algo {
		spec.claim = o.Checksum
	}
	sealed, err := s.sealBody(ctx, body, &spec)
	if err != nil {
		return nil, err
	}
	defer sealed.release()
	if o.Check != nil {
		if err := o.Check(sealed.sums); err != nil {
			return nil, err
		}
	}
	r := uploadPart{bucket: b.id, key: key, upload: u.id, part: partRecord{number: number, checksum: sealed.stored,
		etag: bodyETag(u.sse.mode, sealed.sums.MD5), stream: sealed.stream}}
	if spec.claim != AlgoNone {
		r.part.claimed = sealed.sums.Checksum
	}
	if err := s.wrapPartKey(&uploadKey, b.id, u.id, &r.part, &dataKey); err != nil {
		return nil, err
	}
	return &r.part, s.commitPart(ctx, b, u, &r)
}

// partKeyError names the faults of a part's customer key as S3 does.
func partKeyError(err error) error {
	switch {
	case errors.Is(err, ErrKeyRequired):
		return ErrPartKeyRequired
	case errors.Is(err, ErrWrongKey), errors.Is(err, ErrKeyNotApplicable):
		return ErrPartKeyMismatch
	}
	return err
}

func (s *Store) commitPart(ctx context.Context, b *bucketRecord, u *uploadRecord, r *uploadPart) error {
	ul := s.locks.upload(u.id)
	ul.RLock()
	defer ul.RUnlock()
	bl := s.locks.bucket(b.name)
	bl.RLock()
	defer bl.RUnlock()
	pl := s.locks.part(u.id, r.part.number)
	pl.Lock()
	defer pl.Unlock()
	if err := s.uploadThere(u); err != nil {
		return err
	}
	r.part.modified = nowMillis()
	return s.append(ctx, disk.Record{Body: r.appendTo(nil)})
}

// uploadThere fails if the upload has ended. Its lock is held.
func (s *Store) uploadThere(u *uploadRecord) error {
	_, err := s.loadUpload(u.bucket, u.key, u.id)
	if errors.Is(err, errAbsent) {
		return ErrNoSuchUpload
	}
	return err
}

// AbortUpload ends an upload and drops its parts.
func (s *Store) AbortUpload(ctx context.Context, bucket, key, id string) error {
	b, u, err := s.findUpload(bucket, key, id)
	if err == nil {
		err = s.admitEssential(ctx)
	}
	if err == nil {
		err = s.abort(ctx, b, u)
	}
	if err != nil {
		return fmt.Errorf("abort upload of %q: %w", key, err)
	}
	return nil
}

func (s *Store) abort(ctx context.Context, b *bucketRecord, u *uploadRecord) error {
	ul := s.locks.upload(u.id)
	ul.Lock()
	defer ul.Unlock()
	bl := s.locks.bucket(b.name)
	bl.RLock()
	defer bl.RUnlock()
	if err := s.uploadThere(u); err != nil {
		return err
	}
	r := keyRecord{kind: kindAbort, bucket: b.id, key: u.key, version: u.id, at: nowMillis()}
	return s.append(ctx, disk.Record{Body: r.appendTo(nil), Essential: true})
}

// CompleteUpload makes an object of the parts. Completing a finished upload again with the same parts answers its object.
func (s *Store) CompleteUpload(ctx context.Context, bucket, key, id string, o CompleteOptions) (Object, error) {
	if err := s.admit(ctx); err != nil {
		return Object{}, fmt.Errorf("complete upload of %q: %w", key, err)
	}
	obj, err := s.complete(ctx, bucket, key, id, &o)
	if err != nil {
		return Object{}, fmt.Errorf("complete upload of %q: %w", key, err)
	}
	return obj, nil
}

func (s *Store) complete(ctx context.Context, bucket, key, id string, o *CompleteOptions) (Object, error) {
	b, u, err := s.findUpload(bucket, key, id)
	if errors.Is(err, ErrNoSuchUpload) && b != nil {
		return s.completed(ctx, b, key, id, o)
	}
	if err != nil {
		return Object{}, err
	}
	if err := checkOrder(o.Parts); err != nil {
		return Object{}, err
	}
	if o.SSE.CustomerKey != nil {
		if err := s.checkUploadKey(b, u, o.SSE); err != nil {
			return Object{}, err
		}
	}
	ul := s.locks.upload(u.id)
	ul.Lock()
	defer ul.Unlock()
	// The record is built, and a large manifest written, under the upload's lock: no part may change in between.
	if err := s.uploadThere(u); errors.Is(err, ErrNoSuchUpload) {
		return s.completed(ctx, b, key, id, o)
	} else if err != nil {
		return Object{}, err
	}
	w := &write{b: b, cond: o.Conditions}
	if w.seen, err = s.precheck(b, key, &o.Conditions); err != nil {
		return Object{}, err
	}
	w.rec = objectRecord{kind: kindComplete, bucket: b.id, key: key, version: u.id, sse: u.sse, meta: u.meta}
	if err := s.gather(u, o, &w.rec); err != nil {
		return Object{}, err
	}
	parts := w.rec.content.parts
	if err := s.commit(ctx, w, nil); err != nil {
		return Object{}, err
	}
	w.rec.content = content{parts: parts}
	return w.rec.object(bucket), nil
}

// checkUploadKey verifies a customer key that complete carries, though it is not needed.
func (s *Store) checkUploadKey(b *bucketRecord, u *uploadRecord, have SSE) error {
	var buf aadBuf
	k, err := s.unwrapKey(b, &u.sse, have, identityAAD(buf[:0], labelObject, u.bucket, u.id, u.key))
	clear(k[:])
	return err
}

func checkOrder(parts []CompletePart) error {
	if len(parts) == 0 || len(parts) > MaxParts {
		return ErrInvalidPart
	}
	for i := range parts[1:] {
		if parts[i+1].Number <= parts[i].Number {
			return ErrInvalidPartOrder
		}
	}
	return nil
}

// gather fills the record from the claimed parts, after checking each.
func (s *Store) gather(u *uploadRecord, o *CompleteOptions, r *objectRecord) error {
	have, err := s.allParts(u.id)
	if err != nil {
		return err
	}
	r.content.parts = make([]partRecord, 0, len(o.Parts))
	hash := md5.New()
	for i, c := range o.Parts {
		at, ok := slices.BinarySearchFunc(have, c.Number, func(p partRecord, n int) int { return p.number - n })
		if !ok {
			return fmt.Errorf("part %d: %w", c.Number, ErrInvalidPart)
		}
		p := &have[at]
		if err := p.matches(&c); err != nil {
			return fmt.Errorf("part %d: %w", c.Number, err)
		}
		if p.size < MinPartSize && i < len(o.Parts)-1 {
			return fmt.Errorf("part %d: %d bytes: %w", c.Number, p.size, ErrPartTooSmall)
		}
		r.size += p.size
		hash.Write(p.etag.sum[:])
		r.content.parts = append(r.content.parts, *p)
		r.content.parts[i].claimed = Checksum{}
	}
	if r.size > MaxObjectSize {
		return ErrTooLarge
	}
	r.etag = etag{id16(hash.Sum(nil)), uint32(len(o.Parts))}
	if u.composite {
		r.checksum = s.digests.composite(u.algo, r.content.parts)
	} else {
		r.checksum = fullObject(u.algo, r.content.parts)
	}
	return o.matches(r)
}

// matches holds what a client claims of the whole object against it.
func (o *CompleteOptions) matches(r *objectRecord) error {
	if o.Size >= 0 && o.Size != r.size {
		return fmt.Errorf("%d bytes claimed, parts have %d: %w", o.Size, r.size, ErrSizeMismatch)
	}
	if c := &o.Checksum; c.Algo == r.checksum.Algo && c.Composite == r.checksum.Composite && !slices.Equal(c.Sum, r.checksum.Sum) {
		return ErrBadDigest
	} else if c.Algo != AlgoNone && (c.Algo != r.checksum.Algo || c.Composite != r.checksum.Composite) {
		return fmt.Errorf("another kind of checksum than the upload's: %w", ErrBadDigest)
	}
	return nil
}

// matches holds what a client claims of a part against it. A checksum of an algorithm that the part has none of cannot be true.
func (p *partRecord) matches(c *CompletePart) error {
	if p.etag.String() != c.ETag {
		return ErrInvalidPart
	}
	switch c.Checksum.Algo {
	case AlgoNone:
		return nil
	case p.checksum.Algo:
		if !slices.Equal(c.Checksum.Sum, p.checksum.Sum) {
			return ErrInvalidPart
		}
		return nil
	case p.claimed.Algo:
		if slices.Equal(c.Checksum.Sum, p.claimed.Sum) {
			return nil
		}
	}
	return ErrBadDigest
}

// completed answers a repeated complete: the object must be the one that the upload became, of the same parts.
func (s *Store) completed(ctx context.Context, b *bucketRecord, key, id string, o *CompleteOptions) (Object, error) {
	raw, ok := parseUploadID(id)
	if !ok {
		return Object{}, ErrNoSuchUpload
	}
	f, err := s.find(b.name, key)
	if errors.Is(err, ErrNoSuchKey) {
		return Object{}, ErrNoSuchUpload
	}
	if err != nil {
		return Object{}, err
	}
	defer f.unpin()
	if f.rec.version != raw || f.rec.kind != kindComplete {
		return Object{}, ErrNoSuchUpload
	}
	if err := s.loadManifest(ctx, f); err != nil {
		return Object{}, err
	}
	same := slices.EqualFunc(f.rec.content.parts, o.Parts, func(p partRecord, c CompletePart) bool {
		p.claimed = c.Checksum // what the part had of another algorithm is not kept
		return p.number == c.Number && p.matches(&c) == nil
	})
	if !same {
		return Object{}, ErrNoSuchUpload
	}
	if err := o.matches(f.rec); err != nil {
		return Object{}, err
	}
	return f.rec.object(b.name), nil
}

// ListParts returns the parts above number after, at most max of them.
func (s *Store) ListParts(_ context.Context, bucket, key, id string, after, max int) (PartPage, error) {
	b, u, err := s.findUpload(bucket, key, id)
	if err != nil {
		return PartPage{}, fmt.Errorf("list parts of %q: %w", key, err)
	}
	page := PartPage{Upload: u.public(b.name)}
	err = s.scanParts(u.id, after, func(p *partRecord) bool {
		if len(page.Parts) >= max {
			page.Truncated = true
			return false
		}
		page.Parts = append(page.Parts, p.public())
		page.Next = p.number
		return true
	})
	if err != nil {
		return PartPage{}, fmt.Errorf("list parts of %q: %w", key, err)
	}
	return page, nil
}

// allParts returns an upload's parts in order.
func (s *Store) allParts(id id16) (parts []partRecord, err error) {
	err = s.scanParts(id, 0, func(p *partRecord) bool {
		parts = append(parts, *p)
		return true
	})
	return parts, err
}
