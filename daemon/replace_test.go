package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/disk"
)

// statusOf asks by the command line.
func statusOf(t *testing.T, dir string) (st arrayStatus) {
	t.Helper()
	_, out, errText := coffer(t, "array", "status", "--data", dir, "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("status: %v: %s%s", err, out, errText)
	}
	return st
}

// TestReplaceCommand replaces a disk beside a running daemon, and a missing one without.
func TestReplaceCommand(t *testing.T) {
	dir := t.TempDir()
	in := startDaemon(t, dir, nil)
	body := bytes.Repeat([]byte("replace me "), 100_000)
	in.want(t, http.StatusOK, http.MethodPut, in.https+"/bucket", nil)
	in.want(t, http.StatusOK, http.MethodPut, in.https+"/bucket/key", body)

	st := statusOf(t, dir)
	size := st.Disks[2].Size
	fresh, second := filepath.Join(dir, "fresh.img"), filepath.Join(dir, "second.img")
	for _, p := range []string{fresh, second} {
		if err := disk.CreateFile(p, size); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args string
		code int
		err  string
	}{
		{"9 " + fresh, exitFailure, "no disk 9"},
		{"2", exitUsage, "two arguments"},
		{"2 " + filepath.Join(dir, "none"), exitFailure, "no such file"},
		{"2 " + st.Disks[1].Path, exitFailure, "in use"},
		{"--force 2 " + st.Disks[1].Path, exitFailure, "in use"},
		{"--force --dry-run 2 " + filepath.Join(dir, "none"), exitFailure, "no such file"},
	} {
		code, _, errText := coffer(t, strings.Fields("array replace --data "+dir+" --yes "+c.args)...)
		if code != c.code || !strings.Contains(errText, c.err) {
			t.Errorf("replace %s: exit %d: %s", c.args, code, errText)
		}
	}
	if code, out, _ := coffer(t, "array", "replace", "--data", dir, "--dry-run", "2", fresh); code != exitOK || !strings.Contains(out, "nothing was changed") {
		t.Errorf("dry run: exit %d: %s", code, out)
	}
	if code, _, _ := coffer(t, "array", "replace", "--data", dir, "2", fresh); code != exitFailure {
		t.Errorf("unconfirmed: exit %d", code)
	}
	if got := statusOf(t, dir); got.State != "healthy" || got.Disks[2].Path != st.Disks[2].Path {
		t.Fatalf("refused and dry runs changed something: %+v", got.Disks[2])
	}

	code, out, errText := coffer(t, "array", "replace", "--data", dir, "--json", "--wait", st.Disks[2].Path, fresh)
	var rep replacement
	if err := json.Unmarshal([]byte(out), &rep); err != nil || rep.Slot != 2 || rep.New != fresh { // one document, whatever waiting takes
		t.Errorf("%v: %s", err, out)
	}
	if code != exitOK || !strings.Contains(errText, "slot 2 is rebuilt") {
		t.Fatalf("replace: exit %d: %s%s", code, out, errText)
	}
	if got := statusOf(t, dir); got.State != "healthy" || got.Disks[2].Path != fresh {
		t.Errorf("afterwards: %s, %+v", got.State, got.Disks[2])
	}
	in.end(t)

	// The next start knows the new path. Another disk is lost, and replaced without a daemon.
	if err := os.Remove(st.Disks[4].Path); err != nil {
		t.Fatal(err)
	}
	if code, out, errText := coffer(t, "array", "replace", "--data", dir, "--yes", "4", second); code != exitOK || !strings.Contains(errText, "slot 4 is rebuilt") {
		t.Fatalf("replace without a daemon: exit %d: %s%s", code, out, errText)
	}
	for _, gone := range []string{st.Disks[0].Path, st.Disks[1].Path} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	creds := in.creds
	in = startDaemon(t, dir, nil)
	in.creds = creds // shown at the first start only
	// A daemon that cannot be asked any more while its rebuild is waited for: its state is told, but not as a second document.
	addr := filepath.Join(dataDir(dir).run(), "admin.addr")
	if err := os.Rename(addr, addr+".away"); err != nil {
		t.Fatal(err)
	}
	var doc, text bytes.Buffer
	f := arrayFlags{json: true, serveFlags: serveFlags{data: dir}}
	poll := f.poll(t.Context(), env{stdout: &doc, stderr: &text, getenv: func(string) string { return "" }})
	if err := waitRebuilt(t.Context(), &text, 0, poll); err == nil || doc.Len() > 0 {
		t.Errorf("%v, printed %q", err, &doc)
	}
	if err := os.Rename(addr+".away", addr); err != nil {
		t.Fatal(err)
	}
	if got := in.want(t, http.StatusOK, http.MethodGet, in.https+"/bucket/key", nil); !bytes.Equal(got, body) {
		t.Error("with two old disks gone the object is another")
	}
}

// TestReplaceSwappedDisks: the list of disks holds when the disks had changed places before one was replaced.
func TestReplaceSwappedDisks(t *testing.T) {
	dir := t.TempDir()
	in := startDaemon(t, dir, nil)
	in.want(t, http.StatusOK, http.MethodPut, in.https+"/bucket", nil)
	before := statusOf(t, dir)
	in.end(t)

	a, b, tmp := before.Disks[0].Path, before.Disks[3].Path, filepath.Join(dir, "tmp")
	for _, move := range [][2]string{{a, tmp}, {b, a}, {tmp, b}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	fresh := filepath.Join(dir, "fresh.img")
	if err := disk.CreateFile(fresh, before.Disks[3].Size); err != nil {
		t.Fatal(err)
	}
	if code, _, errText := coffer(t, "array", "replace", "--data", dir, "--yes", "3", fresh); code != exitOK {
		t.Fatalf("replace: exit %d: %s", code, errText)
	}
	got := statusOf(t, dir)
	if got.State != "healthy" || got.Disks[0].Path != b || got.Disks[3].Path != fresh {
		t.Errorf("%s, slot 0 at %s, slot 3 at %s; want %s and %s", got.State, got.Disks[0].Path, got.Disks[3].Path, b, fresh)
	}
}

// TestJoiningIsNoted: a start after a process that died while a disk joined looks for the disk, unless another array has it.
func TestJoiningIsNoted(t *testing.T) {
	dir, disks := debugArray(t)
	_, others := debugArray(t)
	blank := newDiskFile(t, dir, "blank.img", 64<<20)
	noted := func() (n arrayNote) {
		n, err := readNote(dataDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	refusal := errors.New("refused")
	withAppliance(t, dir, func(app *appliance) {
		err := app.joining(blank, func() error {
			if got := noted(); !slices.Equal(got.Disks, disks) || !slices.Equal(got.Maybe, []string{blank}) {
				t.Errorf("while a disk joins %+v is noted", got)
			}
			return errors.Join(refusal, app.joining(others[0], func() error { return nil }))
		})
		if got := noted(); !errors.Is(err, refusal) || !slices.Equal(got.Disks, disks) || len(got.Maybe) > 0 {
			t.Errorf("after %v %+v is noted", err, got)
		}
	})
	// As after deaths in the middle. The place of a disk that is missing meanwhile is not forgotten.
	id, err := hex.DecodeString(noted().ArrayID)
	if err != nil {
		t.Fatal(err)
	}
	member, away := filepath.Join(dir, "moved.img"), disks[1]
	if err := errors.Join(os.Rename(disks[0], member), os.Rename(away, away+".away"), dataDir(dir).noteDisks([16]byte(id), disks, []string{blank, others[0], member})); err != nil {
		t.Fatal(err)
	}
	want := append([]string{member}, disks[1:]...)
	withAppliance(t, dir, func(app *appliance) {
		st := app.status(false)
		if got := noted(); !slices.Equal(got.Disks, want) || len(got.Maybe) > 0 || st.Disks[1].State != disk.DiskMissing || st.Disks[1].Path != away {
			t.Errorf("%+v is noted, slot 1 is %s at %q", got, st.Disks[1].State, st.Disks[1].Path)
		}
	})
}

// TestReplacedIsNoted: until the new disk is rebuilt a start looks for the old one too.
func TestReplacedIsNoted(t *testing.T) {
	dir, disks := debugArray(t)
	fresh := newDiskFile(t, dir, "fresh.img", 64<<20)
	want := append([]string{fresh}, disks[1:]...)
	withAppliance(t, dir, func(app *appliance) {
		app.array.SetRebuildRate(1)
		if _, err := app.replace(t.Context(), disks[0], fresh, false); err != nil {
			t.Fatal(err)
		}
	})
	note, err := readNote(dataDir(dir))
	if err != nil || !slices.Equal(note.Disks, want) || !slices.Equal(note.places(), append(want, disks[0])) {
		t.Errorf("%+v is noted, %v", note, err)
	}
	withAppliance(t, dir, func(app *appliance) {
		for deadline := time.Now().Add(20 * time.Second); app.status(false).State != "healthy"; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not rebuilt")
			}
		}
	})
	if note, err = readNote(dataDir(dir)); err != nil || !slices.Equal(note.Disks, want) || len(note.Maybe) > 0 {
		t.Errorf("%+v is noted of a rebuilt array, %v", note, err)
	}
}
