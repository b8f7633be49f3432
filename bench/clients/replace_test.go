package clients

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReplaceKilled ends the process that replaces a disk in the middle, daemon or command, again and again. Each time the next start finds
// either the old disk or the new one in its place, and all that was acknowledged.
func TestReplaceKilled(t *testing.T) {
	rounds := 2
	if soak {
		rounds = 40
	} else {
		t.Parallel()
	}
	d := &torture{drill: &drill{t: t, s: newServer(t, 256)}, size: 256 << 20}
	d.begin(files{d})
	rng := seeded(t)
	c := newSDK(d.s)
	for n := range 24 {
		if err := d.put(t.Context(), c, fmt.Sprintf("before/%d", n), rng.Uint64(), 1<<rng.IntN(22)); err != nil {
			t.Fatal(err)
		}
	}
	taken := 0
	for n := range rounds {
		slot := rng.IntN(6)
		old, path := d.s.status()[slot].Path, d.addDisk()
		how := d.killReplace(rng, n%2 == 0, slot, path)
		d.start()
		now := d.s.status()[slot]
		if now.Path != old && now.Path != path || !slices.Contains([]string{"healthy", "suspect", "rebuilding"}, now.State) {
			t.Errorf("%s: slot %d: %s at %q: %s", how, slot, now.State, now.Path, now.Reason)
		}
		d.l.verify(t, d.s, drillBucket, how)
		if now.Path == path {
			taken++
		}
		d.dropDisks()
		d.s.waitHealthy()
		if paths := string(d.s.read(filepath.Join(d.s.dir, "array.yaml"))); strings.Count(paths, ".img") != 6 || !strings.Contains(paths, now.Path) {
			t.Errorf("%s: array.yaml is\n%s", how, paths)
		}
		t.Logf("%s: %s is in slot %d", how, filepath.Base(now.Path), slot)
	}
	counts.add("replaces killed", int64(rounds))
	counts.add("of which the new disk had its place", int64(taken))
	d.s.stop()
	if out, code := d.array("check", "--repair"); code != 0 && code != 3 {
		t.Errorf("check: exit %d: %s", code, out)
	}
	if out, code := d.array("check", "--deep"); code != 0 {
		t.Errorf("deep check: exit %d: %s", code, out)
	}
}

// killReplace begins to replace the disk in a slot and ends what does it, daemon and command.
func (d *torture) killReplace(rng *rand.Rand, serving bool, slot int, path string) string {
	d.t.Helper()
	longest := 60 * time.Millisecond
	if !serving {
		d.s.stop()
		longest = 500 * time.Millisecond // it opens the array
	}
	after := time.Duration(rng.Int64N(int64(longest)))
	cmd := d.s.command("array", "replace", "--data", d.s.dir, "--config", d.s.config, "--yes", fmt.Sprint(slot), path)
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	time.Sleep(after)
	d.s.kill()
	cmd.Process.Kill() // may have ended
	cmd.Wait()         // fails, mostly
	return fmt.Sprintf("replace of slot %d, serving %t, killed after %v", slot, serving, after.Round(time.Millisecond))
}
