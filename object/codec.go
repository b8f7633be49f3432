package object

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"coffer/disk"
	"coffer/kms"
	"coffer/object/internal/seal"
)

// The wire form of records: docs/object-format.md section 3. A body is a version byte, a kind byte, and the fields of that kind.
// Integers are unsigned varints, strings and byte fields carry their length in front, ids are 16 raw bytes.

// bodyVersion is the first byte of every body.
const bodyVersion = 1

// errRecord: a body is not what an encoder of this package writes.
var errRecord = fmt.Errorf("decode record: %w", disk.ErrCorrupt)

// errVersion: a body was written by a later release.
var errVersion = errors.New("decode record: written by a later release")

// Forms of a content.
const (
	formSingle   = 0
	formParts    = 1
	formManifest = 2
)

func appendHead(b []byte, k kind) []byte { return append(b, bodyVersion, byte(k)) }

func appendUint[T ~int | ~int64 | ~uint32 | ~uint64 | ~uint8](b []byte, v T) []byte {
	return binary.AppendUvarint(b, uint64(v))
}

func appendBytes[T ~string | ~[]byte](b []byte, p T) []byte {
	b = binary.AppendUvarint(b, uint64(len(p)))
	return append(b, p...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendMap(b []byte, m map[string]string) []byte {
	b = appendUint(b, len(m))
	if len(m) == 0 {
		return b
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = appendBytes(appendBytes(b, k), m[k])
	}
	return b
}

func appendETag(b []byte, e etag) []byte { return appendUint(append(b, e.sum[:]...), e.parts) }

func appendChecksum(b []byte, c *Checksum) []byte {
	b = append(b, byte(c.Algo))
	return appendBytes(appendBool(b, c.Composite), c.Sum)
}

func appendSSE(b []byte, s *sseRecord) []byte {
	b = appendUint(append(b, byte(s.mode)), s.epoch)
	b = appendBytes(b, s.wrapped)
	b = appendBytes(appendBytes(b, s.customerMD5), s.kmsKeyID)
	return appendBool(b, s.bucketKey)
}

func appendStream(b []byte, s *stream) []byte {
	b = appendUint(append(b, byte(s.alg)), s.size)
	b = append(b, s.id[:]...)
	b = appendUint(b, len(s.stripes))
	for _, st := range s.stripes {
		b = st.AppendBinary(b)
	}
	return b
}

func appendPart(b []byte, p *partRecord) []byte {
	b = appendUint(appendUint(b, p.number), p.modified)
	b = appendChecksum(appendETag(b, p.etag), &p.checksum)
	return appendStream(appendBytes(b, p.wrapped), &p.stream)
}

// appendContent appends the form byte and the form.
func appendContent(b []byte, c *content) []byte {
	switch {
	case c.manifest != nil:
		m := c.manifest
		b = appendUint(append(b, formManifest), m.epoch)
		b = appendStream(appendBytes(b, m.wrapped), &m.stream)
		b = appendUint(b, len(m.bands))
		for _, x := range m.bands {
			b = appendUint(appendUint(b, x.band), x.bytes)
		}
	case c.parts != nil:
		b = appendUint(append(b, formParts), len(c.parts))
		for i := range c.parts {
			b = appendPart(b, &c.parts[i])
		}
	default:
		b = appendStream(append(b, formSingle), &c.single)
	}
	return b
}

func appendMeta(b []byte, m *Meta) []byte {
	for _, s := range []string{m.ContentType, m.ContentEncoding, m.ContentDisposition, m.ContentLanguage, m.CacheControl, m.Expires,
		m.WebsiteRedirect} {
		b = appendBytes(b, s)
	}
	return appendMap(appendMap(b, m.User), m.Tags)
}

// appendTo appends the body. What listings show comes first, then what the space accounting needs, then the rest, so that
// decoding can stop early.
func (r *objectRecord) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, r.kind), r.bucket)
	b = append(appendBytes(b, r.key), r.version[:]...)
	b = appendUint(appendUint(b, r.modified), r.size)
	b = appendChecksum(appendETag(b, r.etag), &r.checksum)
	b = appendBytes(b, r.meta.StorageClass)
	b = appendSSE(b, &r.sse)
	b = appendContent(b, &r.content)
	return appendMeta(b, &r.meta)
}

func (r *keyRecord) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, r.kind), r.bucket)
	b = append(appendBytes(b, r.key), r.version[:]...)
	return appendUint(b, r.at)
}

func (r *uploadRecord) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, kindUpload), r.bucket)
	b = append(appendBytes(b, r.key), r.id[:]...)
	b = appendBool(append(appendUint(b, r.at), byte(r.algo)), r.composite)
	b = appendSSE(b, &r.sse)
	return appendMeta(appendBytes(b, r.meta.StorageClass), &r.meta)
}

func (r *uploadPart) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, kindPart), r.bucket)
	b = append(appendBytes(b, r.key), r.upload[:]...)
	b = appendPart(b, &r.part)
	if r.part.claimed.Algo != AlgoNone {
		b = appendChecksum(b, &r.part.claimed)
	}
	return b
}

func (r *bucketRecord) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, kindBucket), r.id)
	b = appendUint(appendBytes(b, r.name), r.created)
	b = appendBytes(appendBytes(b, r.owner), r.region)
	if e := r.encryption; e != nil {
		b = append(b, 1, byte(e.Mode))
		b = appendBool(appendBytes(b, e.KMSKeyID), e.BucketKey)
	} else {
		b = append(b, 0)
	}
	b = appendUint(b, len(r.keys))
	for _, k := range r.keys {
		b = appendBytes(appendUint(b, k.Epoch), k.Wrapped)
	}
	return b
}

func (r *bucketDelete) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(appendHead(b, kindBucketDelete), r.id)
	return appendUint(appendBytes(b, r.name), r.at)
}

func (r *configRecord) appendTo(b []byte) []byte {
	b = appendBytes(appendHead(b, kindConfig), r.name)
	return appendBytes(appendBool(b, r.value != nil), r.value)
}

// decoder reads a body. The first fault sticks in bad; after it every read returns zero, so callers check once at the end.
// Strings are parts of s: one allocation serves them all.
type decoder struct {
	s   string
	bad bool
}

func (d *decoder) fail() {
	d.bad = true
	d.s = ""
}

func (d *decoder) err() error {
	if d.bad {
		return errRecord
	}
	return nil
}

// end also refuses bytes behind the last field.
func (d *decoder) end() error {
	if len(d.s) > 0 {
		d.fail()
	}
	return d.err()
}

func (d *decoder) byte() byte {
	if len(d.s) == 0 {
		d.fail()
		return 0
	}
	b := d.s[0]
	d.s = d.s[1:]
	return b
}

func (d *decoder) bool() bool {
	b := d.byte()
	if b > 1 {
		d.fail()
	}
	return b == 1
}

// uint reads a varint of at most limit. Longer encodings than needed are refused: a record has one form.
func (d *decoder) uint(limit uint64) uint64 {
	var v uint64
	for i := 0; ; i++ {
		b := d.byte()
		if d.bad || i == 10 || (i == 9 && b > 1) || (i > 0 && b == 0) {
			d.fail()
			return 0
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			break
		}
	}
	if v > limit {
		d.fail()
		return 0
	}
	return v
}

const (
	maxInt63 = 1<<63 - 1
	maxU32   = 1<<32 - 1
)

func (d *decoder) int64() int64 { return int64(d.uint(maxInt63)) }

// count reads the number of items that follow, each of at least size bytes, so that no claim allocates more than the body
// could hold.
func (d *decoder) count(size int) int { return int(d.uint(uint64(len(d.s) / size))) }

func (d *decoder) take(n int) string {
	if n > len(d.s) {
		d.fail()
		return ""
	}
	p := d.s[:n]
	d.s = d.s[n:]
	return p
}

func (d *decoder) string() string { return d.take(int(d.uint(uint64(len(d.s))))) }

// bytes returns a copy, nil for none.
func (d *decoder) bytes() []byte {
	s := d.string()
	if s == "" {
		return nil
	}
	return []byte(s)
}

func (d *decoder) id() (id id16) {
	copy(id[:], d.take(len(id)))
	return id
}

func (d *decoder) uint64() uint64 {
	s := d.take(8)
	if d.bad {
		return 0
	}
	var b [8]byte
	copy(b[:], s)
	return binary.BigEndian.Uint64(b[:])
}

func (d *decoder) stringMap() map[string]string {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	m := make(map[string]string, n)
	last := ""
	for i := range n {
		k := d.string()
		if i > 0 && k <= last {
			d.fail()
		}
		if d.bad {
			return nil
		}
		m[k], last = d.string(), k
	}
	return m
}

func (d *decoder) etag() etag { return etag{d.id(), uint32(d.uint(MaxParts))} }

func (d *decoder) checksum() Checksum {
	c := Checksum{Algo: Algo(d.byte()), Composite: d.bool(), Sum: d.bytes()}
	if c.Algo > AlgoSHA256 {
		d.fail()
	}
	return c
}

func (d *decoder) sse() sseRecord {
	s := sseRecord{mode: Mode(d.byte()), epoch: uint32(d.uint(maxU32)), wrapped: d.bytes(), customerMD5: d.string(),
		kmsKeyID: d.string(), bucketKey: d.bool()}
	if s.mode < ModeS3 || s.mode > ModeDSSE {
		d.fail()
	}
	return s
}

// stripeSize is the least a stripe takes: four varints.
const stripeSize = 4

func (d *decoder) stream() stream {
	s := stream{alg: seal.Algorithm(d.byte()), size: d.int64(), id: d.id()}
	n := d.count(stripeSize)
	if n > 0 {
		s.stripes = make([]disk.Stripe, n)
	}
	var segments int64
	for i := range s.stripes {
		s.stripes[i] = d.stripe()
		segments += int64(s.stripes[i].Segments)
	}
	switch {
	case d.bad:
	case !s.alg.Valid(), n > 0 && segments != s.alg.Segments(s.size):
		d.fail()
	}
	return s
}

// stripe reads a disk.Stripe with the bounds that the disk sets.
func (d *decoder) stripe() disk.Stripe {
	return disk.Stripe{Band: d.uint(1<<64 - 1), Off: uint32(d.uint(maxU32)), Data: d.positive8(), Segments: d.positive16()}
}

func (d *decoder) positive8() uint8 {
	v := d.uint(disk.MaxWidth)
	if v == 0 {
		d.fail()
	}
	return uint8(v)
}

func (d *decoder) positive16() uint16 {
	v := d.uint(1<<16 - 1)
	if v == 0 {
		d.fail()
	}
	return uint16(v)
}

func (d *decoder) part() partRecord {
	p := partRecord{number: int(d.uint(MaxParts)), modified: d.int64(), etag: d.etag(), checksum: d.checksum(), wrapped: d.bytes()}
	p.stream = d.stream()
	if p.number == 0 || (p.size > 0 && len(p.stripes) == 0) {
		d.fail()
	}
	return p
}

// partSize is the least a part takes.
const partSize = 40

func (d *decoder) content() content {
	var c content
	switch d.byte() {
	case formSingle:
		c.single = d.stream()
	case formParts:
		n := d.count(partSize)
		if n == 0 || n > MaxParts {
			d.fail()
			return c
		}
		c.parts = make([]partRecord, n)
		for i := range c.parts {
			c.parts[i] = d.part()
			if i > 0 && c.parts[i].number <= c.parts[i-1].number {
				d.fail()
			}
			if d.bad {
				return c
			}
		}
	case formManifest:
		m := &manifest{epoch: uint32(d.uint(maxU32)), wrapped: d.bytes()}
		m.stream = d.stream()
		for range d.count(2) {
			m.bands = append(m.bands, bandBytes{d.uint(1<<64 - 1), d.int64()})
		}
		if len(m.stripes) == 0 {
			d.fail()
		}
		c.manifest = m
	default:
		d.fail()
	}
	return c
}

func (d *decoder) meta(storageClass string) Meta {
	return Meta{ContentType: d.string(), ContentEncoding: d.string(), ContentDisposition: d.string(), ContentLanguage: d.string(),
		CacheControl: d.string(), Expires: d.string(), WebsiteRedirect: d.string(), StorageClass: storageClass,
		User: d.stringMap(), Tags: d.stringMap()}
}

// kindOf returns the kind of a body.
func kindOf(body []byte) (kind, error) {
	switch {
	case len(body) < 2 || body[0] == 0 || body[1] == 0:
		return 0, errRecord
	case body[0] != bodyVersion || kind(body[1]) >= kindMax:
		return 0, errVersion
	}
	return kind(body[1]), nil
}

// open begins to read a body behind its kind.
func open(body []byte) (decoder, kind, error) {
	k, err := kindOf(body)
	if err != nil {
		return decoder{}, 0, err
	}
	return decoder{s: string(body[2:])}, k, nil
}

// depth says how much of an object's record is wanted.
type depth int

const (
	depthList    depth = iota // up to the checksum
	depthContent              // up to the content
	depthAll
)

func decodeObject(body []byte, want depth) (*objectRecord, error) {
	d, k, err := open(body)
	if err != nil {
		return nil, err
	}
	if k != kindObject && k != kindComplete {
		return nil, errRecord
	}
	r := &objectRecord{kind: k, bucket: d.uint64(), key: d.string(), version: d.id(), modified: d.int64(), size: d.int64(),
		etag: d.etag(), checksum: d.checksum()}
	r.meta.StorageClass = d.string()
	if want == depthList {
		return r, d.err()
	}
	r.sse, r.content = d.sse(), d.content()
	if !d.bad && !r.content.fits(r.size) {
		d.fail()
	}
	if want == depthContent {
		return r, d.err()
	}
	r.meta = d.meta(r.meta.StorageClass)
	return r, d.end()
}

// fits reports whether the content adds up to size.
func (c *content) fits(size int64) bool {
	switch {
	case c.manifest != nil:
		return true
	case c.parts != nil:
		for i := range c.parts {
			if size -= c.parts[i].size; size < 0 {
				return false
			}
		}
		return size == 0
	}
	return c.single.size == size
}

func decodeKey(body []byte) (keyRecord, error) {
	d, k, err := open(body)
	if err != nil {
		return keyRecord{}, err
	}
	if k != kindTombstone && k != kindAbort {
		return keyRecord{}, errRecord
	}
	r := keyRecord{kind: k, bucket: d.uint64(), key: d.string(), version: d.id(), at: d.int64()}
	return r, d.end()
}

func decodeUpload(body []byte) (*uploadRecord, error) {
	d, k, err := open(body)
	if err != nil || k != kindUpload {
		return nil, errors.Join(errRecord, err)
	}
	r := &uploadRecord{bucket: d.uint64(), key: d.string(), id: d.id(), at: d.int64(), algo: Algo(d.byte()), composite: d.bool(),
		sse: d.sse()}
	if r.algo > AlgoSHA256 {
		d.fail()
	}
	r.meta = d.meta(d.string())
	return r, d.end()
}

func decodeUploadPart(body []byte) (*uploadPart, error) {
	d, k, err := open(body)
	if err != nil || k != kindPart {
		return nil, errors.Join(errRecord, err)
	}
	r := &uploadPart{bucket: d.uint64(), key: d.string(), upload: d.id(), part: d.part()}
	if len(d.s) > 0 {
		if r.part.claimed = d.checksum(); r.part.claimed.Algo == AlgoNone {
			d.fail()
		}
	}
	return r, d.end()
}

func decodeBucket(body []byte) (*bucketRecord, error) {
	d, k, err := open(body)
	if err != nil || k != kindBucket {
		return nil, errors.Join(errRecord, err)
	}
	r := &bucketRecord{id: d.uint64(), name: d.string(), created: d.int64(), owner: d.string(), region: d.string()}
	if d.bool() {
		r.encryption = &BucketEncryption{Mode: Mode(d.byte()), KMSKeyID: d.string(), BucketKey: d.bool()}
		if r.encryption.Mode > ModeDSSE {
			d.fail()
		}
	}
	for range d.count(2) {
		r.keys = append(r.keys, kms.BucketKey{Epoch: uint32(d.uint(maxU32)), Wrapped: d.bytes()})
	}
	return r, d.end()
}

func decodeBucketDelete(body []byte) (bucketDelete, error) {
	d, k, err := open(body)
	if err != nil || k != kindBucketDelete {
		return bucketDelete{}, errors.Join(errRecord, err)
	}
	r := bucketDelete{id: d.uint64(), name: d.string(), at: d.int64()}
	return r, d.end()
}

func decodeConfig(body []byte) (configRecord, error) {
	d, k, err := open(body)
	if err != nil || k != kindConfig {
		return configRecord{}, errors.Join(errRecord, err)
	}
	r := configRecord{name: d.string()}
	set := d.bool()
	v := d.string()
	if set {
		r.value = append([]byte{}, v...)
	} else if v != "" {
		d.fail()
	}
	return r, d.end()
}
