package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"coffer/disk"
)

const identifyHelp = `Identify tells which disk of the machine DISK is, its slot or its path as coffer array status shows them: path,
model, serial number, identity in the array and state. Then it makes the disk show itself for a while: by the
locate LED of its enclosure, if the kernel knows one for it (/sys/class/enclosure), or else by reading from it,
so that its activity LED is lit while those of idle disks are not. It says which of the two it does.

Switching a locate LED takes root. The array is not touched, and may serve meanwhile.`

// identified is the document of `coffer array identify --json`.
type identified struct {
	disk.DiskStatus
	// Shown is how the disk shows itself: "led", "reads", or "" for not at all.
	Shown   string  `json:"shown"`
	LED     string  `json:"led,omitempty"` // the file that switches it
	Seconds float64 `json:"seconds"`
	Fault   string  `json:"fault,omitempty"` // why not, or not by the LED
}

func newIdentifyCommand(e env) *cobra.Command {
	var f arrayFlags
	var d time.Duration
	cmd := &cobra.Command{
		Use:     "identify DISK",
		Short:   "Say which disk it is and make it blink",
		Long:    identifyHelp,
		Example: "  coffer array identify 3\n  coffer array identify /dev/sdd --for 5m\n  coffer array identify 3 --for 0s --json | jq -r .serial",
		Args:    oneDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := diskName(args[0])
			if err != nil {
				return err
			}
			if d < 0 {
				return usageError{errors.New("--for is negative")}
			}
			st, err := f.poll(cmd.Context(), e)()
			if err != nil {
				return err
			}
			doc := identified{Seconds: d.Seconds()}
			for _, s := range st.Disks {
				if s.Path != "" && s.Path == name || strconv.Itoa(s.Slot) == name {
					doc.DiskStatus = s
				}
			}
			if doc.ID == "" {
				return fmt.Errorf("no disk %s in the array", name)
			}
			if !f.json {
				doc.print(e.stdout)
			}
			if d > 0 {
				doc.blink(cmd.Context(), "/sys", d, func() {
					if !f.json {
						doc.printShown(e.stdout, d)
					}
				})
			}
			if f.json {
				return writeJSON(e.stdout, &doc)
			}
			if d > 0 && doc.Shown == "" {
				return fmt.Errorf("make %s show itself: %s", doc.Path, doc.Fault)
			}
			return nil
		},
	}
	f.bindOpen(cmd)
	cmd.Flags().DurationVar(&d, "for", 30*time.Second, "how long the disk shows itself; 0s only tells what it is")
	return cmd
}

func (i *identified) print(w io.Writer) {
	or := func(s string) string {
		if s == "" {
			return "unknown"
		}
		return s
	}
	fmt.Fprintf(w, "slot %d: %s\n  state   %s\n  size    %v\n  model   %s\n  serial  %s\n  id      %s\n",
		i.Slot, or(i.Path), i.State, Size(i.Size), or(i.Model), or(i.Serial), i.ID)
}

func (i *identified) printShown(w io.Writer, d time.Duration) {
	switch i.Shown {
	case "led":
		fmt.Fprintf(w, "its locate LED is lit for %v (%s)\n", d, i.LED)
	case "reads":
		fmt.Fprintf(w, "it is being read for %v: look for the activity LED that is lit all the time (%s)\n", d, i.Fault)
	}
}

// blink makes the disk show itself until d has passed, and calls begun once it does.
func (i *identified) blink(ctx context.Context, sys string, d time.Duration, begun func()) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	led, err := locateLED(sys, i.Path)
	if err == nil {
		if err = os.WriteFile(led, []byte("1\n"), 0); err == nil {
			i.Shown, i.LED = "led", led
			begun()
			<-ctx.Done()
			if err := os.WriteFile(led, []byte("0\n"), 0); err != nil {
				i.Fault = fmt.Sprintf("the LED stays lit: %v", err)
			}
			return
		}
	}
	i.Fault = fmt.Sprintf("no locate LED: %v", err)
	if err := readAll(ctx, i.Path, func() { i.Shown = "reads"; begun() }); err != nil {
		i.Fault += "; " + err.Error()
	}
}

// locateLED finds the file that switches the locate LED of the bay in which the disk at path is
// (Documentation/ABI/testing/sysfs-class-enclosure).
func locateLED(sys, path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", errors.New("not a block device")
	}
	return bayLED(sys, filepath.Join(sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))))
}

// bayLED is locateLED of the block device that sysfs has at node.
func bayLED(sys, node string) (string, error) {
	dir, err := filepath.EvalSymlinks(node)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	device, err := filepath.EvalSymlinks(filepath.Join(dir, "device"))
	if err != nil {
		return "", err
	}
	bays, err := filepath.Glob(filepath.Join(sys, "class/enclosure/*/*/device"))
	if err != nil {
		return "", err
	}
	for _, bay := range bays {
		if at, err := filepath.EvalSymlinks(bay); err == nil && at == device {
			led := filepath.Join(filepath.Dir(bay), "locate")
			_, err := os.Stat(led)
			return led, err
		}
	}
	return "", errors.New("no enclosure has it in a bay")
}

// readAll reads from the disk at path, past the cache, here and there, until ctx ends.
func readAll(ctx context.Context, path string, begun func()) error {
	const chunk = 1 << 20
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	mem := make([]byte, chunk+4096)
	shift := (4096 - int(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%4096)) % 4096 // O_DIRECT wants aligned memory
	for first := true; first || ctx.Err() == nil; first = false {
		if _, err := f.ReadAt(mem[shift:][:chunk], rand.Int64N(max(size/chunk, 1))*chunk); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if first {
			begun()
		}
	}
	return nil
}
