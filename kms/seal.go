package kms

import (
	"encoding/binary"
	"fmt"
)

// MaxSecretLen bounds what SealSecret seals and MaxLabelLen its labels, in bytes.
const (
	MaxSecretLen = 64 << 10
	MaxLabelLen  = 255
)

const (
	sealedVersion = 1
	sealedHeader  = 1 + 4
)

// SealSecret seals a small secret of the system, such as the root credentials, under the current epoch. It opens only with the
// same label in the same array. Errors: ErrLimit, ErrClosed.
func (k *Keyring) SealSecret(label string, p []byte) ([]byte, error) {
	if len(p) > MaxSecretLen || len(label) > MaxLabelLen {
		return nil, fmt.Errorf("seal secret: label of %d and secret of %d bytes: %w", len(label), len(p), ErrLimit)
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	e, err := k.epoch(k.current)
	if err != nil {
		return nil, fmt.Errorf("seal secret %s: %w", label, err)
	}
	out := append(make([]byte, 0, sealedHeader+len(p)+boxOverhead), sealedVersion)
	out = binary.BigEndian.AppendUint32(out, k.current)
	return appendBox(out, &wrapLabels, e.secret.view(), p, k.secretAAD(k.current, label)), nil
}

// OpenSecret opens what SealSecret made with the same label. The caller wipes the result when done. Errors: ErrCorrupt,
// ErrVersion, ErrNoEpoch, ErrClosed.
func (k *Keyring) OpenSecret(label string, sealed []byte) ([]byte, error) {
	if len(sealed) > 0 && sealed[0] != sealedVersion {
		return nil, fmt.Errorf("open secret %s: version %d: %w", label, sealed[0], ErrVersion)
	}
	if len(sealed) < sealedHeader+boxOverhead || len(sealed) > sealedHeader+boxOverhead+MaxSecretLen || len(label) > MaxLabelLen {
		return nil, fmt.Errorf("open secret %s: %d bytes: %w", label, len(sealed), ErrCorrupt)
	}
	number := binary.BigEndian.Uint32(sealed[1:])
	k.mu.RLock()
	defer k.mu.RUnlock()
	e, err := k.epoch(number)
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", label, err)
	}
	p, err := openBox(nil, &wrapLabels, e.secret.view(), sealed[sealedHeader:], k.secretAAD(number, label))
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", label, asCorrupt(err))
	}
	return p, nil
}

func (k *Keyring) secretAAD(epoch uint32, label string) []byte {
	aad := append([]byte("coffer secret v1"), k.arrayID[:]...)
	aad = binary.BigEndian.AppendUint32(aad, epoch)
	return append(aad, label...)
}
