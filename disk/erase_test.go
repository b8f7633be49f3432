package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/disk/internal/blockdev"
)

// eraserDisk is a disk in memory with an erasing firmware.
type eraserDisk struct {
	blockdev.Device
	discards, sanitizes bool  // what it offers
	lies                bool  // it says that it erased, and did not
	declines            bool  // it says that it can be sanitized, and then that it cannot
	refuses             int64 // writes to this offset fail, if above 0
}

func (d *eraserDisk) erase(off, n int64) error {
	if d.lies {
		return nil
	}
	b := blockdev.NewArena(blockdev.ArenaOptions{Limit: 1 << 20})
	defer b.Close()
	buf, err := b.Get(context.Background(), BlockSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	clear(buf.Bytes()[:BlockSize])
	for ; n > 0; off, n = off+BlockSize, n-BlockSize {
		if err := d.WriteAt(buf.Bytes()[:BlockSize], off, false); err != nil {
			return err
		}
	}
	return nil
}

func (d *eraserDisk) SecureDiscard(off, n int64) error {
	if !d.discards {
		return blockdev.ErrNotOffered
	}
	return d.erase(off, n)
}

func (d *eraserDisk) Zero(int64, int64) error { return blockdev.ErrNotOffered }

func (d *eraserDisk) CanSanitize() (string, error) {
	if !d.sanitizes {
		return "", blockdev.ErrNotOffered
	}
	return "block erase", nil
}

func (d *eraserDisk) Sanitize(_ context.Context, progress func(float64)) (string, error) {
	if d.declines {
		return "", blockdev.ErrNotOffered
	}
	progress(1)
	return "block erase", d.erase(0, d.Limits().Size)
}

func (d *eraserDisk) ReadTail([]byte) error  { panic("no tail") }
func (d *eraserDisk) WriteTail([]byte) error { panic("no tail") }

func (d *eraserDisk) Limits() blockdev.Limits {
	l := d.Device.Limits()
	l.Kind, l.Model, l.Serial = "block", "Fake", "S1"
	return l
}

func (d *eraserDisk) WriteAt(p []byte, off int64, durable bool) error {
	if d.refuses > 0 && off <= d.refuses && d.refuses < off+int64(len(p)) {
		return errors.New("medium error")
	}
	return d.Device.WriteAt(p, off, durable)
}

// TestErase: by each method nothing of what was there is left, and a disk that lies or refuses is found out.
func TestErase(t *testing.T) {
	const size = 12 << 20
	for _, c := range []struct {
		what   string
		disk   eraserDisk
		method EraseMethod
		used   EraseMethod
		err    string
	}{
		{"auto, sanitize", eraserDisk{sanitizes: true, discards: true}, EraseAuto, EraseSanitize, ""},
		{"auto, discard", eraserDisk{discards: true}, "", EraseDiscard, ""},
		{"auto, neither", eraserDisk{}, "", EraseRandom, ""},
		{"zeros", eraserDisk{sanitizes: true}, EraseZero, EraseZero, ""},
		{"auto, sanitize declined", eraserDisk{sanitizes: true, declines: true, discards: true}, EraseAuto, EraseDiscard, ""},
		{"auto, sanitize declined and no discard", eraserDisk{sanitizes: true, declines: true}, EraseAuto, EraseRandom, ""},
		{"sanitize declined", eraserDisk{sanitizes: true, declines: true}, EraseSanitize, "", "not offered"},
		{"sanitize that is not offered", eraserDisk{discards: true}, EraseSanitize, "", "not offered"},
		{"discard that is not offered", eraserDisk{}, EraseDiscard, "", "not offered"},
		{"unknown", eraserDisk{}, "burn", "", `"burn" is none of`},
		{"sanitize that lies", eraserDisk{sanitizes: true, lies: true}, "", EraseSanitize, "50 are not erased"},
		{"discard that lies", eraserDisk{discards: true, lies: true}, "", EraseDiscard, "50 are not erased"},
		{"bad sector", eraserDisk{refuses: 5 << 20}, EraseRandom, EraseRandom, "4194304 bytes were not overwritten"},
	} {
		mem, err := blockdev.NewMemDisk(size)
		if err != nil {
			t.Fatal(err)
		}
		d := c.disk
		d.Device = mem
		arena := newArena(8 << 20)
		buf, err := arena.Get(t.Context(), 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		fillDisk(t, mem, 0, size)
		last := int64(-1)
		cert, err := eraseDevice(t.Context(), &d, EraseOptions{Path: "x", Method: c.method, Samples: 50, Progress: func(done, total int64) {
			if done < 0 || total != size {
				t.Errorf("%s: progress %d of %d", c.what, done, total)
			}
			last = max(last, done)
		}})
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", c.what, err)
		}
		if (cert != nil) != (c.used != "") || cert != nil && (cert.Method != c.used || (cert.Result == "erased") != (c.err == "")) {
			t.Errorf("%s: %+v", c.what, cert)
		}
		if cert != nil && (cert.Serial != "S1" || cert.Size != size || cert.Ended.Before(cert.Started)) {
			t.Errorf("%s: %+v", c.what, cert)
		}
		if errors.Is(err, ErrErase) != (cert != nil && err != nil) {
			t.Errorf("%s: certificate %v with error %v", c.what, cert != nil, err)
		}
		if c.err == "" {
			if last != size {
				t.Errorf("%s: progress ended at %d", c.what, last)
			}
			for off := int64(0); off < size; off += 4 << 20 {
				if err := mem.ReadAt(buf.Bytes()[:4<<20], off); err != nil || bytes.Contains(buf.Bytes()[:4<<20], []byte("secret")) {
					t.Errorf("%s: at %d something is left, %v", c.what, off, err)
				}
			}
		}
		buf.Release()
		arena.Close()
		mem.Close()
	}
}

// TestEraseHolding: what is on a disk is known before it is destroyed, and the caller may forbid that.
func TestEraseHolding(t *testing.T) {
	f := newFileArray(t, 4, 2, 1, replaceSize)
	a := f.open()
	if _, _, err := PlanErase(f.paths[0], EraseAuto); !errors.Is(err, blockdev.ErrInUse) {
		t.Errorf("a disk of an open array: %v", err)
	}
	if err := a.Remove(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	until(t, a, "drained", func(s Status) bool { return !s.has(3) })
	c, h, err := PlanErase(f.paths[3], EraseAuto)
	if err != nil || !h.Retired || h.Slot != 3 || c.Method != EraseRandom {
		t.Errorf("retired: %+v %+v %v", c, h, err)
	}
	if c, err := Erase(t.Context(), EraseOptions{Path: f.paths[3], Samples: 100}); err != nil || c.Samples != 100 || c.Slot != 3 || !strings.Contains(c.Held, "retired") {
		t.Errorf("%+v, %v", c, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(f.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	forbidden := errors.New("forbidden")
	_, err = Erase(t.Context(), EraseOptions{Path: f.paths[0], Permit: func(h Holding) error {
		if h.Retired || h.ArrayID == "" {
			t.Errorf("a member: %+v", h)
		}
		return forbidden
	}})
	after, e := os.ReadFile(f.paths[0])
	if !errors.Is(err, forbidden) || e != nil || !bytes.Equal(before, after) {
		t.Errorf("forbidden: %v, %v", err, e)
	}
	if _, h, err := PlanErase(f.paths[3], EraseZero); err != nil || h.Text != "" {
		t.Errorf("an erased disk: %+v, %v", h, err)
	}
}

// tailDisk is a disk that does not take its tail.
type tailDisk struct{ eraserDisk }

func (d *tailDisk) Limits() blockdev.Limits {
	l := d.eraserDisk.Limits()
	l.Tail = 512
	return l
}

func (d *tailDisk) ReadTail(p []byte) error { clear(p); return nil }
func (d *tailDisk) WriteTail([]byte) error  { return errors.New("medium error") }

// TestEraseTail: what lies behind the last whole block is erased too, or the erasure has failed.
func TestEraseTail(t *testing.T) {
	const size = 24<<20 + 1000
	path := filepath.Join(t.TempDir(), "disk")
	for _, m := range []EraseMethod{EraseRandom, EraseZero} {
		if err := os.WriteFile(path, bytes.Repeat([]byte("secret. "), size/8), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Erase(t.Context(), EraseOptions{Path: path, Method: m, Samples: 50})
		if err != nil || c.Size != size || c.Samples != 50 || c.Nonzero != 50 || c.Unwritten != 0 {
			t.Errorf("%s: %+v, %v", m, c, err)
		}
		if got, err := os.ReadFile(path); err != nil || len(got) != size || bytes.Contains(got, []byte("secret")) {
			t.Errorf("%s: of %d bytes something is left, %v", m, len(got), err)
		}
	}
	mem, err := blockdev.NewMemDisk(12 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	d := tailDisk{eraserDisk{Device: mem}}
	c, err := eraseDevice(t.Context(), &d, EraseOptions{Samples: 50})
	if !errors.Is(err, ErrErase) || c.Unwritten != 512 || c.Result != "failed" || !strings.Contains(c.Failure, "512 bytes were not overwritten") {
		t.Errorf("a tail that is not taken: %+v, %v", c, err)
	}
}

// TestEraseProof: a disk that erased itself is believed by what it held alone, and that is looked for.
func TestEraseProof(t *testing.T) {
	for _, c := range []struct {
		what  string
		bytes int64 // written at 8 MiB
		lies  bool
		wrong bool // is found out
		err   string
	}{
		{"a twentieth in use", 13 << 20, false, false, ""},
		{"a twentieth in use, lies", 13 << 20, true, true, "are not erased"},
		{"blank", 0, false, false, "nothing proves"},
	} {
		mem, err := blockdev.NewMemDisk(256 << 20)
		if err != nil {
			t.Fatal(err)
		}
		d := eraserDisk{Device: mem, sanitizes: true}
		fillDisk(t, mem, 8<<20, c.bytes)
		d.lies = c.lies
		cert, err := eraseDevice(t.Context(), &d, EraseOptions{Samples: 200})
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", c.what, err)
		}
		// 100 of the samples are anywhere, 5 of them used; of 800 places looked at beyond that 40 are used.
		if low := min(int(c.bytes>>20), 20); cert.Samples != 200 || cert.Nonzero < low || cert.Nonzero > 100 {
			t.Errorf("%s: %d samples, %d held something", c.what, cert.Samples, cert.Nonzero)
		}
		if c.wrong != (cert.Wrong > 0) || c.wrong && cert.Wrong != cert.Nonzero {
			t.Errorf("%s: %d wrong of %d", c.what, cert.Wrong, cert.Nonzero)
		}
		mem.Close()
	}
}

// TestEraseMember: of a disk whose superblock tells where extents are, the few in use are found.
func TestEraseMember(t *testing.T) {
	f := newFileArray(t, 3, 2, 1, 256<<20)
	a := f.open()
	if _, err := writeStripe(a, 1, 8); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := Erase(t.Context(), EraseOptions{Path: f.paths[0], Samples: 400})
	if err != nil || c.Samples != 400 {
		t.Fatalf("%+v, %v", c, err)
	}
	if c.Nonzero < 50 { // by chance alone some ten
		t.Errorf("%d of %d samples held something", c.Nonzero, c.Samples)
	}
}

// fillDisk writes n bytes at off.
func fillDisk(t *testing.T, d blockdev.Device, off, n int64) {
	t.Helper()
	arena := newArena(4 << 20)
	defer arena.Close()
	buf, err := arena.Get(t.Context(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Release()
	b := buf.Bytes()[:1<<20]
	copy(b, bytes.Repeat([]byte("secret. "), len(b)/8))
	for end := off + n; off < end; off += int64(len(b)) {
		if err := d.WriteAt(b, off, true); err != nil {
			t.Fatal(err)
		}
	}
}
