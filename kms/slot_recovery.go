package kms

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
)

// A recovery key is printed as 8 groups of 8 characters, joined by dashes. A group is 7 characters of data, 35 bits, and one
// that checks it, so that a typo is named by its group. The data are 32 bytes of key and 3 of a checksum over all of it.
const (
	recoveryGroups     = 8
	recoveryGroupData  = 7
	recoveryGroupChars = recoveryGroupData + 1
	recoverySum        = 3
	maxRecoveryText    = 256 // bytes, separators included
)

// recoveryAlphabet is Crockford's base32: no I, L, O, U. (crockford.com/base32.html)
const recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var recoverySlotAAD = []byte("coffer recovery slot v1")

// RecoverySlot seals the root key under a random key that an operator keeps on paper.
type RecoverySlot struct {
	arena Arena
	key   *Secret
}

// NewRecoverySlot makes a recovery key. Show text once and forget it: it is what ParseRecoveryKey wants.
func NewRecoverySlot() (s *RecoverySlot, text string, err error) {
	s = &RecoverySlot{}
	if s.key, err = s.arena.Random(KeySize); err != nil {
		return nil, "", fmt.Errorf("make recovery key: %w", err)
	}
	return s, formatRecovery((*[KeySize]byte)(s.key.view())), nil
}

// ParseRecoveryKey returns the slot of a printed recovery key. Case, spaces and dashes do not matter, and the letters I, L and O
// are read as 1, 1 and 0. The error wraps ErrRecoveryKey and names the group that is mistyped.
func ParseRecoveryKey(text string) (*RecoverySlot, error) {
	key, err := parseRecovery(text)
	if err != nil {
		return nil, fmt.Errorf("parse recovery key: %w: %w", err, ErrRecoveryKey)
	}
	s := &RecoverySlot{}
	if s.key, err = s.arena.Import(key[:]); err != nil {
		return nil, fmt.Errorf("parse recovery key: %w", err)
	}
	return s, nil
}

// Kind returns "recovery".
func (s *RecoverySlot) Kind() string { return "recovery" }

// Seal never fails.
func (s *RecoverySlot) Seal(_ context.Context, root []byte) ([]byte, error) {
	defer s.key.release()
	return appendBox([]byte{slotBlobVersion}, &wrapLabels, s.key.acquire(), root, recoverySlotAAD), nil
}

// Open returns ErrSlotDenied when the blob is of another recovery key.
func (s *RecoverySlot) Open(_ context.Context, blob []byte) ([]byte, error) {
	if err := checkBlob(blob, 1+WrappedSize); err != nil {
		return nil, err
	}
	defer s.key.release()
	return openSlotBox(s.key.acquire(), blob[1:], recoverySlotAAD)
}

// Close wipes the key. The slot cannot be used afterwards.
func (s *RecoverySlot) Close() { s.arena.Close() }

func recoveryChecksum(key *[KeySize]byte) [sha256.Size]byte {
	p := append([]byte("coffer recovery key v1"), key[:]...)
	defer wipe(p)
	return sha256.Sum256(p)
}

func formatRecovery(key *[KeySize]byte) string {
	sum := recoveryChecksum(key)
	data := append(key[:], sum[:recoverySum]...)
	defer wipe(data)
	var out strings.Builder
	for g := range recoveryGroups {
		if g > 0 {
			out.WriteByte('-')
		}
		var symbols [recoveryGroupData]byte
		for i := range symbols {
			symbols[i] = fiveBits(data, g*recoveryGroupData+i)
			out.WriteByte(recoveryAlphabet[symbols[i]])
		}
		out.WriteByte(recoveryAlphabet[recoveryCheck(g, symbols)])
	}
	return out.String()
}

// fiveBits returns bits 5i to 5i+4 of data, the most significant first.
func fiveBits(data []byte, i int) (v byte) {
	for bit := 5 * i; bit < 5*i+5; bit++ {
		v = v<<1 | data[bit/8]>>(7-bit%8)&1
	}
	return v
}

// recoveryCheck returns the check symbol of a group: group number + Σ α^(i+1)·symbol(i) in GF(32) with x^5+x^2+1. The weights
// of the 8 characters differ, so a wrong character and any two exchanged ones always show; so do exchanged groups.
func recoveryCheck(group int, symbols [recoveryGroupData]byte) byte {
	check := byte(0)
	for i := recoveryGroupData - 1; i >= 0; i-- { // Horner's rule
		check = timesAlpha(check ^ symbols[i])
	}
	return check ^ byte(group)
}

// timesAlpha multiplies by x in GF(32).
func timesAlpha(v byte) byte {
	v <<= 1
	if v >= 32 {
		v ^= 0b100101
	}
	return v
}

func parseRecovery(text string) (key [KeySize]byte, err error) {
	if len(text) > maxRecoveryText {
		return key, fmt.Errorf("%d bytes of text", len(text))
	}
	const want = recoveryGroups * recoveryGroupChars
	symbols := make([]byte, 0, want)
	defer func() { wipe(symbols[:cap(symbols)]) }()
	for _, c := range text {
		if c == '-' || c == ' ' || c == '\t' || c == '\n' || c == '\r' {
			continue
		}
		v, ok := recoverySymbol(c)
		if !ok {
			return key, fmt.Errorf("%q in group %d is no character of a recovery key", c, len(symbols)/recoveryGroupChars+1)
		}
		if len(symbols) == want {
			return key, fmt.Errorf("more than %d characters", want)
		}
		symbols = append(symbols, v)
	}
	if len(symbols) < want {
		return key, fmt.Errorf("%d characters, want %d: group %d is too short or missing", len(symbols), want, len(symbols)/recoveryGroupChars+1)
	}
	return decodeRecovery((*[want]byte)(symbols))
}

// decodeRecovery checks the symbols and returns the key.
func decodeRecovery(symbols *[recoveryGroups * recoveryGroupChars]byte) (key [KeySize]byte, err error) {
	var data [KeySize + recoverySum]byte
	defer wipe(data[:])
	bit := 0
	for g := range recoveryGroups {
		group := [recoveryGroupChars]byte(symbols[g*recoveryGroupChars:])
		if recoveryCheck(g, [recoveryGroupData]byte(group[:])) != group[recoveryGroupData] {
			return key, fmt.Errorf("group %d is mistyped", g+1)
		}
		for _, v := range group[:recoveryGroupData] {
			for i := 4; i >= 0; i-- {
				data[bit/8] |= v >> i & 1 << (7 - bit%8)
				bit++
			}
		}
	}
	key = [KeySize]byte(data[:])
	if sum := recoveryChecksum(&key); string(sum[:recoverySum]) != string(data[KeySize:]) {
		wipe(key[:])
		return key, fmt.Errorf("checksum differs: several groups are mistyped")
	}
	return key, nil
}

// recoverySymbol returns the value of a character, 0 to 31.
func recoverySymbol(c rune) (byte, bool) {
	if c >= 'a' && c <= 'z' {
		c -= 'a' - 'A'
	}
	switch c {
	case 'I', 'L':
		c = '1'
	case 'O':
		c = '0'
	}
	i := strings.IndexRune(recoveryAlphabet, c)
	return byte(i), i >= 0
}
