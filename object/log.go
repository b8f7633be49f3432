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
