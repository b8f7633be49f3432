package listener

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testCert makes a self-signed certificate for 127.0.0.1.
func testCert(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve starts a server as the daemon does and returns its URL and a client for it.
func serve(tb testing.TB, h http.Handler, opt Options, useTLS bool) (string, *http.Client) {
	tb.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var ln net.Listener = New(inner, opt)
	url := "http://" + inner.Addr().String()
	if useTLS {
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{testCert(tb)}, DynamicRecordSizingDisabled: true})
		url = "https://" + inner.Addr().String()
	}
	srv := &http.Server{Handler: Handler(h), ConnContext: ConnContext}
	go srv.Serve(ln)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true, WriteBufferSize: 64 << 10}
	tb.Cleanup(func() {
		tr.CloseIdleConnections()
		srv.Close()
	})
	return url, &http.Client{Transport: tr}
}

// echo answers a body with itself, in writes of many sizes.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	for size := 1; len(body) > 0; size *= 3 {
		n := min(size, len(body))
		if _, err := w.Write(body[:n]); err != nil {
			return
		}
		body = body[n:]
	}
}

func TestEcho(t *testing.T) {
	for _, gathered := range []bool{false, true} {
		for _, useTLS := range []bool{false, true} {
			t.Run(fmt.Sprintf("gather=%v,tls=%v", gathered, useTLS), func(t *testing.T) {
				url, client := serve(t, http.HandlerFunc(echo), Options{Gather: gathered, MaxConns: 16}, useTLS)
				var wg sync.WaitGroup
				for g := range 8 {
					wg.Go(func() {
						rng := mrand.NewChaCha8([32]byte{byte(g)})
						for _, size := range []int{0, 1, 511, 4096, maxRecord, maxRecord + 1, gather - 1, gather, gather + 1, 3 << 20} {
							want := make([]byte, size)
							rng.Read(want)
							req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, url, bytes.NewReader(want))
							req.Header.Set("Expect", "100-continue")
							resp, err := client.Do(req)
							if err != nil {
								t.Error(err)
								return
							}
							got, err := io.ReadAll(resp.Body)
							resp.Body.Close()
							if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
								t.Errorf("size %d: %d bytes came back, %v", size, len(got), err)
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

func TestMaxConns(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := New(inner, Options{MaxConns: 1})
	for range 2 {
		peer, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
	}
	first, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			err = c.Close()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("a second connection was accepted beside the first: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	first.Close() // closing twice frees one place only
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if len(ln.slots) != 0 {
		t.Errorf("%d places taken after all connections closed", len(ln.slots))
	}
	// A full listener that is closed must not leave Accept waiting.
	ln.slots <- struct{}{}
	go func() { _, err := ln.Accept(); second <- err }()
	ln.Close()
	if err := <-second; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed listener: %v", err)
	}
}

// BenchmarkTLS downloads through TLS; server-cpu-s/GB is the CPU time of the server alone: the client is a process of its own.
func BenchmarkTLS(b *testing.B) {
	const size = 64 << 20
	chunk := make([]byte, 64<<10)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for range size / len(chunk) {
			w.Write(chunk)
		}
	})
	for _, gather := range []bool{false, true} {
		b.Run(fmt.Sprintf("gather=%v", gather), func(b *testing.B) {
			url, _ := serve(b, h, Options{Gather: gather}, true)
			b.SetBytes(size)
			before := cpu()
			cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run", "^TestDownload$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("DOWNLOAD=%s %d", url, b.N))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			b.ReportMetric((cpu()-before).Seconds()/(float64(b.N)*size/1e9), "server-cpu-s/GB")
		})
	}
}

// TestDownload is the client process of BenchmarkTLS.
func TestDownload(t *testing.T) {
	var url string
	var n int
	if _, err := fmt.Sscan(os.Getenv("DOWNLOAD"), &url, &n); err != nil {
		t.Skip("runs only under BenchmarkTLS")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	buf := make([]byte, 64<<10)
	for range n {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
		resp.Body.Close()
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
