package s3

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"coffer/object"
)

func sortedTags(tags map[string]string) []tagXML {
	var out []tagXML
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, tagXML{xmlText(k), xmlText(tags[k])})
	}
	return out
}

func (s *Server) putObject(c *call) error {
	h := c.r.Header
	if err := noCopyHeaders(h); err != nil {
		return err
	}
	meta, err := parseMeta(h)
	if err != nil {
		return err
	}
	if v := h.Get("X-Amz-Write-Offset-Bytes"); v != "" {
		return notImplementedHeader("x-amz-write-offset-bytes")
	}
	sse, err := writeSSE(c.r)
	if err != nil {
		return err
	}
	cond, err := writeConditions(h)
	if err != nil {
		return err
	}
	u, err := c.newUpload(object.MaxPutSize)
	if err != nil {
		return err
	}
	o, err := s.opt.Store.Put(c.ctx, c.bucket, c.key, c.body, object.PutOptions{
		Size: u.size, Meta: meta, SSE: sse, Conditions: cond, Checksum: u.claim.algo(), NeedMD5: u.claim.md5 != nil, Check: u.check,
	})
	if err != nil {
		return explain(err, cond)
	}
	out := c.w.Header()
	set(out, "ETag", quoteETag(o.ETag))
	setSSE(out, o.SSE)
	setChecksum(out, o.Checksum, len(o.Parts))
	return c.empty(http.StatusOK)
}

// explain names the precondition of a write that did not hold.
func explain(err error, cond object.Conditions) error {
	if !errors.Is(err, object.ErrPreconditionFailed) {
		return err
	}
	name := "If-Match"
	if cond.IfNoneMatch != "" {
		name = "If-None-Match"
	}
	return errPreconditionFailed.because(err).with(errorDetail{Condition: name})
}

// directive reads a COPY or REPLACE header.
func directive(h http.Header, name, what string) (replace bool, err error) {
	switch v := h.Get(name); v {
	case "", "COPY":
		return false, nil
	case "REPLACE":
		return true, nil
	default:
		return false, invalidArgument(name, v, "Unknown %s directive.", what)
	}
}

// noCopyHeaders refuses what describes the source of a copy where there is none: the client meant another call.
func noCopyHeaders(h http.Header) error {
	for name, v := range h {
		if strings.HasPrefix(name, "X-Amz-Copy-Source-") {
			return invalidArgument(strings.ToLower(name), v[0], "%s needs x-amz-copy-source.", strings.ToLower(name))
		}
	}
	return nil
}

// copySource reads what CopyObject and UploadPartCopy copy from, and asks whether the caller may read it.
func (s *Server) copySource(c *call) (object.CopySource, error) {
	var src object.CopySource
	h := c.r.Header
	bucket, key, version, err := parseCopySource(h.Get("X-Amz-Copy-Source"))
	if err != nil {
		return src, err
	}
	src.Bucket, src.Key = bucket, key
	if err := s.authorize(c, "s3:GetObject", bucket, key); err != nil {
		return src, err
	}
	if version != "" && version != nullVersion {
		return src, errNoSuchVersion.with(errorDetail{Key: xmlText(key), VersionID: version})
	}
	if want := h.Get("X-Amz-Source-Expected-Bucket-Owner"); want != "" {
		if err := s.requireOwner(c, bucket, want); err != nil {
			return src, sourceError(&object.SourceError{Err: err}, src)
		}
	}
	src.SSE, err = customerSSE(c.r, headerCopyCustomer)
	src.Check = func(o object.Object) error { return checkConditions(h, copyConditions, o) }
	return src, err
}

func (s *Server) copyObject(c *call) error {
	h := c.r.Header
	if v := h.Get(headerCopyRange); v != "" { // would copy another object than the client meant
		return invalidArgument(headerCopyRange, v, "%s is a header of UploadPartCopy.", headerCopyRange)
	}
	src, err := s.copySource(c)
	if err != nil {
		return err
	}
	var opt object.CopyOptions
	if opt.Meta, err = parseMeta(h); err != nil {
		return err
	}
	if opt.ReplaceMeta, err = directive(h, "x-amz-metadata-directive", "metadata"); err != nil {
		return err
	}
	if opt.ReplaceTags, err = directive(h, "x-amz-tagging-directive", "tagging"); err != nil {
		return err
	}
	if opt.SSE, err = writeSSE(c.r); err != nil {
		return err
	}
	if opt.Conditions, err = writeConditions(h); err != nil {
		return err
	}
	if opt.Checksum, _, err = uploadChecksum(h); err != nil {
		return err
	}
	toSelf := src.Bucket == c.bucket && src.Key == c.key
	changes := opt.ReplaceMeta || opt.Meta.StorageClass != "" || opt.Meta.WebsiteRedirect != "" || opt.SSE.Mode != object.ModeDefault ||
		src.SSE.Mode != object.ModeDefault || opt.Checksum != object.AlgoNone
	if toSelf && !changes {
		return errInvalidRequest.say("This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
	}
	conditions := src.Check
	src.Check = func(o object.Object) error {
		if o.Size > object.MaxPutSize {
			return errInvalidRequest.say("The specified copy source is larger than the maximum allowable size for a copy source: %d", int64(object.MaxPutSize))
		}
		return conditions(o)
	}
	o, err := s.opt.Store.Copy(c.ctx, src, c.bucket, c.key, opt)
	if err != nil {
		return explain(sourceError(err, src), opt.Conditions)
	}
	setSSE(c.w.Header(), o.SSE)
	return c.xml(copyObjectXML{
		LastModified: xmlTime(o.Modified), ETag: quoteETag(o.ETag), ChecksumType: checksumType(o.Checksum), checksumXML: checksumDoc(o.Checksum, len(o.Parts)),
	})
}

// sourceError names the source, not the target, when the source is missing.
func sourceError(err error, src object.CopySource) error {
	e, ok := errors.AsType[*object.SourceError](err)
	switch {
	case ok && errors.Is(e, object.ErrNoSuchKey):
		return errNoSuchKey.because(err).with(errorDetail{Key: xmlText(src.Key)})
	case ok && errors.Is(e, object.ErrNoSuchBucket):
		return errNoSuchBucket.because(err).with(errorDetail{BucketName: src.Bucket})
	}
	return err
}

// Headers that make a delete conditional on directory buckets only, and the one that bypasses Object Lock, which no bucket has.
// If-None-Match, which this call does not have, could only mean to delete what is not there.
var deleteConditions = []string{"x-amz-if-match-last-modified-time", "x-amz-if-match-size", "If-None-Match"}

func (s *Server) deleteObject(c *call) error {
	if err := c.currentVersion(); err != nil {
		return err
	}
	for _, name := range deleteConditions {
		if len(c.r.Header.Values(name)) > 0 {
			return notImplementedHeader(name)
		}
	}
	cond, err := writeConditions(c.r.Header)
	if err != nil {
		return err
	}
	if err := s.opt.Store.Delete(c.ctx, c.bucket, c.key, cond); err != nil {
		return explain(err, cond)
	}
	return c.empty(http.StatusNoContent)
}

// maxDeleteKeys is the limit of DeleteObjects (API_DeleteObjects).
const maxDeleteKeys = 1000

func (s *Server) deleteObjects(c *call) error {
	if c.who.Anonymous() {
		return errAccessDenied
	}
	cl, err := parseClaim(c.r.Header)
	if err != nil {
		return err
	}
	if cl.md5 == nil && cl.alg == nil {
		return errInvalidRequest.say("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
	}
	body, err := c.readDocument(cl)
	if err != nil {
		return err
	}
	var doc deleteXML
	if err := decodeDelete(body, &doc); err != nil {
		return err
	}
	if len(doc.Objects) == 0 || len(doc.Objects) > maxDeleteKeys {
		return errMalformedXML
	}
	if err := s.requireBucket(c); err != nil {
		return err
	}
	return c.xml(s.deleteAll(c, doc))
}

// deleteAll deletes what may be deleted, in one go, and answers in the order of the request.
func (s *Server) deleteAll(c *call, doc deleteXML) deleteResultXML {
	errs := make([]error, len(doc.Objects))
	var all []object.Deletion
	var index []int
	for i, o := range doc.Objects {
		if errs[i] = s.mayDelete(c, o); errs[i] != nil {
			continue
		}
		d := object.Deletion{Key: o.Key}
		if o.ETag != nil {
			d.Conditions.IfMatch = trimETag(*o.ETag)
		}
		all, index = append(all, d), append(index, i)
	}
	for i, err := range s.opt.Store.DeleteMany(c.ctx, c.bucket, all) {
		errs[index[i]] = explain(err, all[i].Conditions)
	}
	var res deleteResultXML
	for i, o := range doc.Objects {
		if errs[i] == nil {
			if !doc.Quiet {
				res.Deleted = append(res.Deleted, deletedXML{Key: xmlText(o.Key), VersionID: o.VersionID})
			}
			continue
		}
		e := s.apiErrorOf(errs[i], c.bucket, o.Key)
		if e.isFault() {
			s.opt.Logger.Error("delete failed", "request_id", c.id, "err", nameless(errs[i]))
			s.opt.Logger.Debug("delete failed", "request_id", c.id, "err", errs[i])
		}
		res.Errors = append(res.Errors, failedXML{Key: xmlText(o.Key), VersionID: o.VersionID, Code: e.code, Message: e.message})
	}
	return res
}

func (s *Server) mayDelete(c *call, o deleteObjectXML) error {
	if o.Key == "" {
		return errUserKeyMustBeSpecified
	}
	if err := checkKey(o.Key); err != nil {
		return err
	}
	if err := s.authorize(c, "s3:DeleteObject", c.bucket, o.Key); err != nil {
		return err
	}
	switch {
	case o.VersionID != "" && o.VersionID != nullVersion:
		return errNoSuchVersion
	case o.LastModifiedTime != nil || o.Size != nil:
		return errNotImplemented
	case o.ETag != nil && trimETag(*o.ETag) == "":
		return invalidArgument("ETag", *o.ETag, "The ETag of a conditional delete is empty.")
	}
	return nil
}

// partNumber reads the part number of a query.
func (c *call) partNumber() (int, error) {
	v := c.query.Get("partNumber")
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > object.MaxParts || strings.HasPrefix(v, "+") {
		return 0, invalidArgument("partNumber", v, "Part number must be an integer between 1 and 10000, inclusive")
	}
	return n, nil
}
