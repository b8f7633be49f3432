package sigv4

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sign signs a header-signed request by the package's own rules, over the headers named. The independent check of these rules
// is in difftest and in the documented examples.
func sign(r *http.Request, path string, names ...string) *http.Request {
	a := &auth{
		signedList: strings.Join(names, ";"), signedHeaders: names,
		amzDate: exampleTime.Format(isoBasic), scope: "20130524/us-east-1/s3/" + terminator,
		payload: r.Header.Get("X-Amz-Content-Sha256"),
	}
	params, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		panic(err)
	}
	var c candidate
	c.build(r, a, path, canonicalQuery(params, false), r.Host)
	key := SigningKey(exampleSecret, "20130524", "us-east-1", "s3")
	sum := mac(key[:], c.stringToSign)
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		algorithm, exampleKey, a.scope, a.signedList, hex.EncodeToString(sum[:])))
	return r
}

func unsigned(t testing.TB, requestLine string) *http.Request {
	return parse(t, requestLine+" HTTP/1.1\nHost: h.example\nx-amz-date: 20130524T000000Z\nx-amz-content-sha256: UNSIGNED-PAYLOAD")
}

var baseNames = []string{"host", "x-amz-content-sha256", "x-amz-date"}

func TestRefusals(t *testing.T) {
	header, presigned := docExamples[0].request, docExamples[4].request
	const region = "/us-east-1/"
	for _, tc := range []struct {
		name, request, old, new string
		want                    Code
		message                 string // a part of it
	}{
		{"anonymous", header, "Authorization:", "X-Other:", AccessDenied, "Access Denied"},
		{"anonymous with an empty header", header, "Authorization: " + algorithm, "Authorization: \nX-Other:", AccessDenied, "Access Denied"},
		{"unknown access key", header, exampleKey, "AKIAOTHER", InvalidAccessKeyID, ""},
		{"signature", header, "=f0e8", "=f0e9", SignatureDoesNotMatch, ""},
		{"signature in upper case", header, "=f0e8", "=F0E8", SignatureDoesNotMatch, ""},
		{"signature cut", header, "bdb41", "", SignatureDoesNotMatch, ""},
		{"method", header, "GET ", "PUT ", SignatureDoesNotMatch, ""},
		{"path", header, "/test.txt", "/text.txt", SignatureDoesNotMatch, ""},
		{"query", header, "/test.txt", "/test.txt?acl", SignatureDoesNotMatch, ""},
		{"signed header", header, "bytes=0-9", "bytes=0-99", SignatureDoesNotMatch, ""},
		{"signed header gone", header, "Range: bytes=0-9\n", "", SignatureDoesNotMatch, ""},
		{"digest", header, "e3b0", "e3b1", SignatureDoesNotMatch, ""},
		{"other scheme", header, algorithm, "Basic", InvalidRequest, "AWS4-HMAC-SHA256"},
		{"version 2", header, algorithm + " Cred", "AWS AKIA:sig Cred", InvalidRequest, "AWS4-HMAC-SHA256"},
		{"version 4A", header, algorithm, "AWS4-ECDSA-P256-SHA256", InvalidRequest, "AWS4-HMAC-SHA256"},
		{"version 2 presigned", presigned, presigned[:strings.Index(presigned, " HTTP")], "GET /k?AWSAccessKeyId=a&Expires=1&Signature=b", InvalidRequest, "AWS4-HMAC-SHA256"},
		{"two mechanisms", presigned, "Host:", "Authorization: AWS4-HMAC-SHA256 x\nHost:", InvalidArgument, "Only one auth mechanism"},
		{"two headers", header, "Authorization:", "Authorization: x\nAuthorization:", InvalidArgument, "Only one"},
		{"no signature", header, "Signature", "Other", AuthorizationHeaderMalformed, ""},
		{"part twice", header, ",Signature", ",SignedHeaders=host,Signature", AuthorizationHeaderMalformed, ""},
		{"part empty", header, "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date", "SignedHeaders=", AuthorizationHeaderMalformed, ""},
		{"part missing", header, "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,", "", AuthorizationHeaderMalformed, ""},
		{"too long", header, ",Signature", strings.Repeat(" ", maxAuthorization) + ",Signature", AuthorizationHeaderMalformed, ""},
		{"too many headers", header, "=host;", "=host" + strings.Repeat(";a", maxSignedHeaders) + ";", AuthorizationHeaderMalformed, ""},
		{"bad header name", header, ";range;", ";Range;", AuthorizationHeaderMalformed, "SignedHeaders"},
		{"credential short", header, exampleKey + "/", "", AuthorizationHeaderMalformed, "Credential"},
		{"credential without key", header, exampleKey, "", AuthorizationHeaderMalformed, "Credential"},
		{"credential date", header, "/20130524/", "/2013052/", AuthorizationHeaderMalformed, "Credential"},
		{"credential terminator", header, "aws4_request", "aws4", AuthorizationHeaderMalformed, "Credential"},
		{"other date", header, "/20130524/", "/20130525/", AuthorizationHeaderMalformed, "Invalid credential date"},
		{"other region", header, region, "/eu-west-1/", AuthorizationHeaderMalformed, "expecting 'us-east-1'"},
		{"other service", header, "/s3/", "/iam/", AuthorizationHeaderMalformed, "expecting 's3'"},
		{"no date", header, "x-amz-date: 20130524T000000Z\n", "", AccessDenied, "Date"},
		{"bad date", header, ": 20130524T000000Z", ": yesterday", AccessDenied, "Date"},
		{"two dates", header, "x-amz-date:", "x-amz-date: 20130524T000000Z\nx-amz-date:", AccessDenied, "Date"},
		{"early", header, ": 20130524T000000Z", ": 20130523T234459Z", AuthorizationHeaderMalformed, ""},
		{"late", header, ": 20130524T000000Z", ": 20130524T001501Z", RequestTimeTooSkewed, ""},
		{"no digest", header, "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n", "", InvalidRequest, "x-amz-content-sha256"},
		{"two digests", header, "x-amz-date:", "x-amz-content-sha256: UNSIGNED-PAYLOAD\nx-amz-date:", InvalidArgument, ""},
		{"short digest", header, "e3b0", "", InvalidArgument, "x-amz-content-sha256"},
		{"digest not hex", header, "e3b0", "g3b0", InvalidArgument, "x-amz-content-sha256"},
		{"unsupported streaming", header, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", InvalidArgument, "x-amz-content-sha256"},
		{"host not signed", header, "=host;", "=", AccessDenied, "not signed: host"},
		{"amz header not signed", header, "Range:", "x-amz-meta-a: b\nRange:", AccessDenied, "not signed: x-amz-meta-a"},
		{"token not ours", header, "Range:", "x-amz-security-token: t\nRange:", AccessDenied, "not signed"},
		{"bad query escape", header, "/test.txt", "/test.txt?a=%zz", InvalidURI, ""},
		{"semicolon in query", header, "/test.txt", "/test.txt?a;b", InvalidURI, ""},
		{"too many parameters", header, "/test.txt", "/test.txt?" + strings.Repeat("&", maxQueryParams), InvalidURI, ""},

		{"presigned signature", presigned, "=aeee", "=aeef", SignatureDoesNotMatch, ""},
		{"presigned other query", presigned, "&X-Amz-Date", "&acl&X-Amz-Date", SignatureDoesNotMatch, ""},
		{"presigned algorithm", presigned, algorithm, "AWS4-HMAC-SHA512", AuthorizationQueryParametersError, "X-Amz-Algorithm"},
		{"presigned without date", presigned, "&X-Amz-Date=20130524T000000Z", "", AuthorizationQueryParametersError, "requires"},
		{"presigned empty date", presigned, "X-Amz-Date=20130524T000000Z", "X-Amz-Date=", AuthorizationQueryParametersError, "X-Amz-Date"},
		{"presigned bad date", presigned, "X-Amz-Date=20130524T000000Z", "X-Amz-Date=20130524", AuthorizationQueryParametersError, "X-Amz-Date"},
		{"presigned twice", presigned, "&X-Amz-Signature", "&X-Amz-Signature=a&X-Amz-Signature", AuthorizationQueryParametersError, "once"},
		{"presigned region", presigned, "%2Fus-east-1%2F", "%2Feu-west-1%2F", AuthorizationQueryParametersError, "region"},
		{"presigned credential", presigned, "%2Faws4_request", "", AuthorizationQueryParametersError, "Credential"},
		{"presigned header name", presigned, "SignedHeaders=host", "SignedHeaders=Host", AuthorizationQueryParametersError, "SignedHeaders"},
		{"presigned host not signed", presigned, "SignedHeaders=host", "SignedHeaders=range", AccessDenied, "not signed: host"},
		{"presigned amz header", presigned, "Host:", "x-amz-acl: private\nHost:", AccessDenied, "not signed: x-amz-acl"},
		{"presigned digest", presigned, "Host:", "x-amz-content-sha256: UNSIGNED-PAYLOAD\nHost:", AccessDenied, "not signed"},
		{"expires not a number", presigned, "=86400", "=1d", AuthorizationQueryParametersError, "number"},
		{"expires zero", presigned, "=86400", "=0", AccessDenied, "expired"},
		{"expires negative", presigned, "=86400", "=-1", AuthorizationQueryParametersError, "non-negative"},
		{"expires beyond a week", presigned, "=86400", "=604801", AuthorizationQueryParametersError, "week"},
		{"expires a week", presigned, "=86400", "=604800", SignatureDoesNotMatch, ""}, // passes the bounds
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !strings.Contains(tc.request, tc.old) {
				t.Fatal("the case does not apply")
			}
			res, err := exampleVerifier().Verify(parse(t, strings.Replace(tc.request, tc.old, tc.new, 1)))
			if res != nil || code(err) != tc.want || !strings.Contains(err.Error(), tc.message) {
				t.Errorf("result %v, error %v; want %s: …%s…", res, err, tc.want, tc.message)
			}
			if e, ok := errors.AsType[*Error](err); ok && e.Anonymous != strings.HasPrefix(tc.name, "anonymous") {
				t.Errorf("anonymous: %v", e.Anonymous)
			}
		})
	}
}

func TestMismatchShowsWhatWasComputed(t *testing.T) {
	_, err := exampleVerifier().Verify(parse(t, strings.Replace(docExamples[0].request, "=f0e8", "=f0e9", 1)))
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatal(err)
	}
	const canonical = `GET
/test.txt

host:examplebucket.s3.amazonaws.com
range:bytes=0-9
x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
x-amz-date:20130524T000000Z

host;range;x-amz-content-sha256;x-amz-date
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855`
	const toSign = `AWS4-HMAC-SHA256
20130524T000000Z
20130524/us-east-1/s3/aws4_request
7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972`
	if d := cmp.Diff(canonical, e.CanonicalRequest); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(toSign, e.StringToSign); d != "" {
		t.Error(d)
	}
}

func TestAuthorizationIsReadTolerantly(t *testing.T) {
	request := docExamples[0].request
	const list, signed = "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date", "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
	const cred = "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
	for _, header := range []string{
		cred + ", " + list + ", " + signed,
		cred + "," + list + "," + signed + " ",
		"   " + cred + " ,  " + list + " ,\t" + signed,
		signed + "," + cred + "," + list,
	} {
		r := parse(t, request)
		r.Header.Set("Authorization", algorithm+" "+header)
		if _, err := exampleVerifier().Verify(r); err != nil {
			t.Errorf("%q: %v", header, err)
		}
	}
}

func TestTimeWindow(t *testing.T) {
	for _, tc := range []struct {
		example int
		offset  time.Duration
		want    Code
	}{
		{0, 15 * time.Minute, ""}, {0, -15 * time.Minute, ""},
		{0, 15*time.Minute + time.Second, RequestTimeTooSkewed}, {0, -15*time.Minute - time.Second, RequestTimeTooSkewed},
		{4, 24 * time.Hour, ""}, {4, 24*time.Hour + time.Second, AccessDenied},
		{4, -15 * time.Minute, ""}, {4, -15*time.Minute - time.Second, AccessDenied},
	} {
		v := exampleVerifier()
		v.Now = func() time.Time { return exampleTime.Add(tc.offset) }
		if _, err := v.Verify(parse(t, docExamples[tc.example].request)); code(err) != tc.want {
			t.Errorf("%s at %v: %v", docExamples[tc.example].name, tc.offset, err)
		}
	}
}

func TestPaths(t *testing.T) {
	for _, tc := range []struct{ sent, signed string }{
		{"/", "/"},
		{"/b/k", "/b/k"},
		{"//b//k/", "//b//k/"},
		{"/b/../k/./x", "/b/../k/./x"},
		{"/b/%2e%2E/k", "/b/../k"},
		{"/b/a+b", "/b/a%2Bb"},
		{"/b/a%20b", "/b/a%20b"},
		{"/b/a%2fb", "/b/a/b"},
		{"/b/a%2Fb", "/b/a%2Fb"},             // as sent
		{"/b/(a)!*'", "/b/%28a%29%21%2A%27"}, // by the rule
		{"/b/(a)!*'", "/b/(a)!*'"},           // as sent
		{"/b/%7Ea%41", "/b/~aA"},             // needless escapes
		{"/b/\xc3\xa9", "/b/%C3%A9"},         // raw UTF-8
		{"/b/%ff%00", "/b/%FF%00"},           // not UTF-8
		{"/b/k%25zz", "/b/k%25zz"},           // decoded once only
		{"/b/a:b@c&d=e,f", "/b/a%3Ab%40c%26d%3De%2Cf"},
		{"http://h.example/b/k", "/b/k"}, // absolute form
	} {
		r := unsigned(t, "GET "+tc.sent)
		if _, err := exampleVerifier().Verify(sign(r, tc.signed, baseNames...)); err != nil {
			t.Errorf("%s signed as %s: %v", tc.sent, tc.signed, err)
		}
	}
	for _, tc := range []struct{ sent, signed string }{
		{"//b/k", "/b/k"}, {"/b/../k", "/k"}, {"/b/k%2525", "/b/k%25"}, {"/b/a+b", "/b/a%20b"}, {"/b/k/", "/b/k"},
	} {
		r := unsigned(t, "GET "+tc.sent)
		if _, err := exampleVerifier().Verify(sign(r, tc.signed, baseNames...)); code(err) != SignatureDoesNotMatch {
			t.Errorf("%s signed as %s: %v", tc.sent, tc.signed, err)
		}
	}
}

func TestCanonicalQuery(t *testing.T) {
	for _, tc := range []struct{ raw, want string }{
		{"", ""},
		{"acl", "acl="},
		{"acl=", "acl="},
		{"&&a=1&", "a=1"},
		{"b=2&a=1", "a=1&b=2"},
		{"a=2&a=1&a", "a=&a=1&a=2"},
		{"a-b=1&a=2", "a=2&a-b=1"},       // by name before value
		{"a%2Fb&a-b", "a%2Fb=&a-b="},     // by encoded name
		{"k=a/b&k=a-b", "k=a%2Fb&k=a-b"}, // by encoded value
		{"p=a+b%2Bc%20d", "p=a%20b%2Bc%20d"},
		{"p=%7e%c3%a9=x", "p=~%C3%A9%3Dx"},
		{"A=1&a=2&_=3", "A=1&_=3&a=2"},
	} {
		params, err := parseQuery(tc.raw)
		if err != nil {
			t.Fatalf("%q: %v", tc.raw, err)
		}
		if got := canonicalQuery(params, false); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.raw, got, tc.want)
		}
		// The handler must see what was signed.
		values, err := url.ParseQuery(tc.raw)
		if err != nil {
			t.Fatal(err)
		}
		seen := url.Values{}
		for _, p := range params {
			seen.Add(p.key, p.value)
		}
		if d := cmp.Diff(values, seen); d != "" {
			t.Errorf("%q: %s", tc.raw, d)
		}
	}
}

func TestHeaders(t *testing.T) {
	r := parse(t, `PUT /b/k HTTP/1.1
Host: H.example:443
x-amz-date: 20130524T000000Z
x-amz-content-sha256: UNSIGNED-PAYLOAD
Content-Length: 0
Expect: 100-continue
X-AMZ-Meta-Spaces:    a   b    c
x-amz-meta-multi:  1
x-amz-meta-multi: 2  3
x-amz-meta-empty:
Content-Type: text/plain`)
	names := append([]string{"content-length", "content-type", "expect"}, baseNames...)
	names = append(names, "x-amz-meta-empty", "x-amz-meta-multi", "x-amz-meta-spaces")
	b, ok := appendCanonicalHeaders(nil, r, names, r.Host)
	const want = `content-length:0
content-type:text/plain
expect:100-continue
host:H.example:443
x-amz-content-sha256:UNSIGNED-PAYLOAD
x-amz-date:20130524T000000Z
x-amz-meta-empty:
x-amz-meta-multi:1,2 3
x-amz-meta-spaces:a b c
`
	if d := cmp.Diff(want, string(b)); d != "" || !ok {
		t.Error(d, ok)
	}
	if _, err := exampleVerifier().Verify(sign(r, "/b/k", names...)); err != nil {
		t.Error(err)
	}
	r.Header.Del("X-Amz-Meta-Empty") // an empty signed header must not be removed either
	if _, err := exampleVerifier().Verify(r); code(err) != SignatureDoesNotMatch {
		t.Error(err)
	}
}

func TestHostWithDefaultPort(t *testing.T) {
	for _, tc := range []struct {
		signed, sent string
		ok           bool
	}{
		{"h.example", "h.example:443", true}, {"h.example", "h.example:80", true}, {"h.example:443", "h.example:443", true},
		{"h.example:9000", "h.example:9000", true}, {"[::1]", "[::1]:443", true},
		{"h.example", "h.example:9000", false}, {"h.example", "g.example", false}, {"h.example:80", "h.example", false},
	} {
		r := unsigned(t, "GET /b/k")
		r.Host = tc.signed
		sign(r, "/b/k", baseNames...)
		r.Host = tc.sent
		if _, err := exampleVerifier().Verify(r); (err == nil) != tc.ok {
			t.Errorf("signed for %s, sent to %s: %v", tc.signed, tc.sent, err)
		}
	}
}

func TestDateHeader(t *testing.T) {
	for _, date := range []string{"Fri, 24 May 2013 00:00:00 GMT", "Fri, 24 May 2013 02:00:00 +0200", "20130524T000000Z"} {
		r := unsigned(t, "GET /")
		r.Header.Del("X-Amz-Date")
		r.Header.Set("Date", date)
		if _, err := exampleVerifier().Verify(sign(r, "/", "date", "host", "x-amz-content-sha256")); err != nil {
			t.Errorf("%s: %v", date, err)
		}
	}
}

func TestSessionToken(t *testing.T) {
	for _, tc := range []struct {
		ours, sent string
		want       Code
	}{
		{"t", "t", ""}, {"t", "u", InvalidToken}, {"t", "", InvalidToken}, {"", "t", InvalidToken},
	} {
		v := exampleVerifier()
		v.Lookup = func(context.Context, string) (Credentials, error) {
			return Credentials{exampleKey, exampleSecret, tc.ours}, nil
		}
		r := unsigned(t, "GET /")
		names := baseNames
		if tc.sent != "" {
			r.Header.Set("X-Amz-Security-Token", tc.sent)
			names = append(names[:len(names):len(names)], "x-amz-security-token")
		}
		if _, err := v.Verify(sign(r, "/", names...)); code(err) != tc.want {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

func TestAnyRegion(t *testing.T) {
	v := exampleVerifier()
	v.Region = "eu-central-1"
	_, err := v.Verify(parse(t, docExamples[0].request))
	if e, ok := errors.AsType[*Error](err); !ok || e.Region != v.Region {
		t.Errorf("no region in %v", err)
	}
	v.Region = ""
	if _, err := v.Verify(parse(t, docExamples[0].request)); err != nil {
		t.Error(err)
	}
}

func TestLookupError(t *testing.T) {
	v := exampleVerifier()
	down := errors.New("store down")
	v.Lookup = func(context.Context, string) (Credentials, error) { return Credentials{}, down }
	if _, err := v.Verify(parse(t, docExamples[0].request)); !errors.Is(err, down) || code(err) != "" {
		t.Error(err)
	}
}

// TestKeyCache: only verified requests enter, a new secret does not meet the old key, and the cache is bounded.
func TestKeyCache(t *testing.T) {
	v := exampleVerifier()
	v.Verify(parse(t, strings.Replace(docExamples[0].request, "=f0e8", "=f0e9", 1)))
	if len(v.keys.keys) != 0 {
		t.Error("a refused request entered the cache")
	}
	if _, err := v.Verify(parse(t, docExamples[0].request)); err != nil || len(v.keys.keys) != 1 {
		t.Error(err, len(v.keys.keys))
	}
	v.Lookup = func(context.Context, string) (Credentials, error) { return Credentials{Secret: "rotated"}, nil }
	if _, err := v.Verify(parse(t, docExamples[0].request)); code(err) != SignatureDoesNotMatch {
		t.Error(err)
	}
	for i := range 3 * maxCachedKeys {
		v.keys.put(keyID{accessKey: fmt.Sprint(i)}, [32]byte{})
	}
	if n := len(v.keys.keys); n > maxCachedKeys {
		t.Errorf("%d keys", n)
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, ex := range docExamples {
		if _, after, ok := strings.Cut(ex.request, "Authorization: "); ok {
			header, _, _ := strings.Cut(after, "\n")
			f.Add(header)
		}
	}
	for _, s := range []string{"", "AWS AKIA:c2ln", algorithm, algorithm + " ,", algorithm + " Credential=////,SignedHeaders=;,Signature==", algorithm + " Credential=a/b/20130524/r/s3/aws4_request,SignedHeaders=host,Signature=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		a := &auth{}
		if err := a.parseAuthorization(header); err != nil {
			if code(err) == "" {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		// What was accepted reads back to the same parts.
		b := &auth{}
		again := fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=%s, Signature=%s", algorithm, a.accessKey, a.scope, strings.Join(a.signedHeaders, ";"), a.signature)
		if err := b.parseAuthorization(again); err != nil {
			t.Fatalf("%q: %v", again, err)
		}
		if d := cmp.Diff(a, b, cmp.AllowUnexported(auth{})); d != "" {
			t.Fatal(d)
		}
		if a.scope != a.day+"/"+a.region+"/"+a.service+"/"+terminator || a.accessKey == "" || a.signature == "" {
			t.Fatalf("%+v", a)
		}
	})
}

func FuzzQuery(f *testing.F) {
	_, presigned, _ := strings.Cut(strings.Fields(docExamples[4].request)[1], "?")
	for _, s := range []string{presigned, "", "a", "a=b&a=c", "a+b=%2B", "&&=&", "a;b", "%", "prefix=%C3%A9/&delimiter=%2F", "X-Amz-Expires=1&X-Amz-Expires=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		params, err := parseQuery(raw)
		values, refErr := url.ParseQuery(raw)
		if err != nil {
			if refErr == nil && strings.Count(raw, "&") < maxQueryParams {
				t.Fatalf("refused %q, which url.ParseQuery takes: %v", raw, err)
			}
			return
		}
		if refErr != nil {
			t.Fatalf("accepted %q, which url.ParseQuery refuses: %v", raw, refErr)
		}
		seen := url.Values{}
		for _, p := range params {
			seen.Add(p.key, p.value)
		}
		if d := cmp.Diff(values, seen); d != "" {
			t.Fatal(d)
		}
		canonical := canonicalQuery(params, false)
		again, err := parseQuery(canonical)
		if err != nil || canonicalQuery(again, false) != canonical {
			t.Fatalf("%q: canonical form %q is not stable: %v", raw, canonical, err)
		}
		r := &http.Request{Method: "GET", Host: "h", URL: &url.URL{Path: "/", RawQuery: raw}, Header: http.Header{}}
		if _, err := exampleVerifier().Verify(r); err == nil && raw != presigned {
			again, _ := parseQuery(presigned)
			if canonicalQuery(again, true) != canonicalQuery(params, true) {
				t.Fatalf("%q verified", raw)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, ex := range docExamples {
		b.Run(strings.ReplaceAll(ex.name, " ", "-"), func(b *testing.B) {
			v, r := exampleVerifier(), parse(b, ex.request)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkChunkSignature(b *testing.B) {
	c := NewChunkSigner([32]byte{}, "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", Signature{})
	var sum [32]byte
	b.ReportAllocs()
	for b.Loop() {
		c.Chunk(&sum)
	}
}

func TestChunkSignerDoesNotAllocate(t *testing.T) {
	c := NewChunkSigner([32]byte{}, "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", Signature{})
	var sum [32]byte
	if n := testing.AllocsPerRun(100, func() { c.Chunk(&sum) }); n != 0 {
		t.Errorf("%v allocations per chunk", n)
	}
}
