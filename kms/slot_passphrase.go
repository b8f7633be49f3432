package kms

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/argon2"
)

// Bounds of Argon2id parameters, for blobs from a disk as well: whoever can write one must not be able to exhaust the machine.
// Together they cost at most 512 MiB and, at 4 GiB of memory passes, some seconds.
const (
	maxArgonMemoryKiB = 512 << 10
	maxArgonPasses    = 16
	maxArgonThreads   = 16
	maxArgonWorkKiB   = 4 << 20 // memory times passes
	minArgonPerLane   = 8       // KiB per thread (RFC 9106 section 3.1)
)

// Bounds of a passphrase in bytes.
const (
	MinPassphrase = 8
	MaxPassphrase = 1024
)

const (
	argonSaltSize  = 16
	passBlobHeader = 2 + 4 + 4 + argonSaltSize // version, threads, passes, memory, salt
)

// Argon2 are the parameters of Argon2id (RFC 9106).
type Argon2 struct {
	MemoryKiB uint32
	Passes    uint32
	Threads   uint8
}

// DefaultArgon2 costs about one second of CPU: four times the second choice of RFC 9106 section 4, because a passphrase is asked
// once per boot.
func DefaultArgon2() Argon2 { return Argon2{MemoryKiB: 256 << 10, Passes: 3, Threads: 4} }

// check tells why p is out of bounds.
func (p Argon2) check() error {
	switch {
	case p.Threads < 1 || p.Threads > maxArgonThreads,
		p.Passes < 1 || p.Passes > maxArgonPasses,
		p.MemoryKiB < minArgonPerLane*uint32(p.Threads) || p.MemoryKiB > maxArgonMemoryKiB,
		uint64(p.MemoryKiB)*uint64(p.Passes) > maxArgonWorkKiB:
		return fmt.Errorf("argon2id with %d KiB, %d passes, %d threads", p.MemoryKiB, p.Passes, p.Threads)
	}
	return nil
}

// PassphraseFunc supplies a passphrase. It may be called several times; the slot wipes what it returns.
type PassphraseFunc func(ctx context.Context) ([]byte, error)

// Passphrase supplies p, which must stay unchanged.
func Passphrase(p []byte) PassphraseFunc {
	return func(context.Context) ([]byte, error) { return append([]byte(nil), p...), nil }
}

// PassphraseSlot seals the root key under a passphrase stretched by Argon2id.
type PassphraseSlot struct {
	ask    PassphraseFunc
	params Argon2
}

// NewPassphraseSlot returns a slot for the passphrase that ask supplies. Only Seal uses params, of which the zero value means
// DefaultArgon2; Open takes them from the blob.
func NewPassphraseSlot(ask PassphraseFunc, params Argon2) *PassphraseSlot {
	if params == (Argon2{}) {
		params = DefaultArgon2()
	}
	return &PassphraseSlot{ask, params}
}

// Kind returns "passphrase".
func (s *PassphraseSlot) Kind() string { return "passphrase" }

// Seal stretches the passphrase with a fresh salt.
func (s *PassphraseSlot) Seal(ctx context.Context, root []byte) ([]byte, error) {
	if err := s.params.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrLimit)
	}
	blob := []byte{slotBlobVersion, s.params.Threads}
	blob = binary.BigEndian.AppendUint32(blob, s.params.Passes)
	blob = binary.BigEndian.AppendUint32(blob, s.params.MemoryKiB)
	blob = append(blob, make([]byte, argonSaltSize)...)
	rand.Read(blob[passBlobHeader-argonSaltSize:]) // never fails (crypto/rand)
	key, err := s.stretch(ctx, s.params, blob)
	if err != nil {
		return nil, err
	}
	defer wipe(key)
	return appendBox(blob, &wrapLabels, key, root, passphraseAAD(blob)), nil
}

// Open returns ErrSlotDenied when the passphrase is another, ErrCorrupt for parameters out of bounds. Argon2id itself cannot be
// interrupted: it runs to its end after ctx has ended.
func (s *PassphraseSlot) Open(ctx context.Context, blob []byte) ([]byte, error) {
	params, err := parsePassphraseBlob(blob)
	if err != nil {
		return nil, err
	}
	header := blob[:passBlobHeader]
	key, err := s.stretch(ctx, params, header)
	if err != nil {
		return nil, err
	}
	defer wipe(key)
	return openSlotBox(key, blob[passBlobHeader:], passphraseAAD(header))
}

// parsePassphraseBlob reads the parameters of a hostile blob and checks them.
func parsePassphraseBlob(blob []byte) (Argon2, error) {
	if err := checkBlob(blob, passBlobHeader+WrappedSize); err != nil {
		return Argon2{}, err
	}
	p := Argon2{Threads: blob[1], Passes: binary.BigEndian.Uint32(blob[2:]), MemoryKiB: binary.BigEndian.Uint32(blob[6:])}
	if err := p.check(); err != nil {
		return Argon2{}, fmt.Errorf("read slot blob: %w: %w", err, ErrCorrupt)
	}
	return p, nil
}

// stretch asks for the passphrase and makes a key of it with the salt that ends header.
func (s *PassphraseSlot) stretch(ctx context.Context, p Argon2, header []byte) ([]byte, error) {
	pass, err := s.ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for passphrase: %w", err)
	}
	defer wipe(pass)
	if len(pass) < MinPassphrase || len(pass) > MaxPassphrase {
		return nil, fmt.Errorf("passphrase not of %d to %d bytes: %w", MinPassphrase, MaxPassphrase, ErrSlotDenied)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return argon2.IDKey(pass, header[passBlobHeader-argonSaltSize:], p.Passes, p.MemoryKiB, p.Threads, KeySize), nil
}

func passphraseAAD(header []byte) []byte {
	return append([]byte("coffer passphrase slot v1"), header...)
}
