package object

import (
	"context"
	"fmt"
)

// Copy makes a new object of another's body, which streams through: opened with the old keys, sealed with fresh ones.
func (s *Store) Copy(ctx context.Context, src CopySource, bucket, key string, o CopyOptions) (Object, error) {
	if err := s.admit(ctx); err != nil {
		return Object{}, fmt.Errorf("copy object %q to %q: %w", src.Key, key, err)
	}
	obj, err := s.copy(ctx, &src, bucket, key, &o)
	if err != nil {
		return Object{}, fmt.Errorf("copy object %q to %q: %w", src.Key, key, err)
	}
	return obj, nil
}

// openSource opens what is to be copied and asks Check. Its errors are *SourceError.
func (s *Store) openSource(ctx context.Context, src *CopySource) (r *reader, err error) {
	defer func() {
		if err != nil {
			err = &SourceError{err}
		}
	}()
	f, err := s.find(src.Bucket, src.Key)
	if err != nil {
		return nil, err
	}
	if r, err = s.newReader(ctx, f, GetOptions{SSE: src.SSE, Range: src.Range}); err != nil {
		f.unpin()
		return nil, err
	}
	if src.Check != nil {
		if err := src.Check(r.obj); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// beginCopy waits for the turn of a copy whose body goes into bulk stripes, and returns what ends it. No buffer is held meanwhile, as
// nothing has been read yet.
func (s *Store) beginCopy(ctx context.Context) (end func(), err error) {
	select {
	case s.copies <- struct{}{}:
		return func() { <-s.copies }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other copies: %w", ctx.Err())
	}
}

func (s *Store) copy(ctx context.Context, src *CopySource, bucket, key string, o *CopyOptions) (Object, error) {
	r, err := s.openSource(ctx, src)
	if err != nil {
		return Object{}, err
	}
	defer r.Close()
	if r.n > maxInlineSegments*int64(s.alg.PlainSize()) {
		end, err := s.beginCopy(ctx)
		if err != nil {
			return Object{}, err
		}
		defer end()
	}
	meta := r.obj.Meta
	if o.ReplaceMeta {
		tags := meta.Tags
		meta = o.Meta
		meta.Tags = tags
	}
	if o.ReplaceTags {
		meta.Tags = o.Meta.Tags
	}
	// These two are never the source's: a copy without them has the defaults (CopyObject, "Metadata").
	meta.StorageClass, meta.WebsiteRedirect = o.Meta.StorageClass, o.Meta.WebsiteRedirect
	algo := o.Checksum
	if algo == AlgoNone {
		algo = r.obj.Checksum.Algo
	}
	return s.put(ctx, bucket, key, r, &PutOptions{Size: r.n, Meta: meta, SSE: o.SSE, Conditions: o.Conditions, Checksum: algo})
}

// CopyPart stores a part that is copied from an object or a range of it.
func (s *Store) CopyPart(ctx context.Context, src CopySource, bucket, key, id string, number int, o PartOptions) (Part, error) {
	if err := s.admit(ctx); err != nil {
		return Part{}, fmt.Errorf("copy %q to part %d of %q: %w", src.Key, number, key, err)
	}
	p, err := s.copyPart(ctx, &src, bucket, key, id, number, &o)
	if err != nil {
		return Part{}, fmt.Errorf("copy %q to part %d of %q: %w", src.Key, number, key, err)
	}
	return p.public(), nil
}

func (s *Store) copyPart(ctx context.Context, src *CopySource, bucket, key, id string, number int, o *PartOptions) (*partRecord, error) {
	r, err := s.openSource(ctx, src)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	end, err := s.beginCopy(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	o.Size = r.n
	return s.putPart(ctx, bucket, key, id, number, r, o)
}
