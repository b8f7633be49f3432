package hw

import (
	"bytes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/cpuid/v2"
	"github.com/minio/crc64nvme"

	"coffer/asm/chacha"
	"coffer/asm/gcm"
)

func unbenched(t testing.TB) *Engine {
	t.Helper()
	e, err := Probe(Options{SkipBench: true})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// probeWith probes the registry as changed by edit.
func probeWith(opt Options, edit func(paths []path) []path) (*Engine, error) {
	return probe(opt, &cpuid.CPU, specs(), edit(registry(&cpuid.CPU)))
}

// probeOne probes the given paths of one primitive as if there were no others.
func probeOne(opt Options, p Primitive, paths []path) (*Engine, error) {
	one := slices.DeleteFunc(specs(), func(s spec) bool { return s.primitive != p })
	return probe(opt, &cpuid.CPU, one, paths)
}

func find(r Report, p Primitive, name string) PathReport {
	for _, x := range r.Paths {
		if x.Primitive == p && x.Path == name {
			return x
		}
	}
	return PathReport{}
}

func chosen(r Report, p Primitive) (name string) {
	for _, x := range r.Paths {
		if x.Primitive == p && x.Chosen {
			name += x.Path
		}
	}
	return name
}

func TestProbe(t *testing.T) {
	start := time.Now()
	e, err := Probe(Options{})
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("probe took %v", took)
	if took > 2*time.Second && !raceEnabled {
		t.Errorf("probe took %v, want under 2 s", took)
	}
	r := e.Report()
	if r.CPU == "" {
		t.Error("no CPU name")
	}
	count := map[Primitive]int{}
	for _, p := range r.Paths {
		if strings.HasPrefix(p.SelfTest, "unsupported: needs ") {
			t.Logf("%s %s: %s", p.Primitive, p.Path, p.SelfTest)
			continue
		}
		if p.SelfTest != "pass" {
			t.Errorf("%s %s: self-test %s", p.Primitive, p.Path, p.SelfTest)
		}
		for _, size := range []string{"4096", "65536", "1048576"} {
			if !(p.GBps[size] > 0) {
				t.Errorf("%s %s: %v GB/s at %s", p.Primitive, p.Path, p.GBps[size], size)
			}
		}
		if p.Chosen {
			count[p.Primitive]++
		}
	}
	want := map[Primitive]int{
		AES256GCM: 1, ChaCha20Poly1305: 1, AES256CBCHMACSHA512: 1, ReedSolomon: 1, CRC64NVME: 1,
		CRC32: 1, CRC32C: 1, MD5: 1, SHA256: 1, SHA512: 1,
	}
	if d := cmp.Diff(want, count); d != "" {
		t.Errorf("chosen paths per primitive (-want +got):\n%s", d)
	}
}

func TestRegistryHasSpecs(t *testing.T) {
	known := map[Primitive]bool{}
	for _, s := range specs() {
		known[s.primitive] = true
	}
	for _, p := range registry(&cpuid.CPU) {
		if !known[p.primitive] {
			t.Errorf("path %s of unknown primitive %q", p.name, p.primitive)
		}
	}
}

// brokenAEAD alters what it seals in one bit, as a faulty kernel would.
type brokenAEAD struct{ cipher.AEAD }

func (b brokenAEAD) Seal(dst, nonce, plain, additional []byte) []byte {
	out := b.AEAD.Seal(dst, nonce, plain, additional)
	if len(plain) > 4096 {
		out[len(dst)+4096] ^= 1
	}
	return out
}

// openAll opens everything, forged or not.
type openAll struct{ cipher.AEAD }

func (a openAll) Open(dst, nonce, sealed, _ []byte) ([]byte, error) {
	plain := a.AEAD.Seal(nil, nonce, sealed[:len(sealed)-a.Overhead()], nil) // GCM is its own inverse but for the tag
	return append(dst, plain[:len(sealed)-a.Overhead()]...), nil
}

type brokenMatrix struct{ matrix }

func (b brokenMatrix) mul(in, out [][]byte) error {
	err := b.matrix.mul(in, out)
	if n := len(out[0]); n > 4096 {
		out[len(out)-1][n-1] ^= 1
	}
	return err
}

// brokenHash forgets that Reset was called.
type brokenHash struct{ hash.Hash }

func (brokenHash) Reset() {}

func TestBrokenPathIsDisabled(t *testing.T) {
	aead := func(wrap func(cipher.AEAD) cipher.AEAD) func([]byte) (cipher.AEAD, error) {
		return func(key []byte) (cipher.AEAD, error) {
			a, err := newGCM(key)
			return wrap(a), err
		}
	}
	for _, tt := range []struct {
		name   string
		broken path
		want   string
	}{
		{"wrong late in a long message", path{primitive: AES256GCM, newAEAD: aead(func(a cipher.AEAD) cipher.AEAD { return brokenAEAD{a} })},
			"fail: message of 4097 bytes: open: wrong answer"},
		{"opens forgeries", path{primitive: AES256GCM, newAEAD: aead(func(a cipher.AEAD) cipher.AEAD { return openAll{a} })},
			"fail: vector 0: byte 0 altered: forgery accepted"},
		{"other algorithm", path{primitive: ChaCha20Poly1305, newAEAD: newGCM}, "fail: vector 0: wrong answer"},
		{"constructor fails", path{primitive: AES256CBCHMACSHA512, newAEAD: newGCM}, "fail: vector 0: crypto/aes: invalid key size 64"},
		{"constructor panics", path{primitive: AES256GCM, newAEAD: func([]byte) (cipher.AEAD, error) { panic("boom") }}, "fail: panic: boom"},
		{"wrong parity in the tail", path{primitive: ReedSolomon, newMatrix: func(rows [][]byte) (matrix, error) {
			m, err := newGenericMatrix(rows)
			return brokenMatrix{m}, err
		}}, "fail: reconstruct 1+3, 4097 bytes, from shard 0: wrong answer"},
		{"other polynomial, 64 bit", path{primitive: CRC64NVME, crc64: func(c uint64, p []byte) uint64 {
			return crc64.Update(c, crc64.MakeTable(crc64.ECMA), p)
		}}, "fail: check value: wrong answer"},
		{"other polynomial, 32 bit", path{primitive: CRC32C, crc32: crc32Table(crc32.IEEE).update}, "fail: check value: wrong answer"},
		{"crc wrong in long messages", path{primitive: CRC32, crc32: func(c uint32, p []byte) uint32 {
			return crc32.Update(c, crc32.IEEETable, p[:min(len(p), 65535)])
		}}, "fail: sweep: wrong answer"},
		{"other hash", path{primitive: SHA256, newHash: sha512.New512_256}, "wrong answer"},
		{"hash without reset", path{primitive: MD5, newHash: func() hash.Hash { return brokenHash{md5.New()} }}, "wrong answer"},
		{"lacks the feature", path{primitive: MD5, needs: []cpuid.FeatureID{cpuid.AMD3DNOW}}, "unsupported: needs AMD3DNOW"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.broken.name = "broken"
			// The broken path stands first, where only its failure keeps it from being the default.
			var log bytes.Buffer
			opt := Options{SkipBench: true, Logger: slog.New(slog.NewTextHandler(&log, nil))}
			p, only := tt.broken.primitive, []path{tt.broken}
			all := append(only, registry(&cpuid.CPU)...)
			e, err := probeOne(opt, p, all)
			if err != nil {
				t.Fatal(err)
			}
			r := e.Report()
			got := find(r, p, "broken")
			if !strings.Contains(got.SelfTest, tt.want) || got.Chosen {
				t.Errorf("got self-test %q, chosen %v; want %q, false", got.SelfTest, got.Chosen, tt.want)
			}
			if c := chosen(r, p); c == "" || c == "broken" {
				t.Errorf("chose %q", c)
			}
			disabled := strings.Contains(log.String(), "hardware path disabled") && strings.Contains(log.String(), "path=broken")
			if disabled == strings.HasPrefix(tt.want, "unsupported") {
				t.Errorf("log: %s", log.String())
			}

			opt.Pin = map[Primitive]string{p: "broken"}
			if _, err := probeOne(opt, p, all); err == nil || !strings.Contains(err.Error(), "pinned path broken: ") {
				t.Errorf("unproven path pinned: %v", err)
			}
			opt.Pin = nil
			if _, err := probeOne(opt, p, only); !errors.Is(err, ErrNoPath) || !strings.Contains(err.Error(), "path of "+string(p)+": ") {
				t.Errorf("without a working path: %v", err)
			}
		})
	}
}

// kernel is one of ours.
type kernel interface {
	String() string
	Needs() []cpuid.FeatureID
	Supported() bool
}

// kernels are those of this build, by primitive.
func kernels() map[Primitive][]kernel {
	all := map[Primitive][]kernel{}
	for _, k := range gcm.Kernels() {
		all[AES256GCM] = append(all[AES256GCM], k)
	}
	for _, k := range chacha.Kernels() {
		all[ChaCha20Poly1305] = append(all[ChaCha20Poly1305], k)
	}
	return all
}

// TestKernelWithoutFeature: a processor without one of the features is not let near the kernel.
func TestKernelWithoutFeature(t *testing.T) {
	for p, all := range kernels() {
		for _, k := range all {
			t.Run(string(p)+"/"+k.String(), func(t *testing.T) { testKernelWithoutFeature(t, p, k) })
		}
	}
}

func testKernelWithoutFeature(t *testing.T, p Primitive, k kernel) {
	if !k.Supported() {
		t.Skipf("this processor lacks one of %v", k.Needs())
	}
	for _, missing := range k.Needs() {
		cpu := cpuid.CPU
		if !cpu.Disable(missing) {
			t.Fatalf("%v is not to be disabled", missing)
		}
		paths := registry(&cpu)
		for i := range paths {
			if kernel := paths[i].newAEAD; paths[i].primitive == p && paths[i].name == k.String() {
				paths[i].newAEAD = func(key []byte) (cipher.AEAD, error) {
					t.Errorf("without %v: path used", missing)
					return kernel(key)
				}
			}
		}
		one := slices.DeleteFunc(specs(), func(s spec) bool { return s.primitive != p })
		e, err := probe(Options{Slice: time.Microsecond}, &cpu, one, paths)
		if err != nil {
			t.Fatal(err)
		}
		r := e.Report()
		if got, want := find(r, p, k.String()).SelfTest, "unsupported: needs "+missing.String(); got != want {
			t.Errorf("self-test %q, want %q", got, want)
		}
		if c := chosen(r, p); c == k.String() {
			t.Errorf("without %v: chosen", missing)
		}
	}
}

// TestKernelIsChosen: where there are kernels one of them is chosen, as each is several times as fast as the standard library. Which it is depends
// on what else the machine does meanwhile.
func TestKernelIsChosen(t *testing.T) {
	for p, all := range kernels() {
		t.Run(string(p), func(t *testing.T) {
			if best := all[min(1, len(all)-1)]; best.String() == "portable" || !best.Supported() {
				t.Skipf("this build, or this processor, has no kernel: %v", best.Needs())
			}
			e, err := probeOne(Options{}, p, registry(&cpuid.CPU))
			if err != nil {
				t.Fatal(err)
			}
			if c := chosen(e.Report(), p); !slices.ContainsFunc(all, func(k kernel) bool { return k.String() == c }) {
				t.Errorf("chose %s: %+v", c, e.Report().Paths)
			}
			a, err := e.AEAD(p, make([]byte, 32))
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := a.(interface{ Wipe() }); !ok {
				t.Errorf("AEAD is a %T", a)
			}
		})
	}
}

// TestPanicInBenchmark covers a path that passes its tests and dies at a size that they did not try.
func TestPanicInBenchmark(t *testing.T) {
	bad := path{primitive: CRC32, name: "bad", crc32: func(c uint32, p []byte) uint32 {
		if len(p) == 1<<20 {
			panic("too long")
		}
		return crc32.Update(c, crc32.IEEETable, p)
	}}
	e, err := probeWith(Options{Slice: time.Microsecond}, func(p []path) []path { return append([]path{bad}, p...) })
	if err != nil {
		t.Fatal(err)
	}
	got := find(e.Report(), CRC32, "bad")
	want := PathReport{Primitive: CRC32, Path: "bad", SelfTest: "fail: panic: too long", GBps: map[string]float64{}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestNoPathAtAll(t *testing.T) {
	_, err := probeWith(Options{SkipBench: true}, func([]path) []path { return nil })
	if !errors.Is(err, ErrNoPath) {
		t.Fatal(err)
	}
	for _, s := range specs() {
		if !strings.Contains(err.Error(), string(s.primitive)) {
			t.Errorf("%q does not name %s", err, s.primitive)
		}
	}
}

func TestPin(t *testing.T) {
	e, err := Probe(Options{Slice: time.Microsecond, Pin: map[Primitive]string{ReedSolomon: "generic", CRC64NVME: "stdlib"}})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := chosen(e.Report(), ReedSolomon), chosen(e.Report(), CRC64NVME); a != "generic" || b != "stdlib" {
		t.Errorf("chose %s and %s", a, b)
	}
	for _, tt := range []struct {
		pin  map[Primitive]string
		want string
	}{
		{map[Primitive]string{SHA256: "none"}, "choose path of sha-256: pinned path none: no such path"},
		{map[Primitive]string{"sha-1": "stdlib"}, `pin path: unknown primitive "sha-1"`},
	} {
		if _, err := Probe(Options{SkipBench: true, Pin: tt.pin}); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestFastest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rates []float64
		want  int
	}{
		{"unmeasured", []float64{0, 0, 0}, 0},
		{"default is fastest", []float64{100, 99, 50}, 0},
		{"within the noise", []float64{100, 105, 104}, 0},
		{"clear win", []float64{100, 106}, 1},
		{"best of the winners", []float64{100, 106, 110, 108}, 2},
	} {
		var c []*candidate
		for _, r := range tt.rates {
			x := &candidate{}
			x.median[decidingSize] = r
			c = append(c, x)
		}
		if fastest(c) != c[tt.want] {
			t.Errorf("%s: did not choose %d", tt.name, tt.want)
		}
	}
}

// TestFasterPathDisplacesDefault lets the benchmark itself choose, with a difference that no noise hides.
func TestFasterPathDisplacesDefault(t *testing.T) {
	e, err := probeWith(Options{Slice: 100 * time.Microsecond}, func(p []path) []path {
		slow := path{primitive: CRC32C, name: "slow", crc32: crc32Table(crc32.Castagnoli).update}
		return append([]path{slow}, p...)
	})
	if err != nil {
		t.Fatal(err)
	}
	if c := chosen(e.Report(), CRC32C); c != "stdlib" {
		t.Errorf("chose %s", c)
	}
}

func TestReportForms(t *testing.T) {
	e := &Engine{cpu: "Some CPU", features: []string{"AESNI", "VAES"}, candidates: []*candidate{
		{path: path{primitive: AES256GCM, name: "stdlib"}, spec: &spec{}, chosen: true, median: [3]float64{4e9, 5.1234e9, 5e9}},
		{path: path{primitive: ReedSolomon, name: "x"}, spec: &spec{shape: "4+2"}, err: errMismatch},
	}}
	got, err := json.Marshal(e.Report())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cpu":"Some CPU","features":["AESNI","VAES"],"paths":[` +
		`{"primitive":"aes-256-gcm","path":"stdlib","self_test":"pass","chosen":true,"gbps":{"1048576":5,"4096":4,"65536":5.123}},` +
		`{"primitive":"reed-solomon","path":"x","self_test":"fail: wrong answer","chosen":false,"gbps":{},"shape":"4+2"}]}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("JSON (-want +got):\n%s", d)
	}
}

func TestMeters(t *testing.T) {
	e := unbenched(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			m := e.Meter(AES256GCM, Open)
			for range 1000 {
				m.Add(65536, 2*time.Microsecond)
			}
		})
	}
	wg.Wait()
	e.Meter(ReedSolomon, Reconstruct).Add(10, -time.Second) // a clock step backwards counts as nothing
	type total struct {
		Path    string
		Bytes   uint64
		Seconds float64
	}
	got := map[string]total{}
	e.Totals(func(p Primitive, path string, op Op, bytes uint64, seconds float64) {
		got[string(p)+" "+op.String()] = total{path, bytes, seconds}
	})
	want := map[string]total{
		"aes-256-gcm seal": {Path: "stdlib"}, "aes-256-gcm open": {"stdlib", 4000 * 65536, 0.008},
		"chacha20-poly1305 seal": {Path: "x-crypto"}, "chacha20-poly1305 open": {Path: "x-crypto"},
		"aes-256-cbc-hmac-sha-512 seal": {Path: "stdlib"}, "aes-256-cbc-hmac-sha-512 open": {Path: "stdlib"},
		"reed-solomon encode": {Path: "klauspost"}, "reed-solomon reconstruct": {"klauspost", 10, 0},
		"crc64-nvme sum": {Path: "minio"}, "crc32 sum": {Path: "stdlib"}, "crc32c sum": {Path: "stdlib"},
		"md5 sum": {Path: "stdlib"}, "sha-256 sum": {Path: "stdlib"}, "sha-512 sum": {Path: "stdlib"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if n := testing.AllocsPerRun(100, func() { e.Meter(CRC32, Sum).Add(1, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	mustPanic(t, "hw: no operation 0 on \"md5\"", func() { e.Meter(MD5, Seal) })
}

func mustPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		if got := recover(); got != want {
			t.Errorf("panic %v, want %s", got, want)
		}
	}()
	f()
}

func TestAEADErrors(t *testing.T) {
	e := unbenched(t)
	for _, tt := range []struct {
		p    Primitive
		key  int
		want string
	}{
		{AES256GCM, 16, "new aead aes-256-gcm: key of 16 bytes, want 32"},
		{ChaCha20Poly1305, 0, "new aead chacha20-poly1305: key of 0 bytes, want 32"},
		{AES256CBCHMACSHA512, 32, "new aead aes-256-cbc-hmac-sha-512: key of 32 bytes, want 64"},
		{MD5, 32, `new aead: "md5" is none`},
		{"", 32, `new aead: "" is none`},
	} {
		if _, err := e.AEAD(tt.p, make([]byte, tt.key)); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	mustPanic(t, `hw: "crc32" is no hash`, func() { e.NewHash(CRC32) })
}

// TestKeyIsCopied: callers wipe their key as soon as they have the AEAD.
func TestKeyIsCopied(t *testing.T) {
	e := unbenched(t)
	for p, size := range map[Primitive]int{AES256GCM: 32, ChaCha20Poly1305: 32, AES256CBCHMACSHA512: 64} {
		key := pattern(size, 5)
		a, err := e.AEAD(p, key)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := e.AEAD(p, pattern(size, 5))
		clear(key)
		nonce := make([]byte, a.NonceSize())
		if !bytes.Equal(a.Seal(nil, nonce, nil, nil), b.Seal(nil, nonce, nil, nil)) {
			t.Errorf("%s kept a reference to its key", p)
		}
	}
}

// TestSums compares checksums and hashes of random pieces, at random alignments, with the standard library's.
func TestSums(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	data := pattern(1<<18, 9)
	nvme := crc64.MakeTable(crc64nvme.NVME)
	for _, pin := range []map[Primitive]string{nil, {CRC64NVME: "stdlib", CRC32: "generic", CRC32C: "generic"}} {
		e, err := Probe(Options{SkipBench: true, Pin: pin})
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			at := r.IntN(1000)
			p := data[at : at+r.IntN(1<<r.IntN(18))]
			start := r.Uint64()
			if e.CRC64NVME(start, p) != crc64.Update(start, nvme, p) {
				t.Fatalf("CRC64NVME differs for %d bytes at %d", len(p), at)
			}
			if e.CRC32(uint32(start), p) != crc32.Update(uint32(start), crc32.IEEETable, p) {
				t.Fatalf("CRC32 differs for %d bytes at %d", len(p), at)
			}
			if e.CRC32C(uint32(start), p) != crc32.Update(uint32(start), crc32.MakeTable(crc32.Castagnoli), p) {
				t.Fatalf("CRC32C differs for %d bytes at %d", len(p), at)
			}
		}
		p := data[:12345]
		for prim, want := range map[Primitive][]byte{MD5: sum(md5.New(), p), SHA256: sum(sha256.New(), p), SHA512: sum(sha512.New(), p)} {
			if !bytes.Equal(sum(e.NewHash(prim), p), want) {
				t.Errorf("%s differs", prim)
			}
		}
	}
}

func sum(h hash.Hash, p []byte) []byte {
	h.Write(p)
	return h.Sum(nil)
}

func BenchmarkProbe(b *testing.B) {
	for b.Loop() {
		if _, err := Probe(Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMeterAdd(b *testing.B) {
	var m Meter
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Add(65536, 1000)
		}
	})
}
