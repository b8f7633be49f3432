package main

import (
	"encoding/json"
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

// ready reports the reason for which requests would fail; check adds what only the array knows.
func (h *health) ready(check func() string) string {
	if r := h.reason.Load(); r == nil || *r != "" {
		if r == nil {
			return "starting"
		}
		return *r
	}
	return check()
}

// adminOptions say what the admin listener shows.
type adminOptions struct {
	health   *health
	check    func() string // why the array cannot serve, "" if it can
	status   func() any    // the document of /array/status
	registry *prometheus.Registry
	loopback bool // only this machine reaches the listener
}

// newAdminHandler serves /livez, /readyz, /metrics, /array/status and, to this machine only, /debug/pprof.
func newAdminHandler(opt adminOptions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reason := opt.health.ready(opt.check); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /array/status", func(w http.ResponseWriter, _ *http.Request) {
		status := opt.status()
		if status == nil {
			http.Error(w, "the array is not open yet", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(status) // an error means that the client is gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(opt.registry, promhttp.HandlerOpts{
		Registry: opt.registry, MaxRequestsInFlight: adminMaxConns, EnableOpenMetrics: true,
	}))
	if !opt.loopback {
		return mux
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return localHost(mux)
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
