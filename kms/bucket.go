package kms

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// maxCachedBuckets bounds the bucket keys kept unwrapped: 1 MiB of locked memory. Beyond it any one makes room: buckets in use
// come back for 2 µs each.
const maxCachedBuckets = 16 << 10

const bucketKeyVersion = 1

// BucketKeySize is the size in bytes of an encoded BucketKey.
const BucketKeySize = 1 + 4 + WrappedSize

// BucketKey is a bucket's key as an epoch wrapped it. It is worthless without the keyring.
type BucketKey struct {
	Epoch   uint32
	Wrapped []byte // WrappedSize bytes
}

// AppendBinary appends the BucketKeySize bytes of b's encoding.
func (b BucketKey) AppendBinary(dst []byte) ([]byte, error) {
	if len(b.Wrapped) != WrappedSize {
		return dst, fmt.Errorf("encode bucket key: %d bytes wrapped, want %d", len(b.Wrapped), WrappedSize)
	}
	dst = append(dst, bucketKeyVersion)
	dst = binary.BigEndian.AppendUint32(dst, b.Epoch)
	return append(dst, b.Wrapped...), nil
}

// ParseBucketKey decodes what AppendBinary made: ErrCorrupt, ErrVersion. The result does not refer to p.
func ParseBucketKey(p []byte) (BucketKey, error) {
	if len(p) > 0 && p[0] != bucketKeyVersion {
		return BucketKey{}, fmt.Errorf("decode bucket key: version %d: %w", p[0], ErrVersion)
	}
	if len(p) != BucketKeySize {
		return BucketKey{}, fmt.Errorf("decode bucket key: %d bytes: %w", len(p), ErrCorrupt)
	}
	return BucketKey{binary.BigEndian.Uint32(p[1:]), append([]byte(nil), p[5:]...)}, nil
}

// bucketCache maps wrapped bucket keys to their secrets. The whole wrapped key is part of the map's key, so that a hit proves
// as much as unwrapping did. A secret that makes room is wiped when its last user lets go of it.
type bucketCache struct {
	mu sync.RWMutex // guards m
	m  map[bucketRef]*Secret
}

type bucketRef struct {
	bucket  uint64
	epoch   uint32
	wrapped [WrappedSize]byte
}

// NewBucketKey returns a random key for a bucket, wrapped by the current epoch and bound to array and bucket: ErrClosed.
func (k *Keyring) NewBucketKey(bucketID uint64) (BucketKey, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	e, err := k.epoch(k.current)
	if err != nil {
		return BucketKey{}, fmt.Errorf("make bucket key: %w", err)
	}
	key, err := k.arena.Random(KeySize)
	if err != nil {
		return BucketKey{}, fmt.Errorf("make bucket key: %w", err)
	}
	defer key.Wipe()
	wrapped := appendBox(nil, &wrapLabels, e.bucket.view(), key.view(), k.bucketAAD(k.current, bucketID))
	return BucketKey{k.current, wrapped}, nil
}

// OpenBucketKey returns the key of a bucket. It is cached; the caller need not and must not wipe it, and should not keep it
// longer than a request. Errors: ErrCorrupt for a key that was altered or is of another bucket, ErrNoEpoch, ErrClosed.
func (k *Keyring) OpenBucketKey(bucketID uint64, b BucketKey) (*Secret, error) {
	if len(b.Wrapped) != WrappedSize {
		return nil, fmt.Errorf("open bucket key: %d bytes wrapped: %w", len(b.Wrapped), ErrCorrupt)
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	e, err := k.epoch(b.Epoch)
	if err != nil {
		return nil, fmt.Errorf("open bucket key: %w", err)
	}
	ref := bucketRef{bucketID, b.Epoch, [WrappedSize]byte(b.Wrapped)}
	if s := k.buckets.get(&ref); s != nil {
		return s, nil
	}
	s, err := k.unwrapSecret(e.bucket, b.Wrapped, k.bucketAAD(b.Epoch, bucketID))
	if err != nil {
		return nil, fmt.Errorf("open bucket key: %w", err)
	}
	return k.buckets.put(&ref, s), nil
}

func (k *Keyring) bucketAAD(epoch uint32, bucketID uint64) []byte {
	aad := append(make([]byte, 0, 64), "coffer bucket key v1"...)
	aad = append(aad, k.arrayID[:]...)
	aad = binary.BigEndian.AppendUint32(aad, epoch)
	return binary.BigEndian.AppendUint64(aad, bucketID)
}

func (c *bucketCache) get(ref *bucketRef) *Secret {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.m[*ref]
}

// put adds s and returns the secret to use: that of a call that came first, if there is one.
func (c *bucketCache) put(ref *bucketRef, s *Secret) *Secret {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.m[*ref]; first != nil {
		s.Wipe()
		return first
	}
	if c.m == nil {
		c.m = make(map[bucketRef]*Secret)
	}
	for old := range c.m {
		if len(c.m) < maxCachedBuckets {
			break
		}
		delete(c.m, old)
	}
	s.wipeUnreachable()
	c.m[*ref] = s
	return s
}
