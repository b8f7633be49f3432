package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"coffer/disk"
)

// TestInterruptedFirstStart: disk files that never got their superblocks are no array, and a first start begins again.
func TestInterruptedFirstStart(t *testing.T) {
	dir := dataDir(t.TempDir())
	if err := os.MkdirAll(dir.disks(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk0.img", "disk1.img"} {
		if err := disk.CreateFile(filepath.Join(dir.disks(), name), 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	if paths, err := diskPaths(&Config{}, dir); !errors.Is(err, errNoArray) {
		t.Errorf("blank disk files: %v, %v; want errNoArray", paths, err)
	}
	f, err := os.OpenFile(filepath.Join(dir.disks(), "disk1.img"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("XFSB"), 0)
	f.Close()
	if paths, err := diskPaths(&Config{}, dir); err != nil || len(paths) != 2 {
		t.Errorf("disk files that hold something: %v, %v; want both paths", paths, err)
	}
}
