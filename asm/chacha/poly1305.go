package chacha

import (
	"encoding/binary"
	"math/bits"
)

// element of the integers modulo 2^130 - 5, in limbs of 44, 44 and 42 bits, the lowest first. Its layout is known to the assembly.
type element struct{ l0, l1, l2 uint64 }

const (
	mask44 = 1<<44 - 1
	mask42 = 1<<42 - 1
)

// limbs are those of lo + hi * 2^64 + top * 2^128.
func limbs(lo, hi, top uint64) element {
	return element{lo & mask44, (lo>>44 | hi<<20) & mask44, hi>>24 | top<<40}
}

// mul multiplies; limbs may have 49 bits. It reduces to limbs of 44 bits, the second a few more, and 42.
func mul(x, y element) element {
	s1, s2 := 20*y.l1, 20*y.l2 // 2^132 is 4 * 5
	lo, hi := sum(x.l0, y.l0, x.l1, s2, x.l2, s1, 0)
	z0 := lo & mask44
	lo, hi = sum(x.l0, y.l1, x.l1, y.l0, x.l2, s2, hi<<20|lo>>44)
	z1 := lo & mask44
	lo, hi = sum(x.l0, y.l2, x.l1, y.l1, x.l2, y.l0, hi<<20|lo>>44)
	z0 += 5 * (hi<<22 | lo>>42)
	return element{z0 & mask44, z1 + z0>>44, lo & mask42}
}

// sum is a*b + c*d + e*f + g.
func sum(a, b, c, d, e, f, g uint64) (lo, hi uint64) {
	h1, l1 := bits.Mul64(a, b)
	h2, l2 := bits.Mul64(c, d)
	h3, l3 := bits.Mul64(e, f)
	l1, c1 := bits.Add64(l1, l2, 0)
	l3, c2 := bits.Add64(l3, g, 0)
	lo, c3 := bits.Add64(l1, l3, 0)
	return lo, h1 + h2 + h3 + c1 + c2 + c3
}

// powers of r. The layout is known to the assembly.
type powers struct {
	sixteenth, eighth factor
	_                 [6]uint64
	lanes             [len(factor{})][8]uint64 // of the powers that end the hash of eight lanes
}

// factor is a multiplier as the kernels have it: its limbs, and 20 times the upper two.
type factor [5]uint64

func (e element) factor() factor { return factor{e.l0, e.l1, e.l2, 20 * e.l1, 20 * e.l2} }

// laneBlock is which of eight blocks a lane has.
var laneBlock = [8]int{0, 4, 1, 5, 2, 6, 3, 7}

// makePowers does so once.
func (m *message) makePowers() {
	if m.powers.eighth != (factor{}) {
		return
	}
	p := [9]element{1: m.r}
	for i := 2; i < len(p); i++ {
		p[i] = mul(p[i/2], p[i-i/2])
	}
	m.powers.sixteenth, m.powers.eighth = mul(p[8], p[8]).factor(), p[8].factor()
	for lane, block := range laneBlock {
		for i, v := range p[8-block].factor() {
			m.powers.lanes[i][lane] = v
		}
	}
}

// vectorMin is from where on powers pay.
const vectorMin = 2 * step

// update adds p, zero padded to whole blocks, to the hash.
func (m *message) update(p []byte) {
	if m.kernel != Portable && len(p) >= vectorMin {
		m.makePowers()
		for len(p) >= step {
			n := min(len(p), chunk) / step
			m.steps(p, n)
			p = p[n*step:]
		}
	}
	h := m.hash
	for ; len(p) >= 16; p = p[16:] {
		h = m.add(h, binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]))
	}
	if len(p) > 0 {
		var b [16]byte
		copy(b[:], p)
		h = m.add(h, binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:]))
	}
	m.hash = h
}

// add adds a block to the hash.
func (m *message) add(h element, lo, hi uint64) element {
	b := limbs(lo, hi, 1)
	return mul(element{h.l0 + b.l0, h.l1 + b.l1, h.l2 + b.l2}, m.r)
}

// tag ends the message (RFC 8439 section 2.8).
func (m *message) tag(tag []byte, additional, text int) {
	lo, hi := m.add(m.hash, uint64(additional), uint64(text)).reduced()
	lo, carry := bits.Add64(lo, m.pad[0], 0)
	hi, _ = bits.Add64(hi, m.pad[1], carry)
	binary.LittleEndian.PutUint64(tag, lo)
	binary.LittleEndian.PutUint64(tag[8:], hi)
}

// reduced is e modulo 2^130 - 5, its lower 128 bits.
func (e element) reduced() (lo, hi uint64) {
	// The second round is for what the first has carried into a limb that was full.
	for range 2 {
		e.l1 += e.l0 >> 44
		e.l2 += e.l1 >> 44
		e = element{e.l0&mask44 + 5*(e.l2>>42), e.l1 & mask44, e.l2 & mask42}
	}
	e.l0, e.l1 = e.l0&mask44, e.l1+e.l0>>44
	// If e + 5 reaches 2^130, that without its highest bit is e modulo 2^130 - 5.
	g := element{e.l0 + 5, e.l1, e.l2}
	g.l0, g.l1 = g.l0&mask44, g.l1+g.l0>>44
	g.l1, g.l2 = g.l1&mask44, g.l2+g.l1>>44
	reached := -(g.l2 >> 42)
	e.l0 ^= (e.l0 ^ g.l0) & reached
	e.l1 ^= (e.l1 ^ g.l1) & reached
	e.l2 ^= (e.l2 ^ g.l2) & reached
	return e.l0 | e.l1<<44, e.l1>>20 | e.l2<<24
}
