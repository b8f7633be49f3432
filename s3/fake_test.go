package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"coffer/object"
)

// fakeStore is a Store in memory with the semantics of object.Store, for tests of the protocol.
type fakeStore struct {
	mu      sync.Mutex
	buckets map[string]*fakeBucket
	now     func() time.Time
	fail    error // returned by every call, if set
}

type fakeBucket struct {
	object.Bucket
	objects map[string]*fakeObject
	uploads map[string]*fakeUpload
}

type fakeObject struct {
	object.Object
	key  [32]byte // customer key
	data []byte
}

type fakeUpload struct {
	object.Upload
	key   [32]byte
	parts map[int]fakePart
}

type fakePart struct {
	object.Part
	data []byte
}

func newFakeStore() *fakeStore {
	return &fakeStore{buckets: make(map[string]*fakeBucket), now: time.Now}
}

func (f *fakeStore) bucket(name string) (*fakeBucket, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	if b := f.buckets[name]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("bucket %q: %w", name, object.ErrNoSuchBucket)
}

func (f *fakeStore) CreateBucket(_ context.Context, name string, b object.Bucket) (object.Bucket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if have, err := f.bucket(name); err == nil {
		return have.Bucket, fmt.Errorf("create bucket %q: %w", name, object.ErrBucketExists)
	}
	b.Name, b.Created, b.ID = name, f.now(), uint64(len(f.buckets)+1)
	f.buckets[name] = &fakeBucket{Bucket: b, objects: make(map[string]*fakeObject), uploads: make(map[string]*fakeUpload)}
	return b, f.fail
}

func (f *fakeStore) Bucket(_ context.Context, name string) (object.Bucket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(name)
	if err != nil {
		return object.Bucket{}, err
	}
	return b.Bucket, nil
}

func (f *fakeStore) DeleteBucket(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(name)
	if err != nil {
		return err
	}
	if len(b.objects)+len(b.uploads) > 0 {
		return object.ErrBucketNotEmpty
	}
	delete(f.buckets, name)
	return nil
}

func (f *fakeStore) ListBuckets(_ context.Context, opt object.ListBucketsOptions) (out []object.Bucket, truncated bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(f.buckets)) {
		if !strings.HasPrefix(name, opt.Prefix) || name <= opt.After {
			continue
		}
		if opt.Max > 0 && len(out) == opt.Max {
			return out, true, f.fail
		}
		out = append(out, f.buckets[name].Bucket)
	}
	return out, false, f.fail
}

func (f *fakeStore) SetBucketEncryption(_ context.Context, name string, e *object.BucketEncryption) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(name)
	if err == nil {
		b.Encryption = e
	}
	return err
}

// sums computes what the store would over a body.
func sums(data []byte, algo object.Algo) object.Sums {
	if algo == object.AlgoNone {
		algo = object.AlgoCRC64NVME
	}
	sum := md5.Sum(data)
	return object.Sums{Size: int64(len(data)), MD5: sum[:], Checksum: object.Checksum{Algo: algo, Sum: sumOf(algorithmOf(algo).new(), data)}}
}

// readBody takes no byte more than it must, as a store may: what comes behind the last one is the protocol's to read.
func readBody(body io.Reader, size int64, check func(object.Sums) error, algo object.Algo) ([]byte, object.Sums, error) {
	if size >= 0 {
		body = io.LimitReader(body, size)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, object.Sums{}, fmt.Errorf("read body: %w", err)
	}
	if size >= 0 && int64(len(data)) != size {
		return nil, object.Sums{}, object.ErrShortBody
	}
	s := sums(data, algo)
	if check != nil {
		err = check(s)
	}
	return data, s, err
}

func (b *fakeBucket) check(key string, cond object.Conditions) error {
	o := b.objects[key]
	switch {
	case cond.IfNoneMatch == "*" && o != nil:
		return object.ErrPreconditionFailed
	case cond.IfMatch != "" && o == nil:
		return object.ErrNoSuchKey
	case cond.IfMatch != "" && cond.IfMatch != "*" && cond.IfMatch != o.ETag:
		return object.ErrPreconditionFailed
	}
	return nil
}

// sealed says how an object is encrypted, without the key.
func sealed(sse object.SSE) (object.SSE, [32]byte) {
	var key [32]byte
	if sse.Mode == object.ModeDefault {
		sse.Mode = object.ModeS3
	}
	if sse.CustomerKey != nil {
		key, sse.CustomerKey = *sse.CustomerKey, nil
	}
	return sse, key
}

func (f *fakeStore) Put(_ context.Context, bucket, key string, body io.Reader, opt object.PutOptions) (object.Object, error) {
	f.mu.Lock()
	_, err := f.bucket(bucket)
	f.mu.Unlock()
	if err != nil {
		return object.Object{}, err
	}
	data, s, err := readBody(body, opt.Size, opt.Check, opt.Checksum)
	if err != nil {
		return object.Object{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commit(bucket, key, opt.Conditions, object.Object{
		Size: s.Size, ETag: hex.EncodeToString(s.MD5), Meta: opt.Meta, Checksum: s.Checksum, SSE: opt.SSE,
	}, data)
}

func (f *fakeStore) commit(bucket, key string, cond object.Conditions, o object.Object, data []byte) (object.Object, error) {
	b, err := f.bucket(bucket)
	if err != nil {
		return o, err
	}
	if err := b.check(key, cond); err != nil {
		return o, fmt.Errorf("put %q: %w", key, err)
	}
	fo := &fakeObject{Object: o, data: data}
	fo.SSE, fo.key = sealed(o.SSE)
	fo.Bucket, fo.Key, fo.Modified = bucket, key, f.now()
	b.objects[key] = fo
	return fo.Object, nil
}

func (f *fakeStore) find(bucket, key string, sse object.SSE) (*fakeObject, error) {
	b, err := f.bucket(bucket)
	if err != nil {
		return nil, err
	}
	o := b.objects[key]
	switch {
	case o == nil:
		return nil, fmt.Errorf("get %q: %w", key, object.ErrNoSuchKey)
	case o.SSE.Mode == object.ModeCustomer && sse.CustomerKey == nil:
		return nil, object.ErrKeyRequired
	case o.SSE.Mode != object.ModeCustomer && sse.CustomerKey != nil:
		return nil, object.ErrKeyNotApplicable
	case o.SSE.Mode == object.ModeCustomer && o.key != *sse.CustomerKey:
		return nil, object.ErrWrongKey
	}
	return o, nil
}

func (f *fakeStore) Head(_ context.Context, bucket, key string, opt object.GetOptions) (object.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o, err := f.find(bucket, key, opt.SSE)
	if errors.Is(err, object.ErrKeyRequired) {
		return f.buckets[bucket].objects[key].Object, err
	}
	if err != nil {
		return object.Object{}, err
	}
	return o.Object, nil
}

type fakeReader struct {
	*bytes.Reader
	o      object.Object
	off, n int64
	broken int   // bytes after which reading fails, -1: never
	err    error // then; nil: object.ErrCorrupt
}

func (r *fakeReader) Close() error          { return nil }
func (r *fakeReader) Object() object.Object { return r.o }
func (r *fakeReader) Range() (int64, int64) { return r.off, r.n }
func (r *fakeReader) WriteTo(w io.Writer) (int64, error) {
	if r.broken < 0 {
		return r.Reader.WriteTo(w)
	}
	n, err := io.CopyN(w, r.Reader, int64(r.broken))
	return n, cmp.Or(err, r.err, error(object.ErrCorrupt))
}

// corruptKey names an object that breaks while it is read: after as many bytes as the digits behind it say.
const corruptKey = "corrupt-after-"

func (f *fakeStore) Get(_ context.Context, bucket, key string, opt object.GetOptions) (object.Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o, err := f.find(bucket, key, opt.SSE)
	if err != nil {
		return nil, err
	}
	off, n, ok := selection{rng: opt.Range, part: opt.Part}.resolve(o.Object)
	if !ok {
		return nil, fmt.Errorf("get %q: %w", key, object.ErrRange)
	}
	r := &fakeReader{Reader: bytes.NewReader(o.data[off : off+n]), o: o.Object, off: off, n: n, broken: -1}
	if after, ok := strings.CutPrefix(key, corruptKey); ok {
		r.broken, _ = strconv.Atoi(after)
	}
	return r, nil
}

func (f *fakeStore) Delete(_ context.Context, bucket, key string, cond object.Conditions) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(bucket)
	if err != nil {
		return err
	}
	if err := b.check(key, cond); err != nil {
		return err
	}
	delete(b.objects, key)
	return nil
}

func (f *fakeStore) DeleteMany(ctx context.Context, bucket string, all []object.Deletion) []error {
	errs := make([]error, len(all))
	for i, d := range all {
		errs[i] = f.Delete(ctx, bucket, d.Key, d.Conditions)
	}
	return errs
}

func (f *fakeStore) source(src object.CopySource) (*fakeObject, []byte, error) {
	o, err := f.find(src.Bucket, src.Key, src.SSE)
	if err == nil && src.Check != nil {
		err = src.Check(o.Object)
	}
	if err != nil {
		return nil, nil, &object.SourceError{Err: err}
	}
	if src.Range == nil {
		return o, o.data, nil
	}
	off, n, ok := resolveRange(*src.Range, o.Size)
	if !ok {
		return nil, nil, &object.SourceError{Err: object.ErrRange}
	}
	return o, o.data[off : off+n], nil
}

func (f *fakeStore) Copy(_ context.Context, src object.CopySource, bucket, key string, opt object.CopyOptions) (object.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, data, err := f.source(src)
	if err != nil {
		return object.Object{}, err
	}
	meta := from.Meta
	if opt.ReplaceMeta {
		meta = opt.Meta
		meta.Tags = from.Meta.Tags
	}
	if opt.ReplaceTags {
		meta.Tags = opt.Meta.Tags
	}
	meta.StorageClass, meta.WebsiteRedirect = opt.Meta.StorageClass, opt.Meta.WebsiteRedirect
	s := sums(data, cmp.Or(opt.Checksum, from.Checksum.Algo))
	return f.commit(bucket, key, opt.Conditions, object.Object{
		Size: s.Size, ETag: hex.EncodeToString(s.MD5), Meta: meta, Checksum: s.Checksum, SSE: opt.SSE,
	}, data)
}

// page is one row of a list: a key, or a common prefix.
func group(key, prefix, delimiter string) (name string, common bool) {
	if delimiter != "" {
		if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
			return key[:len(prefix)+i+len(delimiter)], true
		}
	}
	return key, false
}

func (f *fakeStore) List(_ context.Context, bucket string, opt object.ListOptions) (page object.ListPage, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(bucket)
	if err != nil {
		return page, err
	}
	last := ""
	for _, key := range slices.Sorted(maps.Keys(b.objects)) {
		if !strings.HasPrefix(key, opt.Prefix) {
			continue
		}
		name, common := group(key, opt.Prefix, opt.Delimiter)
		if name <= opt.After || common && name == last {
			continue
		}
		if len(page.Objects)+len(page.Prefixes) == opt.Max {
			page.Truncated, page.Next = true, last
			return page, nil
		}
		last = name
		if common {
			page.Prefixes = append(page.Prefixes, name)
		} else {
			page.Objects = append(page.Objects, b.objects[key].Object)
		}
	}
	return page, nil
}

func (f *fakeStore) CreateUpload(_ context.Context, bucket, key string, opt object.UploadOptions) (object.Upload, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(bucket)
	if err != nil {
		return object.Upload{}, err
	}
	id := make([]byte, 16)
	rand.Read(id)
	u := &fakeUpload{Upload: object.Upload{
		ID: hex.EncodeToString(id), Bucket: bucket, Key: key, Initiated: f.now(), Checksum: cmp.Or(opt.Checksum, object.AlgoCRC64NVME), Composite: opt.Composite, Meta: opt.Meta,
	}, parts: make(map[int]fakePart)}
	u.SSE, u.key = sealed(opt.SSE)
	b.uploads[u.ID] = u
	return u.Upload, nil
}

func (f *fakeStore) upload(bucket, key, id string) (*fakeBucket, *fakeUpload, error) {
	b, err := f.bucket(bucket)
	if err != nil {
		return nil, nil, err
	}
	u := b.uploads[id]
	if u == nil || u.Key != key {
		return nil, nil, fmt.Errorf("upload %q: %w", id, object.ErrNoSuchUpload)
	}
	return b, u, nil
}

func (u *fakeUpload) checkKey(sse object.SSE) error {
	switch {
	case u.SSE.Mode == object.ModeCustomer && sse.CustomerKey == nil:
		return object.ErrPartKeyRequired
	case u.SSE.Mode == object.ModeCustomer && *sse.CustomerKey != u.key, u.SSE.Mode != object.ModeCustomer && sse.CustomerKey != nil:
		return object.ErrPartKeyMismatch
	}
	return nil
}

func (f *fakeStore) PutPart(_ context.Context, bucket, key, id string, number int, body io.Reader, opt object.PartOptions) (object.Part, error) {
	f.mu.Lock()
	_, u, err := f.upload(bucket, key, id)
	f.mu.Unlock()
	if err != nil {
		return object.Part{}, err
	}
	if err := u.checkKey(opt.SSE); err != nil {
		return object.Part{}, err
	}
	data, _, err := readBody(body, opt.Size, opt.Check, cmp.Or(opt.Checksum, u.Checksum))
	if err != nil {
		return object.Part{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addPart(u, number, data, sums(data, u.Checksum)), nil
}

func (f *fakeStore) addPart(u *fakeUpload, number int, data []byte, s object.Sums) object.Part {
	p := object.Part{Number: number, Size: s.Size, ETag: hex.EncodeToString(s.MD5), Modified: f.now(), Checksum: s.Checksum}
	u.parts[number] = fakePart{p, data}
	return p
}

func (f *fakeStore) CopyPart(_ context.Context, src object.CopySource, bucket, key, id string, number int, opt object.PartOptions) (object.Part, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, u, err := f.upload(bucket, key, id)
	if err != nil {
		return object.Part{}, err
	}
	if err := u.checkKey(opt.SSE); err != nil {
		return object.Part{}, err
	}
	_, data, err := f.source(src)
	if err != nil {
		return object.Part{}, err
	}
	return f.addPart(u, number, data, sums(data, u.Checksum)), nil
}

func (f *fakeStore) ListParts(_ context.Context, bucket, key, id string, after, limit int) (page object.PartPage, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, u, err := f.upload(bucket, key, id)
	if err != nil {
		return page, err
	}
	page.Upload = u.Upload
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		if n <= after {
			continue
		}
		if len(page.Parts) == limit {
			page.Truncated = true
			break
		}
		page.Parts, page.Next = append(page.Parts, u.parts[n].Part), n
	}
	return page, nil
}

func (f *fakeStore) ListUploads(_ context.Context, bucket string, opt object.ListUploadsOptions) (page object.UploadPage, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(bucket)
	if err != nil {
		return page, err
	}
	list := slices.SortedFunc(maps.Values(b.uploads), func(x, y *fakeUpload) int { return cmp.Or(cmp.Compare(x.Key, y.Key), cmp.Compare(x.ID, y.ID)) })
	last := ""
	for _, u := range list {
		if !strings.HasPrefix(u.Key, opt.Prefix) || u.Key < opt.KeyMarker || u.Key == opt.KeyMarker && (opt.IDMarker == "" || u.ID <= opt.IDMarker) {
			continue
		}
		name, common := group(u.Key, opt.Prefix, opt.Delimiter)
		if common && (name == last || name <= opt.KeyMarker) {
			continue
		}
		if len(page.Uploads)+len(page.Prefixes) == opt.Max {
			page.Truncated = true
			return page, nil
		}
		last, page.NextKeyMarker, page.NextID = name, name, ""
		if common {
			page.Prefixes = append(page.Prefixes, name)
		} else {
			page.Uploads, page.NextID = append(page.Uploads, u.Upload), u.ID
		}
	}
	return page, nil
}

func (f *fakeStore) CompleteUpload(_ context.Context, bucket, key, id string, opt object.CompleteOptions) (object.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, u, err := f.upload(bucket, key, id)
	if err != nil {
		return object.Object{}, err
	}
	o := object.Object{Meta: u.Meta, SSE: u.SSE}
	var data, tags, partSums []byte
	for i, cp := range opt.Parts {
		p, ok := u.parts[cp.Number]
		switch {
		case i > 0 && cp.Number <= opt.Parts[i-1].Number:
			return o, object.ErrInvalidPartOrder
		case !ok || p.ETag != cp.ETag || cp.Checksum.Algo == p.Checksum.Algo && !bytes.Equal(cp.Checksum.Sum, p.Checksum.Sum):
			return o, object.ErrInvalidPart
		}
		sum, _ := hex.DecodeString(p.ETag)
		data, tags, partSums = append(data, p.data...), append(tags, sum...), append(partSums, p.Checksum.Sum...)
		o.Parts = append(o.Parts, p.Part)
	}
	for _, p := range o.Parts[:len(o.Parts)-1] {
		if p.Size < object.MinPartSize {
			return o, object.ErrPartTooSmall
		}
	}
	o.Size, o.ETag = int64(len(data)), fmt.Sprintf("%x-%d", md5.Sum(tags), len(opt.Parts))
	if u.Composite {
		o.Checksum = object.Checksum{Algo: u.Checksum, Sum: sumOf(algorithmOf(u.Checksum).new(), partSums), Composite: true}
	} else {
		o.Checksum = sums(data, u.Checksum).Checksum
	}
	if c := opt.Checksum; c.Algo != object.AlgoNone && (c.Algo != o.Checksum.Algo || c.Composite != o.Checksum.Composite || !bytes.Equal(c.Sum, o.Checksum.Sum)) {
		return o, object.ErrBadDigest
	}
	if opt.Size >= 0 && opt.Size != o.Size {
		return o, object.ErrSizeMismatch
	}
	if o.SSE.Mode == object.ModeCustomer {
		o.SSE.CustomerKey = &u.key
	}
	o, err = f.commit(bucket, key, opt.Conditions, o, data)
	if err == nil {
		delete(b.uploads, id)
	}
	return o, err
}

func (f *fakeStore) AbortUpload(_ context.Context, bucket, key, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, _, err := f.upload(bucket, key, id)
	if err == nil {
		delete(b.uploads, id)
	}
	return err
}
