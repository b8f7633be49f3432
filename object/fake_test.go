package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object/internal/seal"
)

// memLog is a Log in memory. Records that come together make one packed stripe, as in the disk engine.
type memLog struct {
	state    disk.State
	segments int // per bulk stripe
	bandSize int // bytes of packed data in a band

	slowMoves  bool // appends of records that are moved wait a little
	beforeFree func(disk.Band)
	beforeMove func(body []byte) // called before a record is appended that is moved

	pressure chan struct{}
	room     chan struct{} // nil: memory for any number of stripes; else holds one for each being written

	mu      sync.Mutex // guards all below
	missing []uint64
	damaged bool // bands were taken away
	bands   map[uint64]*memBand
	last    uint64 // highest number of a band
	packing uint64 // open packed band, 0: none
	bulking uint64 // open bulk band
	off     uint32
	stripe  uint64 // last one
	queue   []*memRequest
	busy    bool
	history []memStripe
	packed  map[disk.Loc][]byte
	bulk    map[disk.Stripe][]byte
	rotten  map[disk.Stripe]map[int]bool // segments whose first read gives wrong bytes
	lost    map[disk.Stripe]map[int]bool // beyond repair as well
	torn    map[uint64]bool              // packed stripes that cannot be read
	badLoc  bool                         // packed reads give wrong bytes at first
	written int64                        // bytes

	failAppend, failCommit, failStripe, failFree atomic.Pointer[error]
	appends                                      atomic.Int64 // how many succeed before failAppend
	relieved                                     atomic.Pointer[chan struct{}]
	segmentsRead, repairs, views                 atomic.Int64
}

type memBand struct {
	disk.Band
	pins    int
	stripes int
}

type memStripe struct {
	pos     disk.Position
	entries []disk.Entry
}

type memRequest struct {
	rec  disk.Record
	seq  uint64
	err  error
	done chan struct{}
}

func newMemLog(state disk.State, segments int) *memLog {
	return &memLog{state: state, segments: segments, bandSize: 1 << 20, pressure: make(chan struct{}, 1), bands: map[uint64]*memBand{},
		packed: map[disk.Loc][]byte{}, bulk: map[disk.Stripe][]byte{}, torn: map[uint64]bool{},
		rotten: map[disk.Stripe]map[int]bool{}, lost: map[disk.Stripe]map[int]bool{}}
}

func (l *memLog) Append(_ context.Context, r disk.Record) (uint64, error) {
	if e := l.failAppend.Load(); e != nil && l.appends.Add(-1) < 0 {
		return 0, *e
	}
	if len(r.Body) > disk.MaxBody || len(r.Data) > disk.MaxPacked {
		return 0, disk.ErrTooLarge
	}
	if l.slowMoves && r.Seq > 0 {
		time.Sleep(time.Duration(rand.IntN(int(10 * time.Millisecond))))
	}
	if l.beforeMove != nil && r.Seq > 0 {
		l.beforeMove(r.Body)
	}
	q := &memRequest{rec: r, done: make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, q)
	if l.busy {
		l.mu.Unlock()
		<-q.done
		return q.seq, q.err
	}
	l.busy = true
	for len(l.queue) > 0 {
		batch := l.queue
		l.queue = nil
		st := l.cut(batch)
		l.mu.Unlock()
		err := l.state.Apply(st.pos, st.entries)
		for _, b := range batch {
			b.err = err
			close(b.done)
		}
		l.mu.Lock()
		l.bands[st.pos.Band].pins--
	}
	l.busy = false
	l.mu.Unlock()
	return q.seq, q.err
}

// open opens a band in place of an old one; mu is held.
func (l *memLog) open(old uint64, bulk bool) uint64 {
	if b := l.bands[old]; b != nil {
		b.Closed = true
	}
	l.last++
	size := int64(l.bandSize)
	if bulk {
		size = int64(4 * l.segments * seal.SegmentSize)
	}
	l.bands[l.last] = &memBand{Band: disk.Band{Num: l.last, Bulk: bulk, Opened: time.Now(), Size: size}}
	return l.last
}

// roll closes the open bands, as a restart does.
func (l *memLog) roll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.bands {
		b.Closed = true
	}
	l.packing, l.bulking = 0, 0
}

// cut makes a stripe of records; mu is held. Its band stays until they are applied.
func (l *memLog) cut(batch []*memRequest) memStripe {
	if l.packing == 0 || int(l.off) > l.bandSize {
		l.packing, l.off = l.open(l.packing, false), 0
	}
	l.stripe++
	l.bands[l.packing].pins++
	st := memStripe{pos: disk.Position{Stripe: l.stripe, Band: l.packing, Off: l.off}}
	start := uint32(0)
	for i, b := range batch {
		if b.seq = b.rec.Seq; b.seq == 0 {
			b.seq = l.stripe<<16 | uint64(i)
		}
		e := disk.Entry{Seq: b.seq, Body: bytes.Clone(b.rec.Body)}
		if len(b.rec.Data) > 0 {
			e.Data = disk.Loc{Band: l.packing, Off: l.off, Start: start, Len: uint32(len(b.rec.Data))}
			l.packed[e.Data] = bytes.Clone(b.rec.Data)
		}
		start += uint32(len(b.rec.Data) + len(b.rec.Body))
		st.entries = append(st.entries, e)
	}
	l.off += start + 1
	l.written += int64(start)
	l.history = append(l.history, st)
	return st
}

func (l *memLog) MaxStripeSegments() int { return l.segments }

func (l *memLog) NewStripe(ctx context.Context, n int) (StripeWriter, error) {
	if n < 1 || n > l.segments {
		panic(fmt.Sprintf("stripe of %d segments", n))
	}
	if e := l.failStripe.Load(); e != nil {
		return nil, *e
	}
	if l.room != nil {
		select {
		case l.room <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return &memWriter{l: l, mem: bytes.Repeat([]byte{0xaa}, n*seal.SegmentSize)}, ctx.Err()
}

func (l *memLog) NewReservedStripe(ctx context.Context, n int) (StripeWriter, error) {
	return l.NewStripe(ctx, n)
}

type memWriter struct {
	l      *memLog
	mem    []byte
	sealed int
}

func (w *memWriter) Slot(i int) []byte {
	return w.mem[i*seal.SegmentSize : (i+1)*seal.SegmentSize : (i+1)*seal.SegmentSize]
}

func (w *memWriter) Sealed(n int) error {
	w.sealed = n
	return nil
}

func (w *memWriter) Discard() {
	if w.l.room != nil {
		<-w.l.room
	}
}

func (w *memWriter) Commit(ctx context.Context) (disk.Stripe, error) {
	defer w.Discard()
	if e := w.l.failCommit.Load(); e != nil {
		return disk.Stripe{}, *e
	}
	if err := ctx.Err(); err != nil {
		return disk.Stripe{}, err
	}
	l := w.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bulking == 0 || l.bands[l.bulking].stripes == 4 {
		l.bulking = l.open(l.bulking, true)
	}
	b := l.bands[l.bulking]
	b.pins++
	b.stripes++
	s := disk.Stripe{Band: b.Num, Off: uint32(b.stripes), Data: 2, Segments: uint16(w.sealed)}
	l.bulk[s] = w.mem[:w.sealed*seal.SegmentSize]
	l.written += int64(w.sealed * seal.SegmentSize)
	return s, nil
}

type memView struct {
	l      *memLog
	band   uint64
	stripe disk.Stripe
	first  int
	loc    disk.Loc
	mem    [][]byte
}

// view makes a view of a band, which it pins; mu is held.
func (l *memLog) view(band uint64, v memView) (View, error) {
	b := l.bands[band]
	if b == nil {
		return nil, fmt.Errorf("band %d: %w", band, disk.ErrGone)
	}
	b.pins++
	l.views.Add(1)
	v.l, v.band = l, band
	return &v, nil
}

func (l *memLog) ReadStripe(_ context.Context, s disk.Stripe, first, n int) (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mem, ok := l.bulk[s]
	if l.bands[s.Band] != nil && (!ok || first < 0 || n < 1 || first+n > int(s.Segments)) {
		return nil, fmt.Errorf("read %+v %d+%d: %w", s, first, n, disk.ErrCorrupt)
	}
	v := memView{stripe: s, first: first}
	for i := 0; ok && i < n; i++ {
		seg := bytes.Clone(mem[(first+i)*seal.SegmentSize : (first+i+1)*seal.SegmentSize])
		if l.rotten[s][first+i] || l.lost[s][first+i] {
			seg[rand.IntN(17)] ^= 0x40
		}
		v.mem = append(v.mem, seg)
	}
	l.segmentsRead.Add(int64(n))
	return l.view(s.Band, v)
}

func (l *memLog) ReadVerified(_ context.Context, s disk.Stripe) (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mem, ok := l.bulk[s]
	if len(l.lost[s]) > 0 || (!ok && l.bands[s.Band] != nil) {
		return nil, fmt.Errorf("read %+v: %w", s, disk.ErrCorrupt)
	}
	return l.view(s.Band, memView{stripe: s, mem: slices.Collect(slices.Chunk(bytes.Clone(mem), seal.SegmentSize))})
}

func (l *memLog) ReadPacked(_ context.Context, loc disk.Loc) (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mem, ok := l.packed[loc]
	if !ok && l.bands[loc.Band] != nil {
		return nil, fmt.Errorf("read %+v: %w", loc, disk.ErrCorrupt)
	}
	mem = bytes.Clone(mem)
	if l.badLoc {
		mem[0] ^= 1
	}
	return l.view(loc.Band, memView{loc: loc, mem: [][]byte{mem}})
}

func (v *memView) Bytes(i int) []byte { return v.mem[i] }

func (v *memView) Release() {
	v.l.views.Add(-1)
	v.l.Unpin(v.band)
}

func (v *memView) Repair(_ context.Context, i int, check func([]byte) error) error {
	v.l.repairs.Add(1)
	v.l.mu.Lock()
	defer v.l.mu.Unlock()
	if check(v.mem[i]) == nil {
		return errors.New("repair of bytes that open")
	}
	good := v.l.packed[v.loc]
	if v.stripe.Data > 0 {
		if v.l.lost[v.stripe][v.first+i] {
			return fmt.Errorf("repair: %w", disk.ErrCorrupt)
		}
		good = v.l.bulk[v.stripe][(v.first+i)*seal.SegmentSize : (v.first+i+1)*seal.SegmentSize]
	}
	v.mem[i] = bytes.Clone(good)
	return check(v.mem[i])
}

func (l *memLog) Pin(band uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bands[band]
	if b != nil {
		b.pins++
	}
	return b != nil
}

func (l *memLog) Unpin(band uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bands[band].pins--; l.bands[band].pins < 0 {
		panic("band unpinned more often than pinned")
	}
}

// pins counts all of them.
func (l *memLog) pins() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.bands {
		n += b.pins
	}
	return n
}

func (l *memLog) Pinned(band uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bands[band] != nil && l.bands[band].pins > 0
}

func (l *memLog) CanFree(band uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bands[band] != nil
}

func (l *memLog) ExtentSpace() int64 {
	return 4 * disk.Stripe{Data: 2, Segments: uint16(l.segments)}.Footprint()
}

func (l *memLog) Bands() (list []disk.Band) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, num := range slices.Sorted(maps.Keys(l.bands)) {
		list = append(list, l.bands[num].Band)
	}
	return list
}

func (l *memLog) EachRecord(_ context.Context, band uint64, fn func(disk.Entry, []byte) error) (r disk.StripeRange, err error) {
	if !l.Pin(band) {
		return r, disk.ErrGone
	}
	defer l.Unpin(band)
	l.mu.Lock()
	history := slices.Clone(l.history)
	l.mu.Unlock()
	for _, st := range history {
		if st.pos.Band != band {
			continue
		}
		if r.To = st.pos.Stripe; r.From == 0 {
			r.From = r.To
		}
		if l.torn[st.pos.Stripe] {
			err = fmt.Errorf("stripe %d: %w", st.pos.Stripe, disk.ErrCorrupt)
			continue
		}
		for _, e := range st.entries {
			l.mu.Lock()
			data := bytes.Clone(l.packed[e.Data])
			l.mu.Unlock()
			e.Body = bytes.Clone(e.Body)
			if err := fn(e, data); err != nil {
				return r, err
			}
			clear(e.Body) // valid during the call only
			clear(data)
		}
	}
	return r, err
}

// Free forgets a band and all in it: what still refers to it fails.
func (l *memLog) Free(_ context.Context, band uint64) error {
	if e := l.failFree.Load(); e != nil {
		return *e
	}
	if l.beforeFree != nil {
		l.mu.Lock()
		b := l.bands[band]
		l.mu.Unlock()
		l.beforeFree(b.Band)
	}
	freed, err := l.state.Freed()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bands[band]
	if b == nil {
		return disk.ErrGone
	}
	if !b.Closed || b.pins > 0 {
		return disk.ErrBusy
	}
	for _, st := range l.history {
		n := st.pos.Stripe
		if st.pos.Band == band && !slices.ContainsFunc(freed, func(r disk.StripeRange) bool { return r.From <= n && n <= r.To }) {
			return fmt.Errorf("stripe %d is not recorded as freed", n)
		}
	}
	delete(l.bands, band)
	l.history = slices.DeleteFunc(slices.Clone(l.history), func(st memStripe) bool { return st.pos.Band == band })
	maps.DeleteFunc(l.packed, func(loc disk.Loc, _ []byte) bool { return loc.Band == band })
	maps.DeleteFunc(l.bulk, func(s disk.Stripe, _ []byte) bool { return s.Band == band })
	return nil
}

func (l *memLog) Horizon() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.history) == 0 {
		return (l.stripe + 1) << 16
	}
	return l.history[0].pos.Stripe << 16
}

func (l *memLog) Admit(ctx context.Context) error { return ctx.Err() }

func (l *memLog) AdmitEssential(ctx context.Context) error { return ctx.Err() }
func (l *memLog) Pressure() <-chan struct{}                { return l.pressure }
func (l *memLog) Unattended()                              {}
func (l *memLog) SetDear(bool)                             {}
func (l *memLog) Waiting() int                             { return 0 }

func (l *memLog) Missing(band uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.missing = append(l.missing, band)
}

func (l *memLog) Yield(ctx context.Context, _ disk.Class, _ int) error { return ctx.Err() }

func (l *memLog) Relieve(try func() bool) {
	for try() {
	}
	if c := l.relieved.Swap(nil); c != nil {
		close(*c)
	}
}

// size is what lies in the log.
func (l *memLog) size() (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.bulk {
		n += int64(s.Segments) * seal.SegmentSize
	}
	for _, st := range l.history {
		for _, e := range st.entries {
			n += int64(len(e.Body)) + int64(e.Data.Len)
		}
	}
	return n
}

// fixture is a store on a memLog.
type fixture struct {
	*Store
	t    testing.TB
	log  *memLog
	opt  Options
	keys *kms.Keyring
}

// testEngine seals by our own kernel where it runs, as a daemon there would; without the benchmark the standard library comes first.
var testEngine = sync.OnceValues(func() (*hw.Engine, error) {
	opt := hw.Options{SkipBench: true}
	e, err := hw.Probe(opt)
	if err != nil {
		return nil, err
	}
	const kernel = "vaes-avx512"
	if slices.ContainsFunc(e.Report().Paths, func(p hw.PathReport) bool { return p.Path == kernel && p.SelfTest == "pass" }) {
		opt.Pin = map[hw.Primitive]string{hw.AES256GCM: kernel}
	}
	return hw.Probe(opt)
})

func testOptions(t testing.TB) Options {
	t.Helper()
	e, err := testEngine()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kms.Create(t.Context(), [16]byte{1, 2, 3}, kms.NewFileSlot(filepath.Join(t.TempDir(), "key")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return Options{IndexDir: filepath.Join(t.TempDir(), "index"), Keys: keys, Crypto: e, CompactEvery: time.Hour, CompactRate: 1 << 50}
}

// newFixture makes a store with bucket "b".
func newFixture(t testing.TB, opt Options) *fixture {
	t.Helper()
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, t: t, log: newMemLog(s, 6), opt: opt, keys: opt.Keys}
	s.Start(f.log)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if _, err := f.CreateBucket(t.Context(), "b", Bucket{Owner: "root"}); err != nil {
		t.Fatal(err)
	}
	return f
}

// reopen closes the store and opens it again over the same log, replaying what its index lacks, or all.
func (f *fixture) reopen(rebuild bool) {
	f.t.Helper()
	if err := f.Close(); err != nil {
		f.t.Fatalf("close: %v", err)
	}
	opt := f.opt
	opt.Rebuild = rebuild
	s, err := New(opt)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Store, f.log.state = s, s
	pos, err := s.Position()
	if err != nil {
		f.t.Fatal(err)
	}
	if rebuild && pos != (disk.Position{}) {
		f.t.Fatalf("position after rebuild: %+v", pos)
	}
	if pos.Stripe > 0 && !slices.ContainsFunc(f.log.history, func(st memStripe) bool { return st.pos == pos }) {
		f.t.Fatalf("the index is at stripe %d, which is gone", pos.Stripe)
	}
	for _, st := range f.log.history {
		if st.pos.Stripe > pos.Stripe {
			if err := s.Apply(st.pos, st.entries); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	s.Start(f.log)
	if len(f.log.missing) > 0 && !f.log.damaged {
		f.t.Errorf("bands %x are missing", f.log.missing)
	}
}

func pattern(n int, salt byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7+i/255) ^ salt
	}
	return p
}

func customer(b byte) SSE {
	return SSE{Mode: ModeCustomer, CustomerKey: &[32]byte{b, 7: b}, CustomerMD5: fmt.Sprintf("md5-%d", b)}
}

func (f *fixture) put(key string, body []byte, o PutOptions) Object {
	f.t.Helper()
	o.Size = int64(len(body))
	obj, err := f.Put(f.t.Context(), "b", key, bytes.NewReader(body), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return obj
}

func (f *fixture) read(key string, o GetOptions) ([]byte, error) {
	r, err := f.Get(f.t.Context(), "b", key, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	_, n := r.Range()
	buf := bytes.NewBuffer(make([]byte, 0, n))
	_, err = r.WriteTo(buf)
	return buf.Bytes(), err
}

// want fails the test unless the key reads as body.
func (f *fixture) want(key string, body []byte, o GetOptions) {
	f.t.Helper()
	got, err := f.read(key, o)
	if err != nil {
		f.t.Fatalf("get %q: %v", key, err)
	}
	if !bytes.Equal(got, body) {
		f.t.Fatalf("get %q: %d bytes differ from %d", key, len(got), len(body))
	}
}
