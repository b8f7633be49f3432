package object

import (
	"context"
	"errors"

	"coffer/disk"
	"coffer/object/internal/index"
)

var _ disk.Namer = (*Store)(nil)

// errNoBucket: an entry of the index is of a bucket that is not there.
var errNoBucket = errors.New("bucket is not there")

// Names implements disk.Namer. An object whose list of parts cannot be read may need any stripe of the bands that it refers to.
func (s *Store) Names(ctx context.Context, band uint64, off uint32) (named bool, err error) {
	log, err := s.disk()
	if err != nil {
		return false, err
	}
	lower, upper := index.RefRange(band)
	it := s.idx.Iter(lower, upper)
	defer func() { err = s.checkIndex(errors.Join(err, it.Close())) }()
	var value []byte
	for ok := it.Seek(nil); ok && !named; ok = it.Next() {
		var there bool
		if value, there, err = s.idx.Get(it.Key()[len(lower):], value[:0]); err != nil {
			return false, err
		}
		if !there {
			continue // it went meanwhile
		}
		err := s.stripesOf(ctx, log, value, func(st disk.Stripe) { named = named || st.Band == band && st.Off == off })
		switch {
		case errors.Is(err, ErrCorrupt), errors.Is(err, errNoBucket):
			named = true
		case err != nil:
			return false, err
		}
	}
	return named, nil
}

// stripesOf calls f for each bulk stripe that the value of an index entry names, those included that only its list of parts names.
func (s *Store) stripesOf(ctx context.Context, log Log, value []byte, f func(disk.Stripe)) error {
	_, body, err := splitValue(value)
	if err != nil {
		return err
	}
	c, err := contentOf(body)
	if err != nil || c == nil {
		return err
	}
	if c.manifest != nil {
		for _, st := range c.manifest.stripes {
			f(st)
		}
		r, err := decodeObject(body, depthAll)
		if err != nil {
			return err
		}
		b := s.buckets.byID(r.bucket)
		if b == nil {
			return errNoBucket
		}
		if err := s.loadManifest(ctx, found{b: b, rec: r, log: log}); err != nil {
			return err
		}
		c = &r.content
	}
	for _, st := range c.single.stripes {
		f(st)
	}
	for i := range c.parts {
		for _, st := range c.parts[i].stripes {
			f(st)
		}
	}
	return nil
}
