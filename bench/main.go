// Command bench measures Coffer's layers against what they stand on, side by side in one run: the sealed store against the same
// store with a cipher that only copies, the engine against plain loops over the same files.
//
// It promises ratios, not absolutes: A and B of a line take turns in short rounds on the same files, each round gives one ratio,
// and the median counts, so that load on the machine meets both alike. It does not measure HTTP, TLS or signatures, and it
// needs a file system with O_DIRECT. What the lines mean is said in docs/benchmarks.md.
//
// Built without the tag coffer_nullcipher it leaves the null cipher's lines out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"coffer/disk"
)

// options are the flags.
type options struct {
	dir     string
	run     *regexp.Regexp
	quick   bool
	json    bool
	rounds  int
	profile string
	objects int // of the scale case
}

// wants reports whether one of the cases was chosen.
func (o *options) wants(cases ...string) bool { return slices.ContainsFunc(cases, o.run.MatchString) }

// suite is a group of cases. Lines of one case come from the same rounds.
type suite struct {
	what  string
	cases []string
	run   func(*bench, context.Context) error
}

var suites = []suite{
	{"sealed against null cipher, 16 MiB objects", []string{"seal/files", "seal/md5", "seal/memory"}, (*bench).seal},
	{"bulk stripes against plain O_DIRECT loops", []string{"engine"}, (*bench).engine},
	{"the engine's large I/O against fio", []string{"streams"}, (*bench).streams},
	{"4 KiB durable puts against a lone durable append loop",
		[]string{"puts/store/1", "puts/store/64", "puts/store/256", "puts/array/1", "puts/array/64", "puts/array/256"}, (*bench).puts},
	{"scrub, rebuild, and reads without a disk", []string{"scrub", "rebuild", "foreground/reads", "foreground/writes", "foreground/appends", "degraded"}, (*bench).repair},
	{"steady overwriting with 85 % of the capacity in use, memory disks",
		[]string{"overwrite/bulk/evenly", "overwrite/bulk/skewed", "overwrite/packed/evenly", "overwrite/packed/skewed"}, (*bench).overwrite},
	{"an index of many objects", []string{"scale"}, (*bench).scale},
	{"4 KiB gets, allocations", []string{"small/read", "small/get", "small/allocs"}, (*bench).small},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.dir, "dir", "", "`directory` for the disk files, removed afterwards (default: the temporary directory)")
	f.BoolVar(&o.quick, "quick", false, "one short round of each line: shows that it works, not how fast it is")
	f.BoolVar(&o.json, "json", false, "print one JSON array instead of a table")
	f.IntVar(&o.rounds, "rounds", 0, "rounds of each line (default 9, or 1 with -quick)")
	f.IntVar(&o.objects, "objects", 0, "objects of the scale case (default 10 million, or 20,000 with -quick)")
	f.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile to `file`")
	pattern := f.String("run", "", "`regexp` of the cases to run, such as seal, engine/read or puts/store/64 (default all)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.rounds <= 0 {
		if o.rounds = 9; o.quick {
			o.rounds = 1
		}
	}
	if o.objects <= 0 {
		if o.objects = 10_000_000; o.quick {
			o.objects = 20_000
		}
	}
	o.run, err = regexp.Compile(*pattern)
	return o, err
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	if len(args) > 0 && args[0] == putUntilKilled {
		return runPutUntilKilled(ctx, args[1:], stdout)
	}
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if os.Getenv("GOMAXPROCS") == "" { // as the daemon does
		runtime.GOMAXPROCS(disk.GoProcs(runtime.NumCPU()))
	}
	r, err := newRig(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	b := &bench{opt: o, rig: r, out: stdout, results: []result{}}
	if !o.json {
		b.header()
	}
	for _, s := range suites {
		if !o.json && o.wants(s.cases...) {
			fmt.Fprintf(stdout, "\n%s\n", s.what)
		}
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	if o.json {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		return e.Encode(b.results)
	}
	return nil
}

// bench collects the lines.
type bench struct {
	opt     options
	rig     *rig
	out     io.Writer
	results []result
}

// result is one line. Without a Ratio it is a count that no noise touches.
type result struct {
	What   string  `json:"what"`
	A      string  `json:"a"` // what is measured
	B      string  `json:"b,omitempty"`
	Ratio  float64 `json:"ratio,omitempty"`
	Target float64 `json:"target,omitempty"`  // the least ratio wanted
	AtMost float64 `json:"at_most,omitempty"` // the greatest ratio wanted
	Met    *bool   `json:"met,omitempty"`
	Note   string  `json:"note,omitempty"`
}

func (b *bench) header() {
	fmt.Fprintf(b.out, "disks: %d files of %d MiB in %s, %d+%d; io: %s; %d rounds by turns, medians\n",
		disks, b.rig.size>>20, b.rig.dir, dataCells, parityCells, b.rig.io, b.opt.rounds)
	fmt.Fprintf(b.out, "%-44s %16s %16s %7s %8s\n", "", "A", "B", "A/B", "target")
}

// add prints a line.
func (b *bench) add(r result) {
	if r.Target > 0 {
		met := r.Ratio >= r.Target
		r.Met = &met
	}
	if r.AtMost > 0 {
		met := r.Ratio <= r.AtMost
		r.Met = &met
	}
	b.results = append(b.results, r)
	if b.opt.json {
		return
	}
	ratio, target := "", ""
	if r.Ratio > 0 {
		ratio = fmt.Sprintf("%.2f", r.Ratio)
	}
	if r.Met != nil {
		sign := ">="
		if r.AtMost > 0 {
			sign = "<="
		}
		target = fmt.Sprintf("%s %g %s", sign, max(r.Target, r.AtMost), map[bool]string{true: "met", false: "MISSED"}[*r.Met])
	}
	line := fmt.Sprintf("%-44s %16s %16s %7s %s", r.What, r.A, r.B, ratio, target)
	fmt.Fprintln(b.out, strings.TrimRight(line, " "))
	if r.Note != "" {
		fmt.Fprintf(b.out, "    %s\n", r.Note)
	}
}

// pick returns full, or small with -quick.
func pick[T any](b *bench, full, small T) T {
	if b.opt.quick {
		return small
	}
	return full
}

// span is the length of a timed slice.
func (b *bench) span(full time.Duration) time.Duration { return pick(b, full, full/8) }
