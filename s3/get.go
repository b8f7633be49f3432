package s3

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"coffer/object"
)

// nullVersion is the version id of objects in a bucket without versioning.
const nullVersion = "null"

// currentVersion admits the version ids that name the only version there is.
func (c *call) currentVersion() error {
	if !c.query.Has("versionId") {
		return nil
	}
	switch v := c.query.Get("versionId"); v {
	case nullVersion:
		return nil
	case "":
		return invalidArgument("versionId", v, "Version id cannot be the empty string")
	default:
		return errNoSuchVersion.with(errorDetail{Key: xmlText(c.key), VersionID: v})
	}
}

// overrides are the query parameters of a signed GET or HEAD that replace a header of the answer.
var overrides = []struct{ param, header string }{
	{"response-content-type", "Content-Type"},
	{"response-content-language", "Content-Language"},
	{"response-expires", "Expires"},
	{"response-cache-control", "Cache-Control"},
	{"response-content-disposition", "Content-Disposition"},
	{"response-content-encoding", "Content-Encoding"},
}

func (c *call) override(h http.Header) error {
	for _, o := range overrides {
		if !c.query.Has(o.param) {
			continue
		}
		v := c.query.Get(o.param)
		switch {
		case c.who.Anonymous():
			return errInvalidRequest.say("Request specific response headers cannot be used for anonymous GET requests.")
		case !validValue(v):
			return invalidArgument(o.param, v, "Header value cannot be represented using ISO-8859-1.")
		}
		set(h, o.header, v)
	}
	return nil
}

// selection is what GET and HEAD ask for of an object.
type selection struct {
	sse    object.SSE
	rng    *object.Range
	part   int
	header string // the Range header, for errors
}

func (c *call) selection() (sel selection, err error) {
	if err = c.currentVersion(); err != nil {
		return sel, err
	}
	if sel.sse, err = readSSE(c.r); err != nil {
		return sel, err
	}
	if sel.header = c.r.Header.Get("Range"); sel.header != "" {
		sel.rng = parseRange(sel.header)
	}
	if c.query.Has("partNumber") {
		if sel.part, err = c.partNumber(); err != nil {
			return sel, err
		}
		if sel.header != "" {
			return sel, errInvalidRequest.say("Cannot specify both Range header and partNumber query parameter")
		}
	}
	return sel, nil
}

// ifRange drops the range when the object is not the one that the client has a piece of (RFC 9110 section 13.1.5).
func (sel *selection) ifRange(h http.Header, o object.Object) {
	v := h.Get("If-Range")
	if v == "" {
		return
	}
	if t, err := http.ParseTime(v); err == nil {
		if t.Unix() != o.Modified.Unix() {
			sel.rng = nil
		}
	} else if strings.HasPrefix(v, "W/") || trimETag(v) != o.ETag {
		sel.rng = nil
	}
}

func (s *Server) getObject(c *call) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	opt := object.GetOptions{SSE: sel.sse, Range: sel.rng, Part: sel.part}
	if sel.rng != nil && c.r.Header.Get("If-Range") != "" {
		o, err := s.opt.Store.Head(c.ctx, c.bucket, c.key, object.GetOptions{SSE: sel.sse})
		if err != nil {
			return err
		}
		sel.ifRange(c.r.Header, o)
		opt.Range = sel.rng
	}
	rd, err := s.opt.Store.Get(c.ctx, c.bucket, c.key, opt)
	if err == nil && sel.rng != nil {
		// What was asked about may have been replaced meanwhile: no piece of another object may pass for one of the client's.
		if sel.ifRange(c.r.Header, rd.Object()); sel.rng == nil {
			rd.Close()
			opt.Range = nil
			rd, err = s.opt.Store.Get(c.ctx, c.bucket, c.key, opt)
		}
	}
	if err != nil {
		if errors.Is(err, object.ErrRange) {
			return s.unsatisfiable(c, sel, err)
		}
		return err
	}
	defer rd.Close()
	o := rd.Object()
	off, n := rd.Range()
	status, err := c.describe(sel, o, off, n)
	if err != nil {
		return err
	}
	c.w.begin(status)
	if n == 0 {
		c.w.WriteHeader(status)
		return nil
	}
	written, err := rd.WriteTo(c.w)
	if err == nil && written != n {
		err = fmt.Errorf("read %q: %d of %d bytes", c.key, written, n)
	}
	return err
}

func (s *Server) headObject(c *call) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	o, err := s.opt.Store.Head(c.ctx, c.bucket, c.key, object.GetOptions{SSE: sel.sse})
	if err != nil {
		return err
	}
	sel.ifRange(c.r.Header, o)
	off, n, ok := sel.resolve(o)
	if !ok {
		return s.notSatisfiable(c, sel, o, object.ErrRange)
	}
	status, err := c.describe(sel, o, off, n)
	if err != nil {
		return err
	}
	c.w.WriteHeader(status)
	return nil
}

// findPart returns the part that is asked for and where it begins. Numbers may have gaps. An object that was put whole has one
// part, number 1, which is nil here.
func (sel selection) findPart(o object.Object) (p *object.Part, off int64, ok bool) {
	for i := range o.Parts {
		if o.Parts[i].Number == sel.part {
			return &o.Parts[i], off, true
		}
		off += o.Parts[i].Size
	}
	return nil, 0, sel.part == 1 && len(o.Parts) == 0
}

// resolve says which bytes of o are asked for.
func (sel selection) resolve(o object.Object) (off, n int64, ok bool) {
	if sel.rng != nil {
		return resolveRange(*sel.rng, o.Size)
	}
	if sel.part > 0 {
		p, off, ok := sel.findPart(o)
		if p != nil {
			return off, p.Size, ok
		}
		return 0, o.Size, ok
	}
	return 0, o.Size, true
}

// describe evaluates the preconditions and sets the headers of an answer that carries n bytes of o from off.
func (c *call) describe(sel selection, o object.Object, off, n int64) (status int, err error) {
	h := c.w.Header()
	setMeta(h, o)
	if err := checkConditions(c.r.Header, readConditions, o); err != nil {
		return 0, err
	}
	setSSE(h, o.SSE)
	if err := c.override(h); err != nil {
		return 0, err
	}
	if strings.EqualFold(c.r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		if p, _, _ := sel.findPart(o); p != nil {
			// A part's checksum belongs to a checksum of checksums; one of the whole object says nothing of parts.
			if o.Checksum.Composite || len(o.Parts) == 1 {
				setChecksum(h, p.Checksum, 0)
				set(h, "x-amz-checksum-type", checksumType(o.Checksum))
			}
		} else if n == o.Size {
			setChecksum(h, o.Checksum, len(o.Parts))
		}
	}
	if sel.part > 0 && len(o.Parts) > 0 {
		set(h, "x-amz-mp-parts-count", strconv.Itoa(len(o.Parts)))
	}
	set(h, "Content-Length", strconv.FormatInt(n, 10))
	if sel.rng == nil && sel.part == 0 || n == 0 { // no Content-Range can describe an empty part
		return http.StatusOK, nil
	}
	set(h, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, o.Size))
	return http.StatusPartialContent, nil
}

// unsatisfiable answers a range or part that the object does not have. Its preconditions come first.
func (s *Server) unsatisfiable(c *call, sel selection, cause error) error {
	o, err := s.opt.Store.Head(c.ctx, c.bucket, c.key, object.GetOptions{SSE: sel.sse})
	if err != nil {
		return err
	}
	return s.notSatisfiable(c, sel, o, cause)
}

func (s *Server) notSatisfiable(c *call, sel selection, o object.Object, cause error) error {
	h := c.w.Header()
	setMeta(h, o)
	if err := checkConditions(c.r.Header, readConditions, o); err != nil {
		return err
	}
	if sel.part > 0 {
		return errInvalidPartNumber.because(cause).with(errorDetail{PartNumberRequested: strconv.Itoa(sel.part), ActualPartCount: strconv.Itoa(max(1, len(o.Parts)))})
	}
	set(h, "Content-Range", fmt.Sprintf("bytes */%d", o.Size))
	return errInvalidRange.because(cause).with(errorDetail{RangeRequested: sel.header, ActualObjectSize: strconv.FormatInt(o.Size, 10)})
}

func (s *Server) getTagging(c *call) error {
	if err := c.currentVersion(); err != nil {
		return err
	}
	o, err := s.opt.Store.Head(c.ctx, c.bucket, c.key, object.GetOptions{})
	if err != nil && !errors.Is(err, object.ErrKeyRequired) { // GetObjectTagging has no headers for a customer key
		return err
	}
	return c.xml(taggingXML{Tags: sortedTags(o.Meta.Tags)})
}
