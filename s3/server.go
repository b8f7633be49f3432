// Package s3 speaks the Amazon S3 protocol over HTTP for an object store: it authenticates requests with Signature Version 4,
// parses them into a closed set of operations, authorises and runs them, and answers with AWS's documents, codes and statuses.
//
// It promises that no byte of a body is stored as part of a visible object before its signature, digests and trailers have been
// verified, that no request that it does not know falls through to another call, and that everything a client sends is bounded
// in size and time. It does not encrypt, place or persist anything (package object), and it does not listen: Server is an
// http.Handler, and the limits of headers and connections are those of the http.Server around it.
package s3

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"coffer/object"
	"coffer/s3/internal/sigv4"
)

// Store is what the protocol needs of a store. The semantics are those of object.Store; every error that a caller branches on is
// one of package object's.
type Store interface {
	CreateBucket(ctx context.Context, name string, b object.Bucket) (object.Bucket, error)
	Bucket(ctx context.Context, name string) (object.Bucket, error)
	DeleteBucket(ctx context.Context, name string) error
	ListBuckets(ctx context.Context, opt object.ListBucketsOptions) (buckets []object.Bucket, truncated bool, err error)
	SetBucketEncryption(ctx context.Context, name string, e *object.BucketEncryption) error

	Put(ctx context.Context, bucket, key string, body io.Reader, opt object.PutOptions) (object.Object, error)
	Head(ctx context.Context, bucket, key string, opt object.GetOptions) (object.Object, error)
	Get(ctx context.Context, bucket, key string, opt object.GetOptions) (object.Reader, error)
	Delete(ctx context.Context, bucket, key string, cond object.Conditions) error
	DeleteMany(ctx context.Context, bucket string, all []object.Deletion) []error
	Copy(ctx context.Context, src object.CopySource, bucket, key string, opt object.CopyOptions) (object.Object, error)
	List(ctx context.Context, bucket string, opt object.ListOptions) (object.ListPage, error)

	CreateUpload(ctx context.Context, bucket, key string, opt object.UploadOptions) (object.Upload, error)
	PutPart(ctx context.Context, bucket, key, uploadID string, number int, body io.Reader, opt object.PartOptions) (object.Part, error)
	CopyPart(ctx context.Context, src object.CopySource, bucket, key, uploadID string, number int, opt object.PartOptions) (object.Part, error)
	ListParts(ctx context.Context, bucket, key, uploadID string, after, max int) (object.PartPage, error)
	ListUploads(ctx context.Context, bucket string, opt object.ListUploadsOptions) (object.UploadPage, error)
	CompleteUpload(ctx context.Context, bucket, key, uploadID string, opt object.CompleteOptions) (object.Object, error)
	AbortUpload(ctx context.Context, bucket, key, uploadID string) error
}

var _ Store = (*object.Store)(nil)

// FreshEncryption is what GetBucketEncryption answers for a bucket whose default encryption was never set, or was deleted. The
// objects of such a bucket are sealed with SSE-S3 either way.
type FreshEncryption uint8

const (
	FreshSSES3    FreshEncryption = iota // the SSE-S3 rule, as AWS answers since 2023
	FreshNotFound                        // ServerSideEncryptionConfigurationNotFoundError, as AWS answered before
)

// DefaultRegion is the region of a server that names none. AWS lets a client that knows no region use it.
const DefaultRegion = "us-east-1"

// DefaultIdleTimeout bounds how long a client may neither send nor accept a byte of a body.
const DefaultIdleTimeout = 60 * time.Second

// How long and how much of a refused body is still read, see linger. A client that sends faster gets more of it in.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 16 << 20
)

// Options configure a Server. Store and Lookup are required.
type Options struct {
	Store Store
	// Lookup returns the credentials of an access key. It returns ErrUnknownKey, wrapped or not, for one that does not exist; any
	// other error is an internal one. It is called concurrently.
	Lookup func(ctx context.Context, accessKey string) (Credentials, error)
	// Authorizer decides who may do what. Nil: every access key that Lookup knows may do all, the anonymous nothing.
	Authorizer Authorizer

	Region  string   // of signatures and bucket locations; "": DefaultRegion
	Domains []string // base domains of virtual-host style requests; none: path style only
	Logger  *slog.Logger
	// Observe is called once per request, when it has been answered, for metrics and audit. It must not block. May be nil.
	Observe func(*Observation)
	Now     func() time.Time // nil: time.Now
	// SHA256 makes the hashes that bodies are verified with. Nil: sha256.New.
	SHA256 func() hash.Hash

	// FreshBucketEncryption selects the answer of GetBucketEncryption for a bucket without a configuration.
	FreshBucketEncryption FreshEncryption
	// WrongCustomerKeyStatus is the status for a read with another SSE-C key than the object's: 403 (AccessDenied, the default)
	// or 400 (InvalidArgument). Other servers differ, and AWS's documentation does not say.
	WrongCustomerKeyStatus int
	IdleTimeout            time.Duration // 0: DefaultIdleTimeout
}

// Credentials are the secret of an access key, and the session token of a temporary one.
type Credentials = sigv4.Credentials

// ErrUnknownKey is returned by Options.Lookup for an access key that does not exist.
var ErrUnknownKey = sigv4.ErrUnknownAccessKey

// Observation is what one request did. Op is an operation of the API or OpUnknown and Code an error code of the API or "OK", so
// both may be metric labels; Bucket and Key may not.
type Observation struct {
	Op, Code          string
	Status            int
	BytesIn, BytesOut int64 // of bodies
	Start             time.Time
	FirstByte         time.Duration // from Start until the answer began
	Duration          time.Duration
	RequestID         string
	AccessKey         string // "" for the anonymous
	Bucket, Key       string
	RemoteAddr        string
}

// Server answers S3 requests. It is safe for concurrent use.
type Server struct {
	opt    Options
	ops    []*operation
	router *router
	auth   *sigv4.Verifier
	hostID string
}

// New returns a Server. It panics when a required option is missing.
func New(opt Options) *Server {
	if opt.Store == nil || opt.Lookup == nil {
		panic("s3: New without Store or Lookup")
	}
	if opt.Region == "" {
		opt.Region = DefaultRegion
	}
	if opt.Authorizer == nil {
		opt.Authorizer = rootAuthorizer{}
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.SHA256 == nil {
		opt.SHA256 = sha256.New
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.IdleTimeout == 0 {
		opt.IdleTimeout = DefaultIdleTimeout
	}
	if opt.WrongCustomerKeyStatus == 0 {
		opt.WrongCustomerKeyStatus = http.StatusForbidden
	}
	s := &Server{opt: opt, ops: operations()}
	s.router = newRouter(s.ops, opt.Domains)
	s.auth = &sigv4.Verifier{Region: opt.Region, Now: opt.Now, Lookup: opt.Lookup}
	id := make([]byte, 33)
	rand.Read(id) // never fails (crypto/rand)
	s.hostID = base64.StdEncoding.EncodeToString(id)
	return s
}

// Operations returns the names of all operations, the closed set of Observation.Op without OpUnknown.
func (s *Server) Operations() []string {
	names := make([]string, len(s.ops))
	for i, op := range s.ops {
		names[i] = op.name
	}
	return names
}

// call is one request on its way through the server.
type call struct {
	request
	w    *response
	r    *http.Request
	ctx  context.Context
	id   string
	who  Identity
	auth *sigv4.Result // nil for the anonymous
	body *body         // nil until authorised
}

// ServeHTTP implements http.Handler. The order of the steps is fixed: request id, deadlines, parse, authenticate, authorise, open
// the body, handle, answer, observe.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := &call{r: r, ctx: r.Context(), id: newRequestID()}
	c.w = newResponse(w, r, s.opt.IdleTimeout)
	h := w.Header()
	set(h, "Server", "Coffer")
	set(h, "x-amz-request-id", c.id)
	set(h, "x-amz-id-2", s.hostID)

	err := s.run(c)
	code := "OK"
	if err != nil {
		code = s.fail(c, err)
	}
	c.w.finish()
	if s.opt.Observe != nil {
		s.opt.Observe(s.observation(c, code, start))
	}
	if err == nil {
		return
	}
	if c.w.broken {
		panic(http.ErrAbortHandler) // the answer cannot be completed: the client must see the connection break
	}
	c.linger()
}

// linger reads what a client still sends after its request was refused: a connection that is closed on unread data is reset, and
// the reset can overtake the answer (RFC 9112 section 9.6). net/http does not do this for a request with Expect: 100-continue, and
// aws-sdk-go-v2 asks for it without waiting.
func (c *call) linger() {
	if c.r.ProtoMajor > 1 || c.r.ContentLength == 0 {
		return
	}
	// Errors mean that the client is gone, or that a recorder in a test has neither.
	if c.w.ctl.Flush() != nil || c.w.ctl.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.r.Body, lingerBytes) // the deadline stays for what net/http reads; the next request gets its own
}

func (s *Server) run(c *call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	combine(c.r.Header)
	if c.request, err = s.router.parse(c.r); err != nil {
		return err
	}
	if err := s.authenticate(c); err != nil {
		return err
	}
	if c.op.action != "" {
		if err := s.authorize(c, c.op.action, c.bucket, c.key); err != nil {
			return err
		}
	}
	if c.op.handle == nil {
		return errNotImplemented.say("The operation %s is not implemented.", c.op.name)
	}
	if err := c.checkParameters(c.r.Method); err != nil {
		return err
	}
	if err := s.openBody(c); err != nil {
		return err
	}
	if err := s.checkOwner(c); err != nil {
		return err
	}
	if c.op.body == bodyNone {
		if err := c.body.discard(); err != nil {
			return err
		}
	}
	return c.op.handle(s, c)
}

// combine makes one line of fields that came in several (RFC 9110 section 5.2), as signatures see them: nothing that a client said is
// then left out by who looks at the first line alone.
func combine(h http.Header) {
	for name, values := range h {
		if len(values) > 1 {
			h[name] = []string{strings.Join(values, ",")}
		}
	}
}

// fail answers err and returns its code. Internal text goes to the log under the request id, never to the client. Names of buckets
// and objects are sealed on the disks and the log is not, so they stay out of it above debug.
func (s *Server) fail(c *call, err error) string {
	e := s.apiErrorOf(err, c.bucket, c.key)
	log := s.opt.Logger.With("request_id", c.id, "op", c.opName(), "code", e.code)
	switch {
	case c.w.started():
		c.w.broken = true
		if c.w.err != nil || c.ctx.Err() != nil {
			log.Debug("client left", "err", err)
			return errRequestTimeout.code
		}
		log.Error("answer broken off", "err", nameless(err))
		log.Debug("answer broken off", "err", err)
		return errInternal.code
	case e.isFault():
		log.Error("request failed", "err", nameless(err))
		log.Debug("request failed", "err", err)
	default:
		log.Debug("request refused", "err", err)
	}
	c.w.fail(c, e, s.hostID)
	return e.code
}

// quoted is a string as %q writes it.
var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// nameless is an error's text without the names in it, which errors of the store and of this package carry as %q.
func nameless(err error) string { return quoted.ReplaceAllString(err.Error(), `"..."`) }

func (c *call) opName() string {
	if c.op == nil {
		return OpUnknown
	}
	return c.op.name
}

func (s *Server) observation(c *call, code string, start time.Time) *Observation {
	o := &Observation{
		Op: c.opName(), Code: code, Status: c.w.status, BytesOut: c.w.written, Start: start, Duration: time.Since(start),
		RequestID: c.id, AccessKey: c.who.AccessKey, Bucket: c.bucket, Key: c.key, RemoteAddr: c.r.RemoteAddr,
	}
	if !c.w.began.IsZero() {
		o.FirstByte = c.w.began.Sub(start)
	}
	if c.body != nil {
		o.BytesIn = c.body.raw.n
	}
	return o
}

const requestIDAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUV"

// newRequestID returns 16 random characters, as AWS's ids look.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = requestIDAlphabet[b[i]%32]
	}
	return string(b[:])
}
