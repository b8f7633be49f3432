package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLostNote: without array.yaml, what is left of an array is refused rather than taken for an empty directory; a first start that was
// cut short begins again.
func TestLostNote(t *testing.T) {
	const again = "no array: create one"
	blank := func(t *testing.T, dir dataDir, size int64) {
		path := filepath.Join(dir.disks(), "disk0.img")
		if err := errors.Join(os.MkdirAll(dir.disks(), 0o700), os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(t *testing.T, path, text string) {
		if err := writeFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, dir dataDir)
		begun   string // the error once a first start has begun
		lost    string // and without its mark
	}{
		"nothing":           {func(*testing.T, dataDir) {}, again, again},
		"other things":      {func(t *testing.T, d dataDir) { write(t, filepath.Join(d.tls(), "ca.crt"), "") }, again, again},
		"empty directories": {func(t *testing.T, d dataDir) { os.Mkdir(d.disks(), 0o700); os.Mkdir(d.index(), 0o700) }, again, again},
		"a key":             {func(t *testing.T, d dataDir) { write(t, d.rootKey(), "key") }, again, "/keys tells of an array"},
		"an index":          {func(t *testing.T, d dataDir) { write(t, filepath.Join(d.index(), "x"), "") }, again, "/index tells of an array"},
		"a blank disk file": {func(t *testing.T, d dataDir) { blank(t, d, minEmbeddedDisk) }, again, "/disks tells of an array"},
		"a part of a file":  {func(t *testing.T, d dataDir) { blank(t, d, 4096) }, again, ""},
		"an empty file":     {func(t *testing.T, d dataDir) { blank(t, d, 0) }, again, ""},
		"a file that is used": {func(t *testing.T, d dataDir) {
			write(t, filepath.Join(d.disks(), "disk0.img"), "XFSB"+string(make([]byte, 4<<20)))
		}, "may belong to an array", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := dataDir(t.TempDir())
			tt.prepare(t, dir)
			paths, err := diskPaths(&Config{}, dir)
			if tt.lost == "" { // found, and for Discover to judge
				if err != nil || len(paths) != 1 {
					t.Errorf("%v, %v; want the file", paths, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.lost) || errors.Is(err, errNoArray) != (tt.lost == again) {
				t.Errorf("%v; want %q", err, tt.lost)
			}
			write(t, dir.starting(), "")
			if paths, err := diskPaths(&Config{}, dir); err == nil || !strings.Contains(err.Error(), tt.begun) || errors.Is(err, errNoArray) != (tt.begun == again) {
				t.Errorf("begun: %v, %v; want %q", paths, err, tt.begun)
			}
		})
	}
}

// TestServeWithoutNote: a lost note costs nothing while the disk files tell of their array, and damaged ones are left as they are.
func TestServeWithoutNote(t *testing.T) {
	dir := dataDir(t.TempDir())
	in := startDaemon(t, string(dir), nil)
	in.want(t, 200, "PUT", in.https+"/bucket", nil)
	if begun, err := dir.firstStartBegun(); begun || err != nil {
		t.Errorf("the mark of a first start stays: %v", err)
	}
	in.end(t)
	if err := os.Remove(dir.arrayFile()); err != nil {
		t.Fatal(err)
	}
	creds := in.creds
	in = startDaemon(t, string(dir), nil)
	in.creds = creds
	in.want(t, 200, "HEAD", in.https+"/bucket", nil)
	in.end(t)

	damage := bytes.Repeat([]byte{0xd5}, 8<<20)
	files, err := dir.diskFiles()
	if err != nil || len(files) != embeddedDisks {
		t.Fatal(files, err)
	}
	for _, path := range files {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(damage, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out, log bytes.Buffer
	code := run(ctx, []string{"serve", "--data", string(dir), "--listen", "127.0.0.1:0", "--admin", "none"}, env{strings.NewReader(""), &out, &log, noEnv})
	for _, want := range []string{"array.yaml is missing", "/keys, ", "/index, ", "/disks tells", "--config FILE"} {
		if code != exitFailure || out.Len() > 0 || !strings.Contains(log.String(), want) {
			t.Errorf("exit %d, want %q: %s%s", code, want, &out, &log)
		}
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, len(damage))
		if _, err := f.Read(head); err != nil || !bytes.Equal(head, damage) {
			t.Errorf("%s was written to: %v", path, err)
		}
		f.Close()
	}
}

// TestFirstStartAgain: a first start after one that was cut short makes a whole array.
func TestFirstStartAgain(t *testing.T) {
	dir := dataDir(t.TempDir())
	if err := errors.Join(dir.beginFirstStart(), writeFile(filepath.Join(dir.disks(), "disk0.img"), make([]byte, minEmbeddedDisk), 0o600),
		writeFile(filepath.Join(dir.disks(), "disk1.img"), make([]byte, 100), 0o600), os.Mkdir(filepath.Dir(dir.rootKey()), 0o700)); err != nil {
		t.Fatal(err)
	}
	in := startDaemon(t, string(dir), nil)
	if st := statusOf(t, string(dir)); st.State != "healthy" || len(st.Disks) != embeddedDisks || st.Disks[1].Size != minEmbeddedDisk {
		t.Errorf("%+v", st)
	}
	in.end(t)
	if begun, err := dir.firstStartBegun(); begun || err != nil || !dir.noted() {
		t.Errorf("afterwards: begun %t, %v", begun, err)
	}
}
