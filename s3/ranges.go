package s3

import (
	"math"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"coffer/object"
)

// parseRange reads a Range header. It returns nil for one that S3 ignores and answers in full: another unit, several ranges, or
// a malformed one (RFC 9110 section 14.2 allows to ignore any).
func parseRange(v string) *object.Range {
	spec, ok := strings.CutPrefix(strings.TrimSpace(v), "bytes=")
	if !ok {
		return nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return nil
	}
	if first == "" {
		n, ok := parsePos(last)
		if !ok {
			return nil
		}
		return &object.Range{First: -1, Last: n}
	}
	from, ok := parsePos(first)
	if !ok {
		return nil
	}
	if last == "" {
		return &object.Range{First: from, Last: -1}
	}
	to, ok := parsePos(last)
	if !ok || to < from {
		return nil
	}
	return &object.Range{First: from, Last: to}
}

// parsePos reads a byte position. One too large for an int64 lies behind every object, so it is clamped.
func parsePos(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n = math.MaxInt64
	}
	return n, true
}

// resolveRange applies a range to a size; ok is false if it cannot be satisfied.
func resolveRange(r object.Range, size int64) (off, n int64, ok bool) {
	if r.First < 0 {
		n = min(r.Last, size)
		return size - n, n, n > 0
	}
	if r.First >= size {
		return 0, 0, false
	}
	last := size - 1
	if r.Last >= 0 {
		last = min(r.Last, last)
	}
	return r.First, last - r.First + 1, true
}

// parseCopyRange reads x-amz-copy-source-range, which knows only first-last.
func parseCopyRange(v string) (*object.Range, error) {
	if v == "" {
		return nil, nil
	}
	r := parseRange(v)
	if r == nil || r.First < 0 || r.Last < 0 {
		return nil, invalidArgument(headerCopyRange, v, "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy")
	}
	return r, nil
}

// parseCopySource reads x-amz-copy-source: [/]bucket/key[?versionId=id], percent-encoded. AWS decodes "+" to a space, which is why
// clients send %2B.
func parseCopySource(v string) (bucket, key, version string, err error) {
	bad := func() error {
		return invalidArgument("x-amz-copy-source", v, "Invalid copy source object key")
	}
	path := v
	if i := strings.LastIndex(v, "?versionId="); i >= 0 {
		path, version = v[:i], v[i+len("?versionId="):]
	}
	if path, err = url.QueryUnescape(path); err != nil || !utf8.ValidString(path) {
		return "", "", "", bad()
	}
	bucket, key, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !plausibleBucketName(bucket) || key == "" {
		return "", "", "", invalidArgument("x-amz-copy-source", v, "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	return bucket, key, version, checkKey(key)
}
