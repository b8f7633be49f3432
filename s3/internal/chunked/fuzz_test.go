package chunked

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"coffer/s3/internal/sigv4"
)

// FuzzDecoder feeds arbitrary bytes to the decoder in all three modes. What it accepts must have the declared length, and what
// it accepts as signed must be what was signed.
func FuzzDecoder(f *testing.F) {
	const data = "hello world"
	for mode, form := range streamForms[:3] {
		body := encode(form.payload, []string{data[:6], data[6:]}, form.trailer...)
		f.Add([]byte(body), uint8(mode), uint16(3))
		f.Add([]byte(body), uint8(mode), uint16(4096))
		f.Add([]byte(body[:len(body)-3]), uint8(mode), uint16(5))
		f.Add([]byte(strings.Replace(body, "\r\n", "\n", 1)), uint8(mode), uint16(5))
	}
	f.Add([]byte("b;x=y\r\nhello world\r\n0\r\nx-amz-checksum-crc64nvme: a\n\r\n\r\n"), uint8(2), uint16(100))
	f.Add([]byte("ffffffffffffffff\r\n"), uint8(2), uint16(100))
	f.Fuzz(func(t *testing.T, body []byte, mode uint8, read uint16) {
		form := streamForms[int(mode)%3]
		q := request{payload: form.payload, decoded: int64(len(data))}
		q.announce(form.trailer)
		b := q.open(t, bytes.NewReader(body))
		var got bytes.Buffer
		_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{b}, make([]byte, int(read)+1))
		if err != nil {
			if code(err) == "" || got.Len() >= len(data) {
				t.Fatalf("%d bytes, %v", got.Len(), err)
			}
			return
		}
		if got.Len() != len(data) || len(b.Trailer()) != len(form.trailer) {
			t.Fatalf("%q, trailer %v", got.String(), b.Trailer())
		}
		if form.payload != sigv4.PayloadStreamUnsignedTrailer && !harmless(b, got.Bytes(), form.trailer) {
			t.Fatalf("forged %q, trailer %v", got.String(), b.Trailer())
		}
	})
}

// FuzzTrailer feeds arbitrary bytes to the trailer reader: it must return exactly the announced trailers or refuse.
func FuzzTrailer(f *testing.F) {
	for _, s := range []string{
		"x-amz-checksum-crc32:AAAAAA==\r\n\r\n", "x-amz-checksum-crc32:AAAAAA==\n\r\n\r\n", "X-Amz-Checksum-Crc32: AAAAAA== \r\n\r\n",
		"\r\n", "", "x-amz-checksum-crc32:AAAAAA==\r\n", "a:b\r\n\r\n", ":\r\n\r\n", "x-amz-checksum-crc32:a:b\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := request{payload: sigv4.PayloadStreamUnsignedTrailer, trailer: []string{"x-amz-checksum-crc32"}}
		b := q.open(t, io.MultiReader(strings.NewReader("0\r\n"), bytes.NewReader(raw)))
		n, err := b.Read(make([]byte, 10))
		switch {
		case n != 0 || err == nil:
			t.Fatalf("%d, %v", n, err)
		case err != io.EOF:
			if code(err) == "" || b.Trailer() != nil {
				t.Fatalf("%v, %v", b.Trailer(), err)
			}
		default:
			v := b.Trailer()[http.CanonicalHeaderKey("x-amz-checksum-crc32")]
			if len(b.Trailer()) != 1 || len(v) != 1 || v[0] == "" || strings.ContainsAny(v[0], "\r\n") || !bytes.HasSuffix(raw, []byte("\r\n\r\n")) {
				t.Fatalf("%q: %v", raw, b.Trailer())
			}
		}
	})
}

// endless is a body of n equal chunks made without copying more than a reader of a connection would.
type endless struct {
	chunk, tail []byte
	n           int
	part        []byte
	end         bool
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.part) == 0 {
		switch {
		case e.n > 0:
			e.part = e.chunk
			e.n--
		case !e.end:
			e.part, e.end = e.tail, true
		default:
			return 0, io.EOF
		}
	}
	n := copy(p, e.part)
	e.part = e.part[n:]
	return n, nil
}

// BenchmarkUnsigned reads the form that SDKs send over TLS. The chunk sizes are those of the AWS SDKs and of minio-go.
func BenchmarkUnsigned(b *testing.B) {
	const total = 16 << 20
	for _, tc := range []struct {
		name  string
		chunk int
	}{{"chunk=64KiB", 64 << 10}, {"chunk=1MiB", 1 << 20}} {
		b.Run(tc.name, func(b *testing.B) {
			framed := encode(sigv4.PayloadStreamUnsignedTrailer, []string{random(tc.chunk)})
			chunk, tail := []byte(framed[:len(framed)-5]), []byte(framed[len(framed)-5:])
			p := make([]byte, 256<<10)
			b.SetBytes(total)
			b.ReportAllocs()
			for b.Loop() {
				q := request{payload: sigv4.PayloadStreamUnsignedTrailer, decoded: total}
				body := q.open(b, &endless{chunk: chunk, tail: tail, n: total / tc.chunk})
				drain(b, body, p, total)
			}
		})
	}
}

// BenchmarkSigned reads what minio-go sends without TLS; nearly all of it is SHA-256.
func BenchmarkSigned(b *testing.B) {
	const total = 4 << 20
	data := random(total)
	var chunks []string
	for i := 0; i < total; i += 64 << 10 {
		chunks = append(chunks, data[i:i+64<<10])
	}
	framed := encode(sigv4.PayloadStreamSigned, chunks)
	for _, tc := range []struct {
		name string
		read int
	}{{"read=64KiB", 64 << 10}, {"read=32KiB", 32 << 10}} {
		b.Run(tc.name, func(b *testing.B) {
			p := make([]byte, tc.read)
			b.SetBytes(total)
			b.ReportAllocs()
			for b.Loop() {
				q := request{payload: sigv4.PayloadStreamSigned, decoded: total}
				drain(b, q.open(b, strings.NewReader(framed)), p, total)
			}
		})
	}
}

func drain(b *testing.B, body Body, p []byte, want int64) {
	var n int64
	for {
		m, err := body.Read(p)
		n += int64(m)
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if n != want {
		b.Fatalf("%d bytes", n)
	}
}

// TestReadDoesNotAllocate: after the first chunk a body costs no memory, whatever its length.
func TestReadDoesNotAllocate(t *testing.T) {
	for _, payload := range []sigv4.Payload{sigv4.PayloadStreamSigned, sigv4.PayloadStreamUnsignedTrailer} {
		const chunks, size = 100, 8192
		body := encode(payload, strings.SplitAfterN(strings.Repeat(strings.Repeat("a", size-1)+"\n", chunks), "\n", chunks))
		q := request{payload: payload, decoded: chunks * size}
		b := q.open(t, strings.NewReader(body))
		p := make([]byte, size-1) // smaller than a chunk: by way of the buffer
		io.ReadFull(b, p)
		if n := testing.AllocsPerRun(chunks-3, func() {
			if _, err := io.ReadFull(b, p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("mode %d: %v allocations per chunk", payload, n)
		}
	}
}
