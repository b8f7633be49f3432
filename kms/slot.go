package kms

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"
)

// DefaultSlotTimeout is how long a slot may take to seal or open the root key unless WithTimeout says otherwise. A boot with n
// dead slots is late by n times as much.
const DefaultSlotTimeout = 30 * time.Second

// Slot is something outside the array that can seal its root key and open it again: a key file, a passphrase, a recovery key; a
// TPM, a token or a key service later.
//
// Kind is a constant of 1 to MaxKindLen of a-z, 0-9 and "-._:". Seal returns 1 to MaxBlobSize bytes that are worthless without
// what the slot stands for; Open returns the root key of KeySize bytes from such a blob, which is hostile: it comes from a
// disk before anything was authenticated, so Open bounds what it can cost. Open's error wraps ErrSlotAbsent, ErrSlotDenied or
// ErrCorrupt where one fits. The caller owns and wipes what Open returns; Seal must not keep root.
//
// Both should give up when ctx ends; a call that hangs regardless is left behind, and what it returns late is wiped. They may be
// called again after an error, and are not called concurrently by one Keyring except after such a hang.
type Slot interface {
	Kind() string
	Seal(ctx context.Context, root []byte) (blob []byte, err error)
	Open(ctx context.Context, blob []byte) (root []byte, err error)
}

// SlotResult tells how one configured slot fared in Unlock.
type SlotResult struct {
	Kind     string
	OK       bool
	Number   int           // of the slot in the array that opened; -1 if none did
	Err      error         // nil if OK
	Duration time.Duration // of all its attempts
}

// SlotInfo describes a slot of the array.
type SlotInfo struct {
	Number  int // 0..MaxSlots-1, stable while the slot exists
	Kind    string
	Created time.Time
}

type timedSlot struct {
	Slot
	timeout time.Duration
}

// WithTimeout returns s with its own deadline for a Seal, or for all Opens of one Unlock together.
func WithTimeout(s Slot, timeout time.Duration) Slot { return timedSlot{s, timeout} }

func slotTimeout(s Slot) time.Duration {
	if t, ok := s.(timedSlot); ok {
		return t.timeout
	}
	return DefaultSlotTimeout
}

// bounded runs f and returns at the latest when ctx ends, with ErrSlotTimeout if that was its deadline. The goroutine of a call
// that hangs lives until the call returns; it then wipes the result.
func bounded(ctx context.Context, f func() ([]byte, error)) ([]byte, error) {
	type result struct {
		p   []byte
		err error
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	done := make(chan result)
	go func() {
		p, err := f()
		select {
		case done <- result{p, err}:
		case <-ctx.Done():
			wipe(p)
		}
	}()
	select {
	case r := <-done:
		if r.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("%w: %w", ErrSlotTimeout, r.err)
		}
		return r.p, r.err
	case <-ctx.Done():
		return nil, contextError(ctx)
	}
}

// contextError says why ctx ended, which it has.
func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ErrSlotTimeout
	}
	return ctx.Err()
}

// openSlot tries s on every blob of its kind, in the area's order, until verify accepts the root key that comes out. verify
// owns that key. All attempts share one deadline.
func openSlot(ctx context.Context, s Slot, a *area, verify func(root []byte) error) SlotResult {
	start := time.Now()
	res := SlotResult{Kind: s.Kind(), Number: -1}
	ctx, cancel := context.WithTimeout(ctx, slotTimeout(s))
	defer cancel()
	var errs []error
	for i := range a.slots {
		rec := &a.slots[i]
		if rec.kind != res.Kind {
			continue
		}
		root, err := bounded(ctx, func() ([]byte, error) { return s.Open(ctx, rec.blob) })
		if err == nil {
			err = verify(root)
		}
		if err == nil {
			res.OK, res.Number = true, int(rec.number)
			res.Duration = time.Since(start)
			return res
		}
		errs = append(errs, fmt.Errorf("open slot %d: %w", rec.number, err))
		if ctx.Err() != nil {
			break
		}
	}
	if errs == nil {
		errs = append(errs, fmt.Errorf("open slot: the array has none of kind %s: %w", res.Kind, ErrSlotAbsent))
	}
	res.Err, res.Duration = errors.Join(errs...), time.Since(start)
	return res
}

// sealSlot lets s seal root and proves the blob by opening it: a slot that cannot open must not count as one.
func sealSlot(ctx context.Context, s Slot, root []byte) ([]byte, error) {
	if !validKind(s.Kind()) {
		panic(fmt.Sprintf("kms: slot kind %q", s.Kind()))
	}
	ctx, cancel := context.WithTimeout(ctx, slotTimeout(s))
	defer cancel()
	copied := bytes.Clone(root) // a slot that hangs must not touch locked memory that is gone by then
	blob, err := bounded(ctx, func() ([]byte, error) {
		defer wipe(copied)
		return s.Seal(ctx, copied)
	})
	if err != nil {
		return nil, fmt.Errorf("seal root key in %s slot: %w", s.Kind(), err)
	}
	if len(blob) < 1 || len(blob) > MaxBlobSize {
		return nil, fmt.Errorf("seal root key in %s slot: blob of %d bytes: %w", s.Kind(), len(blob), ErrLimit)
	}
	got, err := bounded(ctx, func() ([]byte, error) { return s.Open(ctx, blob) })
	if err == nil && subtle.ConstantTimeCompare(got, root) != 1 {
		err = fmt.Errorf("another key came back: %w", ErrCorrupt)
	}
	wipe(got)
	if err != nil {
		return nil, fmt.Errorf("prove %s slot: %w", s.Kind(), err)
	}
	return blob, nil
}
