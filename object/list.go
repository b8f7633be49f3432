package object

import (
	"context"
	"fmt"

	"coffer/object/internal/index"
)

// List returns a page of a bucket's keys. Keys that a delimiter rolls up are skipped by seeking, never read.
func (s *Store) List(_ context.Context, bucket string, o ListOptions) (ListPage, error) {
	b, err := s.lookup(bucket)
	if err != nil {
		return ListPage{}, err
	}
	fail := func(err error) (ListPage, error) {
		return ListPage{}, fmt.Errorf("list bucket %q: %w", bucket, s.checkIndex(err))
	}
	p, err := s.idx.List(b.id, index.ListOptions{Prefix: o.Prefix, Delimiter: o.Delimiter, After: o.After,
		Max: min(o.Max, MaxListKeys)})
	if err != nil {
		return fail(err)
	}
	page := ListPage{Truncated: p.Truncated, Objects: make([]Object, 0, len(p.Items))}
	for i := range p.Items {
		item := &p.Items[i]
		page.Next = item.Key
		if item.Prefix {
			page.Prefixes = append(page.Prefixes, item.Key)
			continue
		}
		_, body, err := splitValue(item.Value)
		if err != nil {
			return fail(err)
		}
		r, err := decodeObject(body, depthList)
		if err != nil {
			return fail(err)
		}
		page.Objects = append(page.Objects, r.object(bucket))
	}
	if !p.Truncated {
		page.Next = ""
	}
	return page, nil
}

// ListUploads returns a page of uploads, by key and then by id. Items of a page are both uploads and common prefixes.
func (s *Store) ListUploads(_ context.Context, bucket string, o ListUploadsOptions) (UploadPage, error) {
	b, err := s.lookup(bucket)
	if err != nil {
		return UploadPage{}, err
	}
	fail := func(err error) (UploadPage, error) {
		return UploadPage{}, fmt.Errorf("list uploads in bucket %q: %w", bucket, s.checkIndex(err))
	}
	q := index.ListOptions{Prefix: o.Prefix, Delimiter: o.Delimiter, After: o.KeyMarker, Max: min(o.Max, MaxListKeys)}
	if id, ok := parseUploadID(o.IDMarker); ok && o.KeyMarker != "" {
		q.AfterID = (*index.UploadID)(&id)
	}
	p, err := s.idx.ListUploads(b.id, q)
	if err != nil {
		return fail(err)
	}
	page := UploadPage{Truncated: p.Truncated}
	for i := range p.Items {
		item := &p.Items[i]
		page.NextKeyMarker, page.NextID = item.Key, ""
		if item.Prefix {
			page.Prefixes = append(page.Prefixes, item.Key)
			continue
		}
		_, body, err := splitValue(item.Value)
		if err != nil {
			return fail(err)
		}
		r, err := decodeUpload(body)
		if err != nil {
			return fail(err)
		}
		u := r.public(bucket)
		page.NextID = u.ID
		page.Uploads = append(page.Uploads, u)
	}
	if !p.Truncated {
		page.NextKeyMarker, page.NextID = "", ""
	}
	return page, nil
}
