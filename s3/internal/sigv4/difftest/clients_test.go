package difftest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"coffer/s3/internal/chunked"
	"coffer/s3/internal/sigv4"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// sink is a server that verifies PUTs and keeps what it read.
type sink struct {
	mu     sync.Mutex // guards what follows
	bodies map[string][]byte
	forms  map[sigv4.Payload]bool
	protos map[string]bool
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	res, err := verifier("").Verify(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	body, err := chunked.Open(r, res, sha256.New)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b, err := io.ReadAll(body)
	if err != nil || body.Size() != int64(len(b)) {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if sum := body.Trailer().Get("X-Amz-Checksum-Crc32"); sum != "" {
		want := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)))
		if sum != want {
			http.Error(w, "checksum "+sum, http.StatusBadRequest)
			return
		}
		w.Header().Set("X-Amz-Checksum-Crc32", sum)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies[r.URL.Path], s.forms[res.Payload], s.protos[r.Proto] = b, true, true
	w.Header().Set("ETag", `"x"`)
}

func serve(t *testing.T, tls, http2 bool) (*sink, *httptest.Server) {
	s := &sink{bodies: map[string][]byte{}, forms: map[sigv4.Payload]bool{}, protos: map[string]bool{}}
	srv := httptest.NewUnstartedServer(s)
	srv.EnableHTTP2 = http2
	if tls {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return s, srv
}

func (s *sink) check(t *testing.T, path string, want []byte) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if got, ok := s.bodies[path]; !ok || sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("%s: %d bytes arrived (%v), want %d", path, len(got), ok, len(want))
	}
}

var (
	clientSizes = []int{0, 1, 8191, 65536, 1 << 20, 1<<20 + 1}
	clientKeys  = []string{"plain", "a b+c&d=e;f(g)'!*~", "é漢/x//y", "%41%2F"}
)

// TestClients lets the clients themselves send bodies in every form that they have, over every HTTP that they speak.
func TestClients(t *testing.T) {
	for _, proto := range []struct {
		name       string
		tls, http2 bool
	}{{"plain", false, false}, {"tls", true, false}, {"http2", true, true}} {
		t.Run("aws "+proto.name, func(t *testing.T) {
			s, srv := serve(t, proto.tls, proto.http2)
			client := s3.New(s3.Options{
				Region: region, BaseEndpoint: aws.String(srv.URL), UsePathStyle: true, HTTPClient: srv.Client(), RetryMaxAttempts: 1,
				Credentials: aws.CredentialsProviderFunc(awsRetrieve), RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
			})
			for _, size := range clientSizes {
				for _, key := range clientKeys {
					data := bytes.Repeat([]byte("x"), size)
					if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{
						Bucket: aws.String("bucket"), Key: aws.String(key), Body: bytes.NewReader(data), Metadata: map[string]string{"note": "a  b   c"},
					}); err != nil {
						t.Fatalf("%d bytes to %s: %v", size, key, err)
					}
					s.check(t, "/bucket/"+key, data)
				}
			}
			t.Log("forms", slices.Collect(maps.Keys(s.forms)), "protocols", slices.Collect(maps.Keys(s.protos)))
			if proto.tls && !s.forms[sigv4.PayloadStreamUnsignedTrailer] {
				t.Error("no unsigned trailer was sent")
			}
		})
		t.Run("minio "+proto.name, func(t *testing.T) {
			s, srv := serve(t, proto.tls, proto.http2)
			host := strings.TrimPrefix(strings.TrimPrefix(srv.URL, "https://"), "http://")
			for _, trailing := range []bool{false, true} {
				client, err := minio.New(host, &minio.Options{
					Creds: credentials.NewStaticV4(accessKey, secret, ""), Secure: proto.tls, Region: region, Transport: srv.Client().Transport,
					TrailingHeaders: trailing, MaxRetries: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				for _, size := range clientSizes {
					for _, key := range clientKeys {
						data := bytes.Repeat([]byte("x"), size)
						opts := minio.PutObjectOptions{UserMetadata: map[string]string{"note": "a  b   c"}}
						if trailing {
							opts.Checksum = minio.ChecksumCRC32
						}
						if _, err := client.PutObject(t.Context(), "bucket", key, bytes.NewReader(data), int64(size), opts); err != nil {
							t.Fatalf("%d bytes to %s, trailing %v: %v", size, key, trailing, err)
						}
						s.check(t, "/bucket/"+key, data)
					}
				}
			}
			t.Log("forms", slices.Collect(maps.Keys(s.forms)), "protocols", slices.Collect(maps.Keys(s.protos)))
			if !proto.tls && (!s.forms[sigv4.PayloadStreamSigned] || !s.forms[sigv4.PayloadStreamSignedTrailer]) {
				t.Error("no signed stream was sent")
			}
		})
	}
}
