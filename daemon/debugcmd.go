package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"coffer/disk"
	"coffer/object"
)

// placeFlags name a place of the disks.
type placeFlags struct {
	arrayFlags
	band   string
	block  uint32
	names  bool
	disk   string
	extent uint32
}

func (f *placeFlags) bindBand(cmd *cobra.Command) {
	f.bindOpen(cmd)
	cmd.Flags().StringVar(&f.band, "band", "", "number of the band in `HEX`, as check and debug print it")
	cmd.Flags().Uint32Var(&f.block, "block", 1, "block of the band's extents, of 4096 bytes, at which the stripe begins")
}

func (f *placeFlags) bandNumber() (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(f.band, "0x"), 16, 64)
	if err != nil || n == 0 {
		return 0, usageError{fmt.Errorf("--band %q: want the number of a band in hex", f.band)}
	}
	return n, nil
}

// withDisks opens the array for reading and runs work on it. No daemon may have it, and nothing is written.
func (f *arrayFlags) withDisks(ctx context.Context, e env, work func(*appliance) error) (err error) {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return err
	}
	dir := dataDir(cfg.Data)
	if _, err := diskPaths(&cfg, dir); err != nil { // also keeps lock from making a directory
		return err
	}
	unlock, err := dir.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	log := newLogger(e.stderr, cfg.Log.Format, slog.LevelError)
	crypto, err := probe(&cfg, log)
	if err != nil {
		return err
	}
	app, err := openAppliance(ctx, &cfg, e.getenv, crypto, openMode{readOnly: true}, log)
	if err != nil {
		return err
	}
	return errors.Join(work(app), app.Close())
}

func newDebugCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Show what lies on the disks",
		Long: `Debug shows single cells, stripes and records as docs/format.md and docs/object-format.md describe them. The
disks are opened for reading and no daemon may use them. No key material is ever shown; names, keys and
what is derived from content only where a command is told to with --names.`,
		Example: `  coffer debug cell --disk /dev/sdb --extent 7
  coffer debug stripe --data /var/lib/coffer --band 300000001 --block 1
  coffer debug record --data /var/lib/coffer --band 300000001 --block 1 --names`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDebugCellCommand(e), newDebugStripeCommand(e), newDebugRecordCommand(e))
	return cmd
}

const debugCellHelp = `Cell shows the cell at a block of an extent of one disk: its header, whether MAC and checksum hold, and what
is wrong with it. Block 0 of an extent holds the header of its band.

    good         it is what should be there
    empty        zeros: nothing was written there
    torn         whole sectors are those of another write, or were not written
    rot          bits changed since it was written
    damaged      torn or rot, and too few other cells are left to tell which
    inside       no cell begins there: it is inside of one, or what an earlier use left
    stale        of a band that no longer has the extent
    misdirected  it belongs to another disk, block or position of this array
    foreign      of another array
    unreadable   the disk reports an error
    missing      the disk is not there

Exit code 0 if the place could be looked at, whatever is there.`

func newDebugCellCommand(e env) *cobra.Command {
	var f placeFlags
	cmd := &cobra.Command{
		Use:   "cell --disk PATH --extent N --block N",
		Short: "Show a cell of a disk and what is wrong with it",
		Long:  debugCellHelp,
		Example: `  coffer debug cell --data /var/lib/coffer --disk /dev/sdb --extent 7
  coffer debug cell --disk ./disk0.img --extent 7 --block 1 --json | jq -r .verdict`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.disk == "" {
				return usageError{errors.New("no disk: give it with --disk")}
			}
			return f.withDisks(cmd.Context(), e, func(app *appliance) error {
				path := f.disk
				for _, d := range app.array.Status().Disks {
					if x, err := filepath.Abs(path); err == nil && d.Path == x || d.Path != "" && strconv.Itoa(d.Slot) == f.disk {
						path = d.Path
					}
				}
				c, err := app.array.InspectCell(cmd.Context(), path, f.extent, f.block)
				if err != nil {
					return err
				}
				return show(e.stdout, f.json, c, func(w io.Writer) { printCell(w, &c) })
			})
		},
	}
	f.bindOpen(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.disk, "disk", "", "`PATH` of the disk, or its slot in the array")
	fl.Uint32Var(&f.extent, "extent", 0, "number of the extent on the disk")
	fl.Uint32Var(&f.block, "block", 0, "block of the extent, of 4096 bytes")
	return cmd
}

func printCell(w io.Writer, c *disk.CellInfo) {
	fmt.Fprintf(w, "%s: %s", placeOf(c), c.Verdict)
	if c.Reason != "" {
		fmt.Fprintf(w, " (%s)", c.Reason)
	}
	fmt.Fprintf(w, "\ndisk slot %d, byte %d; extent of band %s; MAC %s, checksum %s\n", c.Slot, c.Offset, orNone(c.Owner), okOrNot(c.MACOK), okOrNot(c.ChecksumOK))
	h := c.Header
	if h == nil {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer tw.Flush()
	for _, row := range [][2]any{{"kind", h.Kind}, {"role", fmt.Sprintf("%d of %d data + %d parity", h.Role, h.Data, h.Parity)},
		{"width, rot", fmt.Sprintf("%d, %d", h.Width, h.Rot)}, {"disk", h.Disk}, {"band", h.Band}, {"stripe", h.Stripe}, {"epoch", h.Epoch},
		{"nonce", h.Nonce}, {"mark", h.Mark}, {"block", h.Block}, {"blocks", h.Blocks}, {"key epoch", h.KeyEpoch}, {"checksum", h.Checksum},
		{"written", h.Written.Format(time.RFC3339)}} {
		fmt.Fprintf(tw, "  %s\t%v\n", row[0], row[1])
	}
}

func placeOf(c *disk.CellInfo) string {
	return fmt.Sprintf("%s extent %d block %d", orNone(c.Path), c.Extent, c.Block)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func okOrNot(ok bool) string {
	if ok {
		return "ok"
	}
	return "not ok"
}

func newDebugStripeCommand(e env) *cobra.Command {
	var f placeFlags
	cmd := &cobra.Command{
		Use:   "stripe --band HEX --block N",
		Short: "Show all cells of a stripe and whether it can be decoded",
		Long: `Stripe shows the cells of the stripe that begins at a block of a band: for each role the disk, the place on it and
the verdict, which ` + "`coffer debug cell --help`" + ` explains. At block 0 it shows the headers of the band, one a disk.

Exit code 0 if the place could be looked at, whatever is there.`,
		Example: "  coffer debug stripe --data /var/lib/coffer --band 300000001 --block 1\n  coffer debug stripe --band 300000001 --block 1 --json | jq .decodable",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			num, err := f.bandNumber()
			if err != nil {
				return err
			}
			return f.withDisks(cmd.Context(), e, func(app *appliance) error {
				s, err := app.array.InspectStripe(cmd.Context(), num, f.block)
				if err != nil {
					return err
				}
				return show(e.stdout, f.json, s, func(w io.Writer) { printStripe(w, &s) })
			})
		},
	}
	f.bindBand(cmd)
	return cmd
}

func printStripe(w io.Writer, s *disk.StripeInfo) {
	fmt.Fprintf(w, "%s at band %s block %d: ", s.Kind, s.Band, s.Block)
	switch {
	case s.Data == 0 && s.Block > 0:
		fmt.Fprintln(w, "no stripe begins here that any cell tells of")
	case s.Block > 0:
		fmt.Fprintf(w, "stripe %d, %d data + %d parity cells of %d blocks, ", s.Stripe, s.Data, s.Parity, s.Blocks)
		fallthrough
	default:
		fmt.Fprintf(w, "%d of %d good, decodable: %t\n", s.Good, len(s.Cells), s.Decodable)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer tw.Flush()
	fmt.Fprintln(tw, "role\tslot\tverdict\tplace")
	for i := range s.Cells {
		c := &s.Cells[i]
		fmt.Fprintf(tw, "%d\t%d\t%s\t%s  %s\n", i, c.Slot, c.Verdict, placeOf(c), c.Reason)
	}
}

// debugRecord is a record as the command shows it.
type debugRecord struct {
	Seq       uint64 `json:"seq"`
	BodyBytes int    `json:"body_bytes"`
	DataBytes uint32 `json:"data_bytes"`
	DataRole  *uint8 `json:"data_role,omitempty"` // data cell that holds the data
	DataStart uint32 `json:"data_start,omitempty"`
	object.RecordInfo
}

func newDebugRecordCommand(e env) *cobra.Command {
	var f placeFlags
	cmd := &cobra.Command{
		Use:   "record --band HEX --block N",
		Short: "Show the records of a packed stripe",
		Long: `Record opens the records of the packed stripe that begins at a block of a band and shows of each its sequence number,
kind, sizes and where its data lies. Names of buckets and objects, and ETags, which tell of content, are left out;
--names shows them. Keys, wrapped or not, and the values of system records are never shown.`,
		Example: "  coffer debug record --data /var/lib/coffer --band 300000001 --block 1\n  coffer debug record --band 300000001 --block 1 --names --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			num, err := f.bandNumber()
			if err != nil {
				return err
			}
			return f.withDisks(cmd.Context(), e, func(app *appliance) error {
				s, entries, err := app.array.InspectRecords(cmd.Context(), num, f.block)
				if err != nil {
					return err
				}
				doc := struct {
					Stripe  disk.StripeInfo `json:"stripe"`
					Records []debugRecord   `json:"records"`
				}{s, []debugRecord{}}
				for i := range entries {
					en := &entries[i]
					r := debugRecord{Seq: en.Seq, BodyBytes: len(en.Body), DataBytes: en.Data.Len, DataStart: en.Data.Start,
						RecordInfo: object.InspectRecord(en.Body, f.names)}
					if en.Data.Len > 0 {
						r.DataRole = &en.Data.Role
					}
					doc.Records = append(doc.Records, r)
				}
				return show(e.stdout, f.json, doc, func(w io.Writer) { printRecords(w, &doc.Stripe, doc.Records) })
			})
		},
	}
	f.bindBand(cmd)
	cmd.Flags().BoolVar(&f.names, "names", false, "show names, keys and ETags")
	return cmd
}

func printRecords(w io.Writer, s *disk.StripeInfo, records []debugRecord) {
	fmt.Fprintf(w, "stripe %d at band %s block %d: %d records\n", s.Stripe, s.Band, s.Block, len(records))
	for _, r := range records {
		fmt.Fprintf(w, "%d  kind %d (%s)  body %d bytes", r.Seq, r.Kind, r.KindName, r.BodyBytes)
		if r.DataRole != nil {
			fmt.Fprintf(w, ", data %d bytes in cell %d from byte %d", r.DataBytes, *r.DataRole, r.DataStart)
		}
		if fmt.Fprintln(w); r.Fault != "" {
			fmt.Fprintf(w, "    %s\n", r.Fault)
			continue
		}
		if r.Bucket != "" {
			fmt.Fprintf(w, "    bucket %s, ", r.Bucket)
		} else {
			fmt.Fprint(w, "    ")
		}
		fmt.Fprintf(w, "name %q, size %d, %s", r.Name, r.Size, r.Time.Format(time.RFC3339))
		for _, t := range [][2]string{{"version", r.Version}, {"etag", r.ETag}, {"encryption", r.SSE}} {
			if t[1] != "" {
				fmt.Fprintf(w, ", %s %s", t[0], t[1])
			}
		}
		if r.Parts > 0 || r.Part > 0 {
			fmt.Fprintf(w, ", part %d of %d", r.Part, r.Parts)
		}
		fmt.Fprintln(w)
		for _, st := range r.Stripes {
			fmt.Fprintf(w, "    bulk stripe at band %x block %d: %d segments over %d cells\n", st.Band, st.Off, st.Segments, st.Data)
		}
	}
}
