package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"coffer/disk"
	"coffer/object"
)

// Files that an export keeps beside the buckets. No bucket's name has upper-case letters.
const (
	exportManifest = "MANIFEST.jsonl"
	exportPartial  = "PARTIAL"
)

const exportHelp = `Export writes the objects of an array to files, for the day on which all else is gone: it needs as many disks as
stripes have data cells and one key (the recovery key, say), but no data directory, no index and no daemon.
The disks are opened for reading and nothing on them is changed. The log is replayed into an index in a
private temporary directory (under $TMPDIR, sealed like any index), which is removed at the end.

The object KEY of BUCKET becomes DIR/BUCKET/KEY, where / makes directories. What a file system cannot name is
escaped, and the escapes can be undone:

    %XX               a byte: %, \, control characters, what is not UTF-8, the components . and ..
    %                 as a whole component: an empty one, as in a//b or a/
    NAME%+/NAME       one component that is too long for a file name
    NAME%~            a file, where NAME is a directory too, as with the keys a and a/b

DIR/MANIFEST.jsonl has a line for each object, with bucket, key (key_base64 if it is not UTF-8), path, size, ETag,
metadata, status (exported, skipped, failed) and whether its checksum was verified. Running the command again
goes on where it ended: what the manifest calls exported and has its size is not written again. Files that
the export did not write are never overwritten. Objects sealed with customer keys (SSE-C) are skipped.

Exit code 0 if everything that was asked for is in DIR or was skipped for its customer key, 3 if something
could not be read or written, or acknowledged records are lost, or the array cannot be opened.`

type exportFlags struct {
	arrayFlags
	disks   []string
	to      string
	buckets []string
	prefix  string
}

func newExportCommand(e env) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export --to DIR",
		Short: "Write all objects to files, without daemon and data directory",
		Long:  exportHelp,
		Example: `  coffer array export --to /mnt/rescue --recovery-key-file key.txt --disk /dev/sdb --disk /dev/sdc --disk /dev/sdd --disk /dev/sde
  coffer array export --to ./out --data /var/lib/coffer --bucket photos --prefix 2024/`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.to == "" {
				return usageError{errors.New("no directory: give it with --to")}
			}
			rep, err := f.run(cmd.Context(), e)
			if errors.Is(err, disk.ErrMembership) || errors.Is(err, disk.ErrKeys) {
				return fmt.Errorf("%w: %w", errUnhealthy, err)
			}
			if errors.Is(err, disk.ErrTaken) {
				return fmt.Errorf("%w: %w", errInUse, err)
			}
			if err != nil {
				return err
			}
			if err := show(e.stdout, f.json, rep, rep.print); err != nil {
				return err
			}
			if rep.Failed > 0 || len(rep.Losses) > 0 {
				return fmt.Errorf("%w: %d objects not exported, %d runs of records lost", errUnhealthy, rep.Failed, len(rep.Losses))
			}
			return nil
		},
	}
	f.bindOpen(cmd)
	fl := cmd.Flags()
	fl.StringArrayVar(&f.disks, "disk", nil, "`PATH` of a disk; once per disk, in any order (default: as configured or noted)")
	fl.StringVar(&f.to, "to", "", "`DIR`ectory to write to; made if it is absent")
	fl.StringArrayVar(&f.buckets, "bucket", nil, "export only this `BUCKET`; once per bucket")
	fl.StringVar(&f.prefix, "prefix", "", "export only keys that begin with `PREFIX`")
	return cmd
}

// exportReport is what an export did, in objects.
type exportReport struct {
	Exported int         `json:"exported"`
	Present  int         `json:"present"` // exported by an earlier run
	Skipped  int         `json:"skipped"` // sealed with customer keys
	Failed   int         `json:"failed"`
	Bytes    int64       `json:"bytes"` // written by this run
	Losses   []disk.Loss `json:"losses,omitempty"`
}

func (r *exportReport) print(w io.Writer) {
	fmt.Fprintf(w, "%d objects exported (%d bytes), %d were there already, %d skipped (customer keys), %d failed\n",
		r.Exported, r.Bytes, r.Present, r.Skipped, r.Failed)
	for _, l := range r.Losses {
		fmt.Fprintf(w, "lost: %s: the newest state of some objects may be missing\n", l)
	}
}

// run opens what is left of the array and exports it. The disks are taken exclusively, so that the data directory need not be locked,
// nor be there.
func (f *exportFlags) run(ctx context.Context, e env) (_ *exportReport, err error) {
	cfg, err := f.load(e.getenv)
	if err != nil {
		return nil, err
	}
	if len(f.disks) > 0 {
		cfg.Disks = f.disks
	}
	cfg.AllowDegraded = true                         // nothing is written, and there may be no better half
	index, err := os.MkdirTemp("", "coffer-export-") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("make directory of the index: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(index)) }()
	log := newLogger(e.stderr, cfg.Log.Format, slog.LevelWarn)
	crypto, err := probe(&cfg, log)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(e.stderr, "replaying the log into %s\n", index)
	app, err := openAppliance(ctx, &cfg, e.getenv, crypto, openMode{readOnly: true, index: index, replaying: replayLines(e, "export")}, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, app.Close()) }()
	st := app.array.Status()
	x, err := openExport(f.to, st.ArrayID, app.store, e.stderr)
	if err != nil {
		return nil, err
	}
	x.rep.Losses = st.Losses
	return &x.rep, errors.Join(x.all(ctx, f.buckets, f.prefix), x.close())
}

// exportLine is a line of the manifest.
type exportLine struct {
	Bucket      string            `json:"bucket"`
	Key         string            `json:"key"`
	KeyBase64   string            `json:"key_base64,omitempty"` // of a key that is not UTF-8
	Path        string            `json:"path"`
	Size        int64             `json:"size"`
	ETag        string            `json:"etag"`
	Modified    time.Time         `json:"modified"`
	Status      string            `json:"status"` // exported, skipped, failed
	Reason      string            `json:"reason,omitempty"`
	Checksum    string            `json:"checksum,omitempty"`          // algorithm:base64
	Verified    bool              `json:"checksum_verified,omitempty"` // computed over the file; every segment's tag was in any case
	ContentType string            `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
}

// exportHead is the first line of a manifest.
type exportHead struct {
	Version int    `json:"coffer_export"`
	ArrayID string `json:"array_id"`
}

// export writes objects below a directory. All paths go through root: nothing outside is reached, whatever links lie there.
type export struct {
	store    *object.Store
	root     *os.Root
	manifest *os.File
	before   map[string]exportLine // by path: what earlier runs wrote
	progress io.Writer
	told     time.Time
	rep      exportReport
}

func openExport(dir, arrayID string, store *object.Store, progress io.Writer) (_ *export, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the export: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open directory of the export: %w", err)
	}
	x := &export{store: store, root: root, before: map[string]exportLine{}, progress: progress, told: time.Now()}
	if x.manifest, err = root.OpenFile(exportManifest, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open manifest: %w", err), root.Close())
	}
	if err := x.readManifest(arrayID); err != nil {
		return nil, errors.Join(err, x.close())
	}
	return x, nil
}

func (x *export) close() error {
	return errors.Join(x.manifest.Sync(), x.manifest.Close(), x.root.Close())
}

// readManifest learns what earlier runs wrote. A line that was cut off says nothing.
func (x *export) readManifest(arrayID string) error {
	r := bufio.NewReader(x.manifest)
	for n := 0; ; n++ {
		line, err := r.ReadBytes('\n')
		if err == io.EOF && n == 0 && len(line) == 0 {
			return x.writeLine(exportHead{1, arrayID})
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("read manifest: %w", err)
		}
		if n == 0 {
			var head exportHead
			if json.Unmarshal(line, &head) != nil || head != (exportHead{1, arrayID}) {
				return fmt.Errorf("read manifest: %s is not of an export of this array: choose another directory", exportManifest)
			}
			continue
		}
		var l exportLine
		if json.Unmarshal(line, &l) == nil && l.Status == "exported" {
			x.before[l.Path] = l
		}
		if err == io.EOF {
			if len(line) > 0 {
				if _, err := x.manifest.WriteString("\n"); err != nil {
					return fmt.Errorf("write manifest: %w", err)
				}
			}
			// What an interrupted run left. It may be a second name of a file that is complete: never write to it.
			if err := x.root.Remove(exportPartial); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove %s: %w", exportPartial, err)
			}
			return nil
		}
	}
}

func (x *export) writeLine(doc any) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(doc); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if _, err := x.manifest.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// all exports the buckets named, or all. It fails only where going on makes no sense.
func (x *export) all(ctx context.Context, only []string, prefix string) error {
	buckets, _, err := x.store.ListBuckets(ctx, object.ListBucketsOptions{})
	if err != nil {
		return err
	}
	for _, name := range only {
		if !slices.ContainsFunc(buckets, func(b object.Bucket) bool { return b.Name == name }) {
			return fmt.Errorf("export bucket %q: %w", name, object.ErrNoSuchBucket)
		}
	}
	for _, b := range buckets {
		if len(only) > 0 && !slices.Contains(only, b.Name) {
			continue
		}
		for page := (object.ListPage{Truncated: true}); page.Truncated; {
			if page, err = x.store.List(ctx, b.Name, object.ListOptions{Prefix: prefix, After: page.Next, Max: object.MaxListKeys}); err != nil {
				return err
			}
			for i := range page.Objects {
				if err := x.one(ctx, b.Name, page.Objects[i].Key); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// one exports an object and writes its line. Errors of the object are in the line.
func (x *export) one(ctx context.Context, bucket, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l := exportLine{Bucket: bucket, Key: key}
	if !utf8.ValidString(key) {
		l.KeyBase64 = base64.StdEncoding.EncodeToString([]byte(key))
	}
	// Whether other keys make the file's name a directory does not depend on what is exported: the path is the same in each run.
	below, err := x.store.List(ctx, bucket, object.ListOptions{Prefix: key + "/", Max: 1})
	if err != nil {
		return err
	}
	l.Path = exportPath(bucket, key, len(below.Objects) > 0)
	o, err := x.store.Head(ctx, bucket, key, object.GetOptions{})
	if err == nil || errors.Is(err, object.ErrKeyRequired) {
		l.describe(&o)
	}
	if was, ok := x.before[l.Path]; ok && err == nil && was.ETag == l.ETag && was.Size == l.Size && was.Modified.Equal(l.Modified) {
		if st, err := x.root.Lstat(l.Path); err == nil && st.Mode().IsRegular() && st.Size() == l.Size {
			x.rep.Present++
			return nil
		}
	}
	if errors.Is(err, object.ErrKeyRequired) {
		l.Status, l.Reason = "skipped", "sealed with a customer key"
		x.rep.Skipped++
		return x.writeLine(l)
	}
	if err == nil {
		err = x.write(ctx, &l, &o)
	}
	if x.tell(); err == nil {
		x.rep.Exported++
		x.rep.Bytes += l.Size
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	x.rep.Failed++
	fmt.Fprintf(x.progress, "failed: %q in %q: %v\n", key, bucket, err)
	l.Status, l.Reason, l.Verified = "failed", err.Error(), false
	return x.writeLine(l)
}

func (l *exportLine) describe(o *object.Object) {
	l.Size, l.ETag, l.Modified, l.ContentType = o.Size, o.ETag, o.Modified, o.Meta.ContentType
	l.Metadata, l.Tags, l.Headers = o.Meta.User, o.Meta.Tags, map[string]string{}
	for name, v := range map[string]string{"content-encoding": o.Meta.ContentEncoding, "content-disposition": o.Meta.ContentDisposition,
		"content-language": o.Meta.ContentLanguage, "cache-control": o.Meta.CacheControl, "expires": o.Meta.Expires,
		"x-amz-website-redirect-location": o.Meta.WebsiteRedirect, "x-amz-storage-class": o.Meta.StorageClass} {
		if v != "" {
			l.Headers[name] = v
		}
	}
}

// write makes the object's file. It becomes visible under its name when it is whole, durable, and in the manifest: so what is there is
// either complete and known, or not the export's.
func (x *export) write(ctx context.Context, l *exportLine, o *object.Object) (err error) {
	_, lerr := x.root.Lstat(l.Path)
	_, ours := x.before[l.Path]
	if lerr == nil && !ours {
		return fmt.Errorf("%s exists and is not of this export", l.Path)
	}
	if lerr != nil && !errors.Is(lerr, fs.ErrNotExist) {
		return lerr
	}
	if err := x.copyTo(ctx, exportPartial, l, o); err != nil {
		return errors.Join(err, x.root.Remove(exportPartial))
	}
	if err := x.root.MkdirAll(path.Dir(l.Path), 0o700); err != nil {
		return errors.Join(err, x.root.Remove(exportPartial))
	}
	l.Status = "exported"
	if err := x.writeLine(l); err != nil {
		return err
	}
	if ours || x.root.Link(exportPartial, l.Path) != nil {
		// It is replaced, or the file system has no links: the look above must do.
		return x.root.Rename(exportPartial, l.Path)
	}
	return x.root.Remove(exportPartial)
}

// copyTo writes the object's body to a file and verifies its digests.
func (x *export) copyTo(ctx context.Context, name string, l *exportLine, o *object.Object) (err error) {
	r, err := x.store.Get(ctx, l.Bucket, l.Key, object.GetOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	etag, sum := md5.New(), checksumHash(o.Checksum)
	to := []io.Writer{f, etag}
	if sum != nil {
		to = append(to, sum)
	}
	if n, err := r.WriteTo(io.MultiWriter(to...)); err != nil || n != l.Size {
		return fmt.Errorf("read %d of %d bytes: %w", n, l.Size, errors.Join(err, ctx.Err()))
	}
	if o.SSE.Mode == object.ModeS3 && len(o.Parts) == 0 && hex.EncodeToString(etag.Sum(nil)) != o.ETag {
		return fmt.Errorf("its MD5 is not its ETag: %w", object.ErrCorrupt)
	}
	if o.Checksum.Algo != object.AlgoNone {
		l.Checksum = checksumNames[o.Checksum.Algo] + ":" + base64.StdEncoding.EncodeToString(o.Checksum.Sum)
	}
	if sum != nil {
		if l.Verified = bytes.Equal(sum.Sum(nil), o.Checksum.Sum); !l.Verified {
			return fmt.Errorf("its checksum differs: %w", object.ErrCorrupt)
		}
	}
	return f.Sync()
}

var checksumNames = map[object.Algo]string{object.AlgoCRC64NVME: "crc64nvme", object.AlgoCRC32: "crc32", object.AlgoCRC32C: "crc32c",
	object.AlgoSHA1: "sha1", object.AlgoSHA256: "sha256"}

// checksumHash computes a stored checksum; nil if there is none, or one that is made of the parts' sums.
func checksumHash(c object.Checksum) hash.Hash {
	if c.Composite {
		return nil
	}
	switch c.Algo {
	case object.AlgoCRC64NVME:
		return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5))
	case object.AlgoCRC32:
		return crc32.NewIEEE()
	case object.AlgoCRC32C:
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case object.AlgoSHA1:
		return sha1.New()
	case object.AlgoSHA256:
		return sha256.New()
	}
	return nil
}

// tellEvery is how often progress is reported.
const tellEvery = 5 * time.Second

func (x *export) tell() {
	if time.Since(x.told) < tellEvery {
		return
	}
	x.told = time.Now()
	fmt.Fprintf(x.progress, "%d exported, %d there already, %d skipped, %d failed; %.1f GiB written\n",
		x.rep.Exported, x.rep.Present, x.rep.Skipped, x.rep.Failed, float64(x.rep.Bytes)/(1<<30))
}
