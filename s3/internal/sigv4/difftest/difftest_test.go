package difftest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/s3/internal/chunked"
	"coffer/s3/internal/sigv4"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsv4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/minio/minio-go/v7/pkg/s3utils"
	"github.com/minio/minio-go/v7/pkg/signer"
)

const (
	accessKey = "AKIADIFFTEST/with/slash"
	secret    = "secret/+=&%"
	token     = "session+token/=="
	region    = "eu-central-1"
	rounds    = 400 // random requests per signer
	mutations = 60  // random single-byte changes per request
)

func verifier(token string) *sigv4.Verifier {
	return &sigv4.Verifier{
		Region: region,
		Lookup: func(context.Context, string) (sigv4.Credentials, error) {
			return sigv4.Credentials{AccessKey: accessKey, Secret: secret, SessionToken: token}, nil
		},
	}
}

// A signing takes a request and returns it signed.
type signing struct {
	name string
	sign func(t *testing.T, r *http.Request) *http.Request
}

var awsCredentials = aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secret, SessionToken: token}

func awsRetrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secret}, nil
}

func s3Options(o *awsv4.SignerOptions) { o.DisableURIPathEscaping = true }

var signings = []signing{
	{"aws header", func(t *testing.T, r *http.Request) *http.Request {
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		if err := awsv4.NewSigner().SignHTTP(t.Context(), awsCredentials, r, "UNSIGNED-PAYLOAD", "s3", region, time.Now(), s3Options); err != nil {
			t.Fatal(err)
		}
		return r
	}},
	{"aws presigned", func(t *testing.T, r *http.Request) *http.Request {
		q := r.URL.Query()
		q.Set("X-Amz-Expires", "600")
		r.URL.RawQuery = q.Encode()
		uri, header, err := awsv4.NewSigner().PresignHTTP(t.Context(), awsCredentials, r, "UNSIGNED-PAYLOAD", "s3", region, time.Now(), s3Options)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := http.NewRequest(r.Method, uri, r.Body)
		if err != nil {
			t.Fatal(err)
		}
		signed.ContentLength = r.ContentLength
		for name, values := range header {
			if name != "Host" && name != "Content-Length" {
				signed.Header[name] = values
			}
		}
		return signed
	}},
	{"minio header", func(t *testing.T, r *http.Request) *http.Request {
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		return signer.SignV4(*r, accessKey, secret, token, region)
	}},
	{"minio presigned", func(t *testing.T, r *http.Request) *http.Request {
		return signer.PreSignV4(*r, accessKey, secret, token, region, 600)
	}},
}

// Characters for random names and values: reserved ones, ones that encoders disagree on, multi-byte ones.
const alphabet = "abzAZ09-._~ +%&=;:,/?#@!$'()*[]{}|\\^`\"<>é漢😀\x01\x7f"

func text(rnd *rand.Rand, alphabet string, n int) string {
	runes := []rune(alphabet)
	var b strings.Builder
	for range rnd.IntN(n) {
		b.WriteRune(runes[rnd.IntN(len(runes))])
	}
	return b.String()
}

// escape encodes by AWS's rule, as the S3 clients of both SDKs send keys.
func escape(path string) string {
	var b strings.Builder
	for _, c := range []byte(path) {
		if c == '/' || strings.IndexByte("-._~", c) >= 0 || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func queryEscape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func randomRequest(rnd *rand.Rand) *http.Request {
	u := &url.URL{Scheme: "http", Host: []string{"h.example", "h.example:9000", "127.0.0.1:9000", "h.example:80", "[::1]:9000"}[rnd.IntN(5)]}
	u.Path = "/" + text(rnd, alphabet, 20)
	for range rnd.IntN(3) {
		u.Path += []string{"/", "/..", "/.", "//"}[rnd.IntN(4)] + text(rnd, alphabet, 8)
	}
	if rnd.IntN(2) == 0 {
		u.RawPath = escape(u.Path)
	}
	q := url.Values{}
	for range rnd.IntN(4) {
		// Names are plain because minio-go sorts before it encodes. It does not sort the values of one name, so they come sorted.
		name := "q" + text(rnd, "abAB09-._~", 6)
		for range 1 + rnd.IntN(2) {
			q.Add(name, text(rnd, alphabet, 10))
		}
		slices.SortFunc(q[name], func(a, b string) int { return strings.Compare(queryEscape(a), queryEscape(b)) })
	}
	u.RawQuery = q.Encode()
	method := []string{"GET", "PUT", "DELETE", "HEAD", "POST"}[rnd.IntN(5)]
	r := &http.Request{Method: method, URL: u, Host: u.Host, Header: http.Header{}}
	if method == "PUT" || method == "POST" {
		n := rnd.IntN(100)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", n))), int64(n)
	}
	for range rnd.IntN(5) {
		name := []string{"X-Amz-Meta-" + text(rnd, "abc09-_", 6) + "x", "X-Amz-Acl", "Content-Type", "Range", "X-Amz-Checksum-Crc32", "Cache-Control"}[rnd.IntN(6)]
		for range 1 + rnd.IntN(2) {
			r.Header.Add(name, text(rnd, "abc  09-._~+%&=;:,/é漢\"'", 12))
		}
	}
	return r
}

// wire sends a request the way a client does and reads it the way a server does.
func wire(t *testing.T, r *http.Request) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func receive(b []byte) (*http.Request, error) {
	return http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
}

// meaning is everything of a request that a handler may act on and a signer vouches for.
func meaning(r *http.Request, signedHeaders []string) string {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return err.Error()
	}
	for name := range q {
		slices.Sort(q[name]) // the canonical form sorts them too
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %q %s %q\n", r.Method, r.URL.Path, q.Encode(), strings.TrimSuffix(r.Host, ":80"))
	for _, name := range signedHeaders {
		if name == "host" {
			continue
		}
		for _, v := range r.Header.Values(name) {
			fmt.Fprintf(&b, "%s:%s,", name, strings.Join(strings.Fields(v), " "))
		}
		b.WriteByte('\n')
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Amz-") && !slices.Contains(signedHeaders, strings.ToLower(name)) {
			b.WriteString("unsigned " + name)
		}
	}
	return b.String()
}

func TestForeignSigners(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, s := range signings {
		t.Run(s.name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			v := verifier(token)
			for range rounds {
				signed := s.sign(t, randomRequest(rnd))
				raw := wire(t, signed)
				r, err := receive(raw)
				if err != nil {
					t.Fatalf("%v\n%q", err, raw)
				}
				res, err := v.Verify(r)
				if err != nil {
					if e, ok := errors.AsType[*sigv4.Error](err); ok {
						t.Logf("computed\n%s", e.CanonicalRequest)
					}
					t.Fatalf("%v\n%s", err, raw)
				}
				if res.AccessKey != accessKey || res.Presigned != strings.Contains(s.name, "presigned") {
					t.Fatalf("%+v", res)
				}
				rewritten(t, v, r)
				mutated(t, rnd, v, raw, meaning(r, res.SignedHeaders), res.SignedHeaders)
			}
		})
	}
}

// rewritten: the order of the query and plus for space are free.
func rewritten(t *testing.T, v *sigv4.Verifier, r *http.Request) {
	before := r.URL.RawQuery
	pairs := strings.Split(strings.ReplaceAll(before, "%20", "+"), "&")
	slices.Reverse(pairs)
	r.URL.RawQuery = strings.Join(pairs, "&")
	if _, err := v.Verify(r); err != nil {
		t.Fatalf("%s rewritten as %s: %v", before, r.URL.RawQuery, err)
	}
	r.URL.RawQuery = before
}

// mutated changes single bytes of the head. Whatever still verifies must mean the same.
func mutated(t *testing.T, rnd *rand.Rand, v *sigv4.Verifier, raw []byte, want string, signedHeaders []string) {
	head := bytes.Index(raw, []byte("\r\n\r\n"))
	for range mutations {
		b := bytes.Clone(raw)
		at := rnd.IntN(head)
		switch rnd.IntN(3) {
		case 0:
			b[at] ^= 1 << rnd.IntN(8)
		case 1:
			b[at] = byte(rnd.Uint32())
		case 2:
			b = append(b[:at], b[at+1:]...)
		}
		r, err := receive(b)
		if err != nil {
			continue
		}
		res, err := v.Verify(r)
		if err == nil && (meaning(r, signedHeaders) != want || !slices.Equal(res.SignedHeaders, signedHeaders)) {
			t.Fatalf("byte %d changed and accepted\n%s\nwas\n%s", at, b, raw)
		}
	}
}

// TestOtherSecret: nothing verifies by a secret that differs in one character, or with another token.
func TestOtherSecret(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, s := range signings {
		for i := range 20 {
			r, err := receive(wire(t, s.sign(t, randomRequest(rnd))))
			if err != nil {
				t.Fatal(err)
			}
			v := verifier(token)
			v.Lookup = func(context.Context, string) (sigv4.Credentials, error) {
				other := []byte(secret)
				other[i%len(other)] ^= 1
				return sigv4.Credentials{Secret: string(other), SessionToken: token}, nil
			}
			if _, err := v.Verify(r); err == nil {
				t.Fatalf("%s verified by another secret", s.name)
			}
			if _, err := verifier("other").Verify(r); err == nil {
				t.Fatalf("%s verified with another token", s.name)
			}
		}
	}
}

type hasher struct{ hash.Hash }

func (hasher) Close() {}

// TestMinioStreams reads the streamed bodies of minio-go in its three forms.
func TestMinioStreams(t *testing.T) {
	for _, form := range []string{"signed", "signed trailer", "unsigned trailer"} {
		for _, size := range []int{0, 1, 65535, 65536, 65537, 200000} {
			data := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
			u := &url.URL{Scheme: "http", Host: "h.example:9000", Path: "/b/k é", RawPath: s3utils.EncodePath("/b/k é")}
			r := &http.Request{Method: "PUT", URL: u, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(data)), ContentLength: int64(size)}
			trailer := http.Header{"X-Amz-Checksum-Crc32": {"AAAAAA=="}}
			switch form {
			case "signed trailer":
				r.Trailer = trailer
				fallthrough
			case "signed":
				r = signer.StreamingSignV4(r, accessKey, secret, token, region, int64(size), time.Now().UTC(), hasher{sha256.New()})
			case "unsigned trailer":
				r.Header.Set("X-Amz-Content-Sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
				r = signer.SignV4Trailer(*r, accessKey, secret, token, region, trailer)
				r.Trailer = nil // minio-go's transport does not see it either: the trailer is within the body
			}
			raw := wire(t, r)
			read := func(raw []byte) ([]byte, http.Header, error) {
				got, err := receive(raw)
				if err != nil {
					return nil, nil, err
				}
				res, err := verifier(token).Verify(got)
				if err != nil {
					return nil, nil, err
				}
				body, err := chunked.Open(got, res, sha256.New)
				if err != nil {
					return nil, nil, err
				}
				b, err := io.ReadAll(body)
				return b, body.Trailer(), err
			}
			b, tr, err := read(raw)
			if err != nil || !bytes.Equal(b, data) {
				t.Fatalf("%s, %d bytes: got %d, %v", form, size, len(b), err)
			}
			if form != "signed" && tr.Get("X-Amz-Checksum-Crc32") != "AAAAAA==" {
				t.Errorf("%s: trailer %v", form, tr)
			}
			if form == "unsigned trailer" || size == 0 {
				continue
			}
			at := bytes.LastIndex(raw, data[size-1:]) // any byte of the last chunk or of what follows
			raw[at] ^= 1
			if _, _, err := read(raw); err == nil {
				t.Errorf("%s, %d bytes: altered and accepted", form, size)
			}
		}
	}
}

// TestSignedPayload: a digest made by the client is the one that the body is held against.
func TestSignedPayload(t *testing.T) {
	sum := sha256.Sum256([]byte("hello"))
	for _, body := range []string{"hello", "hellO"} {
		r, err := http.NewRequest("PUT", "http://h.example/b/k", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
		got, err := receive(wire(t, signer.SignV4(*r, accessKey, secret, token, region)))
		if err != nil {
			t.Fatal(err)
		}
		res, err := verifier(token).Verify(got)
		if err != nil {
			t.Fatal(err)
		}
		b, err := chunked.Open(got, res, sha256.New)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(b); (err == nil) != (body == "hello") {
			t.Errorf("%q: %v", body, err)
		}
	}
}
