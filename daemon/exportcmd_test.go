package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/disk"
	"coffer/object"
)

func TestExportPath(t *testing.T) {
	long := strings.Repeat("é", 500)
	for _, tt := range []struct{ key, want string }{
		{"k", "b/k"}, {"a/b", "b/a/b"}, {"../x", "b/%2E%2E/x"}, {"./.", "b/%2E/%2E"}, {"a//b", "b/a/%/b"}, {"/", "b/%/%"}, {"dir/", "b/dir/%"},
		{"100%", "b/100%25"}, {"%2E", "b/%252E"}, {"%~", "b/%25~"}, {"a\x00\n\\b", "b/a%00%0A%5Cb"}, {"\xff\xfeé", "b/%FF%FEé"}, {"...", "b/..."},
		{strings.Repeat("x", 300), "b/" + strings.Repeat("x", 240) + "%+/" + strings.Repeat("x", 60)}, {long, ""}, {strings.Repeat("\x01", 1024), ""},
	} {
		for _, beside := range []bool{false, true} {
			got := exportPath("b", tt.key, beside)
			if want := tt.want + map[bool]string{true: "%~"}[beside]; tt.want != "" && got != want {
				t.Errorf("%q: %q, want %q", tt.key, got, want)
			}
			for c := range strings.SplitSeq(got, "/") {
				if len(c) > 255 || c == "" || c == "." || c == ".." {
					t.Errorf("%q: component %q", tt.key, c)
				}
			}
			if bucket, key, err := unescapePath(got); bucket != "b" || key != tt.key || err != nil {
				t.Errorf("%q: comes back as %q of %q, %v", tt.key, key, bucket, err)
			}
		}
	}
}

func FuzzExportPath(f *testing.F) {
	f.Add("a/../b%", true)
	f.Fuzz(func(t *testing.T, key string, beside bool) {
		p := exportPath("b", key, beside)
		if _, got, err := unescapePath(p); got != key || err != nil || !filepath.IsLocal(p) || filepath.Clean(p) != p {
			t.Errorf("%q becomes %q and %q, %v", key, p, got, err)
		}
	})
}

// worstDay makes an array of six disks with objects of all shapes and takes away all but four disks and the recovery key. It returns
// what was stored by bucket and key; nil for what a customer key seals.
func worstDay(t *testing.T) (args []string, want map[[2]string][]byte) {
	t.Helper()
	home, away := t.TempDir(), t.TempDir()
	create := []string{"array", "create", "--data", home, "--disk-size", "64MiB", "--extent-size", "1MiB", "--yes"}
	for i := range 6 {
		create = append(create, "--disk", filepath.Join(away, fmt.Sprint("d", i)))
	}
	var made created
	ask(t, &made, create...)
	want = map[[2]string][]byte{}
	withStore(t, home, func(s *object.Store) {
		fillForExport(t, s, want)
		if code, _, errText := coffer(t, "array", "export", "--data", home, "--to", filepath.Join(home, "out")); code != exitInUse {
			t.Errorf("while another process has the disks: exit %d: %s", code, errText)
		}
	})
	key := filepath.Join(away, "recovery")
	err := errors.Join(os.RemoveAll(home), os.Remove(filepath.Join(away, "d1")), os.Remove(filepath.Join(away, "d4")),
		os.WriteFile(key, []byte(made.RecoveryKey), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	args = []string{"array", "export", "--data", filepath.Join(away, "none"), "--recovery-key-file", key}
	for _, i := range []int{5, 0, 3, 2} {
		args = append(args, "--disk", filepath.Join(away, fmt.Sprint("d", i)))
	}
	return args, want
}

func fillForExport(t *testing.T, s *object.Store, want map[[2]string][]byte) {
	t.Helper()
	ctx := t.Context()
	put := func(bucket, key string, body []byte, opt object.PutOptions) {
		opt.Size = int64(len(body))
		if _, err := s.Put(ctx, bucket, key, bytes.NewReader(body), opt); err != nil {
			t.Fatal(err)
		}
		want[[2]string{bucket, key}] = body
	}
	multipart := func(key string, o object.UploadOptions, parts ...[]byte) {
		u, err := s.CreateUpload(ctx, "two", key, o)
		done := object.CompleteOptions{Size: -1}
		for i, body := range parts {
			p, perr := s.PutPart(ctx, "two", key, u.ID, i+1, bytes.NewReader(body), object.PartOptions{Size: int64(len(body))})
			done.Parts, err = append(done.Parts, object.CompletePart{Number: p.Number, ETag: p.ETag}), errors.Join(err, perr)
		}
		if _, cerr := s.CompleteUpload(ctx, "two", key, u.ID, done); errors.Join(err, cerr) != nil {
			t.Fatal(err, cerr)
		}
		want[[2]string{"two", key}] = bytes.Join(parts, nil)
	}
	for _, b := range []string{"one", "two"} {
		if _, err := s.CreateBucket(ctx, b, object.Bucket{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, key := range []string{"plain", "a", "a/b", "a//b", "a/b/c", "../x", "../../etc/passwd", "/abs", "dir/", "%2E%2E/x", ".", "..", "ü/ä",
		"bad\xff\xfeutf8", "ctl\x01\n", strings.Repeat("long", 250), "a~%", "%~", strings.Repeat("\x7f", 1000)} {
		put("one", key, fmt.Appendf(nil, "%d %q", i, key), object.PutOptions{Meta: object.Meta{ContentType: "text/x", User: map[string]string{"n": fmt.Sprint(i)}}})
	}
	for i, n := range []int{0, 1, 65520, 65521, 131041, 1 << 20, 3<<20 + 9} {
		put("two", fmt.Sprint("size/", n), bytes.Repeat([]byte{byte(i + 1)}, n), object.PutOptions{Checksum: object.Algo(i % 6)})
	}
	multipart("multi", object.UploadOptions{}, bytes.Repeat([]byte("m"), object.MinPartSize), []byte("end"))
	multipart("composite", object.UploadOptions{Checksum: object.AlgoSHA256, Composite: true}, bytes.Repeat([]byte("c"), 70_000))
	multipart("manifest", object.UploadOptions{Meta: object.Meta{ContentType: strings.Repeat("x", 131_000)}}, bytes.Repeat([]byte("n"), 70_000))
	put("two", "customer", []byte("sealed"), object.PutOptions{SSE: object.SSE{Mode: object.ModeCustomer, CustomerKey: &[32]byte{1}}})
	want[[2]string{"two", "customer"}] = nil
	put("two", "deleted", []byte("x"), object.PutOptions{})
	if err := s.Delete(ctx, "two", "deleted", object.Conditions{}); err != nil {
		t.Fatal(err)
	}
	delete(want, [2]string{"two", "deleted"})
}

// exported reads an export back by its paths alone.
func exported(t *testing.T, dir string) map[[2]string][]byte {
	t.Helper()
	got := map[[2]string][]byte{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if err != nil || d.IsDir() || rel == exportManifest {
			return err
		}
		bucket, key, err := unescapePath(rel)
		got[[2]string{bucket, key}] = readFile(t, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestWorstDay: four of six disks and the recovery key give everything back, byte for byte.
func TestWorstDay(t *testing.T) {
	args, want := worstDay(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	to := filepath.Join(t.TempDir(), "out")
	check := func(args []string, code int, exportedNow, present, failed int) string {
		t.Helper()
		got, out, errText := coffer(t, append(args, "--to", to, "--json")...)
		var rep exportReport
		if err := json.Unmarshal([]byte(out), &rep); err != nil || got != code || rep.Exported != exportedNow || rep.Present != present || rep.Failed != failed {
			t.Fatalf("exit %d, want %d: %v: %s%s", got, code, err, out, errText)
		}
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("left in TMPDIR: %v", left)
		}
		return errText
	}
	check(append(args, "--bucket", "two", "--prefix", "size/"), exitOK, 7, 0, 0)
	all := len(want) - 1
	check(args, exitOK, all-7, 7, 0)
	check(args, exitOK, 0, all, 0)
	got := exported(t, to)
	for k, body := range want {
		if b, ok := got[k]; body != nil && (!ok || !bytes.Equal(b, body)) {
			t.Errorf("%q: %d bytes, want %d", k, len(b), len(body))
		}
	}
	if len(got) != all {
		t.Errorf("%d files, want %d", len(got), all)
	}
	manifest := string(readFile(t, filepath.Join(to, exportManifest)))
	for _, s := range []string{`"status":"skipped","reason":"sealed with a customer key"`, `"checksum_verified":true`, `"key_base64"`, `"metadata":{"n":"3"}`} {
		if !strings.Contains(manifest, s) {
			t.Errorf("manifest lacks %s", s)
		}
	}

	// What an interrupted run leaves: a file that is missing, one cut short, a partial one that is another's second name, half a line.
	plain, multi := filepath.Join(to, "one", "plain"), filepath.Join(to, "two", "multi")
	err := errors.Join(os.Remove(plain), os.Truncate(multi, 3), os.Link(filepath.Join(to, "one", "a%~"), filepath.Join(to, exportPartial)),
		os.WriteFile(filepath.Join(to, exportManifest), []byte(manifest+`{"bucket":"on`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	check(args, exitOK, 2, all-2, 0)
	if got := exported(t, to); len(got) != all || !bytes.Equal(got[[2]string{"two", "multi"}], want[[2]string{"two", "multi"}]) ||
		!bytes.Equal(got[[2]string{"one", "a"}], want[[2]string{"one", "a"}]) {
		t.Error("not made whole")
	}

	// Files of others stay, and links do not lead outside.
	to = t.TempDir()
	outside := t.TempDir()
	err = errors.Join(os.Mkdir(filepath.Join(to, "one"), 0o700), os.WriteFile(filepath.Join(to, "one", "plain"), []byte("mine"), 0o600), os.Symlink(outside, filepath.Join(to, "two")))
	if err != nil {
		t.Fatal(err)
	}
	errText := check(args, exitUnhealthy, 18, 0, all-18)
	if !strings.Contains(errText, "exists and is not of this export") || string(readFile(t, filepath.Join(to, "one", "plain"))) != "mine" {
		t.Errorf("a file of another: %s", errText)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("written outside: %v", left)
	}
}

// Three disks of 4+2 are too few, bad cells beyond parity are reported, and a directory of another export is refused.
func TestExportFaults(t *testing.T) {
	args, want := worstDay(t)
	disks := args[len(args)-8:]
	few := args[:len(args)-2]
	if code, _, errText := coffer(t, append(few[:len(few):len(few)], "--to", t.TempDir())...); code != exitUnhealthy || !strings.Contains(errText, "3 of 6 disks") {
		t.Errorf("three disks: exit %d: %s", code, errText)
	}
	if code, _, errText := coffer(t, args...); code != exitUsage || !strings.Contains(errText, "--to") {
		t.Errorf("no directory: exit %d: %s", code, errText)
	}
	if code, _, errText := coffer(t, append(args[:len(args):len(args)], "--to", t.TempDir(), "--bucket", "three")...); code != exitFailure || !strings.Contains(errText, "no such bucket") {
		t.Errorf("no such bucket: exit %d: %s", code, errText)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, exportManifest), []byte("notes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errText := coffer(t, append(args[:len(args):len(args)], "--to", other)...); code != exitFailure || !strings.Contains(errText, "choose another directory") {
		t.Errorf("a manifest of another: exit %d: %s", code, errText)
	}
	// Bulk cells of one more disk are overwritten: what lies in them is lost, all else comes out.
	ruined := 0
	for off := int64(1 << 20); off+1<<20 <= 64<<20; off += 1 << 20 {
		if head := readAt(t, disks[1], off, disk.BlockSize); string(head[:8]) == "COFFCELL" && head[9] == 4 {
			writeAt(t, disks[1], off+disk.BlockSize, bytes.Repeat([]byte{0xaa}, 1<<20-disk.BlockSize))
			ruined++
		}
	}
	to := t.TempDir()
	code, out, errText := coffer(t, append(args[:len(args):len(args)], "--to", to, "--json")...)
	var rep exportReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != exitUnhealthy || ruined == 0 || rep.Failed == 0 || rep.Exported+rep.Failed != len(want)-1 {
		t.Fatalf("%d bands ruined: exit %d: %v: %s%s", ruined, code, err, out, errText)
	}
	for k, b := range exported(t, to) {
		if !bytes.Equal(b, want[k]) {
			t.Errorf("%q: another body", k)
		}
	}
	if manifest := string(readFile(t, filepath.Join(to, exportManifest))); strings.Count(manifest, `"status":"failed"`) != rep.Failed {
		t.Errorf("manifest does not list %d failures", rep.Failed)
	}
}
