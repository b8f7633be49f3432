package object

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object/internal/index"
	"coffer/object/internal/seal"
)

// Defaults of Options.
const (
	DefaultCheckpointEvery = 30 * time.Second
	DefaultCheckpointBytes = 64 << 20
	DefaultCopies          = 32
)

// Options make a Store.
type Options struct {
	// IndexDir is the directory of the index, made if it is absent. It holds nothing that the array does not.
	IndexDir string
	// Rebuild throws the index away first, so that opening the array replays the whole log.
	Rebuild bool
	// Keys wrap data keys. The Store does not close them.
	Keys *kms.Keyring
	// Crypto seals and sums.
	Crypto *hw.Engine
	// Cipher seals new objects; all are always readable. "" means AES-256-GCM.
	Cipher hw.Primitive
	// CheckpointEvery and CheckpointBytes bound what a start has to replay, in time and in bytes of records. 0 means the default.
	CheckpointEvery time.Duration
	CheckpointBytes int64
	// Copies bounds the copies of large bodies that run at once. Each keeps up to 4 MiB of the engine's read buffers, for a
	// second, while it waits for write buffers, which others may keep while they wait to read: so all together should leave some of
	// disk.Options.ArenaBytes/2. 0 means the default.
	Copies int
	// CompactEvery is how often bands are looked for that are worth compacting; CompactRate is how many bytes a second are moved as long
	// as nobody waits for space. 0 means the default.
	CompactEvery time.Duration
	CompactRate  int64
	Logger       *slog.Logger // nil: discard

	stripeHold time.Duration // tests: another than stripeHold
	readHold   time.Duration // tests: another than readHold
	inlineBody int           // tests: largest record without a manifest; 0: maxInlineBody
}

// Store is the buckets and objects of one array. It implements disk.State: New opens the index, opening the array with the Store
// as its State replays what the index lacks, and Start takes the array into use. Calls before Start answer ErrClosed. It is safe
// for concurrent use.
//
// The index is a cache of the log. When it fails, the Store is of no more use and says so by Failed: whoever closes it and makes
// another, over the same directory, has all back.
type Store struct {
	opt     Options
	keys    *kms.Keyring
	array   [16]byte
	alg     seal.Algorithm
	digests *digests
	secrets kms.Arena // upload keys while a part is wrapped
	meters  [seal.MaxAlgorithm + 1]sealMeters
	log     atomic.Pointer[logRef]
	idx     *index.Index
	buckets bucketTable
	locks   locks
	logger  *slog.Logger

	writing sync.Mutex // held while a batch of the index is open: it takes one at a time
	applier applier    // of Apply, whose calls never overlap
	stats   counters
	copies  chan struct{} // holds one for each copy of a large body that runs
	wake    chan struct{} // a checkpoint is due

	turn           chan struct{}   // capacity 1: held while bands are chosen, emptied and freed
	damaged        map[uint64]bool // bands that cannot be emptied; guarded by turn
	written        tally
	waiting        atomic.Int32 // streams that wait for the memory of a stripe
	control        compactControl
	hurry          atomic.Bool  // writers wait for space: compaction keeps to no rate
	lastCompaction atomic.Int64 // Unix ms
	rebuilt        atomic.Bool  // the index that was found could not be used

	stop      context.CancelFunc
	closeOnce sync.Once
	wg        sync.WaitGroup
}

// logRef lets the log be put in place after the Store was made.
type logRef struct{ Log }

type sealMeters struct{ seal, open *hw.Meter }

// New opens the index, or makes an empty one where there is none or none that can be used: then opening the array replays the
// whole log.
func New(opt Options) (*Store, error) {
	if opt.Keys == nil || opt.Crypto == nil || opt.IndexDir == "" {
		return nil, errors.New("open store: keys, crypto and index directory are required")
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Cipher == "" {
		opt.Cipher = seal.AES256GCM.Primitive()
	}
	if opt.CheckpointEvery <= 0 {
		opt.CheckpointEvery = DefaultCheckpointEvery
	}
	if opt.CheckpointBytes <= 0 {
		opt.CheckpointBytes = DefaultCheckpointBytes
	}
	if opt.Copies <= 0 {
		opt.Copies = DefaultCopies
	}
	if opt.stripeHold <= 0 {
		opt.stripeHold = stripeHold
	}
	if opt.readHold <= 0 {
		opt.readHold = readHold
	}
	if opt.CompactEvery <= 0 {
		opt.CompactEvery = DefaultCompactEvery
	}
	if opt.CompactRate <= 0 {
		opt.CompactRate = DefaultCompactRate
	}
	if opt.inlineBody <= 0 {
		opt.inlineBody = maxInlineBody
	}
	alg, ok := seal.ByPrimitive(opt.Cipher)
	if !ok {
		return nil, fmt.Errorf("open store: cipher %q is unknown", opt.Cipher)
	}
	s := &Store{opt: opt, keys: opt.Keys, array: opt.Keys.ArrayID(), alg: alg, logger: opt.Logger,
		digests: newDigests(opt.Crypto), copies: make(chan struct{}, opt.Copies), wake: make(chan struct{}, 1),
		turn: make(chan struct{}, 1), damaged: make(map[uint64]bool),
		control: compactControl{rate: opt.CompactRate, changed: make(chan struct{})}}
	for a := range s.meters {
		if p := seal.Algorithm(a).Primitive(); p != "" {
			s.meters[a] = sealMeters{seal.Meter(opt.Crypto, p, hw.Seal), seal.Meter(opt.Crypto, p, hw.Open)}
		}
	}
	s.locks.seed = maphash.MakeSeed()
	if opt.Rebuild {
		if err := RebuildIndex(opt.IndexDir); err != nil {
			return nil, err
		}
	}
	if err := s.openIndex(); err != nil {
		return nil, err
	}
	return s, nil
}

// Rebuilt reports whether the index that was found could not be used, so that an empty one took its place.
func (s *Store) Rebuilt() bool { return s.rebuilt.Load() }

// Start takes the log into use, which has been replayed into the Store, and starts checkpoints and compaction. It comes once.
func (s *Store) Start(log Log) {
	if s.stop != nil {
		panic("object: Store started twice")
	}
	s.written.begin(log.Bands())
	s.control.change(func() { s.control.next = time.Now().Add(s.opt.CompactEvery) })
	s.log.Store(&logRef{log})
	if err := s.reportMissing(log); err != nil {
		s.logger.Error("not known whether all bands are there", "err", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.wg.Go(func() { s.checkpoints(ctx) })
	s.wg.Go(func() { s.compactor(ctx, log) })
}

// Stop ends the background work, which uses the array: it comes before the array is closed. Close does it where nobody did.
func (s *Store) Stop() {
	if s.stop != nil {
		s.stop()
	}
	s.wg.Wait()
}

// Close makes a last checkpoint and closes the index. It does not close the array, which must not apply records any more. Further
// calls do nothing.
func (s *Store) Close() error {
	var err error
	s.closeOnce.Do(func() {
		s.log.Store(nil)
		s.Stop()
		err = s.idx.Close()
		s.secrets.Close()
	})
	return err
}

// disk returns the log, or ErrClosed.
func (s *Store) disk() (Log, error) {
	if l := s.log.Load(); l != nil {
		return l.Log, nil
	}
	return nil, ErrClosed
}

// admit waits for room for new data. It comes before locks and pins: compaction, which makes room, may wait for those.
func (s *Store) admit(ctx context.Context) error {
	l, err := s.disk()
	if err != nil {
		return err
	}
	return l.Admit(ctx)
}

// admitEssential is admit for what gives space back.
func (s *Store) admitEssential(ctx context.Context) error {
	l, err := s.disk()
	if err != nil {
		return err
	}
	return l.AdmitEssential(ctx)
}

// append makes a record durable and applied. Bodies may live in pooled memory: the log is done with it when it returns.
func (s *Store) append(ctx context.Context, r disk.Record) error {
	l, err := s.disk()
	if err != nil {
		return err
	}
	_, err = l.Append(ctx, r)
	return err
}

// Stats counts what the store did since it was made.
type Stats struct {
	SealedBytes, OpenedBytes int64 // plaintext
	Puts, Gets, Deletes      int64
	Repairs                  int64 // segments whose tag failed at first
	Corrupt                  int64 // segments beyond repair
	Checkpoints              int64
	CheckpointFailures       int64
	Uncheckpointed           int64 // bytes of index changes since the last checkpoint
	Buckets                  int64
	BandsFreed               int64     // by compaction
	MovedBytes               int64     // records and stripes that compaction wrote again
	ReclaimedBytes           int64     // of the bands freed
	LiveBytes                int64     // of the bands' space, what the index refers to
	ShadowBytes              int64     // of them, records kept only because of others that they made vanish
	LastCompaction           time.Time // end of the last pass in the background
	WaitingWriters           int       // for compaction to make room
}

type counters struct {
	sealed, opened, puts, gets, deletes, repairs, corrupt, checkpoints, checkpointFailures atomic.Int64
	bandsFreed, moved, reclaimed                                                           atomic.Int64
}

// Stats returns the counts.
func (s *Store) Stats() Stats {
	c := &s.stats
	st := Stats{SealedBytes: c.sealed.Load(), OpenedBytes: c.opened.Load(), Puts: c.puts.Load(), Gets: c.gets.Load(),
		Deletes: c.deletes.Load(), Repairs: c.repairs.Load(), Corrupt: c.corrupt.Load(), Checkpoints: c.checkpoints.Load(),
		CheckpointFailures: c.checkpointFailures.Load(), Uncheckpointed: s.idx.BytesSinceCheckpoint(), Buckets: int64(s.buckets.len()),
		BandsFreed: c.bandsFreed.Load(), MovedBytes: c.moved.Load(), ReclaimedBytes: c.reclaimed.Load(),
		ShadowBytes: s.idx.LiveOf(shadowBand)}
	if log, err := s.disk(); err == nil {
		for _, b := range log.Bands() {
			st.LiveBytes += bandLive(log, b, s.idx.LiveOf(b.Num))
		}
		st.WaitingWriters = log.Waiting()
	}
	if ms := s.lastCompaction.Load(); ms > 0 {
		st.LastCompaction = fromMillis(ms)
	}
	return st
}
