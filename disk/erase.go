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
	Retired bool // the superblock says that the disk was removed from the array
}

// EraseOptions describe an erasure.
type EraseOptions struct {
	Path   string
	Method EraseMethod // "" for EraseAuto
	// Samples is how many blocks are read back; 0 means 1,000.
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
	Samples int         `json:"samples"` // blocks of 4,096 bytes read back
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
	return &EraseCertificate{Device: d.Path(), Kind: l.Kind, Model: l.Model, Serial: l.Serial, Size: l.Size, Held: h.Text, ArrayID: h.ArrayID, Slot: h.Slot}
}

// holding looks at a disk without keys.
func holding(d blockdev.Device) (h Holding, err error) {
	raws, errs, err := readNew([]blockdev.Device{d}, 0)
	if err != nil {
		return h, err
	}
	if errs[0] == nil {
		if sb, _, err := chooseCopy(raws[0], nil); err == nil {
			h = Holding{ArrayID: hex.EncodeToString(sb.array[:]), Slot: sb.slot, Retired: sb.members[sb.slot].state == memberRetired}
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
	e := &eraser{d: d, c: c, progress: opt.Progress, size: d.Limits().Size}
	if err := e.sample(opt.Samples); err != nil {
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
	size     int64
	stream   cipher.Block // what is written by EraseRandom, by block
	offs     []int64
	before   [][]byte // what the samples held; nil where that cannot be read or was zeros

	mu sync.Mutex // guards the certificate's counts while workers write
}

// sample chooses blocks all over the disk, with its first and last and those of the superblocks, and keeps what they hold.
func (e *eraser) sample(n int) error {
	if n == 0 {
		n = defaultSamples
	}
	blocks := e.size / BlockSize
	at := map[int64]bool{0: true, (blocks - 1) * BlockSize: true}
	for c := int64(0); c < superCopies && c*superStride < e.size; c++ {
		at[c*superStride] = true
	}
	for int64(len(at)) < min(int64(n), blocks) {
		at[rand.Int64N(blocks)*BlockSize] = true
	}
	for off := range at {
		e.offs = append(e.offs, off)
	}
	slices.Sort(e.offs)
	arena := newArena(1 << 20)
	defer arena.Close()
	buf, err := arena.Get(context.Background(), BlockSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	b := buf.Bytes()[:BlockSize]
	for _, off := range e.offs {
		var had []byte
		if err := e.d.ReadAt(b, off); err == nil && !isZero(b) {
			had = bytes.Clone(b)
		}
		e.before = append(e.before, had)
	}
	return nil
}

// wipe destroys everything by the method, or a lesser one when that may be chosen.
func (e *eraser) wipe(ctx context.Context, fallBack bool) error {
	switch e.c.Method {
	case EraseSanitize:
		what, err := e.d.(blockdev.Eraser).Sanitize(ctx, func(done float64) { e.progress(int64(done*float64(e.size)), e.size) })
		e.c.Detail = what
		return err
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

// verify reads the samples past all caches: what was written must be there, or, where the disk erased itself, what was there must not.
func (e *eraser) verify(ctx context.Context) error {
	arena := newArena(1 << 20)
	defer arena.Close()
	buf, err := arena.Get(ctx, BlockSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	b, want := buf.Bytes()[:BlockSize], make([]byte, BlockSize)
	for i, off := range e.offs {
		if err := ctx.Err(); err != nil {
			return err
		}
		e.c.Samples++
		if err := e.d.ReadAt(b, off); err != nil {
			e.c.Unread++
			continue
		}
		good := e.before[i] == nil || !bytes.Equal(b, e.before[i])
		if e.c.Method == EraseZero || e.c.Method == EraseRandom {
			e.fill(want, off)
			good = bytes.Equal(b, want)
		}
		if !good {
			e.c.Wrong++
		}
	}
	if e.c.Wrong+e.c.Unread > 0 {
		return fmt.Errorf("of %d blocks read back %d are not erased and %d cannot be read", e.c.Samples, e.c.Wrong, e.c.Unread)
	}
	return nil
}
