package sealfs

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// The header of a sealed file (docs/index-format.md, "File header").
const (
	headerSize  = 96
	clearSize   = 48 // the part of the header in clear, which every seal of the file authenticates
	fileIDSize  = 32
	fileKeySize = 32
	tagSize     = 16
	nonceSize   = 12

	version  = 1
	magic    = "cofferix"
	wrapInfo = "coffer index file key v1"
)

// kind is the layout of a file's body.
type kind uint8

const (
	kindBlocks kind = 1 // fixed blocks, read at random: sstables
	kindFrames kind = 2 // appended frames, read as a whole: everything else
)

// Keys gives the keys that wrap file keys. IndexKey returns 32 bytes, or an error when the epoch is unknown or destroyed; both
// methods must be safe for concurrent use. The file system does not keep or change the returned slice.
type Keys interface {
	IndexKey(epoch uint32) ([]byte, error)
	CurrentEpoch() uint32
}

// header is the parsed, not yet authenticated, header of a file.
type header struct {
	kind    kind
	epoch   uint32
	clear   [clearSize]byte
	wrapped [fileKeySize + tagSize]byte
}

// fileKey seals and opens the body of one file.
type fileKey struct {
	kind  kind
	epoch uint32
	aead  cipher.AEAD
	clear [clearSize]byte // additional data of every seal: binds magic, version, kind, epoch and file id
}

// parseHeader decodes the first headerSize bytes of a file.
func parseHeader(b []byte) (header, error) {
	var h header
	switch {
	case len(b) < headerSize:
		return h, fmt.Errorf("parse header: %d bytes: %w", len(b), errCorrupt)
	case string(b[:8]) != magic:
		return h, fmt.Errorf("parse header: not a sealed file: %w", errCorrupt)
	case b[8] != version:
		return h, fmt.Errorf("parse header: version %d: %w", b[8], errCorrupt)
	case kind(b[9]) != kindBlocks && kind(b[9]) != kindFrames:
		return h, fmt.Errorf("parse header: kind %d: %w", b[9], errCorrupt)
	case b[10] != 0 || b[11] != 0:
		return h, fmt.Errorf("parse header: reserved bytes set: %w", errCorrupt)
	}
	h.kind = kind(b[9])
	h.epoch = binary.BigEndian.Uint32(b[12:])
	copy(h.clear[:], b)
	copy(h.wrapped[:], b[clearSize:headerSize])
	return h, nil
}

// newHeader draws a file key and returns it with the header that holds it wrapped by the current epoch.
func newHeader(keys Keys, k kind) (*fileKey, []byte, error) {
	epoch := keys.CurrentEpoch()
	b := make([]byte, clearSize, headerSize)
	copy(b, magic)
	b[8], b[9] = version, byte(k)
	binary.BigEndian.PutUint32(b[12:], epoch)
	rand.Read(b[16 : 16+fileIDSize]) // never fails (Go 1.24)
	wrap, err := wrapAEAD(keys, epoch, b)
	if err != nil {
		return nil, nil, err
	}
	var raw [fileKeySize]byte
	defer clear(raw[:])
	rand.Read(raw[:])
	fk, err := newFileKey(raw[:], b, k, epoch)
	if err != nil {
		return nil, nil, err
	}
	// The wrapping key is derived from this file's random id and seals this once, so a constant nonce is unique.
	return fk, wrap.Seal(b, make([]byte, nonceSize), raw[:], b), nil
}

// openHeader authenticates a header and unwraps its file key.
func openHeader(keys Keys, h header) (*fileKey, error) {
	wrap, err := wrapAEAD(keys, h.epoch, h.clear[:])
	if err != nil {
		return nil, fmt.Errorf("open header: %w: %w", err, errCorrupt)
	}
	raw, err := wrap.Open(nil, make([]byte, nonceSize), h.wrapped[:], h.clear[:])
	if err != nil {
		return nil, fmt.Errorf("open header of epoch %d: wrong key or altered: %w", h.epoch, errCorrupt)
	}
	defer clear(raw)
	return newFileKey(raw, h.clear[:], h.kind, h.epoch)
}

// wrapAEAD derives the key that wraps one file's key: HKDF-SHA-256 (RFC 5869) of the epoch's index key, salted by the file id.
func wrapAEAD(keys Keys, epoch uint32, clearPart []byte) (cipher.AEAD, error) {
	root, err := keys.IndexKey(epoch)
	if err != nil {
		return nil, fmt.Errorf("get index key of epoch %d: %w", epoch, err)
	}
	k, err := hkdf.Key(sha256.New, root, clearPart[16:16+fileIDSize], wrapInfo, 32)
	if err != nil {
		return nil, fmt.Errorf("derive wrapping key: %w", err)
	}
	defer clear(k)
	return newGCM(k)
}

func newFileKey(raw, clearPart []byte, k kind, epoch uint32) (*fileKey, error) {
	aead, err := newGCM(raw)
	if err != nil {
		return nil, err
	}
	fk := &fileKey{kind: k, epoch: epoch, aead: aead}
	copy(fk.clear[:], clearPart)
	return fk, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return cipher.NewGCM(b)
}

// unwritten reports whether the header never reached the disk: a power cut leaves a file created shortly before it empty, or with
// zeros where blocks were not written back.
func unwritten(b []byte) bool {
	return len(b) < headerSize || bytes.Count(b[:headerSize], []byte{0}) == headerSize
}
