package clients

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Set by TestMain before the first test and not changed afterwards.
var (
	cofferBin string
	workDir   string // of all data directories; removed at the end
	soak      = os.Getenv("COFFER_SOAK") != ""
	devices   = soak || os.Getenv("COFFER_DEVICES") != ""
	counts    tally
)

// tally counts what ran and what did not.
type tally struct {
	mu      sync.Mutex
	numbers map[string]int64
	skipped []string
}

func (c *tally) add(what string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.numbers == nil {
		c.numbers = map[string]int64{}
	}
	c.numbers[what] += n
}

// skip ends the test, and says so in the summary too: go test shows it otherwise only with -v.
func (c *tally) skip(t *testing.T, why string) {
	t.Helper()
	c.mu.Lock()
	c.skipped = append(c.skipped, t.Name()+": "+why)
	c.mu.Unlock()
	t.Skip(why)
}

// needsDevices skips a test of faulty devices, unless these are wanted and nothing, says absent, is in the way.
func needsDevices(t *testing.T, absent string) {
	t.Helper()
	if !devices {
		absent = "COFFER_DEVICES=1 selects it"
	}
	if absent != "" {
		counts.skip(t, absent)
	}
}

func (c *tally) print(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	form := "default form; COFFER_SOAK=1 selects the long one"
	if soak {
		form = "long form"
	}
	fmt.Printf("clients: %s, %v\n", form, took.Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(c.numbers)) {
		fmt.Printf("  %-52s %12d\n", what, c.numbers[what])
	}
	fmt.Printf("  %-52s %12d\n", "skipped", len(c.skipped))
	for _, s := range c.skipped {
		fmt.Println("    " + s)
	}
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	start := time.Now()
	dir, err := diskDir()
	if err == nil {
		workDir, err = os.MkdirTemp(dir, "coffer-clients-")
	}
	if err == nil {
		defer os.RemoveAll(workDir)
		cofferBin, err = build(workDir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		return 1
	}
	code := m.Run()
	counts.print(time.Since(start))
	return code
}

// build returns the binary to test.
func build(dir string) (string, error) {
	if bin := os.Getenv("COFFER_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	bin := filepath.Join(dir, "coffer")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "./daemon")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build coffer: %w\n%s", err, out)
	}
	return bin, nil
}

const tmpfsMagic = 0x01021994 // statfs(2)

// diskDir finds a directory on a real file system: disks in memory would prove little.
func diskDir() (string, error) {
	candidates := []string{os.TempDir(), "/var/tmp", "."}
	if dir := os.Getenv("COFFER_TEST_DIR"); dir != "" {
		candidates = []string{dir}
	}
	for _, dir := range candidates {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err == nil && st.Type != tmpfsMagic {
			return filepath.Abs(dir)
		}
	}
	return "", errors.New("no directory on a disk: set COFFER_TEST_DIR")
}

// freeBytes is the space that tests may use.
func freeBytes(t *testing.T) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(workDir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}
