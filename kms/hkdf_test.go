package kms

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/argon2"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func randomBytes(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// TestRFC5869 checks the SHA-256 cases of RFC 5869 appendix A, of each the first block of the output.
func TestRFC5869(t *testing.T) {
	seq := func(from, n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(from + i)
		}
		return p
	}
	for name, c := range map[string]struct {
		ikm, salt, info []byte
		prk, okm        string
	}{
		"A.1": {bytes.Repeat([]byte{0x0b}, 22), seq(0, 13), seq(0xf0, 10),
			"077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5", "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"},
		"A.2": {seq(0, 80), seq(0x60, 80), seq(0xb0, 80),
			"06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244", "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"},
		"A.3": {bytes.Repeat([]byte{0x0b}, 22), nil, nil,
			"19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"},
	} {
		var prk, okm [KeySize]byte
		extract(&prk, c.salt, c.ikm)
		expand(&okm, &prk, string(c.info))
		if got := hex.EncodeToString(prk[:]); got != c.prk {
			t.Errorf("%s: PRK %s", name, got)
		}
		if got := hex.EncodeToString(okm[:]); got != c.okm {
			t.Errorf("%s: OKM %s", name, got)
		}
	}
}

func TestHKDFAgainstStandardLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		ikm, salt, info := randomBytes(rng, 1+rng.IntN(100)), randomBytes(rng, rng.IntN(100)), randomBytes(rng, rng.IntN(100))
		want, err := hkdf.Key(sha256.New, ikm, salt, string(info), KeySize)
		if err != nil {
			t.Fatal(err)
		}
		var got [KeySize]byte
		derive(&got, ikm, salt, string(info))
		if !bytes.Equal(got[:], want) {
			t.Fatalf("derive(%x, %x, %x) = %x, want %x", ikm, salt, info, got, want)
		}
	}
}

func TestHMACAgainstStandardLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		key, msg := randomBytes(rng, rng.IntN(150)), randomBytes(rng, rng.IntN(maxHMACMessage+1))
		h := hmac.New(sha256.New, key)
		h.Write(msg)
		var got [KeySize]byte
		hmacSHA256(&got, key, msg)
		if !bytes.Equal(got[:], h.Sum(nil)) {
			t.Fatalf("hmac of %d bytes under key of %d differs", len(msg), len(key))
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a message beyond the bound was accepted")
		}
	}()
	hmacSHA256(new([KeySize]byte), nil, make([]byte, maxHMACMessage), 1)
}

// TestArgon2id checks the vectors of the reference implementation (P-H-C/phc-winner-argon2, test.c, version 0x13). The one of
// RFC 9106 section 5.3 has a secret and associated data, which x/crypto does not offer to callers.
func TestArgon2id(t *testing.T) {
	for _, c := range []struct {
		passes, memoryKiB uint32
		threads           uint8
		password, want    string
	}{
		{2, 1 << 16, 1, "password", "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"},
		{2, 1 << 8, 1, "password", "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"},
		{2, 1 << 8, 2, "password", "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"},
	} {
		got := hex.EncodeToString(argon2.IDKey([]byte(c.password), []byte("somesalt"), c.passes, c.memoryKiB, c.threads, 32))
		if got != c.want {
			t.Errorf("argon2id t=%d m=%d p=%d: %s, want %s", c.passes, c.memoryKiB, c.threads, got, c.want)
		}
	}
}
