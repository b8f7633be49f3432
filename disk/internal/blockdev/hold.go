package blockdev

import (
	"sync"
	"sync/atomic"
)

// hold is the kernel's claim on the memory of an operation that missed its deadline.
type hold struct {
	mu       sync.Mutex
	released bool     // guarded by mu
	notify   []func() // guarded by mu; called once, on release
}

// release ends the claim. It may be called once.
func (h *hold) release() {
	h.mu.Lock()
	h.released = true
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
