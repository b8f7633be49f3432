package hw

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// slowCBCHMAC is the draft's section 2.1 written down step by step, with the IV in front as there.
func slowCBCHMAC(key, iv, plain, additional []byte) []byte {
	pad := 16 - len(plain)%16
	padded := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(pad)}, pad)...)
	block, err := aes.NewCipher(key[32:])
	if err != nil {
		panic(err)
	}
	s := append(bytes.Clone(iv), make([]byte, len(padded))...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(s[16:], padded)
	mac := hmac.New(sha512.New, key[:32])
	mac.Write(additional)
	mac.Write(s)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(additional))*8))
	return append(s, mac.Sum(nil)[:32]...)
}

func cbcAEAD(t testing.TB) (cipher.AEAD, []byte) {
	t.Helper()
	key := pattern(cbcHMACKeySize, 77)
	a, err := newCBCHMAC(key)
	if err != nil {
		t.Fatal(err)
	}
	return a, key
}

func TestCBCHMACAgainstDraft(t *testing.T) {
	a, key := cbcAEAD(t)
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 600 {
		iv, plain, additional := pattern(16, r.Int()), pattern(n, r.Int()), pattern(r.IntN(50), r.Int())
		want := slowCBCHMAC(key, iv, plain, additional)[16:]
		prefix := pattern(r.IntN(20), 1)
		got := a.Seal(bytes.Clone(prefix), iv, plain, additional)
		if !bytes.Equal(got, append(bytes.Clone(prefix), want...)) {
			t.Fatalf("seal of %d bytes differs", n)
		}
		if len(got)-len(prefix) > n+a.Overhead() {
			t.Fatalf("seal of %d bytes adds more than the overhead", n)
		}
		// Room for the plaintext alone must do: nothing beyond it may be written.
		room := bytes.Repeat([]byte{0xEE}, n+40)
		back, err := a.Open(room[:0:n], iv, want, additional)
		if err != nil || !bytes.Equal(back, plain) {
			t.Fatalf("open of %d bytes: %v", n, err)
		}
		if n > 0 && &back[0] != &room[0] || !bytes.Equal(room[n:], bytes.Repeat([]byte{0xEE}, 40)) {
			t.Fatalf("open of %d bytes did not keep to its memory", n)
		}
	}
}

func TestCBCHMACRefuses(t *testing.T) {
	a, key := cbcAEAD(t)
	iv, additional := pattern(16, 1), []byte("bound")
	sealed := a.Seal(nil, iv, pattern(100, 2), additional)
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		if p, err := a.Open(nil, iv, bad, additional); err == nil || p != nil {
			t.Fatalf("bit %d flipped: opened", i)
		}
	}
	for n := range sealed {
		if _, err := a.Open(nil, iv, sealed[:n], additional); err == nil {
			t.Errorf("cut to %d bytes: opened", n)
		}
	}
	if _, err := a.Open(nil, pattern(16, 3), sealed, additional); err == nil {
		t.Error("other IV: opened")
	}
	// The IV stands between additional data and body under the MAC: moving bytes across must not go unseen.
	if _, err := a.Open(nil, iv, sealed, append(bytes.Clone(additional), iv...)); err == nil {
		t.Error("additional data extended: opened")
	}

	// Padding that only the holder of the key can have made wrong.
	block, _ := aes.NewCipher(key[32:])
	for _, last := range [][]byte{make([]byte, 16), append(make([]byte, 15), 17), append(make([]byte, 15), 2), append(make([]byte, 15), 255)} {
		body := make([]byte, 16)
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(body, last)
		var tag [cbcHMACTagSize]byte
		a.(*cbcHMAC).tag(&tag, iv, body, nil)
		if _, err := a.Open(nil, iv, append(body, tag[:]...), nil); err == nil {
			t.Errorf("padding % x: opened", last)
		}
	}
}

func TestCBCHMACBuffers(t *testing.T) {
	a, _ := cbcAEAD(t)
	iv := pattern(16, 1)
	const inOut, inAdd = "hw: invalid buffer overlap of output and input", "hw: invalid buffer overlap of output and additional data"
	buf := make([]byte, 256)
	mustPanic(t, inOut, func() { a.Seal(buf[1:1], iv, buf[:64], nil) })
	mustPanic(t, inOut, func() { a.Seal(buf[:0], iv, buf[1:65], nil) })
	mustPanic(t, inOut, func() { a.Seal(buf[:0], iv, buf[40:60], nil) }) // under the tag
	mustPanic(t, inAdd, func() { a.Seal(buf[:0], iv, buf[:64], buf[70:80]) })
	sealed := a.Seal(nil, iv, pattern(64, 2), nil)
	copy(buf[8:], sealed)
	mustPanic(t, inOut, func() { _, _ = a.Open(buf[:0], iv, buf[8:8+len(sealed)], nil) })
	copy(buf, a.Seal(nil, iv, pattern(64, 2), buf[8:16]))
	mustPanic(t, inAdd, func() {
		withAdd := a.Seal(nil, iv, pattern(64, 2), buf[8:16])
		_, _ = a.Open(buf[:0], iv, withAdd, buf[8:16])
	})
	const nonce = "hw: incorrect nonce length given to AES-CBC-HMAC"
	mustPanic(t, nonce, func() { a.Seal(nil, iv[:12], nil, nil) })
	mustPanic(t, nonce, func() { _, _ = a.Open(nil, iv[:12], sealed, nil) })
	if _, err := newCBCHMAC(make([]byte, 32)); err == nil {
		t.Error("short key accepted")
	}
	// Neighbours that only touch are no overlap.
	copy(buf, pattern(64, 3))
	a.Seal(buf[64:64], iv, buf[:64], buf[64+64+16+32:])
}

func TestCBCHMACConcurrent(t *testing.T) {
	a, _ := cbcAEAD(t)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				iv, plain := pattern(16, g), pattern(i*7, i)
				if got, err := a.Open(nil, iv, a.Seal(nil, iv, plain, iv), iv); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("round trip: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzCBCHMACOpen: hostile input never panics, and opens only if it is exactly what Seal makes of the plaintext.
func FuzzCBCHMACOpen(f *testing.F) {
	a, key := cbcAEAD(f)
	iv := pattern(16, 1)
	for _, n := range []int{0, 1, 15, 16, 17, 1000} {
		f.Add(iv, a.Seal(nil, iv, pattern(n, 2), []byte("a")), []byte("a"), false)
		f.Add(iv, a.Seal(nil, iv, pattern(n, 2), nil), []byte{}, true)
	}
	f.Add(iv, []byte{}, []byte{}, false)
	f.Add(iv, make([]byte, 47), []byte{}, true)
	f.Add(iv, make([]byte, 48), []byte{}, true)
	f.Fuzz(func(t *testing.T, iv, sealed, additional []byte, inPlace bool) {
		if len(iv) != 16 {
			return
		}
		work, dst := bytes.Clone(sealed), []byte(nil)
		if inPlace {
			dst = work[:0]
		}
		plain, err := a.Open(dst, iv, work, additional)
		if err != nil {
			if plain != nil || !bytes.Equal(work, sealed) {
				t.Fatal("refused input left a trace")
			}
			// Tag it properly, so that what lies behind the tag check meets the input too.
			if n := len(sealed) / 16 * 16; n > 0 {
				var tag [cbcHMACTagSize]byte
				a.(*cbcHMAC).tag(&tag, iv, sealed[:n], additional)
				sealed = append(sealed[:n:n], tag[:]...)
				plain, err = a.Open(nil, iv, sealed, additional)
			}
		}
		if err == nil && !bytes.Equal(slowCBCHMAC(key, iv, plain, additional)[16:], sealed) {
			t.Fatal("opened what Seal does not make")
		}
	})
}

func BenchmarkAEAD(b *testing.B) {
	e := unbenched(b)
	for p, key := range map[Primitive]int{AES256GCM: 32, ChaCha20Poly1305: 32, AES256CBCHMACSHA512: 64} {
		a, err := e.AEAD(p, pattern(key, 0))
		if err != nil {
			b.Fatal(err)
		}
		nonce := pattern(a.NonceSize(), 1)
		for _, size := range benchSizes {
			plain, out := pattern(size, 2), make([]byte, 0, size+64)
			sealed := a.Seal(nil, nonce, plain, nonce)
			b.Run(fmt.Sprintf("%s/seal/%d", p, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					a.Seal(out, nonce, plain, nonce)
				}
			})
			b.Run(fmt.Sprintf("%s/open/%d", p, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := a.Open(out, nonce, sealed, nonce); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
