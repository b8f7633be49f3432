package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"

	"coffer/hw"
	"coffer/object"
)

const (
	nullCipher  = hw.Primitive("null")
	largeObject = 16 << 20
	// sealStreams is how many objects are on their way at once.
	sealStreams = 8
)

// sealCase is a way to store and read large objects.
type sealCase struct {
	id     string
	name   string
	memory bool
	sse    object.SSE
	turn   int // objects moved before the other cipher has its turn; few where there is little room
}

// sealSeries is what one cipher gave.
type sealSeries struct{ put, get series }

// seal compares the store with AES-256-GCM to the same store with a cipher that copies. MD5, which SSE-S3 shows as the ETag and
// which costs several times what all else does, hides the cipher: with a customer key there is none.
func (b *bench) seal(ctx context.Context) error {
	if !b.opt.wants("seal/files", "seal/md5", "seal/memory") {
		return nil
	}
	if ok, err := b.hasNull(ctx); err != nil || !ok {
		return err
	}
	key := new([32]byte)
	rand.Read(key[:])
	customer := object.SSE{Mode: object.ModeCustomer, CustomerKey: key, CustomerMD5: strings.Repeat("A", 24)}
	body := make([]byte, largeObject)
	rand.Read(body)
	for _, c := range []sealCase{
		{"seal/files", "files", false, customer, pick(b, 32, 4)}, {"seal/md5", "files, with MD5 (SSE-S3)", false, object.SSE{}, pick(b, 32, 4)},
		{"seal/memory", "memory disks", true, customer, pick(b, 6, 2)},
	} {
		if !b.opt.wants(c.id) {
			continue
		}
		var sealed, null sealSeries
		for round := range b.opt.rounds {
			if err := b.sealRound(ctx, c, round, body, &sealed, &null); err != nil {
				return err
			}
		}
		b.sealLines(c, &sealed, &null)
	}
	return nil
}

func (b *bench) sealLines(c sealCase, sealed, null *sealSeries) {
	for _, l := range []struct {
		op   string
		x, y *series
	}{{"put", &sealed.put, &null.put}, {"get", &sealed.get, &null.get}} {
		if !c.memory {
			b.add(result{What: fmt.Sprintf("%s, %s, sealed : null", l.op, c.name), A: gbps(median(l.x.rate)), B: gbps(median(l.y.rate)),
				Ratio: median(ratios(l.x.rate, l.y.rate)), Target: 0.95})
		}
		perGB := func(s *series) string { return fmt.Sprintf("%.3f CPU-s/GB", median(s.cpu)) }
		b.add(result{What: fmt.Sprintf("%s, %s, CPU null : sealed", l.op, c.name), A: perGB(l.y), B: perGB(l.x),
			Ratio: median(ratios(l.y.cpu, l.x.cpu))})
	}
}

// hasNull reports whether the null cipher was built in.
func (b *bench) hasNull(ctx context.Context) (bool, error) {
	bed, err := b.rig.open(ctx, bedOptions{cipher: nullCipher})
	if err != nil && strings.Contains(err.Error(), "unknown") {
		b.add(result{What: "sealed : null", A: "not built", Note: "build with -tags coffer_nullcipher"})
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, bed.close()
}

// sealRound opens a store with each cipher, each on disks of its own that change hands from round to round, and has them put and
// get objects by turns.
func (b *bench) sealRound(ctx context.Context, c sealCase, round int, body []byte, sealed, null *sealSeries) (err error) {
	x, err := b.rig.open(ctx, bedOptions{memory: c.memory, cipher: hw.AES256GCM, set: round % sets})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	y, err := b.rig.open(ctx, bedOptions{memory: c.memory, cipher: nullCipher, set: (round + 1) % sets})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, y.close()) }()

	put := func(s *object.Store, i int) error {
		_, err := s.Put(ctx, bucket, fmt.Sprint("object", i), bytes.NewReader(body), object.PutOptions{Size: largeObject, SSE: c.sse})
		return err
	}
	get := func(s *object.Store, i int) error { return readObject(ctx, s, fmt.Sprint("object", i), c.sse) }
	for _, m := range []struct {
		op           func(*object.Store, int) error
		sealed, null *series
	}{{put, &sealed.put, &null.put}, {get, &sealed.get, &null.get}} {
		turn := 0
		side := func(s *object.Store, out *series) func() error {
			return func() error {
				took, err := timed(func() error {
					return parallel(sealStreams, c.turn, func(i int) error { return m.op(s, turn/2*c.turn+i) })
				})
				if turn++; turn > 2 { // the first maps the buffers
					out.add(took, float64(c.turn)*largeObject)
				}
				return err
			}
		}
		if err := byTurns(1+pick(b, 4, 1), side(x.store, m.sealed), side(y.store, m.null)); err != nil {
			return err
		}
	}
	return nil
}

func readObject(ctx context.Context, s *object.Store, key string, sse object.SSE) error {
	r, err := s.Get(ctx, bucket, key, object.GetOptions{SSE: sse})
	if err != nil {
		return err
	}
	_, err = r.WriteTo(io.Discard)
	return errors.Join(err, r.Close())
}

// parallel calls f with 0..n-1, as many at once as streams.
func parallel(streams, n int, f func(i int) error) error {
	var g errgroup.Group
	for l := range streams {
		g.Go(func() error {
			for i := l; i < n; i += streams {
				if err := f(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
