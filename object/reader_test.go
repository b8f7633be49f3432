package object

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coffer/disk"
)

// parts stores an object of parts and returns what it holds.
func (f *fixture) parts(key string, sizes ...int) (body []byte) {
	f.t.Helper()
	u := f.upload(key, UploadOptions{})
	var parts []Part
	for i, n := range sizes {
		p := pattern(n, byte(i))
		body = append(body, p...)
		parts = append(parts, f.part(u, i+1, p, PartOptions{}))
	}
	if _, err := f.CompleteUpload(f.t.Context(), "b", key, u.ID, claim(parts...)); err != nil {
		f.t.Fatal(err)
	}
	return body
}

// TestSlowReader: a reader has no buffers once its client has not taken them in time, and keeps none until the client is fast again.
func TestSlowReader(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.log.segments = 64
	body := pattern(10<<20, 1)
	f.put("k", body, PutOptions{})
	synctest.Test(t, func(t *testing.T) {
		r, err := f.Get(t.Context(), "b", "k", GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		at := 0
		buf := make([]byte, f.alg.PlainSize())
		take := func() {
			t.Helper()
			if _, err := io.ReadFull(r, buf); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf, body[at:][:len(buf)]) {
				t.Fatalf("bytes at %d differ", at)
			}
			at += len(buf)
			synctest.Wait()
		}
		views := func(want int64) {
			t.Helper()
			if n := f.log.views.Load(); n != want {
				t.Fatalf("at %d: %d views, want %d", at, n, want)
			}
		}
		take()
		take()
		views(2)
		time.Sleep(readHold * 9 / 10)
		take() // what counts is the whole read
		views(2)
		time.Sleep(readHold)
		synctest.Wait()
		views(0)
		read := f.log.segmentsRead.Load()
		for range maxReadSegments {
			time.Sleep(readHold / maxReadSegments * 2 / 3)
			take()
			views(0)
		}
		if n := f.log.segmentsRead.Load() - read; n != maxReadSegments {
			t.Errorf("%d segments were read for %d", n, maxReadSegments)
		}
		for range 2 * maxReadSegments {
			time.Sleep(readHold / maxReadSegments / 3)
			take()
		}
		views(2)
	})
	if n := f.log.views.Load(); n != 0 {
		t.Errorf("%d views are left", n)
	}
}

// TestSlowReaderStops: all that a reader has is given back when its client stands still, wherever that is.
func TestSlowReaderStops(t *testing.T) {
	f := newFixture(t, testOptions(t))
	f.log.segments = 40
	bodies := map[string][]byte{"packed": pattern(2*65520, 1), "plain": pattern(7<<20, 2)}
	for k, b := range bodies {
		f.put(k, b, PutOptions{})
	}
	bodies["parts"] = f.parts("parts", MinPartSize, MinPartSize+100, 5)
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(1, seed))
		for k, body := range bodies {
			synctest.Test(t, func(t *testing.T) {
				from := rng.IntN(len(body))
				r, err := f.Get(t.Context(), "b", k, GetOptions{Range: &Range{int64(from), -1}})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				body := body[from:]
				chance := []int{1, 30, 200}[rng.IntN(3)]
				for len(body) > 0 {
					buf := make([]byte, 1+rng.IntN(200<<10))
					n, err := r.Read(buf)
					if err != nil {
						t.Fatalf("%s, seed %d: %v", k, seed, err)
					}
					if !bytes.Equal(buf[:n], body[:n]) {
						t.Fatalf("%s, seed %d: bytes differ, %d from the end", k, seed, len(body))
					}
					body = body[n:]
					if rng.IntN(chance) == 0 {
						time.Sleep(time.Duration(rng.Int64N(int64(2 * readHold))))
					}
					if rng.IntN(100) == 0 {
						time.Sleep(readHold)
						synctest.Wait()
						if n := f.log.views.Load(); n != 0 {
							t.Fatalf("%s, seed %d: %d views", k, seed, n)
						}
					}
					if rng.IntN(500) == 0 {
						return
					}
				}
				if _, err := r.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("at the end: %v", err)
				}
			})
			if n := f.log.views.Load(); n != 0 {
				t.Fatalf("%s, seed %d: %d views after close", k, seed, n)
			}
		}
	}
}

// compare takes nothing but what is wanted.
type compare struct{ want []byte }

func (c *compare) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(c.want, p) {
		return 0, errors.New("bytes differ")
	}
	c.want = c.want[len(p):]
	return len(p), nil
}

// TestSlowReaders: more readers than there is memory for have begun and stand still. Others are served, and so are they when they go on.
func TestSlowReaders(t *testing.T) {
	opt := testOptions(t)
	opt.readHold = 50 * time.Millisecond
	_, s, a := memArray(t, opt, 80<<20, disk.Geometry{Data: 4, Parity: 2, ExtentSize: 8 << 20})
	f := &fixture{Store: s, t: t}
	if _, err := f.CreateBucket(t.Context(), "b", Bucket{}); err != nil {
		t.Fatal(err)
	}
	body, small := pattern(9<<20, 1), pattern(200<<10, 2)
	f.put("large", body, PutOptions{})
	f.put("small", small, PutOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var began, ended sync.WaitGroup
	gate := make(chan struct{})
	for i := range 40 {
		began.Add(1)
		ended.Go(func() {
			r, err := s.Get(ctx, "b", "large", GetOptions{})
			if err != nil {
				began.Done()
				t.Error(err)
				return
			}
			defer r.Close()
			w := &compare{want: body}
			_, err = io.CopyN(w, r, int64(100+i*10000))
			began.Done()
			if err != nil {
				t.Errorf("begin: %v", err)
				return
			}
			<-gate
			if _, err := r.WriteTo(w); err != nil || len(w.want) > 0 {
				t.Errorf("%d bytes are missing, %v", len(w.want), err)
			}
		})
	}
	began.Wait()
	time.Sleep(2 * opt.readHold)
	start := time.Now()
	soon, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if r, err := s.Get(soon, "b", "small", GetOptions{}); err != nil {
		t.Error(err)
	} else {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, small) {
			t.Errorf("read beside slow readers: %d bytes, %v", len(got), err)
		}
		r.Close()
	}
	t.Logf("small read took %v", time.Since(start))
	if n := a.Status().BufferBytes; n != 0 {
		t.Errorf("slow readers have %d bytes of buffers", n)
	}
	close(gate)
	ended.Wait()
	if n := a.Status().BufferBytes; n != 0 {
		t.Errorf("%d bytes of buffers in use at the end", n)
	}
}
