// Package hw knows what this machine's processor can do and picks the implementation ("path") of each primitive that moves
// user bytes: AEADs, Reed-Solomon, CRCs and hashes.
//
// Probe promises that every path in use has passed known-answer tests with vectors from outside this code base on this very
// processor, and that the path chosen was measured to be the fastest, or was pinned. A path that fails is disabled and
// reported; a primitive without a working path is an error. Everything an Engine returns is safe for concurrent use, but
// for hash.Hash values.
//
// It does not keep keys out of the Go heap: the key schedules of the standard library live there, and so do ours. It cannot
// survive an instruction that the processor lacks: such a path must be held back by its list of needed features.
package hw

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/cpuid/v2"
)

// Primitive names an algorithm. The names are label values of metrics and keys of configuration: they do not change.
type Primitive string

// The primitives.
const (
	AES256GCM           Primitive = "aes-256-gcm"              // NIST SP 800-38D, 32-byte key, 12-byte nonce
	ChaCha20Poly1305    Primitive = "chacha20-poly1305"        // RFC 8439, 32-byte key, 12-byte nonce
	AES256CBCHMACSHA512 Primitive = "aes-256-cbc-hmac-sha-512" // draft-mcgrew-aead-aes-cbc-hmac-sha2-05, 64-byte key, 16-byte IV as nonce
	ReedSolomon         Primitive = "reed-solomon"
	CRC64NVME           Primitive = "crc64-nvme" // NVM Command Set Specification 1.0, 5.2.1.3.4
	CRC32               Primitive = "crc32"      // ISO 3309
	CRC32C              Primitive = "crc32c"     // RFC 3720 12.1
	MD5                 Primitive = "md5"        // RFC 1321
	SHA256              Primitive = "sha-256"    // FIPS 180-4
	SHA512              Primitive = "sha-512"    // FIPS 180-4
)

// Op is what was done with a primitive, as counted by a Meter.
type Op uint8

// The operations: Seal and Open of AEADs, Encode and Reconstruct of Reed-Solomon, Sum of CRCs and hashes.
const (
	Seal Op = iota
	Open
	Encode
	Reconstruct
	Sum
	opCount
)

// String is the operation's label value.
func (o Op) String() string {
	return [...]string{"seal", "open", "encode", "reconstruct", "sum"}[o]
}

// ErrNoPath: no path of a primitive passed its self-test, so that the product cannot run on this machine.
var ErrNoPath = errors.New("no working path")

// Options of Probe. The zero value measures and chooses everything.
type Options struct {
	Pin       map[Primitive]string // path to use whatever the benchmark says; it must pass its self-test
	Slice     time.Duration        // how long one measurement of the boot benchmark lasts; 0 means 1 ms
	SkipBench bool                 // take the first working path of each primitive and report no speeds
	Logger    *slog.Logger         // nil: no log
}

// Engine hands out the chosen paths.
type Engine struct {
	cpu        string
	features   []string
	candidates []*candidate
	chosen     map[Primitive]*candidate // never written after Probe
	meters     map[Primitive]*[opCount]Meter

	// The chosen functions themselves, so that a checksum of few bytes pays for no look-up.
	crc64         func(uint64, []byte) uint64
	crc32, crc32c func(uint32, []byte) uint32

	coders [MaxShards + 1][MaxShards + 1]atomic.Pointer[coder] // by data and parity
}

// Probe reads the processor's features, tests every path that it supports, measures those that pass, and chooses. It takes
// well under two seconds. The error wraps ErrNoPath if a primitive has no working path, and names it; it is another one if
// opt pins a path that is unknown or does not work.
func Probe(opt Options) (*Engine, error) {
	return probe(opt, &cpuid.CPU, specs(), registry(&cpuid.CPU))
}

func probe(opt Options, cpu *cpuid.CPUInfo, sp []spec, paths []path) (*Engine, error) {
	log := opt.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		cpu:      brand(cpu),
		features: features(cpu),
		chosen:   make(map[Primitive]*candidate),
		meters:   make(map[Primitive]*[opCount]Meter),
	}
	for i := range sp {
		for _, p := range paths {
			if p.primitive == sp[i].primitive {
				c := &candidate{path: p, spec: &sp[i]}
				c.prove(cpu)
				e.candidates = append(e.candidates, c)
			}
		}
	}
	if !opt.SkipBench {
		measure(e.candidates, opt.Slice)
	}
	for _, c := range e.candidates {
		if c.err != nil {
			log.Error("hardware path disabled", "primitive", c.primitive, "path", c.name, "cause", c.err)
		}
	}
	if err := e.choose(opt.Pin, sp); err != nil {
		return nil, err
	}
	for _, s := range sp {
		c := e.chosen[s.primitive]
		_, pinned := opt.Pin[s.primitive]
		log.Info("hardware path chosen", "primitive", c.primitive, "path", c.name, "pinned", pinned, "gbps", c.gbps(decidingSize))
	}
	return e, nil
}

// choose settles the path of every primitive and collects what is wrong with any.
func (e *Engine) choose(pin map[Primitive]string, sp []spec) error {
	var errs []error
	for i := range sp {
		p := sp[i].primitive
		c, err := e.pick(p, pin)
		if err != nil {
			errs = append(errs, fmt.Errorf("choose path of %s: %w", p, err))
			continue
		}
		c.chosen = true
		e.chosen[p] = c
		e.meters[p] = new([opCount]Meter)
		switch p {
		case CRC64NVME:
			e.crc64 = c.crc64
		case CRC32:
			e.crc32 = c.crc32
		case CRC32C:
			e.crc32c = c.crc32
		}
	}
	for p := range pin {
		if e.chosen[p] == nil && len(errs) == 0 {
			errs = append(errs, fmt.Errorf("pin path: unknown primitive %q", p))
		}
	}
	return errors.Join(errs...)
}

// pick returns the pinned path, or the fastest working one.
func (e *Engine) pick(p Primitive, pin map[Primitive]string) (*candidate, error) {
	name, pinned := pin[p]
	var working []*candidate
	var causes []string
	for _, c := range e.candidates {
		switch {
		case c.primitive != p:
		case pinned && c.name == name:
			if !c.usable() {
				return nil, fmt.Errorf("pinned path %s: %s", name, c.selfTest())
			}
			return c, nil
		case c.usable():
			working = append(working, c)
		default:
			causes = append(causes, c.name+": "+c.selfTest())
		}
	}
	switch {
	case pinned:
		return nil, fmt.Errorf("pinned path %s: no such path", name)
	case len(working) == 0:
		return nil, fmt.Errorf("%w (%s)", ErrNoPath, strings.Join(causes, "; "))
	}
	return fastest(working), nil
}

// AEAD returns the chosen implementation of p under key, which is copied. Nonces are of the size that the primitive's
// constant states. The CBC-HMAC key is the MAC key followed by the cipher key, 32 bytes each; its nonce is the IV, which
// must be unpredictable and is not part of the ciphertext.
func (e *Engine) AEAD(p Primitive, key []byte) (cipher.AEAD, error) {
	c := e.chosen[p]
	if c == nil || c.newAEAD == nil {
		return nil, fmt.Errorf("new aead: %q is none", p)
	}
	if len(key) != c.spec.keySize {
		return nil, fmt.Errorf("new aead %s: key of %d bytes, want %d", p, len(key), c.spec.keySize)
	}
	a, err := c.newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("new aead %s: %w", p, err)
	}
	return a, nil
}

// CRC64NVME returns crc, the checksum of what came before (0 at the start), carried on over p.
func (e *Engine) CRC64NVME(crc uint64, p []byte) uint64 { return e.crc64(crc, p) }

// CRC32 is CRC64NVME for the IEEE polynomial.
func (e *Engine) CRC32(crc uint32, p []byte) uint32 { return e.crc32(crc, p) }

// CRC32C is CRC64NVME for the Castagnoli polynomial.
func (e *Engine) CRC32C(crc uint32, p []byte) uint32 { return e.crc32c(crc, p) }

// NewHash returns a new MD5, SHA256 or SHA512 state. It panics for any other primitive.
func (e *Engine) NewHash(p Primitive) hash.Hash {
	c := e.chosen[p]
	if c == nil || c.newHash == nil {
		panic(fmt.Sprintf("hw: %q is no hash", p))
	}
	return c.newHash()
}
