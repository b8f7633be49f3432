package blockdev

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCreateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	for _, size := range []int64{0, -1, 100} {
		if err := CreateFile(path, size); !errors.Is(err, ErrInvalid) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if err := CreateFile(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != 1<<20 || st.Mode().Perm() != 0o600 {
		t.Errorf("size %d, mode %v", st.Size(), st.Mode())
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Blocks*512 < 1<<20 {
		t.Errorf("%d bytes reserved", sys.Blocks*512)
	}
	if err := CreateFile(path, 1<<20); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second time: %v", err)
	}
	if err := CreateFile(filepath.Join(dir, "none", "disk"), 1<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	// More than any file system here holds: a clear error, and nothing left behind.
	huge := filepath.Join(dir, "huge")
	if err := CreateFile(huge, 1<<52); err == nil {
		t.Error("4 PiB reserved")
	}
	if _, err := os.Stat(huge); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	if err := CreateFile(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	d := openPath(t, path)
	for _, opt := range []OpenOptions{{}, {ReadOnly: true}} {
		if _, err := OpenFile(path, opt); !errors.Is(err, ErrInUse) {
			t.Errorf("second opener: %v", err)
		}
	}
	start := time.Now()
	if _, err := OpenFile(path, OpenOptions{Wait: 50 * time.Millisecond}); !errors.Is(err, ErrInUse) || time.Since(start) < 50*time.Millisecond {
		t.Errorf("second opener that waits: %v after %v", err, time.Since(start))
	}
	w, r := buffer(t, Align, 5), buffer(t, Align, 0)
	if err := d.WriteAt(w, 0, true); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	time.AfterFunc(50*time.Millisecond, func() { closed <- d.Close() })
	ro, err := OpenFile(path, OpenOptions{ReadOnly: true, Wait: time.Minute})
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("after close: %v", err)
	}
	defer ro.Close()
	if err := ro.ReadAt(r, 0); err != nil || !bytes.Equal(r, w) {
		t.Errorf("read-only read: %v", err)
	}
	for name, err := range map[string]error{
		"write": ro.WriteAt(w, 0, true), "discard": ro.Discard(0, Align), "prepare": ro.Prepare(0, Align),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("read-only %s: %v", name, err)
		}
	}
	for _, kind := range []string{"uring", "pool"} {
		ops := []Op{{Write: true, Buf: w}}
		if err := group(t, []Device{ro}, GroupOptions{Prefer: kind}).Run(ops); err != nil || !errors.Is(ops[0].Err, ErrReadOnly) {
			t.Errorf("read-only %s: %v, %v", kind, err, ops[0].Err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "tiny"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tiny", "none", "."} {
		if _, err := OpenFile(filepath.Join(dir, name), OpenOptions{}); err == nil {
			t.Errorf("%s opens", name)
		}
	}
	if _, err := OpenFile("/proc/self/status", OpenOptions{}); err == nil {
		t.Error("a file without direct I/O opens")
	}
}

// TestBlockInUse: a block device has one opener.
func TestBlockInUse(t *testing.T) {
	d := openLoops(t, 1)[0]
	if l := d.Limits(); l.Kind != "block" || l.LogicalBlock != 4096 || l.OffAlign != 4096 {
		t.Errorf("limits %+v", l)
	}
	if _, err := OpenFile(d.Path(), OpenOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second opener: %v", err)
	}
}

// TestCloseInFlight: the descriptor stays open under the operations that use it.
func TestCloseInFlight(t *testing.T) {
	d := openFiles(t, 1)[0].(*fileDevice)
	if err := d.use(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFD, 0); err != nil {
		t.Errorf("closed under an operation: %v", err)
	}
	if err := d.use(); !errors.Is(err, ErrClosed) {
		t.Errorf("use after close: %v", err)
	}
	d.unuse()
	if d.refs.n.Load() != 0 {
		t.Error("still referenced")
	}
}

func TestSysfs(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(from, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, "dev/block"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(root, to), filepath.Join(root, "dev/block", from)); err != nil {
			t.Fatal(err)
		}
	}
	nvme := "devices/pci/nvme/nvme0/nvme0n1/"
	write(nvme+"queue/write_cache", "write back\n")
	write(nvme+"queue/fua", "1\n")
	write(nvme+"queue/rotational", "0\n")
	write(nvme+"queue/logical_block_size", "512\n")
	write(nvme+"device/model", "FAST 9000                               \n")
	write(nvme+"device/serial", "S1\x00\x1b[31m\n")
	write(nvme+"nvme0n1p2/partition", "2\n")
	link("259:0", nvme)
	link("259:2", nvme+"nvme0n1p2")
	virtio := "devices/virtio/vda/"
	write(virtio+"queue/write_cache", "write through\n")
	write(virtio+"queue/rotational", "1\n")
	write(virtio+"serial", "disk-7")
	link("254:0", virtio)

	fast := Limits{LogicalBlock: 512, WriteBack: true, FUA: true, Model: "FAST 9000", Serial: "S1[31m"}
	for _, c := range []struct {
		minor, major uint32
		want         Limits
	}{
		{0, 259, fast},
		{2, 259, fast},
		{0, 254, Limits{Rotational: true, Serial: "disk-7"}},
		{38, 0, Limits{WriteBack: true}}, // btrfs and the like
	} {
		var got Limits
		sysfs{root}.describe(&got, c.major, c.minor)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%d:%d: %s", c.major, c.minor, d)
		}
	}
}

func TestLatency(t *testing.T) {
	var h histogram
	for _, c := range []struct {
		d      time.Duration
		bucket int
	}{
		{-1, 0}, {0, 0}, {999 * time.Nanosecond, 0}, {time.Microsecond, 1}, {2 * time.Microsecond, 2}, {3 * time.Microsecond, 2},
		{time.Millisecond, 10}, {time.Second, 20}, {time.Hour, LatencyBuckets - 1},
	} {
		before := h.snapshot()
		h.add(c.d)
		after := h.snapshot()
		if after.Buckets[c.bucket] != before.Buckets[c.bucket]+1 || after.Count != before.Count+1 {
			t.Errorf("%v is not in bucket %d: %v", c.d, c.bucket, after.Buckets)
		}
	}
}

// TestRunAllocs: batches of a stripe's size cost no memory.
func TestRunAllocs(t *testing.T) {
	for _, c := range []struct {
		prefer string
		max    float64
	}{{"uring", 0}, {"pool", 12}} { // up to one goroutine per operation; the race detector empties sync.Pools at random
		g := group(t, openFiles(t, 6), GroupOptions{Prefer: c.prefer})
		if g.Kind() != c.prefer {
			t.Skipf("%s: %s", g.Kind(), g.Reason())
		}
		ops := stripe(6, Align, buffer(t, 6*Align, 1), Op{Write: true})
		if got := testing.AllocsPerRun(100, func() { run(t, g, ops) }); got > c.max {
			t.Errorf("%s: %v allocations for a batch of 6", c.prefer, got)
		}
	}
}
