package clients

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"
)

// fixture is a bucket on a running daemon, and calls that fail the test.
type fixture struct {
	*testing.T
	s      *server
	c      *s3.Client
	bucket *string
}

func (f *fixture) put(key string, b []byte, more ...func(*s3.PutObjectInput)) *s3.PutObjectOutput {
	f.Helper()
	in := &s3.PutObjectInput{Bucket: f.bucket, Key: &key, Body: bytes.NewReader(b)}
	for _, m := range more {
		m(in)
	}
	out, err := f.c.PutObject(f.Context(), in)
	if err != nil {
		f.Fatalf("put %q: %v", key, err)
	}
	return out
}

func (f *fixture) get(key string, more ...func(*s3.GetObjectInput)) ([]byte, *s3.GetObjectOutput, error) {
	f.Helper()
	in := &s3.GetObjectInput{Bucket: f.bucket, Key: &key}
	for _, m := range more {
		m(in)
	}
	out, err := f.c.GetObject(f.Context(), in)
	if err != nil {
		return nil, nil, err
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	if err != nil {
		f.Fatalf("read %q: %v", key, err)
	}
	return b, out, nil
}

func (f *fixture) holds(key string, want []byte, more ...func(*s3.GetObjectInput)) *s3.GetObjectOutput {
	f.Helper()
	got, out, err := f.get(key, more...)
	if err != nil || !bytes.Equal(got, want) {
		f.Fatalf("get %q: %d bytes, %v; want %d bytes", key, len(got), err, len(want))
	}
	return out
}

// fails checks the code and status of an error. HEAD answers have no body, so the SDK makes its code from the status.
func (f *fixture) fails(what string, err error, status int, code string) {
	f.Helper()
	var api smithy.APIError
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &resp) || resp.HTTPStatusCode() != status || code != "" && api.ErrorCode() != code {
		f.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// What applications rely on beyond copying files, by the SDK that most of them use.
func TestSemantics(t *testing.T) {
	if !soak {
		t.Parallel()
	}
	s := newServer(t, 256)
	for name, test := range map[string]func(*fixture){
		"conditions": testConditions, "ranges": testRanges, "copy": testCopy, "multipart": testMultipart, "list": testList,
		"presigned": testPresigned, "sse-s3": testSSES3, "sse-c": testSSEC, "sse-c multipart": testSSECMultipart, "checksums": testChecksums,
		"odd keys": testOddKeys, "delete objects": testDeleteObjects, "errors": testErrors, "attributes": testAttributes,
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{T: t, s: s, c: newSDK(s, once), bucket: aws.String("sem-" + strings.ReplaceAll(name, " ", "-"))}
			if _, err := f.c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: f.bucket}); err != nil {
				t.Fatal(err)
			}
			test(f)
			counts.add("groups of semantics", 1)
		})
	}
	s.stop()
}

func testConditions(f *fixture) {
	ctx := f.Context()
	first := f.put("k", []byte("one"), func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
	put := func(match, none *string) error {
		_, err := f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("k"), Body: strings.NewReader("two"), IfMatch: match, IfNoneMatch: none})
		return err
	}
	f.fails("put If-None-Match on an existing key", put(nil, aws.String("*")), 412, "PreconditionFailed")
	f.fails("put If-Match of another ETag", put(aws.String(`"00000000000000000000000000000000"`), nil), 412, "PreconditionFailed")
	f.holds("k", []byte("one"))
	if err := put(first.ETag, nil); err != nil {
		f.Errorf("put If-Match: %v", err)
	}
	_, err := f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("absent"), Body: strings.NewReader("x"), IfMatch: first.ETag})
	f.fails("put If-Match on an absent key", err, 404, "NoSuchKey")

	now := f.holds("k", []byte("two"))
	for _, c := range []struct {
		what   string
		set    func(*s3.GetObjectInput)
		status int
	}{
		{"If-Match", func(in *s3.GetObjectInput) { in.IfMatch = now.ETag }, 200},
		{"If-Match of another ETag", func(in *s3.GetObjectInput) { in.IfMatch = first.ETag }, 412},
		{"If-None-Match", func(in *s3.GetObjectInput) { in.IfNoneMatch = now.ETag }, 304},
		{"If-None-Match of another ETag", func(in *s3.GetObjectInput) { in.IfNoneMatch = first.ETag }, 200},
		{"If-Modified-Since the past", func(in *s3.GetObjectInput) { in.IfModifiedSince = aws.Time(now.LastModified.Add(-time.Hour)) }, 200},
		{"If-Modified-Since its time", func(in *s3.GetObjectInput) { in.IfModifiedSince = now.LastModified }, 304},
		{"If-Unmodified-Since the past", func(in *s3.GetObjectInput) { in.IfUnmodifiedSince = aws.Time(now.LastModified.Add(-time.Hour)) }, 412},
	} {
		if _, _, err := f.get("k", c.set); c.status == 200 && err != nil {
			f.Errorf("get %s: %v", c.what, err)
		} else if c.status != 200 {
			f.fails("get "+c.what, err, c.status, "")
		}
	}
}

func testRanges(f *fixture) {
	b := randomBytes(3<<20 + oddBytes)
	f.put("k", b)
	n := len(b)
	for _, r := range []struct {
		header   string
		from, to int
	}{
		{"bytes=0-0", 0, 1}, {"bytes=1-", 1, n}, {"bytes=-1", n - 1, n}, {"bytes=-99999999", 0, n}, {"bytes=65519-65520", 65519, 65521},
		{"bytes=65520-131039", 65520, 131040}, {fmt.Sprintf("bytes=%d-%d", n-1, n+5), n - 1, n}, {"bytes=1000000-2000000", 1000000, 2000001},
	} {
		out := f.holds("k", b[r.from:r.to], func(in *s3.GetObjectInput) { in.Range = &r.header })
		if want := fmt.Sprintf("bytes %d-%d/%d", r.from, r.to-1, n); aws.ToString(out.ContentRange) != want {
			f.Errorf("%s: Content-Range %q, want %q", r.header, aws.ToString(out.ContentRange), want)
		}
	}
	_, _, err := f.get("k", func(in *s3.GetObjectInput) { in.Range = aws.String(fmt.Sprintf("bytes=%d-", n)) })
	f.fails("range behind the end", err, 416, "InvalidRange")
}

func testCopy(f *fixture) {
	b := randomBytes(300 << 10)
	f.put("dir/a b+c", b, func(in *s3.PutObjectInput) {
		in.Metadata, in.ContentType = map[string]string{"color": "blue"}, aws.String("text/x-test")
	})
	source := aws.String(*f.bucket + "/" + url.QueryEscape("dir/a b+c"))
	copyTo := func(key string, set func(*s3.CopyObjectInput)) error {
		in := &s3.CopyObjectInput{Bucket: f.bucket, Key: &key, CopySource: source}
		set(in)
		_, err := f.c.CopyObject(f.Context(), in)
		return err
	}
	if err := copyTo("kept", func(*s3.CopyObjectInput) {}); err != nil {
		f.Fatal(err)
	}
	if out := f.holds("kept", b); out.Metadata["color"] != "blue" || aws.ToString(out.ContentType) != "text/x-test" {
		f.Errorf("copy has metadata %v, type %q", out.Metadata, aws.ToString(out.ContentType))
	}
	if err := copyTo("replaced", func(in *s3.CopyObjectInput) {
		in.MetadataDirective, in.Metadata = types.MetadataDirectiveReplace, map[string]string{"color": "red"}
	}); err != nil {
		f.Fatal(err)
	}
	if out := f.holds("replaced", b); out.Metadata["color"] != "red" {
		f.Errorf("copy with REPLACE has metadata %v", out.Metadata)
	}
	f.fails("copy onto itself", copyTo("dir/a b+c", func(*s3.CopyObjectInput) {}), 400, "InvalidRequest")
	f.fails("copy of another ETag", copyTo("x", func(in *s3.CopyObjectInput) { in.CopySourceIfMatch = aws.String(`"00"`) }), 412, "PreconditionFailed")
	f.fails("copy of an absent key", copyTo("x", func(in *s3.CopyObjectInput) { in.CopySource = aws.String(*f.bucket + "/absent") }), 404, "NoSuchKey")
}

func testMultipart(f *fixture) {
	ctx, key := f.Context(), aws.String("big")
	source := randomBytes(7 << 20)
	f.put("source", source)
	up, err := f.c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: f.bucket, Key: key})
	if err != nil {
		f.Fatal(err)
	}
	first, last := randomBytes(object5MiB), randomBytes(1000)
	var parts []types.CompletedPart
	for n, b := range [][]byte{first, nil, last, last} {
		number := aws.Int32(int32(n + 1))
		if b == nil {
			out, err := f.c.UploadPartCopy(ctx, &s3.UploadPartCopyInput{Bucket: f.bucket, Key: key, UploadId: up.UploadId, PartNumber: number,
				CopySource: aws.String(*f.bucket + "/source"), CopySourceRange: aws.String(fmt.Sprintf("bytes=1000-%d", 999+object5MiB))})
			if err != nil {
				f.Fatal(err)
			}
			parts = append(parts, types.CompletedPart{PartNumber: number, ETag: out.CopyPartResult.ETag})
			continue
		}
		out, err := f.c.UploadPart(ctx, &s3.UploadPartInput{Bucket: f.bucket, Key: key, UploadId: up.UploadId, PartNumber: number, Body: bytes.NewReader(b)})
		if err != nil {
			f.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: number, ETag: out.ETag})
	}
	if _, _, err := f.get(*key); err == nil {
		f.Error("an unfinished upload is visible")
	}
	complete := func(parts []types.CompletedPart) error {
		_, err := f.c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: f.bucket, Key: key, UploadId: up.UploadId,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
		return err
	}
	swapped := []types.CompletedPart{parts[1], parts[0]}
	f.fails("complete out of order", complete(swapped), 400, "InvalidPartOrder")
	f.fails("complete with a part that is not there", complete(append(slices.Clone(parts[:2]), types.CompletedPart{PartNumber: aws.Int32(9), ETag: parts[2].ETag})), 400, "InvalidPart")
	f.fails("complete with a small part before the last", complete(parts), 400, "EntityTooSmall")
	parts = parts[:3]
	wrong := slices.Clone(parts)
	wrong[0].ETag = parts[1].ETag
	f.fails("complete with a wrong ETag", complete(wrong), 400, "InvalidPart")
	if err := complete(parts); err != nil {
		f.Fatal(err)
	}
	want := slices.Concat(first, source[1000:1000+object5MiB], last)
	f.holds(*key, want)
	out := f.holds(*key, last, func(in *s3.GetObjectInput) { in.PartNumber = aws.Int32(3) })
	if aws.ToInt32(out.PartsCount) != 3 {
		f.Errorf("parts count %d, want 3", aws.ToInt32(out.PartsCount))
	}
	_, err = f.c.ListParts(ctx, &s3.ListPartsInput{Bucket: f.bucket, Key: key, UploadId: up.UploadId})
	f.fails("list parts of a completed upload", err, 404, "NoSuchUpload")
	_, err = f.c.UploadPart(ctx, &s3.UploadPartInput{Bucket: f.bucket, Key: key, UploadId: aws.String("nonsense"), PartNumber: aws.Int32(1), Body: strings.NewReader("x")})
	f.fails("part of an unknown upload", err, 404, "NoSuchUpload")
}

func testList(f *fixture) {
	ctx := f.Context()
	var keys []string
	for i := range 25 {
		keys = append(keys, fmt.Sprintf("a/%02d/x", i), fmt.Sprintf("a/%02d/y", i))
	}
	keys = append(keys, "b", "a.txt", "a/zz")
	slices.Sort(keys)
	for _, k := range keys {
		f.put(k, []byte(k))
	}
	list := func(in s3.ListObjectsV2Input) (names []string, pages int) {
		in.Bucket = f.bucket
		p := s3.NewListObjectsV2Paginator(f.c, &in)
		for p.HasMorePages() {
			page, err := p.NextPage(ctx)
			if err != nil {
				f.Fatal(err)
			}
			if got := len(page.Contents) + len(page.CommonPrefixes); got != int(aws.ToInt32(page.KeyCount)) || got > 7 {
				f.Errorf("page of %d entries says %d", got, aws.ToInt32(page.KeyCount))
			}
			pages++
			for _, o := range page.Contents {
				names = append(names, *o.Key)
			}
			for _, o := range page.CommonPrefixes {
				names = append(names, *o.Prefix)
			}
		}
		slices.Sort(names)
		return names, pages
	}
	got, pages := list(s3.ListObjectsV2Input{MaxKeys: aws.Int32(7)})
	if diff := cmp.Diff(keys, got); diff != "" || pages != (len(keys)+6)/7 {
		f.Errorf("list in %d pages (-want +got):\n%s", pages, diff)
	}
	var prefixes []string
	for i := range 25 {
		prefixes = append(prefixes, fmt.Sprintf("a/%02d/", i))
	}
	got, pages = list(s3.ListObjectsV2Input{MaxKeys: aws.Int32(7), Prefix: aws.String("a/"), Delimiter: aws.String("/")})
	if diff := cmp.Diff(append(prefixes, "a/zz"), got); diff != "" || pages != 4 {
		f.Errorf("list with delimiter in %d pages (-want +got):\n%s", pages, diff)
	}
	got, _ = list(s3.ListObjectsV2Input{MaxKeys: aws.Int32(7), StartAfter: aws.String("a/24/x")})
	if diff := cmp.Diff([]string{"a/24/y", "a/zz", "b"}, got); diff != "" {
		f.Errorf("list start-after (-want +got):\n%s", diff)
	}
	one, err := f.c.ListObjects(ctx, &s3.ListObjectsInput{Bucket: f.bucket, Delimiter: aws.String("/"), Marker: aws.String("a.txt")})
	if err != nil || len(one.Contents) != 1 || len(one.CommonPrefixes) != 1 || *one.Contents[0].Key != "b" {
		f.Errorf("list version 1: %+v, %v", one, err)
	}
}

func testPresigned(f *fixture) {
	ctx, sign, client := f.Context(), s3.NewPresignClient(f.c), &http.Client{Transport: f.s.transport()}
	do := func(method, url string, h http.Header, body io.Reader) (int, string) {
		req, err := http.NewRequestWithContext(ctx, method, url, body)
		if err != nil {
			f.Fatal(err)
		}
		for name, v := range h {
			req.Header[name] = v
		}
		resp, err := client.Do(req)
		if err != nil {
			f.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			f.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	put, err := sign.PresignPutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("p/q r"), ContentType: aws.String("text/plain")})
	if err != nil {
		f.Fatal(err)
	}
	if code, b := do("PUT", put.URL, put.SignedHeader, strings.NewReader("by link")); code != 200 {
		f.Errorf("presigned put: %d %s", code, b)
	}
	get, err := sign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: f.bucket, Key: aws.String("p/q r"), ResponseContentDisposition: aws.String("attachment")})
	if err != nil {
		f.Fatal(err)
	}
	if code, b := do("GET", get.URL, nil, nil); code != 200 || b != "by link" {
		f.Errorf("presigned get: %d %q", code, b)
	}
	if code, b := do("GET", strings.Replace(get.URL, "attachment", "inline", 1), nil, nil); code != 403 || !strings.Contains(b, "SignatureDoesNotMatch") {
		f.Errorf("altered link: %d %s", code, b)
	}
	if code, b := do("DELETE", get.URL, nil, nil); code != 403 {
		f.Errorf("link used with another method: %d %s", code, b)
	}
	short, err := sign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: f.bucket, Key: aws.String("p/q r")}, s3.WithPresignExpires(time.Second))
	if err != nil {
		f.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
	if code, b := do("GET", short.URL, nil, nil); code != 403 || !strings.Contains(b, "AccessDenied") {
		f.Errorf("expired link: %d %s", code, b)
	}
}

func testDeleteObjects(f *fixture) {
	var ids []types.ObjectIdentifier
	for i := range 1000 {
		key := fmt.Sprintf("%04d <&> \"é\"", i)
		if i%100 == 0 {
			f.put(key, nil)
		}
		ids = append(ids, types.ObjectIdentifier{Key: &key})
	}
	f.put("stays", nil)
	out, err := f.c.DeleteObjects(f.Context(), &s3.DeleteObjectsInput{Bucket: f.bucket, Delete: &types.Delete{Objects: ids}})
	if err != nil || len(out.Deleted) != 1000 || len(out.Errors) != 0 {
		f.Fatalf("delete 1000 objects: %v, %v", out, err)
	}
	_, err = f.c.DeleteBucket(f.Context(), &s3.DeleteBucketInput{Bucket: f.bucket})
	f.fails("delete a bucket with an object", err, 409, "BucketNotEmpty")
	if _, err := f.c.DeleteObject(f.Context(), &s3.DeleteObjectInput{Bucket: f.bucket, Key: aws.String("stays")}); err != nil {
		f.Error(err)
	}
	if _, err := f.c.DeleteBucket(f.Context(), &s3.DeleteBucketInput{Bucket: f.bucket}); err != nil {
		f.Errorf("delete an empty bucket: %v", err)
	}
	_, err = f.c.DeleteObjects(f.Context(), &s3.DeleteObjectsInput{Bucket: f.bucket, Delete: &types.Delete{Objects: ids[:1]}})
	f.fails("delete in a bucket that is gone", err, 404, "NoSuchBucket")
}

func testErrors(f *fixture) {
	ctx := f.Context()
	_, _, err := f.get("absent")
	f.fails("get an absent key", err, 404, "NoSuchKey")
	_, err = f.c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: f.bucket, Key: aws.String("absent")})
	f.fails("head of an absent key", err, 404, "NotFound")
	_, err = f.c.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("no-such-bucket")})
	f.fails("head of an absent bucket", err, 404, "NotFound")
	_, err = f.c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("no-such-bucket")})
	f.fails("list of an absent bucket", err, 404, "NoSuchBucket")
	_, err = f.c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("Not_A_Name")})
	f.fails("bad bucket name", err, 400, "InvalidBucketName")
	_, err = f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String(strings.Repeat("k", 1025)), Body: strings.NewReader("x")})
	f.fails("key of 1025 bytes", err, 400, "KeyTooLongError")
	_, err = f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("k"), Body: strings.NewReader("x"), Metadata: map[string]string{"m": strings.Repeat("v", 2048)}})
	f.fails("too much metadata", err, 400, "MetadataTooLarge")
	_, err = f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("k"), Body: strings.NewReader("x"), ContentMD5: aws.String("AAAAAAAAAAAAAAAAAAAAAA==")})
	f.fails("wrong Content-MD5", err, 400, "BadDigest")
	_, err = f.c.PutBucketAcl(ctx, &s3.PutBucketAclInput{Bucket: f.bucket, ACL: types.BucketCannedACLPublicRead})
	f.fails("an unsupported call", err, 501, "NotImplemented")
	_, err = f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("k"), Body: strings.NewReader("x"), ServerSideEncryption: types.ServerSideEncryptionAwsKms})
	f.fails("SSE-KMS without a key service", err, 501, "NotImplemented")
	stranger := newSDK(f.s, once, func(o *s3.Options) {
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: f.s.access, SecretAccessKey: "wrong"}, nil
		})
	})
	_, err = stranger.ListBuckets(ctx, &s3.ListBucketsInput{})
	f.fails("wrong secret", err, 403, "SignatureDoesNotMatch")
	skewed := newSDK(f.s, once, func(o *s3.Options) {
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "NOBODYNOBODYNOBODYNO", SecretAccessKey: f.s.secret}, nil
		})
	})
	_, err = skewed.ListBuckets(ctx, &s3.ListBucketsInput{})
	f.fails("unknown access key", err, 403, "InvalidAccessKeyId")
	if _, _, err := f.get("k"); err == nil {
		f.Error("a refused put left an object")
	}
}

func testAttributes(f *fixture) {
	expires := "Wed, 21 Oct 2037 07:28:00 GMT"
	f.put("k", nil, func(in *s3.PutObjectInput) {
		in.CacheControl, in.ContentDisposition, in.ContentEncoding = aws.String("no-store"), aws.String("inline"), aws.String("gzip")
		in.ContentLanguage, in.ContentType = aws.String("de"), aws.String("text/x-y")
		at, _ := http.ParseTime(expires)
		in.Expires = &at
		in.Metadata = map[string]string{"a": "1", "b-c": "two words"}
	})
	out, err := f.c.HeadObject(f.Context(), &s3.HeadObjectInput{Bucket: f.bucket, Key: aws.String("k")})
	if err != nil {
		f.Fatal(err)
	}
	got := []string{aws.ToString(out.CacheControl), aws.ToString(out.ContentDisposition), aws.ToString(out.ContentEncoding),
		aws.ToString(out.ContentLanguage), aws.ToString(out.ContentType), aws.ToString(out.ExpiresString), out.Metadata["a"], out.Metadata["b-c"]}
	if diff := cmp.Diff([]string{"no-store", "inline", "gzip", "de", "text/x-y", expires, "1", "two words"}, got); diff != "" {
		f.Errorf("attributes (-want +got):\n%s", diff)
	}
}
