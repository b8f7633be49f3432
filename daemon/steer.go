package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// steerFlags are those of a command that steers a task which the daemon does by itself.
type steerFlags struct {
	arrayFlags
	now, pause, resume, status, follow bool
	rate                               Size
	rateGiven                          bool
}

// bindSteering adds the flags that such commands share; the help of each says what it means there.
func (f *steerFlags) bindSteering(cmd *cobra.Command, now, pause, rate, status, follow string) {
	f.bindOpen(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&f.now, "now", false, now)
	fl.BoolVar(&f.pause, "pause", false, pause)
	fl.BoolVar(&f.resume, "resume", false, "end a pause")
	fl.Var(&f.rate, "rate", rate)
	fl.Lookup("rate").DefValue = "" // that of the configuration
	fl.BoolVar(&f.status, "status", false, status)
	fl.BoolVar(&f.follow, "follow", false, follow)
}

// request is what to ask the daemon for: to do some things, and perhaps to change the rate.
func (f *steerFlags) request(path string, do map[string]bool) (method, target string) {
	q := url.Values{}
	for _, name := range slices.Sorted(maps.Keys(do)) {
		if do[name] {
			q.Add("do", name)
		}
	}
	if f.rateGiven {
		q.Set("rate", strconv.FormatUint(uint64(f.rate), 10))
	}
	method = http.MethodPost
	if f.status {
		method = http.MethodGet
	}
	return method, path + "?" + q.Encode()
}

// askRunning asks the daemon that serves the data directory, and reports false if none does.
func (f *steerFlags) askRunning(ctx context.Context, cfg *Config, method, target string, doc any) (bool, error) {
	dir := dataDir(cfg.Data)
	if _, err := diskPaths(cfg, dir); err != nil { // also keeps lock from making a directory
		return false, err
	}
	unlock, err := dir.lock()
	if errors.Is(err, errInUse) {
		return true, askDaemon(ctx, dir, method, target, doc)
	}
	if err != nil {
		return false, err
	}
	return false, unlock()
}

// steer does what the query of a request says, or nothing if any of it is not understood.
func steer(q url.Values, setRate func(int64), do map[string]func()) error {
	for _, name := range q["do"] {
		if do[name] == nil {
			return fmt.Errorf("do %q: want one of %s", name, strings.Join(slices.Sorted(maps.Keys(do)), ", "))
		}
	}
	if v := q.Get("rate"); v != "" {
		rate, err := strconv.ParseInt(v, 10, 64)
		if err != nil || rate < 0 {
			return fmt.Errorf("rate %q is no number of bytes per second", v)
		}
		setRate(rate)
	}
	for _, name := range q["do"] {
		do[name]()
	}
	return nil
}
