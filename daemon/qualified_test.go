package main

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"coffer/disk"
)

// TestQualifiedDisks: what is measured of a disk is noted, found again by serial number or path, and shown of members.
func TestQualifiedDisks(t *testing.T) {
	dir := dataDir(t.TempDir())
	measured := func(path, serial string, size int64, rate float64) *disk.Qualification {
		return &disk.Qualification{Path: path, Serial: serial, Size: size, SeqRead: rate, RandRead: []disk.DepthPoint{{Rate: 10}, {Rate: 30}, {Rate: 20}}}
	}
	for _, q := range []*disk.Qualification{
		measured("/dev/a", "S1", 100, 1), measured("/dev/b", "", 100, 2), measured("/dev/c", "S1", 100, 3), measured("/dev/b", "", 200, 4), measured("/dev/d", "", 100, 0),
	} {
		if err := dir.noteQualified(q); err != nil {
			t.Fatal(err)
		}
	}
	find := dir.model(slog.New(slog.DiscardHandler))
	for _, c := range []struct {
		path, serial string
		size         int64
		want         float64 // 0: not found
	}{
		{"/dev/elsewhere", "S1", 100, 3}, // the later measurement has taken the place of the first
		{"/dev/a", "", 100, 0},
		{"/dev/b", "S2", 100, 0}, // another disk by that name
		{"/dev/b", "", 100, 2},
		{"/dev/b", "", 200, 4},
		{"/dev/b", "", 300, 0},
		{"/dev/d", "", 100, 0}, // nothing that makes a model
	} {
		m := find(c.path, c.serial, c.size)
		if got := m != nil; got != (c.want > 0) || got && (m.ReadBandwidth != c.want || m.WriteBandwidth != c.want || m.ReadRate != 30 || m.WriteRate != 30) {
			t.Errorf("%s %q %d: %+v, want bandwidth %v", c.path, c.serial, c.size, m, c.want)
		}
	}
	if err := os.WriteFile(dir.qualified(), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m := find("/dev/b", "", 100); m != nil {
		t.Errorf("rubbish: %+v", m)
	}
	if err := dir.noteQualified(measured("/dev/b", "", 100, 2)); err == nil || !strings.Contains(err.Error(), dir.qualified()) {
		t.Errorf("rubbish was written over: %v", err)
	}
}

// TestQualifyMember measures a member of an array: the array knows from then on, unless it was measured while most of it was blank.
func TestQualifyMember(t *testing.T) {
	dir := t.TempDir()
	path := newDiskFile(t, dir, "a", 64<<20)
	full := strings.Repeat("not blank", 7<<20)
	for _, c := range []struct{ args, text string }{
		{"create --yes --disk " + path, "array"},
		{"qualify --duration 1ms " + path, "blocks that were never written"},
		{"qualify --duration 1ms " + path, "noted in " + dataDir(dir).qualified()},
		{"status --json", `"read_bandwidth"`},
	} {
		if strings.HasPrefix(c.text, "noted") {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte(full[:63<<20]), 1<<20); err != nil { // behind the superblocks
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if code, out, errText := coffer(t, strings.Fields("array "+c.args+" --data "+dir)...); code != exitOK || !strings.Contains(out+errText, c.text) {
			t.Errorf("%s: exit %d: %s%s", c.args, code, out, errText)
		}
	}
}
