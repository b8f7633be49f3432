package cbc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"hash"
	"slices"
	"sync"
)

// standard is the cipher on the standard library.
type standard struct {
	block cipher.Block
	macs  *sync.Pool // of *macState keyed alike: keying costs two SHA-512 blocks, making one five allocations
}

type macState struct {
	mac    hash.Hash
	sum    [sha512.Size]byte
	length [8]byte
}

func (s *standard) setMAC(key []byte) {
	macKey := slices.Clone(key[:macKeySize])
	s.macs = &sync.Pool{New: func() any { return &macState{mac: hmac.New(sha512.New, macKey)} }}
}

func (s *standard) setCipher(key []byte) (err error) {
	s.block, err = aes.NewCipher(key[macKeySize:])
	return err
}

// tag writes HMAC(A || IV || E || AL) into out, where AL is the length of A in bits (draft section 2.1).
func (s *standard) tag(out, nonce, body, additional []byte) {
	m := s.macs.Get().(*macState)
	m.mac.Reset()
	m.mac.Write(additional)
	m.mac.Write(nonce)
	m.mac.Write(body)
	binary.BigEndian.PutUint64(m.length[:], uint64(len(additional))*8)
	m.mac.Write(m.length[:])
	copy(out[:TagSize], m.mac.Sum(m.sum[:0]))
	s.macs.Put(m)
}

// seal fills out.
func (s *standard) seal(out, nonce, text, additional []byte) {
	// The last block is read before its place is written: in place, the two are the same bytes.
	last := pad(text)
	full := len(text) &^ (blockSize - 1)
	cbc := cipher.NewCBCEncrypter(s.block, nonce)
	cbc.CryptBlocks(out[:full], text[:full])
	cbc.CryptBlocks(out[full:full+blockSize], last[:])
	clear(last[:])
	s.tag(out[full+blockSize:], nonce, out[:full+blockSize], additional)
}

func (s *standard) decrypt(out, in, iv []byte) {
	cipher.NewCBCDecrypter(s.block, iv).CryptBlocks(out, in)
}

func (s *standard) decryptBlock(in, iv []byte) (out [blockSize]byte) {
	s.block.Decrypt(out[:], in)
	for i := range out {
		out[i] ^= iv[i]
	}
	return out
}
