// Package index keeps the ordered map from names to records that the store works from: a cache of the log, in Pebble, sealed
// at rest by package sealfs.
//
// It promises that a batch is applied as a whole or not at all, together with the log position it brings the index to; that after a
// crash the index is exactly what it was at the position it then reports, which is never before the last Checkpoint that
// returned; and that damaged files give an error wrapping ErrCorrupt and never wrong data. Writes cost no flush: Pebble's own log
// is off, since the array's log is the truth.
//
// It does not promise to be there. Any fault of its files or its disk quarantines it: every later call fails, nothing more is written, and
// the caller opens it again and replays, or wipes and rebuilds it from the array. One that proved corrupt is marked as such on disk and
// does not open again before it was wiped. Nor does it know what the records mean.
//
// The keys are in docs/index-format.md.
package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"coffer/object/internal/sealfs"
)

var (
	// ErrCorrupt: the index is damaged. Wipe and rebuild it.
	ErrCorrupt = errors.New("index corrupt")
	// ErrForeign: the index is of another array. Wipe and rebuild it.
	ErrForeign = errors.New("index of another array")
	// ErrQuarantined is wrapped by the error of every call after a fault. If it does not wrap ErrCorrupt as well, closing and opening
	// again is enough.
	ErrQuarantined = errors.New("index quarantined")
	// ErrClosed: the index is closed.
	ErrClosed = errors.New("index closed")
)

// Sizes of Pebble's parts, in bytes.
const (
	defaultCache = 64 << 20
	memTableSize = 16 << 20 // at most twice this is in memory and lost in a crash, to be replayed
	blockSize    = 4 << 10  // about one sealed block
	maxManifest  = 4 << 20  // it is read and opened as a whole
	bloomBits    = 10       // per key: 1 % false positives
)

const formatVersion = 3

var (
	positionKey = []byte{kindMeta, 'p'}
	formatKey   = []byte{kindMeta, 'f'}
)

// Options configure an index. Dir and Keys are required.
type Options struct {
	Dir        string       // owned by the index
	FS         vfs.FS       // where the sealed files lie; nil: the operating system's
	Keys       sealfs.Keys  // wrap the file keys
	Logger     *slog.Logger // nil: none
	CacheBytes int64        // of opened blocks; 0: 64 MiB
	FormatKey  [16]byte     // id of the array the index belongs to
}

// Index is an open index. There is one batch at a time; beside it, reads and Checkpoint may run concurrently. Close may not run beside
// any other call, and iterators are closed before it.
type Index struct {
	quarantine
	db     *pebble.DB
	fs     *guardFS
	closed atomic.Bool
	dirty  atomic.Int64            // bytes committed and not covered by a Checkpoint
	pool   sync.Pool               // *Batch
	keys   atomic.Pointer[present] // of objects
	fresh  *present                // to take the place of keys when it is ready; of the writer alone
	quit   chan struct{}           // closed when a scan for keys is to end

	commitMu sync.Mutex // held during Commit; before mu
	flushMu  sync.Mutex // held during Checkpoint

	mu   sync.Mutex // guards live
	live map[uint64]int64
}

// Open opens or creates an index. It returns an error wrapping ErrCorrupt or ErrForeign when the caller should Wipe and rebuild,
// and other errors, such as a missing permission or a lock held by another process, as they are.
func Open(o Options) (*Index, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	x := &Index{live: make(map[uint64]int64), quit: make(chan struct{})}
	x.keys.Store(newPresent())
	x.pool.New = func() any { return &Batch{x: x, live: make(map[uint64]int64)} }
	x.fs = &guardFS{FS: sealfs.New(o.FS, o.Keys), q: &x.quarantine}
	x.quarantine.init(o.Logger, x.fs.Freeze, func() error { return setMark(o.FS, o.Dir) })
	x.fs.OnError = x.hangCaller
	marked, err := hasMark(o.FS, o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	if marked {
		return nil, fmt.Errorf("open index: %s is there: %w", markPath(o.Dir), ErrCorrupt)
	}
	err = x.guard(func() (err error) {
		x.db, err = pebble.Open(o.Dir, x.pebbleOptions(o))
		return err
	})
	if err != nil {
		x.fs.unlock()
		return nil, fmt.Errorf("open index: %w", classifyOpen(err))
	}
	if err := x.load(o.FormatKey); err != nil {
		return nil, errors.Join(fmt.Errorf("open index: %w", err), x.shut())
	}
	return x, nil
}

// classifyOpen adds ErrCorrupt to errors of Pebble that a rebuild cures: among them a file that is missing.
func classifyOpen(err error) error {
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return classify(err)
}

func (x *Index) pebbleOptions(o Options) *pebble.Options {
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCache
	}
	p := &pebble.Options{
		FS:                          x.fs,
		Logger:                      &x.quarantine,
		EventListener:               x.quarantine.events(),
		DisableWAL:                  true,
		FormatMajorVersion:          pebble.FormatNewest,
		CacheSize:                   o.CacheBytes,
		MemTableSize:                memTableSize,
		MemTableStopWritesThreshold: 3,
		L0StopWritesThreshold:       40, // compaction that lags costs reads a little; stopped commits would cost every PUT
		MaxManifestFileSize:         maxManifest,
	}
	p.TargetFileSizes[0] = 4 << 20
	for i := range p.Levels {
		p.Levels[i].BlockSize = blockSize
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBits)
	}
	return p
}

// load checks that the index is of this array and format, or new, and reads the live bytes.
func (x *Index) load(array [16]byte) error {
	want := append([]byte{formatVersion}, array[:]...)
	got, ok, err := x.Get(formatKey, nil)
	switch {
	case err != nil:
		return err
	case ok && (len(got) != len(want) || got[0] != formatVersion):
		return fmt.Errorf("read format record: another version: %w", ErrCorrupt)
	case ok && string(got) != string(want):
		return ErrForeign
	}
	it := x.Iter(nil, nil)
	defer it.Close()
	if !ok {
		if it.Seek(nil) {
			return fmt.Errorf("read format record: missing: %w", ErrCorrupt)
		}
		x.keys.Load().ready.Store(true)
		return errors.Join(it.Error(), x.guard(func() error { return x.db.Set(formatKey, want, pebble.NoSync) }))
	}
	x.scanKeys(x.keys.Load())
	for ok := it.Seek([]byte{kindLive}); ok && it.Key()[0] == kindLive; ok = it.Next() {
		band, err := parseLiveKey(it.Key())
		if err != nil {
			return err
		}
		v := it.Value()
		if len(v) != 8 {
			return fmt.Errorf("read live bytes of band %d: %w", band, ErrCorrupt)
		}
		x.live[band] = int64(binary.BigEndian.Uint64(v))
	}
	return it.Error()
}

// markPath is the file beside a corrupt index. It lies outside of the directory, so that it can outlive what it condemns.
func markPath(dir string) string { return dir + ".corrupt" }

// setMark makes the mark, whose presence is all that it says.
func setMark(base vfs.FS, dir string) error {
	f, err := base.Create(markPath(dir), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), syncParent(base, dir))
}

func hasMark(base vfs.FS, dir string) (bool, error) {
	_, err := base.Stat(markPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func syncParent(base vfs.FS, path string) error {
	parent, err := base.OpenDir(base.PathDir(path))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// Wipe removes a closed index, and the mark of a corrupt one after it is gone for good. A nil base is the operating system's file
// system.
func Wipe(base vfs.FS, dir string) error {
	if base == nil {
		base = vfs.Default
	}
	if err := errors.Join(base.RemoveAll(dir), syncParent(base, dir)); err != nil {
		return fmt.Errorf("wipe index: %w", err)
	}
	marked, err := hasMark(base, dir)
	if err == nil && marked {
		err = errors.Join(base.Remove(markPath(dir)), syncParent(base, dir))
	}
	if err != nil {
		return fmt.Errorf("wipe index: %w", err)
	}
	return nil
}

// usable returns why the index cannot be used, if so.
func (x *Index) usable() error {
	if x.closed.Load() {
		return ErrClosed
	}
	return x.Healthy()
}

// Get appends the value of key to dst. It reports false when there is none.
func (x *Index) Get(key, dst []byte) (val []byte, ok bool, err error) {
	if err := x.usable(); err != nil {
		return dst, false, err
	}
	v, closer, err := x.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, false, nil
	}
	if err != nil {
		return dst, false, x.readFailed(err)
	}
	dst = append(dst, v...)
	return dst, true, closer.Close()
}

// Position returns the position of the last batch that was applied, nil if there is none.
func (x *Index) Position() ([]byte, error) {
	p, _, err := x.Get(positionKey, nil)
	return p, err
}

// DurablePosition returns the position that the index would have after a crash now, or a later one; nil if it would be empty.
func (x *Index) DurablePosition() ([]byte, error) {
	if err := x.usable(); err != nil {
		return nil, err
	}
	it, err := x.db.NewIter(&pebble.IterOptions{OnlyReadGuaranteedDurable: true})
	if err != nil {
		return nil, x.readFailed(err)
	}
	var p []byte
	if it.SeekGE(positionKey) && string(it.Key()) == string(positionKey) {
		p = append(p, it.Value()...)
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return nil, x.readFailed(err)
	}
	return p, nil
}

// Checkpoint makes everything committed before the call durable.
func (x *Index) Checkpoint() error {
	if err := x.usable(); err != nil {
		return err
	}
	x.flushMu.Lock()
	defer x.flushMu.Unlock()
	n := x.dirty.Load()
	if n == 0 {
		return nil
	}
	if err := x.guard(x.db.Flush); err != nil {
		return fmt.Errorf("checkpoint index: %w", err)
	}
	x.dirty.Add(-n)
	return nil
}

// BytesSinceCheckpoint returns how many bytes of batches were committed since the last Checkpoint. Pebble may have made some of
// them durable on its own.
func (x *Index) BytesSinceCheckpoint() int64 { return x.dirty.Load() }

// Live calls f for each band that has a count of live bytes, in no order. f must not call the index.
func (x *Index) Live(f func(band uint64, bytes int64)) {
	x.mu.Lock()
	live := maps.Clone(x.live)
	x.mu.Unlock()
	for band, bytes := range live {
		f(band, bytes)
	}
}

// LiveOf returns the count of live bytes of a band, 0 if it has none.
func (x *Index) LiveOf(band uint64) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.live[band]
}

// KeyMemory is how many bytes the filter of known object keys takes.
func (x *Index) KeyMemory() int64 { return x.keys.Load().bytes() }

// Close makes a checkpoint and closes the index. A quarantined index is abandoned: its files are left as they are, and if Pebble
// cannot be closed any more, its memory stays in use until the process ends.
func (x *Index) Close() error {
	if x.closed.Load() {
		return ErrClosed
	}
	var err error
	if x.Healthy() == nil {
		err = x.Checkpoint()
	}
	return errors.Join(err, x.shut())
}

// shut closes Pebble as far as possible and gives up the lock.
func (x *Index) shut() error {
	x.closed.Store(true)
	close(x.quit)
	done := make(chan error, 1)
	go func() {
		x.calls.Wait() // a call that guard gave up on may still be in Pebble, which panics when it is used closed
		select {
		case <-x.fatal:
		default:
			done <- x.db.Close()
		}
	}()
	var err error
	select {
	case err = <-done:
	case <-x.fatal:
		x.fs.Freeze() // returns when no write is under way
	}
	x.fs.unlock()
	if x.Healthy() != nil {
		return nil // the caller knows; what Pebble reports about a broken database adds nothing
	}
	return err
}
