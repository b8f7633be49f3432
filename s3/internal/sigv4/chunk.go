package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// First lines of the strings to sign of a chunk and of a trailer (AWS: sigv4-streaming, sigv4-streaming-trailers).
const (
	chunkAlgorithm   = "AWS4-HMAC-SHA256-PAYLOAD"
	trailerAlgorithm = "AWS4-HMAC-SHA256-TRAILER"
)

// emptySHA256 is the hex SHA-256 of nothing, a fixed line in every chunk's string to sign.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Signature is a signature in lower-case hex, as it travels.
type Signature [2 * sha256.Size]byte

// ChunkSigner computes the chain of chunk signatures of one streamed body: each covers the one before it, and the first
// covers the signature of the request (the seed). It is not safe for concurrent use and does not allocate per chunk.
type ChunkSigner struct {
	mac  hash.Hash
	head string // date and scope lines, the same in every string to sign
	prev Signature
	buf  []byte
	sum  [sha256.Size]byte
}

// NewChunkSigner returns the signer of a body whose request was signed with key at date (ISO 8601 basic) under scope
// (date/region/service/aws4_request) and got the signature seed.
func NewChunkSigner(key [32]byte, date, scope string, seed Signature) *ChunkSigner {
	return &ChunkSigner{
		mac:  hmac.New(sha256.New, key[:]),
		head: "\n" + date + "\n" + scope + "\n",
		prev: seed,
		buf:  make([]byte, 0, 512),
	}
}

// Chunk returns the signature of the next chunk, whose data have the SHA-256 sum, and advances the chain. Compare it in
// constant time.
func (c *ChunkSigner) Chunk(sum *[32]byte) Signature {
	return c.next(chunkAlgorithm, emptySHA256+"\n", sum)
}

// Trailer returns the signature of the trailer, sum being the SHA-256 of its canonical lines "name:value\n". It ends the chain.
func (c *ChunkSigner) Trailer(sum *[32]byte) Signature { return c.next(trailerAlgorithm, "", sum) }

func (c *ChunkSigner) next(algorithm, line string, sum *[32]byte) Signature {
	b := append(c.buf[:0], algorithm...)
	b = append(b, c.head...)
	b = append(b, c.prev[:]...)
	b = append(b, '\n')
	b = append(b, line...)
	b = hex.AppendEncode(b, sum[:])
	c.mac.Reset()
	c.mac.Write(b)
	c.buf = b
	hex.Encode(c.prev[:], c.mac.Sum(c.sum[:0]))
	return c.prev
}
