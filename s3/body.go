package s3

import (
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"coffer/object"
	"coffer/s3/internal/chunked"
	"coffer/s3/internal/sigv4"
)

// minProgress is how many bytes a client must send in each idle timeout while its body is under way: one segment of the store, since a
// body that is slower holds memory and a connection for next to nothing. The time that this server takes to store them does not
// count, and what was sent before is no credit.
const minProgress = 64 << 10

// errIdle ends the body of a client that sends nothing or next to nothing.
var errIdle = errors.New("client sends too slowly")

// body is a request's body: counted and timed on the wire, then decoded and verified.
type body struct {
	chunked.Body
	raw *wire
}

// wire reads from the connection. It moves the read deadline along and counts.
type wire struct {
	io.ReadCloser
	w      *response
	idle   time.Duration
	armed  time.Time
	waited time.Duration // in Read, since the last time that minProgress was looked for
	before int64         // what had come until then
	n      int64
}

func (b *wire) Read(p []byte) (int, error) {
	start := time.Now()
	if start.Sub(b.armed) > b.idle/8 {
		b.armed = start
		b.w.ctl.SetReadDeadline(start.Add(b.idle)) // not supported by recorders in tests, which need none
		b.w.arm()                                  // the first Read may send 100 Continue
	}
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	b.waited += time.Since(start)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, errIdle
	case err == nil && b.waited > b.idle:
		if b.n-b.before < minProgress {
			return n, errIdle
		}
		b.waited, b.before = 0, b.n
	case err != nil:
		// net/http watches the connection from here on: a deadline would look to it as if the client had left.
		b.w.ctl.SetReadDeadline(time.Time{})
		if err != io.EOF {
			// A reset, a TLS alert, a malformed chunk: whatever ends a body early comes from the client or the way to it. Told
			// apart here, where nothing of the store's can be among the causes.
			err = errIncompleteBody.because(err)
		}
	}
	return n, err
}

// openBody prepares the body. It reads no byte, so that a client which waits for 100 Continue can still be refused.
func (s *Server) openBody(c *call) error {
	raw := &wire{ReadCloser: c.r.Body, w: c.w, idle: s.opt.IdleTimeout}
	r := *c.r // net/http looks at the type of its own request's Body to decide whether to ask for an unread one
	r.Body = raw
	how := c.auth
	if how == nil {
		how = &sigv4.Result{Payload: sigv4.PayloadUnsigned}
		if c.r.Header.Get("X-Amz-Content-Sha256") == "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
			how.Payload = sigv4.PayloadStreamUnsignedTrailer
		}
	}
	b, err := chunked.Open(&r, how, s.opt.SHA256)
	if err != nil {
		return err
	}
	c.body = &body{b, raw}
	return nil
}

// maxIgnored is how long a body may be where none is meant.
const maxIgnored = 1 << 20

// discard reads a body where none is meant, which is ignored but for what is signed of it.
func (b *body) discard() error {
	if _, err := io.CopyN(io.Discard, b, maxIgnored); err != io.EOF {
		if err == nil {
			err = b.finish()
		}
		return err
	}
	return nil
}

// finish makes sure that the body ended and was verified. A store that stops at the declared size has not seen the end of an
// empty body.
func (b *body) finish() error {
	n, err := b.Read(make([]byte, 1))
	switch {
	case n > 0:
		return errIncompleteBody
	case err == io.EOF:
		return nil
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// upload is a body on its way into the store.
type upload struct {
	size  int64
	claim claim
	body  *body
}

// newUpload checks the size and the claims of a body of at most limit bytes.
func (c *call) newUpload(limit int64) (*upload, error) {
	u := &upload{size: c.body.Size(), body: c.body}
	if u.size < 0 || u.size == 0 && c.r.Header.Get("Content-Length") == "" && len(c.r.TransferEncoding) == 0 {
		return nil, errMissingContentLength
	}
	if u.size > limit {
		return nil, errEntityTooLarge.with(errorDetail{ProposedSize: strconv.FormatInt(u.size, 10), MaxSizeAllowed: strconv.FormatInt(limit, 10)})
	}
	var err error
	u.claim, err = parseClaim(c.r.Header)
	return u, err
}

// check is the store's last question before the object becomes visible.
func (u *upload) check(sums object.Sums) error {
	if err := u.body.finish(); err != nil {
		return err
	}
	if err := u.claim.fill(u.body.Trailer()); err != nil {
		return err
	}
	return u.claim.check(sums)
}

// fill takes the sum from the trailer, if it was to come there.
func (cl *claim) fill(trailer http.Header) error {
	if !cl.trailer {
		return nil
	}
	v := trailer.Get(cl.alg.header)
	if v == "" {
		return errMalformedTrailer
	}
	return cl.setSum(v)
}

// readDocument reads and verifies a whole body of at most the operation's bound.
func (c *call) readDocument(cl claim) ([]byte, error) {
	limit := c.op.body
	if c.body.Size() > limit {
		return nil, errMessageTooLong
	}
	doc, err := io.ReadAll(io.LimitReader(c.body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read document: %w", err)
	}
	if int64(len(doc)) > limit {
		return nil, errMessageTooLong
	}
	if err := cl.fill(c.body.Trailer()); err != nil {
		return nil, err
	}
	var sums object.Sums
	if cl.md5 != nil {
		sum := md5.Sum(doc)
		sums.MD5 = sum[:]
	}
	if cl.alg != nil {
		sums.Checksum = object.Checksum{Algo: cl.alg.algo, Sum: sumOf(cl.alg.new(), doc)}
	}
	return doc, cl.check(sums)
}

func sumOf(h hash.Hash, p []byte) []byte {
	h.Write(p)
	return h.Sum(nil)
}

// readXML reads a document, verified against the claims in the headers, into v. An empty one leaves v and answers false.
func (c *call) readXML(v any) (present bool, err error) {
	cl, err := parseClaim(c.r.Header)
	if err != nil {
		return false, err
	}
	doc, err := c.readDocument(cl)
	if err != nil || len(doc) == 0 {
		return false, err
	}
	return true, decodeXML(doc, v)
}
