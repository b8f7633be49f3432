package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"coffer/disk"
)

// rot changes one byte of a bulk cell in a disk file.
func rot(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const bulk = 2
	block := make([]byte, disk.BlockSize)
	for off := int64(1 << 20); ; off += disk.BlockSize {
		if _, err := f.ReadAt(block, off); err != nil {
			t.Fatalf("no bulk cell in %s: %v", path, err)
		}
		if string(block[:8]) == "COFFCELL" && block[9] == bulk {
			if _, err := f.ReadAt(block[:1], off+disk.BlockSize+99); err != nil {
				t.Fatal(err)
			}
			block[0] ^= 0x10
			if _, err := f.WriteAt(block[:1], off+disk.BlockSize+99); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// The scrub of a daemon by its command, then the command alone.
func TestScrubCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	in := startDaemon(t, dir, nil)
	in.want(t, http.StatusOK, http.MethodPut, in.http+"/bucket", nil)
	in.want(t, http.StatusOK, http.MethodPut, in.http+"/bucket/key", bytes.Repeat([]byte("0123456789abcdef"), 64<<10))
	scrub := func(args ...string) (int, string, string) {
		t.Helper()
		return coffer(t, append([]string{"array", "scrub", "--data", dir}, args...)...)
	}
	last := func() (st disk.ScrubStatus) {
		t.Helper()
		_, out, errText := scrub("--status", "--json")
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatalf("%v: %s%s", err, out, errText)
		}
		return st
	}
	if st := last(); st.State != "idle" || st.Last != nil || st.Rate != 64<<20 || time.Until(st.Next) < 27*day-time.Hour || time.Until(st.Next) > 33*day {
		t.Errorf("before the first: %+v", st)
	}
	if code, out, errText := scrub("--follow", "--rate", "0"); code != exitOK || !strings.Contains(out, "bad 0, missing 0") || !strings.Contains(out, "\nnext 20") {
		t.Errorf("sweep of a whole array: exit %d: %s%s", code, out, errText)
	}
	damaged := filepath.Join(dir, "disks", "disk2.img")
	rot(t, damaged)
	code, out, errText := scrub("--follow")
	if code != exitUnhealthy || !strings.Contains(out, "bad 1, missing 0, repaired 1") || !regexp.MustCompile(`(?m)^  2 +1 +1 +\S*disk2\.img$`).MatchString(out) ||
		!strings.Contains(out, "is rot") || !strings.Contains(errText, "1 cells bad, 1 of them repaired") {
		t.Errorf("sweep of a damaged array: exit %d: %s%s", code, out, errText)
	}
	if code, _, _ := scrub("--status"); code != exitUnhealthy {
		t.Errorf("status: exit %d", code)
	}
	if _, metrics := get(t, in.admin+"/metrics"); !strings.Contains(metrics, `coffer_scrub_cells_total{result="rot"} 1`) ||
		!strings.Contains(metrics, `coffer_scrub_cells_total{result="repaired"} 1`) || !strings.Contains(metrics, "coffer_scrub_running 0") ||
		!regexp.MustCompile(`coffer_scrub_bytes_total [1-9]`).MatchString(metrics) || !regexp.MustCompile(`coffer_scrub_last_completed_timestamp_seconds [1-9]`).MatchString(metrics) ||
		!strings.Contains(metrics, "coffer_scrub_progress_ratio 0") {
		t.Errorf("metrics: %s", metrics)
	}
	if code, out, errText := scrub("--follow"); code != exitOK {
		t.Errorf("sweep after repair: exit %d: %s%s", code, out, errText)
	}
	if code, out, _ := scrub("--pause", "--rate", "1MiB"); code != exitOK || !strings.Contains(out, "scrub paused\nat most 1MiB per second") {
		t.Errorf("pause: exit %d: %s", code, out)
	}
	if code, body := in.post(t, "/array/scrub?do=dance", in.token(t)); code != http.StatusBadRequest {
		t.Errorf("%d: %s", code, body)
	}
	if resp, err := http.Get(in.admin + "/array/scrub?do=resume"); err != nil || resp.StatusCode != http.StatusOK || last().State != "paused" {
		t.Errorf("a GET changed something: %v, %v", resp, err)
	}
	was := last().Last
	in.end(t)

	if st := last(); st.State != "paused" || st.Last == nil || !st.Last.Ended.Equal(was.Ended) {
		t.Errorf("after the daemon: %+v", st)
	}
	if code, _, errText := scrub("--pause"); code != exitFailure || !strings.Contains(errText, "no daemon runs") {
		t.Errorf("pause without a daemon: exit %d: %s", code, errText)
	}
	code, out, errText = scrub("--json")
	var st disk.ScrubStatus
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != exitOK || st.Last.Report.Stripes == 0 || !st.Last.Started.After(was.Ended) {
		t.Errorf("by itself: exit %d, %v: %s%s", code, err, out, errText)
	}
	if code, out, errText := scrub("--now", "--follow", "--rate", "1TiB"); code != exitOK || !regexp.MustCompile(`last ended .*, took `).MatchString(out) || last().State == "paused" {
		t.Errorf("by itself: exit %d: %s%s", code, out, errText)
	}

	// A note that cannot be read costs a sweep and no more.
	if err := os.WriteFile(dataDir(dir).scrub(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadScrub(dataDir(dir)); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a broken note: %v", err)
	}
	if code, _, errText := scrub("--status"); code != exitFailure || !strings.Contains(errText, "scrub.json") {
		t.Errorf("a broken note: exit %d: %s", code, errText)
	}
	if code, _, errText := scrub("--now"); code != exitOK || !strings.Contains(errText, "earlier scrubs forgotten") || last().Last == nil {
		t.Errorf("a broken note: exit %d: %s", code, errText)
	}
}

func TestControlScrub(t *testing.T) {
	for query, want := range map[string]string{"rate=fast": "no number", "rate=-1": "no number", "do=": "want one of now, pause, resume", "do=stop": "want one of"} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if err := controlScrub(nil, q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}
