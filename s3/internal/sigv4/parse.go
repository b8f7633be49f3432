package sigv4

import (
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	isoBasic   = "20060102T150405Z" // x-amz-date
	isoDay     = "20060102"

	maxAuthorization = 8 << 10            // bytes of an Authorization header
	maxSignedHeaders = 128                // names in SignedHeaders
	maxExpires       = 7 * 24 * time.Hour // of a presigned request (AWS: sigv4-query-string-auth)
)

// Query parameters of a presigned request.
const (
	queryAlgorithm     = "X-Amz-Algorithm"
	queryCredential    = "X-Amz-Credential"
	queryDate          = "X-Amz-Date"
	queryExpires       = "X-Amz-Expires"
	querySignedHeaders = "X-Amz-SignedHeaders"
	querySignature     = "X-Amz-Signature"
	queryToken         = "X-Amz-Security-Token"
	queryPayload       = "X-Amz-Content-Sha256"
)

// Values of x-amz-content-sha256 other than a digest.
const (
	unsignedPayload       = "UNSIGNED-PAYLOAD"
	streamSigned          = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	streamSignedTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	streamUnsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// auth is what a request says about who signed it and how.
type auth struct {
	presigned     bool
	accessKey     string
	scope         string // date/region/service/aws4_request
	day           string // of the scope
	region        string
	service       string
	signedList    string   // SignedHeaders as sent
	signedHeaders []string // split
	signature     string
	amzDate       string // in ISO 8601 basic form, as it stands in the string to sign
	time          time.Time
	expires       time.Duration // presigned only
	payload       string        // the last line of the canonical request
	token         string        // session token, "" for none
}

// parseAuth reads the authentication data of a request from its Authorization header or its query.
func parseAuth(r *http.Request, params []param) (*auth, error) {
	header := r.Header["Authorization"]
	if len(header) == 1 && strings.TrimSpace(header[0]) == "" {
		header = nil // as if absent: it names no mechanism
	}
	v4, v2 := false, false
	for _, p := range params {
		v4 = v4 || p.key == queryAlgorithm || p.key == queryCredential || p.key == querySignature
		v2 = v2 || p.key == "AWSAccessKeyId" || p.key == "Signature"
	}
	switch {
	case len(header) > 0 && (v4 || v2):
		return nil, refuse(InvalidArgument, "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified")
	case len(header) > 1:
		return nil, refuse(InvalidArgument, "Only one Authorization header allowed.")
	case len(header) == 1:
		return parseHeaderAuth(r, header[0])
	case v4:
		return parseQueryAuth(r, params)
	case v2:
		return nil, refuse(InvalidRequest, unsupportedMechanism)
	}
	return nil, &Error{Code: AccessDenied, Message: "Access Denied", Anonymous: true}
}

// unsupportedMechanism answers signature version 2, version 4A and every other scheme.
const unsupportedMechanism = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."

func parseHeaderAuth(r *http.Request, header string) (*auth, error) {
	a := &auth{}
	if err := a.parseAuthorization(header); err != nil {
		return nil, err
	}
	if err := a.parseDate(r.Header); err != nil {
		return nil, err
	}
	payload := r.Header["X-Amz-Content-Sha256"]
	switch len(payload) {
	case 0:
		return nil, refuse(InvalidRequest, "Missing required header for this request: x-amz-content-sha256")
	case 1:
		a.payload = strings.TrimSpace(payload[0])
	default:
		return nil, refuse(InvalidArgument, "x-amz-content-sha256 must be sent once.")
	}
	a.token = r.Header.Get("X-Amz-Security-Token")
	return a, a.checkSigned(r)
}

// parseAuthorization reads "AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…": the parts in any order, white space
// around them free, as AWS takes it.
func (a *auth) parseAuthorization(header string) error {
	if len(header) > maxAuthorization {
		return a.malformed("it is too long.")
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(header), " ")
	if scheme != algorithm {
		return refuse(InvalidRequest, unsupportedMechanism)
	}
	var credential string
	for part := range strings.SplitSeq(rest, ",") {
		name, value, found := strings.Cut(strings.TrimSpace(part), "=")
		var dst *string
		switch name {
		case "Credential":
			dst = &credential
		case "SignedHeaders":
			dst = &a.signedList
		case "Signature":
			dst = &a.signature
		}
		if !found || dst == nil || *dst != "" || value == "" {
			return a.malformed("it needs exactly one each of Credential, SignedHeaders and Signature.")
		}
		*dst = value
	}
	if credential == "" || a.signedList == "" || a.signature == "" {
		return a.malformed("it needs exactly one each of Credential, SignedHeaders and Signature.")
	}
	if err := a.parseCredential(credential); err != nil {
		return err
	}
	return a.parseSignedHeaders()
}

// parseCredential splits access key and scope. The access key is what precedes the last four parts.
func (a *auth) parseCredential(s string) error {
	const form = `the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".`
	parts := [4]string{} // day, region, service, terminator
	rest := s
	for i := len(parts) - 1; i >= 0; i-- {
		slash := strings.LastIndexByte(rest, '/')
		if slash < 0 {
			return a.malformed(form)
		}
		rest, parts[i] = rest[:slash], rest[slash+1:]
	}
	if rest == "" || parts[1] == "" || parts[3] != terminator {
		return a.malformed(form)
	}
	if _, err := time.Parse(isoDay, parts[0]); err != nil {
		return a.malformed(form)
	}
	a.accessKey, a.scope = rest, s[len(rest)+1:]
	a.day, a.region, a.service = parts[0], parts[1], parts[2]
	return nil
}

func (a *auth) parseSignedHeaders() error {
	if strings.Count(a.signedList, ";") >= maxSignedHeaders {
		return a.malformed("too many SignedHeaders.")
	}
	a.signedHeaders = strings.Split(a.signedList, ";")
	for _, name := range a.signedHeaders {
		if !isHeaderName(name) {
			return a.malformed("SignedHeaders must be lower-case header names separated by semicolons.")
		}
	}
	return nil
}

// isHeaderName reports whether s is a lower-case token of RFC 9110 section 5.6.2.
func isHeaderName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-_.!#$%&'*+^`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// parseDate takes the time of a header-signed request from x-amz-date, else from Date.
func (a *auth) parseDate(h http.Header) error {
	invalid := refuse(AccessDenied, "AWS authentication requires a valid Date or x-amz-date header")
	dates, layouts := h["X-Amz-Date"], []string{isoBasic}
	if len(dates) == 0 {
		dates, layouts = h["Date"], []string{http.TimeFormat, isoBasic, time.RFC1123Z, time.RFC1123}
	}
	if len(dates) != 1 {
		return invalid
	}
	for _, layout := range layouts {
		if t, err := time.Parse(layout, strings.TrimSpace(dates[0])); err == nil {
			a.time = t.UTC()
			a.amzDate = a.time.Format(isoBasic)
			return nil
		}
	}
	return invalid
}

func parseQueryAuth(r *http.Request, params []param) (*auth, error) {
	a := &auth{presigned: true}
	var alg, credential, expires string
	fields := map[string]*string{
		queryAlgorithm: &alg, queryCredential: &credential, queryDate: &a.amzDate, queryExpires: &expires,
		querySignedHeaders: &a.signedList, querySignature: &a.signature, queryToken: &a.token, queryPayload: &a.payload,
	}
	for _, p := range params {
		dst := fields[p.key]
		if dst == nil {
			continue
		}
		if *dst != "" || p.value == "" {
			return nil, a.malformed("The query parameter " + p.key + " must be given once and not be empty.")
		}
		*dst = p.value
	}
	if alg != "" && alg != algorithm {
		return nil, a.malformed(`X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"`)
	}
	if alg == "" || credential == "" || a.amzDate == "" || expires == "" || a.signedList == "" || a.signature == "" {
		return nil, a.malformed("Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.")
	}
	if err := a.parseCredential(credential); err != nil {
		return nil, err
	}
	if err := a.parseSignedHeaders(); err != nil {
		return nil, err
	}
	t, err := time.Parse(isoBasic, a.amzDate)
	if err != nil {
		return nil, a.malformed(`X-Amz-Date must be in the ISO8601 Long Format "yyyyMMdd'T'HHmmss'Z'"`)
	}
	a.time = t
	if err := a.parseExpires(expires); err != nil {
		return nil, err
	}
	if a.payload == "" {
		a.payload = unsignedPayload
		if h := r.Header["X-Amz-Content-Sha256"]; len(h) == 1 { // checkSigned makes sure that it is signed
			a.payload = strings.TrimSpace(h[0])
		}
	}
	return a, a.checkSigned(r)
}

func (a *auth) parseExpires(s string) error {
	seconds, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil:
		return a.malformed("X-Amz-Expires should be a number")
	case seconds < 0:
		return a.malformed("X-Amz-Expires must be non-negative")
	case seconds > int64(maxExpires/time.Second):
		return a.malformed("X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds")
	}
	a.expires = time.Duration(seconds) * time.Second
	return nil
}

// checkSigned makes sure that the signature covers the host and every x-amz-* header, so that nobody can add one to a request
// that he cannot sign. The content digest of a header-signed request is covered by the canonical request itself.
func (a *auth) checkSigned(r *http.Request) error {
	if !a.signs("host") {
		return refuse(AccessDenied, "There were headers present in the request which were not signed: host")
	}
	for name := range r.Header {
		if len(name) < 6 || !strings.EqualFold(name[:6], "X-Amz-") || name == "X-Amz-Content-Sha256" && !a.presigned {
			continue
		}
		if !a.signs(name) {
			return refuse(AccessDenied, "There were headers present in the request which were not signed: "+strings.ToLower(name))
		}
	}
	return nil
}

func (a *auth) signs(name string) bool {
	for _, signed := range a.signedHeaders {
		if strings.EqualFold(signed, name) {
			return true
		}
	}
	return false
}

// parsePayload tells how the body is protected.
func (a *auth) parsePayload(res *Result) error {
	switch a.payload {
	case unsignedPayload:
		res.Payload = PayloadUnsigned
	case streamSigned:
		res.Payload = PayloadStreamSigned
	case streamSignedTrailer:
		res.Payload = PayloadStreamSignedTrailer
	case streamUnsignedTrailer:
		res.Payload = PayloadStreamUnsignedTrailer
	default:
		if len(a.payload) != 2*len(res.SHA256) {
			return refuse(InvalidArgument, "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.")
		}
		if _, err := hex.Decode(res.SHA256[:], []byte(a.payload)); err != nil {
			return refuse(InvalidArgument, "x-amz-content-sha256 must be a valid sha256 value.")
		}
		res.Payload = PayloadSigned
	}
	return nil
}
