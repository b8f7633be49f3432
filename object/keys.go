package object

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"coffer/kms"
	"coffer/object/internal/seal"
)

// What a wrapped key is for. The label is part of what the wrap authenticates, so that no wrap passes for another.
const (
	labelObject   = "coffer object key v1"
	labelManifest = "coffer manifest key v1"
	labelPart     = "coffer part key v1"
)

// maxLabel bounds the labels, for stack buffers.
const maxLabel = 32

// identityAAD binds a wrapped key to the bucket, the key and the internal version: neither a disk nor a copied record can make
// it open as another object's.
func identityAAD(b []byte, label string, bucket uint64, version id16, key string) []byte {
	b = append(b, label...)
	b = binary.BigEndian.AppendUint64(b, bucket)
	b = append(b, version[:]...)
	return append(b, key...)
}

// partAAD binds a part's key to its place. The version in it is the object's that the upload becomes.
func partAAD(b []byte, bucket uint64, version id16, number int, data id16) []byte {
	b = identityAAD(b, labelPart, bucket, version, "")
	b = binary.BigEndian.AppendUint32(b, uint32(number))
	return append(b, data[:]...)
}

// aadBuf is room on the stack for any of the above.
type aadBuf [maxLabel + 8 + 16 + MaxKeyLen]byte

func newID() (id id16) {
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// resolveSSE decides how a new object is protected. It fails closed: a mode that cannot be served is an error.
func resolveSSE(b *bucketRecord, want SSE) (sseRecord, error) {
	mode, keyID, bucketKey := want.Mode, want.KMSKeyID, want.BucketKey
	if mode == ModeDefault {
		mode = ModeS3
		if e := b.encryption; e != nil && e.Mode != ModeDefault {
			mode, keyID, bucketKey = e.Mode, e.KMSKeyID, e.BucketKey
		}
	}
	switch mode {
	case ModeS3:
		return sseRecord{mode: ModeS3, bucketKey: bucketKey}, nil
	case ModeCustomer:
		if want.CustomerKey == nil {
			return sseRecord{}, fmt.Errorf("encrypt with customer key: %w", ErrKeyRequired)
		}
		return sseRecord{mode: ModeCustomer, customerMD5: want.CustomerMD5}, nil
	}
	return sseRecord{}, fmt.Errorf("encrypt with mode %d and key %q: %w", mode, keyID, ErrNotSupported)
}

// wrapKey wraps a data key as r's mode says, into r.
func (s *Store) wrapKey(b *bucketRecord, r *sseRecord, want SSE, key *[32]byte, aad []byte) error {
	if r.mode == ModeCustomer {
		r.wrapped = kms.WrapCustomer(want.CustomerKey, key, aad)
		return nil
	}
	epoch, wrapped, err := s.wrapByBucket(b, key, aad)
	if err != nil {
		return err
	}
	r.epoch, r.wrapped = epoch, wrapped
	return nil
}

// wrapByBucket wraps under the bucket's newest key.
func (s *Store) wrapByBucket(b *bucketRecord, key *[32]byte, aad []byte) (uint32, []byte, error) {
	newest := b.keys[len(b.keys)-1]
	kek, err := s.keys.OpenBucketKey(b.id, newest)
	if err != nil {
		return 0, nil, fmt.Errorf("wrap data key: %w", err)
	}
	return newest.Epoch, kms.WrapDataKey(kek, key, aad), nil
}

// unwrapByBucket opens what wrapByBucket made.
func (s *Store) unwrapByBucket(b *bucketRecord, epoch uint32, wrapped, aad []byte) ([32]byte, error) {
	for i := range b.keys {
		if b.keys[i].Epoch != epoch {
			continue
		}
		kek, err := s.keys.OpenBucketKey(b.id, b.keys[i])
		if err != nil {
			return [32]byte{}, fmt.Errorf("unwrap data key: %w", err)
		}
		key, err := kms.UnwrapDataKey(kek, wrapped, aad)
		return key, asCorrupt(err)
	}
	return [32]byte{}, fmt.Errorf("unwrap data key: bucket has no key of epoch %d: %w", epoch, ErrCorrupt)
}

// unwrapKey opens the data key of an object or upload for a request that may carry a customer key.
func (s *Store) unwrapKey(b *bucketRecord, r *sseRecord, have SSE, aad []byte) ([32]byte, error) {
	if r.mode != ModeCustomer {
		if have.CustomerKey != nil {
			return [32]byte{}, ErrKeyNotApplicable
		}
		return s.unwrapByBucket(b, r.epoch, r.wrapped, aad)
	}
	if have.CustomerKey == nil {
		return [32]byte{}, ErrKeyRequired
	}
	key, err := kms.UnwrapCustomer(have.CustomerKey, r.wrapped, aad)
	return key, asCorrupt(err)
}

// objectKey opens the data key of a stored object: of its body, or of its parts' keys.
func (s *Store) objectKey(b *bucketRecord, r *objectRecord, have SSE) ([32]byte, error) {
	var buf aadBuf
	return s.unwrapKey(b, &r.sse, have, identityAAD(buf[:0], labelObject, r.bucket, r.version, r.key))
}

// partKey opens a part's data key with that of its upload. It wipes the latter's locked copy, not the caller's.
func (s *Store) partKey(upload *[32]byte, bucket uint64, version id16, p *partRecord) ([32]byte, error) {
	kek, err := s.secrets.Import(append(make([]byte, 0, 32), upload[:]...))
	if err != nil {
		return [32]byte{}, err
	}
	defer kek.Wipe()
	var buf aadBuf
	key, err := kms.UnwrapDataKey(kek, p.wrapped, partAAD(buf[:0], bucket, version, p.number, p.id))
	return key, asCorrupt(err)
}

// wrapPartKey wraps a part's data key under its upload's.
func (s *Store) wrapPartKey(upload *[32]byte, bucket uint64, version id16, p *partRecord, key *[32]byte) error {
	kek, err := s.secrets.Import(append(make([]byte, 0, 32), upload[:]...))
	if err != nil {
		return err
	}
	defer kek.Wipe()
	var buf aadBuf
	p.wrapped = kms.WrapDataKey(kek, key, partAAD(buf[:0], bucket, version, p.number, p.id))
	return nil
}

// openStream sets up the cipher of a stored stream.
func (s *Store) openStream(st *stream, key *[32]byte) (*seal.Stream, error) {
	return seal.NewStream(s.opt.Crypto, seal.Params{Algorithm: st.alg, Array: s.array, DataID: st.id, DataKey: key})
}

// asCorrupt gives damaged key material the name that damaged data has.
func asCorrupt(err error) error {
	if errors.Is(err, kms.ErrCorrupt) {
		return corrupt(err)
	}
	return err
}
