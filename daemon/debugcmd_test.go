package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/disk"
	"coffer/object"
)

// debugArray makes an array of four disks, 2+2, with one object of a telling name, and returns its data directory and disks.
func debugArray(t *testing.T) (dir string, disks []string) {
	t.Helper()
	dir = t.TempDir()
	args := []string{"array", "create", "--data", dir, "--disk-size", "64MiB", "--extent-size", "1MiB", "--data-shards", "2", "--parity", "2", "--yes"}
	for i := range 4 {
		disks = append(disks, filepath.Join(dir, fmt.Sprint("d", i)))
		args = append(args, "--disk", disks[i])
	}
	if code, _, errText := coffer(t, args...); code != exitOK {
		t.Fatalf("create: exit %d: %s", code, errText)
	}
	withStore(t, dir, func(s *object.Store) {
		if _, err := s.CreateBucket(t.Context(), "wonderbucket", object.Bucket{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), "wonderbucket", "wonderkey", strings.NewReader("body"), object.PutOptions{Size: 4}); err != nil {
			t.Fatal(err)
		}
	})
	return dir, disks
}

func withStore(t *testing.T, dir string, fn func(*object.Store)) {
	t.Helper()
	withAppliance(t, dir, func(app *appliance) { fn(app.store) })
}

// withAppliance opens the array of a data directory for writing.
func withAppliance(t *testing.T, dir string, fn func(*appliance)) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	cfg := Config{Data: dir}
	crypto, err := probe(&cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	app, err := openAppliance(t.Context(), &cfg, noEnv, crypto, openMode{}, log)
	if err != nil {
		t.Fatal(err)
	}
	fn(app)
	if err := app.Close(); err != nil {
		t.Fatal(err)
	}
}

// ask runs a command with --json into doc.
func ask(t *testing.T, doc any, args ...string) {
	t.Helper()
	code, out, errText := coffer(t, append(args, "--json")...)
	if code != exitOK {
		t.Fatalf("%q: exit %d: %s", args, code, errText)
	}
	if err := json.Unmarshal([]byte(out), doc); err != nil {
		t.Fatal(err)
	}
}

func TestDebugCommands(t *testing.T) {
	dir, disks := debugArray(t)
	// The bands are found by looking at the first blocks of a disk's extents.
	var bands []disk.CellInfo
	for e := range 12 {
		var c disk.CellInfo
		if ask(t, &c, "debug", "cell", "--data", dir, "--disk", disks[0], "--extent", fmt.Sprint(e)); c.Header != nil && c.Header.Kind == "packed band" {
			bands = append(bands, c)
		}
	}
	if len(bands) == 0 {
		t.Fatal("no packed band on the first disk")
	}
	// One of them has the record of the object.
	var records string
	var at disk.CellInfo
	var s disk.StripeInfo
	for _, b := range bands {
		for block := uint32(1); ; block += s.Blocks {
			if ask(t, &s, "debug", "stripe", "--data", dir, "--band", b.Owner, "--block", fmt.Sprint(block)); s.Data == 0 {
				break
			}
			code, out, errText := coffer(t, "debug", "record", "--data", dir, "--band", b.Owner, "--block", fmt.Sprint(block), "--names")
			if code != exitOK {
				t.Fatalf("record: exit %d: %s", code, errText)
			}
			if strings.Contains(out, "wonderkey") {
				records, at = out, s.Cells[0]
			}
		}
	}
	for _, want := range []string{"kind 3 (object)", `name "wonderkey", size 4`, "SSE-S3", "data 20 bytes in cell 0"} {
		if !strings.Contains(records, want) {
			t.Errorf("records lack %q:\n%s", want, records)
		}
	}
	place := []string{"--data", dir, "--band", at.Owner, "--block", fmt.Sprint(at.Block)}
	for _, format := range []string{"--json=false", "--json"} {
		code, out, _ := coffer(t, append([]string{"debug", "record", format}, place...)...)
		if code != exitOK || strings.Contains(out, "wonder") || !strings.Contains(out, "(9 bytes)") {
			t.Errorf("names are not redacted: exit %d:\n%s", code, out)
		}
	}
	if ask(t, &s, append([]string{"debug", "stripe"}, place...)...); !s.Decodable || s.Good != 3 || s.Data != 1 || s.Parity != 2 {
		t.Errorf("stripe: %+v", s)
	}
	cell := []string{"debug", "cell", "--data", dir, "--disk", at.Path, "--extent", fmt.Sprint(at.Extent), "--block", fmt.Sprint(at.Block)}
	whole := s.Blocks * disk.BlockSize
	for _, tt := range []struct {
		verdict string
		ruin    func(p []byte)
		reason  string
	}{
		{"good", func([]byte) {}, ""},
		{"rot", func(p []byte) { p[1000] ^= 1 }, "0 are of another write, 1 altered"},
		{"rot", func(p []byte) { p[100] ^= 1 }, "header fails its MAC"},
		{"torn", func(p []byte) { clear(p[192:]) }, "are of another write"},
		{"empty", func(p []byte) { clear(p) }, ""},
		{"misdirected", func(p []byte) { copy(p, readAt(t, s.Cells[1].Path, s.Cells[1].Offset, len(p))) }, "belongs to disk"},
		{"foreign", func(p []byte) { p[16] ^= 1 }, "a cell of array"},
	} {
		p := readAt(t, at.Path, at.Offset, int(whole))
		good := append([]byte(nil), p...)
		tt.ruin(p)
		writeAt(t, at.Path, at.Offset, p)
		var c disk.CellInfo
		ask(t, &c, cell...)
		if c.Verdict != tt.verdict || !strings.Contains(c.Reason, tt.reason) || c.MACOK != (c.Header != nil) || c.ChecksumOK != (c.Verdict == "good") {
			t.Errorf("want %s (%s), got %+v", tt.verdict, tt.reason, c)
		}
		ask(t, &s, append([]string{"debug", "stripe"}, place...)...)
		if want := map[bool]int{true: 3, false: 2}[tt.verdict == "good"]; s.Good != want || !s.Decodable {
			t.Errorf("%s: stripe has %d good cells, want %d", tt.verdict, s.Good, want)
		}
		writeAt(t, at.Path, at.Offset, good)
	}
	if code, out, _ := coffer(t, append(cell, "--json=false")...); code != exitOK || !strings.Contains(out, "MAC ok, checksum ok") || !strings.Contains(out, "packed") {
		t.Errorf("cell as text: exit %d:\n%s", code, out)
	}
	if code, out, _ := coffer(t, "debug", "stripe", "--data", dir, "--band", at.Owner, "--block", "0"); code != exitOK || !strings.Contains(out, "4 of 4 good") {
		t.Errorf("band headers: exit %d:\n%s", code, out)
	}
	for args, want := range map[string]int{"stripe --band xyz": exitUsage, "cell": exitUsage, "stripe --band 7": exitFailure,
		"cell --disk " + disks[0] + " --extent 1000": exitFailure, "cell --disk nowhere": exitFailure, "record --band " + at.Owner + " --block 200": exitFailure} {
		if code, out, errText := coffer(t, append([]string{"debug"}, append(strings.Fields(args), "--data", dir)...)...); code != want {
			t.Errorf("%s: exit %d, want %d: %s%s", args, code, want, out, errText)
		}
	}
}

func readAt(t *testing.T, path string, off int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

func writeAt(t *testing.T, path string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
