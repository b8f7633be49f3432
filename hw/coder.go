package hw

import (
	"errors"
	"fmt"
	"sync"
)

// MaxShards bounds data and parity shards together.
const MaxShards = 32

// maxInverses bounds the reconstruction matrices that a coder keeps. Few disks fail at once, so few are ever needed; when
// corruption makes for more, an arbitrary one makes room.
const maxInverses = 256

// ErrTooFewShards: fewer shards are present than there are data shards.
var ErrTooFewShards = errors.New("too few shards")

// Coder computes and uses the parity of one shape. It may be used concurrently.
//
// The shards of a call are equally long slices that do not overlap, of any length: tiles of longer ones do, since bytes at
// different places do not depend on each other. For speed, a call's shards together should fit in half the second-level cache.
type Coder interface {
	// Encode computes parity from data. Shards of no bytes are no error.
	Encode(data, parity [][]byte) error

	// Reconstruct rebuilds the wanted ones of the absent shards from the present ones, data before parity. A shard of length 0 is
	// absent; it is rebuilt in its own memory if its capacity is large enough, else in new memory. A nil want means all.
	// What is present is trusted: check it first. On an error, ErrTooFewShards for example, shards is as it was.
	Reconstruct(shards [][]byte, want []bool) error
}

// Coder returns the coder of a shape: data >= 1, parity >= 0, together at most MaxShards. Coders are made once.
func (e *Engine) Coder(data, parity int) (Coder, error) {
	if data < 1 || parity < 0 || data > MaxShards || parity > MaxShards-data {
		return nil, fmt.Errorf("make coder: shape %d+%d, want 1+0 to %d in all", data, parity, MaxShards)
	}
	slot := &e.coders[data][parity]
	if c := slot.Load(); c != nil {
		return c, nil
	}
	c, err := newCoder(data, parity, e.chosen[ReedSolomon].newMatrix)
	if err != nil {
		return nil, fmt.Errorf("make coder %d+%d: %w", data, parity, err)
	}
	slot.CompareAndSwap(nil, c)
	return slot.Load(), nil
}

type coder struct {
	data, parity int
	newMatrix    func(rows [][]byte) (matrix, error)
	field        *field
	generator    [][]byte
	encode       matrix // nil if parity is 0

	mu       sync.Mutex // guards inverses
	inverses map[loss]matrix
}

// loss is what a reconstruction depends on, as bit sets of shard numbers.
type loss struct{ from, want uint64 }

func newCoder(data, parity int, newMatrix func([][]byte) (matrix, error)) (*coder, error) {
	c := &coder{data: data, parity: parity, newMatrix: newMatrix, field: newField(), inverses: make(map[loss]matrix)}
	c.generator = c.field.generator(data, parity)
	if parity > 0 {
		var err error
		if c.encode, err = newMatrix(c.generator[data:]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *coder) Encode(data, parity [][]byte) error {
	if len(data) != c.data || len(parity) != c.parity {
		return fmt.Errorf("encode %d+%d: got %d+%d shards", c.data, c.parity, len(data), len(parity))
	}
	size := len(data[0])
	for _, shards := range [...][][]byte{data, parity} {
		for _, s := range shards {
			if len(s) != size {
				return fmt.Errorf("encode %d+%d: shards of %d and %d bytes", c.data, c.parity, size, len(s))
			}
		}
	}
	if c.parity == 0 || size == 0 {
		return nil
	}
	if err := c.encode.mul(data, parity); err != nil {
		return fmt.Errorf("encode %d+%d: %w", c.data, c.parity, err)
	}
	return nil
}

func (c *coder) Reconstruct(shards [][]byte, want []bool) error {
	if len(shards) != len(c.generator) || want != nil && len(want) != len(shards) {
		return fmt.Errorf("reconstruct %d+%d: got %d shards, %d wishes", c.data, c.parity, len(shards), len(want))
	}
	size, present := 0, 0
	var from, wanted []int
	for i, s := range shards {
		switch {
		case len(s) == 0:
			if want == nil || want[i] {
				wanted = append(wanted, i)
			}
			continue
		case size == 0:
			size = len(s)
		case len(s) != size:
			return fmt.Errorf("reconstruct %d+%d: shards of %d and %d bytes", c.data, c.parity, size, len(s))
		}
		if present++; present <= c.data {
			from = append(from, i)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if present < c.data {
		return fmt.Errorf("reconstruct %d+%d: %w: %d present", c.data, c.parity, ErrTooFewShards, present)
	}
	m, err := c.inverse(from, wanted)
	if err != nil {
		return fmt.Errorf("reconstruct %d+%d: %w", c.data, c.parity, err)
	}
	in, out := make([][]byte, len(from)), make([][]byte, len(wanted))
	for i, s := range from {
		in[i] = shards[s]
	}
	for i, s := range wanted {
		if cap(shards[s]) < size {
			out[i] = make([]byte, size)
		} else {
			out[i] = shards[s][:size]
		}
	}
	if err := m.mul(in, out); err != nil {
		return fmt.Errorf("reconstruct %d+%d: %w", c.data, c.parity, err)
	}
	for i, s := range wanted {
		shards[s] = out[i]
	}
	return nil
}

// inverse returns the matrix that makes the wanted shards from the ones in from, whose number is that of the data shards.
func (c *coder) inverse(from, wanted []int) (matrix, error) {
	key := loss{bits(from), bits(wanted)}
	c.mu.Lock()
	m := c.inverses[key]
	c.mu.Unlock()
	if m != nil {
		return m, nil
	}
	toData, ok := c.field.invert(c.rows(from))
	if !ok {
		return nil, errors.New("singular matrix")
	}
	m, err := c.newMatrix(c.field.product(c.rows(wanted), toData))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.inverses) >= maxInverses {
		for k := range c.inverses {
			delete(c.inverses, k)
			break
		}
	}
	c.inverses[key] = m
	return m, nil
}

// rows returns the generator's rows of the given shards.
func (c *coder) rows(shards []int) [][]byte {
	r := make([][]byte, len(shards))
	for i, s := range shards {
		r[i] = c.generator[s]
	}
	return r
}

func bits(set []int) (b uint64) {
	for _, i := range set {
		b |= 1 << i
	}
	return b
}
