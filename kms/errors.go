package kms

import "errors"

// Errors on which callers branch. Each is returned wrapped.
var (
	// ErrCorrupt: bytes from a disk are malformed or not what the key holder wrote, or are presented as something else.
	ErrCorrupt = errors.New("key material corrupt")
	// ErrVersion: the format is of a later release.
	ErrVersion = errors.New("unknown key format version")
	// ErrLocked: no configured slot opened the array.
	ErrLocked = errors.New("array locked")
	// ErrClosed: the keyring or arena was closed.
	ErrClosed = errors.New("keyring closed")
	// ErrWrongKey: the customer key is not the one that the object was sealed with.
	ErrWrongKey = errors.New("wrong key")
	// ErrNoEpoch: the keyring has no such key epoch.
	ErrNoEpoch = errors.New("no such key epoch")
	// ErrLimit: there are MaxSlots slots or MaxEpochs epochs already, or an argument is too large.
	ErrLimit = errors.New("limit reached")
	// ErrLastSlot: the last slot cannot be removed.
	ErrLastSlot = errors.New("last slot")
	// ErrRecoveryKey: the text is not a recovery key; the error around it names the mistyped group.
	ErrRecoveryKey = errors.New("invalid recovery key")
)

// Why a slot did not open. A Slot classifies its errors by wrapping one of these, or ErrCorrupt for a bad blob.
var (
	ErrSlotAbsent  = errors.New("slot absent")            // what holds the secret is not there: no file, no such slot in the array
	ErrSlotDenied  = errors.New("slot denied")            // it is there and refuses: wrong passphrase, wrong key, unsafe permissions
	ErrSlotTimeout = errors.New("slot deadline exceeded") // it did not answer in time
)
