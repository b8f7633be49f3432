package listener

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// maxRecord is the plaintext of a TLS record; a write no longer than it is one call anyway.
const maxRecord = 16 << 10

type connKey struct{}

// ConnContext is for http.Server.ConnContext: it lets Handler find the connection under a tls.Conn.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if lc, ok := c.(*Conn); ok && lc.l.gather {
		return context.WithValue(ctx, connKey{}, lc)
	}
	return ctx
}

// Handler wraps h so that the records of each Write of a response gather. Nothing waits beyond the Write.
func Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*Conn); ok {
			w = &gatherer{ResponseWriter: w, conn: c}
		}
		h.ServeHTTP(w, r)
	})
}

type gatherer struct {
	http.ResponseWriter
	conn *Conn
}

// Unwrap is for http.ResponseController.
func (g *gatherer) Unwrap() http.ResponseWriter { return g.ResponseWriter }

// Write sends p as part of the response's body.
func (g *gatherer) Write(p []byte) (int, error) {
	if len(p) <= maxRecord {
		return g.ResponseWriter.Write(p)
	}
	g.conn.cork()
	n, err := g.ResponseWriter.Write(p)
	if ferr := g.conn.uncork(); err == nil {
		err = ferr
	}
	return n, err
}
