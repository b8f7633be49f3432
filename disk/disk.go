// Package disk is the storage engine: it turns a set of disks into an append-only, erasure-coded, self-describing log.
//
// It promises that a record whose Append returned without error survives a power cut at any moment and the loss of any
// Parity disks; that what it reads back either is what was written or is an error; and that no record it was given in
// Record.Body reaches a disk unsealed. It checks against accidents (rot, torn, lost and misdirected writes, stale disks) by
// itself; against an adversary the caller's AEAD tags decide, which is why reads take a check function.
//
// It knows nothing of objects, buckets or keys' meaning. The format on disk is described in docs/format.md.
package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"coffer/disk/internal/blockdev"
	"coffer/hw"
)

// Errors on which callers branch.
var (
	// ErrCorrupt: stored bytes cannot be read back correctly from any combination of cells.
	ErrCorrupt = errors.New("data corrupt beyond repair")
	// ErrFull: no free extents are left for new data.
	ErrFull = errors.New("array full")
	// ErrReadOnly: more disks are gone than parity bears, or the array was opened for reading.
	ErrReadOnly = errors.New("array read-only")
	// ErrClosed: the array was closed or its log has stopped.
	ErrClosed = errors.New("array closed")
	// ErrTooLarge: a record does not fit in a cell.
	ErrTooLarge = errors.New("record too large")
	// ErrNotMember: a device holds no superblock, or one of another array.
	ErrNotMember = errors.New("not a member of this array")
	// ErrMembership: the set of devices cannot be opened as an array.
	ErrMembership = errors.New("array membership")
	// ErrKeys: the keys do not belong to this array: a superblock MAC does not verify.
	ErrKeys = errors.New("keys do not match the array")
)

// Fixed sizes of the format, in bytes.
const (
	// BlockSize is the unit of every offset and length on a disk.
	BlockSize = 4096
	// SegmentSize is the size of a slot of a bulk stripe.
	SegmentSize = 65536
	// MaxPacked bounds Record.Data.
	MaxPacked = 160 << 10
	// MaxBody bounds Record.Body.
	MaxBody = 256 << 10
	// MaxDisks bounds the members of an array, MaxWidth the cells of a stripe.
	MaxDisks = 64
	MaxWidth = 32

	superArea     = 1 << 20 // in front of the first extent
	maxRows       = 16      // segments in a cell
	minExtent     = 1 << 20
	maxExtent     = 1 << 30
	maxCellBlocks = 1 + maxRows*SegmentSize/BlockSize // of a packed cell, and of a bulk cell at full width
)

// Keys are the secrets the engine works with. Slices returned are not modified and not kept beyond the array's life.
type Keys interface {
	SuperblockKey() []byte                  // 32 bytes: MAC of superblocks
	CellKey() []byte                        // 32 bytes: MAC of cell headers; belongs to no epoch
	CurrentEpoch() uint32                   // key epoch for new records
	RecordKey(epoch uint32) ([]byte, error) // 32 bytes: seals records of that key epoch
	Area() []byte                           // the key area to be kept in superblocks
}

// State is what the log's records build up: an index that applies them in order and can be thrown away.
type State interface {
	// Position returns the last stripe whose records are applied durably, or the zero Position.
	Position() (Position, error)
	// Apply takes the records of one packed stripe. Calls come in stripe order and never overlap; readers see the records before
	// it returns. Entries and their bodies are valid only during the call. An error stops the log.
	Apply(p Position, entries []Entry) error
	// Reset drops everything: a replay of the whole log follows.
	Reset() error
	// Freed returns the packed stripes that were freed on purpose, as far as the records applied say: that recovery does not find them
	// is no loss.
	Freed() ([]StripeRange, error)
}

// Namer is implemented by a State that can tell which bulk stripes its records name. One that cannot be decoded is lost if a record names
// it, and was never committed if not.
type Namer interface {
	// Names reports whether a record names the bulk stripe at block off of a band.
	Names(ctx context.Context, band uint64, off uint32) (bool, error)
}

// Record is one append to the log.
type Record struct {
	// Seq is the record's array-wide sequence number; 0 takes the next. Compaction keeps a record's number.
	Seq uint64
	// Body is sealed by the engine. At most MaxBody bytes.
	Body []byte
	// Data is packed beside the body as it is: already sealed by the caller. At most MaxPacked bytes; may be nil.
	Data []byte
	// Essential records may use the space kept in reserve, so that a full array can still delete.
	Essential bool
	// Patient records may wait a moment for others, so that their stripes are full: for those who append many at once.
	Patient bool
}

// Entry is a record as applied or replayed.
type Entry struct {
	Seq  uint64
	Body []byte
	Data Loc // zero when the record has no data
}

// Position names the last stripe that a State has applied.
type Position struct {
	Stripe uint64 // number in the packed stream
	Band   uint64
	Off    uint32 // where the stripe starts in its extents, in blocks
	Nonce  [16]byte
}

// Geometry is the shape of an array.
type Geometry struct {
	Data, Parity int
	ExtentSize   int64 // bytes; a multiple of BlockSize
}

func (g Geometry) width() int           { return g.Data + g.Parity }
func (g Geometry) extentBlocks() uint32 { return uint32(g.ExtentSize / BlockSize) }

// rows is how many segments a full-width bulk cell holds: at most maxRows, and so few that the same segments fit into one
// extent even when they must be laid out anew over a single data cell, and into one buffer with as many disks gone as parity bears.
func (g Geometry) rows() int {
	fit := int((g.ExtentSize - 2*BlockSize) / SegmentSize / int64(g.Data))
	rows := max(1, min(maxRows, fit))
	for rows > 1 && g.largest(rows) > blockdev.MaxBuf {
		rows--
	}
	return rows
}

// largest is the memory, in bytes, that a stripe of that many full-width rows takes at the worst width.
func (g Geometry) largest(rows int) (most int) {
	for width := max(g.Data, 1); width <= g.width(); width++ {
		data := width - min(g.Parity, width-1)
		most = max(most, width*(BlockSize+(g.Data*rows+data-1)/data*SegmentSize))
	}
	return most
}

// Validate reports what is wrong with the geometry for an array of n disks.
func (g Geometry) Validate(n int) error {
	switch {
	case g.Data < 1 || g.Parity < 0 || g.width() > MaxWidth:
		return fmt.Errorf("geometry %d+%d: want at least 1 data cell and at most %d cells", g.Data, g.Parity, MaxWidth)
	case n < g.width() || n > MaxDisks:
		return fmt.Errorf("geometry %d+%d: %d disks, want %d to %d", g.Data, g.Parity, n, g.width(), MaxDisks)
	case g.ExtentSize < minExtent || g.ExtentSize > maxExtent || g.ExtentSize%BlockSize != 0:
		return fmt.Errorf("extent size %d: want %d to %d, a multiple of %d", g.ExtentSize, minExtent, maxExtent, BlockSize)
	case int64(g.Data)*SegmentSize+2*BlockSize > g.ExtentSize:
		return fmt.Errorf("extent size %d: too small for %d data cells", g.ExtentSize, g.Data)
	}
	return nil
}

// Options open an array.
type Options struct {
	// Keys open what Probe found.
	Keys Keys
	// State is replayed up to date before Open returns.
	State State
	// Crypto computes parity and checksums.
	Crypto *hw.Engine
	// Degraded opens with fewer than Parity+1 members, which could be a stale half of the array.
	Degraded bool
	// ReadOnly opens without writing anything: no repair, no new epoch.
	ReadOnly bool
	// Rebuild replays the whole log into an empty State.
	Rebuild bool
	// Replaying is told, while the log is replayed into the state, how many of its bands are behind. May be nil.
	Replaying func(done, total int)
	// ArenaBytes bounds the I/O buffers; 0 means 512 MiB.
	ArenaBytes int64
	// WriteTimeout and ReadTimeout bound one I/O; 0 means 30 s. A disk that misses the former is fenced.
	WriteTimeout, ReadTimeout time.Duration
	// PreferPool avoids io_uring.
	PreferPool bool
	// HealthEvery is how often the disks' latencies are compared; 0 means every half second.
	HealthEvery time.Duration
	// SpareGrace is how long a disk is failed or missing before a spare takes its place; 0 means 10 minutes, less than 0 never.
	SpareGrace time.Duration
	// RebuildRate is what SetRebuildRate sets.
	RebuildRate int64
	// Model tells what a disk was measured to do (Qualification.DiskModel), nil if it was not: background work is held to a share of that while
	// callers are served. May be nil. A file has the serial of the disk below it, if that is known.
	Model func(path, serial string, size int64) *Model
	// Changed, if not nil, is called when disks were added, retired, replaced or rebuilt. Status tells which are there. It may take a moment,
	// during which nothing is written, but must not change the set of disks.
	Changed func()
	// Discard says which freed extents are given back to their devices.
	Discard Discard
	Logger  *slog.Logger

	group  func([]blockdev.Device) (blockdev.Group, error) // tests: the simulator's group
	manual func()                                          // tests: no goroutines; called instead of waiting for another
	begin  func(func())                                    // tests without goroutines: takes what would be one, if not nil
	arenas *[3]*blockdev.Arena                             // tests: shared by many arrays
	rand   func([]byte)                                    // tests: nonces and ids from a seed
	faults faults                                          // tests: seeded bugs
	retry  time.Duration                                   // tests: in the place of bandRetry
}

// model is what is known of a disk.
func (o *Options) model(dev blockdev.Device) *Model {
	if o.Model == nil {
		return nil
	}
	l := dev.Limits()
	return o.Model(dev.Path(), l.Serial, l.Size)
}

// faults are bugs that tests switch on to prove that the simulation would catch them (docs/testing.md).
type faults struct {
	noFlush, noRepair, noVerify, noNonce, noLocation bool
	noMark, noPin, fewMarks                          bool // of freed bands: they are not marked, or on however few disks
	trustData, noInFlight                            bool // of scrubs: parity is made anew from unverified data; what is being written is judged
	noHold                                           bool // the memory of late reads is used again while they go on
	moveEarly, noPlaced                              bool // a band moves before its cells do; when extents were taken is not looked at
	noResync, ackFirst                               bool // a disk that comes back counts as it is; stripes are acknowledged before they are durable
	dropTwice                                        bool // a band opened ahead and not used is given back by whom it was for too
	noShadow                                         bool // the simulated caller forgets deletions with the band that they lie in
}

// ChooseGeometry returns the data and parity counts used for n disks when none are given: enough parity for the number of
// disks that can fail together, and a width that leaves one stripe on all disks up to 20.
func ChooseGeometry(n int) (data, parity int, err error) {
	switch {
	case n < 1 || n > MaxDisks:
		return 0, 0, fmt.Errorf("%d disks: want 1 to %d", n, MaxDisks)
	case n == 1:
		return 1, 0, nil
	case n <= 3:
		parity = 1
	case n <= 9:
		parity = 2
	case n <= 15:
		parity = 3
	default:
		parity = 4
	}
	return min(n-parity, 16), parity, nil
}

// ChooseExtentSize returns the extent size for disks of the given size in bytes: about 256 extents a disk, 1 MiB to 256 MiB.
func ChooseExtentSize(size int64, data int) int64 {
	e := int64(minExtent)
	for e < 256<<20 && (e*256 < size || int64(data)*SegmentSize*2 > e) {
		e *= 2
	}
	return e
}
