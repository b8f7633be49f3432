package s3

import (
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"

	"coffer/object"
)

// count reads a page size: a number from 0, cut to limit. An absent one is def.
func (c *call) count(name string, limit, def int) (int, error) {
	if !c.query.Has(name) {
		return def, nil
	}
	v := c.query.Get(name)
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 0 {
		return 0, invalidArgument(name, v, "Provided %s not an integer or within integer range", name)
	}
	return min(int(n), limit), nil
}

// tokenVersion begins every continuation token, so that its form can change.
const tokenVersion = "1"

// newToken makes a continuation token: where the next page starts, opaque to the client.
func newToken(after string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenVersion + after))
}

// token reads continuation-token, "" if there is none.
func (c *call) token() (string, error) {
	if !c.query.Has("continuation-token") {
		return "", nil
	}
	v := c.query.Get("continuation-token")
	raw, err := base64.RawURLEncoding.DecodeString(v)
	after, ok := strings.CutPrefix(string(raw), tokenVersion)
	if err != nil || !ok || len(after) > object.MaxKeyLen {
		return "", invalidArgument("continuation-token", v, "The continuation token provided is incorrect")
	}
	return after, nil
}

// listing holds what all lists of keys have in common.
type listing struct {
	prefix, delimiter string
	encodingType      string
	max               int
}

func (c *call) listing(maxName string) (l listing, err error) {
	l = listing{prefix: c.query.Get("prefix"), delimiter: c.query.Get("delimiter"), encodingType: c.query.Get("encoding-type")}
	if l.encodingType != "" && l.encodingType != "url" {
		return l, invalidArgument("encoding-type", l.encodingType, "Invalid Encoding Method specified in Request")
	}
	l.max, err = c.count(maxName, object.MaxListKeys, object.MaxListKeys)
	return l, err
}

// listEscapes turns the encoding of a query into that of a listing: a slash stays, and a space is "%20", which decoders of queries
// and of paths read alike; "+" is a space only to the former.
var listEscapes = strings.NewReplacer("%2F", "/", "+", "%20")

// text shows a key, prefix or marker: percent-encoded if the client asked for that, which is the only form that holds every key
// in XML 1.0 without loss.
func (l listing) text(s string) xmlText {
	if l.encodingType == "" {
		return xmlText(s)
	}
	return xmlText(listEscapes.Replace(url.QueryEscape(s)))
}

func (l listing) prefixes(list []string) []prefixXML {
	out := make([]prefixXML, len(list))
	for i, p := range list {
		out[i].Prefix = l.text(p)
	}
	return out
}

func (l listing) contents(list []object.Object, owner *ownerXML) []contentXML {
	out := make([]contentXML, len(list))
	for i, o := range list {
		out[i] = contentXML{
			Key: l.text(o.Key), LastModified: xmlTime(o.Modified), ETag: quoteETag(o.ETag), Size: o.Size, Owner: owner,
			StorageClass: storageClass(o.Meta), ChecksumAlgorithm: algoName(o.Checksum.Algo), ChecksumType: checksumType(o.Checksum),
		}
	}
	return out
}

// list asks the store for a page. A page of none is never truncated, as with AWS.
func (s *Server) list(c *call, l listing, after string) (object.ListPage, error) {
	if l.max == 0 {
		return object.ListPage{}, s.requireBucket(c)
	}
	return s.opt.Store.List(c.ctx, c.bucket, object.ListOptions{Prefix: l.prefix, Delimiter: l.delimiter, After: after, Max: l.max})
}

// owner returns who owns all objects of the bucket.
func (s *Server) owner(c *call) (*ownerXML, error) {
	b, err := s.opt.Store.Bucket(c.ctx, c.bucket)
	o := ownerOf(b.Owner)
	return &o, err
}

func (s *Server) listObjects(c *call) error {
	l, err := c.listing("max-keys")
	if err != nil {
		return err
	}
	owner, err := s.owner(c)
	if err != nil {
		return err
	}
	marker := c.query.Get("marker")
	page, err := s.list(c, l, marker)
	if err != nil {
		return err
	}
	doc := listV1XML{
		Name: c.bucket, Prefix: l.text(l.prefix), Marker: l.text(marker), MaxKeys: l.max, Delimiter: l.text(l.delimiter),
		EncodingType: l.encodingType, IsTruncated: page.Truncated, Contents: l.contents(page.Objects, owner), CommonPrefixes: l.prefixes(page.Prefixes),
	}
	if page.Truncated && l.delimiter != "" { // API_ListObjects: "returned only if you have the delimiter request parameter specified"
		doc.NextMarker = l.text(page.Next)
	}
	return c.xml(doc)
}

func (s *Server) listObjectsV2(c *call) error {
	if v := c.query.Get("list-type"); v != "2" {
		return invalidArgument("list-type", v, "Invalid List Type specified in Request")
	}
	l, err := c.listing("max-keys")
	if err != nil {
		return err
	}
	startAfter := c.query.Get("start-after")
	after := startAfter
	if c.query.Has("continuation-token") {
		if after, err = c.token(); err != nil {
			return err
		}
	}
	var owner *ownerXML
	if c.query.Get("fetch-owner") == "true" {
		if owner, err = s.owner(c); err != nil {
			return err
		}
	}
	page, err := s.list(c, l, after)
	if err != nil {
		return err
	}
	doc := listV2XML{
		Name: c.bucket, Prefix: l.text(l.prefix), StartAfter: l.text(startAfter), ContinuationToken: c.query.Get("continuation-token"),
		KeyCount: len(page.Objects) + len(page.Prefixes), MaxKeys: l.max, Delimiter: l.text(l.delimiter), EncodingType: l.encodingType,
		IsTruncated: page.Truncated, Contents: l.contents(page.Objects, owner), CommonPrefixes: l.prefixes(page.Prefixes),
	}
	if page.Truncated {
		doc.NextContinuationToken = newToken(page.Next)
	}
	return c.xml(doc)
}

// listVersions lists the versions of a bucket without versioning: each key has one, "null". Clients empty a bucket by this call.
func (s *Server) listVersions(c *call) error {
	l, err := c.listing("max-keys")
	if err != nil {
		return err
	}
	marker, idMarker := c.query.Get("key-marker"), c.query.Get("version-id-marker")
	if idMarker != "" && marker == "" {
		return invalidArgument("version-id-marker", idMarker, "A version-id marker cannot be specified without a key marker.")
	}
	owner, err := s.owner(c)
	if err != nil {
		return err
	}
	page, err := s.list(c, l, marker)
	if err != nil {
		return err
	}
	doc := listVersionsXML{
		Name: c.bucket, Prefix: l.text(l.prefix), KeyMarker: l.text(marker), VersionIDMarker: idMarker, MaxKeys: l.max,
		Delimiter: l.text(l.delimiter), EncodingType: l.encodingType, IsTruncated: page.Truncated,
		Version: l.contents(page.Objects, owner), CommonPrefixes: l.prefixes(page.Prefixes),
	}
	latest := true
	for i := range doc.Version {
		doc.Version[i].VersionID, doc.Version[i].IsLatest = nullVersion, &latest
	}
	if page.Truncated {
		doc.NextKeyMarker = l.text(page.Next)
		if n := len(page.Objects); n > 0 && page.Objects[n-1].Key == page.Next {
			doc.NextVersionIDMarker = nullVersion
		}
	}
	return c.xml(doc)
}
