package object

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"coffer/disk"
	"coffer/object/internal/index"
)

// maxDeepFaults bounds the list of faults in a report; all are counted.
const maxDeepFaults = 1000

// DeepOptions configure DeepCheck.
type DeepOptions struct {
	// Sample has the tags of one object in so many verified; 0: of none, 1: of all.
	Sample int
	// Progress is told how far a phase is, in its own unit. May be nil.
	Progress func(phase string, done, total int64)
}

// DeepReport is what DeepCheck found. Sizes are bytes.
type DeepReport struct {
	Entries   int64 `json:"entries"`   // of the index that the log makes
	Missing   int64 `json:"missing"`   // of them, that the index on disk does not have
	Extra     int64 `json:"extra"`     // that it has, and the log does not make
	Different int64 `json:"different"` // that it has otherwise

	Stripes      int64  `json:"stripes"`       // of bulk, that records name
	LostStripes  int64  `json:"lost_stripes"`  // of them, that cannot be read
	Garbage      int64  `json:"garbage"`       // whole stripes that no record names: cut-off uploads, and what was deleted
	GarbageBytes int64  `json:"garbage_bytes"` // of each of their extents
	NotCommitted int64  `json:"not_committed"` // stripes that cannot be read and that no record names: they never counted
	FreedStripes uint64 `json:"freed_stripes"` // packed ones, that compaction freed

	Objects     int64 `json:"objects"`
	Opened      int64 `json:"opened"`       // objects of which every tag was verified
	OpenedBytes int64 `json:"opened_bytes"` // plaintext
	Skipped     int64 `json:"skipped"`      // objects of the sample that are sealed with customer keys
	Unopened    int64 `json:"unopened"`     // that cannot be read

	Cells      disk.CheckReport `json:"cells"`
	FaultCount int64            `json:"fault_count"`
	Faults     []string         `json:"deep_faults,omitempty"` // the first of them
}

// OK reports whether everything agrees and everything is there.
func (r *DeepReport) OK() bool { return r.FaultCount == 0 && r.Cells.OK() }

func (r *DeepReport) fault(format string, args ...any) {
	if r.FaultCount++; len(r.Faults) < maxDeepFaults {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
}

// deep is a check under way.
type deep struct {
	expected, have *Store
	array          *disk.Array
	log            Log
	opt            DeepOptions
	rep            DeepReport
	named          map[bulkPlace]namedStripe
}

// bulkPlace is where a bulk stripe lies.
type bulkPlace struct {
	band uint64
	off  uint32
}

// namedStripe is what records say of a stripe.
type namedStripe struct {
	data  uint8
	bytes uint32 // of each extent
	seen  bool   // whole
}

// DeepCheck compares the log, the index, the disks and the accounts of their space with each other. expected is a store that the
// whole log of the array was replayed into, have one with a copy of the index as it was on disk, brought up to the log's end; nil if
// there was none. Both are changed, the array is only read; nothing may write to it meanwhile.
func DeepCheck(ctx context.Context, expected, have *Store, array *disk.Array, opt DeepOptions) (DeepReport, error) {
	if opt.Progress == nil {
		opt.Progress = func(string, int64, int64) {}
	}
	d := &deep{expected: expected, have: have, array: array, log: OnArray(array), opt: opt, named: map[bulkPlace]namedStripe{}}
	for _, step := range []func(context.Context) error{d.compare, d.accounts, d.freed, d.collect, d.disks, d.owners, d.open} {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return d.rep, fmt.Errorf("deep check: %w", err)
		}
	}
	return d.rep, nil
}

// holds reports whether an entry is one that both indexes should have alike: not a position, and no count of live bytes, which come in
// accounts.
func holds(key []byte) bool {
	switch index.KindOf(key) {
	case index.KindBucket, index.KindConfig, index.KindObject, index.KindPart, index.KindShadow, index.KindUpload, index.KindRef:
		return true
	}
	return false
}

// each calls f for the entries of an index.
func each(ctx context.Context, s *Store, f func(key, value []byte) error) (err error) {
	it := s.idx.Iter(nil, nil)
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.Seek(nil); ok && err == nil; ok = it.Next() {
		if holds(it.Key()) {
			err = errors.Join(ctx.Err(), f(it.Key(), it.Value()))
		}
	}
	return err
}

// compare compares the two indexes.
func (d *deep) compare(ctx context.Context) (err error) {
	if err := d.expected.tidy(d.log); err != nil {
		return err
	}
	if d.have == nil {
		d.rep.fault("index: there is none that can be used: the next start replays the log into a new one")
		return each(ctx, d.expected, func(_, _ []byte) error { d.rep.Entries++; return nil })
	}
	if err := d.have.tidy(d.log); err != nil {
		return err
	}
	x, y := d.expected.idx.Iter(nil, nil), d.have.idx.Iter(nil, nil)
	defer func() { err = errors.Join(err, x.Close()); _ = y.Close() }() // y's error is a finding
	skip := func(it *index.Iter, ok bool) bool {
		for ok && !holds(it.Key()) {
			ok = it.Next()
		}
		return ok
	}
	inX, inY := skip(x, x.Seek(nil)), skip(y, y.Seek(nil))
	for (inX || inY) && ctx.Err() == nil {
		order := 0
		switch {
		case !inY:
			order = -1
		case !inX:
			order = 1
		default:
			order = bytes.Compare(x.Key(), y.Key())
		}
		switch {
		case order < 0:
			d.rep.Missing++
			d.rep.fault("index: no entry for %s, which the log has", d.describe(x.Key()))
		case order > 0:
			d.rep.Extra++
			d.rep.fault("index: an entry for %s, which the log does not have", d.describe(y.Key()))
		case !bytes.Equal(x.Value(), y.Value()):
			d.rep.Different++
			d.rep.fault("index: the entry for %s is not what the log makes of it", d.describe(x.Key()))
		}
		if order <= 0 {
			d.rep.Entries++
			inX = skip(x, x.Next())
		}
		if order >= 0 {
			inY = skip(y, y.Next())
		}
		if d.rep.Entries%1024 == 0 {
			d.opt.Progress("index", d.rep.Entries, 0)
		}
	}
	if err := y.Error(); err != nil {
		d.rep.fault("index: cannot be read: the next start that meets the place rebuilds it: %v", err)
		d.have = nil
	}
	return errors.Join(x.Error(), ctx.Err())
}

// describe names an entry.
func (d *deep) describe(key []byte) string {
	bucket := func(id uint64) string {
		if b := d.expected.buckets.byID(id); b != nil {
			return b.name
		}
		return bucketHex(id)
	}
	switch index.KindOf(key) {
	case index.KindBucket:
		if name, err := index.ParseBucketKey(key); err == nil {
			return fmt.Sprintf("bucket %q", name)
		}
	case index.KindConfig:
		if name, err := index.ParseConfigKey(key); err == nil {
			return fmt.Sprintf("system record %q", name)
		}
	case index.KindObject:
		if b, k, err := index.ParseObjectKey(key); err == nil {
			return fmt.Sprintf("object %q in bucket %s", k, bucket(b))
		}
	case index.KindUpload:
		if b, k, _, err := index.ParseUploadKey(key); err == nil {
			return fmt.Sprintf("an upload of %q to bucket %s", k, bucket(b))
		}
	case index.KindPart:
		if id, n, err := index.ParsePartKey(key); err == nil {
			return fmt.Sprintf("part %d of upload %s", n, hex.EncodeToString(id[:]))
		}
	case index.KindShadow:
		if seq, err := index.ParseShadowKey(key); err == nil {
			return fmt.Sprintf("the shadow of record %d", seq)
		}
	case index.KindRef:
		if band, k, err := index.ParseRefKey(key); err == nil {
			return fmt.Sprintf("the reference to band %x of %s", band, d.describe(k))
		}
	}
	return fmt.Sprintf("a key of %d bytes", len(key))
}

// accounts reckons live bytes and references anew from the entries of the index on disk, and asks its filter for each key.
func (d *deep) accounts(ctx context.Context) error {
	d.accountsOfDisks()
	s := d.have
	if s == nil {
		return nil
	}
	want := map[uint64]int64{}
	var refs, found int64
	err := each(ctx, s, func(key, value []byte) error {
		kind := index.KindOf(key)
		if kind == index.KindRef {
			found++
			return nil
		}
		p, body, err := splitValue(value)
		if err != nil {
			return err
		}
		c, err := contentOf(body)
		if err != nil {
			return err
		}
		bulk := map[uint64]bool{}
		p.forBands(body, c, func(band uint64, n int64) { want[band] += n })
		switch {
		case kind == index.KindShadow:
			want[shadowBand] += int64(len(body))
			return nil
		case c != nil:
			c.forBands(func(band uint64, _ int64) { bulk[band] = true })
		}
		if kind == index.KindObject && s.idx.Denied(key) {
			d.rep.fault("filter: %s would not be found", d.describe(key))
		}
		for band := range bulk {
			refs++
			if _, ok, err := s.idx.Get(index.RefKey(nil, band, key), nil); err != nil {
				return err
			} else if !ok {
				d.rep.fault("references: none to band %x of %s: compaction would lose it", band, d.describe(key))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if found > refs {
		d.rep.fault("references: %d too many", found-refs)
	}
	got := map[uint64]int64{}
	s.idx.Live(func(band uint64, n int64) { got[band] = n })
	d.compareLive(want, got)
	return nil
}

// compareLive compares counts of live bytes by band.
func (d *deep) compareLive(want, got map[uint64]int64) {
	for band, n := range got {
		if _, ok := want[band]; !ok && n != 0 {
			want[band] = 0
		}
	}
	there := map[uint64]bool{shadowBand: true}
	for _, b := range d.log.Bands() {
		there[b.Num] = true
	}
	for _, band := range slices.Sorted(maps.Keys(want)) {
		name := fmt.Sprintf("band %x", band)
		if band == shadowBand {
			name = "shadows"
		}
		if want[band] != got[band] {
			d.rep.fault("space: %s has %d live bytes, and %d are counted", name, want[band], got[band])
		}
		if want[band] > 0 && !there[band] {
			d.rep.fault("space: %s is not there, and %d bytes in it are live", name, want[band])
		}
	}
}

func (d *deep) accountsOfDisks() {
	for _, f := range d.array.Accounts() {
		d.rep.fault("space: %s", f)
	}
}

// freed looks at the list of packed stripes that compaction freed.
func (d *deep) freed(context.Context) error {
	list, err := d.expected.Freed()
	if errors.Is(err, ErrCorrupt) {
		d.rep.fault("freed stripes: the list cannot be read: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	last := d.array.LastStripe()
	for _, r := range list {
		d.rep.FreedStripes += r.To - r.From + 1
		if r.From == 0 || r.To > last {
			d.rep.fault("freed stripes: %d to %d are listed, and the log has 1 to %d", r.From, r.To, last)
		}
	}
	return nil
}

// collect notes the bulk stripes that records name.
func (d *deep) collect(ctx context.Context) error {
	return d.stripes(ctx, func(key []byte, st disk.Stripe) {
		d.rep.Stripes++
		at := bulkPlace{st.Band, st.Off}
		s := namedStripe{data: st.Data, bytes: uint32(st.Footprint())}
		if other, twice := d.named[at]; twice && (other.data != s.data || other.bytes != s.bytes) {
			d.rep.fault("stripe %x/%d: %s says that it has another shape than others do", st.Band, st.Off, d.describe(key))
		}
		d.named[at] = s
	})
}

// stripes calls f for each bulk stripe that an entry of the index names, whatever it takes to know it.
func (d *deep) stripes(ctx context.Context, f func(key []byte, st disk.Stripe)) error {
	s := d.expected
	return each(ctx, s, func(key, value []byte) error {
		kind := index.KindOf(key)
		if kind != index.KindObject && kind != index.KindPart {
			return nil
		}
		err := s.stripesOf(ctx, d.log, value, func(st disk.Stripe) { f(key, st) })
		switch {
		case errors.Is(err, errNoBucket):
			d.rep.fault("%s: its bucket is not there", d.describe(key))
		case errors.Is(err, ErrCorrupt):
			d.rep.fault("%s: its list of parts cannot be read: %v", d.describe(key), err)
		default:
			return err
		}
		return nil
	})
}

// disks reads every cell, and tells live from dead stripes.
func (d *deep) disks(ctx context.Context) (err error) {
	d.rep.Cells, err = d.array.Check(ctx, disk.CheckOptions{Sample: 1,
		Bytes: func(done, total int64) { d.opt.Progress("disks", done, total) },
		Named: func(f disk.FoundStripe) bool {
			at := bulkPlace{f.Band, f.Off}
			s, named := d.named[at]
			switch {
			case named && f.Decodable:
				s.seen = s.data == f.Data && int64(s.bytes) == f.Bytes
				d.named[at] = s
			case !named && f.Decodable:
				d.rep.Garbage++
				d.rep.GarbageBytes += f.Bytes
			}
			return named
		}})
	d.rep.NotCommitted = int64(d.rep.Cells.Torn)
	return err
}

// owners names the entries whose stripes are not there.
func (d *deep) owners(ctx context.Context) error {
	lost := map[bulkPlace]bool{}
	for at, s := range d.named {
		if !s.seen {
			lost[at] = true
		}
	}
	if d.rep.LostStripes = int64(len(lost)); len(lost) == 0 {
		return nil
	}
	return d.stripes(ctx, func(key []byte, st disk.Stripe) {
		if lost[bulkPlace{st.Band, st.Off}] {
			d.rep.fault("%s: its stripe %x/%d is lost", d.describe(key), st.Band, st.Off)
		}
	})
}

// open reads objects, which verifies the tag of every segment.
func (d *deep) open(ctx context.Context) error {
	s := d.expected
	lower, upper := []byte{byte(index.KindObject)}, []byte{byte(index.KindObject) + 1}
	total := int64(0)
	count := s.idx.Iter(lower, upper)
	for ok := count.Seek(nil); ok; ok = count.Next() {
		total++
	}
	if err := count.Close(); err != nil {
		return err
	}
	it := s.idx.Iter(lower, upper)
	defer it.Close()
	for ok := it.Seek(nil); ok; ok = it.Next() {
		d.rep.Objects++
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.opt.Sample == 0 || d.rep.Objects%int64(d.opt.Sample) != 0 {
			continue
		}
		if err := d.openOne(ctx, it.Key()); err != nil {
			return err
		}
		d.opt.Progress("objects", d.rep.Objects, total)
	}
	return it.Error()
}

func (d *deep) openOne(ctx context.Context, key []byte) error {
	id, name, err := index.ParseObjectKey(key)
	if err != nil {
		return err
	}
	b := d.expected.buckets.byID(id)
	if b == nil {
		d.rep.fault("%s: its bucket is not there", d.describe(key))
		return nil
	}
	r, err := d.expected.Get(ctx, b.name, name, GetOptions{})
	if errors.Is(err, ErrKeyRequired) {
		d.rep.Skipped++
		return nil
	}
	var n int64
	if err == nil {
		n, err = io.Copy(io.Discard, r)
		err = cmp.Or(err, r.Close())
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.rep.Unopened++
		d.rep.fault("%s cannot be read: %v", d.describe(key), err)
		return nil
	}
	d.rep.Opened++
	d.rep.OpenedBytes += n
	return nil
}
