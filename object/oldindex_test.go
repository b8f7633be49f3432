package object

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"coffer/disk"
)

// resets counts how often a store is told to begin anew.
type resets struct {
	*Store
	n int
}

func (r *resets) Reset() error {
	r.n++
	return r.Store.Reset()
}

// TestOldIndex puts an index back that is older than bands which were freed since: it is rebuilt, what was deleted meanwhile stays so, and
// all else is there.
func TestOldIndex(t *testing.T) {
	t.Run("the band behind it freed", func(t *testing.T) { oldIndex(t, false) })
	t.Run("all freed", func(t *testing.T) { oldIndex(t, true) })
}

func oldIndex(t *testing.T, all bool) {
	r := newRig(t, testOptions(t), 64<<20)
	live := map[string][]byte{}
	put := func(key string, n int) {
		r.put(key, pattern(n, byte(len(live))), PutOptions{})
		live[key] = pattern(n, byte(len(live)))
	}
	// step does something in a packed band of its own, which it returns.
	step := func(do func()) uint64 {
		do()
		if err := r.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		pos, err := r.Position()
		if err != nil {
			t.Fatal(err)
		}
		r.shut()
		r.open(false)
		return pos.Band
	}
	step(func() { put("stays", 1000) })
	var old string
	first := step(func() {
		put("dies", 1000)
		put("dies, large", 300<<10)
		put("is overwritten", 2000)
		put("stays, large", 300<<10)
		if err := r.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		old = filepath.Join(t.TempDir(), "index")
		if err := os.CopyFS(old, os.DirFS(r.opt.IndexDir)); err != nil {
			t.Fatal(err)
		}
	})
	second := step(func() {
		for _, k := range []string{"dies", "dies, large"} {
			if err := r.Delete(t.Context(), "b", k, Conditions{}); err != nil {
				t.Fatal(err)
			}
			delete(live, k)
		}
		put("is overwritten", 500)
		put("is new", 700)
	})
	log := OnArray(r.array)
	for _, b := range log.Bands() {
		if b.Num == second || all && b.Closed {
			c := &compaction{s: r.Store, log: log, pace: r.newPacer(log)}
			if err := c.inTurn(t.Context(), func() error { return c.reclaim(t.Context(), candidate{Band: b}) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if log.CanFree(first) == all || log.CanFree(second) {
		t.Fatal("other bands were freed than were meant to be")
	}
	r.shut()

	opt := r.opt
	opt.IndexDir = old
	var seen *resets
	s, a, err := openMemory(t, opt, r.mem, func(s *Store) disk.State {
		seen = &resets{Store: s}
		return seen
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen.n != 1 {
		t.Errorf("the old index was reset %d times", seen.n)
	}
	f := &fixture{Store: s, t: t}
	for k, body := range live {
		f.want(k, body, GetOptions{})
	}
	for _, k := range []string{"dies", "dies, large"} {
		if _, err := f.read(k, GetOptions{}); !errors.Is(err, ErrNoSuchKey) {
			t.Errorf("get %q: %v", k, err)
		}
	}
	if lost := a.Status().Losses; len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
	f.checkLive()
	s.Stop()
	if err := errors.Join(a.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	r.open(false) // for the end of the test
}
