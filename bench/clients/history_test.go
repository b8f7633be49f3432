package clients

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/minio/minio-go/v7"
)

// history is what clients asked and were told of keys that they share. A key is a register: it holds an ETag, "" when there is no object.
type history struct {
	start time.Time

	mu     sync.Mutex // guards the fields below
	ops    map[string][]porcupine.Operation
	held   map[string]string            // by key: what it held when the history began
	bodies map[string][sha256.Size]byte // by ETag: the bodies that were sent
	calls  int64
}

func newHistory() *history {
	return &history{start: time.Now(), ops: map[string][]porcupine.Operation{}, held: map[string]string{}, bodies: map[string][sha256.Size]byte{}}
}

type callKind uint8

const (
	callRead callKind = iota
	callWrite
	callCreate // a write on condition that there is no object
)

// call is what a client asked for.
type call struct {
	kind callKind
	etag string // that a write leaves behind
}

func (c call) String() string {
	return [...]string{"read", "write ", "create "}[c.kind] + short(c.etag)
}

// answer is what it was told.
type answer struct {
	outcome outcome
	etag    string // that was read
}

type outcome uint8

const (
	done    outcome = iota
	refused         // the condition did not hold
	unknown         // no answer came: it took effect before the server died, or never will
)

func (a answer) String() string {
	return [...]string{"done ", "refused", "unknown"}[a.outcome] + short(a.etag)
}

func short(etag string) string { return etag[:min(len(etag), 6)] }

// register steps from one ETag to those that may follow.
func register(state, input, output any) []any {
	held, c, a := state.(string), input.(call), output.(answer)
	switch {
	case c.kind == callRead:
		if a.etag == held {
			return []any{held}
		}
		return nil
	case c.kind == callCreate && held != "":
		if a.outcome == done {
			return nil
		}
		return []any{held}
	case a.outcome == refused:
		return nil
	case a.outcome == unknown:
		return []any{held, c.etag}
	}
	return []any{c.etag}
}

// note adds a call to the history that began at a time.
func (h *history) note(key string, began time.Duration, c call, a answer) {
	op := porcupine.Operation{Input: c, Output: a, Call: int64(began), Return: int64(time.Since(h.start))}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	h.ops[key] = append(h.ops[key], op)
}

// sent registers a body, before it is sent.
func (h *history) sent(etag string, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bodies[etag] = sha256.Sum256(b)
}

// read notes what a client saw of a key. An error of its body is one of the server.
func (h *history) read(key string, began time.Duration, etag string, b []byte) error {
	h.note(key, began, call{kind: callRead}, answer{etag: etag})
	if etag == "" {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if sum, ok := h.bodies[etag]; !ok || sum != sha256.Sum256(b) {
		return wrongBody(fmt.Sprintf("%q has the ETag %s, sent before: %v, and %d bytes that are not its own", key, etag, ok, len(b)))
	}
	return nil
}

// wrongBody is no error of a call, which a kill excuses.
type wrongBody string

func (e wrongBody) Error() string { return string(e) }

// check looks for an order of the calls of each key that explains all answers, each call at one moment between question and answer.
// Those without an answer happened before the server had died, or never. last is what each key holds now, and how the next history begins.
func (h *history) check(t *testing.T, when string, died time.Duration, last map[string]string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(h.ops)) {
		ops := h.ops[key]
		for i, op := range ops {
			if op.Output.(answer).outcome == unknown {
				ops[i].Return = max(int64(died), op.Call)
			}
		}
		m := porcupine.NondeterministicModel{Init: func() []any { return []any{h.held[key]} }, Step: register}
		switch porcupine.CheckOperationsTimeout(m.ToModel(), ops, 20*time.Second) {
		case porcupine.Ok:
			counts.add("calls in histories that are linearizable", int64(len(ops)))
		case porcupine.Unknown:
			counts.add("histories that took too long to check", 1)
			t.Logf("%s: the history of %q, %d calls, took too long to check", when, key, len(ops))
		case porcupine.Illegal:
			slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
			var lines strings.Builder
			for _, op := range ops {
				fmt.Fprintf(&lines, "\n%v..%v %v: %v", time.Duration(op.Call), time.Duration(op.Return), op.Input, op.Output)
			}
			t.Errorf("%s: no order of the calls on %q, which held %q, explains the answers:%s", when, key, short(h.held[key]), lines.String())
		}
	}
	h.ops, h.held = map[string][]porcupine.Operation{}, last
}

// etagOf is the ETag of an object that was put whole.
func etagOf(b []byte) string { return fmt.Sprintf("%x", md5.Sum(b)) }

// etagOfPart is the ETag of an object of a single part.
func etagOfPart(b []byte) string {
	sum := md5.Sum(b)
	return fmt.Sprintf("%x-1", md5.Sum(sum[:]))
}

// readShared reads a key and notes what it held.
func (h *history) readShared(ctx context.Context, c *s3.Client, bucket, key string) (string, error) {
	began := time.Since(h.start)
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if _, ok := errors.AsType[*types.NoSuchKey](err); ok {
		return "", h.read(key, began, "", nil)
	}
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	if err != nil {
		return "", err
	}
	etag := strings.Trim(aws.ToString(out.ETag), `"`)
	return etag, h.read(key, began, etag, b)
}

// isCode reports whether a server answered with an error code of S3.
func isCode(err error, code string) bool {
	if e, ok := errors.AsType[minio.ErrorResponse](err); ok {
		return e.Code == code
	}
	e, ok := errors.AsType[smithy.APIError](err)
	return ok && e.ErrorCode() == code
}

// TestHistoryFindsFaults is the control of the checks: answers that no order explains are found, others are not.
func TestHistoryFindsFaults(t *testing.T) {
	type step struct {
		from, to int64
		c        call
		a        answer
	}
	w := func(from, to int64, etag string) step { return step{from, to, call{callWrite, etag}, answer{}} }
	r := func(from, to int64, etag string) step {
		return step{from, to, call{kind: callRead}, answer{etag: etag}}
	}
	lost := func(from, to int64, etag string) step {
		return step{from, to, call{callWrite, etag}, answer{outcome: unknown}}
	}
	create := func(from, to int64, etag string, o outcome) step {
		return step{from, to, call{callCreate, etag}, answer{outcome: o}}
	}
	for name, test := range map[string]struct {
		steps []step
		want  porcupine.CheckResult
	}{
		"in order":                      {[]step{w(1, 2, "a"), r(3, 4, "a"), w(5, 6, ""), r(7, 8, "")}, porcupine.Ok},
		"stale read":                    {[]step{w(1, 2, "a"), w(3, 4, "b"), r(5, 6, "a")}, porcupine.Illegal},
		"read beside a write":           {[]step{w(1, 2, "a"), w(3, 6, "b"), r(4, 5, "a")}, porcupine.Ok},
		"new, then old, beside a write": {[]step{w(1, 2, "a"), w(3, 9, "b"), r(4, 5, "b"), r(6, 7, "a")}, porcupine.Illegal},
		"lost write seen":               {[]step{w(1, 2, "a"), lost(3, 9, "b"), r(10, 11, "b")}, porcupine.Ok},
		"lost write not seen":           {[]step{w(1, 2, "a"), lost(3, 9, "b"), r(10, 11, "a")}, porcupine.Ok},
		"lost write comes late":         {[]step{w(1, 2, "a"), lost(3, 9, "b"), r(10, 11, "a"), r(12, 13, "b")}, porcupine.Illegal},
		"acknowledged write gone":       {[]step{w(1, 2, "a"), r(10, 11, "")}, porcupine.Illegal},
		"two creations":                 {[]step{create(1, 5, "a", done), create(2, 6, "b", done)}, porcupine.Illegal},
		"one creation wins":             {[]step{create(1, 5, "a", done), create(2, 6, "b", refused), r(7, 8, "a")}, porcupine.Ok},
		"refused without a reason":      {[]step{create(1, 2, "a", refused)}, porcupine.Illegal},
	} {
		var ops []porcupine.Operation
		for _, s := range test.steps {
			ops = append(ops, porcupine.Operation{Input: s.c, Output: s.a, Call: s.from, Return: s.to})
		}
		m := porcupine.NondeterministicModel{Init: func() []any { return []any{""} }, Step: register}
		if got := porcupine.CheckOperationsTimeout(m.ToModel(), ops, 0); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
