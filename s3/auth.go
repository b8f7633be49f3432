package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"coffer/s3/internal/sigv4"
)

// Identity is who sent a request.
type Identity struct {
	AccessKey string // "" for the anonymous
}

// Anonymous reports whether the request carried no credentials.
func (i Identity) Anonymous() bool { return i.AccessKey == "" }

// Authorization is one question to an Authorizer: may Identity do Action to Bucket and Key?
type Authorization struct {
	Identity Identity
	Action   string // of IAM, such as "s3:GetObject"
	Bucket   string // "" for ListBuckets
	Key      string // "" for an action on a bucket
	// SourceIP, TLS and the like join when policies with conditions do.
}

// ErrDenied is returned by an Authorizer for what is not allowed.
var ErrDenied = errors.New("denied")

// Authorizer decides on actions. It is asked once for the action of an operation, and once more for each source of a copy and
// each key of DeleteObjects. It returns nil, ErrDenied (wrapped or not), or another error if it cannot tell, which fails the
// request as an internal error. It is called concurrently.
type Authorizer interface {
	Authorize(ctx context.Context, a Authorization) error
}

// rootAuthorizer allows whoever is authenticated to do all, and the anonymous nothing.
type rootAuthorizer struct{}

func (rootAuthorizer) Authorize(_ context.Context, a Authorization) error {
	if a.Identity.Anonymous() {
		return ErrDenied
	}
	return nil
}

// authenticate finds out who sent the request and how its body is to be verified. It reads no byte of the body.
func (s *Server) authenticate(c *call) error {
	res, err := s.auth.Verify(c.r)
	if e, ok := errors.AsType[*sigv4.Error](err); ok && e.Anonymous {
		err, res = nil, nil
	}
	if err != nil {
		return err
	}
	if res != nil {
		c.auth = res
		c.who = Identity{AccessKey: res.AccessKey}
	}
	return nil
}

func (s *Server) authorize(c *call, action, bucket, key string) error {
	err := s.opt.Authorizer.Authorize(c.ctx, Authorization{Identity: c.who, Action: action, Bucket: bucket, Key: key})
	if errors.Is(err, ErrDenied) {
		return errAccessDenied.because(err)
	}
	return err
}

// ownerOf returns the canonical user of an access key. AWS's canonical ids are opaque 64 hex digits as well.
func ownerOf(accessKey string) ownerXML {
	sum := sha256.Sum256([]byte("coffer canonical user\x00" + accessKey))
	return ownerXML{ID: hex.EncodeToString(sum[:]), DisplayName: accessKey}
}

// checkOwner enforces x-amz-expected-bucket-owner and its twin for the source of a copy.
func (s *Server) checkOwner(c *call) error {
	if c.bucket == "" || c.op.name == "CreateBucket" {
		return nil
	}
	if want := c.r.Header.Get("X-Amz-Expected-Bucket-Owner"); want != "" {
		return s.requireOwner(c, c.bucket, want)
	}
	return nil
}

func (s *Server) requireOwner(c *call, bucket, want string) error {
	b, err := s.opt.Store.Bucket(c.ctx, bucket)
	if err != nil {
		return err
	}
	if ownerOf(b.Owner).ID != want {
		return errAccessDenied
	}
	return nil
}
