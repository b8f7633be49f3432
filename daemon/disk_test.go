package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/disk"
)

// newDiskFile makes another disk beside an embedded array.
func newDiskFile(t *testing.T, dir, name string, size int64) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := disk.CreateFile(p, size); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDiskCommands adds disks and a spare beside a daemon, drains another, lets the spare take a lost one's place, and removes a disk
// without a daemon.
func TestDiskCommands(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TZ", "UTC")
	conf := writeTemp(t, "coffer.yaml", "embedded_disk_size: 256MiB\nspare: {grace: 1s}\n")
	in := startDaemon(t, dir, nil, "--config", conf)
	body := bytes.Repeat([]byte("drain me "), 400_000)
	in.want(t, http.StatusOK, http.MethodPut, in.https+"/bucket", nil)
	in.want(t, http.StatusOK, http.MethodPut, in.https+"/bucket/key", body)
	st := statusOf(t, dir)
	size := st.Disks[0].Size
	extra, spare, tiny := newDiskFile(t, dir, "extra.img", size), newDiskFile(t, dir, "spare.img", size), newDiskFile(t, dir, "tiny.img", 2<<20)

	run := func(args string) (int, string) {
		code, out, errText := coffer(t, strings.Fields("array "+args+" --data "+dir)...)
		return code, out + errText
	}
	for _, c := range []struct {
		args string
		code int
		text string
	}{
		{"remove 2 --dry-run", exitFailure, "need 6 disks, and 5 would be left: add a disk first"},
		{"remove 9 --yes", exitFailure, "no disk 9"},
		{"remove --yes", exitUsage, "one argument"},
		{"add --yes", exitUsage, "no disks"},
		{"add --yes " + st.Disks[1].Path, exitFailure, "in use"},
		{"add --yes " + tiny, exitFailure, "cannot be added"},
		{"add --dry-run " + tiny, exitFailure, "cannot be added"},
		{"add --dry-run " + extra, exitOK, "nothing was changed"},
		{"add " + extra, exitFailure, "nothing was written"},
		{"remove 2 --cancel", exitFailure, "not being drained"},
		{"add --yes " + extra, exitOK, "slot 6: " + extra + " is a member"},
		{"add --yes --spare " + spare, exitOK, "slot 7: " + spare + " is a spare"},
		{"add --yes --spare " + spare, exitFailure, "in use"},
		{"identify 7 --for 0s", exitOK, spare},
		{"identify 8 --for 0s", exitFailure, "no disk 8"},
		{"identify 3 --for 100ms", exitOK, "it is being read for 100ms"},
		{"remove 2 --dry-run", exitOK, "extents to be moved to 6 other disks"},
		{"remove 2", exitFailure, "nothing was changed"},
		{"remove 2 --yes --wait", exitOK, "slot 2 is empty"},
		{"remove 2 --yes", exitFailure, "no disk 2"},
		{"status", exitOK, "spare"},
	} {
		if code, text := run(c.args); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s: exit %d: %s", c.args, code, text)
		}
	}
	note := string(readFile(t, filepath.Join(dir, "array.yaml")))
	if strings.Contains(note, "disk2.img") || !strings.Contains(note, extra) || !strings.Contains(note, spare) {
		t.Errorf("noted: %s", note)
	}
	metrics := string(in.want(t, http.StatusOK, http.MethodGet, in.admin+"/metrics", nil))
	for _, want := range []string{`coffer_disk_state{disk="7",state="spare"} 1`, `coffer_disk_state{disk="6",state="healthy"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	in.end(t)

	if err := os.Remove(st.Disks[4].Path); err != nil {
		t.Fatal(err)
	}
	creds := in.creds
	in = startDaemon(t, dir, nil, "--config", conf)
	in.creds = creds
	if err := waitRebuilt(t.Context(), new(bytes.Buffer), 4, func() (*arrayStatus, error) {
		s := statusOf(t, dir)
		if i := slices.IndexFunc(s.Disks, func(d disk.DiskStatus) bool { return d.Slot == 4 && d.State == disk.DiskMissing }); i >= 0 {
			s.Disks[i].State = disk.DiskRebuilding // not yet
		}
		return &s, nil
	}); err != nil {
		t.Error(err)
	}
	s := statusOf(t, dir)
	if i := slices.IndexFunc(s.Disks, func(d disk.DiskStatus) bool { return d.Slot == 4 }); s.State != "healthy" || s.Disks[i].Path != spare || len(s.Disks) != 6 {
		t.Errorf("with the spare used: %s %+v", s.State, s.Disks)
	}
	if got := in.want(t, http.StatusOK, http.MethodGet, in.https+"/bucket/key", nil); !bytes.Equal(got, body) {
		t.Error("the object is another")
	}
	in.end(t)

	more := newDiskFile(t, dir, "more.img", size)
	for _, args := range []string{"add --yes --json " + more, "remove 0 --yes --json"} {
		if code, text := run(args); code != exitOK {
			t.Errorf("%s: exit %d: %s", args, code, text)
		}
	}
	code, out, _ := coffer(t, "array", "status", "--json", "--data", dir)
	var last arrayStatus
	if err := json.Unmarshal([]byte(out), &last); err != nil || code != exitOK || last.Disks[0].Slot == 0 {
		t.Errorf("in the end: exit %d, %v: %s", code, err, out)
	}
}

// TestLocateLED finds the LED of a disk's bay in a recorded tree.
func TestLocateLED(t *testing.T) {
	sys := t.TempDir()
	link := func(target, name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(sys, target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, target), filepath.Join(sys, name)); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"sda", "sdb", "sdc"} {
		device := fmt.Sprintf("devices/pci/host0/target%d/0:0:%d:0", i, i)
		link(device, device+"/block/"+name+"/device")
		link(device+"/block/"+name, fmt.Sprintf("dev/block/8:%d", 16*i))
		if i < 2 {
			link(device, fmt.Sprintf("class/enclosure/0:0:9:0/Slot %d/device", i))
			if err := os.WriteFile(filepath.Join(sys, fmt.Sprintf("class/enclosure/0:0:9:0/Slot %d/locate", i)), []byte("0\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	part := filepath.Join(sys, "devices/pci/host0/target1/0:0:1:0/block/sdb/sdb1")
	if err := os.MkdirAll(part, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(part, "partition"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(part, filepath.Join(sys, "dev/block/8:17")); err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string]string{"8:0": "Slot 0/locate", "8:16": "Slot 1/locate", "8:17": "Slot 1/locate", "8:32": "", "8:48": ""} {
		led, err := bayLED(sys, filepath.Join(sys, "dev/block", node))
		if (err == nil) != (want != "") || want != "" && !strings.HasSuffix(led, want) {
			t.Errorf("%s: %q, %v", node, led, err)
		}
	}
}
