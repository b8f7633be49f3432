package listener

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"
)

// maxRecord is the plaintext of a TLS record; a write no longer than it is one call anyway.
const maxRecord = 16 << 10

// stallGrain is the part of the stall time that passes before a deadline is moved on: setting one costs a timer operation, and
// bodies arrive in thousands of small reads.
const stallGrain = 8

// Handler wraps h so that the records of each Write of a response gather, and so that a transfer in which no byte moves for the time stall is cut. The time that h itself takes counts only while it
// waits for the client. stall 0: never.
func Handler(h http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{ResponseWriter: w, ctl: http.NewResponseController(w), stall: stall}
		x.conn, _ = r.Context().Value(connKey{}).(*Conn)
		if x.conn != nil && !x.conn.l.gather {
			x.conn = nil
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &body{ReadCloser: r.Body, x: x}
		}
		// net/http sends what remains after h returns: the last deadline covers that, the next request sets its own.
		x.moveWrite()
		defer func() {
			x.lastWrite = time.Time{}
			x.moveWrite()
		}()
		h.ServeHTTP(x, r)
	})
}

type connKey struct{}

// ConnContext is for http.Server.ConnContext: it lets Handler find the connection under a tls.Conn.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if bc, ok := c.(*Conn); ok {
		return context.WithValue(ctx, connKey{}, bc)
	}
	return ctx
}

// exchange is one request and its response.
type exchange struct {
	http.ResponseWriter
	ctl                 *http.ResponseController
	conn                *Conn // nil: do not gather
	stall               time.Duration
	lastRead, lastWrite time.Time // when the deadlines were set
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// Write sends p as part of the response's body.
func (x *exchange) Write(p []byte) (int, error) {
	x.moveWrite()
	if x.conn == nil || len(p) <= maxRecord {
		return x.ResponseWriter.Write(p)
	}
	x.conn.cork()
	n, err := x.ResponseWriter.Write(p)
	if ferr := x.conn.uncork(); err == nil {
		err = ferr
	}
	return n, err
}

// moveWrite moves the write deadline on.
func (x *exchange) moveWrite() {
	if now := time.Now(); x.stall > 0 && now.Sub(x.lastWrite) > x.stall/stallGrain {
		x.lastWrite = now
		_ = x.ctl.SetWriteDeadline(now.Add(x.stall)) // not supported: then there is nothing to cut
	}
}

// body moves the read deadline on before each read.
type body struct {
	io.ReadCloser
	x *exchange
}

func (b *body) Read(p []byte) (int, error) {
	x := b.x
	if x.lastRead.IsZero() {
		x.moveWrite() // for the 100 Continue that net/http sends now
	}
	if now := time.Now(); x.stall > 0 && now.Sub(x.lastRead) > x.stall/stallGrain {
		x.lastRead = now
		_ = x.ctl.SetReadDeadline(now.Add(x.stall))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && x.stall > 0 {
		// From here net/http watches the connection for a hang-up while the handler works, however long that takes.
		_ = x.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}
