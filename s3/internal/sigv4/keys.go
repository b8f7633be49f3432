package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"sync"
)

// maxCachedKeys bounds the signing-key cache. A busy server sees one key per access key, region and day.
const maxCachedKeys = 1024

// SigningKey derives the key that signs everything of one day, region and service (AWS: create a signed request, step 4).
// date is YYYYMMDD.
func SigningKey(secret, date, region, service string) [32]byte {
	k := mac([]byte("AWS4"+secret), date)
	k = mac(k[:], region)
	k = mac(k[:], service)
	return mac(k[:], terminator)
}

func mac[T string | []byte](key []byte, data T) (sum [32]byte) {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	h.Sum(sum[:0])
	return sum
}

// keyID names a signing key. The secret is part of it so that a changed secret never meets the key of the old one.
type keyID struct{ accessKey, secret, date, region string }

// keyCache saves the four HMACs of SigningKey. Only keys that verified a signature enter, so that requests of strangers
// with made-up dates and regions cannot push out the ones in use.
type keyCache struct {
	mu   sync.RWMutex
	keys map[keyID][32]byte // guarded by mu
}

func (c *keyCache) get(id keyID) ([32]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	k, ok := c.keys[id]
	return k, ok
}

func (c *keyCache) put(id keyID, key [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil {
		c.keys = make(map[keyID][32]byte)
	}
	if len(c.keys) >= maxCachedKeys { // happens about once a day with thousands of keys: starting anew is cheap enough
		clear(c.keys)
	}
	c.keys[id] = key
}
