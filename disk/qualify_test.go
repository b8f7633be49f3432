package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCacheVerdict(t *testing.T) {
	us, ms := time.Microsecond, time.Millisecond
	for _, c := range []struct {
		what                  string
		rotational, writeBack bool
		read, durable         time.Duration
		want                  string
	}{
		{"hard disk", true, true, 9 * ms, 8 * ms, CachePlausible},
		{"hard disk that ignores flushes", true, true, 9 * ms, 100 * us, CacheTooFast},
		{"hard disk that says it has no cache, and has", true, false, 9 * ms, 100 * us, CacheTooFast},
		{"hard disk without cache", true, false, 9 * ms, 8 * ms, CacheWriteThrough},
		{"virtual disk that says it turns", true, true, 90 * us, 800 * us, CachePlausible},
		{"flash", false, true, 90 * us, 900 * us, CachePlausible},
		{"flash that ignores flushes", false, true, 90 * us, 15 * us, CacheTooFast},
		{"flash with capacitors", false, false, 90 * us, 15 * us, CacheWriteThrough},
	} {
		if got, why := CacheVerdict(c.rotational, c.writeBack, c.read, c.durable); got != c.want || why == "" {
			t.Errorf("%s: %s (%s), want %s", c.what, got, why, c.want)
		}
	}
}

func TestQualify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := CreateFile(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	opt := QualifyOptions{Span: 20 * time.Millisecond}
	q, err := Qualify(t.Context(), path, opt)
	if err != nil {
		t.Fatal(err)
	}
	if q.SeqRead <= 0 || len(q.RandRead) != len(qualifyDepths) || q.RandRead[0].Rate <= 0 || q.RandRead[0].P50 > q.RandRead[0].Max || q.SeqWrite != 0 || q.Cache != "" {
		t.Errorf("reading: %+v", q)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("reading changed the disk: %v", err)
	}
	opt.Write = true
	if q, err = Qualify(t.Context(), path, opt); err != nil || q.SeqWrite <= 0 || q.Durable == nil || q.FlushDirty == nil || q.Cache == "" || !q.Mix.LargeWrites {
		t.Errorf("writing: %+v, %v", q, err)
	}
	f := newFileArray(t, 1, 1, 0, superArea+16<<20)
	if _, err := Qualify(t.Context(), f.paths[0], opt); !errors.Is(err, ErrHolds) {
		t.Errorf("a member of an array is overwritten: %v", err)
	}
	a := f.open()
	defer a.Close()
	if _, err := Qualify(t.Context(), f.paths[0], QualifyOptions{}); err == nil {
		t.Error("a disk in use is measured")
	}
}
