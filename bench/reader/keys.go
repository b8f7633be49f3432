package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// This file is docs/keys-format.md.

var be = binary.BigEndian

// secrets open slots, by kind: the content of the key file, the passphrase, or the recovery key as 32 bytes.
type secrets map[string][]byte

// keyring is what an opened key area yields.
type keyring struct {
	array  [16]byte
	root   []byte
	cell   []byte
	epochs map[uint32][]byte
}

func derive(secret, salt []byte, info string) []byte {
	k, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err != nil {
		panic("reader: " + err.Error()) // 32 bytes are always to be had
	}
	return k
}

func gcm(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("reader: " + err.Error()) // keys have 32 bytes
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic("reader: " + err.Error())
	}
	return g
}

// Infos of the two uses of a box.
var (
	wrapInfo     = [2]string{"coffer wrap key v1", "coffer wrap commitment v1"}
	customerInfo = [2]string{"coffer sse-c wrap key v1", "coffer sse-c verifier v1"}
)

// openBox is section Box.
func openBox(info [2]string, key, box []byte, aad ...[]byte) ([]byte, error) {
	if len(box) < 80 {
		return nil, errors.New("box: too short")
	}
	salt, commitment := box[:32], box[len(box)-32:]
	if !hmac.Equal(derive(key, salt, info[1]), commitment) {
		return nil, errors.New("box: another key, or altered")
	}
	p, err := gcm(derive(key, salt, info[0])).Open(nil, make([]byte, 12), box[32:len(box)-32], bytes.Join(aad, nil))
	if err != nil {
		return nil, errors.New("box: altered, or of another use")
	}
	return p, nil
}

func text(s string) []byte    { return []byte(s) }
func num32(n uint32) []byte   { return be.AppendUint32(nil, n) }
func num64(n uint64) []byte   { return be.AppendUint64(nil, n) }
func le64(n uint64) []byte    { return binary.LittleEndian.AppendUint64(nil, n) }
func le32(n uint32) []byte    { return binary.LittleEndian.AppendUint32(nil, n) }
func join(p ...[]byte) []byte { return bytes.Join(p, nil) }

// openArea is section Key area: a slot yields the root key, and that proves the area.
func openArea(area []byte, array [16]byte, s secrets) (*keyring, error) {
	if len(area) < 148+32 || len(area) > 49152 || string(area[:6]) != "CFKEYS" {
		return nil, errors.New("key area: not one")
	}
	if v := be.Uint16(area[6:]); v != 1 {
		return nil, fmt.Errorf("key area: version %d", v)
	}
	epochs, slots := int(area[32]), int(area[33])
	if int(be.Uint32(area[8:])) != len(area) || [16]byte(area[16:32]) != array || epochs < 1 || epochs > 64 || slots < 1 || slots > 16 {
		return nil, errors.New("key area: corrupt")
	}
	rest := area[148+min(128*epochs, len(area)-148) : len(area)-min(32, len(area)-148-128*epochs)]
	k := &keyring{array: array, epochs: map[uint32][]byte{}}
	var last error = errors.New("no slot for the secrets given")
	for range slots {
		if len(rest) < 12 || len(rest) < 12+int(rest[1])+int(be.Uint16(rest[2:])) {
			return nil, errors.New("key area: slots end early")
		}
		kind, blob := string(rest[12:12+rest[1]]), rest[12+int(rest[1]):][:be.Uint16(rest[2:])]
		rest = rest[12+len(kind)+len(blob):]
		if secret, ok := s[kind]; ok && k.root == nil {
			k.root, last = openSlot(kind, blob, secret)
		}
	}
	if k.root == nil {
		return nil, fmt.Errorf("key area: %w", last)
	}
	h := hmac.New(sha256.New, derive(k.root, array[:], "coffer key area mac v1"))
	h.Write(area[:len(area)-32])
	if len(rest) != 0 || !hmac.Equal(h.Sum(nil), area[len(area)-32:]) {
		return nil, errors.New("key area: MAC differs")
	}
	wrap := derive(k.root, array[:], "coffer root wrap v1")
	var err error
	if k.cell, err = openBox(wrapInfo, wrap, area[36:148], text("coffer cell key v1"), array[:]); err != nil {
		return nil, err
	}
	for i := range epochs {
		e := area[148+128*i:][:128]
		n := be.Uint32(e)
		if k.epochs[n], err = openBox(wrapInfo, wrap, e[16:], text("coffer epoch key v1"), array[:], num32(n)); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// openSlot is section Slots.
func openSlot(kind string, blob, secret []byte) ([]byte, error) {
	if len(blob) < 1 || blob[0] != 1 {
		return nil, fmt.Errorf("%s slot: unknown version", kind)
	}
	switch {
	case kind == "file" && len(blob) == 113:
		return openBox(wrapInfo, secret, blob[1:], text("coffer file slot v1"))
	case kind == "recovery" && len(blob) == 113:
		return openBox(wrapInfo, secret, blob[1:], text("coffer recovery slot v1"))
	case kind == "passphrase" && len(blob) == 138:
		threads, passes, memory := blob[1], be.Uint32(blob[2:]), be.Uint32(blob[6:])
		if threads < 1 || threads > 16 || passes < 1 || passes > 16 || memory < 8*uint32(threads) || memory > 524288 || passes*memory > 4194304 {
			return nil, errors.New("passphrase slot: parameters out of bounds")
		}
		key := argon2.IDKey(secret, blob[10:26], passes, memory, threads, 32)
		return openBox(wrapInfo, key, blob[26:], text("coffer passphrase slot v1"), blob[:26])
	}
	return nil, fmt.Errorf("%s slot: wrong length", kind)
}

// ofRoot and ofEpoch are the table of derived keys.
func (k *keyring) ofRoot(info string) []byte { return derive(k.root, k.array[:], info) }

func (k *keyring) ofEpoch(epoch uint32, info string) ([]byte, error) {
	key, ok := k.epochs[epoch]
	if !ok {
		return nil, fmt.Errorf("key epoch %d: not there", epoch)
	}
	return derive(key, k.array[:], info+string(num32(epoch))), nil
}

// bucketKey opens a bucket's key of an epoch.
func (k *keyring) bucketKey(id uint64, epoch uint32, box []byte) ([]byte, error) {
	wrap, err := k.ofEpoch(epoch, "coffer bucket wrap v1")
	if err != nil {
		return nil, err
	}
	return openBox(wrapInfo, wrap, box, text("coffer bucket key v1"), k.array[:], num32(epoch), num64(id))
}

// parseRecovery is section Recovery key as text.
func parseRecovery(s string) ([]byte, error) {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	s = strings.NewReplacer("-", "", " ", "", "\n", "", "\r", "", "\t", "", "I", "1", "L", "1", "O", "0").Replace(strings.ToUpper(s))
	if len(s) != 64 {
		return nil, fmt.Errorf("recovery key: %d symbols, want 64", len(s))
	}
	var bits []byte // one each
	for g := range 8 {
		check := byte(g)
		for i := range 8 {
			d := strings.IndexByte(alphabet, s[8*g+i])
			if d < 0 {
				return nil, fmt.Errorf("recovery key: group %d has a character that is none", g+1)
			}
			if i == 7 {
				check ^= byte(d)
				break
			}
			p := byte(d)
			for range i + 1 { // times alpha
				p <<= 1
				if p&32 != 0 {
					p ^= 0b100101
				}
			}
			check ^= p
			for b := 4; b >= 0; b-- {
				bits = append(bits, byte(d)>>b&1)
			}
		}
		if check != 0 {
			return nil, fmt.Errorf("recovery key: group %d is mistyped", g+1)
		}
	}
	data := make([]byte, 35)
	for i, b := range bits {
		data[i/8] |= b << (7 - i%8)
	}
	sum := sha256.Sum256(join(text("coffer recovery key v1"), data[:32]))
	if !bytes.Equal(sum[:3], data[32:]) {
		return nil, errors.New("recovery key: mistyped")
	}
	return data[:32], nil
}
