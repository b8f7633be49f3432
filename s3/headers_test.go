package s3

import (
	"crypto/md5"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"coffer/object"
)

// codeOf is an API error's code, "" for nil.
func codeOf(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*apiError](err)
	if !ok {
		t.Fatalf("not an API error: %v", err)
	}
	return e.code
}

func TestParseRange(t *testing.T) {
	for in, want := range map[string]*object.Range{
		"bytes=0-0": {First: 0, Last: 0}, "bytes=5-9": {First: 5, Last: 9}, "bytes=5-": {First: 5, Last: -1}, "bytes=-5": {First: -1, Last: 5}, "bytes=-0": {First: -1, Last: 0},
		"bytes=0-99999999999999999999": {First: 0, Last: math.MaxInt64}, " bytes=1-2 ": {First: 1, Last: 2},
		"": nil, "bytes": nil, "bytes=": nil, "bytes=-": nil, "bytes=a-b": nil, "bytes=9-5": nil, "bytes=0-1,3-4": nil, "items=0-1": nil,
		"bytes=+1-2": nil, "bytes=1-+2": nil, "bytes=--1": nil, "bytes=1": nil,
	} {
		if d := cmp.Diff(want, parseRange(in)); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
	for _, tc := range []struct {
		r            object.Range
		size, off, n int64
		ok           bool
	}{
		{object.Range{First: 0, Last: -1}, 10, 0, 10, true},
		{object.Range{First: 0, Last: -1}, 0, 0, 0, false},
		{object.Range{First: -1, Last: 3}, 10, 7, 3, true},
		{object.Range{First: -1, Last: 30}, 10, 0, 10, true},
		{object.Range{First: -1, Last: 0}, 10, 10, 0, false},
		{object.Range{First: -1, Last: 3}, 0, 0, 0, false},
		{object.Range{First: 9, Last: math.MaxInt64}, 10, 9, 1, true},
		{object.Range{First: 10, Last: 10}, 10, 0, 0, false},
	} {
		off, n, ok := resolveRange(tc.r, tc.size)
		if ok != tc.ok || ok && (off != tc.off || n != tc.n) {
			t.Errorf("%+v of %d: %d+%d %v", tc.r, tc.size, off, n, ok)
		}
	}
}

func TestParseCopySource(t *testing.T) {
	for in, want := range map[string]string{
		"/bucket/key":               "bucket|key|",
		"bucket/key":                "bucket|key|",
		"bucket/a%20b%2Bc%2Fd":      "bucket|a b+c/d|",
		"bucket/a+b":                "bucket|a b|",
		"bucket/key?versionId=null": "bucket|key|null",
		"bucket/wh%3Fy?versionId=3": "bucket|wh?y|3",
		"bucket//a/../b":            "bucket|/a/../b|",
		"":                          "InvalidArgument",
		"bucket":                    "InvalidArgument",
		"bucket/":                   "InvalidArgument",
		"/x/key":                    "InvalidArgument",
		"bucket/%zz":                "InvalidArgument",
		"bucket/%FF":                "InvalidArgument",
		"arn:aws:s3:us-east-1:1:accesspoint/p/object": "InvalidArgument",
		"bucket/" + strings.Repeat("k", 1025):         "KeyTooLongError",
	} {
		b, k, v, err := parseCopySource(in)
		got := b + "|" + k + "|" + v
		if err != nil {
			got = codeOf(t, err)
		}
		if got != want {
			t.Errorf("%.60q = %q, want %q", in, got, want)
		}
	}
	if _, err := parseCopyRange("bytes=0-"); codeOf(t, err) != "InvalidArgument" {
		t.Errorf("an open range: %v", err)
	}
	if r, err := parseCopyRange("bytes=3-5"); err != nil || *r != (object.Range{First: 3, Last: 5}) {
		t.Errorf("%v %v", r, err)
	}
}

func TestParseClaim(t *testing.T) {
	crc, sha := checksumOf("CRC32", "x"), checksumOf("SHA256", "x")
	sum := md5.Sum([]byte("x"))
	for name, tc := range map[string]struct {
		h    http.Header
		want string // name of the algorithm, "trailer:" name, or the error's code
	}{
		"none":             {hdr(), ""},
		"md5":              {hdr("Content-MD5", base64.StdEncoding.EncodeToString(sum[:])), "md5"},
		"short md5":        {hdr("Content-MD5", "YWJj"), "InvalidDigest"},
		"bad md5":          {hdr("Content-MD5", "???"), "InvalidDigest"},
		"empty md5":        {hdr("Content-MD5", ""), "InvalidDigest"},
		"crc32":            {hdr("x-amz-checksum-crc32", crc), "CRC32"},
		"with sdk":         {hdr("x-amz-checksum-crc32", crc, "x-amz-sdk-checksum-algorithm", "CRC32"), "CRC32"},
		"other sdk":        {hdr("x-amz-checksum-crc32", crc, "x-amz-sdk-checksum-algorithm", "SHA1"), "InvalidRequest"},
		"unknown sdk":      {hdr("x-amz-sdk-checksum-algorithm", "MD4"), "InvalidRequest"},
		"sdk alone":        {hdr("x-amz-sdk-checksum-algorithm", "CRC32"), "InvalidRequest"},
		"wrong length":     {hdr("x-amz-checksum-sha256", crc), "InvalidRequest"},
		"not base64":       {hdr("x-amz-checksum-crc32", "!!!!"), "InvalidRequest"},
		"two":              {hdr("x-amz-checksum-crc32", crc, "x-amz-checksum-sha256", sha), "InvalidRequest"},
		"twice":            {hdr("x-amz-checksum-crc32", crc, "x-amz-checksum-crc32", crc), "InvalidRequest"},
		"unknown":          {hdr("x-amz-checksum-md4", crc), "InvalidRequest"},
		"not a checksum":   {hdr("x-amz-checksum-mode", "ENABLED", "x-amz-checksum-type", "COMPOSITE", "x-amz-checksum-algorithm", "CRC32"), ""},
		"trailer":          {hdr("x-amz-trailer", "x-amz-checksum-crc64nvme"), "trailer:CRC64NVME"},
		"trailer and sum":  {hdr("x-amz-trailer", "x-amz-checksum-crc32", "x-amz-checksum-crc32", crc), "InvalidRequest"},
		"trailer of other": {hdr("x-amz-trailer", "x-amz-meta-a"), "InvalidRequest"},
	} {
		cl, err := parseClaim(tc.h)
		got := codeOf(t, err)
		if err == nil && cl.alg != nil {
			got = cl.alg.name
			if cl.trailer {
				got = "trailer:" + got
			}
		} else if cl.md5 != nil {
			got = "md5"
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q (%v)", name, got, tc.want, err)
		}
	}
}

func TestUploadChecksum(t *testing.T) {
	for in, want := range map[string]string{
		"|": "", "CRC32|": "COMPOSITE", "CRC32C|FULL_OBJECT": "FULL_OBJECT", "CRC64NVME|": "FULL_OBJECT", "SHA1|COMPOSITE": "COMPOSITE", "SHA256|": "COMPOSITE",
		"|COMPOSITE": "InvalidRequest", "CRC64NVME|COMPOSITE": "InvalidRequest", "SHA256|FULL_OBJECT": "InvalidRequest", "CRC32|SOME": "InvalidRequest", "MD4|": "InvalidRequest",
	} {
		algo, typ, _ := strings.Cut(in, "|")
		a, composite, err := uploadChecksum(hdr("x-amz-checksum-algorithm", algo, "x-amz-checksum-type", typ))
		got := codeOf(t, err)
		if err == nil {
			got = uploadType(a, composite)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestParseTagging(t *testing.T) {
	for in, want := range map[string]any{
		"":                              map[string]string(nil),
		"a=b&c=d%20e":                   map[string]string{"a": "b", "c": "d e"},
		"a":                             map[string]string{"a": ""},
		"a=1&a=2":                       "InvalidArgument",
		"a=%zz":                         "InvalidArgument",
		"a=%FF":                         "InvalidArgument",
		"=b":                            "InvalidTag",
		"aws:x=b":                       "InvalidTag",
		strings.Repeat("k", 129):        "InvalidTag",
		"a=" + strings.Repeat("v", 257): "InvalidTag",
		"a&b&c&d&e&f&g&h&i&j&k":         "BadRequest",
	} {
		tags, err := parseTagging(in)
		var got any = tags
		if err != nil {
			got = codeOf(t, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%.40q: %s", in, d)
		}
	}
}

func TestParseMeta(t *testing.T) {
	m, err := parseMeta(hdr("Content-Type", "text/plain", "Content-Encoding", "aws-chunked, gzip", "Cache-Control", "no-cache", "Expires", "never",
		"X-Amz-Meta-Up-Per", "Value", "X-Amz-Meta-Twice", "a", "X-Amz-Meta-Twice", "b", "x-amz-storage-class", "STANDARD_IA", "x-amz-acl", "private", "x-amz-tagging", "k=v"))
	if err != nil {
		t.Fatal(err)
	}
	want := object.Meta{ContentType: "text/plain", ContentEncoding: "gzip", CacheControl: "no-cache", Expires: "never", StorageClass: "STANDARD_IA",
		User: map[string]string{"up-per": "Value", "twice": "a,b"}, Tags: map[string]string{"k": "v"}}
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	for code, h := range map[string]http.Header{
		"MetadataTooLarge":              hdr("x-amz-meta-a", strings.Repeat("x", 2048)),
		"InvalidStorageClass":           hdr("x-amz-storage-class", "FAST"),
		"AccessControlListNotSupported": hdr("x-amz-acl", "public-read"),
		"InvalidRedirectLocation":       hdr("x-amz-website-redirect-location", "ftp://x"),
		"InvalidRequest":                hdr("x-amz-object-lock-mode", "GOVERNANCE"),
	} {
		if _, err := parseMeta(h); codeOf(t, err) != code {
			t.Errorf("%v, want %s", err, code)
		}
	}
	if _, err := parseMeta(hdr("x-amz-grant-read", "id=1")); codeOf(t, err) != "AccessControlListNotSupported" {
		t.Error(err)
	}
	if _, err := parseMeta(hdr("x-amz-meta-a", strings.Repeat("x", 2047))); err != nil {
		t.Error(err)
	}
}

// sseHeaders are the headers of a customer key under a prefix.
func sseHeaders(prefix string, key []byte) []string {
	sum := md5.Sum(key)
	return []string{prefix + "algorithm", "AES256", prefix + "key", base64.StdEncoding.EncodeToString(key), prefix + "key-MD5", base64.StdEncoding.EncodeToString(sum[:])}
}

func TestCustomerKeyRules(t *testing.T) {
	key := []byte(strings.Repeat("k", 32))
	full := func() http.Header { return hdr(sseHeaders(headerTargetCustomer, key)...) }
	drop := func(name string) http.Header {
		h := full()
		h.Del(headerTargetCustomer + name)
		return h
	}
	with := func(name, value string) http.Header {
		h := full()
		h.Set(name, value)
		return h
	}
	for _, tc := range []struct {
		name       string
		h          http.Header
		plain      bool
		code, text string
	}{
		{"complete", full(), false, "", ""},
		{"none", hdr(), true, "", ""},
		{"over http", full(), true, "InvalidRequest", "Requests specifying Server Side Encryption with Customer provided keys must be made over a secure connection."},
		{"no algorithm", drop("algorithm"), false, "InvalidArgument", "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm."},
		{"other algorithm", with(headerCustomerAlgo, "AES128"), false, "InvalidArgument", "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm."},
		{"no key", drop("key"), false, "InvalidArgument", "Requests specifying Server Side Encryption with Customer provided keys must provide an appropriate secret key."},
		{"no md5", drop("key-MD5"), false, "InvalidArgument", "Requests specifying Server Side Encryption with Customer provided keys must provide the client calculated MD5 of the secret key."},
		{"short key", with(headerCustomerKey, "YWJj"), false, "InvalidArgument", "The secret key was invalid for the specified algorithm."},
		{"key not base64", with(headerCustomerKey, "???"), false, "InvalidArgument", "The secret key was invalid for the specified algorithm."},
		{"other md5", with(headerCustomerMD5, "YWJj"), false, "InvalidArgument", "The calculated MD5 hash of the key did not match the hash that was provided."},
		{"with SSE-S3", with(headerSSE, "AES256"), false, "InvalidArgument", "Server Side Encryption with Customer provided key is incompatible with the encryption method specified"},
		{"with a KMS key", with(headerSSEKeyID, "k"), false, "InvalidArgument", "Server Side Encryption with Customer provided key is incompatible with the encryption method specified"},
		{"SSE-S3", hdr(headerSSE, "AES256"), true, "", ""},
		{"unknown method", hdr(headerSSE, "ROT13"), true, "InvalidArgument", "The encryption method specified is not supported"},
		{"SSE-KMS", hdr(headerSSE, "aws:kms"), true, "NotImplemented", "A header you provided implies functionality that is not implemented"},
		{"DSSE", hdr(headerSSE, "aws:kms:dsse", headerSSEKeyID, "k"), true, "NotImplemented", "A header you provided implies functionality that is not implemented"},
		{"a KMS key alone", hdr(headerSSEKeyID, "k"), true, "InvalidArgument", "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms"},
		{"a KMS key with SSE-S3", hdr(headerSSE, "AES256", headerSSEKeyID, "k"), true, "InvalidArgument", "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms"},
	} {
		r := &http.Request{Header: tc.h, TLS: &tls.ConnectionState{}}
		if tc.plain {
			r.TLS = nil
		}
		_, err := writeSSE(r)
		if got := codeOf(t, err); got != tc.code {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.code)
		} else if err != nil && err.(*apiError).message != tc.text {
			t.Errorf("%s: %s", tc.name, err.(*apiError).message)
		}
	}
	sse, err := writeSSE(&http.Request{Header: full(), TLS: &tls.ConnectionState{}})
	if err != nil || sse.Mode != object.ModeCustomer || string(sse.CustomerKey[:]) != string(key) {
		t.Errorf("%+v %v", sse, err)
	}
	if _, err := readSSE(&http.Request{Header: hdr(headerSSE, "AES256")}); codeOf(t, err) != "InvalidArgument" {
		t.Errorf("SSE-S3 header on a read: %v", err)
	}
}

func TestConditions(t *testing.T) {
	o := object.Object{ETag: "abc", Modified: testTime}
	at := func(d time.Duration) string { return testTime.Add(d).Format(http.TimeFormat) }
	for _, tc := range []struct {
		h    []string
		want string // status for a read
		copy string // status for the source of a copy
	}{
		{nil, "200", "200"},
		{[]string{"If-Match", `"abc"`}, "200", "200"},
		{[]string{"If-Match", `abc`}, "200", "200"},
		{[]string{"If-Match", `"x", "abc"`}, "200", "200"},
		{[]string{"If-Match", `*`}, "200", "200"},
		{[]string{"If-Match", `"x"`}, "412", "412"},
		{[]string{"If-None-Match", `"abc"`}, "304", "412"},
		{[]string{"If-None-Match", `W/"abc"`}, "304", "412"},
		{[]string{"If-None-Match", `*`}, "304", "412"},
		{[]string{"If-None-Match", `"x"`}, "200", "200"},
		{[]string{"If-Modified-Since", at(0)}, "304", "412"},
		{[]string{"If-Modified-Since", at(-time.Second)}, "200", "200"},
		{[]string{"If-Unmodified-Since", at(0)}, "200", "200"},
		{[]string{"If-Unmodified-Since", at(-time.Second)}, "412", "412"},
		{[]string{"If-Modified-Since", "yesterday"}, "200", "200"},
		{[]string{"If-Match", `"abc"`, "If-Unmodified-Since", at(-time.Hour)}, "200", "200"},
		{[]string{"If-None-Match", `"x"`, "If-Modified-Since", at(time.Hour)}, "200", "200"},
		{[]string{"If-None-Match", `"abc"`, "If-Modified-Since", at(-time.Hour)}, "304", "412"},
		{[]string{"If-Match", `"x"`, "If-None-Match", `"abc"`}, "412", "412"},
	} {
		for prefix, want := range map[string]string{readConditions: tc.want, copyConditions: tc.copy} {
			h := make(http.Header)
			for i := 0; i < len(tc.h); i += 2 {
				h.Set(prefix+tc.h[i], tc.h[i+1])
			}
			got := "200"
			if err := checkConditions(h, prefix, o); err != nil {
				got = http.StatusText(err.(*apiError).status)
				got = map[string]string{"Not Modified": "304", "Precondition Failed": "412"}[got]
			}
			if got != want {
				t.Errorf("%s%v: %s, want %s", prefix, tc.h, got, want)
			}
		}
	}
	for code, h := range map[string]http.Header{
		"NotImplemented":  hdr("If-None-Match", `"abc"`),
		"InvalidArgument": hdr("If-Match", `""`),
	} {
		if _, err := writeConditions(h); codeOf(t, err) != code {
			t.Errorf("%v: %v", h, err)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=-99999999999999999999", "/bucket/key?versionId=1", "bucket/%2F+a", "a=b&c=%20", "AAAAAA==", "AAAAAA==-3", `W/"a","b"`, "x-amz-checksum-crc32"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r := parseRange(s); r != nil {
			for _, size := range []int64{0, 1, 1000} {
				if off, n, ok := resolveRange(*r, size); ok && (off < 0 || n <= 0 || off+n > size) {
					t.Fatalf("%q of %d: %d+%d", s, size, off, n)
				}
			}
		}
		if bucket, key, _, err := parseCopySource(s); err == nil && (bucket == "" || key == "" || len(key) > object.MaxKeyLen) {
			t.Fatalf("%q: %q %q", s, bucket, key)
		}
		if tags, err := parseTagging(s); err == nil && len(tags) > maxObjectTags {
			t.Fatalf("%d tags", len(tags))
		}
		for _, alg := range algorithms {
			cl, err := parseClaim(http.Header{http.CanonicalHeaderKey(alg.header): {s}})
			if err == nil && len(cl.sum) != alg.size {
				t.Fatalf("%q: %d bytes", s, len(cl.sum))
			}
		}
		for _, token := range []string{s, newToken(s)} {
			c := &call{request: request{query: url.Values{"continuation-token": {token}}}}
			if got, err := c.token(); err == nil && len(got) > object.MaxKeyLen || token != s && len(s) <= object.MaxKeyLen && got != s {
				t.Fatalf("token %q: %q, %v", token, got, err)
			}
		}
		for _, alg := range algorithms {
			h := http.Header{http.CanonicalHeaderKey(alg.header): {s}}
			if n, err := cutParts(h); err == nil && (n < 0 || n > object.MaxParts) {
				t.Fatalf("%q: %d parts", s, n)
			}
			algo, composite, err := uploadChecksum(hdr("X-Amz-Checksum-Algorithm", alg.name, "X-Amz-Checksum-Type", s))
			if err == nil && (algo != alg.algo || composite && !alg.composite || !composite && !alg.full) {
				t.Fatalf("%q: %v, composite %v", s, algo, composite)
			}
		}
		if validHeader(s, []string{s}) && strings.ContainsAny(s, "\r\n\x00 :") {
			t.Fatalf("header %q", s)
		}
		matchETag([]string{s}, "b")
		parseClaim(http.Header{"X-Amz-Trailer": {s}})
		parseClaim(http.Header{"Content-Md5": {s}})
		customerSSE(&http.Request{TLS: &tls.ConnectionState{}, Header: hdr(headerCustomerAlgo, "AES256", headerCustomerKey, s, headerCustomerMD5, s)}, headerTargetCustomer)
	})
}
