package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testArray = [16]byte{0xa7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// cheapArgon2 keeps tests short.
var cheapArgon2 = Argon2{MemoryKiB: 64, Passes: 1, Threads: 1}

func testFileSlot(t testing.TB) *FileSlot {
	return NewFileSlot(filepath.Join(t.TempDir(), "root.key"))
}

func testKeyring(t testing.TB, slots ...Slot) *Keyring {
	t.Helper()
	if len(slots) == 0 {
		slots = []Slot{testFileSlot(t)}
	}
	k, err := Create(t.Context(), testArray, slots...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func mustUnlock(t testing.TB, area []byte, slots ...Slot) *Keyring {
	t.Helper()
	k, _, err := Unlock(t.Context(), testArray, area, slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// allKeys copies every key that a keyring gives out.
func allKeys(t testing.TB, k *Keyring) map[string]string {
	t.Helper()
	keys := map[string]string{"superblock": string(k.SuperblockKey()), "cell": string(k.CellKey())}
	for _, e := range k.Epochs() {
		record, err := k.RecordKey(e.Number)
		if err != nil {
			t.Fatal(err)
		}
		index, err := k.IndexKey(e.Number)
		if err != nil {
			t.Fatal(err)
		}
		keys[fmt.Sprint("record ", e.Number)], keys[fmt.Sprint("index ", e.Number)] = string(record), string(index)
	}
	return keys
}

func TestKeyringRoundTrip(t *testing.T) {
	file := testFileSlot(t)
	k := testKeyring(t, file)
	for want := uint32(2); want <= 3; want++ {
		n, err := k.AddEpoch()
		if err != nil || n != want {
			t.Fatalf("AddEpoch: %d, %v", n, err)
		}
	}
	b, err := k.NewBucketKey(42)
	if err != nil || b.Epoch != 1 {
		t.Fatalf("bucket key of epoch %d: %v", b.Epoch, err)
	}
	kek, err := k.OpenBucketKey(42, b)
	if err != nil {
		t.Fatal(err)
	}
	dataKey := [KeySize]byte{1, 2, 3}
	wrapped := WrapDataKey(kek, &dataKey, []byte("aad"))
	sealed, err := k.SealSecret("root credentials", []byte("AKIA"))
	if err != nil {
		t.Fatal(err)
	}

	again := mustUnlock(t, k.Area(), file)
	if diff := cmp.Diff(allKeys(t, k), allKeys(t, again)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(k.Epochs(), again.Epochs()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(k.Slots(), again.Slots()); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(k.Area(), again.Area()) || again.ArrayID() != testArray {
		t.Error("area changed by opening it")
	}
	if again.CurrentEpoch() != 3 {
		t.Errorf("current epoch %d", again.CurrentEpoch())
	}
	kek2, err := again.OpenBucketKey(42, b)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := UnwrapDataKey(kek2, wrapped, []byte("aad")); err != nil || got != dataKey {
		t.Errorf("data key: %x, %v", got, err)
	}
	if p, err := again.OpenSecret("root credentials", sealed); err != nil || string(p) != "AKIA" {
		t.Errorf("secret: %q, %v", p, err)
	}
}

// TestKeysDiffer: no two keys of a keyring are the same, nor those of two arrays with one root key.
func TestKeysDiffer(t *testing.T) {
	k := testKeyring(t)
	if _, err := k.AddEpoch(); err != nil {
		t.Fatal(err)
	}
	keys := slices.Collect(maps.Values(allKeys(t, k)))
	other, err := newKeyring(k.arena, [16]byte{1}, k.root)
	if err != nil {
		t.Fatal(err)
	}
	keys = append(keys, string(k.root.view()), string(other.superblock.view()), string(other.areaKey.view()), string(other.rootWrap.view()),
		string(k.areaKey.view()), string(k.rootWrap.view()))
	for _, e := range k.epochs {
		keys = append(keys, string(e.bucket.view()), string(e.secret.view()))
	}
	slices.Sort(keys)
	if n := len(slices.Compact(slices.Clone(keys))); n != len(keys) {
		t.Errorf("%d different keys of %d", n, len(keys))
	}
}

func TestEpochs(t *testing.T) {
	file := testFileSlot(t)
	k := testKeyring(t, file)
	if err := k.UseEpoch(2); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("UseEpoch of a missing epoch: %v", err)
	}
	if _, err := k.RecordKey(2); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("RecordKey of a missing epoch: %v", err)
	}
	if _, err := k.IndexKey(0); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("IndexKey of epoch 0: %v", err)
	}
	n, err := k.AddEpoch()
	if err != nil {
		t.Fatal(err)
	}
	if k.CurrentEpoch() != 1 {
		t.Error("an epoch became current before it was durable")
	}
	if err := k.UseEpoch(n); err != nil || k.CurrentEpoch() != 2 {
		t.Errorf("UseEpoch: %v, current %d", err, k.CurrentEpoch())
	}
	if err := k.UseEpoch(1); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("epoch went back: %v", err)
	}
	if b, err := k.NewBucketKey(1); err != nil || b.Epoch != 2 {
		t.Errorf("bucket key of epoch %d: %v", b.Epoch, err)
	}
	for len(k.Epochs()) < MaxEpochs {
		if _, err := k.AddEpoch(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.AddEpoch(); !errors.Is(err, ErrLimit) {
		t.Errorf("epoch %d: %v", MaxEpochs+1, err)
	}
	if got := mustUnlock(t, k.Area(), file).Epochs(); len(got) != MaxEpochs {
		t.Errorf("%d epochs came back", len(got))
	}
}

func TestSlotsOfKeyring(t *testing.T) {
	file := testFileSlot(t)
	k := testKeyring(t, file)
	pass := NewPassphraseSlot(Passphrase([]byte("correct horse")), cheapArgon2)
	n, err := k.AddSlot(t.Context(), pass)
	if err != nil || n != 1 {
		t.Fatalf("AddSlot: %d, %v", n, err)
	}
	rec, text, err := NewRecoverySlot()
	if err != nil {
		t.Fatal(err)
	}
	if n, err = k.AddSlot(t.Context(), rec); err != nil || n != 2 {
		t.Fatalf("AddSlot: %d, %v", n, err)
	}
	rec.Close()
	parsed, err := ParseRecoveryKey(text)
	if err != nil {
		t.Fatal(err)
	}
	defer parsed.Close()
	for _, s := range []Slot{file, pass, parsed} {
		mustUnlock(t, k.Area(), s)
	}
	if err := k.RemoveSlot(9); !errors.Is(err, ErrSlotAbsent) {
		t.Errorf("remove of a missing slot: %v", err)
	}
	if err := k.RemoveSlot(0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Unlock(t.Context(), testArray, k.Area(), []Slot{file}); !errors.Is(err, ErrLocked) || !errors.Is(err, ErrSlotAbsent) {
		t.Errorf("removed slot: %v", err)
	}
	if n, err = k.AddSlot(t.Context(), file); err != nil || n != 0 {
		t.Errorf("freed number: %d, %v", n, err)
	}
	mustUnlock(t, k.Area(), file)
	for len(k.Slots()) < MaxSlots {
		if _, err := k.AddSlot(t.Context(), file); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.AddSlot(t.Context(), file); !errors.Is(err, ErrLimit) {
		t.Errorf("slot %d: %v", MaxSlots+1, err)
	}
	for i := range MaxSlots - 1 {
		if err := k.RemoveSlot(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.RemoveSlot(MaxSlots - 1); !errors.Is(err, ErrLastSlot) {
		t.Errorf("last slot: %v", err)
	}
	mustUnlock(t, k.Area(), file)
}

// TestUnlockOrder: slots are tried in the order given, each on all blobs of its kind, and report how they fared.
func TestUnlockOrder(t *testing.T) {
	dir := t.TempDir()
	first, second := NewFileSlot(filepath.Join(dir, "1")), NewFileSlot(filepath.Join(dir, "2"))
	right := NewPassphraseSlot(Passphrase([]byte("correct horse")), cheapArgon2)
	wrong := NewPassphraseSlot(Passphrase([]byte("battery staple")), cheapArgon2)
	k := testKeyring(t, first, right, second)
	absent := NewFileSlot(filepath.Join(dir, "3"))
	rec, _, err := NewRecoverySlot()
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	opened, results, err := Unlock(t.Context(), testArray, k.Area(), []Slot{rec, absent, wrong, second, right})
	if err != nil {
		t.Fatal(err)
	}
	opened.Close()
	want := []struct {
		kind   string
		number int
		err    error
	}{{"recovery", -1, ErrSlotAbsent}, {"file", -1, ErrSlotAbsent}, {"passphrase", -1, ErrSlotDenied}, {"file", 2, nil}}
	if len(results) != len(want) {
		t.Fatalf("%d results: %+v", len(results), results)
	}
	for i, w := range want {
		r := results[i]
		if r.Kind != w.kind || r.Number != w.number || !errors.Is(r.Err, w.err) || r.OK != (w.err == nil) {
			t.Errorf("result %d: %+v, want %+v", i, r, w)
		}
	}
	_, results, err = Unlock(t.Context(), testArray, k.Area(), []Slot{wrong})
	if !errors.Is(err, ErrLocked) || !errors.Is(err, ErrSlotDenied) || len(results) != 1 {
		t.Errorf("wrong passphrase: %v, %+v", err, results)
	}
	if _, _, err = Unlock(t.Context(), testArray, k.Area(), nil); !errors.Is(err, ErrLocked) {
		t.Errorf("no slots: %v", err)
	}
	if _, _, err = Unlock(t.Context(), [16]byte{9}, k.Area(), []Slot{first}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another array's area: %v", err)
	}
}

// fakeSlot is a slot whose answers a test chooses.
type fakeSlot struct {
	kind string
	seal func(ctx context.Context, root []byte) ([]byte, error)
	open func(ctx context.Context, blob []byte) ([]byte, error)
}

func (s *fakeSlot) Kind() string                                          { return s.kind }
func (s *fakeSlot) Seal(ctx context.Context, root []byte) ([]byte, error) { return s.seal(ctx, root) }
func (s *fakeSlot) Open(ctx context.Context, blob []byte) ([]byte, error) { return s.open(ctx, blob) }

// plainSlot keeps the root key as it is.
func plainSlot(kind string) *fakeSlot {
	same := func(_ context.Context, p []byte) ([]byte, error) { return bytes.Clone(p), nil }
	return &fakeSlot{kind, same, same}
}

// TestHungSlot: a slot that never answers, not even to its ctx, delays Unlock by its deadline; what it returns late is wiped.
func TestHungSlot(t *testing.T) {
	k := testKeyring(t, plainSlot("tpm"), plainSlot("tpm"), plainSlot("hsm"))
	root := bytes.Clone(k.root.view())
	area := k.Area()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		hung := func(late []byte) *fakeSlot {
			return &fakeSlot{kind: "tpm", open: func(context.Context, []byte) ([]byte, error) {
				calls.Add(1)
				<-release
				return late, nil
			}}
		}
		late1, late2 := bytes.Clone(root), bytes.Clone(root)
		start := time.Now()
		slots := []Slot{WithTimeout(hung(late1), 3*time.Second), hung(late2), plainSlot("hsm")}
		opened, results, err := Unlock(t.Context(), testArray, area, slots)
		if err != nil {
			t.Fatal(err)
		}
		opened.Close()
		if took := time.Since(start); took != 3*time.Second+DefaultSlotTimeout {
			t.Errorf("took %v", took)
		}
		if r := results[0]; r.OK || !errors.Is(r.Err, ErrSlotTimeout) || r.Duration != 3*time.Second {
			t.Errorf("hung slot: %+v", r)
		}
		if !results[2].OK {
			t.Errorf("healthy slot: %+v", results[2])
		}
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls: a hung slot was asked again", n)
		}
		close(release)
		synctest.Wait()
		if !bytes.Equal(append(late1, late2...), make([]byte, 2*KeySize)) {
			t.Error("a late root key was not wiped")
		}
	})
}

func TestUnlockObeysContext(t *testing.T) {
	k := testKeyring(t, plainSlot("tpm"), plainSlot("hsm"))
	ctx, cancel := context.WithCancel(t.Context())
	slow := &fakeSlot{kind: "tpm", open: func(ctx context.Context, _ []byte) ([]byte, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	_, results, err := Unlock(ctx, testArray, k.Area(), []Slot{slow, plainSlot("hsm")})
	if !errors.Is(err, context.Canceled) || len(results) != 1 {
		t.Errorf("%v, %d results", err, len(results))
	}
	if _, err := k.AddSlot(ctx, plainSlot("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("AddSlot: %v", err)
	}
}

// TestBadSlots: a slot that lies is not accepted, neither when it seals nor when it opens.
func TestBadSlots(t *testing.T) {
	good := plainSlot("good")
	k := testKeyring(t, good)
	another := func(context.Context, []byte) ([]byte, error) { return bytes.Repeat([]byte{1}, KeySize), nil }
	short := func(context.Context, []byte) ([]byte, error) { return []byte{1}, nil }
	for name, s := range map[string]*fakeSlot{
		"opens another key": {"good", good.seal, another},
		"opens a short key": {"good", good.seal, short},
		"empty blob":        {"good", func(context.Context, []byte) ([]byte, error) { return nil, nil }, good.open},
		"long blob":         {"good", func(context.Context, []byte) ([]byte, error) { return make([]byte, MaxBlobSize+1), nil }, good.open},
		"seal fails":        {"good", func(context.Context, []byte) ([]byte, error) { return nil, ErrSlotDenied }, good.open},
	} {
		if _, err := k.AddSlot(t.Context(), s); err == nil {
			t.Errorf("%s: added", name)
		}
		if _, err := Create(t.Context(), testArray, s); err == nil {
			t.Errorf("%s: created", name)
		}
	}
	for name, open := range map[string]func(context.Context, []byte) ([]byte, error){"another": another, "short": short} {
		_, _, err := Unlock(t.Context(), testArray, k.Area(), []Slot{&fakeSlot{"good", nil, open}})
		if !errors.Is(err, ErrLocked) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s root key: %v", name, err)
		}
	}
	if _, err := Create(t.Context(), testArray); !errors.Is(err, ErrSlotAbsent) {
		t.Errorf("keyring without slots: %v", err)
	}
	// One that lies does not stand in the way of the next.
	mustUnlock(t, k.Area(), &fakeSlot{"good", nil, another}, good)
}

func TestClosedKeyring(t *testing.T) {
	k := testKeyring(t)
	b, err := k.NewBucketKey(1)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := k.SealSecret("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	k.Close()
	for name, f := range map[string]func() error{
		"RecordKey":     func() error { _, err := k.RecordKey(1); return err },
		"IndexKey":      func() error { _, err := k.IndexKey(1); return err },
		"NewBucketKey":  func() error { _, err := k.NewBucketKey(1); return err },
		"OpenBucketKey": func() error { _, err := k.OpenBucketKey(1, b); return err },
		"SealSecret":    func() error { _, err := k.SealSecret("x", nil); return err },
		"OpenSecret":    func() error { _, err := k.OpenSecret("x", sealed); return err },
		"AddEpoch":      func() error { _, err := k.AddEpoch(); return err },
		"UseEpoch":      func() error { return k.UseEpoch(1) },
		"AddSlot":       func() error { _, err := k.AddSlot(t.Context(), plainSlot("x")); return err },
		"RemoveSlot":    func() error { return k.RemoveSlot(0) },
	} {
		if err := f(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func(){
		"Area": func() { k.Area() }, "SuperblockKey": func() { k.SuperblockKey() }, "CellKey": func() { k.CellKey() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a closed keyring did not panic", name)
				}
			}()
			f()
		}()
	}
}

// TestCloseWhileInUse: a call that meets Close either completes or answers ErrClosed, and does not touch wiped memory.
func TestCloseWhileInUse(t *testing.T) {
	for range 20 {
		k := testKeyring(t)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for {
					b, err := k.NewBucketKey(uint64(i))
					if err == nil {
						_, err = k.OpenBucketKey(uint64(i), b)
					}
					if err == nil {
						_, err = k.SealSecret("x", nil)
					}
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		k.Close()
		wg.Wait()
	}
}

// TestKeyringConcurrency is for the race detector.
func TestKeyringConcurrency(t *testing.T) {
	file := testFileSlot(t)
	k := testKeyring(t, file)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			for range 50 {
				id := uint64(rng.IntN(8))
				b, err := k.NewBucketKey(id)
				if err != nil {
					t.Error(err)
					return
				}
				kek, err := k.OpenBucketKey(id, b)
				if err != nil {
					t.Error(err)
					return
				}
				key := [KeySize]byte{byte(i)}
				if got, err := UnwrapDataKey(kek, WrapDataKey(kek, &key, nil), nil); err != nil || got != key {
					t.Error(got, err)
				}
				k.Slots()
				k.Area()
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			n, err := k.AddEpoch()
			if err == nil {
				err = k.UseEpoch(n)
			}
			if err == nil {
				n, err2 := k.AddSlot(t.Context(), file)
				err = errors.Join(err2, k.RemoveSlot(n))
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	mustUnlock(t, k.Area(), file)
}
