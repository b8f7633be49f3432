package object

import (
	"errors"

	"coffer/object/internal/index"
)

// reportMissing tells the log of bands that entries refer to and that are not there. A band is freed only when nothing refers to it, so
// what lies in these is lost.
func (s *Store) reportMissing(log Log) error {
	missing := make(map[uint64]int64)
	s.idx.Live(func(band uint64, n int64) {
		if n > 0 && band != shadowBand {
			missing[band] = n
		}
	})
	for _, b := range log.Bands() {
		delete(missing, b.Num)
	}
	if len(missing) == 0 {
		return nil
	}
	if err := s.withoutShadows(missing); err != nil {
		return err
	}
	for band, n := range missing {
		if n > 0 {
			s.logger.Error("band is not there, and entries refer to it", "band", bandName(band), "live_bytes", n)
			log.Missing(band)
		}
	}
	return nil
}

// withoutShadows takes shadows off the live bytes of bands: they go with their band, and may be forgotten only after it.
func (s *Store) withoutShadows(live map[uint64]int64) (err error) {
	it := s.idx.Iter(index.ShadowRange(0, 1<<64-1))
	defer func() { err = s.checkIndex(errors.Join(err, it.Close())) }()
	for ok := it.Seek(nil); ok; ok = it.Next() {
		p, body, err := splitValue(it.Value())
		if err != nil {
			return err
		}
		if _, ok := live[p.band]; ok {
			live[p.band] -= int64(len(body))
		}
	}
	return nil
}
