package s3

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"coffer/object"
)

// part bodies of a multipart upload in tests: the first is of the least allowed size.
var partBodies = []string{strings.Repeat("a", object.MinPartSize), "tail"}

// newUpload begins an upload of /bkt/key and returns its id.
func (e *env) newUpload(h http.Header) string {
	e.t.Helper()
	var doc struct {
		UploadID string `xml:"UploadId"`
	}
	e.ok("POST", "/bkt/key?uploads", h, "").decode(&doc)
	return doc.UploadID
}

// complete is the document that finishes an upload with the ETags.
func completeDoc(etags ...string) string {
	var b strings.Builder
	b.WriteString(`<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
	for i, tag := range etags {
		fmt.Fprintf(&b, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", i+1, strings.ReplaceAll(tag, `"`, "&quot;"))
	}
	return b.String() + "</CompleteMultipartUpload>"
}

// completeSums is the same with the CRC32 of each part that has a body.
func completeSums(etags, bodies []string) string {
	var b strings.Builder
	for i, tag := range etags {
		sum := ""
		if i < len(bodies) {
			sum = "<ChecksumCRC32>" + checksumOf("CRC32", bodies[i]) + "</ChecksumCRC32>"
		}
		fmt.Fprintf(&b, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag>%s</Part>", i+1, strings.ReplaceAll(tag, `"`, "&quot;"), sum)
	}
	return "<CompleteMultipartUpload>" + b.String() + "</CompleteMultipartUpload>"
}

func TestMultipart(t *testing.T) {
	e := newEnv(t)
	golden(t, "upload-create", e.ok("POST", "/bkt/other?uploads", nil, "").body)
	id := e.newUpload(hdr("x-amz-checksum-algorithm", "CRC32", "Content-Type", "text/plain", "x-amz-meta-a", "b"))
	target := "/bkt/key?uploadId=" + id
	var tags []string
	for i, body := range partBodies {
		a := e.ok("PUT", fmt.Sprintf("%s&partNumber=%d", target, i+1), hdr("x-amz-checksum-crc32", checksumOf("CRC32", body)), body)
		a.header("x-amz-checksum-crc32", checksumOf("CRC32", body), "x-amz-server-side-encryption", "AES256")
		tags = append(tags, a.Header.Get("ETag"))
	}
	golden(t, "list-parts", e.ok("GET", target+"&max-parts=1", nil, "").body)
	golden(t, "list-parts-end", e.ok("GET", target+"&part-number-marker=1", nil, "").body)
	golden(t, "list-uploads", e.ok("GET", "/bkt?uploads&prefix=k", nil, "").body)
	e.refused("GET", "/bkt/key", nil, "", "404 NoSuchKey")

	e.refused("PUT", target+"&partNumber=3", hdr("x-amz-checksum-sha256", checksumOf("SHA256", "x")), "x", "400 InvalidRequest")
	e.refused("PUT", target+"&partNumber=3", hdr("x-amz-checksum-crc32", checksumOf("CRC32", "y")), "x", "400 BadDigest")
	e.refused("PUT", target+"&partNumber=3", hdr("x-amz-checksum-crc32", checksumOf("CRC32", "x")+"-1"), "x", "400 InvalidRequest")
	e.refused("PUT", target+"&partNumber=3", hdr("x-amz-copy-source-range", "bytes=0-1"), "x", "400 InvalidArgument")
	e.refused("PUT", target+"&partNumber=3", nil, "x", "400 InvalidRequest") // what is composed needs its parts' sums
	whole, sum := completeSums(tags, partBodies), "<ChecksumCRC32>"+checksumOf("CRC32", partBodies[0])+"</ChecksumCRC32>"
	for _, n := range []string{"0", "10001", "x", "", "-1", "+1"} {
		e.refused("PUT", target+"&partNumber="+n, nil, "x", "400 InvalidArgument")
	}
	for body, code := range map[string]string{
		"":                                 "400 InvalidRequest",
		"<x/>":                             "400 MalformedXML",
		completeDoc():                      "400 MalformedXML",
		completeDoc(tags...):               "400 InvalidRequest",
		completeSums(tags, partBodies[:1]): "400 InvalidRequest",
		strings.ReplaceAll(whole, "CRC32>", "CRC32C>"):                                "400 InvalidRequest",
		strings.Replace(whole, sum, "<ChecksumCRC32>AAAAAA==</ChecksumCRC32>", 1):     "400 InvalidPart",
		completeSums([]string{tags[0], "nope"}, partBodies):                           "400 InvalidPart",
		completeSums([]string{tags[0], tags[1], tags[1]}, append(partBodies, "tail")): "400 InvalidPart",
		strings.NewReplacer("<PartNumber>1<", "<PartNumber>2<", "<PartNumber>2<", "<PartNumber>1<").Replace(
			completeSums([]string{tags[1], tags[0]}, []string{partBodies[1], partBodies[0]})): "400 InvalidPartOrder",
		"<CompleteMultipartUpload><Part><PartNumber>0</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>":                                 "400 InvalidPart",
		"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag><ChecksumCRC32>!</ChecksumCRC32></Part></CompleteMultipartUpload>": "400 MalformedXML",
	} {
		e.refused("POST", target, nil, body, code)
	}
	e.refused("POST", target, hdr("x-amz-checksum-type", "FULL_OBJECT"), whole, "400 InvalidRequest")
	e.refused("POST", target, hdr("x-amz-mp-object-size", "x"), whole, "400 InvalidArgument")
	e.refused("POST", target, hdr("x-amz-mp-object-size", "1"), whole, "400 InvalidRequest")
	e.refused("POST", target, hdr("x-amz-checksum-crc32", checksumOf("CRC32", "x")+"-2"), whole, "400 BadDigest")
	e.refused("POST", target, hdr("x-amz-checksum-crc32", checksumOf("CRC32", "x")+"-3"), whole, "400 BadDigest")
	e.refused("POST", "/bkt/wrong-key?uploadId="+id, nil, whole, "404 NoSuchUpload")
	e.refused("POST", "/bkt/key?uploadId=", nil, whole, "404 NoSuchUpload")

	var partSums []byte
	for _, body := range partBodies {
		partSums = append(partSums, sums([]byte(body), object.AlgoCRC32).Checksum.Sum...)
	}
	composite := checksumOf("CRC32", string(partSums)) // minio-go sends it without "-2" behind
	for n, code := range map[string]string{"3": "400 BadDigest", "0": "400 InvalidRequest", "10001": "400 InvalidRequest", "": "400 InvalidRequest", "x": "400 InvalidRequest"} {
		e.refused("POST", target, hdr("x-amz-checksum-crc32", composite+"-"+n), whole, code)
	}
	a := e.ok("POST", target, hdr("x-amz-checksum-type", "COMPOSITE", "x-amz-checksum-crc32", composite, "Content-Type", "application/xml"), whole)
	golden(t, "upload-complete", strings.ReplaceAll(a.body, e.srv.Listener.Addr().String(), "HOST"))
	e.checkMultipart()
	e.refused("PUT", target+"&partNumber=3", nil, "x", "404 NoSuchUpload")
}

// checkMultipart reads the object that TestMultipart made, whole, by part and by range.
func (e *env) checkMultipart() {
	t := e.t
	t.Helper()
	whole := strings.Join(partBodies, "")
	a := e.ok("GET", "/bkt/key", hdr("x-amz-checksum-mode", "ENABLED"), "")
	if a.body != whole {
		t.Errorf("%d bytes", len(a.body))
	}
	a.header("Content-Type", "text/plain", "x-amz-meta-a", "b", "x-amz-checksum-type", "COMPOSITE", "x-amz-mp-parts-count", "")
	if !strings.HasSuffix(a.Header.Get("x-amz-checksum-crc32"), "-2") || !strings.HasSuffix(a.Header.Get("ETag"), `-2"`) {
		t.Errorf("checksum %s, ETag %s", a.Header.Get("x-amz-checksum-crc32"), a.Header.Get("ETag"))
	}
	for _, method := range []string{"GET", "HEAD"} {
		a := e.ok(method, "/bkt/key?partNumber=2", hdr("x-amz-checksum-mode", "ENABLED"), "")
		a.mustBe("206")
		a.header("Content-Range", fmt.Sprintf("bytes %d-%d/%d", object.MinPartSize, len(whole)-1, len(whole)), "x-amz-mp-parts-count", "2",
			"Content-Length", "4", "x-amz-checksum-crc32", checksumOf("CRC32", "tail"), "x-amz-checksum-type", "COMPOSITE")
		if method == "GET" && a.body != "tail" {
			t.Errorf("part 2: %q", a.body)
		}
	}
	golden(t, "error-part-number", e.refused("GET", "/bkt/key?partNumber=3", nil, "", "416 InvalidPartNumber").body)
	if a := e.ok("GET", "/bkt/key", hdr("Range", fmt.Sprintf("bytes=%d-%d", object.MinPartSize-1, object.MinPartSize)), ""); a.body != "at" {
		t.Errorf("range over parts: %q", a.body)
	}
}

func TestMultipartSmallPart(t *testing.T) {
	e := newEnv(t)
	id := e.newUpload(nil)
	tag := e.ok("PUT", "/bkt/key?partNumber=1&uploadId="+id, nil, "small").Header.Get("ETag")
	e.ok("PUT", "/bkt/key?partNumber=2&uploadId="+id, nil, "small")
	golden(t, "error-small", e.refused("POST", "/bkt/key?uploadId="+id, nil, completeDoc(tag, tag), "400 EntityTooSmall").body)
	e.refused("POST", "/bkt/key?uploadId="+id, hdr("If-Match", "x"), completeDoc(tag), "404 NoSuchKey")
	e.ok("POST", "/bkt/key?uploadId="+id, hdr("If-None-Match", "*"), completeDoc(tag))

	id = e.newUpload(nil)
	e.refused("DELETE", "/bkt", nil, "", "409 BucketNotEmpty")
	e.ok("DELETE", "/bkt/key?uploadId="+id, nil, "").mustBe("204")
	golden(t, "error-upload", e.refused("DELETE", "/bkt/key?uploadId="+id, nil, "", "404 NoSuchUpload").body)
	e.refused("GET", "/bkt/key?uploadId="+id, nil, "", "404 NoSuchUpload")
}

// TestMultipartDefaultChecksum: an upload that named no algorithm takes parts that claim one, as SDKs send, and verifies it.
func TestMultipartDefaultChecksum(t *testing.T) {
	e := newEnv(t)
	id := e.newUpload(nil)
	part := "/bkt/key?partNumber=1&uploadId=" + id
	e.refused("PUT", part, hdr("x-amz-checksum-crc32", checksumOf("CRC32", "y")), "x", "400 BadDigest")
	h, framed := chunkedBody("x", "x-amz-checksum-crc32:"+checksumOf("CRC32", "x"))
	a := e.ok("PUT", part, h, framed)
	a.header("x-amz-checksum-crc32", checksumOf("CRC32", "x"))
	e.ok("POST", "/bkt/key?uploadId="+id, hdr("x-amz-checksum-crc64nvme", checksumOf("CRC64NVME", "x")), completeDoc(a.Header.Get("ETag")))
	e.ok("GET", "/bkt/key", hdr("x-amz-checksum-mode", "ENABLED"), "").header("x-amz-checksum-crc64nvme", checksumOf("CRC64NVME", "x"), "x-amz-checksum-type", "FULL_OBJECT")
	e.ok("GET", "/bkt/key?partNumber=1", hdr("x-amz-checksum-mode", "ENABLED"), "").header("x-amz-checksum-crc64nvme", checksumOf("CRC64NVME", "x"), "x-amz-checksum-type", "FULL_OBJECT")
}

func TestUploadPartCopy(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/src", nil, "0123456789")
	id := e.newUpload(nil)
	target := "/bkt/key?partNumber=1&uploadId=" + id
	src := []string{"x-amz-copy-source", "/bkt/src"}
	a := e.ok("PUT", target, hdr(append(src, "x-amz-copy-source-range", "bytes=2-4")...), "")
	golden(t, "copy-part", a.body)
	var doc struct{ ETag string }
	a.decode(&doc)
	golden(t, "error-copy-range", e.refused("PUT", target, hdr(append(src, "x-amz-copy-source-range", "bytes=2-10")...), "", "400 InvalidArgument").body)
	e.refused("PUT", target, hdr(append(src, "x-amz-copy-source-range", "bytes=2-")...), "", "400 InvalidArgument")
	e.refused("PUT", target, hdr(append(src, "x-amz-copy-source-range", "bytes=20-30")...), "", "400 InvalidArgument")
	for _, r := range []string{"bytes=2-4", "bytes=2-10", "bytes=20-30"} { // the precondition comes first
		e.refused("PUT", target, hdr(append(src, "x-amz-copy-source-if-match", "x", "x-amz-copy-source-range", r)...), "", "412 PreconditionFailed")
	}
	e.refused("PUT", target, hdr("x-amz-copy-source", "/bkt/none"), "", "404 NoSuchKey")
	e.ok("POST", "/bkt/key?uploadId="+id, nil, completeDoc(doc.ETag))
	if a := e.ok("GET", "/bkt/key", nil, ""); a.body != "234" {
		t.Errorf("%q", a.body)
	}
}

func TestMultipartCustomerKey(t *testing.T) {
	e := newEnv(t)
	right := sseHeaders(headerTargetCustomer, bytes.Repeat([]byte("r"), 32))
	id := e.newUpload(hdr(right...))
	target := "/bkt/key?partNumber=1&uploadId=" + id
	a := e.refused("PUT", target, nil, "x", "400 InvalidRequest")
	if !strings.Contains(a.body, "The multipart upload initiate requested encryption.") {
		t.Error(a.body)
	}
	a = e.refused("PUT", target, hdr(sseHeaders(headerTargetCustomer, bytes.Repeat([]byte("w"), 32))...), "x", "400 InvalidArgument")
	if !strings.Contains(a.body, "did not match the ones used originally") {
		t.Error(a.body)
	}
	e.refused("PUT", target, hdr("x-amz-server-side-encryption", "AES256"), "x", "400 InvalidArgument")
	a = e.ok("PUT", target, hdr(right...), "x")
	a.header("x-amz-server-side-encryption-customer-algorithm", "AES256")
	e.ok("POST", "/bkt/key?uploadId="+id, nil, completeDoc(a.Header.Get("ETag"))).header("x-amz-server-side-encryption", "", "x-amz-server-side-encryption-customer-algorithm", "")
	e.ok("GET", "/bkt/key", hdr(right...), "")
	e.refused("GET", "/bkt/key", nil, "", "400 InvalidRequest")
}

func TestListUploadsPages(t *testing.T) {
	e := newEnv(t)
	for _, k := range []string{"a", "b", "b", "c/1", "c/2"} {
		e.ok("POST", "/bkt/"+k+"?uploads", nil, "")
	}
	for delimiter, want := range map[string]int{"": 5, "/": 4} {
		n, page := 0, ""
		for {
			var doc struct {
				IsTruncated        bool
				Upload             []struct{ Key string }
				CommonPrefixes     []struct{ Prefix string }
				NextKeyMarker      string
				NextUploadIDMarker string `xml:"NextUploadIdMarker"`
			}
			e.ok("GET", "/bkt?uploads&max-uploads=1&delimiter="+delimiter+page, nil, "").decode(&doc)
			n += len(doc.Upload) + len(doc.CommonPrefixes)
			if !doc.IsTruncated {
				break
			}
			page = "&key-marker=" + doc.NextKeyMarker + "&upload-id-marker=" + doc.NextUploadIDMarker
		}
		if n != want {
			t.Errorf("delimiter %q: %d uploads, want %d", delimiter, n, want)
		}
	}
}
