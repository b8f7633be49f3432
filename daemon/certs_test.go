package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrivateCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	now := time.Now()
	clock := func() time.Time { return now }
	c, err := newCerts(TLSConfig{Hosts: []string{"s3.example.org", "192.0.2.7"}}, dir, "192.0.2.8:9000", clock, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]os.FileMode{"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600} {
		st, err := os.Stat(filepath.Join(dir, file))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", file, st, err, want)
		}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(readFile(t, c.caFile())) {
		t.Fatal("ca.crt is no certificate")
	}
	hostname, _ := os.Hostname()
	for _, name := range []string{"localhost", "127.0.0.1", "::1", hostname, "s3.example.org", "192.0.2.7", "192.0.2.8"} {
		opt := x509.VerifyOptions{DNSName: name, Roots: roots}
		if net.ParseIP(name) != nil {
			opt.DNSName = "[" + name + "]"
		}
		if _, err := c.cur.Load().Leaf.Verify(opt); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// The same again keeps both; another host makes a new server certificate of the same CA.
	ca, srv := readFile(t, filepath.Join(dir, "ca.crt")), readFile(t, filepath.Join(dir, "server.crt"))
	again, err := newCerts(TLSConfig{Hosts: []string{"s3.example.org", "192.0.2.7"}}, dir, "192.0.2.8:9000", clock, quietLog())
	if err != nil || !bytes.Equal(srv, readFile(t, filepath.Join(dir, "server.crt"))) {
		t.Errorf("a second start made another certificate (%v)", err)
	}
	if _, err := newCerts(TLSConfig{Hosts: []string{"new.example.org"}}, dir, "", clock, quietLog()); err != nil {
		t.Error(err)
	}
	if bytes.Equal(srv, readFile(t, filepath.Join(dir, "server.crt"))) || !bytes.Equal(ca, readFile(t, filepath.Join(dir, "ca.crt"))) {
		t.Error("want a new server certificate of the old CA for a new host")
	}

	// Before the certificate ends it is renewed, in the running daemon too.
	if err := again.refresh(); err != nil {
		t.Fatal(err)
	}
	old := again.cur.Load()
	now = now.Add(certLife - renewBefore - time.Minute)
	if err := again.refresh(); err != nil || !again.cur.Load().Leaf.Equal(old.Leaf) {
		t.Errorf("renewed too early (%v)", err)
	}
	now = now.Add(2 * time.Minute)
	if err := again.refresh(); err != nil || again.cur.Load().Leaf.Equal(old.Leaf) {
		t.Errorf("not renewed (%v)", err)
	}
	if !bytes.Equal(ca, readFile(t, filepath.Join(dir, "ca.crt"))) {
		t.Error("the CA changed with the certificate")
	}
	now = now.Add(caLife)
	if err := again.refresh(); err != nil || bytes.Equal(ca, readFile(t, filepath.Join(dir, "ca.crt"))) {
		t.Errorf("the CA was not renewed before its end (%v)", err)
	}

	// A torn pair is replaced, a CA that does not load is not: clients trust it.
	os.WriteFile(filepath.Join(dir, "server.key"), []byte("rubbish"), 0o600)
	if err := again.refresh(); err != nil {
		t.Error(err)
	}
	os.WriteFile(filepath.Join(dir, "ca.key"), []byte("rubbish"), 0o600)
	before := again.cur.Load()
	if err := again.refresh(); err == nil || again.cur.Load() != before {
		t.Errorf("broken CA: %v", err)
	}
}

func TestConfiguredCertificate(t *testing.T) {
	dir := t.TempDir()
	maker, err := newCerts(TLSConfig{}, dir, "", time.Now, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	own := TLSConfig{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key")}
	c, err := newCerts(own, filepath.Join(dir, "unused"), "", time.Now, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	if c.caFile() != "" {
		t.Error("a CA is named beside a configured certificate")
	}
	if _, err := os.Stat(filepath.Join(dir, "unused")); !os.IsNotExist(err) {
		t.Errorf("a private CA was made: %v", err)
	}
	// A reload takes the new pair; a broken one leaves the old in place.
	old := c.cur.Load()
	os.Remove(own.CertFile)
	if err := maker.refresh(); err != nil {
		t.Fatal(err)
	}
	if err := c.refresh(); err != nil || c.cur.Load().Leaf.Equal(old.Leaf) {
		t.Errorf("reload kept the old certificate (%v)", err)
	}
	os.Remove(own.KeyFile)
	if err := c.refresh(); err == nil || c.cur.Load() == nil {
		t.Errorf("reload without a key: %v", err)
	}
}

func TestTLSVersions(t *testing.T) {
	c, err := newCerts(TLSConfig{}, t.TempDir(), "", time.Now, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", c.config())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(nc, nc); nc.Close() }()
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(readFile(t, c.caFile()))
	for max, want := range map[uint16]uint16{tls.VersionTLS13: tls.VersionTLS13, tls.VersionTLS12: tls.VersionTLS12, tls.VersionTLS11: 0} {
		nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: max})
		if (err == nil) != (want != 0) {
			t.Errorf("client up to %s: %v", tls.VersionName(max), err)
		}
		if err != nil {
			continue
		}
		st := nc.ConnectionState()
		if st.Version != want || want == tls.VersionTLS13 && st.CurveID != tls.X25519MLKEM768 {
			t.Errorf("client up to %s: got %s with %v", tls.VersionName(max), tls.VersionName(st.Version), st.CurveID)
		}
		nc.Close()
	}
}

// TestWrongCertificateMakesNothing: a first start with a certificate that cannot be loaded leaves no array behind.
func TestWrongCertificateMakesNothing(t *testing.T) {
	dir := t.TempDir()
	conf := writeTemp(t, "coffer.yaml", "tls: {cert_file: /nonexistent/cert, key_file: /nonexistent/key}\n")
	code, _, errText := coffer(t, "serve", "--data", dir, "--config", conf, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	if code != exitFailure || !strings.Contains(errText, "load certificate") {
		t.Errorf("exit %d: %s", code, errText)
	}
	if dataDir(dir).noted() {
		t.Error("an array was made")
	}
}
