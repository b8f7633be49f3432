package disk

import "sync"

// replayDepth is how many stripes may be decoded and wait for the state.
const replayDepth = 8

// replay hands the records of recovered stripes to the state, in order, while the next stripes are read.
type replay struct {
	a     *Array
	queue chan replayed
	wg    sync.WaitGroup

	mu  sync.Mutex // guards err
	err error      // the first; nothing is applied after it
}

type replayed struct {
	pos     Position
	entries []Entry
}

func newReplay(a *Array) *replay {
	r := &replay{a: a}
	if a.opt.manual == nil {
		r.queue = make(chan replayed, replayDepth)
		r.wg.Go(func() {
			for s := range r.queue {
				r.apply(s)
			}
		})
	}
	return r
}

func (r *replay) apply(s replayed) {
	if r.failed() != nil {
		return
	}
	err := r.a.opt.State.Apply(s.pos, s.entries)
	if err == nil {
		r.a.stats.applied.Store(s.pos.Stripe)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *replay) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// add takes the next stripe. An error may be that of an earlier one.
func (r *replay) add(pos Position, entries []Entry) error {
	if s := (replayed{pos, entries}); r.queue != nil {
		r.queue <- s
	} else {
		r.apply(s)
	}
	return r.failed()
}

// finish waits until all is applied.
func (r *replay) finish() error {
	if r.queue != nil {
		close(r.queue)
		r.wg.Wait()
	}
	return r.failed()
}
