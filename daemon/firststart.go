package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// news is what this start made and must show once.
type news struct {
	array    *created // nil: the array was there
	embedded bool     // it consists of files in the data directory
	newRoot  bool     // root credentials were made
}

// firstStart makes the embedded array if there is none and none is configured.
func (d *daemon) firstStart(ctx context.Context) (n news, err error) {
	if _, err := diskPaths(&d.cfg, d.dir); !errors.Is(err, errNoArray) {
		return n, err
	}
	if isJournal(d.env.getenv, d.env.stdout) {
		return n, fmt.Errorf("%w: its recovery key and credentials are printed once and must not go to the journal", errNoArray)
	}
	if err := d.dir.beginFirstStart(); err != nil {
		return n, err
	}
	plan, opt, err := embeddedArray(d.dir, d.cfg.EmbeddedDiskSize)
	if err != nil {
		return n, err
	}
	opt.passphraseFile = secretPath(d.env.getenv, d.cfg.PassphraseFile, "passphrase")
	d.log.Info("creating the embedded array", "disks", len(plan.Disks), "data", plan.Data, "parity", plan.Parity, "disk_size", opt.diskSize)
	n.embedded = true
	if n.array, err = createArray(ctx, d.dir, plan, opt); err != nil {
		return n, err
	}
	// The only moment at which the recovery key exists outside the array's slots: what fails later must not lose it.
	printRecoveryKey(d.env.stdout, n.array.RecoveryKey)
	return n, nil
}

// beginFirstStart marks the data directory before anything of an embedded array is made in it, and removes the blank disk files of a first
// start that was cut short. diskPaths has found no array.
func (d dataDir) beginFirstStart() error {
	begun, err := d.firstStartBegun()
	if err != nil {
		return err
	}
	if !begun {
		return writeFile(d.starting(), []byte("coffer serve is making the array in disks/; nothing is stored yet\n"), 0o600)
	}
	files, err := d.diskFiles()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("begin first start again: %w", err)
		}
	}
	return nil
}

// firstStartBegun reports whether a first start has begun and the array that it makes was never open.
func (d dataDir) firstStartBegun() (bool, error) {
	_, err := os.Stat(d.starting())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("look for a first start: %w", err)
	}
	return err == nil, nil
}

// endFirstStart removes the mark, durably: were it there when array.yaml is lost, a first start would begin again.
func (d dataDir) endFirstStart() error {
	err := os.Remove(d.starting())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(string(d))
	}
	if err != nil {
		return fmt.Errorf("end first start: %w", err)
	}
	return nil
}

// diskFiles are the disk files of the embedded array.
func (d dataDir) diskFiles() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(d.disks(), "disk*.img"))
	if err != nil {
		return nil, fmt.Errorf("find disks: %w", err)
	}
	return files, nil
}

// remains names what an array has left in the data directory besides its note.
func (d dataDir) remains() (left []string, err error) {
	for _, path := range []string{filepath.Dir(d.rootKey()), d.index(), d.disks()} {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for an array: %w", err)
		}
		if len(entries) > 0 {
			left = append(left, path)
		}
	}
	return left, nil
}

// credentials are the given ones, or those of the array, made at the first start.
func (d *daemon) credentials(ctx context.Context, app *appliance, n *news) (rootCredentials, error) {
	c, source, err := givenCredentials(d.env.getenv, d.cfg.RootCredentialsFile)
	if err != nil {
		return c, err
	}
	if source != "" {
		d.log.Info("root credentials given", "source", source, "access_key", c.AccessKey)
		return c, nil
	}
	if isJournal(d.env.getenv, d.env.stdout) {
		if p, err := app.store.Config(ctx, rootConfigName); err != nil || p == nil {
			return c, errors.Join(err, errors.New("no root credentials: set root_credentials_file, or run `coffer array create`; new ones must not go to the journal"))
		}
	}
	c, n.newRoot, err = storedCredentials(ctx, app.store)
	return c, err
}

func printRecoveryKey(w io.Writer, key string) {
	fmt.Fprintf(w, `
Recovery key, shown only now. It opens the array when every other key is lost; keep it on paper:

    %s

`, key)
}

func printRootCredentials(w io.Writer, c rootCredentials) {
	fmt.Fprintf(w, "Root credentials of S3, shown only now:\n\n    access key  %s\n    secret key  %s\n\n", c.AccessKey, c.SecretKey)
}

// banner tells how to use the endpoint.
func (d *daemon) banner(n *news, eps []*endpoint, admin, caFile string, c rootCredentials) {
	w := d.env.stdout
	st := d.app.Load().array.Status()
	endpoint := "https://" + dialAddr(eps[len(eps)-1].addr)
	fmt.Fprintf(w, "Coffer serves S3 at %s, region %s\n", endpoint, d.cfg.Region)
	for _, ep := range eps[:len(eps)-1] {
		fmt.Fprintf(w, "             and at http://%s, in plaintext\n", dialAddr(ep.addr))
	}
	fmt.Fprintf(w, "  array       %d disks, %d data + %d parity, %s\n", len(st.Disks), st.Data, st.Parity, st.State)
	if admin != "" {
		fmt.Fprintf(w, "  admin       http://%s/metrics\n", dialAddr(admin))
	}
	env := ""
	if caFile != "" {
		if abs, err := filepath.Abs(caFile); err == nil {
			caFile = abs
		}
		fmt.Fprintf(w, "  CA          %s\n", caFile)
		env = "AWS_CA_BUNDLE=" + shellQuote(caFile) + " "
	}
	fmt.Fprintf(w, "  access key  %s\n", c.AccessKey)
	secret := "..."
	if n.newRoot {
		secret = c.SecretKey
		fmt.Fprintf(w, "  secret key  %s   (shown only now; kept sealed in the array)\n", c.SecretKey)
	} else {
		fmt.Fprintf(w, "  secret key  as given, or as shown at the first start\n")
	}
	if d.app.Load().slot == "file" {
		fmt.Fprintf(w, "\nThe key that opens the array lies in %s.\nIt protects nothing if it is stolen together with the disks.\n", strings.TrimSuffix(d.dir.rootKey(), "/"))
	}
	fmt.Fprintf(w, `
Try:
  export %sAWS_DEFAULT_REGION=%s \
    AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s
  aws --endpoint-url %s s3 mb s3://first
  aws --endpoint-url %s s3 cp README.md s3://first/
  aws --endpoint-url %s s3 ls s3://first

`, env, d.cfg.Region, c.AccessKey, secret, endpoint, endpoint, endpoint)
}

// shellQuote writes a word as a shell reads it back.
func shellQuote(s string) string {
	const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-+:@%="
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// dialAddr is an address at which this machine reaches a listener.
func dialAddr(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
