package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// hardenProcess keeps the keys in this process's memory from core dumps and from other processes of the same user.
func hardenProcess() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make process non-dumpable: %w", err)
	}
	return nil
}

// notifySystemd tells systemd about the state of the service (sd_notify(3)), such as "READY=1". Without systemd it does nothing.
func notifySystemd(getenv func(string) string, state string) error {
	addr := getenv("NOTIFY_SOCKET")
	if addr == "" {
		return nil
	}
	if strings.HasPrefix(addr, "@") {
		addr = "\x00" + addr[1:] // the abstract namespace
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, state); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// isJournal reports whether w goes to the systemd journal, which keeps what it gets: no place for a secret
// (systemd.exec(5), $JOURNAL_STREAM).
func isJournal(getenv func(string) string, w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var dev, ino uint64
	if n, _ := fmt.Sscanf(getenv("JOURNAL_STREAM"), "%d:%d", &dev, &ino); n != 2 {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && uint64(st.Dev) == dev && st.Ino == ino
}
