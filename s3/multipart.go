package s3

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"coffer/object"
)

// headerCopyRange says which bytes of its source UploadPartCopy copies.
const headerCopyRange = "x-amz-copy-source-range"

// maxUploadID bounds an upload id from a client; the store's are shorter.
const maxUploadID = 256

// uploadID reads the id of an upload from the query.
func (c *call) uploadID() (string, error) {
	id := c.query.Get("uploadId")
	if id == "" || len(id) > maxUploadID {
		return "", errNoSuchUpload.with(errorDetail{UploadID: id[:min(len(id), maxUploadID)]})
	}
	return id, nil
}

func (s *Server) createUpload(c *call) error {
	h := c.r.Header
	var opt object.UploadOptions
	var err error
	if opt.Meta, err = parseMeta(h); err != nil {
		return err
	}
	if opt.SSE, err = writeSSE(c.r); err != nil {
		return err
	}
	if opt.Checksum, opt.Composite, err = uploadChecksum(h); err != nil {
		return err
	}
	u, err := s.opt.Store.CreateUpload(c.ctx, c.bucket, c.key, opt)
	if err != nil {
		return err
	}
	out := c.w.Header()
	setSSE(out, u.SSE)
	if opt.Checksum != object.AlgoNone {
		set(out, "x-amz-checksum-algorithm", algoName(opt.Checksum))
		set(out, "x-amz-checksum-type", uploadType(opt.Checksum, opt.Composite))
	}
	return c.xml(createUploadXML{Bucket: c.bucket, Key: xmlText(c.key), UploadID: u.ID})
}

func uploadType(algo object.Algo, composite bool) string {
	return checksumType(object.Checksum{Algo: algo, Composite: composite})
}

// partTarget is what UploadPart and UploadPartCopy have in common: where the part goes, and its customer key.
type partTarget struct {
	upload string
	number int
	sse    object.SSE
}

func (c *call) partTarget() (partTarget, error) {
	var t partTarget
	var err error
	if t.upload, err = c.uploadID(); err != nil {
		return t, err
	}
	if t.number, err = c.partNumber(); err != nil {
		return t, err
	}
	t.sse, err = readSSE(c.r)
	return t, err
}

func (s *Server) uploadPart(c *call) error {
	if err := noCopyHeaders(c.r.Header); err != nil {
		return err
	}
	t, err := c.partTarget()
	if err != nil {
		return err
	}
	u, err := c.newUpload(object.MaxPartSize)
	if err != nil {
		return err
	}
	if err := s.checkPartAlgorithm(c, t.upload, u.claim.alg); err != nil {
		return err
	}
	p, err := s.opt.Store.PutPart(c.ctx, c.bucket, c.key, t.upload, t.number, c.body, object.PartOptions{
		Size: u.size, SSE: t.sse, Checksum: u.claim.algo(), NeedMD5: u.claim.md5 != nil, Check: u.check,
	})
	if err != nil {
		return err
	}
	out := c.w.Header()
	set(out, "ETag", quoteETag(p.ETag))
	sum := p.Checksum
	if u.claim.alg != nil { // another than the stored one, for an upload that named none
		sum = object.Checksum{Algo: u.claim.alg.algo, Sum: u.claim.sum}
	}
	if alg := algorithmOf(sum.Algo); alg != nil {
		set(out, alg.header, checksumText(sum, 0))
	}
	setSSE(out, t.sse)
	return c.empty(http.StatusOK)
}

// checkPartAlgorithm compares the algorithm that a part claims, nil for none, with that of its upload, as AWS does. Parts of an
// upload that named none may claim any, as SDKs with default checksums do; the claim is verified and the upload's default kept. A
// composite checksum is one over the claims, so that each part needs one.
func (s *Server) checkPartAlgorithm(c *call, id string, got *algorithm) error {
	page, err := s.opt.Store.ListParts(c.ctx, c.bucket, c.key, id, object.MaxParts, 1)
	if err != nil {
		return err
	}
	u, name := page.Upload, "null"
	switch {
	case got == nil && !u.Composite:
		return nil
	case got != nil && (u.Checksum == object.AlgoNone || u.Checksum == object.AlgoCRC64NVME || u.Checksum == got.algo):
		return nil
	case got != nil:
		name = strings.ToLower(got.name)
	}
	return errInvalidRequest.say("Checksum Type mismatch occurred, expected checksum Type: %s, actual checksum Type: %s",
		strings.ToLower(algoName(u.Checksum)), name)
}

func (s *Server) uploadPartCopy(c *call) error {
	t, err := c.partTarget()
	if err != nil {
		return err
	}
	src, err := s.copySource(c)
	if err != nil {
		return err
	}
	if src.Range, err = parseCopyRange(c.r.Header.Get(headerCopyRange)); err != nil {
		return err
	}
	conditions := src.Check
	src.Check = func(o object.Object) error {
		if err := conditions(o); err != nil {
			return err
		}
		if src.Range != nil && src.Range.Last >= o.Size {
			return object.ErrRange // unlike a read, a copy must get all that it asks for
		}
		return nil
	}
	p, err := s.opt.Store.CopyPart(c.ctx, src, c.bucket, c.key, t.upload, t.number, object.PartOptions{Size: -1, SSE: t.sse})
	switch {
	case errors.Is(err, object.ErrRange):
		return s.badCopyRange(c, src, conditions)
	case err != nil:
		return sourceError(err, src)
	}
	setSSE(c.w.Header(), t.sse)
	return c.xml(copyPartXML{LastModified: xmlTime(p.Modified), ETag: quoteETag(p.ETag), checksumXML: checksumDoc(p.Checksum, 0)})
}

// badCopyRange answers a range that the source does not have. Its preconditions come first.
func (s *Server) badCopyRange(c *call, src object.CopySource, conditions func(object.Object) error) error {
	o, err := s.opt.Store.Head(c.ctx, src.Bucket, src.Key, object.GetOptions{SSE: src.SSE})
	if err != nil {
		return sourceError(&object.SourceError{Err: err}, src)
	}
	if err := conditions(o); err != nil {
		return err
	}
	return invalidArgument(headerCopyRange, c.r.Header.Get(headerCopyRange), "Range specified is not valid for source object of size: %d", o.Size)
}

func (s *Server) completeUpload(c *call) error {
	id, err := c.uploadID()
	if err != nil {
		return err
	}
	opt, err := s.completeOptions(c, id)
	if err != nil {
		return err
	}
	o, err := s.opt.Store.CompleteUpload(c.ctx, c.bucket, c.key, id, opt)
	if err != nil {
		return explain(err, opt.Conditions)
	}
	if o.SSE.Mode != object.ModeCustomer { // AWS echoes a customer key everywhere but here
		setSSE(c.w.Header(), o.SSE)
	}
	return c.xml(completeResultXML{
		Location: c.location(), Bucket: c.bucket, Key: xmlText(c.key), ETag: quoteETag(o.ETag),
		checksumXML: checksumDoc(o.Checksum, len(o.Parts)), ChecksumType: checksumType(o.Checksum),
	})
}

// completeOptions reads the headers and the document of CompleteMultipartUpload. Its x-amz-checksum-* header is the object's, not
// the document's: only Content-MD5 and a trailer cover that.
func (s *Server) completeOptions(c *call, id string) (opt object.CompleteOptions, err error) {
	h := c.r.Header.Clone()
	h.Del("X-Amz-Sdk-Checksum-Algorithm") // says how the SDK would sum the document
	parts, err := cutParts(h)
	if err != nil {
		return opt, err
	}
	cl, err := parseClaim(h)
	if err != nil {
		return opt, err
	}
	of := claim{md5: cl.md5} // what is claimed of the document
	if cl.trailer {
		of = cl
	}
	body, err := c.readDocument(of)
	if err != nil {
		return opt, err
	}
	if len(body) == 0 {
		return opt, errInvalidRequest.say("You must specify at least one part")
	}
	var doc completeUploadXML
	if err := decodeXML(body, &doc); err != nil {
		return opt, err
	}
	if opt.Parts, err = doc.parts(); err != nil {
		return opt, err
	}
	if parts > 0 && parts != len(opt.Parts) {
		return opt, errBadDigest.say("The %s you specified did not match the calculated checksum.", cl.alg.name)
	}
	opt.Size = -1
	if v := h.Get("X-Amz-Mp-Object-Size"); v != "" {
		if opt.Size, err = strconv.ParseInt(v, 10, 64); err != nil || opt.Size < 0 {
			return opt, invalidArgument("x-amz-mp-object-size", v, "The x-amz-mp-object-size header is invalid.")
		}
	}
	if opt.Conditions, err = writeConditions(h); err != nil {
		return opt, err
	}
	if opt.SSE, err = readSSE(c.r); err != nil {
		return opt, err
	}
	opt.Checksum, err = s.completeChecksum(c, id, cl, opt.Parts)
	opt.Checksum.Composite = opt.Checksum.Composite || parts > 0
	return opt, err
}

// completeChecksum reads the checksum of the object that a client completes with, and makes sure that each part of a composite one
// is vouched for, as AWS does. Whether a sum is of the full object or of the parts' checksums is decided by the upload: clients send
// composite ones with and without "-parts" behind them.
func (s *Server) completeChecksum(c *call, id string, cl claim, parts []object.CompletePart) (sum object.Checksum, err error) {
	if cl.alg != nil && !cl.trailer {
		sum = object.Checksum{Algo: cl.alg.algo, Sum: cl.sum}
	}
	page, err := s.opt.Store.ListParts(c.ctx, c.bucket, c.key, id, object.MaxParts, 1)
	if errors.Is(err, object.ErrNoSuchUpload) {
		return sum, nil // perhaps it was completed: CompleteUpload knows
	} else if err != nil {
		return sum, err
	}
	u := page.Upload
	if typ, want := c.r.Header.Get("X-Amz-Checksum-Type"), uploadType(u.Checksum, u.Composite); typ != "" && want != "" && typ != want {
		return sum, errInvalidRequest.say("The upload was created using the %s checksum mode. The complete request must use the same checksum mode.", want)
	}
	if i := slices.IndexFunc(parts, func(p object.CompletePart) bool { return p.Checksum.Algo != u.Checksum }); u.Composite && i >= 0 {
		return sum, errInvalidRequest.say("The upload was created using a %s checksum. The complete request must include the checksum for each part. It was missing for part %d in the request.",
			strings.ToLower(algoName(u.Checksum)), parts[i].Number)
	}
	sum.Composite = u.Composite && cl.alg != nil
	return sum, nil
}

func (doc completeUploadXML) parts() ([]object.CompletePart, error) {
	if len(doc.Parts) == 0 || len(doc.Parts) > object.MaxParts {
		return nil, errMalformedXML
	}
	parts := make([]object.CompletePart, len(doc.Parts))
	for i, p := range doc.Parts {
		if p.PartNumber < 1 || p.PartNumber > object.MaxParts {
			return nil, errInvalidPart
		}
		sum, err := p.claimed()
		if err != nil {
			return nil, err
		}
		parts[i] = object.CompletePart{Number: p.PartNumber, ETag: trimETag(p.ETag), Checksum: sum}
	}
	return parts, nil
}

// location is the URL of the object as the client reached it.
func (c *call) location() string {
	scheme := "http"
	if c.r.TLS != nil {
		scheme = "https"
	}
	u := url.URL{Scheme: scheme, Host: c.r.Host, Path: "/" + c.bucket + "/" + c.key}
	if c.virtualHost {
		u.Path = "/" + c.key
	}
	return u.String()
}

func (s *Server) abortUpload(c *call) error {
	id, err := c.uploadID()
	if err != nil {
		return err
	}
	if err := s.opt.Store.AbortUpload(c.ctx, c.bucket, c.key, id); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (s *Server) listParts(c *call) error {
	id, err := c.uploadID()
	if err != nil {
		return err
	}
	l, err := c.listing("max-parts")
	if err != nil {
		return err
	}
	after, err := c.count("part-number-marker", object.MaxParts, 0)
	if err != nil {
		return err
	}
	owner, err := s.owner(c)
	if err != nil {
		return err
	}
	page, err := s.opt.Store.ListParts(c.ctx, c.bucket, c.key, id, after, max(l.max, 1))
	if err != nil {
		return err
	}
	if l.max == 0 {
		page.Parts, page.Truncated, page.Next = nil, false, 0
	}
	u := page.Upload
	doc := listPartsXML{
		Bucket: c.bucket, Key: l.text(c.key), UploadID: id, PartNumberMarker: after, NextPartNumberMarker: page.Next, MaxParts: l.max,
		IsTruncated: page.Truncated, Initiator: *owner, Owner: *owner, StorageClass: storageClass(u.Meta),
		ChecksumAlgorithm: algoName(u.Checksum), ChecksumType: uploadType(u.Checksum, u.Composite),
	}
	for _, p := range page.Parts {
		doc.Part = append(doc.Part, partXML{
			PartNumber: p.Number, LastModified: xmlTime(p.Modified), ETag: quoteETag(p.ETag), Size: p.Size, checksumXML: checksumDoc(p.Checksum, 0),
		})
		doc.NextPartNumberMarker = p.Number
	}
	return c.xml(doc)
}

func (s *Server) listUploads(c *call) error {
	l, err := c.listing("max-uploads")
	if err != nil {
		return err
	}
	owner, err := s.owner(c)
	if err != nil {
		return err
	}
	q := c.query
	doc := listUploadsXML{
		Bucket: c.bucket, KeyMarker: l.text(q.Get("key-marker")), UploadIDMarker: q.Get("upload-id-marker"), Prefix: l.text(l.prefix),
		Delimiter: l.text(l.delimiter), EncodingType: l.encodingType, MaxUploads: l.max,
	}
	if l.max == 0 {
		return c.xml(doc)
	}
	page, err := s.opt.Store.ListUploads(c.ctx, c.bucket, object.ListUploadsOptions{
		Prefix: l.prefix, Delimiter: l.delimiter, KeyMarker: q.Get("key-marker"), IDMarker: q.Get("upload-id-marker"), Max: l.max,
	})
	if err != nil {
		return err
	}
	doc.IsTruncated, doc.CommonPrefixes = page.Truncated, l.prefixes(page.Prefixes)
	if page.Truncated {
		doc.NextKeyMarker, doc.NextUploadIDMarker = l.text(page.NextKeyMarker), page.NextID
	}
	for _, u := range page.Uploads {
		doc.Upload = append(doc.Upload, uploadXML{
			Key: l.text(u.Key), UploadID: u.ID, Initiator: *owner, Owner: *owner, StorageClass: storageClass(u.Meta),
			Initiated: xmlTime(u.Initiated), ChecksumAlgorithm: algoName(u.Checksum), ChecksumType: uploadType(u.Checksum, u.Composite),
		})
	}
	return c.xml(doc)
}
