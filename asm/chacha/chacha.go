// Package chacha is ChaCha20-Poly1305 (RFC 8439) by an assembly kernel for processors with 64-byte vectors and 52-bit multiplication.
//
// It promises the answers, panics and buffer rules of crypto/cipher's AEADs for every kernel that the processor supports. The time that
// a kernel takes depends on nothing but lengths. Portable is the twin in Go that the assembly is tested against; it is slow. The
// package does not choose: New takes the kernel, and coffer/hw tests and measures them on the machine at hand.
// docs/crypto-kernels.md explains the kernels.
package chacha

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/cpuid/v2"

	"coffer/asm/internal/buffer"
)

//go:generate go -C _asm run . -out ../chacha_amd64.s

// Sizes in bytes.
const (
	KeySize   = 32
	NonceSize = 12
	Overhead  = 16 // the tag

	blockSize = 64
	group     = 16 * blockSize          // what the kernels encrypt at a time
	step      = 256                     // what they hash at a time
	chunk     = 128 << 10               // the most that one call of a kernel works on: the scheduler cannot interrupt it
	maxPlain  = (1<<32 - 1) * blockSize // RFC 8439 section 2.8: the counter starts at 1
)

// ErrOpen: the message is not what was sealed.
var ErrOpen = errors.New("chacha: message authentication failed")

// ErrUnsupported: the processor lacks an instruction that the kernel needs.
var ErrUnsupported = errors.New("chacha: kernel not supported by this processor")

// Kernel is one implementation.
type Kernel uint8

// The kernels. Kernels says which are part of this build.
const (
	Portable Kernel = iota
	IFMA512         // amd64, 64-byte vectors
	kernelCount
)

// String is the kernel's name.
func (k Kernel) String() string {
	return [...]string{"portable", "avx512-ifma"}[k]
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

// AEAD is ChaCha20-Poly1305 under one key. It is safe for concurrent use, but for Wipe. Seal and Open allocate only what dst has no
// room for.
type AEAD struct {
	key    [KeySize / 4]uint32
	kernel Kernel
	ready  bool // false after Wipe
}

var _ cipher.AEAD = (*AEAD)(nil)

// New returns ChaCha20-Poly1305 by the kernel under a key of 32 bytes, which is copied.
func New(k Kernel, key []byte) (*AEAD, error) {
	if !k.Supported() {
		return nil, ErrUnsupported
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("chacha: key of %d bytes, want %d", len(key), KeySize)
	}
	a := &AEAD{kernel: k, ready: true}
	for i := range a.key {
		a.key[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	return a, nil
}

// Wipe clears the key. The AEAD must not be in use, and panics if it is used again.
func (a *AEAD) Wipe() { *a = AEAD{} }

// NonceSize implements cipher.AEAD.
func (a *AEAD) NonceSize() int { return NonceSize }

// Overhead implements cipher.AEAD.
func (a *AEAD) Overhead() int { return Overhead }

// Seal implements cipher.AEAD.
func (a *AEAD) Seal(dst, nonce, plaintext, additional []byte) []byte {
	a.check(nonce)
	if uint64(len(plaintext)) > maxPlain {
		panic("chacha: message too large")
	}
	whole, out := buffer.Extend(dst, len(plaintext)+Overhead)
	buffer.CheckOverlap("chacha", out, plaintext, additional)
	m := message{kernel: a.kernel}
	m.setup(a, nonce)
	m.seal(out[:len(plaintext)], plaintext, additional)
	m.tag(out[len(plaintext):], len(additional), len(plaintext))
	m.wipe()
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
	buffer.CheckOverlap("chacha", out, ciphertext, additional)
	m := message{kernel: a.kernel}
	m.setup(a, nonce)
	m.open(out, ciphertext[:n], additional)
	var tag [Overhead]byte
	m.tag(tag[:], len(additional), n)
	m.wipe()
	if subtle.ConstantTimeCompare(tag[:], ciphertext[n:]) != 1 {
		clear(out)
		return nil, ErrOpen
	}
	return whole, nil
}

func (a *AEAD) check(nonce []byte) {
	if len(nonce) != NonceSize {
		panic("chacha: incorrect nonce length")
	}
	if !a.ready {
		panic("chacha: key was wiped")
	}
}

// state is a message in the making. Its layout is known to the assembly.
type state struct {
	key     [KeySize / 4]uint32
	counter uint32 // of the next block
	nonce   [NonceSize / 4]uint32
	hash    element // so far; its limbs may have a few bits more than when reduced
}

// message is a state, and what its kernel needs beside it.
type message struct {
	state
	kernel Kernel
	r      element         // what the hash is multiplied by
	pad    [2]uint64       // what is added to it at last
	powers powers          // of r, once they are needed
	head   [blockSize]byte // block 0
}

func (m *message) setup(a *AEAD, nonce []byte) {
	m.key = a.key
	for i := range m.nonce {
		m.nonce[i] = binary.LittleEndian.Uint32(nonce[4*i:])
	}
}

// begin encrypts the start of a message, up to 960 bytes: the first sixteen blocks are made at once, and block 0 is the key of the hash
// (RFC 8439 section 2.6).
func (m *message) begin(out, in []byte) (n int) {
	n = min(len(in), group-blockSize)
	m.cryptFirst(out[:n], in[:n])
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(m.head[8*i:]) }
	const clamp = 0x0ffffffc0ffffffc // RFC 8439 section 2.5
	m.r = limbs(word(0)&(clamp|3), word(1)&clamp, 0)
	m.pad = [2]uint64{word(2), word(3)}
	return n
}

// seal encrypts and hashes; beyond two groups each is encrypted while one before is hashed.
func (m *message) seal(out, in, additional []byte) {
	n, hashed := m.begin(out, in), 0
	m.update(additional)
	if m.kernel != Portable && len(in)-n >= 2*group {
		m.makePowers()
		m.cryptRest(out[n:n+group], in[n:n+group])
		n += group
		for left := (len(in) - n) / group; left > 0; {
			k := min(left, chunk/group)
			m.cryptGroups(out[n:], in[n:], k, out[hashed:])
			n, hashed, left = n+k*group, hashed+k*group, left-k
		}
	}
	m.rest(out[n:], in[n:])
	m.update(out[hashed:])
}

// open hashes and decrypts, groups at the same time.
func (m *message) open(out, in, additional []byte) {
	first := in[:min(len(in), group-blockSize)]
	if len(in) > 0 && &out[0] == &in[0] { // what is hashed is overwritten by then
		var saved [group - blockSize]byte
		first = saved[:copy(saved[:], first)]
	}
	n := m.begin(out, in)
	m.update(additional)
	m.update(first)
	if left := (len(in) - n) / group; m.kernel != Portable && left > 0 {
		m.makePowers()
		for left > 0 {
			k := min(left, chunk/group)
			m.cryptGroups(out[n:], in[n:], k, in[n:])
			n, left = n+k*group, left-k
		}
	}
	m.update(in[n:])
	m.rest(out[n:], in[n:])
}

// rest encrypts what is not worth a call of its own.
func (m *message) rest(out, in []byte) {
	for len(in) > 0 {
		n := min(len(in), group)
		m.cryptRest(out[:n], in[:n])
		out, in = out[n:], in[n:]
	}
}

// wipe is for what a message leaves on the stack.
//
//go:noinline
func (m *message) wipe() { *m = message{} }
