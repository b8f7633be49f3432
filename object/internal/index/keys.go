package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The first byte of a key names the kind of record (docs/index-format.md, "Keys").
const (
	kindBucket  = 'b'
	kindConfig  = 'c'
	kindMeta    = 'm'
	kindObject  = 'o'
	kindPart    = 'p'
	kindUpload  = 'u'
	kindVersion = 'v'
	kindLive    = 'L'
	kindRef     = 'r'
	kindShadow  = 't'
)

const bucketSize = 8 // bytes of a bucket id

// UploadID names a multipart upload.
type UploadID [16]byte

// BucketKey appends to dst the key of a bucket's record. Buckets are in the byte order of their names.
func BucketKey(dst []byte, name string) []byte { return append(append(dst, kindBucket), name...) }

// ConfigKey appends to dst the key of a system record.
func ConfigKey(dst []byte, name string) []byte { return append(append(dst, kindConfig), name...) }

// ObjectKey appends to dst the key of an object's current version. The object's key is the tail, so that plain byte order is
// the order of S3 listings.
func ObjectKey(dst []byte, bucket uint64, key string) []byte {
	return append(binary.BigEndian.AppendUint64(append(dst, kindObject), bucket), key...)
}

// VersionKey appends to dst the key of a noncurrent version: by object key, then newest first.
func VersionKey(dst []byte, bucket uint64, key string, seq uint64) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, kindVersion), bucket)
	return binary.BigEndian.AppendUint64(terminate(escape(dst, key)), ^seq)
}

// UploadKey appends to dst the key of a multipart upload: by object key, then by id.
func UploadKey(dst []byte, bucket uint64, key string, id UploadID) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, kindUpload), bucket)
	return append(terminate(escape(dst, key)), id[:]...)
}

// PartKey appends to dst the key of a part of an upload.
func PartKey(dst []byte, id UploadID, part uint16) []byte {
	return binary.BigEndian.AppendUint16(append(append(dst, kindPart), id[:]...), part)
}

func liveKey(dst []byte, band uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, kindLive), band)
}

// RefKey appends to dst the key that says that the entry under key refers to a bulk band.
func RefKey(dst []byte, band uint64, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64(append(dst, kindRef), band), key...)
}

// ShadowKey appends to dst the key of a record that made others vanish: by its sequence number.
func ShadowKey(dst []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, kindShadow), seq)
}

// RefRange bounds the RefKeys of a band.
func RefRange(band uint64) (lower, upper []byte) {
	lower = RefKey(nil, band, nil)
	return lower, Successor(lower)
}

// ShadowRange bounds the ShadowKeys of numbers from..below-1.
func ShadowRange(from, below uint64) (lower, upper []byte) {
	return ShadowKey(nil, from), ShadowKey(nil, below)
}

// BucketRange, ConfigRange, ObjectRange, UploadRange and PartRange bound all records of a kind, of a bucket or of an upload.
func BucketRange() (lower, upper []byte) { return []byte{kindBucket}, []byte{kindBucket + 1} }

// ConfigRange is described at BucketRange.
func ConfigRange() (lower, upper []byte) { return []byte{kindConfig}, []byte{kindConfig + 1} }

// ObjectRange is described at BucketRange.
func ObjectRange(bucket uint64) (lower, upper []byte) {
	lower = ObjectKey(nil, bucket, "")
	return lower, Successor(lower)
}

// UploadRange is described at BucketRange.
func UploadRange(bucket uint64) (lower, upper []byte) {
	lower = binary.BigEndian.AppendUint64([]byte{kindUpload}, bucket)
	return lower, Successor(lower)
}

// PartRange is described at BucketRange.
func PartRange(id UploadID) (lower, upper []byte) {
	lower = append([]byte{kindPart}, id[:]...)
	return lower, Successor(lower)
}

// ParseBucketKey decodes a BucketKey. It and the other Parse functions return an error wrapping ErrCorrupt for other keys.
func ParseBucketKey(k []byte) (name string, err error) {
	if len(k) < 1 || k[0] != kindBucket {
		return "", badKey("bucket", k)
	}
	return string(k[1:]), nil
}

// ParseConfigKey decodes a ConfigKey.
func ParseConfigKey(k []byte) (name string, err error) {
	if len(k) < 1 || k[0] != kindConfig {
		return "", badKey("config", k)
	}
	return string(k[1:]), nil
}

// ParseObjectKey decodes an ObjectKey.
func ParseObjectKey(k []byte) (bucket uint64, key string, err error) {
	if len(k) < 1+bucketSize || k[0] != kindObject {
		return 0, "", badKey("object", k)
	}
	return binary.BigEndian.Uint64(k[1:]), string(k[1+bucketSize:]), nil
}

// ParseVersionKey decodes a VersionKey.
func ParseVersionKey(k []byte) (bucket uint64, key string, seq uint64, err error) {
	bucket, name, rest, ok := splitEscaped(k, kindVersion)
	if !ok || len(rest) != 8 {
		return 0, "", 0, badKey("version", k)
	}
	return bucket, string(name), ^binary.BigEndian.Uint64(rest), nil
}

// ParseUploadKey decodes an UploadKey.
func ParseUploadKey(k []byte) (bucket uint64, key string, id UploadID, err error) {
	bucket, name, rest, ok := splitEscaped(k, kindUpload)
	if !ok || len(rest) != len(id) {
		return 0, "", id, badKey("upload", k)
	}
	return bucket, string(name), UploadID(rest), nil
}

// ParsePartKey decodes a PartKey.
func ParsePartKey(k []byte) (id UploadID, part uint16, err error) {
	if len(k) != 1+len(id)+2 || k[0] != kindPart {
		return id, 0, badKey("part", k)
	}
	return UploadID(k[1:]), binary.BigEndian.Uint16(k[1+len(id):]), nil
}

// ParseRefKey decodes a RefKey. The key of the entry is part of k.
func ParseRefKey(k []byte) (band uint64, key []byte, err error) {
	if len(k) < 1+8+1 || k[0] != kindRef {
		return 0, nil, badKey("reference", k)
	}
	return binary.BigEndian.Uint64(k[1:]), k[1+8:], nil
}

// ParseShadowKey decodes a ShadowKey.
func ParseShadowKey(k []byte) (seq uint64, err error) {
	if len(k) != 1+8 || k[0] != kindShadow {
		return 0, badKey("shadow", k)
	}
	return binary.BigEndian.Uint64(k[1:]), nil
}

// Kind is the first byte of a key: what its entry is.
type Kind byte

// Kinds of entries. All but references hold records.
const (
	KindBucket Kind = kindBucket
	KindConfig Kind = kindConfig
	KindObject Kind = kindObject
	KindPart   Kind = kindPart
	KindUpload Kind = kindUpload
	KindShadow Kind = kindShadow
	KindRef    Kind = kindRef
)

// KindOf returns the kind of a key.
func KindOf(k []byte) Kind { return Kind(k[0]) }

func parseLiveKey(k []byte) (band uint64, err error) {
	if len(k) != 1+8 || k[0] != kindLive {
		return 0, badKey("live bytes", k)
	}
	return binary.BigEndian.Uint64(k[1:]), nil
}

// badKey does not quote the key: object names do not belong into logs.
func badKey(kind string, k []byte) error {
	return fmt.Errorf("parse %s key of %d bytes: %w", kind, len(k), ErrCorrupt)
}

// escape appends key so that order and the prefix relation are kept and something may follow: 0x00 becomes 0x00 0xff, and
// terminate adds 0x00 0x01, which is below any continuation of the key.
func escape(dst []byte, key string) []byte {
	for i := range len(key) {
		dst = append(dst, key[i])
		if key[i] == 0 {
			dst = append(dst, 0xff)
		}
	}
	return dst
}

func terminate(dst []byte) []byte { return append(dst, 0, 1) }

// splitEscaped decodes kind, bucket and escaped key, and returns what follows.
func splitEscaped(k []byte, kind byte) (bucket uint64, key, rest []byte, ok bool) {
	if len(k) < 1+bucketSize || k[0] != kind {
		return 0, nil, nil, false
	}
	bucket = binary.BigEndian.Uint64(k[1:])
	key, rest, ok = unescape(k[1+bucketSize:])
	return bucket, key, rest, ok
}

// unescape decodes an escaped and terminated key and returns what follows it.
func unescape(b []byte) (key, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 == len(b) {
			return nil, nil, false
		}
		key = append(key, b[:i]...)
		switch b[i+1] {
		case 1:
			return key, b[i+2:], true
		case 0xff:
			key = append(key, 0)
		default:
			return nil, nil, false
		}
		b = b[i+2:]
	}
}

// Successor returns the least key above all keys that begin with prefix, or nil if there is none because prefix is empty or
// all 0xff.
func Successor(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			s := bytes.Clone(prefix[:i+1])
			s[i]++
			return s
		}
	}
	return nil
}
