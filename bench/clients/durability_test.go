package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/minio-go/v7"
)

const drillBucket = "drill"

// drill is a server, what it acknowledged, and clients that write to it until it dies.
type drill struct {
	t *testing.T
	s *server
	l *ledger
	// uploads are multipart uploads that were created and never completed, by id.
	mu      sync.Mutex
	uploads map[string]pendingUpload
}

// pendingUpload is a multipart upload that nobody completed.
type pendingUpload struct {
	key   string
	parts []types.CompletedPart // acknowledged
	seed  uint64                // of the bodies
}

func newDrill(t *testing.T, diskMiB int) *drill {
	t.Helper()
	d := &drill{t: t, s: newServer(t, diskMiB), l: newLedger(), uploads: map[string]pendingUpload{}}
	if err := (awsSDK{}).makeBucket(t.Context(), d.s, drillBucket); err != nil {
		t.Fatal(err)
	}
	return d
}

// once is how each client treats a server that dies: a retry would only hide which attempt was acknowledged.
func once(o *s3.Options) { o.RetryMaxAttempts = 1 }

// writer writes to keys of its own until ctx ends or the first error. A request that has begun is not cut off by ctx: it could still
// come into effect after its outcome was looked for.
type writer func(ctx context.Context, rng *rand.Rand, name string) error

// small puts, overwrites, copies and deletes objects from nothing to the size at which they are no longer packed.
func (d *drill) small(ctx context.Context, rng *rand.Rand, name string) error {
	c, call := newSDK(d.s, once), context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		key := fmt.Sprintf("%s/%03d", name, rng.IntN(60))
		seed, size := rng.Uint64(), rng.Int64N(1<<(1+rng.IntN(18)))
		var err error
		switch rng.IntN(10) {
		case 0:
			err = d.l.write(key, gone, func() error {
				_, err := c.DeleteObject(call, &s3.DeleteObjectInput{Bucket: aws.String(drillBucket), Key: &key})
				return err
			})
		case 1:
			target := key + "-copy"
			src := d.l.allowed(key)
			if len(src) > 1 || src[0].gone {
				continue
			}
			err = d.l.write(target, src[0], func() error {
				_, err := c.CopyObject(call, &s3.CopyObjectInput{Bucket: aws.String(drillBucket), Key: &target, CopySource: aws.String(drillBucket + "/" + key)})
				return err
			})
		default:
			err = d.put(call, c, key, seed, size)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *drill) put(ctx context.Context, c *s3.Client, key string, seed uint64, size int64) error {
	b, err := io.ReadAll(body(seed, size))
	if err != nil {
		return err
	}
	return d.l.write(key, contentOf(seed, size), func() error {
		_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(drillBucket), Key: &key, Body: bytes.NewReader(b)})
		return err
	})
}

// bulk streams objects of several stripes with minio-go.
func (d *drill) bulk(ctx context.Context, rng *rand.Rand, name string) error {
	c, err := newMinio(d.s)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		key := fmt.Sprintf("%s/%02d", name, rng.IntN(10))
		seed, size := rng.Uint64(), 1+rng.Int64N(12<<20)
		if err := d.l.write(key, contentOf(seed, size), func() error {
			_, err := c.PutObject(context.WithoutCancel(ctx), drillBucket, key, body(seed, size), size, minio.PutObjectOptions{DisableMultipart: true})
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// multipart uploads objects in parts, and leaves every third one without its completion.
func (d *drill) multipart(ctx context.Context, rng *rand.Rand, name string) error {
	c, call := newSDK(d.s, once), context.WithoutCancel(ctx)
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("%s/%02d", name, rng.IntN(6))
		up := pendingUpload{key: key, seed: rng.Uint64()}
		created, err := c.CreateMultipartUpload(call, &s3.CreateMultipartUploadInput{Bucket: aws.String(drillBucket), Key: &key})
		if err != nil {
			return err
		}
		note := func() {
			d.mu.Lock()
			d.uploads[*created.UploadId] = up
			d.mu.Unlock()
		}
		note()
		for n := range int32(3) {
			b, err := io.ReadAll(body(up.seed+uint64(n), object5MiB))
			if err != nil {
				return err
			}
			part, err := c.UploadPart(call, &s3.UploadPartInput{Bucket: aws.String(drillBucket), Key: &key, UploadId: created.UploadId,
				PartNumber: aws.Int32(n + 1), Body: bytes.NewReader(b)})
			if err != nil {
				return err
			}
			up.parts = append(slices.Clip(up.parts), types.CompletedPart{PartNumber: aws.Int32(n + 1), ETag: part.ETag, ChecksumCRC32: part.ChecksumCRC32})
			note()
		}
		if i%3 == 2 {
			continue
		}
		if err := d.complete(call, c, *created.UploadId, up); err != nil {
			return err
		}
	}
	return nil
}

const object5MiB = 5 << 20

// complete finishes an upload of which all parts in up were acknowledged.
func (d *drill) complete(ctx context.Context, c *s3.Client, id string, up pendingUpload) error {
	want := contentOfParts(up)
	return d.l.write(up.key, want, func() error {
		if _, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: aws.String(drillBucket), Key: &up.key,
			UploadId: &id, MultipartUpload: &types.CompletedMultipartUpload{Parts: up.parts}}); err != nil {
			return err
		}
		d.mu.Lock()
		delete(d.uploads, id)
		d.mu.Unlock()
		return nil
	})
}

// rcloneTree copies the source tree and notes an acknowledgement for each file that rclone reports as copied.
func (d *drill) rcloneTree(src string, want tree) func(context.Context, *rand.Rand, string) error {
	return func(ctx context.Context, _ *rand.Rand, name string) error {
		cmd := exec.CommandContext(ctx, "rclone", "copy", "-v", "--use-json-log", "--retries", "1", "--low-level-retries", "1",
			src, "c:"+drillBucket+"/"+name)
		cmd.Env = append(cleanEnv(), rcloneEnv(d.s)...)
		lines, err := cmd.StderrPipe()
		if err != nil {
			return err
		}
		for rel, sum := range want {
			d.l.begin(name+"/"+rel, content{sum: sum, size: fileSize(d.t, filepath.Join(src, rel))})
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		for sc := bufio.NewScanner(lines); sc.Scan(); {
			var m struct{ Msg, Object string }
			if err := json.Unmarshal(sc.Bytes(), &m); err == nil && m.Msg == "Copied (new)" {
				sum := want[m.Object]
				d.l.ack(name+"/"+m.Object, content{sum: sum, size: fileSize(d.t, filepath.Join(src, m.Object))})
			}
		}
		return cmd.Wait()
	}
}

func fileSize(t *testing.T, path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		t.Error(err)
		return -1
	}
	return fi.Size()
}

// leastAcks is how many writes are acknowledged before a kill, so that there is something to lose however slow the machine is.
const leastAcks = 20

// round runs the writers, kills the daemon some time after the first acknowledgements, and starts it again.
func (d *drill) round(rng *rand.Rand, after time.Duration, writers map[string]writer) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	defer cancel()
	before := d.l.acknowledged()
	var wg sync.WaitGroup
	for name, w := range writers {
		seed := rand.NewPCG(rng.Uint64(), rng.Uint64())
		wg.Go(func() {
			// An error is how a writer learns of the kill; without one it ended with ctx, or, as rclone, with its work.
			_ = w(ctx, rand.New(seed), name)
		})
	}
	d.awaitAcks(leastAcks)
	time.Sleep(after)
	d.s.kill()
	cancel() // the clients that would still try to reach it
	wg.Wait()
	counts.add("writes acknowledged before a kill", d.l.acknowledged()-before)
	counts.add("kill -9 while clients wrote", 1)
	d.s.start()
}

// uploadsInvisible checks that the parts of unfinished uploads are known to their upload and to nobody else.
func (d *drill) uploadsInvisible() {
	d.t.Helper()
	c := newSDK(d.s)
	listed := map[string]string{}
	p := s3.NewListMultipartUploadsPaginator(c, &s3.ListMultipartUploadsInput{Bucket: aws.String(drillBucket)})
	for p.HasMorePages() {
		page, err := p.NextPage(d.t.Context())
		if err != nil {
			d.t.Fatal(err)
		}
		for _, u := range page.Uploads {
			listed[aws.ToString(u.UploadId)] = aws.ToString(u.Key)
		}
	}
	for id, up := range d.uploads {
		out, err := c.ListParts(d.t.Context(), &s3.ListPartsInput{Bucket: aws.String(drillBucket), Key: &up.key, UploadId: &id})
		if err != nil {
			// A completion may have come into effect without its acknowledgement; the ledger checks what it left.
			if len(up.parts) < 3 {
				d.t.Errorf("list parts of an upload with %d acknowledged parts: %v", len(up.parts), err)
			}
			delete(d.uploads, id)
			continue
		}
		if listed[id] != up.key {
			d.t.Errorf("upload %s of %q is not listed", id, up.key)
		}
		if len(out.Parts) < len(up.parts) {
			d.t.Errorf("upload of %q has %d parts, %d were acknowledged", up.key, len(out.Parts), len(up.parts))
		}
	}
	counts.add("unfinished uploads checked", int64(len(d.uploads)))
}

// finishUploads completes what the kills interrupted: parts that were acknowledged must make the object that was meant.
func (d *drill) finishUploads() {
	d.t.Helper()
	c := newSDK(d.s)
	for id, up := range d.uploads {
		if len(up.parts) == 0 {
			if _, err := c.AbortMultipartUpload(d.t.Context(), &s3.AbortMultipartUploadInput{Bucket: aws.String(drillBucket), Key: &up.key, UploadId: &id}); err != nil {
				d.t.Errorf("abort: %v", err)
			}
			continue
		}
		if err := d.complete(d.t.Context(), c, id, up); err != nil {
			d.t.Errorf("complete an upload after restarts: %v", err)
		}
		counts.add("uploads completed after a kill", 1)
	}
	d.uploads = map[string]pendingUpload{}
}

func contentOfParts(up pendingUpload) content {
	var rs []io.Reader
	for n := range up.parts {
		rs = append(rs, body(up.seed+uint64(n), object5MiB))
	}
	return hashOf(io.MultiReader(rs...))
}

// aside moves files away; the function returned puts them back.
func aside(t *testing.T, paths ...string) (back func()) {
	t.Helper()
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range paths {
		dir, file := filepath.Split(p)
		move(p, filepath.Join(dir, "..", file+".aside"))
	}
	return func() {
		for _, p := range paths {
			dir, file := filepath.Split(p)
			move(filepath.Join(dir, "..", file+".aside"), p)
		}
	}
}

// scribble overwrites whole files with random bytes, in place. It bypasses the page cache as the daemon does: the kernel lets
// buffered and direct writes of the same file fail when they meet.
func scribble(t *testing.T, paths ...string) {
	t.Helper()
	const chunk = 1 << 20 // divides the sizes of the disks
	buf, err := syscall.Mmap(-1, 0, chunk, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(buf)
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_WRONLY|syscall.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		random := body(rand.Uint64(), fileSize(t, p))
		for _, err = io.ReadFull(random, buf); err == nil; _, err = io.ReadFull(random, buf) {
			if _, err := f.Write(buf); err != nil {
				t.Fatal(err)
			}
		}
		if err != io.EOF {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s overwritten", filepath.Base(p))
	}
}

// two picks two of the disks, other than those given.
func two(rng *rand.Rand, disks []string, not ...string) []string {
	disks = slices.DeleteFunc(slices.Clone(disks), func(d string) bool { return slices.Contains(not, d) })
	rng.Shuffle(len(disks), func(i, j int) { disks[i], disks[j] = disks[j], disks[i] })
	return disks[:2]
}

// seeded is a source of randomness whose seed is in the output.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// The daemon is killed while clients write, loses two disks, gets them back, loses two others to random bytes, and loses its index;
// after each of these everything that was acknowledged is there, and nothing is there in part.
func TestDurability(t *testing.T) {
	if !soak {
		t.Parallel()
	}
	src, rounds, diskMiB, longest := filepath.Join(goSource(t), "cmd", "compile"), 4, 1024, 1500*time.Millisecond
	if soak {
		src, rounds, diskMiB, longest = goSource(t), 30, 4096, 3*time.Second
	}
	d, rng := newDrill(t, diskMiB), seeded(t)
	writers := map[string]writer{"small-1": d.small, "small-2": d.small, "small-3": d.small, "bulk": d.bulk, "multipart": d.multipart}
	if why := (rclone{}).absent(); why == "" {
		writers["rclone"] = d.rcloneTree(src, readTree(t, src))
	}
	for i := range rounds {
		after := time.Duration(rng.Int64N(int64(longest)))
		d.round(rng, after, writers)
		d.l.verify(t, d.s, drillBucket, fmt.Sprintf("kill %d, after %v", i+1, after.Round(time.Millisecond)))
		d.uploadsInvisible()
	}
	d.finishUploads()
	d.l.verify(t, d.s, drillBucket, "uploads completed")
	d.s.stop()

	lost := two(rng, d.s.disks())
	back := aside(t, lost...)
	d.s.start()
	d.l.verify(t, d.s, drillBucket, "two disks removed")
	d.more(rng, "degraded")
	d.s.stop()
	back()
	d.s.start()
	d.s.waitHealthy()
	d.l.verify(t, d.s, drillBucket, "disks put back")
	d.s.stop()
	if out, err := d.s.coffer("array", "check", "--data", d.s.dir, "--config", d.s.config); err != nil {
		t.Errorf("array check with all disks back: %v\n%s", err, out)
	}

	scribble(t, two(rng, d.s.disks(), lost...)...)
	d.s.start()
	d.l.verify(t, d.s, drillBucket, "two other disks overwritten")
	d.more(rng, "scribbled")
	d.s.stop()

	d.removeIndex()
	d.s.start()
	d.l.verify(t, d.s, drillBucket, "index deleted, two disks overwritten")
	d.s.kill()
	d.removeIndex()
	d.s.start()
	d.l.verify(t, d.s, drillBucket, "killed and index deleted")
	d.s.stop()
}

func (d *drill) removeIndex() {
	d.t.Helper()
	if err := os.RemoveAll(filepath.Join(d.s.dir, "index")); err != nil {
		d.t.Fatal(err)
	}
}

// more writes some objects of all kinds of sizes.
func (d *drill) more(rng *rand.Rand, prefix string) {
	d.t.Helper()
	c := newSDK(d.s)
	for i, size := range []int64{0, 1, 4096, 65519, 65520, 65521, 128 << 10, 1 << 20, 9<<20 + oddBytes} {
		if err := d.put(d.t.Context(), c, fmt.Sprintf("%s/%d", prefix, i), rng.Uint64(), size); err != nil {
			d.t.Fatalf("put: %v", err)
		}
	}
}

// Two disks turn to random bytes under a running daemon, while clients read and write.
func TestDisksOverwrittenWhileServing(t *testing.T) {
	if !soak {
		t.Parallel()
	}
	d, rng := newDrill(t, 512), seeded(t)
	write := func(name string, w writer) (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		seed := rand.NewPCG(rng.Uint64(), rng.Uint64())
		go func() {
			defer close(ended)
			if err := w(ctx, rand.New(seed), name); err != nil {
				t.Errorf("writer %s: %v", name, err)
			}
		}()
		return func() { cancel(); <-ended }
	}
	endSmall, endBulk := write("small", d.small), write("bulk", d.bulk)
	defer endSmall()
	time.Sleep(2 * time.Second)
	endBulk() // would fill the disks meanwhile
	scribble(t, two(rng, d.s.disks())...)
	endSmall()
	counts.add("writes acknowledged while disks were overwritten", d.l.acknowledged())
	d.l.verify(t, d.s, drillBucket, "two disks overwritten while serving")
	d.more(rng, "after")
	d.s.stop()
	d.s.start()
	d.l.verify(t, d.s, drillBucket, "restarted on two overwritten disks")
	d.s.stop()
}

// load runs small and bulk writers while f runs.
func (d *drill) load(rng *rand.Rand, f func()) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for name, w := range map[string]writer{"small-1": d.small, "small-2": d.small, "small-3": d.small, "bulk": d.bulk} {
		seed := rand.NewPCG(rng.Uint64(), rng.Uint64())
		wg.Go(func() {
			if err := w(ctx, rand.New(seed), name); err != nil && !isFull(err) {
				d.t.Errorf("client %s: %v", name, err)
			}
		})
	}
	f()
	cancel()
	wg.Wait()
}

// awaitAcks waits until n more writes were acknowledged.
func (d *drill) awaitAcks(n int64) {
	d.t.Helper()
	before := d.l.acknowledged()
	for deadline := time.Now().Add(startTimeout); d.l.acknowledged() < before+n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Errorf("fewer than %d acknowledgements in %v", n, startTimeout)
			return
		}
	}
}
