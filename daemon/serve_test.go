package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"

	"coffer/hw"
)

// output is a buffer that a daemon writes and a test reads at the same time.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Reset()
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// instance is a daemon run in this process.
type instance struct {
	dir         string
	out, log    output
	stop        context.CancelFunc
	exit        chan int
	admin       string
	https, http string // URLs
	client      *http.Client
	creds       rootCredentials
	header      map[string]string // further headers of requests, in lower case
}

// startDaemon runs `coffer serve` on dir with small disks and waits until it is ready.
func startDaemon(t *testing.T, dir string, vars map[string]string, args ...string) *instance {
	t.Helper()
	in := &instance{dir: dir, exit: make(chan int, 1)}
	conf := writeTemp(t, "coffer.yaml", "embedded_disk_size: 256MiB\nlog: {level: debug}\n")
	args = append([]string{"serve", "--data", dir, "--config", conf, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, args...)
	in.begin(t, vars, func(ctx context.Context, e env) int { return run(ctx, args, e) })
	return in
}

// begin runs a daemon and waits until it is ready.
func (in *instance) begin(t *testing.T, vars map[string]string, run func(ctx context.Context, e env) int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	in.stop = cancel
	go func() {
		in.exit <- run(ctx, env{strings.NewReader(""), &in.out, &in.log, func(n string) string { return vars[n] }})
	}()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", in.log.String())
		}
	})
	for deadline := time.Now().Add(time.Minute); !strings.Contains(in.out.String(), "Try:"); time.Sleep(5 * time.Millisecond) {
		select {
		case code := <-in.exit:
			t.Fatalf("daemon ended with %d: %s", code, in.log.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("daemon not ready: %s", in.log.String())
		}
	}
	in.find(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(readFile(t, filepath.Join(in.dir, "tls", "ca.crt")))
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(tr.CloseIdleConnections)
	in.client = &http.Client{Transport: tr}
	in.creds = rootCredentials{vars["COFFER_ROOT_ACCESS_KEY"], vars["COFFER_ROOT_SECRET_KEY"]}
	if m := regexp.MustCompile(`access key  (\S+)\n  secret key  (\S{40}) `).FindStringSubmatch(in.out.String()); m != nil {
		in.creds = rootCredentials{m[1], m[2]}
	}
}

// find reads where the daemon listens.
func (in *instance) find(t *testing.T) {
	t.Helper()
	addr := func(name string) string {
		return strings.TrimSpace(string(readFile(t, filepath.Join(in.dir, "run", name+".addr"))))
	}
	in.admin, in.https, in.http = "http://"+addr("admin"), "https://"+addr("https"), "http://"+addr("http")
}

// end stops the daemon in order.
func (in *instance) end(t *testing.T) {
	t.Helper()
	in.stop()
	select {
	case code := <-in.exit:
		if code != exitOK {
			t.Errorf("daemon ended with %d", code)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("daemon does not end")
	}
}

// do sends a request signed by AWS Signature Version 4, with an unsigned payload unless header tells its sum.
func (in *instance) do(t *testing.T, method, url string, body io.Reader, size int64) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	now := time.Now().UTC().Format("20060102T150405Z")
	scope := now[:8] + "/us-east-1/s3/aws4_request"
	lines := map[string]string{"host": req.URL.Host, "x-amz-date": now, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
	maps.Copy(lines, in.header)
	names, signed := slices.Sorted(maps.Keys(lines)), ""
	for _, name := range names {
		signed += name + ":" + lines[name] + "\n"
		req.Header.Set(name, lines[name])
	}
	canonical := strings.Join([]string{method, req.URL.EscapedPath(), req.URL.RawQuery, signed, strings.Join(names, ";"), lines["x-amz-content-sha256"]}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	key := []byte("AWS4" + in.creds.SecretKey)
	for _, part := range append(strings.Split(scope, "/"), fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", now, scope, sum)) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	req.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		in.creds.AccessKey, scope, strings.Join(names, ";"), hex.EncodeToString(key)))
	resp, err := in.client.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
		return 0, nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, answer
}

// want sends a request with a small body and checks the answer's status.
func (in *instance) want(t *testing.T, status int, method, url string, body []byte) []byte {
	t.Helper()
	got, answer := in.do(t, method, url, bytes.NewReader(body), int64(len(body)))
	if got != status {
		t.Errorf("%s %s: status %d, want %d: %s", method, url, got, status, answer)
	}
	return answer
}

// Commands in this process share an engine, unless a path is pinned.
func init() {
	shared := sync.OnceValues(func() (*hw.Engine, error) { return hw.Probe(hw.Options{SkipBench: true}) })
	probeHardware = func(o hw.Options) (*hw.Engine, error) {
		if len(o.Pin) > 0 {
			return hw.Probe(o)
		}
		return shared()
	}
}

// coffer runs a command line in this process.
func coffer(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, env{strings.NewReader(""), &out, &err, noEnv})
	return code, out.String(), err.String()
}

func TestServe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	in := startDaemon(t, dir, nil)
	if in.creds.SecretKey == "" || !strings.Contains(in.out.String(), "Recovery key, shown only now") ||
		!strings.Contains(in.out.String(), "protects nothing") || !strings.Contains(in.out.String(), "AWS_CA_BUNDLE="+filepath.Join(dir, "tls", "ca.crt")) {
		t.Fatalf("first start printed:\n%s", in.out.String())
	}
	small, large := []byte("a small secret body"), bytes.Repeat([]byte("0123456789abcdef"), 200<<10)
	in.want(t, 200, "PUT", in.https+"/wonderbucket", nil)
	in.want(t, 200, "PUT", in.https+"/wonderbucket/wonderkey", small)
	in.want(t, 200, "PUT", in.http+"/wonderbucket/dir//large", large)
	for _, base := range []string{in.https, in.http} {
		if got := in.want(t, 200, "GET", base+"/wonderbucket/wonderkey", nil); !bytes.Equal(got, small) {
			t.Errorf("GET over %s: %q", base, got)
		}
		if got := in.want(t, 200, "GET", base+"/wonderbucket/dir//large", nil); !bytes.Equal(got, large) {
			t.Errorf("GET of the large object over %s: %d bytes differ", base, len(got))
		}
	}
	in.want(t, 404, "GET", in.https+"/wonderbucket/absent", nil)
	good := in.creds
	in.creds.SecretKey += "x"
	in.want(t, 403, "GET", in.https+"/wonderbucket/wonderkey", nil)
	in.creds = good

	t.Run("admin", func(t *testing.T) { testAdmin(t, in) })
	t.Run("commands", func(t *testing.T) { testCommandsBesideDaemon(t, in) })
	t.Run("drain", func(t *testing.T) { testDrain(t, in) })
	if log := in.log.String(); strings.Contains(log, good.SecretKey) || !strings.Contains(log, "op=PutObject") {
		t.Errorf("the log lacks requests or tells the secret:\n%s", log)
	}
	for line := range strings.Lines(in.log.String()) {
		if strings.Contains(line, "wonder") && !(strings.Contains(line, "level=DEBUG") && strings.Contains(line, " err=")) {
			t.Errorf("the log names a bucket or key, and not in an error at debug: %s", line)
		}
	}

	// A second start asks nothing, prints no secret, and has everything, with two disks and the index gone.
	for _, gone := range []string{"disks/disk1.img", "disks/disk4.img", "index"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	again := startDaemon(t, dir, nil)
	if out := again.out.String(); strings.Contains(out, "Recovery key") || strings.Contains(out, good.SecretKey) || !strings.Contains(out, good.AccessKey) {
		t.Errorf("second start printed:\n%s", out)
	}
	again.creds = good
	for key, want := range map[string][]byte{"wonderkey": small, "dir//large": large, "drained": large} {
		if got := again.want(t, 200, "GET", again.https+"/wonderbucket/"+key, nil); !bytes.Equal(got, want) {
			t.Errorf("after the loss of two disks: %s: %d bytes differ", key, len(got))
		}
	}
	if code, out, _ := coffer(t, "array", "status", "--data", dir); code != exitUnhealthy || strings.Count(out, "missing") < 2 {
		t.Errorf("status of a degraded array: exit %d: %s", code, out)
	}
	again.end(t)
	if code, out, _ := coffer(t, "array", "status", "--data", dir, "--json"); code != exitUnhealthy || !strings.Contains(out, `"running": false`) || !strings.Contains(out, "disk4.img") {
		t.Errorf("offline status of a degraded array: exit %d: %s", code, out)
	}
	testNothingReadable(t, dir, "wonderbucket", "wonderkey", "a small secret body", "0123456789abcdef0123456789abcdef", good.AccessKey, good.SecretKey)
}

// testNothingReadable looks for texts in every file of the data directory.
func testNothingReadable(t *testing.T, dir string, texts ...string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		p := mapped(t, path)
		for _, text := range texts {
			if bytes.Contains(p, []byte(text)) {
				t.Errorf("%s holds %q", path, text)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// mapped is the content of a file. Mapped, as the race detector looks at every byte that is read.
func mapped(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(p) })
	return p
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(p)
}

func testAdmin(t *testing.T, in *instance) {
	for _, path := range []string{"/livez", "/readyz"} {
		if code, body := get(t, in.admin+path); code != 200 || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, _ := get(t, in.admin+"/debug/pprof/heap?debug=1"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
	code, metrics := get(t, in.admin+"/metrics")
	if code != 200 {
		t.Fatalf("metrics: %d", code)
	}
	for _, want := range []string{
		`coffer_s3_requests_total{code="OK",op="PutObject"} 2`,
		`coffer_s3_requests_total{code="NoSuchKey",op="GetObject"} 1`,
		`coffer_s3_request_duration_seconds_count{op="PutObject"} 2`,
		`coffer_s3_first_byte_seconds_count{op="PutObject"} 2`,
		`coffer_s3_sent_bytes_total{op="GetObject"}`,
		`coffer_crypto_seconds_total{op="seal",path="`,
		`coffer_crypto_path_chosen{path="`,
		`",primitive="reed-solomon",size="65536"} `,
		`coffer_array_state{state="healthy"} 1`,
		`coffer_disk_state{disk="5",state="healthy"} 1`,
		`coffer_disk_durable_write_duration_seconds_count{disk="0"}`,
		`coffer_disk_info{disk="0"`, "coffer_key_epoch 1", "coffer_key_slots{kind=\"recovery\"} 1", "coffer_commits_total", "go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if m := regexp.MustCompile(`coffer_crypto_bytes_total\{op="seal",path="[^"]*",primitive="aes-256-gcm"\} [1-9]`); !m.MatchString(metrics) {
		t.Error("no sealed bytes were counted")
	}
	for line := range strings.Lines(metrics) {
		if !strings.HasPrefix(line, "#") && !regexp.MustCompile(`^(coffer|go|process)_`).MatchString(line) {
			t.Errorf("metric of another name: %s", line)
		}
	}
	if strings.Contains(metrics, "wonder") {
		t.Error("metrics name a bucket or key")
	}
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, in.admin+"/metrics", nil)
	req.Host = "attacker.example:9001"
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another host name: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func testCommandsBesideDaemon(t *testing.T, in *instance) {
	code, out, _ := coffer(t, "array", "status", "--data", in.dir, "--json")
	var st struct {
		ArrayID      string `json:"array_id"`
		Data, Parity int
		Running      bool
		Disks        []struct{ Path, State string }
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != exitOK {
		t.Fatalf("status: exit %d, %v: %s", code, err, out)
	}
	if len(st.ArrayID) != 32 || st.Data != 4 || st.Parity != 2 || !st.Running || len(st.Disks) != 6 || st.Disks[5].State != "healthy" ||
		st.Disks[5].Path != filepath.Join(in.dir, "disks", "disk5.img") {
		t.Errorf("status: %+v", st)
	}
	if code, out, err := coffer(t, "array", "check", "--data", in.dir); code != exitOK || !strings.Contains(out, "bad 0, missing 0") {
		t.Errorf("check: exit %d: %s%s", code, out, err)
	}
	for _, args := range [][]string{
		{"array", "rebuild-index", "--data", in.dir},
		{"serve", "--data", in.dir, "--admin", "none"},
		{"array", "create", "--data", in.dir, "--disk", filepath.Join(in.dir, "more.img"), "--disk-size", "64MiB", "--yes"},
	} {
		if code, _, err := coffer(t, args...); code != exitInUse || !strings.Contains(err, "in use") {
			t.Errorf("%v: exit %d: %s", args, code, err)
		}
	}
}

// testDrain stops the daemon while an upload is under way: the upload ends well, and then the daemon does.
func testDrain(t *testing.T, in *instance) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 200<<10)
	body, feed := io.Pipe()
	status := make(chan int)
	go func() {
		code, _ := in.do(t, "PUT", in.https+"/wonderbucket/drained", body, int64(len(large)))
		status <- code
	}()
	feed.Write(large[:1<<20])
	waitFor := func(what string, cond func() bool) {
		for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("waited in vain: %s", what)
				return
			}
		}
	}
	// What is only in a socket is not yet a request, and a shutdown does not wait for it.
	waitFor("a request in flight", func() bool {
		_, metrics := get(t, in.admin+"/metrics")
		return strings.Contains(metrics, "coffer_s3_requests_in_flight 1\n")
	})
	in.stop()
	waitFor("/readyz tells of the shutdown", func() bool {
		code, reason := get(t, in.admin+"/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(reason, "shutting down")
	})
	feed.Write(large[1<<20:])
	if code := <-status; code != 200 {
		t.Errorf("upload during the shutdown: status %d", code)
	}
	in.end(t)
}

// awaitRebuild waits until a daemon whose index failed is ready again, and until then sees it say that it is not.
func (in *instance) awaitRebuild(t *testing.T) {
	t.Helper()
	reasons := ""
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		code, reason := get(t, in.admin+"/readyz")
		if code == 200 {
			break
		}
		first := reasons == ""
		reasons += reason
		if _, metrics := get(t, in.admin+"/metrics"); first && !strings.Contains(metrics, "\ncoffer_index_healthy 0\n") {
			t.Errorf("metrics do not say that the index failed:\n%s", metrics)
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready again: %q", reasons)
		}
	}
	if !strings.Contains(reasons, "index corrupt") {
		t.Errorf("/readyz did not say why: %q", reasons)
	}
}

// TestIndexRot flips a bit of the index under a running daemon: it says so, opens the array again by itself, and has everything.
func TestIndexRot(t *testing.T) {
	in := &instance{dir: t.TempDir(), exit: make(chan int, 1)}
	f := serveFlags{data: in.dir, listen: "127.0.0.1:0", http: "127.0.0.1:0", admin: "127.0.0.1:0"}
	load := func() (Config, error) { return f.load(noEnv) }
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	cfg.EmbeddedDiskSize, cfg.Hardware.SkipBenchmark = 256<<20, true
	var d *daemon
	in.begin(t, nil, func(ctx context.Context, e env) int {
		d = newDaemon(e, cfg, load)
		if err := d.run(ctx); err != nil {
			t.Errorf("daemon: %v", err)
			return exitFailure
		}
		return exitOK
	})
	in.want(t, 200, "PUT", in.http+"/bucket", nil)
	const n = 50
	body := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 1000) }
	for i := range n {
		in.want(t, 200, "PUT", fmt.Sprintf("%s/bucket/key%d", in.http, i), body(i))
	}
	if err := d.app.Load().store.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(in.dir, "index", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables: %q, %v", tables, err)
	}
	for _, name := range tables {
		p := readFile(t, name)
		p[len(p)/3] ^= 1
		if err := os.WriteFile(name, p, 0o600); err != nil { // in place: the daemon has it open
			t.Fatal(err)
		}
	}
	failed := 0
	for i := range n {
		url := fmt.Sprintf("%s/bucket/key%d", in.http, i)
		code, answer := in.do(t, "GET", url, nil, 0)
		if code == 503 && bytes.Contains(answer, []byte("<Code>ServiceUnavailable</Code>")) {
			failed++
			break
		}
		if code != 200 || !bytes.Equal(answer, body(i)) {
			t.Fatalf("GET %s: %d %s", url, code, answer)
		}
	}
	if failed == 0 {
		t.Fatal("no read met the damage")
	}
	in.awaitRebuild(t)
	in.find(t)
	for i := range n {
		if got := in.want(t, 200, "GET", fmt.Sprintf("%s/bucket/key%d", in.http, i), nil); !bytes.Equal(got, body(i)) {
			t.Errorf("key%d differs after the rebuild", i)
		}
	}
	if _, metrics := get(t, in.admin+"/metrics"); !strings.Contains(metrics, "\ncoffer_index_healthy 1\n") {
		t.Errorf("metrics say that the index is broken:\n%s", metrics)
	}
	in.end(t)
	if log := in.log.String(); !strings.Contains(log, "the array is opened again") {
		t.Errorf("log:\n%s", log)
	}
}

func TestGivenCredentialsServe(t *testing.T) {
	in := startDaemon(t, t.TempDir(), map[string]string{"COFFER_ROOT_ACCESS_KEY": "admin", "COFFER_ROOT_SECRET_KEY": "a-long-secret"})
	if out := in.out.String(); strings.Contains(out, "a-long-secret") || !strings.Contains(out, "access key  admin\n") {
		t.Errorf("printed:\n%s", out)
	}
	in.want(t, 200, "PUT", in.https+"/bucket", nil)

	// SIGHUP renews what may change in a running daemon.
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(in.log.String(), "msg=reloaded"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no reload")
		}
	}
	in.end(t)
	if names, _ := filepath.Glob(filepath.Join(in.dir, "*")); !slices.Contains(names, filepath.Join(in.dir, "array.yaml")) {
		t.Errorf("data directory: %v", names)
	}
}

// What a first start makes it shows, also when it fails afterwards: the next start would not.
func TestFailedFirstStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	conf := writeTemp(t, "coffer.yaml", "embedded_disk_size: 256MiB\n")
	serve := func(dir, listen string, vars map[string]string) (code int, out, log string) {
		var o, l bytes.Buffer
		code = run(t.Context(), []string{"serve", "--data", dir, "--config", conf, "--admin", "none", "--listen", listen},
			env{strings.NewReader(""), &o, &l, func(n string) string { return vars[n] }})
		return code, o.String(), l.String()
	}
	code, out, log := serve(t.TempDir(), taken.Addr().String(), nil)
	if code != exitFailure || !strings.Contains(log, "address already in use") {
		t.Errorf("exit %d: %s", code, log)
	}
	if !strings.Contains(out, "Recovery key") || !regexp.MustCompile(`secret key  \S{40}\n`).MatchString(out) {
		t.Errorf("printed:\n%s", out)
	}

	dir := t.TempDir()
	code, _, log = serve(dir, "127.0.0.1:0", map[string]string{"COFFER_ROOT_ACCESS_KEY": "admin"})
	if _, err := os.Stat(filepath.Join(dir, "disks")); code != exitFailure || !strings.Contains(log, "secret key has 0") || !os.IsNotExist(err) {
		t.Errorf("bad credentials: exit %d, disks %v: %s", code, err, log)
	}
}

func TestVirtualHosts(t *testing.T) {
	conf := writeTemp(t, "coffer.yaml", "embedded_disk_size: 256MiB\ndomains: [s3.example.org]\n")
	in := startDaemon(t, t.TempDir(), nil, "--config", conf)
	addr := strings.TrimPrefix(in.https, "https://")
	in.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	in.want(t, 200, "PUT", "https://bkt.s3.example.org/", nil)
	in.want(t, 200, "PUT", "https://bkt.s3.example.org/bkt/key", []byte("x"))
	if got := in.want(t, 200, "GET", "https://s3.example.org/bkt/bkt/key", nil); string(got) != "x" {
		t.Errorf("%q", got)
	}
	in.end(t)
}

// A service must not have its array's secrets in the journal.
func TestNoSecretsToTheJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	getenv := func(name string) string {
		return map[string]string{"JOURNAL_STREAM": fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)}[name]
	}
	var log bytes.Buffer
	dir := t.TempDir()
	code := run(t.Context(), []string{"serve", "--data", dir, "--admin", "none", "--listen", "127.0.0.1:0"}, env{strings.NewReader(""), f, &log, getenv})
	if code != exitFailure || !strings.Contains(log.String(), "coffer array create") {
		t.Errorf("exit %d: %s", code, &log)
	}
	if _, err := os.Stat(filepath.Join(dir, "disks")); !os.IsNotExist(err) {
		t.Errorf("disks were made: %v", err)
	}
}
