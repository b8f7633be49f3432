package s3

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"flag"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	testKey    = "AKIDEXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

// testTime is when every object of a test is made.
var testTime = time.Date(2026, 3, 1, 12, 30, 45, 123e6, time.UTC)

// env is a server under test.
type env struct {
	t     *testing.T
	store *fakeStore
	srv   *httptest.Server
	s     *Server

	mu  sync.Mutex
	obs []*Observation
}

// newEnv serves S3 over TLS on a store in memory with the bucket "bkt".
func newEnv(t *testing.T, change ...func(*Options)) *env {
	return start(t, (*httptest.Server).StartTLS, change...)
}

func newPlainEnv(t *testing.T, change ...func(*Options)) *env {
	return start(t, (*httptest.Server).Start, change...)
}

func start(t *testing.T, run func(*httptest.Server), change ...func(*Options)) *env {
	t.Helper()
	e := &env{t: t, store: newFakeStore()}
	e.store.now = func() time.Time { return testTime }
	opt := Options{
		Store: e.store,
		Lookup: func(_ context.Context, key string) (Credentials, error) {
			if key != testKey && key != "OTHERKEY" {
				return Credentials{}, ErrUnknownKey
			}
			return Credentials{AccessKey: key, Secret: testSecret}, nil
		},
		Observe: func(o *Observation) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.obs = append(e.obs, o)
		},
	}
	for _, f := range change {
		f(&opt)
	}
	e.s = New(opt)
	e.srv = httptest.NewUnstartedServer(e.s)
	e.srv.Config.ErrorLog = nil
	run(e.srv)
	e.srv.Client().Transport.(*http.Transport).DisableCompression = true
	t.Cleanup(e.srv.Close)
	e.ok("PUT", "/bkt", nil, "")
	return e
}

func (e *env) last() *Observation {
	e.t.Helper()
	for range 100 { // the client may be ahead of the server's last step
		e.mu.Lock()
		n := len(e.obs)
		e.mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.obs[len(e.obs)-1]
}

// hdr builds headers from pairs.
func hdr(pairs ...string) http.Header {
	h := make(http.Header)
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	body string
	t    *testing.T
}

// do sends a signed request. target is the escaped path and query.
func (e *env) do(method, target string, h http.Header, body string) *answer {
	e.t.Helper()
	return e.send(e.request(method, target, h, strings.NewReader(body)))
}

func (e *env) request(method, target string, h http.Header, body io.Reader) *http.Request {
	e.t.Helper()
	r := e.unsigned(method, target, h, body)
	sign(r, testKey, testSecret, DefaultRegion, time.Now())
	return r
}

func (e *env) unsigned(method, target string, h http.Header, body io.Reader) *http.Request {
	e.t.Helper()
	r, err := http.NewRequest(method, e.srv.URL+target, body)
	if err != nil {
		e.t.Fatal(err)
	}
	for k, v := range h {
		r.Header[k] = v
	}
	return r
}

func (e *env) send(r *http.Request) *answer {
	e.t.Helper()
	resp, err := e.srv.Client().Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return &answer{resp, string(b), e.t}
}

// ok sends a request that must succeed.
func (e *env) ok(method, target string, h http.Header, body string) *answer {
	e.t.Helper()
	a := e.do(method, target, h, body)
	if a.StatusCode/100 != 2 {
		e.t.Fatalf("%s %s: %d %s", method, target, a.StatusCode, a.body)
	}
	return a
}

// refused sends a request that must fail with code; the answer's text is returned.
func (e *env) refused(method, target string, h http.Header, body, code string) *answer {
	e.t.Helper()
	a := e.do(method, target, h, body)
	a.mustBe(code)
	return a
}

// mustBe checks an error by "status Code", or by "status" alone where there is no body.
func (a *answer) mustBe(want string) {
	a.t.Helper()
	got := a.Status[:3]
	var doc struct{ Code, Message string }
	if a.body != "" && xml.Unmarshal([]byte(a.body), &doc) == nil && doc.Code != "" {
		got += " " + doc.Code
	}
	if got != want {
		a.t.Errorf("%s %s: %s (%s), want %s", a.Request.Method, a.Request.URL.RequestURI(), got, doc.Message, want)
	}
}

func (a *answer) header(want ...string) {
	a.t.Helper()
	for i := 0; i < len(want); i += 2 {
		if got := a.Header.Get(want[i]); got != want[i+1] {
			a.t.Errorf("%s %s: %s = %q, want %q", a.Request.Method, a.Request.URL.RequestURI(), want[i], got, want[i+1])
		}
	}
}

func (a *answer) decode(v any) {
	a.t.Helper()
	if err := xml.Unmarshal([]byte(a.body), v); err != nil {
		a.t.Fatalf("%v in %s", err, a.body)
	}
}

var randomIDs = regexp.MustCompile(`<(RequestId|HostId|UploadId)>[^<]*<`)

// golden compares a document with testdata/name.xml; ids that are random are masked.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = randomIDs.ReplaceAllString(got, "<$1>-<")
	got = strings.ReplaceAll(got, "><", ">\n<") + "\n"
	path := filepath.Join("testdata", name+".xml")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, d)
	}
}

// sign signs a request by Signature Version 4 with an unsigned payload, unless x-amz-content-sha256 is set already.
func sign(r *http.Request, key, secret, region string, now time.Time) (seed string) {
	date := now.UTC().Format("20060102T150405Z")
	r.Header.Set("X-Amz-Date", date)
	if r.Header.Get("X-Amz-Content-Sha256") == "" {
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	}
	lines := map[string]string{"host": r.URL.Host}
	if r.Host != "" {
		lines["host"] = r.Host
	}
	for name, v := range r.Header {
		if l := strings.ToLower(name); strings.HasPrefix(l, "x-amz-") {
			lines[l] = strings.Join(v, ",")
		}
	}
	var names []string
	for n := range lines {
		names = append(names, n)
	}
	slices.Sort(names)
	var canonical bytes.Buffer
	canonical.WriteString(r.Method + "\n" + awsPath(r.URL.Path) + "\n" + awsQuery(r.URL.RawQuery) + "\n")
	for _, n := range names {
		canonical.WriteString(n + ":" + strings.TrimSpace(lines[n]) + "\n")
	}
	signed := strings.Join(names, ";")
	canonical.WriteString("\n" + signed + "\n" + r.Header.Get("X-Amz-Content-Sha256"))
	scope := date[:8] + "/" + region + "/s3/aws4_request"
	sum := sha256.Sum256(canonical.Bytes())
	seed = hex.EncodeToString(hmacSHA(signingKey(secret, date[:8], region), "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:])))
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+key+"/"+scope+", SignedHeaders="+signed+", Signature="+seed)
	return seed
}

// presign moves the signature of a request into its query, over its host and its x-amz-* headers.
func presign(r *http.Request) {
	date := time.Now().UTC().Format("20060102T150405Z")
	scope := date[:8] + "/" + DefaultRegion + "/s3/aws4_request"
	lines := map[string]string{"host": r.URL.Host}
	for name, v := range r.Header {
		lines[strings.ToLower(name)] = strings.Join(v, ",")
	}
	names := slices.Sorted(maps.Keys(lines))
	q := r.URL.Query()
	for name, v := range map[string]string{"Algorithm": "AWS4-HMAC-SHA256", "Credential": testKey + "/" + scope, "Date": date, "Expires": "60",
		"SignedHeaders": strings.Join(names, ";")} {
		q.Set("X-Amz-"+name, v)
	}
	query := awsQuery(q.Encode())
	canonical := r.Method + "\n" + awsPath(r.URL.Path) + "\n" + query + "\n"
	for _, n := range names {
		canonical += n + ":" + lines[n] + "\n"
	}
	sum := sha256.Sum256([]byte(canonical + "\n" + strings.Join(names, ";") + "\nUNSIGNED-PAYLOAD"))
	sig := hmacSHA(signingKey(testSecret, date[:8], DefaultRegion), "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:]))
	r.URL.RawQuery = query + "&X-Amz-Signature=" + hex.EncodeToString(sig)
}

func signingKey(secret, day, region string) []byte {
	k := hmacSHA([]byte("AWS4"+secret), day)
	for _, s := range []string{region, "s3", "aws4_request"} {
		k = hmacSHA(k, s)
	}
	return k
}

func hmacSHA(key []byte, s string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(s))
	return m.Sum(nil)
}

// awsPath encodes a decoded path as AWS does for signing: all but unreserved characters and "/".
func awsPath(p string) string {
	var b strings.Builder
	for i := range len(p) {
		c := p[i]
		if lowerOrDigit(c) || c >= 'A' && c <= 'Z' || strings.IndexByte("-._~/", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
		}
	}
	return b.String()
}

func awsQuery(raw string) string {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return raw
	}
	var pairs []string
	for _, k := range slices.SortedFunc(maps.Keys(q), func(a, b string) int { return strings.Compare(awsPath(a), awsPath(b)) }) {
		for _, v := range slices.Sorted(slices.Values(q[k])) {
			pairs = append(pairs, strings.ReplaceAll(awsPath(k), "/", "%2F")+"="+strings.ReplaceAll(awsPath(v), "/", "%2F"))
		}
	}
	return strings.Join(pairs, "&")
}

// b64crc32 and friends are checksums in base64 of small bodies.
func checksumOf(name, body string) string {
	alg := algorithmNamed(name)
	return checksumText(sums([]byte(body), alg.algo).Checksum, 0)
}
