package blockdev

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestSeccomp: where io_uring is forbidden, as by the default profiles of Docker and containerd, a pool takes over and says why.
// The test runs itself again behind such a filter.
func TestSeccomp(t *testing.T) {
	const stage = "COFFER_TEST_SECCOMP"
	switch os.Getenv(stage) {
	case "":
		cmd := exec.Command(os.Args[0], "-test.run=^TestSeccomp$", "-test.v")
		cmd.Env = append(os.Environ(), stage+"=filter")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if bytes.Contains(out, []byte("--- SKIP")) {
			t.Skipf("%s", out)
		}
	case "filter":
		runtime.LockOSThread() // the filter is this thread's, and execve makes it the process's
		if err := forbidUring(); err != nil {
			t.Skip(err)
		}
		os.Setenv(stage, "run")
		t.Fatal(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "run":
		g := group(t, openFiles(t, 3), GroupOptions{Prefer: "uring"})
		if g.Kind() != "pool" || !strings.Contains(g.Reason(), "operation not permitted") {
			t.Errorf("%s: %s", g.Kind(), g.Reason())
		}
		run(t, g, stripe(3, Align, buffer(t, 3*Align, 1), Op{Write: true, Durable: true}))
	}
}

// forbidUring makes io_uring_setup fail with EPERM for the calling thread (seccomp(2)).
func forbidUring() error {
	const allow, refuse = 0x7fff0000, 0x00050000 | uint32(unix.EPERM) // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the system call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IO_URING_SETUP, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: refuse},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
