package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// round holds round key r in all four lanes.
func round(r int) VecPhysical { return zs[16+r] }

// loadKeys fills the round keys.
func loadKeys(from int) {
	for r := range roundKeys {
		VBROADCASTI32X4(at(keys, from+16*r), round(r))
	}
}

// expandKey writes the key expansion of FIPS 197 section 5.2, and that of the equivalent inverse cipher, section 5.3.5. AESENCLAST on
// four equal columns is SubWord followed by the round constant, as ShiftRows then changes nothing; it is several times faster than
// AESKEYGENASSIST.
func expandKey() {
	rotate := GLOBL("rotate", RODATA|NOPTR) // the last word, rotated, in all columns
	DATA(0, U64(0x0c0f0e0d0c0f0e0d))
	DATA(8, U64(0x0c0f0e0d0c0f0e0d))
	rcon := GLOBL("rcon", RODATA|NOPTR)
	for i := range 7 {
		c := uint64(1) << i
		DATA(16*i, U64(c<<32|c))
		DATA(16*i+8, U64(c<<32|c))
	}

	TEXT("expandKey", NOSPLIT, "func(k *byte, key *byte)")
	Doc("expandKey derives the round keys from a key of 32 bytes.")
	Load(Param("k"), keys)
	Load(Param("key"), src)
	// put writes round key r, which the inverse cipher uses in the opposite order.
	put := func(r int, x VecPhysical) {
		VMOVDQU(x, at(keys, keysEncrypt+16*r))
		if r > 0 && r < roundKeys-1 {
			VAESIMC(x, X2)
			x = X2
		}
		VMOVDQU(x, at(keys, keysDecrypt+16*(roundKeys-1-r)))
	}
	// chain sets every word of k to the xor of it with all words below.
	chain := func(k VecPhysical) {
		VPSLLDQ(Imm(4), k, X4)
		VPXOR(X4, k, k)
		VPSLLDQ(Imm(8), k, X4)
		VPXOR(X4, k, k)
	}
	VMOVDQU(at(src, 0), X0)
	VMOVDQU(at(src, 16), X1)
	put(0, X0)
	put(1, X1)
	VMOVDQU(rotate, X3)
	VPXOR(X5, X5, X5)
	for i := range 7 {
		VPSHUFB(X3, X1, X2)
		VAESENCLAST(rcon.Offset(16*i), X2, X2)
		chain(X0)
		VPXOR(X2, X0, X0)
		put(2*i+2, X0)
		if i == 6 {
			break
		}
		VPSHUFD(Imm(0xff), X0, X2)
		VAESENCLAST(X5, X2, X2)
		chain(X1)
		VPXOR(X2, X1, X1)
		put(2*i+3, X1)
	}
	VZEROALL()
	RET()
}

// encrypt works on sixteen chains, four to a vector: each block waits for the one before, so that the chains must keep the
// processor busy together. Four blocks of each chain are read, or written, at a time: segments often begin at the same place of a page, and so
// many of their lines do not stay in the cache together. Whatever is read at a time is read before anything is written, which lets
// chains that are not wanted repeat others.
func encrypt() {
	TEXT("encrypt16", NOSPLIT, "func(k *byte, l *byte, blocks int)")
	Doc("encrypt16 encrypts blocks of each of sixteen chains, and leaves the last ones as IVs.")
	lanes := RDI
	Load(Param("k"), keys)
	Load(Param("l"), lanes)
	Load(Param("blocks"), n)
	// Vector 4*g+j holds block j of the chains 4*g to 4*g+3.
	texts, last, spare := zs[0:16], zs[16:20], Z20
	const kept = 11 // round keys that stay in registers
	key := func(r int) VecPhysical {
		if r < kept {
			return zs[21+r]
		}
		VBROADCASTI32X4(at(keys, keysEncrypt+16*r), spare)
		return spare
	}
	for r := range kept {
		VBROADCASTI32X4(at(keys, keysEncrypt+16*r), key(r))
	}
	for g, z := range last {
		VMOVDQU64(at(lanes, lanesIV+64*g), z)
	}
	ptrs := []GPPhysical{R8, R9, R10, R11, R12, R13, RAX, RBX}
	next := 0
	text := func(list, lane int) Mem {
		p := ptrs[next%len(ptrs)]
		next++
		MOVQ(at(lanes, list+8*lane), p)
		return Mem{Base: p, Index: off, Scale: 1}
	}
	// step encrypts block j of each chain in its place.
	step := func(j int) {
		for g, z := range last {
			VPTERNLOGQ(Imm(0x96), key(0), z, texts[4*g+j])
		}
		for r := 1; r < roundKeys; r++ {
			k := key(r)
			for g := range last {
				if z := texts[4*g+j]; r < roundKeys-1 {
					VAESENC(k, z, z)
				} else {
					VAESENCLAST(k, z, z)
				}
			}
		}
		for g, z := range last {
			VMOVDQA64(texts[4*g+j], z)
		}
	}
	XORQ(off, off)
	CMPQ(n, U8(4))
	JB(LabelRef("few"))
	Label("four")
	for i, z := range texts {
		VMOVDQU64(text(lanesSrc, i), z)
	}
	for g := range last {
		transpose4(texts[4*g:4*g+4], spare)
	}
	for j := range 4 {
		step(j)
	}
	for g := range last {
		transpose4(texts[4*g:4*g+4], spare)
	}
	for i, z := range texts {
		VMOVDQU64(z, text(lanesDst, i))
	}
	ADDQ(U8(64), off)
	SUBQ(U8(4), n)
	CMPQ(n, U8(4))
	JAE(LabelRef("four"))

	Label("few")
	TESTQ(n, n)
	JE(LabelRef("done"))
	Label("one")
	for g := range last {
		z := texts[4*g]
		VMOVDQU(text(lanesSrc, 4*g), z.AsX())
		for i := 1; i < 4; i++ {
			VINSERTI32X4(Imm(uint64(i)), text(lanesSrc, 4*g+i), z, z)
		}
	}
	step(0)
	for g := range last {
		z := texts[4*g]
		VMOVDQU(z.AsX(), text(lanesDst, 4*g))
		for i := 1; i < 4; i++ {
			VEXTRACTI32X4(Imm(uint64(i)), z, text(lanesDst, 4*g+i))
		}
	}
	ADDQ(U8(16), off)
	DECQ(n)
	JNE(LabelRef("one"))
	Label("done")
	for g, z := range last {
		VMOVDQU64(z, at(lanes, lanesIV+64*g))
	}
	leave(zs)
}

// transpose4 turns four vectors of four blocks each around: of vector i and block j become vector j and block i.
func transpose4(v []VecPhysical, spare VecPhysical) {
	lanes := func(imm uint64, a, b, out VecPhysical) { VSHUFI64X2(Imm(imm), b, a, out) }
	// The registers change places with spare; at the end each has what belongs to it.
	a, b, c, d, e := v[0], v[1], v[2], v[3], spare
	lanes(0x44, a, b, e) // a0 a1 b0 b1
	lanes(0xee, a, b, b) // a2 a3 b2 b3
	lanes(0x44, c, d, a) // c0 c1 d0 d1
	lanes(0xee, c, d, d) // c2 c3 d2 d3
	lanes(0x88, b, d, c) // a2 b2 c2 d2
	lanes(0xdd, b, d, d) // a3 b3 c3 d3
	lanes(0xdd, e, a, b) // a1 b1 c1 d1
	lanes(0x88, e, a, a) // a0 b0 c0 d0
}

// decrypt works on 32 blocks of one chain at a time, as nothing waits for anything, and then on up to four.
func decrypt() {
	TEXT("decryptBlocks", NOSPLIT, "func(k *byte, iv, dst, src *byte, blocks int)")
	Doc("decryptBlocks decrypts blocks of one chain that follow iv.")
	iv, mask := RDI, K1
	Load(Param("k"), keys)
	Load(Param("iv"), iv)
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("blocks"), n)
	states, previous := zs[0:8], Z8 // previous ends in the block before
	loadKeys(keysDecrypt)
	VPXORQ(previous, previous, previous)
	VINSERTI32X4(Imm(3), at(iv, 0), previous, previous)
	rounds := func(states []VecPhysical) {
		for _, z := range states {
			VPXORQ(round(0), z, z)
		}
		for r := 1; r < roundKeys; r++ {
			for _, z := range states {
				if r < roundKeys-1 {
					VAESDEC(round(r), z, z)
				} else {
					VAESDECLAST(round(r), z, z)
				}
			}
		}
	}

	CMPQ(n, U8(32))
	JB(LabelRef("few"))
	Label("group")
	for i, z := range states {
		VMOVDQU64(at(src, 64*i), z)
	}
	VALIGNQ(Imm(6), previous, Z0, Z9)
	VMOVDQU64(at(src, 64*7), previous)
	rounds(states)
	VPXORQ(Z9, Z0, Z0)
	for i, z := range states[1:] {
		VPXORQ(at(src, 64*(i+1)-16), z, z)
	}
	for i, z := range states {
		VMOVDQU64(z, at(dst, 64*i))
	}
	ADDQ(U32(512), src)
	ADDQ(U32(512), dst)
	SUBQ(U8(32), n)
	CMPQ(n, U8(32))
	JAE(LabelRef("group"))

	Label("few")
	TESTQ(n, n)
	JE(LabelRef("done"))
	Label("vector")
	MOVQ(I32(-1), R8) // words of the vector that there are
	LEAQ(Mem{Base: n, Index: n, Scale: 1}, R9)
	BZHIQ(R9, R8, R8)
	KMOVB(R8.As32(), mask)
	VMOVDQU64_Z(at(src, 0), mask, Z0)
	VMOVDQA64(Z0, Z1)
	VALIGNQ(Imm(6), previous, Z0, Z9)
	rounds(states[:1])
	VPXORQ(Z9, Z0, Z0)
	VMOVDQU64(Z0, mask, at(dst, 0))
	VMOVDQA64(Z1, previous)
	ADDQ(U8(64), src)
	ADDQ(U8(64), dst)
	SUBQ(U8(4), n)
	JA(LabelRef("vector"))
	Label("done")
	leave(append(append([]VecPhysical(nil), zs[:10]...), zs[16:31]...))
}
