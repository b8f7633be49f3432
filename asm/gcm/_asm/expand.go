package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// expandKeys writes the key expansions of FIPS 197 section 5.2. AESENCLAST on four equal columns is SubWord followed by the
// round constant, as ShiftRows then changes nothing; it is several times faster than AESKEYGENASSIST.
func expandKeys() {
	rotate := GLOBL("rotate", RODATA|NOPTR) // the last word, rotated, in all columns
	DATA(0, U64(0x0c0f0e0d0c0f0e0d))
	DATA(8, U64(0x0c0f0e0d0c0f0e0d))
	rcon := GLOBL("rcon", RODATA|NOPTR)
	for i, c := 0, uint64(1); i < 10; i++ {
		DATA(16*i, U64(c<<32|c))
		DATA(16*i+8, U64(c<<32|c))
		if c <<= 1; c == 0x100 {
			c = 0x1b
		}
	}

	// chain sets every word of k to the xor of it with all words below.
	chain := func(k, t VecPhysical) {
		VPSLLDQ(Imm(4), k, t)
		VPXOR(t, k, k)
		VPSLLDQ(Imm(8), k, t)
		VPXOR(t, k, k)
	}

	TEXT("expandKey128", NOSPLIT, "func(k *byte, key *byte)")
	Load(Param("k"), keys)
	Load(Param("key"), src)
	VMOVDQU(at(src, 0), X0)
	VMOVDQU(X0, roundKey(0))
	VMOVDQU(rotate, X3)
	for i := range 10 {
		VPSHUFB(X3, X0, X2)
		VAESENCLAST(rcon.Offset(16*i), X2, X2)
		chain(X0, X4)
		VPXOR(X2, X0, X0)
		VMOVDQU(X0, roundKey(i+1))
	}
	leave256()

	TEXT("expandKey256", NOSPLIT, "func(k *byte, key *byte)")
	Load(Param("k"), keys)
	Load(Param("key"), src)
	VMOVDQU(at(src, 0), X0)
	VMOVDQU(at(src, 16), X1)
	VMOVDQU(X0, roundKey(0))
	VMOVDQU(X1, roundKey(1))
	VMOVDQU(rotate, X3)
	VPXOR(X5, X5, X5)
	for i := range 7 {
		VPSHUFB(X3, X1, X2)
		VAESENCLAST(rcon.Offset(16*i), X2, X2)
		chain(X0, X4)
		VPXOR(X2, X0, X0)
		VMOVDQU(X0, roundKey(2*i+2))
		if i == 6 {
			break
		}
		VPSHUFD(Imm(0xff), X0, X2)
		VAESENCLAST(X5, X2, X2)
		chain(X1, X4)
		VPXOR(X2, X1, X1)
		VMOVDQU(X1, roundKey(2*i+3))
	}
	leave256()
}
