package sigv4

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Credentials and time of the examples in AWS's documentation.
const (
	exampleKey    = "AKIAIOSFODNN7EXAMPLE"
	exampleSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

var exampleTime = time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)

func exampleVerifier() *Verifier {
	return &Verifier{
		Region: "us-east-1",
		Now:    func() time.Time { return exampleTime },
		Lookup: func(_ context.Context, accessKey string) (Credentials, error) {
			if accessKey != exampleKey {
				return Credentials{}, ErrUnknownAccessKey
			}
			return Credentials{AccessKey: exampleKey, Secret: exampleSecret}, nil
		},
	}
}

// parse reads a request as a server gets it. Lines are separated by LF here for legibility.
func parse(t testing.TB, raw string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(raw, "\n", "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func code(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// docExamples are the requests of docs.aws.amazon.com/AmazonS3/latest/API/: sig-v4-header-based-auth, sigv4-query-string-auth,
// sigv4-streaming and sigv4-streaming-trailers, with their published signatures.
var docExamples = []struct {
	name, request string
	payload       Payload
}{
	{"get object", `GET /test.txt HTTP/1.1
Host: examplebucket.s3.amazonaws.com
Range: bytes=0-9
x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
x-amz-date: 20130524T000000Z
Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41`, PayloadSigned},
	{"put object", `PUT /test$file.text HTTP/1.1
Host: examplebucket.s3.amazonaws.com
Date: Fri, 24 May 2013 00:00:00 GMT
x-amz-date: 20130524T000000Z
x-amz-storage-class: REDUCED_REDUNDANCY
x-amz-content-sha256: 44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072
Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class,Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd`, PayloadSigned},
	{"get bucket lifecycle", `GET /?lifecycle HTTP/1.1
Host: examplebucket.s3.amazonaws.com
x-amz-date: 20130524T000000Z
x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543`, PayloadSigned},
	{"list objects", `GET /?max-keys=2&prefix=J HTTP/1.1
Host: examplebucket.s3.amazonaws.com
x-amz-date: 20130524T000000Z
x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7`, PayloadSigned},
	{"presigned", `GET /test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404 HTTP/1.1
Host: examplebucket.s3.amazonaws.com`, PayloadUnsigned},
	{"streaming", `PUT /examplebucket/chunkObject.txt HTTP/1.1
Host: s3.amazonaws.com
x-amz-date: 20130524T000000Z
x-amz-storage-class: REDUCED_REDUNDANCY
Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class,Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9
x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD
Content-Encoding: aws-chunked
x-amz-decoded-content-length: 66560
Content-Length: 66824`, PayloadStreamSigned},
	{"streaming with trailer", `PUT /examplebucket/chunkObject.txt HTTP/1.1
Host: s3.amazonaws.com
x-amz-date: 20130524T000000Z
x-amz-storage-class: REDUCED_REDUNDANCY
Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer,Signature=106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e
x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER
Content-Encoding: aws-chunked
x-amz-decoded-content-length: 66560
x-amz-trailer: x-amz-checksum-crc32c`, PayloadStreamSignedTrailer},
}

func TestDocumentedExamples(t *testing.T) {
	for _, ex := range docExamples {
		t.Run(ex.name, func(t *testing.T) {
			v := exampleVerifier()
			for range 2 { // the second run takes the signing key from the cache
				res, err := v.Verify(parse(t, ex.request))
				if err != nil {
					if e, ok := errors.AsType[*Error](err); ok {
						t.Log(e.CanonicalRequest)
					}
					t.Fatal(err)
				}
				if res.Payload != ex.payload || res.AccessKey != exampleKey || res.Presigned != (ex.name == "presigned") {
					t.Errorf("result %+v", res)
				}
				if signed := ex.payload == PayloadStreamSigned || ex.payload == PayloadStreamSignedTrailer; (res.Chunks != nil) != signed {
					t.Errorf("chunk signer present: %v", res.Chunks != nil)
				}
			}
			// The examples are signed for one instant and one secret.
			late := exampleVerifier()
			late.Now = func() time.Time { return exampleTime.Add(8 * 24 * time.Hour) }
			if _, err := late.Verify(parse(t, ex.request)); code(err) != RequestTimeTooSkewed && code(err) != AccessDenied {
				t.Errorf("late: %v", err)
			}
			other := exampleVerifier()
			other.Lookup = func(context.Context, string) (Credentials, error) { return Credentials{Secret: "other"}, nil }
			if _, err := other.Verify(parse(t, ex.request)); code(err) != SignatureDoesNotMatch {
				t.Errorf("other secret: %v", err)
			}
		})
	}
}

// TestDocumentedChunks checks the chain of chunk signatures that AWS documents for 64 KiB and 1 KiB of the letter a.
func TestDocumentedChunks(t *testing.T) {
	key := SigningKey(exampleSecret, "20130524", "us-east-1", "s3")
	sum := func(s string) *[32]byte { h := sha256.Sum256([]byte(s)); return &h }
	chunks := []*[32]byte{sum(strings.Repeat("a", 65536)), sum(strings.Repeat("a", 1024)), sum("")}
	for _, ex := range []struct {
		name, seed string
		want       []string
		trailer    string
	}{
		{"plain", "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9", []string{
			"ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
			"0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
			"b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
		}, ""},
		{"trailer", "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e", []string{
			"b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
			"1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
			"2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
		}, "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"},
	} {
		t.Run(ex.name, func(t *testing.T) {
			c := NewChunkSigner(key, "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", Signature([]byte(ex.seed)))
			for i, want := range ex.want {
				if got := c.Chunk(chunks[i]); string(got[:]) != want {
					t.Errorf("chunk %d: %s, want %s", i, got[:], want)
				}
			}
			if ex.trailer != "" {
				if got := c.Trailer(sum("x-amz-checksum-crc32c:sOO8/Q==\n")); string(got[:]) != ex.trailer {
					t.Errorf("trailer: %s, want %s", got[:], ex.trailer)
				}
			}
		})
	}
	if h := sha256.Sum256(nil); hex.EncodeToString(h[:]) != emptySHA256 {
		t.Error("emptySHA256 is wrong")
	}
}
