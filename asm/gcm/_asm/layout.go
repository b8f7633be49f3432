package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Layout of the Go types AEAD and state, which a test holds against the compiler's.
const (
	keysRound  = 0
	keysPowers = 256 // after fifteen round keys and one unused
	powers     = 36  // of H, the highest first
	keysEnd    = keysPowers + 16*powers
	keysSums   = 896 // of the halves of the first 32 powers that a group is multiplied by

	stateCounter = 0
	stateAcc     = 16
	stateMask    = 32
	stateLengths = 48
	stateTag     = 64
	stateAAD     = 80
	stateAADLen  = 88
	stateFirst   = 96
	stateLast    = 104
)

// GPRs that hold the same thing in all kernels.
var (
	dst   = RAX
	src   = RBX
	n     = RCX
	keys  = RDX // an AEAD
	state = RSI
	hp    = RDI // next power of H
)

func at(base Register, disp int) Mem { return Mem{Base: base, Disp: disp} }

// roundKey is where the round key r is.
func roundKey(r int) Mem { return at(keys, keysRound+16*r) }

// power is where the power of H to the e is.
func power(e int) Mem { return at(keys, keysEnd-16*e) }

// sum is where the sums of the halves of the powers are that the vector i of a group is multiplied by.
func sum(i int) Mem { return at(keys, keysSums+64*i) }

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

// lanes makes a constant of 64 bytes from the two halves of each 16-byte lane.
func lanes(name string, lane func(i int) (lo, hi uint64)) Mem {
	m := GLOBL(name, RODATA|NOPTR)
	for i := range 4 {
		lo, hi := lane(i)
		DATA(16*i, U64(lo))
		DATA(16*i+8, U64(hi))
	}
	return m
}

var reverse, poly Mem

func constants() {
	// Reverses the bytes of a lane.
	reverse = lanes("reverse", func(int) (lo, hi uint64) { return 0x08090a0b0c0d0e0f, 0x0001020304050607 })
	// x^128 + x^127 + x^126 + x^121 + 1 without its highest bit.
	poly = lanes("poly", func(int) (lo, hi uint64) { return 1, 0xc2 << 56 })
}
