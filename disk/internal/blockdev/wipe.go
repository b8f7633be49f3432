package blockdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNotOffered: a device does not know an operation that not all have.
var ErrNotOffered = errors.New("not offered by the device")

// ioctls of linux/fs.h and linux/nvme_ioctl.h that x/sys lacks.
const (
	blkSecDiscard = 0x127d     // _IO(0x12, 125)
	blkZeroOut    = 0x127f     // _IO(0x12, 127)
	nvmeAdminCmd  = 0xc0484e41 // _IOWR('N', 0x41, struct nvme_admin_cmd)
)

// Eraser is a Device whose medium can be wiped by itself, more thoroughly than by overwriting what it shows.
type Eraser interface {
	// SecureDiscard destroys n bytes at off and all copies that the device keeps of them, or fails with ErrNotOffered. A range that ends at
	// Limits.Size takes the tail with it.
	SecureDiscard(off, n int64) error
	// Zero makes n bytes at off read as zeros by writing them, without giving the space back, or fails with ErrNotOffered.
	Zero(off, n int64) error
	// Sanitize has an NVMe disk destroy everything it holds, spare areas included, and returns the name of what it did. It fails with
	// ErrNotOffered, having done nothing, when the disk cannot do that, or holds more than one namespace. progress gets the share done.
	// An end of ctx does not stop the disk.
	Sanitize(ctx context.Context, progress func(float64)) (string, error)
	// CanSanitize returns the name of what Sanitize would do, or why it would not.
	CanSanitize() (string, error)
	// ReadTail reads the Limits.Tail bytes at Limits.Size from the medium. p is a whole block all the same, as for Device.ReadAt; what is
	// behind the tail in it is undefined.
	ReadTail(p []byte) error
	// WriteTail writes the tail from the beginning of p, and makes it durable.
	WriteTail(p []byte) error
}

func (d *fileDevice) SecureDiscard(off, n int64) error {
	tail := 0
	if off+n == d.limits.Size {
		tail = d.limits.Tail
	}
	return d.rangeIoctl("secure discard", blkSecDiscard, off, n, tail)
}
func (d *fileDevice) Zero(off, n int64) error { return d.rangeIoctl("zero", blkZeroOut, off, n, 0) }

// rangeIoctl is an ioctl of a block device about a range of bytes, and as many as tail behind them.
func (d *fileDevice) rangeIoctl(verb string, req uintptr, off, n int64, tail int) error {
	if !d.block {
		return fmt.Errorf("%s %s: a file: %w", verb, d.path, ErrNotOffered)
	}
	refused := false
	err := d.change(verb, off, n, func() error {
		span := [2]uint64{uint64(off), uint64(n) + uint64(tail)}
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), req, uintptr(unsafe.Pointer(&span)))
		if e == 0 {
			return nil
		}
		refused = e == unix.EOPNOTSUPP || e == unix.ENOTTY
		return e
	})
	if refused {
		return fmt.Errorf("%s %s: %w", verb, d.path, ErrNotOffered)
	}
	return err
}

// ReadTail asks for a whole block: direct I/O stops at the end of what it reads, wherever that is.
func (d *fileDevice) ReadTail(p []byte) error {
	return d.tail("read", p, func() (int, error) { return unix.Pread(d.fd, p, d.limits.Size) })
}

// WriteTail takes the page cache for a file, which may end anywhere. The tail of a block device is one of logical blocks.
func (d *fileDevice) WriteTail(p []byte) error {
	if d.readOnly {
		return fmt.Errorf("write the tail of %s: %w", d.path, ErrReadOnly)
	}
	return d.tail("write", p, func() (n int, err error) {
		fd := d.fd
		if !d.block {
			fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.fd), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return 0, err
			}
			defer unix.Close(fd) // synced before
		}
		if n, err = unix.Pwrite(fd, p[:d.limits.Tail], d.limits.Size); err != nil {
			return n, err
		}
		return n, unix.Fdatasync(fd)
	})
}

// tail runs a transfer of the tail under the usual checks.
func (d *fileDevice) tail(verb string, p []byte, f func() (int, error)) error {
	if d.limits.Tail == 0 || len(p) != Align {
		return fmt.Errorf("%s the tail of %s: %d bytes of %d: %w", verb, d.path, len(p), d.limits.Tail, ErrInvalid)
	}
	if err := d.use(); err != nil {
		return err
	}
	defer d.unuse()
	n, err := ignoringEINTR(f)
	if err == nil && n < d.limits.Tail {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s the tail of %s: %w", verb, d.path, err)
	}
	return nil
}

func (d *fileDevice) CanSanitize() (string, error) {
	action, err := sanitizeAction(d.nvme)
	if err != nil {
		return "", fmt.Errorf("sanitize %s: %w", d.path, err)
	}
	return action.String(), nil
}

func (d *fileDevice) Sanitize(ctx context.Context, progress func(float64)) (string, error) {
	if d.readOnly {
		return "", fmt.Errorf("sanitize %s: %w", d.path, ErrReadOnly)
	}
	action, err := sanitize(ctx, d.nvme, sanitizePoll, progress)
	if err != nil {
		return "", fmt.Errorf("sanitize %s: %w", d.path, err)
	}
	return action.String(), nil
}

// nvmeCommand is struct nvme_admin_cmd.
type nvmeCommand struct {
	opcode, flags         uint8
	_                     uint16
	nsid, cdw2, cdw3      uint32
	metadata, addr        uint64
	metadataLen, dataLen  uint32
	cdw10, cdw11, cdw12   uint32
	cdw13, cdw14, cdw15   uint32
	timeoutMS, completion uint32
}

// nvmeAdmin has a controller carry out an admin command, and fills data with what it answers.
type nvmeAdmin func(cmd *nvmeCommand, data []byte) error

func (d *fileDevice) nvme(cmd *nvmeCommand, data []byte) error {
	if !d.block {
		return ErrNotOffered
	}
	if err := d.use(); err != nil {
		return err
	}
	defer d.unuse()
	if len(data) > 0 {
		var pin runtime.Pinner
		defer pin.Unpin()
		pin.Pin(&data[0])
		cmd.addr, cmd.dataLen = uint64(uintptr(unsafe.Pointer(&data[0]))), uint32(len(data))
	}
	status, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), nvmeAdminCmd, uintptr(unsafe.Pointer(cmd)))
	switch {
	case e == unix.ENOTTY || e == unix.EINVAL || e == unix.EOPNOTSUPP:
		return ErrNotOffered // not an NVMe disk
	case e != 0:
		return e
	case status&nvmeStatus == nvmeInvalidOpcode || status&nvmeStatus == nvmeInvalidField:
		return ErrNotOffered
	case status != 0:
		return fmt.Errorf("the controller answers with status %#x", status)
	}
	return nil
}

// NVM Express Base Specification 2.0: opcodes (figure 138), Identify (5.17), Get Log Page (5.16.1.25), Sanitize (5.24).
const (
	nvmeGetLog         = 0x02
	nvmeIdentify       = 0x06
	nvmeSanitize       = 0x84
	identifyController = 1
	identifyNamespaces = 2
	sanicapOffset      = 328
	logSanitize        = 0x81
	nvmeStatus         = 0x7ff // type and code of a status (3.3.3.2.1)
	nvmeInvalidOpcode  = 1
	nvmeInvalidField   = 2
)

// sanitizing is a sanitize action (SANACT).
type sanitizing uint32

const (
	sanitizeBlockErase  sanitizing = 2
	sanitizeCryptoErase sanitizing = 4
)

func (s sanitizing) String() string {
	if s == sanitizeCryptoErase {
		return "NVMe sanitize, crypto erase"
	}
	return "NVMe sanitize, block erase"
}

// sanitizeAction chooses what a disk can do. A sanitize concerns all namespaces, so there must be one alone.
func sanitizeAction(admin nvmeAdmin) (sanitizing, error) {
	b := make([]byte, 4096)
	if err := admin(&nvmeCommand{opcode: nvmeIdentify, cdw10: identifyController}, b); err != nil {
		return 0, err
	}
	caps := binary.LittleEndian.Uint32(b[sanicapOffset:])
	if err := admin(&nvmeCommand{opcode: nvmeIdentify, cdw10: identifyNamespaces}, b); err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint32(b[4:]) != 0 {
		return 0, fmt.Errorf("the disk has other namespaces, which would be erased too: %w", ErrNotOffered)
	}
	switch {
	case caps&2 != 0:
		return sanitizeBlockErase, nil
	case caps&1 != 0:
		return sanitizeCryptoErase, nil
	}
	return 0, ErrNotOffered
}

// sanitizePoll is how often a disk is asked how far it is.
const sanitizePoll = 2 * time.Second

// sanitize starts the action and waits until it is done.
func sanitize(ctx context.Context, admin nvmeAdmin, poll time.Duration, progress func(float64)) (sanitizing, error) {
	action, err := sanitizeAction(admin)
	if err != nil {
		return 0, err
	}
	if err := admin(&nvmeCommand{opcode: nvmeSanitize, cdw10: uint32(action)}, nil); err != nil {
		return 0, err
	}
	b := make([]byte, 512)
	for {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the disk goes on by itself: %w", ctx.Err())
		case <-time.After(poll):
		}
		if err := admin(&nvmeCommand{opcode: nvmeGetLog, nsid: ^uint32(0), cdw10: logSanitize | uint32(len(b)/4-1)<<16}, b); err != nil {
			return 0, fmt.Errorf("begun, and how far it is cannot be told: %v", err) // never ErrNotOffered: something was done
		}
		switch status := binary.LittleEndian.Uint16(b[2:]) & 7; status {
		case 1, 4:
			progress(1)
			return action, nil
		case 2:
			progress(float64(binary.LittleEndian.Uint16(b)) / 65536)
		default:
			return 0, fmt.Errorf("the disk says that it failed (status %d)", status)
		}
	}
}
