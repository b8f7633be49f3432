package clients

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// absentTool names the first of the programs that is not there, or what they need of the kernel.
func absentTool(names ...string) string {
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			return n + " is not installed"
		}
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		return "no FUSE: " + err.Error()
	} else if err := f.Close(); err != nil {
		return "no FUSE: " + err.Error()
	}
	return ""
}

// helper is a process that serves disks as files, and ends with the test.
type helper struct {
	t      *testing.T
	cmd    *exec.Cmd
	exited chan error
	out    *bytes.Buffer
}

func newHelper(t *testing.T, name string, args ...string) *helper {
	t.Helper()
	h := &helper{t: t, cmd: exec.Command(name, args...), exited: make(chan error, 1), out: new(bytes.Buffer)}
	h.cmd.Stdout, h.cmd.Stderr = h.out, h.out
	if err := h.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { h.exited <- h.cmd.Wait() }()
	t.Cleanup(func() {
		h.end()
		if t.Failed() && h.out.Len() > 0 {
			t.Logf("%s: %s", name, h.out)
		}
	})
	return h
}

// await waits until ready holds, and skips the test if the helper ends before: it cannot do here what is asked of it.
func (h *helper) await(ready func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(startTimeout); !ready(); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-h.exited:
			h.exited <- err
			counts.skip(h.t, fmt.Sprintf("%s: %v: %s", h.cmd.Args[0], err, h.out))
		default:
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s does not serve", h.cmd.Args[0])
		}
	}
}

// end ends the process in order, so that what it mounted is unmounted.
func (h *helper) end() {
	h.cmd.Process.Signal(syscall.SIGTERM) // an error: it has ended
	select {
	case err := <-h.exited:
		h.exited <- err
	case <-time.After(stopTimeout):
		h.cmd.Process.Kill()
	}
}

// logged is an array whose disks note every write and flush: qemu's block driver blklogwrites, exported by NBD, mounted as files by
// nbdfuse, below loop devices. Without the loop devices a write with RWF_DSYNC would come without its flush, which the kernel leaves to
// the server of FUSE; and qemu's own export by FUSE mixes up the data of writes that it serves at the same time (7.2).
type logged struct {
	*helper
	*loops
	mounts []*helper
	dir    string
	size   int64
}

func (l *logged) raw(i int) string { return filepath.Join(l.dir, fmt.Sprintf("raw%d", i)) }
func (l *logged) log(i int) string { return filepath.Join(l.dir, fmt.Sprintf("log%d", i)) }

// blockLogBytes is the unit of the log and of the disks' addresses in it.
const blockLogBytes = 4096

func newLogged(t *testing.T, s *server, size int64) *logged {
	t.Helper()
	l := &logged{loops: newLoops(t), dir: filepath.Dir(s.dir), size: size}
	socket := filepath.Join(l.dir, "nbd")
	args := []string{"--nbd-server", "addr.type=unix,addr.path=" + socket}
	for i := range 6 {
		s.write(l.raw(i), nil)
		s.write(l.log(i), nil)
		if err := os.Truncate(l.raw(i), size); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--blockdev", fmt.Sprintf("file,filename=%s,node-name=raw%d", l.raw(i), i),
			"--blockdev", fmt.Sprintf("file,filename=%s,node-name=log%d", l.log(i), i),
			"--blockdev", fmt.Sprintf("blklogwrites,node-name=disk%d,file=raw%d,log=log%d,log-sector-size=%d", i, i, i, blockLogBytes),
			"--export", fmt.Sprintf("nbd,id=export%d,node-name=disk%d,name=disk%d,writable=on", i, i, i))
	}
	l.helper = newHelper(t, "qemu-storage-daemon", args...)
	l.await(func() bool { _, err := os.Stat(socket); return err == nil })
	for i := range 6 {
		m, file := mountNBD(t, filepath.Join(l.dir, fmt.Sprintf("mnt%d", i)), fmt.Sprintf("nbd+unix:///disk%d?socket=%s", i, socket), size)
		l.mounts = append(l.mounts, m)
		l.attach(s.diskPath(i), file)
	}
	t.Cleanup(func() { // before all that is below it
		s.kill()
		l.end()
	})
	return l
}

// mountNBD makes the disk that an NBD server serves a file.
func mountNBD(t *testing.T, dir, uri string, size int64) (*helper, string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "disk")
	m := newHelper(t, "nbdfuse", file, uri)
	m.await(func() bool { fi, err := os.Stat(file); return err == nil && fi.Size() == size })
	return m, file
}

// end takes the disks down.
func (l *logged) end() {
	for path := range l.devs {
		l.detach(path)
	}
	for _, m := range l.mounts {
		m.end()
	}
	l.helper.end()
}

// cut is a moment at which the power might have failed: how long each log was, and what had been acknowledged and begun.
type cut struct {
	ends   [6]int64
	ledger *ledger
}

// cut stops all disks at once, and takes down how far each has come.
func (l *logged) cut(d *drill) cut {
	l.helper.t.Helper()
	d.l.mu.Lock() // nothing is acknowledged or begun meanwhile
	defer d.l.mu.Unlock()
	if err := l.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		l.helper.t.Fatal(err)
	}
	defer l.cmd.Process.Signal(syscall.SIGCONT)
	for !l.stopped() {
		time.Sleep(100 * time.Microsecond)
	}
	c := cut{ledger: d.l.clone()}
	for i := range c.ends {
		c.ends[i] = fileSize(l.helper.t, l.log(i))
	}
	return c
}

// stopped reports whether all threads of the process stand still.
func (l *logged) stopped() bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", l.cmd.Process.Pid))
	if err != nil || len(stats) == 0 {
		l.helper.t.Fatalf("threads of %s: %v", l.cmd.Args[0], err)
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			return false
		}
		if i := bytes.LastIndexByte(b, ')'); i < 0 || i+2 >= len(b) || b[i+2] != 'T' {
			return false
		}
	}
	return true
}

// The flags of an entry of the log (Linux, drivers/md/dm-log-writes.c).
const (
	logFlush   = 1
	logFUA     = 2
	logDiscard = 4
)

// logEntry is a write, or a flush, in the log of a disk. off and n are in bytes.
type logEntry struct {
	off, n int64
	flags  uint64
	data   int64 // where the data lies in the log
	end    int64 // where the next entry lies
}

// readLog returns the entries of a log whose writer has ended.
func readLog(t *testing.T, f *os.File) (all []logEntry) {
	t.Helper()
	head := make([]byte, 32)
	for at, end := int64(blockLogBytes), fileSize(t, f.Name()); at < end; {
		if _, err := f.ReadAt(head, at); err != nil {
			t.Fatal(err)
		}
		le := binary.LittleEndian
		e := logEntry{off: int64(le.Uint64(head)) * blockLogBytes, n: int64(le.Uint64(head[8:])) * blockLogBytes, flags: le.Uint64(head[16:]), data: at + blockLogBytes}
		if e.flags == 0 && e.n == 0 {
			t.Fatalf("%s: no entry at %d of %d", filepath.Base(f.Name()), at, end)
		}
		at += blockLogBytes
		if e.flags&logDiscard == 0 {
			at += e.n
		}
		e.end = at
		all = append(all, e)
	}
	return all
}

// replay is a disk as its log makes it.
type replay struct {
	t       *testing.T
	log     *os.File
	entries []logEntry
	disk    *os.File
	done    int // entries that are on the disk for good
}

// until puts on the disk what was flushed in the first end bytes of the log, and returns what was not. A write that had begun
// at that moment and not ended may stand before a flush that did not wait for it, and is then taken to have landed.
func (r *replay) until(end int64) (loose []logEntry) {
	r.t.Helper()
	n, flushed := r.done, r.done
	for ; n < len(r.entries) && r.entries[n].end <= end; n++ {
		if r.entries[n].flags&(logFlush|logFUA) != 0 {
			flushed = n + 1
		}
	}
	for _, e := range r.entries[r.done:flushed] {
		r.apply(r.disk, e, nil)
	}
	r.done = flushed
	return slices.Clone(r.entries[flushed:n])
}

const sectorBytes = 512

// apply does a write again, or those of its sectors that keep says.
func (r *replay) apply(to *os.File, e logEntry, keep func() bool) {
	r.t.Helper()
	b := make([]byte, e.n)
	if e.flags&logDiscard == 0 {
		if _, err := r.log.ReadAt(b, e.data); err != nil {
			r.t.Fatal(err)
		}
	}
	step := len(b)
	if keep != nil {
		step = sectorBytes
	}
	for at := 0; at < len(b); at += step {
		if keep != nil && !keep() {
			continue
		}
		if _, err := to.WriteAt(b[at:at+step], e.off+int64(at)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// image makes a copy of the disk at path, with a random part of the writes that were not flushed, in random order.
func (r *replay) image(rng *rand.Rand, path string, loose []logEntry) {
	r.t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", r.disk.Name(), path).CombinedOutput(); err != nil {
		r.t.Fatalf("copy a disk: %v: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	tenths := []int{0, 10, 5, 9}[rng.IntN(4)]
	if tenths < 10 {
		rng.Shuffle(len(loose), func(i, j int) { loose[i], loose[j] = loose[j], loose[i] })
	}
	for _, e := range loose {
		r.apply(f, e, func() bool { return rng.IntN(10) < tenths })
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil { // the daemon reads past the page cache
		r.t.Fatal(err)
	}
}

// TestPowerCut runs the daemon on disks that note each write and flush, and then lets the power fail at moments of that run: on each disk
// all that was flushed is there, and of the rest any part, torn within writes. The daemon opens what is left, and everything that had been
// acknowledged is there. TestDurability cannot show this, for a kernel whose process dies loses nothing.
func TestPowerCut(t *testing.T) {
	needsDevices(t, cmp.Or(absentTool("qemu-storage-daemon", "nbdfuse", "cmp"), noLoops()))
	cuts, size := 6, int64(256<<20)
	if soak {
		cuts, size = 40, 512<<20
	} else {
		t.Parallel()
	}
	rng := seeded(t)
	s := prepareServer(t, "", "COFFER_ROOT_ACCESS_KEY=powercut", "COFFER_ROOT_SECRET_KEY=powercut-secret")
	l := newLogged(t, s, size)
	s.createOn(4)
	d := &drill{t: t, s: s, l: newLedger(), uploads: map[string]pendingUpload{}}
	if err := (awsSDK{}).makeBucket(t.Context(), s, drillBucket); err != nil {
		t.Fatal(err)
	}
	var taken []cut
	d.load(rng, func() {
		for range cuts {
			d.awaitAcks(8)
			time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
			taken = append(taken, l.cut(d))
		}
	})
	s.kill()
	l.end()

	flushes := 0
	var disks [6]*replay
	for i := range disks {
		r := &replay{t: t}
		var err error
		if r.log, err = os.Open(l.log(i)); err == nil {
			r.disk, err = os.Create(filepath.Join(filepath.Dir(s.dir), fmt.Sprintf("base%d", i)))
		}
		if err == nil {
			err = r.disk.Truncate(size)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.entries = readLog(t, r.log)
		for _, e := range r.entries {
			flushes += int(e.flags & logFlush)
		}
		disks[i] = r
		defer r.log.Close()
		defer r.disk.Close()
	}
	if flushes == 0 {
		t.Fatal("no flush is in the logs: the devices pass none on")
	}
	for n, c := range taken {
		when := fmt.Sprintf("cut %d of %d", n+1, cuts)
		if n == 1 || n > 0 && n == cuts/2 {
			// The control: from what the disks held at the cut before, acknowledged writes are missing.
			s.start()
			_, _, faults := c.ledger.clone().compare(t.Context(), s, drillBucket)
			if len(faults) == 0 {
				t.Errorf("%s: nothing is missing from the disks as they were at the cut before", when)
			}
			t.Logf("%s: %d faults found in the disks of the cut before", when, len(faults))
			s.kill()
		}
		entries, loose := 0, 0
		for i, r := range disks {
			rest := r.until(c.ends[i])
			entries, loose = entries+r.done+len(rest), loose+len(rest)
			if err := os.RemoveAll(s.diskPath(i)); err != nil {
				t.Fatal(err)
			}
			r.image(rng, s.diskPath(i), rest)
		}
		d.removeIndex()
		s.start()
		c.ledger.verify(t, s, drillBucket, fmt.Sprintf("%s: %d writes and flushes, %d of them loose", when, entries, loose))
		s.kill()
		counts.add("power cuts replayed", 1)
		counts.add("writes that were loose at a power cut", int64(loose))
	}
	for i, r := range disks {
		for _, e := range r.until(math.MaxInt64) {
			r.apply(r.disk, e, nil)
		}
		if out, err := exec.Command("cmp", r.disk.Name(), l.raw(i)).CombinedOutput(); err != nil {
			t.Errorf("the log does not tell what disk %d holds: %v: %s", i, err, out)
		}
	}
}
