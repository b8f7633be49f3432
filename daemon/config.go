package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"coffer/disk"
	"coffer/object"
)

// Config is the configuration file of `coffer serve`: YAML, one document, no unknown keys. Every field may be left out; a zero
// value means the default. The flags --data, --listen, --http and --admin and the variables COFFER_DATA, COFFER_LISTEN,
// COFFER_HTTP, COFFER_ADMIN, COFFER_LOG_LEVEL and COFFER_LOG_FORMAT override the file; a flag overrides a variable.
//
// Secrets are never in the file, only paths of files that hold them. A relative path of a secret is looked up in systemd's
// $CREDENTIALS_DIRECTORY first.
type Config struct {
	// Data is the directory of everything that is not on the disks: index, private CA, key file. Default: ./data.
	Data string `yaml:"data"`

	// Listen is the HOST:PORT of the S3 endpoint over TLS. Default: 127.0.0.1:9000.
	Listen string `yaml:"listen"`

	// HTTP is the HOST:PORT of an additional S3 endpoint in plaintext, for clients on this machine. Default: none.
	HTTP string `yaml:"http"`

	// AllowPlaintextOnNetwork permits HTTP on an address that other machines can reach. What passes there can be read and, but
	// for signed payloads, changed by anyone on the way.
	AllowPlaintextOnNetwork bool `yaml:"allow_plaintext_on_network"`

	// Admin is the HOST:PORT of the admin listener (/livez, /readyz, /metrics, /array/status, /debug/pprof), plain HTTP, to be
	// read without authentication. Default: 127.0.0.1:9001. "none" turns it off, and with it what `coffer array status` and `coffer array check`
	// ask of a running daemon: they answer then only while it is stopped.
	Admin string `yaml:"admin"`

	// AllowAdminOnNetwork permits Admin on an address that other machines can reach, for scraping. /debug/pprof is not
	// served there.
	AllowAdminOnNetwork bool `yaml:"allow_admin_on_network"`

	// Region is the name of the S3 region that clients sign for. Default: us-east-1.
	Region string `yaml:"region"`

	// Domains are base domains of virtual-host style requests, BUCKET.DOMAIN. The private certificate covers each and *.DOMAIN.
	// Default: none, requests name the bucket in their path.
	Domains []string `yaml:"domains"`

	// Disks are the array's members: block devices or files. Default: those that `coffer array create` noted in the data
	// directory. Identity and order come from the disks themselves, so paths may change and may stand in any order.
	Disks []string `yaml:"disks"`

	// EmbeddedDiskSize is the size of each of the six disk files that the first start creates when no array is configured.
	// Default: 60 % of the free space over six, at most 8GiB. At least 256MiB.
	EmbeddedDiskSize Size `yaml:"embedded_disk_size"`

	// Discard says whether space of disks that deletion and compaction free is given back to them: auto, of block devices, for the
	// firmware of an SSD, but not of files; always; or never. A file that gives space back must get it again for the next write there,
	// which fails on a file system that others have filled meanwhile, and costs zeros written first. Default: auto.
	Discard string `yaml:"discard"`

	// AllowDegraded opens an array with so few members that they could be a stale half of it. Default: refuse.
	AllowDegraded bool `yaml:"allow_degraded"`

	// RootKeyFile is the key of the `file` slot. Default: keys/root.key in the data directory, if it exists.
	RootKeyFile string `yaml:"root_key_file"`

	// PassphraseFile holds the passphrase of the `passphrase` slot; one newline at its end is cut.
	// Default: `passphrase` in $CREDENTIALS_DIRECTORY, if it exists.
	PassphraseFile string `yaml:"passphrase_file"`

	// RecoveryKeyFile holds the recovery key, to open an array whose other slots are lost.
	// Default: `recovery_key` in $CREDENTIALS_DIRECTORY, if it exists.
	RecoveryKeyFile string `yaml:"recovery_key_file"`

	// RootCredentialsFile holds the root credentials: YAML with access_key and secret_key. COFFER_ROOT_ACCESS_KEY and
	// COFFER_ROOT_SECRET_KEY override it. Default: `root_credentials` in $CREDENTIALS_DIRECTORY if it exists, else generated at
	// the first start and kept sealed in the array.
	RootCredentialsFile string `yaml:"root_credentials_file"`

	// Algorithm seals new objects: aes-256-gcm, chacha20-poly1305 or aes-256-cbc-hmac-sha-512.
	// Default: aes-256-gcm where the CPU has AES instructions, else chacha20-poly1305. Objects of all three are always readable.
	Algorithm string `yaml:"algorithm"`

	S3       S3Config       `yaml:"s3"`
	TLS      TLSConfig      `yaml:"tls"`
	Log      LogConfig      `yaml:"log"`
	Hardware HardwareConfig `yaml:"hardware"`
	Scrub    ScrubConfig    `yaml:"scrub"`
	Spare    SpareConfig    `yaml:"spare"`
	Rebuild  RebuildConfig  `yaml:"rebuild"`
	Compact  CompactConfig  `yaml:"compact"`
	Limits   LimitsConfig   `yaml:"limits"`
}

// S3Config decides what AWS leaves open, where clients may count on another server's answer.
type S3Config struct {
	// FreshBucketEncryption is what GetBucketEncryption answers for a bucket without a configuration: sse-s3, the rule that is in
	// force, as AWS since 2023; or not-found, as AWS before. Default: sse-s3.
	FreshBucketEncryption string `yaml:"fresh_bucket_encryption"`

	// WrongCustomerKeyStatus is the status of a read with another SSE-C key than the object's: 403 (AccessDenied) or 400
	// (InvalidArgument). Default: 403.
	WrongCustomerKeyStatus int `yaml:"wrong_customer_key_status"`
}

// TLSConfig is about the certificate of Listen.
type TLSConfig struct {
	// CertFile and KeyFile are a PEM certificate chain and its key, read again on SIGHUP. Default: a certificate of a private CA
	// that is made under tls/ in the data directory and renewed by itself.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`

	// Hosts are further names and addresses for the private certificate, beside localhost, the loopback addresses, the host
	// name and the host of Listen.
	Hosts []string `yaml:"hosts"`
}

// LogConfig is about the log on standard error.
type LogConfig struct {
	// Level is debug, info, warn or error; read again on SIGHUP. Default: info.
	Level string `yaml:"level"`

	// Format is text or json. Default: text.
	Format string `yaml:"format"`
}

// HardwareConfig is about the choice of code paths.
type HardwareConfig struct {
	// Pin names the path to use for a primitive instead of the fastest, as shown by `coffer hw`, for instance
	// "aes-256-gcm: stdlib". A path that fails its self-test is refused.
	Pin map[string]string `yaml:"pin"`

	// SkipBenchmark leaves out the benchmark at boot; the first path that passes its self-test is used.
	SkipBenchmark bool `yaml:"skip_benchmark"`
}

// ScrubConfig is about the background sweep that verifies and repairs everything stored.
type ScrubConfig struct {
	// Enabled lets sweeps begin by themselves. Default: true. Without it they begin when `coffer array scrub` asks for one.
	Enabled *bool `yaml:"enabled"`

	// Every is the time from the start of a sweep to that of the next, up to a tenth more or less by chance. Default: 30d.
	Every Period `yaml:"every"`

	// Rate is how many bytes a sweep reads per second at most, over all disks together. Default: 64MiB. Size it so that a sweep ends
	// well within Every.
	Rate Size `yaml:"rate"`
}

// SpareConfig is about disks that wait to take the place of others (`coffer array add --spare`).
type SpareConfig struct {
	// Grace is how long a disk may have failed or be missing before a spare takes its place. Default: 10m. Longer than a reboot of what
	// the disks are in, since a disk that comes back after that is not taken in again.
	Grace Period `yaml:"grace"`
}

// RebuildConfig is about writing what a replaced disk held to its successor, and moving it away from a disk that is to leave.
type RebuildConfig struct {
	// Rate is how many bytes are read per second at most. Default: 0, no bound: while there are requests a quarter of the disks' time is taken,
	// otherwise all of it.
	Rate Size `yaml:"rate"`
}

// CompactConfig is about moving what is live out of bands that are mostly dead, which gives their space back.
type CompactConfig struct {
	// Every is how often bands below half live are looked for. Default: 1m.
	Every Period `yaml:"every"`

	// Rate is how many bytes are moved per second at most while no writer waits for space. Default: 64MiB.
	Rate Size `yaml:"rate"`
}

// LimitsConfig bounds what clients may take.
type LimitsConfig struct {
	// Connections is how many may be open at once on each S3 listener. Default: 4096.
	Connections int `yaml:"connections"`

	// Stall is how long a transfer may stand still before it is cut. Default: 1m.
	Stall time.Duration `yaml:"stall"`

	// Idle is how long a connection may wait for its next request. Default: 2m.
	Idle time.Duration `yaml:"idle"`

	// Shutdown is how long requests may go on after SIGTERM. Default: 30s.
	Shutdown time.Duration `yaml:"shutdown"`
}

const (
	defaultData        = "data"
	defaultListen      = "127.0.0.1:9000"
	defaultAdmin       = "127.0.0.1:9001"
	defaultRegion      = "us-east-1"
	defaultConnections = 4096
	defaultStall       = time.Minute
	defaultIdle        = 2 * time.Minute
	defaultShutdown    = 30 * time.Second
	defaultScrubEvery  = Period(30 * day)
	defaultScrubRate   = Size(64 << 20)
	defaultSpareGrace  = Period(10 * time.Minute)

	freshSSES3         = "sse-s3"
	freshNotFound      = "not-found"
	adminOff           = "none"
	minEmbeddedDisk    = 256 << 20
	maxConfigBytes     = 1 << 20
	maxConnectionLimit = 1 << 20
	minScrubEvery      = Period(time.Hour)
	minScrubRate       = Size(1 << 20)
	minSpareGrace      = Period(time.Second)
	minCompactEvery    = Period(time.Second)
)

const day = 24 * time.Hour

// Period is a duration that may be given in whole days: 30d.
type Period time.Duration

// UnmarshalYAML reads a period from a scalar.
func (p *Period) UnmarshalYAML(n *yaml.Node) error {
	if digits, ok := strings.CutSuffix(n.Value, "d"); ok {
		if days, err := strconv.ParseUint(digits, 10, 16); err == nil {
			*p = Period(time.Duration(days) * day)
			return nil
		}
	}
	d, err := time.ParseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: period %q: want a number and a unit, such as 30d or 12h", n.Line, n.Value)
	}
	*p = Period(d)
	return nil
}

// Size is a number of bytes, written as 512MiB, 8GiB, 1TiB, 10GB or a plain number.
type Size uint64

// sizeUnits are tried in order; "B" is a suffix of all others, so it comes last.
var sizeUnits = [...]struct {
	suffix string
	factor uint64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// parseSize reads a Size.
func parseSize(s string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(strings.TrimSpace(s), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
		if err != nil || n > 1<<62/u.factor {
			break
		}
		return Size(n * u.factor), nil
	}
	return 0, fmt.Errorf("size %q: want a number and a unit, such as 512MiB or 8GiB", s)
}

// String writes the size in the largest binary unit that divides it.
func (s Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; s != 0 && uint64(s)%u.factor == 0 {
			return fmt.Sprintf("%d%s", uint64(s)/u.factor, u.suffix)
		}
	}
	return fmt.Sprintf("%dB", uint64(s))
}

// Set is for flags.
func (s *Size) Set(v string) (err error) {
	*s, err = parseSize(v)
	return err
}

// Type is for flags.
func (s *Size) Type() string { return "size" }

// UnmarshalYAML reads a size from a scalar.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseSize(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*s = v
	return nil
}

// loadConfig reads the file at path; "" gives an empty Config.
func loadConfig(path string) (Config, error) {
	if path == "" {
		return Config{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	var c Config
	if err := decodeYAML(f, &c); err != nil {
		return Config{}, fmt.Errorf("read config %s: %w", path, err)
	}
	return c, nil
}

// decodeYAML decodes exactly one document without unknown keys. An empty file leaves v as it is.
func decodeYAML(r io.Reader, v any) error {
	d := yaml.NewDecoder(io.LimitReader(r, maxConfigBytes))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

// applyEnv lets the variables override the file.
func (c *Config) applyEnv(getenv func(string) string) {
	for name, field := range map[string]*string{
		"COFFER_DATA": &c.Data, "COFFER_LISTEN": &c.Listen, "COFFER_HTTP": &c.HTTP, "COFFER_ADMIN": &c.Admin,
		"COFFER_LOG_LEVEL": &c.Log.Level, "COFFER_LOG_FORMAT": &c.Log.Format,
	} {
		if v := getenv(name); v != "" {
			*field = v
		}
	}
}

// setDefaults fills in what neither the file nor a variable nor a flag gave.
func (c *Config) setDefaults() {
	setDefault(&c.Data, defaultData)
	setDefault(&c.Listen, defaultListen)
	setDefault(&c.Admin, defaultAdmin)
	setDefault(&c.Region, defaultRegion)
	setDefault(&c.Discard, "auto")
	setDefault(&c.S3.FreshBucketEncryption, freshSSES3)
	setDefault(&c.S3.WrongCustomerKeyStatus, http.StatusForbidden)
	setDefault(&c.Log.Level, "info")
	setDefault(&c.Log.Format, "text")
	enabled := true
	setDefault(&c.Scrub.Enabled, &enabled)
	setDefault(&c.Scrub.Every, defaultScrubEvery)
	setDefault(&c.Scrub.Rate, defaultScrubRate)
	setDefault(&c.Spare.Grace, defaultSpareGrace)
	setDefault(&c.Compact.Every, Period(object.DefaultCompactEvery))
	setDefault(&c.Compact.Rate, Size(object.DefaultCompactRate))
	setDefault(&c.Limits.Connections, defaultConnections)
	setDefault(&c.Limits.Stall, defaultStall)
	setDefault(&c.Limits.Idle, defaultIdle)
	setDefault(&c.Limits.Shutdown, defaultShutdown)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// algorithms are the values of Config.Algorithm.
var algorithms = [...]string{"", "aes-256-gcm", "chacha20-poly1305", "aes-256-cbc-hmac-sha-512"}

// discards are the values of Config.Discard.
var discards = map[string]disk.Discard{"auto": disk.DiscardAuto, "always": disk.DiscardAlways, "never": disk.DiscardNever}

// Validate reports every fault of a configuration with its defaults filled in.
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	for name, addr := range map[string]string{"listen": c.Listen, "http": c.HTTP, "admin": c.Admin} {
		if addr == "" || name == "admin" && addr == adminOff {
			continue
		}
		switch err := checkHostPort(addr); {
		case err != nil:
			fault("%s: %w", name, err)
		case name == "http" && !isLoopback(addr) && !c.AllowPlaintextOnNetwork:
			fault("http: %s can be reached by other machines, and what passes there is in plaintext: use a loopback address, or say allow_plaintext_on_network: true in the configuration file", addr)
		case name == "admin" && !isLoopback(addr) && !c.AllowAdminOnNetwork:
			fault("admin: %s can be reached by other machines, and nobody is asked for credentials there: use a loopback address, or say allow_admin_on_network: true in the configuration file", addr)
		}
	}
	if c.EmbeddedDiskSize != 0 && c.EmbeddedDiskSize < minEmbeddedDisk {
		fault("embedded_disk_size: %v is below %v", c.EmbeddedDiskSize, Size(minEmbeddedDisk))
	}
	for _, d := range c.Domains {
		if !validDomain(d) {
			fault("domains: %q is no DNS name", d)
		}
	}
	seen := map[string]bool{}
	for _, d := range c.Disks {
		if d == "" || seen[filepath.Clean(d)] {
			fault("disks: %q is empty or given twice", d)
		}
		seen[filepath.Clean(d)] = true
	}
	if !slices.Contains(algorithms[:], c.Algorithm) {
		fault("algorithm: %q is none of %s", c.Algorithm, strings.Join(algorithms[1:], ", "))
	}
	if _, ok := discards[c.Discard]; !ok {
		fault("discard: %q is none of auto, always, never", c.Discard)
	}
	if f := c.S3.FreshBucketEncryption; f != freshSSES3 && f != freshNotFound {
		fault("s3.fresh_bucket_encryption: %q is neither %s nor %s", f, freshSSES3, freshNotFound)
	}
	if st := c.S3.WrongCustomerKeyStatus; st != http.StatusForbidden && st != http.StatusBadRequest {
		fault("s3.wrong_customer_key_status: %d is neither 403 nor 400", st)
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		fault("tls: cert_file and key_file need each other")
	}
	if _, err := parseLevel(c.Log.Level); err != nil {
		fault("log.level: %w", err)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		fault("log.format: %q is neither text nor json", c.Log.Format)
	}
	if c.Scrub.Every < minScrubEvery {
		fault("scrub.every: %v is below %v", time.Duration(c.Scrub.Every), time.Duration(minScrubEvery))
	}
	if c.Scrub.Rate < minScrubRate {
		fault("scrub.rate: %v is below %v", c.Scrub.Rate, minScrubRate)
	}
	if c.Spare.Grace < minSpareGrace {
		fault("spare.grace: %v is below %v", time.Duration(c.Spare.Grace), time.Duration(minSpareGrace))
	}
	if r := c.Rebuild.Rate; r != 0 && r < minScrubRate {
		fault("rebuild.rate: %v is below %v", r, minScrubRate)
	}
	if c.Compact.Every < minCompactEvery {
		fault("compact.every: %v is below %v", time.Duration(c.Compact.Every), time.Duration(minCompactEvery))
	}
	if c.Compact.Rate < minScrubRate {
		fault("compact.rate: %v is below %v", c.Compact.Rate, minScrubRate)
	}
	if n := c.Limits.Connections; n < 1 || n > maxConnectionLimit {
		fault("limits.connections: %d is not in 1..%d", n, maxConnectionLimit)
	}
	if c.Limits.Stall < 0 || c.Limits.Idle < 0 || c.Limits.Shutdown < 0 {
		fault("limits: a duration is negative")
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// tls is the TLS section with the hosts of virtual-host style requests added.
func (c *Config) tls() TLSConfig {
	t := c.TLS
	t.Hosts = slices.Clone(t.Hosts)
	for _, d := range c.Domains {
		t.Hosts = append(t.Hosts, d, "*."+d)
	}
	return t
}

// validDomain wants a DNS name in lower case (RFC 1035 section 2.3.1), which is no address.
func validDomain(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "-") != label ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return len(name) <= 253 && net.ParseIP(name) == nil
}

// checkHostPort wants HOST:PORT with a numeric port; an empty host means all addresses.
func checkHostPort(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port is not a number up to 65535", addr)
	}
	return nil
}

// isLoopback reports whether only this machine can reach addr. A name other than localhost is not looked up: what it stands for
// may change.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func parseLevel(s string) (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", s)
	}
	return l, nil
}

// secretPath finds the file of a secret: path as given if absolute, else in systemd's credentials directory if it is there.
// With path "" the credential called name is used if it exists; the answer is "" if not.
func secretPath(getenv func(string) string, path, name string) string {
	if filepath.IsAbs(path) {
		return path
	}
	if dir := getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		candidate := filepath.Join(dir, path)
		if path == "" {
			candidate = filepath.Join(dir, name)
		}
		if _, err := os.Stat(candidate); err == nil {
			return candidate
		}
	}
	return path
}
