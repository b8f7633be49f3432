package kms

import "crypto/sha256"

// KeySize is the size in bytes of every key of the hierarchy.
const KeySize = 32

// maxHMACMessage bounds the messages of hmacSHA256, in bytes.
const maxHMACMessage = 128

// HKDF-SHA-256 (RFC 5869) over buffers on the stack: crypto/hkdf allocates a dozen times for what every 4 KiB object needs
// twice. The output is one block of 32 bytes, so that expand is a single HMAC.

// extract is HKDF-Extract (RFC 5869 section 2.2).
func extract(prk *[KeySize]byte, salt, ikm []byte) { hmacSHA256(prk, salt, ikm) }

// expand is HKDF-Expand (RFC 5869 section 2.3) with L = 32.
func expand(out, prk *[KeySize]byte, info string) { hmacSHA256(out, prk[:], info, 1) }

// derive is extract and expand.
func derive(out *[KeySize]byte, ikm, salt []byte, info string) {
	var prk [KeySize]byte
	extract(&prk, salt, ikm)
	expand(out, &prk, info)
	wipe(prk[:])
}

// hmacSHA256 sets out to the HMAC-SHA-256 (RFC 2104) of msg and tail, at most maxHMACMessage bytes. It wipes its own copies
// of key and message, but not those within sha256: see burnStack.
func hmacSHA256[M []byte | string](out *[KeySize]byte, key []byte, msg M, tail ...byte) {
	if len(msg)+len(tail) > maxHMACMessage {
		panic("kms: hmac message too long")
	}
	var inner [sha256.BlockSize + maxHMACMessage]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	if len(key) > sha256.BlockSize {
		sum := sha256.Sum256(key)
		copy(outer[:], sum[:])
	} else {
		copy(outer[:], key)
	}
	for i, b := range outer[:sha256.BlockSize] {
		inner[i] = b ^ 0x36
		outer[i] = b ^ 0x5c
	}
	n := sha256.BlockSize
	n += copy(inner[n:], msg)
	n += copy(inner[n:], tail)
	*(*[sha256.Size]byte)(outer[sha256.BlockSize:]) = sha256.Sum256(inner[:n])
	*out = sha256.Sum256(outer[:])
	wipe(inner[:])
	wipe(outer[:])
}
