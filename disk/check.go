package disk

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
)

// CheckReport is what a check found. Counts are of cells unless they say otherwise.
type CheckReport struct {
	Bands    int `json:"bands"`
	Stripes  int `json:"stripes"`
	Cells    int `json:"cells"`    // that should be there
	Bad      int `json:"bad"`      // on a disk that is there, failing their checks
	Missing  int `json:"missing"`  // on disks that are not there
	Lost     int `json:"lost"`     // stripes with fewer good cells than data cells
	Repaired int `json:"repaired"` // cells rewritten
	Degraded int `json:"degraded"` // stripes with fewer good cells than they were written with
	// Unfinished stripes were on their way when the power failed: nothing acknowledged is in them. Opening the array for writing
	// completes them.
	Unfinished int      `json:"unfinished"`
	Faults     []string `json:"faults,omitempty"`
	Losses     []Loss   `json:"losses,omitempty"`
}

// OK reports whether everything that was written is there.
func (r CheckReport) OK() bool {
	return r.Bad == 0 && r.Missing == 0 && r.Lost == 0 && len(r.Losses) == 0
}

// maxFaults bounds the list of faults in a report.
const maxFaults = 100

// CheckOptions configure Check.
type CheckOptions struct {
	Repair   bool                  // rewrite bad cells
	Progress func(done, total int) // bands; may be nil
}

// Check reads every stripe of every band past all caches and verifies each cell, parity included.
func (a *Array) Check(ctx context.Context, opt CheckOptions) (CheckReport, error) {
	bands := a.sortedBands()
	a.mu.RLock()
	rep := CheckReport{Bands: len(bands), Losses: append([]Loss(nil), a.losses...)}
	a.mu.RUnlock()
	r := a.newRecovery()
	last, unclean := a.lastBulk(), a.opt.ReadOnly && !a.super.clean
	for i, b := range bands {
		err := a.eachStripe(ctx, b, func(w *wholeStripe) error {
			void := b.kind == kindPacked && w.head.stripe > min(r.limit[b.num], a.log.acked.Load())
			if void || (b.kind == kindBulk && b.epoch != a.epochNow() && w.goodCells() < int(w.head.data)) {
				return nil // never acknowledged, or a torn stripe that no record names
			}
			if unclean && slices.Contains(w.bad[:w.width()], true) && (w.head.stripe > a.mark && b.kind == kindPacked || slices.Contains(last, b)) {
				rep.Unfinished++
				return nil
			}
			return a.checkStripe(w, &rep, opt)
		})
		if err != nil {
			return rep, err
		}
		if opt.Progress != nil {
			opt.Progress(i+1, len(bands))
		}
	}
	return rep, nil
}

// checkStripe counts one stripe into the report.
func (a *Array) checkStripe(w *wholeStripe, rep *CheckReport, opt CheckOptions) error {
	rep.Stripes++
	n := w.width()
	rep.Cells += n
	bad, missing := 0, 0
	for role := range n {
		switch {
		case w.bad[role]:
			bad++
			if d := a.disks[w.band.members[w.head.member(role)].slot]; len(rep.Faults) < maxFaults {
				rep.Faults = append(rep.Faults, describeFault(d, w, role))
			}
		case !w.good[role]:
			missing++
		}
	}
	rep.Bad += bad
	rep.Missing += missing
	if bad+missing > 0 {
		rep.Degraded++
	}
	if w.goodCells() < int(w.head.data) {
		rep.Lost++
		return nil
	}
	if opt.Repair && slices.Contains(w.bad[:n], true) {
		failed, err := w.rewrite()
		if err != nil {
			return err
		}
		rep.Repaired += bad - len(failed)
	}
	return nil
}

func describeFault(d *disk, w *wholeStripe, role int) string {
	return fmt.Sprintf("%s: band %x block %d: cell %d of %d fails its checks", d.path, w.band.num, w.head.off, role, w.width())
}

// sortedBands lists the bands in the order in which they were opened.
func (a *Array) sortedBands() []*band {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.SortedFunc(maps.Values(a.bands), func(x, y *band) int { return cmp.Compare(x.num, y.num) })
}
