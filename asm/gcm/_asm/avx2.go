package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// The kernels of 32-byte vectors have the shape of those of 64: eight states, hashed while others are encrypted. With half as many
// registers round keys are read from memory, each once for eight states, and a product needs two temporaries.

var (
	ys = []VecPhysical{Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7}

	yLo, yMi, yHi = Y8, Y9, Y10
	yA, yT        = Y11, Y12
	yKey          = Y13
	yBase         = Y14 // counter block of the group, bytes reversed; in tails the next counters
	yWindow       = Y15 // counter block of the group, added to round key 0
	yAcc          = Y15 // in tails the hash so far
)

const group256 = 256 // bytes in eight vectors

var counterXor256, counterTwo, counterGroup256, keep256 Mem

func constants256() {
	// As counterXor, for groups of 16 blocks.
	counterXor256 = GLOBL("counterXor256", RODATA|NOPTR)
	for i := range 16 {
		DATA(16*i, U64(0))
		DATA(16*i+8, U64(uint64((i+2)%16)<<56))
	}
	counterTwo = lanes("counterTwo", func(int) (lo, hi uint64) { return 2, 0 })
	counterGroup256 = lanes("counterGroup256", func(int) (lo, hi uint64) { return 16, 0 })
	// From n bytes before the middle on there are n bytes of ones, then zeros.
	keep256 = GLOBL("keep256", RODATA|NOPTR)
	for i := range 8 {
		DATA(8*i, U64(map[bool]uint64{true: 1<<64 - 1}[i < 4]))
	}
}

func avx2() {
	constants256()
	setup256()
	ghash256()
	for _, rounds := range []int{14, 10} {
		for _, open := range []bool{false, true} {
			k := &kernel256{rounds: rounds, open: open}
			k.write()
		}
	}
}

// leave256 returns to Go with all vector registers cleared.
func leave256() {
	VZEROALL()
	RET()
}

// multiply256 adds the unreduced product of x and y, which may be memory, to lo, mi and hi, or sets these.
func multiply256(x, y, lo, mi, hi, t Op, set bool) {
	if set {
		VPCLMULQDQ(Imm(0x00), y, x, lo)
		VPCLMULQDQ(Imm(0x01), y, x, mi)
		VPCLMULQDQ(Imm(0x10), y, x, t)
		VPCLMULQDQ(Imm(0x11), y, x, hi)
		VPXOR(t, mi, mi)
		return
	}
	for _, p := range []struct {
		half uint8
		sum  Op
	}{{0x00, lo}, {0x01, mi}, {0x10, mi}, {0x11, hi}} {
		VPCLMULQDQ(Imm(uint64(p.half)), y, x, t)
		VPXOR(t, p.sum, p.sum)
	}
}

// reduce256 brings the product modulo the polynomial; the result is in hi.
func reduce256(lo, mi, hi, t VecPhysical, poly Op) (s seq) {
	s.add(func() { VPCLMULQDQ(Imm(0x10), poly, lo, t) })
	s.add(func() { VPSHUFD(Imm(0x4e), lo, lo) })
	s.add(func() { VPXOR(t, mi, mi) })
	s.add(func() { VPXOR(lo, mi, mi) })
	s.add(func() { VPCLMULQDQ(Imm(0x10), poly, mi, t) })
	s.add(func() { VPSHUFD(Imm(0x4e), mi, mi) })
	s.add(func() { VPXOR(t, hi, hi) })
	s.add(func() { VPXOR(mi, hi, hi) })
	return s
}

// fold256 sums the two lanes of y into its lowest and clears the other.
func fold256(y, t VecPhysical) (s seq) {
	s.add(func() { VEXTRACTI128(Imm(1), y, t.AsX()) })
	s.add(func() { VPXOR(t.AsX(), y.AsX(), y.AsX()) })
	return s
}

// hashGroup256 hashes the eight vectors at base. The hash so far is in yHi before and after.
func hashGroup256(base Register) (s seq) {
	for i := range 8 {
		h := power(16 - 2*i)
		s.add(func() { VMOVDQU(at(base, 32*i), yA) })
		s.add(func() { VPSHUFB(reverse, yA, yA) })
		if i == 0 {
			s.add(func() { VPXOR(yHi, yA, yA) })
			s.add(func() { VPCLMULQDQ(Imm(0x00), h, yA, yLo) })
			s.add(func() { VPCLMULQDQ(Imm(0x11), h, yA, yHi) })
			s.add(func() { VPSHUFD(Imm(0x4e), yA, yT) })
			s.add(func() { VPXOR(yT, yA, yA) })
			s.add(func() { VPCLMULQDQ(Imm(0x00), sum256(i), yA, yMi) })
			continue
		}
		s.add(func() { VPCLMULQDQ(Imm(0x00), h, yA, yT) })
		s.add(func() { VPXOR(yT, yLo, yLo) })
		s.add(func() { VPCLMULQDQ(Imm(0x11), h, yA, yT) })
		s.add(func() { VPXOR(yT, yHi, yHi) })
		s.add(func() { VPSHUFD(Imm(0x4e), yA, yT) })
		s.add(func() { VPXOR(yT, yA, yA) })
		s.add(func() { VPCLMULQDQ(Imm(0x00), sum256(i), yA, yA) })
		s.add(func() { VPXOR(yA, yMi, yMi) })
	}
	s.add(func() { VPXOR(yLo, yMi, yMi) })
	s.add(func() { VPXOR(yHi, yMi, yMi) })
	s = append(s, reduce256(yLo, yMi, yHi, yT, poly)...)
	return append(s, fold256(yHi, yT)...)
}

// sum256 is where the sums of the halves of the powers are that the vector i of a group is multiplied by.
func sum256(i int) Mem { return at(keys, keysSums+16*(32-16+2*i)) }

// setup256 derives H and its powers from the round keys.
func setup256() {
	TEXT("setup256", NOSPLIT, "func(k *byte, rounds int)")
	Load(Param("k"), keys)
	Load(Param("rounds"), n)
	hashKey()
	// The first product is of one lane.
	multiply256(X0, X0, X1, X2, X3, X4, true)
	reduce256(X1, X2, X3, X4, poly).emit()
	VINSERTI128(Imm(1), X3, Y3, Y5) // 2 2
	VINSERTI128(Imm(1), X0, Y3, Y3) // 2 1
	for e := 2; ; e += 2 {
		VMOVDQU(Y3, power(e))
		if e <= 16 {
			VPSHUFD(Imm(0x4e), Y3, Y4)
			VPXOR(Y3, Y4, Y4)
			VMOVDQU(Y4, sum256((16-e)/2))
		}
		if e == 18 {
			break
		}
		multiply256(Y3, Y5, Y1, Y2, Y6, Y4, true)
		reduce256(Y1, Y2, Y6, Y4, poly).emit()
		VMOVDQA(Y6, Y3)
	}
	leave256()
}

// ghash256 hashes n bytes, zero padded to whole blocks.
func ghash256() {
	TEXT("ghash256", NOSPLIT, "func(k *byte, acc *byte, p *byte, n int)")
	part := AllocLocal(32)
	Load(Param("k"), keys)
	Load(Param("acc"), state)
	Load(Param("p"), src)
	Load(Param("n"), n)
	VMOVDQU(at(state, 0), yHi.AsX())
	CMPQ(n, U32(group256))
	JB(LabelRef("rest"))
	Label("loop")
	hashGroup256(src).emit()
	ADDQ(U32(group256), src)
	SUBQ(U32(group256), n)
	CMPQ(n, U32(group256))
	JAE(LabelRef("loop"))
	Label("rest")
	TESTQ(n, n)
	JZ(LabelRef("done"))
	beginTail256(0)
	Label("vector")
	CMPQ(n, U32(32))
	JB(LabelRef("part"))
	VMOVDQU(at(src, 0), Y0)
	hashVector256(Y0, at(hp, 0))
	ADDQ(U32(32), src)
	ADDQ(U32(32), hp)
	SUBQ(U32(32), n)
	JMP(LabelRef("vector"))
	Label("part")
	TESTQ(n, n)
	JZ(LabelRef("reduce"))
	loadPart(part, Y0)
	hashVector256(Y0, at(hp, 0))
	Label("reduce")
	reduce256(yLo, yMi, yHi, yT, poly).emit()
	fold256(yHi, yT).emit()
	Label("done")
	VMOVDQU(yHi.AsX(), at(state, 0))
	leave256()
}

// loadPart loads the n bytes at src, less than 32, and zeros behind them, by way of memory of the function's own, which is cleared.
func loadPart(part Mem, y VecPhysical) {
	VPXOR(yT, yT, yT)
	VMOVDQU(yT, part)
	LEAQ(part, R8)
	MOVQ(src, R9)
	copyPart("in")
	VMOVDQU(part, y)
	VMOVDQU(yT, part)
}

// storePart stores the lowest n bytes of y at dst, less than 32.
func storePart(part Mem, y VecPhysical) {
	VMOVDQU(y, part)
	MOVQ(dst, R8)
	LEAQ(part, R9)
	copyPart("out")
	VPXOR(yT, yT, yT)
	VMOVDQU(yT, part)
}

// copyPart copies n bytes, less than 32, from R9 to R8.
func copyPart(name string) {
	for _, size := range []int{16, 8, 4, 2, 1} {
		skip := fmt.Sprintf("%s%d", name, size)
		TESTQ(U32(size), n)
		JZ(LabelRef(skip))
		from, to := at(R9, 0), at(R8, 0)
		switch size {
		case 16:
			VMOVDQU(from, yA.AsX())
			VMOVDQU(yA.AsX(), to)
		case 8:
			MOVQ(from, R10)
			MOVQ(R10, to)
		case 4:
			MOVL(from, R10L)
			MOVL(R10L, to)
		case 2:
			MOVW(from, R10W)
			MOVW(R10W, to)
		case 1:
			MOVB(from, R10B)
			MOVB(R10B, to)
		}
		if size > 1 {
			ADDQ(Imm(uint64(size)), R9)
			ADDQ(Imm(uint64(size)), R8)
		}
		Label(skip)
	}
	XORL(R10L, R10L)
}

// beginTail256 prepares for the last n bytes and extra blocks behind them: hp is at the power for the first block, the hash so far is in
// yAcc.
func beginTail256(extra int) {
	VMOVDQA(yHi, yAcc)
	VPXOR(yLo, yLo, yLo)
	VPXOR(yMi, yMi, yMi)
	VPXOR(yHi, yHi, yHi)
	LEAQ(at(n, 15), R8)
	ANDQ(I32(-16), R8)
	LEAQ(at(keys, keysEnd-16*extra), hp)
	SUBQ(R8, hp)
}

// hashVector256 adds the product of y with powers of H. The first one takes the hash so far in.
func hashVector256(y VecPhysical, powers Op) {
	VPSHUFB(reverse, y, y)
	VPXOR(yAcc, y, y)
	VPXOR(yAcc, yAcc, yAcc)
	multiply256(y, powers, yLo, yMi, yHi, yT, false)
}

// kernel256 seals or opens. Additional data has been hashed.
type kernel256 struct {
	rounds int
	open   bool
}

func (k *kernel256) name() string {
	name := "seal256"
	if k.open {
		name = "open256"
	}
	return fmt.Sprintf("%sAES%d", name, map[int]int{10: 128, 14: 256}[k.rounds])
}

func (k *kernel256) write() {
	TEXT(k.name(), NOSPLIT, "func(k *byte, s *byte, dst *byte, src *byte, n int)")
	part := AllocLocal(32)
	Load(Param("k"), keys)
	Load(Param("s"), state)
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("n"), n)
	VMOVDQU(at(state, stateAcc), yHi.AsX())
	CMPQ(at(state, stateFirst), Imm(0))
	JE(LabelRef("begun"))
	maskTag(k.rounds)
	Label("begun")
	VBROADCASTI128(at(state, stateCounter), yWindow)
	VPSHUFB(reverse, yWindow, yBase)
	VBROADCASTI128(roundKey(0), yKey)
	VPXOR(yKey, yWindow, yWindow)

	CMPQ(n, U32(group256))
	JB(LabelRef("tail"))
	if k.open {
		Label("loop")
		prefetch(src, group256/64)
		k.starts()
		weave(k.aes(), hashGroup256(src))
		k.xor(0)
		k.groupEnd()
		JAE(LabelRef("loop"))
	} else {
		// As with vectors of 64 bytes.
		k.starts()
		k.aes().emit()
		k.xor(0)
		ADDQ(U32(group256), src)
		SUBQ(U32(group256), n)
		CMPQ(n, U32(group256))
		JB(LabelRef("drain"))
		Label("loop")
		prefetch(dst, group256/64)
		k.starts()
		weave(k.aes(), hashGroup256(dst))
		k.xor(group256)
		k.groupEnd()
		JAE(LabelRef("loop"))
		Label("drain")
		hashGroup256(dst).emit()
		ADDQ(U32(group256), dst)
	}
	Label("tail")
	CMPQ(at(state, stateLast), Imm(0))
	JNE(LabelRef("last"))
	VMOVDQU(yHi.AsX(), at(state, stateAcc))
	leave256()
	Label("last")
	k.tail(part)
	leave256()
}

// groupEnd steps to the next group and compares what is left with one.
func (k *kernel256) groupEnd() {
	ADDQ(U32(group256), src)
	ADDQ(U32(group256), dst)
	SUBQ(U32(group256), n)
	CMPQ(n, U32(group256))
}

// starts makes the states of eight vectors: their counter blocks, added to round key 0. A group begins at a multiple of 16 blocks, so
// that all but its last two blocks, which are the last vector, differ from yWindow in the last byte only.
func (k *kernel256) starts() {
	for i := range 7 {
		VPXOR(counterXor256.Offset(32*i), yWindow, ys[i])
	}
	VPADDD(counterGroup256, yBase, yBase)
	VBROADCASTI128(roundKey(0), yKey)
	VPSHUFB(reverse, yBase, yWindow)
	VPXOR(yKey, yWindow, yWindow)
	VPXOR(counterXor256.Offset(32*7), yWindow, ys[7])
}

// aes is the middle rounds of eight vectors.
func (k *kernel256) aes() (s seq) {
	for r := 1; r < k.rounds; r++ {
		s.add(func() { VBROADCASTI128(roundKey(r), yKey) })
		for i := range 8 {
			s.add(func() { VAESENC(yKey, ys[i], ys[i]) })
		}
	}
	return s
}

// xor is the last round of eight vectors, and the output; disp is how far dst lags behind.
func (k *kernel256) xor(disp int) {
	VBROADCASTI128(roundKey(k.rounds), yKey)
	for i := range 8 {
		VPXOR(at(src, 32*i), yKey, yT)
		VAESENCLAST(yT, ys[i], ys[i])
		VMOVDQU(ys[i], at(dst, disp+32*i))
	}
}

// tail works on the last n bytes, less than a group, and makes the tag.
func (k *kernel256) tail(part Mem) {
	beginTail256(1)
	VPADDD(counterAdd, yBase, yBase)
	for _, g := range []int{4, 2, 1} {
		skip := fmt.Sprintf("less%d", g*32)
		CMPQ(n, U32(32*g))
		JB(LabelRef(skip))
		k.tailKeystream(g)
		for i := range g {
			if k.open {
				VMOVDQU(at(src, 32*i), yKey)
				VPXOR(yKey, ys[i], ys[i])
				VMOVDQU(ys[i], at(dst, 32*i))
				hashVector256(yKey, at(hp, 32*i))
			} else {
				VPXOR(at(src, 32*i), ys[i], ys[i])
				VMOVDQU(ys[i], at(dst, 32*i))
				hashVector256(ys[i], at(hp, 32*i))
			}
		}
		ADDQ(U32(32*g), src)
		ADDQ(U32(32*g), dst)
		ADDQ(U32(32*g), hp)
		SUBQ(U32(32*g), n)
		Label(skip)
	}
	TESTQ(n, n)
	JZ(LabelRef("whole"))
	data := ys[4]
	loadPart(part, data)
	k.tailKeystream(1)
	VPXOR(data, Y0, Y0)
	storePart(part, Y0)
	if !k.open {
		LEAQ(keep256.Offset(32), R8)
		SUBQ(n, R8)
		VPAND(at(R8, 0), Y0, data)
	}
	hashVector256(data, at(hp, 0))
	Label("whole")
	VMOVDQU(at(state, stateLengths), X0)
	VPXOR(yAcc, Y0, Y0)
	multiply256(X0, power(1), X1, X2, X3, X4, true)
	VPXOR(Y1, yLo, yLo)
	VPXOR(Y2, yMi, yMi)
	VPXOR(Y3, yHi, yHi)
	reduce256(yLo, yMi, yHi, yT, poly).emit()
	fold256(yHi, yT).emit()
	x := yHi.AsX()
	VPSHUFB(reverse, x, x)
	VPXOR(at(state, stateMask), x, x)
	VMOVDQU(x, at(state, stateTag))
}

// tailKeystream makes g vectors of key stream.
func (k *kernel256) tailKeystream(g int) {
	VBROADCASTI128(roundKey(0), yKey)
	for i := range g {
		VPSHUFB(reverse, yBase, ys[i])
		VPADDD(counterTwo, yBase, yBase)
		VPXOR(yKey, ys[i], ys[i])
	}
	for r := 1; r <= k.rounds; r++ {
		VBROADCASTI128(roundKey(r), yKey)
		for i := range g {
			if r < k.rounds {
				VAESENC(yKey, ys[i], ys[i])
			} else {
				VAESENCLAST(yKey, ys[i], ys[i])
			}
		}
	}
}
