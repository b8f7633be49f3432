package object

import (
	"errors"
	"fmt"

	"coffer/object/internal/index"
)

// reportMissing tells the log of bands that entries refer to and that are not there. A band is freed only when nothing refers to it, so
// what lies in these is lost.
func (s *Store) reportMissing(log Log) error {
	missing := make(map[uint64]bool)
	s.idx.Live(func(band uint64, n int64) {
		if n > 0 && band != shadowBand {
			missing[band] = true
		}
	})
	for _, b := range log.Bands() {
		delete(missing, b.Num)
	}
	if len(missing) == 0 {
		return nil
	}
	lost, err := s.entriesIn(missing)
	if err != nil {
		return err
	}
	for band, entries := range lost {
		s.logger.Error("band is not there, and entries refer to it", "band", fmt.Sprintf("%x", band), "entries", entries)
		log.Missing(band)
	}
	return nil
}

// entriesIn counts the entries that refer to some bands. Shadows do not count: they go with their band.
func (s *Store) entriesIn(bands map[uint64]bool) (n map[uint64]int, err error) {
	n = make(map[uint64]int)
	it := s.idx.Iter(nil, nil)
	defer func() { err = s.checkIndex(errors.Join(err, it.Close())) }()
	for ok := it.Seek(nil); ok; ok = it.Next() {
		switch index.KindOf(it.Key()) {
		case index.KindBucket, index.KindConfig, index.KindObject, index.KindPart, index.KindUpload:
			p, body, err := splitValue(it.Value())
			if err != nil {
				return nil, err
			}
			var c *content
			if p.data.IsZero() {
				if c, err = contentOf(body); err != nil {
					return nil, err
				}
			}
			seen := uint64(0) // a record mostly lies where its data does
			p.forBands(body, c, func(band uint64, _ int64) {
				if bands[band] && band != seen {
					n[band]++
					seen = band
				}
			})
		}
	}
	return n, nil
}
