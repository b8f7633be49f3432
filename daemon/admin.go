package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"coffer/disk"
)

// Limits of the admin listener, which serves a few scrapers and operators.
const (
	adminMaxConns      = 64
	adminHeaderTimeout = 5 * time.Second
	adminIdleTimeout   = time.Minute
	adminMaxHeader     = 16 << 10
)

// health is what /readyz answers.
type health struct {
	// reason says why the daemon cannot serve now; "" means that it can.
	reason atomic.Pointer[string]
}

func (h *health) set(reason string) { h.reason.Store(&reason) }

// ready reports why requests would fail now, "" if they would not.
func (h *health) ready(app *appliance) string {
	if r := h.reason.Load(); r != nil && *r != "" {
		return *r
	}
	if app == nil {
		return errNotOpen
	}
	return app.fault()
}

const errNotOpen = "the array is not open yet"

// adminOptions say what the admin listener shows.
type adminOptions struct {
	health   *health
	registry *prometheus.Registry
	app      func() *appliance // nil until the array is open
	loopback bool              // only this machine reaches the listener
}

// newAdminHandler serves /livez, /readyz, /metrics, /array/status and, to this machine only, /array/check, /array/scrub,
// /array/compact, /array/replace, /array/add, /array/remove and /debug/pprof.
func newAdminHandler(opt adminOptions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reason := opt.health.ready(opt.app()); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /array/status", withApp(opt.app, func(w http.ResponseWriter, _ *http.Request, app *appliance) {
		answerJSON(w, app.status(true))
	}))
	mux.Handle("GET /metrics", promhttp.HandlerFor(opt.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: adminMaxConns, EnableOpenMetrics: true,
	}))
	if !opt.loopback {
		return mux
	}
	mux.HandleFunc("GET /array/scrub", withApp(opt.app, handleScrub))
	mux.HandleFunc("POST /array/scrub", withApp(opt.app, handleScrub))
	mux.HandleFunc("GET /array/compact", withApp(opt.app, handleCompact))
	mux.HandleFunc("POST /array/compact", withApp(opt.app, handleCompact))
	mux.HandleFunc("GET /array/compact/plan", withApp(opt.app, handleCompactPlan))
	checking := make(chan struct{}, 1) // one at a time: it reads every disk from end to end
	mux.HandleFunc("POST /array/check", withApp(opt.app, func(w http.ResponseWriter, r *http.Request, app *appliance) {
		select {
		case checking <- struct{}{}:
			defer func() { <-checking }()
		default:
			http.Error(w, "a check is running", http.StatusConflict)
			return
		}
		rep, err := app.array.Check(r.Context(), disk.CheckOptions{Repair: r.URL.Query().Get("repair") == "true"})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answerJSON(w, rep)
	}))
	mux.HandleFunc("POST /array/replace", withApp(opt.app, func(w http.ResponseWriter, r *http.Request, app *appliance) {
		q := r.URL.Query()
		rep, err := app.replace(r.Context(), q.Get("old"), q.Get("new"), q.Get("force") == "true")
		answerOr409(w, rep, err)
	}))
	mux.HandleFunc("POST /array/add", withApp(opt.app, handleAdd))
	mux.HandleFunc("POST /array/remove", withApp(opt.app, handleRemove))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return localHost(mux)
}

// withApp answers 503 until the array is open.
func withApp(app func() *appliance, h func(http.ResponseWriter, *http.Request, *appliance)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := app()
		if a == nil {
			http.Error(w, errNotOpen, http.StatusServiceUnavailable)
			return
		}
		h(w, r, a)
	}
}

func answerJSON(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	_ = writeJSON(w, doc) // an error means that the client is gone
}

// localHost refuses requests that name another host than this machine: a web page that had its own name resolve to the loopback
// address could otherwise read the admin listener through a visitor's browser.
func localHost(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
			http.Error(w, "this listener answers only to localhost", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
