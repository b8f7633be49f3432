package chacha

import (
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
)

// block is one of the key stream, as RFC 8439 section 2.3 describes it. The counter goes on.
func (m *message) block() (out [blockSize]byte) {
	start := [16]uint32{0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}
	copy(start[4:], m.key[:])
	start[12] = m.counter
	copy(start[13:], m.nonce[:])
	x := start
	quarter := func(a, b, c, d int) {
		x[a] += x[b]
		x[d] = bits.RotateLeft32(x[d]^x[a], 16)
		x[c] += x[d]
		x[b] = bits.RotateLeft32(x[b]^x[c], 12)
		x[a] += x[b]
		x[d] = bits.RotateLeft32(x[d]^x[a], 8)
		x[c] += x[d]
		x[b] = bits.RotateLeft32(x[b]^x[c], 7)
	}
	for range 10 {
		for i := range 4 {
			quarter(i, 4+i, 8+i, 12+i)
		}
		for i := range 4 {
			quarter(i, 4+(i+1)%4, 8+(i+2)%4, 12+(i+3)%4)
		}
	}
	for i := range x {
		binary.LittleEndian.PutUint32(out[4*i:], x[i]+start[i])
	}
	m.counter++
	return out
}

// genericFirst is cryptFirst in Go.
func (m *message) genericFirst(out, in []byte) {
	m.head = m.block()
	m.genericRest(out, in)
}

// genericRest is cryptRest in Go.
func (m *message) genericRest(out, in []byte) {
	for len(in) > 0 {
		b := m.block()
		n := subtle.XORBytes(out, in, b[:])
		out, in = out[n:], in[n:]
	}
}
