package disk

import (
	"errors"
	"slices"
	"time"
)

// defaultSpareGrace is how long a disk may be away before a spare takes its place: longer than a reboot of an enclosure, or the seating of
// a cable.
const defaultSpareGrace = 10 * time.Minute

// watchSpares lets spares take the place of disks that failed or went missing, when they have been away for longer than the grace.
func (a *Array) watchSpares() {
	grace := a.opt.SpareGrace
	if grace == 0 {
		grace = defaultSpareGrace
	}
	if grace < 0 {
		return
	}
	tick := time.NewTicker(max(grace/20, time.Millisecond))
	defer tick.Stop()
	away := map[*disk]time.Time{}
	refused := map[*disk]string{}
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
		}
		for _, d := range a.away() {
			since, known := away[d]
			if !known {
				since = a.now()
				away[d] = since
			}
			if a.now().Sub(since) < grace {
				continue
			}
			err := a.promote(d)
			switch {
			case err == nil:
				delete(away, d)
			case errors.Is(err, errNoSpare) || a.ctx.Err() != nil:
			case refused[d] != err.Error(): // said once
				refused[d] = err.Error()
				a.logger.Error("spare not used", "slot", d.slot, "err", err)
			}
		}
		for d := range away {
			if !slices.Contains(a.away(), d) {
				delete(away, d) // it is back
			}
		}
	}
}

// away lists the disks that a spare should take the place of, were they to stay as they are.
func (a *Array) away() (list []*disk) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, d := range a.slots() {
		if d.counts() && (d.state == DiskFenced || d.state == DiskMissing || d.state == DiskForeign) {
			list = append(list, d)
		}
	}
	return list
}

// largerThan lists the disks whose place one of so many extents cannot take; a.mu is held.
func (a *Array) largerThan(extents uint32) (list []*disk) {
	for _, d := range a.slots() {
		if d.counts() && d.extents > extents {
			list = append(list, d)
		}
	}
	return list
}

var (
	errNoSpare    = errors.New("no spare")
	errSmallSpare = errors.New("every spare is smaller than the disk")
)

// promote lets the smallest spare that is large enough take the place of a disk. It keeps its identity, so that whatever copies of its
// superblock a power cut leaves are those of one disk.
func (a *Array) promote(old *disk) error {
	a.mu.RLock()
	var spare *disk
	err := errNoSpare
	for _, d := range a.slots() {
		if d.state == DiskSpare {
			err = errSmallSpare
		}
		if d.state == DiskSpare && a.geo.extents(d.dev.Limits().Size) >= old.extents && (spare == nil || d.extents < spare.extents) {
			spare = d
		}
	}
	a.mu.RUnlock()
	if spare == nil {
		return err
	}
	a.logger.Warn("spare takes the place of a disk", "slot", old.slot, "old", old.path, "spare", spare.path)
	return a.exchange(old.slot, &disk{id: spare.id, dev: spare.dev, gi: spare.gi, path: spare.path, model: spare.model}, spare)
}
