package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"coffer/disk"
	"coffer/kms"
)

// maxChosenData is the widest stripe that is chosen: wider ones save little space and cost more disks per read of a lost cell.
const maxChosenData = 16

// arrayFlags are common to the array commands.
type arrayFlags struct {
	serveFlags
	json bool
}

func (f *arrayFlags) bind(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.data, "data", "", "`DIR`ectory of index, certificates and keys (default ./data)")
	fl.StringVar(&f.config, "config", "", "configuration `FILE` of coffer serve")
	fl.BoolVar(&f.json, "json", false, "print JSON")
}

// bindOpen adds the flags of commands that open an array.
func (f *arrayFlags) bindOpen(cmd *cobra.Command) {
	f.bind(cmd)
	cmd.Flags().StringVar(&f.recoveryKeyFile, "recovery-key-file", "", "`FILE` with the recovery key, to open the array when its other key slots are lost")
	cmd.Flags().BoolVar(&f.degraded, "degraded", false, "open the array though so few disks are present that they could be a stale half of it")
}

func newArrayCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "array",
		Short: "Create and examine the array of disks",
		Long:  "The array is the set of disks that coffer serve stores into: its geometry, its members and their state.",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCreateCommand(e), newStatusCommand(e), newCheckCommand(e), newScrubCommand(e), newCompactCommand(e), newRebuildCommand(e),
		newReplaceCommand(e), newAddCommand(e), newRemoveCommand(e), newIdentifyCommand(e), newEraseCommand(e), newExportCommand(e), newQualifyCommand(e))
	return cmd
}

const createHelp = `Create makes an array of the given disks: block devices, existing files, or, with --disk-size, new files.

Without --data-shards and --parity the geometry follows from the number of disks:

    disks  1    2    3    4    5    6    7    8    9    10   12   14    16    20
    shape  1+0  1+1  2+1  2+2  3+2  4+2  5+2  6+2  7+2  7+3  9+3  11+3  12+4  16+4

Any "parity" disks may be lost at a time. From 21 disks on stripes stay at 16+4 and rotate over all disks.

The array is opened at each start by the key file DIR/keys/root.key, or by a passphrase with
--passphrase-file. The recovery key, printed once, opens it when that is lost. The root credentials of
S3 are generated and printed once too, unless COFFER_ROOT_ACCESS_KEY or root_credentials_file give them.

Disks that hold an array, a filesystem or a partition table are refused, unless --force overwrites them.`

func newCreateCommand(e env) *cobra.Command {
	var f arrayFlags
	var opt createOptions
	var extent Size
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:   "create --disk PATH...",
		Short: "Make an array of disks",
		Long:  createHelp,
		Example: `  coffer array create --data /var/lib/coffer --disk /dev/sdb --disk /dev/sdc --disk /dev/sdd --dry-run
  coffer array create --data /var/lib/coffer --disk /dev/disk/by-id/nvme-{a,b,c,d,e,f} --yes
  coffer array create --data ./data --disk ./d0 --disk ./d1 --disk ./d2 --disk-size 1GiB`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := f.load(e.getenv)
			if err != nil {
				return err
			}
			opt.disks = append(append(opt.disks, args...), cfg.Disks...)
			opt.geometry.ExtentSize = int64(extent)
			if len(opt.disks) == 0 {
				return usageError{errors.New("no disks: give each with --disk")}
			}
			switch given := cmd.Flags().Changed; {
			case given("data-shards") && opt.geometry.Data < 1: // 0 stands for the default further on
				return usageError{fmt.Errorf("--data-shards %d: want 1 to 32", opt.geometry.Data)}
			case given("extent-size") && extent == 0:
				return usageError{errors.New("--extent-size 0: want 1MiB to 1GiB")}
			}
			if err := completeShape(&opt, cmd.Flags().Changed("data-shards"), cmd.Flags().Changed("parity")); err != nil {
				return err
			}
			plan, err := planArray(&opt)
			if err != nil {
				return err
			}
			if dryRun || !f.json {
				if err := show(e.stdout, f.json, plan, plan.print); err != nil {
					return err
				}
			}
			if err := plan.refuse(opt.force); err != nil || dryRun {
				return err
			}
			if !yes && !confirm(e) {
				return errors.New("nothing was written")
			}
			return runCreate(cmd.Context(), e, &cfg, plan, &opt, f.json)
		},
	}
	f.bind(cmd)
	fl := cmd.Flags()
	fl.StringArrayVar(&opt.disks, "disk", nil, "`PATH` of a disk; once per disk (default: disks of the configuration)")
	fl.IntVar(&opt.geometry.Data, "data-shards", 0, "data cells per stripe, 1 to 32 (default by the number of disks)")
	fl.IntVar(&opt.geometry.Parity, "parity", 0, "parity cells per stripe: how many disks may be lost (default by the number of disks)")
	fl.Var(&extent, "extent-size", "allocation unit on each disk, 1MiB to 1GiB (default by the disks' size)")
	fl.Var(&opt.diskSize, "disk-size", "make disks that do not exist as files of this size")
	fl.Lookup("extent-size").DefValue, fl.Lookup("disk-size").DefValue = "", "" // none to show
	fl.StringVar(&opt.passphraseFile, "passphrase-file", "", "`FILE` with the passphrase that opens the array, instead of a key file")
	fl.BoolVar(&opt.force, "force", false, "overwrite disks that hold something")
	fl.BoolVar(&dryRun, "dry-run", false, "show what would be made and write nothing")
	fl.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// completeShape chooses the one of data and parity that was not given beside the other: as many data cells as the disks leave, or
// as much parity as it would have been without, if the disks leave so much.
func completeShape(opt *createOptions, dataGiven, parityGiven bool) error {
	n := len(opt.disks)
	_, parity, err := disk.ChooseGeometry(n)
	if err != nil {
		return usageError{err}
	}
	switch g := &opt.geometry; {
	case dataGiven && !parityGiven:
		g.Parity = max(0, min(n-g.Data, parity, disk.MaxWidth-g.Data))
	case parityGiven && !dataGiven:
		g.Data = min(n-g.Parity, maxChosenData, disk.MaxWidth-g.Parity)
	}
	return nil
}

// confirm asks whether the plan on the screen is to be carried out.
func confirm(e env) bool {
	fmt.Fprint(e.stderr, "What these disks hold will be lost. Type yes to go on: ")
	return agreed(e)
}

// agreed reads the answer to a question.
func agreed(e env) bool {
	line, _ := bufio.NewReader(e.stdin).ReadString('\n')
	return strings.TrimSpace(line) == "yes"
}

func runCreate(ctx context.Context, e env, cfg *Config, plan *arrayPlan, opt *createOptions, asJSON bool) (err error) {
	dir := dataDir(cfg.Data)
	unlock, err := dir.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	given, _, err := givenCredentials(e.getenv, cfg.RootCredentialsFile)
	if err != nil {
		return err
	}
	log := newLogger(e.stderr, cfg.Log.Format, slog.LevelWarn)
	res, err := createArray(ctx, dir, plan, opt)
	if err != nil {
		return err
	}
	if !asJSON {
		printRecoveryKey(e.stdout, res.RecoveryKey)
	}
	if given == (rootCredentials{}) {
		c, err := firstCredentials(ctx, e, cfg, opt, log)
		if err != nil {
			return fmt.Errorf("the array is made, but not its root credentials, which coffer serve will make: %w", err)
		}
		res.AccessKey, res.SecretKey = c.AccessKey, c.SecretKey
	}
	err = show(e.stdout, asJSON, res, func(w io.Writer) {
		if res.SecretKey != "" {
			printRootCredentials(w, rootCredentials{AccessKey: res.AccessKey, SecretKey: res.SecretKey})
		}
		fmt.Fprintf(w, "Array %s is ready: coffer serve --data %s\n", res.ArrayID, cfg.Data)
	})
	return errors.Join(err, dir.endFirstStart()) // one that was cut short before
}

// firstCredentials opens the new array once to make its root credentials, which proves it as well.
func firstCredentials(ctx context.Context, e env, cfg *Config, opt *createOptions, log *slog.Logger) (c rootCredentials, err error) {
	crypto, err := probe(cfg, log)
	if err != nil {
		return c, err
	}
	made := *cfg
	made.Disks = nil // as noted
	setDefault(&made.PassphraseFile, opt.passphraseFile)
	app, err := openAppliance(ctx, &made, e.getenv, crypto, openMode{}, log)
	if err != nil {
		return c, err
	}
	c, _, err = storedCredentials(ctx, app.store)
	return c, errors.Join(err, app.Close())
}

func (p *arrayPlan) print(w io.Writer) {
	fmt.Fprintf(w, "%d disks, stripes of %d data + %d parity: any %d may be lost\n", len(p.Disks), p.Data, p.Parity, p.Parity)
	fmt.Fprintf(w, "usable %s, extents of %v\n", about(p.Usable), Size(p.ExtentSize))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, d := range p.Disks {
		fmt.Fprintf(tw, "  %s\t%v", d.Path, Size(d.Size))
		switch {
		case d.New:
			fmt.Fprint(tw, "  new file")
		case d.Holds != "":
			fmt.Fprintf(tw, "  holds %s", d.Holds)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// show prints a document as JSON or as text.
func show(w io.Writer, asJSON bool, doc any, text func(io.Writer)) error {
	if asJSON {
		return writeJSON(w, doc)
	}
	text(w)
	return nil
}

func writeJSON(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// arrayStatus is the document of `coffer array status --json` and of /array/status.
type arrayStatus struct {
	disk.Status
	Running  bool           `json:"running"` // a daemon serves the array
	OpenedBy string         `json:"opened_by"`
	KeyEpoch uint32         `json:"key_epoch"`
	KeySlots []keySlotState `json:"key_slots"`
}

type keySlotState struct {
	Number  int    `json:"number"`
	Kind    string `json:"kind"`
	Created string `json:"created"`
}

// status describes the array. One that was opened for reading only is judged as if it served.
func (a *appliance) status(running bool) *arrayStatus {
	s := &arrayStatus{Status: a.array.Status(), Running: running, OpenedBy: a.slot, KeyEpoch: a.keys.CurrentEpoch()}
	for _, k := range a.keys.Slots() {
		s.KeySlots = append(s.KeySlots, keySlotState{k.Number, k.Kind, k.Created.UTC().Format("2006-01-02T15:04:05Z")})
	}
	a.placeMissing(s.Disks)
	if a.store == nil && s.State == "read-only" {
		s.State, s.Reason = "healthy", ""
		for _, d := range s.Disks {
			if d.State != disk.DiskHealthy && d.State != disk.DiskSpare && d.State != disk.DiskDraining {
				s.State, s.Reason = "degraded", "a disk is "+string(d.State)
			}
		}
		if len(s.Losses) > 0 {
			s.State, s.Reason = "degraded", "acknowledged stripes were lost"
		}
	}
	return s
}

// placeMissing names the place of disks that were not found, as far as the list that creation wrote in slot order tells.
func (a *appliance) placeMissing(disks []disk.DiskStatus) {
	paths := *a.paths.Load()
	if len(paths) != len(disks) {
		return
	}
	known := map[string]bool{}
	for _, d := range disks {
		known[d.Path] = true
	}
	for i := range disks {
		if disks[i].Path == "" && !known[paths[i]] {
			disks[i].Path = paths[i]
		}
	}
}

func (s *arrayStatus) print(w io.Writer) {
	fmt.Fprintf(w, "array %s: %s", s.ArrayID, s.State)
	if s.Reason != "" {
		fmt.Fprintf(w, " (%s)", s.Reason)
	}
	served := "not running"
	if s.Running {
		served = "running"
	}
	fmt.Fprintf(w, "\n%d data + %d parity, epoch %d, key epoch %d, daemon %s\n", s.Data, s.Parity, s.Epoch, s.KeyEpoch, served)
	fmt.Fprintf(w, "capacity %.1f GiB, free %.1f GiB\n", float64(s.Capacity)/(1<<30), float64(s.Free)/(1<<30))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "slot\tstate\tsize\tpath")
	for _, d := range s.Disks {
		fmt.Fprintf(tw, "%d\t%s\t%v\t%s", d.Slot, d.State, Size(d.Size), d.Path)
		switch {
		case d.Rebuild != nil:
			fmt.Fprintf(tw, "  (%s)", strings.Join(append([]string{rebuildLine(d.Rebuild)}, d.Olds...), "; helped by "))
		case d.Drain != nil:
			fmt.Fprintf(tw, "  (%s)", rebuildLine(d.Drain))
		case d.Reason != "":
			fmt.Fprintf(tw, "  (%s)", d.Reason)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	if st := s.Scrub; st != nil {
		line := "scrub " + st.State
		if st.Total > 0 {
			line = scrubProgress(st)
		}
		if st.Last != nil {
			line += "; last ended " + st.Last.Ended.Local().Format(time.DateTime)
		}
		fmt.Fprintln(w, line)
	}
	for _, l := range s.Losses {
		fmt.Fprintf(w, "lost: %s\n", l)
	}
}

func newStatusCommand(e env) *cobra.Command {
	var f arrayFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the array and its disks",
		Long: `Status asks the running daemon, or else opens the array for reading, and shows its members. Of an array that
cannot be opened --json says why, and what was found in the place of each disk. With admin: none the daemon
cannot be asked.

Exit code 0 if every disk is healthy, 3 if the array is degraded, has lost data or cannot be opened.`,
		Example: "  coffer array status --data /var/lib/coffer\n  coffer array status --json | jq -r '.disks[] | select(.state != \"healthy\") | .path'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st := new(arrayStatus)
			err := f.withArray(cmd.Context(), e, http.MethodGet, "/array/status", st, false, func(_ context.Context, app *appliance) error {
				st = app.status(false)
				return nil
			})
			if err != nil {
				return err
			}
			if err := show(e.stdout, f.json, st, st.print); err != nil {
				return err
			}
			if st.State != "healthy" {
				return fmt.Errorf("%w: %s", errUnhealthy, st.State)
			}
			return nil
		},
	}
	f.bindOpen(cmd)
	return cmd
}

func newCheckCommand(e env) *cobra.Command {
	var f deepFlags
	var repair, deep bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read and verify everything in the array",
		Long: `Check reads every superblock copy and every cell of every stripe, parity included, and verifies it. It works
beside a running daemon or, when none runs, on the disks themselves, and reads as fast as it can. With
--repair bad cells are rewritten from the good ones, and those are told too that opening the array rewrote. What a running daemon does by itself is "coffer array
scrub", which also says what the words for bad cells mean. With admin: none the daemon cannot be asked.

With --deep it is the array's fsck, for an array that no daemon serves. It changes nothing, and verifies that
everything agrees: the log is replayed into an index of its own, and that is compared with the one on disk,
entry by entry; live bytes, references and extents are reckoned anew; each bulk stripe that a record names must
be there and whole, those that no record names are counted as garbage, or as never committed where they
cannot be read; the list of freed stripes must fit the log; and every object is read, so that every tag is
verified, or with --sample N one object in N. Objects sealed with customer keys are skipped and counted. Each
fault is named. Two indexes are made below $TMPDIR, about 1 KiB an object each.

What to do: a wrong index, filter, reference or count of live bytes is cured by coffer array rebuild-index; bad
cells by --repair; lost stripes and objects that cannot be read must come from elsewhere.

Exit code 0 if everything that was written is there, 3 if something is bad, missing or lost.`,
		Example: "  coffer array check --data /var/lib/coffer\n  coffer array check --repair --json\n  coffer array check --deep --sample 10",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case deep && repair:
				return usageError{errors.New("--deep changes nothing: leave --repair out")}
			case !deep && cmd.Flags().Changed("sample"):
				return usageError{errors.New("--sample goes with --deep")}
			case f.sample < 0:
				return usageError{errors.New("--sample: want 0 for no object, 1 for all, or N for one in N")}
			case deep:
				return f.run(cmd.Context(), e)
			}
			var rep disk.CheckReport
			var open []disk.FoundStripe
			path := fmt.Sprintf("/array/check?repair=%t", repair)
			err := f.withArray(cmd.Context(), e, http.MethodPost, path, &rep, repair, func(ctx context.Context, app *appliance) (err error) {
				rep, err = app.array.Check(ctx, disk.CheckOptions{Repair: repair, Undecided: func(s disk.FoundStripe) { open = append(open, s) }})
				return err
			})
			if err == nil && len(open) > 0 {
				err = f.decide(cmd.Context(), e, path, open, &rep)
			}
			if err != nil {
				return err
			}
			if err := show(e.stdout, f.json, rep, func(w io.Writer) { printCheck(w, &rep) }); err != nil {
				return err
			}
			if !rep.OK() {
				return fmt.Errorf("%w: %d cells bad, %d missing, %d stripes lost", errUnhealthy, rep.Bad, rep.Missing, rep.Lost)
			}
			return nil
		},
	}
	f.bindOpen(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "rewrite bad cells")
	cmd.Flags().BoolVar(&deep, "deep", false, "verify that log, index, disks and accounts agree, and every object; the daemon must not run")
	cmd.Flags().IntVar(&f.sample, "sample", 1, "with --deep, read one object in so many; 0 for none")
	return cmd
}

// decide finds out whether records name stripes that cannot be decoded. Only the log can tell: it is replayed into an index of its own.
func (f *arrayFlags) decide(ctx context.Context, e env, path string, open []disk.FoundStripe, rep *disk.CheckReport) error {
	return f.withReplayed(ctx, e, http.MethodPost, path, rep, func(ctx context.Context, app *appliance) error {
		for _, s := range open {
			named, err := app.store.Names(ctx, s.Band, s.Off)
			if err != nil {
				return err
			}
			rep.Decide(s, named)
		}
		return nil
	})
}

func newRebuildCommand(e env) *cobra.Command {
	var f arrayFlags
	cmd := &cobra.Command{
		Use:   "rebuild-index",
		Short: "Build the index anew from the disks",
		Long: `Rebuild-index throws the index away and replays the whole log into a new one. A start does this by itself when
the index is lost, corrupt or behind; the command is for doubt. The daemon must not run.`,
		Example: "  coffer array rebuild-index --data /var/lib/coffer",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err := f.load(e.getenv)
			if err != nil {
				return err
			}
			unlock, err := dataDir(cfg.Data).lock()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, unlock()) }()
			log := newLogger(e.stderr, cfg.Log.Format, slog.LevelWarn)
			crypto, err := probe(&cfg, log)
			if err != nil {
				return err
			}
			app, err := openAppliance(cmd.Context(), &cfg, e.getenv, crypto, openMode{rebuild: true, replaying: replayLines(e, "rebuild-index")}, log)
			if err != nil {
				return err
			}
			doc := struct {
				ArrayID string `json:"array_id"`
				Stripe  uint64 `json:"last_stripe"`
				Buckets int64  `json:"buckets"`
			}{app.array.Status().ArrayID, app.array.Status().Stripe, app.store.Stats().Buckets}
			if err := app.Close(); err != nil {
				return err
			}
			return show(e.stdout, f.json, doc, func(w io.Writer) {
				fmt.Fprintf(w, "index rebuilt up to stripe %d: %d buckets\n", doc.Stripe, doc.Buckets)
			})
		},
	}
	f.bindOpen(cmd)
	return cmd
}

// withArray runs work on the array, or, when a daemon has it, asks that for doc at path. An array that cannot be opened is
// unhealthy, and with --json is described all the same.
func (f *arrayFlags) withArray(ctx context.Context, e env, method, path string, doc any, write bool, work func(context.Context, *appliance) error) error {
	return f.withArrayMode(ctx, e, method, path, doc, openMode{readOnly: !write}, work)
}

func (f *arrayFlags) withArrayMode(ctx context.Context, e env, method, path string, doc any, mode openMode, work func(context.Context, *appliance) error) (err error) {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	dir := dataDir(cfg.Data)
	paths, err := diskPaths(&cfg, dir)
	if err != nil { // found before lock makes a directory
		return err
	}
	unlock, err := dir.lock()
	if errors.Is(err, errInUse) {
		err := askDaemon(ctx, dir, method, path, doc)
		if err == nil || errors.Is(err, errRefused) { // what is refused is refused of an open array
			return err
		}
		return f.explain(e, held(paths, notedID(&cfg, dir)), true, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	log := newLogger(e.stderr, cfg.Log.Format, slog.LevelWarn)
	crypto, err := probe(&cfg, log)
	if err != nil {
		return err
	}
	app, err := openAppliance(ctx, &cfg, e.getenv, crypto, mode, log)
	if err != nil {
		if errors.Is(err, kms.ErrLocked) || errors.Is(err, disk.ErrMembership) || errors.Is(err, disk.ErrKeys) {
			err = fmt.Errorf("%w: %w", errUnhealthy, err)
		}
		return f.explain(e, disk.Look(paths, notedID(&cfg, dir)), false, err)
	}
	return errors.Join(work(ctx, app), app.Close())
}

// maxAnswer bounds what a daemon may answer: 64 disks and 100 faults fit many times.
const maxAnswer = 4 << 20

// errRefused: the daemon has the array open and does not do what it was asked.
var errRefused = errors.New("ask daemon")

// askDaemon fetches a JSON document from the admin listener of the daemon that holds the data directory.
func askDaemon(ctx context.Context, dir dataDir, method, path string, doc any) error {
	// The token is read first. A daemon that starts removes the old address, then writes its token, then its address: so a token never
	// goes to an address that an earlier daemon had, where others may listen by now.
	token, tokenErr := os.ReadFile(dir.token())
	addr, err := os.ReadFile(filepath.Join(dir.run(), "admin.addr"))
	if err != nil {
		return fmt.Errorf("%w, and its admin listener is off: %w", errInUse, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+dialAddr(strings.TrimSpace(string(addr)))+path, nil)
	if err != nil {
		return fmt.Errorf("ask daemon: %w", err)
	}
	if method != http.MethodGet {
		if tokenErr != nil {
			return fmt.Errorf("ask daemon: %w", tokenErr)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask daemon: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask daemon: %w", err)
	}
	switch text := strings.TrimSpace(string(body)); resp.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return fmt.Errorf("ask daemon: %s: %s", resp.Status, text)
	default:
		return fmt.Errorf("%w: %s: %s", errRefused, resp.Status, text)
	}
	if err := json.Unmarshal(body, doc); err != nil {
		return fmt.Errorf("ask daemon: %w", err)
	}
	return nil
}
