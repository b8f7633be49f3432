package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object"
)

const (
	// scaleFolders is how many prefixes the objects share; scaleBody is the size of each.
	scaleFolders = 1000
	scaleBody    = 64
	// scaleRaw is what one object takes on all disks, bytes: at most, record and stripe overhead included.
	scaleRaw = 1100
	// rebuildTarget is the longest that the rebuild of 10 million objects may take; rebuildStart of it does not depend on their
	// number, as a start.
	rebuildTarget = 2 * time.Minute
	rebuildStart  = startTarget
	startTarget   = 3 * time.Second
	// listKeys is a page of S3.
	listKeys = 1000
)

// scaleName is the key of object i: neighbours in time are not neighbours in order.
func scaleName(i int) string {
	return fmt.Sprintf("folder-%03d/%08x/object-%09d", i%scaleFolders, uint32(i)*2654435761, i)
}

// scale fills an array with many small objects and measures what grows with their number: memory, start, rebuild, lists.
func (b *bench) scale(ctx context.Context) (err error) {
	if !b.opt.wants("scale") {
		return nil
	}
	n := b.opt.objects
	s := &scaleBed{dir: filepath.Join(b.rig.dir, "scale"), crypto: b.rig.crypto}
	if err := s.create(ctx, n); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(s.dir)) }()

	took, err := timed(func() error { return s.put(ctx, 0, n) })
	if err != nil {
		return err
	}
	b.add(result{What: fmt.Sprintf("%d objects put, 256 writers", n), A: rate(took.perSecond(float64(n)))})
	b.add(result{What: "memory of the process afterwards", A: mib(s.memory()), Note: "I/O buffers, caches and the Go heap"})
	if err := b.scaleLists(ctx, s, n, "lists of 1,000 keys, any prefix, warm"); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		return err
	}
	if err := b.scaleOpen(ctx, s, result{What: "start after a clean stop"}, startTarget, false); err != nil {
		return err
	}
	if err := b.scaleLists(ctx, s, n, "lists of 1,000 keys, any prefix, just started"); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		return err
	}
	extra, err := s.killed(ctx, n, b.span(10*time.Second))
	if err != nil {
		return err
	}
	if err := b.scaleOpen(ctx, s, result{What: "start after kill -9 under load", Note: fmt.Sprintf("%d puts before", extra)}, 0, false); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		return err
	}
	if err := b.scaleOpen(ctx, s, result{What: "index rebuilt from the disks alone"}, rebuildLimit(n+extra), true); err != nil {
		return err
	}
	b.add(result{What: "memory of the process afterwards", A: mib(s.memory())})
	return s.count(ctx, n+extra)
}

// rebuildLimit is the longest that the rebuild of n objects may take.
func rebuildLimit(n int) time.Duration {
	return rebuildStart + time.Duration(float64(rebuildTarget-rebuildStart)*float64(n)/10e6)
}

// scaleOpen times a start, for the line r. With a limit it has a target: limit : time at least 1.
func (b *bench) scaleOpen(ctx context.Context, s *scaleBed, r result, limit time.Duration, rebuild bool) error {
	took, err := timed(func() error { return s.open(ctx, rebuild) })
	if err != nil {
		return err
	}
	r.A = took.wall.Round(time.Millisecond).String()
	if limit > 0 {
		r.B, r.Ratio, r.Target = limit.Round(time.Millisecond).String(), limit.Seconds()/took.wall.Seconds(), 1
	}
	b.add(r)
	return nil
}

// scaleLists lists pages under prefixes of all lengths.
func (b *bench) scaleLists(ctx context.Context, s *scaleBed, n int, what string) error {
	var took []time.Duration
	for range pick(b, 500, 20) {
		name := scaleName(rand.IntN(n))
		o := object.ListOptions{Prefix: name[:rand.IntN(len("folder-000/00"))], Max: listKeys}
		if rand.IntN(2) == 0 { // in the middle of the prefix, half of the time
			o.After = name
		}
		start := time.Now()
		if _, err := s.store.List(ctx, bucket, o); err != nil {
			return err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	round := func(p float64) string { return percentile(took, p).Round(10 * time.Microsecond).String() }
	b.add(result{What: what, A: round(50), Note: fmt.Sprintf("p99 %s", round(99))})
	return nil
}

func mib(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }

// scaleBed is an array that is opened and closed again and again.
type scaleBed struct {
	dir    string
	crypto *hw.Engine
	keys   *kms.Keyring
	array  *disk.Array
	store  *object.Store
}

func (s *scaleBed) paths() (p []string) {
	for i := range disks {
		p = append(p, filepath.Join(s.dir, fmt.Sprintf("disk%d.img", i)))
	}
	return p
}

func (s *scaleBed) slot() kms.Slot { return kms.NewFileSlot(filepath.Join(s.dir, "root.key")) }

// create makes an array with room for n objects and half as many again, and a bucket.
func (s *scaleBed) create(ctx context.Context, n int) error {
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	size := max(int64(n)*scaleRaw*3/2/disks, 256<<20) >> 20 << 20 // whole MiB
	for _, p := range s.paths() {
		if err := disk.CreateFile(p, size); err != nil {
			return err
		}
	}
	var id [16]byte
	copy(id[:], "coffer scale run")
	keys, err := kms.Create(ctx, id, s.slot())
	if err != nil {
		return err
	}
	defer keys.Close()
	err = disk.Create(ctx, disk.CreateOptions{ArrayID: id, Paths: s.paths(), Keys: keys,
		Geometry: disk.Geometry{Data: dataCells, Parity: parityCells, ExtentSize: 16 << 20}})
	if err != nil {
		return err
	}
	if err := s.open(ctx, false); err != nil {
		return err
	}
	_, err = s.store.CreateBucket(ctx, bucket, object.Bucket{})
	return err
}

func (s *scaleBed) open(ctx context.Context, rebuild bool) (err error) {
	set, err := disk.Discover(s.paths(), false)
	if err != nil {
		return err
	}
	if s.keys, _, err = kms.Unlock(ctx, set.ArrayID(), set.KeyArea(), []kms.Slot{s.slot()}); err != nil {
		return errors.Join(err, set.Close())
	}
	s.store, err = object.New(object.Options{IndexDir: filepath.Join(s.dir, "index"), Keys: s.keys, Crypto: s.crypto, Rebuild: rebuild})
	if err != nil {
		return errors.Join(err, set.Close())
	}
	if s.array, err = set.Open(ctx, disk.Options{Keys: s.keys, State: s.store, Crypto: s.crypto, Rebuild: rebuild}); err != nil {
		return err
	}
	s.store.Start(object.OnArray(s.array))
	return nil
}

func (s *scaleBed) close() (err error) {
	if s.store != nil {
		s.store.Stop()
	}
	if s.array != nil {
		err = s.array.Close()
	}
	if s.store != nil {
		err = errors.Join(err, s.store.Close())
	}
	if s.keys != nil {
		s.keys.Close()
	}
	s.array, s.store, s.keys = nil, nil, nil
	return err
}

// put stores objects from..to-1.
func (s *scaleBed) put(ctx context.Context, from, to int) error {
	body := make([]byte, scaleBody)
	return parallel(256, to-from, func(i int) error {
		_, err := s.store.Put(ctx, bucket, scaleName(from+i), bytes.NewReader(body), object.PutOptions{Size: scaleBody})
		return err
	})
}

// count lists the whole bucket and fails if an object is missing.
func (s *scaleBed) count(ctx context.Context, want int) error {
	n, o := 0, object.ListOptions{Max: listKeys}
	for {
		page, err := s.store.List(ctx, bucket, o)
		if err != nil {
			return err
		}
		n += len(page.Objects)
		if !page.Truncated {
			break
		}
		o.After = page.Next
	}
	if n < want {
		return fmt.Errorf("%d of %d objects listed after the rebuild", n, want)
	}
	return nil
}

// memory is what the process holds of the machine's memory, bytes (VmRSS in /proc/self/status).
func (s *scaleBed) memory() int64 {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// killed has a second process put objects, kills it d after its first line, and returns how many it was told were durable.
func (s *scaleBed) killed(ctx context.Context, from int, d time.Duration) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	c := exec.CommandContext(ctx, self, putUntilKilled, s.dir, strconv.Itoa(from))
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	n := 0
	for lines := bufio.NewScanner(out); lines.Scan(); n++ {
		if n == 0 {
			time.AfterFunc(d, func() { c.Process.Kill() })
		}
	}
	err = c.Wait()
	if status, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
		return 0, fmt.Errorf("put until killed: the second process ended by itself: %w", cmp.Or(err, errors.New("without an error")))
	}
	return n * killedStep, nil
}

// putUntilKilled is the hidden command of the second process; killedStep is how many puts make a line of its output.
const (
	putUntilKilled = "put-until-killed"
	killedStep     = 1000
)

// runPutUntilKilled is what the second process does.
func runPutUntilKilled(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 2 {
		return errors.New("want a directory and a number")
	}
	from, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	s := &scaleBed{dir: args[0]}
	if s.crypto, err = hw.Probe(hw.Options{SkipBench: true}); err != nil {
		return err
	}
	if err := s.open(ctx, false); err != nil {
		return err
	}
	for ; ; from += killedStep {
		if err := s.put(ctx, from, from+killedStep); err != nil {
			return err
		}
		fmt.Fprintln(stdout, from)
	}
}
