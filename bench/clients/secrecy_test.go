package clients

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// gram is the length of the fragments that are looked for. Random bytes of this length are not met by chance.
const gram = 12

// needles finds any of many byte strings in one pass. Every window of gram bytes of a secret is its own needle, so that a secret is
// found also where it was cut.
type needles struct {
	byGram map[[gram]byte]string // what it is a part of
	filter []uint64              // bit per hash of the first eight bytes
}

const (
	filterBits = 24
	blankBytes = 4096 // disks are mostly blank; runs of zeros of this length are stepped over
)

func newNeedles() *needles {
	return &needles{byGram: map[[gram]byte]string{}, filter: make([]uint64, 1<<filterBits/64)}
}

func filterBit(p []byte) uint64 {
	return binary.LittleEndian.Uint64(p) * 0x9e3779b97f4a7c15 >> (64 - filterBits)
}

// addBytes adds the windows of p at every stride bytes.
func (n *needles) addBytes(what string, p []byte, stride int) {
	for i := 0; i+gram <= len(p); i += stride {
		n.byGram[[gram]byte(p[i:])] = what
		bit := filterBit(p[i:])
		n.filter[bit/64] |= 1 << (bit % 64)
	}
}

// add adds a secret as it is, and as hexadecimal, base64 at each alignment, and UTF-16.
func (n *needles) add(what string, secret []byte, stride int) {
	n.addBytes(what, secret, stride)
	lower := hex.EncodeToString(secret)
	n.addBytes(what+" in hex", []byte(lower), 2*stride)
	n.addBytes(what+" in hex", []byte(strings.ToUpper(lower)), 2*stride)
	for shift := range 3 {
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			p := []byte(enc.EncodeToString(append(make([]byte, shift), secret...)))
			// The first and last characters depend on the neighbours.
			n.addBytes(what+" in base64", p[(shift*8+5)/6:len(p)-1], stride)
		}
	}
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		var p []byte
		for _, u := range utf16.Encode([]rune(string(secret))) {
			p = order.AppendUint16(p, u)
		}
		n.addBytes(what+" in UTF-16", p, 2*stride)
	}
}

// scan returns what it finds in r, each kind once.
func (n *needles) scan(r io.Reader) (found []string, size int64, err error) {
	buf, blank := make([]byte, 1<<20), make([]byte, blankBytes)
	kept := 0
	for {
		m, err := io.ReadFull(r, buf[kept:])
		size += int64(m)
		p := buf[:kept+m]
		for i := 0; i+gram <= len(p); i++ {
			for p[i] == 0 && i+blankBytes <= len(p) && bytes.Equal(p[i:i+blankBytes], blank) {
				i += blankBytes - gram // a needle may begin in the last bytes
			}
			if bit := filterBit(p[i:]); n.filter[bit/64]&(1<<(bit%64)) == 0 {
				continue
			}
			if what, ok := n.byGram[[gram]byte(p[i:])]; ok && !slices.Contains(found, what) {
				found = append(found, what)
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return found, size, nil
		} else if err != nil {
			return found, size, err
		}
		kept = copy(buf, p[len(p)-gram+1:])
	}
}

// scanTree scans every file under dir.
func (n *needles) scanTree(t *testing.T, dir string) (found map[string][]string, size int64) {
	t.Helper()
	found = map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil // the index removes files while it runs
		} else if err != nil {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		defer f.Close()
		got, m, err := n.scan(f)
		size += m
		if len(got) > 0 {
			rel, _ := filepath.Rel(dir, path)
			found[rel] = got
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, size
}

// The scanner finds each form of a secret, across the edges of its buffer too.
func TestScanner(t *testing.T) {
	secret := []byte("a-secret-of-26-characters!")
	n := newNeedles()
	n.add("it", secret, 1)
	forms := map[string][]byte{
		"it": secret, "cut": secret[3:20],
		"it in hex": []byte(hex.EncodeToString(secret)), "HEX": bytes.ToUpper([]byte(hex.EncodeToString(secret))),
		"it in base64": []byte(base64.StdEncoding.EncodeToString(secret)),
		"base64+1":     []byte(base64.StdEncoding.EncodeToString(append([]byte("x"), secret...))),
		"base64+2":     []byte(base64.URLEncoding.EncodeToString(append(append([]byte("xy"), secret...), "tail"...))),
		"UTF-16LE":     []byte("a\x00-\x00s\x00e\x00c\x00r\x00e\x00t\x00"),
	}
	for name, form := range forms {
		for _, at := range []int{0, 1, 4095, 1<<20 - 5, 1<<20 - 30, 3 << 20} {
			hay := make([]byte, at, at+len(form)+100)
			hay = append(append(hay, form...), make([]byte, 100)...)
			if got, size, err := n.scan(bytes.NewReader(hay)); err != nil || len(got) != 1 || size != int64(len(hay)) {
				t.Errorf("%s at %d: found %q in %d bytes, %v", name, at, got, size, err)
			}
		}
	}
	if got, _, _ := n.scan(body(1, 8<<20)); got != nil {
		t.Errorf("found %q in random bytes", got)
	}
}

// random is an unguessable string that may stand in names.
func random(prefix string) string { return prefix + strings.ToLower(rand.Text()) }

// plainFiles are the files of a data directory that are meant to be readable; all others must be sealed.
var plainFiles = []string{"array.yaml", "coffer.lock", "scrub.json", "keys/root.key", "run/*.addr", tokenFile, "tls/ca.crt", "tls/ca.key", "tls/server.crt", "tls/server.key"}

// tokenFile permits changing calls of the admin listener, and lives as long as the daemon.
const tokenFile = "run/admin.token"

// keyFiles are those of them whose content must be in no other file.
var keyFiles = []string{"keys/root.key", "tls/ca.key", "tls/server.key"}

// Nothing that a client sent, and no key or credential, is on the disks or anywhere in the data directory, in any common encoding.
// The exceptions: keys/root.key and tls/*.key hold what their names say, each only itself.
func TestSecrecy(t *testing.T) {
	if !soak {
		t.Parallel()
	}
	s := newServer(t, 256)
	n := newNeedles()
	n.add("access key", []byte(s.access), 1)
	n.add("secret key", []byte(s.secret), 1)
	for line := range strings.Lines(string(s.read(s.stdout.Name()))) {
		if f := strings.TrimSpace(line); strings.Count(f, "-") == 8 && !strings.Contains(f, " ") {
			n.add("recovery key", []byte(f), 1)
			n.add("recovery key", []byte(strings.ReplaceAll(f, "-", "")), 1)
		}
	}
	bucket := random("bucket-")
	n.add("bucket name", []byte(bucket[len("bucket-"):]), 1)
	c := newSDK(s)
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	putSecrets(t, n, c, bucket)

	token := filepath.Join(s.dir, tokenFile)
	if st, err := os.Stat(token); err != nil || st.Mode() != 0o600 {
		t.Errorf("%s: mode %v, %v", tokenFile, st.Mode(), err)
	}
	n.add("admin token", bytes.TrimSpace(s.read(token)), 1)

	check := func(when string) {
		t.Helper()
		found, size := n.scanTree(t, s.dir)
		if when != "after an orderly stop" && !slices.Equal(found[tokenFile], []string{"admin token"}) {
			t.Errorf("%s: %s holds %v", when, tokenFile, found[tokenFile])
		}
		delete(found, tokenFile)
		for file, what := range found {
			t.Errorf("%s: %s holds %v", when, file, what)
		}
		if size < 6*256<<20 {
			t.Errorf("%s: scanned only %d bytes", when, size)
		}
		counts.add("bytes of disks and data directory scanned for secrets", size)
		if got, _, err := n.scan(bytes.NewReader(s.read(s.stderr.Name()))); err != nil || len(got) > 0 {
			t.Errorf("%s: the log holds %v, %v", when, got, err)
		}
	}
	check("while serving")
	s.kill()
	check("after a kill")
	s.start() // replays, and writes the index anew
	s.stop()
	check("after an orderly stop")
	counts.add("fragments of secrets looked for", int64(len(n.byGram)))
	keysStayHome(t, s)
}

// putSecrets writes objects of every kind of storage whose bodies, names and attributes are secret, and adds those to n.
func putSecrets(t *testing.T, n *needles, c *s3.Client, bucket string) {
	t.Helper()
	for _, size := range []int{gram, 100, 5000, 100 << 10, 200 << 10, 3 << 20} {
		b := make([]byte, size)
		rand.Read(b)
		if size == 5000 { // text, that shows also if compressed or cut
			b = []byte(strings.Repeat(random("plain text "), size/37))
		}
		sum := md5.Sum(b)
		key, value, kind := random("dir/name-"), random("meta"), random("application/x-")
		n.add("object name", []byte(key[len("dir/name-"):]), 1)
		n.add("metadata", []byte(value), 1)
		n.add("content type", []byte(kind[len("application/x-"):]), 1)
		n.add("MD5 of a body", sum[:], 1)
		// Sampled, or the table would not fit; a leaked segment has many windows.
		for i := 0; i < len(b); i += 4 << 10 {
			n.add("body", b[i:min(len(b), i+48)], 1)
		}
		var customer [32]byte
		in := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(b), ContentType: &kind,
			Metadata: map[string]string{"name": value, value: "x"}}
		if size >= 100<<10 {
			rand.Read(customer[:])
			n.add("customer key", customer[:], 1)
			withCustomerKey(customer, &in.SSECustomerAlgorithm, &in.SSECustomerKey, &in.SSECustomerKeyMD5)
		}
		if _, err := c.PutObject(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	key, part := random("upload-"), make([]byte, object5MiB)
	rand.Read(part)
	n.add("name of an unfinished upload", []byte(key[len("upload-"):]), 1)
	n.add("part of an unfinished upload", part[1<<20:1<<20+64], 1)
	up, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
	if err == nil {
		_, err = c.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(1), Body: bytes.NewReader(part)})
	}
	if err != nil {
		t.Fatal(err)
	}
	// Requests that fail name what they failed on, and must not leave it in the log.
	missing := random("missing-")
	n.add("name in a failed request", []byte(missing[len("missing-"):]), 1)
	if _, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &missing}); err == nil {
		t.Error("got an object that is not there")
	} else if _, ok := errors.AsType[*types.NoSuchKey](err); !ok {
		t.Error(err)
	}
}

// keysStayHome checks that the files meant to be readable are the known ones, and that their keys are in no other file.
func keysStayHome(t *testing.T, s *server) {
	t.Helper()
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(s.dir, path)
		known := strings.HasPrefix(rel, "disks/") || strings.HasPrefix(rel, "index/")
		for _, p := range plainFiles {
			ok, _ := filepath.Match(p, rel)
			known = known || ok
		}
		if !known {
			t.Errorf("unexpected file %s in the data directory", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := newNeedles()
	for _, file := range keyFiles {
		secret := s.read(filepath.Join(s.dir, file))
		if i := bytes.Index(secret, []byte("KEY-----\n")); i >= 0 {
			secret = privateKey(t, secret)
		}
		n.add(file, secret, 1)
		mode, err := os.Stat(filepath.Join(s.dir, file))
		if err != nil || mode.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v: others may read it", file, mode.Mode(), err)
		}
	}
	found, _ := n.scanTree(t, s.dir)
	for file, what := range found {
		for _, w := range what {
			if from, _, _ := strings.Cut(w, " "); from != file {
				t.Errorf("%s holds the key of %s", file, w)
			}
		}
	}
	for _, file := range keyFiles {
		if found[file] == nil {
			t.Errorf("the scan does not find the key of %s where it belongs", file)
		}
	}
	t.Logf("readable by design: %s", strings.Join(plainFiles, ", "))
}

// privateKey returns the scalar of a P-256 key in PEM, in PKCS #8 (RFC 5958) or RFC 5915 form.
func privateKey(t *testing.T, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no key in PEM")
	}
	if _, inner, ok := bytes.Cut(block.Bytes, []byte{0x04, 0x20}); ok && len(inner) >= 32 { // OCTET STRING of 32 bytes
		return inner[:32]
	}
	t.Fatalf("no 32-byte key in %s", block.Type)
	return nil
}

// withCustomerKey fills in the three headers of SSE-C.
func withCustomerKey(key [32]byte, algorithm, value, sum **string) {
	md := md5.Sum(key[:])
	*algorithm, *value, *sum = aws.String("AES256"), aws.String(base64.StdEncoding.EncodeToString(key[:])), aws.String(base64.StdEncoding.EncodeToString(md[:]))
}
