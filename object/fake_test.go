package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object/internal/seal"
)

// memLog is a Log in memory. Records that come together make one packed stripe, as in the disk engine.
type memLog struct {
	state    disk.State
	segments int // per bulk stripe

	mu      sync.Mutex // guards all below
	seq     uint64
	band    uint64
	off     uint32
	queue   []*memRequest
	busy    bool
	history []memStripe
	packed  map[disk.Loc][]byte
	bulk    map[disk.Stripe][]byte
	rotten  map[disk.Stripe]map[int]bool // segments whose first read gives wrong bytes
	lost    map[disk.Stripe]map[int]bool // beyond repair as well
	badLoc  bool                         // packed reads give wrong bytes at first

	failAppend, failCommit, failStripe atomic.Pointer[error]
	segmentsRead, repairs, views       atomic.Int64
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

const memBandSize = 1 << 20 // bytes of packed data in a band

func newMemLog(state disk.State, segments int) *memLog {
	return &memLog{state: state, segments: segments, band: 1, packed: map[disk.Loc][]byte{}, bulk: map[disk.Stripe][]byte{},
		rotten: map[disk.Stripe]map[int]bool{}, lost: map[disk.Stripe]map[int]bool{}}
}

func (l *memLog) Append(_ context.Context, r disk.Record) (uint64, error) {
	if e := l.failAppend.Load(); e != nil {
		return 0, *e
	}
	if len(r.Body) > disk.MaxBody || len(r.Data) > disk.MaxPacked {
		return 0, disk.ErrTooLarge
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
	}
	l.busy = false
	l.mu.Unlock()
	return q.seq, q.err
}

// cut makes a stripe of records; mu is held.
func (l *memLog) cut(batch []*memRequest) memStripe {
	if l.off > memBandSize {
		l.band, l.off = l.band+2, 0
	}
	st := memStripe{pos: disk.Position{Stripe: uint64(len(l.history) + 1), Band: l.band, Off: l.off}}
	start := uint32(0)
	for _, b := range batch {
		l.seq++
		b.seq = l.seq
		e := disk.Entry{Seq: l.seq, Body: bytes.Clone(b.rec.Body)}
		if len(b.rec.Data) > 0 {
			e.Data = disk.Loc{Band: l.band, Off: l.off, Start: start, Len: uint32(len(b.rec.Data))}
			l.packed[e.Data] = bytes.Clone(b.rec.Data)
		}
		start += uint32(len(b.rec.Data) + len(b.rec.Body))
		st.entries = append(st.entries, e)
	}
	l.off += start + 1
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
	return &memWriter{l: l, mem: bytes.Repeat([]byte{0xaa}, n*seal.SegmentSize)}, ctx.Err()
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

func (w *memWriter) Discard() {}

func (w *memWriter) Commit(ctx context.Context) (disk.Stripe, error) {
	if e := w.l.failCommit.Load(); e != nil {
		return disk.Stripe{}, *e
	}
	l := w.l
	l.mu.Lock()
	defer l.mu.Unlock()
	s := disk.Stripe{Band: 2 + uint64(len(l.bulk)/4)*2, Off: uint32(len(l.bulk) + 1), Data: 2, Segments: uint16(w.sealed)}
	l.bulk[s] = w.mem[:w.sealed*seal.SegmentSize]
	return s, ctx.Err()
}

type memView struct {
	l      *memLog
	stripe disk.Stripe
	first  int
	loc    disk.Loc
	mem    [][]byte
}

func (l *memLog) ReadStripe(_ context.Context, s disk.Stripe, first, n int) (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mem, ok := l.bulk[s]
	if !ok || first < 0 || n < 1 || first+n > int(s.Segments) {
		return nil, fmt.Errorf("read %+v %d+%d: %w", s, first, n, disk.ErrCorrupt)
	}
	v := &memView{l: l, stripe: s, first: first}
	for i := range n {
		seg := bytes.Clone(mem[(first+i)*seal.SegmentSize : (first+i+1)*seal.SegmentSize])
		if l.rotten[s][first+i] || l.lost[s][first+i] {
			seg[rand.IntN(17)] ^= 0x40
		}
		v.mem = append(v.mem, seg)
	}
	l.segmentsRead.Add(int64(n))
	l.views.Add(1)
	return v, nil
}

func (l *memLog) ReadPacked(_ context.Context, loc disk.Loc) (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mem, ok := l.packed[loc]
	if !ok {
		return nil, fmt.Errorf("read %+v: %w", loc, disk.ErrCorrupt)
	}
	mem = bytes.Clone(mem)
	if l.badLoc {
		mem[0] ^= 1
	}
	l.views.Add(1)
	return &memView{l: l, loc: loc, mem: [][]byte{mem}}, nil
}

func (v *memView) Bytes(i int) []byte { return v.mem[i] }
func (v *memView) Release()           { v.l.views.Add(-1) }

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

// fixture is a store on a memLog.
type fixture struct {
	*Store
	t    testing.TB
	log  *memLog
	opt  Options
	keys *kms.Keyring
}

var testEngine = sync.OnceValues(func() (*hw.Engine, error) { return hw.Probe(hw.Options{SkipBench: true}) })

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
	return Options{IndexDir: filepath.Join(t.TempDir(), "index"), Keys: keys, Crypto: e}
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
	for _, st := range f.log.history {
		if st.pos.Stripe > pos.Stripe {
			if err := s.Apply(st.pos, st.entries); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	s.Start(f.log)
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
	var buf bytes.Buffer
	_, err = r.WriteTo(&buf)
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
