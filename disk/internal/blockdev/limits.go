package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileLimits asks the kernel about an open block device or regular file.
func fileLimits(fd int, sys sysfs) (Limits, error) {
	var stx unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_DIOALIGN
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, mask, &stx); err != nil {
		return Limits{}, fmt.Errorf("statx: %w", err)
	}
	l := Limits{Kind: "file", Size: int64(stx.Size)}
	major, minor := stx.Dev_major, stx.Dev_minor // of the disk below the file system
	if stx.Mode&unix.S_IFMT == unix.S_IFBLK {
		l.Kind = "block"
		major, minor = stx.Rdev_major, stx.Rdev_minor
		size, err := blockSize(fd)
		if err != nil {
			return Limits{}, err
		}
		l.Size = size
	}
	l.Tail = int(l.Size % Align)
	l.Size -= int64(l.Tail)
	if l.Size == 0 {
		return Limits{}, fmt.Errorf("size below %d bytes", Align)
	}
	sys.describe(&l, major, minor)
	// STATX_DIOALIGN came with Linux 6.1. Before it the disk's own block is the rule, and the first read would tell.
	l.MemAlign, l.OffAlign = 512, max(l.LogicalBlock, 512)
	if stx.Mask&unix.STATX_DIOALIGN != 0 {
		l.MemAlign, l.OffAlign = int(stx.Dio_mem_align), int(stx.Dio_offset_align)
	}
	// Zero is statx's way to say that this file cannot do direct I/O at all.
	if l.MemAlign == 0 || l.OffAlign == 0 || Align%l.MemAlign != 0 || Align%l.OffAlign != 0 {
		return Limits{}, fmt.Errorf("%w: alignment of memory %d, of offsets %d", ErrNoDirect, l.MemAlign, l.OffAlign)
	}
	return l, nil
}

// blockSize is the size of an open block device in bytes.
func blockSize(fd int) (int64, error) {
	var size uint64
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if e != 0 {
		return 0, fmt.Errorf("ioctl BLKGETSIZE64: %w", e)
	}
	return int64(size), nil
}

// sysfs reads what the kernel tells about disks under root, "/sys" on a live system.
type sysfs struct{ root string }

// describe fills in what /sys/dev/block/MAJOR:MINOR knows (Documentation/ABI/stable/sysfs-block). Whatever is missing, as for
// file systems without one disk below, stays unknown; an unknown cache counts as a volatile one.
func (s sysfs) describe(l *Limits, major, minor uint32) {
	l.WriteBack = true
	dir, err := filepath.EvalSymlinks(filepath.Join(s.root, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir) // a partition's queue is its disk's
	}
	if v := readAttr(dir, "queue/write_cache"); v != "" {
		l.WriteBack = v != "write through"
	}
	l.FUA = readAttr(dir, "queue/fua") == "1"
	l.Rotational = readAttr(dir, "queue/rotational") == "1"
	if n, err := strconv.Atoi(readAttr(dir, "queue/logical_block_size")); err == nil {
		l.LogicalBlock = n
	}
	l.Model = readAttr(dir, "device/model")
	// NVMe and SCSI keep the serial number beside the model, virtio beside the queue.
	if l.Serial = readAttr(dir, "device/serial"); l.Serial == "" {
		l.Serial = readAttr(dir, "serial")
	}
}

// maxAttr bounds what is believed of an attribute; serial numbers come from the disk.
const maxAttr = 256

// readAttr is the trimmed text of an attribute file, empty when there is none.
func readAttr(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	v := strings.TrimSpace(string(b[:min(len(b), maxAttr)]))
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, v)
}
