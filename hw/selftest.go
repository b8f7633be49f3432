package hw

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// errForged: a path opened what nobody sealed.
var errForged = errors.New("forgery accepted")

// pattern returns n bytes that differ by place, beyond 256 bytes too, and by seed.
func pattern(n int, seed int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + (i>>8)*13 + seed)
	}
	return p
}

// sweepLengths are message lengths on both sides of every power of two from 16 bytes to 64 KiB. The vectors of the standards
// are short; wide kernels have loops, tails and counter carries that only longer messages reach.
func sweepLengths() []int {
	l := []int{0, 1}
	for p := 4; p <= 16; p++ {
		l = append(l, 1<<p-1, 1<<p, 1<<p+1)
	}
	return l
}

// testAEAD tests a path with the vectors, and with a sweep whose ciphertexts have the given SHA-256.
func testAEAD(vectors []aeadVector, keySize int, sweep string) func(*path) error {
	return func(p *path) error {
		for i, v := range vectors {
			key, nonce, sealed := unhex(v.key), unhex(v.nonce), unhex(v.sealed)
			got, err := roundTrip(p, key, nonce, []byte(v.plain), []byte(v.additional))
			if err == nil && !bytes.Equal(got, sealed) {
				err = errMismatch
			}
			if err != nil {
				return fmt.Errorf("vector %d: %w", i, err)
			}
		}
		a, err := p.newAEAD(pattern(keySize, 0))
		if err != nil {
			return err
		}
		digest := sha256.New()
		for i, n := range sweepLengths() {
			sealed, err := roundTrip(p, pattern(keySize, i), pattern(a.NonceSize(), i+1), pattern(n, i+2), pattern(i, i+3))
			if err != nil {
				return fmt.Errorf("message of %d bytes: %w", n, err)
			}
			digest.Write(sealed)
		}
		if hex.EncodeToString(digest.Sum(nil)) != sweep {
			return fmt.Errorf("sweep: %w", errMismatch)
		}
		return nil
	}
}

// roundTrip seals and opens plain, apart and in place, and expects altered messages to be refused. It returns the sealed form.
func roundTrip(p *path, key, nonce, plain, additional []byte) ([]byte, error) {
	a, err := p.newAEAD(key)
	if err != nil {
		return nil, err
	}
	sealed := a.Seal(nil, nonce, plain, additional)
	work := append(make([]byte, 0, len(plain)+a.Overhead()), plain...)
	if !bytes.Equal(a.Seal(work[:0], nonce, work, additional), sealed) {
		return nil, fmt.Errorf("seal in place: %w", errMismatch)
	}
	if got, err := a.Open(nil, nonce, sealed, additional); err != nil || !bytes.Equal(got, plain) {
		return nil, fmt.Errorf("open: %w", errMismatch)
	}
	work = bytes.Clone(sealed)
	if got, err := a.Open(work[:0], nonce, work, additional); err != nil || !bytes.Equal(got, plain) {
		return nil, fmt.Errorf("open in place: %w", errMismatch)
	}
	for _, at := range []int{0, len(sealed) / 2, len(sealed) - 1} {
		sealed[at] ^= 0x80
		_, err := a.Open(nil, nonce, sealed, additional)
		sealed[at] ^= 0x80
		if err == nil {
			return nil, fmt.Errorf("byte %d altered: %w", at, errForged)
		}
	}
	if _, err := a.Open(nil, nonce, sealed, append(additional, 0)); err == nil {
		return nil, fmt.Errorf("additional data altered: %w", errForged)
	}
	return sealed, nil
}

// rsSweepShapes and rsSweepSizes are what the Reed-Solomon sweep covers.
var (
	rsSweepShapes = [...][2]int{{1, 1}, {1, 3}, {2, 1}, {4, 2}, {8, 4}, {12, 4}, {16, 16}, {28, 4}, {31, 1}}
	rsSweepSizes  = [...]int{1, 63, 64, 65, 200, 4097}
)

// testReedSolomon checks the parity of the sweep, and that as many shards as there is parity, first or last, come back.
func testReedSolomon(p *path) error {
	if err := testBackblaze(p); err != nil {
		return fmt.Errorf("vector: %w", err)
	}
	digest := sha256.New()
	for _, shape := range rsSweepShapes {
		data, parity := shape[0], shape[1]
		c, err := newCoder(data, parity, p.newMatrix)
		if err != nil {
			return err
		}
		for _, n := range rsSweepSizes {
			shards := newRows(data+parity, n)
			for i := range data {
				shards[i] = pattern(n, data+31*i)
			}
			if err := c.Encode(shards[:data], shards[data:]); err != nil {
				return err
			}
			for _, s := range shards[data:] {
				digest.Write(s)
			}
			for _, first := range []int{0, max(0, data-parity/2), data} {
				if err := testLoss(c, shards, first, min(first+parity, len(shards))); err != nil {
					return fmt.Errorf("reconstruct %d+%d, %d bytes, from shard %d: %w", data, parity, n, first, err)
				}
			}
		}
	}
	if hex.EncodeToString(digest.Sum(nil)) != reedSolomonSweep {
		return fmt.Errorf("sweep: %w", errMismatch)
	}
	return nil
}

// testBackblaze is testOneEncode of Backblaze's JavaReedSolomon.
func testBackblaze(p *path) error {
	c, err := newCoder(5, 5, p.newMatrix)
	if err != nil {
		return err
	}
	data := [][]byte{{0, 1}, {4, 5}, {2, 3}, {6, 7}, {8, 9}}
	want := [][]byte{{12, 13}, {10, 11}, {14, 15}, {90, 91}, {94, 95}}
	parity := newRows(5, 2)
	if err := c.Encode(data, parity); err != nil {
		return err
	}
	for i := range want {
		if !bytes.Equal(parity[i], want[i]) {
			return errMismatch
		}
	}
	return nil
}

// testLoss drops the shards first..last-1 and expects them back.
func testLoss(c *coder, shards [][]byte, first, last int) error {
	work := make([][]byte, len(shards))
	copy(work, shards)
	for i := first; i < last; i++ {
		work[i] = nil
	}
	if err := c.Reconstruct(work, nil); err != nil {
		return err
	}
	for i := range shards {
		if !bytes.Equal(work[i], shards[i]) {
			return errMismatch
		}
	}
	return nil
}

func testCRC64(p *path) error {
	if p.crc64(0, []byte("123456789")) != crc64Check {
		return fmt.Errorf("check value: %w", errMismatch)
	}
	for want, at := range crc64Vectors() {
		block := make([]byte, 4096)
		for i := range block {
			block[i] = at(i)
		}
		if p.crc64(0, block) != want {
			return fmt.Errorf("vector %#x: %w", want, errMismatch)
		}
	}
	var crc uint64
	for i, n := range sweepLengths() {
		crc = p.crc64(crc, sweepPiece(i, n))
	}
	if crc != crc64Sweep {
		return fmt.Errorf("sweep: %w", errMismatch)
	}
	return nil
}

func testCRC32(check, sweep uint32) func(*path) error {
	return func(p *path) error {
		if p.crc32(0, []byte("123456789")) != check {
			return fmt.Errorf("check value: %w", errMismatch)
		}
		var crc uint32
		for i, n := range sweepLengths() {
			crc = p.crc32(crc, sweepPiece(i, n))
		}
		if crc != sweep {
			return fmt.Errorf("sweep: %w", errMismatch)
		}
		return nil
	}
}

// sweepPiece is n bytes at an alignment of its own.
func sweepPiece(i, n int) []byte { return pattern(i%64+n, i)[i%64:] }

// testHash tests a path with messages by their digests, whole and in two unequal pieces.
func testHash(vectors map[string]string) func(*path) error {
	return func(p *path) error {
		for want, message := range vectors {
			h := p.newHash()
			h.Write([]byte(message))
			whole := hex.EncodeToString(h.Sum(nil))
			h.Reset()
			h.Write([]byte(message[:len(message)/3]))
			h.Write([]byte(message[len(message)/3:]))
			if whole != want || hex.EncodeToString(h.Sum(nil)) != want {
				return fmt.Errorf("vector %.8s: %w", want, errMismatch)
			}
		}
		return nil
	}
}

// unhex decodes a constant of this package.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic("hw: bad vector: " + err.Error())
	}
	return b
}
