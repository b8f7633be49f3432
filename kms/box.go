package kms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
)

// A box is the one form in which a key seals bytes here: salt | ciphertext | tag | commitment. A fresh salt gives each box its
// own key, so the nonce of AES-256-GCM is zero and nothing limits how many boxes one key seals.
const (
	saltSize    = 32
	tagSize     = 16
	commitSize  = 32
	boxOverhead = saltSize + tagSize + commitSize
)

// WrappedSize is the size in bytes of a wrapped 32-byte key.
const WrappedSize = KeySize + boxOverhead

// boxLabels are the HKDF labels of a box: of the key that seals it, and of the commitment, which is thereby independent of
// that key's bits. GCM alone does not commit to its key: one ciphertext can open under two keys.
type boxLabels struct{ key, commit string }

var (
	wrapLabels     = boxLabels{"coffer wrap key v1", "coffer wrap commitment v1"}
	customerLabels = boxLabels{"coffer sse-c wrap key v1", "coffer sse-c verifier v1"}
)

// boxCipher derives from kek and salt the cipher and the commitment of a box.
func boxCipher(l *boxLabels, kek, salt []byte, commit *[commitSize]byte) cipher.AEAD {
	var prk, key [KeySize]byte
	extract(&prk, salt, kek)
	expand(&key, &prk, l.key)
	expand(commit, &prk, l.commit)
	block, err := aes.NewCipher(key[:])
	wipe(prk[:])
	wipe(key[:])
	burnStack()
	if err != nil {
		panic("kms: " + err.Error()) // the key size is right
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("kms: " + err.Error()) // the block size is right
	}
	return aead
}

// zeroNonce is the nonce of every box.
var zeroNonce [12]byte

// appendBox appends to dst a box of p under kek that opens only with the same aad.
func appendBox(dst []byte, l *boxLabels, kek, p, aad []byte) []byte {
	head := len(dst)
	dst = append(dst, make([]byte, saltSize)...)
	salt := dst[head:]
	rand.Read(salt) // never fails (crypto/rand)
	var commit [commitSize]byte
	aead := boxCipher(l, kek, salt, &commit)
	dst = aead.Seal(dst, zeroNonce[:], p, aad)
	return append(dst, commit[:]...)
}

// openBox appends to dst what box holds. The commitment is compared before anything is decrypted: ErrWrongKey says that it
// differs, ErrCorrupt that box is too short, or altered, or sealed with another aad.
func openBox(dst []byte, l *boxLabels, kek, box, aad []byte) ([]byte, error) {
	if len(box) < boxOverhead {
		return nil, fmt.Errorf("open box: %d bytes: %w", len(box), ErrCorrupt)
	}
	sealed, stored := box[saltSize:len(box)-commitSize], box[len(box)-commitSize:]
	var commit [commitSize]byte
	aead := boxCipher(l, kek, box[:saltSize], &commit)
	if subtle.ConstantTimeCompare(commit[:], stored) != 1 {
		return nil, fmt.Errorf("open box: %w", ErrWrongKey)
	}
	p, err := aead.Open(dst, zeroNonce[:], sealed, aad)
	if err != nil {
		return nil, fmt.Errorf("open box: tag differs: %w", ErrCorrupt)
	}
	return p, nil
}
