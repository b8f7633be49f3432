package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"coffer/disk/internal/blockdev"
)

// eraserDisk is a disk in memory with an erasing firmware.
type eraserDisk struct {
	blockdev.Device
	discards, sanitizes bool  // what it offers
	lies                bool  // it says that it erased, and did not
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
	progress(1)
	return "block erase", d.erase(0, d.Limits().Size)
}

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
		secret := bytes.Repeat([]byte("secret. "), 4<<20/8)
		copy(buf.Bytes(), secret)
		for off := int64(0); off < size; off += 4 << 20 {
			if err := mem.WriteAt(buf.Bytes()[:4<<20], off, true); err != nil {
				t.Fatal(err)
			}
		}
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
