package clients

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"
)

func testSSES3(f *fixture) {
	asked := f.put("asked", []byte("x"), func(in *s3.PutObjectInput) { in.ServerSideEncryption = types.ServerSideEncryptionAes256 })
	unasked := f.put("unasked", []byte("x"))
	head := f.holds("unasked", []byte("x"))
	if got := []types.ServerSideEncryption{asked.ServerSideEncryption, unasked.ServerSideEncryption, head.ServerSideEncryption}; slices.ContainsFunc(got, func(s types.ServerSideEncryption) bool { return s != types.ServerSideEncryptionAes256 }) {
		f.Errorf("x-amz-server-side-encryption is %q, want AES256 always", got)
	}
	conf, err := f.c.GetBucketEncryption(f.Context(), &s3.GetBucketEncryptionInput{Bucket: f.bucket})
	if err != nil || len(conf.ServerSideEncryptionConfiguration.Rules) != 1 {
		f.Errorf("bucket encryption: %v, %v", conf, err)
	}
}

func testSSEC(f *fixture) {
	ctx, key, other, b := f.Context(), [32]byte(randomBytes(32)), [32]byte(randomBytes(32)), randomBytes(200<<10)
	with := func(k [32]byte) func(*s3.GetObjectInput) {
		return func(in *s3.GetObjectInput) {
			withCustomerKey(k, &in.SSECustomerAlgorithm, &in.SSECustomerKey, &in.SSECustomerKeyMD5)
		}
	}
	out := f.put("k", b, func(in *s3.PutObjectInput) {
		withCustomerKey(key, &in.SSECustomerAlgorithm, &in.SSECustomerKey, &in.SSECustomerKeyMD5)
	})
	if aws.ToString(out.SSECustomerAlgorithm) != "AES256" || out.ServerSideEncryption != "" {
		f.Errorf("put with SSE-C answers %q and %q", aws.ToString(out.SSECustomerAlgorithm), out.ServerSideEncryption)
	}
	f.holds("k", b, with(key))
	f.holds("k", b[70000:70010], with(key), func(in *s3.GetObjectInput) { in.Range = aws.String("bytes=70000-70009") })
	_, _, err := f.get("k")
	f.fails("get without the key", err, 400, "InvalidRequest")
	_, _, err = f.get("k", with(other))
	f.fails("get with another key", err, 403, "AccessDenied")
	_, err = f.c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: f.bucket, Key: aws.String("k")})
	f.fails("head without the key", err, 400, "")
	f.put("plain", b)
	_, _, err = f.get("plain", with(key))
	f.fails("key for an object that has none", err, 400, "InvalidRequest")
	_, err = f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("bad"), Body: strings.NewReader("x"),
		SSECustomerAlgorithm: aws.String("AES256"), SSECustomerKey: aws.String("c2hvcnQ="), SSECustomerKeyMD5: aws.String("AAAAAAAAAAAAAAAAAAAAAA==")})
	f.fails("a short key", err, 400, "InvalidArgument")

	rekey := func(target string, from, to *[32]byte) error {
		in := &s3.CopyObjectInput{Bucket: f.bucket, Key: &target, CopySource: aws.String(*f.bucket + "/k")}
		if from != nil {
			withCustomerKey(*from, &in.CopySourceSSECustomerAlgorithm, &in.CopySourceSSECustomerKey, &in.CopySourceSSECustomerKeyMD5)
		}
		if to != nil {
			withCustomerKey(*to, &in.SSECustomerAlgorithm, &in.SSECustomerKey, &in.SSECustomerKeyMD5)
		}
		_, err := f.c.CopyObject(f.Context(), in)
		return err
	}
	if err := errors.Join(rekey("rekeyed", &key, &other), rekey("freed", &key, nil)); err != nil {
		f.Fatal(err)
	}
	f.holds("rekeyed", b, with(other))
	f.holds("freed", b)
	f.fails("copy without the source's key", rekey("x", nil, nil), 400, "InvalidRequest")
	f.fails("copy with another key", rekey("x", &other, nil), 403, "AccessDenied")

	plain := newSDK(f.s, once, func(o *s3.Options) { o.BaseEndpoint = aws.String("http://" + f.s.http) })
	in := &s3.GetObjectInput{Bucket: f.bucket, Key: aws.String("k")}
	with(key)(in)
	if _, err := plain.GetObject(ctx, in); err == nil {
		f.Error("a customer key was taken over plaintext HTTP")
	}
}

func testSSECMultipart(f *fixture) {
	ctx, name := f.Context(), aws.String("k")
	key, other := [32]byte(randomBytes(32)), [32]byte(randomBytes(32))
	create := &s3.CreateMultipartUploadInput{Bucket: f.bucket, Key: name}
	withCustomerKey(key, &create.SSECustomerAlgorithm, &create.SSECustomerKey, &create.SSECustomerKeyMD5)
	up, err := f.c.CreateMultipartUpload(ctx, create)
	if err != nil {
		f.Fatal(err)
	}
	part := func(n int32, k *[32]byte, b []byte) (types.CompletedPart, error) {
		in := &s3.UploadPartInput{Bucket: f.bucket, Key: name, UploadId: up.UploadId, PartNumber: &n, Body: bytes.NewReader(b)}
		if k != nil {
			withCustomerKey(*k, &in.SSECustomerAlgorithm, &in.SSECustomerKey, &in.SSECustomerKeyMD5)
		}
		out, err := f.c.UploadPart(ctx, in)
		if err != nil {
			return types.CompletedPart{}, err
		}
		return types.CompletedPart{PartNumber: &n, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32}, nil
	}
	b := randomBytes(object5MiB + 1000)
	_, err = part(1, nil, b[:object5MiB])
	f.fails("part without the key", err, 400, "InvalidRequest")
	_, err = part(1, &other, b[:object5MiB])
	f.fails("part with another key", err, 400, "InvalidArgument")
	one, err1 := part(1, &key, b[:object5MiB])
	two, err2 := part(2, &key, b[object5MiB:])
	if err := errors.Join(err1, err2); err != nil {
		f.Fatal(err)
	}
	if _, err := f.c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: f.bucket, Key: name, UploadId: up.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{one, two}}}); err != nil {
		f.Fatal(err)
	}
	f.holds(*name, b, func(in *s3.GetObjectInput) {
		withCustomerKey(key, &in.SSECustomerAlgorithm, &in.SSECustomerKey, &in.SSECustomerKeyMD5)
	})
	_, _, err = f.get(*name)
	f.fails("get without the key", err, 400, "InvalidRequest")
}

// checksums of a GetObjectOutput, by algorithm.
func checksums(o *s3.GetObjectOutput) map[types.ChecksumAlgorithm]*string {
	return map[types.ChecksumAlgorithm]*string{types.ChecksumAlgorithmCrc32: o.ChecksumCRC32, types.ChecksumAlgorithmCrc32c: o.ChecksumCRC32C,
		types.ChecksumAlgorithmCrc64nvme: o.ChecksumCRC64NVME, types.ChecksumAlgorithmSha1: o.ChecksumSHA1, types.ChecksumAlgorithmSha256: o.ChecksumSHA256}
}

func testChecksums(f *fixture) {
	ctx, b := f.Context(), randomBytes(100<<10)
	enabled := func(in *s3.GetObjectInput) { in.ChecksumMode = types.ChecksumModeEnabled }
	for algo := range checksums(&s3.GetObjectOutput{}) {
		f.put(string(algo), b, func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = algo })
		for a, sum := range checksums(f.holds(string(algo), b, enabled)) {
			if (sum != nil) != (a == algo) {
				f.Errorf("object put with %s has checksum %s: %v", algo, a, aws.ToString(sum))
			}
		}
	}
	// A seekable body's checksum can be sent as a header and be wrong.
	wrong := aws.String("AAAAAA==")
	_, err := f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("wrong"), Body: bytes.NewReader(b), ChecksumCRC32: wrong})
	f.fails("wrong checksum", err, 400, "BadDigest")
	if _, _, err := f.get("wrong"); err == nil {
		f.Error("an object with a wrong checksum is visible")
	}
	// What the server does not know it must not pretend to have checked.
	for _, algo := range new(types.ChecksumAlgorithm).Values() {
		if _, known := checksums(&s3.GetObjectOutput{})[algo]; known {
			continue
		}
		_, err := f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("unknown"), Body: bytes.NewReader(b), ChecksumAlgorithm: algo})
		if err == nil {
			f.Errorf("checksum %s, which is not supported, was accepted", algo)
		}
	}
	// A body of unknown length goes out in signed chunks or with a trailer.
	if _, err := f.c.PutObject(ctx, &s3.PutObjectInput{Bucket: f.bucket, Key: aws.String("stream"), Body: io.MultiReader(bytes.NewReader(b)),
		ContentLength: aws.Int64(int64(len(b)))}); err != nil {
		f.Fatal(err)
	}
	var has []types.ChecksumAlgorithm
	for a, sum := range checksums(f.holds("stream", b, enabled)) {
		if sum != nil {
			has = append(has, a)
		}
	}
	if len(has) != 1 {
		f.Errorf("streamed object has the checksums %v", has)
	}
}

func testOddKeys(f *fixture) {
	keys := []string{
		"/", "//", "///a", "a//b", "a/", "a//", "a/./b", "a/../b", "../up", "..", ".", "./x", " ", " lead", "trail ", "a b", "a+b", "a%2Fb", "a%b", "%00", "a%",
		"a?b=c", "a#b", "a&b=c;d", "a:b@c", "ümläut", "日本語", "😀", "a\tb", "a\nb", "\x01\x1f", "\"'<>&", "\\back\\slash", "~", "*", "{x}[y]|^`",
		"?uploads", "?acl", "aws-chunked", strings.Repeat("k", 1024), strings.Repeat("é", 512),
	}
	for i, k := range keys {
		f.put(k, fmt.Appendf(nil, "body %d", i))
	}
	for i, k := range keys {
		if got, _, err := f.get(k); err != nil || string(got) != fmt.Sprintf("body %d", i) {
			f.Errorf("get %q: %q, %v; want body %d", k, got, err, i)
		}
	}
	var listed []string
	p := s3.NewListObjectsV2Paginator(f.c, &s3.ListObjectsV2Input{Bucket: f.bucket, MaxKeys: aws.Int32(4), EncodingType: types.EncodingTypeUrl})
	for p.HasMorePages() {
		page, err := p.NextPage(f.Context())
		if err != nil {
			f.Fatal(err)
		}
		for _, o := range page.Contents {
			listed = append(listed, unescape(f.T, *o.Key))
		}
	}
	slices.Sort(keys)
	if diff := cmp.Diff(keys, listed); diff != "" {
		f.Errorf("listed keys (-want +got):\n%s", diff)
	}
	for _, k := range keys {
		if _, err := f.c.DeleteObject(f.Context(), &s3.DeleteObjectInput{Bucket: f.bucket, Key: &k}); err != nil {
			f.Errorf("delete %q: %v", k, err)
		}
	}
	if out, err := f.c.ListObjectsV2(f.Context(), &s3.ListObjectsV2Input{Bucket: f.bucket}); err != nil || len(out.Contents) != 0 {
		f.Errorf("after deleting all: %+v, %v", out, err)
	}
}

// unescape undoes encoding-type=url, which the SDK leaves to its caller.
func unescape(t *testing.T, s string) string {
	t.Helper()
	u, err := url.QueryUnescape(s)
	if err != nil {
		t.Errorf("listed key %q: %v", s, err)
	}
	return u
}
