package hw

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strings"

	"github.com/klauspost/cpuid/v2"
	"github.com/minio/crc64nvme"
	"golang.org/x/crypto/chacha20poly1305"

	"coffer/asm/cbc"
	"coffer/asm/chacha"
	"coffer/asm/gcm"
)

// path is one implementation of a primitive. Of the functions just those are set that the primitive's kind asks for.
type path struct {
	primitive Primitive
	name      string
	needs     []cpuid.FeatureID // without all of these the path is never called

	newAEAD   func(key []byte) (cipher.AEAD, error)
	newMatrix func(rows [][]byte) (matrix, error) // Reed-Solomon
	crc64     func(crc uint64, p []byte) uint64
	crc32     func(crc uint32, p []byte) uint32
	newHash   func() hash.Hash
}

// registry lists all paths. The first one of a primitive is its default, which another has to beat clearly.
func registry(cpu *cpuid.CPUInfo) []path {
	ieee, castagnoli := crc32Table(crc32.IEEE), crc32Table(crc32.Castagnoli)
	castagnoliTable := crc32.MakeTable(crc32.Castagnoli)
	nvmeTable := crc64.MakeTable(crc64nvme.NVME)
	paths := []path{
		{primitive: AES256GCM, name: "stdlib", newAEAD: newGCM},
		{primitive: ChaCha20Poly1305, name: "x-crypto", newAEAD: chacha20poly1305.New},
		{primitive: AES256CBCHMACSHA512, name: "stdlib", newAEAD: newKernel(cbc.New, cbc.Portable)},

		{primitive: ReedSolomon, name: "klauspost", newMatrix: newKlauspost(cpu)},
		{primitive: ReedSolomon, name: "generic", newMatrix: newGenericMatrix},

		{primitive: CRC64NVME, name: "minio", crc64: crc64nvme.Update},
		{primitive: CRC64NVME, name: "stdlib", crc64: func(crc uint64, p []byte) uint64 { return crc64.Update(crc, nvmeTable, p) }},
		{primitive: CRC32, name: "stdlib", crc32: func(crc uint32, p []byte) uint32 { return crc32.Update(crc, crc32.IEEETable, p) }},
		{primitive: CRC32, name: "generic", crc32: ieee.update},
		{primitive: CRC32C, name: "stdlib", crc32: func(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoliTable, p) }},
		{primitive: CRC32C, name: "generic", crc32: castagnoli.update},

		{primitive: MD5, name: "stdlib", newHash: md5.New},
		{primitive: SHA256, name: "stdlib", newHash: sha256.New},
		{primitive: SHA512, name: "stdlib", newHash: sha512.New},
	}
	for _, k := range gcm.Kernels() {
		if k != gcm.Portable { // for tests, and slow
			paths = append(paths, path{primitive: AES256GCM, name: k.String(), needs: k.Needs(), newAEAD: newKernel(gcm.New, k)})
		}
	}
	for _, k := range chacha.Kernels() {
		if k != chacha.Portable {
			paths = append(paths, path{primitive: ChaCha20Poly1305, name: k.String(), needs: k.Needs(), newAEAD: newKernel(chacha.New, k)})
		}
	}
	for _, k := range cbc.Kernels() {
		if k != cbc.Portable { // on the standard library, and above
			paths = append(paths, path{primitive: AES256CBCHMACSHA512, name: k.String(), needs: k.Needs(), newAEAD: newKernel(cbc.New, k)})
		}
	}
	return paths
}

// newKernel is the constructor of a package of kernels for one of them.
func newKernel[K any, A cipher.AEAD](newAEAD func(K, []byte) (A, error), k K) func(key []byte) (cipher.AEAD, error) {
	return func(key []byte) (cipher.AEAD, error) {
		a, err := newAEAD(k, key)
		if err != nil {
			return nil, err // not a nil pointer in an interface
		}
		return a, nil
	}
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// crcTable is the byte-wise table of a reflected 32-bit CRC: the portable path.
type crcTable [256]uint32

func crc32Table(poly uint32) *crcTable {
	var t crcTable
	for i := range t {
		c := uint32(i)
		for range 8 {
			c = c>>1 ^ poly&-(c&1)
		}
		t[i] = c
	}
	return &t
}

func (t *crcTable) update(crc uint32, p []byte) uint32 {
	crc = ^crc
	for _, b := range p {
		crc = crc>>8 ^ t[byte(crc)^b]
	}
	return ^crc
}

// candidate is a path on its way through Probe; afterwards it is read only.
type candidate struct {
	path
	spec    *spec
	lacking []string // features that the processor does not have
	err     error    // why the self-test or the benchmark failed
	chosen  bool
	median  [len(benchSizes)]float64 // bytes per second, 0 where not measured
}

// prove runs the self-test, if the processor has what the path needs.
func (c *candidate) prove(cpu *cpuid.CPUInfo) {
	for _, f := range c.needs {
		if !cpu.Supports(f) {
			c.lacking = append(c.lacking, f.String())
		}
	}
	if len(c.lacking) == 0 {
		c.err = guard(func() error { return c.spec.test(&c.path) })
	}
}

func (c *candidate) usable() bool { return c.err == nil && len(c.lacking) == 0 }

// selfTest is the outcome in words for the report.
func (c *candidate) selfTest() string {
	switch {
	case len(c.lacking) > 0:
		return "unsupported: needs " + strings.Join(c.lacking, ", ")
	case c.err != nil:
		return "fail: " + c.err.Error()
	}
	return "pass"
}

// guard turns a panic of f, which runs an unproven path, into an error.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// spec is what is common to all paths of a primitive.
type spec struct {
	primitive Primitive
	ops       []Op
	keySize   int    // AEADs only, in bytes
	shape     string // of the benchmark, Reed-Solomon only
	test      func(*path) error
	bench     benchFunc
}

// benchFunc prepares the measurement of a path at one message size.
type benchFunc func(p *path, b *benchBuffers, size int) (*workload, error)

// specs lists the primitives in the order of the report.
func specs() []spec {
	sum := func(p Primitive, test func(*path) error, bench benchFunc) spec {
		return spec{primitive: p, ops: []Op{Sum}, test: test, bench: bench}
	}
	return []spec{
		aeadSpec(AES256GCM, 32, gcmVectors(), gcmSweep),
		aeadSpec(ChaCha20Poly1305, 32, chachaVectors(), chachaSweep),
		aeadSpec(AES256CBCHMACSHA512, cbc.KeySize, cbcHMACVectors(), cbcHMACSweep),
		{
			primitive: ReedSolomon, ops: []Op{Encode, Reconstruct}, shape: fmt.Sprintf("%d+%d", benchData, benchParity),
			test: testReedSolomon, bench: benchReedSolomon,
		},
		sum(CRC64NVME, testCRC64, benchCRC64),
		sum(CRC32, testCRC32(crc32Check, crc32Sweep), benchCRC32),
		sum(CRC32C, testCRC32(crc32cCheck, crc32cSweep), benchCRC32),
		sum(MD5, testHash(md5Vectors()), benchHash),
		sum(SHA256, testHash(sha256Vectors()), benchHash),
		sum(SHA512, testHash(sha512Vectors()), benchHash),
	}
}

func aeadSpec(p Primitive, keySize int, vectors []aeadVector, sweep string) spec {
	return spec{
		primitive: p, ops: []Op{Seal, Open}, keySize: keySize,
		test: testAEAD(vectors, keySize, sweep), bench: benchAEAD(keySize),
	}
}

var errMismatch = errors.New("wrong answer")
