package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/disk"
)

// TestUnopened: an array that does not open has a document too, which names the disks that are to blame.
func TestUnopened(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"x", "y"} {
		args := "array create --yes --disk-size 64MiB --data " + name
		for _, n := range []string{"0", "1", "2", "3", "4", "5"} {
			args += " --disk " + name + n
		}
		if code, _, err := coffer(t, strings.Fields(args)...); code != exitOK {
			t.Fatalf("create: exit %d: %s", code, err)
		}
	}
	note, err := readNote("x")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(code int, word string, want ...disk.SurveyState) {
		t.Helper()
		for _, command := range []string{"status", "check"} {
			got, out, stderr := coffer(t, "array", command, "--data", "x", "--json")
			if got != code || !strings.Contains(stderr, word) || strings.Contains(stderr, "another key") {
				t.Errorf("%s: exit %d: %s", command, got, stderr)
			}
			var doc unopened
			if err := json.Unmarshal([]byte(out), &doc); err != nil {
				t.Errorf("%s: %v: %q", command, err, out)
				continue
			}
			var states []disk.SurveyState
			for i, d := range doc.Disks {
				states = append(states, d.State)
				if d.Path != note.Disks[i] || (d.Reason == "") != (d.State == disk.SurveyPresent) {
					t.Errorf("%s: disk %+v", command, d)
				}
			}
			if doc.State != "unopened" || doc.Verified || doc.Running || doc.Data != 4 || doc.Parity != 2 || doc.ArrayID != note.ArrayID ||
				!strings.Contains(doc.Reason, word) || !slices.Equal(states, want) {
				t.Errorf("%s: %s", command, out)
			}
		}
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	const present, missing, foreign, unreadable = disk.SurveyPresent, disk.SurveyMissing, disk.SurveyForeign, disk.SurveyUnreadable
	move("x1", "away1")
	move("x2", "away2")
	if err := os.Truncate("x3", 0); err != nil {
		t.Fatal(err)
	}
	ask(exitUnhealthy, "3 of 6 disks", present, missing, missing, unreadable, present, present)
	for _, n := range []string{"0", "1", "2", "3"} {
		move("y"+n, "x"+n)
	}
	ask(exitUnhealthy, "which is x/array.yaml", foreign, foreign, foreign, foreign, present, present)

	// Without a note the majority decides what is foreign.
	if err := os.WriteFile("conf.yaml", []byte("disks: [x0, x1, x2, x3, x4, x5]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := coffer(t, "array", "status", "--data", "x", "--config", "conf.yaml", "--json")
	var doc unopened
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != exitUnhealthy || doc.ArrayID == note.ArrayID ||
		len(doc.Disks) != 6 || doc.Disks[0].State != present || doc.Disks[5].State != foreign || !strings.Contains(stderr, "x5 belongs to array "+note.ArrayID) ||
		!strings.Contains(stderr, "take it off the list of disks, which is `disks:` in the configuration") {
		t.Errorf("configured disks: exit %d, %v: %s%s", code, err, out, stderr)
	}

	// The disks of a daemon that does not answer are not touched.
	unlock, err := dataDir("x").lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	code, out, _ = coffer(t, "array", "status", "--data", "x", "--json")
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != exitInUse || !doc.Running || doc.State != "unknown" || doc.Disks[0].State != unreadable {
		t.Errorf("a daemon that does not answer: exit %d, %v: %s", code, err, out)
	}

	// One that answers has the array open, whatever it refuses.
	status := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", status) }))
	defer srv.Close()
	if err := dataDir("x").publish("admin", srv.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := coffer(t, "array", "check", "--data", "x"); code != exitFailure || !strings.Contains(stderr, "admin.token") {
		t.Errorf("no token: exit %d: %s", code, stderr)
	}
	if err := writeFile(dataDir("x").token(), []byte("token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		status int
		out    string
	}{{http.StatusConflict, ""}, {http.StatusServiceUnavailable, `"state": "unknown"`}} {
		status = tt.status
		code, out, stderr := coffer(t, "array", "check", "--data", "x", "--json")
		if code != exitFailure || !strings.Contains(stderr, "busy") || (tt.out == "") != (out == "") || !strings.Contains(out, tt.out) {
			t.Errorf("%d of the daemon: exit %d: %s%s", tt.status, code, out, stderr)
		}
	}
}

// TestForeignDisk: a disk of another array in the place of one keeps the array from opening, and what the error says to do leads out.
func TestForeignDisk(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"x", "y"} {
		if code, _, err := coffer(t, strings.Fields(strings.ReplaceAll("array create --yes --disk-size 64MiB --data X --disk X0 --disk X1 --disk X2", "X", name))...); code != exitOK {
			t.Fatalf("create: exit %d: %s", code, err)
		}
	}
	foreign, err := filepath.Abs("x1")
	if err == nil {
		err = os.Rename("y0", "x1")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"array status --data x", "array replace 1 x1 --force --yes --data x", "serve --data x --admin none --listen 127.0.0.1:0"} {
		if code, _, stderr := coffer(t, strings.Fields(args)...); code == exitOK || !strings.Contains(stderr, foreign+" belongs to array") ||
			!strings.Contains(stderr, "move each such disk away, or take it off the list of disks, which is x/array.yaml") {
			t.Errorf("%s: exit %d: %s", args, code, stderr)
		}
	}
	note := strings.Replace(string(readFile(t, "x/array.yaml")), "    - "+foreign+"\n", "", 1)
	if err := os.WriteFile("x/array.yaml", []byte(note), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, stderr := coffer(t, "array", "status", "--data", "x"); code != exitUnhealthy || !strings.Contains(out, "1     missing") {
		t.Errorf("off the list: exit %d: %s%s", code, out, stderr)
	}
	if code, out, stderr := coffer(t, strings.Fields("array replace 1 x1 --force --yes --data x")...); code != exitOK {
		t.Errorf("replace: exit %d: %s%s", code, out, stderr)
	}
	if code, out, stderr := coffer(t, "array", "status", "--data", "x"); code != exitOK || !strings.Contains(out, foreign) {
		t.Errorf("afterwards: exit %d: %s%s", code, out, stderr)
	}

	// Nothing to read at all is told in whole sentences.
	for _, name := range []string{"x0", "x1", "x2"} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, stderr := coffer(t, "array", "status", "--data", "x"); code != exitUnhealthy || !strings.Contains(stderr, "none of 3 devices has a superblock; not opened: [") ||
		strings.Contains(stderr, "%!") {
		t.Errorf("no disk: exit %d: %s", code, stderr)
	}
}
