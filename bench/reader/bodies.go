package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// This file is sections Streams and segments, Where streams lie, and Keys, of docs/object-format.md.

const slot = 65536

// read writes the body of an object. customer is the client's key of an object sealed with one.
func (a *array) read(x *state, o *object, customer []byte, w io.Writer) error {
	key, err := a.objectKey(x, o, customer)
	if err != nil {
		return fmt.Errorf("key of %q: %w", o.key, err)
	}
	c := o.content
	if c.manifest != nil {
		if c, err = a.readManifest(x, o); err != nil {
			return fmt.Errorf("manifest of %q: %w", o.key, err)
		}
	}
	if c.single != nil {
		return a.readStream(c.single, key, o.inline, w)
	}
	for _, p := range c.parts {
		aad := join(text("coffer part key v1"), num64(o.bucket), o.version[:], num32(uint32(p.number)), p.stream.id[:])
		partKey, err := openBox(wrapInfo, key, p.wrapped, aad)
		if err != nil {
			return fmt.Errorf("key of part %d of %q: %w", p.number, o.key, err)
		}
		if err := a.readStream(&p.stream, partKey, nil, w); err != nil {
			return fmt.Errorf("part %d of %q: %w", p.number, o.key, err)
		}
	}
	return nil
}

func (a *array) objectKey(x *state, o *object, customer []byte) ([]byte, error) {
	aad := join(text("coffer object key v1"), num64(o.bucket), o.version[:], text(o.key))
	if o.sse.mode == 2 {
		return openBox(customerInfo, customer, o.sse.wrapped, aad)
	}
	return a.byBucket(x.buckets[o.bucket], o.sse.epoch, o.sse.wrapped, aad)
}

// byBucket opens a key wrapped under a bucket's key of some epoch.
func (a *array) byBucket(b *bucket, epoch uint32, wrapped, aad []byte) ([]byte, error) {
	box, ok := b.keys[epoch]
	if !ok {
		return nil, fmt.Errorf("bucket has no key of epoch %d", epoch)
	}
	key, err := a.keys.bucketKey(b.id, epoch, box)
	if err != nil {
		return nil, err
	}
	return openBox(wrapInfo, key, wrapped, aad)
}

func (a *array) readManifest(x *state, o *object) (content, error) {
	m := o.content.manifest
	key, err := a.byBucket(x.buckets[o.bucket], m.epoch, m.wrapped, join(text("coffer manifest key v1"), num64(o.bucket), o.version[:], text(o.key)))
	if err != nil {
		return content{}, err
	}
	var buf bytes.Buffer
	if err := a.readStream(&m.stream, key, nil, &buf); err != nil {
		return content{}, err
	}
	f := &fields{p: buf.Bytes()}
	c := f.content()
	if f.bad || len(f.p) != 0 || c.manifest != nil || c.total() != o.size {
		return content{}, errRecord
	}
	return c, nil
}

// readStream opens the segments of a stream, which lie in its stripes or, without any, in inline.
func (a *array) readStream(s *stream, dataKey, inline []byte, w io.Writer) error {
	o, err := newOpener(a.head.array, s, dataKey)
	if err != nil {
		return err
	}
	if len(s.stripes) == 0 {
		for len(inline) > slot {
			if err := o.open(inline[:slot], w); err != nil {
				return err
			}
			inline = inline[slot:]
		}
		if s.size > 0 {
			err = o.open(inline, w)
		}
	}
	for _, r := range s.stripes {
		if err := a.readRun(r, func(p []byte) error { return o.open(p, w) }); err != nil {
			return err
		}
	}
	if err == nil && o.left != 0 {
		err = errors.New("stream ends early")
	}
	return err
}

// readRun calls fn for the slots of a bulk stripe.
func (a *array) readRun(r span, fn func([]byte) error) error {
	for _, b := range a.bands {
		if b.num != r.band || b.packed {
			continue
		}
		s := a.stripeAt(b, r.offset)
		if s == nil || s.data == nil || s.d != r.d {
			return fmt.Errorf("bulk stripe at band %x block %d: cannot be decoded", r.band, r.offset)
		}
		for i := range r.segments {
			p, at := s.data[i%s.d], i/s.d*slot
			if at+slot > len(p) {
				return fmt.Errorf("bulk stripe at band %x block %d: shorter than its segments", r.band, r.offset)
			}
			if err := fn(p[at : at+slot]); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("bulk stripe: no band %x", r.band)
}

// opener opens the segments of a stream in turn.
type opener struct {
	s     *stream
	key   []byte
	aead  cipher.AEAD // of algorithms 1 and 2
	aad   []byte
	index uint64
	left  uint64
}

func newOpener(array id, s *stream, dataKey []byte) (*opener, error) {
	o := &opener{s: s, left: s.size, aad: join(array[:], s.id[:], []byte{s.algorithm})}
	length := 32
	if s.algorithm == 3 {
		length = 64
	}
	var err error
	if o.key, err = hkdf.Key(sha256.New, dataKey, s.id[:], "coffer segment stream v1"+string(rune(s.algorithm)), length); err != nil {
		return nil, err
	}
	switch s.algorithm {
	case 1:
		o.aead = gcm(o.key)
	case 2:
		o.aead, err = chacha20poly1305.New(o.key)
	}
	return o, err
}

// open opens the next segment, which lies at the front of p.
func (o *opener) open(p []byte, w io.Writer) error {
	n := min(o.left, plain(o.s.algorithm))
	if n == 0 {
		return errors.New("a segment behind the last")
	}
	nonce := make([]byte, 12)
	copy(nonce[1:], num32(uint32(o.index>>32)))
	copy(nonce[6:], num32(uint32(o.index)))
	if n == o.left {
		nonce[11] = 1
	}
	sealed := n + 16
	if o.s.algorithm == 3 {
		sealed = 16 + 16*(n/16+1) + 32
	}
	if uint64(len(p)) < sealed {
		return fmt.Errorf("segment %d: cut short", o.index)
	}
	var out []byte
	var err error
	if o.aead != nil {
		out, err = o.aead.Open(nil, nonce, p[:sealed], o.aad)
	} else {
		out, err = o.openCBC(p[:sealed], join(o.aad, nonce))
	}
	if err != nil || uint64(len(out)) != n {
		return fmt.Errorf("segment %d: does not open", o.index)
	}
	o.index, o.left = o.index+1, o.left-n
	_, err = w.Write(out)
	return err
}

// openCBC is AEAD_AES_256_CBC_HMAC_SHA_512.
func (o *opener) openCBC(p, aad []byte) ([]byte, error) {
	body, tag := p[:len(p)-32], p[len(p)-32:]
	h := hmac.New(sha512.New, o.key[:32])
	h.Write(join(aad, body, num64(uint64(len(aad))*8)))
	if !hmac.Equal(h.Sum(nil)[:32], tag) {
		return nil, errors.New("tag differs")
	}
	b, err := aes.NewCipher(o.key[32:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(body)-16)
	cipher.NewCBCDecrypter(b, body[:16]).CryptBlocks(out, body[16:])
	pad := int(out[len(out)-1])
	if pad < 1 || pad > 16 {
		return nil, errors.New("padding")
	}
	return out[:len(out)-pad], nil
}
