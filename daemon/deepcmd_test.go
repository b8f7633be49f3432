package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/disk"
	"coffer/object"
)

// blank overwrites a cell of a disk file, header and first segment.
func blank(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, disk.BlockSize+disk.SegmentSize), at); err != nil {
		t.Fatal(err)
	}
}

// bulkCells returns where bulk cells begin in a disk file.
func bulkCells(t *testing.T, path string) (at []int64) {
	t.Helper()
	const bulk = 2
	b := mapped(t, path)
	for off := 1 << 20; off+disk.BlockSize <= len(b); off += disk.BlockSize {
		if string(b[off:off+8]) == "COFFCELL" && b[off+9] == bulk {
			at = append(at, int64(off))
		}
	}
	return at
}

// The deep check of an array that is whole, has lost a stripe, and has an index that is not its own.
func TestDeepCheckCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	in := startDaemon(t, dir, nil)
	in.want(t, http.StatusOK, http.MethodPut, in.http+"/bucket", nil)
	for i := range 5 {
		in.want(t, http.StatusOK, http.MethodPut, fmt.Sprint(in.http, "/bucket/large", i), bytes.Repeat([]byte("0123456789abcdef"), 64<<10))
		in.want(t, http.StatusOK, http.MethodPut, fmt.Sprint(in.http, "/bucket/small", i), []byte("small"))
	}
	in.want(t, http.StatusNoContent, http.MethodDelete, in.http+"/bucket/large0", nil)
	if code, _, errText := coffer(t, "array", "check", "--deep", "--data", dir); code != exitInUse || !strings.Contains(errText, "stop the daemon first") {
		t.Errorf("beside a daemon: exit %d: %s", code, errText)
	}
	old := filepath.Join(t.TempDir(), "old")
	in.end(t)
	if err := os.CopyFS(old, os.DirFS(dataDir(dir).index())); err != nil {
		t.Fatal(err)
	}

	check := func(args ...string) (code int, rep object.DeepReport) {
		t.Helper()
		code, out, errText := coffer(t, append([]string{"array", "check", "--deep", "--json", "--data", dir}, args...)...)
		if err := json.Unmarshal([]byte(out), &rep); err != nil {
			t.Fatalf("exit %d, %v: %s%s", code, err, out, errText)
		}
		return code, rep
	}
	before := files(t, dir)
	code, rep := check()
	if code != exitOK || rep.Objects != 9 || rep.Opened != 9 || rep.OpenedBytes != 4<<20+25 || rep.Stripes == 0 || rep.Garbage == 0 || rep.Entries == 0 || rep.Cells.Cells == 0 {
		t.Errorf("whole: exit %d: %+v", code, rep)
	}
	if code, rep := check("--sample", "3"); code != exitOK || rep.Opened != 3 {
		t.Errorf("sample: exit %d: %+v", code, rep)
	}
	if after := files(t, dir); after != before {
		t.Errorf("the check changed something: %s, before %s", after, before)
	}

	// An object is put; the index of before comes back, and what it lacks is replayed.
	in2 := startDaemon(t, dir, nil)
	in2.creds = in.creds
	in2.want(t, http.StatusOK, http.MethodPut, in2.http+"/bucket/late", []byte("late"))
	in2.end(t)
	if err := os.RemoveAll(dataDir(dir).index()); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := coffer(t, "array", "check", "--deep", "--data", dir); code != exitUnhealthy || !strings.Contains(out, "index: there is none that can be used") {
		t.Errorf("without an index: exit %d: %s", code, out)
	}
	if err := os.CopyFS(dataDir(dir).index(), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	if code, rep := check(); code != exitOK || rep.Objects != 10 {
		t.Errorf("with an old index: exit %d: %+v", code, rep)
	}

	// More cells than parity of one stripe are gone: its object is named.
	n := 0
	for i := range 6 {
		path := filepath.Join(dir, "disks", fmt.Sprintf("disk%d.img", i))
		if at := bulkCells(t, path); len(at) > 0 && n < 3 {
			blank(t, path, at[len(at)-1])
			n++
		}
	}
	code, rep = check()
	if text := strings.Join(rep.Faults, "\n"); code != exitUnhealthy || rep.LostStripes != 1 || rep.Unopened != 1 || rep.Cells.Lost == 0 ||
		!strings.Contains(text, `object "large4" in bucket bucket: its stripe`) || !strings.Contains(text, `object "large4" in bucket bucket cannot be read`) {
		t.Errorf("a lost stripe: exit %d: %+v", code, rep)
	}
	for _, args := range [][]string{{"--deep", "--repair"}, {"--sample", "2"}, {"--deep", "--sample", "-1"}} {
		if code, _, _ := coffer(t, append([]string{"array", "check", "--data", dir}, args...)...); code != exitUsage {
			t.Errorf("%v: exit %d", args, code)
		}
	}
}

// files tells of sizes and times below a directory, but for the lock.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && filepath.Base(path) != "coffer.lock" {
			fmt.Fprintln(&b, path, info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
