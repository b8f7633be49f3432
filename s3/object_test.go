package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coffer/object"
)

const helloMD5 = "5d41402abc4b2a76b9719d911017c592" // of "hello"

func TestPutGetHead(t *testing.T) {
	e := newEnv(t)
	a := e.ok("PUT", "/bkt/dir/k%20ey", hdr("Content-Type", "text/plain", "Cache-Control", "no-cache", "Content-Encoding", "aws-chunked,gzip",
		"x-amz-meta-Mtime", "12.5", "x-amz-meta-u", "\xc3\xbc", "x-amz-tagging", "a=b&c=d", "x-amz-storage-class", "STANDARD_IA", "x-amz-website-redirect-location", "/x"), "hello")
	a.header("ETag", `"`+helloMD5+`"`, "x-amz-server-side-encryption", "AES256", "x-amz-checksum-crc64nvme", checksumOf("CRC64NVME", "hello"), "x-amz-checksum-type", "FULL_OBJECT")
	if a.body != "" {
		t.Errorf("body %q", a.body)
	}
	for _, method := range []string{"GET", "HEAD"} {
		a := e.ok(method, "/bkt/dir/k%20ey", nil, "")
		a.header("ETag", `"`+helloMD5+`"`, "Content-Type", "text/plain", "Content-Length", "5", "Cache-Control", "no-cache", "Content-Encoding", "gzip",
			"x-amz-meta-mtime", "12.5", "x-amz-meta-u", "\xc3\xbc", "x-amz-tagging-count", "2", "x-amz-storage-class", "STANDARD_IA", "Accept-Ranges", "bytes",
			"Last-Modified", "Sun, 01 Mar 2026 12:30:45 GMT", "x-amz-server-side-encryption", "AES256", "x-amz-checksum-crc64nvme", "", "x-amz-website-redirect-location", "/x")
		if want := map[string]string{"GET": "hello"}[method]; a.body != want {
			t.Errorf("%s: %q", method, a.body)
		}
		e.ok(method, "/bkt/dir/k%20ey", hdr("x-amz-checksum-mode", "ENABLED"), "").header("x-amz-checksum-crc64nvme", checksumOf("CRC64NVME", "hello"), "x-amz-checksum-type", "FULL_OBJECT")
	}
	e.ok("PUT", "/bkt/empty", nil, "").header("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
	e.ok("GET", "/bkt/empty", nil, "").header("Content-Length", "0", "Content-Type", "binary/octet-stream")
	e.ok("DELETE", "/bkt/empty", nil, "")
	e.ok("DELETE", "/bkt/empty", nil, "")
	e.refused("GET", "/bkt/empty", nil, "", "404 NoSuchKey")
	e.refused("GET", "/none/empty", nil, "", "404 NoSuchBucket")
	e.refused("PUT", "/none/empty", nil, "x", "404 NoSuchBucket")
	e.refused("HEAD", "/bkt/empty", nil, "", "404")
}

func TestKeysSurvive(t *testing.T) {
	e := newEnv(t)
	keys := []string{"/", "//", "a//b", "../x", "./.", "a%2Fb", "a+b c", "ü/€", "\x01\x7f", "a?b#c", "\U0001F512", "x\r\ny", `"'<>&`, strings.Repeat("k", 1024)}
	for _, k := range keys {
		p := awsPath("/bkt/" + k)
		e.ok("PUT", p, nil, k)
		if a := e.ok("GET", p, nil, ""); a.body != k {
			t.Errorf("%q: %q", k, a.body)
		}
	}
	var doc struct{ Contents []struct{ Key string } }
	e.ok("GET", "/bkt?list-type=2&encoding-type=url", nil, "").decode(&doc)
	if len(doc.Contents) != len(keys) {
		t.Errorf("%d keys listed, want %d", len(doc.Contents), len(keys))
	}
	a := e.ok("GET", "/bkt?list-type=2&prefix=%01", nil, "")
	if !strings.Contains(a.body, "<Key>&#x1;\x7f</Key>") {
		t.Errorf("key without encoding-type: %s", a.body)
	}
}

func TestRanges(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", nil, "0123456789")
	e.ok("PUT", "/bkt/empty", nil, "")
	for _, tc := range []struct{ rng, body, content string }{
		{"bytes=0-3", "0123", "bytes 0-3/10"}, {"bytes=8-", "89", "bytes 8-9/10"}, {"bytes=-3", "789", "bytes 7-9/10"}, {"bytes=-30", "0123456789", "bytes 0-9/10"},
		{"bytes=5-500", "56789", "bytes 5-9/10"}, {"bytes=0-9", "0123456789", "bytes 0-9/10"},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			a := e.ok(method, "/bkt/k", hdr("Range", tc.rng, "x-amz-checksum-mode", "ENABLED"), "")
			a.mustBe("206")
			a.header("Content-Range", tc.content, "Content-Length", fmt.Sprint(len(tc.body)))
			if method == "GET" && a.body != tc.body {
				t.Errorf("%s: %q", tc.rng, a.body)
			}
			if sum := a.Header.Get("x-amz-checksum-crc64nvme"); (sum != "") != (len(tc.body) == 10) {
				t.Errorf("%s: checksum %q", tc.rng, sum)
			}
		}
	}
	for _, rng := range []string{"bytes=0-1,3-4", "items=0-1", "bytes=5-3", "bytes=x"} {
		a := e.ok("GET", "/bkt/k", hdr("Range", rng), "")
		if a.mustBe("200"); a.body != "0123456789" {
			t.Errorf("%s: %q", rng, a.body)
		}
	}
	a := e.refused("GET", "/bkt/k", hdr("Range", "bytes=10-"), "", "416 InvalidRange")
	a.header("Content-Range", "bytes */10")
	golden(t, "error-range", a.body)
	e.refused("HEAD", "/bkt/k", hdr("Range", "bytes=10-"), "", "416")
	e.refused("GET", "/bkt/k", hdr("Range", "bytes=-0"), "", "416 InvalidRange")
	e.refused("GET", "/bkt/empty", hdr("Range", "bytes=0-"), "", "416 InvalidRange")
	// Preconditions are decided before the range (RFC 9110 section 13.2.2).
	e.do("GET", "/bkt/k", hdr("Range", "bytes=10-", "If-None-Match", "*"), "").mustBe("304")
	etag := e.ok("HEAD", "/bkt/k", nil, "").Header.Get("ETag")
	e.do("GET", "/bkt/k", hdr("Range", "bytes=0-1", "If-Range", etag), "").mustBe("206")
	e.do("GET", "/bkt/k", hdr("Range", "bytes=0-1", "If-Range", `"other"`), "").mustBe("200")
	e.do("GET", "/bkt/k", hdr("Range", "bytes=0-1", "If-Range", testTime.Format(http.TimeFormat)), "").mustBe("206")
	e.do("HEAD", "/bkt/k", hdr("Range", "bytes=0-1", "If-Range", testTime.Add(time.Hour).Format(http.TimeFormat)), "").mustBe("200")

	e.do("GET", "/bkt/k?partNumber=1", nil, "").mustBe("206")
	e.do("GET", "/bkt/empty?partNumber=1", nil, "").mustBe("200")
	golden(t, "error-part", e.refused("GET", "/bkt/k?partNumber=2", nil, "", "416 InvalidPartNumber").body)
	e.refused("HEAD", "/bkt/k?partNumber=2", nil, "", "416")
	e.refused("GET", "/bkt/k?partNumber=0", nil, "", "400 InvalidArgument")
	e.refused("GET", "/bkt/k?partNumber=1", hdr("Range", "bytes=0-1"), "", "400 InvalidRequest")
}

// hastyStore replaces an object between the two looks that a conditional range takes at it.
type hastyStore struct {
	*fakeStore
	replaced atomic.Bool
}

func (h *hastyStore) Head(ctx context.Context, bucket, key string, opt object.GetOptions) (object.Object, error) {
	o, err := h.fakeStore.Head(ctx, bucket, key, opt)
	if err == nil && h.replaced.CompareAndSwap(false, true) {
		_, err = h.Put(ctx, bucket, key, strings.NewReader("abcdefghij"), object.PutOptions{Size: 10})
	}
	return o, err
}

func TestIfRangeOfReplacedObject(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.Store = &hastyStore{fakeStore: o.Store.(*fakeStore)} })
	etag := e.ok("PUT", "/bkt/k", nil, "0123456789").Header.Get("ETag")
	a := e.do("GET", "/bkt/k", hdr("Range", "bytes=5-", "If-Range", etag), "")
	if a.mustBe("200"); a.body != "abcdefghij" {
		t.Errorf("%q", a.body)
	}
}

func TestReadConditions(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", hdr("Cache-Control", "max-age=1"), "hello")
	etag := `"` + helloMD5 + `"`
	for _, method := range []string{"GET", "HEAD"} {
		a := e.do(method, "/bkt/k", hdr("If-None-Match", etag), "")
		a.mustBe("304")
		a.header("ETag", etag, "Last-Modified", testTime.Format(http.TimeFormat), "Cache-Control", "max-age=1", "Content-Type", "")
		e.do(method, "/bkt/k", hdr("If-Match", etag), "").mustBe("200")
	}
	e.refused("HEAD", "/bkt/k", hdr("If-Match", "x"), "", "412")
	golden(t, "error-condition", e.refused("GET", "/bkt/k", hdr("If-Match", "x"), "", "412 PreconditionFailed").body)
}

func TestResponseOverrides(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", hdr("Content-Type", "text/plain"), "x")
	e.ok("GET", "/bkt/k?response-content-type=a%2Fb&response-content-disposition=attachment&response-expires=never&response-cache-control=no&response-content-language=de&response-content-encoding=br", nil, "").
		header("Content-Type", "a/b", "Content-Disposition", "attachment", "Expires", "never", "Cache-Control", "no", "Content-Language", "de", "Content-Encoding", "br")
	e.refused("GET", "/bkt/k?response-content-type=a%0d%0ax:y", nil, "", "400 InvalidArgument")

	open := newEnv(t, func(o *Options) { o.Authorizer = allowAll{} })
	open.ok("PUT", "/bkt/k", nil, "x")
	open.send(open.unsigned("GET", "/bkt/k", nil, nil)).mustBe("200")
	open.send(open.unsigned("GET", "/bkt/k?response-content-type=a", nil, nil)).mustBe("400 InvalidRequest")
}

func TestWriteConditions(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", hdr("If-None-Match", "*"), "hello")
	golden(t, "error-exists", e.refused("PUT", "/bkt/k", hdr("If-None-Match", "*"), "other", "412 PreconditionFailed").body)
	e.refused("PUT", "/bkt/k", hdr("If-None-Match", `"x"`), "other", "501 NotImplemented")
	e.refused("PUT", "/bkt/k", hdr("If-Match", `"x"`), "other", "412 PreconditionFailed")
	e.refused("PUT", "/bkt/none", hdr("If-Match", `"x"`), "other", "404 NoSuchKey")
	e.refused("PUT", "/bkt/k", hdr("If-Unmodified-Since", testTime.Format(http.TimeFormat)), "other", "501 NotImplemented")
	if a := e.ok("GET", "/bkt/k", nil, ""); a.body != "hello" {
		t.Errorf("a refused write changed the object: %q", a.body)
	}
	e.ok("PUT", "/bkt/k", hdr("If-Match", `"`+helloMD5+`"`), "other")
	e.refused("DELETE", "/bkt/k", hdr("If-Match", `"x"`), "", "412 PreconditionFailed")
	for _, h := range []http.Header{{"If-Match": {""}}, {"If-None-Match": {""}}, {"If-Match": {"", "*"}}, {"If-None-Match": {"", "*"}}, {"If-Modified-Since": {""}}} {
		for _, method := range []string{"PUT", "DELETE"} { // as of a client whose variable was empty
			if a := e.do(method, "/bkt/k", h.Clone(), "other"); a.StatusCode/100 == 2 {
				t.Errorf("%s with %v: %d", method, h, a.StatusCode)
			}
		}
	}
	e.refused("DELETE", "/bkt/k", hdr("x-amz-if-match-size", "1"), "", "501 NotImplemented")
	for _, key := range []string{"k", "none"} {
		e.refused("DELETE", "/bkt/"+key, hdr("If-None-Match", "*"), "", "501 NotImplemented")
	}
	e.ok("DELETE", "/bkt/none", nil, "")
	for _, etag := range []string{"*", `"x"`} {
		e.refused("DELETE", "/bkt/none", hdr("If-Match", etag), "", "404 NoSuchKey")
	}
	e.ok("DELETE", "/bkt/k", hdr("If-Match", "*"), "")
}

func TestDigests(t *testing.T) {
	e := newEnv(t)
	sum := md5.Sum([]byte("hello"))
	good := base64.StdEncoding.EncodeToString(sum[:])
	e.ok("PUT", "/bkt/k", hdr("Content-MD5", good), "hello")
	e.refused("PUT", "/bkt/bad", hdr("Content-MD5", good), "hellO", "400 BadDigest")
	e.refused("PUT", "/bkt/bad", hdr("Content-MD5", "x"), "hello", "400 InvalidDigest")
	for _, alg := range algorithms {
		sum := checksumOf(alg.name, "hello")
		e.ok("PUT", "/bkt/k", hdr(alg.header, sum, "x-amz-sdk-checksum-algorithm", alg.name), "hello").header(alg.header, sum, "x-amz-checksum-type", "FULL_OBJECT")
		e.ok("GET", "/bkt/k", hdr("x-amz-checksum-mode", "enabled"), "").header(alg.header, sum)
		e.refused("PUT", "/bkt/bad", hdr(alg.header, sum), "hellO", "400 BadDigest")
		e.refused("PUT", "/bkt/bad", hdr(alg.header, sum+"-1"), "hello", "400 InvalidRequest") // composite, which only a completion may be
	}
	sha := sums([]byte("hello"), object.AlgoSHA256).Checksum.Sum
	e.ok("PUT", "/bkt/k", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "hello")
	mismatch := e.refused("PUT", "/bkt/bad", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "hellO", "400 XAmzContentSHA256Mismatch").body
	for element, of := range map[string]string{"ClientComputedContentSHA256": "hello", "S3ComputedContentSHA256": "hellO"} {
		want := fmt.Sprintf("<%s>%x</%[1]s>", element, sums([]byte(of), object.AlgoSHA256).Checksum.Sum)
		if !strings.Contains(mismatch, want) {
			t.Errorf("no %s in %s", want, mismatch)
		}
	}
	e.refused("PUT", "/bkt/bad", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "", "400 XAmzContentSHA256Mismatch")
	e.refused("GET", "/bkt/bad", nil, "", "404 NoSuchKey")

	// Where no body is meant, what was signed of it holds all the same.
	e.refused("DELETE", "/bkt/k", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "", "400 XAmzContentSHA256Mismatch")
	e.refused("DELETE", "/bkt/k", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "hellO", "400 XAmzContentSHA256Mismatch")
	e.refused("POST", "/bkt/k?uploads", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "hellO", "400 XAmzContentSHA256Mismatch")
	e.ok("DELETE", "/bkt/k", hdr("x-amz-content-sha256", hex.EncodeToString(sha)), "hello")

	// A field in two lines is one: no line goes unseen.
	e.refused("PUT", "/bkt/bad", http.Header{"Content-Md5": {good, "AAAAAAAAAAAAAAAAAAAAAA=="}}, "hello", "400 InvalidDigest")
	e.refused("PUT", "/bkt/bad", http.Header{"X-Amz-Server-Side-Encryption": {"AES256", "aws:kms"}}, "hello", "400 InvalidArgument")
}

// chunked frames a body as STREAMING-UNSIGNED-PAYLOAD-TRAILER does.
func chunkedBody(body, trailer string) (http.Header, string) {
	h := hdr("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "Content-Encoding", "aws-chunked", "x-amz-decoded-content-length", fmt.Sprint(len(body)))
	var b strings.Builder
	for rest := body; len(rest) > 0; {
		n := min(len(rest), 8192)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\n")
	if trailer != "" {
		name, _, _ := strings.Cut(trailer, ":")
		h.Set("x-amz-trailer", name)
		b.WriteString(trailer + "\r\n")
	}
	b.WriteString("\r\n")
	return h, b.String()
}

func TestTrailers(t *testing.T) {
	e := newEnv(t)
	data := strings.Repeat("0123456789abcdef", 2000)
	for _, body := range []string{"", "hello", data} {
		for _, alg := range algorithms {
			h, framed := chunkedBody(body, alg.header+":"+checksumOf(alg.name, body))
			e.ok("PUT", "/bkt/k", h, framed).header(alg.header, checksumOf(alg.name, body))
			a := e.ok("GET", "/bkt/k", nil, "")
			a.header("Content-Encoding", "", "Content-Length", fmt.Sprint(len(body)))
			if a.body != body {
				t.Errorf("%s: %d bytes", alg.name, len(a.body))
			}
		}
	}
	refused := func(code string, change func(http.Header, string) string) {
		t.Helper()
		h, framed := chunkedBody(data, "x-amz-checksum-crc32:"+checksumOf("CRC32", data))
		framed = change(h, framed)
		e.refused("PUT", "/bkt/bad", h, framed, code)
		e.refused("HEAD", "/bkt/bad", nil, "", "404")
	}
	refused("400 BadDigest", func(_ http.Header, s string) string { return strings.Replace(s, "0123", "0124", 1) })
	refused("400 InvalidRequest", func(_ http.Header, s string) string { return strings.Replace(s, checksumOf("CRC32", data), "AAAA", 1) })
	refused("400 MalformedTrailerError", func(_ http.Header, s string) string {
		return strings.Replace(s, "x-amz-checksum-crc32:"+checksumOf("CRC32", data)+"\r\n", "", 1)
	})
	refused("400 IncompleteBody", func(_ http.Header, s string) string { return s[:len(s)/2] })
	refused("400 IncompleteBody", func(h http.Header, s string) string {
		h.Set("x-amz-decoded-content-length", fmt.Sprint(len(data)+1))
		return s
	})
	refused("400 InvalidRequest", func(h http.Header, s string) string { // in two lines
		h["X-Amz-Trailer"] = append(h["X-Amz-Trailer"], "x-amz-checksum-sha256")
		return strings.TrimSuffix(s, "\r\n") + "x-amz-checksum-sha256:" + checksumOf("SHA256", "WRONG") + "\r\n\r\n"
	})
	refused("411 MissingContentLength", func(h http.Header, s string) string {
		h.Del("x-amz-decoded-content-length")
		return s
	})
}

// TestTrailerAnswers: what is wrong with a body in chunks and its trailer, and what AWS answers. A trailer need not be announced; what was
// not announced must not come.
func TestTrailerAnswers(t *testing.T) {
	e := newEnv(t)
	const crc = "x-amz-checksum-crc64nvme"
	for _, tt := range []struct {
		trailer, size, framed string
		more                  http.Header
		want                  string
	}{
		{"", "11", "B\r\nhello world\r\n0\r\n\r\n", nil, "200"},
		{"", "5", "5\r\nhello\r\n0\r\n\r\n", hdr("x-amz-checksum-crc32", "NhCmhg=="), "200"},
		{crc, "5", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", nil, "200"},

		{crc, "5", "5\r\nhello\r\n0\r\n\r\n", nil, "400 MalformedTrailerError"},
		{crc, "5", "5\r\nhello\r\n0\r\n:M3eFcAZSQlc=\r\n\r\n", nil, "400 MalformedTrailerError"},
		{"", "5", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", nil, "400 MalformedTrailerError"},
		{crc, "5", "5\r\nhello\r\n0\r\ninvalid_trailer:M3eFcAZSQlc=\r\n\r\n", nil, "400 MalformedTrailerError"},

		{crc, "", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", nil, "411 MissingContentLength"},
		{crc, "12x", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", nil, "411 MissingContentLength"},

		{crc, "5", "5\r\nhello\r\n0\r\n" + crc + ":nonsense\r\n\r\n", nil, "400 InvalidRequest"},
		{crc, "5", "5\r\nhello\r\n0\r\n" + crc + ":QFRKMGE3tuw=\r\n\r\n", nil, "400 BadDigest"},
		{crc, "5", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", hdr("x-amz-checksum-crc32", "NhCmhg=="), "400 InvalidRequest"},
		{crc, "5", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", hdr(crc, "M3eFcAZSQlc="), "400 InvalidRequest"},
		{crc, "5", "5\r\nhello\r\n0\r\n" + crc + ":M3eFcAZSQlc=\r\n\r\n", hdr("x-amz-sdk-checksum-algorithm", "SHA1"), "400 InvalidRequest"},

		{crc, "10", "A\ndummy data\r\n0\r\n\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "A\r\ndummy data0\r\n\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "A\r\nXYZ\r\ndummy data\r\n0\r\n\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "B\r\ndummy data\r\n0\r\n\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "A\r\ndummy data\r\n0\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "A\r\ndummy data\r\n0\r\n" + crc + ":dPVWc2vU1+Q=\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "A\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "nonsense\r\ndummy data\r\n0\r\n" + crc + ":dPVWc2vU1+Q=\r\n\r\n", nil, "400 IncompleteBody"},
		{crc, "10", "A\r\ndummy data\r\nJ\r\n" + crc + ":dPVWc2vU1+Q=\r\n\r\n", nil, "400 IncompleteBody"},
	} {
		h := hdr("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "Content-Encoding", "aws-chunked")
		for name, v := range map[string]string{"x-amz-decoded-content-length": tt.size, "x-amz-trailer": tt.trailer} {
			if v != "" {
				h.Set(name, v)
			}
		}
		maps.Copy(h, tt.more)
		t.Run(fmt.Sprintf("%s %q", tt.size, tt.framed), func(t *testing.T) {
			e.t = t
			if tt.want != "200" {
				e.refused("PUT", "/bkt/bad", h, tt.framed, tt.want)
				e.refused("HEAD", "/bkt/bad", nil, "", "404")
				return
			}
			e.ok("PUT", "/bkt/k", h, tt.framed)
			if a := e.ok("GET", "/bkt/k", nil, ""); fmt.Sprint(len(a.body)) != tt.size {
				t.Errorf("%q came back", a.body)
			}
		})
	}
}

// The final chunk of a signed stream is verified, also behind a body of no byte, of which a store reads nothing.
func TestFinalChunk(t *testing.T) {
	e := newEnv(t)
	empty := hex.EncodeToString(sums(nil, object.AlgoSHA256).Checksum.Sum)
	for _, good := range []bool{true, false} {
		h := hdr("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x-amz-decoded-content-length", "0")
		r := e.unsigned("PUT", "/bkt/k", h, nil)
		now := time.Now().UTC()
		seed := sign(r, testKey, testSecret, DefaultRegion, now)
		date := now.Format("20060102T150405Z")
		scope := date[:8] + "/" + DefaultRegion + "/s3/aws4_request"
		text := strings.Join([]string{"AWS4-HMAC-SHA256-PAYLOAD", date, scope, seed, empty, empty}, "\n")
		sig := hex.EncodeToString(hmacSHA(signingKey(testSecret, date[:8], DefaultRegion), text))
		want := "200"
		if !good {
			sig, want = strings.Repeat("0", len(sig)), "403 SignatureDoesNotMatch"
		}
		framed := "0;chunk-signature=" + sig + "\r\n\r\n"
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(framed)), int64(len(framed))
		e.send(r).mustBe(want)
	}
}

func TestSizes(t *testing.T) {
	e := newEnv(t)
	r := e.request("PUT", "/bkt/k", nil, struct{ *strings.Reader }{strings.NewReader("hello")})
	r.ContentLength = -1 // Transfer-Encoding: chunked
	e.send(r).mustBe("411 MissingContentLength")

	h, _ := chunkedBody("x", "")
	h.Set("x-amz-decoded-content-length", fmt.Sprint(object.MaxPutSize+1))
	golden(t, "error-large", e.refused("PUT", "/bkt/k", h, "x", "400 EntityTooLarge").body)
	e.refused("PUT", "/bkt/k?uploadId=x&partNumber=1", h, "x", "400 EntityTooLarge")
	golden(t, "error-key", e.refused("PUT", "/bkt/"+strings.Repeat("k", 1025), nil, "x", "400 KeyTooLongError").body)
	golden(t, "error-meta", e.refused("PUT", "/bkt/k", hdr("x-amz-meta-a", strings.Repeat("x", 3000)), "x", "400 MetadataTooLarge").body)
}

func TestHeadersRefused(t *testing.T) {
	e := newEnv(t)
	for _, tc := range []struct{ name, value, code string }{
		{"x-amz-acl", "public-read", "400 AccessControlListNotSupported"},
		{"x-amz-grant-read", "id=1", "400 AccessControlListNotSupported"},
		{"x-amz-storage-class", "FAST", "400 InvalidStorageClass"},
		{"x-amz-tagging", "a=1&a=2", "400 InvalidArgument"},
		{"x-amz-object-lock-mode", "GOVERNANCE", "400 InvalidRequest"},
		{"x-amz-server-side-encryption", "aws:kms", "501 NotImplemented"},
		{"x-amz-write-offset-bytes", "5", "501 NotImplemented"},
		{"x-amz-expected-bucket-owner", "123456789012", "403 AccessDenied"},
	} {
		e.refused("PUT", "/bkt/k", hdr(tc.name, tc.value), "x", tc.code)
	}
	e.ok("PUT", "/bkt/k", hdr("x-amz-acl", "bucket-owner-full-control", "x-amz-expected-bucket-owner", ownerOf(testKey).ID), "x")
	e.refused("PUT", "/bkt/k?versionId=null", nil, "x", "400 InvalidArgument")
	e.refused("GET", "/bkt/k?versionId=", nil, "", "400 InvalidArgument")
	e.refused("GET", "/bkt/k?versionId=abc", nil, "", "404 NoSuchVersion")
	e.ok("GET", "/bkt/k?versionId=null", nil, "")
	e.refused("GET", "/bkt/k", hdr("x-amz-server-side-encryption", "AES256"), "", "400 InvalidArgument")
	e.refused("PUT", "/bkt/k?acl", hdr("x-amz-acl", "private"), "", "501 NotImplemented")
	if a := e.ok("GET", "/bkt/k", nil, ""); a.body != "x" {
		t.Errorf("PUT ?acl changed the object to %q", a.body)
	}
}

func TestCustomerKeys(t *testing.T) {
	e := newEnv(t)
	right := sseHeaders(headerTargetCustomer, bytes.Repeat([]byte("r"), 32))
	wrong := sseHeaders(headerTargetCustomer, bytes.Repeat([]byte("w"), 32))
	a := e.ok("PUT", "/bkt/k", hdr(right...), "secret")
	a.header("x-amz-server-side-encryption-customer-algorithm", "AES256", "x-amz-server-side-encryption-customer-key-MD5", right[5], "x-amz-server-side-encryption", "", "x-amz-server-side-encryption-customer-key", "")
	e.ok("PUT", "/bkt/plain", nil, "x")
	for _, method := range []string{"GET", "HEAD"} {
		e.ok(method, "/bkt/k", hdr(right...), "").header("x-amz-server-side-encryption-customer-algorithm", "AES256", "x-amz-server-side-encryption-customer-key-MD5", right[5])
		for _, tc := range []struct {
			path         string
			h            []string
			status, code string
		}{
			{"/bkt/k", nil, "400", " InvalidRequest"},
			{"/bkt/k", wrong, "403", " AccessDenied"},
			{"/bkt/plain", right, "400", " InvalidRequest"},
		} {
			if method == "HEAD" {
				tc.code = ""
			}
			e.refused(method, tc.path, hdr(tc.h...), "", tc.status+tc.code)
		}
	}
	source := sseHeaders(headerCopyCustomer, bytes.Repeat([]byte("r"), 32))
	from := []string{"x-amz-copy-source", "/bkt/k"}
	e.refused("PUT", "/bkt/c", hdr(from...), "", "400 InvalidRequest")
	e.refused("PUT", "/bkt/c", hdr(append(sseHeaders(headerCopyCustomer, bytes.Repeat([]byte("w"), 32)), from...)...), "", "403 AccessDenied")
	e.ok("PUT", "/bkt/c", hdr(append(source, from...)...), "").header("x-amz-server-side-encryption", "AES256")
	e.ok("GET", "/bkt/c", nil, "")
	e.ok("PUT", "/bkt/k", hdr(append(append(source, wrong...), from...)...), "") // a new key for the same object
	e.ok("GET", "/bkt/k", hdr(wrong...), "")
	e.ok("GET", "/bkt/k?acl", nil, "")

	newEnv(t, func(o *Options) { o.Store, o.WrongCustomerKeyStatus = e.store, 400 }).refused("GET", "/bkt/k", hdr(right...), "", "400 InvalidArgument")
	plain := newPlainEnv(t)
	plain.refused("PUT", "/bkt/k", hdr(right...), "secret", "400 InvalidRequest")
	plain.refused("GET", "/bkt/k", hdr(right...), "", "400 InvalidRequest")
}

func TestCopy(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/src%2Bé", hdr("Content-Type", "text/plain", "x-amz-meta-a", "1", "x-amz-tagging", "t=1", "x-amz-storage-class", "STANDARD_IA"), "hello")
	src := "bkt/src%2B%C3%A9"
	golden(t, "copy", e.ok("PUT", "/bkt/c", hdr("x-amz-copy-source", src), "").body)
	e.ok("GET", "/bkt/c", nil, "").header("Content-Type", "text/plain", "x-amz-meta-a", "1", "x-amz-tagging-count", "1", "x-amz-storage-class", "")
	e.ok("PUT", "/bkt/c", hdr("x-amz-copy-source", src, "x-amz-metadata-directive", "REPLACE", "x-amz-meta-b", "2", "Content-Type", "a/b", "x-amz-tagging-directive", "REPLACE", "x-amz-checksum-algorithm", "SHA1"), "")
	e.ok("GET", "/bkt/c", hdr("x-amz-checksum-mode", "ENABLED"), "").header("Content-Type", "a/b", "x-amz-meta-a", "", "x-amz-meta-b", "2", "x-amz-tagging-count", "", "x-amz-checksum-sha1", checksumOf("SHA1", "hello"))

	for _, tc := range []struct {
		code string
		h    []string
	}{
		{"400 InvalidRequest", []string{"x-amz-copy-source", "bkt/c"}},
		{"400 InvalidArgument", []string{"x-amz-copy-source", src, "x-amz-metadata-directive", "MOVE"}},
		{"400 InvalidArgument", []string{"x-amz-copy-source", "bkt"}},
		{"404 NoSuchKey", []string{"x-amz-copy-source", "bkt/none"}},
		{"404 NoSuchBucket", []string{"x-amz-copy-source", "none/k"}},
		{"404 NoSuchVersion", []string{"x-amz-copy-source", src + "?versionId=3"}},
		{"400 InvalidArgument", []string{"x-amz-copy-source", src, "x-amz-copy-source-range", "bytes=0-1"}},
		{"400 InvalidArgument", []string{"x-amz-copy-source-range", "bytes=0-1"}},
		{"400 InvalidArgument", []string{"x-amz-copy-source-if-match", helloMD5}},
		{"412 PreconditionFailed", []string{"x-amz-copy-source", src, "x-amz-copy-source-if-match", "x"}},
		{"412 PreconditionFailed", []string{"x-amz-copy-source", src, "x-amz-copy-source-if-none-match", helloMD5}},
		{"412 PreconditionFailed", []string{"x-amz-copy-source", src, "If-None-Match", "*"}},
		{"403 AccessDenied", []string{"x-amz-copy-source", src, "x-amz-source-expected-bucket-owner", "1"}},
	} {
		e.refused("PUT", "/bkt/c", hdr(tc.h...), "", tc.code)
	}
	e.ok("PUT", "/bkt/c", hdr("x-amz-copy-source", "bkt/c", "x-amz-metadata-directive", "REPLACE"), "")
	e.ok("PUT", "/bkt/c", hdr("x-amz-copy-source", "/bkt/c?versionId=null", "x-amz-storage-class", "GLACIER_IR"), "")
	golden(t, "error-copy-source", e.refused("PUT", "/bkt/c", hdr("x-amz-copy-source", "bkt/none"), "", "404 NoSuchKey").body)
	if a := e.refused("PUT", "/bkt/new", hdr("x-amz-copy-source", src, "If-Match", "x"), "", "404 NoSuchKey"); !strings.Contains(a.body, "<Key>new</Key>") {
		t.Errorf("blames the source: %s", a.body)
	}
	for bucket, target := range map[string]string{"none": "/bkt/c", "nowhere": "/none/c"} { // the source is looked for first
		for _, more := range [][]string{nil, {"x-amz-source-expected-bucket-owner", "1"}} {
			a := e.refused("PUT", target, hdr(append(more, "x-amz-copy-source", bucket+"/k")...), "", "404 NoSuchBucket")
			if !strings.Contains(a.body, "<BucketName>"+bucket+"</BucketName>") {
				t.Errorf("%s to %s: %s", bucket, target, a.body)
			}
		}
	}
	big := &e.store.buckets["bkt"].objects["src+é"].Size
	if *big = object.MaxPutSize + 1; e.do("HEAD", "/"+src, nil, "").ContentLength != *big {
		t.Error("the source is not large")
	}
	e.refused("PUT", "/bkt/c", hdr("x-amz-copy-source", src), "", "400 InvalidRequest")
	*big = object.MaxPutSize
	e.ok("PUT", "/bkt/c", hdr("x-amz-copy-source", src), "")
	*big = 5

	a := e.refused("PUT", "/none/c", hdr("x-amz-copy-source", "bkt/c"), "", "404 NoSuchBucket")
	if !strings.Contains(a.body, "<BucketName>none</BucketName>") {
		t.Errorf("missing target: %s", a.body)
	}
}

func TestTagging(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", hdr("x-amz-tagging", "b=2%2B&a=%C3%BC+1"), "x")
	golden(t, "tagging", e.ok("GET", "/bkt/k?tagging", nil, "").body)
	e.refused("PUT", "/bkt/k?tagging", nil, "<Tagging/>", "501 NotImplemented")
	for _, tags := range []string{"a=%00", "a=%26", "%3Ca=b", "a=b%0A", "a=%2B%2A"} {
		e.refused("PUT", "/bkt/k", hdr("x-amz-tagging", tags), "x", "400 InvalidTag")
	}
	e.ok("PUT", "/bkt/k", hdr("x-amz-tagging", "A1%20%2B-=%3D._:/@"), "x")

	// The tags of an object are there without its customer key: the call has no header for one.
	h := hdr(append(sseHeaders(headerTargetCustomer, bytes.Repeat([]byte("k"), 32)), "x-amz-tagging", "b=2%2B&a=%C3%BC+1")...)
	e.ok("PUT", "/bkt/c", h, "x")
	golden(t, "tagging", e.ok("GET", "/bkt/c?tagging", nil, "").body)
}
