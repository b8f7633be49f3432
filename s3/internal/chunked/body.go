// Package chunked reads the bodies of S3 requests and verifies them while they stream: plain bodies against the SHA-256 of
// the request, and aws-chunked ones (signed chunks, signed chunks with a signed trailer, unsigned chunks with a trailer) against
// their framing, their declared length and their chain of signatures.
//
// It promises that a Body returns its last byte only after everything that can be verified was: the digest, every signature,
// the exact length, the final chunk, the announced trailers, and that nothing follows. The bytes of a signed chunk of at most
// MaxBufferedChunk are released only after its signature held; those of a larger one as they arrive, but never the last of
// them. So a reader that stores all Size bytes, or one that reads to io.EOF, has a verified body, and on any error it must make
// nothing of the body visible. Two kinds are verified only by the Read that returns io.EOF: an empty body, and a plain one whose
// size is not known.
//
// It does not check the checksums in the trailer (the caller computes those over what it read), does not bound the size of a
// body, and accepts chunks below AWS's minimum of 8 KiB.
package chunked

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"coffer/s3/internal/sigv4"
)

// Body is the decoded body of a request. It is not safe for concurrent use. A refusal is a *sigv4.Error; any other error comes
// from the connection. Errors stick.
type Body interface {
	io.Reader
	// Size is the number of bytes that Read will deliver in all, -1 if the client did not say.
	Size() int64
	// Trailer holds the trailers by canonical name, from the moment that Read returned the last byte or io.EOF. It is nil before
	// that, and for a body without trailers.
	Trailer() http.Header
}

// Open returns the body of r, which res says how to verify, by hashes from newSHA256. It reads nothing yet, so that a client which
// waits for 100 Continue is not told to go on.
func Open(r *http.Request, res *sigv4.Result, newSHA256 func() hash.Hash) (Body, error) {
	withTrailer := res.Payload == sigv4.PayloadStreamSignedTrailer || res.Payload == sigv4.PayloadStreamUnsignedTrailer
	announced, err := parseAnnounced(r.Header.Values("X-Amz-Trailer"))
	if err != nil {
		return nil, err
	}
	if len(announced) > 0 && !withTrailer {
		return nil, refuse(sigv4.InvalidRequest, "x-amz-trailer needs an x-amz-content-sha256 that announces a trailer.")
	}
	switch res.Payload {
	case sigv4.PayloadSigned:
		return &plain{src: r.Body, size: r.ContentLength, left: r.ContentLength, hash: newSHA256(), want: res.SHA256}, nil
	case sigv4.PayloadUnsigned:
		return &plain{src: r.Body, size: r.ContentLength, left: r.ContentLength}, nil
	}
	size, err := parseDecodedLength(r.Header.Values("X-Amz-Decoded-Content-Length"))
	if err != nil {
		return nil, err
	}
	d := &decoder{br: bufio.NewReaderSize(r.Body, bufferSize), size: size, left: size, withTrailer: withTrailer, announced: announced}
	if res.Payload != sigv4.PayloadStreamUnsignedTrailer {
		d.signer, d.hash = res.Chunks, newSHA256()
	}
	return d, nil
}

func parseDecodedLength(values []string) (int64, error) {
	if len(values) == 0 {
		return 0, refuse(sigv4.MissingContentLength, "You must provide the x-amz-decoded-content-length HTTP header.")
	}
	size, err := strconv.ParseUint(strings.TrimSpace(values[0]), 10, 63)
	if err != nil || len(values) > 1 {
		return 0, refuse(sigv4.MissingContentLength, "x-amz-decoded-content-length must be one number.")
	}
	return int64(size), nil
}

// parseAnnounced reads x-amz-trailer: the lower-case names of the trailers to come. Only checksums can be sent so.
func parseAnnounced(values []string) ([]string, error) {
	var names []string
	for _, value := range values {
		for name := range strings.SplitSeq(value, ",") {
			name = strings.ToLower(strings.TrimSpace(name))
			if name == "" {
				continue
			}
			if !strings.HasPrefix(name, "x-amz-checksum-") || len(names) == maxTrailers {
				return nil, refuse(sigv4.InvalidRequest, "The value specified in the x-amz-trailer header is not supported")
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// plain is a body that is not aws-chunked. Its digest, if one was signed, is checked before the last byte is released.
type plain struct {
	src  io.Reader
	size int64     // -1: unknown
	left int64     // meaningless if size is unknown
	hash hash.Hash // nil: unsigned
	want [sha256.Size]byte
	err  error
}

func (b *plain) Size() int64          { return b.size }
func (b *plain) Trailer() http.Header { return nil }

func (b *plain) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	var n int
	var err error
	if b.size >= 0 { // net/http ends the body there; other sources are cut
		p = p[:min(int64(len(p)), b.left)]
	}
	if len(p) > 0 {
		n, err = b.src.Read(p)
		b.left -= int64(n)
	}
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	switch {
	case b.size >= 0 && b.left == 0 || b.size < 0 && err == io.EOF:
		if b.err = b.verify(); b.err != io.EOF {
			return 0, b.err
		}
		if n > 0 {
			return n, nil
		}
	case err != nil:
		b.err = readError(err)
	}
	return n, b.err
}

// verify returns io.EOF if the digest of the whole body is the signed one.
func (b *plain) verify() error {
	if b.hash == nil {
		return io.EOF
	}
	var got [sha256.Size]byte
	b.hash.Sum(got[:0])
	if subtle.ConstantTimeCompare(got[:], b.want[:]) != 1 {
		e := refuse(sigv4.XAmzContentSHA256Mismatch, "The provided 'x-amz-content-sha256' header does not match what was computed.")
		e.ClientSHA256, e.ServerSHA256 = hex.EncodeToString(b.want[:]), hex.EncodeToString(got[:])
		return e
	}
	return io.EOF
}

func refuse(code sigv4.Code, message string) *sigv4.Error {
	return &sigv4.Error{Code: code, Message: message}
}

// readError tells a body that ended early, which is the client's fault, from a failed connection.
func readError(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return &sigv4.Error{Code: sigv4.IncompleteBody, Message: "The request body terminated unexpectedly", Err: err}
	}
	return fmt.Errorf("read request body: %w", err)
}
