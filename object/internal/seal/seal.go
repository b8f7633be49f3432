// Package seal is the sealed form of object bodies: a stream of segments, each proved by its own AEAD tag.
//
// It promises that Open returns only bytes that Seal was given, at the same place of the same stream: segments that were
// altered, cut off, reordered, or moved from another stream, object or array fail with ErrOpen. It does not hide lengths, and it
// does not bind a stream to a name: the record that holds the data key does. The format is described byte by byte in
// docs/object-format.md.
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"coffer/hw"
)

// SegmentSize is what every sealed segment but the last occupies, in bytes: a slot of a bulk stripe.
const SegmentSize = 65536

// ErrOpen: a segment is not what was sealed at this place of this stream.
var ErrOpen = errors.New("segment does not authenticate")

// Algorithm is the stored id of an AEAD.
type Algorithm uint8

// Algorithms that can be stored. Ids are never reused.
const (
	AES256GCM           Algorithm = 1
	ChaCha20Poly1305    Algorithm = 2
	AES256CBCHMACSHA512 Algorithm = 3 // AEAD_AES_256_CBC_HMAC_SHA_512 of draft-mcgrew-aead-aes-cbc-hmac-sha2-05
)

// Sizes of the parts of a segment, in bytes.
const (
	tagSize   = 16 // GCM (NIST SP 800-38D), ChaCha20-Poly1305 (RFC 8439)
	ivSize    = 16 // CBC
	blockSize = 16 // AES
	macSize   = 32 // HMAC-SHA-512 cut in half

	nonceSize  = 12
	aadSize    = 33 // array id, data id, algorithm
	maxAADSize = aadSize + nonceSize

	maxKeySize = 64

	pageSize = 4096 // of the processor's prefetcher
)

// keyLabel separates stream keys from everything else derived from a data key.
const keyLabel = "coffer segment stream v1"

// Engine makes AEADs; *hw.Engine does.
type Engine interface {
	AEAD(p hw.Primitive, key []byte) (cipher.AEAD, error)
}

// facts says how an algorithm is keyed and laid out.
type facts struct {
	primitive hw.Primitive
	keySize   int
	plain     int // plaintext bytes in a full segment
}

func (a Algorithm) facts() (facts, bool) {
	switch a {
	case AES256GCM:
		return facts{hw.AES256GCM, 32, SegmentSize - tagSize}, true
	case ChaCha20Poly1305:
		return facts{hw.ChaCha20Poly1305, 32, SegmentSize - tagSize}, true
	case AES256CBCHMACSHA512:
		// The padding takes 1 to 16 bytes; a full segment uses 1, so that it fills the slot exactly.
		return facts{hw.AES256CBCHMACSHA512, 64, SegmentSize - ivSize - macSize - 1}, true
	}
	return nullFacts(a)
}

// MaxAlgorithm bounds the ids.
const MaxAlgorithm = 255

// ByPrimitive returns the algorithm with the AEAD of that name.
func ByPrimitive(p hw.Primitive) (Algorithm, bool) {
	for i := range MaxAlgorithm {
		if f, ok := Algorithm(i + 1).facts(); ok && f.primitive == p {
			return Algorithm(i + 1), true
		}
	}
	return 0, false
}

// Valid reports whether the algorithm is known.
func (a Algorithm) Valid() bool {
	_, ok := a.facts()
	return ok
}

// Primitive names the algorithm's AEAD for hw, "" for an unknown one.
func (a Algorithm) Primitive() hw.Primitive {
	f, _ := a.facts()
	return f.primitive
}

// PlainSize is how many bytes of plaintext a full segment carries. It panics for an unknown algorithm.
func (a Algorithm) PlainSize() int {
	f, ok := a.facts()
	if !ok {
		panic(fmt.Sprintf("seal: unknown algorithm %d", a))
	}
	return f.plain
}

// sealedLen is the sealed size of one segment of n plaintext bytes.
func (a Algorithm) sealedLen(n int) int {
	if a == AES256CBCHMACSHA512 {
		return ivSize + (n/blockSize+1)*blockSize + macSize
	}
	return n + tagSize
}

// Segments is the number of segments in a stream of size plaintext bytes. An empty stream has none: its length is
// authenticated by the record alone.
func (a Algorithm) Segments(size int64) int64 {
	p := int64(a.PlainSize())
	return (size + p - 1) / p
}

// SealedSize is how many bytes a stream of size plaintext bytes occupies.
func (a Algorithm) SealedSize(size int64) int64 {
	if size == 0 {
		return 0
	}
	n := a.Segments(size)
	last := size - (n-1)*int64(a.PlainSize())
	return (n-1)*SegmentSize + int64(a.sealedLen(int(last)))
}

// Locate returns the segment that holds the plaintext byte at off, and the byte's place in that segment's plaintext.
func (a Algorithm) Locate(off int64) (segment int64, within int) {
	p := int64(a.PlainSize())
	return off / p, int(off % p)
}

// SegmentLens returns the plaintext and the sealed length of segment i of a stream of size plaintext bytes.
func (a Algorithm) SegmentLens(size, i int64) (plain, sealed int) {
	p := int64(a.PlainSize())
	n := min(p, size-i*p)
	return int(n), a.sealedLen(int(n))
}

// Params name a stream. No two streams share a data key and a data id.
type Params struct {
	Algorithm Algorithm
	Array     [16]byte
	DataID    [16]byte
	DataKey   *[32]byte
}

// Stream seals or opens the segments of one stream, in any order. It is not safe for concurrent use.
type Stream struct {
	aead  cipher.AEAD
	alg   Algorithm
	plain int
	nonce [nonceSize]byte
	iv    [ivSize]byte
	aad   [maxAADSize]byte

	touched byte
}

// NewStream derives the stream key and sets up the AEAD. It keeps no reference to p.DataKey.
func NewStream(e Engine, p Params) (*Stream, error) {
	f, ok := p.Algorithm.facts()
	if !ok {
		return nil, fmt.Errorf("open stream: unknown algorithm %d", p.Algorithm)
	}
	s := &Stream{alg: p.Algorithm, plain: f.plain}
	var key [maxKeySize]byte
	defer clear(key[:])
	streamKey(key[:f.keySize], &p)
	var err error
	if s.aead, err = newAEAD(e, f.primitive, key[:f.keySize]); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	copy(s.aad[:], p.Array[:])
	copy(s.aad[16:], p.DataID[:])
	s.aad[32] = byte(p.Algorithm)
	return s, nil
}

// streamKey is HKDF-SHA-256 (RFC 5869) of the data key with the data id as salt, so that even equal data keys give unrelated
// streams, and one data key never serves two algorithms. It is written out because crypto/hkdf allocates 17 times, which a small object
// would notice; the vectors hold it to the RFC.
func streamKey(key []byte, p *Params) {
	var prk, t [sha256.Size]byte
	var msg [sha256.Size + len(keyLabel) + 2]byte
	hmacSHA256(&prk, p.DataID[:], p.DataKey[:])
	n := 0 // of the previous block in msg: none before the first
	for i := range len(key) / sha256.Size {
		m := append(msg[:n], keyLabel...)
		m = append(m, byte(p.Algorithm), byte(i+1))
		hmacSHA256(&t, prk[:], m)
		copy(key[i*sha256.Size:], t[:])
		n = copy(msg[:], t[:])
	}
	clear(prk[:])
	clear(t[:])
	clear(msg[:])
}

// hmacSHA256 is RFC 2104 for keys of at most a block and short messages, without allocations.
func hmacSHA256(out *[sha256.Size]byte, key, msg []byte) {
	var buf [2 * sha256.BlockSize]byte
	pad := func(x byte, rest []byte) []byte {
		for i := range sha256.BlockSize {
			buf[i] = x
		}
		for i, k := range key {
			buf[i] ^= k
		}
		return buf[:sha256.BlockSize+copy(buf[sha256.BlockSize:], rest)]
	}
	inner := sha256.Sum256(pad(0x36, msg))
	*out = sha256.Sum256(pad(0x5c, inner[:]))
	clear(buf[:])
	clear(inner[:])
}

// PlainSize is how many bytes of plaintext a full segment carries.
func (s *Stream) PlainSize() int { return s.plain }

// setNonce lays out the STREAM nonce (Hoang, Reyhanitabar, Rogaway, Vizár 2015). Bytes 0, 5 and 10 stay zero for the whole
// stream, so that an AES-GCM kernel may keep a table per key that depends on just these bytes of the nonce. None of ours does
// (docs/crypto-kernels.md, Left out), but the layout is part of the format.
func (s *Stream) setNonce(i uint64, final bool) {
	binary.BigEndian.PutUint32(s.nonce[1:], uint32(i>>32))
	binary.BigEndian.PutUint32(s.nonce[6:], uint32(i))
	s.nonce[11] = 0
	if final {
		s.nonce[11] = 1
	}
}

// Seal seals plain as segment i into the front of dst and returns how many bytes that took. Every segment but the final one
// is full. It panics if plain is empty, not full where it must be, or if dst is too small; no two calls of a stream may
// have the same i.
func (s *Stream) Seal(dst []byte, i uint64, final bool, plain []byte) (int, error) {
	n := s.alg.sealedLen(len(plain))
	if len(plain) == 0 || len(plain) > s.plain || (!final && len(plain) != s.plain) || len(dst) < n {
		panic(fmt.Sprintf("seal: segment of %d bytes into %d", len(plain), len(dst)))
	}
	s.setNonce(i, final)
	var out []byte
	if s.alg == AES256CBCHMACSHA512 {
		if _, err := rand.Read(s.iv[:]); err != nil {
			return 0, fmt.Errorf("draw iv: %w", err)
		}
		copy(dst, s.iv[:])
		copy(s.aad[aadSize:], s.nonce[:])
		out = s.aead.Seal(dst[ivSize:ivSize:n], s.iv[:], plain, s.aad[:])
		if len(out) != n-ivSize {
			panic("seal: aead overhead")
		}
		return n, nil
	}
	s.touch(dst[:n])
	out = s.aead.Seal(dst[:0:n], s.nonce[:], plain, s.aad[:aadSize])
	if len(out) != n {
		panic("seal: aead overhead")
	}
	return n, nil
}

// touch reads a byte of each page. Stripes and segments read from a disk lie in no cache of this processor; its prefetcher works
// page by page, and started on all of them at once it has the lines there before the cipher, whose own accesses are too far apart
// to keep it going: opening a cold segment takes half as long (BenchmarkOpenCold), sealing into one a tenth less (BenchmarkSealCold).
func (s *Stream) touch(p []byte) {
	x := s.touched
	for i := 0; i < len(p); i += pageSize {
		x ^= p[i]
	}
	s.touched = x // a result, or the loop would be left out
}

// Open opens segment i into the front of dst, which has room for len(sealed) bytes, and returns the plaintext there. On
// error dst holds nothing of the segment. sealed is not modified and must not overlap dst.
func (s *Stream) Open(dst []byte, i uint64, final bool, sealed []byte) ([]byte, error) {
	if len(sealed) < s.alg.sealedLen(0) || len(sealed) > SegmentSize || (!final && len(sealed) != SegmentSize) {
		return nil, ErrOpen
	}
	s.setNonce(i, final)
	s.touch(sealed)
	var out []byte
	var err error
	if s.alg == AES256CBCHMACSHA512 {
		copy(s.iv[:], sealed)
		copy(s.aad[aadSize:], s.nonce[:])
		out, err = s.aead.Open(dst[:0:len(dst)], s.iv[:], sealed[ivSize:], s.aad[:])
	} else {
		out, err = s.aead.Open(dst[:0:len(dst)], s.nonce[:], sealed, s.aad[:aadSize])
	}
	if err != nil {
		return nil, ErrOpen
	}
	if len(out) == 0 || (!final && len(out) != s.plain) {
		clear(out)
		return nil, ErrOpen
	}
	return out, nil
}
