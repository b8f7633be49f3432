package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coffer/disk"
)

const eraseHelp = `Erase destroys what a disk that has left the array holds, reads samples of it back, and prints a certificate
that says what was done and with what result. What Coffer wrote to it is sealed and unreadable without the
keys as it is; rules for the disposal of disks may ask for more.

Methods:

    sanitize        NVMe Sanitize: block erase, else crypto erase; the spare areas too. Not if the disk has
                    other namespaces, which would be erased as well
    secure-discard  the disk destroys its blocks and their copies (BLKSECDISCARD)
    random          every block is overwritten with random bytes, once
    zero            every block is overwritten with zeros, by the disk itself where it can (BLKZEROOUT)
    auto            the first of sanitize and secure-discard that the disk offers, else random; one that the disk
                    declines at its start is passed over

Overwriting does not reach blocks that a disk has replaced by spare ones. Afterwards samples all over the disk,
its first and last block and the places of superblocks among them, are read past all caches: of what was
overwritten they must be what was written, else they must not be what was there before. Half of the samples are
looked for where something is, and the certificate says how many held something: of a disk that erases itself the
others prove nothing, and if there are only such, the disk counts as not erased; --method random can be proved.

A disk that is in use is always refused. One that was removed from the array, and one that holds nothing, are
erased as they are; --force does it to one that holds something else, and --force given twice to one whose
superblock says that it is a member of an array: such is also the old disk after coffer array replace.

Exit code 0 if the disk is erased, 1 if not, or not all of it: then the certificate says what is left.`

// eraseFlags are those of `coffer array erase`.
type eraseFlags struct {
	arrayFlags
	method      string
	certificate string
	samples     int
	force       int
	dryRun, yes bool
}

func newEraseCommand(e env) *cobra.Command {
	var f eraseFlags
	cmd := &cobra.Command{
		Use:   "erase DEV",
		Short: "Destroy what a retired disk holds, with a certificate",
		Long:  eraseHelp,
		Example: `  coffer array erase /dev/sdd --dry-run
  coffer array erase /dev/disk/by-id/nvme-d --certificate d.txt
  coffer array erase /dev/sdd --method zero --yes --json > d.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("one argument wanted: the path of the disk")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, e, args[0]) },
	}
	f.bind(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.method, "method", string(disk.EraseAuto), "sanitize, secure-discard, random, zero or auto")
	fl.StringVar(&f.certificate, "certificate", "", "write the certificate to a `FILE` as well")
	fl.IntVar(&f.samples, "samples", 0, "how many blocks are read back (default 1000)")
	fl.CountVar(&f.force, "force", "erase a disk that holds something; twice: one that is a member of an array")
	fl.BoolVar(&f.dryRun, "dry-run", false, "show what the disk holds and how it would be erased, and change nothing")
	fl.BoolVar(&f.yes, "yes", false, "do not ask")
	if err := cmd.RegisterFlagCompletionFunc("method", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, m := range disk.EraseMethods() {
			names = append(names, string(m))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}); err != nil {
		panic("daemon: " + err.Error())
	}
	return cmd
}

func (f *eraseFlags) run(cmd *cobra.Command, e env, arg string) error {
	path, err := filepath.Abs(arg)
	if err != nil {
		return err
	}
	if f.samples < 0 {
		return usageError{errors.New("--samples is negative")}
	}
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	own := ""
	if note, err := readNote(dataDir(cfg.Data)); err == nil {
		own = note.ArrayID
	}
	permit := func(h disk.Holding) error { return f.permit(path, own, h) }
	plan, h, err := disk.PlanErase(path, disk.EraseMethod(f.method))
	if err != nil {
		return err
	}
	if f.dryRun || !f.json {
		err := show(e.stdout, f.json, plan, func(w io.Writer) {
			fmt.Fprintf(w, "%s, %v, %s: to be erased by %s", path, Size(plan.Size), heldText(plan), plan.Method)
			if plan.Detail != "" {
				fmt.Fprintf(w, " (%s)", plan.Detail)
			}
			fmt.Fprintln(w)
		})
		if err != nil {
			return err
		}
	}
	if err := permit(h); err != nil || f.dryRun {
		return err
	}
	if !f.yes && !f.json && !confirm(e) {
		return errors.New("nothing was changed")
	}
	progress := newEraseProgress(e.stderr)
	c, err := disk.Erase(cmd.Context(), disk.EraseOptions{Path: path, Method: disk.EraseMethod(f.method), Samples: f.samples, Progress: progress, Permit: permit})
	if c == nil {
		return err
	}
	var text bytes.Buffer
	if f.json {
		err = errors.Join(err, writeJSON(&text, c))
	} else {
		printCertificate(&text, c)
	}
	if _, e := e.stdout.Write(text.Bytes()); e != nil {
		err = errors.Join(err, fmt.Errorf("print: %w", e))
	}
	if f.certificate != "" {
		err = errors.Join(err, writeFile(f.certificate, text.Bytes(), 0o644))
	}
	return err
}

// permit refuses what was not asked for as often as it takes.
func (f *eraseFlags) permit(path, own string, h disk.Holding) error {
	switch {
	case h.ArrayID != "" && !h.Retired && f.force < 2:
		which := "an array"
		if h.ArrayID == own {
			which = "the array of this data directory"
		}
		return fmt.Errorf("%s is %s, a member of %s: let it leave with coffer array remove first, or give --force twice", path, h.Text, which)
	case h.ArrayID == "" && h.Text != "" && f.force < 1:
		return fmt.Errorf("%s holds %s: %w; --force erases it", path, h.Text, disk.ErrInUse)
	}
	return nil
}

func heldText(c *disk.EraseCertificate) string {
	if c.Held == "" {
		return "nothing known on it"
	}
	return "holds " + c.Held
}

// newEraseProgress returns what shows the progress of an erasure, a line for each percent, and at most one a second.
func newEraseProgress(w io.Writer) func(done, total int64) {
	start := time.Now()
	shown, last := int64(-1), time.Time{}
	return func(done, total int64) {
		percent := done * 100 / max(total, 1)
		if percent == shown || time.Since(last) < time.Second {
			return
		}
		shown, last = percent, time.Now()
		took := time.Since(start)
		line := fmt.Sprintf("erased %d %%, %.1f MiB/s", percent, float64(done)/(1<<20)/max(took.Seconds(), 1e-3))
		if done > 0 && took > time.Second {
			line += fmt.Sprintf(", %v left", time.Duration(float64(took)/float64(done)*float64(total-done)).Round(time.Second))
		}
		fmt.Fprintln(w, line)
	}
}

func printCertificate(w io.Writer, c *disk.EraseCertificate) {
	or := func(s string) string {
		if s == "" {
			return "unknown"
		}
		return s
	}
	stamp := func(t time.Time) string { return t.Format(time.RFC3339) }
	lines := [][2]string{
		{"device", c.Device}, {"model", or(c.Model)}, {"serial", or(c.Serial)}, {"size", fmt.Sprintf("%d bytes", c.Size)},
		{"held", strings.TrimPrefix(heldText(c), "holds ")}, {"method", string(c.Method)}, {"detail", c.Detail},
		{"started", stamp(c.Started)}, {"ended", stamp(c.Ended)},
		{"read back", fmt.Sprintf("%d blocks of 4096 bytes: %d not erased, %d unreadable; %d held something before", c.Samples, c.Wrong, c.Unread, c.Nonzero)},
		{"result", c.Result},
	}
	if c.Unwritten > 0 {
		lines = append(lines, [2]string{"not written", fmt.Sprintf("%d bytes", c.Unwritten)})
	}
	if c.Failure != "" {
		lines = append(lines, [2]string{"failure", c.Failure})
	}
	if c.Kind == "file" {
		lines = append(lines, [2]string{"note", "a file: model and serial are those of the disk below it, of which other parts were not erased"})
	}
	fmt.Fprintf(w, "Certificate of erasure, coffer %s\n", version)
	for _, l := range lines {
		fmt.Fprintf(w, "  %-12s %s\n", l[0], l[1])
	}
}
