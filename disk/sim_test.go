package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk/internal/blockdev"
)

var (
	simSeed  = flag.Uint64("seed", 0, "replay this one seed of the simulation")
	simSeeds = flag.Int("seeds", 2000, "how many seeds to simulate")
	simFrom  = flag.Uint64("from", 1, "the first seed")
	simChurn = flag.Bool("churn", false, "change the set of disks often in the simulation")
	simTrace = flag.Bool("show", false, "print what happens in the simulation")
)

// TestSimulation runs random operations on simulated disks with power cuts at random writes, in recovery too, several stripes in
// flight, and faults of up to parity disks, and checks after every restart that the log is what a model says it must be:
// every acknowledged record, in order, then a prefix of those in doubt, and every byte as it was written.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		if err := simulate(*simSeed, faults{}, simKinds, *simTrace, t.Logf); err != nil {
			t.Fatalf("seed %d: %v", *simSeed, err)
		}
		return
	}
	n := *simSeeds
	switch {
	case testing.Short():
		n = min(n, 60) // a run has one goroutine at work: the race detector, whose form this is, sees little in it
	case os.Getenv("COFFER_SOAK") != "":
		n = max(n, 10000)
	}
	start := time.Now()
	var total simStats
	var failures atomic.Int32
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range seeds {
				churn := ""
				if *simChurn {
					churn = " -churn"
				}
				st, err := simulateStats(seed, faults{}, simKinds, false, t.Logf)
				mu.Lock()
				total.add(st)
				mu.Unlock()
				if err != nil && failures.Add(1) < 10 {
					t.Errorf("seed %d: %v (replay: go test ./disk -run 'TestSimulation$' -seed %d%s -show -v)", seed, err, seed, churn)
				}
			}
		})
	}
	for i := range n {
		seeds <- *simFrom + uint64(i)
	}
	close(seeds)
	wg.Wait()
	t.Logf("seeds %d..%d: %v in %v, %d failed", *simFrom, *simFrom+uint64(n)-1, total, time.Since(start).Round(time.Second), failures.Load())
}

// TestSimulationMisdirected is the control of the location bug below: the same faults without the bug do no harm.
func TestSimulationMisdirected(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		if err := simulate(seed+1, faults{}, blockdev.FaultMisdirect, false, t.Logf); err != nil {
			t.Errorf("seed %d: %v", seed+1, err)
		}
	}
}

// TestSimulationCatchesBugs switches on one seeded bug after the other: the simulation must see each.
func TestSimulationCatchesBugs(t *testing.T) {
	if testing.Short() {
		t.Skip("the simulation is shortened: its bugs are looked for in the full run")
	}
	const seeds = 1500
	for _, bug := range []struct {
		name  string
		f     faults
		kinds blockdev.FaultKind // what the bug is blind to, to meet it soon
		from  uint64             // the seeds before do not meet it
	}{
		{"moveearly", faults{moveEarly: true}, simKinds, 0},
		{"noplaced", faults{noPlaced: true}, simKinds, 0},
		{"droptwice", faults{dropTwice: true}, simKinds, 0},
		{"nomark", faults{noMark: true}, simKinds, 0},
		{"nopin", faults{noPin: true}, simKinds, 90},
		{"trustdata", faults{trustData: true}, blockdev.FaultRot | blockdev.FaultOverwrite | blockdev.FaultStale, 120},
		{"noinflight", faults{noInFlight: true}, simKinds, 0},
		{"nohold", faults{noHold: true}, blockdev.FaultSlow, 0},
		{"noshadow", faults{noShadow: true}, simKinds, 0},
		{"ackfirst", faults{ackFirst: true}, simKinds, 0},
		{"noflush", faults{noFlush: true}, simKinds, 0},
		{"norepair", faults{noRepair: true}, simKinds, 0},
		{"noverify", faults{noVerify: true}, simKinds, 0},
		{"nononce", faults{noNonce: true}, simKinds, 0},
		{"noloc", faults{noLocation: true}, blockdev.FaultMisdirect, 60},
	} {
		t.Run(bug.name, func(t *testing.T) {
			t.Parallel()
			for seed := bug.from; seed < bug.from+seeds; seed++ {
				if err := simulate(seed+1, bug.f, bug.kinds, false, t.Logf); err != nil {
					t.Logf("caught at seed %d: %v", seed+1, err)
					return
				}
			}
			t.Errorf("not caught in %d seeds", seeds)
		})
	}
}

// simKinds are the faults of a normal run.
const simKinds = blockdev.FaultRot | blockdev.FaultOverwrite | blockdev.FaultStale | blockdev.FaultMisplaced | blockdev.FaultBadRange |
	blockdev.FaultLostWrite | blockdev.FaultMisdirect | blockdev.FaultFailOnce | blockdev.FaultDead | blockdev.FaultHung | blockdev.FaultFull | blockdev.FaultSlow

// simOutages are faults that keep a disk away and do no harm to what it holds.
const simOutages = blockdev.FaultFailOnce | blockdev.FaultDead | blockdev.FaultHung | blockdev.FaultFull | blockdev.FaultSlow

type simStats struct {
	cuts, acked, opens, stripes, faults, freed, replaced, scrubs, mended, rekeyed, members, drained, promoted, hedges, healed int
}

func (s *simStats) add(o simStats) {
	s.cuts += o.cuts
	s.acked += o.acked
	s.opens += o.opens
	s.stripes += o.stripes
	s.faults += o.faults
	s.freed += o.freed
	s.replaced += o.replaced
	s.scrubs += o.scrubs
	s.mended += o.mended
	s.rekeyed += o.rekeyed
	s.members += o.members
	s.drained += o.drained
	s.promoted += o.promoted
	s.hedges += o.hedges
	s.healed += o.healed
}

func (s simStats) String() string {
	return fmt.Sprintf("%d power cuts, %d opens, %d stripes, %d acknowledged records, %d bands freed, %d disks replaced, %d faults, "+
		"%d scrubs ended, %d cells repaired by them, %d key epochs begun, %d changes of membership, %d disks drained, %d spares used, %d reads hedged, %d times made whole",
		s.cuts, s.opens, s.stripes, s.acked, s.freed, s.replaced, s.faults, s.scrubs, s.mended, s.rekeyed, s.members, s.drained, s.promoted, s.hedges, s.healed)
}

// sim is one run: a machine, an array on it, and what the clients know.
type sim struct {
	rng   *rand.Rand
	world *blockdev.World
	disks []*blockdev.SimDisk
	geo   Geometry
	// extents of each disk: where there are few, space is short
	extents int64
	outages bool // disks go away and come back, and lose nothing
	leave   bool // disks are taken out and put in again, also with what they held long before
	bugs    faults

	cutStarts int // before the last one, which was not

	kinds blockdev.FaultKind
	hurt  bool // one fault a life when only some kinds are wanted
	logf  func(string, ...any)
	trace bool
	stats simStats

	a       *Array
	keys    *simKeys
	state   *simState
	saved   *simState // the state's last checkpoint
	ops     []*simOp  // everything ever given to the log, in order
	arenas  [3]*blockdev.Arena
	acked   int // of ops, how many are acknowledged from the front
	flight  []simFlight
	suspect []int                     // of disks, on which faults are allowed
	absent  map[int]bool              // disks that the next start does not see at all
	images  map[int]blockdev.SimImage // what suspects once held
	ids     uint64
	tasks   []*simTask
	running *simTask // nil: the driver itself
	// compacting is set while a band is emptied: what is in it must not be killed meanwhile, as a caller's locks see to.
	compacting uint64
	replacing  bool
	changing   bool // the set of disks
	rekeying   bool
	draining   map[*rebuilding]bool
	scrubbing  *simTask
}

// simTask is a client of the engine in the middle of a call: a coroutine, so that the order in which calls go on is the seed's.
type simTask struct {
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
}

var errSimStopped = errors.New("the machine is gone")

// maxSimTasks is how many calls are under way at most; their stripes fit into the arena together.
const maxSimTasks = 14

// spawn begins a call that goes on whenever the driver lets it.
func (s *sim) spawn(f func()) {
	s.begin(f)
	s.goOn(len(s.tasks) - 1)
}

// begin is spawn, but leaves it to the driver when the call makes its first step.
func (s *sim) begin(f func()) {
	t := &simTask{}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != errSimStopped {
				panic(r)
			}
		}()
		t.yield = yield
		f()
	})
	s.tasks = append(s.tasks, t)
}

// resume lets one of the calls under way go on until it waits again.
func (s *sim) resume() {
	if len(s.tasks) == 0 || s.running != nil {
		return
	}
	s.goOn(s.rng.IntN(len(s.tasks)))
}

func (s *sim) goOn(i int) {
	t := s.tasks[i]
	s.running = t
	_, alive := t.next()
	s.running = nil
	if !alive {
		s.tasks = slices.Delete(s.tasks, i, i+1)
	}
}

// wait is where the engine waits for others: a call gives way to the driver, the driver goes on with all else.
func (s *sim) wait() {
	t := s.running
	if t == nil {
		s.step()
		return
	}
	if !t.yield(struct{}{}) {
		panic(errSimStopped)
	}
}

// taskGroup lets a call that waits for disks give way.
type taskGroup struct {
	*blockdev.SimGroup
	s *sim
}

func (g taskGroup) Run(ops []blockdev.Op) error {
	if g.s.running == nil {
		return g.SimGroup.Run(ops)
	}
	if g.s.running == g.s.scrubbing && !slices.ContainsFunc(ops, func(o blockdev.Op) bool { return o.Write }) {
		// A scrub reads very often: it gives way now and then, and its reads fall between the writes of all others.
		if g.s.rng.IntN(3) == 0 {
			g.s.wait()
		}
		return g.SimGroup.Run(ops)
	}
	t, err := g.Start(ops)
	if err != nil {
		return err
	}
	for !t.Done() {
		g.s.wait()
	}
	return nil
}

func (s *sim) group(devs []blockdev.Device) (blockdev.Group, error) {
	g, err := simGroup(devs)
	if err != nil {
		return nil, err
	}
	return taskGroup{g.(*blockdev.SimGroup), s}, nil
}

// simOp is a record given to the log: packed data, a bulk stripe, or the end of one of these.
type simOp struct {
	id     uint64
	kind   simKind
	size   int
	stripe Stripe
	victim *simOp // simKill
	killed bool   // a kill of it was given to the log
	req    *request
	acked  bool
}

// simKeys are the keys of a process that knows the key epochs whose area it found on the disks. What a stripe is sealed with must be there at
// every later start.
type simKeys struct {
	testKeys
	known, current uint32
}

func openSimKeys(area []byte) *simKeys {
	known := binary.LittleEndian.Uint32(area)
	return &simKeys{known: known, current: known}
}

func (k *simKeys) CurrentEpoch() uint32 { return k.current }
func (k *simKeys) Area() []byte         { return binary.LittleEndian.AppendUint32(nil, k.known) }

func (k *simKeys) RecordKey(e uint32) ([]byte, error) {
	if e > k.known {
		return nil, fmt.Errorf("key epoch %d: %d are known", e, k.known)
	}
	return k.testKeys.RecordKey(e)
}

type simFlight struct {
	s *packedStripe
	t *blockdev.Ticket
}

var simShapes = []struct{ n, data, parity int }{{6, 4, 2}, {3, 2, 1}, {2, 1, 1}, {6, 3, 2}, {4, 1, 3}, {7, 4, 2}, {5, 2, 2}, {8, 5, 3}, {1, 1, 0}, {3, 3, 0}, {12, 8, 4}}

func simulate(seed uint64, bugs faults, kinds blockdev.FaultKind, trace bool, logf func(string, ...any)) error {
	_, err := simulateStats(seed, bugs, kinds, trace, logf)
	return err
}

func simulateStats(seed uint64, bugs faults, kinds blockdev.FaultKind, trace bool, logf func(string, ...any)) (st simStats, err error) {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 4)), bugs: bugs, kinds: kinds, logf: logf, trace: trace, state: newSimState(), saved: newSimState(), draining: map[*rebuilding]bool{},
		absent: map[int]bool{}, images: map[int]blockdev.SimImage{}}
	for i := range s.arenas {
		s.arenas[i] = newArena(256 << 20)
	}
	s.world = blockdev.NewWorld(rand.New(rand.NewPCG(seed, 5)))
	defer func() {
		if r := recover(); r != nil {
			if bugs == (faults{}) {
				panic(fmt.Sprintf("seed %d: %v", seed, r))
			}
			err = fmt.Errorf("panic: %v", r)
		}
		st = s.stats
		for _, arena := range s.arenas {
			arena.Close()
		}
	}()
	if trace {
		s.world.Trace(func(l string) { logf("  %s", l) })
	}
	shape := simShapes[s.rng.IntN(len(simShapes))]
	s.geo = Geometry{Data: shape.data, Parity: shape.parity, ExtentSize: []int64{1 << 20, 1 << 20, 4 << 20}[s.rng.IntN(3)]}
	s.extents = []int64{40, 40, 14}[s.rng.IntN(3)]
	for range shape.n {
		s.disks = append(s.disks, blockdev.NewSimDisk(s.world, s.simDiskSize(), blockdev.SimOptions{}))
	}
	err = Create(context.Background(), CreateOptions{
		ArrayID: [16]byte{7}, Geometry: s.geo, Keys: &simKeys{known: 1}, devices: s.devices(), group: simGroup, rand: s.random,
	})
	if err != nil {
		return s.stats, fmt.Errorf("create: %w", err)
	}
	s.world.Restart()
	// Faults stay on a few disks, so that no more than parity are ever hurt. A missing majority needs its own flag.
	// Where as few disks as are left could be a stale half, they are opened because the operator says so: then those that were merely away hold
	// another history, and are rightly refused.
	s.leave = kinds == simKinds && shape.data > shape.parity
	s.outages = s.rng.IntN(4) == 0 && s.leave
	hurt := s.rng.IntN(shape.parity + 1)
	if kinds != simKinds {
		hurt = shape.parity
	}
	s.suspect = append(s.suspect, s.rng.Perm(shape.n)[:hurt]...)
	for range 3 + s.rng.IntN(5) {
		if err := s.life(); err != nil {
			return s.stats, err
		}
	}
	return s.stats, s.final()
}

func (s *sim) random(b []byte) {
	for i := range b {
		b[i] = byte(s.rng.Uint32())
	}
}

func (s *sim) devices() (devs []blockdev.Device) {
	for _, d := range s.disks {
		devs = append(devs, d)
	}
	return devs
}

func simGroup(devs []blockdev.Device) (blockdev.Group, error) {
	return blockdev.NewGroup(devs, blockdev.GroupOptions{})
}

func (s *sim) say(format string, args ...any) {
	if s.trace {
		s.logf(format, args...)
	}
}

// life opens the array, uses it, and ends it by a power cut, a kill or a clean stop.
func (s *sim) life() error {
	s.hurt = false
	if err := s.openUntilUp(); err != nil {
		return err
	}
	if err := s.verify(); err != nil {
		return err
	}
	if s.rng.IntN(3) > 0 {
		s.spawn(s.promote)
		s.rebuild()
		if s.rng.IntN(2) == 0 && slices.ContainsFunc(s.a.slots(), func(d *disk) bool { return d.state == DiskForeign }) {
			s.replace()
		}
	}
	if s.rng.IntN(3) > 0 {
		s.world.CutAfter(1 + s.rng.IntN(120))
	}
	acts := 5 + s.rng.IntN(60)
	if s.rng.IntN(100) == 0 || s.bugs.dropTwice { // once round the disks
		acts += 400
	}
	for range acts {
		if s.world.Off() {
			break
		}
		s.act()
	}
	return s.end()
}

// maxSimDisks bounds the devices of a run.
const maxSimDisks = 30

var errSimLive = errors.New("something in it cannot be moved now")

// step is what the engine's goroutines do: cut a stripe, or let the disks do one operation, and take what is finished.
func (s *sim) step() {
	p := s.a.log
	p.mu.Lock()
	var cut *packedStripe
	if p.canCut(s.a.scarce()) && (len(s.flight) == 0 || s.rng.IntN(3) > 0) {
		cut = p.cut()
	}
	p.mu.Unlock()
	if cut != nil {
		if err := s.a.encodePacked(cut, p.acked.Load()); err != nil {
			panic(err)
		}
		t, err := s.a.group.(taskGroup).Start(cut.ops)
		if err != nil {
			panic(err)
		}
		s.stats.stripes++
		s.flight = append(s.flight, simFlight{cut, t})
		for _, op := range s.ops {
			op.acked = op.acked || s.bugs.ackFirst && slices.Contains(cut.reqs, op.req)
		}
	}
	for range s.rng.IntN(6) {
		s.world.Step()
	}
	for range s.rng.IntN(3) {
		s.resume()
	}
	s.reap()
}

// reap finishes stripes whose writes have ended and counts acknowledgements.
func (s *sim) reap() {
	for i := 0; i < len(s.flight); {
		if f := s.flight[i]; f.t.Done() {
			s.flight = slices.Delete(s.flight, i, i+1)
			s.a.log.finish(f.s)
			i = 0
			continue
		}
		i++
	}
	s.ops = slices.DeleteFunc(s.ops, func(op *simOp) bool {
		if op.acked {
			return false
		}
		select {
		case <-op.req.done:
			op.acked = op.req.err == nil
			return errors.Is(op.req.err, ErrFull) // refused: nothing was written
		default:
			return false
		}
	})
	for s.acked < len(s.ops) && s.ops[s.acked].acked {
		s.acked++
		s.stats.acked++
	}
}

// settle lets everything queued reach the disks.
func (s *sim) settle() {
	for range 10000 {
		p := s.a.log
		p.mu.Lock()
		idle := p.err != nil || (len(p.queue) == 0 && len(p.inflight) == 0)
		p.mu.Unlock()
		if idle && len(s.flight) == 0 && len(s.tasks) == 0 || s.world.Off() {
			return
		}
		s.step()
	}
	panic("the log does not come to rest")
}

// fault hurts one of the suspects.
func (s *sim) fault() {
	var suspects []*blockdev.SimDisk
	for _, i := range s.suspect {
		suspects = append(suspects, s.disks[i])
	}
	kinds := s.kinds
	if s.outages {
		kinds = simOutages
	}
	f := s.world.RandomFault(suspects, kinds)
	s.stats.faults++
	s.say("fault: %v", f)
}

// end stops the machine.
func (s *sim) end() error {
	cut := s.world.Off()
	if !cut && s.rng.IntN(3) == 0 {
		s.settle()
		if s.world.Off() {
			cut = true
		} else if s.rng.IntN(2) == 0 {
			s.saved = s.state.clone()
		}
	}
	if !cut && s.rng.IntN(2) == 0 {
		s.world.Cut()
		cut = true
	}
	s.reap()
	if cut {
		s.stats.cuts++
	}
	if !cut && len(s.flight) == 0 && len(s.a.log.queue) == 0 && len(s.tasks) == 0 && s.rng.IntN(2) == 0 {
		s.say("closed")
		s.a.Close()
	}
	s.say("end: cut %v, %d of %d acknowledged", cut, s.acked, len(s.ops))
	s.drop()
	s.restart()
	s.state = s.saved.clone()
	if s.rng.IntN(6) == 0 || s.kinds != simKinds {
		s.state, s.saved = newSimState(), newSimState()
	}
	return nil
}

// drop forgets the open array as a crash does, and takes its memory back.
func (s *sim) drop() {
	for _, t := range s.tasks {
		t.stop()
	}
	s.tasks, s.compacting, s.replacing, s.scrubbing = nil, 0, false, nil
	s.changing, s.rekeying, s.draining = false, false, map[*rebuilding]bool{}
	for _, f := range s.flight {
		f.s.buf.Release()
	}
	s.flight = nil
	s.stats.hedges += int(s.a.hedges.issued.Load())
	s.world.Land()
	s.a.cancel()
	s.a.group.Close()
	for i, arena := range s.arenas {
		if n, _ := arena.Stats(); n != 0 {
			panic(fmt.Sprintf("%d bytes of buffers leaked in arena %d", n, i))
		}
	}
}

// restart turns the machine on again. Dead disks may come back, with what they held then or long before, and others stay away.
func (s *sim) restart() {
	s.world.Restart()
	for _, i := range s.suspect {
		if s.rng.IntN(2) == 0 {
			s.revive(i)
		} else if s.kinds == simKinds && !s.outages && s.rng.IntN(12) == 0 {
			s.disks[i].Truncate((1 + s.rng.Int64N(s.simDiskSize()/BlockSize)) * BlockSize)
		}
		if s.outages && s.rng.IntN(2) == 0 {
			s.disks[i].Kill() // what was on its way to it is missing, and the others go on
		}
		if s.leave {
			s.absent[i] = s.rng.IntN(6) == 0
			s.turnBack(i)
		}
	}
}

// turnBack keeps what a disk holds, or lets it hold again what was kept.
func (s *sim) turnBack(i int) {
	switch what := s.rng.IntN(12); {
	case what < 2:
		s.images[i] = s.disks[i].Snapshot()
	case what == 2 && !s.outages:
		if image, ok := s.images[i]; ok {
			s.say("%s holds what it held once", s.disks[i].Path())
			s.disks[i].Restore(image)
			s.stats.faults++
		}
	}
}

// simDiskSize is how large all disks are.
func (s *sim) simDiskSize() int64 { return superArea + s.extents*s.geo.ExtentSize }

// revive ends the faults that make a disk be away or refuse writes.
func (s *sim) revive(i int) {
	d := s.disks[i]
	delete(s.absent, i)
	d.Revive()
	d.Unhang()
	d.Unfill()
	d.Truncate(s.simDiskSize())
}

// openUntilUp opens the array; the power may fail meanwhile, again and again.
func (s *sim) openUntilUp() error {
	for try := 0; ; try++ {
		if try < 3 && s.rng.IntN(3) == 0 {
			s.world.CutAfter(1 + s.rng.IntN(40))
		} else {
			s.world.CutAfter(0)
		}
		s.stats.opens++
		err := s.open()
		if err == nil {
			s.cutStarts = try
			return nil
		}
		if !s.world.Off() {
			return fmt.Errorf("open: %w", err)
		}
		s.say("power cut while opening")
		s.stats.cuts++
		s.restart()
		s.state = s.saved.clone()
	}
}

func (s *sim) open() error {
	var live []blockdev.Device
	for i, d := range s.disks {
		if !s.absent[i] {
			live = append(live, d)
		}
	}
	for _, degraded := range []bool{false, true} {
		set, err := discover(live, nil, 0)
		if err != nil {
			return err
		}
		s.keys = openSimKeys(set.KeyArea())
		counted := set.newest().counted()
		s.a, err = set.Open(context.Background(), Options{
			Keys: s.keys, State: s.state, Crypto: crypto(), Degraded: degraded,
			group: s.group, manual: s.wait, begin: s.begin, rand: s.random, faults: s.bugs, arenas: &s.arenas, Discard: Discard(s.rng.IntN(3)),
		})
		if err == nil {
			s.a.SetDear(s.rng.IntN(2) == 0)
		}
		if degraded || !errors.Is(err, ErrMembership) || s.world.Off() {
			return err
		}
		if s.kinds == simKinds && s.bugs == (faults{}) && counted > 2*s.geo.Parity {
			return fmt.Errorf("refused, though %d of %d disks must be good: %w", counted-s.geo.Parity, counted, err)
		}
		s.say("degraded: %v", err)
		s.world.Restart()
		s.state = s.saved.clone()
	}
	return nil
}

// honest returns an error if opening the array called anything bad on a disk that does all that it is told: what a power cut leaves is no damage.
func (s *sim) honest() error {
	for i := range s.disks {
		slot := s.slotOf(i)
		if slices.Contains(s.suspect, i) || slot < 0 {
			continue
		}
		for _, d := range s.a.mended.Disks {
			supers := s.cutStarts > 0 && !slices.ContainsFunc(s.a.mended.Faults, func(f string) bool { // see judgeSupers
				return strings.HasPrefix(f, d.Path+": ") && !strings.Contains(f, "superblock copy")
			})
			if d.Slot == slot && len(d.Found) > 0 && !supers {
				return fmt.Errorf("disk %d is honest, and a start found %v: %v", i, d.Found, s.a.mended.Faults)
			}
		}
	}
	return nil
}

// verify compares the log with the model and takes what it shows as the truth from now on.
func (s *sim) verify() error {
	got := s.state.byID()
	s.say("verify: %d records, %d acknowledged of %d", len(got), s.acked, len(s.ops))
	if len(s.a.losses) > 0 {
		return fmt.Errorf("loss of acknowledged stripes reported: %+v", s.a.losses)
	}
	if err := s.honest(); err != nil {
		return err
	}
	// What was acknowledged is there, then a prefix of what is in doubt.
	n := s.acked
	for n < len(s.ops) && s.applied(s.ops[n], got) {
		n++
	}
	for _, op := range s.ops[n:] {
		if _, ok := got[op.id]; ok {
			return fmt.Errorf("record %d is there, but not %d before it", op.id, s.ops[n].id)
		}
	}
	dead := map[*simOp]bool{}
	for _, op := range s.ops[:n] {
		if op.victim != nil {
			dead[op.victim] = true
		}
	}
	for _, op := range s.ops[:n] {
		_, ok := got[op.id]
		switch {
		case op.kind == simKill: // it may be forgotten once its victim cannot come back
		case dead[op] && ok:
			return fmt.Errorf("record %d vanished, and is back", op.id)
		case !dead[op] && !ok:
			return fmt.Errorf("record %d was acknowledged and is gone", op.id)
		}
		delete(got, op.id)
	}
	for id := range got {
		return fmt.Errorf("record %d was never acknowledged, or not there before", id)
	}
	// What is visible now must stay; what is not must never appear.
	s.ops = s.ops[:n]
	for _, op := range s.ops {
		op.acked, op.killed = true, dead[op]
	}
	s.acked = n
	all := s.state.sorted()
	for _, r := range all {
		if s.rng.IntN(1+len(all)/20) == 0 {
			if err := s.readBack(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// applied reports whether an operation in doubt has come into effect.
func (s *sim) applied(op *simOp, got map[uint64]simRecord) bool {
	if _, ok := got[op.id]; ok {
		return true
	}
	for _, later := range s.ops {
		if later.victim == op && s.applied(later, got) {
			return true // and has vanished again
		}
	}
	return false
}

// readBack checks the bytes of a visible record.
func (s *sim) readBack(r simRecord) error {
	s.say("read %d (%x) in %x at %x %x", r.id, r.seq, r.band, r.data.Band, r.bulk.Band)
	switch r.kind {
	case simPut:
		p, err := readLoc(s.a, r.data, r.id)
		if err != nil {
			return fmt.Errorf("read record %d: %w", r.id, err)
		}
		if !bytes.Equal(p, payload(r.id, len(p))) {
			return fmt.Errorf("record %d: wrong bytes", r.id)
		}
	case simBulk:
		first := s.rng.IntN(int(r.bulk.Segments))
		base := r.id<<20 | 1
		segs, err := readSegments(s.a, r.bulk, first, 1+s.rng.IntN(int(r.bulk.Segments)-first), base)
		if err != nil {
			return fmt.Errorf("read stripe of record %d: %w", r.id, err)
		}
		for j, p := range segs {
			if !bytes.Equal(p, payload(base+uint64(first+j), SegmentSize)) {
				return fmt.Errorf("record %d segment %d: wrong bytes", r.id, first+j)
			}
		}
	}
	return nil
}

// readOne reads something visible while the array runs.
func (s *sim) readOne() {
	if all := s.state.sorted(); len(all) > 0 && !s.world.Off() {
		if err := s.readBack(all[s.rng.IntN(len(all))]); err != nil && !s.world.Off() && !errors.Is(err, ErrReadOnly) {
			panic(fmt.Sprintf("read while running: %v", err))
		}
	}
}

// heal returns the disks that are lost at the very end: those of the faults; or, for half of the seeds, any, after all were there
// once more and the array was made whole. What says that it is whole must be: where disks were merely away, without a check's help.
func (s *sim) heal() ([]int, error) {
	if s.kinds != simKinds || !s.outages && s.rng.IntN(2) == 0 {
		return s.suspect, nil
	}
	for _, i := range s.suspect {
		s.revive(i)
		s.disks[i].Unslow()
		s.disks[i].Disarm()
	}
	s.state = newSimState()
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open to heal: %w", err)
	}
	defer s.drop()
	for _, d := range s.a.slots() {
		if d.state == DiskRebuilding && d.rebuild != nil {
			s.a.rebuildDisk(s.a.ctx, d, d.rebuild)
		}
		if d.draining && d.drain != nil {
			s.a.drainDisk(s.a.ctx, d, d.drain)
		}
	}
	if !s.outages {
		if _, err := s.a.Check(context.Background(), CheckOptions{Repair: true}); err != nil {
			return nil, fmt.Errorf("repair: %w", err)
		}
	}
	for _, b := range s.a.sortedBands() {
		s.say("healed band %x %v", b.num, b.members)
	}
	st := s.a.Status()
	rep, err := s.a.Check(context.Background(), CheckOptions{})
	switch {
	case err != nil:
		return nil, fmt.Errorf("check: %w", err)
	case slices.ContainsFunc(s.a.slots(), func(d *disk) bool { return d.counts() && !d.whole() }) || len(st.Losses) > 0:
		return s.suspect, nil
	case !rep.OK():
		return nil, fmt.Errorf("the array is healthy, and a check says: %+v", rep)
	}
	var members []int
	for i := range s.disks {
		if slot := s.slotOf(i); slot >= 0 && s.a.slots()[slot].counts() {
			members = append(members, i)
		}
	}
	bears := s.geo.Parity
	for _, b := range s.a.sortedBands() {
		bears = min(bears, b.parity) // those are thin
	}
	s.rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	s.stats.healed++
	return members[:bears], nil
}

// final opens without the disks that heal gave up and reads everything.
func (s *sim) final() error {
	defer func() {
		if s.a != nil {
			s.drop()
		}
	}()
	s.world.CutAfter(0)
	gone, err := s.heal()
	if err != nil {
		return fmt.Errorf("final: %w", err)
	}
	for _, i := range gone {
		s.disks[i].Kill()
	}
	s.state = newSimState()
	if err := s.open(); err != nil {
		return fmt.Errorf("final open: %w", err)
	}
	for _, b := range s.a.sortedBands() {
		s.say("final band %x %v", b.num, b.members)
	}
	if err := s.verify(); err != nil {
		return fmt.Errorf("final: %w", err)
	}
	rep, err := s.a.Check(context.Background(), CheckOptions{Sample: 1})
	if err != nil || rep.Lost > 0 || rep.Bad > 0 || rep.Mismatched > 0 || rep.Unopened > 0 || (len(gone) == 0 && !rep.OK()) {
		return fmt.Errorf("final: check: %+v, %v", rep, err)
	}
	for _, r := range s.state.sorted() {
		if err := s.readBack(r); err != nil {
			return fmt.Errorf("final: %w", err)
		}
	}
	return nil
}
