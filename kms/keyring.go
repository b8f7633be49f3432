package kms

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// HKDF labels of the hierarchy. The salt is the array ID; the epoch's labels are followed by its number, big-endian.
const (
	labelSuperblock = "coffer superblock mac v1"
	labelArea       = "coffer key area mac v1"
	labelRootWrap   = "coffer root wrap v1"
	labelRecord     = "coffer record key v1"
	labelIndex      = "coffer index key v1"
	labelBucket     = "coffer bucket wrap v1"
	labelSecret     = "coffer secret wrap v1"
)

// Keyring holds the unlocked keys of one array. It is safe for concurrent use.
//
// A method that changes it (AddSlot, RemoveSlot, AddEpoch) changes only memory: the caller then writes Area into every
// superblock, and relies on the change when that is durable.
//
// Keys returned as byte slices are views of locked memory: read-only, valid until Close, and a fault when touched later.
type Keyring struct {
	arrayID [16]byte
	arena   *Arena

	// Set once while the keyring is made.
	root, superblock, areaKey, rootWrap, cell *Secret

	edit sync.Mutex // serialises AddSlot, RemoveSlot, AddEpoch and UseEpoch; taken before mu

	mu      sync.RWMutex // guards all below; held shared while any key is in use, so that Close waits
	closed  bool
	area    area
	epochs  map[uint32]*epochKeys
	current uint32

	buckets bucketCache // has its own lock, taken inside mu
}

// epochKeys are the keys derived from one epoch key.
type epochKeys struct{ record, index, bucket, secret *Secret }

// EpochInfo describes a key epoch.
type EpochInfo struct {
	Number  uint32
	Created time.Time
}

// Create makes the keyring of a new array: a random root key sealed in each of slots, 1 to MaxSlots, and epoch 1.
func Create(ctx context.Context, arrayID [16]byte, slots ...Slot) (*Keyring, error) {
	if len(slots) == 0 {
		return nil, fmt.Errorf("create keyring: no slot: %w", ErrSlotAbsent)
	}
	arena := &Arena{}
	k, err := create(ctx, arena, arrayID, slots)
	if err != nil {
		arena.Close()
		return nil, fmt.Errorf("create keyring: %w", err)
	}
	return k, nil
}

func create(ctx context.Context, arena *Arena, arrayID [16]byte, slots []Slot) (*Keyring, error) {
	root, err := arena.Random(KeySize)
	if err != nil {
		return nil, err
	}
	k, err := newKeyring(arena, arrayID, root)
	if err != nil {
		return nil, err
	}
	if k.cell, err = arena.Random(KeySize); err != nil {
		return nil, err
	}
	k.area.cell = [WrappedSize]byte(appendBox(nil, &wrapLabels, k.rootWrap.view(), k.cell.view(), k.cellAAD()))
	if k.current, err = k.AddEpoch(); err != nil {
		return nil, err
	}
	for _, s := range slots {
		if _, err := k.AddSlot(ctx, s); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Unlock opens the keyring from the key area of a superblock, which is hostile until a slot yields the root key that its MAC was
// made with. The slots are tried in order, each within its deadline on every blob of its kind, until one opens; there is
// a result for each slot tried, also when Unlock fails. Errors: ErrLocked, with every slot's error wrapped too; ErrCorrupt
// or ErrVersion for an area that cannot be read or belongs to another array; and ctx's.
func Unlock(ctx context.Context, arrayID [16]byte, areaBytes []byte, slots []Slot) (*Keyring, []SlotResult, error) {
	a, err := decodeArea(areaBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("unlock keyring: %w", err)
	}
	if a.arrayID != arrayID {
		return nil, nil, fmt.Errorf("unlock keyring: key area of array %x, want %x: %w", a.arrayID, arrayID, ErrCorrupt)
	}
	var k *Keyring
	var results []SlotResult
	var errs []error
	for _, s := range slots {
		res := openSlot(ctx, s, a, func(root []byte) (err error) {
			k, err = open(a, areaBytes, root)
			return err
		})
		results = append(results, res)
		if res.OK {
			return k, results, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", res.Kind, res.Err))
		if err := ctx.Err(); err != nil {
			return nil, results, fmt.Errorf("unlock keyring: %w", err)
		}
	}
	return nil, results, fmt.Errorf("unlock keyring: %w: %w", ErrLocked, errors.Join(errs...))
}

// open returns the keyring of an area that was authenticated with root, which it wipes.
func open(a *area, areaBytes, root []byte) (_ *Keyring, err error) {
	if len(root) != KeySize {
		wipe(root)
		return nil, fmt.Errorf("root key of %d bytes: %w", len(root), ErrCorrupt)
	}
	arena := &Arena{}
	defer func() {
		if err != nil {
			arena.Close()
		}
	}()
	s, err := arena.Import(root)
	if err != nil {
		return nil, err
	}
	k, err := newKeyring(arena, a.arrayID, s)
	if err != nil {
		return nil, err
	}
	if err := checkMAC(areaBytes, k.areaKey.view()); err != nil {
		return nil, err
	}
	return k, k.load(a)
}

// newKeyring derives what hangs from the root key alone.
func newKeyring(arena *Arena, arrayID [16]byte, root *Secret) (*Keyring, error) {
	k := &Keyring{arrayID: arrayID, arena: arena, root: root, epochs: make(map[uint32]*epochKeys)}
	k.area.arrayID = arrayID
	var err error
	for _, d := range []struct {
		to    **Secret
		label string
	}{{&k.superblock, labelSuperblock}, {&k.areaKey, labelArea}, {&k.rootWrap, labelRootWrap}} {
		if *d.to, err = k.derived(root, d.label); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// derived returns a new secret made from a parent key.
func (k *Keyring) derived(parent *Secret, info string) (*Secret, error) {
	defer burnStack()
	return k.arena.alloc(KeySize, func(mem []byte) {
		derive((*[KeySize]byte)(mem), parent.view(), k.arrayID[:], info)
	})
}

// load unwraps the cell key and the epochs of an authenticated area.
func (k *Keyring) load(a *area) error {
	var err error
	if k.cell, err = k.unwrapSecret(k.rootWrap, a.cell[:], k.cellAAD()); err != nil {
		return fmt.Errorf("unwrap cell key: %w", err)
	}
	for i := range a.epochs {
		e := &a.epochs[i]
		key, err := k.unwrapSecret(k.rootWrap, e.wrapped[:], k.epochAAD(e.number))
		if err != nil {
			return fmt.Errorf("unwrap key of epoch %d: %w", e.number, err)
		}
		if k.epochs[e.number], err = k.deriveEpoch(e.number, key); err != nil {
			return err
		}
		k.current = e.number
	}
	k.area = *a
	return nil
}

// unwrapSecret opens a wrapped key straight into locked memory.
func (k *Keyring) unwrapSecret(kek *Secret, wrapped, aad []byte) (*Secret, error) {
	if len(wrapped) != WrappedSize {
		return nil, fmt.Errorf("wrapped key of %d bytes: %w", len(wrapped), ErrCorrupt)
	}
	var openErr error
	s, err := k.arena.alloc(KeySize, func(mem []byte) {
		_, openErr = openBox(mem[:0], &wrapLabels, kek.view(), wrapped, aad)
	})
	if err != nil {
		return nil, err
	}
	if openErr != nil {
		s.Wipe()
		return nil, asCorrupt(openErr)
	}
	return s, nil
}

// deriveEpoch returns the keys of an epoch and wipes the epoch key, of which only the wrapped form is needed from then on.
func (k *Keyring) deriveEpoch(number uint32, key *Secret) (*epochKeys, error) {
	defer key.Wipe()
	e := &epochKeys{}
	suffix := string(binary.BigEndian.AppendUint32(nil, number))
	var err error
	for _, d := range []struct {
		to    **Secret
		label string
	}{{&e.record, labelRecord}, {&e.index, labelIndex}, {&e.bucket, labelBucket}, {&e.secret, labelSecret}} {
		if *d.to, err = k.derived(key, d.label+suffix); err != nil {
			return nil, fmt.Errorf("derive keys of epoch %d: %w", number, err)
		}
	}
	return e, nil
}

func (k *Keyring) cellAAD() []byte { return append([]byte("coffer cell key v1"), k.arrayID[:]...) }

func (k *Keyring) epochAAD(number uint32) []byte {
	aad := append([]byte("coffer epoch key v1"), k.arrayID[:]...)
	return binary.BigEndian.AppendUint32(aad, number)
}

// Area returns the key area as each superblock must hold it, at most MaxAreaSize bytes, authenticated under the root key. It
// panics when the keyring is closed.
func (k *Keyring) Area() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.area.encode(k.areaKey.view())
}

// SuperblockKey returns the 32-byte key of the superblock MAC. It panics when the keyring is closed.
func (k *Keyring) SuperblockKey() []byte { return k.superblock.view() }

// CellKey returns the 32-byte key of the cell header MAC, which belongs to no epoch. It panics when the keyring is closed.
func (k *Keyring) CellKey() []byte { return k.cell.view() }

// ArrayID returns the array that the keyring belongs to.
func (k *Keyring) ArrayID() [16]byte { return k.arrayID }

// Warning tells why key memory may reach swap or a core dump; nil if it cannot.
func (k *Keyring) Warning() error { return k.arena.Warning() }

// RecordKey returns the 32-byte metadata key of an epoch: ErrNoEpoch, ErrClosed.
func (k *Keyring) RecordKey(epoch uint32) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	e, err := k.epoch(epoch)
	if err != nil {
		return nil, fmt.Errorf("get record key: %w", err)
	}
	return e.record.view(), nil
}

// IndexKey returns the 32-byte key that seals the headers of index files in an epoch: ErrNoEpoch, ErrClosed.
func (k *Keyring) IndexKey(epoch uint32) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	e, err := k.epoch(epoch)
	if err != nil {
		return nil, fmt.Errorf("get index key: %w", err)
	}
	return e.index.view(), nil
}

// epoch returns the keys of an epoch. k.mu is held, and stays so while they are used.
func (k *Keyring) epoch(number uint32) (*epochKeys, error) {
	if k.closed {
		return nil, ErrClosed
	}
	e, ok := k.epochs[number]
	if !ok {
		return nil, fmt.Errorf("epoch %d: %w", number, ErrNoEpoch)
	}
	return e, nil
}

// CurrentEpoch returns the epoch that new keys belong to.
func (k *Keyring) CurrentEpoch() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.current
}

// Epochs returns every epoch, ascending.
func (k *Keyring) Epochs() []EpochInfo {
	k.mu.RLock()
	defer k.mu.RUnlock()
	out := make([]EpochInfo, 0, len(k.area.epochs))
	for i := range k.area.epochs {
		out = append(out, k.area.epochs[i].info())
	}
	return out
}

// AddEpoch makes the next epoch, with a random key, and returns its number. It does not become current: what is sealed by an
// epoch that no superblock holds would be lost by a crash. Write Area into the superblocks, then call UseEpoch; Unlock takes
// the highest epoch of the area as current. Errors: ErrLimit with MaxEpochs epochs, ErrClosed.
func (k *Keyring) AddEpoch() (uint32, error) {
	k.edit.Lock()
	defer k.edit.Unlock()
	k.mu.RLock()
	closed, existing := k.closed, k.area.epochs
	k.mu.RUnlock()
	if closed {
		return 0, fmt.Errorf("add key epoch: %w", ErrClosed)
	}
	if len(existing) >= MaxEpochs {
		return 0, fmt.Errorf("add key epoch: %d exist: %w", len(existing), ErrLimit)
	}
	rec := epochRecord{number: 1, created: time.Now().Unix()}
	if len(existing) > 0 {
		rec.number += existing[len(existing)-1].number
	}
	if rec.number == 0 {
		return 0, fmt.Errorf("add key epoch: numbers exhausted: %w", ErrLimit)
	}
	key, err := k.arena.Random(KeySize)
	if err != nil {
		return 0, fmt.Errorf("add key epoch: %w", err)
	}
	rec.wrapped = [WrappedSize]byte(appendBox(nil, &wrapLabels, k.rootWrap.view(), key.view(), k.epochAAD(rec.number)))
	keys, err := k.deriveEpoch(rec.number, key)
	if err != nil {
		return 0, fmt.Errorf("add key epoch: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.area.epochs = append(k.area.epochs, rec)
	k.epochs[rec.number] = keys
	return rec.number, nil
}

// UseEpoch makes an epoch current: ErrNoEpoch, ErrClosed. Epochs only go forward: a lower number than the current is ErrNoEpoch.
func (k *Keyring) UseEpoch(number uint32) error {
	k.edit.Lock()
	defer k.edit.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.epoch(number); err != nil {
		return fmt.Errorf("use key epoch: %w", err)
	}
	if number < k.current {
		return fmt.Errorf("use key epoch: %d is older than %d: %w", number, k.current, ErrNoEpoch)
	}
	k.current = number
	return nil
}

// Slots returns the array's slots, ascending by number, those of unknown kind too.
func (k *Keyring) Slots() []SlotInfo {
	k.mu.RLock()
	defer k.mu.RUnlock()
	out := make([]SlotInfo, 0, len(k.area.slots))
	for i := range k.area.slots {
		out = append(out, k.area.slots[i].info())
	}
	return out
}

// AddSlot seals the root key in s, proves that s opens it again, and returns the number of the new slot. Errors: ErrLimit with
// MaxSlots slots, ErrClosed, ctx's and the slot's own.
func (k *Keyring) AddSlot(ctx context.Context, s Slot) (int, error) {
	k.edit.Lock()
	defer k.edit.Unlock()
	k.mu.RLock()
	closed, existing := k.closed, k.area.slots
	k.mu.RUnlock()
	if closed {
		return 0, fmt.Errorf("add slot: %w", ErrClosed)
	}
	number, err := freeSlot(existing)
	if err != nil {
		return 0, fmt.Errorf("add slot: %w", err)
	}
	rec := slotRecord{number: number, kind: s.Kind(), created: time.Now().Unix()}
	if rec.blob, err = sealSlot(ctx, s, k.root.view()); err != nil {
		return 0, fmt.Errorf("add slot: %w", err)
	}
	slots := append(slices.Clone(existing), rec)
	slices.SortFunc(slots, func(a, b slotRecord) int { return int(a.number) - int(b.number) })
	k.mu.Lock()
	defer k.mu.Unlock()
	k.area.slots = slots
	return int(number), nil
}

// freeSlot returns the lowest number not in use.
func freeSlot(slots []slotRecord) (uint8, error) {
	for n := range uint8(MaxSlots) {
		if !slices.ContainsFunc(slots, func(s slotRecord) bool { return s.number == n }) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%d exist: %w", len(slots), ErrLimit)
}

// RemoveSlot removes a slot by its number. Errors: ErrSlotAbsent, ErrLastSlot, ErrClosed. Who kept an old superblock and the
// slot's secret can still open the root key: only a new root key revokes it.
func (k *Keyring) RemoveSlot(number int) error {
	k.edit.Lock()
	defer k.edit.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return fmt.Errorf("remove slot: %w", ErrClosed)
	}
	i := slices.IndexFunc(k.area.slots, func(s slotRecord) bool { return int(s.number) == number })
	if i < 0 {
		return fmt.Errorf("remove slot %d: %w", number, ErrSlotAbsent)
	}
	if len(k.area.slots) == 1 {
		return fmt.Errorf("remove slot %d: %w", number, ErrLastSlot)
	}
	k.area.slots = slices.Delete(slices.Clone(k.area.slots), i, i+1)
	return nil
}

// Close waits for calls in progress and wipes every key. Views of keys fault from then on and bucket keys panic, so nothing may
// use the array any more. Further calls do nothing.
func (k *Keyring) Close() {
	k.edit.Lock() // a slot being added reads the root key
	defer k.edit.Unlock()
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.arena.Close()
}
