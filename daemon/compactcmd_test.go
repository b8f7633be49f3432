package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"coffer/object"
)

// The compaction of a daemon by its command, then the command alone.
func TestCompactCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	in := startDaemon(t, dir, nil)
	in.want(t, http.StatusOK, http.MethodPut, in.http+"/bucket", nil)
	body := bytes.Repeat([]byte("0123456789abcdef"), 128<<10)
	compact := func(args ...string) (int, string, string) {
		t.Helper()
		return coffer(t, append([]string{"array", "compact", "--data", dir}, args...)...)
	}
	status := func() (st compactStatus) {
		t.Helper()
		_, out, errText := compact("--status", "--json")
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatalf("%v: %s%s", err, out, errText)
		}
		return st
	}
	if code, out, _ := compact("--pause", "--rate", "1MiB"); code != exitOK || !strings.Contains(out, "compaction paused\nat most 1MiB per second") {
		t.Errorf("pause: exit %d: %s", code, out)
	}
	for i := range 40 { // more than a band, of which most is overwritten
		in.want(t, http.StatusOK, http.MethodPut, fmt.Sprint(in.http, "/bucket/key", i%4), body)
	}
	if st := status(); st.State != "paused" || st.Freed != 0 || st.Amplification < 1.5 || st.Accepted < 80<<20 || st.Live == 0 || st.Live >= st.Accepted {
		t.Errorf("paused: %+v", st)
	}
	code, out, errText := compact("--dry-run")
	if code != exitOK || !regexp.MustCompile(`a pass would free [1-9]\d* bands`).MatchString(out) || !strings.Contains(out, "bulk") {
		t.Errorf("dry run: exit %d: %s%s", code, out, errText)
	}
	if st := status(); st.State != "paused" || st.Freed != 0 || st.Moved != 0 {
		t.Errorf("a dry run changed something: %+v", st)
	}
	if code, out, _ := compact("--resume"); code != exitOK || !strings.Contains(out, "compaction idle") {
		t.Errorf("resume: exit %d: %s", code, out)
	}
	code, out, errText = compact("--follow", "--rate", "0")
	if code != exitOK || !regexp.MustCompile(`since the start: [1-9]\d* bands freed`).MatchString(out) || !strings.Contains(out, "last pass ended") {
		t.Errorf("pass: exit %d: %s%s", code, out, errText)
	}
	if code, out, _ := compact("--dry-run", "--json"); code != exitOK || !strings.Contains(out, `"bands": []`) {
		t.Errorf("dry run after it: exit %d: %s", code, out)
	}
	_, metrics := get(t, in.admin+"/metrics")
	for _, want := range []string{`compaction_bands_freed_total [1-9]`, `compaction_reclaimed_bytes_total [1-9]`, `compaction_moved_bytes_total \d`,
		`compaction_waiting_writers 0`, `compaction_state\{state="idle"\} 1`, `store_live_bytes [1-9]`, `store_shadow_bytes \d`,
		`write_amplification_ratio [1-9]`, `compaction_last_pass_timestamp_seconds [1-9]`} {
		if !regexp.MustCompile(`(?m)^coffer_` + want).MatchString(metrics) {
			t.Errorf("no metric %s", want)
		}
	}
	if code, body := in.post(t, "/array/compact?do=dance", in.token(t)); code != http.StatusBadRequest {
		t.Errorf("%d: %s", code, body)
	}
	for range 20 {
		in.want(t, http.StatusOK, http.MethodPut, in.http+"/bucket/key0", body)
	}
	in.end(t)

	if code, _, errText := compact("--pause"); code != exitFailure || !strings.Contains(errText, "no daemon runs") {
		t.Errorf("pause without a daemon: exit %d: %s", code, errText)
	}
	var plan object.CompactPlan
	code, out, errText = compact("--dry-run", "--all", "--json")
	if err := json.Unmarshal([]byte(out), &plan); err != nil || code != exitOK || len(plan.Bands) == 0 || plan.Reclaim == 0 || !plan.All {
		t.Errorf("dry run without a daemon: exit %d, %v: %s%s", code, err, out, errText)
	}
	var st compactStatus
	code, out, errText = compact("--all", "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != exitOK || st.Freed == 0 || st.Freed > int64(len(plan.Bands)) {
		t.Errorf("by itself: exit %d, %v, of %d: %s%s", code, err, len(plan.Bands), out, errText)
	}
}

func TestControlCompaction(t *testing.T) {
	for query, want := range map[string]string{"rate=fast": "no number", "rate=-1": "no number", "do=": "want one of all, now, pause, resume", "do=pause&do=stop": "want one of"} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if err := controlCompaction(nil, q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}
