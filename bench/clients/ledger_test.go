package clients

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

// content is what a key holds: the hash of a whole body, or absence.
type content struct {
	sum  [sha256.Size]byte
	size int64
	gone bool
}

var gone = content{gone: true}

func (c content) String() string {
	if c.gone {
		return "absent"
	}
	return fmt.Sprintf("%d bytes %x", c.size, c.sum[:4])
}

func contentOf(seed uint64, size int64) content {
	return hashOf(body(seed, size))
}

// hashOf is the content of a generated body, whose reader cannot fail.
func hashOf(r io.Reader) content {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		panic("clients: read a generated body: " + err.Error())
	}
	return content{sum: [sha256.Size]byte(h.Sum(nil)), size: n}
}

// ledger records what a server acknowledged. Each key is written by one goroutine at a time.
type ledger struct {
	mu      sync.Mutex // guards all fields
	acked   map[string]content
	pending map[string][]content // begun since the last acknowledgement: any may have come into effect, or none
	acks    int64
}

func newLedger() *ledger {
	return &ledger{acked: map[string]content{}, pending: map[string][]content{}}
}

func (l *ledger) begin(key string, c content) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending[key] = append(l.pending[key], c)
}

func (l *ledger) ack(key string, c content) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[key] = c
	l.acks++
	delete(l.pending, key)
}

// acknowledged is how many writes were acknowledged so far.
func (l *ledger) acknowledged() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// write does one operation on key that leaves c behind, and notes its acknowledgement.
func (l *ledger) write(key string, c content, do func() error) error {
	l.begin(key, c)
	if err := do(); err != nil {
		return err
	}
	l.ack(key, c)
	return nil
}

// allowed are the contents that key may have now.
func (l *ledger) allowed(key string) []content {
	l.mu.Lock()
	defer l.mu.Unlock()
	acked, ok := l.acked[key]
	if !ok {
		acked = gone
	}
	return append([]content{acked}, l.pending[key]...)
}

func (l *ledger) keys() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]bool{}
	for k := range l.acked {
		all[k] = true
	}
	for k := range l.pending {
		all[k] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// readObject returns what a key holds, read as a whole.
func readObject(ctx context.Context, c *s3.Client, bucket, key string) (content, error) {
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if _, ok := errors.AsType[*types.NoSuchKey](err); ok {
		return gone, nil
	}
	if err != nil {
		return content{}, err
	}
	defer out.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, out.Body)
	if err != nil {
		return content{}, err
	}
	if n != aws.ToInt64(out.ContentLength) {
		return content{}, fmt.Errorf("%d bytes under a Content-Length of %d", n, aws.ToInt64(out.ContentLength))
	}
	return content{sum: [sha256.Size]byte(h.Sum(nil)), size: n}, nil
}

// clone is what the ledger says now.
func (l *ledger) clone() *ledger {
	c := &ledger{acked: maps.Clone(l.acked), pending: map[string][]content{}, acks: l.acks}
	for k, p := range l.pending {
		c.pending[k] = slices.Clone(p)
	}
	return c
}

// verify reads everything: each key holds one of its allowed contents, and the list names exactly the keys that are there, with their
// sizes. From then on what was seen is what must stay.
func (l *ledger) verify(t *testing.T, s *server, bucket, when string) {
	t.Helper()
	keys, listed, faults := l.compare(t.Context(), s, bucket)
	for _, f := range faults {
		t.Errorf("%s: %s", when, f)
	}
	counts.add("objects verified after a fault", int64(keys))
	t.Logf("%s: %d keys verified, %d listed", when, keys, listed)
	if t.Failed() {
		t.FailNow()
	}
}

// compare is verify, and returns what is wrong.
func (l *ledger) compare(ctx context.Context, s *server, bucket string) (verified, inList int, faults []string) {
	c := newSDK(s)
	listed := map[string]int64{}
	if err := sdkObjects(ctx, c, bucket, func(o types.Object) error {
		listed[aws.ToString(o.Key)] = aws.ToInt64(o.Size)
		return nil
	}); err != nil {
		return 0, 0, []string{fmt.Sprintf("list: %v", err)}
	}
	var mu sync.Mutex
	wrong := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		faults = append(faults, fmt.Sprintf(format, args...))
	}
	keys := l.keys()
	for k := range listed {
		if _, found := slices.BinarySearch(keys, k); !found {
			wrong("%q is listed and was never written", k)
		}
	}
	var g errgroup.Group
	g.SetLimit(16)
	for _, key := range keys {
		g.Go(func() error {
			got, err := readObject(ctx, c, bucket, key)
			size, isListed := listed[key]
			switch allowed := l.allowed(key); {
			case err != nil:
				wrong("get %q: %v", key, err)
			case !slices.Contains(allowed, got):
				wrong("%q is %v, want one of %v", key, got, allowed)
			case isListed == got.gone, isListed && size != got.size:
				wrong("%q is %v, and the list says %v, %d bytes", key, got, isListed, size)
			default:
				l.mu.Lock()
				l.acked[key] = got
				delete(l.pending, key)
				l.mu.Unlock()
			}
			return nil
		})
	}
	g.Wait()
	return len(keys), len(listed), faults
}
