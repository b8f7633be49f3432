package disk

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	crand "crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/disk/internal/blockdev"
)

// EraseMethod is a way to destroy what a disk holds.
type EraseMethod string

const (
	// EraseAuto takes the first of sanitize and secure-discard that the disk offers, else random.
	EraseAuto     EraseMethod = "auto"
	EraseSanitize EraseMethod = "sanitize"       // NVMe Sanitize: the whole medium, spare areas included
	EraseDiscard  EraseMethod = "secure-discard" // BLKSECDISCARD
	EraseZero     EraseMethod = "zero"           // every block overwritten with zeros
	EraseRandom   EraseMethod = "random"         // every block overwritten with random bytes
)

// EraseMethods lists the methods.
func EraseMethods() []EraseMethod {
	return []EraseMethod{EraseAuto, EraseSanitize, EraseDiscard, EraseZero, EraseRandom}
}

// Holding says what is on a disk, as far as it matters for whether that may be destroyed.
type Holding struct {
	Text    string // "" for nothing known
	ArrayID string // of the superblock, "" without one
	Slot    int
	Retired bool  // the superblock says that the disk was removed from the array
	extent  int64 // size of the extents behind the superblocks, 0 if unknown
}

// EraseOptions describe an erasure.
type EraseOptions struct {
	Path   string
	Method EraseMethod // "" for EraseAuto
	// Samples is how many blocks are read back; 0 means 1,000. Up to half of them are looked for where something is.
	Samples int
	// Progress, if not nil, is called now and then with the bytes done and to do.
	Progress func(done, total int64)
	// Permit is asked before anything is changed.
	Permit func(Holding) error
}

// EraseCertificate says what became of a disk. Sizes are bytes.
type EraseCertificate struct {
	Device  string      `json:"device"`
	Kind    string      `json:"kind"` // "block" or "file"
	Model   string      `json:"model"`
	Serial  string      `json:"serial"`
	Size    int64       `json:"size"`
	Held    string      `json:"held"`     // what was on it
	ArrayID string      `json:"array_id"` // "" if no member of an array
	Slot    int         `json:"slot"`
	Method  EraseMethod `json:"method"`
	Detail  string      `json:"detail"` // what was done, and why nothing better
	Started time.Time   `json:"started"`
	Ended   time.Time   `json:"ended"`
	Samples int         `json:"samples"` // blocks of 4,096 bytes read back; one of them is shorter if the size is no multiple of that
	// Nonzero samples held something before. Of a disk that erased itself only they prove anything.
	Nonzero int `json:"samples_nonzero"`
	// Wrong samples still hold what they held, or not what was written; Unread ones cannot be read.
	Wrong  int `json:"samples_wrong"`
	Unread int `json:"samples_unread"`
	// Unwritten bytes were not overwritten, since the disk refused the writes.
	Unwritten int64  `json:"unwritten_bytes"`
	Result    string `json:"result"` // "erased", "failed"
	Failure   string `json:"failure,omitempty"`
}

// ErrErase: something of what a disk held may still be there. The certificate says what.
var ErrErase = errors.New("disk not erased")

const (
	defaultSamples = 1000
	eraseChunk     = 4 << 20
	eraseWorkers   = 4
	maxEraseFaults = 64 // chunks that cannot be written; then the disk is given up
	sampleTries    = 4  // blocks looked at for each sample
	maxExtentTries = 4096
)

// PlanErase finds out what a disk holds and how it would be erased, and changes nothing.
func PlanErase(path string, method EraseMethod) (*EraseCertificate, Holding, error) {
	d, err := blockdev.OpenFile(path, blockdev.OpenOptions{ReadOnly: true})
	if err != nil {
		return nil, Holding{}, fmt.Errorf("erase: %w", err)
	}
	defer d.Close()
	h, err := holding(d)
	if err != nil {
		return nil, h, err
	}
	c := newCertificate(d, h)
	c.Method, c.Detail, err = chooseErase(d, method)
	return c, h, err
}

func newCertificate(d blockdev.Device, h Holding) *EraseCertificate {
	l := d.Limits()
	return &EraseCertificate{Device: d.Path(), Kind: l.Kind, Model: l.Model, Serial: l.Serial, Size: l.Size + int64(l.Tail), Held: h.Text, ArrayID: h.ArrayID, Slot: h.Slot}
}

// holding looks at a disk without keys.
func holding(d blockdev.Device) (h Holding, err error) {
	raws, errs, err := readNew([]blockdev.Device{d}, 0)
	if err != nil {
		return h, err
	}
	if errs[0] == nil {
		if sb, _, err := chooseCopy(raws[0], nil); err == nil {
			h = Holding{ArrayID: hex.EncodeToString(sb.array[:]), Slot: sb.slot, Retired: sb.members[sb.slot].state == memberRetired, extent: sb.geo.ExtentSize}
			h.Text = fmt.Sprintf("slot %d of array %s", h.Slot, h.ArrayID)
			if h.Retired {
				h.Text = "a disk retired from " + h.Text
			}
			return h, nil
		}
	}
	if d.Limits().Size < superArea {
		return h, nil
	}
	h.Text, err = contents(d)
	if err != nil {
		h.Text = "what cannot be read: " + err.Error()
	}
	return h, nil
}

// chooseErase settles the method, and says why it is none better.
func chooseErase(d blockdev.Device, m EraseMethod) (EraseMethod, string, error) {
	e, _ := d.(blockdev.Eraser)
	if e == nil && (m == EraseSanitize || m == EraseDiscard) {
		return m, "", fmt.Errorf("erase %s by %s: %w", d.Path(), m, blockdev.ErrNotOffered)
	}
	switch m {
	case EraseAuto, "":
		if e == nil {
			return EraseRandom, "one pass over every block", nil
		}
		if what, err := e.CanSanitize(); err == nil {
			return EraseSanitize, what, nil
		}
		if d.Limits().Kind == "block" {
			return EraseDiscard, "the disk offers no NVMe sanitize; without secure discard every block is overwritten with random bytes", nil
		}
		return EraseRandom, "one pass over every block of a file", nil
	case EraseSanitize:
		what, err := e.CanSanitize()
		return m, what, err
	case EraseDiscard, EraseZero, EraseRandom:
		return m, "", nil
	}
	return m, "", fmt.Errorf("erase %s: method %q is none of %v", d.Path(), m, EraseMethods())
}

// Erase destroys what a disk holds and reads samples back. The certificate is there whenever something may have been changed; the error
// wraps ErrErase then.
func Erase(ctx context.Context, opt EraseOptions) (*EraseCertificate, error) {
	d, err := blockdev.OpenFile(opt.Path, blockdev.OpenOptions{})
	if err != nil {
		return nil, fmt.Errorf("erase: %w", err)
	}
	defer d.Close()
	return eraseDevice(ctx, d, opt)
}

func eraseDevice(ctx context.Context, d blockdev.Device, opt EraseOptions) (*EraseCertificate, error) {
	h, err := holding(d)
	if err != nil {
		return nil, err
	}
	if opt.Permit != nil {
		if err := opt.Permit(h); err != nil {
			return nil, err
		}
	}
	c := newCertificate(d, h)
	if c.Method, c.Detail, err = chooseErase(d, opt.Method); err != nil {
		return nil, err
	}
	if opt.Progress == nil {
		opt.Progress = func(int64, int64) {}
	}
	e := &eraser{d: d, c: c, progress: opt.Progress, size: d.Limits().Size, tail: d.Limits().Tail, before: map[int64][]byte{}}
	if err := e.sample(ctx, opt.Samples, h.extent); err != nil {
		return nil, err
	}
	c.Started = time.Now().UTC()
	err = e.wipe(ctx, opt.Method == EraseAuto || opt.Method == "")
	if errors.Is(err, blockdev.ErrNotOffered) {
		return nil, err // asked for by name, and nothing was changed
	}
	if err == nil {
		err = e.verify(ctx)
	}
	c.Ended, c.Result = time.Now().UTC(), "erased"
	if err != nil {
		c.Result, c.Failure = "failed", err.Error()
		err = fmt.Errorf("erase %s: %w: %w", c.Device, ErrErase, err)
	}
	return c, err
}

// eraser is an erasure under way.
type eraser struct {
	d        blockdev.Device
	c        *EraseCertificate
	progress func(done, total int64)
	size     int64            // in whole blocks
	tail     int              // bytes behind them
	stream   cipher.Block     // what is written by EraseRandom, by block
	before   map[int64][]byte // what the samples held, by offset; nil where that cannot be read or was zeros

	mu sync.Mutex // guards the certificate's counts while workers write
}

// sample chooses blocks and keeps what they hold: the first and last of the disk, those of the superblocks, and others at random. Half of
// these are looked for where something is: a disk that is nearly empty would prove little otherwise.
func (e *eraser) sample(ctx context.Context, n int, extent int64) error {
	arena := newArena(1 << 20)
	defer arena.Close()
	buf, err := arena.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	if n == 0 {
		n = defaultSamples
	}
	look := func(off int64) []byte {
		if ctx.Err() != nil {
			return nil
		}
		b, err := e.read(buf, off)
		if err != nil || isZero(b) {
			return nil
		}
		return bytes.Clone(b)
	}
	take := func(off int64) {
		if _, ok := e.before[off]; !ok {
			e.before[off] = look(off)
		}
	}
	blocks := e.size / BlockSize
	n = int(min(int64(n), blocks))
	take((blocks - 1) * BlockSize)
	for c := int64(0); c < superCopies && c*superStride < e.size; c++ {
		take(c * superStride)
	}
	if e.tail > 0 {
		take(e.size)
	}
	for len(e.before) < n/2 {
		take(rand.Int64N(blocks) * BlockSize)
	}
	used := e.usedExtents(extent, look)
	for i := range sampleTries * n {
		if len(e.before) >= n {
			break
		}
		off := rand.Int64N(blocks) * BlockSize
		if len(used) > 0 && i%2 == 0 {
			off = used[rand.IntN(len(used))] + rand.Int64N(extent/BlockSize)*BlockSize
		}
		if had := look(off); had != nil {
			e.before[off] = had
		}
	}
	for len(e.before) < n {
		take(rand.Int64N(blocks) * BlockSize)
	}
	for _, had := range e.before {
		if had != nil {
			e.c.Nonzero++
		}
	}
	return ctx.Err()
}

// usedExtents returns where extents begin that something was written to: their first block is never empty then. Of very many it looks
// at some.
func (e *eraser) usedExtents(extent int64, look func(int64) []byte) (used []int64) {
	if extent < minExtent || extent%BlockSize != 0 {
		return nil // what a disk without keys says need not be true
	}
	count := (e.size - superArea) / extent
	for i := int64(0); i < count; i += count/maxExtentTries + 1 {
		if off := superArea + i*extent; look(off) != nil {
			used = append(used, off)
		}
	}
	return used
}

// read reads a block, or the tail behind the last.
func (e *eraser) read(buf blockdev.Buf, off int64) ([]byte, error) {
	b := buf.Bytes()[:BlockSize]
	if off < e.size {
		return b, e.d.ReadAt(b, off)
	}
	z, ok := e.d.(blockdev.Eraser)
	if !ok {
		return nil, blockdev.ErrNotOffered
	}
	return b[:e.tail], z.ReadTail(b)
}

// wipe destroys everything by the method, or a lesser one when that may be chosen.
func (e *eraser) wipe(ctx context.Context, fallBack bool) error {
	switch e.c.Method {
	case EraseSanitize:
		what, err := e.d.(blockdev.Eraser).Sanitize(ctx, func(done float64) { e.progress(int64(done*float64(e.size)), e.size) })
		if !fallBack || !errors.Is(err, blockdev.ErrNotOffered) {
			e.c.Detail = what
			return err
		}
		e.c.Method = EraseDiscard // it only seemed to be offered
		return e.wipe(ctx, fallBack)
	case EraseDiscard:
		err := e.discard(ctx)
		if !fallBack || !errors.Is(err, blockdev.ErrNotOffered) {
			e.c.Detail = "all blocks"
			return err
		}
		e.c.Method, e.c.Detail = EraseRandom, "one pass over every block; the disk offers neither NVMe sanitize nor secure discard"
	case EraseZero, EraseRandom:
		if e.c.Detail == "" {
			e.c.Detail = "one pass over every block"
		}
	}
	if e.c.Method == EraseRandom {
		key := make([]byte, 32)
		crand.Read(key) // never fails (crypto/rand)
		var err error
		if e.stream, err = aes.NewCipher(key); err != nil {
			return err
		}
	}
	return e.overwrite(ctx)
}

// discard gives the disk back to itself, in pieces that show progress.
func (e *eraser) discard(ctx context.Context) error {
	const piece = 1 << 30
	for off := int64(0); off < e.size; off += piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(piece, e.size-off)
		if err := e.d.(blockdev.Eraser).SecureDiscard(off, n); err != nil {
			if off > 0 && errors.Is(err, blockdev.ErrNotOffered) {
				return fmt.Errorf("secure discard at %d: %v", off, err) // something was discarded already
			}
			return err
		}
		e.progress(off+n, e.size)
	}
	return nil
}

// overwrite writes every block. What the disk refuses is counted, and the rest is written all the same.
func (e *eraser) overwrite(ctx context.Context) error {
	arena := newArena(2 * eraseWorkers * eraseChunk)
	defer arena.Close()
	var next, done atomic.Int64
	var faults atomic.Int32
	var first error
	var wg sync.WaitGroup
	for range eraseWorkers {
		wg.Go(func() {
			buf, err := arena.Get(ctx, eraseChunk)
			if err != nil {
				return // the context has ended
			}
			defer buf.Release()
			for ctx.Err() == nil && faults.Load() < maxEraseFaults {
				off := next.Add(eraseChunk) - eraseChunk
				if off >= e.size {
					return
				}
				b := buf.Bytes()[:min(eraseChunk, e.size-off)]
				e.fill(b, off)
				err := e.write(b, off)
				e.mu.Lock()
				if err != nil {
					faults.Add(1)
					e.c.Unwritten += int64(len(b))
					if first == nil {
						first = err
					}
				}
				e.progress(done.Add(int64(len(b))), e.size)
				e.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.writeTail(ctx); err != nil {
		e.c.Unwritten += int64(e.tail)
		if first == nil {
			first = err
		}
	}
	if rest := e.size - min(done.Load(), e.size); rest > 0 {
		e.c.Unwritten += rest // given up
	}
	if first != nil {
		return fmt.Errorf("%d bytes were not overwritten: %w", e.c.Unwritten, first)
	}
	return e.d.Flush()
}

// write puts bytes on the disk; zeros by the disk itself, where it can.
func (e *eraser) write(b []byte, off int64) error {
	if z, ok := e.d.(blockdev.Eraser); ok && e.stream == nil {
		if err := z.Zero(off, int64(len(b))); !errors.Is(err, blockdev.ErrNotOffered) {
			return err
		}
	}
	return e.d.WriteAt(b, off, false)
}

// writeTail writes what is behind the last whole block.
func (e *eraser) writeTail(ctx context.Context) error {
	if e.tail == 0 {
		return nil
	}
	z, ok := e.d.(blockdev.Eraser)
	if !ok {
		return fmt.Errorf("the last %d bytes are out of reach", e.tail)
	}
	arena := newArena(1 << 20)
	defer arena.Close()
	buf, err := arena.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	b := buf.Bytes()[:BlockSize]
	e.fill(b, e.size)
	return z.WriteTail(b)
}

// fill makes what is written at off: zeros, or a stream of random bytes that can be made again.
func (e *eraser) fill(b []byte, off int64) {
	clear(b)
	if e.stream == nil {
		return
	}
	for i := 0; i < len(b); i += BlockSize {
		var iv [aes.BlockSize]byte
		binary.BigEndian.PutUint64(iv[:], uint64(off)+uint64(i))
		cipher.NewCTR(e.stream, iv[:]).XORKeyStream(b[i:i+BlockSize], b[i:i+BlockSize])
	}
}

// verify reads the samples past all caches: what was written must be there, or, where the disk erased itself, what was there must not. Samples
// that were zeros before, or could not be read, cannot prove that; with no others the erasure counts as failed.
func (e *eraser) verify(ctx context.Context) error {
	arena := newArena(1 << 20)
	defer arena.Close()
	buf, err := arena.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	want := make([]byte, BlockSize)
	overwritten := e.c.Method == EraseZero || e.c.Method == EraseRandom
	for _, off := range slices.Sorted(maps.Keys(e.before)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		e.c.Samples++
		b, err := e.read(buf, off)
		if err != nil {
			e.c.Unread++
			continue
		}
		wrong := e.before[off] != nil && bytes.Equal(b, e.before[off])
		if overwritten {
			e.fill(want, off)
			wrong = !bytes.Equal(b, want[:len(b)])
		}
		if wrong {
			e.c.Wrong++
		}
	}
	if e.c.Wrong+e.c.Unread > 0 {
		return fmt.Errorf("of %d blocks read back %d are not erased and %d cannot be read", e.c.Samples, e.c.Wrong, e.c.Unread)
	}
	if !overwritten && e.c.Nonzero == 0 {
		return fmt.Errorf("none of %d blocks held anything before, so nothing proves that the disk erased itself; overwriting (method random) can be proved", e.c.Samples)
	}
	return nil
}
