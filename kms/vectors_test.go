package kms

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hexBytes are written as hexadecimal in vectors.json.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vectors are the values of testdata/vectors.json. They were written by version 1 and never change.
type vectors struct {
	ArrayID       hexBytes `json:"array_id"`
	Area          hexBytes `json:"area"`
	FileKey       hexBytes `json:"file_key"`
	Passphrase    string   `json:"passphrase"`
	RecoveryKey   string   `json:"recovery_key"`
	RecoveryBytes hexBytes `json:"recovery_key_bytes"`
	RootKey       hexBytes `json:"root_key"`
	SuperblockKey hexBytes `json:"superblock_key"`
	AreaMACKey    hexBytes `json:"area_mac_key"`
	RootWrapKey   hexBytes `json:"root_wrap_key"`
	CellKey       hexBytes `json:"cell_key"`
	Epochs        []struct {
		Number     uint32   `json:"number"`
		RecordKey  hexBytes `json:"record_key"`
		IndexKey   hexBytes `json:"index_key"`
		BucketWrap hexBytes `json:"bucket_wrap_key"`
		SecretWrap hexBytes `json:"secret_wrap_key"`
	} `json:"epochs"`
	BucketID        uint64   `json:"bucket_id"`
	BucketKey       hexBytes `json:"bucket_key"`
	BucketKeyBytes  hexBytes `json:"bucket_key_bytes"`
	DataKey         hexBytes `json:"data_key"`
	DataKeyAAD      hexBytes `json:"data_key_aad"`
	DataKeyWrapped  hexBytes `json:"data_key_wrapped"`
	CustomerKey     hexBytes `json:"customer_key"`
	CustomerWrapped hexBytes `json:"data_key_wrapped_by_customer"`
	SecretLabel     string   `json:"secret_label"`
	Secret          string   `json:"secret"`
	SecretSealed    hexBytes `json:"secret_sealed"`
	BadAreas        []struct {
		Name  string   `json:"name"`
		Error string   `json:"error"`
		Area  hexBytes `json:"area"`
	} `json:"bad_areas"`
}

func readVectors(t *testing.T) (v vectors, slots map[string]Slot) {
	t.Helper()
	p, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, v.FileKey, 0o600); err != nil {
		t.Fatal(err)
	}
	rec, err := ParseRecoveryKey(v.RecoveryKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rec.Close)
	return v, map[string]Slot{
		"file":       NewFileSlot(path),
		"passphrase": NewPassphraseSlot(Passphrase([]byte(v.Passphrase)), Argon2{}),
		"recovery":   rec,
	}
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %x, want %x", what, got, want)
	}
}

// TestVectors: version 1 stays readable.
func TestVectors(t *testing.T) {
	v, slots := readVectors(t)
	for _, s := range slots {
		k, _, err := Unlock(t.Context(), [16]byte(v.ArrayID), v.Area, []Slot{s})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		equal(t, "area", k.Area(), v.Area)
		equal(t, "root key", k.root.view(), v.RootKey)
		equal(t, "superblock key", k.SuperblockKey(), v.SuperblockKey)
		equal(t, "area MAC key", k.areaKey.view(), v.AreaMACKey)
		equal(t, "root wrap key", k.rootWrap.view(), v.RootWrapKey)
		equal(t, "cell key", k.CellKey(), v.CellKey)
		for _, e := range v.Epochs {
			keys, err := k.epoch(e.Number)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "record key", keys.record.view(), e.RecordKey)
			equal(t, "index key", keys.index.view(), e.IndexKey)
			equal(t, "bucket wrap key", keys.bucket.view(), e.BucketWrap)
			equal(t, "secret wrap key", keys.secret.view(), e.SecretWrap)
		}
		testVectorWraps(t, &v, k)
	}
	rec, err := parseRecovery(v.RecoveryKey)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "recovery key", rec[:], v.RecoveryBytes)
}

func testVectorWraps(t *testing.T, v *vectors, k *Keyring) {
	t.Helper()
	b, err := ParseBucketKey(v.BucketKey)
	if err != nil {
		t.Fatal(err)
	}
	kek, err := k.OpenBucketKey(v.BucketID, b)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "bucket key", kek.view(), v.BucketKeyBytes)
	key, err := UnwrapDataKey(kek, v.DataKeyWrapped, v.DataKeyAAD)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "data key", key[:], v.DataKey)
	key, err = UnwrapCustomer((*[KeySize]byte)(v.CustomerKey), v.CustomerWrapped, v.DataKeyAAD)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "data key of SSE-C", key[:], v.DataKey)
	secret, err := k.OpenSecret(v.SecretLabel, v.SecretSealed)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "secret", secret, []byte(v.Secret))
}

func TestBadVectors(t *testing.T) {
	v, slots := readVectors(t)
	for _, bad := range v.BadAreas {
		want, ok := map[string]error{"corrupt": ErrCorrupt, "version": ErrVersion}[bad.Error]
		if !ok {
			t.Fatalf("%s: unknown error %q", bad.Name, bad.Error)
		}
		if _, _, err := Unlock(t.Context(), [16]byte(v.ArrayID), bad.Area, []Slot{slots["file"]}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", bad.Name, err, want)
		}
	}
}

// TestDocument checks the examples of docs/keys-format.md.
func TestDocument(t *testing.T) {
	doc, err := os.ReadFile("../docs/keys-format.md")
	if err != nil {
		t.Fatal(err)
	}
	box := docExample(t, string(doc), "box")
	hexOf := func(name string) []byte { return unhex(t, box[name]) }
	sealed := bytes.Join([][]byte{hexOf("salt"), hexOf("ciphertext"), hexOf("tag"), hexOf("commitment")}, nil)
	p, err := openBox(nil, &wrapLabels, hexOf("key"), sealed, hexOf("additional"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "box", p, hexOf("opens to"))
	rec := docExample(t, string(doc), "recovery")
	if text := formatRecovery((*[KeySize]byte)(unhex(t, rec["key"]))); text != rec["text"] {
		t.Errorf("recovery key %s, the document has %s", text, rec["text"])
	}
	for _, label := range []string{labelSuperblock, labelArea, labelRootWrap, labelRecord, labelIndex, labelBucket, labelSecret,
		wrapLabels.key, wrapLabels.commit, customerLabels.key, customerLabels.commit} {
		if !strings.Contains(string(doc), "`"+label+"`") {
			t.Errorf("the document lacks label %q", label)
		}
	}
}

// docExample returns the "name = value" lines of the fenced block that the document marks with name.
func docExample(t *testing.T, doc, name string) map[string]string {
	t.Helper()
	_, rest, found := strings.Cut(doc, "```"+name+"\n")
	block, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatalf("the document has no example %q", name)
	}
	values := make(map[string]string)
	for line := range strings.Lines(block) {
		key, value, _ := strings.Cut(line, "=")
		values[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return values
}
