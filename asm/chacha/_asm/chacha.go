package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Sixteen blocks are made at a time: vector i holds word i of their states (RFC 8439 section 2.3), one block in each lane. A
// quarter round then needs no shuffle, and no temporary; at the end the words of each block are brought together.

var spare = Z29 // the seventeenth register of the transposition

// word is where word i of the initial state is, the same for all blocks but for the counter.
func word(i int) Mem {
	switch {
	case i < 4:
		return sigma.Offset(4 * i)
	case i < 12:
		return at(state, stateKey+4*(i-4))
	case i == 12:
		return at(state, stateCounter)
	}
	return at(state, stateNonce+4*(i-13))
}

// begin sets the states of the group's blocks.
func begin() {
	for i := range 16 {
		VPBROADCASTD(word(i), zs[i])
	}
	VPADDD(iota16, Z12, Z12)
}

// rounds are the twenty.
func rounds() (s seq) {
	for range 10 {
		for _, d := range [2]int{0, 1} { // columns, then diagonals
			quarters := make([][4]VecPhysical, 4)
			for q := range quarters {
				for w := range 4 {
					quarters[q][w] = zs[4*w+(q+w*d)%4]
				}
			}
			for _, step := range []struct {
				sum, by, rotated int // a += b; d = (d ^ a) <<< n
				bits             uint64
			}{{0, 1, 3, 16}, {2, 3, 1, 12}, {0, 1, 3, 8}, {2, 3, 1, 7}} {
				for _, q := range quarters {
					s.add(func() { VPADDD(q[step.by], q[step.sum], q[step.sum]) })
				}
				for _, q := range quarters {
					s.add(func() { VPXORD(q[step.sum], q[step.rotated], q[step.rotated]) })
				}
				for _, q := range quarters {
					s.add(func() { VPROLD(Imm(step.bits), q[step.rotated], q[step.rotated]) })
				}
			}
		}
	}
	for i := range 16 {
		s.add(func() { VPADDD_BCST(word(i), zs[i], zs[i]) })
	}
	s.add(func() { VPADDD(iota16, Z12, Z12) })
	return s
}

// transpose turns words of blocks into blocks, which are in the returned registers in order. It uses spare.
func transpose() (s seq, texts [16]VecPhysical) {
	free := spare
	// both replaces a and b by the two results of an operation on them.
	both := func(a, b VecPhysical, low, high func(x, y, z VecPhysical)) (VecPhysical, VecPhysical) {
		f := free
		s.add(func() { low(a, b, f) })
		s.add(func() { high(a, b, b) })
		free = a
		return f, b
	}
	var quads [4][4]VecPhysical // by group of four words, and block of each 16-byte lane's four
	for g := range quads {
		l01, h01 := both(zs[4*g], zs[4*g+1], unpackLow32, unpackHigh32)
		l23, h23 := both(zs[4*g+2], zs[4*g+3], unpackLow32, unpackHigh32)
		quads[g][0], quads[g][1] = both(l01, l23, unpackLow64, unpackHigh64)
		quads[g][2], quads[g][3] = both(h01, h23, unpackLow64, unpackHigh64)
	}
	for k := range 4 { // the 16-byte lanes of four vectors as a matrix
		ab, AB := both(quads[0][k], quads[1][k], shuffle(0x44), shuffle(0xee))
		cd, CD := both(quads[2][k], quads[3][k], shuffle(0x44), shuffle(0xee))
		texts[k], texts[4+k] = both(ab, cd, shuffle(0x88), shuffle(0xdd))
		texts[8+k], texts[12+k] = both(AB, CD, shuffle(0x88), shuffle(0xdd))
	}
	return s, texts
}

func unpackLow32(x, y, z VecPhysical)  { VPUNPCKLDQ(y, x, z) }
func unpackHigh32(x, y, z VecPhysical) { VPUNPCKHDQ(y, x, z) }
func unpackLow64(x, y, z VecPhysical)  { VPUNPCKLQDQ(y, x, z) }
func unpackHigh64(x, y, z VecPhysical) { VPUNPCKHQDQ(y, x, z) }

func shuffle(imm uint64) func(x, y, z VecPhysical) {
	return func(x, y, z VecPhysical) { VSHUFI32X4(Imm(imm), y, x, z) }
}

// xor encrypts, or decrypts, up to a group, the first of a message but for the block that goes to head.
func xor(name, signature, doc string, begins bool) {
	TEXT(name, NOSPLIT, signature)
	Doc(doc)
	Load(Param("s"), state)
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("n"), n)
	begin()
	rounds().emit()
	order, texts := transpose()
	order.emit()
	if begins {
		Load(Param("head"), text)
		VMOVDQU64(texts[0], at(text, 0))
	}
	ADDL(Imm(blocks), at(state, stateCounter))
	for i, z := range texts {
		if begins && i == 0 {
			continue
		}
		off := 64 * i
		if begins {
			off -= 64
		}
		// What is left has a whole block, or is the last.
		whole := fmt.Sprintf("%s_%d", name, i)
		CMPQ(n, U8(64))
		JAE(LabelRef(whole))
		VMOVDQA64(z, spare)
		ADDQ(U32(off), dst)
		ADDQ(U32(off), src)
		JMP(LabelRef("partial"))
		Label(whole)
		VPXORD(at(src, off), z, z)
		VMOVDQU64(z, at(dst, off))
		SUBQ(U8(64), n)
	}
	JMP(LabelRef("done"))
	Label("partial")
	MOVQ(I32(-1), text)
	BZHIQ(n, text, text)
	KMOVQ(text, first)
	VMOVDQU8_Z(at(src, 0), first, Z0)
	VPXORD(spare, Z0, Z0)
	VMOVDQU8(Z0, first, at(dst, 0))
	Label("done")
	leave()
}

// crypt encrypts, or decrypts, whole groups and hashes as many bytes of text meanwhile.
func crypt() {
	TEXT("crypt512", NOSPLIT, "func(s, p *byte, dst, src *byte, groups int, text *byte)")
	Doc("crypt512 encrypts groups of 1024 bytes, and hashes as many bytes of text. All loads of text are before the stores of the same group.")
	Load(Param("s"), state)
	Load(Param("p"), powers)
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("groups"), n)
	Load(Param("text"), text)
	beginHash()
	Label("group")
	begin()
	work := rounds()
	order, texts := transpose()
	work = append(work, order...)
	var hashing seq
	for i := range groupBytes / stepBytes {
		hashing = append(hashing, hashStep(i*stepBytes)...)
	}
	weave(work, hashing)
	for i, z := range texts {
		VPXORD(at(src, 64*i), z, z)
		VMOVDQU64(z, at(dst, 64*i))
	}
	ADDL(Imm(blocks), at(state, stateCounter))
	for _, p := range []Register{dst, src, text} {
		ADDQ(U32(groupBytes), p)
	}
	DECQ(n)
	JNE(LabelRef("group"))
	endHash()
	leave()
}
