// Command _asm writes the amd64 kernels of coffer/asm/cbc. docs/crypto-kernels.md explains them.
package main

import . "github.com/mmcloughlin/avo/build"

func main() {
	ConstraintExpr("!purego")
	expandKey()
	encrypt()
	decrypt()
	hash()
	Generate()
}
