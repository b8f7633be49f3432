package gcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

// twin is AES-GCM as the standard describes it, block by block. AES is the standard library's.
type twin struct {
	block cipher.Block
	h     element
}

// twin makes one for each call, so that AEAD needs no pointer.
func (a *AEAD) twin() *twin {
	key := append(a.round[0][:], a.round[1][:]...)
	if a.rounds == 10 {
		key = key[:blockSize]
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("gcm: " + err.Error()) // not with keys of this size
	}
	var zero [blockSize]byte
	block.Encrypt(zero[:], zero[:])
	return &twin{block: block, h: toElement(zero[:])}
}

// element of GF(2^128), SP 800-38D section 6.3. The highest bit of hi is the coefficient of x^0.
type element struct{ hi, lo uint64 }

func toElement(b []byte) element {
	return element{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// mul goes through all bits of x, whatever they are, with masks instead of branches.
func mul(x, v element) (z element) {
	for range 128 {
		m := -(x.hi >> 63)
		x.hi, x.lo = x.hi<<1|x.lo>>63, x.lo<<1
		z.hi ^= v.hi & m
		z.lo ^= v.lo & m
		carry := -(v.lo & 1)
		v.lo = v.lo>>1 | v.hi<<63
		v.hi = v.hi>>1 ^ carry&(0xe1<<56)
	}
	return z
}

// hash adds p, zero padded to whole blocks, to the hash in s.
func (t *twin) hash(s *state, p []byte) {
	y := toElement(s.acc[:])
	for len(p) > 0 {
		var b [blockSize]byte
		p = p[copy(b[:], p):]
		x := toElement(b[:])
		y = mul(element{y.hi ^ x.hi, y.lo ^ x.lo}, t.h)
	}
	binary.BigEndian.PutUint64(s.acc[:], y.hi)
	binary.BigEndian.PutUint64(s.acc[8:], y.lo)
}

// run is what the assembly kernels do in one call.
func (t *twin) run(open bool, s *state, dst, src, aad []byte) {
	counter := s.counter
	done := binary.BigEndian.Uint32(counter[NonceSize:])
	block := func(i uint32) (b [blockSize]byte) {
		binary.BigEndian.PutUint32(counter[NonceSize:], i)
		t.block.Encrypt(b[:], counter[:])
		return b
	}
	if s.first != 0 {
		s.mask = block(1)
		t.hash(s, aad)
	}
	for i := done + 2; len(src) > 0; i++ {
		n := min(len(src), blockSize)
		if open {
			t.hash(s, src[:n])
		}
		b := block(i)
		subtle.XORBytes(dst[:n], src[:n], b[:])
		if !open {
			t.hash(s, dst[:n])
		}
		dst, src = dst[n:], src[n:]
	}
	if s.last != 0 {
		var b [blockSize]byte
		binary.BigEndian.PutUint64(b[:], s.lengths[1])
		binary.BigEndian.PutUint64(b[8:], s.lengths[0])
		t.hash(s, b[:])
		subtle.XORBytes(s.tag[:], s.acc[:], s.mask[:])
	}
}
