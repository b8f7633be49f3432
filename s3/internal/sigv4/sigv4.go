// Package sigv4 verifies AWS Signature Version 4 as S3 uses it: in the Authorization header, in the query of a presigned
// request, and as the seed of the chunk signatures of a streamed body.
//
// It promises that a request it accepts was signed, by the secret of the access key that it names, over its method, its path
// and query as decoded, its host, every x-amz-* header, and its declared payload digest or mode; that the date is within
// the skew or the presigned lifetime; and that it read no byte of the body. It does not verify the body (package chunked does),
// does not remember requests (a captured one can be replayed until it expires, as with AWS), and decides nothing about what the
// signer may do. Signature versions 2 and 4A are refused by name.
//
// Rules: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html.
package sigv4

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// DefaultMaxSkew is how far a request's date may be from ours (AWS: 15 minutes).
const DefaultMaxSkew = 15 * time.Minute

// Credentials are what a request is checked against.
type Credentials struct {
	AccessKey    string
	Secret       string
	SessionToken string // "" for long-lived credentials; otherwise the request must carry it
}

// Lookup finds the credentials of an access key. It returns ErrUnknownAccessKey, wrapped or not, if there are none; any other
// error is passed through to the caller of Verify. It is called concurrently.
type Lookup func(ctx context.Context, accessKey string) (Credentials, error)

// Payload is how the body of a request is protected (x-amz-content-sha256).
type Payload uint8

const (
	PayloadUnsigned              Payload = iota // UNSIGNED-PAYLOAD
	PayloadSigned                               // a SHA-256 is given
	PayloadStreamSigned                         // STREAMING-AWS4-HMAC-SHA256-PAYLOAD
	PayloadStreamSignedTrailer                  // STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER
	PayloadStreamUnsignedTrailer                // STREAMING-UNSIGNED-PAYLOAD-TRAILER
)

// Result says who signed a request and how its body is to be verified.
type Result struct {
	AccessKey     string
	Presigned     bool
	Payload       Payload
	SHA256        [32]byte     // PayloadSigned: of the body
	Chunks        *ChunkSigner // PayloadStreamSigned and PayloadStreamSignedTrailer
	SignedHeaders []string     // lower case, as the client listed them
}

// Verifier verifies requests. It is safe for concurrent use once its fields are set; it must not be copied.
type Verifier struct {
	Region  string           // the region that requests must be signed for; "" takes any
	Service string           // "" means "s3"
	Now     func() time.Time // nil means time.Now
	MaxSkew time.Duration    // 0 means DefaultMaxSkew
	Lookup  Lookup           // required

	keys keyCache
}

// Verify authenticates r. A refusal is an *Error; another error is one of Lookup's. The body is not touched.
func (v *Verifier) Verify(r *http.Request) (*Result, error) {
	params, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	a, err := parseAuth(r, params)
	if err != nil {
		return nil, err
	}
	if err := v.checkScope(a); err != nil {
		return nil, err
	}
	if err := v.checkTime(a); err != nil {
		return nil, err
	}
	res := &Result{AccessKey: a.accessKey, Presigned: a.presigned, SignedHeaders: a.signedHeaders}
	if err := a.parsePayload(res); err != nil {
		return nil, err
	}
	cred, err := v.Lookup(r.Context(), a.accessKey)
	if errors.Is(err, ErrUnknownAccessKey) {
		return nil, &Error{Code: InvalidAccessKeyID, Message: "The AWS Access Key Id you provided does not exist in our records.", Err: err}
	} else if err != nil {
		return nil, fmt.Errorf("look up access key: %w", err)
	}
	key, err := v.checkSignature(r, a, params, cred)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(a.token), []byte(cred.SessionToken)) != 1 {
		return nil, refuse(InvalidToken, "The provided token is malformed or otherwise invalid.")
	}
	if res.Payload == PayloadStreamSigned || res.Payload == PayloadStreamSignedTrailer {
		res.Chunks = NewChunkSigner(key, a.amzDate, a.scope, Signature([]byte(a.signature)))
	}
	return res, nil
}

func (v *Verifier) service() string {
	if v.Service == "" {
		return "s3"
	}
	return v.Service
}

func (v *Verifier) checkScope(a *auth) error {
	if a.service != v.service() {
		return a.malformed(fmt.Sprintf("the service '%.64s' is wrong; expecting '%s'.", a.service, v.service()))
	}
	if v.Region != "" && a.region != v.Region {
		err := a.malformed(fmt.Sprintf("the region '%.64s' is wrong; expecting '%s'", a.region, v.Region))
		err.Region = v.Region
		return err
	}
	if a.day != a.amzDate[:len(isoDay)] {
		return a.malformed(fmt.Sprintf("Invalid credential date %q. This date is not the same as X-Amz-Date: %q.", a.day, a.amzDate[:len(isoDay)]))
	}
	return nil
}

func (v *Verifier) checkTime(a *auth) error {
	now, skew := time.Now, v.MaxSkew
	if v.Now != nil {
		now = v.Now
	}
	if skew == 0 {
		skew = DefaultMaxSkew
	}
	age := now().Sub(a.time)
	switch {
	case a.presigned && (age > a.expires || a.expires == 0):
		return refuse(AccessDenied, "Request has expired")
	case a.presigned && age < -skew:
		return refuse(AccessDenied, "Request is not valid yet")
	case !a.presigned && (age > skew || age < -skew):
		return refuse(RequestTimeTooSkewed, "The difference between the request time and the current time is too large.")
	}
	return nil
}

// checkSignature returns the signing key that made the request's signature.
func (v *Verifier) checkSignature(r *http.Request, a *auth, params []param, cred Credentials) ([32]byte, error) {
	id := keyID{a.accessKey, cred.Secret, a.day, a.region}
	key, cached := v.keys.get(id)
	if !cached {
		key = SigningKey(cred.Secret, a.day, a.region, a.service)
	}
	query := canonicalQuery(params, a.presigned)
	c := candidate{canonical: make([]byte, 0, 1024), stringToSign: make([]byte, 0, 192)}
	for _, host := range canonicalHosts(r.Host) {
		for _, path := range canonicalPaths(r.URL) {
			complete := c.build(r, a, path, query, host)
			sum := mac(key[:], c.stringToSign)
			var want Signature
			hex.Encode(want[:], sum[:])
			if !complete || subtle.ConstantTimeCompare(want[:], []byte(a.signature)) != 1 {
				continue
			}
			if !cached {
				v.keys.put(id, key)
			}
			return key, nil
		}
	}
	return key, &Error{
		Code:             SignatureDoesNotMatch,
		Message:          "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
		CanonicalRequest: string(c.canonical),
		StringToSign:     string(c.stringToSign),
	}
}
