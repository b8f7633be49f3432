package sigv4

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxQueryParams bounds the query; the largest real request has about twenty parameters.
const maxQueryParams = 256

// param is a decoded query parameter.
type param struct{ key, value string }

// parseQuery decodes a query in the order sent. It refuses what url.Values would drop silently, because the handler must see
// exactly the parameters that the signature covers. A plus sign is a space.
func parseQuery(raw string) ([]param, error) {
	if raw == "" {
		return nil, nil
	}
	if strings.Count(raw, "&") >= maxQueryParams {
		return nil, refuse(InvalidURI, "Too many query parameters.")
	}
	params := make([]param, 0, strings.Count(raw, "&")+1)
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		key, err1 := url.QueryUnescape(key)
		value, err2 := url.QueryUnescape(value)
		if err := cmp.Or(err1, err2); err != nil || strings.Contains(pair, ";") {
			return nil, &Error{Code: InvalidURI, Message: "Couldn't parse the specified URI.", Err: err}
		}
		params = append(params, param{key, value})
	}
	return params, nil
}

// canonicalQuery encodes the parameters and sorts them by encoded name, then encoded value. X-Amz-Signature is left out of a
// presigned request.
func canonicalQuery(params []param, presigned bool) string {
	if len(params) == 0 {
		return ""
	}
	enc := make([]param, 0, len(params))
	for _, p := range params {
		if presigned && p.key == querySignature {
			continue
		}
		enc = append(enc, param{encode(p.key, false), encode(p.value, false)})
	}
	slices.SortFunc(enc, func(a, b param) int {
		return cmp.Or(strings.Compare(a.key, b.key), strings.Compare(a.value, b.value))
	})
	var b strings.Builder
	for i, p := range enc {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.key)
		b.WriteByte('=')
		b.WriteString(p.value)
	}
	return b.String()
}

// encode is AWS's UriEncode: everything but letters, digits and -._~ becomes %XX; a slash stays in a path.
func encode(s string, keepSlash bool) string {
	plain := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			c == '-' || c == '.' || c == '_' || c == '~' || c == '/' && keepSlash
	}
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	const digits = "0123456789ABCDEF"
	b := make([]byte, i, len(s)+16)
	copy(b, s)
	for ; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

// canonicalPaths returns the canonical URIs to try. AWS decodes the path and encodes it once, without cleaning it: // and ..
// stay. Clients that leave characters such as parentheses unescaped sign the path as sent; that form covers the same bytes,
// so it is tried second. An encoded form is a fixed point of the first rule, hence both name one resource only.
func canonicalPaths(u *url.URL) []string {
	first := encode(u.Path, true)
	if first == "" {
		return []string{"/"}
	}
	if second := u.EscapedPath(); second != first {
		return []string{first, second}
	}
	return []string{first}
}

// canonicalHosts returns the Host values to try: as sent, then without a default port, which some clients send but do not sign.
func canonicalHosts(host string) []string {
	for _, port := range []string{":443", ":80"} {
		if short, ok := strings.CutSuffix(host, port); ok {
			return []string{host, short}
		}
	}
	return []string{host}
}

// headerValues returns the values of a signed header. net/http moves some headers out of r.Header; those are put back.
func headerValues(r *http.Request, name, host string) ([]string, bool) {
	if name == "host" {
		return []string{host}, true
	}
	if values := r.Header[http.CanonicalHeaderKey(name)]; len(values) > 0 {
		return values, true
	}
	switch {
	case name == "content-length" && r.ContentLength >= 0:
		return []string{strconv.FormatInt(r.ContentLength, 10)}, true
	case name == "transfer-encoding" && len(r.TransferEncoding) > 0:
		return r.TransferEncoding, true
	case name == "expect": // HTTP/2 consumes it
		return []string{"100-continue"}, true
	}
	return nil, false
}

// appendCanonicalHeaders appends the lines "name:value\n" of the signed headers. It reports whether all of them were sent: an
// absent header must not pass for one sent empty.
func appendCanonicalHeaders(b []byte, r *http.Request, names []string, host string) ([]byte, bool) {
	for _, name := range names {
		values, ok := headerValues(r, name, host)
		if !ok {
			return b, false
		}
		b = append(b, name...)
		for i, value := range values {
			b = append(b, ":,"[min(i, 1)])
			b = appendTrimmed(b, value)
		}
		b = append(b, '\n')
	}
	return b, true
}

// appendTrimmed appends s without leading and trailing white space and with each inner run of it made one space.
func appendTrimmed(b []byte, s string) []byte {
	space, start := false, len(b)
	for i := range len(s) {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\v', '\f', '\r':
			space = true
		default:
			if space && len(b) > start {
				b = append(b, ' ')
			}
			space = false
			b = append(b, c)
		}
	}
	return b
}

// candidate is one reading of a request: its canonical form and the string to sign made from it.
type candidate struct{ canonical, stringToSign []byte }

// build fills c for the given path and host, reusing its memory. It reports whether every signed header was sent.
func (c *candidate) build(r *http.Request, a *auth, path, query, host string) bool {
	b := append(c.canonical[:0], r.Method...)
	b = append(b, '\n')
	b = append(b, path...)
	b = append(b, '\n')
	b = append(b, query...)
	b = append(b, '\n')
	b, ok := appendCanonicalHeaders(b, r, a.signedHeaders, host)
	b = append(b, '\n')
	b = append(b, a.signedList...)
	b = append(b, '\n')
	b = append(b, a.payload...)
	c.canonical = b

	sum := sha256.Sum256(b)
	s := append(c.stringToSign[:0], algorithm+"\n"...)
	s = append(s, a.amzDate...)
	s = append(s, '\n')
	s = append(s, a.scope...)
	s = append(s, '\n')
	c.stringToSign = hex.AppendEncode(s, sum[:])
	return ok
}
