package chunked

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"coffer/s3/internal/sigv4"
	"github.com/google/go-cmp/cmp"
)

// The key, date, scope and seeds of AWS's documented examples.
var exampleKey = sigv4.SigningKey("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1", "s3")

const (
	exampleSeed        = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
	exampleTrailerSeed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
)

func signer(seed string) *sigv4.ChunkSigner {
	return sigv4.NewChunkSigner(exampleKey, "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", sigv4.Signature([]byte(seed)))
}

// request describes a body as it stands in a request.
type request struct {
	payload sigv4.Payload
	decoded int64    // x-amz-decoded-content-length
	trailer []string // x-amz-trailer
	body    string
}

func (q request) open(t testing.TB, src io.Reader) Body {
	t.Helper()
	r := &http.Request{Header: http.Header{}, Body: io.NopCloser(src), ContentLength: -1}
	r.Header.Set("X-Amz-Decoded-Content-Length", strconv.FormatInt(q.decoded, 10))
	for _, name := range q.trailer {
		r.Header.Add("X-Amz-Trailer", name)
	}
	res := &sigv4.Result{Payload: q.payload}
	if q.payload != sigv4.PayloadStreamUnsignedTrailer {
		res.Chunks = signer(exampleSeed)
	}
	b, err := Open(r, res, sha256.New)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// trailer is one trailer line, name and value.
type trailer [2]string

// encode frames chunks and trailers as a client does.
func encode(payload sigv4.Payload, chunks []string, trailers ...trailer) string {
	var b strings.Builder
	s := signer(exampleSeed)
	signed := payload != sigv4.PayloadStreamUnsignedTrailer
	for i, chunk := range append(chunks[:len(chunks):len(chunks)], "") {
		fmt.Fprintf(&b, "%x", len(chunk))
		if signed {
			sum := sha256.Sum256([]byte(chunk))
			sig := s.Chunk(&sum)
			fmt.Fprintf(&b, ";chunk-signature=%s", sig[:])
		}
		b.WriteString("\r\n")
		if i < len(chunks) {
			b.WriteString(chunk + "\r\n")
		}
	}
	var canonical string
	for _, tr := range trailers {
		b.WriteString(tr[0] + ":" + tr[1] + "\r\n")
		canonical += tr[0] + ":" + tr[1] + "\n"
	}
	if payload == sigv4.PayloadStreamSignedTrailer && len(trailers) > 0 {
		sum := sha256.Sum256([]byte(canonical))
		sig := s.Trailer(&sum)
		fmt.Fprintf(&b, "x-amz-trailer-signature:%s\r\n", sig[:])
	}
	return b.String() + "\r\n"
}

func code(err error) sigv4.Code {
	if e, ok := errors.AsType[*sigv4.Error](err); ok {
		return e.Code
	}
	return ""
}

// TestDocumentedStreams reads the bodies of sigv4-streaming and sigv4-streaming-trailers.
func TestDocumentedStreams(t *testing.T) {
	a := strings.Repeat("a", 66560)
	plainBody := "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + a[:65536] +
		"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + a[65536:] +
		"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
	if len(plainBody) != 66824 { // the Content-Length of the example
		t.Fatalf("body of %d bytes", len(plainBody))
	}
	const trailerHead = "x-amz-checksum-crc32c:sOO8/Q=="
	const trailerSig = "x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
	chunks := "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" + a[:65536] +
		"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" + a[65536:] +
		"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
	for _, ex := range []struct {
		name, seed, body string
		payload          sigv4.Payload
	}{
		{"plain", exampleSeed, plainBody, sigv4.PayloadStreamSigned},
		{"trailer", exampleTrailerSeed, chunks + trailerHead + "\r\n" + trailerSig, sigv4.PayloadStreamSignedTrailer},
		{"trailer with LF", exampleTrailerSeed, chunks + trailerHead + "\n\r\n" + trailerSig, sigv4.PayloadStreamSignedTrailer},
	} {
		t.Run(ex.name, func(t *testing.T) {
			r := &http.Request{Header: http.Header{"X-Amz-Decoded-Content-Length": {"66560"}}, Body: io.NopCloser(strings.NewReader(ex.body))}
			if ex.payload == sigv4.PayloadStreamSignedTrailer {
				r.Header.Set("X-Amz-Trailer", "x-amz-checksum-crc32c")
			}
			b, err := Open(r, &sigv4.Result{Payload: ex.payload, Chunks: signer(ex.seed)}, sha256.New)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(b)
			if err != nil || string(got) != a || b.Size() != 66560 {
				t.Fatalf("%d bytes of %d, %v", len(got), b.Size(), err)
			}
			if want := map[bool]string{true: "sOO8/Q=="}[ex.payload == sigv4.PayloadStreamSignedTrailer]; b.Trailer().Get("X-Amz-Checksum-Crc32c") != want {
				t.Errorf("trailer %v", b.Trailer())
			}
		})
	}
}

func random(n int) string {
	r, b := rand.New(rand.NewPCG(uint64(n), 2)), make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

var streamForms = []struct {
	name    string
	payload sigv4.Payload
	trailer []trailer
}{
	{"signed", sigv4.PayloadStreamSigned, nil},
	{"signed-trailer", sigv4.PayloadStreamSignedTrailer, []trailer{{"x-amz-checksum-crc32", "AAAAAA=="}}},
	{"unsigned-trailer", sigv4.PayloadStreamUnsignedTrailer, []trailer{{"x-amz-checksum-crc64nvme", "AAAAAAAAAAA="}}},
	{"unsigned-two-trailers", sigv4.PayloadStreamUnsignedTrailer, []trailer{{"x-amz-checksum-crc32", "AAAAAA=="}, {"x-amz-checksum-sha1", "AA=="}}},
	{"signed-two-trailers", sigv4.PayloadStreamSignedTrailer, []trailer{{"x-amz-checksum-crc32", "AAAAAA=="}, {"x-amz-checksum-sha1", "AA=="}}},
	{"unsigned-none", sigv4.PayloadStreamUnsignedTrailer, nil},
	{"signed-none", sigv4.PayloadStreamSignedTrailer, nil},
}

func (q *request) announce(trailers []trailer) {
	for _, tr := range trailers {
		q.trailer = append(q.trailer, tr[0])
	}
}

// TestStreams reads every form in chunks and reads of many sizes, with sources that deliver in their own way.
func TestStreams(t *testing.T) {
	big := random(MaxBufferedChunk + 70000)
	for _, form := range streamForms {
		for _, sizes := range [][]int{{}, {1}, {1, 2, 3}, {65536, 65536, 100}, {8192, 1}, {MaxBufferedChunk}, {MaxBufferedChunk + 1, 5}, {5, MaxBufferedChunk + 60000}} {
			var chunks []string
			off := 0
			for _, n := range sizes {
				chunks = append(chunks, big[off:off+n])
				off += n
			}
			q := request{payload: form.payload, decoded: int64(off), body: encode(form.payload, chunks, form.trailer...)}
			q.announce(form.trailer)
			for _, wrap := range []func(io.Reader) io.Reader{nil, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
				for _, size := range []int{1, 7, 4096, 65536, 3 << 20} {
					var src io.Reader = strings.NewReader(q.body)
					if wrap != nil {
						if len(q.body) > 200000 {
							continue
						}
						src = wrap(src)
					}
					if size == 1 && off > 200000 {
						continue
					}
					b := q.open(t, src)
					var got bytes.Buffer
					if b.Trailer() != nil {
						t.Error("trailer before the end")
					}
					if n, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{b}, make([]byte, size)); err != nil || n != int64(off) {
						t.Fatalf("%s %v reads of %d: %d bytes, %v", form.name, sizes, size, n, err)
					}
					if got.String() != big[:off] {
						t.Fatalf("%s %v reads of %d: other bytes", form.name, sizes, size)
					}
					for _, tr := range form.trailer {
						if b.Trailer().Get(tr[0]) != tr[1] {
							t.Errorf("trailer %v", b.Trailer())
						}
					}
					if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("after the end: %d, %v", n, err)
					}
				}
			}
		}
	}
}

// TestRefusedBodies alters good bodies. No case may deliver the last byte.
func TestRefusedBodies(t *testing.T) {
	crc := trailer{"x-amz-checksum-crc32", "AAAAAA=="}
	data := []string{"hello ", "world"}
	signed := request{sigv4.PayloadStreamSigned, 11, nil, encode(sigv4.PayloadStreamSigned, data)}
	signedTrailer := request{sigv4.PayloadStreamSignedTrailer, 11, []string{crc[0]}, encode(sigv4.PayloadStreamSignedTrailer, data, crc)}
	plainTrailer := request{sigv4.PayloadStreamUnsignedTrailer, 11, []string{crc[0]}, encode(sigv4.PayloadStreamUnsignedTrailer, data, crc)}
	const last = "\r\nx-amz-checksum-crc32:AAAAAA==\r\n"
	for _, tc := range []struct {
		name     string
		q        request
		old, new string
		want     sigv4.Code
	}{
		{"data", signed, "world", "w0rld", sigv4.SignatureDoesNotMatch},
		{"chunks swapped", request{sigv4.PayloadStreamSigned, 11, nil, encode(sigv4.PayloadStreamSigned, []string{"world", "hello "})}, "world", "hellx", sigv4.SignatureDoesNotMatch},
		{"signature in upper case", signed, "chunk-signature=", "Chunk-Signature=", sigv4.IncompleteBody},
		{"signature missing", signed, ";chunk-signature=", ";", sigv4.IncompleteBody},
		{"signature short", signed, "\r\nhello", "a\r\nhello", sigv4.IncompleteBody},
		{"second extension", signed, ";chunk", ";a=b;chunk", sigv4.IncompleteBody},
		{"space before extension", signed, ";chunk", " ;chunk", sigv4.IncompleteBody},
		{"bare LF after header", signed, "\r\nhello", "\nhello", sigv4.IncompleteBody},
		{"bare CR after header", signed, "\r\nhello", "\rhello", sigv4.IncompleteBody},
		{"bare LF after data", signed, "hello \r\n", "hello \n\n", sigv4.IncompleteBody},
		{"chunk too short", signed, "6;", "5;", sigv4.IncompleteBody},
		{"chunk too long", signed, "6;", "7;", sigv4.IncompleteBody},
		{"size empty", signed, "6;", ";", sigv4.IncompleteBody},
		{"size signed", signed, "6;", "+6;", sigv4.IncompleteBody},
		{"size with prefix", signed, "6;", "0x6;", sigv4.IncompleteBody},
		{"size of 17 digits", signed, "6;", "00000000000000006;", sigv4.IncompleteBody},
		{"size of 64 bits", signed, "6;", "ffffffffffffffff;", sigv4.IncompleteBody},
		{"size beyond the length", signed, "6;", "7fffffffffffffff;", sigv4.IncompleteBody},
		{"early final chunk", signed, "6;", "0;", sigv4.IncompleteBody},
		{"line too long", plainTrailer, "6\r\n", "6;" + strings.Repeat("a", maxChunkLine) + "\r\n", sigv4.IncompleteBody},
		{"line beyond the buffer", plainTrailer, "6\r\n", "6;" + strings.Repeat("a", 2*bufferSize) + "\r\n", sigv4.IncompleteBody},
		{"control byte in extension", plainTrailer, "6\r\n", "6;a\rb\r\n", sigv4.IncompleteBody},
		{"garbage after the end", signed, "\r\n\r\n", "\r\n\r\nx", sigv4.IncompleteBody},
		{"request after the end", plainTrailer, "==\r\n\r\n", "==\r\n\r\nGET / HTTP/1.1\r\n\r\n", sigv4.IncompleteBody},
		{"trailer where none may be", signed, "\r\n\r\n", "\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", sigv4.IncompleteBody},
		{"no final line", signed, "\r\n\r\n", "\r\n", sigv4.IncompleteBody},

		{"trailer value", signedTrailer, "AAAAAA==", "AAAAAQ==", sigv4.SignatureDoesNotMatch},
		{"trailer signature", signedTrailer, "trailer-signature:", "trailer-signature:0", sigv4.SignatureDoesNotMatch},
		{"trailer signature missing", signedTrailer, signedTrailer.body[strings.Index(signedTrailer.body, "x-amz-trailer-s"):], "\r\n", sigv4.SignatureDoesNotMatch},
		{"signed trailer missing", signedTrailer, last, "\r\n", sigv4.MalformedTrailerError},
		{"trailer after its signature", signedTrailer, "\r\n\r\n", "\r\nx-amz-checksum-sha1:AA==\r\n\r\n", sigv4.MalformedTrailerError},
		{"trailer missing", plainTrailer, last, "\r\n", sigv4.MalformedTrailerError},
		{"trailer twice", plainTrailer, last, last + last[2:], sigv4.MalformedTrailerError},
		{"trailer not announced", plainTrailer, last, last + "x-amz-meta-a:b\r\n", sigv4.MalformedTrailerError},
		{"trailer signature unasked", plainTrailer, last, last + "x-amz-trailer-signature:00\r\n", sigv4.MalformedTrailerError},
		{"trailer without colon", plainTrailer, "crc32:", "crc32 ", sigv4.MalformedTrailerError},
		{"trailer with space in name", plainTrailer, "crc32:", "crc32 :", sigv4.MalformedTrailerError},
		{"trailer folded", plainTrailer, ":AAAAAA==", ":\r\n AAAAAA==", sigv4.MalformedTrailerError},
		{"trailer with CR", plainTrailer, ":AAAAAA==", ":AAA\rAAA==", sigv4.MalformedTrailerError},
		{"trailer with bare LF", plainTrailer, "==\r\n", "==\n", sigv4.IncompleteBody},
		{"trailer with two LF", plainTrailer, "==\r\n", "==\n\n\r\n", sigv4.IncompleteBody},
		{"trailer empty", plainTrailer, ":AAAAAA==", ":", sigv4.MalformedTrailerError},
		{"trailer too large", plainTrailer, ":AAAAAA==", ":" + strings.Repeat("A", maxTrailerSize), sigv4.IncompleteBody},
		{"no line after trailer", plainTrailer, "==\r\n\r\n", "==\r\n", sigv4.IncompleteBody},
		{"chunk after final", plainTrailer, last, "\r\n1\r\na\r\n0" + last, sigv4.MalformedTrailerError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.Count(tc.q.body, tc.old) == 0 {
				t.Fatal("the case does not apply")
			}
			tc.q.body = strings.Replace(tc.q.body, tc.old, tc.new, 1)
			b := tc.q.open(t, strings.NewReader(tc.q.body))
			got, err := io.ReadAll(b)
			if code(err) != tc.want || len(got) >= 11 || b.Trailer() != nil {
				t.Errorf("read %q, trailer %v, error %v; want %s", got, b.Trailer(), err, tc.want)
			}
			if _, again := b.Read(make([]byte, 10)); again != err {
				t.Errorf("error does not stick: %v, then %v", err, again)
			}
		})
	}
	t.Run("declared too short", func(t *testing.T) {
		q := signed
		q.decoded = 10
		if _, err := io.ReadAll(q.open(t, strings.NewReader(q.body))); code(err) != sigv4.IncompleteBody {
			t.Error(err)
		}
		q.decoded = 6
		if _, err := io.ReadAll(q.open(t, strings.NewReader(q.body))); code(err) != sigv4.IncompleteBody {
			t.Error(err)
		}
	})
	t.Run("declared too long", func(t *testing.T) {
		q := signed
		q.decoded = 12
		if _, err := io.ReadAll(q.open(t, strings.NewReader(q.body))); code(err) != sigv4.IncompleteBody {
			t.Error(err)
		}
	})
}

// TestEveryByteCounts flips, drops and truncates at every byte of small bodies: none may be read to its end, unless the
// decoded content and the trailers are the same.
func TestEveryByteCounts(t *testing.T) {
	for _, form := range streamForms {
		q := request{payload: form.payload, decoded: 11, body: encode(form.payload, []string{"hello ", "world"}, form.trailer...)}
		q.announce(form.trailer)
		signed := form.payload != sigv4.PayloadStreamUnsignedTrailer
		try := func(what string, at int, body string) {
			b := q.open(t, strings.NewReader(body))
			got, err := io.ReadAll(b)
			if err == nil && (signed || len(got) != 11 || len(b.Trailer()) != len(form.trailer)) && !harmless(b, got, form.trailer) {
				t.Errorf("%s: %s at %d of %q passed", form.name, what, at, body)
			}
		}
		for i := range q.body {
			try("cut", i, q.body[:i])
			try("drop", i, q.body[:i]+q.body[i+1:])
			for bit := range 8 {
				try("flip", i, q.body[:i]+string([]byte{q.body[i] ^ 1<<bit})+q.body[i+1:])
			}
		}
	}
}

// harmless: a flip may change the case of a trailer's name.
func harmless(b Body, got []byte, want []trailer) bool {
	for _, tr := range want {
		if b.Trailer().Get(tr[0]) != tr[1] {
			return false
		}
	}
	return string(got) == "hello world"
}

// TestChunkIsVerifiedBeforeRelease: of a chunk within the bound nothing comes out unverified, of a larger one not the end.
func TestChunkIsVerifiedBeforeRelease(t *testing.T) {
	good := random(65536)
	for _, size := range []int{1, 65536, MaxBufferedChunk, MaxBufferedChunk + 1} {
		bad := random(size)
		body := encode(sigv4.PayloadStreamSigned, []string{good, bad})
		at := strings.LastIndex(body, "\r\n0;") - 1 // the last byte of the second chunk
		body = body[:at] + string([]byte{body[at] ^ 1}) + body[at+1:]
		q := request{payload: sigv4.PayloadStreamSigned, decoded: int64(len(good) + size)}
		for _, read := range []int{1000, 4 << 20} {
			b := q.open(t, strings.NewReader(body))
			var got bytes.Buffer
			_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{b}, make([]byte, read))
			limit := len(good)
			if size > MaxBufferedChunk {
				limit += size - 1
			}
			if code(err) != sigv4.SignatureDoesNotMatch || got.Len() > limit {
				t.Errorf("chunk of %d, reads of %d: released %d bytes, %v", size, read, got.Len()-len(good), err)
			}
		}
	}
}

func TestPlain(t *testing.T) {
	sum := sha256.Sum256([]byte("hello"))
	empty := sha256.Sum256(nil)
	for _, tc := range []struct {
		name   string
		res    sigv4.Result
		length int64
		body   string
		want   sigv4.Code
	}{
		{"signed", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: sum}, 5, "hello", ""},
		{"signed, length unknown", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: sum}, -1, "hello", ""},
		{"signed, empty", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: empty}, 0, "", ""},
		{"signed, other", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: sum}, 5, "hellO", sigv4.XAmzContentSHA256Mismatch},
		{"signed, other, length unknown", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: sum}, -1, "hellO", sigv4.XAmzContentSHA256Mismatch},
		{"signed, other, empty", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: sum}, 0, "", sigv4.XAmzContentSHA256Mismatch},
		{"signed, short", sigv4.Result{Payload: sigv4.PayloadSigned, SHA256: sum}, 6, "hello", sigv4.IncompleteBody},
		{"unsigned", sigv4.Result{Payload: sigv4.PayloadUnsigned}, 5, "hello", ""},
		{"unsigned, length unknown", sigv4.Result{Payload: sigv4.PayloadUnsigned}, -1, "hello", ""},
		{"unsigned, short", sigv4.Result{Payload: sigv4.PayloadUnsigned}, 6, "hello", sigv4.IncompleteBody},
	} {
		for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader, func(r io.Reader) io.Reader { return r }} {
			t.Run(tc.name, func(t *testing.T) {
				r := &http.Request{Header: http.Header{}, Body: io.NopCloser(wrap(strings.NewReader(tc.body))), ContentLength: tc.length}
				b, err := Open(r, &tc.res, sha256.New)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(b)
				if tc.want == "" && (err != nil || string(got) != tc.body) {
					t.Errorf("%q, %v", got, err)
				}
				if tc.want == sigv4.XAmzContentSHA256Mismatch && tc.length > 0 && len(got) >= 5 {
					t.Errorf("released %q", got)
				}
				if code(err) != tc.want || b.Size() != tc.length || b.Trailer() != nil {
					t.Errorf("size %d, trailer %v, error %v; want %s", b.Size(), b.Trailer(), err, tc.want)
				}
			})
		}
	}
}

func TestConnectionErrorIsNoRefusal(t *testing.T) {
	broken := errors.New("connection reset")
	for _, payload := range []sigv4.Payload{sigv4.PayloadUnsigned, sigv4.PayloadStreamSigned, sigv4.PayloadStreamUnsignedTrailer} {
		body := encode(sigv4.PayloadStreamSigned, []string{"hello"})
		if payload == sigv4.PayloadStreamUnsignedTrailer {
			body = encode(payload, []string{"hello"})
		}
		for i := range len(body) - 1 {
			q := request{payload: payload, decoded: 5}
			b := q.open(t, io.MultiReader(strings.NewReader(body[:i]), iotest.ErrReader(broken)))
			if _, err := io.ReadAll(b); !errors.Is(err, broken) || code(err) != "" {
				t.Fatalf("%d bytes: %v", i, err)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	trailerMode := sigv4.PayloadStreamUnsignedTrailer
	for _, tc := range []struct {
		name    string
		payload sigv4.Payload
		header  http.Header
		want    sigv4.Code
	}{
		{"no decoded length", trailerMode, http.Header{}, sigv4.MissingContentLength},
		{"two decoded lengths", trailerMode, http.Header{"X-Amz-Decoded-Content-Length": {"1", "1"}}, sigv4.MissingContentLength},
		{"negative", trailerMode, http.Header{"X-Amz-Decoded-Content-Length": {"-1"}}, sigv4.MissingContentLength},
		{"not a number", trailerMode, http.Header{"X-Amz-Decoded-Content-Length": {"0x1"}}, sigv4.MissingContentLength},
		{"beyond 63 bits", trailerMode, http.Header{"X-Amz-Decoded-Content-Length": {"9223372036854775808"}}, sigv4.MissingContentLength},
		{"trailer in another mode", sigv4.PayloadUnsigned, http.Header{"X-Amz-Trailer": {"x-amz-checksum-crc32"}}, sigv4.InvalidRequest},
		{"trailer of another kind", trailerMode, http.Header{"X-Amz-Trailer": {"content-length"}}, sigv4.InvalidRequest},
		{"too many trailers", trailerMode, http.Header{"X-Amz-Trailer": slices.Repeat([]string{"x-amz-checksum-a"}, maxTrailers+1)}, sigv4.InvalidRequest},
	} {
		b, err := Open(&http.Request{Header: tc.header, Body: http.NoBody}, &sigv4.Result{Payload: tc.payload}, sha256.New)
		if b != nil || code(err) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	names, err := parseAnnounced([]string{"X-Amz-Checksum-CRC32 , x-amz-checksum-sha1,", "x-amz-checksum-sha256"})
	if d := cmp.Diff([]string{"x-amz-checksum-crc32", "x-amz-checksum-sha1", "x-amz-checksum-sha256"}, names); d != "" || err != nil {
		t.Error(d, err)
	}
}
