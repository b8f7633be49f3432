package s3

import (
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"coffer/object"
)

// level is what a request's path names.
type level uint8

const (
	levelService level = iota
	levelBucket
	levelObject
)

func (l level) String() string { return [...]string{"SERVICE", "BUCKET", "OBJECT"}[l] }

// routeKey selects an operation. sub is the sub-resource of the query, with selCopy behind it for a request that names a copy source.
type routeKey struct {
	level  level
	method string
	sub    string
}

const selCopy = "+copy"

// request is a parsed request: which operation on what. Nothing in it has been authenticated.
type request struct {
	op     *operation
	level  level
	bucket string
	key    string
	query  url.Values

	virtualHost bool
}

// router turns requests into operations. It is immutable.
type router struct {
	domains []string // of virtual-host style, lower case, without port
	routes  map[routeKey]*operation
	subs    map[string]bool // every sub-resource of the S3 API, served or not
}

// parameters are the query names that select nothing. Names that begin with "x-" are parameters as well: the signature's, and
// x-id, which SDKs add.
var parameters = func() map[string]bool {
	m := make(map[string]bool)
	for _, p := range strings.Fields(`prefix delimiter marker max-keys encoding-type continuation-token fetch-owner start-after
		partNumber versionId key-marker version-id-marker upload-id-marker max-uploads part-number-marker max-parts max-buckets
		bucket-region response-content-type response-content-language response-expires
		response-cache-control response-content-disposition response-content-encoding id select-type`) {
		m[p] = true
	}
	maps.Copy(m, signatureV2)
	return m
}()

// signatureV2 are the parameters of a signature that is refused as such.
var signatureV2 = map[string]bool{"AWSAccessKeyId": true, "Signature": true, "Expires": true}

// writeParameters are those of parameters that an operation takes which changes something. One that it does not take may be part
// of another call, such as the partNumber of an upload whose id got lost, and is refused: to ignore it could overwrite an object. The
// parameters of signature version 2 are refused with the signature.
var writeParameters = map[string][]string{
	"DeleteObject":   {"versionId"},
	"UploadPart":     {"partNumber"},
	"UploadPartCopy": {"partNumber"},

	"SelectObjectContent": {"select-type"},
}

func newRouter(ops []*operation, domains []string) *router {
	rt := &router{routes: make(map[routeKey]*operation, len(ops)), subs: make(map[string]bool)}
	for _, d := range domains {
		rt.domains = append(rt.domains, strings.ToLower(strings.Trim(d, ".")))
	}
	for _, op := range ops {
		k := routeKey{op.level, op.method, op.sub}
		if rt.routes[k] != nil {
			panic("s3: two operations for " + op.method + " ?" + op.sub)
		}
		rt.routes[k] = op
		if sub := strings.TrimSuffix(op.sub, selCopy); sub != "" {
			rt.subs[sub] = true
		}
	}
	return rt
}

// parse decides which operation a request is. It looks at method, host, path, query and the presence of one header; it has no
// side effects. What it cannot name it refuses: an unknown sub-resource must never reach the plain call of the same path. The
// request returned with an error holds what was understood until then.
func (rt *router) parse(r *http.Request) (request, error) {
	var q request
	path := r.URL.EscapedPath()
	if bucket, ok := rt.hostBucket(r.Host); ok {
		path, q.virtualHost = "/"+bucket+path, true
	}
	if err := q.setPath(path); err != nil {
		return q, err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return q, errInvalidURI.because(err)
	}
	q.query = query
	sub, err := rt.subResource(query, r)
	if err != nil {
		return q, err
	}
	if r.Method == http.MethodPut && q.level == levelObject && len(r.Header["X-Amz-Copy-Source"]) > 0 {
		sub += selCopy
	}
	if r.Method == http.MethodOptions {
		return q, errAccessForbidden
	}
	op := rt.routes[routeKey{q.level, r.Method, sub}]
	if op == nil {
		return q, rt.noRoute(q.level, r.Method, sub)
	}
	q.op = op
	return q, nil
}

// checkParameters refuses parameters of other calls, see writeParameters. Reads ignore them. It is asked after the caller has
// been authenticated, so that a link for a read which is used for a write is refused for its signature.
func (q *request) checkParameters(method string) error {
	if method == http.MethodGet || method == http.MethodHead {
		return nil
	}
	for name, values := range q.query {
		if parameters[name] && !signatureV2[name] && !slices.Contains(writeParameters[q.op.name], name) {
			return invalidArgument(name, values[0], "This operation does not accept the query parameter %s.", name)
		}
	}
	return nil
}

// noRoute says why no operation fits: the resource exists with other methods, or is unknown at this level.
func (rt *router) noRoute(l level, method, sub string) error {
	for k := range rt.routes {
		if k.level == l && k.sub == sub {
			return errMethodNotAllowed.with(errorDetail{Method: method, ResourceType: l.String()})
		}
	}
	return errNotImplemented.say("The requested resource is not implemented.")
}

// hostBucket returns the bucket of a virtual-host style request.
func (rt *router) hostBucket(host string) (string, bool) {
	if len(rt.domains) == 0 {
		return "", false
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, d := range rt.domains {
		if b, ok := strings.CutSuffix(host, "."+d); ok && b != "" {
			return b, true
		}
	}
	return "", false
}

// setPath splits an escaped path into bucket and key. The path is decoded once and never cleaned: "//", "." and ".." are parts of keys.
func (q *request) setPath(escaped string) error {
	bucket, key, slash := strings.Cut(strings.TrimPrefix(escaped, "/"), "/")
	var err error
	if q.bucket, err = url.PathUnescape(bucket); err != nil {
		return errInvalidURI.because(err)
	}
	if q.key, err = url.PathUnescape(key); err != nil {
		return errInvalidURI.because(err)
	}
	if !utf8.ValidString(q.key) || !utf8.ValidString(q.bucket) {
		return errInvalidURI
	}
	switch {
	case q.bucket == "" && !slash:
		q.level = levelService
		return nil
	case q.key == "":
		q.level = levelBucket
	default:
		q.level = levelObject
	}
	if !plausibleBucketName(q.bucket) {
		return errInvalidBucketName.with(errorDetail{BucketName: strings.ToValidUTF8(q.bucket, "?")})
	}
	return checkKey(q.key)
}

func checkKey(key string) error {
	if len(key) > object.MaxKeyLen {
		return errKeyTooLong.with(errorDetail{Size: strconv.Itoa(len(key)), MaxSizeAllowed: strconv.Itoa(object.MaxKeyLen)})
	}
	return nil
}

// subResource finds the one query name that selects an operation. Names that are neither sub-resource nor parameter could be a
// sub-resource that this server does not know, so they are refused, unless they cannot be one: headers that some signers of links
// move into the query, and on reads any name with a value.
func (rt *router) subResource(query url.Values, r *http.Request) (string, error) {
	sub := ""
	for name, values := range query {
		for _, v := range values {
			if !utf8.ValidString(v) {
				return "", errInvalidURI
			}
		}
		switch {
		case rt.subs[name]:
			if sub != "" {
				return "", invalidArgument("ResourceType", name, "Conflicting query string parameters: %s, %s", min(sub, name), max(sub, name))
			}
			sub = name
		case parameters[name], len(name) > 2 && strings.EqualFold(name[:2], "x-"), strings.HasPrefix(name, "Content-"):
		case (r.Method == http.MethodGet || r.Method == http.MethodHead) && values[0] != "":
		default:
			return "", errNotImplemented.say("The query parameter %.64q is not implemented.", name)
		}
	}
	return sub, nil
}

// Bounds of bucket names: minBucketName to maxBucketName for new ones; names that AWS allowed before 2018 were longer.
const (
	minBucketName    = 3
	maxBucketName    = 63
	maxOldBucketName = 255
)

// plausibleBucketName accepts what could name a bucket in any request but CreateBucket: such a bucket may be absent, any other
// name is an error of form.
func plausibleBucketName(name string) bool {
	if len(name) < minBucketName || len(name) > maxOldBucketName {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !(lowerOrDigit(c) || c >= 'A' && c <= 'Z' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

func lowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// addressForm is that of an IP address, whether there is such a one or not.
var addressForm = regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+$`)

// validBucketName is the naming rule for new general purpose buckets (S3 User Guide, "General purpose bucket naming rules").
func validBucketName(name string) bool {
	if len(name) < minBucketName || len(name) > maxBucketName || !lowerOrDigit(name[0]) || !lowerOrDigit(name[len(name)-1]) {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !lowerOrDigit(c) && c != '.' && c != '-' {
			return false
		}
	}
	// Each label is one of DNS: virtual-host style needs that.
	if strings.Contains(name, "..") || strings.Contains(name, ".-") || strings.Contains(name, "-.") || addressForm.MatchString(name) {
		return false
	}
	for _, p := range []string{"xn--", "sthree-", "amzn-s3-demo-"} {
		if strings.HasPrefix(name, p) {
			return false
		}
	}
	for _, s := range []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"} {
		if strings.HasSuffix(name, s) {
			return false
		}
	}
	return true
}
