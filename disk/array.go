package disk

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
	"coffer/hw"
)

// packedWriters is how many goroutines write packed stripes; as many as stripes may be in flight.
const packedWriters = maxInflight

// defaultArena bounds the I/O buffers when Options does not.
const defaultArena = 512 << 20

// Array is an open array. All methods are safe for concurrent use.
type Array struct {
	opt    Options
	logger *slog.Logger
	geo    Geometry
	lanes  int // stripes that a walk reads at once
	codec  *codec
	group  blockdev.Group
	// Four arenas, so that those who wait for one kind of buffer never hold back those who could free another: bulk stripes
	// being filled; views being read; cells read to rebuild others, for a view or a repair; packed stripes and superblocks.
	arena, reads, rebuild, meta *blockdev.Arena
	diskOf                      []atomic.Pointer[disk] // by group index; also those that were replaced
	log                         *packedLog
	bulk                        bulkStream
	stats                       counters
	writeTimeout, readTimeout   time.Duration
	// encoded and rebuilt count the bytes and time of parity and reconstruction.
	encoded, rebuilt *hw.Meter

	ctx    context.Context // ends with the array
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	repair chan repairTask
	scrub  atomic.Pointer[Scrub] // nil: not started
	room   room
	tight  atomic.Bool // new data should wait for compaction
	slack  atomic.Bool // what is free is what the capacity leaves out
	dear   atomic.Bool // see SetDear
	full   atomic.Bool // only the reserve is left
	low    atomic.Bool // of the reserve, half is left

	waiting atomic.Int64 // callers in Admit

	// table holds the disks by slot. It is replaced as a whole, under mu; a disk's identity and device never change.
	table atomic.Pointer[[]*disk]

	schedule    *schedule
	moving      chan struct{} // capacity 1: who moves a member of a band to another disk
	rebuildRate atomic.Int64
	hedges      hedging

	opening bool        // recovery runs, and nothing else
	mended  CheckReport // what was bad and put right meanwhile; not changed later
	told    atomic.Bool // a pass has told of it

	// gate is held for reading while a bulk stripe is written, for writing while a new epoch begins: so no write of an old
	// epoch is on its way once the new one serves.
	gate sync.RWMutex

	// mu guards the fields below, and the state and space of each disk. It is not held across I/O.
	mu      sync.RWMutex
	mark    uint64     // highest stripe that recovery knew to be acknowledged
	super   superblock // what all members share; disk and slot are filled in per member
	bands   map[uint64]*band
	bandSeq uint64
	ahead   map[kind]*aheadBand
	losses  []Loss
}

// counters are kept for Status.
type counters struct {
	commits, records, applied atomic.Uint64
	committed                 atomic.Uint64 // bytes of commits
	freed                     atomic.Uint64 // bands
	repairs, reconstructions  atomic.Uint64
}

// aheadBand is a band being opened before it is needed.
type aheadBand struct {
	done chan struct{}
	band *band
	err  error
}

// slots returns the disks by slot.
func (a *Array) slots() []*disk { return *a.table.Load() }

func (a *Array) now() time.Time { return time.Now() }

// random fills b with random bytes, from the test's seed if there is one.
func (a *Array) random(b []byte) {
	if a.opt.rand != nil {
		a.opt.rand(b)
		return
	}
	rand.Read(b)
}

// await waits until c is closed. In tests without goroutines the driver has to bring that about.
func (a *Array) await(ctx context.Context, c <-chan struct{}) error {
	for {
		if a.opt.manual == nil {
			select {
			case <-c:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-c:
			return nil
		default:
			a.opt.manual()
		}
	}
}

// acquire takes the lock c, a channel of capacity 1.
func (a *Array) acquire(ctx context.Context, c chan struct{}) error {
	for {
		select {
		case c <- struct{}{}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if a.opt.manual != nil {
			a.opt.manual()
			continue
		}
		select {
		case c <- struct{}{}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lockGate waits until no bulk stripe is being written.
func (a *Array) lockGate() {
	if a.opt.manual == nil {
		a.gate.Lock()
		return
	}
	for !a.gate.TryLock() {
		a.opt.manual()
	}
}

// rlockGate keeps new epochs from beginning.
func (a *Array) rlockGate() {
	if a.opt.manual == nil {
		a.gate.RLock()
		return
	}
	for !a.gate.TryRLock() {
		a.opt.manual()
	}
}

func (a *Array) epochNow() uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.super.epoch().num
}

// counted is how many members the array has whose loss parity has to bear; a.mu is held.
func (a *Array) counted() (n int) {
	for _, d := range a.slots() {
		if d.counts() {
			n++
		}
	}
	return n
}

// liveLocked counts the disks that new bands can lie on; a.mu is held.
func (a *Array) liveLocked() int {
	n := 0
	for _, d := range a.slots() {
		if d.open() {
			n++
		}
	}
	return n
}

func (a *Array) anyUsable(disks []*disk) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, d := range disks {
		if d.usable() {
			return true
		}
	}
	return false
}

// MaxBody is the most bytes a record's body may have.
func (a *Array) MaxBody() int {
	return min(MaxBody, int(a.geo.ExtentSize)/4)
}

// apply hands a durable stripe to the state.
func (a *Array) apply(s *packedStripe) error {
	entries := make([]Entry, len(s.reqs))
	for i, r := range s.reqs {
		entries[i] = Entry{Seq: r.seq, Body: r.rec.Body, Data: r.data}
	}
	a.stats.applied.Store(s.num)
	return a.opt.State.Apply(s.pos, entries)
}

// nextBand returns a band for the stream: the one opened ahead, or a new one. One that was opened ahead in an earlier epoch is closed and empty:
// it is compaction's, which may have freed it by now.
func (a *Array) nextBand(k kind, essential bool) (*band, error) {
	a.mu.Lock()
	f := a.ahead[k]
	delete(a.ahead, k)
	a.mu.Unlock()
	if f != nil {
		if err := a.await(a.ctx, f.done); err != nil {
			return nil, err
		}
		if f.err == nil && f.band.epoch == a.epochNow() {
			return f.band, nil
		}
		if f.err == nil && a.opt.faults.dropTwice {
			a.giveBack(f.band.members...)
		}
	}
	return a.openBand(a.ctx, k, essential)
}

// openAhead begins to open the next band of a stream once the current one is half full.
func (a *Array) openAhead(b *band) {
	start := a.tasks.Go
	if a.opt.manual != nil {
		start = a.opt.begin
	}
	if start == nil || b.end < a.geo.extentBlocks()/2 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ahead[b.kind] != nil || a.bandsLeft() <= reserveBands+2 || a.ctx.Err() != nil {
		return
	}
	f := &aheadBand{done: make(chan struct{})}
	a.ahead[b.kind] = f
	start(func() {
		defer close(f.done)
		f.band, f.err = a.openBand(a.ctx, b.kind, false)
	})
}

// fence takes disks out of the array and begins a new epoch without them. Nothing packed is in flight.
func (a *Array) fence(disks []*disk) error {
	a.lockGate()
	defer a.gate.Unlock()
	fresh, err := a.fenceDisks(disks, "a write failed or timed out")
	if err != nil || !fresh {
		return err
	}
	return a.beginEpoch(a.log.acked.Load())
}

// fenceDisks takes disks out and reports whether any was still in. When fewer would be left than data needs, all stay: they refuse
// writes, but what they hold can be read as long as nobody says otherwise.
func (a *Array) fenceDisks(disks []*disk, reason string) (fresh bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var failed []*disk // each once
	for _, d := range disks {
		if d.state == DiskSpare {
			d.state, d.reason = DiskFenced, reason
			a.logger.Error("spare failed", "path", d.path, "slot", d.slot, "reason", reason)
		}
		if d.leaving {
			d.leaving = false // it need not know
		}
		if d.usable() && d.counts() && !slices.Contains(failed, d) {
			failed = append(failed, d)
		}
	}
	fresh = len(failed) > 0
	out := len(failed)
	for _, d := range a.slots() {
		if d.counts() && !d.whole() && !slices.Contains(failed, d) {
			out++
		}
	}
	for _, d := range failed {
		if d.reason = reason; d.symptom != "" {
			d.reason = d.symptom
		}
		if d.rebuild != nil {
			d.rebuild.cancel()
			d.rebuild = nil
		}
		if d.refused = out > a.geo.Parity; !d.refused {
			d.state = DiskFenced
		}
		a.logger.Error("disk failed", "path", d.path, "slot", d.slot, "state", string(d.state), "reason", d.reason)
	}
	if fresh && out > a.geo.Parity {
		return true, fmt.Errorf("%d of %d disks failed or are gone, parity bears %d: %w; bring back and start again with: %s", out, len(a.slots()), a.geo.Parity, ErrReadOnly, a.gone(failed))
	}
	return fresh, nil
}

// gone lists the disks that are not whole, and those that just failed; a.mu is held.
func (a *Array) gone(failed []*disk) string {
	var list []string
	for _, d := range a.slots() {
		if !d.counts() || d.whole() && !slices.Contains(failed, d) {
			continue
		}
		name := fmt.Sprintf("slot %d", d.slot)
		if d.path != "" {
			name += " " + d.path
		}
		list = append(list, fmt.Sprintf("%s (%s)", name, cmp.Or(d.reason, string(d.state))))
	}
	return strings.Join(list, ", ")
}

// beginEpoch makes a new epoch durable on every live disk. Disks that cannot take it leave, and another epoch is begun. cut is
// the last packed stripe that stands.
func (a *Array) beginEpoch(cut uint64) error {
	for {
		a.mu.Lock()
		out := 0
		s := a.super
		e := epoch{num: s.epoch().num + 1, cut: cut, whole: s.clean}
		a.random(e.id[:])
		s.history = append([]epoch{e}, a.shortened(s.history)...)
		s.members = append([]memberEntry(nil), s.members...)
		s.keyArea, s.clean, s.last = a.opt.Keys.Area(), false, 0
		for i, d := range a.slots() {
			st := memberActive
			switch {
			case d.role == roleSpare:
				st = memberSpare
			case d.role == roleNone:
				st = memberRetired
			case !d.usable() && d.hollow:
				st = memberOutHollow
				out++
			case !d.usable():
				st = memberOut
				out++
			case !d.whole():
				st = memberRebuilding
				out++
			}
			if s.members[i].state != st {
				s.members[i].state, s.members[i].since, s.members[i].last = st, e.num, a.super.epoch().id
			}
			s.members[i].draining = d.draining
		}
		a.mu.Unlock()
		if out > a.geo.Parity {
			a.mu.RLock()
			defer a.mu.RUnlock()
			return fmt.Errorf("%d of %d disks are gone, parity bears %d: %w; bring back and start again with: %s", out, len(a.slots()), a.geo.Parity, ErrReadOnly, a.gone(nil))
		}
		failed, err := a.writeSuper(&s)
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.super = s
		a.bandSeq = 0
		a.mu.Unlock()
		if len(failed) == 0 {
			return nil
		}
		if _, err := a.fenceDisks(failed, "superblock could not be written"); err != nil {
			return err
		}
	}
}

// shortened makes room for another epoch in a history. The first epoch behind one that was not closed in order and has packed bands stays,
// as long as some other can go: its cut is all that tells for ever which stripes of these bands are void. a.mu is held.
func (a *Array) shortened(history []epoch) []epoch {
	if len(history) < maxHistory {
		return history
	}
	needed := func(i int) bool {
		if history[i].whole {
			return false
		}
		from := uint64(0)
		if i+1 < len(history) {
			from = history[i+1].num
		}
		for _, b := range a.bands {
			if b.kind == kindPacked && b.epoch >= from && b.epoch < history[i].num {
				return true
			}
		}
		return false
	}
	for i := len(history) - 1; i > 0; i-- { // the last one is the parent of the next
		if !needed(i) {
			return slices.Delete(slices.Clone(history), i, i+1)
		}
	}
	return history[:len(history)-1]
}

// writeSuper writes the superblock to every live disk, one copy after the other, and reads it back. It returns the disks where
// fewer than three copies hold.
func (a *Array) writeSuper(s *superblock) ([]*disk, error) {
	key := a.opt.Keys.SuperblockKey()
	// New disks get all copies before the others know of them: then those that do find them, wherever the power fails.
	var fresh []*disk
	for _, d := range a.slots() {
		if d.fresh {
			fresh = append(fresh, d)
			d.fresh = false
		}
	}
	for c := range superCopies {
		if len(fresh) == 0 {
			break
		}
		if err := a.writeCopy(s, c, key, map[int]int{}, fresh); err != nil {
			return nil, err
		}
	}
	good := map[int]int{}
	for c := range superCopies {
		if err := a.writeCopy(s, c, key, good, a.slots()); err != nil {
			return nil, err
		}
	}
	var failed []*disk
	var devs []int
	var live []*disk
	for _, d := range a.slots() {
		if d.listed() {
			devs, live = append(devs, d.gi), append(live, d)
		}
	}
	raws, errs, err := readSupers(a.group, a.meta, devs)
	if err != nil {
		return nil, err
	}
	for i, d := range live {
		raw, err := raws[i], errs[i]
		if err == nil {
			var got *superblock
			n := 0
			if got, n, err = chooseCopy(raw, key); err == nil && (n < 3 || got.epoch() != s.epoch() || good[d.slot] < 3) {
				err = errSuperblock
			}
		}
		if err != nil {
			failed = append(failed, d)
		}
	}
	return failed, nil
}

// healSupers rewrites superblock copies that are damaged or of another moment, one at a time: a power cut during the next change
// must find the present state in enough copies. A disk that does not take them fails later, when it is written. What no power cut explains counts
// as mended.
func (a *Array) healSupers() error {
	key := a.opt.Keys.SuperblockKey()
	var live []*disk
	var raws []rawSuper
	var wants []*superblock
	for _, d := range a.slots() {
		if d.present() || d.state == DiskSpare {
			live, raws, wants = append(live, d), append(raws, d.found), append(wants, d.super)
		}
	}
	verdicts := judgeSupers(raws, wants, key)
	for _, c := range [superCopies]int{1, 2, 3, 0} { // wherever this is cut short, judgeSupers takes what is left for what the first cut left
		buf, err := a.meta.Get(a.ctx, len(live)*superSize)
		if err != nil {
			return err
		}
		var ops []blockdev.Op
		var written []*disk
		for i, d := range live {
			if verdicts[i][c].Verdict != CellGood {
				mem := buf.Bytes()[i*superSize:][:superSize]
				copy(mem, d.super.encode(c, key))
				ops = append(ops, blockdev.Op{Dev: d.gi, Write: true, Durable: true, Off: int64(c) * superStride, Buf: mem})
				written = append(written, d)
			}
		}
		failed, err := a.runWrites(ops, &buf)
		if err != nil {
			return err
		}
		for _, d := range failed {
			a.logger.Warn("superblock copy not rewritten", "path", d.path, "copy", c)
		}
		for _, d := range written {
			v := verdicts[slices.Index(live, d)][c]
			a.logger.Info("superblock copy rewritten", "path", d.path, "copy", c, "was", v.Verdict, "unfinished", v.unfinished)
			if !v.unfinished {
				a.noteMended(mendedCell{slot: d.slot, found: v.Verdict, kept: !slices.Contains(failed, d), what: fmt.Sprintf("superblock copy %d", c)})
			}
		}
	}
	return nil
}

// writeCopy writes one copy to those of the disks that are live, at once, and counts where it was taken.
func (a *Array) writeCopy(s *superblock, copyNo int, key []byte, good map[int]int, disks []*disk) error {
	var ops []blockdev.Op
	buf, err := a.meta.Get(context.WithoutCancel(a.ctx), len(disks)*superSize)
	if err != nil {
		return err
	}
	for i, d := range disks {
		if !d.listed() {
			continue
		}
		s.disk, s.slot, s.diskSize = d.id, d.slot, a.group.Device(d.gi).Limits().Size
		mem := buf.Bytes()[i*superSize:][:superSize]
		copy(mem, s.encode(copyNo, key))
		ops = append(ops, blockdev.Op{Dev: d.gi, Write: true, Durable: true, Off: int64(copyNo) * superStride, Buf: mem})
	}
	if len(ops) == 0 {
		buf.Release()
		return fmt.Errorf("write superblocks: no disk left: %w", ErrReadOnly)
	}
	failed, err := a.runWrites(ops, &buf)
	if err != nil {
		return fmt.Errorf("write superblocks: %w", err)
	}
	for _, op := range ops {
		good[a.diskOf[op.Dev].Load().slot]++
	}
	for _, d := range failed {
		good[d.slot]--
	}
	return nil
}

// rawSuper is what a disk has in the places of its superblock copies; nil where it could not be read.
type rawSuper [superCopies][]byte

// superMemory is what readSupers needs for n devices, bytes.
func superMemory(n int) int64 { return int64(n) * superCopies * superSize }

// readSupers reads the superblock copies of devices of a group, all at once, so that one that hangs costs one deadline. A device of
// which no copy can be read has an error.
func readSupers(g blockdev.Group, arena *blockdev.Arena, devs []int) ([]rawSuper, []error, error) {
	raws, errs := make([]rawSuper, len(devs)), make([]error, len(devs))
	if len(devs) == 0 {
		return raws, errs, nil
	}
	buf, err := arena.Get(context.Background(), int(superMemory(len(devs))))
	if err != nil {
		return nil, nil, err
	}
	ops := make([]blockdev.Op, len(devs)*superCopies)
	for i := range ops {
		c := i % superCopies
		ops[i] = blockdev.Op{Dev: devs[i/superCopies], Off: int64(c) * superStride, Buf: buf.Bytes()[i*superSize:][:superSize]}
	}
	defer func() { release(&buf, ops) }()
	if err := g.Run(ops); err != nil {
		return nil, nil, err
	}
	for i := range devs {
		n := 0
		for c := range superCopies {
			if op := &ops[i*superCopies+c]; op.Err != nil {
				errs[i] = errors.Join(errs[i], op.Err)
			} else {
				raws[i][c] = trimSuper(op.Buf)
				n++
			}
		}
		if n > 0 {
			errs[i] = nil
		}
	}
	return raws, errs, nil
}

// trimSuper copies the part of a superblock copy that its length field claims.
func trimSuper(b []byte) []byte {
	n := uint64(binary.LittleEndian.Uint32(b[12:])) + superTrailer
	return bytes.Clone(b[:min(max(n, superFixed+superTrailer), superSize)])
}

// WriteKeyArea writes the current key area to all superblocks: after a key slot or epoch was added. An epoch begins with it, so that a disk
// or spare that did not take it, or was away, has an older epoch as well, and a later start does not ask it what the keys are.
func (a *Array) WriteKeyArea() error {
	if err := a.log.change(func() error { return a.beginEpoch(a.log.acked.Load()) }); err != nil {
		return fmt.Errorf("write key area: %w", err)
	}
	return nil
}

// Close waits for what is under way, notes on the disks that nothing was left undone, and gives them back.
func (a *Array) Close() error {
	a.log.drain()
	a.log.mu.Lock()
	running := a.log.err == nil
	a.log.mu.Unlock()
	a.log.stop(errors.New("closed"))
	a.cancel()
	a.tasks.Wait()
	var err error
	if running {
		err = a.markClean()
	}
	return errors.Join(err, a.closeDevices())
}

// markClean writes the superblocks once more. It is a courtesy to checks: a failure loses nothing.
func (a *Array) markClean() error {
	a.lockGate()
	defer a.gate.Unlock()
	a.mu.RLock()
	s := a.super
	a.mu.RUnlock()
	s.clean, s.last = true, a.log.acked.Load()
	_, err := a.writeSuper(&s)
	return err
}

func (a *Array) closeDevices() error {
	err := a.group.Close()
	for i := range a.group.Len() {
		if e := a.group.Device(i).Close(); !errors.Is(e, blockdev.ErrClosed) { // as of a disk that was replaced
			err = errors.Join(err, e)
		}
	}
	if a.opt.arenas == nil {
		err = errors.Join(err, a.arena.Close(), a.reads.Close(), a.rebuild.Close(), a.meta.Close())
	}
	return err
}
