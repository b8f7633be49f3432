// Package cbc is AEAD_AES_256_CBC_HMAC_SHA_512 (draft-mcgrew-aead-aes-cbc-hmac-sha2-05), encrypt-then-MAC with 64-byte keys, 16-byte
// IVs and 32-byte tags. Other than in the draft the IV comes from the caller as the nonce and does not stand in front of the ciphertext;
// the tag covers it all the same, at its place in the draft.
//
// Blocks of a CBC chain, and of a SHA-512 hash, wait for each other: one message leaves most of the processor idle. SealAll and
// OpenAll work on many at once. Seal and Open have the panics and buffer rules of crypto/cipher's AEADs, but that Open does not touch
// its output before the message is proved. The time that kernels take depends on nothing but lengths. The package does not choose
// a kernel: coffer/hw tests and measures them on the machine at hand. docs/crypto-kernels.md explains them.
package cbc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"errors"
	"slices"

	"github.com/klauspost/cpuid/v2"

	"coffer/asm/internal/buffer"
)

//go:generate go -C _asm run . -out ../cbc_amd64.s

// Sizes in bytes.
const (
	KeySize   = 64 // of the MAC, then of the cipher
	NonceSize = 16 // the IV
	Overhead  = blockSize + TagSize
	TagSize   = 32 // HMAC-SHA-512 cut in half

	blockSize  = 16
	macKeySize = 32
)

// ErrOpen: the message is not what was sealed.
var ErrOpen = errors.New("cbc: message authentication failed")

// ErrUnsupported: the processor lacks an instruction that the kernel needs.
var ErrUnsupported = errors.New("cbc: kernel not supported by this processor")

// Kernel is one implementation.
type Kernel uint8

// The kernels. Kernels says which are part of this build.
const (
	Portable Kernel = iota // the standard library's ciphers
	VAES512                // amd64, 64-byte vectors
	kernelCount
)

// String is the kernel's name.
func (k Kernel) String() string {
	return [...]string{"portable", "vaes-avx512"}[k]
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

// schedule is the round keys of AES-256 and of its equivalent inverse cipher. Its layout is known to the assembly.
type schedule struct {
	encrypt, decrypt [15][blockSize]byte
}

// AEAD is the cipher under one key. It is safe for concurrent use, but for Wipe.
type AEAD struct {
	keys         schedule
	inner, outer [8]uint64 // hashes of the MAC key's two blocks
	kernel       Kernel
	keyed        bool
	std          standard // of Portable; the MAC of others as well, where few messages are at hand
}

var _ cipher.AEAD = (*AEAD)(nil)

// New returns the cipher by the kernel under a key of 64 bytes, which is copied.
func New(k Kernel, key []byte) (*AEAD, error) {
	if !k.Supported() {
		return nil, ErrUnsupported
	}
	if len(key) != KeySize {
		return nil, aes.KeySizeError(len(key))
	}
	a := &AEAD{kernel: k, keyed: true}
	a.std.setMAC(key)
	if k == Portable {
		return a, a.std.setCipher(key)
	}
	a.setup(key)
	return a, nil
}

// Wipe clears everything derived from the key, but not what the standard library made of it. The AEAD must not be in use, and panics if
// it is used again.
func (a *AEAD) Wipe() { *a = AEAD{} }

// NonceSize implements cipher.AEAD.
func (a *AEAD) NonceSize() int { return NonceSize }

// Overhead is the most that Seal adds: a whole block of padding, and the tag.
func (a *AEAD) Overhead() int { return Overhead }

// Segment is one message of many.
type Segment struct {
	Dst        []byte // what the message is appended to, and then the whole, nil on error
	Nonce      []byte
	Text       []byte // plaintext or ciphertext
	Additional []byte
	Err        error // of OpenAll

	out []byte // what is appended
}

// Seal implements cipher.AEAD. The padding is that of PKCS #7: n bytes of value n, 1 to 16 of them.
func (a *AEAD) Seal(dst, nonce, plaintext, additional []byte) []byte {
	s := [1]Segment{{Dst: dst, Nonce: nonce, Text: plaintext, Additional: additional}}
	a.SealAll(s[:])
	return s[0].Dst
}

// Open implements cipher.AEAD. Nothing is deciphered before the tag has proved the whole message, so that the padding, which
// is looked at next, is the sealer's own.
func (a *AEAD) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	s := [1]Segment{{Dst: dst, Nonce: nonce, Text: ciphertext, Additional: additional}}
	a.OpenAll(s[:])
	return s[0].Dst, s[0].Err
}

// SealAll seals messages as Seal does. No two may share memory but for nonces and additional data.
func (a *AEAD) SealAll(segments []Segment) {
	for i := range segments {
		s := &segments[i]
		a.check(s.Nonce)
		full := len(s.Text) &^ (blockSize - 1)
		s.Dst, s.out = buffer.Extend(s.Dst, full+blockSize+TagSize)
		buffer.CheckOverlap("cbc", s.out, s.Text, s.Additional)
	}
	for c := range slices.Chunk(segments, chains) {
		if a.kernel == Portable {
			for i := range c {
				a.std.seal(c[i].out, c[i].Nonce, c[i].Text, c[i].Additional)
			}
		} else {
			a.seal(c)
		}
	}
}

// OpenAll opens messages as Open does. No two may share memory but for nonces and additional data.
func (a *AEAD) OpenAll(segments []Segment) {
	for i := range segments {
		s := &segments[i]
		a.check(s.Nonce)
		s.Err = nil
	}
	for c := range slices.Chunk(segments, hashes) {
		a.open(c)
	}
}

// open opens up to as many as are hashed at once.
func (a *AEAD) open(segments []Segment) {
	var tags [hashes][TagSize]byte
	var bodies [hashes][]byte
	for i := range segments {
		s := &segments[i]
		n := len(s.Text) - TagSize
		if n < blockSize || n%blockSize != 0 {
			s.Err = ErrOpen
			n = 0 // hashed in vain
		}
		bodies[i] = s.Text[:n]
	}
	a.tags(tags[:len(segments)], segments, bodies[:len(segments)])
	for i := range segments {
		s := &segments[i]
		if s.Err == nil && subtle.ConstantTimeCompare(tags[i][:], s.Text[len(bodies[i]):]) != 1 {
			s.Err = ErrOpen
		}
		if s.Err == nil {
			s.Err = a.decipher(s, bodies[i])
		}
		if s.Err != nil {
			s.Dst = nil
		}
	}
}

// decipher decrypts what was proved. The last block goes first: it says how long the plaintext is, and Dst need not have room for the
// padding.
func (a *AEAD) decipher(s *Segment, body []byte) error {
	full := len(body) - blockSize
	before := s.Nonce
	if full > 0 {
		before = body[full-blockSize : full]
	}
	last := a.decryptBlock(body[full:], before)
	defer clear(last[:])
	n := blockSize - int(last[blockSize-1])
	if n < 0 || n >= blockSize {
		return ErrOpen
	}
	for _, b := range last[n:] {
		if int(b) != blockSize-n {
			return ErrOpen
		}
	}
	s.Dst, s.out = buffer.Extend(s.Dst, full+n)
	buffer.CheckOverlap("cbc", s.out, body, s.Additional)
	a.decrypt(s.out[:full], body[:full], s.Nonce)
	copy(s.out[full:], last[:n])
	return nil
}

func (a *AEAD) check(nonce []byte) {
	if len(nonce) != NonceSize {
		panic("cbc: incorrect nonce length")
	}
	if !a.keyed {
		panic("cbc: key was wiped")
	}
}

// pad returns the last block of a text.
func pad(text []byte) (last [blockSize]byte) {
	n := copy(last[:], text[len(text)&^(blockSize-1):])
	for i := n; i < blockSize; i++ {
		last[i] = byte(blockSize - n)
	}
	return last
}
