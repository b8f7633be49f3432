package kms

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxSecretSize is the largest Secret in bytes: the 64-byte key of AES-256-CBC with HMAC-SHA-512.
const MaxSecretSize = 64

// chunkSize is how much memory an Arena maps and locks at once: 256 secrets.
const chunkSize = 16 << 10

// Arena hands out secrets from memory outside the Go heap that is locked against swapping and left out of core dumps. Many
// secrets share a page, so that thousands of bucket keys stay within the usual RLIMIT_MEMLOCK of 8 MiB. It is safe for
// concurrent use. The zero Arena is ready.
type Arena struct {
	mu     sync.Mutex // guards all below; taken inside cell.mu, never around it
	chunks [][]byte
	free   [][]byte // zeroed cells of MaxSecretSize bytes
	live   map[*cell]struct{}
	warn   error
	closed bool
}

// cell is the memory behind a Secret. It is separate from it so that the Arena, which must reach every cell to wipe it, does
// not keep alive a Secret that only the garbage collector can tell to be unused.
type cell struct {
	arena *Arena
	mu    sync.RWMutex // guards mem and size: held shared while the bytes are in use
	mem   []byte       // nil when wiped
	size  int
}

// Secret is a key of at most MaxSecretSize bytes. Formatting, logging or marshalling it never shows the bytes. It is safe for
// concurrent use; Wipe waits for uses to end. Using a wiped secret is a programmer's error and panics: going on with a key
// of zeros would be worse.
type Secret struct{ c *cell }

// Random returns a new secret of n random bytes.
func (a *Arena) Random(n int) (*Secret, error) {
	return a.alloc(n, func(mem []byte) { rand.Read(mem) }) // never fails (crypto/rand)
}

// Import moves p into a new secret: p is wiped, also when Import fails.
func (a *Arena) Import(p []byte) (*Secret, error) {
	defer wipe(p)
	return a.alloc(len(p), func(mem []byte) { copy(mem, p) })
}

// alloc returns a secret of n bytes that fill has written, straight into locked memory. Close waits for fill.
func (a *Arena) alloc(n int, fill func(mem []byte)) (*Secret, error) {
	if n <= 0 || n > MaxSecretSize {
		return nil, fmt.Errorf("allocate secret: %d bytes, want 1 to %d", n, MaxSecretSize)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("allocate secret: %w", ErrClosed)
	}
	if len(a.free) == 0 {
		if err := a.grow(); err != nil {
			return nil, err
		}
	}
	c := &cell{arena: a, mem: a.free[len(a.free)-1], size: n}
	a.free = a.free[:len(a.free)-1]
	if a.live == nil {
		a.live = make(map[*cell]struct{})
	}
	a.live[c] = struct{}{}
	fill(c.mem[:n:n])
	return &Secret{c}, nil
}

// grow maps another chunk. That it cannot be locked or kept out of dumps is no error but a warning: a container's limits
// must not stop the service. a.mu is held.
func (a *Arena) grow() error {
	mem, err := unix.Mmap(-1, 0, chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map key memory: %w", err)
	}
	var lockErr, dumpErr error
	if err := unix.Mlock(mem); err != nil {
		lockErr = fmt.Errorf("lock key memory (raise RLIMIT_MEMLOCK): %w", err)
	}
	if err := unix.Madvise(mem, unix.MADV_DONTDUMP); err != nil {
		dumpErr = fmt.Errorf("exclude key memory from core dumps: %w", err)
	}
	if a.warn == nil {
		a.warn = errors.Join(lockErr, dumpErr)
	}
	a.chunks = append(a.chunks, mem)
	for off := 0; off < chunkSize; off += MaxSecretSize {
		a.free = append(a.free, mem[off:off+MaxSecretSize:off+MaxSecretSize])
	}
	return nil
}

// Warning tells why some secrets may reach swap or a core dump; nil if none can.
func (a *Arena) Warning() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.warn
}

// Close wipes every secret and returns the memory to the system. Bytes still held from a view fault when touched.
func (a *Arena) Close() {
	a.mu.Lock()
	a.closed = true
	live := make([]*cell, 0, len(a.live))
	for c := range a.live {
		live = append(live, c)
	}
	a.mu.Unlock()
	for _, c := range live {
		c.wipe()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, mem := range a.chunks {
		wipe(mem)
		// Unmapping what was mapped whole cannot fail, and wiped memory that stays mapped would harm nobody.
		_ = unix.Munmap(mem)
	}
	a.chunks, a.free = nil, nil
}

func (c *cell) wipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mem == nil {
		return
	}
	wipe(c.mem)
	a := c.arena
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free = append(a.free, c.mem)
	delete(a.live, c)
	c.mem = nil
}

// wipeUnreachable makes the garbage collector wipe s when nothing refers to it any more. For secrets of which no view is
// ever handed out.
func (s *Secret) wipeUnreachable() { runtime.AddCleanup(s, (*cell).wipe, s.c) }

// Wipe zeroes the secret. Further calls do nothing.
func (s *Secret) Wipe() { s.c.wipe() }

// Use calls f with the bytes, which f must neither change nor keep. f must not wipe the secret.
func (s *Secret) Use(f func(p []byte)) {
	defer s.release()
	f(s.acquire())
}

// acquire returns the bytes, which stay until release. It panics, the lock held, when the secret is wiped: so the release is
// deferred just before the acquire.
func (s *Secret) acquire() []byte {
	s.c.mu.RLock()
	if s.c.mem == nil {
		panic("kms: use of a wiped secret")
	}
	return s.c.mem[:s.c.size:s.c.size]
}

func (s *Secret) release() {
	s.c.mu.RUnlock()
	runtime.KeepAlive(s) // or the collector could wipe a secret in use
}

// view returns the bytes for as long as the owner does not wipe them.
func (s *Secret) view() []byte {
	defer s.release()
	return s.acquire()
}

const redacted = "[secret]"

// String returns "[secret]".
func (s Secret) String() string { return redacted }

// Format writes "[secret]" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue returns "[secret]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses, and with it the encoders of JSON, XML and YAML.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("marshal secret: refused")
}

// wipe zeroes p. It is not inlined, so that the compiler cannot see that nobody reads p afterwards.
//
//go:noinline
func wipe(p []byte) { clear(p) }

// burnStack overwrites what finished calls left on the stack below the caller: a hash keeps its input block there.
//
//go:noinline
func burnStack() {
	var b [2048]byte
	wipe(b[:])
}
