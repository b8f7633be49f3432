package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestDiscard: what deletion and compaction free is given back to the file system with `always`, and by default kept.
func TestDiscard(t *testing.T) {
	for _, c := range []struct {
		discard string
		smaller bool
	}{{"always", true}, {"auto", false}} {
		t.Run(c.discard, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			in := startDaemon(t, dir, nil, "--config", writeTemp(t, "coffer.yaml", "embedded_disk_size: 256MiB\ndiscard: "+c.discard+"\n"))
			in.want(t, http.StatusOK, http.MethodPut, in.http+"/bucket", nil)
			body := bytes.Repeat([]byte("0123456789abcdef"), 256<<10)
			for i := range 40 {
				in.want(t, http.StatusOK, http.MethodPut, fmt.Sprint(in.http, "/bucket/key", i), body)
			}
			full := allocated(t, dir)
			for i := range 40 {
				in.want(t, http.StatusNoContent, http.MethodDelete, fmt.Sprint(in.http, "/bucket/key", i), nil)
			}
			if code, out, errText := coffer(t, "array", "compact", "--data", dir, "--all", "--follow", "--rate", "0"); code != exitOK {
				t.Fatalf("compact: exit %d: %s%s", code, out, errText)
			}
			left := allocated(t, dir)
			t.Logf("%d MiB, then %d MiB", full>>20, left>>20)
			if given := full - left; (given > 100<<20) != c.smaller || !c.smaller && given != 0 {
				t.Errorf("%d bytes are given back", given)
			}
			for i := range 40 { // and the room can be taken again
				in.want(t, http.StatusOK, http.MethodPut, fmt.Sprint(in.http, "/bucket/key", i), body)
			}
			in.want(t, http.StatusOK, http.MethodGet, in.http+"/bucket/key7", nil)
			in.end(t)
		})
	}
}

// allocated is what the disk files of an embedded array take of the file system.
func allocated(t *testing.T, dir string) (n int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "disks", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d disks, %v", len(paths), err)
	}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		n += st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return n
}
