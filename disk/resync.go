package disk

import (
	"context"
	"errors"
	"slices"

	"coffer/disk/internal/blockdev"
)

// resync brings disks that were away up to date: every cell that the bands of their last epoch and later put on them is verified
// and rewritten where it is not there. Older bands were complete when they left.
func (a *Array) resync(ctx context.Context, cut uint64) error {
	var stale []*disk
	a.mu.Lock()
	for _, d := range a.slots() {
		if d.state == DiskStale {
			stale = append(stale, d)
		}
	}
	a.mu.Unlock()
	for _, d := range stale {
		cells, err := a.resyncDisk(ctx, d, cut)
		if err != nil {
			a.logger.Error("disk not resynchronised", "path", d.path, "err", err)
			a.mu.Lock()
			d.state, d.reason = DiskFenced, err.Error()
			a.mu.Unlock()
			continue
		}
		a.logger.Info("disk resynchronised", "path", d.path, "cells", cells)
	}
	return nil
}

// resyncDisk makes one stale disk whole. It counts as healthy meanwhile, as nothing is served yet; resync takes that back on an error.
func (a *Array) resyncDisk(ctx context.Context, d *disk, cut uint64) (int, error) {
	cells := 0
	r := a.newRecovery()
	a.mu.Lock()
	if d.state, d.reason = DiskHealthy, ""; d.hollow {
		d.state, d.reason = DiskRebuilding, "being rebuilt"
	}
	a.mu.Unlock()
	for _, b := range a.sortedBands() {
		pos := slices.IndexFunc(b.members, func(m bandMember) bool { return m.slot == d.slot })
		if pos < 0 || b.revision()>>32 < d.super.epoch().num {
			continue
		}
		if err := a.rewriteBandHeader(ctx, b, pos, d); err != nil {
			return cells, err
		}
		if a.opt.faults.noResync {
			continue
		}
		n, err := a.resyncBand(ctx, b, d, func(h *header) bool {
			return b.kind == kindBulk || h.stripe <= min(cut, r.limit[b.num])
		})
		cells += n
		if err != nil {
			return cells, err
		}
	}
	return cells, nil
}

// rewriteBandHeader puts the header block of a band back on a disk.
func (a *Array) rewriteBandHeader(ctx context.Context, b *band, pos int, d *disk) error {
	return a.writeHeader(ctx, b, pos, b.members[pos], d)
}

// writeHeader writes the header of a band at an extent, or zeros if that is not one of the band's, at position -1.
func (a *Array) writeHeader(ctx context.Context, b *band, pos int, at bandMember, d *disk) error {
	buf, err := a.meta.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	clear(buf.Bytes()[:BlockSize])
	if pos >= 0 {
		a.codec.putBand(buf.Bytes()[:BlockSize], b, pos, d.id)
	}
	ops := []blockdev.Op{{Dev: d.gi, Write: true, Durable: true, Off: a.geo.extentOffset(at.extent), Buf: buf.Bytes()[:BlockSize]}}
	failed, err := a.runWrites(ops, &buf)
	if err == nil && len(failed) > 0 {
		err = ops[0].Err
	}
	return err
}

// resyncBand walks the stripes of a band and rewrites the bad cells of those that stand.
func (a *Array) resyncBand(ctx context.Context, b *band, d *disk, stands func(*header) bool) (cells int, err error) {
	err = a.eachStripe(ctx, b, func(w *wholeStripe) error {
		if !stands(&w.head) || w.goodCells() < int(w.head.data) || !slices.Contains(w.bad[:w.width()], true) {
			return nil
		}
		mended, failed, err := a.mend(w)
		a.noteMended(mended...)
		if err == nil && slices.Contains(failed, d) {
			return errors.New("a write failed during resynchronisation")
		}
		cells++
		return errors.Join(err, a.lose(failed, failedRewrite))
	})
	if err == nil && !d.usable() {
		err = errors.New(d.reason) // a read timed out
	}
	return cells, err
}
