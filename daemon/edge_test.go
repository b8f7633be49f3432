package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What the configuration says of S3 reaches the clients, and what bounds them is in force.
func TestEdge(t *testing.T) {
	in := &instance{dir: t.TempDir(), exit: make(chan int, 1)}
	conf := writeTemp(t, "coffer.yaml", `
embedded_disk_size: 256MiB
hardware: {skip_benchmark: true}
s3: {fresh_bucket_encryption: not-found, wrong_customer_key_status: 400}
`)
	f := serveFlags{data: in.dir, config: conf, listen: "127.0.0.1:0", http: "127.0.0.1:0", admin: "127.0.0.1:0"}
	load := func() (Config, error) { return f.load(noEnv) }
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	var d *daemon
	in.begin(t, nil, func(ctx context.Context, e env) int {
		d = newDaemon(e, cfg, load)
		if err := d.run(ctx); err != nil {
			return exitFailure
		}
		return exitOK
	})
	in.want(t, 200, "PUT", in.https+"/bucket", nil)

	if body := in.want(t, 404, "GET", in.https+"/bucket?encryption=", nil); !bytes.Contains(body, []byte("ServerSideEncryptionConfigurationNotFoundError")) {
		t.Errorf("fresh bucket: %s", body)
	}
	in.header = customerKey('r')
	in.want(t, 200, "PUT", in.https+"/bucket/sealed", []byte("x"))
	in.header = customerKey('w')
	in.want(t, 400, "GET", in.https+"/bucket/sealed", nil)
	in.header = nil

	t.Run("hash", func(t *testing.T) { testHashMetered(t, in) })
	t.Run("headers", func(t *testing.T) { testHeaderBound(t, in) })
	t.Run("options", func(t *testing.T) { testOptionsStar(t, in) })
	t.Run("banner", func(t *testing.T) {
		in.out.reset()
		d.banner(&news{}, []*endpoint{{addr: "[::]:9002"}, {addr: "0.0.0.0:9000"}}, "", "/a dir/it's/ca.crt", rootCredentials{AccessKey: "a"})
		out := in.out.String()
		if !strings.Contains(out, "S3 at https://localhost:9000,") || !strings.Contains(out, "and at http://localhost:9002,") {
			t.Errorf("banner:\n%s", out)
		}
		export := regexp.MustCompile(`(?s)  (export .*?)\n  aws `).FindStringSubmatch(out)
		if export == nil {
			t.Fatalf("no paste line in:\n%s", out)
		}
		got, err := exec.CommandContext(t.Context(), "sh", "-c", export[1]+`; printf %s "$AWS_CA_BUNDLE"`).Output()
		if err != nil || string(got) != "/a dir/it's/ca.crt" {
			t.Errorf("pasted %s: %q, %v", export[1], got, err)
		}
	})
	in.end(t)
}

// customerKey is the headers of a customer key of 32 equal bytes.
func customerKey(c byte) map[string]string {
	key := bytes.Repeat([]byte{c}, 32)
	sum := md5.Sum(key)
	const prefix = "x-amz-server-side-encryption-customer-"
	return map[string]string{prefix + "algorithm": "AES256", prefix + "key": base64.StdEncoding.EncodeToString(key),
		prefix + "key-md5": base64.StdEncoding.EncodeToString(sum[:])}
}

// testHashMetered: the hash of a signed body is of the chosen path, and counted.
func testHashMetered(t *testing.T, in *instance) {
	counted := func() float64 {
		_, metrics := get(t, in.admin+"/metrics")
		m := regexp.MustCompile(`coffer_crypto_bytes_total\{op="sum",path="[^"]*",primitive="sha-256"\} (\S+)`).FindStringSubmatch(metrics)
		if m == nil {
			t.Fatalf("metrics:\n%s", metrics)
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := counted()
	body := bytes.Repeat([]byte("0123456789abcdef"), 20<<10)
	sum := sha256.Sum256(body)
	in.header = map[string]string{"x-amz-content-sha256": hex.EncodeToString(sum[:])}
	in.want(t, 200, "PUT", in.https+"/bucket/signed", body)
	in.header = nil
	if n := counted() - before; n < float64(len(body)) {
		t.Errorf("%v bytes counted of %d", n, len(body))
	}
}

// testHeaderBound: net/http answers too long a header itself, before there is a request.
func testHeaderBound(t *testing.T, in *instance) {
	for size, want := range map[int]int{20 << 10: 403, 40 << 10: 431} {
		for _, base := range []string{in.http, in.https} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", base+"/bucket", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Filler", strings.Repeat("x", size))
			resp, err := in.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%d bytes of header: %d, want %d", size, resp.StatusCode, want)
			}
		}
	}
}

// testOptionsStar: `OPTIONS *` is not a call of S3, and net/http must not answer it with success.
func testOptionsStar(t *testing.T, in *instance) {
	c, err := tls.Dial("tcp", strings.TrimPrefix(in.https, "https://"), in.client.Transport.(*http.Transport).TLSClientConfig.Clone())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) || !bytes.Contains(answer, []byte("<Error>")) {
		t.Errorf("%s, %v", answer, err)
	}
}
