// Package sealfs is an encrypting file system for Pebble: it seals every byte that Pebble writes before another vfs.FS sees it.
//
// It promises that nothing but file names (which hold only numbers), sizes, times and the number of the key epoch is readable
// below it; that a byte read back is the byte written at that place of that file, or the read fails with an error wrapping
// ErrCorrupt; and that no key and nonce ever seal twice. Files that Pebble reads at random (sstables) are sequences of fixed
// blocks with a marked end, so that cutting, extending, reordering or splicing them is detected. All other files are chains of
// counted frames: there a missing or damaged tail that was never followed by a later sync reads as the end of the file, because a
// power cut leaves exactly that.
//
// It does not promise freshness. Whoever can write to the directory can put back an older file of the same key; the caller
// must be able to rebuild the data from elsewhere, and must know how old a state it accepts. Files are written once from
// front to back: there is no WriteAt, and no append to a closed file.
//
// The byte layout is in docs/index-format.md.
package sealfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

var (
	// ErrCorrupt is wrapped by every error that means the stored bytes are not what was written. Such an error also wraps
	// pebble.ErrCorruption, so that Pebble reports it to its EventListener.
	ErrCorrupt = errors.New("sealed file corrupt")
	// ErrFrozen is wrapped by the error of every mutation after Freeze.
	ErrFrozen = errors.New("file system frozen")
)

var errCorrupt = fmt.Errorf("%w: %w", ErrCorrupt, pebble.ErrCorruption)

// FS is the encrypting file system. It is safe for concurrent use, as is a file for reading.
type FS struct {
	vfs.FS // the base; only methods that neither read nor write contents are left to it
	keys   Keys
	pool   sync.Pool // *scratch, for reads

	// OnError, if set before the first use, is called with the error of each mutation that failed in the base or after Freeze, except when
	// a name exists or does not. The mutation fails with that error when OnError returns; it need not.
	OnError func(error)

	// mu is held for reading during every mutation of the base, and for writing by Freeze, which thereby waits for those under way.
	mu     sync.RWMutex
	frozen bool
}

var _ vfs.FS = (*FS)(nil)

// New returns a file system that seals into base.
func New(base vfs.FS, keys Keys) *FS {
	fs := &FS{FS: base, keys: keys}
	fs.pool.New = func() any { return new(scratch) }
	return fs
}

// Freeze makes every later mutation fail with an error wrapping ErrFrozen, and returns when those under way have ended. Reads go
// on. It serves to abandon a database without letting its background work touch the files any more.
func (fs *FS) Freeze() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.frozen = true
}

// mutate runs f unless the file system is frozen.
func (fs *FS) mutate(f func() error) error {
	err := fs.try(f)
	if err != nil && fs.OnError != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrExist) {
		fs.OnError(err)
	}
	return err
}

func (fs *FS) try(f func() error) error {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	if fs.frozen {
		return ErrFrozen
	}
	return f()
}

// kindOf says how a file is laid out that is created under this name.
func kindOf(name string) kind {
	if strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob") {
		return kindBlocks
	}
	return kindFrames
}

// Create implements vfs.FS. The file's header is written at once.
func (fs *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	k := kindOf(name)
	fk, hdr, err := newHeader(fs.keys, k)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	var base vfs.File
	err = fs.mutate(func() (err error) {
		if base, err = fs.FS.Create(name, category); err != nil {
			return err
		}
		if _, err = base.Write(hdr); err != nil {
			return errors.Join(err, base.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	if k == kindBlocks {
		return newBlockWriter(fs, base, fk), nil
	}
	return &frameWriter{fs: fs, base: base, key: fk}, nil
}

// Open implements vfs.FS.
func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	base, err := fs.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	f, err := fs.open(base)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), base.Close())
	}
	return f, nil
}

func (fs *FS) open(base vfs.File) (vfs.File, error) {
	info, err := base.Stat()
	if err != nil {
		return nil, err
	}
	var hdr [headerSize]byte
	n, err := base.ReadAt(hdr[:min(headerSize, info.Size())], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if unwritten(hdr[:n]) {
		return &frameReader{base: base, info: info}, nil
	}
	h, err := parseHeader(hdr[:n])
	if err != nil {
		return nil, err
	}
	fk, err := openHeader(fs.keys, h)
	if err != nil {
		return nil, err
	}
	if fk.kind == kindBlocks {
		return openBlocks(fs, base, fk, info)
	}
	return openFrames(base, fk, info)
}

// OpenReadWrite implements vfs.FS by refusing: a sealed file is never written in place.
func (fs *FS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	return nil, fmt.Errorf("open %s for reading and writing: %w", name, vfs.ErrUnsupported)
}

// ReuseForWrite implements vfs.FS. Nothing is reused: the old file is removed and a new one created, so that no offset is
// sealed twice under one key.
func (fs *FS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Remove(oldname); err != nil {
		return nil, err
	}
	return fs.Create(newname, category)
}

// Stat implements vfs.FS. The size of a file is that of its contents.
func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	info, err := fs.FS.Stat(name)
	if err != nil || info.IsDir() || info.Size() < headerSize {
		// Shorter files are the lock, which holds nothing, and what a power cut left of a creation.
		return info, err
	}
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	info, err = f.Stat()
	return info, errors.Join(err, f.Close())
}

// Link implements vfs.FS.
func (fs *FS) Link(oldname, newname string) error {
	return fs.mutate(func() error { return fs.FS.Link(oldname, newname) })
}

// Rename implements vfs.FS.
func (fs *FS) Rename(oldname, newname string) error {
	return fs.mutate(func() error { return fs.FS.Rename(oldname, newname) })
}

// Remove implements vfs.FS.
func (fs *FS) Remove(name string) error {
	return fs.mutate(func() error { return fs.FS.Remove(name) })
}

// RemoveAll implements vfs.FS.
func (fs *FS) RemoveAll(name string) error {
	return fs.mutate(func() error { return fs.FS.RemoveAll(name) })
}

// MkdirAll implements vfs.FS.
func (fs *FS) MkdirAll(dir string, perm os.FileMode) error {
	return fs.mutate(func() error { return fs.FS.MkdirAll(dir, perm) })
}

// Unwrap implements vfs.FS.
func (fs *FS) Unwrap() vfs.FS { return fs.FS }

// Epochs counts the sealed files of a directory per key epoch, from the clear part of their headers, which is not
// authenticated. An epoch may be destroyed when no file names it. Files that hold no header are not counted; a file that
// vanishes while the directory is walked is not an error.
func Epochs(base vfs.FS, dir string) (map[uint32]int, error) {
	names, err := base.List(dir)
	if err != nil {
		return nil, fmt.Errorf("count epochs: %w", err)
	}
	counts := make(map[uint32]int)
	for _, name := range names {
		f, err := base.Open(base.PathJoin(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("count epochs: %w", err)
		}
		var b [headerSize]byte
		n, rerr := f.ReadAt(b[:], 0)
		if cerr := f.Close(); cerr != nil {
			return nil, fmt.Errorf("count epochs: %w", cerr)
		}
		if rerr != nil && rerr != io.EOF {
			continue // a directory
		}
		if h, err := parseHeader(b[:n]); err == nil {
			counts[h.epoch]++
		}
	}
	return counts, nil
}

// sizedInfo is a FileInfo with the size of the contents in place of that of the sealed file.
type sizedInfo struct {
	vfs.FileInfo
	size int64
}

func (i sizedInfo) Size() int64 { return i.size }

// readOnly and writeOnly hold the methods of vfs.File that a file open for the other direction refuses.
type readOnly struct{}

func (readOnly) Write([]byte) (int, error)          { return 0, vfs.ErrUnsupported }
func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, vfs.ErrUnsupported }
func (readOnly) Preallocate(int64, int64) error     { return nil }
func (readOnly) Sync() error                        { return nil }
func (readOnly) SyncData() error                    { return nil }
func (readOnly) SyncTo(int64) (bool, error)         { return false, nil }

type writeOnly struct{}

func (writeOnly) Read([]byte) (int, error)           { return 0, vfs.ErrUnsupported }
func (writeOnly) ReadAt([]byte, int64) (int, error)  { return 0, vfs.ErrUnsupported }
func (writeOnly) WriteAt([]byte, int64) (int, error) { return 0, vfs.ErrUnsupported }
func (writeOnly) Preallocate(int64, int64) error     { return nil }
func (writeOnly) Prefetch(int64, int64) error        { return nil }
