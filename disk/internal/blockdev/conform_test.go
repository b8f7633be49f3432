package blockdev

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// testSize is the size of the disks under test: big enough for a full ring of the largest operations used.
const testSize = 8 << 20

// harness makes devices of one implementation for the suite.
type harness struct {
	name   string
	prefer string
	kind   string // expected of the group; empty: any
	open   func(t *testing.T, n int) []Device
}

func harnesses() []harness {
	return []harness{
		{"file-uring", "uring", "", openFiles},
		{"file-pool", "pool", "pool", openFiles},
		{"loop-uring", "uring", "", openLoops},
		{"loop-pool", "pool", "pool", openLoops},
		{"mem", "", "mem", openMem},
		{"mem-pool", "pool", "pool", openMem},
		{"sim", "", "sim", openSim},
	}
}

func openFiles(t *testing.T, n int) []Device {
	t.Helper()
	devs := make([]Device, n)
	for i := range devs {
		path := filepath.Join(t.TempDir(), "disk")
		if err := CreateFile(path, testSize); err != nil {
			t.Fatal(err)
		}
		devs[i] = openPath(t, path)
	}
	return devs
}

func openPath(t testing.TB, path string) Device {
	t.Helper()
	d, err := OpenFile(path, OpenOptions{})
	if errors.Is(err, ErrNoDirect) {
		t.Skipf("the test directory's file system has no direct I/O: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// openLoops makes loop devices with 4096-byte sectors.
func openLoops(t *testing.T, n int) []Device {
	t.Helper()
	devs := make([]Device, n)
	for i := range devs {
		path := filepath.Join(t.TempDir(), "image")
		if err := CreateFile(path, testSize); err != nil {
			t.Fatal(err)
		}
		devs[i] = openPath(t, attachLoop(t, path, 4096))
	}
	return devs
}

// attachLoop makes a file a loop device until the end of the test.
func attachLoop(t *testing.T, path string, sector int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	out, err := exec.Command("losetup", "-f", "--show", "--direct-io=on", "--sector-size", strconv.Itoa(sector), path).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	return loop
}

func openMem(t *testing.T, n int) []Device {
	t.Helper()
	devs := make([]Device, n)
	for i := range devs {
		d, err := NewMemDisk(testSize)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		devs[i] = d
	}
	return devs
}

func openSim(_ *testing.T, n int) []Device {
	w := NewWorld(rand.New(rand.NewPCG(1, 2)))
	devs := make([]Device, n)
	for i := range devs {
		devs[i] = NewSimDisk(w, testSize, SimOptions{})
	}
	return devs
}

// buffer is arena memory filled by seed; it goes back at the end of the test.
func buffer(t testing.TB, n int, seed byte) []byte {
	t.Helper()
	a := NewArena(ArenaOptions{Limit: MaxBuf})
	b, err := a.Get(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Release(); a.Close() })
	p := b.Bytes()
	for i := range p {
		p[i] = seed + byte(i*7) + byte(i>>12)*13
	}
	return p
}

func group(t testing.TB, devs []Device, opt GroupOptions) Group {
	t.Helper()
	g, err := NewGroup(devs, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// TestConformance runs one suite against all implementations.
func TestConformance(t *testing.T) {
	for _, h := range harnesses() {
		t.Run(h.name, func(t *testing.T) {
			for _, c := range []struct {
				name string
				run  func(*testing.T, harness)
			}{
				{"device", conformDevice},
				{"programmer errors", conformErrors},
				{"space", conformSpace},
				{"batch", conformBatch},
				{"large batch", conformLargeBatch},
				{"concurrent batches", conformConcurrent},
				{"closed device in batch", conformClosedDevice},
				{"close", conformClose},
			} {
				t.Run(c.name, func(t *testing.T) { c.run(t, h) })
			}
		})
	}
}

func conformDevice(t *testing.T, h harness) {
	d := h.open(t, 1)[0]
	l := d.Limits()
	if l.Size != testSize || l.Kind == "" || l.MemAlign <= 0 || Align%l.MemAlign != 0 || Align%l.OffAlign != 0 {
		t.Errorf("limits %+v", l)
	}
	for _, durable := range []bool{false, true} {
		for _, n := range []int{Align, 16 * Align, 1 << 20} {
			w, r := buffer(t, n, byte(n>>12)), buffer(t, n, 0)
			off := int64(testSize - n)
			if err := d.WriteAt(w, off, durable); err != nil {
				t.Fatal(err)
			}
			if err := d.ReadAt(r, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(w, r) {
				t.Errorf("%d bytes at %d come back changed", n, off)
			}
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	s := d.Stats()
	if s.Reads != 6 || s.Writes != 6 || s.Flushes != 1 || s.ReadBytes != s.WriteBytes || s.ReadBytes != 2*(1<<20+17*Align) {
		t.Errorf("stats %+v", s)
	}
	if s.ReadLatency.Count != 6 || s.DurableLatency.Count != 3 {
		t.Errorf("latencies %+v", s)
	}
}

func conformErrors(t *testing.T, h harness) {
	d := h.open(t, 1)[0]
	g := group(t, []Device{d}, GroupOptions{Prefer: h.prefer})
	p := buffer(t, 2*Align, 0)
	for _, c := range []struct {
		name string
		dev  int
		p    []byte
		off  int64
	}{
		{"empty", 0, p[:0], 0},
		{"nil", 0, nil, 0},
		{"short", 0, p[:100], 0},
		{"misaligned memory", 0, p[512 : 512+Align], 0},
		{"misaligned offset", 0, p[:Align], 512},
		{"negative offset", 0, p[:Align], -Align},
		{"across the end", 0, p, testSize - Align},
		{"beyond the end", 0, p, testSize},
		{"overflow", 0, p, 1<<63 - Align},
		{"no such device", 1, p, 0},
		{"negative device", -1, p, 0},
	} {
		for _, write := range []bool{false, true} {
			if err := g.Run([]Op{{Dev: c.dev, Write: write, Buf: c.p, Off: c.off}}); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: Run (write %v): %v", c.name, write, err)
			}
		}
		if c.dev != 0 {
			continue
		}
		if err := d.ReadAt(c.p, c.off); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: ReadAt: %v", c.name, err)
		}
		if err := d.WriteAt(c.p, c.off, true); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: WriteAt: %v", c.name, err)
		}
	}
	for _, f := range []func(off, n int64) error{d.Discard, d.Prepare} {
		for _, s := range [][2]int64{{0, 0}, {512, Align}, {0, 100}, {-Align, Align}, {testSize, Align}, {0, testSize + Align}} {
			err := f(s[0], s[1])
			// Prepare of a block device looks at nothing.
			if !errors.Is(err, ErrInvalid) && d.Limits().Kind != "block" {
				t.Errorf("span %v: %v", s, err)
			}
		}
	}
	if s := d.Stats(); s.Reads+s.Writes+s.ReadErrors+s.WriteErrors != 0 {
		t.Errorf("programmer errors were counted: %+v", s)
	}
}

func conformSpace(t *testing.T, h harness) {
	d := h.open(t, 1)[0]
	w, r := buffer(t, 4*Align, 3), buffer(t, 4*Align, 0)
	// A written block between unwritten ones survives Prepare; never written ones read as zeros.
	if err := d.WriteAt(w[:Align], 5*Align, true); err != nil {
		t.Fatal(err)
	}
	if err := d.Prepare(0, testSize); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(r, 4*Align); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4*Align)
	copy(want[Align:], w[:Align])
	if d.Limits().Kind == "block" {
		copy(want, r[:Align]) // undefined there
		copy(want[2*Align:], r[2*Align:])
	}
	if !bytes.Equal(r, want) {
		t.Error("Prepare changed written or left unwritten blocks")
	}
	// After Discard the rest is untouched and the space can be used again.
	if err := d.WriteAt(w, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(Align, 2*Align); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(r, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r[:Align], w[:Align]) || !bytes.Equal(r[3*Align:], w[3*Align:]) {
		t.Error("Discard damaged its neighbours")
	}
	if err := d.Prepare(0, 4*Align); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(w, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(r, 0); err != nil || !bytes.Equal(r, w) {
		t.Errorf("after discard, prepare and write: %v, equal %v", err, bytes.Equal(r, w))
	}
}

// stripe is a batch of one operation of n bytes for each device, cut from p.
func stripe(devs, n int, p []byte, op Op) []Op {
	ops := make([]Op, devs)
	for i := range ops {
		ops[i] = op
		ops[i].Dev, ops[i].Buf = i, p[i*n:(i+1)*n]
	}
	return ops
}

// run runs ops, all of which must succeed.
func run(t testing.TB, g Group, ops []Op) {
	t.Helper()
	if err := g.Run(ops); err != nil {
		t.Error(err)
	}
	for i, op := range ops {
		if op.Err != nil || op.Stuck {
			t.Errorf("op %d: %v, stuck %v", i, op.Err, op.Stuck)
		}
	}
}

func conformBatch(t *testing.T, h harness) {
	const n = 6
	devs := h.open(t, n)
	g := group(t, devs, GroupOptions{Prefer: h.prefer})
	t.Logf("%s: %s", g.Kind(), g.Reason())
	if h.kind != "" && g.Kind() != h.kind || g.Reason() == "" || g.Len() != n || g.Device(3) != devs[3] {
		t.Errorf("kind %s, reason %q, length %d", g.Kind(), g.Reason(), g.Len())
	}
	w, r := buffer(t, n*16*Align, 9), buffer(t, n*16*Align, 0)
	for _, durable := range []bool{false, true} {
		for _, size := range []int{Align, 16 * Align} {
			off := int64(size) * 3
			run(t, g, stripe(n, size, w, Op{Write: true, Durable: durable, Off: off}))
			clear(r)
			run(t, g, stripe(n, size, r, Op{Off: off}))
			if !bytes.Equal(w[:n*size], r[:n*size]) {
				t.Errorf("a batch of %d bytes each comes back changed", size)
			}
		}
	}
	if err := g.Run(nil); err != nil {
		t.Errorf("empty batch: %v", err)
	}
	for _, d := range devs {
		if s := d.Stats(); s.Reads != 4 || s.Writes != 4 || s.DurableLatency.Count != 2 || s.WriteErrors != 0 {
			t.Errorf("stats %+v", s)
		}
	}
	// A batch may mix directions, devices and results of an earlier use.
	ops := []Op{{Dev: 2, Buf: r[:Align], Off: 0, Err: ErrTimeout, Stuck: true}, {Dev: 1, Write: true, Buf: w[:Align], Off: 64 * Align}}
	run(t, g, ops)
	run(t, g, ops[:1])
}

func conformLargeBatch(t *testing.T, h harness) {
	devs := h.open(t, 2)
	g := group(t, devs, GroupOptions{Prefer: h.prefer})
	const n = 5*ringEntries + 3
	w, r := buffer(t, n*Align, 1), buffer(t, n*Align, 0)
	ops := stripe(n, Align, w, Op{Write: true})
	for i := range ops {
		ops[i].Dev, ops[i].Off = i%2, int64(i)*Align
	}
	run(t, g, ops)
	for i := range ops {
		ops[i].Write, ops[i].Buf = false, r[i*Align:(i+1)*Align]
	}
	run(t, g, ops)
	if !bytes.Equal(w, r) {
		t.Error("a batch larger than a ring comes back changed")
	}
}

func conformConcurrent(t *testing.T, h harness) {
	const n, callers, rounds = 4, 8, 20
	g := group(t, h.open(t, n), GroupOptions{Prefer: h.prefer, Rings: 3})
	var wg sync.WaitGroup
	for c := range callers {
		w, r := buffer(t, n*4*Align, byte(c)), buffer(t, n*4*Align, 0)
		wg.Go(func() {
			for i := range rounds {
				off := int64(c*rounds+i) * 4 * Align
				for _, ops := range [][]Op{
					stripe(n, 4*Align, w, Op{Write: true, Durable: i%2 == 0, Off: off}), stripe(n, 4*Align, r, Op{Off: off}),
				} {
					if err := g.Run(ops); err != nil {
						t.Error(err)
					}
					for _, op := range ops {
						if op.Err != nil {
							t.Error(op.Err)
						}
					}
				}
				if !bytes.Equal(w, r) {
					t.Errorf("caller %d round %d: changed", c, i)
				}
			}
		})
	}
	wg.Wait()
}

func conformClosedDevice(t *testing.T, h harness) {
	devs := h.open(t, 3)
	g := group(t, devs, GroupOptions{Prefer: h.prefer})
	p := buffer(t, 3*Align, 0)
	devs[1].Close()
	ops := stripe(3, Align, p, Op{Write: true, Durable: true})
	if err := g.Run(ops); err != nil {
		t.Fatal(err)
	}
	if ops[0].Err != nil || ops[2].Err != nil || !errors.Is(ops[1].Err, ErrClosed) || ops[1].Stuck {
		t.Errorf("results %v, %v, %v", ops[0].Err, ops[1].Err, ops[2].Err)
	}
}

func conformClose(t *testing.T, h harness) {
	devs := h.open(t, 2)
	g := group(t, devs, GroupOptions{Prefer: h.prefer})
	p := buffer(t, 2*Align, 0)
	run(t, g, stripe(2, Align, p, Op{}))
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Run(stripe(2, Align, p, Op{})); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v", err)
	}
	if err := g.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	d := devs[0]
	if err := d.ReadAt(p[:Align], 0); err != nil {
		t.Errorf("the group's Close closed a device: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"ReadAt": d.ReadAt(p[:Align], 0), "WriteAt": d.WriteAt(p[:Align], 0, true), "Flush": d.Flush(),
		"Discard": d.Discard(0, Align), "Close": d.Close(),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}
