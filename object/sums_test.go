package object

import (
	"bytes"
	"testing"

	"coffer/hw"
)

// Every checksum of a body is counted, whichever it is.
func TestChecksumsAreMetered(t *testing.T) {
	opt := testOptions(t)
	f := newFixture(t, opt)
	bytesOf := func(p hw.Primitive) (n uint64) {
		opt.Crypto.Totals(func(q hw.Primitive, _ string, op hw.Op, bytes uint64, _ float64) {
			if q == p && op == hw.Sum {
				n += bytes
			}
		})
		return n
	}
	body := pattern(100_000, 1)
	for algo, p := range map[Algo]hw.Primitive{AlgoCRC64NVME: hw.CRC64NVME, AlgoCRC32: hw.CRC32, AlgoCRC32C: hw.CRC32C, AlgoSHA256: hw.SHA256} {
		before := bytesOf(p)
		if _, err := f.Put(t.Context(), "b", "k", bytes.NewReader(body), PutOptions{Size: int64(len(body)), Checksum: algo}); err != nil {
			t.Fatal(err)
		}
		if n := bytesOf(p) - before; n != uint64(len(body)) {
			t.Errorf("%s: %d bytes counted of %d", p, n, len(body))
		}
	}
}
