package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// media is what the disks of a torture lie on.
type media interface {
	// paths are where the disks are, or were before they were taken down.
	paths() []string
	// file is where the bytes of the disk at path lie, to be hurt.
	file(path string) string
	// attach brings the disks up for a start of the daemon, and detach takes them down after its end.
	attach()
	detach()
	// blank makes a disk for path, which takes the place of another.
	blank(path string)
	// drop removes a disk for good.
	drop(path string)
}

// files are disks that are files themselves.
type files struct{ t *torture }

func (f files) paths() []string       { return f.t.s.disks() }
func (files) file(path string) string { return path }
func (files) attach()                 {}
func (files) detach()                 {}

func (f files) blank(path string) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(syscall.Fallocate(int(file.Fd()), 0, 0, f.t.size), file.Close())
	}
	if err != nil {
		f.t.t.Fatal(err)
	}
}

func (f files) drop(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.t.t.Fatal(err)
	}
}

// torture is a drill whose disks are hurt round after round, with clients that share keys beside those with keys of their own.
type torture struct {
	*drill
	h     *history
	media media
	size  int64           // of a disk, bytes
	fresh int             // disks that took the place of others
	gone  map[string]bool // paths whose files are aside
	cut   map[string]bool // paths whose files were truncated
	dying atomic.Bool     // the daemon may be dead: errors mean nothing
	did   []string        // in this round
}

const (
	sharedKeys = 5
	sources    = 3 // objects that are never changed, to be copied
	// hurtDisks is how many disks are hurt before all is mended again: the parity of six disks.
	hurtDisks = 2
)

func sharedKey(n int) string { return fmt.Sprintf("shared/%d", n) }
func sourceKey(n int) string { return fmt.Sprintf("source/%d", n) }
func sourceSeed(n int) (seed uint64, size int64) {
	return uint64(1000 + n), []int64{300, 70_000, 200_000}[n]
}

func (d *torture) say(format string, args ...any) {
	d.did = append(d.did, fmt.Sprintf(format, args...))
}

// isFull reports whether the array refused a write for want of space: nothing was written.
func isFull(err error) bool { return isCode(err, "InsufficientStorage") }

// share reads and writes keys that others read and write at the same time, and notes all it asks and hears.
func (d *torture) share(ctx context.Context, rng *rand.Rand, _ string) error {
	c, call := newSDK(d.s, once), context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		if err := d.shareOnce(call, c, rng); err != nil && !isFull(err) {
			return err
		}
	}
	return nil
}

func (d *torture) shareOnce(ctx context.Context, c *s3.Client, rng *rand.Rand) error {
	key, bucket := sharedKey(rng.IntN(sharedKeys)), aws.String(drillBucket)
	b, err := io.ReadAll(body(rng.Uint64(), rng.Int64N(1<<(1+rng.IntN(19)))))
	if err != nil {
		return err
	}
	switch rng.IntN(12) {
	case 0:
		return d.change(key, callWrite, "", func() error {
			_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: &key})
			return err
		})
	case 1:
		n := rng.IntN(sources)
		src, err := io.ReadAll(body(sourceSeed(n)))
		if err != nil {
			return err
		}
		return d.change(key, callWrite, etagOf(src), func() error {
			_, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: bucket, Key: &key, CopySource: aws.String(drillBucket + "/" + sourceKey(n))})
			return err
		})
	case 2:
		return d.sharePart(ctx, c, key, b)
	case 3, 4:
		in := &s3.PutObjectInput{Bucket: bucket, Key: &key, Body: bytes.NewReader(b), IfNoneMatch: aws.String("*")}
		d.h.sent(etagOf(b), b)
		return d.change(key, callCreate, etagOf(b), func() error {
			_, err := c.PutObject(ctx, in)
			return err
		})
	case 5, 6:
		d.h.sent(etagOf(b), b)
		return d.change(key, callWrite, etagOf(b), func() error {
			_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: &key, Body: bytes.NewReader(b)})
			return err
		})
	case 7:
		return d.shareList(ctx, c)
	case 8:
		return d.shareHead(ctx, c, key)
	default:
		_, err := d.h.readShared(ctx, c, drillBucket, key)
		return err
	}
}

// change does a write and notes what came of it.
func (d *torture) change(key string, kind callKind, etag string, do func() error) error {
	began, c := time.Since(d.h.start), call{kind, etag}
	err := do()
	switch {
	case err == nil:
		d.h.note(key, began, c, answer{outcome: done})
	case kind == callCreate && isCode(err, "PreconditionFailed"):
		d.h.note(key, began, c, answer{outcome: refused})
		return nil
	case kind == callCreate && isCode(err, "ConditionalRequestConflict"):
		return nil
	case !isFull(err):
		d.h.note(key, began, c, answer{outcome: unknown})
	}
	return err
}

func (d *torture) sharePart(ctx context.Context, c *s3.Client, key string, b []byte) error {
	bucket := aws.String(drillBucket)
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: bucket, Key: &key})
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.uploads[*up.UploadId] = pendingUpload{key: key}
	d.mu.Unlock()
	part, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(1), Body: bytes.NewReader(b)})
	if err != nil {
		return err
	}
	d.h.sent(etagOfPart(b), b)
	d.mu.Lock()
	delete(d.uploads, *up.UploadId)
	d.mu.Unlock()
	return d.change(key, callWrite, etagOfPart(b), func() error {
		_, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: bucket, Key: &key, UploadId: up.UploadId,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{
				{PartNumber: aws.Int32(1), ETag: part.ETag, ChecksumCRC32: part.ChecksumCRC32}}}})
		return err
	})
}

// shareList lists the shared keys: a read of each of them.
func (d *torture) shareList(ctx context.Context, c *s3.Client) error {
	began := time.Since(d.h.start)
	out, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(drillBucket), Prefix: aws.String("shared/")})
	if err != nil {
		return err
	}
	seen := map[string]string{}
	for _, o := range out.Contents {
		seen[aws.ToString(o.Key)] = strings.Trim(aws.ToString(o.ETag), `"`)
	}
	for n := range sharedKeys {
		d.h.note(sharedKey(n), began, call{kind: callRead}, answer{etag: seen[sharedKey(n)]})
	}
	return nil
}

func (d *torture) shareHead(ctx context.Context, c *s3.Client, key string) error {
	began := time.Since(d.h.start)
	out, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(drillBucket), Key: &key})
	etag := ""
	if _, ok := errors.AsType[*types.NotFound](err); err != nil && !ok {
		return err
	} else if err == nil {
		etag = strings.Trim(aws.ToString(out.ETag), `"`)
	}
	d.h.note(key, began, call{kind: callRead}, answer{etag: etag})
	return nil
}

// lookShared reads the shared keys when nobody writes them, and judges the history up to now.
func (d *torture) lookShared(when string, died time.Duration) {
	d.t.Helper()
	c, last := newSDK(d.s), map[string]string{}
	for n := range sharedKeys {
		etag, err := d.h.readShared(d.t.Context(), c, drillBucket, sharedKey(n))
		if err != nil {
			d.t.Fatalf("%s: get %s: %v", when, sharedKey(n), err)
		}
		last[sharedKey(n)] = etag
		// The ledger's own check reads all that is listed, and must know these keys.
		d.l.mu.Lock()
		d.l.acked[sharedKey(n)], d.l.pending[sharedKey(n)] = gone, nil
		if etag != "" {
			got, err := readObject(d.t.Context(), c, drillBucket, sharedKey(n))
			if err != nil {
				d.t.Errorf("%s: get %s: %v", when, sharedKey(n), err)
			}
			d.l.acked[sharedKey(n)] = got
		}
		d.l.mu.Unlock()
	}
	d.h.check(d.t, when, died, last)
}

// live are the paths at which disks are now.
func (d *torture) live() (paths []string) {
	for _, p := range d.media.paths() {
		if !d.gone[p] {
			paths = append(paths, p)
		}
	}
	return paths
}

// directFile opens a file past the page cache, with a buffer fit for it: the kernel lets buffered and direct writes that meet fail.
func directFile(t *testing.T, path string, do func(f *os.File, buf []byte) error) {
	t.Helper()
	buf, err := syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(buf)
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(do(f, buf), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// corrupt overwrites a few ranges of a disk with random bytes, more of them at its front, where superblocks and the first bands are.
func (d *torture) corrupt(rng *rand.Rand, path string) {
	d.t.Helper()
	ranges := 1 + rng.IntN(12)
	d.say("corrupt %d ranges of %s", ranges, filepath.Base(path))
	directFile(d.t, d.media.file(path), func(f *os.File, buf []byte) error {
		for range ranges {
			n := 4096 << rng.IntN(9)
			share := rng.Float64()
			off := int64(share*share*float64(d.size-int64(n))) &^ 4095
			if _, err := io.ReadFull(body(rng.Uint64(), int64(n)), buf[:n]); err != nil {
				return err
			}
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		return nil
	})
}

// hurt does something to the disks at rest. No more than victims are hurt; they may have been hurt while the daemon ran.
func (d *torture) hurt(rng *rand.Rand, victims []string) {
	d.t.Helper()
	all := d.live()
	if rng.IntN(3) == 0 {
		d.removeIndex()
		d.say("delete the index")
	}
	if rng.IntN(3) == 0 {
		a, b := all[rng.IntN(len(all))], all[rng.IntN(len(all))]
		if a != b {
			fa, fb := d.media.file(a), d.media.file(b)
			d.rename(fa, fa+".swap")
			d.rename(fb, fa)
			d.rename(fa+".swap", fb)
			for i, v := range victims { // the damage went with the file
				switch v {
				case a:
					victims[i] = b
				case b:
					victims[i] = a
				}
			}
			d.say("swap %s and %s", filepath.Base(a), filepath.Base(b))
		}
	}
	for _, v := range victims {
		switch rng.IntN(6) {
		case 0, 1:
			d.corrupt(rng, v)
		case 2, 3:
			f := d.media.file(v)
			d.rename(f, d.aside(v))
			d.gone[v] = true
			d.say("remove %s", filepath.Base(v))
		case 4:
			n := rng.Int64N(d.size)
			if err := os.Truncate(d.media.file(v), n); err != nil {
				d.t.Fatal(err)
			}
			d.cut[v] = true
			d.say("truncate %s to %d", filepath.Base(v), n)
		}
	}
}

// aside is where the file of a disk goes that is removed.
func (d *torture) aside(path string) string {
	return filepath.Join(d.s.scratch, filepath.Base(path)+".aside")
}

func (d *torture) rename(from, to string) {
	d.t.Helper()
	if err := os.Rename(from, to); err != nil {
		d.t.Fatal(err)
	}
}

// start starts the daemon on what there is of the disks.
func (d *torture) start() {
	d.t.Helper()
	d.media.attach()
	d.dying.Store(false)
	d.s.start()
}

// killStarts kills a few starts before they have ended.
func (d *torture) killStarts(rng *rand.Rand) {
	d.t.Helper()
	for range 1 + rng.IntN(3) {
		after := time.Duration(rng.Int64N(int64(600 * time.Millisecond)))
		d.media.attach()
		d.s.launch()
		time.Sleep(after)
		d.s.kill()
		d.media.detach()
		d.say("kill a start after %v", after.Round(time.Millisecond))
		counts.add("kill -9 while the daemon started", 1)
	}
}

// end stops the daemon, mostly by SIGKILL.
func (d *torture) end(rng *rand.Rand) {
	d.t.Helper()
	if rng.IntN(5) == 0 {
		d.s.stop()
		d.say("stop")
	} else {
		d.s.kill()
		d.say("kill")
		counts.add("kill -9 while clients wrote", 1)
	}
	d.media.detach()
}

// array runs a command of `coffer array` on the data directory.
func (d *torture) array(verb string, args ...string) (out string, code int) {
	out, err := d.s.coffer(append([]string{"array", verb, "--data", d.s.dir, "--config", d.s.config}, args...)...)
	if err == nil {
		return out, 0
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return out, e.ExitCode()
	}
	return out + err.Error(), -1
}

// mend makes the array whole again: disks that were removed come back, as they were, or others take their places.
func (d *torture) mend(rng *rand.Rand) {
	d.t.Helper()
	var back []string
	for _, p := range slices.Concat(slices.Sorted(maps.Keys(d.gone)), slices.Sorted(maps.Keys(d.cut))) {
		if rng.IntN(2) == 0 {
			back = append(back, p)
		}
	}
	if len(back) > 0 {
		d.s.stop()
		d.media.detach()
		for _, p := range back {
			d.say("put %s back", filepath.Base(p))
			if d.gone[p] {
				d.rename(d.aside(p), d.media.file(p))
				delete(d.gone, p)
			} else if err := os.Truncate(d.media.file(p), d.size); err != nil {
				d.t.Fatal(err)
			}
		}
		d.start()
	}
	for _, s := range d.s.status() {
		if s.State == "healthy" || s.State == "suspect" || s.State == "rebuilding" {
			continue
		}
		d.replace(s.Slot, s.Path, "is "+s.State, "--wait")
	}
	for p := range d.gone { // another disk has taken its place
		if err := os.Remove(d.aside(p)); err != nil {
			d.t.Fatal(err)
		}
		delete(d.gone, p)
		d.media.drop(p)
	}
	clear(d.cut)
	d.s.waitHealthy()
	// What was bad is told by the first look, and must be gone at the second.
	out, code := d.array("check", "--repair")
	for tries := 0; code == 3 && tries < 2; tries++ {
		out, code = d.array("check", "--repair")
	}
	if code != 0 {
		d.t.Errorf("check after repair: exit %d: %s", code, out)
	}
}

// replace lets a new disk take the place of the one at a path, and forgets the old one.
func (d *torture) replace(slot int, old, why string, args ...string) {
	d.t.Helper()
	path := d.addDisk()
	out, code := d.array("replace", append(args, "--yes", fmt.Sprint(slot), path)...)
	if code != 0 {
		d.t.Fatalf("replace disk %d (%s): exit %d: %s", slot, why, code, out)
	}
	d.say("replace slot %d at %s, which %s", slot, filepath.Base(old), why)
	d.dropDisks()
	counts.add("disks replaced", 1)
}

func (d *torture) addDisk() string {
	d.fresh++
	path := filepath.Join(d.s.dir, "disks", fmt.Sprintf("new%d.img", d.fresh))
	d.media.blank(path)
	return path
}

// dropDisks removes the disks that the array no longer names.
func (d *torture) dropDisks() {
	d.t.Helper()
	members := map[string]bool{}
	for _, s := range d.s.status() {
		members[s.Path] = true
	}
	all, err := filepath.Glob(filepath.Join(d.s.dir, "disks", "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range all {
		if !members[p] && !d.gone[p] {
			d.media.drop(p)
		}
	}
}

// round runs the clients, hurts the daemon and its disks, looks whether all is there, and mends.
func (d *torture) round(rng *rand.Rand, n int, longest time.Duration, writers map[string]writer) {
	d.t.Helper()
	began := time.Now()
	d.did = nil
	ctx, cancel := context.WithCancel(d.t.Context())
	defer cancel()
	before := d.l.acknowledged()
	var wg sync.WaitGroup
	for name, w := range writers {
		seed := rand.NewPCG(rng.Uint64(), rng.Uint64())
		wg.Go(func() {
			rng := rand.New(seed)
			err := w(ctx, rng, name)
			for isFull(err) && ctx.Err() == nil {
				err = w(ctx, rng, name)
			}
			if bad, ok := errors.AsType[wrongBody](err); ok {
				d.t.Errorf("client %s: %v", name, bad)
			} else if err != nil && !isFull(err) && !d.dying.Load() {
				d.t.Errorf("client %s, while the daemon was to serve: %v", name, err)
			}
		})
	}
	victims := two(rng, d.live())[:rng.IntN(hurtDisks+1)]
	if rng.IntN(3) == 0 {
		out, code := d.array("scrub", "--now", "--rate", "0")
		if code != 0 {
			d.t.Errorf("scrub: exit %d: %s", code, out)
		}
		d.say("scrub")
	}
	if rng.IntN(3) == 0 {
		for _, v := range victims {
			time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
			d.say("while serving")
			d.corrupt(rng, v)
		}
	} else if rng.IntN(4) == 0 && len(victims) < hurtDisks {
		s := d.s.status()[rng.IntN(len(d.live()))]
		if !slices.Contains(victims, s.Path) {
			// A kill may meet the rebuild: until it has ended the disk counts as lost.
			d.replace(s.Slot, s.Path, "is "+s.State+", beside clients")
		}
	}
	d.awaitAcks(leastAcks)
	time.Sleep(time.Duration(rng.Int64N(int64(longest))))
	acked := d.l.acknowledged() - before
	d.dying.Store(true)
	d.end(rng)
	died := time.Since(d.h.start)
	cancel()
	wg.Wait()
	counts.add("writes acknowledged before a kill", acked)

	d.hurt(rng, victims)
	if rng.IntN(4) == 0 {
		d.killStarts(rng)
	}
	d.start()
	when := fmt.Sprintf("round %d (%s)", n, strings.Join(d.did, "; "))
	d.lookShared(when, died)
	d.l.verify(d.t, d.s, drillBucket, when)
	d.uploadsInvisible()
	d.mend(rng)
	if n%4 == 3 {
		d.finishUploads()
	}
	d.t.Logf("round %d, %v: %d writes acknowledged; %s", n, time.Since(began).Round(100*time.Millisecond), acked, strings.Join(d.did, "; "))
	counts.add("rounds of torture", 1)
	if d.t.Failed() {
		d.t.FailNow()
	}
}

// begin makes what the clients of a torture start from.
func (d *torture) begin(m media) {
	t, s := d.t, d.s
	t.Helper()
	d.l, d.uploads, d.h = newLedger(), map[string]pendingUpload{}, newHistory()
	d.gone, d.cut, d.media = map[string]bool{}, map[string]bool{}, m
	if err := (awsSDK{}).makeBucket(t.Context(), s, drillBucket); err != nil {
		t.Fatal(err)
	}
	c := newSDK(s)
	for n := range sources {
		seed, size := sourceSeed(n)
		if err := d.put(t.Context(), c, sourceKey(n), seed, size); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body(seed, size))
		if err != nil {
			t.Fatal(err)
		}
		d.h.sent(etagOf(b), b)
	}
}

// run tortures for a time and looks at everything once more from the disks alone.
func (d *torture) run(lasting, longest time.Duration) {
	d.t.Helper()
	rng := seeded(d.t)
	writers := map[string]writer{"small-1": d.small, "small-2": d.small, "bulk": d.bulk, "multipart": d.multipart,
		"share-1": d.share, "share-2": d.share, "share-3": d.share, "share-4": d.share}
	began := time.Now()
	for n := 0; n < 3 || time.Since(began) < lasting; n++ {
		d.round(rng, n, longest, writers)
	}
	d.finishUploads()
	d.l.verify(d.t, d.s, drillBucket, "at the end")
	d.s.stop()
	if out, code := d.array("check"); code != 0 {
		d.t.Errorf("check at the end: exit %d: %s", code, out)
	}
	d.removeIndex()
	d.start()
	d.lookShared("from the disks alone", time.Since(d.h.start))
	d.l.verify(d.t, d.s, drillBucket, "from the disks alone")
	d.s.stop()
	d.media.detach()
}

// TestTorture kills the daemon and hurts its disks again and again, for a minute, or ten in the long form: never more disks at once than
// parity bears. After each start everything that was acknowledged is there, nothing is there in part, and what clients of the same keys
// saw can be put in an order.
func TestTorture(t *testing.T) {
	lasting, diskMiB, longest := time.Minute, 768, 1500*time.Millisecond
	if soak {
		lasting, diskMiB, longest = 10*time.Minute, 2048, 3*time.Second
	} else {
		t.Parallel()
	}
	d := &torture{drill: &drill{t: t, s: newServer(t, diskMiB, "COFFER_LOG_LEVEL=debug")}, size: int64(diskMiB) << 20}
	d.begin(files{d})
	d.run(lasting, longest)
}

// loopMedia are disks that are block devices on files.
type loopMedia struct {
	t     *torture
	loops *loops
	files map[string]string // by path
}

func (l *loopMedia) paths() []string         { return slices.Sorted(maps.Keys(l.files)) }
func (l *loopMedia) file(path string) string { return l.files[path] }

func (l *loopMedia) attach() {
	for path, file := range l.files {
		if _, on := l.loops.devs[path]; !on && !l.t.gone[path] {
			l.loops.attach(path, file)
		}
	}
}

func (l *loopMedia) detach() {
	for path := range l.loops.devs {
		l.loops.detach(path)
	}
}

// blank makes a file, and a device on it at once: the daemon runs.
func (l *loopMedia) blank(path string) {
	l.make(path)
	l.loops.attach(path, l.files[path])
}

func (l *loopMedia) make(path string) {
	l.t.t.Helper()
	f := filepath.Join(filepath.Dir(l.t.s.dir), filepath.Base(path)+".file")
	l.t.s.write(f, nil)
	if err := os.Truncate(f, l.t.size); err != nil {
		l.t.t.Fatal(err)
	}
	l.files[path] = f
}

func (l *loopMedia) drop(path string) {
	l.t.t.Helper()
	if _, on := l.loops.devs[path]; on {
		l.loops.detach(path)
	}
	if err := os.Remove(l.files[path]); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.t.Fatal(err)
	}
	delete(l.files, path)
}

// TestTortureBlockDevices is TestTorture in short, on block devices.
func TestTortureBlockDevices(t *testing.T) {
	needsDevices(t, noLoops())
	lasting, size := time.Duration(0), int64(512<<20)
	if soak {
		lasting, size = 3*time.Minute, 1<<30
	} else {
		t.Parallel()
	}
	s := prepareServer(t, "", "COFFER_ROOT_ACCESS_KEY=blocks", "COFFER_ROOT_SECRET_KEY=blocks-secret")
	d := &torture{drill: &drill{t: t, s: s}, size: size}
	m := &loopMedia{t: d, loops: newLoops(t), files: map[string]string{}}
	t.Cleanup(s.kill) // before the devices go
	for i := range 6 {
		m.make(s.diskPath(i))
	}
	m.attach()
	s.createOn(8)
	d.begin(m)
	d.run(lasting, 500*time.Millisecond)
}
