package object

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/object/internal/index"
)

// openIndex opens the index, and starts an empty one in place of one that is corrupt or belongs to another array.
func (s *Store) openIndex() error {
	err := s.tryIndex()
	if errors.Is(err, index.ErrCorrupt) || errors.Is(err, index.ErrForeign) {
		s.logger.Warn("index unusable: it is rebuilt from the log", "error", err)
		s.rebuilt.Store(true)
		if err := RebuildIndex(s.opt.IndexDir); err != nil {
			return err
		}
		err = s.tryIndex()
	}
	return err
}

func (s *Store) tryIndex() (err error) {
	s.buckets.clear()
	s.idx, err = index.Open(index.Options{Dir: s.opt.IndexDir, Keys: s.keys, FormatKey: s.array, Logger: s.logger})
	if err != nil {
		return err
	}
	if err := s.loadBuckets(); err != nil {
		return errors.Join(fmt.Errorf("load buckets: %w", err), s.idx.Close())
	}
	return nil
}

// loadBuckets fills the bucket table.
func (s *Store) loadBuckets() error {
	it := s.idx.Iter(index.BucketRange())
	for ok := it.Seek(nil); ok; ok = it.Next() {
		_, body, err := splitValue(it.Value())
		if err != nil {
			return errors.Join(err, it.Close())
		}
		b, err := decodeBucket(body)
		if err != nil {
			return errors.Join(err, it.Close())
		}
		s.buckets.put(b)
	}
	return it.Close()
}

// checkpoints makes the index durable now and then, so that a start has little to replay.
func (s *Store) checkpoints(ctx context.Context) {
	t := time.NewTicker(s.opt.CheckpointEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-s.wake:
		}
		if s.idx.BytesSinceCheckpoint() == 0 {
			continue
		}
		if err := s.Checkpoint(); err != nil {
			s.logger.Error("index checkpoint failed: the next start replays more", "err", err)
		}
	}
}

// Checkpoint makes the index durable up to what is applied.
func (s *Store) Checkpoint() error {
	if err := s.checkIndex(s.idx.Checkpoint()); err != nil {
		s.stats.checkpointFailures.Add(1)
		return fmt.Errorf("checkpoint index: %w", err)
	}
	s.stats.checkpoints.Add(1)
	return nil
}

// RebuildIndex removes the index in dir, so that the next start replays the whole log. No Store may have it open.
func RebuildIndex(dir string) error {
	if err := index.Wipe(nil, dir); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	return nil
}
