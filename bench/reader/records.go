package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
)

// This file is section Records of docs/object-format.md.

func cmpString(a, b string) int { return cmp.Compare(a, b) }

const (
	recBucket       = 1
	recBucketDelete = 2
	recObject       = 3
	recTombstone    = 4
	recUpload       = 5
	recAbort        = 6
	recPart         = 7
	recComplete     = 8
	recConfig       = 9
)

type bucket struct {
	id            uint64
	name          string
	created       uint64
	owner, region string
	keys          map[uint32][]byte // boxes by epoch
}

// gone is a bucket delete (key is the name), a tombstone or an abort.
type gone struct {
	kind    byte
	bucket  uint64
	key     string
	version id
}

type object struct {
	kind     byte
	bucket   uint64
	key      string
	version  id
	modified uint64
	size     uint64
	etag     string
	checksum checksum
	class    string
	sse      sse
	content  content
	meta     meta
	inline   []byte
}

type upload struct {
	bucket uint64
	key    string
	id     id
	sse    sse
	parts  map[uint64]part
}

type uploadPart struct {
	bucket uint64
	key    string
	upload id
	part   part
}

type config struct {
	name  string
	set   bool
	value []byte
}

type checksum struct {
	algorithm byte
	composite bool
	sum       []byte
}

type sse struct {
	mode      byte
	epoch     uint32
	wrapped   []byte
	md5, kms  string
	bucketKey bool
}

type span struct {
	band     uint64
	offset   uint32
	d        int
	segments int
}

type stream struct {
	algorithm byte
	size      uint64
	id        id
	stripes   []span
}

type part struct {
	number, modified uint64
	etag             string
	checksum         checksum
	wrapped          []byte
	stream           stream
}

type manifest struct {
	epoch   uint32
	wrapped []byte
	stream  stream
}

// content has one of its forms.
type content struct {
	single   *stream
	parts    []part
	manifest *manifest
}

type meta struct {
	contentType, encoding, disposition, language, cacheControl, expires, redirect string
	user, tags                                                                    map[string]string
}

var errRecord = errors.New("record is malformed")

// fields reads a record field by field; the first that cannot be read makes bad true and all later ones zero.
type fields struct {
	p   []byte
	bad bool
}

func (f *fields) take(n uint64) []byte {
	if f.bad || n > uint64(len(f.p)) {
		f.bad = true
		return nil
	}
	b := f.p[:n]
	f.p = f.p[n:]
	return b
}

func (f *fields) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) bool() bool {
	b := f.byte()
	f.bad = f.bad || b > 1
	return b == 1
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.p)
	if n <= 0 || n > 1 && f.p[n-1] == 0 { // longer than needed
		f.bad = true
		return 0
	}
	f.take(uint64(n))
	return v
}

// upTo is a uvarint of at least one and at most a bound.
func (f *fields) upTo(most uint64) uint64 {
	v := f.uint()
	f.bad = f.bad || v < 1 || v > most
	return v
}

// count is a number of things that take at least one byte each.
func (f *fields) count() int {
	n := f.uint()
	if f.bad || n > uint64(len(f.p)) {
		f.bad = true
		return 0
	}
	return int(n)
}

func (f *fields) bytes() []byte  { return f.take(f.uint()) }
func (f *fields) string() string { return string(f.bytes()) }

func (f *fields) id() (v id) {
	copy(v[:], f.take(16))
	return v
}

func (f *fields) bucket() uint64 {
	if b := f.take(8); b != nil {
		return be.Uint64(b)
	}
	return 0
}

func (f *fields) etag() string {
	sum := f.id()
	if n := f.uint(); n > 0 {
		return fmt.Sprintf("%x-%d", sum, n)
	}
	return fmt.Sprintf("%x", sum)
}

func (f *fields) checksum() checksum {
	c := checksum{f.byte(), f.bool(), f.bytes()}
	f.bad = f.bad || c.algorithm > 5
	return c
}

func (f *fields) sse() sse {
	s := sse{f.byte(), uint32(f.uint()), f.bytes(), f.string(), f.string(), f.bool()}
	f.bad = f.bad || s.mode < 1 || s.mode > 4
	return s
}

// plain is how much plaintext a full segment holds; 0 for an algorithm that is refused.
func plain(algorithm byte) uint64 {
	switch algorithm {
	case 1, 2:
		return 65520
	case 3:
		return 65487
	}
	return 0
}

func (f *fields) stream() stream {
	s := stream{algorithm: f.byte(), size: f.uint(), id: f.id()}
	var segments uint64
	for range f.count() {
		r := span{f.uint(), uint32(f.uint()), int(f.upTo(32)), int(f.upTo(65535))}
		s.stripes, segments = append(s.stripes, r), segments+uint64(r.segments)
	}
	if p := plain(s.algorithm); p == 0 || len(s.stripes) > 0 && segments != (s.size+p-1)/p {
		f.bad = true
	}
	return s
}

func (f *fields) part() part {
	p := part{f.upTo(10000), f.uint(), f.etag(), f.checksum(), f.bytes(), f.stream()}
	f.bad = f.bad || p.stream.size > 0 && len(p.stream.stripes) == 0
	return p
}

func (f *fields) content() (c content) {
	switch f.byte() {
	case 0:
		s := f.stream()
		c.single = &s
	case 1:
		last := uint64(0)
		for range f.upTo(10000) {
			p := f.part()
			if f.bad = f.bad || p.number <= last; f.bad {
				return content{}
			}
			c.parts, last = append(c.parts, p), p.number
		}
	case 2:
		c.manifest = &manifest{uint32(f.uint()), f.bytes(), f.stream()}
		for range f.count() {
			f.uint()
			f.uint()
		}
		f.bad = f.bad || len(c.manifest.stream.stripes) == 0
	default:
		f.bad = true
	}
	return c
}

// total is the size of a content of form 0 or 1.
func (c *content) total() (n uint64) {
	if c.single != nil {
		return c.single.size
	}
	for _, p := range c.parts {
		n += p.stream.size
	}
	return n
}

func (f *fields) pairs() map[string]string {
	m, last := map[string]string{}, ""
	for i := range f.count() {
		k, v := f.string(), f.string()
		f.bad = f.bad || i > 0 && k <= last
		m[k], last = v, k
	}
	return m
}

func (f *fields) meta() meta {
	return meta{f.string(), f.string(), f.string(), f.string(), f.string(), f.string(), f.string(), f.pairs(), f.pairs()}
}

// parseRecord returns a *bucket, *gone, *object, *upload, *uploadPart or *config.
func parseRecord(body []byte) (any, error) {
	f := &fields{p: body}
	version, kind := f.byte(), f.byte()
	if f.bad || version != 1 || kind < recBucket || kind > recConfig {
		return nil, fmt.Errorf("record version %d, kind %d: not known", version, kind)
	}
	var rec any
	switch kind {
	case recBucket:
		rec = f.bucketRecord()
	case recBucketDelete:
		rec = &gone{kind: kind, bucket: f.bucket(), key: f.string()}
		f.uint()
	case recTombstone, recAbort:
		rec = &gone{kind: kind, bucket: f.bucket(), key: f.string(), version: f.id()}
		f.uint()
	case recObject, recComplete:
		o := &object{kind, f.bucket(), f.string(), f.id(), f.uint(), f.uint(), f.etag(), f.checksum(), f.string(), f.sse(), f.content(), f.meta(), nil}
		f.bad = f.bad || o.content.manifest == nil && o.content.total() != o.size
		rec = o
	case recUpload:
		u := &upload{bucket: f.bucket(), key: f.string(), id: f.id(), parts: map[uint64]part{}}
		f.uint()
		f.byte()
		f.bool()
		u.sse = f.sse()
		f.string()
		f.meta()
		rec = u
	case recPart:
		rec = &uploadPart{f.bucket(), f.string(), f.id(), f.part()}
		if len(f.p) > 0 {
			f.checksum()
		}
	case recConfig:
		rec = &config{f.string(), f.bool(), f.bytes()}
	}
	if f.bad || len(f.p) != 0 {
		return nil, errRecord
	}
	return rec, nil
}

func (f *fields) bucketRecord() *bucket {
	b := &bucket{id: f.bucket(), name: f.string(), created: f.uint(), owner: f.string(), region: f.string(), keys: map[uint32][]byte{}}
	if f.bool() { // default encryption
		f.byte()
		f.string()
		f.bool()
	}
	for range f.count() {
		epoch := uint32(f.uint())
		b.keys[epoch] = f.bytes()
	}
	return b
}
