package main

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// token reads the token of the running daemon.
func (in *instance) token(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(string(readFile(t, dataDir(in.dir).token())))
}

// post sends a changing call to the admin listener; token "" sends none.
func (in *instance) post(t *testing.T, path, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestAdminGuard: who may ask the admin listener for what. 503 is the answer of a call that was let through, as no array is open.
func TestAdminGuard(t *testing.T) {
	const file = "/data/run/admin.token"
	good := http.Header{"Authorization": {"Bearer secret"}}
	page := func(site, origin string) http.Header {
		h := good.Clone()
		h["Sec-Fetch-Site"] = []string{site}
		h["Origin"] = []string{origin}
		return h
	}
	const scrub = "/array/scrub?do=now"
	type call struct {
		method, path, host string
		header             http.Header
		network            bool // the listener is not on loopback
		code               int
		body               string
	}
	calls := []call{
		{"GET", "/livez", "localhost:9001", nil, false, 200, "ok"},
		{"HEAD", "/livez", "localhost:9001", nil, false, 200, ""},
		{"GET", "/metrics", "127.0.0.1:9001", nil, false, 200, ""},
		{"GET", "/array/status", "[::1]:9001", nil, false, 503, errNotOpen},
		{"GET", "/array/scrub", "localhost:9001", http.Header{"Sec-Fetch-Site": {"none"}}, false, 503, errNotOpen},
		{"GET", "/livez", "attacker.example:9001", nil, false, 403, "only to localhost"},
		{"GET", "/livez", "localhost:9001", http.Header{"Sec-Fetch-Site": {"cross-site"}}, false, 403, "pages of others"},
		{"GET", "/livez", "coffer.example:9001", http.Header{"Sec-Fetch-Site": {"cross-site"}}, true, 403, "pages of others"},
		{"GET", "/livez", "coffer.example:9001", http.Header{"Origin": {"http://attacker.example"}}, true, 403, "pages of others"},
		{"GET", "/livez", "coffer.example:9001", nil, true, 200, "ok"},
		{"POST", "/livez", "coffer.example:9001", nil, true, 403, file},
		{"POST", "/array/scrub", "coffer.example:9001", good, true, 404, ""},
		{"PUT", "/array/scrub", "localhost:9001", nil, false, 403, file},
		{"DELETE", "/no/such", "localhost:9001", nil, false, 403, file},
		{"POST", scrub, "localhost:9001", http.Header{"Authorization": {"Bearer secre"}}, false, 403, file},
		{"POST", scrub, "localhost:9001", http.Header{"Authorization": {"Bearer "}}, false, 403, file},
		{"POST", scrub, "localhost:9001", http.Header{"Authorization": {"secret"}}, false, 403, file},
		{"POST", scrub, "localhost:9001", page("same-origin", "http://localhost:9001"), false, 503, errNotOpen},
		{"POST", scrub, "localhost:9001", page("cross-site", "http://attacker.example"), false, 403, "pages of others"},
		{"POST", scrub, "localhost:9001", page("same-site", "http://localhost:8080"), false, 403, "pages of others"},
		{"POST", scrub, "localhost:9001", http.Header{"Authorization": good["Authorization"], "Origin": {"http://localhost:8080"}}, false, 403, "pages of others"},
		{"POST", scrub, "localhost:9001", http.Header{"Authorization": good["Authorization"], "Origin": {"null"}}, false, 403, "pages of others"},
	}
	for _, path := range []string{"/array/scrub?do=now", "/array/compact?do=now", "/array/check", "/array/replace?old=1&new=x", "/array/add?path=x",
		"/array/remove?disk=1&do=remove"} {
		calls = append(calls, call{"POST", path, "127.0.0.1:9001", nil, false, 403, file}, call{"POST", path, "127.0.0.1:9001", good, false, 503, errNotOpen})
	}
	for _, tt := range calls {
		h := newAdminHandler(adminOptions{health: new(health), registry: newRegistry(), app: func() *appliance { return nil },
			loopback: !tt.network, token: "secret", tokenFile: file})
		r := httptest.NewRequest(tt.method, tt.path, nil)
		r.Host = tt.host
		maps.Copy(r.Header, tt.header)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if body := w.Body.String(); w.Code != tt.code || !strings.Contains(body, tt.body) {
			t.Errorf("%s %s%s with %v: %d %q, want %d", tt.method, tt.host, tt.path, tt.header, w.Code, body, tt.code)
		}
	}
}

// TestAdminToken: each start has a token of its own, in a file that only this user reads and that goes with the daemon.
func TestAdminToken(t *testing.T) {
	dir := t.TempDir()
	// What a killed daemon left behind.
	if err := errors.Join(dataDir(dir).publish("http", "127.0.0.1:1"), writeFile(dataDir(dir).token(), []byte("old\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{"old": true}
	for range 2 {
		in := startDaemon(t, dir, nil)
		token := in.token(t)
		st, err := os.Stat(dataDir(dir).token())
		if err != nil || st.Mode() != 0o600 || len(token) < 26 || seen[token] {
			t.Errorf("token %q: %v, %v", token, st.Mode(), err)
		}
		for _, wrong := range []string{"", "old"} {
			if code, body := in.post(t, "/array/scrub?do=pause", wrong); code != http.StatusForbidden || !strings.Contains(body, dataDir(dir).token()) {
				t.Errorf("token %q: %d %s", wrong, code, body)
			}
		}
		if code, body := in.post(t, "/array/scrub?do=resume", token); code != http.StatusOK {
			t.Errorf("%d %s", code, body)
		}
		if code, out, stderr := coffer(t, "array", "scrub", "--resume", "--data", dir); code != exitOK {
			t.Errorf("command: exit %d: %s%s", code, out, stderr)
		}
		seen[token] = true
		in.end(t)
		if strings.Contains(in.out.String()+in.log.String(), token) {
			t.Error("the token is told")
		}
		if left, err := filepath.Glob(filepath.Join(dir, "run", "*")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	if _, err := os.Stat(dataDir(dir).token()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
