package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

// Lifetimes of the private CA and its certificate. A server certificate of a year stays below the bounds that TLS clients set.
const (
	caLife      = 10 * 365 * 24 * time.Hour
	certLife    = 365 * 24 * time.Hour
	renewBefore = 30 * 24 * time.Hour
	backdate    = time.Hour // for clients whose clock is behind

	certCheckEvery = time.Hour
)

// certs serves the certificate of the S3 endpoint, and replaces it while connections live.
type certs struct {
	cfg  TLSConfig
	dir  string   // of the private CA
	host []string // names and addresses the private certificate must cover
	now  func() time.Time
	log  *slog.Logger
	cur  atomic.Pointer[tls.Certificate]
}

// newCerts loads or makes the certificate. listen is the address of the S3 endpoint.
func newCerts(cfg TLSConfig, dir, listen string, now func() time.Time, log *slog.Logger) (*certs, error) {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if h, err := os.Hostname(); err == nil && h != "" {
		hosts = append(hosts, h)
	}
	if h, _, err := net.SplitHostPort(listen); err == nil && h != "" {
		if ip := net.ParseIP(h); ip == nil || !ip.IsUnspecified() {
			hosts = append(hosts, h)
		}
	}
	hosts = append(hosts, cfg.Hosts...)
	slices.Sort(hosts)
	c := &certs{cfg: cfg, dir: dir, host: slices.Compact(hosts), now: now, log: log}
	return c, c.refresh()
}

// refresh reads configured files anew, or renews the private certificate when it nears its end. On an error the certificate in use
// stays.
func (c *certs) refresh() error {
	var cert tls.Certificate
	var err error
	if c.cfg.CertFile != "" {
		cert, err = tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	} else {
		cert, err = c.private()
	}
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	if old := c.cur.Swap(&cert); old == nil || !slices.EqualFunc(old.Certificate, cert.Certificate, slices.Equal) {
		c.log.Info("certificate loaded", "subject", cert.Leaf.Subject.String(), "not_after", cert.Leaf.NotAfter)
	}
	return nil
}

// config is the TLS configuration of the endpoint. Cipher suites and the order of key exchanges, the hybrid X25519MLKEM768
// first, are the standard library's.
func (c *certs) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.cur.Load(), nil
		},
		// Bodies are large: records of full size from the first on.
		DynamicRecordSizingDisabled: true,
	}
}

// caFile is the certificate that clients must trust; "" if the endpoint has one of its own.
func (c *certs) caFile() string {
	if c.cfg.CertFile != "" {
		return ""
	}
	return filepath.Join(c.dir, "ca.crt")
}

// private returns the certificate under dir, made or made anew where it is missing, about to end, or for other hosts.
func (c *certs) private() (tls.Certificate, error) {
	caCrt, caKey := filepath.Join(c.dir, "ca.crt"), filepath.Join(c.dir, "ca.key")
	srvCrt, srvKey := filepath.Join(c.dir, "server.crt"), filepath.Join(c.dir, "server.key")

	ca, err := tls.LoadX509KeyPair(caCrt, caKey)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && c.ending(ca.Leaf):
		c.log.Warn("making a private CA: clients must trust it", "path", caCrt)
		if ca, err = c.issue(nil, caCrt, caKey); err != nil {
			return ca, err
		}
	case err != nil:
		return ca, err
	}
	srv, err := tls.LoadX509KeyPair(srvCrt, srvKey)
	if err == nil && !c.ending(srv.Leaf) && srv.Leaf.CheckSignatureFrom(ca.Leaf) == nil && c.covers(srv.Leaf) {
		return srv, nil
	}
	// A pair that does not load, one torn between its two files included, is replaced as well.
	return c.issue(&ca, srvCrt, srvKey)
}

func (c *certs) ending(crt *x509.Certificate) bool {
	return c.now().After(crt.NotAfter.Add(-renewBefore))
}

func (c *certs) covers(crt *x509.Certificate) bool {
	return !slices.ContainsFunc(c.host, func(h string) bool { return crt.VerifyHostname(h) != nil })
}

// issue makes a key and a certificate, signed by ca or, without one, a CA itself, and writes both.
func (c *certs) issue(ca *tls.Certificate, crtPath, keyPath string) (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, fmt.Errorf("issue certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fail(err)
	}
	hostname, _ := os.Hostname() // only a label
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    c.now().Add(-backdate),
	}
	var signer crypto.PrivateKey = key
	parent := tmpl
	if ca == nil {
		tmpl.Subject = pkix.Name{Organization: []string{"Coffer"}, CommonName: "Coffer private CA of " + hostname}
		tmpl.NotAfter = c.now().Add(caLife)
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
		tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else {
		tmpl.Subject = pkix.Name{Organization: []string{"Coffer"}, CommonName: hostname}
		tmpl.NotAfter = c.now().Add(certLife)
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, h := range c.host {
			if ip := net.ParseIP(h); ip != nil {
				tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
			} else {
				tmpl.DNSNames = append(tmpl.DNSNames, h)
			}
		}
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		return fail(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	crtPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if err := errors.Join(writeFile(keyPath, keyPEM, 0o600), writeFile(crtPath, crtPEM, 0o644)); err != nil {
		return fail(err)
	}
	return tls.X509KeyPair(crtPEM, keyPEM)
}
