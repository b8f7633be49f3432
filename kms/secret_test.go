package kms

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mustImport(t testing.TB, a *Arena, p []byte) *Secret {
	t.Helper()
	s, err := a.Import(p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSecretNeverShows(t *testing.T) {
	var a Arena
	defer a.Close()
	s := mustImport(t, &a, []byte("very secret bytes of a test key!"))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p"} {
		for _, v := range []any{s, *s, []*Secret{s}, map[string]Secret{"k": *s}} {
			if got := fmt.Sprintf(verb, v); !strings.Contains(got, redacted) && verb != "%p" || strings.Contains(got, "very") {
				t.Errorf("%s of %T: %s", verb, v, got)
			}
		}
	}
	type holder struct{ key *Secret }
	if got := fmt.Sprintf("%+v", holder{s}); strings.Contains(got, "very") || strings.Contains(got, "118 101") {
		t.Errorf("field: %s", got)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("open", "key", s, "value", *s)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("open", "key", s, "value", *s)
	if strings.Contains(log.String(), "very") || strings.Count(log.String(), redacted) != 4 {
		t.Errorf("log: %s", log.String())
	}
	if _, err := json.Marshal(map[string]any{"key": s}); err == nil {
		t.Error("JSON took a secret")
	}
	if _, err := json.Marshal(*s); err == nil {
		t.Error("JSON took a secret value")
	}
	if _, err := xml.Marshal(s); err == nil {
		t.Error("XML took a secret")
	}
}

func TestSecretLifetime(t *testing.T) {
	var a Arena
	defer a.Close()
	p := []byte("0123456789abcdef0123456789abcdef")
	s := mustImport(t, &a, p)
	if !bytes.Equal(p, make([]byte, 32)) {
		t.Errorf("Import left its source: %q", p)
	}
	view := s.view()
	s.Use(func(p []byte) {
		if string(p) != "0123456789abcdef0123456789abcdef" {
			t.Errorf("Use gave %q", p)
		}
	})
	s.Wipe()
	s.Wipe()
	if !bytes.Equal(view, make([]byte, len(view))) {
		t.Error("wiped memory is not zero")
	}
	defer func() {
		if r := recover(); r == nil || !strings.HasPrefix(r.(string), "kms: ") {
			t.Errorf("use of a wiped secret: recovered %v", r)
		}
	}()
	s.Use(func([]byte) { t.Error("used a wiped secret") })
}

func TestArenaBounds(t *testing.T) {
	var a Arena
	for _, n := range []int{-1, 0, MaxSecretSize + 1} {
		if _, err := a.Random(n); err == nil {
			t.Errorf("secret of %d bytes made", n)
		}
	}
	long := bytes.Repeat([]byte{7}, MaxSecretSize+1)
	if _, err := a.Import(long); err == nil || long[0] != 0 {
		t.Errorf("import of %d bytes: %v, source wiped: %v", len(long), err, long[0] == 0)
	}
	a.Close()
	a.Close()
	if _, err := a.Random(32); !errors.Is(err, ErrClosed) {
		t.Errorf("secret of a closed arena: %v", err)
	}
}

// TestArenaSharesPages holds more secrets than a chunk has and checks that none overlap and that memory is reused.
func TestArenaSharesPages(t *testing.T) {
	var a Arena
	defer a.Close()
	const n = 3 * chunkSize / MaxSecretSize
	secrets := make([]*Secret, n)
	for i := range secrets {
		secrets[i] = mustImport(t, &a, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, MaxSecretSize/2))
	}
	for i, s := range secrets {
		s.Use(func(p []byte) {
			if !bytes.Equal(p, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, MaxSecretSize/2)) {
				t.Fatalf("secret %d was overwritten", i)
			}
		})
		s.Wipe()
	}
	for range n {
		if _, err := a.Random(32); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.chunks) != 3 {
		t.Errorf("%d chunks mapped for %d secrets", len(a.chunks), n)
	}
}

// TestUnreachableSecretIsWiped: what the bucket cache drops returns to the arena when its last user is done.
func TestUnreachableSecretIsWiped(t *testing.T) {
	var a Arena
	defer a.Close()
	s := mustImport(t, &a, bytes.Repeat([]byte{1}, 32))
	s.wipeUnreachable()
	s = nil
	for deadline := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		a.mu.Lock()
		live := len(a.live)
		a.mu.Unlock()
		if live == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("secret still there")
		}
		time.Sleep(time.Millisecond)
	}
	_ = s
}

func TestSecretConcurrency(t *testing.T) {
	var a Arena
	defer a.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				want := bytes.Repeat([]byte{byte(i + 1)}, 32)
				s, err := a.Import(bytes.Clone(want))
				if err != nil {
					t.Error(err)
					return
				}
				s.Use(func(p []byte) {
					if !bytes.Equal(p, want) {
						t.Error("secrets mixed")
					}
				})
				s.Wipe()
			}
		})
	}
	wg.Wait()
}

// TestMemoryFlags reads from proc(5) smaps that secrets are locked ("lo") and left out of dumps ("dd").
func TestMemoryFlags(t *testing.T) {
	var a Arena
	defer a.Close()
	s, err := a.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Warning(); err != nil {
		t.Skip(err)
	}
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(s.view())))
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	var inside bool
	for line := range strings.Lines(string(smaps)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= addr && addr < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			if !strings.Contains(flags, " lo") || !strings.Contains(flags, " dd") {
				t.Errorf("flags of key memory: %s", flags)
			}
			return
		}
	}
	t.Fatal("key memory not found in smaps")
}

// TestMemlockLimit: memory that must not be locked gives a warning and works. The capability that overrides the limit is dropped
// from one thread, which ends with the test.
func TestMemlockLimit(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
		t.Skip(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 4096, Max: old.Max}); err != nil {
		t.Skip(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is not used again
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Errorf("drop capabilities: %v", err)
			return
		}
		var a Arena
		defer a.Close()
		s, err := a.Import([]byte("works"))
		if err != nil {
			t.Error(err)
			return
		}
		if err := a.Warning(); err == nil || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK") {
			t.Errorf("warning: %v", err)
		}
		s.Use(func(p []byte) {
			if string(p) != "works" {
				t.Errorf("%q", p)
			}
		})
	}()
	<-done
}
