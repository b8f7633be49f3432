package s3

import (
	"net/http"
	"strings"
	"time"

	"coffer/object"
)

// Prefixes of the names of precondition headers.
const (
	readConditions = ""
	copyConditions = "X-Amz-Copy-Source-"
)

// checkConditions evaluates the preconditions of a read, in the order of RFC 9110 section 13.2.2. For the source of a copy all
// four fail with 412; for GET and HEAD the last two mean 304.
func checkConditions(h http.Header, prefix string, o object.Object) error {
	failed := func(name string) error {
		return errPreconditionFailed.with(errorDetail{Condition: strings.ToLower(prefix) + name})
	}
	if prefix == readConditions {
		failed = func(name string) error { return errPreconditionFailed.with(errorDetail{Condition: name}) }
	}
	unchanged := func(name string) error {
		if prefix == readConditions {
			return errNotModified
		}
		return failed(name)
	}
	modified := o.Modified.Truncate(time.Second) // the resolution of HTTP dates
	if v := h.Values(prefix + "If-Match"); len(v) > 0 {
		if !matchETag(v, o.ETag) {
			return failed("If-Match")
		}
	} else if t, ok := headerTime(h, prefix+"If-Unmodified-Since"); ok && modified.After(t) {
		return failed("If-Unmodified-Since")
	}
	if v := h.Values(prefix + "If-None-Match"); len(v) > 0 {
		if matchETag(v, o.ETag) {
			return unchanged("If-None-Match")
		}
	} else if t, ok := headerTime(h, prefix+"If-Modified-Since"); ok && !modified.After(t) {
		return unchanged("If-Modified-Since")
	}
	return nil
}

// headerTime reads a date. One that does not parse is as if absent (RFC 9110 section 13.1.3).
func headerTime(h http.Header, name string) (time.Time, bool) {
	v := h.Get(name)
	if v == "" {
		return time.Time{}, false
	}
	t, err := http.ParseTime(v)
	return t, err == nil
}

// matchETag reports whether a list of entity tags holds etag or is "*". Clients of S3 send tags with and without quotes. Weak tags
// match as well: S3 has none of its own, only proxies make them.
func matchETag(values []string, etag string) bool {
	for _, v := range values {
		for _, tag := range strings.Split(v, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || trimETag(tag) == etag {
				return true
			}
		}
	}
	return false
}

func trimETag(tag string) string {
	tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
	return strings.TrimSuffix(strings.TrimPrefix(tag, `"`), `"`)
}

func quoteETag(etag string) string { return `"` + etag + `"` }

// writeConditions reads the preconditions of a write. S3 defines If-Match with one tag and If-None-Match with "*"; whatever else a
// client asks for is refused, since ignoring it could overwrite what it meant to keep.
func writeConditions(h http.Header) (object.Conditions, error) {
	var cond object.Conditions
	for _, name := range []string{"If-Modified-Since", "If-Unmodified-Since"} {
		if len(h.Values(name)) > 0 {
			return cond, notImplementedHeader(name)
		}
	}
	if v := h.Values("If-None-Match"); len(v) > 0 {
		if strings.TrimSpace(v[0]) != "*" {
			return cond, notImplementedHeader("If-None-Match")
		}
		cond.IfNoneMatch = "*"
	}
	if v := h.Values("If-Match"); len(v) > 0 {
		if strings.Contains(v[0], ",") {
			return cond, notImplementedHeader("If-Match")
		}
		if cond.IfMatch = trimETag(v[0]); cond.IfMatch == "" { // as from a client whose variable was empty
			return cond, invalidArgument("If-Match", v[0], "The If-Match header is invalid.")
		}
	}
	return cond, nil
}
