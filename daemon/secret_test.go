package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		return path
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	go os.WriteFile(pipe, []byte("of a pipe\n"), 0)
	for path, want := range map[string]string{
		file("plain", "correct horse\n", 0o600): "correct horse",
		file("group", "of a group\r\n", 0o640):  "of a group",
		file("bare", "no newline", 0o400):       "no newline",
		pipe:                                    "of a pipe",
	} {
		if got, err := readSecret(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for path, want := range map[string]string{
		file("open", "for all\n", 0o644):                "chmod 600 ",
		file("writable", "for all\n", 0o602):            "chmod 600 ",
		file("empty", "", 0o600):                        "it is empty",
		file("long", strings.Repeat("x", 1<<12), 0o600): "longer than",
		filepath.Join(dir, "absent"):                    "no such file",
	} {
		if got, err := readSecret(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}
