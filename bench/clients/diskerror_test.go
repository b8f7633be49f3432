package clients

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// filtered is a disk behind nbdkit, whose filters let it fail or take its time.
type filtered struct {
	t     *testing.T
	s     *server
	dir   string
	size  int64
	serve *helper
	mount *helper
	n     int
}

func (f *filtered) flag() string { return filepath.Join(f.dir, "fail") }

// up serves the disk with filters of nbdkit and their parameters.
func (f *filtered) up(params ...string) {
	f.t.Helper()
	f.n++
	socket := filepath.Join(f.dir, fmt.Sprintf("nbd%d", f.n))
	var filters, rest []string
	for _, p := range params {
		if filepath.Ext(p) == ".filter" {
			filters = append(filters, "--filter="+p[:len(p)-len(".filter")])
		} else {
			rest = append(rest, p)
		}
	}
	args := append([]string{"-f", "-U", socket}, filters...)
	f.serve = newHelper(f.t, "nbdkit", append(append(args, "file", filepath.Join(f.dir, "raw")), rest...)...)
	f.serve.await(func() bool { _, err := os.Stat(socket); return err == nil })
	var file string
	f.mount, file = mountNBD(f.t, filepath.Join(f.dir, fmt.Sprintf("mnt%d", f.n)), "nbd+unix:///?socket="+socket, f.size)
	if err := os.Symlink(file, f.s.diskPath(0)); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(f.s.kill) // before the disk goes
}

func (f *filtered) down() {
	f.t.Helper()
	f.mount.end()
	f.serve.end()
	if err := os.Remove(f.s.diskPath(0)); err != nil {
		f.t.Fatal(err)
	}
}

// fail lets every read and write of the disk fail from now on, or no longer.
func (f *filtered) fail(now bool) {
	f.t.Helper()
	if now {
		f.s.write(f.flag(), nil)
	} else if err := os.Remove(f.flag()); err != nil {
		f.t.Fatal(err)
	}
}

// TestDiskErrors: a disk begins to answer EIO under load, and later takes long for each answer, a second in the long form. Clients notice neither, what
// they wrote is there, and once the disk is well again it takes part again.
func TestDiskErrors(t *testing.T) {
	needsDevices(t, absentTool("nbdkit", "nbdfuse"))
	if !soak {
		t.Parallel()
	}
	rng := seeded(t)
	s := prepareServer(t, "", "COFFER_ROOT_ACCESS_KEY=errors", "COFFER_ROOT_SECRET_KEY=errors-secret")
	f := &filtered{t: t, s: s, dir: filepath.Dir(s.dir), size: 512 << 20}
	if err := os.MkdirAll(filepath.Dir(s.diskPath(0)), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{filepath.Join(f.dir, "raw"), s.diskPath(1), s.diskPath(2), s.diskPath(3), s.diskPath(4), s.diskPath(5)} {
		s.write(p, nil)
		if err := os.Truncate(p, f.size); err != nil {
			t.Fatal(err)
		}
	}
	failing := []string{"error.filter", "error=EIO", "error-pread-rate=100%", "error-pwrite-rate=100%", "error-zero-rate=100%", "error-file=" + f.flag()}
	f.up(failing...)
	s.createOn(8)
	d := &drill{t: t, s: s, l: newLedger(), uploads: map[string]pendingUpload{}}
	if err := (awsSDK{}).makeBucket(t.Context(), s, drillBucket); err != nil {
		t.Fatal(err)
	}
	acks, delay := int64(leastAcks), "250ms"
	if soak {
		acks, delay = 2000, "1"
	}

	d.load(rng, func() {
		d.awaitAcks(acks)
		f.fail(true)
		d.awaitAcks(acks)
	})
	if got := s.status()[0].State; got != "fenced" {
		t.Errorf("a disk that fails every write is %s", got)
	}
	d.l.verify(t, s, drillBucket, "a disk answers EIO")
	s.kill()
	s.start() // nothing of the disk can be read
	d.l.verify(t, s, drillBucket, "started while a disk answers EIO")
	s.stop()
	// Connected anew: nbdkit may answer ESHUTDOWN to all that comes after many errors, and a process that was killed meanwhile.
	f.down()
	f.fail(false)
	f.up()
	s.start()
	s.waitHealthy()
	d.l.verify(t, s, drillBucket, "the disk is well again")
	s.stop()
	f.down()

	f.up("delay.filter", "rdelay="+delay, "wdelay="+delay)
	s.start()
	began := time.Now()
	d.load(rng, func() { d.awaitAcks(acks) })
	slow := d.p99(rng)
	t.Logf("%d writes acknowledged in %v beside a disk that takes %s for each I/O; it is %s", acks, time.Since(began).Round(time.Millisecond), delay, s.status()[0].State)
	d.l.verify(t, s, drillBucket, "a disk is slow")
	s.kill()
	f.down()

	f.up()
	s.start()
	s.waitHealthy()
	d.l.verify(t, s, drillBucket, "the disk is fast again")
	t.Logf("99 of 100 small puts and gets took less than %v once the slow disk was known, less than %v without it", slow, d.p99(rng))
	s.stop()
	if out, err := s.coffer("array", "check", "--data", s.dir, "--config", s.config); err != nil {
		t.Errorf("array check: %v\n%s", err, out)
	}
	f.down()
}

// p99 is what 99 of 100 puts and gets of 4 KiB by eight clients stay below.
func (d *drill) p99(rng *rand.Rand) time.Duration {
	d.t.Helper()
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for n := range 8 {
		seed := rng.Uint64()
		wg.Go(func() {
			c, key := newSDK(d.s), fmt.Sprintf("p99/%d", n)
			for i := range uint64(50) {
				began := time.Now()
				if err := d.put(d.t.Context(), c, key, seed+i, 4096); err != nil {
					d.t.Error(err)
				}
				put := time.Now()
				if _, err := readObject(d.t.Context(), c, drillBucket, key); err != nil {
					d.t.Error(err)
				}
				mu.Lock()
				took = append(took, put.Sub(began), time.Since(put))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took[len(took)*99/100].Round(time.Millisecond)
}
