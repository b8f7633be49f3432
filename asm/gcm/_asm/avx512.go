package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

var (
	zs = []VecPhysical{
		Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15,
		Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31,
	}
	// What the kernels use above the eight states and the round keys.
	zReverse         = Z22
	zBase            = Z23 // counter block of the group, bytes reversed
	zLo, zMi, zHi    = Z24, Z25, Z26
	zT0, zT1, zT2    = Z27, Z28, Z29
	zT3              = Z30
	zWindow          = Z31    // counter block of the group, added to round key 0
	zCounters, zKey0 = Z4, Z5 // in tails
	zAcc             = Z31    // in tails
)

const group = 512 // bytes in eight vectors

// prefetched is how many bytes ahead the side in memory is fetched: what is opened comes from a disk, what is sealed goes to one, and
// neither is in a cache. The processor's own prefetching stops at pages and at stores.
const prefetched = 4 * group

var counterXor, counterAdd, counterFour, counterGroup Mem

func constants512() {
	// What a block differs by, in its last byte, from the first counter of a group of 32 blocks. Data starts at counter 2, so
	// that the last two blocks of a group belong to the next 32 counters.
	counterXor = GLOBL("counterXor", RODATA|NOPTR)
	for i := range 32 {
		DATA(16*i, U64(0))
		DATA(16*i+8, U64(uint64((i+2)%32)<<56))
	}
	counterAdd = lanes("counterAdd", func(i int) (lo, hi uint64) { return uint64(i) + 2, 0 })
	counterFour = lanes("counterFour", func(int) (lo, hi uint64) { return 4, 0 })
	counterGroup = lanes("counterGroup", func(int) (lo, hi uint64) { return 32, 0 })
}

func avx512() {
	constants512()
	setup512()
	ghash512()
	for _, rounds := range []int{14, 10} {
		for _, open := range []bool{false, true} {
			k := &kernel512{rounds: rounds, open: open}
			k.write()
		}
	}
}

// leave512 returns to Go with all vector registers cleared, as they held keys and powers of H.
func leave512() {
	for _, z := range zs {
		VPXORQ(z, z, z)
	}
	VZEROUPPER()
	RET()
}

// multiply512 adds the unreduced product of x and y, which may be memory, to lo, mi and hi, or sets these.
func multiply512(x, y, lo, mi, hi, t0, t1 Op, set bool) {
	if set {
		VPCLMULQDQ(Imm(0x00), y, x, lo)
		VPCLMULQDQ(Imm(0x01), y, x, mi)
		VPCLMULQDQ(Imm(0x10), y, x, t0)
		VPCLMULQDQ(Imm(0x11), y, x, hi)
		VPXORQ(t0, mi, mi)
		return
	}
	VPCLMULQDQ(Imm(0x00), y, x, t0)
	VPXORQ(t0, lo, lo)
	VPCLMULQDQ(Imm(0x01), y, x, t0)
	VPCLMULQDQ(Imm(0x10), y, x, t1)
	VPTERNLOGQ(Imm(0x96), t1, t0, mi)
	VPCLMULQDQ(Imm(0x11), y, x, t0)
	VPXORQ(t0, hi, hi)
}

// reduce512 brings the product modulo the polynomial; the result is in hi.
func reduce512(lo, mi, hi, t VecPhysical, poly Op) (s seq) {
	s.add(func() { VPCLMULQDQ(Imm(0x10), poly, lo, t) })
	s.add(func() { VPSHUFD(Imm(0x4e), lo, lo) })
	s.add(func() { VPTERNLOGQ(Imm(0x96), t, lo, mi) })
	s.add(func() { VPCLMULQDQ(Imm(0x10), poly, mi, t) })
	s.add(func() { VPSHUFD(Imm(0x4e), mi, mi) })
	s.add(func() { VPTERNLOGQ(Imm(0x96), t, mi, hi) })
	return s
}

// fold512 sums the four lanes of z into its lowest and clears the others.
func fold512(z, t VecPhysical) (s seq) {
	s.add(func() { VEXTRACTI64X4(Imm(1), z, t.AsY()) })
	s.add(func() { VPXORQ(t.AsY(), z.AsY(), z.AsY()) })
	s.add(func() { VEXTRACTI32X4(Imm(1), z.AsY(), t.AsX()) })
	s.add(func() { VPXORQ(t.AsX(), z.AsX(), z.AsX()) })
	return s
}

// hashGroup512 hashes the eight vectors at base, by pairs. The hash so far is in zHi before and after. Multiplication is
// Karatsuba's: the middle of a product is the product of the sums of halves, less the outer products. That is one VPCLMULQDQ
// less for a vector.
func hashGroup512(base Register) (s seq) {
	for i := 0; i < 8; i += 2 {
		a, b, t, u := zT0, zT1, zT2, zT3
		h0, h1 := power(32-4*i), power(28-4*i)
		s.add(func() { VMOVDQU64(at(base, 64*i), a) })
		s.add(func() { VPSHUFB(zReverse, a, a) })
		if i == 0 {
			s.add(func() { VPXORQ(zHi, a, a) })
		}
		s.add(func() { VMOVDQU64(at(base, 64*i+64), b) })
		s.add(func() { VPSHUFB(zReverse, b, b) })
		if i == 0 {
			s.add(func() { VPCLMULQDQ(Imm(0x00), h0, a, zLo) })
			s.add(func() { VPCLMULQDQ(Imm(0x00), h1, b, t) })
			s.add(func() { VPXORQ(t, zLo, zLo) })
			s.add(func() { VPCLMULQDQ(Imm(0x11), h0, a, zHi) })
			s.add(func() { VPCLMULQDQ(Imm(0x11), h1, b, t) })
			s.add(func() { VPXORQ(t, zHi, zHi) })
		} else {
			s.add(func() { VPCLMULQDQ(Imm(0x00), h0, a, t) })
			s.add(func() { VPCLMULQDQ(Imm(0x00), h1, b, u) })
			s.add(func() { VPTERNLOGQ(Imm(0x96), t, u, zLo) })
			s.add(func() { VPCLMULQDQ(Imm(0x11), h0, a, t) })
			s.add(func() { VPCLMULQDQ(Imm(0x11), h1, b, u) })
			s.add(func() { VPTERNLOGQ(Imm(0x96), t, u, zHi) })
		}
		s.add(func() { VPSHUFD(Imm(0x4e), a, t) })
		s.add(func() { VPXORQ(t, a, a) })
		s.add(func() { VPSHUFD(Imm(0x4e), b, u) })
		s.add(func() { VPXORQ(u, b, b) })
		if i == 0 {
			s.add(func() { VPCLMULQDQ(Imm(0x00), sum(i), a, zMi) })
			s.add(func() { VPCLMULQDQ(Imm(0x00), sum(i+1), b, b) })
			s.add(func() { VPXORQ(b, zMi, zMi) })
		} else {
			s.add(func() { VPCLMULQDQ(Imm(0x00), sum(i), a, a) })
			s.add(func() { VPCLMULQDQ(Imm(0x00), sum(i+1), b, b) })
			s.add(func() { VPTERNLOGQ(Imm(0x96), a, b, zMi) })
		}
	}
	s.add(func() { VPTERNLOGQ(Imm(0x96), zLo, zHi, zMi) })
	s = append(s, reduce512(zLo, zMi, zHi, zT0, poly)...)
	return append(s, fold512(zHi, zT1)...)
}

// setup512 derives H and its powers from the round keys.
func setup512() {
	TEXT("setup512", NOSPLIT, "func(k *byte, rounds int)")
	Load(Param("k"), keys)
	Load(Param("rounds"), n)
	VMOVDQU64(poly, Z31)
	hashKey()
	// The first two products are of one and two lanes.
	mul := func(x, y, out VecPhysical) {
		multiply512(x, y, Z16, Z17, out, Z18, Z19, true)
		reduce512(Z16, Z17, out, Z18, Z31).emit()
	}
	mulX := func(x, y, out VecPhysical) {
		multiply512(x, y, X16, X17, out, X18, X19, true)
		reduce512(X16, X17, out, X18, X31).emit()
	}
	mulY := func(x, y, out VecPhysical) {
		multiply512(x, y, Y16, Y17, out, Y18, Y19, true)
		reduce512(Y16, Y17, out, Y18, Y31).emit()
	}
	lane0 := func(z, out VecPhysical) { VSHUFI32X4(Imm(0), z, z, out) }
	store := func(z VecPhysical, e int) {
		VMOVDQU64(z, power(e))
		if e <= 32 {
			VPSHUFD(Imm(0x4e), z, Z9)
			VPXORQ(z, Z9, Z9)
			VMOVDQU64(Z9, sum((32-e)/4))
		}
	}

	// z[i] will be powers 4i+4 to 4i+1.
	a, b, c, d := Z1, Z2, Z3, Z4
	mulX(X0, X0, X5)                 // 2
	VINSERTI32X4(Imm(1), X0, Y5, Y0) // 2 1
	VINSERTI32X4(Imm(1), X5, Y5, Y5) // 2 2
	mulY(Y0, Y5, Y6)                 // 4 3
	VINSERTI64X4(Imm(1), Y0, Z6, a)
	store(a, 4)
	lane0(a, Z5)
	mul(a, Z5, b)
	store(b, 8)
	lane0(b, Z6)
	mul(a, Z6, c)
	mul(b, Z6, d)
	store(c, 12)
	store(d, 16)
	lane0(d, Z7)
	for i, z := range []VecPhysical{a, b, c, d} {
		mul(z, Z7, Z8)
		store(Z8, 20+4*i)
	}
	mul(Z8, Z5, Z8)
	store(Z8, 36)
	leave512()
}

// hashKey computes the encryption of zero, the hash key, into X0 in the form that multiply wants: bytes reversed, times x.
func hashKey() {
	VMOVDQU(roundKey(0), X0)
	LEAQ(roundKey(1), src)
	DECQ(n)
	Label("round")
	VAESENC(at(src, 0), X0, X0)
	ADDQ(U32(16), src)
	DECQ(n)
	JNZ(LabelRef("round"))
	VAESENCLAST(at(src, 0), X0, X0)
	VPSHUFB(reverse, X0, X0)
	VPSHUFD(Imm(0xff), X0, X1)
	VPSRAD(Imm(31), X1, X1)
	VPAND(poly, X1, X1)
	VPSRLQ(Imm(63), X0, X2)
	VPSLLDQ(Imm(8), X2, X2)
	VPSLLQ(Imm(1), X0, X0)
	VPOR(X2, X0, X0)
	VPXOR(X1, X0, X0)
}

// ghash512 hashes n bytes, zero padded to whole blocks.
func ghash512() {
	TEXT("ghash512", NOSPLIT, "func(k *byte, acc *byte, p *byte, n int)")
	Load(Param("k"), keys)
	Load(Param("acc"), state)
	Load(Param("p"), src)
	Load(Param("n"), n)
	VMOVDQU64(reverse, zReverse)
	VMOVDQU64(at(state, 0), zHi.AsX())
	CMPQ(n, U32(group))
	JB(LabelRef("rest"))
	Label("loop")
	hashGroup512(src).emit()
	ADDQ(U32(group), src)
	SUBQ(U32(group), n)
	CMPQ(n, U32(group))
	JAE(LabelRef("loop"))
	Label("rest")
	TESTQ(n, n)
	JZ(LabelRef("done"))
	beginTail512(0)
	Label("vector")
	CMPQ(n, U32(64))
	JB(LabelRef("part"))
	VMOVDQU64(at(src, 0), Z0)
	hashVector512(Z0, at(hp, 0))
	ADDQ(U32(64), src)
	ADDQ(U32(64), hp)
	SUBQ(U32(64), n)
	JMP(LabelRef("vector"))
	Label("part")
	TESTQ(n, n)
	JZ(LabelRef("reduce"))
	mask(n, R8)
	VMOVDQU8_Z(at(src, 0), K1, Z0)
	hashVector512(Z0, at(hp, 0))
	Label("reduce")
	reduce512(zLo, zMi, zHi, zT0, poly).emit()
	fold512(zHi, zT0).emit()
	Label("done")
	VMOVDQU64(zHi.AsX(), at(state, 0))
	leave512()
}

// mask puts the n lowest bits into K1, n being up to 64.
func mask(n, t Register) {
	MOVQ(I32(-1), t)
	BZHIQ(n, t, t)
	KMOVQ(t, K1)
}

// beginTail512 prepares for the last n bytes and extra blocks behind them: hp is at the power for the first block, the hash so
// far is in zAcc.
func beginTail512(extra int) {
	VMOVDQA64(zHi, zAcc)
	VPXORQ(zLo, zLo, zLo)
	VPXORQ(zMi, zMi, zMi)
	VPXORQ(zHi, zHi, zHi)
	LEAQ(at(n, 15), R8)
	ANDQ(I32(-16), R8)
	LEAQ(at(keys, keysEnd-16*extra), hp)
	SUBQ(R8, hp)
}

// hashVector512 adds the product of z with powers of H. The first one takes the hash so far in.
func hashVector512(z VecPhysical, powers Op) {
	VPSHUFB(zReverse, z, z)
	VPXORQ(zAcc, z, z)
	VPXORQ(zAcc, zAcc, zAcc)
	multiply512(z, powers, zLo, zMi, zHi, zT0, zT1, false)
}

// kernel512 seals or opens.
type kernel512 struct {
	rounds int
	open   bool
}

func (k *kernel512) name() string {
	name := "seal512"
	if k.open {
		name = "open512"
	}
	return fmt.Sprintf("%sAES%d", name, map[int]int{10: 128, 14: 256}[k.rounds])
}

// key is the register of a round key but the first, which is used where counters are made.
func (k *kernel512) key(r int) VecPhysical { return zs[7+r] }

func (k *kernel512) write() {
	TEXT(k.name(), NOSPLIT, "func(k *byte, s *byte, dst *byte, src *byte, n int)")
	Load(Param("k"), keys)
	Load(Param("s"), state)
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("n"), n)
	VMOVDQU64(reverse, zReverse)
	VMOVDQU64(at(state, stateAcc), zHi.AsX())
	for r := 1; r <= k.rounds; r++ {
		VBROADCASTI32X4(roundKey(r), k.key(r))
	}
	k.begin()
	k.counters()

	CMPQ(n, U32(group))
	JB(LabelRef("tail"))
	if k.open {
		Label("loop")
		prefetch(src, group/64)
		k.starts()
		weave(k.aes(), hashGroup512(src))
		k.xor(0)
		k.groupEnd()
		JAE(LabelRef("loop"))
	} else {
		// The first group is encrypted alone. From then on each is encrypted while the one before it is hashed.
		k.starts()
		k.aes().emit()
		k.xor(0)
		ADDQ(U32(group), src)
		SUBQ(U32(group), n)
		CMPQ(n, U32(group))
		JB(LabelRef("drain"))
		Label("loop")
		prefetch(dst, group/64)
		k.starts()
		weave(k.aes(), hashGroup512(dst))
		k.xor(group)
		k.groupEnd()
		JAE(LabelRef("loop"))
		Label("drain")
		hashGroup512(dst).emit()
		ADDQ(U32(group), dst)
	}
	Label("tail")
	CMPQ(at(state, stateLast), Imm(0))
	JNE(LabelRef("last"))
	VMOVDQU64(zHi.AsX(), at(state, stateAcc))
	leave512()
	Label("last")
	k.tail()
	leave512()
}

// begin makes, in the first call for a message, the mask of the tag and hashes up to 64 bytes of additional data.
func (k *kernel512) begin() {
	CMPQ(at(state, stateFirst), Imm(0))
	JE(LabelRef("begun"))
	maskTag(k.rounds)

	MOVQ(at(state, stateAADLen), R8)
	TESTQ(R8, R8)
	JZ(LabelRef("begun"))
	MOVQ(at(state, stateAAD), R11)
	mask(R8, R13)
	VMOVDQU8_Z(at(R11, 0), K1, Z1)
	ADDQ(Imm(15), R8)
	ANDQ(I32(-16), R8)
	LEAQ(at(keys, keysEnd), hp)
	SUBQ(R8, hp)
	VPSHUFB(zReverse, Z1, Z1)
	VPXORQ(zHi, Z1, Z1)
	multiply512(Z1, at(hp, 0), zLo, zMi, zHi, zT0, zT1, true)
	reduce512(zLo, zMi, zHi, zT0, poly).emit()
	fold512(zHi, zT0).emit()
	Label("begun")
}

// maskTag makes the mask of the tag, the encryption of counter 1.
func maskTag(rounds int) {
	x := X0
	VMOVDQU(at(state, stateCounter), x)
	MOVL(U32(1<<24), R8L)
	VPINSRD(Imm(3), R8L, x, x)
	VPXOR(roundKey(0), x, x)
	for r := 1; r < rounds; r++ {
		VAESENC(roundKey(r), x, x)
	}
	VAESENCLAST(roundKey(rounds), x, x)
	VMOVDQU(x, at(state, stateMask))
}

// counters makes zBase and zWindow for the first group.
func (k *kernel512) counters() {
	VBROADCASTI32X4(at(state, stateCounter), zBase)
	VPSHUFB(zReverse, zBase, zBase)
	VBROADCASTI32X4(at(state, stateCounter), zWindow)
	VBROADCASTI32X4(roundKey(0), zT0)
	VPXORQ(zT0, zWindow, zWindow)
}

// prefetch fetches a group of so many cache lines some groups ahead. Past the end of the memory it does nothing.
func prefetch(base Register, lines int) {
	for i := range lines {
		PREFETCHT0(at(base, prefetched+64*i))
	}
}

// groupEnd steps to the next group and compares what is left with one.
func (k *kernel512) groupEnd() {
	ADDQ(U32(group), src)
	ADDQ(U32(group), dst)
	SUBQ(U32(group), n)
	CMPQ(n, U32(group))
}

// starts makes the states of eight vectors: their counter blocks, added to round key 0. A group begins at a multiple of 32
// blocks, so that all but its last two blocks differ from zWindow in the last byte only.
func (k *kernel512) starts() {
	for i := range 7 {
		VPXORQ(counterXor.Offset(64*i), zWindow, zs[i])
	}
	VPADDD(counterGroup, zBase, zBase)
	VBROADCASTI32X4(roundKey(0), zT1)
	VPSHUFB(zReverse, zBase, zT0)
	VPXORQ(zT1, zT0, zT0)
	VSHUFI64X2(Imm(0x44), zT0, zWindow, zs[7])
	VPXORQ(counterXor.Offset(64*7), zs[7], zs[7])
	VMOVDQA64(zT0, zWindow)
}

// aes is the middle rounds of eight vectors.
func (k *kernel512) aes() (s seq) {
	for r := 1; r < k.rounds; r++ {
		for i := range 8 {
			s.add(func() { VAESENC(k.key(r), zs[i], zs[i]) })
		}
	}
	return s
}

// xor is the last round of eight vectors, and the output; disp is how far dst lags behind.
func (k *kernel512) xor(disp int) {
	for i := range 8 {
		VPXORQ(at(src, 64*i), k.key(k.rounds), zT0)
		VAESENCLAST(zT0, zs[i], zs[i])
		VMOVDQU64(zs[i], at(dst, disp+64*i))
	}
}

// tail works on the last n bytes, less than a group, and makes the tag.
func (k *kernel512) tail() {
	beginTail512(1)
	VBROADCASTI32X4(roundKey(0), zKey0)
	VPADDD(counterAdd, zBase, zCounters)
	for _, g := range []int{4, 2, 1} {
		skip := fmt.Sprintf("less%d", g*64)
		CMPQ(n, U32(64*g))
		JB(LabelRef(skip))
		k.tailKeystream(g)
		for i := range g {
			if k.open {
				VMOVDQU64(at(src, 64*i), zT2)
				VPXORQ(zT2, zs[i], zs[i])
				VMOVDQU64(zs[i], at(dst, 64*i))
				hashVector512(zT2, at(hp, 64*i))
			} else {
				VPXORQ(at(src, 64*i), zs[i], zs[i])
				VMOVDQU64(zs[i], at(dst, 64*i))
				hashVector512(zs[i], at(hp, 64*i))
			}
		}
		ADDQ(U32(64*g), src)
		ADDQ(U32(64*g), dst)
		ADDQ(U32(64*g), hp)
		SUBQ(U32(64*g), n)
		Label(skip)
	}
	TESTQ(n, n)
	JZ(LabelRef("whole"))
	mask(n, R8)
	VMOVDQU8_Z(at(src, 0), K1, zT2)
	k.tailKeystream(1)
	VPXORQ(zT2, Z0, Z0)
	VMOVDQU8(Z0, K1, at(dst, 0))
	if k.open {
		hashVector512(zT2, at(hp, 0))
	} else {
		VMOVDQU8_Z(Z0, K1, Z0)
		hashVector512(Z0, at(hp, 0))
	}
	Label("whole")
	VMOVDQU64(at(state, stateLengths), zT2.AsX())
	VPXORQ(zAcc, zT2, zT2)
	multiply512(zT2.AsX(), power(1), zT3.AsX(), zWindow.AsX(), zs[0].AsX(), zT0.AsX(), zT1.AsX(), true)
	VPXORQ(zT3, zLo, zLo)
	VPXORQ(zWindow, zMi, zMi)
	VPXORQ(zs[0], zHi, zHi)
	reduce512(zLo, zMi, zHi, zT0, poly).emit()
	fold512(zHi, zT0).emit()
	x := zHi.AsX()
	VPSHUFB(zReverse.AsX(), x, x)
	VPXORQ(at(state, stateMask), x, x)
	VMOVDQU64(x, at(state, stateTag))
}

// tailKeystream makes g vectors of key stream.
func (k *kernel512) tailKeystream(g int) {
	for i := range g {
		VPSHUFB(zReverse, zCounters, zs[i])
		VPADDD(counterFour, zCounters, zCounters)
		VPXORQ(zKey0, zs[i], zs[i])
	}
	for r := 1; r < k.rounds; r++ {
		for i := range g {
			VAESENC(k.key(r), zs[i], zs[i])
		}
	}
	for i := range g {
		VAESENCLAST(k.key(k.rounds), zs[i], zs[i])
	}
}
