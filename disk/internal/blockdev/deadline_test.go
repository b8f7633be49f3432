package blockdev

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gateDevice hangs while its gate is shut.
type gateDevice struct {
	Device
	mu   sync.Mutex
	gate chan struct{}
}

func (d *gateDevice) wait() {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	<-gate
}

func (d *gateDevice) ReadAt(p []byte, off int64) error { d.wait(); return d.Device.ReadAt(p, off) }

func (d *gateDevice) WriteAt(p []byte, off int64, durable bool) error {
	d.wait()
	return d.Device.WriteAt(p, off, durable)
}

// pipeDevice is a fileDevice whose reads hang until bytes are written to the returned end.
func pipeDevice(t *testing.T) (*fileDevice, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	d := &fileDevice{path: "pipe", fd: fd, limits: Limits{Size: testSize, Kind: "file"}}
	d.refs.init()
	t.Cleanup(func() { w.Close(); d.Close() })
	return d, w
}

func uringOrSkip(t *testing.T, devs []Device, opt GroupOptions) *uringGroup {
	t.Helper()
	opt.Prefer = "uring"
	g, ok := group(t, devs, opt).(*uringGroup)
	if !ok {
		t.Skip("no io_uring here")
	}
	return g
}

// hangs are the two ways to a group whose second device hangs until release is called.
var hangs = []struct {
	name string
	open func(t *testing.T, opt GroupOptions) (g Group, release func(ops int))
}{
	{"uring", func(t *testing.T, opt GroupOptions) (Group, func(int)) {
		// The healthy device is a pipe too, filled beforehand: a real disk may be slow on a busy machine.
		fast, full := pipeDevice(t)
		if _, err := full.Write(make([]byte, (maxStuck+1)*Align)); err != nil {
			t.Fatal(err)
		}
		d, w := pipeDevice(t)
		return uringOrSkip(t, []Device{fast, d}, opt), func(ops int) {
			if _, err := w.Write(make([]byte, ops*Align)); err != nil {
				t.Error(err)
			}
		}
	}},
	{"pool", func(t *testing.T, opt GroupOptions) (Group, func(int)) {
		devs := openMem(t, 2)
		gate := make(chan struct{})
		opt.Prefer = "pool"
		return group(t, []Device{devs[0], &gateDevice{Device: devs[1], gate: gate}}, opt), func(int) { close(gate) }
	}},
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in 10 s", what)
		}
	}
}

func memberOf(g Group, i int) *member {
	switch g := g.(type) {
	case *uringGroup:
		return &g.devs[i]
	case *poolGroup:
		return &g.devs[i]
	}
	return nil
}

// TestDeadline: an operation that hangs costs its deadline, its buffer and a share of its own device, and no more.
func TestDeadline(t *testing.T) {
	for _, h := range hangs {
		t.Run(h.name, func(t *testing.T) {
			const limit = 60 * time.Millisecond
			g, release := h.open(t, GroupOptions{ReadTimeout: limit, Workers: maxStuck})
			arena := NewArena(ArenaOptions{})
			for range maxStuck {
				b, err := arena.Get(t.Context(), 2*Align)
				if err != nil {
					t.Fatal(err)
				}
				ops := stripe(2, Align, b.Bytes(), Op{})
				start := time.Now()
				if err := g.Run(ops); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(start); d < limit || d > 50*limit {
					t.Errorf("Run took %v", d)
				}
				if ops[0].Err != nil || ops[0].Stuck || !errors.Is(ops[1].Err, ErrTimeout) || !ops[1].Stuck {
					t.Fatalf("results %+v, %+v", ops[0], ops[1])
				}
				b.Abandon(ops)
				if b.Bytes() != nil {
					t.Error("an abandoned buffer is still offered")
				}
			}
			if inUse, _ := arena.Stats(); inUse != maxStuck*2*Align {
				t.Errorf("%d bytes held for stuck operations", inUse)
			}
			// The device is hung for good: the next operation fails at once and holds nothing, its peer serves.
			p := buffer(t, 2*Align, 0)
			ops := stripe(2, Align, p, Op{})
			start := time.Now()
			if err := g.Run(ops); err != nil {
				t.Fatal(err)
			}
			if ops[0].Err != nil || !errors.Is(ops[1].Err, ErrTimeout) || ops[1].Stuck || time.Since(start) > 20*limit {
				t.Errorf("results %v, %v (stuck %v) after %v", ops[0].Err, ops[1].Err, ops[1].Stuck, time.Since(start))
			}
			c := memberOf(g, 1).counters
			if s := c.snapshot(); s.Timeouts != maxStuck+1 || s.Stuck != maxStuck || s.ReadErrors != maxStuck+1 {
				t.Errorf("stats %+v", s)
			}
			release(maxStuck)
			waitFor(t, "memory of stuck operations", func() bool { inUse, _ := arena.Stats(); return inUse == 0 })
			if n := c.stuck.Load(); n != 0 {
				t.Errorf("%d operations still stuck", n)
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
			if err := arena.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGiveUp: a device that owes an answer is known by it, and what it owes ends when it is given up; what is asked of it later does not.
func TestGiveUp(t *testing.T) {
	for _, h := range hangs {
		t.Run(h.name, func(t *testing.T) {
			g, release := h.open(t, GroupOptions{})
			ops := stripe(2, Align, buffer(t, 2*Align, 0), Op{})
			ended := make(chan error)
			go func() { ended <- g.Run(ops) }()
			const long = 2 * lookEvery
			waitFor(t, "silence", func() bool { silent, _ := g.Silence(1); return silent > long })
			if silent, since := g.Silence(0); silent != 0 || since > 10*long {
				t.Errorf("the other device is silent for %v, since %v", silent, since)
			}
			if _, since := g.Silence(1); since < long {
				t.Errorf("answered %v ago", since)
			}
			select {
			case <-ended:
				t.Fatal("did not wait")
			default:
			}
			g.GiveUp(1)
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if ops[0].Err != nil || !errors.Is(ops[1].Err, ErrTimeout) || !ops[1].Stuck {
				t.Errorf("results %+v, %+v", ops[0], ops[1])
			}
			release(2)
			waitFor(t, "the answer", ops[1].Settle)
			later := []Op{{Dev: 1, Buf: buffer(t, Align, 0)}}
			if err := g.Run(later); err != nil || later[0].Err != nil {
				t.Errorf("later: %v, %v", err, later[0].Err)
			}
			waitFor(t, "end of silence", func() bool { silent, _ := g.Silence(1); return silent == 0 })
		})
	}
}

// TestDeadlineQueued: an operation that no worker has begun at its deadline releases its buffer, and is never begun.
func TestDeadlineQueued(t *testing.T) {
	mem := openMem(t, 1)[0]
	gate := make(chan struct{})
	g := group(t, []Device{&gateDevice{Device: mem, gate: gate}}, GroupOptions{Prefer: "pool", Workers: 1, WriteTimeout: 30 * time.Millisecond})
	p := buffer(t, 2*Align, 1)
	ops := []Op{{Write: true, Buf: p[:Align]}, {Write: true, Buf: p[Align:], Off: Align}}
	if err := g.Run(ops); err != nil {
		t.Fatal(err)
	}
	if !ops[0].Stuck || ops[1].Stuck || !errors.Is(ops[1].Err, ErrTimeout) {
		t.Errorf("stuck %v, %v; %v", ops[0].Stuck, ops[1].Stuck, ops[1].Err)
	}
	close(gate)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if s := mem.Stats(); s.Writes != 1 {
		t.Errorf("%d writes reached the disk", s.Writes)
	}
}

// TestCloseHung: Close does not wait for ever, and says what it left.
func TestCloseHung(t *testing.T) {
	for _, h := range hangs {
		t.Run(h.name, func(t *testing.T) {
			g, release := h.open(t, GroupOptions{ReadTimeout: 10 * time.Millisecond})
			switch g := g.(type) {
			case *uringGroup:
				g.life.grace = 20 * time.Millisecond
			case *poolGroup:
				g.life.grace = 20 * time.Millisecond
			}
			ops := []Op{{Dev: 1, Buf: buffer(t, Align, 0)}}
			if err := g.Run(ops); err != nil || !ops[0].Stuck {
				t.Fatalf("%v, stuck %v", err, ops[0].Stuck)
			}
			if err := g.Close(); !errors.Is(err, ErrTimeout) {
				t.Errorf("Close: %v", err)
			}
			done := make(chan struct{})
			ops[0].hold.whenReleased(func() { close(done) })
			release(1)
			<-done
		})
	}
}

// TestMixedDeadlines: reads and writes have their own, and a batch ends with the last of them.
func TestMixedDeadlines(t *testing.T) {
	mem := openMem(t, 1)[0]
	gate := make(chan struct{})
	g := group(t, []Device{&gateDevice{Device: mem, gate: gate}}, GroupOptions{
		Prefer: "pool", ReadTimeout: 20 * time.Millisecond, WriteTimeout: time.Minute})
	p := buffer(t, 2*Align, 1)
	time.AfterFunc(100*time.Millisecond, func() { close(gate) })
	ops := []Op{{Buf: p[:Align]}, {Write: true, Buf: p[Align:], Off: Align}}
	if err := g.Run(ops); err != nil {
		t.Fatal(err)
	}
	if !ops[0].Stuck || ops[1].Err != nil {
		t.Errorf("%+v, %+v", ops[0], ops[1])
	}
	if err := g.Close(); err != nil { // the stuck read still uses the buffer
		t.Error(err)
	}
}

// TestDeadlineStorm: with deadlines about as long as the disks take, each batch ends one way or the other, all memory comes
// back, and what was acknowledged is there.
func TestDeadlineStorm(t *testing.T) {
	for _, kind := range []string{"uring", "pool"} {
		t.Run(kind, func(t *testing.T) {
			const callers, rounds, n, size = 4, 60, 3, 4 * Align
			devs := openFiles(t, n)
			g := group(t, devs, GroupOptions{Prefer: kind, WriteTimeout: 300 * time.Microsecond})
			arena := NewArena(ArenaOptions{Limit: 4 << 20})
			var acked [callers][rounds][n]bool
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					for r := range rounds {
						b, err := arena.Get(t.Context(), n*size)
						if err != nil {
							t.Error(err)
							return
						}
						for i := range b.Bytes() {
							b.Bytes()[i] = byte(c*rounds + r)
						}
						ops := stripe(n, size, b.Bytes(), Op{Write: true, Durable: true, Off: int64(c*rounds+r) * size})
						if err := g.Run(ops); err != nil {
							t.Error(err)
						}
						for i, op := range ops {
							acked[c][r][i] = op.Err == nil
							if op.Err != nil && !errors.Is(op.Err, ErrTimeout) || op.Err == nil && op.Stuck {
								t.Errorf("%+v", op)
							}
						}
						b.Abandon(ops)
					}
				})
			}
			wg.Wait()
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			if err := arena.Close(); err != nil {
				t.Error(err)
			}
			done, p := 0, buffer(t, size, 0)
			for at, ok := range acked {
				for r, ok := range ok {
					for i, ok := range ok {
						if !ok {
							continue
						}
						done++
						if err := devs[i].ReadAt(p, int64(at*rounds+r)*size); err != nil || p[0] != byte(at*rounds+r) || p[size-1] != p[0] {
							t.Errorf("caller %d round %d disk %d: %v, %d", at, r, i, err, p[0])
						}
					}
				}
			}
			for _, d := range devs {
				if s := d.Stats().Stuck; s != 0 {
					t.Errorf("%d operations stuck", s)
				}
			}
			t.Logf("%d of %d in time", done, callers*rounds*n)
		})
	}
}

// TestPeerLatency: a slow disk in a batch shows as slow, and its peers do not.
func TestPeerLatency(t *testing.T) {
	fast, filled := pipeDevice(t)
	slow, w := pipeDevice(t)
	g := uringOrSkip(t, []Device{fast, slow}, GroupOptions{})
	filled.Write(make([]byte, Align))
	time.AfterFunc(300*time.Millisecond, func() { w.Write(make([]byte, Align)) })
	run(t, g, stripe(2, Align, buffer(t, 2*Align, 0), Op{}))
	if f, s := fast.Stats().ReadLatency.Sum, slow.Stats().ReadLatency.Sum; f > 150*time.Millisecond || s < 250*time.Millisecond {
		t.Errorf("fast %v, slow %v", f, s)
	}
}

// TestFallback: what io_uring cannot serve, a pool does, and says why.
func TestFallback(t *testing.T) {
	file, mem := openFiles(t, 1)[0], openMem(t, 1)[0]
	g := group(t, []Device{file, mem}, GroupOptions{Prefer: "uring"})
	if g.Kind() != "pool" || !strings.Contains(g.Reason(), mem.Path()) {
		t.Errorf("%s: %s", g.Kind(), g.Reason())
	}
	run(t, g, stripe(2, Align, buffer(t, 2*Align, 1), Op{Write: true}))
}

// TestUringShort: short transfers go on where they stopped, and an end before the end is an error.
func TestUringShort(t *testing.T) {
	for _, c := range []struct {
		name   string
		pieces []int
		want   error
	}{
		{"two pieces", []int{Align, 2 * Align}, nil},
		{"end", []int{Align}, io.ErrUnexpectedEOF},
		{"nothing", nil, io.ErrUnexpectedEOF},
		{"less than a block", []int{100}, io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, w := pipeDevice(t)
			g := uringOrSkip(t, []Device{d}, GroupOptions{ReadTimeout: 5 * time.Second})
			go func() {
				for _, n := range c.pieces {
					w.Write(make([]byte, n))
					time.Sleep(20 * time.Millisecond)
				}
				w.Close()
			}()
			ops := []Op{{Buf: buffer(t, 3*Align, 1)}}
			if err := g.Run(ops); err != nil {
				t.Fatal(err)
			}
			if !errors.Is(ops[0].Err, c.want) || ops[0].Stuck {
				t.Errorf("got %v, stuck %v; want %v", ops[0].Err, ops[0].Stuck, c.want)
			}
		})
	}
}

// TestUringSignals: signals to the waiting thread, as the runtime sends them, neither lose nor end an operation.
func TestUringSignals(t *testing.T) {
	d, w := pipeDevice(t)
	g := uringOrSkip(t, []Device{d}, GroupOptions{ReadTimeout: 10 * time.Second})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				syscall.Kill(os.Getpid(), syscall.SIGURG)
			}
			if i == 100 {
				w.Write(make([]byte, Align))
			}
		}
	})
	ops := []Op{{Buf: buffer(t, Align, 1)}}
	err := g.Run(ops)
	close(stop)
	wg.Wait()
	if err != nil || ops[0].Err != nil {
		t.Errorf("%v, %v", err, ops[0].Err)
	}
}

// TestUringBroken: when the ring itself fails, what was in flight is Stuck for good, the rest has the error, and Run says so.
func TestUringBroken(t *testing.T) {
	d, w := pipeDevice(t)
	g := uringOrSkip(t, []Device{d}, GroupOptions{ReadTimeout: 5 * time.Second})
	r := g.idle[0]
	fd := r.fd
	r.fd = -1 // io_uring_enter answers EBADF
	p := buffer(t, (ringEntries+1)*Align, 0)
	ops := make([]Op, ringEntries+1)
	for i := range ops {
		ops[i] = Op{Buf: p[i*Align : (i+1)*Align]}
	}
	if err := g.Run(ops); !errors.Is(err, unix.EBADF) {
		t.Errorf("Run: %v", err)
	}
	for i, op := range ops {
		if !errors.Is(op.Err, unix.EBADF) || op.Stuck != (i < ringEntries) {
			t.Fatalf("op %d: %v, stuck %v", i, op.Err, op.Stuck)
		}
	}
	if len(g.broken) != 1 {
		t.Errorf("%d rings kept", len(g.broken))
	}
	d.counters.stuck.Store(0)
	w.Write(make([]byte, Align)) // a new ring serves
	if err := g.Run(ops[:1]); err != nil || ops[0].Err != nil {
		t.Errorf("the next Run: %v, %v", err, ops[0].Err)
	}
	r.fd = fd
	r.close()
}
