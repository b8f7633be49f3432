package chunked

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"coffer/s3/internal/sigv4"
)

const (
	// MaxBufferedChunk is the largest signed chunk that is verified before any of its bytes is released. It bounds the memory
	// of a body. Clients send 64 KiB to 1 MiB.
	MaxBufferedChunk = 1 << 20

	bufferSize     = 4 << 10  // of the reader that frames chunks; longer reads bypass it
	hashSlice      = 64 << 10 // bytes hashed at a time, while they are in the cache
	maxChunkLine   = 256      // bytes of a chunk header; a signed one has at most 99
	maxTrailers    = 8        // announced; clients send one
	maxTrailerSize = 2 << 10  // bytes of all trailer lines
	maxSizeDigits  = 16       // hex digits of a chunk size

	signatureName = "x-amz-trailer-signature"
	chunkExt      = "chunk-signature="
)

var crlf = []byte("\r\n")

// decoder reads aws-chunked framing:
//
//	chunk   = size-in-hex [";chunk-signature=" 64 hex] CRLF data CRLF
//	body    = *chunk "0" [";chunk-signature=" 64 hex] CRLF *trailer ["x-amz-trailer-signature:" 64 hex CRLF] CRLF
//	trailer = name ":" value [LF] CRLF
//
// The stray LF before the CRLF of a trailer stands in AWS's documentation and is sent by minio-go; no other bare LF is taken.
type decoder struct {
	br          *bufio.Reader
	signer      *sigv4.ChunkSigner // nil: chunks are unsigned
	hash        hash.Hash          // of the current chunk, nil with signer
	withTrailer bool
	announced   []string

	size    int64
	left    int64  // decoded bytes that the client still owes
	chunk   int64  // bytes of the current chunk not yet read
	pending []byte // verified bytes not yet released, a part of buf
	buf     []byte
	sig     sigv4.Signature // of the current chunk, as sent
	sum     [sha256.Size]byte
	trailer http.Header
	err     error
}

func (d *decoder) Size() int64          { return d.size }
func (d *decoder) Trailer() http.Header { return d.trailer }

func (d *decoder) Read(p []byte) (int, error) {
	if len(d.pending) > 0 {
		n := copy(p, d.pending)
		d.pending = d.pending[n:]
		return n, nil
	}
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	n, err := d.read(p)
	d.err = err
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// read fills p from the current or the next chunk. It returns io.EOF, with the last bytes, when the whole body was verified,
// and no bytes with any other error.
func (d *decoder) read(p []byte) (int, error) {
	start := d.chunk == 0
	if start && d.left > 0 {
		if err := d.nextChunk(); err != nil {
			return 0, err
		}
	}
	if d.left == 0 { // only an empty body comes here; others finish with their last byte
		return 0, d.finish()
	}
	if d.signer != nil && start && d.chunk <= MaxBufferedChunk {
		return d.readWhole(p)
	}
	n, err := d.readSome(p[:min(int64(len(p)), d.chunk)])
	if err == nil && d.chunk == 0 {
		err = d.endChunk()
	}
	if err != nil && err != io.EOF {
		n = 0
	}
	return n, err
}

// readWhole reads and verifies the chunk that has just begun, into p if it fits, else by way of buf.
func (d *decoder) readWhole(p []byte) (int, error) {
	dst := p
	if int64(len(p)) < d.chunk {
		if int64(cap(d.buf)) < d.chunk {
			d.buf = make([]byte, d.chunk)
		}
		dst = d.buf
	}
	dst = dst[:d.chunk]
	for rest := dst; len(rest) > 0; {
		n, err := d.readSome(rest[:min(len(rest), hashSlice)])
		if err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	err := d.endChunk()
	if err != nil && err != io.EOF {
		return 0, err
	}
	n := copy(p, dst)
	d.pending = dst[n:]
	return n, err
}

// readSome reads and hashes bytes of the current chunk; p does not reach beyond it.
func (d *decoder) readSome(p []byte) (int, error) {
	n, err := d.br.Read(p)
	if err != nil && n == 0 {
		return 0, readError(err)
	}
	if d.hash != nil {
		d.hash.Write(p[:n])
	}
	d.chunk -= int64(n)
	d.left -= int64(n)
	return n, nil
}

// nextChunk reads a chunk header. A final chunk is out of place here.
func (d *decoder) nextChunk() error {
	size, err := d.readHeader()
	switch {
	case err != nil:
		return err
	case size == 0 || size > d.left:
		return refuse(sigv4.IncompleteBody, "The request body does not have the number of bytes specified by x-amz-decoded-content-length.")
	}
	d.chunk = size
	if d.hash != nil {
		d.hash.Reset()
	}
	return nil
}

// endChunk verifies the chunk whose data were read and, if it was the last, the rest of the body: then it returns io.EOF.
func (d *decoder) endChunk() error {
	if err := d.readCRLF(); err != nil {
		return err
	}
	if err := d.verifyChunk(); err != nil {
		return err
	}
	if d.left > 0 {
		return nil
	}
	return d.finish()
}

// finish reads what follows the data: the final chunk, the trailer and the end of the body. It returns io.EOF if all is well.
func (d *decoder) finish() error {
	size, err := d.readHeader()
	if err != nil {
		return err
	}
	if size != 0 {
		return refuse(sigv4.IncompleteBody, "The request body is longer than x-amz-decoded-content-length.")
	}
	if d.hash != nil {
		d.hash.Reset()
	}
	if err := d.verifyChunk(); err != nil {
		return err
	}
	var trailer http.Header
	if d.withTrailer {
		trailer, err = d.readTrailer()
	} else {
		err = d.readCRLF()
	}
	if err != nil {
		return err
	}
	switch _, err := d.br.ReadByte(); err {
	case nil:
		return malformed("data after its end")
	case io.EOF:
		d.trailer = trailer
		return io.EOF
	default:
		return readError(err)
	}
}

// verifyChunk compares the signature of the current chunk.
func (d *decoder) verifyChunk() error {
	if d.signer == nil {
		return nil
	}
	d.hash.Sum(d.sum[:0])
	want := d.signer.Chunk(&d.sum)
	return compare(&want, d.sig[:])
}

func compare(want *sigv4.Signature, got []byte) error {
	if subtle.ConstantTimeCompare(want[:], got) != 1 {
		return refuse(sigv4.SignatureDoesNotMatch, "The chunk signature we calculated does not match the signature you provided. Check your key and signing method.")
	}
	return nil
}

func (d *decoder) readCRLF() error {
	b, err := d.br.Peek(len(crlf))
	if err != nil {
		return readError(err)
	}
	if !bytes.Equal(b, crlf) {
		return malformed("chunk data not followed by CRLF")
	}
	d.br.Discard(len(crlf))
	return nil
}

// readLine returns the next line, of at most limit bytes, with its LF. The slice is valid until the next read.
func (d *decoder) readLine(limit int) ([]byte, error) {
	line, err := d.br.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(line) > limit:
		return nil, malformed("line too long")
	case err != nil:
		return nil, readError(err)
	}
	return line, nil
}

// readHeader reads a chunk header and keeps its signature.
func (d *decoder) readHeader() (size int64, err error) {
	line, err := d.readLine(maxChunkLine)
	if err != nil {
		return 0, err
	}
	size, sig, err := parseHeader(line, d.signer != nil)
	if err != nil {
		return 0, err
	}
	copy(d.sig[:], sig)
	return size, nil
}

// parseHeader parses a chunk header with its CRLF. A signed one has its signature as the only extension; extensions of an
// unsigned one are passed over.
func parseHeader(line []byte, signed bool) (size int64, sig []byte, err error) {
	line, ok := bytes.CutSuffix(line, crlf)
	if !ok {
		return 0, nil, malformed("chunk header not ended by CRLF")
	}
	digits, ext, hasExt := bytes.Cut(line, []byte(";"))
	u, err := strconv.ParseUint(string(digits), 16, 63)
	if err != nil || len(digits) > maxSizeDigits {
		return 0, nil, malformed("bad chunk size")
	}
	if signed {
		sig, ok := bytes.CutPrefix(ext, []byte(chunkExt))
		if !ok || len(sig) != len(sigv4.Signature{}) {
			return 0, nil, malformed("chunk without chunk-signature")
		}
		return int64(u), sig, nil
	}
	if hasExt && !printable(ext) {
		return 0, nil, malformed("bad chunk extension")
	}
	return int64(u), nil, nil
}

func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c > '~' {
			return false
		}
	}
	return true
}

// readTrailer reads the trailers and the empty line that ends them, and verifies their signature. Each announced trailer must
// come exactly once, no other may.
func (d *decoder) readTrailer() (http.Header, error) {
	trailer, sig, budget := make(http.Header), "", maxTrailerSize
	for {
		line, err := d.readLine(budget)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(line, crlf) {
			break
		}
		if sig != "" {
			return nil, badTrailer() // the signature is the last
		}
		budget -= len(line)
		line, ok := bytes.CutSuffix(line, crlf)
		name, value, err := parseTrailer(bytes.TrimSuffix(line, crlf[1:]))
		if err != nil {
			return nil, err
		}
		if !ok {
			if err := d.readCRLF(); err != nil {
				return nil, err
			}
		}
		if d.signer != nil && name == signatureName {
			sig = value
			continue
		}
		key := http.CanonicalHeaderKey(name)
		if !slices.Contains(d.announced, name) || trailer[key] != nil {
			return nil, badTrailer()
		}
		trailer[key] = []string{value}
	}
	if len(trailer) != len(d.announced) {
		return nil, badTrailer()
	}
	return trailer, d.verifyTrailer(trailer, sig)
}

// verifyTrailer compares the signature of the trailers, which covers them as sorted lines "name:value\n".
func (d *decoder) verifyTrailer(trailer http.Header, sig string) error {
	if d.signer == nil {
		return nil
	}
	if len(trailer) == 0 && sig == "" {
		return nil // the final chunk's signature covers all there is
	}
	slices.Sort(d.announced)
	d.hash.Reset()
	for _, name := range d.announced {
		io.WriteString(d.hash, name+":"+trailer.Get(name)+"\n")
	}
	d.hash.Sum(d.sum[:0])
	want := d.signer.Trailer(&d.sum)
	return compare(&want, []byte(sig))
}

// parseTrailer parses "name:value". White space around the value is dropped, none may surround the name.
func parseTrailer(line []byte) (name, value string, err error) {
	n, v, ok := strings.Cut(string(line), ":")
	name, value = strings.ToLower(n), strings.Trim(v, " \t")
	if !ok || name == "" || strings.ContainsAny(name, " \t") || value == "" || !printable(line) {
		return "", "", badTrailer()
	}
	return name, value, nil
}

func badTrailer() *sigv4.Error {
	return refuse(sigv4.MalformedTrailerError, "The request contained trailing data that was not well-formed or did not conform to our published schema.")
}

// malformed refuses a body whose framing is broken, by the code that S3 has for it.
func malformed(what string) *sigv4.Error {
	return refuse(sigv4.IncompleteBody, "The aws-chunked request body is malformed: "+what+".")
}
