package blockdev

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// fakeNVMe is a controller that answers what sanitize asks.
type fakeNVMe struct {
	caps       uint32
	namespaces int
	states     []uint16 // of the sanitize log, one after the other
	started    []uint32 // actions
	mute       bool     // it begins, and then knows no sanitize log
}

func (f *fakeNVMe) admin(cmd *nvmeCommand, data []byte) error {
	clear(data)
	le := binary.LittleEndian
	switch {
	case cmd.opcode == nvmeIdentify && cmd.cdw10 == identifyController:
		le.PutUint32(data[sanicapOffset:], f.caps)
	case cmd.opcode == nvmeIdentify && cmd.cdw10 == identifyNamespaces:
		for i := range f.namespaces {
			le.PutUint32(data[4*i:], uint32(i+1))
		}
	case cmd.opcode == nvmeSanitize:
		f.started = append(f.started, cmd.cdw10)
	case cmd.opcode == nvmeGetLog && f.mute:
		return ErrNotOffered
	case cmd.opcode == nvmeGetLog && cmd.cdw10&0xff == logSanitize && cmd.cdw10>>16 == 127:
		le.PutUint16(data, 0x8000)
		le.PutUint16(data[2:], f.states[0])
		f.states = f.states[1:]
	default:
		return errors.New("unexpected command")
	}
	return nil
}

func TestSanitize(t *testing.T) {
	if n := unsafe.Sizeof(nvmeCommand{}); n != 72 {
		t.Fatalf("struct nvme_admin_cmd has %d bytes, want 72", n)
	}
	for _, c := range []struct {
		what    string
		disk    fakeNVMe
		started []uint32
		err     string
	}{
		{"block erase", fakeNVMe{caps: 7, namespaces: 1, states: []uint16{2, 2, 1}}, []uint32{2}, ""},
		{"crypto erase", fakeNVMe{caps: 1, namespaces: 1, states: []uint16{2, 4}}, []uint32{4}, ""},
		{"failed", fakeNVMe{caps: 2, namespaces: 1, states: []uint16{2, 3}}, []uint32{2}, "failed"},
		{"cannot", fakeNVMe{caps: 4, namespaces: 1}, nil, "not offered"},
		{"begun and no more heard of", fakeNVMe{caps: 2, namespaces: 1, mute: true}, []uint32{2}, "begun"},
		{"two namespaces", fakeNVMe{caps: 7, namespaces: 2}, nil, "other namespaces"},
	} {
		var seen []float64
		_, err := sanitize(t.Context(), c.disk.admin, time.Nanosecond, func(p float64) { seen = append(seen, p) })
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || !slices.Equal(c.disk.started, c.started) {
			t.Errorf("%s: %v, started %v", c.what, err, c.disk.started)
		}
		if errors.Is(err, ErrNotOffered) && len(c.disk.started) > 0 {
			t.Errorf("%s: begun, and yet %v", c.what, err)
		}
		if c.err == "" && (seen[0] != 0.5 || seen[len(seen)-1] != 1) {
			t.Errorf("%s: progress %v", c.what, seen)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sanitize(gone, (&fakeNVMe{caps: 2, namespaces: 1}).admin, time.Hour, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWipeOfFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := CreateFile(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	d := openPath(t, path).(Eraser)
	if err := d.SecureDiscard(0, Align); !errors.Is(err, ErrNotOffered) {
		t.Error(err)
	}
	if err := d.Zero(0, Align); !errors.Is(err, ErrNotOffered) {
		t.Error(err)
	}
	if _, err := d.CanSanitize(); !errors.Is(err, ErrNotOffered) {
		t.Error(err)
	}
}

// TestWipeOfBlockDevice zeroes a loop device, which is no NVMe disk.
func TestWipeOfBlockDevice(t *testing.T) {
	d := openLoops(t, 1)[0]
	b := buffer(t, 2*Align, 1)
	for i := range b {
		b[i] = 7
	}
	if err := d.WriteAt(b, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := d.(Eraser).Zero(Align, Align); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(b, 0); err != nil || b[0] != 7 || b[Align] != 0 {
		t.Errorf("%v: %d %d", err, b[0], b[Align])
	}
	if _, err := d.(Eraser).CanSanitize(); !errors.Is(err, ErrNotOffered) {
		t.Error(err)
	}
}

// TestTail: what lies behind the last whole block of a file or device is read and written by an Eraser, and nothing else is touched.
func TestTail(t *testing.T) {
	const size, extra = 1 << 20, 1000
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, size+extra), 0o600); err != nil {
		t.Fatal(err)
	}
	testTail(t, openPath(t, path), extra)
	got, err := os.ReadFile(path)
	if want := slices.Concat(bytes.Repeat([]byte{7}, size), bytes.Repeat([]byte{9}, extra)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file is not what was written: %d bytes, %v", len(got), err)
	}
}

func TestTailOfBlockDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 1<<20+1536), 0o600); err != nil {
		t.Fatal(err)
	}
	loop := attachLoop(t, path, 512)
	testTail(t, openPath(t, loop), 1536)
}

func testTail(t *testing.T, d Device, extra int) {
	t.Helper()
	if l := d.Limits(); l.Size != 1<<20 || l.Tail != extra {
		t.Fatalf("limits %+v", l)
	}
	e, b := d.(Eraser), buffer(t, Align, 0)
	if err := e.ReadTail(b); err != nil || !bytes.Equal(b[:extra], bytes.Repeat([]byte{7}, extra)) {
		t.Errorf("read: %v", err)
	}
	copy(b, bytes.Repeat([]byte{9}, Align))
	if err := e.WriteTail(b); err != nil {
		t.Error(err)
	}
	clear(b)
	if err := e.ReadTail(b); err != nil || !bytes.Equal(b[:extra], bytes.Repeat([]byte{9}, extra)) {
		t.Errorf("read again: %v", err)
	}
	if err := d.ReadAt(b, d.Limits().Size-Align); err != nil || b[Align-1] != 7 {
		t.Errorf("the block before it: %v, %d", err, b[Align-1])
	}
	if err := e.WriteTail(b[:extra]); !errors.Is(err, ErrInvalid) {
		t.Errorf("less than a block: %v", err)
	}
}
