package blockdev

import (
	"sync"
	"sync/atomic"
)

// hold is the kernel's claim on the memory of an operation that missed its deadline.
type hold struct {
	late bool // of a read that was only later than its caller wanted to wait

	mu       sync.Mutex
	released bool     // guarded by mu
	err      error    // of the operation, once released; guarded by mu
	notify   []func() // guarded by mu; called once, on release
}

// release ends the claim with the operation's result. It may be called once.
func (h *hold) release(err error) {
	h.mu.Lock()
	h.released, h.err = true, err
	fns := h.notify
	h.notify = nil
	h.mu.Unlock()
	for _, f := range fns {
		f()
	}
}

// whenReleased calls f once the claim has ended, which may be now.
func (h *hold) whenReleased(f func()) {
	h.mu.Lock()
	if !h.released {
		h.notify = append(h.notify, f)
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()
	f()
}

// Landed calls f once the kernel has let go of a Stuck operation, which may be now, or never. f must not block.
func (op *Op) Landed(f func()) {
	if op.hold != nil {
		op.hold.whenReleased(f)
	}
}

// Settle takes the result of a Stuck operation that has ended after all: Err is its own then, and the buffer the caller's
// again. It reports whether the operation has ended.
func (op *Op) Settle() bool {
	h := op.hold
	if !op.Stuck || h == nil {
		return !op.Stuck
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		op.Err, op.Stuck, op.hold = h.err, false, nil
	}
	return h.released
}

// refs lets a resource be closed while calls may be using it: the last user closes it, so that a descriptor number is
// never reused under a running system call.
type refs struct {
	n      atomic.Int64 // users, plus one until close
	closed atomic.Bool
}

func (r *refs) init() { r.n.Store(1) }

// acquire adds a user; false after close.
func (r *refs) acquire() bool {
	for !r.closed.Load() {
		n := r.n.Load()
		if n == 0 {
			return false
		}
		if r.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// release drops a user and reports whether it was the last of a closed resource.
func (r *refs) release() bool { return r.n.Add(-1) == 0 }

// close refuses further users. first is false when it was closed before; last is as for release.
func (r *refs) close() (first, last bool) {
	if r.closed.Swap(true) {
		return false, false
	}
	return true, r.release()
}
