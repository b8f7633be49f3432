package s3

import (
	"bytes"
	"encoding/xml"
	"net/http"
	"strconv"
	"time"
)

// response wraps an http.ResponseWriter: it counts, remembers the status, and moves the write deadline along while the client
// accepts bytes, so that one who stops reading does not hold a reader of the store.
type response struct {
	http.ResponseWriter
	ctl     *http.ResponseController
	idle    time.Duration
	armed   time.Time // when the write deadline was last set
	began   time.Time // when the header was written
	status  int       // 0 until then
	pending int       // status that the first Write will send, see begin
	written int64
	err     error // of the first Write that failed: the client is gone
	broken  bool  // the answer ended early
}

// newResponse wraps w. The deadlines are HTTP/1's: a write deadline of an HTTP/2 stream ends it even while nothing is written.
func newResponse(w http.ResponseWriter, r *http.Request, idle time.Duration) *response {
	if r.ProtoMajor > 1 {
		idle = 0
	}
	rw := &response{ResponseWriter: w, ctl: http.NewResponseController(w), idle: idle}
	rw.arm() // for a 100 Continue
	return rw
}

// Unwrap lets http.ResponseController find the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) started() bool { return w.status != 0 }

// arm moves the write deadline, at most a few times per idle period: a timer reset per segment would cost more than it protects.
func (w *response) arm() {
	if w.idle == 0 {
		return
	}
	if now := time.Now(); now.Sub(w.armed) > w.idle/8 {
		w.armed = now
		w.ctl.SetWriteDeadline(now.Add(w.idle)) // not supported by recorders in tests, which need none
	}
}

func (w *response) WriteHeader(status int) {
	w.arm()
	w.status = status
	w.began = time.Now()
	w.ResponseWriter.WriteHeader(status)
}

// begin sets the status that the first Write sends. Until then the answer can still become an error.
func (w *response) begin(status int) { w.pending = status }

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(max(w.pending, http.StatusOK))
	}
	w.arm()
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// finish leaves a deadline for what net/http still has to flush; the next request on the connection sets its own.
func (w *response) finish() {
	w.armed = time.Time{}
	w.arm()
}

// empty answers without a body.
func (c *call) empty(status int) error {
	if status != http.StatusNoContent && status != http.StatusNotModified {
		c.w.Header().Set("Content-Length", "0")
	}
	c.w.WriteHeader(status)
	return nil
}

// xml answers 200 with a document.
func (c *call) xml(doc any) error { return c.w.document(http.StatusOK, doc) }

func (w *response) document(status int, doc any) error {
	var b bytes.Buffer
	b.WriteString(xmlHeader)
	if err := xml.NewEncoder(&b).Encode(doc); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, err := w.Write(b.Bytes())
	return err
}

// errorHeaders are the headers of an answer that stay when it turns into an error.
var errorHeaders = map[string]bool{
	"Server": true, "x-amz-request-id": true, "x-amz-id-2": true, "x-amz-bucket-region": true, "Content-Range": true,
}

// notModifiedHeaders stay as well when the answer is 304 (RFC 9110 section 15.4.5).
var notModifiedHeaders = map[string]bool{"ETag": true, "Last-Modified": true, "Cache-Control": true, "Expires": true}

// fail answers an error: its document, or for HEAD and 304 the status alone (RFC 9110 sections 9.3.2 and 15.4.5).
func (w *response) fail(c *call, e *apiError, hostID string) {
	h := w.Header()
	for name := range h {
		if !errorHeaders[name] && !(e.status == http.StatusNotModified && notModifiedHeaders[name]) {
			delete(h, name)
		}
	}
	if e.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	if c.r.Method == http.MethodHead || e.status == http.StatusNotModified {
		w.WriteHeader(e.status)
		return
	}
	// A failure to write means that the client is gone.
	_ = w.document(e.status, errorXML{
		Code: e.code, Message: e.message, Resource: xmlText(c.r.URL.EscapedPath()), errorDetail: e.detail, RequestID: c.id, HostID: hostID,
	})
}
