package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"coffer/hw"
)

// testKeys are fixed secrets.
type testKeys struct{}

func (testKeys) SuperblockKey() []byte { return bytes.Repeat([]byte{1}, 32) }
func (testKeys) CellKey() []byte       { return bytes.Repeat([]byte{2}, 32) }
func (testKeys) CurrentEpoch() uint32  { return 1 }
func (testKeys) RecordKey(e uint32) ([]byte, error) {
	return bytes.Repeat([]byte{byte(2 + e)}, 32), nil
}
func (testKeys) Area() []byte { return []byte("key area") }

var crypto = sync.OnceValue(func() *hw.Engine {
	e, err := hw.Probe(hw.Options{SkipBench: true})
	if err != nil {
		panic(err)
	}
	return e
})

// testState keeps what was applied, in order. It has no durability of its own beyond snapshot.
type testState struct {
	mu      sync.Mutex
	pos     Position
	entries []testEntry
	resets  int
	gaps    bool // stripes may be missing: the test has destroyed some
}

type testEntry struct {
	seq  uint64
	body string
	data Loc
}

func (s *testState) Position() (Position, error) { return s.pos, nil }

func (s *testState) Apply(p Position, entries []Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Stripe != s.pos.Stripe+1 && !(s.gaps && p.Stripe > s.pos.Stripe) {
		return fmt.Errorf("stripe %d applied behind %d", p.Stripe, s.pos.Stripe)
	}
	s.pos = p
	for _, e := range entries {
		s.entries = append(s.entries, testEntry{e.Seq, string(e.Body), e.Data})
	}
	return nil
}

func (s *testState) Freed() ([]StripeRange, error) { return nil, nil }

func (s *testState) Reset() error {
	s.pos, s.entries = Position{}, nil
	s.resets++
	return nil
}

// clone is what a checkpoint would have kept.
func (s *testState) clone() *testState {
	return &testState{pos: s.pos, entries: slices.Clone(s.entries)}
}

// payload is n bytes that prove themselves, as sealed data does: content drawn from id, then its checksum.
func payload(id uint64, n int) []byte {
	n = max(n, 40)
	p := make([]byte, n)
	x := id*0x9e3779b97f4a7c15 + 1
	le := binary.LittleEndian
	le.PutUint64(p, id)
	for i := 8; i+8 <= n-8; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		le.PutUint64(p[i:], x)
	}
	le.PutUint64(p[n-8:], crypto().CRC64NVME(0, p[:n-8]))
	return p
}

var errPayload = errors.New("not the payload")

// checkPayload is what the caller's AEAD does: the bytes are whole, and they are those of id.
func checkPayload(id uint64) func([]byte) error {
	return func(p []byte) error {
		n := len(p) - 8
		le := binary.LittleEndian
		if le.Uint64(p) != id || crypto().CRC64NVME(0, p[:n]) != le.Uint64(p[n:]) {
			return errPayload
		}
		return nil
	}
}

// readLoc reads packed bytes as a caller does: check, and Repair when the check fails.
func readLoc(a *Array, l Loc, id uint64) ([]byte, error) {
	v, err := a.ReadPacked(context.Background(), l)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	if checkPayload(id)(v.Bytes(0)) != nil {
		if err := v.Repair(context.Background(), 0, checkPayload(id)); err != nil {
			return nil, err
		}
	}
	return bytes.Clone(v.Bytes(0)), nil
}

// readSegments reads a bulk stripe as a caller does. The payload of segment i is that of base+i.
func readSegments(a *Array, s Stripe, first, n int, base uint64) ([][]byte, error) {
	v, err := a.ReadStripe(context.Background(), s, first, n)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	var out [][]byte
	for i := range n {
		check := checkPayload(base + uint64(first+i))
		if check(v.Bytes(i)) != nil {
			if err := v.Repair(context.Background(), i, check); err != nil {
				return nil, err
			}
		}
		out = append(out, bytes.Clone(v.Bytes(i)))
	}
	return out, nil
}

// fileArray makes an array of n files and opens it.
type fileArray struct {
	t     testing.TB
	paths []string
	state *testState
	opt   Options
}

func newFileArray(t testing.TB, n, data, parity int, size int64) *fileArray {
	t.Helper()
	f := &fileArray{t: t, state: &testState{}}
	dir := t.TempDir()
	for i := range n {
		p := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := CreateFile(p, size); err != nil {
			t.Fatal(err)
		}
		f.paths = append(f.paths, p)
	}
	err := Create(t.Context(), CreateOptions{ArrayID: [16]byte{9}, Paths: f.paths, Keys: testKeys{}, Geometry: Geometry{Data: data, Parity: parity, ExtentSize: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fileArray) tryOpen() (*Array, error) {
	var paths []string
	for _, p := range f.paths {
		if _, err := os.Stat(p); err == nil {
			paths = append(paths, p)
		}
	}
	set, err := Discover(paths, false)
	if err != nil {
		return nil, err
	}
	o := f.opt
	o.Keys, o.Crypto, o.State = testKeys{}, crypto(), f.state
	return set.Open(context.Background(), o)
}

func (f *fileArray) open() *Array {
	f.t.Helper()
	a, err := f.tryOpen()
	if err != nil {
		f.t.Fatal(err)
	}
	return a
}

// writeStripe writes a bulk stripe of n segments whose payloads are id, id+1, ...
func writeStripe(a *Array, id uint64, n int) (Stripe, error) {
	w, err := a.NewStripe(context.Background(), n)
	if err != nil {
		return Stripe{}, err
	}
	for i := range n {
		copy(w.Slot(i), payload(id+uint64(i), SegmentSize))
		if err := w.Sealed(i + 1); err != nil {
			w.Discard()
			return Stripe{}, err
		}
	}
	return w.Commit(context.Background())
}
