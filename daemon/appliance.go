package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk"
	"coffer/hw"
	"coffer/kms"
	"coffer/object"
)

// arrayNote is the content of array.yaml: where the disks were when the array was created, a hint that spares the operator a
// list. The disks themselves say what they are.
type arrayNote struct {
	ArrayID string   `yaml:"array_id"`
	Disks   []string `yaml:"disks"`
	Maybe   []string `yaml:"maybe,omitempty"` // disks that a command was taking in, and those that help to rebuild the ones that replaced them
}

// places are where members of the array may be, and disks that were.
func (n *arrayNote) places() []string {
	paths := slices.Clone(n.Disks)
	if len(n.Maybe) > 0 {
		for _, d := range disk.Look(n.Maybe, n.ArrayID).Disks {
			if d.State == disk.SurveyPresent && !slices.Contains(paths, d.Path) {
				paths = append(paths, d.Path)
			}
		}
	}
	return paths
}

// errNoArray means that nothing tells of an array: neither configuration, nor a note, nor disk files.
var errNoArray = errors.New("no array: create one with `coffer array create`")

// readNote reads array.yaml.
func readNote(dir dataDir) (note arrayNote, err error) {
	f, err := os.Open(dir.arrayFile())
	if err != nil {
		return note, err
	}
	defer f.Close()
	if err := decodeYAML(f, &note); err != nil {
		return note, fmt.Errorf("read %s: %w", dir.arrayFile(), err)
	}
	return note, nil
}

// notedID is the array to which the disks must belong, "" if nothing says: configured disks may be those of another array than
// the one that was made here.
func notedID(cfg *Config, dir dataDir) string {
	if len(cfg.Disks) > 0 {
		return ""
	}
	note, err := readNote(dir)
	if err != nil {
		return "" // diskPaths has reported it
	}
	return note.ArrayID
}

// diskPaths returns the array's disks as configured, as noted at creation, or as found in the data directory. It returns errNoArray only
// where a first start may make an array: where nothing is left of one, or where a first start was cut short.
func diskPaths(cfg *Config, dir dataDir) ([]string, error) {
	if len(cfg.Disks) > 0 {
		return cfg.Disks, nil
	}
	note, err := readNote(dir)
	if err == nil {
		return note.places(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find disks: %w", err)
	}
	files, err := dir.diskFiles()
	if err != nil {
		return nil, err
	}
	cutShort, err := dir.firstStartBegun()
	if err != nil {
		return nil, err
	}
	var written []string // files that hold something, or do not tell
	for _, f := range files {
		holds, err := disk.Inspect(f)
		if holds != "" || err != nil && !(cutShort && tooSmall(f)) {
			written = append(written, f)
		}
	}
	switch {
	case cutShort && len(written) > 0:
		return nil, fmt.Errorf("a first start is under way or was cut short, and %s may belong to an array whose recovery key was never shown: "+
			"if no daemon runs, remove %s and start again, or list the disks under `disks:` in the configuration to keep that array", written[0], dir.disks())
	case cutShort:
		return nil, errNoArray
	case len(written) > 0:
		return files, nil
	}
	left, err := dir.remains()
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("%s is missing, but %s tells of an array, and no new one is made beside it: put the file back, or list the disks "+
			"under `disks:` in the configuration (--config FILE); a new array wants another data directory", dir.arrayFile(), strings.Join(left, ", "))
	}
	return nil, errNoArray
}

// diskList names what diskPaths goes by.
func diskList(cfg *Config, dir dataDir) string {
	switch {
	case len(cfg.Disks) > 0:
		return "`disks:` in the configuration"
	case dir.noted():
		return dir.arrayFile()
	}
	return dir.disks()
}

// tooSmall reports whether a disk file has not its full size: the start that was making it was cut short.
func tooSmall(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Size() < minEmbeddedDisk
}

// readSecret reads a secret of one line from a file that others may not read, or from a pipe. The caller wipes it.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("read secret %s: everybody may read or write it: chmod 600 %[1]s", path)
	}
	buf := make([]byte, kms.MaxPassphrase+2)
	n, err := io.ReadFull(f, buf)
	switch {
	case err == nil:
		clear(buf)
		return nil, fmt.Errorf("read secret %s: longer than %d bytes", path, kms.MaxPassphrase)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read secret %s: it is empty", path)
	case !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("read secret %s: %w", path, err)
	}
	return bytes.TrimSuffix(bytes.TrimSuffix(buf[:n], []byte("\n")), []byte("\r")), nil
}

// keySlots are the slots that the configuration can open, cheapest first.
func keySlots(cfg *Config, dir dataDir, getenv func(string) string) ([]kms.Slot, error) {
	var slots []kms.Slot
	switch path := secretPath(getenv, cfg.RootKeyFile, "root.key"); {
	case path != "":
		slots = append(slots, kms.NewFileSlot(path))
	default:
		if _, err := os.Stat(dir.rootKey()); err == nil {
			slots = append(slots, kms.NewFileSlot(dir.rootKey()))
		}
	}
	if path := secretPath(getenv, cfg.PassphraseFile, "passphrase"); path != "" {
		slots = append(slots, kms.NewPassphraseSlot(func(context.Context) ([]byte, error) { return readSecret(path) }, kms.Argon2{}))
	}
	if path := secretPath(getenv, cfg.RecoveryKeyFile, "recovery_key"); path != "" {
		text, err := readSecret(path)
		if err != nil {
			return nil, err
		}
		slot, err := kms.ParseRecoveryKey(string(text))
		clear(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		slots = append(slots, slot)
	}
	if len(slots) == 0 {
		return nil, errors.New("nothing to unlock the array with: no key file, passphrase file or recovery key file is configured")
	}
	return slots, nil
}

// appliance is an open array with everything above it but S3.
type appliance struct {
	crypto *hw.Engine
	keys   *kms.Keyring
	array  *disk.Array
	store  *object.Store // nil: opened for reading
	scrub  *disk.Scrub   // nil but in a daemon
	slot   string        // kind of the key slot that opened it
	dir    dataDir
	paths  atomic.Pointer[[]string] // where the disks are looked for

	noting   sync.Mutex // held while array.yaml is written; guards all below
	joins    []string   // disks that commands are taking in
	olds     []string   // disks that help to rebuild the ones that replaced them
	leftover bool       // array.yaml names such disks of an earlier process

	configured bool // the configuration lists the disks
}

// openMode says what an appliance is opened for.
type openMode struct {
	readOnly bool   // status and check: nothing is written and there is no store, unless index says where
	index    string // export: directory of an index of its own
	rebuild  bool   // throw the index away and replay the whole log
	// replaying is told of each band of the log that a replay has behind it; nil: the daemon's log is told, now and then.
	replaying func(done, total int64)
}

// replayed returns what is told of each band that a replay has behind it.
func (m *openMode) replayed(log *slog.Logger) func(done, total int) {
	last := time.Now()
	return func(done, total int) {
		if m.replaying != nil {
			m.replaying(int64(done), int64(total))
		} else if now := time.Now(); now.Sub(last) >= replayLine {
			last = now
			log.Info("log is replayed into the index", "bands", done, "of", total)
		}
	}
}

// replayLine is how often the log says how far a replay is: most starts are shorter.
const replayLine = 5 * time.Second

// openAppliance finds the disks, unlocks the keys and brings array and index up to date. The data directory is locked. An index that
// proves corrupt half-way is marked so, and the second attempt begins with an empty one.
func openAppliance(ctx context.Context, cfg *Config, getenv func(string) string, crypto *hw.Engine, mode openMode, log *slog.Logger) (*appliance, error) {
	app, err := tryAppliance(ctx, cfg, getenv, crypto, mode, log)
	if errors.Is(err, object.ErrIndex) {
		log.Warn("index failed while it was brought up to date: the array is opened again", "cause", err)
		app, err = tryAppliance(ctx, cfg, getenv, crypto, mode, log)
	}
	return app, err
}

func tryAppliance(ctx context.Context, cfg *Config, getenv func(string) string, crypto *hw.Engine, mode openMode, log *slog.Logger) (_ *appliance, err error) {
	dir := dataDir(cfg.Data)
	paths, err := diskPaths(cfg, dir)
	if err != nil {
		return nil, err
	}
	slots, err := keySlots(cfg, dir, getenv)
	if err != nil {
		return nil, err
	}
	set, err := disk.Discover(paths, mode.readOnly)
	if err != nil {
		return nil, fmt.Errorf("open array: %w", err)
	}
	if err := set.Only(notedID(cfg, dir)); err != nil {
		return nil, errors.Join(fmt.Errorf("open array: %w: move each such disk away, or take it off the list of disks, which is %s", err, diskList(cfg, dir)), set.Close())
	}
	app := &appliance{crypto: crypto, dir: dir, configured: len(cfg.Disks) > 0}
	if note, err := readNote(dir); err == nil && !app.configured {
		paths, app.leftover = note.Disks, len(note.Maybe) > 0 // in order of the slots
	}
	app.paths.Store(&paths)
	keys, results, err := kms.Unlock(ctx, set.ArrayID(), set.KeyArea(), slots)
	for _, r := range results {
		if r.OK {
			app.slot = r.Kind
			log.Info("key slot opened the array", "kind", r.Kind, "slot", r.Number, "took", r.Duration)
		} else {
			log.Warn("key slot did not open the array", "kind", r.Kind, "took", r.Duration, "cause", r.Err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, set.Close())
	}
	app.keys = keys
	if err := keys.Warning(); err != nil {
		log.Warn("keys are not locked into memory", "cause", err)
	}
	opt := disk.Options{Keys: keys, Crypto: crypto, Degraded: cfg.AllowDegraded, ReadOnly: mode.readOnly,
		Rebuild: mode.rebuild, Logger: log, SpareGrace: time.Duration(cfg.Spare.Grace), RebuildRate: int64(cfg.Rebuild.Rate), Discard: discards[cfg.Discard],
		Model: app.dir.model(log), Replaying: mode.replayed(log)}
	var mu sync.Mutex // guards live: a drain may end before the array is known here
	var live *disk.Array
	note := func() {
		if live == nil || mode.readOnly {
			return
		}
		if err := app.noteMembers(live.Status()); err != nil {
			log.Error("disks not noted", "cause", err)
		}
	}
	opt.Changed = func() {
		mu.Lock()
		defer mu.Unlock()
		note()
	}
	if !mode.readOnly {
		mode.index = dir.index()
	}
	if mode.index != "" {
		app.store, err = object.New(object.Options{IndexDir: mode.index, Rebuild: mode.rebuild, Keys: keys, Crypto: crypto,
			Cipher: cipherOf(cfg, crypto), CompactEvery: time.Duration(cfg.Compact.Every), CompactRate: int64(cfg.Compact.Rate), Logger: log})
		if err != nil {
			app.keys.Close()
			return nil, errors.Join(err, set.Close())
		}
		opt.State = app.store
	}
	if !mode.readOnly {
		if err := dir.endFirstStart(); err != nil { // before anything is stored
			return nil, errors.Join(err, app.Close(), set.Close())
		}
	}
	app.array, err = set.Open(ctx, opt)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open array: %w", err), app.Close())
	}
	mu.Lock()
	live = app.array
	note()
	mu.Unlock()
	if app.store != nil {
		if mode.readOnly {
			app.store.PauseCompaction()
		}
		app.store.Start(object.OnArray(app.array))
	}
	st := app.array.Status()
	log.Info("array open", "array_id", st.ArrayID, "data", st.Data, "parity", st.Parity, "disks", len(st.Disks), "state", st.State,
		"reason", st.Reason, "epoch", st.Epoch, "key_epoch", keys.CurrentEpoch(), "io", st.IO, "io_reason", st.IOReason)
	return app, nil
}

// cipherOf is the configured algorithm, or the one that this processor does well.
func cipherOf(cfg *Config, crypto *hw.Engine) hw.Primitive {
	if cfg.Algorithm != "" {
		return hw.Primitive(cfg.Algorithm)
	}
	if slices.ContainsFunc(crypto.Report().Features, func(f string) bool { return f == "AESNI" || f == "AESARM" }) {
		return hw.AES256GCM
	}
	return hw.ChaCha20Poly1305
}

// Close ends the array before the store, which may then make its last checkpoint, and wipes the keys.
func (a *appliance) Close() error {
	var errs []error
	if a.store != nil {
		a.store.Stop() // compaction works on the array
	}
	if a.array != nil {
		errs = append(errs, a.array.Close())
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	a.keys.Close()
	return errors.Join(errs...)
}

// fault says why the appliance cannot serve requests, "" if it can. A degraded array serves.
func (a *appliance) fault() string {
	if err := a.store.Healthy(); err != nil {
		return err.Error()
	}
	switch st := a.array.Status(); st.State {
	case "healthy", "degraded":
		return ""
	default:
		return "array " + st.State + ": " + st.Reason
	}
}
