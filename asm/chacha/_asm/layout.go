package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Layout of the Go types state and powers, which a test holds against the compiler's.
const (
	stateKey     = 0
	stateCounter = 32
	stateNonce   = 36
	stateHash    = 48

	powersSixteenth = 0  // r^16
	powersEighth    = 40 // r^8
	powersLanes     = 128
)

// GPRs that hold the same thing in all kernels.
var (
	dst    = RAX
	src    = RBX
	n      = RCX // groups or bytes left
	text   = RDX // what is hashed
	state  = RSI
	powers = RDI
)

func at(base Register, disp int) Mem { return Mem{Base: base, Disp: disp} }

// seq is a run of instructions not written yet.
type seq []func()

func (s *seq) add(f func()) { *s = append(*s, f) }

func (s seq) emit() {
	for _, f := range s {
		f()
	}
}

// weave writes a with b spread evenly among it.
func weave(a, b seq) {
	done := 0
	for i, f := range a {
		f()
		for ; done*len(a) < (i+1)*len(b); done++ {
			b[done]()
		}
	}
}

const (
	blocks     = 16 // of a group
	groupBytes = 64 * blocks
	stepBytes  = 256 // what is hashed at a time
)

var (
	sigma          Mem // "expand 32-byte k"
	iota16         Mem // 0 to 15
	mask44, mask42 Mem
	padBit         Mem // 2^128 as the highest limb has it
	first          = K1
)

func constants() {
	sigma = GLOBL("sigma", RODATA|NOPTR)
	for i, w := range []uint32{0x61707865, 0x3320646e, 0x79622d32, 0x6b206574} {
		DATA(4*i, U32(w))
	}
	iota16 = GLOBL("iota", RODATA|NOPTR)
	for i := range blocks {
		DATA(4*i, U32(i))
	}
	word := func(name string, v uint64) Mem {
		m := GLOBL(name, RODATA|NOPTR)
		DATA(0, U64(v))
		return m
	}
	mask44 = word("mask44", 1<<44-1)
	mask42 = word("mask42", 1<<42-1)
	padBit = word("padBit", 1<<40)
}

// leave returns to Go with all vector registers cleared.
func leave() {
	for _, z := range zs {
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
