package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenOptions configures OpenFile.
type OpenOptions struct {
	ReadOnly bool          // for inspection: every change is refused with ErrReadOnly. The device is still locked against other openers.
	Wait     time.Duration // how long to wait for another opener to let go, before ErrInUse
}

// claimInterval is how often a device that is in use is tried again.
const claimInterval = 20 * time.Millisecond

// fileDevice is a Device on a block device or a regular file.
type fileDevice struct {
	path     string
	fd       int
	block    bool
	readOnly bool
	limits   Limits
	refs     refs
	counters counters
}

// OpenFile opens the block device or preallocated regular file at path, past the page cache and for this opener alone: a
// block device by O_EXCL, which also excludes mounts, a file by flock. It fails with ErrInUse when another has it and with
// ErrNoDirect when the file system cannot do direct I/O.
//
// The kernel ends the ring of a process that was killed some time after it reports the death, and until then the ring's transfers
// hold the device. Who opens what such a process had, as a service that is started again at once does, gives opt.Wait.
func OpenFile(path string, opt OpenOptions) (Device, error) {
	deadline := time.Now().Add(opt.Wait)
	for {
		d, err := openFile(path, opt, sysfs{root: "/sys"})
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, ErrInUse) || !time.Now().Before(deadline) {
			return nil, fmt.Errorf("open device %s: %w", path, err)
		}
		time.Sleep(claimInterval)
	}
}

func openFile(path string, opt OpenOptions, sys sysfs) (*fileDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	mode := unix.O_RDWR
	if opt.ReadOnly {
		mode = unix.O_RDONLY
	}
	flags := mode | unix.O_DIRECT | unix.O_CLOEXEC
	block := st.Mode&unix.S_IFMT == unix.S_IFBLK
	switch {
	case block:
		flags |= unix.O_EXCL
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("neither a block device nor a regular file")
	}
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, flags, 0) })
	switch {
	case block && err == unix.EBUSY:
		return nil, fmt.Errorf("%w: mounted, or opened exclusively by another process", ErrInUse)
	case err == unix.EINVAL:
		return nil, fmt.Errorf("%w: %w", ErrNoDirect, err)
	case err != nil:
		return nil, err
	}
	d := &fileDevice{path: path, fd: fd, block: block, readOnly: opt.ReadOnly}
	d.refs.init()
	if err := d.claim(sys); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// claim locks the open file and asks for its limits.
func (d *fileDevice) claim(sys sysfs) error {
	if !d.block {
		err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK {
			return fmt.Errorf("%w: another process holds its lock", ErrInUse)
		}
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
	}
	var err error
	d.limits, err = fileLimits(d.fd, sys)
	return err
}

// CreateFile makes a regular file of size bytes at path, its space reserved, readable by its owner only, and its name durable.
// It fails when path exists or the space is not there, and then leaves nothing. Where the file system cannot reserve, zeros
// are written instead: slow, but a later write cannot run out of space.
func CreateFile(path string, size int64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create disk file %s: %w", path, err)
		}
	}()
	if size <= 0 || size%Align != 0 {
		return fmt.Errorf("size %d: %w", size, ErrInvalid)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	_, err = ignoringEINTR(func() (int, error) { return 0, unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		_, err = io.CopyN(f, zeroReader{}, size)
	}
	if err != nil {
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (d *fileDevice) Path() string    { return d.path }
func (d *fileDevice) Limits() Limits  { return d.limits }
func (d *fileDevice) Stats() Stats    { return d.counters.snapshot() }
func (d *fileDevice) stat() *counters { return &d.counters }

func (d *fileDevice) ReadAt(p []byte, off int64) error {
	return d.transfer(p, off, false, false)
}

func (d *fileDevice) WriteAt(p []byte, off int64, durable bool) error {
	return d.transfer(p, off, true, durable)
}

func (d *fileDevice) transfer(p []byte, off int64, write, durable bool) error {
	if err := d.check(p, off, write); err != nil {
		return err
	}
	if err := d.use(); err != nil {
		return err
	}
	defer d.unuse()
	start := time.Now()
	err := d.move(p, off, write, durable)
	d.counters.done(write, durable, len(p), time.Since(start), err)
	return err
}

// check finds programmer errors in a transfer.
func (d *fileDevice) check(p []byte, off int64, write bool) error {
	if write && d.readOnly {
		return fmt.Errorf("write %s: %w", d.path, ErrReadOnly)
	}
	return checkRange(d.path, p, off, d.limits.Size)
}

// use keeps the descriptor open until unuse.
func (d *fileDevice) use() error {
	if !d.refs.acquire() {
		return fmt.Errorf("access %s: %w", d.path, ErrClosed)
	}
	return nil
}

func (d *fileDevice) unuse() {
	if d.refs.release() {
		// The error could tell only of delayed write-back, which direct I/O has none of.
		unix.Close(d.fd)
	}
}

// move transfers all of p, going on after interrupted and short system calls.
func (d *fileDevice) move(p []byte, off int64, write, durable bool) error {
	whole := len(p)
	for len(p) > 0 {
		n, errno := positioned(d.fd, p, off, write, durable)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return d.fault(write, off, whole, errno)
		}
		if n = wholeBlocks(n, len(p)); n == 0 {
			return d.fault(write, off, whole, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// wholeBlocks is how much of a transfer of want bytes that moved n may count as done, so that its rest stays aligned.
func wholeBlocks(n, want int) int {
	if n < want {
		n -= n % Align
	}
	return n
}

// fault words the failure of a transfer of whole bytes that broke off at off.
func (d *fileDevice) fault(write bool, off int64, whole int, err error) error {
	verb := "read"
	if write {
		verb = "write"
	}
	return fmt.Errorf("%s %s: %d bytes, at %d: %w", verb, d.path, whole, off, err)
}

// positioned is one pread or pwritev2. The raw calls spare the allocations of x/sys's vectors.
func positioned(fd int, p []byte, off int64, write, durable bool) (int, unix.Errno) {
	base := unsafe.SliceData(p)
	if !write {
		n, _, e := unix.Syscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(base)), uintptr(len(p)), uintptr(off), 0, 0)
		return int(n), e
	}
	if !durable {
		n, _, e := unix.Syscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(base)), uintptr(len(p)), uintptr(off), 0, 0)
		return int(n), e
	}
	iov := unix.Iovec{Base: base, Len: uint64(len(p))}
	n, _, e := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_DSYNC)
	return int(n), e
}

func (d *fileDevice) Flush() error {
	if err := d.use(); err != nil {
		return err
	}
	defer d.unuse()
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fdatasync(d.fd) })
	d.counters.flushed(err)
	if err != nil {
		return fmt.Errorf("flush %s: %w", d.path, err)
	}
	return nil
}

func (d *fileDevice) Discard(off, n int64) error {
	return d.change("discard", off, n, func() error {
		if d.block {
			span := [2]uint64{uint64(off), uint64(n)}
			_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
			if e == 0 {
				return nil
			}
			return e
		}
		return unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// change runs a space operation under the usual checks. A device that does not know the operation has done its best.
func (d *fileDevice) change(verb string, off, n int64, f func() error) error {
	if d.readOnly {
		return fmt.Errorf("%s %s: %w", verb, d.path, ErrReadOnly)
	}
	if err := checkSpan(d.path, off, n, d.limits.Size); err != nil {
		return err
	}
	if err := d.use(); err != nil {
		return err
	}
	defer d.unuse()
	_, err := ignoringEINTR(func() (int, error) { return 0, f() })
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %d bytes at %d: %w", verb, d.path, n, off, err)
	}
	return nil
}

// prepareChunk is the size of the writes that fill a file with zeros.
const prepareChunk = 1 << 20

func (d *fileDevice) Reserve(off, n int64) error {
	if d.block {
		return nil
	}
	return d.change("reserve", off, n, func() error { return unix.Fallocate(d.fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

func (d *fileDevice) Prepare(off, n int64) error {
	if d.block {
		return nil
	}
	// Punched holes are allocated first, so that a full file system shows here and not at a write that must not fail.
	if err := d.Reserve(off, n); err != nil {
		return err
	}
	if err := d.fillHoles(off, off+n); err != nil {
		return fmt.Errorf("prepare %s: %w", d.path, err)
	}
	return nil
}

// fillHoles writes zeros wherever [off, end) was never written, and makes them durable. Unwritten extents count as holes to
// lseek; a file system that cannot tell reports none, and nothing is filled: slower writes later, but no harm.
func (d *fileDevice) fillHoles(off, end int64) error {
	if err := d.use(); err != nil {
		return err
	}
	defer d.unuse()
	zero, err := mapHuge(prepareChunk)
	if err != nil {
		return err
	}
	defer unmap(zero)
	wrote := false
	for off < end {
		hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek hole at %d: %w", off, err)
		}
		if hole >= end {
			break
		}
		data, err := unix.Seek(d.fd, hole, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = end
		} else if err != nil {
			return fmt.Errorf("seek data at %d: %w", hole, err)
		}
		// A file system whose blocks are larger or smaller than ours may report odd edges; only whole holes are filled.
		off = (hole + Align - 1) &^ (Align - 1)
		stop := min(data, end) &^ (Align - 1)
		for ; off < stop; off += prepareChunk {
			if err := d.move(zero[:min(prepareChunk, stop-off)], off, true, false); err != nil {
				return err
			}
			wrote = true
		}
		off = max(stop, (data+Align-1)&^(Align-1))
	}
	if !wrote {
		return nil
	}
	_, err = ignoringEINTR(func() (int, error) { return 0, unix.Fdatasync(d.fd) })
	return err
}

func (d *fileDevice) Close() error {
	first, last := d.refs.close()
	if !first {
		return fmt.Errorf("close %s: %w", d.path, ErrClosed)
	}
	if last {
		if err := unix.Close(d.fd); err != nil {
			return fmt.Errorf("close %s: %w", d.path, err)
		}
	}
	return nil
}

// ignoringEINTR repeats f while a signal interrupts it; the Go runtime sends signals to preempt.
func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
