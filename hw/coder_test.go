package hw

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/cpuid/v2"
	"github.com/klauspost/reedsolomon"
)

// matrices are all ways to multiply: the registered paths, and the library with groups forced on and off.
func matrices() map[string]func([][]byte) (matrix, error) {
	m := map[string]func([][]byte) (matrix, error){
		"grouped":   func(rows [][]byte) (matrix, error) { return newKlauspostMatrix(rows, gfniGroup) },
		"ungrouped": func(rows [][]byte) (matrix, error) { return newKlauspostMatrix(rows, MaxShards) },
	}
	for _, p := range registry(&cpuid.CPU) {
		if p.newMatrix != nil {
			m[p.name] = p.newMatrix
		}
	}
	return m
}

// TestAllShapes encodes every shape, compares with the library's own matrix, and rebuilds random losses.
func TestAllShapes(t *testing.T) {
	for name, newMatrix := range matrices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(5, 6))
			for data := 1; data <= MaxShards; data++ {
				for parity := 0; data+parity <= MaxShards; parity++ {
					if raceEnabled && (data+parity)%8 != 0 { // one goroutine: the race detector has little to find
						continue
					}
					c, err := newCoder(data, parity, newMatrix)
					if err != nil {
						t.Fatal(err)
					}
					shards := randomShards(r, data+parity, 1+r.IntN(1200))
					if err := c.Encode(shards[:data], shards[data:]); err != nil {
						t.Fatalf("%d+%d: %v", data, parity, err)
					}
					compareWithLibrary(t, shards, data, parity)
					for range 3 {
						loseAndRebuild(t, r, c, shards)
					}
				}
			}
		})
	}
}

func randomShards(r *rand.Rand, n, size int) [][]byte {
	s := newRows(n, size)
	for i := range s {
		for j := range s[i] {
			s[i][j] = byte(r.Uint32())
		}
	}
	return s
}

func compareWithLibrary(t *testing.T, shards [][]byte, data, parity int) {
	t.Helper()
	lib, err := reedsolomon.New(data, parity)
	if err != nil {
		t.Fatal(err)
	}
	want := make([][]byte, data+parity)
	for i := range want {
		want[i] = bytes.Clone(shards[i])
		if i >= data {
			clear(want[i])
		}
	}
	if parity > 0 {
		if err := lib.Encode(want); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.EqualFunc(shards, want, bytes.Equal) {
		t.Fatalf("%d+%d: parity differs from the library's", data, parity)
	}
}

// loseAndRebuild drops up to parity shards and asks for some of them back.
func loseAndRebuild(t *testing.T, r *rand.Rand, c *coder, shards [][]byte) {
	t.Helper()
	work, want := slices.Clone(shards), make([]bool, len(shards))
	lost := r.Perm(len(shards))[:r.IntN(c.parity+1)]
	for _, i := range lost {
		work[i] = nil
		if r.IntN(2) == 0 {
			work[i] = make([]byte, 0, len(shards[i]))
		}
		want[i] = r.IntN(4) > 0
	}
	if err := c.Reconstruct(work, want); err != nil {
		t.Fatalf("%d+%d without %v: %v", c.data, c.parity, lost, err)
	}
	for i := range shards {
		if slices.Contains(lost, i) && !want[i] {
			if len(work[i]) != 0 {
				t.Fatalf("%d+%d without %v: shard %d made unasked", c.data, c.parity, lost, i)
			}
		} else if !bytes.Equal(work[i], shards[i]) {
			t.Fatalf("%d+%d without %v: shard %d wrong", c.data, c.parity, lost, i)
		}
	}
}

// TestLongShards crosses the tiles of grouped multiplication, aligned and not.
func TestLongShards(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for name, newMatrix := range matrices() {
		for _, shape := range [][2]int{{4, 2}, {11, 2}, {12, 12}, {21, 11}} {
			for _, size := range []int{groupTile - 1, groupTile + 1, 2*groupTile + 100} {
				data, parity := shape[0], shape[1]
				c, err := newCoder(data, parity, newMatrix)
				if err != nil {
					t.Fatal(err)
				}
				shards := randomShards(r, data+parity, size)
				for i := range shards {
					shards[i] = shards[i][i%3 : size-2+i%3]
				}
				if err := c.Encode(shards[:data], shards[data:]); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				compareWithLibrary(t, shards, data, parity)
				loseAndRebuild(t, r, c, shards)
			}
		}
	}
}

// TestTiles: encoding and rebuilding tile by tile gives what one call gives.
func TestTiles(t *testing.T) {
	e := unbenched(t)
	c, err := e.Coder(8, 4)
	if err != nil {
		t.Fatal(err)
	}
	const size, tile = 5000, 777
	whole := randomShards(rand.New(rand.NewPCG(9, 10)), 12, size)
	if err := c.Encode(whole[:8], whole[8:]); err != nil {
		t.Fatal(err)
	}
	got := newRows(12, size)
	copy(got, whole[:8])
	want := make([]bool, 12)
	want[9] = true
	rebuilt := make([]byte, size)
	for at := 0; at < size; at += tile {
		var part [12][]byte
		for i := range part {
			part[i] = got[i][at:min(at+tile, size)]
		}
		if err := c.Encode(part[:8], part[8:]); err != nil {
			t.Fatal(err)
		}
		n := len(part[9])
		part[9], part[2] = rebuilt[at:at:at+n], nil
		if err := c.Reconstruct(part[:], want); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(whole, got); d != "" || !bytes.Equal(rebuilt, whole[9]) {
		t.Error("tiles differ from the whole")
	}
}

func TestCoderErrors(t *testing.T) {
	e := unbenched(t)
	for _, s := range [][2]int{{0, 0}, {0, 4}, {-1, 2}, {4, -1}, {33, 0}, {32, 1}, {1 << 62, 1 << 62}} {
		if _, err := e.Coder(s[0], s[1]); err == nil {
			t.Errorf("made a coder %d+%d", s[0], s[1])
		}
	}
	c, err := e.Coder(3, 2)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := e.Coder(3, 2); again != c {
		t.Error("coder not cached")
	}
	rows := newRows(5, 10)
	for name, err := range map[string]error{
		"too few data":     c.Encode(rows[:2], rows[3:]),
		"too much parity":  c.Encode(rows[:3], rows[2:]),
		"short data":       c.Encode([][]byte{rows[0], rows[1][:9], rows[2]}, rows[3:]),
		"short parity":     c.Encode(rows[:3], [][]byte{rows[3], nil}),
		"too few shards":   c.Reconstruct(rows[:4], nil),
		"too many wishes":  c.Reconstruct(rows, make([]bool, 6)),
		"uneven shards":    c.Reconstruct([][]byte{rows[0], rows[1], rows[2][:9], nil, nil}, nil),
		"uneven reversed":  c.Reconstruct([][]byte{rows[0][:9], rows[1], rows[2], nil, nil}, nil),
		"everything empty": c.Reconstruct(make([][]byte, 5), nil),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	lost := [][]byte{rows[0], nil, nil, nil, rows[4]}
	if err := c.Reconstruct(lost, nil); !errors.Is(err, ErrTooFewShards) || lost[1] != nil {
		t.Errorf("three lost: %v", err)
	}
	if err := c.Reconstruct(lost, make([]bool, 5)); err != nil {
		t.Errorf("nothing wanted: %v", err)
	}
	if err := c.Encode(make([][]byte, 3), make([][]byte, 2)); err != nil {
		t.Errorf("no bytes: %v", err)
	}

	none, err := e.Coder(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := none.Encode(rows[:1], nil); err != nil {
		t.Errorf("1+0: %v", err)
	}
	if err := none.Reconstruct([][]byte{nil}, nil); !errors.Is(err, ErrTooFewShards) {
		t.Errorf("1+0 lost: %v", err)
	}
}

type failingMatrix struct{}

func (failingMatrix) mul(_, _ [][]byte) error { return errMismatch }

// TestFailingMatrix: the errors of a path reach the caller and leave the shards alone.
func TestFailingMatrix(t *testing.T) {
	c, err := newCoder(2, 1, func([][]byte) (matrix, error) { return failingMatrix{}, nil })
	if err != nil {
		t.Fatal(err)
	}
	rows := newRows(3, 8)
	if err := c.Encode(rows[:2], rows[2:]); !errors.Is(err, errMismatch) {
		t.Errorf("encode: %v", err)
	}
	work := [][]byte{rows[0], nil, rows[2]}
	if err := c.Reconstruct(work, nil); !errors.Is(err, errMismatch) || work[1] != nil {
		t.Errorf("reconstruct: %v", err)
	}
	if _, err := newCoder(2, 1, func([][]byte) (matrix, error) { return nil, errMismatch }); !errors.Is(err, errMismatch) {
		t.Errorf("make: %v", err)
	}
}

func TestInversesAreBounded(t *testing.T) {
	c, err := newCoder(16, 16, newGenericMatrix)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(11, 12))
	shards := randomShards(r, 32, 8)
	if err := c.Encode(shards[:16], shards[16:]); err != nil {
		t.Fatal(err)
	}
	for range maxInverses + 50 {
		loseAndRebuild(t, r, c, shards)
	}
	if n := len(c.inverses); n != maxInverses {
		t.Errorf("%d inverses kept, want %d", n, maxInverses)
	}
}

func TestCoderConcurrent(t *testing.T) {
	e := unbenched(t)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(13, g))
			for i := range 50 {
				data, parity := 1+i%16, 1+i%5
				c, err := e.Coder(data, parity)
				if err != nil {
					t.Error(err)
					return
				}
				shards := randomShards(r, data+parity, 300)
				if err := c.Encode(shards[:data], shards[data:]); err != nil {
					t.Error(err)
				}
				work := slices.Clone(shards)
				work[r.IntN(data)] = nil
				if err := c.Reconstruct(work, nil); err != nil || !slices.EqualFunc(work, shards, bytes.Equal) {
					t.Errorf("reconstruct: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// TestEncodeAllocations: none of our own, at most one per call of the library.
func TestEncodeAllocations(t *testing.T) {
	for _, tt := range []struct {
		path                  string
		data, parity, allowed int
	}{{"generic", 4, 2, 0}, {"klauspost", 4, 2, 1}, {"klauspost", 12, 4, 2}, {"klauspost", 3, 0, 0}} {
		e, err := Probe(Options{SkipBench: true, Pin: map[Primitive]string{ReedSolomon: tt.path}})
		if err != nil {
			t.Fatal(err)
		}
		shards := newRows(tt.data+tt.parity, 4096)
		n := testing.AllocsPerRun(50, func() {
			c, err := e.Coder(tt.data, tt.parity)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Encode(shards[:tt.data], shards[tt.data:]); err != nil {
				t.Fatal(err)
			}
		})
		if n > float64(tt.allowed) && !raceEnabled {
			t.Errorf("%s %d+%d: %v allocations, want %d", tt.path, tt.data, tt.parity, n, tt.allowed)
		}
	}
}

// staggered returns shards whose addresses do not contend for the same cache sets.
func staggered(n, size int) [][]byte {
	s := make([][]byte, n)
	all := pattern(n*(size+shardStagger), 1)
	for i := range s {
		s[i] = all[i*(size+shardStagger):][:size:size]
	}
	return s
}

// BenchmarkEncode shows what grouping gains: "lib" is the library asked directly, in one goroutine.
func BenchmarkEncode(b *testing.B) {
	for _, shape := range [][2]int{{4, 2}, {8, 4}, {12, 4}, {16, 4}, {28, 4}} {
		data, parity := shape[0], shape[1]
		for _, size := range []int{16 << 10, 64 << 10} {
			shards := staggered(data+parity, size)
			run := func(name string, encode func() error) {
				b.Run(fmt.Sprintf("%d+%d/%dKiB/%s", data, parity, size>>10, name), func(b *testing.B) {
					b.SetBytes(int64(data * size))
					b.ReportAllocs()
					for b.Loop() {
						if err := encode(); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			lib, err := reedsolomon.New(data, parity, reedsolomon.WithMaxGoroutines(1))
			if err != nil {
				b.Fatal(err)
			}
			run("lib", func() error { return lib.Encode(shards) })
			for _, p := range registry(&cpuid.CPU) {
				if p.newMatrix != nil {
					c, err := newCoder(data, parity, p.newMatrix)
					if err != nil {
						b.Fatal(err)
					}
					run(p.name, func() error { return c.Encode(shards[:data], shards[data:]) })
				}
			}
		}
	}
}

func BenchmarkReconstruct(b *testing.B) {
	e := unbenched(b)
	for _, tt := range []struct{ data, parity, lost int }{{4, 2, 1}, {4, 2, 2}, {8, 4, 4}, {12, 4, 1}, {12, 4, 4}} {
		b.Run(fmt.Sprintf("%d+%d/%dlost", tt.data, tt.parity, tt.lost), func(b *testing.B) {
			c, err := e.Coder(tt.data, tt.parity)
			if err != nil {
				b.Fatal(err)
			}
			const size = 64 << 10
			shards := staggered(tt.data+tt.parity, size)
			b.SetBytes(int64(tt.data * size))
			b.ReportAllocs()
			for b.Loop() {
				for i := range tt.lost {
					shards[i] = shards[i][:0]
				}
				if err := c.Reconstruct(shards, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
