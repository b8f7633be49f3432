// Command _asm writes the amd64 kernels of coffer/asm/chacha. docs/crypto-kernels.md explains them.
package main

import . "github.com/mmcloughlin/avo/build"

func main() {
	ConstraintExpr("!purego")
	constants()
	xor("first512", "func(s, head, dst, src *byte, n int)", "first512 writes block 0 to head, and encrypts up to 960 bytes.", true)
	xor("xor512", "func(s, dst, src *byte, n int)", "xor512 encrypts up to 1024 bytes.", false)
	crypt()
	hash()
	Generate()
}
