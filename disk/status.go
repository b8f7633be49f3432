package disk

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"coffer/disk/internal/blockdev"
)

// DiskState is what a member of the array is good for.
type DiskState string

const (
	DiskHealthy DiskState = "healthy" // read and written
	DiskFenced  DiskState = "fenced"  // failed a write; out of the array until it is replaced or opened again
	DiskMissing DiskState = "missing" // no device with its superblock
	DiskStale   DiskState = "stale"   // was away while the array was written; resynchronised at open before it counts
	DiskForeign DiskState = "foreign" // cannot be believed
	// DiskSuspect is slower than its peers: written, and read where they cannot answer. It is fenced if it stays so.
	DiskSuspect DiskState = "suspect"
	// DiskSpare holds nothing and takes the place of a disk that fails.
	DiskSpare DiskState = "spare"
	// DiskDraining is a healthy disk whose data is being moved to others, because it is to leave.
	DiskDraining DiskState = "draining"
	// DiskRetired has left the array: its slot is empty.
	DiskRetired DiskState = "retired"
	// DiskRebuilding has taken the place of another: written like a healthy one, and read where it has been rebuilt.
	DiskRebuilding DiskState = "rebuilding"
)

// DiskStatus describes a member. Sizes are bytes.
type DiskStatus struct {
	Slot     int       `json:"slot"`
	ID       string    `json:"id"`
	Path     string    `json:"path"`
	State    DiskState `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Size     int64     `json:"size"`
	Extents  int       `json:"extents"`
	Free     int       `json:"free_extents"`
	Model    string    `json:"model,omitempty"` // of a file: of the disk below it
	Serial   string    `json:"serial,omitempty"`
	Measured *Model    `json:"measured,omitempty"` // what it does, if it was qualified
	Rebuild  *Rebuild  `json:"rebuild,omitempty"`
	Olds     []string  `json:"replaces,omitempty"` // the disks that it replaces and that help to rebuild it
	Drain    *Rebuild  `json:"drain,omitempty"`

	Stats blockdev.Stats `json:"-"`
}

// Loss is a run of packed stripes that were acknowledged and can no longer be read; or a bulk stripe, by its first block; or, with nothing but
// its number, a whole band that the state needs and that is not there.
type Loss struct {
	Band  uint64 `json:"band"`
	From  uint64 `json:"from_stripe"`
	To    uint64 `json:"to_stripe"`
	Block uint32 `json:"block,omitempty"`
}

// String names what is lost.
func (l Loss) String() string {
	if l.Block != 0 {
		return fmt.Sprintf("stripe at block %d of band %x", l.Block, l.Band)
	}
	if l.From == 0 && l.To == 0 {
		return fmt.Sprintf("band %x", l.Band)
	}
	return fmt.Sprintf("stripes %d to %d of band %x", l.From, l.To, l.Band)
}

// Status describes an open array. Sizes are bytes.
type Status struct {
	ArrayID    string       `json:"array_id"`
	Data       int          `json:"data"`
	Parity     int          `json:"parity"`
	ExtentSize int64        `json:"extent_size"`
	State      string       `json:"state"` // "healthy", "degraded", "read-only", "stopped"
	Reason     string       `json:"reason,omitempty"`
	Epoch      uint64       `json:"epoch"`
	Stripe     uint64       `json:"last_stripe"`
	Bands      int          `json:"bands"`
	Thin       int          `json:"thin_bands"` // those with less parity than the array has: written when too few disks were there
	Capacity   int64        `json:"capacity"`   // of data, when all disks are there, without what compaction needs to be cheap
	Free       int64        `json:"free"`       // of data, in extents not yet taken
	IO         string       `json:"io"`         // "uring", "pool"
	IOReason   string       `json:"io_reason,omitempty"`
	Disks      []DiskStatus `json:"disks"`
	Losses     []Loss       `json:"losses,omitempty"`
	Scrub      *ScrubStatus `json:"scrub,omitempty"`

	Commits         uint64 `json:"-"` // packed stripes written since open
	Records         uint64 `json:"-"`
	Committed       uint64 `json:"-"` // bytes of these stripes, parity and headers included
	Repairs         uint64 `json:"-"` // cells rewritten
	Reconstructions uint64 `json:"-"` // reads answered from parity
	Hedges          uint64 `json:"-"` // reads that were late, so that others were asked
	HedgesWon       uint64 `json:"-"` // those that the others answered first
	BufferBytes     int64  `json:"-"` // I/O buffers in use
}

// Status reports the array's state at this moment.
func (a *Array) Status() Status {
	a.log.mu.Lock()
	stopped := a.log.err
	a.log.mu.Unlock()
	var scrub *ScrubStatus
	if s := a.scrub.Load(); s != nil {
		st := s.Status()
		scrub = &st
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	s := Status{
		ArrayID: hex.EncodeToString(a.super.array[:]), Data: a.geo.Data, Parity: a.geo.Parity, ExtentSize: a.geo.ExtentSize,
		State: "healthy", Epoch: a.super.epoch().num, Stripe: a.log.acked.Load(), Bands: len(a.bands),
		IO: a.group.Kind(), IOReason: a.group.Reason(), Losses: append([]Loss(nil), a.losses...),
		Commits: a.stats.commits.Load(), Records: a.stats.records.Load(), Committed: a.stats.committed.Load(),
		Repairs: a.stats.repairs.Load(), Reconstructions: a.stats.reconstructions.Load(),
		Hedges: a.hedges.issued.Load(), HedgesWon: a.hedges.won.Load(),
	}
	var down []string // states
	for _, d := range a.slots() {
		if d.role == roleNone && d.drain == nil { // else its device is still open
			continue
		}
		ds := DiskStatus{
			Slot: d.slot, ID: hex.EncodeToString(d.id[:]), Path: d.path, State: d.state, Reason: d.reason,
			Extents: int(d.extents), Free: d.free, Measured: d.model,
		}
		if d.dev != nil {
			l := d.dev.Limits()
			ds.Size, ds.Model, ds.Serial, ds.Stats = l.Size, l.Model, l.Serial, d.dev.Stats()
		}
		if d.state == DiskHealthy && d.suspect.Load() {
			ds.State, ds.Reason = DiskSuspect, d.symptom
			s.State, s.Reason = "degraded", "a disk is "+string(ds.State)
		}
		if d.state == DiskSpare && d.dev != nil {
			if large := a.largerThan(a.geo.extents(d.dev.Limits().Size)); len(large) > 0 {
				ds.Reason = fmt.Sprintf("too small to take the place of %d of the disks", len(large))
			}
		}
		if len(d.cramped) > 0 && d.open() {
			ds.Reason = fmt.Sprintf("its file system is full: no room for %d extents", len(d.cramped))
			s.State, s.Reason = "degraded", "the file system of a disk is full: make room on it, or replace the disk"
		}
		if d.refused {
			ds.State = DiskFenced // what it holds is still read
		}
		if d.rebuild != nil {
			ds.Rebuild = d.rebuild.status()
		}
		for _, old := range d.olds {
			ds.Olds = append(ds.Olds, old.path)
		}
		if d.drain != nil {
			ds.Drain = d.drain.status()
		}
		if d.draining && ds.State == DiskHealthy {
			ds.State = DiskDraining
		}
		if d.state != DiskHealthy && d.state != DiskSpare && d.state != DiskRetired {
			down = append(down, string(d.state))
		}
		if !d.open() {
			ds.Free = 0
		}
		s.Disks = append(s.Disks, ds)
	}
	if len(down) > 0 {
		s.State, s.Reason = "degraded", "a disk is "+down[0]
		if len(down) > 1 {
			slices.Sort(down)
			s.Reason = fmt.Sprintf("%d disks are %s", len(down), strings.Join(slices.Compact(slices.Clone(down)), " or "))
		}
		if len(down) >= a.geo.Parity && a.geo.Parity > 0 {
			s.Reason += ": no redundancy is left"
		}
	}
	for _, b := range a.bands {
		if b.parity < a.geo.Parity {
			s.Thin++
		}
	}
	if s.Thin > 0 && s.State == "healthy" {
		s.State = "degraded"
		s.Reason = fmt.Sprintf("%d bands have less parity, as they were written when disks were missing: compaction writes them again", s.Thin)
	}
	if len(s.Losses) > 0 {
		s.State, s.Reason = "degraded", "acknowledged stripes were lost"
	}
	if stopped != nil {
		s.State, s.Reason = "stopped", stopped.Error()
		if a.opt.ReadOnly {
			s.State, s.Reason = "read-only", "opened for reading"
		}
	}
	s.Scrub = scrub
	s.Capacity = a.geo.capacity(a.totalBands())
	s.Free = min(a.freeSpace(), s.Capacity)
	for _, arena := range []*blockdev.Arena{a.arena, a.reads, a.rebuild, a.meta} {
		n, _ := arena.Stats()
		s.BufferBytes += n
	}
	return s
}
