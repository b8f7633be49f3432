package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Layout of the Go types schedule and lanes, which a test holds against the compiler's.
const (
	keysEncrypt = 0
	keysDecrypt = 240

	lanesSrc = 0
	lanesDst = 128
	lanesIV  = 256
)

const roundKeys = 15 // of AES-256

// GPRs that hold the same thing in all kernels.
var (
	dst  = RAX
	src  = RBX
	n    = RCX // blocks left
	keys = RDX
	off  = RSI
)

func at(base Register, disp int) Mem { return Mem{Base: base, Disp: disp} }

// leave returns to Go with the vector registers cleared that may have been used.
func leave(used []VecPhysical) {
	for _, z := range used {
		VPXORQ(z, z, z)
	}
	VZEROUPPER()
	RET()
}

var zs = []VecPhysical{
	Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7,
	Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15,
	Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23,
	Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31,
}
