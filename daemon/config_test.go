package main

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func writeTemp(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func noEnv(string) string { return "" }

func TestLoadConfig(t *testing.T) {
	const all = `
data: /srv/coffer
listen: 10.0.0.1:443
http: 127.0.0.1:80
disks: [/dev/sda, /dev/sdb]
embedded_disk_size: 1GiB
discard: always
algorithm: chacha20-poly1305
s3: {fresh_bucket_encryption: not-found, wrong_customer_key_status: 400}
tls: {hosts: [s3.example.org]}
log: {level: debug, format: json}
hardware: {pin: {aes-256-gcm: stdlib}}
limits: {connections: 10, stall: 90s}
scrub: {enabled: false, every: 7d, rate: 100MiB}
spare: {grace: 1h}
rebuild: {rate: 50MiB}
compact: {every: 5m, rate: 10MiB}
`
	c, err := loadConfig(writeTemp(t, "c.yaml", all))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Data: "/srv/coffer", Listen: "10.0.0.1:443", HTTP: "127.0.0.1:80", Disks: []string{"/dev/sda", "/dev/sdb"},
		EmbeddedDiskSize: 1 << 30, Discard: "always", Algorithm: "chacha20-poly1305", S3: S3Config{"not-found", 400}, TLS: TLSConfig{Hosts: []string{"s3.example.org"}},
		Log: LogConfig{Level: "debug", Format: "json"}, Hardware: HardwareConfig{Pin: map[string]string{"aes-256-gcm": "stdlib"}},
		Limits:  LimitsConfig{Connections: 10, Stall: 90 * time.Second},
		Scrub:   ScrubConfig{Enabled: new(bool), Every: Period(7 * day), Rate: 100 << 20},
		Compact: CompactConfig{Every: Period(5 * time.Minute), Rate: 10 << 20},
		Spare:   SpareConfig{Grace: Period(time.Hour)},
		Rebuild: RebuildConfig{Rate: 50 << 20},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	c.setDefaults()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Region != "us-east-1" || c.Admin != "127.0.0.1:9001" || c.Limits.Shutdown != 30*time.Second {
		t.Errorf("defaults: %+v", c)
	}
}

func TestLoadConfigStrict(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"unknown key":        {"listn: 1.2.3.4:5", "field listn not found"},
		"unknown nested key": {"log: {levle: debug}", "field levle not found"},
		"second document":    {"listen: 127.0.0.1:1\n---\nlisten: 127.0.0.1:2", "more than one document"},
		"trailing rubbish":   {"listen: 127.0.0.1:1\n---\n\t", "cannot start any token"},
		"duplicate key":      {"data: a\ndata: b", "already defined"},
		"size":               {"embedded_disk_size: 8 elephants", "want a number and a unit"},
		"size too large":     {"embedded_disk_size: 9999999999TiB", "want a number and a unit"},
		"duration":           {"limits: {stall: forever}", "cannot unmarshal"},
		"period":             {"scrub: {every: monthly}", `want a number and a unit, such as 30d`},
		"period too long":    {"scrub: {every: 99999999d}", `want a number and a unit, such as 30d`},
	} {
		if _, err := loadConfig(writeTemp(t, "c.yaml", tt.content)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	if _, err := loadConfig(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent file was accepted")
	}
	for _, empty := range []string{"", "# nothing\n"} {
		if c, err := loadConfig(writeTemp(t, "c.yaml", empty)); err != nil || !reflect.DeepEqual(c, Config{}) {
			t.Errorf("%q: %+v, %v", empty, c, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string // texts of the faults; none: valid
	}{
		"defaults":               {func(*Config) {}, nil},
		"plaintext on loopback":  {func(c *Config) { c.HTTP = "[::1]:80" }, nil},
		"plaintext on localhost": {func(c *Config) { c.HTTP = "localhost:80" }, nil},
		"plaintext on 127/8":     {func(c *Config) { c.HTTP = "127.1.2.3:80" }, nil},
		"plaintext on network":   {func(c *Config) { c.HTTP = "192.0.2.1:80" }, []string{"allow_plaintext_on_network: true"}},
		"plaintext on all":       {func(c *Config) { c.HTTP = ":80" }, []string{"allow_plaintext_on_network: true"}},
		"plaintext on 0.0.0.0":   {func(c *Config) { c.HTTP = "0.0.0.0:80" }, []string{"allow_plaintext_on_network: true"}},
		"plaintext by a name":    {func(c *Config) { c.HTTP = "storage.local:80" }, []string{"allow_plaintext_on_network: true"}},
		"plaintext allowed":      {func(c *Config) { c.HTTP, c.AllowPlaintextOnNetwork = ":80", true }, nil},
		"admin on network":       {func(c *Config) { c.Admin = "192.0.2.1:80" }, []string{"allow_admin_on_network: true"}},
		"admin allowed":          {func(c *Config) { c.Admin, c.AllowAdminOnNetwork = ":80", true }, nil},
		"compact too often":      {func(c *Config) { c.Compact.Every, c.Compact.Rate = 1, 1 }, []string{"compact.every: 1ns is below 1s", "compact.rate: 1B is below 1MiB"}},
		"scrub too often":        {func(c *Config) { c.Scrub.Every, c.Scrub.Rate = Period(time.Minute), 1 }, []string{"scrub.every: 1m0s is below 1h0m0s", "scrub.rate: 1B is below 1MiB"}},
		"admin off":              {func(c *Config) { c.Admin = "none" }, nil},
		"all at once": {func(c *Config) {
			c.Listen, c.Algorithm, c.Log.Level, c.Log.Format, c.TLS.CertFile = "9000", "rot13", "loud", "xml", "x.crt"
			c.EmbeddedDiskSize, c.Limits.Connections, c.Limits.Stall = 1, -1, -1
			c.Disks = []string{"/dev/sda", "/dev/./sda"}
			c.S3 = S3Config{"none", 404}
			c.Discard = "sometimes"
		}, []string{`discard: "sometimes" is none of auto, always, never`, "s3.fresh_bucket_encryption", "s3.wrong_customer_key_status", "listen", "algorithm", "log.level", "log.format", "tls", "embedded_disk_size", "limits.connections", "negative", "given twice"}},
		"domains": {func(c *Config) { c.Domains = []string{"S3.example.org", "a..b", "192.0.2.1", "-a.b", "s3.example.org"} },
			[]string{`"S3.example.org" is no DNS name`, `"a..b"`, `"192.0.2.1"`, `"-a.b"`}},
		"domain": {func(c *Config) { c.Domains = []string{"s3.example.org", "localhost"} }, nil},
		"port":   {func(c *Config) { c.Listen = "127.0.0.1:https" }, []string{"port"}},
	} {
		var c Config
		c.setDefaults()
		tt.change(&c)
		err := c.Validate()
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in %v", name, want, err)
			}
		}
	}
}

func TestApplyEnv(t *testing.T) {
	vars := map[string]string{"COFFER_DATA": "/d", "COFFER_LISTEN": "l:1", "COFFER_HTTP": "h:2", "COFFER_ADMIN": "a:3", "COFFER_LOG_LEVEL": "warn"}
	c := Config{Listen: "file:9", Log: LogConfig{Format: "json"}}
	c.applyEnv(func(name string) string { return vars[name] })
	want := Config{Data: "/d", Listen: "l:1", HTTP: "h:2", Admin: "a:3", Log: LogConfig{Level: "warn", Format: "json"}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]Size{
		"1": 1, "512MiB": 512 << 20, "8 GiB": 8 << 30, "10GB": 10e9, "1TiB": 1 << 40, "3KiB": 3 << 10, "5kB": 5000, "7B": 7,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1", "1.5GiB", "GiB", "1EiB", "0x10"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
	for in, want := range map[Size]string{0: "0B", 1: "1B", 1 << 20: "1MiB", 3 << 30: "3GiB", 1<<20 + 1: "1048577B", 1536 << 20: "1536MiB"} {
		if got := in.String(); got != want {
			t.Errorf("%d: %q, want %q", in, got, want)
		}
		if back, err := parseSize(want); err != nil || back != in {
			t.Errorf("%q does not read back: %d, %v", want, back, err)
		}
	}
}

// configKeys lists the YAML keys of a struct, nested ones with their path.
func configKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for f := range t.Fields() {
		key := prefix + f.Tag.Get("yaml")
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, configKeys(f.Type, key+".")...)
			continue
		}
		keys = append(keys, key)
	}
	return keys
}

// Every key stands in the manual, and every key of the manual exists.
func TestConfigDocumented(t *testing.T) {
	manual, err := os.ReadFile("../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(manual)) {
		if rest, ok := strings.CutPrefix(line, "| `"); ok {
			key, _, _ := strings.Cut(rest, "`")
			documented = append(documented, key)
		}
	}
	keys := configKeys(reflect.TypeFor[Config](), "")
	if diff := cmp.Diff(keys, documented); diff != "" {
		t.Errorf("keys of Config against those of docs/config.md (-config +docs):\n%s", diff)
	}
}

// The commented file that the package installs has every key, and is valid when its comments are taken off.
func TestConfigSample(t *testing.T) {
	sample, err := os.ReadFile("../systemd/coffer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig("../systemd/coffer.yaml"); err != nil {
		t.Error(err)
	}
	var bare strings.Builder
	for line := range strings.Lines(string(sample)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && (!strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "  ")) { // "# " begins prose
			line = rest
		}
		bare.WriteString(line)
	}
	var c Config
	if err := decodeYAML(strings.NewReader(bare.String()), &c); err != nil {
		t.Fatal(err)
	}
	c.setDefaults()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	seen := map[string]bool{}
	var section string
	for line := range strings.Lines(bare.String()) {
		key, _, ok := strings.Cut(line, ":")
		switch {
		case !ok || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "  "):
			seen[section+"."+strings.TrimSpace(key)] = true
		default:
			section = key
			seen[key] = true
		}
	}
	for _, key := range configKeys(reflect.TypeFor[Config](), "") {
		if !seen[key] {
			t.Errorf("systemd/coffer.yaml lacks %s; has %v", key, slices.Sorted(maps.Keys(seen)))
		}
	}
}

func TestSecretPath(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"passphrase", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	getenv := func(name string) string { return map[string]string{"CREDENTIALS_DIRECTORY": dir}[name] }
	for _, tt := range []struct {
		getenv           func(string) string
		path, name, want string
	}{
		{noEnv, "", "passphrase", ""},
		{noEnv, "rel", "passphrase", "rel"},
		{noEnv, "/abs", "passphrase", "/abs"},
		{getenv, "", "passphrase", filepath.Join(dir, "passphrase")},
		{getenv, "", "absent", ""},
		{getenv, "other", "passphrase", filepath.Join(dir, "other")},
		{getenv, "elsewhere", "passphrase", "elsewhere"},
		{getenv, "/abs", "passphrase", "/abs"},
	} {
		if got := secretPath(tt.getenv, tt.path, tt.name); got != tt.want {
			t.Errorf("%q, %q: %q, want %q", tt.path, tt.name, got, tt.want)
		}
	}
}
