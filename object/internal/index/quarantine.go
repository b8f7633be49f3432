package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"coffer/object/internal/sealfs"
)

// quarantine takes the index out of service on the first fault. It is Pebble's Logger.
//
// Pebble expects a fatal error to end the process: it calls Logger.Fatalf and must not be returned to, since its state in memory is no
// longer sound; it retries failed background work for ever; and it panics when a directory cannot be synced. An index is not worth
// the process. So a write that failed in the file system never returns to Pebble: to it the disk hangs, which leaves its state
// sound for the reads under way, and all later writes hang as well. Failures of other kinds end the goroutine that found them
// (runtime.Goexit, which releases Pebble's locks by its deferred calls). Neither may happen to a goroutine of the caller: calls
// that write run through guard. A database that stopped in this way cannot be closed and is abandoned.
type quarantine struct {
	log    *slog.Logger
	freeze func()       // stops writes to the files
	mark   func() error // notes durably that the index is corrupt

	once  sync.Once
	err   error         // why; set before dead is closed
	dead  chan struct{} // closed by the first fault
	end   sync.Once
	fatal chan struct{}  // closed when a goroutine of Pebble was stopped: it can no longer be closed
	calls sync.WaitGroup // those of guard under way
}

func (q *quarantine) init(log *slog.Logger, freeze func(), mark func() error) {
	q.log, q.freeze, q.mark = log, freeze, mark
	q.dead, q.fatal = make(chan struct{}), make(chan struct{})
}

// Healthy returns nil while the index works, and an error wrapping ErrQuarantined and the cause after a fault. The cause may be
// ErrCorrupt.
func (q *quarantine) Healthy() error {
	select {
	case <-q.dead:
		return q.err
	default:
		return nil
	}
}

// Failed is closed when the index fails: then Healthy says why.
func (q *quarantine) Failed() <-chan struct{} { return q.dead }

// Fail takes the index out of service for what its caller found in a record. Further calls do nothing.
func (q *quarantine) Fail(err error) { q.fail(err) }

// fail takes the index out of service. Pebble goes on and can be closed. That the index is corrupt is noted before anyone is told: the
// process may end at any moment, and the next one would believe the index again until it met the same damage.
func (q *quarantine) fail(err error) {
	q.once.Do(func() {
		q.err = fmt.Errorf("%w: %w", ErrQuarantined, classify(err))
		q.log.Error("index quarantined", "error", err)
		if errors.Is(q.err, ErrCorrupt) {
			if err := q.mark(); err != nil {
				q.log.Error("index not marked as corrupt: the next start finds it out anew", "error", err)
			}
		}
		close(q.dead)
	})
}

// stop takes the index out of service and keeps Pebble from touching its files any more.
func (q *quarantine) stop(err error) {
	q.fail(err)
	q.freeze()
	q.end.Do(func() { close(q.fatal) })
}

// endCaller stops Pebble and ends the calling goroutine, which is one of Pebble's or of guard.
func (q *quarantine) endCaller(err error) {
	q.stop(err)
	runtime.Goexit()
}

// hangCaller stops Pebble and blocks the calling goroutine for ever. It is called for file operations, which Pebble makes without its
// lock on the database.
func (q *quarantine) hangCaller(err error) {
	q.stop(err)
	select {}
}

// readFailed takes the index out of service if a read found damage, and returns the error for the caller.
func (q *quarantine) readFailed(err error) error {
	err = classify(err)
	if errors.Is(err, ErrCorrupt) {
		q.fail(err)
	}
	return fmt.Errorf("read index: %w", err)
}

// guard runs a call that may meet a fatal error or wait for background work, in a goroutine that may end for it. It returns
// early when the index fails meanwhile; f must not use memory that the caller uses again after an error.
func (q *quarantine) guard(f func() error) error {
	if err := q.Healthy(); err != nil {
		return err
	}
	done := make(chan error, 1)
	q.calls.Go(func() { done <- f() })
	select {
	case err := <-done:
		if herr := q.Healthy(); herr != nil {
			return herr
		}
		return err
	case <-q.dead:
		return q.err
	}
}

// classify adds ErrCorrupt to an error that Pebble or the file system marks as corruption.
func classify(err error) error {
	if pebble.IsCorruptionError(err) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// events makes Pebble's faults known. A failed flush or compaction is not retried: the outcome of its writes is unknown.
func (q *quarantine) events() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: q.endCaller,
		DataCorruption:  func(info pebble.DataCorruptionInfo) { q.fail(info.Details) },
	}
}

// Infof implements pebble.Logger. Pebble's progress messages are of no use to an operator and may quote keys.
func (q *quarantine) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (q *quarantine) Errorf(format string, args ...any) {
	if q.log.Enabled(context.Background(), slog.LevelError) {
		q.log.Error("index database", "error", messageOf(format, args))
	}
}

// Fatalf implements pebble.Logger. It does not return.
func (q *quarantine) Fatalf(format string, args ...any) { q.endCaller(messageOf(format, args)) }

// messageOf makes an error of a log message: its format and those arguments that are errors. The others may be keys, which
// hold object names and do not belong into logs.
func messageOf(format string, args []any) error {
	err := errors.New(format)
	for _, a := range args {
		if e, ok := a.(error); ok {
			err = fmt.Errorf("%w: %w", err, e)
		}
	}
	return err
}

// guardFS completes the sealing file system by what a quarantine needs: no panic on a failed sync of a directory, and a lock that can
// be given up when Pebble cannot be closed any more.
type guardFS struct {
	*sealfs.FS
	q *quarantine

	mu   sync.Mutex
	lock io.Closer
}

// OpenDir implements vfs.FS.
func (g *guardFS) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return guardDir{f, g.q}, nil
}

type guardDir struct {
	vfs.File
	q *quarantine
}

// Sync implements vfs.File. Pebble would panic on an error in the middle of moving a marker (atomicfs.Marker.Move).
func (d guardDir) Sync() error {
	if err := d.File.Sync(); err != nil {
		d.q.hangCaller(fmt.Errorf("sync index directory: %w", err))
	}
	return nil
}

// Lock implements vfs.FS.
func (g *guardFS) Lock(name string) (io.Closer, error) {
	c, err := g.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lock = c
	return closerFunc(g.unlock), nil
}

// unlock gives up the lock if it is held.
func (g *guardFS) unlock() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lock == nil {
		return nil
	}
	c := g.lock
	g.lock = nil
	return c.Close()
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
