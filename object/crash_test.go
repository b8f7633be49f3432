package object

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/disk"
)

// crash is a store on an array in memory whose power fails while clients, compaction and a scrub are at work.
type crash struct {
	*fixture
	mem   *disk.Memory
	array *disk.Array
	seen  *accesses
	rng   *rand.Rand
}

const (
	crashKeys  = 4
	crashDisks = 6
)

// open starts the store on the array: with the index of before, or without any.
func (c *crash) open() error {
	if c.rng.IntN(2) == 0 {
		c.opt.IndexDir = filepath.Join(c.t.TempDir(), "index")
	}
	s, err := New(c.opt)
	if err != nil {
		return err
	}
	set, err := c.mem.Discover()
	if err != nil {
		return err
	}
	a, err := set.Open(c.t.Context(), disk.Options{Keys: c.keys, State: s, Crypto: c.opt.Crypto, ArenaBytes: 64 << 20})
	if err != nil {
		return err
	}
	s.Start(OnArray(a))
	c.Store, c.array = s, a
	a.StartScrub(disk.ScrubOptions{}).Now()
	return nil
}

// close ends the process; the power may be off.
func (c *crash) close() {
	c.Stop()
	c.array.Close()
	c.Store.Close()
}

func crashBody(k, salt int) []byte { return pattern(1000+k*90000, byte(salt)) }

// read notes what a key holds. Without power it notes nothing.
func (c *crash) read(k int) error {
	key, began := fmt.Sprint("k", k), c.seen.now()
	got, err := c.fixture.read(key, GetOptions{})
	switch {
	case errors.Is(err, ErrNoSuchKey):
		c.seen.note(key, began, false, absent)
	case err != nil:
		return err
	case !bytes.Equal(got, crashBody(k, int(got[0]))):
		return fmt.Errorf("read %s: wrong bytes", key)
	default:
		c.seen.note(key, began, false, int(got[0]))
	}
	return nil
}

// client works until the power fails. What it has asked for by then may have come into effect, or not.
func (c *crash) client(seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	for {
		k, salt := r.IntN(crashKeys), r.IntN(256)
		key, began := fmt.Sprint("k", k), c.seen.now()
		var err error
		value := salt
		switch r.IntN(6) {
		case 0, 1, 2:
			b := crashBody(k, salt)
			_, err = c.Put(c.t.Context(), "b", key, bytes.NewReader(b), PutOptions{Size: int64(len(b))})
		case 3:
			value, err = absent, c.Delete(c.t.Context(), "b", key, Conditions{})
		case 4:
			c.CompactNow(CompactOptions{All: true})
			continue
		default:
			if c.read(k) != nil {
				return
			}
			continue
		}
		if err != nil {
			c.seen.maybe(key, began, value)
			return
		}
		c.seen.note(key, began, true, value)
	}
}

// life runs the clients until the power fails, and starts again.
func (c *crash) life() error {
	c.mem.CutAfter(1 + c.rng.Int64N(600))
	var wg sync.WaitGroup
	for range 5 {
		seed := c.rng.Uint64()
		wg.Go(func() { c.client(seed) })
	}
	wg.Wait()
	c.mem.Cut()
	c.close()
	c.seen.died()
	c.mem.Restore()
	if err := c.open(); err != nil {
		return fmt.Errorf("open after a power cut: %w", err)
	}
	for k := range crashKeys {
		if err := c.read(k); err != nil {
			return err
		}
	}
	return nil
}

// TestCrashLinearizable: clients of the same keys, with compaction and scrubs beside them, while the power fails again and again and at last as many
// disks as parity bears are lost: what they saw and what is left can be put in an order in which every acknowledged write happened, and
// every other one once or never.
func TestCrashLinearizable(t *testing.T) {
	runs := 3
	if testing.Short() {
		runs = 1
	}
	if os.Getenv("COFFER_SOAK") != "" {
		runs = 200
	}
	for range runs {
		seed := uint64(time.Now().UnixNano())
		opt := testOptions(t)
		mem, err := disk.NewMemory(crashDisks, 40<<20)
		if err != nil {
			t.Fatal(err)
		}
		err = mem.Create(t.Context(), disk.CreateOptions{ArrayID: opt.Keys.ArrayID(), Keys: opt.Keys, Geometry: disk.Geometry{Data: 4, Parity: 2, ExtentSize: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		c := &crash{fixture: &fixture{t: t, opt: opt, keys: opt.Keys}, mem: mem, seen: &accesses{byKey: map[string][]access{}}, rng: rand.New(rand.NewPCG(seed, 1))}
		if err := c.run(); err != nil {
			t.Errorf("seed %d (not all that happens follows from it): %v", seed, err)
		}
		c.close()
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			return
		}
	}
}

func (c *crash) run() error {
	if err := c.open(); err != nil {
		return err
	}
	if _, err := c.CreateBucket(c.t.Context(), "b", Bucket{}); err != nil {
		return err
	}
	for k := range crashKeys {
		if err := c.read(k); err != nil {
			return err
		}
	}
	for range 3 {
		if err := c.life(); err != nil {
			return err
		}
	}
	c.close()
	for _, slot := range c.rng.Perm(crashDisks)[:2] {
		if err := c.mem.Wipe(slot); err != nil {
			return err
		}
	}
	if err := c.open(); err != nil {
		return fmt.Errorf("open without two disks: %w", err)
	}
	for k := range crashKeys {
		if err := c.read(k); err != nil {
			return err
		}
	}
	c.seen.check(c.t.(*testing.T))
	return nil
}
