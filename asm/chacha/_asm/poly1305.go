package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Poly1305 (RFC 8439 section 2.5) on eight lanes: each has every eighth block, in limbs of 44, 44 and 42 bits, so that products of
// limbs come in two halves of 52 bits by VPMADD52. A step adds sixteen blocks,
//
//	hash = hash * r^16 + first eight * r^8 + last eight
//
// and is reduced once. At the end lane i is multiplied by the power of r that its block lacks, and lanes are added.

var (
	lo    = [3]VecPhysical{Z16, Z17, Z18} // low halves of products, by limb
	hi    = [3]VecPhysical{Z19, Z20, Z21} // high halves, worth 2^52 times as much
	acc   = [3]VecPhysical{Z22, Z23, Z24} // the hash
	limbs = [3]VecPhysical{Z25, Z26, Z27}
	low   = Z28 // low words of blocks
	high  = Z30 // high words
	temp  = Z31
)

// split loads eight blocks and splits them into limbs, with the bit that says that they are whole.
func split(off int, x [3]VecPhysical) (s seq) {
	a, b := at(text, off), at(text, off+64)
	s.add(func() { VMOVDQU64(a, temp) })
	s.add(func() { VPUNPCKLQDQ(b, temp, low) })
	s.add(func() { VPUNPCKHQDQ(b, temp, high) })
	s.add(func() { VPANDQ_BCST(mask44, low, x[0]) })
	s.add(func() { VPSRLQ(Imm(44), low, temp) })
	s.add(func() { VPSLLQ(Imm(20), high, x[1]) })
	s.add(func() { VPTERNLOGQ_BCST(Imm(0xa8), mask44, temp, x[1]) }) // (x[1] | temp) & mask44
	s.add(func() { VPSRLQ(Imm(24), high, x[2]) })
	s.add(func() { VPORQ_BCST(padBit, x[2], x[2]) })
	return s
}

// multiply adds the product of x and a power of r to lo and hi. The limbs of the power and 20 times its upper two are at m, as
// five operands: 2^132 is 4 * 5 modulo 2^130 - 5.
func multiply(x [3]VecPhysical, m func(i int) Mem, low, high func(ops ...Op)) (s seq) {
	const r0, r1, r2, s1, s2 = 0, 1, 2, 3, 4
	factor := [3][3]int{{r0, s2, s1}, {r1, r0, s2}, {r2, r1, r0}} // by limb of the product, of x
	for j := range 3 {
		for i := range 3 {
			f := m(factor[i][j])
			s.add(func() { low(f, x[j], lo[i]) })
			s.add(func() { high(f, x[j], hi[i]) })
		}
	}
	return s
}

// carry brings the sum in lo and hi into acc: limbs of 44 bits, the second a few more, and 42.
func carry() (s seq) {
	for i := range 3 {
		mask, bits := mask44, uint64(44)
		if i == 2 {
			mask, bits = mask42, 42
		}
		if i > 0 {
			s.add(func() { VPADDQ(temp, lo[i], lo[i]) })
			s.add(func() { VPSLLQ(Imm(8), hi[i-1], hi[i-1]) })
			s.add(func() { VPADDQ(hi[i-1], lo[i], lo[i]) })
		}
		s.add(func() { VPANDQ_BCST(mask, lo[i], acc[i]) })
		s.add(func() { VPSRLQ(Imm(bits), lo[i], temp) })
	}
	// What is beyond 2^130 comes back times 5.
	s.add(func() { VPSLLQ(Imm(10), hi[2], hi[2]) })
	s.add(func() { VPADDQ(hi[2], temp, temp) })
	s.add(func() { VPADDQ(temp, acc[0], acc[0]) })
	s.add(func() { VPSLLQ(Imm(2), temp, temp) })
	s.add(func() { VPADDQ(temp, acc[0], acc[0]) })
	s.add(func() { VPSRLQ(Imm(44), acc[0], temp) })
	s.add(func() { VPANDQ_BCST(mask44, acc[0], acc[0]) })
	s.add(func() { VPADDQ(temp, acc[1], acc[1]) })
	return s
}

// hashStep hashes 256 bytes at text.
func hashStep(off int) (s seq) {
	for _, z := range hi {
		s.add(func() { VPXORQ(z, z, z) })
	}
	s = append(s, split(off+128, lo)...)
	s = append(s, split(off, limbs)...)
	for i, z := range limbs { // the hash of what was before, once
		s.add(func() { VPADDQ_BCST(at(state, stateHash+8*i), z, first, z) })
	}
	s.add(func() { KXORW(first, first, first) })
	broadcast := func(at int) func(int) Mem {
		return func(i int) Mem { return Mem{Base: powers, Disp: at + 8*i} }
	}
	s = append(s, multiply(limbs, broadcast(powersEighth), VPMADD52LUQ_BCST, VPMADD52HUQ_BCST)...)
	s = append(s, multiply(acc, broadcast(powersSixteenth), VPMADD52LUQ_BCST, VPMADD52HUQ_BCST)...)
	return append(s, carry()...)
}

// beginHash lets the first step add the hash so far to lane 0.
func beginHash() {
	for _, z := range acc {
		VPXORQ(z, z, z)
	}
	KXNORW(first, first, first)
	KSHIFTRW(Imm(15), first, first)
}

// endHash brings the lanes together and stores the hash, its limbs not reduced.
func endHash() {
	for i := range 3 {
		VPXORQ(lo[i], lo[i], lo[i])
		VPXORQ(hi[i], hi[i], hi[i])
	}
	multiply(acc, func(i int) Mem { return at(powers, powersLanes+64*i) }, VPMADD52LUQ, VPMADD52HUQ).emit()
	carry().emit()
	for i, z := range acc {
		VEXTRACTI64X4(Imm(1), z, temp.AsY())
		VPADDQ(temp.AsY(), z.AsY(), z.AsY())
		VEXTRACTI32X4(Imm(1), z.AsY(), temp.AsX())
		VPADDQ(temp.AsX(), z.AsX(), z.AsX())
		VPSHUFD(Imm(0x4e), z.AsX(), temp.AsX())
		VPADDQ(temp.AsX(), z.AsX(), z.AsX())
		VMOVQ(z.AsX(), at(state, stateHash+8*i))
	}
}

// hash hashes whole steps.
func hash() {
	TEXT("hash512", NOSPLIT, "func(s, p *byte, text *byte, steps int)")
	Doc("hash512 hashes steps of 256 bytes.")
	Load(Param("s"), state)
	Load(Param("p"), powers)
	Load(Param("text"), text)
	Load(Param("steps"), n)
	beginHash()
	Label("step")
	hashStep(0).emit()
	ADDQ(U32(stepBytes), text)
	DECQ(n)
	JNE(LabelRef("step"))
	endHash()
	leave()
}
