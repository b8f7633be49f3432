package gcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

// random is a repeatable source.
type random struct {
	*rand.Rand
	bytes *rand.ChaCha8
}

func newRandom(seed byte) random {
	c := rand.NewChaCha8([32]byte{seed})
	return random{rand.New(c), c}
}

func (r random) read(n int) []byte {
	p := make([]byte, n)
	r.bytes.Read(p)
	return p
}

// field is n bytes at some alignment, between bytes that nothing may change.
type field struct {
	whole []byte
	at, n int
}

const moat = 64

func (r random) field(n int) field {
	return field{bytes.Repeat([]byte{0xa5}, n+3*moat), moat + r.IntN(moat), n}
}

// bytes has the field's capacity.
func (f field) bytes() []byte { return f.whole[f.at : f.at+f.n : f.at+f.n] }

func (f field) intact() bool {
	around := append(bytes.Clone(f.whole[:f.at]), f.whole[f.at+f.n:]...)
	return bytes.Equal(around, bytes.Repeat([]byte{0xa5}, 3*moat))
}

// copied is p in a field of cap(p) = n bytes.
func (r random) copied(p []byte, n int) field {
	f := r.field(n)
	copy(f.bytes(), p)
	return f
}

// each runs f for all kernels of this build that the processor supports, and says which are skipped.
func each(t *testing.T, f func(t *testing.T, k Kernel)) {
	t.Helper()
	for _, k := range Kernels() {
		t.Run(k.String(), func(t *testing.T) {
			if !k.Supported() {
				t.Skipf("this processor lacks one of %v", k.Needs())
			}
			f(t, k)
		})
	}
}

func mustNew(t testing.TB, k Kernel, key []byte) *AEAD {
	t.Helper()
	a, err := New(k, key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func stdlib(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// message is sealed and opened.
type message struct {
	nonce, plain, aad, sealed []byte
}

// check seals and opens m with a, apart and in place.
func (m message) check(a cipher.AEAD, r random) error {
	n := len(m.plain)
	plain, aad := r.copied(m.plain, n), r.copied(m.aad, len(m.aad))
	sealed := r.copied(m.sealed, len(m.sealed))
	for _, inPlace := range []bool{false, true} {
		in, out := plain, r.field(n+Overhead)
		if inPlace {
			in = r.copied(m.plain, n+Overhead)
			out = in
		}
		got := a.Seal(out.bytes()[:0], m.nonce, in.bytes()[:n], aad.bytes())
		if &got[0] != &out.bytes()[0] {
			return fmt.Errorf("seal, in place %v: another buffer", inPlace)
		}
		if err := differ(got, m.sealed); err != nil {
			return fmt.Errorf("seal, in place %v: %w", inPlace, err)
		}
		if !out.intact() {
			return fmt.Errorf("seal, in place %v: wrote beyond its output", inPlace)
		}

		in, out = sealed, r.field(n)
		if inPlace {
			in = r.copied(m.sealed, n+Overhead)
			out = in
		}
		got, err := a.Open(out.bytes()[:0], m.nonce, in.bytes(), aad.bytes())
		if err != nil {
			return fmt.Errorf("open, in place %v: %w", inPlace, err)
		}
		if err := differ(got, m.plain); err != nil {
			return fmt.Errorf("open, in place %v: %w", inPlace, err)
		}
		if !out.intact() || inPlace && !bytes.Equal(out.bytes()[n:], m.sealed[n:]) {
			return fmt.Errorf("open, in place %v: wrote beyond its output", inPlace)
		}
	}
	if !bytes.Equal(plain.bytes(), m.plain) || !bytes.Equal(aad.bytes(), m.aad) || !bytes.Equal(sealed.bytes(), m.sealed) {
		return errors.New("input changed")
	}
	return nil
}

func differ(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	return fmt.Errorf("differs at byte %d of %d", at, len(got))
}

// lengths are all up to and beyond eight groups, and those around the sizes where calls are split. With -short, which the race
// detector needs, they are fewer.
func lengths() (l []int) {
	step := 1
	if testing.Short() {
		step = 5
	}
	for n := 0; n <= 4200; n += step {
		l = append(l, n)
	}
	for _, n := range []int{8 << 10, 16 << 10, 65520, 64 << 10, chunk, 2 * chunk, 1 << 20} {
		for _, d := range []int{-group, -17, -16, -1, 0, 1, 15, 16, 33, group - 1, group, group + 1} {
			l = append(l, n+d)
		}
	}
	return l
}

// group is what the kernels do at a time.
const group = 512

func TestAgainstStandardLibrary(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		for _, keySize := range []int{16, 32} {
			r := newRandom(byte(keySize))
			for i, n := range lengths() {
				if k == Portable && n > 1000 && i%16 != 0 {
					continue // it is slow, and has no groups
				}
				key := r.read(keySize)
				m := message{nonce: r.read(NonceSize), plain: r.read(n), aad: r.read(r.IntN(201))}
				m.sealed = stdlib(t, key).Seal(nil, m.nonce, m.plain, m.aad)
				if err := m.check(mustNew(t, k, key), r); err != nil {
					t.Fatalf("AES-%d, %d bytes, additional %d: %v", 8*keySize, n, len(m.aad), err)
				}
			}
		}
	})
}

func TestAdditionalDataLengths(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := newRandom(3)
		key := r.read(32)
		a, std := mustNew(t, k, key), stdlib(t, key)
		for _, n := range lengths() {
			if k == Portable && n > 1000 {
				break
			}
			m := message{nonce: r.read(NonceSize), plain: r.read(n % 37), aad: r.read(n)}
			m.sealed = std.Seal(nil, m.nonce, m.plain, m.aad)
			if err := m.check(a, r); err != nil {
				t.Fatalf("additional data of %d bytes: %v", n, err)
			}
		}
	})
}

// TestCounterCarries starts calls in the middle of messages too long for a test.
func TestCounterCarries(t *testing.T) {
	r := newRandom(4)
	each(t, func(t *testing.T, k Kernel) {
		for _, keySize := range []int{16, 32} {
			key := r.read(keySize)
			a, ref := mustNew(t, k, key), mustNew(t, Portable, key)
			for _, done := range []uint32{1<<8 - 32, 1<<16 - 32, 1<<24 - 64, 1<<31 - 32, -1 << 7 & (1<<32 - 1)} {
				// The last one ends with the last block that a message can have.
				for _, n := range []int{15, 16, 31 * 16, 32*16 - 1, group, group + 1, 2*group - 16, 3*group + 77, 126 * 16} {
					in := r.read(n)
					var s state
					s.counter = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, byte(done >> 24), byte(done >> 16), byte(done >> 8), byte(done)}
					s.lengths, s.last = [2]uint64{uint64(n) * 8}, 1
					copy(s.mask[:], r.read(16))
					want, got := s, s
					wantOut, gotOut := make([]byte, n), make([]byte, n)
					ref.run(false, &want, wantOut, in)
					a.run(false, &got, gotOut, in)
					if err := differ(gotOut, wantOut); err != nil || got.tag != want.tag {
						t.Fatalf("AES-%d seal, %d bytes after %d blocks: %v, tags equal %v", 8*keySize, n, done, err, got.tag == want.tag)
					}
					back := s
					a.run(true, &back, gotOut, gotOut)
					if err := differ(gotOut, in); err != nil || back.tag != want.tag {
						t.Fatalf("AES-%d open, %d bytes after %d blocks: %v, tags equal %v", 8*keySize, n, done, err, back.tag == want.tag)
					}
				}
			}
		}
	})
}

func TestAppends(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := newRandom(5)
		key := r.read(32)
		a, std := mustNew(t, k, key), stdlib(t, key)
		nonce, aad := r.read(NonceSize), r.read(20)
		for _, n := range []int{0, 1, 16, 100, 1000} {
			plain, prefix := r.read(n), r.read(7)
			sealed := std.Seal(nil, nonce, plain, aad)
			for _, room := range []int{0, n, n + Overhead - 1, n + Overhead, n + 100} {
				dst := append(make([]byte, 0, len(prefix)+room), prefix...)
				got := a.Seal(dst, nonce, plain, aad)
				if !bytes.Equal(got, slices.Concat(prefix, sealed)) {
					t.Errorf("seal %d bytes with room for %d: wrong answer", n, room)
				}
				if same := &got[0] == &dst[0]; same != (room >= n+Overhead) {
					t.Errorf("seal %d bytes with room for %d: same buffer %v", n, room, same)
				}
				got, err := a.Open(dst, nonce, sealed, aad)
				if err != nil || !bytes.Equal(got, slices.Concat(prefix, plain)) {
					t.Errorf("open %d bytes with room for %d: wrong answer, %v", n, room, err)
				}
				if same := &got[0] == &dst[0]; same != (room >= n) {
					t.Errorf("open %d bytes with room for %d: same buffer %v", n, room, same)
				}
			}
		}
		if got, err := a.Open(nil, nonce, std.Seal(nil, nonce, nil, nil), nil); got != nil || err != nil {
			t.Errorf("open nothing into nothing: %v, %v", got, err)
		}
	})
}

// panics reports what f panics with, "" if it does not.
func panics(f func()) (with string) {
	defer func() {
		if r := recover(); r != nil {
			with = fmt.Sprint(r)
		}
	}()
	f()
	return ""
}

// TestOverlap compares with the standard library which ways buffers may lie to each other.
func TestOverlap(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := newRandom(6)
		key, nonce := r.read(32), r.read(NonceSize)
		a, std := mustNew(t, k, key), stdlib(t, key)
		var refused, allowed int
		for range 20000 {
			n, m := r.IntN(20), r.IntN(20)
			in, out, extra := r.IntN(60), r.IntN(60), r.IntN(60)
			if r.IntN(2) == 0 {
				out = in
			}
			seal := func(a cipher.AEAD, b []byte) func() {
				return func() { a.Seal(b[out:out], nonce, b[in:in+n], b[extra:extra+m]) }
			}
			open := func(a cipher.AEAD, b []byte) func() {
				return func() { a.Open(b[out:out], nonce, b[in:in+n+Overhead], b[extra:extra+m]) }
			}
			for i, f := range []func(cipher.AEAD, []byte) func(){seal, open} {
				b := r.read(128)
				c := bytes.Clone(b)
				got, want := panics(f(a, b)), panics(f(std, c))
				if strings.TrimPrefix(got, "gcm: ") != strings.TrimPrefix(want, "crypto/cipher: ") {
					t.Fatalf("operation %d, input %d+%d, output %d, additional %d+%d: panic %q, want %q", i, in, n, out, extra, m, got, want)
				}
				if want == "" {
					allowed++
				} else {
					refused++
				}
				if i == 0 && !bytes.Equal(b, c) {
					t.Fatalf("seal input %d+%d, output %d, additional %d+%d: wrong answer", in, n, out, extra, m)
				}
			}
		}
		if refused < 1000 || allowed < 1000 {
			t.Errorf("%d refused, %d allowed: not a test", refused, allowed)
		}
	})
}

func TestMisuse(t *testing.T) {
	for _, size := range []int{0, 15, 17, 24, 31, 33} {
		var bad aes.KeySizeError
		if _, err := New(Portable, make([]byte, size)); !errors.As(err, &bad) {
			t.Errorf("key of %d bytes: %v", size, err)
		}
	}
	if _, err := New(kernelCount, make([]byte, 32)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown kernel: %v", err)
	}
	each(t, func(t *testing.T, k Kernel) {
		a := mustNew(t, k, make([]byte, 32))
		if a.NonceSize() != 12 || a.Overhead() != 16 {
			t.Errorf("nonce of %d bytes, overhead of %d", a.NonceSize(), a.Overhead())
		}
		for _, size := range []int{0, 11, 13, 16} {
			for _, f := range []func(){
				func() { a.Seal(nil, make([]byte, size), nil, nil) },
				func() { a.Open(nil, make([]byte, size), make([]byte, 16), nil) },
			} {
				if p := panics(f); p != "gcm: incorrect nonce length" {
					t.Errorf("nonce of %d bytes: panic %q", size, p)
				}
			}
		}
		for n := range Overhead {
			if _, err := a.Open(nil, make([]byte, 12), make([]byte, n), nil); !errors.Is(err, ErrOpen) {
				t.Errorf("open %d bytes: %v", n, err)
			}
		}
		a.Wipe()
		if *a != (AEAD{}) {
			t.Error("keys left after Wipe")
		}
		if p := panics(func() { a.Seal(nil, make([]byte, 12), nil, nil) }); p != "gcm: key was wiped" {
			t.Errorf("after Wipe: panic %q", p)
		}
	})
}

// TestKeyIsCopied: callers wipe their key as soon as they have the AEAD.
func TestKeyIsCopied(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		key, nonce := newRandom(7).read(32), make([]byte, NonceSize)
		want := stdlib(t, key).Seal(nil, nonce, nil, nil)
		a := mustNew(t, k, key)
		clear(key)
		if !bytes.Equal(a.Seal(nil, nonce, nil, nil), want) {
			t.Error("key is not copied")
		}
	})
}

// TestForgeries alters every bit of tags, nonces and additional data, and bits all over texts.
func TestForgeries(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := newRandom(8)
		for _, n := range []int{0, 1, 16, 100, 511, 1200, 5000} {
			if k == Portable && n > 1000 {
				continue
			}
			key := r.read(16 << (n & 1))
			a := mustNew(t, k, key)
			nonce, aad, plain := r.read(NonceSize), r.read(1+n%90), r.read(n)
			sealed := a.Seal(nil, nonce, plain, aad)
			var buffer []byte
			refused := func(what string, nonce, sealed, aad []byte) {
				t.Helper()
				for _, inPlace := range []bool{false, true} {
					// Text that is not to be seen may be in the memory already.
					buffer = append(append(append(buffer[:0], "prefix"...), plain...), make([]byte, Overhead)...)
					in := sealed
					if inPlace {
						in = append(buffer[:6], sealed...)[6:]
					}
					out := max(len(sealed)-Overhead, 0)
					got, err := a.Open(buffer[:6], nonce, in, aad)
					if got != nil || !errors.Is(err, ErrOpen) {
						t.Fatalf("%d bytes, %s altered, in place %v: accepted, %v", n, what, inPlace, err)
					}
					if string(buffer[:6]) != "prefix" || !bytes.Equal(buffer[6:6+out], make([]byte, out)) {
						t.Fatalf("%d bytes, %s altered, in place %v: output not cleared", n, what, inPlace)
					}
				}
			}
			flips := func(what string, p []byte, bits []int) {
				for _, bit := range bits {
					p[bit/8] ^= 1 << (bit % 8)
					refused(fmt.Sprintf("bit %d of %s", bit, what), nonce, sealed, aad)
					p[bit/8] ^= 1 << (bit % 8)
				}
			}
			flips("tag", sealed[n:], all(8*Overhead))
			flips("nonce", nonce, all(8*NonceSize))
			flips("additional data", aad, all(8*len(aad)))
			if n > 0 {
				flips("text", sealed[:n], []int{0, 8*n - 1})
				for range 200 {
					flips("text", sealed[:n], []int{r.IntN(8 * n)})
				}
				refused("first byte of text", nonce, sealed[1:], aad)
			}
			refused("length", nonce, append(bytes.Clone(sealed), 0), aad)
			refused("length", nonce, append([]byte{0}, sealed...), aad)
			refused("length of additional data", nonce, sealed, aad[:len(aad)-1])
			refused("length of additional data", nonce, sealed, append(bytes.Clone(aad), 0))
			refused("order", nonce, append(bytes.Clone(sealed[n:]), sealed[:n]...), append(aad[:len(aad)-1:len(aad)-1], ^aad[len(aad)-1]))
			if _, err := a.Open(nil, nonce, sealed, aad); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func all(n int) (l []int) {
	for i := range n {
		l = append(l, i)
	}
	return l
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	each(t, func(t *testing.T, k Kernel) {
		if k == Portable {
			t.Skip("it makes no such promise")
		}
		r := newRandom(9)
		key := r.read(32)
		var a cipher.AEAD = mustNew(t, k, key)
		var nonce [NonceSize]byte
		buffer, aad := make([]byte, 70000, 70000+Overhead), r.read(100)
		for _, n := range []int{0, 100, 70000} {
			for _, m := range []int{0, 45, 100} {
				sealed := a.Seal(nil, nonce[:], buffer[:n], aad[:m])
				out := make([]byte, 0, n)
				if c := testing.AllocsPerRun(20, func() { a.Seal(buffer[:0], nonce[:], buffer[:n], aad[:m]) }); c != 0 {
					t.Errorf("seal %d bytes, additional %d: %v allocations", n, m, c)
				}
				if c := testing.AllocsPerRun(20, func() {
					if _, err := a.Open(out, nonce[:], sealed, aad[:m]); err != nil {
						t.Fatal(err)
					}
				}); c != 0 {
					t.Errorf("open %d bytes, additional %d: %v allocations", n, m, c)
				}
			}
		}
		if c := testing.AllocsPerRun(20, func() { New(k, key) }); c != 1 {
			t.Errorf("New: %v allocations, want 1", c)
		}
	})
}

// TestUnderCollection seals and opens in many goroutines, on stacks that grow and move, while garbage is collected: a pointer
// that the assembly holds wrongly would go astray.
func TestUnderCollection(t *testing.T) {
	each(t, func(t *testing.T, k Kernel) {
		r := newRandom(10)
		key := r.read(32)
		a, std := mustNew(t, k, key), stdlib(t, key)
		var messages []message
		for _, n := range []int{0, 1, 40, 600, 3000} {
			for _, m := range []int{0, 13, 64, 65, 300} {
				x := message{nonce: r.read(NonceSize), plain: r.read(n), aad: r.read(m)}
				x.sealed = std.Seal(nil, x.nonce, x.plain, x.aad)
				messages = append(messages, x)
			}
		}
		rounds := 300
		if k == Portable {
			rounds = 10
		}
		stop := make(chan struct{})
		var collector, workers sync.WaitGroup
		collector.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.GC()
				}
			}
		})
		for w := range 4 {
			workers.Go(func() {
				r := newRandom(byte(20 + w))
				for i := range rounds {
					for _, m := range messages {
						// A goroutine of its own begins with a small stack.
						done := make(chan error)
						go func() { done <- deep(i%40, func() error { return onStack(a, m) }) }()
						if err := <-done; err != nil {
							t.Error(err)
							return
						}
						if i%20 == 0 {
							if err := m.check(a, r); err != nil {
								t.Error(err)
								return
							}
						}
					}
				}
			})
		}
		workers.Wait()
		close(stop)
		collector.Wait()
	})
}

// deep calls f with about depth KiB of stack in use.
func deep(depth int, f func() error) error {
	var pad [1024]byte
	if depth == 0 {
		return f()
	}
	err := deep(depth-1, f)
	runtime.KeepAlive(&pad)
	return err
}

// onStack has buffers on the stack as far as the compiler lets it, and new ones on the heap.
func onStack(a *AEAD, m message) error {
	var buffer [3000 + Overhead]byte
	var additional [300]byte
	n, aad := len(m.plain), additional[:copy(additional[:], m.aad)]
	copy(buffer[:], m.plain)
	if err := differ(a.Seal(buffer[:0], m.nonce, buffer[:n], aad), m.sealed); err != nil {
		return err
	}
	got, err := a.Open(nil, m.nonce, buffer[:n+Overhead], append([]byte(nil), m.aad...))
	if err != nil {
		return err
	}
	return differ(got, m.plain)
}

// TestLayout holds the generator's constants against the compiler's layout.
func TestLayout(t *testing.T) {
	text, err := os.ReadFile("_asm/layout.go")
	if err != nil {
		t.Fatal(err)
	}
	var k AEAD
	var s state
	for name, want := range map[string]uintptr{
		"keysRound": unsafe.Offsetof(k.round), "keysSums": unsafe.Offsetof(k.sums), "keysPowers": unsafe.Offsetof(k.powers), "powers": uintptr(len(k.powers)),
		"stateCounter": unsafe.Offsetof(s.counter), "stateAcc": unsafe.Offsetof(s.acc), "stateMask": unsafe.Offsetof(s.mask),
		"stateLengths": unsafe.Offsetof(s.lengths), "stateTag": unsafe.Offsetof(s.tag), "stateAAD": unsafe.Offsetof(s.aad),
		"stateAADLen": unsafe.Offsetof(s.aadLen), "stateFirst": unsafe.Offsetof(s.first), "stateLast": unsafe.Offsetof(s.last),
	} {
		m := regexp.MustCompile(`(?m)^\s+` + name + `\s+= (\d+)\b`).FindSubmatch(text)
		if m == nil {
			t.Errorf("no constant %s", name)
		} else if got, _ := strconv.Atoi(string(m[1])); uintptr(got) != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if size := unsafe.Sizeof(k); size != 11*128 {
		t.Errorf("an AEAD of %d bytes is not aligned to cache lines by the heap", size)
	}
	// What reads past the powers stays inside.
	if pad := unsafe.Offsetof(k.sums) - unsafe.Offsetof(k.powers) - unsafe.Sizeof(k.powers); pad < 48 {
		t.Errorf("%d bytes after the powers", pad)
	}
}
