package object

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"coffer/disk"
	"coffer/kms"
)

// bucketTable is all buckets, in memory: each request looks one up. Only Apply and New change it; records in it are immutable.
type bucketTable struct {
	mu     sync.RWMutex // guards byName
	byName map[string]*bucketRecord
}

func (t *bucketTable) get(name string) *bucketRecord {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byName[name]
}

// byID looks through all buckets.
func (t *bucketTable) byID(id uint64) *bucketRecord {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, b := range t.byName {
		if b.id == id {
			return b
		}
	}
	return nil
}

func (t *bucketTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byName)
}

// put adds or replaces a bucket.
func (t *bucketTable) put(b *bucketRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName == nil {
		t.byName = make(map[string]*bucketRecord)
	}
	t.byName[b.name] = b
}

func (t *bucketTable) remove(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byName, name)
}

func (t *bucketTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.byName)
}

func (t *bucketTable) names() []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.byName))
}

// lookup returns a bucket or ErrNoSuchBucket.
func (s *Store) lookup(name string) (*bucketRecord, error) {
	if s.log.Load() == nil {
		return nil, ErrClosed
	}
	if b := s.buckets.get(name); b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("bucket %q: %w", name, ErrNoSuchBucket)
}

// writable returns a bucket whose newest key is of the current key epoch, giving it one if need be.
func (s *Store) writable(ctx context.Context, name string) (*bucketRecord, error) {
	b, err := s.lookup(name)
	if err != nil || b.keys[len(b.keys)-1].Epoch >= s.keys.CurrentEpoch() {
		return b, err
	}
	return s.changeBucket(ctx, name, func(b *bucketRecord) error {
		if b.keys[len(b.keys)-1].Epoch >= s.keys.CurrentEpoch() {
			return nil
		}
		key, err := s.keys.NewBucketKey(b.id)
		if err != nil {
			return err
		}
		b.keys = append(slices.Clip(b.keys), key)
		return nil
	})
}

// changeBucket appends a changed copy of the bucket's record.
func (s *Store) changeBucket(ctx context.Context, name string, change func(*bucketRecord) error) (*bucketRecord, error) {
	l := s.locks.bucket(name)
	l.Lock()
	defer l.Unlock()
	b, err := s.lookup(name)
	if err != nil {
		return nil, err
	}
	next := *b
	if err := change(&next); err != nil {
		return nil, fmt.Errorf("change bucket %q: %w", name, err)
	}
	if err := s.append(ctx, disk.Record{Body: next.appendTo(nil)}); err != nil {
		return nil, fmt.Errorf("change bucket %q: %w", name, err)
	}
	return &next, nil
}

func (b *bucketRecord) bucket() Bucket {
	out := Bucket{Name: b.name, ID: b.id, Created: fromMillis(b.created), Owner: b.owner, Region: b.region}
	if b.encryption != nil {
		e := *b.encryption
		out.Encryption = &e
	}
	return out
}

// CreateBucket makes a bucket with b's Owner, Region and Encryption. If the name is taken it answers ErrBucketExists and the
// bucket that has it.
func (s *Store) CreateBucket(ctx context.Context, name string, b Bucket) (Bucket, error) {
	if err := s.admit(ctx); err != nil {
		return Bucket{}, fmt.Errorf("create bucket %q: %w", name, err)
	}
	l := s.locks.bucket(name)
	l.Lock()
	defer l.Unlock()
	if old := s.buckets.get(name); old != nil {
		return old.bucket(), fmt.Errorf("create bucket %q: %w", name, ErrBucketExists)
	}
	r := &bucketRecord{id: newBucketID(), name: name, created: nowMillis(), owner: b.Owner, region: b.Region,
		encryption: b.Encryption}
	key, err := s.keys.NewBucketKey(r.id)
	if err != nil {
		return Bucket{}, fmt.Errorf("create bucket %q: %w", name, err)
	}
	r.keys = []kms.BucketKey{key}
	if err := s.append(ctx, disk.Record{Body: r.appendTo(nil)}); err != nil {
		return Bucket{}, fmt.Errorf("create bucket %q: %w", name, err)
	}
	return r.bucket(), nil
}

// newBucketID is random, so that no id ever returns: old records of a deleted bucket can never fall to a new one.
func newBucketID() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:])
}

// Bucket describes a bucket.
func (s *Store) Bucket(_ context.Context, name string) (Bucket, error) {
	b, err := s.lookup(name)
	if err != nil {
		return Bucket{}, err
	}
	return b.bucket(), nil
}

// DeleteBucket removes an empty bucket: ErrBucketNotEmpty while it has objects or uploads.
func (s *Store) DeleteBucket(ctx context.Context, name string) error {
	if err := s.admitEssential(ctx); err != nil {
		return fmt.Errorf("delete bucket %q: %w", name, err)
	}
	l := s.locks.bucket(name)
	l.Lock()
	defer l.Unlock()
	b, err := s.lookup(name)
	if err != nil {
		return err
	}
	empty, err := s.bucketEmpty(b.id)
	if err != nil {
		return fmt.Errorf("delete bucket %q: %w", name, err)
	}
	if !empty {
		return fmt.Errorf("delete bucket %q: %w", name, ErrBucketNotEmpty)
	}
	r := bucketDelete{id: b.id, name: name, at: nowMillis()}
	if err := s.append(ctx, disk.Record{Body: r.appendTo(nil), Essential: true}); err != nil {
		return fmt.Errorf("delete bucket %q: %w", name, err)
	}
	return nil
}

// ListBuckets returns buckets in byte order.
func (s *Store) ListBuckets(_ context.Context, o ListBucketsOptions) (buckets []Bucket, truncated bool, err error) {
	if _, err := s.disk(); err != nil {
		return nil, false, err
	}
	names := s.buckets.names()
	slices.Sort(names)
	for _, n := range names {
		if n <= o.After || !strings.HasPrefix(n, o.Prefix) {
			continue
		}
		if o.Max > 0 && len(buckets) == o.Max {
			return buckets, true, nil
		}
		if b := s.buckets.get(n); b != nil {
			buckets = append(buckets, b.bucket())
		}
	}
	return buckets, false, nil
}

// SetBucketEncryption sets the default encryption of new objects; nil deletes it. Modes that cannot be served are accepted, as
// S3 does not validate them here: writes that would need them fail with ErrNotSupported.
func (s *Store) SetBucketEncryption(ctx context.Context, name string, e *BucketEncryption) error {
	if e != nil && e.Mode == ModeCustomer {
		return fmt.Errorf("set encryption of bucket %q: customer keys: %w", name, ErrNotSupported)
	}
	_, err := s.changeBucket(ctx, name, func(b *bucketRecord) error {
		b.encryption = nil
		if e != nil {
			c := *e
			b.encryption = &c
		}
		return nil
	})
	return err
}

// Config returns a system record, nil if there is none of that name.
func (s *Store) Config(_ context.Context, name string) ([]byte, error) {
	if _, err := s.disk(); err != nil {
		return nil, err
	}
	r, err := s.loadConfig(name)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	return r.value, err
}

// SetConfig keeps a small system record, sealed like all others; nil deletes it.
func (s *Store) SetConfig(ctx context.Context, name string, value []byte) error {
	const maxConfig = 64 << 10
	if len(name) > 255 || len(value) > maxConfig {
		return fmt.Errorf("set config %q: %d bytes: %w", name, len(value), ErrTooLarge)
	}
	l := s.locks.key(0, name)
	l.Lock()
	defer l.Unlock()
	r := configRecord{name: name, value: value}
	if err := s.append(ctx, disk.Record{Body: r.appendTo(nil), Essential: true}); err != nil {
		return fmt.Errorf("set config %q: %w", name, err)
	}
	return nil
}

// Times are kept in milliseconds, as S3 shows them.
func nowMillis() int64 { return time.Now().UnixMilli() }

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
