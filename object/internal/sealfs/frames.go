package sealfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The body of a frame file (docs/index-format.md, "Frame files").
const (
	frameHeader = 12
	maxFrame    = 64 << 10  // plaintext bytes of a frame
	maxFrames   = 256 << 20 // sealed bytes of a frame file: it is read as a whole
	maxProbes   = 1024      // frames opened in search of a later one behind a damaged one
)

var errBadFrame = errors.New("frame does not open")

// frameHead is the clear head of a frame. It is authenticated with the frame.
type frameHead struct {
	length uint32 // plaintext bytes, 1..maxFrame
	index  uint32 // place in the file
	synced uint32 // frames of the file that were durable when this one was sealed
}

func (h frameHead) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, h.length)
	b = binary.BigEndian.AppendUint32(b, h.index)
	return binary.BigEndian.AppendUint32(b, h.synced)
}

// parseFrame splits a frame off b: its head and its sealed bytes. It reports false when b holds none.
func parseFrame(b []byte) (h frameHead, sealed []byte, ok bool) {
	if len(b) < frameHeader+tagSize {
		return h, nil, false
	}
	h.length = binary.BigEndian.Uint32(b)
	h.index = binary.BigEndian.Uint32(b[4:])
	h.synced = binary.BigEndian.Uint32(b[8:])
	if h.length == 0 || h.length > maxFrame || int(h.length)+tagSize > len(b)-frameHeader || h.synced > h.index {
		return h, nil, false
	}
	return h, b[frameHeader : frameHeader+int(h.length)+tagSize], true
}

// frameNonce is unique under the file's key, which seals nothing but this file's frames.
func frameNonce(index uint32) []byte {
	n := make([]byte, nonceSize)
	binary.BigEndian.PutUint32(n[nonceSize-4:], index)
	return n
}

// seal appends a frame to dst.
func (k *fileKey) seal(dst []byte, h frameHead, plain []byte) []byte {
	dst = h.append(dst)
	aad := append(k.clear[:len(k.clear):len(k.clear)], dst[len(dst)-frameHeader:]...)
	return k.aead.Seal(dst, frameNonce(h.index), plain, aad)
}

// open appends the contents of a frame to dst.
func (k *fileKey) open(dst []byte, h frameHead, sealed []byte) ([]byte, error) {
	aad := h.append(k.clear[:len(k.clear):len(k.clear)])
	p, err := k.aead.Open(dst, frameNonce(h.index), sealed, aad)
	if err != nil {
		return dst, errBadFrame
	}
	return p, nil
}

// openAll opens all frames of a body. It stops at the first that does not open: if a later frame says that this one was durable,
// the file was damaged; if none does, that is where a power cut ended it.
func (k *fileKey) openAll(body []byte) ([]byte, error) {
	plain := make([]byte, 0, len(body))
	for index := uint32(0); len(body) > 0; index++ {
		h, sealed, ok := parseFrame(body)
		err := errBadFrame
		if ok && h.index == index {
			plain, err = k.open(plain, h, sealed)
		}
		if err != nil {
			if k.syncedBehind(body, index) {
				return nil, fmt.Errorf("open frame %d: %w", index, errCorrupt)
			}
			break
		}
		body = body[frameHeader+len(sealed):]
	}
	return plain, nil
}

// syncedBehind reports whether some frame in body proves that frame index was durable. A power cut leaves no frames that look
// right and do not open, so that many of them are damage too, and bound the work an attacker can cause.
func (k *fileKey) syncedBehind(body []byte, index uint32) bool {
	probes := 0
	for off := range body {
		h, sealed, ok := parseFrame(body[off:])
		if !ok || h.synced <= index || h.index >= maxFrames/(frameHeader+tagSize) {
			continue
		}
		if probes++; probes > maxProbes {
			return true
		}
		if _, err := k.open(nil, h, sealed); err == nil {
			return true
		}
	}
	return false
}

// frameWriter seals each write as frames and passes them on at once.
type frameWriter struct {
	writeOnly
	fs     *FS
	base   vfs.File
	key    *fileKey
	size   int64 // logical bytes written
	sealed int64 // sealed bytes written, without header
	next   uint32
	synced uint32
	buf    []byte
	err    error // of the base; sticky, since what reached the file is unknown
}

// Write implements vfs.File.
func (w *frameWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.buf = w.buf[:0]
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxFrame)
		w.buf = w.key.seal(w.buf, frameHead{length: uint32(n), index: w.next, synced: w.synced}, rest[:n])
		rest = rest[n:]
		w.next++
	}
	if w.sealed += int64(len(w.buf)); w.sealed > maxFrames {
		w.err = fmt.Errorf("write frame: file exceeds %d bytes", int64(maxFrames))
		return 0, w.err
	}
	w.err = w.fs.mutate(func() error {
		_, err := w.base.Write(w.buf)
		return err
	})
	if w.err != nil {
		return 0, w.err
	}
	w.size += int64(len(p))
	return len(p), nil
}

// Sync implements vfs.File.
func (w *frameWriter) Sync() error { return w.syncBy(w.base.Sync) }

// SyncData implements vfs.File.
func (w *frameWriter) SyncData() error { return w.syncBy(w.base.SyncData) }

func (w *frameWriter) syncBy(f func() error) error {
	if w.err != nil {
		return w.err
	}
	if w.err = w.fs.mutate(f); w.err == nil {
		w.synced = w.next
	}
	return w.err
}

// SyncTo implements vfs.File: it starts writing back everything and promises nothing.
func (w *frameWriter) SyncTo(int64) (bool, error) {
	if w.err != nil {
		return false, w.err
	}
	err := w.fs.mutate(func() error {
		_, err := w.base.SyncTo(headerSize + w.sealed)
		return err
	})
	return false, err
}

// Stat implements vfs.File.
func (w *frameWriter) Stat() (vfs.FileInfo, error) {
	info, err := w.base.Stat()
	if err != nil {
		return nil, err
	}
	return sizedInfo{info, w.size}, nil
}

// Fd implements vfs.File.
func (w *frameWriter) Fd() uintptr { return w.base.Fd() }

// Close implements vfs.File.
func (w *frameWriter) Close() error {
	w.err = errors.New("sealfs: file closed")
	return w.base.Close()
}

// frameReader serves an opened frame file from memory.
type frameReader struct {
	readOnly
	base  vfs.File
	info  vfs.FileInfo
	plain []byte
	pos   int64
}

func openFrames(base vfs.File, key *fileKey, info vfs.FileInfo) (*frameReader, error) {
	size := info.Size() - headerSize
	if size > maxFrames {
		return nil, fmt.Errorf("file of %d bytes: %w", info.Size(), errCorrupt)
	}
	body := make([]byte, size)
	n, err := base.ReadAt(body, headerSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	plain, err := key.openAll(body[:n])
	if err != nil {
		return nil, err
	}
	return &frameReader{base: base, info: info, plain: plain}, nil
}

// ReadAt implements io.ReaderAt.
func (r *frameReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("sealfs: negative offset")
	}
	if off >= int64(len(r.plain)) {
		return 0, io.EOF
	}
	n := copy(p, r.plain[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read implements io.Reader.
func (r *frameReader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Prefetch implements vfs.File.
func (r *frameReader) Prefetch(int64, int64) error { return nil }

// Stat implements vfs.File.
func (r *frameReader) Stat() (vfs.FileInfo, error) {
	return sizedInfo{r.info, int64(len(r.plain))}, nil
}

// Fd implements vfs.File.
func (r *frameReader) Fd() uintptr { return r.base.Fd() }

// Close implements vfs.File.
func (r *frameReader) Close() error { return r.base.Close() }
