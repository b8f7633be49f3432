package s3

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func newTestRouter() *router {
	return newRouter(operations(), []string{"s3.example.org", "Storage.Local."})
}

func parseTarget(t testing.TB, rt *router, method, host, target string, h http.Header) (request, error) {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Skip("net/http refuses it")
	}
	return rt.parse(&http.Request{Method: method, Host: host, URL: u, Header: h})
}

func TestParse(t *testing.T) {
	copyFrom := http.Header{"X-Amz-Copy-Source": {"/a/b"}}
	for _, tc := range []struct {
		method, host, target string
		header               http.Header
		want                 string // "Op bucket|key", or the error's code
	}{
		{"GET", "", "/", nil, "ListBuckets |"},
		{"GET", "", "/?max-buckets=3&x-id=ListBuckets", nil, "ListBuckets |"},
		{"POST", "", "/", nil, "MethodNotAllowed"},
		{"GET", "", "/?foo", nil, "NotImplemented"},
		{"GET", "", "/?acl", nil, "NotImplemented"},

		{"PUT", "", "/bucket", nil, "CreateBucket bucket|"},
		{"PUT", "", "/bucket/", nil, "CreateBucket bucket|"},
		{"HEAD", "", "/bucket", nil, "HeadBucket bucket|"},
		{"DELETE", "", "/bucket", nil, "DeleteBucket bucket|"},
		{"GET", "", "/bucket", nil, "ListObjects bucket|"},
		{"GET", "", "/bucket?prefix=a&delimiter=/&marker=x&max-keys=3&encoding-type=url", nil, "ListObjects bucket|"},
		{"GET", "", "/bucket?list-type=2&metadata=true", nil, "ListObjectsV2 bucket|"},
		{"GET", "", "/bucket?versions", nil, "ListObjectVersions bucket|"},
		{"GET", "", "/bucket?location=", nil, "GetBucketLocation bucket|"},
		{"GET", "", "/bucket?uploads&prefix=x", nil, "ListMultipartUploads bucket|"},
		{"POST", "", "/bucket?delete", nil, "DeleteObjects bucket|"},
		{"POST", "", "/bucket", nil, "PostObject bucket|"},
		{"PUT", "", "/bucket?encryption", nil, "PutBucketEncryption bucket|"},
		{"PUT", "", "/bucket?nonsense", nil, "NotImplemented"},
		{"PUT", "", "/bucket?nonsense=1", nil, "NotImplemented"},
		{"PUT", "", "/bucket/key?Content-Type=text%2Fplain", nil, "PutObject bucket|key"},
		{"GET", "", "/bucket?nonsense", nil, "NotImplemented"},
		{"GET", "", "/bucket?nonsense=1", nil, "ListObjects bucket|"},
		{"GET", "", "/bucket?acl&policy", nil, "InvalidArgument"},
		{"POST", "", "/bucket?acl", nil, "MethodNotAllowed"},
		{"PATCH", "", "/bucket", nil, "MethodNotAllowed"},
		{"OPTIONS", "", "/bucket/key", nil, "AccessForbidden"},

		{"PUT", "", "/bucket/key", nil, "PutObject bucket|key"},
		{"PUT", "", "/bucket/key", copyFrom, "CopyObject bucket|key"},
		{"PUT", "", "/bucket/key?uploadId=u&partNumber=1", nil, "UploadPart bucket|key"},
		{"PUT", "", "/bucket/key?uploadId=u&partNumber=1", copyFrom, "UploadPartCopy bucket|key"},
		{"PUT", "", "/bucket/key?acl", nil, "PutObjectAcl bucket|key"},
		{"PUT", "", "/bucket/key?acl", copyFrom, "NotImplemented"},
		{"PUT", "", "/bucket/key?ACL", nil, "NotImplemented"},
		{"PUT", "", "/bucket/key?whatever", nil, "NotImplemented"},
		{"PUT", "", "/bucket/key?torrent", nil, "MethodNotAllowed"},
		{"DELETE", "", "/bucket/key?whatever=1", nil, "NotImplemented"},
		{"GET", "", "/bucket/key?versionId=null&response-content-type=a", copyFrom, "GetObject bucket|key"},
		{"POST", "", "/bucket/key?uploads", nil, "CreateMultipartUpload bucket|key"},
		{"POST", "", "/bucket/key?uploadId=a", nil, "CompleteMultipartUpload bucket|key"},
		{"DELETE", "", "/bucket/key?uploadId=a", nil, "AbortMultipartUpload bucket|key"},
		{"GET", "", "/bucket/key?uploadId=a", nil, "ListParts bucket|key"},

		// A parameter of another call never makes a write the plain one; reads ignore it.
		{"PUT", "", "/bucket/key?partNumber=1", nil, "InvalidArgument"},
		{"PUT", "", "/bucket/key?partNumber=1", copyFrom, "InvalidArgument"},
		{"PUT", "", "/bucket/key?versionId=null", nil, "InvalidArgument"},
		{"PUT", "", "/bucket/key?versionId=null", copyFrom, "InvalidArgument"},
		{"PUT", "", "/bucket/key?id=1", nil, "InvalidArgument"},
		{"PUT", "", "/bucket/key?prefix=1", nil, "InvalidArgument"},
		{"PUT", "", "/bucket/key?response-content-type=a", nil, "InvalidArgument"},
		{"PUT", "", "/bucket/key?uploadId=u&partNumber=1&versionId=null", nil, "InvalidArgument"},
		{"PUT", "", "/bucket?prefix=a", nil, "InvalidArgument"},
		{"DELETE", "", "/bucket?prefix=a", nil, "InvalidArgument"},
		{"DELETE", "", "/bucket/key?partNumber=1", nil, "InvalidArgument"},
		{"DELETE", "", "/bucket/key?versionId=null&x-id=DeleteObject", nil, "DeleteObject bucket|key"},
		{"DELETE", "", "/bucket/key?uploadId=u&partNumber=1", nil, "InvalidArgument"},
		{"POST", "", "/bucket/key?uploads&versionId=null", nil, "InvalidArgument"},
		{"POST", "", "/bucket/key?uploadId=u&partNumber=1", nil, "InvalidArgument"},
		{"POST", "", "/bucket?delete&prefix=a", nil, "InvalidArgument"},
		{"PUT", "", "/bucket/key?tagging&versionId=null", nil, "PutObjectTagging bucket|key"}, // not implemented either way
		{"PUT", "", "/bucket/key?AWSAccessKeyId=a&Signature=b&Expires=1", nil, "PutObject bucket|key"},
		{"PUT", "", "/bucket/key?X-Amz-Signature=b&x-id=PutObject", nil, "PutObject bucket|key"},
		{"GET", "", "/bucket/key?prefix=a&partNumber=1", nil, "GetObject bucket|key"},

		// Keys are decoded once and never cleaned.
		{"GET", "", "/bucket//", nil, "GetObject bucket|/"},
		{"GET", "", "/bucket//a//b/", nil, "GetObject bucket|/a//b/"},
		{"GET", "", "/bucket/../x", nil, "GetObject bucket|../x"},
		{"GET", "", "/bucket/./a/.", nil, "GetObject bucket|./a/."},
		{"GET", "", "/bucket/a%2Fb", nil, "GetObject bucket|a/b"},
		{"GET", "", "/bucket/%2e%2e/x", nil, "GetObject bucket|../x"},
		{"GET", "", "/bucket/a%252Fb", nil, "GetObject bucket|a%2Fb"},
		{"GET", "", "/bucket/a+b%20c", nil, "GetObject bucket|a+b c"},
		{"GET", "", "/bucket/%C3%BC%01", nil, "GetObject bucket|ü\x01"},
		{"GET", "", "/bucket/%FF", nil, "InvalidURI"},
		{"GET", "", "/bucket/key?prefix=%FF", nil, "InvalidURI"},
		{"GET", "", "/bucket/key?a;b", nil, "InvalidURI"},
		{"GET", "", "/bucket/key?a=%zz", nil, "InvalidURI"},
		{"GET", "", "/bucket/" + strings.Repeat("k", 1024), nil, "GetObject bucket|" + strings.Repeat("k", 1024)},
		{"GET", "", "/bucket/" + strings.Repeat("k", 1025), nil, "KeyTooLongError"},
		{"GET", "", "//key", nil, "InvalidBucketName"},
		{"GET", "", "/ab", nil, "InvalidBucketName"},
		{"GET", "", "/a%2Fb/key", nil, "InvalidBucketName"},
		{"GET", "", "/Old_Bucket/key", nil, "GetObject Old_Bucket|key"},

		// Virtual-host style.
		{"GET", "bucket.s3.example.org", "/key", nil, "GetObject bucket|key"},
		{"GET", "Bucket.S3.Example.Org:9000", "/", nil, "ListObjects bucket|"},
		{"PUT", "a.b.storage.local.:80", "//k", nil, "PutObject a.b|/k"},
		{"GET", "s3.example.org", "/bucket/key", nil, "GetObject bucket|key"},
		{"GET", "s3.example.org", "/", nil, "ListBuckets |"},
		{"GET", "evils3.example.org", "/bucket/key", nil, "GetObject bucket|key"},
		{"GET", "a%2Fb.s3.example.org", "/key", nil, "InvalidBucketName"},
		{"GET", "[::1]:9000", "/bucket/key", nil, "GetObject bucket|key"},
	} {
		q, err := parseTarget(t, newTestRouter(), tc.method, tc.host, tc.target, tc.header)
		if err == nil && q.op.handle != nil {
			err = q.checkParameters(tc.method)
		}
		got := ""
		if err != nil {
			got = err.(*apiError).code
		} else {
			got = q.op.name + " " + q.bucket + "|" + q.key
		}
		if got != tc.want {
			t.Errorf("%s %s%s = %.80q, want %.80q", tc.method, tc.host, tc.target, got, tc.want)
		}
	}
}

// TestOperationsAreClosed checks that each row of the table is reached by its own request and no other.
func TestOperationsAreClosed(t *testing.T) {
	rt := newTestRouter()
	seen := make(map[string]bool)
	for _, op := range operations() {
		if seen[op.name] {
			t.Errorf("%s stands twice", op.name)
		}
		seen[op.name] = true
		target := [...]string{"/", "/bucket", "/bucket/key"}[op.level]
		sub, isCopy := strings.CutSuffix(op.sub, selCopy)
		h := http.Header{}
		if isCopy {
			h.Set("X-Amz-Copy-Source", "/b/k")
		}
		if sub != "" {
			target += "?" + sub
		}
		q, err := parseTarget(t, rt, op.method, "", target, h)
		if err != nil || q.op.name != op.name {
			t.Errorf("%s %s: %v, want %s", op.method, target, err, op.name)
		}
		if op.action == "" && op.name != "DeleteObjects" {
			t.Errorf("%s has no action", op.name)
		}
	}
}

func TestBucketNames(t *testing.T) {
	for name, want := range map[string]bool{
		"abc": true, "my-bucket.1": true, "0ab": true, strings.Repeat("a", 63): true,
		"ab": false, strings.Repeat("a", 64): false, "Abc": false, "a_b": false, "-abc": false, "abc-": false, ".abc": false, "a..b": false, "a.-b": false, "a-.b": false,
		"192.168.0.1": false, "999.1.1.1": false, "1.2.3": true, "xn--a": false, "sthree-a": false, "a-s3alias": false, "a--ol-s3": false, "a.mrap": false, "a b": false, "bücket": false,
		"amzn-s3-demo-x": false, "x--x-s3": false, "x--table-s3": false,
	} {
		if got := validBucketName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/", "/bucket/key", "/bucket//a/../b?acl", "/bucket/%FF", "/b%75cket/%2F?uploadId=1&partNumber=2", "/bucket?list-type=2&prefix=%00", "//", "/bucket/key?a=b;c"} {
		f.Add("GET", "host", s)
		f.Add("PUT", "bucket.s3.example.org", s)
	}
	rt := newTestRouter()
	f.Fuzz(func(t *testing.T, method, host, target string) {
		q, err := parseTarget(t, rt, method, host, target, nil)
		if err != nil {
			if _, ok := err.(*apiError); !ok {
				t.Fatalf("not an API error: %v", err)
			}
			return
		}
		if !utf8.ValidString(q.key) || len(q.key) > 1024 || q.op.method != method {
			t.Fatalf("%q became %s %q", target, q.op.name, q.key)
		}
		if (q.level == levelObject) != (q.key != "") || (q.level == levelService) != (q.bucket == "") {
			t.Fatalf("level %v of %q %q", q.level, q.bucket, q.key)
		}
		// What was parsed names the same thing when it is written again.
		again, err := parseTarget(t, rt, method, "", "/"+url.PathEscape(q.bucket)+strings.Repeat("/", min(1, len(q.bucket)))+url.PathEscape(q.key)+"?"+q.query.Encode(), nil)
		if err != nil || again.bucket != q.bucket || again.key != q.key || again.op != q.op {
			t.Fatalf("%q again: %v %s", target, err, cmp.Diff(q.key, again.key))
		}
	})
}
