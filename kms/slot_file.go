package kms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	slotBlobVersion = 1
	keyFileUnsafe   = 0o077 // permission bits that a key file must not have
)

var fileSlotAAD = []byte("coffer file slot v1")

// FileSlot seals the root key under a random key in a file of mode 0600. It protects nothing against one who takes the file
// along with the disks.
type FileSlot struct{ path string }

// NewFileSlot returns the slot of the key file at path. Seal makes the file if there is none, in a directory that exists.
func NewFileSlot(path string) *FileSlot { return &FileSlot{path} }

// Kind returns "file".
func (s *FileSlot) Kind() string { return "file" }

// Seal uses the key in the file, and makes one durably if there is no file.
func (s *FileSlot) Seal(_ context.Context, root []byte) ([]byte, error) {
	key, err := s.read()
	if errors.Is(err, ErrSlotAbsent) {
		if err = s.create(); err == nil {
			key, err = s.read()
		}
	}
	if err != nil {
		return nil, err
	}
	defer wipe(key)
	return appendBox([]byte{slotBlobVersion}, &wrapLabels, key, root, fileSlotAAD), nil
}

// Open returns ErrSlotAbsent when there is no file, ErrSlotDenied when its key is another or its mode lets others read it.
func (s *FileSlot) Open(_ context.Context, blob []byte) ([]byte, error) {
	if err := checkBlob(blob, 1+WrappedSize); err != nil {
		return nil, err
	}
	key, err := s.read()
	if err != nil {
		return nil, err
	}
	defer wipe(key)
	return openSlotBox(key, blob[1:], fileSlotAAD)
}

func (s *FileSlot) read() ([]byte, error) {
	f, err := os.Open(s.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("read key file: %w: %w", err, ErrSlotAbsent)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("read key file: %w: %w", err, ErrSlotDenied)
	case err != nil:
		return nil, fmt.Errorf("read key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if info.Mode().Perm()&keyFileUnsafe != 0 {
		return nil, fmt.Errorf("read key file %s: mode %#o lets others at it, want 0600: %w", s.path, info.Mode().Perm(), ErrSlotDenied)
	}
	if !info.Mode().IsRegular() || info.Size() != KeySize {
		return nil, fmt.Errorf("read key file %s: not a file of %d bytes: %w", s.path, KeySize, ErrSlotDenied)
	}
	key := make([]byte, KeySize)
	if _, err := io.ReadFull(f, key); err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	return key, nil
}

// create writes a new key file durably. It never replaces a file, which another array may need: losing the race against another
// creator is no error.
func (s *FileSlot) create() (err error) {
	key := make([]byte, KeySize)
	defer wipe(key)
	rand.Read(key) // never fails (crypto/rand)
	dir := filepath.Dir(s.path)
	f, err := os.CreateTemp(dir, ".coffer-key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("create key file: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("create key file %s: %w", s.path, err)
		}
	}()
	_, err = f.Write(key)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, s.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, os.ErrExist) {
		return os.Remove(f.Name())
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// checkBlob tells whether a slot's blob has the known version and a size of want bytes.
func checkBlob(blob []byte, want int) error {
	if len(blob) > 0 && blob[0] != slotBlobVersion {
		return fmt.Errorf("read slot blob: version %d: %w", blob[0], ErrVersion)
	}
	if len(blob) != want {
		return fmt.Errorf("read slot blob: %d bytes, want %d: %w", len(blob), want, ErrCorrupt)
	}
	return nil
}

// openSlotBox opens the box at the end of a slot's blob: ErrSlotDenied when it was sealed with another key.
func openSlotBox(key, box, aad []byte) ([]byte, error) {
	root, err := openBox(nil, &wrapLabels, key, box, aad)
	if errors.Is(err, ErrWrongKey) {
		return nil, fmt.Errorf("open root key: sealed with another key: %w", ErrSlotDenied)
	}
	return root, err
}
