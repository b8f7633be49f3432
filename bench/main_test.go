package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestMain is also the second process of the scale case, which kills it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == putUntilKilled {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestQuick runs what is fast enough for every test run, and reads the result as another tool would.
func TestQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 2 GiB")
	}
	procs := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(procs)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-quick", "-json", "-dir", t.TempDir(), "-objects", "2000",
		"-run", "engine|streams|puts/.*/64|scale|small|scrub|rebuild|foreground|degraded|overwrite"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	var got []result
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := 28
	if _, err := exec.LookPath("fio"); err == nil {
		want += 3 // what is held against it
	}
	if len(got) != want {
		t.Errorf("%d lines, want %d: %+v", len(got), want, got)
	}
	for _, r := range got {
		if r.What == "" || r.A == "" || (r.Ratio > 0 && r.B == "") || (r.Target+r.AtMost > 0) != (r.Met != nil) || (r.Met != nil && r.Ratio <= 0) {
			t.Errorf("incomplete line %+v", r)
		}
	}
}

func TestStatistics(t *testing.T) {
	if m := median([]float64{9, 1, 5}); m != 5 {
		t.Errorf("median = %v", m)
	}
	if m := median([]int(nil)); m != 0 {
		t.Errorf("median of nothing = %v", m)
	}
	v := make([]time.Duration, 100)
	for i := range v {
		v[i] = time.Duration(i + 1)
	}
	for _, p := range []float64{1, 50, 99, 100} {
		if got := percentile(v, p); got != time.Duration(p) {
			t.Errorf("percentile %v = %v", p, got)
		}
	}
	if rebuildLimit(0) != startTarget || rebuildLimit(10e6) != rebuildTarget {
		t.Errorf("rebuild limits %v, %v", rebuildLimit(0), rebuildLimit(10e6))
	}
	var order []string
	note := func(s string) func() error { return func() error { order = append(order, s); return nil } }
	if err := byTurns(2, note("a"), note("b")); err != nil || !slices.Equal(order, []string{"a", "b", "b", "a"}) {
		t.Errorf("turns %v, %v", order, err)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-run", "("}, {"extra"}, {"-nonsense"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q accepted", args)
		}
	}
}
