package index

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// naiveList is the specification of a listing: roll up, drop what is not behind the marker, cut.
func naiveList(all []Item, o ListOptions) Page {
	slices.SortFunc(all, func(a, b Item) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(string(a.ID[:]), string(b.ID[:])))
	})
	var items []Item
	for _, it := range all {
		if !strings.HasPrefix(it.Key, o.Prefix) {
			continue
		}
		if o.Delimiter != "" {
			if head, _, found := strings.Cut(it.Key[len(o.Prefix):], o.Delimiter); found {
				it = Item{Key: o.Prefix + head + o.Delimiter, Prefix: true}
			}
		}
		byID := o.AfterID != nil && o.After != "" && !it.Prefix && it.Key == o.After && string(it.ID[:]) > string(o.AfterID[:])
		if o.After != "" && it.Key <= o.After && !byID {
			continue
		}
		if len(items) == 0 || !it.Prefix || !items[len(items)-1].Prefix || items[len(items)-1].Key != it.Key {
			items = append(items, it)
		}
	}
	if o.Max <= 0 {
		return Page{}
	}
	return Page{Items: items[:min(o.Max, len(items))], Truncated: len(items) > o.Max}
}

// fill puts random objects and uploads into a new index, with neighbours in other buckets, and returns those of bucket 5.
func fill(tb testing.TB, x *Index, rng *rand.Rand, n int) (objects, uploads []Item) {
	b := x.NewBatch()
	seen := make(map[string]bool)
	for i := range n {
		key, value := cmp.Or(randKey(rng, 7), "a"), fmt.Appendf(nil, "value %d", i) // S3 has no empty key
		for _, bucket := range []uint64{4, 5, 6, 0xffffffffffffffff} {
			b.Set(ObjectKey(nil, bucket, key), value)
			b.Set(UploadKey(nil, bucket, key, UploadID{15: byte(i)}), value)
		}
		uploads = append(uploads, Item{Key: key, ID: UploadID{15: byte(i)}, Value: value})
		if i := slices.IndexFunc(objects, func(o Item) bool { return o.Key == key }); seen[key] {
			objects[i].Value = value
		} else {
			objects = append(objects, Item{Key: key, Value: value})
		}
		seen[key] = true
	}
	check(tb, b.Commit())
	return objects, uploads
}

func randOptions(rng *rand.Rand) ListOptions {
	o := ListOptions{Prefix: randKey(rng, 2), After: randKey(rng, 5), Max: rng.IntN(12)}
	if rng.IntN(3) == 0 {
		o.Prefix = ""
	}
	if rng.IntN(3) == 0 {
		o.After = ""
	}
	if rng.IntN(3) == 0 {
		o.Max = 1000
	}
	o.Delimiter = []string{"", "/", "/", "a", "\xff", "\x00", "/a", "\xff\xff"}[rng.IntN(8)]
	if rng.IntN(2) == 0 {
		o.AfterID = &UploadID{15: byte(rng.IntN(256))}
	}
	return o
}

func TestListAgainstModel(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 2))
		x := open(t, newMem(), testKeys{})
		objects, uploads := fill(t, x, rng, rng.IntN(250))
		if seed%2 == 0 {
			check(t, x.Checkpoint())
		}
		for range 300 {
			o := randOptions(rng)
			got, err := x.ListUploads(5, o)
			check(t, err)
			if want := naiveList(uploads, o); !reflect.DeepEqual(want, got) {
				t.Fatalf("seed %d, uploads %+q: %s", seed, fmt.Sprint(o), gocmp.Diff(want, got))
			}
			got, err = x.List(5, o)
			check(t, err)
			o.AfterID = nil
			if want := naiveList(objects, o); !reflect.DeepEqual(want, got) {
				t.Fatalf("seed %d, objects %+q: %s", seed, fmt.Sprint(o), gocmp.Diff(want, got))
			}
		}
		check(t, x.Close())
	}
}

// TestListPages: the pages of a listing, chained by their last items, are the whole listing.
func TestListPages(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	x := open(t, newMem(), testKeys{})
	fill(t, x, rng, 250)
	for range 100 {
		o := randOptions(rng)
		o.After, o.AfterID = "", nil
		for name, list := range map[string]func(uint64, ListOptions) (Page, error){"objects": x.List, "uploads": x.ListUploads} {
			o.Max = 1 << 20
			whole, err := list(5, o)
			check(t, err)
			var chained []Item
			p := o
			p.Max = 1 + rng.IntN(9)
			for {
				page, err := list(5, p)
				check(t, err)
				chained = append(chained, page.Items...)
				if !page.Truncated {
					break
				}
				last := page.Items[len(page.Items)-1]
				p.After, p.AfterID = last.Key, nil
				if !last.Prefix {
					p.AfterID = &last.ID
				}
			}
			if !reflect.DeepEqual(whole.Items, chained) {
				t.Fatalf("%s %+q: %s", name, fmt.Sprint(o), gocmp.Diff(whole.Items, chained))
			}
		}
	}
	check(t, x.Close())
}

func FuzzList(f *testing.F) {
	x := open(f, newMem(), testKeys{})
	objects, uploads := fill(f, x, rand.New(rand.NewPCG(4, 4)), 200)
	f.Add("a/", "/", "a/b", byte(0), uint8(3))
	f.Add("", "\xff", "\xff\xff", byte(9), uint8(200))
	f.Fuzz(func(t *testing.T, prefix, delimiter, after string, id byte, maxItems uint8) {
		o := ListOptions{Prefix: prefix, Delimiter: delimiter, After: after, AfterID: &UploadID{15: id}, Max: int(maxItems)}
		got, err := x.ListUploads(5, o)
		check(t, err)
		if d := gocmp.Diff(naiveList(slices.Clone(uploads), o), got); d != "" {
			t.Fatal(d)
		}
		got, err = x.List(5, o)
		check(t, err)
		o.AfterID = nil
		if d := gocmp.Diff(naiveList(slices.Clone(objects), o), got); d != "" {
			t.Fatal(d)
		}
	})
}
