package blockdev

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
)

// SectorSize is what the simulated medium writes whole or not at all, in bytes.
const SectorSize = 512

// World is a simulated machine: disks that share one power supply and one source of randomness. Driven by one goroutine, it
// does the same again for the same seed; more goroutines are safe, but not repeatable.
//
// A change is a completed write, flush, discard or prepare; reads do not count, as a cut during one is a cut before the next change.
type World struct {
	mu      sync.Mutex // guards everything in the world and its disks
	rng     *rand.Rand
	disks   []*SimDisk
	flight  []flight
	changes uint64
	budget  uint64 // the change at which the power fails; 0: never
	off     bool
	trace   func(string)
}

// flight is an operation that was started and has not completed.
type flight struct {
	disk   *SimDisk
	op     *Op
	ticket *Ticket
	sum    uint32 // of the buffer of a write or a late read when that began: nobody may change it
	late   *hold  // of a read whose caller has left; its bytes still come into the buffer
}

// Ticket stands for the operations of one Start.
type Ticket struct {
	world *World
	left  int
}

// NewWorld makes a machine without disks, powered, that draws from rng.
func NewWorld(rng *rand.Rand) *World { return &World{rng: rng} }

// Trace has f called with a line of text for each change, fault and cut. nil ends it. f must not call the world.
func (w *World) Trace(f func(string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = f
}

// note traces; the arguments are formatted only when someone listens.
func (w *World) note(format string, args ...any) {
	if w.trace != nil {
		w.trace(fmt.Sprintf("change %d: ", w.changes) + fmt.Sprintf(format, args...))
	}
}

// CutAfter lets the power fail at the n-th change from now, which is torn like all that is not durable; 1 is the next one, 0
// calls a planned cut off.
func (w *World) CutAfter(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.budget = 0
	if n > 0 {
		w.budget = w.changes + uint64(n)
	}
}

// Changes is the number of changes so far, so that a test can repeat a run with a cut at each.
func (w *World) Changes() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

// Off reports whether the power is cut.
func (w *World) Off() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.off
}

// Cut fails the power now. Every write that is not durable, in flight or in a disk's cache, survives sector by sector at random: per
// disk none of them, all, half or most, in any order. Operations in flight end with ErrPowerCut, as does every call until Restart.
func (w *World) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut()
}

func (w *World) cut() {
	if w.off {
		return
	}
	w.off, w.budget = true, 0
	for _, d := range w.disks {
		var torn []simWrite
		for _, f := range w.flight {
			if f.disk == d && f.op.Write {
				torn = append(torn, cutPages(f.op.Buf, f.op.Off)...)
			}
		}
		d.powerOff(torn)
	}
	w.endFlight()
}

// endFlight ends the operations in flight as lost.
func (w *World) endFlight() {
	for _, f := range w.flight {
		f.op.Err = fmt.Errorf("access %s: %w", f.disk.name, ErrPowerCut)
		f.end()
	}
	w.flight = nil
}

// end tells the caller that the operation is over.
func (f *flight) end() {
	if f.late != nil {
		f.disk.counters.letGo(f.late, f.op.Err)
		return
	}
	f.ticket.left--
}

// Restart turns the power on and opens all disks again. Without a cut before it, it is the restart of a killed process: caches
// are kept, and each write in flight lands or does not. Faults of disks persist.
func (w *World) Restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flight {
		if f.op.Write && !f.disk.dead && w.rng.IntN(2) == 0 {
			f.disk.store(cutPages(f.op.Buf, f.op.Off), f.op.Durable)
		}
	}
	w.endFlight()
	w.off = false
	for _, d := range w.disks {
		d.closed = false
	}
	w.note("restart")
}

// tick counts a change, and fails the power when it is the planned one.
func (w *World) tick() error {
	w.changes++
	if w.budget != 0 && w.changes >= w.budget {
		w.note("power cut")
		w.cut()
		return ErrPowerCut
	}
	return nil
}

// InFlight is the number of operations started and not completed.
func (w *World) InFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flight)
}

// Step completes one operation in flight, any of them, and reports whether there was one.
func (w *World) Step() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.flight) == 0 {
		return false
	}
	w.complete(w.rng.IntN(len(w.flight)))
	return true
}

// Land completes all late reads.
func (w *World) Land() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.flight) - 1; i >= 0; i-- {
		if w.flight[i].late != nil {
			w.complete(i) // puts the last in its place, which was looked at
		}
	}
}

// complete ends the i-th operation in flight.
func (w *World) complete(i int) {
	f := w.flight[i]
	if (f.op.Write || f.late != nil) && f.sum != crc32.Checksum(f.op.Buf, castagnoli()) {
		panic("blockdev: buffer changed while a write of it, or a late read into it, was in flight")
	}
	if f.op.Write {
		if w.tick() != nil {
			return // the cut ended it with all others
		}
	}
	w.flight[i] = w.flight[len(w.flight)-1]
	w.flight = w.flight[:len(w.flight)-1]
	if f.disk.slow && f.op.LateAfter > 0 && f.late == nil {
		w.delay(f)
		return
	}
	f.disk.perform(f.op)
	f.end()
}

// delay lets the caller of a read go without its bytes, which come at any later time.
func (w *World) delay(f flight) {
	op := *f.op
	h := &hold{}
	if f.disk.counters.late.Load() >= maxLate {
		h = nil
	}
	(&member{path: f.disk.name, counters: &f.disk.counters}).late(f.op, h)
	f.ticket.left--
	if h != nil {
		w.flight = append(w.flight, flight{disk: f.disk, op: &op, late: h, sum: crc32.Checksum(op.Buf, castagnoli())})
	}
}

// start puts ops in flight.
func (w *World) start(devs []member, ops []Op) *Ticket {
	t := &Ticket{world: w, left: len(ops)}
	for i := range ops {
		f := flight{disk: devs[ops[i].Dev].Device.(*SimDisk), op: &ops[i], ticket: t}
		if f.op.Write {
			f.sum = crc32.Checksum(f.op.Buf, castagnoli())
		}
		w.flight = append(w.flight, f)
	}
	if w.off {
		w.endFlight()
	}
	return t
}

// castagnoli is the table of CRC-32C, which the processor computes; the call only looks it up.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// Done reports whether all operations of the ticket have their results.
func (t *Ticket) Done() bool {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	return t.left == 0
}

// SimGroup is the Group of simulated disks.
type SimGroup struct {
	base
	world  *World
	closed bool // guarded by world.mu
}

func newSimGroup(b base) (Group, error) {
	b.reason = "simulated disks"
	g := &SimGroup{base: b, world: b.devs[0].Device.(*SimDisk).world}
	for _, d := range b.devs[:b.Len()] {
		if d.Device.(*SimDisk).world != g.world {
			return nil, errors.New("group devices: disks of different worlds")
		}
	}
	return g, nil
}

func (g *SimGroup) Kind() string { return "sim" }

// World is the machine of the group's disks.
func (g *SimGroup) World() *World { return g.world }

func (g *SimGroup) Close() error {
	g.world.mu.Lock()
	defer g.world.mu.Unlock()
	if g.closed {
		return fmt.Errorf("close group: %w", ErrClosed)
	}
	g.closed = true
	return nil
}

// Start begins ops without waiting: World.Step completes them one by one, mixed with those of other tickets. The caller
// neither changes buffers nor reads results before Ticket.Done.
func (g *SimGroup) Start(ops []Op) (*Ticket, error) {
	if err := g.reset(ops); err != nil {
		return nil, err
	}
	g.world.mu.Lock()
	defer g.world.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("run batch: group %w", ErrClosed)
	}
	return g.world.start(g.devs, ops), nil
}

// Run completes ops, and on the way any others in flight, in random order.
func (g *SimGroup) Run(ops []Op) error {
	t, err := g.Start(ops)
	if err != nil {
		return err
	}
	for !t.Done() {
		g.world.Step()
	}
	return nil
}
