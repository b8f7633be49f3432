package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"

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
	if res == nil {
		return nil
	}
	c.auth = res
	c.who = Identity{AccessKey: res.AccessKey}
	if res.Presigned {
		return c.hoisted()
	}
	return nil
}

// notHoisted begin the names of headers that mean nothing in a query. SDKs put checksums there that they compute, when they presign,
// over a body which they do not have; AWS ignores those.
var notHoisted = []string{
	"x-amz-checksum-", "x-amz-sdk-", "x-amz-trailer", "x-amz-content-sha256", "x-amz-decoded-content-length", "x-amz-user-agent",
}

// hoisted puts headers that a presigner moved into the query where handlers look for them: the signature covers both alike. As on AWS
// their names count only in lower case. To ignore them would lose metadata, or give an object another access or encryption
// than its signer asked for. A header that was sent as well stays.
func (c *call) hoisted() error {
	for name, values := range c.query {
		has := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if !has("x-amz-") || slices.ContainsFunc(notHoisted, has) {
			continue
		}
		if has("x-amz-copy-source") { // the request was taken for a plain PUT
			return invalidArgument(name, values[0], "%s must be sent as a header.", name)
		}
		if !validHeader(name, values) {
			return invalidArgument(name, values[0], "The query parameter cannot be a header.")
		}
		if key := http.CanonicalHeaderKey(name); len(c.r.Header[key]) == 0 {
			c.r.Header[key] = values
		}
	}
	return nil
}

// validHeader reports whether net/http would have taken a header of this name and these values (RFC 9110 section 5).
func validHeader(name string, values []string) bool {
	token := func(r rune) bool {
		return lowerOrDigit(byte(r)) && r < 0x80 || r >= 'A' && r <= 'Z' || strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return !token(r) }) {
		return false
	}
	return !slices.ContainsFunc(values, func(v string) bool { return !validValue(v) })
}

// validValue reports whether a header can have the value v.
func validValue(v string) bool {
	return !strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7F })
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
