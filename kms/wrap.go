package kms

import (
	"errors"
	"fmt"
)

// WrapDataKey wraps an object's data key under kek, a bucket key: WrappedSize bytes that open only with the same aad, which
// should bind bucket, name and version. It panics when kek is wiped.
func WrapDataKey(kek *Secret, dataKey *[KeySize]byte, aad []byte) []byte {
	defer kek.release()
	return appendBox(make([]byte, 0, WrappedSize), &wrapLabels, kek.acquire(), dataKey[:], aad)
}

// UnwrapDataKey opens what WrapDataKey made. Any other bytes, kek or aad give ErrCorrupt. It panics when kek is wiped.
func UnwrapDataKey(kek *Secret, wrapped, aad []byte) ([KeySize]byte, error) {
	defer kek.release()
	key, err := unwrap(&wrapLabels, kek.acquire(), wrapped, aad)
	if err != nil {
		return key, fmt.Errorf("unwrap data key: %w", asCorrupt(err))
	}
	return key, nil
}

// WrapCustomer wraps an object's data key under the client's own key (SSE-C): WrappedSize bytes, of which the last 32 are the
// verifier that tells a wrong client key. Nothing else can open them.
func WrapCustomer(clientKey, dataKey *[KeySize]byte, aad []byte) []byte {
	return appendBox(make([]byte, 0, WrappedSize), &customerLabels, clientKey[:], dataKey[:], aad)
}

// UnwrapCustomer opens what WrapCustomer made: ErrWrongKey when the verifier is not that of clientKey, ErrCorrupt when the
// key is right and the bytes or the aad are not.
func UnwrapCustomer(clientKey *[KeySize]byte, wrapped, aad []byte) ([KeySize]byte, error) {
	key, err := unwrap(&customerLabels, clientKey[:], wrapped, aad)
	if err != nil {
		return key, fmt.Errorf("unwrap data key with customer key: %w", err)
	}
	return key, nil
}

func unwrap(l *boxLabels, kek, wrapped, aad []byte) (key [KeySize]byte, err error) {
	if len(wrapped) != WrappedSize {
		return key, fmt.Errorf("wrapped key of %d bytes: %w", len(wrapped), ErrCorrupt)
	}
	var buf [KeySize]byte // on the heap, because the cipher is an interface: wiped here
	_, err = openBox(buf[:0], l, kek, wrapped, aad)
	key = buf
	wipe(buf[:])
	return key, err
}

// asCorrupt turns ErrWrongKey into ErrCorrupt where no user chose the key: there it means that stored bytes were exchanged.
func asCorrupt(err error) error {
	if errors.Is(err, ErrWrongKey) {
		return fmt.Errorf("key commitment differs: %w", ErrCorrupt)
	}
	return err
}
