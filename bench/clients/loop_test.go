package clients

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// loops are block devices on files: each path is a link to one while it is attached.
type loops struct {
	t    *testing.T
	devs map[string]string // by path
}

func newLoops(t *testing.T) *loops {
	l := &loops{t: t, devs: map[string]string{}}
	t.Cleanup(func() {
		for path := range l.devs {
			l.detach(path)
		}
	})
	return l
}

// noLoops says why there are no loop devices here, "" if there are.
func noLoops() string {
	if os.Getuid() != 0 {
		return "block devices need root"
	}
	if _, err := exec.LookPath("losetup"); err != nil {
		return "losetup is not installed"
	}
	if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
		return fmt.Sprintf("no loop devices: %s", out)
	}
	return ""
}

// attach makes path a link to a block device that passes reads, writes and flushes on to file.
func (l *loops) attach(path, file string) {
	l.t.Helper()
	var out []byte
	var err error
	for range 20 { // another process may take the free device that losetup has found
		if out, err = exec.Command("losetup", "-f", "--show", "--direct-io=on", file).Output(); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, e.Stderr)
		}
		l.t.Fatalf("losetup %s: %v", file, err)
	}
	dev := strings.TrimSpace(string(out))
	l.devs[path] = dev
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Symlink(dev, path)); err != nil {
		l.t.Fatal(err)
	}
}

// detach removes the device and the link. The ring of a process that was killed may hold the device for a moment; the kernel then
// detaches it when the ring is gone.
func (l *loops) detach(path string) {
	l.t.Helper()
	if out, err := exec.Command("losetup", "-d", l.devs[path]).CombinedOutput(); err != nil {
		l.t.Errorf("losetup -d: %v: %s", err, out)
	}
	delete(l.devs, path)
	if err := os.Remove(path); err != nil {
		l.t.Error(err)
	}
}
