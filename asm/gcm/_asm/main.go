// Command _asm writes the amd64 kernels of coffer/asm/gcm. docs/crypto-kernels.md explains them.
package main

import . "github.com/mmcloughlin/avo/build"

func main() {
	ConstraintExpr("!purego")
	constants()
	expandKeys()
	avx512()
	avx2()
	Generate()
}
