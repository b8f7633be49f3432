package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"coffer/disk"
	"coffer/hw"
)

// The exit codes and messages that scripts and operators rely on.
// many gives n disks.
func many(n int) (flags string) {
	for i := range n {
		flags += fmt.Sprintf(" --disk d%d", i)
	}
	return flags
}

func TestCommandLine(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("bad.yaml", []byte("listn: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("short.img", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile("disk.img", nil, 0o600), os.Truncate("disk.img", 64<<20), os.Symlink("disk.img", "link.img"),
		os.Link("disk.img", "hard.img"), os.Symlink(".", "here")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args     string
		code     int
		out, err string // regular expressions; "" for no output
	}{
		{"", exitOK, `Usage:`, ``},
		{"--help", exitOK, `Exit codes:\n\n    0  done`, ``},
		{"serve --help", exitOK, `SIGTERM`, ``},
		{"array", exitOK, `rebuild-index`, ``},
		{"array create --help", exitOK, `7\+2`, ``},
		{"version", exitOK, `^coffer devel go1\.`, ``},
		{"version --json", exitOK, `"version": "devel",\n  "go": "go1\.`, ``},
		{"--version", exitOK, `^coffer devel go1\..*/\S+\n$`, ``},
		{"version --help", exitOK, `Examples:`, ``},
		{"completion --help", exitOK, `Examples:\n  source <\(coffer`, ``},
		{"array status --help", exitOK, `With admin: none`, ``},
		{"array check --help", exitOK, `With admin: none`, ``},
		{"completion bash", exitOK, `__start_coffer`, ``},
		{"frobnicate", exitUsage, ``, `unknown command "frobnicate".*\nRun 'coffer --help'`},
		{"array frobnicate", exitUsage, ``, `unknown command "frobnicate"`},
		{"version now", exitUsage, ``, `unknown command "now"`},
		{"serve --frobnicate", exitUsage, ``, `unknown flag: --frobnicate\nRun 'coffer serve --help'`},
		{"serve --config bad.yaml", exitUsage, ``, `(?s)read config bad.yaml: .*field listn not found`},
		{"serve --config absent.yaml", exitUsage, ``, `absent.yaml: no such file`},
		{"serve --http 0.0.0.0:9002", exitUsage, ``, `allow_plaintext_on_network: true`},
		{"serve --http :9002", exitUsage, ``, `allow_plaintext_on_network: true`},
		{"serve --listen 9000 --admin x", exitUsage, ``, `admin: "x" is not HOST:PORT\nlisten: "9000" is not HOST:PORT`},
		{"array status --data absent", exitFailure, ``, `no array: create one`},
		{"array check --data absent", exitFailure, ``, `no array: create one`},
		{"array scrub --data absent", exitFailure, ``, `no array: create one`},
		{"array scrub --data absent --status", exitFailure, ``, `no array: create one`},
		{"array qualify --help", exitOK, `too fast to be true`, ``},
		{"array qualify", exitUsage, ``, `one argument wanted`},
		{"array qualify absent.img", exitFailure, ``, `absent.img: no such file`},
		{"array qualify short.img", exitFailure, ``, `too few to measure`},
		{"array qualify disk.img --write --dry-run", exitOK, `disk.img would be overwritten
$`, ``},
		{"array qualify disk.img --duration 1ms", exitOK, `(?s)sequential read .*over 64 ms
$`, `measuring random reads`},
		{"array scrub --help", exitOK, `misdirected  what belongs elsewhere`, ``},
		{"array scrub --pause --now", exitUsage, ``, `--pause goes with none of`},
		{"array scrub --status --resume", exitUsage, ``, `--status changes nothing`},
		{"array scrub --rate fast", exitUsage, ``, `want a number and a unit`},
		{"array compact --data absent", exitFailure, ``, `no array: create one`},
		{"array compact --data absent --dry-run", exitFailure, ``, `no array: create one`},
		{"array compact --data absent --status", exitFailure, ``, `no array: create one`},
		{"array compact --help", exitOK, `mostly dead`, ``},
		{"array compact --pause --now", exitUsage, ``, `--pause goes with none of`},
		{"array compact --status --all", exitUsage, ``, `--status changes nothing`},
		{"array compact --dry-run --pause", exitUsage, ``, `--dry-run goes with`},
		{"array rebuild-index --data empty", exitFailure, ``, `no array: create one`},
		{"array create --data d", exitUsage, ``, `no disks: give each with --disk`},
		{"array create --data d --disk absent.img", exitUsage, ``, `absent.img does not exist; --disk-size`},
		{"array create --data d --disk short.img", exitUsage, ``, `plan array: `},
		{"array create --data d --disk a.img --disk-size 12parsecs", exitUsage, ``, `want a number and a unit`},
		{"array create --data d --disk a.img --disk-size 64MiB --parity 1", exitUsage, ``, `plan array: geometry`},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --parity 2 --dry-run", exitOK, `3 disks, stripes of 1 data \+ 2 parity`, ``},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --parity 0 --dry-run", exitOK, `3 data \+ 0 parity`, ``},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --data-shards 0 --dry-run", exitUsage, ``, `--data-shards 0: want 1 to 32`},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --data-shards 0 --parity 1 --dry-run", exitUsage, ``, `--data-shards 0: want 1 to 32`},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --data-shards -1 --dry-run", exitUsage, ``, `--data-shards -1: want 1 to 32`},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --extent-size 0 --dry-run", exitUsage, ``, `--extent-size 0: want 1MiB to 1GiB`},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --data-shards 1 --dry-run", exitOK, `1 data \+ 1 parity`, ``},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --data-shards 3 --dry-run", exitOK, `3 data \+ 0 parity`, ``},
		{"array create --data d --disk a --disk b --disk c --disk-size 64MiB --data-shards 4 --dry-run", exitUsage, ``, `geometry 4\+0: 3 disks`},
		{"array create --data d" + many(40) + " --disk-size 64MiB --data-shards 30 --dry-run", exitOK, `30 data \+ 2 parity`, ``},
		{"array create --data d" + many(40) + " --disk-size 64MiB --data-shards 32 --dry-run", exitOK, `32 data \+ 0 parity`, ``},
		{"array create --data d" + many(40) + " --disk-size 64MiB --parity 17 --dry-run", exitOK, `15 data \+ 17 parity`, ``},
		{"array create --data d" + many(40) + " --disk-size 64MiB --parity 31 --dry-run", exitOK, `1 data \+ 31 parity`, ``},
		{"array create --data d" + many(40) + " --disk-size 64MiB --parity 32 --dry-run", exitUsage, ``, `at least 1 data cell`},
		{"array create --data d --disk a --disk b --disk-size 64MiB --extent-size 2MiB --dry-run --json", exitOK, `"extent_size": 2097152`, ``},
		{"array create --data d --disk a --disk b --disk-size 64MiB", exitFailure, `new file`, `nothing was written`},
		{"array create --data d --disk a --disk ./a --disk-size 64MiB --dry-run", exitUsage, ``, `a and ./a are the same disk`},
		{"array create --data d --disk a --disk here/a --disk-size 64MiB --dry-run", exitUsage, ``, `are the same disk`},
		{"array create --data d --disk disk.img --disk link.img --dry-run", exitUsage, ``, `disk.img and link.img are the same disk`},
		{"array create --data d --disk disk.img --disk hard.img --dry-run", exitUsage, ``, `are the same disk`},
		{"array create --data d --disk disk.img --disk a --disk-size 64MiB --dry-run", exitOK, `2 disks`, ``},
		{"man", exitUsage, ``, `accepts 1 arg`},
	} {
		code, out, err := coffer(t, strings.Fields(tt.args)...)
		if code != tt.code {
			t.Errorf("%s: exit %d, want %d: %s", tt.args, code, tt.code, err)
		}
		for _, m := range []struct{ name, want, got string }{{"stdout", tt.out, out}, {"stderr", tt.err, err}} {
			if m.want == "" && m.got != "" || !regexp.MustCompile(m.want).MatchString(m.got) {
				t.Errorf("%s: %s %q, want %q", tt.args, m.name, m.got, m.want)
			}
		}
	}
	for _, file := range []string{"a", "b", "absent.img", "d", "absent"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("a refused command, or a dry run, made %s", file)
		}
	}
}

// The life of an array of given disks, with a passphrase, by commands alone.
func TestArrayCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("stretches passphrases, which takes half a minute under the race detector")
	}
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("pass", []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("conf.yaml", []byte("passphrase_file: pass\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	create := strings.Fields("array create --data d --disk a.img --disk b.img --disk c.img --disk-size 64MiB --passphrase-file pass --yes --json")
	code, out, errText := coffer(t, create...)
	var made created
	if err := json.Unmarshal([]byte(out), &made); err != nil || code != exitOK {
		t.Fatalf("create: exit %d, %v: %s%s", code, err, out, errText)
	}
	if made.Data != 2 || made.Parity != 1 || len(made.Disks) != 3 || !made.Disks[0].New || made.AccessKey == "" || made.SecretKey == "" || made.RecoveryKey == "" {
		t.Errorf("created: %+v", made)
	}
	if _, err := os.Stat("d/keys/root.key"); !os.IsNotExist(err) {
		t.Errorf("a key file beside the passphrase: %v", err)
	}
	// Stretching a passphrase takes half a second, the recovery key nothing.
	if err := os.WriteFile("recovery", []byte(made.RecoveryKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args     string
		code     int
		out, err string
	}{
		"by passphrase":   {"array status --data d --config conf.yaml", exitOK, "healthy", ""},
		"no secret":       {"array status --data d --json", exitFailure, `"state": "unopened"`, "nothing to unlock the array with"},
		"wrong recovery":  {"array status --data d --recovery-key-file pass", exitFailure, "", "invalid recovery key"},
		"check":           {"array check --data d --recovery-key-file recovery --repair --json", exitOK, `"bad": 0`, ""},
		"rebuild":         {"array rebuild-index --data d --recovery-key-file recovery", exitOK, "index rebuilt", ""},
		"again":           {strings.Join(create, " "), exitFailure, "", "a member of array " + made.ArrayID},
		"into another":    {"array create --data e --disk a.img --yes", exitFailure, "a member of array", "--force overwrites it"},
		"new disks there": {"array create --data d --disk x.img --disk-size 64MiB --yes", exitFailure, "new file", "already tells of an array"},
	} {
		code, out, err := coffer(t, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(err, tt.err) {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", name, code, out, err)
		}
	}
	if _, err := os.Stat("x.img"); !os.IsNotExist(err) {
		t.Errorf("a refused creation left its file: %v", err)
	}

	// Another passphrase does not open it.
	if err := os.WriteFile("pass", []byte("wrong horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, err := coffer(t, "array", "status", "--data", "d", "--config", "conf.yaml"); code != exitUnhealthy || !strings.Contains(err, "array locked") {
		t.Errorf("status by a wrong passphrase: exit %d: %s", code, err)
	}

	// One disk less is degraded, two are too many; the disks may come back in any order and place.
	if err := os.Rename("b.img", "moved.img"); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := coffer(t, "array", "status", "--data", "d", "--recovery-key-file", "recovery"); code != exitUnhealthy || !strings.Contains(out, "b.img  (not found; not used: ") {
		t.Errorf("one disk missing: exit %d: %s", code, out)
	}
	if err := os.Rename("c.img", "c2.img"); err != nil {
		t.Fatal(err)
	}
	if code, _, err := coffer(t, "array", "status", "--data", "d", "--recovery-key-file", "recovery"); code != exitUnhealthy || !strings.Contains(err, "1 of 3 disks") {
		t.Errorf("two disks missing: exit %d: %s", code, err)
	}
	if err := os.WriteFile("moved.yaml", []byte("disks: [c2.img, moved.img, a.img]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, err := coffer(t, "array", "status", "--data", "d", "--config", "moved.yaml", "--recovery-key-file", "recovery"); code != exitOK || !strings.Contains(out, "moved.img") {
		t.Errorf("moved disks: exit %d: %s%s", code, out, err)
	}
}

func TestHardwareCommand(t *testing.T) {
	code, out, errText := coffer(t, "hw", "--json")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, errText)
	}
	// The words that other tools rely on.
	var doc struct {
		CPU      *string
		Features []string
		Paths    []struct {
			Primitive, Path string
			SelfTest        string `json:"self_test"`
			Chosen          bool
			GBps            map[string]float64
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.CPU == nil {
		t.Fatalf("%v: %s", err, out)
	}
	chosen := map[string]bool{}
	for _, p := range doc.Paths {
		if p.Chosen {
			chosen[p.Primitive] = true
			if p.SelfTest != "pass" || p.GBps["4096"] <= 0 || p.GBps["65536"] <= 0 || p.GBps["1048576"] <= 0 {
				t.Errorf("chosen path %+v", p)
			}
		}
	}
	for _, want := range []string{"aes-256-gcm", "chacha20-poly1305", "aes-256-cbc-hmac-sha-512", "reed-solomon", "crc64-nvme", "crc32", "crc32c", "md5", "sha-256", "sha-512"} {
		if !chosen[want] {
			t.Errorf("no path chosen for %s", want)
		}
	}
	var table bytes.Buffer
	printHardware(&table, &hw.Report{CPU: "A CPU", Features: []string{"AESNI", "AVX2"}, Paths: []hw.PathReport{
		{Primitive: "aes-256-gcm", Path: "stdlib", SelfTest: "pass", Chosen: true, GBps: map[string]float64{"4096": 5.5, "65536": 5.25, "1048576": 5}},
		{Primitive: "aes-256-gcm", Path: "vaes", SelfTest: "unsupported: needs VAES"},
		{Primitive: "reed-solomon", Path: "klauspost", SelfTest: "pass", Chosen: true, GBps: map[string]float64{"65536": 9}, Shape: "4+2"},
	}})
	want := `A CPU
features: AESNI AVX2

primitive     path       4 KiB  64 KiB  1 MiB  self-test                chosen
aes-256-gcm   stdlib     5.50   5.25    5.00   pass                     yes
aes-256-gcm   vaes       -      -       -      unsupported: needs VAES  
reed-solomon  klauspost  -      9.00    -      pass                     yes

GB/s on one core. AEADs: sealing. Reed-Solomon: encoding 4+2, data bytes, by shard size.
`
	if table.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", table.String(), want)
	}
}

// Each state that a disk can be in is a label of coffer_disk_state: one that is not would look like no state at all.
func TestDiskStates(t *testing.T) {
	states := regexp.MustCompile(`DiskState = "(\w+)"`).FindAllSubmatch(readFile(t, "../disk/status.go"), -1)
	if len(states) < 7 {
		t.Fatalf("%d states found", len(states))
	}
	for _, m := range states {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(collector(func(ch chan<- prometheus.Metric) {
			diskMetrics()(ch, &disk.DiskStatus{State: disk.DiskState(m[1])})
		}))
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, f := range families {
			for _, sample := range f.GetMetric() {
				if f.GetName() == "coffer_disk_state" {
					sum += sample.GetGauge().GetValue()
				}
			}
		}
		if sum != 1 {
			t.Errorf("state %s: %v states are 1", m[1], sum)
		}
	}
}

// Every command has help that tells what it does, every flag a sentence, and every page of the manual is written.
func TestHelpAndManual(t *testing.T) {
	root := newRootCommand(env{getenv: noEnv})
	dir := t.TempDir()
	if code, _, err := coffer(t, "man", dir); code != exitOK {
		t.Fatalf("man: exit %d: %s", code, err)
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		if c.Short == "" || len(c.Long) < len(c.Short) || c.Runnable() && c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s: help is thin", c.CommandPath())
		}
		page := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".8"
		if text := string(readFile(t, filepath.Join(dir, page))); !strings.Contains(text, ".SH SYNOPSIS") {
			t.Errorf("%s: %.80q", page, text)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)

	// The table of exit codes in the documents is the one of the help.
	operations := string(readFile(t, "../docs/operations.md"))
	codes := regexp.MustCompile(`(?m)^    (\d)  (.+)$`).FindAllStringSubmatch(rootHelp, -1)
	if len(codes) != exitInUse+1 {
		t.Errorf("the help has %d exit codes", len(codes))
	}
	for _, m := range codes {
		if !strings.Contains(strings.ReplaceAll(operations, "`", ""), "| "+m[1]+" | "+m[2]+" |") {
			t.Errorf("docs/operations.md lacks exit code %s: %s", m[1], m[2])
		}
	}
}

// TestCommandsAreHardened: no command, and not only serve, leaves its memory to core dumps or debuggers.
func TestCommandsAreHardened(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil { // as a process starts
		t.Fatal(err)
	}
	if code, _, stderr := coffer(t, "array", "create", "--data", t.TempDir()); code != exitUsage {
		t.Errorf("exit %d: %s", code, stderr)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable: %d, %v", dumpable, err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core != (unix.Rlimit{}) {
		t.Errorf("core dumps: %+v, %v", core, err)
	}
}

func TestNotifySystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := notifySystemd(func(string) string { return path }, "READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	ln.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := ln.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if err := notifySystemd(noEnv, "READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	if err := notifySystemd(func(string) string { return path + "x" }, "READY=1"); err == nil {
		t.Error("no error for a socket that is not there")
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "file")
	for _, content := range []string{"one", "two"} {
		if err := writeFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, path); string(got) != content {
			t.Errorf("%q, want %q", got, content)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode: %v, %v", st, err)
	}
	// A write that fails leaves what was there, and nothing beside it.
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(dir, "taken"), []byte("x"), 0o600); err == nil {
		t.Error("wrote over a directory")
	}
	names, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}
