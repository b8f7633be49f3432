package blockdev

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/io_uring.h (Linux 6.1), of which x/sys has only the system call numbers.
const (
	ringOffRings = 0          // IORING_OFF_SQ_RING: with FEAT_SINGLE_MMAP both rings
	ringOffSQEs  = 0x10000000 // IORING_OFF_SQES

	featSingleMmap = 1 << 0 // IORING_FEAT_SINGLE_MMAP
	featNoDrop     = 1 << 1 // IORING_FEAT_NODROP: completions are never lost
	featExtArg     = 1 << 8 // IORING_FEAT_EXT_ARG, Linux 5.11: waiting with a timeout

	enterGetEvents = 1 << 0 // IORING_ENTER_GETEVENTS
	enterExtArg    = 1 << 3 // IORING_ENTER_EXT_ARG

	opNop   = 0  // IORING_OP_NOP
	opRead  = 22 // IORING_OP_READ
	opWrite = 23 // IORING_OP_WRITE
)

// sqe is struct io_uring_sqe, 64 bytes.
type sqe struct {
	op       uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	rwFlags  uint32
	userData uint64
	_        [24]byte
}

// cqe is struct io_uring_cqe, 16 bytes.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ringParams is struct io_uring_params, 120 bytes.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cq struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
}

// geteventsArg is struct io_uring_getevents_arg.
type geteventsArg struct {
	sigmask     uint64
	sigmaskSize uint32
	_           uint32
	ts          uint64 // address of a unix.Timespec
}

// queuePair is the bare submission and completion queue of io_uring(7). One goroutine uses it at a time; it may be another
// thread each time.
type queuePair struct {
	fd             int
	entries        uint32
	sqHead, sqTail *uint32
	sqMask         uint32
	sqes           []sqe
	cqHead, cqTail *uint32
	cqMask         uint32
	cqOverflow     *uint32
	cqes           []cqe
	tail           uint32 // of the submission queue, published by enter
	pending        uint32 // entries that the kernel has not taken yet
	arg            geteventsArg
	ts             unix.Timespec
	rings, sqeMem  []byte
}

// newQueuePair sets up a ring of entries, a power of two, and twice as many completions. No setup flags: any goroutine uses the
// ring, which rules out SINGLE_ISSUER and with it DEFER_TASKRUN, and COOP_TASKRUN made no difference when measured by turns.
func newQueuePair(entries uint32) (_ *queuePair, err error) {
	var p ringParams
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", e)
	}
	q := &queuePair{fd: int(fd), entries: p.sqEntries}
	defer func() {
		if err != nil {
			q.close()
		}
	}()
	if want := uint32(featSingleMmap | featNoDrop | featExtArg); p.features&want != want {
		return nil, fmt.Errorf("io_uring features %#x lack some of %#x (Linux 5.11)", p.features, want)
	}
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	const prot, flag = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if q.rings, err = unix.Mmap(q.fd, ringOffRings, int(size), prot, flag); err != nil {
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	if q.sqeMem, err = unix.Mmap(q.fd, ringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flag); err != nil {
		return nil, fmt.Errorf("map io_uring entries: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&q.rings[off])) }
	q.sqHead, q.sqTail, q.sqMask = at(p.sq.head), at(p.sq.tail), *at(p.sq.ringMask)
	q.cqHead, q.cqTail, q.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.ringMask)
	q.cqOverflow = at(p.cq.overflow)
	q.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&q.sqeMem[0])), p.sqEntries)
	q.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&q.rings[p.cq.cqes])), p.cqEntries)
	for i := range p.sqEntries {
		*at(p.sq.array + 4*i) = i // entries are used in ring order
	}
	q.tail = atomic.LoadUint32(q.sqTail)
	return q, nil
}

func (q *queuePair) close() {
	if q.rings != nil {
		unix.Munmap(q.rings)
	}
	if q.sqeMem != nil {
		unix.Munmap(q.sqeMem)
	}
	unix.Close(q.fd)
}

// next is a cleared entry for a request with userData, nil while the kernel has not taken enough of the earlier ones.
func (q *queuePair) next(userData uint64) *sqe {
	if q.tail-atomic.LoadUint32(q.sqHead) > q.sqMask {
		return nil
	}
	s := &q.sqes[q.tail&q.sqMask]
	*s = sqe{userData: userData}
	q.tail++
	q.pending++
	return s
}

// enter submits what is pending and waits for completions, at most for timeout unless that is 0. It may return early, on a
// signal or when the kernel is short of memory: the caller looks at completions and clock and calls again.
func (q *queuePair) enter(wait uint32, timeout time.Duration) error {
	atomic.StoreUint32(q.sqTail, q.tail)
	q.arg = geteventsArg{}
	if timeout > 0 {
		q.ts = unix.NsecToTimespec(int64(timeout))
		q.arg.ts = uint64(uintptr(unsafe.Pointer(&q.ts))) // q is on the heap, which does not move
	}
	n, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(q.fd), uintptr(q.pending), uintptr(wait),
		enterGetEvents|enterExtArg, uintptr(unsafe.Pointer(&q.arg)), unsafe.Sizeof(q.arg))
	switch e {
	case 0:
		q.pending -= uint32(n)
	case unix.EINTR, unix.ETIME:
	case unix.EAGAIN, unix.EBUSY: // no memory for requests just now
		time.Sleep(100 * time.Microsecond)
	default:
		return fmt.Errorf("io_uring_enter: %w", e)
	}
	if atomic.LoadUint32(q.cqOverflow) != 0 {
		return errors.New("io_uring: completion queue overflow")
	}
	return nil
}

// pop takes a completion, if there is one.
func (q *queuePair) pop() (cqe, bool) {
	h := *q.cqHead // only pop writes it
	if h == atomic.LoadUint32(q.cqTail) {
		return cqe{}, false
	}
	c := q.cqes[h&q.cqMask]
	atomic.StoreUint32(q.cqHead, h+1)
	return c, true
}
