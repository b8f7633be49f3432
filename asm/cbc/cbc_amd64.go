//go:build !purego

package cbc

import (
	"crypto/sha512"
	"encoding/binary"
	"sync"
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

// How many messages are worked on at once: a vector holds four chains, and four vectors keep the processor busy; a vector holds
// eight hashes.
const (
	chains = 16
	hashes = 8
)

// fewHashes is how many messages have to be there for the kernel to be faster than the standard library, which hashes one at a time.
const fewHashes = 3

// The most that one call of a kernel works on, in bytes of all messages: the scheduler cannot interrupt it.
const (
	chunk     = 256 << 10
	hashChunk = 64 << 10
)

// Kernels are those of this build.
func Kernels() []Kernel { return []Kernel{Portable, VAES512} }

func needs(k Kernel) []cpuid.FeatureID {
	if k == Portable {
		return nil
	}
	return []cpuid.FeatureID{cpuid.AESNI, cpuid.AVX, cpuid.VAES, cpuid.BMI2, cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512DQ}
}

// lanes are sixteen chains. Its layout is known to the assembly.
type lanes struct {
	src, dst [chains]*byte
	iv       [chains][blockSize]byte
}

//go:noescape
func expandKey(k *schedule, key *byte)

//go:noescape
func encrypt16(k *schedule, l *lanes, blocks int)

//go:noescape
func decryptBlocks(k *schedule, iv, dst, src *byte, blocks int)

//go:noescape
func hash8(h *[8][hashes]uint64, p *[hashes]*byte, blocks int, active uint64)

// start is the initial hash value of SHA-512, FIPS 180-4 section 5.3.5.
var start = [8]uint64{
	0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
	0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
}

// setup derives what the kernel needs from a key of 64 bytes.
func (a *AEAD) setup(key []byte) {
	expandKey(&a.keys, &key[macKeySize])
	var pads [2][sha512.BlockSize]byte // RFC 2104
	for i := range sha512.BlockSize {
		var k byte
		if i < macKeySize {
			k = key[i]
		}
		pads[0][i], pads[1][i] = k^0x36, k^0x5c
	}
	var h [8][hashes]uint64
	spread(&h, &start)
	p := [hashes]*byte{&pads[0][0], &pads[1][0]}
	fill(&p, 0)
	hash8(&h, &p, 1, 3)
	for w := range h {
		a.inner[w], a.outer[w] = h[w][0], h[w][1]
	}
	clear(pads[0][:])
	clear(pads[1][:])
	clear(h[:])
}

// spread has all lanes begin with the same hash.
func spread(h *[8][hashes]uint64, from *[8]uint64) {
	for w := range h {
		for i := range hashes {
			h[w][i] = from[w]
		}
	}
}

// fill points idle lanes at the memory of a lane that is not: the kernel reads for all.
func fill(p *[hashes]*byte, live int) {
	for i := range p {
		if p[i] == nil {
			p[i] = p[live]
		}
	}
}

// seal seals up to sixteen messages.
func (a *AEAD) seal(segments []Segment) {
	a.encrypt(segments)
	for len(segments) > 0 {
		n := min(len(segments), hashes)
		var tags [hashes][TagSize]byte
		var bodies [hashes][]byte
		for i, s := range segments[:n] {
			bodies[i] = s.out[:len(s.out)-TagSize]
		}
		a.tags(tags[:n], segments[:n], bodies[:n])
		for i, s := range segments[:n] {
			copy(s.out[len(s.out)-TagSize:], tags[i][:])
		}
		segments = segments[n:]
	}
}

// encrypt has each chain encrypt its whole blocks, and then the block with the padding.
func (a *AEAD) encrypt(segments []Segment) {
	var (
		l    lanes
		last [chains][blockSize]byte
		left [chains]int // blocks of what src points to
		rest [chains][]byte
	)
	for i, s := range segments {
		// The last block is read before its place is written: in place, the two are the same bytes.
		last[i] = pad(s.Text)
		l.iv[i] = [blockSize]byte(s.Nonce)
		full := len(s.Text) &^ (blockSize - 1)
		rest[i] = s.out[:full+blockSize]
		l.dst[i] = &s.out[0]
		if left[i] = full / blockSize; left[i] > 0 {
			l.src[i] = &s.Text[0]
		} else {
			l.src[i], left[i] = &last[i][0], 1
		}
	}
	for {
		n, live := chunk/chains/blockSize, -1
		for i, k := range left {
			if k > 0 {
				n, live = min(n, k), i
			}
		}
		if live < 0 {
			break
		}
		for i, k := range left {
			if k == 0 { // idle lanes do what another does
				l.src[i], l.dst[i], l.iv[i] = l.src[live], l.dst[live], l.iv[live]
			}
		}
		encrypt16(&a.keys, &l, n)
		for i := range segments {
			if left[i] == 0 {
				continue
			}
			done := n * blockSize
			rest[i] = rest[i][done:]
			switch left[i] -= n; {
			case left[i] > 0:
				l.src[i] = &segments[i].Text[len(segments[i].out)-TagSize-len(rest[i])]
				l.dst[i] = &rest[i][0]
			case len(rest[i]) > 0:
				l.src[i], l.dst[i], left[i] = &last[i][0], &rest[i][0], 1
			}
		}
	}
	clear(last[:])
}

// decrypt decrypts whole blocks of in to out, which may be the same memory.
func (a *AEAD) decrypt(out, in, iv []byte) {
	if a.kernel == Portable {
		a.std.decrypt(out, in, iv)
		return
	}
	before := [blockSize]byte(iv)
	for len(in) > 0 {
		n := min(len(in), chunk)
		next := [blockSize]byte(in[n-blockSize:])
		decryptBlocks(&a.keys, &before[0], &out[0], &in[0], n/blockSize)
		before, in, out = next, in[n:], out[n:]
	}
}

// decryptBlock decrypts one block.
func (a *AEAD) decryptBlock(in, iv []byte) (out [blockSize]byte) {
	if a.kernel == Portable {
		return a.std.decryptBlock(in, iv)
	}
	decryptBlocks(&a.keys, &iv[0], &out[0], &in[0], 1)
	return out
}

// message is what is hashed of a segment: additional data, nonce, body, the length of the additional data in bits (draft section
// 2.1), and SHA-512's own padding.
type message struct {
	pieces  [4][]byte
	trailer [8 + sha512.BlockSize + 16]byte
	block   [sha512.BlockSize]byte // what lies across pieces

	next *byte // of the blocks to be hashed
	left int   // blocks there
}

// hasher is eight messages. It points into itself, which would put it on the heap each time.
type hasher struct {
	messages [hashes]message
	h        [8][hashes]uint64
}

var hashers = sync.Pool{New: func() any { return new(hasher) }}

func (m *message) begin(additional, nonce, body []byte) {
	n := len(additional) + len(nonce) + len(body) + 8
	clear(m.trailer[:])
	binary.BigEndian.PutUint64(m.trailer[:], uint64(len(additional))*8)
	m.trailer[8] = 0x80
	end := 8 + 1 + 16
	end += -(n - 8 + end) & (sha512.BlockSize - 1)
	binary.BigEndian.PutUint64(m.trailer[end-8:], uint64(sha512.BlockSize+n)*8)
	m.pieces = [4][]byte{additional, nonce, body, m.trailer[:end]}
	m.gather()
}

// gather finds the next blocks.
func (m *message) gather() {
	have := 0
	for i, p := range m.pieces {
		if have == 0 && len(p) >= sha512.BlockSize {
			m.next, m.left = &p[0], len(p)/sha512.BlockSize
			m.pieces[i] = p[m.left*sha512.BlockSize:]
			return
		}
		n := copy(m.block[have:], p)
		m.pieces[i] = p[n:]
		if have += n; have == sha512.BlockSize {
			m.next, m.left = &m.block[0], 1
			return
		}
	}
	m.next, m.left = nil, 0
}

// skip leaves out n blocks that were hashed.
func (m *message) skip(n int) {
	switch {
	case m.left > n:
		m.left -= n
		m.next = (*byte)(unsafe.Add(unsafe.Pointer(m.next), n*sha512.BlockSize))
	case m.left > 0:
		m.gather()
	}
}

// tags authenticates up to eight segments with these bodies.
func (a *AEAD) tags(tags [][TagSize]byte, segments []Segment, bodies [][]byte) {
	if a.kernel == Portable || len(segments) < fewHashes {
		for i, s := range segments {
			a.std.tag(tags[i][:], s.Nonce, bodies[i], s.Additional)
		}
		return
	}
	x := hashers.Get().(*hasher)
	defer x.free()
	for i, s := range segments {
		x.messages[i].begin(s.Additional, s.Nonce, bodies[i])
	}
	spread(&x.h, &a.inner)
	for x.hash() {
	}
	for i := range segments { // the outer hash
		m := &x.messages[i]
		clear(m.block[:])
		for w := range x.h {
			binary.BigEndian.PutUint64(m.block[8*w:], x.h[w][i])
		}
		m.block[sha512.Size] = 0x80
		binary.BigEndian.PutUint64(m.block[sha512.BlockSize-8:], (sha512.BlockSize+sha512.Size)*8)
		m.next, m.left = &m.block[0], 1
	}
	spread(&x.h, &a.outer)
	x.hash()
	for i := range tags {
		for w := range TagSize / 8 {
			binary.BigEndian.PutUint64(tags[i][8*w:], x.h[w][i])
		}
	}
}

// hash hashes as many blocks as all messages that have some have there; false if none has.
func (x *hasher) hash() bool {
	n, live, active := hashChunk/hashes/sha512.BlockSize, -1, uint64(0)
	var p [hashes]*byte
	for i := range x.messages {
		if m := &x.messages[i]; m.left > 0 {
			n, live = min(n, m.left), i
			active |= 1 << i
			p[i] = m.next
		}
	}
	if live < 0 {
		return false
	}
	fill(&p, live)
	hash8(&x.h, &p, n, active)
	for i := range x.messages {
		x.messages[i].skip(n)
	}
	return true
}

// free gives x back, without what it points to and knows.
func (x *hasher) free() {
	for i := range x.messages {
		m := &x.messages[i]
		m.pieces, m.next, m.left = [4][]byte{}, nil, 0
		clear(m.block[:])
	}
	clear(x.h[:])
	hashers.Put(x)
}
