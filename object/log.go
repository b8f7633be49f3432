package object

import (
	"context"

	"coffer/disk"
)

// Log is what the store asks of the disk engine. Its promises are those of disk.Array, whose types it uses: Append and
// Commit return when everything is durable, Append when the record has been applied as well. OnArray makes one of an Array;
// tests have one in memory. It is safe for concurrent use.
type Log interface {
	Append(ctx context.Context, r disk.Record) (seq uint64, err error)
	MaxStripeSegments() int
	NewStripe(ctx context.Context, segments int) (StripeWriter, error)
	ReadStripe(ctx context.Context, s disk.Stripe, first, n int) (View, error)
	ReadPacked(ctx context.Context, l disk.Loc) (View, error)
	// Pin keeps a band from being freed until Unpin; it is false when the band is gone. A stripe that was committed comes with its
	// band pinned once.
	Pin(band uint64) bool
	Unpin(band uint64)
	// Admit waits for room for new data. It comes before any lock or pin that compaction might wait for.
	Admit(ctx context.Context) error
	// AdmitEssential is Admit for records that give space back: it never fails for want of room.
	AdmitEssential(ctx context.Context) error

	// The rest is for compaction.

	Bands() []disk.Band
	// Pinned may rise again for a closed band, but not by a stripe that no record names yet.
	Pinned(band uint64) bool
	CanFree(band uint64) bool
	ExtentSpace() int64
	EachRecord(ctx context.Context, band uint64, fn func(e disk.Entry, data []byte) error) (disk.StripeRange, error)
	ReadVerified(ctx context.Context, s disk.Stripe) (View, error)
	NewReservedStripe(ctx context.Context, segments int) (StripeWriter, error)
	Free(ctx context.Context, band uint64) error
	Horizon() uint64
	Pressure() <-chan struct{}
	Relieve(try func() bool)
	Unattended()
	SetDear(dear bool)
	// Yield waits until background work may move n more bytes.
	Yield(ctx context.Context, class disk.Class, n int) error
	// Waiting counts the callers in Admit.
	Waiting() int
	// Missing is told of a band that is needed and not there.
	Missing(band uint64)
}

// StripeWriter is a bulk stripe being filled: see disk.StripeWriter.
type StripeWriter interface {
	Slot(i int) []byte
	Sealed(n int) error
	Commit(ctx context.Context) (disk.Stripe, error)
	Discard()
}

// View is memory that was read: see disk.View.
type View interface {
	Bytes(i int) []byte
	Repair(ctx context.Context, i int, check func(p []byte) error) error
	Release()
}

// OnArray returns the array as a Log.
func OnArray(a *disk.Array) Log { return arrayLog{a} }

// arrayLog returns the array's concrete types as interfaces, without ever hiding a nil pointer in one.
type arrayLog struct{ *disk.Array }

func (l arrayLog) NewStripe(ctx context.Context, segments int) (StripeWriter, error) {
	w, err := l.Array.NewStripe(ctx, segments)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (l arrayLog) NewReservedStripe(ctx context.Context, segments int) (StripeWriter, error) {
	w, err := l.Array.NewReservedStripe(ctx, segments)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (l arrayLog) ReadVerified(ctx context.Context, s disk.Stripe) (View, error) {
	v, err := l.Array.ReadVerified(ctx, s)
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (l arrayLog) ReadStripe(ctx context.Context, s disk.Stripe, first, n int) (View, error) {
	v, err := l.Array.ReadStripe(ctx, s, first, n)
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (l arrayLog) ReadPacked(ctx context.Context, loc disk.Loc) (View, error) {
	v, err := l.Array.ReadPacked(ctx, loc)
	if err != nil {
		return nil, err
	}
	return v, nil
}
