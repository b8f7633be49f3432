package blockdev

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size and alignment of the memory blocks that the package maps.
const hugePage = 2 << 20

// mapHuge maps n bytes of zeros, n a multiple of Align, aligned to a huge page and left out of core dumps. The memory is
// outside of the Go heap: the collector neither scans nor moves it, so the kernel may hold its address.
func mapHuge(n int) ([]byte, error) {
	// Mapped with slack, whose unaligned ends the kernel gets back.
	whole := uintptr(n + hugePage)
	base, err := unix.MmapPtr(-1, 0, nil, whole, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	head := -uintptr(base) & (hugePage - 1)
	mem := unsafe.Slice((*byte)(unsafe.Add(base, head)), n)
	if head > 0 {
		err = unix.MunmapPtr(base, head)
	}
	if tail := hugePage - head; err == nil && tail > 0 {
		err = unix.MunmapPtr(unsafe.Add(base, head+uintptr(n)), tail)
	}
	if err == nil {
		err = unix.Madvise(mem, unix.MADV_DONTDUMP)
	}
	if err != nil {
		unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(n))
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	// Advice only: a kernel without transparent huge pages refuses it, and is slower.
	unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return mem, nil
}

// unmap gives memory of mapHuge back.
func unmap(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}
