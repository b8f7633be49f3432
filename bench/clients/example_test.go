package clients

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shell runs text as if pasted into a shell in dir, where a README.md lies.
func shell(t *testing.T, dir, text string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte("an example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-eu", "-o", "pipefail")
	cmd.Dir, cmd.Env = dir, append(cleanEnv(), "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE="+filepath.Join(dir, "absent"))
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the example fails: %v\n%s\n%s", err, text, out)
	}
	return string(out)
}

// The example that `make run` prints works as it is printed.
func TestMakeRunExample(t *testing.T) {
	present(t, awsCLI{})
	if why := notOnPath("make"); why != "" {
		counts.skip(t, why)
	}
	dir, err := os.MkdirTemp(workDir, "make-run-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	conf := filepath.Join(dir, "coffer.yaml")
	if err := os.WriteFile(conf, []byte("embedded_disk_size: 256MiB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("make", "-C", "../..", "run", "DATA="+filepath.Join(dir, "data"))
	// The defaults but for what keeps the test apart from a daemon that runs on this machine.
	cmd.Env = append(cleanEnv(), "COFFER_CONFIG="+conf, "COFFER_LISTEN=127.0.0.1:0", "COFFER_ADMIN=127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // the group: make and coffer
		cmd.Wait()                                      // make tells that it was interrupted
	}()
	var text string
	for deadline := time.Now().Add(startTimeout); text == ""; time.Sleep(50 * time.Millisecond) {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, after, ok := bytes.Cut(b, []byte("\nTry:\n")); ok && bytes.Contains(after, []byte("\n\n")) {
			block, _, _ := bytes.Cut(after, []byte("\n\n"))
			text = string(block)
		} else if time.Now().After(deadline) {
			t.Fatalf("no example printed:\n%s", b)
		}
	}
	if got := shell(t, dir, text); !strings.Contains(got, " 11 README.md") {
		t.Errorf("the example lists:\n%s", got)
	}
	counts.add("pasted examples", 1)
}

// The example of the README works with the credentials and the port of a daemon in the place of its own.
func TestReadmeExample(t *testing.T) {
	present(t, awsCLI{})
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllSubmatch(readme, -1) {
		if !bytes.Contains(block[1], []byte("aws ")) {
			continue
		}
		for line := range strings.Lines(string(block[1])) {
			script.WriteString(strings.TrimPrefix(line, "$ "))
		}
	}
	if script.Len() == 0 {
		t.Fatal("the README has no example")
	}
	s := newServer(t, 256)
	text := strings.NewReplacer("AWS_ACCESS_KEY_ID=...", "AWS_ACCESS_KEY_ID="+s.access, "AWS_SECRET_ACCESS_KEY=...", "AWS_SECRET_ACCESS_KEY="+s.secret,
		"127.0.0.1:9000", s.https).Replace(script.String())
	if err := os.Symlink(s.dir, filepath.Join(s.scratch, "data")); err != nil {
		t.Fatal(err)
	}
	shell(t, s.scratch, text)
	f := &fixture{T: t, s: s, c: newSDK(s), bucket: new("first")}
	f.holds("README.md", fmt.Appendln(nil, "an example"))
	s.stop()
	counts.add("pasted examples", 1)
}
