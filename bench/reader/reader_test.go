package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	engine "coffer/disk"
	"coffer/hw"
	"coffer/kms"
	store "coffer/object"
)

// TestIndependence holds that the reader is a second one: its files import nothing of this module, and of others only ciphers.
func TestIndependence(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			p := strings.Trim(i.Path.Value, `"`)
			if first, _, _ := strings.Cut(p, "/"); first == "coffer" || strings.Contains(first, ".") && !strings.HasPrefix(p, "golang.org/x/crypto/") {
				t.Errorf("%s imports %s", name, p)
			}
		}
	}
}

// writer makes an array through the public packages and keeps what it put.
type writer struct {
	t        *testing.T
	dir      string
	paths    []string
	keys     *kms.Keyring
	recovery string
	crypto   *hw.Engine
	store    *store.Store
	array    *engine.Array
	want     map[string][]byte // by bucket/key
	facts    map[string]store.Object
}

const disks, parity = 6, 2

var customerKey = [32]byte{7, 7, 7}

func newWriter(t *testing.T) *writer {
	t.Helper()
	w := &writer{t: t, dir: t.TempDir(), want: map[string][]byte{}, facts: map[string]store.Object{}}
	recovery, text, err := kms.NewRecoverySlot()
	w.check(err)
	w.recovery = text
	w.keys, err = kms.Create(t.Context(), [16]byte{1, 2, 3}, kms.NewFileSlot(filepath.Join(w.dir, "key")), recovery)
	w.check(err)
	t.Cleanup(w.keys.Close)
	w.crypto, err = hw.Probe(hw.Options{SkipBench: true})
	w.check(err)
	for i := range disks {
		p := filepath.Join(w.dir, fmt.Sprint("disk", i))
		if err := engine.CreateFile(p, 64<<20); err != nil {
			t.Skipf("no file that serves as a disk: %v", err)
		}
		w.paths = append(w.paths, p)
	}
	w.check(engine.Create(t.Context(), engine.CreateOptions{ArrayID: w.keys.ArrayID(), Paths: w.paths, Keys: w.keys,
		Geometry: engine.Geometry{Data: disks - parity, Parity: parity, ExtentSize: 1 << 20}}))
	return w
}

func (w *writer) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// session opens the array on some disks, with a cipher for what is written, and runs fn.
func (w *writer) session(paths []string, cipher hw.Primitive, fn func()) {
	w.t.Helper()
	var err error
	w.store, err = store.New(store.Options{IndexDir: filepath.Join(w.dir, "index"), Keys: w.keys, Crypto: w.crypto, Cipher: cipher})
	w.check(err)
	set, err := engine.Discover(paths, false)
	w.check(err)
	w.array, err = set.Open(w.t.Context(), engine.Options{Keys: w.keys, State: w.store, Crypto: w.crypto, ArenaBytes: 64 << 20})
	w.check(err)
	w.store.Start(store.OnArray(w.array))
	fn()
	w.check(w.array.Close())
	w.check(w.store.Close())
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(rand.Uint32())})
	r.Read(b) // never fails
	return b
}

// putAll puts many objects at once, so that records share stripes.
func (w *writer) putAll(bucket, prefix string, sizes []int, opt store.PutOptions) {
	w.t.Helper()
	var g errgroup.Group
	objects := make([]store.Object, len(sizes))
	for i, n := range sizes {
		key := fmt.Sprint(prefix, n)
		body := random(n)
		w.want[bucket+"/"+key] = body
		g.Go(func() (err error) {
			opt := opt
			opt.Size = int64(n)
			objects[i], err = w.store.Put(w.t.Context(), bucket, key, bytes.NewReader(body), opt)
			return err
		})
	}
	w.check(g.Wait())
	for _, o := range objects {
		w.facts[bucket+"/"+o.Key] = o
	}
}

func (w *writer) multipart(bucket, key string, opt store.UploadOptions, sizes ...int) {
	w.t.Helper()
	u, err := w.store.CreateUpload(w.t.Context(), bucket, key, opt)
	w.check(err)
	done := store.CompleteOptions{Size: -1}
	var whole []byte
	for i, n := range sizes {
		body := random(n)
		for range 1 + i%2 { // a part may be sent again
			p, err := w.store.PutPart(w.t.Context(), bucket, key, u.ID, 2*i+1, bytes.NewReader(body), store.PartOptions{Size: int64(n), SSE: opt.SSE})
			w.check(err)
			if len(done.Parts) == i {
				done.Parts = append(done.Parts, store.CompletePart{Number: p.Number, ETag: p.ETag})
			}
			done.Parts[i].ETag = p.ETag
		}
		whole = append(whole, body...)
	}
	o, err := w.store.CompleteUpload(w.t.Context(), bucket, key, u.ID, done)
	w.check(err)
	w.want[bucket+"/"+key], w.facts[bucket+"/"+key] = whole, o
}

func (w *writer) remove(bucket, key string) {
	w.t.Helper()
	w.check(w.store.Delete(w.t.Context(), bucket, key, store.Conditions{}))
	delete(w.want, bucket+"/"+key)
	delete(w.facts, bucket+"/"+key)
}

var sizes = []int{0, 1, 100, 4096, 65487, 65519, 65520, 65521, 131040, 131041, 300_000, 1<<20 + 7}

// fill writes an array with a history: several sessions, ciphers and key epochs, deletes, overwrites, uploads of all ends, a session
// without a disk, a freed band. crashed is given a copy of the disks while the last session is still open.
func (w *writer) fill(crashed string) {
	ctx := w.t.Context()
	bucket := func(name string) {
		_, err := w.store.CreateBucket(ctx, name, store.Bucket{Owner: "root"})
		w.check(err)
	}
	var doomed []uint64
	w.session(w.paths, "aes-256-gcm", func() {
		bucket("b")
		w.putAll("b", "doomed", []int{2 << 20}, store.PutOptions{})
		for _, b := range w.array.Bands() {
			if b.Bulk {
				doomed = append(doomed, b.Num)
			}
		}
	})
	customer := store.SSE{Mode: store.ModeCustomer, CustomerKey: &customerKey, CustomerMD5: "x"}
	w.session(w.paths, "aes-256-gcm", func() {
		bucket("c")
		bucket("gone")
		w.check(w.store.DeleteBucket(ctx, "gone"))
		w.check(w.store.SetConfig(ctx, "name", []byte("value")))
		w.putAll("b", "aes/", sizes, store.PutOptions{})
		w.putAll("b", "aes/", sizes[3:6], store.PutOptions{}) // once more, with other content
		w.putAll("c", "customer/", []int{10, 70_000, 200_000}, store.PutOptions{SSE: customer})
		w.remove("b", "aes/100")
		w.remove("b", "aes/1048583")
		w.multipart("b", "multi", store.UploadOptions{}, store.MinPartSize+1, 0)
		w.multipart("c", "customer/multi", store.UploadOptions{SSE: customer}, 70_000)
		// Attributes this large leave no room for the list of parts in the record: it becomes a manifest.
		w.multipart("c", "manifest", store.UploadOptions{Meta: store.Meta{ContentType: strings.Repeat("x", 131_000)}}, 70_000)
		u, err := w.store.CreateUpload(ctx, "c", "aborted", store.UploadOptions{})
		w.check(err)
		w.check(w.store.AbortUpload(ctx, "c", "aborted", u.ID))
	})
	w.session(w.paths[1:], "chacha20-poly1305", func() {
		w.putAll("b", "chacha/", sizes, store.PutOptions{Meta: store.Meta{User: map[string]string{"a": "1", "b": "2"}}})
		e, err := w.keys.AddEpoch()
		w.check(err)
		w.check(w.array.WriteKeyArea())
		w.check(w.keys.UseEpoch(e))
		bucket("e")
		w.putAll("e", "second epoch/", sizes[:10], store.PutOptions{})
	})
	w.session(w.paths, "aes-256-cbc-hmac-sha-512", func() {
		w.putAll("c", "cbc/", sizes, store.PutOptions{})
		w.remove("b", "doomed2097152")
		for _, num := range doomed {
			err := w.array.Free(ctx, num)
			for errors.Is(err, engine.ErrBusy) { // the store may be about to free it
				time.Sleep(time.Millisecond)
				err = w.array.Free(ctx, num)
			}
			if !errors.Is(err, engine.ErrGone) {
				w.check(err)
			}
		}
		// Packed bands are freed as well: what lived in them is found where compaction moved it.
		rep, err := w.store.Compact(ctx, store.CompactOptions{All: true})
		w.check(err)
		if freed, err := w.store.Freed(); err != nil || len(freed) == 0 || rep.Bands == 0 {
			w.t.Fatalf("no packed band was freed: %v, %+v, %v", freed, rep, err)
		}
		bucket("gone")
		w.check(w.store.DeleteBucket(ctx, "gone"))
		aborted, err := w.store.CreateUpload(ctx, "c", "aborted", store.UploadOptions{})
		w.check(err)
		w.check(w.store.AbortUpload(ctx, "c", "aborted", aborted.ID))
		w.putAll("c", "later/", []int{5, 1 << 20, 3 << 20}, store.PutOptions{})
		u, err := w.store.CreateUpload(ctx, "c", "running", store.UploadOptions{})
		w.check(err)
		_, err = w.store.PutPart(ctx, "c", "running", u.ID, 1, strings.NewReader("part"), store.PartOptions{Size: 4})
		w.check(err)
		for _, p := range w.paths {
			b, err := os.ReadFile(p)
			w.check(err)
			w.check(os.WriteFile(filepath.Join(crashed, filepath.Base(p)), b, 0o600))
		}
	})
}

// compare reads the array with the second reader and holds it against what was put.
func (w *writer) compare(t *testing.T, paths []string, s secrets) {
	t.Helper()
	a, err := open(paths, s)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	x, err := a.replay()
	if err != nil {
		t.Fatal(err)
	}
	if len(x.lost) > 0 {
		t.Errorf("packed stripes lost: %v", x.lost)
	}
	for kind := byte(recBucket); kind <= recConfig; kind++ {
		if x.kinds[kind] == 0 {
			t.Errorf("no record of kind %d was read", kind)
		}
	}
	if len(x.uploads) != 1 {
		t.Errorf("%d uploads are running, want 1", len(x.uploads))
	}
	seen := map[string]bool{}
	manifests := 0
	for _, o := range x.list() {
		name := x.buckets[o.bucket].name + "/" + o.key
		seen[name] = true
		var got bytes.Buffer
		if err := a.read(x, o, customerKey[:], &got); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(got.Bytes(), w.want[name]) {
			t.Errorf("%s: %d bytes that are not the %d that were put", name, got.Len(), len(w.want[name]))
		}
		f := w.facts[name]
		if o.etag != f.ETag || o.size != uint64(f.Size) || o.modified != uint64(f.Modified.UnixMilli()) || !bytes.Equal(o.checksum.sum, f.Checksum.Sum) ||
			o.meta.contentType != f.Meta.ContentType || !maps.Equal(o.meta.user, f.Meta.User) {
			t.Errorf("%s: etag %s, size %d and the like differ from %s, %d", name, o.etag, o.size, f.ETag, f.Size)
		}
		if o.content.manifest != nil {
			manifests++
		}
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(w.want)), slices.Sorted(maps.Keys(seen))); d != "" || manifests == 0 {
		t.Errorf("%d manifests; objects:\n%s", manifests, d)
	}
}

// removeDisk adds a disk and a spare, and drains another disk.
func (w *writer) removeDisk(slot int) {
	w.session(w.paths, "aes-256-gcm", func() {
		for _, spare := range []bool{false, true} {
			p := filepath.Join(w.dir, fmt.Sprint("added, spare ", spare))
			w.check(engine.CreateFile(p, 64<<20))
			_, err := w.array.Add(w.t.Context(), p, engine.AddOptions{Spare: spare})
			w.check(err)
		}
		w.check(w.array.Remove(w.t.Context(), slot))
		for slices.ContainsFunc(w.array.Status().Disks, func(d engine.DiskStatus) bool { return d.Slot == slot }) {
			time.Sleep(10 * time.Millisecond)
		}
	})
	w.paths[slot] = filepath.Join(w.dir, "added, spare false")
}

// TestSecondReader holds that the format documents are enough to read an array, with any two disks missing.
func TestSecondReader(t *testing.T) {
	w := newWriter(t)
	crashed := t.TempDir()
	w.fill(crashed)
	file, err := os.ReadFile(filepath.Join(w.dir, "key"))
	w.check(err)
	recovery, err := parseRecovery(w.recovery)
	w.check(err)
	t.Run("all disks", func(t *testing.T) { w.compare(t, w.paths, secrets{"file": file}) })
	for i := range disks {
		for j := range i {
			t.Run(fmt.Sprintf("without %d and %d", j, i), func(t *testing.T) {
				left := slices.Delete(slices.Delete(slices.Clone(w.paths), i, i+1), j, j+1)
				w.compare(t, left, secrets{"recovery": recovery})
			})
		}
	}
	t.Run("not closed", func(t *testing.T) {
		var paths []string
		for _, p := range w.paths[:disks-1] {
			paths = append(paths, filepath.Join(crashed, filepath.Base(p)))
		}
		w.compare(t, paths, secrets{"recovery": recovery})
	})
	t.Run("a disk added, one removed", func(t *testing.T) {
		w.removeDisk(1)
		left := append(slices.Clone(w.paths[:2]), w.paths[4:]...)
		w.compare(t, left, secrets{"recovery": recovery})
	})
	t.Run("one missing, one overwritten", func(t *testing.T) {
		f, err := os.OpenFile(w.paths[2], os.O_WRONLY, 0)
		w.check(err)
		_, err = f.WriteAt(random(40<<20), 2<<20)
		w.check(errors.Join(err, f.Close()))
		w.compare(t, w.paths[:disks-1], secrets{"recovery": recovery})
	})
	t.Run("command", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "recovery")
		w.check(os.WriteFile(path, []byte(strings.ToLower(w.recovery)+"\n"), 0o600))
		var out bytes.Buffer
		w.check(run(append([]string{"-recovery-key", path, "-get", "b/aes/4096"}, w.paths...), &out))
		if !bytes.Equal(out.Bytes(), w.want["b/aes/4096"]) {
			t.Error("another body")
		}
		out.Reset()
		if w.check(run(append([]string{"-recovery-key", path}, w.paths...), &out)); strings.Count(out.String(), "\n") != len(w.want) {
			t.Errorf("listed:\n%s", &out)
		}
	})
	t.Run("refused", func(t *testing.T) {
		wrong := slices.Clone(recovery)
		wrong[0] ^= 1
		for name, args := range map[string]struct {
			paths []string
			s     secrets
		}{
			"wrong key":           {w.paths, secrets{"recovery": wrong}},
			"no key":              {w.paths, nil},
			"three disks missing": {w.paths[3:], secrets{"recovery": recovery}},
			"no disks":            {nil, secrets{"recovery": recovery}},
		} {
			if _, err := open(args.paths, args.s); err == nil {
				t.Errorf("%s: opened", name)
			}
		}
		if _, err := parseRecovery(w.recovery[:10] + "Z" + w.recovery[11:]); err == nil && w.recovery[10] != 'Z' {
			t.Error("a mistyped recovery key passed")
		}
	})
}
