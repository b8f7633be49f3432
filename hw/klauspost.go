package hw

import (
	"crypto/subtle"
	"fmt"
	"sync"

	"github.com/klauspost/cpuid/v2"
	"github.com/klauspost/reedsolomon"
)

// gfniGroup is the largest number of inputs, and of outputs, of the library's GFNI kernels. Asked for more in one goroutine,
// v1.14.2 falls back to its AVX2 kernels: twice as slow, 15 GB/s instead of 33 for 12+4. Several goroutines would avoid that, but cost
// more processor time and are of no use to a server with many streams. So wider matrices are multiplied in groups.
const gfniGroup = 10

// groupTile is how many bytes of each shard are done at a time when there are several groups of inputs, so that the partial
// sums stay in the second-level cache. Smaller ones lose to the cost of the call, larger ones gain nothing.
const groupTile = 32 << 10

// klauspostMatrix multiplies by klauspost/reedsolomon. Each of its encoders, given a block of our matrix as its own, is a
// plain matrix multiplication, which serves to encode and to reconstruct alike.
//
// With GFNI the library allocates 896 bytes per call for its form of the block.
type klauspostMatrix struct {
	in, out int // slices per group
	blocks  [][]reedsolomon.Encoder
	scratch sync.Pool // of *klauspostScratch
}

type klauspostScratch struct {
	shards  [2 * MaxShards][]byte
	partial [gfniGroup][]byte
}

func newKlauspost(cpu *cpuid.CPUInfo) func(rows [][]byte) (matrix, error) {
	group := MaxShards
	if cpu.Supports(cpuid.GFNI) {
		group = gfniGroup
	}
	return func(rows [][]byte) (matrix, error) { return newKlauspostMatrix(rows, group) }
}

func newKlauspostMatrix(rows [][]byte, group int) (*klauspostMatrix, error) {
	m := &klauspostMatrix{in: evenly(len(rows[0]), group), out: evenly(len(rows), group)}
	for r := 0; r < len(rows); r += m.out {
		var line []reedsolomon.Encoder
		part := rows[r:min(r+m.out, len(rows))]
		for c := 0; c < len(rows[0]); c += m.in {
			end := min(c+m.in, len(rows[0]))
			block := make([][]byte, len(part))
			for i := range block {
				block[i] = part[i][c:end]
			}
			enc, err := reedsolomon.New(end-c, len(block), reedsolomon.WithCustomMatrix(block),
				reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(false))
			if err != nil {
				return nil, fmt.Errorf("make encoder: %w", err)
			}
			line = append(line, enc)
		}
		m.blocks = append(m.blocks, line)
	}
	m.scratch.New = func() any {
		s := new(klauspostScratch)
		if len(m.blocks[0]) > 1 {
			for i := range min(m.out, len(s.partial)) {
				s.partial[i] = make([]byte, groupTile)
			}
		}
		return s
	}
	return m, nil
}

// evenly is the size of the groups when n things are shared out to as few groups of at most limit as possible.
func evenly(n, limit int) int {
	groups := (n + limit - 1) / limit
	return (n + groups - 1) / groups
}

func (m *klauspostMatrix) mul(in, out [][]byte) error {
	s := m.scratch.Get().(*klauspostScratch)
	defer m.scratch.Put(s)
	defer clear(s.shards[:])
	size, tile := len(out[0]), len(out[0])
	if len(m.blocks[0]) > 1 {
		tile = groupTile
	}
	for at := 0; at < size; at += tile {
		end := min(at+tile, size)
		for r, line := range m.blocks {
			to := out[r*m.out : min((r+1)*m.out, len(out))]
			for c, enc := range line {
				from := in[c*m.in : min((c+1)*m.in, len(in))]
				shards := s.shards[:len(from)+len(to)]
				for i := range from {
					shards[i] = from[i][at:end]
				}
				for i := range to {
					if c == 0 {
						shards[len(from)+i] = to[i][at:end]
					} else {
						shards[len(from)+i] = s.partial[i][:end-at]
					}
				}
				if err := enc.Encode(shards); err != nil {
					return err
				}
				if c > 0 {
					for i := range to {
						subtle.XORBytes(to[i][at:end], to[i][at:end], s.partial[i])
					}
				}
			}
		}
	}
	return nil
}
