package object

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"coffer/disk"
)

const (
	// maxInlineBody is how large a record may be; beyond it the content moves into bulk.
	maxInlineBody = 128 << 10
	// deleteWorkers is how many keys of a DeleteMany wait for their commit together.
	deleteWorkers = 64
)

// bodies are buffers for encoded records.
var bodies = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

func randomKey(k *[32]byte) { rand.Read(k[:]) } // never fails (crypto/rand)

func newBytesReader(p []byte) io.Reader { return bytes.NewReader(p) }

// String is the form that clients see, without quotes.
func (e etag) String() string {
	var b [32 + 1 + 5]byte
	hex.Encode(b[:], e.sum[:])
	if e.parts == 0 {
		return string(b[:32])
	}
	return string(strconv.AppendUint(append(b[:32], '-'), uint64(e.parts), 10))
}

// check holds the conditions against the current object, nil if there is none. seen says that there was one when the write
// began.
func (c *Conditions) check(cur *objectRecord, seen bool) error {
	switch {
	case c.IfNoneMatch != "" && cur != nil && (c.IfNoneMatch == "*" || c.IfNoneMatch == cur.etag.String()):
		return ErrPreconditionFailed
	case c.IfMatch == "":
		return nil
	case cur == nil && seen:
		return ErrConflict
	case cur == nil:
		return ErrNoSuchKey
	case c.IfMatch != "*" && c.IfMatch != cur.etag.String():
		return ErrPreconditionFailed
	}
	return nil
}

func (c *Conditions) empty() bool { return c.IfMatch == "" && c.IfNoneMatch == "" }

// current returns the record of a key as far as conditions need it, nil if there is none.
func (s *Store) current(b *bucketRecord, key string) (*objectRecord, error) {
	r, _, err := s.loadObject(b.id, key, depthList)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	return r, err
}

// precheck refuses a write early whose conditions do not hold now; they are decided again at commit.
func (s *Store) precheck(b *bucketRecord, key string, c *Conditions) (seen bool, err error) {
	if c.empty() {
		return false, nil
	}
	cur, err := s.current(b, key)
	if err != nil {
		return false, err
	}
	return cur != nil, c.check(cur, false)
}

func checkKey(key string) error {
	if len(key) == 0 || len(key) > MaxKeyLen {
		return fmt.Errorf("key of %d bytes: %w", len(key), ErrTooLarge)
	}
	return nil
}

// write is an object on its way into the log.
type write struct {
	b    *bucketRecord
	rec  objectRecord
	cond Conditions
	seen bool // an object was there when the write began
}

// begin checks what can be checked before the body comes, and draws version and data key.
func (s *Store) begin(ctx context.Context, bucket, key string, sse SSE, cond Conditions, dataKey *[32]byte) (w *write, err error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	b, err := s.writable(ctx, bucket)
	if err != nil {
		return nil, err
	}
	w = &write{b: b, cond: cond, rec: objectRecord{kind: kindObject, bucket: b.id, key: key, version: newID()}}
	if w.rec.sse, err = resolveSSE(b, sse); err != nil {
		return nil, err
	}
	if w.seen, err = s.precheck(b, key, &cond); err != nil {
		return nil, err
	}
	randomKey(dataKey)
	var buf aadBuf
	err = s.wrapKey(b, &w.rec.sse, sse, dataKey, identityAAD(buf[:0], labelObject, b.id, w.rec.version, key))
	return w, err
}

// Put stores an object. Nothing is visible before it returns without error.
func (s *Store) Put(ctx context.Context, bucket, key string, body io.Reader, o PutOptions) (Object, error) {
	if err := s.admit(ctx); err != nil {
		return Object{}, fmt.Errorf("put object %q: %w", key, err)
	}
	obj, err := s.put(ctx, bucket, key, body, &o)
	if err != nil {
		return Object{}, fmt.Errorf("put object %q: %w", key, err)
	}
	return obj, nil
}

func (s *Store) put(ctx context.Context, bucket, key string, body io.Reader, o *PutOptions) (Object, error) {
	if o.Size > MaxPutSize {
		return Object{}, ErrTooLarge
	}
	var dataKey [32]byte
	defer clear(dataKey[:])
	w, err := s.begin(ctx, bucket, key, o.SSE, o.Conditions, &dataKey)
	if err != nil {
		return Object{}, err
	}
	w.rec.meta = o.Meta
	spec := bodySpec{size: o.Size, limit: MaxPutSize, inline: true, md5: o.NeedMD5 || w.rec.sse.mode == ModeS3,
		algo: orDefault(o.Checksum), key: &dataKey}
	sealed, err := s.sealBody(ctx, body, &spec)
	if err != nil {
		return Object{}, err
	}
	defer sealed.release()
	if o.Check != nil {
		if err := o.Check(sealed.sums); err != nil {
			return Object{}, err
		}
	}
	w.setBody(&sealed)
	if err := s.commit(ctx, w, sealed.data); err != nil {
		return Object{}, err
	}
	s.stats.puts.Add(1)
	return w.rec.object(bucket), nil
}

func orDefault(a Algo) Algo {
	if a == AlgoNone {
		return AlgoCRC64NVME
	}
	return a
}

// setBody makes the sealed body the object's content.
func (w *write) setBody(b *sealedBody) {
	w.rec.size, w.rec.content.single, w.rec.checksum = b.stream.size, b.stream, b.stored
	w.rec.etag = bodyETag(w.rec.sse.mode, b.sums.MD5)
}

// bodyETag is the MD5 with SSE-S3; with a customer key it says nothing about the content.
func bodyETag(m Mode, md5 []byte) etag {
	if m != ModeS3 || len(md5) != 16 {
		return randomETag()
	}
	return etag{sum: id16(md5)}
}

// commit decides and appends: bucket and conditions are looked at under the locks that order the log's records of this key.
func (s *Store) commit(ctx context.Context, w *write, data []byte) error {
	buf := bodies.Get().(*[]byte)
	defer bodies.Put(buf)
	var manifest sealedBody
	defer manifest.release()
	if len(w.rec.content.parts) > 0 || len(w.rec.content.single.stripes) > s.opt.inlineBody/32 {
		// Only contents of many parts or stripes can be too large. They are moved away before any lock is taken.
		if *buf = w.rec.appendTo((*buf)[:0]); len(*buf) > s.opt.inlineBody {
			var err error
			if manifest, err = s.sealManifest(ctx, w.b, &w.rec, false); err != nil {
				return err
			}
		}
	}
	bl := s.locks.bucket(w.b.name)
	bl.RLock()
	defer bl.RUnlock()
	if err := s.stillThere(w.b); err != nil {
		return err
	}
	kl := s.locks.key(w.b.id, w.rec.key)
	kl.Lock()
	defer kl.Unlock()
	if !w.cond.empty() {
		cur, err := s.current(w.b, w.rec.key)
		if err != nil {
			return err
		}
		if err := w.cond.check(cur, w.seen); err != nil {
			return err
		}
	}
	w.rec.modified = nowMillis()
	*buf = w.rec.appendTo((*buf)[:0])
	return s.append(ctx, disk.Record{Body: *buf, Data: data})
}

// stillThere fails if the bucket was deleted, or deleted and made again. The bucket's lock is held.
func (s *Store) stillThere(b *bucketRecord) error {
	if now := s.buckets.get(b.name); now == nil || now.id != b.id {
		return fmt.Errorf("bucket %q: %w", b.name, ErrNoSuchBucket)
	}
	return nil
}

// Delete removes an object. That there is none is no error, whatever the conditions.
func (s *Store) Delete(ctx context.Context, bucket, key string, c Conditions) error {
	b, err := s.lookup(bucket)
	if err != nil {
		return err
	}
	if err := s.admitEssential(ctx); err != nil {
		return fmt.Errorf("delete object %q: %w", key, err)
	}
	if err := s.remove(ctx, b, key, c); err != nil {
		return fmt.Errorf("delete object %q: %w", key, err)
	}
	s.stats.deletes.Add(1)
	return nil
}

func (s *Store) remove(ctx context.Context, b *bucketRecord, key string, c Conditions) error {
	if err := checkKey(key); err != nil {
		return err
	}
	bl := s.locks.bucket(b.name)
	bl.RLock()
	defer bl.RUnlock()
	if err := s.stillThere(b); err != nil {
		return err
	}
	kl := s.locks.key(b.id, key)
	kl.Lock()
	defer kl.Unlock()
	cur, err := s.current(b, key)
	switch {
	case err != nil:
		return err
	case cur == nil && c.IfMatch != "":
		return ErrNoSuchKey
	case cur == nil:
		return nil
	}
	if err := c.check(cur, false); err != nil {
		return err
	}
	buf := bodies.Get().(*[]byte)
	defer bodies.Put(buf)
	r := keyRecord{kind: kindTombstone, bucket: b.id, key: key, at: nowMillis()}
	*buf = r.appendTo((*buf)[:0])
	return s.append(ctx, disk.Record{Body: *buf, Essential: true})
}

// Deletion is one of DeleteMany.
type Deletion struct {
	Key        string
	Conditions Conditions
}

// DeleteMany removes objects, many to a commit, in any order. It returns one error for each, nil for success.
func (s *Store) DeleteMany(ctx context.Context, bucket string, all []Deletion) []error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(deleteWorkers, len(all)) {
		wg.Go(func() {
			for i := range next {
				errs[i] = s.Delete(ctx, bucket, all[i].Key, all[i].Conditions)
			}
		})
	}
	for i := range all {
		next <- i
	}
	close(next)
	wg.Wait()
	return errs
}
