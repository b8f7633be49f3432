package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// SHA-512 (FIPS 180-4 section 6.4) of eight messages, one in each lane.

// primes are the round constants, section 4.2.3.
var primes = [80]uint64{
	0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
	0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
	0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
	0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
	0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
	0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
	0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
	0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
	0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
	0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
	0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
	0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
	0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
	0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
	0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
	0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
	0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
	0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
	0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
	0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
}

var (
	words = zs[0:16]  // the message schedule
	vars  = zs[16:24] // a to h
	temps = zs[24:32]
)

// transpose turns eight vectors, each of eight words of one message, into eight of one word of each message, its bytes
// in this processor's order. It uses vars and temps.
func transpose(v []VecPhysical, swap Mem) {
	both := func(low, high func(a, b, out VecPhysical), from, to []VecPhysical, distance int) {
		for i := range v {
			if i&distance == 0 {
				low(from[i], from[i|distance], to[i])
				high(from[i], from[i|distance], to[i|distance])
			}
		}
	}
	lanes := func(imm uint64) func(a, b, out VecPhysical) {
		return func(a, b, out VecPhysical) { VSHUFI64X2(Imm(imm), b, a, out) }
	}
	both(func(a, b, out VecPhysical) { VPUNPCKLQDQ(b, a, out) }, func(a, b, out VecPhysical) { VPUNPCKHQDQ(b, a, out) }, v, temps, 1)
	// A lane of temps[i] has words 2*lane + i%2 of messages i and i^1.
	both(lanes(0x88), lanes(0xdd), temps, vars, 2)
	both(lanes(0x88), lanes(0xdd), vars, temps, 4)
	for i, z := range temps {
		VPSHUFB(swap, z, v[i])
	}
}

// sigma is one of the functions of section 4.1.3: two rotations and a third, or a shift.
func sigma(x VecPhysical, r1, r2, r3 uint64, shift bool, out, t1, t2 VecPhysical) {
	VPRORQ(Imm(r1), x, out)
	VPRORQ(Imm(r2), x, t1)
	if shift {
		VPSRLQ(Imm(r3), x, t2)
	} else {
		VPRORQ(Imm(r3), x, t2)
	}
	VPTERNLOGQ(Imm(0x96), t1, t2, out) // exclusive or of the three
}

func hash() {
	k := GLOBL("primes", RODATA|NOPTR)
	for i, p := range primes {
		DATA(8*i, U64(p))
	}
	swap := GLOBL("swap", RODATA|NOPTR) // the bytes of each word
	for i := range 8 {
		DATA(8*i, U64(0x0001020304050607+0x0808080808080808*uint64(i%2)))
	}

	TEXT("hash8", NOSPLIT, "func(h *uint64, p **byte, blocks int, active uint64)")
	Doc("hash8 adds blocks of 128 bytes to the hashes of eight messages, and stores those of the active lanes.")
	h, ptrs, active := RDI, RSI, K1
	Load(Param("h"), h)
	Load(Param("p"), ptrs)
	Load(Param("blocks"), n)
	Load(Param("active"), R8)
	KMOVB(R8.As32(), active)
	first := RDX // byte of the block in each message
	XORQ(first, first)

	Label("block")
	for half := range 2 {
		for i := range 8 {
			MOVQ(at(ptrs, 8*i), RAX)
			VMOVDQU64(Mem{Base: RAX, Index: first, Scale: 1, Disp: 64 * half}, words[8*half+i])
		}
		transpose(words[8*half:8*half+8], swap)
	}
	for i, z := range vars {
		VMOVDQU64(at(h, 64*i), z)
	}
	constants, left := RAX, RBX
	LEAQ(k, constants)
	MOVQ(U32(4), left)
	Label("rounds")
	for t := range 16 {
		round512(t, at(constants, 8*t))
		schedule(t)
	}
	ADDQ(U32(128), constants)
	DECQ(left)
	JNE(LabelRef("rounds"))
	for t := range 16 {
		round512(t, at(constants, 8*t))
	}
	for i, z := range vars {
		VPADDQ(at(h, 64*i), z, z)
		VMOVDQU64(z, active, at(h, 64*i))
	}
	ADDQ(U32(128), first)
	DECQ(n)
	JNE(LabelRef("block"))
	leave(zs)
}

// round512 is round t of section 6.4.2 step 3; a to h move on by one register with each.
func round512(t int, constant Mem) {
	v := func(i int) VecPhysical { return vars[(i+7*t)%8] }
	a, b, c, d, e, f, g, h := v(0), v(1), v(2), v(3), v(4), v(5), v(6), v(7)
	x := temps
	VPADDQ_BCST(constant, words[t%16], x[0])
	VMOVDQA64(e, x[1])
	VPTERNLOGQ(Imm(0xca), g, f, x[1]) // Ch(e, f, g)
	VPADDQ(x[0], h, h)
	sigma(e, 14, 18, 41, false, x[2], x[3], x[4])
	VPADDQ(x[1], h, h)
	VMOVDQA64(a, x[1])
	VPTERNLOGQ(Imm(0xe8), c, b, x[1]) // Maj(a, b, c)
	VPADDQ(x[2], h, h)
	sigma(a, 28, 34, 39, false, x[5], x[6], x[7])
	VPADDQ(h, d, d)
	VPADDQ(x[1], h, h)
	VPADDQ(x[5], h, h)
}

// schedule makes the word of sixteen rounds later, step 1.
func schedule(t int) {
	w := func(i int) VecPhysical { return words[(t+i)%16] }
	sigma(w(1), 1, 8, 7, true, temps[2], temps[3], temps[4])
	sigma(w(14), 19, 61, 6, true, temps[5], temps[6], temps[7])
	VPADDQ(w(9), w(0), w(0))
	VPADDQ(temps[2], w(0), w(0))
	VPADDQ(temps[5], w(0), w(0))
}
