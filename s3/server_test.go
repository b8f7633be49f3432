package s3

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/object"
)

// A part whose upload id got lost is not an object.
func TestLostUploadID(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", nil, "whole")
	e.refused("PUT", "/bkt/k?partNumber=1", nil, "part", "400 InvalidArgument")
	e.refused("DELETE", "/bkt/k?partNumber=1", nil, "", "400 InvalidArgument")
	e.send(e.unsigned("DELETE", "/bkt/k?partNumber=1", nil, nil)).mustBe("403 AccessDenied") // who asks comes first
	if a := e.ok("GET", "/bkt/k", nil, ""); a.body != "whole" {
		t.Errorf("%q", a.body)
	}
}

// allowAll lets the anonymous in.
type allowAll struct{}

func (allowAll) Authorize(context.Context, Authorization) error { return nil }

// only allows some actions, on keys with a prefix.
type only struct{ actions, prefix string }

func (o only) Authorize(_ context.Context, a Authorization) error {
	if strings.Contains(o.actions, a.Action) && strings.HasPrefix(a.Key, o.prefix) {
		return nil
	}
	return fmt.Errorf("policy: %w", ErrDenied)
}

func TestAuthentication(t *testing.T) {
	e := newEnv(t)
	golden(t, "error-anonymous", e.send(e.unsigned("GET", "/bkt", nil, nil)).body)
	e.send(e.unsigned("PUT", "/bkt/k", hdr("x-amz-trailer", "x-amz-checksum-crc32"), strings.NewReader("x"))).mustBe("403 AccessDenied")

	r := e.unsigned("GET", "/bkt", nil, nil)
	sign(r, "NOBODY", testSecret, DefaultRegion, time.Now())
	e.send(r).mustBe("403 InvalidAccessKeyId")
	r = e.unsigned("GET", "/bkt", nil, nil)
	sign(r, testKey, "wrong", DefaultRegion, time.Now())
	a := e.send(r)
	a.mustBe("403 SignatureDoesNotMatch")
	if !strings.Contains(a.body, "<StringToSign>AWS4-HMAC-SHA256&#xA;") || !strings.Contains(a.body, "<CanonicalRequest>GET&#xA;/bkt") {
		t.Errorf("the answer does not show what was computed: %s", a.body)
	}
	r = e.unsigned("GET", "/bkt", hdr(sseHeaders(headerTargetCustomer, bytes.Repeat([]byte("k"), 32))...), nil)
	sign(r, testKey, "wrong", DefaultRegion, time.Now())
	if a := e.send(r); strings.Contains(a.body, "CanonicalRequest") {
		t.Errorf("the answer shows a customer key: %s", a.body)
	}
	r = e.unsigned("GET", "/bkt", nil, nil)
	sign(r, testKey, testSecret, DefaultRegion, time.Now().Add(-time.Hour))
	e.send(r).mustBe("403 RequestTimeTooSkewed")
	e.send(e.unsigned("GET", "/bkt?AWSAccessKeyId=a&Signature=b&Expires=1", nil, nil)).mustBe("400 InvalidRequest")

	failing := newEnv(t)
	failing.s.auth.Lookup = func(context.Context, string) (Credentials, error) {
		return Credentials{}, errors.New("secret internals")
	}
	a = failing.do("GET", "/bkt", nil, "")
	if a.mustBe("500 InternalError"); strings.Contains(a.body, "secret") {
		t.Errorf("internal text leaks: %s", a.body)
	}
}

func TestAuthorization(t *testing.T) {
	full := newEnv(t)
	full.ok("PUT", "/bkt/in/a", nil, "x")
	full.ok("PUT", "/bkt/out/a", nil, "x")
	e := newEnv(t, func(o *Options) { o.Authorizer = only{"s3:CreateBucket", ""} })
	e.s.opt.Store = full.store
	e.s.opt.Authorizer = only{"s3:GetObject s3:PutObject s3:DeleteObject", "in/"}
	e.ok("GET", "/bkt/in/a", nil, "")
	e.refused("GET", "/bkt/out/a", nil, "", "403 AccessDenied")
	e.refused("GET", "/bkt", nil, "", "403 AccessDenied")
	e.refused("GET", "/none/out/a", nil, "", "403 AccessDenied") // not even whether it exists
	e.refused("PUT", "/bkt/in/c", hdr("x-amz-copy-source", "bkt/out/a"), "", "403 AccessDenied")
	e.ok("PUT", "/bkt/in/c", hdr("x-amz-copy-source", "bkt/in/a"), "")
	e.refused("PUT", "/bkt/out/c", hdr("x-amz-copy-source", "bkt/in/a"), "", "403 AccessDenied")
	e.refused("PUT", "/bkt/in/c?tagging", nil, "", "403 AccessDenied") // before NotImplemented
	doc := "<Delete><Object><Key>in/a</Key></Object><Object><Key>out/a</Key></Object></Delete>"
	a := e.ok("POST", "/bkt?delete", hdr(md5Header(doc)...), doc)
	if strings.Count(a.body, "<Deleted>") != 1 || !strings.Contains(a.body, "<Error><Key>out/a</Key><Code>AccessDenied</Code>") {
		t.Errorf("delete: %s", a.body)
	}
}

func TestIDsAndObservation(t *testing.T) {
	e := newEnv(t)
	a := e.ok("PUT", "/bkt/k", nil, "hello")
	id := a.Header.Get("x-amz-request-id")
	if len(id) != 16 || a.Header.Get("x-amz-id-2") == "" {
		t.Errorf("ids %q %q", id, a.Header.Get("x-amz-id-2"))
	}
	waitFor(t, func() bool { return e.last().Op == "PutObject" })
	o := *e.last()
	if o.RequestID != id || o.Status != 200 || o.Code != "OK" || o.BytesIn != 5 || o.AccessKey != testKey || o.Bucket != "bkt" || o.Key != "k" || o.Duration <= 0 || o.FirstByte <= 0 {
		t.Errorf("%+v", o)
	}
	e.ok("GET", "/bkt/k", nil, "")
	waitFor(t, func() bool { return e.last().Op == "GetObject" })
	if o := *e.last(); o.BytesOut != 5 || o.Status != 200 {
		t.Errorf("%+v", o)
	}
	a = e.do("GET", "/bkt/none", nil, "")
	waitFor(t, func() bool { return e.last().Code == "NoSuchKey" })
	if !strings.Contains(a.body, "<RequestId>"+a.Header.Get("x-amz-request-id")+"<") {
		t.Errorf("request id is not in the document: %s", a.body)
	}
	e.do("PUT", "/bkt/none?foo", nil, "")
	waitFor(t, func() bool { return e.last().Op == OpUnknown && e.last().Status == 501 })
	if len(e.s.Operations()) != len(operations()) {
		t.Error("Operations is not the table")
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for range 1000 {
		if cond() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("waited in vain")
}

// raw speaks to the server without a client's help.
func (e *env) raw() net.Conn {
	e.t.Helper()
	c, err := net.Dial("tcp", e.srv.Listener.Addr().String())
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// head is the text of a signed request's head.
func (e *env) head(method, target string, h http.Header) string {
	r := e.request(method, target, h, nil)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, target, r.URL.Host)
	r.Header.Write(&b)
	return b.String()
}

func TestContinue(t *testing.T) {
	e := newPlainEnv(t)
	for _, tc := range []struct{ target, first string }{
		{"/bkt/k", "HTTP/1.1 100 Continue"},
		{"/none/k", "HTTP/1.1 404 Not Found"},
		{"/bkt/k?acl", "HTTP/1.1 501 Not Implemented"},
	} {
		c := e.raw()
		io.WriteString(c, e.head("PUT", tc.target, nil)+"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		if strings.TrimSpace(line) != tc.first {
			t.Errorf("%s: %q %v", tc.target, line, err)
		}
	}
	// Too large: refused before a byte is sent.
	c := e.raw()
	io.WriteString(c, e.head("PUT", "/bkt/k", nil)+fmt.Sprintf("Content-Length: %d\r\nExpect: 100-continue\r\n\r\n", int64(object.MaxPutSize)+1))
	if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "400") {
		t.Errorf("too large: %q", line)
	}
}

// A client that asks for 100 Continue and does not wait for it still learns why it is refused.
func TestRefusedWhileSending(t *testing.T) {
	for _, scheme := range []func(*testing.T, ...func(*Options)) *env{newPlainEnv, newEnv} {
		e := scheme(t)
		c := e.raw()
		if e.srv.TLS != nil {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		io.WriteString(c, e.head("PUT", "/none/k", nil)+"Content-Length: 8388608\r\nExpect: 100-continue\r\n\r\n")
		if _, err := c.Write(make([]byte, 8<<20)); err != nil {
			t.Errorf("send: %v", err)
		}
		if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "404") {
			t.Errorf("%q %v", line, err)
		}
	}
}

func TestNoContentLength(t *testing.T) {
	e := newPlainEnv(t)
	c := e.raw()
	io.WriteString(c, e.head("PUT", "/bkt/k", nil)+"\r\n")
	if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "411") {
		t.Errorf("%q", line)
	}
}

func TestDisconnectStoresNothing(t *testing.T) {
	e := newPlainEnv(t)
	c := e.raw()
	io.WriteString(c, e.head("PUT", "/bkt/k", nil)+"Content-Length: 1000\r\n\r\nonly a part")
	time.Sleep(20 * time.Millisecond)
	c.Close()
	waitFor(t, func() bool { return e.last().Op == "PutObject" })
	if code := e.last().Code; code != "IncompleteBody" {
		t.Errorf("code %s", code)
	}
	e.refused("HEAD", "/bkt/k", nil, "", "404")
}

// A body that a reset, a TLS alert or a shutdown cuts off, or that is framed wrongly, is not a fault of the server, and nothing that
// an operator is shown names the object.
func TestBrokenUploads(t *testing.T) {
	for name, tc := range map[string]struct {
		env    func(*testing.T, ...func(*Options)) *env
		framed bool // by Transfer-Encoding
		cut    func(*env, net.Conn)
	}{
		"reset": {newPlainEnv, false, func(_ *env, c net.Conn) {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}},
		"reset under TLS": {newEnv, false, func(_ *env, c net.Conn) {
			c.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
			c.(*tls.Conn).NetConn().Close()
		}},
		"TLS closed":           {newEnv, false, func(_ *env, c net.Conn) { c.Close() }},
		"TLS ends without end": {newEnv, false, func(_ *env, c net.Conn) { c.(*tls.Conn).NetConn().Close() }},
		"TLS corrupted":        {newEnv, false, func(_ *env, c net.Conn) { io.WriteString(c.(*tls.Conn).NetConn(), "not a record of TLS") }},
		"shutdown":             {newPlainEnv, false, func(e *env, _ net.Conn) { e.srv.Config.Close() }},
		"bad framing":          {newPlainEnv, true, func(_ *env, c net.Conn) { io.WriteString(c, "zz\r\n") }},
	} {
		t.Run(name, func(t *testing.T) {
			var log syncBuffer
			e := tc.env(t, func(o *Options) {
				o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
			})
			c := e.raw()
			if e.srv.TLS != nil {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			length := "Content-Length: 1000000\r\n\r\n"
			h := hdr()
			if tc.framed {
				h = hdr("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-decoded-content-length", "1000000")
				length = "Transfer-Encoding: chunked\r\n\r\n"
			}
			io.WriteString(c, e.head("PUT", "/bkt/wonderkey", h)+length)
			if !tc.framed {
				c.Write(make([]byte, 50_000))
			}
			time.Sleep(20 * time.Millisecond)
			tc.cut(e, c)
			waitFor(t, func() bool { return e.last().Op == "PutObject" })
			if o := e.last(); o.Code != "IncompleteBody" {
				t.Errorf("code %s", o.Code)
			}
			if log.String() != "" {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

// syncBuffer is a buffer that a server writes and a test reads at the same time.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// The log names objects at debug alone, also when the server is at fault.
func TestLogNamesNothing(t *testing.T) {
	const key = `wonder" \key`
	fault := func(verb string) error { return fmt.Errorf("%s object %q: cell 7: %w", verb, key, object.ErrCorrupt) }
	for name, call := range map[string]func(*env){
		"put": func(e *env) { e.refused("PUT", "/bkt/wonder%22%20%5Ckey", nil, "x", "500 InternalError") },
		"delete": func(e *env) {
			doc := "<Delete><Object><Key>wonder&quot; \\key</Key></Object></Delete>"
			e.ok("POST", "/bkt?delete", hdr(md5Header(doc)...), doc)
		},
		"cut": func(e *env) {
			e.ok("PUT", "/bkt/corrupt-after-3wonder", nil, "hello")
			if resp, err := e.srv.Client().Do(e.request("GET", "/bkt/corrupt-after-3wonder", nil, nil)); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var quiet, loud syncBuffer
			e := newEnv(t, func(o *Options) {
				o.Store = failingStore{o.Store.(*fakeStore), fault}
				o.Logger = slog.New(slog.NewMultiHandler(slog.NewTextHandler(&quiet, nil), slog.NewTextHandler(&loud, &slog.HandlerOptions{Level: slog.LevelDebug})))
			})
			call(e)
			waitFor(t, func() bool { return strings.Contains(loud.String(), "wonder") })
			if log := quiet.String(); strings.Contains(log, "wonder") || !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "corrupt") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// failingStore fails as object.Store does, with names in its errors.
type failingStore struct {
	*fakeStore
	fault func(verb string) error
}

func (s failingStore) Put(ctx context.Context, bucket, key string, body io.Reader, opt object.PutOptions) (object.Object, error) {
	if strings.HasPrefix(key, corruptKey) {
		return s.fakeStore.Put(ctx, bucket, key, body, opt)
	}
	return object.Object{}, s.fault("put")
}

func (s failingStore) DeleteMany(context.Context, string, []object.Deletion) []error {
	return []error{s.fault("delete")}
}

func (s failingStore) Get(ctx context.Context, bucket, key string, opt object.GetOptions) (object.Reader, error) {
	r, err := s.fakeStore.Get(ctx, bucket, key, opt)
	if err == nil {
		f := r.(*fakeReader)
		f.broken, f.err = 3, s.fault("read")
	}
	return r, err
}

func TestIdleBody(t *testing.T) {
	e := newPlainEnv(t, func(o *Options) { o.IdleTimeout = 100 * time.Millisecond })
	c := e.raw()
	io.WriteString(c, e.head("PUT", "/bkt/k", nil)+"Content-Length: 1000\r\n\r\nand then silence")
	answer, err := io.ReadAll(c)
	if !bytes.Contains(answer, []byte("<Code>RequestTimeout</Code>")) {
		t.Errorf("%s %v", answer, err)
	}
	// A trickle is no better than silence.
	trickle := e.raw()
	io.WriteString(trickle, e.head("PUT", "/bkt/k", nil)+"Content-Length: 1000000\r\n\r\n")
	go func() {
		for { // until the server hangs up; a trickle that ends would be cut as silence
			if _, err := trickle.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	answer, err = io.ReadAll(trickle)
	if !bytes.Contains(answer, []byte("<Code>RequestTimeout</Code>")) {
		t.Errorf("%s %v", answer, err)
	}
	// Nor is it when much came before.
	late := e.raw()
	io.WriteString(late, e.head("PUT", "/bkt/k", nil)+"Content-Length: 1000000\r\n\r\n")
	go func() {
		if _, err := late.Write(make([]byte, 900000)); err != nil {
			return
		}
		for range 1000 {
			if _, err := late.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	answer, err = io.ReadAll(late)
	if !bytes.Contains(answer, []byte("<Code>RequestTimeout</Code>")) {
		t.Errorf("%s %v", answer, err)
	}
	// A client that is merely idle between requests on one connection is not touched.
	for range 3 {
		e.ok("PUT", "/bkt/k", nil, "x")
		time.Sleep(150 * time.Millisecond)
		e.ok("GET", "/bkt/k", nil, "")
	}
}

// slowStore takes longer to commit than a client may be idle.
type slowStore struct{ *fakeStore }

func (s slowStore) Put(ctx context.Context, bucket, key string, body io.Reader, opt object.PutOptions) (object.Object, error) {
	o, err := s.fakeStore.Put(ctx, bucket, key, body, opt)
	time.Sleep(250 * time.Millisecond)
	if err == nil {
		err = ctx.Err()
	}
	return o, err
}

func TestSlowCommitIsNotIdle(t *testing.T) {
	e := newPlainEnv(t, func(o *Options) {
		o.IdleTimeout = 100 * time.Millisecond
		o.Store = slowStore{o.Store.(*fakeStore)}
	})
	e.ok("PUT", "/bkt/k", nil, "hello")
	e.ok("PUT", "/bkt/k", nil, "hello")
}

func TestStalledReader(t *testing.T) {
	e := newPlainEnv(t, func(o *Options) { o.IdleTimeout = 100 * time.Millisecond })
	e.ok("PUT", "/bkt/k", nil, strings.Repeat("x", 32<<20))
	c := e.raw()
	io.WriteString(c, e.head("GET", "/bkt/k", nil)+"\r\n")
	waitFor(t, func() bool { o := e.last(); return o.Op == "GetObject" && o.Code != "OK" }) // without a byte read here
}

func TestCorruptObject(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/corrupt-after-0", hdr("Cache-Control", "max-age=9"), "hello")
	a := e.refused("GET", "/bkt/corrupt-after-0", nil, "", "500 InternalError")
	a.header("ETag", "", "Cache-Control", "", "Content-Type", "application/xml") // nothing of the object stays in the answer
	e.ok("PUT", "/bkt/corrupt-after-3", nil, "hello")
	resp, err := e.srv.Client().Do(e.request("GET", "/bkt/corrupt-after-3", nil, nil))
	if err == nil {
		defer resp.Body.Close()
		var b []byte
		if b, err = io.ReadAll(resp.Body); string(b) != "hel" {
			t.Errorf("%q", b)
		}
	}
	if err == nil {
		t.Error("a broken answer looks complete")
	}
}

func TestRetryAfter(t *testing.T) {
	e := newEnv(t)
	e.store.fail = fmt.Errorf("get: %w", object.ErrReadOnly)
	e.refused("GET", "/bkt/k", nil, "", "503 ServiceUnavailable").header("Retry-After", "1")
	e.store.fail = errors.New("broken")
	e.refused("GET", "/bkt/k", nil, "", "500 InternalError").header("Retry-After", "")
}

type panicStore struct{ *fakeStore }

func (panicStore) Bucket(context.Context, string) (object.Bucket, error) { panic("boom") }

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	e := newEnv(t, func(o *Options) {
		o.Store = panicStore{o.Store.(*fakeStore)}
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	a := e.refused("HEAD", "/bkt", nil, "", "500")
	waitFor(t, func() bool { return e.last().Code == "InternalError" })
	if !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), a.Header.Get("x-amz-request-id")) {
		t.Errorf("log: %s", log.String())
	}
}

func TestPresigned(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k%20ey", nil, "hello")
	r := e.unsigned("GET", "/bkt/k%20ey?response-content-type=a%2Fb", nil, nil)
	presign(r)
	a := e.send(r)
	a.mustBe("200")
	a.header("Content-Type", "a/b")
	if a.body != "hello" {
		t.Errorf("%q", a.body)
	}
	r.URL.RawQuery += "0"
	e.send(r).mustBe("403 SignatureDoesNotMatch")
}

// TestPresignedHeaders: SDKs move headers into the query when they presign. They count, or are refused, but for checksums of bodies
// that the presigner did not have.
func TestPresignedHeaders(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/source", nil, "hello")
	owner := ownerOf(testKey).ID
	put := func(query string, h http.Header) *answer {
		r := e.unsigned("PUT", "/bkt/k?"+query, h, strings.NewReader("hello"))
		presign(r)
		return e.send(r)
	}
	put("x-amz-meta-color=dark%20red&x-amz-storage-class=STANDARD_IA&x-amz-tagging=a%3Db&x-amz-server-side-encryption=AES256&x-amz-acl=private"+
		"&x-amz-expected-bucket-owner="+owner+"&x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32&x-id=PutObject", nil).mustBe("200")
	e.ok("HEAD", "/bkt/k", nil, "").header("x-amz-meta-color", "dark red", "x-amz-storage-class", "STANDARD_IA", "x-amz-tagging-count", "1")
	for query, want := range map[string]string{
		"x-amz-acl=public-read":                                  "400 AccessControlListNotSupported",
		"x-amz-grant-read=id%3D1":                                "400 AccessControlListNotSupported",
		"x-amz-server-side-encryption=aws%3Akms":                 "501 NotImplemented",
		"x-amz-server-side-encryption-customer-algorithm=AES256": "400 InvalidArgument",
		"x-amz-storage-class=FAST":                               "400 InvalidStorageClass",
		"x-amz-object-lock-mode=GOVERNANCE":                      "400 InvalidRequest",
		"x-amz-copy-source=%2Fbkt%2Fsource":                      "400 InvalidArgument",
		"x-amz-expected-bucket-owner=" + strings.Repeat("0", 64): "403 AccessDenied",
		"x-amz-meta-a=b%0D%0Ac%3A+d":                             "400 InvalidArgument",
		"x-amz-meta-a%20b=c":                                     "400 InvalidArgument",
		"x-amz-meta-a=" + strings.Repeat("x", 2048):              "400 MetadataTooLarge",
	} {
		put(query, nil).mustBe(want)
	}
	if a := e.ok("GET", "/bkt/k", nil, ""); a.body != "hello" || a.Header.Get("x-amz-meta-color") == "" {
		t.Errorf("a refused write changed the object: %q, %v", a.body, a.Header)
	}
	// What was sent as a header stays, and other spellings are parameters like any that begin with "x-".
	put("x-amz-storage-class=FAST", hdr("x-amz-storage-class", "GLACIER")).mustBe("200")
	put("X-Amz-Meta-Upper=a", nil).mustBe("200")
	e.ok("HEAD", "/bkt/k", nil, "").header("x-amz-meta-upper", "", "x-amz-storage-class", "")
	// A signature in the header leaves the query alone.
	e.ok("PUT", "/bkt/k?x-amz-meta-a=b", nil, "hello")
	e.ok("HEAD", "/bkt/k", nil, "").header("x-amz-meta-a", "")
}

func TestVirtualHost(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.Domains = []string{"s3.example.org"} })
	r := e.unsigned("PUT", "/dir/key", nil, strings.NewReader("x"))
	r.Host = "bkt.s3.example.org"
	sign(r, testKey, testSecret, DefaultRegion, time.Now())
	e.send(r).mustBe("200")
	e.ok("GET", "/bkt/dir/key", nil, "")
	r = e.unsigned("POST", "/k?uploads", nil, nil)
	r.Host = "bkt.s3.example.org"
	sign(r, testKey, testSecret, DefaultRegion, time.Now())
	e.send(r).mustBe("200")
}

func TestRequestIDs(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		id := newRequestID()
		if seen[id] || len(id) != 16 {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
}

// discard is a ResponseWriter that keeps nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkServe measures one request of 4 KiB without network and store: parse, verify, headers.
func BenchmarkServe(b *testing.B) {
	store := newFakeStore()
	store.CreateBucket(b.Context(), "bkt", object.Bucket{})
	s := New(Options{Store: store, Authorizer: allowAll{}, Lookup: func(context.Context, string) (Credentials, error) {
		return Credentials{AccessKey: testKey, Secret: testSecret}, nil
	}})
	body := bytes.Repeat([]byte("x"), 4096)
	if _, err := store.Put(b.Context(), "bkt", "k", bytes.NewReader(body), object.PutOptions{Size: 4096}); err != nil {
		b.Fatal(err)
	}
	for _, method := range []string{"GET", "PUT"} {
		b.Run(method, func(b *testing.B) {
			r := httptest.NewRequest(method, "http://host/bkt/k", nil)
			sign(r, testKey, testSecret, DefaultRegion, time.Now())
			b.ReportAllocs()
			b.SetBytes(4096)
			for b.Loop() {
				if method == "PUT" {
					r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), 4096
				}
				s.ServeHTTP(&discard{make(http.Header)}, r)
			}
		})
	}
}
