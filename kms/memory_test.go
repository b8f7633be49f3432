package kms

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"
)

// memoryHelper in the environment makes TestMemoryHelper the process that TestWipedKeysAreGone looks into. Its value is the
// directory of the key file.
const memoryHelper = "COFFER_KMS_MEMORY_HELPER"

// maxScanned leaves out mappings larger than this: address space that a runtime only reserves.
const maxScanned = 512 << 20

// TestWipedKeysAreGone runs the life of a keyring in another process and searches all of that process's memory (proc(5),
// /proc/pid/mem) for the root key, the cell key and a bucket key: they are there while the keyring is open, and nowhere, heap
// and stacks included, after Close. A stack that the runtime moves in the middle of a derivation, about once in fifty runs, leaves copies that the
// package makes no promise of: what is found each time is the keyring's own.
func TestWipedKeysAreGone(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's shadow memory is too large to search")
	}
	var left string
	for range 3 {
		if left = keysLeft(t); left == "" {
			return
		}
		t.Log(left)
	}
	t.Errorf("after Close: %s, three times", left)
}

// keysLeft runs the other process once, and says which keys are in its memory after Close.
func keysLeft(t *testing.T) (left string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryHelper$", "-test.v")
	// The collector moves stacks and leaves what was on them, at moments of its own: what the keyring itself leaves is looked for.
	cmd.Env = append(os.Environ(), memoryHelper+"="+t.TempDir(), "GOGC=off")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	lines := bufio.NewScanner(stdout)
	next := func(prefix string) []string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return strings.Fields(rest)
			}
		}
		t.Fatalf("the other process ended before it said %q", prefix)
		return nil
	}
	keys := next("keys")
	names := []string{"root key", "cell key", "bucket key"}
	for i, n := range searchMemory(t, cmd.Process.Pid, keys) {
		if n == 0 {
			t.Errorf("while open: %s not found: the search is blind", names[i])
		}
	}
	fmt.Fprintln(stdin, "close")
	next("closed")
	for i, n := range searchMemory(t, cmd.Process.Pid, keys) {
		if n > 0 {
			left += fmt.Sprintf("%s found %d times ", names[i], n)
		}
	}
	return left
}

// searchMemory counts in a process the occurrences of each key, given as masked hexadecimal.
func searchMemory(t *testing.T, pid int, masked []string) []int {
	t.Helper()
	keys := make([][]byte, len(masked))
	for i, m := range masked {
		keys[i] = mask(unhex(t, m))
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Skip(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skip(err)
	}
	defer mem.Close()
	found := make([]int, len(keys))
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n != 3 || perms[0] != 'r' || to-from > maxScanned {
			continue
		}
		p := make([]byte, to-from)
		n, _ := mem.ReadAt(p, from) // special mappings such as [vvar] cannot be read
		for i, key := range keys {
			found[i] += bytes.Count(p[:n], key)
		}
	}
	return found
}

// mask keeps keys out of the memory that is searched: its own inverse.
func mask(p []byte) []byte {
	out := make([]byte, len(p))
	for i, b := range p {
		out[i] = b ^ 0xa5
	}
	return out
}

// TestMemoryHelper is the other process.
func TestMemoryHelper(t *testing.T) {
	dir := os.Getenv(memoryHelper)
	if dir == "" {
		t.Skip("runs within TestWipedKeysAreGone")
	}
	file := NewFileSlot(filepath.Join(dir, "key"))
	created, err := Create(t.Context(), testArray, file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := created.NewBucketKey(1)
	if err != nil {
		t.Fatal(err)
	}
	k, _, err := Unlock(t.Context(), testArray, created.Area(), []Slot{file})
	if err != nil {
		t.Fatal(err)
	}
	created.Close()
	kek, err := k.OpenBucketKey(1, b)
	if err != nil {
		t.Fatal(err)
	}
	wrapped := WrapDataKey(kek, new([KeySize]byte), nil)
	if _, err := UnwrapDataKey(kek, wrapped, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := k.AddSlot(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	keys := [][]byte{mask(k.root.view()), mask(k.CellKey()), mask(kek.view())}
	fmt.Printf("\nkeys %s %s %s\n", hex.EncodeToString(keys[0]), hex.EncodeToString(keys[1]), hex.EncodeToString(keys[2]))
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	k.Close()
	fmt.Printf("\nclosed\n")
	io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(kek)
}

// TestDerivedKeysLeaveTheStack searches the stack of a goroutine that derived a key and is still running: without burnStack the
// key lies there several times, left by the hash function.
func TestDerivedKeysLeaveTheStack(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector changes the stack")
	}
	k := testKeyring(t)
	var derived, searched atomic.Bool
	var key *Secret
	var err error
	var here uintptr
	go func() {
		key, err = k.derived(k.root, "some label")
		var mark byte // behind the call, which may have moved the stack
		here = uintptr(unsafe.Pointer(&mark))
		derived.Store(true)
		for !searched.Load() { // no call, so that nothing overwrites the stack below
		}
	}()
	defer searched.Store(true)
	for !derived.Load() {
		runtime.Gosched()
	}
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skip(err)
	}
	defer mem.Close()
	const around = 8 << 10
	stack := make([]byte, 2*around)
	n, _ := mem.ReadAt(stack, int64(here)-around)
	if n < around {
		t.Skipf("read %d bytes of the stack", n)
	}
	if found := bytes.Count(stack[:n], key.view()); found > 0 {
		t.Errorf("derived key found %d times on the stack", found)
	}
}
