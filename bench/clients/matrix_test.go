package clients

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"
)

// A size that no segment, stripe or part divides.
const oddBytes = 12345

// goSource is the Go source tree, over 10,000 files.
func goSource(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "src")
}

// tree is the content of a directory: relative path to hash.
type tree map[string][sha256.Size]byte

func readTree(t *testing.T, dir string) tree {
	t.Helper()
	files := tree{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[rel], err = hashFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func hashFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// body is reproducible content that nothing compresses.
func body(seed uint64, size int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), size)
}

// matrixSizes are what one client copies: the files of src and a large file.
type matrixSizes struct {
	src     string
	large   int64
	diskMiB int
}

func sizesFor(t *testing.T, client string) matrixSizes {
	src := goSource(t)
	if soak {
		return matrixSizes{src: src, large: 5<<30 + oddBytes, diskMiB: 3072}
	}
	if client != "rclone" {
		src = filepath.Join(src, "net")
	}
	return matrixSizes{src: src, large: 256<<20 + oddBytes, diskMiB: 512}
}

// Each client copies a directory tree and a large file in and out; what comes out is what went in.
func TestClients(t *testing.T) {
	for name, c := range copiers() {
		t.Run(name, func(t *testing.T) {
			if !soak {
				t.Parallel() // the Python clients leave a core idle
			}
			present(t, c)
			size := sizesFor(t, name)
			if need := 6*int64(size.diskMiB)<<20 + 2*size.large; freeBytes(t) < need {
				counts.skip(t, fmt.Sprintf("less than %d GiB of free space", need>>30))
			}
			s := newServer(t, size.diskMiB)
			copyTree(t, s, name, c, size.src)
			copyLarge(t, s, name, c, size.large)
			if err := c.remove(t.Context(), s, "matrix"); err != nil {
				t.Errorf("remove bucket: %v", err)
			}
			sdk := newSDK(s)
			if out, err := sdk.ListBuckets(t.Context(), &s3.ListBucketsInput{}); err != nil || len(out.Buckets) != 0 {
				t.Errorf("buckets after their removal: %v, %v", out, err)
			}
			s.stop()
			counts.add("clients", 1)
		})
	}
}

func copyTree(t *testing.T, s *server, name string, c copier, src string) {
	t.Helper()
	start := time.Now()
	if err := c.up(t.Context(), s, "matrix", src); err != nil {
		t.Fatalf("copy in: %v", err)
	}
	up := time.Since(start)
	want := readTree(t, src)
	var listed int
	if err := sdkObjects(t.Context(), newSDK(s), "matrix", func(types.Object) error { listed++; return nil }); err != nil || listed != len(want) {
		t.Errorf("list has %d objects, want %d: %v", listed, len(want), err)
	}
	start = time.Now()
	out := filepath.Join(s.scratch, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.down(t.Context(), s, "matrix", out); err != nil {
		t.Fatalf("copy out: %v", err)
	}
	down := time.Since(start)
	if diff := cmp.Diff(want, readTree(t, out)); diff != "" {
		t.Errorf("tree differs (-want +got):\n%.2000s", diff)
	}
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	counts.add("files copied in and out, "+name, int64(len(want)))
	t.Logf("%d files: in %v, out %v", len(want), up.Round(time.Millisecond), down.Round(time.Millisecond))
}

func copyLarge(t *testing.T, s *server, name string, c copier, size int64) {
	t.Helper()
	in, out := filepath.Join(s.scratch, "in.bin"), filepath.Join(s.scratch, "out.bin")
	f, err := os.Create(in)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, h), body(rand.Uint64(), size)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := c.put(t.Context(), s, "matrix", in); err != nil {
		t.Fatalf("copy large file in: %v", err)
	}
	up := time.Since(start)
	if err := os.Remove(in); err != nil {
		t.Fatal(err)
	}
	head, err := newSDK(s).HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("matrix"), Key: aws.String(largeKey)})
	if err != nil || aws.ToInt64(head.ContentLength) != size || !strings.Contains(aws.ToString(head.ETag), "-") {
		t.Errorf("head of the large file: %+v, %v; want %d bytes and the ETag of a multipart upload", head, err, size)
	}
	start = time.Now()
	if err := c.get(t.Context(), s, "matrix", out); err != nil {
		t.Fatalf("copy large file out: %v", err)
	}
	down := time.Since(start)
	if got, err := hashFile(out); err != nil || got != [sha256.Size]byte(h.Sum(nil)) {
		t.Errorf("large file differs: %v", err)
	}
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	counts.add("bytes of the large file in and out, "+name, size)
	mbps := func(d time.Duration) float64 { return float64(size) / 1e6 / d.Seconds() }
	t.Logf("%d bytes in parts: in %.0f MB/s, out %.0f MB/s (%d CPUs)", size, mbps(up), mbps(down), runtime.NumCPU())
}
