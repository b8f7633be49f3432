package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// dataDir is the directory of everything that is not on the array's disks. Of its content only keys/root.key, where that slot is
// used, is needed to read the array again; all else can be made anew.
//
//	coffer.lock    held while a process works with the array
//	array.yaml     where the array's disks were when it was created
//	disks/         the embedded array's disk files
//	first-start    the embedded array is being made: nothing was ever stored in it
//	index/         sealed cache of the log, rebuilt from the disks when lost
//	index.corrupt  the index proved corrupt: it is rebuilt at the next start
//	keys/root.key  key of the file slot
//	scrub.json     when the array was swept last, and what was found
//	run/           addresses of the running daemon's listeners, and the token that changing calls of the admin listener need
//	tls/           private CA and server certificate
type dataDir string

func (d dataDir) lockFile() string  { return filepath.Join(string(d), "coffer.lock") }
func (d dataDir) arrayFile() string { return filepath.Join(string(d), "array.yaml") }
func (d dataDir) starting() string  { return filepath.Join(string(d), "first-start") }
func (d dataDir) disks() string     { return filepath.Join(string(d), "disks") }
func (d dataDir) index() string     { return filepath.Join(string(d), "index") }
func (d dataDir) rootKey() string   { return filepath.Join(string(d), "keys", "root.key") }
func (d dataDir) scrub() string     { return filepath.Join(string(d), "scrub.json") }
func (d dataDir) qualified() string { return filepath.Join(string(d), "qualified.json") }
func (d dataDir) run() string       { return filepath.Join(string(d), "run") }
func (d dataDir) token() string     { return filepath.Join(d.run(), "admin.token") }
func (d dataDir) tls() string       { return filepath.Join(string(d), "tls") }

// errInUse means that another process works with the data directory.
var errInUse = errors.New("data directory is in use by another coffer process")

// lock makes the directory if need be and takes it for this process. The lock ends with the process, however it ends.
func (d dataDir) lock() (unlock func() error, err error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	f, err := os.OpenFile(d.lockFile(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", d, errInUse)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", d, err)
	}
	return f.Close, nil
}

// publish notes the address of a listener for other processes.
func (d dataDir) publish(name, addr string) error {
	return writeFile(filepath.Join(d.run(), name+".addr"), []byte(addr+"\n"), 0o644)
}

// unpublish removes what this process or an earlier one published, and its token.
func (d dataDir) unpublish() error {
	var errs []error
	for _, name := range []string{"admin.addr", "http.addr", "https.addr", "admin.token"} {
		if err := os.Remove(filepath.Join(d.run(), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove what a daemon published: %w", err))
		}
	}
	return errors.Join(errs...)
}

// writeFile puts p at path durably and at once: a reader, or a boot after a power cut, finds the old content or the new.
// Missing directories are made for this user only.
func writeFile(path string, p []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	_, err = tmp.Write(p)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
