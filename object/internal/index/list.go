package index

import (
	"encoding/binary"
	"slices"
	"strings"
)

// ListOptions select a page of a listing.
type ListOptions struct {
	Prefix    string
	Delimiter string // "": nothing is rolled up
	// After is the marker: items at or before it are left out. Items are what the listing shows: a key, or the common prefix that
	// stands for many. A marker inside a common prefix is behind it in byte order, so that common prefix and all keys under it are
	// left out. This agrees with S3, where NextMarker may be a common prefix, and makes any item of a page the marker of the next.
	After string
	// AfterID, with After, and in listings of uploads only, lets in the uploads of key After whose id is greater. Nil: none of them.
	AfterID *UploadID
	Max     int // items per page; at most 0: none
}

// Item is an entry of a listing: a record, or a common prefix.
type Item struct {
	Key    string
	ID     UploadID // of an upload
	Value  []byte   // a copy; nil for a common prefix
	Prefix bool     // Key is a common prefix
}

// Page is a part of a listing, in byte order of Key and, among uploads of one key, of ID. When it is Truncated, the last item's
// Key and ID are the After and AfterID of the next page (for a common prefix, without AfterID).
type Page struct {
	Items     []Item
	Truncated bool
}

// List returns a page of a bucket's objects.
func (x *Index) List(bucket uint64, o ListOptions) (Page, error) {
	o.AfterID = nil
	return x.list(space{base: ObjectKey(nil, bucket, "")}, o)
}

// ListUploads returns a page of a bucket's uploads.
func (x *Index) ListUploads(bucket uint64, o ListOptions) (Page, error) {
	return x.list(space{base: binary.BigEndian.AppendUint64([]byte{kindUpload}, bucket), uploads: true}, o)
}

// space is a part of the index that can be listed: keys of objects behind base, with ids behind them if they are uploads.
type space struct {
	base    []byte
	uploads bool
}

// prefix returns what all index keys begin with whose object key begins with p.
func (s space) prefix(p string) []byte {
	base := slices.Clip(s.base)
	if s.uploads {
		return escape(base, p)
	}
	return append(base, p...)
}

// behind returns the least index key behind those of object key k, or behind upload id of it.
func (s space) behind(k string, id *UploadID) []byte {
	b := s.prefix(k)
	if !s.uploads {
		return append(b, 0)
	}
	b = terminate(b)
	if id == nil {
		return Successor(b)
	}
	return append(append(b, id[:]...), 0)
}

// parse returns the object key and the id of an index key.
func (s space) parse(k []byte) (key string, id UploadID, err error) {
	if s.uploads {
		_, key, id, err = ParseUploadKey(k)
		return key, id, err
	}
	_, key, err = ParseObjectKey(k)
	return key, id, err
}

// commonPrefix returns the common prefix that a key is rolled up into, if it is.
func (o *ListOptions) commonPrefix(key string) (string, bool) {
	if o.Delimiter == "" || !strings.HasPrefix(key, o.Prefix) {
		return "", false
	}
	i := strings.Index(key[len(o.Prefix):], o.Delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(o.Prefix)+i+len(o.Delimiter)], true
}

// start returns the least index key that the page may begin with.
func (s space) start(o *ListOptions) []byte {
	lower := s.prefix(o.Prefix)
	if o.After == "" {
		return lower
	}
	var from []byte
	if p, ok := o.commonPrefix(o.After); ok {
		from = Successor(s.prefix(p))
	} else {
		from = s.behind(o.After, o.AfterID)
	}
	return slices.MaxFunc([][]byte{lower, from}, slices.Compare)
}

// list walks the space and jumps over each common prefix: a page costs one seek or step per item, however many keys there are.
func (x *Index) list(s space, o ListOptions) (Page, error) {
	var page Page
	if o.Max <= 0 {
		return page, x.usable()
	}
	it := x.Iter(s.base, Successor(s.prefix(o.Prefix)))
	defer it.Close()
	var arena []byte
	for ok := it.Seek(s.start(&o)); ok; {
		if len(page.Items) == o.Max {
			page.Truncated = true
			break
		}
		key, id, err := s.parse(it.Key())
		if err != nil {
			return Page{}, x.readFailed(err)
		}
		if p, rolled := o.commonPrefix(key); rolled {
			page.Items = append(page.Items, Item{Key: p, Prefix: true})
			ok = it.Seek(Successor(s.prefix(p)))
			continue
		}
		arena = append(arena, it.Value()...)
		n := len(it.Value())
		page.Items = append(page.Items, Item{Key: key, ID: id, Value: arena[len(arena)-n : len(arena) : len(arena)]})
		ok = it.Next()
	}
	if err := it.Error(); err != nil {
		return Page{}, err
	}
	return page, nil
}
