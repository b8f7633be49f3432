package hw

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"hash"
	"slices"
	"sync"
	"unsafe"
)

// Sizes of AEAD_AES_256_CBC_HMAC_SHA_512 in bytes, draft-mcgrew-aead-aes-cbc-hmac-sha2-05 section 2.7.
const (
	cbcHMACKeySize = 64 // MAC_KEY followed by ENC_KEY
	cbcMACKeySize  = 32
	cbcHMACTagSize = 32 // HMAC-SHA-512 cut in half
)

// errOpen is the one answer to whatever is wrong with a ciphertext.
var errOpen = errors.New("hw: message authentication failed")

// cbcHMAC is AEAD_AES_256_CBC_HMAC_SHA_512 on the standard library. Other than in the draft the IV comes from the caller as
// the nonce and does not stand in front of the ciphertext; the tag covers it all the same, at its place in the draft.
type cbcHMAC struct {
	block cipher.Block
	macs  sync.Pool // of *macState keyed alike: keying costs two SHA-512 blocks, making one five allocations
}

type macState struct {
	mac    hash.Hash
	sum    [sha512.Size]byte
	length [8]byte
}

func newCBCHMAC(key []byte) (cipher.AEAD, error) {
	if len(key) != cbcHMACKeySize {
		return nil, aes.KeySizeError(len(key))
	}
	block, err := aes.NewCipher(key[cbcMACKeySize:])
	if err != nil {
		return nil, err
	}
	macKey := slices.Clone(key[:cbcMACKeySize])
	a := &cbcHMAC{block: block}
	a.macs.New = func() any { return &macState{mac: hmac.New(sha512.New, macKey)} }
	return a, nil
}

func (a *cbcHMAC) NonceSize() int { return aes.BlockSize }

// Overhead is the most that Seal adds: a whole block of padding, and the tag.
func (a *cbcHMAC) Overhead() int { return aes.BlockSize + cbcHMACTagSize }

// tag writes HMAC(A || IV || E || AL) into out, where AL is the length of A in bits (draft section 2.1).
func (a *cbcHMAC) tag(out *[cbcHMACTagSize]byte, nonce, body, additional []byte) {
	m := a.macs.Get().(*macState)
	m.mac.Reset()
	m.mac.Write(additional)
	m.mac.Write(nonce)
	m.mac.Write(body)
	binary.BigEndian.PutUint64(m.length[:], uint64(len(additional))*8)
	m.mac.Write(m.length[:])
	copy(out[:], m.mac.Sum(m.sum[:0]))
	a.macs.Put(m)
}

// Seal implements cipher.AEAD. The padding is that of PKCS #7: n bytes of value n, 1 to 16 of them.
func (a *cbcHMAC) Seal(dst, nonce, plaintext, additional []byte) []byte {
	if len(nonce) != aes.BlockSize {
		panic("hw: incorrect nonce length given to AES-CBC-HMAC")
	}
	full := len(plaintext) &^ (aes.BlockSize - 1)
	body := full + aes.BlockSize
	ret, out := extend(dst, body+cbcHMACTagSize)
	checkOverlap(out, plaintext, additional)

	// The last block is read before its place is written: in place, the two are the same bytes.
	var last [aes.BlockSize]byte
	n := copy(last[:], plaintext[full:])
	for i := n; i < len(last); i++ {
		last[i] = byte(aes.BlockSize - n)
	}
	cbc := cipher.NewCBCEncrypter(a.block, nonce)
	cbc.CryptBlocks(out[:full], plaintext[:full])
	cbc.CryptBlocks(out[full:body], last[:])
	clear(last[:])

	var tag [cbcHMACTagSize]byte
	a.tag(&tag, nonce, out[:body], additional)
	copy(out[body:], tag[:])
	return ret
}

// Open implements cipher.AEAD. Nothing is deciphered before the tag has proved the whole message, so that the padding, which
// is looked at next, is the sealer's own.
func (a *cbcHMAC) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	if len(nonce) != aes.BlockSize {
		panic("hw: incorrect nonce length given to AES-CBC-HMAC")
	}
	size := len(ciphertext) - cbcHMACTagSize
	if size < aes.BlockSize || size%aes.BlockSize != 0 {
		return nil, errOpen
	}
	body := ciphertext[:size]
	var tag [cbcHMACTagSize]byte
	a.tag(&tag, nonce, body, additional)
	if subtle.ConstantTimeCompare(tag[:], ciphertext[size:]) != 1 {
		return nil, errOpen
	}

	// The last block goes first: it says how long the plaintext is, and dst need not have room for the padding.
	full := size - aes.BlockSize
	before := nonce
	if full > 0 {
		before = body[full-aes.BlockSize : full]
	}
	var last [aes.BlockSize]byte
	cipher.NewCBCDecrypter(a.block, before).CryptBlocks(last[:], body[full:])
	defer clear(last[:])
	n := aes.BlockSize - int(last[aes.BlockSize-1])
	if n < 0 || n >= aes.BlockSize {
		return nil, errOpen
	}
	for _, b := range last[n:] {
		if int(b) != aes.BlockSize-n {
			return nil, errOpen
		}
	}
	ret, out := extend(dst, full+n)
	checkOverlap(out, body, additional)
	cipher.NewCBCDecrypter(a.block, nonce).CryptBlocks(out[:full], body[:full])
	copy(out[full:], last[:n])
	return ret, nil
}

// extend returns dst with n more bytes, in its own memory if that has room, and those bytes alone.
func extend(dst []byte, n int) (whole, tail []byte) {
	whole = slices.Grow(dst, n)[:len(dst)+n]
	return whole, whole[len(dst):]
}

// checkOverlap panics as crypto/cipher does: output may be the input exactly or share nothing with it, and may share nothing
// with the additional data.
func checkOverlap(out, in, additional []byte) {
	if overlap(out, in) && &out[0] != &in[0] {
		panic("hw: invalid buffer overlap of output and input")
	}
	if overlap(out, additional) {
		panic("hw: invalid buffer overlap of output and additional data")
	}
}

// overlap reports whether a and b share memory.
func overlap(a, b []byte) bool {
	return len(a) > 0 && len(b) > 0 &&
		uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1]))
}
