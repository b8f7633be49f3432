package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"coffer/disk"
)

// segmentsOf are the sizes of stripes.
func segmentsOf(stripes []disk.Stripe) (n []int) {
	for _, s := range stripes {
		n = append(n, int(s.Segments))
	}
	return n
}

// TestStripeHold: a stripe is committed when it is full or was held for its time, also while its stream stands still, and a slow stream
// asks for as little memory as it uses.
func TestStripeHold(t *testing.T) {
	for _, c := range []struct {
		name  string
		gaps  []int // seconds in front of each segment
		known bool
		want  []int
	}{
		{"fast", make([]int, 13), false, []int{6, 6, 1}},
		{"fast, of known size", make([]int, 13), true, []int{5, 4, 4}},
		{"stalls once", []int{0, 0, 3600, 0, 0, 0, 0, 0, 0, 0, 0}, false, []int{2, 4, 5}},
		{"slow", []int{0, 4, 4, 4, 4, 4, 4, 4, 4}, false, []int{3, 3, 3}},
		{"one by one", []int{0, 60, 60, 60}, false, []int{1, 1, 1, 1}},
		{"recovers", []int{0, 60, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false, []int{1, 1, 2, 4, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := stripes{written: new(tally), waiting: new(atomic.Int32), ctx: t.Context(), log: newMemLog(nil, 6), hold: stripeHold}
				defer s.abort()
				for i, gap := range c.gaps {
					time.Sleep(time.Duration(gap) * time.Second)
					left := int64(-1)
					if c.known {
						left = int64(len(c.gaps) - i)
					}
					slot, err := s.slot(left)
					if err != nil {
						t.Fatal(err)
					}
					slot[0] = byte(i)
					if err := s.filled(); err != nil {
						t.Fatal(err)
					}
				}
				done, err := s.finish()
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(c.want, segmentsOf(done.stripes)); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

// TestStripeHoldFilling: the time runs out while a slot is being filled.
func TestStripeHoldFilling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stripes{written: new(tally), waiting: new(atomic.Int32), ctx: t.Context(), log: newMemLog(nil, 6), hold: stripeHold}
		defer s.abort()
		for range 2 {
			if _, err := s.slot(-1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if err := s.filled(); err != nil {
				t.Fatal(err)
			}
		}
		if done, err := s.finish(); err != nil || len(done.stripes) != 2 {
			t.Errorf("stripes %+v, %v", done, err)
		}
	})
}

// TestStripeHoldFails: a failure of an early commit is what the next call returns, whichever that is.
func TestStripeHoldFails(t *testing.T) {
	broken := errors.New("broken")
	for _, next := range []string{"slot", "finish", "abort"} {
		synctest.Test(t, func(t *testing.T) {
			log := newMemLog(nil, 6)
			s := stripes{written: new(tally), waiting: new(atomic.Int32), ctx: t.Context(), log: log, hold: stripeHold}
			defer s.abort()
			if _, err := s.slot(-1); err != nil {
				t.Fatal(err)
			}
			if err := s.filled(); err != nil {
				t.Fatal(err)
			}
			log.failCommit.Store(&broken)
			time.Sleep(time.Minute)
			var err error
			switch next {
			case "slot":
				_, err = s.slot(-1)
			case "finish":
				_, err = s.finish()
			default:
				return
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s: %v", next, err)
			}
		})
	}
}

// tardyLog is a log in which sealing a segment takes a moment.
type tardyLog struct{ *memLog }

func (l tardyLog) NewStripe(ctx context.Context, segments int) (StripeWriter, error) {
	w, err := l.memLog.NewStripe(ctx, segments)
	return tardyWriter{w}, err
}

type tardyWriter struct{ StripeWriter }

func (w tardyWriter) Sealed(n int) error {
	time.Sleep(50 * time.Millisecond)
	return w.StripeWriter.Sealed(n)
}

// TestStripeHoldMissed: the time runs out while the last segment is sealed, and the stripe cannot be launched, as earlier ones failed.
func TestStripeHoldMissed(t *testing.T) {
	s := &stripes{written: new(tally), waiting: new(atomic.Int32), ctx: t.Context(), log: tardyLog{newMemLog(nil, 6)}, hold: 200 * time.Millisecond}
	defer s.abort()
	if _, err := s.slot(1); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for range maxFlying {
		failed := make(chan committed, 1)
		failed <- committed{err: broken}
		s.flying = append(s.flying, failed)
	}
	if err := s.filled(); !errors.Is(err, broken) {
		t.Errorf("filled: %v", err)
	}
	time.Sleep(20 * time.Millisecond) // for who has waited for the stripe meanwhile
}

// TestStripeHoldPressed: a stripe is committed early while others wait for its memory, and nobody waits for ever.
func TestStripeHoldPressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog(nil, 6)
		log.room = make(chan struct{}, 1)
		waiting := new(atomic.Int32)
		newStream := func() *stripes {
			s := &stripes{written: new(tally), waiting: waiting, ctx: t.Context(), log: log, hold: stripeHold}
			t.Cleanup(s.abort)
			return s
		}
		slow, next := newStream(), newStream()
		if _, err := slow.slot(-1); err != nil {
			t.Fatal(err)
		}
		if err := slow.filled(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stripeHold / 2)
		start := time.Now()
		if _, err := next.slot(-1); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > stripeHold/10 {
			t.Errorf("waited %v for the stripe of a client that sends nothing", d)
		}
		start = time.Now()
		if _, err := slow.slot(-1); !errors.Is(err, ErrOverloaded) { // next is being filled and keeps its memory
			t.Errorf("slot: %v", err)
		}
		if d := time.Since(start); d != stripeWait {
			t.Errorf("waited %v", d)
		}
		if done, err := slow.finish(); err != nil || len(done.stripes) != 1 {
			t.Errorf("stripes %+v, %v", done, err)
		}
	})
}

// TestOverloaded: nothing is left of a body that found no memory.
func TestOverloaded(t *testing.T) {
	f := newFixture(t, testOptions(t))
	synctest.Test(t, func(t *testing.T) {
		f.log.room = make(chan struct{}) // none
		body := pattern(1<<20, 1)
		if _, err := f.Put(t.Context(), "b", "k", bytes.NewReader(body), PutOptions{Size: int64(len(body))}); !errors.Is(err, ErrOverloaded) {
			t.Errorf("put: %v", err)
		}
	})
	if _, err := f.read("k", GetOptions{}); !errors.Is(err, ErrNoSuchKey) {
		t.Errorf("get: %v", err)
	}
	if n := f.log.pins(); n != 0 {
		t.Errorf("%d pins", n)
	}
}

// stalled gives n bytes and then nothing until it is let go.
type stalled struct {
	n    int
	gate <-chan struct{}
}

func (b *stalled) Read(p []byte) (int, error) {
	if b.n == 0 {
		<-b.gate
		return 0, io.ErrUnexpectedEOF
	}
	n := min(len(p), b.n)
	b.n -= n
	return n, nil
}

// slowly gives a segment's worth of bytes at a time and pauses in between.
type slowly struct {
	r     io.Reader
	pause time.Duration
}

func (b *slowly) Read(p []byte) (int, error) {
	time.Sleep(b.pause)
	return b.r.Read(p[:min(len(p), 60<<10)])
}

// TestSlowClients: many times more uploads than there is memory for stripes have begun and stand still. Others are stored.
func TestSlowClients(t *testing.T) {
	opt := testOptions(t)
	opt.stripeHold = 50 * time.Millisecond
	_, s, a := memArray(t, opt, 80<<20, disk.Geometry{Data: 4, Parity: 2, ExtentSize: 8 << 20})
	f := &fixture{Store: s, t: t}
	if _, err := f.CreateBucket(t.Context(), "b", Bucket{}); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			_, err := s.Put(context.Background(), "b", fmt.Sprint("stalled", i), &stalled{200 << 10, gate}, PutOptions{Size: 4190000})
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("stalled upload: %v", err)
			}
		})
	}
	body := pattern(3<<20, 5)
	wg.Go(func() {
		defer close(gate)
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := s.Put(ctx, "b", "small", bytes.NewReader(body[:300<<10]), PutOptions{Size: 300 << 10}); err != nil {
			t.Errorf("put beside stalled uploads: %v", err)
		}
		if _, err := s.Put(ctx, "b", "slow", &slowly{bytes.NewReader(body), 5 * time.Millisecond}, PutOptions{Size: int64(len(body))}); err != nil {
			t.Errorf("slow put beside stalled uploads: %v", err)
		}
	})
	wg.Wait()
	if t.Failed() {
		return
	}
	f.want("small", body[:300<<10], GetOptions{})
	f.want("slow", body, GetOptions{})
	b, err := s.lookup("b")
	if err != nil {
		t.Fatal(err)
	}
	rec, _, err := s.loadObject(b.id, "slow", depthAll)
	if err != nil {
		t.Fatal(err)
	}
	if n := segmentsOf(rec.content.single.stripes); len(n) < 3 {
		t.Errorf("a body that took many times the hold time lies in stripes of %v segments", n)
	}
	if n := a.Status().BufferBytes; n != 0 {
		t.Errorf("%d bytes of buffers in use at the end", n)
	}
}
