package main

import (
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
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

	token     string // permits what is no plain read
	tokenFile string // where operators find it
}

// newAdminHandler serves /livez, /readyz, /metrics, /array/status and, to this machine only, /array/check, /array/scrub,
// /array/compact, /array/replace, /array/add, /array/remove and /debug/pprof. All but GET and HEAD wants the token.
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
		return sameOrigin(bearer(opt.token, opt.tokenFile, mux))
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
	return localHost(sameOrigin(bearer(opt.token, opt.tokenFile, mux)))
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

// sameOrigin refuses what a browser sends for a page that does not come from this listener: such a page could not read the answer, but
// the request would have had its effect (https://www.w3.org/TR/fetch-metadata/).
func sameOrigin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site") // browsers set it, pages cannot
		foreign := site != "" && site != "same-origin" && site != "none"
		for _, origin := range r.Header.Values("Origin") {
			u, err := url.Parse(origin)
			foreign = foreign || err != nil || u.Host != r.Host
		}
		if foreign {
			http.Error(w, "this listener answers no pages of others", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// bearer wants the token, as RFC 6750 section 2.1 has it, for every request that may change something. Any user of the machine reaches
// the listener; only who may read the data directory has the token.
func bearer(token, file string, h http.Handler) http.Handler {
	want := []byte("Bearer " + token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if !read && subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			http.Error(w, r.Method+` needs the header "Authorization: Bearer TOKEN" with the token of `+file, http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
