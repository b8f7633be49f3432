package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"coffer/daemon/internal/listener"
	"coffer/disk"
	"coffer/hw"
	"coffer/object"
	"coffer/s3"
)

// Limits of the S3 listeners that are not configurable. AWS takes 8 KiB of request headers; signed URLs and metadata come on top.
const (
	headerTimeout = 10 * time.Second
	maxHeader     = 32 << 10
)

// serveFlags override the configuration.
type serveFlags struct {
	config, data, listen, http, admin string
	degraded                          bool
	recoveryKeyFile                   string
}

const serveHelp = `Serve opens the array and answers S3 requests until SIGTERM or SIGINT.

Without a configuration file everything has a default. A first start with no array makes one of six
files under DIR/disks (4 data + 2 parity: any two may be lost), prints its recovery key and the root
credentials once, and keeps the key that opens it in DIR/keys/root.key. That key protects nothing if
the directory is stolen together with it; for disks of their own see coffer array create.

SIGHUP reads the log level and the certificate again. The first SIGTERM or SIGINT lets running requests
end, for at most limits.shutdown; the second ends the process at once.

Environment:

    COFFER_ROOT_ACCESS_KEY, COFFER_ROOT_SECRET_KEY    root credentials
    COFFER_DATA, COFFER_LISTEN, COFFER_HTTP, COFFER_ADMIN, COFFER_CONFIG    as the flags
    COFFER_LOG_LEVEL, COFFER_LOG_FORMAT    as log.level and log.format of the configuration`

func newServeCommand(e env) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve S3",
		Long:  serveHelp,
		Example: `  coffer serve --data /var/lib/coffer
  coffer serve --config /etc/coffer/coffer.yaml --listen 0.0.0.0:9000
  COFFER_ROOT_ACCESS_KEY=admin COFFER_ROOT_SECRET_KEY=a-long-secret coffer serve`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (Config, error) { return f.load(e.getenv) }
			cfg, err := load()
			if err != nil {
				return err
			}
			if e.getenv("GOMAXPROCS") == "" {
				runtime.GOMAXPROCS(disk.GoProcs(runtime.NumCPU()))
			}
			return newDaemon(e, cfg, load).run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.data, "data", "", "`DIR`ectory of index, certificates and keys (default ./data)")
	fl.StringVar(&f.listen, "listen", "", "`HOST:PORT` of S3 over TLS (default 127.0.0.1:9000)")
	fl.StringVar(&f.http, "http", "", "`HOST:PORT` of S3 in plaintext; loopback unless the configuration allows more (default none)")
	fl.StringVar(&f.admin, "admin", "", "`HOST:PORT` of health, metrics and array status, or none: then a running array has no status (default 127.0.0.1:9001)")
	fl.StringVar(&f.config, "config", "", "configuration `FILE` in YAML")
	fl.StringVar(&f.recoveryKeyFile, "recovery-key-file", "", "`FILE` with the recovery key, to open the array when its other key slots are lost")
	fl.BoolVar(&f.degraded, "degraded", false, "open the array though so few disks are present that they could be a stale half of it")
	return cmd
}

// load reads, completes and checks the configuration: file, then variables, then flags.
func (f *serveFlags) load(getenv func(string) string) (Config, error) {
	path := f.config
	setDefault(&path, getenv("COFFER_CONFIG"))
	c, err := loadConfig(path)
	if err != nil {
		return c, usageError{err}
	}
	c.applyEnv(getenv)
	for _, o := range []struct{ flag, field *string }{
		{&f.data, &c.Data}, {&f.listen, &c.Listen}, {&f.http, &c.HTTP}, {&f.admin, &c.Admin}, {&f.recoveryKeyFile, &c.RecoveryKeyFile},
	} {
		if *o.flag != "" {
			*o.field = *o.flag
		}
	}
	c.AllowDegraded = c.AllowDegraded || f.degraded
	c.setDefaults()
	if err := c.Validate(); err != nil {
		return c, usageError{fmt.Errorf("configuration: %w", err)}
	}
	return c, nil
}

// daemon is one run of `coffer serve`.
type daemon struct {
	env      env
	cfg      Config
	load     func() (Config, error) // reads the configuration again
	dir      dataDir
	level    *slog.LevelVar
	log      *slog.Logger
	health   health
	registry *prometheus.Registry
	app      atomic.Pointer[appliance] // nil until the array is open
}

func newDaemon(e env, cfg Config, load func() (Config, error)) *daemon {
	d := &daemon{env: e, cfg: cfg, load: load, dir: dataDir(cfg.Data), level: new(slog.LevelVar), registry: newRegistry()}
	level, _ := parseLevel(cfg.Log.Level) // checked by Validate
	d.level.Set(level)
	d.log = newLogger(e.stderr, cfg.Log.Format, d.level)
	d.health.set("starting")
	return d
}

// run serves until ctx ends.
func (d *daemon) run(ctx context.Context) (err error) {
	unlock, err := d.dir.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	d.log.Info("starting", "version", version, "data", d.cfg.Data, "pid", os.Getpid())
	if err := d.dir.unpublish(); err != nil { // another process may listen there by now
		return err
	}
	defer func() { err = errors.Join(err, d.dir.unpublish()) }()

	admin, err := d.startAdmin()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, admin.stop()) }()

	crypto, err := hw.Probe(hw.Options{Pin: pins(&d.cfg), SkipBench: d.cfg.Hardware.SkipBenchmark, Logger: d.log})
	if err != nil {
		return err
	}
	registerHardware(d.registry, crypto)
	if _, _, err := givenCredentials(d.env.getenv, d.cfg.RootCredentialsFile); err != nil { // before anything is made
		return err
	}
	certs, err := newCerts(d.cfg.tls(), d.dir.tls(), d.cfg.Listen, time.Now, d.log) // likewise
	if err != nil {
		return err
	}
	news, err := d.firstStart(ctx)
	if err != nil {
		return err
	}
	registerArray(d.registry, d.app.Load)
	registerScrub(d.registry, d.app.Load)
	metrics := newS3Metrics(d.registry)
	for {
		app, err := openAppliance(ctx, &d.cfg, d.env.getenv, crypto, openMode{}, d.log)
		if err != nil {
			return err
		}
		err = d.runOn(ctx, app, metrics, admin, certs, &news)
		if !errors.Is(err, object.ErrIndex) || ctx.Err() != nil {
			return err
		}
		d.log.Error("index failed: the array is opened again, which rebuilds the index from the log if it is corrupt", "cause", err)
	}
}

// runOn serves an open array until ctx ends or the index fails, and closes it.
func (d *daemon) runOn(ctx context.Context, app *appliance, metrics *s3Metrics, admin *endpoint, certs *certs, n *news) (err error) {
	defer func() { err = errors.Join(err, app.Close()) }()
	app.scrub = startScrub(app.array, d.dir, &d.cfg.Scrub, d.log)
	d.app.Store(app)
	defer d.app.Store(nil)

	creds, err := d.credentials(ctx, app, n)
	if err != nil {
		return err
	}
	defer func() {
		if n.newRoot { // kept, and not yet shown: the next start would not
			printRootCredentials(d.env.stdout, creds)
		}
	}()
	endpoints, err := d.listenS3(metrics.count(d.front(app, creds, metrics)), certs.config())
	if err != nil {
		return err
	}
	d.health.set("")
	d.banner(n, endpoints, admin.addr, certs.caFile(), creds)
	n.newRoot = false
	if err := notifySystemd(d.env.getenv, "READY=1"); err != nil {
		d.log.Warn("systemd not told", "cause", err)
	}
	return d.serve(ctx, app, endpoints, certs)
}

// front speaks S3 for the open array.
func (d *daemon) front(app *appliance, creds rootCredentials, m *s3Metrics) *s3.Server {
	opt := s3.Options{Store: app.store, Lookup: lookup(creds), Region: d.cfg.Region, Domains: d.cfg.Domains, Logger: d.log,
		Observe: d.observe(m), SHA256: meteredSHA256(app.crypto), IdleTimeout: d.cfg.Limits.Stall,
		WrongCustomerKeyStatus: d.cfg.S3.WrongCustomerKeyStatus}
	if d.cfg.S3.FreshBucketEncryption == freshNotFound {
		opt.FreshBucketEncryption = s3.FreshNotFound
	}
	return s3.New(opt)
}

// startAdmin serves the admin listener from the first moment on, so that a long recovery can be watched.
func (d *daemon) startAdmin() (*endpoint, error) {
	if d.cfg.Admin == adminOff {
		return &endpoint{name: "admin"}, nil
	}
	tokenFile, err := filepath.Abs(d.dir.token())
	if err != nil {
		return nil, fmt.Errorf("name the admin token: %w", err)
	}
	token := rand.Text()
	if err := writeFile(tokenFile, []byte(token+"\n"), 0o600); err != nil { // before the address: askDaemon says why
		return nil, err
	}
	h := newAdminHandler(adminOptions{
		health: &d.health, registry: d.registry, loopback: isLoopback(d.cfg.Admin), app: d.app.Load, token: token, tokenFile: tokenFile,
	})
	srv := &http.Server{Handler: h, ReadHeaderTimeout: adminHeaderTimeout, IdleTimeout: adminIdleTimeout, MaxHeaderBytes: adminMaxHeader}
	ep, err := d.listen("admin", d.cfg.Admin, listener.Options{MaxConns: adminMaxConns}, nil, srv)
	if err != nil {
		return nil, err
	}
	ep.start()
	return ep, nil
}

// listenS3 opens the listeners of S3 without serving yet.
func (d *daemon) listenS3(h http.Handler, tlsConfig *tls.Config) (eps []*endpoint, err error) {
	defer func() {
		if err != nil {
			for _, ep := range eps {
				err = errors.Join(err, ep.stop())
			}
		}
	}()
	server := func() *http.Server {
		return &http.Server{
			Handler: listener.Handler(h), ConnContext: listener.ConnContext,
			ReadHeaderTimeout: headerTimeout, IdleTimeout: d.cfg.Limits.Idle, MaxHeaderBytes: maxHeader,
			DisableGeneralOptionsHandler: true, // OPTIONS * would be a success that s3 does not know of
		}
	}
	opt := listener.Options{MaxConns: d.cfg.Limits.Connections}
	if d.cfg.HTTP != "" {
		ep, err := d.listen("http", d.cfg.HTTP, opt, nil, server())
		if err != nil {
			return eps, err
		}
		eps = append(eps, ep)
	}
	opt.Gather = true
	ep, err := d.listen("https", d.cfg.Listen, opt, tlsConfig, server())
	if err != nil {
		return eps, err
	}
	return append(eps, ep), nil
}

// endpoint is a listener and what serves it.
type endpoint struct {
	name string
	addr string // as bound
	ln   net.Listener
	srv  *http.Server // nil: turned off
	done chan error   // of start
}

// listen binds addr and publishes what was bound.
func (d *daemon) listen(name, addr string, opt listener.Options, tlsConfig *tls.Config, srv *http.Server) (*endpoint, error) {
	inner, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", name, err)
	}
	ep := &endpoint{name: name, addr: inner.Addr().String(), ln: listener.New(inner, opt), srv: srv}
	if tlsConfig != nil {
		ep.ln = tls.NewListener(ep.ln, tlsConfig)
	}
	srv.ErrorLog = slog.NewLogLogger(d.log.Handler(), slog.LevelDebug) // handshakes with port scanners and the like
	if err := d.dir.publish(name, ep.addr); err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	d.log.Info("listening", "listener", name, "addr", ep.addr)
	return ep, nil
}

func (ep *endpoint) serve() error {
	if err := ep.srv.Serve(ep.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ep.name, err)
	}
	return nil
}

// start serves in the background until stop.
func (ep *endpoint) start() {
	ep.done = make(chan error, 1)
	go func() { ep.done <- ep.serve() }()
}

// stop ends the endpoint at once.
func (ep *endpoint) stop() error {
	if ep.srv == nil {
		return nil
	}
	err := errors.Join(ep.srv.Close(), ep.ln.Close())
	if errors.Is(err, net.ErrClosed) { // the server closes listeners that it has served
		err = nil
	}
	if ep.done != nil {
		err = errors.Join(err, <-ep.done)
	}
	return err
}

// serve answers requests until ctx ends, a listener or the index fails, then lets running requests end.
func (d *daemon) serve(ctx context.Context, app *appliance, eps []*endpoint, certs *certs) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, ep := range eps {
		g.Go(ep.serve)
	}
	g.Go(func() error {
		select {
		case <-gctx.Done():
			return nil
		case <-app.store.Failed():
			return app.store.Healthy()
		}
	})
	g.Go(func() error {
		d.maintain(gctx, certs)
		return nil
	})
	<-gctx.Done()
	if err := app.store.Healthy(); err != nil && ctx.Err() == nil {
		d.health.set("the array is being opened again: " + err.Error())
	} else {
		d.stopping()
	}
	deadline, cancel := context.WithTimeout(context.Background(), d.cfg.Limits.Shutdown)
	defer cancel()
	for _, ep := range eps {
		g.Go(func() error {
			err := ep.srv.Shutdown(deadline)
			if errors.Is(err, context.DeadlineExceeded) {
				d.log.Warn("requests cut off", "listener", ep.name, "timeout", d.cfg.Limits.Shutdown)
				err = ep.srv.Close()
			}
			return err
		})
	}
	return g.Wait()
}

// stopping tells everybody who asks that the process is about to end.
func (d *daemon) stopping() {
	d.log.Info("shutting down", "timeout", d.cfg.Limits.Shutdown)
	d.health.set("shutting down")
	if err := notifySystemd(d.env.getenv, "STOPPING=1"); err != nil {
		d.log.Warn("systemd not told", "cause", err)
	}
}

// maintain renews the certificate and reloads on SIGHUP until ctx ends.
func (d *daemon) maintain(ctx context.Context, certs *certs) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(certCheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := certs.refresh(); err != nil {
				d.log.Error("certificate not renewed", "cause", err)
			}
		case <-hup:
			if err := d.reload(certs); err != nil {
				d.log.Error("reload failed, the old settings stay", "cause", err)
			} else {
				d.log.Info("reloaded", "level", d.level.Level())
			}
		}
	}
}

// reload takes over what may change in a running daemon: the log level and the certificate.
func (d *daemon) reload(certs *certs) error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	level, err := parseLevel(cfg.Log.Level)
	if err != nil {
		return err
	}
	if err := certs.refresh(); err != nil {
		return err
	}
	d.level.Set(level)
	return nil
}

// observe feeds metrics and, at level debug, the log. Names of buckets and keys stay out of both: they are sealed on the disks,
// and the log is not.
func (d *daemon) observe(m *s3Metrics) func(*s3.Observation) {
	return func(o *s3.Observation) {
		m.observe(o)
		d.log.Debug("request", "request_id", o.RequestID, "op", o.Op, "code", o.Code, "status", o.Status, "took", o.Duration,
			"bytes_in", o.BytesIn, "bytes_out", o.BytesOut, "access_key", o.AccessKey, "remote", o.RemoteAddr)
	}
}

// lookup knows the root credentials alone.
func lookup(root rootCredentials) func(context.Context, string) (s3.Credentials, error) {
	return func(_ context.Context, accessKey string) (s3.Credentials, error) {
		if accessKey != root.AccessKey {
			return s3.Credentials{}, s3.ErrUnknownKey
		}
		return s3.Credentials{AccessKey: root.AccessKey, Secret: root.SecretKey}, nil
	}
}
