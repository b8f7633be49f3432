package index

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// BenchmarkMillion loads a million records of 100-byte keys and 200-byte values in random order, 100 to a batch, and measures what
// the store does with them.
func BenchmarkMillion(b *testing.B) {
	const records, perBatch = 1_000_000, 100
	opt := Options{Dir: filepath.Join(b.TempDir(), "index"), Keys: testKeys{}}
	key := func(dst []byte, i int) []byte {
		h := uint64(i) * 0x9E3779B97F4A7C15
		return fmt.Appendf(ObjectKey(dst, 1, ""), "dir%03d/sub%05d/%078d", h>>54, h>>44&0x3ff, h)
	}
	var x *Index
	load := func() {
		var err error
		check(b, Wipe(nil, opt.Dir))
		x, err = Open(opt)
		check(b, err)
		rng := rand.NewChaCha8([32]byte{})
		value := make([]byte, 200)
		var k []byte
		for i := 0; i < records; i += perBatch {
			batch := x.NewBatch()
			for j := range perBatch {
				rng.Read(value)
				k = key(k[:0], i+j)
				batch.Set(k, value)
				batch.AddLive(uint64(i%64), 4096)
			}
			batch.SetPosition(binary.BigEndian.AppendUint64(nil, uint64(i)))
			check(b, batch.Commit())
		}
		check(b, x.Checkpoint())
	}
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(records * 300)
		for b.Loop() {
			if x != nil {
				check(b, x.Close())
			}
			load()
		}
		b.ReportMetric(float64(b.N)*records/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("reopen", func(b *testing.B) {
		for b.Loop() {
			check(b, x.Close())
			var err error
			x, err = Open(opt)
			check(b, err)
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		var k, v []byte
		for i := 0; b.Loop(); i++ {
			k = key(k[:0], i*7919%records)
			var ok bool
			var err error
			if v, ok, err = x.Get(k, v[:0]); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	for name, o := range map[string]ListOptions{
		"list-flat-1000":        {Max: 1000, After: "dir500/"},
		"list-top-1000":         {Max: 1000, Delimiter: "/"},
		"list-sub-100-prefixes": {Max: 100, Delimiter: "/", Prefix: "dir500/"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				page, err := x.List(1, o)
				if err != nil || len(page.Items) != o.Max {
					b.Fatal(len(page.Items), err)
				}
			}
		})
	}
	check(b, x.Close())
}

func BenchmarkCommit(b *testing.B) {
	for _, records := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(records), func(b *testing.B) {
			x, err := Open(Options{Dir: filepath.Join(b.TempDir(), "index"), Keys: testKeys{}})
			check(b, err)
			b.ReportAllocs()
			b.SetBytes(int64(records) * 300)
			var key [100]byte
			value := make([]byte, 200)
			rng := rand.NewChaCha8([32]byte{})
			for b.Loop() {
				batch := x.NewBatch()
				for range records {
					rng.Read(key[10:20])
					key[0] = kindObject
					batch.Set(key[:], value)
				}
				batch.AddLive(1, 1)
				batch.SetPosition(value[:20])
				check(b, batch.Commit())
			}
			check(b, x.Close())
		})
	}
}
