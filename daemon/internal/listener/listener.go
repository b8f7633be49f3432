// Package listener prepares accepted connections for net/http: it bounds their number, and lets the TLS records of one Write
// leave together.
//
// crypto/tls makes one system call per record of 16 KiB. Gathering two records per call saves about 10 % of the CPU time of a
// download over TLS (BenchmarkTLS); gathering more costs it again, as the kernel then allocates larger pages. A read buffer
// under TLS was measured too, and was 5 % slower than none: a call that finds data is no dearer here than the copy it saves.
//
// The package promises the semantics of net.Conn: deadlines, Close from another goroutine, one reader beside one writer. It
// does no TLS itself.
package listener

import (
	"net"
	"sync"
)

// gather is the size of a pooled buffer in bytes: two TLS records and their overhead.
const gather = 36 << 10

// Options configure a Listener.
type Options struct {
	// MaxConns is how many connections may be open at once; further ones wait in the kernel's accept queue. 0: no limit.
	MaxConns int
	// Gather lets the writes of a response leave together (see Handler). It pays under TLS, where there is one per record.
	Gather bool
}

// Listener accepts connections as *Conn.
type Listener struct {
	net.Listener
	gather bool
	slots  chan struct{} // one element per open connection; nil: no limit
	done   chan struct{}
	close  sync.Once
	pool   sync.Pool // of *[gather]byte
}

// New wraps inner.
func New(inner net.Listener, opt Options) *Listener {
	l := &Listener{Listener: inner, gather: opt.Gather, done: make(chan struct{})}
	l.pool.New = func() any { return new([gather]byte) }
	if opt.MaxConns > 0 {
		l.slots = make(chan struct{}, opt.MaxConns)
	}
	return l
}

// Accept waits for a free place and the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	if l.slots != nil {
		select {
		case l.slots <- struct{}{}:
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
	nc, err := l.Listener.Accept()
	if err != nil {
		l.release()
		return nil, err
	}
	return &Conn{Conn: nc, l: l}, nil
}

// Close stops accepting; open connections stay.
func (l *Listener) Close() error {
	l.close.Do(func() { close(l.done) })
	return l.Listener.Close()
}

func (l *Listener) release() {
	if l.slots != nil {
		<-l.slots
	}
}

// Conn is one accepted connection.
type Conn struct {
	net.Conn
	l      *Listener
	closed sync.Once

	// mu guards the fields below: a TLS alert may be written beside the data. It is held during the write to the socket, which
	// keeps the order of records.
	mu     sync.Mutex
	corked bool
	out    *[gather]byte // borrowed while corked and not empty
	n      int
	err    error // sticky: gathered bytes were lost, the stream is unusable
}

// Write sends p, or keeps it while the connection is corked and there is room.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.n+len(p) > gather {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if !c.corked || len(p) > gather {
		return c.Conn.Write(p)
	}
	if c.out == nil {
		c.out = c.l.pool.Get().(*[gather]byte)
	}
	c.n += copy(c.out[c.n:], p)
	return len(p), nil
}

// cork lets writes gather until uncork.
func (c *Conn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// uncork sends what has gathered and returns the buffer.
func (c *Conn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flush()
}

// flush writes the gathered bytes. The caller holds mu.
func (c *Conn) flush() error {
	if c.out == nil {
		return c.err
	}
	_, c.err = c.Conn.Write(c.out[:c.n])
	c.l.pool.Put(c.out)
	c.out, c.n = nil, 0
	return c.err
}

// Close closes the socket and frees the connection's place. Bytes still gathered are dropped, as with any aborted connection.
func (c *Conn) Close() error {
	c.closed.Do(c.l.release)
	return c.Conn.Close()
}

// CloseWrite shuts the sending side, which net/http does to let a client read an early error response before the connection
// goes away.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}
