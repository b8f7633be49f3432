package kms

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var testRoot = bytes.Repeat([]byte{0x5e}, KeySize)

// testSlotContract holds for every kind: what Seal made opens, is fresh each time, and no altered byte of it opens.
func testSlotContract(t *testing.T, s Slot) {
	t.Helper()
	blob, err := s.Seal(t.Context(), testRoot)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Seal(t.Context(), testRoot)
	if err != nil || bytes.Equal(blob, again) {
		t.Errorf("second blob equal or %v", err)
	}
	if bytes.Contains(blob, testRoot[:8]) || len(blob) > MaxBlobSize || !validKind(s.Kind()) {
		t.Errorf("%s: blob %x", s.Kind(), blob)
	}
	if root, err := s.Open(t.Context(), blob); err != nil || !bytes.Equal(root, testRoot) {
		t.Fatalf("%x, %v", root, err)
	}
	for i := range blob {
		p := bytes.Clone(blob)
		p[i] ^= 1
		_, err := s.Open(t.Context(), p)
		if !errors.Is(err, ErrSlotDenied) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, 10, len(blob) - 1} {
		if _, err := s.Open(t.Context(), blob[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := s.Open(t.Context(), append(bytes.Clone(blob), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("trailing byte: %v", err)
	}
}

func TestFileSlot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	s := NewFileSlot(path)
	if _, err := s.Open(t.Context(), make([]byte, 1+WrappedSize)); !errors.Is(err, ErrVersion) {
		t.Errorf("zero blob: %v", err)
	}
	blob := append([]byte{slotBlobVersion}, make([]byte, WrappedSize)...)
	if _, err := s.Open(t.Context(), blob); !errors.Is(err, ErrSlotAbsent) {
		t.Errorf("no file: %v", err)
	}
	testSlotContract(t, s)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || info.Size() != KeySize {
		t.Fatalf("key file %v of %d bytes, %v", info.Mode(), info.Size(), err)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("files left: %v, %v", names, err)
	}
	other := testFileSlot(t)
	blob, err = s.Seal(t.Context(), testRoot)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Seal(t.Context(), testRoot); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(t.Context(), blob); !errors.Is(err, ErrSlotDenied) {
		t.Errorf("another key file: %v", err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o610} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context(), blob); !errors.Is(err, ErrSlotDenied) {
			t.Errorf("mode %o: %v", mode, err)
		}
		if _, err := s.Seal(t.Context(), testRoot); !errors.Is(err, ErrSlotDenied) {
			t.Errorf("seal at mode %o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), blob); err != nil {
		t.Errorf("mode 0400, as of a systemd credential: %v", err)
	}
}

// TestFileSlotKeepsFiles: a file that is there is used or refused, never replaced.
func TestFileSlotKeepsFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "short")
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFileSlot(path).Seal(t.Context(), testRoot); !errors.Is(err, ErrSlotDenied) {
		t.Errorf("short file: %v", err)
	}
	if err := NewFileSlot(path).create(); err != nil {
		t.Errorf("lost race: %v", err)
	}
	if p, err := os.ReadFile(path); err != nil || string(p) != "short" {
		t.Errorf("file replaced: %q, %v", p, err)
	}
	if _, err := NewFileSlot(dir).Seal(t.Context(), testRoot); !errors.Is(err, ErrSlotDenied) {
		t.Errorf("directory: %v", err)
	}
	if _, err := NewFileSlot(filepath.Join(dir, "absent", "key")).Seal(t.Context(), testRoot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("files left: %v, %v", names, err)
	}
}

func TestPassphraseSlot(t *testing.T) {
	s := NewPassphraseSlot(Passphrase([]byte("correct horse")), cheapArgon2)
	blob, err := s.Seal(t.Context(), testRoot)
	if err != nil {
		t.Fatal(err)
	}
	if root, err := NewPassphraseSlot(Passphrase([]byte("correct horse")), Argon2{}).Open(t.Context(), blob); err != nil || !bytes.Equal(root, testRoot) {
		t.Errorf("parameters not taken from the blob: %x, %v", root, err)
	}
	for _, pass := range []string{"correct Horse", "correct horse ", "", "short", strings.Repeat("x", MaxPassphrase+1)} {
		if _, err := NewPassphraseSlot(Passphrase([]byte(pass)), cheapArgon2).Open(t.Context(), blob); !errors.Is(err, ErrSlotDenied) {
			t.Errorf("passphrase %.20q: %v", pass, err)
		}
	}
	if _, err := NewPassphraseSlot(Passphrase([]byte("short")), cheapArgon2).Seal(t.Context(), testRoot); err == nil {
		t.Error("sealed with a short passphrase")
	}
	noTerminal := errors.New("no terminal")
	ask := func(context.Context) ([]byte, error) { return nil, noTerminal }
	if _, err := NewPassphraseSlot(ask, cheapArgon2).Open(t.Context(), blob); !errors.Is(err, noTerminal) {
		t.Errorf("error of the asking function: %v", err)
	}
	if NewPassphraseSlot(ask, Argon2{}).params != DefaultArgon2() {
		t.Error("zero parameters are not the default")
	}
	given := []byte("correct horse")
	once := func(context.Context) ([]byte, error) { return given, nil }
	if _, err := NewPassphraseSlot(once, cheapArgon2).Open(t.Context(), blob); err != nil || !bytes.Equal(given, make([]byte, 13)) {
		t.Errorf("passphrase not wiped: %q, %v", given, err)
	}
	for i := range blob[passBlobHeader:] {
		p := bytes.Clone(blob)
		p[passBlobHeader+i] ^= 1
		if _, err := s.Open(t.Context(), p); !errors.Is(err, ErrSlotDenied) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d of the box flipped: %v", i, err)
		}
	}
}

// TestHostileArgon2: parameters from a blob beyond the bounds cost nothing.
func TestHostileArgon2(t *testing.T) {
	ask := func(context.Context) ([]byte, error) { t.Error("asked"); return nil, nil }
	slot := NewPassphraseSlot(ask, Argon2{})
	for _, p := range []Argon2{
		{MemoryKiB: maxArgonMemoryKiB + 1, Passes: 1, Threads: 1},
		{MemoryKiB: 1<<32 - 1, Passes: 1, Threads: 1},
		{MemoryKiB: 64, Passes: maxArgonPasses + 1, Threads: 1},
		{MemoryKiB: 64, Passes: 1<<32 - 1, Threads: 1},
		{MemoryKiB: maxArgonMemoryKiB, Passes: maxArgonPasses, Threads: 1},
		{MemoryKiB: 1024, Passes: 1, Threads: maxArgonThreads + 1},
		{MemoryKiB: 1024, Passes: 1, Threads: 255},
		{MemoryKiB: 1024, Passes: 1, Threads: 0},
		{MemoryKiB: 1024, Passes: 0, Threads: 1},
		{MemoryKiB: 31, Passes: 1, Threads: 4},
		{MemoryKiB: 0, Passes: 1, Threads: 1},
	} {
		start := time.Now()
		if _, err := slot.Open(t.Context(), passphraseBlob(p)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", p, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%+v: took %v", p, took)
		}
		if p != (Argon2{}) {
			if _, err := NewPassphraseSlot(ask, p).Seal(t.Context(), testRoot); !errors.Is(err, ErrLimit) {
				t.Errorf("sealed with %+v: %v", p, err)
			}
		}
	}
	if err := DefaultArgon2().check(); err != nil {
		t.Error(err)
	}
}

func passphraseBlob(p Argon2) []byte {
	blob := make([]byte, passBlobHeader+WrappedSize)
	blob[0], blob[1] = slotBlobVersion, p.Threads
	binary.BigEndian.PutUint32(blob[2:], p.Passes)
	binary.BigEndian.PutUint32(blob[6:], p.MemoryKiB)
	return blob
}

func TestRecoverySlot(t *testing.T) {
	s, text, err := NewRecoverySlot()
	if err != nil {
		t.Fatal(err)
	}
	testSlotContract(t, s)
	blob, err := s.Seal(t.Context(), testRoot)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for name, typed := range map[string]string{
		"as printed": text,
		"lower case": strings.ToLower(text),
		"spaces":     "  " + strings.ReplaceAll(text, "-", " ") + "\n",
		"no groups":  strings.ReplaceAll(text, "-", ""),
		"look-alike": strings.NewReplacer("0", "o", "1", "l").Replace(text),
		"upper look": strings.NewReplacer("0", "O", "1", "I").Replace(text),
	} {
		p, err := ParseRecoveryKey(typed)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if root, err := p.Open(t.Context(), blob); err != nil || !bytes.Equal(root, testRoot) {
			t.Errorf("%s: %x, %v", name, root, err)
		}
		p.Close()
	}
	other, _, err := NewRecoverySlot()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Open(t.Context(), blob); !errors.Is(err, ErrSlotDenied) {
		t.Errorf("another recovery key: %v", err)
	}
}

// TestRecoveryTypos: every single wrong character, and every two neighbours exchanged, is named by its group.
func TestRecoveryTypos(t *testing.T) {
	text := strings.ReplaceAll(formatRecovery((*[KeySize]byte)(unhex(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff"))), "-", "")
	named := func(typed string, at int) {
		t.Helper()
		_, err := ParseRecoveryKey(typed)
		want := "group " + string(rune('1'+at/recoveryGroupChars)) + " "
		if !errors.Is(err, ErrRecoveryKey) || !strings.Contains(err.Error(), want) {
			t.Errorf("typo at %d: %v", at, err)
		}
	}
	for i := range text {
		for _, c := range recoveryAlphabet {
			if byte(c) != text[i] {
				named(text[:i]+string(c)+text[i+1:], i)
			}
		}
		if i+1 < len(text) && text[i] != text[i+1] {
			named(text[:i]+text[i+1:i+2]+text[i:i+1]+text[i+2:], i)
		}
		named(text[:i]+"U"+text[i+1:], i)
	}
	for at := 0; at+2*recoveryGroupChars <= len(text); at += recoveryGroupChars {
		a, b := text[at:at+recoveryGroupChars], text[at+recoveryGroupChars:at+2*recoveryGroupChars]
		named(text[:at]+b+a+text[at+2*recoveryGroupChars:], at)
	}
	for name, typed := range map[string]string{
		"empty": "", "short": text[:63], "long": text + "0", "emoji": text[:10] + "🔑" + text[11:], "endless": strings.Repeat("-", 1<<20),
		"two errors": "10000000" + text[8:],
	} {
		if _, err := ParseRecoveryKey(typed); !errors.Is(err, ErrRecoveryKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecoveryChecksum: groups that each hold but belong to no key are refused.
func TestRecoveryChecksum(t *testing.T) {
	var symbols [recoveryGroups * recoveryGroupChars]byte
	for g := range recoveryGroups {
		symbols[g*recoveryGroupChars+recoveryGroupData] = recoveryCheck(g, [recoveryGroupData]byte{})
	}
	if _, err := decodeRecovery(&symbols); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Error(err)
	}
}

func FuzzParseRecoveryKey(f *testing.F) {
	f.Add(formatRecovery(new([KeySize]byte)))
	f.Add(strings.Repeat("0", 64))
	f.Add("U")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := parseRecovery(text)
		if err != nil {
			if key != [KeySize]byte{} {
				t.Fatal("key along with an error")
			}
			return
		}
		again, err := parseRecovery(formatRecovery(&key))
		if err != nil || again != key {
			t.Fatalf("a parsed key does not survive printing: %v", err)
		}
	})
}

// FuzzSlotBlobs opens hostile blobs in every kind of slot. Of the passphrase slot only the parser runs: Argon2id within its bounds
// is too slow to fuzz.
func FuzzSlotBlobs(f *testing.F) {
	file := testFileSlot(f)
	rec, _, err := NewRecoverySlot()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(rec.Close)
	if _, err := file.Seal(f.Context(), testRoot); err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{slotBlobVersion}, make([]byte, WrappedSize)...))
	f.Add(passphraseBlob(cheapArgon2))
	f.Add(passphraseBlob(Argon2{MemoryKiB: 1<<32 - 1, Passes: 1<<32 - 1, Threads: 255}))
	f.Fuzz(func(t *testing.T, blob []byte) {
		for _, s := range []Slot{file, rec} {
			_, err := s.Open(t.Context(), blob)
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrSlotDenied) {
				t.Errorf("%s slot: %v", s.Kind(), err)
			}
		}
		if p, err := parsePassphraseBlob(blob); err == nil {
			if p.MemoryKiB > maxArgonMemoryKiB || uint64(p.MemoryKiB)*uint64(p.Passes) > maxArgonWorkKiB || p.Threads > maxArgonThreads {
				t.Errorf("accepted %+v", p)
			}
		} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("unclassified: %v", err)
		}
	})
}
