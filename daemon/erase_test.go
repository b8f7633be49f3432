package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/disk"
)

// TestEraseCommand erases a disk that was removed, and no other unless told twice.
func TestEraseCommand(t *testing.T) {
	dir := t.TempDir()
	run := func(args string) (int, string) {
		t.Helper()
		code, out, errText := coffer(t, strings.Fields("array "+args+" --data "+dir)...)
		return code, out + errText
	}
	var paths []string
	for _, name := range []string{"a", "b", "c", "d"} {
		paths = append(paths, newDiskFile(t, dir, name, 64<<20))
	}
	if code, text := run("create --yes --data-shards 2 --parity 1 --disk " + strings.Join(paths, " --disk ")); code != exitOK {
		t.Fatalf("create: exit %d: %s", code, text)
	}
	ext4 := newDiskFile(t, dir, "ext4", 8<<20)
	f, err := os.OpenFile(ext4, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("\x53\xef"), 0x438); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cert := filepath.Join(dir, "certificate.txt")
	for _, c := range []struct {
		args string
		code int
		text string
	}{
		{"erase", exitUsage, "one argument"},
		{"erase --yes --method burn " + paths[3], exitFailure, "burn"},
		{"erase --yes --method sanitize " + paths[3], exitFailure, "not offered"},
		{"erase --yes " + paths[3], exitFailure, "a member of the array of this data directory"},
		{"erase --yes --force " + paths[3], exitFailure, "give --force twice"},
		{"erase --yes " + ext4, exitFailure, "ext2/3/4"},
		{"erase --force " + ext4, exitFailure, "nothing was changed"},
		{"erase --yes --force --method zero " + ext4, exitOK, "result       erased"},
		{"remove 3 --yes", exitOK, "slot 3 is empty"},
		{"erase --dry-run " + paths[3], exitOK, "a disk retired from slot 3"},
		{"erase --yes --samples 64 --certificate " + cert + " " + paths[3], exitOK, "64 blocks of 4096 bytes: 0 not erased, 0 unreadable; "},
		{"status", exitOK, "healthy"},
		{"erase --yes --force --force " + paths[0], exitOK, "result       erased"},
		{"status", exitUnhealthy, "missing"},
	} {
		if code, text := run(c.args); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s: exit %d: %s", c.args, code, text)
		}
	}
	if text := string(readFile(t, cert)); !strings.Contains(text, "method       random") || !strings.Contains(text, "slot 3 of array") {
		t.Errorf("certificate: %s", text)
	}
	code, out, errText := coffer(t, "array", "erase", "--data", dir, "--json", paths[3])
	var doc disk.EraseCertificate
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != exitOK || doc.Result != "erased" || doc.Held != "" || doc.Nonzero != doc.Samples || doc.Samples != 1000 || doc.Size != 64<<20 {
		t.Errorf("--json: exit %d, %v: %s%s", code, err, out, errText)
	}
}
