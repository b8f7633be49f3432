// Package gcm is AES-GCM (NIST SP 800-38D) with 128- and 256-bit keys, 12-byte nonces and 16-byte tags, by assembly kernels for
// processors that work on several AES blocks with one instruction.
//
// It promises the answers, panics and buffer rules of crypto/cipher's GCM for every kernel that the processor supports. The
// time that assembly kernels take depends on nothing but lengths. Portable is the twin in Go that they are tested against; it
// is slow. The package does not choose: New takes the kernel, and coffer/hw tests and measures them on the machine at hand. It
// does not keep keys out of the Go heap, but Wipe clears what an assembly kernel derived from one. docs/crypto-kernels.md
// explains the kernels.
package gcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"slices"
	"unsafe"

	"github.com/klauspost/cpuid/v2"

	"coffer/asm/internal/buffer"
)

//go:generate go -C _asm run . -out ../gcm_amd64.s

// Sizes in bytes.
const (
	NonceSize = 12
	Overhead  = 16 // the tag

	blockSize = 16
	maxPlain  = (1<<32 - 2) * blockSize // SP 800-38D section 5.2.1.1

	chunk    = 256 << 10 // the most that one call of a kernel works on: the scheduler cannot interrupt it
	shortAAD = 64        // additional data that VAES512 hashes itself
)

// ErrOpen: the message is not what was sealed.
var ErrOpen = errors.New("gcm: message authentication failed")

// ErrUnsupported: the processor lacks an instruction that the kernel needs.
var ErrUnsupported = errors.New("gcm: kernel not supported by this processor")

// Kernel is one implementation.
type Kernel uint8

// The kernels. Kernels says which are part of this build.
const (
	Portable Kernel = iota
	VAES512         // amd64, 64-byte vectors
	VAES256         // amd64, 32-byte vectors
	kernelCount
)

// String is the kernel's name.
func (k Kernel) String() string {
	return [...]string{"portable", "vaes-avx512", "vaes-avx2"}[k]
}

// Needs are the features without all of which the kernel must not be used.
func (k Kernel) Needs() []cpuid.FeatureID { return slices.Clone(needs(k)) }

// supported tells the kernels that are in this build and that the processor has the features for.
var supported = func() (s [kernelCount]bool) {
	for _, k := range Kernels() {
		s[k] = cpuid.CPU.Supports(needs(k)...)
	}
	return s
}()

// Supported reports whether this build and this processor have the kernel.
func (k Kernel) Supported() bool { return k < kernelCount && supported[k] }

// state is a message in the making. Its layout is known to the assembly.
type state struct {
	counter [blockSize]byte // nonce, and the number of blocks done
	acc     [blockSize]byte // hash so far, in the kernel's form
	mask    [blockSize]byte // what the last hash becomes a tag with
	lengths [2]uint64       // in bits, of text and additional data
	tag     [blockSize]byte
	aad     *byte // additional data that is not in acc yet
	aadLen  int
	first   int // of the message's calls: make mask and hash aad
	last    int // make tag; only then need the text not be whole groups
}

// AEAD is AES-GCM under one key. It is safe for concurrent use, but for Wipe. With an assembly kernel, Seal and Open allocate
// only what dst has no room for.
//
// Its layout is known to the assembly. No load needs an alignment, but one across two cache lines is slower: without pointers and
// with a size that is one of the heap's size classes, 11 * 128 bytes, an AEAD from the heap begins at a cache line.
type AEAD struct {
	round  [15][blockSize]byte // round keys; of Portable the key itself
	kernel Kernel
	rounds uint8 // of AES, 0 after Wipe
	_      [blockSize - 2]byte
	powers [36][blockSize]byte // of H times x, bytes reversed, the highest first
	_      [64]byte            // read, and multiplied by zero
	sums   [32][blockSize]byte // of the halves of the last 32 powers, twice
}

var _ cipher.AEAD = (*AEAD)(nil)

// New returns AES-GCM by the kernel under a key of 16 or 32 bytes, which is copied. It allocates the AEAD, 1408 bytes.
func New(k Kernel, key []byte) (*AEAD, error) {
	if !k.Supported() {
		return nil, ErrUnsupported
	}
	a := &AEAD{kernel: k}
	switch len(key) {
	case 16:
		a.rounds = 10
	case 32:
		a.rounds = 14
	default:
		return nil, aes.KeySizeError(len(key))
	}
	if k == Portable {
		copy(a.round[0][:], key)
		copy(a.round[1][:], key[blockSize:])
	} else {
		a.setup(key)
	}
	return a, nil
}

// Wipe clears everything derived from the key. The AEAD must not be in use, and panics if it is used again.
func (a *AEAD) Wipe() { *a = AEAD{} }

// NonceSize implements cipher.AEAD.
func (a *AEAD) NonceSize() int { return NonceSize }

// Overhead implements cipher.AEAD.
func (a *AEAD) Overhead() int { return Overhead }

// Seal implements cipher.AEAD.
func (a *AEAD) Seal(dst, nonce, plaintext, additional []byte) []byte {
	a.check(nonce)
	if uint64(len(plaintext)) > maxPlain {
		panic("gcm: message too large")
	}
	whole, out := buffer.Extend(dst, len(plaintext)+Overhead)
	buffer.CheckOverlap("gcm", out, plaintext, additional)
	var s state
	a.crypt(false, &s, out[:len(plaintext)], nonce, plaintext, additional)
	copy(out[len(plaintext):], s.tag[:])
	return whole
}

// Open implements cipher.AEAD. It decrypts while it checks: what dst's memory holds before Open returns is not proved. On error
// nothing of the message is left there.
func (a *AEAD) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	a.check(nonce)
	n := len(ciphertext) - Overhead
	if n < 0 || uint64(n) > maxPlain {
		return nil, ErrOpen
	}
	whole, out := buffer.Extend(dst, n)
	buffer.CheckOverlap("gcm", out, ciphertext, additional)
	var s state
	a.crypt(true, &s, out, nonce, ciphertext[:n], additional)
	if subtle.ConstantTimeCompare(s.tag[:], ciphertext[n:]) != 1 {
		clear(out)
		return nil, ErrOpen
	}
	return whole, nil
}

func (a *AEAD) check(nonce []byte) {
	if len(nonce) != NonceSize {
		panic("gcm: incorrect nonce length")
	}
	if a.rounds == 0 {
		panic("gcm: key was wiped")
	}
}

// crypt seals or opens in into out, of the same length, and leaves the tag in s.
func (a *AEAD) crypt(open bool, s *state, out, nonce, in, additional []byte) {
	copy(s.counter[:], nonce)
	s.lengths = [2]uint64{uint64(len(in)) * 8, uint64(len(additional)) * 8}
	s.first = 1
	if len(additional) > shortAAD || a.kernel == VAES256 {
		for p := additional; len(p) > 0; {
			n := min(len(p), chunk)
			a.hash(s, p[:n])
			p = p[n:]
		}
	} else {
		s.aad, s.aadLen = unsafe.SliceData(additional), len(additional)
	}
	for len(in) > chunk {
		a.run(open, s, out[:chunk], in[:chunk])
		out, in = out[chunk:], in[chunk:]
		s.first = 0
		done := binary.BigEndian.Uint32(s.counter[NonceSize:])
		binary.BigEndian.PutUint32(s.counter[NonceSize:], done+chunk/blockSize)
	}
	s.last = 1
	a.run(open, s, out, in)
}
