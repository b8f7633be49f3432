package sealfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The body of a block file (docs/index-format.md, "Block files"). Pebble reads blocks of about 4 KiB at random, and each read of a
// larger sealed block opens its neighbours in vain: in BenchmarkPebble sealed gets run at 0.70 of the plain rate with 4 KiB,
// 0.55 with 8 KiB and 0.37 with 32 KiB, and loads and scans are best with 4 KiB as well.
const (
	sealedBlock = 4096
	plainBlock  = sealedBlock - tagSize
	runBlocks   = 16 // blocks per read or write of the base
)

// scratch is what one read needs; pooled, so that a read allocates nothing.
type scratch struct {
	nonce [nonceSize]byte
	buf   [runBlocks * sealedBlock]byte
}

// setBlockNonce writes the nonce of a block. It is unique under the file's key, and authenticates the block's place and
// whether it ends the file.
func setBlockNonce(nonce *[nonceSize]byte, index int64, final bool) {
	clear(nonce[:4])
	if final {
		nonce[0] = 1
	}
	binary.BigEndian.PutUint64(nonce[4:], uint64(index))
}

// blockWriter seals a stream into blocks. A full block is sealed when a byte behind it arrives, since only then it is known
// not to be the final one; the final block is sealed by Close, whether full, partial or empty.
type blockWriter struct {
	writeOnly
	fs    *FS
	base  vfs.File
	key   *fileKey
	size  int64 // logical bytes written
	next  int64 // index of the block being filled
	plain []byte
	out   []byte // sealed blocks not yet written
	nonce [nonceSize]byte
	sync  bool  // Sync was called: Close makes the file durable
	err   error // of the base; sticky, since what reached the file is unknown
}

func newBlockWriter(fs *FS, base vfs.File, key *fileKey) *blockWriter {
	return &blockWriter{
		fs: fs, base: base, key: key,
		plain: make([]byte, 0, plainBlock),
		out:   make([]byte, 0, runBlocks*sealedBlock),
	}
}

// Write implements vfs.File.
func (w *blockWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n := 0
	for n < len(p) {
		if len(w.plain) == plainBlock {
			if err := w.seal(false); err != nil {
				return n, err
			}
		}
		take := min(len(p)-n, plainBlock-len(w.plain))
		w.plain = append(w.plain, p[n:n+take]...)
		n += take
		w.size += int64(take)
	}
	return n, nil
}

func (w *blockWriter) seal(final bool) error {
	setBlockNonce(&w.nonce, w.next, final)
	w.out = w.key.aead.Seal(w.out, w.nonce[:], w.plain, w.key.clear[:])
	w.plain = w.plain[:0]
	w.next++
	if !final && len(w.out) < cap(w.out) {
		return nil
	}
	w.err = w.fs.mutate(func() error {
		_, err := w.base.Write(w.out)
		return err
	})
	w.out = w.out[:0]
	return w.err
}

// Sync implements vfs.File. A block file has no valid end before Close, so it is Close that makes it durable after a Sync:
// Pebble calls one right after the other, and uses a table only then.
func (w *blockWriter) Sync() error {
	w.sync = true
	return w.err
}

// SyncData implements vfs.File like Sync.
func (w *blockWriter) SyncData() error { return w.Sync() }

// SyncTo implements vfs.File: it starts writing back what is already sealed and promises nothing.
func (w *blockWriter) SyncTo(length int64) (bool, error) {
	if w.err != nil {
		return false, w.err
	}
	sealed := min(length/plainBlock, w.next) * sealedBlock
	err := w.fs.mutate(func() error {
		_, err := w.base.SyncTo(headerSize + max(0, sealed-int64(len(w.out))))
		return err
	})
	return false, err
}

// Stat implements vfs.File.
func (w *blockWriter) Stat() (vfs.FileInfo, error) {
	info, err := w.base.Stat()
	if err != nil {
		return nil, err
	}
	return sizedInfo{info, w.size}, nil
}

// Fd implements vfs.File. Pebble only asks whether there is one, to choose between SyncTo and Sync.
func (w *blockWriter) Fd() uintptr { return w.base.Fd() }

// Close implements vfs.File: it seals the end and, after a Sync, makes the file durable.
func (w *blockWriter) Close() error {
	err := w.err
	if err == nil {
		err = w.seal(true)
	}
	if err == nil && w.sync {
		err = w.fs.mutate(w.base.Sync)
	}
	w.err = errors.New("sealfs: file closed")
	return errors.Join(err, w.base.Close())
}

// blockReader opens blocks at random.
type blockReader struct {
	readOnly
	fs   *FS
	base vfs.File
	key  *fileKey
	info vfs.FileInfo
	size int64 // logical bytes
	last int64 // index of the final block
	pos  int64 // of Read
}

// openBlocks derives the logical size from the sealed one, and proves it by the final block: a file cut or extended anywhere has
// another block, or none, in that place.
func openBlocks(fs *FS, base vfs.File, key *fileKey, info vfs.FileInfo) (*blockReader, error) {
	body := info.Size() - headerSize
	blocks := (body + sealedBlock - 1) / sealedBlock
	if blocks == 0 || body-(blocks-1)*sealedBlock < tagSize {
		return nil, fmt.Errorf("file of %d bytes is cut: %w", info.Size(), errCorrupt)
	}
	r := &blockReader{fs: fs, base: base, key: key, info: info, size: body - blocks*tagSize, last: blocks - 1}
	s := fs.pool.Get().(*scratch)
	defer fs.pool.Put(s)
	if _, err := r.open(s, r.last, 1); err != nil {
		return nil, err
	}
	return r, nil
}

// open reads and opens n <= runBlocks blocks from first on. Block i's contents are at s.buf[i*sealedBlock:] afterwards; the
// length of the last one is returned.
func (r *blockReader) open(s *scratch, first int64, n int) (int, error) {
	want := n * sealedBlock
	if first+int64(n)-1 == r.last {
		want = int(r.size + (r.last+1)*tagSize - first*sealedBlock)
	}
	got, err := r.base.ReadAt(s.buf[:want], headerSize+first*sealedBlock)
	if got < want {
		if err == nil || err == io.EOF {
			err = fmt.Errorf("read block %d: file is cut: %w", first+int64(got/sealedBlock), errCorrupt)
		}
		return 0, err
	}
	length := 0
	for i := range n {
		c := s.buf[i*sealedBlock : min((i+1)*sealedBlock, want)]
		setBlockNonce(&s.nonce, first+int64(i), first+int64(i) == r.last)
		p, err := r.key.aead.Open(c[:0], s.nonce[:], c, r.key.clear[:])
		if err != nil {
			return 0, fmt.Errorf("open block %d: %w", first+int64(i), errCorrupt)
		}
		length = len(p)
	}
	return length, nil
}

// ReadAt implements io.ReaderAt. It opens the blocks that the range touches and no other, and allocates nothing.
func (r *blockReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("sealfs: negative offset")
	}
	n := int(min(int64(len(p)), max(0, r.size-off)))
	s := r.fs.pool.Get().(*scratch)
	defer r.fs.pool.Put(s)
	for done := 0; done < n; {
		at := off + int64(done)
		first := at / plainBlock
		blocks := int(min((off+int64(n)-1)/plainBlock-first+1, runBlocks))
		if _, err := r.open(s, first, blocks); err != nil {
			return done, err
		}
		skip := int(at % plainBlock)
		for i := 0; i < blocks && done < n; i++ {
			done += copy(p[done:n], s.buf[i*sealedBlock+skip:i*sealedBlock+plainBlock])
			skip = 0
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read implements io.Reader.
func (r *blockReader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Prefetch implements vfs.File.
func (r *blockReader) Prefetch(offset, length int64) error {
	first, last := offset/plainBlock, (offset+length)/plainBlock
	return r.base.Prefetch(headerSize+first*sealedBlock, (last-first+1)*sealedBlock)
}

// Stat implements vfs.File.
func (r *blockReader) Stat() (vfs.FileInfo, error) { return sizedInfo{r.info, r.size}, nil }

// Fd implements vfs.File.
func (r *blockReader) Fd() uintptr { return r.base.Fd() }

// Close implements vfs.File.
func (r *blockReader) Close() error { return r.base.Close() }
