package s3

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"coffer/object"
)

const metaPrefix = "X-Amz-Meta-"

// defaultContentType is AWS's for an object that came without one.
const defaultContentType = "binary/octet-stream"

// Limits of tags (S3 User Guide, "Categorizing your objects using tags").
const (
	maxObjectTags = 10
	maxTagKey     = 128 // characters
	maxTagValue   = 256
)

// storageClasses are the names that AWS takes for objects of a general purpose bucket. All are stored alike here; the name is kept and shown.
var storageClasses = map[string]bool{
	"STANDARD": true, "REDUCED_REDUNDANCY": true, "STANDARD_IA": true, "ONEZONE_IA": true, "INTELLIGENT_TIERING": true,
	"GLACIER": true, "GLACIER_IR": true, "DEEP_ARCHIVE": true,
}

const standardClass = "STANDARD"

func storageClass(m object.Meta) string {
	if m.StorageClass == "" {
		return standardClass
	}
	return m.StorageClass
}

// parseMeta reads what a write attaches to an object: system and user metadata, tags and storage class. It also refuses the
// headers of functions that would change the meaning of the object: ACLs, object lock.
func parseMeta(h http.Header) (object.Meta, error) {
	m := object.Meta{
		ContentType: h.Get("Content-Type"), ContentEncoding: contentEncoding(h), ContentDisposition: h.Get("Content-Disposition"),
		ContentLanguage: h.Get("Content-Language"), CacheControl: h.Get("Cache-Control"), Expires: h.Get("Expires"),
		WebsiteRedirect: h.Get("X-Amz-Website-Redirect-Location"), StorageClass: h.Get("X-Amz-Storage-Class"),
	}
	if m.ContentType == "" {
		m.ContentType = defaultContentType
	}
	if m.StorageClass != "" && !storageClasses[m.StorageClass] {
		return m, errInvalidStorageClass
	}
	if r := m.WebsiteRedirect; r != "" && !strings.HasPrefix(r, "/") && !strings.HasPrefix(r, "http://") && !strings.HasPrefix(r, "https://") {
		return m, errInvalidRedirect
	}
	if err := checkObjectACL(h); err != nil {
		return m, err
	}
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Object-Lock-") {
			return m, errNoLockOnBucket
		}
	}
	var err error
	if m.User, err = parseUserMeta(h); err != nil {
		return m, err
	}
	m.Tags, err = parseTagging(h.Get("X-Amz-Tagging"))
	return m, err
}

// contentEncoding drops aws-chunked, which is the encoding of the request and not of the object.
func contentEncoding(h http.Header) string {
	var keep []string
	for _, v := range h.Values("Content-Encoding") {
		for _, e := range strings.Split(v, ",") {
			if e = strings.TrimSpace(e); e != "" && !strings.EqualFold(e, "aws-chunked") {
				keep = append(keep, e)
			}
		}
	}
	return strings.Join(keep, ",")
}

func parseUserMeta(h http.Header) (map[string]string, error) {
	var user map[string]string
	size := 0
	for name, values := range h {
		if !strings.HasPrefix(name, metaPrefix) {
			continue
		}
		if user == nil {
			user = make(map[string]string)
		}
		k, v := strings.ToLower(name[len(metaPrefix):]), strings.Join(values, ",")
		user[k] = v
		size += len(k) + len(v)
	}
	if size > object.MaxMetaBytes {
		return nil, errMetadataTooLarge.with(errorDetail{Size: strconv.Itoa(size), MaxSizeAllowed: strconv.Itoa(object.MaxMetaBytes)})
	}
	return user, nil
}

// parseTagging reads x-amz-tagging: tags as the parameters of a query.
func parseTagging(v string) (map[string]string, error) {
	if v == "" {
		return nil, nil
	}
	bad := invalidArgument("x-amz-tagging", v, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
	q, err := url.ParseQuery(v)
	if err != nil {
		return nil, bad
	}
	tags := make(map[string]string, len(q))
	for k, values := range q {
		if len(values) > 1 || !utf8.ValidString(k) || !utf8.ValidString(values[0]) {
			return nil, bad
		}
		tags[k] = values[0]
	}
	return tags, checkTags(tags)
}

func checkTags(tags map[string]string) error {
	if len(tags) > maxObjectTags {
		return errBadTagCount
	}
	for k, v := range tags {
		switch {
		case k == "" || utf8.RuneCountInString(k) > maxTagKey || strings.ContainsFunc(k, notInTag):
			return errInvalidTag.say("The TagKey you have provided is invalid")
		case utf8.RuneCountInString(v) > maxTagValue || strings.ContainsFunc(v, notInTag):
			return errInvalidTag.say("The TagValue you have provided is invalid")
		case strings.HasPrefix(k, "aws:"):
			return errInvalidTag.say("System tags cannot be added/updated by requester")
		}
	}
	return nil
}

// notInTag reports characters that tags cannot have (S3 User Guide: letters, digits, space and + - = . _ : / @).
func notInTag(r rune) bool {
	return !unicode.In(r, unicode.L, unicode.N, unicode.Z) && !strings.ContainsRune("+-=._:/@", r)
}

// checkObjectACL admits the canned ACLs that mean what a bucket without ACLs does anyway (S3 User Guide, "Controlling ownership of
// objects and disabling ACLs").
func checkObjectACL(h http.Header) error {
	switch h.Get("X-Amz-Acl") {
	case "", "private", "bucket-owner-full-control":
	default:
		return errACLNotSupported
	}
	return checkGrants(h)
}

func checkGrants(h http.Header) error {
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Grant-") {
			return errACLNotSupported
		}
	}
	return nil
}

// set assigns a header in AWS's own spelling, which is not always the canonical one of package http.
func set(h http.Header, name, value string) { h[name] = []string{value} }

func setIf(h http.Header, name, value string) {
	if value != "" {
		set(h, name, value)
	}
}

// setMeta puts an object's metadata into the headers of GET and HEAD.
func setMeta(h http.Header, o object.Object) {
	m := o.Meta
	set(h, "Content-Type", m.ContentType)
	if m.ContentType == "" {
		set(h, "Content-Type", defaultContentType)
	}
	setIf(h, "Content-Encoding", m.ContentEncoding)
	setIf(h, "Content-Disposition", m.ContentDisposition)
	setIf(h, "Content-Language", m.ContentLanguage)
	setIf(h, "Cache-Control", m.CacheControl)
	setIf(h, "Expires", m.Expires)
	setIf(h, "x-amz-website-redirect-location", m.WebsiteRedirect)
	if c := storageClass(m); c != standardClass {
		set(h, "x-amz-storage-class", c)
	}
	for k, v := range m.User {
		set(h, "x-amz-meta-"+k, v)
	}
	if n := len(m.Tags); n > 0 {
		set(h, "x-amz-tagging-count", strconv.Itoa(n))
	}
	set(h, "ETag", quoteETag(o.ETag))
	set(h, "Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	set(h, "Accept-Ranges", "bytes")
}
