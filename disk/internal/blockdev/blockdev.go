// Package blockdev is the only part of Coffer that touches a disk: devices, batches of operations over several devices with
// one wait, and the buffers that they read into and write from.
//
// It promises that a durable write is on the medium when it returns, that every call which may wait for a disk can be bounded
// by a deadline, that memory which the kernel may still touch is never handed out again, and that all implementations behave
// alike: one suite runs against files, loop devices, memory and the simulator.
//
// It does not retry, repair, cache, schedule or interpret: an error is reported once, as the disk gave it, and what a failed
// or timed-out write left on the medium is unknown until it is read back. It knows nothing of stripes and keys.
package blockdev

import (
	"errors"
	"fmt"
	"time"
	"unsafe"
)

// Align is the unit of every offset, length and buffer address, in bytes. Disks with 512-byte sectors and disks with
// 4096-byte sectors both accept it, so an array can move from one to the other.
const Align = 4096

// Errors on which callers branch. Each is returned wrapped, with the device's path in the text.
var (
	// ErrInUse: another process or another opener in this one holds the device.
	ErrInUse = errors.New("device in use")
	// ErrNoDirect: the file system cannot bypass the page cache (O_DIRECT) at an alignment of 4096.
	ErrNoDirect = errors.New("direct I/O not supported")
	// ErrTimeout: the operation was not complete at its deadline. Its outcome is unknown; see Op.Stuck for its memory.
	ErrTimeout = errors.New("i/o deadline exceeded")
	// ErrLate: a read took longer than Op.LateAfter. It goes on: see Op.Stuck and Op.Landed.
	ErrLate = errors.New("read late")
	// ErrClosed: the device, group or arena was closed.
	ErrClosed = errors.New("closed")
	// ErrInvalid: a programmer error: an empty or misaligned buffer or offset, a range outside of the device, no such device.
	ErrInvalid = errors.New("invalid i/o request")
	// ErrReadOnly: a change to a device opened with OpenOptions.ReadOnly.
	ErrReadOnly = errors.New("device opened read-only")
	// ErrTooLarge: a buffer request that the arena can never satisfy.
	ErrTooLarge = errors.New("buffer larger than the arena allows")
	// ErrPowerCut: the simulated machine has lost its power; nothing works until World.Restart.
	ErrPowerCut = errors.New("power cut")
)

// Limits describes a device as the kernel does. Sizes and alignments are bytes.
type Limits struct {
	Size         int64 // usable bytes, rounded down to a multiple of Align
	Tail         int   // bytes beyond Size, fewer than Align, that only an Eraser reaches
	LogicalBlock int   // the smallest unit the disk writes; 0 when unknown
	MemAlign     int   // what direct I/O asks of buffer addresses; never above Align
	OffAlign     int   // what direct I/O asks of offsets and lengths; never above Align
	Rotational   bool
	WriteBack    bool   // a volatile write cache lies before the medium; assumed when unknown
	FUA          bool   // a single write can pass that cache; without it a durable write costs a flush
	Kind         string // "file", "block", "mem", "sim"
	Model        string // of the disk, or of the disk under a file; empty when unknown
	Serial       string
}

// Device is one disk.
//
// Offsets, lengths and the addresses of buffers are multiples of Align, or the call fails with ErrInvalid and does nothing.
// All methods are safe for concurrent use; overlapping concurrent writes leave either's bytes, block by block. After Close
// every call answers ErrClosed. Nothing is retried except interrupted and short transfers. Calls wait for as long as the disk
// does: deadlines are a Group's.
type Device interface {
	// Path is how the device was opened. It names, it does not identify: identity is in the superblock.
	Path() string
	Limits() Limits
	// ReadAt reads len(p) bytes, all or an error.
	ReadAt(p []byte, off int64) error
	// WriteAt writes len(p) bytes, all or an error. When durable, they are on the medium when it returns (RWF_DSYNC: FUA, or a
	// flush where the disk has none); otherwise after the next successful Flush.
	WriteAt(p []byte, off int64, durable bool) error
	// Flush makes all completed writes durable (fdatasync). After an error what reached the medium is unknown, and a repeated
	// Flush that succeeds proves nothing about it.
	Flush() error
	// Discard gives n bytes at off back (hole punch, BLKDISCARD). Their contents are undefined afterwards. A device that
	// cannot discard does nothing and reports no error.
	Discard(off, n int64) error
	// Prepare allocates and zero-fills those of n bytes at off that were never written, so that later durable writes change no
	// file-system metadata (5 times faster here). Written bytes keep their contents. No-op on block devices.
	Prepare(off, n int64) error
	// Reserve allocates n bytes at off, and writes nothing: a later Prepare of them does not fail for want of room. A block device has its
	// room.
	Reserve(off, n int64) error
	// Stats is a snapshot of the counters since opening.
	Stats() Stats
	// Close gives the device back. It does not wait for operations that hang: the last of them to end closes the descriptor.
	Close() error
}

// Op is one read or write of a batch. Buf is best an Arena's; other memory works when it is aligned, and is kept alive.
type Op struct {
	Dev     int  // index into the group
	Write   bool // else read
	Durable bool // on the medium at completion; for writes only
	Off     int64
	Buf     []byte
	// LateAfter bounds how long the caller waits for a read, for one who can get the bytes elsewhere; 0: up to the group's
	// deadline. While maxLate such reads of a device are late, further ones fail with ErrLate at once. Devices that answer
	// in the caller's goroutine ignore it.
	LateAfter time.Duration

	Err error // result
	// Stuck is a result: the deadline or LateAfter passed while the kernel still held Buf. Buf must be neither read, written nor
	// released: hand the batch to Buf.Abandon, which takes the memory back when the kernel lets go of it. But see Settle.
	Stuck bool

	hold *hold // set with Stuck: ends when the kernel lets go of Buf
}

// Group is a set of devices on which batches run.
type Group interface {
	// Run performs ops, in any order and concurrently, and waits once for all. Each op gets its own Err; Run itself fails, with
	// no op started, on ErrInvalid and ErrClosed, and otherwise only when the submission mechanism is broken; then ops
	// whose outcome is unknown carry that error and perhaps Stuck. Safe for concurrent use.
	Run(ops []Op) error
	Device(i int) Device
	Len() int
	// Add makes a device of the same kind part of the group and returns its index. Others may run batches meanwhile.
	Add(d Device) (int, error)
	// Silence tells how long a device has owed an answer, 0 if it owes none, and how long ago it answered last. Devices that answer in
	// the caller's goroutine owe nothing.
	Silence(i int) (silent, since time.Duration)
	// GiveUp ends the operations that a device owes an answer to as if their deadline had passed, within a moment. Those that begin
	// later are not affected.
	GiveUp(i int)
	Kind() string   // "uring", "pool", "mem", "sim"
	Reason() string // why this kind and no better one, for the log
	// Close waits a few seconds for operations in flight, and fails when the kernel holds some longer. It does not close the devices.
	Close() error
}

// GroupOptions configures NewGroup. The zero value is right for production.
type GroupOptions struct {
	Prefer       string        // "uring" or "pool"; empty: the best that works
	ReadTimeout  time.Duration // deadline of a read from when its Run has its turn; 0: DefaultTimeout; negative: none
	WriteTimeout time.Duration // the same for a write
	Workers      int           // pool: concurrent operations per device; 0: DefaultWorkers
	Rings        int           // uring: concurrent Runs; more wait for their turn; 0: DefaultRings
}

// Bounds and defaults of groups.
const (
	DefaultTimeout = 30 * time.Second // a disk's own error recovery takes up to 7 s (SCT ERC) on drives meant for arrays
	DefaultWorkers = 8
	DefaultRings   = 64  // each costs a thread while it waits, and 10 KiB
	MaxGroup       = 256 // devices; an array has up to 64 at a time, and those that were replaced stay until it is closed
	// maxStuck bounds, per device, the operations that the kernel holds past their deadline. At the bound further ones
	// fail at once, so that a hung disk cannot pile up memory, rings and threads.
	maxStuck = 8
	// maxLate bounds, per device, the reads that are late and go on: more would be of no use to a slow disk or its callers.
	maxLate = 8

	// lookEvery bounds how long a Run waits without looking whether GiveUp was called.
	lookEvery = 250 * time.Millisecond

	// closeGrace is how long Group.Close waits for operations in flight.
	closeGrace = 3 * time.Second
)

// checkRange reports whether a transfer of p at off is one that the device of size bytes may be asked for.
func checkRange(path string, p []byte, off, size int64) error {
	if len(p) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Align != 0 {
		return fmt.Errorf("access %s: buffer of %d bytes at %p: %w", path, len(p), unsafe.SliceData(p), ErrInvalid)
	}
	return checkSpan(path, off, int64(len(p)), size)
}

// checkSpan is checkRange for calls without a buffer.
func checkSpan(path string, off, n, size int64) error {
	if off < 0 || n <= 0 || off%Align != 0 || n%Align != 0 || off > size-n {
		return fmt.Errorf("access %s: %d bytes at %d of %d: %w", path, n, off, size, ErrInvalid)
	}
	return nil
}
