// Package kms keeps the keys of one array: the root key in its slots, the keyring of key epochs that the root key wraps, the
// bucket keys, and the wrapping of object data keys, SSE-C keys included.
//
//	root key (random)            sealed in every slot: file, passphrase, recovery; others plug in through Slot
//	  ├ superblock key, key area MAC key, wrap key     derived
//	  ├ cell key (random)                              wrapped by the root key, belongs to no epoch
//	  └ epoch key (random, numbered)                   wrapped by the root key
//	      ├ record key, index key                      derived
//	      ├ bucket wrap key → bucket keys (random)     → object data keys
//	      └ secret wrap key → small system secrets
//
// It promises that any one slot opens the array; that the key area, hostile bytes until a slot has opened it, costs bounded
// time and memory to read and is refused as a whole when one bit of it differs; that no wrapping key meets the same nonce
// twice; and that long-lived keys lie outside the Go heap in memory that is locked, left out of core dumps and wiped by Close.
//
// It does not promise that short-lived copies vanish: cipher states of the standard library, registers and stacks hold
// derived keys for a while, and a key handed to a caller is the caller's to wipe. It does no disk I/O besides the file slot:
// who changes a keyring writes Area into every superblock, and only then relies on the change. Removing a slot does not
// revoke it for one who kept both an old superblock and the old secret.
//
// The bytes of each format are specified in docs/keys-format.md.
package kms
