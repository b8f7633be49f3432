package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
	"coffer/hw"
)

// Set is a number of devices that look like an array: opened, their superblocks read, nothing proven yet.
type Set struct {
	devs   []blockdev.Device
	raw    []rawSuper
	found  []*superblock // by device, nil without a valid superblock
	faults []error       // by device, why found is nil
	absent []string      // paths that could not be opened, with the reason
}

// releaseWait bounds how long Discover waits, for all disks together, until the kernel has taken them from a process that was killed.
const releaseWait = 5 * time.Second

// ErrTaken: a device is open elsewhere, by a daemon or a command.
var ErrTaken = blockdev.ErrInUse

// Discover opens the devices exclusively and reads their superblocks. Paths that do not open and devices without a superblock
// are no error: the rest may be enough. A device that another opener keeps for more than a few seconds is one. Close the set, or
// hand it to Open.
func Discover(paths []string, readOnly bool) (*Set, error) {
	return discoverFiles(paths, readOnly, releaseWait)
}

func discoverFiles(paths []string, readOnly bool, wait time.Duration) (*Set, error) {
	deadline := time.Now().Add(wait)
	var devs []blockdev.Device
	var absent []string
	for _, p := range paths {
		d, err := blockdev.OpenFile(p, blockdev.OpenOptions{ReadOnly: readOnly, Wait: time.Until(deadline)})
		if errors.Is(err, blockdev.ErrInUse) {
			for _, d := range devs {
				d.Close()
			}
			return nil, fmt.Errorf("open disk: %w", err)
		}
		if err != nil {
			absent = append(absent, fmt.Sprintf("%s: %v", p, err))
			continue
		}
		devs = append(devs, d)
	}
	return discover(devs, absent, 0)
}

// readNew reads the superblocks of devices that are in no group yet. A device that does not answer in time (0: the default) has an
// error.
func readNew(devs []blockdev.Device, timeout time.Duration) (raws []rawSuper, errs []error, err error) {
	raws, errs = make([]rawSuper, len(devs)), make([]error, len(devs))
	var large []blockdev.Device
	var which []int
	for i, d := range devs {
		if d.Limits().Size >= superArea {
			large, which = append(large, d), append(which, i)
		} else {
			errs[i] = fmt.Errorf("%w: device of %d bytes is too small", errSuperblock, d.Limits().Size)
		}
	}
	if len(large) == 0 {
		return raws, errs, nil
	}
	arena := newArena(2 * superMemory(len(devs)))
	defer arena.Close() // memory of a read that hangs stays with the kernel
	group, err := blockdev.NewGroup(large, blockdev.GroupOptions{Prefer: "pool", ReadTimeout: timeout})
	if err != nil {
		return nil, nil, err
	}
	all := make([]int, len(large))
	for i := range all {
		all[i] = i
	}
	got, faults, err := readSupers(group, arena, all)
	if err != nil {
		return nil, nil, errors.Join(err, group.Close())
	}
	for k, i := range which {
		raws[i], errs[i] = got[k], faults[k]
	}
	group.Close() // it reports only what still hangs, which has an error already
	return raws, errs, nil
}

func discover(devs []blockdev.Device, absent []string, timeout time.Duration) (*Set, error) {
	s := &Set{devs: devs, absent: absent}
	if err := s.read(timeout); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.newest() == nil {
		err := fmt.Errorf("%w: none of %d devices has a superblock", ErrMembership, len(devs)+len(absent))
		if faults := errors.Join(s.faults...); faults != nil {
			err = fmt.Errorf("%w: %w", err, faults)
		}
		if len(absent) > 0 {
			err = fmt.Errorf("%w; not opened: %q", err, absent)
		}
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// read fills raw, found and faults.
func (s *Set) read(timeout time.Duration) (err error) {
	if s.raw, s.faults, err = readNew(s.devs, timeout); err != nil {
		return err
	}
	s.found = make([]*superblock, len(s.devs))
	for i := range s.devs {
		if s.faults[i] == nil {
			s.found[i], _, s.faults[i] = chooseCopy(s.raw[i], nil)
		}
	}
	return nil
}

// newest is the superblock with the highest epoch, by checksum alone, of the array that most of the devices name.
func (s *Set) newest() *superblock {
	votes := map[diskID]int{}
	for _, sb := range s.found {
		if sb != nil {
			votes[sb.array]++
		}
	}
	var best *superblock
	for _, sb := range s.found {
		if sb == nil {
			continue
		}
		switch {
		case best == nil || votes[sb.array] > votes[best.array]:
			best = sb
		case sb.array == best.array && sb.epoch().num > best.epoch().num:
			best = sb
		}
	}
	return best
}

// ArrayID is the array's identity.
func (s *Set) ArrayID() [16]byte { return s.newest().array }

// KeyArea is the key area of the superblock that speaks for the array, by checksum alone: a disk that went its own way can be as new, and know
// older keys. Where none speaks for the array it is that of the newest, so that Open can say what is wrong. It is hostile input: nothing
// has proven it yet.
func (s *Set) KeyArea() []byte {
	best := s.newest()
	var named []*superblock
	for _, sb := range s.found {
		if sb != nil && sb.array == best.array {
			named = append(named, sb)
		}
	}
	for _, degraded := range []bool{false, true} {
		if head, err := chooseHead(named, degraded); err == nil {
			return head.keyArea
		}
	}
	return best.keyArea
}

// Close gives the devices back.
func (s *Set) Close() error {
	var err error
	for _, d := range s.devs {
		err = errors.Join(err, d.Close())
	}
	return err
}

// Open proves the superblocks with the keys, decides which disks take part, brings the log and the state into agreement, and
// begins a new epoch. The set is spent, whatever the outcome.
func (s *Set) Open(ctx context.Context, opt Options) (*Array, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	head, disks, err := s.assemble(opt)
	unused := s.unused()
	if err != nil {
		if len(unused) > 0 {
			err = fmt.Errorf("%w; not used: %s", err, strings.Join(unused, "; "))
		}
		return nil, errors.Join(err, s.Close())
	}
	for _, d := range disks {
		if d.state == DiskMissing && len(unused) > 0 {
			d.reason += "; not used: " + strings.Join(unused, "; ")
		}
	}
	for _, u := range unused {
		opt.Logger.Warn("disk not used", "disk", u)
	}
	a, err := newArray(opt, s.devs, head, disks)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := a.start(ctx); err != nil {
		a.cancel()
		a.tasks.Wait()
		return nil, errors.Join(err, a.closeDevices())
	}
	return a, nil
}

// unused lists the disks that have no part in the array, and why.
func (s *Set) unused() (list []string) {
	for i, d := range s.devs {
		if s.faults[i] != nil {
			list = append(list, fmt.Sprintf("%s: %v", d.Path(), s.faults[i]))
		}
	}
	return append(list, s.absent...)
}

// assemble finds the superblock that speaks for the array and gives each member its place.
func (s *Set) assemble(opt Options) (*superblock, []*disk, error) {
	var proven []*superblock
	byDev := make([]*superblock, len(s.devs))
	for i := range s.devs {
		if s.found[i] == nil {
			continue
		}
		sb, _, err := chooseCopy(s.raw[i], opt.Keys.SuperblockKey())
		if err != nil {
			s.faults[i] = err
			if s.found[i].array != s.ArrayID() {
				return nil, nil, fmt.Errorf("%w: %s belongs to array %x, not %x: take it off the list of disks", ErrMembership, s.devs[i].Path(), s.found[i].array, s.ArrayID())
			}
			continue
		}
		byDev[i] = sb
		proven = append(proven, sb)
	}
	if len(proven) == 0 {
		return nil, nil, fmt.Errorf("%w: %w", ErrKeys, errors.Join(s.faults...))
	}
	head, err := chooseHead(proven, opt.Degraded)
	if err != nil {
		return nil, nil, err
	}
	disks := make([]*disk, len(head.members))
	for i, m := range head.members {
		disks[i] = &disk{slot: i, id: m.id, extents: m.extents, state: DiskMissing, reason: "not found",
			hollow: m.state == memberRebuilding || m.state == memberOutHollow, draining: m.draining}
		switch m.state {
		case memberSpare:
			disks[i].role = roleSpare
		case memberRetired:
			disks[i].role, disks[i].state, disks[i].reason = roleNone, DiskRetired, ""
		}
	}
	for i := range s.devs {
		if err := s.place(head, byDev[i], i, disks); err != nil {
			return nil, nil, err
		}
	}
	return head, disks, countLive(head, disks, opt)
}

// place gives device i its slot, or says why the array cannot be opened with it.
func (s *Set) place(head, sb *superblock, i int, disks []*disk) error {
	dev := s.devs[i]
	if sb == nil {
		return nil // blank, overwritten or unreadable: its slot stays missing
	}
	if sb.array != head.array {
		return fmt.Errorf("%w: %s belongs to array %x, not %x: take it off the list of disks", ErrMembership, dev.Path(), sb.array, head.array)
	}
	known := sb.slot < len(disks) && disks[sb.slot].id == sb.disk
	switch {
	case sb.retired() || known && disks[sb.slot].role == roleNone:
		s.faults[i] = errors.New("retired")
		return nil
	case !known && (head.epoch().num > sb.epoch().num || head.epoch().num == sb.epoch().num && head.epoch() != sb.epoch()):
		if sb.slot < len(disks) && disks[sb.slot].hollow {
			d := disks[sb.slot]
			d.olds = append(d.olds, &disk{dev: dev, gi: i, path: dev.Path(), slot: sb.slot, id: sb.disk, state: DiskMissing, reason: "another disk has taken its place"})
			return nil
		}
		s.faults[i] = errors.New("another disk has taken its place, or it was never taken in")
		return nil
	}
	if !known {
		return fmt.Errorf("%w: %s says it is disk %x in slot %d, which the array does not know", ErrMembership, dev.Path(), sb.disk, sb.slot)
	}
	d := disks[sb.slot]
	torn := s.tornCopies(i, sb)
	if d.dev != nil {
		// Misdirected writes can put some copies of a disk's superblock on another disk; a cloned disk has them all.
		switch here, there := len(torn) <= 1, len(d.torn) <= 1; {
		case here && there:
			return fmt.Errorf("%w: %s and %s are both disk %x: one is a copy", ErrMembership, d.path, dev.Path(), d.id)
		case there:
			return nil
		case !here:
			d.dev, d.state, d.reason = nil, DiskMissing, "its superblock is damaged on every device that could be it"
			return nil
		}
	}
	d.dev, d.gi, d.path, d.super, d.torn, d.found = dev, i, dev.Path(), sb, torn, s.raw[i]
	switch {
	case d.role == roleSpare:
		d.state, d.reason = DiskSpare, ""
	case !head.knows(sb.epoch(), sb.slot):
		d.state, d.reason = DiskForeign, "its history left the array's: it was written elsewhere"
	case dev.Limits().Size < sb.diskSize || head.geo.extents(dev.Limits().Size) < d.extents:
		d.state, d.reason = DiskForeign, fmt.Sprintf("%d bytes, shorter than the %d it had", dev.Limits().Size, sb.diskSize)
	case sb.epoch() != head.epoch():
		d.state, d.reason = DiskStale, fmt.Sprintf("at epoch %d of %d", sb.epoch().num, head.epoch().num)
	case d.hollow:
		d.state, d.reason = DiskRebuilding, "being rebuilt"
	default:
		d.state, d.reason = DiskHealthy, ""
	}
	return nil
}

// tornCopies lists the copies on device i that are not like sb.
func (s *Set) tornCopies(i int, sb *superblock) (torn []int) {
	for c, b := range s.raw[i] {
		if got, err := decodeSuperblock(b, c); err != nil || !got.sameState(sb) {
			torn = append(torn, c)
		}
	}
	return torn
}

// chooseHead returns the superblock with the highest epoch whose history explains enough of the disks.
func chooseHead(proven []*superblock, degraded bool) (*superblock, error) {
	slices.SortStableFunc(proven, func(x, y *superblock) int {
		switch {
		case x.epoch().num > y.epoch().num:
			return -1
		case x.epoch().num < y.epoch().num:
			return 1
		}
		return 0
	})
	var heads []*superblock
	most := 0
	for _, h := range proven {
		known := 0
		for _, s := range proven {
			if h.confirms(s) {
				known++
			}
		}
		most = max(most, known)
		if n := h.counted(); known >= n-h.geo.Parity && (known > h.geo.Parity || degraded || h.geo.Parity == 0) {
			heads = append(heads, h)
		}
	}
	if len(heads) == 0 {
		h := proven[0]
		n := h.counted()
		need := max(n-h.geo.Parity, h.geo.Parity+1)
		if most >= n-h.geo.Parity {
			return nil, fmt.Errorf("%w: %d of %d disks found; %d could be a stale half: if the others are gone for good, open with --degraded",
				ErrMembership, most, n, most)
		}
		return nil, fmt.Errorf("%w: %d of %d disks found that agree, need %d", ErrMembership, most, n, need)
	}
	for _, h := range heads[1:] {
		if !heads[0].knows(h.epoch(), h.slot) {
			return nil, fmt.Errorf("%w: the disks hold two histories, at epochs %d and %d, that diverged: remove the disks of one",
				ErrMembership, heads[0].epoch().num, h.epoch().num)
		}
	}
	return heads[0], nil
}

// countLive refuses when more members are missing than parity bears.
func countLive(head *superblock, disks []*disk, opt Options) error {
	have := 0
	var missing []string
	n := 0
	for _, d := range disks {
		if !d.counts() {
			continue
		}
		n++
		if d.present() && !d.hollow { // what it has not been given yet is missing
			have++
		} else {
			missing = append(missing, fmt.Sprintf("slot %d (%x): %s: %s", d.slot, d.id[:4], d.state, d.reason))
		}
	}
	if have < n-head.geo.Parity {
		return fmt.Errorf("%w: %d of %d disks usable, need %d; %q", ErrMembership, have, n, n-head.geo.Parity, missing)
	}
	if have <= head.geo.Parity && !opt.Degraded {
		return fmt.Errorf("%w: %d of %d disks usable could be a stale half: open with --degraded if the others are gone for good; %q",
			ErrMembership, have, n, missing)
	}
	return nil
}

// newArray makes the array's structures; nothing is read or written yet.
func newArray(opt Options, devs []blockdev.Device, head *superblock, disks []*disk) (*Array, error) {
	timeout := func(d time.Duration) time.Duration {
		if d == 0 {
			return blockdev.DefaultTimeout
		}
		return d
	}
	mk := opt.group
	writeTimeout := timeout(opt.WriteTimeout)
	if mk == nil {
		mk = func(devs []blockdev.Device) (blockdev.Group, error) {
			g := blockdev.GroupOptions{ReadTimeout: timeout(opt.ReadTimeout), WriteTimeout: writeTimeout}
			if opt.PreferPool {
				g.Prefer = "pool"
			}
			return blockdev.NewGroup(devs, g)
		}
	}
	group, err := mk(devs)
	if err != nil {
		return nil, err
	}
	limit := opt.ArenaBytes
	if limit == 0 {
		limit = defaultArena
	}
	small := int64(head.geo.width()*maxCellBlocks*BlockSize)*2*maxInflight + 2*superMemory(MaxDisks)
	stripe := int64(head.geo.width() * maxCellBlocks * BlockSize)
	lanes := min(max(limit/8/stripe, 1), maxLanes)
	a := &Array{
		lanes: int(lanes), opt: opt, logger: opt.Logger, geo: head.geo, group: group, super: *head,
		codec: newCodec(head.array, opt.Keys.CellKey(), opt.Crypto, opt.faults),
		bands: map[uint64]*band{}, ahead: map[kind]*aheadBand{}, repair: make(chan repairTask, 64),
		room:   room{pressure: make(chan struct{}, 1)},
		diskOf: make([]atomic.Pointer[disk], blockdev.MaxGroup), writeTimeout: writeTimeout, readTimeout: timeout(opt.ReadTimeout),
		bulk: bulkStream{lock: make(chan struct{}, 1)},
	}
	a.schedule, a.moving = newSchedule(a), make(chan struct{}, 1)
	a.rebuildRate.Store(opt.RebuildRate)
	if opt.Crypto != nil {
		a.encoded, a.rebuilt = opt.Crypto.Meter(hw.ReedSolomon, hw.Encode), opt.Crypto.Meter(hw.ReedSolomon, hw.Reconstruct)
	}
	if opt.manual != nil {
		a.lanes = 1
	}
	if s := opt.arenas; s != nil {
		a.arena, a.reads, a.rebuild, a.meta = s[0], s[1], s[1], s[2]
	} else {
		a.arena, a.reads, a.rebuild, a.meta = newArena(limit/2), newArena(limit/2), newArena(small+lanes*stripe), newArena(small)
	}
	a.table.Store(&disks)
	a.ctx, a.cancel = context.WithCancel(context.Background())
	for _, d := range disks {
		if d.dev != nil {
			a.diskOf[d.gi].Store(d)
			d.model = opt.model(d.dev)
		}
		for _, old := range d.olds {
			a.diskOf[old.gi].Store(old)
			old.model = opt.model(old.dev)
			a.logger.Info("old disk helps to rebuild the one that took its place", "slot", d.slot, "path", old.path)
		}
		d.used = make([]bool, d.extents)
		d.free = int(d.extents)
	}
	a.log = newPackedLog(a)
	return a, nil
}

// start recovers, begins the epoch and lets the writers run.
func (a *Array) start(ctx context.Context) error {
	a.opening = true
	if a.opt.manual == nil {
		if err := a.leaveSlow(ctx); err != nil {
			return err
		}
	}
	a.mended = a.newReport()
	cut, err := a.takeUp(ctx)
	a.opening = false
	a.logMended()
	if err != nil || a.opt.ReadOnly {
		return err
	}
	if !a.opt.faults.noNonce || a.super.epoch().num == 1 {
		if err := a.beginEpoch(cut); err != nil {
			return err
		}
	}
	if a.opt.manual == nil {
		for range packedWriters {
			a.tasks.Go(a.log.run)
		}
		a.tasks.Go(a.runRepairs)
		a.tasks.Go(a.watchHealth)
		a.tasks.Go(a.watchSpares)
	}
	a.startRebuilds()
	a.startDrains()
	return nil
}

// takeUp brings disks, log and state into agreement and returns the last packed stripe that stands.
func (a *Array) takeUp(ctx context.Context) (uint64, error) {
	if !a.opt.ReadOnly {
		if err := a.healSupers(); err != nil {
			return 0, err
		}
	}
	if err := a.scanBands(ctx); err != nil {
		return 0, err
	}
	a.mu.Lock()
	a.noteSpace()
	a.mu.Unlock()
	cut, err := a.recover(ctx)
	if err != nil {
		return 0, err
	}
	a.log.next = cut + 1
	a.log.acked.Store(cut)
	if a.opt.ReadOnly {
		a.log.err = ErrReadOnly
		return cut, nil
	}
	if err := a.completeBulk(ctx); err != nil {
		return 0, err
	}
	return cut, a.resync(ctx, cut)
}

func newArena(limit int64) *blockdev.Arena {
	return blockdev.NewArena(blockdev.ArenaOptions{Limit: limit})
}
